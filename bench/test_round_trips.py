"""Round trips over loopback: the server in a process of its own, on a core of its own.

The times are the client's: mostly the kernel's work and the waking of two processes, and the client
is Python. What the server alone spends is `server_ns_per_message`, by its process clock.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastecho.comparison import Daemon, Trip, pinned
from fastecho.workloads import BACKENDS

ROUNDS, WARMUP = 4_000, 100


@pytest.fixture(scope="module", params=BACKENDS)
def server(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A server on the last core; we stay on the first."""
    with Daemon(request.param) as daemon, pinned():
        yield daemon


def measure(
    benchmark: BenchmarkFixture, server: Daemon, kind: socket.SocketKind, in_flight: int
) -> None:
    """Time round trips of so many messages at once."""
    with server.connect(kind) as sock:
        trip = Trip(sock, in_flight)
        before = server.cpu_ns()
        benchmark.pedantic(trip, rounds=ROUNDS, warmup_rounds=WARMUP)
        spent = server.cpu_ns() - before
        trip.check()
    trips = ROUNDS + WARMUP if benchmark.enabled else 1
    benchmark.extra_info["messages"] = in_flight
    benchmark.extra_info["server_ns_per_message"] = round(spent / trips / in_flight)


@pytest.mark.benchmark(group="round trip: TCP, 1 in flight")
def test_tcp(benchmark: BenchmarkFixture, server: Daemon) -> None:
    measure(benchmark, server, socket.SOCK_STREAM, 1)


@pytest.mark.benchmark(group="round trip: TCP, 16 in flight")
def test_tcp_pipeline(benchmark: BenchmarkFixture, server: Daemon) -> None:
    measure(benchmark, server, socket.SOCK_STREAM, 16)


@pytest.mark.benchmark(group="round trip: UDP, 1 in flight")
def test_udp(benchmark: BenchmarkFixture, server: Daemon) -> None:
    measure(benchmark, server, socket.SOCK_DGRAM, 1)
