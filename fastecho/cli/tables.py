"""Runs of `load` in words: the same on a terminal and in a pipe, where only colours are missing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from ..load import DATAGRAMS
from ..report import PERCENTILES, Run, duration, figures, longest, per_second, percentiles, shown

NAMES = [f"p{each:g}" for each in PERCENTILES] + ["max", "mean"]
#: Bytes of a wrong reply that are shown, and how many a line.
SHOWN, LINE = 128, 16
#: Between columns.
GAP = 2


class Row(NamedTuple):
    """A line of a table: its name, its cells; and how a terminal shows it, in rich's words."""

    name: str
    cells: Sequence[str] = ()
    style: str = ""


def show(run: Run) -> None:
    """All that a run has to say, on standard output."""
    heads = [
        Row(f"{run.target}: {run.loop}", style="bold"),
        Row(run.work, style="dim"),
        Row(_time(run), style="dim"),
    ]
    if run.merged:
        heads.append(Row(run.merged, style="dim"))
    tables = [heads, list(_latencies(run)), list(_facts(run)), list(_first_wrong(run))]
    if run.bound:
        tables.append([Row(f"generator-bound: {shown(run.bound)}", style="bold yellow")])
    _print([table for table in tables if table])


def _time(run: Run) -> str:
    result = run.result
    warmup = f" after {result.plan.warmup:g} s of warm-up" if result.plan.warmup else ""
    return f"{result.seconds:.1f} s{warmup}{', ended early' * result.stopped}"


def _latencies(run: Run) -> Iterator[Row]:
    rows = {"latency": figures(run.result.latency)}
    if run.result.plan.rate is not None:
        rows["lateness"] = figures(run.result.lateness)
    if any(rows.values()):
        yield Row("", NAMES, "dim")
    for name, row in rows.items():
        if row:
            yield Row(name, [duration(row[each]) for each in NAMES])


def _facts(run: Run) -> Iterator[Row]:
    result = run.result
    right = f"{result.sent:,} sent, {result.received:,} right"
    yield Row("messages", [f"{right}: {per_second(run.rate)}"])
    if result.seconds:
        out, in_ = result.bytes_out / result.seconds, result.bytes_in / result.seconds
        yield Row("bytes", [f"{_bytes(out)} out, {_bytes(in_)} in"])
    yield Row("errors", [errors(run)], "" if result.right else "bold red")
    busy = [("generator", run.cost, result.busy), ("server", run.server_cost, result.server_busy)]
    for name, cost, share in busy:
        if cost is not None and share is not None:
            yield Row(name, [f"{duration(cost)} of processor a message, {share:.0%} busy"])


def _bytes(rate: float) -> str:
    for unit, size in (("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3)):
        if rate >= size:
            return f"{rate / size:.3g} {unit}"
    return f"{rate:.0f} B/s"


def errors(run: Run) -> str:
    """What was not as it should be; `none`."""
    result = run.result
    counts = {
        "wrong": result.wrong,
        "missing": result.missing,
        **{name: result.datagrams[name] for name in DATAGRAMS},
        **{f"closed ({shown(reason)})": n for reason, n in sorted(result.closed.items())},
    }
    return ", ".join(f"{name} {n:,}" for name, n in counts.items() if n) or "none"


def _first_wrong(run: Run) -> Iterator[Row]:
    if run.result.first_wrong is None:
        return
    sentence, data = run.result.first_wrong
    yield Row(f"the first wrong reply: {shown(sentence)}", style="bold red")
    for start in range(0, min(len(data), SHOWN), LINE):
        line = data[start : start + LINE]
        text = "".join(chr(octet) if 0x20 <= octet < 0x7F else "." for octet in line)
        yield Row(f"  {start:04x}  {line.hex(' '):<{3 * LINE - 1}}  {text}")
    if len(data) > SHOWN:
        yield Row(f"  ... and {len(data) - SHOWN:,} bytes more")


# -- side by side


def compare(runs: Sequence[Run]) -> None:
    """Runs side by side, each beside its quotient with the first; what they share, once."""
    same = [row for row in _named(runs) if len(set(row.cells)) == 1]
    differ = [row for row in _named(runs) if len(set(row.cells)) > 1]
    rows = [Row("", [_short(run.name) for run in runs], "bold"), *differ, *_measured(runs)]
    width = max(len(row.name) for row in rows) + GAP
    columns = [max(len(row.cells[k]) for row in rows) for k in range(len(runs))]
    tables = [[row._replace(cells=row.cells[:1]) for row in same]] if same else []
    tables += [
        [row._replace(cells=[row.cells[k] for k in chosen]) for row in rows]
        for chosen in _fitting(columns, _width() - width)
    ]
    _print(tables)


def _fitting(columns: Sequence[int], room: int) -> Iterator[list[int]]:
    """Columns that have room beside each other; the others follow below."""
    chosen: list[int] = []
    for k, width in enumerate(columns):
        if chosen and sum(columns[each] + GAP for each in chosen) + width > room:
            yield chosen
            chosen = []
        chosen.append(k)
    yield chosen


def _named(runs: Sequence[Run]) -> Iterator[Row]:
    told = {
        "address": [run.target for run in runs],
        "loop": ["closed" if run.result.plan.rate is None else "open" for run in runs],
        "rate asked for": [_asked(run) for run in runs],
        "framing": [run.result.plan.framing if run.is_stream else "-" for run in runs],
        "connections": [f"{run.result.plan.connections:,}" for run in runs],
        "in flight each": [f"{run.result.plan.pipeline:,}" for run in runs],
        "bytes": [shown(run.result.plan.size) for run in runs],
        "host": [run.machine.host for run in runs],
        "kernel": [f"{run.machine.system} {run.machine.kernel}" for run in runs],
        "fastecho": [f"{run.version} ({run.backend})" for run in runs],
        "seconds": [f"{run.result.seconds:.1f}" for run in runs],
    }
    for name, cells in told.items():
        if set(cells) != {"-"}:
            yield Row(name, cells, "dim")


def _asked(run: Run) -> str:
    rate = run.result.plan.rate
    return "-" if rate is None else f"{per_second(rate)} {run.result.plan.arrivals}"


def _short(name: str) -> str:
    stem = shown(Path(name).stem)
    return stem if len(stem) <= 24 else f"...{stem[-21:]}"


def _measured(runs: Sequence[Run]) -> Iterator[Row]:
    results = [run.result for run in runs]
    yield Row("messages/s", _against([run.rate or None for run in runs], per_second))
    values = [[*percentiles(each.latency, PERCENTILES), longest(each.latency)] for each in results]
    for place, name in enumerate(NAMES[:-1]):
        yield Row(f"latency {name}", _against([each[place] or None for each in values], duration))
    yield Row("generator/message", _against([run.cost for run in runs], duration))
    if any(run.server_cost is not None for run in runs):
        yield Row("server/message", _against([run.server_cost for run in runs], duration))
    wrong = any(not each.right for each in results)
    yield Row("errors", [errors(run) for run in runs], "bold red" if wrong else "")
    if any(run.bound for run in runs):
        cells = ["yes" if run.bound else "no" for run in runs]
        yield Row("generator-bound", cells, "bold yellow")


def _against(values: Sequence[float | None], say: Callable[[float], str]) -> list[str]:
    """Each value, and how many times the first it is."""
    first = values[0]
    cells = []
    for place, value in enumerate(values):
        if value is None:
            cells.append("-")
        elif place and first:
            cells.append(f"{say(value)} {_quotient(value / first):>6}")
        else:
            cells.append(f"{say(value)}{' ' * 7 * (len(values) > 1)}")
    return cells


def _quotient(value: float) -> str:
    return (
        f"{value:.0f}x" if value >= 99.5 else f"{value:.2f}x" if value >= 0.1 else f"{value:.1g}x"
    )


# -- on the screen or into a pipe


def _width() -> int:
    """Columns that there are; in a pipe, as many as needed."""
    if not sys.stdout.isatty():
        return 10_000
    from rich.console import Console

    return Console().width


def _print(tables: Iterable[Sequence[Row]]) -> None:
    """Tables with an empty line between them."""
    for number, table in enumerate(tables):
        if number:
            click.echo()
        if sys.stdout.isatty():
            _print_rich(table)
        else:
            _print_plain(table)


def _print_plain(rows: Sequence[Row]) -> None:
    named = max((len(row.name) for row in rows if row.cells), default=0)
    widths = _widths(rows)
    for row in rows:
        if not row.cells:
            click.echo(row.name)
            continue
        cells = [f"{cell:>{width}}" for cell, width in zip(row.cells, widths, strict=False)]
        if len(row.cells) == 1 and len(widths) == 1:
            cells = [row.cells[0]]
        click.echo(f"{row.name:<{named}}  {'  '.join(cells)}".rstrip())


def _widths(rows: Sequence[Row]) -> list[int]:
    count = max((len(row.cells) for row in rows), default=0)
    return [
        max((len(row.cells[k]) for row in rows if k < len(row.cells)), default=0)
        for k in range(count)
    ]


def _print_rich(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    count = len(_widths(rows))
    table = Table.grid(padding=(0, GAP))
    for place in range(count + 1):
        table.add_column(justify="right" if place and count > 1 else "left", no_wrap=count != 1)
    for row in rows:
        if row.cells:
            name = Text(row.name, row.style or "dim")
            table.add_row(name, *(Text(cell, row.style) for cell in row.cells))
        else:
            console.print(Text(row.name, row.style), soft_wrap=row.name.startswith("  "))
    if table.row_count:
        console.print(table)
