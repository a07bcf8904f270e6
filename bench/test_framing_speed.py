"""Framing and stamping alone, native beside pure."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastecho import backend, echo, prefix
from fastecho.comparison import compare
from fastecho.workloads import BACKENDS, BUFFER, NOW_NS, Workload, combinations, workload

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


# -- lines, beside what else can be done with them

#: Bytes of a line, its end included.
SIZES = (32, 1024, 8192)
#: Buffers in a round: enough that what a call costs is spread.
BUFFERS = 16
#: Windows in which both run, and the seconds of either in one.
WINDOWS, SIDE = 40, 0.02

Rival = Callable[[bytes, bytes], tuple[Callable[[], object], bytes]]


def replacing(data: bytes, shown: bytes) -> tuple[Callable[[], object], bytes]:
    """Python's fastest: a prefix after each line, for want of a way to put it before."""

    def one_round() -> None:
        for _ in range(BUFFERS):
            data.replace(b"\n", b"\n" + shown)

    return one_round, (shown + data.replace(b"\n", b"\n" + shown))[: -len(shown)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Rival:
    """`plain_lines.c`, compiled."""
    if not shutil.which("gcc"):
        pytest.skip("there is no gcc")
    made = tmp_path_factory.mktemp("plain") / "plain_lines.so"
    source = Path(__file__).with_name("plain_lines.c")
    subprocess.run(["gcc", "-O3", "-shared", "-fPIC", source, "-o", made], check=True)
    function = ctypes.CDLL(str(made)).plain_lines
    function.restype = ctypes.c_size_t

    def make(data: bytes, shown: bytes) -> tuple[Callable[[], object], bytes]:
        out = ctypes.create_string_buffer(2 * BUFFER)
        size, room = ctypes.c_size_t(len(data)), ctypes.c_size_t(len(out))

        def one_round() -> int:
            written: int = function(data, size, out, room, shown, BUFFERS)
            return written

        written = one_round()
        return one_round, out.raw[:written]

    return make


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["bytes.replace", "memchr and memcpy in C"])
def test_lines_beside(
    benchmark: BenchmarkFixture,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    name: str,
    size: int,
) -> None:
    make: Rival = replacing if name == "bytes.replace" else request.getfixturevalue("plain")
    count = BUFFER // size
    data = (b"x" * (size - 1) + b"\n") * count
    native = echo.pattern(backend.load("native"), "line", prefix.DEFAULT, None)
    rival, said = make(data, native.stamper.render(NOW_NS))
    out = bytearray(2 * BUFFER)
    feed_into = native.feed_into

    def one_round() -> None:
        for _ in range(BUFFERS):
            feed_into(data, out, NOW_NS)

    assert feed_into(data, out, NOW_NS) == (len(data), len(said))
    assert out.startswith(said)
    benchmark.group = f"beside {name}: lines of {size:,} bytes, {BUFFERS * count:,} lines"
    benchmark(one_round)
    if not benchmark.stats:
        return
    cpu, _ = compare((one_round, rival), (time.process_time_ns,) * 2, WINDOWS, SIDE)
    lines = BUFFERS * count
    figures = {
        "ns_per_line": round(cpu.first / lines, 2),
        "rival_ns_per_line": round(cpu.second / lines, 2),
        "rival_takes": [round(times, 3) for times in (cpu.ratio, cpu.low, cpu.high)],
    }
    benchmark.extra_info.update(figures)
    with capsys.disabled():
        print(
            f"\nlines of {size:,} bytes: {figures['ns_per_line']} ns each; {name}"
            f" {figures['rival_ns_per_line']} ns, {cpu.ratio:.2f} times as long"
            f" (95%: {cpu.low:.2f} to {cpu.high:.2f})"
        )
