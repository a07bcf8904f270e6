"""What leaves a stream, in which pieces and when: the decisions of a fault plan carried out.

Sans I/O, and time is an argument (the monotonic clock): `add` takes a reply with the decision about
it, `head` is the piece that leaves next, `take` takes it away. Contract:

- Replies leave in the order in which they came, but for `swap`, which lets the next one go first.
  (A reply that one waits for already is not swapped itself: it leaves, then the other.)
- `coalesce` joins replies: so many, or those that there are after its `wait`, become one piece;
  what cuts one of them cuts that.
- No piece leaves before its time, and none before another that is ahead of it.
- Pieces of a reply that was cut are `alone`: each is to be read before anything else leaves. So is
  a reply too short to be cut, where it was to be.
- What is held (`size`) is what came: a reply is cut as its pieces leave.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .decisions import Decision

#: Where the bandwidth is limited, what leaves at a time: so many seconds' worth.
RATE_STEP = 0.1
#: Faults that say how long each piece is; and all whose pieces are to be read one by one.
SLICING = frozenset({"slice", "dribble"})
CUTTING = SLICING | {"walk"}


@dataclass(slots=True)
class Piece:
    """What leaves in one send.

    Attributes:
        data: its bytes.
        messages: those that it has bytes of the replies to.
        due: when it may leave, at the earliest.
        delay: seconds that it was to wait after what it follows: the `recv` that completed its
            message, or, within a reply, the piece before it.
        pause: seconds from when what was before it is known to have been read.
        alone: whether it is to be read by itself.
        joins: whether it may leave together with others that may.
        end: what becomes of the connection then: nothing, `close` or `reset`.
    """

    data: bytes
    messages: tuple[int, ...]
    due: float
    delay: float = 0.0
    pause: float = 0.0
    alone: bool = False
    joins: bool = False
    end: str = ""


@dataclass(slots=True)
class _Reply:
    """A reply and what is decided about it."""

    message: int
    decision: Decision
    received: float

    @property
    def data(self) -> bytes:
        """The bytes of it that leave."""
        return self.decision.data[: self.decision.keep]  # None: all


@dataclass(slots=True)
class _Batch:
    """Replies that leave as one, whole or cut.

    Attributes:
        until: when it leaves, however few there are.
    """

    until: float
    count: int = 1
    replies: list[_Reply] = field(default_factory=list)


class Pieces:
    """What one stream has still to send.

    Attributes:
        size: bytes of it.
        replies: how many they are of.
        ended: whether what was added last ends the connection: nothing can follow.
    """

    def __init__(self) -> None:
        self.size = self.replies = 0
        self.ended = False
        self._head: Piece | None = None
        #: Cut as they leave.
        self._coming: deque[Iterator[Piece]] = deque()
        self._swapped: _Reply | None = None
        self._batch: _Batch | None = None
        #: No reply leaves before the one ahead of it; when the bandwidth has room again.
        self._due = self._free = 0.0

    def add(self, message: int, decision: Decision, received: float) -> None:
        """A reply; of no consequence once the connection is to be ended.

        Args:
            message: its number.
            decision: of the plan; neither `drop` nor `stall`.
            received: when its message was complete.
        """
        reply = _Reply(message, decision, received)
        if not self.ended:
            self.size += len(reply.data)
            self.replies += 1
            if decision.swap is not None and self._swapped is None:
                self._swapped = reply
                return
            self._enter(reply)
            self._unswap()

    def release(self, now: float) -> None:
        """Let go what has waited for others long enough."""
        if self._swapped is not None and now >= (until := _patience(self._swapped)):
            self._due = max(self._due, until)
            self._unswap()
        if self._batch is not None and now >= (until := self._batch.until):
            self._due = max(self._due, until)
            self._flush()

    def finish(self) -> None:
        """No reply follows: let go what waits for one."""
        self._unswap()
        self._flush()

    @property
    def waits_until(self) -> float | None:
        """When `release` has something to do; None: never."""
        times = []
        if self._swapped is not None:
            times.append(_patience(self._swapped))
        if self._batch is not None:
            times.append(self._batch.until)
        return min(times, default=None)

    @property
    def head(self) -> Piece | None:
        """The piece that leaves next, if there is one."""
        while self._head is None and self._coming:
            self._head = next(self._coming[0], None)
            if self._head is None:
                self._coming.popleft()
        return self._head

    def take(self, now: float, room: int) -> Piece:
        """Take the head away, and what is due and may leave with it, as long as there is room."""
        first = self._pop()
        if not first.joins:
            return first
        taken = [first]
        room -= len(first.data)
        while (head := self.head) and head.joins and head.due <= now and len(head.data) <= room:
            room -= len(head.data)
            taken.append(self._pop())
        return replace(
            first,
            data=b"".join(piece.data for piece in taken),
            messages=tuple(message for piece in taken for message in piece.messages),
            end=taken[-1].end,
        )

    def _pop(self) -> Piece:
        head = self.head
        if head is None:
            raise IndexError("there is no piece")
        self._head = None
        self.size -= len(head.data)
        return head

    def _unswap(self) -> None:
        reply, self._swapped = self._swapped, None
        if reply is not None:
            self._enter(reply)

    def _enter(self, reply: _Reply) -> None:
        """A reply has its place among the others."""
        if self.ended:
            self.size -= len(reply.data)
            self.replies -= 1
            return
        self.ended = bool(reply.decision.end)
        if self._batch is None:
            count, wait = reply.decision.coalesce or (1, 0.0)
            self._batch = _Batch(reply.received + wait, count)
        self._batch.replies.append(reply)
        if len(self._batch.replies) >= self._batch.count or self.ended:
            self._flush()

    def _flush(self) -> None:
        """The batch is complete."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        for reply in batch.replies:
            self._due = max(self._due, reply.received + reply.decision.delay)
        self._coming.append(self._cut(batch, self._due))

    def _cut(self, batch: _Batch, due: float) -> Iterator[Piece]:
        """Its pieces."""
        replies = batch.replies
        data = b"".join(reply.data for reply in replies)
        cuts, pause, rate = _cuts(replies), _pause(replies), _rate(replies)
        alone = bool(cuts) or any(_struck(reply, CUTTING) for reply in replies)
        bounds = cuts or (_strides(len(data), rate) if rate else [])
        if rate:
            due = max(due, self._free)
            self._free = due + len(data) / rate
        begin, delay = 0, due - replies[0].received
        for end in [*bounds, len(data)]:
            wait = (end - begin) / rate if rate else 0.0
            due += wait
            yield Piece(
                data[begin:end],
                _messages(replies, begin, end),
                due,
                delay + wait,
                pause if begin else 0.0,
                alone,
                joins=batch.count == 1 and not (alone or rate),
                end=replies[-1].decision.end if end == len(data) else "",
            )
            begin, delay = end, pause
        self.replies -= len(replies)


def _patience(reply: _Reply) -> float:
    return reply.received + (reply.decision.swap or 0.0)


def _cuts(replies: list[_Reply]) -> list[int]:
    """Where the joined replies are cut; where one begins, only if its pieces have a length."""
    cuts, begin = [], 0
    for reply in replies:
        size = len(reply.data)
        if begin and _struck(reply, SLICING):
            cuts.append(begin)
        cuts += [begin + cut for cut in reply.decision.cuts if cut < size]
        begin += size
    return cuts


def _struck(reply: _Reply, faults: frozenset[str]) -> bool:
    """Whether one of these struck it; what is too short to be cut is a piece all the same."""
    return any(strike.fault in faults for strike in reply.decision.strikes)


def _pause(replies: list[_Reply]) -> float:
    return max(reply.decision.pause for reply in replies)


def _rate(replies: list[_Reply]) -> float | None:
    return min((reply.decision.rate for reply in replies if reply.decision.rate), default=None)


def _strides(size: int, rate: float) -> range:
    """Where as many bytes end as pass in a step of the bandwidth."""
    step = max(1, round(rate * RATE_STEP))
    return range(step, size, step)


def _messages(replies: list[_Reply], begin: int, end: int) -> tuple[int, ...]:
    """The messages that these bytes of the joined replies belong to."""
    found, at = [], 0
    for reply in replies:
        stop = at + len(reply.data)
        if at < end and begin < stop:
            found.append(reply.message)
        at = stop
    return tuple(found)
