"""`fastecho serve`: the daemon."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import Field
from typing import Any, TypeVar

import click

from .. import backend as backends
from .. import echo, framing
from .. import prefix as prefixes
from ..errors import ConfigError
from ..events import say
from ..faults.plan import FAULTS
from ..server import Server, send_piece
from ..settings import DEFAULT_ADDRESS, DEFAULT_FILE, SETTINGS, Kind, Settings, load, misspelt
from . import logs, options, raise_descriptor_limit

MIB = 2**20
STOPPING = (signal.SIGINT, signal.SIGTERM)
SECTIONS = ("Messages", "Limits", "Faults", "Log", "Other")
#: What a shell offers for the values of these.
COMPLETED = {"framing": options.specs, "faults": options.faults}
F = TypeVar("F", bound=Callable[..., Any])


HELP = f"""Echo every message with the time it was received, on TCP and UDP.

LISTEN is HOST:PORT (both protocols), tcp://HOST:PORT, udp://HOST:PORT, unix:PATH,
unixgram:PATH or fd://N; {DEFAULT_ADDRESS} by default. An IPv6 address stands in
brackets, an empty HOST is every address, port 0 is a free one.

SPEC is {", ".join(framing.SPECS[:-1])} or {framing.SPECS[-1]}.

TEMPLATE is a text with {" ".join("{" + name + "}" for name in prefixes.NAMES)}
in it; an empty one makes a plain echo.

PLAN is faults joined by `;`, each NAME or NAME:KEY=VALUE,... with a NAME of
{", ".join(FAULTS)};
every one takes p=, its probability (1), and from=, the first message that it can strike.
"""


class Sectioned(click.Command):
    """A command whose help lists its options by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in SECTIONS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                known = SETTINGS.get(parameter.name or "")
                sections[known.metadata["section"] if known else "Other"].append(record)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl(records)


def _options(command: F) -> F:
    """Each setting as an option; its text is read by `settings.load`."""
    for setting in reversed(SETTINGS.values()):
        if setting.name != "listen":
            command = _option(setting)(command)
    return command


def _option(setting: Field[Any]) -> Callable[[F], F]:
    kind = setting.metadata["kind"]
    name = setting.name.replace("_", "-")
    if isinstance(setting.default, bool):
        flags = [f"--{name}/--no-{name}"]
        return click.option(
            *(["-v"] if name == "verbose" else []),
            *flags,
            default=None,
            help=setting.metadata["told"],
        )
    default = setting.metadata["shown"] or _shown(setting.default)
    return click.option(
        f"--{name}",
        metavar=kind.metavar,
        type=_type(kind),
        shell_complete=COMPLETED.get(setting.name),
        help=f"{setting.metadata['told'].rstrip('.')} (default {default}).",
    )


def _type(kind: Kind) -> Any:
    if kind.choices:
        return click.Choice(kind.choices)
    return click.Path(readable=False) if kind.metavar == "FILE" else str


def _shown(default: object) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default)


@click.command(
    cls=Sectioned,
    short_help="Echo every message with the time it was received.",
    help=HELP,
    epilog="Each option is also a variable (--max-frame: FASTECHO_MAX_FRAME; FASTECHO_LISTEN with"
    f" spaces between) and a key of {DEFAULT_FILE} (max_frame; listen is a list). A flag beats the"
    " environment, which beats the file. SIGTERM and SIGINT stop it once all that has come is"
    " answered. Exit status: 0 stopped, 2 wrong usage or configuration, 3 something could not be"
    " had.",
)
@click.argument("listen", nargs=-1)
@_options
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(readable=False),  # `settings.load` says what is wrong with it
    envvar="FASTECHO_CONFIG",
    help=f"TOML file with settings (default {DEFAULT_FILE}, if there).",
)
@click.option("--print-config", is_flag=True, help="Print the settings as such a file, and end.")
def serve(config: str | None, print_config: bool, **flags: Any) -> int:
    """The daemon; `HELP` says what it does."""
    settings = load(flags, os.environ, config)
    raise_descriptor_limit()
    if print_config:
        click.echo(_encoded(_config(settings)))
        return 0
    chatty = settings.verbose or settings.show_cuts
    logs.set_up(settings.log_format, logging.INFO if chatty else logging.WARNING)
    for sentence in misspelt(os.environ):
        say(logging.WARNING, "misspelt", sentence)
    server = Server(**vars(settings))
    gc.freeze()  # what there is now stays: without it, a full collection stops us for 5 ms
    _stop_on_signals(server)
    _say_ready(server)
    _say_faults(server)
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
    if sys.stderr.isatty() and (command := _client_command(server)):
        click.echo(f"try: {command}", err=True)


def _say_faults(server: Server) -> None:
    """That it is wrong on purpose, before anybody wonders; and how to have the same again."""
    if server.draws is not None and server.draws.plan:
        plan, seed = server.draws.plan.text, server.draws.seed
        sentence = f"faults: {plan}; again the same: --fault-seed {seed}"
        say(logging.WARNING, "faults", sentence, plan=plan, seed=seed)


def _client_command(server: Server) -> str:
    """What gets a reply from this server, typed in the same directory; empty: nothing simple."""
    import shlex

    settings, name = server.settings, server.addresses[0]
    words = [*_program(), "client"]
    if settings.framing != "line":
        words += ["--framing", settings.framing]
    if settings.framing.startswith("fixed:") and settings.prefix != prefixes.DEFAULT:
        words += ["--prefix", settings.prefix]
        if prefixes.width(settings.prefix) is None:
            return ""
    # Every address is no address to go to: this machine's own is.
    name = name.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    if name.removeprefix("tcp://") != DEFAULT_ADDRESS:
        words.append(name.removeprefix("tcp://"))
    command = shlex.join(words)
    return command if command.isprintable() and "\\" not in command else ""


def _program() -> list[str]:
    """How this command was called."""
    import shutil  # its compressors weigh half a megabyte: not where nobody is told

    name = sys.argv[0]
    if os.path.basename(name) == "__main__.py" or not os.path.exists(name):
        return [sys.executable, "-m", __package__.partition(".")[0]]
    found = shutil.which("fastecho")
    return ["fastecho" if found and os.path.samefile(found, name) else name]


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
    for group in ("closed", "unanswered", "resent", "faults"):
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
    held = "an unknown amount" if kernel is None else f"{kernel / MIB:,.0f} MiB"
    values = vars(settings) | {
        "max_frame": pattern.codec.max_frame,
        "backend": settings.backend or "auto",
        "max_connections": settings.connections,
    }
    lines = [
        f"# {SETTINGS[name].metadata['told']}\n{name} = {_toml(value)}"
        for name, value in values.items()
    ]
    return "\n".join(
        [
            *lines,
            f"# worst case, if {settings.connections:,} clients send and none reads:",
            f"#   {process / MIB:,.0f} MiB in this process, {held} in the kernel",
        ]
    )


def _encoded(text: str) -> bytes:
    """As TOML is written, whatever the locale (a path may hold bytes that are no text)."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        word = text.splitlines()[text.count("\n", 0, error.start)]
        raise ConfigError(f"no file can say what is not valid Unicode: {word!r}") from None


def _toml(value: object) -> str:
    import json

    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but that TOML wants DEL escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


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
