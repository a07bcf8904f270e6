"""What a daemon says of its clients: sentences for people, JSON lines for machines."""

from __future__ import annotations

import json
import logging
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from processes import PATIENCE, Daemon, abort, named, read_exactly, read_to_end, serving, until

import fastecho
from fastecho.cli.logs import JsonLines
from fastecho.tcp import Cuts

COMMON = {"time", "level", "event", "message"}
ESCAPE = "\x1b"


def records(daemon: Daemon) -> list[dict[str, Any]]:
    """The lines so far, each of which is a JSON object."""
    return [json.loads(line) for line in daemon.lines]


def record(daemon: Daemon, event: str) -> dict[str, Any]:
    """The one line of this event, once it is there."""
    until(lambda: any(each["event"] == event for each in records(daemon)), event)
    (found,) = [each for each in records(daemon) if each["event"] == event]
    return found


def fields(found: dict[str, Any]) -> dict[str, Any]:
    """What a line has besides what each has."""
    assert found.keys() >= COMMON
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["time"])
    return {name: value for name, value in found.items() if name not in COMMON}


@pytest.fixture(params=["text", "json"])
def form(request: pytest.FixtureRequest) -> str:
    """How it writes its log."""
    return request.param


@contextmanager
def saying(form: str, *arguments: str, backend: str, **listen: Any) -> Iterator[Daemon]:
    with serving("--log-format", form, *arguments, backend=backend, **listen) as daemon:
        yield daemon
    # (`serving` has looked at the exit status.)


# -- JSON lines


def test_each_event_of_a_connection_is_an_object(twin: Any) -> None:
    with saying("json", "-v", "--max-frame", "4", "--prefix", "", backend=twin.name) as daemon:
        with daemon.connect() as sock:
            peer, address = named(sock.getsockname()), sock.getsockname()
            sock.sendall(b"ok\ntoo long\n")
            assert read_to_end(sock) == b"ok\n"
        closed = record(daemon, "closed")
        connected, fault = record(daemon, "connected"), record(daemon, "fault")
        assert [each["event"] for each in records(daemon)] == ["connected", "fault", "closed"]
    assert fields(connected) == {"peer": peer}
    assert (connected["level"], connected["message"]) == ("info", f"... connected from: {address}")
    assert fields(fault) == {"peer": peer, "reason": "too_long", "offset": 3}
    assert fault["level"] == "warning"
    assert fault["message"].startswith(f"{peer}: frame at offset 3: ")
    assert fields(closed) == {"peer": peer, "reason": "too_long", "messages": 1}
    assert closed["level"] == "info"
    assert closed["message"] == f"{peer}: closed (too_long) after 1 message"


@pytest.mark.parametrize("how", ["eof", "reset"])
def test_an_end_says_how_it_came(how: str, twin: Any) -> None:
    with saying("json", "-v", "--prefix", "", backend=twin.name) as daemon:
        with daemon.connect() as sock:
            sock.sendall(b"a\nb\n")
            read_exactly(sock, 4)
            if how == "reset":
                abort(sock)
        closed = record(daemon, "closed")
    assert (closed["reason"], closed["messages"]) == (how, 2)


def test_each_datagram_is_an_object(twin: Any) -> None:
    with (
        saying("json", "-v", "--prefix", "", backend=twin.name) as daemon,
        daemon.datagram_socket() as sock,
    ):
        sock.send(b"x")
        assert sock.recv(100) == b"x"
        answered = record(daemon, "answered")
        peer, address = named(sock.getsockname()), sock.getsockname()
    assert fields(answered) == {"peer": peer}
    assert answered["level"] == "info"
    assert answered["message"] == f"... received from and returned to: {address}"


def test_a_summary_has_each_counter(twin: Any) -> None:
    """Its last line, at every log level."""
    with saying("json", "--prefix", "<>", "--max-frame", "3", backend=twin.name) as daemon:
        for stream in (b"a\nb\n", b"", b"long\n"):
            with daemon.connect() as sock:
                sock.sendall(stream)
                sock.shutdown(socket.SHUT_WR)
                read_to_end(sock)
        with daemon.datagram_socket() as sock:
            sock.send(b"x")
            sock.recv(10)
        assert daemon.stop() == 0
        (*_, last) = records(daemon)
        assert last == record(daemon, "summary")
    assert fields(last) == {
        "connections": 3,
        "messages": 3,
        "bytes_in": 10,
        "bytes_out": 11,
        "closed.eof": 2,
        "closed.too_long": 1,
    }
    assert last["message"] == (
        "served 3 connections, 3 messages, 10 bytes in, 11 bytes out; closed: eof 2, too_long 1"
    )


def test_what_expires_is_an_object(twin: Any) -> None:
    with (
        saying("json", "-v", "--frame-timeout", "0.1", backend=twin.name) as daemon,
        daemon.connect() as sock,
    ):
        sock.sendall(b"half")
        assert sock.recv(1) == b""
        peer = named(sock.getsockname())
        expired, closed = record(daemon, "expired"), record(daemon, "closed")
    assert fields(expired) == {"peer": peer, "reason": "frame_timeout"}
    assert expired["level"] == "warning"
    assert expired["message"] == (
        f"{peer}: closed after 0.1 s (frame_timeout), 4 bytes of a message pending"
    )
    assert closed["reason"] == "frame_timeout"


def test_a_listener_that_rests_is_an_object(twin: Any) -> None:
    with (
        saying("json", "--max-connections", "1", backend=twin.name) as daemon,
        daemon.connect(),
        daemon.connect(),
    ):
        resting = record(daemon, "resting")
    assert fields(resting) == {"reason": "max_connections", "open": 1}
    assert resting["level"] == "warning"
    assert resting["message"] == ("max_connections (1) reached; new ones wait until another ends")


# -- hints


RAW = "(for clients that send none: --framing raw)"
HINTS = [
    ("line", "text", b"a\nhi", 2, f"2 bytes and no newline yet {RAW}"),
    ("u32", "json", b"\0\0\0\5ab", 6, "6 bytes and no end of message yet (u32)"),
]


@pytest.mark.parametrize(("spec", "form", "sent", "held", "hint"), HINTS)
def test_an_unfinished_message_is_named_once(
    spec: str, form: str, sent: bytes, held: int, hint: str, twin: Any
) -> None:
    """Every newcomer's first trap."""
    with saying(form, "--framing", spec, "--prefix", "", backend=twin.name) as daemon:
        with daemon.connect() as sock:
            peer = named(sock.getsockname())
            sock.sendall(sent)
            daemon.wait_line("yet")
        if form == "json":
            unfinished = record(daemon, "unfinished")
            assert fields(unfinished) == {"peer": peer, "pending": held}
            assert unfinished["level"] == "warning"
            assert unfinished["message"] == f"{peer}: {hint}"
        else:
            assert daemon.lines[0] == f"{peer}: {hint}"


class Teller:
    """A stream, as far as it is spoken of."""

    def __init__(self, address: Any, **state: Any) -> None:
        self.address = address
        self.__dict__.update(state)


def said(caplog: pytest.LogCaptureFixture) -> tuple[str, dict[str, Any], str]:
    """Event, fields and sentence of the one thing that was said."""
    (found,) = caplog.records
    return found.event, found.fields, found.getMessage()  # type: ignore[attr-defined]


def test_who_does_not_read_is_named(caplog: pytest.LogCaptureFixture) -> None:
    fastecho.tcp.Tcp("line", 100).unread(Teller(("::1", 7, 0, 0), unsent=1234))  # type: ignore[arg-type]
    event, found, sentence = said(caplog)
    assert (event, found) == ("unread", {"peer": "[::1]:7", "unsent": 1234})
    assert sentence == "[::1]:7: the client does not read; 1234 bytes of replies wait for it"


@pytest.mark.parametrize(
    ("spec", "pending", "hint"),
    [
        ("line", 1, f"1 byte and no newline yet {RAW}"),
        ("line", 1000, f"1,000 bytes and no newline yet {RAW}"),
        ("delimiter:00", 3, "3 bytes and no end of message yet (delimiter:00)"),
    ],
)
def test_a_hint_says_what_is_missing(
    spec: str, pending: int, hint: str, caplog: pytest.LogCaptureFixture
) -> None:
    owner = fastecho.tcp.Tcp(spec, 100_000)
    owner.unfinished(Teller(("127.0.0.1", 7), pending=pending))  # type: ignore[arg-type]
    assert said(caplog) == (
        "unfinished",
        {"peer": "127.0.0.1:7", "pending": pending},
        f"127.0.0.1:7: {hint}",
    )


def test_an_idle_one_that_expires_has_nothing_pending(caplog: pytest.LogCaptureFixture) -> None:
    listener = SimpleNamespace(idle_timeout=2.5)
    idle = Teller(("127.0.0.1", 7), pending=0, listener=listener)
    fastecho.tcp.Tcp("line", 100).expired(idle, "idle_timeout")  # type: ignore[arg-type]
    assert said(caplog) == (
        "expired",
        {"peer": "127.0.0.1:7", "reason": "idle_timeout"},
        "127.0.0.1:7: closed after 2.5 s (idle_timeout)",
    )


# -- --show-cuts

CUTS = [
    # spec, what is sent at a time, the cuts of each message
    ("line", [b"hello", b" world\n"], [[5, 7]]),
    ("line", [b"a\nb\n", b"c", b"\n"], [[2], [2], [1, 1]]),
    ("line", [b"a\r", b"\n\n"], [[2, 1], [1]]),
    ("delimiter:0d0a", [b"a\r", b"\nb\r\n"], [[2, 1], [3]]),
    ("any:0d0a,0a", [b"a\r", b"\nb", b"\n\n"], [[2, 1], [1, 1], [1]]),
    ("fixed:3", [b"ab", b"cdef", b"g", b"hi"], [[2, 1], [3], [1, 2]]),
    ("u16", [b"\0", b"\2a", b"b\0\0", b"\0\1x"], [[1, 2, 1], [2], [3]]),
    ("u8", [b"\0\1a"], [[1], [2]]),
    ("length:width=1,offset=2,adjust=-1", [b"!!\3a", b"b"], [[4, 1]]),
    ("varint", [b"\x80", b"\1" + b"x" * 127, b"x"], [[1, 128, 1]]),
    ("netstring", [b"2:a", b"b,0", b":,"], [[3, 2], [1, 2]]),
    ("raw", [b"hello", b" world\n", b"\0"], [[5], [7], [1]]),
]


@pytest.mark.parametrize(("spec", "pieces", "cuts"), CUTS)
def test_cuts_tell_in_which_recvs_each_message_came(
    spec: str, pieces: list[bytes], cuts: list[list[int]]
) -> None:
    shown = Cuts(fastecho.framing.codec(spec))
    assert [parts for piece in pieces for parts in shown.feed(piece)] == cuts


def test_a_long_message_has_many_cuts() -> None:
    shown = Cuts(fastecho.framing.codec("line", 65_536))
    assert [shown.feed(b"x") for _ in range(3000)] == [[]] * 3000
    assert shown.feed(b"\n") == [[1] * 3001]


@pytest.mark.parametrize(
    ("spec", "steps"),
    [
        ("line", [(b"hello", 0, []), (b" world\n", 12, [[5, 7]]), (b"a\nb\n", 4, [[2], [2]])]),
        ("u16", [(b"\0\2", 0, []), (b"ab\0\0", 6, [[2, 2], [2]])]),
        ("raw", [(b"hello", 5, [[5]]), (b"\n\n", 2, [[2]])]),
    ],
)
def test_show_cuts_says_so_of_each_message(
    spec: str, steps: list[tuple[bytes, int, list[list[int]]]], form: str, twin: Any
) -> None:
    arguments = ("--show-cuts", "--framing", spec, "--prefix", "")
    with saying(form, *arguments, backend=twin.name) as daemon, daemon.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = named(sock.getsockname())
        due = []
        for data, replies, cuts in steps:
            sock.sendall(data)
            if not replies:
                taken(sock)
            read_exactly(sock, replies)
            due += cuts
        until(lambda: len(daemon.lines) >= len(due), "a line for each message")
        shown = [f"{peer}: recv {' + '.join(map(str, each))} -> {sum(each)}" for each in due]
        if form == "text":
            assert daemon.lines == shown
        else:
            assert [each["message"] for each in records(daemon)] == shown
            assert [fields(each) for each in records(daemon)] == [
                {"peer": peer, "parts": each} for each in due
            ]
            assert {(each["event"], each["level"]) for each in records(daemon)} == {
                ("cuts", "info")
            }


def taken(sock: socket.socket) -> None:
    """Until the other end has read what was sent (TCP(7): nothing of it is queued there)."""
    own, peer = sock.getsockname(), sock.getpeername()
    line = re.compile(rf"\s{hexed(peer)} {hexed(own)} 01 [0-9A-F]{{8}}:([0-9A-F]{{8}})")

    def look() -> bool:
        found = line.search(Path("/proc/net/tcp").read_text())
        return found is not None and int(found[1], 16) == 0

    until(look, "an empty receive queue")


def hexed(address: tuple[str, int]) -> str:
    """As /proc/net/tcp has it."""
    return f"{socket.inet_aton(address[0])[::-1].hex().upper()}:{address[1]:04X}"


def test_show_cuts_alone_says_nothing_of_connections(twin: Any) -> None:
    with saying("text", "--show-cuts", "--prefix", "", backend=twin.name) as daemon:
        with daemon.connect() as sock:
            sock.sendall(b"x\n")
            sock.shutdown(socket.SHUT_WR)
            read_to_end(sock)
        daemon.wait_line("recv 2 -> 2")
        assert daemon.stop() == 0
        assert not re.search("connected from|closed \\(", daemon.stderr)


def test_show_cuts_says_so_of_a_tail(twin: Any) -> None:
    """An unterminated one is a message too."""
    with saying("text", "--show-cuts", "--prefix", "", backend=twin.name) as daemon:
        with daemon.connect() as sock:
            sock.sendall(b"tail")
            sock.shutdown(socket.SHUT_WR)
            assert read_to_end(sock) == b"tail"
        assert daemon.stop() == 0
        assert "recv 4 -> 4\n" in daemon.stderr


# -- nothing that a terminal would obey


@contextmanager
def hostile(kind: int, folder: str, path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.settimeout(PATIENCE)
        sock.bind(f"{folder}/evil{ESCAPE}]0;owned\x07\n\r\x9b")
        sock.connect(path)
        yield sock


@pytest.mark.parametrize(
    "sent",
    [
        b"3:ok,",
        b"\x1b[2J:x,",
        b"\n\n\n",
        b"99999999999999999999999:",
        b"1:x\x1b",
    ],
)
def test_bytes_of_a_peer_never_reach_a_terminal_as_they_are(
    sent: bytes, form: str, twin: Any
) -> None:
    """Neither what breaks its framing, nor its own path."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fe", dir="/tmp"))
        daemon = stack.enter_context(
            saying(
                form,
                "-v",
                "--show-cuts",
                *("--framing", "netstring", "--prefix", ""),
                backend=twin.name,
                listen=("tcp://127.0.0.1:0", f"unix:{folder}/s", f"unixgram:{folder}/d"),
                lines=1,
            )
        )
        until(lambda: "unixgram:" in daemon.stderr, "its last ready line")
        with hostile(socket.SOCK_STREAM, folder, f"{folder}/s") as sock:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            read_to_end(sock)
        Path(f"{folder}/evil{ESCAPE}]0;owned\x07\n\r\x9b").unlink()
        with hostile(socket.SOCK_DGRAM, folder, f"{folder}/d") as sock:
            sock.send(sent)
            assert sock.recv(100) == sent
        assert daemon.stop() == 0
        assert "evil" in daemon.stderr
        plain = daemon.stderr.replace("\n", "")
        assert plain.isprintable(), [each for each in plain if not each.isprintable()]
        if form == "text":
            known = r"waiting for|\.\.\. (connected|received) from|unix:|served "
            assert all(re.match(known, line) for line in daemon.stderr.splitlines())


def test_json_is_one_line_in_ascii_whatever_is_said() -> None:
    line = format_json("two\nlines \u2028 \x1b[m \udcff", peer="é\n", raw=b"\xff", none=None)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == "two\nlines \u2028 \x1b[m \udcff"
    assert json.loads(line)["peer"] == "é\n"


def test_json_of_another_library_s_record_is_an_event_called_log() -> None:
    other = logging.LogRecord("other", logging.ERROR, "file", 1, "%s!", ("text",), None)
    line = json.loads(JsonLines().format(other))
    assert (line["event"], line["level"], line["message"]) == ("log", "error", "text!")


def test_the_time_of_a_line_is_utc_with_milliseconds() -> None:
    made = logging.makeLogRecord({"msg": "x", "created": 1_000_000_000.007, "msecs": 7.0})
    line = json.loads(JsonLines().format(made))
    assert line["time"] == "2001-09-09T01:46:40.007Z"
    assert datetime.fromisoformat(line["time"]) == datetime(
        2001, 9, 9, 1, 46, 40, 7_000, tzinfo=UTC
    )


def format_json(message: str, **more: object) -> str:
    made = logging.makeLogRecord({"msg": message, "event": "e", "fields": more})
    return JsonLines().format(made)


# -- where nobody sees colours


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_misspelt_variable_is_one_warning_and_an_orchestrator_s_none(form: str) -> None:
    """No terminal: no escape code, and nothing to try."""
    variables = {
        "FASTECHO_MAXFRAME": "7",
        "FASTECHO_SERVICE_HOST": "10.0.0.7",
        "FASTECHO_PORT_12345_TCP_PROTO": "tcp",
        "FASTECHO_LOG_FORMAT": form,
    }
    daemon = Daemon(["127.0.0.1:0"], variables)
    try:
        daemon.wait_ready(2)
        assert daemon.stop() == 0
        said = [line for line in daemon.stderr.splitlines() if not line.startswith("waiting for ")]
        assert ESCAPE not in daemon.stderr
    finally:
        daemon.discard()
    warning, _summary = said
    sentence = "FASTECHO_MAXFRAME is no setting: did you mean FASTECHO_MAX_FRAME?"
    if form == "json":
        found = json.loads(warning)
        assert fields(found) == {}
        assert (found["event"], found["level"]) == ("misspelt", "warning")
        assert found["message"] == sentence
    else:
        assert warning == sentence
