"""What a fault plan costs: round trips with a server that has none, and one whose never strikes.

Without a plan the streams are the twin's own, as in `test_round_trips.py`. With one, each reply is
known by itself, decided about, and sent by Python, whatever the backend: that is not for speed.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from test_round_trips import measure

from fastecho.comparison import Daemon, pinned
from fastecho.workloads import BACKENDS

#: Of what strikes streams and datagrams.
NEVER = ("--faults", "duplicate:p=0")


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[(), NEVER], ids=["no plan", "never strikes"])
def server(request: pytest.FixtureRequest, backend: str) -> Iterator[Daemon]:
    """A server on the last core; we stay on the first."""
    with Daemon(backend, *request.param) as daemon, pinned():
        yield daemon


@pytest.mark.benchmark(group="fault plan: TCP, 1 in flight")
def test_tcp(benchmark: BenchmarkFixture, server: Daemon) -> None:
    measure(benchmark, server, socket.SOCK_STREAM, 1)


@pytest.mark.benchmark(group="fault plan: TCP, 16 in flight")
def test_tcp_pipeline(benchmark: BenchmarkFixture, server: Daemon) -> None:
    measure(benchmark, server, socket.SOCK_STREAM, 16)


@pytest.mark.benchmark(group="fault plan: UDP, 1 in flight")
def test_udp(benchmark: BenchmarkFixture, server: Daemon) -> None:
    measure(benchmark, server, socket.SOCK_DGRAM, 1)
