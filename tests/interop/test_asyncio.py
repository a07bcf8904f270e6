"""asyncio's `StreamReader`, whole against every cut.

Found: after a line that is too long, `readline` may give the rest of it as a line of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from operator import add
from typing import Any

import pytest

from fastecho.testing import CutMismatch, Raised, check_decoder

Read = Callable[[asyncio.StreamReader, list[Any]], Awaitable[None]]


@pytest.fixture
def check() -> Iterator[Callable[..., list[Any]]]:
    """Checks what a coroutine reads; it is run by hand, with no turn of a loop."""
    loop = asyncio.new_event_loop()

    class Reading:
        """A coroutine that reads from a stream, and what it has read."""

        def __init__(self, read: Read, limit: int) -> None:
            self.stream = asyncio.StreamReader(limit, loop=loop)
            self.came: list[Any] = []
            self.steps = read(self.stream, self.came).__await__()
            self.waits: Any = next(self.steps)

        def go_on(self) -> Iterator[Any]:
            while self.waits is not None and self.waits.done():
                try:
                    self.waits = next(self.steps, None)
                except Exception:
                    yield from self.came
                    raise
            yield from self.came
            self.came.clear()

    def feed(reading: Reading, piece: bytes) -> Iterator[Any]:
        reading.stream.feed_data(piece)
        return reading.go_on()

    def finish(reading: Reading) -> Iterator[Any]:
        reading.stream.feed_eof()
        return reading.go_on()

    def check(read: Read, data: bytes, limit: int = 65_536, join: Any = None) -> list[Any]:
        return check_decoder(
            lambda: Reading(read, limit), data, feed=feed, finish=finish, join=join, pairs=300
        )

    yield check
    loop.close()


def until(separator: bytes) -> Read:
    async def read(stream: asyncio.StreamReader, came: list[Any]) -> None:
        while True:
            came.append(await stream.readuntil(separator))

    return read


async def lines(stream: asyncio.StreamReader, came: list[Any]) -> None:
    """All lines; that one is too long is an event."""
    while line := await _line(stream):
        came.append(line)


async def _line(stream: asyncio.StreamReader) -> Any:
    try:
        return await stream.readline()
    except ValueError:
        return ValueError


async def lengths(stream: asyncio.StreamReader, came: list[Any]) -> None:
    while True:
        came.append(await stream.readexactly(int.from_bytes(await stream.readexactly(2), "big")))


async def some(stream: asyncio.StreamReader, came: list[Any]) -> None:
    while data := await stream.read(3):
        came.append(data)


@pytest.mark.parametrize(
    ("separator", "data", "parts"),
    [
        (
            b"\r\n",
            b"one\r\n\r\ntwo\r\r\nx\ny\r\n",
            [b"one\r\n", b"\r\n", b"two\r\r\n", b"x\ny\r\n"],
        ),
        (b"aab", b"aaabaabaaaaab", [b"aaab", b"aab", b"aaaaab"]),
    ],
)
def test_readuntil_does_not_depend_on_cuts(
    check: Any, separator: bytes, data: bytes, parts: list[bytes]
) -> None:
    end = Raised("IncompleteReadError", "1 bytes read on a total of undefined expected bytes")
    assert check(until(separator), data + b"x") == [*parts, end]


def test_readexactly_does_not_depend_on_cuts(check: Any) -> None:
    end = Raised("IncompleteReadError", "3 bytes read on a total of 7 expected bytes")
    assert check(lengths, b"\0\5hello\0\0\0\1!\0\7abc") == [b"hello", b"", b"!", end]


def test_readline_does_not_depend_on_cuts(check: Any) -> None:
    assert check(lines, b"a\nbb\n\nccc") == [b"a\n", b"bb\n", b"\n", b"ccc"]
    assert check(lines, b"0123456789\nok\n", limit=10) == [b"0123456789\n", b"ok\n"]


def test_read_gives_all_of_it(check: Any) -> None:
    assert check(some, b"abcdefgh", join=add) == [b"abcdefgh"]


def test_the_rest_of_a_line_that_is_too_long_becomes_a_line(check: Any) -> None:
    """A trap that is documented: on too long a line the buffer is cleared (CPython 3.11 to 3.13).

    Whoever goes on reading after the ValueError takes the end of that line for a message.
    """
    with pytest.raises(CutMismatch) as caught:
        check(lines, b"ok\nabcdefghijklmnop\nok\n", limit=10)
    assert caught.value.pieces == [b"ok\nabcdefghijk", b"lmnop\nok\n"]
    assert caught.value.expected == [b"ok\n", ValueError, b"ok\n"]
    assert caught.value.got == [b"ok\n", ValueError, b"lmnop\n", b"ok\n"]


def test_what_overran_the_limit_is_worded_by_the_cut(check: Any) -> None:
    """No bug: LimitOverrunError either way, whether or not the separator was seen."""
    with pytest.raises(CutMismatch) as caught:
        check(until(b"\r\n"), b"abcdefghijklmnop\r\n", limit=10)
    assert {caught.value.expected[0].name, caught.value.got[0].name} == {"LimitOverrunError"}
