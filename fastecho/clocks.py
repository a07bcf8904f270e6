"""Two clocks compared: the server's stamps beside our own times of sending and receiving.

As NTP does it (RFC 5905, section 8) with one stamp where NTP has two: a reply bears the time at
which its message was received, and leaves at once. `offset = ((T2 - T1) + (T3 - T4)) / 2` with
T2 = T3; half the round trip, and half of what the stamp does not resolve, is the most by which
that can be wrong, and it is wrong by as much as the two ways differ.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from . import prefix

#: Tokens of a wall clock, the finest first, and the nanoseconds that each resolves. Seconds are
#: too coarse for anything that this could say.
RESOLUTIONS = {"epoch_ns": 1, "utc": 1, "epoch_us": 1_000, "iso": 1_000, "epoch_ms": 1_000_000}
#: Digits of Unix times from September 2001 to 2286, in each token's unit.
_DIGITS = {"epoch_ns": 19, "epoch_us": 16, "epoch_ms": 13}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)

#: Of so many samples in a row the one with the shortest round trip counts, as in NTP's clock
#: filter (RFC 5905, section 10).
STAGES = 8
#: So many of those must there be before anything is said about drift: a line through fewer
#: points does not know how wrong it is.
POINTS = 8
#: A drift is told if its error is less than what NTP grants any clock (PHI, RFC 5905, section
#: 7.1; parts per million), or than half of the drift itself.
PHI = 15.0


class Sample(NamedTuple):
    """One round trip, in nanoseconds.

    Attributes:
        sent: our wall clock when the message was sent (T1).
        round_trip: from then to its reply (T4 - T1).
        stamp: the server's wall clock when it received the message (T2).
    """

    sent: int
    round_trip: int
    stamp: int


class Range(NamedTuple):
    """Nanoseconds: the least, the mean, the most."""

    min: float
    mean: float
    max: float


class Drift(NamedTuple):
    """How much faster the server's clock runs, in parts per million, and two standard errors."""

    ppm: float
    error_ppm: float


class Comparison(NamedTuple):
    """What the samples say, if the way there takes as long as the way back. In nanoseconds.

    Attributes:
        offset: the server's clock less ours, at the shortest round trip.
        error: the most that this can be wrong by, however the two ways differ.
        there, back: the one-way delays.
        drift: None: there are too few samples to tell.
        samples: how many there are.
    """

    offset: float
    error: float
    there: Range
    back: Range
    drift: Drift | None
    samples: int


class Stamps:
    """Reads the time out of a server's prefixes.

    Args:
        token: the name of the token that has it, of `RESOLUTIONS`.

    Attributes:
        resolution: nanoseconds from one time that can be shown to the next.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.resolution = RESOLUTIONS[token]
        digits = _DIGITS.get(token)
        self._read: Callable[[str], int] = _nanoseconds
        self._form = prefix.form("{" + token + "}")
        if digits is not None:
            self._form = re.compile(rb"(?<![0-9])[0-9]{%d}(?![0-9])" % digits)
            self._read = lambda text: int(text) * self.resolution

    def read(self, found: bytes) -> int | None:
        """Unix time in nanoseconds; None: there is none in this prefix."""
        match = self._form.search(found)
        try:
            return self._read(match[0].decode()) if match else None
        except (ValueError, OverflowError):  # 99:99:99
            return None


def stamps(template: str) -> Stamps | None:
    """The reader for the finest wall clock in a template; None: it has none, or only seconds.

    Raises:
        ConfigError: it is no template.
    """
    shown = {part for part in prefix.parse(template) if isinstance(part, str)}
    token = next((name for name in RESOLUTIONS if name in shown), None)
    return None if token is None else Stamps(token)


def compare(samples: Sequence[Sample], resolution: int = 1) -> Comparison | None:
    """What the samples, in the order in which they were taken, say about the two clocks.

    Args:
        samples: any number; none of them say nothing (None).
        resolution: of the stamps, in nanoseconds: a stamp is cut off, not rounded.
    """
    if not samples:
        return None
    best = min(samples, key=_round_trip)
    drift = _drift(samples, resolution)
    rate = 0.0 if drift is None else drift.ppm / 1e6
    there, back = [], []
    for sample in samples:
        moved = rate * (sample.sent - best.sent)
        way = (_twice(sample, resolution) - _twice(best, resolution) + sample.round_trip) / 2
        there.append(way - moved)
        back.append(sample.round_trip - way + moved)
    return Comparison(
        offset=_twice(best, resolution) / 2,
        error=(best.round_trip + resolution - 1) / 2,
        there=_range(there),
        back=_range(back),
        drift=drift,
        samples=len(samples),
    )


def _drift(samples: Sequence[Sample], resolution: int) -> Drift | None:
    """The slope of the offsets at the shortest round trips: least squares."""
    rows = [samples[start : start + STAGES] for start in range(0, len(samples), STAGES)]
    best = [min(row, key=_round_trip) for row in rows if len(row) == STAGES]
    times = [float(each.sent - best[0].sent) for each in best]
    if len(best) < POINTS or not any(times):
        return None
    offsets = [(_twice(each, resolution) - _twice(best[0], resolution)) / 2 for each in best]
    slope, intercept = statistics.linear_regression(times, offsets)
    missed = [y - intercept - slope * x for x, y in zip(times, offsets, strict=True)]
    middle = statistics.fmean(times)
    spread = math.fsum((x - middle) ** 2 for x in times)
    variance = math.fsum(each**2 for each in missed) / (len(best) - 2)
    drift = Drift(slope * 1e6, 2e6 * math.sqrt(variance / spread))
    return drift if drift.error_ppm < max(PHI, abs(drift.ppm) / 2) else None


def _twice(sample: Sample, resolution: int) -> int:
    """Twice the offset: a whole number, since times have nineteen digits and a float sixteen."""
    return 2 * (sample.stamp - sample.sent) - sample.round_trip + resolution - 1


def _round_trip(sample: Sample) -> int:
    return sample.round_trip


def _range(values: Sequence[float]) -> Range:
    return Range(min(values), statistics.fmean(values), max(values))


def _nanoseconds(text: str) -> int:
    """Of a time as RFC 3339 has it, with six or nine digits of the second."""
    seconds, _, rest = text.partition(".")
    digits = re.match("[0-9]*", rest)[0]  # type: ignore[index]
    moment = datetime.fromisoformat(seconds + rest[len(digits) :])
    return (moment - _EPOCH) // _SECOND * 1_000_000_000 + int(digits.ljust(9, "0"))
