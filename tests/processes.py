"""fastecho as its users run it: a process of its own, known by what it says and what it answers.

Nothing here waits for a length of time: `until` looks until something is seen, and `PATIENCE` is
only how long a test looks for what never comes.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

PATIENCE = 20.0  # seconds; less than pytest's timeout, so that a failure says what was missing
READY = re.compile(r"^waiting for \w+ \.\.\. (\w+)://(.+):(\d+) \(.+\)$")
#: The default prefix, of any time.
STAMP = re.compile(rb"\[\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\]")
#: A loopback address that nobody else uses: for ports that must stay free for a moment.
OWN_HOST = f"127.{1 + (os.getpid() >> 16)}.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
#: RST instead of FIN (socket(7)).
ABORT = struct.pack("ii", 1, 0)
#: fastecho as it is tested: a warning is an error.
FASTECHO = (sys.executable, "-W", "error", "-m", "fastecho")

Seen = TypeVar("Seen")


def until(look: Callable[[], Seen], what: str) -> Seen:
    """What `look` gives, as soon as that is true."""
    deadline = time.monotonic() + PATIENCE
    while not (seen := look()):
        assert time.monotonic() < deadline, f"never seen: {what}"
        time.sleep(0.005)
    return seen


def environment(**changes: str) -> dict[str, str]:
    """Ours without fastecho's own variables: what they say is for the tests, not for the daemon."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTECHO_")}
    return kept | changes


class Daemon:
    """A fastecho that has been started.

    Attributes:
        process: it.
        ready: the lines that say where it listens, once `wait_ready` has seen them.
    """

    def __init__(
        self,
        arguments: list[str],
        variables: Mapping[str, str],
        command: Sequence[str | Path] = FASTECHO,
    ) -> None:
        self._stdout = os.memfd_create("stdout")
        self._stderr = os.memfd_create("stderr")
        self._ending = False
        self.ready: list[str] = []
        self.process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._stdout,
            stderr=self._stderr,
            env=environment(**variables),
        )

    @property
    def stdout(self) -> str:
        return _content(self._stdout)

    @property
    def stderr(self) -> str:
        """All that it has said so far."""
        return _content(self._stderr)

    @property
    def lines(self) -> list[str]:
        """The whole lines of `stderr` after those that say that it is ready."""
        said = self.stderr
        return said[: said.rfind("\n") + 1].splitlines()[len(self.ready) :]

    def wait_ready(self, lines: int) -> None:
        """Until it says of so many sockets that it listens on them."""

        def look() -> bool:
            self.ready = [each for each in self.stderr.split("\n")[:-1] if READY.match(each)]
            assert self.process.poll() is None, f"ended at its start: {self.stderr}"
            return len(self.ready) >= lines

        until(look, f"{lines} ready lines")

    def wait_line(self, text: str) -> str:
        """The first line after the ready ones that has `text` in it."""
        return until(
            lambda: next((line for line in self.lines if text in line), ""),
            f"{text!r} on standard error",
        )

    def addresses(self, protocol: str) -> list[tuple[str, int]]:
        """Where it listens, as `socket` takes it."""
        found = [READY.match(line).groups() for line in self.ready]  # type: ignore[union-attr]
        return [(host.strip("[]"), int(port)) for name, host, port in found if name == protocol]

    @property
    def tcp(self) -> tuple[str, int]:
        return self.addresses("tcp")[0]

    @property
    def udp(self) -> tuple[str, int]:
        return self.addresses("udp")[0]

    def connect(self) -> socket.socket:
        """A connection; what it waits for longer than `PATIENCE` is an error."""
        return socket.create_connection(self.tcp, PATIENCE)

    def datagram_socket(self) -> socket.socket:
        """A UDP socket that talks to it and to nobody else."""
        host = self.udp[0]
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(PATIENCE)
        sock.connect(self.udp)
        return sock

    def peak(self) -> int:
        """The most memory that it has ever had resident, in bytes (VmHWM, proc(5))."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])

    def kill(self, number: int) -> None:
        """Send it a signal; it never gets a second one that it was not meant to get."""
        self._ending = self._ending or number in (signal.SIGINT, signal.SIGTERM)
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end, if nobody has yet; its exit status."""
        if not self._ending:
            self.kill(number)
        return self.process.wait(PATIENCE)

    def discard(self) -> None:
        """End it, whatever it does, and forget what it said."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._stdout)
        os.close(self._stderr)


@contextmanager
def serving(
    *arguments: str, backend: str, listen: tuple[str, ...] = ("127.0.0.1:0",), lines: int = 0
) -> Iterator[Daemon]:
    """A daemon that listens, and that must end well when it is not needed any more.

    Args:
        arguments: flags.
        backend: its twin.
        listen: its LISTEN words.
        lines: how many ready lines there are; by default as many as these words have.
    """
    daemon = Daemon([*arguments, "--backend", backend, *listen], {})
    try:
        daemon.wait_ready(lines or sum(1 if "://" in word else 2 for word in listen))
        yield daemon
        status = daemon.stop()
        assert (status, daemon.stdout) == (0, ""), daemon.stderr
        assert not re.search("Traceback|Warning|Exception", daemon.stderr), daemon.stderr
    finally:
        daemon.discard()


def run(
    *command: str | Path,
    stdin: bytes = b"",
    variables: Mapping[str, str] | None = None,
    patience: float = PATIENCE,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end, with this input."""
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        timeout=patience,
        check=False,
        env=environment(**(variables or {})),
    )


def stamped(message: bytes, since: float) -> list[bytes]:
    """What the reply may be to a message sent at `since` or later: one for each second since."""
    seconds = range(int(since), int(time.time()) + 1)
    return [b"[%b]%b" % (time.ctime(second).encode(), message) for second in seconds]


def read_to_end(sock: socket.socket, chunk: int = 65_536) -> bytes:
    """All that comes until the peer has sent all. A reset is an error."""
    received = bytearray()
    while data := sock.recv(chunk):
        received += data
    return bytes(received)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes, or as many as come before the end."""
    received = bytearray()
    while len(received) < size and (data := sock.recv(size - len(received))):
        received += data
    return bytes(received)


def named(address: tuple[str, int]) -> str:
    """An IPv4 address as logs and LISTEN words have it."""
    host, port = address
    return f"{host}:{port}"


def abort(sock: socket.socket) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    sock.close()


def has_ipv6() -> bool:
    """Whether the machine has an IPv6 loopback."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")


def _content(descriptor: int) -> str:
    """What is in the file; where the child writes next, which is not for us to move, stays."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()
