"""`fastecho.Server` and `fastecho.running`: a server in this process, over real sockets."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import strategies
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from processes import OWN_HOST, PATIENCE, abort, named, needs_ipv6, read_exactly, read_to_end, until

import fastecho
from fastecho import ConfigError, FastechoError, Server, loop, running

FRAMED = [kind for kind in strategies.KINDS if kind != "raw"]
PREFIX = "<0>"
NOW = 1_000_000_000


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(server.tcp_address, PATIENCE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield sock


@contextmanager
def datagram_socket(server: Server) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(server.udp_address)
        yield sock


def exchange(server: Server, *pieces: bytes) -> bytes:
    """All replies to a client that sends these and then nothing more."""
    with connected(server) as sock:
        for piece in pieces:
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        return read_to_end(sock)


def counted(server: Server, name: str, value: int) -> None:
    """The counter comes to this value, and does not pass it."""
    until(lambda: server.counters.get(name, 0) >= value, f"{name} = {value}")
    assert server.counters[name] == value


# -- what it answers


@given(data=st.data())
@settings(max_examples=30)
def test_answers_as_the_echo_does(data: st.DataObject, twin: Any) -> None:
    """In every framing, however the client cuts what it sends, also what breaks the framing."""
    cut = data.draw(strategies.framings(FRAMED, len(PREFIX)))
    assume(set(b"".join(cut.ends)).isdisjoint(PREFIX.encode()))
    stream = data.draw(strategies.streams(cut))
    pieces = data.draw(strategies.cuts(stream))
    chosen: dict[str, Any] = {"framing": cut.spec, "prefix": PREFIX, "max_frame": cut.max_frame}
    echo = fastecho.Echo(**chosen, backend="pure")
    expected = echo.feed(stream, NOW) + echo.finish(NOW)
    with running(**chosen, backend=twin.name) as server:
        assert exchange(server, *pieces) == expected
        counters = server.counters
    assert (counters["messages"], counters["bytes_out"]) == (echo.messages, len(expected))
    reason = echo.error.reason if echo.error else "eof"
    assert {name: n for name, n in counters.items() if name.startswith("closed.")} == {
        f"closed.{reason}": 1
    }


@pytest.mark.parametrize(
    ("spec", "stream", "replies"),
    [
        ("line", b"a\r\nb", b"<0>a\r\n<0>b"),
        ("delimiter:0d0a", b"a\nb\r\n", b"<0>a\nb\r\n"),
        ("any:0d0a,0a,3b", b"a;b\nc\r\nd", b"<0>a;<0>b\n<0>c\r\n<0>d"),
        ("fixed:2", b"abcd", b"<0>ab<0>cd"),
        ("u8", b"\1a\0", b"\4<0>a\3<0>"),
        ("u32le", b"\1\0\0\0a", b"\4\0\0\0<0>a"),
        ("length:width=2,offset=1,adjust=-3", b"!\0\4a", b"!\0\7<0>a"),
        ("varint", b"\x7d" + b"x" * 125, b"\x80\1<0>" + b"x" * 125),
        ("netstring", b"1:a,0:,", b"4:<0>a,3:<0>,"),
    ],
)
def test_answers_in_each_framing(spec: str, stream: bytes, replies: bytes, twin: Any) -> None:
    with running(framing=spec, prefix=PREFIX, backend=twin.name) as server:
        assert exchange(server, *(bytes([octet]) for octet in stream)) == replies


def test_raw_answers_each_recv(twin: Any) -> None:
    with running(framing="raw", prefix=PREFIX, backend=twin.name) as server:
        with connected(server) as sock:
            for message in (b"a\nb", b"\0", b"c" * 1000):
                sock.sendall(message)
                assert read_exactly(sock, 3 + len(message)) == b"<0>" + message
        counted(server, "messages", 3)


@given(data=st.data())
@settings(max_examples=10)
def test_raw_loses_nothing_however_it_is_cut(data: st.DataObject, twin: Any) -> None:
    stream = data.draw(st.binary(max_size=40))
    with running(framing="raw", prefix="", backend=twin.name) as server:
        assert exchange(server, *data.draw(strategies.cuts(stream))) == stream


def test_the_longest_message_is_answered(twin: Any) -> None:
    """Longer than what one `recv` takes, and than one piece of replies."""
    message = os.urandom(1_000_000)
    wire = len(message).to_bytes(4, "big") + message
    limit = len(message)
    with (
        running(framing="u32", prefix=PREFIX, max_frame=limit, backend=twin.name) as server,
        connected(server) as sock,
    ):
        sender = threading.Thread(target=sock.sendall, args=(wire,))
        sender.start()
        reply = read_exactly(sock, len(wire) + 3)
        sender.join()
    assert reply == (limit + 3).to_bytes(4, "big") + b"<0>" + message


def test_each_datagram_is_answered(twin: Any) -> None:
    with running(prefix="{seq} {len} ", backend=twin.name) as server:
        with datagram_socket(server) as sock:
            for number, message in enumerate([b"a", b"", b"\n\n", b"x" * 9000], 1):
                sock.send(message)
                assert sock.recv(65_535) == b"%d %d %b" % (number, len(message), message)
        counted(server, "messages", 4)
        assert server.counters["bytes_in"] == 9003


def test_a_datagram_too_long_for_its_reply_is_counted_and_the_next_answered(twin: Any) -> None:
    with running(prefix=PREFIX, backend=twin.name) as server, datagram_socket(server) as sock:
        sock.send(b"x" * 65_505)
        sock.send(b"y")
        assert sock.recv(100) == b"<0>y"
        assert server.counters["unanswered.emsgsize"] == 1
        assert server.counters["messages"] == 2


def test_the_peer_is_shown_as_it_shows_itself(twin: Any) -> None:
    with running(prefix="{peer} ", backend=twin.name) as server:
        with connected(server) as sock:
            name = named(sock.getsockname()).encode()
            sock.sendall(b"x\n")
            assert read_exactly(sock, len(name) + 3) == name + b" x\n"
        with datagram_socket(server) as sock:
            name = named(sock.getsockname()).encode()
            sock.send(b"x")
            assert sock.recv(100) == name + b" x"


# -- what breaks the framing

GOOD = 10_000
MORE = bytes(8 << 20)  # than the server's kernel has room for
TOO_LONG = [
    # spec, max_frame, frame at fault
    ("line", None, b"z" * 65_537 + b"\n"),
    ("delimiter:0d0a", 9, b"z" * 10 + b"\r\n"),
    ("any:00,0a", 9, b"z" * 10 + b"\n"),
    ("u16", 9, b"\0\12" + b"z" * 10),
    ("u64", None, b"\xff" * 8),
    ("u64le", None, (65_537).to_bytes(8, "little")),
    ("length:width=4,adjust=5", 9, b"\0\0\0\5" + b"z" * 10),
    ("varint", None, b"\xff" * 9 + b"\1"),
    ("netstring", None, b"65537:"),
]
CORRUPT = [
    ("varint", None, b"\xff" * 9 + b"\2"),
    ("varint", None, b"\x80" * 10 + b"\0"),
    ("netstring", None, b"01:x,"),
    ("netstring", None, b":x,"),
    ("netstring", None, b"-1:x,"),
    ("netstring", None, b"1:x;"),
    ("length:width=2,adjust=-3", None, b"\0\2z"),
]
FAULTS = [(*fault, "too_long") for fault in TOO_LONG] + [(*fault, "corrupt") for fault in CORRUPT]


@pytest.mark.parametrize(("spec", "limit", "bad", "reason"), FAULTS)
def test_a_fault_after_many_good_frames_costs_none_of_their_replies(
    spec: str,
    limit: int | None,
    bad: bytes,
    reason: str,
    twin: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Though the client goes on sending: every reply, then the end, and no reset."""
    codec = fastecho.framing.codec(spec, limit)
    good = codec.encode(b"message") * GOOD
    with running(framing=spec, prefix="", max_frame=limit, backend=twin.name) as server:
        with connected(server) as sock:
            peer = named(sock.getsockname())
            sender = threading.Thread(target=sock.sendall, args=(good + bad + MORE,))
            sender.start()
            assert read_exactly(sock, len(good)) == good
            assert sock.recv(1) == b""
            sender.join()
            sock.sendall(b"more")
        counters = server.counters
    assert (counters["messages"], counters["bytes_out"]) == (GOOD, len(good))
    assert counters[f"closed.{reason}"] == 1
    assert "closed.eof" not in counters
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    start, end = f"{peer}: frame at offset {len(good)}: ", f" ({reason})"
    assert record.getMessage().startswith(start)
    assert record.getMessage().endswith(end)


def test_a_frame_cut_off_by_the_end_is_truncated(
    twin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with running(framing="u16", prefix="", backend=twin.name) as server:
        assert exchange(server, b"\0\1a\0\2b") == b"\0\1a"
        assert server.counters["closed.truncated"] == 1
    (record,) = caplog.records
    assert "frame at offset 3: the stream ended 3 bytes into it (truncated)" in record.getMessage()


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often what is due has been done; faults linger for no time at all."""
    monkeypatch.setattr(loop, "SWEEP_INTERVAL", 0.001)
    times = 0
    sweep = Server._sweep

    def count(self: Server) -> None:
        nonlocal times
        sweep(self)
        times += 1

    monkeypatch.setattr(Server, "_sweep", count)
    return lambda: times


def test_a_peer_that_never_closes_is_closed_after_the_linger_timeout(
    sweeps: Callable[[], int], twin: Any
) -> None:
    with running(
        max_frame=1, prefix="", backend=twin.name, verbose=True, linger_timeout=0
    ) as server:
        with connected(server) as sock:
            sock.sendall(b"a\nbb\n")
            assert read_to_end(sock) == b"a\n"
            with pytest.raises((ConnectionResetError, BrokenPipeError)):  # noqa: PT012
                while True:
                    sock.sendall(bytes(65_536))
        assert server.counters["closed.too_long"] == 1


def test_replies_before_a_fault_wait_for_a_slow_client(
    sweeps: Callable[[], int], twin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The linger timeout is for what comes after the last reply, not for the replies.

    All of them are one piece here, so that the fault is seen before the client has read any.
    """
    monkeypatch.setattr(fastecho.server, "SEND_BUFFER", 16 << 20)
    good = b"\n" * 60_000
    with (
        running(prefix="x" * 100, max_frame=1, backend=twin.name, linger_timeout=0) as server,
        socket.socket() as sock,
    ):
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(server.tcp_address)
        sock.sendall(good + b"too long\n")
        begin = read_exactly(sock, 101)
        seen = sweeps()
        until(lambda: sweeps() >= seen + 10, "ten sweeps")
        assert begin + read_to_end(sock) == (b"x" * 100 + b"\n") * 60_000


# -- what it counts


def test_counts_from_nothing(twin: Any) -> None:
    with Server("127.0.0.1:0", backend=twin.name) as server:
        assert server.counters == {"connections": 0, "messages": 0, "bytes_in": 0, "bytes_out": 0}


def test_counts_tcp_and_udp_together(twin: Any) -> None:
    with running(prefix=PREFIX, backend=twin.name) as server:
        assert exchange(server, b"a\nb\nc") == b"<0>a\n<0>b\n<0>c"
        with datagram_socket(server) as sock:
            sock.send(b"four")
            sock.recv(100)
        until(lambda: server.counters["bytes_out"] == 21, "the datagram's reply counted")
        assert server.counters == {
            "connections": 1,
            "messages": 4,
            "bytes_in": 9,
            "bytes_out": 21,
            "closed.eof": 1,
        }


def test_counts_how_connections_ended(twin: Any) -> None:
    with running(prefix="", max_frame=3, backend=twin.name) as server:
        exchange(server, b"")
        exchange(server, b"long\n")
        with connected(server) as sock:
            sock.sendall(b"x\n")
            read_exactly(sock, 2)
            abort(sock)
        counted(server, "closed.reset", 1)
        with connected(server) as sock:
            sock.sendall(b"x\n")
            read_exactly(sock, 2)
            server.stop()
            assert sock.recv(1) == b""
    assert server.counters == {
        "connections": 4,
        "messages": 2,
        "bytes_in": 9,
        "bytes_out": 4,
        "closed.eof": 1,
        "closed.too_long": 1,
        "closed.reset": 1,
        "closed.stopped": 1,
    }


def exchange_all(server: Server, *streams: bytes) -> None:
    for stream in streams:
        exchange(server, stream)


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_counters_can_be_read_while_reasons_come_up(twin: Any) -> None:
    """From another thread than the server's."""
    for _ in range(30):
        with running(max_frame=1, backend=twin.name) as server:
            client = threading.Thread(target=exchange_all, args=(server, b"", b"aa"))
            client.start()
            try:
                while client.is_alive():
                    assert server.counters["connections"] <= 2
            finally:
                client.join()
            assert server.counters["closed.too_long"] == 1


# -- where it listens


def test_has_an_address_for_each_protocol(twin: Any) -> None:
    with Server("127.0.0.1:0", backend=twin.name) as server:
        host, port = server.tcp_address
        assert (host, port > 0, server.udp_address) == ("127.0.0.1", True, (host, port))
        assert server.addresses == [f"tcp://{host}:{port}", f"udp://{host}:{port}"]


def test_addresses_stay_known_after_its_end(twin: Any) -> None:
    with running(backend=twin.name) as server:
        known = server.addresses, server.tcp_address, server.udp_address
    assert (server.addresses, server.tcp_address, server.udp_address) == known


@pytest.mark.parametrize(("only", "other"), [("tcp", "udp"), ("udp", "tcp")])
def test_an_address_that_there_is_not_is_a_lookup_error(only: str, other: str, twin: Any) -> None:
    with Server(f"{only}://127.0.0.1:0", backend=twin.name) as server:
        assert getattr(server, f"{only}_address")[0] == "127.0.0.1"
        with pytest.raises(LookupError, match=f"no {other} listener"):
            getattr(server, f"{other}_address")


@pytest.mark.parametrize(
    "listen",
    ["tcp://127.0.0.1:0 tcp://127.0.0.2:0", ["tcp://127.0.0.1:0", "tcp://127.0.0.2:0"]],
)
def test_listens_on_several_words(listen: Any, twin: Any) -> None:
    with running(listen=listen, prefix="", backend=twin.name) as server:
        hosts = []
        for name in server.addresses:
            host, _, port = name.removeprefix("tcp://").rpartition(":")
            with socket.create_connection((host, int(port)), PATIENCE) as sock:
                sock.sendall(b"x\n")
                assert read_exactly(sock, 2) == b"x\n"
            hosts.append(host)
        assert hosts == ["127.0.0.1", "127.0.0.2"]
        counted(server, "closed.eof", 2)


@needs_ipv6
def test_serves_ipv6(twin: Any) -> None:
    with running(listen="[::1]:0", prefix="{peer} ", backend=twin.name) as server:
        with connected(server) as sock:
            name = b"[::1]:%d" % sock.getsockname()[1]
            sock.sendall(b"x\n")
            assert read_exactly(sock, len(name) + 3) == name + b" x\n"
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE)
            sock.sendto(b"x", server.udp_address)
            name = b"[::1]:%d" % sock.getsockname()[1]
            reply, source = sock.recvfrom(100)
            assert (reply, source[:2]) == (name + b" x", server.udp_address[:2])


# -- settings


def test_is_of_the_backend_asked_for(twin: Any) -> None:
    with Server("127.0.0.1:0", backend=twin.name) as server:
        assert server.backend == twin.name


def test_is_of_the_chosen_backend_unless_asked() -> None:
    with Server("127.0.0.1:0") as server:
        assert server.backend == fastecho.backend.name


@pytest.mark.parametrize(
    "wrong",
    [
        {"listen": "nowhere"},
        {"listen": ["127.0.0.1:0", "127.0.0.1:70000"]},
        {"framing": "lines"},
        {"prefix": "{time}"},
        {"prefix": "\n"},
        {"max_frame": 0},
        {"max_frame": "9"},
        {"framing": "u8", "max_frame": 255},
        {"backend": "fast"},
    ],
)
def test_settings_that_make_no_sense_are_a_config_error(wrong: dict[str, Any]) -> None:
    """Which is a `ValueError`; nothing listens, and nothing is left open (or pytest would warn)."""
    with pytest.raises(ConfigError) as caught:
        Server(**{"listen": "127.0.0.1:0", **wrong})
    assert isinstance(caught.value, ValueError)


def test_an_address_in_use_is_no_config_error(twin: Any) -> None:
    with Server("tcp://127.0.0.1:0", backend=twin.name) as server:
        with pytest.raises(FastechoError, match="address already in use") as caught:
            Server(server.addresses, backend=twin.name)
        assert not isinstance(caught.value, ConfigError)


def test_a_server_that_cannot_be_made_leaves_nothing_open(
    twin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it fails after its sockets were bound."""

    def refuse() -> None:
        raise MemoryError

    monkeypatch.setattr(fastecho.server, "Udp", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MemoryError) as caught:
        Server("127.0.0.1:0", backend=twin.name)
    assert len(os.listdir("/proc/self/fd")) == before, caught


# -- its life


def test_a_server_that_never_ran_gives_its_address_back(twin: Any) -> None:
    with Server(f"{OWN_HOST}:0", backend=twin.name) as server:
        words = server.addresses
    with Server(words, backend=twin.name) as again:
        assert again.addresses == words


def test_close_can_be_called_twice(twin: Any) -> None:
    server = Server("127.0.0.1:0", backend=twin.name)
    server.close()
    server.close()


def test_close_ends_connections_at_once(twin: Any) -> None:
    """Whatever is left to send."""
    with Server("127.0.0.1:0", prefix="", backend=twin.name) as server, connected(server) as sock:
        sock.sendall(b"never answered\n")
        server.close()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_runs_here_until_another_thread_stops_it(twin: Any) -> None:
    server = Server("127.0.0.1:0", prefix="", backend=twin.name)
    answers = []

    def client() -> None:
        answers.append(exchange(server, b"hello"))
        server.stop()

    thread = threading.Thread(target=client)
    thread.start()
    server.run()
    thread.join()
    assert answers == [b"hello"]


def test_stop_before_run_answers_what_has_come(twin: Any) -> None:
    server = Server("127.0.0.1:0", prefix="", backend=twin.name)
    with connected(server) as sock, datagram_socket(server) as other:
        sock.sendall(b"hello\n")
        other.send(b"x")
        server.stop()
        server.run()
        assert read_to_end(sock) == b"hello\n"
        assert other.recv(10) == b"x"


def test_a_client_that_reads_nothing_is_not_waited_for_for_ever(twin: Any) -> None:
    lines = 60_000
    settings = {"prefix": "x" * 100, "backend": twin.name, "drain_timeout": 0.01}
    with running(**settings) as server, connected(server) as sock:
        sock.sendall(b"\n" * lines)
        until(lambda: server.counters["bytes_out"], "the first replies")
        server.stop()
        until(lambda: server.counters.get("closed.stopped"), "its end")
    assert server.counters["bytes_out"] < 101 * lines


def test_stop_can_be_called_by_many_and_often(twin: Any) -> None:
    with running(backend=twin.name) as server:
        threads = [
            threading.Thread(target=lambda: [server.stop() for _ in range(1000)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def test_stop_after_the_end_writes_into_nobody_elses_descriptor(twin: Any) -> None:
    """Descriptor numbers are used again."""
    with ExitStack() as stack:
        server = Server("127.0.0.1:0", backend=twin.name)
        server.stop()
        server.run()
        watch = stack.enter_context(selectors.DefaultSelector())
        for _ in range(16):
            for sock in socket.socketpair():
                watch.register(stack.enter_context(sock), selectors.EVENT_READ)
        server.stop()
        assert watch.select(0) == []


def test_an_exception_of_a_signal_handler_ends_it_and_frees_everything(twin: Any) -> None:
    """As Ctrl-C does where nobody handles it."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    server = Server(f"{OWN_HOST}:0", prefix="", backend=twin.name)
    thread = threading.Thread(target=interrupt_when_running, args=(server,))
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            server.run()
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    with Server(server.addresses, backend=twin.name) as again:
        assert again.addresses == server.addresses


def interrupt_when_running(server: Server) -> None:
    exchange(server, b"it is")
    os.kill(os.getpid(), signal.SIGUSR1)


def test_running_leaves_no_thread_and_no_descriptor(twin: Any) -> None:
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with running(backend=twin.name) as server:
        assert exchange(server, b"x")[26:] == b"x"
        assert threading.active_count() == before[0] + 1
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


def test_running_ends_the_server_where_its_block_fails(twin: Any) -> None:
    with pytest.raises(ZeroDivisionError), running(backend=twin.name) as server:
        raise ZeroDivisionError
    with pytest.raises(ConnectionRefusedError), connected(server):
        pass


def test_servers_run_side_by_side(twin: Any) -> None:
    with (
        running(prefix="1", backend=twin.name) as one,
        running(prefix="2", framing="netstring", backend=twin.name) as two,
    ):
        assert exchange(two, b"1:x,") == b"2:2x,"
        assert exchange(one, b"x\n") == b"1x\n"
        assert [each.counters["messages"] for each in (one, two)] == [1, 1]


def test_logs_nothing_where_nothing_is_wrong(twin: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with running(backend=twin.name) as server, datagram_socket(server) as sock:
        exchange(server, b"x\n")
        sock.send(b"x")
        sock.recv(100)
    assert caplog.records == []


def test_verbose_logs_connections_and_datagrams(
    twin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with running(backend=twin.name, verbose=True) as server, datagram_socket(server) as other:
        with connected(server) as sock:
            address = sock.getsockname()
            sock.sendall(b"x\n")
            read_exactly(sock, 28)
        counted(server, "closed.eof", 1)
        other.send(b"x")
        other.recv(100)
        source = other.getsockname()
    assert [record.getMessage() for record in caplog.records] == [
        f"... connected from: {address}",
        f"{named(address)}: closed (eof) after 1 message",
        f"... received from and returned to: {source}",
    ]
