"""RESULTS.md and its plots, from what run.py has measured: python bench/versus/report.py [FILE]

Nothing in them is written by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from peers import KINDS  # noqa: E402

YARDSTICK, CONTROL = "epoll", "epoll again"
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
of windows of 0.1 s, there and back, and where that median lies with 95%. Less is better. The last
row of each table is the C server against a second process of itself, that is: what the method makes
of no difference.
"""
LATENCY = """Open loop, Poisson arrivals, 64 connections, 32-byte lines: microseconds from when a
message was due to its reply, at shares of the rate at which each peer itself saturates. The machine
is shared: the far tail is its neighbours' as much as the peer's."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; all columns but the first to the right."""
    rule = "|---|" + "---:|" * (len(head) - 1)
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])


def title_of(results: dict[str, Any], peer: str) -> str:
    if peer == CONTROL:
        return "C epoll again"
    return str(results["peers"][peer]["title"])


def control_of(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    return next((row for row in rows if row["peer"] == CONTROL), None)


def is_fit(rows: list[dict[str, Any]]) -> bool:
    """Whether the method found no difference where there is none."""
    control = control_of(rows)
    return control is None or abs(control["ratio"][0] - 1) <= TOLERANCE


def ratio(row: dict[str, Any]) -> str:
    median, low, high = row["ratio"]
    return f"{median:.2f} [{low:.2f}–{high:.2f}]"


def summary(results: dict[str, Any]) -> str:
    """All kinds of work, all peers: ratios alone."""
    peers = [peer for peer in results["peers"] if peer != YARDSTICK]
    rows = []
    for kind, found in results["kinds"].items():
        by_peer = {row["peer"]: row for row in found}
        cells = [KINDS[kind], f"{by_peer[YARDSTICK]['ns']:,.0f}"]
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
    text = [f"## {KINDS[kind][0].upper()}{KINDS[kind][1:]}", ""]
    if not is_fit(rows):
        control = control_of(rows)
        assert control is not None
        text.append(
            f"Not published: C against itself came out at {ratio(control)}, which is off by more"
            f" than {TOLERANCE:.0%}."
        )
        return "\n".join(text)
    measured = [row for row in rows if not row["why_not"]]
    order = [row for row in measured if row["peer"] != CONTROL]
    order.sort(key=lambda row: row["ratio"][0])
    order += [row for row in measured if row["peer"] == CONTROL]
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
    head = ["peer", "CPU ns/message", "ratio to C", "messages/s", "server busy", "generator busy"]
    text += [table(head, cells), ""]
    reasons = [row for row in rows if row["why_not"]]
    text += [f"{title_of(results, row['peer'])}: –, {row['why_not']}." for row in reasons]
    text += ["", f"![{KINDS[kind]}](plots/{kind}.png)"]
    return "\n".join(text)


def memory(results: dict[str, Any]) -> str:
    rows = [
        [title_of(results, peer), f"{found['rest'] / 2**20:.1f}", f"{found['connection']:,.0f}"]
        for peer, found in sorted(results["memory"].items(), key=lambda item: item[1]["connection"])
    ]
    return "\n".join(
        [
            "## Memory",
            "",
            "Resident (VmRSS) at rest, and what each of 9,000 idle connections adds; the kernel's",
            "part is not in it.",
            "",
            table(["peer", "at rest, MiB", "per idle connection, bytes"], rows),
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
    text = [
        "## Latency",
        "",
        LATENCY,
    ]
    for index in range(2):
        rows = []
        for peer, found in results["latency"].items():
            one = found[index]
            figures = [f"{one[name] / 1e3:,.0f}" for name in ("p50", "p90", "p99", "p99.9")]
            note = "generator-bound" if one["bound"] else ""
            rows.append([title_of(results, peer), f"{one['rate']:,.0f}", *figures, note])
        share = next(iter(results["latency"].values()))[index]["share"]
        head = ["peer", "messages/s", "p50", "p90", "p99", "p99.9", ""]
        text += ["", f"At {share:.0%}:", "", table(head, rows)]
    return "\n".join(text)


def plot(results: dict[str, Any], kind: str, path: Path) -> None:
    """Bars of one kind of work."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in results["kinds"][kind] if not row["why_not"] and row["peer"] != CONTROL]
    rows.sort(key=lambda row: row["ratio"][0], reverse=True)
    names = [title_of(results, row["peer"]) for row in rows]
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
    axes.set_xlabel(
        "processor time of the server per message, relative to C epoll (less is better)"
    )
    axes.set_title(f"{KINDS[kind][0].upper()}{KINDS[kind][1:]}", loc="left", fontsize=11)
    machine = results["machine"]
    figure.text(
        0.995, 0.005, f"{machine['cpu']}, {machine['kernel']}, {machine['date']}",
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
    parts = [
        INTRODUCTION.format(rounds=results["rounds"]),
        f"{machine['cpu']}; {machine['kernel']}; {machine['python']}; {machine['date']}.",
        "",
        summary(results),
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


def main(words: list[str]) -> int:
    path = Path(words[0]) if words else HERE / "results.json"
    results = json.loads(path.read_text())
    for kind, rows in results["kinds"].items():
        if is_fit(rows):
            plot(results, kind, path.parent / "plots" / f"{kind}.png")
    (path.parent / "RESULTS.md").write_text(document(results))
    print(path.parent / "RESULTS.md")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
