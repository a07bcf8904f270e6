"""The load generator's engine: each twin against a peer that the test plays byte by byte.

The judge is the real one (`fastecho.load.Messages`), and so are the replies (`fastecho.Echo`); what
the engine should make of them is worked out here again.
"""

from __future__ import annotations

import random
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from conftest import load
from hdrh.histogram import HdrHistogram
from hypothesis import example, given, settings
from hypothesis import strategies as st
from processes import abort
from sites import PATIENCE, patiently, tune

from fastecho import Echo, backend, framing, prefix
from fastecho.load import Messages, Plan, add, histogram

NAMES = ("pure", "native")
WINDOW = 65_536
SECOND = 1_000_000_000
COUNTS = (
    *("left", "sent", "received", "bytes_out", "bytes_in"),
    *("lost", "late", "duplicate", "reordered", "corrupt"),
)
INT64 = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 5_000),
    st.integers(0, 62).flatmap(lambda bits: st.integers(2**bits - 2, 2**bits + 1)),
)


@pytest.fixture(scope="session", params=NAMES)
def engine(request: pytest.FixtureRequest) -> Any:
    """The engine of each of the twins, one after the other."""
    load(request.param)
    return backend.engine(request.param)


@pytest.fixture(scope="session")
def engines() -> tuple[Any, Any]:
    """Both, to be compared: pure, native."""
    return tuple(map(_engine, NAMES))


def _engine(name: str) -> Any:
    load(name)
    return backend.engine(name)


class Owner:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def wrong(self, channel: Any, sentence: str, data: bytes) -> None:
        self.told.append(("wrong", sentence, bytes(data)))

    def ended(self, channel: Any, reason: str) -> None:
        self.told.append(("ended", reason))


class Site:
    """Channels on a selector that is stepped by hand, and the other end of each.

    Args:
        engine: of which twin.
        plan: of which only the messages' form matters here.
        left: messages that may be sent.
        kind: `pair` (of UNIX streams), `tcp`, `udp` or `unixgram`.
        base: the number of the first message.
        small: whether the kernel takes little at a time.
        offsets, period, channels: of a schedule, if there is to be one.
    """

    def __init__(
        self,
        engine: Any,
        plan: Plan,
        left: int = 0,
        kind: str = "pair",
        base: int = 0,
        small: bool = False,
        offsets: list[int] | None = None,
        period: int = 0,
        channels: int = 1,
        pipeline: int | None = None,
    ) -> None:
        self.stack = ExitStack()
        twin = backend.load(engine.__name__.split(".")[1].removeprefix("_"))
        self.plan = plan
        self.judge = Messages(plan, twin, engine, stream=kind in ("pair", "tcp"))
        self.source = engine.Source(
            self.judge.kinds, self.judge.order, self.judge.digits, self.judge
        )
        self.tally = engine.Tally(left)
        self.owner = Owner()
        self.selector = self.stack.enter_context(twin.Selector())
        self.schedule = None if offsets is None else engine.Schedule(offsets, period, channels)
        make = engine.StreamChannel if kind in ("pair", "tcp") else engine.DatagramChannel
        self.channels, self.peers = [], []
        for index in range(channels):
            ours, peer = connected(kind, small)
            self.stack.callback(ours.close)
            self.peers.append(self.stack.enter_context(peer))
            ours.setblocking(False)
            peer.setblocking(False)
            self.channels.append(
                make(
                    *(ours, self.selector, self.source, self.tally, self.owner),
                    *(pipeline or plan.pipeline, base, self.schedule, index),
                )
            )
        if self.schedule is not None:
            self.schedule.channels.extend(self.channels)
        self.channel, self.peer = self.channels[0], self.peers[0]

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *failure: object) -> None:
        self.stack.close()

    def state(self) -> tuple[Any, ...]:
        """All that can be seen, but for times."""
        channels = [(each.sent, each.answered, each.lost, each.owed) for each in self.channels]
        more = [(each.flying, each.open) for each in self.channels]
        counts = [getattr(self.tally, name) for name in COUNTS]
        return counts, channels, more, list(self.owner.told), self.source.prefix

    def taken(self, peer: socket.socket | None = None) -> bytes:
        """What has been sent and not read yet."""
        data = b""
        while True:
            try:
                piece = (peer or self.peer).recv(1 << 20)
            except BlockingIOError:
                return data
            data += piece
            if not piece:
                return data

    def datagram(self) -> bytes:
        """The next that was sent."""
        self.peer.settimeout(PATIENCE)
        return self.peer.recv(WINDOW)

    def give(self, data: bytes) -> None:
        """Have the channel receive just this, in one piece."""
        if not self.channel.open:
            return
        before = self.tally.bytes_in
        try:
            self.peer.send(data)
        except OSError:  # it has closed
            return
        self.until(lambda: self.tally.bytes_in > before or not self.channel.open)

    def end(self) -> None:
        """End the peer's side."""
        self.peer.close()
        self.until(lambda: not self.channel.open)

    def until(self, done: Callable[[], object]) -> None:
        """Take turns until something is so."""
        for _ in patiently():
            if done():
                return
            self.selector.dispatch(0.01)
        pytest.fail(f"it never came to that: {self.state()}")


def connected(kind: str, small: bool = False) -> tuple[socket.socket, socket.socket]:
    """Two sockets that talk to each other."""
    if kind in ("pair", "unixgram"):
        type_ = socket.SOCK_STREAM if kind == "pair" else socket.SOCK_DGRAM
        ours, peer = socket.socketpair(socket.AF_UNIX, type_)
        if small:
            for each in (ours, peer):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return ours, peer
    if kind == "udp":
        ours, peer = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        for each in (ours, peer):
            each.bind(("127.0.0.1", 0))
        ours.connect(peer.getsockname())
        peer.connect(ours.getsockname())
        return ours, peer
    ours = socket.socket()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if small:
            tune(listener)
            tune(ours)
        listener.listen()
        ours.connect(listener.getsockname())
        peer, _ = listener.accept()
    return ours, peer


# -- the histogram


@given(st.lists(INT64, max_size=40))
@example([0, -1, 1023, 1024, 2047, 2048, 2**63 - 1, -(2**63)])
def test_histograms_count_in_the_layout_of_hdr(engines: tuple[Any, Any], values: list[int]) -> None:
    found = []
    for engine in engines:
        latency = engine.Tally(0).latency
        for value in values:
            latency.record(value)
        found.append(latency.take())
        assert latency.take() == []
    assert found[0] == found[1]
    assert sum(count for _, count in found[0]) == len(values)
    theirs = HdrHistogram(1, 2**62, 3)
    lowest = sorted({theirs.get_lowest_equivalent_value(max(value, 0)) for value in values})
    assert [low for low, _ in found[0]] == lowest
    for low, _ in found[0]:
        assert any(low <= max(value, 0) <= low + (low >> 10) for value in values)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1])
def test_the_native_histogram_refuses_what_no_clock_gives(value: int) -> None:
    with pytest.raises(OverflowError):
        _engine("native").Tally(0).latency.record(value)


@settings(max_examples=15)  # the library is slow
@given(st.lists(st.integers(1, 3_600 * SECOND), min_size=1, max_size=300))
def test_percentiles_are_those_of_the_samples(engines: tuple[Any, Any], values: list[int]) -> None:
    values.sort()
    for engine in engines:
        latency, total = engine.Tally(0).latency, histogram()
        for value in values:
            latency.record(value)
        add(total, latency.take())
        assert total.get_total_count() == len(values)
        percents = (0, 1, 50, 90, 99, 99.9, 100)
        for percent, found in total.get_percentile_to_value_dict(percents).items():
            rank = max(int(percent / 100 * len(values) + 0.5), 1)
            assert found == pytest.approx(values[rank - 1], rel=1e-3)
        mean = sum(values) / len(values)
        assert total.get_mean_value() == pytest.approx(mean, rel=1e-3)


# -- streams: what is right


WORLDS = (
    *(
        "line",
        "delimiter:0d0a",
        "delimiter:" + b"|".hex(),
        "any:0d0a,0a,7c",
        "raw",
        "u8",
        "u16",
        "u24le",
        "u32",
    ),
    *("u64le", "length:width=3,offset=5,adjust=4", "length:width=2,adjust=-3,le"),
    *("varint", "netstring", "fixed"),
)
FIXED_WIDTH = ("", "<>", "[{ctime}]", "{utc} ", "{iso}|")
PREFIXES = (*FIXED_WIDTH[:3], "{seq}:", "{len}/", "{epoch_ns}-{seq}-", "{peer} {utc} ", "{pid}.")
PAYLOADS = (0, 1, 2, 3, 4, 7, 8, 9, 16, 31, 127, 128, 255, 300)


@st.composite
def plans(
    draw: st.DrawFn, worlds: tuple[str, ...] = WORLDS, prefixes: tuple[str, ...] = PREFIXES
) -> Plan:
    """Messages in any framing, of one size or a few."""
    world = draw(st.sampled_from(worlds))
    template = draw(st.sampled_from([each for each in prefixes if "|" not in each]))
    lengths = draw(st.lists(st.sampled_from(PAYLOADS), min_size=1, max_size=4))
    if world == "fixed":
        size = max(lengths[0], 1)
        world, lengths = f"fixed:{size}", [size]
        template = draw(st.sampled_from(FIXED_WIDTH))
    if world == "raw":
        lengths = [max(length, 1) for length in lengths]
    if world == "u8":
        lengths = [min(length, 50) for length in lengths]
        template = template if prefix.longest(template) < 200 else "<>"
    if "adjust=4" in world:
        lengths = [max(length, 4) for length in lengths]
    if world in ("delimiter:7c", "any:0d0a,0a,7c"):
        template = template.replace("{peer} ", "")
    cut = framing.parse(world)
    codec = cut.codec(backend.load("pure"), None)
    sizes = [len(codec.encode(b"x" * length)) for length in lengths]
    return Plan(
        framing=world,
        prefix=template,
        size=",".join(map(str, sizes)),
        pipeline=1 if world == "raw" else draw(st.sampled_from([1, 2, 3, 16, 100])),
        seed=draw(st.integers(0, 3)),
    )


def pieces(data: bytes, chance: random.Random, largest: int) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = chance.randint(1, largest)
        yield data[at : at + size]
        at += size


def converse(
    engine: Any, plan: Plan, left: int, base: int, seed: int, largest: int
) -> tuple[Any, ...]:
    """Answer everything, in pieces of any size, with times that go on; what was seen."""
    chance = random.Random(seed)
    server = Echo(plan.framing, plan.prefix, peer="127.0.0.1:7", backend="pure")
    now, trace, asked = 1_700_000_000 * SECOND, [], b""
    replies = b""
    with Site(engine, plan, left, base=base) as site:
        site.channel.fill(0)
        while (requests := site.taken()) or replies:
            asked += requests
            for piece in [requests] if plan.framing == "raw" else pieces(requests, chance, 400):
                replies += server.feed(piece, now)
                now += chance.choice([0, 1, SECOND // 3, 40 * SECOND])
            keep = chance.randint(0, len(replies) // 2) if requests else 0
            for piece in pieces(replies[: len(replies) - keep], chance, largest):
                site.give(piece)
                trace.append(site.state())
            replies = replies[len(replies) - keep :]
        assert site.owner.told == []
        assert (site.tally.received, site.tally.left, site.channel.flying) == (left, 0, 0)
        assert site.tally.bytes_out == len(asked)
        assert sum(count for _, count in site.tally.latency.take()) == left
        site.end()
        assert site.owner.told == [("ended", "eof")]
        return asked, trace, site.state()


@given(
    plan=plans(),
    left=st.integers(1, 60),
    base=st.sampled_from([0, 1, 255, 2**32 - 3, 0x9E3779B1]),
    seed=st.integers(0, 2**32),
    largest=st.sampled_from([1, 3, 50, 100_000]),
)
def test_every_cut_of_the_right_replies_is_right(
    engines: tuple[Any, Any], plan: Plan, left: int, base: int, seed: int, largest: int
) -> None:
    if largest == 1:
        left = min(left, 4)
    seen = [converse(engine, plan, left, base, seed, largest) for engine in engines]
    assert seen[0] == seen[1]


def test_messages_are_told_apart_and_fill_their_frames(engine: Any) -> None:
    plan = Plan(size="9,12,40", pipeline=50)
    with Site(engine, plan, left=50) as site:
        site.channel.fill(0)
        lines = site.taken().split(b"\n")
        assert lines.pop() == b""
        assert len(set(lines)) == 50
        assert {len(line) + 1 for line in lines} == {9, 12, 40}


# -- streams: what is wrong


CHANGES = ("change", "delete", "insert", "double", "swap", "drop", "repeat", "extra", "cut")


@st.composite
def mutations(draw: st.DrawFn, replies: list[bytes]) -> bytes:
    """The replies in one stream, with one thing wrong."""
    stream = b"".join(replies)
    kind = draw(st.sampled_from(CHANGES))
    at = draw(st.integers(0, len(stream) - 1))
    octet = draw(st.one_of(st.integers(0, 255), st.sampled_from(sorted(set(stream)))))
    first, second = (draw(st.integers(0, len(replies) - 1)) for _ in range(2))
    match kind:
        case "change":
            return stream[:at] + bytes([octet]) + stream[at + 1 :]
        case "delete":
            return stream[:at] + stream[at + 1 :]
        case "insert":
            return stream[:at] + bytes([octet]) + stream[at:]
        case "double":
            return stream[:at] + stream[at : at + 1] + stream[at:]
        case "cut":
            return stream[:at]
        case "extra":
            return stream + bytes([octet])
        case "swap":
            replies = list(replies)
            replies[first], replies[second] = replies[second], replies[first]
        case "drop":
            replies = replies[:first] + replies[first + 1 :]
        case "repeat":
            replies = replies[:first] + replies[first : first + 1] + replies[first:]
    return b"".join(replies)


def rights(stream: bytes, replies: list[bytes], template: str, made: bytes) -> tuple[int, int]:
    """How many right replies the stream begins with, and the bytes that they take."""
    at = 0
    for count, reply in enumerate(replies):
        head, body = reply.split(made, 1) if made else (b"", reply)
        pattern = re.escape(head) + b"(?:" + prefix.form(template).pattern + b")" + re.escape(body)
        found = re.compile(pattern, re.DOTALL).match(stream, at)
        if not found:
            return count, at
        at = found.end()
    return len(replies), at


@settings(max_examples=200)
@given(data=st.data(), seed=st.integers(0, 2**32), warm=st.booleans())
def test_whatever_is_wrong_is_caught_and_told_once(
    engines: tuple[Any, Any], data: st.DataObject, seed: int, warm: bool
) -> None:
    plan = data.draw(plans(prefixes=FIXED_WIDTH))
    count = 1 if plan.framing == "raw" else data.draw(st.integers(1, min(plan.pipeline, 5)))
    made = backend.load("pure").Stamper(prefix.parse(plan.prefix)).render(0, 1, 0, b"")
    stream, seen, replies = b"", [], []
    for engine in engines:
        chance = random.Random(seed)
        with Site(engine, plan, left=count) as site:
            if warm:  # such a prefix was right before
                site.source.adopt(made)
            site.channel.fill(0)
            asked = site.taken()
            if not replies:
                replies = one_by_one(plan, asked)
                assert b"".join(replies) == Echo(plan.framing, plan.prefix).feed(asked, 0)
                stream = data.draw(mutations(replies))
            for piece in pieces(stream, chance, chance.choice([1, 5, 1_000])):
                site.give(piece)
            if site.channel.open:
                site.end()
            right, end = rights(stream, replies, plan.prefix, made)
            assert site.tally.received == right
            assert site.channel.flying == count - right
            told = site.owner.told
            assert len(told) == 1, told
            if right < count or end < len(stream):
                assert told[0][0] == "wrong" or right < count
                if told[0][0] == "wrong":
                    assert stream[end:].startswith(told[0][2])
            else:
                assert told == [("ended", "eof")]
            seen.append((asked, site.state()))
    assert seen[0] == seen[1]


def one_by_one(plan: Plan, asked: bytes) -> list[bytes]:
    """Each reply by itself."""
    server = Echo(plan.framing, plan.prefix, backend="pure")
    replies = []
    at = 0
    for end in range(1, len(asked) + 1):
        if plan.framing != "raw" or end == len(asked):
            reply = server.feed(asked[at:end], 0)
            at = end
            if reply:
                replies.append(reply)
    return replies


def test_a_first_wrong_reply_is_told_without_the_right_ones_before_it(
    engines: tuple[Any, Any],
) -> None:
    for engine in engines:
        with Site(engine, Plan(prefix="<>", size="10", pipeline=3), left=3) as site:
            site.channel.fill(0)
            first, second, third = site.taken().splitlines(keepends=True)
            site.give(b"<>" + first[:4])
            site.give(first[4:] + b"<>" + third + b"<>" + second)
            assert site.owner.told == [
                (
                    "wrong",
                    "it does not end with the message it answers",
                    b"<>%b<>%b" % (third, second),
                )
            ]
            assert (site.tally.received, site.channel.open, site.channel.fileno()) == (1, False, -1)
            site.channel.close()  # again
            site.channel.fill(0)
            assert site.tally.sent == 3


def test_what_never_ends_is_held_for_no_longer_than_a_reply_can_be(
    engines: tuple[Any, Any],
) -> None:
    plan = Plan(prefix="<{peer}>", size="100")
    for engine in engines:
        with Site(engine, plan, left=1) as site:
            site.channel.fill(0)
            for _ in range(100):
                site.give(b"<" + b"x" * 9_999)
            assert [told[0] for told in site.owner.told] == ["wrong"]
            assert site.tally.bytes_in <= WINDOW + 20_000


@pytest.mark.parametrize("size", ["2", "65536", str(2**62)])
def test_a_length_that_no_reply_can_have_is_wrong_at_once(engine: Any, size: str) -> None:
    with Site(engine, Plan(framing="u64", size="20", prefix="<>"), left=1) as site:
        site.channel.fill(0)
        site.give(struct.pack(">Q", int(size)) + b"<>")
        assert [told[0] for told in site.owner.told] == ["wrong"]


@pytest.mark.parametrize(
    ("framing", "size"),
    [("netstring", "3,4,5"), ("line", "1,2"), ("u32", "4"), ("delimiter:6162", "2")],
)
def test_messages_of_no_bytes_keep_their_frames(engine: Any, framing: str, size: str) -> None:
    plan = Plan(framing=framing, size=size, pipeline=9, prefix="<{seq}>", seed=5)
    converse(engine, plan, left=300, base=0, seed=1, largest=1_000)


# -- streams: the kernel


@pytest.mark.parametrize("kind", ["pair", "tcp"])
@pytest.mark.parametrize("size", ["3000", "100-9000", "600000"])
def test_more_than_all_buffers_hold_is_sent_while_reading(
    engine: Any, kind: str, size: str
) -> None:
    count = 6 if size == "600000" else 300
    plan = Plan(prefix="<>", framing="u32", size=size, pipeline=count)
    server = Echo(plan.framing, plan.prefix, max_frame=1_000_000, backend="pure")
    chance = random.Random(size)
    with Site(engine, plan, left=count, kind=kind, small=True) as site:
        site.channel.fill(0)
        assert site.tally.bytes_out < 200_000  # of about a million, or of 3.6
        replies = b""
        for _ in patiently():
            if site.tally.received == count or not site.channel.open:
                break
            with suppress(BlockingIOError):
                replies += server.feed(site.peer.recv(chance.randint(1, 1 << 17)), 0)
            with suppress(BlockingIOError):
                replies = replies[site.peer.send(replies[: chance.randint(1, 1 << 17)]) :]
            site.selector.dispatch(0)
        assert (site.tally.received, site.owner.told) == (count, [])


def test_a_peer_that_reads_nothing_blocks_nobody(engine: Any) -> None:
    with Site(engine, Plan(size="70000", pipeline=50), left=50, small=True) as site:
        site.channel.fill(0)
        for _ in range(5):
            site.selector.dispatch(0)
        assert site.tally.sent < 50
        assert site.tally.bytes_out < 70_000 * site.tally.sent
        before = site.tally.bytes_out
        site.until(lambda: site.taken() and site.tally.bytes_out > before)
        assert site.owner.told == []


@pytest.mark.parametrize("how", [abort, socket.socket.close])
def test_an_end_is_told_by_its_reason(engine: Any, how: Callable[[socket.socket], None]) -> None:
    with Site(engine, Plan(), left=3, kind="tcp") as site:
        site.channel.fill(0)
        assert len(site.taken()) == 64
        how(site.peer)
        site.until(lambda: not site.channel.open)
        assert site.owner.told == [("ended", "reset" if how is abort else "eof")]
        assert (site.tally.sent, site.channel.flying) == (1, 1)


# -- datagrams


class Model:
    """What becomes of datagrams, by the contract."""

    def __init__(self, timeout: int) -> None:
        self.timeout = timeout
        self.states: list[str] = []
        self.times: list[int] = []
        self.latest = -1
        self.counts = dict.fromkeys(COUNTS[5:], 0) | {"received": 0}

    def sent(self, count: int, now: int) -> None:
        self.states += ["flying"] * count
        self.times += [now] * count

    def reply(self, n: int) -> None:
        match self.states[n]:
            case "flying":
                self.counts["received"] += 1
                self.counts["reordered"] += n < self.latest
                self.latest = max(n, self.latest)
            case "lost":
                self.counts["late"] += 1
            case _:
                self.counts["duplicate"] += 1
        self.states[n] = "answered"

    def expire(self, now: int) -> None:
        for n, state in enumerate(self.states):
            if state == "flying" and now - self.times[n] > self.timeout:
                self.states[n] = "lost"
                self.counts["lost"] += 1


STEPS = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 9)),
    st.tuples(st.just("reply"), st.integers(0, 2**30)),
    st.tuples(st.just("reply"), st.integers(0, 3)),
    st.tuples(st.just("expire"), st.integers(0, 12)),
    st.tuples(st.just("corrupt"), st.integers(0, 2**30)),
)


@given(
    steps=st.lists(STEPS, max_size=40),
    size=st.sampled_from(["4", "64", "4-300", "8,1200"]),
    template=st.sampled_from(["<>", "", "[{ctime}]", "{seq}:", "{seq}"]),
    base=st.sampled_from([0, 2**32 - 5, 0x9E3779B1]),
    pipeline=st.sampled_from([1, 5, 100]),
)
def test_datagrams_are_counted_apart(
    engines: tuple[Any, Any],
    steps: list[tuple[str, int]],
    size: str,
    template: str,
    base: int,
    pipeline: int,
) -> None:
    traces = []
    for engine in engines:
        model, now, told = Model(timeout=10), 0, 0
        trace: list[Any] = []
        stamper = backend.load("pure").Stamper(prefix.parse(template))
        asked: list[bytes] = []
        plan = Plan(udp=True, size=size, prefix=template, pipeline=pipeline)
        with Site(engine, plan, kind="udp", base=base) as site:
            site.channel.timeout = model.timeout
            for step, value in steps:
                if step == "send":
                    flying = model.states.count("flying")
                    count = min(value, pipeline - flying)
                    site.tally.left = value
                    site.channel.fill(now)
                    site.tally.left = 0
                    model.sent(count, now)
                    asked += [site.datagram() for _ in range(count)]
                    now += 1
                elif step == "expire":
                    now += value
                    site.channel.expire(now)
                    model.expire(now)
                elif asked:
                    n = value % len(asked) if value > 3 else max(len(asked) - 1 - value, 0)
                    made = stamper.render((value % 4) * 40 * SECOND, value % 300, 0, b"")
                    reply = made + asked[n]
                    if step == "corrupt":
                        at = len(made) + value % len(asked[n])
                        reply = reply[:at] + bytes([reply[at] ^ 0x80]) + reply[at + 1 :]
                        model.counts["corrupt"] += 1
                        told += 1
                    else:
                        model.reply(n)
                    site.give(reply)
                flying = model.states.count("flying")
                assert site.channel.flying == flying
                assert {name: getattr(site.tally, name) for name in model.counts} == model.counts
                assert len(site.owner.told) == told
                trace.append(site.state())
            assert site.channel.open
        traces.append((trace, asked))
    assert traces[0] == traces[1]


@given(
    size=st.sampled_from(["0", "1", "0-3", "2,300", "0,1,2,3,4,5,6,7,8,9"]),
    template=st.sampled_from(["<>", "{seq}:"]),
    seed=st.integers(0, 99),
    stray=st.integers(1, 40),
)
def test_short_datagrams_in_any_order_are_no_false_alarm(
    engines: tuple[Any, Any], size: str, template: str, seed: int, stray: int
) -> None:
    states = []
    for engine in engines:
        chance = random.Random(seed)
        waiting: list[bytes] = []
        count = 0
        plan = Plan(udp=True, size=size, prefix=template, pipeline=40, seed=seed)
        with Site(engine, plan, left=200, kind="udp") as site:
            site.channel.fill(0)
            while site.tally.received < 200:
                while len(waiting) < site.channel.flying:
                    count += 1
                    made = b"<>" if template == "<>" else b"%d:" % count
                    waiting.append(made + site.datagram())
                site.give(waiting.pop(chance.randrange(min(stray, len(waiting)))))
            assert site.owner.told == []
            assert (site.tally.duplicate, site.tally.late, site.tally.corrupt) == (0, 0, 0)
            if stray == 1:
                assert site.tally.reordered == 0
            states.append(site.state())
    assert states[0] == states[1]


def test_the_oldest_datagram_falls_out_of_the_window(engine: Any) -> None:
    plan = Plan(udp=True, size="8", prefix="")
    with Site(engine, plan, left=WINDOW + 3, kind="udp", pipeline=WINDOW + 9) as site:
        site.channel.timeout = 2**62
        site.until(lambda: site.channel.fill(0) or site.tally.left == 0)
        assert (site.tally.sent, site.tally.lost, site.channel.flying) == (WINDOW + 3, 3, WINDOW)
        frame = bytearray(site.datagram())  # message 0
        number = dict(enumerate(site.judge.digits))
        for n in (0, 2, 3, WINDOW + 2, 3):  # late, late, right, right, twice
            frame[:8] = bytes(number[n >> 4 * place & 15] for place in range(7, -1, -1))
            site.give(bytes(frame))
        assert (site.tally.late, site.tally.received, site.tally.duplicate) == (2, 2, 1)
        assert site.tally.reordered == 0
        site.channel.expire(2**62 - 1)
        assert site.tally.lost == 3


def test_datagrams_nobody_takes_are_sent_later(engine: Any) -> None:
    with Site(
        engine, Plan(size="1000", pipeline=2_000), left=2_000, kind="unixgram", small=True
    ) as site:
        site.channel.fill(0)
        assert 0 < site.tally.sent < 2_000
        asked: list[bytes] = []
        for _ in patiently():
            if site.tally.sent == 2_000 == len(asked):
                break
            with suppress(BlockingIOError):
                asked.append(site.peer.recv(WINDOW))
            site.selector.dispatch(0)
        assert len(set(asked)) == 2_000
        assert site.tally.bytes_out == 2_000_000
        assert site.owner.told == []


def test_nobody_there_ends_a_datagram_channel(engine: Any) -> None:
    with Site(engine, Plan(udp=True), left=5, kind="udp") as site:
        site.peer.close()
        site.channel.fill(0)
        site.until(lambda: not site.channel.open)
        assert site.owner.told == [("ended", "econnrefused")]
        site.channel.expire(2**62)
        site.channel.fill(0)


@pytest.mark.parametrize("size", ["0", "1", "100", "1400", "60,1200", "9000"])
def test_the_kernel_cuts_and_joins(engine: Any, size: str) -> None:
    plan = Plan(udp=True, size=size, prefix="<>", pipeline=150)
    with Site(engine, plan, left=150, kind="udp") as site:
        site.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        try:
            site.channel.offload(64)
        except OSError as error:
            pytest.skip(f"the kernel cannot: {error}")
        for _ in range(3):
            site.tally.left = 150
            before = site.tally.sent
            site.channel.fill(0)
            sent = site.tally.sent - before
            assert sent == 150
            asked = [site.datagram() for _ in range(sent)]
            if size != "60,1200" and size != "0":
                segment = len(asked[0]) + 2
                batch = min(64, 65_000 // segment)
                for at in range(0, sent, batch):
                    part = [b"<>" + each for each in asked[at : at + batch]]
                    control = [(socket.IPPROTO_UDP, 103, struct.pack("H", segment))]
                    done = site.tally.received + len(part)
                    site.peer.sendmsg(part, control)
                    site.until(lambda done=done: site.tally.received == done)
            else:
                for each in asked:
                    site.give(b"<>" + each)
        assert (site.tally.received, site.tally.sent) == (450, 450)
        assert [site.tally.reordered, site.tally.duplicate, site.owner.told] == [0, 0, []]


@given(
    data=st.lists(
        st.one_of(
            st.binary(max_size=80),
            st.tuples(st.sampled_from([b"<>", b"", b"<>>", b"<1>"]), st.binary(max_size=9)).map(
                b"".join
            ),
        ),
        min_size=1,
        max_size=20,
    ),
    size=st.sampled_from(["0", "1", "8", "3,40"]),
    sent=st.integers(0, 5),
)
def test_any_bytes_from_a_server_are_taken_alike(
    engines: tuple[Any, Any], data: list[bytes], size: str, sent: int
) -> None:
    for kind in ("pair", "udp"):
        if kind == "pair":
            size = ",".join(str(int(each) + 1) for each in size.split(","))
        states = []
        for engine in engines:
            with Site(
                engine, Plan(prefix="<>", size=size, pipeline=9), left=sent, kind=kind
            ) as site:
                site.channel.fill(0)
                for each in data:
                    if each:
                        site.give(each)
                assert site.tally.received == 0 or size in ("0", "1", "1,2", "2")
                states.append(site.state())
        assert states[0] == states[1]


# -- the schedule


@given(
    gaps=st.integers(0, 6).flatmap(
        lambda bits: st.lists(st.integers(0, 10**9), min_size=2**bits, max_size=2**bits)
    ),
    start=st.integers(0, 10**15),
    more=st.integers(0, 10**9),
    channels=st.integers(1, 5),
)
def test_messages_are_due_in_order_and_for_ever(
    engines: tuple[Any, Any], gaps: list[int], start: int, more: int, channels: int
) -> None:
    offsets = [sum(gaps[:i]) for i in range(len(gaps))]
    period = sum(gaps) + more
    places = [*range(3 * len(gaps)), 10**6, 10**9 // max(period, 1)]
    found = []
    for engine in engines:
        schedule = engine.Schedule(offsets, period, channels)
        schedule.start = start
        found.append([schedule.due(i) for i in places])
        assert found[-1][: 3 * len(gaps)] == sorted(found[-1][: 3 * len(gaps)])
        assert schedule.due(len(gaps) * 1000) == start + period * 1000
    assert found[0] == found[1]


@given(
    ticks=st.lists(st.integers(0, 500), min_size=1, max_size=12),
    channels=st.integers(1, 4),
    pipeline=st.integers(1, 6),
)
def test_a_tick_sends_what_is_due(
    engines: tuple[Any, Any], ticks: list[int], channels: int, pipeline: int
) -> None:
    seen = []
    offsets, period = [0, 10, 30, 35], 100
    for engine in engines:
        plan = Plan(size="20", pipeline=pipeline)
        with Site(
            engine, plan, left=1_000, offsets=offsets, period=period, channels=channels
        ) as site:
            now = site.schedule.start = 10**12
            late: list[int] = []
            sent = [0] * channels
            trace: list[Any] = []
            for tick in ticks:
                now += tick
                due = site.schedule.tick(now)
                assert due == site.schedule.due(site.schedule.next) > now
                assert site.schedule.due(site.schedule.next - 1) <= now
                for index, channel in enumerate(site.channels):
                    owed = len(range(index, site.schedule.next, channels))
                    for n in range(sent[index], min(owed, pipeline)):
                        late.append(now - site.schedule.due(n * channels + index))
                        sent[index] += 1
                    assert (channel.sent, channel.owed) == (sent[index], owed - sent[index])
                trace.append((due, site.state()))
            found = [low for low, count in site.tally.lateness.take() for _ in range(count)]
            assert found == sorted(late)
            asked = [site.taken(peer) for peer in site.peers]
            assert [len(each) for each in asked] == [20 * count for count in sent]
            seen.append((trace, asked))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("kind", ["pair", "udp"])
def test_latency_counts_from_when_a_message_was_due(engine: Any, kind: str) -> None:
    plan = Plan(size="20", prefix="")
    with Site(engine, plan, left=9, kind=kind, offsets=[0], period=SECOND) as site:
        now = time.monotonic_ns()
        site.schedule.start = now - 3 * SECOND - 5
        site.channel.timeout = SECOND
        site.schedule.tick(now)
        assert (site.tally.sent, site.channel.owed) == (1, 3)
        assert [low for low, _ in site.tally.lateness.take()] == pytest.approx(
            [3 * SECOND], rel=1e-3
        )
        site.channel.expire(now)  # it was due long ago, and sent just now
        for count in (1, 2, 3, 4):
            asked = site.datagram()
            site.give(asked)
            (latency,) = [low for low, _ in site.tally.latency.take()]
            assert latency >= (4 - count) * SECOND * 0.999
            assert site.tally.sent == min(count + 1, 4)
        assert site.tally.lateness.take() == []  # the server held them up
        assert (site.tally.received, site.tally.lost) == (4, 0)


# -- what cannot be


def test_the_native_engine_refuses_what_it_could_not_bound() -> None:
    engine = _engine("native")
    judge = Messages(Plan(size="20"), backend.load("native"), engine, stream=True)
    kind = engine.Kind(b"0123456789\n", 0, 10)
    right = ([kind], [0], judge.digits)
    wrong: list[tuple[Any, ...]] = [
        ([kind], [0], b"short"),
        ([kind], [0, 0, 0], judge.digits),
        ([kind], [], judge.digits),
        ([kind], [1], judge.digits),
        ([kind], [-1], judge.digits),
        ([engine.Kind(b"0123", 2, 3)], [0], judge.digits),
        ([engine.Kind(b"0123", -1, 3)], [0], judge.digits),
        ([engine.Kind("0123", 0, 3)], [0], judge.digits),
        ([engine.Kind(bytearray(4), 0, 3)], [0], judge.digits),
        ([kind, kind], [0], judge.digits),
    ]
    engine.Source(*right, judge)
    for arguments in wrong:
        with pytest.raises((ValueError, TypeError)):
            engine.Source(*arguments, judge)
    for offsets, channels in (([], 1), ([1, 2, 3], 1), ([1], 0)):
        with pytest.raises(ValueError, match="needed"):
            engine.Schedule(offsets, 5, channels)
    schedule = engine.Schedule([0], 5, 3)
    with pytest.raises(IndexError):
        schedule.tick(1)
    schedule.channels.extend(["none", None, 5])
    with pytest.raises(TypeError):
        schedule.tick(1)
