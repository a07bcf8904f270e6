"""UDP and UNIX datagrams: one socket's, each a message, each with a fate of its own.

A batch is received, stamped and sent in one event. Contract:

- Nothing is queued and nothing truncated: a reply that the kernel refuses is dropped and counted by
  reason, and the rest still go. A datagram that was cut on receipt, or that has no return address,
  is counted, not answered.
- Templates finer than a second bear the kernel's receive stamp of each datagram (SO_TIMESTAMPNS,
  socket(7)): a batch read late would be stamped late.
- A reply leaves from the address that was contacted (IP_PKTINFO, ip(7); RFC 3542, section 6).
- Sources can be forged, so `refusal` says which are counted and not answered.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Protocol, TypeAlias

from .. import addresses
from ..addresses import Address
from ..limits import (
    ANSWERING_PORTS,
    DATAGRAM_BATCH,
    IPV4_OVERHEAD,
    IPV6_OVERHEAD,
    MAX_DATAGRAM,
    PRIVILEGED_PORTS,
)
from .selector import EVENT_READ, Selector
from .stamping import Stamper
from .stream import forget, read_clock

#: (level, type, data), as `socket.recvmsg` and `sendmsg` have it.
Control: TypeAlias = "tuple[int, int, bytes]"
#: From <asm-generic/socket.h> and <linux/in.h>: Python 3.11 does not name them.
SO_TIMESTAMPNS = 35
IP_PKTINFO = 8
#: `struct timespec`: seconds, nanoseconds.
TIMESPEC = struct.Struct("@ll")
#: `struct in_pktinfo`: interface, the local address, the address that was contacted.
IN_PKTINFO = struct.Struct("@i4s4s")
#: `struct in6_pktinfo`: the address that was contacted, interface.
IN6_PKTINFO = struct.Struct("@16si")
ANCILLARY = sum(map(socket.CMSG_SPACE, (TIMESPEC.size, IN_PKTINFO.size, IN6_PKTINFO.size)))


class Owner(Protocol):
    """Who is told, if anyone wants to know."""

    def answered(self, datagrams: Datagrams, address: Address) -> None:
        """A datagram was answered; only if `verbose`."""


def refusal(source: Address, to_group: str, own_port: int, size: int, prefix: int) -> str:
    """Why a datagram from this source is not answered; empty: it is.

    Loopback cannot be forged. From anywhere else, one forged packet must neither start an endless
    exchange with another answering service, nor make many hosts, or many bytes, answer at once.

    Args:
        source: as `socket` gives it.
        to_group: `broadcast` or `multicast`, if it was sent to one; else empty.
        own_port: the socket's.
        size: bytes of the datagram.
        prefix: bytes that the reply has more.
    """
    if addresses.is_loopback(source):
        return ""
    address = _plain(ip_address(source[0].partition("%")[0]))
    port = source[1]
    if port < PRIVILEGED_PORTS:
        return "privileged_port"
    if port == own_port:
        return "own_port"
    if port in ANSWERING_PORTS:
        return "answering_port"
    if to_group:
        return to_group
    overhead = IPV4_OVERHEAD if address.version == 4 else IPV6_OVERHEAD
    return "amplified" if prefix > size + overhead else ""


class Datagrams:
    """One bound, non-blocking datagram socket on a selector.

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
        self._is_ip = sock.family in (socket.AF_INET, socket.AF_INET6)
        self._port = sock.getsockname()[1] if self._is_ip else 0
        self._buffer = memoryview(bytearray(MAX_DATAGRAM))
        if stamper.fine:
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        if self._is_ip and not addresses.is_loopback(sock.getsockname()):
            ask_contacted(sock)
        selector.register(self, EVENT_READ, self)

    def fileno(self) -> int:
        """The socket's descriptor; -1 once closed."""
        return self.sock.fileno()

    def on_event(self, mask: int) -> None:
        """Answer what waits, up to a batch."""
        for _ in range(DATAGRAM_BATCH):
            try:
                received = self.sock.recvmsg_into([self._buffer], ANCILLARY)
                self._take(*received)
            except BlockingIOError:
                return
            except OSError as error:
                self._drop(addresses.reason(error.errno or 0))
                return
            except MemoryError:
                self._drop("enomem")

    def close(self) -> None:
        """Answer no more."""
        if self.fileno() >= 0:
            forget(self.selector, self)
            self.sock.close()

    def _take(self, count: int, control: list[Control], flags: int, source: Address) -> None:
        """One datagram has come."""
        now = received_at(control, read_clock(self.stamper))
        if flags & socket.MSG_TRUNC:
            self._drop("truncated")
            return
        self.messages += 1
        self.bytes_in += count
        if source:
            self._answer(self._buffer[:count], now, source, control)
        else:
            self._drop("nameless")

    def _answer(
        self, message: memoryview, now_ns: int, source: Address, control: list[Control]
    ) -> None:
        peer = addresses.peer(source) if self.stamper.shows_peer else b""
        prefix = self.stamper.render(now_ns, self.messages, len(message), peer)
        back, to_group = contacted(control)
        if self._is_ip:
            reason = refusal(source, to_group, self._port, len(message), len(prefix))
            if reason:
                self._drop(reason)
                return
        try:
            self.bytes_out += self.sock.sendmsg([prefix, message], back, 0, source)
        except OSError as error:
            self._drop(addresses.reason(error.errno or 0))
            return
        if self.verbose:
            self.owner.answered(self, source)

    def _drop(self, reason: str) -> None:
        self.unanswered[reason] = self.unanswered.get(reason, 0) + 1


def received_at(control: Iterable[Control], now_ns: int) -> int:
    """When the datagram came: by the kernel's stamp, if there is one."""
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
            seconds, nanoseconds = TIMESPEC.unpack_from(data)
            return int(seconds * 1_000_000_000 + nanoseconds)
    return now_ns


def ask_contacted(sock: socket.socket) -> None:
    """Have the kernel tell which of the machine's addresses each datagram was sent to."""
    sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)


def contacted(control: Iterable[Control]) -> tuple[list[Control], str]:
    """(what makes a reply leave from the contacted address, `broadcast`, `multicast` or nothing).

    To a broadcast, the address contacted is not the local one. A link-local address needs its
    interface; for any other the route decides.
    """
    found: tuple[list[Control], str] = [], ""
    for level, kind, data in control:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            _, local, target = IN_PKTINFO.unpack_from(data)
            back = IN_PKTINFO.pack(0, local, bytes(4))
            group = "broadcast" if target != local else ""
            group = "multicast" if IPv4Address(target).is_multicast else group
            return [(level, IP_PKTINFO, back)], group
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            target, interface = IN6_PKTINFO.unpack_from(data)
            address = IPv6Address(target)
            if address.is_multicast:
                found = [], "multicast"
            else:
                back = IN6_PKTINFO.pack(target, interface if address.is_link_local else 0)
                found = [(level, kind, back)], ""
    return found


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """An IPv4 address, where one is written as an IPv6 one (RFC 4291, section 2.5.5.2)."""
    return getattr(address, "ipv4_mapped", None) or address
