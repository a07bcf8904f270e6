"""`fastecho.client` and `fastecho client`: against fastecho, against servers that misbehave, as a
command in a pipe, and in a terminal.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import reference
import strategies
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from processes import PATIENCE, abort, environment, named, needs_ipv6, run, until
from reference import Framing, judge, wire

import fastecho
from fastecho import ConfigError, FastechoError, backend, cli, running
from fastecho.client import Client, Gone, Unanswered, converse, quoted

DONE, FAILED, USAGE, UNAVAILABLE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 130, 141

PREFIX = "<0>"
STAMP = r"\[\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\]"
#: For what never comes: long enough for a machine that is busy, and short enough to be waited for.
SOON = 0.1
#: What a sentence about a reply that did not come on a stream ends with.
ELSE = r"\(is the server's --framing line, too\?\)"
#: Every framing, each with a spec of its own.
SPECS = (
    "line",
    "delimiter:0d0a",
    "raw",
    "fixed:5",
    "u8",
    "u16le",
    "u32",
    "u64",
    "length:width=3,offset=2,adjust=-4,le",
    "varint",
    "netstring",
)


@pytest.fixture(scope="module")
def chosen(twin: backend.Twin) -> Iterator[str]:
    """The twin's name; clients of this process are of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "_chosen", lambda: twin.name)
        yield twin.name


@contextmanager
def talking(server: fastecho.Server, udp: bool = False, **options: Any) -> Iterator[Client]:
    """A client of the server's, over IPv4."""
    address = server.udp_address if udp else server.tcp_address
    with Client(named(address), udp, **{"timeout": PATIENCE, **options}) as client:
        yield client


# -- servers that misbehave


Act = Callable[[socket.socket], None]


@contextmanager
def acting(sock: socket.socket, act: Act) -> Iterator[None]:
    """Does this with a socket, in a thread; that a client hangs up meanwhile is no failure."""
    failures: list[BaseException] = []

    def do() -> None:
        try:
            with suppress(OSError):
                act(sock)
        except BaseException as failure:
            failures.append(failure)

    sock.settimeout(PATIENCE)
    thread = threading.Thread(target=do)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # wakes the thread, where it waits for something
        thread.join(PATIENCE)
        sock.close()
        assert not thread.is_alive()
    assert not failures, failures


@contextmanager
def stream_server(act: Act) -> Iterator[str]:
    """A TCP server that does this with its one connection; its address."""

    def accept(listener: socket.socket) -> None:
        with listener.accept()[0] as sock:
            sock.settimeout(PATIENCE)
            act(sock)

    listener = socket.create_server(("127.0.0.1", 0))
    with acting(listener, accept):
        yield named(listener.getsockname())


@contextmanager
def datagram_server(act: Act) -> Iterator[str]:
    """A UDP socket, with which this is done; its address."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    ended = threading.Event()

    def once(sock: socket.socket) -> None:
        act(sock)
        ended.wait(PATIENCE)  # a closed socket would refuse what comes next

    with acting(sock, once):
        try:
            yield named(sock.getsockname())
        finally:
            ended.set()


def saying(reply: bytes) -> Act:
    """To whatever comes first, says this; then waits for the end."""

    def act(sock: socket.socket) -> None:
        sock.recv(65_536)
        sock.sendall(reply)
        while sock.recv(65_536):
            pass

    return act


def silent(sock: socket.socket) -> None:
    """Reads all, says nothing."""
    while sock.recv(65_536):
        pass


class Talk(NamedTuple):
    """What `converse` showed, what it complained of, and whether all was right."""

    shown: list[bytes]
    complaints: list[str]
    right: bool


def talk(client: Client, *messages: bytes) -> Talk:
    shown: list[bytes] = []
    complaints: list[str] = []
    right = converse(client, messages, shown.append, complaints.append)
    return Talk(shown, complaints, right)


# -- against fastecho: any message, in every framing


def carried(framing: Framing, message: bytes) -> bool:
    """Whether the framing can carry it, says the reference."""
    if framing.kind in ("raw", "fixed"):
        return len(message) == framing.max_frame if framing.kind == "fixed" else message != b""
    if not 0 <= len(message) - framing.adjust < 1 << 8 * (framing.width or 8):
        return False
    frame = wire(framing, message)
    return judge(framing, frame) == ([reference.Frame(frame, message)], None, len(frame), 0)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Framing, list[bytes]]:
    framing = draw(strategies.framings(reserve=len(PREFIX)))
    return framing, draw(st.lists(strategies.payloads(framing), max_size=6))


@settings(max_examples=60)
@given(conversations())
def test_every_message_that_the_framing_can_carry_comes_back(
    chosen: str, conversation: tuple[Framing, list[bytes]]
) -> None:
    """The others are said to be impossible, and cost no other its reply."""
    framing, messages = conversation
    limit = None if framing.kind in ("raw", "fixed") else framing.max_frame
    options = {"framing": framing.spec, "prefix": PREFIX, "max_frame": limit}
    try:
        server = running(backend=chosen, **options)
        with server as one, talking(one, spec=framing.spec, template=PREFIX, max_frame=limit) as us:
            for message in messages:
                if carried(framing, message):
                    assert us.ask(message) == PREFIX.encode() + message
                else:
                    with pytest.raises(Unanswered, match=r"^cannot send '"):
                        us.ask(message)
            us.finish()
    except ConfigError as error:
        assume("can render the delimiter" not in str(error))
        raise


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec not in ("raw", "u8", "fixed:5")])
def test_the_largest_message_comes_back(spec: str, chosen: str) -> None:
    size = 65_000 if spec == "u16le" else 1_000_000
    message = bytes(range(16, 250)) * (size // 234)
    with (
        running(backend=chosen, framing=spec, max_frame=len(message)) as server,
        talking(server, spec=spec, max_frame=len(message)) as client,
    ):
        for _ in range(2):
            assert client.ask(message)[26:] == message
        with pytest.raises(Unanswered, match=r"longer than max_frame \([\d]+\)"):
            client.ask(message + b"x")
        assert client.ask(b"x" * 9)[26:] == b"x" * 9


@pytest.mark.parametrize("template", ["", "[{ctime}]", "{iso} {utc}", "{{:}}"])
def test_fixed_frames_with_any_prefix_of_one_width(template: str, chosen: str) -> None:
    with (
        running(backend=chosen, framing="fixed:5", prefix=template) as server,
        talking(server, spec="fixed:5", template=template) as client,
    ):
        replies = [client.ask(message) for message in (b"one..", b"\0\xff\n\r ", b"three")]
        assert [reply[-5:] for reply in replies] == [b"one..", b"\0\xff\n\r ", b"three"]
        client.finish()


@pytest.mark.parametrize("template", ["{seq}", "{peer}", "{epoch_ns}"])
def test_fixed_frames_need_a_prefix_of_one_width(template: str, chosen: str) -> None:
    with pytest.raises(ConfigError, match="only if all prefixes have one width"):
        Client("127.0.0.1:1", spec="fixed:5", template=template)


def test_a_thousand_messages_on_one_connection(chosen: str) -> None:
    with running(backend=chosen, prefix="{seq} ") as server, talking(server) as client:
        for number in range(1, 1001):
            assert client.ask(b"m%d" % number) == b"%d m%d" % (number, number)
        client.finish()
        assert server.counters["messages"] == 1000
        assert server.counters["connections"] == 1


@settings(max_examples=30)
@given(messages=st.lists(st.binary(max_size=40), max_size=5))
def test_every_datagram_comes_back(chosen: str, messages: list[bytes]) -> None:
    with running(backend=chosen, prefix=PREFIX) as server, talking(server, udp=True) as client:
        for message in messages:
            assert client.ask(message) == PREFIX.encode() + message
        client.finish()


def test_the_largest_datagram_comes_back(chosen: str) -> None:
    largest = 65_507
    with running(backend=chosen, prefix="") as server, talking(server, udp=True) as client:
        message = bytes(range(255)) * 256 + b"x" * (largest - 255 * 256)
        assert client.ask(message) == message
        with pytest.raises(Unanswered, match=r"^65,508 bytes are too many for a datagram$"):
            client.ask(message + b"y")
        assert client.ask(b"z") == b"z"


@needs_ipv6
@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
def test_speaks_ipv6(udp: bool, chosen: str) -> None:
    with running(backend=chosen, listen="[::1]:0", prefix=PREFIX) as server:
        port = (server.udp_address if udp else server.tcp_address)[1]
        with Client(f"[::1]:{port}", udp) as client:
            assert client.name == f"{'udp' if udp else 'tcp'}://[::1]:{port}"
            assert client.ask(b"six") == b"<0>six"


@pytest.mark.parametrize("protocol", ["unix", "unixgram"])
def test_speaks_to_unix_sockets(protocol: str, chosen: str, tmp_path: Path) -> None:
    """To datagrams too: it has a name of its own, so it is answered."""
    word = f"{protocol}:{tmp_path}/socket"
    with running(backend=chosen, listen=word, prefix=PREFIX), Client(word) as client:
        assert client.name == word
        assert client.ask(b"local") == b"<0>local"
        assert client.ask(b"x" * 60_000) == b"<0>" + b"x" * 60_000
        client.finish()


@pytest.mark.parametrize("size", [65_509, 65_510, 65_535])
def test_the_largest_unix_datagram_comes_back(size: int, chosen: str, tmp_path: Path) -> None:
    """With its prefix it is larger than any of UDP."""
    word = f"unixgram:{tmp_path}/socket"
    with running(backend=chosen, listen=word), Client(word, timeout=5) as client:
        assert client.ask(b"x" * size)[26:] == b"x" * size


@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
def test_an_empty_host_is_this_machine(udp: bool, chosen: str) -> None:
    """Its addresses are two, and the server has one of them."""
    with running(backend=chosen, prefix=PREFIX) as server:
        port = (server.udp_address if udp else server.tcp_address)[1]
        with Client(f":{port}", udp) as client:
            assert client.ask(b"here") == b"<0>here"


@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
def test_localhost_has_a_server_on_one_of_its_addresses(
    udp: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(backend=chosen, prefix=PREFIX) as server:
        port = (server.udp_address if udp else server.tcp_address)[1]
        resolving_to(monkeypatch, "127.0.0.2", "127.0.0.1")
        with Client(f"localhost:{port}", udp) as client:
            assert client.ask(b"here") == b"<0>here"
            assert client.ask(b"again") == b"<0>again"


def resolving_to(monkeypatch: pytest.MonkeyPatch, *hosts: str, family: int = 2) -> None:
    """Each name has these IPv4 addresses; whatever the machine's own files say."""

    def look_up(host: str, port: int, type: int = 0) -> list[Any]:  # noqa: A002
        found = [(family, type, 0, "", (hosts[0], port))]
        return found + [(socket.AF_INET, type, 0, "", (other, port)) for other in hosts[1:]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_the_next_address_of_a_name_has_all_its_time(
    chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first refuses a datagram, which is known only after it was sent."""

    def late(sock: socket.socket) -> None:
        message, client = sock.recvfrom(100)
        time.sleep(2 * SOON)  # what is tested is that this is waited for
        sock.sendto(b"late " + message, client)

    with datagram_server(late) as word:
        resolving_to(monkeypatch, "127.0.0.2", "127.0.0.1")
        with Client(f"localhost:{word.rpartition(':')[2]}", udp=True) as client:
            assert client.ask(b"a") == b"late a"


@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
def test_an_address_of_a_family_that_is_not_spoken_here_is_passed_over(
    udp: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ::1 is where the kernel has no IPv6."""
    with running(backend=chosen, prefix=PREFIX) as server:
        port = (server.udp_address if udp else server.tcp_address)[1]
        resolving_to(monkeypatch, "127.0.0.1", "127.0.0.1", family=99)
        with Client(f"localhost:{port}", udp) as client:
            assert client.ask(b"here") == b"<0>here"


def test_is_of_the_chosen_backend(chosen: str, twin: backend.Twin) -> None:
    with running(backend=chosen) as server, talking(server) as client:
        assert type(client._codec) is twin.DelimiterCodec
        assert type(client._replies.codec) is twin.DelimiterCodec


# -- a conversation


def test_an_empty_message_ends_it(chosen: str) -> None:
    with running(backend=chosen, prefix=PREFIX) as server, talking(server) as client:
        assert talk(client, b"a", b"", b"b") == ([b"<0>a"], [], True)


def test_what_cannot_be_sent_fails_alone(chosen: str) -> None:
    with running(backend=chosen, prefix=PREFIX) as server, talking(server) as client:
        shown, complaints, right = talk(client, b"a", b"b\nc", b"d")
    assert (shown, right) == ([b"<0>a", b"<0>d"], False)
    assert complaints == [
        "cannot send 'b\\nc': the payload holds, or completes, the delimiter b'\\n'"
    ]


@pytest.mark.parametrize("messages", [[], [b""]])
def test_nothing_said_is_nothing_wrong(messages: list[bytes], chosen: str) -> None:
    with running(backend=chosen) as server:
        for udp in (False, True):
            with talking(server, udp=udp) as client:
                assert talk(client, *messages) == ([], [], True)


def test_a_server_that_is_too_strict_ends_it(chosen: str) -> None:
    """Each side has a limit of its own."""
    with running(backend=chosen, prefix=PREFIX, max_frame=5) as server, talking(server) as client:
        shown, complaints, right = talk(client, b"short", b"longer", b"never")
    assert (shown, right) == ([b"<0>short"], False)
    (complaint,) = complaints
    assert complaint.endswith("the server has closed; no reply to 'longer'")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "''"),
        (b"plain", "'plain'"),
        (b"\x1b[2J\x07\xff\xe2\x80\xae\n'", '"\\x1b[2J\\x07\\xff\\xe2\\x80\\xae\\n\'"'),
        (b"x" * 60, f"'{'x' * 60}'"),
        (b"x" * 70_000, f"'{'x' * 60}' and 69,940 bytes more"),
    ],
)
def test_what_is_quoted_is_short_and_printable(data: bytes, sentence: str) -> None:
    assert quoted(data) == sentence


# -- nobody to talk to


@pytest.fixture
def unused() -> Iterator[str]:
    """A UDP and TCP address where nobody is, for as long as the test lasts."""
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as bound,
    ):
        address = tcp.getsockname()
        tcp.close()
        bound.bind(address)  # and does not listen
        yield named(address)


@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
def test_who_refuses_is_nobody_to_talk_to(udp: bool, unused: str, chosen: str) -> None:
    protocol = "udp" if udp else "tcp"
    expected = f"^cannot reach {protocol}://{unused}: connection refused \\(error 111\\)$"
    with pytest.raises(FastechoError, match=expected) as caught, Client(unused, udp) as client:
        client.ask(b"anybody")
    assert not isinstance(caught.value, Gone | Unanswered)


@pytest.mark.parametrize("protocol", ["unix", "unixgram"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "no such file or directory (error 2)"),
        ("file", "connection refused (error 111)"),
        ("stale", "connection refused (error 111)"),
        ("other", "protocol wrong type for socket (error 91)"),
    ],
)
def test_a_path_where_nobody_answers(
    name: str, words: str, protocol: str, chosen: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    kinds = {"unix": socket.SOCK_STREAM, "unixgram": socket.SOCK_DGRAM}
    with socket.socket(socket.AF_UNIX, kinds[protocol]) as stale:
        stale.bind(str(tmp_path / "stale"))
    other = "unixgram" if protocol == "unix" else "unix"
    word = f"{protocol}:{tmp_path}/{name}"
    with running(backend=chosen, listen=f"{other}:{tmp_path}/other"):
        with pytest.raises(FastechoError) as caught:
            Client(word)
        assert str(caught.value) == f"cannot reach {word}: {words}"


def test_a_server_that_never_accepts_is_timed_out(chosen: str) -> None:
    """Its queue is full, so the kernel does not answer either."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        word = named(listener.getsockname())
        with suppress(FastechoError):
            for _ in range(8):
                stack.enter_context(Client(word, timeout=SOON))
        with pytest.raises(FastechoError, match=f"^cannot reach tcp://{word}: timed out$"):
            Client(word, timeout=SOON)


def test_an_accepted_connection_that_is_not_served_is_timed_out(chosen: str) -> None:
    with (
        stream_server(silent) as word,
        Client(word, timeout=SOON) as client,
        pytest.raises(Gone, match=f"^no reply to 'x' within {SOON:g} s {ELSE}$"),
    ):
        client.ask(b"x")


def test_a_name_that_has_no_address(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(FastechoError) as caught:
        Client("no.such:7")
    assert str(caught.value) == "cannot reach tcp://no.such:7: name or service not known (error -2)"


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "\udcff"])
def test_what_cannot_be_a_host_name(host: str, chosen: str) -> None:
    with pytest.raises(FastechoError, match="not a host name"):
        Client(f"{host}:7")


@pytest.mark.parametrize("timeout", [4_294_967.4, 1e9])
def test_a_long_timeout_is_not_a_short_one(timeout: float, chosen: str) -> None:
    """poll(2) counts milliseconds in 32 bits: the first is 104 ms there."""

    def late(sock: socket.socket) -> None:
        message = sock.recv(100)
        time.sleep(3 * SOON)  # what is tested is that this is waited for
        sock.sendall(message)
        silent(sock)

    with stream_server(late) as word, Client(word, timeout=timeout) as client:
        assert client.ask(b"x") == b"x"


@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
def test_no_time_at_all_is_said_to_be_too_little(udp: bool, unused: str, chosen: str) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        Client(unused, udp, timeout=0)


# -- streams that misbehave


def resetting(sock: socket.socket) -> None:
    sock.recv(100)
    abort(sock)


def closing(sock: socket.socket) -> None:
    sock.recv(100)
    sock.close()


def test_a_reset_is_said_with_its_number(chosen: str) -> None:
    with stream_server(resetting) as word, Client(word) as client:
        shown, complaints, right = talk(client, b"x", b"y")
    assert (shown, right) == ([], False)
    assert complaints == [f"tcp://{word}: connection reset by peer (error 104)"]


def test_a_reset_before_anything_was_said(chosen: str) -> None:
    """It may be found when sending, or when receiving."""
    connected = threading.Event()
    done = threading.Event()

    def at_once(sock: socket.socket) -> None:
        assert connected.wait(PATIENCE)
        abort(sock)
        done.set()

    with stream_server(at_once) as word, Client(word) as client:
        connected.set()
        assert done.wait(PATIENCE)
        shown, (complaint,), right = talk(client, b"x", b"y")
    assert (shown, right) == ([], False)
    assert re.fullmatch(rf"tcp://{word}: (connection reset by peer|broken pipe) .*", complaint)


def test_a_reset_in_the_middle_of_a_reply(chosen: str) -> None:
    read = threading.Event()

    def act(sock: socket.socket) -> None:
        sock.sendall(b"1 " + sock.recv(100))
        sock.recv(100)
        sock.sendall(b"2 tw")
        assert read.wait(PATIENCE)
        abort(sock)

    with stream_server(act) as word, Client(word) as client:
        assert client.ask(b"one") == b"1 one"
        threading.Timer(SOON, read.set).start()
        with pytest.raises(Gone, match=r"connection reset by peer \(error 104\)$"):
            client.ask(b"two")


def test_a_server_that_closes_is_said_to_have_closed(chosen: str) -> None:
    with stream_server(closing) as word, Client(word) as client:
        assert talk(client, b"x", b"y") == (
            [],
            [f"tcp://{word}: the server has closed; no reply to 'x'"],
            False,
        )


def test_one_that_closes_after_a_reply_still_gave_that(chosen: str) -> None:
    def once(sock: socket.socket) -> None:
        sock.sendall(b"ok " + sock.recv(100))

    with stream_server(once) as word, Client(word) as client:
        shown, (complaint,), right = talk(client, b"x", b"y")
    assert (shown, right) == ([b"ok x"], False)
    assert "no reply to 'y'" in complaint or "(error " in complaint


def test_the_deadline_holds_while_a_reply_drips(chosen: str) -> None:
    """Each byte comes in time, and the reply does not."""
    ended = threading.Event()

    def drip(sock: socket.socket) -> None:
        sock.recv(100)
        while not ended.wait(SOON / 20):
            sock.sendall(b"x")

    with stream_server(drip) as word, Client(word, timeout=2 * SOON) as client:
        begin = time.monotonic()
        with pytest.raises(Gone, match=rf"^no reply to 'a' within 0\.2 s {ELSE}$"):
            client.ask(b"a")
        assert time.monotonic() - begin < PATIENCE / 2
        ended.set()


def test_the_deadline_holds_while_a_message_is_not_taken(chosen: str) -> None:
    """More than the kernel has room for."""
    ended = threading.Event()

    def deaf(_: socket.socket) -> None:
        ended.wait(PATIENCE)

    with (
        stream_server(deaf) as word,
        Client(word, max_frame=1 << 25, timeout=2 * SOON) as client,
    ):
        with pytest.raises(Gone, match=r"^no reply to 'x{60}' and [\d,]+ bytes more within"):
            client.ask(b"x" * (1 << 25))
        ended.set()


def test_a_reply_that_drips_in_time_is_right(chosen: str) -> None:
    def drip(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in b"[drip]" + sock.recv(100):
            sock.sendall(bytes([octet]))
        silent(sock)

    with stream_server(drip) as word, Client(word) as client:
        assert talk(client, b"slow") == ([b"[drip]slow"], [], True)


def flooding(piece: bytes) -> Act:
    def act(sock: socket.socket) -> None:
        sock.recv(100)
        while True:
            sock.sendall(piece)

    return act


def test_a_flood_of_lines_is_one_wrong_reply(chosen: str) -> None:
    with stream_server(flooding(b"spam\n" * 1000)) as word, Client(word) as client:
        assert talk(client, b"x", b"y") == (
            [],
            ["the reply to 'x' does not end with it: 'spam'"],
            False,
        )


def test_a_flood_after_the_right_reply_is_a_reply_too_many(chosen: str) -> None:
    with stream_server(flooding(b"x\n" * 1000)) as word, Client(word) as client:
        assert talk(client, b"x") == ([b"x"], ["a reply too many: 'x'"], False)


@pytest.mark.parametrize("spec", ["line", "u32", "varint", "netstring", "delimiter:00ff"])
def test_a_flood_without_an_end_is_not_held(spec: str, chosen: str) -> None:
    """What is held of it is the longest reply, at most, or what was announced of it and came."""
    framing = {"u32": b"\x7f\xff\xff\xff", "varint": b"\xff\xff\xff\xff\x07"}.get(spec, b"")
    piece = b"1" * 65_536

    def flood(sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(framing)
        while True:
            sock.sendall(piece)

    tracemalloc.start()
    try:
        with (
            stream_server(flood) as word,
            Client(word, spec=spec) as client,
            pytest.raises(Gone, match=r"^the reply to 'x' is none: .* longer than max_frame"),
        ):
            client.ask(b"x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_a_flood_without_an_end_after_the_last_reply_is_wrong_too(chosen: str) -> None:
    def flood(sock: socket.socket) -> None:
        sock.sendall(sock.recv(100))
        while True:
            sock.sendall(b"y" * 65_536)

    with stream_server(flood) as word, Client(word) as client:
        shown, complaints, right = talk(client, b"x")
    assert (shown, right) == ([b"x"], False)
    assert len(complaints) == 1


GARBAGE = [
    # spec, message, what the server says, what is said of it
    ("line", b"a", b"b\n", "does not end with it: 'b'"),
    ("line", b"a", b"\n", "does not end with it: ''"),
    ("line", b"a", b"a\r\n", r"does not end with it: 'a\r'"),
    ("line", b"a", b"\xff\x1b[2J\n", r"does not end with it: '\xff\x1b[2J'"),
    ("u8", b"a", b"\1b", "does not end with it: 'b'"),
    ("u8", b"a", b"\2ab", "does not end with it: 'ab'"),
    ("u16", b"a", b"HTTP/1.1 400 Bad Request\r\n\r\n", "is none: frame at offset 0: the stream en"),
    ("u32", b"a", b"HTTP/1.1 400 Bad Request\r\n\r\n", "is none: frame at offset 0: longer than"),
    ("varint", b"a", b"\xff" * 10, "is none: frame at offset 0: "),
    ("netstring", b"a", b"01:a,", "is none: frame at offset 0: "),
    ("netstring", b"a", b"1:a;", "is none: frame at offset 0: "),
    ("netstring", b"a", b"what?", "is none: frame at offset 0: "),
    ("fixed:3", b"abc", b"b" * 29, "does not end with it: 'bbbb"),
    ("length:width=2,adjust=-3", b"a", b"\0\1", "is none: frame at offset 0: "),
]


@pytest.mark.parametrize(("spec", "message", "reply", "words"), GARBAGE)
def test_garbage_is_no_reply(
    spec: str, message: bytes, reply: bytes, words: str, chosen: str
) -> None:
    def act(sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(reply)

    with stream_server(act) as word, Client(word, spec=spec) as client:
        shown, (complaint,), right = talk(client, message, message)
    assert (shown, right) == ([], False)
    assert words in complaint
    assert complaint.startswith(f"the reply to {quoted(message)} ")
    assert complaint.isascii()
    assert complaint.isprintable()


@pytest.mark.parametrize(
    ("spec", "reply"),
    [
        ("fixed:3", b"[" + b"x" * 27),
        ("u8", b"\x1d[half"),
        ("u32", b"\0\0"),
        ("length:width=2,offset=3", b"abc\0"),
        ("varint", b"\x80"),
        ("netstring", b"29:[half"),
    ],
)
def test_half_a_frame_is_no_reply(spec: str, reply: bytes, chosen: str) -> None:
    def act(sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(reply)

    with (
        stream_server(act) as word,
        Client(word, spec=spec) as client,
        pytest.raises(Gone) as caught,
    ):
        client.ask(b"abc")
    assert str(caught.value) == (
        "the reply to 'abc' is none: frame at offset 0:"
        f" the stream ended {len(reply)} bytes into it"
    )


def test_half_a_line_with_the_message_at_its_end_is_a_reply(chosen: str) -> None:
    """The end of the stream ends a line too."""

    def act(sock: socket.socket) -> None:
        sock.sendall(b"> " + sock.recv(100)[:-1])

    with stream_server(act) as word, Client(word) as client:
        assert client.ask(b"last") == b"> last"


def test_an_answer_of_another_message_ends_it(chosen: str) -> None:
    """What follows could not be told apart."""

    def swapped(sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(b"ok two\nok one\n")
        silent(sock)

    with stream_server(swapped) as word, Client(word) as client:
        assert talk(client, b"one", b"two") == (
            [],
            ["the reply to 'one' does not end with it: 'ok two'"],
            False,
        )


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([b"a"], "a reply too many: 'a'"),
        ([b"a", b"b"], "the reply to 'b' does not end with it: 'a'"),
        ([b"a", b"a"], "a reply too many: 'a'"),
    ],
)
def test_an_answer_that_comes_twice_is_one_too_many(
    messages: list[bytes], complaint: str, chosen: str
) -> None:
    def twice(sock: socket.socket) -> None:
        while data := sock.recv(100):
            sock.sendall(data * 2)

    with stream_server(twice) as word, Client(word) as client:
        shown, complaints, right = talk(client, *messages)
    assert (complaints, right) == ([complaint], False)
    assert shown in ([b"a"], [b"a", b"a"])


def test_a_greeting_is_no_reply(chosen: str) -> None:
    def greeting(sock: socket.socket) -> None:
        sock.sendall(b"220 ready\n")
        silent(sock)

    with (
        stream_server(greeting) as word,
        Client(word) as client,
    ):
        assert talk(client) == ([], ["a reply too many: '220 ready'"], False)
    with (
        stream_server(greeting) as word,
        Client(word) as client,
    ):
        shown, complaints, right = talk(client, b"HELO")
        assert complaints == ["the reply to 'HELO' does not end with it: '220 ready'"]
        assert (shown, right) == ([], False)


def test_a_server_that_does_not_close_is_not_waited_for_for_long(chosen: str) -> None:
    ended = threading.Event()

    def act(sock: socket.socket) -> None:
        sock.sendall(sock.recv(100))
        ended.wait(PATIENCE)

    with stream_server(act) as word, Client(word, timeout=SOON) as client:
        assert talk(client, b"x") == ([b"x"], [], True)
        ended.set()


def test_a_reset_after_the_last_reply_takes_nothing_back(chosen: str) -> None:
    def act(sock: socket.socket) -> None:
        sock.sendall(sock.recv(100))
        silent(sock)
        abort(sock)

    with stream_server(act) as word, Client(word) as client:
        assert talk(client, b"x") == ([b"x"], [], True)


def test_the_end_of_input_is_a_half_close(chosen: str) -> None:
    """So that the server can tell a client that has done from one that has gone."""
    ends: list[bytes] = []

    def act(sock: socket.socket) -> None:
        sock.sendall(sock.recv(100))
        ends.append(sock.recv(100))

    with stream_server(act) as word, Client(word) as client:
        assert talk(client, b"x").right
        assert ends == [b""]


# -- datagrams that misbehave


def test_a_lost_reply_is_one_sentence_and_the_next_may_come(chosen: str) -> None:
    def forgetful(sock: socket.socket) -> None:
        sock.recvfrom(100)
        data, client = sock.recvfrom(100)
        sock.sendto(b"2 " + data, client)

    with datagram_server(forgetful) as word, Client(word, udp=True, timeout=SOON) as client:
        first = talk(client, b"one")
        client.timeout = PATIENCE
        second = talk(client, b"two")
    assert first == ([], [f"no reply to 'one' within {SOON:g} s"], False)
    assert second == ([b"2 two"], [], True)


def test_a_late_reply_is_not_taken_for_the_next_one(chosen: str) -> None:
    later = threading.Event()

    def late(sock: socket.socket) -> None:
        first, client = sock.recvfrom(100)
        assert later.wait(PATIENCE)
        second, _ = sock.recvfrom(100)
        sock.sendto(b"1 " + first, client)
        sock.sendto(b"2 " + second, client)

    with datagram_server(late) as word, Client(word, udp=True, timeout=SOON) as client:
        with pytest.raises(Unanswered):
            client.ask(b"one")
        later.set()
        client.timeout = PATIENCE
        shown, complaints, right = talk(client, b"two")
    assert (shown, right) == ([b"2 two"], True)
    assert len(complaints) == 1


def test_a_reply_that_came_too_late_is_not_that_of_the_same_message_said_again(
    chosen: str,
) -> None:
    """It has come before the message was sent, so it cannot be its reply."""
    came = threading.Event()
    gone = threading.Event()

    def late(sock: socket.socket) -> None:
        data, client = sock.recvfrom(100)
        assert gone.wait(PATIENCE)
        sock.sendto(b"1 " + data, client)
        came.set()
        data, client = sock.recvfrom(100)
        sock.sendto(b"2 " + data, client)

    with datagram_server(late) as word, Client(word, udp=True, timeout=SOON) as client:
        with pytest.raises(Unanswered):
            client.ask(b"ping")
        gone.set()
        assert came.wait(PATIENCE)
        client.timeout = PATIENCE
        assert client.ask(b"ping") == b"2 ping"


def test_a_reply_that_came_twice_is_not_that_of_the_same_message_said_again(chosen: str) -> None:
    sent = threading.Event()

    def twice(sock: socket.socket) -> None:
        for number in (b"1 ", b"2 "):
            data, client = sock.recvfrom(100)
            sock.sendto(number + data, client)
            sock.sendto(number + data, client)
            sent.set()

    with datagram_server(twice) as word, Client(word, udp=True) as client:
        assert client.ask(b"ping") == b"1 ping"
        assert sent.wait(PATIENCE)
        assert client.ask(b"ping") == b"2 ping"


def test_stray_datagrams_are_counted(chosen: str) -> None:
    def act(sock: socket.socket) -> None:
        data, client = sock.recvfrom(100)
        for stray in (b"", b"\x1b[2J", b"other", data + b"!"):
            sock.sendto(stray, client)
        sock.sendto(b"ok " + data, client)

    with datagram_server(act) as word, Client(word, udp=True) as client:
        shown, (complaint,), right = talk(client, b"x")
    assert (shown, right) == ([b"ok x"], True)
    assert complaint.startswith("4 datagrams ")


def test_strays_do_not_lengthen_the_deadline(chosen: str) -> None:
    ended = threading.Event()

    def act(sock: socket.socket) -> None:
        _, client = sock.recvfrom(100)
        while not ended.wait(SOON / 20):
            sock.sendto(b"stray", client)

    with datagram_server(act) as word, Client(word, udp=True, timeout=2 * SOON) as client:
        begin = time.monotonic()
        with pytest.raises(Unanswered, match=r"^no reply to 'x' within 0.2 s \(\d+ datagrams? "):
            client.ask(b"x")
        assert time.monotonic() - begin < PATIENCE / 2
        ended.set()


def test_datagrams_of_others_are_not_even_strays(chosen: str) -> None:
    """A connected socket does not get them (udp(7))."""

    def act(sock: socket.socket) -> None:
        data, client = sock.recvfrom(100)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(b"forged " + data, client)
        sock.sendto(b"ok " + data, client)

    with datagram_server(act) as word, Client(word, udp=True) as client:
        assert talk(client, b"x") == ([b"ok x"], [], True)


@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
def test_a_server_that_was_heard_and_stops_is_gone(udp: bool, chosen: str) -> None:
    with ExitStack() as stack:
        with running(backend=chosen, prefix=PREFIX) as server:
            client = stack.enter_context(talking(server, udp=udp))
            assert client.ask(b"a") == b"<0>a"
        shown, (complaint,), right = talk(client, b"b", b"c")
    assert (shown, right) == ([], False)
    assert re.search(r"closed; no reply to 'b'|\(error \d+\)$", complaint), complaint


# -- the command, in a pipe


def client(
    word: str, *flags: str, stdin: bytes = b"", chosen: str = "auto"
) -> subprocess.CompletedProcess[bytes]:
    """`fastecho client`, to its end; it must never show a traceback."""
    command = [sys.executable, "-W", "error", "-m", "fastecho", "client", word, *flags]
    done = run(*command, stdin=stdin, variables={"FASTECHO_BACKEND": chosen})
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert b"Warning" not in done.stderr, done.stderr.decode()
    return done


def one_sentence(stderr: bytes) -> str:
    """The one sentence; it is printable ASCII, whatever the peer said."""
    text = stderr.decode("ascii")
    assert text.startswith("fastecho: "), text
    assert text.endswith("\n"), text
    sentence = text.removesuffix("\n")
    assert sentence.isprintable(), text
    return sentence.removeprefix("fastecho: ")


@pytest.mark.parametrize("flags", [(), ("--udp",)], ids=["tcp", "udp"])
@pytest.mark.parametrize(
    ("stdin", "stdout"),
    [
        (b"a\nb\n", b"<0>a\n<0>b\n"),
        (b"a\nb", b"<0>a\n<0>b\n"),
        (b"a\r\n\r\nb\r\n", b"<0>a\r\n<0>\r\n<0>b\r\n"),
        (
            b"\0\n\xff\xfe\x80\x1b[2J\n\xe2\x80\xae",
            b"<0>\0\n<0>\xff\xfe\x80\x1b[2J\n<0>\xe2\x80\xae\n",
        ),
        (b"", b""),
        (b"\n", b""),
        (b"a\n\nb\n", b"<0>a\n"),
    ],
    ids=["lines", "no end", "cr lf", "any byte", "nothing", "an empty line", "an end within"],
)
def test_prints_one_reply_a_line(
    stdin: bytes, stdout: bytes, flags: tuple[str, ...], chosen: str
) -> None:
    with running(backend=chosen, prefix=PREFIX) as server:
        address = server.udp_address if flags else server.tcp_address
        done = client(named(address), *flags, stdin=stdin, chosen=chosen)
    assert (done.returncode, done.stdout, done.stderr) == (DONE, stdout, b"")


@pytest.mark.parametrize("spec", SPECS)
def test_sends_each_line_in_its_framing(spec: str, chosen: str) -> None:
    with running(backend=chosen, framing=spec) as server:
        word = named(server.tcp_address)
        done = client(word, "--framing", spec, stdin=b"hello\nworld\n", chosen=chosen)
    assert (done.returncode, done.stderr) == (DONE, b"")
    assert re.fullmatch(f"{STAMP}hello\n{STAMP}world\n".encode(), done.stdout)


def test_speaks_to_a_unix_socket(chosen: str, tmp_path: Path) -> None:
    word = f"unix:{tmp_path}/socket"
    with running(backend=chosen, listen=word, prefix=PREFIX):
        done = client(word, stdin=b"x\n", chosen=chosen)
    assert (done.returncode, done.stdout, done.stderr) == (DONE, b"<0>x\n", b"")


def test_a_line_that_its_framing_cannot_carry_is_one_sentence_and_status_1(chosen: str) -> None:
    with running(backend=chosen, framing="fixed:5", prefix=PREFIX) as server:
        word = named(server.tcp_address)
        flags = ("--framing", "fixed:5", "--prefix", PREFIX)
        done = client(word, *flags, stdin=b"hello\nhi\nworld\n", chosen=chosen)
    assert (done.returncode, done.stdout) == (FAILED, b"<0>hello\n<0>world\n")
    assert one_sentence(done.stderr) == "cannot send 'hi': fixed:5 cannot carry 2 bytes"


def test_a_reply_that_does_not_come_is_one_sentence_and_status_1_at_the_end(chosen: str) -> None:
    def second_only(sock: socket.socket) -> None:
        sock.recvfrom(100)
        data, peer = sock.recvfrom(100)
        sock.sendto(b"<0>" + data, peer)

    with datagram_server(second_only) as word:
        done = client(word, "--udp", "--timeout", "0.5", stdin=b"a\nb\n", chosen=chosen)
    assert (done.returncode, done.stdout) == (FAILED, b"<0>b\n")
    assert one_sentence(done.stderr) == "no reply to 'a' within 0.5 s"


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (resetting, "tcp://{}: connection reset by peer (error 104)"),
        (closing, "tcp://{}: the server has closed; no reply to 'a'"),
        (
            saying(b"\x1b]0;owned\x07\x9b\xe2\x80\xae\xff\n"),
            r"the reply to 'a' does not end with it: '\x1b]0;owned\x07\x9b\xe2\x80\xae\xff'",
        ),
    ],
    ids=["reset", "close", "escapes"],
)
def test_a_server_that_fails_midway_is_one_sentence_and_status_1(
    act: Act, sentence: str, chosen: str
) -> None:
    with stream_server(act) as word:
        done = client(word, stdin=b"a\nb\n", chosen=chosen)
    assert (done.returncode, done.stdout) == (FAILED, b"")
    assert one_sentence(done.stderr) == sentence.format(word)


@pytest.mark.parametrize("flags", [(), ("--udp",)], ids=["tcp", "udp"])
def test_nobody_there_is_one_sentence_and_status_3(
    flags: tuple[str, ...], unused: str, chosen: str
) -> None:
    done = client(unused, *flags, stdin=b"a\n", chosen=chosen)
    assert (done.returncode, done.stdout) == (UNAVAILABLE, b"")
    protocol = "udp" if flags else "tcp"
    assert one_sentence(done.stderr) == (
        f"cannot reach {protocol}://{unused}: connection refused (error 111)"
    )


def test_no_way_there_is_one_sentence_and_status_3(chosen: str) -> None:
    """In a network namespace of its own, where not even the loopback is up."""
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    try:
        able = subprocess.run([*alone, "true"], capture_output=True, timeout=PATIENCE, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if able.returncode:
        pytest.skip("no network namespace can be made here")
    command = [*alone, sys.executable, "-m", "fastecho", "client", "127.0.0.1:7"]
    done = run(*command, stdin=b"a\n", variables={"FASTECHO_BACKEND": chosen})
    assert (done.returncode, done.stdout) == (UNAVAILABLE, b"")
    assert one_sentence(done.stderr) == (
        "cannot reach tcp://127.0.0.1:7: network is unreachable (error 101)"
    )


WRONG = [
    (["--framing", "lines"], "unknown framing 'lines' (did you mean line?)"),
    (["--framing", "fixed:5", "--prefix", "{seq}"], "only if all prefixes have one width"),
    (["--prefix", "{time}"], "has no token {time}"),
    (["--max-frame", "0"], "must be a whole number from 1 to 1,073,741,824, not 0"),
    (["--max-frame", "many"], "--max-frame"),
    (["--timeout", "-1"], "timeout must be seconds"),
    (["--timeout", "nan"], "timeout must be seconds"),
    (["--timeout", "inf"], "timeout must be seconds"),
    (["--timeout", "0"], "timeout must be"),
    (["--timeout", "soon"], "--timeout"),
    (["--upd"], "No such option '--upd'"),
    (["127.0.0.1:7", "127.0.0.1:8"], "unexpected extra argument"),
    (["127.0.0.1"], "'127.0.0.1' is no address"),
    (["127.0.0.1:0"], "port 0 is for listening"),
    (["fd://3"], "it is an inherited descriptor"),
    (["unix:/tmp/x?mode=0600"], "leave out ?mode="),
    (["unix:" + "x" * 108], "at most 107 bytes"),
    (["tcp://127.0.0.1:7", "--udp"], "leave out --udp"),
    (["unix:/tmp/x", "--udp"], "leave out --udp"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=[" ".join(w)[:40] for w, _ in WRONG])
def test_wrong_usage_is_one_sentence_and_status_2(
    words: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["fastecho", "client", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    stdout, stderr = capfd.readouterr()
    assert (ended.value.code, stdout) == (USAGE, "")
    assert sentence in one_sentence(stderr.encode())


def test_help_lists_each_flag(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fastecho", "client", "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    stdout, stderr = capfd.readouterr()
    assert (ended.value.code, stderr) == (DONE, "")
    for flag in ("[ADDR]", "--udp", "--framing", "--prefix", "--max-frame", "--timeout"):
        assert flag in stdout
    assert max(map(len, stdout.splitlines())) <= 80


# -- the command's own ends


class Piped:
    """`fastecho client` with pipes for its ends, while it runs."""

    def __init__(self, word: str, chosen: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "fastecho", "client", word],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(FASTECHO_BACKEND=chosen),
        )

    def say(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def hear(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self) -> tuple[int, bytes]:
        """Its status, and what it complained of."""
        assert self.process.stderr is not None
        with self.process.stderr:
            complaints = self.process.stderr.read()
        return self.process.wait(PATIENCE), complaints


@contextmanager
def piped(word: str, chosen: str) -> Iterator[Piped]:
    one = Piped(word, chosen)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()
        for end in (one.process.stdin, one.process.stdout, one.process.stderr):
            with suppress(OSError):
                if end is not None:
                    end.close()


def test_a_reply_is_printed_before_the_next_line_is_read(chosen: str) -> None:
    with (
        running(backend=chosen, prefix=PREFIX) as server,
        piped(named(server.tcp_address), chosen) as one,
    ):
        for line in (b"a\n", b"b\n"):
            one.say(line)
            assert one.hear() == b"<0>" + line
        one.say(b"\n")
        assert one.end() == (DONE, b"")


def test_who_reads_no_more_ends_it_without_a_word(chosen: str) -> None:
    """As `| head -1` does."""
    with (
        running(backend=chosen, prefix=PREFIX) as server,
        piped(named(server.tcp_address), chosen) as one,
    ):
        one.say(b"a\n")
        assert one.hear() == b"<0>a\n"
        assert one.process.stdout is not None
        one.process.stdout.close()
        one.say(b"b\n")
        assert one.end() == (BROKEN_PIPE, b"")


def test_an_interruption_is_status_130_without_a_word(chosen: str) -> None:
    with (
        running(backend=chosen, prefix=PREFIX) as server,
        piped(named(server.tcp_address), chosen) as one,
    ):
        one.say(b"a\n")
        assert one.hear() == b"<0>a\n"
        one.process.send_signal(signal.SIGINT)
        status, complaints = one.end()
        assert (status, complaints.strip()) == (INTERRUPTED, b"")


def test_an_interruption_while_it_waits_for_a_reply_is_the_same(chosen: str) -> None:
    asked = threading.Event()

    def act(sock: socket.socket) -> None:
        sock.recv(100)
        asked.set()
        silent(sock)

    with stream_server(act) as word, piped(word, chosen) as one:
        one.say(b"a\n")
        assert asked.wait(PATIENCE)
        one.process.send_signal(signal.SIGINT)
        status, complaints = one.end()
        assert (status, complaints.strip()) == (INTERRUPTED, b"")


def redirected(
    word: str, redirection: str, chosen: str, stdin: bytes = b"a\n"
) -> subprocess.CompletedProcess[bytes]:
    """The command as a shell starts it."""
    command = f'exec "$0" -W error -m fastecho client "$1" {redirection}'
    return run(
        *("sh", "-c", command, sys.executable, word),
        stdin=stdin,
        variables={"FASTECHO_BACKEND": chosen},
    )


@pytest.mark.parametrize("redirection", ["<&-", ">&-"])
def test_a_closed_end_is_one_sentence_and_status_3(redirection: str, chosen: str) -> None:
    with running(backend=chosen) as server:
        done = redirected(named(server.tcp_address), redirection, chosen)
    assert (done.returncode, done.stdout) == (UNAVAILABLE, b"")
    assert " closed" in one_sentence(done.stderr)


def test_a_full_disk_is_one_sentence_and_status_3(chosen: str) -> None:
    with running(backend=chosen) as server:
        done = redirected(named(server.tcp_address), ">/dev/full", chosen)
    assert (done.returncode, done.stdout) == (UNAVAILABLE, b"")
    assert one_sentence(done.stderr) == "No space left on device"


def test_complaints_that_nobody_hears_change_nothing(unused: str, chosen: str) -> None:
    done = redirected(unused, "2>&-", chosen)
    assert (done.returncode, done.stdout, done.stderr) == (UNAVAILABLE, b"", b"")


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_no_other_command_shows_a_traceback_for_want_of_an_output(redirection: str) -> None:
    command = f'exec "$0" -m fastecho --version {redirection}'
    done = run("sh", "-c", command, sys.executable)
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") <= 1


# -- the command, in a terminal


class Terminal:
    """`fastecho client` in a terminal of 80 columns.

    Args:
        word: its address.
        chosen: its backend.
        state: the directory of its history.
        redirection: of a shell, for what is not to be the terminal.
        flags: of the command.
        variables: of its environment.
    """

    def __init__(
        self,
        word: str,
        chosen: str,
        state: Path,
        redirection: str = "",
        flags: tuple[str, ...] = (),
        **variables: str,
    ) -> None:
        self._screen = bytearray()
        self._master, slave = pty.openpty()
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        os.set_blocking(self._master, False)
        # A session's leader that opens a terminal has it for Ctrl-C (tty_ioctl(4)).
        shell = f'exec "$@" <>"$0" >&0 2>&1 {redirection}'
        command = [sys.executable, "-W", "error", "-m", "fastecho", "client", word, *flags]
        self.process = subprocess.Popen(
            ["sh", "-c", shell, os.ttyname(slave), *command],
            start_new_session=True,
            env=environment(
                FASTECHO_BACKEND=chosen, XDG_STATE_HOME=str(state), TERM="xterm", **variables
            ),
        )
        os.close(slave)

    @property
    def screen(self) -> bytes:
        """All that was written to it."""
        with suppress(OSError):  # none is there, or nobody is at the other end any more
            while more := os.read(self._master, 65_536):
                self._screen += more
        return bytes(self._screen)

    @property
    def text(self) -> str:
        """The same without what moves the cursor or changes modes."""
        plain = re.sub(rb"\x1b[\[?0-9;]*[A-Za-z]", b"", self.screen)
        return plain.replace(b"\r\n", b"\n").decode(errors="backslashreplace")

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait(self, text: str) -> None:
        """Until the last that is shown is this."""
        until(lambda: self.text.endswith(text), f"{text!r} at the end of {self.text!r}")

    def end(self) -> int:
        """Its status, which it must have soon; what is typed no more is shown."""
        until(lambda: [self.screen, self.process.poll() is not None][1], f"its end: {self.text!r}")
        return self.process.wait()

    def discard(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


@contextmanager
def terminal(*arguments: Any, **options: Any) -> Iterator[Terminal]:
    one = Terminal(*arguments, **options)
    try:
        yield one
        assert "Traceback" not in one.text
        assert "ignored" not in one.text
    finally:
        one.discard()


@pytest.fixture(scope="module")
def word(chosen: str) -> Iterator[str]:
    """A server's address; its prefix is `<0>`."""
    with running(backend=chosen, prefix=PREFIX) as server:
        yield named(server.tcp_address)


UP, CTRL_C, CTRL_D = b"\x1b[A", b"\x03", b"\x04"


def test_a_terminal_has_a_prompt_and_ctrl_d_ends_it(word: str, chosen: str, tmp_path: Path) -> None:
    with terminal(word, chosen, tmp_path) as one:
        one.wait("> ")
        one.type(b"hello\r")
        one.wait("> hello\n<0>hello\n> ")
        one.type(CTRL_D)
        assert one.end() == DONE
        assert one.text == "> hello\n<0>hello\n> \n"


def test_an_empty_line_ends_it(word: str, chosen: str, tmp_path: Path) -> None:
    with terminal(word, chosen, tmp_path) as one:
        one.wait("> ")
        one.type(b"\r")
        assert one.end() == DONE
        assert one.text == "> \n"


@pytest.mark.parametrize("half", [b"", b"half a line"])
def test_ctrl_c_at_the_prompt_ends_it(half: bytes, word: str, chosen: str, tmp_path: Path) -> None:
    """The shell's own prompt gets a line of its own; the history is kept."""
    with terminal(word, chosen, tmp_path) as one:
        one.wait("> ")
        one.type(b"said\r")
        one.wait("<0>said\n> ")
        one.type(half)
        one.wait("> " + half.decode())
        one.type(CTRL_C)
        assert one.end() == INTERRUPTED
        assert re.search(rf"> {half.decode()}(\^C)?\n\Z", one.text), repr(one.text)
    assert (tmp_path / "fastecho" / "history").read_bytes() == b"said\n"


def test_ctrl_c_while_it_waits_ends_it(chosen: str, tmp_path: Path) -> None:
    asked = threading.Event()

    def act(sock: socket.socket) -> None:
        sock.recv(100)
        asked.set()
        silent(sock)

    with stream_server(act) as word, terminal(word, chosen, tmp_path) as one:
        one.wait("> ")
        one.type(b"hello\r")
        assert asked.wait(PATIENCE)
        one.type(CTRL_C)
        assert one.end() == INTERRUPTED
        assert re.fullmatch(r"> hello\n(\^C)?\n?", one.text), one.text
    assert (tmp_path / "fastecho" / "history").read_bytes() == b"hello\n"


def test_up_recalls_the_last_line(word: str, chosen: str, tmp_path: Path) -> None:
    with terminal(word, chosen, tmp_path) as one:
        one.wait("> ")
        one.type(b"hello\r")
        one.wait("<0>hello\n> ")
        one.type(UP)
        one.wait("> hello")
        one.type(b" again\r")
        one.wait("<0>hello again\n> ")
        one.type(CTRL_D)
        assert one.end() == DONE


def test_history_lasts_from_one_to_the_next(word: str, chosen: str, tmp_path: Path) -> None:
    """In a directory that is the user's alone."""
    state = tmp_path / "not" / "there"
    with terminal(word, chosen, state) as one:
        one.wait("> ")
        one.type(b"remember\r")
        one.wait("<0>remember\n> ")
        one.type(b"\r")
        assert one.end() == DONE
    history = state / "fastecho" / "history"
    assert history.read_bytes() == b"remember\n"
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    with terminal(word, chosen, state) as one:
        one.wait("> ")
        one.type(UP)
        one.wait("> remember")
        one.type(b"\r")
        one.wait("<0>remember\n> ")
        one.type(CTRL_D)
        assert one.end() == DONE


def test_pipes_have_no_history(word: str, chosen: str, tmp_path: Path) -> None:
    variables = {"FASTECHO_BACKEND": chosen, "XDG_STATE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "fastecho", "client", word]
    done = run(*command, stdin=b"a\n", variables=variables)
    assert (done.returncode, done.stdout) == (DONE, b"<0>a\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["a file", "no permission"])
def test_history_that_cannot_be_kept_is_not_missed(
    place: str, word: str, chosen: str, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.touch()
    if place == "no permission":
        state = Path("/proc/none")
    with terminal(word, chosen, state) as one:
        one.wait("> ")
        one.type(b"a\r")
        one.wait("<0>a\n> ")
        one.type(CTRL_D)
        assert one.end() == DONE
        assert one.text == "> a\n<0>a\n> \n"


def test_who_has_no_home_has_no_history(word: str, chosen: str, tmp_path: Path) -> None:
    """As in many a container: a number that no name belongs to."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    script = (
        "import os, readline, sys, fastecho.cli.client\n"
        "history = sys.modules['fastecho.cli.client']._history\n"
        "os.environ.pop('HOME', None); os.environ.pop('XDG_STATE_HOME', None)\n"
        "os.chdir('/'); os.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
        "with history(): print('talking')"
    )
    # Not measured: whoever it is then could not write that down.
    unmeasured = ("env", "-u", "COVERAGE_PROCESS_CONFIG", "-u", "COVERAGE_PROCESS_START")
    done = run(*unmeasured, sys.executable, "-c", script, variables={"FASTECHO_BACKEND": chosen})
    assert (done.returncode, done.stdout, done.stderr) == (DONE, b"talking\n", b"")


def test_bytes_that_are_no_text_can_be_typed(word: str, chosen: str, tmp_path: Path) -> None:
    """Where the locale is strict about them, as most are."""
    with terminal(word, chosen, tmp_path, PYTHONIOENCODING="utf-8:strict") as one:
        one.wait("> ")
        one.type(b"caf\xff\r")
        until(lambda: b"<0>caf\\xff" in one.screen, f"the reply: {one.screen!r}")
        one.type(CTRL_D)
        assert one.end() == DONE


def test_lines_that_are_pasted_are_lines(word: str, chosen: str, tmp_path: Path) -> None:
    """Even into a terminal that marks what is pasted, for programs that asked it to."""
    with terminal(word, chosen, tmp_path) as one:
        one.wait("> ")
        pasted = b"a\rb\r"
        marked = b"\x1b[?2004h" in one.screen
        one.type(b"\x1b[200~" + pasted + b"\x1b[201~\r" if marked else pasted)
        one.wait("<0>b\n> ")
        assert "<0>a\n" in one.text
        one.type(CTRL_D)
        assert one.end() == DONE


@pytest.mark.parametrize(
    ("prefix", "shown"),
    [
        ("\x1b[31m", r"\x1b[31m"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("\u202egnp", r"\u202egnp"),
        ("\u2066\u200b\ufeff", r"\u2066\u200b\ufeff"),
        ("a\rb\x08\x00\x7f", r"a\rb\x08\x00\x7f"),
        ("a\u2028b\x85\x0c", r"a\u2028b\x85\x0c"),
        ("\U000e0041", r"\U000e0041"),
        ("olé \u65e5\u672c \U0001f600\t.", "olé \u65e5\u672c \U0001f600\t."),
    ],
)
def test_a_terminal_is_shown_nothing_that_it_would_obey(
    prefix: str, shown: str, chosen: str, tmp_path: Path
) -> None:
    with running(backend=chosen, prefix=prefix) as server:
        where = named(server.tcp_address)
        with terminal(where, chosen, tmp_path, redirection="<<'END'\nx\nEND") as one:
            assert one.end() == DONE
            assert one.text.expandtabs() == f"{shown}x\n".expandtabs()


def test_what_is_no_text_is_escaped_in_a_terminal(chosen: str, tmp_path: Path) -> None:
    def act(sock: socket.socket) -> None:
        sock.sendall(b"\xff\xc0\x80\xed\xa0\x80\xe2\x80" + sock.recv(100))
        silent(sock)

    with (
        stream_server(act) as where,
        terminal(where, chosen, tmp_path, redirection="<<'END'\nx\nEND") as one,
    ):
        assert one.end() == DONE
        assert one.text == r"\xff\xc0\x80\xed\xa0\x80\xe2\x80x" + "\n"


def test_a_terminal_that_is_not_utf_8_is_shown_what_it_can_show(
    chosen: str, tmp_path: Path
) -> None:
    with running(backend=chosen, prefix="olé \u65e5 ") as server:
        where = named(server.tcp_address)
        options = {"redirection": "<<'END'\nx\nEND", "PYTHONIOENCODING": "latin-1"}
        with terminal(where, chosen, tmp_path, **options) as one:
            assert one.end() == DONE
            assert one.screen == b"ol\xe9 \\u65e5 x\r\n"


def test_no_prompt_where_only_the_output_is_a_terminal(
    word: str, chosen: str, tmp_path: Path
) -> None:
    with terminal(word, chosen, tmp_path, redirection="<<'END'\na\nb\nEND") as one:
        assert one.end() == DONE
        assert one.text == "<0>a\n<0>b\n"
    assert list(tmp_path.iterdir()) == []


def test_no_prompt_where_only_the_input_is_a_terminal(
    word: str, chosen: str, tmp_path: Path
) -> None:
    """What goes into a file is the replies, byte for byte."""
    replies = tmp_path / "replies"
    state = tmp_path / "state"
    with terminal(word, chosen, state, redirection=f">'{replies}'") as one:
        one.type(b"a\n\x1b\n")
        until(lambda: replies.exists() and replies.read_bytes().count(b"\n") == 2, "two replies")
        one.type(CTRL_D)
        assert one.end() == DONE
        assert "> " not in one.text
    assert replies.read_bytes() == b"<0>a\n<0>\x1b\n"
    assert not state.exists()


def test_a_failure_in_a_terminal_is_one_sentence(chosen: str, tmp_path: Path) -> None:
    with stream_server(resetting) as where, terminal(where, chosen, tmp_path) as one:
        one.wait("> ")
        one.type(b"a\r")
        assert one.end() == FAILED
        sentence = f"tcp://{where}: connection reset by peer (error 104)"
        assert one.text == f"> a\nfastecho: {sentence}\n"


def test_a_lost_reply_in_a_terminal_is_followed_by_the_prompt(chosen: str, tmp_path: Path) -> None:
    def forgetful(sock: socket.socket) -> None:
        sock.recvfrom(100)
        data, peer = sock.recvfrom(100)
        sock.sendto(b"<0>" + data, peer)

    with (
        datagram_server(forgetful) as where,
        terminal(where, chosen, tmp_path, flags=("--udp", "--timeout", "0.5")) as one,
    ):
        one.wait("> ")
        one.type(b"a\r")
        one.wait("> a\nfastecho: no reply to 'a' within 0.5 s\n> ")
        one.type(b"b\r")
        one.wait("> b\n<0>b\n> ")
        one.type(CTRL_D)
        assert one.end() == FAILED


def test_nobody_there_is_said_before_any_prompt(unused: str, chosen: str, tmp_path: Path) -> None:
    with terminal(unused, chosen, tmp_path) as one:
        assert one.end() == UNAVAILABLE
        assert (
            one.text == f"fastecho: cannot reach tcp://{unused}: connection refused (error 111)\n"
        )
