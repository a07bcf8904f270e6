"""Native against pure, on this machine: framing and stamping alone, and round trips over loopback.

What is compared runs in turns, AB BA AB ..., in many short windows: what drifts (clock rate,
neighbours) strikes both alike. Of each window's ratio the median counts, and the interval in which
the median is, in 95% of cases, is stated with it. First a thing is compared with itself: by how
much that misses 1 is by how much the rest is not to be believed.

What is counted is processor time of the process that does the work: for framing and stamping our
own, for round trips the server's. What a round trip takes is told too, by the clock on the wall.
"""

from __future__ import annotations

import gc
import math
import os
import re
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from . import backend as backends
from . import prefix
from .errors import ConfigError, FastechoError
from .workloads import BACKENDS, FRAMINGS, NOW_NS, Workload, WrongReply, combinations, workload

#: Seconds until a daemon is ready, and until a reply that does not come is an error.
PATIENCE = 10
#: Of 32 bytes, on TCP and UDP alike.
LINE = b"0123456789abcdef0123456789abcde\n"
#: Bytes of its reply.
REPLY = len("[Thu Jan  1 00:00:00 2026]") + len(LINE)
#: How many lines are in flight.
TRIPS = (("tcp", 1), ("tcp", 16), ("udp", 1))
#: How sure an interval is to have the median in it.
SURE = 0.95
#: Off by more, a thing compared with itself says that nothing here is to be believed: what
#: differences are worth being told is about as much.
BELIEVED = 0.05

Round = Callable[[], None]
Clock = Callable[[], int]


class Effort(NamedTuple):
    """How much is measured.

    Attributes:
        sizes: bytes of messages.
        windows: in each of which both run.
        side: seconds of either, of framing and stamping, in one.
        trips_side: the same, of round trips.
    """

    sizes: tuple[int, ...]
    windows: int
    side: float
    trips_side: float


#: Under a minute. A window of round trips is a tenth of a second: less is mostly how the two
#: processes happened to be woken up.
FULL = Effort((8, 32, 1024, 8192), 30, 0.01, 0.1)
#: A few seconds; too few windows to tell a tenth.
QUICK = Effort((32, 1024), 6, 0.002, 0.02)


class Compared(NamedTuple):
    """Nanoseconds of a round of either; how many times as long the second takes.

    Attributes:
        low, high: the interval of the median of that.
    """

    first: float
    second: float
    ratio: float
    low: float
    high: float


class Measured(NamedTuple):
    """One line of the comparison.

    Attributes:
        kind: `itself`, `stamping`, `reference` or `trips`.
        name: what was measured: a framing, or how the messages went.
        size: bytes of a message.
        cpu: processor time per message: native's, pure's.
        wall: time of a round, for round trips.
        messages: in a round.
    """

    kind: str
    name: str
    size: int
    cpu: Compared
    wall: Compared | None = None
    messages: int = 1

    @property
    def believable(self) -> bool:
        """Whether a thing compared with itself is what it is."""
        return abs(self.cpu.ratio - 1) <= BELIEVED


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median of what these were drawn from is, with `SURE`, whatever it looks like.

    Of n values in order the k-th and the k-th last have it between them, but for the cases in
    which fewer than k of n tosses of a coin are heads, or tails.
    """
    ordered, n = sorted(values), len(values)
    fewer, k = 1.0, 0  # of 2**n ways to toss them
    while k < n // 2 and 2 * (fewer + math.comb(n, k + 1)) / 2**n <= 1 - SURE:
        k += 1
        fewer += math.comb(n, k)
    return ordered[k], ordered[n - 1 - k]


def compare(
    runs: tuple[Round, Round],
    cpus: tuple[Clock, Clock],
    windows: int,
    side: float,
) -> tuple[Compared, Compared]:
    """Run both in ABBA order: processor time, and time on the wall, of a round.

    Args:
        runs: a round of either.
        cpus: nanoseconds that the process has used so far which does that work.
        windows: how many.
        side: seconds of either in one.
    """
    rounds = [_rounds(run, side) for run in runs]
    spent: list[list[float]] = [[], []]
    passed: list[list[float]] = [[], []]
    for window in range(windows):
        for which in (0, 1) if window % 2 == 0 else (1, 0):
            cpu, wall = _time(runs[which], rounds[which], cpus[which])
            spent[which].append(cpu)
            passed[which].append(wall)
    return _compared(*spent), _compared(*passed)


def _rounds(run: Round, side: float) -> int:
    """How many rounds fill a side of a window; finding out warms up what they use."""
    rounds, seconds = 1, 0.0
    while (seconds := _time(run, rounds, time.monotonic_ns)[1] * rounds / 1e9) < side / 4:
        rounds *= 2
    return max(1, round(rounds * side / seconds))


def _time(run: Round, rounds: int, cpu: Clock) -> tuple[float, float]:
    """Nanoseconds of one of so many rounds: of the processor, and on the wall."""
    start, spent = time.monotonic_ns(), cpu()
    for _ in range(rounds):
        run()
    spent = cpu() - spent
    return spent / rounds, (time.monotonic_ns() - start) / rounds


def _compared(first: Sequence[float], second: Sequence[float]) -> Compared:
    # A clock that ticks too slowly for a window has seen nothing pass in it.
    ratios = [b / a for a, b in zip(first, second, strict=True) if a] or [math.nan]
    medians = statistics.median(first), statistics.median(second)
    return Compared(*medians, statistics.median(ratios), *interval(ratios))


def run(
    effort: Effort, wanted: Sequence[str] = (), tell: Callable[[str], None] = lambda _: None
) -> Iterator[Measured]:
    """Compare the twins, line by line.

    Args:
        effort: how much.
        wanted: framings, of `FRAMINGS`, and `trips`; none: all.
        tell: is given a sentence about what comes next.

    Raises:
        ConfigError: there is no such framing, or only one of the twins.
        WrongReply: what was to be measured does not do its work.
    """
    for name in wanted:
        if name not in (*FRAMINGS, "trips"):
            raise ConfigError(f"no framing {name!r} here: choose from {', '.join(FRAMINGS)}, trips")
    backends.load("native")
    names = [name for name in FRAMINGS if not wanted or name in wanted]
    if names:
        tell("framing and stamping")
        with _without_gc():
            yield from _framing(effort, names)
    if not wanted or "trips" in wanted:
        tell("round trips")
        yield from _trips(effort)


# -- framing and stamping


def _framing(effort: Effort, names: Sequence[str]) -> Iterator[Measured]:
    lines = workload("line", 32)
    yield _stamping("itself", "line", lines, lines.stamping("native"), effort)
    for name, size in combinations():
        if name not in names or size not in effort.sizes:
            continue
        load = workload(name, size)
        load.check()
        yield _stamping("stamping", load.framing, load, load.stamping("pure"), effort)
        if name == "line":
            yield _stamping("reference", "bytes.replace", load, _replacing(load), effort)


def _stamping(kind: str, name: str, load: Workload, rival: Round, effort: Effort) -> Measured:
    cpu, _ = compare(
        (load.stamping("native"), rival),
        (time.process_time_ns, time.process_time_ns),
        effort.windows,
        effort.side,
    )
    return Measured(kind, name, load.size, _per_message(cpu, load.messages), None, load.messages)


def _per_message(round_: Compared, messages: int) -> Compared:
    return round_._replace(first=round_.first / messages, second=round_.second / messages)


def _replacing(load: Workload) -> Round:
    """Python's fastest way to put a prefix into a buffer of lines, without a codec's duties."""
    shown = load.echo("pure").stamper.render(NOW_NS)
    data = load.pieces[0]

    def one_round() -> None:
        data.replace(b"\n", b"\n" + shown)

    return one_round


@contextmanager
def _without_gc() -> Iterator[None]:
    """Nothing that is measured makes garbage in a circle; what others left is not its business."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


# -- round trips


class Daemon:
    """A fastecho in a process of its own, on a core of its own if there are two.

    Args:
        backend: its twin.
        more: other flags.

    Raises:
        FastechoError: it does not start.
    """

    def __init__(self, backend: str, *more: str) -> None:
        self.backend = backend
        # Its own settings, whatever is set for the daemons of this machine.
        variables = {
            name: text for name, text in os.environ.items() if not name.startswith("FASTECHO_")
        }
        command = [sys.executable, "-m", "fastecho", "serve", "--config", os.devnull]
        self._process = subprocess.Popen(  # noqa: S603 (we are what is started)
            [*command, "--backend", backend, *more, "127.0.0.1:0"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=variables,
            text=True,
        )
        try:
            self.address = self._ready()
            _pin(self._process.pid, max)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_ns(self) -> int:
        """What it has spent so far, in nanoseconds (clock_getcpuclockid(3))."""
        return time.clock_gettime_ns(~self.pid << 3 | 2)

    def connect(self, kind: socket.SocketKind) -> socket.socket:
        """A blocking socket, connected to it."""
        sock = socket.socket(socket.AF_INET, kind)
        # The kernel's timeout: a Python one would add a system call to each `recv`.
        patience = struct.pack("ll", PATIENCE, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
        sock.connect(self.address)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.communicate()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _ready(self) -> tuple[str, int]:
        said = "".join(self._process.stderr.readline() for _ in "12")  # type: ignore[union-attr]
        found = re.search(r"tcp://127\.0\.0\.1:(\d+) ", said)
        if not found:
            raise FastechoError(f"the {self.backend} server did not start: {said.strip()}")
        return "127.0.0.1", int(found[1])


class Trip:
    """Round trips of so many lines at once.

    Raises:
        WrongReply: when called, if no right reply comes.
    """

    def __init__(self, sock: socket.socket, in_flight: int) -> None:
        self._sock = sock
        self._request = LINE * in_flight
        self._expected = REPLY * in_flight
        self.check()

    def __call__(self) -> None:
        self.take()

    def take(self) -> bytes:
        """Send the lines, and take all replies."""
        sock, expected = self._sock, self._expected
        sock.send(self._request)
        try:
            reply = sock.recv(65_536)
            while len(reply) < expected:
                more = sock.recv(65_536)
                if not more:
                    raise WrongReply("the server has closed the connection")
                reply += more
        except BlockingIOError as error:
            raise WrongReply(f"no reply within {PATIENCE} s") from error
        return reply

    def check(self) -> None:
        """See that it is what is measured."""
        form = prefix.form(prefix.DEFAULT).pattern + re.escape(LINE)
        if not re.fullmatch(b"(?:%b){%d}" % (form, self._expected // REPLY), self.take()):
            raise WrongReply("a server does not answer as it should")


def _trips(effort: Effort) -> Iterator[Measured]:
    with ExitStack() as stack:
        native, pure = (stack.enter_context(Daemon(name)) for name in BACKENDS)
        stack.enter_context(pinned())
        yield _trip("itself", "tcp", 1, (native, native), effort)
        for protocol, in_flight in TRIPS:
            yield _trip("trips", protocol, in_flight, (native, pure), effort)


def _trip(
    kind: str, protocol: str, in_flight: int, daemons: tuple[Daemon, Daemon], effort: Effort
) -> Measured:
    sort = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with daemons[0].connect(sort) as one, daemons[1].connect(sort) as other:
        cpu, wall = compare(
            (Trip(one, in_flight), Trip(other, in_flight)),
            (daemons[0].cpu_ns, daemons[1].cpu_ns),
            effort.windows,
            effort.trips_side,
        )
    name = f"{protocol.upper()}, {in_flight} in flight"
    return Measured(kind, name, len(LINE), _per_message(cpu, in_flight), wall, in_flight)


@contextmanager
def pinned() -> Iterator[None]:
    """Us on the first core: the servers are on the last."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    _pin(0, min)
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)


def _pin(pid: int, choose: Callable[[set[int]], int]) -> None:
    with suppress(AttributeError, OSError):  # where that is unknown, or not allowed
        os.sched_setaffinity(pid, {choose(os.sched_getaffinity(pid))})
