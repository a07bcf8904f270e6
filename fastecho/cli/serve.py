"""`fastecho serve`: the daemon."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

from .. import backend as backends
from .. import echo, limits
from .. import prefix as prefixes
from ..events import say
from ..server import Server, send_piece
from ..settings import Settings
from . import logs

MIB = 2**20
STOPPING = (signal.SIGINT, signal.SIGTERM)
F = TypeVar("F", bound=Callable[..., Any])


def _limit(name: str, default: float | None, what: str) -> Callable[[F], F]:
    """An option for a limit: bytes and counts are whole numbers, timeouts seconds."""
    timed = name.endswith("timeout")
    return click.option(
        f"--{name}",
        metavar="SECONDS" if timed else "N",
        type=float if timed else int,
        default=default,
        show_default=default is not None,
        help=what,
    )


@click.command()
@click.argument("listen", nargs=-1)
@click.option(
    "--framing",
    metavar="SPEC",
    default="line",
    show_default=True,
    help="How messages are marked in a stream.",
)
@click.option(
    "--prefix",
    metavar="TEMPLATE",
    default=prefixes.DEFAULT,
    show_default=True,
    help="What is put before each message.",
)
@click.option(
    "--max-frame", metavar="BYTES", type=int, help="Longest message in a stream.  [default: 65536]"
)
@click.option("--backend", type=click.Choice(backends.CHOICES), help="Which twin serves.")
@_limit("max-connections", None, "Connections at once.  [default: descriptors less 64]")
@_limit("idle-timeout", limits.IDLE_TIMEOUT, "Silence that ends a connection; 0: none does.")
@_limit("frame-timeout", limits.FRAME_TIMEOUT, "From a message's first byte to its last.")
@_limit("send-buffer", limits.SEND_BUFFER_LIMIT, "Bytes the kernel holds unsent of a stream.")
@_limit("linger-timeout", limits.LINGER_TIMEOUT, "For a peer at fault to close.")
@_limit("drain-timeout", limits.DRAIN_TIMEOUT, "For replies to be taken, after a stop.")
@_limit("backlog", limits.BACKLOG, "Connections that wait to be accepted.")
@click.option("-v", "--verbose", is_flag=True, help="A line per connection and per datagram.")
@click.option("--show-cuts", is_flag=True, help="A line per message: in which recvs it came.")
@click.option(
    "--log-format",
    type=click.Choice(logs.FORMATS),
    default="text",
    show_default=True,
    help="Sentences, or JSON lines.",
)
@click.option("--print-config", is_flag=True, help="Print the settings, as TOML, and end.")
def serve(log_format: str, print_config: bool, **options: Any) -> int:
    """Echo every message with the time it was received, on TCP and UDP.

    LISTEN is HOST:PORT (both protocols), tcp://HOST:PORT, udp://HOST:PORT, unix:PATH,
    unixgram:PATH or fd://N; by default 127.0.0.1:12345. An IPv6 address stands in
    brackets, an empty HOST is every address, port 0 is a free one.
    """
    options["listen"] = options["listen"] or Settings().listen
    _raise_descriptor_limit()
    if print_config:
        click.echo(_config(Settings.of(**options)))
        return 0
    chatty = options["verbose"] or options["show_cuts"]
    logs.set_up(log_format, logging.INFO if chatty else logging.WARNING)
    server = Server(**options)
    _stop_on_signals(server)
    _say_ready(server)
    server.run()
    for number in STOPPING:  # it is over: what is left cannot be hurried
        signal.signal(number, signal.SIG_IGN)
    _say_summary(server.counters)
    return 0


def _say_ready(server: Server) -> None:
    described = backends.describe(server.settings.backend)
    for name in server.addresses:
        if name.startswith(("tcp:", "unix:")):
            how = f"{server.settings.framing}, {described}"
            click.echo(f"waiting for connection ... {name} ({how})", err=True)
        else:
            click.echo(f"waiting for message ... {name} ({described})", err=True)


def _say_summary(counters: dict[str, int]) -> None:
    """What it was, in one line, at every log level."""
    totals = ", ".join(
        f"{counters[name]:,} {shown if counters[name] == 1 else plural}"
        for name, shown, plural in (
            ("connections", "connection", "connections"),
            ("messages", "message", "messages"),
            ("bytes_in", "byte in", "bytes in"),
            ("bytes_out", "byte out", "bytes out"),
        )
    )
    for group in ("closed", "unanswered"):
        reasons = {name: n for name, n in sorted(counters.items()) if name.startswith(group + ".")}
        if reasons:
            told = ", ".join(f"{name.partition('.')[2]} {n:,}" for name, n in reasons.items())
            totals += f"; {group}: {told}"
    logging.getLogger("fastecho").setLevel(logging.INFO)
    say(logging.INFO, "summary", f"served {totals}", **counters)


def _config(settings: Settings) -> str:
    """The settings as a TOML file, and what they allow connections to cost."""
    twin = backends.load(settings.backend)
    pattern = echo.pattern(twin, settings.framing, settings.prefix, settings.max_frame)
    piece = send_piece(settings.framing, pattern.codec.max_frame, pattern.stamper.longest)
    process, kernel = settings.worst_case(piece)
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    values |= {
        "max_frame": pattern.codec.max_frame,
        "backend": settings.backend or "auto",
        "max_connections": settings.connections,
    }
    lines = [f"{name} = {_toml(value)}" for name, value in values.items()]
    return "\n".join(
        [
            *lines,
            f"# worst case, if {settings.connections:,} clients send and none reads:",
            f"#   {process / MIB:,.0f} MiB in this process, {kernel / MIB:,.0f} MiB in the kernel",
        ]
    )


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but that TOML wants DEL escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


def _raise_descriptor_limit() -> None:
    """As many connections as the system lets us have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _stop_on_signals(server: Server) -> None:
    """The first signal drains; a second one, while that lasts, ends at once."""
    seen: list[int] = []

    def handle(number: int, _: object) -> None:
        if seen:
            os._exit(128 + number)
        seen.append(number)
        server.stop()

    for number in STOPPING:
        signal.signal(number, handle)
