"""Prefix templates: what is put before each message, such as `[{ctime}]`.

Names in braces only; `{{` and `}}` are literal braces. Literals are UTF-8.
"""

from __future__ import annotations

import os
import re
import socket

from .errors import ConfigError
from .timestamps import TOKENS

DEFAULT = "[{ctime}]"
NAMES = (*TOKENS, "host", "pid")

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|([{}])|[^{}]+")
_DIGIT = frozenset(b"0123456789")
_LETTER = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_PRINTABLE = frozenset(range(0x20, 0x7F))
_SIGN = frozenset(b"+-")
#: How tokens look, a letter for each byte: `A` a letter, `9` a digit, `+` a sign, `_` a digit or
#: a space, `*` any printable bytes. Other tokens are digits. `host` is somebody's: another's is
#: not known here.
_FORMS = {
    "ctime": "AAA AAA __ 99:99:99 9999",
    "iso": "9999-99-99T99:99:99.999999+99:99",
    "utc": "9999-99-99T99:99:99.999999999Z",
    "peer": "*",
    "host": "*",
}
#: A host's name has at most 255 bytes (gethostname(2)), a process's number ten digits.
_LONGEST = {**TOKENS, "host": 255, "pid": 10}
_WIDTHS = {name: len(form) for name, form in _FORMS.items() if "*" not in form}
_CLASSES = {"A": _LETTER, "9": _DIGIT, "+": _SIGN, "_": _DIGIT | {0x20}, "*": _PRINTABLE}
_CLASS_FORMS = {
    "A": b"[A-Za-z]",
    "9": b"[0-9]",
    "+": b"[+-]",
    "_": b"[ 0-9]",
    "*": b"[ -~]*",
    ".": rb"\.",
}


def parse(template: str) -> tuple[bytes | str, ...]:
    """The template's parts: literals as bytes (with `{host}` and `{pid}` filled in), token names.

    Raises:
        ConfigError: an unknown name, a format spec, a lone brace; the text lists what is right.
    """
    own = {"host": socket.gethostname().encode(), "pid": b"%d" % os.getpid()}
    return tuple(
        own.get(piece, piece) if isinstance(piece, str) else piece for piece in _cut(template)
    )


def _cut(template: str) -> list[bytes | str]:
    """As `parse`, with `host` and `pid` still names."""
    parts: list[bytes | str] = []
    for match in _PIECE.finditer(template):
        name, lone = match.groups()
        if lone is not None:
            raise ConfigError(
                f"prefix {template!r} has a lone {lone!r}: write {lone + lone!r} for a literal one"
            )
        if name is None:
            piece = match[0]
            parts.append({"{{": b"{", "}}": b"}"}.get(piece) or _encode(template, piece))
        elif name in NAMES:
            parts.append(name)
        else:
            raise ConfigError(
                f"prefix {template!r} has no token {{{name}}}: choose from"
                f" {' '.join('{' + known + '}' for known in NAMES)}"
            )
    return parts


def width(template: str) -> int | None:
    """Bytes of the prefix, if each rendering has as many, whatever server made it; else None."""
    parts = _cut(template)
    if any(part not in _WIDTHS for part in parts if isinstance(part, str)):
        return None
    return sum(len(part) if isinstance(part, bytes) else _WIDTHS[part] for part in parts)


def longest(template: str) -> int:
    """The most bytes that a rendering by any server can have."""
    parts = _cut(template)
    return sum(len(part) if isinstance(part, bytes) else _LONGEST[part] for part in parts)


def one_width(template: str, spec: str) -> int:
    """`width`, for replies in a framing that tells them apart by their length alone.

    Raises:
        ConfigError: they have many.
    """
    found = width(template)
    if found is None:
        raise ConfigError(
            f"replies in {spec} can be told apart only if all prefixes have one width, which those"
            f" of {template!r} have not"
        )
    return found


def form(template: str) -> re.Pattern[bytes]:
    """What matches any rendering of the template by any server, and little else."""
    pieces = []
    for part in _cut(template):
        if isinstance(part, bytes):
            pieces.append(re.escape(part))
        elif part in _FORMS:
            pieces.append(b"".join(_CLASS_FORMS.get(each, each.encode()) for each in _FORMS[part]))
        else:
            pieces.append(b"[0-9]+")
    return re.compile(b"".join(pieces), re.DOTALL)


def check_delimiter(template: str, delimiter: bytes) -> None:
    """Make sure that no reply's prefix can be mistaken for the end of a message.

    Raises:
        ConfigError: the template can render the delimiter, or end with its first bytes, which
            the message's own could complete.
    """
    atoms = [atom for part in parse(template) for atom in _atoms(part)]
    if _can_hold(atoms, delimiter):
        raise ConfigError(
            f"prefix {template!r} can render the delimiter {delimiter!r}, or the start of it before"
            " a message: choose another of the two"
        )


def _encode(template: str, literal: str) -> bytes:
    try:
        return literal.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"prefix {template!r} is not valid Unicode") from None


def _atoms(part: bytes | str) -> list[tuple[frozenset[int], bool]]:
    """(the bytes that can stand here, whether any number of them can, none included)."""
    if isinstance(part, bytes):
        return [(frozenset({octet}), False) for octet in part]
    if part not in _FORMS:
        return [(_DIGIT, False), (_DIGIT, True)]
    return [
        (_CLASSES.get(letter, frozenset(letter.encode())), letter == "*") for letter in _FORMS[part]
    ]


def _can_hold(atoms: list[tuple[frozenset[int], bool]], delimiter: bytes) -> bool:
    """Whether a rendering can hold the delimiter, or end with a proper start of it.

    Follows the delimiter through the atoms from every place at once, as a regular expression's
    automaton would.
    """

    def reachable(places: set[int]) -> set[int]:
        closed = set(places)
        for place in sorted(places):
            while place < len(atoms) and atoms[place][1]:
                place += 1
                closed.add(place)
        return closed

    places = reachable(set(range(len(atoms) + 1)))
    for octet in delimiter:
        stepped = set()
        for place in places:
            if place < len(atoms) and octet in atoms[place][0]:
                stepped.add(place if atoms[place][1] else place + 1)
        places = reachable(stepped)
        if not places:
            return False
        if len(atoms) in places:
            return True
    return bool(places)
