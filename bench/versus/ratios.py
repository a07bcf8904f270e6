"""Medians of ratios, and where they lie."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Median, and the ends of its interval.
Ratio = tuple[float, float, float]


def interval(values: Iterable[float]) -> Ratio:
    """The median, and where it lies with 95%: by the ranks of a binomial distribution."""
    ranked = sorted(values)
    reach = 0.98 * len(ranked) ** 0.5  # 1.96 standard deviations of the rank
    low = max(0, round((len(ranked) - 1) / 2 - reach))
    high = min(len(ranked) - 1, round((len(ranked) - 1) / 2 + reach))
    return statistics.median(ranked), ranked[low], ranked[high]


Student = Mapping[int, float]
#: Student's t, two-sided, 95%: by how many values there are.
STUDENT: Student = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}
#: The same for 99%, where two runs are compared: of two hundred pairs of intervals of 95%, one has
#: nothing in common by chance; of 99%, none in 19 of 20 cases (simulated, six sittings each).
STUDENT_99: Student = {2: 63.66, 3: 9.92, 4: 5.84, 5: 4.60, 6: 4.03, 7: 3.71, 8: 3.50}


def settled(sittings: Sequence[Sequence[float]], student: Student = STUDENT) -> Ratio:
    """The median over all rounds, and where it lies with 95%, another time too.

    A machine's state lasts longer than a sitting, and moves a ratio by more than the rounds of one
    tell. So what is independent is a sitting, and the interval is that of the mean of their
    medians. Of a single sitting it is what its rounds tell.
    """
    rounds = [ratio for sitting in sittings for ratio in sitting]
    if len(sittings) not in student:
        return interval(rounds)
    medians = [statistics.median(sitting) for sitting in sittings]
    middle, mean = statistics.median(rounds), statistics.mean(medians)
    reach = student[len(medians)] * statistics.stdev(medians) / len(medians) ** 0.5
    return middle, min(mean - reach, middle), max(mean + reach, middle)


def row_of(results: dict[str, Any], kind: str, peer: str) -> dict[str, Any] | None:
    """What a peer has shown at a kind of work, if it has."""
    rows: Sequence[dict[str, Any]] = results["kinds"].get(kind, ())
    return next((row for row in rows if row["peer"] == peer and not row["why_not"]), None)


def between(
    results: dict[str, Any], kind: str, one: str, other: str, student: Student = STUDENT
) -> Ratio | None:
    """One peer's cost to another's, in the same rounds; None: they have none in common."""
    first, second = row_of(results, kind, one), row_of(results, kind, other)
    if first is None or second is None:
        return None
    if [*map(len, first["ratios"])] != [*map(len, second["ratios"])]:
        return None
    both = zip(first["ratios"], second["ratios"], strict=True)
    return settled([[a / b for a, b in zip(*pair, strict=True)] for pair in both], student)
