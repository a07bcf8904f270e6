"""Stamps: the template rendered for a given time, and the echo that puts it before each message.

No I/O and no clock: the time is an argument, Unix time in nanoseconds. A `Stamper` may serve any
number of connections; an `Echo` is one connection's.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence

from ..errors import ConfigError, FrameError
from ..limits import MAX_PEER, MAX_PREFIX, MAX_TIME_NS
from ..timestamps import FRACTIONS, TOKENS, plan
from .framing import Buffer, Codec, Prefix, as_bytes, contiguous

#: In nanoseconds.
SECOND = 1_000_000_000
#: Tokens that a finer clock than the second's is needed for.
FINE = frozenset({"iso", "utc", "epoch_ms", "epoch_us", "epoch_ns", "mono_ns"})
#: Tokens that differ from message to message of one receive.
PER_MESSAGE = frozenset({"seq", "len"})


class Stamper:
    """Renders a template.

    Args:
        parts: literals as `bytes`, tokens as their names (`fastecho.timestamps.TOKENS`).

    Attributes:
        longest: the most bytes that a rendering can have.
        fine: whether it shows the time finer than to the second.
        shows_peer: whether it shows the peer.
        shows_mono: whether it shows the monotonic clock, which is then taken as the message's
            time plus `mono_offset` (at least 0): whoever owns the clocks keeps that up to date.
        text: the prefix of all messages from the time `since` up to `until`, if there is such a
            one; `prefix` keeps it up to date.

    Raises:
        ConfigError: an unknown token, or a template longer than any datagram.
    """

    def __init__(self, parts: Sequence[bytes | str]) -> None:
        self.parts = tuple(parts)
        names = {part for part in self.parts if isinstance(part, str)}
        if unknown := names - TOKENS.keys():
            raise ConfigError(f"unknown token {min(unknown)!r}: choose from {', '.join(TOKENS)}")
        self.longest = sum(
            TOKENS[part] if isinstance(part, str) else len(part) for part in self.parts
        )
        if self.longest > MAX_PREFIX:
            raise ConfigError(
                f"the prefix can have {self.longest:,} bytes: at most {MAX_PREFIX:,} are possible"
            )
        self.fine = not names.isdisjoint(FINE)
        self.shows_peer = "peer" in names
        self.shows_mono = "mono_ns" in names
        self.mono_offset = 0
        self.text = b""
        self.since = self.until = 0
        self._per_message = not names.isdisjoint(PER_MESSAGE)
        self._per_second = not (self.fine or self.shows_peer or self._per_message)
        self._second = -1
        self._plan: list[bytes | str] = []

    def render(self, now_ns: int, seq: int = 0, length: int = 0, peer: bytes = b"") -> bytes:
        """The prefix of one message.

        Args:
            now_ns: when it was received.
            seq: its number on its connection, from 1.
            length: its bytes, as `max_frame` counts them.
            peer: whose it is.

        Raises:
            ValueError: a time that no clock shows.
            ConfigError: a peer too long.
        """
        now_ns = checked_time(now_ns)
        check_peer(peer)
        second, fraction = divmod(now_ns, SECOND)
        if second != self._second:
            self._plan = plan(self.parts, second)
            self._second = second
        if len(self._plan) == 1 and isinstance(self._plan[0], bytes):
            return self._plan[0]
        return b"".join(
            part
            if isinstance(part, bytes)
            else self._token(part, now_ns, fraction, seq, length, peer)
            for part in self._plan
        )

    def _token(
        self, name: str, now_ns: int, fraction: int, seq: int, length: int, peer: bytes
    ) -> bytes:
        if name in FRACTIONS:
            return (b"%09d" % fraction)[: FRACTIONS[name]]
        if name == "peer":
            return peer
        return (
            b"%d"
            % {
                "epoch_ms": now_ns // 1_000_000,
                "epoch_us": now_ns // 1_000,
                "epoch_ns": now_ns,
                "mono_ns": min(max(now_ns + self.mono_offset, 0), MAX_TIME_NS),
                "seq": seq,
                "len": length,
            }[name]
        )

    def prefix(self, now_ns: int, peer: bytes) -> Prefix:
        """What goes before the messages of one receive; constant unless a token forbids it.

        Raises:
            ValueError: a time that no clock shows.
        """
        checked_time(now_ns)
        if self._per_message:
            return lambda seq, length: self.render(now_ns, seq, length, peer)
        text = self.render(now_ns, peer=peer)
        if self._per_second:
            self.text = text
            self.since = self._second * SECOND
            self.until = self.since + SECOND
        return text


def checked_time(now_ns: int) -> int:
    """A time that a clock can show."""
    now_ns = operator.index(now_ns)
    if not 0 <= now_ns <= MAX_TIME_NS:
        raise ValueError(f"now_ns must be from 0 to {MAX_TIME_NS}, not {now_ns}")
    return now_ns


def check_peer(peer: bytes) -> None:
    """Make sure that the longest prefix is not exceeded."""
    if len(peer) > MAX_PEER:
        raise ConfigError(f"a peer has at most {MAX_PEER} bytes, not {len(peer)}")


class Echo:
    """Codec and stamper: bytes in, reply bytes out.

    Args:
        codec: this connection's framing state; the echo owns it from now on.
        stamper: may be shared.
        peer: what `{peer}` shows.

    Raises:
        ConfigError: a length field that cannot announce the longest reply, or a peer too long.
    """

    def __init__(self, codec: Codec, stamper: Stamper, peer: bytes = b"") -> None:
        longest = codec.max_frame + stamper.longest
        if codec.capacity is not None and longest > codec.capacity:
            raise ConfigError(
                f"a reply can have {longest:,} bytes: the length field announces at most"
                f" {codec.capacity:,}"
            )
        check_peer(peer)
        self.codec = codec
        self.stamper = stamper
        self.peer = peer

    def fresh(self, peer: bytes = b"") -> Echo:
        """An echo of the same configuration at the start of another peer's stream."""
        return Echo(self.codec.fresh(), self.stamper, peer)

    @property
    def messages(self) -> int:
        """Messages so far."""
        return self.codec.messages

    @property
    def offset(self) -> int:
        """Stream bytes cut so far."""
        return self.codec.offset

    @property
    def pending(self) -> int:
        """Bytes held of the unfinished frame."""
        return self.codec.pending

    @property
    def error(self) -> FrameError | None:
        """The fault that ended the stream; further input is ignored."""
        return self.codec.error

    def stamp(self, data: bytes, now_ns: int, room: int) -> tuple[int, bytes]:
        """As `feed_into`, for `room` bytes; gives the replies instead of how many there are."""
        return self.codec.stamp(data, self.stamper.prefix(now_ns, self.peer), room)

    def feed_into(self, data: Buffer, out: Buffer, now_ns: int) -> tuple[int, int]:
        """Write the replies to the messages that `data` completes, as many as fit, to `out`.

        Args:
            data: what came.
            out: a writable buffer. If it is smaller than a reply, that one is never written.
            now_ns: when `data` came: Unix time in nanoseconds, from 0 to 2**63 - 1.

        Returns:
            (consumed, written): bytes of `data` done with, which is all of it unless a reply did
            not fit; and bytes of `out` filled. What was not consumed is to be fed again.

        Raises:
            ValueError: after `finish`, or a time out of range.
            TypeError, BufferError: `data` or `out` is no contiguous (writable) buffer.
        """
        target = contiguous(out)
        if target.readonly:
            raise BufferError("the buffer is not writable")
        consumed, reply = self.stamp(as_bytes(data), now_ns, target.nbytes)
        target[: len(reply)] = reply
        return consumed, len(reply)

    def feed(self, data: Buffer, now_ns: int) -> bytes:
        """The replies to all messages that `data` completes. Raises as `feed_into` does."""
        return self.stamp(as_bytes(data), now_ns, sys.maxsize)[1]

    def finish(self, now_ns: int) -> bytes:
        """The stream has ended: the reply to its tail, if that is a message.

        Raises:
            ValueError: after `finish`, or a time out of range.
        """
        return finish(self.codec, self.stamper.prefix(now_ns, self.peer))


def finish(codec: Codec, prefix: Prefix) -> bytes:
    """The stream has ended: the reply to its tail, if that is a message."""
    for tail in codec.finish():
        text = prefix if isinstance(prefix, bytes) else prefix(codec.messages, len(tail))
        return text + tail
    return b""
