"""The echo as a library: bytes in, reply bytes out, no socket."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from . import addresses, framing, prefix
from . import backend as backends

if TYPE_CHECKING:
    from ._pure.framing import Buffer
    from ._pure.stamping import Echo as TwinEcho
    from .backend import Twin
    from .errors import FrameError


def pattern(
    twin: Twin, spec: str, template: str, max_frame: int | None, peer: bytes = b""
) -> TwinEcho:
    """The twin's echo for these settings, which have been checked against each other.

    Raises:
        ConfigError: a framing, template or limit that makes no sense, alone or together.
    """
    cut = framing.parse(spec)
    stamper = twin.Stamper(prefix.parse(template))
    for delimiter in cut.delimiters:
        prefix.check_delimiter(template, delimiter)
    return twin.Echo(cut.codec(twin, max_frame, stamper.longest), stamper, peer)


class Echo:
    """One connection's framing and stamping, without I/O.

    A peer's bad bytes are data, not exceptions: `feed` and `finish` return everything that was
    complete before the fault, `error` is then set, and further input is ignored.

    Args:
        framing: spec, as `fastecho.framing.SPECS` lists them.
        prefix: template, such as `[{ctime}]`; empty for a plain echo.
        max_frame: longest message in bytes, 1 to 2**30; by default 65,536, or less where the
            framing cannot say so much.
        peer: what `{peer}` shows.
        backend: `native`, `pure` or `auto`; by default the chosen one.

    Raises:
        ConfigError: settings that make no sense, alone or together.
    """

    def __init__(
        self,
        framing: str = "line",
        prefix: str = prefix.DEFAULT,
        max_frame: int | None = None,
        peer: str = "",
        backend: str | None = None,
    ) -> None:
        shown = addresses.printable(peer)
        self._echo = pattern(backends.load(backend), framing, prefix, max_frame, shown)
        self._stamper = self._echo.stamper
        self._clock()

    def feed(self, data: Buffer, now_ns: int | None = None) -> bytes:
        """The replies to all messages that `data` completes.

        Args:
            data: any contiguous bytes-like object; none at all is nothing.
            now_ns: when it came: Unix time in nanoseconds, 0 to 2**63 - 1; by default now.

        Raises:
            ValueError: after `finish`, or a time out of range.
        """
        return self._echo.feed(data, self._clock() if now_ns is None else now_ns)

    def feed_into(
        self, data: Buffer, out: bytearray | memoryview, now_ns: int | None = None
    ) -> tuple[int, int]:
        """Write the replies to `out`, as many as fit: (bytes consumed, bytes written).

        What was not consumed is to be fed again, once `out` has been emptied; (0, 0) for data
        that is not empty says that the next reply alone is larger than `out`. Raises as `feed`.
        """
        return self._echo.feed_into(data, out, self._clock() if now_ns is None else now_ns)

    def finish(self, now_ns: int | None = None) -> bytes:
        """The stream has ended: the reply to its tail, if that is a message. Raises as `feed`."""
        return self._echo.finish(self._clock() if now_ns is None else now_ns)

    @property
    def messages(self) -> int:
        """Messages so far."""
        return self._echo.messages

    @property
    def offset(self) -> int:
        """Stream bytes cut so far: where the unfinished frame, or the one at fault, begins."""
        return self._echo.offset

    @property
    def pending(self) -> int:
        """Bytes held of the unfinished frame."""
        return self._echo.pending

    @property
    def error(self) -> FrameError | None:
        """The fault that ended the stream, if there was one."""
        return self._echo.error

    def _clock(self) -> int:
        now = time.time_ns()
        if self._stamper.shows_mono:
            self._stamper.mono_offset = time.monotonic_ns() - now
        return now
