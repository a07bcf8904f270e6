"""`fastecho load`: many messages to an echo server, every reply verified and timed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

import click

from .. import backend as backends
from ..errors import FastechoError
from . import FAILED, UNAVAILABLE, complain, extra, options, raise_descriptor_limit

if TYPE_CHECKING:
    from ..load import Load
    from ..report import Run

STOPPING = (signal.SIGINT, signal.SIGTERM)
STDOUT = "-"
#: Seconds of a run that is bounded by nothing else.
DURATION = 10.0
#: The largest process id that Linux gives (PID_MAX_LIMIT).
MAX_PID = 2**22


def _file(option: str, told: str) -> Callable[[Any], Any]:
    return click.option(option, metavar="FILE", type=click.Path(), help=told)


@click.command()
@options.target("The server's, which each reply must have; empty for a plain echo.")
@click.option(
    "--connections", metavar="N", type=int, default=1, show_default=True, help="How many."
)
@click.option(
    "--pipeline",
    metavar="N",
    type=int,
    default=1,
    show_default=True,
    help="Messages in flight at most, on each connection.",
)
@click.option(
    "--size",
    metavar="SIZES",
    default="64",
    show_default=True,
    help="Bytes of a request on the wire: 64, a range (40-80), or a mix (64:90,1400:10).",
)
@click.option(
    "--duration",
    metavar="SECONDS",
    type=float,
    help="Of the measurement.  [default: 10, or until --messages are answered]",
)
@click.option("--messages", metavar="N", type=int, help="Of the measurement, at most.")
@click.option(
    "--warmup",
    metavar="SECONDS",
    type=float,
    default=0.0,
    show_default=True,
    help="Before the measurement.",
)
@click.option(
    "--rate",
    metavar="N",
    type=float,
    help="Messages a second, of all connections together: an open loop.  [default: a closed loop]",
)
@click.option(
    "--arrivals",
    type=click.Choice(["uniform", "poisson"]),
    default="uniform",
    show_default=True,
    help="When messages are due, in open loop.",
)
@options.timeout
@click.option(
    "--connect-per-message", is_flag=True, help="Each message goes over a connection of its own."
)
@click.option(
    "--close",
    type=click.Choice(["fin", "rst"]),
    default="fin",
    show_default=True,
    help="How a message's own connection is closed.",
)
@click.option("--gso", is_flag=True, help="Have the kernel cut and join datagrams.")
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(0, 2**62 - 1),
    default=1,
    show_default=True,
    help="Of sizes, payloads and times.",
)
@click.option(
    "--pid", metavar="PID", type=click.IntRange(1, MAX_PID), help="The server's: tells its cost."
)
@click.option(
    "--backend", type=click.Choice(backends.CHOICES), help="Of the generator.  [default: auto]"
)
@click.option(
    "--strict", is_flag=True, help="Exit status 1 if the figures are the generator's own."
)
@_file("--json", "Save the result; - is standard output, in place of the table.")
@_file("--hdr", "Save an interval a second in the HdrHistogram log format.")
@_file("--plot", "Draw latency by percentile and over time: FILE.png or FILE.svg.")
def load(json: str | None, hdr: str | None, plot: str | None, strict: bool, **options: Any) -> int:
    """Send messages to an echo server; verify and time each reply.

    ADDR is one address, written as for serve; 127.0.0.1:12345 if left out. Without --rate
    it is a closed loop: a reply makes room for the next message. Ctrl-C ends it early, with
    the results so far. Exit status 1: a reply was wrong or missing.
    """
    with extra("measure", "load"):
        from .. import report
        from . import tables
    if plot is not None:
        with extra("plot", "load --plot"):
            from .. import plot as plots
        plots.check(plot)
    raise_descriptor_limit()
    outputs: dict[str, Callable[[Run, str], None]] = {}
    if json is not None and json != STDOUT:
        outputs[json] = lambda run, path: _save(report.save, run, path)
    if hdr is not None:
        outputs[hdr] = lambda run, path: _save(report.save_log, run, path)
    if plot is not None:
        outputs[plot] = lambda run, path: plots.draw([run], path)
    with _writable(outputs):
        run = report.Run.of(_measure(**options))
    if json == STDOUT:
        report.save(run, sys.stdout)
    else:
        tables.show(run)
    sys.stdout.flush()
    return _write(run, outputs) or _judge(run, strict)


def _measure(duration: float | None, messages: int | None, **options: Any) -> Any:
    """Do what was asked for, and show it; the `Result`."""
    from ..load import Load, Plan
    from .display import Display

    if duration is None and messages is None:
        duration = DURATION
    plan = Plan(duration=duration, messages=messages, **options)
    display = Display(plan)
    try:
        run = Load(plan)
        display.began()
        with _stopped_by_signals(run):
            return run.run(lambda interval: display.progress(run, interval))
    finally:
        display.close()


@contextmanager
def _stopped_by_signals(run: Load) -> Iterator[None]:
    """The first signal ends it early, the next one ends us."""
    before = {number: signal.getsignal(number) for number in STOPPING}

    def handle(_number: int, _frame: object) -> None:
        run.stop()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in STOPPING:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


def _judge(run: Run, strict: bool) -> int:
    """The exit status, and a sentence where it is not 0."""
    from .tables import errors

    if not run.result.right:
        complain(f"not every reply was right: {errors(run)}")
        return FAILED
    if strict and run.bound:
        complain(f"generator-bound: {run.bound}")
        return FAILED
    return 0


# -- files


@contextmanager
def _writable(paths: Iterable[str]) -> Iterator[None]:
    """Find out now what cannot be written; leave nothing behind if there is nothing to write."""
    made = []
    try:
        for path in paths:
            new = not os.path.lexists(path)
            try:
                if new or os.path.isfile(path) or os.path.isdir(path):
                    with open(path, "ab"):
                        pass
            except OSError as error:
                raise _cannot_write(path, error) from error
            made += [path] * new
        yield
    except BaseException:
        for path in made:
            with suppress(OSError):
                os.unlink(path)
        raise


def _cannot_write(path: str, error: OSError) -> FastechoError:
    words = os.strerror(error.errno).lower() if error.errno else str(error)
    return FastechoError(f"cannot write {path}: {words} (error {error.errno})")


def _save(save: Callable[[Run, TextIO], None], run: Run, path: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as out:
            save(run, out)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _write(run: Run, outputs: dict[str, Callable[[Run, str], None]]) -> int:
    """All files, whatever becomes of one of them; the exit status."""
    status = 0
    for path, write in outputs.items():
        try:
            write(run, path)
        except FastechoError as error:
            complain(str(error))
            status = UNAVAILABLE
    return status
