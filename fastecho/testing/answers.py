"""What is sent to a server, and which answers are right.

`Echoes` knows the right answer: each reply ends with its message, and what stands before is a
prefix of one form. `Recorded` learns it, from the request sent whole, once for each way of ending.
Neither does I/O: both judge the outcomes of exchanges.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from typing import TYPE_CHECKING

from .. import backend as backends
from .. import framing
from ..client import quoted
from ..errors import ConfigError
from ..limits import MAX_PREFIX
from . import exchange
from .exchange import GRACE, Outcome, Plan
from .masks import Masks, difference, escape, form, of_form

if TYPE_CHECKING:
    from .._pure.framing import Codec

#: The most that is sent on a connection, and the most that is kept of an answer: what is compared
#: is held in memory.
LONGEST_REQUEST, LONGEST_ANSWER = 2**20, 2**22
#: The longest message that is made, where nobody asks for another: longer than the buffers of
#: 1, 4 and 8 KiB that programs have.
LONGEST_MESSAGE = 10_000
#: Printable, and with characters of two and three bytes in UTF-8, so that a cut can be inside one.
TEXT = "hello wörld €".encode()
#: A length of two bytes that are both needed, in any framing with a length.
LONG = 300
LETTERS = b"abcdefghijklmnopqrstuvwxyz"
DIGITS = bytes.maketrans(b"123456789", b"000000000")
#: Digits by which a number in a prefix may grow: then no message that fits today is too long.
NUMBER = 20
#: Around these, buffers end; a header or a delimiter may make it a few bytes less.
BUFFERS = (64, 100, 128, 256, 512, 1000, 1024, 1500, 2048, 4096, 8192, 10_000)


class Answers(ABC):
    """What is sent, and how to know a right answer.

    Attributes:
        requests: the frames that are sent alone, cut in every way.
        batch: those that are sent together, on one connection.
        masks: hide what may differ between two right answers.
    """

    requests: tuple[bytes, ...]
    batch: tuple[bytes, ...]
    masks: Masks

    @abstractmethod
    def patience(self, plan: Plan, received: bytes) -> float | None:
        """How long to wait for more (`exchange.Patience`)."""

    @abstractmethod
    def judge(self, plan: Plan, outcome: Outcome) -> str:
        """What is wrong with it, in words; nothing if it is right."""

    @abstractmethod
    def expected(self, plan: Plan) -> bytes:
        """A right answer."""

    @abstractmethod
    def pattern(self, plan: Plan) -> bytes:
        """A regular expression of all right answers."""

    @abstractmethod
    def blur(self, data: bytes) -> bytes:
        """The data, as long as before, with all that may differ made the same."""


# -- a server that echoes


class Echoes(Answers):
    """Messages in a framing, to a server that sends each back with a prefix or none.

    Args:
        spec: the framing.
        longest: of a message; less where the framing cannot say so much.
        count: how many messages are sent together.
        masks: hide what else may differ in a prefix.

    Raises:
        ConfigError: a framing in which every cut makes another message, or that makes no sense.
    """

    def __init__(self, spec: str, longest: int, count: int, masks: Masks) -> None:
        if spec == "raw":
            raise ConfigError(
                "raw has no messages that could be cut: each is what one recv returned"
                " (the server's --framing says how it should mark them)"
            )
        self._framing = framing.parse(spec)
        self._twin = backends.load()
        self._limit = self._framing.fixed or min(longest, self._framing.capacity or longest)
        # With an `adjust`, a length of 0 announces a message of so many bytes already.
        codec = self._framing.codec(self._twin, self._limit)
        self._least = self._framing.fixed or max(1, getattr(codec, "adjust", 1))
        self.masks = masks
        self._prefix = b""
        self._bare = self._known = False
        _check_size(count, self._least)
        self.requests = tuple(dict.fromkeys(self._frames(self._messages())))
        self.batch = self._frames(b"%d %b" % (n, TEXT) for n in range(1, count + 1))

    def learn(self, outcome: Outcome) -> str:
        """Take the prefix from the answer to the first request, sent whole; what is wrong."""
        plan = Plan(self.requests[:1])
        (message,) = self._sent(plan)
        if self._framing.fixed is not None:
            self._prefix = outcome.received[: max(0, len(outcome.received) - len(message))]
        elif replies := self._replies(outcome.received)[0]:
            self._prefix = replies[0].removesuffix(message)
        self._known = True
        return self.judge(plan, outcome)

    def learn_end_of_line(self, plan: Plan, outcome: Outcome) -> None:
        """Some servers take the CR before an LF for a part of it, and do not send it back."""
        if self._framing.spec == "line" and self.judge(plan, outcome):
            self._bare = True
            self._bare = not self.judge(plan, outcome)

    @property
    def sizes(self) -> list[int]:
        """Lengths of messages around which buffers end, ascending."""
        if self._framing.fixed is not None:
            return []
        longest = self._limit
        if self._framing.capacity is not None:
            numbers = re.findall(rb"\d+", self._prefix)
            room = self._framing.capacity - len(self._prefix) - NUMBER * len(numbers)
            longest = min(longest, room)
        near = {size + more for size in BUFFERS for more in (-2, -1, 0, 1, 2)}
        return sorted(size for size in {*near, longest} if self._least <= size <= longest)

    def sized(self, size: int) -> tuple[bytes, ...]:
        """A request with a message of so many bytes."""
        return self._frames([self._filled(size)])

    def patience(self, plan: Plan, received: bytes) -> float | None:
        messages = self._sent(plan)
        if not self._known and self._framing.fixed is not None:
            return 0.0 if received.endswith(messages[0]) else None
        wrong, complete = self._compare(messages, received)
        return None if not complete else GRACE if wrong else 0.0

    def judge(self, plan: Plan, outcome: Outcome) -> str:
        wrong, complete = self._compare(self._sent(plan), outcome.received)
        return wrong if complete else f"{wrong}{explain(outcome)}"

    def expected(self, plan: Plan) -> bytes:
        return b"".join(self._reply(self._echoed(each)) for each in self._sent(plan))

    def pattern(self, plan: Plan) -> bytes:
        found = b""
        for message in map(self._echoed, self._sent(plan)):
            frame = self._reply(message)
            header, trailer = frame.split(self._prefix + message, 1)
            if header:  # it tells the length, which may be another with another prefix
                found += (
                    rb"\d+:" if self._framing.spec == "netstring" else b"(?s:.{%d})" % len(header)
                )
            found += self._prefixes() + escape(message) + escape(trailer)
        return found

    def blur(self, data: bytes) -> bytes:
        return self.masks.blur(data).translate(DIGITS)

    def _compare(self, messages: list[bytes], received: bytes) -> tuple[str, bool]:
        """What is wrong; whether as much has come as should."""
        replies, rest, broken = self._replies(received)
        complete = bool(broken) or len(replies) >= len(messages)
        for number, (message, reply) in enumerate(zip(messages, replies, strict=False), 1):
            which = "the reply" if len(messages) == 1 else f"reply {number} of {len(messages)}"
            echoed = self._echoed(message)
            if not reply.endswith(echoed):
                return f"{which} does not end with its message", complete
            prefix = reply.removesuffix(echoed)
            if self._form(prefix) != self._form(self._prefix):
                others = quoted(self._prefix)
                return f"{which} begins with {quoted(prefix)}, others with {others}", complete
        if broken:
            return f"what came is no reply: {broken}", complete
        if len(replies) < len(messages):
            missing = f" to {len(messages) - len(replies)} of {len(messages)} messages"
            return f"there is no reply{missing if len(messages) > 1 else ''}", complete
        if len(replies) > len(messages):
            return "there are more replies than messages", complete
        return (f"{rest:,} bytes follow the last reply" if rest else ""), complete

    def _sent(self, plan: Plan) -> list[bytes]:
        return self._framing.codec(self._twin, self._limit).feed(plan.data)

    def _replies(self, received: bytes) -> tuple[list[bytes], int, str]:
        """The complete replies, how many bytes follow them, what breaks the framing."""
        codec = self._answering()
        replies = codec.feed(received)
        return replies, codec.pending, codec.error.detail if codec.error else ""

    def _answering(self) -> Codec:
        """For replies: a message and any prefix, but of fixed length for fixed messages."""
        if self._framing.fixed is not None:
            size = self._framing.fixed + len(self._prefix)
            return framing.parse(f"fixed:{size}").codec(self._twin, None)
        longest = LONGEST_ANSWER + MAX_PREFIX
        return self._framing.codec(self._twin, min(longest, self._framing.capacity or longest))

    def _reply(self, message: bytes) -> bytes:
        return self._answering().encode(self._prefix + message)

    def _echoed(self, message: bytes) -> bytes:
        return message.removesuffix(b"\r") if self._bare else message

    def _form(self, prefix: bytes) -> bytes:
        return form(self.masks.hide(prefix))

    def _prefixes(self) -> bytes:
        """A regular expression of all of them, inside of an answer."""
        found = self.masks.pattern(self._prefix, of_form)
        # A mask such as ^.* is met in a prefix alone, and nowhere else.
        met = re.fullmatch(b"x%bx" % found, b"x%bx" % self._prefix)
        return found if met else b"(?s:.*?)"

    def _messages(self) -> Iterator[bytes]:
        """Where a framing has a state of its own between two bytes, a message that shows it."""
        yield TEXT
        if self._framing.spec == "line":
            yield b"hello\r"
        elif self._framing.delimiter is not None:
            begun = self._framing.delimiter[:-1]
            yield begun + b"hello" + begun
        elif self._framing.spec == "netstring":
            yield b"5:hello,"
        elif self._framing.fixed is None and (self._framing.capacity or LONG * 2) >= LONG * 2:
            yield self._filled(LONG)

    def _filled(self, size: int) -> bytes:
        ending = b"".join(self._framing.delimiters)
        letters = LETTERS.translate(None, ending)
        others = bytes(range(256)).translate(None, ending)
        return bytes(islice(cycle(letters or others), size))

    def _frames(self, messages: Iterable[bytes]) -> tuple[bytes, ...]:
        """What can be said of them in this framing, and there is always something."""
        codec = self._framing.codec(self._twin, self._limit)
        found: list[bytes] = []
        for message in messages:
            size = max(self._least, min(len(message), self._limit))
            fitting = bytes(islice(cycle(message), size))
            try:
                found.append(codec.encode(fitting))
            except ValueError:
                found.append(codec.encode(self._filled(len(fitting))))
        return tuple(found)


# -- any other


class Recorded(Answers):
    """A request, and the answers to it when it is sent whole.

    Args:
        request: bytes.
        count: how often it is sent in one stream.
        masks: hide what may differ in the answers.

    Raises:
        ConfigError: a request that is empty, or too long.
    """

    def __init__(self, request: bytes, count: int, masks: Masks) -> None:
        if not request:
            raise ConfigError("the request is empty: there is nothing to cut")
        _check_size(count, len(request))
        self.requests = (request,)
        self.batch = (request,) * count
        self.masks = masks
        self._known: dict[Plan, bytes] = {}

    def learn(self, plan: Plan, received: bytes) -> None:
        """This is the answer, however it is cut."""
        self._known[plan.whole] = received

    def knows(self, plan: Plan) -> bool:
        """Whether the answer to this is known."""
        return plan.whole in self._known

    def patience(self, plan: Plan, received: bytes) -> float | None:
        expected = self._known.get(plan.whole)
        if expected is None:
            return None
        if len(received) < len(expected) // 2:  # a mask could hardly make up for that
            return None
        hidden, right = self.masks.hide(received), self.masks.hide(expected)
        if hidden == right:
            return 0.0
        # What a mask hides may be longer this time, and more of the answer still on its way.
        return None if len(received) < len(expected) or right.startswith(hidden) else GRACE

    def judge(self, plan: Plan, outcome: Outcome) -> str:
        expected, received = (
            self.masks.hide(each) for each in (self.expected(plan), outcome.received)
        )
        if received == expected:
            return ""
        if not received:
            return f"there is no answer{explain(outcome)}"
        at = difference(received, expected)
        if at == len(received):
            return f"the answer is shorter{explain(outcome)}"
        if at == len(expected):
            return f"the answer is longer{explain(outcome)}"
        return f"the answer is another{explain(outcome)}"

    def expected(self, plan: Plan) -> bytes:
        return self._known[plan.whole]

    def pattern(self, plan: Plan) -> bytes:
        return self.masks.pattern(self.expected(plan))

    def blur(self, data: bytes) -> bytes:
        return self.masks.blur(data)


def _check_size(count: int, size: int) -> None:
    if count * size > LONGEST_REQUEST:
        raise ConfigError(
            f"{count:,} requests of {size:,} bytes are too much: at most {LONGEST_REQUEST:,} bytes"
            " are sent on a connection"
        )


def explain(outcome: Outcome) -> str:
    """Why no more was waited for, where that tells something."""
    return {
        exchange.ANSWERED: "",
        exchange.CLOSED: ": the server closed the connection",
        exchange.FLOODED: f": more than {LONGEST_ANSWER:,} bytes came",
    }.get(outcome.end, f": {outcome.detail}")
