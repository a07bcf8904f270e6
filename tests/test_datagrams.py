"""Datagrams, each twin's, on real sockets and a selector that is stepped by hand."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import reference
import strategies
from hypothesis import given
from hypothesis import strategies as st
from posts import Post, silent
from sites import FAMILIES, PATIENCE

from fastecho.limits import DATAGRAM_BATCH

SO_TIMESTAMPNS = 35  # socket(7); Python 3.11 does not name it
LARGEST = 65_507  # bytes that fit into an IPv4 datagram


@pytest.fixture
def post(twin) -> Iterator[Callable[..., Post]]:
    """Makes posts."""
    with ExitStack() as stack:

        def make(**settings: Any) -> Post:
            made = Post(twin, **settings)
            stack.push(made.stack)
            return made

        yield make


# -- what is answered


part = st.one_of(st.sampled_from(["seq", "len", "peer"]), strategies.literals)


@given(
    parts=st.lists(part, max_size=4).map(tuple),
    messages=st.lists(st.binary(max_size=100), max_size=80),
)
def test_every_datagram_is_answered_in_order(twin, parts, messages):
    post = Post(twin, parts)
    with post.stack:
        client = post.client()
        for message in messages:
            client.send(message)
        post.until(len(messages))
        peer = b"127.0.0.1:%d" % client.getsockname()[1]
        due = [
            reference.render(parts, 0, seq, len(message), peer) + message
            for seq, message in enumerate(messages, 1)
        ]
        assert [client.recv(65536) for _ in messages] == due
        assert silent(client)
        assert post.datagrams.bytes_in == sum(map(len, messages))
        assert post.datagrams.bytes_out == sum(map(len, due))
        assert post.datagrams.unanswered == {}


def test_an_empty_datagram_is_answered_with_the_prefix_alone(post):
    post = post()
    assert post.ask(post.client(), b"") == b"[]"
    assert (post.datagrams.messages, post.datagrams.bytes_in, post.datagrams.bytes_out) == (1, 0, 2)


def test_a_plain_echo_of_nothing_is_an_empty_datagram(post):
    post = post(parts=())
    assert post.ask(post.client(), b"") == b""
    assert (post.datagrams.messages, post.datagrams.bytes_out) == (1, 0)


def test_the_largest_datagram_comes_back_whole(post):
    post = post(parts=())
    message = os.urandom(LARGEST)
    assert post.ask(post.client(), message) == message
    assert post.datagrams.unanswered == {}


def test_the_largest_reply_goes_out(post):
    post = post()
    message = os.urandom(LARGEST - 2)
    assert post.ask(post.client(), message) == b"[]" + message


def test_a_reply_too_large_for_a_datagram_is_dropped_and_the_rest_go(post):
    """It has its number all the same, so the others show the gap."""
    post = post(parts=("seq", b" "))
    client = post.client()
    for message in (b"before", b"x" * LARGEST, b"y" * (LARGEST - 1), b"after"):
        client.send(message)
    post.until(4)
    assert [client.recv(65536), client.recv(65536)] == [b"1 before", b"4 after"]
    assert silent(client)
    assert post.datagrams.unanswered == {"emsgsize": 2}
    assert post.datagrams.bytes_in == 6 + LARGEST + LARGEST - 1 + 5
    assert post.datagrams.bytes_out == 8 + 7


def test_more_than_a_batch_is_answered_in_order_a_batch_a_turn(post):
    post = post(parts=("seq", b" "))
    client = post.client()
    count = 2 * DATAGRAM_BATCH + 10
    for number in range(count):
        client.send(b"%d" % number)
    for done in (DATAGRAM_BATCH, 2 * DATAGRAM_BATCH, count):
        assert post.selector.dispatch(PATIENCE) == 1
        assert post.datagrams.messages == done
    replies = [client.recv(100) for _ in range(count)]
    assert replies == [b"%d %d" % (number + 1, number) for number in range(count)]
    assert post.selector.dispatch(0) == 0


def test_each_client_gets_its_own_replies(post):
    post = post(parts=("seq", b" ", "peer", b" "))
    clients = [post.client() for _ in range(20)]
    for client in clients * 2:
        client.send(b"?")
    post.until(40)
    for number, client in enumerate(clients, 1):
        port = client.getsockname()[1]
        due = [b"%d 127.0.0.1:%d ?" % (seq, port) for seq in (number, number + 20)]
        assert [client.recv(100), client.recv(100)] == due
        assert silent(client)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_peer_is_named_as_the_client_names_itself(post, family):
    post = post(family=family, parts=("peer", b" ", "len", b" "), verbose=True)
    client = post.client()
    host, port = client.getsockname()[:2]
    shown = f"[{host}]:{port} 4 who?" if ":" in host else f"{host}:{port} 4 who?"
    assert post.ask(client, b"who?") == shown.encode()
    assert post.owner.told == [(post.datagrams, client.getsockname())]


def test_a_long_batch_does_not_mix_messages_of_unlike_lengths(post):
    """The buffers of a batch are used again."""
    post = post(parts=("len", b" "))
    client = post.client()
    for length in (900, 0, 5, 900, 1):
        messages = [b"%c" % (65 + number) * length for number in range(26)]
        for message in messages:
            client.send(message)
        post.until(post.datagrams.messages + len(messages))
        assert [client.recv(65536) for _ in messages] == [
            b"%d " % length + message for message in messages
        ]


def test_a_client_that_has_gone_disturbs_nobody(post):
    post = post()
    gone, client = post.client(), post.client()
    gone.send(b"too late")
    gone.close()
    assert post.ask(client, b"hello") == b"[]hello"
    post.until(2)
    assert post.ask(client, b"still there?") == b"[]still there?"
    assert post.datagrams.unanswered == {}


# -- time


@pytest.mark.parametrize("token", ["iso", "utc", "epoch_ms", "epoch_us", "epoch_ns", "mono_ns"])
def test_fine_templates_use_the_kernel_s_stamps(post, token):
    assert post(parts=(token,)).sock.getsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS) == 1


def test_coarse_templates_do_without(post):
    sock = post(parts=("ctime", "epoch", "seq")).sock
    assert sock.getsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS) == 0


def test_a_datagram_read_late_bears_the_time_when_it_came(post):
    post = post(parts=("epoch_ns", b" "))
    client = post.client()
    for _ in range(1000):  # the kernel begins to stamp some time after it was asked to
        client.send(b"now?")
        sent = time.time_ns()
        post.until(post.datagrams.messages + 1)
        if int(client.recv(100).split()[0]) <= sent:
            break
    else:
        pytest.fail("the kernel does not stamp")
    times = [time.time_ns()]
    for number in range(100):
        client.send(b"%d" % number)
        times.append(time.time_ns())
    post.until(post.datagrams.messages + 100)
    stamps = [int(client.recv(100).split()[0]) for _ in range(100)]
    assert all(before <= stamp for before, stamp in zip(times, stamps, strict=False))
    assert max(stamps) <= times[-1]
    assert len(set(stamps)) == 100


def test_a_second_is_that_of_the_receive(post):
    post = post(parts=("epoch",))
    client = post.client()
    client.send(b"")
    before = int(time.time())
    post.until(1)
    assert before <= int(client.recv(100)) <= int(time.time())


def test_the_monotonic_clock_is_the_one_of_the_receive(post):
    post = post(parts=("mono_ns",))
    client = post.client()
    before = time.monotonic_ns()
    stamp = int(post.ask(client, b""))
    # Two clocks that are read one after the other: far less than a second apart.
    assert before - 10**9 < stamp < time.monotonic_ns() + 10**9


# -- who is told


def test_an_owner_is_told_of_each_answer_if_it_wants_to_know(post):
    post = post(verbose=True)
    one, two = post.client(), post.client()
    one.send(b"hello")
    two.send(b"x" * LARGEST)  # not answered
    one.send(b"again")
    post.until(3)
    assert post.owner.told == [(post.datagrams, one.getsockname())] * 2


def test_an_owner_is_told_nothing_otherwise(post):
    post = post()
    assert post.ask(post.client(), b"hello") == b"[]hello"
    assert post.owner.told == []


def test_what_an_owner_raises_comes_out_of_the_turn(post):
    def refuse(*_: object) -> None:
        raise LookupError

    post = post(verbose=True)
    post.owner.answered = refuse
    client = post.client()
    client.send(b"hello")
    with pytest.raises(LookupError):
        post.selector.dispatch(PATIENCE)
    assert client.recv(100) == b"[]hello"


# -- the socket


def test_closing_gives_the_descriptor_back_and_leaves_nothing_registered(post):
    post = post()
    assert post.datagrams.fileno() == post.sock.fileno()
    assert post.selector.get_key(post.datagrams).data is post.datagrams
    post.datagrams.close()
    assert post.datagrams.fileno() == post.sock.fileno() == -1
    assert len(post.selector.get_map()) == 0


def test_closing_twice_is_closing_once(post):
    post = post()
    post.datagrams.close()
    post.datagrams.close()


def test_nothing_to_receive_is_no_event(post):
    post = post()
    post.datagrams.on_event(1)
    assert (post.datagrams.messages, post.datagrams.unanswered) == (0, {})


def test_events_may_be_delivered_by_hand(post):
    post = post()
    client = post.client()
    client.send(b"hello")
    assert post.selector.select(PATIENCE)
    post.datagrams.on_event(1)
    assert client.recv(100) == b"[]hello"


def test_the_python_method_of_a_subclass_is_called(twin, post):
    class Counting(twin.Datagrams):
        turns = 0

        def on_event(self, mask):
            self.turns += mask
            super().on_event(mask)

    post = post(datagrams=Counting)
    assert post.ask(post.client(), b"hello") == b"[]hello"
    assert post.datagrams.turns == 1
