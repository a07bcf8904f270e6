"""How the command writes its log: sentences for people, or JSON lines for machines."""

from __future__ import annotations

import logging
import os
import sys
import time

import click

COLOURS = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


class Coloured(logging.Formatter):
    """The sentence, in the colour of its level."""

    def format(self, record: logging.LogRecord) -> str:
        colour = COLOURS.get(record.levelno)
        plain = super().format(record)
        return click.style(plain, fg=colour) if colour else plain


class JsonLines(logging.Formatter):
    """One object a line: `time` (RFC 3339, UTC), `level`, `event`, `message`, and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        import json

        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        return json.dumps(line, default=str)


def set_up(form: str, level: int) -> None:
    """Write the log to standard error, in this form, from this level up.

    Sentences are coloured on a terminal, unless NO_COLOR is set (https://no-color.org).
    """
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    formatter: logging.Formatter
    if form == "json":
        formatter = JsonLines()
    else:
        formatter = Coloured("%(message)s") if coloured else logging.Formatter("%(message)s")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler])
