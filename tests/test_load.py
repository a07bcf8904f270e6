"""`fastecho.load` against real servers: fastecho itself, and small ones that misbehave.

Times decide nothing here but lower bounds: what was held up must be seen to have been.
"""

from __future__ import annotations

import itertools
import os
import re
import resource
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import load as load_twin
from processes import OWN_HOST, PATIENCE, Daemon, abort, named, needs_ipv6, serving, until

import fastecho
from fastecho import load as loads
from fastecho.errors import ConfigError, FastechoError
from fastecho.load import Interval, Load, Plan, Result

NONE = Counter[str]()
SECOND = 1_000_000_000
QUIET = {"lost": 0, "late": 0, "duplicate": 0, "reordered": 0, "corrupt": 0}
#: A server that answers nothing is given up soon.
SOON = 0.15


@pytest.fixture(scope="module", params=["pure", "native"])
def name(request: pytest.FixtureRequest) -> str:
    """The engine's twin."""
    return load_twin(request.param).name


def measure(address: str, **options: Any) -> Result:
    """A run of so many messages."""
    plan = {"messages": 200, "duration": None, **options}
    return Load(Plan(address, **plan)).run()


def assert_right(result: Result, messages: int | None = 200) -> None:
    assert (result.first_wrong, result.closed, result.missing) == (None, NONE, 0)
    assert dict(result.datagrams) == QUIET
    assert result.right
    assert result.sent == result.received == result.latency.get_total_count()
    if messages is not None:
        assert result.sent == messages


# -- against fastecho


FRAMINGS = [
    ("line", "1-200"),
    ("delimiter:0d0a", "64"),
    ("delimiter:7c7c", "2-40"),
    ("any:7c7c,21,0a", "2-40"),
    ("raw", "1-300"),
    ("fixed:48", "48"),
    ("u8", "1-200"),
    ("u16", "2,100,2000"),
    ("u24le", "3-90:3,5000:1"),
    ("u32", "70000"),
    ("u64le", "8-100"),
    ("length:width=2,offset=100", "102-300"),
    ("length:width=3,offset=5,adjust=4", "12-70"),
    ("varint", "1-300"),
    ("netstring", "3-300"),
]


@pytest.mark.parametrize(("spec", "size"), FRAMINGS)
def test_every_framing(name: str, spec: str, size: str) -> None:
    pipeline = 1 if spec == "raw" else 9
    with fastecho.running(
        framing=spec, backend=name, max_frame=100_000 if size == "70000" else None
    ) as server:
        word = named(server.tcp_address)
        result = measure(
            word, framing=spec, size=size, pipeline=pipeline, backend=name, connections=2
        )
        assert_right(result)
        counters = server.counters
    assert (counters["messages"], counters["connections"]) == (200, 2)
    assert (counters["bytes_in"], counters["bytes_out"]) == (result.bytes_out, result.bytes_in)


@pytest.mark.parametrize(
    "template",
    [
        *(
            "",
            "[{ctime}]",
            "{seq}:",
            "{seq}",
            "{utc} ",
            "{len},{seq};",
            "{peer}/",
            "{iso}{epoch_ns}",
        ),
        *("{mono_ns} {epoch} {epoch_ms} {epoch_us} ", "é{{{host}/{pid}}}"),
    ],
)
@pytest.mark.parametrize(("protocol", "spec"), [("tcp", "line"), ("tcp", "u32"), ("udp", "line")])
def test_every_prefix(name: str, template: str, protocol: str, spec: str) -> None:
    with fastecho.running(prefix=template, framing=spec, backend=name) as server:
        address = server.tcp_address if protocol == "tcp" else server.udp_address
        result = measure(
            f"{protocol}://{named(address)}",
            prefix=template,
            framing=spec,
            backend=name,
            pipeline=8,
            size="10-99,2000",
            messages=400,
        )
        assert_right(result, 400)


def test_a_server_in_another_process_has_its_own_number(name: str) -> None:
    with serving("--prefix", "{pid}@{host}:", backend="native") as daemon:
        for udp in (False, True):
            assert_right(measure(named(daemon.tcp), udp=udp, prefix="{pid}@{host}:", backend=name))


@pytest.mark.parametrize("kind", ["unix", "unixgram"])
def test_unix_sockets(name: str, kind: str, tmp_path: Path) -> None:
    word = f"{kind}:{tmp_path}/socket"
    with fastecho.running(listen=word, backend=name):
        assert_right(measure(word, size="1-2000", connections=3, pipeline=4, backend=name))


@needs_ipv6
@pytest.mark.parametrize("udp", [False, True])
def test_ipv6(name: str, udp: bool) -> None:
    with fastecho.running(listen="[::1]:0") as server:
        assert_right(measure(f"[::1]:{server.tcp_address[1]}", udp=udp, backend=name))


@pytest.mark.parametrize(
    ("udp", "size"),
    [
        (False, "64"),
        (False, "40-80"),
        (False, "64:90,1400:10"),
        (True, "0"),
        (True, "0-9"),
        (True, "1400:1,60:9.5"),
        (True, "3000"),
    ],
)
@pytest.mark.parametrize(("connections", "pipeline"), [(1, 1), (1, 8), (5, 3)])
def test_sizes_and_connections(
    name: str, udp: bool, size: str, connections: int, pipeline: int
) -> None:
    with fastecho.running(backend=name) as server:
        result = measure(
            named(server.tcp_address),
            udp=udp,
            size=size,
            connections=connections,
            pipeline=pipeline,
            backend=name,
        )
        assert_right(result)
        assert result.bytes_in == result.bytes_out + 26 * result.received
        if size.isdigit():
            assert result.bytes_out == 200 * int(size)


def test_fifty_connections(name: str) -> None:
    with fastecho.running() as server:
        result = measure(
            named(server.tcp_address), connections=50, pipeline=20, messages=5_000, backend=name
        )
        assert_right(result, 5_000)
        assert server.counters["connections"] == 50


def test_fewer_messages_than_could_be_in_flight(name: str) -> None:
    with fastecho.running() as server:
        for count in (1, 7):
            plan = {"connections": 5, "pipeline": 30, "messages": count, "backend": name}
            assert_right(measure(named(server.tcp_address), **plan), count)
            assert_right(measure(named(server.tcp_address), udp=True, **plan), count)
        assert server.counters["messages"] == 16


@pytest.mark.parametrize("udp", [False, True])
def test_offload(name: str, udp: bool) -> None:
    with fastecho.running() as server:
        try:
            result = measure(
                named(server.udp_address), udp=True, gso=True, size="100", pipeline=60, backend=name
            )
        except FastechoError as error:
            pytest.skip(str(error))
        assert_right(result)


def test_offload_where_there_is_none(tmp_path: Path) -> None:
    word = f"unixgram:{tmp_path}/socket"
    with (
        fastecho.running(listen=word),
        pytest.raises(ConfigError, match="has no datagrams that the kernel could cut"),
    ):
        Load(Plan(word, gso=True))


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("rate", [None, 4_000.0])
def test_a_duration_with_a_warmup(name: str, udp: bool, rate: float | None) -> None:
    seen: list[Interval] = []
    with fastecho.running() as server:
        plan = Plan(
            named(server.tcp_address),
            udp=udp,
            rate=rate,
            connections=2,
            pipeline=2,
            backend=name,
            duration=0.2,
            warmup=0.05,
            pid=os.getpid(),
        )
        result = Load(plan).run(seen.append)
        answered = server.counters["messages"]
    assert (result.first_wrong, result.closed, result.missing) == (None, NONE, 0)
    assert 0 <= result.received - result.sent <= 4  # in flight when the measurement began
    assert result.sent < answered
    assert result.seconds >= 0.2
    assert result.received == result.latency.get_total_count()
    assert seen == result.intervals
    assert [each.received for each in seen] == [each.latency.get_total_count() for each in seen]
    assert result.received - 4 <= sum(each.received for each in seen) <= result.received
    assert 0 < sum(each.seconds for each in seen) <= result.seconds
    assert seen[0].start == 0
    assert result.cpu > 0
    assert result.server_cpu is not None
    assert result.server_cpu > 0
    if rate:
        assert result.lateness.get_total_count() > 0
        assert result.sent <= 4_000 * (result.seconds + SOON)


@pytest.mark.parametrize("arrivals", ["uniform", "poisson"])
@pytest.mark.parametrize("udp", [False, True])
def test_an_open_loop_takes_its_time(name: str, arrivals: str, udp: bool) -> None:
    with fastecho.running() as server:
        started = time.monotonic()
        result = measure(
            named(server.tcp_address),
            rate=1_000,
            arrivals=arrivals,
            connections=3,
            pipeline=50,
            udp=udp,
            backend=name,
        )
    assert_right(result)
    assert result.lateness.get_total_count() <= 200
    if arrivals == "uniform":
        assert time.monotonic() - started >= 0.199


@pytest.mark.parametrize("rate", [0.001, 1, 333.3, 7_777, 123_456.7, 1e9])
@pytest.mark.parametrize("arrivals", ["uniform", "poisson"])
def test_a_rate_has_no_drift(name: str, rate: float, arrivals: str) -> None:
    with fastecho.running() as server:
        load = Load(Plan(named(server.tcp_address), rate=rate, arrivals=arrivals, backend=name))
        schedule = load._schedule
        load.stop()
        load.run()
    turn, gap = loads.OFFSETS, SECOND / rate
    assert schedule.due(turn * 10) - schedule.due(0) == 10 * round(turn * gap)
    assert 10 * round(turn * gap) == pytest.approx(10 * turn * gap, rel=1e-5)
    first = [schedule.due(i) - schedule.start for i in range(turn + 2)]
    assert first == sorted(first)
    if arrivals == "uniform":
        assert all(abs(at - i * gap) <= 1 for i, at in enumerate(first[:turn]))
    else:
        gaps = [after - before for before, after in itertools.pairwise(first)]
        assert sum(gaps) / len(gaps) == pytest.approx(gap, rel=0.01, abs=1)
        if gap > 1_000:  # as many gaps above the mean as an exponential distribution has
            share = sum(each > gap for each in gaps) / len(gaps)
            assert share == pytest.approx(0.3679, abs=0.02)


def test_stop_from_another_thread(name: str) -> None:
    with fastecho.running() as server:
        for rate, udp in itertools.product((None, 1_000), (False, True)):
            plan = Plan(
                named(server.tcp_address),
                rate=rate,
                udp=udp,
                duration=None,
                messages=2**40,
                backend=name,
                connections=2,
            )
            load = Load(plan)
            before = server.counters["messages"]

            def stop(load: Load = load, before: int = before) -> None:
                until(lambda: server.counters["messages"] > before + 20, "messages")
                load.stop()

            thread = threading.Thread(target=stop)
            thread.start()
            result = load.run()
            thread.join()
            assert result.received > 0
            assert result.right


def test_stop_ends_the_wait_for_what_does_not_come(name: str) -> None:
    with misbehaving(lambda sock: read_on(sock)) as word:
        load = Load(Plan(word, duration=None, messages=5, timeout=1e6, backend=name))
        threading.Timer(0.05, load.stop).start()
        result = load.run()
        assert (result.sent, result.received, result.missing) == (1, 0, 0)


def test_a_rate_that_nobody_can_keep_up_with_can_be_stopped(name: str) -> None:
    with serving(backend="native") as daemon:
        plan = Plan(named(daemon.tcp), rate=1e9, duration=0.2, timeout=0.5, backend=name)
        assert Load(plan).run().received > 0


def test_offloads_are_for_udp(name: str) -> None:
    with fastecho.running() as server, pytest.raises(ConfigError, match="cut and join"):
        Load(Plan(named(server.tcp_address), gso=True, backend=name))


def test_connections_for_each_message(name: str) -> None:
    with fastecho.running(backend=name) as server:
        plan = Plan(
            named(server.tcp_address),
            connections=3,
            messages=60,
            duration=None,
            connect_per_message=True,
            backend=name,
        )
        assert Load(plan).run().right
        until(lambda: server.counters.get("closed.eof", 0) >= 57, "connections that have ended")
        assert 60 <= server.counters["connections"] <= 63
        assert server.counters["messages"] == 60


def test_connections_that_are_reset(name: str) -> None:
    with fastecho.running(backend=name) as server:
        plan = Plan(
            named(server.tcp_address),
            connections=3,
            messages=60,
            duration=None,
            connect_per_message=True,
            close="rst",
            backend=name,
        )
        assert Load(plan).run().right
        until(lambda: server.counters.get("closed.reset", 0) >= 57, "connections that were reset")
        assert server.counters["messages"] == 60


def test_windows_leave_nothing_in_flight(name: str) -> None:
    with fastecho.running(backend=name) as server:
        load = Load(Plan(named(server.tcp_address), connections=2, pipeline=8, backend=name))
        try:
            received = sum(load.window(0.02) for _ in range(3))
        finally:
            load.close()
        assert received > 0
        assert server.counters["messages"] == received


# -- a server that notes what came


@contextmanager
def misbehaving(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A TCP server that treats each connection so, in a thread; its address."""
    threads: list[threading.Thread] = []
    socks: list[socket.socket] = []

    def one(sock: socket.socket) -> None:
        with sock, suppress(OSError):
            serve(sock)

    def accept() -> None:
        with suppress(OSError):
            while True:
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                socks.append(sock)
                threads.append(threading.Thread(target=one, args=(sock,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield named(listener.getsockname())
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for sock in socks:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def read_on(sock: socket.socket) -> bytes:
    """Everything until the end."""
    data = b""
    while piece := sock.recv(65_536):
        data += piece
    return data


def lines(sock: socket.socket) -> Iterator[bytes]:
    """The lines that come, with their ends."""
    with sock.makefile("rb") as file:
        yield from file


def recorded(seed: int, name: str, connections: int = 1, **options: Any) -> list[bytes]:
    """What each connection sent, by what it sent."""
    streams: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        got = b""
        try:
            for line in lines(sock):
                got += line
                sock.sendall(b"<>" + line)
        finally:
            streams.append(got)

    with misbehaving(serve) as word:
        plan = {"prefix": "<>", "size": "9-60", "pipeline": 4, **options}
        assert_right(measure(word, seed=seed, backend=name, connections=connections, **plan))
    return streams


def test_a_seed_gives_the_same_messages() -> None:
    pure, native = (recorded(5, load_twin(name).name) for name in ("pure", "native"))
    assert pure == native == recorded(5, "pure", rate=5_000)
    assert pure != recorded(6, "pure")
    assert len(pure[0].splitlines()) == 200 == len(set(pure[0].splitlines()))


def test_connections_send_different_messages(name: str) -> None:
    streams = recorded(5, name, connections=3)
    every = b"".join(streams).splitlines()
    assert len(every) == len(set(every)) == 200


# -- servers that misbehave


Answers = Callable[[int, bytes], list[bytes]]


def answering(answers: Answers) -> Callable[[socket.socket], None]:
    """A server of lines that says this to the n-th."""

    def serve(sock: socket.socket) -> None:
        for n, line in enumerate(lines(sock)):
            for each in answers(n, line):
                sock.sendall(each)

    return serve


def right(line: bytes) -> bytes:
    return b"<>" + line


def with_change(n: int, line: bytes) -> list[bytes]:
    reply = right(line)
    return [reply if n != 30 else reply[:9] + bytes([reply[9] ^ 1]) + reply[10:]]


HELD: dict[int, bytes] = {}


def swapped(n: int, line: bytes) -> list[bytes]:
    if n == 30:
        HELD[n] = right(line)
        return []
    return [right(line), HELD.pop(30)] if n == 31 else [right(line)]


WRONG: dict[str, tuple[Answers, int]] = {
    "corrupts a byte": (with_change, 30),
    "drops one": (lambda n, line: [] if n == 30 else [right(line)], 30),
    "duplicates": (lambda n, line: [right(line)] * (2 if n == 30 else 1), 31),
    "reorders": (swapped, 30),
    "adds a byte": (lambda n, line: [right(line) + (b"!" if n == 30 else b"")], 31),
    "has another prefix": (lambda n, line: [(b"[]" if n == 30 else b"<>") + line], 30),
    "loses the prefix": (lambda n, line: [line if n == 30 else right(line)], 30),
    "answers with something else": (
        lambda n, line: [b"500 error\n"] if n == 30 else [right(line)],
        30,
    ),
    "cuts": (lambda n, line: [right(line)[:20] + b"\n"] if n == 30 else [right(line)], 30),
    "joins": (lambda n, line: [right(line)[:-1] if n == 30 else right(line)], 30),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_reply_is_found(name: str, how: str) -> None:
    answers, good = WRONG[how]
    with misbehaving(answering(answers)) as word:
        result = measure(word, prefix="<>", pipeline=5, backend=name)
    assert (result.wrong, result.received) == (1, good)
    assert result.missing == result.sent - good
    assert result.closed == NONE
    assert result.first_wrong is not None
    sentence, data = result.first_wrong
    assert re.fullmatch(r"(it|its|more) [^\n]+", sentence)
    assert 0 < len(data) <= 256
    assert not result.right
    assert result.latency.get_total_count() == good


@pytest.mark.parametrize("spec", ["line", "u32", "raw", "netstring", "fixed:64"])
def test_a_server_that_never_sends_a_prefix_is_wrong(name: str, spec: str) -> None:
    with fastecho.running(framing=spec, prefix="") as server:
        plan = {"framing": spec, "backend": name, "timeout": SOON, "messages": 20}
        result = measure(named(server.tcp_address), **plan)
        assert (result.received, result.missing, result.right) == (0, 1, False)
        assert result.wrong == (spec not in ("raw", "fixed:64"))  # these wait for more
        assert_right(measure(named(server.tcp_address), prefix="", **plan), 20)


def test_datagrams_that_never_have_a_prefix_are_corrupt(name: str) -> None:
    with fastecho.running(prefix="") as server:
        plan = {"udp": True, "backend": name, "timeout": SOON, "messages": 5, "pipeline": 5}
        result = measure(named(server.udp_address), **plan)
        assert (result.received, result.wrong) == (0, 5)
        assert dict(result.datagrams) == QUIET | {"corrupt": 5, "lost": 5}
        assert_right(measure(named(server.udp_address), prefix="", **plan), 5)


def test_one_wrong_connection_does_not_stop_the_others(name: str) -> None:
    first = iter([True])

    def serve(sock: socket.socket) -> None:
        bad = next(first, False)
        for line in lines(sock):
            sock.sendall(b"?\n" if bad else right(line))

    with misbehaving(serve) as word:
        # It ends as soon as the others have done: nothing is waited for on a closed connection.
        result = measure(word, prefix="<>", connections=4, timeout=1e6, backend=name)
    assert (result.wrong, result.missing, result.sent, result.received) == (1, 1, 200, 199)


@pytest.mark.parametrize(
    "options", [{"messages": 50}, {"duration": 1e6}, {"rate": 500, "messages": 9}]
)
@pytest.mark.parametrize("pipeline", [1, 8])
def test_a_server_that_answers_nothing_is_given_up(
    name: str, options: dict[str, Any], pipeline: int
) -> None:
    with misbehaving(lambda sock: read_on(sock)) as word:
        result = measure(
            word, **{"messages": None, **options}, pipeline=pipeline, timeout=SOON, backend=name
        )
    assert result.received == 0
    assert result.missing == result.sent == pipeline
    assert not result.right
    assert result.seconds >= SOON * 0.99
    assert len(result.intervals) < 9


def test_a_reply_that_never_comes_is_missing(name: str) -> None:
    with misbehaving(answering(lambda n, line: [right(line)] if n < 30 else [])) as word:
        result = measure(word, prefix="<>", timeout=SOON, backend=name, connections=2)
    assert (result.received, result.missing, result.sent) == (60, 2, 62)
    assert (result.wrong, result.closed, result.right) == (0, NONE, False)


def test_a_server_that_never_stops(name: str) -> None:
    def serve(sock: socket.socket) -> None:
        sock.recv(1)
        while True:
            sock.sendall(b"<>" + b"x" * 65_000)

    with misbehaving(serve) as word:
        result = measure(word, prefix="<>", backend=name, timeout=1e6)
    assert (result.wrong, result.received, result.missing) == (1, 0, 1)
    assert result.bytes_in < 5_000_000


def test_a_server_that_speaks_first(name: str) -> None:
    def serve(sock: socket.socket) -> None:
        sock.sendall(b"220 welcome\r\n")
        read_on(sock)

    with misbehaving(serve) as word:
        result = measure(word, backend=name, timeout=1e6)
    assert (result.wrong, result.received) == (1, 0)
    assert result.first_wrong is not None
    assert result.first_wrong[1].startswith(b"220 ")


@pytest.mark.parametrize("end", [socket.socket.close, abort])
def test_a_server_that_ends_in_the_middle(name: str, end: Callable[[socket.socket], None]) -> None:
    def serve(sock: socket.socket) -> None:
        for _n in range(30):
            got = b""
            while not got.endswith(b"\n"):
                got += sock.recv(64 - len(got))
            sock.sendall(right(got))
        if end is abort:
            sock.recv(64)
            abort(sock)
        else:
            sock.shutdown(socket.SHUT_WR)
            read_on(sock)

    with misbehaving(serve) as word:
        result = measure(word, prefix="<>", backend=name, timeout=1e6)
    assert result.closed == Counter({"reset" if end is abort else "eof": 1})
    assert (result.received, result.missing, result.wrong) == (30, 1, 0)
    assert not result.right


def test_a_daemon_that_is_killed_leaves_what_there_was(name: str) -> None:
    daemon = Daemon(["--backend", "native", "127.0.0.1:0"], {})
    try:
        daemon.wait_ready(2)
        pid = daemon.process.pid
        load = Load(
            Plan(
                named(daemon.tcp),
                duration=None,
                messages=2**40,
                pid=pid,
                connections=3,
                backend=name,
            )
        )

        def kill(_: Interval) -> None:
            if daemon.process.poll() is None:
                daemon.process.kill()
                daemon.process.wait()

        result = load.run(kill)
        assert sum(result.closed.values()) == 3
        assert set(result.closed) <= {"eof", "reset"}
        assert result.received > 0
        assert result.wrong == 0
        assert result.server_cpu is None  # it cannot be asked any more
        with (
            fastecho.running() as server,
            pytest.raises(FastechoError, match=f"what process {pid} costs"),
        ):
            Load(Plan(named(server.tcp_address), pid=pid, backend=name))
    finally:
        daemon.discard()


@pytest.mark.parametrize(
    "word", ["{}:1", "tcp://{}:1", "unix:/nonexistent/socket", "unixgram:/nonexistent/socket"]
)
def test_nobody_there(name: str, word: str) -> None:
    with pytest.raises(FastechoError, match=r"cannot reach \S+: .*\(error \d+\)"):
        Load(Plan(word.format(OWN_HOST), backend=name))


def test_more_connections_than_descriptors(name: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with fastecho.running() as server:
        held = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (held + 10, hard))
        try:
            with pytest.raises(
                FastechoError, match=r"cannot open more than \d+ connections .*24\)"
            ):
                Load(Plan(named(server.udp_address), udp=True, connections=50, backend=name))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_nobody_there_on_udp(name: str) -> None:
    result = measure(f"{OWN_HOST}:9", udp=True, backend=name, connections=2, timeout=1e6)
    assert result.closed == Counter(econnrefused=2)
    assert (result.sent, result.received, result.datagrams["lost"]) == (2, 0, 2)
    assert not result.right


# -- datagrams


@contextmanager
def datagrams(answers: Callable[[int, bytes], list[bytes]]) -> Iterator[str]:
    """A UDP server that answers the n-th datagram so; its address."""

    def serve() -> None:
        n = 0
        while True:
            data, peer = sock.recvfrom(65_536)
            if not data:
                return
            for reply in answers(n, data):
                sock.sendto(reply, peer)
            n += 1

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield named(sock.getsockname())
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.sendto(b"", sock.getsockname())
            thread.join()


def dropping(n: int, data: bytes) -> list[bytes]:
    return [] if n % 10 == 3 else [right(data)]


def doubling(n: int, data: bytes) -> list[bytes]:
    return [right(data)] * (2 if n % 10 == 3 else 1)


def damaging(n: int, data: bytes) -> list[bytes]:
    return [right(data), right(data[:-1] + b"\0")] if n % 10 == 3 else [right(data)]


def cutting(n: int, data: bytes) -> list[bytes]:
    return [right(data[:20]), right(data)] if n % 10 == 3 else [right(data)]


class Delaying:
    """Answers the fourth of ten after the sixth."""

    def __init__(self) -> None:
        self.held: list[bytes] = []

    def __call__(self, n: int, data: bytes) -> list[bytes]:
        if n % 10 == 3:
            self.held.append(right(data))
            return []
        return [right(data), *([self.held.pop()] if n % 10 == 5 else [])]


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        (lambda n, data: [right(data)], {}),
        (dropping, {"lost": 20}),
        (doubling, {"duplicate": 20}),
        (damaging, {"corrupt": 20}),
        (cutting, {"corrupt": 20}),
        (Delaying, {"reordered": 20}),
    ],
    ids=["right", "drops", "doubles", "damages", "cuts", "delays"],
)
def test_datagrams_are_counted_apart(name: str, answers: Any, wanted: dict[str, int]) -> None:
    with datagrams(answers() if answers is Delaying else answers) as word:
        timeout = SOON if "lost" in wanted else PATIENCE
        result = measure(
            word, udp=True, prefix="<>", pipeline=40, timeout=timeout, backend=name, size="30"
        )
    assert dict(result.datagrams) == QUIET | wanted
    assert result.received == 200 - wanted.get("lost", 0) == result.latency.get_total_count()
    assert (result.sent, result.missing, result.closed) == (200, 0, NONE)
    assert result.wrong == wanted.get("corrupt", 0)
    assert result.right == (not wanted)


def test_late_datagrams(name: str) -> None:
    held: list[bytes] = []

    def answers(n: int, data: bytes) -> list[bytes]:
        if n in (3, 4):  # their replies come once they were given up, and so the last was sent
            held.append(right(data))
            return []
        return [right(data), *held, held[0]] if n == 5 else [right(data)]

    with datagrams(answers) as word:
        result = measure(word, udp=True, prefix="<>", timeout=SOON, backend=name, messages=20)
    assert dict(result.datagrams) == QUIET | {"lost": 2, "late": 2, "duplicate": 1}
    assert (result.received, result.sent) == (18, 20)


def test_datagrams_that_nobody_answers_are_lost(name: str) -> None:
    with datagrams(lambda n, data: []) as word:
        result = measure(
            word, udp=True, pipeline=7, timeout=SOON, backend=name, messages=None, duration=0.1
        )
    assert result.datagrams["lost"] == result.sent >= 7
    assert result.received == 0
    assert not result.right


# -- a stall


STALL = 0.2


@contextmanager
def stalled(pid: int) -> Iterator[None]:
    """It does nothing for a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(STALL)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("rate", [None, 1_000])
def test_a_stall_is_seen(name: str, udp: bool, rate: int | None) -> None:
    with serving(backend="native") as daemon:
        load = Load(
            Plan(
                named(daemon.tcp),
                duration=None,
                messages=2**40,
                udp=udp,
                rate=rate,
                backend=name,
                connections=2,
            )
        )
        tally = load._tally

        def stall() -> None:
            try:
                until(lambda: tally.received > 50, "replies")
                with stalled(daemon.process.pid):
                    before = tally.received
                until(lambda: tally.received > before + 300, "replies after it")
            finally:
                load.stop()

        thread = threading.Thread(target=stall)
        thread.start()
        result = load.run()
        thread.join()
    assert (result.first_wrong, result.closed, dict(result.datagrams)) == (None, NONE, QUIET)
    assert result.received > 350

    def slower(seconds: float) -> int:
        return sum(
            item.count_at_value_iterated_to
            for item in result.latency.get_recorded_iterator()
            if item.value_iterated_to >= seconds * SECOND
        )

    assert result.latency.get_max_value() >= 0.9 * STALL * SECOND
    if rate is None:  # two questions were held up, and no more were asked: a stall hardly shows
        assert slower(0.9 * STALL) <= 2
    else:  # each message that was due in that time was late
        assert slower(0.1 * STALL) >= 0.8 * STALL * rate
        assert slower(0.5 * STALL) >= 0.4 * STALL * rate
        assert result.latency.get_value_at_percentile(90) >= 0.1 * STALL * SECOND


# -- what is said of it


def result_of(plan: Plan, **changes: Any) -> Result:
    result = Result(plan)
    for key, value in changes.items():
        setattr(result, key, value)
    return result


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        ({}, True),
        ({"datagrams": Counter(lost=0, late=0)}, True),
        ({"wrong": 1}, False),
        ({"missing": 1}, False),
        ({"closed": Counter(eof=1)}, False),
        *(({"datagrams": Counter({each: 1})}, False) for each in QUIET),
    ],
)
def test_right(changes: dict[str, Any], right: bool) -> None:
    assert result_of(Plan(), **changes).right is right


@pytest.mark.parametrize(
    ("cpu", "server", "said"),
    [
        (0.5, None, ""),
        (0.95, None, "the generator was busy 95% of the time"),
        (0.95, 0.97, ""),
        (0.95, 0.6, "the generator was busy 95% of the time, the server 60%"),
        (0.5, 0.1, ""),
    ],
)
def test_a_busy_generator_says_so(cpu: float, server: float | None, said: str) -> None:
    cost = None if server is None else server * 2
    result = result_of(Plan(), seconds=2.0, cpu=cpu * 2, server_cpu=cost)
    assert result.bound == said
    assert result.busy == pytest.approx(cpu)
    assert result.server_busy == (None if server is None else pytest.approx(server))


def test_a_late_generator_says_so() -> None:
    for late, said in (
        (900, ""),
        (50_000, "one message in a hundred was sent 50 us late or later"),
    ):
        result = result_of(Plan(rate=5.0), seconds=1.0, received=100)
        for _ in range(100):
            result.latency.record_value(100_000)
            result.lateness.record_value(late)
        assert result.bound == said
        result.plan = Plan()
        assert result.bound == ""


def test_nothing_is_nothing() -> None:
    result = Result(Plan(rate=5.0))
    assert (result.busy, result.server_busy, result.bound, result.right) == (0.0, None, "", True)
