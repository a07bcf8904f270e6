"""What a latency costs the load generator: recorded by either engine, and by the library.

A round records as many latencies as come in a few milliseconds of a busy run, or takes them out of
the engine's histogram and adds them to the library's, as `fastecho.load` does once a second.
"""

from __future__ import annotations

import itertools
import random
import time

import pytest
from hdrh.histogram import HdrHistogram
from pytest_benchmark.fixture import BenchmarkFixture

from fastecho import backend, load
from fastecho.workloads import BACKENDS

#: CPU time, as for framing.
pytestmark = pytest.mark.benchmark(timer=time.process_time, max_time=0.25, disable_gc=True)

COUNT = 10_000


def latencies() -> list[int]:
    """As they come: around 300 us, with a long tail."""
    chance = random.Random(1)
    return [round(chance.lognormvariate(12.6, 0.6)) for _ in range(COUNT)]


def note(benchmark: BenchmarkFixture) -> None:
    if benchmark.stats:  # there are none with --benchmark-disable
        per_value = benchmark.stats.stats.median * 1e9 / COUNT
        benchmark.extra_info["ns_per_value"] = round(per_value, 2)


@pytest.mark.benchmark(group=f"recording {COUNT:,} latencies")
@pytest.mark.parametrize("twin", BACKENDS)
def test_recording(benchmark: BenchmarkFixture, twin: str) -> None:
    histogram = backend.engine(twin).Tally(0).latency
    values, record = latencies(), histogram.record

    def one_round() -> None:
        for value in values:
            record(value)

    benchmark(one_round)
    assert sum(count for _, count in histogram.take()) % COUNT == 0
    note(benchmark)


@pytest.mark.benchmark(group=f"recording {COUNT:,} latencies")
def test_recording_with_the_library(benchmark: BenchmarkFixture) -> None:
    histogram = load.histogram()
    values, record = latencies(), histogram.record_value

    def one_round() -> None:
        for value in values:
            record(value)

    benchmark(one_round)
    assert histogram.get_total_count() % COUNT == 0
    note(benchmark)


@pytest.mark.benchmark(group=f"exporting {COUNT:,} latencies")
@pytest.mark.parametrize("twin", BACKENDS)
def test_exporting(benchmark: BenchmarkFixture, twin: str) -> None:
    histogram = backend.engine(twin).Tally(0).latency
    values, total = latencies(), load.histogram()

    def record() -> None:
        for value in values:
            histogram.record(value)

    benchmark.pedantic(
        lambda: load.add(total, histogram.take()), setup=record, rounds=30, warmup_rounds=2
    )
    assert total.get_total_count() % COUNT == 0
    note(benchmark)


@pytest.mark.benchmark(group="encoding a histogram")
def test_encoding(benchmark: BenchmarkFixture) -> None:
    """As a saved run has each second."""
    total = load.histogram()
    load.add(total, [(value, 1) for value in sorted(latencies())])
    encoded = benchmark(total.encode)
    same = HdrHistogram.decode(encoded)
    assert list(itertools.islice(same.get_recorded_iterator(), 5))
    assert same.get_total_count() == COUNT
