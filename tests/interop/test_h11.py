"""h11 (HTTP/1.1), whole against every cut.

Found: where a chunk's header is cut off from its first byte, `Data.chunk_start` is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fastecho.testing import CutMismatch, Raised, check_decoder

pytest.importorskip("h11", reason="h11 is not installed")
import h11

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def server() -> Any:
    return h11.Connection(h11.SERVER)


def client() -> Any:
    """One that has sent its request."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    return connection


def events(connection: Any) -> Iterator[Any]:
    while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
        yield event
        if isinstance(event, h11.ConnectionClosed):
            return  # or it comes for ever


def feed(connection: Any, piece: bytes) -> Iterator[Any]:
    connection.receive_data(piece)
    yield from events(connection)


def finish(connection: Any) -> Iterator[Any]:
    return feed(connection, b"")


def same_chunk(before: Any, after: Any) -> Any:
    """The data of two events, unless a chunk ends or begins between them."""
    if not isinstance(before, h11.Data) or not isinstance(after, h11.Data):
        return None
    if before.chunk_end or after.chunk_start:
        return None
    data = bytes(before.data) + bytes(after.data)
    return h11.Data(data=data, chunk_start=before.chunk_start, chunk_end=after.chunk_end)


def unmarked(connection: Any, piece: bytes) -> Iterator[Any]:
    """Events that do not say where chunks begin and end."""
    for event in feed(connection, piece):
        yield h11.Data(data=event.data) if isinstance(event, h11.Data) else event


def check(factory: Callable[[], Any], data: bytes, feed: Any = feed) -> list[Any]:
    return check_decoder(factory, data, feed=feed, finish=finish, join=same_chunk, pairs=300)


@pytest.mark.parametrize(
    ("factory", "data", "kinds"),
    [
        (server, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "Request EndOfMessage ConnectionClosed"),
        (server, b"GET / HTTP/1.1\nHost: a\nX: y\n z\n\n", "Request EndOfMessage ConnectionClosed"),
        (
            server,
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789",
            "Request Data EndOfMessage ConnectionClosed",
        ),
        (server, b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\n", "Request EndOfMessage"),
        (
            client,
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "InformationalResponse Response Data EndOfMessage ConnectionClosed",
        ),
        (
            client,
            b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
            "Response Data EndOfMessage ConnectionClosed",
        ),
        (server, b"GET / HTTP/1.1\r\nHost: a\r\nx\0y: b\r\n\r\n", "Raised"),
        (server, b"\x16\x03\x01 no HTTP", "Raised"),
        (
            server,
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n012",
            "Request Data Raised",
        ),
    ],
)
def test_events_do_not_depend_on_cuts(factory: Any, data: bytes, kinds: str) -> None:
    assert " ".join(type(event).__name__ for event in check(factory, data)) == kinds


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        (b"5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\nT: 1\r\n\r\n", "Request Data EndOfMessage"),
        (b"5g\r\nhello\r\n", "Request Raised"),
    ],
)
def test_chunked_bodies_do_not_depend_on_cuts_but_for_the_marks(body: bytes, kinds: str) -> None:
    found = [type(event).__name__ for event in check(server, HEAD + body, unmarked)]
    assert " ".join(found).removesuffix(" ConnectionClosed") == kinds


def test_the_start_of_a_chunk_is_lost_where_its_header_is_cut_off() -> None:
    """A bug of h11 (0.16): whoever passes chunks on, by `chunk_start`, misses one at this cut.

    The reader takes the header, has no data to give yet, and forgets that a chunk began. Seen in
    https://github.com/encode/httpcore/pull/595, too.
    """
    with pytest.raises(CutMismatch) as caught:
        check(client, RESPONSE + b"5\r\nhello\r\n0\r\n\r\n")
    assert caught.value.pieces == [RESPONSE + b"5\r\n", b"hello\r\n0\r\n\r\n"]
    differs = caught.value.index
    assert caught.value.expected[differs].chunk_start
    assert not caught.value.got[differs].chunk_start


@pytest.mark.parametrize(
    "data",
    [
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        HEAD + b"5\r\nhelloXX\r\n0\r\n\r\n",
    ],
)
def test_how_a_fault_is_worded_depends_on_the_cut(data: bytes) -> None:
    """No bug: refused either way, as soon as it is seen; the text quotes what has come (0.16)."""
    with pytest.raises(CutMismatch) as caught:
        check(server, data, unmarked)
    expected, got = caught.value.expected, caught.value.got
    assert expected[:-1] == got[:-1]
    assert expected[-1].name == got[-1].name == "RemoteProtocolError"


def test_a_head_that_is_too_long_is_refused_if_it_comes_in_pieces() -> None:
    """No bug: `max_incomplete_event_size` bounds what is held, as its name says (0.16)."""
    data = b"GET / HTTP/1.1\r\nHost: abcdefghijklmno\r\nX: abcdefghijklmnop\r\n\r\n"
    with pytest.raises(CutMismatch) as caught:
        check(lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=30), data)
    assert isinstance(caught.value.expected[0], h11.Request)
    assert caught.value.got == [Raised("RemoteProtocolError", "Receive buffer too long")]
