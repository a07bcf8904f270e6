"""One exchange with a server: a request goes out in pieces, an answer comes back.

Each piece is sent alone: without Nagle's algorithm, and once the server has read the piece before
it (`fastecho.delivery`). Nothing here waits for ever or keeps more than it was told to: a server
that says nothing, reads nothing, or does not stop talking is an `Outcome` like any other.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from .. import delivery, dial
from ..errors import FastechoError
from .interruption import Interruption

if TYPE_CHECKING:
    from ..addresses import Address

#: How a request ends: nothing more is said; the sending side is closed; the connection is reset
#: where the last cut is, and then the request is sent whole by somebody else.
OPEN, HALF_CLOSED, RESET = "left open", "half-closed", "reset"

#: How an exchange ended: with as much as was waited for; by the server's close or reset; because
#: the server said nothing more, did not read, said too much, or could not be connected to.
ANSWERED, CLOSED, ABORTED = "answered", "closed", "aborted"
SILENT, UNREAD, FLOODED, REFUSED = "silent", "unread", "flooded", "refused"

TIME_UP = "the time was up"

#: Seconds that more may take to come, where what came is already as long as what was expected: it
#: is only waited for when something is wrong.
GRACE = 0.05
#: Seconds between looks at what came, while a piece has not been read.
LOOK = 0.05
#: Seconds that a server has to close a connection, once we have.
CLOSING = 1.0
#: What one `recv` takes at most.
SIZE = 65_536
#: RST instead of FIN (SO_LINGER, socket(7)).
LINGER = struct.pack("ii", 1, 0)


class Untried(Exception):
    """This plan was not tried to its end, and none of those after it will be; the text says why."""


@dataclass(frozen=True)
class Plan:
    """What is sent, and how.

    Attributes:
        requests: one after the other, on one connection.
        cuts: where all they are together is cut, in ascending order; none: sent whole.
        ending: how it ends.
    """

    requests: tuple[bytes, ...]
    cuts: tuple[int, ...] = ()
    ending: str = OPEN

    @property
    def data(self) -> bytes:
        """All requests together."""
        return b"".join(self.requests)

    @property
    def pieces(self) -> list[bytes]:
        """What is sent, piece by piece."""
        data = self.data
        ends = self.cuts if self.ending == RESET else (*self.cuts, len(data))
        return [data[start:end] for start, end in pairwise((0, *ends))]

    @property
    def whole(self) -> Plan:
        """The same requests uncut; after a reset, what somebody else sends."""
        return Plan(self.requests, (), OPEN if self.ending == RESET else self.ending)


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        received: all that came.
        end: why nothing more was waited for.
        detail: in words, where there is more to say.
        closed: whether the server has closed the connection, on its own or after us.
    """

    received: bytes
    end: str
    detail: str = ""
    closed: bool = False


#: How long to wait for more, when so much has come: None as long as it takes, else seconds; 0.0 if
#: it is what was expected.
Patience = Callable[[bytes], float | None]


class Caller:
    """Has exchanges with one server, each on a connection of its own.

    Args:
        target: a stream's address.
        timeout: seconds for a connection, for each piece to be read, and for the answer.
        interruption: ends an exchange where it waits, with a KeyboardInterrupt.

    Attributes:
        until: when no exchange is worth beginning or finishing, by the monotonic clock.
        how: how it is known that a piece was read (`fastecho.delivery`), in the worst case.
    """

    def __init__(
        self, target: dial.Target, timeout: float, interruption: Interruption | None = None
    ) -> None:
        self.target = target
        self.timeout = min(timeout, dial.LONGEST_WAIT)
        self.until = float("inf")
        self.how = delivery.READ
        self.interruption = interruption or Interruption()
        self._kernel = delivery.Deliveries()

    def close(self) -> None:
        """Have no more."""
        self._kernel.close()

    def call(
        self, plan: Plan, patience: Patience, longest: int, awaits_close: bool = False
    ) -> Outcome:
        """Carry out a plan.

        Args:
            plan: what to send.
            patience: tells when the answer is over.
            longest: the most that is kept of an answer; more is a flood.
            awaits_close: whether the server is known to close, once we have.

        Raises:
            Untried: `until` has passed, or there are no means.
        """
        connected = self._connect()
        if isinstance(connected, Outcome):
            return connected
        exchange = _Exchange(self, plan, *connected, patience, longest)
        if plan.ending != RESET:
            return exchange.answer(awaits_close)
        exchange.reset()
        return self.call(plan.whole, patience, longest, awaits_close)

    def _connect(self) -> tuple[socket.socket, delivery.Delivery] | Outcome:
        if time.monotonic() >= self.until:
            raise Untried(TIME_UP)
        try:
            sock = next(self.target.dial(self.timeout, self._await_connection))
        except FastechoError as error:
            if getattr(error.__cause__, "errno", None) == errno.EADDRNOTAVAIL:
                raise Untried("no port is left for a connection") from error
            return Outcome(b"", REFUSED, str(error))
        try:
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            read = self._kernel.of(sock)
        except OSError as error:  # reset already: it has no address any more
            sock.close()
            return Outcome(b"", ABORTED, dial.explain(error), closed=True)
        if read.how == delivery.ACKNOWLEDGED:
            self.how = read.how
        return sock, read

    def _await_connection(self, sock: socket.socket, address: Address) -> None:
        with self.interruption.waiting():
            sock.connect(address)


class _Over(Exception):
    """There is nothing more to do; the argument is an `Outcome`'s end."""


class _Exchange:
    """One connection, from its first byte to its last."""

    def __init__(
        self,
        caller: Caller,
        plan: Plan,
        sock: socket.socket,
        read: delivery.Delivery,
        patience: Patience,
        longest: int,
    ) -> None:
        self._caller = caller
        self._plan = plan
        self._sock = sock
        self._read = read
        self._patience = patience
        self._longest = longest
        self._received = bytearray()
        self._closed = ""
        self._detail = ""

    def reset(self) -> None:
        """Send the pieces and reset the connection."""
        with self._sock:
            with suppress(_Over):
                self._send()
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)

    def answer(self, awaits_close: bool) -> Outcome:
        """Send the pieces; wait for the answer, then for what should not be there."""
        with self._sock:
            try:
                self._send()
                if self._plan.ending == HALF_CLOSED:
                    self._half_close()
                end = self._receive()
                if self._plan.ending == OPEN:
                    self._half_close()
                self._look_for_surplus(awaits_close)
            except _Over as over:
                end = over.args[0]
        return Outcome(bytes(self._received), end, self._detail, bool(self._closed))

    def _send(self) -> None:
        """All pieces, each once the one before it was read; less, if the server closes."""
        pieces = self._plan.pieces
        sent = 0
        for number, piece in enumerate(pieces, 1):
            self._check_time()
            self._take()
            if self._closed:
                return
            self._send_piece(piece)
            sent += len(piece)
            last = number == len(pieces)
            if not last or (self._plan.ending == RESET and sent < len(self._plan.data)):
                self._await_read(sent, number, len(pieces))

    def _send_piece(self, piece: bytes) -> None:
        left = memoryview(piece)
        deadline = self._deadline()
        while left and not self._closed:
            if not self._ready(select.POLLIN | select.POLLOUT, deadline):
                self._give_up(UNREAD, f"the server did not read {len(left):,} bytes")
            self._take()
            try:
                left = left[self._sock.send(left) :]
            except BlockingIOError:
                continue
            except OSError as error:
                self._take()  # what came before the connection failed is still there
                self._lose(error)

    def _await_read(self, sent: int, number: int, pieces: int) -> None:
        deadline = self._deadline()
        while not self._closed and not self._is_read(sent):
            self._take()
            if time.monotonic() >= deadline:
                self._give_up(UNREAD, f"the server did not read piece {number} of {pieces}")

    def _is_read(self, sent: int) -> bool:
        with self._caller.interruption.waiting():
            return self._read.wait(sent, LOOK)

    def _receive(self) -> str:
        """Until the answer is over."""
        deadline = self._deadline()
        while True:
            self._take()
            enough = self._patience(bytes(self._received))
            if enough == 0.0:
                return ANSWERED
            if self._closed:
                return self._closed
            wait = deadline if enough is None else min(deadline, time.monotonic() + enough)
            if not self._ready(select.POLLIN, wait):
                return ANSWERED if enough is not None else self._fall_silent()

    def _fall_silent(self) -> str:
        self._check_time()
        what = "no end of it" if self._received else "nothing"  # it may still be coming
        self._detail = f"{what} came within {self._caller.timeout:g} s"
        return SILENT

    def _look_for_surplus(self, awaits_close: bool) -> None:
        """What comes after an answer belongs to it; a server that closes has said all."""
        deadline = min(self._deadline(), time.monotonic() + CLOSING) if awaits_close else 0.0
        self._take()
        while not self._closed and self._ready(select.POLLIN, deadline):
            self._take()

    def _half_close(self) -> None:
        with suppress(OSError):  # the server has gone, which the next `recv` tells
            self._sock.shutdown(socket.SHUT_WR)

    def _take(self) -> None:
        """What has come."""
        while not self._closed:
            try:
                data = self._sock.recv(SIZE)
            except BlockingIOError:
                return
            except OSError as error:
                self._lose(error)
                return
            if not data:
                self._closed = CLOSED
            self._received += data
            if len(self._received) > self._longest:
                del self._received[self._longest :]
                raise _Over(FLOODED)

    def _lose(self, error: OSError) -> None:
        self._detail = self._detail or dial.explain(error)
        self._closed = self._closed or ABORTED

    def _ready(self, events: int, deadline: float) -> bool:
        if self._closed:
            return False
        poll = select.poll()
        poll.register(self._sock, events)
        with self._caller.interruption.waiting():
            return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))

    def _deadline(self) -> float:
        return min(time.monotonic() + self._caller.timeout, self._caller.until)

    def _check_time(self) -> None:
        """What was not waited for long enough says nothing."""
        if time.monotonic() >= self._caller.until:
            raise Untried(TIME_UP)

    def _give_up(self, end: str, detail: str) -> None:
        self._check_time()
        self._detail = f"{detail} within {self._caller.timeout:g} s"
        raise _Over(end)
