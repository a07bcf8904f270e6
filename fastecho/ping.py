"""Ping: numbered messages at fixed times, and what is to be learnt from their replies.

`Plan` says what is to be done, `Ping` does it, `Result` is what came of it. Message n is due at the
start plus n - 1 intervals, whatever has become of those before it: a server that stalls delays no
question, so that its worst times are seen. A reply is known by the number in the message that it
ends with. One that comes after the timeout is late, which is neither received nor lost.
"""

from __future__ import annotations

import math
import random
import re
import select
import socket
import statistics
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import addresses, clocks, connections, dial, framing, limits, prefix, sockets
from . import backend as backends
from .client import quoted, replies
from .errors import ConfigError, FastechoError
from .settings import DEFAULT_ADDRESS

if TYPE_CHECKING:
    from ._pure.framing import Codec

SECOND = 1_000_000_000
#: Bytes of a message, where none are asked for: ping(8) has 56 and a header of 8.
SIZE = 64
#: Hexadecimal digits of a message's number: at one a millisecond, enough for seven weeks.
DIGITS = 8
#: The shortest interval, in seconds: for more messages than that there is `fastecho load`.
MIN_INTERVAL = 0.001
#: Percentiles that are shown. Of n round trips p% do not exceed this one.
PERCENTILES = (50, 90, 95, 99)
#: By how much the smoothed jitter follows each difference (RFC 3550, section 6.4.1).
GAIN = 16


@dataclass(frozen=True)
class Plan:
    """What is to be done. Sizes are bytes, times are seconds.

    Attributes:
        address: one LISTEN word; HOST:PORT is TCP unless `udp`.
        framing: of a stream.
        prefix: the server's template: whether it shows a wall clock, and how wide it is.
        count: how many messages; None: until stopped.
        interval: from one to the next.
        timeout: for a connection, and for a reply.
        size: of a message; None: 64, or as many as its framing or a guard against forged
            sources (docs/limits.md) wants.

    Raises:
        ConfigError: what makes no sense.
    """

    address: str = DEFAULT_ADDRESS
    udp: bool = False
    framing: str = "line"
    prefix: str = prefix.DEFAULT
    count: int | None = None
    interval: float = 1.0
    timeout: float = limits.REPLY_TIMEOUT
    size: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None:
            limits.within("count", self.count, 1, 16**DIGITS - 1)
        for name, least in (("interval", MIN_INTERVAL), ("timeout", 1e-6)):
            value = getattr(self, name)
            if limits.seconds(name, value) < least:
                raise ConfigError(f"{name} must be at least {least:g} seconds, not {value!r}")


@dataclass(frozen=True)
class Reply:
    """A reply, as it is shown.

    Attributes:
        number: of the message, from 1.
        size: bytes of the reply, prefix and message.
        round_trip: nanoseconds from when the message was sent.
        stamp: the prefix.
        sent: Unix time of sending, in nanoseconds, by our clock.
        kind: empty, `late` or `duplicate`.
    """

    number: int
    size: int
    round_trip: int
    stamp: bytes
    sent: int
    kind: str = ""


@dataclass
class Result:
    """What came of it. Times are nanoseconds, unless they say seconds.

    Attributes:
        plan: what was to be done.
        target: whom it was done to.
        size: bytes of a message.
        seconds: how long it took.
        transmitted: messages that were sent.
        received: those with a reply in time.
        late: those whose reply came after the timeout.
        pending: those whose reply was still waited for when it was stopped.
        duplicates: replies to what had its reply.
        garbage: replies to nothing.
        unsent: messages that could not be sent.
        behind: the most that a message was sent after it was due.
        over: why there was no going on; empty: it was done, or stopped.
        round_trips: of those received, in the order of their replies.
        samples: of those received whose prefix shows a wall clock.
    """

    plan: Plan
    target: str = ""
    size: int = 0
    seconds: float = 0.0
    transmitted: int = 0
    received: int = 0
    late: int = 0
    pending: int = 0
    duplicates: int = 0
    garbage: int = 0
    unsent: int = 0
    behind: int = 0
    over: str = ""
    round_trips: array[int] = field(default_factory=lambda: array("q"))
    samples: list[clocks.Sample] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Messages whose reply never came."""
        return self.transmitted - self.received - self.late - self.pending

    @property
    def loss(self) -> float | None:
        """Their share of those that were waited for; None: there were none."""
        settled = self.transmitted - self.pending
        return self.lost / settled if settled else None

    @property
    def answered(self) -> bool:
        """Whether any reply came."""
        return self.received + self.late > 0

    @property
    def clocks(self) -> clocks.Comparison | None:
        """The two clocks compared; None: the server shows none that is fine enough."""
        stamps = clocks.stamps(self.plan.prefix)
        return clocks.compare(self.samples, stamps.resolution) if stamps else None


def jitter(round_trips: Iterable[int]) -> float:
    """The smoothed difference between one and the next, as RTP has it (RFC 3550, 6.4.1)."""
    smoothed, before = 0.0, None
    for each in round_trips:
        if before is not None:
            smoothed += (abs(each - before) - smoothed) / GAIN
        before = each
    return smoothed


def percentile(ordered: Sequence[int], percent: float) -> int:
    """The least value that so many percent of them do not exceed; they are in order."""
    return ordered[max(math.ceil(percent * len(ordered) / 100), 1) - 1]


def summary(round_trips: Sequence[int]) -> dict[str, float] | None:
    """All that is said about round trips, by name; None: there are none."""
    if not round_trips:
        return None
    ordered = sorted(round_trips)
    return {
        "min": ordered[0],
        "mean": statistics.fmean(ordered),
        "max": ordered[-1],
        "stddev": statistics.pstdev(ordered),
        "jitter": jitter(round_trips),
        **{f"p{percent}": percentile(ordered, percent) for percent in PERCENTILES},
    }


class Messages:
    """Messages of one size, each with its number in front, and the rest of this run alone.

    Args:
        size: bytes of each, `DIGITS` at least.
        forbidden: bytes that must not be in them.

    Raises:
        ConfigError: that leaves too few.
    """

    def __init__(self, size: int, forbidden: bytes = b"") -> None:
        allowed = [octet for octet in b"0123456789abcdef" if octet not in forbidden]
        allowed += [octet for octet in range(0x21, 0x7F) if octet not in {*allowed, *forbidden}]
        if len(allowed) < 16:
            raise ConfigError("the delimiter leaves too few letters to number messages with")
        self._letters = bytes(allowed[:16])
        self._to_hex = bytes.maketrans(self._letters, b"0123456789abcdef")
        self._rest = bytes(random.choices(self._letters, k=size - DIGITS))
        self.pattern = re.compile(
            b"[%b]{%d}%b" % (re.escape(self._letters), DIGITS, re.escape(self._rest))
        )
        self.size = size

    def message(self, number: int) -> bytes:
        """The message with this number."""
        return bytes(self._letters[int(digit, 16)] for digit in f"{number:0{DIGITS}x}") + self._rest

    def number(self, reply: bytes) -> int | None:
        """Of the message that a reply ends with; None: it is none of these."""
        message = reply[max(len(reply) - self.size, 0) :]
        if not self.pattern.fullmatch(message):
            return None
        return int(message[:DIGITS].translate(self._to_hex), 16)


class _Stream:
    """A connection: frames out, replies in.

    Attributes:
        over: why nothing more will come of it; empty: it may.
        garbage: what came last was no reply, and nothing after it can be told apart.
    """

    def __init__(self, sock: socket.socket, encoder: Codec, decoder: Codec) -> None:
        self.sock = sock
        self.over = ""
        self.garbage = False
        self._unsent = b""
        self._encoder = encoder
        self._decoder = decoder

    @property
    def waits_to_send(self) -> bool:
        return bool(self._unsent)

    def send(self, message: bytes) -> None:
        """Send it, or keep it until the kernel takes it."""
        if self._unsent:
            raise BlockingIOError("the server has not read what was sent before")
        self._unsent = self._encoder.encode(message)
        self.flush()

    def flush(self) -> None:
        """Have the kernel take what it can. An error is not the end: replies may have come."""
        unsent, self._unsent = self._unsent, b""
        try:
            self._unsent = unsent[self.sock.send(unsent) :]
        except BlockingIOError:
            self._unsent = unsent

    def receive(self) -> list[bytes]:
        """The replies that have come whole."""
        try:
            data = self.sock.recv(connections.RECEIVE)
        except BlockingIOError:
            return []
        except OSError as error:
            self.over = dial.explain(error)
            return []
        if not data:
            self.over = "the server has closed the connection"
        return self._cut(data)

    def expire(self) -> bytes:
        """What has come and can belong to no reply any more."""
        return b""

    def _cut(self, data: bytes) -> list[bytes]:
        found = self._decoder.feed(data) if data else self._decoder.finish()
        if self._decoder.error is not None:
            self.garbage = True
            self.over = f"what came is no reply: {self._decoder.error}"
        return found


class _Raw(_Stream):
    """A connection without boundaries: a reply ends where one of our messages ends."""

    def __init__(
        self, sock: socket.socket, encoder: Codec, decoder: Codec, messages: Messages
    ) -> None:
        super().__init__(sock, encoder, decoder)
        self._messages = messages
        self._held = b""

    def expire(self) -> bytes:
        held, self._held = self._held, b""
        return held

    def _cut(self, data: bytes) -> list[bytes]:
        self._held += data
        found = []
        while match := self._messages.pattern.search(self._held):
            found.append(self._held[: match.end()])
            self._held = self._held[match.end() :]
        if len(self._held) > self._messages.size + limits.MAX_PREFIX:
            found.append(self.expire())
        return found


class _Datagrams:
    """A datagram socket; has what `_Stream` has."""

    over = ""
    garbage = False
    waits_to_send = False

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, message: bytes) -> None:
        try:
            self.sock.send(message)
        except ConnectionRefusedError:  # of a datagram before: it is told once
            self.sock.send(message)

    def flush(self) -> None:
        pass

    def receive(self) -> list[bytes]:
        try:
            return [self.sock.recv(limits.MAX_DATAGRAM)]
        except BlockingIOError:
            return []

    def expire(self) -> bytes:
        return b""


class Ping:
    """A run: connected when made; `run` once.

    Args:
        plan: what is to be done.

    Attributes:
        result: what has come of it so far.

    Raises:
        ConfigError: the plan makes no sense.
        FastechoError: the server cannot be reached.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._target = dial.parse(plan.address, plan.udp)
        self._framing = framing.parse(plan.framing)
        self._stamps = clocks.stamps(plan.prefix)
        self._longest = backends.load().Stamper(prefix.parse(plan.prefix)).longest
        size = self._size()
        if self._target.is_stream:
            encoder = self._framing.codec(backends.load(), None)
            spec, longest = replies(self._framing, encoder.max_frame, plan.prefix)
            self._codecs = encoder, framing.codec(spec, longest)
        self._messages = Messages(size, b"".join(self._framing.delimiters))
        self.result = Result(plan, self._target.name, size)
        #: Of each message: when it was sent (0: it was not), by either clock; whether it is done.
        self._sent, self._walls, self._done = array("q"), array("q"), bytearray()
        #: Those whose reply is in time if it comes now, the oldest first, and when they were sent.
        self._waiting: dict[int, int] = {}
        self._stopped = False
        self._heard = False
        self._woken, self._waker = socket.socketpair()
        with ExitStack() as undo:
            undo.enter_context(closing(self._woken))
            undo.enter_context(closing(self._waker))
            self._dialled = self._target.dial(plan.timeout)
            self._link = self._linked(next(self._dialled))
            undo.callback(lambda: self._link.sock.close())
            self._close = undo.pop_all().close

    @property
    def too_short(self) -> str:
        """Why a fastecho would not answer; empty: it would."""
        least = prefix.longest(self._plan.prefix) - limits.IPV4_OVERHEAD
        far = self._target.protocol == sockets.UDP and not addresses.is_loopback(
            self._link.sock.getpeername()
        )
        if not far or self.result.size >= least:
            return ""
        return (
            f"{self.result.size} bytes are so few for this prefix that a fastecho will not answer"
            f" them over UDP: its reply would be more than twice as long (--size {least})"
        )

    def run(self, tell: Callable[[Reply | str], None] = lambda _: None) -> Result:
        """Do it.

        Args:
            tell: is given each reply, and a sentence for all else that happens.
        """
        self._tell = tell
        self._start = time.monotonic_ns()
        try:
            while not (self._stopped or self.result.over):
                wait = self._next()
                if wait is None:
                    break
                self._turn(wait)
        finally:
            self.result.seconds = (time.monotonic_ns() - self._start) / SECOND
            self.result.pending = 0 if self.result.over else len(self._waiting)
            self._close()
        return self.result

    def stop(self) -> None:
        """End it, with what there is so far; may be called from a signal handler."""
        self._stopped = True
        with suppress(OSError):
            self._waker.send(b"!")

    # -- when what is due

    def _next(self) -> int | None:
        """Do all that is due; nanoseconds until something will be; None: nothing will."""
        self._expire(time.monotonic_ns())
        due = self._due()
        now = time.monotonic_ns()
        if due is not None and due <= now:
            self.result.behind = max(self.result.behind, now - due)
            self._send(len(self._sent) + 1)
            due = self._due()
        times = [] if due is None else [due]
        if self._waiting:
            times.append(next(iter(self._waiting.values())) + self._timeout)
        return max(min(times) - time.monotonic_ns(), 0) if times else None

    def _due(self) -> int | None:
        """When the next message is to be sent."""
        before = len(self._sent)
        if before == self._plan.count:
            return None
        return self._start + round(before * self._plan.interval * SECOND)

    @property
    def _timeout(self) -> int:
        return round(self._plan.timeout * SECOND)

    def _expire(self, now: int) -> None:
        while self._waiting:
            number, sent = next(iter(self._waiting.items()))
            if now - sent < self._timeout:
                return
            del self._waiting[number]
            if left := self._link.expire():
                self._judge(left, now)
            self._tell(f"seq={number} no reply within {self._plan.timeout:g} s")

    # -- out

    def _send(self, number: int) -> None:
        self._sent.append(0)
        self._walls.append(0)
        self._done.append(0)
        if self._transmit(number):
            self.result.transmitted += 1
        else:
            self.result.unsent += 1

    def _transmit(self, number: int) -> bool:
        wall, now = time.time_ns(), time.monotonic_ns()
        try:
            self._link.send(self._messages.message(number))
        except OSError as error:
            words = dial.explain(error) if error.errno else str(error)
            self._tell(f"seq={number} not sent: {words}")
            return False
        self._sent[number - 1], self._walls[number - 1] = now, wall
        self._waiting[number] = now
        return True

    # -- in

    def _turn(self, wait: int) -> None:
        """Take what comes until then, or until the first that comes."""
        sock = self._link.sock
        writers = [sock] if self._link.waits_to_send else []
        seconds = min(wait / SECOND, dial.LONGEST_WAIT)
        readable, writable, _ = select.select([sock, self._woken], writers, [], seconds)
        if writable:
            with suppress(OSError):  # `receive` says how it ended
                self._link.flush()
        if sock in readable:
            self._receive()
        if self._link.over:
            self.result.over = f"{self._target.name}: {self._link.over}"

    def _receive(self) -> None:
        try:
            found = self._link.receive()
        except ConnectionRefusedError as error:
            self._refused(error)
        except OSError as error:
            self._tell(f"{self._target.name}: {dial.explain(error)}")
        else:
            now = time.monotonic_ns()
            for reply in found:
                self._judge(reply, now)
            self.result.garbage += self._link.garbage

    def _judge(self, reply: bytes, now: int) -> None:
        """What a reply answers."""
        self._heard = True
        number = self._messages.number(reply)
        if number is None or not 0 < number <= len(self._sent) or not self._sent[number - 1]:
            self.result.garbage += 1
            self._tell(f"{len(reply):,} bytes that answer nothing: {quoted(reply)}")
            return
        sent, wall = self._sent[number - 1], self._walls[number - 1]
        kind = self._count(number)
        stamp = reply[: len(reply) - self.result.size]
        if not kind:
            self._sample(now - sent, wall, stamp)
        self._tell(Reply(number, len(reply), now - sent, stamp, wall, kind))

    def _count(self, number: int) -> str:
        """Count a reply to this message; its kind."""
        if self._done[number - 1]:
            self.result.duplicates += 1
            return "duplicate"
        self._done[number - 1] = True
        if self._waiting.pop(number, None) is None:
            self.result.late += 1
            return "late"
        self.result.received += 1
        return ""

    def _sample(self, round_trip: int, wall: int, stamp: bytes) -> None:
        self.result.round_trips.append(round_trip)
        shown = self._stamps.read(stamp) if self._stamps else None
        if shown is not None:
            self.result.samples.append(clocks.Sample(wall, round_trip, shown))

    def _refused(self, error: ConnectionRefusedError) -> None:
        """Nobody listens there: try its other addresses, or give the oldest message up."""
        sock = None
        with suppress(FastechoError, StopIteration):
            # `localhost` is two addresses, and a server may have one.
            sock = None if self._heard else next(self._dialled)
        if sock is not None:
            self._link.sock.close()
            self._link = self._linked(sock)
            waiting, self._waiting = self._waiting, {}
            for number in waiting:
                self._transmit(number)
        elif self._waiting:
            number = next(iter(self._waiting))
            del self._waiting[number]
            self._tell(f"seq={number} {dial.explain(error)}")

    # -- whom to, and what

    def _linked(self, sock: socket.socket) -> _Stream | _Datagrams:
        sock.setblocking(False)
        if not self._target.is_stream:
            return _Datagrams(sock)
        if self._target.protocol == sockets.TCP:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._framing.spec == "raw":
            return _Raw(sock, *self._codecs, self._messages)
        return _Stream(sock, *self._codecs)

    def _size(self) -> int:
        """Bytes of each message.

        Raises:
            ConfigError: the framing cannot carry so many, or they cannot have a number in them.
        """
        fixed = self._framing.fixed if self._target.is_stream else None
        if self._target.is_stream:
            least, most = fixed or DIGITS, self._framing.limit(None, self._longest)
        else:
            room = limits.MAX_DATAGRAM - limits.IPV4_OVERHEAD
            least, most = DIGITS, room - self._longest
        if most < DIGITS:
            raise ConfigError(f"messages need {DIGITS} bytes for their numbers, and have {most}")
        if self._plan.size is not None:
            return limits.within("size", self._plan.size, least, most)
        wanted = SIZE
        if self._target.protocol == sockets.UDP:
            wanted = max(SIZE, prefix.longest(self._plan.prefix) - limits.IPV4_OVERHEAD)
        return min(max(wanted, least), most)
