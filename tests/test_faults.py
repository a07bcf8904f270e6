"""Fault plans: read from a text or a table, written back; one sentence where they make no sense."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import plans
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastecho import ConfigError
from fastecho.faults.decisions import EFFECTS
from fastecho.faults.plan import FAULTS, SHARED, Fault, Plan, from_table, parse
from fastecho.faults.quantities import Range
from fastecho.settings import Settings

DOCS = Path(__file__).parents[1] / "docs" / "faults.md"


def refusal(plan: Any) -> str:
    """The sentence that refuses it."""
    with pytest.raises(ConfigError) as caught:
        parse(plan) if isinstance(plan, str) else from_table(plan)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- right


@given(plans.tables(), st.sampled_from(["", " ", "\t", " \n"]))
def test_a_text_says_what_a_table_says_whatever_the_spaces(
    table: dict[str, dict[str, str]], space: str
) -> None:
    plan = parse(plans.text(table, space))
    assert plan == from_table(table)
    assert [each.fault.name for each in plan.faults] == list(table)


@given(plans.tables())
def test_a_plan_is_written_as_it_can_be_read(table: dict[str, dict[str, str]]) -> None:
    plan = from_table(table)
    assert parse(plan.text) == plan
    assert parse(plan.text).text == plan.text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("", ""),
        (" ; ;", ""),
        ("walk", "walk"),
        (" walk ;", "walk"),
        ("slice : size = 1-5 , pause = 5ms", "slice:size=1-5,pause=5ms"),
        ("slice:size=1,pause=0,p=1,from=1", "slice"),
        ("drop:p=1%", "drop:p=0.01"),
        ("delay:p=50%,time=0.1-0.2s;walk", "delay:time=100ms-200ms,p=0.5; walk"),
        ("truncate:at=7;reset:after=0-3", "truncate:at=7; reset:after=0-3"),
    ],
)
def test_the_text_leaves_out_what_is_so_anyway(text: str, written: str) -> None:
    assert parse(text).text == written


def test_values_of_a_table_may_be_numbers() -> None:
    table = {"slice": {"size": 5, "pause": 0.005, "p": 0.5, "from": 3}, "delay": {"time": 1e-5}}
    assert from_table(table) == parse("slice:size=5,pause=5ms,p=50%,from=3; delay:time=10us")


def test_what_is_left_out_has_its_default() -> None:
    (each,) = parse("slow-read").faults
    assert (each.p, each.first) == (1, 1)
    assert each.values == {"window": 4096, "size": 512, "pause": 0.01}
    (each,) = parse("truncate").faults
    assert each.values == {"at": None}
    (each,) = parse("delay").faults
    assert each.values == {"time": Range(0.1, 0.1)}


def test_a_plan_of_no_faults_is_false() -> None:
    assert not Plan()
    assert not parse("")
    assert not from_table({})
    assert parse("walk:p=0")


def test_a_plan_says_where_it_can_strike() -> None:
    plan = parse("walk; corrupt; drop; late-accept; reorder; swap")
    assert plan.for_streams == ("walk", "corrupt", "late-accept", "swap")
    assert plan.for_datagrams == ("corrupt", "drop", "reorder")


def test_a_window_is_wanted_by_slow_read_alone() -> None:
    assert parse("walk").window is None
    assert parse("walk; slow-read:window=2048,p=1%").window == 2048


# -- wrong


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ("wakl", "unknown fault 'wakl': did you mean walk?"),
        ("Walk", "unknown fault 'Walk': did you mean walk?"),
        ("slow_read", "unknown fault 'slow_read': did you mean slow-read?"),
        ("zzz", f"unknown fault 'zzz': choose from {', '.join(FAULTS)}"),
        (":p=1", f"unknown fault '': choose from {', '.join(FAULTS)}"),
        ("walk,drop", "unknown fault 'walk,drop': did you mean walk?"),
        ("slice:sizes=1", "unknown key 'sizes' of slice: did you mean size?"),
        ("slice:x=1", "unknown key 'x' of slice: choose from size, pause, p, from"),
        ("drop:size=1", "unknown key 'size' of drop: choose from p, from"),
        ("walk:", "'' of walk makes no sense: write KEY=VALUE"),
        ("slice:5", "'5' of slice makes no sense: write KEY=VALUE"),
        ("slice:size=1,", "'' of slice makes no sense: write KEY=VALUE"),
        ("slice:size=1,size=2", "'size' stands twice in slice"),
        ("walk; drop; walk", "walk stands twice: a plan has each fault once"),
        (
            "slice:size=0",
            "size of slice must be bytes, from 1 to 1,073,741,824, or a range such as 1-5, not '0'",
        ),
        (
            "slice:size=5-1",
            "size of slice must be bytes, from 1 to 1,073,741,824, or a range such as 1-5, not '5-",
        ),
        ("drop:p=2", "p of drop must be a probability from 0 to 1, such as 0.01 or 1%, not '2'"),
        ("drop:p=", "p of drop must be a probability from 0 to 1, such as 0.01 or 1%, not ''"),
        (
            "jitter:time=2h",
            "time of jitter must be a time such as 100ms or 1.5s, up to an hour, not '2h'",
        ),
        (
            "bandwidth:rate=0",
            "rate of bandwidth must be bytes a second such as 500 or 10k, from 1 to 1,000,000,000,",
        ),
        ("coalesce:count=1", "count of coalesce must be a whole number from 2 to 256, not '1'"),
        ("corrupt:bits=65537", "bits of corrupt must be a whole number from 1 to 65,536, not "),
        ("walk:from=0", "from of walk must be a whole number from 1 to 9,223,372,036,854,775,807"),
        ({"walk": 1}, "walk must be a table of its keys, not 1"),
        ({"walk": "p=1"}, "walk must be a table of its keys, not 'p=1'"),
        ({"walk": {"p": True}}, "p of walk must be a probability from 0 to 1, such as 0.01 or 1%"),
        ({"walk": {"q": []}}, "unknown key 'q' of walk: choose from pause, p, from"),
        ({"slice": {"size": 1.0}}, "size of slice must be bytes, from 1 to"),
        ({1: {}}, "unknown fault 1: choose from "),
        ({"walk": {1: 1}}, "unknown key 1 of walk: choose from "),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(plan: Any, sentence: str) -> None:
    assert refusal(plan).startswith(sentence)


@given(st.text(max_size=30) | st.text("walkdrop:;=,p1% -", max_size=30))
def test_any_text_is_a_plan_or_a_sentence(text: str) -> None:
    try:
        plan = parse(text)
    except ConfigError:
        refusal(text)
    else:
        assert parse(plan.text) == plan


@pytest.mark.parametrize(
    ("text", "streams", "datagrams", "sentence"),
    [
        (
            "walk",
            False,
            True,
            "walk strikes streams alone, and none is listened on: name an address with tcp:// or u",
        ),
        (
            "drop; delay; reorder",
            True,
            False,
            "drop and reorder strike datagrams alone, and none is listened on: name an address wit",
        ),
        ("late-accept", False, True, "late-accept strikes streams alone"),
    ],
)
def test_a_fault_that_can_strike_nothing_is_named(
    text: str, streams: bool, datagrams: bool, sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text).check(streams, datagrams)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("text", ["", "walk; drop", "delay", "corrupt; truncate"])
def test_faults_that_can_strike_something_are_right(text: str) -> None:
    plan = parse(text)
    plan.check(True, True)
    if plan.for_streams == plan.for_datagrams:
        plan.check(True, False)
        plan.check(False, True)


# -- the table


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_each_fault_does_something_and_its_defaults_are_right(fault: Fault) -> None:
    assert fault.name in EFFECTS
    assert fault.sockets in ("streams", "datagrams", "both")
    for key in (*fault.keys, *SHARED):
        assert not key.default or key.kind.write(key.kind.read(key.default)) == key.default
    names = [key.name for key in (*fault.keys, *SHARED)]
    assert len(set(names)) == len(names)


def test_nothing_is_done_that_is_no_fault() -> None:
    assert EFFECTS.keys() == FAULTS.keys()


def rows() -> dict[str, list[str]]:
    """The table of docs/faults.md by fault: where it strikes, keys, what it does."""
    table = DOCS.read_text().partition("### ")[0]
    found = re.findall(r"^\| `([a-z-]+)` \|(.*)\|$", table, re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split(" | ")] for name, cells in found}


def test_the_docs_list_the_faults_in_the_order_in_which_they_apply() -> None:
    assert list(rows()) == list(FAULTS)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_the_docs_say_what_a_fault_strikes_and_can_be_told(fault: Fault) -> None:
    sockets, keys, told = rows()[fault.name]
    assert sockets == fault.sockets
    shown = [
        f"`{key.name}={key.default}`" if key.default else f"`{key.name}=`" for key in fault.keys
    ]
    assert re.findall(r"`[^`]+`", keys) == shown
    assert told == fault.told


def test_the_plans_of_the_docs_are_right() -> None:
    """Those in blocks that no other test runs."""
    (table,) = re.findall(r"^```toml\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    written = "walk; corrupt:p=0.01; delay:time=50ms-100ms,p=0.1"
    assert Settings.of(**tomllib.loads(table)).plan.text == written
    commands = re.findall(r"^fastecho (--.*)$", DOCS.read_text(), re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command)
        flags = {
            flag.removeprefix("--"): value
            for flag, value in zip(words[::2], words[1::2], strict=True)
        }
        assert Settings.of(**flags).plan
