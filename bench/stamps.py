"""How true is a stamp on UDP? python bench/stamps.py [--backend BACKEND] [--probes N] [--json]

The error is the stamp in a reply less the time at which the kernel received the datagram. That time
is told to a packet socket (packet(7), SO_TIMESTAMPNS) that sees the same datagrams on the loopback,
so this needs CAP_NET_RAW. First with the server idle, then beside a load of 70% of what it can do.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fastecho.load import Load, Plan

SO_ATTACH_FILTER, SO_TIMESTAMPNS = 26, 35
ETH_P_IP = 0x0800
TIMESPEC = struct.Struct("@ll")
PREFIX = "{epoch_ns} "
#: Bytes of a probe, which no message of the load has, and where it begins in a packet.
SIZE, START = 40, 28
GAP = 0.0005  # seconds between probes
LATE = 1.0  # seconds: then a probe is lost
SHARE = 0.7


@contextmanager
def serving(backend: str) -> Iterator[int]:
    """A server; its port."""
    options = ["--backend", backend, "--prefix", PREFIX, "udp://127.0.0.1:0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastecho", *options], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        yield int(re.findall(r"127\.0\.0\.1:(\d+)", process.stderr.readline())[0])
    finally:
        process.terminate()
        process.communicate()


def packets_to(port: int) -> socket.socket:
    """A packet socket that gets the probes alone, once received (a filter of BPF, socket(7))."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    filters = [
        (0x28, 0, 0, 2),  # the packet's length
        (0x15, 0, 3, START + SIZE),
        (0x28, 0, 0, 22),  # its port of destination
        (0x15, 0, 1, port),
        (0x06, 0, 0, 0xFFFF),
        (0x06, 0, 0, 0),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("@HBBI", *each) for each in filters))
    program = struct.pack("@HP", len(filters), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.settimeout(LATE)
    sock.bind(("lo", ETH_P_IP))
    return sock


def received_at(sock: socket.socket, probe: bytes) -> int:
    """When the kernel received this probe: what is sent is seen too, and not looked at."""
    while True:
        data, control, _, address = sock.recvmsg(256, 64)
        if address[2] == socket.PACKET_HOST and data[START:] == probe:
            seconds, nanoseconds = TIMESPEC.unpack_from(control[0][2])
            return int(seconds * 1_000_000_000 + nanoseconds)


def errors(port: int, probes: int) -> list[int]:
    """Of so many probes, less those that were lost; in nanoseconds, by size."""
    found = []
    with (
        packets_to(port) as packets,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(LATE)
        client.connect(("127.0.0.1", port))
        for number in range(probes):
            probe = b"%d" % number + b"." * (SIZE - len(str(number)))
            client.send(probe)
            try:
                came = received_at(packets, probe)
                stamp, _, message = client.recv(256).partition(b" ")
                while message != probe:
                    stamp, _, message = client.recv(256).partition(b" ")
            except TimeoutError:
                continue
            found.append(abs(int(stamp) - came))
            time.sleep(GAP)
    return sorted(found)


def told(beside: str, found: list[int]) -> dict[str, Any]:
    """What they show: how many they are, and percentiles."""

    def at(share: float) -> int:
        return found[min(int(len(found) * share), len(found) - 1)]

    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "most": 1.0}
    return {"beside": beside, "probes": len(found), **{name: at(shares[name]) for name in shares}}


def measured(backend: str, probes: int) -> list[dict[str, Any]]:
    """First idle, then beside a load."""
    with serving(backend) as port:
        errors(port, 100)  # the kernel begins to stamp a moment after it was asked to
        idle = told("nothing", errors(port, probes))
        address = f"127.0.0.1:{port}"
        plan = Plan(address, udp=True, prefix=PREFIX, connections=16, size="32", duration=1.0)
        most = Load(plan).run()
        rate = f"{SHARE * most.received / most.seconds:.0f}"
        words = [sys.executable, "-m", "fastecho", "load", "--udp", "--prefix", PREFIX]
        words += ["--connections", "16", "--rate", rate, "--duration", "600", address]
        load = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(1.0)  # until it is at work; nothing tells
            return [idle, told(f"{int(rate):,} messages a second", errors(port, probes))]
        finally:
            load.terminate()
            load.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--probes", type=int, default=5_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measured(options.backend, options.probes)
    if options.json:
        print(json.dumps(found))
        return
    for each in found:
        print(
            f"beside {each['beside']}: {each['probes']:,} probes, error p50 {each['p50']:,} ns,"
            f" p99 {each['p99']:,} ns, p99.9 {each['p99.9']:,} ns, most {each['most']:,} ns"
        )


if __name__ == "__main__":
    main()
