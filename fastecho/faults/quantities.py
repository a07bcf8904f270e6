"""Values as people write them: `1%`, `100ms`, `10k`, `1-5`; read, and written.

For fault plans. A number has digits, perhaps a fraction, perhaps an exponent, and a unit right
after it. Nothing else is read: no sign, no infinity, no digits of other scripts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..limits import MAX_FAULT_TIME, MAX_RATE


class Range(NamedTuple):
    """From `low` to `high`, both included, drawn uniformly; often they are the same."""

    low: Any
    high: Any


class Kind(NamedTuple):
    """What the value of a key is.

    Attributes:
        read: of a text: the value; a ValueError may say more about what is wrong.
        write: of a value: a text that reads as the same.
        right: what it must be, for people.
    """

    read: Callable[[str], Any]
    write: Callable[[Any], str]
    right: str


_NUMBER = re.compile(r"([0-9]{1,19}(?:\.[0-9]{0,19})?|\.[0-9]{1,19})(?:e([+-]?[0-9]{1,3}))?(\D*)")
_SPAN = re.compile(r"(.*?(?<!e))-(.*)", re.DOTALL)
#: Units as powers of ten.
_SHARES = {"%": -2, "": 0}
_TIMES = {"s": 0, "ms": -3, "us": -6, "µs": -6, "": 0}
_RATES = {"": 0, "k": 3, "M": 6, "G": 9}


def _scaled(text: str, units: Mapping[str, int], high: float) -> float:
    found = _NUMBER.fullmatch(text)
    if not found or found[3] not in units:
        raise ValueError
    value = float(f"{found[1]}e{int(found[2] or 0) + units[found[3]]}")
    if not 0 <= value <= high:
        raise ValueError
    return value


def _read_chance(text: str) -> float:
    return _scaled(text, _SHARES, 1)


def _read_time(text: str) -> float:
    return _scaled(text, _TIMES, MAX_FAULT_TIME)


def _write_time(seconds: float) -> str:
    unit = "s" if seconds >= 1 or seconds == 0 else "ms" if seconds >= 1e-3 else "us"
    text = f"{seconds * 10 ** -_TIMES[unit]:.15g}{unit}"
    return text if _read_time(text) == seconds else f"{seconds!r}s"


def _read_rate(text: str) -> int:
    value = _scaled(text, _RATES, MAX_RATE)
    if value < 1 or not value.is_integer():
        raise ValueError
    return int(value)


def _write_rate(rate: int) -> str:
    unit = max((unit for unit in _RATES if rate % 10 ** _RATES[unit] == 0), key=_RATES.__getitem__)
    return f"{rate // 10 ** _RATES[unit]}{unit}"


def whole(low: int, high: int, what: str = "a whole number") -> Kind:
    """A number without fraction."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) <= len(str(high))):
            raise ValueError
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return Kind(read, str, f"{what} from {low:,} to {high:,}")


def ranged(kind: Kind, example: str) -> Kind:
    """A kind's value, or a range of them; its unit may stand after both together."""

    def read(text: str) -> Range:
        span = _SPAN.fullmatch(text)
        if not span:
            return Range(*[kind.read(text)] * 2)
        low, high = (end.strip() for end in span.groups())
        unit, of_both = (end.lstrip("0123456789.e+-") for end in (low, high))
        if unit and not of_both:
            raise ValueError("the unit comes last")
        low += "" if unit else of_both
        found = Range(kind.read(low), kind.read(high))
        if found.low > found.high:
            raise ValueError("the smaller comes first")
        return found

    def write(value: Range) -> str:
        ends = [kind.write(end) for end in value]
        return ends[0] if value.low == value.high else "-".join(ends)

    return Kind(read, write, f"{kind.right}, or a range such as {example}")


CHANCE = Kind(_read_chance, repr, "a probability from 0 to 1, such as 0.01 or 1%")
TIME = Kind(_read_time, _write_time, "a time such as 100ms or 1.5s, up to an hour")
TIMES = ranged(TIME, "50-100ms")
RATE = Kind(_read_rate, _write_rate, f"bytes a second such as 500 or 10k, from 1 to {MAX_RATE:,}")
