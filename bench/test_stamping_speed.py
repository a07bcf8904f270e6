"""Rendering a prefix, each token alone: in the same second as the last, and in the next one.

A server renders once for each `recv`, at most: what is constant for a second once a second.
"""

from __future__ import annotations

import itertools
import time

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastecho import backend, prefix
from fastecho.workloads import BACKENDS, NOW_NS

#: CPU time, as for framing.
pytestmark = pytest.mark.benchmark(timer=time.process_time, max_time=0.1, disable_gc=True)

SECOND = 1_000_000_000
#: Renderings of a round.
COUNT = 100


def measure(benchmark: BenchmarkFixture, twin: str, template: str, step: int) -> None:
    render = backend.load(twin).Stamper(prefix.parse(template)).render
    times = itertools.cycle(range(NOW_NS, NOW_NS + 3_600 * SECOND, step))

    def one_round() -> None:
        for now in itertools.islice(times, COUNT):
            render(now)

    assert prefix.form(template).fullmatch(render(NOW_NS))
    benchmark(one_round)
    if benchmark.stats:  # there are none with --benchmark-disable
        per_prefix = benchmark.stats.stats.median * 1e9 / COUNT
        benchmark.extra_info["ns_per_prefix"] = round(per_prefix, 1)


@pytest.mark.parametrize("twin", BACKENDS)
@pytest.mark.parametrize("token", prefix.NAMES)
def test_in_the_same_second(benchmark: BenchmarkFixture, token: str, twin: str) -> None:
    benchmark.group = f"{{{token}}}, in the same second"
    measure(benchmark, twin, f"[{{{token}}}]", step=SECOND // 10_000)


@pytest.mark.parametrize("twin", BACKENDS)
@pytest.mark.parametrize("token", ["ctime", "iso", "utc", "epoch"])
def test_in_the_next_second(benchmark: BenchmarkFixture, token: str, twin: str) -> None:
    benchmark.group = f"{{{token}}}, in the next second"
    measure(benchmark, twin, f"[{{{token}}}]", step=SECOND)
