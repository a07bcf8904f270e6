"""Datagrams lost, doubled, late, cut, changed on purpose: clients count what the log says."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from misbehaved import Serve, events, hexes, log, logging_servers
from processes import PATIENCE, until

from fastecho import Server
from fastecho.faults import datagrams
from fastecho.faults.decisions import Draws
from fastecho.faults.plan import parse

SEED = 7654321


@pytest.fixture
def served(twin: Any, tmp_path: Path) -> Serve:
    return logging_servers("udp://127.0.0.1:0", SEED, tmp_path / "log", twin.name)


@pytest.fixture
def client() -> Iterator[Callable[[Server], socket.socket]]:
    """Makes clients of a server, each with a port of its own."""
    with ExitStack() as stack:

        def make(server: Server) -> socket.socket:
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.settimeout(PATIENCE)
            sock.connect(server.udp_address)
            return sock

        yield make


def rest(sock: socket.socket) -> list[bytes]:
    """What has come: all of it, once the server has drained."""
    found = []
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            found.append(sock.recv(65_536))
    return found


def group(server: Server, name: str) -> dict[str, int]:
    """The counters of this name."""
    return {
        key.partition(".")[2]: n for key, n in server.counters.items() if key.startswith(name + ".")
    }


MESSAGES = [b"message %d" % number for number in range(60)]
PLANS = [
    "drop:p=30%",
    "duplicate:p=30%",
    "reorder:p=30%,wait=20ms",
    "delay:time=1-30ms",
    "jitter:time=30ms,p=50%",
    "truncate:p=50%",
    "truncate:at=0",
    "corrupt:bits=2,p=50%",
    "drop:p=10%; duplicate:p=10%; reorder:p=20%,wait=5ms; delay:time=1-5ms,p=20%; corrupt:p=10%",
]


@pytest.mark.parametrize("plan", PLANS)
def test_a_client_counts_what_the_log_says(
    served: Any, client: Any, tmp_path: Path, plan: str
) -> None:
    with served(plan) as server:
        sock = client(server)
        for message in MESSAGES:
            sock.send(message)
        until(lambda: server.counters["messages"] == len(MESSAGES), "all of them")
    got = rest(sock)
    lines = log(tmp_path / "log")
    sent = events(lines, "sent")
    assert got == hexes(sent)
    assert hexes(events(lines, "received")) == MESSAGES
    decided = events(lines, "message")
    assert hexes(decided, "reply") == MESSAGES

    struck = Counter(fault["fault"] for line in decided for fault in line["faults"])
    assert group(server, "faults") == struck
    assert struck
    draws = Draws(parse(plan), SEED)
    due: Counter[tuple[int, bytes]] = Counter()
    for number, message in enumerate(MESSAGES, 1):
        decision = draws.datagram(1, number, message)
        if not decision.drop:
            due[number, decision.data[: decision.keep]] += decision.copies
    said = Counter((line["messages"][0], bytes.fromhex(line["bytes"])) for line in sent)
    assert said == due
    dropped = struck["drop"]
    assert group(server, "unanswered") == ({"fault_drop": dropped} if dropped else {})
    assert server.counters["bytes_out"] == sum(map(len, got))


def test_reordered_replies_come_in_pairs(served: Any, client: Any) -> None:
    with served("reorder:wait=3600s", drain_timeout=0.1) as server:
        sock, other = client(server), client(server)
        for message in (b"1", b"2", b"3", b"4", b"5"):
            sock.send(message)
        other.send(b"of another peer")
        until(lambda: server.counters["messages"] == 6, "all of them")
        assert [sock.recv(100) for _ in range(4)] == [b"2", b"1", b"4", b"3"]
    assert rest(sock) == rest(other) == []


def test_a_reordered_reply_leaves_without_a_next_one(served: Any, client: Any) -> None:
    with served("reorder:wait=20ms") as server:
        sock = client(server)
        before = time.monotonic()
        sock.send(b"alone")
        assert sock.recv(100) == b"alone"
        assert time.monotonic() - before >= 0.02


def test_delayed_datagrams_do_not_wait_for_each_other(served: Any, client: Any) -> None:
    with served("delay:time=3600s,p=50%", drain_timeout=0.1) as server:
        sock = client(server)
        for message in MESSAGES:
            sock.send(message)
        draws = Draws(parse("delay:time=3600s,p=50%"), SEED)
        due = [m for n, m in enumerate(MESSAGES, 1) if not draws.datagram(1, n, m).delay]
        assert 0 < len(due) < len(MESSAGES)
        assert [sock.recv(100) for _ in due] == due
    assert rest(sock) == []


def test_what_is_held_back_leaves_when_it_is_stopped(served: Any, client: Any) -> None:
    with served("delay:time=100ms") as server:
        sock = client(server)
        sock.send(b"late")
        until(lambda: server.counters["messages"] == 1, "it")
        server.stop()
        assert sock.recv(100) == b"late"


def test_what_a_stop_does_not_wait_for_is_told(
    served: Any, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with served("delay:time=3600s", drain_timeout=0.1) as server:
        sock = client(server)
        sock.send(b"a")
        sock.send(b"b")
        until(lambda: server.counters["messages"] == 2, "both")
    assert "stopped with 2 datagrams held back" in caplog.text


def test_a_plan_that_never_strikes_answers_as_ever(served: Any, client: Any) -> None:
    with served("drop:p=0", prefix="{seq} {peer} ") as server:
        sock = client(server)
        sock.send(b"?")
        host, port = sock.getsockname()
        assert sock.recv(100) == b"1 %s:%d ?" % (host.encode(), port)
        sock.send(b"")
        assert sock.recv(100) == b"2 %s:%d " % (host.encode(), port)
    assert group(server, "unanswered") == {}


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 2), max_size=40))
def test_decisions_are_the_same_however_others_are_interleaved(
    served: Any, client: Any, tmp_path: Path, order: list[int]
) -> None:
    plan = PLANS[-1]
    with served(plan) as server:
        clients = [client(server) for _ in range(3)]
        for turn in [0, 1, 2, *order]:  # their numbers are those of their first datagrams
            clients[turn].send(b"of %d" % turn)
        until(lambda: server.counters["messages"] == 3 + len(order), "all of them")
    draws, lines = Draws(parse(plan), SEED), log(tmp_path / "log")
    for number in range(3):
        found = events(lines, "message", number + 1)
        assert [line["message"] for line in found] == list(range(1, 2 + order.count(number)))
        for line in found:
            decision = draws.datagram(number + 1, line["message"], b"of %d" % number)
            assert line["faults"] == [{"fault": name, **told} for name, told in decision.strikes]
        assert Counter(rest(clients[number])) == Counter(hexes(events(lines, "sent", number + 1)))


def test_the_peer_not_heard_of_for_longest_is_forgotten(
    served: Any, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "FAULT_PEERS", 2)
    with served("corrupt:p=0") as server:
        clients = [client(server) for _ in range(3)]
        for turn in (0, 1, 0, 2, 1, 2):
            clients[turn].send(b"%d" % turn)
            assert clients[turn].recv(100) == b"%d" % turn
    found = [line for line in log(tmp_path / "log") if line["event"] == "message"]
    assert [(line["connection"], line["message"]) for line in found] == [
        *((1, 1), (2, 1), (1, 2), (3, 1)),
        *((4, 1), (3, 2)),
    ]


@pytest.mark.parametrize(("name", "limit"), [("FAULT_HELD", 3), ("FAULT_HELD_BYTES", 6)])
def test_what_is_held_back_is_bounded(
    served: Any, client: Any, monkeypatch: pytest.MonkeyPatch, name: str, limit: int
) -> None:
    monkeypatch.setattr(datagrams, name, limit)
    with served("delay:time=3600s", drain_timeout=0.1) as server:
        sock = client(server)
        for _ in range(5):
            sock.send(b"ab")
        until(lambda: server.counters["messages"] == 5, "all of them")
    assert group(server, "unanswered") == {"fault_overflow": 2}
    assert rest(sock) == []


def test_what_has_left_early_is_not_kept_until_it_would_have(served: Any, client: Any) -> None:
    with served("reorder:wait=3600s") as server:
        sock = client(server)
        for _ in range(10):
            sock.send(b"a")
            sock.send(b"b")
            assert [sock.recv(10), sock.recv(10)] == [b"b", b"a"]
        assert len(server._loop._timers) <= 1
        assert server._held == 0


def test_unix_datagrams_misbehave_too(served: Any, tmp_path: Path) -> None:
    path, own = str(tmp_path / "socket"), str(tmp_path / "own")
    with (
        served("duplicate", listen=f"unixgram:{path}") as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless,
    ):
        sock.settimeout(PATIENCE)
        sock.bind(own)
        nameless.sendto(b"from nowhere", path)
        sock.sendto(b"twice", path)
        assert [sock.recv(100) for _ in range(2)] == [b"twice"] * 2
    assert group(server, "unanswered") == {"nameless": 1}
    (line,) = events(log(tmp_path / "log"), "connected")
    assert line["peer"] == f"unix:{own}"


def test_a_reply_that_the_kernel_refuses_is_not_logged_as_sent(
    served: Any, client: Any, tmp_path: Path
) -> None:
    with served("duplicate", prefix="x" * 1_000) as server:
        sock = client(server)
        sock.send(bytes(65_000))
        sock.send(b"ok")
        assert sock.recv(2_000).endswith(b"ok")
    assert group(server, "unanswered") == {"emsgsize": 2}
    sent = events(log(tmp_path / "log"), "sent")
    assert [line["messages"] for line in sent] == [[2], [2]]
