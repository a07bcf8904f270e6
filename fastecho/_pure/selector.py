"""A `selectors` selector that can also dispatch: wait, then call each ready key's data.

`dispatch` is the loop's one step, which `run` takes again and again. The contract, beyond that of
`selectors.BaseSelector`:

- It calls `key.data.on_event(mask)` for each ready key and returns how many it called.
- A key that an earlier call of the same turn unregistered or replaced is not called: descriptor
  numbers are used again within a turn. Readiness is level-triggered, so what still holds is
  reported by the next turn.
- An exception of `on_event` propagates; what was not called is reported by the next turn.
- Signal handlers run and the wait goes on (PEP 475); to stop a loop, write to a descriptor in it.
"""

from __future__ import annotations

import selectors
import time
from typing import Protocol

EVENT_READ = selectors.EVENT_READ
EVENT_WRITE = selectors.EVENT_WRITE


class Handler(Protocol):
    """What `dispatch` expects of a key's data."""

    def on_event(self, mask: int) -> object:
        """The descriptor is ready for the events in `mask`."""


class Selector(selectors.DefaultSelector):
    """The platform's best level-triggered selector, with `dispatch` and `run`."""

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
            if self._fd_to_key.get(key.fd) is key:  # type: ignore[attr-defined]
                key.data.on_event(mask)
                called += 1
        return called
