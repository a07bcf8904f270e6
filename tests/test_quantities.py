"""Values as people write them, and as they are written back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastecho.faults.quantities import CHANCE, RATE, TIME, TIMES, Kind, Range, ranged, whole

COUNT = whole(1, 65_536)
SIZES = ranged(whole(0, 2**30, "bytes,"), "1-5")
#: Each kind, values of it, and such as look like it and are none.
KINDS: dict[str, tuple[Kind, dict[str, Any], list[str]]] = {
    "chance": (
        CHANCE,
        {
            "0": 0.0,
            "1": 1.0,
            "1.": 1.0,
            ".5": 0.5,
            "0.01": 0.01,
            "1%": 0.01,
            "0.7%": 0.007,
            "100%": 1.0,
            "1e-3": 0.001,
            "1e-3%": 0.00001,
        },
        ["1.1", "101%", "-1", "1/2", "half", "1 %", "1%%", "1e", "1s", "1-2", "0.1-0.2"],
    ),
    "time": (
        TIME,
        {
            "0": 0.0,
            "100ms": 0.1,
            "1.5s": 1.5,
            "2us": 2e-6,
            "2µs": 2e-6,
            ".5": 0.5,
            "3600": 3600.0,
            "3600000ms": 3600.0,
            "7e-1ms": 0.0007,
        },
        ["3600.001", "1h", "1m", "1MS", "1 s", "1s1s", "-1s", "+1s", "s", "1_0", "1,5s", "1-2ms"],
    ),
    "times": (
        TIMES,
        {
            "100ms": Range(0.1, 0.1),
            "50-100ms": Range(0.05, 0.1),
            "50ms-100ms": Range(0.05, 0.1),
            "50us - 1s": Range(5e-5, 1.0),
            "1-2": Range(1.0, 2.0),
            "1e-3-2e-3": Range(0.001, 0.002),
            "1e-3-2ms": Range(1e-6, 0.002),
            "0-0": Range(0.0, 0.0),
        },
        ["1ms-2", "2-1", "1-", "-1", "-", "1-2-3", "1--2", "1-2h", "1-3601"],
    ),
    "rate": (
        RATE,
        {"1": 1, "10k": 10_000, "1.5k": 1500, "2M": 2_000_000, "1G": 10**9, "1e3": 1000},
        ["0", "0.5", "1K", "1m", "1.5", "10kB", "1e12k", "1001G", "-1", "1-2"],
    ),
    "count": (
        COUNT,
        {"1": 1, "65536": 65_536, "007": 7},
        ["0", "65537", "1.0", "1e3", "1k", "-1", "+1", " 1", "1-2", "9" * 5000],
    ),
    "sizes": (
        SIZES,
        {"0": Range(0, 0), "5": Range(5, 5), "1-5": Range(1, 5), "1 - 5": Range(1, 5)},
        ["5-1", "1-", "-5", "1.0", "1-5k", "1073741825", "0-1073741825", "1e1-2"],
    ),
}
ALL = [(kind, text, value) for kind, right, _ in KINDS.values() for text, value in right.items()]
NONE = [(kind, text) for kind, _, wrong in KINDS.values() for text in wrong]
#: Nobody's: no sign, no infinity, no digits of other scripts.
NOTHING = ["", " ", "x", "nan", "inf", "-inf", "٣", "１", "0x1", "1\n", "\n1", "1\0"]


@pytest.mark.parametrize(("kind", "text", "value"), ALL)
def test_a_value_is_read(kind: Kind, text: str, value: Any) -> None:
    found = kind.read(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("kind", "text"), NONE)
def test_what_is_none_is_refused(kind: Kind, text: str) -> None:
    with pytest.raises(ValueError, match=r"^$|^the smaller comes first$|^the unit comes last$"):
        kind.read(text)


@pytest.mark.parametrize("text", NOTHING)
def test_what_is_nothing_is_refused_by_all(text: str) -> None:
    for kind, _, _ in KINDS.values():
        with pytest.raises(ValueError, match=r"^$"):
            kind.read(text)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=12) | st.text("0123456789.-e+%msukMG ", max_size=12))
def test_any_text_is_a_value_or_refused_and_a_value_is_within(kind: str, text: str) -> None:
    reader = KINDS[kind][0]
    try:
        value = reader.read(text)
    except ValueError:
        return
    low, high = value if isinstance(value, Range) else (value, value)
    limit = {"chance": 1, "time": 3600, "times": 3600, "rate": 10**12, "count": 65_536}
    assert 0 <= low <= high <= limit.get(kind, 2**30)
    assert reader.read(reader.write(value)) == value


@given(st.floats(0, 3600))
@example(5e-324)
@example(0.1 + 0.2)
@example(1 / 3)
def test_a_time_reads_as_it_was_written(seconds: float) -> None:
    assert TIME.read(TIME.write(seconds)) == seconds


@given(st.floats(0, 1))
@example(5e-324)
def test_a_chance_reads_as_it_was_written(chance: float) -> None:
    assert CHANCE.read(CHANCE.write(chance)) == chance


@given(st.integers(1, 10**12))
def test_a_rate_reads_as_it_was_written(rate: int) -> None:
    assert RATE.read(RATE.write(rate)) == rate


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (TIME, 0.0, "0s"),
        (TIME, 0.1, "100ms"),
        (TIME, 0.0035, "3.5ms"),
        (TIME, 1.5, "1.5s"),
        (TIME, 2e-6, "2us"),
        (TIMES, Range(0.05, 0.1), "50ms-100ms"),
        (TIMES, Range(1.0, 1.0), "1s"),
        (RATE, 10_000, "10k"),
        (RATE, 1_500, "1500"),
        (RATE, 3 * 10**6, "3M"),
        (CHANCE, 0.01, "0.01"),
        (SIZES, Range(1, 5), "1-5"),
        (COUNT, 5, "5"),
    ],
)
def test_a_value_is_written_as_people_do(kind: Kind, value: Any, text: str) -> None:
    assert kind.write(value) == text
