"""Replies one by one: together they are the echo's, each is what the reference says."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import strategies
from hypothesis import given
from hypothesis import strategies as st
from reference import Framing

from fastecho import framing as framings
from fastecho.faults.splitting import Splitter


@st.composite
def feeds(
    draw: st.DrawFn,
) -> tuple[Framing, tuple[bytes | str, ...], list[tuple[bytes, int]], int]:
    """A framing, a template, what comes with its times, when the stream ends."""
    parts = draw(strategies.templates())
    framing = draw(strategies.framings(reserve=strategies.longest(parts)))
    pieces = draw(strategies.cuts(draw(strategies.streams(framing))))
    times = draw(st.lists(strategies.times, min_size=len(pieces), max_size=len(pieces)))
    return framing, parts, list(zip(pieces, times, strict=True)), draw(strategies.times)


@given(feed=feeds(), peer=strategies.peers, room=st.sampled_from([0, 50, 10_000]))
def test_replies_are_the_echo_s_one_by_one(twin: Any, feed: Any, peer: bytes, room: int) -> None:
    framing, parts, pieces, end = feed
    cut = framings.parse(framing.spec)

    def echo() -> Any:
        return twin.Echo(framing.codec(twin), twin.Stamper(parts), peer)

    whole, splitter = echo(), Splitter(echo(), cut, room)
    for data, now_ns in pieces:
        due, found = whole.feed(data, now_ns), []
        while data:
            held = splitter.echo.pending
            consumed, replies = splitter.feed(data, now_ns)
            assert consumed
            added = sum(map(len, replies)) - consumed - held
            assert len(replies) < 2 or added <= room
            data = data[consumed:]
            found += replies
        assert b"".join(found) == due
        assert all(found)
        assert splitter.echo.messages == whole.messages
        assert (splitter.echo.offset, splitter.echo.pending) == (whole.offset, whole.pending)
    due = whole.finish(end)
    assert splitter.finish(end) == ([due] if due else [])
    assert repr(splitter.echo.error) == repr(whole.error)


@given(
    framing=strategies.framings(("delimiter", "length", "varint", "netstring")),
    messages=st.lists(st.binary(max_size=10), max_size=5),
)
def test_each_reply_is_its_message_s(twin: Any, framing: Framing, messages: list[bytes]) -> None:
    """In a plain echo each reply is the frame itself."""
    codec = framing.codec(twin)
    frames = []
    for message in messages:
        try:
            frames.append(codec.encode(message))
        except ValueError:
            continue
    echo = twin.Echo(framing.codec(twin), twin.Stamper(()))
    splitter = Splitter(echo, framings.parse(framing.spec), 1_000)
    stream = b"".join(frames)
    assert splitter.feed(stream, 0) == (len(stream), frames)


@given(st.data())
def test_a_frame_ends_where_a_codec_ends_it(twin: Any, data: st.DataObject) -> None:
    framing = data.draw(strategies.framings())
    size = framing.max_frame if framing.kind == "fixed" else data.draw(st.integers(0, 200_000))
    try:
        frame = framing.codec(twin).encode(bytes(size))
    except ValueError:
        return
    parsed = framings.parse(framing.spec)
    assert parsed.frame_end(bytearray(b"x" + frame * 2), 1, size) == 1 + len(frame)


def test_an_echo_that_does_not_add_up_is_found_out(twin: Any) -> None:
    """It is of one framing, and the sizes are those of another."""
    echo = twin.Echo(twin.VarintCodec(100), twin.Stamper(()))
    splitter = Splitter(echo, framings.parse("u32"), 1_000)
    with pytest.raises(RuntimeError, match="4 bytes of 1 replies, not 7"):
        splitter.feed(b"\3abc", 0)


@given(message=st.binary(max_size=20), shift=st.integers(1, 9))
def test_an_overlong_varint_is_answered_by_a_short_one(
    twin: Any, message: bytes, shift: int
) -> None:
    overlong = bytes([len(message) | 0x80]) + b"\x80" * (shift - 1) + b"\0"
    echo = twin.Echo(twin.VarintCodec(100), twin.Stamper((b"<>",)))
    splitter = Splitter(echo, framings.parse("varint"), 1_000)
    consumed, (reply,) = splitter.feed(overlong + message, 0)
    assert consumed == len(overlong + message)
    assert reply == reference.varint(len(message) + 2) + b"<>" + message
