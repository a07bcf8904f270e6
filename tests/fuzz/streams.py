"""Fuzz target: codecs and echoes of both twins say the same of any stream, cut anywhere.

Results, replies, errors and what is left held must be equal. An input is settings, then calls of
an echo, or of a codec; the rest of it is what they are called with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reference import Framing

from fastecho import backend
from fastecho.errors import FastechoError

from .inputs import Input, exactly

TWINS = backend.load("pure"), backend.load("native")

#: Delimiters that overlap themselves, at and past the longest that are found by a bit mask.
DELIMITERS = (b"\n", b"\r\n", b"aa", b"aba", b"aab", b"abcabcab", b"abcabcabc", b"ab" * 127 + b"a")
LENGTHS: tuple[dict[str, Any], ...] = (
    *({"width": width} for width in (1, 2, 3, 4, 8)),
    *({"width": width, "little": True} for width in (2, 3, 8)),
    {"width": 1, "offset": 3, "adjust": -2},
    {"width": 2, "offset": 1, "adjust": 5},
    {"width": 4, "adjust": -(2**30)},
    {"width": 8, "adjust": 2**30, "little": True},
)
FRAMINGS: tuple[dict[str, Any], ...] = (
    *({"kind": "delimiter", "delimiter": delimiter} for delimiter in DELIMITERS),
    *({"kind": "length", **field} for field in LENGTHS),
    *({"kind": kind} for kind in ("raw", "fixed", "varint", "netstring")),
    {"kind": "any", "delimiter": b"\n", "others": (b"\r\n", b"\0")},
    {"kind": "any", "delimiter": b"aab", "others": (b"ab", b"ca", b"bcc")},
    {"kind": "any", "delimiter": b"abcabcab", "others": (b"\n", b"bb")},
    {"kind": "any", "delimiter": b"\0", "others": tuple(bytes([octet]) for octet in range(1, 20))},
)
#: Around the sizes at which headers get longer and the native twin changes its ways.
LIMITS = (1, 2, 3, 8, 20, 31, 32, 33, 63, 64, 65, 126, 127, 128, 129, 255, 256, 4096, 65_536, 2**30)
TEMPLATES: tuple[tuple[bytes | str, ...], ...] = (
    (b"[", "ctime", b"]"),
    (),
    (b"0123456",),
    (b"-" * 31,),
    (b"-" * 32,),
    (b"-" * 33,),
    (b"-" * 120,),
    ("utc", b" "),
    ("seq", b"/", "len", b"|"),
    ("peer", "epoch_ns", "mono_ns", "iso"),
)
PEERS = (b"", b"127.0.0.1:50123", b"p" * 128)
#: The first and the last, both sides of a second's end, and now.
TIMES = (0, 2**63 - 1, 999_999_999, 10**9, 1_795_347_400_123_456_789)
#: Times 255 bytes it is more than the pure twin looks at in one go.
REPEATS = 300
#: The most bytes that a reply has besides prefix and message.
OVERHEAD = 300


def outcome(call: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
    """What a call gives, or raises."""
    try:
        return ("gives", call(*arguments))
    except (FastechoError, ValueError, BufferError) as error:
        return type(error), str(error)


def state(machine: Any) -> tuple[Any, ...]:
    """All that can be seen of a codec or an echo."""
    error = machine.error
    fault = error and (type(error), error.reason, error.offset, error.detail)
    return machine.messages, machine.offset, machine.pending, fault


class Pair:
    """An echo or a codec, twice; each call is made of both, and must tell them the same."""

    def __init__(self, pure: Any, native: Any) -> None:
        self.both = pure, native
        self.agree()

    def agree(self) -> None:
        pure, native = map(state, self.both)
        assert pure == native

    def call(self, name: str, *arguments: Any) -> Any:
        """What the method gives; None if it raises."""
        pure, native = (outcome(getattr(each, name), *arguments) for each in self.both)
        assert pure == native, name
        self.agree()
        return pure[1] if pure[0] == "gives" else None

    def fill(self, data: memoryview, room: int, now_ns: int) -> tuple[int, int] | None:
        """As `feed_into`, with so much room for each of them."""
        outs = [exactly(room) for _ in self.both]
        said = [
            outcome(each.feed_into, data, out, now_ns)
            for each, out in zip(self.both, outs, strict=True)
        ]
        assert said[0] == said[1], "feed_into"
        self.agree()
        if said[0][0] != "gives":
            return None
        consumed, written = said[0][1]
        assert outs[0][:written] == outs[1][:written], "replies"
        return consumed, written


def feed_into(echo: Pair, data: bytes, room: int, now_ns: int) -> None:
    """Feed all of it; where nothing fits, with room that is enough."""
    while (done := echo.fill(exactly(len(data), data), room, now_ns)) is not None:
        data = data[done[0] :]
        if not data:
            return
        if done == (0, 0):
            pure = echo.both[0]
            enough = pure.pending + len(data) + pure.stamper.longest + OVERHEAD
            assert room < enough, "no progress"
            room = enough


def check(data: bytes) -> None:
    """One input."""
    read = Input(data)
    wanted = Framing(max_frame=read.choice(LIMITS), **read.choice(FRAMINGS))
    parts, peer, mono_offset = read.choice(TEMPLATES), read.choice(PEERS), read.number(2) - 2**15
    made = [outcome(twin_pair, twin, wanted, parts, peer, mono_offset) for twin in TWINS]
    if made[0][0] != "gives":
        assert made[0] == made[1], "settings"
        return
    echo, codec = (Pair(*both) for both in zip(*(each[1] for each in made), strict=True))
    while read:
        call(read, echo, codec)
    echo.call("finish", read.choice(TIMES))
    codec.call("finish")


def twin_pair(
    twin: backend.Twin, wanted: Framing, parts: tuple[bytes | str, ...], peer: bytes, offset: int
) -> tuple[Any, Any]:
    """An echo and a codec of that twin."""
    stamper = twin.Stamper(parts)
    stamper.mono_offset = offset
    return twin.Echo(wanted.codec(twin), stamper, peer), wanted.codec(twin)


def call(read: Input, echo: Pair, codec: Pair) -> None:
    """One call of either."""
    what, now_ns = read.number(), read.choice(TIMES)
    room = read.number(2)
    piece = read.take(read.number())
    if what & 0x80:  # a whole frame, rather than what looks like one by chance
        piece = codec.call("encode", exactly(len(piece), piece)) or piece
    if what & 0x40:
        piece *= 1 + room % (REPEATS if what & 0x38 == 0x38 else 9)
    match what % 8:
        case 0 | 1:
            echo.call("feed", exactly(len(piece), piece), now_ns)
        case 2 | 3 | 4:
            feed_into(echo, piece, room, now_ns)
        case 5 | 6:
            codec.call("feed", exactly(len(piece), piece))
        case 7 if what & 0x10:  # seldom: most calls after it say no more than that it was called
            echo.call("finish", now_ns)
