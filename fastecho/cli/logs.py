"""How the command writes its log: sentences for people, or JSON lines for machines."""

from __future__ import annotations

import json
import logging
import sys
import time

FORMATS = ("text", "json")


class JsonLines(logging.Formatter):
    """One object a line: `time` (RFC 3339, UTC), `level`, `event`, `message`, and its fields."""

    def format(self, record: logging.LogRecord) -> str:
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
    """Write the log to standard error, in this form, from this level up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else logging.Formatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
