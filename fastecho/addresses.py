"""What both twins say of sockets: how an address is written, how an error is counted."""

from __future__ import annotations

import errno
from functools import cache
from typing import Any, TypeAlias

from .limits import MAX_PEER

#: As Python's `socket` gives it: (host, port), (host, port, flow, scope), or a UNIX path.
Address: TypeAlias = Any

#: Errors of a connection that failed before it was accepted; the next may not have (accept(2),
#: "Error handling"; EPERM: a firewall's).
PASSING = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENONET,
        errno.EOPNOTSUPP,
    }
)


def text(address: Address) -> str:
    """`127.0.0.1:50123`, `[::1]:50123`, `unix:PATH`; nothing in it that a terminal would obey."""
    if isinstance(address, tuple):
        host, port = address[:2]
        plain = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    else:
        path = address if isinstance(address, str) else bytes(address).decode("utf-8", "replace")
        plain = f"unix:{path}"
    return printable(plain).decode()


def peer(address: Address) -> bytes:
    """What `{peer}` shows: `text`, at most `MAX_PEER` bytes of it."""
    return text(address).encode()[:MAX_PEER]


def is_loopback(address: Address) -> bool:
    """Whether an IP address is one that never leaves the machine, so that nobody can forge it."""
    host = address[0].removeprefix("::ffff:")
    return bool(host == "::1" or host.startswith("127."))


def printable(text: str) -> bytes:
    """The text in printable ASCII, everything else escaped as in a Python literal."""
    return text.encode("unicode_escape")


@cache  # there are few errors, and a connection may end in one each time
def reason(number: int) -> str:
    """The name under which a system error is counted: `reset`, or its errno in lower case."""
    if number in (errno.ECONNRESET, errno.EPIPE):
        return "reset"
    return errno.errorcode.get(number, f"errno_{number}").lower()
