"""`fastecho bench`: native against pure, on this machine."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .. import __version__, comparison, machine
from ..comparison import Measured
from ..errors import ConfigError, FastechoError
from ..workloads import FRAMINGS, WrongReply
from . import FAILED, complain

#: What `--plot` can draw.
PICTURES = (".png", ".svg")
#: Of the first column of the table; the whole fits into 80.
WIDTH = 18


def _names(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    return [name for name in (*FRAMINGS, "trips") if name.startswith(begun)]


@click.command(
    epilog="Exit status: 0 done, 1 a reply was wrong, 2 wrong usage or no native twin, 3"
    " something needed could not be had: a file, matplotlib."
)
@click.argument("wanted", metavar="[FRAMING]...", nargs=-1, shell_complete=_names)
@click.option("--quick", is_flag=True, help="A few seconds, for a rough idea.")
@click.option("--json", "file", metavar="FILE", type=click.Path(), help="Write all results there.")
@click.option(
    "--plot", metavar="FILE", type=click.Path(), help="Draw them there: FILE.png or FILE.svg."
)
def bench(wanted: tuple[str, ...], quick: bool, file: str | None, plot: str | None) -> int:
    """Compare the native twin with the pure one, on this machine.

    Framing and stamping for each FRAMING (default: all) and several sizes; and trips, which
    is round trips over loopback, to servers that it starts. It takes less than a minute.
    """
    _check(file, plot)
    effort = comparison.QUICK if quick else comparison.FULL
    started, machine_ = machine.now(), machine.describe(__version__)
    click.echo("\n".join(head(machine_, effort)))
    results = []
    try:
        for result in comparison.run(effort, wanted, lambda part: click.echo(header(part))):
            results.append(result)
            click.echo(line(result))
    except WrongReply as error:
        complain(str(error))
        return FAILED
    click.echo("\n" + "\n".join(map(click.wrap_text, verdict(results))))
    if file is not None:
        with open(file, "w", encoding="utf-8") as out:
            json.dump(document(results, effort, machine_, started), out, indent=1)
            out.write("\n")
    if plot is not None:
        from .bench_plot import draw

        draw(results, machine_, plot)
    return 0


def _check(file: str | None, plot: str | None) -> None:
    """See that there is a place for the results, before half a minute is spent on them."""
    if plot is not None:
        if Path(plot).suffix not in PICTURES:
            raise ConfigError(f"cannot draw {plot!r}: its name must end in {' or '.join(PICTURES)}")
        if importlib.util.find_spec("matplotlib") is None:
            raise FastechoError("--plot needs matplotlib: pip install 'fastecho[plot]'")
    for path in filter(None, (file, plot)):
        machine.writable(path)


# -- for people


def head(machine_: dict[str, Any], effort: comparison.Effort) -> list[str]:
    """What is compared, and on what."""
    cores = f", {machine_['cores']} cores" if machine_["cores"] else ""
    system = f"{machine_['system']} {machine_['kernel']}; {machine_['python']}"
    return [
        f"fastecho {machine_['fastecho']}: native against pure",
        f"{machine_['cpu']}{cores}; {system}",
        f"medians of {effort.windows} windows, in turns; 95%: where that of the ratio is",
    ]


def header(part: str) -> str:
    """The heads of the columns."""
    first, others = _HEADERS[part]
    wide = [_WIDTHS[1] + _WIDTHS[2], _WIDTHS[3] + _WIDTHS[4], _WIDTHS[5] + _WIDTHS[6]]
    over = [f"{text:>{width}}" for text, width in zip(others, wide, strict=True)]
    names = ("bytes", "native", "pure", "native", "pure", "times", "95%")
    return f"\n{'':{WIDTH + _WIDTHS[0]}}{''.join(over)}\n{_row(first, *names)}"


_HEADERS = {
    "framing and stamping": ("framing", ("CPU ns/message", "messages/s", "pure takes")),
    "round trips": ("over loopback", ("server's CPU ns", "round trip, us", "pure takes")),
}
_WIDTHS = (6, 10, 9, 10, 9, 7, 11)


def _row(name: str, *cells: str) -> str:
    values = (f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
    return f"{name:{WIDTH}}{''.join(values)}"


def line(result: Measured) -> str:
    """One line of the table."""
    cpu = result.cpu
    both = (_ns(cpu.first), _ns(cpu.second))
    if result.wall is None:
        others = tuple(_rate(1e9 / each) for each in (cpu.first, cpu.second))
    else:
        others = tuple(f"{each / 1e3:,.0f}" for each in (result.wall.first, result.wall.second))
    low, high = _ratio(cpu.low), _ratio(cpu.high)
    times = (_ratio(cpu.ratio), f"{low}-{high}")
    return _row(_label(result), f"{result.size:,}", *both, *others, *times)


def _label(result: Measured) -> str:
    if result.kind == "itself":
        return "native with itself"
    if result.kind == "reference":
        return f"  {result.name}"
    if len(result.name) < WIDTH:
        return result.name
    return result.name.partition(",")[0] + ",..."


def _ns(nanoseconds: float) -> str:
    return f"{nanoseconds:,.1f}" if nanoseconds < 1_000 else f"{nanoseconds:,.0f}"


def _ratio(times: float) -> str:
    return f"{times:.2f}" if times < 9.995 else f"{times:.1f}"


def _rate(per_second: float) -> str:
    """With three digits that count."""
    per_second = float(f"{per_second:.3g}")
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if per_second >= size:
            value = per_second / size
            return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"
    return f"{per_second:.0f}"


def verdict(results: Sequence[Measured]) -> list[str]:
    """What it comes to."""
    said = [
        f"Not to be believed today: a thing compared with itself ({each.name}) took"
        f" {each.cpu.ratio:.2f} times as long."
        for each in results
        if each.kind == "itself" and not each.believable
    ]
    rivals = [each for each in results if each.kind != "itself"]
    behind = [f"{each.name}, {each.size:,} bytes" for each in rivals if not each.cpu.low > 1]
    said.append(
        f"Native is not ahead: {'; '.join(behind)}." if behind else "Native is ahead everywhere."
    )
    if any(each.kind == "reference" for each in results):
        said.append("bytes.replace: Python's fastest way to put the prefixes in, and nothing else.")
    return said


# -- for programs


def document(
    results: Sequence[Measured],
    effort: comparison.Effort,
    machine_: dict[str, Any],
    started: str,
) -> dict[str, Any]:
    """What `--json` writes; docs/bench.md says what it means."""
    return {
        "command": "bench",
        "schema": 1,
        "started": started,
        "machine": machine_,
        "effort": effort._asdict(),
        "believable": all(each.believable for each in results if each.kind == "itself"),
        "results": [_result(each) for each in results],
    }


def _result(result: Measured) -> dict[str, Any]:
    return {
        "kind": result.kind,
        "name": result.name,
        "bytes": result.size,
        "messages": result.messages,
        "cpu_ns_per_message": _compared(result.cpu),
        "round_trip_ns": None if result.wall is None else _compared(result.wall),
    }


def _compared(compared: comparison.Compared) -> dict[str, float]:
    return {
        "native": compared.first,
        "pure": compared.second,
        "ratio": compared.ratio,
        "ratio_low": compared.low,
        "ratio_high": compared.high,
    }
