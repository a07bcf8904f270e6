"""Load: many connections to an echo server, closed or open loop, every reply verified.

`Plan` says what is to be done, `Load` does it, `Result` is what came of it. The engine that sends
and verifies is a twin (`_pure.generator`); here is what is decided once per run or per interval.

Closed loop: each reply makes room for the next message, so that a server that stalls also stalls
the questions, and its worst times are hardly seen. Open loop (`rate`): messages are due at times
that no reply can move, and latency counts from then.
"""

from __future__ import annotations

import random
import re
import select
import socket
import time
from array import array
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from hdrh.histogram import HdrHistogram

from . import backend as backends
from . import dial, framing, limits, prefix
from .errors import ConfigError, FastechoError
from .settings import DEFAULT_ADDRESS

if TYPE_CHECKING:
    from ._pure.framing import Codec
    from ._pure.generator import Channel, Kind, Tally
    from .backend import Engine, Twin

SECOND = 1_000_000_000
#: The longest latency that a histogram tells from longer ones: an hour.
LONGEST = 3_600 * SECOND
#: More messages than any run sends.
EVER = 2**62
#: Messages after which their sizes come in the same order again.
ORDER = 4_096
#: Bytes that all kinds of message may have together; else a range of sizes is drawn more coarsely.
KINDS_BYTES = 2**26
#: Times that an open loop's schedule has before it begins again.
OFFSETS = 65_536
#: What the kernel is asked to hold of a socket's unread datagrams, so that a burst of replies is
#: not lost before it is read; it takes what net.core.rmem_max allows.
RECEIVE_BUFFER = 4 * 2**20
#: Seconds between two looks at timeouts.
LOOK = 0.02
#: What becomes of datagrams, and what a tally counts.
DATAGRAMS = ("lost", "late", "duplicate", "reordered", "corrupt")
COUNTS = ("sent", "received", "bytes_out", "bytes_in", *DATAGRAMS)
#: A generator busier than this share of a core measures itself (and see `Result.bound`).
BUSY = 0.9


@dataclass(frozen=True)
class Plan:
    """What a run does. Sizes are bytes, times are seconds.

    Attributes:
        address: one LISTEN word; HOST:PORT is TCP unless `udp`.
        framing: of a stream.
        prefix: the server's template, whose form each reply's prefix must have.
        connections: how many there are.
        pipeline: messages in flight at most, on each connection.
        size: of a request on the wire, header or terminator included: `64`, `40-80`, or a mix
            with weights, `64:90,1400:10`. Of a range, a size that no message has (13 bytes of
            netstring) is one less.
        duration: of the measurement; None: until `messages` are answered.
        messages: of the measurement, at most; None: any number.
        warmup: before the measurement.
        rate: messages a second, of all connections together; None: a closed loop.
        arrivals: `uniform` or `poisson`, in open loop.
        timeout: for a connection, and for a reply.
        connect_per_message: whether each message goes over a connection of its own.
        close: how that is closed: `fin`, or `rst`.
        gso: whether the kernel cuts and joins datagrams (UDP_SEGMENT, UDP_GRO).
        seed: of sizes and times.
        pid: of the server, for what it costs.
        backend: of the engine.

    Raises:
        ConfigError: what makes no sense, alone or together.
    """

    address: str = DEFAULT_ADDRESS
    udp: bool = False
    framing: str = "line"
    prefix: str = prefix.DEFAULT
    connections: int = 1
    pipeline: int = 1
    size: str = "64"
    duration: float | None = 10.0
    messages: int | None = None
    warmup: float = 0.0
    rate: float | None = None
    arrivals: str = "uniform"
    timeout: float = limits.REPLY_TIMEOUT
    connect_per_message: bool = False
    close: str = "fin"
    gso: bool = False
    seed: int = 1
    pid: int | None = None
    backend: str | None = None

    def __post_init__(self) -> None:
        limits.within("connections", self.connections, 1, 2**20)
        limits.within("pipeline", self.pipeline, 1, 2**16)
        limits.seconds("warmup", self.warmup)
        if not limits.seconds("timeout", self.timeout):
            raise ConfigError("timeout must be above 0 seconds")
        if self.duration is not None:
            limits.seconds("duration", self.duration)
        if self.messages is not None:
            limits.within("messages", self.messages, 1, 2**62)
        if self.duration is None and self.messages is None:
            raise ConfigError("a run needs a duration or a number of messages")
        if self.rate is not None and not _is_rate(self.rate):
            raise ConfigError(f"rate must be from 0.001 to 1e9 a second, not {self.rate!r}")
        if self.pid is not None:
            limits.within("pid", self.pid, 1, 2**31 - 1)
        if self.arrivals not in ("uniform", "poisson"):
            raise ConfigError(f"arrivals must be uniform or poisson, not {self.arrivals!r}")
        if self.connect_per_message and (self.pipeline > 1 or self.udp):
            raise ConfigError("a connection for each message is a stream's, with a pipeline of 1")
        if self.close not in ("fin", "rst"):
            raise ConfigError(f"close must be fin or rst, not {self.close!r}")
        if self.close == "rst" and not self.connect_per_message:
            raise ConfigError("rst is how a connection for each message can be closed")
        if self.framing == "raw" and self.pipeline > 1:
            raise ConfigError("raw has no boundaries between replies: it needs a pipeline of 1")


@dataclass
class Interval:
    """What happened in about a second.

    Attributes:
        start: since the beginning of the measurement, in seconds.
        seconds: how long it was.
        received: right replies.
        slots: their latencies as the engine counts them, value and count in turns: a histogram
            has a quarter megabyte, and a long run many intervals.
    """

    start: float
    seconds: float
    received: int
    slots: array[int]

    @property
    def latency(self) -> HdrHistogram:
        """Of the replies."""
        total = histogram()
        add(total, list(zip(self.slots[::2], self.slots[1::2], strict=True)))
        return total


@dataclass
class Result:
    """What came of a run.

    Attributes:
        plan: what was to be done.
        seconds: how long the measurement took.
        sent, received, bytes_out, bytes_in: of it; received are right replies.
        missing: replies that did not come: of streams; datagrams are `lost`.
        datagrams: lost, late, duplicate, reordered, corrupt.
        closed: connections that ended before their time, by reason.
        wrong: replies that are none.
        first_wrong: (how that is seen, the bytes) of the first.
        latency: nanoseconds from when a message was sent, or due, to its reply.
        lateness: nanoseconds that the generator itself was late, in open loop.
        intervals: of about a second each.
        cpu: seconds of processor time that the generator used.
        server_cpu: that the server used; None: no `pid`.
        began: when the measurement did, in Unix time.
        stopped: whether somebody ended it early.
    """

    plan: Plan
    seconds: float = 0.0
    sent: int = 0
    received: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    missing: int = 0
    datagrams: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    first_wrong: tuple[str, bytes] | None = None
    latency: HdrHistogram = field(default_factory=lambda: histogram())
    lateness: HdrHistogram = field(default_factory=lambda: histogram())
    intervals: list[Interval] = field(default_factory=list)
    cpu: float = 0.0
    server_cpu: float | None = None
    began: float = 0.0
    stopped: bool = False

    @property
    def right(self) -> bool:
        """Whether every message got its reply, and nothing else came."""
        return not (self.wrong or self.missing or self.closed or +self.datagrams)

    @property
    def busy(self) -> float:
        """The share of a core that the generator used."""
        return self.cpu / self.seconds if self.seconds else 0.0

    @property
    def server_busy(self) -> float | None:
        """The share of a core that the server used."""
        if self.server_cpu is None or not self.seconds:
            return None
        return self.server_cpu / self.seconds

    @property
    def bound(self) -> str:
        """Why these figures are the generator's rather than the server's; empty: they are not."""
        server = self.server_busy
        if self.busy > BUSY and (server is None or server < self.busy):
            than = "" if server is None else f", the server {server:.0%}"
            return f"the generator was busy {self.busy:.0%} of the time{than}"
        if self.plan.rate is not None and self.received:
            late = self.lateness.get_value_at_percentile(99)
            if late > self.latency.get_value_at_percentile(99) / 10:
                return f"one message in a hundred was sent {late / 1e3:,.0f} us late or later"
        return ""


def histogram() -> HdrHistogram:
    """For nanoseconds up to an hour, with three significant digits."""
    return HdrHistogram(1, LONGEST, 3)


def add(total: HdrHistogram, slots: list[tuple[int, int]]) -> None:
    """Add what an engine's histogram has counted.

    As `record_value` does it, in a fifth of its time: nobody sends meanwhile.
    """
    if not slots:
        return
    counts, half = total.counts, total.sub_bucket_half_count_magnitude
    for value, count in slots:
        value = min(max(value, 1), LONGEST)
        shift = max(value.bit_length() - half - 1, 0)
        counts[(shift << half) + (value >> shift)] += count
    total.total_count += sum(count for _, count in slots)
    total.min_value = min(total.min_value, max(min(slots)[0], 1))
    total.max_value = max(total.max_value, min(max(slots)[0], LONGEST))


def sizes(text: str) -> list[tuple[int, int, float]]:
    """(least, most, weight) of each part of a size mix.

    Raises:
        ConfigError: it is none; the text says what is right.
    """
    parts = []
    for part in text.split(","):
        found = re.fullmatch(
            r"(\d{1,10})(?:-(\d{1,10}))?(?::(\d{1,9}(?:\.\d{1,9})?))?", part.strip(), re.ASCII
        )
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not found or least > most or most > limits.MAX_FRAME_CEILING:
            raise ConfigError(
                f"{part!r} is no size: write bytes (64), a range (40-80), or a mix (64:90,1400:10)"
            )
        parts.append((least, most, float(found[3] or 1)))
    if not sum(weight for _, _, weight in parts):
        raise ConfigError(f"size {text!r} has no part with a weight above 0")
    return parts


def _is_rate(value: object) -> bool:
    """Whether a schedule can have it, with times that 64 bits can hold."""
    return isinstance(value, (int, float)) and 0.001 <= value <= 1e9


class Messages:
    """What is sent, and the judge of what comes back (`_pure.generator.Judge`)."""

    def __init__(self, plan: Plan, twin: Twin, engine: Engine, stream: bool) -> None:
        self._template = plan.prefix
        self._form = prefix.form(plan.prefix)
        twin.Stamper(prefix.parse(plan.prefix))  # or it says why not
        self._longest = prefix.longest(plan.prefix)
        cut = framing.parse(plan.framing) if stream else framing.parse("raw")
        for delimiter in cut.delimiters:
            prefix.check_delimiter(plan.prefix, delimiter)
        self._stream, self._raw = stream, cut.spec == "raw"
        self._width = prefix.width(plan.prefix)
        self._varying = cut.spec in ("varint", "netstring")
        self._numbered = cut.capacity is not None or self._varying
        self._overhead = cut.overhead
        self._trailer = len(cut.delimiter or (b"," if cut.spec == "netstring" else b""))
        self._encoder = cut.codec(twin, _room(cut))
        random_ = random.Random(plan.seed)
        forbidden = set(b"".join(cut.delimiters))
        letters = bytes(octet for octet in range(0x21, 0x7F) if octet not in forbidden)
        if len(letters) < 16:
            raise ConfigError(f"{plan.framing} leaves too few letters for a payload")
        self.digits = bytes(random_.sample(letters, 16))
        parts = sizes(plan.size)
        drawn = _draw(parts, random_)
        named = {least for least, most, _ in parts if least == most}
        asked = sorted(set(drawn))
        self.kinds = [self._kind(size, letters, random_, engine, size in named) for size in asked]
        place = {size: k for k, size in enumerate(asked)}
        self.order = [place[size] for size in drawn]
        self._lengths = sorted({kind.length for kind in self.kinds}, reverse=True)
        self._heads: dict[int, list[bytes]] = {}
        most = self._longest + self._lengths[0]
        if cut.capacity is not None and most > cut.capacity:
            raise ConfigError(
                f"{cut.spec} announces at most {cut.capacity:,} bytes: a reply can have {most:,}"
            )
        self._decoder = _decoder(cut, twin, plan.prefix, most)

    def heads(self, width: int) -> list[bytes]:
        if width not in self._heads:
            self._heads[width] = self._heads_for(width)
        return self._heads[width]

    def _heads_for(self, width: int) -> list[bytes]:
        if not self._numbered:
            return [b""] * len(self.kinds)
        found = []
        for kind in self.kinds:
            reply = self._encoder.encode(bytes(width + kind.length))
            found.append(reply[: len(reply) - width - (len(kind.frame) - kind.start)])
        return found

    def prefix(self, data: bytes, payload: bytes) -> bytes | None:
        from ._pure.generator import WrongReply

        if self._raw:
            if not self._is_whole(data, payload):
                return None
            message = data if self._width is None else data[: self._width + len(payload)]
        else:
            codec = self._decoder.fresh()
            messages = codec.feed(data)
            if not messages:
                if codec.error is not None and codec.error.reason == "too_long":
                    raise WrongReply("it is longer than any right one")
                if codec.error is not None:
                    raise WrongReply(f"it is no frame: {codec.error.detail}")
                return None
            message = messages[0]
        if not message.endswith(payload):
            raise WrongReply("it does not end with the message it answers")
        found = message[: len(message) - len(payload)]
        if not self._fits(found):
            raise WrongReply(f"its prefix is none of {self._template!r}")
        return found

    def of_datagram(self, data: bytes) -> list[bytes]:
        ends = [len(data) - length for length in self._lengths if len(data) >= length]
        return [data[:end] for end in ends if self._fits(data[:end])]

    def _fits(self, found: bytes) -> bool:
        """Whether a prefix is one that the template can render."""
        return len(found) <= self._longest and bool(self._form.fullmatch(found))

    def _is_whole(self, data: bytes, payload: bytes) -> bool:
        """Whether a reply without boundaries is all there, or can be none any more."""
        room = self._longest if self._width is None else self._width
        if len(data) >= room + len(payload):
            return True
        found = data[: len(data) - len(payload)]
        return self._width is None and data.endswith(payload) and self._fits(found)

    def _kind(
        self, size: int, letters: bytes, random_: random.Random, engine: Engine, exact: bool
    ) -> Kind:
        """A message that takes so many bytes on the wire; or one less, where none takes as many."""
        table = bytes(letters[octet % len(letters)] for octet in range(256))
        payload = random_.randbytes(size).translate(table)
        if not self._stream:
            return engine.Kind(payload, 0, size)
        for overhead in range(self._overhead + 1) if self._varying else (self._overhead,):
            length = size - overhead
            try:
                frame = self._encoder.encode(payload[:length]) if length >= 0 else b""
            except ValueError:
                continue
            if length >= 0 and len(frame) == size:
                return engine.Kind(frame, size - self._trailer - length, length)
        if self._varying and not exact and size:
            return self._kind(size - 1, letters, random_, engine, exact=True)
        raise ConfigError(f"no message takes {size} bytes on the wire here")


def _draw(parts: list[tuple[int, int, float]], random_: random.Random) -> list[int]:
    """The sizes of so many messages as have an order."""
    few = max(1, min(ORDER, KINDS_BYTES // max(1, *(most for _, most, _ in parts))))
    choices = random_.choices(parts, [weight for _, _, weight in parts], k=ORDER)
    pool = [random_.randint(least, most) for least, most, _ in choices[:few]]
    if all(least == most for least, most, _ in parts):
        return [least for least, _, _ in choices]
    return pool if len(pool) == ORDER else random_.choices(pool, k=ORDER)


def _room(cut: framing.Framing) -> int | None:
    """The longest message that a frame can have; None: the framing says."""
    if cut.fixed is not None:
        return None
    if cut.capacity is None or cut.capacity < 1:
        return limits.MAX_FRAME_CEILING
    return min(cut.capacity, limits.MAX_FRAME_CEILING)


def _decoder(cut: framing.Framing, twin: Twin, template: str, most: int) -> Codec:
    """The codec of replies, of which none is longer than that."""
    if cut.fixed is not None:
        width = prefix.one_width(template, cut.spec)
        return twin.FixedCodec(cut.fixed + width)
    return cut.codec(twin, max(1, min(most, limits.MAX_FRAME_CEILING)))


class Load:
    """A run: connected when made; `run` once.

    Raises:
        ConfigError: the plan makes no sense.
        FastechoError: the server cannot be reached.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.result = Result(plan)
        target = dial.parse(plan.address, plan.udp)
        if plan.gso and target.protocol != "udp":
            raise ConfigError(f"{target.name} has no datagrams that the kernel could cut and join")
        _cpu_of(plan.pid)
        twin = backends.load(plan.backend)
        engine = backends.engine(plan.backend)
        self.backend = twin.name
        messages = Messages(plan, twin, engine, target.is_stream)
        source = engine.Source(messages.kinds, messages.order, messages.digits, messages)
        self._stopped = self._stuck = False
        #: Right replies when they were last looked at, and when there were fewer.
        self._received, self._moved = -1, 0
        self._tally: Tally = engine.Tally(0)
        self._schedule = self._plan_arrivals(engine)
        make = engine.StreamChannel if target.is_stream else engine.DatagramChannel
        self._channels: list[Channel] = []
        self._datagrams = not target.is_stream
        with ExitStack() as undo:
            self._selector = undo.enter_context(closing(twin.Selector()))
            for index in range(plan.connections):
                sock = _dial(target, plan.timeout, index)
                undo.callback(sock.close)
                sock.setblocking(False)
                if target.protocol == "tcp":
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                elif self._datagrams:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
                channel = make(
                    sock,
                    self._selector,
                    source,
                    self._tally,
                    self,
                    plan.pipeline,
                    index * 0x9E3779B1 % 2**32,
                    self._schedule,
                    index,
                )
                self._channels.append(channel)
                undo.callback(channel.close)  # of a connection that it has made itself, too
                if plan.connect_per_message:
                    channel.renew(plan.close == "rst")
                if self._datagrams:
                    channel.timeout = round(plan.timeout * SECOND)
                    if plan.gso:
                        _offload(channel)
            if self._schedule is not None:
                self._schedule.channels.extend(self._channels)
            self.close = undo.pop_all().close

    def run(self, progress: Callable[[Interval], None] = lambda _: None) -> Result:
        """Do it.

        Args:
            progress: is given each interval.
        """
        plan, tally, result = self.plan, self._tally, self.result
        try:
            if plan.warmup:
                tally.left = EVER
                self._start()
                self._turn_until(time.monotonic() + plan.warmup)
            before = self._counts()
            tally.latency.take()
            tally.lateness.take()
            tally.left = EVER if plan.messages is None else plan.messages
            cpu, server_cpu = time.process_time(), _cpu_of(plan.pid)
            start, result.began = time.monotonic(), time.time()
            if not plan.warmup:
                self._start()
            self._measure(start, before["received"], progress)
            result.seconds = time.monotonic() - start
            result.cpu = time.process_time() - cpu
            if server_cpu is not None:
                with suppress(FastechoError):  # it may have died
                    result.server_cpu = (_cpu_of(plan.pid) or server_cpu) - server_cpu
            self._finish()
            self._conclude(before)
        finally:
            self.close()
        return result

    def window(self, seconds: float) -> int:
        """Drive the server for so long, and wait for the last replies; how many came.

        Between two windows nothing is in flight. Whoever calls this instead of `run` calls `close`.
        """
        before = self._tally.received
        self._tally.left = EVER
        self._start()
        self._turn_until(time.monotonic() + seconds)
        self._finish()
        return self._tally.received - before

    def stop(self) -> None:
        """End early, with what there is so far; may be called from a signal handler."""
        self._stopped = self.result.stopped = True

    @property
    def troubles(self) -> int:
        """What has gone wrong so far, since it was connected."""
        datagrams: int = sum(getattr(self._tally, name) for name in DATAGRAMS)
        return self.result.wrong + self.result.closed.total() + datagrams

    # -- what the engine tells

    def wrong(self, channel: Channel, sentence: str, data: bytes) -> None:
        """The engine has found a reply that is none."""
        self.result.wrong += 1
        if self.result.first_wrong is None:
            self.result.first_wrong = (sentence, data[:256])

    def ended(self, channel: Channel, reason: str) -> None:
        """A connection has ended."""
        self.result.closed[reason] += 1

    # -- the run

    def _plan_arrivals(self, engine: Engine) -> Any:
        plan = self.plan
        if plan.rate is None:
            return None
        gap = SECOND / plan.rate
        if plan.arrivals == "uniform":
            offsets = [round(i * gap) for i in range(OFFSETS)]
            return engine.Schedule(offsets, round(OFFSETS * gap), plan.connections)
        draw = random.Random(plan.seed)
        at, times = 0.0, []
        for _ in range(OFFSETS):
            at += draw.expovariate(1 / gap)
            times.append(at)
        scale = OFFSETS * gap / at  # the mean of this draw is not quite the one asked for
        return engine.Schedule(
            [round(each * scale) for each in times], round(OFFSETS * gap), plan.connections
        )

    def _start(self) -> None:
        now = time.monotonic_ns()
        if self._schedule is not None:
            self._schedule.start = now
        else:
            for channel in self._channels:
                channel.fill(now)

    def _measure(self, start: float, received: int, progress: Callable[[Interval], None]) -> None:
        end = start + self.plan.duration if self.plan.duration is not None else float("inf")
        begun, before = start, received
        while not self._over and time.monotonic() < end:
            self._turn_until(min(begun + 1.0, end))
            now, received = time.monotonic(), self._tally.received
            slots = self._tally.latency.take()
            add(self.result.latency, slots)
            flat = array("q", chain.from_iterable(slots))
            interval = Interval(begun - start, now - begun, received - before, flat)
            self.result.intervals.append(interval)
            progress(interval)
            begun, before = now, received

    @property
    def _flying(self) -> int:
        """Messages whose replies did not come, and may never."""
        return sum(channel.flying for channel in self._channels)

    @property
    def _waiting(self) -> bool:
        """Whether a reply can still come."""
        return any(channel.open and channel.flying for channel in self._channels)

    @property
    def _over(self) -> bool:
        done = self._stopped or self._stuck or (self._tally.left == 0 and not self._waiting)
        return done or not any(channel.open for channel in self._channels)

    def _turn_until(self, end: float) -> None:
        """Serve the channels until then, or until there is nothing more to do."""
        look = 0.0
        while (now := time.monotonic()) < end:
            if now >= look:
                self._look()
                if self._over:
                    return
                look = now + LOOK
            elif not self._tally.left and not self._flying:
                return
            if self._schedule is not None:
                self._turn_in_time(min(end, look))
            elif self._tally.left > EVER // 2:  # nothing but time will end it
                self._selector.run(min(end, look))
            else:
                self._selector.dispatch(min(end, look) - now)

    def _turn_in_time(self, end: float) -> None:
        """One turn of an open loop: wait for replies until the next message is due."""
        self._selector.dispatch(0)
        wait = self._schedule.tick(time.monotonic_ns()) - time.monotonic_ns()
        wait = min(wait, round((end - time.monotonic()) * SECOND))
        if wait > 0:  # select(2) waits for microseconds where epoll_wait(2) has milliseconds
            select.select([self._selector], [], [], wait / SECOND)

    def _look(self) -> None:
        """Find what takes too long."""
        now = time.monotonic_ns()
        if self._datagrams:
            for channel in self._channels:
                channel.expire(now)
                channel.fill(now)
        elif self._received != self._tally.received or not self._waiting:
            self._received, self._moved = self._tally.received, now
        else:
            self._stuck = now - self._moved >= self.plan.timeout * SECOND

    def _finish(self) -> None:
        """Send no more, and wait for the replies to what was sent."""
        self._tally.left = 0
        if not self._stopped:
            self._turn_until(time.monotonic() + self.plan.timeout)

    def _counts(self) -> Counter[str]:
        return Counter({name: getattr(self._tally, name) for name in COUNTS})

    def _conclude(self, before: Counter[str]) -> None:
        result, since = self.result, self._counts()
        since.subtract(before)
        slots = self._tally.latency.take()
        add(result.latency, slots)
        if result.intervals:  # what came after its end belongs to the last, or to none
            result.intervals[-1].slots.extend(chain.from_iterable(slots))
            result.intervals[-1].received += sum(count for _, count in slots)
        add(result.lateness, self._tally.lateness.take())
        result.sent, result.received = since.pop("sent"), since.pop("received")
        result.bytes_out, result.bytes_in = since.pop("bytes_out"), since.pop("bytes_in")
        result.datagrams = since
        if self._stopped:  # nobody waited for what is in flight
            return
        if self._datagrams:
            since["lost"] += self._flying
        else:
            result.missing = self._flying


def _dial(target: dial.Target, timeout: float, opened: int) -> socket.socket:
    """One more connection."""
    try:
        return next(target.dial(timeout))
    except OSError as error:
        raise FastechoError(
            f"cannot open more than {opened:,} connections to {target.name}: {dial.explain(error)}"
        ) from error


def _offload(channel: Channel) -> None:
    try:
        channel.offload(limits.DATAGRAM_BATCH)
    except OSError as error:
        raise FastechoError(
            f"the kernel does not cut and join datagrams here: {dial.explain(error)}"
        ) from error


def _cpu_of(pid: int | None) -> float | None:
    """Seconds of processor time that a process has used (clock_getcpuclockid(3))."""
    if pid is None:
        return None
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError as error:
        raise FastechoError(f"cannot tell what process {pid} costs: no such process") from error
