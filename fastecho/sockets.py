"""LISTEN words and the sockets they name: parsed, resolved, bound; all or none.

HOST:PORT (TCP and UDP on one number), tcp://HOST:PORT, udp://HOST:PORT. A name listens on all its
addresses, an IPv6 address stands in brackets, an empty HOST is every address, and port 0 takes a
free number.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from . import addresses
from .errors import ConfigError, FastechoError
from .limits import BACKLOG

TCP, UDP = "tcp", "udp"
FORMS = "HOST:PORT, tcp://HOST:PORT or udp://HOST:PORT (an IPv6 HOST in brackets)"
_KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}
#: A free number for two protocols may be taken between the two binds: then another is tried.
_PORT_TRIES = 64


@dataclass(frozen=True)
class Listen:
    """One LISTEN word, understood.

    Attributes:
        word: as it was written.
        protocols: `tcp`, `udp`, or both.
        host: a name or an address; empty for every address.
        port: 0 for a free one.
    """

    word: str
    protocols: tuple[str, ...]
    host: str
    port: int


@dataclass(frozen=True)
class Bound:
    """A bound socket and how it is named: `tcp://127.0.0.1:12345`."""

    protocol: str
    sock: socket.socket

    @property
    def address(self) -> addresses.Address:
        """As `socket` gives it."""
        return self.sock.getsockname()

    @property
    def name(self) -> str:
        return f"{self.protocol}://{addresses.text(self.address)}"


def parse(word: str) -> Listen:
    """The LISTEN that `word` names.

    Raises:
        ConfigError: it names none; the text says what is right.
    """
    scheme, separator, rest = word.partition("://")
    if not separator:
        protocols: tuple[str, ...] = (TCP, UDP)
        rest = word
    elif scheme in _KINDS:
        protocols = (scheme,)
    else:
        raise ConfigError(f"cannot listen on {word!r}: no such scheme; write {FORMS}")
    host, colon, port = rest.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not colon or (":" in host) != bracketed or "/" in host:
        raise ConfigError(f"cannot listen on {word!r}: write {FORMS}")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65_535):
        raise ConfigError(f"cannot listen on {word!r}: a port is a number from 0 to 65535")
    return Listen(word, protocols, host, int(port))


def bind(listens: Iterable[Listen]) -> list[Bound]:
    """Bound, non-blocking sockets (TCP ones listening) for all of them.

    Raises:
        FastechoError: one cannot be had; then none is kept.
    """
    with ExitStack() as undo:
        bound = [one for listen in listens for one in _bind_all(listen, undo)]
        undo.pop_all()
        return bound


def _bind_all(listen: Listen, undo: ExitStack) -> list[Bound]:
    for _ in range(_PORT_TRIES):
        with ExitStack() as attempt:
            try:
                bound = _bind_once(listen, attempt)
            except OSError as error:
                if error.errno == errno.EADDRINUSE and listen.port == 0:
                    continue
                raise
            undo.push(attempt.pop_all())
            return bound
    raise FastechoError(f"cannot listen on {listen.word}: no port is free for all its addresses")


def _bind_once(listen: Listen, undo: ExitStack) -> list[Bound]:
    """One socket for each address and protocol, all on the number that the first one got."""
    port = listen.port
    bound = []
    for family, sockaddr in _resolve(listen):
        for protocol in listen.protocols:
            target = (sockaddr[0], port, *sockaddr[2:])
            name = f"{protocol}://{addresses.text(target)}"
            try:
                sock = undo.enter_context(_open(family, protocol, target))
            except OSError as error:
                if error.errno == errno.EADDRINUSE and listen.port == 0:
                    raise
                raise FastechoError(f"cannot listen on {name}: {_explain(error)}") from error
            port = sock.getsockname()[1]
            bound.append(Bound(protocol, sock))
    return bound


def _resolve(listen: Listen) -> list[tuple[int, tuple[str, int]]]:
    """(family, address) of each address of the host, IPv4 first, none twice."""
    try:
        found = socket.getaddrinfo(
            listen.host or None, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        words = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
        raise FastechoError(f"cannot listen on {listen.word}: {listen.host!r}: {words}") from error
    families = [(int(family), sockaddr) for family, _, _, _, sockaddr in found]
    return sorted(dict.fromkeys(families), key=lambda each: each[0] != socket.AF_INET)  # type: ignore[arg-type]


def _open(family: int, protocol: str, target: tuple[str | int, ...]) -> socket.socket:
    sock = socket.socket(family, _KINDS[protocol])
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if protocol == TCP:
            # So that a restart need not wait for old connections' TIME-WAIT to end (RFC 9293,
            # 3.6.1); on UDP it would let two servers share a port unseen.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted sockets inherit it on Linux: a reply is never held back for an ACK.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind(target)
        if protocol == TCP:
            sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _explain(error: OSError) -> str:
    words = os.strerror(error.errno or 0).lower()
    advice = {
        errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE",
        errno.EADDRINUSE: "another program has it; stop that one, or choose another port",
        errno.EADDRNOTAVAIL: "no interface of this machine has this address",
        errno.EAFNOSUPPORT: "this machine does not speak that protocol",
    }.get(error.errno or 0)
    return f"{words} ({advice})" if advice else words
