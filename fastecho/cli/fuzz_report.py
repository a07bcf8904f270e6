"""What came of `fastecho fuzz`, for people and for programs; within 80 columns."""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from .. import delivery
from ..testing.answers import Answers
from ..testing.exchange import HALF_CLOSED, RESET, Plan
from ..testing.fuzzer import Finding, Report
from ..testing.masks import difference
from ..testing.plans import Kind

WIDTH = 78
#: Bytes of a line of hex, lines of it, and how many of them stand before the first difference.
LINE, LINES, BEFORE = 8, 8, 3
#: Pieces that are shown, and bytes of each.
PIECES, SHOWN = 6, 40

#: What is known of each piece, and what that can and cannot prove.
PROOF = {
    delivery.READ: (
        "Each piece was sent once the server had read the one before: the kernel says so. So each"
        " came out of a recv of its own. What a program behind the server got (a proxy's, say),"
        " that does not prove."
    ),
    delivery.ACKNOWLEDGED: (
        f"Each piece was sent {1000 * delivery.PAUSE:g} ms after the server's kernel had"
        " acknowledged the one before, which is all that can be known of another machine. So each"
        " came most likely out of a recv of its own, but nothing proves it."
    ),
}


def told(plan: Plan) -> str:
    """How it was sent, in words."""
    size = len(plan.data)
    what = f"{len(plan.requests)} requests in one segment" if len(plan.requests) > 1 else ""
    if plan.ending == RESET:
        return f"reset after byte {plan.cuts[-1]:,} of {size:,}"
    if not plan.cuts:
        how = what or f"{size:,} bytes sent whole"
    elif len(plan.cuts) > PIECES:
        how = f"{len(plan.cuts):,} cuts in {size:,} bytes"
    else:
        places = " and ".join(f"{at:,}" for at in plan.cuts)
        how = f"cut after byte{'s' * (len(plan.cuts) > 1)} {places} of {size:,}"
    if plan.cuts and what:
        how = f"{len(plan.requests)} requests {how}"
    return f"{how}, then half-closed" if plan.ending == HALF_CLOSED else how


# -- for people


def text(report: Report, answers: Answers, framing: str | None, repro: str | None) -> str:
    """The report."""
    what = f" ({framing})" if framing else ""
    if not report.tried:
        return f"{report.target}{what}: it was ended before anything was cut"
    found = report.finding
    lines = [*_head(report, what), ""]
    if found is not None:
        lines += [*_sent(found.plan), "", *_side_by_side(found, answers), ""]
    lines += [*_kinds(report.kinds), ""]
    if found is not None:
        lines += [*_certainty(found), ""]
    lines += textwrap.wrap(PROOF[report.how], WIDTH)
    if repro is not None:
        lines += ["", f"to see it again: python {shlex.quote(repro)}"]
    return "\n".join(lines)


def _head(report: Report, what: str) -> Iterator[str]:
    found = report.finding
    if found is not None:
        yield _style(f"{report.target}{what} fails: {told(found.plan)}", fg="red", bold=True)
        yield from textwrap.wrap(_sentence(found.wrong), WIDTH)
        return
    untried = any(each.note for each in report.kinds)
    early = "; it was ended early" if report.stopped else "; not all could be" if untried else ""
    yield _style(
        f"{report.target}{what}: no cut changes the answer",
        fg=None if early else "green",
        bold=True,
    )
    yield f"{report.tried:,} plans were tried in {report.seconds:.1f} s{early}."


def _sent(plan: Plan) -> Iterator[str]:
    pieces = plan.pieces
    for number, piece in enumerate(pieces[:PIECES]):
        more = f" and {len(piece) - SHOWN:,} bytes more" if len(piece) > SHOWN else ""
        yield f"{'' if number else 'sent':<8}{repr(piece[:SHOWN])[1:]}{more}"
    if len(pieces) > PIECES:
        yield f"{'':<8}... and {len(pieces) - PIECES:,} pieces more"
    if plan.ending == HALF_CLOSED:
        yield f"{'':<8}and the sending side was closed"
    elif plan.ending == RESET:
        yield f"{'':<8}and the connection was reset; then another client sent all of it"


def _side_by_side(found: Finding, answers: Answers) -> Iterator[str]:
    """Around the first difference."""
    expected, received = answers.expected(found.plan.whole), found.outcome.received
    at = difference(answers.blur(expected), answers.blur(received))
    begin = max(0, at // LINE - BEFORE) * LINE
    end = min(begin + LINES * LINE, max(len(expected), len(received)))
    yield f"{'':<8}{'expected':<36}received"
    for start in range(begin, max(end, begin + 1), LINE):
        mark = ">" if start <= at < start + LINE else " "
        row = f"{mark} {start:04x}  {_hex(expected, start)}  {_hex(received, start)}".rstrip()
        yield _style(row, bold=True) if mark == ">" else row
    for name, data in (("expected", expected), ("received", received)):
        if len(data) > end:
            yield f"{'':<8}... {len(data) - end:,} bytes more {name}"


def _hex(data: bytes, start: int) -> str:
    piece = data[start : start + LINE]
    shown = "".join(chr(octet) if 0x20 <= octet < 0x7F else "." for octet in piece)
    return f"{piece.hex(' '):<{3 * LINE - 1}}  {shown:<{LINE}}"


def _kinds(kinds: list[Kind]) -> Iterator[str]:
    named = max(len(each.name) for each in kinds)
    counts = [f"{each.tried:,}" for each in kinds]
    wide = max(map(len, counts))
    ofs = ["all" if each.tried >= each.of else f"of {each.of:,}" for each in kinds]
    width = max(map(len, ofs))
    for each, count, of in zip(kinds, counts, ofs, strict=True):
        row = f"  {each.name:<{named}}  {count:>{wide}} {of:<{width}}  "
        words = textwrap.wrap(each.note or each.told, WIDTH - len(row)) or [""]
        for number, line in enumerate(words):
            yield f"{' ' * len(row) if number else row}{line}".rstrip()


def _certainty(found: Finding) -> Iterator[str]:
    if found.fatal:
        words = "It could not be tried again."
    elif found.flaky:
        words = f"It is flaky: it failed {found.failed} of {found.tries} times."
    else:
        words = f"It failed {found.failed} of {found.tries} times."
    if found.first != found.plan:
        words += f" It was found among {found.kind}, with {told(found.first)}, and shrunk."
    if found.right_until:
        words += f" If no message should be so long: --max-frame {found.right_until}."
    if found.after:
        words = f"{_sentence(found.after)} {words}"
    yield from textwrap.wrap(words, WIDTH)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _style(line: str, **style: Any) -> str:
    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR")
    return line if plain else click.style(line, **style)


# -- for programs


def document(report: Report, answers: Answers) -> dict[str, Any]:
    """What `--json` has of it; bytes are hexadecimal."""
    found = report.finding
    return {
        "target": report.target,
        "seconds": report.seconds,
        "stopped": report.stopped,
        "delivery": report.how,
        "kinds": [asdict(each) for each in report.kinds],
        "finding": None if found is None else _finding(found, answers),
    }


def _finding(found: Finding, answers: Answers) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "wrong": found.wrong,
        "after": found.after,
        "fatal": found.fatal,
        "failed": found.failed,
        "tries": found.tries,
        "smallest": _plan(found.plan),
        "first": _plan(found.first),
        "expected": answers.expected(found.plan.whole).hex(),
        "received": found.outcome.received.hex(),
        "end": found.outcome.end,
    }


def _plan(plan: Plan) -> dict[str, Any]:
    return {
        "requests": len(plan.requests),
        "bytes": len(plan.data),
        "ending": plan.ending,
        "cuts": list(plan.cuts),
        "pieces": [piece.hex() for piece in plan.pieces],
    }
