"""The command line: `fastecho [COMMAND] ...`; a first word that is no command belongs to `serve`.

Exit status: 0 done, 2 wrong usage or configuration, 3 something needed could not be had. An error
is one sentence on standard error, never a traceback.
"""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress

import click

from .. import __version__
from .. import backend as backends
from ..errors import ConfigError, FastechoError
from .serve import serve

USAGE, UNAVAILABLE = 2, 3


class Commands(click.Group):
    """A group whose default command is `serve`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "--version")):
            args = ["serve", *args]
        return super().parse_args(ctx, args)


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        python = f"{platform.python_implementation()} {platform.python_version()}"
        system = f"{platform.system()} {platform.machine()}"
        click.echo(f"fastecho {__version__} ({backends.describe()}; {python}; {system})")
        ctx.exit()


@click.group(cls=Commands)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show version, backend, Python and platform.",
)
def commands() -> None:
    """The TCP and UDP echo daemon that stamps every message with the time it was received.

    A first word that is no command belongs to serve: `fastecho --framing u32 :7`.
    """


commands.add_command(serve)


def main() -> None:
    """Run the command line and exit."""
    try:
        status = commands.main(prog_name="fastecho", standalone_mode=False)
    except click.ClickException as error:
        fail(USAGE, error.format_message())
    except ConfigError as error:
        fail(USAGE, str(error))
    except FastechoError as error:
        fail(UNAVAILABLE, str(error))
    except OSError as error:
        fail(UNAVAILABLE, os.strerror(error.errno) if error.errno else str(error))
    except click.Abort:
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def fail(status: int, sentence: str) -> None:
    """Say what was wrong, and end."""
    with suppress(OSError):  # whoever started us may not listen
        click.echo(f"fastecho: {sentence}", err=True)
    sys.exit(status)
