"""What the kernel joins, and cuts: UDP_GRO and UDP_SEGMENT (udp(7)), on real sockets, each twin's.

Loopback carries a segmented send whole. So a client's is received joined; and a client that takes
joined datagrams sees which replies left as one send.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from posts import Post, silent
from sites import FAMILIES, PATIENCE

from fastecho.limits import DATAGRAM_BATCH, MAX_SEGMENTED, MAX_SEGMENTS

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
CONTROL = 200  # bytes


def offloads() -> bool:
    """Whether this kernel has them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(SOL_UDP, UDP_GRO, 1)
            sock.setsockopt(SOL_UDP, UDP_SEGMENT, 0)
        except OSError:
            return False
    return True


pytestmark = pytest.mark.skipif(not offloads(), reason="the kernel has no UDP offloads")


@pytest.fixture
def post(twin: Any) -> Iterator[Callable[..., Post]]:
    """Makes posts."""
    with ExitStack() as stack:

        def make(**settings: Any) -> Post:
            made = Post(twin, **settings)
            stack.push(made.stack)
            return made

        yield make


def segmented(client: socket.socket, payload: bytes, size: int) -> list[bytes]:
    """Send it as segments of this size; what they are."""
    client.sendmsg([payload], [(SOL_UDP, UDP_SEGMENT, struct.pack("@H", size))])
    return [payload[at : at + size] for at in range(0, len(payload), size)]


def segment_size(control: Sequence[tuple[int, int, bytes]]) -> int:
    """Of what was received joined; else 0."""
    for level, kind, data in control:
        if (level, kind) == (SOL_UDP, UDP_GRO):
            return struct.unpack("@i", data)[0]
    return 0


def sends(client: socket.socket, replies: int) -> list[list[bytes]]:
    """So many replies, by the send with which each of them left."""
    found: list[list[bytes]] = []
    while sum(map(len, found)) < replies:
        data, control, _, _ = client.recvmsg(65_535, CONTROL)
        size = segment_size(control) or max(len(data), 1)
        found.append([data[at : at + size] for at in range(0, len(data) or 1, size)])
    return found


def taker(post: Post) -> socket.socket:
    """A client that takes joined datagrams."""
    client = post.client()
    client.setsockopt(SOL_UDP, UDP_GRO, 1)
    return client


def payload(size: int) -> bytes:
    return bytes(number % 251 for number in range(size))


# -- what was sent as segments


@dataclass(frozen=True)
class Sent:
    """One send of a client's: datagrams of `size` bytes, the last of them of `last`."""

    client: int
    size: int
    count: int
    last: int
    joined: bool

    def messages(self, salt: int) -> list[bytes]:
        sizes = [self.size] * (self.count - 1) + [self.last]
        return [bytes([65 + (salt + n) % 26]) * size for n, size in enumerate(sizes)]


@st.composite
def traffic(draw: st.DrawFn) -> list[Sent]:
    """Sends of a few clients, plain and segmented, of not much more than a batch."""
    found: list[Sent] = []
    room = 120
    while room > 0 and draw(st.integers(0, 12)):
        size = draw(st.sampled_from([0, 1, 2, 9, 10, 11, 99, 100, 500]))
        count = draw(st.integers(1, min(room, MAX_SEGMENTS)))
        last = draw(st.sampled_from([size, size, min(size, 1), size // 2, max(size - 1, 0)]))
        joined = bool(size and last) and draw(st.booleans())
        found.append(Sent(draw(st.integers(0, 2)), size, count, last, joined))
        room -= count
    return found


part = st.sampled_from(["seq", "len", "peer", b"", b"[]", b" "])


@pytest.mark.parametrize("family", FAMILIES)
@given(parts=st.lists(part, max_size=4).map(tuple), sent=traffic())
def test_every_datagram_is_a_message_however_it_was_sent(twin, family, parts, sent):
    post = Post(twin, parts, family=family)
    with post.stack:
        clients = [post.client() for _ in range(3)]
        due: list[list[bytes]] = [[] for _ in clients]
        seq = size = 0
        for number, each in enumerate(sent):
            messages = each.messages(number)
            client = clients[each.client]
            host, port = client.getsockname()[:2]
            peer = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode()
            if each.joined:
                assert segmented(client, b"".join(messages), each.size) == messages
            else:
                for message in messages:
                    client.send(message)
            for message in messages:
                seq += 1
                size += len(message)
                prefix = reference.render(parts, 0, seq, len(message), peer)
                due[each.client].append(prefix + message)
        post.until(seq)
        for client, replies in zip(clients, due, strict=True):
            assert [client.recv(65_535) for _ in replies] == replies
            assert silent(client)
        assert post.datagrams.messages == seq
        assert post.datagrams.bytes_in == size
        assert post.datagrams.bytes_out == sum(len(reply) for each in due for reply in each)
        assert post.datagrams.unanswered == post.datagrams.resent == {}
        assert post.datagrams.segments


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (20, 10),
        (21, 10),
        (29, 10),
        (MAX_SEGMENTS, 1),
        (MAX_SEGMENTS * 10 - 9, 10),
        (65_000, 30_000),
        (65_000, 1_400),
        (MAX_SEGMENTED, 1_472),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_came_joined_is_taken_apart(post, family, size, segment):
    """With the prefix, more than one packet can carry, where it was nearly full."""
    post = post(parts=("seq", b" "), family=family)
    client = post.client()
    messages = segmented(client, payload(size), segment)
    data, control, _, _ = post.sock.recvmsg(65_535, CONTROL, socket.MSG_PEEK)
    assert (len(data), segment_size(control)) == (size, segment)
    post.until(len(messages))
    due = [b"%d %b" % (seq, message) for seq, message in enumerate(messages, 1)]
    assert [client.recv(65_535) for _ in messages] == due
    assert post.datagrams.unanswered == post.datagrams.resent == {}


def test_more_segments_than_older_kernels_join(post):
    post = post()
    client = taker(post)
    try:
        messages = segmented(client, payload(128), 1)
    except OSError:
        pytest.skip("this kernel sends no more than 64 segments")
    post.until(128)
    assert [len(send) for send in sends(client, 128)] == [MAX_SEGMENTS, MAX_SEGMENTS]
    assert post.datagrams.bytes_in == len(messages)


def test_nothing_between_segments_is_lost(post):
    """An empty datagram is never joined, and one that is alone needs no splitting."""
    post = post(parts=())
    client = post.client()
    due = [*segmented(client, b"aaabbbc", 3), b"", b"ddd", b"", *segmented(client, b"x", 3)]
    client.send(b"")
    client.send(b"ddd")
    client.send(b"")
    post.until(7)
    got = [client.recv(100) for _ in range(7)]
    assert sorted(got) == sorted(due)
    assert got[:3] == due[:3]


def test_joined_datagrams_bear_one_stamp(post):
    """The kernel keeps one for all of them."""
    post = post(parts=("epoch_ns", b" "))
    client = post.client()
    segmented(client, payload(100), 10)
    post.until(10)
    assert len({client.recv(100).split()[0] for _ in range(10)}) == 1


def test_an_owner_is_told_of_each_answer(post):
    post = post(verbose=True)
    client = post.client()
    segmented(client, payload(55), 10)
    post.until(6)
    assert post.owner.told == [(post.datagrams, client.getsockname())] * 6


# -- what is sent as segments


def test_a_run_of_one_size_leaves_as_one_send(post):
    post = post()
    client = taker(post)
    for number in range(10):
        client.send(b"%d" % number)
    client.send(b"")
    client.send(b"x")
    post.until(12)
    runs = [[b"[]%d" % number for number in range(10)] + [b"[]"], [b"[]x"]]
    assert sends(client, 12) == runs


def test_a_single_reply_is_no_segment(post):
    post = post()
    client = taker(post)
    client.send(b"alone")
    post.until(1)
    data, control, _, _ = client.recvmsg(100, CONTROL)
    assert (data, control) == (b"[]alone", [])


def test_a_run_ends_where_the_size_of_the_prefix_changes(post):
    post = post(parts=("seq", b" ", "len", b" "))
    client = taker(post)
    for _ in range(12):
        client.send(b"x")
    post.until(12)
    assert list(map(len, sends(client, 12))) == [9, 3]
    # The last of what came joined has a shorter prefix too.
    segmented(client, b"y" * 39, 10)
    post.until(16)
    assert sends(client, 4) == [
        [b"13 10 " + b"y" * 10, b"14 10 " + b"y" * 10, b"15 10 " + b"y" * 10, b"16 9 " + b"y" * 9]
    ]


def test_a_run_has_no_more_segments_than_every_kernel_takes(post):
    post = post()
    client = taker(post)
    for _ in range(3):
        segmented(client, payload(MAX_SEGMENTS), 1)
    post.until(3 * MAX_SEGMENTS)
    assert [len(send) for send in sends(client, 3 * MAX_SEGMENTS)] == [MAX_SEGMENTS] * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_has_no_more_bytes_than_a_packet_takes(post, family):
    """The first fills it to the byte; the second would take one byte more."""
    post = post(parts=(), family=family)
    client = taker(post)
    for full in (MAX_SEGMENTED, MAX_SEGMENTED + 1):
        half = full // 2 + full % 2
        client.send(payload(half))
        client.send(payload(full - half))
        post.until(post.datagrams.messages + 2)
        assert len(sends(client, 2)) == (1 if full == MAX_SEGMENTED else 2)
    assert post.datagrams.resent == {}


def test_each_peer_has_runs_of_its_own(post):
    post = post()
    one, two = taker(post), taker(post)
    for client in (one, one, two, two, one):
        client.send(b"x")
    post.until(5)
    assert list(map(len, sends(one, 3))) == [2, 1]
    assert list(map(len, sends(two, 2))) == [2]


def test_a_longer_reply_ends_a_run(post):
    post = post()
    client = taker(post)
    for size in (5, 5, 6, 6, 3, 3):
        client.send(b"x" * size)
    post.until(6)
    assert [[len(reply) for reply in send] for send in sends(client, 6)] == [
        [7, 7],
        [8, 8, 5],
        [5],
    ]


def test_a_unix_socket_has_no_segments(twin, tmp_path):
    with (
        twin.Selector() as selector,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client,
    ):
        sock.bind(str(tmp_path / "s"))
        sock.setblocking(False)
        client.settimeout(PATIENCE)
        client.bind(str(tmp_path / "c"))
        client.connect(str(tmp_path / "s"))
        datagrams = twin.Datagrams(sock, selector, twin.Stamper((b"[]",)), None)
        assert not datagrams.segments
        for _ in range(5):
            client.send(b"x")
        while datagrams.messages < 5:
            assert selector.dispatch(PATIENCE) == 1
        assert [client.recv(100) for _ in range(5)] == [b"[]x"] * 5
        datagrams.close()


# -- loss


def test_what_the_kernel_had_no_room_for_is_counted(post):
    """It says so with the next datagram that it has room for."""
    post = post()
    post.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 10_000)
    client = post.client()
    total = 0
    for _ in range(2):
        before = post.datagrams.messages
        for _ in range(DATAGRAM_BATCH):
            client.send(bytes(500))
        while post.selector.dispatch(0):
            pass
        total += DATAGRAM_BATCH - (post.datagrams.messages - before)
        client.send(b"next")
        post.until(post.datagrams.messages + 1)
        assert total > 0
        assert post.datagrams.unanswered == {"overflow": total}
