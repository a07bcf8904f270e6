"""The daemon as a process: real clients, real signals, and what it says on standard error."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from processes import (
    OWN_HOST,
    PATIENCE,
    STAMP,
    Daemon,
    abort,
    named,
    needs_ipv6,
    read_exactly,
    read_to_end,
    run,
    serving,
    stamped,
    until,
)

import fastecho

NC = shutil.which("nc.openbsd") or shutil.which("nc")
SOCAT = shutil.which("socat")
needs_nc = pytest.mark.skipif(NC is None, reason="nc (netcat-openbsd) is not installed")
needs_socat = pytest.mark.skipif(SOCAT is None, reason="socat is not installed")

LINES = [b"hello\n", b"\n", b"\xff\0\r\n", b"x" * 5000 + b"\n", b"no end"]
SIGNALS = [signal.SIGINT, signal.SIGTERM]


def prefixed(stream: bytes, prefix: bytes) -> bytes:
    """The replies to these lines."""
    return b"".join(prefix + line for line in stream.splitlines(keepends=True))


def unstamped(replies: bytes) -> bytes:
    """The replies without the default prefix, which each line must have."""
    lines = replies.split(b"\n")
    assert all(STAMP.match(line) for line in lines if line), lines
    return b"\n".join(line[26:] for line in lines)


@contextlib.contextmanager
def paused(daemon: Daemon) -> Any:
    """What is done meanwhile lies in the kernel, and has come, when the daemon goes on."""
    daemon.kill(signal.SIGSTOP)
    stat = Path(f"/proc/{daemon.process.pid}/stat")
    until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "a stopped process")
    try:
        yield
    finally:
        daemon.kill(signal.SIGCONT)


# -- what it says when it listens


def test_says_where_it_waits_with_one_number_for_both_protocols(twin: Any) -> None:
    with serving(backend=twin.name) as daemon:
        port = daemon.tcp[1]
        assert daemon.stderr == (
            f"waiting for connection ... tcp://127.0.0.1:{port} (line, {twin.name})\n"
            f"waiting for message ... udp://127.0.0.1:{port} ({twin.name})\n"
        )
        assert port > 0


def test_says_the_framing_as_it_was_written(twin: Any) -> None:
    spec = "length:width=2,adjust=-2,le"
    with serving("--framing", spec, backend=twin.name, listen=("tcp://127.0.0.1:0",)) as daemon:
        assert daemon.ready == [
            f"waiting for connection ... tcp://127.0.0.1:{daemon.tcp[1]} ({spec}, {twin.name})"
        ]


def test_listens_on_every_word(twin: Any) -> None:
    listen = ("127.0.0.1:0", "tcp://127.0.0.2:0", "udp://127.0.0.1:0")
    with serving(backend=twin.name, listen=listen) as daemon:
        for address in daemon.addresses("tcp"):
            with socket.create_connection(address, PATIENCE) as sock:
                sock.sendall(b"x\n")
                assert read_exactly(sock, 28)[26:] == b"x\n"
        for address in daemon.addresses("udp"):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(PATIENCE)
                sock.sendto(b"x", address)
                reply, source = sock.recvfrom(100)
                assert (reply[26:], source) == (b"x", address)
        assert [len(daemon.addresses(name)) for name in ("tcp", "udp")] == [2, 2]


@needs_ipv6
def test_serves_ipv6(twin: Any) -> None:
    with serving("-v", backend=twin.name, listen=("[::1]:0",)) as daemon:
        assert f" ... tcp://[::1]:{daemon.tcp[1]} (" in daemon.ready[0]
        since = time.time()
        with daemon.connect() as sock:
            sock.sendall(b"tcp")
            sock.shutdown(socket.SHUT_WR)
            assert read_to_end(sock) in stamped(b"tcp", since)
            daemon.wait_line(f"... connected from: {sock.getsockname()}")
        with daemon.datagram_socket() as sock:
            sock.send(b"udp")
            assert sock.recv(100) in stamped(b"udp", since)
            daemon.wait_line(f"... received from and returned to: {sock.getsockname()}")


# -- the programs that people have at hand


@needs_nc
def test_nc_gets_all_replies_to_a_pipe(twin: Any) -> None:
    with serving(backend=twin.name) as daemon:
        done = run(NC, "-N", "127.0.0.1", str(daemon.tcp[1]), stdin=b"".join(LINES))
        assert (done.returncode, unstamped(done.stdout)) == (0, b"".join(LINES))


@needs_nc
def test_nc_gets_a_datagram_back(twin: Any) -> None:
    with serving(backend=twin.name) as daemon:
        since = time.time()
        done = run(NC, "-u", "-w1", "127.0.0.1", str(daemon.udp[1]), stdin=b"hello\n")
        assert done.stdout in stamped(b"hello\n", since)


@needs_socat
def test_socat_gets_all_replies_to_a_pipe(twin: Any) -> None:
    with serving(backend=twin.name) as daemon:
        target = f"TCP:127.0.0.1:{daemon.tcp[1]}"
        done = run(SOCAT, "-t30", "-", target, stdin=b"".join(LINES))
        assert (done.returncode, unstamped(done.stdout)) == (0, b"".join(LINES))


@needs_socat
def test_socat_gets_a_datagram_back(twin: Any) -> None:
    with serving(backend=twin.name) as daemon:
        since = time.time()
        done = run(SOCAT, "-t1", "-", f"UDP:127.0.0.1:{daemon.udp[1]}", stdin=b"hello\n")
        assert (done.returncode, done.stdout in stamped(b"hello\n", since)) == (0, True)


# -- clients of all kinds


def test_a_half_close_is_no_close(twin: Any) -> None:
    stream = b"".join(b"line %d\n" % number for number in range(10_000)) + b"tail"
    with serving("--prefix", "<>", backend=twin.name) as daemon, daemon.connect() as sock:
        sock.sendall(stream)
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock) == prefixed(stream, b"<>")


def test_many_clients_are_served_at_once(twin: Any) -> None:
    """Each sends its lines in pieces that end anywhere, all of them in turn."""
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(serving("--prefix", "{seq}:", backend=twin.name))
        clients = [stack.enter_context(daemon.connect()) for _ in range(200)]
        for piece in range(5):
            for number, sock in enumerate(clients):
                sock.sendall(b"%d\n%d" % (number, piece))
        for number, sock in enumerate(clients):
            sock.shutdown(socket.SHUT_WR)
            said = [b"%d" % number, *(b"%d%d" % (piece, number) for piece in range(4)), b"4"]
            replies = [b"%d:%b" % (seq, line) for seq, line in enumerate(said, 1)]
            assert read_to_end(sock) == b"\n".join(replies)


def test_a_reset_ends_one_connection_alone(twin: Any) -> None:
    """One client resets in the middle of a line, one with replies that it has not read."""
    with (
        serving("-v", "--prefix", "", backend=twin.name) as daemon,
        daemon.connect() as bystander,
    ):
        bystander.sendall(b"before ")
        aborted = []
        for stream in (b"whole\npart", b"x\n" * 100_000):
            sock = daemon.connect()
            aborted.append(named(sock.getsockname()))
            sock.sendall(stream)
            assert sock.recv(1) == stream[:1]
            abort(sock)
        for name in aborted:
            assert "(reset)" in daemon.wait_line(f"{name}: closed")
        bystander.sendall(b"and after\n")
        assert read_exactly(bystander, 17) == b"before and after\n"


def test_a_slow_reader_gets_megabytes_of_replies(twin: Any) -> None:
    stream = b"".join(b"%d\n" % number for number in range(300_000))
    with serving("--prefix", "{{thirty-two bytes for each line}} ", backend=twin.name) as daemon:
        with socket.socket() as sock:
            sock.settimeout(PATIENCE)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(daemon.tcp)
            sender = threading.Thread(target=send_all, args=(sock, stream))
            sender.start()
            replies = read_to_end(sock, 4096)
            sender.join()
        assert replies == prefixed(stream, b"{thirty-two bytes for each line} ")


def send_all(sock: socket.socket, stream: bytes) -> None:
    sock.sendall(stream)
    sock.shutdown(socket.SHUT_WR)


def test_a_client_that_does_not_read_is_not_read_either(twin: Any) -> None:
    """It costs the daemon little, delays nobody, and finds all its replies when it reads."""
    block = b"y\n" * 32_768
    with serving("--prefix", "{{fifteen bytes}}", backend=twin.name) as daemon:
        with daemon.connect() as other:
            other.sendall(b"warm\n" * 10_000)
            other.shutdown(socket.SHUT_WR)
            read_to_end(other)
        before = daemon.peak()
        with daemon.connect() as sock, daemon.connect() as other:
            sent = send_until_stuck(sock, block, at_most=64 << 20)
            assert sent < 64 << 20
            assert daemon.peak() - before < 8 << 20
            other.sendall(b"x\n")
            assert read_exactly(other, 17) == b"{fifteen bytes}x\n"
            sock.settimeout(PATIENCE)
            whole = sent // 2
            assert read_exactly(sock, 17 * whole) == b"{fifteen bytes}y\n" * whole


def send_until_stuck(sock: socket.socket, block: bytes, at_most: int) -> int:
    """How many bytes the peer and the kernel take of a client that reads nothing."""
    sent = 0
    sock.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while sent < at_most:
            sent += sock.send(block[sent % len(block) :])
    return sent


def test_connections_wait_while_it_has_no_descriptor_for_them(twin: Any) -> None:
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(serving("--prefix", "", backend=twin.name))
        used = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (used + 3, used + 3))
        clients = [stack.enter_context(daemon.connect()) for _ in range(6)]
        for number, sock in enumerate(clients):
            sock.sendall(b"%d" % number)
        daemon.wait_line(
            "cannot accept a connection: Too many open files; new ones wait until another ends"
        )
        for number, sock in enumerate(clients):
            sock.shutdown(socket.SHUT_WR)
            assert read_to_end(sock) == b"%d" % number


# -- its end


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_it_well(number: int, twin: Any) -> None:
    with serving(backend=twin.name) as daemon, daemon.connect() as idle:
        idle.sendall(b"answered\nunfinished")
        assert read_exactly(idle, 26 + 9).endswith(b"answered\n")
        assert daemon.stop(number) == 0
        assert idle.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            daemon.connect()


@pytest.mark.parametrize("number", SIGNALS)
def test_what_was_sent_before_the_signal_is_answered(number: int, twin: Any) -> None:
    stream = b"ab\n" * 20_000
    with (
        serving("--prefix", "<0>", backend=twin.name) as daemon,
        daemon.connect() as big,
        daemon.connect() as small,
        daemon.datagram_socket() as udp,
    ):
        small.sendall(b"1\n")
        assert read_exactly(small, 5) == b"<0>1\n"
        with paused(daemon):
            big.sendall(stream)
            small.sendall(b"2\n")
            udp.send(b"3")
            daemon.kill(number)
        assert read_to_end(big) == prefixed(stream, b"<0>")
        assert read_to_end(small) == b"<0>2\n"
        assert udp.recv(100) == b"<0>3"


def test_replies_that_a_slow_client_has_not_taken_yet_go_out_after_the_signal(twin: Any) -> None:
    stream = b"\n" * 50_000
    with serving("--prefix", "x" * 100, backend=twin.name) as daemon, socket.socket() as sock:
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(daemon.tcp)
        sock.sendall(stream)
        begin = read_exactly(sock, 101)
        daemon.kill(signal.SIGTERM)
        until(lambda: refused(daemon), "a closed listener")
        assert begin + read_to_end(sock) == prefixed(stream, b"x" * 100)


def test_clients_not_yet_accepted_are_answered_after_the_signal(twin: Any) -> None:
    """More than one turn accepts: they are connected, and their lines have been sent."""
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(serving("--prefix", "", backend=twin.name))
        with paused(daemon):
            clients = [stack.enter_context(daemon.connect()) for _ in range(200)]
            for number, sock in enumerate(clients):
                sock.sendall(b"%d\n" % number)
            daemon.kill(signal.SIGTERM)
        answers = [read_to_end(sock) for sock in clients]
        assert answers == [b"%d\n" % number for number in range(200)]


def test_datagrams_not_yet_received_are_answered_after_the_signal(twin: Any) -> None:
    """More than one batch has them."""
    with (
        serving("--prefix", "", backend=twin.name) as daemon,
        daemon.datagram_socket() as sock,
    ):
        with paused(daemon):
            for number in range(200):
                sock.send(b"%d" % number)
            daemon.kill(signal.SIGTERM)
        assert [sock.recv(100) for _ in range(150)] == [b"%d" % number for number in range(150)]


@pytest.mark.parametrize(("first", "second"), [SIGNALS, SIGNALS[::-1]])
def test_a_second_signal_ends_it_at_once(first: int, second: int, twin: Any) -> None:
    """Even while a client has not read its replies."""
    daemon = Daemon(["--backend", twin.name, "127.0.0.1:0"], {})
    try:
        daemon.wait_ready(2)
        with daemon.connect() as sock:
            send_until_stuck(sock, b"\n" * 65_536, at_most=64 << 20)
            daemon.kill(first)
            until(lambda: refused(daemon), "a closed listener")
            daemon.kill(second)
            assert daemon.stop() == 128 + second
        assert "Traceback" not in daemon.stderr
    finally:
        daemon.discard()


def refused(daemon: Daemon) -> bool:
    """Whether nobody listens there any more."""
    try:
        daemon.connect().close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass
    return False


# -- what it says while it runs


def test_says_nothing_of_connections_and_datagrams_unless_asked(twin: Any) -> None:
    with serving(backend=twin.name) as daemon:
        with daemon.connect() as sock, daemon.datagram_socket() as other:
            sock.sendall(b"x\n")
            read_exactly(sock, 28)
            other.send(b"x")
            other.recv(100)
        daemon.stop()
        assert not re.search("connected from|received from|: closed", daemon.stderr)


def test_verbose_names_each_connection_and_how_it_ended(twin: Any) -> None:
    with serving("-v", backend=twin.name) as daemon:
        with daemon.connect() as sock:
            host, port = sock.getsockname()
            sock.sendall(b"a\nb")
            sock.shutdown(socket.SHUT_WR)
            read_to_end(sock)
        daemon.wait_line("closed")
        assert daemon.lines == [
            f"... connected from: ('{host}', {port})",
            f"{host}:{port}: closed (eof) after 2 messages",
        ]


def test_verbose_names_each_datagram_that_was_answered(twin: Any) -> None:
    with (
        serving("--verbose", "--prefix", "<>", backend=twin.name) as daemon,
        daemon.datagram_socket() as sock,
    ):
        line = f"... received from and returned to: ('127.0.0.1', {sock.getsockname()[1]})"
        for message in (b"a", b"", b"b"):
            sock.send(message)
            assert sock.recv(100) == b"<>" + message
        until(lambda: len(daemon.lines) == 3, "three lines")
        assert daemon.lines == [line] * 3


@pytest.mark.parametrize(
    ("spec", "stream", "offset", "words", "reason"),
    [
        ("line", b"ok\n12345678901\n", 3, "longer than max_frame (10 bytes)", "too_long"),
        ("netstring", b"2:ok,01:x,", 5, "leading zero", "corrupt"),
        ("u16", b"\0\2ok\0\5x", 4, "the stream ended", "truncated"),
    ],
)
def test_names_a_peer_that_breaks_its_framing(
    spec: str, stream: bytes, offset: int, words: str, reason: str, twin: Any
) -> None:
    arguments = ("--framing", spec, "--max-frame", "10", "--prefix", "")
    with serving(*arguments, backend=twin.name) as daemon:
        with daemon.connect() as sock:
            peer = named(sock.getsockname())
            sock.sendall(stream)
            sock.shutdown(socket.SHUT_WR)
            assert b"ok" in read_to_end(sock)
        daemon.wait_line(f"({reason})")
        (line,) = daemon.lines
        assert line.startswith(f"{peer}: frame at offset {offset}: ")
        assert words in line


# -- by itself


def test_is_the_backend_that_the_library_would_choose() -> None:
    """Where nobody chose one, here or there."""
    daemon = Daemon(["tcp://127.0.0.1:0"], {})
    try:
        daemon.wait_ready(1)
        built = fastecho.backend.native_built()
        assert ("native)" if built else "pure: native not built)") in daemon.ready[0]
        assert daemon.stop() == 0
    finally:
        daemon.discard()


def test_a_port_is_free_again_as_soon_as_it_has_ended(twin: Any) -> None:
    """Though the connections that it closed itself are in TIME-WAIT."""
    listen = (f"{OWN_HOST}:0",)
    with serving(backend=twin.name, listen=listen) as daemon, daemon.connect() as sock:
        daemon.stop()
        assert sock.recv(1) == b""
        address = daemon.tcp
    with serving(backend=twin.name, listen=(named(address),)) as daemon:
        assert daemon.tcp == address


def test_holds_no_descriptor_of_clients_that_have_gone(twin: Any) -> None:
    with serving("-v", backend=twin.name) as daemon:
        descriptors = Path(f"/proc/{daemon.process.pid}/fd")
        before = len(os.listdir(descriptors))
        for number in range(50):
            with daemon.connect() as sock:
                sock.sendall(b"%d" % number)
                if number % 2:
                    abort(sock)
        until(lambda: sum("closed" in line for line in daemon.lines) == 50, "50 ends")
        assert len(os.listdir(descriptors)) == before
