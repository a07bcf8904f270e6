"""The ways of cutting that are tried, kind by kind; first what breaks most servers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import comb, isqrt
from typing import Any

from .answers import Answers, Echoes
from .exchange import HALF_CLOSED, OPEN, RESET, Plan

SINGLE, BYTES, PAIRS = "single cuts", "byte by byte", "pairs of cuts"
LENGTHS, TOGETHER, HALF = "message lengths", "requests together", "half-closed"
RESETS, RANDOM = "resets", "random plans"

#: Cuts of a random plan, at most: shrinking leaves one or two, and each takes a round trip.
RANDOM_CUTS = 12


@dataclass
class Kind:
    """A way of cutting, and how far it was tried.

    Attributes:
        name: of it.
        told: what it is, in words.
        of: how many plans it has.
        total: how many of them are to be tried.
        tried: how many were.
        note: why they were not all tried.
    """

    name: str
    told: str
    of: int
    total: int
    tried: int = 0
    note: str = ""


Plans = Callable[[], Iterator[Plan]]


def kinds(answers: Answers, pairs: int, seed: int) -> Iterator[tuple[Kind, Plans]]:
    """All but the random ones, in the order in which they are tried."""
    requests, batch = answers.requests, answers.batch
    sizes = sum(len(each) - 1 for each in requests)
    yield _kind(SINGLE, "", sizes, lambda: _singles(requests, OPEN))
    yield _kind(BYTES, "", len(requests), lambda: _bytes(requests, OPEN))
    yield _pairs(requests, pairs, seed)
    if isinstance(answers, Echoes) and answers.sizes:
        lengths = answers.sizes
        told = f"whole, up to {lengths[-1]:,} bytes"
        yield _kind(LENGTHS, told, len(lengths), lambda: _lengths(answers))
    size = len(b"".join(batch))
    told = f"{len(batch)} in one segment, and every cut of it"
    yield _kind(TOGETHER, told, size + 1, lambda: _together(batch))
    told = "single cuts and byte by byte"
    yield _kind(HALF, told, sizes + len(requests), lambda: _half_closed(requests))
    told = "at every byte; then others are answered"
    yield _kind(RESETS, told, sizes + len(requests), lambda: _resets(requests))


def _kind(name: str, told: str, count: int, plans: Plans) -> tuple[Kind, Plans]:
    return Kind(name, told, count, count), plans


def _singles(requests: Sequence[bytes], ending: str) -> Iterator[Plan]:
    for each in requests:
        for at in range(1, len(each)):
            yield Plan((each,), (at,), ending)


def _bytes(requests: Sequence[bytes], ending: str) -> Iterator[Plan]:
    for each in requests:
        yield Plan((each,), tuple(range(1, len(each))), ending)


def _pairs(requests: Sequence[bytes], budget: int, seed: int) -> tuple[Kind, Plans]:
    counts = [comb(len(each) - 1, 2) for each in requests]
    shares: list[int] = []
    for number, count in enumerate(counts):
        fair = (budget - sum(shares)) // (len(counts) - number)
        shares.append(min(fair, count))

    def plans() -> Iterator[Plan]:
        for each, count, share in zip(requests, counts, shares, strict=True):
            chosen = random.Random(seed).sample(range(count), share)
            for number in sorted(chosen):
                yield Plan((each,), _pair(number))

    return Kind(PAIRS, "", sum(counts), sum(shares)), plans


def _pair(number: int) -> tuple[int, int]:
    """The pairs of 1, 2, 3 ... in an order of their own: (1, 2), (1, 3), (2, 3), (1, 4) ..."""
    larger = (1 + isqrt(8 * number + 1)) // 2
    return number - comb(larger, 2) + 1, larger + 1


def _lengths(answers: Echoes) -> Iterator[Plan]:
    for size in answers.sizes:
        yield Plan(answers.sized(size))


def _together(batch: tuple[bytes, ...]) -> Iterator[Plan]:
    size = len(b"".join(batch))
    yield Plan(batch)
    for at in range(1, size):
        yield Plan(batch, (at,))
    yield Plan(batch, tuple(range(1, size)))


def _half_closed(requests: Sequence[bytes]) -> Iterator[Plan]:
    yield from _singles(requests, HALF_CLOSED)
    yield from _bytes(requests, HALF_CLOSED)


def _resets(requests: Sequence[bytes]) -> Iterator[Plan]:
    for each in requests:
        for at in range(1, len(each) + 1):
            yield Plan((each,), (at,), RESET)


# -- at random


def search(uncut: Sequence[Plan], examples: int, seed: int, fails: Callable[[Plan], bool]) -> None:
    """Have Hypothesis look for a plan that fails, and shrink it.

    Args:
        uncut: what can be cut.
        examples: plans to try, at most.
        seed: of the plans.
        fails: tries one; it keeps those that fail itself.

    Raises:
        ModuleNotFoundError: Hypothesis is not installed.
    """
    from hypothesis import HealthCheck, Phase, errors, find, settings

    told = settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    # A server need not fail each time (`Flaky`): what failed is kept all the same.
    with suppress(errors.NoSuchExample, errors.Flaky):
        find(_randoms(uncut), fails, settings=told, random=random.Random(seed))


def _randoms(uncut: Sequence[Plan]) -> Any:
    """A strategy of plans."""
    from hypothesis import strategies as st

    def cut(plan: Plan) -> Any:
        places = st.integers(1, max(1, len(plan.data) - 1))
        return st.sets(places, max_size=RANDOM_CUTS).map(
            lambda cuts: replace(plan, cuts=tuple(sorted(cuts)))
        )

    return st.sampled_from(uncut).flatmap(cut)
