"""LISTEN words and the sockets they name: parsed, resolved, bound; all or none.

    HOST:PORT                            TCP and UDP, on one number
    tcp://HOST:PORT  udp://HOST:PORT     one of them
    unix:PATH  unixgram:PATH             UNIX stream and datagram; `?mode=0660` sets permissions
    fd://N                               an inherited descriptor, whatever it is

A name listens on all its addresses, an IPv6 address stands in brackets, `[::]` takes IPv4 too, an
empty HOST is every address, and port 0 takes a free number.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from . import addresses
from .errors import ConfigError, FastechoError
from .limits import BACKLOG, SEND_BUFFER

TCP, UDP, UNIX, UNIXGRAM, FD = "tcp", "udp", "unix", "unixgram", "fd"
STREAMS = frozenset({TCP, UNIX})
FORMS = (
    "HOST:PORT, tcp://HOST:PORT, udp://HOST:PORT (an IPv6 HOST in brackets), unix:PATH,"
    " unixgram:PATH or fd://N"
)
KINDS = {
    TCP: socket.SOCK_STREAM,
    UDP: socket.SOCK_DGRAM,
    UNIX: socket.SOCK_STREAM,
    UNIXGRAM: socket.SOCK_DGRAM,
}
#: A free number for two protocols may be taken between the two binds: then another is tried.
_PORT_TRIES = 64
#: The longest path of a UNIX socket, less its NUL (sun_path, unix(7)).
_LONGEST_PATH = 107


@dataclass(frozen=True)
class Listen:
    """One LISTEN word, understood.

    Attributes:
        word: as it was written.
        protocols: of `tcp`, `udp`, `unix`, `unixgram`, `fd`: one, or `tcp` and `udp`.
        host: a name or an address; empty for every address.
        port: 0 for a free one; of `fd`, the descriptor.
        path: of a UNIX socket.
        mode: permissions of the path, or None: what the umask leaves.
    """

    word: str
    protocols: tuple[str, ...]
    host: str = ""
    port: int = 0
    path: str = ""
    mode: int | None = None


@dataclass(frozen=True)
class Bound:
    """A bound socket.

    Attributes:
        protocol: `tcp`, `udp`, `unix` or `unixgram`.
        sock: non-blocking, and listening if it is for streams.
        path: to be removed by `close`; empty if there is none.
        inode: of the path, so that another server's socket there is left alone.
    """

    protocol: str
    sock: socket.socket
    path: str = ""
    inode: int = 0

    @property
    def address(self) -> addresses.Address:
        """As `socket` gives it."""
        return self.sock.getsockname()

    @property
    def name(self) -> str:
        """`tcp://127.0.0.1:12345`, `unix:/run/echo`."""
        return _name(self.protocol, self.address)

    def close(self) -> None:
        """Close the socket, and remove its path, if that is still its own."""
        self.sock.close()
        with suppress(OSError):
            if self.path and os.stat(self.path).st_ino == self.inode:
                os.unlink(self.path)


def parse(word: str) -> Listen:
    """The LISTEN that `word` names.

    Raises:
        ConfigError: it names none; the text says what is right.
    """
    scheme, colon, rest = word.partition(":")
    if colon and scheme in (UNIX, UNIXGRAM):
        return _parse_path(word, scheme, rest)
    scheme, separator, rest = word.partition("://")
    if separator and scheme == FD:
        if not (rest.isascii() and rest.isdecimal() and len(rest) < 10):
            raise ConfigError(f"{word!r} is no address: write fd://N, with a descriptor's number")
        return Listen(word, (FD,), port=int(rest))
    if not separator:
        protocols: tuple[str, ...] = (TCP, UDP)
        rest = word
    elif scheme in (TCP, UDP):
        protocols = (scheme,)
    else:
        raise ConfigError(f"{word!r} is no address: no such scheme; write {FORMS}")
    host, colon, port = rest.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not colon or (":" in host) != bracketed or "/" in host or "\0" in host:
        raise ConfigError(f"{word!r} is no address: write {FORMS}")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65_535):
        raise ConfigError(f"{word!r} is no address: a port is a number from 0 to 65535")
    return Listen(word, protocols, host, int(port))


def _parse_path(word: str, scheme: str, rest: str) -> Listen:
    path, question, query = rest.partition("?")
    mode = re.fullmatch(r"mode=(0?[0-7]{3})", query)
    if not path or "\0" in path or (question and not mode):
        raise ConfigError(
            f"{word!r} is no address: write {scheme}:PATH, or {scheme}:PATH?mode=0660"
        )
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ConfigError(
            f"{word!r} is no address: a socket's path has at most {_LONGEST_PATH} bytes"
        )
    return Listen(word, (scheme,), path=path, mode=int(mode[1], 8) if mode else None)


def bind(
    listens: Iterable[Listen], backlog: int = BACKLOG, send_buffer: int = SEND_BUFFER
) -> list[Bound]:
    """Bound, non-blocking sockets (those for streams listening) for all of them.

    Args:
        listens: what to listen on.
        backlog: connections that may wait to be accepted.
        send_buffer: bytes that the kernel holds unsent of a TCP stream (TCP_NOTSENT_LOWAT).

    Raises:
        FastechoError: one cannot be had; then none is kept.
    """
    with ExitStack() as undo:
        bound: list[Bound] = []
        seen: set[tuple[int, str]] = set()
        for listen in listens:
            own = (listen.port, "") if listen.protocols == (FD,) else (-1, listen.path)
            if own in seen:
                raise ConfigError(f"cannot listen on {listen.word!r} twice")
            if own != (-1, ""):
                seen.add(own)
            if listen.protocols == (FD,):
                bound.append(_adopt(listen, undo))
            elif listen.path:
                bound.append(_bind_path(listen, undo))
            else:
                bound.extend(_bind_all(listen, undo))
        for one in bound:
            _prepare(one, backlog, send_buffer)
        undo.pop_all()
        return bound


def _prepare(bound: Bound, backlog: int, send_buffer: int) -> None:
    """Set what accepted sockets inherit, and listen."""
    sock = bound.sock
    sock.setblocking(False)
    if bound.protocol == TCP:
        # A reply is never held back for an ACK.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer that has vanished is found out, with no timer of ours.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, send_buffer)
    if bound.protocol in STREAMS:
        with _explained(bound.name, _PORT_ADVICE):
            sock.listen(backlog)


def _adopt(listen: Listen, undo: ExitStack) -> Bound:
    """An inherited descriptor, if it is a bound socket of a kind that is served here."""
    with _explained(listen.word, _FD_ADVICE):
        sock = undo.enter_context(socket.socket(fileno=listen.port))
        listening = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    for protocol, kind in KINDS.items():
        family = socket.AF_UNIX if protocol in (UNIX, UNIXGRAM) else sock.family
        ip = sock.family in (socket.AF_INET, socket.AF_INET6)
        if sock.type == kind and sock.family == family and ip == (protocol in (TCP, UDP)):
            if kind == socket.SOCK_DGRAM and not _is_bound(sock):
                raise FastechoError(f"cannot listen on {listen.word}: the socket is not bound")
            if listening == (kind == socket.SOCK_STREAM):
                return Bound(protocol, sock)
            raise FastechoError(f"cannot listen on {listen.word}: the socket is not listening")
    raise FastechoError(f"cannot listen on {listen.word}: no TCP, UDP or UNIX socket")


def _is_bound(sock: socket.socket) -> bool:
    name = sock.getsockname()
    return bool(name[1] if isinstance(name, tuple) else name)


def _bind_path(listen: Listen, undo: ExitStack) -> Bound:
    """A UNIX socket; one that nobody answers on any more is replaced, anything else is not."""
    (protocol,) = listen.protocols
    with _explained(listen.word, _PATH_ADVICE):
        sock = socket.socket(socket.AF_UNIX, KINDS[protocol])
        undo.callback(sock.close)
        try:
            sock.bind(listen.path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _stale(listen.path, KINDS[protocol]):
                raise
            os.unlink(listen.path)
            sock.bind(listen.path)
        bound = Bound(protocol, sock, listen.path, os.stat(listen.path).st_ino)
        undo.callback(bound.close)
        if listen.mode is not None:
            os.chmod(listen.path, listen.mode)
        return bound


def _stale(path: str, kind: int) -> bool:
    """Whether the path is a socket that nobody answers on."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED


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
    tolerated = (errno.EADDRINUSE,) if port == 0 else ()
    bound: list[Bound] = []
    for family, sockaddr in _resolve(listen):
        for protocol in listen.protocols:
            target = (sockaddr[0], port, *sockaddr[2:])
            with _explained(_name(protocol, target), _PORT_ADVICE, tolerated):
                try:
                    sock = undo.enter_context(_open(family, protocol, target, listen))
                except OSError as error:
                    if bound and not listen.host and error.errno == errno.EAFNOSUPPORT:
                        continue  # every address that there is
                    raise
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


def _open(
    family: int, protocol: str, target: tuple[str | int, ...], listen: Listen
) -> socket.socket:
    sock = socket.socket(family, KINDS[protocol])
    try:
        if family == socket.AF_INET6:
            # An empty HOST has a socket of its own for IPv4.
            dual = target[0] == "::" and listen.host != ""
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        if protocol == TCP:
            # So that a restart need not wait for old connections' TIME-WAIT to end (RFC 9293,
            # 3.6.1); on UDP it would let two servers share a port unseen.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
    except BaseException:
        sock.close()
        raise
    return sock


def _name(protocol: str, address: addresses.Address) -> str:
    text = addresses.text(address)
    if protocol in (UNIX, UNIXGRAM):
        return protocol + text.removeprefix(UNIX)
    return f"{protocol}://{text}"


_PORT_ADVICE = {
    errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE",
    errno.EADDRINUSE: "another program has it; stop that one, or choose another port",
    errno.EADDRNOTAVAIL: "no interface of this machine has this address",
    errno.EAFNOSUPPORT: "this machine does not speak that protocol",
}
_PATH_ADVICE = {
    errno.EADDRINUSE: "another program answers there, or it is no socket; choose another path",
}
_FD_ADVICE = {
    errno.EBADF: "no such descriptor was inherited",
    errno.ENOTSOCK: "the descriptor is something else",
}


@contextmanager
def _explained(
    name: str, advice: Mapping[int, str], tolerated: Collection[int] = ()
) -> Iterator[None]:
    """Turn an OSError, but for those tolerated, into the sentence for who wanted to listen."""
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        if number in tolerated:
            raise
        words = os.strerror(number).lower()
        if number in advice:
            words += f" ({advice[number]})"
        raise FastechoError(f"cannot listen on {name}: {words}") from error
