"""uvloop with aiofastnet's transports and compiled framing, which is fastecho's own.

PYTHON aiofastnet_protocol.py HOST PORT
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator

import aiofastnet
import asyncio_protocol
import uvloop
from lines import BACKLOG, LITTLE, PIECE

from fastecho import backend, echo
from fastecho.prefix import DEFAULT

#: As the server has it: each connection's is made from this one.
PATTERN = echo.pattern(backend.load("native"), "line", DEFAULT, None)
#: A transport copies what it cannot send at once, so that one buffer does for all connections.
OUT = bytearray(PIECE)


class NativeLines:
    """What `lines.Lines` does."""

    def __init__(self) -> None:
        self.echo = PATTERN.fresh()

    @property
    def too_long(self) -> bool:
        return self.echo.error is not None

    def replies(self, data: bytes) -> Iterator[memoryview]:
        now, left = time.time_ns(), memoryview(data)
        while left:
            consumed, written = self.echo.feed_into(left, OUT, now)
            left = left[consumed:]
            yield memoryview(OUT)[:written]

    def finish(self) -> bytes:
        return self.echo.finish(time.time_ns())


class Echo(asyncio_protocol.Echo):
    """The same protocol."""

    lines = NativeLines

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.echo = self.cut.echo

    def data_received(self, data: bytes) -> None:
        if self.lingers:
            return
        if len(data) <= LITTLE:
            self.write(self.echo.feed(data, time.time_ns()))
            if self.echo.error is not None:
                self.linger()
        else:
            self.pieces = self.cut.replies(data)
            self.answer()


async def serve(host: str, port: str) -> None:
    """Until the process is told to end."""
    loop, address = asyncio.get_running_loop(), (host, int(port))
    await aiofastnet.create_datagram_endpoint(loop, asyncio_protocol.Datagrams, address)
    server = await aiofastnet.create_server(loop, Echo, *address, backlog=BACKLOG)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(*sys.argv[1:3]))
