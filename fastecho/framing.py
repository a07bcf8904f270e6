"""Framing specs: how messages are marked in a stream, and the codecs that cut them out.

`line`, `delimiter:HEX`, `any:HEX,HEX`, `raw`, `fixed:N`, `u8` … `u64` (`u16le` …),
`length:width=1…8[,offset=N][,adjust=N][,le]`, `varint`, `netstring`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import backend as backends
from .connections import AsyncConnection, AsyncMessages, Connection, Messages
from .errors import ConfigError, nearest
from .limits import MAX_FRAME, MAX_FRAME_CEILING, MAX_LENGTH_OFFSET, RECEIVE_BUFFER, within

if TYPE_CHECKING:
    from ._pure.framing import Codec
    from .backend import Twin
    from .connections import AsyncReader, AsyncReceiver, AsyncWriter, Receiver, Socket

SPECS = (
    "line",
    "delimiter:HEX",
    "any:HEX,HEX",
    "raw",
    "fixed:N",
    *(f"u{8 * width}" for width in (1, 2, 3, 4, 8)),
    *(f"u{8 * width}le" for width in (2, 3, 4, 8)),
    "length:width=N,offset=N,adjust=N,le",
    "varint",
    "netstring",
)
_INTEGERS = {
    f"u{8 * width}{end}": (width, bool(end))
    for width in (1, 2, 3, 4, 8)
    for end in ("", "le")
    if end == "" or width > 1
}


@dataclass(frozen=True)
class Framing:
    """A parsed spec.

    Attributes:
        spec: as it was written.
        delimiters: the byte strings any of which ends a message, the one that `encode` writes
            first; they restrict what a prefix may contain. None where messages have no such end.
        fixed: the only length that a message can have, or None.
        capacity: the longest message that a length field can announce, or None.
        overhead: the most bytes that a frame has besides its message.
        frame_size: of a message's length: bytes of its frame, the delimiter apart. (An overlong
            varint is not meant.)
    """

    spec: str
    _make: Callable[[Twin, int], Codec]
    delimiters: tuple[bytes, ...] = ()
    fixed: int | None = None
    capacity: int | None = None
    overhead: int = 0
    frame_size: Callable[[int], int] = int

    @property
    def delimiter(self) -> bytes | None:
        """What `encode` ends a message with, if anything."""
        return self.delimiters[0] if self.delimiters else None

    def limit(self, max_frame: int | None, longest_prefix: int = 0) -> int:
        """The `max_frame` in force.

        Args:
            max_frame: what was asked for; None: the default, lowered to what the framing can say.
            longest_prefix: bytes that a reply's prefix can have.

        Raises:
            ConfigError: out of range, or more than fixed frames or a length field allow.
        """
        asked = None if max_frame is None else within("max_frame", max_frame, 1, MAX_FRAME_CEILING)
        if self.fixed is not None:
            if asked is not None and asked < self.fixed:
                raise ConfigError(f"{self.spec} needs a max_frame of {self.fixed:,}, not {asked:,}")
            return self.fixed
        if self.capacity is None:
            return asked or MAX_FRAME
        room = self.capacity - longest_prefix
        if room < 1 or (asked is not None and asked > room):
            wanted = "" if asked is None else f"max_frame={asked:,} and "
            raise ConfigError(
                f"{self.spec} announces at most {self.capacity:,} bytes: too few for"
                f" {wanted}a prefix of up to {longest_prefix:,}"
            )
        return asked or min(MAX_FRAME, room)

    def frame_end(self, data: bytes | bytearray, begin: int, length: int) -> int:
        """Where a frame ends that begins at `begin`, and whose message has that length."""
        end = begin + self.frame_size(length)
        return end + next((len(each) for each in self.delimiters if data.startswith(each, end)), 0)

    def codec(self, twin: Twin, max_frame: int | None, longest_prefix: int = 0) -> Codec:
        """A codec for one stream; arguments and errors as in `limit`."""
        return self._make(twin, self.limit(max_frame, longest_prefix))

    def largest_reply(self, max_frame: int, longest_prefix: int) -> int:
        """Bytes of the largest reply to one message."""
        longest = RECEIVE_BUFFER if self.spec == "raw" else max_frame
        return longest + longest_prefix + self.overhead


def parse(spec: str) -> Framing:
    """The framing that `spec` names.

    Raises:
        ConfigError: it names none; the text says what is right.
    """
    name, colon, argument = spec.partition(":")
    if name in _VALUED:
        if not argument:
            raise ConfigError(f"framing {spec!r} lacks its value: {_form(name)}")
        return _VALUED[name](spec, argument)
    if not colon:
        if name == "line":
            return _delimited(spec, b"\n")
        if name == "raw":
            return Framing(spec, lambda twin, _: twin.RawCodec())
        if name == "varint":
            return Framing(
                spec, lambda twin, limit: twin.VarintCodec(limit), overhead=10, frame_size=_varint
            )
        if name == "netstring":
            return Framing(
                spec,
                lambda twin, limit: twin.NetstringCodec(limit),
                overhead=12,
                frame_size=lambda length: len(f"{length}:,") + length,
            )
        if name in _INTEGERS:
            width, little = _INTEGERS[name]
            return _prefixed(spec, width, little=little)
    near = nearest(name, [known.partition(":")[0] for known in SPECS])
    hint = f" (did you mean {near}?)" if near and near != name else ""
    raise ConfigError(f"unknown framing {spec!r}{hint}: choose from {'  '.join(SPECS)}")


def codec(spec: str, max_frame: int | None = None, backend: str | None = None) -> Codec:
    """A codec at the start of a stream: `feed(data)`, `finish()`, `encode(payload)`.

    Args:
        spec: the framing, as in `SPECS`.
        max_frame: longest message in bytes, 1 to 2**30; by default 65,536, or less where the
            framing cannot say so much.
        backend: `native`, `pure`, or `auto`; by default the chosen one.

    Raises:
        ConfigError: a spec or limit that makes no sense.
    """
    return parse(spec).codec(backends.load(backend), max_frame)


def messages(
    sock: Receiver, spec: str = "line", max_frame: int | None = None, backend: str | None = None
) -> Messages:
    """The messages that arrive on a socket, one after the other, however they were cut on the way.

    An unterminated tail is the last message with `line`, `delimiter` and `any`. What the socket
    raises comes through, and loses nothing: after a timeout, or a BlockingIOError, go on with
    `next`.

    Args:
        sock: connected, of a stream.
        spec: the framing, as for `codec`.
        max_frame: longest message, as for `codec`.
        backend: as for `codec`.

    Raises:
        FrameError: by the iterator, once everything before the fault was given.
        ConfigError: a spec or limit that makes no sense.
    """
    return Messages(sock, codec(spec, max_frame, backend))


def connection(
    sock: Socket, spec: str = "line", max_frame: int | None = None, backend: str | None = None
) -> Connection:
    """The messages that arrive on a socket, as `messages` gives them, with `send` for the others.

    Args and raises as for `messages`. The socket stays yours to close.
    """
    return Connection(sock, codec(spec, max_frame, backend))


def async_messages(
    reader: AsyncReader | AsyncReceiver,
    spec: str = "line",
    max_frame: int | None = None,
    backend: str | None = None,
) -> AsyncMessages:
    """The messages that arrive on an asyncio stream: `messages` for `async for`.

    A read that is cancelled, as by `asyncio.timeout`, loses nothing.

    Args:
        reader: an `asyncio.StreamReader`, or what has its `read` or trio's `receive_some`.
        spec: the framing, as for `codec`.
        max_frame: longest message, as for `codec`.
        backend: as for `codec`.

    Raises:
        FrameError: by the iterator, once everything before the fault was given.
        ConfigError: a spec or limit that makes no sense.
    """
    return AsyncMessages(reader, codec(spec, max_frame, backend))


def async_connection(
    reader: AsyncReader,
    writer: AsyncWriter,
    spec: str = "line",
    max_frame: int | None = None,
    backend: str | None = None,
) -> AsyncConnection:
    """The messages that arrive on an asyncio stream, with `send` for the others.

    Args:
        reader: an `asyncio.StreamReader`, as `open_connection` gives it.
        writer: the `asyncio.StreamWriter` beside it, which stays yours to close.
        spec: the framing, as for `codec`.
        max_frame: longest message, as for `codec`.
        backend: as for `codec`.

    Raises:
        FrameError: by the iterator, once everything before the fault was given.
        ConfigError: a spec or limit that makes no sense.
    """
    return AsyncConnection(reader, writer, codec(spec, max_frame, backend))


def _form(name: str) -> str:
    return next(known for known in SPECS if known.startswith(name + ":"))


def _delimited(spec: str, delimiter: bytes) -> Framing:
    return Framing(
        spec,
        lambda twin, limit: twin.DelimiterCodec(delimiter, limit),
        delimiters=(delimiter,),
        overhead=len(delimiter),
    )


def _delimiter(spec: str, argument: str) -> Framing:
    return _delimited(spec, _hexadecimal(spec, argument))


def _any_delimiter(spec: str, argument: str) -> Framing:
    delimiters = tuple(_hexadecimal(spec, each) for each in argument.split(","))
    return Framing(
        spec,
        lambda twin, limit: twin.AnyDelimiterCodec(delimiters, limit),
        delimiters=delimiters,
        overhead=max(map(len, delimiters)),
    )


def _hexadecimal(spec: str, argument: str) -> bytes:
    try:
        return bytes.fromhex(argument)
    except ValueError:
        raise ConfigError(f"{argument!r} in framing {spec!r} is not hexadecimal") from None


def _fixed(spec: str, argument: str) -> Framing:
    size = _number(argument)
    size = within(
        f"N in framing {spec!r}", argument if size is None else size, 1, MAX_FRAME_CEILING
    )
    return Framing(spec, lambda twin, _: twin.FixedCodec(size), fixed=size)


def _length(spec: str, argument: str) -> Framing:
    values: dict[str, int] = {}
    for item in argument.split(","):
        key, _, value = item.partition("=")
        number = 1 if item == "le" else _number(value)
        if key in values:
            raise ConfigError(f"{key!r} stands twice in framing {spec!r}")
        if (item != "le" and key not in ("width", "offset", "adjust")) or number is None:
            raise ConfigError(f"{item!r} in framing {spec!r} makes no sense: {_form('length')}")
        values[key] = number
    if "width" not in values:
        raise ConfigError(f"framing {spec!r} lacks its width: {_form('length')}")
    return _prefixed(
        spec, values["width"], values.get("offset", 0), values.get("adjust", 0), "le" in values
    )


def _prefixed(
    spec: str, width: int, offset: int = 0, adjust: int = 0, little: bool = False
) -> Framing:
    within(f"width in framing {spec!r}", width, 1, 8)
    within(f"offset in framing {spec!r}", offset, 0, MAX_LENGTH_OFFSET)

    def make(twin: Twin, limit: int) -> Codec:
        return twin.LengthCodec(width, limit, offset, adjust, little)

    return Framing(
        spec,
        make,
        capacity=(1 << 8 * width) - 1 + adjust,
        overhead=offset + width,
        frame_size=lambda length: offset + width + length,
    )


def _varint(length: int) -> int:
    """Bytes of a varint, seven bits in each, and of the message that it announces."""
    return -(-max(length.bit_length(), 1) // 7) + length


def _number(text: str) -> int | None:
    digits = text[1:] if text[:1] == "-" else text
    return int(text) if digits.isascii() and digits.isdecimal() and len(digits) < 20 else None


_VALUED = {"delimiter": _delimiter, "any": _any_delimiter, "fixed": _fixed, "length": _length}
