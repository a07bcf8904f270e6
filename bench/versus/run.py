"""The comparison: python bench/versus/run.py [--only KIND,...] [--peers PEER,...] [--rounds N]

Every peer does the same work, one core for it and one for the generator (`fastecho.load`'s engine,
every reply verified). What is compared is the processor time that the server's process uses for a
message, user and system: the throughput of a closed loop measures wake-ups as much as work.

The machine is noisy, and slower at some times than at others. So a window is 0.1 s, a round has a
window of each peer and then the same in the reverse order, and a figure is the median over the
rounds of the ratio to the yardstick in the same round, with the interval in which the median lies
with 95%. The yardstick stands in each round twice, as two processes: their ratio is what the method
makes of no difference at all, and if it is off by more than 2% the figures are not published.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE)]

import check  # noqa: E402
from peers import KINDS, Peer, PeerError, Server, available, named, started  # noqa: E402

from fastecho.errors import FastechoError  # noqa: E402
from fastecho.load import Load, Plan  # noqa: E402

YARDSTICK = "epoll"
#: The yardstick's second process.
CONTROL = "epoll again"
WINDOW = 0.1  # seconds
ROUNDS = 30
IDLE = 9_000
GENERATOR_CPU, SERVER_CPU = 0, 1
STARTS = 10
SATURATE, OPEN_LOOP = 1.0, 4.0  # seconds
SHARES = (0.3, 0.7)  # of the saturation rate

#: How each kind of work is driven.
PLANS: dict[str, dict[str, Any]] = {
    "trip": {"connections": 1, "size": "32"},
    "tcp-1": {"connections": 64, "size": "32"},
    "tcp-16": {"connections": 64, "size": "32", "pipeline": 16},
    "tcp-256": {"connections": 64, "size": "32", "pipeline": 256},
    "tcp-1k": {"connections": 64, "size": "1024"},
    "tcp-16k": {"connections": 64, "size": "16384"},
    "short": {"connections": 16, "size": "32", "connect_per_message": True},
    "idle": {"connections": 64, "size": "32"},
    "udp-1": {"connections": 1, "size": "32", "udp": True},
    "udp-burst": {"connections": 1, "size": "32", "udp": True, "pipeline": 64},
    "udp-segmented": {"connections": 1, "size": "32", "udp": True, "pipeline": 64, "gso": True},
}
LATENCY = {"connections": 64, "size": "32"}


@dataclass
class Row:
    """One peer at one kind of work.

    Attributes:
        peer: which.
        why_not: why it has no figures.
        ns: processor time of the server for a message, median.
        ratio: to the yardstick's in the same round: median, and the interval of it.
        rate: messages a second, median.
        busy, generator_busy: shares of a core, median.
        ratios: of each round.
    """

    peer: str
    why_not: str = ""
    ns: float = 0.0
    ratio: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rate: float = 0.0
    busy: float = 0.0
    generator_busy: float = 0.0
    ratios: list[float] = field(default_factory=list)


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


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and where it lies with 95%: by the ranks of a binomial distribution."""
    ranked = sorted(values)
    reach = 0.98 * len(ranked) ** 0.5  # 1.96 standard deviations of the rank
    low = max(0, round((len(ranked) - 1) / 2 - reach))
    high = min(len(ranked) - 1, round((len(ranked) - 1) / 2 + reach))
    return statistics.median(ranked), ranked[low], ranked[high]


# ---- windows of work


class Contestant:
    """A peer that runs, and the connections that drive it."""

    def __init__(self, name: str, server: Server, plan: dict[str, Any], stack: ExitStack) -> None:
        self.name = name
        self.server = server
        address = f"{server.host}:{server.port}"
        self.load = Load(Plan(address, pid=server.pid, backend="native", timeout=2.0, **plan))
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


def measure(contestants: Sequence[Contestant], rounds: int) -> list[Row]:
    """Rounds of windows, there and back; a row for each."""
    for contestant in contestants:
        contestant.take()  # warm
    for _ in range(rounds):
        for contestant in (*contestants, *reversed(contestants)):
            contestant.windows.append(contestant.take())
    yardstick = next(one for one in contestants if one.name == YARDSTICK)
    return [row_of(one, yardstick) for one in contestants]


def row_of(contestant: Contestant, yardstick: Contestant) -> Row:
    def cost(of: Contestant, turn: int) -> float:
        # A contestant's windows of a round are its 2n-th and the one after it.
        both = of.windows[2 * turn : 2 * turn + 2]
        return sum(each.server for each in both) / max(sum(each.messages for each in both), 1)

    windows = contestant.windows
    turns = range(len(windows) // 2)
    ratios = [cost(contestant, turn) / cost(yardstick, turn) for turn in turns]
    return Row(
        contestant.name,
        ns=statistics.median(each.ns for each in windows),
        ratio=interval(ratios),
        rate=statistics.median(each.messages / each.seconds for each in windows),
        busy=statistics.median(each.server / each.seconds for each in windows),
        generator_busy=statistics.median(each.generator / each.seconds for each in windows),
        ratios=ratios,
    )


def compare(kind: str, peers: Sequence[Peer], rounds: int) -> list[Row]:
    """All peers that can do it, in the same rounds."""
    able = [peer for peer in peers if kind not in peer.cannot]
    if kind == "idle":
        return beside_idle(able, rounds) + unable(kind, peers)
    with ExitStack() as stack:
        contestants, rows = [], unable(kind, peers)
        for name, peer in with_control(able):
            server = stack.enter_context(started(peer, SERVER_CPU))
            try:
                contestants.append(Contestant(name, server, PLANS[kind], stack))
            except FastechoError as error:
                rows.append(Row(name, str(error)))
        return measure(contestants, rounds) + rows


def with_control(peers: Sequence[Peer]) -> list[tuple[str, Peer]]:
    named_peers = [(peer.name, peer) for peer in peers]
    return named_peers + [(CONTROL, peer) for peer in peers if peer.name == YARDSTICK]


def unable(kind: str, peers: Sequence[Peer]) -> list[Row]:
    return [Row(peer.name, peer.cannot[kind]) for peer in peers if kind in peer.cannot]


def beside_idle(peers: Sequence[Peer], rounds: int) -> list[Row]:
    """Each with the yardstick alone: all together would need too many descriptors."""
    rows = []
    yardstick = next(peer for peer in peers if peer.name == YARDSTICK)
    for name, peer in with_control(peers):
        if name == YARDSTICK:
            continue
        with ExitStack() as stack:
            pair = []
            for label, each in ((YARDSTICK, yardstick), (name, peer)):
                server = stack.enter_context(started(each, SERVER_CPU))
                idle_connections(server, stack)
                pair.append(Contestant(label, server, PLANS["idle"], stack))
            measured = measure(pair, max(rounds // 2, 5))
        rows += measured if not rows else measured[1:]
    return rows


def idle_connections(server: Server, stack: ExitStack, count: int = IDLE) -> None:
    for _ in range(count):
        stack.enter_context(socket.create_connection((server.host, server.port), 10))


# ---- what is not a window


def memory(peers: Sequence[Peer]) -> dict[str, dict[str, float]]:
    """Resident bytes at rest, and for each idle connection."""
    found = {}
    for peer in peers:
        if "memory" in peer.cannot:
            continue
        with ExitStack() as stack:
            server = stack.enter_context(started(peer, SERVER_CPU))
            time.sleep(0.3)
            rest = server.resident()
            idle_connections(server, stack)
            time.sleep(0.5)  # until the last is accepted; nothing tells
            found[peer.name] = {"rest": rest, "connection": (server.resident() - rest) / IDLE}
    return found


def readiness(peers: Sequence[Peer]) -> dict[str, tuple[float, float, float]]:
    """Seconds from the start to the ready line."""
    seconds: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for _ in range(STARTS):
        for peer in peers:
            with started(peer, SERVER_CPU) as server:
                seconds[peer.name].append(server.seconds)
    return {name: interval(values) for name, values in seconds.items()}


def latencies(peers: Sequence[Peer]) -> dict[str, list[dict[str, Any]]]:
    """Percentiles in open loop, at shares of what each can do at most."""
    found: dict[str, list[dict[str, Any]]] = {}
    for peer in peers:
        if "latency" in peer.cannot:
            continue
        with started(peer, SERVER_CPU) as server:
            address = f"{server.host}:{server.port}"
            most = Load(Plan(address, duration=SATURATE, warmup=0.3, **LATENCY)).run()
            found[peer.name] = []
            for share in SHARES:
                rate = most.received / most.seconds * share
                plan = Plan(
                    address,
                    duration=OPEN_LOOP,
                    warmup=0.3,
                    rate=rate,
                    arrivals="poisson",
                    pid=server.pid,
                    **LATENCY,
                )
                result = Load(plan).run()
                figures = {
                    f"p{share_of:g}": result.latency.get_value_at_percentile(share_of)
                    for share_of in (50, 90, 99, 99.9, 99.99)
                }
                found[peer.name].append(
                    {
                        "share": share,
                        "rate": rate,
                        **figures,
                        "max": result.latency.get_max_value(),
                        "bound": result.bound,
                        "right": result.right,
                    }
                )
    return found


# ---- the run


def machine() -> dict[str, str]:
    """On what this was measured."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": f"{model}, {os.cpu_count()} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d"),
    }


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
    parser.add_argument("--add", action="store_true", help="keep the other kinds that FILE has")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    kinds = options.only.split(",") if options.only else list(KINDS)
    wanted = named(filter(None, options.peers.split(",")))
    if YARDSTICK not in [peer.name for peer in wanted]:
        wanted = [*named([YARDSTICK]), *wanted]
    peers, absent = available(wanted)
    for name, reason in absent.items():
        say(f"{name} is left out: {reason}")
    os.sched_setaffinity(0, {GENERATOR_CPU})
    if not options.unchecked:
        peers, failed = passing(peers)
        absent |= failed
    results: dict[str, Any] = {
        "machine": machine(),
        "peers": {peer.name: {"title": peer.title, "version": peer.version()} for peer in peers},
        "absent": absent,
        "rounds": options.rounds,
        "kinds": {},
    }
    if options.add:
        results = json.loads(options.out.read_text()) | {"rounds": options.rounds}
    special = {"memory": memory, "ready": readiness, "latency": latencies}
    for kind in kinds:
        say(KINDS[kind])
        if kind in special:
            results[kind] = special[kind](peers)
        else:
            results["kinds"][kind] = [asdict(row) for row in compare(kind, peers, options.rounds)]
        options.out.write_text(json.dumps(results, indent=1))
    say(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
