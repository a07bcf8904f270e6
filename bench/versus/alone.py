"""Framing and stamping alone, without a socket: python bench/versus/alone.py

Prints as JSON what a line costs fastecho, and C or, short ones, `bytes.replace`. This is one
sitting; run.py takes several and puts them together: where the buffers of a process happen to lie
moves a figure by more than its windows tell.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE)]

from peers import BUILT, PeerError  # noqa: E402
from peers import run as run_command  # noqa: E402

from fastecho import comparison, workloads  # noqa: E402

EFFORT = comparison.Effort(sizes=(32,), windows=10, side=0.02, trips_side=0.0)
SIZES = (32, 1024, 8192)


def sitting() -> list[dict[str, Any]]:
    """Nanoseconds a line, and how many times the rival's those are."""
    found = [
        told("bytes.replace", measured.size + 1, measured.cpu)  # with its end
        for measured in comparison.run(EFFORT, ["line"])
        if measured.kind == "reference"
    ]
    clock = time.process_time_ns
    for size in SIZES:
        runs, messages = in_c(size)
        per_round, _ = comparison.compare(runs, (clock, clock), EFFORT.windows, EFFORT.side)
        first, second = per_round.first / messages, per_round.second / messages
        found.append(told("C", size, per_round._replace(first=first, second=second)))
    return found


def told(rival: str, size: int, cpu: comparison.Compared) -> dict[str, Any]:
    ratio = 1 / cpu.ratio
    return {"rival": rival, "size": size, "ns": cpu.first, "rival_ns": cpu.second, "ratio": ratio}


def together(sittings: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What they tell as one: medians, and each one's ratio."""
    return [
        {
            **same[0],
            **{name: median([each[name] for each in same]) for name in ("ns", "rival_ns")},
            "ratios": [[each["ratio"]] for each in same],
        }
        for same in zip(*sittings, strict=True)
    ]


def in_c(size: int) -> tuple[tuple[Callable[[], object], Callable[[], object]], int]:
    """fastecho's round of lines of this size and C's, of so many lines, with the same result."""
    times = 16  # a call of C from Python costs as much as a few lines
    load = workloads.workload("line", size - 1)
    data, prefix = load.pieces[0], load.echo("native").stamper.render(workloads.NOW_NS)
    out = ctypes.create_string_buffer(workloads.BUFFER + 64 * load.messages)
    built, ext = BUILT / "framing.so", HERE.parents[1] / "ext"
    source = str(HERE / "framing.c")
    run_command(["gcc", "-O3", "-I", str(ext), "-shared", "-fPIC", "-o", str(built), source])
    library = ctypes.CDLL(str(built))

    def calls(name: str) -> Callable[[], object]:
        stamp = library[name]
        stamp.restype = ctypes.c_size_t
        stamp.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t,
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t,
        ]  # fmt: skip
        return lambda: stamp(data, len(data), out, len(out), prefix, len(prefix), times)

    ours, theirs = calls("as_fastecho"), calls("plainly")
    replies = []
    for stamp in (ours, theirs):
        ctypes.memset(out, 0, len(out))
        replies.append(out.raw[: stamp()])
    if replies[0] != replies[1]:
        raise PeerError(f"C and fastecho differ over lines of {size} bytes")
    return (ours, theirs), times * load.messages


def main() -> int:
    print(json.dumps(sitting()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
