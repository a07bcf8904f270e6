"""Listeners and streams, each twin's, on real sockets and a selector that is stepped by hand."""

from __future__ import annotations

import errno
import gc
import os
import resource
import select
import selectors
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import reference
import strategies
from hypothesis import given
from hypothesis import strategies as st
from reference import Framing
from sites import FAMILIES, PATIENCE, Owner, Site, patiently

from fastecho._pure import stream as pure_stream
from fastecho.limits import ACCEPT_BUDGET, ACCEPT_CROWD

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


@pytest.fixture
def site(twin) -> Iterator[Callable[..., Site]]:
    """Makes sites."""
    with ExitStack() as stack:

        def make(**settings: Any) -> Site:
            made = Site(twin, **settings)
            stack.push(made.stack)
            return made

        yield make


@contextmanager
def replaced(owner: Owner, name: str, call: Callable[..., object]) -> Iterator[None]:
    """Have the owner do something else when told."""
    setattr(owner, name, call)
    yield
    delattr(owner, name)


def reset(client: socket.socket) -> None:
    """Close it the hard way."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# -- what is answered


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Framing, tuple[bytes | str, ...], list[bytes], int]:
    """A framing, a template, what the client sends at a time, what one `recv` takes."""
    part = st.one_of(st.sampled_from(["seq", "len", "peer"]), strategies.literals)
    parts = tuple(draw(st.lists(part, max_size=4)))
    framing = draw(strategies.framings(reserve=strategies.longest(parts)))
    pieces = draw(strategies.cuts(draw(strategies.streams(framing))))
    return framing, parts, pieces, draw(st.sampled_from([1, 7, 64, 1000]))


@given(conversation=conversations(), spare=st.integers(0, 10))
def test_every_message_is_answered_however_it_comes(twin, conversation, spare):
    framing, parts, pieces, receive = conversation
    stream = b"".join(pieces)
    verdict = reference.judge(framing, stream, ended=True)
    frames = verdict.frames
    if framing.kind == "raw":
        chunks = [
            piece[at : at + receive] for piece in pieces for at in range(0, len(piece), receive)
        ]
        frames = [reference.Frame(chunk, chunk) for chunk in chunks]

    def replies(peer: bytes) -> list[bytes]:
        return [
            reference.reply(
                framing, frame, reference.render(parts, 0, seq, len(frame.message), peer)
            )
            for seq, frame in enumerate(frames, 1)
        ]

    room = max(map(len, replies(b"127.0.0.1:65535")), default=1) + spare
    site = Site(twin, framing, parts, receive, room)
    with site.stack:
        client, _ = site.accepted()
        due = replies(b"%s:%d" % (b"127.0.0.1", client.getsockname()[1]))
        sent = 0
        for piece in pieces:
            site.send(client, piece)
            sent += len(piece)
            site.until(lambda: site.listener.bytes_in == sent or site.owner.told)  # noqa: B023
        client.shutdown(socket.SHUT_WR)
        assert site.read(client) == b"".join(due)
        site.until(lambda: not site.listener.open)
        listener = site.listener
        assert (listener.accepted, listener.messages) == (1, len(frames))
        assert listener.bytes_out == sum(map(len, due))
        assert listener.closed == {verdict.reason or "eof": 1}
        told = [(what, error.reason, error.offset) for what, _, error in site.owner.told]
        assert told == ([("faulted", verdict.reason, verdict.offset)] if verdict.reason else [])


def test_a_message_larger_than_either_buffer_is_kept_together(site):
    framing = Framing("delimiter", 5000, delimiter=b"\n")
    site = site(framing=framing, send=5003)
    client, stream = site.accepted()
    site.send(client, b"x" * 5000)
    site.until(lambda: stream.pending == 5000)
    site.send(client, b"\n")
    assert site.read(client, 5003) == b"[]" + b"x" * 5000 + b"\n"
    assert (stream.pending, stream.messages) == (0, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_peer_is_named_as_the_client_names_itself(site, family):
    site = site(family=family, parts=("peer", b" "))
    client, stream = site.accepted()
    host, port = client.getsockname()[:2]
    assert stream.address == client.getsockname()
    site.send(client, b"who?\n")
    shown = f"[{host}]:{port} who?\n" if ":" in host else f"{host}:{port} who?\n"
    assert site.read(client, len(shown)) == shown.encode()


def test_many_clients_in_one_turn_get_their_own_replies(site):
    site = site()
    clients = [site.connect() for _ in range(50)]
    site.until(lambda: site.listener.open == 50)
    for number, client in enumerate(clients):
        client.send(b"%d\n%d " % (number, number))
    for number, client in enumerate(clients):
        client.send(b"more\n")
        due = b"[]%d\n[]%d more\n" % (number, number)
        assert site.read(client, len(due)) == due


def test_the_time_is_that_of_the_receive_that_completed_the_message(site):
    site = site(parts=("epoch_ns", b" "))
    client, stream = site.accepted()
    site.send(client, b"be")
    site.until(lambda: stream.pending == 2)
    between = time.time_ns()
    site.send(client, b"gun\nthe tail")
    site.until(lambda: stream.pending == 8)
    first, _, _ = site.read(client, 26).partition(b" ")
    assert between <= int(first) <= time.time_ns()
    between = time.time_ns()
    client.shutdown(socket.SHUT_WR)
    tail, _, message = site.read(client).partition(b" ")
    assert message == b"the tail"
    assert between <= int(tail) <= time.time_ns()


def test_the_monotonic_clock_is_the_one_of_the_receive(site):
    site = site(parts=("mono_ns", b" "))
    client, _ = site.accepted()
    before = time.monotonic_ns()
    site.send(client, b"now\n")
    stamp, _, _ = site.read(client, len(b"%d now\n" % before)).partition(b" ")
    # Two clocks that are read one after the other: far less than a second apart.
    assert before - 10**9 < int(stamp) < time.monotonic_ns() + 10**9


# -- the end of a stream


def test_a_half_close_is_no_close(site):
    site = site()
    client, stream = site.accepted()
    client.send(b"one\ntwo")
    client.shutdown(socket.SHUT_WR)
    assert site.read(client) == b"[]one\n[]two"
    assert stream.closed
    assert stream.fileno() == -1
    assert site.listener.streams == []
    assert site.listener.closed == {"eof": 1}
    assert site.owner.told == []


def test_a_fault_at_the_end_is_noted_and_what_was_complete_is_answered(site):
    site = site(framing=Framing("length", 40, width=1))
    client, stream = site.accepted()
    client.send(b"\2ok\5cut")
    client.shutdown(socket.SHUT_WR)
    assert site.read(client) == b"\4[]ok"
    ((what, whose, error),) = site.owner.told
    assert (what, whose, error.reason, error.offset) == ("faulted", stream, "truncated", 3)
    assert stream.closed
    assert site.listener.closed == {"truncated": 1}


@pytest.mark.parametrize("reads_first", [True, False])
def test_no_reset_overtakes_the_replies_before_a_fault(site, reads_first):
    """The client goes on sending; the server reads that, and closes only after the client."""
    site = site()
    client, stream = site.accepted()
    client.send(b"one\ntwo\n" + b"x" * 100)
    junk = b"more and more\n" * 10_000
    if not reads_first:
        site.send(client, junk)
    assert site.read(client) == b"[]one\n[]two\n"
    site.send(client, junk)
    assert not stream.closed
    assert (site.listener.open, site.listener.closed) == (1, {"too_long": 1})
    assert (site.listener.messages, stream.pending) == (2, 0)
    client.close()
    site.until(lambda: stream.closed)
    assert (site.listener.open, site.listener.closed) == (0, {"too_long": 1})
    ((what, whose, error),) = site.owner.told
    assert (what, whose, error.reason, error.offset) == ("faulted", stream, "too_long", 8)


def test_a_lingering_stream_can_be_ended(site):
    site = site()
    client, stream = site.accepted()
    client.send(b"x" * 100)
    assert site.read(client) == b""
    stream.close()
    assert stream.closed
    assert (site.listener.open, site.listener.closed) == (0, {"too_long": 1})
    assert len(site.selector.get_map()) == 1


def test_a_reset_ends_one_connection_and_is_counted(site):
    site = site()
    client, stream = site.accepted()
    other, _ = site.accepted()
    reset(client)
    site.until(lambda: stream.closed)
    assert site.listener.closed == {"reset": 1}
    site.send(other, b"still here\n")
    assert site.read(other, 13) == b"[]still here\n"


def test_closing_a_stream_is_done_once(site):
    """The second time its number may belong to somebody else."""
    site = site()
    with tempfile.TemporaryFile() as file:
        client, stream = site.accepted()
        number = stream.fileno()
        stream.close()
        assert site.read(client) == b""
        copy = os.dup2(file.fileno(), number)
        stream.close()
        stream.on_event(READ)
        del stream
        gc.collect()
        os.close(copy)  # raises if the stream has
    assert (site.listener.open, site.listener.closed) == (0, {"stopped": 1})


def test_a_stream_that_has_ended_is_kept_by_nobody(site):
    site = site()
    client, stream = site.accepted()
    client.close()
    site.until(lambda: stream.closed)
    gc.collect()
    assert sys.getrefcount(stream) == 2


# -- clients that do not read


def block(site: Site, client: socket.socket, stream: Any, data: bytes) -> int:
    """Send and read nothing, until neither side can go on; how much was sent."""
    sent = 0
    for _ in patiently():
        try:
            sent += client.send(data[sent : sent + 1000])
        except BlockingIOError:
            if stream.unsent and not site.selector.dispatch(0.02):
                return sent
        assert sent < len(data)
        site.selector.dispatch(0)
    pytest.fail("the kernel takes everything")


def test_a_client_that_does_not_read_is_not_read(site):
    site = site()
    client, stream = site.accepted()
    lines = b"".join(b"%d\n" % number for number in range(200_000))
    sent = block(site, client, stream, lines)
    assert 0 < stream.unsent <= 256
    assert site.selector.get_key(stream).events == WRITE
    taken = site.listener.bytes_in
    assert site.selector.dispatch(0) == 0
    assert taken < sent

    other, _ = site.accepted()
    site.send(other, b"me\n")
    assert site.read(other, 5) == b"[]me\n"
    assert site.listener.bytes_in == taken + 3

    complete = lines[: lines.rfind(b"\n", 0, sent) + 1]
    due = b"".join(b"[]" + line for line in complete.splitlines(keepends=True))
    assert site.read(client, len(due)) == due
    site.until(lambda: stream.unsent == 0)
    assert site.selector.get_key(stream).events == READ
    assert site.listener.bytes_out == len(due) + 5


def test_input_that_waits_to_be_cut_keeps_its_time(site):
    """One `recv` makes more replies than the kernel takes; the rest is cut much later."""
    padding = b"." * 100
    site = site(parts=("epoch_ns", padding), receive=4096)
    client, stream = site.accepted()
    lines = b"!\n" * 100_000
    sent = block(site, client, stream, lines)
    blocked = time.time_ns()
    early = site.listener.bytes_in // 2
    assert site.listener.messages < early
    width = len(b"%d" % blocked + padding) + 2
    replies = site.read(client, sent // 2 * width)
    assert len(replies) == sent // 2 * width
    assert replies[width - 2 :: width] == b"!" * (sent // 2)
    stamps = [int(replies[at : at + 19]) for at in range(0, len(replies), width)]
    assert stamps == sorted(stamps)
    assert stamps[early - 1] <= blocked
    assert all(stamp > blocked for stamp in stamps[early:])
    assert len(set(stamps)) < len(stamps) / 100


def test_a_client_that_half_closes_before_it_reads_gets_everything(site):
    site = site()
    client, stream = site.accepted()
    lines = b"0123456789\n" * 50_000
    sent = block(site, client, stream, lines)
    client.shutdown(socket.SHUT_WR)
    due = b"".join(b"[]" + line for line in lines[:sent].splitlines(keepends=True))
    assert site.read(client) == due
    assert site.listener.closed == {"eof": 1}


def test_a_fault_behind_unsent_replies_waits_for_them(site):
    site = site(receive=4096, parts=(b"." * 100,))
    client, stream = site.accepted()
    lines = b"\n" * 40 + (b"x" * 50 + b"\n")  # the fault is always in the piece that is blocked
    client.send(lines * 60)
    site.until(lambda: stream.unsent or site.owner.told)
    assert site.read(client) == (b"." * 100 + b"\n") * 40
    assert site.listener.closed == {"too_long": 1}
    assert not stream.closed


@pytest.mark.parametrize("end", [reset, socket.socket.close])
def test_a_client_that_goes_without_reading_costs_nothing_further(site, end):
    site = site()
    client, stream = site.accepted()
    block(site, client, stream, b"line\n" * 100_000)
    end(client)
    site.until(lambda: stream.closed)
    assert stream.unsent == 0
    assert (site.listener.open, site.listener.closed) == (0, {"reset": 1})
    assert len(site.selector.get_map()) == 1


# -- stopping


def test_draining_answers_what_has_come_and_then_closes(site):
    site = site()
    client, stream = site.accepted()
    client.send(b"a" * 39 + b"\n" + b"b" * 39 + b"\n")
    drained = [stream.drain() for _ in range(3)]
    assert drained == [True, True, True]
    assert stream.closed
    assert site.read(client) == b"[]" + b"a" * 39 + b"\n[]" + b"b" * 39 + b"\n"
    assert site.listener.closed == {"stopped": 1}
    assert stream.drain()


def test_draining_a_stream_at_its_end_is_no_stop(site):
    site = site()
    client, stream = site.accepted()
    client.shutdown(socket.SHUT_WR)
    assert stream.drain()
    assert site.listener.closed == {"eof": 1}


def test_draining_waits_for_what_the_kernel_does_not_take(site):
    site = site()
    client, stream = site.accepted()
    lines = b"line\n" * 100_000
    sent = block(site, client, stream, lines)
    assert not stream.drain()
    assert not stream.closed
    due = b"[]line\n" * (sent // 5)
    assert site.read(client, len(due)) == due
    site.until(lambda: stream.unsent == 0)
    assert [stream.drain(), stream.closed] == [True, True]


def test_draining_leaves_a_lingering_stream_alone(site):
    site = site()
    client, stream = site.accepted()
    client.send(b"x" * 100)
    assert site.read(client) == b""
    assert not stream.drain()
    client.close()
    site.until(lambda: stream.closed)


def test_streams_outlive_their_listener(site):
    site = site()
    client, _ = site.accepted()
    site.listener.close()
    assert site.listener.fileno() == -1
    site.send(client, b"anyone?\n")
    assert site.read(client, 10) == b"[]anyone?\n"
    site.listener.close()
    site.listener.wake()
    assert len(site.listener.streams) == len(site.selector.get_map()) == 1


def test_a_copy_in_a_forked_process_is_watched_no_more(site):
    """Which would be ready for ever, and nobody could say that it is not wanted."""
    site = site()
    client, stream = site.accepted()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    try:
        client.shutdown(socket.SHUT_WR)
        site.until(lambda: stream.closed)
        site.selector.dispatch(0)
        assert select.select([site.selector.fileno()], [], [], 0) == ([], [], [])
    finally:
        os.close(reader)
        os.close(writer)
        os.waitpid(child, 0)


# -- accepting


def test_a_crowd_is_accepted_in_portions(site):
    site = site()
    busy = [site.accepted()[0] for _ in range(ACCEPT_CROWD - 1)]
    crowd = [site.connect() for _ in range(ACCEPT_BUDGET + 10)]
    for client in busy:
        client.send(b"at work\n")
    assert site.selector.dispatch(PATIENCE) == ACCEPT_CROWD
    assert site.listener.accepted == site.listener.open == len(busy) + ACCEPT_BUDGET
    site.until(lambda: site.listener.open == len(busy) + len(crowd))


def test_with_few_at_work_one_is_accepted_at_a_time(site):
    """By native; to pure a turn costs more than to look for another in vain."""
    site = site()
    busy = [site.accepted()[0] for _ in range(ACCEPT_CROWD - 2)]
    crowd = [site.connect() for _ in range(3)]
    for count, _ in enumerate(crowd, 1):
        for client in busy:
            client.send(b"at work\n")
        site.selector.dispatch(PATIENCE)
        taken = len(crowd) if isinstance(site.listener, pure_stream.Listener) else count
        assert site.listener.accepted == len(busy) + taken


def test_accepted_sockets_do_not_block_and_are_not_inherited(site):
    site = site()
    _, stream = site.accepted()
    assert not os.get_blocking(stream.fileno())
    assert not os.get_inheritable(stream.fileno())


def test_while_a_listener_rests_newcomers_wait(site):
    site = site()
    site.listener.rest()
    site.listener.rest()
    client = site.connect()
    client.send(b"hello?\n")
    assert site.selector.dispatch(0.02) == 0
    assert len(site.selector.get_map()) == 0
    site.listener.wake()
    site.listener.wake()
    assert site.read(client, 9) == b"[]hello?\n"


def test_a_stream_is_its_own_key(site):
    site = site()
    _, stream = site.accepted()
    assert site.listener.streams == [stream]
    key = site.selector.get_key(stream)
    assert type(key) is selectors.SelectorKey
    assert key == (stream, stream.fileno(), READ, stream)
    assert dict(site.selector.get_map())[stream.fileno()] == key


def test_listeners_on_one_selector_know_their_own_streams(twin, site):
    site = site()
    sock = site.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    sock.setblocking(False)
    listener = site.listener
    other = twin.Listener(sock, site.selector, listener.echo, listener.shared, site.owner)
    client, stream = site.accepted()
    with socket.create_connection(sock.getsockname()) as visitor:
        site.until(lambda: other.open)
        assert [each.address for each in other.streams] == [visitor.getsockname()]
        assert listener.streams == [stream]
        assert [each.listener for each in other.streams] == [other]
        visitor.send(b"there\n")
        client.send(b"here\n")
        assert site.read(client, 7) == b"[]here\n"
        site.until(lambda: other.messages)
        assert visitor.recv(100) == b"[]there\n"
    site.until(lambda: not other.open)
    assert (other.messages, other.bytes_in, other.bytes_out) == (1, 6, 8)
    assert (other.closed, listener.closed) == ({"eof": 1}, {})
    other.close()


def test_a_stream_is_made_by_its_listener_alone(twin):
    with pytest.raises(TypeError):
        twin.Stream()


# -- who is told


def test_an_owner_is_told_of_connections_if_it_wants_to_know(site):
    site = site(verbose=True)
    client, stream = site.accepted()
    assert site.owner.told == [("connected", stream)]
    client.close()
    site.until(lambda: stream.closed)
    assert site.owner.told == [("connected", stream), ("closed", stream, "eof")]


def test_an_owner_is_told_of_a_fault_before_the_end(site):
    site = site(verbose=True)
    client, stream = site.accepted()
    client.send(b"x" * 100)
    assert site.read(client) == b""
    client.close()
    site.until(lambda: stream.closed)
    assert [told[0] for told in site.owner.told] == ["connected", "faulted", "closed"]
    assert site.owner.told[-1] == ("closed", stream, "too_long")


def test_an_owner_may_close_what_it_is_told_of(site):
    site = site(verbose=True)
    with replaced(site.owner, "connected", lambda stream: stream.close()):
        client = site.connect()
        assert site.read(client) == b""
    for told in ("faulted", "closed"):
        with replaced(site.owner, told, lambda stream, _: stream.close()):
            client, stream = site.accepted()
            client.send(b"x" * 100)
            client.shutdown(socket.SHUT_WR)
            site.until(lambda: stream.closed)  # noqa: B023
    assert (site.listener.accepted, site.listener.open) == (3, 0)
    assert site.listener.closed == {"stopped": 1, "too_long": 2}
    assert len(site.selector.get_map()) == 1


@pytest.mark.parametrize("told", ["connected", "faulted", "closed"])
def test_what_an_owner_raises_comes_out_of_the_turn(site, told):
    def refuse(*_: object) -> None:
        raise LookupError

    site = site(verbose=True)
    with replaced(site.owner, told, refuse):
        client = site.connect()
        client.send(b"x" * 100)
        client.shutdown(socket.SHUT_WR)
        with pytest.raises(LookupError):
            site.until(lambda: False)
    assert site.listener.accepted == 1


def test_a_listener_out_of_descriptors_rests_and_says_so(site):
    site = site()
    first, _ = site.accepted()
    second = site.connect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        assert site.selector.dispatch(PATIENCE) == 1
        assert site.owner.told == [("resting", site.listener, errno.EMFILE)]
        assert (site.listener.accepted, site.listener.open) == (1, 1)
        site.send(first, b"and I?\n")
        assert site.read(first, 9) == b"[]and I?\n"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    site.listener.wake()
    site.send(second, b"and I?\n")
    assert site.read(second, 9) == b"[]and I?\n"


# -- subclasses


def test_the_python_method_of_a_subclass_is_called(twin, site):
    class Counting(twin.Listener):
        turns = 0

        def on_event(self, mask):
            self.turns += mask
            super().on_event(mask)

    site = site(listener=Counting)
    client, _ = site.accepted()
    assert site.listener.turns == READ
    site.send(client, b"hello\n")
    assert site.read(client, 8) == b"[]hello\n"
    assert site.listener.turns == READ


def test_a_stream_may_be_left_to_another_handler_for_a_while(site):
    site = site()
    client, stream = site.accepted()
    masks: list[int] = []
    client.send(b"hello\n")
    site.selector.modify(stream, READ, SimpleNamespace(on_event=masks.append))
    site.until(lambda: masks)
    assert stream.messages == 0
    site.selector.modify(stream, READ, stream)
    assert site.read(client, 8) == b"[]hello\n"
    assert set(masks) == {READ}


def test_events_may_be_delivered_by_hand(site):
    site = site()
    client = site.connect()
    assert site.selector.select(PATIENCE)
    site.listener.on_event(READ)
    (stream,) = site.listener.streams
    client.send(b"hello\n")
    site.until(lambda: stream.on_event(READ) or stream.messages)
    assert site.read(client, 8) == b"[]hello\n"


def test_closing_after_the_selector_gives_everything_back(site):
    site = site()
    client, stream = site.accepted()
    site.selector.close()
    stream.close()
    site.listener.close()
    assert (stream.fileno(), site.listener.fileno(), site.listener.open) == (-1, -1, 0)
    assert client.recv(1) == b""
