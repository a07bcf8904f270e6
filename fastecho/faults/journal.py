"""The decision log: what a server with a fault plan did, as JSON lines; and such a log read again.

One object a line, written when it happens, each by one write. `event` says what it is:

    start      `version` `backend` `plan` `seed` `framing` `prefix` `max_frame` `listen`
    connected  `peer` `time` `faults`: a connection was accepted, or a UDP peer seen first
    received   `time` `bytes`: one `recv`, or one datagram; of a stream, none: its end
    message    `message` `faults` `reply`: what was decided about a reply, also if that was nothing
    sent       `messages` `bytes` `delay` `how`: one send, of one piece
    closed     `time` `how`: the reason, as `closed.REASON` counts it

All but the first have `listener` (`tcp://127.0.0.1:12345`) and `connection`, its number there.
Bytes are hexadecimal. `time` is Unix time in nanoseconds, `delay` what was planned, in seconds:
after what was received, or within a reply after the piece before. `how` says what was known of all
that was sent before when this piece left: `read`, `acknowledged`, `unread` (the client took too
long), or nothing, where nothing had to be known. `faults` are what struck, with their parameters.

What is discarded (after `stall`, `truncate`, `reset`, or a frame at fault) is not `received`, nor
is a datagram that nobody would answer. A `message` comes after what completed it and before what is
sent of its reply.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from logging import WARNING
from typing import TYPE_CHECKING, Any

from .. import addresses
from ..errors import FastechoError
from ..events import say

if TYPE_CHECKING:
    from ..addresses import Address
    from .decisions import Strike


class Journal:
    """A log that is written.

    Args:
        path: of the file; what it held is lost.

    Raises:
        FastechoError: it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        try:
            # A pipe that nobody reads must not hold up the server, neither now nor later. And what
            # was said is nobody else's business.
            self._file = os.open(path, flags | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise FastechoError(f"cannot write {path}: {_words(error)}") from error

    def write(self, event: str, **fields: object) -> None:
        """A line. If it cannot be written, that is said once, and the log ends there."""
        if self._file < 0:
            return
        line = json.dumps({"event": event, **fields}).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            sentence = f"cannot write {self.path}: {_words(error)}; the fault log ends here"
            say(WARNING, "fault_log", sentence, path=self.path)
            self.close()

    def close(self) -> None:
        """Write no more."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Record:
    """What is logged of one connection.

    Args:
        journal: where; None: nowhere.
        listener: its listener's address.
        connection: its number there.
    """

    def __init__(self, journal: Journal | None, listener: str, connection: int) -> None:
        self._journal = journal
        self._who = {"listener": listener, "connection": connection}

    def connected(self, peer: Address, faults: Iterable[Strike] = ()) -> None:
        if self._journal is not None:
            shown, struck = addresses.text(peer), _struck(faults)
            self._write("connected", peer=shown, time=time.time_ns(), faults=struck)

    def received(self, data: bytes, now_ns: int) -> None:
        if self._journal is not None:
            self._write("received", time=now_ns, bytes=data.hex())

    def message(self, message: int, faults: Iterable[Strike], reply: bytes) -> None:
        if self._journal is not None:
            self._write("message", message=message, faults=_struck(faults), reply=reply.hex())

    def sent(self, messages: Iterable[int], data: bytes, delay: float, how: str = "") -> None:
        if self._journal is not None:
            planned = round(delay, 9)
            self._write("sent", messages=list(messages), bytes=data.hex(), delay=planned, how=how)

    def closed(self, reason: str) -> None:
        if self._journal is not None:
            self._write("closed", time=time.time_ns(), how=reason)

    def _write(self, event: str, **fields: object) -> None:
        if self._journal is not None:
            self._journal.write(event, **self._who, **fields)


def _struck(faults: Iterable[Strike]) -> list[dict[str, Any]]:
    return [{"fault": strike.fault, **strike.parameters} for strike in faults]


def _words(error: OSError) -> str:
    return os.strerror(error.errno or 0).lower()
