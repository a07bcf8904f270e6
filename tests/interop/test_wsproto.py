"""wsproto (WebSocket), whole against every cut.

Found: a server loses what was received together with the end of the handshake.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from fastecho.testing import CutMismatch, check_decoder

pytest.importorskip("wsproto", reason="wsproto is not installed")
from wsproto import ConnectionType, WSConnection, events, handshake
from wsproto.connection import Connection
from wsproto.utilities import generate_accept_token

NONCE = b"dGhlIHNhbXBsZSBub25jZQ=="  # of RFC 6455
MASK = b"\1\2\3\4"
TEXT, BINARY, CLOSE, PING, CONTINUATION = 1, 2, 8, 9, 0
REQUEST = (
    b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: %b\r\nSec-WebSocket-Version: 13\r\n\r\n" % NONCE
)


def frame(kind: int, payload: bytes, last: bool = True, masked: bool = True) -> bytes:
    """As a client sends it (RFC 6455, section 5.2)."""
    size = len(payload)
    length = bytes([size]) if size < 126 else struct.pack(">BH", 126, size)
    head = bytes([last << 7 | kind, masked << 7 | length[0]]) + length[1:]
    if not masked:
        return head + payload
    return head + MASK + bytes(octet ^ MASK[at % 4] for at, octet in enumerate(payload))


def server() -> Any:
    """One whose handshake is over."""
    return Connection(ConnectionType.SERVER)


def feed(connection: Any, piece: bytes) -> Iterator[Any]:
    connection.receive_data(piece)
    yield from connection.events()


def join(before: Any, after: Any) -> Any:
    """Two parts of one message."""
    if type(before) is not type(after) or not isinstance(before, events.Message):
        return None
    if before.message_finished:
        return None
    data = before.data + after.data
    return type(after)(data, after.frame_finished, after.message_finished)


def check(data: bytes) -> list[Any]:
    return check_decoder(server, data, feed=feed, join=join, pairs=300)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            frame(TEXT, "h\u00e9llo \u20ac".encode()) + frame(TEXT, b"two"),
            [events.TextMessage("h\u00e9llo \u20ac"), events.TextMessage("two")],
        ),
        (
            frame(TEXT, b"caf\xc3", last=False) + frame(CONTINUATION, b"\xa9!"),
            [events.TextMessage("caf\u00e9!")],
        ),
        (
            frame(BINARY, b"abc", last=False) + frame(PING, b"?") + frame(CONTINUATION, b"def"),
            [
                events.BytesMessage(b"abc", frame_finished=True, message_finished=False),
                events.Ping(b"?"),
                events.BytesMessage(b"def"),
            ],
        ),
        (
            frame(TEXT, b"") + frame(BINARY, b"") + frame(PING, b""),
            [events.TextMessage(""), events.BytesMessage(b""), events.Ping(b"")],
        ),
        (frame(BINARY, bytes(130)), [events.BytesMessage(bytes(130))]),
        (
            frame(CLOSE, b"\x03\xe8bye") + frame(TEXT, b"after"),
            [events.CloseConnection(1000, "bye")],
        ),
    ],
)
def test_messages_do_not_depend_on_cuts(data: bytes, expected: list[Any]) -> None:
    assert check(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        frame(TEXT, b"no mask", masked=False),
        frame(3, b"no such kind"),
        frame(PING, bytes(126)),
        frame(TEXT, b"a", last=False) + frame(TEXT, b"b"),
    ],
)
def test_errors_do_not_depend_on_cuts(data: bytes) -> None:
    assert check(data)[-1].code == 1002


def accept(connection: Any, piece: bytes) -> Iterator[Any]:
    """What comes, the handshake accepted as soon as it has come."""
    connection.receive_data(piece)
    while some := list(connection.events()):
        for event in some:
            yield event
            if isinstance(event, events.Request):
                connection.send(events.AcceptConnection())


def handshaking() -> Any:
    return WSConnection(ConnectionType.SERVER)


def test_a_request_does_not_depend_on_cuts() -> None:
    (request,) = check_decoder(handshaking, REQUEST, feed=accept, pairs=100)
    assert request.target == "/chat"


def test_what_comes_with_the_response_does_not_depend_on_cuts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handshake, "generate_nonce", lambda: NONCE)

    def client() -> Any:
        connection = WSConnection(ConnectionType.CLIENT)
        connection.send(events.Request(host="a", target="/"))
        return connection

    response = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % generate_accept_token(NONCE)
    )
    hello = frame(TEXT, b"hello", masked=False)
    found = check_decoder(client, response + hello, feed=feed, join=join, pairs=100)
    assert found == [events.AcceptConnection(), events.TextMessage("hello")]


def test_what_comes_with_the_request_is_lost() -> None:
    """A trap for servers (1.3.2): they drop what was received with the end of the handshake.

    A client must wait for the response (RFC 6455, section 4.1). Of one that does not, a frame that
    came with the request is lost, with no error; one that began there makes the rest nonsense.
    """
    with pytest.raises(CutMismatch) as caught:
        check_decoder(handshaking, REQUEST + frame(TEXT, b"early"), feed=accept, join=join)
    assert caught.value.pieces == [REQUEST, frame(TEXT, b"early")]
    assert [type(event) for event in caught.value.expected] == [events.Request]
    assert caught.value.got[1:] == [events.TextMessage("early")]


@pytest.mark.parametrize("payload", [b"ab\xff\xfe", b"caf\xc3"])
def test_text_that_is_no_utf_8_is_passed_on_up_to_the_fault_by_the_cut(payload: bytes) -> None:
    """No bug: it fails early, and passes on what is complete (1.3.2).

    The close reason is made of Python's error, so that the place in it is that in the piece.
    """
    with pytest.raises(CutMismatch) as caught:
        check(frame(TEXT, payload))
    (whole,) = caught.value.expected
    part, closed = caught.value.got
    assert whole.code == closed.code == 1007
    assert whole.reason != closed.reason
    assert payload.startswith(part.data.encode())
