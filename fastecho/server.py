"""The server: settings become listeners on one loop, which serves until it is stopped, and drains.

`Server` binds and can then be run in any thread; `running` runs one in a thread of its own, for
tests. Signals, descriptor limits, log handlers and `gc` are the command's business, not ours.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from logging import WARNING
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from . import backend as backends
from . import echo, framing, sockets
from .events import say
from .limits import RECEIVE_BUFFER, SEND_BUFFER
from .loop import SWEEP_INTERVAL, Loop
from .settings import DEFAULT_LISTEN, Settings
from .tcp import Tcp
from .udp import Udp

if TYPE_CHECKING:
    from ._pure.datagrams import Datagrams
    from ._pure.stamping import Echo, Stamper
    from ._pure.stream import Listener, Stream
    from .addresses import Address
    from .backend import Twin
    from .faults.decisions import Draws
    from .faults.mischief import Mischief


class Server:
    """An echo server, bound when made.

    Args:
        listen: LISTEN words (`fastecho.sockets`); all are bound, or none.
        settings: the others by name, as `fastecho.settings.Settings` has them.

    Attributes:
        settings: what it was told.
        backend: the name of the twin that serves.
        addresses: of its listeners, as they are written: `tcp://127.0.0.1:12345`.
        draws: its fault plan with its seed, if it has one, or its conversations are logged.

    Raises:
        ConfigError: settings that make no sense.
        FastechoError: an address cannot be had.
    """

    def __init__(self, listen: str | Iterable[str] = DEFAULT_LISTEN, **settings: Any) -> None:
        self.settings = Settings.of(listen, **settings)
        twin = backends.load(self.settings.backend)
        self.backend = twin.name
        wanted = [sockets.parse(word) for word in self.settings.listen]
        pattern = echo.pattern(
            twin, self.settings.framing, self.settings.prefix, self.settings.max_frame
        )
        self.draws = self.settings.draws()
        self._closed = False
        self._mischief: Mischief | None = None
        self._listeners: list[Listener] = []
        self._datagrams: list[Datagrams] = []
        with ExitStack() as undo:
            self._loop = undo.enter_context(closing(Loop(twin)))
            self._bound = sockets.bind(wanted, self.settings.backlog, self.settings.send_buffer)
            for one in self._bound:
                undo.callback(one.close)
            self._names = [(one.protocol, one.address) for one in self._bound]
            self.addresses = [one.name for one in self._bound]
            if self.draws is not None:
                self._mischief = undo.enter_context(closing(self._plot(self.draws, pattern)))
            self._serve(twin, pattern)
            undo.pop_all()

    def _plot(self, draws: Draws, pattern: Echo) -> Mischief:
        """What serves with a fault plan; without one, none of its modules is loaded."""
        from . import __version__
        from .faults.journal import Journal
        from .faults.mischief import Mischief

        settings = self.settings
        streams = [one.protocol in sockets.STREAMS for one in self._bound]
        draws.plan.check(any(streams), not all(streams))
        journal = Journal(settings.fault_log) if settings.fault_log else None
        if journal is not None:
            journal.write(
                "start",
                version=__version__,
                backend=self.backend,
                plan=draws.plan.text,
                seed=draws.seed,
                framing=settings.framing,
                prefix=settings.prefix,
                max_frame=pattern.codec.max_frame,
                listen=self.addresses,
            )
        return Mischief(draws, self._loop, journal)

    def _serve(self, twin: Twin, pattern: Echo) -> None:
        """Put every socket on the loop."""
        settings = self.settings
        send = send_piece(settings.framing, pattern.codec.max_frame, pattern.stamper.longest)
        self._shared = self._kind(twin).Shared(RECEIVE_BUFFER, send, settings.connections)
        tcp = Tcp(settings.framing, settings.verbose)
        for one in self._bound:
            if one.protocol in sockets.STREAMS:
                self._listeners.append(self._listener(twin, one, pattern.fresh(), tcp))
            else:
                stamper = twin.Stamper(pattern.stamper.parts)
                self._datagrams.append(self._socket(twin, one, stamper))

    def _kind(self, twin: Twin) -> Twin:
        """The twin whose streams serve: those that misbehave are the pure one's."""
        misbehave = self._mischief is not None and self._mischief.is_for_streams
        return backends.load("pure") if misbehave else twin

    def _listener(self, twin: Twin, one: sockets.Bound, echo: Echo, tcp: Tcp) -> Listener:
        """What serves a socket for streams."""
        settings = self.settings
        arguments = (
            one.sock,
            self._loop.selector,
            echo,
            self._shared,
            tcp,
            settings.verbose or settings.show_cuts,
            settings.show_cuts,
            settings.idle_timeout,
            settings.frame_timeout,
            settings.linger_timeout,
        )
        if self._mischief is None or not self._mischief.is_for_streams:
            return twin.Listener(*arguments)
        from .faults import streams

        return streams.Listener(
            self._mischief, one.name, framing.parse(settings.framing), *arguments
        )

    def _socket(self, twin: Twin, one: sockets.Bound, stamper: Stamper) -> Datagrams:
        """What serves a socket for datagrams."""
        arguments = (one.sock, self._loop.selector, stamper, Udp(), self.settings.verbose)
        if self._mischief is None or not self._mischief.is_for_datagrams:
            return twin.Datagrams(*arguments)
        from .faults import datagrams

        return datagrams.Datagrams(self._mischief, one.name, *arguments)

    @property
    def tcp_address(self) -> Address:
        """The first TCP listener's: (host, port).

        Raises:
            LookupError: there is none.
        """
        return self._address(sockets.TCP)

    @property
    def udp_address(self) -> Address:
        """The first UDP socket's: (host, port).

        Raises:
            LookupError: there is none.
        """
        return self._address(sockets.UDP)

    @property
    def counters(self) -> dict[str, int]:
        """Totals since the start, by name.

        `connections`, `messages`, `bytes_in`, `bytes_out`, `unanswered.REASON`, `resent.REASON`,
        `closed.REASON`, `faults.NAME` (how often it struck).
        What is discarded after a fault is not in `bytes_in`; what came with it is.
        """
        total: Counter[str] = Counter(connections=0, messages=0, bytes_in=0, bytes_out=0)
        for part in self._parts:
            total.update(messages=part.messages, bytes_in=part.bytes_in, bytes_out=part.bytes_out)
        for listener in self._listeners:
            total["connections"] += listener.accepted
            total.update({f"closed.{reason}": n for reason, n in listener.closed.copy().items()})
        for datagrams in self._datagrams:
            total.update(
                {f"unanswered.{reason}": n for reason, n in datagrams.unanswered.copy().items()}
            )
            total.update({f"resent.{reason}": n for reason, n in datagrams.resent.copy().items()})
        if self._mischief is not None:
            total.update({f"faults.{name}": n for name, n in self._mischief.struck.copy().items()})
        return dict(total)

    def run(self) -> None:
        """Serve until `stop`, then drain and close everything.

        Raises:
            ValueError: it is closed.
        """
        if self._closed:
            raise ValueError("the server is closed")
        try:
            self._loop.run(self._sweep)
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
        for stream in self._streams():
            stream.close()
        for part in self._parts:
            part.close()
        for bound in self._bound:
            bound.close()
        if self._mischief is not None:
            self._mischief.close()
        self._loop.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    @property
    def _parts(self) -> list[Listener | Datagrams]:
        return [*self._listeners, *self._datagrams]

    def _address(self, protocol: str) -> Address:
        for name, address in self._names:
            if name == protocol:
                return address[:2]
        raise LookupError(f"this server has no {protocol} listener")

    @property
    def _held(self) -> int:
        """Datagrams that a fault plan holds back."""
        return self._mischief.held if self._mischief is not None else 0

    def _streams(self) -> list[Stream]:
        return [stream for listener in self._listeners for stream in listener.streams]

    def _sweep(self) -> None:
        self._shared.wake()
        for listener in self._listeners:
            listener.sweep()

    def _drain(self) -> None:
        """Take what waits, answer what has come, give the kernel time to take the replies."""
        deadline = time.monotonic() + self.settings.drain_timeout
        for listener in self._listeners:
            _repeat(listener, attrgetter("accepted"), deadline)
            listener.close()
        for datagrams in self._datagrams:
            _repeat(datagrams, attrgetter("messages"), deadline)
        while (streams := self._streams()) or self._held:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            ready = [stream.drain() for stream in streams]
            self._loop.turn(0 if any(ready) else min(left, SWEEP_INTERVAL))
            self._sweep()
        if streams:
            unsent = sum(stream.unsent for stream in streams)
            cut = f"{len(streams):,} connection{'' if len(streams) == 1 else 's'}"
            sentence = f"stopped with {cut} cut, {unsent:,} bytes unsent"
            say(WARNING, "cut", sentence, connections=len(streams), unsent=unsent)
        if held := self._held:
            sentence = f"stopped with {held:,} datagram{'' if held == 1 else 's'} held back"
            say(WARNING, "held", sentence, held=held)


def _repeat(part: Listener | Datagrams, taken: Callable[[Any], int], deadline: float) -> None:
    """Have a socket accept, or answer, until there is nothing more."""
    before = -1
    while before != taken(part) and time.monotonic() < deadline:
        before = taken(part)
        part.on_event(1)


def send_piece(spec: str, max_frame: int, longest_prefix: int) -> int:
    """Bytes of one piece of replies: the default, or one reply if that is larger."""
    return max(SEND_BUFFER, framing.parse(spec).largest_reply(max_frame, longest_prefix))


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
