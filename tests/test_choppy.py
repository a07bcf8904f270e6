"""ChoppySocket: what its plan says happens, nothing else does, and no byte is lost."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import selectors
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from processes import PATIENCE, read_exactly, read_to_end

import fastecho
from fastecho import framing
from fastecho.testing import ChoppySocket, chops

Pair = tuple[ChoppySocket, socket.socket]
ERRORS = [BlockingIOError, InterruptedError, TimeoutError]


@pytest.fixture
def pair() -> Iterator[Callable[..., Pair]]:
    """Makes TCP connections, whose one end is choppy."""
    opened: list[socket.socket] = []

    def make(*arguments: Any, **options: Any) -> Pair:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            one = socket.create_connection(listener.getsockname(), PATIENCE)
            other, _ = listener.accept()
        other.settimeout(PATIENCE)
        opened.extend((choppy := ChoppySocket(one, *arguments, **options), other))
        return choppy, other

    yield make
    for sock in opened:
        sock.close()


def local(*arguments: Any, **options: Any) -> Pair:
    one, other = socket.socketpair()
    other.settimeout(PATIENCE)
    return ChoppySocket(one, *arguments, **options), other


# -- receiving


def test_steps_and_then(pair: Callable[..., Pair]) -> None:
    sock, peer = pair([3, 2], then=4)
    peer.sendall(b"0123456789abc")
    assert [sock.recv(100) for _ in range(4)] == [b"012", b"34", b"5678", b"9abc"]


def test_with_no_plan_it_is_a_byte_at_a_time(pair: Callable[..., Pair]) -> None:
    sock, peer = pair()
    peer.sendall(b"ab")
    assert (sock.recv(9), sock.recv(9)) == (b"a", b"b")
    assert sock.send(b"cd") == 1


def test_the_rest_may_be_untouched(pair: Callable[..., Pair]) -> None:
    sock, peer = pair([1], then=None)
    peer.sendall(b"0123456789")
    assert sock.recv(100) == b"0"
    assert sock.recv(100) == b"123456789"
    assert sock.send(b"abc") == 3


def test_a_step_is_at_most(pair: Callable[..., Pair]) -> None:
    sock, peer = pair([5, 5])
    peer.sendall(b"0123456789")
    assert sock.recv(2) == b"01"
    assert sock.recv(100) == b"23456"


def receivers() -> list[Any]:
    """Each way to receive: of a socket and a size, the bytes."""

    def recv_into(sock: socket.socket, size: int) -> bytes:
        buffer = bytearray(size)
        return bytes(buffer[: sock.recv_into(buffer)])

    def recvfrom_into(sock: socket.socket, size: int) -> bytes:
        buffer = bytearray(size + 3)
        return bytes(buffer[: sock.recvfrom_into(buffer, size)[0]])

    def recvmsg_into(sock: socket.socket, size: int) -> bytes:
        buffers = [bytearray(1), bytearray(0), bytearray(size - 1)]
        came = sock.recvmsg_into(buffers)[0]
        return b"".join(buffers)[:came]

    return [
        pytest.param(lambda sock, size: sock.recv(size), id="recv"),
        pytest.param(lambda sock, size: sock.recvfrom(size)[0], id="recvfrom"),
        pytest.param(lambda sock, size: sock.recvmsg(size)[0], id="recvmsg"),
        pytest.param(recv_into, id="recv_into"),
        pytest.param(recvfrom_into, id="recvfrom_into"),
        pytest.param(recvmsg_into, id="recvmsg_into"),
    ]


@pytest.mark.parametrize("receive", receivers())
def test_every_way_to_receive_follows_the_plan(
    receive: Callable[[socket.socket, int], bytes],
) -> None:
    sock, peer = local([3, BlockingIOError, 1], then=None)
    with sock, peer:
        peer.sendall(b"0123456789")
        assert receive(sock, 8) == b"012"
        with pytest.raises(BlockingIOError):
            receive(sock, 8)
        assert receive(sock, 8) == b"3"
        assert receive(sock, 5) == b"45678"
        assert receive(sock, 5) == b"9"


def test_a_peek_leaves_the_step() -> None:
    sock, peer = local([2, 1])
    with sock, peer:
        peer.sendall(b"abcd")
        assert sock.recv(9, socket.MSG_PEEK) == b"ab"
        assert sock.recv(9) == b"ab"
        assert sock.recv(9) == b"c"


def test_nothing_to_read_leaves_the_step() -> None:
    sock, peer = local([3, 1])
    with sock, peer:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(9)
        assert sock.recv(0, socket.MSG_DONTWAIT) == b""
        peer.sendall(b"abcd")
        assert sock.recv(9) == b"abc"


# -- errors


@pytest.mark.parametrize(
    ("step", "raised", "number"),
    [
        (BlockingIOError, BlockingIOError, errno.EAGAIN),
        (InterruptedError, InterruptedError, errno.EINTR),
        (TimeoutError, TimeoutError, None),
        (ConnectionResetError, ConnectionResetError, errno.ECONNRESET),
        (BrokenPipeError, BrokenPipeError, errno.EPIPE),
        (OSError(errno.EHOSTUNREACH, "far"), OSError, errno.EHOSTUNREACH),
        (OSError(errno.EINTR, "now"), InterruptedError, errno.EINTR),
        (ssl.SSLWantReadError, ssl.SSLWantReadError, None),
    ],
)
def test_what_is_raised(step: Any, raised: type[OSError], number: int | None) -> None:
    sock, peer = local([step])
    with sock, peer:
        peer.sendall(b"ab")
        with pytest.raises(raised) as caught:
            sock.recv(9)
        assert caught.value.errno == number


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_takes_nothing(error: type[OSError]) -> None:
    sock, peer = local([1, error, 1], [1, error, 2])
    with sock, peer:
        peer.sendall(b"ab")
        assert sock.recv(9) == b"a"
        with pytest.raises(error):
            sock.recv(9)
        assert sock.recv(9) == b"b"
        assert sock.send(b"xyz") == 1
        with pytest.raises(error):
            sock.send(b"yz")
        assert sock.send(b"yz") == 2
        assert read_exactly(peer, 3) == b"xyz"


@pytest.mark.parametrize("error", [ConnectionResetError, BrokenPipeError])
@pytest.mark.parametrize("plans", [([1], []), ([], [1])])
def test_a_reset_is_for_good(error: type[OSError], plans: Any, pair: Callable[..., Pair]) -> None:
    plan = [error, *repeat(1, 20)]
    sock, peer = pair(*(plan if steps else [] for steps in plans))
    peer.sendall(b"lost")
    calls: list[Callable[[], object]] = [
        lambda: sock.recv(9),
        lambda: sock.send(b"a"),
        lambda: sock.sendall(b"a"),
        lambda: sock.recvmsg(9),
    ]
    if plans[1]:
        calls.reverse()
        del calls[0]
    for call in calls * 2:
        with pytest.raises(error):
            call()


def test_a_reset_reaches_the_peer_and_whoever_waits(pair: Callable[..., Pair]) -> None:
    sock, peer = pair([], [ConnectionResetError])
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        assert not selector.select(0)
        with pytest.raises(ConnectionResetError):
            sock.send(b"a")
        assert selector.select(PATIENCE)
    sock.close()
    with pytest.raises(ConnectionResetError):
        peer.recv(9)


# -- sending


def senders() -> list[Any]:
    """Each way to send some: of a socket and bytes, how many went."""
    return [
        pytest.param(lambda sock, data: sock.send(data), id="send"),
        pytest.param(lambda sock, data: sock.sendmsg([data]), id="sendmsg"),
        pytest.param(
            lambda sock, data: sock.sendmsg([data[:1], b"", memoryview(data)[1:]]), id="gather"
        ),
    ]


@pytest.mark.parametrize("send", senders())
def test_every_way_to_send_follows_the_plan(send: Callable[[socket.socket, bytes], int]) -> None:
    sock, peer = local((), [3, BlockingIOError, 1], then=None)
    with sock, peer:
        assert send(sock, b"012345") == 3
        with pytest.raises(BlockingIOError):
            send(sock, b"345")
        assert send(sock, b"345") == 1
        assert send(sock, b"456789") == 6
        assert read_exactly(peer, 10) == b"0123456789"


def test_sendall_is_short_sends() -> None:
    sock, peer = local((), [1, InterruptedError, 2, BlockingIOError, 1])
    with sock, peer:
        sock.sendall(memoryview(b"0123456789"))
        assert read_exactly(peer, 10) == b"0123456789"


def test_sendall_does_not_wait_where_the_socket_must_not() -> None:
    sock, peer = local((), [1, BlockingIOError])
    with sock, peer:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.sendall(b"abc")
        assert peer.recv(9) == b"a"


def test_what_sendall_sent_before_a_timeout_was_sent() -> None:
    sock, peer = local((), [2, TimeoutError])
    with sock, peer:
        with pytest.raises(TimeoutError, match="timed out"):
            sock.sendall(b"abc")
        assert peer.recv(9) == b"ab"


@pytest.mark.parametrize("step", [BlockingIOError, ConnectionResetError])
def test_an_error_does_not_hold_the_buffer(step: type[OSError]) -> None:
    sock, peer = local((), [step, step])
    data = bytearray(b"abc")
    with sock, peer:
        sock.setblocking(False)
        for send in (sock.send, sock.sendall):
            with pytest.raises(step):
                send(data)
            del data[:1]


def test_a_size_is_a_whole_number() -> None:
    sock, peer = local()
    with sock, peer, pytest.raises(TypeError):
        sock.recv(1.5)  # type: ignore[arg-type]


def test_a_file_is_sent_by_plan() -> None:
    sock, peer = local((), [2, BlockingIOError, 3], then=None)
    with sock, peer:
        assert sock.sendfile(io.BytesIO(b"0123456789"), 1) == 9
        assert read_exactly(peer, 9) == b"123456789"


# -- files over it


def test_a_file_reads_by_plan() -> None:
    sock, peer = local([1, InterruptedError, 2, 4])
    with sock, peer, sock.makefile("rb") as file:
        peer.sendall(b"one\ntwo\n")
        peer.close()
        assert list(file) == [b"one\n", b"two\n"]


def test_a_file_writes_by_plan() -> None:
    sock, peer = local((), [1, InterruptedError, 2])
    with sock, peer:
        with sock.makefile("w") as file:
            file.write("caf\u00e9\n")
        sock.close()
        assert read_to_end(peer) == "caf\u00e9\n".encode()


def test_a_file_gives_the_timeout() -> None:
    sock, peer = local([TimeoutError])
    with sock, peer, sock.makefile("rb") as file, pytest.raises(TimeoutError):
        file.readline()


# -- the rest is the socket's own


def test_it_takes_the_socket_over(pair: Callable[..., Pair]) -> None:
    plain, peer = socket.socketpair()
    plain.settimeout(2.5)
    number = plain.fileno()
    with ChoppySocket(plain) as sock, peer:
        assert plain.fileno() == -1
        assert (sock.fileno(), sock.gettimeout()) == (number, 2.5)
        assert isinstance(sock, socket.socket)
        assert (sock.family, sock.type, sock.proto) == (plain.family, plain.type, plain.proto)
    choppy, peer = pair()
    assert choppy.getpeername() == peer.getsockname()
    choppy.shutdown(socket.SHUT_WR)
    assert peer.recv(9) == b""


def test_closed_is_closed_whatever_the_plan() -> None:
    sock, peer = local([BlockingIOError], [3])
    with peer:
        sock.close()
        for call in (lambda: sock.recv(1), lambda: sock.send(b"a")):
            with pytest.raises(OSError, match="Bad file descriptor"):
                call()


def test_a_duplicate_is_plain() -> None:
    sock, peer = local([1, 1])
    with sock, peer, sock.dup() as plain:
        peer.sendall(b"abc")
        assert sock.recv(9) == b"a"
        assert plain.recv(9) == b"bc"


def test_descriptors_pass_whole() -> None:
    sock, peer = local([1, 1], [1, 1])
    with sock, peer, open(os.devnull, "rb") as file:
        socket.send_fds(peer, [b"x"], [file.fileno()])
        data, numbers, _, _ = socket.recv_fds(sock, 9, 1)
        os.close(numbers[0])
        assert data == b"x"
        assert socket.send_fds(sock, [b"yz"], [file.fileno()]) == 1


def test_what_is_more_than_a_socket_is_refused() -> None:
    sock, peer = local()
    with sock, peer, pytest.raises(TypeError, match=r"a plain socket\.socket is needed"):
        ChoppySocket(sock)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(ValueError, match="a datagram cannot come in pieces"):
            ChoppySocket(datagrams)
        assert datagrams.fileno() >= 0


@pytest.mark.parametrize(
    ("step", "error", "text"),
    [
        (0, ValueError, "at least 1 byte pass, not 0"),
        ("EAGAIN", TypeError, "a number of bytes or an OSError, not 'EAGAIN'"),
        (ValueError, TypeError, "a number of bytes or an OSError"),
    ],
)
def test_a_step_that_is_none_is_found_in_its_turn(
    step: Any, error: type[Exception], text: str
) -> None:
    sock, peer = local([1, step, 1])
    with sock, peer:
        peer.sendall(b"ab")
        assert sock.recv(9) == b"a"
        with pytest.raises(error, match=text):
            sock.recv(9)
        assert sock.recv(9) == b"b"


def test_what_holds_then_is_looked_at_first() -> None:
    one, other = socket.socketpair()
    with one, other:
        with pytest.raises(ValueError, match="at least 1 byte pass, not 0"):
            ChoppySocket(one, then=0)
        assert one.fileno() >= 0


# -- no byte is lost


@given(
    st.binary(max_size=300),
    st.binary(max_size=300),
    chops(ERRORS, max_size=50),
    chops(ERRORS, max_size=50),
    st.sampled_from([1, 7, None]),
)
def test_whatever_the_plans(
    sent: bytes, received: bytes, receives: list[Any], sends: list[Any], then: int | None
) -> None:
    sock, peer = local(receives, sends, then)
    with sock, peer:
        peer.sendall(received)
        peer.shutdown(socket.SHUT_WR)
        came, left = b"", sent
        more = True
        while more:
            try:
                more = bool(data := sock.recv(64))
                came += data
            except tuple(ERRORS):
                continue
        while left:
            try:
                left = left[sock.send(left) :]
            except tuple(ERRORS):
                continue
        sock.close()
        assert came == received
        assert read_to_end(peer) == sent


def test_a_correct_client_survives_all_of_it() -> None:
    with fastecho.running(framing="u32", prefix="") as server:
        plain = socket.create_connection(server.tcp_address, PATIENCE)
        with ChoppySocket(plain, [1, 2, TimeoutError, 3, InterruptedError], [1, 5]) as sock:
            encode = framing.codec("u32").encode
            sock.sendall(encode(b"hello") + encode(b"") + encode(bytes(300)))
            replies = framing.messages(sock, "u32")
            got = []
            while len(got) < 3:
                try:
                    got.append(next(replies))
                except (TimeoutError, InterruptedError):
                    continue
        assert got == [b"hello", b"", bytes(300)]


# -- asyncio


def test_asyncio_sees_every_piece(pair: Callable[..., Pair]) -> None:
    sock, peer = pair([3, BlockingIOError, 2, InterruptedError], [1, BlockingIOError, 4], then=5)

    async def talk() -> list[bytes]:
        reader, writer = await sock.open_streams()
        writer.write(b"a request")
        await writer.drain()
        assert await asyncio.to_thread(read_exactly, peer, 9) == b"a request"
        peer.sendall(b"0123456789abc")
        peer.shutdown(socket.SHUT_WR)
        came = []
        while data := await reader.read(100):
            came.append(data)
        writer.close()
        await writer.wait_closed()
        return came

    assert asyncio.run(talk()) == [b"012", b"34", b"56789", b"abc"]


@pytest.mark.parametrize("error", [ConnectionResetError, TimeoutError])
def test_an_error_ends_a_connection_of_asyncio(
    error: type[OSError], pair: Callable[..., Pair]
) -> None:
    sock, peer = pair([2, error])
    peer.sendall(b"abcd")

    async def talk() -> None:
        reader, writer = await sock.open_streams()
        assert await reader.read(9) == b"ab"
        with pytest.raises(error):
            await reader.read(9)
        writer.close()
        with pytest.raises(error):
            await writer.wait_closed()

    asyncio.run(talk())
    if error is ConnectionResetError:
        with pytest.raises(ConnectionResetError):
            peer.recv(9)


def test_protocols_see_every_piece(pair: Callable[..., Pair]) -> None:
    sock, peer = pair([1, 2, 3])
    sock.setblocking(False)
    peer.sendall(b"abcdef")
    peer.close()
    came: list[bytes] = []

    class Receiver(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            came.append(data)

        def connection_lost(self, error: Exception | None) -> None:
            ended.set()

    async def receive() -> None:
        nonlocal ended
        ended = asyncio.Event()
        await asyncio.get_running_loop().create_connection(Receiver, sock=sock)
        await asyncio.wait_for(ended.wait(), PATIENCE)

    ended: asyncio.Event
    asyncio.run(receive())
    assert came == [b"a", b"bc", b"def"]


def test_tls_of_asyncio_follows_the_plan() -> None:
    def anonymous(side: int) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # 1.3 needs a certificate
        context.set_ciphers("AECDH-AES256-SHA@SECLEVEL=0")
        return context

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    async def talk() -> bytes:
        context = anonymous(ssl.PROTOCOL_TLS_SERVER)
        async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
            sock = ChoppySocket(
                socket.create_connection(server.sockets[0].getsockname()),
                chain([BlockingIOError], repeat(7, 20)),
                chain([BlockingIOError], repeat(5, 20)),
            )
            sock.setblocking(False)
            context = anonymous(ssl.PROTOCOL_TLS_CLIENT)
            reader, writer = await asyncio.open_connection(
                sock=sock, ssl=context, server_hostname=""
            )
            writer.write(b"a secret\n")
            line = await reader.readline()
            writer.close()
            await writer.wait_closed()
            return line

    assert asyncio.run(talk()) == b"a secret\n"


def test_a_loop_that_would_go_round_the_plan_is_refused(
    pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    sock, _ = pair()

    async def talk() -> None:
        monkeypatch.setattr(asyncio, "get_running_loop", object)
        await sock.open_streams()

    with pytest.raises(TypeError, match="would go round the plan"):
        asyncio.run(talk())


# -- trio


def test_trio_sees_every_piece(pair: Callable[..., Pair]) -> None:
    sock, peer = pair([3, BlockingIOError, 2, InterruptedError], [1, BlockingIOError, 4], then=5)

    async def talk() -> list[bytes]:
        async with sock.trio_stream() as stream:
            await stream.send_all(b"a request")
            await stream.send_eof()
            assert await trio.to_thread.run_sync(read_to_end, peer) == b"a request"
            peer.sendall(b"0123456789abc")
            peer.shutdown(socket.SHUT_WR)
            return [data async for data in stream]

    assert trio.run(talk) == [b"012", b"34", b"56789", b"abc"]


@pytest.mark.parametrize("error", [ConnectionResetError, TimeoutError])
def test_an_error_breaks_a_stream_of_trio(error: type[OSError], pair: Callable[..., Pair]) -> None:
    sock, peer = pair([2, error])
    peer.sendall(b"abcd")

    async def talk() -> None:
        async with sock.trio_stream() as stream:
            assert await stream.receive_some(9) == b"ab"
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some(9)

    trio.run(talk)


@pytest.mark.parametrize("then", [1_000, None])  # they send a megabyte
def test_it_is_a_stream_by_trio_s_own_tests(then: int | None) -> None:
    async def make() -> tuple[Any, Any]:
        sock, other = local([BlockingIOError, 2], [InterruptedError, 1], then)
        return sock.trio_stream(), ChoppySocket(other, then=then).trio_stream()

    async def clogged() -> tuple[Any, Any]:
        streams = await make()
        for stream in streams:
            for size in (65_536, 1):
                with suppress(BlockingIOError):
                    while socket.socket.send(stream.socket, bytes(size)):
                        pass
        return streams

    trio.run(trio.testing.check_half_closeable_stream, make, clogged)


def test_a_thread_each_way(pair: Callable[..., Pair]) -> None:
    sock, peer = pair([3, 1], [2, 5], then=7)
    data = bytes(range(256)) * 20
    echo = threading.Thread(target=lambda: peer.sendall(read_exactly(peer, len(data))))
    send = threading.Thread(target=sock.sendall, args=(data,))
    echo.start()
    send.start()
    assert read_exactly(sock, len(data)) == data
    send.join()
    echo.join()
