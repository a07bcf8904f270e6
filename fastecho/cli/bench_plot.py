"""What `fastecho bench --plot` draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..comparison import Measured

#: Told apart by everybody (Okabe and Ito), and in print.
COLOURS = {"native": "#0072B2", "pure": "#D55E00"}
#: How wide a picture is, in inches, and how high a line in it.
PICTURE, LINE = 9.0, 0.22


def draw(results: Sequence[Measured], machine: dict[str, Any], path: str) -> None:
    """A panel for each size of message and one for round trips, native beside pure in each line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = _panels(results)
    rows = [panels[at : at + 2] for at in range(0, len(panels), 2)]
    heights = [max(len(part) for _, part in row) for row in rows]
    figure, axes = pyplot.subplots(
        len(rows),
        2,
        figsize=(PICTURE, LINE * sum(heights) + 1.0 * len(rows) + 0.8),
        height_ratios=[height + 2 for height in heights],
        squeeze=False,
        layout="constrained",
    )
    shared = _bounds([each for each in results if each.kind == "stamping"])
    for place, axis in enumerate(axes.flat):
        if place < len(panels):
            title, part = panels[place]
            _panel(axis, title, part, _decades(part) if part[0].kind == "trips" else shared)
        else:
            axis.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(
        f"fastecho {machine['fastecho']}, native against pure: CPU time per message\n"
        f"{machine['cpu']}; {machine['system']} {machine['kernel']}; {machine['python']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _panels(results: Sequence[Measured]) -> list[tuple[str, list[Measured]]]:
    """Title, lines."""
    stamping = [each for each in results if each.kind == "stamping"]
    trips = [each for each in results if each.kind == "trips"]
    panels = [
        (f"{size:,}-byte messages", [each for each in stamping if each.size == size])
        for size in sorted({each.size for each in stamping})
    ]
    return panels + ([("the server, 32-byte messages over loopback", trips)] if trips else [])


def _bounds(part: Sequence[Measured]) -> tuple[float, float]:
    """Of an axis that has them all, with room for the points: sizes share one, to be compared."""
    values = [each for one in part for each in (one.cpu.first, one.cpu.second)] or [1.0]
    return min(values) / 1.6, max(values) * 1.6


def _decades(part: Sequence[Measured]) -> tuple[float, float]:
    """The same, from one power of ten to another: few values may be between two."""
    low, high = _bounds(part)
    return 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))


def _panel(axis: Any, title: str, part: Sequence[Measured], bounds: tuple[float, float]) -> None:
    """A line for each framing: two points, how far they are apart, and how many times that is."""
    places = range(len(part))
    native = [each.cpu.first for each in part]
    pure = [each.cpu.second for each in part]
    axis.hlines(places, native, pure, color="0.8", linewidth=3, zorder=1)
    for name, values in (("native", native), ("pure", pure)):
        axis.scatter(values, places, color=COLOURS[name], label=name, s=32, zorder=2)
    for place, each in zip(places, part, strict=True):
        middle = (each.cpu.first * each.cpu.second) ** 0.5
        times = f"{each.cpu.ratio:.1f}x" if each.cpu.ratio < 10 else f"{each.cpu.ratio:.0f}x"
        axis.annotate(
            times, (middle, place), (0, 4), textcoords="offset points", ha="center", fontsize=7
        )
    axis.set_xscale("log")
    axis.set_xlim(*bounds)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.xaxis.set_minor_formatter("")
    axis.set_yticks(places, [_label(each.name) for each in part], fontsize=8)
    axis.set_ylim(len(part) - 0.4, -0.8)
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlabel("ns of CPU time per message", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", which="major", color="0.9")
    axis.spines[["top", "right", "left"]].set_visible(False)


def _label(name: str) -> str:
    return name if len(name) < 20 else name.partition(",")[0] + ",..."
