"""Ctrl-C, taken only where something is waited for.

A signal's handler that raises does so in whatever line is the next: between the making of a socket
and the `with` that closes it, or in the middle of an import. If that is inside `exec` of a string,
of which imports have many (dataclasses), CPython even takes it for unhandled and in the end kills
itself by SIGINT, whoever caught it (`unhandled_keyboard_interrupt`, Python/pythonrun.c). Here the
handler makes a note, and only a wait raises: at once if it has begun, else when it begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Interruption:
    """Whether to end, and where that is noticed; for the main thread, where handlers run."""

    def __init__(self) -> None:
        self._asked = False
        self._waits = False

    def ask(self) -> None:
        """End; to be called by a signal's handler.

        Raises:
            KeyboardInterrupt: something is being waited for.
        """
        self._asked = True
        if self._waits:
            raise KeyboardInterrupt

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A wait, all of which can be left out: what it makes would be lost.

        Raises:
            KeyboardInterrupt: `ask` was called, before or meanwhile.
        """
        self._waits = True
        try:
            if self._asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._waits = False
