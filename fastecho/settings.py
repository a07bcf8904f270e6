"""Settings: what a server can be told, checked before anything is opened.

Each is a field of `Settings`, an option of `fastecho serve` (`--max-frame`), a variable
(`FASTECHO_MAX_FRAME`) and a key of the configuration file (`max_frame`). A flag beats the
environment, which beats the file; only what wins is looked at. Sizes are bytes, times are seconds.

(A dataclass and this table, because msgspec would add 1.5 MiB to a daemon that idles at 17.6.)
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from . import backend as backends
from . import framing, limits, prefix, sockets
from .errors import ConfigError, FastechoError, nearest
from .faults import plan as plans
from .limits import MAX_SEED

if TYPE_CHECKING:
    from .faults.decisions import Draws

DEFAULT_ADDRESS = "127.0.0.1:12345"
DEFAULT_LISTEN = (DEFAULT_ADDRESS,)
#: Read from the current directory if it is there, unless another is named.
DEFAULT_FILE = "fastecho.toml"
VARIABLES = "FASTECHO_"
#: Of these an empty variable says something; others are as good as not set then.
CAN_BE_EMPTY = ("prefix",)
LOG_FORMATS = ("text", "json")
#: Of `fault_seed`: another one at each start.
RANDOM = "random"
#: Settings that are a fault each, by what they say of it.
SHORTCUTS = {"slice": "size", "delay": "time", "drop": "p"}

#: The kernel's bounds (tcp(7)), each the third number: bytes that it holds of one connection's
#: unread input, and pages that it holds for all of TCP.
_RECEIVE_MEMORY = Path("/proc/sys/net/ipv4/tcp_rmem")
_ALL_MEMORY = Path("/proc/sys/net/ipv4/tcp_mem")

_SWITCHED = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


_Parsed = TypeVar("_Parsed")


class Kind(NamedTuple):
    """What the value of a setting is.

    Attributes:
        metavar: what help calls it.
        check: of its name and a value: the value, or a ConfigError whose sentence names it.
        read: of a flag's or a variable's text: the value that it writes; where it writes none,
            the text itself, which `check` refuses.
        choices: all that it can be, if they are few.
    """

    metavar: str
    check: Callable[[str, Any], Any]
    read: Callable[[str], Any]
    choices: tuple[str, ...] = ()


def _number(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return convert(text)
        except ValueError:
            return text

    return read


def _whole(metavar: str, high: int) -> Kind:
    return Kind(metavar, lambda name, value: limits.within(name, value, 1, high), _number(int))


def _text(metavar: str, parse: Callable[[str], object]) -> Kind:
    def check(name: str, value: object) -> str:
        if not isinstance(value, str):
            raise ConfigError(f"{name} must be a text, not {value!r}")
        _parsed(name, parse, value)
        return value

    return Kind(metavar, check, str)


def _choice(*choices: str) -> Kind:
    def check(name: str, value: object) -> object:
        if value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        return value

    return Kind("|".join(choices), check, str, choices)


def _check_switch(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, not {value!r}")
    return value


def _check_listen(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.split()
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a list of addresses, not {value!r}")
    words = tuple(value)
    if not words:
        raise ConfigError(f"{name} names no address")
    for word in words:
        if not isinstance(word, str):
            raise ConfigError(f"{name} must be a list of addresses, not of {word!r}")
        _parsed(name, sockets.parse, word)
    return words


def _parsed(name: str, parse: Callable[[Any], _Parsed], value: object) -> _Parsed:
    try:
        return parse(value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}" if name else str(error)) from None


def _check_plan(name: str, value: object) -> str:
    if isinstance(value, Mapping):
        return _parsed(name, plans.from_table, value).text
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a text or a table, not {value!r}")
    _parsed(name, plans.parse, value)
    return value


def _shortcut(fault: str, metavar: str) -> Kind:
    def check(name: str, value: object) -> str:
        if value != "":
            _parsed(name, plans.from_table, {fault: {SHORTCUTS[fault]: value}})
        return str(value)

    return Kind(metavar, check, str)


def _check_seed(name: str, value: object) -> object:
    known = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SEED
    if not known and value != RANDOM:
        right = f"a whole number from 0 to {MAX_SEED:,}, or {RANDOM}"
        raise ConfigError(f"{name} must be {right}, not {value!r}")
    return value


def _check_file(name: str, value: object) -> str:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or "\0" in path or path.endswith("/"):
        raise ConfigError(f"{name} must be the name of a file, not {value!r}")
    return path


_LISTEN = Kind("[LISTEN]...", _check_listen, str.split)
_SWITCH = Kind("", _check_switch, lambda text: _SWITCHED.get(text.lower(), text))
_SECONDS = Kind("SECONDS", limits.seconds, _number(float))


def _setting(default: object, kind: Kind, section: str, told: str, shown: str = "") -> Any:
    """A field; `shown` is the default for people, where it is not simply the value."""
    metadata = {"kind": kind, "section": section, "told": told, "shown": shown}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """A server's settings. What each means is what help says of it.

    Raises:
        ConfigError: naming the setting, and what is right.
    """

    listen: tuple[str, ...] = _setting(
        DEFAULT_LISTEN, _LISTEN, "", "Where to listen; all of it, or nothing."
    )
    framing: str = _setting(
        "line",
        _text("SPEC", framing.parse),
        "Messages",
        "How messages are marked in a stream.",
    )
    prefix: str = _setting(
        prefix.DEFAULT,
        _text("TEMPLATE", prefix.parse),
        "Messages",
        "What is put before each message.",
    )
    max_frame: int | None = _setting(
        None,
        _whole("BYTES", limits.MAX_FRAME_CEILING),
        "Messages",
        "Longest message in a stream.",
        f"{limits.MAX_FRAME}; 229 with u8",
    )
    backend: str | None = _setting(
        None, _choice(*backends.CHOICES), "Other", "Which twin serves.", "auto"
    )
    max_connections: int | None = _setting(
        None,
        _whole("N", 2**31 - 1),
        "Limits",
        "Most connections at once; others wait.",
        "open files less 64",
    )
    idle_timeout: float = _setting(
        limits.IDLE_TIMEOUT,
        _SECONDS,
        "Limits",
        "Close a connection after so long a silence; 0: never.",
    )
    frame_timeout: float = _setting(
        limits.FRAME_TIMEOUT,
        _SECONDS,
        "Limits",
        "Close a connection whose message takes longer; 0: never.",
    )
    send_buffer: int = _setting(
        limits.SEND_BUFFER_LIMIT,
        _whole("BYTES", limits.MAX_FRAME_CEILING),
        "Limits",
        "What the kernel holds unsent of a stream.",
    )
    linger_timeout: float = _setting(
        limits.LINGER_TIMEOUT,
        _SECONDS,
        "Limits",
        "After a fault, wait so long for the peer to close.",
    )
    drain_timeout: float = _setting(
        limits.DRAIN_TIMEOUT,
        _SECONDS,
        "Limits",
        "When stopping, wait so long for replies to be taken.",
    )
    backlog: int = _setting(
        limits.BACKLOG, _whole("N", 2**31 - 1), "Limits", "Connections that wait to be accepted."
    )
    verbose: bool = _setting(False, _SWITCH, "Log", "A line per connection and per datagram.")
    show_cuts: bool = _setting(False, _SWITCH, "Log", "A line per message: in which recvs it came.")
    log_format: str = _setting("text", _choice(*LOG_FORMATS), "Log", "Sentences, or JSON lines.")
    faults: str = _setting(
        "", Kind("PLAN", _check_plan, str), "Faults", "What is done to replies on purpose.", "none"
    )
    fault_seed: int | str = _setting(
        RANDOM,
        Kind("N", _check_seed, _number(int)),
        "Faults",
        "What the plan's draws are made from; the same: the same faults.",
        "random, and told",
    )
    fault_log: str = _setting(
        "", Kind("FILE", _check_file, str), "Faults", "What was done, as JSON lines.", "none"
    )
    slice: str = _setting(
        "",
        _shortcut("slice", "SIZE"),
        "Faults",
        "Replies of streams in pieces, each alone.",
        "none",
    )
    delay: str = _setting(
        "", _shortcut("delay", "TIME"), "Faults", "Replies so much later.", "none"
    )
    drop: str = _setting(
        "", _shortcut("drop", "P"), "Faults", "So many datagrams unanswered, such as 1%.", "none"
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None or each.default is not None:
                checked = each.metadata["kind"].check(each.name, value)
                object.__setattr__(self, each.name, checked)
        _ = self.plan  # or it is refused here

    @classmethod
    def of(cls, listen: str | Iterable[str] = DEFAULT_LISTEN, **others: Any) -> Settings:
        """Settings by name; `listen` is words, or a text with spaces between them.

        Raises:
            ConfigError: a setting that is none, or one that makes no sense.
        """
        for name in others:
            _known("setting", name)
        return cls(listen=listen, **others)  # type: ignore[arg-type]  # checked and converted

    @property
    def connections(self) -> int:
        """`max_connections`, as it is in force."""
        if self.max_connections is not None:
            return self.max_connections
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return max(1, min(soft, 2**31 - 1) - limits.RESERVED_DESCRIPTORS)

    @property
    def plan(self) -> plans.Plan:
        """The faults, shortcuts included.

        Raises:
            ConfigError: one of them stands in `faults`, too.
        """
        short = {name: {key: told} for name, key in SHORTCUTS.items() if (told := vars(self)[name])}
        written = plans.parse(self.faults)
        for name in short:
            if any(name == each.fault.name for each in written.faults):
                raise ConfigError(f"{name} stands in faults already: a plan has each fault once")
        return plans.Plan(written.faults + plans.from_table(short).faults)

    def draws(self) -> Draws | None:
        """What the plan does to each message; None: nothing, and no log of it is wanted.

        With a random seed, each call has another.
        """
        if not self.plan and not self.fault_log:
            return None
        from .faults.decisions import Draws  # not for who asks for none

        random = self.fault_seed == RANDOM
        seed = int.from_bytes(os.urandom(4)) if random else int(self.fault_seed)
        return Draws(self.plan, seed)

    def worst_case(self, send_piece: int) -> tuple[int, int | None]:
        """The most memory that connections can make this process, and the kernel, hold.

        Args:
            send_piece: bytes of one piece of replies.

        Returns:
            bytes of (process, kernel), all connections together; None: this kernel does not say.
        """
        process = self.connections * (limits.RECEIVE_BUFFER + send_piece)
        unread, pages = _third(_RECEIVE_MEMORY), _third(_ALL_MEMORY)
        if unread is None:
            return process, None
        kernel = self.connections * (self.send_buffer + unread)
        return process, kernel if pages is None else min(kernel, pages * resource.getpagesize())


SETTINGS: dict[str, Field[Any]] = {each.name: each for each in fields(Settings)}


def load(flags: Mapping[str, Any], environ: Mapping[str, str], path: str | None = None) -> Settings:
    """The settings that flags, environment and file give together.

    Args:
        flags: texts by name, `listen` words, switches true or false; what was not given is None.
        environ: where the variables are.
        path: of the file; by default `fastecho.toml`, if there.

    Raises:
        ConfigError: naming the flag, variable or key, and what is right.
        FastechoError: the file cannot be read.
    """
    chosen: dict[str, tuple[str, Any]] = {}
    for name, value in _read_file(path).items():
        chosen[name] = (f"{name} in {DEFAULT_FILE if path is None else path}", value)
    for name, each in SETTINGS.items():
        variable, flag = VARIABLES + name.upper(), f"--{name.replace('_', '-')}"
        read = each.metadata["kind"].read
        if environ.get(variable) or (variable in environ and name in CAN_BE_EMPTY):
            chosen[name] = (variable, read(environ[variable]))
        given = flags.get(name)
        if given is not None and given != ():
            label = flag if name != "listen" else ""
            chosen[name] = (label, read(given) if isinstance(given, str) else given)
    return Settings(
        **{
            name: SETTINGS[name].metadata["kind"].check(label, value)
            for name, (label, value) in chosen.items()
        }
    )


def misspelt(environ: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that looks like one of ours and is none.

    Not errors: a container's orchestrator may well set others that begin like these.
    """
    known = [VARIABLES + name.upper() for name in SETTINGS]
    return [
        f"{name} is no setting: did you mean {near}?"
        for name in environ
        if name.startswith(VARIABLES) and name not in known
        if (near := nearest(name, known, 0.85))
    ]


def _read_file(path: str | None) -> dict[str, Any]:
    if path is None and not os.path.lexists(DEFAULT_FILE):
        return {}
    import tomllib

    name = DEFAULT_FILE if path is None else path
    try:
        values = tomllib.loads(Path(name).read_text("utf-8-sig"))
    except OSError as error:
        words = os.strerror(error.errno or 0).lower()
        raise FastechoError(f"cannot read {name}: {words}") from error
    except ValueError as error:
        raise ConfigError(f"{name} is no TOML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{name} is no TOML that can be read: nested too deeply") from None
    for key in values:
        _known(f"key in {name}:", key)
    return values


def _known(what: str, name: str) -> None:
    if name not in SETTINGS:
        near = nearest(name, SETTINGS)
        hint = f"did you mean {near}?" if near else f"choose from {', '.join(SETTINGS)}"
        raise ConfigError(f"unknown {what} {name!r}: {hint}")


def _third(path: Path) -> int | None:
    """None: there is no such bound. Only the first network namespace, no container, has tcp_mem."""
    try:
        return int(path.read_text().split()[2])
    except FileNotFoundError:
        return None
