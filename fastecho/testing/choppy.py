"""A real socket that delivers by plan: what a network may do any day, when the test wants it.

A plan is the steps of successive calls. Contract:

- A number lets one call pass so many bytes at most. A call that fails, or only peeks, leaves it.
- An exception is raised instead of the call, which has then done nothing. After a reset (any
  ConnectionError) all later calls raise it too, both ways; whoever waits for the socket finds it
  readable; and closing it resets the peer.
- No byte is lost, made up or reordered. All else is the socket's own.

So whatever calls a socket's methods can be tested with it: blocking code, `makefile`, `selectors`,
asyncio's own loop. What uses the bare descriptor goes round the plan: `ssl.SSLContext.wrap_socket`
(asyncio's TLS and `ssl.MemoryBIO` do not), `os.read`, uvloop.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from operator import index
from typing import TYPE_CHECKING, Any, TypeAlias

from .._pure.framing import contiguous

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

    from _typeshed import ReadableBuffer, WriteableBuffer

    from .choppy_trio import ChoppyStream

#: Bytes that a call may pass at most, or what is raised instead of it.
Step: TypeAlias = "int | OSError | type[OSError]"

#: RST instead of FIN (socket(7)).
_ABORT = struct.pack("ii", 1, 0)
#: The errors of classes that have but one, or one that is meant.
_NUMBERS = {
    BlockingIOError: errno.EAGAIN,
    InterruptedError: errno.EINTR,
    ConnectionResetError: errno.ECONNRESET,
    ConnectionAbortedError: errno.ECONNABORTED,
    ConnectionRefusedError: errno.ECONNREFUSED,
    BrokenPipeError: errno.EPIPE,
}


class _Plan:
    """What is left of a plan. A step is taken from it when its turn comes, and not before."""

    def __init__(self, steps: Iterable[Step], then: int | None) -> None:
        self._steps = iter(steps)
        self._then = None if then is None else _size(then)
        self._step: int | OSError | None = None
        self._used = True

    def look(self) -> int | OSError | None:
        """The step of the next call; None: all may pass."""
        if self._used:
            step = next(self._steps, self._then)
            self._step = _size(step) if isinstance(step, int) else _error(step)
            self._used = False
        return self._step

    def use(self) -> None:
        self._used = True


class ChoppySocket(socket.socket):
    """A connected stream socket, taken over (as `wrap_socket` of `ssl` does), that follows plans.

    With no plan, it passes one byte at a time, both ways.

    Args:
        sock: a plain `socket.socket`; it is detached, its timeout goes on to hold.
        receives: steps of the calls that receive: numbers of bytes, and exceptions (a class such as
            TimeoutError, or an OSError with any errno).
        sends: steps of the calls that send.
        then: bytes that a call may pass once its plan is over; None: any.

    Raises:
        TypeError: a socket that is more than a socket, such as `ssl.SSLSocket`; by a call,
            a step that is none.
        ValueError: a socket of datagrams; by a call, a step of no bytes, which would look like the
            end.
    """

    def __init__(
        self,
        sock: socket.socket,
        receives: Iterable[Step] = (),
        sends: Iterable[Step] = (),
        then: int | None = 1,
    ) -> None:
        if type(sock) is not socket.socket:
            raise TypeError(f"a plain socket.socket is needed, not {type(sock).__name__}")
        if sock.type != socket.SOCK_STREAM:
            raise ValueError("a stream socket is needed: a datagram cannot come in pieces")
        self._receives = _Plan(receives, then)
        self._sends = _Plan(sends, then)
        self._broken: OSError | None = None
        timeout = sock.gettimeout()
        super().__init__(sock.family, sock.type, sock.proto, sock.detach())
        self.settimeout(timeout)

    async def open_streams(self, limit: int = 65_536) -> tuple[StreamReader, StreamWriter]:
        """Streams of asyncio over it, as from `asyncio.open_connection`. The loop owns it then.

        `create_connection(sock=...)` of a loop takes it just so. A step that raises TimeoutError is
        the kernel's ETIMEDOUT there, and ends the connection.

        Args:
            limit: as for `asyncio.open_connection`.

        Raises:
            TypeError: a loop that would go round the plan, such as uvloop's.
        """
        import asyncio
        from asyncio.selector_events import BaseSelectorEventLoop

        loop = asyncio.get_running_loop()
        if not isinstance(loop, BaseSelectorEventLoop):
            raise TypeError(f"{type(loop)} would go round the plan: asyncio's own loop is needed")
        self.setblocking(False)
        return await asyncio.open_connection(sock=self, limit=limit)

    def trio_stream(self) -> ChoppyStream:
        """A `trio.abc.HalfCloseableStream` over it, as `trio.SocketStream`."""
        from .choppy_trio import ChoppyStream

        return ChoppyStream(self)

    def dup(self) -> socket.socket:  # type: ignore[override]
        """A plain socket: plans are not shared."""
        return socket.fromfd(self.fileno(), self.family, self.type, self.proto)

    # -- receiving

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        with self._turn(self._receives, bufsize, flags) as most:
            return super().recv(most, flags)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        wanted = nbytes or memoryview(buffer).nbytes
        with self._turn(self._receives, wanted, flags) as most:
            return super().recv_into(buffer, most, flags)

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        with self._turn(self._receives, bufsize, flags) as most:
            return super().recvfrom(most, flags)

    def recvfrom_into(
        self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0
    ) -> tuple[int, Any]:
        wanted = nbytes or memoryview(buffer).nbytes
        with self._turn(self._receives, wanted, flags) as most:
            return super().recvfrom_into(buffer, most, flags)

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        with self._turn(self._receives, bufsize, flags) as most:
            return super().recvmsg(most, ancbufsize, flags)

    def recvmsg_into(
        self, buffers: Iterable[WriteableBuffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
        views = [contiguous(memoryview(each)) for each in buffers]
        with self._turn(self._receives, sum(map(len, views)), flags) as most:
            return super().recvmsg_into(_first(views, most), ancbufsize, flags)

    # -- sending

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        with contiguous(memoryview(data)) as view, self._turn(self._sends, len(view)) as most:
            return super().send(view[:most], flags)

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        """As in C: by `send`, and again after EINTR, or EAGAIN where the socket may block."""
        again = (
            [InterruptedError] if self.gettimeout() == 0 else [InterruptedError, BlockingIOError]
        )
        sent = 0
        with contiguous(memoryview(data)) as view:
            while sent < len(view):
                with suppress(*again):
                    sent += self.send(view[sent:], flags)

    def sendmsg(
        self,
        buffers: Iterable[ReadableBuffer],
        ancdata: Iterable[tuple[int, int, ReadableBuffer]] = (),
        flags: int = 0,
        address: Any = None,
        /,
    ) -> int:
        views = [contiguous(memoryview(each)) for each in buffers]
        with self._turn(self._sends, sum(map(len, views))) as most:
            return super().sendmsg(_first(views, most), ancdata, flags, address)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """As where there is no `os.sendfile`, which would go round the plan."""
        return self._sendfile_use_send(file, offset, count)  # type: ignore[attr-defined,no-any-return]

    # -- the plan

    @contextmanager
    def _turn(self, plan: _Plan, wanted: int, flags: int = 0) -> Iterator[int]:
        """One call: how many bytes it may pass of those that are wanted."""
        if self.fileno() < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        # Copies are raised: an exception holds the frames that it went through, and these the
        # caller's buffer, which may have to be resized.
        if self._broken is not None:
            raise copy(self._broken)
        step = plan.look()
        if isinstance(step, OSError):
            plan.use()
            if isinstance(step, ConnectionError):
                self._break(step)
            raise copy(step)
        wanted = index(wanted)
        yield wanted if step is None else min(wanted, step)
        if wanted and not flags & socket.MSG_PEEK:
            plan.use()

    def _break(self, error: ConnectionError) -> None:
        self._broken = error
        with suppress(OSError):  # such as one that is not connected any more
            self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            self.shutdown(socket.SHUT_RD)  # sends nothing, and wakes who waits


def _size(step: int) -> int:
    if step < 1:
        raise ValueError(f"a step lets at least 1 byte pass, not {step}")
    return step


def _error(step: object) -> OSError | None:
    if step is None or isinstance(step, OSError):
        return step
    if not (isinstance(step, type) and issubclass(step, OSError)):
        raise TypeError(f"a step is a number of bytes or an OSError, not {step!r}")
    if step is TimeoutError:
        return TimeoutError("timed out")  # as after `settimeout`
    number = _NUMBERS.get(step)
    return step() if number is None else OSError(number, os.strerror(number))


def _first(views: Iterable[memoryview], size: int) -> list[memoryview]:
    """So many bytes of these, as parts of the same memory."""
    first = []
    for view in views:
        first.append(view[:size])
        size -= len(first[-1])
    return first
