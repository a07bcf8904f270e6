"""The pytest plugin of fastecho: an echo server for a test, right or wrong on purpose.

Fixtures: `fastecho_server`, one server, set by `@pytest.mark.fastecho(framing="u32")`;
`fastecho_servers` and `faulty_echo` make as many as a test wants. Each server runs in a thread of
its own until the test is over.

It is a module of its own, and imports `fastecho` in its fixtures alone: pytest loads it wherever
fastecho is installed, also for tests that have nothing to do with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

if TYPE_CHECKING:
    from fastecho import Server

    Servers: TypeAlias = Callable[..., Server]

MARKER = "fastecho"


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    told = "settings of the server that `fastecho_server` is, as `fastecho.Server` takes them"
    config.addinivalue_line("markers", f"{MARKER}(**settings): {told}")


@pytest.fixture
def fastecho_servers() -> Iterator[Servers]:
    """Makes running servers: `fastecho_servers(framing="u32", prefix="")`."""
    from fastecho import running

    with ExitStack() as stack:

        def start(**settings: Any) -> Server:
            return stack.enter_context(running(**settings))

        yield start


@pytest.fixture
def fastecho_server(request: pytest.FixtureRequest, fastecho_servers: Servers) -> Server:
    """A running server, with the settings of the test's `fastecho` marks; the closest one wins."""
    settings: dict[str, Any] = {}
    for mark in request.node.iter_markers(MARKER):
        if mark.args:
            raise pytest.UsageError(f"the {MARKER} mark takes settings by name, not {mark.args!r}")
        settings = {**mark.kwargs, **settings}
    return fastecho_servers(**settings)


@pytest.fixture
def faulty_echo(fastecho_servers: Servers) -> Servers:
    """Makes servers whose replies go wrong by plan: `faulty_echo("walk", framing="u32")`."""

    def start(faults: str = "walk", **settings: Any) -> Server:
        return fastecho_servers(faults=faults, **settings)

    return start
