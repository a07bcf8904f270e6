"""Codecs: one connection's framing state, cut two ways.

A codec turns a byte stream, however it was cut into `recv`s, into messages (`feed`) or straight
into reply bytes (`stamp`). Both share one state and one grammar: each codec says in `_frames`
what a frame is, and in `_header` what its reply begins with. Contract:

- For the same bytes, every way of cutting them gives the same messages, the same error at the
  same offset, the same `messages`, `offset` and `pending`.
- Work grows with bytes plus calls, never with their product: a frame that is incomplete is not
  looked at again until the bytes that could settle it are there.
- A fault is data: what was complete before it is returned, `error` is set, nothing is held, and
  further input is ignored.
- Memory grows with the bytes that came, never with a length that was announced.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeAlias

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
#: One whole frame in a buffer, as positions: where it begins, where its message starts and stops,
#: where it ends. Plain, since naming its parts would cost as much as all else that is done with it.
Frame: TypeAlias = "tuple[int, int, int, int]"

#: Bytes of lines that are stamped at a time, up to the end of the last: replies that turn out not
#: to fit were made in vain.
PIECE = 65_536
#: Bytes of the longest varint: 64 bits, seven to a byte.
MAX_VARINT = 10


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


def as_bytes(data: Buffer) -> bytes:
    """A copy of any contiguous bytes-like object; bytes as they are. Raises as `contiguous`."""
    return data if type(data) is bytes else bytes(contiguous(data))


class Codec(ABC):
    """What all framings share: the held part of an unfinished frame, counts, the fault.

    Attributes:
        max_frame: the longest message, in its own bytes.
        messages: messages cut so far.
        offset: stream bytes cut so far: where the unfinished frame, or the one at fault, begins.
        error: the fault that ended the stream, or None.
    """

    __slots__ = (
        "_at_start",
        "_fault",
        "_finished",
        "_held",
        "_wanted",
        "error",
        "max_frame",
        "messages",
        "offset",
    )

    def __init__(self, max_frame: int) -> None:
        self.max_frame = within("max_frame", max_frame, 1, MAX_FRAME_CEILING)
        self.messages = 0
        self.offset = 0
        self.error: FrameError | None = None
        #: Of the unfinished frame. While there is none, it costs nothing.
        self._held: bytes | bytearray = b""
        #: Whether the next byte begins a frame: nothing is held, there was no fault and no end.
        self._at_start = True
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

    def _header(self, data: bytes, begin: int, length: int) -> bytes:
        """What stands before prefix and message, `length` bytes together, in a frame's reply."""
        return b""

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
        buffer = self._buffer(as_bytes(data))
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
        if not end:
            return 0, b""
        self._advance(b"", count, end)
        return end - before, reply

    def stamp_whole(self, data: bytes, prefix: bytes, room: int) -> bytes:
        """What `stamp` does, at once, where `data` is whole frames that are easily seen as such.

        Args:
            data: what came.
            prefix: what goes before each message.
            room: how many bytes the replies can have together; never less than one can have.

        Returns:
            the replies to all of it; empty: nothing is done, and `stamp` has to be asked.
        """
        return b""

    def finish(self) -> list[bytes]:
        """The stream has ended: its tail, if that is a message.

        Raises:
            ValueError: after `finish`.
        """
        self._check_open("finish")
        self._finished = True
        self._at_start = False
        if not self._held:
            return []
        tail = self._tail()
        complete = self._fault is None
        self._advance(b"", int(complete), len(self._held) if complete else 0)
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
            self._held += data  # a bytearray, since there was something to hold
            return None
        return bytes(self._held) + data

    def _cut(self, buffer: bytes) -> tuple[list[bytes], int]:
        """All whole messages, and where the last of them ends."""
        done = 0
        messages = []
        for _, start, stop, end in self._frames(buffer):
            messages.append(buffer[start:stop])
            done = end
        return messages, done

    def _stamp(self, buffer: bytes, prefix: Prefix, room: int) -> tuple[int, int, bytes, bool]:
        """(messages answered, where the last ends, replies, whether that was all)."""
        text, render = (b"", prefix) if callable(prefix) else (prefix, None)
        count = done = 0
        replies: list[bytes] = []
        for begin, start, stop, end in self._frames(buffer):
            if render is not None:
                text = render(self.messages + count + 1, stop - start)
            header = self._header(buffer, begin, stop - start + len(text))
            room -= len(header) + len(text) + end - start
            if room < 0:
                return count, done, b"".join(replies), False
            replies += header, text, buffer[start:end]
            count += 1
            done = end
        return count, done, b"".join(replies), True

    def _advance(self, buffer: bytes, count: int, end: int) -> None:
        """Take `count` messages, the bytes up to `end`, as done; hold the rest, unless at fault."""
        self.messages += count
        self.offset += end
        self._held = bytearray(buffer[end:]) if end < len(buffer) else b""
        if self._fault is not None:
            fault, detail = self._fault
            self.error = fault(self.offset, detail)
            self._held = b""
        self._at_start = not (self._held or self._finished or self._fault)

    def _too_long(self) -> None:
        self._fault = FrameTooLong, f"longer than max_frame ({self.max_frame} bytes)"

    def _check_length(self, payload: memoryview) -> None:
        if payload.nbytes > self.max_frame:
            raise ValueError(f"{payload.nbytes} bytes are longer than max_frame ({self.max_frame})")


class _EndedCodec(Codec):
    """Messages that have their end behind them: the end of the stream completes one too."""

    __slots__ = ()

    def _tail(self) -> bytes:
        if len(self._held) > self.max_frame:
            self._too_long()
        return bytes(self._held)


class DelimiterCodec(_EndedCodec):
    """A message is what stands before `delimiter`, leftmost match; `line` is the delimiter LF.

    The tail that a stream ends with is a message too, the start of a delimiter in it included.
    """

    __slots__ = ("_overlaps", "delimiter")

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
            yield begin, begin, stop, stop + width
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

    # Where the prefix is the same for all, the replies are the input with the prefix put before it
    # and after every delimiter but the last: one `bytes.replace`, Python's fastest way by far. How
    # much longer they are says how many they are, sooner than `bytes.count` would.

    def _cut(self, buffer: bytes) -> tuple[list[bytes], int]:
        if len(buffer) > self.max_frame and (
            self._overlaps or self._first_too_long(buffer) is not None
        ):
            return super()._cut(buffer)
        *messages, tail = buffer.split(self.delimiter)
        return messages, len(buffer) - len(tail)

    def stamp_whole(self, data: bytes, prefix: bytes, room: int) -> bytes:
        size, delimiter = len(data), self.delimiter
        if not self._at_start or size > self.max_frame:
            return b""
        first = data.find(delimiter)
        if first < 0:
            return b""
        if first + len(delimiter) == size:
            self.messages += 1
            self.offset += size
            return prefix + data
        added = len(prefix)
        # Even if every byte were a message, the replies would fit.
        if not added or size * (added + 1) > room or self._overlaps or not data.endswith(delimiter):
            return b""
        stamped = data.replace(delimiter, delimiter + prefix)
        self.messages += (len(stamped) - size) // added
        self.offset += size
        return prefix + stamped[:-added]

    def _stamp(self, buffer: bytes, prefix: Prefix, room: int) -> tuple[int, int, bytes, bool]:
        if callable(prefix) or self._overlaps:
            return super()._stamp(buffer, prefix, room)
        limit = self._first_too_long(buffer) if len(buffer) > self.max_frame else None
        if limit is not None:
            self._too_long()
        width = len(self.delimiter)
        end = buffer.rfind(self.delimiter, 0, limit) + width
        if end < width:
            return 0, 0, b"", True
        replies = [prefix]
        count = done = 0
        whole = True
        while whole and done < end:
            stop = buffer.find(self.delimiter, done + PIECE, end) + width
            piece = buffer[done : end if stop < width else stop]
            stamped = self._follow(piece, prefix, room)
            whole = len(stamped) <= room
            if not whole:
                piece = piece[: self._fitting(piece, len(prefix), room)]
                if not piece:
                    break
                stamped = self._follow(piece, prefix, room)
            done += len(piece)
            room -= len(stamped)
            if prefix:
                count += (len(stamped) - len(piece)) // len(prefix)
            else:
                count += piece.count(self.delimiter)
            replies.append(stamped)
        if not count:
            return 0, 0, b"", False
        last = memoryview(replies.pop())
        return count, done, b"".join((*replies, last[: len(last) - len(prefix)])), whole

    def _follow(self, frames: bytes, prefix: bytes, room: int) -> bytes:
        """These whole frames, each followed by the prefix; past `room`, not all of them are."""
        following = self.delimiter + prefix
        most = min(room // len(following) + 1, len(frames))
        if len(self.delimiter) == 1:
            return frames.replace(self.delimiter, following, most)
        return following.join(frames.split(self.delimiter, most))  # `replace` would look twice

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

    def _fitting(self, frames: bytes, extra: int, room: int) -> int:
        """Where the last of these whole frames ends that fits, if each grows by `extra`.

        Halves the bytes in doubt each time, so that none is counted more than twice.
        """
        width = len(self.delimiter)
        low, high = 0, len(frames)
        while low < high:
            stop = frames.find(self.delimiter, (low + high - width) // 2, high)
            end = stop + width
            need = end - low + extra * frames.count(self.delimiter, low, end)
            if need <= room:
                room -= need
                low = end
            else:
                previous = frames.rfind(self.delimiter, low, stop)
                high = low if previous < 0 else previous + width
        return low


class Ends:
    """Delimiters, with what a search for any of them takes; shared by a listener's streams."""

    __slots__ = ("delimiters", "longest", "pattern")

    def __init__(self, delimiters: Iterable[bytes]) -> None:
        self.delimiters = any_of(delimiters)
        self.longest = max(map(len, self.delimiters))
        self.pattern = re.compile(b"|".join(map(re.escape, self.delimiters)))


class AnyDelimiterCodec(_EndedCodec):
    """A message is what stands before any one of these, and its reply ends with that one.

    None can hold another, but at its end, where the longer counts: LF and CR LF can both be
    delimiters. So no byte that comes later has a say in where a message ends, nor a cut; and the
    leftmost match is the first to end. (CR and CR LF would have to wait for what follows a CR.)
    What `encode` writes is the first of them.
    """

    __slots__ = ("_ends",)

    def __init__(self, delimiters: Iterable[bytes] | Ends, max_frame: int) -> None:
        super().__init__(max_frame)
        self._ends = delimiters if isinstance(delimiters, Ends) else Ends(delimiters)

    @property
    def delimiters(self) -> tuple[bytes, ...]:
        """What ends a message, any one of them."""
        return self._ends.delimiters

    def fresh(self) -> AnyDelimiterCodec:
        return AnyDelimiterCodec(self._ends, self.max_frame)

    def encode(self, payload: Buffer) -> bytes:
        view = contiguous(payload)
        self._check_length(view)
        wire = bytes(view) + self.delimiters[0]
        found = self._ends.pattern.search(wire)
        if found is None or found.start() != view.nbytes:
            listed = " ".join(map(repr, self.delimiters))
            raise ValueError(f"the payload holds, or completes, one of {listed}")
        return wire

    def _frames(self, data: bytes) -> Iterator[Frame]:
        begin = 0
        for match in self._ends.pattern.finditer(data):
            stop, end = match.span()
            if stop - begin > self.max_frame:
                return self._too_long()
            yield begin, begin, stop, end
            begin = end
        if self._outgrown(data[begin:]):
            self._too_long()
        return None

    def _outgrown(self, tail: bytes) -> bool:
        """As `DelimiterCodec._outgrown`, for any of them."""
        excess = len(tail) - self.max_frame
        return excess > 0 and not any(
            tail.endswith(delimiter[:started])
            for delimiter in self.delimiters
            for started in range(excess, len(delimiter))
        )

    def _settles(self, data: bytes) -> bool:
        if len(self._held) + len(data) > self.max_frame:
            return True
        overlap = self._ends.longest - 1
        seam = self._held[-overlap:] + data[:overlap] if overlap else b""
        return bool(self._ends.pattern.search(seam) or self._ends.pattern.search(data))


class RawCodec(Codec):
    """A message is whatever one `feed` brings: the tutorial's way, and its bug."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(MAX_FRAME_CEILING)

    def fresh(self) -> RawCodec:
        return RawCodec()

    def encode(self, payload: Buffer) -> bytes:
        wire = as_bytes(payload)
        if not wire:
            raise ValueError("raw framing cannot carry an empty message")
        return wire

    def _frames(self, data: bytes) -> Iterator[Frame]:
        yield 0, 0, len(data), len(data)


class FixedCodec(Codec):
    """A message is `size` bytes."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        super().__init__(within("the size of a fixed frame", size, 1, MAX_FRAME_CEILING))
        self.size = size

    def fresh(self) -> FixedCodec:
        return FixedCodec(self.size)

    def encode(self, payload: Buffer) -> bytes:
        wire = as_bytes(payload)
        if len(wire) != self.size:
            raise ValueError(f"fixed:{self.size} cannot carry {len(wire)} bytes")
        return wire

    def _frames(self, data: bytes) -> Iterator[Frame]:
        size = self.size
        self._wanted = size
        for begin in range(0, len(data) - size + 1, size):
            yield begin, begin, begin + size, begin + size

    def _stamp(self, buffer: bytes, prefix: Prefix, room: int) -> tuple[int, int, bytes, bool]:
        if callable(prefix):
            return super()._stamp(buffer, prefix, room)
        size = self._wanted = self.size
        whole = len(buffer) // size
        count = min(whole, room // (size + len(prefix)))
        end = count * size
        messages = [buffer[begin : begin + size] for begin in range(0, end, size)]
        return count, end, prefix.join([b"", *messages]), count == whole


class LengthCodec(Codec):
    """`offset` bytes, an unsigned length of `width` bytes, then length + `adjust` bytes of message.

    As `LengthFieldBasedFrameDecoder` in Netty and `LengthDelimitedCodec` in tokio-util. The reply
    has the `offset` bytes as they came, and the length grown by the prefix's.
    """

    __slots__ = ("_order", "adjust", "before", "little", "width")

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
            yield begin, start, end, end
            begin = end
        self._wanted = header

    def _header(self, data: bytes, begin: int, length: int) -> bytes:
        field = (length - self.adjust).to_bytes(self.width, self._order)
        return data[begin : begin + self.before] + field if self.before else field


class VarintCodec(Codec):
    """A protobuf base-128 varint, least significant group first, then that many bytes.

    As protobuf's `writeDelimitedTo`. Overlong forms are read; replies use the shortest.
    """

    __slots__ = ()

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
            yield begin, start, end, end
            begin = end

    def _header(self, data: bytes, begin: int, length: int) -> bytes:
        return varint(length)


class NetstringCodec(Codec):
    """`LEN:bytes,` with a decimal length without leading zeros (D. J. Bernstein, 1997)."""

    __slots__ = ()

    def fresh(self) -> NetstringCodec:
        return NetstringCodec(self.max_frame)

    def encode(self, payload: Buffer) -> bytes:
        view = contiguous(payload)
        self._check_length(view)
        return b"%d:%b," % (view.nbytes, bytes(view))

    def _frames(self, data: bytes) -> Iterator[Frame]:
        begin = 0
        longest = len(str(self.max_frame)) + 1
        while True:
            start = data.find(b":", begin, begin + longest) + 1
            digits = data[begin : start - 1] if start else b""
            length = int(digits) if digits.isdigit() else -1
            if not 0 <= length <= self.max_frame or (digits[0] == 0x30 and len(digits) > 1):
                self._judge(data[begin : begin + longest])
                return
            stop = start + length
            if stop >= len(data):
                self._wanted = stop + 1 - begin
                return
            if data[stop] != 0x2C:
                self._fault = FrameCorrupt, "netstring without ',' at its end"
                return
            yield begin, start, stop, stop + 1
            begin = stop + 1

    def _judge(self, text: bytes) -> None:
        """What is wrong with the start of a frame, or that its length is not complete yet."""
        length = 0
        for position, octet in enumerate(text):
            if not 0x30 <= octet <= 0x39:
                what = "a byte in its length that is no digit" if position else "no length"
                self._fault = FrameCorrupt, f"netstring with {what}"
                return
            if position and not length:
                self._fault = FrameCorrupt, "netstring with a leading zero in its length"
                return
            length = 10 * length + octet - 0x30
            if length > self.max_frame:
                self._too_long()
                return
        self._wanted = len(text) + 1

    def _header(self, data: bytes, begin: int, length: int) -> bytes:
        return b"%d:" % length


def varint(value: int) -> bytes:
    """`value` as a protobuf base-128 varint, in its shortest form."""
    if value < 0x80:
        return bytes((value,))
    return bytes((value & 0x7F | 0x80,)) + varint(value >> 7)


def any_of(delimiters: Iterable[bytes]) -> tuple[bytes, ...]:
    """These delimiters, if any one of them can end a message.

    Raises:
        ConfigError: there are none, they are too long together, or one would never be met.
    """
    known = tuple(map(bytes, delimiters))
    if not all(known) or not 1 <= sum(map(len, known)) <= MAX_DELIMITER:
        raise ConfigError(
            f"delimiters have 1 to {MAX_DELIMITER} bytes together, and each at least 1: not"
            f" {' '.join(map(str, map(len, known))) or 'none'}"
        )
    if len(set(known)) < len(known):
        raise ConfigError("a delimiter stands twice")
    for one in known:
        for other in known:
            if other in one[:-1]:
                raise ConfigError(
                    f"delimiter {one!r} would never be met: {other!r} in it ends first"
                )
    return known
