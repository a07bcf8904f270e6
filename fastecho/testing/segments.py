"""Hypothesis strategies: messages, their bytes on the wire, ways of cutting these, chopped sockets.

What they draw shrinks to what is easiest to understand: the fewest cuts, and those further left;
the fewest and shortest messages. A few numbers are drawn for each cut, never one for each byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from .. import framing as framings
from .._pure.framing import Codec, FixedCodec, LengthCodec, RawCodec
from .cuts import every_cut, pieces

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from .choppy import Step

__all__ = ["chops", "every_cut", "messages", "pieces", "segmentations", "wire"]

#: Most cuts, or runs of cuts, that are drawn; and the longest run: byte by byte for so long.
MOST_CUTS = 16
LONGEST_RUN = 256
#: Sizes from which some header is longer: a digit, seven bits, eight.
GROWTH = (10, 100, 128, 256, 1_000, 10_000, 16_384, 65_536)
#: Bytes that mean something to some framing, after one that means nothing.
ODD = (b"x", b"\r", b"\n", b"0", b"1", b":", b",", b"\0", b"\x7f", b"\x80", b"\xff")


def segmentations(data: bytes) -> SearchStrategy[list[bytes]]:
    """Pieces that together are the data, none of them empty: what successive `recv`s could return.

    Whole, cut anywhere, and byte by byte for a while; it shrinks to the fewest cuts, and those to
    the left. No data has no pieces.
    """
    last = len(data) - 1
    if last < 1:
        return st.just(pieces(data, ()))
    # A run of cuts, its length first: Hypothesis shortens it from the front as well, since it can
    # take from a number what it adds to the next.
    lengths = st.one_of(st.just(1), st.integers(1, min(last, LONGEST_RUN)))
    runs = st.lists(st.tuples(lengths, st.integers(1, last)), max_size=MOST_CUTS)
    return runs.map(lambda drawn: pieces(data, _places(drawn, last)))


def _places(runs: Iterable[tuple[int, int]], last: int) -> list[int]:
    """Where these runs, (length, start), cut."""
    places = (range(start, min(start + length, last + 1)) for length, start in runs)
    return sorted(set().union(*places))


def messages(framing: str = "line", max_size: int = 300) -> SearchStrategy[bytes]:
    """Messages that a framing can carry, and that are likely to be read wrong.

    Their bytes are those that framings mind: what delimiters begin with, line ends, digits, colons,
    any others. Their lengths are short, the longest, and next to where a header grows (127 and 128
    for `varint`, 9 and 10 for `netstring`).

    Args:
        framing: a spec, as in `fastecho.framing.SPECS`.
        max_size: the longest, unless all that the framing can carry are longer.

    Raises:
        ConfigError: a spec that makes no sense.
    """
    delimiters = framings.parse(framing).delimiters
    codec = framings.codec(framing, backend="pure")
    least, most = _sizes(codec, max_size)
    near = {growth + more for growth in GROWTH for more in (-1, 0, 1)} | {least, most}
    sizes = st.one_of(
        st.integers(least, min(most, least + 20)),
        st.sampled_from(sorted(size for size in near if least <= size <= most)),
    )
    contents = st.tuples(_motifs(delimiters), sizes).map(_repeated)
    if not delimiters:
        return contents
    return contents.map(lambda content: _first(codec, content, delimiters[0]))


def _sizes(codec: Codec, max_size: int) -> tuple[int, int]:
    """Of the shortest and of the longest message."""
    match codec:
        case FixedCodec(size=size):
            return size, size
        case LengthCodec(adjust=adjust):
            least = max(adjust, 0)
        case RawCodec():
            least = 1
        case _:
            least = 0
    return least, max(least, min(max_size, codec.max_frame))


def _motifs(delimiters: Iterable[bytes]) -> SearchStrategy[bytes]:
    """What a message repeats."""
    odd = [*ODD, *(each[:size] for each in delimiters for size in range(1, len(each)))]
    some = st.lists(st.sampled_from(odd), min_size=1, max_size=6).map(b"".join)
    return st.one_of(st.sampled_from(odd), some, st.binary(min_size=1, max_size=20))


def _repeated(drawn: tuple[bytes, int]) -> bytes:
    motif, size = drawn
    return (motif * (size // len(motif) + 1))[:size]


def _first(codec: Codec, content: bytes, delimiter: bytes) -> bytes:
    """As much of it as is one message, if the delimiter follows."""
    while (first := codec.fresh().feed(content + delimiter)[0]) != content:
        content = first
    return content


def wire(
    framing: str = "line",
    payloads: SearchStrategy[bytes] | None = None,
    max_messages: int = 5,
) -> SearchStrategy[tuple[list[bytes], bytes]]:
    """A few messages, and the bytes that they are together on the wire.

    Args:
        framing: a spec, as in `fastecho.framing.SPECS`.
        payloads: of the messages; by default `messages(framing)`. It must draw what the framing can
            carry, or `encode` raises a ValueError.
        max_messages: the most messages; there may be none.

    Raises:
        ConfigError: a spec that makes no sense.
    """
    encode = framings.codec(framing).encode
    some = st.lists(messages(framing) if payloads is None else payloads, max_size=max_messages)
    return some.map(lambda drawn: (drawn, b"".join(map(encode, drawn))))


def chops(
    errors: Iterable[type[OSError]] = (), max_size: int = 16, max_steps: int = 16
) -> SearchStrategy[list[Step]]:
    """Plans for `ChoppySocket`; they shrink to the fewest steps, and to the shortest.

    Args:
        errors: what may be raised between deliveries, such as BlockingIOError.
        max_size: the most bytes of one delivery.
        max_steps: the most steps; there may be none.
    """
    steps: SearchStrategy[Step] = st.integers(1, max_size)
    if some := list(errors):
        steps = st.one_of(steps, st.sampled_from(some))
    return st.lists(steps, max_size=max_steps)
