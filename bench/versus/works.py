"""The kinds of work that are compared: what each is called, how it is driven, and whose it is.

`Work.plan` is given to `fastecho.load.Plan`: the size is a request's on the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: The yardstick, the same at its best, ours, and whom the goals compare ours with.
FEW = ("epoll", "epoll-best", "fastecho", "fastecho-pure", "asyncio")
#: Of all framings but the line, whose row they are compared with.
FRAMINGS = ("delimiter:0d0a", "fixed:32", "u8", "u16", "u32le", "varint", "netstring")


@dataclass(frozen=True)
class Work:
    """One kind.

    Attributes:
        title: in a table.
        plan: how it is driven; none: it is no work, and measured in its own way.
        only: the peers that do it; none: all.
    """

    title: str
    plan: Mapping[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ()


def streams(connections: int, size: int, pipeline: int = 1, **others: Any) -> dict[str, Any]:
    plan = {"connections": connections, "size": str(size), "pipeline": pipeline}
    return plan | others


def datagrams(connections: int, pipeline: int = 1, **others: Any) -> dict[str, Any]:
    """What a full receive buffer has dropped is given up within the window."""
    return streams(connections, 32, pipeline, udp=True, timeout=0.05, **others)


WORKS = {
    "trip": Work("one connection, one in flight", streams(1, 32)),
    "tcp-1": Work("64 connections, 1 in flight", streams(64, 32)),
    "tcp-16": Work("64 connections, 16 in flight", streams(64, 32, 16)),
    "tcp-256": Work("64 connections, 256 in flight", streams(64, 32, 256)),
    "tcp-1024": Work("64 connections, 1,024 in flight", streams(64, 32, 1024), FEW),
    "tcp-1k": Work("64 connections, lines of 1 KiB", streams(64, 1024)),
    "tcp-16k": Work("64 connections, lines of 16 KiB", streams(64, 16_384)),
    "framings": Work("other framings, 16 in flight", streams(64, 32, 16), ("fastecho",)),
    "short": Work("short connections", streams(16, 32, connect_per_message=True)),
    "short-rst": Work(
        "short connections, closed by RST",
        streams(16, 32, connect_per_message=True, close="rst"),
        (*FEW, "uvloop"),
    ),
    "idle": Work("64 active connections beside 9,000 idle ones", streams(64, 32)),
    "udp-trip": Work("UDP, one peer, 1 in flight", datagrams(1), FEW),
    "udp-1": Work("UDP, 16 peers, 1 in flight", datagrams(16)),
    "udp-16": Work("UDP, bursts of 16 from each of 16 peers", datagrams(16, 16), FEW),
    "udp-burst": Work("UDP, bursts of 64", datagrams(1, 64)),
    "udp-segmented": Work("UDP, segmented bursts", datagrams(1, 64, gso=True)),
    "memory": Work("memory at rest and per idle connection"),
    "ready": Work("time to ready"),
    "latency": Work("latency at 30% and 70% of its own saturation"),
    "stamps": Work("error of stamps on UDP", only=("fastecho",)),
    "stamping": Work("framing and stamping alone"),
}
STREAMS = tuple(
    name for name, work in WORKS.items() if not name.startswith(("udp", "ready", "stamp"))
)
