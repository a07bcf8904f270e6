"""`fastecho ping`: round trips, one message at a time, and how the two clocks differ."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click

from .. import __version__, clocks, machine
from .. import ping as pings
from . import FAILED, complain, options
from .client import visible

#: All times are shown in milliseconds, as ping(8) does.
MS = 1e6


@click.command(
    epilog="Exit status: 0 a reply came, 1 none did, 2 wrong usage, 3 nobody can be reached."
)
@options.target("The server's; a clock in it, such as {utc}, is compared with ours.")
@click.option("--count", metavar="N", type=int, help="Messages.  [default: until Ctrl-C]")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=float,
    default=1.0,
    show_default=True,
    help="From one message to the next, whatever becomes of it.",
)
@options.timeout
@click.option("--size", metavar="BYTES", type=int, help="Of a message.  [default: 64]")
@click.option("--json", "file", metavar="FILE", type=click.Path(), help="Write all results there.")
def ping(address: str, file: str | None, **options: Any) -> int:
    """Time the replies to one message after the other.

    ADDR is one address, written as for serve; 127.0.0.1:12345 if left out. Ctrl-C ends it
    with the results so far.
    """
    plan = pings.Plan(address, **options)
    if file is not None:
        machine.writable(file)
    started = machine.now()
    run = pings.Ping(plan)
    if run.too_short:
        complain(run.too_short)
    shown: list[pings.Reply] = []

    def tell(what: pings.Reply | str) -> None:
        click.echo(what if isinstance(what, str) else line(what))
        if file is not None and not isinstance(what, str):
            shown.append(what)

    click.echo(head(run.result))
    with _stopping(run):
        result = run.run(tell)
    if result.over:
        complain(result.over)
    click.echo("\n".join(["", *conclusion(result)]))
    if file is not None:
        with open(file, "w", encoding="utf-8") as out:
            json.dump(document(result, shown, started), out, indent=1)
            out.write("\n")
    return 0 if result.answered else FAILED


@contextmanager
def _stopping(run: pings.Ping) -> Iterator[None]:
    """The first signal ends the run; nothing is lost by it."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: run.stop()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


# -- for people


def head(result: pings.Result) -> str:
    """What is done, in one line."""
    plan = result.plan
    how = f" ({plan.framing})" if result.target.startswith(("tcp:", "unix:")) else ""
    return f"PING {result.target}{how}: {result.size:,} bytes every {plan.interval:g} s"


def line(reply: pings.Reply) -> str:
    """A reply."""
    words = [
        f"{reply.size:,} bytes: seq={reply.number} time={reply.round_trip / MS:.3f} ms",
        *([f"stamp={visible(reply.stamp).strip()}"] if reply.stamp.strip() else []),
        *([f"({reply.kind})"] if reply.kind else []),
    ]
    return " ".join(words)


def conclusion(result: pings.Result) -> Iterator[str]:
    """All that is said at the end, line by line."""
    yield f"--- {result.target} ping statistics ---"
    yield _counts(result)
    if others := _others(result):
        yield others
    if result.behind > result.plan.interval * pings.SECOND:
        yield f"this machine was busy: messages were sent up to {result.behind / MS:,.0f} ms late"
    times = pings.summary(result.round_trips)
    if times is not None:
        yield from _times(times)
    compared = result.clocks
    if compared is not None:
        yield from _clocks(compared)
    elif result.received and clocks.stamps(result.plan.prefix) is not None:
        yield f"clock          no reply has the time as {result.plan.prefix!r} shows it"


def _counts(result: pings.Result) -> str:
    loss = "" if result.loss is None else f" ({100 * result.loss:.3g}% loss)"
    return (
        f"{result.transmitted:,} transmitted, {result.received:,} received,"
        f" {result.lost:,} lost{loss}, {result.seconds:.3f} s"
    )


def _others(result: pings.Result) -> str:
    """What there should be none of."""
    counted = {
        "late": result.late,
        "duplicate": result.duplicates,
        "garbage": result.garbage,
        "not sent": result.unsent,
        "not waited for": result.pending,
    }
    return ", ".join(f"{number:,} {name}" for name, number in counted.items() if number)


def _times(times: dict[str, float]) -> Iterator[str]:
    names = ("min", "mean", "max", "stddev")
    values = "/".join(f"{times[name] / MS:.3f}" for name in names)
    yield f"round trip     min/avg/max/stddev = {values} ms"
    percentiles = "/".join(f"p{percent}" for percent in pings.PERCENTILES)
    values = "/".join(f"{times[f'p{percent}'] / MS:.3f}" for percent in pings.PERCENTILES)
    yield f"               {percentiles} = {values} ms"
    yield f"jitter         {times['jitter'] / MS:.3f} ms (RFC 3550)"


def _clocks(compared: clocks.Comparison) -> Iterator[str]:
    yield "assuming that the way there takes as long as the way back:"
    ahead = "ahead of" if compared.offset >= 0 else "behind"
    yield (
        f"clock offset   {compared.offset / MS:+.3f} ms: the server is {ahead} us;"
        f" off by {compared.error / MS:.3f} ms at most"
    )
    for name, way in (("there", compared.there), ("back", compared.back)):
        values = "/".join(f"{each / MS:.3f}" for each in way)
        yield f"one way {name:6} min/avg/max = {values} ms"
    if compared.drift is None:
        yield f"clock drift    too short a run to tell ({compared.samples:,} stamps)"
    else:
        ppm, error = compared.drift
        yield f"clock drift    {ppm:+,.1f} ppm, give or take {error:,.1f}"


# -- for programs


def document(result: pings.Result, replies: list[pings.Reply], started: str) -> dict[str, Any]:
    """What `--json` writes; docs/ping.md says what it means."""
    compared = result.clocks
    return {
        "command": "ping",
        "schema": 1,
        "started": started,
        "machine": machine.describe(__version__),
        "options": asdict(result.plan),
        "target": result.target,
        "size": result.size,
        "seconds": result.seconds,
        "transmitted": result.transmitted,
        "received": result.received,
        "late": result.late,
        "lost": result.lost,
        "loss": result.loss,
        "pending": result.pending,
        "duplicates": result.duplicates,
        "garbage": result.garbage,
        "unsent": result.unsent,
        "behind_ns": result.behind,
        "over": result.over,
        "round_trip_ns": pings.summary(result.round_trips),
        "clock": None if compared is None else _compared(compared),
        "replies": [
            {
                "seq": each.number,
                "kind": each.kind or "reply",
                "bytes": each.size,
                "sent_ns": each.sent,
                "round_trip_ns": each.round_trip,
                "stamp": visible(each.stamp),
            }
            for each in replies
        ],
    }


def _compared(compared: clocks.Comparison) -> dict[str, Any]:
    drift = compared.drift
    return {
        "assumes": "symmetric path",
        "samples": compared.samples,
        "offset_ns": compared.offset,
        "offset_error_ns": compared.error,
        "there_ns": compared.there._asdict(),
        "back_ns": compared.back._asdict(),
        "drift_ppm": None if drift is None else drift.ppm,
        "drift_error_ppm": None if drift is None else drift.error_ppm,
    }
