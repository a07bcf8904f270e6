"""A client to depend on: a message out, its reply in, and a sentence for whatever else happens.

One message is in flight at a time. A reply is right if it ends with the message it answers: what
stands before that is the server's prefix. Over TCP and UNIX streams a wrong or missing reply ends
the conversation, since what follows could not be told apart; a lost datagram does not.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from . import addresses, dial, framing, limits, prefix, sockets
from . import backend as backends
from .errors import ConfigError, FastechoError, FrameError
from .settings import DEFAULT_ADDRESS

#: After the last reply: how long the server has to close, or to betray that it sent too much.
CLOSING = 1.0
#: How much of a message is shown in a sentence about it.
_SHOWN = 60
#: Bytes of the largest reply in a datagram: a UNIX one may be longer than any of UDP.
_DATAGRAM = limits.MAX_DATAGRAM + limits.MAX_PREFIX


class Unanswered(FastechoError):
    """This message has no right reply, and the next may have one."""


class Gone(FastechoError):
    """The conversation is over."""


class _Timed:
    """A socket whose calls are all to be done by one time.

    Attributes:
        until: that time, of the monotonic clock.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.until = 0.0

    def recv(self, size: int) -> bytes:
        return self._hurried().recv(size)

    def sendall(self, data: bytes) -> None:
        self._hurried().sendall(data)

    def _hurried(self) -> socket.socket:
        left = self.until - time.monotonic()
        self.sock.settimeout(min(max(left, 1e-6), dial.LONGEST_WAIT))
        return self.sock


class Client:
    """One end of a conversation.

    Args:
        address: one LISTEN word (`fastecho.sockets`), not `fd://`; an empty HOST is this machine.
        udp: whether HOST:PORT is UDP.
        spec: the framing of a stream.
        template: the server's prefix; it matters to `fixed:N`, whose replies are longer by it,
            and to datagrams that leave this machine, which are padded so that they are answered.
        max_frame: longest message; by default what the framing allows, or 65,536.
        timeout: for a connection, and for each reply.

    Raises:
        ConfigError: arguments that make no sense, alone or together.
        FastechoError: there is nobody to talk to.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        udp: bool = False,
        spec: str = "line",
        template: str = prefix.DEFAULT,
        max_frame: int | None = None,
        timeout: float = limits.REPLY_TIMEOUT,
    ) -> None:
        self.timeout = limits.seconds("timeout", timeout)
        if not self.timeout:
            raise ConfigError("timeout must be more than 0 seconds")
        self._target = dial.parse(address, udp)
        self._spec = spec
        self.strays = 0
        self._heard = False
        twin = backends.load()
        cut = framing.parse(spec)
        self._codec = cut.codec(twin, max_frame)
        self._reply_spec, self._reply_limit = (
            replies(cut, self._codec.max_frame, template)
            if self._target.is_stream
            else ("raw", None)
        )
        self._longest_prefix = twin.Stamper(prefix.parse(template)).longest
        self._dialled = self._target.dial(self.timeout)
        self._connect()

    @property
    def name(self) -> str:
        """The server's address, with its protocol."""
        return self._target.name

    @property
    def longest(self) -> int:
        """Bytes of the longest message that could be sent."""
        return self._codec.max_frame if self._target.is_stream else limits.MAX_DATAGRAM

    def ask(self, message: bytes) -> bytes:
        """The reply to a message.

        Raises:
            Unanswered: no reply came, or the message cannot be sent in this framing.
            Gone: the connection failed, or the reply is wrong: there will be no other.
            FastechoError: nobody was ever there.
        """
        self.strays = 0
        self._allow(self.timeout)
        if self._target.is_stream:
            return self._ask_stream(message)
        while True:
            try:
                return self._ask_datagram(message)
            except ConnectionRefusedError as error:
                # The other addresses of a name: `localhost` is two, and a server may have one.
                if self._heard:
                    raise Gone(f"{self.name}: {dial.explain(error)}") from error
                self.close()
                self._connect(error)
                self._allow(self.timeout)

    def finish(self) -> None:
        """Say that no message follows.

        Raises:
            Gone: the server sent more replies than it was asked for.
        """
        if not self._target.is_stream:
            return
        try:
            self._timed.sock.shutdown(socket.SHUT_WR)
            self._allow(min(CLOSING, self.timeout))
            raise Gone(f"a reply too many: {quoted(next(self._replies))}")
        except FrameError as error:
            raise Gone(f"what came after the last reply is none: {error}") from error
        except (OSError, StopIteration):
            pass

    def close(self) -> None:
        """Hang up."""
        self._timed.sock.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _ask_stream(self, message: bytes) -> bytes:
        frame = self._encoded(message)
        try:
            self._timed.sendall(frame)
            reply = next(self._replies, None)
        except TimeoutError as error:
            raise Gone(self._missing(message)) from error
        except OSError as error:
            raise Gone(f"{self.name}: {dial.explain(error)}") from error
        except FrameError as error:
            raise Gone(f"the reply to {quoted(message)} is none: {error}") from error
        if reply is None:
            raise Gone(f"{self.name}: the server has closed; no reply to {quoted(message)}")
        if not reply.endswith(message):
            raise Gone(f"the reply to {quoted(message)} does not end with it: {quoted(reply)}")
        return reply

    def _ask_datagram(self, message: bytes) -> bytes:
        sent = self._padded(message)
        try:
            self._discard()
            self._timed.sendall(sent)
            while True:
                reply = self._timed.recv(_DATAGRAM)
                self._heard = True
                if reply.endswith(sent):
                    return reply
                self.strays += 1
        except TimeoutError as error:
            raise Unanswered(self._missing(message)) from error
        except ConnectionRefusedError:
            raise
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                sentence = f"{len(sent):,} bytes are too many for a datagram"
                raise Unanswered(sentence) from error
            raise Gone(f"{self.name}: {dial.explain(error)}") from error

    def _discard(self) -> None:
        """What has come is late, or came twice: no reply to what is sent next."""
        self._timed.sock.setblocking(False)
        with suppress(BlockingIOError):
            while time.monotonic() < self._timed.until:  # a flood has no end
                self._timed.sock.recv(_DATAGRAM)

    def _encoded(self, message: bytes) -> bytes:
        try:
            return self._codec.encode(message)
        except ValueError as error:
            raise Unanswered(f"cannot send {quoted(message)}: {error}") from error

    def _padded(self, message: bytes) -> bytes:
        """Long enough to be answered, if it leaves this machine (`limits`, DESIGN.md §3)."""
        if self._target.protocol != sockets.UDP or addresses.is_loopback(
            self._timed.sock.getpeername()
        ):
            return message
        return message.ljust(self._longest_prefix - limits.IPV4_OVERHEAD)

    def _allow(self, seconds: float) -> None:
        self._timed.until = time.monotonic() + seconds

    def _missing(self, message: bytes) -> str:
        other = f" ({counted(self.strays)} that replied to something else)" if self.strays else ""
        if self._target.is_stream:
            other = f" (is the server's --framing {self._spec}, too?)"
        return f"no reply to {quoted(message)} within {self.timeout:g} s{other}"

    def _connect(self, refusal: ConnectionRefusedError | None = None) -> None:
        """Talk to the next of its addresses, this one having refused."""
        try:
            self._timed = _Timed(next(self._dialled))
        except FastechoError:
            if refusal is None:
                raise
            words = dial.explain(refusal)
            raise FastechoError(f"cannot reach {self.name}: {words}") from refusal
        self._replies = framing.messages(self._timed, self._reply_spec, self._reply_limit)


def converse(
    client: Client,
    messages: Iterable[bytes],
    show: Callable[[bytes], None],
    complain: Callable[[str], None],
) -> bool:
    """Ask for one reply after the other, until an empty message or the last.

    Args:
        client: whom to ask through.
        messages: what to send.
        show: takes each reply.
        complain: takes a sentence for each that is missing or wrong.

    Returns:
        whether every message got its reply, and no other came.
    """
    right = True
    try:
        for message in messages:
            if not message:
                break
            try:
                show(client.ask(message))
            except Unanswered as error:
                complain(str(error))
                right = False
            else:
                if client.strays:
                    complain(f"{counted(client.strays)} before this reply that were none")
        client.finish()
    except Gone as error:
        complain(str(error))
        return False
    return right


def counted(datagrams: int) -> str:
    """So many datagrams came."""
    return "1 datagram came" if datagrams == 1 else f"{datagrams} datagrams came"


def quoted(data: bytes) -> str:
    """Bytes of a peer, in a sentence: printable ASCII, and not too many."""
    more = f" and {len(data) - _SHOWN:,} bytes more" if len(data) > _SHOWN else ""
    return f"{repr(data[:_SHOWN])[1:]}{more}"


def replies(cut: framing.Framing, longest: int, template: str) -> tuple[str, int | None]:
    """The framing of replies, and their longest: a message and whatever prefix there can be."""
    if cut.fixed is not None:
        width = prefix.one_width(template, cut.spec)
        return f"fixed:{cut.fixed + width}", None
    bounds = [longest + limits.MAX_PREFIX, limits.MAX_FRAME_CEILING]
    return cut.spec, min(bounds if cut.capacity is None else [*bounds, cut.capacity])
