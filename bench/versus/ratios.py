"""Medians of ratios, and where they lie."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
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


def row_of(results: dict[str, Any], kind: str, peer: str) -> dict[str, Any] | None:
    """What a peer has shown at a kind of work, if it has."""
    rows: Sequence[dict[str, Any]] = results["kinds"].get(kind, ())
    return next((row for row in rows if row["peer"] == peer and not row["why_not"]), None)


def between(results: dict[str, Any], kind: str, one: str, other: str) -> Ratio | None:
    """One peer's cost to another's, in the same rounds; None: they have none in common."""
    first, second = row_of(results, kind, one), row_of(results, kind, other)
    if first is None or second is None or len(first["ratios"]) != len(second["ratios"]):
        return None
    pairs = zip(first["ratios"], second["ratios"], strict=True)
    return interval([ours / theirs for ours, theirs in pairs])
