"""`fastecho fuzz`: does that server survive every way of cutting its input?"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from .. import __version__, dial, machine
from ..errors import ConfigError, FastechoError
from ..settings import DEFAULT_ADDRESS
from ..testing import fuzzer, reproducer
from ..testing.answers import LONGEST_MESSAGE, LONGEST_REQUEST, Answers, Echoes, Recorded
from ..testing.interruption import Interruption
from ..testing.masks import Masks
from . import FAILED, INTERRUPTED, animated, complain, fuzz_report, options

if TYPE_CHECKING:
    from ..testing.plans import Kind

STANDARD = "-"
#: What an escape in --text stands for, besides \xHH.
ESCAPES = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}
#: Seconds between two looks of the progress bar, and between two lines where there is no terminal.
FRAME, PLAIN = 0.1, 5.0
#: Columns of the bar, at most.
BAR = 30


@click.command(
    epilog="Exit status: 0 nothing was found, 1 something was, or the server does not answer,"
    " 2 wrong usage, or the same request gets two answers, 3 nobody can be reached."
)
@click.argument("address", metavar="[ADDR]", default=DEFAULT_ADDRESS)
@click.option(
    "--framing",
    metavar="SPEC",
    shell_complete=options.specs,
    help="Of an echo server, to which messages are sent.  [default: line]",
)
@click.option(
    "--message",
    metavar="FILE",
    type=click.Path(),
    help="A request to any other server; - is standard input.",
)
@click.option("--text", metavar="TEXT", help=r"A request; \r \n \t \0 \\ \xHH stand for bytes.")
@click.option(
    "--mask",
    "masks",
    metavar="REGEX",
    multiple=True,
    help="What may differ between two right answers; may be given several times.",
)
@click.option(
    "--max-frame",
    metavar="BYTES",
    type=click.IntRange(1, LONGEST_REQUEST),
    help=f"Longest message made for --framing.  [default: {LONGEST_MESSAGE}, or less]",
)
@click.option(
    "--requests",
    metavar="N",
    type=click.IntRange(1, 1000),
    default=fuzzer.REQUESTS,
    show_default=True,
    help="So many are sent together, with the cut across them.",
)
@click.option(
    "--pairs",
    metavar="N",
    type=int,
    default=fuzzer.PAIRS,
    show_default=True,
    help="Pairs of cuts, at most.",
)
@click.option(
    "--examples",
    metavar="N",
    type=int,
    default=fuzzer.EXAMPLES,
    show_default=True,
    help="Random plans by Hypothesis.",
)
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(0, 2**62 - 1),
    default=1,
    show_default=True,
    help="Of pairs and random plans.",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=float,
    default=fuzzer.TIMEOUT,
    show_default=True,
    help="For a connection, an answer, a piece to be read.",
)
@click.option(
    "--duration",
    metavar="SECONDS",
    type=float,
    default=fuzzer.DURATION,
    show_default=True,
    help="Of the search; what it leaves untried is told.",
)
@click.option(
    "--repro", metavar="FILE", type=click.Path(), help="Write a program that fails the same way."
)
@click.option(
    "--json",
    "file",
    metavar="FILE",
    type=click.Path(),
    help="Write the results; - is standard output, in place of the report.",
)
@click.option("--udp", is_flag=True, hidden=True)
def fuzz(
    address: str,
    framing: str | None,
    message: str | None,
    text: str | None,
    masks: tuple[str, ...],
    max_frame: int | None,
    requests: int,
    repro: str | None,
    file: str | None,
    udp: bool,
    **searched: Any,
) -> int:
    """Find the way of cutting a request that a server does not survive.

    ADDR is one address, written as for serve; 127.0.0.1:12345 if left out. The request is
    sent whole, to see what is right; then cut at every place, at pairs of places, byte by byte,
    together with others, half-closed, reset, and at random. What fails is shrunk to the fewest
    cuts.
    """
    target = dial.parse(address, udp)
    if not target.is_stream:
        raise ConfigError(f"{target.name} takes datagrams, which nothing cuts: fuzz is for streams")
    told = fuzzer.Options(**searched)
    hidden = Masks([os.fsencode(each) for each in masks])
    if framing is not None and (message, text) != (None, None):
        raise ConfigError("--framing makes the messages: leave out --message and --text")
    if message is not None and text is not None:
        raise ConfigError("--message and --text are two requests: leave out one")
    answers: Answers
    if message is None and text is None:
        framing = framing or "line"
        answers = Echoes(framing, max_frame or LONGEST_MESSAGE, requests, hidden)
    else:
        request = _bytes(text) if text is not None else _content(message or "")
        answers = Recorded(request, requests, hidden)
    interruption = Interruption()
    with _stopping(interruption), _kept(repro, None if file == STANDARD else file):
        search = fuzzer.Fuzzer(target, answers, told, interruption)
        return _run(search, target, framing, told, repro, file)


def _run(
    search: fuzzer.Fuzzer,
    target: dial.Target,
    framing: str | None,
    told: fuzzer.Options,
    repro: str | None,
    file: str | None,
) -> int:
    started = machine.now()
    # Hypothesis would leave a folder behind; where it cannot, it goes on without.
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.devnull)
    progress = _Progress()
    try:
        report = search.run(progress)
    except fuzzer.NoAnswer as error:
        progress.clear()
        complain(str(error))
        return FAILED
    finally:
        progress.clear()
    found = report.finding
    if found is not None and repro is not None:
        _write(repro, _program(search.answers, found, target, told.timeout, repro))
    document = {
        "command": "fuzz",
        "schema": 1,
        "started": started,
        "machine": machine.describe(__version__),
        "options": vars(told),
        "framing": framing,
        "masks": [os.fsdecode(each) for each in search.answers.masks.expressions],
        **fuzz_report.document(report, search.answers),
    }
    if file is not None and file != STANDARD:
        _write(file, json.dumps(document, indent=1) + "\n")
    if file == STANDARD:
        click.echo(json.dumps(document, indent=1))
    else:
        click.echo(fuzz_report.text(report, search.answers, framing, repro if found else None))
    if report.stopped and found is None:
        return INTERRUPTED
    if not report.tried:
        complain(
            f"the time was over before anything was cut: more than --duration {told.duration:g}"
        )
    return 0 if found is None and report.tried else FAILED


def _program(
    answers: Answers, found: fuzzer.Finding, target: dial.Target, timeout: float, file: str
) -> str:
    listen = target.listen
    return reproducer.program(
        found.plan,
        answers.pattern(found.plan.whole),
        f"{target.name}: {fuzz_report.told(found.plan)}, and {found.wrong}.",
        target.name,
        listen.path or (listen.host or "127.0.0.1", listen.port),
        timeout,
        file,
    )


# -- what is asked for


def _bytes(text: str) -> bytes:
    """The text's escapes, understood."""

    def meant(found: re.Match[str]) -> str:
        name = found[1]
        if name in ESCAPES:
            return os.fsdecode(ESCAPES[name])
        if len(name) == 3:
            return os.fsdecode(bytes.fromhex(name[1:]))
        raise ConfigError(rf"\{name} in --text stands for nothing: \r \n \t \0 \\ \xHH do")

    return os.fsencode(re.sub(r"\\(x[0-9a-fA-F]{2}|.?)", meant, text, flags=re.DOTALL))


def _content(path: str) -> bytes:
    """The file's bytes, or as many as show that they are too many."""
    if path == STANDARD:
        if sys.stdin is None:
            raise FastechoError("standard input is closed")
        return sys.stdin.buffer.read(LONGEST_REQUEST + 1)
    try:
        with open(path, "rb") as source:
            return source.read(LONGEST_REQUEST + 1)
    except OSError as error:
        words = os.strerror(error.errno or 0).lower()
        raise FastechoError(f"cannot read {path}: {words}") from error


@contextmanager
def _kept(*paths: str | None) -> Iterator[None]:
    """See now that these can be written; leave none behind in which nothing was written."""
    given = [path for path in paths if path is not None]
    new = [path for path in given if not os.path.lexists(path)]
    try:
        for path in given:
            machine.writable(path)
        yield
    finally:
        for path in new:
            if os.path.exists(path) and os.path.getsize(path) == 0:
                os.unlink(path)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as out:
        out.write(text)


# -- while it lasts


@contextmanager
def _stopping(interruption: Interruption) -> Iterator[None]:
    """The first Ctrl-C ends the search, and nothing is lost by it; the next one ends us."""
    before = signal.getsignal(signal.SIGINT)

    def handle(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        interruption.ask()

    if before is signal.SIG_IGN:  # as a shell's background job has it
        yield
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Progress:
    """A bar on a terminal; elsewhere a line every few seconds. Nothing of a short run."""

    def __init__(self) -> None:
        self._animated = animated()
        self._next = time.monotonic() + (FRAME if self._animated else PLAIN)
        self._shown = False

    def __call__(self, kind: Kind) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (FRAME if self._animated else PLAIN)
        count = f"{kind.tried:,} of {kind.total:,}"
        if self._animated:
            shown = _bar(kind, count, os.get_terminal_size(sys.stderr.fileno()).columns or 80)
            click.echo(f"\r\x1b[2K{shown}", nl=False, err=True)
            self._shown = True
        else:
            click.echo(f"{kind.name}: {count}", err=True)

    def clear(self) -> None:
        """Leave nothing of it."""
        if self._shown:
            click.echo("\r\x1b[2K", nl=False, err=True)
            self._shown = False


def _bar(kind: Kind, count: str, columns: int) -> str:
    """In one line: what wraps could not be taken back."""
    name = f"{kind.name:<18} "
    width = max(0, min(BAR, columns - len(name) - len(count) - 2))
    done = width * kind.tried // max(kind.total, 1)
    return f"{name}{'#' * done}{'-' * (width - done)} {count}"[: columns - 1]
