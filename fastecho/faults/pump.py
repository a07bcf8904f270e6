"""Sends a stream's pieces, each when it may leave.

That is not before its time, nor, where it is to be read by itself, before what was sent ahead of it
is known to have been read. How that is known is `fastecho.delivery`'s business. A client that reads
nothing for `PATIENCE` is not waited for: the piece leaves then, and the log says so. Nothing here
sleeps: `go_on` does what can be done now, and says when it should be called again.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..delivery import ACKNOWLEDGED, LONGEST_SLEEP, LOOKS, PAUSE
from .pieces import Piece, Pieces

if TYPE_CHECKING:
    import socket

    from ..delivery import Deliveries, Delivery
    from .journal import Record

#: Seconds that a client gets to read a piece: far more than any program needs that reads at all.
PATIENCE = 1.0
#: How much longer each wait for it becomes, as a share of the time so far: a crowd that does not
#: read costs next to nothing, and who reads late is noticed little later.
LATER = 0.1
#: `how` of a piece that left before the last was read.
UNREAD = "unread"


class Pump:
    """What one stream sends.

    Args:
        sock: connected and non-blocking; it stays its owner's.
        deliveries: asks the kernel.
        record: where each send is logged.
        room: bytes that are sent at a time, at most, unless one piece is larger.

    Attributes:
        pieces: what is to be sent.
        sent: bytes that the kernel took so far.
        is_blocked: whether it takes no more: `go_on` should be called when the socket is writable.
        end: `close` or `reset`, once the last piece has left that the connection lives for.
    """

    def __init__(
        self, sock: socket.socket, deliveries: Deliveries, record: Record, room: int
    ) -> None:
        self.pieces = Pieces()
        self.sent = 0
        self.is_blocked = False
        self.end = ""
        self._sock = sock
        self._deliveries = deliveries
        self._delivery: Delivery | None = None
        self._record = record
        self._room = room
        #: What leaves now, and how much of it has left; what was known when it began.
        self._piece: Piece | None = None
        self._done = 0
        self._how = ""
        #: Whether the last one was to be read by itself.
        self._was_alone = False
        #: Of what was sent, the bytes that need not be waited for any more, and since when.
        self._over = 0
        self._since = 0.0
        #: While we wait: how often we have looked, and until when we do.
        self._looks = 0
        self._deadline = 0.0

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self.pieces.size + (len(self._piece.data) - self._done if self._piece else 0)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to send, nor to wait for."""
        if self.unsent or self._piece or self.pieces.head or self.pieces.waits_until is not None:
            return False
        return self.end != "reset" or self._over == self.sent

    def go_on(self, now: float) -> float | None:
        """Send what may leave.

        Args:
            now: the monotonic clock.

        Returns:
            when there is more to do; None: that depends on others.

        Raises:
            OSError: the connection has failed.
        """
        while not self._piece or self._send():
            head = self.pieces.head
            if self.end == "reset" or (head is not None and (self._was_alone or head.alone)):
                again = self._look(now)
                if again is not None:
                    return again
            if head is None:
                return None
            when = max(head.due, self._since + head.pause)
            if now < when:
                return when
            self._piece = self.pieces.take(now, self._room)
        return None

    def stop(self) -> None:
        """Send no more; what has left of a piece is logged."""
        if self._piece is not None and self._done:
            piece = self._piece
            self._record.sent(piece.messages, piece.data[: self._done], piece.delay, self._how)
        self._piece = None
        self.pieces = Pieces()

    def _send(self) -> bool:
        """Send the rest of the piece; whether it has left."""
        piece = self._piece
        if piece is None:
            return True
        if self._done < len(piece.data):
            try:
                taken = self._sock.send(memoryview(piece.data)[self._done :])
            except BlockingIOError:
                taken = 0
            self._done += taken
            self.sent += taken
        self.is_blocked = self._done < len(piece.data)
        if self.is_blocked:
            return False
        if piece.data:
            self._record.sent(piece.messages, piece.data, piece.delay, self._how)
        self._piece, self._done, self._how = None, 0, ""
        self._was_alone = piece.alone
        self.end = piece.end
        return True

    def _look(self, now: float) -> float | None:
        """Whether all that was sent was read (None), or when to look again."""
        if self._over == self.sent:
            return None
        if not self._looks:
            self._deadline = now + PATIENCE
        self._looks += 1
        how = self._known()
        if not how and now >= self._deadline:
            how = UNREAD
        if not how:
            if self._looks < LOOKS:
                os.sched_yield()
                return now
            waited = now - (self._deadline - PATIENCE)
            return now + max(LONGEST_SLEEP, waited * LATER)
        self._how, self._over, self._looks = how, self.sent, 0
        self._since = now + (PAUSE if how == ACKNOWLEDGED else 0.0)
        return None

    def _known(self) -> str:
        """How it is known that all was read; empty: it is not."""
        try:
            if self._delivery is None:
                self._delivery = self._deliveries.of(self._sock)
        except OSError:  # the peer has gone
            return UNREAD
        return self._delivery.how if self._delivery.is_over(self.sent) else ""
