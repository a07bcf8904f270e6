"""What is seen of a run of `load` while it lasts.

The generator must not be held up, or it would measure what its own display costs. So on a terminal
the display is a process of its own, at the lowest priority, which is told a few figures a second;
elsewhere it is a line a second.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import click

from ..report import duration, longest, per_second, percentiles
from . import animated

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..load import Interval, Load, Plan

#: Times a second that a terminal is written to.
FRAMES = 8
#: Rates that are remembered, and drawn.
REMEMBERED = 12
BARS = " ▁▂▃▄▅▆▇█"
#: What the display has of the processor where others want it, too (nice(2)).
NICE = 19


class Seen(NamedTuple):
    """What is known at some moment of a run.

    Attributes:
        elapsed: seconds of the measurement.
        received: right replies so far.
        rate: of the last second.
        p50, p99, longest: of all so far, in nanoseconds.
        troubles: what went wrong.
    """

    elapsed: float
    received: int
    rate: float
    p50: int
    p99: int
    longest: int
    troubles: int

    def line(self) -> str:
        """It in words."""
        return (
            f"{self.elapsed:.0f} s: {per_second(self.rate)}, p50 {duration(self.p50)},"
            f" p99 {duration(self.p99)}, max {duration(self.longest)}, errors {self.troubles:,}"
        )


class Display:
    """Shows a run: `start` before it connects, `began` then, `progress` each second, `close`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._received = 0
        self._pipe = -1
        self._child = 0
        if animated():
            self._start()
        elif plan.warmup:
            click.echo(f"warming up for {plan.warmup:g} s", err=True)

    def began(self) -> None:
        """It has connected."""
        self._tell("{}")

    def progress(self, load: Load, interval: Interval) -> None:
        """An interval has passed."""
        self._received += interval.received
        p50, p99 = percentiles(load.result.latency, (50, 99))
        seen = Seen(
            interval.start + interval.seconds,
            self._received,
            interval.received / interval.seconds if interval.seconds else 0.0,
            p50,
            p99,
            longest(load.result.latency),
            load.troubles,
        )
        if self._child:
            self._tell(json.dumps(seen._asdict()))
        else:
            with suppress(OSError):
                click.echo(seen.line(), err=True)

    def close(self) -> None:
        """Nothing more will happen; the terminal is as it was."""
        if self._child:
            os.close(self._pipe)
            os.waitpid(self._child, 0)
            self._child = 0

    def _tell(self, line: str) -> None:
        """A line that does not get through at once is lost: the next one says more."""
        if self._child:
            with suppress(OSError):
                os.write(self._pipe, line.encode() + b"\n")

    def _start(self) -> None:
        """Before there are connections, which the other process would have, too."""
        reading, self._pipe = os.pipe()
        self._child = os.fork()
        if self._child:
            os.close(reading)
            os.set_blocking(self._pipe, False)
            return
        try:
            os.close(self._pipe)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.nice(NICE)
            animate(self._plan, reading)
        finally:
            os._exit(0)


def animate(plan: Plan, reading: int) -> None:
    """Show what is told through a pipe, to its end."""
    from rich.console import Console
    from rich.live import Live

    view = View(plan)
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        rest = b""
        while True:
            live.update(view.render(time.monotonic()), refresh=True)
            if not select.select([reading], [], [], 1 / FRAMES)[0]:
                continue
            data = os.read(reading, 65_536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                view.hear(json.loads(line))


class View:
    """What the display knows."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._began: float | None = None
        self._seen: Seen | None = None
        self._rates: list[float] = []

    def hear(self, said: dict[str, float]) -> None:
        """Take what the generator has told."""
        if not said:
            self._began = time.monotonic()
            return
        self._seen = Seen(**said)  # type: ignore[arg-type]
        self._rates = [*self._rates, self._seen.rate][-REMEMBERED:]
        self._began = time.monotonic() - self._plan.warmup - self._seen.elapsed

    def render(self, now: float) -> RenderableType:
        """The lines for this moment."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        word, share, left = self._stage(now)
        top = Table.grid(padding=(0, 2), expand=True)
        top.add_column(no_wrap=True)
        top.add_column(ratio=1)
        top.add_column(no_wrap=True, justify="right")
        top.add_row(f"[bold]{word}[/]", ProgressBar(1.0, share or 0.0, pulse=share is None), left)
        return Group(top, _figures(self._seen, self._rates)) if self._seen else top

    def _stage(self, now: float) -> tuple[str, float | None, str]:
        """What is being done, how much of it is done, and what is left."""
        plan = self._plan
        if self._began is None:
            return "connecting", None, f"{plan.connections:,} connections"
        elapsed = now - self._began
        if elapsed < plan.warmup:
            return "warming up", elapsed / plan.warmup, f"{plan.warmup - elapsed:.0f} s left"
        elapsed -= plan.warmup
        shares, left = [], ""
        if plan.duration:
            shares.append(elapsed / plan.duration)
            left = f"{max(plan.duration - elapsed, 0):.0f} s left"
        if plan.messages:
            received = self._seen.received if self._seen else 0
            shares.append(received / plan.messages)
            left = left or f"{received:,} of {plan.messages:,}"
        return "measuring", min(max(shares), 1.0), left


def _figures(seen: Seen, rates: list[float]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_row(
        Text(per_second(seen.rate), "bold cyan"),
        *(
            Text.assemble((f"{name} ", "dim"), duration(value))
            for name, value in (("p50", seen.p50), ("p99", seen.p99), ("max", seen.longest))
        ),
        Text(f"errors {seen.troubles:,}", "bold red" if seen.troubles else "green"),
        Text(spark(rates), "cyan"),
    )
    return grid


def spark(values: list[float]) -> str:
    """A chart of one line, from nothing to the most there was."""
    most = max(values, default=0.0) or 1.0
    return "".join(BARS[round(value / most * (len(BARS) - 1))] for value in values)
