"""What a plan does to a message: drawn for that message alone, the same whenever it is asked."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import struct
from typing import Any

import plans
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fastecho import limits
from fastecho.faults.decisions import Arrival, Decision, Draws, Numbers, SlowRead, step
from fastecho.faults.plan import from_table, parse
from fastecho.faults.quantities import Range

SEEDS = NUMBERS = st.integers(0, 2**63 - 1)
REPLIES = st.binary(max_size=60)


GOLDEN_NUMBERS = [
    2336274734027803250,
    14991544933012525696,
    5741195402745286304,
    11436366492954159596,
    7045760487938549793,
    972739759140119125,
    3199447855742951476,
    8617645372174864741,
    15182483645911197247,
]
GOLDEN_SHARES = [0.11090953376257773, 0.7908307671507571, 0.8004059143619077]
#: What is drawn for the first messages of connection 1, with seed 7.
GOLDEN_REPLIES = {
    "slice:size=1-9": [
        [4, 11, 14, 22, 24, 30, 37],
        [7, 8, 14, 16, 24, 26, 28, 37],
        [2, 5, 12, 14, 16, 23, 31, 32, 37, 38],
    ],
    "corrupt:bits=3": [[28, 118, 124], [33, 180, 230], [287, 303, 315]],
    "truncate": [24, 3, 25],
    "reset": [12, 1, 24],
    "delay:time=50-100ms,p=50%": [None, None, 0.054248],
    "jitter": [0.027537, 0.044228, 0.036977],
}
GOLDEN_LATE = [0.0, 1.548589, 1.325356, 0.0, 0.0, 0.0]
GOLDEN_DROPPED = [8, 10, 40, 51, 76, 96, 116, 120, 127, 146]
CUTTERS, ENDERS = {"slice", "walk", "dribble"}, {"truncate", "reset"}
GROUPED = CUTTERS | ENDERS


def draws(plan: str, seed: int = 1) -> Draws:
    return Draws(parse(plan), seed)


def ask(asked: Draws, kind: str, connection: int, message: int, reply: bytes) -> Decision | Arrival:
    if kind == "connection":
        return asked.connection(connection)
    return getattr(asked, kind)(connection, message, reply)


def drawn(decision: Decision) -> Any:
    """The first parameter of what struck."""
    return next(iter(decision.strikes[0].parameters.values())) if decision.strikes else None


def names(decision: Decision | Arrival) -> list[str]:
    return [strike.fault for strike in decision.strikes]


QUESTIONS = st.tuples(
    st.sampled_from(["connection", "reply", "datagram"]),
    st.integers(1, 50),
    st.integers(1, 50),
    REPLIES,
)


# -- the draws


def test_the_draws_are_what_they_always_were() -> None:
    """Seeds and logs of users depend on it: these values never change."""
    numbers = Numbers(1, 2, 3, "walk")
    assert [numbers.below(2**64) for _ in range(9)] == GOLDEN_NUMBERS
    numbers = Numbers(2**63 - 1, 10**12, 10**15, "late-accept")
    assert [numbers.uniform() for _ in range(3)] == GOLDEN_SHARES


def test_the_sequence_is_made_as_documented() -> None:
    key = struct.pack(">QQQQ", 1, 2, 3, 1) + b"walk"
    assert GOLDEN_NUMBERS[8] == int.from_bytes(hashlib.blake2b(key).digest()[:8])


def test_the_decisions_are_what_they_always_were() -> None:
    reply = bytes(range(40))
    told = {
        plan: [drawn(draws(plan, 7).reply(1, message, reply)) for message in (1, 2, 3)]
        for plan in GOLDEN_REPLIES
    }
    assert told == GOLDEN_REPLIES
    late = [draws("late-accept:time=1-2s,p=50%", 7).connection(n).late for n in range(1, 7)]
    assert late == GOLDEN_LATE
    dropped = [n for n in range(1, 200) if draws("drop:p=5%", 7).datagram(3, n, reply).drop]
    assert dropped == GOLDEN_DROPPED


@given(SEEDS, NUMBERS, NUMBERS)
def test_numbers_are_as_they_say(seed: int, connection: int, message: int) -> None:
    numbers = Numbers(seed, connection, message, "corrupt")
    assert 0 <= numbers.uniform() < 1
    assert numbers.below(1) == 0
    assert all(0 <= numbers.below(7) < 7 for _ in range(20))
    assert all(3 <= numbers.whole(Range(3, 5)) <= 5 for _ in range(20))
    assert numbers.sample(9, 9) == list(range(9))
    sample = numbers.sample(5, 100)
    assert sample == sorted(set(sample))
    assert len(sample) == 5
    assert set(sample) <= set(range(100))


@given(st.floats(0, 3600), st.floats(0, 3600))
def test_a_time_is_within_its_range(one: float, other: float) -> None:
    span = Range(min(one, other), max(one, other))
    assert span.low <= Numbers(1, 1, 1, "delay").time(span) <= span.high


@given(SEEDS, st.integers(1, 99), st.integers(1, 99))
def test_each_part_of_what_a_draw_is_for_matters(seed: int, connection: int, message: int) -> None:
    """No two draws share a sequence."""
    first = [
        Numbers(*each).below(2**64)
        for each in [
            (seed, connection, message, "walk"),
            (seed ^ 1, connection, message, "walk"),
            (seed, connection + 1, message, "walk"),
            (seed, connection, message + 1, "walk"),
            (seed, connection, message, "slice"),
        ]
    ]
    assert len(set(first)) == 5


@given(plans.tables(), SEEDS, st.lists(QUESTIONS, max_size=8), st.randoms(use_true_random=False))
def test_the_answer_depends_on_nothing_but_the_question(
    table: Any, seed: int, questions: list[Any], order: random.Random
) -> None:
    plan = from_table(table)
    asked = Draws(plan, seed)
    first = [ask(asked, *each) for each in questions]
    shuffled = list(enumerate(questions))
    order.shuffle(shuffled)
    again = {place: ask(asked, *each) for place, each in shuffled}
    fresh = [ask(Draws(plan, seed), *each) for each in questions]
    assert first == fresh == [again[place] for place in range(len(questions))]


@given(plans.tables(), SEEDS, QUESTIONS)
def test_a_fault_strikes_the_same_messages_whatever_else_is_planned(
    table: Any, seed: int, question: Any
) -> None:
    """But for what it shares a reply with: one cut, one end, nothing once all is swallowed."""
    together = set(names(ask(Draws(from_table(table), seed), *question)))
    alone = {
        name
        for name, keys in table.items()
        if names(ask(Draws(from_table({name: keys}), seed), *question))
    }
    assert together <= alone
    if not alone & {"stall", "drop"}:
        assert together - GROUPED == alone - GROUPED
        assert bool(together & CUTTERS) == bool(alone & CUTTERS)
        assert bool(together & ENDERS) == bool(alone & ENDERS)


# -- whether it strikes


def struck(plan: str, seed: int, messages: int) -> int:
    asked = draws(plan, seed)
    return sum(bool(asked.reply(1, n, b"reply").strikes) for n in range(1, messages + 1))


def binomial_tail(count: int, trials: int, p: float) -> float:
    """The probability of a result at least as far from the middle, on its side."""
    side = range(count + 1) if count < trials * p else range(count, trials + 1)
    return math.fsum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in side)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_p_is_the_share_that_is_struck(p: float) -> None:
    """Of a fixed seed: a share that would come up once in ten thousand seeds is taken for wrong."""
    for plan in (f"delay:p={p}", f"walk:p={p}", f"corrupt:p={p}"):
        assert binomial_tail(struck(plan, 20, 1000), 1000, p) > 1e-4, plan


@given(SEEDS)
def test_what_is_certain_is_certain(seed: int) -> None:
    assert struck("delay:p=0", seed, 20) == 0
    assert struck("delay", seed, 20) == struck("delay:p=100%", seed, 20) == 20


def test_from_is_the_first_message_that_can_be_struck() -> None:
    asked = draws("delay:from=3; late-accept:from=2")
    assert [bool(asked.reply(9, n, b"x").strikes) for n in range(1, 6)] == [0, 0, 1, 1, 1]
    assert [bool(asked.connection(n).late) for n in range(1, 5)] == [0, 1, 1, 1]


def test_a_fault_strikes_what_it_is_for() -> None:
    everything = draws("walk; drop; late-accept; swap:p=1; reorder; duplicate")
    assert names(everything.reply(1, 1, b"reply")) == ["duplicate", "swap", "walk"]
    assert names(everything.datagram(1, 1, b"reply")) == ["drop"]
    assert names(everything.connection(1)) == ["late-accept"]


# -- what it does


@given(plans.tables(), SEEDS, QUESTIONS)
def test_every_decision_can_be_carried_out(table: Any, seed: int, question: Any) -> None:
    kind, _, _, reply = question
    assume(kind != "connection")
    decision = ask(Draws(from_table(table), seed), *question)
    assert isinstance(decision, Decision)
    struck = names(decision)
    doubled = kind == "reply" and "duplicate" in struck
    assert len(decision.data) == (2 if doubled else 1) * len(reply)
    assert "corrupt" in struck or decision.data == reply * (1 + doubled)
    assert decision.copies == 1 + (kind == "datagram" and "duplicate" in struck)
    leaving = len(decision.data) if decision.keep is None else decision.keep
    assert 0 <= leaving <= len(decision.data)
    cuts = list(decision.cuts)
    assert cuts == sorted(set(cuts))
    assert all(0 < cut < leaving for cut in cuts)
    assert bool(decision.end) == (kind == "reply" and bool(ENDERS & set(struck)))
    assert (decision.keep is not None) == bool(ENDERS & set(struck))
    assert decision.delay >= 0
    if {"stall", "drop"} & set(struck):
        assert len(struck) == 1
        assert decision == Decision(
            reply, decision.strikes, drop=decision.drop, stall=decision.stall
        )


@given(SEEDS, st.integers(1, 99), st.binary(min_size=1, max_size=50), st.integers(1, 500))
def test_as_many_bits_are_flipped_as_are_told(
    seed: int, message: int, reply: bytes, bits: int
) -> None:
    decision = draws(f"corrupt:bits={bits}", seed).reply(1, message, reply)
    changed = int.from_bytes(decision.data) ^ int.from_bytes(reply)
    flipped = [bit for bit in range(8 * len(reply)) if changed >> 8 * len(reply) - 1 - bit & 1]
    assert len(flipped) == min(bits, 8 * len(reply))
    assert decision.strikes[0].parameters == {"bits": flipped}


def test_there_may_be_nothing_to_flip() -> None:
    assert draws("corrupt").datagram(1, 1, b"").data == b""


def test_every_bit_is_flipped_now_and_then() -> None:
    asked = draws("corrupt")
    flipped = {asked.reply(1, n, bytes(4)).strikes[0].parameters["bits"][0] for n in range(1, 400)}
    assert flipped == set(range(32))


def test_a_walk_shows_every_cut_then_every_pair_then_starts_again() -> None:
    asked = draws("walk:from=5")
    reply = bytes(40)
    assert asked.reply(1, 4, reply).cuts == ()
    shown = [asked.reply(1, 5 + turn, reply).cuts for turn in range(2 * (39 + 741))]
    singles = [(cut,) for cut in range(1, 40)]
    pairs = list(itertools.combinations(range(1, 40), 2))
    assert shown == 2 * (singles + pairs)


@given(st.integers(0, 30), st.integers(0, 2000))
def test_a_step_is_one_cut_or_a_pair(length: int, turn: int) -> None:
    every = [(cut,) for cut in range(1, length)]
    every += itertools.combinations(range(1, length), 2)
    assert step(turn, length) == (every[turn % len(every)] if every else ())


@given(st.integers(2, 2**30), st.integers(0, 2**63))
def test_a_step_over_a_long_reply_costs_no_more(length: int, turn: int) -> None:
    cuts = step(turn, length)
    assert len(cuts) in (1, 2)
    assert 0 < cuts[0] <= cuts[-1] < length


@pytest.mark.parametrize(
    ("plan", "cuts", "parameters"),
    [
        ("slice", [1, 2, 3, 4, 5, 6], {"size": 1, "pause": 0.0}),
        ("slice:size=3", [3, 6], {"size": 3, "pause": 0.0}),
        ("slice:size=7,pause=5ms", [], {"size": 7, "pause": 0.005}),
        ("dribble:pause=1s", [1, 2, 3, 4, 5, 6], {"pause": 1.0}),
        ("walk", [2], {"cuts": [2], "pause": 0.0}),
        ("truncate:at=4; slice:size=2", [2], {"size": 2, "pause": 0.0}),
        ("duplicate; slice:size=5", [5, 10], {"size": 5, "pause": 0.0}),
    ],
)
def test_where_a_reply_is_cut(plan: str, cuts: list[int], parameters: Any) -> None:
    decision = draws(plan).reply(1, 2, b"1234567")
    assert list(decision.cuts) == cuts
    assert decision.strikes[-1].parameters == parameters
    assert decision.pause == parameters["pause"]


@given(SEEDS, st.integers(0, 200))
def test_sizes_of_pieces_are_drawn_for_each(seed: int, length: int) -> None:
    decision = draws("slice:size=2-5", seed).reply(1, 1, bytes(length))
    ends = [0, *decision.cuts, length]
    sizes = [after - before for before, after in itertools.pairwise(ends)]
    assert all(2 <= size <= 5 for size in sizes[:-1])
    assert sizes[-1] <= 5
    assert decision.strikes[0].parameters["cuts"] == list(decision.cuts)


@pytest.mark.parametrize("plan", ["dribble", "slice", "slice:size=1-2"])
def test_a_reply_has_so_many_pieces_and_no_more(plan: str) -> None:
    assert limits.MAX_PIECES == 131_072
    assert len(draws(plan).reply(1, 1, bytes(300_000)).cuts) == 131_071


@pytest.mark.parametrize(
    ("plan", "first"),
    [
        ("walk; slice", "walk"),
        ("slice; walk", "slice"),
        ("walk:p=0; dribble; slice", "dribble"),
        ("walk:from=9; slice", "slice"),
    ],
)
def test_the_first_that_strikes_cuts_alone(plan: str, first: str) -> None:
    assert names(draws(plan).reply(1, 1, b"reply")) == [first]


@pytest.mark.parametrize(
    ("plan", "end", "kept"),
    [
        ("truncate:at=3", "close", {3}),
        ("truncate:at=0", "close", {0}),
        ("truncate:at=99", "close", {5}),
        ("truncate:at=2-3", "close", {2, 3}),
        ("truncate", "close", {1, 2, 3, 4}),
        ("reset:after=5", "reset", {5}),
        ("reset", "reset", {0, 1, 2, 3, 4}),
        ("reset:after=1; truncate", "reset", {1}),
        ("duplicate; truncate:at=99", "close", {10}),
        ("duplicate; truncate", "close", {1, 2, 3, 4}),
    ],
)
def test_where_a_stream_ends(plan: str, end: str, kept: set[int]) -> None:
    asked = draws(plan)
    decisions = [asked.reply(1, n, b"reply") for n in range(1, 60)]
    assert {each.keep for each in decisions} == kept
    assert {each.end for each in decisions} == {end}
    for each in decisions:
        assert each.keep in each.strikes[-1].parameters.values()


@pytest.mark.parametrize("reply", [b"", b"x"])
def test_a_short_reply_can_be_cut_short_too(reply: bytes) -> None:
    for plan in ("truncate", "reset"):
        assert draws(plan).reply(1, 1, reply).keep == 0


def test_a_datagram_is_cut_short_and_nothing_ends() -> None:
    decisions = [draws("truncate").datagram(1, n, b"reply") for n in range(1, 60)]
    assert {each.keep for each in decisions} == {0, 1, 2, 3, 4}
    assert {each.end for each in decisions} == {""}


def test_delay_and_jitter_add_up() -> None:
    asked = draws("delay:time=50-100ms; jitter:time=1s")
    for n in range(1, 50):
        decision = asked.reply(1, n, b"reply")
        base, more = (strike.parameters["time"] for strike in decision.strikes)
        assert 0.05 <= base <= 0.1
        assert 0 <= more <= 1
        assert decision.delay == base + more


def test_what_is_told_is_done() -> None:
    decision = draws("swap:wait=1s; bandwidth:rate=2k; coalesce:count=3,wait=2s").reply(1, 1, b"x")
    assert (decision.swap, decision.rate, decision.coalesce) == (1.0, 2000, (3, 2.0))
    assert [strike.parameters for strike in decision.strikes] == [
        {"wait": 1.0},
        {"rate": 2000},
        {"count": 3, "wait": 2.0},
    ]
    assert draws("reorder").datagram(1, 1, b"x").swap == 0.1
    assert draws("duplicate").datagram(1, 1, b"x") == Decision(b"x", (("duplicate", {}),), copies=2)
    assert draws("stall").reply(1, 1, b"x") == Decision(b"x", (("stall", {}),), stall=True)
    assert draws("drop").datagram(1, 1, b"x") == Decision(b"x", (("drop", {}),), drop=True)


def test_a_connection_is_read_slowly_or_accepted_late() -> None:
    arrival = draws("slow-read:size=7; late-accept:time=1ms").connection(1)
    assert arrival.slow == SlowRead(4096, 7, 0.01)
    assert arrival.late == 0.001
    assert [strike.parameters for strike in arrival.strikes] == [
        {"window": 4096, "size": 7, "pause": 0.01},
        {"time": 0.001},
    ]
    assert draws("walk").connection(1) == Arrival()


@given(plans.tables(), QUESTIONS)
def test_a_strike_can_be_written_as_json(table: Any, question: Any) -> None:
    strikes = ask(Draws(from_table(table), 1), *question).strikes
    for _, parameters in strikes:
        assert json.loads(json.dumps(parameters)) == parameters
