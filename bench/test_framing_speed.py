"""Framing and stamping alone, native beside pure."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastecho.workloads import BACKENDS, Workload, combinations, workload

#: CPU time: what else the machine does is not the codec's.
pytestmark = pytest.mark.benchmark(timer=time.process_time, max_time=0.25, disable_gc=True)

CUT = [
    (framing, size) for framing in ("line", "u32le", "varint", "netstring") for size in (32, 1024)
]


def measure(
    benchmark: BenchmarkFixture, work: str, load: Workload, one_round: Callable[[], None]
) -> None:
    """Time a round; what it takes per message goes to the JSON."""
    load.check()
    benchmark.group = f"{work}: {load.framing}, {load.size:,} bytes, {load.messages:,} messages"
    benchmark(one_round)
    benchmark.extra_info["messages"] = load.messages
    if benchmark.stats:  # there are none with --benchmark-disable
        per_message = benchmark.stats.stats.median * 1e9 / load.messages
        benchmark.extra_info["ns_per_message"] = round(per_message, 2)


@pytest.mark.parametrize("twin", BACKENDS)
@pytest.mark.parametrize(("framing", "size"), combinations())
def test_stamping(benchmark: BenchmarkFixture, framing: str, size: int, twin: str) -> None:
    load = workload(framing, size)
    measure(benchmark, "replies", load, load.stamping(twin))


@pytest.mark.parametrize("twin", BACKENDS)
@pytest.mark.parametrize(("framing", "size"), CUT)
def test_cutting(benchmark: BenchmarkFixture, framing: str, size: int, twin: str) -> None:
    load = workload(framing, size)
    measure(benchmark, "messages", load, load.cutting(twin))
