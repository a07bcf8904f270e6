"""Lines and their replies in Python at its quickest: what the Python peers have in common.

Putting the prefix in is one `bytes.replace` for all lines that came at once. Only where they are so
many that their replies would take megabytes, or so long that one may be too long, do replies come
in pieces, each made when it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from socket import SHUT_WR, socket

#: Bytes of a line, without its end.
LONGEST = 65_536
#: Bytes of replies that are made at once, and what a peer may leave unread.
PIECE = 262_144
RECEIVE = 65_536
WIDTH = len("[Sun Nov 22 14:03:54 2026]")
#: So much input surely gives no more replies than a piece.
LITTLE = PIECE // (WIDTH + 1)
#: Connections that wait to be accepted.
BACKLOG = 4_096
#: Seconds for the peer to close, after a line that was too long.
LINGER = 2.0

_second, _prefix = -1, b""

# The C library maps blocks as large as asyncio's receive buffers afresh each time, until one has
# been given back (mallopt(3), M_MMAP_THRESHOLD): any server that has run for a while has done so.
bytearray(2 * PIECE)


def prefix() -> bytes:
    """For messages that have come just now; rendered once a second."""
    global _second, _prefix
    now = int(time.time())
    if now != _second:
        _second, _prefix = now, b"[%b]" % time.ctime(now).encode()
    return _prefix


class Lines:
    """The lines of one connection.

    Attributes:
        too_long: whether a line was; then there are no more replies.
    """

    def __init__(self) -> None:
        self._start = bytearray()
        self.too_long = False

    def few(self, data: bytes) -> bytes | None:
        """The replies, if these are whole lines and not much, as mostly; None: ask `replies`."""
        if self._start or not data.endswith(b"\n") or is_much(data):
            return None
        return stamped(data, prefix())

    def replies(self, data: bytes) -> Iterable[bytes]:
        """The replies to the lines that `data` completes; to be used up before the next call."""
        if self._start:
            self._start += data
            if b"\n" not in data and len(self._start) <= LONGEST:
                return ()
            data = bytes(self._start)
            self._start.clear()
        stamp = prefix()
        if is_much(data):
            return self._pieces(data, stamp)
        end = data.rfind(b"\n") + 1
        if end < len(data):
            self._start += data[end:]
        return (stamped(data[:end], stamp),) if end else ()

    def _pieces(self, data: bytes, stamp: bytes) -> Iterator[bytes]:
        """As many lines at a time as surely make no more than a piece, or one."""
        many = WIDTH * count(data) > PIECE - LONGEST
        step = LITTLE if many else LONGEST
        start = 0
        while True:
            end = data.rfind(b"\n", start, start + step) + 1 or data.find(b"\n", start) + 1
            if not end or end - 1 - start > LONGEST:
                break
            yield stamped(data[start:end], stamp)
            start = end
        self._start += data[start:]
        self.too_long = len(self._start) > LONGEST

    def finish(self) -> bytes:
        """The reply to the tail at the end of the stream, if there is one."""
        return prefix() + self._start if self._start else b""


def is_much(data: bytes) -> bool:
    """Whether its replies may be more than a piece, or one of its lines too long."""
    size = len(data)
    return size > LITTLE and (size > LONGEST or size + WIDTH * count(data) > PIECE)


def count(data: bytes) -> int:
    """How many lines end there; `bytes.count` looks at each byte for itself, `replace` does not."""
    return len(data) - len(data.replace(b"\n", b""))


def stamped(lines: bytes, stamp: bytes) -> bytes:
    """The prefix before each line; the one that `replace` puts behind the last is cut off."""
    return stamp + lines.replace(b"\n", b"\n" + stamp)[:-WIDTH]


def converse(sock: socket) -> None:
    """Answer a client to its end, in a thread of its own or what passes for one."""
    lines = Lines()
    with suppress(ConnectionError, TimeoutError):
        while data := sock.recv(RECEIVE):
            if reply := lines.few(data):
                sock.sendall(reply)
                continue
            for piece in lines.replies(data):
                sock.sendall(piece)
            if lines.too_long:
                linger(sock)
                return
        sock.sendall(lines.finish())


def linger(sock: socket) -> None:
    """Closing with unread input resets the connection, and that may overtake replies."""
    sock.shutdown(SHUT_WR)
    deadline = time.monotonic() + LINGER
    while (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        if not sock.recv(RECEIVE):
            return
