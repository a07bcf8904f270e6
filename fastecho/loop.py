"""One loop: a selector, the buffers that all its streams share, and a way to wake it up.

The loop does one thing: dispatch until it is stopped, and about once a second call `sweep`, which
does what is due; no connection needs a timer. `stop` may come from any thread or signal
handler: it writes to a descriptor that the selector watches.

`call_at` is for who does need one: servers with a fault plan. Timers are called in the order of
their times, none early, each perhaps a millisecond late (epoll(7) counts those). One that is taken
back keeps nothing alive, and there are never more of those than of others. Without timers they
cost nothing.

Short of memory, a stream ends itself; a MemoryError that comes as far as here is of somebody whom
the next turn tries again.
"""

from __future__ import annotations

import heapq
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


class Timer:
    """Something to be done at a time. Made by `Loop.call_at`.

    Attributes:
        when: by the monotonic clock.
        callback: what to call; None: it was called, or taken back.
    """

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback


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
        #: A heap of (when, in the order in which they were set, timer), those taken back included.
        self._timers: list[tuple[float, int, Timer]] = []
        self._set = self._taken_back = 0
        #: So that `stop` never writes to a number that `close` has given back. A signal handler
        #: may find the lock taken by its own thread.
        self._lock = threading.RLock()
        self.selector.register(self._reader, 1, self)

    def run(self, sweep: Callable[[], None]) -> None:
        """Dispatch until `stop`, calling `sweep` about once a second."""
        due = time.monotonic() + SWEEP_INTERVAL
        while not self._stopped:
            with suppress(MemoryError):
                self.selector.run(min(due, self._timers[0][0]) if self._timers else due)
                self._call_due()
            if time.monotonic() >= due:
                sweep()
                due = time.monotonic() + SWEEP_INTERVAL

    def turn(self, timeout: float) -> None:
        """Wait up to `timeout` seconds, and call what is ready."""
        if self._timers:
            timeout = max(min(timeout, self._timers[0][0] - time.monotonic()), 0)
        with suppress(MemoryError):
            self.selector.dispatch(timeout)
            self._call_due()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call it once the monotonic clock reads `when`; from the loop's own thread."""
        timer = Timer(when, callback)
        self._set += 1
        heapq.heappush(self._timers, (when, self._set, timer))
        if self._timers[0][1] == self._set:
            self.selector.stop()  # it waits for something later
        return timer

    def take_back(self, timer: Timer) -> None:
        """Do not call it, if that was not done yet."""
        if timer.callback is None:
            return
        timer.callback = None
        self._taken_back += 1
        if 2 * self._taken_back > len(self._timers):
            self._timers = [each for each in self._timers if each[2].callback is not None]
            heapq.heapify(self._timers)
            self._taken_back = 0

    def _call_due(self) -> None:
        """Call what is due now; what is set meanwhile waits for the next turn."""
        now, last = time.monotonic(), self._set
        while self._timers and self._timers[0][0] <= now and self._timers[0][1] <= last:
            timer = heapq.heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is None:
                self._taken_back -= 1
            else:
                callback()

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
