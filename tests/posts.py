"""A datagram socket on a selector that is stepped by hand, and its clients."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Any

from sites import PATIENCE


class Owner:
    """Notes who was answered."""

    def __init__(self) -> None:
        self.told: list[tuple[object, object]] = []

    def answered(self, datagrams: Any, address: object) -> None:
        self.told.append((datagrams, address))


class Post:
    """A UDP socket on a selector, and its clients."""

    def __init__(
        self,
        twin: Any,
        parts: tuple[bytes | str, ...] = (b"[]",),
        verbose: bool = False,
        family: socket.AddressFamily = socket.AF_INET,
        datagrams: type | None = None,
    ) -> None:
        self.stack = ExitStack()
        self.family = family
        self.sock = self.stack.enter_context(self.bound())
        self.sock.setblocking(False)
        self.address = self.sock.getsockname()
        self.selector = self.stack.enter_context(twin.Selector())
        self.owner = Owner()
        self.datagrams = (datagrams or twin.Datagrams)(
            self.sock, self.selector, twin.Stamper(parts), self.owner, verbose
        )

    def bound(self) -> socket.socket:
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1" if self.family == socket.AF_INET else "::1", 0))
        return sock

    def client(self) -> socket.socket:
        """Connected: it gets nothing but what comes from the address that it sends to."""
        client = self.stack.enter_context(self.bound())
        client.settimeout(PATIENCE)
        client.connect(self.address)
        return client

    def until(self, count: int) -> None:
        """Take turns until so many datagrams have come."""
        while self.datagrams.messages < count:
            assert self.selector.dispatch(PATIENCE) == 1

    def ask(self, client: socket.socket, message: bytes) -> bytes:
        """A message's reply."""
        client.send(message)
        self.until(self.datagrams.messages + 1)
        return client.recv(65536)


def silent(client: socket.socket) -> bool:
    """Whether there is nothing more to receive."""
    client.setblocking(False)
    try:
        return not client.recv(65536)
    except BlockingIOError:
        return True
    finally:
        client.settimeout(PATIENCE)
