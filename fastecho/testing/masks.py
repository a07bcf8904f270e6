"""What may differ between two right answers: times, counters, names; and how to tell a user so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from ..client import quoted
from ..errors import ConfigError

#: What stands for all that a mask hides.
MASKED = b"*"
#: As many masks are suggested: an answer that needs more is no answer to compare.
SUGGESTED = 8

_NAMES = (
    rb"\b(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)(?:day|sday|nesday|rsday|urday)?"
    rb"|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
    rb"(?:uary|ruary|ch|il|e|y|ust|tember|ober|ember)?)\b"
)
#: A name of a day or month; a number, which may be padded; any other byte.
_TOKEN = re.compile(rb"(?s:(%b)|( *\d+)|.)" % _NAMES)
#: What a time, a number or an id is made of.
_WORD = frozenset(b"0123456789:.+-_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
#: Of a mask: flags for all of it; groups with a name, or that are referred to.
_FLAGS = re.compile(rb"\(\?([aiLmsx]+)\)")
_REFERENCE = re.compile(rb"\\[1-9]|\(\?P|\(\?\(")
_SPECIAL = frozenset(rb".^$*+?{}[]\|()")
_PLAIN = frozenset(range(0x20, 0x7F)) - frozenset(b'"')


def form(prefix: bytes) -> bytes:
    """What stays the same of a prefix: its numbers, and names of days and months, do not.

    >>> form(b"[Sun Nov  1 07:00:00 2026]") == form(b"[Mon Dec 12 12:34:56 2027]")
    True
    """
    return _TOKEN.sub(lambda found: b"A" if found[1] else b"0" if found[2] else found[0], prefix)


def of_form(prefix: bytes) -> bytes:
    """A regular expression of what has the same form."""

    def general(found: re.Match[bytes]) -> bytes:
        if found[2]:
            return rb" *\d+" if found[2].startswith(b" ") else rb"\d+"
        return rb"[A-Z][a-z]+" if found[1] else escape(found[0])

    return _TOKEN.sub(general, prefix)


def escape(data: bytes) -> bytes:
    """As a regular expression, in printable ASCII; unlike `re.escape`, no more than is needed."""
    return b"".join(
        b"\\%c" % octet
        if octet in _SPECIAL
        else b"%c" % octet
        if octet in _PLAIN
        else {10: rb"\n", 13: rb"\r"}.get(octet) or rb"\x%02x" % octet
        for octet in data
    )


class Masks:
    """Regular expressions of what may differ between two right answers.

    Raises:
        ConfigError: an expression that is none.
    """

    def __init__(self, expressions: Sequence[bytes] = ()) -> None:
        self.expressions = tuple(expressions)
        self._compiled: list[re.Pattern[bytes]] = []
        for expression in self.expressions:
            try:
                self._compiled.append(re.compile(expression))
            except re.error as error:
                words = f"mask {quoted(expression)} is no regular expression: {error}"
                raise ConfigError(words) from error

    def hide(self, data: bytes) -> bytes:
        """The data, with all that may differ made the same."""
        for each in self._compiled:
            data = each.sub(lambda _: MASKED, data)
        return data

    def blur(self, data: bytes) -> bytes:
        """As `hide`, and as long as before: to see where two answers differ."""
        for each in self._compiled:
            data = each.sub(lambda found: MASKED * len(found[0]), data)
        return data

    def pattern(self, data: bytes, plain: Callable[[bytes], bytes] = escape) -> bytes:
        """A regular expression of all that may stand for the data.

        Args:
            data: an answer.
            plain: makes one of what no mask hides.
        """
        places: list[tuple[int, int, bytes]] = []
        hidden = bytearray(len(data))
        for each in self._compiled:
            for found in each.finditer(data):
                begin, end = found.span()
                if begin < end and not any(hidden[begin:end]):
                    hidden[begin:end] = b"x" * (end - begin)
                    places.append((begin, end, _inside(each)))
        parts, at = [], 0
        for begin, end, expression in sorted(places):
            parts += [plain(data[at:begin]), expression]
            at = end
        return b"".join(parts) + plain(data[at:])


def _inside(mask: re.Pattern[bytes]) -> bytes:
    """As a part of a longer expression: of that, its flags and groups must not be."""
    if mask.groups and _REFERENCE.search(mask.pattern):
        return b"(?s:.*?)"
    flags = _FLAGS.match(mask.pattern)
    if flags is None:
        return b"(?:%b)" % mask.pattern
    # Where comments are allowed, one may stand at the end.
    last = b"\n" if mask.flags & re.VERBOSE else b""
    return b"(?%b:%b%b)" % (flags[1], mask.pattern[flags.end() :], last)


def difference(first: bytes, second: bytes) -> int:
    """Where they begin to differ; the length of both, if they do not."""
    if first == second:
        return len(first)
    shared = min(len(first), len(second))
    low, high = 0, shared  # the first `low` bytes are the same, `high + 1` are not
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def suggest(first: bytes, second: bytes, masks: Masks) -> tuple[bytes, ...]:
    """Masks, besides those there are, that make two answers the same; none, if that cannot be."""
    if not first or not second:
        return ()
    found: tuple[bytes, ...] = ()
    hidden = masks
    for _ in range(SUGGESTED):
        one, other = hidden.hide(first), hidden.hide(second)
        at = difference(one, other)
        if one == other:
            return found
        for candidate in _candidates(one, other, at):
            wider = Masks((*hidden.expressions, candidate))
            same = wider.hide(first), wider.hide(second)
            # What is hidden is shorter; what remains after the difference tells of progress.
            if same[0] == same[1] or len(same[0]) - difference(*same) < len(one) - at:
                found, hidden = (*found, candidate), wider
                break
        else:
            return ()
    return ()


def _candidates(first: bytes, second: bytes, at: int) -> Iterator[bytes]:
    """Masks for what differs there, the best first."""
    line = first[first.rfind(b"\n", 0, at) + 1 :].partition(b"\n")[0].rstrip(b"\r")
    if header := re.match(rb"[\w-]+:(?= )", line):
        yield escape(header[0]) + rb"[^\r\n]*"
    one, other = _word(first, at), _word(second, at)
    if re.search(rb"\d", one) and form(one) == form(other):
        yield re.sub(rb"\d+", rb"\\d+", escape(one))
    begin = first.rfind(b"\n", 0, at) + 1
    word = at
    while word > begin and first[word - 1] in _WORD:
        word -= 1
    if word > begin:
        yield b"(?<=%b)[\\w:.+-]+" % escape(first[begin:word][-10:])
    elif len(line) > len(one):  # never all of a line
        yield rb"(?m:^)[\w:.+-]+"
    if at > begin:
        yield escape(first[begin:at]) + rb"[^\r\n]*"


def _word(data: bytes, at: int) -> bytes:
    begin = end = at
    while begin > 0 and data[begin - 1] in _WORD:
        begin -= 1
    while end < len(data) and data[end] in _WORD:
        end += 1
    return data[begin:end]
