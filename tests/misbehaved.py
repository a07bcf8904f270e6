"""Clients of a server that misbehaves, and what its decision log says."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

from hypothesis import strategies as st
from processes import PATIENCE

from fastecho import Server, running

#: Of all that can be done to streams, what is quick.
FRAGMENTS = [
    "walk",
    "dribble:p=50%",
    "slice:size=1-3,p=50%",
    "corrupt:p=50%",
    "duplicate:p=50%",
    "swap:wait=2ms,p=50%",
    "coalesce:wait=2ms,p=50%",
    "delay:time=1-3ms,p=50%",
    "bandwidth:rate=50k,p=50%",
    "truncate:p=10%",
    "reset:p=10%",
    "stall:p=5%",
    "slow-read:size=5,pause=1ms,p=50%",
    "late-accept:time=5ms,p=50%",
]
plans = st.sets(st.sampled_from(FRAGMENTS), min_size=1).map(sorted).map("; ".join)
seeds = st.integers(0, 2**63 - 1)

#: Of a client that the server has reset.
RESET = "reset"


Serve: TypeAlias = "Callable[..., AbstractContextManager[Server]]"


def logging_servers(listen: str, seed: int, path: Path, backend: str) -> Serve:
    """Makes servers of a plan that log to a file; without a prefix, unless told."""

    def serve(plan: str, **more: Any) -> AbstractContextManager[Server]:
        fixed = {"listen": listen, "prefix": "", "fault_seed": seed, "backend": backend}
        return running(**{**fixed, "faults": plan, "fault_log": str(path), **more})

    return serve


def connected(address: tuple[str, int] | str) -> socket.socket:
    """A TCP or UNIX stream; what it sends leaves at once."""
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        sock.connect(address)
        return sock
    sock = socket.create_connection(address, PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def recvs(sock: socket.socket, size: int = 1 << 30) -> list[bytes]:
    """What each `recv` brings, until so many bytes have come, or the end; a reset is its word."""
    found: list[Any] = []
    while size > 0:
        try:
            data = sock.recv(65_536)
        except ConnectionResetError:
            return [*found, RESET]
        if not data:
            return found
        found.append(data)
        size -= len(data)
    return found


def asked(sock: socket.socket, message: bytes, extra: int = 0) -> list[bytes]:
    """The `recv`s of the reply to a message, which has so many bytes more."""
    sock.sendall(message)
    return recvs(sock, len(message) + extra)


def ended(sock: socket.socket) -> list[bytes]:
    """The `recv`s after we have sent all."""
    sock.shutdown(socket.SHUT_WR)
    return recvs(sock)


def log(path: Path) -> list[dict[str, Any]]:
    """The lines of a decision log."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(
    lines: Iterable[dict[str, Any]], event: str, connection: int = 1
) -> list[dict[str, Any]]:
    """Those of one kind, of one connection."""
    return [
        line for line in lines if line["event"] == event and line.get("connection") == connection
    ]


def ends(parts: Iterable[bytes]) -> list[int]:
    """Where each of them ends, if they follow each other."""
    return list(itertools.accumulate(map(len, parts)))


def read_ends(lines: Iterable[dict[str, Any]]) -> set[int]:
    """Where `recv`s must have ended: the next piece waited until all before was read."""
    sent = events(lines, "sent")
    pairs = zip(ends(hexes(sent)), itertools.pairwise(sent), strict=False)
    return {end for end, (_, then) in pairs if then["how"]}


def hexes(lines: Iterable[dict[str, Any]], key: str = "bytes") -> list[bytes]:
    """Their bytes."""
    return [bytes.fromhex(line[key]) for line in lines]
