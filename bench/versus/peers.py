"""The servers that are compared: what they are, how they are built and started, what they can do.

`available` builds what can be built here and names what is missing; `started` runs one for as long
as it is needed. Python's peers run on the interpreter that runs this, fastecho from the tree.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from works import FRAMINGS, STREAMS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILT = HERE / ".built"

#: Seconds for a server to be ready, and to end.
PATIENCE = 20.0
#: How often we look whether it is.
LOOK = 0.001

#: Where C at its best does nothing else than C as everybody would write it.
SAME_AT_BEST = ("trip", "tcp-1k", "tcp-16k", "idle", "memory", "ready", "latency")
ONE_CLIENT = "one client at a time"
ONE_RECV = "takes a recv for a message"
TUTORIAL_CHECKS = {
    "bytes": ONE_RECV,
    "batch": ONE_RECV,
    "long": "no line is longer than its buffer of 1,024 bytes",
    "too-long": "knows no lines, so none is too long",
    "half-close": ONE_RECV,
    "flood": ONE_RECV,
    "unread": ONE_CLIENT,
    "reset": "a reset ends it",
    "many": ONE_CLIENT,
    "datagrams": "cuts a datagram after 1,024 bytes",
}


class PeerError(Exception):
    """A peer could not be built, started or ended."""


@dataclass(frozen=True)
class Peer:
    """One of them.

    Attributes:
        name: on the command line.
        title: in a table.
        start: its command, with {host} and {port}.
        versions: commands whose first lines say what it is made with.
        packages: of Python, that it needs.
        build: commands that build it.
        ready: a line that it prints, as often as `ready_lines`, once it can be used.
        cannot: kinds of work that it cannot do, and why.
        fails: checks that it cannot pass, and why.
    """

    name: str
    title: str
    start: tuple[str, ...]
    versions: tuple[tuple[str, ...], ...]
    packages: tuple[str, ...] = ()
    build: tuple[tuple[str, ...], ...] = ()
    ready: str = r"ready$"
    ready_lines: int = 1
    cannot: Mapping[str, str] = field(default_factory=dict)
    fails: Mapping[str, str] = field(default_factory=dict)

    @property
    def tools(self) -> set[str]:
        """The programs without which there is none of it."""
        words = {command[0] for command in (*self.build, *self.versions, self.start)}
        return {word for word in words if not word.startswith(str(BUILT))}

    def missing(self) -> list[str]:
        """What is needed and not to be had here."""
        tools = [tool for tool in sorted(self.tools) if shutil.which(tool) is None]
        return tools + [name for name in self.packages if importlib.util.find_spec(name) is None]

    def version(self) -> str:
        """What it is made with."""
        lines = [run(command).splitlines()[0] for command in self.versions]
        packages = [f"{name} {importlib.metadata.version(name)}" for name in self.packages]
        return ", ".join(lines + packages)


class Server(NamedTuple):
    """A peer that has been started.

    Attributes:
        peer: which.
        seconds: from its start until it was ready, to a millisecond.
    """

    peer: Peer
    host: str
    port: int
    pid: int
    seconds: float

    def cpu_ns(self) -> int:
        """CPU time that it has spent so far, in nanoseconds (clock_getcpuclockid(3))."""
        return time.clock_gettime_ns(~self.pid << 3 | 2)

    def resident(self) -> int:
        """Bytes of memory that it has resident (VmRSS, proc(5))."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])


def in_python(name: str, title: str, file: str, *packages: str, **others: object) -> Peer:
    """A peer that is a Python file."""
    start = (sys.executable, str(HERE / file), "{host}", "{port}")
    return Peer(name, title, start, ((sys.executable, "--version"),), packages, **others)


def fastecho(name: str, title: str, backend: str) -> Peer:
    """fastecho itself, with either backend."""
    daemon = (sys.executable, "-m", "fastecho")
    return Peer(
        name,
        title,
        (*daemon, "--backend", backend, "{host}:{port}"),
        ((sys.executable, "--version"), (sys.executable, "-c", VERSION)),
        packages=("click",),
        ready=r"waiting for \w+ \.\.\. ",
        ready_lines=2,
    )


def framed(peer: Peer) -> dict[str, Peer]:
    """fastecho with each framing."""
    return {
        spec: replace(peer, start=(*peer.start, "--framing", spec)) for spec in ("line", *FRAMINGS)
    }


VERSION = "import fastecho; print('fastecho', fastecho.__version__)"
C = ("gcc", "-O3", "-Wall", "-Wextra", "-o", str(BUILT / "epoll"), str(HERE / "epoll.c"))
CARGO = ("--quiet", "--manifest-path", str(HERE / "tokio" / "Cargo.toml"))

PEERS = (
    Peer(
        "epoll",
        "C epoll",
        (str(BUILT / "epoll"), "{host}", "{port}"),
        (("gcc", "--version"),),
        build=(C,),
    ),
    Peer(
        "epoll-best",
        "C epoll at its best",
        (str(BUILT / "epoll"), "{host}", "{port}", "--best"),
        (("gcc", "--version"),),
        build=(C,),
        cannot=dict.fromkeys(SAME_AT_BEST, "the same as C epoll"),
    ),
    fastecho("fastecho", "fastecho", "native"),
    fastecho("fastecho-pure", "fastecho, pure", "pure"),
    in_python(
        "aiofastnet", "uvloop + aiofastnet", "aiofastnet_protocol.py", "uvloop", "aiofastnet"
    ),
    in_python("uvloop", "uvloop", "uvloop_protocol.py", "uvloop"),
    in_python("asyncio", "asyncio", "asyncio_protocol.py"),
    in_python("gevent", "gevent", "gevent_server.py", "gevent"),
    in_python("threads", "threads (socketserver)", "threads.py"),
    Peer(
        "go",
        "Go net",
        (str(BUILT / "go_net"), "{host}", "{port}"),
        (("go", "version"),),
        build=(("go", "build", "-C", str(HERE / "go_net"), "-o", str(BUILT / "go_net"), "."),),
    ),
    Peer(
        "node",
        "Node net",
        ("node", str(HERE / "node_net.js"), "{host}", "{port}"),
        (("node", "--version"),),
    ),
    Peer(
        "tokio",
        "Rust tokio",
        (str(BUILT / "tokio" / "release" / "tokio_net"), "{host}", "{port}"),
        (
            ("rustc", "--version"),
            ("cargo", "tree", *CARGO, "--invert", "tokio", "--depth", "0", "--prefix", "none"),
        ),
        build=(("cargo", "build", *CARGO, "--release", "--target-dir", str(BUILT / "tokio")),),
    ),
    in_python(
        "tutorial",
        "the tutorial's loop",
        "tutorial.py",
        cannot={kind: ONE_CLIENT for kind in STREAMS if kind != "trip"},
        fails=TUTORIAL_CHECKS,
    ),
)


def named(names: Iterable[str]) -> list[Peer]:
    """The peers with these names; without any, all.

    Raises:
        PeerError: there is none of that name.
    """
    known = {peer.name: peer for peer in PEERS}
    wanted = list(names) or list(known)
    if unknown := [name for name in wanted if name not in known]:
        raise PeerError(f"no peer here: {' '.join(unknown)} (choose from {' '.join(known)})")
    return [known[name] for name in wanted]


def available(peers: Iterable[Peer] = PEERS) -> tuple[list[Peer], dict[str, str]]:
    """Build them: those that can be started, and of the others what is missing, by name."""
    BUILT.mkdir(exist_ok=True)
    there, absent = [], {}
    for peer in peers:
        if missing := peer.missing():
            absent[peer.name] = "not found: " + ", ".join(map(_plain, missing))
            continue
        try:
            for command in peer.build:
                run(command)
        except PeerError as error:
            absent[peer.name] = str(error)
        else:
            there.append(peer)
    return there, absent


def _plain(tool: str) -> str:
    return Path(tool).name


def run(command: Iterable[str]) -> str:
    """What a command prints.

    Raises:
        PeerError: it failed.
    """
    words = list(command)
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment())
    if done.returncode != 0:
        raise PeerError(f"{_plain(words[0])} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def environment() -> dict[str, str]:
    """Ours, with fastecho from the tree, and without fastecho's own variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTECHO_")}
    return kept | {"PYTHONPATH": str(ROOT)}


@contextmanager
def started(peer: Peer, cpu: int | None = None, host: str = "127.0.0.1") -> Iterator[Server]:
    """Have it run, on a free port.

    Args:
        peer: one that `available` has built.
        cpu: the only core that it may use; by default, any.
        host: an address of the loopback.

    Raises:
        PeerError: it did not become ready, or did not end when it was told to.
    """
    raise_descriptor_limit()
    with tempfile.TemporaryFile() as output:
        for left in (2, 1, 0):
            port = free_port(host)
            process, seconds = _start(peer, host, port, cpu, output.fileno())
            if seconds is not None:
                break
            _end(process)
            output.seek(0)
            said = output.read().decode(errors="replace").strip()
            if not left or process.returncode == 0:
                raise PeerError(f"{peer.name} did not start: {said or 'it said nothing'}")
        try:
            yield Server(peer, host, port, process.pid, seconds)
        finally:
            ended = _end(process)
        if not ended:
            raise PeerError(f"{peer.name} did not end on SIGTERM")


def _start(
    peer: Peer, host: str, port: int, cpu: int | None, output: int
) -> tuple[subprocess.Popen[bytes], float | None]:
    """Start it; after how many seconds it was ready, or None."""
    words = [word.format(host=host, port=port) for word in peer.start]
    ready = re.compile("^" + peer.ready, re.MULTILINE)
    os.truncate(output, 0)
    os.lseek(output, 0, os.SEEK_SET)
    ours = os.sched_getaffinity(0)
    begun = time.monotonic()
    try:
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})  # which a child inherits, with every thread it makes
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment()
        )
    finally:
        os.sched_setaffinity(0, ours)
    while time.monotonic() < begun + PATIENCE and process.poll() is None:
        said = os.pread(output, 65_536, 0).decode(errors="replace")
        if len(ready.findall(said)) >= peer.ready_lines:
            return process, time.monotonic() - begun
        time.sleep(LOOK)
    return process, None


def _end(process: subprocess.Popen[bytes]) -> bool:
    """Have it end; whether it did as it was told."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


def free_port(host: str) -> int:
    """A number that is free for TCP and UDP."""
    while True:
        with (
            socket.socket(type=socket.SOCK_STREAM) as tcp,
            socket.socket(type=socket.SOCK_DGRAM) as udp,
        ):
            tcp.bind((host, 0))
            try:
                udp.bind(tcp.getsockname())
            except OSError:
                continue
            return tcp.getsockname()[1]


def raise_descriptor_limit() -> None:
    """As many descriptors as there may be, for us and for whom we start."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    found, absent = available()
    for each in found:
        print(f"{each.name:14} {each.version()}")
    for name, reason in absent.items():
        print(f"{name:14} missing ({reason})")
