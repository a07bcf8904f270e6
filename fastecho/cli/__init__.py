"""The command line: `fastecho [COMMAND] ...`; a first word that is no command belongs to `serve`.

Exit status: 0 done, 1 the thing measured failed, 2 wrong usage or configuration, 3 something needed
could not be had. An error is one sentence on standard error, never a traceback.

Each command is a module of this package and is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import os
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from .. import backend as backends
from ..errors import ConfigError, FastechoError, nearest

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

FAILED, USAGE, UNAVAILABLE = 1, 2, 3
#: Of a process that a signal ended, as a shell reports it.
INTERRUPTED, BROKEN_PIPE = 130, 141

COMMANDS = ("serve", "client", "ping", "load", "report", "bench", "fuzz", "replay")
DEFAULT = "serve"


class Commands(click.Group):
    """The commands by name; the default one takes what belongs to none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return _command(name) if name in COMMANDS else None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ours = (*COMMANDS, "-h", "--help", "--version")
        completing = ctx.resilient_parsing and not args
        if not completing and (not args or args[0] not in ours):
            if args and args[0].isalpha() and (near := nearest(args[0], COMMANDS, 0.7)):
                raise click.UsageError(f"no such command: {args[0]!r} (did you mean {near}?)")
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        with _heard():
            return super().make_context(*arguments, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with _heard():
            return super().invoke(ctx)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        default = _command(DEFAULT)
        with default.make_context(DEFAULT, [], parent=ctx, resilient_parsing=True) as serving:
            more = default.shell_complete(serving, incomplete)
        found = super().shell_complete(ctx, incomplete)
        return found + [item for item in more if item.value not in {one.value for one in found}]


@contextmanager
def _heard() -> Iterator[None]:
    """End where whoever reads our output has seen enough (click would call that status 1)."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)


def _command(name: str) -> click.Command:
    command: click.Command = getattr(importlib.import_module(f".{name}", __name__), name)
    return command


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        python = f"{platform.python_implementation()} {platform.python_version()}"
        system = f"{platform.system()} {platform.machine()}"
        click.echo(f"fastecho {__version__} ({backends.describe()}; {python}; {system})")
        ctx.exit()


HELP = """The TCP and UDP echo daemon that stamps every message with the time it was received.

\b
fastecho                             serve 127.0.0.1:12345, TCP and UDP
printf 'hello\\n' | fastecho client   send it a message, print its reply
fastecho ping                        time its replies, once a second
fastecho bench                       native against pure, on this machine
fastecho load --connections 64       measure it
fastecho fuzz                        find the cut that it does not survive
fastecho --faults walk               answer right, in ever other pieces
"""


@click.group(
    cls=Commands,
    help=HELP,
    context_settings={"help_option_names": ["-h", "--help"]},
    options_metavar="",
    subcommand_metavar="[COMMAND] ...",
    epilog="A first word that is no command belongs to serve, whose options `fastecho serve --help`"
    " lists: fastecho --framing u32 127.0.0.1:7777 serves. FASTECHO_BACKEND=native or pure chooses"
    " between the compiled server and the one in Python.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show version, backend, Python and platform.",
)
def commands() -> None:
    """What stands before the commands is theirs."""


def main() -> None:
    """Run the command line and exit."""
    try:
        status = commands.main(prog_name="fastecho", standalone_mode=False)
        if sys.stdout is not None:  # as after `>&-`
            with _heard():
                sys.stdout.flush()
    except click.ClickException as error:
        fail(USAGE, error.format_message())
    except ConfigError as error:
        fail(USAGE, str(error))
    except FastechoError as error:
        fail(UNAVAILABLE, str(error))
    except OSError as error:
        fail(UNAVAILABLE, os.strerror(error.errno) if error.errno else str(error))
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def fail(status: int, sentence: str) -> None:
    """Say what was wrong, and end."""
    complain(sentence)
    sys.exit(status)


def complain(sentence: str) -> None:
    """Say what was wrong."""
    with suppress(OSError):  # whoever started us may not listen
        click.echo(f"fastecho: {sentence}", err=True)


def animated() -> bool:
    """Whether standard error is a terminal on which lines can be rewritten."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


def raise_descriptor_limit() -> None:
    """As many connections as the system lets us have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Import what not everybody has installed.

    Args:
        name: of the extra that brings it.
        what: needs it.

    Raises:
        FastechoError: it is missing; the text says how to get it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        sentence = f"fastecho {what} needs more packages: pip install 'fastecho[{name}]'"
        raise FastechoError(sentence) from error
