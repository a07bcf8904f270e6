"""Clients of a server that misbehaves, and what its decision log says."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from processes import PATIENCE

#: Of a client that the server has reset.
RESET = "reset"


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


def hexes(lines: Iterable[dict[str, Any]], key: str = "bytes") -> list[bytes]:
    """Their bytes."""
    return [bytes.fromhex(line[key]) for line in lines]
