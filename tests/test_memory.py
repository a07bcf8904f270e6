"""What clients that never read, and such as do nothing, can make a daemon cost.

By default 300 of them. With FASTECHO_CROWD=1 (and 12,000 descriptors and 6 GB to spare) also 5,000
that never read and 10,000 that are idle; `pytest -s` shows the figures.
"""

from __future__ import annotations

import os
import re
import resource
import selectors
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE, STAMP, Daemon, environment, read_exactly, run, serving, until

from fastecho.limits import SEND_BUFFER_LIMIT

MIB = 2**20
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGESIZE")
#: For so long a client's bytes are taken by nobody, until it counts as blocked.
BLOCKED_AFTER = 0.2
#: What the interpreter itself may take meanwhile.
SLACK = 8 * MIB
BLOCK = b"\n" * 65_536
SS = shutil.which("ss")
IP_BIND_ADDRESS_NO_PORT = 24  # ip(7); Python 3.11 does not name it

crowd = pytest.mark.skipif(
    not os.environ.get("FASTECHO_CROWD"), reason="set FASTECHO_CROWD=1 for crowds of thousands"
)


def resident(daemon: Daemon) -> int:
    """Bytes of it in memory (VmRSS, proc(5))."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return 1024 * int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])


def private(daemon: Daemon) -> int:
    """Bytes in memory that are its alone."""
    rollup = Path(f"/proc/{daemon.process.pid}/smaps_rollup").read_text()
    return 1024 * sum(int(size) for size in re.findall(r"Private_\w+:\s+(\d+) kB", rollup))


def busy(daemon: Daemon) -> float:
    """Seconds that it has had the processor, user and system."""
    stat = Path(f"/proc/{daemon.process.pid}/stat").read_text()
    return sum(map(int, stat.rpartition(")")[2].split()[11:13])) / TICK


def in_kernel(daemon: Daemon) -> tuple[int, int, int]:
    """Memory of its connections' sockets, of their counterparts, and their most unsent; ss(8).

    /proc/net/sockstat has no numbers of one process, nor of one network namespace.
    """
    assert SS is not None
    port = daemon.tcp[1]
    own = other = unsent = 0
    for which in ("sport", "dport"):
        done = run(SS, "-tmnHO", "state", "established", which, "=", str(port))
        for line in done.stdout.decode().splitlines():
            found = re.search(r"skmem:\(r(\d+),rb\d+,t(\d+),tb\d+,f(\d+),w(\d+)", line)
            assert found, line
            held = sum(int(found[group]) for group in (1, 3, 4))
            if which == "sport":
                own += held
                unsent = max(unsent, int(line.split()[1]))
            else:
                other += held
    return own, other, unsent


def tcp_pages() -> int:
    """Bytes that TCP has, of all that there is on this machine."""
    sockstat = Path("/proc/net/sockstat").read_text()
    return PAGE * int(re.findall(r"^TCP:.* mem (\d+)", sockstat, re.MULTILINE)[0])


def stated(*arguments: str) -> tuple[int, int]:
    """Bytes of process and kernel that `--print-config` says."""
    done = subprocess.run(
        [sys.executable, "-m", "fastecho", *arguments, "--print-config"],
        capture_output=True,
        check=True,
        timeout=PATIENCE,
        env=environment(),
    )
    found = re.search(rb"#   ([\d,]+) MiB in this process, ([\d,]+) MiB in the kernel", done.stdout)
    assert found, done.stdout
    process, kernel = (int(number.replace(b",", b"")) * MIB for number in found.groups())
    return process, kernel


@contextmanager
def clients(daemon: Daemon, count: int) -> Iterator[list[socket.socket]]:
    """So many connections that do not block, from as many addresses as it takes.

    Their own part in the kernel is small, or it would be most of what this makes the machine hold.
    """
    with ExitStack() as stack:
        made = []
        for number in range(count):
            sock = stack.enter_context(socket.socket())
            sock.settimeout(PATIENCE)
            for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, buffer, 32_768)
            if count > 1000:
                sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((f"127.0.0.{2 + number % 200}", 0))
            sock.connect(daemon.tcp)
            sock.setblocking(False)
            made.append(sock)
        yield made


def send_until_blocked(crowd: list[socket.socket], patience: float) -> int:
    """Each sends empty lines until nobody takes more of any; how many bytes went."""
    sent = 0
    deadline = time.monotonic() + patience
    with selectors.DefaultSelector() as selector:
        for sock in crowd:
            selector.register(sock, selectors.EVENT_WRITE)
        while ready := selector.select(BLOCKED_AFTER):
            assert time.monotonic() < deadline, f"{len(ready)} still find room: {sent} bytes sent"
            for key, _ in ready:
                try:
                    sent += key.fileobj.send(BLOCK)  # type: ignore[union-attr]
                except BlockingIOError:
                    continue
    return sent


def answers_at_once(daemon: Daemon) -> None:
    with daemon.connect() as sock, daemon.datagram_socket() as other:
        sock.sendall(b"x\n")
        reply = read_exactly(sock, 28)
        assert STAMP.match(reply)
        assert reply.endswith(b"]x\n")
        other.send(b"x")
        assert other.recv(100).endswith(b"]x")


def is_idle(daemon: Daemon, seconds: float = 1.0) -> float:
    """The share of one processor that it takes while nobody does anything.

    (This looks for a loop that spins, which takes all of it: how long it looks does not matter.)
    """
    before, begin = busy(daemon), time.monotonic()
    time.sleep(seconds)
    return (busy(daemon) - before) / (time.monotonic() - begin)


@contextmanager
def many_descriptors(count: int) -> Iterator[None]:
    """This process may have so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        pytest.skip(f"no more than {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def never_read(count: int, patience: float, twin: Any) -> None:
    """What is said of clients that send, and never read, holds for so many."""
    arguments = ("--max-connections", str(count + 1), "--drain-timeout", "0")
    process, kernel = stated(*arguments, "--backend", twin.name)
    with serving(*arguments, backend=twin.name) as daemon:
        answers_at_once(daemon)
        before, pages = resident(daemon), tcp_pages()
        with clients(daemon, count) as crowd:
            sent = send_until_blocked(crowd, patience)
            grown, pages = resident(daemon) - before, tcp_pages() - pages
            report = [
                f"\n{twin.name}: {count} that never read, {sent / MIB:.0f} MiB sent",
                f"  process {grown / MIB:.0f} MiB of {process / MIB:.0f} stated",
                f"  all TCP {pages / MIB:+.0f} MiB of {kernel / MIB:.0f} stated",
            ]
            assert grown <= process + SLACK
            if SS:
                own, other, unsent = in_kernel(daemon)
                report.append(
                    f"  its sockets {own / MIB:.0f} MiB, theirs {other / MIB:.0f};"
                    f" most unsent {unsent} bytes"
                )
                assert own <= kernel
                # What was sent for good is read by nobody, so at most a segment more waits.
                assert unsent <= SEND_BUFFER_LIMIT + 65_536
            answers_at_once(daemon)
            share = is_idle(daemon)
            report.append(f"  then {share:.1%} of a processor")
            print("\n".join(report))
            assert share < 0.25
            answers_at_once(daemon)


def test_clients_that_never_read_cost_what_is_stated_and_delay_nobody(twin: Any) -> None:
    never_read(300, 40, twin)


def test_clients_that_have_gone_give_it_back(twin: Any) -> None:
    """What they made it hold is there for the next ones."""
    with serving("--drain-timeout", "0", backend=twin.name) as daemon:
        sizes = []
        for _ in range(3):
            with clients(daemon, 40) as some:
                send_until_blocked(some, 40)
                sizes.append(resident(daemon))
            until(lambda: descriptors(daemon) < 20, "its descriptors given back")
        assert sizes[2] < sizes[0] + SLACK
        answers_at_once(daemon)


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


def test_idle_clients_cost_no_time(twin: Any) -> None:
    with serving(backend=twin.name) as daemon, clients(daemon, 500):
        until(lambda: descriptors(daemon) > 500, "500 accepted")
        assert is_idle(daemon) < 0.25
        answers_at_once(daemon)


@crowd
@pytest.mark.timeout(600)
def test_5000_clients_that_never_read(twin: Any) -> None:
    with many_descriptors(5_100):
        never_read(5_000, 400, twin)


@crowd
@pytest.mark.timeout(600)
def test_10000_idle_clients(twin: Any) -> None:
    """Under 300 bytes of user memory for each, in native."""
    count = 10_000
    with many_descriptors(count + 100), serving(backend=twin.name) as daemon:
        answers_at_once(daemon)
        before, slab, pages = private(daemon), kernel_slab(), tcp_pages()
        with clients(daemon, count) as crowd:
            until(lambda: descriptors(daemon) > count, "all accepted")
            each = (private(daemon) - before) / count
            print(
                f"\n{twin.name}: {count} idle, each {each:.0f} bytes of the process; kernel, both"
                f" ends: {(kernel_slab() - slab) / count:.0f} bytes of slab,"
                f" {(tcp_pages() - pages) / count:.0f} of buffers"
            )
            share = is_idle(daemon)
            print(f"  then {share:.1%} of a processor")
            assert share < 0.25
            answers_at_once(daemon)
            # One exchange leaves nothing behind.
            for sock in crowd:
                sock.setblocking(True)
                sock.sendall(b"x\n")
                read_exactly(sock, 28)
            after = (private(daemon) - before) / count
            print(f"  after one exchange each: {after:.0f} bytes")
            if twin.name == "native":
                assert max(each, after) < 300


def kernel_slab() -> int:
    meminfo = Path("/proc/meminfo").read_text()
    return 1024 * int(re.findall(r"^Slab:\s+(\d+) kB", meminfo, re.MULTILINE)[0])
