"""Messages over a connection: read, or read and sent, by blocking code or by asyncio.

These know a codec and whatever reads and writes bytes; `framing` makes them from a spec. Contract:

- Everything complete before a fault is given; then the FrameError is raised, once; then it is over.
- What is raised or cancelled while bytes are waited for loses none: go on where it stopped.
- What is held is bounded: of what came, the messages of one receive and one unfinished frame; of
  what is to be sent, one frame.
- A message is sent whole, or to its end by `flush`, and never mixed with another.
- Nothing is read before it is asked for, and nothing is closed here.

asyncio is not imported: all that is used of a stream is its `read`, or `write` and `drain`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ._pure.framing import Buffer, Codec

#: What one receive takes at most: as much as a codec's default message.
RECEIVE = 65_536


class Receiver(Protocol):
    """A socket, or what reads like one."""

    def recv(self, size: int, /) -> bytes:
        """At most so many bytes; none once the stream has ended."""


class Socket(Receiver, Protocol):
    """What writes like one, too."""

    def send(self, data: memoryview, /) -> int:
        """How many of these bytes were taken."""


class AsyncReader(Protocol):
    """An `asyncio.StreamReader`, or what reads like one."""

    async def read(self, size: int, /) -> bytes:
        """At most so many bytes; none once the stream has ended."""


class AsyncReceiver(Protocol):
    """A stream of trio's, or what reads like one."""

    async def receive_some(self, size: int, /) -> bytes | bytearray:
        """At most so many bytes; none once the stream has ended."""


class AsyncWriter(Protocol):
    """An `asyncio.StreamWriter`, or what writes like one."""

    def write(self, data: bytes, /) -> None:
        """Take all of it at once, to be sent in the background."""

    async def drain(self) -> None:
        """Wait until little enough of it is left."""


class _Arrivals:
    """What has come of a stream and was not asked for yet, and how it ends.

    Attributes:
        codec: the stream's, for its counts.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._ready: deque[bytes] = deque()
        self._ended = self._raised = False

    def _arrive(self, data: bytes | bytearray) -> None:
        """Take what one receive brought; nothing is the end."""
        self._ready.extend(self.codec.feed(data) if data else self.codec.finish())
        self._ended = not data or self.codec.error is not None

    def _raise_fault(self) -> None:
        """Raise the fault that ended the stream, if there was one, the first time."""
        if self.codec.error is not None and not self._raised:
            self._raised = True
            raise self.codec.error


class Messages(_Arrivals, Iterator[bytes]):
    """The messages of a stream that blocking code reads, as `framing.messages` gives them."""

    def __init__(self, sock: Receiver, codec: Codec) -> None:
        super().__init__(codec)
        self._recv = sock.recv

    def __next__(self) -> bytes:
        while not self._ready:
            if self._ended:
                self._raise_fault()
                raise StopIteration
            self._arrive(self._recv(RECEIVE))
        return self._ready.popleft()


class Connection(Messages):
    """A stream's messages, and `send` for those that go the other way."""

    def __init__(self, sock: Socket, codec: Codec) -> None:
        super().__init__(sock, codec)
        self._send = sock.send
        self._unsent = memoryview(b"")

    @property
    def unsent(self) -> int:
        """Bytes of the last message that the socket has not taken yet."""
        return len(self._unsent)

    def send(self, message: Buffer) -> None:
        """Send one message.

        If the socket raises a TimeoutError or a BlockingIOError, the rest of it is kept, and
        `flush` goes on with that; to send the message again would be to send it twice.

        Raises:
            ValueError: the framing cannot carry the message, or the one before is not sent whole:
                nothing of this one was sent.
        """
        if self._unsent:
            raise ValueError(f"{self.unsent} bytes of the message before are unsent: flush() first")
        self._unsent = memoryview(self.codec.encode(message))
        self.flush()

    def flush(self) -> None:
        """Send what is left of the last message, if anything is."""
        while self._unsent:
            self._unsent = self._unsent[self._send(self._unsent) :]


class AsyncMessages(_Arrivals, AsyncIterator[bytes]):
    """The messages of a stream that asyncio reads, as `framing.async_messages` gives them."""

    def __init__(self, reader: AsyncReader | AsyncReceiver, codec: Codec) -> None:
        super().__init__(codec)
        self._read = reader.receive_some if hasattr(reader, "receive_some") else reader.read

    async def __anext__(self) -> bytes:
        while not self._ready:
            if self._ended:
                self._raise_fault()
                raise StopAsyncIteration
            self._arrive(await self._read(RECEIVE))
        return self._ready.popleft()


class AsyncConnection(AsyncMessages):
    """A stream's messages, and `send` for those that go the other way."""

    def __init__(self, reader: AsyncReader, writer: AsyncWriter, codec: Codec) -> None:
        super().__init__(reader, codec)
        self._writer = writer

    async def send(self, message: Buffer) -> None:
        """Send one message, once there is room for it.

        A send that is cancelled has sent nothing. One that returns has handed all of it to the
        stream, which sends it in the background; `close` and `wait_closed` of the writer wait for
        that.

        Raises:
            ValueError: the framing cannot carry the message.
        """
        frame = self.codec.encode(message)
        # First: a send that is given up while it waits adds nothing to what waits already.
        await self._writer.drain()
        self._writer.write(frame)
