"""Twisted's receivers, whole against every cut.

Found: `LineOnlyReceiver` refuses a line of just `MAX_LENGTH` if its line end is cut off.
"""

from __future__ import annotations

from typing import Any

import pytest

from fastecho import framing
from fastecho.testing import CutMismatch, check_decoder

pytest.importorskip("twisted", reason="Twisted is not installed")
from twisted.internet.testing import StringTransport
from twisted.protocols import basic

CLOSED = "closed"


class Receiving:
    """A receiver on a transport that stops reading once it closes, as Twisted's do."""

    def __init__(self, kind: type, attributes: dict[str, Any]) -> None:
        self.came: list[Any] = []
        takes = "lineReceived" if hasattr(kind, "lineReceived") else "stringReceived"
        methods = {takes: lambda _, message: self.came.append(message), **attributes}
        self.receiver = type(kind.__name__, (kind,), methods)()
        self.transport = StringTransport()
        self.receiver.makeConnection(self.transport)

    def __call__(self, piece: bytes) -> list[Any]:
        self.came.clear()
        if not self.transport.disconnecting:
            self.receiver.dataReceived(piece)
            if self.transport.disconnecting:
                self.came.append(CLOSED)
        return self.came


def check(kind: type, data: bytes, join: Any = None, **attributes: Any) -> list[Any]:
    return check_decoder(lambda: Receiving(kind, attributes), data, join=join, pairs=500)


@pytest.mark.parametrize("kind", [basic.LineReceiver, basic.LineOnlyReceiver])
def test_lines_do_not_depend_on_cuts(kind: Any) -> None:
    lines = [b"a", b"", b"b\rc\r", b"d\n"]
    assert check(kind, b"\r\n".join(lines) + b"\r\ntail") == lines
    assert check(kind, b"abcd\r\nabcdefgh\r\nok\r\n", MAX_LENGTH=6) == [b"abcd", CLOSED]


def test_raw_data_does_not_depend_on_cuts() -> None:
    def line(self: Any, line: bytes) -> None:
        self.came(line)
        if line.isdigit():
            self.left = int(line)
            self.setRawMode()

    def raw(self: Any, data: bytes) -> None:
        body, rest = data[: self.left], data[self.left :]
        self.left -= len(body)
        self.came(bytearray(body))
        if not self.left:
            self.setLineMode(rest)

    def join(before: Any, after: Any) -> Any:
        return before + after if type(before) is type(after) is bytearray else None

    def factory() -> Receiving:
        receiving = Receiving(basic.LineReceiver, {"lineReceived": line, "rawDataReceived": raw})
        receiving.receiver.came = receiving.came.append
        return receiving

    found = check_decoder(factory, b"a\r\n5\r\nhe\r\no\r\nb\r\n", join=join)
    assert found == [b"a", b"5", b"he\r\no", b"", b"b"]


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        (basic.Int8StringReceiver, "u8"),
        (basic.Int16StringReceiver, "u16"),
        (basic.Int32StringReceiver, "u32"),
        (basic.NetstringReceiver, "netstring"),
    ],
)
def test_strings_do_not_depend_on_cuts(kind: Any, spec: str) -> None:
    messages = [b"", b"hello", b"x" * 20]
    encode = framing.codec(spec).encode
    wire = b"".join(map(encode, messages))
    assert check(kind, wire + encode(b"unfinished")[:-1]) == messages
    assert check(kind, wire + encode(b"after"), MAX_LENGTH=10) == [*messages[:2], CLOSED]


@pytest.mark.parametrize(
    "fault", [b"01:a,", b"a:b,", b":,", b"1:ab", b"1;a,", b"-1:a,", b"1 :a,", b"100000:"]
)
def test_netstring_faults_do_not_depend_on_cuts(fault: bytes) -> None:
    assert check(basic.NetstringReceiver, b"1:z," + fault + b"1:y,") == [b"z", CLOSED]


def test_a_line_of_just_the_limit_is_refused_where_its_end_is_cut() -> None:
    """A bug of `LineOnlyReceiver` (26.10): the CR of an unfinished line end counts as of the line.

    `LineReceiver` had it too: https://github.com/twisted/twisted/issues/6556.
    """
    data = b"abcd\r\nabcd\r\n"
    assert check(basic.LineReceiver, data, MAX_LENGTH=4) == [b"abcd", b"abcd"]
    with pytest.raises(CutMismatch) as caught:
        check(basic.LineOnlyReceiver, data, MAX_LENGTH=4)
    assert caught.value.pieces == [b"abcd\r", b"\nabcd\r\n"]
    assert caught.value.expected == [b"abcd", b"abcd"]
    assert caught.value.got == [CLOSED]


@pytest.mark.parametrize("kind", [basic.LineReceiver, basic.LineOnlyReceiver])
def test_what_a_line_that_is_too_long_loses_depends_on_the_cut(kind: Any) -> None:
    """No bug while the connection is closed then, as it is by default (26.10).

    Whoever goes on instead loses what was in the buffer, and takes the rest for lines.
    """

    def go_on(_receiver: Any, _line: bytes) -> None:
        pass

    with pytest.raises(CutMismatch) as caught:
        check(kind, b"abcd\r\nabcdefgh\r\nok\r\n", MAX_LENGTH=4, lineLengthExceeded=go_on)
    assert caught.value.expected == [b"abcd"]
    assert len(caught.value.got) > 1
