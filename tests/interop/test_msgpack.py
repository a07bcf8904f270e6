"""msgpack's `Unpacker`, in C and in Python, whole against every cut. Found: nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fastecho.testing import CutMismatch, Raised, check_decoder

pytest.importorskip("msgpack", reason="msgpack is not installed")
import msgpack
from msgpack import fallback

VALUES = [1, "h\u00e9llo", [1, {"a": b"x" * 40}], None, 2**63, 1.5, msgpack.ExtType(5, b"abc")]
UNPACKERS = {"C": msgpack.Unpacker, "Python": fallback.Unpacker}

pytestmark = pytest.mark.parametrize("unpacker", UNPACKERS.values(), ids=UNPACKERS)


def feed(unpacker: Any, piece: bytes) -> Iterator[Any]:
    unpacker.feed(piece)
    yield from unpacker


def check(unpacker: Any, data: bytes, **options: Any) -> list[Any]:
    return check_decoder(lambda: unpacker(**options), data, feed=feed, pairs=300)


def test_values_do_not_depend_on_cuts(unpacker: Any) -> None:
    packed = b"".join(map(msgpack.packb, VALUES))
    assert check(unpacker, packed) == VALUES
    assert check(unpacker, packed[:-1]) == VALUES[:-1]


@pytest.mark.parametrize("fault", [b"\xc1", b"\xa2\xff\xfe", b"\x81\x90\1", b"\x81\1\2"])
def test_errors_do_not_depend_on_cuts(unpacker: Any, fault: bytes) -> None:
    first, error = check(unpacker, b"\1" + fault + b"\2")
    assert first == 1
    assert isinstance(error, Raised)


def test_a_limit_does_not_depend_on_cuts(unpacker: Any) -> None:
    first, error = check(unpacker, msgpack.packb("abc") + msgpack.packb("abcd"), max_str_len=3)
    assert first == "abc"
    assert error.name == "ValueError"


def test_how_much_may_be_fed_at_once_depends_on_it_by_its_nature(unpacker: Any) -> None:
    """No bug: `max_buffer_size` bounds what was fed and not taken (1.2.4)."""
    with pytest.raises(CutMismatch) as caught:
        check(unpacker, msgpack.packb(b"abcdefgh") + msgpack.packb(b"abcdef"), max_buffer_size=10)
    assert caught.value.expected == [Raised("BufferFull", "")]
    assert caught.value.got == [b"abcdefgh", b"abcdef"]
