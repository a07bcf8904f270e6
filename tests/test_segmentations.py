"""The strategies of fastecho.testing: what they draw is right, and shrinks to the simplest."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from processes import run

from fastecho import ConfigError, framing
from fastecho.testing import chops, every_cut, messages, pieces, segmentations, wire

SPECS = (
    *("line", "delimiter:0d0a", "delimiter:616261", "delimiter:78", "raw"),
    *("fixed:1", "fixed:5", "any:0a,0d0a", "any:616261,63"),
    *("u8", "u16le", "u24", "u32", "u64", "varint", "netstring"),
    *("length:width=2,offset=3,adjust=2", "length:width=1,adjust=-2,le"),
)


def simplest(strategy: st.SearchStrategy[Any], holds: Callable[[Any], bool]) -> Any:
    """What it shrinks to."""
    return find(
        strategy,
        holds,
        settings=settings(
            max_examples=2_000,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def places(segments: list[bytes]) -> list[int]:
    """Where they were cut."""
    return list(accumulate(map(len, segments)))[:-1]


# -- segmentations


@given(st.binary(max_size=400), st.data())
def test_pieces_join_to_the_data_and_none_is_empty(data: bytes, drawn: st.DataObject) -> None:
    segments = drawn.draw(segmentations(data))
    assert b"".join(segments) == data
    assert all(segments)


@pytest.mark.parametrize("data", [b"", b"a"])
def test_what_cannot_be_cut(data: bytes) -> None:
    assert simplest(segmentations(data), lambda _: True) == ([data] if data else [])


@pytest.mark.parametrize("size", [2, 40, 5_000])
def test_a_failure_that_needs_one_cut_shrinks_to_it(size: int) -> None:
    data = bytes(size)
    for at in {1, size // 2, size - 1}:
        assert places(simplest(segmentations(data), lambda cut: at in places(cut))) == [at]  # noqa: B023
    assert places(simplest(segmentations(data), lambda cut: len(cut) > 1)) == [1]


def test_a_failure_that_needs_small_pieces_keeps_only_these() -> None:
    segments = simplest(segmentations(bytes(100)), lambda cut: [len(it) for it in cut].count(1) > 2)
    assert places(segments) == [1, 2, 3]


def test_nothing_fails_but_the_cuts() -> None:
    assert simplest(segmentations(bytes(50)), lambda _: True) == [bytes(50)]


@pytest.mark.parametrize("size", [2, 3, 60])
def test_byte_by_byte_is_drawn(size: int) -> None:
    assert simplest(segmentations(bytes(size)), lambda cut: len(cut) == size)


# -- every_cut


@given(st.binary(max_size=12), st.integers(0, 4))
def test_every_cut_is_there_once_from_the_left(data: bytes, cuts: int) -> None:
    ways = list(every_cut(data, cuts))
    assert len(ways) == math.comb(max(len(data) - 1, 0), cuts)
    assert all(b"".join(segments) == data for segments in ways)
    if data:
        assert all(len(segments) == cuts + 1 and all(segments) for segments in ways)
        assert sorted(map(places, ways)) == list(map(places, ways))


def test_every_single_cut() -> None:
    assert list(every_cut(b"abc")) == [[b"a", b"bc"], [b"ab", b"c"]]


def test_no_fewer_than_no_cuts() -> None:
    with pytest.raises(ValueError, match="r must be non-negative"):
        every_cut(b"abc", -1)


def test_pieces_between_places() -> None:
    assert pieces(b"abcdef", [2, 2, 5]) == [b"ab", b"cde", b"f"]


# -- messages and wire


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=25)
@given(drawn=st.data())
def test_messages_are_what_the_framing_carries(spec: str, drawn: st.DataObject) -> None:
    message = drawn.draw(messages(spec))
    codec = framing.codec(spec)
    assert codec.feed(codec.encode(message)) == [message]
    assert len(message) <= 300


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != "raw"])
@settings(max_examples=25)
@given(drawn=st.data())
def test_wire_is_its_messages(spec: str, drawn: st.DataObject) -> None:
    some, data = drawn.draw(wire(spec))
    codec = framing.codec(spec)
    assert (codec.feed(data), codec.finish(), codec.error) == (some, [], None)


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        ("varint", [0, 127, 128]),
        ("netstring", [0, 9, 10, 99, 100]),
        ("u8", [0, 255]),
        ("length:width=1,adjust=-2,le", [0, 253]),
        ("length:width=2,offset=3,adjust=2", [2, 300]),
        ("line", [0, 300]),
        ("raw", [1, 300]),
    ],
)
def test_lengths_next_to_where_a_header_grows_are_drawn(spec: str, sizes: list[int]) -> None:
    for size in sizes:
        assert len(simplest(messages(spec), lambda it: len(it) == size)) == size  # noqa: B023


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("line", b"\r"),
        ("delimiter:0d0a", b"\r"),
        ("delimiter:0d0a", b"\n"),
        ("delimiter:616261", b"ab"),
        ("any:0a,0d0a", b"\r"),
        ("any:63,616261", b"ab"),
        ("netstring", b"1:"),
        ("varint", b"\x80"),
    ],
)
def test_what_a_framing_minds_is_drawn(spec: str, part: bytes) -> None:
    assert simplest(messages(spec), lambda message: part in message)


def test_messages_may_be_longer() -> None:
    assert simplest(messages("varint", 20_000), lambda message: len(message) >= 16_384)


def test_what_is_longer_by_nature_is_as_long_as_that() -> None:
    assert simplest(messages("fixed:7", 3), lambda _: True) == b"x" * 7


def test_messages_shrink() -> None:
    assert simplest(wire("line"), lambda drawn: len(drawn[0]) > 1) == ([b"", b""], b"\n\n")
    assert simplest(wire("raw"), lambda drawn: len(drawn[0]) > 1) == ([b"x", b"x"], b"xx")


def test_own_payloads() -> None:
    text = st.text(st.characters(codec="utf-8", exclude_characters="\n")).map(str.encode)
    some, data = simplest(wire("line", text, 1), lambda drawn: not drawn[1].isascii())
    assert data == some[0] + b"\n"


@pytest.mark.parametrize("strategy", [messages, wire])
def test_a_spec_that_makes_no_sense(strategy: Callable[[str], object]) -> None:
    with pytest.raises(ConfigError, match="unknown framing"):
        strategy("lines")


# -- chops


@given(chops([BlockingIOError, TimeoutError], max_size=3, max_steps=5))
def test_plans(plan: list[Any]) -> None:
    assert len(plan) <= 5
    assert all(step in (1, 2, 3, BlockingIOError, TimeoutError) for step in plan)


def test_plans_shrink() -> None:
    errors = [BlockingIOError, InterruptedError]
    assert simplest(chops(errors), lambda plan: len(plan) > 1) == [1, 1]
    assert simplest(chops(errors), lambda plan: InterruptedError in plan) == [InterruptedError]
    assert all(isinstance(step, int) for step in simplest(chops(), lambda plan: len(plan) > 9))


# -- without Hypothesis


def test_only_the_strategies_need_hypothesis() -> None:
    code = """if True:
        import sys
        sys.modules["hypothesis"] = None
        from fastecho.testing import ChoppySocket, check_decoder, every_cut
        assert not {"asyncio", "trio", "pytest"} & sys.modules.keys()
        try:
            from fastecho.testing import wire
        except ImportError as error:
            print(error)
    """
    done = run(sys.executable, "-W", "error", "-c", code)
    assert done.stdout.decode() == (
        "fastecho.testing.wire needs Hypothesis: pip install 'fastecho[testing]'\n"
    ), done.stderr


def test_there_is_nothing_else() -> None:
    import fastecho.testing

    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fastecho.testing.nothing  # noqa: B018
