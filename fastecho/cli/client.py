"""`fastecho client`: the tutorial's prompt, made dependable; reads a pipe as well."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from ..client import Client, converse
from ..errors import FastechoError
from . import FAILED, complain, options

PROMPT = "> "
#: Lines of history that are kept between conversations.
REMEMBERED = 1_000


@click.command()
@options.target("The server's; needed with fixed:N, and with UDP if it is long.")
@click.option(
    "--max-frame", metavar="BYTES", type=int, help="Longest message.  [default: 65536, or less]"
)
@options.timeout
def client(
    address: str, udp: bool, framing: str, prefix: str, max_frame: int | None, timeout: float
) -> int:
    """Send each line as a message, and print its reply.

    ADDR is one address, written as for serve; 127.0.0.1:12345 if left out. An empty line,
    or the end of the input, ends it. Exit status 1: a reply was missing or wrong.
    """
    for stream, name in ((sys.stdin, "input"), (sys.stdout, "output")):
        if stream is None:  # as after `<&-`
            raise FastechoError(f"standard {name} is closed")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with Client(address, udp, framing, prefix, max_frame, timeout) as peer:
        typed = sys.stdin.isatty() and sys.stdout.isatty()
        lines = _typed_lines() if typed else _piped_lines(peer.longest)
        return 0 if converse(peer, lines, _show, complain) else FAILED


def _piped_lines(longest: int) -> Iterator[bytes]:
    """Lines without their newlines; of one that nobody could send, only so much as shows that."""
    read = sys.stdin.buffer.readline
    while line := read(longest + 2):
        yield line.removesuffix(b"\n")
        if line == b"\n" and read(1):
            complain("an empty line ends it: what follows was not sent")
        while line and not line.endswith(b"\n"):
            line = read(longest)


def _typed_lines() -> Iterator[bytes]:
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    with _history():
        while True:
            try:
                line = input(PROMPT)
            except EOFError:
                click.echo()  # the shell's prompt has a line of its own; click sees to Ctrl-C's
                return
            yield line.encode(errors="surrogateescape")


@contextmanager
def _history() -> Iterator[None]:
    """Line editing, and the lines of earlier conversations; neither is missed where it is not."""
    try:
        import readline
    except ImportError:
        yield
        return
    given = os.environ.get("XDG_STATE_HOME", "")  # a relative one is not valid (XDG)
    state = Path(given if given.startswith("/") else os.path.expanduser("~/.local/state"))
    file = state / "fastecho" / "history"
    with suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        with suppress(OSError):
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            readline.set_history_length(REMEMBERED)
            readline.write_history_file(file)


def _show(reply: bytes) -> None:
    """As it came; a terminal is shown nothing that it would obey."""
    if sys.stdout.isatty():
        click.echo(visible(reply))
    else:
        sys.stdout.buffer.write(reply + b"\n")
        sys.stdout.buffer.flush()


def visible(data: bytes) -> str:
    """The text, with everything but printable characters and tabs escaped."""
    text = data.decode(errors="backslashreplace")
    return "".join(
        each if each.isprintable() or each == "\t" else each.encode("unicode_escape").decode()
        for each in text
    )
