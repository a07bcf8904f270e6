"""What a plan does to one reply, or to one connection: drawn, decided, and told to the log.

`Draws(plan, seed)` is asked about a message and says what is to be done to its reply; the server
does it.

**The draws.** Whether a fault strikes, and how, is drawn for (seed, connection, message, the
fault's name): a sequence of its own each time (`Numbers`). So a decision depends on nothing else
that happens, nor on what was asked before, and any connection can be replayed alone. The sequence
is BLAKE2b-512 (RFC 7693) of seed, connection, message, block number (64 bits each, big-endian) and
name, read as 64-bit numbers; the first decides `p`, the next ones the parameters. Seeds and logs of
users depend on it: it never changes.

What a fault does is a function in `EFFECTS`: it changes the decision, or the arrival, and gives
what is logged. Nothing here does I/O or reads a clock.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, NamedTuple

from ..limits import MAX_PIECES
from .plan import FAULTS, Plan, Planned
from .quantities import Range


class Strike(NamedTuple):
    """A fault that struck, for the log.

    Attributes:
        fault: its name.
        parameters: what was drawn, and what was fixed: numbers, and lists of them. Bits are counted
            from the first byte's most significant one. Cuts are listed where nothing else says
            them.
    """

    fault: str
    parameters: dict[str, Any]


@dataclass(slots=True)
class Decision:
    """What is to be done to one reply.

    Attributes:
        data: the reply as it leaves: corrupted, and on streams twice if it is duplicated.
        strikes: what struck, in the order in which it applies.
        copies: datagrams that leave.
        swap: seconds to wait for the next reply, which leaves first; None: it is not awaited.
        drop: nothing leaves.
        stall: nothing leaves from here on, on this connection.
        end: "close" or "reset" once it has left; empty: the connection goes on.
        keep: bytes of `data` that leave; None: all.
        delay: seconds from the message's receipt until it leaves.
        rate: bytes a second at most; None: any.
        coalesce: (replies that leave in one send, this one being the first; seconds that they
            are waited for), or None.
        cuts: where what leaves is cut, ascending, each within it; a `range` where they are regular,
            so that a long reply costs no memory.
        pause: seconds between its pieces, besides what it takes to know that the last was read.
    """

    data: bytes
    strikes: tuple[Strike, ...] = ()
    copies: int = 1
    swap: float | None = None
    drop: bool = False
    stall: bool = False
    end: str = ""
    keep: int | None = None
    delay: float = 0.0
    rate: int | None = None
    coalesce: tuple[int, float] | None = None
    cuts: Sequence[int] = ()
    pause: float = 0.0


class SlowRead(NamedTuple):
    """A connection's requests are read slowly: at most `size` bytes every `pause` seconds."""

    window: int
    size: int
    pause: float


@dataclass(slots=True)
class Arrival:
    """What is to be done to a new connection.

    Attributes:
        strikes: what struck.
        late: seconds that it waits in the backlog.
        slow: how its requests are read, or None: as they come.
    """

    strikes: tuple[Strike, ...] = ()
    late: float = 0.0
    slow: SlowRead | None = None


# -- draws


class Numbers:
    """The sequence of one draw; see the module's contract."""

    def __init__(self, seed: int, connection: int, message: int, fault: str) -> None:
        self._key = struct.pack("!QQQ", seed, connection, message), fault.encode()
        self._blocks = 0
        self._ready: list[int] = []

    def _next(self) -> int:
        from hashlib import blake2b  # not for who asks for no faults

        if not self._ready:
            numbers, fault = self._key
            block = blake2b(numbers + struct.pack("!Q", self._blocks) + fault).digest()
            self._ready = list(reversed(struct.unpack("!8Q", block)))
            self._blocks += 1
        return self._ready.pop()

    def uniform(self) -> float:
        """From 0 to less than 1, one of 2**53."""
        return (self._next() >> 11) * 2.0**-53

    def below(self, bound: int) -> int:
        """From 0 to less than `bound`, which is so far below 2**64 that no one sees the bias."""
        return self._next() * bound >> 64

    def whole(self, span: Range) -> int:
        """One of a range; nothing is drawn where there is one alone."""
        low, high = int(span.low), int(span.high)
        return low if low == high else low + self.below(high - low + 1)

    def time(self, span: Range) -> float:
        """One of a range of seconds, in microseconds; likewise."""
        if span.low == span.high:
            return float(span.low)
        drawn = round(span.low + self.uniform() * (span.high - span.low), 6)
        return float(min(span.high, max(span.low, drawn)))

    def sample(self, count: int, bound: int) -> list[int]:
        """So many different ones below `bound`, ascending (R. W. Floyd's way, CACM 30:9, 1987)."""
        taken: set[int] = set()
        for last in range(bound - count, bound):
            drawn = self.below(last + 1)
            taken.add(last if drawn in taken else drawn)
        return sorted(taken)


Values = Mapping[str, Any]
Parameters = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Moment:
    """What a fault sees besides the decision so far.

    Attributes:
        values: of its keys.
        numbers: its draws.
        turn: the message's number, counted from 0 at the first that the fault can strike.
        size: bytes of the reply as it was.
        streams: whether it is one of a stream.
    """

    values: Values
    numbers: Numbers
    turn: int
    size: int
    streams: bool


def _corrupt(decision: Decision, moment: Moment) -> Parameters:
    flipped = bytearray(decision.data)
    room = 8 * len(flipped)
    bits = moment.numbers.sample(min(moment.values["bits"], room), room)
    for bit in bits:
        flipped[bit // 8] ^= 0x80 >> bit % 8
    decision.data = bytes(flipped)
    return {"bits": bits}


def _duplicate(decision: Decision, moment: Moment) -> Parameters:
    if moment.streams:
        decision.data *= 2
    else:
        decision.copies = 2
    return {}


def _swap(decision: Decision, moment: Moment) -> Parameters:
    decision.swap = moment.values["wait"]
    return {"wait": decision.swap}


def _stall(decision: Decision, _: Moment) -> Parameters:
    decision.stall = True
    return {}


def _drop(decision: Decision, _: Moment) -> Parameters:
    decision.drop = True
    return {}


def _kept(decision: Decision, moment: Moment, span: Range | None, least: int) -> int:
    """How many bytes leave: as told, else fewer than the reply has."""
    if span is None:
        span = Range(least, moment.size - 1) if moment.size > least else Range(0, 0)
    decision.keep = min(moment.numbers.whole(span), len(decision.data))
    return decision.keep


def _truncate(decision: Decision, moment: Moment) -> Parameters:
    decision.end = "close" if moment.streams else ""
    return {"at": _kept(decision, moment, moment.values["at"], 1 if moment.streams else 0)}


def _reset(decision: Decision, moment: Moment) -> Parameters:
    decision.end = "reset"
    return {"after": _kept(decision, moment, moment.values["after"], 0)}


def _delay(decision: Decision, moment: Moment) -> Parameters:
    time = moment.numbers.time(moment.values["time"])
    decision.delay += time
    return {"time": time}


def _jitter(decision: Decision, moment: Moment) -> Parameters:
    time = moment.numbers.time(Range(0.0, moment.values["time"]))
    decision.delay += time
    return {"time": time}


def _bandwidth(decision: Decision, moment: Moment) -> Parameters:
    decision.rate = moment.values["rate"]
    return {"rate": decision.rate}


def _coalesce(decision: Decision, moment: Moment) -> Parameters:
    decision.coalesce = moment.values["count"], moment.values["wait"]
    return dict(moment.values)


def _leaving(decision: Decision) -> int:
    return len(decision.data) if decision.keep is None else decision.keep


def _slice(decision: Decision, moment: Moment) -> Parameters:
    size, length = moment.values["size"], _leaving(decision)
    decision.pause = moment.values["pause"]
    if size.low == size.high:
        decision.cuts = range(size.low, length, size.low)[: MAX_PIECES - 1]
        return {"size": size.low, "pause": decision.pause}
    cuts: list[int] = []
    at = moment.numbers.whole(size)
    while at < length and len(cuts) < MAX_PIECES - 1:
        cuts.append(at)
        at += moment.numbers.whole(size)
    decision.cuts = tuple(cuts)
    return {"cuts": cuts, "pause": decision.pause}


def _walk(decision: Decision, moment: Moment) -> Parameters:
    decision.cuts = step(moment.turn, _leaving(decision))
    decision.pause = moment.values["pause"]
    return {"cuts": list(decision.cuts), "pause": decision.pause}


def _dribble(decision: Decision, moment: Moment) -> Parameters:
    decision.cuts = range(1, _leaving(decision))[: MAX_PIECES - 1]
    decision.pause = moment.values["pause"]
    return {"pause": decision.pause}


def step(turn: int, length: int) -> tuple[int, ...]:
    """Where a walk over `length` bytes cuts in this turn, counted from 0.

    All single cuts in turn, then all pairs in lexicographic order, then from the start again.
    """
    ends = length - 1  # the cuts that there are: after byte 1 ... ends
    if ends < 1:
        return ()
    pairs = ends * (ends - 1) // 2
    turn %= ends + pairs
    if turn < ends:
        return (turn + 1,)
    # From the last pair back they are the rows of a triangle: one that begins at the last cut but
    # one, two that begin at the cut before that, and so on.
    left = pairs - 1 - (turn - ends)
    row = (isqrt(8 * left + 1) - 1) // 2
    return ends - 1 - row, ends - (left - row * (row + 1) // 2)


def _slow_read(arrival: Arrival, moment: Moment) -> Parameters:
    arrival.slow = SlowRead(**moment.values)
    return dict(moment.values)


def _late_accept(arrival: Arrival, moment: Moment) -> Parameters:
    arrival.late = moment.numbers.time(moment.values["time"])
    return {"time": arrival.late}


#: What each fault does, by name.
EFFECTS: dict[str, Callable[[Any, Moment], Parameters]] = {
    "corrupt": _corrupt,
    "duplicate": _duplicate,
    "swap": _swap,
    "reorder": _swap,
    "stall": _stall,
    "drop": _drop,
    "truncate": _truncate,
    "reset": _reset,
    "delay": _delay,
    "jitter": _jitter,
    "bandwidth": _bandwidth,
    "coalesce": _coalesce,
    "slice": _slice,
    "walk": _walk,
    "dribble": _dribble,
    "slow-read": _slow_read,
    "late-accept": _late_accept,
}


# -- a plan's


class Draws:
    """What a plan does to each message, by its seed; the same whenever it is asked.

    Attributes:
        plan: of which faults.
        seed: 0 to `MAX_SEED`.
    """

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan = plan
        self.seed = seed
        replies = [each for each in plan.faults if not each.fault.connections]
        self._connections = [each for each in plan.faults if each.fault.connections]
        self._streams = [each for each in replies if each.fault.streams]
        self._datagrams = [each for each in replies if each.fault.datagrams]

    def connection(self, number: int) -> Arrival:
        """What is done to a stream's connection; they are counted from 1 on each listener."""
        arrival = Arrival()
        arrival.strikes = tuple(
            _strike(arrival, planned, Moment(planned.values, numbers, 0, 0, True))
            for planned, numbers in self._struck(self._connections, number, 0, number)
        )
        return arrival

    def reply(self, connection: int, message: int, reply: bytes) -> Decision:
        """What is done to a reply on a stream; messages are counted from 1 on each connection."""
        return self._decide(self._streams, True, connection, message, reply)

    def datagram(self, connection: int, message: int, reply: bytes) -> Decision:
        """Likewise to a datagram; a peer is a connection."""
        return self._decide(self._datagrams, False, connection, message, reply)

    def _decide(
        self, faults: list[Planned], streams: bool, connection: int, message: int, reply: bytes
    ) -> Decision:
        decision = Decision(reply)
        strikes = []
        for planned, numbers in self._struck(faults, connection, message, message):
            turn = message - planned.first
            moment = Moment(planned.values, numbers, turn, len(reply), streams)
            strikes.append(_strike(decision, planned, moment))
        decision.strikes = tuple(strikes)
        return decision

    def _struck(
        self, faults: list[Planned], connection: int, message: int, counted: int
    ) -> list[tuple[Planned, Numbers]]:
        """Those that strike, in the order in which they apply, each with what is left to draw."""
        struck: dict[str, tuple[Planned, Numbers]] = {}
        groups: set[str] = set()
        for planned in faults:
            name, group = planned.fault.name, planned.fault.group
            numbers = Numbers(self.seed, connection, message, name)
            strikes = counted >= planned.first and numbers.uniform() < planned.p
            if strikes and group not in groups:
                struck[name] = planned, numbers
                groups |= {group} - {""}
        for swallows in ("stall", "drop"):
            if swallows in struck:
                return [struck[swallows]]
        return [struck[name] for name in FAULTS if name in struck]


def _strike(target: Decision | Arrival, planned: Planned, moment: Moment) -> Strike:
    return Strike(planned.fault.name, EFFECTS[planned.fault.name](target, moment))
