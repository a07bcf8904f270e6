"""A stream's replies one by one: which of the echo's bytes are the reply to which message.

The echo gives the replies to a whole `recv` at once. A second codec, fed with the same bytes, gives
the messages; each prefix is rendered a second time, which gives its length; and the framing says
how long a frame of both is. No I/O and no clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..limits import FAULT_REPLIES

if TYPE_CHECKING:
    from .._pure.framing import Buffer
    from .._pure.stamping import Echo
    from ..framing import Framing

#: By how much the header of a reply can be longer than its message's: a length of a varint, or a
#: netstring's, to which the prefix is added.
GROWTH = 10


class Splitter:
    """An echo whose replies come one by one.

    Args:
        echo: at the start of its stream; the splitter owns it from now on.
        framing: the echo's.
        room: bytes that the replies of one call add to what came, at most, unless one adds more.
    """

    def __init__(self, echo: Echo, framing: Framing, room: int) -> None:
        self.echo = echo
        self._cutter = echo.codec.fresh()
        self._framing = framing
        #: Were each byte the end of a message. A message of `raw` is what came at once.
        most = max(1, min(room // (echo.stamper.longest + GROWTH), FAULT_REPLIES))
        self._step = most if framing.spec != "raw" else None

    def feed(self, data: Buffer, now_ns: int) -> tuple[int, list[bytes]]:
        """The replies to the messages that the start of `data` completes.

        Args:
            data: what came.
            now_ns: when, in nanoseconds.

        Returns:
            how many bytes of `data` are done with (what is not is to be fed again); the replies.
        """
        piece = bytes(data[: self._step])
        number = self.echo.messages
        wire = self.echo.feed(piece, now_ns)
        replies = []
        begin = 0
        for message in self._cutter.feed(piece):
            number += 1
            prefix = self.echo.stamper.render(now_ns, number, len(message), self.echo.peer)
            end = self._framing.frame_end(wire, begin, len(prefix) + len(message))
            replies.append(wire[begin:end])
            begin = end
        if (begin, number) != (len(wire), self.echo.messages):
            raise RuntimeError(f"{len(wire)} bytes of {self.echo.messages} replies, not {begin}")
        return len(piece), replies

    def finish(self, now_ns: int) -> list[bytes]:
        """The stream has ended: the reply to its tail, if that is a message."""
        before = self.echo.messages
        reply = self.echo.finish(now_ns)
        return [reply] if self.echo.messages > before else []
