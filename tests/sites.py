"""A listener on a selector that is stepped by hand, on real sockets, and its clients."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from reference import Framing

PATIENCE = 10  # seconds until a peer that says nothing counts as hung

LINE = Framing("delimiter", 40, delimiter=b"\n")


def patiently() -> Iterator[None]:
    """Again and again, but not for ever."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        yield


class Owner:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def connected(self, stream: Any) -> None:
        self.told.append(("connected", stream))

    def faulted(self, stream: Any, error: Exception) -> None:
        self.told.append(("faulted", stream, error))

    def closed(self, stream: Any, reason: str) -> None:
        self.told.append(("closed", stream, reason))

    def resting(self, listener: Any, error: OSError | None) -> None:
        self.told.append(("resting", listener, error.errno if error else None))


class Site:
    """A listener on a selector, and its clients."""

    def __init__(
        self,
        twin: Any,
        framing: Framing = LINE,
        parts: tuple[bytes | str, ...] = (b"[]",),
        receive: int = 64,
        send: int = 256,
        verbose: bool = False,
        family: socket.AddressFamily = socket.AF_INET,
        listener: type | None = None,
    ) -> None:
        self.stack = ExitStack()
        sock = self.stack.enter_context(socket.socket(family))
        sock.setblocking(False)
        sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        tune(sock)
        sock.listen(200)
        self.family = family
        self.address = sock.getsockname()
        self.selector = self.stack.enter_context(twin.Selector())
        self.owner = Owner()
        self.listener = (listener or twin.Listener)(
            sock,
            self.selector,
            twin.Echo(framing.codec(twin), twin.Stamper(parts)),
            twin.Shared(receive, send),
            self.owner,
            verbose,
        )
        self.stack.callback(self.listener.close)
        self.stack.callback(lambda: [stream.close() for stream in self.listener.streams])

    def connect(self) -> socket.socket:
        """A client that does not block."""
        client = self.stack.enter_context(socket.socket(self.family))
        tune(client)
        client.settimeout(PATIENCE)
        client.connect(self.address)
        client.setblocking(False)
        return client

    def accepted(self) -> tuple[socket.socket, Any]:
        """A client and its stream."""
        client = self.connect()
        before = self.listener.streams
        self.until(lambda: len(self.listener.streams) > len(before))
        (stream,) = [each for each in self.listener.streams if each not in before]
        return client, stream

    def until(self, done: Callable[[], object]) -> None:
        """Take turns until something is so."""
        for _ in patiently():
            if done():
                return
            self.selector.dispatch(0.01)
        pytest.fail(f"it never came to that: {self.owner.told}")

    def read(self, client: socket.socket, size: int = 1 << 30) -> bytes:
        """So many bytes, or what comes before the end, while the listener is served."""
        data = b""
        for _ in patiently():
            try:
                piece = client.recv(min(size - len(data), 65536))
            except BlockingIOError:
                self.selector.dispatch(0.01)
                continue
            data += piece
            if not piece or len(data) == size:
                return data
        pytest.fail(f"no more than {data!r} came")

    def send(self, client: socket.socket, data: bytes) -> None:
        """Send it all, while the listener is served."""
        view = memoryview(data)
        for _ in patiently():
            try:
                view = view[client.send(view) :]
            except BlockingIOError:
                self.selector.dispatch(0.01)
            if not view:
                return
        pytest.fail("the listener takes no more")


def tune(sock: socket.socket) -> None:
    """So small buffers that a client that does not read is soon felt; accepted sockets inherit."""
    for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, buffer, 4096)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def has_inet6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


FAMILIES = [
    socket.AF_INET,
    pytest.param(
        socket.AF_INET6,
        marks=pytest.mark.skipif(not has_inet6(), reason="no IPv6 here"),
    ),
]
