"""`fastecho.framing.async_messages` and `async_connection`: messages over asyncio's streams."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from processes import PATIENCE, abort
from reference import Framing, judge
from test_messages import FRAMED, conversations, expected, said, spec_of

from fastecho import ConfigError, FrameError, framing
from fastecho.errors import FrameTooLong, FrameTruncated

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One loop for all: each has descriptors of its own."""
    with asyncio.Runner() as runner:
        yield runner


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Streams, Streams]]:
    """Both ends of a connection."""
    socks = socket.socketpair()
    ends = [await asyncio.open_unix_connection(sock=sock) for sock in socks]
    async with asyncio.timeout(PATIENCE):
        yield ends[0], ends[1]
    for _, writer in ends:
        writer.transport.abort()
    await asyncio.sleep(0)


async def given_now(messages: AsyncIterator[bytes]) -> tuple[list[bytes], FrameError | None]:
    """What there is without waiting, and the fault behind it. The wait is cancelled."""
    found: list[bytes] = []
    try:
        while True:
            task = asyncio.ensure_future(anext(messages))
            for _ in range(3):
                await asyncio.sleep(0)
            task.cancel()
            found.append(await task)
    except asyncio.CancelledError:
        return found, None
    except FrameError as fault:
        return found, fault


async def ended(messages: AsyncIterator[bytes]) -> tuple[list[bytes], FrameError | None]:
    """What there is up to the end, and how that is said; it stays the end."""
    found: list[bytes] = []
    fault = None
    try:
        async for message in messages:
            found.append(message)  # noqa: PERF401 -- up to what is raised
    except FrameError as error:
        fault = error
    for _ in range(3):
        with pytest.raises(StopAsyncIteration):
            await anext(messages)
    return found, fault


# -- any stream, any cuts


@given(conversation=conversations())
def test_every_way_of_cutting_gives_what_the_reference_says(
    twin: Any, runner: asyncio.Runner, conversation: tuple[Framing, list[bytes]]
) -> None:
    """Each wait for what has not come is cancelled, and costs nothing."""
    wanted, cuts = conversation

    async def cut_by_cut() -> tuple[list[bytes], FrameError | None]:
        reader = asyncio.StreamReader()
        messages = framing.async_messages(reader, backend=twin.name, **spec_of(wanted))
        found: list[bytes] = []
        so_far = b""
        for cut in cuts:
            reader.feed_data(cut)
            so_far += cut
            more, fault = await given_now(messages)
            found += more
            if fault is not None:
                assert await ended(messages) == ([], None)
                return found, fault
            assert wanted.kind == "raw" or found == judge(wanted, so_far).messages
        reader.feed_eof()
        more, fault = await ended(messages)
        return found + more, fault

    found, fault = runner.run(cut_by_cut())
    verdict = judge(wanted, b"".join(cuts), ended=True)
    whole = [cut for cut in cuts if cut] if wanted.kind == "raw" else verdict.messages
    assert (found, said(fault)) == (whole, expected(verdict))


@given(data=st.data())
def test_what_is_sent_is_received(twin: Any, runner: asyncio.Runner, data: st.DataObject) -> None:
    wanted = data.draw(strategies.framings(FRAMED))
    messages = data.draw(st.lists(strategies.payloads(wanted), max_size=5))

    async def conversation() -> None:
        async with pair() as (here, there):
            ours = framing.async_connection(*here, backend=twin.name, **spec_of(wanted))
            sent = []
            for message in messages:
                try:
                    await ours.send(message)
                except ValueError:
                    continue
                sent.append(message)
            here[1].write_eof()
            theirs = framing.async_messages(there[0], backend=twin.name, **spec_of(wanted))
            assert await ended(theirs) == (sent, None)

    runner.run(conversation())


# -- reading


def test_nothing_is_read_while_messages_wait(twin: Any, runner: asyncio.Runner) -> None:
    class Script:
        def __init__(self) -> None:
            self.pieces = [b"1\n2\n3", b"\n"]
            self.calls = 0

        async def read(self, size: int) -> bytes:
            self.calls += 1
            return self.pieces.pop(0) if self.pieces else b""

    async def reads() -> None:
        script = Script()
        messages = framing.async_messages(script, backend=twin.name)
        assert script.calls == 0
        assert [await anext(messages), await anext(messages)] == [b"1", b"2"]
        assert script.calls == 1
        assert await ended(messages) == ([b"3"], None)
        assert script.calls == 3  # and no more after the end

    runner.run(reads())


def test_what_came_before_a_fault_is_given_before_it(twin: Any, runner: asyncio.Runner) -> None:
    async def reads() -> None:
        async with pair() as (here, there):
            here[1].write(b"1:a,1:b,x1:c,")
            messages = framing.async_messages(there[0], "netstring", backend=twin.name)
            found, fault = await ended(messages)
            assert found == [b"a", b"b"]
            assert fault is not None
            assert (fault.reason, fault.offset) == ("corrupt", 8)

    runner.run(reads())


def test_half_a_frame_at_the_end_is_a_fault(twin: Any, runner: asyncio.Runner) -> None:
    async def reads() -> None:
        async with pair() as (here, there):
            here[1].write(b"\1a\2b")
            here[1].write_eof()
            found, fault = await ended(framing.async_messages(there[0], "u8", backend=twin.name))
            assert (found, said(fault)) == ([b"a"], (FrameTruncated, "truncated", 2))

    runner.run(reads())


def test_a_flood_without_an_end_is_not_held(twin: Any, runner: asyncio.Runner) -> None:
    async def reads() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(b"x" * 1_000_000)
        messages = framing.async_messages(reader, "line", 1000, twin.name)
        with pytest.raises(FrameTooLong):
            await anext(messages)
        assert messages.codec.pending == 0
        assert len(await reader.read(1_000_000)) >= 900_000

    runner.run(reads())


def test_a_reset_is_the_streams_to_tell(twin: Any, runner: asyncio.Runner) -> None:
    async def reads() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname(), PATIENCE)
            sock, _ = listener.accept()
            reader, writer = await asyncio.open_connection(sock=sock)
            messages = framing.async_messages(reader, backend=twin.name)
            ours.sendall(b"one\ntw")
            assert await anext(messages) == b"one"
            abort(ours)
            with pytest.raises(ConnectionResetError):
                await anext(messages)
            writer.close()
            with pytest.raises(ConnectionResetError):
                await writer.wait_closed()

    runner.run(reads())


def test_a_subprocess_is_a_connection_too(twin: Any, runner: asyncio.Runner) -> None:
    async def asks() -> None:
        process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
        assert process.stdin is not None
        assert process.stdout is not None
        cat = framing.async_connection(process.stdout, process.stdin, "u32", backend=twin.name)
        await cat.send(b"hello")
        assert await anext(cat) == b"hello"
        process.stdin.close()
        assert await ended(cat) == ([], None)
        assert await process.wait() == 0

    runner.run(asks())


# -- sending


def test_what_is_given_up_while_there_is_no_room_is_not_sent(
    twin: Any, runner: asyncio.Runner
) -> None:
    """And what waits to be sent stays below the mark and one message."""

    async def sends() -> None:
        async with pair() as (here, there):
            ours = framing.async_connection(*here, "u32", backend=twin.name)
            transport = here[1].transport
            _, high = transport.get_write_buffer_limits()
            sent = given_up = 0
            while given_up < 3:
                task = asyncio.ensure_future(ours.send(b"%d " % sent + bytes(60_000)))
                for _ in range(3):
                    await asyncio.sleep(0)
                if task.done():
                    sent += 1
                else:
                    task.cancel()
                    given_up += 1
                assert transport.get_write_buffer_size() <= high + 65_536
            transport.write_eof()
            found, fault = await ended(framing.async_messages(there[0], "u32", backend=twin.name))
            assert [int(message.partition(b" ")[0]) for message in found] == list(range(sent))
            assert fault is None

    runner.run(sends())


def test_messages_of_several_tasks_are_not_mixed(twin: Any, runner: asyncio.Runner) -> None:
    async def sends() -> None:
        async with pair() as (here, there):
            ours = framing.async_connection(*here, "line", 200_000, twin.name)
            theirs = framing.async_messages(there[0], "line", 200_000, twin.name)
            texts = [bytes([letter]) * 150_000 for letter in b"abcdefgh"]
            async with asyncio.TaskGroup() as group:
                for text in texts:
                    group.create_task(ours.send(text))
                found = [await anext(theirs) for _ in texts]
            assert sorted(found) == texts

    runner.run(sends())


def test_a_message_is_the_one_that_it_was_when_it_was_sent(
    twin: Any, runner: asyncio.Runner
) -> None:
    async def sends() -> None:
        async with pair() as (here, there):
            ours = framing.async_connection(*here, "u8", backend=twin.name)
            buffer = bytearray(b"one")
            await ours.send(buffer)
            buffer[:] = b"?????"
            with pytest.raises(ValueError, match="longer than max_frame"):
                await ours.send(bytes(256))
            await ours.send(memoryview(b"two"))
            here[1].write_eof()
            messages = framing.async_messages(there[0], "u8", backend=twin.name)
            assert await ended(messages) == ([b"one", b"two"], None)

    runner.run(sends())


def test_a_peer_that_has_gone_is_the_streams_to_tell(twin: Any, runner: asyncio.Runner) -> None:
    async def sends() -> None:
        async with pair() as (here, there):
            ours = framing.async_connection(*here, backend=twin.name)
            there[1].transport.abort()
            assert await here[0].read(1) == b""
            await ours.send(b"nobody")
            with pytest.raises(ConnectionError):
                await ours.send(b"hears")

    runner.run(sends())


def test_what_makes_no_sense_is_said_at_once(runner: asyncio.Runner) -> None:
    async def makes() -> None:
        with pytest.raises(ConfigError, match="unknown framing"):
            framing.async_messages(asyncio.StreamReader(), "lines")

    runner.run(makes())


# -- trio


def test_a_stream_of_trios_is_read(twin: Any) -> None:
    trio = pytest.importorskip("trio", reason="trio is not installed")

    async def reads() -> None:
        here, there = (
            trio.SocketStream(trio.socket.from_stdlib_socket(sock)) for sock in socket.socketpair()
        )
        async with here, there:
            messages = framing.async_messages(there, "u8", backend=twin.name)
            await here.send_all(b"\3one\3t")
            assert await anext(messages) == b"one"
            with trio.move_on_after(0):
                await anext(messages)
            await here.send_all(b"wo")
            await here.send_eof()
            assert await ended(messages) == ([b"two"], None)

    trio.run(reads)
