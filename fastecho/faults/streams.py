"""Streams that misbehave by plan: what `_pure.stream` does, but for what is done to the replies.

Both twins share this listener and its streams; the echo, and so the framing, is the twin's. A
server without a plan makes none of them, and pays nothing. Contract, beyond that of `_pure.stream`:

- Each reply is known by itself, and a decision is made about it, once (`decisions`); what
  leaves, in which pieces and when, is up to `pieces` and `pump`.
- A stream is not read while the kernel takes no more of its replies, nor while there are more of
  them than a piece, or too many, whatever they wait for.
- After a stall, or once it is to be ended, its input is read and discarded.
- One timer at a time, for whatever comes first: a piece, a look whether one was read, a reply that
  waits for others, the next slow read.
- When it is stopped, what is to be sent still leaves as planned. Who waits in the backlog to be
  accepted late is not accepted any more.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from .. import addresses
from .._pure import stream as plain
from .._pure.selector import EVENT_READ, EVENT_WRITE
from .._pure.stream import SHORT_OF_MEMORY, forget, read_clock
from ..limits import FAULT_REPLIES, UNFINISHED_AFTER, UNREAD_AFTER
from .journal import Record
from .pump import Pump
from .splitting import Splitter

if TYPE_CHECKING:
    from .._pure.selector import Selector
    from .._pure.stamping import Echo
    from ..addresses import Address
    from ..framing import Framing
    from ..loop import Timer
    from .decisions import Arrival
    from .mischief import Mischief

READING, MUTED, LINGERING, CLOSED = range(4)
#: How connections end on purpose: names of `closed` counters.
STALLED, TRUNCATED, RESET = "fault_stall", "fault_truncate", "fault_reset"
#: SO_LINGER on, for no time: RST instead of FIN (socket(7)).
ABORT = struct.pack("ii", 1, 0)


class Listener(plain.Listener):
    """A listening socket whose streams misbehave.

    Args:
        mischief: the server's.
        name: its address, for the log.
        framing: the echo's.
        others, more: as those of a plain listener; `shared` is the pure twin's.
    """

    def __init__(
        self,
        mischief: Mischief,
        name: str,
        framing: Framing,
        sock: socket.socket,
        selector: Selector,
        echo: Echo,
        *others: Any,
        **more: Any,
    ) -> None:
        super().__init__(sock, selector, echo, *others, **more)
        self.mischief = mischief
        self.name = name
        self.framing = framing
        #: The last connection that was made to wait in the backlog, and until when it has to.
        self._late = 0
        self._late_until = 0.0
        window = mischief.draws.plan.window
        if window is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)

    def _accept(self) -> bool:
        return not self._makes_wait() and super()._accept()

    def _makes_wait(self) -> bool:
        """Whether the next connection has still to wait in the backlog."""
        number, now = self.accepted + 1, time.monotonic()
        if self._late < number:
            late = self.mischief.draws.connection(number).late
            if late and _is_readable(self.sock):
                self._late, self._late_until = number, now + late
                self.rest()
                self.mischief.loop.call_at(self._late_until, self.wake)
        return now < self._late_until

    def _stream(self, sock: socket.socket, address: Address) -> plain.Stream:
        return cast(plain.Stream, Stream(self, sock, address))  # as who owns it sees it


class Stream:
    """One connection that misbehaves. Made by its listener.

    Attributes:
        listener: whose it is.
        address: of the peer, as `socket` gives it.
        messages: messages so far.
    """

    def __init__(self, listener: Listener, sock: socket.socket, address: Address) -> None:
        self.listener = listener
        self.address = address
        self.messages = 0
        self._sock = sock
        self._number = listener.accepted + 1
        shared, mischief = listener.shared, listener.mischief
        peer = addresses.peer(address) if listener.stamper.shows_peer else b""
        self._splitter = Splitter(listener.echo.fresh(peer), listener.framing, shared.send)
        self._record = Record(mischief.journal, listener.name, self._number)
        self._pump = Pump(sock, mischief.deliveries, self._record, shared.send)
        self._arrival: Arrival = mischief.draws.connection(self._number)
        self._state = READING
        self._reason = ""
        self._stalled = self._ended = False
        #: Input not yet cut, with its times: of the wall clock, and of the monotonic one.
        self._uncut = memoryview(b"")
        self._now_ns = 0
        self._received = 0.0
        #: What we wait for: events, the next timer, when the next slow read is due.
        self._mask = 0
        self._alarm: Timer | None = None
        self._read_at = 0.0
        #: As in the plain stream: for timeouts.
        self._read = 0
        self._seen = (-1, 0)
        self._still = self._unfinished = self._deadline = 0.0
        self._frame = -1
        self._told_unfinished = self._told_unread = False
        listener.selector.register(self, EVENT_READ, self)
        self._mask = EVENT_READ
        mischief.note(self._arrival.strikes)
        self._record.connected(address, self._arrival.strikes)

    def fileno(self) -> int:
        """The connection's descriptor; -1 once closed."""
        return self._sock.fileno()

    @property
    def closed(self) -> bool:
        """Whether its descriptor is."""
        return self._state == CLOSED

    @property
    def pending(self) -> int:
        """Bytes held of the unfinished message."""
        return self._splitter.echo.pending

    @property
    def unsent(self) -> int:
        """Bytes of replies that have not left yet."""
        return self._pump.unsent

    def on_event(self, mask: int = EVENT_READ) -> None:
        """The descriptor is ready."""
        try:
            if mask & EVENT_READ and self._state != CLOSED:
                self._receive()
            self._go_on()
        except MemoryError:
            self._close("enomem")

    def drain(self) -> bool:
        """Answer what one `recv` brings; close if that, and what is to be sent, is nothing.

        Returns:
            whether there is nothing to wait for: the stream is closed, or can be drained again.
        """
        if self._state in (READING, MUTED) and self._reads(time.monotonic()):
            more = self._receive()
            self._go_on()
            if more:
                return True
        waits = self._uncut or not self._pump.is_done or time.monotonic() < self._read_at
        if self._state in (READING, MUTED) and not waits:
            self._close("stopped")
        return self.closed

    def close(self) -> None:
        """End the connection, whatever is left to send."""
        self._close("stopped")

    # -- in

    def _reads(self, now: float) -> bool:
        """Whether input is wanted."""
        if self._ended or now < self._read_at:
            return False
        if self._state == READING:
            return not self._uncut and self._has_room
        return self._state != CLOSED

    @property
    def _has_room(self) -> bool:
        """Whether more may be answered."""
        pump = self._pump
        is_full = pump.unsent > self.listener.shared.send or pump.pieces.replies > FAULT_REPLIES
        return not (pump.is_blocked or is_full)

    def _receive(self) -> bool:
        """Take what one `recv` brings; whether another may bring anything."""
        size, slow = self.listener.shared.receive, self._arrival.slow
        try:
            data = self._sock.recv(size if slow is None else min(size, slow.size))
        except OSError as error:
            self._not_done(error)
            return not isinstance(error, BlockingIOError)
        if slow is not None:
            self._read_at = time.monotonic() + slow.pause
        self._read += len(data)
        if self._state == READING:
            self._take(data)
        elif not data:
            self._ended = True
            if self._state == LINGERING:
                self._close("eof")
        return True

    def _take(self, data: bytes) -> None:
        """Answer what has come."""
        listener = self.listener
        self._now_ns = read_clock(listener.stamper)
        self._received = time.monotonic()
        self._record.received(data, self._now_ns)
        listener.bytes_in += len(data)
        if data:
            if listener.show_cuts:
                listener.owner.received(cast(plain.Stream, self), data)
            self._uncut = memoryview(data)
        else:
            self._ended = True
            self._decide(self._splitter.finish(self._now_ns))
            self._pump.pieces.finish()
            self._note_fault()

    def _cut(self) -> None:
        """Decide about the replies to what has come, as many as there is room for."""
        consumed, replies = self._splitter.feed(self._uncut, self._now_ns)
        self._uncut = self._uncut[consumed:]
        self._decide(replies)
        if self._state == READING:
            self._note_fault()
        if self._state != READING:
            self._uncut = memoryview(b"")

    def _decide(self, replies: Iterable[bytes]) -> None:
        """Have each reply sent as the plan has it, until it has the stream answer no more."""
        listener, pieces = self.listener, self._pump.pieces
        for reply in replies:
            self.messages += 1
            listener.messages += 1
            decision = listener.mischief.draws.reply(self._number, self.messages, reply)
            listener.mischief.note(decision.strikes)
            self._record.message(self.messages, decision.strikes, reply)
            self._stalled = decision.stall
            if not decision.stall:
                pieces.add(self.messages, decision, self._received)
            if decision.stall or pieces.ended:
                self._state = MUTED
                pieces.finish()
                return

    def _note_fault(self) -> None:
        error = self._splitter.echo.error
        if error is not None and not self._reason:
            self._state = MUTED
            self._pump.pieces.finish()
            self._count(error.reason)
            self.listener.owner.faulted(cast(plain.Stream, self), error)

    # -- out

    def _go_on(self) -> None:
        """Do what can be done now, and see to being called when there is more to do."""
        again: float | None = None
        enough = self.messages + FAULT_REPLIES
        while self._state != CLOSED:
            again = self._send()
            if not self._uncut or not self._has_room:
                break
            if self.messages >= enough:
                again = 0.0  # at once, but for the others
                break
            self._cut()
        if self._state in (READING, MUTED) and not self._uncut and self._pump.is_done:
            self._settle()
        if self._state != CLOSED:
            self._watch(again)

    def _send(self) -> float | None:
        """Send what may leave; when there is more to do."""
        now, before = time.monotonic(), self._pump.sent
        self._pump.pieces.release(now)
        again = None
        try:
            again = self._pump.go_on(now)
        except OSError as error:
            self._pump.is_blocked = True
            self._not_done(error)
        self.listener.bytes_out += self._pump.sent - before
        return again

    def _settle(self) -> None:
        """Everything that came is answered, as far as it is to be, and sent."""
        if self._pump.end == "reset":
            self._abort()
        elif self._pump.end == "close":
            self._linger(TRUNCATED)
        elif self._ended:
            self._close(STALLED if self._stalled else "eof")
        elif self._splitter.echo.error is not None and not self._stalled:
            self._linger("")

    def _abort(self) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        self._close(RESET)

    def _linger(self, reason: str) -> None:
        """Send no more; read until the peer closes, so that no reset overtakes a reply."""
        if reason:
            self._count(reason)
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._close(addresses.reason(error.errno or 0))
            return
        if self._ended:
            self._close("eof")
            return
        self._deadline = time.monotonic() + self.listener.linger_timeout
        self._state = LINGERING

    # -- what is waited for

    def _watch(self, again: float | None) -> None:
        """Wait for events, and for the first of what is due."""
        now = time.monotonic()
        mask = EVENT_READ if self._reads(now) else 0
        mask |= EVENT_WRITE if self._pump.is_blocked else 0
        try:
            self._register(mask)
        except OSError as error:
            self._close(addresses.reason(error.errno or 0))
            return
        later = self._read_at if now < self._read_at else None
        times = (again, self._pump.pieces.waits_until, later)
        when = min((time for time in times if time is not None), default=None)
        if when is not None and (self._alarm is None or when < self._alarm.when):
            self._forget_alarm()
            self._alarm = self.listener.mischief.loop.call_at(when, self._ring)

    def _forget_alarm(self) -> None:
        if self._alarm is not None:
            self.listener.mischief.loop.take_back(self._alarm)
            self._alarm = None

    def _register(self, mask: int) -> None:
        selector = self.listener.selector
        if mask == self._mask:
            return
        if not mask:
            selector.unregister(self)
        elif self._mask:
            selector.modify(self, mask, self)
        else:
            selector.register(self, mask, self)
        self._mask = mask

    def _ring(self) -> None:
        """The timer is due."""
        self._alarm = None
        self.on_event(0)

    def sweep(self, now: float, elapsed: float) -> None:
        """Look for timeouts.

        Args:
            now: the monotonic clock.
            elapsed: seconds since the last sweep.
        """
        if self._state == LINGERING:
            if now >= self._deadline:
                self._close("linger_timeout")
            return
        listener, echo, unsent = self.listener, self._splitter.echo, self._pump.unsent
        pending = echo.pending if self._state == READING else 0
        if not (listener.idle_timeout or unsent or pending):
            self._frame = -1
            return
        seen = (self._read, unsent)
        self._still = self._still + elapsed if seen == self._seen else 0.0
        self._seen = seen
        if listener.idle_timeout and self._still >= listener.idle_timeout:
            self._expire("idle_timeout")
        elif unsent:
            if self._pump.is_blocked and self._still >= UNREAD_AFTER and not self._told_unread:
                self._told_unread = True
                listener.owner.unread(cast(plain.Stream, self))
        elif not pending:
            self._frame = -1
        elif self._frame != echo.offset:
            self._frame = echo.offset
            self._unfinished = 0.0
        else:
            self._unfinished += elapsed
            self._sweep_frame()

    def _sweep_frame(self) -> None:
        listener = self.listener
        if listener.frame_timeout and self._unfinished >= listener.frame_timeout:
            self._expire("frame_timeout")
        elif self._unfinished >= UNFINISHED_AFTER and not self._told_unfinished:
            self._told_unfinished = True
            listener.owner.unfinished(cast(plain.Stream, self))

    def _expire(self, reason: str) -> None:
        self.listener.owner.expired(cast(plain.Stream, self), reason)
        self._close(reason)

    # -- the end

    def _not_done(self, error: OSError) -> None:
        """A call did not succeed: the next turn tries again, or the connection is over."""
        if isinstance(error, BlockingIOError) or error.errno in SHORT_OF_MEMORY:
            return
        self._close(addresses.reason(error.errno or 0))

    def _count(self, reason: str) -> None:
        self._reason = reason
        self.listener.closed[reason] = self.listener.closed.get(reason, 0) + 1

    def _close(self, reason: str) -> None:
        if self._state == CLOSED:
            return
        if not self._reason:
            self._count(reason)
        self._state = CLOSED
        self._pump.stop()
        forget(self.listener.selector, self)
        self._sock.close()
        self._uncut = memoryview(b"")
        self._record.closed(self._reason)
        self.listener.ended(cast(plain.Stream, self))
        self._forget_alarm()
        if self.listener.verbose:
            self.listener.owner.closed(cast(plain.Stream, self), self._reason)


def _is_readable(sock: socket.socket) -> bool:
    """Whether somebody waits in a listening socket's backlog."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
