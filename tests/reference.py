"""What the wire is, said a second time: whole input at once, as plainly as it goes.

Judges both twins, so it shares no code with fastecho and has no state, no cuts, no speed.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, NamedTuple

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: The longest rendering of each token for times from 0 to 2**63 - 1, counted by hand.
LONGEST = {
    "ctime": len("Sun Nov 22 11:36:40 2026"),
    "iso": len("2026-11-22T12:36:40.123456+01:00"),
    "utc": len("2026-11-22T11:36:40.123456789Z"),
    "epoch": len("9223372036"),
    "epoch_ms": len("9223372036854"),
    "epoch_us": len("9223372036854775"),
    "epoch_ns": len("9223372036854775807"),
    "mono_ns": len("9223372036854775807"),
    "seq": len("18446744073709551615"),
    "peer": 128,
    "len": len("1073741824"),
}


@dataclass(frozen=True)
class Framing:
    """A framing and its limit. `kind` is a codec's name; the fields it does not need are unused.

    For `any`, `others` are delimiters besides the first.
    """

    kind: str
    max_frame: int = 1 << 30
    delimiter: bytes = b""
    width: int = 0
    offset: int = 0
    adjust: int = 0
    little: bool = False
    others: tuple[bytes, ...] = ()

    @property
    def ends(self) -> tuple[bytes, ...]:
        """The delimiters."""
        return (self.delimiter, *self.others) if self.delimiter else ()

    @property
    def spec(self) -> str:
        match self.kind:
            case "delimiter":
                return f"delimiter:{self.delimiter.hex()}"
            case "any":
                return "any:" + ",".join(end.hex() for end in self.ends)
            case "fixed":
                return f"fixed:{self.max_frame}"
            case "length":
                ends = ",le" if self.little else ""
                return f"length:width={self.width},offset={self.offset},adjust={self.adjust}{ends}"
        return self.kind

    def codec(self, twin: Any) -> Any:
        """The twin's codec for it."""
        match self.kind:
            case "delimiter":
                return twin.DelimiterCodec(self.delimiter, self.max_frame)
            case "any":
                return twin.AnyDelimiterCodec(self.ends, self.max_frame)
            case "raw":
                return twin.RawCodec()
            case "fixed":
                return twin.FixedCodec(self.max_frame)
            case "length":
                return twin.LengthCodec(
                    self.width, self.max_frame, self.offset, self.adjust, self.little
                )
            case "varint":
                return twin.VarintCodec(self.max_frame)
            case "netstring":
                return twin.NetstringCodec(self.max_frame)
        raise AssertionError(self.kind)


class Frame(NamedTuple):
    """A message, and all the bytes that it came in."""

    wire: bytes
    message: bytes


class Verdict(NamedTuple):
    """What a stream holds: its frames, the fault and the byte it is at, the bytes left over."""

    frames: list[Frame]
    reason: str | None
    offset: int
    pending: int

    @property
    def messages(self) -> list[bytes]:
        return [frame.message for frame in self.frames]


class Fault(Exception):
    """The bytes cannot begin a frame, whatever follows."""


def judge(framing: Framing, stream: bytes, ended: bool = False) -> Verdict:
    """What a peer has said that has sent `stream` so far, or, if `ended`, will ever send."""
    frames: list[Frame] = []
    rest = stream
    reason = None
    while rest and reason is None:
        try:
            frame = first(framing, rest, ended)
        except Fault as fault:
            reason = str(fault)
        else:
            if frame is None:
                break
            frames.append(frame)
            rest = rest[len(frame.wire) :]
    offset = len(stream) - len(rest)
    if rest and ended and reason is None:
        reason = "truncated"
    return Verdict(frames, reason, offset, 0 if reason else len(rest))


def first(framing: Framing, rest: bytes, ended: bool) -> Frame | None:
    """The frame that `rest` begins with; None if its end has not come yet."""
    limit = framing.max_frame
    match framing.kind:
        case "raw":
            return Frame(rest, rest)
        case "fixed":
            return Frame(rest[:limit], rest[:limit]) if len(rest) >= limit else None
        case "delimiter" | "any":
            return _delimited(framing.ends, limit, rest, ended)
        case "netstring":
            body = _after_decimal(limit, rest)
            if body is None or len(rest) <= body[0] + body[1]:
                return None
            start, length = body
            if rest[start + length] != ord(","):
                raise Fault("corrupt")
            return Frame(rest[: start + length + 1], rest[start : start + length])
        case "varint":
            body = _after_varint(rest)
        case "length":
            body = _after_integer(framing, rest)
    if body is None:
        return None
    start, length = body
    if length < 0:
        raise Fault("corrupt")
    if length > limit:
        raise Fault("too_long")
    if len(rest) < start + length:
        return None
    return Frame(rest[: start + length], rest[start : start + length])


def _delimited(ends: tuple[bytes, ...], limit: int, rest: bytes, ended: bool) -> Frame | None:
    # Which ends first; of those that end at the same byte, the longest.
    places = [(rest.find(end) + len(end), -len(end)) for end in ends if end in rest]
    if places:
        stop, width = min(places)
        message = rest[: stop + width]
        if len(message) > limit:
            raise Fault("too_long")
        return Frame(rest[:stop], message)
    if ended:
        if len(rest) > limit:
            raise Fault("too_long")
        return Frame(rest, rest)
    if len(rest) <= limit:
        return None
    # A delimiter must begin within the limit, and what is there of it must be its start.
    for end in ends:
        earliest = max(0, len(rest) - len(end))
        if any(end.startswith(rest[place:]) for place in range(earliest, limit + 1)):
            return None
    raise Fault("too_long")


def _after_decimal(limit: int, rest: bytes) -> tuple[int, int] | None:
    """Judges one more digit at a time: what is at fault shows with the first byte that is."""
    for size in range(1, len(rest) + 1):
        field = rest[:size]
        if not re.fullmatch(rb"(0|[1-9][0-9]*):?", field):
            raise Fault("corrupt")
        if int(field.rstrip(b":")) > limit:
            raise Fault("too_long")
        if field.endswith(b":"):
            return size, int(field[:-1])
    return None


def _after_varint(rest: bytes) -> tuple[int, int] | None:
    field = re.match(rb"[\x80-\xff]{0,9}[\x00-\x7f]", rest)
    if field is None:
        if len(rest) >= 10:
            raise Fault("corrupt")
        return None
    length = sum(octet % 128 * 128**place for place, octet in enumerate(field[0]))
    if length >= 2**64:
        raise Fault("corrupt")
    return field.end(), length


def _after_integer(framing: Framing, rest: bytes) -> tuple[int, int] | None:
    start = framing.offset + framing.width
    if len(rest) < start:
        return None
    field = rest[framing.offset : start]
    if framing.little:
        (announced,) = struct.unpack("<Q", field.ljust(8, b"\0"))
    else:
        (announced,) = struct.unpack(">Q", field.rjust(8, b"\0"))
    return start, announced + framing.adjust


def wire(framing: Framing, message: bytes, head: bytes = b"") -> bytes:
    """A frame with this message; `head` is what stands before a length field."""
    size = len(message)
    match framing.kind:
        case "delimiter" | "any":
            return message + framing.delimiter
        case "varint":
            return varint(size) + message
        case "netstring":
            return f"{size}:".encode() + message + b","
        case "length":
            before = head[: framing.offset].ljust(framing.offset, b"\0")
            return before + integer(framing, size) + message
    return message


def integer(framing: Framing, size: int) -> bytes:
    """The length field of a message that has `size` bytes."""
    announced = size - framing.adjust
    if framing.little:
        return struct.pack("<Q", announced)[: framing.width]
    return struct.pack(">Q", announced)[8 - framing.width :]


def varint(value: int) -> bytes:
    """The shortest one: as many groups of seven bits as the number has, the lowest first."""
    groups = max(1, -(-value.bit_length() // 7))
    return bytes(
        value // 128**place % 128 + (128 if place < groups - 1 else 0) for place in range(groups)
    )


def reply(framing: Framing, frame: Frame, prefix: bytes) -> bytes:
    """What goes back for a frame."""
    if framing.kind in ("raw", "fixed", "delimiter", "any"):
        return prefix + frame.wire
    return wire(framing, prefix + frame.message, frame.wire[: framing.offset])


def render(
    parts: tuple[bytes | str, ...],
    now_ns: int,
    seq: int = 0,
    length: int = 0,
    peer: bytes = b"",
    mono_offset: int = 0,
    zone: tzinfo = UTC,
) -> bytes:
    """A template's prefix for one message, in a time zone of our own making."""
    utc = EPOCH + timedelta(microseconds=now_ns // 1000)
    local = utc.astimezone(zone)
    tokens = {
        "ctime": local.ctime(),
        "iso": local.isoformat(timespec="microseconds"),
        "utc": f"{utc:%Y-%m-%dT%H:%M:%S.%f}{now_ns % 1000:03d}Z",
        "epoch": str(now_ns // 10**9),
        "epoch_ms": str(now_ns // 10**6),
        "epoch_us": str(now_ns // 10**3),
        "epoch_ns": str(now_ns),
        "mono_ns": str(max(0, min(now_ns + mono_offset, 2**63 - 1))),
        "seq": str(seq),
        "len": str(length),
    }
    return b"".join(
        part if isinstance(part, bytes) else peer if part == "peer" else tokens[part].encode()
        for part in parts
    )
