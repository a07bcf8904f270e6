"""What is kept of runs: written, read again and merged; and files of others."""

from __future__ import annotations

import base64
import copy
import io
import json
import random
import struct
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hdrh")
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

from fastecho import report
from fastecho.errors import ConfigError, FastechoError
from fastecho.load import LONGEST, Interval, Plan, Result, add, histogram

PAGE = Path(__file__).parents[1] / "docs" / "load.md"


def samples(seed: int, count: int = 5_000) -> list[int]:
    """Latencies in nanoseconds, with a long tail."""
    draw = random.Random(seed)
    return [max(1, round(draw.lognormvariate(11, 1.5))) for _ in range(count)]


def recorded(values: list[int]) -> HdrHistogram:
    found = histogram()
    for value in values:
        found.record_value(value)
    return found


def slots(values: Iterable[int]) -> array[int]:
    """As an interval has them."""
    return array("q", chain.from_iterable(sorted(Counter(values).items())))


def result(seed: int = 1, began: float = 1_700_000_000.25, **changes: Any) -> Result:
    """Of a run of two seconds that never was."""
    values = samples(seed)
    parts = [values[:3_000], values[3_000:]]
    plan = Plan(address="127.0.0.1:7", connections=3, pid=7, **changes)
    return Result(
        plan,
        seconds=2.0,
        sent=5_001,
        received=5_000,
        bytes_out=320_064,
        bytes_in=450_000,
        missing=1,
        datagrams=Counter(lost=0, late=2),
        closed=Counter(reset=1),
        wrong=1,
        first_wrong=("it is none", b"\0\xffx"),
        latency=recorded(values),
        lateness=recorded([5, 9]),
        intervals=[
            Interval(float(second), 1.0, len(part), slots(part))
            for second, part in enumerate(parts)
        ],
        cpu=0.5,
        server_cpu=1.0,
        began=began,
    )


def again(run: report.Run) -> report.Run:
    """Written and read."""
    out = io.StringIO()
    report.save(run, out)
    return report.from_json(json.loads(out.getvalue()), run.name)


# -- figures


@pytest.mark.parametrize("count", [1, 2, 10, 99, 5_000])
def test_percentiles_are_those_of_the_samples(count: int) -> None:
    values = sorted(samples(1, count))
    for wanted in (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 100.0):
        rank = max(1, int(wanted * count / 100 + 0.5))
        (found,) = report.percentiles(recorded(values), [wanted])
        assert values[rank - 1] <= found <= values[rank - 1] * 1.001 + 1


def test_percentiles_are_those_of_the_library() -> None:
    latency = recorded(samples(2))
    wanted = [0.001, 1, 50, 90, 99, 99.9, 99.99, 100]
    assert report.percentiles(latency, wanted) == [
        latency.get_value_at_percentile(each) for each in wanted
    ]


def test_slots_are_added_as_values_are_recorded() -> None:
    slots = [(0, 2), (1, 1), (2_047, 3), (2_048, 1), (4_095 << 20, 5), (LONGEST + 1, 1)]
    added, recorded_ = histogram(), histogram()
    for _ in range(2):
        add(added, slots)
        for value, count in slots:
            recorded_.record_value(min(max(value, 1), LONGEST), count)
    assert added.equals(recorded_)


def test_what_never_was_has_no_figures() -> None:
    assert report.percentiles(histogram(), (50, 99)) == [0, 0]
    assert report.figures(histogram()) == {}
    assert report.longest(histogram()) == 0


def test_the_maximum_is_not_below_any_percentile() -> None:
    figures = report.figures(recorded(samples(3)))
    assert list(figures) == ["p50", "p90", "p99", "p99.9", "p99.99", "max", "mean"]
    assert figures["p50"] <= figures["p90"] <= figures["p99.99"] <= figures["max"]


@pytest.mark.parametrize(
    ("nanoseconds", "said"),
    [
        (0, "0 ns"),
        (7, "7 ns"),
        (999, "999 ns"),
        (999.6, "1 us"),
        (1_234, "1.23 us"),
        (69_551, "69.6 us"),
        (999_499, "999 us"),
        (999_500, "1.00 ms"),
        (12_345_678, "12.3 ms"),
        (999_999_999, "1.00 s"),
        (61e9, "61.0 s"),
        (3_600e9, "3600 s"),
    ],
)
def test_durations_have_a_unit_that_suits_them(nanoseconds: float, said: str) -> None:
    assert report.duration(nanoseconds).replace("1.00 us", "1 us") == said


def test_what_could_move_a_cursor_is_escaped() -> None:
    assert report.shown("a\x1b[2J\u202e\udcff é") == "a\\x1b[2J\\u202e\\udcff é"


# -- JSON


def test_json_comes_back_as_it_was() -> None:
    run = report.Run.of(result())
    read = again(run)
    assert report.to_json(read) == report.to_json(run)
    assert read.result.latency.equals(run.result.latency)
    assert read.result.plan == run.result.plan
    assert read.result.first_wrong == ("it is none", b"\0\xffx")


@pytest.mark.parametrize(
    "changes",
    [
        {"duration": None, "messages": 9},
        {"rate": 100.0, "arrivals": "poisson"},
        {"prefix": "\t{ctime}\udcff", "backend": "pure", "framing": "u16le"},
    ],
)
def test_every_plan_comes_back(changes: dict[str, Any]) -> None:
    run = report.Run.of(result(**changes))
    assert again(run).result.plan == run.result.plan


def test_an_empty_run_comes_back() -> None:
    run = report.Run.of(Result(Plan()))
    assert report.to_json(again(run)) == report.to_json(run)


def test_each_key_is_documented() -> None:
    def keys(data: object) -> set[str]:
        inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
        own = set(data) if isinstance(data, dict) else set()
        return own.union(*map(keys, inner))

    page = PAGE.read_text()
    found = keys(report.to_json(report.Run.of(result()))) - {"reset"}  # which is a reason
    assert len(found) > 60
    assert sorted(key for key in found if f"`{key}`" not in page) == []


def test_an_interval_is_a_line() -> None:
    out = io.StringIO()
    report.save(report.Run.of(result()), out)
    assert sum('"histogram":' in line for line in out.getvalue().splitlines()) == 2


def damaged(change: Callable[[Any], object]) -> dict[str, Any]:
    data = copy.deepcopy(report.to_json(report.Run.of(result())))
    change(data)
    return data


def packed(payload: bytes, cookie: int = report.COMPRESSED) -> str:
    squeezed = zlib.compress(payload)
    return base64.b64encode(struct.pack(">II", cookie, len(squeezed)) + squeezed).decode()


def headed(payload: bytes, digits: int = 3, high: int = LONGEST) -> str:
    """A histogram with this inside."""
    head = report.HEADER.pack(report.ENCODED, len(payload), 0, digits, 1, high, 1.0)
    return packed(head + payload)


FOREIGN: list[tuple[Callable[[Any], object], str]] = [
    (lambda data: data.update(schema=2), "schema 2, and this fastecho reads 1"),
    (lambda data: data.pop("schema"), "'schema' is missing"),
    (lambda data: data.update(schema=True), "'schema'"),
    (lambda data: data.update(counts=[]), "'counts' is missing, or no object"),
    (lambda data: data["counts"].update(sent=-1), "'sent' is missing, or no whole number"),
    (lambda data: data["counts"].update(sent=1.5), "'sent'"),
    (lambda data: data["counts"].update(sent=2**80), "'sent'"),
    (lambda data: data["counts"].pop("late"), "'late'"),
    (lambda data: data.update(seconds=float("nan")), "'seconds' is missing, or no number"),
    (lambda data: data.update(seconds=float("inf")), "'seconds'"),
    (lambda data: data.update(stopped=1), "'stopped' is missing, or neither true nor false"),
    (lambda data: data["machine"].update(host="a\x1b[2J"), "'host' is no text that can be shown"),
    (lambda data: data["options"].update(more=1), "there is no option 'more'"),
    (lambda data: data["options"].update(address="here"), "'here' is no address"),
    (lambda data: data["options"].update(connections=0), "connections must be"),
    (lambda data: data["options"].update(framing=1), "'framing' is missing, or no text"),
    (lambda data: data["options"].pop("udp"), "'udp'"),
    (lambda data: data["first_wrong"].update(hex="xy"), "'first_wrong' is not hexadecimal"),
    (lambda data: data.update(intervals={}), "'intervals' is missing, or no list"),
    (lambda data: data.update(intervals=[1]), "what is in 'intervals'"),
    (lambda data: data["closed"].update({"x": "1"}), "'x'"),
]
HISTOGRAMS = [
    "",
    "x",
    "AAAA",
    "é",
    packed(b""),
    packed(b"x" * 40),
    packed(bytes(2**24)),
    headed(b"", digits=5),
    headed(b"", high=2**62),
    headed(b"\xff" * 9),
    headed(b"\x01" * 300_000),
    headed(b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff" * 4),
    headed(b"", digits=3)[:-8],
]


@pytest.mark.parametrize(("change", "sentence"), FOREIGN, ids=[each for _, each in FOREIGN])
def test_a_foreign_file_is_refused(change: Callable[[Any], object], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        report.from_json(damaged(change))
    assert sentence in str(refused.value)


@pytest.mark.parametrize("text", HISTOGRAMS, ids=range(len(HISTOGRAMS)))
def test_a_damaged_histogram_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a histogram is"):
        report.from_json(damaged(lambda data: data["histograms"].update(latency=text)))


@pytest.mark.parametrize("data", [None, 1, [], "x"])
def test_what_is_no_object_is_refused(data: object) -> None:
    with pytest.raises(ConfigError, match="it is missing, or no object"):
        report.from_json(data)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"[" * 100_000, b"1" * 5_000])
def test_a_file_that_is_no_json_is_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.json is no result of fastecho load"):
        report.read(str(file))


def test_a_file_that_is_not_there_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FastechoError, match=r"cannot read .*: no such file or directory"):
        report.read(str(tmp_path / "none"))


# -- HdrHistogram's log


def test_the_log_is_read_by_the_library(tmp_path: Path) -> None:
    run = report.Run.of(result())
    file = tmp_path / "a.hlog"
    with file.open("w") as out:
        report.save_log(run, out)
    reader = HistogramLogReader(str(file), histogram())
    total, starts = histogram(), []
    while (part := reader.get_next_interval_histogram()) is not None:
        starts.append(part.get_start_time_stamp() / 1000)
        total.add(part)
    reader.close()
    assert total.get_total_count() == run.result.latency.get_total_count()
    assert total.equals(recorded_again(run.result.latency))
    assert starts == [1_700_000_000.25, 1_700_000_001.25]
    assert reader.get_start_time_sec() == 1_700_000_000.25


def recorded_again(latency: HdrHistogram) -> HdrHistogram:
    """As it is once it has been written and read: its ends are those of their slots."""
    return HdrHistogram.decode(latency.encode())


def test_the_log_has_what_viewers_look_for() -> None:
    out = io.StringIO()
    report.save_log(report.Run.of(result()), out)
    lines = out.getvalue().splitlines()
    assert lines[1:5] == [
        "#[Histogram log format version 1.2]",
        "#[StartTime: 1700000000.250 (seconds since epoch), Tue Nov 14 22:13:20 UTC 2023]",
        "#[BaseTime: 1700000000.250 (seconds since epoch)]",
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
    ]
    assert [line.split(",")[:2] for line in lines[5:]] == [["0.000", "1.000"], ["1.000", "1.000"]]
    assert all(line.split(",")[3].startswith("HISTFAAA") for line in lines[5:])


# -- merged


def runs(*began: float, **changes: Any) -> list[report.Run]:
    made = [report.Run.of(result(seed, at, **changes)) for seed, at in enumerate(began, 1)]
    for number, run in enumerate(made):
        run.name = f"{number}.json"
    return made


def test_a_merged_histogram_is_that_of_all_samples() -> None:
    merged = report.merge([again(each) for each in runs(100, 100.5, 200)])
    everything = recorded_again(recorded(samples(1) + samples(2) + samples(3)))
    assert merged.result.latency.equals(everything)
    assert merged.result.sent == 15_003
    assert merged.result.closed == {"reset": 3}
    assert sum(part.received for part in merged.parts) == 15_000
    whole = histogram()
    for part in merged.parts:
        whole.add(report.decode(part.latency))
    assert whole.equals(everything)


def test_runs_at_the_same_time_share_their_seconds() -> None:
    merged = report.merge(runs(100, 100.1))
    assert merged.merged == "2 runs at the same time"
    assert merged.result.seconds == pytest.approx(2.1)
    assert merged.result.plan.connections == 6
    assert merged.result.server_cpu == 1.0
    assert [part.received for part in merged.parts] == [6_000, 4_000]


def test_rates_at_the_same_time_add_up() -> None:
    assert report.merge(runs(100, 100.1, rate=5.0)).result.plan.rate == 10


def test_runs_one_after_the_other_add_their_seconds() -> None:
    merged = report.merge(runs(100, 5_000))
    assert merged.merged == "2 runs one after the other"
    assert merged.result.seconds == 4
    assert merged.result.plan.connections == 3
    assert merged.result.server_cpu == 2.0
    assert [part.start for part in merged.parts] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"framing": "u32"}, "their framing is 'line' and 'u32'"),
        ({"size": "9"}, "their size is '64' and '9'"),
        ({"rate": 7.0}, "one is a closed loop, one is open"),
    ],
)
def test_what_did_not_do_the_same_is_not_merged(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        report.merge([*runs(100), *runs(100.5, **changes)])
    assert sentence in str(refused.value)


def test_a_run_is_not_merged_with_itself() -> None:
    with pytest.raises(ConfigError, match="are the same run"):
        report.merge(runs(100) * 2)


# -- plots


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG\r\n"), (".svg", b"<?xml"), (".SVG", b"<?xml")]
)
@pytest.mark.parametrize("count", [1, 3])
def test_plots_are_made(suffix: str, magic: bytes, count: int, tmp_path: Path) -> None:
    plot = plots()
    drawn = runs(*range(100, 100 + count))
    drawn[0].name = "_$x$\\frac.json"
    plot.draw(drawn, str(tmp_path / f"a{suffix}"))
    content = (tmp_path / f"a{suffix}").read_bytes()
    assert content.startswith(magic)
    assert len(content) > 20_000


def test_a_single_reply_is_plotted(tmp_path: Path) -> None:
    one = Result(Plan(), seconds=0.1, latency=recorded([5]))
    one.intervals = [Interval(0.0, 0.1, 1, slots([5])), Interval(0.1, 0.1, 0, slots([]))]
    plots().draw([report.Run.of(one)], str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_the_curve_ends_with_the_maximum() -> None:
    values = samples(4)
    xs, ys = plots().curve(recorded(values))
    assert (xs[0], xs[-1]) == (1, len(values))
    assert xs == sorted(xs)
    assert ys == sorted(ys)
    assert ys[-1] == report.longest(recorded(values))


def test_what_cannot_be_plotted_is_said(tmp_path: Path) -> None:
    plot = plots()
    with pytest.raises(ConfigError, match=r"a plot is a \.png or \.svg file"):
        plot.check("a.pdf")
    with pytest.raises(ConfigError, match="nothing to plot"):
        plot.draw([report.Run.of(Result(Plan()))], str(tmp_path / "a.png"))
    with pytest.raises(ConfigError, match="7 runs at most, not 8"):
        plot.draw(runs(*range(8)), str(tmp_path / "a.png"))
    with pytest.raises(FastechoError, match="cannot write"):
        plot.draw(runs(1), str(tmp_path / "none" / "a.png"))


def plots() -> Any:
    pytest.importorskip("matplotlib")
    from fastecho import plot

    return plot
