"""The error tree says whose fault it was, in one sentence."""

from __future__ import annotations

import copy
import pickle

import pytest

from fastecho.errors import (
    ConfigError,
    FastechoError,
    FrameCorrupt,
    FrameError,
    FrameTooLong,
    FrameTruncated,
)

REASONS = {FrameTooLong: "too_long", FrameCorrupt: "corrupt", FrameTruncated: "truncated"}


@pytest.mark.parametrize(("kind", "reason"), REASONS.items())
def test_a_frame_error_says_why_and_where(kind: type[FrameError], reason: str) -> None:
    fault = kind(7, "what is wrong")
    assert (fault.reason, fault.offset, fault.detail) == (reason, 7, "what is wrong")
    assert str(fault) == "frame at offset 7: what is wrong"


@pytest.mark.parametrize("kind", REASONS)
def test_a_frame_error_can_be_copied_and_sent(kind: type[FrameError]) -> None:
    fault = kind(7, "what is wrong")
    for other in (copy.copy(fault), pickle.loads(pickle.dumps(fault))):
        assert type(other) is kind
        assert (other.offset, other.detail, str(other)) == (7, "what is wrong", str(fault))


def test_a_caller_may_catch_the_half_that_is_its_own() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ConfigError, FastechoError)
    assert issubclass(FrameError, FastechoError)
    assert not issubclass(FrameError, ValueError)
    assert not issubclass(ConfigError, FrameError)
