"""What a message costs, counted: python bench/ledger.py [--check | --write] [WORK ...]

User instructions and allocations (valgrind's callgrind) and system calls (strace) for each kind of
work: for the native twin, and beside it for the C servers of bench/versus. Times are never the same
twice; these counts are, because the server is driven in lock step:

- server and driver share a core, and the driver comes first (sched(7)): the server does not run
  before a whole round is sent and the driver waits, so that it wakes up once, to the same events;
- a phase has so many rounds, or twice as many; the difference is what the work costs without
  starting and asking. Two phases are compared only if both rendered as many prefixes (a second may
  begin in one), and waited for events as often as their rounds say (a timer may come), and if each
  has come out the same twice.

Without options the counts are shown beside ledger.json's. `--write` (`make ledger`) writes them
there. `--check` is for CI: it counts the native twin alone, and what a change has raised fails with
a sentence that names it; whoever means it commits the new file, and says why.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "versus")]

from peers import Peer, PeerError, Server, available, named, started  # noqa: E402

from fastecho import __version__, machine  # noqa: E402

LEDGER = HERE / "ledger.json"
NATIVE = "fastecho"
#: The same work in C: the plain server, and with all that makes it quicker.
REFERENCES = ("epoll", "epoll-best")
#: Instructions may be so many times as many. On one machine they repeat to a hundredth, and to the
#: digit where Python has no part in them. With another Python those in which it has one, as a
#: connection's beginning and end, may change by more.
TOLERANCE, OTHER_PYTHON = 1.02, 1.10
#: System calls and allocations must be the same, but for so many in all messages of a phase: what a
#: timer does that falls into a round. A new one for each message, or batch, is more.
STRAY = 6
#: How many phases of a length there are, after so many, at most; and by how much instructions of
#: two that did the same differ.
WARM, TRIES, SAME = 3, 60, 0.001
PATIENCE = 30.0  # seconds
WIDTH = len("[Sun Nov 22 14:03:54 2026]")
SOL_UDP, UDP_SEGMENT = 17, 103
#: RST instead of FIN (socket(7)).
ABORT = struct.pack("ii", 1, 0)
#: Where memory is asked for, of the C library or of the interpreter, which asks the former in turn.
ALLOCATING = re.compile(r"(malloc|calloc|realloc|Py(Object_|Mem_|Mem_Raw)(Malloc|Calloc|Realloc))")
INTERPRETER = re.compile(r"_?Py(Object|Mem)_")

#: Drives the server through a round; the last reply's prefix.
Round = Callable[[], bytes]
Mark = Callable[[Server], None]


class Uncounted(Exception):
    """It could not be counted; the text says why."""


# ---- the works: each is connected, and then gives a round


def line(size: int) -> bytes:
    return b"x" * (size - 1) + b"\n"


def exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise Uncounted("the server has closed a connection")
        data += more
    return bytes(data)


def checked(reply: bytes, message: bytes) -> bytes:
    """The prefix of the right reply."""
    if len(reply) != WIDTH + len(message) or not reply.endswith(message):
        raise Uncounted(f"a wrong reply: {reply[:80]!r}")
    return reply[:WIDTH]


def streams(count: int, in_flight: int, size: int) -> Callable[[Server, ExitStack], Round]:
    def connect(server: Server, stack: ExitStack) -> Round:
        message = line(size)
        request, expected = message * in_flight, (WIDTH + size) * in_flight
        address = (server.host, server.port)
        socks = [
            stack.enter_context(socket.create_connection(address, PATIENCE)) for _ in range(count)
        ]

        def one_round() -> bytes:
            for sock in socks:
                sock.sendall(request)
            replies = [exactly(sock, expected) for sock in socks]
            return [checked(reply[-WIDTH - size :], message) for reply in replies][-1]

        return one_round

    return connect


def short(count: int, reset: bool) -> Callable[[Server, ExitStack], Round]:
    def connect(server: Server, stack: ExitStack) -> Round:
        message = line(32)

        def one_round() -> bytes:
            socks = [
                socket.create_connection((server.host, server.port), PATIENCE) for _ in range(count)
            ]
            for sock in socks:
                sock.sendall(message)
            replies = [exactly(sock, WIDTH + len(message)) for sock in socks]
            for sock in socks:
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
                sock.close()
            return [checked(reply, message) for reply in replies][-1]

        return one_round

    return connect


def datagrams(
    count: int, in_flight: int, segmented: bool = False
) -> Callable[[Server, ExitStack], Round]:
    def connect(server: Server, stack: ExitStack) -> Round:
        message = b"x" * 32
        socks = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            sock.settimeout(PATIENCE)
            sock.connect((server.host, server.port))
            if segmented:
                sock.setsockopt(SOL_UDP, UDP_SEGMENT, len(message))
            socks.append(sock)
        sends = [message * in_flight] if segmented else [message] * in_flight

        def one_round() -> bytes:
            for sock in socks:
                for each in sends:
                    sock.send(each)
            replies = [sock.recv(65_536) for sock in socks for _ in range(in_flight)]
            return [checked(reply, message) for reply in replies][-1]

        return one_round

    return connect


def connection(server: Server) -> None:
    """A client comes, says nothing and goes: no work but connections does that."""
    socket.create_connection((server.host, server.port), PATIENCE).close()


def datagram(server: Server) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect((server.host, server.port))
        sock.send(b"x")
        sock.recv(65_536)


#: What marks the end of a phase, and the functions with which the server sees it. callgrind dumps
#: what it has counted on entering one, and begins again at 0: nobody need interrupt the server.
MARKS = {connection: ("accept4",), datagram: ("recvmmsg", "recvmsg")}


@dataclass(frozen=True)
class Work:
    """One kind of work.

    Attributes:
        title: for people.
        messages: of a round.
        rounds: of a phase: few, since it is to be over within the second.
        connect: gives a round.
        mark: the end of a phase.
    """

    title: str
    messages: int
    rounds: int
    connect: Callable[[Server, ExitStack], Round]
    mark: Mark = connection


#: Named as the kinds of bench/versus are.
WORKS = {
    "tcp-1": Work("64 connections, 1 in flight", 64, 8, streams(64, 1, 32)),
    "tcp-16": Work("64 connections, 16 in flight", 64 * 16, 4, streams(64, 16, 32)),
    "tcp-256": Work("64 connections, 256 in flight", 64 * 256, 2, streams(64, 256, 32)),
    "tcp-1k": Work("64 connections, lines of 1 KiB", 64, 8, streams(64, 1, 1024)),
    "tcp-16k": Work("64 connections, lines of 16 KiB", 64, 2, streams(64, 1, 16_384)),
    "short": Work("short connections, closed by FIN", 16, 16, short(16, False), datagram),
    "short-rst": Work("short connections, closed by RST", 16, 16, short(16, True), datagram),
    "udp-1": Work("UDP, 1 in flight, 16 peers", 16, 16, datagrams(16, 1)),
    "udp-16": Work("UDP, bursts of 16 from each of 16 peers", 256, 4, datagrams(16, 16)),
    "udp-burst": Work("UDP, bursts of 64", 64, 8, datagrams(1, 64)),
    "udp-segmented": Work("UDP, segmented bursts", 64, 8, datagrams(1, 64, segmented=True)),
}


# ---- counting


@dataclass
class Count:
    """What so many rounds have taken."""

    instructions: int = 0
    allocations: int = 0
    waits: int = 0  # for events
    rendered: int = 0  # prefixes
    calls: Counter[str] | None = None


Take = Callable[[], Count]


@contextmanager
def under_callgrind(peer: Peer, cpu: int, mark: Mark) -> Iterator[tuple[Server, Take]]:
    """The server in valgrind; what it has done since it was last asked."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "callgrind"
        seen = [f"--dump-before={function}" for function in MARKS[mark]]
        wrapper = ("valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", *seen)
        with started(replace(peer, start=(*wrapper, *peer.start)), cpu) as server:
            dumps = 0

            def take() -> Count:
                nonlocal dumps
                mark(server)
                settle(server)
                dump = Path(f"{out}.{dumps + 1}")
                if not dump.exists():
                    raise Uncounted("callgrind has not seen the mark")
                dumps = len(list(Path(place).glob("callgrind.*")))
                return read_dump(dump.read_text())

            yield server, take


def read_dump(text: str) -> Count:
    """The instructions of a callgrind dump, and the calls to what allocates, or waits."""
    totals = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
    count = Count(int(totals[1]) if totals else 0)
    names: dict[str, str] = {}
    at = {"fn": "", "cfn": ""}  # the function that is told of, and the one that it calls
    for found in re.finditer(r"^(c?fn)=(\(\d+\))(?: (.*))?$|^calls=(\d+)", text, re.MULTILINE):
        which, number, name, calls = found.groups()
        if calls is None:
            at[which] = names.setdefault(number, name)
        elif ALLOCATING.fullmatch(at["cfn"]) and not INTERPRETER.match(at["fn"]):
            count.allocations += int(calls)
        elif at["cfn"] == "epoll_wait":
            count.waits += int(calls)
    return count


@contextmanager
def under_strace(peer: Peer, cpu: int) -> Iterator[tuple[Server, Take]]:
    """The server's system calls since it was last asked."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "strace"
        # -D: the server is our child, and strace is not; -f: its threads too.
        wrapper = ("strace", "-D", "-f", "-qq", "-s0", "-e", "signal=none", "-o", str(out))
        with (
            started(replace(peer, start=(*wrapper, *peer.start)), cpu) as server,
            out.open() as lines,
        ):

            def take() -> Count:
                found = re.findall(r"^\d+ +(\w+)\(", lines.read(), re.MULTILINE)
                return Count(calls=Counter(found), waits=found.count("epoll_wait"))

            yield server, take


def come_first(server: Server) -> None:
    """Have the server run only while we wait."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:  # then it is the last of all, others' processes included
        os.sched_setscheduler(server.pid, os.SCHED_IDLE, os.sched_param(0))


def settle(server: Server) -> None:
    """Wait until it sleeps: then all of the last round is done, and nothing is under way."""
    end = time.monotonic() + PATIENCE
    stat = Path(f"/proc/{server.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "S":
        if time.monotonic() > end:
            raise Uncounted("the server does not come to rest")
        time.sleep(0.0005)


def phase(server: Server, one_round: Round, take: Take, rounds: int) -> Count:
    """What so many rounds take."""
    prefixes = {one_round()}
    settle(server)
    take()
    settle(server)
    for _ in range(rounds):
        prefixes.add(one_round())
        settle(server)
    found = take()
    found.rendered = len(prefixes) - 1
    return found


def phases(server: Server, one_round: Round, take: Take, rounds: int) -> tuple[Count, Count]:
    """A phase of so many rounds, and one of twice as many, that differ by nothing but that."""
    found: tuple[list[Count], list[Count]] = ([], [])
    for turn in range(TRIES):
        for times, counts in enumerate(found, 1):
            counts.append(phase(server, one_round, take, times * rounds))
        for once, twice in itertools.product(*map(undisturbed, found)) if turn >= WARM else ():
            # Else a prefix was rendered in one of them, or there was one wait more.
            if once.rendered == twice.rendered and (twice.waits - once.waits) % rounds == 0:
                return once, twice
    raise Uncounted(f"no two of {TRIES} phases did the same: too much else runs on this machine")


def undisturbed(counts: Sequence[Count]) -> Iterator[Count]:
    """The cheapest of each sort, if it came out so twice: a timer that falls into one adds."""
    sorts: dict[tuple[int, int], list[Count]] = defaultdict(list)
    for each in counts[1:]:  # the first is not quite warm
        sorts[each.rendered, each.waits].append(each)
    for alike in sorts.values():
        one, *others = sorted(alike, key=lambda count: count.instructions)
        if (
            others
            and others[0].calls == one.calls
            and others[0].instructions - one.instructions <= SAME * one.instructions
        ):
            yield one


def cost(server: Server, take: Take, work: Work) -> dict[str, Any]:
    """What a message of this work takes."""
    with ExitStack() as stack:
        one_round = work.connect(server, stack)
        for _ in range(3):  # what it needs once
            one_round()
            settle(server)
        once, twice = phases(server, one_round, take, work.rounds)
    messages = work.rounds * work.messages
    if once.calls is None or twice.calls is None:
        return {
            "instructions": round((twice.instructions - once.instructions) / messages, 1),
            "allocations": round((twice.allocations - once.allocations) / messages, 4),
        }
    names = sorted(twice.calls)
    calls = {name: round((twice.calls[name] - once.calls[name]) / messages, 4) for name in names}
    return {"calls": {name: count for name, count in calls.items() if count}}


def count(peer: Peer, works: Iterable[str], cpu: int) -> dict[str, dict[str, Any]]:
    """A peer's costs, by kind of work."""
    found: dict[str, dict[str, Any]] = {name: {} for name in works if name not in peer.cannot}
    for mark in MARKS:
        marked = [name for name in found if WORKS[name].mark is mark]
        with under_callgrind(peer, cpu, mark) as (server, take):
            add_costs(found, marked, server, take)
    with under_strace(peer, cpu) as (server, take):
        add_costs(found, found, server, take)
    return found


def add_costs(
    found: dict[str, dict[str, Any]], names: Iterable[str], server: Server, take: Take
) -> None:
    come_first(server)
    for name in names:
        found[name] |= cost(server, take, WORKS[name])


# ---- the file


def made_with() -> dict[str, str]:
    """What instructions depend on besides the sources."""
    gcc = subprocess.run(["gcc", "-dumpversion"], capture_output=True, text=True, check=False)
    flags = Path("/proc/cpuinfo").read_text()
    described = machine.describe(__version__)
    return {
        "architecture": str(described["architecture"]),
        "avx2": "yes" if re.search(r"^flags\b.*\bavx2\b", flags, re.MULTILINE) else "no",
        "gcc": gcc.stdout.strip().partition(".")[0],
        "python": str(described["python"]),
    }


def tolerance(there: dict[str, str], here: dict[str, str]) -> float | None:
    """How many times as many instructions there may be; None: they cannot be compared."""
    if there == here:
        return TOLERANCE
    return OTHER_PYTHON if there == here | {"python": there.get("python")} else None


def raised(old: dict[str, Any], new: dict[str, Any], within: float | None) -> Iterator[str]:
    """Sentences about what costs more than the file says."""
    for name, costs in new.items():
        title = WORKS[name].title
        before = old.get(name, {}).get(NATIVE)
        if before is None:
            yield f"{name} ({title}) is not in the ledger"
            continue
        stray = STRAY / (WORKS[name].messages * WORKS[name].rounds)
        if within is not None and costs["instructions"] > before["instructions"] * within:
            yield (
                f"{name} ({title}) takes {costs['instructions']:,.1f} instructions a message,"
                f" in the ledger {before['instructions']:,.1f}"
            )
        if costs["allocations"] > before["allocations"] + stray:
            yield (
                f"{name} ({title}) takes {costs['allocations']:.4f} allocations a message,"
                f" in the ledger {before['allocations']:.4f}"
            )
        for call, times in costs["calls"].items():
            if times > before["calls"].get(call, 0) + stray:
                yield (
                    f"{name} ({title}) takes {times:.4f} {call} a message,"
                    f" in the ledger {before['calls'].get(call, 0):.4f}"
                )


def shown(costs: dict[str, Any]) -> str:
    calls = ", ".join(f"{number:.4g} {name}" for name, number in costs["calls"].items())
    return f"{costs['instructions']:10,.1f} {costs['allocations']:8.4g}   {calls}"


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'':14}{'':12}{'instructions':>12} {'allocations':>8}   system calls, per message"]
    for name, peers in rows.items():
        for peer, costs in peers.items():
            lines.append(f"{name:14}{peer:12}  {shown(costs)}")
    return "\n".join(lines)


def missing() -> str:
    """What is needed and not here."""
    needed = ("valgrind", "strace", "gcc")
    return ", ".join(tool for tool in needed if shutil.which(tool) is None)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="fail if anything has become more")
    what.add_argument("--write", action="store_true", help="write the ledger")
    parser.add_argument("works", nargs="*", metavar="WORK", help=" ".join(WORKS))
    options = parser.parse_args()
    if unknown := [name for name in options.works if name not in WORKS]:
        parser.error(f"no work {unknown[0]!r} (choose from {' '.join(WORKS)})")
    if lacking := missing():
        print(f"ledger: skipped, since there is no {lacking} here")
        return 0
    works = options.works or list(WORKS)
    os.environ["PYTHONHASHSEED"] = "0"  # the server's dictionaries are the same each time
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    names = (NATIVE,) if options.check else (NATIVE, *REFERENCES)
    try:
        peers, absent = available(named(names))
        if absent:
            raise Uncounted("; ".join(f"{name}: {why}" for name, why in absent.items()))
        by_peer = {peer.name: count(peer, works, cpu) for peer in peers}
    except (PeerError, Uncounted) as error:
        print(f"ledger: {error}", file=sys.stderr)
        return 3
    rows = {
        work: {peer: found[work] for peer, found in by_peer.items() if work in found}
        for work in works
    }
    old = json.loads(LEDGER.read_text()) if LEDGER.exists() else {"made_with": {}, "rows": {}}
    print(table(rows))
    within = tolerance(old["made_with"], made_with())
    if within is None:
        print(f"(instructions are not compared: {old['made_with']} there, {made_with()} here)")
    sentences = list(raised(old["rows"], by_peer[NATIVE], within))
    if options.write:
        new = {"made_with": made_with(), "rows": old["rows"] | rows}
        LEDGER.write_text(json.dumps(new, indent=1) + "\n")
        print(f"written to {LEDGER.name}")
        return 0
    for sentence in sentences:
        print(f"ledger: {sentence}: if that is meant, `make ledger`, and say why", file=sys.stderr)
    return int(bool(sentences) and options.check)


if __name__ == "__main__":
    sys.exit(main())
