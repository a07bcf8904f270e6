"""`fastecho serve`: the daemon."""

from __future__ import annotations

import logging
import os
import signal
import sys

import click

from .. import backend as backends
from .. import prefix as prefixes
from ..server import DEFAULT_LISTEN, Server


@click.command()
@click.argument("listen", nargs=-1)
@click.option("--framing", metavar="SPEC", default="line", help="How messages are marked on TCP.")
@click.option(
    "--prefix",
    metavar="TEMPLATE",
    default=prefixes.DEFAULT,
    show_default=True,
    help="What is put before each message.",
)
@click.option("--max-frame", metavar="BYTES", type=int, help="Longest message.  [default: 65536]")
@click.option("--backend", type=click.Choice(backends.CHOICES), help="Which twin serves.")
@click.option("-v", "--verbose", is_flag=True, help="A line per connection and per datagram.")
def serve(
    listen: tuple[str, ...],
    framing: str,
    prefix: str,
    max_frame: int | None,
    backend: str | None,
    verbose: bool,
) -> int:
    """Echo every message with the time it was received, on TCP and UDP.

    LISTEN is HOST:PORT (both protocols), tcp://HOST:PORT or udp://HOST:PORT; by default
    127.0.0.1:12345. An IPv6 address stands in brackets, an empty HOST is every address,
    port 0 is a free one.
    """
    logging.basicConfig(
        format="%(message)s", level=logging.INFO if verbose else logging.WARNING, stream=sys.stderr
    )
    server = Server(listen or DEFAULT_LISTEN, framing, prefix, max_frame, backend, verbose)
    _stop_on_signals(server)
    described = backends.describe(backend)
    for name in server.addresses:
        if name.startswith("tcp:"):
            click.echo(f"waiting for connection ... {name} ({framing}, {described})", err=True)
        else:
            click.echo(f"waiting for message ... {name} ({described})", err=True)
    server.run()
    return 0


def _stop_on_signals(server: Server) -> None:
    """The first signal drains; a second one, while that lasts, ends at once."""
    seen: list[int] = []

    def handle(number: int, _: object) -> None:
        if seen:
            os._exit(128 + number)
        seen.append(number)
        server.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
