"""Log lines: a sentence for people, a stable event name and fields for machines."""

from __future__ import annotations

import logging

log = logging.getLogger("fastecho")


def say(level: int, event: str, sentence: str, **fields: object) -> None:
    """Log a sentence; `record.event` and `record.fields` carry the rest."""
    log.log(level, "%s", sentence, extra={"event": event, "fields": fields})
