"""What happens on a TCP listener besides answering: log lines, faults that linger, rests."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from . import addresses
from .limits import ACCEPT_PAUSE, LINGER_TIMEOUT

if TYPE_CHECKING:
    from ._pure.stream import Listener, Stream
    from .errors import FrameError

log = logging.getLogger(__name__)


class Tcp:
    """The owner of TCP listeners and their streams (`_pure.stream.Owner`)."""

    def __init__(self) -> None:
        #: Streams that were at fault, and when they are closed at the latest.
        self._lingering: dict[Stream, float] = {}
        self._resting: dict[Listener, float] = {}

    def connected(self, stream: Stream) -> None:
        log.info("... connected from: %s", stream.address)

    def closed(self, stream: Stream, reason: str) -> None:
        log.info(
            "%s: closed (%s) after %d messages",
            addresses.text(stream.address),
            reason,
            stream.messages,
        )

    def faulted(self, stream: Stream, error: FrameError) -> None:
        self._lingering[stream] = time.monotonic() + LINGER_TIMEOUT
        log.warning("%s: %s (%s)", addresses.text(stream.address), error, error.reason)

    def resting(self, listener: Listener, error: OSError) -> None:
        self._resting[listener] = time.monotonic() + ACCEPT_PAUSE
        log.warning(
            "cannot accept a connection: %s; trying again in %g s", error.strerror, ACCEPT_PAUSE
        )

    def sweep(self) -> None:
        """Do what is due: end streams that lingered long enough, wake listeners that rested."""
        now = time.monotonic()
        for stream, deadline in list(self._lingering.items()):
            if stream.closed or now >= deadline:
                stream.close()
                del self._lingering[stream]
        for listener, due in list(self._resting.items()):
            if now >= due:
                del self._resting[listener]
                listener.wake()
