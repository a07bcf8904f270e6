"""A stream's replies one by one: which of the echo's bytes are the reply to which message.

The echo gives the replies to a whole `recv` at once. A second codec, fed with the same bytes, gives
the messages; each prefix is rendered a second time, which gives its length; and the framing says
where a frame of both ends. No I/O and no clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._pure.stamping import Echo
    from .framing import Framing


class Splitter:
    """An echo whose replies come one by one.

    Args:
        echo: at the start of its stream; the splitter owns it from now on.
        framing: the echo's.
        room: bytes of replies that one call gives at most; never less than the largest reply.
    """

    def __init__(self, echo: Echo, framing: Framing, room: int) -> None:
        self.echo = echo
        self._cutter = echo.codec.fresh()
        self._framing = framing
        self._room = room

    def feed(self, data: bytes, now_ns: int) -> tuple[int, list[bytes]]:
        """The replies to the messages that `data` completes, as many as there is room for.

        Args:
            data: what came.
            now_ns: when, in nanoseconds.

        Returns:
            how many bytes of `data` are done with (what is not is to be fed again); the replies.
        """
        number = self.echo.messages
        out = bytearray(min(self._room, self._most(data)))
        consumed, written = self.echo.feed_into(data, out, now_ns)
        replies = []
        begin = 0
        for message in self._cutter.feed(data[:consumed]):
            number += 1
            prefix = self.echo.stamper.render(now_ns, number, len(message), self.echo.peer)
            end = self._framing.frame_end(out, begin, len(prefix) + len(message))
            replies.append(bytes(out[begin:end]))
            begin = end
        if (begin, number) != (written, self.echo.messages):
            raise RuntimeError(f"{written} bytes of {self.echo.messages} replies, not {begin}")
        return consumed, replies

    def finish(self, now_ns: int) -> list[bytes]:
        """The stream has ended: the reply to its tail, if that is a message."""
        before = self.echo.messages
        reply = self.echo.finish(now_ns)
        return [reply] if self.echo.messages > before else []

    def _most(self, data: bytes) -> int:
        """No fewer bytes than the replies have together: were each byte the end of a message."""
        return self.echo.pending + len(data) * (
            1 + self.echo.stamper.longest + self._framing.overhead
        )
