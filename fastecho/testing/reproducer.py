"""A finding as a program of its own, that needs nothing but Python."""

from __future__ import annotations

import json
import os
import re
import textwrap
from typing import Any

from .exchange import HALF_CLOSED, OPEN, RESET, Plan

#: Columns of the text.
WIDTH = 90
#: Columns of a literal.
LINE = 80
#: What is not cut in two, if it stands in a regular expression.
TOKEN = re.compile(rb"\\x[0-9a-f]{2}|\\?.", re.DOTALL)

_TEMPLATE = '''"""{title}

{what}

    python {file} [HOST PORT | PATH]

Exit status: 0 the answer is right, 1 it is wrong, 3 nobody is there.
"""

import re
import socket
import struct
import sys
import time

ADDRESS = {address}
PIECES = [
{pieces}
]
# Every right answer; what may differ (digits, names of days and months, masks) is left open.
RIGHT = re.compile(
{right}
)
PAUSE = 0.1  # seconds after each piece, in which the server reads it
TIMEOUT = {timeout}  # seconds for an answer
LONGEST = 2**22  # bytes of an answer


def connect(status):
    words = sys.argv[1:] or ADDRESS
    try:
        if len(words) == 1:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(words[0])
            return sock
        sock = socket.create_connection((words[0], int(words[1])), TIMEOUT)
    except OSError as error:
        print("nobody is there:", error)
        sys.exit(status)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def send(sock):
    for number, piece in enumerate(PIECES):
        if number:
            time.sleep(PAUSE)
        sock.sendall(piece)


def receive(sock):
    """The answer, and whatever follows it."""
    received = b""
    deadline = time.monotonic() + TIMEOUT
    right = False
    try:
        while len(received) < LONGEST:
            if RIGHT.fullmatch(received) and not right:
                right = True
                sock.shutdown(socket.SHUT_WR)
                deadline = time.monotonic() + PAUSE
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            data = sock.recv(65_536)
            if not data:
                break
            received += data
    except OSError:
        pass  # nothing more comes
    return received


with connect(3) as sock:
{steps}
print("sent    ", PIECES)
print("received", received)
right = RIGHT.fullmatch(received) is not None
print("right" if right else "wrong")
sys.exit(0 if right else 1)
'''

_WHAT = (
    "Found by `fastecho fuzz {}`; needs nothing but Python. It sends PIECES to the server, each on"
    " its own"
)
#: What is done on the connection, and how that is told.
_SENDING = """\
    try:
        send(sock)
    except OSError:
        pass  # the server has closed"""
_STEPS = {
    OPEN: (
        "and waits for the answer",
        f"""{_SENDING}
    received = receive(sock)""",
    ),
    HALF_CLOSED: (
        "closes its sending side, and waits for the answer",
        f"""{_SENDING}
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    received = receive(sock)""",
    ),
    RESET: (
        "and resets the connection; then another client sends all of it, and waits for the answer",
        f"""{_SENDING}
    time.sleep({{wait}})
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
with connect(1) as sock:  # the server was there, and may be no more
    try:
        sock.sendall(WHOLE)
    except OSError:
        pass
    received = receive(sock)""",
    ),
}


def program(
    plan: Plan, pattern: bytes, title: str, target: str, address: Any, timeout: float, file: str
) -> str:
    """The source.

    Args:
        plan: what to send.
        pattern: a regular expression of all right answers.
        title: what is wrong, in a sentence.
        target: the server, as a user writes it.
        address: of the server, as `socket` has it.
        timeout: seconds for an answer.
        file: its name.
    """
    told, steps = _STEPS[plan.ending]
    # A reset that comes with the last byte is another thing than one after it was read.
    steps = steps.format(wait="PAUSE" if plan.cuts and plan.cuts[-1] < len(plan.data) else "0")
    source = _TEMPLATE.format(
        title=_told(title),
        what=_told(f"{_WHAT.format(target)}, {told}."),
        file=_escaped(os.path.basename(file)),
        address=_address(address),
        pieces="\n".join(f"{literal(each, 4)}," for each in plan.pieces),
        right=literal(pattern, 4),
        timeout=timeout,
        steps=steps,
    )
    if plan.ending == RESET:
        whole = f"WHOLE = (\n{literal(plan.data, 4)}\n)\n# Every right answer;"
        return source.replace("# Every right answer;", whole, 1)
    return source.replace("import struct\n", "", 1)


def _address(address: Any) -> str:
    if not isinstance(address, tuple):
        return f"({_literal(os.fsencode(address))},)"
    host, port = address
    return f"({json.dumps(host)}, {port})"


def _told(text: str) -> str:
    """In a docstring, as a paragraph; a long word may be one of escapes, and stays whole."""
    return textwrap.fill(_escaped(text), WIDTH, break_long_words=False)


def _escaped(text: str) -> str:
    return text.encode("unicode_escape").decode().replace('"', "'")


def literal(data: bytes, indent: int) -> str:
    """Python for these bytes, on lines that are short enough to be read."""
    lines = [b""]
    for token in TOKEN.findall(data):
        if len(_literal(lines[-1] + token)) > LINE:
            lines.append(b"")
        lines[-1] += token
    return "\n".join(" " * indent + _literal(line) for line in lines)


def _literal(data: bytes) -> str:
    text = data.decode("latin-1")
    raw = "\\" in text and '"' not in text and text.isascii() and text.isprintable()
    if raw and not text.endswith("\\"):
        return f'rb"{text}"'
    plain = repr(data + b'"')[2:-2]  # with a double quote in it, single ones stand around
    return 'b"' + plain.replace("\\'", "'").replace('"', '\\"') + '"'
