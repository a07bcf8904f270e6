"""`fastecho.framing.messages` and `connection`: messages over a socket, however they were cut on
the way.
"""

from __future__ import annotations

import array
import mmap
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from processes import PATIENCE, abort
from reference import Framing, Verdict, judge, wire

from fastecho import ConfigError, FrameError, framing
from fastecho.errors import FrameCorrupt, FrameTooLong, FrameTruncated

FAULTS = {"too_long": FrameTooLong, "corrupt": FrameCorrupt, "truncated": FrameTruncated}
FRAMED = [kind for kind in strategies.KINDS if kind != "raw"]
#: Less than what a socket pair holds, so that one thread can be both its ends.
ROOM = 100_000


@contextmanager
def pair(timeout: float | None = PATIENCE) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Where a peer writes, and where its messages are read."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(PATIENCE)
        theirs.settimeout(timeout)
        yield ours, theirs


@contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The same over TCP, which knows a reset."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), PATIENCE) as ours,
        listener.accept()[0] as theirs,
    ):
        theirs.settimeout(PATIENCE)
        yield ours, theirs


class Counting:
    """A socket, and how often it was read."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.calls = 0
        self.most = 0

    def recv(self, size: int) -> bytes:
        self.calls += 1
        self.most = max(self.most, size)
        return self.sock.recv(size)


def given_now(messages: Iterator[bytes]) -> list[bytes]:
    """What there is without waiting."""
    found = []
    try:
        while True:
            found.append(next(messages))
    except (BlockingIOError, TimeoutError):
        return found


def ended(messages: Iterator[bytes]) -> tuple[list[bytes], FrameError | None]:
    """What there is up to the end, and how that is said; it stays the end."""
    found = []
    fault = None
    try:
        found.extend(messages)
        while True:
            found.append(next(messages))
    except StopIteration:
        pass
    except FrameError as error:
        fault = error
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(messages)
    return found, fault


def said(fault: FrameError | None) -> tuple[type[FrameError], str, int] | None:
    return fault and (type(fault), fault.reason, fault.offset)


def expected(verdict: Verdict) -> tuple[type[FrameError], str, int] | None:
    reason = verdict.reason
    return reason and (FAULTS[reason], reason, verdict.offset)  # type: ignore[return-value]


def spec_of(wanted: Framing) -> dict[str, Any]:
    """The framing as `messages` takes it."""
    unlimited = wanted.kind in ("raw", "fixed")
    return {"spec": wanted.spec, "max_frame": None if unlimited else wanted.max_frame}


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Framing, list[bytes]]:
    wanted = draw(strategies.framings())
    stream = draw(strategies.streams(wanted))
    return wanted, draw(strategies.cuts(stream))


# -- any stream, any cuts


def cut_by_cut(
    twin: Any, wanted: Framing, cuts: list[bytes]
) -> tuple[list[bytes], FrameError | None, Any]:
    """What is given, how it ends, and the codec. Each cut is a `recv` of its own."""
    with pair(timeout=0) as (ours, theirs):
        messages = framing.messages(theirs, backend=twin.name, **spec_of(wanted))
        found = []
        so_far = b""
        for cut in cuts:
            ours.sendall(cut)
            so_far += cut
            try:
                found.extend(messages)  # up to what is raised
            except BlockingIOError:
                assert wanted.kind == "raw" or found == judge(wanted, so_far).messages
            except FrameError as fault:
                assert ended(messages) == ([], None)
                return found, fault, messages.codec
        ours.shutdown(socket.SHUT_WR)
        more, at_the_end = ended(messages)
        return found + more, at_the_end, messages.codec


@given(conversations())
def test_every_way_of_cutting_gives_what_the_reference_says(
    twin: Any, conversation: tuple[Framing, list[bytes]]
) -> None:
    wanted, cuts = conversation
    found, fault, _ = cut_by_cut(twin, wanted, cuts)
    verdict = judge(wanted, b"".join(cuts), ended=True)
    whole = [cut for cut in cuts if cut] if wanted.kind == "raw" else verdict.messages
    assert (found, said(fault)) == (whole, expected(verdict))


@given(conversations())
def test_a_stream_that_has_ended_is_read_to_its_end(
    twin: Any, conversation: tuple[Framing, list[bytes]]
) -> None:
    wanted, cuts = conversation
    stream = b"".join(cuts)
    with pair() as (ours, theirs):
        ours.sendall(stream)
        ours.shutdown(socket.SHUT_WR)
        found, fault = ended(framing.messages(theirs, backend=twin.name, **spec_of(wanted)))
    verdict = judge(wanted, stream, ended=True)
    assert (found, said(fault)) == (verdict.messages, expected(verdict))


@given(conversations())
def test_both_twins_say_the_same(
    twins: tuple[Any, Any], conversation: tuple[Framing, list[bytes]]
) -> None:
    """The words of the fault and the counts too."""
    wanted, cuts = conversation
    seen = []
    for twin in twins:
        found, fault, codec = cut_by_cut(twin, wanted, cuts)
        seen.append((found, str(fault), codec.messages, codec.offset, codec.pending))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("spec", ["line", "u32", "varint", "netstring", "fixed:1000000"])
def test_a_message_is_larger_than_any_recv(spec: str, twin: Any) -> None:
    message = bytes(range(1, 9)) * 125_000
    frame = framing.codec(spec, 10**6).encode(message)
    with pair(timeout=0) as (ours, theirs):
        messages = framing.messages(theirs, spec, 10**6, twin.name)
        found = []
        for start in range(0, 2 * len(frame), ROOM):
            ours.sendall((frame * 2)[start : start + ROOM])
            found += given_now(messages)
        assert found == [message] * 2


# -- when they are given


def test_a_message_is_given_as_soon_as_it_is_complete(twin: Any) -> None:
    with pair(timeout=0) as (ours, theirs):
        messages = framing.messages(theirs, backend=twin.name)
        ours.sendall(b"one\ntw")
        assert given_now(messages) == [b"one"]
        ours.sendall(b"o")
        assert given_now(messages) == []
        ours.sendall(b"\n")
        assert given_now(messages) == [b"two"]


def test_nothing_is_read_before_it_is_asked_for(twin: Any) -> None:
    with pair(timeout=0) as (ours, theirs):
        counting = Counting(theirs)
        ours.sendall(b"x\n")
        framing.messages(counting, backend=twin.name)
        assert counting.calls == 0
        assert theirs.recv(10) == b"x\n"


def test_nothing_is_read_while_messages_wait(twin: Any) -> None:
    with pair(timeout=0) as (ours, theirs):
        counting = Counting(theirs)
        messages = framing.messages(counting, backend=twin.name)
        ours.sendall(b"1\n2\n3\n")
        assert next(messages) == b"1"
        ours.sendall(b"4\n")
        assert [next(messages), next(messages)] == [b"2", b"3"]
        assert counting.calls == 1
        assert next(messages) == b"4"
        assert counting.calls == 2


def test_what_came_before_a_fault_is_given_before_it(twin: Any) -> None:
    """Even where one `recv` brought all of it; and nothing is read after the fault."""
    with pair(timeout=0) as (ours, theirs):
        counting = Counting(theirs)
        messages = framing.messages(counting, "netstring", backend=twin.name)
        ours.sendall(b"1:a,1:b,x")
        assert [next(messages), next(messages)] == [b"a", b"b"]
        with pytest.raises(FrameCorrupt) as caught:
            next(messages)
        assert (caught.value.reason, caught.value.offset) == ("corrupt", 8)
        ours.sendall(b"1:c,")
        assert ended(messages) == ([], None)
        assert counting.calls == 1
        assert theirs.recv(10) == b"1:c,"


def test_after_the_end_nothing_is_read(twin: Any) -> None:
    with pair() as (ours, theirs):
        counting = Counting(theirs)
        messages = framing.messages(counting, backend=twin.name)
        ours.sendall(b"last\n")
        ours.shutdown(socket.SHUT_WR)
        assert ended(messages) == ([b"last"], None)
        assert counting.calls == 2


@pytest.mark.parametrize("timeout", [0, 0.001], ids=["non-blocking", "timeout"])
def test_what_the_socket_raises_loses_nothing(timeout: float, twin: Any) -> None:
    frame = framing.codec("u16").encode(b"message")
    with pair(timeout) as (ours, theirs):
        messages = framing.messages(theirs, "u16", backend=twin.name)
        for octet in frame[:-1]:
            ours.sendall(bytes([octet]))
            with pytest.raises(TimeoutError if timeout else BlockingIOError):
                next(messages)
        ours.sendall(frame[-1:])
        assert next(messages) == b"message"


def test_a_reset_comes_through_after_what_came_before_it(twin: Any) -> None:
    with tcp_pair() as (ours, theirs):
        messages = framing.messages(theirs, backend=twin.name)
        ours.sendall(b"one\ntwo\nthr")
        assert next(messages) == b"one"
        abort(ours)
        assert next(messages) == b"two"
        with pytest.raises(ConnectionResetError):
            next(messages)


def test_for_takes_them_until_the_peer_has_said_all(twin: Any) -> None:
    with tcp_pair() as (ours, theirs):
        ours.sendall(b"a\nb\n\nc")
        ours.shutdown(socket.SHUT_WR)
        assert list(framing.messages(theirs, backend=twin.name)) == [b"a", b"b", b"", b"c"]


def test_anything_that_reads_like_a_socket_will_do(twin: Any) -> None:
    class Script:
        def __init__(self, *pieces: bytes) -> None:
            self.pieces = list(pieces)

        def recv(self, size: int) -> bytes:
            return self.pieces.pop(0) if self.pieces else b""

    messages = framing.messages(Script(b"a", b"b\nc", b"\n"), backend=twin.name)
    assert ended(messages) == ([b"ab", b"c"], None)


# -- the tail


@pytest.mark.parametrize(
    ("spec", "stream", "messages"),
    [
        ("line", b"a\nb", [b"a", b"b"]),
        ("line", b"a\nb\r", [b"a", b"b\r"]),
        ("line", b"a\n", [b"a"]),
        ("line", b"", []),
        ("delimiter:0d0a", b"a\r\nb\r", [b"a", b"b\r"]),
        ("delimiter:6162", b"a", [b"a"]),
        ("any:0d,0a", b"a\r\nb", [b"a", b"", b"b"]),
        ("raw", b"a\nb", [b"a\nb"]),
    ],
)
def test_the_tail_is_a_message_where_an_end_can_complete_one(
    spec: str, stream: bytes, messages: list[bytes], twin: Any
) -> None:
    with pair() as (ours, theirs):
        ours.sendall(stream)
        ours.shutdown(socket.SHUT_WR)
        assert ended(framing.messages(theirs, spec, backend=twin.name)) == (messages, None)


@pytest.mark.parametrize(
    ("spec", "whole", "rest"),
    [
        ("fixed:2", b"ab", b"c"),
        ("u8", b"\1a", b"\1"),
        ("u16le", b"\1\0a", b"\1"),
        ("length:width=1,offset=1", b"x\1a", b"x"),
        ("varint", b"\1a", b"\x80"),
        ("netstring", b"1:a,", b"1:a"),
    ],
)
def test_half_a_frame_at_the_end_is_a_fault(
    spec: str, whole: bytes, rest: bytes, twin: Any
) -> None:
    with pair() as (ours, theirs):
        ours.sendall(whole + rest)
        ours.shutdown(socket.SHUT_WR)
        found, fault = ended(framing.messages(theirs, spec, backend=twin.name))
    assert len(found) == 1
    assert said(fault) == (FrameTruncated, "truncated", len(whole))


# -- limits


@pytest.mark.parametrize("kind", ["delimiter", "any", "length", "varint", "netstring"])
def test_a_message_is_as_long_as_max_frame_and_no_longer(kind: str, twin: Any) -> None:
    wanted = Framing(kind, 5, delimiter=b"\r\n", width=2)
    with pair() as (ours, theirs):
        messages = framing.messages(theirs, wanted.spec, 5, twin.name)
        ours.sendall(wire(wanted, b"12345") + wire(wanted, b"123456"))
        assert next(messages) == b"12345"
        with pytest.raises(FrameTooLong, match=r"longer than max_frame \(5 bytes\)"):
            next(messages)


def test_a_flood_without_an_end_is_not_held(twin: Any) -> None:
    """What is read of it is the limit and a `recv`, at most."""
    with pair(timeout=0) as (ours, theirs):
        counting = Counting(theirs)
        messages = framing.messages(counting, "line", 1000, twin.name)
        ours.sendall(b"x" * ROOM)
        with pytest.raises(FrameTooLong):
            next(messages)
        assert messages.codec.pending == 0
        assert len(theirs.recv(ROOM)) >= ROOM - counting.calls * counting.most
        assert counting.calls == 1
        assert counting.most <= 65_536


def test_the_default_limit_is_what_the_codec_has(twin: Any) -> None:
    with pair() as (_, theirs):
        assert framing.messages(theirs, backend=twin.name).codec.max_frame == 65_536
        assert framing.messages(theirs, "u8", backend=twin.name).codec.max_frame == 255
        assert framing.messages(theirs, "fixed:9", backend=twin.name).codec.max_frame == 9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lines",), "unknown framing"),
        (("line", 0), "max_frame must be a whole number"),
        (("u8", 256), "u8 announces at most 255 bytes"),
        (("fixed:9", 8), "fixed:9 needs a max_frame of 9"),
        (("line", None, "fast"), "unknown backend"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(arguments: tuple[Any, ...], words: str) -> None:
    with pair() as (_, theirs), pytest.raises(ConfigError, match=words):
        framing.messages(theirs, *arguments)


def test_the_codec_is_of_the_twin_that_was_asked_for(twin: Any) -> None:
    with pair(timeout=0) as (ours, theirs):
        messages = framing.messages(theirs, backend=twin.name)
        assert type(messages.codec) is twin.DelimiterCodec
        ours.sendall(b"one\ntw")
        assert given_now(messages) == [b"one"]
        codec = messages.codec
        assert (codec.messages, codec.offset, codec.pending, codec.error) == (1, 4, 2, None)


# -- sending


@given(st.data())
def test_what_is_sent_is_received(twin: Any, data: st.DataObject) -> None:
    wanted = data.draw(strategies.framings(FRAMED))
    said = data.draw(st.lists(strategies.payloads(wanted), max_size=5))
    with pair() as (ours, theirs):
        here = framing.connection(ours, backend=twin.name, **spec_of(wanted))
        sent = []
        for message in said:
            try:
                here.send(message)
            except ValueError:
                continue
            sent.append(message)
        ours.shutdown(socket.SHUT_WR)
        found = ended(framing.messages(theirs, backend=twin.name, **spec_of(wanted)))
    assert found == (sent, None)


def test_one_connection_reads_and_sends(twin: Any) -> None:
    with tcp_pair() as (ours, theirs):
        here = framing.connection(ours, "u16", backend=twin.name)
        there = framing.connection(theirs, "u16", backend=twin.name)
        here.send(b"one")
        here.send(memoryview(b"two"))
        there.send(next(there) + next(there))
        assert next(here) == b"onetwo"
        ours.shutdown(socket.SHUT_WR)
        assert ended(there) == ([], None)
        there.send(b"still")
        assert next(here) == b"still"


class Sluggish:
    """A socket that takes a byte at a time, and each other time none."""

    def __init__(self) -> None:
        self.taken = b""
        self.calls = 0

    def recv(self, size: int) -> bytes:
        raise AssertionError("nobody asked")

    def send(self, data: memoryview) -> int:
        self.calls += 1
        if self.calls % 2:
            raise BlockingIOError
        self.taken += data[:1]
        return 1


def test_what_is_sent_in_part_is_sent_on(twin: Any) -> None:
    sluggish = Sluggish()
    here = framing.connection(sluggish, "u8", backend=twin.name)
    with pytest.raises(BlockingIOError):
        here.send(b"ab")
    for left in (3, 2):
        assert here.unsent == left
        with pytest.raises(ValueError, match=rf"{left} bytes of the message before are unsent"):
            here.send(b"cd")
        with pytest.raises(BlockingIOError):
            here.flush()
    assert (here.unsent, sluggish.taken) == (1, b"\2a")
    here.flush()
    assert (here.unsent, sluggish.taken) == (0, b"\2ab")
    with pytest.raises(BlockingIOError):
        here.send(b"")
    here.flush()
    here.flush()
    assert sluggish.taken == b"\2ab\0"


@pytest.mark.parametrize("timeout", [0, 0.001], ids=["non-blocking", "timeout"])
def test_a_message_larger_than_the_kernel_takes_is_sent_whole(timeout: float, twin: Any) -> None:
    message = bytes(range(256)) * 4000
    with pair(timeout=0) as (ours, theirs):
        ours.settimeout(timeout)
        here = framing.connection(ours, "u32", len(message), twin.name)
        there = framing.messages(theirs, "u32", len(message), twin.name)
        step, found = lambda: here.send(message), []
        for _ in range(10_000):
            with suppress(BlockingIOError, TimeoutError):
                step()
            step = here.flush
            found += given_now(there)
            if found:
                break
        assert found == [message]
        assert here.unsent == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [("line", b"a\nb"), ("u8", bytes(256)), ("fixed:2", b"abc"), ("raw", b""), ("any:3b", b";")],
)
def test_what_cannot_be_said_is_not_begun(spec: str, message: bytes, twin: Any) -> None:
    with pair(timeout=0) as (ours, theirs):
        here = framing.connection(ours, spec, backend=twin.name)
        with pytest.raises(ValueError, match=r"."):
            here.send(message)
        assert here.unsent == 0
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


def test_a_peer_that_has_gone_is_the_sockets_to_tell(twin: Any) -> None:
    with pair() as (ours, theirs):
        theirs.close()
        with pytest.raises(BrokenPipeError):
            framing.connection(ours, backend=twin.name).send(b"hello")


def test_messages_are_of_any_contiguous_buffer(twin: Any) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"-" * 10 + b"mapped")
        file.flush()
        with mmap.mmap(file.fileno(), 0) as mapped, memoryview(mapped) as view, pair() as both:
            here, there = (framing.connection(sock, "u8", backend=twin.name) for sock in both)
            with view[10:] as tail:
                here.send(tail)
            here.send(array.array("H", [0x6161, 0x6262]))
            here.send(bytearray(b"grown"))
            with pytest.raises(BufferError, match="contiguous"):
                here.send(memoryview(b"abcd")[::2])
            assert [next(there), next(there), next(there)] == [b"mapped", b"aabb", b"grown"]
