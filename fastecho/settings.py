"""Settings: what a server can be told, checked before anything is opened.

Names are those of the command's options, with underscores. Sizes are bytes, times are seconds.
"""

from __future__ import annotations

import difflib
import resource
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from . import limits, prefix
from .errors import ConfigError

DEFAULT_LISTEN = ("127.0.0.1:12345",)

#: The kernel's bounds (tcp(7)), each the third number: bytes that it holds of one connection's
#: unread input, and pages that it holds for all of TCP.
_RECEIVE_MEMORY = Path("/proc/sys/net/ipv4/tcp_rmem")
_ALL_MEMORY = Path("/proc/sys/net/ipv4/tcp_mem")


@dataclass(frozen=True)
class Settings:
    """A server's settings.

    Attributes:
        listen: LISTEN words (`fastecho.sockets`); all are bound, or none.
        framing: how messages are marked in a stream.
        prefix: template of what is put before each message.
        max_frame: longest message; None: 65,536, or what the framing can say.
        backend: `native`, `pure`, `auto`, or None: the chosen one.
        max_connections: connections at once; None: as many as there can be descriptors, less 64.
        idle_timeout: without a byte moved either way; 0: for ever.
        frame_timeout: from a frame's first byte to its last; 0: for ever.
        send_buffer: what the kernel holds unsent of one TCP stream.
        linger_timeout: for the peer to close, after a fault.
        drain_timeout: for replies to be taken, after a stop.
        backlog: connections that wait to be accepted.
        verbose: log each connection and each datagram, at level INFO.
        show_cuts: log in which `recv`s each message came, at level INFO.

    Raises:
        ConfigError: naming the setting, and what is right.
    """

    listen: tuple[str, ...] = DEFAULT_LISTEN
    framing: str = "line"
    prefix: str = prefix.DEFAULT
    max_frame: int | None = None
    backend: str | None = None
    max_connections: int | None = None
    idle_timeout: float = limits.IDLE_TIMEOUT
    frame_timeout: float = limits.FRAME_TIMEOUT
    send_buffer: int = limits.SEND_BUFFER_LIMIT
    linger_timeout: float = limits.LINGER_TIMEOUT
    drain_timeout: float = limits.DRAIN_TIMEOUT
    backlog: int = limits.BACKLOG
    verbose: bool = False
    show_cuts: bool = False

    def __post_init__(self) -> None:
        for name in ("idle_timeout", "frame_timeout", "linger_timeout", "drain_timeout"):
            limits.seconds(name, getattr(self, name))
        limits.within("send_buffer", self.send_buffer, 1, limits.MAX_FRAME_CEILING)
        limits.within("backlog", self.backlog, 1, 2**31 - 1)
        if self.max_connections is not None:
            limits.within("max_connections", self.max_connections, 1, 2**31 - 1)

    @classmethod
    def of(cls, listen: str | Iterable[str] = DEFAULT_LISTEN, **others: Any) -> Settings:
        """Settings by name; `listen` is words, or a text with spaces between them.

        Raises:
            ConfigError: a setting that is none, or one that makes no sense.
        """
        known = [field.name for field in fields(cls)]
        for name in others:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
                raise ConfigError(f"unknown setting {name!r}: {hint}")
        words = tuple(listen.split() if isinstance(listen, str) else listen)
        if not words:
            raise ConfigError("listen names no address")
        return cls(listen=words, **others)

    @property
    def connections(self) -> int:
        """`max_connections`, as it is in force."""
        if self.max_connections is not None:
            return self.max_connections
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return max(1, min(soft, 2**31 - 1) - limits.RESERVED_DESCRIPTORS)

    def worst_case(self, send_piece: int) -> tuple[int, int]:
        """The most memory that connections can make this process, and the kernel, hold.

        Args:
            send_piece: bytes of one piece of replies.

        Returns:
            bytes of (process, kernel), all connections together.
        """
        process = self.connections * (limits.RECEIVE_BUFFER + send_piece)
        kernel = self.connections * (self.send_buffer + _third(_RECEIVE_MEMORY))
        return process, min(kernel, _third(_ALL_MEMORY) * resource.getpagesize())


def _third(path: Path) -> int:
    return int(path.read_text().split()[2])
