"""trio's stream over a `ChoppySocket`: `trio.SocketStream` takes trio's own sockets alone."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import index
from socket import SHUT_WR
from typing import TYPE_CHECKING, TypeVar

import trio

from .._pure.framing import contiguous

if TYPE_CHECKING:
    from .._pure.framing import Buffer
    from .choppy import ChoppySocket

Done = TypeVar("Done")

#: What one `receive_some` takes at most if it is not said, as in trio.
RECEIVE_SIZE = 65_536


class ChoppyStream(trio.abc.HalfCloseableStream):
    """A stream in trio's sense, whose reads and writes follow the socket's plan.

    EAGAIN makes it wait for the socket, EINTR try again; all other errors are trio's
    BrokenResourceError, a TimeoutError too, since there it is the kernel's ETIMEDOUT.

    Attributes:
        socket: the socket.
    """

    def __init__(self, sock: ChoppySocket) -> None:
        self.socket = sock
        sock.setblocking(False)
        self._sending = self._ended = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        size = RECEIVE_SIZE if max_bytes is None else index(max_bytes)
        if size < 1:
            raise ValueError(f"max_bytes must be at least 1, not {size}")
        with _translated():
            receive = partial(self.socket.recv, size)
            return await self._call(trio.lowlevel.wait_readable, receive)

    async def send_all(self, data: Buffer) -> None:
        left = contiguous(data)
        with self._alone(), _translated():
            if self._ended:
                raise trio.ClosedResourceError("send_all() after send_eof()")
            await trio.lowlevel.checkpoint()
            while left:
                send = partial(self.socket.send, left)
                left = left[await self._call(trio.lowlevel.wait_writable, send) :]

    async def wait_send_all_might_not_block(self) -> None:
        with self._alone(), _translated():
            await trio.lowlevel.wait_writable(self.socket)

    async def send_eof(self) -> None:
        with self._alone(), _translated():
            await trio.lowlevel.checkpoint()
            if not self._ended:
                self.socket.shutdown(SHUT_WR)
            self._ended = True

    async def aclose(self) -> None:
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()
        await trio.lowlevel.checkpoint()

    async def _call(self, wait: Callable[..., Awaitable[None]], call: Callable[[], Done]) -> Done:
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return call()
            except BlockingIOError:
                await wait(self.socket)
            except InterruptedError:
                pass

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self.socket.fileno() < 0:
            raise trio.ClosedResourceError("this stream was closed")
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            yield
        finally:
            self._sending = False


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EBADF:
            raise trio.ClosedResourceError("this stream was closed") from None
        raise trio.BrokenResourceError(str(error)) from error
