"""Where a byte string can be cut. Plain functions: nothing is drawn, nothing else is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations, pairwise


def pieces(data: bytes, at: Iterable[int]) -> list[bytes]:
    """The data cut at these places, in ascending order; no data has no pieces."""
    return [data[low:high] for low, high in pairwise([0, *at, len(data)]) if low < high]


def every_cut(data: bytes, cuts: int = 1) -> Iterator[list[bytes]]:
    """Every way to cut the data into `cuts` + 1 pieces, none of them empty, from the left.

    `n` bytes can be cut once in `n` - 1 ways, and twice in `(n - 1) * (n - 2) / 2`.

    Args:
        data: what is cut; together the pieces of each way are this.
        cuts: how many at once.

    Raises:
        ValueError: fewer than no cuts.
    """
    return (pieces(data, at) for at in combinations(range(1, len(data)), cuts))
