"""A clock, a selector and a network that exist only here: all that happens follows from a seed.

`World` stands in for the module `time`, for `selectors`, and for the kernel's sockets, so that a
whole pure server runs through hours in milliseconds, and a seed that failed fails again.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import random
import selectors
import socket
from collections.abc import Callable
from typing import Any

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class World:
    """The clock, what is due, and every open descriptor.

    Args:
        seed: what everything follows from.
        descriptors: how many there may be at once.
        trouble: how often a call fails for no lasting reason, from 0 to 1.
    """

    def __init__(self, seed: int, descriptors: int, trouble: float) -> None:
        self.random = random.Random(seed)
        self.now = 1_000.0
        self.trace: list[tuple[Any, ...]] = []
        self.descriptors = descriptors
        self.open: dict[int, Any] = {}
        self.most_open = 0
        self._trouble = trouble
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count(10_000)

    # -- as `time` has it

    def monotonic(self) -> float:
        return self.now

    def monotonic_ns(self) -> int:
        return int(self.now * 1e9)

    def time_ns(self) -> int:
        return int((1.7e9 + self.now) * 1e9)

    # -- what happens

    def after(self, delay: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + delay, next(self._numbers), act))

    def step(self, deadline: float) -> bool:
        """Let the next thing happen, unless nothing does by then."""
        if not self._due or self._due[0][0] > deadline:
            self.now = deadline + 0.0005  # a wait is never shorter than asked for
            return False
        self.now, _, act = heapq.heappop(self._due)
        act()
        return True

    def note(self, *what: Any) -> None:
        self.trace.append((round(self.now, 6), *what))

    def claim(self, thing: Any) -> int:
        if len(self.open) >= self.descriptors:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        number = next(self._numbers)
        self.open[number] = thing
        self.most_open = max(self.most_open, len(self.open))
        return number

    def maybe_fail(self, *numbers: int) -> None:
        """What a call may meet that is no reason to give up."""
        if self.random.random() < self._trouble:
            number = self.random.choice(numbers)
            raise OSError(number, os.strerror(number))


class Selector:
    """Level-triggered, and in no particular order."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> None:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        assert fd >= 0
        assert fd not in self._keys
        self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)

    def unregister(self, fileobj: Any) -> None:
        del self._keys[fileobj.fileno()]

    def modify(self, fileobj: Any, events: int, data: Any = None) -> None:
        self.unregister(fileobj)
        self.register(fileobj, events, data)

    def get_map(self) -> dict[int, selectors.SelectorKey]:
        return dict(self._keys)

    def close(self) -> None:
        self._keys.clear()

    def run(self, until: float) -> None:
        self._stopped = False
        while True:
            self.dispatch(until - self._world.now)
            if self._stopped or until <= self._world.now:
                return

    def stop(self) -> None:
        self._stopped = True

    def dispatch(self, timeout: float) -> int:
        world = self._world
        deadline = world.now + max(timeout, 0)
        while not (ready := self._ready()):
            if not world.step(deadline):
                return 0
        world.now += 0.0001
        world.random.shuffle(ready)
        for key, mask in ready:
            if self._keys.get(key.fd) is key:
                key.data.on_event(mask)
        return len(ready)

    def _ready(self) -> list[tuple[selectors.SelectorKey, int]]:
        found = []
        for key in self._keys.values():
            thing = self._world.open.get(key.fd)
            mask = (thing.ready() & key.events) if thing else 0
            if mask:
                found.append((key, mask))
        return found


class Listening:
    """The server's listening socket, and its backlog."""

    family = socket.AF_INET

    def __init__(self, world: World) -> None:
        self._world = world
        self.backlog: list[Connection] = []
        self._fd = world.claim(self)

    def fileno(self) -> int:
        return self._fd

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 12345)

    def ready(self) -> int:
        return READ if self.backlog else 0

    def accept(self) -> tuple[Connection, tuple[str, int]]:
        self._world.maybe_fail(errno.ECONNABORTED, errno.EPROTO)
        if not self.backlog:
            raise BlockingIOError(errno.EAGAIN, "nobody")
        connection = self.backlog[0]
        connection.fd = self._world.claim(connection)
        connection.last_sent = self._world.now  # nothing yet, but its time begins
        self.backlog.pop(0)
        self._world.note(connection.number, "accepted")
        return connection, ("127.0.0.1", connection.number)

    def close(self) -> None:
        self._world.open.pop(self._fd, None)
        self._fd = -1
        for connection in self.backlog:
            connection.refused = True


class Connection:
    """One TCP connection: the server's socket, and what its client sees and does.

    Args:
        window: how many bytes of replies the client's kernel takes before it reads.
    """

    def __init__(self, world: World, number: int, window: int) -> None:
        self.world = world
        self.number = number
        self.fd = -1
        self.window = window
        #: Towards the server: chunks as they were sent; then the end, if it has come.
        self.inbound: list[bytes] = []
        self.half_closed = self.was_reset = self.refused = False
        #: Towards the client: what its kernel holds, and what it has read.
        self.arrived = bytearray()
        self.read = bytearray()
        self.shut = self.closed = False
        #: When the server received each byte, as (bytes so far, time), last sent, and closed.
        self.received: list[tuple[int, float]] = [(0, 0.0)]
        self.last_sent = self.closed_at = 0.0

    # -- the server's side

    def fileno(self) -> int:
        return self.fd

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def ready(self) -> int:
        mask = READ if self.inbound or self.half_closed or self.was_reset else 0
        return mask | (WRITE if self._room() or self.was_reset else 0)

    def _room(self) -> int:
        return self.window - len(self.arrived)

    def _check(self) -> None:
        assert not self.closed, "a closed descriptor was used"
        if self.was_reset:
            raise ConnectionResetError(errno.ECONNRESET, "reset")

    def recv(self, size: int) -> bytes:
        self._check()
        self.world.maybe_fail(errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
        if not self.inbound:
            if self.half_closed:
                return b""
            raise BlockingIOError(errno.EAGAIN, "nothing")
        data, self.inbound[0] = self.inbound[0][:size], self.inbound[0][size:]
        if not self.inbound[0]:
            self.inbound.pop(0)
        self.received.append((self.received[-1][0] + len(data), self.world.now))
        return data

    def send(self, data: bytes | memoryview) -> int:
        self._check()
        assert data
        assert not self.shut
        self.world.maybe_fail(errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
        room = self._room()
        if not room:
            raise BlockingIOError(errno.EAGAIN, "full")
        size = min(len(data), self.world.random.randint(1, room))
        self.arrived += data[:size]
        self.last_sent = self.world.now
        return size

    def shutdown(self, how: int) -> None:
        self._check()
        assert how == socket.SHUT_WR
        self.shut = True

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.closed_at = self.world.now
        del self.world.open[self.fd]
        self.world.note(self.number, "closed", len(self.arrived) + len(self.read))
        if self.inbound and not self.was_reset:  # unread input: the kernel sends RST
            self.arrived.clear()

    # -- the client's side

    def write(self, data: bytes) -> None:
        if not self.closed and not self.was_reset:
            self.inbound.append(data)

    def take(self, size: int) -> None:
        self.read += self.arrived[:size]
        del self.arrived[:size]

    @property
    def at_end(self) -> bool:
        """Whether the client has read all that there will ever be."""
        return (self.shut or self.closed) and not self.arrived
