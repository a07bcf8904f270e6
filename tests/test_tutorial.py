"""The four programs of every sockets tutorial, unchanged, with fastecho in the place of either.

`tests/tutorial/` has them; only host and port come from the command line.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import AF_INET, SOCK_DGRAM, SOCK_STREAM, create_connection, socket
from typing import Any

import pytest
from processes import OWN_HOST, PATIENCE, read_exactly, run, serving, stamped

TUTORIAL = Path(__file__).with_name("tutorial")
TYPED = [b"hello", b"a", b"two words", "¡olé!".encode()]
TICK = 0.01  # s; time(2), which `ctime()` asks, may be one behind, and still in the last second


def typed_into(program: str, address: tuple[str, int], lines: list[bytes]) -> list[bytes]:
    """What the program prints after each prompt when these lines and an empty one are typed."""
    host, port = address
    stdin = b"".join(line + b"\n" for line in [*lines, b""])
    done = run(sys.executable, TUTORIAL / program, host, str(port), stdin=stdin)
    assert (done.returncode, done.stderr) == (0, b"")
    nothing, *shown = done.stdout.split(b">")
    assert nothing == b""
    return shown


def are_stamped(shown: list[bytes], lines: list[bytes], since: float) -> bool:
    """Whether each line came back with the time in front, and nothing after the empty one."""
    *replies, last = shown
    return last == b"" and all(
        reply in stamped(line + b"\n", since) for reply, line in zip(replies, lines, strict=True)
    )


def test_tcp_client_is_answered(twin: Any) -> None:
    since = time.time()
    with serving("--framing", "raw", backend=twin.name) as daemon:
        shown = typed_into("tcp_client.py", daemon.tcp, TYPED)
    assert are_stamped(shown, TYPED, since), shown


def test_udp_client_is_answered(twin: Any) -> None:
    since = time.time()
    with serving(backend=twin.name) as daemon:
        shown = typed_into("udp_client.py", daemon.udp, TYPED)
    assert are_stamped(shown, TYPED, since), shown


def test_clients_are_served_while_another_says_nothing(twin: Any) -> None:
    since = time.time()
    with serving("--framing", "raw", backend=twin.name) as daemon, daemon.connect():
        shown = typed_into("tcp_client.py", daemon.tcp, TYPED)
    assert are_stamped(shown, TYPED, since), shown


# -- what fastecho must be compatible with


@contextmanager
def tutorial_server(program: str, kind: int) -> Iterator[tuple[tuple[str, int], Any]]:
    """The program at its work: its address, and its standard output."""
    with socket(AF_INET, kind) as taken:
        taken.bind((OWN_HOST, 0))
        address = taken.getsockname()
    command = [sys.executable, TUTORIAL / program, address[0], str(address[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield address, process.stdout
        finally:
            process.kill()


@pytest.mark.parametrize("kind", [SOCK_STREAM, SOCK_DGRAM], ids=["tcp", "udp"])
def test_servers_answer_and_say_as_fastecho_does(kind: int, twin: Any) -> None:
    """Their replies and lines, and ours to the same messages: the same but for ports and times."""
    name, waiting = {
        SOCK_STREAM: ("tcp", b"waiting for connection ..."),
        SOCK_DGRAM: ("udp", b"waiting for message ..."),
    }[kind]
    with tutorial_server(f"{name}_server.py", kind) as (address, stdout):
        assert stdout.readline() == waiting + b"\n"
        theirs = exchange(kind, address)
        said = stdout.readline().decode()
    with serving("-v", "--framing", "raw", backend=twin.name) as daemon:
        assert any(line.encode().startswith(waiting) for line in daemon.ready)
        ours = exchange(kind, daemon.tcp if kind == SOCK_STREAM else daemon.udp)
        assert without_port(daemon.wait_line("...")) == without_port(said.rstrip("\n"))
    assert ours == theirs


def exchange(kind: int, address: tuple[str, int]) -> list[bytes]:
    """The replies to what was typed, without their times, which have been checked."""
    replies = []
    for line in TYPED:
        since = time.time() - TICK
        if kind == SOCK_STREAM:
            with create_connection(address, PATIENCE) as sock:
                sock.sendall(line)
                reply = read_exactly(sock, 26 + len(line))
        else:
            with socket(AF_INET, SOCK_DGRAM) as sock:
                sock.settimeout(PATIENCE)
                sock.sendto(line, address)
                reply = sock.recv(1024)
        assert reply in stamped(line, since)
        replies.append(reply[26:])
    return replies


def without_port(line: str) -> str:
    return re.sub(r"\d+\)$", "PORT)", line)
