"""Two machines and a cable: what loopback cannot show of UDP, and a little of TCP.

The machines are network namespaces (network_namespaces(7)), the cable is a veth pair (veth(4));
nothing leaves them. Their addresses are those of RFC 5737 and RFC 3849, which exist nowhere.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from processes import PATIENCE, STAMP, read_exactly, read_to_end, until

from fastecho import Server
from fastecho.delivery import PAUSE
from fastecho.limits import ANSWERING_PORTS

CLONE_NEWNET = 0x40000000
UDP_SEGMENT, UDP_GRO = 103, 104
MTU = 1500
PORT = 12345
#: Of the server: on the cable, a second one there, one that is not on the cable, link-local.
V4 = ("192.0.2.1", "192.0.2.2", "198.51.100.1")
V6 = ("2001:db8::1", "2001:db8::2", "2001:db8:1::1")
LINK_LOCAL = "fe80::1"
CLIENT4, CLIENT6, CLIENT_LINK_LOCAL = "192.0.2.9", "2001:db8::9", "fe80::9"
BROADCASTS = ("192.0.2.255", "255.255.255.255")
#: What fits into a datagram of each family, and the default prefix.
LARGEST = {socket.AF_INET: 65_507, socket.AF_INET6: 65_527}
STAMP_SIZE = 26

Result = TypeVar("Result")


class Namespace:
    """A machine of our own; `run` does something there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._path = f"/run/netns/{name}"

    def ip(self, command: str) -> None:
        """Have its ip(8) do this."""
        subprocess.run(["ip", "-n", self.name, *command.split()], check=True, capture_output=True)

    def run(self, work: Callable[[], Result]) -> Result:
        """What `work` gives, done there."""
        results: list[Result] = []
        failures: list[BaseException] = []

        def there() -> None:
            try:
                self.enter()
                results.append(work())
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=there)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
        return results[0]

    def enter(self) -> None:
        """Let this thread be there, for the rest of its life (setns(2); Python 3.11 has it not)."""
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.setns(descriptor, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(descriptor)

    def udp(self, address: tuple[Any, ...]) -> socket.socket:
        """A UDP socket there, bound to this address."""

        def make() -> socket.socket:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.settimeout(PATIENCE)
            sock.bind(address)
            return sock

        return self.run(make)

    def connect(self, address: tuple[Any, ...]) -> socket.socket:
        """A TCP connection from there."""

        def make() -> socket.socket:
            sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
            sock.settimeout(PATIENCE)
            sock.connect(address)
            return sock

        return self.run(make)

    def interface(self) -> int:
        """The number of its end of the cable."""
        return self.run(lambda: socket.if_nametoindex("cable"))

    @contextmanager
    def serving(self, *listen: str, **settings: Any) -> Iterator[Server]:
        """A server there."""
        made: list[Server] = []
        failures: list[BaseException] = []
        ready = threading.Event()

        def serve() -> None:
            try:
                self.enter()
                made.append(Server(listen, **settings))
            except BaseException as failure:
                failures.append(failure)
                return
            finally:
                ready.set()
            made[0].run()

        thread = threading.Thread(target=serve)
        thread.start()
        ready.wait()
        if failures:
            raise failures[0]
        try:
            yield made[0]
        finally:
            made[0].stop()
            thread.join()


class Lab:
    """Two machines, and the cable between them."""

    def __init__(self, stack: ExitStack) -> None:
        names = [f"fastecho-{os.getpid()}-{end}" for end in ("server", "client")]
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
            stack.callback(subprocess.run, ["ip", "netns", "del", name], check=True)
        self.server, self.client = map(Namespace, names)
        self.server.ip(f"link add cable type veth peer name cable netns {self.client.name}")
        for end in (self.server, self.client):
            end.ip(f"link set cable addrgenmode none mtu {MTU} up")
            end.ip("link set lo up")
        for address in V4[:2]:
            self.server.ip(f"addr add {address}/24 broadcast + dev cable")
        for address in (*V6[:2], LINK_LOCAL):
            self.server.ip(f"addr add {address}/64 dev cable nodad")
        self.server.ip(f"addr add {V4[2]}/32 dev lo")
        self.server.ip(f"addr add {V6[2]}/128 dev lo")
        self.client.ip(f"addr add {CLIENT4}/24 broadcast + dev cable")
        for address in (CLIENT6, CLIENT_LINK_LOCAL):
            self.client.ip(f"addr add {address}/64 dev cable nodad")
        self.client.ip(f"route add {V4[2]} via {V4[0]}")
        self.client.ip(f"route add {V6[2]} via {V6[0]}")
        self.scope = self.client.interface()

    def to(self, address: str, port: int = PORT) -> tuple[Any, ...]:
        """Where the client sends to."""
        if address.startswith(("fe80:", "ff02:")):
            return (address, port, 0, self.scope)
        return (address, port)

    def source(self, address: str, port: int = 0) -> tuple[Any, ...]:
        """Where the client sends from: on the way to this address."""
        if ":" not in address:
            return (CLIENT4, port)
        if address.startswith(("fe80:", "ff02:")):
            return (CLIENT_LINK_LOCAL, port, 0, self.scope)
        return (CLIENT6, port)

    def ask(self, address: str, message: bytes = b"?") -> bytes:
        """The reply to a datagram from an ordinary port."""
        with self.client.udp(self.source(address)) as sock:
            sock.sendto(message, self.to(address))
            return sock.recv(65_535)

    def refuses(self, server: Server, sock: socket.socket, message: bytes, address: str) -> str:
        """Why it did not answer."""
        before = refusals(server)
        sock.sendto(message, self.to(address))
        until(lambda: refusals(server) != before, "a datagram that was not answered")
        (reason,) = (refusals(server) - before).elements()
        # An answer would have come before this one.
        self.ask(V6[0] if ":" in address else V4[0], b"x" * 100)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(100)
        return reason


def refusals(server: Server) -> Counter[str]:
    """How many datagrams it has not answered, by reason."""
    return group(server, "unanswered")


def group(server: Server, name: str) -> Counter[str]:
    """The counters of this name, by reason."""
    found = {key.partition(".")[::2]: n for key, n in server.counters.items()}
    return Counter({reason: n for (group, reason), n in found.items() if group == name})


def unable() -> str:
    """Why there can be no namespaces; empty: there can."""
    if not shutil.which("ip"):
        return "ip (iproute2) is not installed"
    name = f"fastecho-{os.getpid()}-probe"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if done.returncode:
        return f"no network namespaces: {done.stderr.decode().strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if reason := unable():
        pytest.skip(reason)
    with ExitStack() as stack:
        yield Lab(stack)


# -- where replies leave from

WILDCARDS = [
    ("udp://0.0.0.0:12345", V4),
    ("udp://[::]:12345", (*V4, *V6, LINK_LOCAL)),
    ("udp://:12345", (*V4, *V6, LINK_LOCAL)),
]


@pytest.mark.parametrize(("listen", "addresses"), WILDCARDS)
def test_a_reply_leaves_from_the_address_that_was_contacted(
    listen: str, addresses: tuple[str, ...], twin: Any, lab: Lab
) -> None:
    """In one batch too, where each has another."""
    with lab.server.serving(listen, prefix="", backend=twin.name):
        for address in addresses:
            with lab.client.udp(lab.source(address)) as sock:
                sock.sendto(b"to " + address.encode(), lab.to(address))
                message, source = sock.recvfrom(100)
                assert message == b"to " + address.encode()
                assert source[:2] == (lab.to(address)[0], PORT) or source[0].startswith("fe80::1%")
        with (
            lab.client.udp((CLIENT4, 0)) as sock4,
            lab.client.udp(("::", 0)) as sock6,
        ):
            for address in addresses * 10:
                sock = sock6 if ":" in address else sock4
                sock.sendto(address.encode(), lab.to(address))
            for address in addresses * 10:
                sock = sock6 if ":" in address else sock4
                message, source = sock.recvfrom(100)
                assert message.decode() == source[0].partition("%")[0]


@pytest.mark.parametrize("address", [V4[1], V6[1]])
def test_a_server_of_one_address_answers_from_it(address: str, twin: Any, lab: Lab) -> None:
    host = f"[{address}]" if ":" in address else address
    with (
        lab.server.serving(f"udp://{host}:{PORT}", prefix="", backend=twin.name),
        lab.client.udp(lab.source(address)) as sock,
    ):
        sock.sendto(b"x", lab.to(address))
        message, source = sock.recvfrom(100)
        assert (message, source[:2]) == (b"x", (address, PORT))


def test_a_peer_on_the_link_is_named_as_python_names_it(twin: Any, lab: Lab) -> None:
    with (
        lab.server.serving("udp://[::]:12345", prefix="{peer} ", backend=twin.name),
        lab.client.udp((CLIENT_LINK_LOCAL, 0, 0, lab.scope)) as sock,
    ):
        sock.sendto(b"x", lab.to(LINK_LOCAL))
        due = f"[{CLIENT_LINK_LOCAL}]:{sock.getsockname()[1]} x"
        assert sock.recv(100) == due.encode()


# -- sources that are not answered

TARGETS = [
    ("udp://0.0.0.0:12345", V4[1]),
    ("udp://[::]:12345", V4[1]),
    ("udp://[::]:12345", V6[1]),
    ("udp://[::]:12345", LINK_LOCAL),
    ("udp://192.0.2.1:12345", V4[0]),
    ("udp://[2001:db8::1]:12345", V6[0]),
]
PORTS = {
    1: "privileged_port",
    7: "privileged_port",
    1023: "privileged_port",
    PORT: "own_port",
    **dict.fromkeys(sorted(ANSWERING_PORTS), "answering_port"),
}


def test_the_ports_that_answer_by_nature() -> None:
    """SSDP, WS-Discovery, mDNS, CoAP, memcached."""
    assert {1900, 3702, 5353, 5683, 11211} == ANSWERING_PORTS


@pytest.mark.parametrize(("listen", "address"), TARGETS)
def test_source_ports_that_are_not_answered(listen: str, address: str, twin: Any, lab: Lab) -> None:
    with lab.server.serving(listen, prefix="", backend=twin.name) as server:
        for port, reason in PORTS.items():
            with lab.client.udp(lab.source(address, port)) as sock:
                assert lab.refuses(server, sock, b"x" * 100, address) == reason
        assert refusals(server) == {"privileged_port": 3, "own_port": 1, "answering_port": 5}


@pytest.mark.parametrize("port", [1024, PORT - 1, PORT + 1, 1901, 65535])
def test_ports_beside_those_are_answered(port: int, twin: Any, lab: Lab) -> None:
    with (
        lab.server.serving("udp://0.0.0.0:12345", prefix="", backend=twin.name),
        lab.client.udp((CLIENT4, port)) as sock,
    ):
        sock.sendto(b"x", (V4[0], PORT))
        assert sock.recv(100) == b"x"


@pytest.mark.parametrize("listen", ["udp://0.0.0.0:12345", "udp://[::]:12345"])
@pytest.mark.parametrize("target", BROADCASTS)
def test_what_was_sent_to_a_broadcast_address_is_not_answered(
    listen: str, target: str, twin: Any, lab: Lab
) -> None:
    with (
        lab.server.serving(listen, prefix="", backend=twin.name) as server,
        lab.client.udp((CLIENT4, 0)) as sock,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"cable")
        assert lab.refuses(server, sock, b"x" * 100, target) == "broadcast"


@pytest.mark.parametrize(
    ("listen", "target"),
    [
        ("udp://0.0.0.0:12345", "224.0.0.1"),
        ("udp://[::]:12345", "ff02::1"),
    ],
)
def test_what_was_sent_to_a_multicast_address_is_not_answered(
    listen: str, target: str, twin: Any, lab: Lab
) -> None:
    with (
        lab.server.serving(listen, prefix="", backend=twin.name) as server,
        lab.client.udp(lab.source(target)) as sock,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"cable")
        assert lab.refuses(server, sock, b"x" * 100, target) == "multicast"


@pytest.mark.parametrize(
    ("listen", "kind"),
    [("udp://192.0.2.255:12345", "broadcast"), ("udp://224.0.0.1:12345", "multicast")],
)
def test_a_server_of_a_group_s_address_alone_does_not_answer_it_either(
    listen: str, kind: str, twin: Any, lab: Lab
) -> None:
    target = listen[6:-6]
    with (
        lab.server.serving(listen, prefix="", backend=twin.name) as server,
        lab.client.udp((CLIENT4, 0)) as sock,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"cable")
        sock.sendto(b"x" * 100, (target, PORT))
        until(lambda: server.counters["messages"] == 1, "a datagram")
        until(lambda: refusals(server) == {kind: 1} or server.counters["bytes_out"], "its fate")
        assert refusals(server) == {kind: 1}


@pytest.mark.parametrize(
    ("listen", "address", "overhead"),
    [
        ("udp://0.0.0.0:12345", V4[0], 28),
        ("udp://[::]:12345", V4[0], 28),
        ("udp://[::]:12345", V6[0], 48),
        ("udp://[::]:12345", LINK_LOCAL, 48),
    ],
)
def test_a_reply_more_than_twice_the_request_on_the_wire_is_not_sent(
    listen: str, address: str, overhead: int, twin: Any, lab: Lab
) -> None:
    prefix = "p" * 100
    just = 100 - overhead
    with (
        lab.server.serving(listen, prefix=prefix, backend=twin.name) as server,
        lab.client.udp(lab.source(address)) as sock,
    ):
        for size in (0, 1, just - 1):
            assert lab.refuses(server, sock, b"x" * size, address) == "amplified"
        assert lab.ask(address, b"x" * just) == prefix.encode() + b"x" * just


@pytest.mark.parametrize("address", [V4[0], V6[0]])
def test_the_default_prefix_is_never_too_much(address: str, twin: Any, lab: Lab) -> None:
    with lab.server.serving("udp://[::]:12345", backend=twin.name):
        assert STAMP.fullmatch(lab.ask(address, b""))


@pytest.mark.parametrize(
    ("listen", "source", "target"),
    [
        ("udp://0.0.0.0:12345", "127.0.0.2", "127.0.0.1"),
        ("udp://[::]:12345", "::1", "::1"),
        ("udp://[::]:12345", "127.0.0.2", "127.0.0.1"),
        ("udp://127.0.0.1:12345", "127.0.0.2", "127.0.0.1"),
    ],
)
def test_all_of_these_are_answered_from_loopback(
    listen: str, source: str, target: str, twin: Any, lab: Lab
) -> None:
    """It cannot be forged."""
    own = "127.0.0.1" in listen  # with a wildcard nobody else has the port
    ports = [port for port in PORTS if port != PORT or own]
    with lab.server.serving(listen, prefix="p" * 200, backend=twin.name) as server:
        for port in ports:
            with lab.server.udp((source, port)) as sock:
                sock.sendto(b"", (target, PORT))
                assert sock.recvfrom(300)[0] == b"p" * 200
        assert not refusals(server)


def forged(source: str, target: str) -> bytes:
    """An IPv4 packet with a UDP datagram between these addresses' port PORT (RFC 791, RFC 768)."""
    udp = struct.pack("!HHHH", PORT, PORT, 8 + 100, 0) + b"!" * 100
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0, *map(socket.inet_aton, (source, target))
    )
    return ip + udp


def test_a_forged_packet_does_not_set_two_servers_against_each_other(twin: Any, lab: Lab) -> None:
    with (
        lab.server.serving("udp://0.0.0.0:12345", prefix="", backend=twin.name) as one,
        lab.client.serving("udp://0.0.0.0:12345", prefix="", backend=twin.name) as other,
        lab.client.run(
            lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        ) as raw,
    ):
        raw.sendto(forged(CLIENT4, V4[0]), (V4[0], 0))
        until(lambda: refusals(one) == {"own_port": 1}, "the forged packet counted")
        assert lab.ask(V4[0]) == b"?"
        assert other.counters["messages"] == 0


# -- sizes

SIZES = [0, 1, 1471, 1472, 1473, 8000]


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("udp://0.0.0.0:12345", V4[0]),
        ("udp://[::]:12345", V4[1]),
        ("udp://[::]:12345", V6[0]),
        ("udp://[::]:12345", LINK_LOCAL),
    ],
)
def test_datagrams_of_every_size_that_there_is_come_back_whole(
    listen: str, address: str, twin: Any, lab: Lab
) -> None:
    """Up to what one packet takes, the sizes around that, and the largest that a reply can be."""
    largest = LARGEST[socket.AF_INET6 if ":" in address else socket.AF_INET]
    edge = MTU - (48 if ":" in address else 28)
    sizes = [*SIZES, edge - 1, edge, edge + 1, edge - STAMP_SIZE, edge - STAMP_SIZE + 1]
    with lab.server.serving(listen, backend=twin.name) as server:
        for size in [*sizes, largest - STAMP_SIZE]:
            message = random.randbytes(size)
            reply = lab.ask(address, message)
            assert STAMP.match(reply)
            assert reply[STAMP_SIZE:] == message
        with lab.client.udp(lab.source(address)) as sock:
            for size in (largest - STAMP_SIZE + 1, largest):
                sock.sendto(bytes(size), lab.to(address))
            sock.sendto(b"next", lab.to(address))
            assert sock.recv(100)[STAMP_SIZE:] == b"next"
        assert server.counters["unanswered.emsgsize"] == 2


# -- segments


def burst(sock: socket.socket, messages: list[bytes], target: tuple[Any, ...]) -> list[bytes]:
    """Send them at once; the replies."""
    for message in messages:
        sock.sendto(message, target)
    return [sock.recv(65_535) for _ in messages]


def as_segments(sock: socket.socket, payload: bytes, size: int, target: tuple[Any, ...]) -> None:
    """Send it as datagrams of this size, which the kernel may deliver joined (UDP_SEGMENT)."""
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", size))]
    sock.sendmsg([payload], control, 0, target)


@pytest.mark.parametrize("address", [V4[0], V6[0]])
def test_the_cable_delivers_joined_what_was_sent_as_segments(address: str, lab: Lab) -> None:
    """Else the tests below show less than they say."""
    with lab.server.udp((address, PORT)) as server, lab.client.udp(lab.source(address)) as sock:
        server.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        as_segments(sock, b"x" * 95, 20, lab.to(address))
        data, control, _, _ = server.recvmsg(1000, 100)
        assert len(data) == 95
        assert control == [(socket.IPPROTO_UDP, UDP_GRO, struct.pack("@i", 20))]


def resent(server: Server) -> Counter[str]:
    """How many segmented sends were refused, by reason."""
    return group(server, "resent")


@pytest.mark.parametrize("address", [V4[0], V6[0], LINK_LOCAL])
def test_replies_about_the_mtu_come_back_whole_in_bursts(address: str, twin: Any, lab: Lab) -> None:
    """Those that fit into a frame leave as segments, no longer one is tried."""
    edge = MTU - (48 if ":" in address else 28)
    with (
        lab.server.serving("udp://[::]:12345", prefix="[]", backend=twin.name) as server,
        lab.client.udp(lab.source(address)) as sock,
    ):
        for size in (1, edge - 3, edge - 2, edge - 1, edge, 2 * edge, 8000):
            messages = [random.randbytes(size) for _ in range(5)]
            replies = burst(sock, messages, lab.to(address))
            assert replies == [b"[]" + message for message in messages]
        assert resent(server) == Counter()
        assert not refusals(server)


@pytest.mark.parametrize("address", [V4[0], V6[0]])
def test_segments_past_the_mtu_of_the_path_go_one_by_one(address: str, twin: Any, lab: Lab) -> None:
    """Once; from then on none are tried."""
    prefix = "p" * 100
    with (
        lab.server.serving("udp://[::]:12345", prefix=prefix, backend=twin.name) as server,
        lab.client.udp(lab.source(address)) as sock,
    ):
        lab.server.ip("link set cable mtu 1400")
        try:
            for _ in range(3):
                payload = random.randbytes(5 * 1300)
                as_segments(sock, payload, 1300, lab.to(address))  # so that they come at once
                due = [prefix.encode() + payload[at : at + 1300] for at in range(0, 6500, 1300)]
                assert [sock.recv(65_535) for _ in due] == due
        finally:
            lab.server.ip(f"link set cable mtu {MTU}")
        assert sum(resent(server).values()) == 1
        assert resent(server).keys() <= {"emsgsize", "einval"}
        assert not refusals(server)


@pytest.mark.parametrize(("listen", "address"), TARGETS)
def test_no_datagram_of_those_that_came_joined_is_answered_from_such_a_port(
    listen: str, address: str, twin: Any, lab: Lab
) -> None:
    with lab.server.serving(listen, prefix="", backend=twin.name) as server:
        for port, reason in PORTS.items():
            before = server.counters["messages"]
            with lab.client.udp(lab.source(address, port)) as sock:
                as_segments(sock, b"x" * 95, 20, lab.to(address))
                until(lambda: server.counters["messages"] == before + 5, "them all")  # noqa: B023
                lab.ask(address, b"next")
                assert refusals(server)[reason] % 5 == 0
                sock.setblocking(False)
                with pytest.raises(BlockingIOError):
                    sock.recv(100)
        assert refusals(server) == {"privileged_port": 15, "own_port": 5, "answering_port": 25}


@pytest.mark.parametrize(
    ("address", "overhead"), [(V4[0], 28), (V4[1], 28), (V6[0], 48), (LINK_LOCAL, 48)]
)
def test_each_datagram_of_those_that_came_joined_is_judged_by_its_own_size(
    address: str, overhead: int, twin: Any, lab: Lab
) -> None:
    """Only the last is so short that its reply would be more than twice as long."""
    prefix = "p" * 100
    just = 100 - overhead
    with (
        lab.server.serving("udp://[::]:12345", prefix=prefix, backend=twin.name) as server,
        lab.client.udp(lab.source(address)) as sock,
    ):
        as_segments(sock, b"x" * (4 * just - 1), just, lab.to(address))
        assert [sock.recv(300) for _ in range(3)] == [prefix.encode() + b"x" * just] * 3
        until(lambda: server.counters["messages"] == 4, "the last")
        assert refusals(server) == {"amplified": 1}


@pytest.mark.parametrize("target", BROADCASTS)
def test_no_datagram_of_a_segmented_broadcast_is_answered(target: str, twin: Any, lab: Lab) -> None:
    with (
        lab.server.serving("udp://0.0.0.0:12345", prefix="", backend=twin.name) as server,
        lab.client.udp((CLIENT4, 0)) as sock,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"cable")
        as_segments(sock, b"x" * 95, 20, (target, PORT))
        until(lambda: refusals(server) == {"broadcast": 5}, "them all")


def test_a_run_is_of_one_contacted_address(twin: Any, lab: Lab) -> None:
    """Replies to one peer, of one size, from two addresses."""
    with (
        lab.server.serving("udp://0.0.0.0:12345", prefix="", backend=twin.name),
        lab.client.udp((CLIENT4, 0)) as sock,
    ):
        for _ in range(2):
            for address in (V4[0], V4[0], V4[1], V4[0], V4[1], V4[1]):
                as_segments(sock, address.encode() * 3, len(address), lab.to(address))
            for _ in range(18):
                message, source = sock.recvfrom(100)
                assert message.decode() == source[0]


# -- TCP


@pytest.mark.parametrize("address", [V4[0], V4[2], V6[0], LINK_LOCAL])
@pytest.mark.parametrize("listen", ["tcp://[::]:12345", "tcp://:12345"])
def test_connections_over_the_cable(listen: str, address: str, twin: Any, lab: Lab) -> None:
    stream = b"".join(b"%d\n" % number for number in range(100_000))
    with (
        lab.server.serving(listen, prefix="", backend=twin.name),
        lab.client.connect(lab.to(address)) as sock,
    ):

        def send() -> None:
            sock.sendall(stream)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        assert read_to_end(sock) == stream
        sender.join()


def test_a_peer_of_tcp_on_the_link_is_named_as_python_names_it(twin: Any, lab: Lab) -> None:
    with (
        lab.server.serving("tcp://[::]:12345", prefix="{peer} ", backend=twin.name),
        lab.client.connect(lab.to(LINK_LOCAL)) as sock,
    ):
        due = f"[{CLIENT_LINK_LOCAL}]:{sock.getsockname()[1]} x\n".encode()
        sock.sendall(b"x\n")
        assert read_exactly(sock, len(due)) == due


def test_no_reset_overtakes_the_replies_before_a_fault_over_the_cable(twin: Any, lab: Lab) -> None:
    good = b"ok\n" * 100_000
    with (
        lab.server.serving("tcp://:12345", prefix="", max_frame=10, backend=twin.name) as server,
        lab.client.connect(lab.to(V4[0])) as sock,
    ):
        sender = threading.Thread(target=sock.sendall, args=(good + bytes(4 << 20),))
        sender.start()
        assert read_to_end(sock) == good
        sender.join()
        assert server.counters["closed.too_long"] == 1


# -- fault plans


def test_of_another_machine_it_is_known_that_it_acknowledged(
    twin: Any, lab: Lab, tmp_path: Path
) -> None:
    """There its kernel cannot be asked what was read: each piece waits for that, and a moment."""
    path = tmp_path / "log"
    with (
        lab.server.serving(
            "tcp://:12345", prefix="", faults="dribble", fault_log=path, backend=twin.name
        ),
        lab.client.connect(lab.to(V4[0])) as sock,
    ):
        sock.sendall(b"abc\n")
        before = time.monotonic()
        assert read_exactly(sock, 4) == b"abc\n"
        assert time.monotonic() - before >= 2 * PAUSE
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    known = [line["how"] for line in lines if line["event"] == "sent"]
    assert known == ["", *["acknowledged"] * 3]


def test_a_link_local_address_of_the_same_machine_is_asked_about_on_its_interface(
    twin: Any, lab: Lab, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    with (
        lab.server.serving(
            "tcp://[::]:12345", prefix="", faults="dribble", fault_log=path, backend=twin.name
        ),
        lab.server.connect((LINK_LOCAL, PORT, 0, lab.server.interface())) as sock,
    ):
        sock.sendall(b"abc\n")
        assert read_exactly(sock, 4) == b"abc\n"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    known = [line["how"] for line in lines if line["event"] == "sent"]
    assert known == ["", *["read"] * 3]


def test_a_plan_answers_nobody_who_would_not_be_answered(twin: Any, lab: Lab) -> None:
    """Sources can be forged: what may leave twice is what may leave at all."""
    with (
        lab.server.serving(
            "udp://0.0.0.0:12345", prefix="", faults="duplicate; delay:time=1ms", backend=twin.name
        ) as server,
        lab.client.udp((CLIENT4, 7)) as privileged,
        lab.client.udp((CLIENT4, PORT)) as own,
        lab.client.udp((CLIENT4, 0)) as ordinary,
    ):
        for sock in (privileged, own):
            sock.sendto(b"forged", lab.to(V4[0]))
        ordinary.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        ordinary.sendto(b"to all", lab.to(BROADCASTS[0]))
        ordinary.sendto(b"right", lab.to(V4[1]))
        assert [ordinary.recvfrom(100) for _ in range(2)] == [(b"right", (V4[1], PORT))] * 2
    assert refusals(server) == {"privileged_port": 1, "own_port": 1, "broadcast": 1}


@pytest.mark.parametrize("address", [V4[0], V6[0]])
def test_a_duplicate_on_purpose_makes_it_no_more_than_twice_the_request_either(
    address: str, twin: Any, lab: Lab
) -> None:
    with (
        lab.server.serving(
            "udp://[::]:12345", prefix="{seq}", faults="duplicate", backend=twin.name
        ) as server,
        lab.client.udp(lab.source(address)) as sock,
    ):
        sock.sendto(b"x", lab.to(address))
        sock.sendto(b"y", lab.to(address))
        assert [sock.recv(10) for _ in range(2)] == [b"1x", b"2y"]
        assert refusals(server) == {"amplified": 2}
    with (
        lab.server.serving("udp://[::]:12345", prefix="", faults="duplicate", backend=twin.name),
        lab.client.udp(lab.source(address)) as sock,
    ):
        sock.sendto(b"x", lab.to(address))
        assert [sock.recv(10) for _ in range(2)] == [b"x"] * 2
