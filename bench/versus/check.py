"""Do the peers do the same work? python bench/versus/check.py [PEER ...]

What each must pass before it is timed: a row of the table is a check, a column a peer. `-` is what
a peer cannot do by its nature. Below are the reasons, and what failed: then the exit status is 1.
"""

from __future__ import annotations

import bisect
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

from peers import Peer, PeerError, Server, available, named, started

PATIENCE = 30.0  # seconds for anything that must come
AT_ONCE = 1.0  # seconds for one reply; far more than it takes, since machines are shared
SHORTLY = 0.3  # seconds without a byte moved, and we take it that none will
LONGEST = 65_536
WIDTH = len("[Sun Nov 22 14:03:54 2026]")
MIB = 2**20
FLOOD = 20_000_000  # newlines
UNREAD = 20  # clients
#: Of each of them: what came and what goes back, 256 KiB each, and as much again for the allocator.
UNREAD_COST = MIB
#: RST instead of FIN (socket(7)).
ABORT = struct.pack("ii", 1, 0)
SOL_UDP, UDP_SEGMENT = 17, 103

Check = Callable[[Server], None]
CHECKS: dict[str, Check] = {}


class Failed(Exception):
    """What a peer did not do."""


def check(name: str) -> Callable[[Check], Check]:
    """Put a function into the table."""

    def put(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return put


def claim(fact: bool, otherwise: str) -> None:
    if not fact:
        raise Failed(otherwise)


# ---- clients ----


def connect(server: Server, *options: tuple[int, int, Any]) -> socket.socket:
    sock = socket.socket()
    try:
        for option in ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), *options):
            sock.setsockopt(*option)
        sock.settimeout(PATIENCE)
        sock.connect((server.host, server.port))
    except BaseException:
        sock.close()
        raise
    return sock


def datagram_socket(server: Server) -> socket.socket:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.connect((server.host, server.port))
    return sock


def exactly(sock: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        data = sock.recv(size - len(received))
        claim(bool(data), f"closed after {len(received):,} of {size:,} bytes")
        received += data
    return bytes(received)


def to_end(sock: socket.socket) -> bytes:
    received = bytearray()
    while data := sock.recv(MIB):
        received += data
    return bytes(received)


@contextmanager
def sending(sock: socket.socket, data: bytes, end: bool = False) -> Iterator[None]:
    """Send meanwhile, and then, if asked to, half-close."""

    def send() -> None:
        with suppress(OSError):  # what was not sent will be missed
            sock.sendall(data)
            if end:
                sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    yield
    thread.join(PATIENCE)
    claim(not thread.is_alive(), "does not read what is sent")


def stamps(since: float) -> set[bytes]:
    """The prefixes that a message may have that came after `since`, and by now."""
    return {
        b"[%b]" % time.ctime(second).encode() for second in range(int(since), int(time.time()) + 1)
    }


def verify(received: bytes, messages: Iterable[bytes], since: float) -> None:
    """All of them came back in order, with the time in front, and nothing else."""
    allowed, at = stamps(since), 0
    for number, message in enumerate(messages, 1):
        body = at + WIDTH
        claim(received[at:body] in allowed, f"reply {number} begins {received[at:body][:40]!r}")
        at = body + len(message)
        claim(received[body:at] == message, f"reply {number} is not what was sent")
    claim(at == len(received), f"{len(received) - at:,} bytes more than the replies")


def trip(server: Server, line: bytes = b"hello\n") -> float:
    """Connect, have one line answered; the seconds that took."""
    since, begun = time.time(), time.monotonic()
    with connect(server) as sock:
        sock.sendall(line)
        verify(exactly(sock, WIDTH + len(line)), [line], since)
    return time.monotonic() - begun


# ---- TCP ----


@check("line")
def whole_lines(server: Server) -> None:
    """One whole line after the other."""
    since = time.time()
    with connect(server) as sock:
        for message in (b"hello\n", b"\n", b"with a CR\r\n"):
            sock.sendall(message)
            verify(exactly(sock, WIDTH + len(message)), [message], since)


@check("bytes")
def byte_by_byte(server: Server) -> None:
    """A byte at a time, with another client served between."""
    since, messages = time.time(), [b"hello\n", b"\n", b"\r\n", b"\0\xff\x80\n", b"tail"]
    with connect(server) as sock:
        sock.settimeout(0.02)
        for octet in b"".join(messages)[:-1]:
            sock.sendall(bytes([octet]))
            time.sleep(0.001)
        trip(server)
        sock.settimeout(PATIENCE)
        sock.sendall(messages[-1][-1:])
        sock.shutdown(socket.SHUT_WR)
        verify(to_end(sock), messages, since)


@check("batch")
def many_lines(server: Server) -> None:
    """Many lines in one send."""
    since = time.time()
    messages = [bytes([33 + number % 200]) * (number % 300) + b"\n" for number in range(10_000)]
    size = sum(map(len, messages)) + WIDTH * len(messages)
    with connect(server) as sock, sending(sock, b"".join(messages)):
        verify(exactly(sock, size), messages, since)


@check("long")
def longest_lines(server: Server) -> None:
    """Lines as long as they may be, whole and in two parts."""
    since = time.time()
    full = b"x" * LONGEST + b"\n"
    messages = [full, b"short\n", full, full, b"\n", full]
    size = sum(map(len, messages)) + WIDTH * len(messages)
    with connect(server) as sock, sending(sock, b"".join(messages)):
        verify(exactly(sock, size), messages, since)
    with connect(server) as sock:
        sock.sendall(full[:40_000])
        time.sleep(0.05)
        with sending(sock, full[40_000:]):
            verify(exactly(sock, WIDTH + len(full)), [full], since)


@check("too-long")
def too_long_a_line(server: Server) -> None:
    """A longer line: what came before is answered, and the connection ends; others go on."""
    before, excess = [b"first\n"] * 100, b"x" * (LONGEST + 1)
    for after in (b"", b"\n", b"\nlate\n" + bytes(MIB)):
        since = time.time()
        with connect(server) as other, connect(server) as sock:
            other.sendall(b"hel")
            with sending(sock, b"".join(before) + excess + after):
                received = to_end(sock)
            verify(received, before, since)
            other.sendall(b"lo\n")
            verify(exactly(other, WIDTH + 6), [b"hello\n"], since)


@check("half-close")
def half_close(server: Server) -> None:
    """All replies and the tail's come after the client's own end."""
    since = time.time()
    messages = [b"%01023d\n" % number for number in range(4_000)] + [b"tail"]
    with connect(server) as sock, sending(sock, b"".join(messages), end=True):
        time.sleep(0.3)
        verify(to_end(sock), messages, since)
    with connect(server) as sock:
        sock.shutdown(socket.SHUT_WR)
        claim(to_end(sock) == b"", "an empty stream is answered")


class Flood:
    """The replies to empty lines, verified as quickly as they come."""

    def __init__(self, since: float) -> None:
        self.lines = 0
        self.rest = b""
        self._render(int(since))

    def _render(self, second: int) -> None:
        self.second = second
        self.reply = b"[%b]\n" % time.ctime(second).encode()
        self.pattern = self.reply * (MIB // WIDTH)

    def feed(self, data: bytes) -> None:
        """At most a MiB of them; the second changes between two replies only."""
        data = self.rest + data
        whole = len(data) // len(self.reply) * len(self.reply)
        at = 0
        while not self.pattern.startswith(data[at:whole]):
            at += self._same(data[at:whole])
            claim(self.second < int(time.time()), f"reply {self.lines + 1:,} is wrong")
            self._render(self.second + 1)
        self.lines += (whole - at) // len(self.reply)
        self.rest = data[whole:]

    def _same(self, data: bytes) -> int:
        """The bytes of the replies of this second."""
        count = len(data) // len(self.reply)
        same = bisect.bisect(
            range(1, count + 1),
            False,
            key=lambda lines: (
                data[: lines * WIDTH + lines] != self.pattern[: lines * WIDTH + lines]
            ),
        )
        self.lines += same
        return same * len(self.reply)


def flood_with(server: Server, lines: int, pause: float) -> None:
    replies, read = Flood(time.time()), 0
    with connect(server) as sock, sending(sock, b"\n" * lines, end=True):
        time.sleep(pause)
        while data := sock.recv(MIB // 2):
            replies.feed(data)
            read += len(data)
            if read > 16 * MIB:
                read = 0
                time.sleep(pause / 50)
    claim(replies.lines == lines, f"{replies.lines:,} of {lines:,} replies")
    claim(replies.rest == b"", f"the end is {replies.rest!r}")


@check("flood")
def flood(server: Server) -> None:
    """Empty lines without end, and a client slower than they."""
    flood_with(server, FLOOD, pause=1.0)


@check("unread")
def unread(server: Server) -> None:
    """Clients that never read cost little, and nothing to the others."""
    flood_with(server, MIB, pause=0.05)  # what it needs once is not counted
    trip(server)
    before = server.resident()
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(server)) for _ in range(UNREAD)]
        pushed, slowest = push(server, socks, 2 * MIB)
        slowest = max(slowest, *(trip(server) for _ in range(10)))
        grown = server.resident() - before
    claim(pushed > UNREAD * MIB // 2, f"took only {pushed:,} bytes")
    claim(grown < UNREAD * UNREAD_COST, f"{grown / MIB:,.1f} MiB for {UNREAD} clients")
    claim(slowest < AT_ONCE, f"another client waited {slowest:.1f} s")
    trip(server)


def push(server: Server, socks: list[socket.socket], most: int) -> tuple[int, float]:
    """Send newlines until none are taken; how many were, and another client's slowest trip."""
    left = dict.fromkeys(socks, most)
    for sock in socks:
        sock.setblocking(False)
    slowest, quiet, end = 0.0, 0.0, time.monotonic() + PATIENCE
    while any(left.values()) and quiet < SHORTLY and time.monotonic() < end:
        before = sum(left.values())
        for sock in socks:
            with suppress(BlockingIOError):
                if left[sock]:
                    left[sock] -= sock.send(b"\n" * min(left[sock], 65_536))
        slowest = max(slowest, trip(server))
        if sum(left.values()) < before:
            quiet = 0.0
        else:  # another client's wait does not count
            time.sleep(SHORTLY / 10)
            quiet += SHORTLY / 10
    return most * len(socks) - sum(left.values()), slowest


@check("reset")
def reset(server: Server) -> None:
    """Clients that reset their connection: in a line, with replies unread, and unsent."""
    for data in (b"", b"hel", b"hello\n", b"hello\n" * 1_000, b"\n" * MIB):
        with connect(server) as sock:
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.send(data)
            time.sleep(0.05)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        trip(server)


@check("many")
def many_clients(server: Server) -> None:
    """A hundred clients at once."""
    since = time.time()
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(server)) for _ in range(100)]
        for number, sock in enumerate(socks):
            sock.sendall(b"%d\n" % number)
        for number, sock in enumerate(socks):
            line = b"%d\n" % number
            verify(exactly(sock, WIDTH + len(line)), [line], since)


# ---- UDP ----


@check("datagram")
def one_datagram(server: Server) -> None:
    """A datagram comes back to its sender with the time in front."""
    since = time.time()
    with closing(datagram_socket(server)) as one, closing(datagram_socket(server)) as other:
        for number in range(20):
            one.send(b"one %d" % number)
            other.send(b"other %d\n" % number)
            verify(one.recv(LONGEST), [b"one %d" % number], since)
            verify(other.recv(LONGEST), [b"other %d\n" % number], since)


@check("datagrams")
def all_sizes(server: Server) -> None:
    """Empty, many at once, as large as can be answered, and larger, which is no end."""
    since = time.time()
    with datagram_socket(server) as sock:
        for size in (0, 1, 1_472, 9_000, 65_507 - WIDTH):
            sock.send(b"\xff" * size)
            verify(sock.recv(LONGEST), [b"\xff" * size], since)
        sock.send(b"x" * 65_507)
        for sizes in ([100] * 40, [100] * 20 + [60, 100, 0, 0, 200, 10], range(40)):
            messages = [b"%d" % (number % 10) * size for number, size in enumerate(sizes)]
            for message in messages:
                sock.send(message)
            verify(b"".join(sock.recv(LONGEST) for _ in messages), messages, since)


@check("segmented")
def segmented(server: Server) -> None:
    """One send of many datagrams (UDP_SEGMENT)."""
    since = time.time()
    with datagram_socket(server) as sock:
        try:
            sock.setsockopt(SOL_UDP, UDP_SEGMENT, 100)
        except OSError:
            return  # not this kernel
        messages = [b"%02d" % number * 50 for number in range(40)] + [b"last"]
        sock.send(b"".join(messages))
        verify(b"".join(sock.recv(LONGEST) for _ in messages), messages, since)


# ---- all of them ----


def verdict(peer: Peer, name: str) -> str:
    """`ok`, or why not."""
    try:
        with started(peer) as server:
            CHECKS[name](server)
    except Failed as failure:
        return str(failure)
    except TimeoutError:
        return f"no answer in {PATIENCE:.0f} s"
    except (OSError, PeerError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1].name
        return f"{error} ({place})"
    return "ok"


def table(results: dict[str, dict[str, str]]) -> str:
    """Checks down, peers across."""
    head = f"{'':12}" + "".join(f"{name:>14}" for name in results)
    rows = [
        f"{name:12}" + "".join(f"{shown(column[name]):>14}" for column in results.values())
        for name in CHECKS
    ]
    return "\n".join([head, *rows])


def shown(result: str) -> str:
    return result if result in ("ok", "-") else "failed"


def main(wanted: list[str]) -> int:
    """Print the table; the exit status."""
    try:
        peers, absent = available(named(wanted))
    except PeerError as error:
        print(error, file=sys.stderr)
        return 2
    results: dict[str, dict[str, str]] = {}
    for peer in peers:
        column = results[peer.name] = {}
        for name in CHECKS:
            column[name] = "-" if name in peer.fails else verdict(peer, name)
            print(f"{peer.name}: {name}: {column[name]}", file=sys.stderr, flush=True)
    print(table(results))
    failed = [
        (peer, name)
        for peer in results
        for name in CHECKS
        if shown(results[peer][name]) == "failed"
    ]
    for peer in peers:
        for name, reason in peer.fails.items():
            print(f"- {peer.name}, {name}: {reason}")
    for name, reason in absent.items():
        print(f"skipped: {name} ({reason})")
    for name, kind in failed:
        print(f"failed: {name}, {kind}: {results[name][kind]}")
    return int(bool(failed or (wanted and absent)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
