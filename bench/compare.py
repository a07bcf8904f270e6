"""Native against pure, framing and stamping alone: python bench/compare.py [FRAMING ...]

Each line has the CPU time of one message with either twin, and how many times as long pure takes,
with the 95% interval of that ratio's median over the windows. In a window both run, in ABBA order
from one to the next, so that what drifts (clock rate, neighbours) strikes both alike. First a
thing is measured against itself: by how much that misses 1 is by how much the rest is not to be
believed.

For `line` there is one line more: Python's fastest way to put a prefix into a buffer of lines, a
`bytes.replace`, with none of a codec's duties. Exit status 1: native is not ahead somewhere.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from workloads import FRAMINGS, NOW_NS, Workload, combinations, workload

#: Windows, and seconds of either side in one.
WINDOWS, SIDE = 30, 0.02
#: Of 30 sorted values the 10th and the 21st have the median between them in 95.7% of cases, however
#: they are distributed (binomial).
LOW, HIGH = 9, 20

Round = Callable[[], None]


class Result(NamedTuple):
    """Seconds of a round of either; by how much the second is longer, with its interval."""

    first: float
    second: float
    ratio: float
    low: float
    high: float


def spent(run: Round, rounds: int) -> float:
    """CPU seconds of so many rounds."""
    start = time.process_time_ns()
    for _ in range(rounds):
        run()
    return (time.process_time_ns() - start) / 1e9


def rounds_for(run: Round) -> int:
    """How many rounds fill a side of a window; finding out warms up what they use."""
    rounds = 1
    while (seconds := spent(run, rounds)) < SIDE / 4:
        rounds *= 2
    return max(1, round(rounds * SIDE / seconds))


def compare(first: Round, second: Round) -> Result:
    """Run both in ABBA order."""
    sides = [(first, rounds_for(first)), (second, rounds_for(second))]
    times: list[list[float]] = [[], []]
    for window in range(WINDOWS):
        for side in (0, 1) if window % 2 == 0 else (1, 0):
            run, rounds = sides[side]
            times[side].append(spent(run, rounds) / rounds)
    ratios = sorted(b / a for a, b in zip(*times, strict=True))
    medians = map(statistics.median, times)
    return Result(*medians, statistics.median(ratios), ratios[LOW], ratios[HIGH])


def replacing(load: Workload) -> Round:
    """The reference: the prefixes put in, and nothing else."""
    prefix = load.echo("pure").stamper.render(NOW_NS)
    data = load.pieces[0]
    return lambda: data.replace(b"\n", b"\n" + prefix)


def report(name: str, load: Workload, result: Result) -> None:
    """A line of the table."""
    first, second = (seconds * 1e9 / load.messages for seconds in result[:2])
    interval = f"[{result.low:.2f} .. {result.high:.2f}]"
    print(f"{name:34} {load.size:5,} {first:9,.1f} {second:9,.1f} {result.ratio:8.2f}  {interval}")


def main(wanted: list[str]) -> int:
    """Print the table; the exit status."""
    gc.disable()
    sys.stdout.reconfigure(line_buffering=True)
    behind = []
    print(f"{'ns per message':34} {'size':>5} {'native':>9} {'pure':>9} {'ratio':>8}")
    lines = workload("line", 32)
    itself = compare(lines.stamping("native"), lines.stamping("native"))
    report("native against itself (line)", lines, itself)
    for framing, size in combinations():
        if wanted and framing not in wanted:
            continue
        load = workload(framing, size)
        load.check()
        rivals = {load.framing: load.stamping("pure")}
        if framing == "line":
            rivals["line, bytes.replace alone"] = replacing(load)
        for name, rival in rivals.items():
            result = compare(load.stamping("native"), rival)
            report(name, load, result)
            if result.low <= 1:
                behind.append(f"{name}, {size:,} bytes")
    print("native is not ahead: " + "; ".join(behind) if behind else "native is ahead everywhere")
    return int(bool(behind))


if __name__ == "__main__":
    if unknown := set(sys.argv[1:]) - set(FRAMINGS):
        sys.exit(f"no framing here: {' '.join(unknown)} (choose from {' '.join(FRAMINGS)})")
    sys.exit(main(sys.argv[1:]))
