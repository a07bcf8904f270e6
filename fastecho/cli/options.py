"""Options that several commands have: whom to talk to, and in what framing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from .. import framing, limits, prefix
from ..faults.plan import FAULTS
from ..settings import DEFAULT_ADDRESS

F = TypeVar("F", bound=Callable[..., Any])


def specs(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """What a shell offers for a framing."""
    return [spec for spec in framing.SPECS if spec.startswith(begun)]


def faults(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """What a shell offers for the last fault of a plan."""
    before, semicolon, last = begun.rpartition(";")
    return [before + semicolon + name for name in FAULTS if name.startswith(last)]


def target(prefix_told: str) -> Callable[[F], F]:
    """ADDR, --udp, --framing and --prefix; what the last is for differs."""

    def decorate(command: F) -> F:
        for option in (
            click.option(
                "--prefix",
                metavar="TEMPLATE",
                default=prefix.DEFAULT,
                show_default=True,
                help=prefix_told,
            ),
            click.option(
                "--framing",
                metavar="SPEC",
                default="line",
                show_default=True,
                shell_complete=specs,
                help="How messages are marked in a stream.",
            ),
            click.option("--udp", is_flag=True, help="Use UDP for HOST:PORT; else it is TCP."),
            click.argument("address", metavar="[ADDR]", default=DEFAULT_ADDRESS),
        ):
            command = option(command)
        return command

    return decorate


def timeout(command: F) -> F:
    """--timeout."""
    return click.option(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=limits.REPLY_TIMEOUT,
        show_default=True,
        help="For a connection, and for each reply.",
    )(command)
