"""What is measured: one receive buffer full of whole frames, cut, stamped, and written to another.

Framing and stamping alone: no socket, no clock. The texts are printable ASCII, so that they are
messages of every framing; the buffers are used again and again, so that they are warm.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from . import backend, echo, prefix
from .errors import FastechoError

if TYPE_CHECKING:
    from ._pure.stamping import Echo

BACKENDS = ("native", "pure")
FRAMINGS = (
    "line",
    "delimiter:0d0a",
    "raw",
    "fixed",  # fixed:N, of the message's size
    "u8",
    "u16",
    "u32le",
    "length:width=4,offset=2,adjust=-6",  # a length that counts its header
    "varint",
    "netstring",
)
SIZES = (8, 32, 1024, 8192)
#: Bytes of frames that one round cuts.
BUFFER = 65_536
#: When they came: all at the same time, so that the prefix is rendered once a call, as in a server.
NOW_NS = 1_767_225_600_500_000_000
#: Any bytes to printable ones.
PRINTABLE = bytes(0x20 + octet % 95 for octet in range(256))


class WrongReply(FastechoError):
    """What was to be measured does not do its work, so that its speed says nothing."""


class Workload(NamedTuple):
    """One framing at one size of message.

    Attributes:
        framing: its spec.
        size: bytes of each message.
        pieces: what each `recv` brings: all frames at once; for `raw`, a message each.
        messages: how many there are in all pieces.
    """

    framing: str
    size: int
    pieces: list[bytes]
    messages: int

    def echo(self, twin: str) -> Echo:
        """That twin's echo at the start of a stream."""
        return echo.pattern(backend.load(twin), self.framing, prefix.DEFAULT, None)

    def stamping(self, twin: str) -> Callable[[], None]:
        """A round: the replies to each piece, written over those to the piece before it."""
        feed_into = self.echo(twin).feed_into
        pieces = self.pieces
        out = bytearray(BUFFER + 64 * self.messages)  # 64: a prefix, and a longer length field

        def one_round() -> None:
            for piece in pieces:
                feed_into(piece, out, NOW_NS)

        return one_round

    def cutting(self, twin: str) -> Callable[[], None]:
        """A round: the messages in each piece, as applications get them."""
        feed = self.echo(twin).codec.feed
        pieces = self.pieces

        def one_round() -> None:
            for piece in pieces:
                feed(piece)

        return one_round

    def check(self) -> None:
        """See that what is measured does the work: both twins answer every message, alike.

        Raises:
            WrongReply: they do not.
        """
        replies = []
        for twin in BACKENDS:
            answering = self.echo(twin)
            replies.append([answering.feed(piece, NOW_NS) for piece in self.pieces])
            if (answering.messages, answering.pending) != (self.messages, 0):
                raise WrongReply(f"{twin} does not answer every message of {self.framing}")
        if replies[0] != replies[1]:
            raise WrongReply(f"the twins differ over {self.framing}, {self.size:,} bytes")


@functools.cache
def workload(framing: str, size: int) -> Workload:
    """As many frames as the buffer holds."""
    spec = f"fixed:{size}" if framing == "fixed" else framing
    codec = echo.pattern(backend.load("pure"), spec, prefix.DEFAULT, None).codec
    count = BUFFER // len(codec.encode(bytes(size)))
    chance = random.Random(size)
    texts = [chance.randbytes(size).translate(PRINTABLE) for _ in range(count)]
    frames = [codec.encode(text) for text in texts]
    return Workload(spec, size, frames if framing == "raw" else [b"".join(frames)], count)


def combinations() -> list[tuple[str, int]]:
    """Every framing with every size that it carries: a u8 announces 255 bytes, prefix included."""
    return [(name, size) for name in FRAMINGS for size in SIZES if name != "u8" or size < 229]
