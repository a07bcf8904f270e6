"""What of a stamp is constant for a second."""

from __future__ import annotations

import itertools

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from reference import LONGEST, render

from fastecho.limits import MAX_PEER, MAX_TIME_NS
from fastecho.timestamps import FRACTIONS, TOKENS, plan

#: What only a message or a receive can tell.
LATER = ("epoch_ms", "epoch_us", "epoch_ns", "mono_ns", "seq", "peer", "len")


def test_every_token_is_known_with_its_longest_rendering() -> None:
    assert LONGEST == TOKENS
    assert TOKENS["peer"] == MAX_PEER
    assert TOKENS["epoch_ns"] == len(str(MAX_TIME_NS))


@pytest.mark.usefixtures("utc")
@given(parts=strategies.templates(), now=strategies.times)
def test_a_plan_and_the_fractions_make_the_rendering(
    parts: tuple[bytes | str, ...], now: int
) -> None:
    digits = f"{now % 10**9:09d}".encode()

    def rendered(part: bytes | str) -> bytes:
        if isinstance(part, bytes):
            return part
        return digits[: FRACTIONS[part]] if part in FRACTIONS else render((part,), now)

    assert b"".join(map(rendered, plan(parts, now // 10**9))) == render(parts, now)


@given(parts=strategies.templates(), second=st.integers(0, MAX_TIME_NS // 10**9))
def test_a_plan_leaves_nothing_that_the_second_settles(
    parts: tuple[bytes | str, ...], second: int
) -> None:
    planned = plan(parts, second)
    assert {part for part in planned if isinstance(part, str)} <= {*FRACTIONS, *LATER}
    for one, next_ in itertools.pairwise(planned):
        assert not (isinstance(one, bytes) and isinstance(next_, bytes))


def test_what_is_constant_becomes_one_literal() -> None:
    planned = plan((b"[", "ctime", b" ", "epoch", b"]"), 1_795_347_400)
    assert len(planned) == 1
    assert isinstance(planned[0], bytes)
    assert planned[0].endswith(b" 1795347400]")


@pytest.mark.usefixtures("utc")
def test_what_is_not_keeps_its_place() -> None:
    assert plan(("utc", "seq", b"|", "iso"), 0) == [
        b"1970-01-01T00:00:00.",
        "fraction_ns",
        b"Z",
        "seq",
        b"|1970-01-01T00:00:00.",
        "fraction_us",
        b"+00:00",
    ]


def test_nothing_is_planned_for_nothing() -> None:
    assert plan((), 5) == []
