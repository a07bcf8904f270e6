"""TCP: a listener accepts, a stream answers.

The way of the data is one call per readable socket: `recv`, cut and stamp in one pass, `send`.
Contract:

- What one `recv` brings, and one piece of replies, are as large as all streams of a loop agree
  (`Shared`). A stream at rest owns neither; it keeps a partial frame, or what the kernel did not
  take, while that lasts.
- Replies are made and sent piece by piece. While a stream has unsent bytes it is not read: it
  keeps the rest of that piece and the input not yet cut, with its prefix.
- At the end of the stream every reply still goes out, then the descriptor is closed.
- After a fault everything before it is answered, then the stream is shut down for writing and
  its input discarded until the peer closes, so that no reset overtakes a reply.
- Errors of one connection end that connection alone. Its `Owner` is called for what is rare.
- Timeouts are found by `Listener.sweep`, about once a second: no timer per connection, no cost per
  message. None fires early; any may be one sweep late.
- A listener that cannot accept, or may not (`max_connections`), rests: the next wait in the
  backlog. It is woken when a connection ends, and by each sweep.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, final

from .. import addresses
from ..addresses import Address
from ..errors import FrameError
from ..limits import (
    ACCEPT_BUDGET,
    FRAME_TIMEOUT,
    IDLE_TIMEOUT,
    LINGER_TIMEOUT,
    UNFINISHED_AFTER,
    UNREAD_AFTER,
)
from .framing import Prefix
from .selector import EVENT_READ, EVENT_WRITE, Selector
from .stamping import Echo, Stamper, finish

if TYPE_CHECKING:
    from _typeshed import HasFileno

#: The kernel is short of memory for the moment: what was asked for is asked for again next turn.
SHORT_OF_MEMORY = frozenset({errno.ENOBUFS, errno.ENOMEM})

READING, WRITING, LINGERING, CLOSED = range(4)


class Owner(Protocol):
    """Who is told what is rare; the hot path calls no Python but this."""

    def connected(self, stream: Stream) -> None:
        """A connection was accepted; only if the listener is `verbose`."""

    def faulted(self, stream: Stream, error: FrameError) -> None:
        """The peer broke its framing; unless it has closed, the stream lingers once all is sent."""

    def closed(self, stream: Stream, reason: str) -> None:
        """A connection has ended; only if the listener is `verbose`."""

    def resting(self, listener: Listener, error: OSError | None) -> None:
        """No connection can be accepted for now; None: there are as many as there may be."""

    def received(self, stream: Stream, data: bytes) -> None:
        """One `recv` brought this; only if the listener shows cuts."""

    def unfinished(self, stream: Stream) -> None:
        """A message has been unfinished for a second; told once of a connection."""

    def unread(self, stream: Stream) -> None:
        """The peer has read nothing for a while; told once of a connection."""

    def expired(self, stream: Stream, reason: str) -> None:
        """A timeout is about to close the connection."""


class Shared:
    """What all streams of a loop share.

    Args:
        receive: bytes that one `recv` takes at most.
        send: bytes of one piece of replies; never less than the largest single reply.
        max_connections: how many streams there may be.

    Attributes:
        open: how many there are.
        resting: listeners that wait for one to end.
    """

    def __init__(self, receive: int, send: int, max_connections: int = 2**31 - 1) -> None:
        self.receive = receive
        self.send = send
        # glibc has the kernel map so large a block anew for each `recv`, and take it back, until
        # a larger one has been freed (mallopt(3), M_MMAP_THRESHOLD).
        bytearray(2 * receive)
        self.max_connections = max_connections
        self.open = 0
        self.resting: list[Listener] = []

    def wake(self) -> None:
        """Have the listeners that rest try again."""
        resting, self.resting = self.resting, []
        for listener in resting:
            listener.wake()


def read_clock(stamper: Stamper) -> int:
    """The time of what was just received; keeps the stamper's monotonic clock up to date."""
    now = time.time_ns()
    read_monotonic(stamper, now)
    return now


def read_monotonic(stamper: Stamper, now_ns: int) -> None:
    """Keep the stamper's monotonic clock up to date, if it shows one."""
    if stamper.shows_mono:
        stamper.mono_offset = time.monotonic_ns() - now_ns


def forget(selector: Selector, fileobj: HasFileno) -> None:
    """Unregister, if the selector has not been closed or told so before."""
    with suppress(KeyError):
        selector.unregister(fileobj)


class Listener:
    """A listening socket on a selector; its streams share what it holds.

    Args:
        sock: listening and non-blocking; the listener closes it.
        selector: where it and its streams are registered.
        echo: the pattern of each stream's echo.
        shared: the loop's.
        owner: who is told what is rare.
        verbose: whether the owner is told of each connection.
        show_cuts: whether the owner is told of each `recv`.
        idle_timeout: seconds without a byte moved either way that end a connection; 0: none do.
        frame_timeout: seconds that a frame may be unfinished, not counting those in which replies
            were unsent; 0: any number.
        linger_timeout: seconds that a stream at fault is read and discarded at most.

    Attributes:
        accepted, messages, bytes_in, bytes_out: counts since the start.
        closed: how many connections have ended, by reason.
        open: how many there are.
    """

    def __init__(
        self,
        sock: socket.socket,
        selector: Selector,
        echo: Echo,
        shared: Shared,
        owner: Owner,
        verbose: bool = False,
        show_cuts: bool = False,
        idle_timeout: float = IDLE_TIMEOUT,
        frame_timeout: float = FRAME_TIMEOUT,
        linger_timeout: float = LINGER_TIMEOUT,
    ) -> None:
        self.sock = sock
        self.selector = selector
        self.echo = echo
        self.stamper = echo.stamper
        self.shared = shared
        self.owner = owner
        self.verbose = verbose
        self.show_cuts = show_cuts
        self.idle_timeout = idle_timeout
        self.frame_timeout = frame_timeout
        self.linger_timeout = linger_timeout
        self.accepted = self.open = 0
        self.messages = self.bytes_in = self.bytes_out = 0
        self.closed: dict[str, int] = {}
        self._resting = False
        self._swept = time.monotonic()
        #: In the order in which they came.
        self._streams: dict[Stream, None] = {}
        selector.register(self, EVENT_READ, self)

    def fileno(self) -> int:
        """The listening descriptor; -1 once closed."""
        return self.sock.fileno()

    @property
    def streams(self) -> list[Stream]:
        """The connections that there are."""
        return list(self._streams)

    def on_event(self, mask: int) -> None:
        """Accept what waits, within a budget."""
        for _ in range(ACCEPT_BUDGET):
            if not self._accept():
                return

    def _accept(self) -> bool:
        """Accept the next; whether to look for another."""
        if self.shared.open >= self.shared.max_connections:
            self._cannot_accept(None)
            return False
        try:
            sock, address = self.sock.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in addresses.PASSING:
                return True
            self._cannot_accept(error)
            return False
        return self._adopt(sock, address)

    def _adopt(self, sock: socket.socket, address: Address) -> bool:
        """Serve a connection; if that cannot be, it is closed. Whether to look for another."""
        try:
            sock.setblocking(False)
            stream = self._stream(sock, address)
            self._streams[stream] = None
        except OSError as error:
            sock.close()
            self._cannot_accept(error)
            return False
        except MemoryError:
            forget(self.selector, sock)  # it may have been registered already
            sock.close()
            self._cannot_accept(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
            return False
        self.accepted += 1
        self.open += 1
        self.shared.open += 1
        if self.verbose:
            self.owner.connected(stream)
        return True

    def _stream(self, sock: socket.socket, address: Address) -> Stream:
        return Stream(self, sock, address)

    def ended(self, stream: Stream) -> None:
        """One of its streams was closed."""
        del self._streams[stream]
        self.open -= 1
        self.shared.open -= 1
        if self.shared.resting:
            self.shared.wake()

    def sweep(self) -> None:
        """End the streams whose time is over, and tell the owner of those that are stuck."""
        now = time.monotonic()
        elapsed, self._swept = now - self._swept, now
        for stream in self.streams:
            stream.sweep(now, elapsed)

    def _cannot_accept(self, error: OSError | None) -> None:
        self.rest()
        self.shared.resting.append(self)
        self.owner.resting(self, error)

    def rest(self) -> None:
        """Accept nothing until `wake`: the next wait in the backlog."""
        if not self._resting:
            self._resting = True
            forget(self.selector, self)

    def wake(self) -> None:
        """Accept again; nothing once closed. If that cannot be, go on resting."""
        if self._resting and self.fileno() >= 0:
            try:
                self.selector.register(self, EVENT_READ, self)
            except OSError:
                self.shared.resting.append(self)
            else:
                self._resting = False

    def close(self) -> None:
        """Stop listening; the streams go on."""
        self.rest()
        self.sock.close()


@final
class Stream:
    """One connection: reads, answers, keeps what could not be sent. Made by its listener.

    Attributes:
        listener: whose it is.
        address: of the peer, as `socket` gives it.
        closed: whether its descriptor is.
    """

    __slots__ = (
        "_codec",
        "_deadline",
        "_ended",
        "_frame",
        "_peer",
        "_prefix",
        "_reason",
        "_seen",
        "_sock",
        "_state",
        "_still",
        "_told_unfinished",
        "_told_unread",
        "_uncut",
        "_unfinished",
        "_unsent",
        "address",
        "listener",
    )

    def __init__(self, listener: Listener, sock: socket.socket, address: Address) -> None:
        self.listener = listener
        self.address = address
        self._sock = sock
        self._peer = addresses.peer(address) if listener.stamper.shows_peer else b""
        self._codec = listener.echo.codec.fresh()
        self._state = READING
        self._reason = ""
        self._ended = False
        #: Replies that the kernel did not take yet; input not yet cut, with its prefix.
        self._unsent: bytes | memoryview = b""
        self._uncut = b""
        self._prefix: Prefix = b""
        #: What the last sweep saw: bytes in and bytes unsent, and since when they are the same.
        self._seen = (-1, 0)
        self._still = 0.0
        #: Where the unfinished frame begins, for how long it has, or the deadline of lingering.
        self._frame = -1
        self._unfinished = 0.0
        self._deadline = 0.0
        self._told_unfinished = self._told_unread = False
        listener.selector.register(self, EVENT_READ, self)

    def fileno(self) -> int:
        """The connection's descriptor; -1 once closed."""
        return self._sock.fileno()

    @property
    def closed(self) -> bool:
        return self._state == CLOSED

    @property
    def messages(self) -> int:
        """Messages so far."""
        return self._codec.messages

    @property
    def pending(self) -> int:
        """Bytes held of the unfinished message."""
        return self._codec.pending

    @property
    def unsent(self) -> int:
        """Bytes of replies that the kernel did not take yet."""
        return len(self._unsent)

    def on_event(self, mask: int = EVENT_READ) -> bool:
        """The descriptor is ready: go on with what it was waited for.

        Returns:
            whether another call may find anything to do at once.
        """
        try:
            if self._state != READING:
                self._go_on()
                return True
            listener, sock = self.listener, self._sock
            shared, stamper = listener.shared, listener.stamper
            try:
                data = sock.recv(shared.receive)
            except OSError as error:
                self._not_done(error)
                return not isinstance(error, BlockingIOError)
            now = time.time_ns()
            listener.bytes_in += len(data)
            if listener.show_cuts and data:
                listener.owner.received(self, data)
            # Mostly whole messages come, the prefix is still the last one's, and the kernel takes
            # all. Then this is all, in one piece: on this way every call would be felt.
            if stamper.since <= now < stamper.until:
                codec = self._codec
                before = codec.messages
                reply = codec.stamp_whole(data, stamper.text, shared.send)
                if reply:
                    listener.messages += codec.messages - before
                    try:
                        sent = sock.send(reply)
                    except OSError as error:
                        self._not_done(error)
                        sent = 0
                    listener.bytes_out += sent
                    if sent != len(reply):
                        self._keep(reply, sent)
                    return True
            self._take(data, now)
        except MemoryError:
            self._close("enomem")
        return True

    def drain(self) -> bool:
        """Answer what one `recv` brings; close if that is nothing.

        Returns:
            whether there is nothing to wait for: the stream is closed, or can be drained again.
        """
        if self._state == READING and not self.on_event() and self._state == READING:
            self._close("stopped")
        return self._state in (READING, CLOSED)

    def close(self) -> None:
        """End the connection, whatever is left to send."""
        self._close("stopped")

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
        listener, codec = self.listener, self._codec
        if not (listener.idle_timeout or self._unsent or codec.pending):
            self._frame = -1
            return
        seen = (codec.offset + codec.pending, len(self._unsent))
        self._still = self._still + elapsed if seen == self._seen else 0.0
        self._seen = seen
        if listener.idle_timeout and self._still >= listener.idle_timeout:
            self._expire("idle_timeout")
        elif self._unsent:
            if self._still >= UNREAD_AFTER and not self._told_unread:
                self._told_unread = True
                listener.owner.unread(self)
        elif not codec.pending:  # it is idle, which has a limit
            self._frame = -1
        elif self._frame != codec.offset:
            self._frame = codec.offset
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
            listener.owner.unfinished(self)

    def _expire(self, reason: str) -> None:
        self.listener.owner.expired(self, reason)
        self._close(reason)

    def _go_on(self) -> None:
        """The descriptor of a stream that is not reading is ready."""
        if self._state == WRITING:
            self._resume()
        elif self._state == LINGERING:
            self._discard()

    def _take(self, data: bytes, now: int) -> None:
        """Answer what one `recv` brought, whatever it is."""
        stamper = self.listener.stamper
        read_monotonic(stamper, now)
        prefix = stamper.prefix(now, self._peer)
        if data:
            self._answer(data, prefix)
        else:
            self._end(prefix)

    def _answer(self, data: bytes, prefix: Prefix) -> None:
        """Cut, stamp and send piece by piece; keep what is left when the kernel takes no more."""
        codec, listener = self._codec, self.listener
        while data:
            before = codec.messages
            consumed, reply = codec.stamp(data, prefix, listener.shared.send)
            data = data[consumed:]
            listener.messages += codec.messages - before
            if not self._send(reply):
                if self._state == WRITING:
                    self._uncut, self._prefix = data, prefix
                self._note_fault()
                return
        self._note_fault()
        self._settle()

    def _end(self, prefix: Prefix) -> None:
        """The peer has sent all: the tail's reply, then the end."""
        self._ended = True
        before = self._codec.messages
        reply = finish(self._codec, prefix)
        self.listener.messages += self._codec.messages - before
        sent = self._send(reply)
        self._note_fault()
        if sent:
            self._settle()

    def _note_fault(self) -> None:
        error = self._codec.error
        if error is not None and not self._reason:
            self._count(error.reason)
            self.listener.owner.faulted(self, error)

    def _send(self, reply: bytes | memoryview) -> bool:
        """Send; keep what the kernel did not take, and wait for it. Whether it took all."""
        sent = 0
        if reply:
            try:
                sent = self._sock.send(reply)
            except OSError as error:
                self._not_done(error)
            self.listener.bytes_out += sent
        if sent != len(reply):
            self._keep(reply, sent)
            return False
        self._unsent = b""
        return True

    def _keep(self, reply: bytes | memoryview, sent: int) -> None:
        """Wait until the kernel takes the rest of it, unless that ended the connection."""
        if self._state != CLOSED:
            self._unsent = memoryview(reply)[sent:]
            self._watch(WRITING, EVENT_WRITE)

    def _resume(self) -> None:
        """The kernel takes more."""
        if self._send(self._unsent):
            data, self._uncut = self._uncut, b""
            self._answer(data, self._prefix)

    def _settle(self) -> None:
        """Everything that came is answered and sent."""
        if self._ended:
            self._close("eof")
        elif self._codec.error is not None:
            self._linger()
        else:
            self._watch(READING, EVENT_READ)

    def _linger(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._close(addresses.reason(error.errno or 0))
            return
        self._deadline = time.monotonic() + self.listener.linger_timeout
        self._watch(LINGERING, EVENT_READ)

    def _discard(self) -> None:
        try:
            if not self._sock.recv(self.listener.shared.receive):
                self._close("eof")
        except OSError as error:
            self._not_done(error)

    def _watch(self, state: int, events: int) -> None:
        """Wait for something else; if that cannot be, the connection is over."""
        if (state == WRITING) != (self._state == WRITING):
            try:
                self.listener.selector.modify(self, events, self)
            except OSError as error:
                self._close(addresses.reason(error.errno or 0))
                return
        self._state = state

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
        forget(self.listener.selector, self)
        self._sock.close()
        self._unsent, self._uncut = b"", b""
        self.listener.ended(self)
        if self.listener.verbose:
            self.listener.owner.closed(self, self._reason)
