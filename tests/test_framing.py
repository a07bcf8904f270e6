"""Codecs, and the specs that name them: what a stream says, however it comes."""

from __future__ import annotations

import array
import ctypes
import io
import itertools
import os
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from reference import Framing, judge, wire

from fastecho import backend, framing
from fastecho.errors import ConfigError, FrameCorrupt, FrameTooLong, FrameTruncated

STREAMS = [kind for kind in strategies.KINDS if kind != "raw"]


def state(codec: Any) -> tuple[Any, ...]:
    """All that can be seen of a codec."""
    fault = codec.error
    said = fault and (type(fault), fault.reason, fault.offset, str(fault))
    return codec.messages, codec.offset, codec.pending, said


def run(codec: Any, recvs: list[bytes], ended: bool) -> tuple[list[bytes], tuple[Any, ...]]:
    messages = [message for data in recvs for message in codec.feed(data)]
    if ended:
        messages += codec.finish()
    return messages, state(codec)


# -- what a framing says: by example

EXAMPLES = [
    # spec, max_frame, stream, messages, tail, reason, offset
    ("line", None, b"a\nbc\r\n\n", [b"a", b"bc\r", b""], [], None, 7),
    ("line", None, b"a\nb", [b"a"], [b"b"], None, 2),
    ("line", None, b"\0\xff\x80\n", [b"\0\xff\x80"], [], None, 4),
    ("line", 3, b"abc\nabcd\n", [b"abc"], [], "too_long", 4),
    ("line", 3, b"xyz\r\n", [], [], "too_long", 0),
    ("delimiter:0d0a", 3, b"abc\r\na\nb\r\n", [b"abc", b"a\nb"], [], None, 10),
    ("delimiter:0d0a", None, b"a\r\r\n\r\n\r", [b"a\r", b""], [b"\r"], None, 6),
    ("delimiter:0d0a", 3, b"abcd\r\n", [], [], "too_long", 0),
    ("delimiter:6161", None, b"aaabaaa", [b"", b"ab"], [b"a"], None, 6),
    ("delimiter:616261", None, b"ababababa", [b"", b"b"], [b"ba"], None, 7),
    ("any:0a,0d,00", None, b"a\nb\r\nc\0d", [b"a", b"b", b"", b"c"], [b"d"], None, 7),
    ("any:0a,0d0a", None, b"a\nb\r\nc\rd\r", [b"a", b"b"], [b"c\rd\r"], None, 5),
    ("any:0d0a,0a", 3, b"abc\r\nabc\nabc\r", [b"abc", b"abc"], [], "too_long", 9),
    ("any:3b,2c", 3, b"abc,abc;abcd", [b"abc", b"abc"], [], "too_long", 8),
    ("any:3b,2c", 3, b"abcd;", [], [], "too_long", 0),
    ("any:5d,5e,2d,5c", None, b"[a]^-b\\", [b"[a", b"", b"", b"b"], [], None, 7),
    ("any:616263,6263", None, b"xabcbcabxbc", [b"x", b"", b"abx"], [], None, 11),
    ("fixed:3", None, b"abcdef", [b"abc", b"def"], [], None, 6),
    ("u8", None, b"\1a\0\2bc", [b"a", b"", b"bc"], [], None, 6),
    ("u16", None, b"\0\1a", [b"a"], [], None, 3),
    ("u16le", None, b"\1\0a", [b"a"], [], None, 3),
    ("u24", None, b"\0\0\1a", [b"a"], [], None, 4),
    ("u24le", None, b"\1\0\0a", [b"a"], [], None, 4),
    ("u32", None, b"\0\0\0\1a", [b"a"], [], None, 5),
    ("u32le", None, b"\1\0\0\0a", [b"a"], [], None, 5),
    ("u64", None, b"\0\0\0\0\0\0\0\1a", [b"a"], [], None, 9),
    ("u64le", None, b"\1\0\0\0\0\0\0\0a", [b"a"], [], None, 9),
    ("u64", None, b"\xff" * 8, [], [], "too_long", 0),
    ("u16", 3, b"\0\3abc\0\4abcd", [b"abc"], [], "too_long", 5),
    ("length:width=1,offset=2,adjust=3", None, b"xy\1abcd", [b"abcd"], [], None, 7),
    ("length:width=2,adjust=-2,le", None, b"\3\0a\1\0", [b"a"], [], "corrupt", 3),
    ("varint", None, b"\1a\0\x81\0b", [b"a", b"", b"b"], [], None, 6),
    ("varint", None, b"\x80" * 9 + b"\0\1a", [b"", b"a"], [], None, 12),
    ("varint", 300, b"\xac\2" + b"v" * 300, [b"v" * 300], [], None, 302),
    ("varint", 299, b"\xac\2", [], [], "too_long", 0),
    ("varint", None, b"\xff" * 9 + b"\1", [], [], "too_long", 0),
    ("varint", None, b"\xff" * 9 + b"\2", [], [], "corrupt", 0),
    ("varint", None, b"\1a" + b"\x80" * 10, [b"a"], [], "corrupt", 2),
    ("netstring", None, b"1:a,0:,", [b"a", b""], [], None, 7),
    ("netstring", None, b"1:a;", [], [], "corrupt", 0),
    ("netstring", None, b"0:,01:a,", [b""], [], "corrupt", 3),
    ("netstring", None, b"00:,", [], [], "corrupt", 0),
    ("netstring", None, b":,", [], [], "corrupt", 0),
    ("netstring", None, b"1 :a,", [], [], "corrupt", 0),
    ("netstring", None, b"-1:,", [], [], "corrupt", 0),
    ("netstring", 12, b"13", [], [], "too_long", 0),
    ("netstring", 12, b"12:123456789012,9", [b"123456789012"], [], "truncated", 16),
    ("netstring", 12, b"2a", [], [], "corrupt", 0),
    ("fixed:3", None, b"abcde", [b"abc"], [], "truncated", 3),
    ("u8", None, b"\1a\2b", [b"a"], [], "truncated", 2),
    ("varint", None, b"\x80", [], [], "truncated", 0),
    ("netstring", None, b"1", [], [], "truncated", 0),
    ("raw", None, b"a\nb", [b"a\nb"], [], None, 3),
]


@pytest.mark.parametrize(
    ("spec", "limit", "stream", "messages", "tail", "reason", "offset"),
    EXAMPLES,
    ids=[f"{spec}-{stream[:12].hex()}" for spec, _, stream, *_ in EXAMPLES],
)
def test_a_stream_says(
    twin: Any,
    spec: str,
    limit: int | None,
    stream: bytes,
    messages: list[bytes],
    tail: list[bytes],
    reason: str | None,
    offset: int,
) -> None:
    codec = framing.codec(spec, limit, twin.name)
    assert codec.feed(stream) == messages
    assert codec.finish() == tail
    assert (codec.error and codec.error.reason) == reason
    assert codec.offset == offset + sum(map(len, tail))
    assert codec.messages == len(messages + tail)
    assert codec.pending == 0
    if codec.error is not None:
        assert codec.error.offset == offset


def test_lines_are_what_python_reads_from_a_binary_file(twin: Any) -> None:
    stream = b"one\r\n\ntwo\rthree\n\x0b\x0c\x1c\x85\nfour"
    codec = framing.codec("line", backend=twin.name)
    lines = codec.feed(stream) + codec.finish()
    assert lines == [line.removesuffix(b"\n") for line in io.BytesIO(stream)]


@pytest.mark.parametrize(
    ("spec", "layout"),
    [("u8", ">B"), ("u16", ">H"), ("u32", ">I"), ("u64", ">Q"), ("u16le", "<H"), ("u64le", "<Q")],
)
def test_integers_are_those_of_struct(twin: Any, spec: str, layout: str) -> None:
    message = b"m" * 200
    codec = framing.codec(spec, backend=twin.name)
    frame = struct.pack(layout, 200) + message
    assert codec.encode(message) == frame
    assert codec.feed(frame) == [message]


@pytest.mark.parametrize("size", [0, 1, 9, 10, 99, 100, 127, 128, 129, 16_383, 16_384, 65_536])
@pytest.mark.parametrize("kind", ["varint", "netstring"])
def test_a_length_is_as_short_as_can_be(twin: Any, kind: str, size: int) -> None:
    wanted = Framing(kind, 65_536)
    codec = wanted.codec(twin)
    message = bytes(size)
    assert codec.encode(message) == wire(wanted, message)
    assert codec.feed(wire(wanted, message)) == [message]


# -- judged by the reference, over all that can come


@given(st.data())
def test_messages_are_what_the_reference_says(twin: Any, data: st.DataObject) -> None:
    wanted = data.draw(strategies.framings(STREAMS))
    stream = data.draw(strategies.streams(wanted))
    ended = data.draw(st.booleans())
    verdict = judge(wanted, stream, ended)
    messages, (count, offset, pending, fault) = run(wanted.codec(twin), [stream], ended)
    assert messages == verdict.messages
    assert (count, offset, pending) == (len(messages), verdict.offset, verdict.pending)
    assert (fault and fault[1:3]) == (verdict.reason and (verdict.reason, verdict.offset))


@given(st.data())
def test_encoding_is_what_the_reference_says(twin: Any, data: st.DataObject) -> None:
    wanted = data.draw(strategies.framings())
    message = data.draw(strategies.payloads(wanted))
    carried = len(message) >= wanted.adjust
    if carried:
        frame = wire(wanted, message)
        carried = judge(wanted, frame) == ([(frame, message)], None, len(frame), 0)
    codec = wanted.codec(twin)
    if carried:
        assert codec.encode(message) == frame
        assert codec.feed(frame) == [message]
    else:
        with pytest.raises(ValueError):  # noqa: PT011 -- the texts are compared in test_twins
            codec.encode(message)


# -- fragmentation never shows


@given(st.data())
def test_cuts_never_show_in_messages(twin: Any, data: st.DataObject) -> None:
    wanted = data.draw(strategies.framings(STREAMS))
    stream = data.draw(strategies.streams(wanted))
    recvs = data.draw(strategies.cuts(stream))
    ended = data.draw(st.booleans())
    assert run(wanted.codec(twin), recvs, ended) == run(wanted.codec(twin), [stream], ended)


@given(st.data())
def test_no_single_cut_shows_in_messages(twin: Any, data: st.DataObject) -> None:
    wanted = data.draw(strategies.framings(STREAMS))
    stream = data.draw(strategies.streams(wanted, 4))[:48]
    whole = run(wanted.codec(twin), [stream], False)
    assert run(wanted.codec(twin), strategies.pieces(stream, range(1, len(stream))), False) == whole
    for place in range(len(stream) + 1):
        assert run(wanted.codec(twin), strategies.pieces(stream, [place]), False) == whole, place


@given(st.data())
def test_the_state_between_recvs_is_what_the_reference_says(twin: Any, data: st.DataObject) -> None:
    wanted = data.draw(strategies.framings(STREAMS))
    recvs = data.draw(strategies.cuts(data.draw(strategies.streams(wanted))))
    codec = wanted.codec(twin)
    for sent in itertools.accumulate(recvs, initial=b""):
        if sent:
            codec.feed(sent[codec.offset + codec.pending :] if codec.error is None else b"more")
        verdict = judge(wanted, sent)
        fault = codec.error and codec.error.reason
        assert (codec.messages, codec.offset, codec.pending, fault) == (
            len(verdict.frames),
            verdict.offset,
            verdict.pending,
            verdict.reason,
        )


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("delimiter", [b"a", b"aa", b"ab", b"aab", b"aba", b"abab", b"aabb"])
def test_every_short_stream_of_two_letters(twin: Any, delimiter: bytes, limit: int) -> None:
    of_two_letters(twin, Framing("delimiter", limit, delimiter))


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize(
    "ends",
    [(b"ab", b"b"), (b"b", b"aab", b"ab"), (b"aa", b"b"), (b"ba", b"aab"), (b"abb", b"bb", b"aa")],
)
def test_every_short_stream_with_several_delimiters(
    twin: Any, ends: tuple[bytes, ...], limit: int
) -> None:
    of_two_letters(twin, Framing("any", limit, ends[0], others=ends[1:]))


def of_two_letters(twin: Any, wanted: Framing) -> None:
    for size in range(1, 9):
        for stream in map(bytes, itertools.product(b"ab", repeat=size)):
            verdict = judge(wanted, stream)
            whole = run(wanted.codec(twin), [stream], False)
            bytewise = run(wanted.codec(twin), strategies.pieces(stream, range(1, size)), False)
            messages, (count, offset, pending, fault) = whole
            assert bytewise == whole, stream
            assert messages == verdict.messages, stream
            assert (count, offset, pending) == (len(messages), verdict.offset, verdict.pending)
            assert (fault and fault[1]) == verdict.reason, stream


@pytest.mark.parametrize(
    "delimiter", [b"aabc", b"abac", b"aabaac", b"abcabd", b"aaab", b"ababac", b"abaabaaab"]
)
def test_a_delimiter_is_found_behind_starts_and_ends_of_it(twin: Any, delimiter: bytes) -> None:
    wanted = Framing("delimiter", 99, delimiter)
    starts = [delimiter[:size] for size in range(1, len(delimiter))]
    ends = [delimiter[size:] for size in range(1, len(delimiter))]
    for one, two, three in itertools.product(starts, starts + ends, ends):
        stream = one + two + three + delimiter
        for recvs in ([stream], strategies.pieces(stream, range(1, len(stream)))):
            codec = wanted.codec(twin)
            messages = [message for data in recvs for message in codec.feed(data)]
            assert messages == judge(wanted, stream).messages, stream


@pytest.mark.parametrize(
    "wanted",
    [
        Framing("delimiter", 99, b"abcabcab"),
        Framing("any", 99, b"abcabcab", others=(b"bb", b"\n", b"cabcabd")),
    ],
    ids=lambda wanted: wanted.kind,
)
def test_a_delimiter_is_found_at_every_pair_of_cuts(twin: Any, wanted: Framing) -> None:
    """Also where nothing stands before it."""
    stream = (wanted.delimiter + b"x" + wanted.delimiter) * 2
    messages = judge(wanted, stream).messages
    for places in itertools.combinations(range(len(stream)), 2):
        codec = wanted.codec(twin)
        recvs = strategies.pieces(stream, places)
        assert [message for data in recvs for message in codec.feed(data)] == messages


def test_a_raw_message_is_what_one_recv_brought(twin: Any) -> None:
    codec = twin.RawCodec()
    assert codec.feed(b"he") + codec.feed(b"") + codec.feed(b"llo\n") == [b"he", b"llo\n"]
    assert codec.finish() == []
    assert state(codec) == (2, 6, 0, None)


# -- limits


def limited() -> list[Any]:
    """(framing with limit 5, what makes a frame of a message, what still cannot be judged)."""
    rows = [
        *(Framing("delimiter", 5, delimiter=b) for b in (b"\n", b"\r\n", b"aab", b"aba", b"aa")),
        Framing("any", 5, delimiter=b"\n"),
        Framing("any", 5, delimiter=b"\r\n", others=(b"\n", b"\0")),
        Framing("any", 5, delimiter=b"aab", others=(b"ab", b"ba", b"cc")),
        *(Framing("length", 5, width=w, little=le) for w in (1, 2, 8) for le in (False, True)),
        Framing("length", 5, width=2, offset=3, adjust=2),
        Framing("length", 5, width=2, offset=1, adjust=-4),
        Framing("varint", 5),
        Framing("netstring", 5),
    ]
    return [pytest.param(row, id=row.spec) for row in rows]


@pytest.mark.parametrize("wanted", limited())
@pytest.mark.parametrize("size", [4, 5, 6])
def test_the_limit_to_the_byte_at_every_cut(twin: Any, wanted: Framing, size: int) -> None:
    before, message = b"123", b"x" * size
    stream = wire(wanted, before) + wire(wanted, message)
    start = len(wire(wanted, before))
    for place in range(len(stream) + 1):
        codec = wanted.codec(twin)
        messages = codec.feed(stream[:place]) + codec.feed(stream[place:])
        if size <= 5:
            assert messages == [before, message]
            assert codec.error is None
        else:
            assert messages == [before]
            assert isinstance(codec.error, FrameTooLong)
            assert codec.error.offset == start
        assert codec.pending == 0


@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n", b"aab", b"aba"])
def test_an_unterminated_line_is_too_long_once_nothing_can_save_it(
    twin: Any, delimiter: bytes
) -> None:
    wanted = Framing("delimiter", 5, delimiter=delimiter)
    codec = wanted.codec(twin)
    stream = b"x" * 5 + delimiter
    for place in range(len(stream) - 1):
        assert codec.feed(stream[place : place + 1]) == []
        assert codec.error is None
        assert codec.pending == place + 1
    assert codec.feed(b"?") == []
    assert isinstance(codec.error, FrameTooLong)
    assert codec.pending == 0
    assert codec.feed(b"1" + delimiter) == []


@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n", b"aab"])
@pytest.mark.parametrize("size", [4, 5, 6, 7])
def test_a_tail_is_held_to_the_limit_with_the_delimiter_begun_in_it(
    twin: Any, delimiter: bytes, size: int
) -> None:
    started = delimiter[:-1]
    tail = (b"x" * size)[: size - len(started)] + started
    codec = Framing("delimiter", 5, delimiter=delimiter).codec(twin)
    assert codec.feed(b"1" + delimiter) == [b"1"]
    assert codec.feed(tail) == []
    if size <= 5:
        assert codec.finish() == [tail]
        assert codec.error is None
    else:
        assert codec.finish() == []
        assert codec.error is not None
        assert (codec.error.reason, codec.error.offset) == ("too_long", 1 + len(delimiter))
    assert codec.pending == 0


@pytest.mark.parametrize(
    ("spec", "limit"),
    [
        *(("line", 65_536), ("delimiter:0d0a", 65_536), ("varint", 65_536), ("netstring", 65_536)),
        *(("u8", 255), ("u16", 65_535), ("u16le", 65_535), ("u32", 65_536)),
    ],
)
def test_the_default_limit(twin: Any, spec: str, limit: int) -> None:
    codec = framing.codec(spec, backend=twin.name)
    assert codec.max_frame == limit
    message = b"m" * limit
    assert codec.feed(codec.encode(message)) == [message]
    with pytest.raises(ValueError, match=r"max_frame"):
        codec.encode(message + b"m")


# -- a fault is data


def test_what_was_complete_before_a_fault_is_returned_and_the_rest_ignored(twin: Any) -> None:
    codec = twin.NetstringCodec(9)
    assert codec.feed(b"1:a,1:b,x1:c,") == [b"a", b"b"]
    fault = codec.error
    assert isinstance(fault, FrameCorrupt)
    assert fault.offset == 8
    assert codec.feed(b"1:d,") == []
    assert codec.finish() == []
    assert codec.error is fault
    assert state(codec)[:3] == (2, 8, 0)


def test_a_stream_that_ends_inside_a_frame_is_truncated(twin: Any) -> None:
    codec = framing.codec("u16", backend=twin.name)
    assert codec.feed(b"\0\1a\0\2b") == [b"a"]
    assert codec.pending == 3
    assert codec.finish() == []
    assert isinstance(codec.error, FrameTruncated)
    assert str(codec.error) == "frame at offset 3: the stream ended 3 bytes into it"
    assert state(codec)[:3] == (1, 3, 0)


# -- wrong use


@pytest.mark.parametrize("kind", strategies.KINDS)
def test_nothing_after_finish(twin: Any, kind: str) -> None:
    wanted = Framing(kind, 5, delimiter=b"\n", width=1)
    codec = wanted.codec(twin)
    assert codec.finish() == []
    for wrong in (lambda: codec.feed(b"x"), lambda: codec.feed(b""), codec.finish):
        with pytest.raises(ValueError, match=r"after finish\(\)"):
            wrong()


@pytest.mark.parametrize("kind", strategies.KINDS)
def test_feeding_nothing_is_nothing(twin: Any, kind: str) -> None:
    codec = Framing(kind, 5, delimiter=b"\n", width=1).codec(twin)
    assert codec.feed(b"") == []
    assert codec.feed(memoryview(b"")) == []
    assert state(codec) == (0, 0, 0, None)
    assert codec.finish() == []
    assert state(codec) == (0, 0, 0, None)


@pytest.mark.parametrize(
    "data",
    [
        b"ab\ncd",
        bytearray(b"ab\ncd"),
        memoryview(b"xab\ncdx")[1:-1],
        array.array("B", b"ab\ncd"),
        ctypes.create_string_buffer(b"ab\ncd", 5),
        memoryview(bytearray(b"ab\ncd")).cast("b"),
    ],
    ids=lambda data: type(data).__name__,
)
def test_any_contiguous_bytes_like_object_is_data(twin: Any, data: Any) -> None:
    codec = twin.DelimiterCodec(b"\n", 10)
    assert codec.feed(data) == [b"ab"]
    assert codec.finish() == [b"cd"]
    assert twin.VarintCodec(10).encode(data) == b"\5ab\ncd"


def test_items_wider_than_a_byte_are_their_bytes(twin: Any) -> None:
    data = array.array("H", [0x6161, 0x0A0A])
    assert twin.DelimiterCodec(b"\n", 10).feed(data) == [b"aa", b""]
    assert twin.FixedCodec(4).encode(data) == bytes(data)
    grid = memoryview(b"abcdef").cast("B", (2, 3))
    assert twin.FixedCodec(6).feed(grid) == [b"abcdef"]


@pytest.mark.parametrize("call", ["feed", "encode"])
def test_what_is_no_contiguous_bytes_is_refused(twin: Any, call: str) -> None:
    codec = twin.VarintCodec(10)
    for wrong in ("text", None, 3, [1, 2]):
        with pytest.raises(TypeError):
            getattr(codec, call)(wrong)
    with pytest.raises(BufferError):
        getattr(codec, call)(memoryview(b"abcd")[::2])
    assert state(codec) == (0, 0, 0, None)


def test_messages_do_not_change_with_the_buffer_they_came_in(twin: Any) -> None:
    buffer = bytearray(b"ab\ncd")
    codec = twin.DelimiterCodec(b"\n", 10)
    messages = codec.feed(buffer)
    buffer[:] = b"?????"
    assert messages == [b"ab"]
    assert codec.finish() == [b"cd"]
    assert all(type(message) is bytes for message in messages)


@pytest.mark.parametrize("kind", strategies.KINDS)
def test_fresh_is_the_same_framing_at_the_start_of_a_stream(twin: Any, kind: str) -> None:
    wanted = Framing(kind, 5, delimiter=b"\r\n", width=3, offset=1, adjust=2, little=True)
    codec = wanted.codec(twin)
    codec.feed(b"0\xff")
    codec.finish()
    fresh = codec.fresh()
    assert type(fresh) is type(codec)
    assert state(fresh) == (0, 0, 0, None)
    assert fresh.max_frame == codec.max_frame
    frame = wire(wanted, b"12345")
    assert fresh.encode(b"12345") == frame
    assert fresh.feed(frame) == [b"12345"]


@pytest.mark.parametrize("delimiter", [b"\r\n", b"aa", b"aba"])
def test_a_payload_that_holds_or_completes_the_delimiter_cannot_be_encoded(
    twin: Any, delimiter: bytes
) -> None:
    codec = twin.DelimiterCodec(delimiter, 9)
    with pytest.raises(ValueError, match=r"delimiter"):
        codec.encode(b"x" + delimiter + b"y")
    if delimiter != b"\r\n":
        with pytest.raises(ValueError, match=r"delimiter"):
            codec.encode(b"x" + delimiter[:-1])
    assert codec.encode(b"\r") == b"\r" + delimiter


@pytest.mark.parametrize("end", [b";", b"\0", b"]"])
def test_a_payload_that_holds_one_of_the_delimiters_cannot_be_encoded(
    twin: Any, end: bytes
) -> None:
    codec = twin.AnyDelimiterCodec((b";", b"\0", b"]"), 9)
    with pytest.raises(ValueError, match=r"holds, or completes, one of b';' b'\\x00' b'\]'"):
        codec.encode(b"x" + end + b"y")
    assert codec.encode(b"x") == b"x;"


def test_a_payload_that_would_end_with_the_longer_delimiter_cannot_be_encoded(twin: Any) -> None:
    codec = twin.AnyDelimiterCodec((b"\n", b"\r\n"), 9)
    with pytest.raises(ValueError, match="completes"):
        codec.encode(b"x\r")
    assert codec.encode(b"\rx") == b"\rx\n"
    assert twin.AnyDelimiterCodec((b"\r\n", b"\n"), 9).encode(b"x\r") == b"x\r\r\n"


# -- memory and work


def announcements() -> list[Any]:
    size = 2**30
    rows = [
        (Framing("length", size, width=4), struct.pack(">I", size)),
        (Framing("length", size, width=8, little=True), struct.pack("<Q", size)),
        (Framing("length", size, width=1, adjust=2**30 - 9), b"\x09"),
        (Framing("varint", size), b"\x80\x80\x80\x80\4"),
        (Framing("netstring", size), b"1073741824:"),
        (Framing("fixed", size), b"x"),
        (Framing("delimiter", size, delimiter=b"\n"), b"x"),
        (Framing("any", size, delimiter=b"\r\n", others=(b"\n",)), b"x"),
    ]
    return [pytest.param(row, header, id=row.spec) for row, header in rows]


@pytest.mark.parametrize(("wanted", "header"), announcements())
def test_an_announced_length_takes_no_memory(twin: Any, wanted: Framing, header: bytes) -> None:
    tracemalloc.start()
    try:
        codec = wanted.codec(twin)
        assert codec.feed(header) == []
        assert codec.feed(b"y" * 9) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert codec.error is None
    assert codec.pending == len(header) + 9
    assert peak < 65_536


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
@pytest.mark.parametrize(("wanted", "header"), announcements())
def test_an_announced_length_takes_no_address_space(
    twin: Any, wanted: Framing, header: bytes
) -> None:
    def address_space() -> int:
        pages = int(Path("/proc/self/statm").read_bytes().split()[0])
        return pages * os.sysconf("SC_PAGE_SIZE")

    before = address_space()
    codecs = [wanted.codec(twin) for _ in range(8)]
    for codec in codecs:
        codec.feed(header)
        codec.feed(b"y")
    assert address_space() - before < 2**27


@pytest.mark.parametrize("wanted", limited())
def test_a_long_frame_that_comes_byte_by_byte(twin: Any, wanted: Framing) -> None:
    long = Framing(
        wanted.kind, 66_000, wanted.delimiter, 3, wanted.offset, wanted.adjust, wanted.little
    )
    message = b"xyz" * 21_000
    stream = wire(long, message)
    codec = long.codec(twin)
    for place in range(len(stream) - 1):
        assert not codec.feed(stream[place : place + 1])
    assert codec.feed(stream[-1:]) == [message]


def effort(codec: Any, recvs: list[bytes]) -> int:
    """Calls made, plus the bytes that they were made on or gave, while a stream is fed."""
    total = 0

    def count(frame: Any, event: str, value: Any) -> None:
        nonlocal total
        total += 1
        subject = getattr(value, "__self__", None) if event == "c_call" else value
        if event in ("c_call", "return") and isinstance(subject, bytes | bytearray):
            total += len(subject)

    sys.setprofile(count)
    try:
        for data in recvs:
            codec.feed(data)
    finally:
        sys.setprofile(None)
    return total


@pytest.mark.parametrize("wanted", limited())
def test_work_grows_with_bytes_plus_calls_not_with_their_product(wanted: Framing) -> None:
    from fastecho import backend

    pure = backend.load("pure")
    efforts = []
    for size in (2_000, 4_000):
        grown = Framing(
            wanted.kind, 9_000, wanted.delimiter, 2, wanted.offset, wanted.adjust, wanted.little
        )
        stream = wire(grown, b"x" * size)
        recvs = strategies.pieces(stream, range(1, len(stream)))
        efforts.append(effort(grown.codec(pure), recvs))
    assert efforts[1] < 2.5 * efforts[0]


# -- configuration


def test_names_are_the_specs_they_stand_for(twin: Any) -> None:
    line: Any = framing.codec("line", backend=twin.name)
    assert type(line) is twin.DelimiterCodec
    assert line.delimiter == b"\n"
    for bits in (8, 16, 24, 32, 64):
        for end in ("",) if bits == 8 else ("", "le"):
            short = framing.codec(f"u{bits}{end}", 9, twin.name)
            long = framing.codec(f"length:width={bits // 8}{',' * bool(end)}{end}", 9, twin.name)
            assert type(short) is type(long) is twin.LengthCodec
            assert short.encode(b"abc") == long.encode(b"abc")
            assert len(short.encode(b"")) == bits // 8


@given(wanted=strategies.framings())
def test_every_framing_has_a_spec(twin: Any, wanted: Framing) -> None:
    limit = None if wanted.kind in ("raw", "fixed") else wanted.max_frame
    codec = framing.codec(wanted.spec, limit, twin.name)
    other = wanted.codec(twin)
    assert type(codec) is type(other)
    assert codec.max_frame == other.max_frame
    for name in ("delimiter", "delimiters", "size", "width", "before", "adjust", "little"):
        assert getattr(codec, name, None) == getattr(other, name, None)


WRONG_SPECS = [
    *("", "lines", "LINE", " line", "u8le", "u12", "u128", "line:", "varint:3", "raw:1"),
    *("delimiter", "delimiter:", "delimiter:0", "delimiter:zz", "delimiter: ", "delimiter:é"),
    *("delimiter:" + "00" * 256, "fixed", "fixed:", "fixed:0", "fixed:-1", "fixed:1.5", "fixed:x"),
    *("fixed:1073741825", "fixed:٣", "fixed:1_0", "fixed: 1", "fixed:+1", "fixed:" + "9" * 5000),
    *("any", "any:", "any:0", "any:zz", "any:0a,0a", "any:0a,", "any:,0a", "any:0a;0d"),
    *("any:0d,0d0a", "any:616263,62", "any:" + "00" * 256, "any:" + "00," * 128 + "00" * 128),
    *("length", "length:", "length:width=0", "length:width=9", "length:offset=1"),
    *("length:width=2,width=2", "length:width=2,le,le", "length:width=2,be", "length:width=2,"),
    *("length:width=2,offset=-1", "length:width=2,offset=65537", "length:width", "length:width="),
    *("length:width=2,adjust=1073741825", "length:width=2,adjust=-1073741825", "length:2"),
    *("length:width=2,le=1", "length:width=1,adjust=-255", "length:width=2,max=3"),
]


@pytest.mark.parametrize("spec", WRONG_SPECS, ids=lambda spec: repr(spec[:40]))
def test_a_wrong_spec_is_one_sentence(spec: str) -> None:
    with pytest.raises(ConfigError) as caught:
        framing.codec(spec)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 20


@pytest.mark.parametrize("spec", ["lines", "u33", "netstrings", "", "u8le"])
def test_an_unknown_framing_lists_the_right_ones(spec: str) -> None:
    with pytest.raises(
        ConfigError, match=r"line.*delimiter:HEX.*any:HEX,HEX.*raw.*fixed:N.*u8.*netstring"
    ):
        framing.codec(spec)


@pytest.mark.parametrize("wrong", [0, -1, 2**30 + 1, 1.0, "5", True])
@pytest.mark.parametrize("spec", ["line", "u32", "varint", "raw", "fixed:1"])
def test_max_frame_is_from_1_to_2_to_the_30(spec: str, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"max_frame"):
        framing.codec(spec, wrong)


def test_max_frame_reaches_both_ends(twin: Any) -> None:
    assert framing.codec("line", 1, twin.name).max_frame == 1
    assert framing.codec("u32", 2**30, twin.name).max_frame == 2**30


def test_fixed_needs_a_max_frame_of_its_size(twin: Any) -> None:
    assert framing.codec("fixed:5", backend=twin.name).max_frame == 5
    assert framing.codec("fixed:70000", backend=twin.name).max_frame == 70_000
    assert framing.codec("fixed:5", 5, twin.name).feed(b"12345") == [b"12345"]
    assert framing.codec("fixed:5", 6, twin.name).feed(b"12345") == [b"12345"]
    with pytest.raises(ConfigError, match=r"max_frame"):
        framing.codec("fixed:5", 4, twin.name)


def test_a_length_field_must_hold_the_limit(twin: Any) -> None:
    assert framing.codec("u8", backend=twin.name).max_frame == 255
    assert framing.codec("u8", 255, twin.name).max_frame == 255
    with pytest.raises(ConfigError, match=r"255"):
        framing.codec("u8", 256, twin.name)
    assert framing.codec("length:width=1,adjust=-5", backend=twin.name).max_frame == 250
    assert framing.codec("length:width=1,adjust=5", backend=twin.name).max_frame == 260


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("DelimiterCodec", (b"", 5)),
        ("DelimiterCodec", (bytes(256), 5)),
        ("DelimiterCodec", (b"\n", 0)),
        ("AnyDelimiterCodec", ((), 5)),
        ("AnyDelimiterCodec", ((b"\n", b""), 5)),
        ("AnyDelimiterCodec", ((b"\r", b"\r"), 5)),
        ("AnyDelimiterCodec", ((b"\r\n", b"\r"), 5)),
        ("AnyDelimiterCodec", ((bytes(128), b"\1" * 128), 5)),
        ("AnyDelimiterCodec", ((b"\n",), 0)),
        ("FixedCodec", (0,)),
        ("FixedCodec", (2**30 + 1,)),
        ("LengthCodec", (0, 5)),
        ("LengthCodec", (9, 5)),
        ("LengthCodec", (1, 256)),
        ("LengthCodec", (2, 5, -1)),
        ("LengthCodec", (2, 5, 65_537)),
        ("LengthCodec", (2, 5, 0, 6)),
        ("LengthCodec", (2, 5, 0, 2**30 + 1)),
        ("LengthCodec", (2, 5, 0, -(2**30) - 1)),
        ("LengthCodec", (1, 5, 0, -251)),
        ("VarintCodec", (0,)),
        ("NetstringCodec", (2**30 + 1,)),
        ("NetstringCodec", (2**70,)),
        ("NetstringCodec", (True,)),
        ("NetstringCodec", (1.5,)),
    ],
)
def test_a_codec_cannot_be_made_wrong(twin: Any, name: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError):
        getattr(twin, name)(*arguments)


def test_a_length_with_adjust_cannot_say_less(twin: Any) -> None:
    codec = twin.LengthCodec(2, 9, 1, 3)
    assert codec.encode(b"abc") == b"\0\0\0abc"
    with pytest.raises(ValueError, match=r"adjust=3 cannot announce 2 bytes"):
        codec.encode(b"ab")


# -- the pure twin's short way


@given(st.data(), strategies.framings(), st.binary(max_size=30), st.integers(0, 2000))
def test_whole_frames_are_stamped_at_once_as_they_are_one_by_one(
    data: st.DataObject, wanted: Framing, prefix: bytes, spare: int
) -> None:
    """What the short way does not do, it leaves as it is."""
    pure = backend.load("pure")
    codec, other = wanted.codec(pure), wanted.codec(pure)
    for recv in data.draw(strategies.cuts(data.draw(strategies.streams(wanted)))):
        before = state(codec)
        longest_reply = min(wanted.max_frame, len(recv) + codec.pending) + len(prefix) + 300
        room = data.draw(st.sampled_from([longest_reply, longest_reply + spare, 1 << 20]))
        reply = codec.stamp_whole(recv, prefix, room)
        if reply:
            assert (len(recv), reply) == other.stamp(recv, prefix, 1 << 20)
            assert len(reply) <= room
        else:
            assert state(codec) == before
            assert codec.stamp(recv, prefix, 1 << 20) == other.stamp(recv, prefix, 1 << 20)
        assert state(codec) == state(other)
    assert codec.stamp_whole(b"", prefix, 1 << 20) == b""
    codec.finish()
    assert codec.stamp_whole(b"\n", prefix, 1 << 20) == b""


def test_whole_lines_take_the_short_way() -> None:
    codec = framing.codec("line", backend="pure")
    for recv, reply in (
        (b"a\n", b"<>a\n"),
        (b"a\nb\n\n", b"<>a\n<>b\n<>\n"),
        (b"a", b""),
        (b"\n", b"<>\n"),
    ):
        assert codec.stamp_whole(recv, b"<>", 100) == reply
    assert (codec.messages, codec.offset) == (5, 8)
    codec.feed(b"unfinished")
    assert codec.stamp_whole(b"\n", b"<>", 100) == b""
