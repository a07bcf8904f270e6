"""What a server must come to: every byte of its replies, every counter; from `reference` alone.

A `Conversation` foretells one connection from what its client has sent, a `Correspondence` one UDP
socket. `Books` adds them up to the server's counters. What the kernel or the framing leaves open is
a range, and there are four such cases:

- `raw`: where `recv` cuts the stream is only known from the replies, which say it (`RAW_PARTS`).
- A stream at fault: what came after the fault with the same `recv` is counted in `bytes_in`, what
  is discarded later is not.
- A client that leaves (or resets) while the server may still have something of it to read or to
  answer: how much of that is done before the reset shows, and whether it shows at all.
- Until everything has been read, a counter may lie anywhere between what it was at last and what
  it must become.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import reference
from reference import LONGEST, Framing

Parts = tuple[bytes | str, ...]
Range = tuple[int, int]

#: A prefix that says where `raw` cut.
RAW_PARTS: Parts = (b"<", "seq", b" ", "len", b">")
RAW_PREFIX = re.compile(rb"<(\d+) (\d+)>")
RAW_PREFIX_BEGUN = re.compile(rb"<(\d+( \d*)?)?")
#: The largest UDP payload over IPv4: 65,535 less the two headers.
LARGEST_DATAGRAM = 65_507
#: `judge` looks at a whole input at once; so much of a long one at a time keeps it quick.
PIECE = 512


class Conversation:
    """One connection, as its client knows it.

    Args:
        framing: how it is cut.
        parts: of the prefix.
        peer: what `{peer}` shows.

    Attributes:
        ended: the client has sent all.
        over: it has read the server's end.
        left: it has closed, or reset.
        admitted: whether the server has accepted it; False while it waits in the backlog.
        fault: the reason for which the server must close it, once there is one.
        messages, replied: how many there are in what was sent, and the bytes of their replies.
    """

    def __init__(self, framing: Framing, parts: Parts, peer: bytes) -> None:
        self.framing = framing
        self.parts = parts
        self.peer = peer
        self.ended = self.over = self.left = self.stopped = False
        self.admitted = True
        self.fault: str | None = None
        self.messages = self.replied = 0
        #: What its counters were when the books were closed for the last time.
        self.known: Counter[str] = Counter()
        self._torn = False
        self._settled = False
        self._closings: set[str] = set()
        #: Bytes that the server may have counted, and must have.
        self._counted = self._must_count = 0
        self._uncut = b""
        self._unread = bytearray()

    # -- what the client does

    def say(self, data: bytes) -> None:
        """The kernel has taken this."""
        self._settled = self._settled and self.over
        if not self.over:
            self._counted += len(data)
        for at in range(0, len(data), PIECE):
            if self.fault is None:
                self._cut(data[at : at + PIECE])

    def end(self) -> None:
        """The client has sent all."""
        self._settled = self._settled and self.over
        self.ended = True
        if self.fault is None:
            self._book(self._uncut, True)
            self._closings = {self.fault or "eof"}

    def hear(self, data: bytes) -> None:
        """The client has read this."""
        assert self._unread.startswith(data), (
            f"{self!r}: got {_shown(data)}, expected {_shown(self._unread)}"
        )
        del self._unread[: len(data)]

    def hear_end(self) -> None:
        """The client has read the end of the stream."""
        self.over = True
        assert self.ends, f"{self!r}: ended for no reason"
        assert self.complete, f"{self!r}: ended before {_shown(self._unread)}"

    def leave(self, abruptly: bool) -> None:
        """The client has closed, or reset, its socket."""
        self.left = True
        if self.over:
            return
        if self._settled and abruptly:
            self._closings = {"reset"}
            return
        quiet = self._settled and not self.pending
        if not self.ended and not abruptly:
            self.end()
        if not quiet:
            self._torn = True
            self._closings |= {"reset"}

    # -- what follows from it

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame."""
        return len(self._uncut)

    @property
    def complete(self) -> bool:
        """Whether every reply has been read."""
        return not self._unread

    @property
    def ends(self) -> bool:
        """Whether the server must send its end after the replies."""
        return self.ended or self.fault is not None or self.stopped

    @property
    def done(self) -> bool:
        """Whether there is nothing more to read for now."""
        return self.complete and self.over == self.ends

    @property
    def released(self) -> bool:
        """Whether the server is rid of it as soon as it looks, whatever others do."""
        return self.left or (self.over and self.ended)

    def bounds(self, final: bool) -> dict[str, Range]:
        """The counters' least and most.

        Args:
            final: the client has read all that there is for it, and the server is at rest.
        """
        if final and not self.admitted:
            return {}
        exact = final and not self._torn
        least: Mapping[str, int] = self.known
        if exact:
            least = {
                "messages": self.messages,
                "bytes_in": self._must_count,
                "bytes_out": self.replied,
            }
        most = {"messages": self.most_messages, "bytes_in": self._counted}
        most["bytes_out"] = self.most_replied
        found = {name: (least[name], most[name]) for name in most}
        found["connections"] = (int(final) or self.known["connections"], 1)
        sure = exact and len(self._closings) == 1
        for reason in self._closings:
            name = f"closed.{reason}"
            found[name] = (int(sure) or self.known[name], 1)
        if self._closings:
            found["closed"] = (int(final) or self.known["closed"], 1)
        return found

    def settle(self) -> None:
        """The books are closed: its counters are taken to be the least, the rest is theirs."""
        self.known = Counter({name: least for name, (least, _) in self.bounds(True).items()})
        if self.admitted and not self._torn:
            self._settled = True
            self._counted = self._must_count

    def stop(self) -> None:
        """The server was told to stop: it ends what is open, all replies sent."""
        self.stopped = True
        if not self._closings:
            self._closings = {"stopped"}

    def __repr__(self) -> str:
        peer = self.peer.decode()
        return f"<{peer}: {self._counted} bytes, {self.messages} messages, fault {self.fault}>"

    # -- how it is done; `raw` does it in another way

    @property
    def most_messages(self) -> int:
        return self.messages

    @property
    def most_replied(self) -> int:
        return self.replied

    def _cut(self, data: bytes) -> None:
        stream = self._uncut + data
        begun = len(self._uncut)
        self._book(stream, False)
        if self.fault is None:
            self._must_count += len(data)
            return
        # The server must have read up to the first byte that shows the fault.
        low, high = begun, len(stream)
        while high - low > 1:
            middle = (low + high) // 2
            if reference.judge(self.framing, stream[:middle]).reason:
                high = middle
            else:
                low = middle
        self._must_count += high - begun
        self._closings = {self.fault}

    def _book(self, stream: bytes, ended: bool) -> None:
        verdict = reference.judge(self.framing, stream, ended)
        for frame in verdict.frames:
            self.messages += 1
            prefix = render(self.parts, self.messages, len(frame.message), self.peer)
            reply = reference.reply(self.framing, frame, prefix)
            self.replied += len(reply)
            self._unread += reply
        self.fault = verdict.reason
        self._uncut = b"" if self.fault or ended else stream[verdict.offset :]


class RawConversation(Conversation):
    """One connection whose messages are what `recv` returned: its replies tell which."""

    def __init__(self, peer: bytes) -> None:
        super().__init__(Framing("raw"), RAW_PARTS, peer)
        self._unanswered = bytearray()
        self._heard = bytearray()

    def hear(self, data: bytes) -> None:
        self._heard += data
        while self._heard:
            prefix = RAW_PREFIX.match(self._heard)
            if prefix is None:
                assert RAW_PREFIX_BEGUN.fullmatch(self._heard), f"{self!r}: {_shown(self._heard)}"
                return
            number, size = map(int, prefix.groups())
            body = bytes(self._heard[prefix.end() : prefix.end() + size])
            assert number == self.messages + 1, f"{self!r}: message {number}"
            assert 1 <= size <= len(self._unanswered), f"{self!r}: {prefix[0]!r}"
            assert self._unanswered.startswith(body), f"{self!r}: {_shown(body)}"
            if len(body) < size:
                return
            del self._heard[: prefix.end() + size]
            del self._unanswered[:size]
            self.messages += 1
            self.replied += prefix.end() + size

    @property
    def complete(self) -> bool:
        return not self._unanswered and not self._heard

    @property
    def most_messages(self) -> int:
        return self.messages + len(self._unanswered)

    @property
    def most_replied(self) -> int:
        longest = sum(LONGEST[part] if isinstance(part, str) else len(part) for part in self.parts)
        return self.replied + len(self._unanswered) * (1 + longest)

    def _cut(self, data: bytes) -> None:
        self._must_count += len(data)
        self._unanswered += data

    def _book(self, stream: bytes, ended: bool) -> None:
        """There is no tail, and nothing to be wrong."""


class Correspondence:
    """One UDP socket of the server's: whatever it is sent is in turn."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.counted: Counter[str] = Counter(messages=0, bytes_in=0, bytes_out=0)

    def say(self, message: bytes, peer: bytes) -> bytes | None:
        """A datagram was sent; what must come back, if anything."""
        self.counted["messages"] += 1
        self.counted["bytes_in"] += len(message)
        number = self.counted["messages"]
        reply = render(self.parts, number, len(message), peer) + message
        if len(reply) > LARGEST_DATAGRAM:
            self.counted["unanswered.emsgsize"] += 1
            return None
        self.counted["bytes_out"] += len(reply)
        return reply


class Books:
    """The server's counters, foretold.

    Attributes:
        conversations: those not yet settled for good, in the order of their connecting.
        correspondence: over UDP.
    """

    def __init__(self, correspondence: Correspondence) -> None:
        self.conversations: list[Conversation] = []
        self.correspondence = correspondence
        self._settled: Counter[str] = Counter()
        self._datagrams: Counter[str] = Counter()

    def differences(self, counters: Mapping[str, int], final: bool) -> dict[str, object]:
        """Which counters are out of their ranges: (least, most) and what they are."""
        least, most = self._settled.copy(), self._settled.copy()
        least.update(self.correspondence.counted if final else self._datagrams)
        most.update(self.correspondence.counted)
        for conversation in self.conversations:
            for name, (low, high) in conversation.bounds(final).items():
                least[name] += low
                most[name] += high
        actual = totalled(counters)
        return {
            name: f"{least[name]} to {most[name]}, not {actual[name]}"
            for name in sorted(least.keys() | most.keys() | actual.keys())
            if not least[name] <= actual[name] <= most[name]
        }

    @property
    def exact(self) -> bool:
        """Whether, when all was read, no counter can be anything but one number."""
        return all(
            low == high for each in self.conversations for low, high in each.bounds(True).values()
        )

    def streams(self, counters: Mapping[str, int]) -> Counter[str]:
        """The counters less what came over UDP."""
        total = totalled(counters)
        total.subtract(self.correspondence.counted)
        return total

    def settle(self, counters: Mapping[str, int]) -> None:
        """Everything was read and agreed: what is still open has its exact share in this."""
        self._datagrams = self.correspondence.counted.copy()
        self._settled = totalled(counters)
        self._settled.subtract(self._datagrams)
        for conversation in self.conversations:
            conversation.settle()
        self.conversations = [
            each for each in self.conversations if not (each.released and each.admitted)
        ]
        for conversation in self.conversations:
            self._settled.subtract(conversation.known)

    def earlier(self, conversation: Conversation) -> Iterator[Conversation]:
        """Those that hold a connection that was there before this one."""
        for each in self.conversations:
            if each is conversation:
                return
            if not each.released:
                yield each


def render(parts: Parts, number: int, length: int, peer: bytes) -> bytes:
    """A prefix without a time, quickly."""
    tokens = {"seq": b"%d" % number, "len": b"%d" % length, "peer": peer}
    return b"".join([tokens[part] if isinstance(part, str) else part for part in parts])


def totalled(counters: Mapping[str, int]) -> Counter[str]:
    """The counters, and `closed`: all connections that have ended."""
    total = Counter(dict(counters))
    total["closed"] = sum(n for name, n in counters.items() if name.startswith("closed."))
    return total


def template(parts: Sequence[bytes | str]) -> str:
    """As a setting."""
    return "".join(
        f"{{{part}}}"
        if isinstance(part, str)
        else part.decode().replace("{", "{{").replace("}", "}}")
        for part in parts
    )


def _shown(data: bytes | bytearray) -> str:
    """Its length and its beginning."""
    return f"{len(data)} bytes {bytes(data[:60])!r}"
