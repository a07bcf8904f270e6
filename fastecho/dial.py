"""The other end of a LISTEN word: whom a client talks to, and how it gets through.

HOST:PORT is TCP unless UDP is asked for; an empty HOST is this machine; `fd://` is nobody's.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import addresses, sockets
from .errors import ConfigError, FastechoError

#: Seconds that one call waits at most: poll(2) counts milliseconds in 31 bits.
LONGEST_WAIT = 1e6

#: Connects a socket that has a timeout.
Connect = Callable[[socket.socket, addresses.Address], None]


@dataclass(frozen=True)
class Target:
    """Whom to talk to.

    Attributes:
        protocol: `tcp`, `udp`, `unix` or `unixgram`.
        listen: the word, understood.
    """

    protocol: str
    listen: sockets.Listen

    @property
    def name(self) -> str:
        """As it was written, with its protocol."""
        word = self.listen.word
        explicit = len(self.listen.protocols) == 1
        return word if explicit else f"{self.protocol}://{word}"

    @property
    def is_stream(self) -> bool:
        return self.protocol in sockets.STREAMS

    def dial(
        self, timeout: float, connect: Connect = socket.socket.connect
    ) -> Iterator[socket.socket]:
        """A connected socket for each of its addresses that can be connected to, one by one.

        Args:
            timeout: seconds for a connection; the sockets have it too.
            connect: waits for it; if it raises, the socket is closed.

        Raises:
            FastechoError: there is none, or no more.
            OSError: no descriptor is left.
        """
        failure: OSError | None = None
        for family, address in self._addresses():
            try:
                sock = self._connected(family, address, min(timeout, LONGEST_WAIT), connect)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise  # which is not for want of a server
                failure = error
            else:
                yield sock
        words = explain(failure) if failure else "it has no other address"
        raise FastechoError(f"cannot reach {self.name}: {words}") from failure

    def _connected(
        self, family: int, address: addresses.Address, timeout: float, connect: Connect
    ) -> socket.socket:
        sock = socket.socket(family, sockets.KINDS[self.protocol])
        try:
            sock.settimeout(timeout)
            if self.protocol == sockets.UNIXGRAM:
                sock.bind("")  # a name of the kernel's choice (unix(7)), so that it is answered
            connect(sock, address)
        except BaseException:
            sock.close()
            raise
        return sock

    def _addresses(self) -> list[tuple[int, addresses.Address]]:
        if self.listen.path:
            return [(int(socket.AF_UNIX), self.listen.path)]
        host, port = self.listen.host or None, self.listen.port
        try:
            found = socket.getaddrinfo(host, port, type=sockets.KINDS[self.protocol])
        except socket.gaierror as error:
            raise FastechoError(f"cannot reach {self.name}: {explain(error)}") from error
        except UnicodeError as error:
            raise FastechoError(f"cannot reach {self.name}: not a host name") from error
        return [(int(family), address) for family, _, _, _, address in found]


def parse(word: str, udp: bool = False) -> Target:
    """Whom an address names.

    Args:
        word: as a LISTEN word is written.
        udp: whether HOST:PORT is UDP.

    Raises:
        ConfigError: nobody, or not over UDP; the text says what is right.
    """
    listen = sockets.parse(word)
    if listen.protocols == (sockets.FD,):
        raise ConfigError(f"{word!r} is no address to talk to: it is an inherited descriptor")
    if listen.mode is not None:
        raise ConfigError(f"{word!r} is no address to talk to: leave out ?mode=")
    if listen.port == 0 and not listen.path:
        raise ConfigError(f"{word!r} is no address to talk to: port 0 is for listening")
    if len(listen.protocols) == 2:
        return Target(sockets.UDP if udp else sockets.TCP, listen)
    (protocol,) = listen.protocols
    if udp and protocol in sockets.STREAMS:
        raise ConfigError(f"{word!r} is no UDP address: leave out --udp, or write HOST:PORT")
    return Target(protocol, listen)


def explain(error: OSError) -> str:
    """What a system call found, in words and by its number."""
    if isinstance(error, TimeoutError) and error.errno is None:
        return "timed out"
    words = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
    return f"{(words or str(error)).lower()} (error {error.errno})"
