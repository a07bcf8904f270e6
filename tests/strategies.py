"""Hypothesis strategies: framings, streams that are nearly right, ways of cutting them, templates.

Random bytes alone seldom make a frame, so streams are frames with some damage, near the limits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import reference
from hypothesis import strategies as st
from reference import LONGEST, Framing

#: Delimiters that overlap themselves, share a start with a CR, or hold any byte at all.
DELIMITERS = (b"\n", b"\r\n", b"aa", b"aba", b"ab", b"aab", b"\0", b"\xff\xfe", b"abcabcab")
KINDS = ("delimiter", "any", "raw", "fixed", "length", "varint", "netstring")
#: The first, the last, around the seconds' ends, and now.
TIMES = (0, 1, 999_999_999, 10**9, 1_795_347_400_123_456_789, 2**63 - 1)

small_limits = st.integers(1, 12)
limits = st.one_of(small_limits, st.sampled_from([126, 127, 128, 255, 256, 65_536, 2**30]))
times = st.one_of(st.sampled_from(TIMES), st.integers(0, 2**63 - 1))
peers = st.one_of(
    st.sampled_from([b"", b"127.0.0.1:50123", b"[::1]:50123", b"p" * 128]), st.binary(max_size=128)
)


@st.composite
def delimiters(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        return draw(st.sampled_from(DELIMITERS))
    letters = st.lists(st.sampled_from(b"aabc"), min_size=1, max_size=7).map(bytes)
    return draw(st.one_of(letters, st.binary(min_size=1, max_size=4)))


@st.composite
def delimiter_sets(draw: st.DrawFn) -> list[bytes]:
    """Delimiters none of which holds another but at its end; or many, of a byte each."""
    if draw(st.integers(0, 9)) == 0:
        many = st.integers(0, 255).map(lambda octet: bytes([octet]))
        return draw(st.lists(many, min_size=1, max_size=40, unique=True))
    known = [[b"\n", b"\r\n"], [b"\r\n", b"\n", b"\0"], [b";", b"]", b"^", b"-", b"\\"]]
    some = st.lists(delimiters(), min_size=1, max_size=5, unique=True)
    drawn = draw(st.one_of(st.sampled_from(known), some))
    return [one for one in drawn if not any(other in one[:-1] for other in drawn)]


@st.composite
def lengths(draw: st.DrawFn, reserve: int = 0) -> Framing:
    """A length field that can announce its limit and `reserve` bytes more."""
    least = next(width for width in range(1, 9) if 1 << 8 * width > reserve + 1)
    width = draw(st.integers(least, 8))
    largest = (1 << 8 * width) - 1
    lowest = max(-(2**30), reserve + 1 - largest)
    adjust = draw(
        st.one_of(
            st.just(0),
            st.integers(max(-9, lowest), -1) if lowest < 0 else st.just(0),
            st.integers(max(-9, lowest), 9),
            st.sampled_from([lowest, min(largest, 1000), 2**30]),
        )
    )
    low, high = max(adjust, 1), min(2**30, largest + adjust - reserve)
    near = [low, high, *(max(low, min(high, low + more)) for more in range(12))]
    return Framing(
        "length",
        draw(st.one_of(st.sampled_from(near), st.integers(low, high))),
        width=width,
        offset=draw(st.one_of(st.just(0), st.integers(0, 5))),
        adjust=adjust,
        little=draw(st.booleans()),
    )


@st.composite
def framings(draw: st.DrawFn, kinds: Sequence[str] = KINDS, reserve: int = 0) -> Framing:
    """Any framing whose replies can have a prefix of `reserve` bytes."""
    match draw(st.sampled_from(kinds)):
        case "delimiter":
            return Framing("delimiter", draw(limits), delimiter=draw(delimiters()))
        case "any":
            first, *others = draw(delimiter_sets())
            return Framing("any", draw(limits), delimiter=first, others=tuple(others))
        case "raw":
            return Framing("raw")
        case "length":
            return draw(lengths(reserve))
        case kind:
            return Framing(kind, draw(small_limits if kind == "fixed" else limits))


@st.composite
def payloads(draw: st.DrawFn, framing: Framing) -> bytes:
    """A message near the limit or short, of any bytes or of those that the framing minds."""
    limit = framing.max_frame
    sizes = st.integers(0, min(limit + 2, 20))
    if limit <= 300:
        sizes = st.one_of(sizes, st.integers(max(0, limit - 2), limit + 2))
    if 0 < framing.adjust <= 1000:
        sizes = st.integers(framing.adjust, framing.adjust + 5)
    size = draw(sizes)
    odd = b"".join(framing.ends[:9]) * 3 + b"\r\n0:,\x80x"
    odd_ones = st.lists(st.sampled_from(odd), min_size=1, max_size=6).map(bytes)
    motif = st.one_of(odd_ones, st.binary(min_size=1))
    if framing.delimiter:  # nearly a delimiter, over and over
        starts = [end[:size] for end in framing.ends for size in range(1, len(end))]
        starts += [*framing.others, b"x"]
        nearly = st.lists(st.sampled_from(starts), min_size=1, max_size=4).map(b"".join)
        motif = st.one_of(nearly, motif)
    return (draw(motif) * size)[:size]


@st.composite
def _announcing(draw: st.DrawFn, framing: Framing) -> bytes:
    """A header that says nearly what it may, or anything, with or without a body."""
    limit = framing.max_frame
    body = draw(st.binary(max_size=8))
    near = st.sampled_from([0, 1, limit - 1, limit, limit + 1, 2**32, 2**64 - 1])
    match framing.kind:
        case "varint":
            size = draw(st.one_of(near, st.sampled_from([2**64, 2**70 - 1, 2**70])))
            overlong = draw(st.sampled_from([0, 0, 1, 6, 9]))
            *groups, last = reference.varint(size)
            field = bytes([*groups, last | 0x80]) + b"\x80" * (overlong - 1) + b"\0"
            return (field if overlong else bytes([*groups, last])) + body
        case "netstring":
            size = draw(st.one_of(near, st.integers(0, 20)))
            sign = draw(st.sampled_from([b"", b"", b"0", b"+", b" ", b"-", b":"]))
            end = draw(st.sampled_from([b":", b":", b"", b";", b" :"]))
            return sign + str(size).encode() + end + body + draw(st.sampled_from([b",", b""]))
        case "length":
            size = draw(st.one_of(near, st.integers(-9, 20)))
            if 0 <= size - framing.adjust < 1 << 8 * framing.width:
                return bytes(framing.offset) + reference.integer(framing, size) + body
    return draw(st.binary(max_size=framing.offset + framing.width + 2))


@st.composite
def _piece(draw: st.DrawFn, framing: Framing) -> bytes:
    kind = draw(st.sampled_from(["frame"] * 5 + ["damaged", "announcing", "noise"]))
    if kind == "noise":
        return draw(st.binary(max_size=6))
    if kind == "announcing":
        return draw(_announcing(framing))
    message = draw(payloads(framing))
    if not 0 <= len(message) - framing.adjust < 1 << 8 * (framing.width or 8):
        return draw(st.binary(max_size=12))
    frame = reference.wire(framing, message, draw(st.binary(max_size=framing.offset)))
    if kind == "frame" or not frame:
        return frame
    place = draw(st.integers(0, len(frame) - 1))
    return draw(
        st.sampled_from(
            [
                frame[:place],
                frame[:place] + frame[place + 1 :],
                frame[:place] + frame[place : place + 1] * 2 + frame[place + 1 :],
                frame[:place] + bytes([frame[place] ^ 1]) + frame[place + 1 :],
                frame[:place] + bytes([frame[place] ^ 0x80]) + frame[place + 1 :],
            ]
        )
    )


@st.composite
def streams(draw: st.DrawFn, framing: Framing, max_pieces: int = 8) -> bytes:
    """A few frames, most of them whole; the last one seldom."""
    stream = b"".join(draw(st.lists(_piece(framing), max_size=max_pieces)))
    missing = draw(st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 20)))
    return stream[: len(stream) - missing] if missing < len(stream) else stream


@st.composite
def cuts(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    """The stream as so many `recv`s: whole, byte by byte, or cut anywhere, also into nothing."""
    places = st.lists(st.integers(0, len(stream)), max_size=8).map(sorted)
    at = draw(st.one_of(st.just([]), st.just(list(range(1, len(stream)))), places))
    return pieces(stream, at)


def pieces(stream: bytes, at: Sequence[int]) -> list[bytes]:
    """The stream cut at these places."""
    return [stream[low:high] for low, high in itertools.pairwise([0, *at, len(stream)])]


literals = st.one_of(st.binary(max_size=4), st.sampled_from([b"[", b"]", b" ", b"", b"%d", b"\n"]))
tokens = st.one_of(st.sampled_from(sorted(LONGEST)), st.sampled_from(["seq", "len", "utc"]))


@st.composite
def templates(draw: st.DrawFn, long: bool = True) -> tuple[bytes | str, ...]:
    """A stamper's parts. A long literal takes lengths across a digit, or a group of bits."""
    parts = draw(st.lists(st.one_of(literals, tokens), max_size=5))
    if long:
        parts.append(b"-" * draw(st.sampled_from([0, 0, 0, 64, 100, 120, 127, 300])))
    return tuple(parts)


def longest(parts: tuple[bytes | str, ...]) -> int:
    """The most bytes that a template can render."""
    return sum(LONGEST[part] if isinstance(part, str) else len(part) for part in parts)
