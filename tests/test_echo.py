"""The echo as a library: specs and templates as they are written, and the clock."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import strategies
from hypothesis import assume, given
from hypothesis import strategies as st
from reference import judge, render, reply

from fastecho import Echo
from fastecho.errors import ConfigError, FrameCorrupt, FrameTooLong

pytestmark = pytest.mark.usefixtures("utc")
NOW = 1_795_347_400_123_456_789
STAMP = b"[Sun Nov 22 11:36:40 2026]"


def test_lines_and_the_time_by_default(twin: Any) -> None:
    echo = Echo(backend=twin.name)
    said = echo.feed(b"he", now_ns=0) + echo.feed(b"llo\r\nwor", now_ns=NOW)
    assert said == STAMP + b"hello\r\n"
    assert (echo.messages, echo.offset, echo.pending, echo.error) == (1, 7, 3, None)
    assert echo.finish(now_ns=0) == b"[Thu Jan  1 00:00:00 1970]wor"
    assert (echo.messages, echo.offset, echo.pending, echo.error) == (2, 10, 0, None)


def test_an_empty_template_makes_a_plain_echo(twin: Any) -> None:
    echo = Echo(prefix="", backend=twin.name)
    assert echo.feed(b"a\n\nb\n") == b"a\n\nb\n"


@given(st.data())
def test_replies_are_what_the_reference_says(twin: Any, data: st.DataObject) -> None:
    pieces: list[bytes | str] = ["ctime", "utc", "epoch_us", "seq", "len", b"<", b"|"]
    parts = tuple(data.draw(st.lists(st.sampled_from(pieces), max_size=3)))
    template = "".join(p.decode() if isinstance(p, bytes) else "{" + p + "}" for p in parts)
    wanted = data.draw(strategies.framings(reserve=strategies.longest(parts)))
    stream = data.draw(strategies.streams(wanted))
    limit = None if wanted.kind in ("raw", "fixed") else wanted.max_frame
    try:
        echo = Echo(wanted.spec, template, limit, backend=twin.name)
    except ConfigError:
        assert wanted.kind in ("delimiter", "any")
        assume(False)
    said = echo.feed(stream, NOW)
    verdict = judge(wanted, stream)
    prefixes = [
        render(parts, NOW, seq, len(message)) for seq, message in enumerate(verdict.messages, 1)
    ]
    pairs = list(zip(verdict.frames, prefixes, strict=True))
    assert said == b"".join(reply(wanted, frame, prefix) for frame, prefix in pairs)
    assert (echo.messages, echo.offset) == (len(verdict.frames), verdict.offset)
    if wanted.kind not in ("raw", "fixed"):  # whoever knows the framing reads just these replies
        heard = judge(replace(wanted, max_frame=2**30), said)
        assert heard.messages == [prefix + frame.message for frame, prefix in pairs]
        assert (heard.reason, heard.pending) == (None, 0)


# -- the clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What the clocks show."""
    shown = {"real": NOW, "mono": 5}
    monkeypatch.setattr(time, "time_ns", lambda: shown["real"])
    monkeypatch.setattr(time, "monotonic_ns", lambda: shown["mono"])
    return shown


def test_the_clock_is_read_where_no_time_is_given(twin: Any, clock: dict[str, int]) -> None:
    echo = Echo(prefix="{epoch_ns} ", backend=twin.name)
    clock["real"] = 11
    assert echo.feed(b"a\n") == b"11 a\n"
    clock["real"] = 12
    out = bytearray(9)
    assert echo.feed_into(b"b\nc", out) == (3, 5)
    assert out[:5] == b"12 b\n"
    clock["real"] = 13
    assert echo.finish() == b"13 c"


def test_time_zero_is_a_time(twin: Any, clock: dict[str, int]) -> None:
    echo = Echo(prefix="{epoch_ns} ", backend=twin.name)
    assert echo.feed(b"a\n", 0) == b"0 a\n"
    out = bytearray(9)
    assert echo.feed_into(b"b\n", out, 0) == (2, 4)
    assert out[:4] == b"0 b\n"
    assert echo.feed(b"c", now_ns=0) == b""
    assert echo.finish(now_ns=0) == b"0 c"


def test_the_monotonic_clock_is_read_with_the_other(twin: Any, clock: dict[str, int]) -> None:
    echo = Echo(prefix="{mono_ns} ", backend=twin.name)
    assert echo.feed(b"a\n") == b"5 a\n"
    clock.update(real=NOW + 100, mono=7)
    assert echo.feed(b"b\n") == b"7 b\n"
    assert echo.feed(b"c\n", NOW + 103) == b"10 c\n"


def test_the_clock_is_the_real_one(twin: Any) -> None:
    before = time.time_ns()
    said = Echo(prefix="{epoch_ns} {mono_ns} ", backend=twin.name).feed(b"\n")
    real, mono = map(int, said.split())
    assert before <= real <= time.time_ns()
    assert mono <= time.monotonic_ns()


# -- limits


def test_the_default_limit_leaves_room_for_the_prefix(twin: Any) -> None:
    for spec, room, width in (("u8", 229, 1), ("u16", 65_509, 2), ("u24", 65_536, 3)):
        echo = Echo(spec, backend=twin.name)
        fitting = room.to_bytes(width, "big") + b"m" * room
        assert echo.feed(fitting, NOW) == (room + 26).to_bytes(width, "big") + STAMP + b"m" * room
        assert echo.feed((room + 1).to_bytes(width, "big"), NOW) == b""
        assert isinstance(echo.error, FrameTooLong)


def test_a_limit_that_was_asked_for_is_never_lowered(twin: Any) -> None:
    assert Echo("u8", max_frame=229, backend=twin.name).error is None
    with pytest.raises(ConfigError, match=r"255.*max_frame=230.*26"):
        Echo("u8", max_frame=230, backend=twin.name)
    assert Echo("u8", "", 255, backend=twin.name).error is None
    with pytest.raises(ConfigError):
        Echo("u8", "", 256, backend=twin.name)


def test_a_prefix_that_a_length_field_cannot_hold_is_refused(twin: Any) -> None:
    with pytest.raises(ConfigError, match=r"255"):
        Echo("u8", "{peer}{peer}", backend=twin.name)
    with pytest.raises(ConfigError, match=r"26"):
        Echo("length:width=1,adjust=-229", backend=twin.name)
    echo = Echo("length:width=1,adjust=-228", backend=twin.name)
    assert echo.feed(b"\xe5m", NOW) == b"\xff" + STAMP + b"m"


def test_the_limit_counts_the_message_alone(twin: Any) -> None:
    echo = Echo("line", max_frame=3, backend=twin.name)
    assert echo.feed(b"abc\nab\r\nabcd\n", NOW) == STAMP + b"abc\n" + STAMP + b"ab\r\n"
    assert echo.error is not None
    assert (echo.error.reason, echo.error.offset) == ("too_long", 8)


# -- a peer's bad bytes are data


def test_a_fault_is_data(twin: Any) -> None:
    echo = Echo("netstring", "", backend=twin.name)
    assert echo.feed(b"1:a,1:b;1:c,") == b"1:a,"
    assert isinstance(echo.error, FrameCorrupt)
    assert echo.error.offset == 4
    assert echo.feed(b"1:d,") == b""
    assert echo.finish() == b""
    assert (echo.messages, echo.offset, echo.pending) == (1, 4, 0)


def test_nothing_after_finish(twin: Any) -> None:
    echo = Echo(backend=twin.name)
    echo.finish()
    for wrong in (
        lambda: echo.feed(b""),
        lambda: echo.feed_into(b"", bytearray(9)),
        echo.finish,
    ):
        with pytest.raises(ValueError, match=r"after finish\(\)"):
            wrong()


# -- the peer


@pytest.mark.parametrize(
    ("peer", "shown"),
    [
        ("", b""),
        ("127.0.0.1:50123", b"127.0.0.1:50123"),
        ("[::1]:50123", b"[::1]:50123"),
        ("unix:/run/x y", b"unix:/run/x y"),
        ("unix:\n\x1b[2J", rb"unix:\n\x1b[2J"),
        ("unix:é", rb"unix:\xe9"),
    ],
)
def test_the_peer_is_shown_escaped(twin: Any, peer: str, shown: bytes) -> None:
    echo = Echo(prefix="<{peer}>", peer=peer, backend=twin.name)
    assert echo.feed(b"x\n") == b"<" + shown + b">x\n"


def test_a_peer_is_bounded(twin: Any) -> None:
    assert Echo(peer="p" * 128, backend=twin.name).messages == 0
    with pytest.raises(ConfigError, match=r"128"):
        Echo(peer="p" * 129, backend=twin.name)


# -- configuration


@pytest.mark.parametrize(
    "settings",
    [
        {"framing": "lines"},
        {"prefix": "{nope}"},
        {"prefix": "a\nb"},
        {"prefix": "\r", "framing": "delimiter:0d0a"},
        {"prefix": "x" * 65_536},
        {"max_frame": 0},
        {"max_frame": 2**30 + 1},
        {"framing": "fixed:5", "max_frame": 4},
        {"backend": "fast"},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_one_sentence(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Echo(**settings)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_delimiter_is_no_matter_to_a_length(twin: Any) -> None:
    assert Echo("u8", "a\nb", backend=twin.name).feed(b"\1x") == b"\4a\nbx"


def test_the_backend_can_be_chosen_for_one_object(twin: Any) -> None:
    from fastecho import framing

    assert type(framing.codec("line", backend=twin.name)) is twin.DelimiterCodec
