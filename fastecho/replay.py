"""One logged connection, served again: the same requests get the same bytes in the same cuts.

What a decision log says of a connection (`faults.script`) is done again to the first client that
comes: its requests are read and compared, and as soon as those have come that a piece answers, it
is sent as it was logged: after its delay, and alone, once all before it was read. The end is the
logged one. In how many pieces a stream's requests come does not matter; datagrams must be the same.

No plan is needed for this, and no echo. It waits as long as the client does.
"""

from __future__ import annotations

import math
import os
import select
import socket
import struct
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from logging import WARNING

from . import addresses, sockets
from .delivery import ACKNOWLEDGED, LONGEST_SLEEP, LOOKS, PAUSE, Deliveries, Delivery
from .errors import ConfigError, FastechoError
from .events import say
from .faults.pump import PATIENCE
from .faults.script import Script
from .limits import LINGER_TIMEOUT, MAX_DATAGRAM, RECEIVE_BUFFER, UNFINISHED_AFTER

#: Bytes that a sentence shows where requests differ.
SHOWN = 16
ABORT = struct.pack("ii", 1, 0)
#: How a connection ended (`closed.REASON`): by the server, and when; empty: the log does not say.
BY_SERVER = ("", "stopped", "idle_timeout", "frame_timeout")
#: The same, where the client may have gone on sending what the log does not have.
LEFT_OPEN = (
    *BY_SERVER,
    *("fault_stall", "fault_truncate", "fault_reset", "too_long", "corrupt", "reset"),
)


class Differs(FastechoError):
    """The client did not do what it did when the log was written."""


def replay(script: Script, word: str | None, ready: Callable[[str], None]) -> str:
    """Serve the connection.

    Args:
        script: what is done.
        word: where to listen (`fastecho.sockets`); None: where it was.
        ready: takes the address, once it listens.

    Returns:
        what was done, in a few words.

    Raises:
        Differs: the client sent something else, or less.
        ConfigError: an address that makes no sense.
        FastechoError: it cannot be had.
    """
    with ExitStack() as stack:
        bound = sockets.bind([_listen(script, word)])
        for one in bound:
            stack.callback(one.close)
            if one.protocol != script.protocol:
                raise ConfigError(f"{word} is no address for a connection of {script.listener}")
            _shrink(one.sock, script)
        for one in bound:
            ready(one.name)
        socks = [one.sock for one in bound]
        if script.protocol not in sockets.STREAMS:
            return _Exchange(script, _first(socks)).run()
        deliveries = stack.enter_context(closing(Deliveries()))
        connection = stack.enter_context(_accepted(script, socks))
        return _Conversation(script, connection, deliveries).run()


def _listen(script: Script, word: str | None) -> sockets.Listen:
    """Where to listen: of HOST:PORT, the protocol is the logged one."""
    listen = sockets.parse(script.listener if word is None else word)
    if script.protocol in listen.protocols:
        return sockets.Listen(
            listen.word, (script.protocol,), listen.host, listen.port, listen.path, listen.mode
        )
    if listen.protocols != (sockets.FD,):
        raise ConfigError(f"{word} is no address for a connection of {script.listener}")
    return listen


def _first(socks: Sequence[socket.socket]) -> socket.socket:
    """The one of them that somebody comes to."""
    poll = select.poll()
    for sock in socks:
        poll.register(sock, select.POLLIN)
    ready = {fd for fd, _ in poll.poll()}
    return next(sock for sock in socks if sock.fileno() in ready)


def _accepted(script: Script, socks: Sequence[socket.socket]) -> socket.socket:
    """The first connection, if need be after it has waited."""
    while True:
        sock = _first(socks)
        time.sleep(_parameter(script, "late-accept", "time"))
        try:
            return sock.accept()[0]
        except OSError as error:  # it has gone meanwhile
            if not isinstance(error, BlockingIOError) and error.errno not in addresses.PASSING:
                raise


def _parameter(script: Script, fault: str, name: str) -> float:
    """Of what struck the connection; 0: that did not."""
    found = [each for each in script.faults if each.get("fault") == fault]
    return float(found[0].get(name, 0)) if found else 0.0


def _shrink(sock: socket.socket, script: Script) -> None:
    window = int(_parameter(script, "slow-read", "window"))
    if window:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)


def _compare(what: str, at: int, got: bytes, expected: bytes) -> None:
    """Make sure that the client sent what it had sent.

    Args:
        what: they are.
        at: where they begin in it.
        got: so far.
        expected: as much as can be compared.

    Raises:
        Differs: naming the first byte that is another.
    """
    if got == expected:
        return
    pairs = enumerate(zip(got, expected, strict=False))
    same = next((at for at, pair in pairs if pair[0] != pair[1]), min(len(got), len(expected)))
    parts = [part[same : same + SHOWN].hex(" ") or "nothing" for part in (expected, got)]
    raise Differs(f"{what} differs at offset {at + same}: expected {parts[0]}, got {parts[1]}")


class _Conversation:
    """A stream."""

    def __init__(self, script: Script, sock: socket.socket, deliveries: Deliveries) -> None:
        self._script = script
        self._sock = sock
        self._deliveries = deliveries
        self._expected = script.input
        #: How much of it has come, at which times; whether the end has.
        self._got = 0
        self._times: list[tuple[int, float]] = [(0, time.monotonic())]
        self._ended = False
        self._sent = 0
        #: Whether it was said what is waited for: once is enough.
        self._told = False
        #: Whether the client read the last piece in time, or what it read was not asked for.
        self._reads = True
        self._size = int(_parameter(script, "slow-read", "size")) or RECEIVE_BUFFER
        self._pause = _parameter(script, "slow-read", "pause")
        sock.setblocking(False)
        if script.protocol == sockets.TCP:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self) -> str:
        """Do it all; what was done."""
        script = self._script
        try:
            delivery = self._deliveries.of(self._sock)
            for send in script.sends:
                self._need(send.needs)
                self._deliver(delivery, send.how)
                since = self._when(send.needs) if send.begins else time.monotonic()
                self._read_until(since + send.delay)
                self._send(send.data)
            self._need(len(self._expected) + script.ended)
            if script.how == "fault_reset":
                self._deliver(delivery, script.how)
            self._end()
        except OSError as error:
            words = os.strerror(error.errno or 0).lower()
            raise Differs(f"the client has gone: {words}") from error
        return _summary(script, self._got, self._sent)

    def _need(self, size: int) -> None:
        """Read until so much has come; after a while of nothing, say what is waited for."""
        while self._got + self._ended < size:
            before = self._got
            self._read(None if self._told else UNFINISHED_AFTER)
            if self._got == before and not self._ended:
                self._told = True
                self._tell()

    def _tell(self) -> None:
        """Of what nothing came."""
        left = self._expected[self._got : self._got + SHOWN].hex(" ")
        sentence = (
            f"{self._got:,} of {len(self._expected):,} bytes have come; the client is to send"
            f" {left or 'no more, and to end'}"
        )
        say(WARNING, "awaited", sentence, come=self._got, logged=len(self._expected))

    def _when(self, size: int) -> float:
        """When so much had come."""
        return self._times[bisect_left(self._times, (size, 0.0))][1]

    def _read_until(self, when: float) -> None:
        """Read what comes until then."""
        while (left := when - time.monotonic()) > 0:
            self._read(left)

    def _read(self, timeout: float | None) -> None:
        """Read what comes within so many seconds (None: however long it takes)."""
        if self._ended:
            time.sleep(timeout or 0)
            return
        if not _wait(self._sock, select.POLLIN, timeout):
            return
        data = self._sock.recv(self._size)
        self._ended = not data
        beyond = self._got + len(data) - len(self._expected)
        if beyond > 0 and self._script.how in LEFT_OPEN:
            data = data[: len(data) - beyond]  # what came then was read by nobody, or not logged
        _compare("the request", self._got, data, self._expected[self._got : self._got + len(data)])
        self._got += len(data)
        if self._ended and self._got < len(self._expected):
            raise Differs(
                f"the client ended after {self._got:,} of {len(self._expected):,} bytes:"
                f" expected {self._expected[self._got : self._got + SHOWN].hex(' ')}"
            )
        self._times.append((self._got + self._ended, time.monotonic()))
        if self._pause and data:
            time.sleep(self._pause)

    def _deliver(self, delivery: Delivery, how: str) -> None:
        """Wait until what was sent was read.

        A client that does not read is waited for only where it was when the log was written.
        """
        deadline = time.monotonic() + (PATIENCE if self._reads or how else 0)
        looks = 0
        while not delivery.is_over(self._sent):
            looks += 1
            if looks > LOOKS and time.monotonic() >= deadline:
                self._reads = False
                return
            self._read(0 if looks < LOOKS else LONGEST_SLEEP)
        self._reads = True
        if delivery.how == ACKNOWLEDGED and self._sent:
            self._read_until(time.monotonic() + PAUSE)

    def _send(self, data: bytes) -> None:
        """Send it all, and read meanwhile."""
        view = memoryview(data)
        while view:
            try:
                sent = self._sock.send(view)
            except BlockingIOError:
                both = select.POLLOUT | (0 if self._ended else select.POLLIN)
                if _wait(self._sock, both, None) & select.POLLIN:
                    self._read(0)
                continue
            self._sent += sent
            view = view[sent:]

    def _end(self) -> None:
        """End as it was ended."""
        script = self._script
        if script.how == "fault_reset":
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        elif script.how in ("fault_truncate", "too_long", "corrupt"):
            self._sock.shutdown(socket.SHUT_WR)
            self._discard(time.monotonic() + LINGER_TIMEOUT)
        elif script.how in BY_SERVER:
            self._discard(self._times[-1][1] + script.lasted)
        elif not self._ended:
            self._discard(None)

    def _discard(self, until: float | None) -> None:
        """Read and forget, until the client has ended."""
        try:
            while not self._ended:
                left = None if until is None else max(until - time.monotonic(), 0)
                if not _wait(self._sock, select.POLLIN, left):
                    return
                self._ended = not self._sock.recv(RECEIVE_BUFFER)
        except ConnectionError:
            pass


class _Exchange:
    """A peer of a datagram socket."""

    def __init__(self, script: Script, sock: socket.socket) -> None:
        self._script = script
        self._sock = sock
        sock.setblocking(False)
        self._peer: addresses.Address = None
        #: When each datagram came; bytes of them, and of those sent.
        self._times = [time.monotonic()]
        self._got = self._sent = 0

    def run(self) -> str:
        """Do it all; what was done."""
        for send in self._script.sends:
            while len(self._times) <= send.needs:
                self._receive(None)
            when = self._times[send.needs] + send.delay
            while (left := when - time.monotonic()) > 0:
                self._receive(left)
            with suppress(OSError):  # as it was lost then, or might have been
                self._sent += self._sock.sendto(send.data, self._peer)
        while len(self._times) <= len(self._script.received):
            self._receive(None)
        return _summary(self._script, self._got, self._sent)

    def _receive(self, timeout: float | None) -> None:
        """Take what comes within so many seconds (None: however long it takes)."""
        if not _wait(self._sock, select.POLLIN, timeout):
            return
        data, source = self._sock.recvfrom(MAX_DATAGRAM)
        if not source or self._peer not in (None, source):
            return
        number = len(self._times)
        if number > len(self._script.received):
            raise Differs(f"the client sent more than {number - 1:,} datagrams")
        _compare(f"datagram {number}", 0, data, self._script.received[number - 1])
        self._peer = source
        self._got += len(data)
        self._times.append(time.monotonic())


def _wait(sock: socket.socket, events: int, timeout: float | None) -> int:
    """The first of these events, within so many seconds; 0: none."""
    poll = select.poll()
    poll.register(sock, events)
    found = poll.poll(None if timeout is None else math.ceil(timeout * 1e3))
    return found[0][1] if found else 0


def _summary(script: Script, got: int, sent: int) -> str:
    sends = len(script.sends)
    pieces = f"{sends:,} {'piece' if sends == 1 else 'pieces'}"
    return f"connection {script.connection}: {got:,} bytes in, {sent:,} bytes out in {pieces}"
