"""What of a stamp is constant for a second: calendar text, shared by both twins.

A template is a sequence of parts: literal `bytes`, and token names as `str`. `plan` renders all
that holds for one second and leaves the rest for the hot path, which runs it per receive or per
message.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

#: Tokens, with the most bytes each can render for any time from 0 to 2**63 - 1 ns.
TOKENS = {
    "ctime": 24,  # Sun Nov 22 11:36:40 2026
    "iso": 32,  # 2026-11-22T12:36:40.123456+01:00
    "utc": 30,  # 2026-11-22T11:36:40.123456789Z
    "epoch": 10,
    "epoch_ms": 13,
    "epoch_us": 16,
    "epoch_ns": 19,
    "mono_ns": 19,
    "seq": 20,
    "peer": 128,  # limits.MAX_PEER
    "len": 10,
}
#: What `plan` leaves standing: two fractions of the second, and tokens that are no calendar text.
FRACTIONS = {"fraction_us": 6, "fraction_ns": 9}


def plan(parts: Iterable[bytes | str], second: int) -> list[bytes | str]:
    """The parts with everything rendered that is constant for `second`, literals joined.

    Args:
        parts: literals and names from `TOKENS`.
        second: Unix time.

    Returns:
        literals and names: `fraction_us` and `fraction_ns` (so many digits of the second), and
        `epoch_ms`, `epoch_us`, `epoch_ns`, `mono_ns`, `seq`, `peer`, `len` as they came.
    """
    planned: list[bytes | str] = []
    for part in parts:
        for piece in _of_second(part, second):
            if isinstance(piece, bytes) and planned and isinstance(planned[-1], bytes):
                planned[-1] += piece
            else:
                planned.append(piece)
    return planned


def _of_second(part: bytes | str, second: int) -> Iterator[bytes | str]:
    match part:
        case "ctime":
            yield time.asctime(time.localtime(second)).encode()
        case "epoch":
            yield b"%d" % second
        case "utc":
            yield _date(time.gmtime(second))
            yield "fraction_ns"
            yield b"Z"
        case "iso":
            local = time.localtime(second)
            yield _date(local)
            yield "fraction_us"
            yield _offset(local.tm_gmtoff)
        case _:
            yield part


def _date(moment: time.struct_time) -> bytes:
    """RFC 3339, section 5.6: date, `T`, time, up to the point before the fraction."""
    return b"%04d-%02d-%02dT%02d:%02d:%02d." % moment[:6]


def _offset(seconds: int) -> bytes:
    """RFC 3339, section 5.6: whole minutes; the seconds of old local mean times are cut off."""
    minutes = abs(seconds) // 60
    return b"%b%02d:%02d" % (b"-" if seconds <= -60 else b"+", minutes // 60, minutes % 60)
