"""Two clocks compared: known clocks must come out as they are."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastecho
from fastecho import clocks, prefix
from fastecho.clocks import STAGES, Sample

HOUR = 3_600 * 10**9
START = 1_795_352_400 * 10**9
TIMES = st.integers(1_000_000_000 * 10**9, 9_000_000_000 * 10**9)
PATHS = st.integers(0, 10**10)


def line(offset: float, ppm: float, count: int, gap: int, ways: tuple[int, int]) -> list[Sample]:
    """Round trips to a server whose clock was ahead by `offset` at first, and runs off."""
    there, back = ways
    found = []
    for number in range(count):
        sent = START + number * gap
        arrived = sent + there
        ahead = round(offset + ppm / 1e6 * (arrived - START))
        found.append(Sample(sent, there + back, arrived + ahead))
    return found


# -- reading stamps


@pytest.mark.parametrize("token", clocks.RESOLUTIONS)
@given(now=TIMES)
def test_a_stamp_is_read_as_it_was_rendered(token: str, now: int) -> None:
    echo = fastecho.Echo(prefix=f"<{{seq}} {{{token}}}> ", backend="pure")
    reader = clocks.stamps(f"{{{token}}}")
    assert reader is not None
    assert reader.token == token
    assert reader.read(echo.feed(b"\n", now_ns=now)) == now - now % reader.resolution


@pytest.mark.parametrize(
    ("template", "token"),
    [
        ("{ctime}{epoch}{seq}{mono_ns}", None),
        ("", None),
        ("{{utc}}", None),
        ("{epoch_ms} {iso}", "iso"),
        ("{iso} {utc}", "utc"),
        ("{utc} {epoch_ns}", "epoch_ns"),
        ("{epoch_ms}", "epoch_ms"),
    ],
)
def test_the_finest_clock_is_read(template: str, token: str | None) -> None:
    reader = clocks.stamps(template)
    assert (reader and reader.token) == token


@pytest.mark.parametrize("token", clocks.RESOLUTIONS)
@given(found=st.binary(max_size=60))
def test_what_is_no_stamp_is_none(token: str, found: bytes) -> None:
    shown = clocks.Stamps(token).read(found)
    assert shown is None or prefix.form(f"{{{token}}}").search(found)


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("utc", b"2026-99-22T15:45:49.640780012Z"),
        ("utc", b"0000-01-01T00:00:00.000000000Z"),
        ("iso", b"2026-11-22T15:61:49.640780+00:00"),
        ("iso", b"2026-11-22T15:01:49.640780+99:99"),
        ("epoch_ns", b"17953524001234567890"),
        ("epoch_ns", b"1795352400123456"),
    ],
)
def test_a_time_that_there_is_not_is_none(token: str, shown: bytes) -> None:
    assert clocks.Stamps(token).read(shown) is None


# -- comparing


def test_nothing_says_nothing() -> None:
    assert clocks.compare([]) is None


@given(
    sent=TIMES,
    offset=st.integers(-HOUR, HOUR),
    ways=st.lists(st.tuples(PATHS, PATHS), min_size=1, max_size=20),
    resolution=st.sampled_from(sorted(set(clocks.RESOLUTIONS.values()))),
)
def test_the_bound_holds_whatever_the_ways_are(
    sent: int, offset: int, ways: list[tuple[int, int]], resolution: int
) -> None:
    samples = []
    for there, back in ways:
        shown = sent + there + offset
        samples.append(Sample(sent, there + back, shown - shown % resolution))
    compared = clocks.compare(samples, resolution)
    assert compared is not None
    assert abs(compared.offset - offset) <= compared.error
    assert compared.error == (min(map(sum, ways)) + resolution - 1) / 2
    assert compared.samples == len(ways)
    assert compared.drift is None


@given(
    offset=st.integers(-(10**18), 10**18),
    way=PATHS,
    waits=st.lists(st.tuples(PATHS, PATHS), max_size=20),
)
def test_a_symmetric_path_is_told_exactly(
    offset: int, way: int, waits: list[tuple[int, int]]
) -> None:
    """One that is not waited on, and others that are."""
    ways = [(way, way), *((way + there, way + back) for there, back in waits)]
    samples = [Sample(START, there + back, START + there + offset) for there, back in ways]
    compared = clocks.compare(samples)
    assert compared is not None
    assert compared.offset == float(offset)  # which has sixteen digits
    for told, each in (
        (compared.there, [w[0] for w in ways]),
        (compared.back, [w[1] for w in ways]),
    ):
        assert (told.min, told.max) == (min(each), max(each))
        assert told.mean == pytest.approx(float(Fraction(sum(each), len(each))))


@given(
    offset=st.integers(-HOUR, HOUR),
    ppm=st.floats(-500, 500),
    count=st.integers(STAGES * clocks.POINTS, 300),
    gap=st.integers(10**8, 10**10),
    ways=st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)),
)
def test_a_steady_drift_is_told(
    offset: int, ppm: float, count: int, gap: int, ways: tuple[int, int]
) -> None:
    compared = clocks.compare(line(offset, ppm, count, gap, ways))
    assert compared is not None
    assert compared.drift is not None
    assert compared.drift.ppm == pytest.approx(ppm, abs=0.01)  # stamps are whole nanoseconds
    assert compared.drift.error_ppm < 0.1
    assert compared.there.max - compared.there.min < 1_000 + 1e-8 * gap * count


@given(count=st.integers(1, STAGES * clocks.POINTS - 1))
def test_few_replies_do_not_tell_the_drift(count: int) -> None:
    compared = clocks.compare(line(0, 100, count, 10**9, (1, 1)))
    assert compared is not None
    assert compared.drift is None


def test_noise_is_no_drift() -> None:
    """Ways that differ by a millisecond to and fro, within a fifteenth of a second."""
    samples = [
        line(0, 0, 1, 1, ways)[0]._replace(sent=START + number * 10**6)
        for number in range(64)
        for ways in [(10**6, 0) if number // STAGES % 2 else (0, 10**6)]
    ]
    samples = [each._replace(stamp=each.stamp + each.sent - START) for each in samples]
    compared = clocks.compare(samples)
    assert compared is not None
    assert compared.drift is None


def test_samples_of_one_moment_have_no_drift() -> None:
    compared = clocks.compare([Sample(START, 2, START + 1)] * 200)
    assert compared is not None
    assert compared.drift is None
