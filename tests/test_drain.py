"""The end of a daemon: what has come is answered, what cannot be is counted, and it does end."""

from __future__ import annotations

import json
import re
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE, Daemon, named, read_exactly, read_to_end, serving, until

SIGNALS = [signal.SIGINT, signal.SIGTERM]
#: Bytes that come in more than one `recv`, and fit into a kernel's buffers with their replies.
LONG = b"".join(b"%d\n" % number for number in range(8_000))


@contextmanager
def paused(daemon: Daemon) -> Iterator[None]:
    """What is done meanwhile lies in the kernel when the daemon goes on."""
    daemon.kill(signal.SIGSTOP)
    stat = Path(f"/proc/{daemon.process.pid}/stat")
    until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "a stopped process")
    try:
        yield
    finally:
        daemon.kill(signal.SIGCONT)


def slow_client(daemon: Daemon) -> socket.socket:
    """One that will not have read anything: the kernel takes little for it."""
    sock = socket.socket()
    sock.settimeout(PATIENCE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(daemon.tcp)
    return sock


def fill(sock: socket.socket) -> int:
    """Send lines until nobody takes more; how many bytes were taken."""
    sent = 0
    sock.settimeout(0.3)
    with suppress(TimeoutError):
        while sent < 64 << 20:
            sent += sock.send(b"\n" * 65_536)
    sock.settimeout(PATIENCE)
    return sent


@pytest.mark.parametrize("number", SIGNALS)
def test_clients_that_wait_to_be_accepted_are_answered(number: int, twin: Any) -> None:
    with ExitStack() as stack:
        daemon = stack.enter_context(serving("--prefix", "", backend=twin.name))
        with paused(daemon):
            clients = [stack.enter_context(daemon.connect()) for _ in range(150)]
            for client in clients:
                client.sendall(b"whole\nand a tail")
                client.shutdown(socket.SHUT_WR)
            daemon.kill(number)
        for client in clients:
            assert read_to_end(client) == b"whole\nand a tail"
        assert daemon.stop() == 0
        assert "150 connections, 300 messages" in daemon.stderr
        assert "cut" not in daemon.stderr


def test_clients_of_each_listener_that_wait_to_be_accepted_are_answered(twin: Any) -> None:
    """Of TCP and of UNIX."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fe", dir="/tmp"))
        words = ("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", f"unix:{folder}/s")
        daemon = stack.enter_context(
            serving("--prefix", "", backend=twin.name, listen=words, lines=2)
        )
        daemon.wait_line("unix:")
        with paused(daemon):
            clients = []
            for where in (*daemon.addresses("tcp"), f"{folder}/s"):
                family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
                client = stack.enter_context(socket.socket(family))
                client.settimeout(PATIENCE)
                client.connect(where)
                client.sendall(b"x\n")
                clients.append(client)
            daemon.kill(signal.SIGTERM)
        assert [read_to_end(client) for client in clients] == [b"x\n"] * 3


def test_all_that_lies_in_the_kernel_is_answered(twin: Any) -> None:
    """More than one `recv` of it, whole messages and no others; nothing of what comes later."""
    with (
        serving("--prefix", "", "--framing", "netstring", backend=twin.name) as daemon,
        daemon.connect() as sock,
    ):
        wire = b"".join(b"%d:%b," % (len(line), line) for line in LONG.split(b"\n"))
        sock.sendall(b"2:hi,")
        assert read_exactly(sock, 5) == b"2:hi,"
        with paused(daemon):
            sock.sendall(wire + b"9:unfinis")
            daemon.kill(signal.SIGTERM)
        assert read_exactly(sock, len(wire)) == wire
        with suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        assert daemon.stop() == 0


def test_datagrams_queued_at_the_signal_are_answered(twin: Any) -> None:
    """Of every client, and more than one batch."""
    with ExitStack() as stack:
        daemon = stack.enter_context(serving("--prefix", "", backend=twin.name))
        clients = [stack.enter_context(daemon.datagram_socket()) for _ in range(15)]
        with paused(daemon):
            for number in range(10):
                for client in clients:
                    client.send(b"%d" % number)
            daemon.kill(signal.SIGTERM)
        for client in clients:
            assert [client.recv(100) for _ in range(10)] == [b"%d" % n for n in range(10)]
        assert daemon.stop() == 0
        assert "150 messages" in daemon.stderr


def test_a_client_that_begins_to_read_after_the_signal_gets_everything(twin: Any) -> None:
    """The drain waits for it: it does not end before its time."""
    with (
        serving("--prefix", "x" * 30, "--drain-timeout", "20", backend=twin.name) as daemon,
        slow_client(daemon) as sock,
    ):
        sock.sendall(b"\n" * 20_000)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b"x"
        daemon.kill(signal.SIGTERM)
        until(lambda: refused(daemon), "a closed listener")
        assert b"x" + read_to_end(sock) == (b"x" * 30 + b"\n") * 20_000
        assert daemon.stop() == 0
        assert "cut" not in daemon.stderr


def refused(daemon: Daemon) -> bool:
    """Whether nobody listens there any more."""
    try:
        daemon.connect().close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass
    return False


@pytest.mark.parametrize("form", ["text", "json"])
def test_clients_that_never_read_are_cut_and_counted(form: str, twin: Any) -> None:
    """In one line, and the exit status is that of a good end."""
    arguments = ("--drain-timeout", "0.3", "--log-format", form)
    with ExitStack() as stack:
        daemon = stack.enter_context(serving(*arguments, backend=twin.name))
        stuck = [stack.enter_context(slow_client(daemon)) for _ in range(3)]
        for sock in stuck:
            sock.setblocking(False)
        for sock in stuck:
            assert fill(sock) < 64 << 20
        good = stack.enter_context(daemon.connect())
        good.sendall(b"x\n")
        read_exactly(good, 28)
        assert daemon.stop() == 0
        if form == "json":
            said = [json.loads(line) for line in daemon.lines]
            (line,) = [each for each in said if each["event"] == "cut"]
            assert (line["level"], line["connections"]) == ("warning", 3)
            assert line["unsent"] > 0
            sentence = line["message"]
        else:
            (sentence,) = [line for line in daemon.lines if "cut" in line]
        found = re.fullmatch(r"stopped with 3 connections cut, ([\d,]+) bytes unsent", sentence)
        assert found, sentence
        assert int(found[1].replace(",", "")) > 0
        closed = [sock for sock in stuck if not ended_well(sock)]
        assert closed == stuck


def ended_well(sock: socket.socket) -> bool:
    """Whether it got all its replies."""
    got = 0
    try:
        while data := sock.recv(1 << 20):
            got += len(data)
    except ConnectionResetError:
        return False
    return got == 27 * 64 << 20


def test_a_drain_of_no_time_cuts_at_once(twin: Any) -> None:
    with (
        serving("--drain-timeout", "0", backend=twin.name) as daemon,
        slow_client(daemon) as sock,
    ):
        fill(sock)
        assert daemon.stop() == 0
        assert "stopped with 1 connection" in daemon.stderr


@pytest.mark.parametrize("number", SIGNALS)
def test_a_daemon_with_nothing_to_do_ends_at_once(number: int, twin: Any) -> None:
    """Idle clients, and such as have sent half a message, keep nobody waiting."""
    with (
        serving("--drain-timeout", "1000", backend=twin.name) as daemon,
        daemon.connect() as idle,
        daemon.connect() as half,
    ):
        half.sendall(b"x\nhalf")
        read_exactly(half, 28)
        assert daemon.stop(number) == 0
        assert idle.recv(1) == half.recv(1) == b""
        assert "cut" not in daemon.stderr


def test_a_drain_ends_though_clients_never_stop_sending(twin: Any) -> None:
    with (
        serving("--prefix", "", "--drain-timeout", "0.5", backend=twin.name) as daemon,
        daemon.connect() as sock,
    ):
        sock.settimeout(0.05)
        daemon_ended = False
        daemon.kill(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while not daemon_ended:
            assert time.monotonic() < deadline, "it goes on for ever"
            with suppress(TimeoutError, ConnectionError):
                sock.send(b"more\n" * 1000)
            with suppress(TimeoutError, ConnectionError):
                sock.recv(1 << 20)
            daemon_ended = daemon.process.poll() is not None
        assert daemon.stop() == 0


def test_a_fault_found_while_it_drains_costs_no_reply(twin: Any) -> None:
    """Nor does the rest of that client's input: no reset overtakes the replies."""
    with (
        serving("--prefix", "", "--max-frame", "8", backend=twin.name) as daemon,
        daemon.connect() as sock,
    ):
        sock.sendall(b"first\n")
        read_exactly(sock, 6)
        with paused(daemon):
            sock.sendall(LONG + b"too long for it" * 5_000)
            daemon.kill(signal.SIGTERM)
        assert read_to_end(sock) == LONG
        sock.close()
        assert daemon.stop() == 0
        assert "too_long 1" in daemon.stderr


@pytest.mark.parametrize(("first", "second"), [SIGNALS, SIGNALS[::-1]])
def test_a_second_signal_ends_it_at_once_with_its_number(
    first: int, second: int, twin: Any
) -> None:
    daemon = Daemon(["--drain-timeout", "1000", "--backend", twin.name, "tcp://127.0.0.1:0"], {})
    try:
        daemon.wait_ready(1)
        with slow_client(daemon) as sock:
            fill(sock)
            daemon.kill(first)
            until(lambda: refused(daemon), "a closed listener")
            daemon.kill(second)
            assert daemon.stop() == 128 + second
        assert "Traceback" not in daemon.stderr
    finally:
        daemon.discard()


def test_connections_that_were_reset_in_the_queue_disturb_nobody(twin: Any) -> None:
    with ExitStack() as stack:
        daemon = stack.enter_context(serving("-v", "--prefix", "", backend=twin.name))
        with paused(daemon):
            clients = [stack.enter_context(daemon.connect()) for _ in range(20)]
            for number, client in enumerate(clients):
                client.sendall(b"x\n")
                if number % 2:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    client.close()
            daemon.kill(signal.SIGTERM)
        for client in clients[::2]:
            name = named(client.getsockname())
            assert read_to_end(client) == b"x\n"
            assert daemon.wait_line(f"{name}: closed (stopped) after 1 message")
        assert daemon.stop() == 0
