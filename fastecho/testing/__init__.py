"""Helpers for the tests of whatever reads a stream: it may be cut anywhere, and often is.

    check_decoder       a decoder's output must not depend on the cuts (`decoders`)
    ChoppySocket        a socket that delivers by plan: short reads, EAGAIN, resets (`choppy`)
    every_cut, pieces   where a byte string can be cut (`cuts`)
    segmentations, messages, wire, chops
                        Hypothesis strategies of all that (`segments`)

The strategies need Hypothesis, and `ChoppySocket.trio_stream` trio; the rest needs nothing.
The pytest plugin is `pytest_fastecho`, a module of its own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .choppy import ChoppySocket
from .cuts import every_cut, pieces
from .decoders import CutMismatch, Raised, check_decoder

if TYPE_CHECKING:
    from .segments import chops, messages, segmentations, wire

__all__ = [
    "ChoppySocket",
    "CutMismatch",
    "Raised",
    "check_decoder",
    "chops",
    "every_cut",
    "messages",
    "pieces",
    "segmentations",
    "wire",
]

_STRATEGIES = ("chops", "messages", "segmentations", "wire")


def __getattr__(name: str) -> Any:
    if name not in _STRATEGIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        segments = importlib.import_module(".segments", __name__)
    except ModuleNotFoundError as error:
        sentence = f"{__name__}.{name} needs Hypothesis: pip install 'fastecho[testing]'"
        raise ModuleNotFoundError(sentence, name=error.name) from error
    return getattr(segments, name)
