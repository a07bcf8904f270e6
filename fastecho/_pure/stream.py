"""TCP: a listener accepts, a stream answers.

The way of the data is one call per readable socket: `recv`, cut and stamp in one pass, `send`.
Contract:

- One receive and one send buffer serve all streams of a loop (`Buffers`). A stream at rest owns
  neither; it keeps a partial frame, or what the kernel did not take, while that lasts.
- Replies are made and sent in pieces of one send buffer. While a stream has unsent bytes it is
  not read: it keeps the rest of that piece and the input not yet cut, with its time.
- At the end of the stream every reply still goes out, then the descriptor is closed.
- After a fault everything before it is answered, then the stream is shut down for writing and
  its input discarded until the peer closes, so that no reset overtakes a reply. The owner ends
  that after `limits.LINGER_TIMEOUT`.
- Errors of one connection end that connection alone. Its `Owner` is called for what is rare.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import Protocol

from .. import addresses
from ..addresses import Address
from ..errors import FrameError
from ..limits import ACCEPT_BUDGET
from .selector import EVENT_READ, EVENT_WRITE, Selector
from .stamping import Echo, Stamper

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

    def resting(self, listener: Listener, error: OSError) -> None:
        """No connection can be accepted for now; it is watched again after `listener.wake()`."""


class Buffers:
    """The receive and the send buffer of a loop.

    Args:
        receive: bytes that one `recv` takes at most.
        send: bytes of one piece of replies; never less than the largest single reply.
    """

    def __init__(self, receive: int, send: int) -> None:
        self.receive = memoryview(bytearray(receive))
        self.send = send


def read_clock(stamper: Stamper) -> int:
    """The time of what was just received; keeps the stamper's monotonic clock up to date."""
    now = time.time_ns()
    if stamper.shows_mono:
        stamper.mono_offset = time.monotonic_ns() - now
    return now


class Listener:
    """A listening socket on a selector; its streams share what it holds.

    Args:
        sock: listening and non-blocking; the listener closes it.
        selector: where it and its streams are registered.
        echo: the pattern of each stream's echo.
        buffers: the loop's.
        owner: who is told what is rare.
        verbose: whether the owner is told of each connection.

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
        buffers: Buffers,
        owner: Owner,
        verbose: bool = False,
    ) -> None:
        self.sock = sock
        self.selector = selector
        self.echo = echo
        self.buffers = buffers
        self.owner = owner
        self.verbose = verbose
        self.accepted = self.open = 0
        self.messages = self.bytes_in = self.bytes_out = 0
        self.closed: dict[str, int] = {}
        self._resting = True
        self.wake()

    def fileno(self) -> int:
        """The listening descriptor; -1 once closed."""
        return self.sock.fileno()

    @property
    def streams(self) -> list[Stream]:
        """The connections that there are."""
        keys = self.selector.get_map() or {}
        return [
            key.data
            for key in keys.values()
            if isinstance(key.data, Stream) and key.data.listener is self
        ]

    def on_event(self, mask: int) -> None:
        """Accept what waits, within a budget."""
        for _ in range(ACCEPT_BUDGET):
            try:
                sock, address = self.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in addresses.PASSING:
                    continue
                self._cannot_accept(error)
                return
            self._adopt(sock, address)

    def _adopt(self, sock: socket.socket, address: Address) -> None:
        try:
            sock.setblocking(False)
            stream = Stream(self, sock, address)
        except OSError as error:
            sock.close()
            self._cannot_accept(error)
            return
        except MemoryError:
            sock.close()
            self._cannot_accept(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
            return
        self.accepted += 1
        self.open += 1
        if self.verbose:
            self.owner.connected(stream)

    def _cannot_accept(self, error: OSError) -> None:
        self.rest()
        self.owner.resting(self, error)

    def rest(self) -> None:
        """Accept nothing until `wake`: the next wait in the backlog."""
        if not self._resting:
            self._resting = True
            self.selector.unregister(self)

    def wake(self) -> None:
        """Accept again; nothing once closed."""
        if self._resting and self.fileno() >= 0:
            self.selector.register(self, EVENT_READ, self)
            self._resting = False

    def close(self) -> None:
        """Stop listening; the streams go on."""
        self.rest()
        self.sock.close()


class Stream:
    """One connection: reads, answers, keeps what could not be sent. Made by its listener.

    Attributes:
        listener: whose it is.
        address: of the peer, as `socket` gives it.
        closed: whether its descriptor is.
    """

    def __init__(self, listener: Listener, sock: socket.socket, address: Address) -> None:
        self.listener = listener
        self.address = address
        self._sock = sock
        peer = addresses.peer(address) if listener.echo.stamper.shows_peer else b""
        self._echo = listener.echo.fresh(peer)
        self._state = READING
        self._reason = ""
        self._ended = False
        self._unsent = memoryview(b"")
        self._uncut = b""
        self._time = 0
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
        return self._echo.messages

    @property
    def pending(self) -> int:
        """Bytes held of the unfinished message."""
        return self._echo.pending

    @property
    def unsent(self) -> int:
        """Bytes of replies that the kernel did not take yet."""
        return len(self._unsent)

    def on_event(self, mask: int) -> None:
        """The descriptor is ready: go on with what it was waited for."""
        try:
            if self._state == READING:
                self._receive()
            elif self._state == WRITING:
                self._resume()
            elif self._state == LINGERING:
                self._discard()
        except MemoryError:
            self._close("enomem")

    def drain(self) -> bool:
        """Answer what one `recv` brings; close if that is nothing.

        Returns:
            whether there is nothing to wait for: the stream is closed, or can be drained again.
        """
        if self._state == READING and not self._receive() and self._state == READING:
            self._close("stopped")
        return self._state in (READING, CLOSED)

    def close(self) -> None:
        """End the connection, whatever is left to send."""
        self._close("stopped")

    def _receive(self) -> bool:
        """One `recv` and its replies; whether anything came."""
        listener = self.listener
        try:
            count = self._sock.recv_into(listener.buffers.receive)
        except OSError as error:
            self._not_done(error)
            return False
        now = read_clock(listener.echo.stamper)
        if count:
            listener.bytes_in += count
            self._answer(bytes(listener.buffers.receive[:count]), now)
        else:
            self._end(now)
        return True

    def _answer(self, data: bytes, now_ns: int) -> None:
        """Cut, stamp and send piece by piece; keep what is left when the kernel takes no more."""
        echo, listener = self._echo, self.listener
        while data:
            before = echo.messages
            consumed, reply = echo.stamp(data, now_ns, listener.buffers.send)
            data = data[consumed:]
            listener.messages += echo.messages - before
            if not self._send(memoryview(reply)):
                if self._state == WRITING:
                    self._uncut, self._time = data, now_ns
                self._note_fault()
                return
        self._note_fault()
        self._settle()

    def _end(self, now_ns: int) -> None:
        """The peer has sent all: the tail's reply, then the end."""
        self._ended = True
        before = self._echo.messages
        reply = self._echo.finish(now_ns)
        self.listener.messages += self._echo.messages - before
        sent = self._send(memoryview(reply))
        self._note_fault()
        if sent:
            self._settle()

    def _note_fault(self) -> None:
        error = self._echo.error
        if error is not None and not self._reason:
            self._count(error.reason)
            self.listener.owner.faulted(self, error)

    def _send(self, reply: memoryview) -> bool:
        """Send; keep what the kernel did not take, and wait for it. Whether it took all."""
        sent = 0
        if reply:
            try:
                sent = self._sock.send(reply)
            except OSError as error:
                self._not_done(error)
                if self._state == CLOSED:
                    return False
            self.listener.bytes_out += sent
        self._unsent = reply[sent:]
        if not self._unsent:
            return True
        self._watch(WRITING, EVENT_WRITE)
        return False

    def _resume(self) -> None:
        """The kernel takes more."""
        if self._send(self._unsent):
            data, self._uncut = self._uncut, b""
            self._answer(data, self._time)

    def _settle(self) -> None:
        """Everything that came is answered and sent."""
        if self._ended:
            self._close("eof")
        elif self._echo.error is not None:
            self._linger()
        else:
            self._watch(READING, EVENT_READ)

    def _linger(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._close(addresses.reason(error.errno or 0))
            return
        self._watch(LINGERING, EVENT_READ)

    def _discard(self) -> None:
        try:
            if not self._sock.recv_into(self.listener.buffers.receive):
                self._close("eof")
        except OSError as error:
            self._not_done(error)

    def _watch(self, state: int, events: int) -> None:
        if (state == WRITING) != (self._state == WRITING):
            self.listener.selector.modify(self, events, self)
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
        self.listener.selector.unregister(self)
        self._sock.close()
        self._unsent, self._uncut = memoryview(b""), b""
        self.listener.open -= 1
        if self.listener.verbose:
            self.listener.owner.closed(self, self._reason)
