"""The reference itself, against what others have written down; and what the strategies reach."""

from __future__ import annotations

import io
import struct
import time
from dataclasses import replace
from typing import Any

import pytest
import strategies
from hypothesis import Phase, assume, find, given, settings
from hypothesis import strategies as st
from reference import Framing, judge, render, reply, varint, wire

LINE = Framing("delimiter", 100, b"\n")


@given(st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b"\x0b"])).map(b"".join))
def test_lines_are_those_of_a_binary_file(stream: bytes) -> None:
    verdict = judge(LINE, stream, ended=True)
    assert [frame.wire for frame in verdict.frames] == list(io.BytesIO(stream))


@pytest.mark.parametrize(
    ("value", "octets"), [(0, "00"), (127, "7f"), (128, "8001"), (150, "9601"), (300, "ac02")]
)
def test_varints_are_those_of_the_protobuf_guide(value: int, octets: str) -> None:
    assert varint(value) == bytes.fromhex(octets)


def test_the_netstring_of_its_inventor() -> None:
    framing = Framing("netstring", 100)
    assert wire(framing, b"hello world!") == b"12:hello world!,"
    assert judge(framing, b"12:hello world!,0:,").messages == [b"hello world!", b""]


@pytest.mark.parametrize("little", [False, True])
@pytest.mark.parametrize(("width", "letter"), [(1, "B"), (2, "H"), (4, "I"), (8, "Q")])
def test_integers_are_those_of_struct(width: int, letter: str, little: bool) -> None:
    framing = Framing("length", 300, width=width, little=little)
    frame = struct.pack(("<" if little else ">") + letter, 200) + bytes(200)
    assert wire(framing, bytes(200)) == frame
    assert judge(framing, frame) == ([(frame, bytes(200))], None, len(frame), 0)


def test_a_length_counts_its_own_header_as_in_the_netty_manual() -> None:
    # LengthFieldBasedFrameDecoder: lengthFieldOffset 1, lengthFieldLength 2, lengthAdjustment -3.
    framing = Framing("length", 100, width=2, offset=1, adjust=-3)
    assert wire(framing, b"HELLO, WORLD", b"\xca") == b"\xca\x00\x0fHELLO, WORLD"
    (frame,) = judge(framing, b"\xca\x00\x0fHELLO, WORLD").frames
    assert frame.message == b"HELLO, WORLD"
    assert reply(framing, frame, b"> ") == b"\xca\x00\x11> HELLO, WORLD"


@pytest.mark.usefixtures("utc")
@given(st.integers(0, 2**63 // 10**9 - 1))
def test_times_are_those_of_the_time_module(second: int) -> None:
    moment = time.gmtime(second)
    said = render(("ctime", b"|", "utc", b"|", "epoch"), second * 10**9)
    iso = time.strftime("%Y-%m-%dT%H:%M:%S.000000000Z", moment)
    assert said.decode() == f"{time.asctime(moment)}|{iso}|{second}"


@given(st.data(), strategies.framings([kind for kind in strategies.KINDS if kind != "raw"]))
def test_what_is_written_is_read(data: st.DataObject, framing: Framing) -> None:
    message = data.draw(strategies.payloads(framing))
    if framing.kind == "fixed":
        message = message.ljust(framing.max_frame)[: framing.max_frame]
    assume(framing.adjust <= len(message) <= framing.max_frame)
    frame = wire(framing, message, b"head")
    assume(framing.kind != "delimiter" or frame.find(framing.delimiter) == len(message))
    assume(framing.kind != "any" or judge(framing, frame).messages == [message])
    verdict = judge(framing, frame * 3 + frame[:-1])
    assert verdict == ([(frame, message)] * 3, None, 3 * len(frame), len(frame) - 1)


@st.composite
def cases(draw: st.DrawFn, kind: str) -> tuple[Framing, bytes]:
    framing = draw(strategies.framings([kind]))
    return framing, draw(strategies.streams(framing))


JUDGED = ("delimiter", "any", "length", "varint", "netstring")
REACHED = [
    *((kind, None) for kind in JUDGED),
    *((kind, "too_long") for kind in JUDGED),
    *((kind, "corrupt") for kind in ("length", "varint", "netstring")),
    *((kind, "truncated") for kind in ("fixed", "length", "varint", "netstring")),
]


@pytest.mark.parametrize(("kind", "reason"), REACHED)
def test_streams_reach_every_end_behind_a_few_messages(kind: str, reason: Any) -> None:
    def reached(case: tuple[Framing, bytes]) -> bool:
        verdict = judge(*case, ended=True)
        return verdict.reason == reason and len(verdict.frames) >= 2

    within = settings(max_examples=1_000, phases=[Phase.generate], database=None, derandomize=True)
    find(cases(kind), reached, settings=within)


@pytest.mark.parametrize("more", [-1, 0, 1])
@pytest.mark.parametrize("kind", JUDGED)
def test_streams_reach_the_limit_and_one_byte_to_each_side(kind: str, more: int) -> None:
    def reached(case: tuple[Framing, bytes]) -> bool:
        framing, stream = case
        endless = replace(framing, max_frame=2**30)
        sizes = [len(message) for message in judge(endless, stream).messages]
        return framing.max_frame > 3 and framing.max_frame + more in sizes

    within = settings(max_examples=1_000, phases=[Phase.generate], database=None, derandomize=True)
    find(cases(kind), reached, settings=within)
