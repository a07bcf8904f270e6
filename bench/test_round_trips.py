"""Round trips over loopback: the server in a process of its own, on a core of its own.

The times are the client's: mostly the kernel's work and the waking of two processes, and the client
is Python. What the server alone spends is `server_ns_per_message`, by its process clock.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from workloads import BACKENDS

#: 32 bytes, on TCP and UDP alike.
LINE = b"0123456789abcdef0123456789abcde\n"
REPLY = len("[Thu Jan  1 00:00:00 2026]") + len(LINE)
#: Seconds until a reply that does not come is an error. For the kernel: a Python timeout would
#: add a system call to each `recv`.
PATIENCE = struct.pack("ll", 10, 0)

ROUNDS = 4_000


class Server(NamedTuple):
    """A daemon that has been started, and where it listens."""

    backend: str
    pid: int
    address: tuple[str, int]

    def cpu_ns(self) -> int:
        """What it has spent so far, in nanoseconds (clock_getcpuclockid(3))."""
        return time.clock_gettime_ns(~self.pid << 3 | 2)

    def connect(self, kind: socket.SocketKind) -> socket.socket:
        """A blocking socket, connected to it."""
        sock = socket.socket(socket.AF_INET, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, PATIENCE)
        sock.connect(self.address)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


@pytest.fixture(scope="module", params=BACKENDS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server on the last core; we stay on the first."""
    command = [sys.executable, "-m", "fastecho", "--backend", request.param, "127.0.0.1:0"]
    cores = os.sched_getaffinity(0)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            ready = process.stderr.readline()
            port = re.search(r"tcp://127\.0\.0\.1:(\d+) ", ready + process.stderr.readline())
            os.sched_setaffinity(process.pid, {max(cores)})
            os.sched_setaffinity(0, {min(cores)})
            yield Server(request.param, process.pid, ("127.0.0.1", int(port[1])))
        finally:
            os.sched_setaffinity(0, cores)
            process.terminate()
    assert process.returncode == 0


def measure(
    benchmark: BenchmarkFixture, server: Server, kind: socket.SocketKind, in_flight: int
) -> None:
    """Time round trips of so many messages at once."""
    trips = 0
    request = LINE * in_flight
    expected = REPLY * in_flight
    with server.connect(kind) as sock:

        def trip() -> bytes:
            nonlocal trips
            trips += 1
            sock.send(request)
            reply = sock.recv(65_536)
            while len(reply) < expected:
                more = sock.recv(65_536)
                assert more, "the server has closed the connection"
                reply += more
            return reply

        before = server.cpu_ns()
        reply = benchmark.pedantic(trip, rounds=ROUNDS, warmup_rounds=100)
        spent = server.cpu_ns() - before
    assert len(reply) == expected
    assert reply.count(LINE) == in_flight
    benchmark.extra_info["messages"] = in_flight
    benchmark.extra_info["server_ns_per_message"] = round(spent / trips / in_flight)


@pytest.mark.benchmark(group="round trip: TCP, 1 in flight")
def test_tcp(benchmark: BenchmarkFixture, server: Server) -> None:
    measure(benchmark, server, socket.SOCK_STREAM, 1)


@pytest.mark.benchmark(group="round trip: TCP, 16 in flight")
def test_tcp_pipeline(benchmark: BenchmarkFixture, server: Server) -> None:
    measure(benchmark, server, socket.SOCK_STREAM, 16)


@pytest.mark.benchmark(group="round trip: UDP, 1 in flight")
def test_udp(benchmark: BenchmarkFixture, server: Server) -> None:
    measure(benchmark, server, socket.SOCK_DGRAM, 1)
