"""The one choice between the twins: `native` (compiled) or `pure` (Python).

`FASTECHO_BACKEND=auto|native|pure` is read once, at first use. `auto` takes native where it was
built, and pure where no compiled module is there at all; a build of which some modules are missing
or do not load is an error, never a silent fallback.

Attributes:
    name: the chosen twin's name.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from .errors import ConfigError, FastechoError

if TYPE_CHECKING:
    from ._pure import datagrams, framing, generator, selector, stamping, stream

MODULES = ("framing", "stamping", "selector", "stream", "datagrams")
#: Not loaded by a server.
ENGINE = "generator"
CHOICES = ("auto", "native", "pure")
VARIABLE = "FASTECHO_BACKEND"


class Twin(NamedTuple):
    """What both twins have. The pure classes are the types of both."""

    name: str
    DelimiterCodec: type[framing.DelimiterCodec]
    AnyDelimiterCodec: type[framing.AnyDelimiterCodec]
    RawCodec: type[framing.RawCodec]
    FixedCodec: type[framing.FixedCodec]
    LengthCodec: type[framing.LengthCodec]
    VarintCodec: type[framing.VarintCodec]
    NetstringCodec: type[framing.NetstringCodec]
    Stamper: type[stamping.Stamper]
    Echo: type[stamping.Echo]
    Selector: type[selector.Selector]
    Shared: type[stream.Shared]
    Listener: type[stream.Listener]
    Stream: type[stream.Stream]
    Datagrams: type[datagrams.Datagrams]


class Engine(Protocol):
    """What both twins have for the load generator; of one of them, a module."""

    Kind: type[generator.Kind]
    Tally: type[generator.Tally]
    Source: type[generator.Source]
    Schedule: type[generator.Schedule]
    StreamChannel: type[generator.StreamChannel]
    DatagramChannel: type[generator.DatagramChannel]


def engine(name: str | None = None) -> Engine:
    """The load generator's engine of the twin of that name. Raises as `load`."""
    module: Any = _module(load(name).name, ENGINE)
    return cast(Engine, module)


def load(name: str | None = None) -> Twin:
    """The twin of that name; `auto` or None: the chosen one.

    Raises:
        ConfigError: no such name, or native was asked for and not built.
        FastechoError: the compiled modules are incomplete or do not load.
    """
    if name is None:
        name = _chosen()
    if name not in CHOICES:
        raise ConfigError(f"unknown backend {name!r}: choose from {', '.join(CHOICES)}")
    if name == "auto":
        name = "native" if native_built() else "pure"
    return _twin(name)


def describe(name: str | None = None) -> str:
    """The twin that `load(name)` gives, for people: it says so where it fell back."""
    twin = load(name)
    wanted = name or _chosen()
    return "pure: native not built" if wanted == "auto" and twin.name == "pure" else twin.name


@functools.cache
def native_built() -> bool:
    """Whether any compiled module is there."""
    return any(map(_built, (*MODULES, ENGINE)))


@functools.cache
def _chosen() -> str:
    name = os.environ.get(VARIABLE) or "auto"
    if name not in CHOICES:
        raise ConfigError(f"{VARIABLE} must be one of {', '.join(CHOICES)}, not {name!r}")
    return name


@functools.cache
def _twin(name: str) -> Twin:
    if name == "native" and not native_built():
        raise ConfigError(
            "the native backend was not built here: install with FASTECHO_BUILD_EXT=yes, a C"
            " compiler and pip's --no-cache-dir, or choose pure"
        )
    if name == "native" and not _built(ENGINE):
        raise _broken(name, f"no module named {ENGINE}")
    modules = [_module(name, module) for module in MODULES]
    found = {
        field: next(getattr(module, field) for module in modules if hasattr(module, field))
        for field in Twin._fields[1:]
    }
    return Twin(name=name, **found)


def _module(twin: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(f"{__package__}._{twin}.{module}")
    except ImportError as error:
        raise _broken(twin, error) from error


def _broken(twin: str, why: object) -> FastechoError:
    return FastechoError(
        f"the {twin} backend is broken ({why}): reinstall fastecho, or set {VARIABLE}=pure"
    )


def _built(module: str) -> bool:
    return importlib.util.find_spec(f"{__package__}._native.{module}") is not None


def __getattr__(attribute: str) -> str:
    if attribute == "name":
        return load().name
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
