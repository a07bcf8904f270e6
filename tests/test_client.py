"""`fastecho.client`: against fastecho, and against servers that misbehave."""

from __future__ import annotations

import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import reference
import strategies
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from misbehaving import (
    closing,
    datagram_server,
    flooding,
    resetting,
    silent,
    stream_server,
)
from processes import PATIENCE, abort, named, needs_ipv6
from reference import Framing, judge, wire

import fastecho
from fastecho import ConfigError, FastechoError, backend, running
from fastecho.client import Client, Gone, Unanswered, converse, quoted

PREFIX = "<0>"
#: For what never comes: long enough for a machine that is busy, and short enough to be waited for.
SOON = 0.1
#: What a sentence about a reply that did not come on a stream ends with.
ELSE = r"\(is the server's --framing line, too\?\)"
#: Every framing, each with a spec of its own.
SPECS = (
    "line",
    "delimiter:0d0a",
    "any:0a,00",
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


@contextmanager
def talking(server: fastecho.Server, udp: bool = False, **options: Any) -> Iterator[Client]:
    """A client of the server's, over IPv4."""
    address = server.udp_address if udp else server.tcp_address
    with Client(named(address), udp, **{"timeout": PATIENCE, **options}) as client:
        yield client


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
                    with pytest.raises(Unanswered, match=r"^cannot send ['\"]"):
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
