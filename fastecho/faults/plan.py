"""Fault plans: what is done to replies on purpose, and when.

A plan is a text, faults joined by `;`, each `name` or `name:key=value,...`; or a table of tables
that says the same. `FAULTS` says what there is, for parsing, help and the documentation. What a
plan does to a message is drawn by `decisions.Draws`. No I/O, no clock.

**The order** in which the faults of one message apply is that of `FAULTS`, whatever that of the
plan. Only the first of `slice`, `walk` and `dribble` in the plan that strikes is applied, likewise
of `truncate` and `reset`; of a message that `stall` or `drop` swallows nothing else is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..errors import ConfigError, nearest
from ..limits import (
    MAX_COALESCED,
    MAX_FLIPPED,
    MAX_FRAME_CEILING,
    MAX_SEED,
    RECEIVE_BUFFER,
)
from .quantities import CHANCE, RATE, TIME, TIMES, Kind, ranged, whole

# -- what there is


def _sizes(low: int) -> Kind:
    return ranged(whole(low, MAX_FRAME_CEILING, "bytes,"), "1-5")


class Key(NamedTuple):
    """What a fault can be told; `default` is written as in a plan, empty: it is drawn."""

    name: str
    kind: Kind
    default: str


class Fault(NamedTuple):
    """What can be done to a reply, or to a connection.

    Attributes:
        name: as in a plan.
        sockets: "streams", "datagrams" or "both".
        told: what it does, for people.
        keys: besides `p` and `from`.
        group: of those that share one, the first in the plan that strikes is applied.
        connections: whether it strikes these, rather than replies.
    """

    name: str
    sockets: str
    told: str
    keys: tuple[Key, ...] = ()
    group: str = ""
    connections: bool = False

    @property
    def streams(self) -> bool:
        return self.sockets != "datagrams"

    @property
    def datagrams(self) -> bool:
        return self.sockets != "streams"

    def key(self, name: str) -> Key:
        """One of its keys, or of those that all faults have.

        Raises:
            ConfigError: it has none of that name.
        """
        keys = {each.name: each for each in (*self.keys, *SHARED)}
        if name not in keys:
            raise ConfigError(f"unknown key {name!r} of {self.name}: {_choose(name, keys)}")
        return keys[name]


_PAUSE = Key("pause", TIME, "0s")
_WAIT = Key("wait", TIME, "100ms")

#: What every fault can be told: its probability, and the first message that it can strike (of
#: those that strike connections: the first connection).
SHARED = (Key("p", CHANCE, "1.0"), Key("from", whole(1, MAX_SEED), "1"))

_FAULTS = (
    Fault(
        "corrupt",
        "both",
        "so many of its bits are flipped",
        (Key("bits", whole(1, MAX_FLIPPED), "1"),),
    ),
    Fault("duplicate", "both", "it leaves twice"),
    Fault(
        "swap",
        "streams",
        "it leaves after the next one, or after `wait` without one",
        (_WAIT,),
    ),
    Fault(
        "reorder",
        "datagrams",
        "it leaves after the next one to that peer, or after `wait` without one",
        (_WAIT,),
    ),
    Fault(
        "stall",
        "streams",
        "from this message on nothing is answered; requests are read and discarded",
    ),
    Fault("drop", "datagrams", "it does not leave"),
    Fault(
        "truncate",
        "both",
        "only its first `at` bytes leave; a stream is then closed, as by a server that ends",
        (Key("at", _sizes(0), ""),),
        "end",
    ),
    Fault(
        "reset",
        "streams",
        "its first `after` bytes leave, and once they are read the connection is reset",
        (Key("after", _sizes(0), ""),),
        "end",
    ),
    Fault(
        "delay",
        "both",
        "it leaves `time` after its message came; replies of a stream keep their order",
        (Key("time", TIMES, "100ms"),),
    ),
    Fault(
        "jitter",
        "both",
        "it leaves up to `time` later, drawn uniformly",
        (Key("time", TIME, "50ms"),),
    ),
    Fault(
        "bandwidth",
        "streams",
        "it leaves no faster than `rate` bytes a second",
        (Key("rate", RATE, "10k"),),
    ),
    Fault(
        "coalesce",
        "streams",
        "it leaves in one send with the next, `count` in all, or after `wait` with what there is",
        (Key("count", whole(2, MAX_COALESCED), "2"), _WAIT),
    ),
    Fault(
        "slice",
        "streams",
        "it leaves in pieces of `size` bytes, each once the last was read",
        (Key("size", _sizes(1), "1"), _PAUSE),
        "cut",
    ),
    Fault(
        "walk",
        "streams",
        "it is cut in two, each reply one byte further on; once everywhere, at every pair",
        (_PAUSE,),
        "cut",
    ),
    Fault("dribble", "streams", "it leaves a byte at a time", (_PAUSE,), "cut"),
    Fault(
        "slow-read",
        "streams",
        "the connection's receive window is `window` bytes, and at most `size` bytes are read"
        " every `pause`",
        (
            Key("window", whole(1, MAX_FRAME_CEILING), "4096"),
            Key("size", whole(1, RECEIVE_BUFFER), "512"),
            Key("pause", TIME, "10ms"),
        ),
        connections=True,
    ),
    Fault(
        "late-accept",
        "streams",
        "the connection waits so long to be accepted, and those behind it too",
        (Key("time", TIMES, "1s"),),
        connections=True,
    ),
)
#: All that there are, by name, in the order in which they apply to a message.
FAULTS = {each.name: each for each in _FAULTS}


# -- plans


class Planned(NamedTuple):
    """A fault of a plan.

    Attributes:
        fault: which.
        values: of its own keys; None: drawn.
        p: its probability.
        first: the number of the first message (or connection) that it can strike.
    """

    fault: Fault
    values: Mapping[str, Any]
    p: float
    first: int

    @property
    def text(self) -> str:
        """It as in a plan; keys with their defaults are left out."""
        said = {**self.values, "p": self.p, "from": self.first}
        pairs = [
            f"{key.name}={key.kind.write(said[key.name])}"
            for key in (*self.fault.keys, *SHARED)
            if said[key.name] != _default(key)
        ]
        return f"{self.fault.name}:{','.join(pairs)}" if pairs else self.fault.name


class Plan(NamedTuple):
    """Faults in the order in which they were written; false if there are none."""

    faults: tuple[Planned, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.faults)

    @property
    def text(self) -> str:
        """What parses to the same plan."""
        return "; ".join(each.text for each in self.faults)

    @property
    def for_streams(self) -> tuple[str, ...]:
        """Names of those that can strike a stream."""
        return tuple(each.fault.name for each in self.faults if each.fault.streams)

    @property
    def for_datagrams(self) -> tuple[str, ...]:
        """Names of those that can strike datagrams."""
        return tuple(each.fault.name for each in self.faults if each.fault.datagrams)

    @property
    def window(self) -> int | None:
        """The receive window that `slow-read` wants of a listening socket."""
        return next((p.values["window"] for p in self.faults if p.fault.name == "slow-read"), None)

    def check(self, streams: bool, datagrams: bool) -> None:
        """Make sure that each fault can strike something.

        Args:
            streams: whether there is a TCP or UNIX stream listener.
            datagrams: whether there is a UDP or UNIX datagram socket.

        Raises:
            ConfigError: naming those that cannot.
        """
        for there, names, kind, words in (
            (streams, self.for_datagrams, "streams", "tcp:// or unix:"),
            (datagrams, self.for_streams, "datagrams", "udp:// or unixgram:"),
        ):
            lost = [p.fault.name for p in self.faults if p.fault.name not in names]
            if lost and not there:
                verb = "strikes" if len(lost) == 1 else "strike"
                raise ConfigError(
                    f"{' and '.join(lost)} {verb} {kind} alone, and none is listened on:"
                    f" name an address with {words}"
                )


def parse(text: str) -> Plan:
    """The plan that a text says; blank: one of no faults.

    Raises:
        ConfigError: it makes no sense; the text names the fault and key, and what is right.
    """
    pieces = [piece.strip() for piece in text.split(";")]
    return _plan(_parse(piece) for piece in pieces if piece)


def from_table(table: Mapping[str, Any]) -> Plan:
    """The plan that a table of tables says: of faults by name, each of values by key.

    Values are texts as in a plan, or numbers.

    Raises:
        ConfigError: as for `parse`.
    """
    return _plan(_from_item(name, values) for name, values in table.items())


def _plan(faults: Iterable[Planned]) -> Plan:
    plan = Plan(tuple(faults))
    names = [each.fault.name for each in plan.faults]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name} stands twice: a plan has each fault once")
    return plan


def _parse(piece: str) -> Planned:
    name, colon, listed = (part.strip() for part in piece.partition(":"))
    fault = _fault(name)
    texts: dict[str, str] = {}
    for item in listed.split(",") if colon else []:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise ConfigError(f"{item.strip()!r} of {name} makes no sense: write KEY=VALUE")
        if key in texts:
            raise ConfigError(f"{key!r} stands twice in {name}")
        texts[key] = value
    return _planned(fault, texts)


def _from_item(name: str, values: object) -> Planned:
    fault = _fault(name)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name} must be a table of its keys, not {values!r}")
    texts = {}
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            right = fault.key(key).kind.right
            raise ConfigError(f"{key} of {name} must be {right}, not {value!r}")
        texts[key] = str(value)
    return _planned(fault, texts)


def _planned(fault: Fault, texts: Mapping[str, str]) -> Planned:
    given = {name: _value(fault, fault.key(name), text) for name, text in texts.items()}
    values = {key.name: given.get(key.name, _default(key)) for key in (*fault.keys, *SHARED)}
    return Planned(fault, p=values.pop("p"), first=values.pop("from"), values=values)


def _value(fault: Fault, key: Key, text: str) -> Any:
    try:
        return key.kind.read(text)
    except ValueError as error:
        why = f" ({error})" if str(error) else ""
        right = key.kind.right
        raise ConfigError(
            f"{key.name} of {fault.name} must be {right}, not {text!r}{why}"
        ) from None


def _default(key: Key) -> Any:
    return key.kind.read(key.default) if key.default else None


def _fault(name: str) -> Fault:
    if name not in FAULTS:
        raise ConfigError(f"unknown fault {name!r}: {_choose(name, FAULTS)}")
    return FAULTS[name]


def _choose(name: str, known: Iterable[str]) -> str:
    near = nearest(str(name), known)
    return f"did you mean {near}?" if near else f"choose from {', '.join(known)}"
