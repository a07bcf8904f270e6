"""The server: settings become listeners on one loop, which serves until it is stopped, and drains.

`Server` binds and can then be run in any thread; `running` runs one in a thread of its own, for
tests. Signals, descriptor limits, log handlers and `gc` are the command's business, not ours.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

from . import backend as backends
from . import echo, framing, prefix, sockets
from .limits import DRAIN_TIMEOUT, RECEIVE_BUFFER, SEND_BUFFER
from .loop import SWEEP_INTERVAL, Loop
from .tcp import Tcp
from .udp import Udp

if TYPE_CHECKING:
    from ._pure.datagrams import Datagrams
    from ._pure.stamping import Echo
    from ._pure.stream import Listener
    from .addresses import Address
    from .backend import Twin
    from .sockets import Bound

DEFAULT_LISTEN = "127.0.0.1:12345"


class Server:
    """An echo server, bound when made.

    Args:
        listen: LISTEN words (`fastecho.sockets`); all are bound, or none.
        framing: how messages are marked on TCP.
        prefix: template of what is put before each message.
        max_frame: longest message in bytes; None: 65,536, or what the framing can say.
        backend: `native`, `pure`, `auto`, or None: the chosen one.
        verbose: log each connection and each datagram, at level INFO.

    Attributes:
        backend: the name of the twin that serves.

    Raises:
        ConfigError: settings that make no sense.
        FastechoError: an address cannot be had.
    """

    def __init__(
        self,
        listen: str | Iterable[str] = DEFAULT_LISTEN,
        framing: str = "line",
        prefix: str = prefix.DEFAULT,
        max_frame: int | None = None,
        backend: str | None = None,
        verbose: bool = False,
    ) -> None:
        twin = backends.load(backend)
        self.backend = twin.name
        self.framing = framing
        words = listen.split() if isinstance(listen, str) else list(listen)
        wanted = [sockets.parse(word) for word in words]
        pattern = echo.pattern(twin, framing, prefix, max_frame)
        with ExitStack() as undo:
            self._loop = undo.enter_context(closing(Loop(twin)))
            bound = sockets.bind(wanted)
            self._names = [(one.protocol, one.address) for one in bound]
            self.addresses = [one.name for one in bound]
            self._serve(twin, bound, pattern, verbose)
            undo.pop_all()
        self._parts: list[Listener | Datagrams] = [*self._listeners, *self._datagrams]
        self._closed = False

    def _serve(self, twin: Twin, bound: list[Bound], pattern: Echo, verbose: bool) -> None:
        """Put every socket on the loop."""
        selector = self._loop.selector
        buffers = twin.Buffers(RECEIVE_BUFFER, _send_buffer(self.framing, pattern))
        self._tcp = Tcp()
        self._listeners = [
            twin.Listener(one.sock, selector, pattern.fresh(), buffers, self._tcp, verbose)
            for one in bound
            if one.protocol == sockets.TCP
        ]
        self._datagrams = [
            twin.Datagrams(one.sock, selector, twin.Stamper(pattern.stamper.parts), Udp(), verbose)
            for one in bound
            if one.protocol == sockets.UDP
        ]

    @property
    def tcp_address(self) -> Address:
        """The first TCP listener's, as `socket` takes it.

        Raises:
            LookupError: there is none.
        """
        return self._address(sockets.TCP)

    @property
    def udp_address(self) -> Address:
        """The first UDP socket's, as `socket` takes it.

        Raises:
            LookupError: there is none.
        """
        return self._address(sockets.UDP)

    @property
    def counters(self) -> dict[str, int]:
        """Totals since the start, by name.

        `connections`, `messages`, `bytes_in`, `bytes_out`, `unanswered.REASON`, `closed.REASON`.
        """
        total: Counter[str] = Counter(connections=0, messages=0, bytes_in=0, bytes_out=0)
        for part in self._parts:
            total["messages"] += part.messages
            total["bytes_in"] += part.bytes_in
            total["bytes_out"] += part.bytes_out
        for listener in self._listeners:
            total["connections"] += listener.accepted
            total.update({f"closed.{reason}": n for reason, n in listener.closed.items()})
        for datagrams in self._datagrams:
            total.update({f"unanswered.{reason}": n for reason, n in datagrams.unanswered.items()})
        return dict(total)

    def run(self) -> None:
        """Serve until `stop`, then drain and close everything."""
        try:
            self._loop.run(self._tcp.sweep)
            self._drain()
        finally:
            self.close()

    def stop(self) -> None:
        """Make `run` end; from any thread or signal handler."""
        self._loop.stop()

    def close(self) -> None:
        """Close what is open, at once; `run` does it by itself."""
        if self._closed:
            return
        self._closed = True
        for listener in self._listeners:
            for stream in listener.streams:
                stream.close()
            listener.close()
        for datagrams in self._datagrams:
            datagrams.close()
        self._loop.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _address(self, protocol: str) -> Address:
        for name, address in self._names:
            if name == protocol:
                return address
        raise LookupError(f"this server has no {protocol} listener")

    def _drain(self) -> None:
        """Answer what has come, and give the kernel time to take the replies."""
        for part in self._parts:
            part.on_event(1)
        for listener in self._listeners:
            listener.close()
        deadline = time.monotonic() + DRAIN_TIMEOUT
        while streams := [each for listener in self._listeners for each in listener.streams]:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            ready = [stream.drain() for stream in streams]
            self._loop.selector.dispatch(0 if any(ready) else min(left, SWEEP_INTERVAL))
            self._tcp.sweep()


def _send_buffer(spec: str, pattern: Echo) -> int:
    """Bytes of one piece of replies: the default, or one reply if that is larger."""
    largest = framing.parse(spec).largest_reply(pattern.codec.max_frame, pattern.stamper.longest)
    return max(SEND_BUFFER, largest)


@contextmanager
def running(**settings: Any) -> Iterator[Server]:
    """A server in a thread of its own, on free ports of 127.0.0.1 unless `listen` says otherwise.

    Args:
        settings: as for `Server`.
    """
    with Server(**{"listen": "127.0.0.1:0", **settings}) as server:
        thread = threading.Thread(target=server.run, name="fastecho", daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join()
