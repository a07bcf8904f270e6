"""What a decoder gives must not depend on how its input was cut: whole against every cut.

`check_decoder` feeds the data whole, which is the reference, and then in pieces: every single cut;
byte by byte; every pair of cuts, near ones first, up to a number. What it raises is a part of what
a decoder gives. The counterexample has the fewest cuts of those that failed, further left first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, islice, zip_longest
from typing import Any, NamedTuple, TypeVar

from .cuts import every_cut, pieces

Decoder = TypeVar("Decoder")
#: Two neighbours as one event, or None if they stay two.
Join = Callable[[Any, Any], Any]

#: Pairs of cuts that are tried: all of 64 bytes; of more, those that are near each other.
PAIRS = 2_000
#: How much of a value is shown.
_SHOWN = 300
_NOTHING = object()


class Raised(NamedTuple):
    """The last event of a decoder that raised an exception: its type's name, and its text."""

    name: str
    text: str


class CutMismatch(AssertionError):
    """A decoder that gives something else when its input is cut.

    Attributes:
        pieces: how the input was cut.
        expected: the events that it gives when fed whole.
        got: the events that it gives when fed these pieces.
        index: of the first event that differs.
    """

    def __init__(self, pieces: list[bytes], expected: list[Any], got: list[Any]) -> None:
        both = list(zip_longest(expected, got, fillvalue=_NOTHING))
        self.pieces, self.expected, self.got = pieces, expected, got
        self.index = next(at for at, (wanted, given) in enumerate(both) if wanted != given)
        wanted, given = both[self.index]
        super().__init__(
            f"the decoder's output depends on {_told(pieces)}\n"
            f"  pieces: {_shown(pieces)}\n"
            f"  whole:  {_shown(expected)}\n"
            f"  cut:    {_shown(got)}\n"
            f"  differs first at event {self.index}: {_shown(wanted)} whole, {_shown(given)} cut"
        )

    def __reduce__(self) -> tuple[Any, ...]:  # by default, an exception is made of its text alone
        return type(self), (self.pieces, self.expected, self.got)


def check_decoder(
    factory: Callable[[], Decoder],
    data: bytes,
    *,
    feed: Callable[[Decoder, bytes], Iterable[Any] | None] | None = None,
    finish: Callable[[Decoder], Iterable[Any] | None] | None = None,
    join: Join | None = None,
    pairs: int = PAIRS,
    empty: bool = False,
) -> list[Any]:
    """Check that a decoder gives the same for this data, whole and however it is cut.

    Args:
        factory: makes a decoder at the start of a stream.
        data: what it is fed; a few hundred bytes take a second.
        feed: what a decoder gives for a piece: events, messages, anything that compares by value;
            by default it is called with it.
        finish: what it gives at the end of the stream, after the last piece; by default nothing.
        join: of two neighbouring events the one that they are together, or None; for decoders that
            pass on the parts of a body as they come.
        pairs: how many pairs of cuts are tried.
        empty: whether to feed nothing between pieces too; for many decoders that is the end.

    Returns:
        the events of the whole; the last is a `Raised` if the decoder raised an exception.

    Raises:
        CutMismatch: it gives something else for some cut.
        ValueError: two decoders that were fed the same gave different events, so that nothing can
            be compared.
    """
    __tracebackhide__ = True  # pytest shows the test then, and not this

    def outcome(segments: Sequence[bytes]) -> list[Any]:
        return _joined(_run(factory(), segments, feed or _call, finish), join)

    data = bytes(data)
    whole = pieces(data, ())
    expected = outcome(whole)
    _check_same(expected, outcome(whole))
    for segments in _tries(data, pairs, empty):
        if outcome(segments) != expected:
            _check_same(expected, outcome(whole))  # decoders may share a state
            segments = _fewest(segments, lambda fewer: outcome(fewer) != expected)
            got = outcome(segments)
            _check_same(got, outcome(segments))
            raise CutMismatch(segments, expected, got)
    return expected


def _check_same(one: list[Any], other: list[Any]) -> None:
    __tracebackhide__ = True
    if one != other:
        raise ValueError(f"fed the same twice, decoders differ: do events have ==? {_shown(one)}")


def _tries(data: bytes, pairs: int, empty: bool) -> Iterator[list[bytes]]:
    yield from every_cut(data)
    yield [data[at : at + 1] for at in range(len(data))]
    yield from islice(_near_pairs(data), pairs)
    if empty:
        yield [b"", data, b""]
        yield from ([left, b"", right] for left, right in every_cut(data))


def _near_pairs(data: bytes) -> Iterator[list[bytes]]:
    size = len(data)
    for apart in range(1, size - 1):
        for at in range(1, size - apart):
            yield pieces(data, (at, at + apart))


def _fewest(segments: list[bytes], fails: Callable[[list[bytes]], bool]) -> list[bytes]:
    """The pieces with no cut that is not needed to fail: joined, in halves of them, then fewer."""
    count = len(segments) // 2
    while count:
        at = 0
        while at + count < len(segments):
            end = at + count + 1
            fewer = [*segments[:at], b"".join(segments[at:end]), *segments[end:]]
            if fails(fewer):
                segments = fewer
            else:
                at += 1
        count //= 2
    return segments


def _call(decoder: Any, data: bytes) -> Any:
    return decoder(data)


def _run(decoder: Any, segments: Iterable[bytes], feed: Any, finish: Any) -> list[Any]:
    """All events up to the end, or to the exception that is one then."""
    events: list[Any] = []
    try:
        for segment in segments:
            events.extend(feed(decoder, segment) or ())
        if finish is not None:
            events.extend(finish(decoder) or ())
    except Exception as error:
        events.append(Raised(type(error).__qualname__, str(error)))
    return events


def _joined(events: list[Any], join: Join | None) -> list[Any]:
    if join is None:
        return events
    joined: list[Any] = []
    for event in events:
        together = join(joined[-1], event) if joined else None
        if together is None:
            joined.append(event)
        else:
            joined[-1] = together
    return joined


def _told(segments: Sequence[bytes]) -> str:
    size = sum(map(len, segments))
    places = sorted(set(accumulate(map(len, segments))) - {0, size})
    where = ", ".join(map(str, places[:8])) + (", ..." if len(places) > 8 else "")
    cuts = f"cuts at {where}" if len(places) > 1 else f"a cut at {where}" if places else "pieces"
    return f"{cuts} of {size} bytes" + (", empty ones between" if b"" in segments else "")


def _shown(value: object) -> str:
    text = "nothing" if value is _NOTHING else repr(value)
    if len(text) <= _SHOWN:
        return text
    return f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 2 :]}"
