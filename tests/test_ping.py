"""Ping, against servers that behave and servers that do not: what is counted, what is computed."""

from __future__ import annotations

import itertools
import json
import math
import re
import signal
import socket
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import FASTECHO, OWN_HOST, PATIENCE, Daemon, abort, named, run, until

import fastecho
from fastecho import addresses, dial, limits, ping
from fastecho.errors import ConfigError, FastechoError
from fastecho.ping import Messages, Ping, Plan, Reply, Result

DOCS = Path(__file__).parents[1] / "docs"
#: Seconds; replies of a server in this process take less, whatever else the machine does.
LONG = PATIENCE
SHORT = 0.3
OFTEN = 0.001

Script = Callable[[int, bytes], Sequence[bytes]]


@contextmanager
def datagrams(script: Script) -> Iterator[str]:
    """A UDP server that answers the n-th datagram as it is told; its address."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def serve() -> None:
            for number in range(1, 2**31):
                data, peer = sock.recvfrom(limits.MAX_DATAGRAM)
                if not data:
                    return
                for reply in script(number, data):
                    sock.sendto(reply, peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield "udp://" + named(sock.getsockname())
        finally:
            with socket.socket(type=socket.SOCK_DGRAM) as ender:
                ender.sendto(b"", sock.getsockname())
            thread.join()


@contextmanager
def stream(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A TCP server that serves one connection; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with listener.accept()[0] as sock:
                serve(sock)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield "tcp://" + named(listener.getsockname())
        finally:
            thread.join()


def lines(sock: socket.socket) -> Iterator[bytes]:
    with sock.makefile("rb") as file:
        yield from file


class Told(list[Any]):
    """What a run tells; a string in it ends the run once that is told."""

    def __init__(self, address: str, until: str = "", **options: Any) -> None:
        super().__init__()
        self.until = until
        options = {"interval": OFTEN, "timeout": LONG, "prefix": ""} | options
        self.ping = Ping(Plan(address, **options))

    def run(self) -> Result:
        return self.ping.run(self.tell)

    def tell(self, what: Reply | str) -> None:
        self.append(what)
        if self.until and self.until in str(what):
            self.ping.stop()

    @property
    def replies(self) -> list[Reply]:
        return [each for each in self if isinstance(each, Reply)]

    @property
    def sentences(self) -> list[str]:
        return [each for each in self if isinstance(each, str)]


def counts(result: Result) -> dict[str, int]:
    """All that is not 0."""
    names = ("transmitted", "received", "late", "lost", "pending", "duplicates", "garbage")
    names += ("unsent",)
    return {name: getattr(result, name) for name in names if getattr(result, name)}


# -- servers that behave


@pytest.mark.parametrize(
    "spec",
    [
        "line",
        "raw",
        "delimiter:30",  # a digit
        "delimiter:0d0a",
        "any:0a,66",  # LF, or a digit of ours
        "fixed:40",
        "fixed:8",
        "u8",
        "u32le",
        "length:width=4,offset=2,adjust=-6",
        "varint",
        "netstring",
    ],
)
@pytest.mark.parametrize("prefix", ["[{ctime}]", "{utc} "])
def test_every_framing(spec: str, prefix: str) -> None:
    prefix = "" if spec in ("delimiter:30", "any:0a,66") else prefix
    with fastecho.running(framing=spec, prefix=prefix) as server:
        options = {"framing": spec, "prefix": server.settings.prefix}
        told = Told(server.addresses[0], count=20, **options)
        result = told.run()
    assert counts(result) == {"transmitted": 20, "received": 20}
    assert [each.number for each in told.replies] == list(range(1, 21))
    assert told.sentences == []
    assert result.over == ""
    assert (result.clocks is not None) == ("{utc}" in server.settings.prefix)


@pytest.mark.parametrize("word", ["tcp://[::1]:0", "udp://[::1]:0", "unix:a", "unixgram:b"])
def test_every_protocol(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        server = fastecho.Server(word, prefix="")
    except FastechoError:
        pytest.skip("this machine has no IPv6 loopback")
    server.close()
    with fastecho.running(listen=word, prefix="") as server:
        told = Told(server.addresses[0], count=5)
        result = told.run()
    assert counts(result) == {"transmitted": 5, "received": 5}
    assert result.target == server.addresses[0]
    assert [each.size for each in told.replies] == [ping.SIZE] * 5


def test_a_host_and_port_is_udp_if_asked_for() -> None:
    with fastecho.running() as server:
        result = Told(named(server.udp_address), udp=True, count=1).run()
        assert server.counters["connections"] == 0
    assert result.target.startswith("udp://")
    assert result.received == 1


def test_a_framing_is_nothing_to_datagrams() -> None:
    with fastecho.running(prefix="{seq}") as server:
        told = Told(server.addresses[1], count=2, framing="fixed:9", prefix="{seq}")
        assert counts(told.run()) == {"transmitted": 2, "received": 2}


def test_no_interval_is_too_long() -> None:
    with fastecho.running() as server:
        told = Told(server.addresses[0], until="number=1", interval=1e9, timeout=1e9)
        assert told.run().received == 1


@pytest.mark.parametrize("size", [8, 100, 65_536])
def test_a_message_has_the_size_that_was_asked_for(size: int) -> None:
    with fastecho.running(prefix="") as server:
        told = Told(server.addresses[0], count=3, size=size)
        assert told.run().received == 3
        assert server.counters["bytes_in"] == 3 * (size + 1)
    assert [each.size for each in told.replies] == [size] * 3


def test_the_stamp_is_what_stands_before_the_message() -> None:
    with fastecho.running(prefix="<{seq}>") as server:
        told = Told(server.addresses[0], count=3)
        told.run()
    assert [each.stamp for each in told.replies] == [b"<1>", b"<2>", b"<3>"]


def test_a_long_prefix_makes_messages_long_enough_to_be_answered() -> None:
    with fastecho.running(prefix="x" * 300) as server:
        result = Told(server.addresses[1], count=1, prefix="x" * 300).run()
    assert result.size == 300 - limits.IPV4_OVERHEAD


def test_a_size_that_a_guard_would_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with fastecho.running(prefix="x" * 300) as server:
        short = Told(server.addresses[1], count=1, size=8, prefix="x" * 300).ping
        assert short.too_short == ""  # nobody forges a loopback address
        monkeypatch.setattr(addresses, "is_loopback", lambda _: False)
        assert "--size 272" in short.too_short
        short.stop()
        short.run()


def test_a_name_with_an_address_that_refuses_is_reached_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with fastecho.running(prefix="") as server:
        found = [(int(socket.AF_INET), (OWN_HOST, 1)), (int(socket.AF_INET), server.udp_address)]
        monkeypatch.setattr(dial.Target, "_addresses", lambda _: found)
        told = Told(server.addresses[1], count=3)
        result = told.run()
    assert counts(result) == {"transmitted": 3, "received": 3}
    assert told.sentences == []


# -- servers that do not


def test_what_is_dropped_is_lost() -> None:
    with datagrams(lambda number, data: [data] if number % 2 else []) as address:
        told = Told(address, count=4, timeout=2 * SHORT)
        result = told.run()
    assert counts(result) == {"transmitted": 4, "received": 2, "lost": 2}
    assert result.loss == 0.5
    assert told.sentences == ["seq=2 no reply within 0.6 s", "seq=4 no reply within 0.6 s"]


def test_what_comes_twice_is_a_duplicate() -> None:
    with datagrams(lambda number, data: [data] * (3 if number == 1 else 1)) as address:
        told = Told(address, count=5)
        result = told.run()
    assert counts(result) == {"transmitted": 5, "received": 5, "duplicates": 2}
    assert [each.kind for each in told.replies[:3]] == ["", "duplicate", "duplicate"]
    assert len(result.round_trips) == 5


def test_what_comes_after_its_timeout_is_late() -> None:
    held: list[bytes] = []

    def script(number: int, data: bytes) -> list[bytes]:
        if number == 1:
            held.append(data)
            return []
        if held and any("seq=1 no reply" in each for each in told.sentences):
            return [data, held.pop()]
        return [data]

    with datagrams(script) as address:
        told = Told(address, until="late", timeout=SHORT, interval=0.01)
        result = told.run()
    (late,) = [each for each in told.replies if each.kind]
    assert (late.number, late.kind, result.late) == (1, "late", 1)
    assert late.round_trip >= SHORT * 1e9
    assert late.round_trip not in result.round_trips
    assert result.received + result.late + result.lost + result.pending == result.transmitted


def test_a_reply_held_back_stops_no_message() -> None:
    """The fifth message is what the first reply waits for."""
    held: list[bytes] = []

    def script(number: int, data: bytes) -> list[bytes]:
        held.append(data)
        return held[::-1] if number == 5 else []

    with datagrams(script) as address:
        told = Told(address, count=5)
        result = told.run()
    assert counts(result) == {"transmitted": 5, "received": 5}
    assert [each.number for each in told.replies] == [5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    "rubbish",
    [
        lambda data: b"\x1b[31mred",
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"99999999" + data[8:],  # a message that was never sent
        lambda data: b"00000000" + data[8:],
        lambda data: data[:8] + b"x" * (len(data) - 8),  # of another run
    ],
)
def test_what_answers_nothing_is_garbage(rubbish: Callable[[bytes], bytes]) -> None:
    with datagrams(lambda number, data: [rubbish(data), data]) as address:
        told = Told(address, count=3)
        result = told.run()
    assert counts(result) == {"transmitted": 3, "received": 3, "garbage": 3}
    assert all("bytes that answer nothing: " in each for each in told.sentences)
    assert all(each.isprintable() for each in told.sentences)


def test_a_garbage_line_is_counted_and_the_next_is_read() -> None:
    def serve(sock: socket.socket) -> None:
        for line in lines(sock):
            sock.sendall(b"what?\n" + line)

    with stream(serve) as address:
        told = Told(address, count=2)
        result = told.run()
    assert counts(result) == {"transmitted": 2, "received": 2, "garbage": 2}
    assert told.sentences == ["5 bytes that answer nothing: 'what?'"] * 2


def test_what_breaks_the_framing_ends_the_run() -> None:
    def serve(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        sock.recv(1000)

    with stream(serve) as address:
        result = Told(address, framing="netstring", interval=PATIENCE).run()
    assert counts(result) == {"transmitted": 1, "lost": 1, "garbage": 1}
    assert result.over.startswith(f"{address}: what came is no reply: frame at offset 0: ")


def test_raw_garbage_is_counted_when_nothing_else_can_become_of_it() -> None:
    def serve(sock: socket.socket) -> None:
        sock.sendall(b"welcome" if sock.recv(1000) else b"")
        while data := sock.recv(1000):
            sock.sendall(data)

    with stream(serve) as address:
        told = Told(address, framing="raw", count=1, timeout=SHORT)
        result = told.run()
    assert counts(result) == {"transmitted": 1, "lost": 1, "garbage": 1}
    assert told.sentences[0] == "7 bytes that answer nothing: 'welcome'"


def test_more_raw_garbage_than_a_prefix_is_not_kept() -> None:
    def serve(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(bytes(limits.MAX_PREFIX + 2 * ping.SIZE))
        sock.recv(1000)

    with stream(serve) as address:
        told = Told(address, "answer nothing", framing="raw", interval=PATIENCE)
        assert counts(told.run())["garbage"] == 1


@pytest.mark.parametrize(
    ("close", "words"),
    [
        (socket.socket.close, "the server has closed the connection"),
        (abort, "connection reset by peer (error 104)"),
    ],
)
def test_a_server_that_goes_ends_the_run_with_what_there_is(
    close: Callable[[socket.socket], None], words: str
) -> None:
    def serve(sock: socket.socket) -> None:
        for number, line in enumerate(lines(sock), 1):
            if number == 3:
                break
            sock.sendall(line)
        close(sock)

    with stream(serve) as address:
        # One at a time: what is under way when it goes depends on the moment.
        told = Told(address, interval=0.05)
        result = told.run()
    assert result.received == 2
    assert result.over == f"{address}: {words}" or "broken pipe" in result.over
    assert result.lost == result.transmitted - 2


def test_a_server_that_does_not_read_is_not_sent_more() -> None:
    over = threading.Event()
    with stream(lambda sock: over.wait(PATIENCE) and None) as address:
        told = Told(address, until="not sent", size=65_536)
        result = told.run()
        over.set()
    assert result.unsent == 1
    assert told.sentences[-1].endswith("not sent: the server has not read what was sent before")
    assert result.pending == result.transmitted


def test_a_datagram_that_cannot_be_sent_is_told() -> None:
    with datagrams(lambda number, data: [data]) as address:
        told = Told(address, count=2, timeout=1)
        send = told.ping._link.send
        broken = iter([OSError(101, "?")])
        told.ping._link.send = lambda message: (
            [  # type: ignore[method-assign]
                _raise(each) for each in broken
            ]
            or send(message)
        )
        result = told.run()
    assert counts(result) == {"transmitted": 1, "received": 1, "unsent": 1}
    assert told.sentences == ["seq=1 not sent: network is unreachable (error 101)"]


def _raise(error: Exception) -> None:
    raise error


def test_a_datagram_that_is_refused_is_lost_at_once() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind((OWN_HOST, 0))
        address = named(sock.getsockname())
    told = Told(address, udp=True, count=3)
    result = told.run()
    assert counts(result) == {"transmitted": 3, "lost": 3}
    assert told.sentences == [f"seq={n} connection refused (error 111)" for n in (1, 2, 3)]


def test_stopping_tells_what_was_waited_for() -> None:
    with datagrams(lambda number, data: [data] if number < 3 else []) as address:
        told = Told(address, interval=0.01, until="number=2")
        result = told.run()
        assert (result.received, result.lost) == (2, 0)
        assert result.loss == 0
    assert result.over == ""


def test_stopping_wakes_a_run_that_waits() -> None:
    with datagrams(lambda number, data: []) as address:
        told = Told(address, interval=PATIENCE)
        thread = threading.Thread(target=told.run)
        thread.start()
        until(lambda: told.ping.result.transmitted, "a message")
        told.ping.stop()
        thread.join()
    assert counts(told.ping.result) == {"transmitted": 1, "pending": 1}
    assert told.ping.result.loss is None
    assert not told.ping.result.answered


# -- the plan


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 0}, "count must be a whole number from 1"),
        ({"count": 16**8}, "count must be"),
        ({"interval": 0.0001}, "interval must be at least 0.001 seconds, not 0.0001"),
        ({"interval": math.nan}, "interval must be seconds"),
        ({"timeout": 0.0}, "timeout must be at least"),
        ({"size": 7}, "size must be a whole number from 8 to 65,536, not 7"),
        ({"size": 65_537}, "size must be"),
        ({"size": 41, "framing": "fixed:40"}, "from 40 to 40"),
        ({"framing": "fixed:7"}, "messages need 8 bytes for their numbers, and have 7"),
        ({"framing": "u8", "prefix": "x" * 250}, "messages need 8 bytes"),
        ({"framing": "fixed:40", "prefix": "{seq}"}, "all prefixes have one width"),
        ({"framing": "delimiter:" + bytes(range(0x20, 0x74)).hex()}, "too few letters"),
        ({"size": 65_508, "udp": True}, "from 8 to 65,507"),
        ({"prefix": "{time}"}, "has no token {time}"),
        ({"framing": "lines"}, "unknown framing"),
    ],
)
def test_what_makes_no_sense_is_said(options: dict[str, Any], words: str) -> None:
    with fastecho.running() as server, pytest.raises(ConfigError, match=re.escape(words)):
        Told(named(server.tcp_address), **options)


# -- the numbers in messages


@given(
    size=st.integers(8, 200),
    number=st.integers(1, 16**8 - 1),
    forbidden=st.binary(max_size=12),
    prefix=st.binary(max_size=40),
)
def test_a_reply_is_known_by_its_number(
    size: int, number: int, forbidden: bytes, prefix: bytes
) -> None:
    messages = Messages(size, forbidden)
    message = messages.message(number)
    assert len(message) == size
    assert not set(message) & set(forbidden)
    assert messages.number(prefix + message) == number


@given(st.binary(max_size=100))
def test_what_is_no_reply_has_no_number(data: bytes) -> None:
    assert Messages(64).number(data) is None


# -- statistics

TRIPS = st.lists(st.integers(0, 10**12), min_size=1, max_size=60)


@given(TRIPS)
def test_the_summary_is_that_of_textbooks(trips: list[int]) -> None:
    told = ping.summary(array("q", trips))
    assert told is not None
    mean = Fraction(sum(trips), len(trips))
    variance = sum((each - mean) ** 2 for each in trips) / len(trips)
    assert told["mean"] == pytest.approx(float(mean))
    assert told["stddev"] == pytest.approx(math.sqrt(variance), abs=1e-3)
    assert (told["min"], told["max"]) == (min(trips), max(trips))


@given(TRIPS, st.integers(1, 100))
def test_a_percentile_is_the_least_that_so_many_do_not_exceed(
    trips: list[int], percent: int
) -> None:
    def share(value: int) -> Fraction:
        return Fraction(sum(each <= value for each in trips), len(trips))

    found = ping.percentile(sorted(trips), percent)
    assert share(found) >= Fraction(percent, 100)
    assert all(share(each) < Fraction(percent, 100) for each in trips if each < found)


@given(TRIPS)
def test_the_jitter_is_that_of_rfc_3550(trips: list[int]) -> None:
    """As in the RFC: J(i) = J(i-1) + (|D(i-1,i)| - J(i-1)) / 16, unrolled."""
    n = len(trips) - 1
    differences = [abs(b - a) for a, b in itertools.pairwise(trips)]
    weights = [Fraction(1, 16) * Fraction(15, 16) ** (n - 1 - i) for i in range(n)]
    wanted = sum((w * d for w, d in zip(weights, differences, strict=True)), Fraction())
    assert ping.jitter(trips) == pytest.approx(float(wanted))


def test_no_reply_has_no_summary() -> None:
    assert ping.summary([]) is None


# -- clocks


@contextmanager
def shifted(token: str, clock: Callable[[], int]) -> Iterator[tuple[str, str]]:
    """A UDP server whose clock is this: its address, its template."""
    template = f"{{{token}}} "
    echo = fastecho.Echo("raw", template)
    with datagrams(lambda number, data: [echo.feed(data, now_ns=clock())]) as address:
        yield address, template


@pytest.mark.parametrize("token", ping.clocks.RESOLUTIONS)
@pytest.mark.parametrize("shift", [-3_600 * 10**9, 0, 86_400 * 10**9 + 1])
def test_the_offset_is_the_servers(token: str, shift: int) -> None:
    with shifted(token, lambda: time.time_ns() + shift) as (address, template):
        result = Told(address, count=10, prefix=template).run()
    compared = result.clocks
    assert compared is not None
    assert compared.samples == 10
    assert abs(compared.offset - shift) <= compared.error
    both = compared.there.mean + compared.back.mean
    assert both == pytest.approx(sum(result.round_trips) / 10)


def test_a_clock_that_runs_twice_as_fast_drifts() -> None:
    start = time.time_ns()
    with shifted("epoch_ns", lambda: 2 * time.time_ns() - start) as (address, template):
        result = Told(address, count=160, interval=0.005, prefix=template).run()
    assert result.clocks is not None
    assert result.clocks.drift is not None
    assert result.clocks.drift.ppm > 0


def test_a_clock_that_is_not_shown_is_not_compared() -> None:
    with fastecho.running() as server:
        result = Told(server.addresses[0], count=2, prefix="{utc} ").run()
        assert result.samples == []
        assert result.clocks is None
        assert Told(server.addresses[0], count=2, prefix="[{ctime}]").run().clocks is None


# -- the command


def command(*words: str, **options: Any) -> tuple[int, list[str], str]:
    """Status, lines on standard output, all on standard error."""
    done = run(*FASTECHO, "ping", *words, **options)
    assert "Traceback" not in done.stderr.decode()
    return done.returncode, done.stdout.decode().splitlines(), done.stderr.decode()


@pytest.fixture(scope="module")
def server() -> Iterator[fastecho.Server]:
    with fastecho.running(prefix="{utc} ") as server:
        yield server


@pytest.mark.parametrize("udp", [[], ["--udp"]])
def test_what_is_shown(server: fastecho.Server, udp: list[str]) -> None:
    address = named(server.tcp_address)
    status, shown, said = command(
        address, *udp, "--prefix", "{utc} ", "--count", "2", "--interval", "0.01"
    )
    scheme, how = ("udp", "") if udp else ("tcp", r" \(line\)")
    number, ms = r"\d+\.\d{3}", r"\d+\.\d{3} ms"
    wanted = [
        rf"PING {scheme}://{address}{how}: 64 bytes every 0.01 s",
        rf"95 bytes: seq=1 time={ms} stamp=\d{{4}}-\S+\.\d{{9}}Z",
        rf"95 bytes: seq=2 time={ms} stamp=\d{{4}}-\S+\.\d{{9}}Z",
        "",
        rf"--- {scheme}://{address} ping statistics ---",
        rf"2 transmitted, 2 received, 0 lost \(0% loss\), {number} s",
        rf"round trip     min/avg/max/stddev = {number}/{number}/{number}/{ms}",
        rf"               p50/p90/p95/p99 = {number}/{number}/{number}/{ms}",
        rf"jitter         {ms} \(RFC 3550\)",
        "assuming that the way there takes as long as the way back:",
        rf"clock offset   [+-]{ms}: the server is (ahead of|behind) us; off by {ms} at most",
        rf"one way there  min/avg/max = {number}/{number}/{ms}",
        rf"one way back   min/avg/max = {number}/{number}/{ms}",
        r"clock drift    too short a run to tell \(2 stamps\)",
    ]
    shown = [line for line in shown if "this machine was busy" not in line]
    assert (status, said) == (0, "")
    for line, pattern in zip(shown, wanted, strict=True):
        assert re.fullmatch(pattern, line), line
        assert len(line) <= 80


def test_what_a_peer_sends_is_escaped() -> None:
    with datagrams(lambda number, data: [b"\x1b[2J\xff" + data]) as address:
        status, shown, said = command(address, "--count", "1")
    assert (status, said) == (0, "")
    assert shown[1].endswith(r"ms stamp=\x1b[2J\xff")


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_summary(answers: bool, number: signal.Signals) -> None:
    seen: list[int] = []

    def script(which: int, data: bytes) -> list[bytes]:
        seen.append(which)
        return [data] if answers else []

    with datagrams(script) as address:
        daemon = Daemon(["ping", address, "--interval", "0.05"], {})
        try:
            until(lambda: len(seen) > 2 and (not answers or "seq=2" in daemon.stdout), "replies")
            status = daemon.stop(number)
            shown, said = daemon.stdout, daemon.stderr
        finally:
            daemon.discard()
    assert (status, said) == (0 if answers else 1, "")
    assert f"--- {address} ping statistics ---" in shown
    assert ("round trip" in shown) == answers
    assert answers or "not waited for" in shown


def test_nobody_there_is_status_3_and_one_sentence() -> None:
    with socket.socket() as sock:
        sock.bind((OWN_HOST, 0))
        address = named(sock.getsockname())
    status, shown, said = command(address)
    assert (status, shown) == (3, [])
    assert said == f"fastecho: cannot reach tcp://{address}: connection refused (error 111)\n"


def test_no_reply_is_status_1() -> None:
    with datagrams(lambda number, data: []) as address:
        status, shown, said = command(address, "--count", "1", "--timeout", "0.05")
    assert (status, said) == (1, "")
    assert "seq=1 no reply within 0.05 s" in shown
    assert any("1 transmitted, 0 received, 1 lost (100% loss)" in line for line in shown)


@pytest.mark.parametrize(("replies", "status"), [(0, 1), (1, 0)])
def test_a_server_that_goes_is_named(replies: int, status: int) -> None:
    def serve(sock: socket.socket) -> None:
        for _ in range(replies):
            sock.sendall(sock.recv(1000))
        sock.recv(1000)

    with stream(serve) as address:
        ended, shown, said = command(address, "--interval", "0.2")
    assert ended == status
    assert said == f"fastecho: {address}: the server has closed the connection\n"
    assert any(f"{replies} received" in line for line in shown)


@pytest.mark.parametrize(
    "words",
    [
        ["--count", "0"],
        ["--interval", "0"],
        ["--framing", "x"],
        ["fd://3"],
        ["127.0.0.1:0"],
        ["--quiet"],
        ["a", "b"],
    ],
)
def test_wrong_usage_is_status_2(words: list[str]) -> None:
    status, shown, said = command(*words)
    assert (status, shown) == (2, [])
    assert said.startswith("fastecho: ")
    assert said.count("\n") == 1


def test_a_file_that_cannot_be_written_is_found_before(server: fastecho.Server) -> None:
    status, shown, said = command(named(server.tcp_address), "--json", "/no/such/place")
    assert (status, shown) == (3, [])
    assert said == "fastecho: cannot write /no/such/place: no such file or directory\n"


def keys(value: Any) -> set[str]:
    """All names in a JSON value."""
    if isinstance(value, list):
        return set().union(*map(keys, value))
    if not isinstance(value, dict):
        return set()
    return set(value).union(*map(keys, value.values()))


def test_the_json_has_what_was_shown_and_its_keys_are_documented(
    server: fastecho.Server, tmp_path: Path
) -> None:
    file = tmp_path / "ping.json"
    words = ["--prefix", "{utc} ", "--count", "70", "--interval", "0.001", "--json", str(file)]
    status, shown, _ = command(named(server.tcp_address), *words)
    found = json.loads(file.read_text())
    assert status == 0
    assert (found["command"], found["schema"]) == ("ping", 1)
    assert (found["transmitted"], found["received"], found["lost"]) == (70, 70, 0)
    assert found["machine"]["fastecho"] == fastecho.__version__
    assert found["options"]["prefix"] == "{utc} "
    assert [each["seq"] for each in found["replies"]] == list(range(1, 71))
    assert {each["kind"] for each in found["replies"]} == {"reply"}
    assert found["clock"]["assumes"] == "symmetric path"
    trips = [each["round_trip_ns"] for each in found["replies"]]
    assert found["round_trip_ns"] == ping.summary(trips)
    assert f"min/avg/max/stddev = {min(trips) / 1e6:.3f}/" in "\n".join(shown)
    documented = (DOCS / "ping.md").read_text()
    named_there = {
        word for each in re.findall(r"`([\w.]+)`", documented) for word in each.split(".")
    }
    assert keys(found) - named_there == set()


def test_nothing_received_is_null_in_json(tmp_path: Path) -> None:
    file = tmp_path / "ping.json"
    with datagrams(lambda number, data: [b"?"]) as address:
        status, _, _ = command(address, "--count", "1", "--timeout", "0.05", "--json", str(file))
    found = json.loads(file.read_text())
    assert status == 1
    assert (found["round_trip_ns"], found["clock"], found["replies"]) == (None, None, [])
    assert (found["loss"], found["garbage"]) == (1, 1)
