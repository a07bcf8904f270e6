"""A logged connection served again: the same requests get the same bytes in the same cuts."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from misbehaved import (
    RESET,
    asked,
    connected,
    ended,
    ends,
    events,
    hexes,
    log,
    plans,
    read_ends,
    recvs,
    seeds,
)
from processes import FASTECHO, PATIENCE, Daemon, abort, environment, until

from fastecho import ConfigError, FastechoError, replay, running
from fastecho.faults import pump, script

SEED = 99
READY = re.compile(r"^waiting for (\w+) \.\.\. (\w+):(?://)?(.+) \(connection \d+\)$")


@contextmanager
def serving(path: Path, plan: str, listen: str = "tcp://127.0.0.1:0", **more: Any) -> Iterator[Any]:
    chosen = {"listen": listen, "faults": plan, "fault_seed": SEED, "fault_log": path, **more}
    with running(**chosen) as server:
        yield server


class Again:
    """A connection of a log, served in a thread.

    Attributes:
        outcome: what came of it, once `result` was asked for: words, or an exception.
    """

    def __init__(self, path: Path, word: str = "127.0.0.1:0", connection: int = 1) -> None:
        self._names: list[str] = []
        self._outcome: list[Any] = []
        found = script.load(str(path), connection)
        self._thread = threading.Thread(target=self._serve, args=(found, word), daemon=True)
        self._thread.start()
        until(lambda: self._names or self._outcome, "that it listens")

    def _serve(self, found: script.Script, word: str) -> None:
        try:
            self._outcome.append(replay.replay(found, word, self._names.append))
        except Exception as error:
            self._outcome.append(error)

    @property
    def address(self) -> Any:
        name = self._names[0]
        if name.startswith("unix"):
            return name.partition(":")[2]
        host, _, port = name.partition("//")[2].rpartition(":")
        return host, int(port)

    @property
    def result(self) -> Any:
        self._thread.join(PATIENCE)
        return self._outcome[0]


MESSAGES = [b"one\n", b"two two\n", b"three three three\n", b"\n", b"five\n"]


def talk(address: Any) -> list[Any]:
    """One message after the other, each reply's `recv`s; then the end of it."""
    found: list[Any] = []
    with connected(address) as sock:
        try:
            for message in MESSAGES:
                sock.sendall(message)
                reply = b""
                while not reply.endswith(message):
                    found += recvs(sock, 1)
                    if found[-1] == RESET or not found[-1]:
                        return found
                    reply += found[-1]
            found += ended(sock)
        except OSError as error:
            found.append(type(error).__name__)
    return found


def pipeline(address: Any) -> list[Any]:
    """All messages at once, and a tail; then what comes."""
    with connected(address) as sock:
        sock.sendall(b"".join(MESSAGES) + b"tail")
        return ended(sock)


EXACT = ["walk", "dribble", "slice:size=1-4,p=50%", "slice:size=2,pause=1ms"]


@pytest.mark.parametrize("client", [talk, pipeline])
@pytest.mark.parametrize("plan", EXACT)
def test_a_connection_comes_again_cut_for_cut(
    plan: str, client: Callable[[Any], list[Any]], tmp_path: Path
) -> None:
    path = tmp_path / "log"
    with serving(path, plan, prefix="[{epoch_ns}]") as server:
        client(server.tcp_address)  # another one's is not in the way
        first = client(server.tcp_address)
    again = Again(path, connection=2)
    assert client(again.address) == first
    assert re.fullmatch(r"connection 2: \d+ bytes in, \d+ bytes out in \d+ pieces", again.result)


@pytest.mark.parametrize(
    "plan",
    [
        "corrupt:bits=5; duplicate:p=50%",
        "swap:wait=1ms; slice:size=3",
        "coalesce:count=2,wait=5ms; walk",
        "delay:time=20ms; bandwidth:rate=2k; dribble",
        "truncate:from=3; walk",
        "reset:from=4; walk",
        "reset:after=0,from=2",
        "slow-read:size=3,pause=1ms; walk",
        "late-accept:time=50ms; walk",
    ],
)
def test_whatever_was_done_is_done_again(plan: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    before = time.monotonic()
    with serving(path, plan) as server:
        first = pipeline(server.tcp_address)
    took = time.monotonic() - before
    again = Again(path)
    before = time.monotonic()
    assert _joined(pipeline(again.address)) == _joined(first)
    assert isinstance(again.result, str), again.result
    if "delay" in plan or "late" in plan:
        assert min(took, time.monotonic() - before) >= 0.02


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans, sizes=st.lists(st.integers(0, 12), max_size=10), seed=seeds)
def test_any_plan_s_connection_comes_again(
    tmp_path: Path, plan: str, sizes: list[int], seed: int
) -> None:
    path = tmp_path / "log"
    requests = b"".join(b"%x" % size * size + b"\n" for size in sizes) + b"tail"

    def converse(address: Any) -> list[Any]:
        with connected(address) as sock:
            sock.sendall(requests)
            return ended(sock)

    with serving(path, plan, fault_seed=seed) as server:
        first = converse(server.tcp_address)
    again = Again(path)
    found = converse(again.address)
    assert _joined(found) == _joined(first)
    assert isinstance(again.result, str), again.result
    assert set(ends(part for part in found if part != RESET)) >= read_ends(log(path))


def _joined(found: list[Any]) -> tuple[bytes, bool]:
    """The bytes, and whether a reset ended them: whole replies may come together, or not."""
    return b"".join(part for part in found if part != RESET), RESET in found


def test_a_stalled_connection_is_stalled_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with serving(path, "stall:from=2", prefix="") as server, connected(server.tcp_address) as sock:
        assert asked(sock, b"one\n") == [b"one\n"]
        sock.sendall(b"two\n")
        assert ended(sock) == []
    again = Again(path)
    with connected(again.address) as sock:
        assert asked(sock, b"one\n") == [b"one\n"]
        sock.sendall(b"two\nand more than then\n")
        assert ended(sock) == []
    assert "8 bytes in, 4 bytes out in 1 piece" in again.result


def test_a_frame_at_fault_ends_it_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with (
        serving(path, "walk", prefix="", max_frame=5) as server,
        connected(server.tcp_address) as sock,
    ):
        sock.sendall(b"ok\nfar too long\n")
        assert recvs(sock) == [b"o", b"k\n"]
    again = Again(path)
    with connected(again.address) as sock:
        sock.sendall(b"ok\nfar too long\n")
        assert recvs(sock) == [b"o", b"k\n"]
    assert isinstance(again.result, str)


def test_what_the_server_ended_is_ended_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with serving(path, "walk", prefix="") as server:
        sock = connected(server.tcp_address)
        asked(sock, b"one\n")
        server.stop()
        assert recvs(sock) == []
        sock.close()
    again = Again(path)
    with connected(again.address) as sock:
        assert asked(sock, b"one\n") == [b"o", b"ne\n"]
        assert recvs(sock) == []
    assert isinstance(again.result, str)


def test_what_a_client_reset_waits_for_the_client(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with serving(path, "walk", prefix="") as server:
        sock = connected(server.tcp_address)
        asked(sock, b"one\n")
        abort(sock)
        until(lambda: "closed.reset" in server.counters, "the end")
    again = Again(path)
    sock = connected(again.address)
    assert asked(sock, b"one\n") == [b"o", b"ne\n"]
    abort(sock)
    assert isinstance(again.result, str)


def test_a_reply_waits_for_its_message_and_no_other(tmp_path: Path) -> None:
    """A client that read nothing then, until it had sent all, may wait for each reply now.

    Replies of a limited bandwidth do not leave together, however late they are.
    """
    path = tmp_path / "log"
    with (
        serving(path, "delay:time=50ms; bandwidth:rate=1M", prefix="") as server,
        connected(server.tcp_address) as sock,
    ):
        for number, message in enumerate(MESSAGES, 1):
            sock.sendall(message)
            until(lambda: server.counters["messages"] == number, "it")  # noqa: B023
        assert b"".join(ended(sock)) == b"".join(MESSAGES)
    again = Again(path)
    with connected(again.address) as sock:
        assert [asked(sock, message) for message in MESSAGES] == [[each] for each in MESSAGES]
        assert ended(sock) == []


def test_a_client_that_does_not_read_is_not_waited_for_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "PATIENCE", 0.05)
    monkeypatch.setattr(replay, "PATIENCE", 0.05)
    path = tmp_path / "log"
    with serving(path, "slice:size=2", prefix="") as server, connected(server.tcp_address) as sock:
        sock.sendall(b"abcdef\n")
        until(lambda: server.counters["bytes_out"] == 7, "all pieces")
        assert ended(sock) == [b"abcdef\n"]
    again = Again(path)
    with connected(again.address) as sock:
        sock.sendall(b"abcdef\n")
        sock.shutdown(socket.SHUT_WR)
        assert isinstance(again.result, str)
        assert recvs(sock) == [b"abcdef\n"]


def test_what_the_kernel_does_not_take_at_once_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    line = bytes(5_000_000).replace(b"\0", b"x") + b"\n"

    def converse(address: Any) -> bytes:
        with connected(address) as sock:
            sender = threading.Thread(target=sock.sendall, args=(line * 2,))
            sender.start()
            found = recvs(sock, 2 * len(line))
            sender.join()
            assert ended(sock) == []
            return b"".join(found)

    with serving(path, "slice:size=2000000", prefix="", max_frame=6_000_000) as server:
        assert converse(server.tcp_address) == line * 2
    again = Again(path)
    assert converse(again.address) == line * 2
    assert isinstance(again.result, str)


def test_unix_streams_come_again(tmp_path: Path) -> None:
    path, sock = tmp_path / "log", str(tmp_path / "socket")
    with serving(path, "walk", listen=f"unix:{sock}"):
        first = talk(sock)
    again = Again(path, f"unix:{sock}")
    assert talk(sock) == first
    assert isinstance(again.result, str)


UDP_PLAN = (
    "drop:p=20%; duplicate:p=20%; reorder:p=20%,wait=10ms; delay:time=5ms,p=50%; corrupt:p=20%"
)


def test_datagrams_come_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    messages = [b"%d" % number for number in range(20)]
    with (
        serving(path, UDP_PLAN, listen="udp://127.0.0.1:0") as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        for message in messages:
            sock.sendto(message, server.udp_address)
        until(lambda: server.counters["messages"] == 20, "all of them")
    due = hexes(events(log(path), "sent"))
    again = Again(path)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        sock.settimeout(PATIENCE)
        for message in messages:
            sock.sendto(message, again.address)
            other.sendto(b"from somebody else", again.address)
        assert [sock.recv(100) for _ in due] == due
    assert f"out in {len(due)} pieces" in again.result


# -- a client that does something else


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of one conversation."""
    path = tmp_path_factory.mktemp("logged") / "log"
    with serving(path, "walk", prefix="") as server:
        talk(server.tcp_address)
    return path


def test_a_client_that_waits_is_told_what_for(
    logged: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(replay, "UNFINISHED_AFTER", 0.01)
    again = Again(logged)
    with connected(again.address) as sock:
        sock.sendall(b"on")
        until(lambda: caplog.messages, "the hint")
    assert isinstance(again.result, replay.Differs)
    (told,) = caplog.messages
    assert told.startswith("2 of 36 bytes have come; the client is to send 65 0a 74 77 6f 20")


def test_a_log_without_the_end_is_served_so_far(logged: Path, tmp_path: Path) -> None:
    lines = logged.read_bytes().splitlines(keepends=True)
    (tmp_path / "log").write_bytes(b"".join(each for each in lines if b'"closed"' not in each))
    daemon = Daemon(["replay", str(tmp_path / "log"), "127.0.0.1:0"], {})
    try:
        daemon.wait_ready(1)
        assert "does not say how connection 1 ended: it is served so far" in daemon.stderr
    finally:
        daemon.discard()


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (
            b"one\ntwo TWO\n",
            "the request differs at offset 8: expected 74 77 6f 0a, got 54 57 4f 0a",
        ),
        (b"One\n", "the request differs at offset 0: expected 6f 6e 65 0a, got 4f 6e 65 0a"),
        (b"".join(MESSAGES) + b"x", "the request differs at offset 36: expected nothing, got 78"),
        (b"one\n", "the client ended after 4 of 36 bytes: expected 74 77 6f 20"),
        (b"", "the client ended after 0 of 36 bytes: expected 6f 6e 65 0a"),
    ],
)
def test_another_request_is_told(sent: bytes, told: str, logged: Path) -> None:
    again = Again(logged)
    with connected(again.address) as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        assert isinstance(again.result, replay.Differs)
    assert str(again.result).startswith(told)


def test_a_client_that_goes_is_told(logged: Path) -> None:
    again = Again(logged)
    sock = connected(again.address)
    sock.sendall(b"one\n")
    recvs(sock, 4)
    abort(sock)
    assert isinstance(again.result, replay.Differs)
    assert str(again.result) == "the client has gone: connection reset by peer"


def test_another_datagram_is_told(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with (
        serving(path, "duplicate", listen="udp://127.0.0.1:0", prefix="") as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(PATIENCE)
        for message in (b"one", b"two"):
            sock.sendto(message, server.udp_address)
            assert sock.recv(100) == sock.recv(100) == message
    again = Again(path)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"one", again.address)
        sock.sendto(b"tw", again.address)
        told = "datagram 2 differs at offset 2: expected 6f, got nothing"
        assert str(again.result) == told


# -- logs, and the command


def line(**fields: Any) -> str:
    return json.dumps({"listener": "tcp://127.0.0.1:1", "connection": 1, **fields}) + "\n"


CONNECTED = line(event="connected", peer="127.0.0.1:2", time=1, faults=[])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no connection 1: it has none"),
        ("not json\n", "is no fault log: line 1 is no JSON object"),
        ("[" * 100_000 + "\n", "is no fault log: line 1 is no JSON object"),
        ("[1]\n", "is no fault log: line 1 is no JSON object"),
        ("{}\n", "line 1 of .* makes no sense in a fault log"),
        (CONNECTED + line(event="danced"), "line 2 of .* makes no sense"),
        (line(event="received", time=1, bytes=""), "line 1 of .* makes no sense"),
        (CONNECTED + line(event="received", time=1, bytes="xy"), "line 2 of .* makes no sense"),
        (CONNECTED + line(event="received", bytes="00"), "line 2 of .* makes no sense"),
        (CONNECTED + line(event="closed", time=1, how=3), "line 2 of .* makes no sense"),
        (
            CONNECTED + line(event="sent", messages=[1], bytes="00", delay=0, how=""),
            "line 2 of .* makes no sense",
        ),
        (CONNECTED + line(event="sent", messages=[], bytes="", delay=0, how=""), "line 2 of"),
        (
            CONNECTED
            + line(event="message", message=1, faults=[], reply="00")
            + line(event="sent", messages=[1], bytes="00", delay=-1, how=""),
            "line 3 of .* makes no sense",
        ),
        (
            CONNECTED.replace('"connection": 1', '"connection": 7'),
            "has no connection 1: they are 1 to 7",
        ),
        (
            CONNECTED + CONNECTED.replace("127.0.0.1:1", "127.0.0.1:9"),
            "has a connection 1 on each of tcp://127.0.0.1:1, tcp://127.0.0.1:9: name one with",
        ),
    ],
)
def test_a_log_that_makes_no_sense_is_refused(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        script.load(str(path), 1)


def test_a_listener_is_chosen_by_name(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(CONNECTED + CONNECTED.replace("127.0.0.1:1", "127.0.0.1:9"))
    assert script.load(str(path), 1, "tcp://127.0.0.1:9").listener == "tcp://127.0.0.1:9"
    with pytest.raises(ConfigError, match="has no connection 1 on tcp://x; it has tcp://"):
        script.load(str(path), 1, "tcp://x")


def test_a_line_that_was_not_written_to_its_end_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(CONNECTED + CONNECTED[:20])
    assert script.load(str(path), 1).sends == []


def test_a_log_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FastechoError, match=r"cannot read .*nowhere: no such file or directory"):
        script.load(str(tmp_path / "nowhere"), 1)


@pytest.mark.parametrize("word", ["udp://127.0.0.1:0", "unix:/tmp/nowhere"])
def test_an_address_of_another_kind_is_refused(word: str, logged: Path) -> None:
    with pytest.raises(ConfigError, match=f"{word} is no address for a connection of tcp://"):
        replay.replay(script.load(str(logged), 1), word, print)


@contextmanager
def command(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`fastecho replay`, and its first line on standard error."""
    with subprocess.Popen(
        [*FASTECHO, "replay", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        try:
            assert process.stderr is not None
            yield process, process.stderr.readline()
        finally:
            process.kill()


def test_the_command_says_where_it_waits_and_what_it_did(logged: Path) -> None:
    with command(str(logged), "--connection", "1", "127.0.0.1:0") as (process, ready):
        what, protocol, where = READY.match(ready).groups()  # type: ignore[union-attr]
        assert (what, protocol) == ("connection", "tcp")
        talk(("127.0.0.1", int(where.rpartition(":")[2])))
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stderr.replace(ready, "")) == (0, "")
    assert re.fullmatch(r"connection 1: 36 bytes in, 36 bytes out in 10 pieces\n", stdout)


def test_the_command_listens_where_it_was_and_fails_if_the_client_differs(logged: Path) -> None:
    with command(str(logged)) as (process, ready):
        name = events(log(logged), "connected")[0]["listener"]
        assert ready == f"waiting for connection ... {name} (connection 1)\n"
        host, _, port = name.partition("//")[2].rpartition(":")
        with connected((host, int(port))) as sock:
            sock.sendall(b"other\n")
            stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout) == (1, "")
    assert stderr == (
        "fastecho: the request differs at offset 1: expected 6e 65 0a 74 77, got 74 68 65 72 0a\n"
    )


def test_ctrl_c_ends_the_command(logged: Path) -> None:
    with command(str(logged), "127.0.0.1:0") as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["nowhere"], 3, "cannot read nowhere: no such file or directory"),
        (["{log}", "--connection", "2"], 2, "has no connection 2: they are 1 to 1"),
        (["{log}", "nonsense"], 2, "'nonsense' is no address"),
        (["{log}", "--connection", "0"], 2, "0 is not in the range"),
        ([], 2, "Missing argument 'FILE'"),
    ],
)
def test_the_command_s_errors_are_one_sentence(
    arguments: list[str], status: int, told: str, logged: Path
) -> None:
    words = [word.replace("{log}", str(logged)) for word in arguments]
    with command(*words) as (process, said):
        assert process.wait(PATIENCE) == status
    assert told in said
