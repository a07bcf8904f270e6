"""`fastecho bench`: what it says, and that its figures are those of what it measured."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import socket
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import FASTECHO, run

import fastecho
from fastecho import backend, cli, comparison, workloads
from fastecho.comparison import LINE, Compared, Measured, Trip
from fastecho.errors import ConfigError, FastechoError
from fastecho.workloads import WrongReply

DOCS = Path(__file__).parents[1] / "docs"
#: Seconds; starting two daemons and, perhaps, matplotlib is most of it.
PATIENCE = 50.0

needs_native = pytest.mark.skipif(
    not backend.native_built(), reason="the native backend is not built"
)


# -- statistics


@given(st.lists(st.floats(-1e9, 1e9), min_size=6, max_size=60))
def test_the_interval_is_the_narrowest_that_is_sure_enough(values: list[float]) -> None:
    """The median is below the k-th of n values if k or more tosses of n are heads."""
    ordered, n = sorted(values), len(values)

    def covered(k: int) -> float:
        outside = sum(math.comb(n, heads) for heads in range(k))
        return 1 - 2 * outside / 2**n

    k = max(k for k in range(1, n // 2 + 1) if covered(k) >= comparison.SURE)
    assert comparison.interval(values) == (ordered[k - 1], ordered[n - k])


def test_of_thirty_values_it_is_the_tenth_and_the_twenty_first() -> None:
    assert comparison.interval(range(1, 31)) == (10, 21)
    assert comparison.interval([5]) == (5, 5)
    assert comparison.interval(range(1, 6)) == (1, 5)


class Work:
    """Two kinds of work on a clock of their own, which runs while they do."""

    def __init__(self, *costs: int) -> None:
        self.now = 0
        self.order: list[int] = []
        self.rounds = tuple(self._round(which, cost) for which, cost in enumerate(costs))

    def _round(self, which: int, cost: int) -> Callable[[], None]:
        def one_round() -> None:
            self.now += cost
            if self.order[-1:] != [which]:
                self.order.append(which)

        return one_round

    def clock(self) -> int:
        return self.now


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 9))
def test_what_takes_so_many_times_as_long_is_said_to(a: int, b: int, windows: int) -> None:
    work = Work(a, b)
    cpu, _ = comparison.compare(work.rounds, (work.clock, work.clock), windows, 1e-5)
    assert cpu == pytest.approx((a, b, b / a, b / a, b / a))


def test_the_order_is_abba() -> None:
    work = Work(1, 1)
    comparison.compare(work.rounds, (work.clock, work.clock), 4, 1e-5)
    # Two to find out how many rounds there are; then AB BA AB BA, neighbours being one.
    assert work.order == [0, 1, 0, 1, 0, 1, 0]


def test_a_clock_that_does_not_move_has_no_ratio() -> None:
    work = Work(0, 0)
    cpu, _ = comparison.compare(work.rounds, (work.clock, work.clock), 2, 1e-5)
    assert math.isnan(cpu.ratio)
    assert not Measured("itself", "line", 32, cpu).believable


# -- what is measured does its work


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


STAMPED = b"[Thu Jan  1 00:00:00 2026]" + LINE


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (STAMPED.replace(b"0123", b"0124"), "does not answer as it should"),
        (STAMPED.replace(b"Jan", b"\0an"), "does not answer as it should"),
        (STAMPED * 2, "does not answer as it should"),
        (STAMPED[:-1], "the server has closed"),
        (b"", "the server has closed"),
    ],
)
def test_a_wrong_reply_is_not_timed(
    reply: bytes, words: str, ends: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = ends
    theirs.sendall(reply)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(WrongReply, match=words):
        Trip(ours, 1)


def test_right_replies_are(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.sendall(STAMPED)
    trip = Trip(ours, 1)
    assert theirs.recv(1000) == LINE
    ours.setblocking(False)
    with pytest.raises(WrongReply, match="no reply within"):
        trip()


def test_twins_that_differ_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    load = workloads.workload("line", 32)
    pure = workloads.Workload.echo
    monkeypatch.setattr(
        workloads.Workload,
        "echo",
        lambda self, twin: (
            pure(self, "pure")
            if twin == "pure"
            else workloads.echo.pattern(backend.load("pure"), "line", "{epoch}", None)
        ),
    )
    with pytest.raises(WrongReply, match="the twins differ over line, 32 bytes"):
        load.check()


def test_a_twin_that_does_not_answer_all_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    load = workloads.workload("line", 32)._replace(messages=7)
    monkeypatch.setattr(workloads, "BACKENDS", ("pure",))
    with pytest.raises(WrongReply, match="pure does not answer every message of line"):
        load.check()


def test_a_daemon_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FastechoError, match=r"the none server did not start: fastecho: "):
        comparison.Daemon("none")


def test_the_daemon_has_its_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fastecho.toml").write_text("framing = 'u8'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTECHO_PREFIX", "?")
    with comparison.Daemon("pure") as daemon, daemon.connect(socket.SOCK_STREAM) as sock:
        Trip(sock, 3)()
        assert daemon.cpu_ns() > 0


def test_our_cores_are_ours_again() -> None:
    before = os.sched_getaffinity(0)
    with comparison.pinned():
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


# -- the command


def keys(value: Any) -> set[str]:
    """All names in a JSON value."""
    if isinstance(value, list):
        return set().union(*map(keys, value))
    if not isinstance(value, dict):
        return set()
    return set(value).union(*map(keys, value.values()))


@needs_native
def test_a_quick_run(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    words = ["--quick", "line", "u8", "trips", "--json", str(file)]
    done = run(*FASTECHO, "bench", *words, patience=PATIENCE)
    assert (done.returncode, done.stderr) == (0, b"")
    shown = done.stdout.decode().splitlines()
    assert shown[0] == f"fastecho {fastecho.__version__}: native against pure"
    assert max(map(len, shown)) <= 80
    rows = [line for line in shown if re.search(r"\d-\d", line)]
    names = [re.split(r"  +", line.strip())[0] for line in rows]
    assert names == [
        "native with itself",
        "line",
        "bytes.replace",
        "line",
        "bytes.replace",
        "u8",
        "native with itself",
        "TCP, 1 in flight",
        "TCP, 16 in flight",
        "UDP, 1 in flight",
    ]
    found = json.loads(file.read_text())
    assert (found["command"], found["schema"]) == ("bench", 1)
    assert found["machine"]["fastecho"] == fastecho.__version__
    assert [each["kind"] for each in found["results"]].count("trips") == 3
    for each in found["results"]:
        cpu = each["cpu_ns_per_message"]
        assert min(cpu["native"], cpu["pure"], cpu["ratio_low"]) > 0
        assert cpu["ratio_low"] <= cpu["ratio"] <= cpu["ratio_high"]
        in_trips = each["name"].endswith("in flight")
        assert (each["round_trip_ns"] is not None) == in_trips
    documented = set(re.findall(r"`(\w+)`", (DOCS / "bench.md").read_text()))
    assert keys(found) - documented == set()


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line here: status, both outputs."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastecho", "bench", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


def result(kind: str, name: str, size: int, ratio: float, low: float = 0.0) -> Measured:
    cpu = Compared(10.0, 10.0 * ratio, ratio, low or ratio, ratio * 1.1)
    return Measured(kind, name, size, cpu, cpu if kind == "trips" else None)


ALL = [
    result("itself", "line", 32, 1.0),
    *(result("stamping", name, size, 12.345) for name, size in workloads.combinations()),
    result("reference", "bytes.replace", 32, 2.5),
    result("trips", "TCP, 1 in flight", 32, 1.5),
]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Measured]], None]:
    """Have these results, or this error, come out."""

    def give(results: list[Measured]) -> None:
        monkeypatch.setattr(comparison, "run", lambda *_: iter(results))

    return give


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_picture(
    kind: str,
    tmp_path: Path,
    command: Callable[..., tuple[int, str, str]],
    measured: Callable[[list[Measured]], None],
) -> None:
    pytest.importorskip("matplotlib")
    measured(ALL)
    file = tmp_path / f"bench.{kind}"
    status, _, said = command("--plot", str(file))
    assert (status, said) == (0, "")
    assert file.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[kind])


@pytest.mark.parametrize("some", [ALL[-1:], ALL[1:3]])
def test_a_picture_of_few_results(some: list[Measured], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from fastecho import machine
    from fastecho.cli.bench_plot import draw

    draw(some, machine.describe("0"), str(tmp_path / "few.svg"))
    assert (tmp_path / "few.svg").stat().st_size > 0


def test_every_line_fits_a_terminal(
    command: Callable[..., tuple[int, str, str]], measured: Callable[[list[Measured]], None]
) -> None:
    extreme = Compared(123_456.7, 1_234_567.8, 10.0, 9.996, 999.94)
    large = Measured("trips", "TCP, 16 in flight", 8_192, extreme, extreme)
    small = Measured("stamping", "delimiter:0d0a", 8, Compared(0.5, 1e6, 2e6, 1.0, 1.0))
    measured([*ALL[:-1], large, large, small])
    _, shown, _ = command()
    rows = shown.splitlines()[4:]
    assert max(map(len, rows[:-8])) == 80


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (ALL, "Native is ahead everywhere."),
        ([result("stamping", "u8", 8, 1.1, 0.99)], "Native is not ahead: u8, 8 bytes."),
        ([result("itself", "line", 32, 1.2)], "Not to be believed today: "),
        ([result("itself", "line", 32, math.nan)], "Not to be believed today: "),
    ],
)
def test_the_verdict(
    results: list[Measured],
    words: str,
    command: Callable[..., tuple[int, str, str]],
    measured: Callable[[list[Measured]], None],
) -> None:
    measured(results)
    status, shown, _ = command()
    assert status == 0
    assert words in shown


def test_a_wrong_reply_is_status_1(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Iterator[Measured]:
        raise WrongReply("the twins differ")
        yield

    monkeypatch.setattr(comparison, "run", fail)
    status, _, said = command()
    assert (status, said) == (1, "fastecho: the twins differ\n")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["lines"], 2, "no framing 'lines' here: choose from line, "),
        (["--plot", "a.pdf"], 2, "cannot draw 'a.pdf': its name must end in .png or .svg"),
        (["--json", "/no/such/place"], 3, "cannot write /no/such/place: no such file"),
        (["--plot", "/no/such/place.png"], 3, "cannot write /no/such/place.png: no such file"),
        (["--slow"], 2, "No such option"),
    ],
)
def test_what_cannot_be_is_said(
    words: list[str], status: int, said: str, command: Callable[..., tuple[int, str, str]]
) -> None:
    ended, _, sentence = command(*words)
    assert ended == status
    assert sentence.startswith(f"fastecho: {said}")
    assert sentence.count("\n") == 1


def test_no_matplotlib_is_said(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert command("--plot", "a.png") == (
        3,
        "",
        "fastecho: --plot needs matplotlib: pip install 'fastecho[plot]'\n",
    )


def test_no_native_twin_is_said(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str | None = None) -> backend.Twin:
        raise ConfigError("the native backend was not built here")

    monkeypatch.setattr(backend, "load", load)
    status, _, said = command("--quick", "line")
    assert (status, said) == (2, "fastecho: the native backend was not built here\n")


@needs_native
def test_only_what_was_asked_for_is_measured() -> None:
    effort = comparison.Effort((32,), 2, 1e-4, 1e-4)
    told: list[str] = []
    found = list(comparison.run(effort, ["netstring"], told.append))
    assert [(each.kind, each.name) for each in found] == [
        ("itself", "line"),
        ("stamping", "netstring"),
    ]
    assert told == ["framing and stamping"]
    assert statistics.fmean(each.cpu.first for each in found) > 0
