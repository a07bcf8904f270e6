"""What the ledger and the comparison say about counts and ratios; nothing is measured."""

from __future__ import annotations

import copy
from typing import Any

import ledger
import pytest

# isort: split
import goals  # in versus/, where the ledger has had Python look
import ratios
import report

COSTS = {"instructions": 100.0, "allocations": 0.0, "calls": {"recvfrom": 1.0, "sendto": 1.0}}
ROWS = {"tcp-1": {ledger.NATIVE: COSTS}}


def said(within: float | None = ledger.TOLERANCE, **changed: Any) -> list[str]:
    new = {"tcp-1": copy.deepcopy(COSTS) | changed}
    return list(ledger.raised(ROWS, new, within))


def test_what_has_not_risen_is_no_trouble() -> None:
    assert said() == said(instructions=101.9) == said(instructions=50.0) == []
    assert said(calls={"recvfrom": 1.0}) == []


def test_what_has_risen_is_named_with_both_counts() -> None:
    (sentence,) = said(instructions=102.1)
    assert sentence.startswith("tcp-1 ")
    assert "102.1" in sentence
    assert "100.0" in sentence
    assert len(said(allocations=1.0)) == 1
    assert len(said(calls=COSTS["calls"] | {"recvfrom": 1.0625})) == 1
    assert len(said(calls=COSTS["calls"] | {"epoll_ctl": 1.0})) == 1


def test_a_row_that_the_ledger_lacks_is_named() -> None:
    assert "not in the ledger" in next(ledger.raised({}, {"tcp-1": COSTS}, None))


def test_other_compilers_make_other_instructions() -> None:
    here = {"gcc": "12", "python": "CPython 3.11.7"}
    assert ledger.tolerance(here, here) == ledger.TOLERANCE
    assert ledger.tolerance(here | {"python": "CPython 3.12.1"}, here) == ledger.OTHER_PYTHON
    assert ledger.tolerance(here | {"gcc": "13"}, here) is None
    assert said(None, instructions=1e9) == []
    assert said(None, allocations=1.0) != []


DUMP = """fn=(1) serve
10 100
cfn=(2) malloc
calls=3 0
20 60
cfn=(3) PyObject_Malloc
calls=5 0
30 70
fn=(3)
cfn=(2)
calls=5 0
40 80
fn=(4) loop
cfn=(5) epoll_wait
calls=2 0
totals: 1234
"""


def test_a_dump_gives_instructions_allocations_once_each_and_waits() -> None:
    assert ledger.read_dump(DUMP) == ledger.Count(instructions=1234, allocations=8, waits=2)


def run(*ratios: float) -> dict[str, Any]:
    """A run of one kind of work, with these ratios of fastecho's cost to C's in its rounds."""
    rows = [
        {"peer": peer, "why_not": "", "ratios": [list(found)], "ratio": report.interval(found)}
        for peer, found in (("epoll", [1.0] * len(ratios)), ("fastecho", ratios))
    ]
    peers = {"epoll": {"title": "C epoll"}, "fastecho": {"title": "fastecho"}}
    return {"kinds": {"tcp-16": rows}, "peers": peers}


def test_two_runs_agree_if_their_intervals_meet(capsys) -> None:
    one, near, far = run(1.0, 1.1, 1.2), run(1.2, 1.3, 1.4), run(1.3, 1.4, 1.5)
    assert report.agreement(one, one) == report.agreement(one, near) == 0
    assert report.agreement(one, far) == 1
    assert "they disagree" in capsys.readouterr().out
    assert report.agreement(one, {"kinds": {}, "peers": {}}) == 2


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [((1.0, 1.01, 1.02), "yes"), ((1.01, 1.02, 1.03), "not told"), ((1.03, 1.04, 1.05), "no")],
)
def test_a_goal_is_reached_by_its_whole_interval(ratios, verdict) -> None:
    (goal,) = [each for each in goals.all_goals(run(*ratios)) if "CPU" in each.what]
    assert goal.reached == verdict


def test_what_differs_between_sittings_belongs_to_the_interval() -> None:
    steady = [1.0, 1.01, 1.02]
    middle, low, high = ratios.settled([steady, steady])
    assert middle == low == high == 1.01
    middle, low, high = ratios.settled([steady, [each + 0.1 for each in steady], steady])
    assert low < 1.01 <= middle <= 1.11 < high
    assert ratios.settled([steady]) == ratios.interval(steady)
