"""What the targets in Python share: how an input is read, memory that ends where it says."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any


class Input:
    """Takes settings and calls out of a fuzzer's bytes. What is not there is zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        """The next bytes, or what is left."""
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, width: int = 1) -> int:
        return int.from_bytes(self.take(width), "little")

    def choice(self, of: Sequence[Any]) -> Any:
        return of[self.number() % len(of)]


def exactly(size: int, data: bytes = b"") -> memoryview:
    """A buffer without the byte more that `bytes` and `bytearray` have: ASan sees an over-read."""
    buffer = memoryview(array("B", [0]) * size)
    buffer[: len(data)] = data
    return buffer
