"""What a decision log (`journal`) says of one connection: what came, what left, and when.

A piece can be sent once the messages that it has replies to were complete: that much input it
`needs`, whatever else had come by then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, FastechoError


@dataclass(frozen=True)
class Send:
    """One send.

    Attributes:
        data: its bytes.
        needs: how much must have come before: bytes, and the end counts as one more; on datagram
            sockets, datagrams.
        delay: seconds that it was to wait; after what it needs if it begins a reply, else after
            the piece before it.
        begins: whether it does.
        how: what was known, when it left, of what was sent before.
    """

    data: bytes
    needs: int
    delay: float
    begins: bool
    how: str


@dataclass
class Script:
    """One connection.

    Attributes:
        listener: whose it was.
        connection: its number there.
        faults: what struck the connection: each with its parameters.
        received: what came, `recv` by `recv` or datagram by datagram.
        sends: what was sent, in that order.
        ended: whether the client ended its stream.
        how: how the connection ended; empty: the log does not say.
        lasted: seconds from the last input to the end.
    """

    listener: str
    connection: int
    faults: list[dict[str, Any]]
    received: list[bytes] = field(default_factory=list)
    sends: list[Send] = field(default_factory=list)
    ended: bool = False
    how: str = ""
    lasted: float = 0.0

    @property
    def protocol(self) -> str:
        """`tcp`, `udp`, `unix` or `unixgram`."""
        return self.listener.partition(":")[0]

    @property
    def input(self) -> bytes:
        """All that came on a stream."""
        return b"".join(self.received)


def load(path: str, connection: int, listener: str | None = None) -> Script:
    """The script of a connection.

    Args:
        path: of the log.
        connection: its number.
        listener: its listener's address; None: the only one that has such a connection.

    Raises:
        FastechoError: the log cannot be read.
        ConfigError: it is none, or has no such connection, or several.
    """
    readers: dict[str, _Reader] = {}
    others: set[tuple[str, int]] = set()
    for number, line in _lines(path):
        try:
            event = line["event"]
            if event == "start":
                continue
            where = line["listener"], line["connection"]
            if where[1] != connection or (listener is not None and where[0] != listener):
                others.add(where)
            elif event == "connected":
                readers[where[0]] = _Reader(Script(*where, _checked(line, "faults", list)))
            else:
                readers[where[0]].take(event, line)
        except (KeyError, TypeError, ValueError):
            raise ConfigError(f"line {number} of {path} makes no sense in a fault log") from None
    if not readers:
        raise ConfigError(f"{path} has no connection {connection}{_hint(others, listener)}")
    if len(readers) > 1:
        found = ", ".join(readers)
        raise ConfigError(
            f"{path} has a connection {connection} on each of {found}: name one with --listener"
        )
    (reader,) = readers.values()
    return reader.script


def _lines(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines that were written to their end."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield number, _decoded(path, number, line)
    except OSError as error:
        words = os.strerror(error.errno or 0).lower()
        raise FastechoError(f"cannot read {path}: {words}") from error


def _decoded(path: str, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is no fault log: line {number} is no JSON object")
    return found


def _hint(others: set[tuple[str, int]], listener: str | None) -> str:
    listeners = sorted({str(name) for name, _ in others})
    if listener is not None and listener not in listeners:
        return f" on {listener}; it has {', '.join(listeners) or 'none'}"
    numbers = [number for name, number in others if listener in (None, name)]
    return f": they are 1 to {max(numbers)}" if numbers else ": it has none"


def _checked(line: dict[str, Any], name: str, *kinds: type) -> Any:
    value = line[name]
    if type(value) not in kinds:
        raise TypeError
    return value


class _Reader:
    """Takes a connection's lines."""

    def __init__(self, script: Script) -> None:
        self.script = script
        #: How much had come, and when; how much had when a message was complete.
        self._come = 0
        self._since: int | None = None
        self._complete: dict[int, int] = {}
        self._last: list[int] = []

    def take(self, event: str, line: dict[str, Any]) -> None:
        """A line after the first.

        Raises:
            KeyError, TypeError, ValueError: it makes no sense.
        """
        if event == "received":
            self._receive(bytes.fromhex(line["bytes"]))
            self._since = _checked(line, "time", int)
        elif event == "message":
            self._complete[_checked(line, "message", int)] = self._come
        elif event == "sent":
            self._send(line)
        elif event == "closed":
            self.script.how = _checked(line, "how", str)
            if self._since is not None:
                self.script.lasted = (_checked(line, "time", int) - self._since) / 1e9
        else:
            raise ValueError

    def _receive(self, data: bytes) -> None:
        if self.script.protocol in ("udp", "unixgram"):
            self._come += 1
        elif data:
            self._come += len(data)
        else:
            self.script.ended = True
            self._come += 1
            return
        self.script.received.append(data)

    def _send(self, line: dict[str, Any]) -> None:
        messages = _checked(line, "messages", list)
        needs = max(self._complete[message] for message in messages)
        delay = float(_checked(line, "delay", float, int))
        begins = messages[0] not in self._last
        if not 0 <= delay < float("inf"):
            raise ValueError
        how = _checked(line, "how", str)
        self.script.sends.append(Send(bytes.fromhex(line["bytes"]), needs, delay, begins, how))
        self._last = messages
