"""What fastecho is to reach, and what was measured: a row each, for RESULTS.md.

`yes`: the whole interval lies at or below the goal; `no`: none of it does; else the goal is within
it, and this run cannot tell. Counts have no interval.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ratios import STUDENT, Ratio, Student, between, interval, settled
from works import FRAMINGS, WORKS

LEDGER = Path(__file__).resolve().parent.parent / "ledger.json"
MIB = 2**20
OURS, PURE, ALONE = "fastecho", "fastecho-pure", "fastecho alone"
C, BEST = "epoll", "epoll-best"
NAMES = {
    C: "C",
    BEST: "C at its best",
    "aiofastnet": "uvloop + aiofastnet",
    ALONE: "itself without them",
}

#: Ours to another's in the same rounds: work, whom with, goal.
RATIOS = (
    ("tcp-1", C, 1.02),
    ("tcp-1", "aiofastnet", 0.80),
    ("tcp-16", C, 1.02),
    ("tcp-256", BEST, 1.03),
    ("tcp-1024", BEST, 1.03),
    ("tcp-1k", C, 1.03),
    ("tcp-16k", C, 1.03),
    ("idle", ALONE, 1.05),
    ("short", BEST, 1.15),
    ("short", "uvloop", 0.90),
    ("short-rst", BEST, 1.15),
    ("short-rst", "uvloop", 0.90),
    ("udp-1", C, 1.03),
    ("udp-16", C, 0.85),
    ("udp-burst", BEST, 1.05),
    ("udp-segmented", BEST, 1.10),
)

#: System calls, by what they are for: C makes as few as there can be.
CALLS = {
    "`recv`": ("recvfrom", "recvmsg", "read"),
    "`send`": ("sendto", "sendmsg", "write"),
    "`epoll_wait`": ("epoll_wait", "epoll_pwait", "epoll_pwait2"),
}


class Goal(NamedTuple):
    """One row.

    Attributes:
        work: what is done.
        what: the figure.
        most: that it may be.
        found: what it is, and its interval.
        digits: that it is shown with.
    """

    work: str
    what: str
    most: float
    found: Ratio
    digits: int = 2

    @property
    def reached(self) -> str:
        _, low, high = self.found
        if high <= self.most:
            return "yes"
        return "no" if low > self.most else "not told"

    @property
    def shown(self) -> str:
        median, low, high = (f"{each:,.{self.digits}f}" for each in self.found)
        return median if low == high == median else f"{median} [{low}–{high}]"


def exactly(value: float) -> Ratio:
    return value, value, value


def all_goals(results: dict[str, Any], student: Student = STUDENT) -> Iterator[Goal]:
    """Those of which anything was measured, with intervals by this table of Student's t."""
    if LEDGER.exists():
        yield from counted(json.loads(LEDGER.read_text())["rows"])
    for kind, other, most in RATIOS:
        if found := between(results, kind, OURS, other, student):
            yield Goal(WORKS[kind].title, f"CPU, × {NAMES.get(other, other)}", most, found)
    for framing in FRAMINGS:
        if found := between(results, "framings", framing, OURS, student):
            yield Goal(f"{framing}, 16 in flight", "CPU, × line", 1.10, found)
    yield from alone(results, student)
    yield from stamps(results)
    yield from at_rest(results)
    yield from in_time(results)
    for kind, work in WORKS.items():
        if found := between(results, kind, PURE, "asyncio", student):
            yield Goal(f"pure: {work.title}", "CPU, × asyncio", 0.75, found)


def counted(rows: dict[str, Any]) -> Iterator[Goal]:
    """What the ledger says."""
    for kind, most in (("tcp-1", 250.0), ("tcp-16", None)):
        if not {OURS, C} <= rows.get(kind, {}).keys():
            continue
        ours, theirs = rows[kind][OURS], rows[kind][C]
        title = WORKS[kind].title
        limit = theirs["instructions"] if most is None else most
        what = f"user instructions per message (C: {theirs['instructions']:,.0f})"
        yield Goal(title, what, limit, exactly(ours["instructions"]), 0)
        for what, names in CALLS.items():
            number, limit = (
                sum(each["calls"].get(name, 0.0) for name in names) for each in (ours, theirs)
            )
            yield Goal(title, f"{what} per message", limit, exactly(number), 4)
        yield Goal(title, "allocations per message", 0.0, exactly(ours["allocations"]), 4)


def alone(results: dict[str, Any], student: Student) -> Iterator[Goal]:
    for found in results.get("stamping", ()):
        title = f"framing and stamping alone, {found['size']:,}-byte lines"
        ratio = settled(found["ratios"], student)
        if found["rival"] != "C":
            yield Goal(title, "CPU, × `bytes.replace`, both called from Python", 1 / 7, ratio)
            continue
        if found["size"] == min(each["size"] for each in results["stamping"]):
            yield Goal(title, "ns per line", 1.5, exactly(found["ns"]))
        yield Goal(title, "CPU, × C (`memchr` and `memcpy`)", 1.0, ratio)


def stamps(results: dict[str, Any]) -> Iterator[Goal]:
    for found in results.get("stamps", ()):
        title = f"stamps on UDP, beside {found['beside']}"
        yield Goal(title, "error, p99.9, ns", 1000, exactly(found["p99.9"]), 0)


def at_rest(results: dict[str, Any]) -> Iterator[Goal]:
    if ours := results.get("memory", {}).get(OURS):
        title = (
            "user memory per idle connection, bytes"
            f" (the kernel's: {ours['kernel']:,.0f}, for both ends)"
        )
        yield Goal("9,000 idle connections", title, 250, exactly(ours["connection"]), 0)
        yield Goal("at rest", "resident memory, MiB", 18, exactly(ours["rest"] / MIB), 1)
    if OURS in results.get("ready", {}):
        median, low, high = (1e3 * each for each in results["ready"][OURS])
        yield Goal("start", "ms to the ready line", 120, (median, low, high), 0)


def in_time(results: dict[str, Any]) -> Iterator[Goal]:
    """Open loop: each run with C's in the same turn."""
    found = results.get("latency", {})
    for shares in zip(found.get(OURS, ()), found.get(C, ()), strict=True):
        ours, theirs = shares
        if ours["share"] != 0.7:
            continue
        for percentile in ("p99", "p99.9"):
            pairs = zip(ours["runs"], theirs["runs"], strict=True)
            ratio = interval([one[percentile] / other[percentile] for one, other in pairs])
            yield Goal("open loop at 70% of saturation", f"{percentile}, × C", 1.0, ratio)


def rows(results: dict[str, Any]) -> list[list[str]]:
    """As cells of a table."""
    return [
        [goal.work, goal.what, f"{goal.most:,.{goal.digits}f}", goal.shown, goal.reached]
        for goal in all_goals(results)
    ]
