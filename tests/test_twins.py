"""native == pure: replies, messages, state and errors, over all that can be fed to either.

What both should say is judged elsewhere, by the reference; here only whether they differ.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import reference
import strategies
from hypothesis import given
from hypothesis import strategies as st
from reference import Framing

from fastecho.errors import FastechoError

Twins = tuple[Any, Any]

sparse = memoryview(bytearray(8))[::2]
WRONG_DATA = ("text", None, 3, sparse, [1])
WRONG_TIMES = (-1, 2**63, 2**64, -(2**64), "0", None, 0.5)
WRONG_OUTS = (b"readonly", sparse, "text", None, memoryview(bytearray(9)).toreadonly())


def one_of(values: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    """As `sampled_from`, for values that have no hash as well."""
    return st.integers(0, len(values) - 1).map(values.__getitem__)


def outcome(call: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
    """What a call gives, or raises; texts only where they are the project's own."""
    try:
        return ("gives", call(*arguments))
    except (FastechoError, ValueError) as error:
        return type(error), str(error)
    except (TypeError, BufferError) as error:
        return (type(error),)


def state(machine: Any) -> tuple[Any, ...]:
    """All that can be seen of a codec or an echo."""
    fault = machine.error
    said = fault and (type(fault), fault.reason, fault.offset, fault.detail, str(fault), fault.args)
    return machine.messages, machine.offset, machine.pending, said


@st.composite
def codec_calls(draw: st.DrawFn, wanted: Framing) -> list[tuple[str, tuple[Any, ...]]]:
    """A stream fed in pieces, with encodings, wrong data and an end somewhere."""
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("feed", (piece,)) for piece in draw(strategies.cuts(draw(strategies.streams(wanted))))
    ]
    extra = st.one_of(
        st.tuples(st.just("feed"), st.tuples(one_of((*WRONG_DATA, b"")))),
        st.tuples(st.just("encode"), st.tuples(strategies.payloads(wanted))),
        st.tuples(st.just("encode"), st.tuples(one_of(WRONG_DATA))),
        st.just(("finish", ())),
    )
    for call in draw(st.lists(extra, max_size=3)):
        calls.insert(draw(st.integers(0, len(calls))), call)
    return [*calls, ("finish", ())]


@given(st.data(), strategies.framings())
def test_codecs_are_twins(twins: Twins, data: st.DataObject, wanted: Framing) -> None:
    pure, native = (wanted.codec(twin) for twin in twins)
    for name, arguments in data.draw(codec_calls(wanted)):
        said = outcome(getattr(pure, name), *arguments)
        assert said == outcome(getattr(native, name), *arguments)
        assert state(pure) == state(native)
    fresh = [codec.fresh() for codec in (pure, native)]
    assert state(fresh[0]) == state(fresh[1]) == (0, 0, 0, None)
    assert fresh[0].max_frame == fresh[1].max_frame == wanted.max_frame


@st.composite
def echo_calls(draw: st.DrawFn, wanted: Framing) -> list[tuple[str, tuple[Any, ...]]]:
    """A stream fed in pieces, both ways, at any time and into any room; rarely a wrong one."""
    stream = draw(strategies.streams(wanted))
    rooms = st.one_of(st.integers(0, 60), st.integers(0, 3000))
    calls: list[tuple[str, tuple[Any, ...]]] = []
    for piece in draw(strategies.cuts(stream)):
        now = draw(strategies.times)
        if draw(st.booleans()):
            calls.append(("feed", (piece, now)))
        else:
            calls.append(("feed_into", (piece, draw(rooms), now)))
    wrong = st.one_of(
        st.tuples(
            st.just("feed"),
            st.tuples(
                st.one_of(st.just(b"x\n"), one_of(WRONG_DATA)),
                st.one_of(st.just(0), one_of(WRONG_TIMES)),
            ),
        ),
        st.tuples(
            st.just("feed_into"),
            st.tuples(
                st.one_of(st.just(b"x\n"), one_of(WRONG_DATA)),
                st.one_of(st.just(9), one_of(WRONG_OUTS)),
                st.one_of(st.just(0), one_of(WRONG_TIMES)),
            ),
        ),
        st.tuples(st.just("finish"), st.tuples(one_of(WRONG_TIMES))),
        st.just(("finish", (1,))),
    )
    for call in draw(st.lists(wrong, max_size=2)):
        calls.insert(draw(st.integers(0, len(calls))), call)
    return [*calls, ("finish", (draw(strategies.times),))]


def perform(echo: Any, name: str, arguments: tuple[Any, ...]) -> list[Any]:
    """One call; what `feed_into` leaves over is fed again, so that the stream goes on."""
    if name != "feed_into" or not isinstance(arguments[1], int):
        return [outcome(getattr(echo, name), *arguments)]
    rest, room, now = arguments
    if not isinstance(rest, bytes):
        return [outcome(echo.feed_into, rest, bytearray(room), now)]
    steps: list[Any] = []
    part = len(rest)
    while True:
        out = bytearray(room)
        said = outcome(echo.feed_into, rest[:part], out, now)
        written = out[: said[1][1]] if said[0] == "gives" else out
        steps += [said, written, state(echo)]
        if said[0] != "gives" or said[1][0] == len(rest):
            return steps
        if said[1] == (0, 0):
            room = 4000
        rest = rest[said[1][0] :]
        part = len(rest) // 2 or 1


@given(st.data(), strategies.templates(), strategies.peers)
def test_echoes_are_twins(
    twins: Twins, data: st.DataObject, parts: tuple[bytes | str, ...], peer: bytes
) -> None:
    wanted = data.draw(strategies.framings(reserve=strategies.longest(parts)))
    mono_offset = data.draw(st.sampled_from([0, 1, -5, 10**18, -(10**18), 2**63 - 1]))
    echoes = []
    for twin in twins:
        stamper = twin.Stamper(parts)
        stamper.mono_offset = mono_offset
        echoes.append(twin.Echo(wanted.codec(twin), stamper, b"?").fresh(peer))
    pure, native = echoes
    for name, arguments in data.draw(echo_calls(wanted)):
        assert perform(pure, name, arguments) == perform(native, name, arguments)
        assert state(pure) == state(native)


@given(
    seed=st.integers(0, 2**32),
    template=st.sampled_from([(), (b"[", "ctime", b"]"), ("utc", b" "), ("seq", b"/", "len")]),
    kind=st.sampled_from(
        ["line", "crlf", "any", "aab", "aba", "u16", "varint", "netstring", "fixed"]
    ),
)
def test_echoes_are_twins_over_long_streams(
    twins: Twins, seed: int, template: tuple[bytes | str, ...], kind: str
) -> None:
    chance = random.Random(seed)
    limit = chance.choice([40, 64, 200, 65_000])
    wanted = {
        "line": Framing("delimiter", limit, b"\n"),
        "crlf": Framing("delimiter", limit, b"\r\n"),
        "any": Framing("any", limit, b"\n", others=(b"\r\n", b"ab,", b"0")),
        "aab": Framing("delimiter", limit, b"aab"),
        "aba": Framing("delimiter", limit, b"aba"),
        "u16": Framing("length", limit, width=2),
    }.get(kind, Framing(kind, limit))
    letters = wanted.delimiter * 2 + b"\r\nab:,0123456789"
    stream = b"".join(
        reference.wire(wanted, bytes(chance.choices(letters, k=size)))
        for size in chance.choices([0, 1, 7, 8, 31, 32, 33, 40, 63, 64], k=400)
    )
    places = sorted(chance.choices(range(len(stream)), k=chance.choice([0, 3, 200])))
    rooms = [chance.randrange(100, 9000) for _ in range(7)]
    echoes = [twin.Echo(wanted.codec(twin), twin.Stamper(template)) for twin in twins]
    with patch("fastecho._pure.framing.PIECE", chance.choice([9, 40, 65_536])):
        for count, piece in enumerate(strategies.pieces(stream, places)):
            call = ("feed_into", (piece, rooms[count % 7], count))
            assert perform(echoes[0], *call) == perform(echoes[1], *call)


@given(
    parts=strategies.templates(),
    calls=st.lists(
        st.tuples(
            strategies.times, st.integers(0, 2**64 - 1), st.integers(0, 2**30), strategies.peers
        ),
        max_size=4,
    ),
    mono_offset=st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-5, 5)),
)
def test_stampers_are_twins(
    twins: Twins,
    parts: tuple[bytes | str, ...],
    calls: list[tuple[int, int, int, bytes]],
    mono_offset: int,
) -> None:
    pure, native = (twin.Stamper(parts) for twin in twins)
    pure.mono_offset = native.mono_offset = mono_offset
    for name in ("parts", "longest", "fine", "shows_peer", "shows_mono", "mono_offset"):
        assert getattr(pure, name) == getattr(native, name), name
    for arguments in calls:
        assert pure.render(*arguments) == native.render(*arguments)


numbers = st.sampled_from([-(2**31), -1, 0, 1, 2, 8, 9, 255, 256, 2**30, 2**30 + 1, 2**70, 1.5])


@given(
    name=st.sampled_from(["FixedCodec", "VarintCodec", "NetstringCodec", "LengthCodec"]),
    arguments=st.lists(st.one_of(numbers, st.none(), st.just("5"), st.booleans()), max_size=5),
)
def test_codecs_refuse_the_same_settings(twins: Twins, name: str, arguments: list[Any]) -> None:
    def made(twin: Any) -> Any:
        return state(getattr(twin, name)(*arguments))

    assert outcome(made, twins[0]) == outcome(made, twins[1])


@given(
    delimiter=st.one_of(
        st.binary(max_size=3), st.sampled_from([bytes(255), bytes(256), bytes(999)])
    ),
    limit=numbers,
)
def test_delimiter_codecs_refuse_the_same_settings(
    twins: Twins, delimiter: bytes, limit: Any
) -> None:
    def made(twin: Any) -> Any:
        return state(twin.DelimiterCodec(delimiter, limit))

    assert outcome(made, twins[0]) == outcome(made, twins[1])


@given(
    delimiters=st.lists(
        st.one_of(
            st.lists(st.sampled_from(b"ab"), max_size=4).map(bytes), st.sampled_from([b"b" * 250])
        ),
        max_size=4,
    ),
    limit=numbers,
)
def test_codecs_of_any_delimiter_refuse_the_same_settings(
    twins: Twins, delimiters: list[bytes], limit: Any
) -> None:
    def made(twin: Any) -> Any:
        codec = twin.AnyDelimiterCodec(delimiters, limit)
        return state(codec), codec.delimiters

    assert outcome(made, twins[0]) == outcome(made, twins[1])


@given(
    parts=st.lists(
        st.one_of(
            strategies.literals, strategies.tokens, st.text(max_size=3), st.just(b"x" * 65_530)
        ),
        max_size=4,
    )
)
def test_stampers_refuse_the_same_templates(twins: Twins, parts: list[bytes | str]) -> None:
    def made(twin: Any) -> Any:
        return twin.Stamper(parts).longest

    assert outcome(made, twins[0]) == outcome(made, twins[1])


@given(
    wanted=strategies.framings(),
    parts=strategies.templates(),
    peer=st.binary(max_size=3).map(lambda peer: peer * 64),
)
def test_echoes_refuse_the_same_settings(
    twins: Twins, wanted: Framing, parts: tuple[bytes | str, ...], peer: bytes
) -> None:
    def made(twin: Any) -> Any:
        return state(twin.Echo(wanted.codec(twin), twin.Stamper(parts), peer))

    assert outcome(made, twins[0]) == outcome(made, twins[1])


@pytest.mark.parametrize("now", [0, *WRONG_TIMES])
def test_echoes_refuse_the_same_arguments(twins: Twins, now: Any) -> None:
    pure, native = (twin.Echo(twin.VarintCodec(9), twin.Stamper(())) for twin in twins)
    for data in (b"\0", *WRONG_DATA):
        assert outcome(pure.feed, data, now) == outcome(native.feed, data, now)
        for out in (bytearray(9), *WRONG_OUTS):
            said = outcome(pure.feed_into, data, out, now)
            assert said == outcome(native.feed_into, data, out, now)
    assert state(pure) == state(native)
    assert outcome(pure.finish, now) == outcome(native.finish, now)


def test_stampers_refuse_the_same_arguments(twins: Twins) -> None:
    pure, native = (twin.Stamper((b"<", "utc", "peer")) for twin in twins)
    for now in (0, *WRONG_TIMES):
        assert outcome(pure.render, now) == outcome(native.render, now)
    for peer in (b"p" * 128, b"p" * 129, "text", None):
        assert outcome(pure.render, 0, 1, 2, peer) == outcome(native.render, 0, 1, 2, peer)
