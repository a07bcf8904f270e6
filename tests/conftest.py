"""What all tests share: how hard Hypothesis looks, and the twin under test."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest
import zones
from hypothesis import settings
from processes import named

from fastecho import backend

# Timing never decides: `deadline` off. `long` is for a search by hand: --hypothesis-profile=long.
settings.register_profile("default", deadline=None)
settings.register_profile(
    "ci", deadline=None, max_examples=50, derandomize=True, database=None, print_blob=True
)
# Of the compiled code under the sanitizers, in CI: its checks are many in each example.
settings.register_profile("sanitize", settings.get_profile("ci"), max_examples=20)
settings.register_profile("long", deadline=None, max_examples=5_000)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# A shell's background job ignores Ctrl-C, and so would all processes that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def load(name: str) -> backend.Twin:
    """The twin of that name; where a build was demanded, a missing one is no reason to skip."""
    demanded = os.environ.get("CI") and os.environ.get("FASTECHO_BUILD_EXT") != "no"
    if name == "native" and not backend.native_built() and not demanded:
        pytest.skip("the native backend is not built")
    return backend.load(name)


@pytest.fixture(scope="session", params=["pure", "native"])
def twin(request: pytest.FixtureRequest) -> backend.Twin:
    """Each of the twins, one after the other."""
    return load(request.param)


@pytest.fixture(scope="session")
def twins() -> tuple[backend.Twin, backend.Twin]:
    """Both twins, to be compared: pure, native."""
    return load("pure"), load("native")


@pytest.fixture(scope="module")
def chosen(twin: backend.Twin) -> Iterator[str]:
    """The twin's name; clients of this process are of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "_chosen", lambda: twin.name)
        yield twin.name


@pytest.fixture
def unused() -> Iterator[str]:
    """A UDP and TCP address where nobody is, for as long as the test lasts."""
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as bound,
    ):
        address = tcp.getsockname()
        tcp.close()
        bound.bind(address)  # and does not listen
        yield named(address)


@pytest.fixture(scope="module")
def utc() -> Iterator[None]:
    """Local time is UTC."""
    with zones.local("UTC0"):
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--simulate", type=int, help="the one seed of tests/test_simulation.py")
    parser.addoption("--simulations", type=int, default=60, help="how many seeds it tries")
