"""check_decoder: it finds the bugs that people write, shrinks them to one cut, and no others."""

from __future__ import annotations

import itertools
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from operator import add
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run

from fastecho import framing
from fastecho.testing import CutMismatch, Raised, check_decoder, wire


def mismatch(*arguments: Any, **options: Any) -> CutMismatch:
    with pytest.raises(CutMismatch) as caught:
        check_decoder(*arguments, **options)
    return caught.value


# -- decoders that are right


@pytest.mark.parametrize(
    "spec", ["line", "delimiter:616261", "fixed:3", "u16", "varint", "netstring"]
)
@settings(max_examples=10)
@given(drawn=st.data())
def test_codecs_pass(twin: Any, spec: str, drawn: st.DataObject) -> None:
    messages, data = drawn.draw(wire(spec, max_messages=3).filter(lambda it: len(it[1]) < 80))
    decoded = check_decoder(
        lambda: framing.codec(spec, backend=twin.name),
        data,
        feed=lambda codec, piece: codec.feed(piece),
        finish=lambda codec: codec.finish(),
        pairs=100,
        empty=True,
    )
    assert decoded == messages


def test_a_decoder_is_called_with_the_pieces() -> None:
    assert check_decoder(lambda: framing.codec("line").feed, b"a\nb\nc") == [b"a", b"b"]


def test_no_data_is_no_piece() -> None:
    assert check_decoder(lambda: lambda _: ["never"], b"", finish=lambda _: ["end"]) == ["end"]


def test_nothing_may_be_none() -> None:
    assert check_decoder(lambda: lambda _: None, b"abc", finish=lambda _: None) == []


def test_parts_of_a_body_are_joined() -> None:
    assert check_decoder(lambda: lambda piece: [piece], b"abc", join=add) == [b"abc"]
    assert mismatch(lambda: lambda piece: [piece], b"abc").got == [b"a", b"bc"]


def test_what_does_not_join_stays_two() -> None:
    def letters(piece: bytes) -> list[bytes]:
        return [piece[at : at + 1] for at in range(len(piece))]

    def join(before: bytes, after: bytes) -> bytes | None:
        return None if before[-1:] == b"b" else before + after

    assert check_decoder(lambda: letters, b"abab", join=join) == [b"ab", b"ab"]


def fails_at_the_third() -> Callable[[bytes], Iterator[int]]:
    count = 0

    def feed(piece: bytes) -> Iterator[int]:
        nonlocal count
        for octet in piece:
            count += 1
            if count == 3:
                raise ValueError(f"no {octet}")
            yield octet

    return feed


def test_an_exception_is_the_last_event() -> None:
    decoded = check_decoder(fails_at_the_third, b"\x01\x02\x03\x04", empty=True)
    assert decoded == [1, 2, Raised("ValueError", "no 3")]


def test_the_end_may_fail() -> None:
    def finish(_: object) -> None:
        raise EOFError("in the middle")

    assert check_decoder(lambda: lambda _: [], b"ab", finish=finish) == [
        Raised("EOFError", "in the middle")
    ]


# -- bugs that people write, and the cut that shows each


def cr_and_lf() -> Callable[[bytes], list[bytes]]:
    """Takes a line end for one if it comes in one piece."""
    held = b""

    def feed(piece: bytes) -> list[bytes]:
        nonlocal held
        *lines, last = piece.split(b"\r\n")
        if lines:
            lines[0] = held + lines[0]
            held = b""
        held += last
        return lines

    return feed


def text_of_each() -> Callable[[bytes], list[str]]:
    """Decodes what comes, not what is complete."""
    return lambda piece: [piece.decode()]


def length_at_once() -> Callable[[bytes], list[bytes]]:
    """Holds the body that it waits for, but not half a length."""
    held, wanted = b"", 0

    def feed(piece: bytes) -> list[bytes]:
        nonlocal held, wanted
        messages = []
        while piece:
            if not wanted:
                wanted = int.from_bytes(piece[:2], "big")
                piece = piece[2:]
            taken = wanted - len(held)
            held += piece[:taken]
            piece = piece[taken:]
            if len(held) == wanted:
                messages.append(held)
                held, wanted = b"", 0
        return messages

    return feed


def first_of_each() -> Callable[[bytes], list[bytes]]:
    """Takes the first message of a piece, and forgets the others."""
    held = b""

    def feed(piece: bytes) -> list[bytes]:
        nonlocal held
        line, found, _ = (held + piece).partition(b"\n")
        held = b"" if found else line
        return [line] if found else []

    return feed


def start_of_a_delimiter() -> Callable[[bytes], list[bytes]]:
    """Passes on a body up to a boundary; half a boundary at the end it takes for body."""
    ended = False

    def feed(piece: bytes) -> list[bytes]:
        nonlocal ended
        body, found, _ = piece.partition(b"--end")
        before, ended = ended, ended or bool(found)
        return [] if before else [body]

    return feed


@pytest.mark.parametrize(
    ("factory", "data", "join", "segments"),
    [
        (cr_and_lf, b"one\r\ntwo\r\n", None, [b"one\r", b"\ntwo\r\n"]),
        (text_of_each, "caf\u00e9 noir".encode(), add, [b"caf\xc3", b"\xa9 noir"]),
        (length_at_once, b"\0\2hi\0\1!", None, [b"\0", b"\2hi\0\1!"]),
        (first_of_each, b"one\ntwo\n", None, [b"one\n", b"two\n"]),
        (start_of_a_delimiter, b"body--end", add, [b"body-", b"-end"]),
    ],
)
def test_it_finds_the_one_cut(factory: Any, data: bytes, join: Any, segments: list[bytes]) -> None:
    assert mismatch(factory, data, join=join).pieces == segments


def two_pieces_at_most() -> Callable[[bytes], list[bytes]]:
    """Remembers no more than one piece."""
    before = held = b""

    def feed(piece: bytes) -> list[bytes]:
        nonlocal before, held
        before, held = held, piece
        return [before + held] if (before + held).endswith(b"!") else []

    return feed


def test_a_bug_of_two_cuts_shrinks_to_two() -> None:
    caught = mismatch(two_pieces_at_most, b"abcdefgh!")
    assert len(caught.pieces) == 3
    assert b"".join(caught.pieces) == b"abcdefgh!"


def last_of_three() -> Callable[[bytes], list[bytes]]:
    """Goes wrong after a piece of three bytes that is not the first."""
    pieces: list[bytes] = []

    def feed(piece: bytes) -> list[bytes]:
        pieces.append(piece)
        return [b"wrong"] if len(piece) == 3 and len(pieces) == 2 and sum(piece) % 7 == 0 else []

    return feed


def test_a_pair_is_found_that_byte_by_byte_does_not_show() -> None:
    data = bytes([1] * 6 + [2, 2, 3] + [1] * 6)
    assert mismatch(last_of_three, data).pieces == [bytes([1] * 6), b"\2\2\3", bytes([1] * 6)]
    assert check_decoder(last_of_three, data, pairs=5) == []


def ends_at_nothing() -> Callable[[bytes], list[bytes]]:
    """Takes an empty piece for the end, as many do."""
    ended = False

    def feed(piece: bytes) -> list[bytes]:
        nonlocal ended
        ended = ended or not piece
        return [] if ended else [piece]

    return feed


def test_empty_pieces_are_fed_if_asked() -> None:
    assert check_decoder(ends_at_nothing, b"abc", join=add) == [b"abc"]
    caught = mismatch(ends_at_nothing, b"abc", join=add, empty=True)
    assert caught.pieces == [b"", b"abc"]
    assert "pieces of 3 bytes, empty ones between" in str(caught)


def test_empty_pieces_of_no_data() -> None:
    caught = mismatch(lambda: lambda piece: [piece], b"", empty=True)
    assert caught.pieces == [b""]
    assert str(caught).startswith("the decoder's output depends on pieces of 0 bytes, empty ones")


def loses_what_was_complete() -> Callable[[bytes], list[bytes]]:
    """Raises before it has returned what came before the fault."""
    return lambda piece: [piece[at : at + 1] for at in range(len(piece)) if 1 // piece[at]]


def test_an_error_that_swallows_messages_is_found() -> None:
    caught = mismatch(loses_what_was_complete, b"\1\0")
    assert caught.expected == [Raised("ZeroDivisionError", "integer division or modulo by zero")]
    assert caught.got[0] == b"\1"


# -- what it says


def test_the_sentence() -> None:
    with pytest.raises(AssertionError) as caught:
        check_decoder(first_of_each, b"one\ntwo\n")
    assert str(caught.value).splitlines() == [
        "the decoder's output depends on a cut at 4 of 8 bytes",
        r"  pieces: [b'one\n', b'two\n']",
        "  whole:  [b'one']",
        "  cut:    [b'one', b'two']",
        "  differs first at event 1: nothing whole, b'two' cut",
    ]


def test_a_mismatch_goes_from_one_process_to_another() -> None:
    caught = mismatch(first_of_each, b"one\ntwo\n")
    came = pickle.loads(pickle.dumps(caught))
    assert (str(came), came.pieces, came.index) == (str(caught), caught.pieces, caught.index)


def test_what_is_long_is_shortened() -> None:
    caught = mismatch(first_of_each, b"a" * 10_000 + b"\nb\n")
    assert len(str(caught)) < 2_000
    assert caught.expected == [b"a" * 10_000]


def test_events_that_do_not_compare_are_said_to_be_so() -> None:
    with pytest.raises(ValueError, match="do events have ==") as caught:
        check_decoder(lambda: lambda _: [object()], b"ab")
    assert re.search(r"\[<object object at", str(caught.value))


def test_decoders_that_share_state_are_found_out() -> None:
    feeds = itertools.count()
    with pytest.raises(ValueError, match="fed the same twice"):
        check_decoder(lambda: lambda _: ["late"] if next(feeds) > 1 else [], b"ab")


def test_pytest_shows_the_test_alone(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "from fastecho.testing import check_decoder\n\n"
        "def test():\n    check_decoder(lambda: lambda piece: [piece], b'ab')\n"
    )
    done = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path)
    said = done.stdout.decode()
    assert "depends on a cut at 1 of 2 bytes" in said
    assert "decoders.py" not in said.partition("short test summary")[0]


@given(st.binary(min_size=2, max_size=60), st.data())
def test_any_one_cut_is_found(data: bytes, drawn: st.DataObject) -> None:
    at = drawn.draw(st.integers(1, len(data) - 1))

    def factory() -> Callable[[bytes], list[int]]:
        came = 0

        def feed(piece: bytes) -> list[int]:
            nonlocal came
            came += len(piece)
            return [came] if came == at else []

        return feed

    assert mismatch(factory, data).pieces == [data[:at], data[at:]]
