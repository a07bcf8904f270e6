"""A server under clients that do all that clients can: every byte, every counter is foretold.

Real sockets on the loopback, TCP and UDP at once: partial sends, half-closes, slow readers, resets,
floods, frames too long or corrupt, more clients than there may be. `model` says what must come of
it. In most runs the server takes its turns when the test says so (its loop is stepped by hand), so
that what fails fails again; in the others it runs in its thread. Nothing waits for time: what is
not there although nobody has anything more to do is a failure.

By default, and with `CI` set, a look of seconds. For a time of your own, in seconds for each
backend, with the seed of each round of machines on standard output:

    TEST_STATEFUL_SECONDS=3600 pytest tests/test_stateful.py -s

`TEST_STATEFUL_SEED` is the first seed; alone, it runs that round again and no other.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import select
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import pytest
import reference
import strategies
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model import RAW_PARTS, Books, Conversation, Correspondence, Parts, RawConversation, template
from processes import ABORT, PATIENCE, until
from reference import Framing
from sites import tune

from fastecho import Server
from fastecho import server as server_module

SECONDS = float(os.environ.get("TEST_STATEFUL_SECONDS", "0"))
SEED = os.environ.get("TEST_STATEFUL_SEED")
#: Machines of one round, which has one seed.
ROUND = 100
#: Machines by default: what there is time for whenever all tests are run.
FEW = 50

#: Turns in which nothing at all happens before something counts as missing; each waits 10 ms. The
#: kernel's own timers may need some seconds (a closed window is probed ever more seldom).
IDLE_TURNS = 500
#: What a turn counts in which the server did something, but nothing that can be seen.
BUSY = 0.02
#: When all is done, it may still discard what those at fault have sent.
MOST_BUSY = 20_000
NEVER = 10**9  # seconds
#: What one rule sends at most to a server that may not be reading, and how many may be there.
STUFFED = 40_000
CROWD = 40
#: Datagrams on the way at once take less than this of a receive buffer, with what each costs.
AFLOAT, DATAGRAM_COST = 100_000, 2000

TEMPLATES: list[Parts] = [
    RAW_PARTS,
    (),
    (b"> ",),
    ("seq", b":"),
    (b"[", "len", b"]"),
    (b"{", "peer", b" ", "seq", b"}"),
    (b"-" * 300, "seq"),
]


@dataclass(frozen=True)
class Site:
    """A server, and how it is served.

    Attributes:
        framing, parts: its own.
        threaded: it runs in a thread; else it is stepped.
        receive, send: its buffers.
        narrow: the kernel's buffers are so small that a client that does not read is soon felt.
        others: more settings.
    """

    framing: Framing
    parts: Parts
    threaded: bool
    receive: int
    send: int
    narrow: bool
    others: dict[str, Any]


@st.composite
def sites(draw: st.DrawFn) -> Site:
    parts = draw(st.sampled_from(TEMPLATES))
    kind = draw(st.sampled_from(("delimiter", *strategies.KINDS)))  # few have tails
    if kind == "raw":
        parts = RAW_PARTS
    forbidden = forbidden_in_delimiters(parts)
    framing = draw(
        strategies.framings([kind], strategies.longest(parts)).filter(
            lambda found: found.adjust <= 9 and forbidden.isdisjoint(b"".join(found.ends))
        )
    )
    limit = max(framing.adjust, draw(st.sampled_from([300, 2000, 65_536])))
    others = {
        "send_buffer": draw(st.sampled_from([262_144, 4096, 1])),
        "max_connections": draw(st.sampled_from([None, 1, 3])),
        "verbose": draw(st.booleans()),
        "show_cuts": draw(st.sampled_from([False, False, False, True])),
    }
    return Site(
        replace(framing, max_frame=min(limit, framing.max_frame)),
        parts,
        draw(st.sampled_from([False, False, True])),
        draw(st.sampled_from([262_144, 64, 1000])),
        draw(st.sampled_from([262_144, 256, 2000])),
        draw(st.booleans()),
        others,
    )


def forbidden_in_delimiters(parts: Parts) -> set[int]:
    """What the prefix may hold."""
    if "peer" in parts:
        return set(range(0x20, 0x7F))
    literals = b"".join(part for part in parts if isinstance(part, bytes))
    return set(literals + b"0123456789")


@st.composite
def messages(draw: st.DrawFn, framing: Framing) -> bytes:
    """One that the framing allows, short or near the limit."""
    least = framing.max_frame if framing.kind == "fixed" else max(0, framing.adjust)
    most = 400 if framing.kind == "raw" else framing.max_frame
    sizes = st.integers(least, min(most, least + 40))
    if most <= 2000:
        sizes = st.one_of(sizes, st.integers(max(least, most - 3), most))
    size = draw(sizes)
    odd = st.lists(st.sampled_from(framing.delimiter + b"\r\n0:,\x80x"), min_size=1, max_size=4)
    motif = draw(st.one_of(st.binary(min_size=1, max_size=8), odd.map(bytes)))
    return (motif * (size // len(motif) + 1))[:size]


def frames(framing: Framing) -> st.SearchStrategy[bytes]:
    return messages(framing).map(lambda message: reference.wire(framing, message))


def words(framing: Framing) -> st.SearchStrategy[bytes]:
    """What a client says that means well."""
    return st.lists(frames(framing), min_size=1, max_size=5).map(b"".join)


@st.composite
def nonsense(draw: st.DrawFn, framing: Framing) -> bytes:
    """What a client says that does not: a frame too long, or damaged ones."""
    if framing.kind in ("raw", "fixed") or draw(st.booleans()):
        return draw(strategies.streams(framing))
    size = framing.max_frame + draw(st.integers(1, 3))
    message = bytes([draw(st.integers(0, 255))]) * size
    if framing.kind == "length" and (size - framing.adjust) >> 8 * framing.width:
        return message
    return reference.wire(framing, message)


def smallest(framing: Framing) -> bytes:
    """The smallest frame there is: an empty line."""
    least = {"fixed": framing.max_frame, "raw": 1}.get(framing.kind, max(0, framing.adjust))
    return reference.wire(framing, b"\n" * least)


class Client:
    """A TCP client.

    Attributes:
        sock: non-blocking.
        conversation: what is known of it.
        outbox: what it has kept back, or the kernel has not taken.
        heard: bytes that it has read.
    """

    def __init__(self, sock: socket.socket, conversation: Conversation) -> None:
        self.sock = sock
        self.conversation = conversation
        self.outbox = b""
        self.heard = 0

    def push(self, size: int) -> int:
        """Send so many bytes of the outbox, if the kernel takes them. A reset is an error."""
        sent = 0
        while sent < size:
            try:
                sent += self.sock.send(self.outbox[sent:size])
            except BlockingIOError:
                break
        self.conversation.say(self.outbox[:sent])
        self.outbox = self.outbox[sent:]
        return sent

    def end(self) -> None:
        """Say that this is all."""
        self.sock.shutdown(socket.SHUT_WR)
        self.conversation.end()

    def close(self, abruptly: bool = False) -> None:
        """Close; abruptly, with a reset."""
        if abruptly:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        self.sock.close()
        self.conversation.leave(abruptly)

    def hear(self, size: int = 65_536) -> bool:
        """Read what is there, once; whether there was anything. A reset is an error."""
        if self.conversation.over:
            return False
        try:
            data = self.sock.recv(size)
        except BlockingIOError:
            return False
        self.heard += len(data)
        if data:
            self.conversation.hear(data)
        else:
            self.conversation.hear_end()
        return True

    def hear_all(self) -> bool:
        """Read what is there; whether that is all there will be."""
        while self.hear():
            pass
        return self.conversation.done

    def __repr__(self) -> str:
        return repr(self.conversation)


class Correspondent:
    """A UDP client; `expected` are the replies that it has not read."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.peer = peer_of(sock)
        self.expected: list[bytes] = []

    def hear_all(self) -> bool:
        """Read what is there; whether that is all there will be."""
        while True:
            try:
                reply = self.sock.recv(65_536)
            except BlockingIOError:
                return not self.expected
            assert self.expected, f"{self.peer!r}: {reply[:60]!r} answers nothing"
            assert reply == self.expected.pop(0), f"{self.peer!r}: {reply[:60]!r}"

    def __repr__(self) -> str:
        return f"<{self.peer.decode()}: {len(self.expected)} replies to come>"


def peer_of(sock: socket.socket) -> bytes:
    host, port = sock.getsockname()
    return f"{host}:{port}".encode()


def make_narrow(sock: socket.socket) -> None:
    """Give it small buffers, and segments that fit: or the kernel waits for larger windows."""
    tune(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)


def unacknowledged(sock: socket.socket) -> int:
    """Bytes sent that the peer's kernel may not have yet (SIOCOUTQ, tcp(7))."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]


def drawn(choose: Callable[[Framing], st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """What depends on the framing."""
    return st.runner().flatmap(lambda machine: choose(machine.framing))


def some(group: str) -> Any:
    """Only if the machine has any."""
    return precondition(lambda machine: machine.server is not None and getattr(machine, group))


def pick(group: list[Any], who: int) -> Any:
    return group[who % len(group)]


#: Who does something: one of those that are there, or else somebody new.
someone = st.integers(0, 5)


class Clients(RuleBasedStateMachine):
    """Any number of clients, and the server.

    What can be done next depends only on what was done: not on what the kernel has taken so far,
    nor on what the server has got round to.
    """

    backend = ""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.server: Any = None
        self.thread: threading.Thread | None = None
        self.clients: list[Client] = []
        self.correspondents: list[Correspondent] = []
        self.afloat = 0
        self.ports: set[int] = set()

    @initialize(site=sites())
    def start(self, site: Site) -> None:
        self.site = site
        self.framing = site.framing
        self.books = Books(Correspondence(site.parts))
        listening = socket.create_server(("127.0.0.1", 0))
        if site.narrow:
            make_narrow(listening)
        with (
            mock.patch.object(server_module, "RECEIVE_BUFFER", site.receive),
            mock.patch.object(server_module, "SEND_BUFFER", site.send),
        ):
            self.server = Server(
                [f"fd://{listening.detach()}", "udp://127.0.0.1:0"],
                framing=site.framing.spec,
                prefix=template(site.parts),
                max_frame=site.framing.max_frame,
                backend=self.backend,
                frame_timeout=0,
                linger_timeout=NEVER,
                **site.others,
            )
        self.stack.callback(self.server.close)
        self.address = self.server.tcp_address
        self.prober = self.new_correspondent()
        if site.threaded:
            self.thread = threading.Thread(target=self.server.run, daemon=True)
            self.thread.start()
            self.stack.callback(self.thread.join)
            self.stack.callback(self.server.stop)

    # -- the server's turns

    def turn(self, timeout: float = 0) -> bool:
        """Let the server do what there is to do; whether there was anything that we know of."""
        if self.thread is None:
            return bool(self.server._loop.selector.dispatch(timeout))
        self.thread.join(timeout)
        assert self.thread.is_alive(), "the server has gone"
        return False

    def until(self, look: Callable[[], object], what: Callable[[], object]) -> None:
        """Until something is so; an error if it is not, and there is nothing left to do."""
        idle: float = 0
        seen: object = None
        while not look():
            assert idle < IDLE_TURNS, f"it never came to that: {what()}"
            idle += BUSY if self.turn(0.01) else 1
            before = seen
            seen = self.server.counters, sum(client.heard for client in self.clients)
            if seen != before:
                idle = 0

    @some("server")
    @rule(turns=st.integers(1, 5), sweep=st.booleans())
    def take_turns(self, turns: int, sweep: bool) -> None:
        """And look for timeouts: none is near."""
        for _ in range(turns):
            self.turn()
        if sweep and not self.thread:
            self.server._sweep()

    # -- who is there

    @property
    def speakers(self) -> list[Client]:
        """Those that have not said that this is all."""
        return [each for each in self.clients if not each.conversation.ended]

    @property
    def faulty(self) -> list[Client]:
        """Those that have said what nobody may, and that the server has noticed, or will."""
        return [each for each in self.clients if each.conversation.fault and self.admits(each)]

    def admits(self, client: Client) -> bool:
        """Whether the server has accepted it, or will without anybody doing more."""
        most = self.site.others["max_connections"]
        earlier = self.books.earlier(client.conversation)
        return most is None or sum(1 for _ in earlier) < most

    def speaker(self, who: int) -> Client:
        """One that may still say something."""
        speakers = self.speakers
        return speakers[who] if who < len(speakers) else self.newcomer(who % 2 == 1)

    def correspondent(self, who: int) -> Correspondent:
        """One of a few."""
        if who % 4 >= len(self.correspondents):
            self.correspondents.append(self.new_correspondent())
        return pick(self.correspondents, who)

    def newcomer(self, narrow: bool) -> Client:
        """Somebody connects; if `narrow`, one who can take only little at once."""
        sock = socket.socket()
        self.stack.callback(sock.close)
        if narrow:
            make_narrow(sock)
        sock.connect(self.address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        peer = peer_of(sock)
        if self.framing.kind == "raw":
            conversation: Conversation = RawConversation(peer)
        else:
            conversation = Conversation(self.framing, self.site.parts, peer)
        client = Client(sock, conversation)
        self.books.conversations.append(conversation)
        self.clients.append(client)
        return client

    def hear_out(self, client: Client) -> None:
        """All that must come, comes."""
        self.until(client.hear_all, lambda: f"{client!r} hears all")

    @precondition(lambda self: self.server and len(self.clients) < CROWD)
    @rule(narrow=st.booleans())
    def connect(self, narrow: bool) -> None:
        self.newcomer(narrow)

    @precondition(lambda self: self.server and len(self.clients) < CROWD / 2)
    @rule(count=st.integers(2, CROWD // 2), data=drawn(words))
    def crowd(self, count: int, data: bytes) -> None:
        """Many come at once, say the same, and have nothing more to say."""
        for _ in range(count):
            client = self.newcomer(False)
            client.outbox = data
            client.push(len(data))
            client.end()

    # -- what clients do

    @some("server")
    @rule(
        who=someone,
        data=drawn(words),
        kept=st.one_of(st.just(0), st.integers(0, 20)),
    )
    def speak(self, who: int, data: bytes, kept: int) -> None:
        """Sends this after what it kept back before, and keeps the last bytes back."""
        client = self.speaker(who)
        client.outbox += data
        client.push(len(client.outbox) - kept)

    @some("server")
    @rule(who=someone, data=drawn(nonsense))
    def misspeak(self, who: int, data: bytes) -> None:
        client = self.speaker(who)
        client.outbox += data
        client.push(len(client.outbox))

    @some("clients")
    @rule(who=someone, data=st.sampled_from([b"\n", b"x" * 300, b"x" * 20_000]))
    def go_on(self, who: int, data: bytes) -> None:
        """Hears that it was at fault, and goes on sending: it is not reset."""
        if not (faulty := self.faulty):
            return
        client = pick(faulty, who)
        self.hear_out(client)
        for _ in range(0 if client.conversation.ended else 3):
            client.outbox = data
            client.push(len(data))
            self.turn()

    @some("server")
    @rule(
        who=someone,
        count=st.sampled_from([2, 10, 300, 3000]),
        last=st.one_of(st.just(b""), drawn(nonsense), drawn(frames)),
        kept=st.integers(0, 3),
        ends=st.booleans(),
    )
    def flood(self, who: int, count: int, last: bytes, kept: int, ends: bool) -> None:
        """Sends nothing but empty messages, until something else at the last."""
        client = self.speaker(who)
        client.outbox += smallest(self.framing) * count + last
        client.push(len(client.outbox) - kept)
        if ends:
            client.end()

    @some("server")
    @rule(who=someone, frame=drawn(frames))
    def stuff(self, who: int, frame: bytes) -> None:
        """Sends, and does not read, until nobody can do anything."""
        client = self.speaker(who)
        frame = frame or smallest(self.framing)
        sent = 0
        for _ in range(STUFFED // 100):
            client.outbox = client.outbox or frame * (1 + 500 // len(frame))
            pushed = client.push(len(client.outbox))
            sent += pushed
            if sent > STUFFED or client.conversation.fault or not (self.turn() or pushed):
                break

    @some("server")
    @rule(who=someone, data=drawn(words), kept=st.integers(0, 20))
    def half_close(self, who: int, data: bytes, kept: int) -> None:
        """Has some last words, and says so; the last of them it may not find the end of."""
        client = self.speaker(who)
        client.outbox += data
        client.push(len(client.outbox) - kept)
        client.end()

    @some("clients")
    @rule(who=someone, size=st.sampled_from([1, 20, 1000, 65_536]))
    def hear(self, who: int, size: int) -> None:
        """Reads a little of what is there."""
        client = pick(self.clients, who)
        client.hear(size)

    @some("clients")
    @rule(who=someone)
    def catch_up(self, who: int) -> None:
        """Reads all that must come."""
        client = pick(self.clients, who)
        if self.admits(client):
            self.hear_out(client)

    @some("clients")
    @rule(who=someone, abruptly=st.booleans(), settled=st.booleans())
    def leave(self, who: int, abruptly: bool, settled: bool) -> None:
        """Closes or resets."""
        client = pick(self.clients, who)
        if settled:
            self.settle()
        client.close(abruptly)
        self.clients.remove(client)

    # -- UDP

    def new_correspondent(self) -> Correspondent:
        # A port that was another's might get another's replies.
        while True:
            sock = socket.socket(type=socket.SOCK_DGRAM)
            self.stack.callback(sock.close)
            sock.connect(self.server.udp_address)
            if sock.getsockname()[1] not in self.ports:
                break
        self.ports.add(sock.getsockname()[1])
        sock.setblocking(False)
        return Correspondent(sock)

    @some("server")
    @rule(
        who=someone,
        message=st.one_of(st.binary(max_size=40), st.integers(1, 5000).map(bytes)),
        count=st.sampled_from([1, 1, 2, 30]),
    )
    def write(self, who: int, message: bytes, count: int) -> None:
        client = self.correspondent(who)
        for _ in range(count):
            cost = 2 * len(message) + DATAGRAM_COST
            if self.afloat + cost > AFLOAT:
                self.settle()
            self.afloat += cost
            self.post(client, message)

    @some("server")
    @rule(who=someone, size=st.integers(65_200, 65_507))
    def write_long(self, who: int, size: int) -> None:
        """A datagram whose reply may be longer than any datagram can be."""
        client = self.correspondent(who)
        self.settle()
        self.post(client, bytes(size))
        self.settle()

    def post(self, client: Correspondent, message: bytes) -> None:
        client.sock.send(message)
        reply = self.books.correspondence.say(message, client.peer)
        if reply is not None:
            client.expected.append(reply)

    @some("correspondents")
    @rule(who=someone)
    def hear_datagrams(self, who: int) -> None:
        client = pick(self.correspondents, who)
        client.hear_all()

    @some("correspondents")
    @rule(who=someone)
    def fall_silent(self, who: int) -> None:
        """Closes, whatever is still on its way to it."""
        client = pick(self.correspondents, who)
        client.sock.close()
        self.correspondents.remove(client)

    # -- the reckoning

    @some("server")
    @invariant()
    def nothing_is_counted_that_was_not_there(self) -> None:
        assert self.books.differences(self.server.counters, False) == {}

    @some("server")
    @rule()
    def settle(self) -> None:
        """All read what they must get. Then nothing is open: every counter is known."""
        self.admit()
        for correspondent in [*self.correspondents, self.prober]:
            self.until(correspondent.hear_all, lambda: "all replies to datagrams")
        self.until(lambda: not self.differences(), self.differences)
        if not self.books.exact:
            self.rest()
        for client in self.clients:
            assert not client.hear(), f"{client!r}: there is more"
        for correspondent in [*self.correspondents, self.prober]:
            correspondent.hear_all()
        self.books.settle(self.server.counters)
        self.afloat = 0
        for _ in range(MOST_BUSY):
            if not self.turn():
                break
        else:
            raise AssertionError("all is done, and the server goes on doing something")

    def rest(self) -> None:
        """What one conversation leaves open must not hide what another has still to be read.

        All is with the server's kernel; and of two datagrams in a row, the second is answered when
        all that was ready with the first has had its turn, and this has changed nothing.
        """
        admitted = [each for each in self.clients if each.conversation.admitted]
        self.until(
            lambda: not any(unacknowledged(client.sock) for client in admitted),
            lambda: "all that was sent with the server's kernel",
        )
        client = self.prober
        before: object = None
        while before != (now := self.books.streams(self.server.counters)):
            before = now
            for _ in range(2):
                self.post(client, b"")
                self.until(client.hear_all, lambda: "an answer to an empty datagram")
        assert not self.differences()

    def admit(self) -> None:
        """Those that came first are served first; the others get in when these have gone."""
        places = self.site.others["max_connections"] or sys.maxsize
        clients = {client.conversation: client for client in self.clients}
        for conversation in self.books.conversations:
            conversation.admitted = places > 0
            if not conversation.admitted:
                continue
            if conversation in clients:
                self.hear_out(clients[conversation])
            places -= not conversation.released

    def differences(self) -> dict[str, object]:
        return self.books.differences(self.server.counters, True)

    def stop(self) -> None:
        """Nobody loses anything by it; those that are open get their end."""
        self.settle()
        while faulty := self.faulty:  # would be waited for; others may come in their places
            for client in faulty:
                client.close()
                self.clients.remove(client)
            self.settle()
        for client in self.clients.copy():
            if not client.conversation.admitted:
                client.close()
                self.clients.remove(client)
        for client in self.clients:
            # With the server's kernel when it is told to stop: that is soon enough.
            if not (client.conversation.pending or client.outbox or client.conversation.ended):
                client.outbox = smallest(self.framing) * 3
                client.push(len(client.outbox))
        until(
            lambda: not any(unacknowledged(client.sock) for client in self.clients),
            "all that was sent with the server's kernel",
        )
        for conversation in self.books.conversations:
            conversation.stop()
        self.server.stop()
        if self.thread:
            self.thread.join()
        else:
            self.server.run()
        for client in self.clients:
            while not client.hear_all():
                assert select.select([client.sock], [], [], PATIENCE)[0], f"{client!r} has no end"
        assert self.differences() == {}

    def teardown(self) -> None:
        with self.stack:
            if self.server and sys.exc_info()[0] is None:
                self.stop()


def seeds() -> Iterator[int]:
    """One for each round, as long as there is time; none is asked for: one round, without."""
    first = int(SEED) if SEED else random.SystemRandom().randrange(10**9)
    end = time.monotonic() + SECONDS
    for number in itertools.count(first):
        yield number
        if time.monotonic() >= end:
            return


@pytest.mark.timeout(0 if SECONDS else 600)
def test_every_byte_and_every_counter_is_as_foretold(twin: Any) -> None:
    machine = type("Machine", (Clients,), {"backend": twin.name})
    few = settings(
        max_examples=FEW,
        phases=[Phase.reuse, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    if not SECONDS and not SEED:
        run_state_machine_as_test(machine, settings=few)
        return
    many = settings(few, max_examples=ROUND, database=None, print_blob=True)
    for number in seeds():
        print(f"{time.strftime('%H:%M:%S')} {twin.name}: seed {number}", flush=True)
        run_state_machine_as_test(seed(number)(machine), settings=many)
