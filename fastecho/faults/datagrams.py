"""Datagram sockets that misbehave by plan: what `_pure.datagrams` does, but for the replies' fate.

Both twins share this socket; who is answered is decided by the plain one, and so its rules hold:
only what it would send is asked about here. Contract, beyond its own:

- A peer address is a connection, numbered in the order of appearance; its messages are those that
  are answered, numbered likewise. The table of peers is bounded.
- A delayed reply leaves when it is due, whatever the others do. One that is to be reordered leaves
  after the next reply to the same peer, or after its `wait`. (One that another waits for already is
  not reordered itself: it leaves, then the other.)
- What is held back is bounded: a reply past that is dropped, and counted as `fault_overflow`.
- A source that can be forged gets a duplicate only if both together are no more than double what
  came, as any answer is; else the second is dropped, and counted as `amplified`.
- When it is stopped, what is held back still leaves as planned.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from .._pure import datagrams as plain
from .._pure.datagrams import Control
from ..limits import FAULT_HELD, FAULT_HELD_BYTES, FAULT_PEERS
from .journal import Record

if TYPE_CHECKING:
    import socket

    from .._pure.selector import Selector
    from ..addresses import Address
    from ..loop import Timer
    from .mischief import Mischief

#: How replies are lost on purpose: names of `unanswered` counters.
DROPPED, OVERFLOW = "fault_drop", "fault_overflow"


@dataclass(slots=True, eq=False)
class _Reply:
    """A datagram that is to leave.

    Attributes:
        copies: how often.
        delay: seconds that it is to be held back.
        then: the reply that it overtakes.
        timer: lets it go, if it is held back.
        has_left: whether it has left.
    """

    peer: _Peer
    message: int
    data: bytes
    copies: int
    back: Sequence[Control]
    delay: float
    then: _Reply | None = None
    timer: Timer | None = None
    has_left: bool = False


@dataclass(slots=True, eq=False)
class _Peer:
    """A connection, as far as datagrams have one.

    Attributes:
        held: the reply that the next one overtakes.
    """

    address: Address
    number: int
    record: Record
    messages: int = 0
    held: _Reply | None = None


class Datagrams(plain.Datagrams):
    """A datagram socket that misbehaves.

    Args:
        mischief: the server's.
        name: its address, for the log.
        sock, selector, others: as those of a plain one.
    """

    def __init__(
        self, mischief: Mischief, name: str, sock: socket.socket, selector: Selector, *others: Any
    ) -> None:
        super().__init__(sock, selector, *others)
        self.mischief = mischief
        self.name = name
        #: Replies that are held back, and bytes of them.
        self._held = self._held_bytes = 0
        self._seen = 0
        self._peers: OrderedDict[Address, _Peer] = OrderedDict()

    def _add(
        self, prefix: bytes, message: bytes, to: Address, back: Sequence[Control], headers: int
    ) -> None:
        """Decide about a reply."""
        peer = self._peer(to)
        peer.messages += 1
        reply = prefix + message
        decision = self.mischief.draws.datagram(peer.number, peer.messages, reply)
        self.mischief.note(decision.strikes)
        peer.record.received(message, time.time_ns())
        peer.record.message(peer.messages, decision.strikes, reply)
        if decision.drop:
            self._drop(DROPPED)
            return
        data, copies = decision.data[: decision.keep], decision.copies
        if copies * (len(data) + headers) > 2 * (len(message) + headers) and headers:
            copies = 1
            self._drop("amplified")
        self._plan(_Reply(peer, peer.messages, data, copies, back, decision.delay), decision.swap)

    def _plan(self, reply: _Reply, wait: float | None) -> None:
        """Have a reply leave when it is to.

        Args:
            reply: it.
            wait: seconds that it lets the next one overtake it; None: it does not.
        """
        peer = reply.peer
        if wait is not None and peer.held is None:
            if self._hold(reply, reply.delay + wait):
                peer.held = reply
        elif not reply.delay or self._hold(reply, reply.delay):
            reply.then, peer.held = peer.held, None
            if reply.timer is None:
                self._leave(reply, 0.0)

    def _hold(self, reply: _Reply, delay: float) -> bool:
        """Let it leave so much later, at the latest; whether there is room for it until then."""
        if self._held >= FAULT_HELD or self._held_bytes + len(reply.data) > FAULT_HELD_BYTES:
            self._drop(OVERFLOW)
            return False
        self._count_held(reply, 1)
        due = time.monotonic() + delay
        reply.timer = self.mischief.loop.call_at(due, partial(self._leave, reply, delay))
        return True

    def _leave(self, reply: _Reply, delay: float) -> None:
        """Send it, and what it overtakes, unless that was done before."""
        if reply.has_left or self.fileno() < 0:
            return
        reply.has_left = True
        peer = reply.peer
        if reply.timer is not None:
            self.mischief.loop.take_back(reply.timer)
            self._count_held(reply, -1)
        if peer.held is reply:
            peer.held = None
        self._to, self._back = peer.address, reply.back
        for _ in range(reply.copies):
            if self._send_one(reply.data):
                peer.record.sent((reply.message,), reply.data, delay)
        if reply.then is not None:
            self._leave(reply.then, reply.then.delay)

    def _count_held(self, reply: _Reply, more: int) -> None:
        self._held += more
        self._held_bytes += more * len(reply.data)
        self.mischief.held += more

    def _peer(self, address: Address) -> _Peer:
        """Whose it is."""
        peer = self._peers.get(address)
        if peer is not None:
            self._peers.move_to_end(address)
            return peer
        self._seen += 1
        record = Record(self.mischief.journal, self.name, self._seen)
        peer = self._peers[address] = _Peer(address, self._seen, record)
        if len(self._peers) > FAULT_PEERS:
            self._peers.popitem(last=False)
        record.connected(address)
        return peer
