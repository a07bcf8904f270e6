"""UDP: one socket's datagrams, each a message, each with a fate of its own.

A batch is received, stamped and sent in one event. Nothing is queued and nothing truncated: a
reply that the kernel refuses is dropped and counted by reason, and the rest still go. A datagram
that was cut on receipt is counted, not answered. Templates finer than a second bear the kernel's
receive stamp of each datagram (SO_TIMESTAMPNS, socket(7)): a batch read late would be stamped late.
"""

from __future__ import annotations

import socket
import struct
from typing import Protocol

from .. import addresses
from ..addresses import Address
from ..limits import DATAGRAM_BATCH, MAX_DATAGRAM
from .selector import EVENT_READ, Selector
from .stamping import Stamper
from .stream import read_clock

#: From <asm-generic/socket.h>: Python 3.11 does not name it. The control message has its number.
SO_TIMESTAMPNS = 35
#: The kernel's `struct timespec`: seconds, nanoseconds.
TIMESPEC = struct.Struct("@ll")


class Owner(Protocol):
    """Who is told, if anyone wants to know."""

    def answered(self, datagrams: Datagrams, address: Address) -> None:
        """A datagram was answered; only if `verbose`."""


class Datagrams:
    """One bound, non-blocking UDP socket on a selector.

    Args:
        sock: the socket; it is closed by `close`.
        selector: where it is registered.
        stamper: makes the prefixes.
        owner: who is told of each answer, if `verbose`.

    Attributes:
        messages: datagrams received whole.
        bytes_in, bytes_out: bytes of those, and of the replies sent.
        unanswered: how many got no reply, by reason.
    """

    def __init__(
        self,
        sock: socket.socket,
        selector: Selector,
        stamper: Stamper,
        owner: Owner,
        verbose: bool = False,
    ) -> None:
        self.sock = sock
        self.selector = selector
        self.stamper = stamper
        self.owner = owner
        self.verbose = verbose
        self.messages = self.bytes_in = self.bytes_out = 0
        self.unanswered: dict[str, int] = {}
        self._buffer = memoryview(bytearray(MAX_DATAGRAM))
        self._ancillary = 0
        if stamper.fine:
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            self._ancillary = socket.CMSG_SPACE(TIMESPEC.size)
        selector.register(self, EVENT_READ, self)

    def fileno(self) -> int:
        """The socket's descriptor; -1 once closed."""
        return self.sock.fileno()

    def on_event(self, mask: int) -> None:
        """Answer what waits, up to a batch."""
        for _ in range(DATAGRAM_BATCH):
            try:
                count, ancillary, flags, address = self.sock.recvmsg_into(
                    [self._buffer], self._ancillary
                )
            except BlockingIOError:
                return
            except OSError as error:
                self._drop(addresses.reason(error.errno or 0))
                return
            now = self._received(ancillary)
            if flags & socket.MSG_TRUNC:
                self._drop("truncated")
                continue
            self.messages += 1
            self.bytes_in += count
            self._answer(self._buffer[:count], now, address)

    def close(self) -> None:
        """Answer no more."""
        self.selector.unregister(self)
        self.sock.close()

    def _received(self, ancillary: list[tuple[int, int, bytes]]) -> int:
        """When the datagram came: by the kernel's stamp, if there is one."""
        now = read_clock(self.stamper)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
                seconds, nanoseconds = TIMESPEC.unpack_from(data)
                return int(seconds * 1_000_000_000 + nanoseconds)
        return now

    def _answer(self, message: memoryview, now_ns: int, address: Address) -> None:
        peer = addresses.peer(address) if self.stamper.shows_peer else b""
        prefix = self.stamper.render(now_ns, self.messages, len(message), peer)
        try:
            self.bytes_out += self.sock.sendmsg([prefix, message], [], 0, address)
        except OSError as error:
            self._drop(addresses.reason(error.errno or 0))
            return
        if self.verbose:
            self.owner.answered(self, address)

    def _drop(self, reason: str) -> None:
        self.unanswered[reason] = self.unanswered.get(reason, 0) + 1
