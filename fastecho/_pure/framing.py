"""Codecs: one connection's framing state, cut two ways.

A codec turns a byte stream, however it was cut into `recv`s, into messages (`feed`) or straight
into reply bytes (`stamp`). Both share one state and one grammar: each codec says in `_frames`
what a frame is, and in `_reply` what the reply to it is. Contract:

- For the same bytes, every way of cutting them gives the same messages, the same error at the
  same offset, the same `messages`, `offset` and `pending`.
- Work grows with bytes plus calls, never with their product: a frame that is incomplete is not
  looked at again until the bytes that could settle it are there.
- A fault is data: what was complete before it is returned, `error` is set, nothing is held, and
  further input is ignored.
- Memory grows with the bytes that came, never with a length that was announced.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, TypeAlias

from ..errors import ConfigError, FrameCorrupt, FrameError, FrameTooLong, FrameTruncated
from ..limits import (
    MAX_DELIMITER,
    MAX_FRAME_CEILING,
    MAX_LENGTH_ADJUST,
    MAX_LENGTH_OFFSET,
    within,
)

Buffer: TypeAlias = "bytes | bytearray | memoryview"
#: What goes before a message: constant for a receive, or made from (sequence number, length).
Prefix: TypeAlias = "bytes | Callable[[int, int], bytes]"

#: Bytes of the longest varint: 64 bits, seven to a byte.
MAX_VARINT = 10


class Frame(NamedTuple):
    """One whole frame in a buffer, as positions: `begin`, message from `start` to `stop`, `end`."""

    begin: int
    start: int
    stop: int
    end: int


def contiguous(data: Buffer) -> memoryview:
    """The bytes of any contiguous bytes-like object, not copied.

    Raises:
        TypeError: it is not bytes-like.
        BufferError: it is not contiguous.
    """
    view = memoryview(data)
    if not view.c_contiguous:
        raise BufferError("the buffer is not contiguous")
    if not view.nbytes:  # which `cast` refuses
        return memoryview(b"" if view.readonly else bytearray())
    return view.cast("B")


class Codec(ABC):
    """What all framings share: the held part of an unfinished frame, counts, the fault.

    Attributes:
        max_frame: the longest message, in its own bytes.
        messages: messages cut so far.
        offset: stream bytes cut so far: where the unfinished frame, or the one at fault, begins.
        error: the fault that ended the stream, or None.
    """

    def __init__(self, max_frame: int) -> None:
        self.max_frame = within("max_frame", max_frame, 1, MAX_FRAME_CEILING)
        self.messages = 0
        self.offset = 0
        self.error: FrameError | None = None
        self._held = bytearray()
        #: Bytes that must be there before the unfinished frame is worth another look.
        self._wanted = 0
        self._fault: tuple[type[FrameError], str] | None = None
        self._finished = False

    # -- what a framing defines

    @abstractmethod
    def fresh(self) -> Codec:
        """A codec of the same configuration at the start of a stream."""

    @abstractmethod
    def encode(self, payload: Buffer) -> bytes:
        """One message as it goes on the wire.

        Raises:
            ValueError: this framing, or its limit, cannot carry the payload.
        """

    @abstractmethod
    def _frames(self, data: bytes) -> Iterator[Frame]:
        """The whole frames at the start of `data`; sets `_wanted`, or `_fault`, where it stops."""

    def _reply(self, data: bytes, frame: Frame, prefix: bytes) -> bytes:
        """The reply to one frame: here, prefix and frame as they are."""
        return prefix + data[frame.begin : frame.end]

    def _settles(self, data: bytes) -> bool:
        """Whether `data` could complete the held frame, or show it to be at fault."""
        return len(self._held) + len(data) >= self._wanted

    def _tail(self) -> bytes:
        """The message that the end of the stream completes; by default there is none."""
        self._fault = FrameTruncated, f"the stream ended {len(self._held)} bytes into it"
        return b""

    @property
    def capacity(self) -> int | None:
        """The longest message, prefix included, that a reply can announce; None: any."""
        return None

    # -- what they share

    @property
    def pending(self) -> int:
        """Bytes held of the unfinished frame."""
        return len(self._held)

    def feed(self, data: Buffer) -> list[bytes]:
        """The messages that `data` completes. What follows a fault is ignored.

        Raises:
            ValueError: after `finish`.
        """
        buffer = self._buffer(bytes(contiguous(data)))
        if buffer is None:
            return []
        messages, end = self._cut(buffer)
        self._advance(buffer, len(messages), end)
        return messages

    def stamp(self, data: bytes, prefix: Prefix, room: int) -> tuple[int, bytes]:
        """The replies to the messages that `data` completes, as many as fit.

        Args:
            data: what came.
            prefix: what goes before each message.
            room: how many bytes the replies can have together.

        Returns:
            how many bytes of `data` are consumed: all, unless a reply did not fit; and the replies.
        """
        before = len(self._held)
        buffer = self._buffer(data)
        if buffer is None:
            return len(data), b""
        count, end, reply, whole = self._stamp(buffer, prefix, room)
        if whole:
            self._advance(buffer, count, end)
            return len(data), reply
        self._fault = None
        self._wanted = 0
        self.messages += count
        self.offset += end
        if not end:
            return 0, b""
        self._held.clear()
        return end - before, reply

    def finish(self) -> list[bytes]:
        """The stream has ended: its tail, if that is a message.

        Raises:
            ValueError: after `finish`.
        """
        self._check_open("finish")
        self._finished = True
        if not self._held:
            return []
        tail = self._tail()
        complete = self._fault is None
        self._advance(b"", int(complete), len(self._held) if complete else 0)
        self._held.clear()
        return [tail] if complete else []

    def _check_open(self, call: str) -> None:
        if self._finished:
            raise ValueError(f"{call}() after finish()")

    def _buffer(self, data: bytes) -> bytes | None:
        """Held bytes and `data` together, or None if they settle nothing yet."""
        self._check_open("feed")
        if self.error is not None or not data:
            return None
        if not self._held:
            return data
        if not self._settles(data):
            self._held += data
            return None
        return bytes(self._held) + data

    def _cut(self, buffer: bytes) -> tuple[list[bytes], int]:
        """All whole messages, and where the last of them ends."""
        end = 0
        messages = []
        for frame in self._frames(buffer):
            messages.append(buffer[frame.start : frame.stop])
            end = frame.end
        return messages, end

    def _stamp(self, buffer: bytes, prefix: Prefix, room: int) -> tuple[int, int, bytes, bool]:
        """(messages answered, where the last ends, replies, whether that was all)."""
        fixed = prefix if isinstance(prefix, bytes) else None
        count = end = 0
        replies: list[bytes] = []
        for frame in self._frames(buffer):
            text = fixed
            if text is None:
                text = prefix(self.messages + count + 1, frame.stop - frame.start)  # type: ignore[operator]
            reply = self._reply(buffer, frame, text)
            room -= len(reply)
            if room < 0:
                return count, end, b"".join(replies), False
            replies.append(reply)
            count += 1
            end = frame.end
        return count, end, b"".join(replies), True

    def _advance(self, buffer: bytes, count: int, end: int) -> None:
        """Take `count` messages, the bytes up to `end`, as done; hold the rest, unless at fault."""
        self.messages += count
        self.offset += end
        self._held = bytearray(buffer[end:])
        if self._fault is not None:
            fault, detail = self._fault
            self.error = fault(self.offset, detail)
            self._held.clear()

    def _too_long(self) -> None:
        self._fault = FrameTooLong, f"longer than max_frame ({self.max_frame} bytes)"

    def _check_length(self, payload: memoryview) -> None:
        if payload.nbytes > self.max_frame:
            raise ValueError(f"{payload.nbytes} bytes are longer than max_frame ({self.max_frame})")


class DelimiterCodec(Codec):
    """A message is what stands before `delimiter`, leftmost match; `line` is the delimiter LF.

    The tail that a stream ends with is a message too, the start of a delimiter in it included.
    """

    def __init__(self, delimiter: bytes, max_frame: int) -> None:
        super().__init__(max_frame)
        if not 1 <= len(delimiter) <= MAX_DELIMITER:
            raise ConfigError(f"a delimiter has 1 to {MAX_DELIMITER} bytes, not {len(delimiter)}")
        self.delimiter = bytes(delimiter)
        #: Whether two matches can overlap; if not, matches found from the right are the leftmost.
        self._overlaps = any(
            self.delimiter.startswith(self.delimiter[i:]) for i in range(1, len(delimiter))
        )

    def fresh(self) -> DelimiterCodec:
        return DelimiterCodec(self.delimiter, self.max_frame)

    def encode(self, payload: Buffer) -> bytes:
        view = contiguous(payload)
        self._check_length(view)
        wire = bytes(view) + self.delimiter
        if wire.find(self.delimiter) != view.nbytes:
            raise ValueError(f"the payload holds, or completes, the delimiter {self.delimiter!r}")
        return wire

    def _frames(self, data: bytes) -> Iterator[Frame]:
        begin = 0
        width = len(self.delimiter)
        while (stop := data.find(self.delimiter, begin)) >= 0:
            if stop - begin > self.max_frame:
                return self._too_long()
            yield Frame(begin, begin, stop, stop + width)
            begin = stop + width
        if self._outgrown(data[begin:]):
            self._too_long()
        return None

    def _outgrown(self, tail: bytes | bytearray) -> bool:
        """Whether no continuation can make this unterminated message fit.

        The best that can follow completes the delimiter whose start the tail ends with.
        """
        excess = len(tail) - self.max_frame
        if excess <= 0:
            return False
        if excess >= len(self.delimiter):
            return True
        return not any(
            tail.endswith(self.delimiter[:started])
            for started in range(excess, len(self.delimiter))
        )

    def _settles(self, data: bytes) -> bool:
        width = len(self.delimiter)
        if width == 1:
            found = self.delimiter in data
        else:
            found = (self._held[1 - width :] + data[: width - 1]).find(self.delimiter) >= 0
            found = found or self.delimiter in data
        return found or len(self._held) + len(data) > self.max_frame

    def _tail(self) -> bytes:
        if len(self._held) > self.max_frame:
            self._too_long()
        return bytes(self._held)

    # Where the prefix is the same for all, the replies are the input with the prefix put after
    # every delimiter but the last: one `bytes.replace`, Python's fastest way by far.

    def _cut(self, buffer: bytes) -> tuple[list[bytes], int]:
        if len(buffer) > self.max_frame and (
            self._overlaps or self._first_too_long(buffer) is not None
        ):
            return super()._cut(buffer)
        *messages, tail = buffer.split(self.delimiter)
        return messages, len(buffer) - len(tail)

    def _stamp(self, buffer: bytes, prefix: Prefix, room: int) -> tuple[int, int, bytes, bool]:
        if callable(prefix) or self._overlaps:
            return super()._stamp(buffer, prefix, room)
        limit = self._first_too_long(buffer) if len(buffer) > self.max_frame else None
        if limit is not None:
            self._too_long()
        end = buffer.rfind(self.delimiter, 0, limit) + len(self.delimiter)
        if end < len(self.delimiter):
            return 0, 0, b"", True
        count = buffer.count(self.delimiter, 0, end)
        whole = end + count * len(prefix) <= room
        if not whole:
            count, end = self._fitting(buffer, end, len(prefix), room)
            if not count:
                return 0, 0, b"", False
        last = end - len(self.delimiter)
        following = self.delimiter + prefix
        reply = prefix + buffer[:last].replace(self.delimiter, following) + self.delimiter
        return count, end, reply, whole

    def _first_too_long(self, buffer: bytes) -> int | None:
        """Where the first message begins that is too long, the unterminated one included.

        Strides over the frames that are short: from where one begins, the last delimiter within
        reach shows that all up to it are.
        """
        begin = 0
        while len(buffer) - begin > self.max_frame:
            reach = begin + self.max_frame + len(self.delimiter)
            stop = buffer.rfind(self.delimiter, begin, reach)
            if stop < 0:
                return begin if self._outgrown(buffer[begin:]) else None
            begin = stop + len(self.delimiter)
        return None

    def _fitting(self, buffer: bytes, high: int, extra: int, room: int) -> tuple[int, int]:
        """How many replies to the frames up to `high` fit into `room`, and where the last ends.

        Halves the bytes in doubt each time, so that none is counted more than twice.
        """
        width = len(self.delimiter)
        count = low = 0
        while low < high:
            stop = buffer.find(self.delimiter, (low + high - width) // 2, high)
            end = stop + width
            found = count + buffer.count(self.delimiter, low, end)
            if end + found * extra <= room:
                count, low = found, end
            else:
                previous = buffer.rfind(self.delimiter, low, stop)
                high = low if previous < 0 else previous + width
        return count, low


class RawCodec(Codec):
    """A message is whatever one `feed` brings: the tutorial's way, and its bug."""

    def __init__(self) -> None:
        super().__init__(MAX_FRAME_CEILING)

    def fresh(self) -> RawCodec:
        return RawCodec()

    def encode(self, payload: Buffer) -> bytes:
        wire = bytes(contiguous(payload))
        if not wire:
            raise ValueError("raw framing cannot carry an empty message")
        return wire

    def _frames(self, data: bytes) -> Iterator[Frame]:
        yield Frame(0, 0, len(data), len(data))


class FixedCodec(Codec):
    """A message is `size` bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(within("the size of a fixed frame", size, 1, MAX_FRAME_CEILING))
        self.size = size

    def fresh(self) -> FixedCodec:
        return FixedCodec(self.size)

    def encode(self, payload: Buffer) -> bytes:
        wire = bytes(contiguous(payload))
        if len(wire) != self.size:
            raise ValueError(f"fixed:{self.size} cannot carry {len(wire)} bytes")
        return wire

    def _frames(self, data: bytes) -> Iterator[Frame]:
        size = self.size
        self._wanted = size
        for begin in range(0, len(data) - size + 1, size):
            yield Frame(begin, begin, begin + size, begin + size)


class LengthCodec(Codec):
    """`offset` bytes, an unsigned length of `width` bytes, then length + `adjust` bytes of message.

    As `LengthFieldBasedFrameDecoder` in Netty and `LengthDelimitedCodec` in tokio-util. The reply
    has the `offset` bytes as they came, and the length grown by the prefix's.
    """

    def __init__(
        self,
        width: int,
        max_frame: int,
        offset: int = 0,
        adjust: int = 0,
        little: bool = False,
    ) -> None:
        super().__init__(max_frame)
        self.width = within("the width of a length field", width, 1, 8)
        self.before = within("the offset of a length field", offset, 0, MAX_LENGTH_OFFSET)
        self.adjust = within("adjust", adjust, -MAX_LENGTH_ADJUST, MAX_LENGTH_ADJUST)
        self.little = bool(little)
        self._order: Literal["little", "big"] = "little" if little else "big"
        if not max(adjust, 0) <= max_frame <= self.capacity:
            raise ConfigError(
                f"max_frame={max_frame:,} does not fit a length field of {width} bytes with"
                f" adjust={adjust}: {max(adjust, 0):,} to {self.capacity:,} bytes"
            )

    def fresh(self) -> LengthCodec:
        return LengthCodec(self.width, self.max_frame, self.before, self.adjust, self.little)

    @property
    def capacity(self) -> int:
        return (1 << 8 * self.width) - 1 + self.adjust

    def encode(self, payload: Buffer) -> bytes:
        view = contiguous(payload)
        self._check_length(view)
        announced = view.nbytes - self.adjust
        if announced < 0:
            raise ValueError(f"adjust={self.adjust} cannot announce {view.nbytes} bytes")
        return bytes(self.before) + announced.to_bytes(self.width, self._order) + view

    def _frames(self, data: bytes) -> Iterator[Frame]:
        begin = 0
        before, header = self.before, self.before + self.width
        while len(data) - begin >= header:
            start = begin + header
            announced = int.from_bytes(data[begin + before : start], self._order)
            length = announced + self.adjust
            if length < 0:
                self._fault = (
                    FrameCorrupt,
                    f"length {announced} with adjust={self.adjust} is below 0",
                )
                return
            if length > self.max_frame:
                self._too_long()
                return
            end = start + length
            if end > len(data):
                self._wanted = end - begin
                return
            yield Frame(begin, start, end, end)
            begin = end
        self._wanted = header

    def _reply(self, data: bytes, frame: Frame, prefix: bytes) -> bytes:
        field = frame.begin + self.before
        announced = frame.stop - frame.start - self.adjust + len(prefix)
        return b"".join(
            (
                data[frame.begin : field],
                announced.to_bytes(self.width, self._order),
                prefix,
                data[frame.start : frame.stop],
            )
        )


class VarintCodec(Codec):
    """A protobuf base-128 varint, least significant group first, then that many bytes.

    As protobuf's `writeDelimitedTo`. Overlong forms are read; replies use the shortest.
    """

    def fresh(self) -> VarintCodec:
        return VarintCodec(self.max_frame)

    def encode(self, payload: Buffer) -> bytes:
        view = contiguous(payload)
        self._check_length(view)
        return varint(view.nbytes) + view

    def _frames(self, data: bytes) -> Iterator[Frame]:
        begin = 0
        while True:
            length = shift = 0
            start = begin
            for octet in data[begin : begin + MAX_VARINT]:
                start += 1
                length |= (octet & 0x7F) << shift
                shift += 7
                if octet < 0x80:
                    break
            else:
                if start - begin == MAX_VARINT:
                    self._fault = FrameCorrupt, f"varint of more than {MAX_VARINT} bytes"
                self._wanted = start - begin + 1
                return
            if length >> 64:
                self._fault = FrameCorrupt, "varint past 64 bits"
                return
            if length > self.max_frame:
                self._too_long()
                return
            end = start + length
            if end > len(data):
                self._wanted = end - begin
                return
            yield Frame(begin, start, end, end)
            begin = end

    def _reply(self, data: bytes, frame: Frame, prefix: bytes) -> bytes:
        length = varint(frame.stop - frame.start + len(prefix))
        return length + prefix + data[frame.start : frame.stop]


class NetstringCodec(Codec):
    """`LEN:bytes,` with a decimal length without leading zeros (D. J. Bernstein, 1997)."""

    def fresh(self) -> NetstringCodec:
        return NetstringCodec(self.max_frame)

    def encode(self, payload: Buffer) -> bytes:
        view = contiguous(payload)
        self._check_length(view)
        return b"%d:%b," % (view.nbytes, bytes(view))

    def _frames(self, data: bytes) -> Iterator[Frame]:
        begin = 0
        while True:
            start = self._body(data, begin)
            if start < 0:
                return
            stop = start + int(data[begin : start - 1])
            if stop >= len(data):
                self._wanted = stop + 1 - begin
                return
            if data[stop] != 0x2C:
                self._fault = FrameCorrupt, "netstring without ',' at its end"
                return
            yield Frame(begin, start, stop, stop + 1)
            begin = stop + 1

    def _body(self, data: bytes, begin: int) -> int:
        """Where the message begins whose length begins at `begin`; -1: not yet, or a fault."""
        length = 0
        position = begin
        for octet in data[begin : begin + len(str(self.max_frame)) + 1]:
            if octet == 0x3A and position > begin:
                return position + 1
            if not 0x30 <= octet <= 0x39:
                what = "no length" if position == begin else "a byte in its length that is no digit"
                self._fault = FrameCorrupt, f"netstring with {what}"
                return -1
            if position > begin and not length:
                self._fault = FrameCorrupt, "netstring with a leading zero in its length"
                return -1
            length = 10 * length + octet - 0x30
            if length > self.max_frame:
                self._too_long()
                return -1
            position += 1
        self._wanted = position - begin + 1
        return -1

    def _reply(self, data: bytes, frame: Frame, prefix: bytes) -> bytes:
        length = frame.stop - frame.start + len(prefix)
        return b"%d:%b%b," % (length, prefix, data[frame.start : frame.stop])


def varint(value: int) -> bytes:
    """`value` as a protobuf base-128 varint, in its shortest form."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
