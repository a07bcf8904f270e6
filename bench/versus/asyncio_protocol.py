"""Python's own event loop, with a protocol: PYTHON asyncio_protocol.py HOST PORT."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

from lines import BACKLOG, LINGER, PIECE, Lines, prefix


class Echo(asyncio.Protocol):
    """One connection. While what was written waits to be sent, no more is read or made."""

    transport: asyncio.Transport
    #: Cuts and stamps.
    lines = Lines

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.write = transport.write
        transport.set_write_buffer_limits(high=PIECE)
        self.cut = self.lines()
        self.pieces: Iterator[bytes] = iter(())
        self.paused = self.lingers = False

    def data_received(self, data: bytes) -> None:
        if reply := self.cut.few(data):
            self.write(reply)
        elif not self.lingers:
            self.pieces = iter(self.cut.replies(data))
            self.answer()

    def answer(self) -> None:
        """Write replies as long as they are taken."""
        for piece in self.pieces:
            self.write(piece)
            if self.paused:
                return
        if self.cut.too_long:
            self.linger()

    def linger(self) -> None:
        """Closing with unread input resets the connection, and that may overtake replies."""
        self.lingers = True
        self.transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER, self.transport.abort)

    def pause_writing(self) -> None:
        self.paused = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.paused = False
        self.answer()
        if not self.paused:
            self.transport.resume_reading()

    def eof_received(self) -> None:
        """Then the transport closes, once all that was written is sent."""
        if not self.lingers:
            self.write(self.cut.finish())


class Datagrams(asyncio.DatagramProtocol):
    """The UDP socket. While replies wait to be sent, no more are made."""

    transport: asyncio.DatagramTransport
    paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if not self.paused:
            self.transport.sendto(prefix() + data, address)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False


async def serve(host: str, port: str) -> None:
    """Until the process is told to end."""
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(Datagrams, (host, int(port)))
    server = await loop.create_server(Echo, host, int(port), backlog=BACKLOG)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:3]))
