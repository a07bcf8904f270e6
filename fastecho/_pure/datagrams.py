"""UDP and UNIX datagrams: one socket's, each a message, each with a fate of its own.

A batch is received, stamped and sent in one event. Contract:

- Nothing is queued and nothing truncated: a reply that the kernel refuses is dropped and counted by
  reason, and the rest still go. A datagram that was cut on receipt, or that has no return address,
  is counted, not answered; and so is what the kernel says it had no room for (SO_RXQ_OVFL).
- Templates finer than a second bear the kernel's receive stamp of each datagram (SO_TIMESTAMPNS,
  socket(7)): a batch read late would be stamped late.
- A reply leaves from the address that was contacted (IP_PKTINFO, ip(7); RFC 3542, section 6).
- Sources can be forged, so `refusal` says which are counted and not answered.
- What the kernel has joined (UDP_GRO, udp(7)) is taken apart again: each datagram is a message.
- A run of replies of one size, the last perhaps shorter, to one peer and from one address leaves as
  one segmented send (UDP_SEGMENT, udp(7)). If that is refused, the same replies go one by one, each
  with a fate of its own; if it would be refused again, it is not tried again on this socket.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from time import time_ns
from typing import Protocol, TypeAlias

from .. import addresses
from ..addresses import Address
from ..limits import (
    ANSWERING_PORTS,
    DATAGRAM_BATCH,
    ETHERNET_MTU,
    IPV4_OVERHEAD,
    IPV6_OVERHEAD,
    MAX_DATAGRAM,
    MAX_SEGMENTED,
    MAX_SEGMENTS,
    PRIVILEGED_PORTS,
)
from .selector import EVENT_READ, Selector
from .stamping import PER_MESSAGE, Stamper
from .stream import forget, read_clock

#: (level, type, data), as `socket.recvmsg` and `sendmsg` have it.
Control: TypeAlias = "tuple[int, int, bytes]"
#: From <asm-generic/socket.h>, <linux/in.h> and <linux/udp.h>: Python 3.11 does not name them.
SO_TIMESTAMPNS = 35
SO_RXQ_OVFL = 40
IP_PKTINFO = 8
SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104
#: `struct timespec`: seconds, nanoseconds.
TIMESPEC = struct.Struct("@ll")
#: `struct in_pktinfo`: interface, the local address, the address that was contacted.
IN_PKTINFO = struct.Struct("@i4s4s")
#: `struct in6_pktinfo`: the address that was contacted, interface.
IN6_PKTINFO = struct.Struct("@16si")
#: Of joined datagrams: bytes of each, as it is told and as it is asked for.
JOINED, SEGMENT = struct.Struct("@i"), struct.Struct("@H")
#: How many datagrams were lost, modulo 2**32.
LOST = struct.Struct("@I")
ANCILLARY = sum(
    socket.CMSG_SPACE(each.size) for each in (TIMESPEC, IN_PKTINFO, IN6_PKTINFO, JOINED, LOST)
)
#: Errors of a segmented send that it would meet again: of the device, or of the path.
NO_SEGMENTS = frozenset({errno.EIO, errno.EINVAL, errno.EMSGSIZE})
#: In how many events that found one datagram we look for another: that it is not there is costly to
#: hear in Python.
LOOK_EVERY = 8
#: Hosts of which we remember what they are; to find that out is slow in Python.
HOSTS = 1024


class Owner(Protocol):
    """Who is told, if anyone wants to know."""

    def answered(self, datagrams: Datagrams, address: Address) -> None:
        """A datagram was answered; only if `verbose`."""


@lru_cache(maxsize=HOSTS)
def header_size(host: str) -> int:
    """Bytes of the headers of a packet from there; 0: loopback, which cannot be forged."""
    if addresses.is_loopback((host,)):
        return 0
    address = _plain(ip_address(host.partition("%")[0]))
    return IPV4_OVERHEAD if address.version == 4 else IPV6_OVERHEAD


def refusal(port: int, own_port: int, to_group: str) -> str:
    """Why nothing from this port of another machine is answered; empty: it is.

    From anywhere but loopback, one forged packet must neither start an endless exchange with
    another answering service, nor make many hosts answer at once.

    Args:
        port: whence it came.
        own_port: the socket's.
        to_group: `broadcast` or `multicast`, if it was sent to one; else empty.
    """
    if port < PRIVILEGED_PORTS:
        return "privileged_port"
    if port == own_port:
        return "own_port"
    if port in ANSWERING_PORTS:
        return "answering_port"
    return to_group


def amplifies(size: int, prefix: int, headers: int) -> bool:
    """Whether the reply would more than double what came: forged, that is an attack's tool.

    Args:
        size: bytes of the datagram.
        prefix: bytes that the reply has more.
        headers: `header_size` of its source.
    """
    return headers != 0 and prefix > size + headers


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
        resent: how many segmented sends were refused, by reason: their replies went one by one.
        segments: whether runs of replies are sent as segments.
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
        self.resent: dict[str, int] = {}
        self.segments = False
        self._is_ip = sock.family in (socket.AF_INET, socket.AF_INET6)
        self._port = sock.getsockname()[1] if self._is_ip else 0
        self._lost = 0
        # How many more events are taken to be for one datagram.
        self._alone = 0
        # The prefix of a second, if it is the same for all that came in it.
        self._is_constant = self._is_ip and not (
            stamper.fine or stamper.shows_peer or PER_MESSAGE.intersection(stamper.parts)
        )
        self._second = -1
        self._prefix = b""
        # The replies that are sent next: to whom, how, bytes of each and of all; whether more join.
        self._run: list[bytes] = []
        self._to: Address = ""
        self._back: Sequence[Control] = ()
        self._size = self._bytes = 0
        self._is_open = False
        if stamper.fine:
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        if self._is_ip:
            self.segments = can(sock, SOL_UDP, UDP_SEGMENT, 0)
            can(sock, SOL_UDP, UDP_GRO, 1)
            can(sock, socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        if self._is_ip and not addresses.is_loopback(sock.getsockname()):
            ask_contacted(sock)
        selector.register(self, EVENT_READ, self)

    def fileno(self) -> int:
        """The socket's descriptor; -1 once closed."""
        return self.sock.fileno()

    def on_event(self, mask: int) -> None:
        """Answer what waits, up to a batch."""
        taken = 0
        self._alone -= 1
        if self._alone > 0:
            self._receive()
        else:
            while taken < DATAGRAM_BATCH and self._receive():
                taken += 1
            self._alone = 0 if taken > 1 else LOOK_EVERY
        self._send()

    def close(self) -> None:
        """Answer no more."""
        if self.fileno() >= 0:
            forget(self.selector, self)
            self.sock.close()

    def _receive(self) -> bool:
        """Take what comes next; whether there was something."""
        try:
            data, control, flags, source = self.sock.recvmsg(MAX_DATAGRAM, ANCILLARY)
            if self._is_constant and not (control or flags or header_size(source[0])):
                self.messages += 1
                self.bytes_in += len(data)
                self._add(self._stamp(time_ns(), 0, source), data, source, (), 0)
            else:
                self._take(data, control, flags, source)
        except BlockingIOError:
            return False
        except OSError as error:
            self._drop(addresses.reason(error.errno or 0))
            return False
        except MemoryError:
            self._drop("enomem")
        return True

    def _take(self, data: bytes, control: list[Control], flags: int, source: Address) -> None:
        """A datagram has come, or several that the kernel has joined."""
        now_ns = read_clock(self.stamper)
        messages: Iterable[bytes] = (data,)
        back: Sequence[Control] = ()
        refused, to_group, headers = "", "", 0
        if control:
            now_ns = received_at(control, now_ns)
            messages = taken_apart(data, control)
            back, to_group = contacted(control)
            self._note_loss(control)
        if flags & socket.MSG_TRUNC:
            self._drop("truncated")
            return
        if not source:
            refused = "nameless"
        elif self._is_ip and (headers := header_size(source[0])):
            refused = refusal(source[1], self._port, to_group)
        for message in messages:
            self.messages += 1
            self.bytes_in += len(message)
            if refused:
                self._drop(refused)
                continue
            try:
                prefix = self._stamp(now_ns, len(message), source)
                if amplifies(len(message), len(prefix), headers):
                    self._drop("amplified")
                else:
                    self._add(prefix, message, source, back, headers)
            except MemoryError:
                self._drop("enomem")

    def _stamp(self, now_ns: int, size: int, source: Address) -> bytes:
        """The prefix of a message."""
        if not self._is_constant:
            peer = addresses.peer(source) if self.stamper.shows_peer else b""
            return self.stamper.render(now_ns, self.messages, size, peer)
        second = now_ns // 1_000_000_000
        if second != self._second:
            self._prefix = self.stamper.render(now_ns)
            self._second = second
        return self._prefix

    def _add(
        self, prefix: bytes, message: bytes, to: Address, back: Sequence[Control], headers: int
    ) -> None:
        """A reply joins the last ones, or is a send of its own."""
        reply = prefix + message
        run, size = self._run, len(reply)
        if run:
            if (
                self._is_open
                and 0 < size <= self._size
                and len(run) < MAX_SEGMENTS
                and self._bytes + size <= MAX_SEGMENTED
                and to == self._to
                and back == self._back
            ):
                run.append(reply)
                self._bytes += size
                self._is_open = size == self._size
                return
            self._send()
        run.append(reply)
        self._to, self._back = to, back
        self._size = self._bytes = size
        self._is_open = self.segments and not (headers and size + headers > ETHERNET_MTU)

    def _send(self) -> None:
        """Send what was added."""
        run = self._run
        try:
            if len(run) == 1:
                self._send_one(run[0])
            elif run:
                self._send_segments(run)
        finally:
            run.clear()

    def _send_segments(self, run: Sequence[bytes]) -> None:
        try:
            segment = (SOL_UDP, UDP_SEGMENT, SEGMENT.pack(self._size))
            sent = self.sock.sendmsg([b"".join(run)], [*self._back, segment], 0, self._to)
        except OSError as error:
            self._send_singly(run, error.errno or 0)
        except MemoryError:
            for _ in run:
                self._drop("enomem")
        else:
            self.bytes_out += sent
            if self.verbose:
                for _ in run:
                    self.owner.answered(self, self._to)

    def _send_singly(self, run: Iterable[bytes], refused: int) -> None:
        """A segmented send was refused: the same replies go one by one."""
        reason = addresses.reason(refused)
        self.resent[reason] = self.resent.get(reason, 0) + 1
        if refused in NO_SEGMENTS:
            self.segments = False
        for reply in run:
            self._send_one(reply)

    def _send_one(self, reply: bytes) -> bool:
        """Send a reply; whether the kernel took it."""
        try:
            if self._back:
                self.bytes_out += self.sock.sendmsg([reply], self._back, 0, self._to)
            else:
                self.bytes_out += self.sock.sendto(reply, self._to)
        except OSError as error:
            self._drop(addresses.reason(error.errno or 0))
            return False
        except MemoryError:
            self._drop("enomem")
            return False
        if self.verbose:
            self.owner.answered(self, self._to)
        return True

    def _note_loss(self, control: Iterable[Control]) -> None:
        """Count what the kernel has dropped since it last said so."""
        for level, kind, data in control:
            if (level, kind) == (socket.SOL_SOCKET, SO_RXQ_OVFL):
                (lost,) = LOST.unpack_from(data)
                more = (lost - self._lost) % (1 << 32)
                self._lost = lost
                if more:
                    self.unanswered["overflow"] = self.unanswered.get("overflow", 0) + more

    def _drop(self, reason: str) -> None:
        self.unanswered[reason] = self.unanswered.get(reason, 0) + 1


def can(sock: socket.socket, level: int, option: int, value: int) -> bool:
    """Set a socket option that not every kernel has; whether this one does."""
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True


def taken_apart(data: bytes, control: Iterable[Control]) -> Sequence[bytes]:
    """The datagrams that the kernel has joined, if it has."""
    for level, kind, told in control:
        if (level, kind) == (SOL_UDP, UDP_GRO):
            (size,) = JOINED.unpack_from(told)
            if 0 < size < len(data):
                return [data[at : at + size] for at in range(0, len(data), size)]
    return (data,)


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
