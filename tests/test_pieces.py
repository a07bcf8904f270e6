"""What leaves when: a plan's decisions carried out, on a clock of the test's own."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fastecho.faults.decisions import Decision, Strike
from fastecho.faults.pieces import RATE_STEP, Piece, Pieces

ROOM = 1 << 20
LATER = 1e6


def replies(*data: bytes, **decided: Any) -> Pieces:
    """These replies, all received at 0, about all of which the same is decided."""
    pieces = Pieces()
    for number, each in enumerate(data, 1):
        pieces.add(number, Decision(each, **decided), 0.0)
    return pieces


def leave(pieces: Pieces, now: float = LATER) -> list[Piece]:
    """All that leaves until then."""
    left = []
    while (head := pieces.head) and head.due <= now:
        left.append(pieces.take(now, ROOM))
    return left


def data(pieces: list[Piece]) -> list[bytes]:
    return [piece.data for piece in pieces]


def test_whole_replies_leave_together_as_far_as_there_is_room() -> None:
    pieces = replies(b"one", b"two", b"three")
    assert pieces.size == 11
    first = pieces.take(0.0, 6)
    assert (first.data, first.messages, first.alone) == (b"onetwo", (1, 2), False)
    assert pieces.size == 5
    assert data(leave(pieces)) == [b"three"]
    assert (pieces.size, pieces.head) == (0, None)


def test_a_reply_larger_than_the_room_leaves_by_itself() -> None:
    assert replies(b"large", b"too").take(0.0, 3).data == b"large"


def test_a_cut_reply_leaves_in_pieces_alone() -> None:
    pieces = replies(b"abcdef", cuts=(1, 4), pause=0.5)
    left = leave(pieces)
    assert data(left) == [b"a", b"bcd", b"ef"]
    assert all(piece.alone and piece.messages == (1,) for piece in left)
    assert [piece.pause for piece in left] == [0.0, 0.5, 0.5]
    assert [piece.delay for piece in left] == [0.0, 0.5, 0.5]


def test_a_whole_reply_does_not_leave_with_pieces_of_a_cut_one() -> None:
    pieces = Pieces()
    pieces.add(1, Decision(b"whole"), 0.0)
    pieces.add(2, Decision(b"cut", cuts=(1,)), 0.0)
    pieces.add(3, Decision(b"whole"), 0.0)
    assert data(leave(pieces)) == [b"whole", b"c", b"ut", b"whole"]


def test_delays_keep_the_order() -> None:
    pieces = Pieces()
    pieces.add(1, Decision(b"late", delay=3.0), 10.0)
    pieces.add(2, Decision(b"early", delay=1.0), 10.5)
    assert leave(pieces, 12.9) == []
    (both,) = leave(pieces, 13.0)
    assert (both.data, both.delay) == (b"lateearly", 3.0)


def test_a_swapped_reply_leaves_after_the_next() -> None:
    pieces = replies(b"1", b"2", b"3", swap=5.0)
    assert data(leave(pieces)) == [b"21"]
    assert pieces.waits_until == 5.0
    pieces.release(4.9)
    assert pieces.head is None
    pieces.release(5.0)
    (last,) = leave(pieces)
    assert (last.data, last.delay) == (b"3", 5.0)
    assert pieces.waits_until is None


def test_what_waits_for_others_leaves_if_none_follow() -> None:
    pieces = replies(b"1", swap=5.0)
    pieces.finish()
    assert data(leave(pieces)) == [b"1"]
    pieces = replies(b"1", coalesce=(3, 5.0))
    pieces.finish()
    assert data(leave(pieces)) == [b"1"]


def test_coalesced_replies_leave_as_one_and_with_no_others() -> None:
    pieces = replies(*[b"%d" % number for number in range(7)], coalesce=(3, 5.0))
    left = leave(pieces)
    assert data(left) == [b"012", b"345"]
    assert left[1].messages == (4, 5, 6)
    assert pieces.waits_until == 5.0
    pieces.release(5.0)
    (last,) = leave(pieces)
    assert (last.data, last.delay) == (b"6", 5.0)


def test_coalesced_replies_are_cut_where_each_is() -> None:
    pieces = Pieces()
    pieces.add(1, Decision(b"abcd", coalesce=(2, 5.0), cuts=(1,)), 0.0)
    pieces.add(2, Decision(b"efgh", cuts=(3,)), 0.0)
    left = leave(pieces)
    assert data(left) == [b"a", b"bcdefg", b"h"]
    assert [piece.messages for piece in left] == [(1,), (1, 2), (2,)]


def test_slices_of_coalesced_replies_are_no_longer_for_it() -> None:
    pieces = Pieces()
    struck = (Strike("slice", {}),)
    for number in (1, 2):
        decided = Decision(b"abc", strikes=struck, coalesce=(2, 5.0), cuts=(2,))
        pieces.add(number, decided, 0.0)
    assert data(leave(pieces)) == [b"ab", b"c", b"ab", b"c"]


def test_a_reply_too_short_to_be_cut_leaves_alone_if_it_was_to_be() -> None:
    pieces = replies(b"x", b"y", strikes=(Strike("walk", {}),))
    assert [(piece.data, piece.alone) for piece in leave(pieces)] == [(b"x", True), (b"y", True)]


def test_bandwidth_lets_each_byte_pass_in_its_time() -> None:
    pieces = replies(b"x" * 250, b"y" * 50, rate=1_000)
    left = leave(pieces)
    step = round(1_000 * RATE_STEP)
    assert [len(piece.data) for piece in left] == [step, step, 50, 50]
    assert [round(piece.due, 9) for piece in left] == [0.1, 0.2, 0.25, 0.3]
    assert data(leave(replies(b"abc", rate=1))) == [b"a", b"b", b"c"]


def test_an_end_comes_with_what_is_kept_and_nothing_follows() -> None:
    pieces = replies(b"whole", b"never", keep=2, end="close")
    (piece,) = leave(pieces)
    assert (piece.data, piece.end) == (b"wh", "close")
    assert (pieces.ended, pieces.size) == (True, 0)
    (piece,) = leave(replies(b"none of it", keep=0, end="reset"))
    assert (piece.data, piece.end) == (b"", "reset")
    left = leave(replies(b"abcdef", keep=4, cuts=(1,), end="reset"))
    assert [(piece.data, piece.end) for piece in left] == [(b"a", ""), (b"bcd", "reset")]


def test_replies_before_the_end_leave_with_it() -> None:
    pieces = replies(b"whole")
    pieces.add(2, Decision(b"half", keep=2, end="close"), 0.0)
    (piece,) = leave(pieces)
    assert (piece.data, piece.messages, piece.end) == (b"wholeha", (1, 2), "close")


def test_what_is_swapped_with_the_end_is_lost() -> None:
    pieces = Pieces()
    pieces.add(1, Decision(b"first", swap=5.0), 0.0)
    pieces.add(2, Decision(b"second", keep=3, end="close"), 0.0)
    assert data(leave(pieces)) == [b"sec"]
    assert (pieces.ended, pieces.size, pieces.waits_until) == (True, 0, None)
    assert pieces.replies == 0


def decisions(size: int) -> st.SearchStrategy[dict[str, Any]]:
    times = st.sampled_from([0.0, 0.5, 2.0])
    return st.fixed_dictionaries(
        {},
        optional={
            "swap": times,
            "delay": times,
            "rate": st.sampled_from([1, 7, 1_000]),
            "coalesce": st.tuples(st.integers(2, 4), times),
            "cuts": st.sets(st.integers(1, max(1, size - 1))).map(sorted).map(tuple),
            "pause": times,
        },
    )


@st.composite
def lots(draw: st.DrawFn) -> list[tuple[float, bytes, dict[str, Any]]]:
    """Replies with when they are received and what is decided."""
    found, now = [], 0.0
    for number in range(draw(st.integers(0, 8))):
        now += draw(st.sampled_from([0.0, 0.1, 3.0]))
        size = draw(st.integers(1, 9))
        found.append((now, bytes([number]) * size, draw(decisions(size))))
    return found


@given(lots(), st.integers(1, 20))
def test_each_byte_leaves_once_in_order_and_none_early(
    lot: list[tuple[float, bytes, dict[str, Any]]], room: int
) -> None:
    pieces, left = Pieces(), []
    for number, (now, reply, decided) in enumerate(lot, 1):
        pieces.release(now)
        pieces.add(number, Decision(reply, **decided), now)
        while (head := pieces.head) and head.due <= now:
            left.append((now, pieces.take(now, room)))
    pieces.finish()
    while head := pieces.head:
        left.append((head.due, pieces.take(head.due, room)))
    assert (pieces.size, pieces.replies, pieces.waits_until) == (0, 0, None)

    said = dict.fromkeys(range(1, len(lot) + 1), b"")
    order: list[int] = []
    for when, piece in left:
        assert piece.due <= when
        assert piece.data
        at = 0
        for message in piece.messages:
            came, reply, decided = lot[message - 1]
            assert when >= came + decided.get("delay", 0.0)
            rest = reply[len(said[message]) :]
            part = piece.data[at : at + len(rest)]
            assert rest.startswith(part)
            said[message] += part
            at += len(part)
            if order[-1:] != [message]:
                order.append(message)
        assert at == len(piece.data)
    assert list(said.values()) == [reply for _, reply, _ in lot]
    assert sorted(order) == list(said)  # each reply's bytes are together
    swaps = [message for message, (_, _, decided) in enumerate(lot, 1) if "swap" in decided]
    for place, message in enumerate(order, 1):
        assert abs(place - message) <= (1 if swaps else 0)
