"""Whether the program at the other end of a stream has read what was sent to it.

TCP tells a sender what the other kernel has taken (an acknowledgement; `SIOCOUTQ`, tcp(7)), not
what the other program has. Where both are on this machine, the kernel is asked about the other
socket (`NETLINK_SOCK_DIAG`, sock_diag(7)): how many bytes it has received (`tcpi_bytes_received`),
and how many of them wait in its queue (`idiag_rqueue`). For a UNIX stream `SIOCOUTQ` is what was
not read.

What this proves: a piece that was read before the next one was sent was returned by a `recv` of its
own. What it does not: that the program has done anything with it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import time
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .addresses import Address

#: How it is known: the other program has read it; the other kernel has it.
READ, ACKNOWLEDGED = "read", "acknowledged"
#: After an acknowledgement, the seconds that we give the other program to read.
PAUSE = 0.005
#: Bytes sent and not yet acknowledged, or of a UNIX stream not yet read: <linux/sockios.h>.
SIOCOUTQ = 0x5411

# <linux/netlink.h>, <linux/sock_diag.h>, <linux/inet_diag.h>: Python does not name them.
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, INET_DIAG_INFO = 4, 20, 1, 2
NLMSG_ERROR = 2
#: `struct nlmsghdr`: length, type, flags, sequence, port.
HEADER = struct.Struct("=IHHII")
#: `struct inet_diag_req_v2`: family, protocol, extensions, padding, states; then, big-endian, the
#: ports and addresses of the socket asked for; interface (0: any) and cookie (any).
REQUEST, PORTS, REST = struct.Struct("=BBBxI"), struct.Struct("!HH16s16s"), struct.Struct("=I8s")
#: Of `struct inet_diag_msg`: `idiag_rqueue`, the size of it all. Of `struct tcp_info`:
#: `tcpi_bytes_received`.
QUEUE, ANSWER, RECEIVED = 56, 72, 128
#: `struct nlattr`: length, type; each begins at a multiple of 4.
ATTRIBUTE = struct.Struct("=HH")

#: How often a wait looks at once, before it sleeps between looks: most programs read at once.
LOOKS = 50
SHORTEST_SLEEP, LONGEST_SLEEP = 20e-6, 1e-3


class Deliveries:
    """Asks the kernel; for one thread. Closed by `close`."""

    def __init__(self) -> None:
        self._netlink: socket.socket | None = None
        try:
            kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
            self._netlink = socket.socket(socket.AF_NETLINK, kind, NETLINK_SOCK_DIAG)
        except (AttributeError, OSError):
            pass  # no Linux, or none that answers: acknowledgements have to do

    def close(self) -> None:
        """Ask no more."""
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    def of(self, sock: socket.socket) -> Delivery:
        """What is known of a connected stream, on which nothing was sent yet."""
        return Delivery(self, sock)

    def ask(self, request: bytes) -> tuple[int, int] | None:
        """Of the socket that it names: bytes received, and how many of them were not read.

        Returns:
            None: there is no such socket here.

        Raises:
            OSError: the kernel does not say, for lack of memory perhaps.
        """
        if self._netlink is None:
            return None
        self._netlink.send(request)
        answer = self._netlink.recv(8192)  # it is there when `send` returns
        kind = HEADER.unpack_from(answer)[1]
        if kind == NLMSG_ERROR:
            (error,) = struct.unpack_from("=i", answer, HEADER.size)
            if error != -errno.ENOENT:
                raise OSError(-error, os.strerror(-error))
        if kind != SOCK_DIAG_BY_FAMILY or len(answer) < HEADER.size + ANSWER:
            return None
        (queue,) = struct.unpack_from("=I", answer, HEADER.size + QUEUE)
        at = HEADER.size + ANSWER
        while at + ATTRIBUTE.size <= len(answer):
            size, name = ATTRIBUTE.unpack_from(answer, at)
            if name == INET_DIAG_INFO and size >= ATTRIBUTE.size + RECEIVED + 8:
                (received,) = struct.unpack_from("=Q", answer, at + ATTRIBUTE.size + RECEIVED)
                return received, queue
            at += max(-(-size // 4) * 4, ATTRIBUTE.size)
        return None


class Delivery:
    """What becomes of the bytes sent on one stream. Made by `Deliveries.of`.

    Attributes:
        how: `read` or `acknowledged`: what `is_over` can tell here.
    """

    def __init__(self, kernel: Deliveries, sock: socket.socket) -> None:
        self._kernel = kernel
        self._sock = sock
        self._request = b""
        self._received = 0
        self.how = READ if sock.family == socket.AF_UNIX else ACKNOWLEDGED
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            self._request = _request(sock.getpeername(), sock.getsockname())
            with suppress(OSError):
                if kernel.ask(self._request) is not None:
                    self.how = READ

    def is_over(self, sent: int) -> bool:
        """Whether there is nothing to wait for: it was read (or acknowledged), or nobody will.

        Args:
            sent: bytes since the connection began.
        """
        if self._sock.family != socket.AF_UNIX and self.how == READ:
            try:
                return self._is_read(sent)
            except OSError:
                return False  # as far as is known
        try:
            left = fcntl.ioctl(self._sock, SIOCOUTQ, bytes(4))
        except OSError:
            return True
        return int.from_bytes(left, "little" if _IS_LITTLE else "big") == 0

    def _is_read(self, sent: int) -> bool:
        # The kernel looks at the queue before it says what was received, and more may come between
        # the two: only once all has been received does the queue tell.
        if self._received < sent:
            found = self._kernel.ask(self._request)
            if found is None:
                return True
            self._received = found[0]
        if self._received < sent:
            return False
        found = self._kernel.ask(self._request)
        return found is None or found[1] == 0

    def wait(self, sent: int, timeout: float) -> bool:
        """Wait until it is over; whether it was in time.

        Where only acknowledgements are to be had, the other program gets `PAUSE` more.

        Args:
            sent: bytes since the connection began.
            timeout: seconds.
        """
        deadline = time.monotonic() + timeout
        looks, sleep = 0, SHORTEST_SLEEP
        while not self.is_over(sent):
            looks += 1
            if looks < LOOKS:
                os.sched_yield()
            elif time.monotonic() >= deadline:
                return False
            else:
                time.sleep(sleep)
                sleep = min(2 * sleep, LONGEST_SLEEP)
        if self.how == ACKNOWLEDGED:
            time.sleep(PAUSE)
        return True


_IS_LITTLE = struct.pack("=H", 1) == b"\1\0"


def _request(whose: Address, peer: Address) -> bytes:
    """Asks about the TCP socket of this address that is connected to that one."""
    hosts = [ip_address(address[0].partition("%")[0]) for address in (whose, peer)]
    plain = [getattr(host, "ipv4_mapped", None) or host for host in hosts]
    family = socket.AF_INET if plain[0].version == 4 else socket.AF_INET6
    about = REQUEST.pack(family, socket.IPPROTO_TCP, 1 << INET_DIAG_INFO - 1, 0xFFFFFFFF)
    packed = [host.packed.ljust(16, b"\0") for host in plain]
    # A socket with a link-local address belongs to its interface, and is found by both.
    scope = whose[3] if len(whose) > 3 else 0
    about += PORTS.pack(whose[1], peer[1], *packed) + REST.pack(scope, b"\xff" * 8)
    size = HEADER.size + len(about)
    return HEADER.pack(size, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0) + about
