"""Each limit: its default, and what it does; docs/limits.md names the tests.

Time is not waited for: a stream is told by hand how much of it has passed.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import resource
import selectors
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from processes import (
    PATIENCE,
    Daemon,
    read_exactly,
    read_to_end,
    serving,
    until,
)
from sites import Site

from fastecho import ConfigError, Server, limits, running, tcp
from fastecho.settings import Settings

DOCS = Path(__file__).parents[1] / "docs" / "limits.md"


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(server.tcp_address, PATIENCE) as sock:
        yield sock


def answered(sock: socket.socket, message: bytes = b"x\n", prefix: bytes = b"") -> bool:
    """Whether it gets the reply to this."""
    sock.sendall(message)
    return read_exactly(sock, len(prefix + message)) == prefix + message


# -- docs/limits.md


def rows() -> list[list[str]]:
    """The cells of its tables, without their headings."""
    found = [line.strip("|").split("|") for line in DOCS.read_text().splitlines() if "|" in line]
    return [[cell.strip() for cell in row] for row in found if row[0].strip().startswith("`")]


def test_the_docs_name_each_limit_its_default_and_a_test_that_is_there() -> None:
    tests = {
        name: Path(__file__).parent / f"{file}.py"
        for row in rows()
        for file, name in [row[-1].strip("`").split("::")]
    }
    for name, file in tests.items():
        assert re.search(rf"^def {name}\(", file.read_text(), re.MULTILINE), f"{file}: {name}"
    named_there = {row[0].strip("`"): row[1] for row in rows()}
    settings = Settings()
    for name in (
        "idle_timeout",
        "frame_timeout",
        "send_buffer",
        "linger_timeout",
        "drain_timeout",
        "backlog",
    ):
        shown = re.match(r"[\d,.]+", named_there[f"--{name.replace('_', '-')}"])
        assert shown, name
        assert float(shown[0].replace(",", "")) == getattr(settings, name)
    for name in ("UNFINISHED_AFTER", "UNREAD_AFTER", "RECEIVE_BUFFER", "SEND_BUFFER"):
        shown = re.match(r"[\d,.]+", named_there[name])
        assert shown, name
        assert float(shown[0].replace(",", "")) == getattr(limits, name)
    assert {"--max-frame", "--max-connections"} <= named_there.keys()


# -- max_frame


def test_max_frame(twin: Any) -> None:
    """A message of the limit is answered; one byte more ends the connection, after its replies."""
    assert limits.MAX_FRAME == 65_536
    with running(prefix="", backend=twin.name) as server:
        with connected(server) as sock:
            assert answered(sock, b"x" * 65_536 + b"\n")
            sock.sendall(b"ok\n" + b"x" * 65_537)
            assert read_to_end(sock) == b"ok\n"
        until(lambda: server.counters.get("closed.too_long"), "the end counted")
    with running(prefix="", max_frame=3, backend=twin.name) as server, connected(server) as sock:
        assert answered(sock, b"abc\n")
        sock.sendall(b"abcd\n")
        assert read_to_end(sock) == b""


def test_max_frame_is_not_for_datagrams(twin: Any) -> None:
    with (
        running(prefix="", max_frame=3, backend=twin.name) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(PATIENCE)
        sock.connect(server.udp_address)
        sock.send(b"x" * 65_507)
        assert sock.recv(65_535) == b"x" * 65_507


# -- max_connections


def test_max_connections_is_what_descriptors_there_are_less_64() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert Settings().connections == soft - 64 == soft - limits.RESERVED_DESCRIPTORS


def test_max_connections(twin: Any) -> None:
    """The next wait in the backlog, and are served as soon as one ends."""
    with ExitStack() as stack:
        server = stack.enter_context(running(prefix="", max_connections=2, backend=twin.name))
        first, second, *waiting = (stack.enter_context(connected(server)) for _ in range(5))
        for sock in waiting:
            sock.sendall(b"I wait\n")
        for _ in range(5):
            assert answered(first)
            assert answered(second)
        assert server.counters["connections"] == 2
        assert not any(readable(sock) for sock in waiting)
        first.close()
        assert read_exactly(waiting[0], 7) == b"I wait\n"
        assert server.counters["connections"] == 3
        assert not any(readable(sock) for sock in waiting[1:])
        assert answered(second)
        second.close()
        waiting[0].close()
        for sock in waiting[1:]:
            assert read_exactly(sock, 7) == b"I wait\n"


def test_max_connections_is_for_all_listeners_together(twin: Any) -> None:
    listen = ["tcp://127.0.0.1:0", "tcp://127.0.0.2:0"]
    with ExitStack() as stack:
        server = stack.enter_context(
            running(listen=listen, prefix="", max_connections=1, backend=twin.name)
        )
        second = (named_port(server.addresses[1]), PATIENCE)
        with connected(server) as first:
            assert answered(first)
            other = stack.enter_context(socket.create_connection(*second))
            other.sendall(b"x\n")
            assert answered(first)
            assert not readable(other)
        assert read_exactly(other, 2) == b"x\n"


def named_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host, int(port)


def readable(sock: socket.socket) -> bool:
    """Whether anything has come."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        return bool(selector.select(0))


# -- timeouts, of a stream that is told what time has passed


class Watched:
    """One stream of a site, and what its owner is told of it."""

    def __init__(self, twin: Any, **timeouts: float) -> None:
        chosen = {"idle_timeout": 0.0, "frame_timeout": 0.0, "linger_timeout": 2.0, **timeouts}
        self.site = Site(twin, listener=functools.partial(twin.Listener, **chosen))
        self.told: list[str] = []
        owner: Any = self.site.owner
        owner.expired = lambda stream, reason: self.told.append(reason)
        owner.unfinished = lambda stream: self.told.append("unfinished")
        owner.unread = lambda stream: self.told.append("unread")
        self.client, self.stream = self.site.accepted()
        self.step(0)

    def step(self, seconds: float) -> None:
        """So much time has passed since the last step."""
        self.stream.sweep(time.monotonic(), seconds)

    def send(self, data: bytes) -> None:
        """It comes, and is answered."""
        due = self.site.listener.bytes_in + len(data)
        self.site.send(self.client, data)
        self.site.until(lambda: self.site.listener.bytes_in == due)

    def stuff(self) -> None:
        """Send lines until replies wait for the client to read."""
        while not self.stream.unsent:
            with suppress(BlockingIOError):
                self.client.send(b"\n" * 64)
            self.site.selector.dispatch(0)


@pytest.fixture
def watched(twin: Any) -> Iterator[Callable[..., Watched]]:
    with ExitStack() as stack:

        def make(**timeouts: float) -> Watched:
            made = Watched(twin, **timeouts)
            stack.push(made.site.stack)
            return made

        yield make


def test_idle_timeout_is_off_unless_asked_for(watched: Callable[..., Watched]) -> None:
    assert limits.IDLE_TIMEOUT == 0
    idle = watched()
    idle.step(1e9)
    assert not idle.stream.closed
    idle.send(b"x\n")


def test_idle_timeout(watched: Callable[..., Watched]) -> None:
    """Seconds without a byte; a byte begins them anew."""
    idle = watched(idle_timeout=10)
    for _ in range(9):
        idle.step(1)
    idle.step(0.9)
    assert not idle.stream.closed
    idle.send(b"x")
    idle.step(1)  # when in it the byte came is not known: nothing fires early
    idle.step(9.9)
    assert not idle.stream.closed
    assert "idle_timeout" not in idle.told
    idle.step(0.2)
    assert idle.stream.closed
    assert idle.told[-1] == "idle_timeout"
    assert idle.site.listener.closed == {"idle_timeout": 1}
    assert idle.site.read(idle.client) == b""


def test_idle_timeout_is_not_for_who_takes_replies(watched: Callable[..., Watched]) -> None:
    """Though it sends nothing: a byte may move either way."""
    slow = watched(idle_timeout=10)
    slow.stuff()
    slow.step(1)
    for _ in range(5):
        before = slow.stream.unsent
        while slow.stream.unsent == before:
            slow.site.read(slow.client, 3)
            slow.site.selector.dispatch(0)
        slow.step(9)
        if not slow.stream.unsent:
            break
    assert not slow.stream.closed
    assert "idle_timeout" not in slow.told


def test_idle_timeout_ends_who_takes_none(watched: Callable[..., Watched]) -> None:
    stuck = watched(idle_timeout=10)
    stuck.stuff()
    stuck.step(1)
    stuck.step(9.9)
    assert not stuck.stream.closed
    stuck.step(0.2)
    assert stuck.stream.closed
    assert stuck.told == ["unread", "idle_timeout"]


def test_frame_timeout_is_a_minute(twin: Any) -> None:
    assert limits.FRAME_TIMEOUT == Settings().frame_timeout == 60
    with ExitStack() as stack:
        site = Site(twin)
        stack.push(site.stack)
        assert (site.listener.frame_timeout, site.listener.idle_timeout) == (60, 0)


def test_frame_timeout(watched: Callable[..., Watched]) -> None:
    """From a message's first byte to its last: more bytes of it give no more time."""
    slow = watched(frame_timeout=10)
    slow.send(b"a\nb")
    slow.step(1)  # when in it the message began is not known
    for _ in range(9):
        slow.step(1)
        slow.send(b"b")
    slow.step(0.9)
    assert not slow.stream.closed
    slow.step(0.2)
    assert slow.stream.closed
    assert slow.told == ["unfinished", "frame_timeout"]
    assert slow.site.listener.closed == {"frame_timeout": 1}


def test_frame_timeout_is_each_message_s_own(watched: Callable[..., Watched]) -> None:
    steady = watched(frame_timeout=10)
    for _ in range(5):
        steady.send(b"x")
        steady.step(1)
        steady.step(9.5)
        steady.send(b"\nx")
        steady.step(1)
        steady.step(9.5)
        steady.send(b"\n")
        steady.step(100)
    assert not steady.stream.closed


def test_frame_timeout_0_is_for_ever(watched: Callable[..., Watched]) -> None:
    patient = watched(frame_timeout=0)
    patient.send(b"x")
    for _ in range(3):
        patient.step(1e9)
    assert not patient.stream.closed
    patient.send(b"\n")


def test_frame_timeout_does_not_count_while_replies_are_unsent(
    watched: Callable[..., Watched],
) -> None:
    """The client may have sent the rest: it is not read."""
    stuck = watched(frame_timeout=10)
    stuck.send(b"x")
    stuck.stuff()
    for _ in range(5):
        stuck.step(9)
    assert not stuck.stream.closed


def test_unfinished_after(watched: Callable[..., Watched]) -> None:
    """A message unfinished for a second is named: once, and not before."""
    assert limits.UNFINISHED_AFTER == 1
    newcomer = watched()
    newcomer.send(b"hi")
    newcomer.step(0.5)
    newcomer.step(0.9)
    assert newcomer.told == []
    newcomer.step(0.2)
    assert newcomer.told == ["unfinished"]
    newcomer.step(50)
    newcomer.send(b"\nagain")
    newcomer.step(5)
    newcomer.step(5)
    assert newcomer.told == ["unfinished"]
    assert not newcomer.stream.closed


def test_unfinished_after_is_not_for_finished_messages(watched: Callable[..., Watched]) -> None:
    regular = watched()
    for _ in range(10):
        regular.send(b"x")
        regular.step(0.6)
        regular.send(b"\n")
        regular.step(5)
    assert regular.told == []


def test_unread_after(watched: Callable[..., Watched]) -> None:
    """A client that has read nothing for five seconds is named: once, and not before."""
    assert limits.UNREAD_AFTER == 5
    deaf = watched()
    deaf.stuff()
    deaf.step(1)
    deaf.step(4.9)
    assert deaf.told == []
    deaf.step(0.2)
    assert deaf.told == ["unread"]
    deaf.step(100)
    assert deaf.told == ["unread"]
    assert not deaf.stream.closed


def test_linger_timeout(watched: Callable[..., Watched]) -> None:
    """After a fault the rest of the input is discarded, for so long at most."""
    assert limits.LINGER_TIMEOUT == Settings().linger_timeout == 2
    faulty = watched(linger_timeout=50)
    before = time.monotonic()
    faulty.send(b"ok\n" + b"x" * 41)
    assert faulty.site.read(faulty.client) == b"[]ok\n"
    after = time.monotonic()
    faulty.site.send(faulty.client, b"more")
    faulty.stream.sweep(before + 49.999, 49.999)
    assert not faulty.stream.closed
    faulty.stream.sweep(after + 50, 0)
    assert faulty.stream.closed
    assert faulty.site.listener.closed == {"too_long": 1}
    assert faulty.told == []


def test_linger_timeout_is_not_waited_for_if_the_peer_closes(
    watched: Callable[..., Watched],
) -> None:
    faulty = watched(linger_timeout=1e9)
    faulty.send(b"x" * 41)
    assert faulty.site.read(faulty.client) == b""
    faulty.client.close()
    faulty.site.until(lambda: faulty.stream.closed)


def test_a_sweep_is_about_a_second(twin: Any) -> None:
    """What all of these are late at most: a daemon finds them by itself."""
    with (
        serving("--idle-timeout", "0.01", backend=twin.name) as daemon,
        daemon.connect() as sock,
    ):
        assert sock.recv(1) == b""
        daemon.wait_line("closed after 0.01 s (idle_timeout)")


# -- send_buffer


@pytest.mark.parametrize("limit", [8_192, 100_000])
def test_send_buffer(limit: int, twin: Any) -> None:
    """The kernel holds no more of a client that does not read (but for a segment)."""
    with (
        running(prefix="x" * 100, send_buffer=limit, backend=twin.name) as server,
        socket.socket() as sock,
    ):
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(server.tcp_address)
        sock.settimeout(0.2)
        with suppress(TimeoutError):
            while True:
                sock.send(b"\n" * 65_536)
        held = server.counters["bytes_out"] - waiting(sock)
        assert limit / 2 < held <= limit + 65_536


def waiting(sock: socket.socket) -> int:
    """Bytes that it could read (FIONREAD, tcp(7))."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0]


def test_send_buffer_is_256_kib() -> None:
    assert Settings().send_buffer == limits.SEND_BUFFER_LIMIT == 262_144
    with Server("127.0.0.1:0") as server:
        option = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
        found = [
            one.sock.getsockopt(socket.IPPROTO_TCP, option)
            for one in server._bound
            if one.protocol == "tcp"
        ]
        assert found == [262_144]


# -- buffers of the loop


def test_receive_buffer_and_send_buffer(twin: Any) -> None:
    """A client that never reads costs at most what one `recv` took and one piece of replies."""
    assert (limits.RECEIVE_BUFFER, limits.SEND_BUFFER) == (262_144, 262_144)
    with ExitStack() as stack:
        site = Site(twin, receive=1000, send=256, parts=(b"x" * 20,))
        stack.push(site.stack)
        client, stream = site.accepted()
        while not stream.unsent:
            with suppress(BlockingIOError):
                client.send(b"\n" * 5000)
            site.selector.dispatch(0)
        before = site.listener.bytes_in
        for _ in range(20):
            site.selector.dispatch(0)
            with suppress(BlockingIOError):
                client.send(b"\n" * 5000)
        assert 0 < stream.unsent <= 256
        assert site.listener.bytes_in == before
        # Of what came, all but what one `recv` brought last has been cut.
        assert before - stream.messages <= 1000


# -- drain_timeout


def test_drain_timeout(twin: Any) -> None:
    """Replies that nobody takes are waited for so long, and no longer."""
    assert limits.DRAIN_TIMEOUT == Settings().drain_timeout == 5
    with (
        serving("--drain-timeout", "0.2", backend=twin.name) as daemon,
        daemon.connect() as sock,
    ):
        sock.settimeout(0.2)
        with suppress(TimeoutError):
            while True:
                sock.send(b"\n" * 65_536)
        begin = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begin >= 0.2
        assert "cut" in daemon.stderr


# -- backlog


def test_backlog_is_4096() -> None:
    assert Settings().backlog == limits.BACKLOG == 4096


def test_backlog(twin: Any) -> None:
    """So many wait for a full house, and one more (listen(2)); the others are not connected yet."""
    with ExitStack() as stack:
        server = stack.enter_context(
            running(prefix="", max_connections=1, backlog=2, backend=twin.name)
        )
        first = stack.enter_context(connected(server))
        assert answered(first)
        others = []
        for _ in range(6):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(server.tcp_address)
            others.append(sock)
        assert answered(first)
        assert [is_connected(sock) for sock in others] == [True] * 3 + [False] * 3


def is_connected(sock: socket.socket) -> bool:
    with suppress(OSError):
        return bool(sock.getpeername())
    return False


# -- descriptors


def test_descriptors_a_full_house_neither_spins_nor_dies(twin: Any) -> None:
    """Clients and datagrams are served throughout, newcomers as soon as there is room."""
    with ExitStack() as stack:
        daemon = stack.enter_context(serving("--prefix", "", backend=twin.name))
        process = daemon.process.pid
        used = len(os.listdir(f"/proc/{process}/fd"))
        resource.prlimit(process, resource.RLIMIT_NOFILE, (used + 3, used + 3))
        inside = [stack.enter_context(daemon.connect()) for _ in range(3)]
        assert all(map(answered, inside))
        outside = [stack.enter_context(daemon.connect()) for _ in range(3)]
        for sock in outside:
            sock.sendall(b"I wait\n")
        daemon.wait_line("cannot accept a connection: Too many open files")
        before, begin = busy(daemon), time.monotonic()
        udp = stack.enter_context(daemon.datagram_socket())
        turns = 0
        # Long enough for a sweep to try again, and to say nothing more of it.
        while time.monotonic() < begin + 1.5:
            assert all(map(answered, inside))
            udp.send(b"x")
            assert udp.recv(10) == b"x"
            turns += 1
            time.sleep(0.05)
        assert busy(daemon) - before < 0.75, turns
        assert not any(map(readable, outside))
        assert len([line for line in daemon.lines if "cannot accept" in line]) == 1
        assert daemon.lines == [
            "cannot accept a connection: Too many open files; new ones wait until another ends"
        ]
        for leaving, coming in zip(inside, outside, strict=True):
            leaving.close()
            assert read_exactly(coming, 7) == b"I wait\n"
            assert answered(coming)


def busy(daemon: Daemon) -> float:
    """Seconds that it has had the processor."""
    stat = Path(f"/proc/{daemon.process.pid}/stat").read_text()
    ticks = sum(map(int, stat.rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def test_descriptors_are_as_many_as_the_system_allows(twin: Any) -> None:
    """The daemon raises its own soft limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = min(hard, 70)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, open_descriptors() + 10), hard))
    try:
        daemon = Daemon(["--backend", twin.name, "tcp://127.0.0.1:0"], {})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    try:
        daemon.wait_ready(1)
        assert resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
        assert daemon.stop() == 0
    finally:
        daemon.discard()


def open_descriptors() -> int:
    return max(map(int, os.listdir("/proc/self/fd")))


def test_repeat_after(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The same trouble is told once a minute at most; another at once."""
    assert limits.REPEAT_AFTER == 60
    now = 1000.0
    monkeypatch.setattr(tcp.time, "monotonic", lambda: now)
    owner = tcp.Tcp("line", 100)
    listener: Any = SimpleNamespace(shared=SimpleNamespace(open=3, max_connections=3))
    for moment, times in ((1000.0, 1), (1001.0, 1), (1059.9, 1), (1060.0, 2), (1100.0, 2)):
        now = moment
        owner.resting(listener, None)
        assert len(caplog.records) == times
    owner.resting(listener, OSError(24, "Too many open files"))
    assert len(caplog.records) == 3
    assert caplog.records[-1].fields == {"reason": "emfile", "open": 3}  # type: ignore[attr-defined]


# -- their ranges


@pytest.mark.parametrize(
    ("setting", "lowest", "below"),
    [
        ("max_frame", 1, 0),
        ("max_connections", 1, 0),
        ("send_buffer", 1, 0),
        ("backlog", 1, 0),
        ("idle_timeout", 0, -1),
        ("frame_timeout", 0, -1),
        ("linger_timeout", 0, -1),
        ("drain_timeout", 0, -1),
    ],
)
def test_the_lowest_of_each_is_served(setting: str, lowest: int, below: int, twin: Any) -> None:
    with (
        running(prefix="", **{setting: lowest}, backend=twin.name) as server,
        connected(server) as sock,
    ):
        assert answered(sock)
        with pytest.raises(ConfigError, match=f"^{setting} must be "):
            Server("127.0.0.1:0", **{setting: below})
