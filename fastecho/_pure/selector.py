"""A `selectors` selector that can also dispatch: wait, then call each ready key's data.

`dispatch` is the loop's one step, which `run` takes again and again. The contract, beyond that of
`selectors.BaseSelector`:

- It calls `key.data.on_event(mask)` for each ready key and returns how many it called.
- A key that an earlier call of the same turn unregistered or replaced is not called: descriptor
  numbers are used again within a turn. Readiness is level-triggered, so what still holds is
  reported by the next turn.
- An exception of `on_event` propagates; what was not called is reported by the next turn.
- Signal handlers run and the wait goes on (PEP 475); to stop a loop, write to a descriptor in it.

`Portable` is this in its plainest form; on Linux `Selector` does the same with far less work.
"""

from __future__ import annotations

import math
import select
import selectors
import sys
import time
from collections.abc import Callable
from selectors import SelectorKey
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

EVENT_READ = selectors.EVENT_READ
EVENT_WRITE = selectors.EVENT_WRITE


class Handler(Protocol):
    """What `dispatch` expects of a key's data."""

    def on_event(self, mask: int) -> object:
        """The descriptor is ready for the events in `mask`."""


class Portable(selectors.DefaultSelector):
    """The platform's best level-triggered selector, with `dispatch` and `run`."""

    _fd_to_key: dict[int, SelectorKey]
    _fileobj_lookup: Callable[[FileDescriptorLike], int]

    def run(self, until: float) -> None:
        """Dispatch, at least once, until the monotonic clock reads `until` or somebody stops it."""
        self._stopped = False
        left = until - time.monotonic()
        while True:
            self.dispatch(left)
            left = until - time.monotonic()
            if self._stopped or left <= 0:
                return

    def stop(self) -> None:
        """Have `run` return after this turn."""
        self._stopped = True

    def dispatch(self, timeout: float | None = None) -> int:
        """Wait up to `timeout` seconds (None: for ever), call what is ready, return how many."""
        called = 0
        for key, mask in self.select(timeout):
            if self._fd_to_key.get(key.fd) is key:
                key.data.on_event(mask)
                called += 1
        return called


#: Keys that one turn calls at most: what is left is ready in the next one.
TURN = 256

if sys.platform == "linux":
    EPOLLIN, EPOLLOUT = select.EPOLLIN, select.EPOLLOUT

    class Selector(Portable):
        """epoll(7) with a `dispatch` that makes no keys, and no list of them, on its way.

        It finds the data by the descriptor. What comes while a turn lasts is kept apart until that
        is over: an event from before cannot be one of its.
        """

        def __init__(self) -> None:
            super().__init__()
            self._epoll: select.epoll = self._selector  # type: ignore[attr-defined]
            #: Descriptor to data, of the keys that this turn may call, and of those to come.
            self._known: dict[int, Any] = {}
            self._newcomers: dict[int, Any] = {}
            self._in_turn = False

        def dispatch(self, timeout: float | None = None) -> int:
            """As `Portable.dispatch`."""
            if self._in_turn:  # and it may call the newcomers of the turn that it is a part of
                return super().dispatch(timeout)
            ready = self._epoll.poll(whole_milliseconds(timeout), TURN)
            known = self._known
            if self._newcomers:
                known.update(self._newcomers)
                self._newcomers.clear()
            called = len(ready)
            self._in_turn = True
            try:
                for fd, events in ready:
                    try:
                        data = known[fd]
                    except KeyError:
                        called -= 1
                        continue
                    data.on_event(EVENT_READ if events == EPOLLIN else self._mask(fd, events))
            finally:
                self._in_turn = False
            return called

        def _mask(self, fd: int, events: int) -> int:
            """Hang-ups and errors make both ready: the call that follows tells which it is."""
            found = EVENT_WRITE if events & ~EPOLLIN else 0
            found |= EVENT_READ if events & ~EPOLLOUT else 0
            return found & self._fd_to_key[fd].events

        def register(
            self, fileobj: FileDescriptorLike, events: int, data: Any = None
        ) -> SelectorKey:
            key = super().register(fileobj, events, data)
            self._newcomers[key.fd] = data
            return key

        def unregister(self, fileobj: FileDescriptorLike) -> SelectorKey:
            key = super().unregister(fileobj)
            self._forget(key.fd)
            return key

        def modify(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> SelectorKey:
            fd = self._fileobj_lookup(fileobj)
            before = self._fd_to_key.get(fd)
            try:
                return super().modify(fileobj, events, data)
            finally:  # where it fails, the key may be gone
                after = self._fd_to_key.get(fd)
                if after is not before:
                    self._forget(fd)
                    if after is not None:
                        self._newcomers[fd] = after.data

        def close(self) -> None:
            super().close()
            self._known.clear()
            self._newcomers.clear()

        def _forget(self, fd: int) -> None:
            self._known.pop(fd, None)
            self._newcomers.pop(fd, None)

else:
    Selector = Portable


def whole_milliseconds(timeout: float | None) -> float:
    """As epoll's `poll` has it; rounded up, so that no wait is shorter than asked for."""
    if timeout is None:
        return -1
    return 0 if timeout <= 0 else math.ceil(timeout * 1e3) * 1e-3
