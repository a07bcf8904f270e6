"""Stamps and echoes: what the prefix says, what the reply is, how much of it fits."""

from __future__ import annotations

import array
import ctypes
import itertools
import mmap
import sys
from collections.abc import Callable
from datetime import UTC, timedelta, timezone, tzinfo
from typing import Any

import pytest
import strategies
from hypothesis import assume, given
from hypothesis import strategies as st
from reference import LONGEST, Framing, Verdict, judge, render, reply, wire
from zones import local

from fastecho import backend
from fastecho.errors import ConfigError, FrameCorrupt, FrameTooLong

STREAMS = [kind for kind in strategies.KINDS if kind != "raw"]
NOW = 1_795_347_400_123_456_789  # 2026-11-22T11:36:40.123456789Z
#: As POSIX writes zones (west is positive), and as datetime does.
ZONES: list[tuple[str, tzinfo]] = [
    ("UTC0", UTC),
    ("CET-1", timezone(timedelta(hours=1))),
    ("NST3:30", timezone(-timedelta(hours=3, minutes=30))),
    ("<+0545>-5:45", timezone(timedelta(hours=5, minutes=45))),
    ("<+14>-14", timezone(timedelta(hours=14))),
    ("<-12>12", timezone(-timedelta(hours=12))),
    ("XXX0:30", timezone(-timedelta(minutes=30))),
]


pytestmark = pytest.mark.usefixtures("utc")


def state(echo: Any) -> tuple[Any, ...]:
    """All that can be seen of an echo."""
    fault = echo.error
    said = fault and (type(fault), fault.reason, fault.offset, str(fault))
    return echo.messages, echo.offset, echo.pending, said


def make(twin: Any, wanted: Framing, parts: tuple[bytes | str, ...] = (), peer: bytes = b"") -> Any:
    return twin.Echo(wanted.codec(twin), twin.Stamper(parts), peer)


@st.composite
def echoes(draw: st.DrawFn, kinds: Any = STREAMS) -> tuple[Framing, tuple[bytes | str, ...], bytes]:
    """Framing, template and peer that go together."""
    parts = draw(strategies.templates())
    wanted = draw(strategies.framings(kinds, strategies.longest(parts)))
    return wanted, parts, draw(strategies.peers)


def answered(
    wanted: Framing,
    parts: tuple[bytes | str, ...],
    peer: bytes,
    verdict: Verdict,
    times: list[int],
) -> list[bytes]:
    """The replies to a stream's messages, the nth of which was complete at the nth time."""
    return [
        reply(wanted, frame, render(parts, now, seq, len(frame.message), peer))
        for seq, (frame, now) in enumerate(zip(verdict.frames, times, strict=True), 1)
    ]


# -- the stamper


@given(
    parts=strategies.templates(),
    now=strategies.times,
    seq=st.integers(0, 2**64 - 1),
    length=st.integers(0, 2**30),
    peer=strategies.peers,
    zone=st.sampled_from(ZONES),
)
def test_every_token_says_what_python_says(
    twin: Any,
    parts: tuple[bytes | str, ...],
    now: int,
    seq: int,
    length: int,
    peer: bytes,
    zone: tuple[str, tzinfo],
) -> None:
    name, there = zone
    with local(name):
        stamper = twin.Stamper(parts)
        said = stamper.render(now, seq, length, peer)
    assert said == render(parts, now, seq, length, peer, zone=there)
    assert len(said) <= stamper.longest == strategies.longest(parts)


@given(data=st.data(), parts=strategies.templates())
def test_one_stamper_serves_any_order_of_times(
    twin: Any, data: st.DataObject, parts: tuple[bytes | str, ...]
) -> None:
    stamper = twin.Stamper(parts)
    second = data.draw(st.integers(0, 2**33)) * 10**9
    near = st.sampled_from([0, 1, 10**9 - 1, 10**9, -1, 2 * 10**9]).map(lambda by: second + by)
    for now in data.draw(st.lists(st.one_of(near, strategies.times), max_size=6)):
        if now >= 0:
            assert stamper.render(now) == render(parts, now)


@given(strategies.templates(), strategies.times, st.integers(-(2 * 10**9), 2 * 10**9))
def test_a_text_that_is_kept_is_that_of_all_messages_of_its_time(
    parts: tuple[bytes | str, ...], now: int, later: int
) -> None:
    """In the pure twin, whose streams ask for no other as long as it holds."""
    pure = backend.load("pure")
    stamper = pure.Stamper(parts)
    assert not stamper.since <= now < stamper.until
    stamper.prefix(now, b"peer")
    then = min(max(now + later, 0), 2**63 - 1)
    if stamper.since <= then < stamper.until:
        for seq, length, peer in ((1, 2, b"one"), (3, 4, b"other")):
            assert stamper.text == pure.Stamper(parts).render(then, seq, length, peer)
    changing = {"seq", "len", "peer", "iso", "utc", "epoch_ms", "epoch_us", "epoch_ns", "mono_ns"}
    assert (stamper.since <= now < stamper.until) == changing.isdisjoint(parts)


@pytest.mark.parametrize("token", LONGEST)
def test_the_longest_rendering_of_a_token(twin: Any, token: str) -> None:
    stamper = twin.Stamper((token,))
    assert stamper.longest == LONGEST[token]
    said = stamper.render(2**63 - 1, 2**64 - 1, 2**30, b"p" * 128)
    assert len(said) == stamper.longest


@pytest.mark.parametrize(
    ("now", "offset"),
    [(1_774_745_999, 1), (1_774_746_000, 2), (1_792_889_999, 2), (1_792_890_000, 1)],
)
def test_local_time_minds_the_hour_that_summer_moves(twin: Any, now: int, offset: int) -> None:
    # 2026-03-29 and 2026-10-25, each at 01:00 UTC.
    zone = timezone(timedelta(hours=offset))
    with local("CET-1CEST,M3.5.0,M10.5.0/3"):
        stamper = twin.Stamper(("iso", b" ", "ctime", b" ", "utc"))
        said = [stamper.render(now * 10**9), stamper.render((now - 1) * 10**9)]
    assert said[0] == render(stamper.parts, now * 10**9, zone=zone)
    assert said[0].endswith(b"Z")
    assert b"+0%d:00 " % offset in said[0]


@pytest.mark.parametrize(
    ("zone", "sign"),
    [("LMT0:44:30", b"-00:44"), ("LMT-0:44:30", b"+00:44"), ("X0:00:59", b"+00:00")],
)
def test_seconds_of_an_old_local_mean_time_are_cut_off(twin: Any, zone: str, sign: bytes) -> None:
    with local(zone):
        assert twin.Stamper(("iso",)).render(NOW)[-6:] == sign


@pytest.mark.parametrize("offset", [0, 1, 12_345, 2**63 - 1])
def test_the_monotonic_clock_is_the_time_plus_an_offset(twin: Any, offset: int) -> None:
    stamper = twin.Stamper((b"<", "mono_ns", b">"))
    for now in (0, NOW, 2**63 - 1):
        stamper.mono_offset = offset
        assert stamper.render(now) == render(stamper.parts, now, mono_offset=offset)


def test_the_monotonic_clock_begins_at_zero_however_late_the_boot(twin: Any) -> None:
    stamper = twin.Stamper(("mono_ns", b" ", "utc"))
    stamper.mono_offset = -NOW
    assert stamper.render(NOW).startswith(b"0 2026-")
    assert stamper.render(NOW + 5).startswith(b"5 2026-")
    assert stamper.render(NOW - 5).startswith(b"0 2026-")
    stamper.mono_offset = 7 - NOW
    assert stamper.render(NOW + 5).startswith(b"12 2026-")


@pytest.mark.parametrize("token", LONGEST)
def test_a_stamper_knows_what_it_shows(twin: Any, token: str) -> None:
    stamper = twin.Stamper((b"[", token, b"]"))
    assert stamper.fine is (token in ("iso", "utc", "mono_ns") or token.startswith("epoch_"))
    assert stamper.shows_peer is (token == "peer")
    assert stamper.shows_mono is (token == "mono_ns")
    assert stamper.parts == (b"[", token, b"]")


def test_an_empty_template_renders_nothing(twin: Any) -> None:
    stamper = twin.Stamper(())
    assert stamper.render(NOW) == b""
    assert stamper.longest == 0
    assert not stamper.fine
    assert twin.Stamper([b"", b""]).render(NOW, 3, 4, b"x") == b""


def test_an_unknown_token_lists_the_right_ones(twin: Any) -> None:
    with pytest.raises(ConfigError, match=r"'nope'.*ctime.*len"):
        twin.Stamper((b"x", "nope"))


def test_a_prefix_fits_a_datagram(twin: Any) -> None:
    assert twin.Stamper((b"x" * (65_535 - 24), "ctime")).longest == 65_535
    with pytest.raises(ConfigError, match=r"65,536"):
        twin.Stamper((b"x" * (65_536 - 24), "ctime"))


# -- replies


REPLIES = [
    (Framing("delimiter", 9, b"\n"), b"ab\r\n\nc", b"<1:3>ab\r\n<2:0>\n<3:1>c"),
    (Framing("delimiter", 9, b"\r\n"), b"ab\r\nc\r", b"<1:2>ab\r\n<2:2>c\r"),
    (
        Framing("any", 9, b"\r\n", others=(b"\n", b";")),
        b"ab;\r\n\nc",
        b"<1:2>ab;<2:0>\r\n<3:0>\n<4:1>c",
    ),
    (Framing("fixed", 2), b"abcd", b"<1:2>ab<2:2>cd"),
    (Framing("length", 9, width=1), b"\2ab\0", b"\7<1:2>ab\5<2:0>"),
    (Framing("length", 9, width=2, little=True), b"\2\0ab", b"\7\0<1:2>ab"),
    (Framing("length", 9, width=1, offset=2, adjust=1), b"xy\1ab", b"xy\6<1:2>ab"),
    (Framing("length", 9, width=1, adjust=-3), b"\5ab", b"\x0a<1:2>ab"),
    (Framing("varint", 9), b"\x82\x80\0ab", b"\7<1:2>ab"),
    (Framing("netstring", 9), b"2:ab,0:,", b"7:<1:2>ab,5:<2:0>,"),
    (Framing("raw"), b"a\nb", b"<1:3>a\nb"),
]


@pytest.mark.parametrize(
    ("wanted", "stream", "said"), REPLIES, ids=[wanted.spec for wanted, _, _ in REPLIES]
)
def test_a_reply_is_prefix_and_message_in_the_same_framing(
    twin: Any, wanted: Framing, stream: bytes, said: bytes
) -> None:
    echo = make(twin, wanted, (b"<", "seq", b":", "len", b">"))
    assert echo.feed(stream, NOW) + echo.finish(NOW) == said
    assert echo.error is None


@given(st.data(), echoes(), strategies.times)
def test_replies_are_what_the_reference_says(
    twin: Any,
    data: st.DataObject,
    settings: tuple[Framing, tuple[bytes | str, ...], bytes],
    now: int,
) -> None:
    wanted, parts, peer = settings
    stream = data.draw(strategies.streams(wanted))
    ended = data.draw(st.booleans())
    echo = make(twin, wanted, parts, peer)
    said = echo.feed(stream, now)
    if ended:
        said += echo.finish(now)
    verdict = judge(wanted, stream, ended)
    times = [now] * len(verdict.frames)
    assert said == b"".join(answered(wanted, parts, peer, verdict, times))
    count, offset, pending, fault = state(echo)
    assert (count, offset, pending) == (len(verdict.frames), verdict.offset, verdict.pending)
    assert (fault and fault[1:3]) == (verdict.reason and (verdict.reason, verdict.offset))


@given(st.data(), echoes())
def test_a_message_bears_the_time_of_the_recv_that_completed_it(
    twin: Any, data: st.DataObject, settings: tuple[Framing, tuple[bytes | str, ...], bytes]
) -> None:
    wanted, parts, peer = settings
    recvs = data.draw(strategies.cuts(data.draw(strategies.streams(wanted))))
    echo = make(twin, wanted, parts, peer)
    said: list[bytes] = []
    times: list[int] = []
    stream = b""
    for data_, now in zip(recvs, itertools.cycle(strategies.TIMES), strict=False):
        said.append(echo.feed(data_, now))
        stream += data_
        times += [now] * (len(judge(wanted, stream).frames) - len(times))
    said.append(echo.finish(NOW))
    verdict = judge(wanted, stream, ended=True)
    times += [NOW] * (len(verdict.frames) - len(times))
    assert b"".join(said) == b"".join(answered(wanted, parts, peer, verdict, times))


@given(
    recvs=st.lists(st.binary(max_size=8), max_size=6),
    parts=strategies.templates(),
    peer=strategies.peers,
)
def test_a_raw_reply_answers_one_recv(
    twin: Any, recvs: list[bytes], parts: tuple[bytes | str, ...], peer: bytes
) -> None:
    echo = make(twin, Framing("raw"), parts, peer)
    seq = 0
    for data in recvs:
        seq += bool(data)
        said = render(parts, NOW, seq, len(data), peer) + data if data else b""
        assert echo.feed(data, NOW) == said
    assert echo.finish(NOW) == b""
    assert state(echo) == (seq, sum(map(len, recvs)), 0, None)


def test_messages_are_numbered_from_the_first_of_the_stream(twin: Any) -> None:
    for delimiter in (b"\n", b"\r\n", b"aa"):
        echo = make(twin, Framing("delimiter", 9, delimiter), ("seq", b":", "len", b" "))
        lines = [b"x", b"", b"yz", b"w"]
        recvs = (lines[0] + delimiter, delimiter + lines[2], delimiter + lines[3])
        said = b"".join(echo.feed(data, NOW) for data in recvs) + echo.finish(NOW)
        wanted = [b"1:1 x", b"2:0 ", b"3:2 yz", b"4:1 w"]
        assert said == delimiter.join(wanted)
        assert echo.fresh().feed(delimiter, NOW) == b"1:0 " + delimiter


@pytest.mark.parametrize("growth", [0, 1, 90, 91, 118, 119, 120, 16_374])
@pytest.mark.parametrize("kind", ["varint", "netstring"])
def test_a_replys_length_is_as_short_as_can_be(twin: Any, kind: str, growth: int) -> None:
    wanted = Framing(kind, 9)
    prefix = b"p" * growth
    said = make(twin, wanted, (prefix,)).feed(wire(wanted, b"123456789"), NOW)
    assert said == wire(wanted, prefix + b"123456789")


@pytest.mark.parametrize("delimiter", [b"a", b"aa", b"ab", b"aab", b"aba", b"abab", b"aabb"])
def test_the_reply_to_every_short_stream_of_two_letters(twin: Any, delimiter: bytes) -> None:
    for limit in (2, 9):
        wanted = Framing("delimiter", limit, delimiter)
        pattern = make(twin, wanted, (b"<>",))
        for stream in map(bytes, itertools.product(b"ab", repeat=8)):
            for cut in (0, 3):
                echo = pattern.fresh()
                said = echo.feed(stream[:cut], NOW) + echo.feed(stream[cut:], NOW)
                verdict = judge(wanted, stream)
                assert said == b"".join(reply(wanted, frame, b"<>") for frame in verdict.frames)
                assert state(echo)[:3] == (len(verdict.frames), verdict.offset, verdict.pending)


# -- fragmentation never shows


@given(st.data(), echoes(), strategies.times)
def test_cuts_never_show_in_replies(
    twin: Any,
    data: st.DataObject,
    settings: tuple[Framing, tuple[bytes | str, ...], bytes],
    now: int,
) -> None:
    wanted, parts, peer = settings
    stream = data.draw(strategies.streams(wanted))
    ended = data.draw(st.booleans())

    def run(recvs: list[bytes]) -> tuple[bytes, tuple[Any, ...]]:
        echo = make(twin, wanted, parts, peer)
        said = b"".join(echo.feed(data, now) for data in recvs)
        return said + (echo.finish(now) if ended else b""), state(echo)

    assert run(data.draw(strategies.cuts(stream))) == run([stream])


@given(st.data(), echoes())
def test_no_single_cut_shows_in_replies(
    twin: Any, data: st.DataObject, settings: tuple[Framing, tuple[bytes | str, ...], bytes]
) -> None:
    wanted, parts, peer = settings
    stream = data.draw(strategies.streams(wanted, 4))[:40]
    pattern = make(twin, wanted, parts, peer)

    def run(at: Any) -> tuple[bytes, tuple[Any, ...]]:
        echo = pattern.fresh(peer)
        said = b"".join(echo.feed(piece, NOW) for piece in strategies.pieces(stream, at))
        return said, state(echo)

    whole = run([])
    assert run(range(1, len(stream))) == whole
    for place in range(len(stream) + 1):
        assert run([place]) == whole, place


# -- feed_into


def fill(echo: Any, data: bytes, size: int, now: int = NOW) -> tuple[int, bytes]:
    """(consumed, reply) of one call, which leaves alone what is not its buffer."""
    around = b"\xa5" * 128
    memory = bytearray(around + bytes(size) + around)
    out = memoryview(memory)[128 : 128 + size]
    consumed, written = echo.feed_into(data, out, now)
    assert memory.startswith(around)
    assert memory.endswith(around)
    return consumed, bytes(out[:written])


@given(st.data(), echoes(strategies.KINDS), strategies.times)
def test_out_buffers_of_any_size_get_the_bytes_of_feed(
    twin: Any,
    data: st.DataObject,
    settings: tuple[Framing, tuple[bytes | str, ...], bytes],
    now: int,
) -> None:
    wanted, parts, peer = settings
    stream = data.draw(strategies.streams(wanted))
    recvs = data.draw(strategies.cuts(stream))
    sizes = st.one_of(st.integers(0, 40), st.integers(0, 2000))
    echo, other = make(twin, wanted, parts, peer), make(twin, wanted, parts, peer)
    for whole in recvs:
        said = b""
        rest = whole
        while rest:
            part = rest if wanted.kind == "raw" else rest[: data.draw(st.integers(1, len(rest)))]
            consumed, written = fill(echo, part, data.draw(sizes), now)
            if not consumed:
                assert not written
                consumed, written = fill(echo, rest, 3000, now)
                assert consumed
            said += written
            rest = rest[consumed:]
        assert said == other.feed(whole, now)
        assert state(echo) == state(other)
    assert echo.finish(now) == other.finish(now)
    assert state(echo) == state(other)


@given(st.data(), echoes())
def test_feed_into_stops_exactly_before_the_first_reply_that_does_not_fit(
    twin: Any, data: st.DataObject, settings: tuple[Framing, tuple[bytes | str, ...], bytes]
) -> None:
    wanted, parts, peer = settings
    stream = data.draw(strategies.streams(wanted))
    verdict = judge(wanted, stream)
    replies = answered(wanted, parts, peer, verdict, [NOW] * len(verdict.frames))
    assume(replies)
    held = data.draw(st.integers(0, len(verdict.frames[0].wire) - 1))
    fitting = data.draw(st.integers(0, len(replies)))
    room = sum(map(len, replies[:fitting]))
    for size, count in ((room, fitting), (room - 1, fitting - 1), (room + 1, fitting)):
        if count < 0 or (count == fitting == len(replies)):
            continue
        if size > room and len(replies[fitting]) == 1:
            continue
        echo = make(twin, wanted, parts, peer)
        assert echo.feed(stream[:held], NOW) == b""
        end = sum(len(frame.wire) for frame in verdict.frames[:count])
        consumed, said = fill(echo, stream[held:], size)
        assert said == b"".join(replies[:count])
        assert consumed == (max(end - held, 0) if count else 0)
        assert echo.messages == count
        assert echo.offset == end
        assert echo.pending == (0 if count else held)
        assert echo.error is None
        said += echo.feed(stream[held + consumed :], NOW)
        assert said == b"".join(replies)
        assert state(echo)[:3] == (len(replies), verdict.offset, verdict.pending)


class Guarded:
    """Memory that ends where the process may not read or write."""

    def __init__(self) -> None:
        page = mmap.PAGESIZE
        self.end = 4 * page
        self._map = mmap.mmap(-1, self.end + page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(address + self.end), page, 0) == 0

    def last(self, size: int) -> memoryview:
        """The last `size` bytes before the wall."""
        return memoryview(self._map)[self.end - size : self.end]


@pytest.fixture(scope="module")
def walls() -> tuple[Guarded, Guarded]:
    return Guarded(), Guarded()


EDGES = [0, 1, 2, 15, 16, 17, 26, 31, 32, 33, 62, 63, 64, 65, 66, 127, 128, 129, 200]


def said_between(
    walls: tuple[Guarded, Guarded], echo: Any, pieces: tuple[bytes, ...], rooms: list[int]
) -> bytes:
    """The replies to these pieces, fed between the walls into rooms of these sizes, then 1,500."""
    said = b""
    for rest in pieces:
        for room in itertools.chain(rooms, itertools.repeat(1500)):
            data, out = walls[0].last(len(rest)), walls[1].last(room)
            data[:] = rest
            consumed, written = echo.feed_into(data, out, NOW)
            said += out[:written]
            rest = rest[consumed:]
            if not rest:
                break
    return said


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect")
@given(
    sizes=st.lists(st.sampled_from(EDGES), max_size=12),
    tail=st.sampled_from(EDGES),
    prefix=st.sampled_from(EDGES).map(lambda size: b"p" * size),
    delimiter=st.sampled_from([b"\n", b"\r\n", b"aab"]),
    rooms=st.lists(st.integers(0, 1500), min_size=1, max_size=4),
    cut=st.integers(0, 300),
)
def test_no_byte_past_the_end_of_a_buffer_is_read_or_written(
    twin: Any,
    walls: tuple[Guarded, Guarded],
    sizes: list[int],
    tail: int,
    prefix: bytes,
    delimiter: bytes,
    rooms: list[int],
    cut: int,
) -> None:
    echo = make(twin, Framing("delimiter", 200, delimiter), (prefix,))
    lines = [b"x" * size + delimiter for size in sizes]
    stream = b"".join(lines) + b"x" * tail
    said = said_between(walls, echo, (stream[:cut], stream[cut:]), rooms)
    assert said == b"".join(prefix + line for line in lines)
    assert state(echo) == (len(lines), len(stream) - tail, tail, None)


COUNTED = [
    Framing("any", 300, b"\r\n", others=(b"\n",)),
    Framing("fixed", 33),
    Framing("fixed", 64),
    Framing("length", 300, width=2, little=True),
    Framing("length", 300, width=3, offset=9, adjust=-2),
    Framing("length", 300, width=8, offset=2),
    Framing("varint", 300),
    Framing("netstring", 300),
]


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect")
@given(
    wanted=st.sampled_from(COUNTED),
    sizes=st.lists(st.sampled_from(EDGES), max_size=12),
    missing=st.integers(0, 70),
    prefix=st.sampled_from(EDGES).map(lambda size: b"p" * size),
    rooms=st.lists(st.one_of(st.integers(0, 900), st.just(3000)), min_size=1, max_size=4),
    cut=st.integers(0, 300),
)
def test_no_byte_past_the_end_is_read_or_written_where_lengths_are_announced(
    twin: Any,
    walls: tuple[Guarded, Guarded],
    wanted: Framing,
    sizes: list[int],
    missing: int,
    prefix: bytes,
    rooms: list[int],
    cut: int,
) -> None:
    messages = [b"x" * (wanted.max_frame if wanted.kind == "fixed" else size) for size in sizes]
    stream = b"".join(wire(wanted, message) for message in messages)
    stream = stream[: max(0, len(stream) - missing)]
    verdict = judge(wanted, stream)
    echo = make(twin, wanted, (prefix,))
    said = said_between(walls, echo, (stream[:cut], stream[cut:]), rooms)
    times = [NOW] * len(verdict.frames)
    assert said == b"".join(answered(wanted, (prefix,), b"", verdict, times))
    assert state(echo) == (len(verdict.frames), verdict.offset, verdict.pending, None)


def test_all_is_consumed_when_every_reply_fits(twin: Any) -> None:
    echo = make(twin, Framing("delimiter", 9, b"\n"), (b"> ",))
    assert fill(echo, b"a\nb\nc", 8) == (5, b"> a\n> b\n")
    assert state(echo) == (2, 4, 1, None)
    assert fill(echo, b"\n", 3) == (0, b"")
    assert state(echo) == (2, 4, 1, None)
    assert fill(echo, b"\n", 4) == (1, b"> c\n")


def test_a_fault_waits_for_the_replies_before_it(twin: Any) -> None:
    echo = make(twin, Framing("netstring", 9), (b">",))
    data = b"1:a,1:b,?1:c,"
    assert fill(echo, data, 5) == (4, b"2:>a,")
    assert echo.error is None
    assert fill(echo, data[4:], 4) == (0, b"")
    assert echo.error is None
    assert fill(echo, data[4:], 5) == (9, b"2:>b,")
    assert state(echo)[3][:3] == (FrameCorrupt, "corrupt", 8)
    assert fill(echo, b"1:d,", 0) == (4, b"")
    assert echo.finish(NOW) == b""


@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n", b"aa", b"aba", b"aab"])
def test_what_did_not_fit_can_be_fed_again_after_any_cut(twin: Any, delimiter: bytes) -> None:
    stream = b"xy" + delimiter + b"z" + delimiter
    for cut in range(len(delimiter) + 2):
        echo = make(twin, Framing("delimiter", 9, delimiter), (b">",))
        assert echo.feed(stream[:cut], NOW) == b""
        for size in range(len(delimiter) + 3):
            assert fill(echo, stream[cut:], size) == (0, b"")
            assert state(echo) == (0, 0, cut, None)
        assert fill(echo, stream[cut:], 99) == (
            len(stream) - cut,
            b">xy" + delimiter + b">z" + delimiter,
        )


def test_no_fault_is_seen_in_what_is_not_consumed(twin: Any) -> None:
    echo = make(twin, Framing("delimiter", 3, b"\n"), (b">",))
    assert fill(echo, b"a\nbbbb\n", 2) == (0, b"")
    assert fill(echo, b"a\nb", 3) == (3, b">a\n")
    assert state(echo) == (1, 2, 1, None)
    assert fill(echo, b"c\ndddd\n", 3) == (0, b"")
    assert fill(echo, b"c\nd\n", 7) == (4, b">bc\n>d\n")
    assert state(echo) == (3, 7, 0, None)


def test_a_buffer_without_room_is_still_a_buffer(twin: Any) -> None:
    echo = make(twin, Framing("delimiter", 9, b"\n"))
    assert echo.feed_into(b"ab", bytearray(), NOW) == (2, 0)
    assert echo.feed_into(b"c\n", bytearray(), NOW) == (0, 0)
    assert state(echo) == (0, 0, 2, None)
    assert echo.feed_into(b"c\n", bytearray(4), NOW) == (2, 4)


def test_any_writable_buffer_takes_replies(twin: Any) -> None:
    for out in (bytearray(6), array.array("B", bytes(6)), array.array("H", bytes(6))):
        echo = make(twin, Framing("delimiter", 9, b"\n"), (b"> ",))
        assert echo.feed_into(bytearray(b"abc\n"), out, NOW) == (4, 6)
        assert bytes(out) == b"> abc\n"


# -- wrong use


TIMED: list[Callable[[Any, Any], object]] = [
    lambda echo, now: echo.feed(b"x\n", now),
    lambda echo, now: echo.feed(b"", now),
    lambda echo, now: echo.feed_into(b"x\n", bytearray(99), now),
    lambda echo, now: echo.finish(now),
]


@pytest.mark.parametrize("call", TIMED, ids=["feed", "feed nothing", "feed_into", "finish"])
def test_a_time_that_no_clock_shows_is_refused(
    twin: Any, call: Callable[[Any, Any], object]
) -> None:
    echo = make(twin, Framing("delimiter", 9, b"\n"), ("ctime",))
    for number in (-1, 2**63, 2**64, -(2**70), 2**200):
        with pytest.raises(ValueError, match=rf"now_ns.*not {number}"):
            call(echo, number)
    for wrong in ("1", None, 1.0, b"1"):
        with pytest.raises(TypeError):
            call(echo, wrong)
    assert state(echo) == (0, 0, 0, None)
    assert echo.feed(b"x\n", 0) == b"Thu Jan  1 00:00:00 1970x\n"
    assert echo.finish(2**63 - 1) == b""


@pytest.mark.parametrize("call", TIMED, ids=["feed", "feed nothing", "feed_into", "finish"])
def test_nothing_after_finish(twin: Any, call: Callable[[Any, Any], object]) -> None:
    echo = make(twin, Framing("delimiter", 9, b"\n"))
    assert echo.feed(b"x", NOW) == b""
    assert echo.finish(NOW) == b"x"
    with pytest.raises(ValueError, match=r"after finish\(\)"):
        call(echo, NOW)
    assert state(echo) == (1, 1, 0, None)


def test_what_is_no_contiguous_buffer_is_refused(twin: Any) -> None:
    echo = make(twin, Framing("delimiter", 9, b"\n"))
    sparse = memoryview(bytearray(8))[::2]
    for wrong in ("text", None, 3):
        with pytest.raises(TypeError):
            echo.feed(wrong, NOW)
        with pytest.raises(TypeError):
            echo.feed_into(wrong, bytearray(9), NOW)
        with pytest.raises(TypeError):
            echo.feed_into(b"x\n", wrong, NOW)
    for data, out in ((sparse, bytearray(9)), (b"x\n", sparse), (b"x\n", b"readonly")):
        with pytest.raises(BufferError):
            echo.feed_into(data, out, NOW)
    with pytest.raises(BufferError):
        echo.feed_into(b"x\n", memoryview(bytearray(9)).toreadonly(), NOW)
    with pytest.raises(BufferError):
        echo.feed(sparse, NOW)
    assert state(echo) == (0, 0, 0, None)
    assert echo.feed(b"x\n", NOW) == b"x\n"


@pytest.mark.parametrize(
    ("wanted", "room"),
    [
        (Framing("length", 200, width=1), 55),
        (Framing("length", 200, width=1, adjust=-50), 5),
        (Framing("length", 200, width=1, adjust=50), 105),
        (Framing("length", 65_000, width=2, little=True), 535),
    ],
    ids=lambda value: value.spec if isinstance(value, Framing) else None,
)
def test_a_length_field_must_hold_the_longest_reply(twin: Any, wanted: Framing, room: int) -> None:
    echo = make(twin, wanted, (b"x" * room,))
    frame = wire(wanted, b"m" * wanted.max_frame)
    reply_field = bytes([255]) if wanted.width == 1 else b"\xff\xff"
    assert echo.feed(frame, NOW).startswith(reply_field + b"x" * room + b"m")
    with pytest.raises(ConfigError, match=r"length field"):
        make(twin, wanted, (b"x" * (room + 1),))


def test_a_length_field_must_hold_the_longest_that_a_token_can_render(twin: Any) -> None:
    make(twin, Framing("length", 255 - 128, width=1), ("peer",))
    with pytest.raises(ConfigError):
        make(twin, Framing("length", 255 - 127, width=1), ("peer",))


def test_a_peer_is_bounded(twin: Any) -> None:
    wanted = Framing("delimiter", 9, b"\n")
    assert make(twin, wanted, ("peer",), b"p" * 128).feed(b"\n", NOW) == b"p" * 128 + b"\n"
    with pytest.raises(ConfigError, match=r"128"):
        make(twin, wanted, ("peer",), b"p" * 129)


def test_fresh_begins_another_peers_stream(twin: Any) -> None:
    echo = make(twin, Framing("delimiter", 1, b"\n"), ("peer", b":", "seq", b" "), b"one")
    assert echo.feed(b"a\nbbb", NOW) == b"one:1 a\n"
    assert isinstance(echo.error, FrameTooLong)
    fresh = echo.fresh(b"two")
    assert state(fresh) == (0, 0, 0, None)
    assert fresh.feed(b"c\n", NOW) == b"two:1 c\n"
    assert echo.fresh().feed(b"d\n", NOW) == b":1 d\n"
    assert echo.messages == 1


def test_replies_do_not_share_memory_with_what_came(twin: Any) -> None:
    echo = make(twin, Framing("delimiter", 9, b"\n"))
    data = bytearray(b"a\nb")
    said = echo.feed(data, NOW)
    data[:] = b"???"
    assert said == b"a\n"
    assert type(said) is bytes
    assert echo.finish(NOW) == b"b"
