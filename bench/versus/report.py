"""RESULTS.md and its plots, from what run.py has measured: python bench/versus/report.py [FILE]

Nothing in them is written by hand. With two files: do two runs agree? Every ratio of both, with
intervals of 99%, and which of these have nothing in common; then the exit status is 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

import goals  # noqa: E402
from ratios import STUDENT_99, Ratio, interval, settled  # noqa: E402
from works import WORKS  # noqa: E402

YARDSTICK = "epoll"
AGAIN, ALONE = " again", " alone"
#: As in run.py: C against itself may be off by so much.
TOLERANCE = 0.02
NAMES = {"fastecho": "#d55e00", "fastecho-pure": "#e69f00", "epoll": "#0072b2"}
OTHER = "#999999"  # with these three, told apart by those who see no red or green
INTRODUCTION = """# fastecho and others at the same work

Made by `make versus`, nothing by hand. Every peer echoes lines, or datagrams, with the 26-byte
`ctime` prefix, and has passed `bench/versus/check.py`: partial lines, a limit on them, floods,
clients that do not read. One core for the server, one for the generator, `fastecho load`'s engine,
which verifies every reply.

**A figure is the processor time, user and system, that the server's process uses for a message**,
as a ratio to a hand-written C `epoll` server's in the same round: the median over {rounds} rounds
of windows of 0.1 s, there and back, in sittings spread over the whole run, and where it lies with
95% by what differs between these. Less is better. A row "again" is the C server against a second
process of itself, that is: what the method makes of no difference. "C epoll" is what everybody
would write (`memchr` and `memcpy`, `recvmmsg` and `sendmmsg`); "at its best" finds newlines 64
bytes at a time, accepts once for an event, and has the kernel cut and join datagrams.
"""
LATENCY = """Open loop, Poisson arrivals, 64 connections, 32-byte lines: microseconds from when a
message was due to its reply, at shares of the rate at which each peer itself saturates. Medians of
short runs, in turns; the ratio to C is of runs in the same turn. The machine is shared: the far
tail is its neighbours' as much as the peer's. The last column is in how many of the runs the
generator itself was late, or busy for more than 90%."""
GOALS = """## The goals

`yes`: the whole interval lies at or below the goal; `no`: none of it; `not told`: the goal is
within it. Counts are the ledger's (`make ledger`), and exact."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; all columns but the first to the right."""
    rule = "|---|" + "---:|" * (len(head) - 1)
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])


def title_of(results: dict[str, Any], peer: str) -> str:
    for suffix, means in ((AGAIN, " again"), (ALONE, ", without the idle ones")):
        if peer.endswith(suffix):
            return title_of(results, peer.removesuffix(suffix)) + means
    known = results["peers"].get(peer)
    return str(known["title"]) if known else peer  # a framing


def control_of(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    return next((row for row in rows if row["peer"].endswith(AGAIN)), None)


def yardstick_of(kind: str) -> str:
    return "fastecho" if kind == "framings" else YARDSTICK


def is_fit(rows: list[dict[str, Any]]) -> bool:
    """Whether the method found no difference where there is none."""
    control = control_of(rows)
    return control is None or abs(control["ratio"][0] - 1) <= TOLERANCE


def ratio(row: dict[str, Any]) -> str:
    return shown(row["ratio"])


def shown(ratio: Ratio) -> str:
    median, low, high = ratio
    return f"{median:.2f} [{low:.2f}–{high:.2f}]"


def summary(results: dict[str, Any]) -> str:
    """All kinds of work that others do too, all peers: ratios alone."""
    peers = [peer for peer in results["peers"] if peer != YARDSTICK]
    rows = []
    for kind, found in results["kinds"].items():
        by_peer = {row["peer"]: row for row in found}
        if YARDSTICK not in by_peer:
            continue
        cells = [WORKS[kind].title, f"{by_peer[YARDSTICK]['ns']:,.0f}"]
        for peer in peers:
            row = by_peer.get(peer)
            measured = row is not None and not row["why_not"] and is_fit(found)
            cells.append(f"{row['ratio'][0]:.2f}" if row is not None and measured else "–")
        rows.append(cells)
    head = ["work", "C epoll, ns", *(title_of(results, peer) for peer in peers)]
    return table(head, rows)


def details(results: dict[str, Any], kind: str) -> str:
    """One kind of work."""
    rows = results["kinds"][kind]
    text = [f"## {WORKS[kind].title[0].upper()}{WORKS[kind].title[1:]}", ""]
    if not is_fit(rows):
        control = control_of(rows)
        assert control is not None
        text.append(
            f"Not published: the yardstick against itself came out at {ratio(control)},"
            f" which is off by more than {TOLERANCE:.0%}."
        )
        return "\n".join(text)
    measured = [row for row in rows if not row["why_not"]]
    order = sorted(
        measured, key=lambda row: (row["peer"].endswith((AGAIN, ALONE)), row["ratio"][0])
    )
    cells = [
        [
            title_of(results, row["peer"]),
            f"{row['ns']:,.0f}" if row["ns"] >= 100 else f"{row['ns']:.1f}",
            ratio(row),
            f"{row['rate']:,.0f}",
            f"{row['busy']:.0%}",
            f"{row['generator_busy']:.0%}",
        ]
        for row in order
    ]
    ratio_to = f"ratio to {title_of(results, yardstick_of(kind))}"
    head = ["peer", "CPU ns/message", ratio_to, "messages/s", "server busy", "generator busy"]
    text += [table(head, cells), ""]
    reasons = [row for row in rows if row["why_not"]]
    text += [f"{title_of(results, row['peer'])}: –, {row['why_not']}." for row in reasons]
    text += ["", f"![{WORKS[kind].title}](plots/{kind}.png)"]
    return "\n".join(text)


def memory(results: dict[str, Any]) -> str:
    rows = [
        [
            title_of(results, peer),
            f"{found['rest'] / 2**20:.1f}",
            f"{found['connection']:,.0f}",
            f"{found['kernel']:,.0f}",
        ]
        for peer, found in sorted(results["memory"].items(), key=lambda item: item[1]["connection"])
    ]
    return "\n".join(
        [
            "## Memory",
            "",
            "Resident (VmRSS) at rest, and what each idle connection from the 1,001st to the",
            "9,000th adds; beside it what the kernel takes for both ends of one (Slab).",
            "",
            table(["peer", "at rest, MiB", "per idle connection, bytes", "the kernel's"], rows),
        ]
    )


def ready(results: dict[str, Any]) -> str:
    rows = [
        [title_of(results, peer), f"{median * 1e3:.0f} [{low * 1e3:.0f}–{high * 1e3:.0f}]"]
        for peer, (median, low, high) in sorted(results["ready"].items(), key=lambda one: one[1])
    ]
    return "\n".join(
        ["## Time to ready", "", table(["peer", "ms from start to the ready line"], rows)]
    )


def latency(results: dict[str, Any]) -> str:
    text = ["## Latency", "", LATENCY]
    found = results["latency"]
    for index, first in enumerate(next(iter(found.values()))):
        rows = []
        for peer, shares in found.items():
            one, theirs = shares[index], found.get(YARDSTICK, shares)[index]
            figures = [
                f"{interval(run[name] for run in one['runs'])[0] / 1e3:,.0f}"
                for name in ("p50", "p90", "p99", "p99.9")
            ]
            to_c = [shown(each) if each else "" for each in latency_ratios(one, theirs).values()]
            bound = sum(run["bound"] for run in one["runs"]) / len(one["runs"])
            rows.append(
                [title_of(results, peer), f"{one['rate']:,.0f}", *figures, *to_c, f"{bound:.0%}"]
            )
        head = ["peer", "messages/s", "p50", "p90", "p99", "p99.9", "p99 to C", "p99.9 to C"]
        head.append("generator-bound")
        text += ["", f"At {first['share']:.0%}:", "", table(head, rows)]
    return "\n".join(text)


def latency_ratios(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Ratio | None]:
    """In the same turns; None: they had none in common."""
    if len(one["runs"]) != len(other["runs"]):
        return {"p99": None, "p99.9": None}
    pairs = list(zip(one["runs"], other["runs"], strict=True))
    return {
        name: interval(ours[name] / theirs[name] for ours, theirs in pairs)
        for name in ("p99", "p99.9")
    }


def plot(results: dict[str, Any], kind: str, path: Path) -> None:
    """Bars of one kind of work."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [
        row
        for row in results["kinds"][kind]
        if not row["why_not"] and not row["peer"].endswith(AGAIN)
    ]
    rows.sort(key=lambda row: row["ratio"][0], reverse=True)
    names = [title_of(results, row["peer"]) for row in rows]
    if kind == "framings":
        names = ["line" if name == "fastecho" else name for name in names]
    medians = [row["ratio"][0] for row in rows]
    spread = [
        [row["ratio"][0] - row["ratio"][1] for row in rows],
        [row["ratio"][2] - row["ratio"][0] for row in rows],
    ]
    figure, axes = pyplot.subplots(figsize=(8, 0.42 * len(rows) + 1.4), dpi=120)
    colours = [NAMES.get(row["peer"], OTHER) for row in rows]
    axes.barh(names, medians, xerr=spread, color=colours, height=0.65, ecolor="#333333")
    for place, row in enumerate(rows):
        end = row["ratio"][2]
        shown = f"{row['ratio'][0]:.2f}×  {row['ns']:,.0f} ns"
        axes.text(end + max(medians) * 0.01, place, shown, va="center", fontsize=8)
    axes.axvline(1, color=NAMES["epoll"], linewidth=0.8, linestyle=":")
    axes.set_xlim(0, max(medians) * 1.22)
    yardstick = "lines" if kind == "framings" else "C epoll"
    axes.set_xlabel(
        f"processor time of the server per message, relative to {yardstick} (less is better)"
    )
    axes.set_title(
        f"{WORKS[kind].title[0].upper()}{WORKS[kind].title[1:]}", loc="left", fontsize=11
    )
    machine = results["machine"]
    figure.text(
        0.995, 0.005, f"{machine['cpu']}, {machine['kernel']}, {results['date']}",
        ha="right", fontsize=6, color="#666666",
    )  # fmt: skip
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)


def document(results: dict[str, Any]) -> str:
    """RESULTS.md."""
    machine = results["machine"]
    made_on = (
        f"{machine['cpu']}, {machine['cores']} cores; {machine['system']} {machine['kernel']};"
        f" {machine['python']}; fastecho {machine['fastecho']}; {results['date']}."
    )
    parts = [
        INTRODUCTION.format(rounds=results["rounds"]),
        made_on,
        "",
        summary(results),
        "",
        GOALS,
        "",
        table(["work", "what", "goal", "measured", "reached"], goals.rows(results)),
        "",
    ]
    for kind in results["kinds"]:
        parts += [details(results, kind), ""]
    for name, section in (("memory", memory), ("ready", ready), ("latency", latency)):
        if results.get(name):
            parts += [section(results), ""]
    parts += ["## Versions", ""]
    parts += [f"- {each['title']}: {each['version']}" for each in results["peers"].values()]
    parts += [f"- left out: {name}: {why}" for name, why in results["absent"].items()]
    return "\n".join(parts) + "\n"


def all_ratios(results: dict[str, Any]) -> dict[str, Ratio]:
    """Every ratio that a run gives, by what it is of, as sure as two hundred of them must be."""
    found = {
        f"{WORKS[kind].title}: {title_of(results, row['peer'])}": settled(row["ratios"], STUDENT_99)
        for kind, rows in results["kinds"].items()
        for row in rows
        if not row["why_not"] and row["peer"] != yardstick_of(kind) and is_fit(rows)
    }
    for goal in goals.all_goals(results, STUDENT_99):
        if "×" in goal.what:
            found[f"goal, {goal.work}: {goal.what}"] = goal.found
    return found


def agreement(one: dict[str, Any], other: dict[str, Any]) -> int:
    """Print both runs' ratios; the exit status."""
    first, second = all_ratios(one), all_ratios(other)
    common = [name for name in first if name in second]
    if not common:
        print("these runs have no ratio in common", file=sys.stderr)
        return 2
    apart = [name for name in common if disagree(first[name], second[name])]
    for name in common:
        mark = "  <- they disagree" if name in apart else ""
        print(f"{shown(first[name]):>18}  {shown(second[name]):>18}  {name}{mark}")
    print(f"{len(common) - len(apart)} of {len(common)} ratios agree")
    return int(bool(apart))


def disagree(one: Ratio, other: Ratio) -> bool:
    """Whether their intervals have nothing in common."""
    return one[2] < other[1] or other[2] < one[1]


def main(words: list[str]) -> int:
    if len(words) > 1:
        one, other = (json.loads(Path(word).read_text()) for word in words)
        return agreement(one, other)
    path = Path(words[0]) if words else HERE / "results.json"
    results = json.loads(path.read_text())
    for kind, rows in results["kinds"].items():
        if is_fit(rows):
            plot(results, kind, path.parent / "plots" / f"{kind}.png")
    (path.parent / "RESULTS.md").write_text(document(results))
    print(table(["work", "what", "goal", "measured", "reached"], goals.rows(results)))
    print(path.parent / "RESULTS.md")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
