"""Runs of `load` as a picture: latency by percentile, and over time.

Colours are those of Okabe and Ito, which people with any kind of colour vision tell apart; a run
has a marker of its own besides, and what is drawn of it a line style.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from .errors import ConfigError, FastechoError
from .report import PERCENTILES, Run, duration, longest, per_second, percentiles, shown

if TYPE_CHECKING:
    from hdrh.histogram import HdrHistogram
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
#: What is drawn over time, and how.
LINES: dict[str, tuple[Literal["solid", "dashed", "dotted"], float]] = {
    "p50": ("solid", 2.0),
    "p99": ("dashed", 1.5),
    "max": ("dotted", 1.2),
}
#: Points of a curve that can be told apart on paper.
POINTS = 800
#: Seconds that have a marker each; more would be a band.
FEW = 40
#: Words closer than this (as a quotient, on a logarithmic axis) would lie on each other.
CLOSE = 4
INCHES, DPI = (9.0, 9.2), 150
GREY = "#555555"


def check(path: str) -> None:
    """Make sure that a picture of this name can be drawn.

    Raises:
        ConfigError: it is of no kind that is known.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ConfigError(f"cannot plot to {path}: a plot is a {' or '.join(SUFFIXES)} file")


def draw(runs: Sequence[Run], path: str) -> None:
    """Draw runs into a file.

    Raises:
        ConfigError: there are too many of them, or nothing was measured.
        FastechoError: the file cannot be written.
    """
    check(path)
    if len(runs) > len(COLOURS):
        raise ConfigError(f"a plot shows {len(COLOURS)} runs at most, not {len(runs)}")
    if not any(run.result.latency.total_count for run in runs):
        raise ConfigError("there is nothing to plot: no reply came")
    figure = picture(runs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that no font here has
        try:
            figure.savefig(path, dpi=DPI, metadata=_metadata(path))
        except OSError as error:
            raise FastechoError(f"cannot write {path}: {error.strerror or error}") from error


def picture(runs: Sequence[Run]) -> Figure:
    """Both charts, one above the other."""
    figure = Figure(figsize=INCHES, layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.1))
    above, below = figure.subplots(2, 1)
    _caption(above, *_titles(runs))
    _by_percentile(above, runs)
    _over_time(below, runs)
    if len(runs) > 1:
        _name(figure, runs)
    return figure


# -- words


def _titles(runs: Sequence[Run]) -> tuple[str, str]:
    """What was measured; on what, with which version, and whether to believe it."""
    first = runs[0]
    common = [_one([run.target for run in runs]), _one([run.loop for run in runs])]
    several = f"Latency of {len(runs)} runs" * (len(runs) > 1)
    title = ", ".join(filter(None, [several, *common]))
    version = _one(
        [f"fastecho {run.version} ({run.backend}), {run.machine.python}" for run in runs]
    )
    machine = _one(
        [
            f"{run.machine.host}: {run.machine.cpu}, {run.machine.system} {run.machine.kernel}"
            for run in runs
        ]
    )
    lines = [
        _one([run.work for run in runs]),
        version and f"measured with {version}",
        machine and f"on {machine}",
    ]
    bound = [run for run in runs if run.bound]
    if bound and len(runs) == 1:
        lines.append(f"generator-bound: {first.bound}")
    elif bound:
        lines.append(f"generator-bound: {', '.join(_label(run) for run in bound)}")
    return title, "\n".join(_wrapped(line) for line in lines if line)


def _one(texts: list[str]) -> str:
    """What all have in common; empty where they differ."""
    return texts[0] if len(set(texts)) == 1 else ""


def _wrapped(line: str, width: int = 118) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _label(run: Run) -> str:
    """A run's name; one that begins with _ would be left out."""
    name = shown(Path(run.name).stem or run.target)
    name = name if len(name) <= 36 else f"…{name[-35:]}"
    return f" {name}" if name.startswith("_") else name


def _caption(axes: Axes, title: str, text: str) -> None:
    small, above = 8.5, 12
    axes.set_title(text, loc="left", fontsize=small, color=GREY, parse_math=False, pad=above)
    height = above + 1.45 * small * (text.count("\n") + bool(text)) + 5
    axes.annotate(
        _wrapped(title, 74),
        (0, 1),
        (0, height),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=13,
        fontweight="bold",
        parse_math=False,
    )


def _metadata(path: str) -> dict[str, Any]:
    """Without the date: the same runs make the same file."""
    return {"Date": None} if Path(path).suffix.lower() == ".svg" else {}


# -- charts


def _by_percentile(axes: Axes, runs: Sequence[Run]) -> None:
    """On an axis on which each further nine has the same room."""
    most = 10.0
    for number, run in enumerate(runs):
        latency = run.result.latency
        if not latency.total_count:
            continue
        xs, ys = curve(latency)
        most = max(most, xs[-1])
        colour = COLOURS[number]
        axes.plot(xs, ys, color=colour, linewidth=1.8, drawstyle="steps-post")
        marked = [each for each in PERCENTILES if 1 / (1 - each / 100) <= latency.total_count]
        values = percentiles(latency, marked)
        places = [1 / (1 - each / 100) for each in marked]
        axes.plot(places, values, MARKERS[number], color=colour, markersize=6, markeredgecolor="w")
        axes.plot(xs[-1], longest(latency), MARKERS[number], color=colour, markersize=6)
        if len(runs) == 1:
            _annotate(axes, [*places, xs[-1]], [*values, longest(latency)])
    axes.set_xscale("log")
    axes.set_xlim(1, most * (1.6 if len(runs) == 1 else 1.15))
    nines = [10.0**n for n in range(int(math.log10(most) + 1e-9) + 1)]
    axes.xaxis.set_major_locator(FixedLocator([1, 2, *nines[1:]]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _percent(x)))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.set_xlabel("percentile: so many replies took no longer")
    _dress(axes)


def curve(latency: HdrHistogram) -> tuple[list[float], list[float]]:
    """How many times as many replies as exceeded a latency there were in all; that latency."""
    total, gone = latency.total_count, 0
    xs, ys = [], []
    for index, count in enumerate(latency.counts):
        if count:
            value = latency.get_value_from_index(index)
            xs.append(total / (total - gone))
            ys.append(float(latency.get_highest_equivalent_value(value)))
            gone += count
    xs.append(float(total))
    ys.append(ys[-1])
    return _thinned(xs, ys)


def _thinned(xs: list[float], ys: list[float]) -> tuple[list[float], list[float]]:
    """Without points so close to the one before that nobody sees them."""
    gap = math.log(xs[-1] + 1) / POINTS
    kept, last = [], -math.inf
    for place, x in enumerate(xs):
        if math.log(x) - last >= gap or place >= len(xs) - 2:
            kept.append(place)
            last = math.log(x)
    return [xs[place] for place in kept], [ys[place] for place in kept]


def _annotate(axes: Axes, xs: list[float], ys: list[int]) -> None:
    for x, y in zip(xs, ys, strict=True):
        if x == xs[-1] or xs[-1] / x > CLOSE:
            axes.annotate(
                f"max {duration(y)}" if x == xs[-1] else duration(y),
                (x, y),
                (0, 8),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )


def _percent(x: float) -> str:
    """The percentile at which one of so many is longer."""
    if x <= 1:
        return "0"
    places = max(0, round(math.log10(x)) - 2)
    return f"{100 * (1 - 1 / x):.{places}f}%"


def _over_time(axes: Axes, runs: Sequence[Run]) -> None:
    for number, run in enumerate(runs):
        whole = [part for part in run.parts if part.seconds > 0]
        at = [part.start + part.seconds / 2 for part in whole]
        marker = MARKERS[number] if len(whole) <= FEW else ""
        for name, (style, width) in LINES.items():
            values = [_value(part, name) for part in whole]
            axes.plot(
                at,
                values,
                color=COLOURS[number],
                linestyle=style,
                linewidth=width,
                marker=marker,
                markersize=4,
            )
        for part in whole:
            if not part.received:
                axes.axvspan(
                    part.start, part.start + part.seconds, color=COLOURS[number], alpha=0.12, lw=0
                )
    ends = [run.parts[-1].start + run.parts[-1].seconds for run in runs if run.parts]
    axes.set_xlim(0, max(ends, default=1.0) or 1.0)
    silent = any(not part.received for run in runs for part in run.parts)
    axes.set_xlabel("seconds since the measurement began" + (" (shaded: no reply)" * silent))
    styles = [
        Line2D([], [], color=GREY, linestyle=style, linewidth=width)
        for style, width in LINES.values()
    ]
    _dress(axes)
    axes.legend(
        styles, list(LINES), loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False
    )


def _value(part: Any, name: str) -> float:
    value = {"p50": part.p50, "p99": part.p99, "max": part.longest}[name]
    return value if part.received else math.nan


def _dress(axes: Axes) -> None:
    """Latency upwards, with units, and as little ink as will do."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.15, high * 1.35)
    axes.set_ylabel("latency")
    subs = (1.0,) if high / low > 300 else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(10, subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _tick(y)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _tick(value: float) -> str:
    """A duration that has one digit, or none to be seen."""
    number, unit = duration(value).split()
    return f"{float(number):g} {unit}"


def _name(figure: Figure, runs: Sequence[Run]) -> None:
    handles = [
        Line2D([], [], color=COLOURS[number], marker=MARKERS[number], linewidth=1.8)
        for number in range(len(runs))
    ]
    differ = not _one([run.loop for run in runs])
    labels = [f"{_label(run)}: {per_second(run.rate)}" + f" ({run.loop})" * differ for run in runs]
    legend = figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=max(1, min(len(runs), 105 // max(map(len, labels)))),
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
