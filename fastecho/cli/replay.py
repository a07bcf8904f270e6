"""`fastecho replay`: one connection of a decision log, served again."""

from __future__ import annotations

import click

from .. import replay as player
from .. import sockets
from ..faults import script as scripts
from . import FAILED, complain


@click.command(
    short_help="Serve one logged connection again, cut for cut.",
    epilog="Exit status: 0 it went as logged, 1 the client did something else, 2 wrong usage, or a"
    " log that makes no sense or has no such connection, 3 something could not be had.",
)
@click.argument("file", metavar="FILE", type=click.Path(readable=False))
@click.argument("listen", metavar="[LISTEN]", required=False)
@click.option(
    "--connection",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Its number in the log.",
)
@click.option(
    "--listener",
    metavar="ADDR",
    help="Whose it is, as the log has it, where several listeners have one of that number.",
)
def replay(file: str, listen: str | None, connection: int, listener: str | None) -> int:
    """Serve one connection of FILE, which `fastecho serve --fault-log` has written.

    The first client that comes gets the same replies, in the same pieces, after the same delays,
    and the same end, as long as it sends the same requests. LISTEN is where; by default where the
    connection was.
    """
    script = scripts.load(file, connection, listener)
    if script.protocol in sockets.STREAMS and not script.how:
        complain(f"{file} does not say how connection {connection} ended: it is served so far")

    def ready(name: str) -> None:
        what = "connection" if script.protocol in sockets.STREAMS else "message"
        click.echo(f"waiting for {what} ... {name} (connection {connection})", err=True)

    try:
        click.echo(player.replay(script, listen, ready))
    except player.Differs as difference:
        complain(str(difference))
        return FAILED
    return 0
