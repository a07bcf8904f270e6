"""hiredis (Redis, in C), whole against every cut.

Found in 3.5.0, by AddressSanitizer: a verbatim string that is the last in the reader's buffer is
read up to two bytes past its end (`createStringObject` moves the text to where its three letters of
format were, as many bytes as both have).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fastecho.testing import Raised, check_decoder

pytest.importorskip("hiredis", reason="hiredis is not installed")
import hiredis


def feed(reader: Any, piece: bytes) -> Iterator[str]:
    """Replies as they are written: errors are values here, that do not compare."""
    reader.feed(piece)
    while (reply := reader.gets()) is not False:
        yield repr(reply)


def check(data: bytes, **options: Any) -> list[Any]:
    return check_decoder(lambda: hiredis.Reader(**options), data, feed=feed, pairs=500)


@pytest.mark.parametrize(
    ("data", "replies"),
    [
        (b"+OK\r\n:12\r\n-ERR no\r\n", ["b'OK'", "12", "ReplyError('ERR no')"]),
        (b"$5\r\nhe\r\no\r\n$0\r\n\r\n$-1\r\n", [r"b'he\r\no'", "b''", "None"]),
        (b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n*0\r\n", ["[b'a', [1]]", "[]"]),
        (
            b"%1\r\n+k\r\n,1.5\r\n~2\r\n:1\r\n_\r\n",
            ["{b'k': 1.5}", "[1, None]"],
        ),
        (b",inf\r\n,nan\r\n(12345678901234567890\r\n", ["inf", "nan", "b'12345678901234567890'"]),
    ],
)
def test_replies_do_not_depend_on_cuts(data: bytes, replies: list[str]) -> None:
    assert check(data) == replies


def test_a_verbatim_string_does_not_depend_on_cuts() -> None:
    assert check(b"=5\r\ntxt:x\r\n=7\r\nmkd:two\r\n") == ["b'x'", "b'two'"]


@pytest.mark.parametrize(
    "fault",
    [
        b"xbad\r\n",
        b":12x\r\n",
        b"$abc\r\n",
        b"$-2\r\n",
        b"+a\rb\r\n",
        b"+a\n",
        b"#x\r\n",
        b"_x\r\n",
    ],
)
def test_errors_do_not_depend_on_cuts(fault: bytes) -> None:
    first, error = check(b"+OK\r\n" + fault + b"+after\r\n")
    assert first == "b'OK'"
    assert isinstance(error, Raised)
    assert error.name == "ProtocolError"


def test_text_does_not_depend_on_cuts() -> None:
    data = "$5\r\ncaf\u00e9\r\n".encode()
    assert check(data, encoding="utf-8") == ["'caf\u00e9'"]
    (error,) = check(b"$1\r\n\xff\r\n", encoding="utf-8")
    assert error.name == "UnicodeDecodeError"
