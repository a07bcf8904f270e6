"""The comparison: python bench/versus/run.py [--only KIND,...] [--peers PEER,...] [--rounds N]
                                                [--out FILE] [--plan]

Every peer does the same work, one core for it and one for the generator (`fastecho.load`'s engine,
every reply verified). What is compared is the processor time that the server's process uses for a
message, user and system: the throughput of a closed loop measures wake-ups as much as work.

The machine is noisy, and slower at some times than at others. So a window is 0.1 s, a round has a
window of each peer and then the same in the reverse order, and what is looked at is the ratio to
the yardstick in the same round. The rounds of each kind of work are held in six sittings, which are
spread over the whole run, with processes of their own: where one happens to lie in memory, and what
the machine's neighbours do in a quarter of an hour, moves a figure by a percent or two, and belongs
to its interval (`ratios.settled`). The yardstick stands in each round twice, as two processes:
their ratio is what the method makes of no difference at all, and if it is off by more than 2% the
figures are not published.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE)]

import alone  # noqa: E402
import check  # noqa: E402
from peers import Peer, PeerError, Server, available, framed, named, started  # noqa: E402
from peers import run as run_command  # noqa: E402
from ratios import interval, settled  # noqa: E402
from works import FEW, WORKS  # noqa: E402

from fastecho import __version__  # noqa: E402
from fastecho import machine as machines  # noqa: E402
from fastecho.errors import FastechoError  # noqa: E402
from fastecho.load import Load, Plan  # noqa: E402

YARDSTICK = "epoll"
#: A peer's second process, and one beside which nobody is idle.
AGAIN, ALONE = " again", " alone"
WINDOW = 0.1  # seconds
ROUNDS, SITTINGS = 18, 6
IDLE = 9_000
#: Of these, so many come before memory is measured: the pages of code that accepts are read once.
FIRST = 1_000
GENERATOR_CPU, SERVER_CPU = 0, 1
STARTS = 10
SATURATE, OPEN_LOOP = 1.0, 0.8  # seconds
SHARES = (0.3, 0.7)  # of the saturation rate
#: Runs in open loop at each share, of those that goals compare and of the others.
SLICES, FEWER_SLICES = 12, 3
LATENCY = {"connections": 64, "size": "32"}
#: What is told of each of them.
PERCENTILES = (50, 90, 99, 99.9)


@dataclass
class Row:
    """One peer at one kind of work.

    Attributes:
        peer: which.
        why_not: why it has no figures.
        ns: processor time of the server for a message, median.
        ratio: to the yardstick's in the same round: median, and its interval.
        rate: messages a second, median.
        busy, generator_busy: shares of a core, median.
        ratios: of each round, by sitting.
    """

    peer: str
    why_not: str = ""
    ns: float = 0.0
    ratio: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rate: float = 0.0
    busy: float = 0.0
    generator_busy: float = 0.0
    ratios: list[list[float]] = field(default_factory=list)


@dataclass
class Window:
    """What one window has shown."""

    messages: int
    seconds: float
    server: float
    generator: float

    @property
    def ns(self) -> float:
        return self.server / max(self.messages, 1) * 1e9


# ---- windows of work


class Contestant:
    """A peer that runs, and the connections that drive it."""

    def __init__(self, name: str, server: Server, plan: dict[str, Any], stack: ExitStack) -> None:
        self.name = name
        self.server = server
        fixed = {"pid": server.pid, "backend": "native", "timeout": 2.0}
        self.load = Load(Plan(address(server), **(fixed | plan)))
        stack.callback(self.load.close)
        self.windows: list[Window] = []

    def take(self, seconds: float = WINDOW) -> Window:
        """One window; what is in flight at its end is waited for, and counts."""
        cpu, own, begun = self.server.cpu_ns(), time.process_time_ns(), time.monotonic()
        messages = self.load.window(seconds)
        window = Window(
            messages,
            time.monotonic() - begun,
            (self.server.cpu_ns() - cpu) / 1e9,
            (time.process_time_ns() - own) / 1e9,
        )
        result = self.load.result
        if result.wrong or result.closed:
            raise PeerError(f"{self.name}: {result.first_wrong or dict(result.closed)}")
        return window


class Entry(NamedTuple):
    """Who takes part: under which name, at what, and how many idle clients it has."""

    name: str
    peer: Peer
    plan: dict[str, Any]
    idle: int = 0


class Group:
    """Who are measured in the same rounds, the yardstick first.

    Args:
        kind: of work.
        entries: they.
        rounds: how many, in all sittings.
    """

    def __init__(self, kind: str, entries: Sequence[Entry], rounds: int) -> None:
        self.kind = kind
        self.entries = list(entries)
        self.rounds = rounds
        #: By name, then by sitting.
        self._windows: dict[str, list[list[Window]]] = defaultdict(list)
        self._failed: dict[str, str] = {}

    def sit(self, sitting: int) -> None:
        """A sitting's share of the rounds, with processes of their own."""
        rounds = len(range(sitting, self.rounds, SITTINGS))
        if not rounds:
            return
        with ExitStack() as stack:
            contestants = []
            for entry in self.entries:
                if entry.name in self._failed:
                    continue
                server = stack.enter_context(started(entry.peer, SERVER_CPU))
                try:
                    contestants.append(Contestant(entry.name, server, entry.plan, stack))
                except FastechoError as error:
                    self._failed[entry.name] = str(error)
                if entry.idle:
                    stack.enter_context(idle_clients(server, entry.idle))
            for contestant in contestants:
                self._windows[contestant.name].append([])
                contestant.take()  # warm
            for _ in range(rounds):
                for contestant in (*contestants, *reversed(contestants)):
                    self._windows[contestant.name][-1].append(contestant.take())

    def rows(self) -> list[Row]:
        """A row for each."""
        yardstick = self._windows[self.entries[0].name]
        measured = [name for name in self._windows if name not in self._failed]
        return [row_of(name, self._windows[name], yardstick) for name in measured] + [
            Row(name, why) for name, why in self._failed.items()
        ]


def row_of(
    name: str, sittings: Sequence[Sequence[Window]], yardstick: Sequence[Sequence[Window]]
) -> Row:
    def costs(windows: Sequence[Window]) -> list[float]:
        # A contestant's windows of a round are its 2n-th and the one after it.
        rounds = zip(windows[::2], windows[1::2], strict=True)
        return [
            sum(each.server for each in both) / max(sum(each.messages for each in both), 1)
            for both in rounds
        ]

    pairs = zip(map(costs, sittings), map(costs, yardstick), strict=True)
    ratios = [[one / other for one, other in zip(*pair, strict=True)] for pair in pairs]
    windows = [window for sitting in sittings for window in sitting]
    return Row(
        name,
        ns=statistics.median(each.ns for each in windows),
        ratio=settled(ratios),
        rate=statistics.median(each.messages / each.seconds for each in windows),
        busy=statistics.median(each.server / each.seconds for each in windows),
        generator_busy=statistics.median(each.generator / each.seconds for each in windows),
        ratios=ratios,
    )


def table(kind: str, found: Sequence[Group], peers: Sequence[Peer]) -> list[dict[str, Any]]:
    """A row for each peer, of those that can do it and of the others."""
    rows: dict[str, Row] = {}
    for group in found:
        for row in group.rows():
            rows.setdefault(row.peer, row)
    return [asdict(row) for row in (*rows.values(), *unable(kind, peers))]


def groups(kind: str, peers: Sequence[Peer], rounds: int) -> Iterator[Group]:
    """Who do this kind of work, by whom they are compared with."""
    work = WORKS[kind]
    plan = dict(work.plan)
    wanted = [peer for peer in peers if not work.only or peer.name in work.only]
    able = sorted(
        (peer for peer in wanted if kind not in peer.cannot),
        key=lambda peer: peer.name != YARDSTICK,
    )
    if kind == "framings":
        for peer in able:
            entries = [
                Entry(peer.name if spec == "line" else spec, each, plan | {"framing": spec})
                for spec, each in framed(peer).items()
            ]
            yield Group(kind, with_control(entries), rounds)
    elif kind == "idle":
        few = [Entry(peer.name, peer, plan, IDLE) for peer in able if peer.name in FEW]
        alone = [
            Entry(peer.name + ALONE, peer, plan)
            for peer in able
            if peer.name.startswith("fastecho")
        ]
        yield Group(kind, with_control(few) + alone, rounds)
        for peer in able:
            if peer.name not in FEW:
                yield Group(kind, [few[0], Entry(peer.name, peer, plan, IDLE)], max(rounds // 2, 5))
    else:
        yield Group(kind, with_control([Entry(peer.name, peer, plan) for peer in able]), rounds)


def with_control(entries: list[Entry]) -> list[Entry]:
    return [*entries, entries[0]._replace(name=entries[0].name + AGAIN)]


def unable(kind: str, peers: Sequence[Peer]) -> list[Row]:
    only = WORKS[kind].only
    return [
        Row(peer.name, peer.cannot[kind])
        for peer in peers
        if kind in peer.cannot and (not only or peer.name in only)
    ]


#: Whom a peer has beside those that are measured: a process of their own, since so many
#: descriptors may be more than one can have.
CROWD = """
import sys, resource, socket
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
crowd = [socket.create_connection((host, port), 10) for _ in range(count)]
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def idle_clients(server: Server, count: int = IDLE) -> Iterator[None]:
    """So many connections that do nothing."""
    words = [sys.executable, "-c", CROWD, server.host, str(server.port), str(count)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as crowd:
        assert crowd.stdout is not None
        if crowd.stdout.readline() != b"ready\n":
            raise PeerError(f"{server.peer.name}: {count:,} idle clients cannot connect")
        yield


# ---- what is not a window


def memory(peers: Sequence[Peer]) -> dict[str, dict[str, float]]:
    """Resident bytes at rest, and for each idle connection; and the kernel's, for both its ends."""
    found = {}
    for peer in peers:
        if "memory" in peer.cannot:
            continue
        with started(peer, SERVER_CPU) as server:
            time.sleep(0.3)
            rest = server.resident()
            with idle_clients(server, FIRST):
                time.sleep(0.5)  # until the last is accepted; nothing tells
                before, kernel = server.resident(), slab()
                with idle_clients(server, IDLE - FIRST):
                    time.sleep(0.5)
                    found[peer.name] = {
                        "rest": rest,
                        "connection": (server.resident() - before) / (IDLE - FIRST),
                        "kernel": (slab() - kernel) / (IDLE - FIRST),
                    }
    return found


def slab() -> int:
    """Bytes that the kernel has in objects of its own, sockets among them (Slab, proc(5))."""
    told = Path("/proc/meminfo").read_text()
    return next(
        1024 * int(line.split()[1]) for line in told.splitlines() if line.startswith("Slab")
    )


def readiness(peers: Sequence[Peer]) -> dict[str, tuple[float, float, float]]:
    """Seconds from the start to the ready line."""
    seconds: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for _ in range(STARTS):
        for peer in peers:
            with started(peer, SERVER_CPU) as server:
                seconds[peer.name].append(server.seconds)
    return {name: interval(values) for name, values in seconds.items()}


def stamps(peers: Sequence[Peer]) -> list[dict[str, Any]]:
    """How true they are, as bench/stamps.py has it: with both cores, as the load takes one."""
    if all(peer.name != "fastecho" for peer in peers):
        return []
    os.sched_setaffinity(0, {GENERATOR_CPU, SERVER_CPU})
    try:
        return list(
            json.loads(run_command([sys.executable, str(HERE.parent / "stamps.py"), "--json"]))
        )
    except PeerError as error:  # it needs CAP_NET_RAW
        say(str(error))
        return []
    finally:
        os.sched_setaffinity(0, {GENERATOR_CPU})


def latencies(peers: Sequence[Peer]) -> dict[str, list[dict[str, Any]]]:
    """Percentiles in open loop, at shares of what each can do at most: short runs, in turns."""
    able = [peer for peer in peers if "latency" not in peer.cannot]
    few = [peer for peer in able if peer.name in FEW and peer.name != "asyncio"]
    others = [peer for peer in able if peer not in few]
    found = open_loops(with_control([Entry(peer.name, peer, LATENCY) for peer in few]), SLICES)
    return found | open_loops([Entry(peer.name, peer, LATENCY) for peer in others], FEWER_SLICES)


def open_loops(entries: Sequence[Entry], slices: int) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {entry.name: [] for entry in entries}
    with ExitStack() as stack:
        servers = {
            entry.name: stack.enter_context(started(entry.peer, SERVER_CPU)) for entry in entries
        }
        most = {name: saturation(server) for name, server in servers.items()}
        for share in SHARES:
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
            for turn in range(slices):
                for name in list(servers)[:: 1 if turn % 2 else -1]:
                    runs[name].append(one_slice(servers[name], most[name] * share))
            for name, figures in runs.items():
                found[name].append({"share": share, "rate": most[name] * share, "runs": figures})
    return found


def address(server: Server) -> str:
    return f"{server.host}:{server.port}"


def saturation(server: Server) -> float:
    """Messages a second, in closed loop."""
    result = Load(Plan(address(server), duration=SATURATE, warmup=0.3, **LATENCY)).run()
    return result.received / result.seconds


def one_slice(server: Server, rate: float) -> dict[str, float]:
    plan = Plan(
        address(server),
        duration=OPEN_LOOP,
        warmup=0.1,
        rate=rate,
        arrivals="poisson",
        pid=server.pid,
        **LATENCY,
    )
    result = Load(plan).run()
    if result.wrong:
        raise PeerError(f"{server.peer.name}: {result.first_wrong}")
    percentiles = {
        f"p{percent:g}": float(result.latency.get_value_at_percentile(percent))
        for percent in PERCENTILES
    }
    return {**percentiles, "bound": float(bool(result.bound))}


# ---- the run


def seconds(kind: str, peers: Sequence[Peer], rounds: int) -> float:
    """About how long it takes."""
    if kind == "memory":
        return 3.0 * len(peers)
    if kind == "ready":
        return 0.2 * STARTS * len(peers)
    if kind == "latency":
        runs = 5 * SLICES + (len(peers) - 5) * FEWER_SLICES
        return runs * len(SHARES) * (OPEN_LOOP + 0.3)
    if kind == "stamping":
        return 1.5 * SITTINGS
    if kind == "stamps":
        return 15.0
    total = 0.0
    for group in groups(kind, peers, rounds):
        entries = group.entries
        windows = len(entries) * (2 * group.rounds + SITTINGS)  # and one to warm up, each sitting
        starts = SITTINGS * (0.3 * len(entries) + sum(entry.idle for entry in entries) * 1e-4)
        total += windows * WINDOW * 1.05 + starts
    return total


def passing(peers: Iterable[Peer]) -> tuple[list[Peer], dict[str, str]]:
    """Those that do the same work, and what the others failed."""
    good, bad = [], {}
    for peer in peers:
        failed = failures(peer)
        if failed:
            bad[peer.name] = "; ".join(f"{name}: {why}" for name, why in failed.items())
            say(f"{peer.name} is left out: {bad[peer.name]}")
        else:
            good.append(peer)
    return good, bad


def failures(peer: Peer) -> dict[str, str]:
    """What it failed of the checks that it need pass."""
    verdicts = {name: check.verdict(peer, name) for name in check.CHECKS if name not in peer.fails}
    return {name: verdict for name, verdict in verdicts.items() if verdict != "ok"}


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="kinds of work, with commas between")
    parser.add_argument("--peers", default="", help="peers, with commas between")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--unchecked", action="store_true", help="skip the checks of the peers")
    parser.add_argument("--plan", action="store_true", help="say how long it takes, and end")
    parser.add_argument("--add", action="store_true", help="keep the other kinds that FILE has")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    kinds = options.only.split(",") if options.only else list(WORKS)
    if unknown := [kind for kind in kinds if kind not in WORKS]:
        parser.error(f"no work {unknown[0]!r} (choose from {' '.join(WORKS)})")
    wanted = named(filter(None, options.peers.split(",")))
    if YARDSTICK not in [peer.name for peer in wanted]:
        wanted = [*named([YARDSTICK]), *wanted]
    peers, absent = available(wanted)
    for name, reason in absent.items():
        say(f"{name} is left out: {reason}")
    if options.plan:
        times = {kind: seconds(kind, peers, options.rounds) for kind in kinds}
        for kind, each in times.items():
            print(f"{each:6.0f} s  {WORKS[kind].title}")
        print(f"{sum(times.values()):6.0f} s  all, and {2 * len(peers)} s or so of checks")
        return 0
    made_on = machines.describe(__version__)
    os.sched_setaffinity(0, {GENERATOR_CPU})
    if not options.unchecked:
        peers, failed = passing(peers)
        absent |= failed
    results: dict[str, Any] = {
        "machine": made_on,
        "date": time.strftime("%Y-%m-%d"),
        "peers": {peer.name: {"title": peer.title, "version": peer.version()} for peer in peers},
        "absent": absent,
        "rounds": options.rounds,
        "kinds": {},
    }
    if options.add:
        results = json.loads(options.out.read_text()) | {"rounds": options.rounds}
    special = {"memory": memory, "ready": readiness, "latency": latencies, "stamps": stamps}
    found = {
        kind: list(groups(kind, peers, options.rounds))
        for kind in kinds
        if kind not in {*special, "stamping"}
    }
    stamping = []
    for sitting in range(min(SITTINGS, options.rounds)):
        for group in (group for several in found.values() for group in several):
            say(f"{sitting + 1} of {SITTINGS}: {WORKS[group.kind].title}")
            group.sit(sitting)
        if "stamping" in kinds:
            done = run_command([sys.executable, str(HERE / "alone.py")])
            stamping.append(json.loads(done))
    for kind, several in found.items():
        results["kinds"][kind] = table(kind, several, peers)
    if stamping:
        results["stamping"] = alone.together(stamping)
    options.out.write_text(json.dumps(results, indent=1))
    for kind in kinds:
        if kind in special:
            say(WORKS[kind].title)
            results[kind] = special[kind](peers)
    options.out.write_text(json.dumps(results, indent=1))
    say(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
