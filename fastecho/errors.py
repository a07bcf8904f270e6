"""The error tree: whose fault it was, and one sentence for the person who can act on it.

`ConfigError` is the caller's: a flag, a spec, a template, a setting. `FrameError` is the peer's:
bytes that its framing does not allow. Both twins raise these classes with these texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class FastechoError(Exception):
    """Anything that fastecho itself finds wrong."""


class ConfigError(FastechoError, ValueError):
    """A setting that cannot be used; the text says which, and what is right."""


class FrameError(FastechoError):
    """A peer's bytes that break the framing.

    Args:
        offset: where the frame at fault begins, in bytes from the start of the stream.
        detail: what is wrong with it; depends on the stream alone, never on how it was cut.
    """

    #: The name under which this is counted.
    reason: ClassVar[str] = "frame"

    def __init__(self, offset: int, detail: str) -> None:
        super().__init__(offset, detail)
        self.offset = offset
        self.detail = detail

    def __str__(self) -> str:
        return f"frame at offset {self.offset}: {self.detail}"


class FrameTooLong(FrameError):
    """A message that is, or says it will be, longer than `max_frame`."""

    reason = "too_long"


class FrameCorrupt(FrameError):
    """A header or trailer that the framing does not allow."""

    reason = "corrupt"


class FrameTruncated(FrameError):
    """The stream ended inside a frame."""

    reason = "truncated"


def nearest(word: str, known: Iterable[str], alike: float = 0.6) -> str | None:
    """What was probably meant, if anything is alike enough (0 to 1)."""
    import difflib  # for who has made a mistake alone

    return next(iter(difflib.get_close_matches(word, list(known), 1, alike)), None)
