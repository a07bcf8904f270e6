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
from typing import TYPE_CHECKING, NamedTuple

from .errors import ConfigError, FastechoError

if TYPE_CHECKING:
    from ._pure import datagrams, framing, selector, stamping, stream

MODULES = ("framing", "stamping", "selector", "stream", "datagrams")
CHOICES = ("auto", "native", "pure")
VARIABLE = "FASTECHO_BACKEND"


class Twin(NamedTuple):
    """What both twins have. The pure classes are the types of both."""

    name: str
    DelimiterCodec: type[framing.DelimiterCodec]
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
    return any(importlib.util.find_spec(f"{__package__}._native.{module}") for module in MODULES)


@functools.cache
def _chosen() -> str:
    name = os.environ.get(VARIABLE) or "auto"
    if name not in CHOICES:
        raise ConfigError(f"{VARIABLE}={name!r} is no backend: choose from {', '.join(CHOICES)}")
    return name


@functools.cache
def _twin(name: str) -> Twin:
    if name == "native" and not native_built():
        raise ConfigError(
            "the native backend was not built here: install with FASTECHO_BUILD_EXT=yes and a C"
            " compiler, or choose pure"
        )
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
        raise FastechoError(
            f"the {twin} backend is broken ({error}): reinstall fastecho, or set {VARIABLE}=pure"
        ) from error


def __getattr__(attribute: str) -> str:
    if attribute == "name":
        return load().name
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
