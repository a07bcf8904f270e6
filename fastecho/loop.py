"""One loop: a selector, the buffers that all its streams share, and a way to wake it up.

The loop does one thing: dispatch until it is stopped, and about once a second call `sweep`, which
does what is due; there is no timer per connection. `stop` may come from any thread or signal
handler: it writes to a descriptor that the selector watches.

Short of memory, a stream ends itself; a MemoryError that comes as far as here is of somebody whom
the next turn tries again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backend import Twin

#: How late anything that is due may be done, in seconds.
SWEEP_INTERVAL = 1.0


class Loop:
    """A selector with its wake-up; closed by `close`."""

    def __init__(self, twin: Twin) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self.selector = twin.Selector()
        except BaseException:
            os.close(self._reader)
            os.close(self._writer)
            raise
        self._stopped = False
        #: So that `stop` never writes to a number that `close` has given back. A signal handler
        #: may find the lock taken by its own thread.
        self._lock = threading.RLock()
        self.selector.register(self._reader, 1, self)

    def run(self, sweep: Callable[[], None]) -> None:
        """Dispatch until `stop`, calling `sweep` about once a second."""
        due = time.monotonic() + SWEEP_INTERVAL
        while not self._stopped:
            with suppress(MemoryError):
                self.selector.run(due)
            if time.monotonic() >= due:
                sweep()
                due = time.monotonic() + SWEEP_INTERVAL

    def turn(self, timeout: float) -> None:
        """Wait up to `timeout` seconds, and call what is ready."""
        with suppress(MemoryError):
            self.selector.dispatch(timeout)

    def stop(self) -> None:
        """Make `run` return; may be called from any thread, a signal handler, or twice."""
        self._stopped = True
        self.selector.stop()
        with self._lock:
            if self._writer >= 0:
                with suppress(BlockingIOError):  # full: the loop will wake up anyway
                    os.write(self._writer, b"!")

    def on_event(self, mask: int) -> None:
        """Somebody called `stop`, maybe just before `run` of the selector began."""
        os.read(self._reader, 4096)
        self.selector.stop()

    def close(self) -> None:
        """Give the descriptors back."""
        with self._lock:
            writer, self._writer = self._writer, -1
        if writer >= 0:
            self.selector.close()
            os.close(self._reader)
            os.close(writer)
