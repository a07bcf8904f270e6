"""What `fastecho.load` can be asked for: sizes, and plans that make no sense."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import OWN_HOST

from fastecho import limits
from fastecho.errors import ConfigError
from fastecho.load import Load, Plan, sizes

# -- sizes


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("64", [(64, 64, 1.0)]),
        ("0", [(0, 0, 1.0)]),
        ("40-80", [(40, 80, 1.0)]),
        ("5-5", [(5, 5, 1.0)]),
        ("64:90,1400:10", [(64, 64, 90.0), (1400, 1400, 10.0)]),
        ("1-9:0.5, 20:0", [(1, 9, 0.5), (20, 20, 0.0)]),
        (str(limits.MAX_FRAME_CEILING), [(2**30, 2**30, 1.0)]),
    ],
)
def test_sizes(text: str, wanted: list[tuple[int, int, float]]) -> None:
    assert sizes(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "64,",
        "x",
        "-5",
        "5-",
        "9-5",
        "1e3",
        "64:",
        "64:-1",
        "64::1",
        "64:nan",
        "64:1:1",
        "6 4",
        "0x40",
        "1.5",
        "٦٤",
        "64k",
        str(2**30 + 1),
        "9" * 11,
        "64:0",
        "64:0,5:0",
        "4;5",
    ],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^\S.*(write bytes \(64\)|weight above 0)") as caught:
        sizes(text)
    assert "\n" not in str(caught.value)


@settings(max_examples=50)
@given(st.text("0123456789-:,. \u0666x", max_size=12))
def test_any_size_is_understood_or_refused(text: str) -> None:
    with suppress(ConfigError):
        parts = sizes(text)
        assert all(0 <= least <= most and weight >= 0 for least, most, weight in parts)
        assert sum(weight for *_, weight in parts) > 0


# -- wrong usage


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"connections": 0}, "connections must be a whole number from 1 to"),
        ({"connections": 2.5}, "connections must be a whole number"),
        ({"connections": 2**21}, "connections must be"),
        ({"pipeline": 0}, "pipeline must be a whole number from 1 to 65,536"),
        ({"pipeline": 2**17}, "pipeline must be"),
        ({"pipeline": True}, "pipeline must be"),
        ({"warmup": -1}, "warmup must be seconds"),
        ({"warmup": "1"}, "warmup must be seconds"),
        ({"duration": float("nan")}, "duration must be seconds"),
        ({"duration": -0.5}, "duration must be seconds"),
        ({"timeout": float("inf")}, "timeout must be seconds"),
        ({"timeout": 0}, "timeout must be above 0"),
        ({"messages": 0}, "messages must be a whole number from 1"),
        ({"messages": 1.0}, "messages must be a whole number"),
        ({"duration": None}, "a run needs a duration or a number of messages"),
        ({"rate": 0}, "rate must be from 0.001 to 1e9"),
        ({"rate": -5}, "rate must be"),
        ({"rate": 1e-6}, "rate must be"),
        ({"rate": 2e9}, "rate must be"),
        ({"rate": float("nan")}, "rate must be"),
        ({"rate": "fast"}, "rate must be"),
        ({"arrivals": "random"}, "arrivals must be uniform or poisson, not 'random'"),
        ({"framing": "raw", "pipeline": 2}, "it needs a pipeline of 1"),
        ({"pid": 0}, "pid must be a whole number from 1"),
        ({"pid": "1"}, "pid must be"),
    ],
)
def test_a_plan_that_makes_no_sense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        Plan(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"address": "fd://3"}, "inherited descriptor"),
        ({"address": "127.0.0.1:0"}, "port 0 is for listening"),
        ({"address": "127.0.0.1"}, "127.0.0.1"),
        ({"address": "unix:/x", "udp": True}, "no UDP address"),
        ({"framing": "lines"}, "did you mean line?"),
        ({"framing": "fixed:8"}, "no message takes 64 bytes on the wire"),
        ({"framing": "fixed:64", "prefix": "{seq}"}, "one width"),
        ({"framing": "fixed:64", "prefix": "{pid}"}, "one width"),
        ({"framing": "u8", "size": "250"}, "announces at most 255 bytes: a reply can have 275"),
        ({"framing": "u32", "size": "3"}, "no message takes 3 bytes"),
        ({"framing": "line", "size": "0"}, "no message takes 0 bytes"),
        ({"framing": "netstring", "size": "13"}, "no message takes 13 bytes"),
        ({"framing": "delimiter:20"}, "can render the delimiter"),
        ({"framing": "any:0a,20"}, "can render the delimiter b' '"),
        (
            {"framing": "delimiter:" + bytes(range(0x21, 0x74)).hex(), "prefix": ""},
            "leaves too few letters",
        ),
        ({"prefix": "{time}"}, "has no token {time}"),
        ({"prefix": "{"}, "lone"),
        ({"prefix": "x" * 70_000}, "at most 65,535 are possible"),
        ({"size": "many"}, "write bytes (64)"),
        ({"backend": "rust"}, "unknown backend"),
    ],
)
def test_a_load_that_makes_no_sense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        Load(Plan(**{"address": f"{OWN_HOST}:1", **options}))
    assert "\n" not in str(caught.value)
