"""A pipe through the daemon: all of it comes back, at constant memory.

64 MB by default. `TEST_VOLUME_MB` sets another size; what a release is tested with:

    TEST_VOLUME_MB=1000 pytest tests/test_volume.py -s --timeout=600
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

import pytest
from processes import serving

SOCAT = shutil.which("socat")
VOLUME = int(os.environ.get("TEST_VOLUME_MB", "64")) * 1_000_000
#: Far less than the default volume, and far more than a loop and its buffers need.
MOST_MEMORY = 8 << 20
PREFIX = b"[a constant prefix, 32 bytes...] "


def lines() -> bytes:
    """About a million bytes of lines: empty, short, and as long as is allowed."""
    source = random.Random(1)
    sizes = [0, 1, 65_536, *(source.choice([0, 7, 32, 80, 400, 5000]) for _ in range(1000))]
    return b"".join(bytes(source.choices(range(32, 127), k=size)) + b"\n" for size in sizes)


LINES = lines()
REPLIES = b"".join(PREFIX + line for line in LINES.splitlines(keepends=True))
BLOCKS = -(-VOLUME // (len(LINES) + 11))


def numbered(content: bytes, prefix: bytes = b"") -> Iterator[bytes]:
    """The blocks of a stream, each with a line of its own that says which it is."""
    return (b"%b%010d\n%b" % (prefix, number, content) for number in range(BLOCKS))


def digest_of(blocks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def pour(stdin: IO[bytes]) -> None:
    """Write it all, and say that this is all."""
    with stdin:
        for block in numbered(LINES):
            stdin.write(block)


@pytest.mark.skipif(SOCAT is None, reason="socat is not installed")
def test_a_pipe_comes_back_complete_at_constant_memory(
    twin: Any, record_property: Callable[[str, object], None]
) -> None:
    with serving("--prefix", PREFIX.decode(), backend=twin.name) as daemon:
        before = daemon.peak()
        since = time.perf_counter()
        command = [SOCAT, "-t30", "-", f"TCP:127.0.0.1:{daemon.tcp[1]}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as socat:
            sender = threading.Thread(target=pour, args=(socat.stdin,))
            sender.start()
            received = digest_of(iter(lambda: socat.stdout.read(1 << 20), b""))
            sender.join()
        seconds = time.perf_counter() - since
        peak = daemon.peak()
    assert socat.returncode == 0
    assert received == digest_of(numbered(REPLIES, PREFIX))
    assert peak - before < MOST_MEMORY
    sent = BLOCKS * (len(LINES) + 11)
    for name, value in {
        "MB": sent / 1e6,
        "MB/s": sent / 1e6 / seconds,
        "peak MB": peak / 1e6,
        "of these since the start": (peak - before) / 1e6,
    }.items():
        record_property(name, value)
        print(f"{twin.name}: {value:,.1f} {name}")
