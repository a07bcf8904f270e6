"""Streams that misbehave by plan, as their clients see it, on real sockets; over both twins."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from misbehaved import (
    RESET,
    Serve,
    asked,
    connected,
    ended,
    ends,
    events,
    hexes,
    log,
    logging_servers,
    plans,
    read_ends,
    recvs,
    seeds,
)
from processes import PATIENCE, abort, serving, until

from fastecho import ConfigError, FastechoError, Server
from fastecho.faults import pump
from fastecho.faults.decisions import Decision, Draws
from fastecho.faults.plan import parse
from fastecho.limits import FAULT_REPLIES, SEND_BUFFER

SEED = 1234567


@pytest.fixture
def served(twin: Any, tmp_path: Path) -> Serve:
    return logging_servers("tcp://127.0.0.1:0", SEED, tmp_path / "log", twin.name)


def group(server: Server, name: str) -> dict[str, int]:
    """The counters of this name."""
    return {
        key.partition(".")[2]: n for key, n in server.counters.items() if key.startswith(name + ".")
    }


LINE = b"x" * 39 + b"\n"


# -- cuts


def test_walk_shows_every_cut_of_a_reply_and_then_pairs(served: Any) -> None:
    with served("walk") as server, connected(server.tcp_address) as sock:
        cut = [asked(sock, LINE) for _ in range(42)]
    singles = [[LINE[:at], LINE[at:]] for at in range(1, 40)]
    pairs = [[LINE[:1], LINE[1:at], LINE[at:]] for at in (2, 3, 4)]
    assert cut == singles + pairs
    assert server.counters["faults.walk"] == 42


def test_walk_breaks_a_client_that_takes_a_recv_for_a_message_and_no_other(served: Any) -> None:
    def naive(sock: socket.socket, line: bytes) -> bytes:
        sock.sendall(line)
        return sock.recv(1024)

    def right(sock: socket.socket, line: bytes) -> bytes:
        sock.sendall(line)
        reply = b""
        while not reply.endswith(b"\n"):
            reply += sock.recv(1024)
        return reply

    for plan, client, works in (
        ("walk", naive, False),
        ("walk", right, True),
        ("walk:p=0", naive, True),
    ):
        with served(plan) as server, connected(server.tcp_address) as sock:
            assert all(client(sock, LINE) == LINE for _ in range(39)) == works


def test_a_dribbled_reply_comes_byte_by_byte(served: Any) -> None:
    with served("dribble:from=2") as server, connected(server.tcp_address) as sock:
        assert asked(sock, b"whole\n") == [b"whole\n"]
        assert asked(sock, b"bytes\n") == [b"b", b"y", b"t", b"e", b"s", b"\n"]


def test_slices_have_their_size_and_leave_pipelined_replies_apart(served: Any) -> None:
    with served("", slice="4") as server, connected(server.tcp_address) as sock:
        found = asked(sock, b"abcdefg\n12\nxyz\n")
    assert found == [b"abcd", b"efg\n", b"12\n", b"xyz\n"]


def test_pieces_leave_alone_though_the_client_pipelines(served: Any) -> None:
    with served("slice:size=1-3") as server, connected(server.tcp_address) as sock:
        found = asked(sock, b"".join(b"%d\n" % number for number in range(30)))
    draws = Draws(parse("slice:size=1-3"), SEED)
    due = []
    for number in range(30):
        reply = b"%d\n" % number
        bounds = [0, *draws.reply(1, number + 1, reply).cuts, len(reply)]
        due += [reply[low:high] for low, high in itertools.pairwise(bounds)]
    assert found == due


def test_a_client_that_does_not_read_is_waited_for_so_long_and_no_longer(
    served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "PATIENCE", 0.1)
    with served("slice:size=2") as server, connected(server.tcp_address) as sock:
        before = time.monotonic()
        sock.sendall(b"abc\n")
        until(lambda: server.counters["bytes_out"] == 4, "both pieces")
        assert time.monotonic() - before >= 0.1
        assert recvs(sock, 4) == [b"abc\n"]
    sent = events(log(tmp_path / "log"), "sent")
    assert [line["how"] for line in sent] == ["", "unread"]


def test_a_client_that_does_not_read_is_looked_at_less_and_less() -> None:
    """Simulated time: every timer is on time."""
    delivery = Mock(how="read")
    delivery.is_over.return_value = False
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = pump.Pump(ours, Mock(**{"of.return_value": delivery}), Mock(), 100)
        stream.pieces.add(1, Decision(b"ab", cuts=(1,)), 0.0)
        now: float | None = 0.0
        last = 0.0
        while now is not None:
            last, now = now, stream.go_on(now)
    assert stream.sent == 2
    assert pump.PATIENCE <= last <= 1.1 * pump.PATIENCE
    assert delivery.is_over.call_count < 200


def test_pieces_larger_than_what_the_kernel_takes_leave_whole(served: Any, tmp_path: Path) -> None:
    line = bytes(5_000_000).replace(b"\0", b"x") + b"\n"
    with (
        served("slice:size=2000000", max_frame=6_000_000) as server,
        connected(server.tcp_address) as sock,
    ):
        sender = threading.Thread(target=sock.sendall, args=(line * 2,))
        sender.start()
        assert b"".join(recvs(sock, 2 * len(line))) == line * 2
        sender.join()
    sent = hexes(events(log(tmp_path / "log"), "sent"))
    assert [len(piece) for piece in sent] == [2_000_000, 2_000_000, 1_000_001] * 2


def test_a_pause_is_waited_between_pieces(served: Any, tmp_path: Path) -> None:
    with served("slice:size=1,pause=20ms") as server, connected(server.tcp_address) as sock:
        before = time.monotonic()
        assert asked(sock, b"abc\n") == [b"a", b"b", b"c", b"\n"]
        assert time.monotonic() - before >= 0.06
    sent = events(log(tmp_path / "log"), "sent")
    assert [(line["delay"], line["how"]) for line in sent] == [(0.0, ""), *[(0.02, "read")] * 3]


# -- what else is done to replies


def test_coalesced_replies_come_in_one(served: Any) -> None:
    with served("coalesce:count=3,wait=20ms") as server, connected(server.tcp_address) as sock:
        for message in (b"1\n", b"2\n"):
            sock.sendall(message)
        assert asked(sock, b"3\n", 4) == [b"1\n2\n3\n"]
        assert asked(sock, b"4\n") == [b"4\n"]
        sock.sendall(b"5\n")
        assert ended(sock) == [b"5\n"]


def test_swapped_replies_come_in_pairs(served: Any) -> None:
    with served("swap:wait=20ms") as server, connected(server.tcp_address) as sock:
        assert b"".join(asked(sock, b"1\n2\n3\n")) == b"2\n1\n3\n"


@pytest.mark.parametrize("plan", ["delay:time=50ms", "bandwidth:rate=100"])
def test_replies_are_late(served: Any, plan: str) -> None:
    with served(plan) as server, connected(server.tcp_address) as sock:
        before = time.monotonic()
        assert b"".join(asked(sock, b"late\n")) == b"late\n"
        assert time.monotonic() - before >= 0.05


def test_a_late_reply_stops_nobody_else_and_bears_its_own_time(served: Any) -> None:
    with (
        served("delay:time=300ms,from=2", prefix="{epoch_ns} ") as server,
        connected(server.tcp_address) as sock,
        connected(server.tcp_address) as other,
    ):
        size = len(b"%d " % time.time_ns())
        asked(sock, b"first\n", size)
        sock.sendall(b"late\n")
        until(lambda: server.counters["messages"] == 2, "the message")
        received = time.time_ns()
        asked(other, b"at once\n", size)
        assert server.counters["messages"] == 3
        sent = 2 * size + len(b"first\nat once\n")
        until(lambda: server.counters["bytes_out"] == sent, "what the other has read")
        (reply,) = recvs(sock, size + 5)
        assert int(reply.split()[0]) <= received


def test_a_stalled_connection_is_read_and_never_answered(served: Any) -> None:
    with served("stall:from=2") as server, connected(server.tcp_address) as sock:
        assert asked(sock, b"1\n") == [b"1\n"]
        sock.sendall(b"2\n3\n" + b"x" * (1 << 20))
        assert ended(sock) == []
        until(lambda: "closed.fault_stall" in server.counters, "the end")
    assert (server.counters["messages"], server.counters["bytes_out"]) == (2, 2)


@pytest.mark.parametrize("pieces", [[b"1:a,bad"], [b"1:a,", b"bad"]])
def test_what_comes_after_a_stall_is_not_judged(served: Any, pieces: list[bytes]) -> None:
    """In one `recv` with what is stalled, or in the next: neither is answered, or closed."""
    with (
        served("stall", framing="netstring", linger_timeout=0) as server,
        connected(server.tcp_address) as sock,
    ):
        for piece in pieces:
            sock.sendall(piece)
            until(lambda: server.counters["messages"] == 1, "the message")
        sock.shutdown(socket.SHUT_WR)
        assert recvs(sock) == []
        until(lambda: not server._streams(), "the end")
    assert group(server, "closed") == {"fault_stall": 1}


def test_a_truncated_reply_is_the_last_and_no_reset_overtakes_it(served: Any) -> None:
    with served("truncate:at=3,from=2") as server, connected(server.tcp_address) as sock:
        sock.sendall(b"whole\nhalf\nnone\n")
        until(lambda: "closed.fault_truncate" in server.counters, "the end")
        sock.sendall(b"more\n" * 10_000)
        assert b"".join(recvs(sock)) == b"whole\nhal"
    until(lambda: not server._streams(), "the connection closed")
    assert group(server, "closed") == {"fault_truncate": 1}
    assert server.counters["messages"] == 2


def test_a_reset_comes_after_what_leaves_was_read(served: Any) -> None:
    with served("reset:after=3,from=2") as server, connected(server.tcp_address) as sock:
        assert asked(sock, b"whole\n") == [b"whole\n"]
        sock.sendall(b"half\n")
        assert recvs(sock) == [b"hal", RESET]
        until(lambda: "closed.fault_reset" in server.counters, "the end")
    with served("reset:after=0") as server, connected(server.tcp_address) as sock:
        sock.sendall(b"none\n")
        assert recvs(sock) == [RESET]


def test_as_many_bits_as_told_are_other_ones(served: Any, tmp_path: Path) -> None:
    with served("corrupt:bits=3") as server, connected(server.tcp_address) as sock:
        reply = b"".join(asked(sock, LINE))
    ((struck,),) = [line["faults"] for line in events(log(tmp_path / "log"), "message")]
    flipped = int.from_bytes(LINE) ^ int.from_bytes(reply)
    places = [8 * len(LINE) - 1 - bit for bit in struck["bits"]]
    assert flipped == sum(1 << place for place in places)
    assert flipped.bit_count() == 3


def test_a_duplicated_reply_comes_twice(served: Any) -> None:
    with served("duplicate:from=2") as server, connected(server.tcp_address) as sock:
        sock.sendall(b"1\n2\n")
        assert b"".join(recvs(sock, 6)) == b"1\n2\n2\n"


def test_the_tail_is_a_reply_too(served: Any) -> None:
    with served("walk") as server, connected(server.tcp_address) as sock:
        sock.sendall(b"ab\ntail")
        assert b"".join(recvs(sock, 3)) == b"ab\n"
        assert ended(sock) == [b"ta", b"il"]
    assert group(server, "closed") == {"eof": 1}


# -- what is done to requests


def test_slow_reads_push_back_on_the_client(served: Any, tmp_path: Path) -> None:
    """The whole of it is less than what a window holds by default."""
    lines = b"0123456\n" * 4_000
    with (
        served("slow-read:window=2048,size=1000,pause=1ms") as server,
        connected(server.tcp_address) as sock,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        sock.setblocking(False)
        assert sock.send(lines) < len(lines)
        sock.settimeout(PATIENCE)
    with served("slow-read:size=1000,pause=1ms") as server, connected(server.tcp_address) as sock:
        sender = threading.Thread(target=sock.sendall, args=(lines,))
        sender.start()
        assert b"".join(recvs(sock, len(lines))) == lines
        sender.join()
    received = hexes(events(log(tmp_path / "log"), "received"))
    assert max(map(len, received)) == 1000
    assert b"".join(received) == lines


def test_a_connection_accepted_late_waits_and_those_behind_it_too(
    served: Any, tmp_path: Path
) -> None:
    with served("late-accept:time=200ms,from=2") as server, ExitStack() as stack:
        first, *others = [stack.enter_context(connected(server.tcp_address)) for _ in range(3)]
        before = time.monotonic()
        assert asked(first, b"at once\n") == [b"at once\n"]
        for sock in others:
            assert asked(sock, b"late\n") == [b"late\n"]
        assert time.monotonic() - before >= 0.2
    times = [events(log(tmp_path / "log"), "connected", each)[0]["time"] for each in (2, 3)]
    assert times[1] - times[0] >= 200_000_000
    assert group(server, "faults") == {"late-accept": 2}


# -- decisions


PLAN = (
    "walk:p=50%; corrupt:p=30%; duplicate:p=20%; delay:time=1-2ms,p=20%; swap:p=20%,wait=1ms;"
    " coalesce:p=20%,wait=1ms; truncate:p=3%"
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 2), max_size=30))
def test_decisions_are_the_same_however_others_are_interleaved(
    served: Any, tmp_path: Path, order: list[int]
) -> None:
    """Connection, message and seed decide, and nothing else."""
    counts = Counter(order)
    with served(PLAN, prefix="{seq} ") as server, ExitStack() as stack:
        clients = []
        for number in range(3):
            clients.append(stack.enter_context(connected(server.tcp_address)))
            until(lambda: server.counters["connections"] == number + 1, "its turn")  # noqa: B023
        for turn in order:
            clients[turn].sendall(b"%d\n" % turn)
        for client in clients:
            ended(client)
    lines = log(tmp_path / "log")
    draws = Draws(parse(PLAN), SEED)
    for number in range(3):
        due = []
        for message in range(1, counts[number] + 1):
            reply = b"%d %d\n" % (message, number)
            decision = draws.reply(number + 1, message, reply)
            struck = [{"fault": name, **told} for name, told in decision.strikes]
            due.append((message, struck, reply.hex()))
            if decision.end:
                break
        found = events(lines, "message", number + 1)
        said = [(line["message"], line["faults"], line["reply"]) for line in found]
        # What is swapped with the last reply that there is is decided about, too.
        assert said == due[: len(said)]
        ends = any(fault["fault"] == "truncate" for line in found for fault in line["faults"])
        assert ends or len(said) == counts[number]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plan=plans,
    sizes=st.lists(st.integers(0, 12), max_size=10),
    seed=seeds,
)
def test_a_client_gets_what_the_log_says_in_no_fewer_pieces(
    served: Any, tmp_path: Path, plan: str, sizes: list[int], seed: int
) -> None:
    with served(plan, fault_seed=seed) as server, connected(server.tcp_address) as sock:
        sock.sendall(b"".join(b"%x" % size * size + b"\n" for size in sizes) + b"tail")
        found = ended(sock)
    got = [part for part in found if part != RESET]
    lines = log(tmp_path / "log")
    sent = events(lines, "sent")
    assert b"".join(got) == b"".join(hexes(sent))
    (closed,) = events(lines, "closed")
    assert (closed["how"] == "fault_reset") == (RESET in found)
    assert set(ends(got)) >= read_ends(lines)
    replied = {message for line in sent for message in line["messages"]}
    assert replied <= {line["message"] for line in events(lines, "message")}


def test_the_log_is_what_was_done(served: Any, tmp_path: Path) -> None:
    with served(PLAN) as server:
        name, plan = server.addresses[0], server.settings.plan
        with connected(server.tcp_address) as sock:
            ours = sock.getsockname()
            for _ in range(3):
                sock.sendall(LINE)
            got = b"".join(ended(sock))
        until(lambda: group(server, "closed"), "the end")
    start, connected_, *others, closed = log(tmp_path / "log")
    assert start["event"] == "start"
    assert (start["plan"], start["seed"]) == (plan.text, SEED)
    assert parse(start["plan"]) == plan
    assert (start["framing"], start["prefix"], start["max_frame"]) == ("line", "", 65_536)
    assert start["listen"] == [name]
    assert connected_["peer"] == f"{ours[0]}:{ours[1]}"
    assert all((line["listener"], line["connection"]) == (name, 1) for line in others)
    assert b"".join(hexes(events(others, "received"))) == 3 * LINE
    assert b"".join(hexes(events(others, "sent"))) == got
    assert (closed["event"], closed["how"]) == ("closed", "eof")
    struck = Counter(
        fault["fault"] for line in events(others, "message") for fault in line["faults"]
    )
    assert group(server, "faults") == struck


def test_a_log_alone_changes_nothing(served: Any, tmp_path: Path) -> None:
    with served("") as server, connected(server.tcp_address) as sock:
        assert asked(sock, LINE) == [LINE]
    assert [line["faults"] for line in events(log(tmp_path / "log"), "message")] == [[]]


def test_a_log_that_cannot_be_written_is_an_error_at_once(served: Any, tmp_path: Path) -> None:
    with pytest.raises(FastechoError, match=r"cannot write .*nowhere/log: no such file"):
        served("walk", fault_log=str(tmp_path / "nowhere" / "log")).__enter__()


def test_a_log_that_nobody_reads_holds_up_nothing(served: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FastechoError, match=r"cannot write .*pipe: no such device or address"):
        served("walk", fault_log=str(tmp_path / "pipe")).__enter__()


def test_a_log_is_for_its_owner(served: Any, tmp_path: Path) -> None:
    with served("walk"):
        assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_written_any_more_is_told_once(
    served: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with served("", fault_log="/dev/full") as server, connected(server.tcp_address) as sock:
        assert asked(sock, LINE) == [LINE]
    told = [record.message for record in caplog.records if record.event == "fault_log"]
    assert told == ["cannot write /dev/full: no space left on device; the fault log ends here"]


def test_a_plan_that_can_strike_nothing_is_refused(served: Any) -> None:
    with pytest.raises(ConfigError, match="walk strikes streams alone"):
        served("walk", listen="udp://127.0.0.1:0").__enter__()
    with pytest.raises(ConfigError, match="drop and reorder strike datagrams alone"):
        served("drop; reorder").__enter__()


def test_without_a_plan_none_of_its_modules_is_loaded(twin: Any) -> None:
    code = (
        "import sys, fastecho\n"
        f"with fastecho.running(backend={twin.name!r}): pass\n"
        "print([name for name in sys.modules if name == 'fastecho.delivery' or"
        " name.startswith('fastecho.faults.') and name[16:] not in ('plan', 'quantities')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# -- other sockets, limits, the end


def test_unix_streams_misbehave_too(served: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with served("walk", listen=f"unix:{path}") as server, connected(path) as sock:
        cut = [asked(sock, b"abcd\n") for _ in range(5)]
    assert cut[:4] == [[b"abcd\n"[:at], b"abcd\n"[at:]] for at in range(1, 5)]
    assert cut[4] == [b"a", b"b", b"cd\n"]
    sent = events(log(tmp_path / "log"), "sent")
    assert {line["how"] for line in sent} == {"", "read"}
    assert server.addresses == [f"unix:{path}"]


def test_each_listener_counts_its_own_connections(served: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listen = ["tcp://127.0.0.1:0", f"unix:{path}"]
    with served("walk", listen=listen) as server:
        for address in (server.tcp_address, path, server.tcp_address):
            with connected(address) as sock:
                asked(sock, b"a\n")
    found = [line for line in log(tmp_path / "log") if line["event"] == "connected"]
    tcp, unix = server.addresses
    assert [(line["listener"], line["connection"]) for line in found] == [
        (tcp, 1),
        (unix, 1),
        (tcp, 2),
    ]


def test_a_frame_at_fault_ends_it_after_what_was_complete(served: Any) -> None:
    with served("slice:size=2", max_frame=5) as server, connected(server.tcp_address) as sock:
        sock.sendall(b"ok\nfar too long\nmore\n")
        assert recvs(sock) == [b"ok", b"\n"]
    until(lambda: not server._streams(), "the end")
    assert group(server, "closed") == {"too_long": 1}


@pytest.mark.parametrize(
    "plan", ["delay:time=3600s", "bandwidth:rate=1", "coalesce:count=256,wait=3600s"]
)
def test_memory_is_bounded_though_nothing_leaves(served: Any, plan: str) -> None:
    """The server stops reading once more than a piece of replies waits."""
    lines = (b"x" * 65_000 + b"\n") * 500

    def send() -> None:
        with suppress(ConnectionError):
            sock.sendall(lines)

    sender = threading.Thread(target=send)
    with served(plan, drain_timeout=0.1) as server:
        sock = connected(server.tcp_address)
        sender.start()
        until(lambda: server._streams(), "the stream")
        (stream,) = server._streams()
        until(lambda: stream.unsent > SEND_BUFFER and not stream._mask & EVENT_READ, "it is full")
        assert stream.unsent < 3 * SEND_BUFFER
        assert server.counters["bytes_in"] < 3 * SEND_BUFFER
    sender.join()
    sock.close()


def test_a_client_that_does_not_read_is_not_read(served: Any) -> None:
    def send() -> None:
        with suppress(ConnectionError):
            sock.sendall((b"x" * 9_999 + b"\n") * 5_000)

    sender = threading.Thread(target=send)
    with served("duplicate:p=0", drain_timeout=0.1) as server:
        sock = connected(server.tcp_address)
        sender.start()
        until(lambda: server._streams() and server._streams()[0].unsent, "it is full")
        (stream,) = server._streams()
        until(lambda: stream._mask == EVENT_WRITE, "it waits for the client")
        assert stream.unsent < 3 * SEND_BUFFER
    sender.join()
    sock.close()


def test_replies_of_next_to_no_bytes_are_bounded_too(served: Any) -> None:
    with (
        served("delay:time=3600s", drain_timeout=0.1) as server,
        connected(server.tcp_address) as sock,
    ):
        sock.sendall(b"\n" * 100_000)
        until(lambda: server.counters["messages"] > FAULT_REPLIES, "as many as may wait")
        (stream,) = server._streams()
        until(lambda: not stream._mask & EVENT_READ, "it is full")
        assert server.counters["messages"] <= 2 * FAULT_REPLIES


def test_who_sends_many_small_messages_holds_up_no_other(twin: Any, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with (
        Server("tcp://127.0.0.1:0", prefix="", fault_log=str(path), backend=twin.name) as server,
        connected(server.tcp_address) as many,
        connected(server.tcp_address) as one,
    ):
        many.sendall(b"\n" * 40_000)
        one.sendall(b"x\n")
        thread = threading.Thread(target=server.run)
        thread.start()
        until(lambda: server.counters["messages"] == 40_001, "all of them")
        server.stop()
        thread.join()
    whose = [line["connection"] for line in log(path) if line["event"] == "message"]
    assert whose.index(2) <= 2 * FAULT_REPLIES


def test_who_has_gone_is_forgotten_whatever_would_have_left(served: Any) -> None:
    with served("slow-read:size=1,pause=1ms; delay:time=3600s", drain_timeout=0.1) as server:
        for _ in range(10):
            with connected(server.tcp_address) as sock:
                messages = server.counters["messages"]
                sock.sendall(b"0123456789\n")
                until(lambda before=messages: server.counters["messages"] > before, "the message")
                abort(sock)
        until(lambda: not server._streams(), "their ends")
        assert len(server._loop._timers) <= 1


def test_max_connections_holds(served: Any) -> None:
    with served("walk", max_connections=1) as server, connected(server.tcp_address) as sock:
        asked(sock, b"a\n")
        with connected(server.tcp_address) as other:
            other.sendall(b"b\n")
            asked(sock, b"a\n")
            assert server.counters["connections"] == 1
            sock.close()
            assert b"".join(recvs(other, 2)) == b"b\n"


def test_what_waits_to_leave_still_leaves_when_it_is_stopped(served: Any) -> None:
    with ExitStack() as stack:
        with served("delay:time=200ms; slice:size=1; coalesce:count=3,wait=3600s") as server:
            sock = stack.enter_context(connected(server.tcp_address))
            sock.sendall(b"one\ntwo\n")
            until(lambda: server.counters["messages"] == 2, "both")
            sock.sendall(b"3\n")
            until(lambda: server.counters["messages"] == 3, "the third")
            found: list[bytes] = []
            reader = threading.Thread(target=lambda: found.extend(recvs(sock)))
            reader.start()
        reader.join()
    assert found == [bytes([byte]) for byte in b"one\ntwo\n3\n"]
    assert group(server, "closed") == {"stopped": 1}


def test_stopping_ends_after_so_long_whatever_waits(
    served: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        served("delay:time=3600s", drain_timeout=0.1) as server,
        connected(server.tcp_address) as sock,
    ):
        sock.sendall(b"never\n")
        until(lambda: server.counters["messages"] == 1, "it")
        server.stop()
        assert recvs(sock) == []
    assert "stopped with 1 connection cut, 6 bytes unsent" in caplog.text


def test_stalled_connections_do_not_hold_up_a_stop(served: Any) -> None:
    with served("stall") as server, connected(server.tcp_address) as sock:
        sock.sendall(b"never\n")
        until(lambda: server.counters["messages"] == 1, "it")
        server.stop()
        assert recvs(sock) == []
    assert group(server, "closed") == {"stopped": 1}


def test_slow_reads_of_nothing_do_not_hold_up_a_stop(served: Any) -> None:
    with (
        served("slow-read:pause=200ms", drain_timeout=2 * PATIENCE) as server,
        connected(server.tcp_address) as sock,
    ):
        asked(sock, b"a\n")
        server.stop()
        assert recvs(sock) == []
    assert group(server, "closed") == {"stopped": 1}


def test_the_daemon_says_what_it_does_wrong_and_how_often_it_did(twin: Any) -> None:
    plan = ["--faults", "walk", "--slice", "3", "--fault-seed", "7"]
    with serving(*plan, backend=twin.name) as daemon:
        said = daemon.wait_line("faults: ")
        with daemon.connect() as sock:
            asked(sock, b"x\n", 26)
        assert daemon.stop() == 0
        assert said == "faults: walk; slice:size=3; again the same: --fault-seed 7"
        assert daemon.stderr.endswith("; faults: walk 1\n")


def test_a_long_prefix_on_empty_lines_is_no_more_work_than_its_bytes(served: Any) -> None:
    """And the server holds no more than ever, though each byte that comes makes 30,000."""
    prefix, lines = "p" * 30_000, b"\n" * 2_000
    with served("duplicate:p=0", prefix=prefix) as server, connected(server.tcp_address) as sock:
        sock.sendall(lines)
        left = len(lines) * 30_001
        while left:
            left -= len(sock.recv(1 << 20))
            for stream in server._streams():
                assert stream.unsent < 3 * SEND_BUFFER
    assert server.counters["messages"] == len(lines)
