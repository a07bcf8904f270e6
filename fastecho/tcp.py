"""What happens on a listener besides answering: what is said of connections, and their cuts."""

from __future__ import annotations

import time
from logging import INFO, WARNING
from typing import TYPE_CHECKING

from . import addresses
from .events import say
from .limits import REPEAT_AFTER

if TYPE_CHECKING:
    from ._pure.framing import Codec
    from ._pure.stream import Listener, Stream
    from .errors import FrameError


class Tcp:
    """The owner of listeners and their streams (`_pure.stream.Owner`).

    Args:
        spec: the framing, for what is said of unfinished messages and of cuts.
        verbose: whether each connection is logged.
    """

    def __init__(self, spec: str, verbose: bool = False) -> None:
        self._spec = spec
        self._verbose = verbose
        self._cuts: dict[Stream, Cuts] = {}
        #: When each trouble with accepting was last told.
        self._told: dict[str, float] = {}

    def connected(self, stream: Stream) -> None:
        if self._verbose:
            sentence = f"... connected from: {stream.address!r}"
            say(INFO, "connected", sentence, peer=addresses.text(stream.address))

    def closed(self, stream: Stream, reason: str) -> None:
        cuts = self._cuts.pop(stream, None)
        if cuts is not None and reason == "eof":
            self._say_cuts(stream, cuts.finish())
        if self._verbose:
            peer, count = addresses.text(stream.address), stream.messages
            sentence = f"{peer}: closed ({reason}) after {_plural(count, 'message')}"
            say(INFO, "closed", sentence, peer=peer, reason=reason, messages=count)

    def faulted(self, stream: Stream, error: FrameError) -> None:
        self._warn(stream, "fault", f"{error} ({error.reason})", error.reason, offset=error.offset)

    def expired(self, stream: Stream, reason: str) -> None:
        limit = getattr(stream.listener, reason)
        held = f", {stream.pending} bytes of a message pending" if stream.pending else ""
        self._warn(stream, "expired", f"closed after {limit:g} s ({reason}){held}", reason)

    def unfinished(self, stream: Stream) -> None:
        held = _plural(stream.pending, "byte")
        lack = "newline" if self._spec == "line" else "end of message"
        raw = "for clients that send none: --framing raw"
        hint = f"{held} and no {lack} yet ({raw if self._spec == 'line' else self._spec})"
        self._warn(stream, "unfinished", hint, pending=stream.pending)

    def unread(self, stream: Stream) -> None:
        hint = f"the client does not read; {stream.unsent} bytes of replies wait for it"
        self._warn(stream, "unread", hint, unsent=stream.unsent)

    def resting(self, listener: Listener, error: OSError | None) -> None:
        reason = "max_connections" if error is None else addresses.reason(error.errno or 0)
        now = time.monotonic()
        if now - self._told.get(reason, -REPEAT_AFTER) < REPEAT_AFTER:
            return
        self._told[reason] = now
        if error is None:
            what = f"max_connections ({listener.shared.max_connections}) reached"
        else:
            what = f"cannot accept a connection: {error.strerror}"
        sentence = f"{what}; new ones wait until another ends"
        say(WARNING, "resting", sentence, reason=reason, open=listener.shared.open)

    def received(self, stream: Stream, data: bytes) -> None:
        cuts = self._cuts.get(stream)
        if cuts is None:
            cuts = self._cuts[stream] = Cuts(stream.listener.echo.codec.fresh())
        self._say_cuts(stream, cuts.feed(data))

    def _say_cuts(self, stream: Stream, frames: list[list[int]]) -> None:
        peer = addresses.text(stream.address)
        for parts in frames:
            shown = f"{peer}: recv {' + '.join(map(str, parts))} -> {sum(parts)}"
            say(INFO, "cuts", shown, peer=peer, parts=parts)

    def _warn(
        self, stream: Stream, event: str, sentence: str, reason: str = "", **fields: object
    ) -> None:
        peer = addresses.text(stream.address)
        if reason:
            fields["reason"] = reason
        say(WARNING, event, f"{peer}: {sentence}", peer=peer, **fields)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


class Cuts:
    """In which `recv`s each frame of a stream came.

    Args:
        codec: of the stream's framing, at its start.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        #: Bytes of the unfinished frame, by `recv`.
        self._parts: list[int] = []

    def feed(self, data: bytes) -> list[list[int]]:
        """What one `recv` brought: the parts of each frame that it completed."""
        # Byte by byte the codec itself tells where each frame ends; raw has no other end.
        step = len(data) if type(self._codec).__name__ == "RawCodec" else 1
        finished = []
        begin = 0
        for at in range(step, len(data) + 1, step):
            messages = self._codec.messages
            self._codec.feed(data[at - step : at])
            if self._codec.messages > messages:
                finished.append([*self._parts, at - begin])
                self._parts = []
                begin = at
        if begin < len(data):
            self._parts.append(len(data) - begin)
        return finished

    def finish(self) -> list[list[int]]:
        """The parts of the tail, if that is a message."""
        return [self._parts] if self._codec.finish() else []
