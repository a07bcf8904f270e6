"""The load generator's engine: sends messages, verifies each reply, counts how long it took.

What is sent, to whom and for how long is decided by `fastecho.load`. Contract:

- A message is a frame of one of a few `Kind`s; the number at the start of its payload tells it from
  the others. Message n of a channel is of the kind `order[n]`, from the start again at its end.
- A reply is right if it is, byte for byte, its message's frame with a prefix in it that has the
  template's form. The fast way is to compare with the last prefix that was right; the `Judge` is
  asked when that fails.
- Closed loop: a channel sends when a reply has made room for it, and latency counts from the call
  that sent it. Open loop: message i of all is due at a time that a `Schedule` has, goes to
  channel i modulo their number, and its latency counts from when it was due.
- On a stream the first wrong reply ends the channel, since what follows could not be told apart.
  Datagrams are told apart by their numbers: right, or lost, late, duplicate, reordered, corrupt.
- Times are nanoseconds of the monotonic clock, read once for all that one call received or sent.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from array import array
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..addresses import reason
from ..limits import DATAGRAM_BATCH, MAX_DATAGRAM, RECEIVE_BUFFER, SEND_BUFFER
from .selector import EVENT_READ, EVENT_WRITE, Selector

#: Digits of a message's number, fewer where the payload is shorter.
NUMBER = 8
#: Messages that one tick takes at most: whoever is far behind must still be able to stop.
CATCH_UP = 65_536
#: Datagrams that a channel remembers: later replies to older ones are late.
WINDOW = 65_536

#: Of SO_LINGER: `close` resets the connection.
ABORT = struct.pack("ii", 1, 0)

#: Layout of `Histogram`: durations below 2**(HALF + 1) ns exactly, others to one part in 2**HALF.
HALF = 10
SLOTS = (64 - HALF) << HALF

FLYING, ANSWERED, LOST = 1, 2, 3


class Kind(NamedTuple):
    """One kind of message.

    Attributes:
        frame: as it goes on the wire, but for its number.
        start: where its payload begins in it.
        length: bytes of its payload.
    """

    frame: bytes
    start: int
    length: int


class WrongReply(Exception):
    """What came is no reply to what was sent; the text says how that is seen."""


class Judge(Protocol):
    """Looks at what the fast way could not make out."""

    def heads(self, width: int) -> list[bytes]:
        """What stands before a prefix of so many bytes in the reply to each kind of message."""

    def prefix(self, data: bytes, payload: bytes) -> bytes | None:
        """The prefix of the first reply in `data`; None: more of it has to come.

        Raises:
            WrongReply: it is no reply to a message with this payload.
        """

    def of_datagram(self, data: bytes) -> list[bytes]:
        """What can be the prefix of a datagram, whatever it replies to."""


class Owner(Protocol):
    """Who is told what is rare."""

    def wrong(self, channel: Channel, sentence: str, data: bytes) -> None:
        """This came and is no reply; a stream's channel has ended."""

    def ended(self, channel: Channel, reason: str) -> None:
        """The connection is over, by its own error or the peer's close."""


class Histogram:
    """Counts of durations: HdrHistogram's layout (hdrhistogram.org), 3 significant digits."""

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * SLOTS))

    def record(self, value: int) -> None:
        """Count a duration in nanoseconds; below 0 is 0."""
        value = max(value, 0)
        shift = max(value.bit_length() - HALF - 1, 0)
        self._counts[(shift << HALF) + (value >> shift)] += 1

    def take(self) -> list[tuple[int, int]]:
        """(lowest duration of a slot, count) where there are any, ascending; forget them."""
        found = []
        for slot, count in enumerate(self._counts):
            if count:
                shift = max((slot >> HALF) - 1, 0)
                found.append(((slot - (shift << HALF)) << shift, count))
        self._counts = array("Q", bytes(8 * SLOTS))
        return found


class Tally:
    """What all channels of a run have done together.

    Attributes:
        left: messages that may still be sent.
        sent, received, bytes_out, bytes_in: so far; received are right replies.
        lost, late, duplicate, reordered, corrupt: datagrams.
        latency, lateness: how long replies took; in open loop, how late messages were sent that
            nothing but the generator held up.
    """

    def __init__(self, left: int) -> None:
        self.left = left
        self.sent = self.received = self.bytes_out = self.bytes_in = 0
        self.lost = self.late = self.duplicate = self.reordered = self.corrupt = 0
        self.latency = Histogram()
        self.lateness = Histogram()


class Source:
    """What is sent, and what must come back; shared by all channels.

    Args:
        kinds: of messages.
        order: kinds by index; their number is a power of two.
        digits: 16 symbols.
        judge: of replies.
    """

    def __init__(
        self, kinds: Sequence[Kind], order: Sequence[int], digits: bytes, judge: Judge
    ) -> None:
        self.kinds = list(kinds)
        self.order = list(order)
        self.digits = digits
        self.judge = judge
        self.prefix = b""
        self.heads = judge.heads(0)
        #: Whether any prefix was right yet.
        self.judged = False
        self._values = {digit: value for value, digit in enumerate(digits)}

    def kind(self, n: int) -> int:
        return self.order[n & (len(self.order) - 1)]

    def frame(self, kind: int, number: int) -> bytes:
        """A message on the wire."""
        frame, start, length = self.kinds[kind]
        text = self._text(number, min(length, NUMBER))
        return frame[:start] + text + frame[start + len(text) :]

    def payload(self, kind: int, number: int) -> bytes:
        start, length = self.kinds[kind].start, self.kinds[kind].length
        return self.frame(kind, number)[start : start + length]

    def reply(self, kind: int, number: int) -> bytes:
        """Its reply, with the last right prefix."""
        return self.heads[kind] + self.prefix + self.frame(kind, number)[self.kinds[kind].start :]

    def adopt(self, prefix: bytes) -> None:
        """This prefix was right."""
        if len(prefix) != len(self.prefix):
            self.heads = self.judge.heads(len(prefix))
        self.prefix = prefix
        self.judged = True

    def number(self, body: bytes) -> int | None:
        """The number at the start of a payload, as far as it is there."""
        number = 0
        for symbol in body[:NUMBER]:
            if symbol not in self._values:
                return None
            number = number << 4 | self._values[symbol]
        return number

    def _text(self, number: int, width: int) -> bytes:
        return bytes(self.digits[number >> 4 * place & 15] for place in range(width - 1, -1, -1))


class Schedule:
    """When messages are due.

    Args:
        offsets: nanoseconds after the start; their number is a power of two.
        period: when they begin again.
        channels: how many share the messages, in turn.
    """

    def __init__(self, offsets: Sequence[int], period: int, channels: int) -> None:
        self.offsets = list(offsets)
        self.period = period
        self.channels: list[Channel] = []
        self.count = channels
        self.start = 0
        self.next = 0

    def due(self, i: int) -> int:
        """When message i of all is due."""
        turn, place = divmod(i, len(self.offsets))
        return self.start + turn * self.period + self.offsets[place]

    def tick(self, now: int) -> int:
        """Have the channels send what is due; when the next message is."""
        touched: dict[Channel, None] = {}
        last = self.next + CATCH_UP
        while (due := self.due(self.next)) <= now and self.next < last:
            channel = self.channels[self.next % self.count]
            channel.owed += 1
            touched[channel] = None
            self.next += 1
        for channel in touched:
            channel.fill(now, on_time=True)
        return due


class Channel:
    """What streams and datagrams share.

    Args:
        sock: connected and non-blocking; the channel closes it.
        selector: where it is registered.
        source: what it sends.
        tally: what it counts into.
        owner: who is told what is rare.
        pipeline: messages in flight at most.
        base: the number of its first message.
        schedule: when its messages are due; None: a closed loop.
        index: which of the schedule's channels it is.

    Attributes:
        sent, answered, lost: messages so far.
        timeout: nanoseconds after which a datagram without a reply is lost.
        owed: messages that were due and are not sent.
        open: whether it can go on.
    """

    def __init__(
        self,
        sock: socket.socket,
        selector: Selector,
        source: Source,
        tally: Tally,
        owner: Owner,
        pipeline: int,
        base: int,
        schedule: Schedule | None = None,
        index: int = 0,
    ) -> None:
        self.selector = selector
        self.source = source
        self.tally = tally
        self.owner = owner
        self.pipeline = pipeline
        self.base = base
        self.schedule = schedule
        self.index = index
        self.sent = self.answered = self.lost = self.owed = 0
        self.timeout = 1_000_000_000
        self.open = True
        self._sock = sock
        self._writing = False
        self._set_up()
        selector.register(self, EVENT_READ, self)

    def _set_up(self) -> None:
        """Make what is one kind of channel's own."""

    def fill(self, now: int, on_time: bool = False) -> None:
        """Send what there is room for.

        Args:
            now: the time.
            on_time: whether nothing but the generator has held these messages up.
        """

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._sock.fileno()

    @property
    def flying(self) -> int:
        """Messages that wait for their replies."""
        return self.sent - self.answered - self.lost

    def offload(self, segments: int) -> None:
        """Have the kernel cut so many datagrams from one buffer, and join those that it receives.

        They must be of one size (UDP_SEGMENT, UDP_GRO; udp(7)). Here they go one by one.

        Raises:
            OSError: it cannot.
        """

    def renew(self, reset: bool = False) -> None:
        """Have each message of a stream go over a connection of its own, to the same address.

        Its latency counts from before it connects.

        Args:
            reset: whether we hang up with RST instead of FIN (SO_LINGER, socket(7)).
        """

    def expire(self, now: int) -> None:
        """Give up on datagrams that have been in flight for longer than the timeout."""

    def close(self) -> None:
        """Send and receive no more."""
        if self.open:
            self.open = False
            self.selector.unregister(self)
            self._sock.close()

    def _allowed(self) -> int:
        """How many messages may be sent now."""
        count = min(self.pipeline - self.flying, self.tally.left)
        return min(count, self.owed) if self.schedule is not None else count

    def _due(self, n: int) -> int:
        """When message n of this channel was due."""
        schedule = self.schedule
        return schedule.due(n * schedule.count + self.index) if schedule is not None else 0

    def _note_lateness(self, first: int, count: int, now: int) -> None:
        for n in range(first, first + count):
            self.tally.lateness.record(now - self._due(n))

    def _watch(self, writing: bool) -> None:
        if writing != self._writing:
            self._writing = writing
            self.selector.modify(self, EVENT_READ | (EVENT_WRITE if writing else 0), self)

    def _end(self, why: str) -> None:
        self.close()
        self.owner.ended(self, why)

    def _failed(self, error: OSError) -> None:
        if error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM):
            self._end(reason(error.errno or 0))


class StreamChannel(Channel):
    """One connection, over TCP or a UNIX stream."""

    def _set_up(self) -> None:
        self._times = [0] * self.pipeline
        self._unsent = b""
        self._held = b""
        self._renewed = self._reset = False

    def renew(self, reset: bool = False) -> None:
        self._renewed, self._reset = True, reset

    def fill(self, now: int, on_time: bool = False) -> None:
        while self.open and not self._unsent and (count := self._allowed()) > 0:
            first = self.sent
            self._send(self._build(count, now))
            if on_time:
                self._note_lateness(first, self.sent - first, now)

    def on_event(self, mask: int) -> None:
        """The descriptor is ready."""
        if mask & EVENT_WRITE and self._unsent:
            self._send(self._unsent)
        if mask & EVENT_READ and self.open:
            self._receive()
        elif self.open:
            self.fill(time.monotonic_ns())

    def _build(self, count: int, now: int) -> bytes:
        """The next messages, as many as a send buffer takes, and at least one."""
        frames: list[bytes] = []
        size = 0
        for n in range(self.sent, self.sent + count):
            kind = self.source.kind(n)
            if frames and size + len(self.source.kinds[kind].frame) > SEND_BUFFER:
                break
            frames.append(self.source.frame(kind, self.base + n))
            size += len(frames[-1])
            if self.schedule is None:
                self._times[n % self.pipeline] = now
        self.sent += len(frames)
        self.tally.sent += len(frames)
        self.tally.left -= len(frames)
        if self.schedule is not None:
            self.owed -= len(frames)
        return b"".join(frames)

    def _send(self, data: bytes) -> None:
        sent = 0
        try:
            sent = self._sock.send(data)
        except OSError as error:
            self._failed(error)
            if not self.open:
                return
        self.tally.bytes_out += sent
        self._unsent = data[sent:]
        self._watch(bool(self._unsent))

    def _receive(self) -> None:
        try:
            data = self._sock.recv(RECEIVE_BUFFER)
        except OSError as error:
            self._failed(error)
            return
        if not data:
            self._end("eof")
            return
        now = time.monotonic_ns()
        self.tally.bytes_in += len(data)
        self._held += data
        try:
            self._match(now)
        except WrongReply as wrong:
            self.close()
            self.owner.wrong(self, str(wrong), self._held)
            return
        if self._renewed and not self.flying and self._allowed() > 0:
            self._reconnect()
        self.fill(now)

    def _reconnect(self) -> None:
        """Hang up, and connect anew; what is sent before that is done waits for it."""
        family, kind, peer = self._sock.family, self._sock.type, self._sock.getpeername()
        self.selector.unregister(self)
        if self._reset:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        self._sock.close()
        self._writing = False
        try:
            self._sock = socket.socket(family, kind)
            self._sock.setblocking(False)
            if family != socket.AF_UNIX:
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number = self._sock.connect_ex(peer)
            if number not in (0, errno.EINPROGRESS):
                raise OSError(number, os.strerror(number))
            self.selector.register(self, EVENT_READ, self)
        except OSError as error:
            self.open = False
            self._sock.close()
            self.owner.ended(self, reason(error.errno or 0))

    def _match(self, now: int) -> None:
        """Verify the replies that are held, and hold them no more."""
        at = 0
        try:
            while at < len(self._held) and (size := self._check(self._held, at)):
                at += size
                self._answered(now)
        finally:
            self._held = self._held[at:]

    def _check(self, data: bytes, at: int) -> int:
        """Bytes of the right reply that begins there; 0: more of it has to come."""
        source = self.source
        if not self.flying:
            raise WrongReply("more came than was asked for")
        kind, number = source.kind(self.answered), self.base + self.answered
        reply = source.reply(kind, number)
        if source.judged and len(data) - at < len(reply) and reply.startswith(data[at:]):
            return 0
        if not source.judged or not data.startswith(reply, at):
            longest = len(reply) + MAX_DATAGRAM  # no prefix is longer
            prefix = source.judge.prefix(data[at : at + longest], source.payload(kind, number))
            if prefix is None:
                if len(data) - at >= longest:
                    raise WrongReply("it does not end where it should")
                return 0
            source.adopt(prefix)
            reply = source.reply(kind, number)
            if not data.startswith(reply, at):
                raise WrongReply("its header is not that of its length")
        return len(reply)

    def _answered(self, now: int) -> None:
        n = self.answered
        since = self._times[n % self.pipeline] if self.schedule is None else self._due(n)
        self.tally.latency.record(now - since)
        self.tally.received += 1
        self.answered += 1


class DatagramChannel(Channel):
    """One connected UDP or UNIX datagram socket."""

    def _set_up(self) -> None:
        self._times = array("q", bytes(8 * WINDOW))
        self._sent_at = array("q", bytes(8 * WINDOW))
        self._states = bytearray(WINDOW)
        self._oldest = 0
        self._latest = -1

    def fill(self, now: int, on_time: bool = False) -> None:
        first = self.sent
        for _ in range(self._allowed() if self.open else 0):
            if not self._send_one(now):
                break
        if on_time:
            self._note_lateness(first, self.sent - first, now)

    def on_event(self, mask: int) -> None:
        """The descriptor is ready."""
        if mask & EVENT_WRITE:
            self._watch(False)
        now = time.monotonic_ns()
        if mask & EVENT_READ:
            for _ in range(DATAGRAM_BATCH):
                try:
                    data = self._sock.recv(MAX_DATAGRAM)
                except OSError as error:
                    self._failed(error)
                    break
                self.tally.bytes_in += len(data)
                self._take(data, now)
        if self.open:
            self.fill(now)

    def expire(self, now: int) -> None:
        while self._oldest < self.sent:
            slot = self._oldest % WINDOW
            if self._states[slot] == FLYING:
                if now - self._sent_at[slot] <= self.timeout:
                    return
                self._lose(slot)
            self._oldest += 1

    def _send_one(self, now: int) -> bool:
        """Send the next message, if the kernel takes it; whether it did."""
        n = self.sent
        frame = self.source.frame(self.source.kind(n), self.base + n)
        try:
            self._sock.send(frame)
        except OSError as error:
            self._failed(error)
            if self.open:
                self._watch(True)
            return False
        slot = n % WINDOW
        if n - self._oldest == WINDOW:
            if self._states[slot] == FLYING:
                self._lose(slot)
            self._oldest += 1
        self._states[slot] = FLYING
        self._times[slot] = now if self.schedule is None else self._due(n)
        self._sent_at[slot] = now
        self.sent += 1
        self.tally.sent += 1
        self.tally.left -= 1
        self.tally.bytes_out += len(frame)
        if self.schedule is not None:
            self.owed -= 1
        return True

    def _lose(self, slot: int) -> None:
        self._states[slot] = LOST
        self.lost += 1
        self.tally.lost += 1

    def _take(self, data: bytes, now: int) -> None:
        """Find what a datagram replies to, and count it."""
        n = self._replied(data)
        if n is None:
            for prefix in self.source.judge.of_datagram(data):
                self.source.adopt(prefix)
                n = self._replied(data)
                if n is not None:
                    break
        if n is None:
            self.tally.corrupt += 1
            self.owner.wrong(self, "it replies to nothing that was sent", data)
            return
        slot = n % WINDOW
        if self.sent - n > WINDOW:
            self.tally.late += 1
        elif self._states[slot] == LOST:
            self.tally.late += 1
            self._states[slot] = ANSWERED
        elif self._states[slot] == ANSWERED:
            self.tally.duplicate += 1
        else:
            self._states[slot] = ANSWERED
            self.answered += 1
            self.tally.received += 1
            self.tally.latency.record(now - self._times[slot])
            if n < self._latest:
                self.tally.reordered += 1
            self._latest = max(self._latest, n)

    def _replied(self, data: bytes) -> int | None:
        """Which message this is the reply to, if its prefix is the last right one."""
        source = self.source
        if not source.judged or not data.startswith(source.prefix):
            return None
        body = data[len(source.prefix) :]
        number = source.number(body)
        if number is None:
            return None
        last = self.sent - 1
        step = 1 << 4 * min(len(body), NUMBER)
        n = last - ((self.base + last - number) & step - 1)
        # A short number comes again soon: the oldest message that waits for this reply has it.
        first = n - max(n - self._oldest, 0) // step * step
        for each in range(first, n + 1, step):
            if self._states[each % WINDOW] == FLYING and self._sends(each, body):
                return each
        for each in range(n, first - 1, -step):
            if self._sends(each, body):
                return each
        return None

    def _sends(self, n: int, payload: bytes) -> bool:
        """Whether this is the payload of message n."""
        source = self.source
        return n >= 0 and payload == source.payload(source.kind(n), self.base + n)
