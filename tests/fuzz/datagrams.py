"""Fuzz target: datagrams of both twins answer the same, in whatever batches they come.

Replies, what the owner is told, and all counters must be equal. An input is settings, then sends to
a socket of each twin's own; between them it takes its turns. The time of a fine stamp, which is the
kernel's, is not compared.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastecho import backend

from .inputs import Input

TWINS = backend.load("pure"), backend.load("native")

TEMPLATES: tuple[tuple[bytes | str, ...], ...] = (
    (b"[]",),
    (),
    ("seq", b"/", "len", b"|"),
    ("peer", b" "),
    (b"-" * 300,),
    ("epoch_ns",),
    ("utc", "len"),
)
#: Bytes of a message: from none to the largest that fits into one datagram, and those that do not.
SIZES = (*range(70), 100, 500, 1000, 1472, 1473, 8_000, 65_507 - 300, 65_507, 65_508)
#: What waits in a socket before it takes its turn; more could be more than its buffer takes.
WAITING_BYTES, WAITING = 60_000, 60
RECEIVED = memoryview(bytearray(65_536))  # a new one for each would be ASan's to fence in
EVERYWHERE = ("0.0.0.0", "::")
#: From <linux/udp.h>: Python does not name it.
UDP_SEGMENT = 103


class Owner:
    """Notes who was answered."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def answered(self, datagrams: object, address: Any) -> None:
        self.told.append(address)


def bound(family: int, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(address)
    sock.setblocking(False)
    return sock


def sites() -> Iterator[tuple[int, Any, list[socket.socket]]]:
    """Where a server can be, and its clients: of one address, of all, without addresses."""
    inet = [bound(socket.AF_INET, (f"127.0.0.{last}", 0)) for last in (1, 2)]
    yield socket.AF_INET, ("127.0.0.1", 0), inet
    yield socket.AF_INET, (EVERYWHERE[0], 0), inet
    nameless = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    nameless.setblocking(False)
    yield socket.AF_UNIX, "", [bound(socket.AF_UNIX, ""), nameless]
    if socket.has_dualstack_ipv6():
        inet6 = [bound(socket.AF_INET6, (host, 0)) for host in ("::1", "::ffff:127.0.0.1")]
        yield socket.AF_INET6, (EVERYWHERE[1], 0), inet6


SITES = tuple(sites())


class Post:
    """One twin's socket, and clients that are not its alone."""

    def __init__(
        self, twin: backend.Twin, site: Any, parts: tuple[bytes | str, ...], verbose: bool
    ) -> None:
        family, address, self.clients = site
        self.sock = bound(family, address)
        self.selector = twin.Selector()
        self.owner = Owner()
        self.stamper = twin.Stamper(parts)
        self.datagrams = twin.Datagrams(self.sock, self.selector, self.stamper, self.owner, verbose)

    def send(self, client: socket.socket, message: bytes, segment: int) -> str:
        """How that went; with `segment`, as datagrams of that size (udp(7))."""
        address = self.sock.getsockname()
        if address[0] in EVERYWHERE:  # in a way that the client can go, IPv4 or IPv6
            address = client.getsockname()[0], address[1]
        control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", segment))]
        try:
            client.sendmsg([message], control if segment else [], 0, address)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "sent"

    def answers(self) -> list[Any]:
        """What each client gets, once the socket has taken its turns; and what is then counted."""
        while select.select([self.sock], [], [], 0)[0]:
            self.datagrams.on_event(1)
        counts = [
            getattr(self.datagrams, name)
            for name in ("messages", "bytes_in", "bytes_out", "unanswered")
        ]
        time = self.stamper.longest if self.stamper.fine else 0
        return [
            [[reply[time:] for reply in replies(client)] for client in self.clients],
            self.owner.told,
            counts,
        ]


def replies(client: socket.socket) -> Iterator[bytes]:
    """All that have come."""
    while True:
        try:
            size = client.recv_into(RECEIVED)
        except BlockingIOError:
            return
        yield bytes(RECEIVED[:size])


@contextmanager
def post(*settings: Any) -> Iterator[Post]:
    made = Post(*settings)
    try:
        yield made
    finally:
        made.datagrams.close()
        made.selector.close()


def check(data: bytes) -> None:
    """One input."""
    read = Input(data)
    settings = read.choice(SITES), read.choice(TEMPLATES), read.number() % 2 == 1
    with post(TWINS[0], *settings) as pure, post(TWINS[1], *settings) as native:
        while read:
            batch = list(sends(read, pure.clients))
            said = [run(each, batch) for each in (pure, native)]
            assert said[0] == said[1]


def sends(read: Input, clients: list[socket.socket]) -> Iterator[tuple[socket.socket, bytes, int]]:
    """What is sent before a turn; a size of one byte more, 0xff, is the turn."""
    size = count = 0
    while read and size < WAITING_BYTES and (what := read.number()) != 0xFF:
        message = read.take(1) * SIZES[what % len(SIZES)]
        segment = read.number()
        count += -(-len(message) // segment) if segment else 1
        if count > WAITING:
            return
        size += len(message)
        yield clients[what // len(SIZES) % 2], message, segment


def run(each: Post, batch: list[tuple[socket.socket, bytes, int]]) -> list[Any]:
    """All that one twin says to those."""
    return [*(each.send(*one) for one in batch), *each.answers()]
