"""A plan that never strikes changes nothing: what holds of the twins holds of who misbehaves.

The same tests, over what `fastecho.faults.streams` and `.datagrams` have. Left out is what
only the twins have.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import posts
import pytest
import sites
import test_datagrams
import test_limits_shown
import test_stateful
import test_stream
from reference import Framing

from fastecho import backend, framing
from fastecho.faults import datagrams, streams
from fastecho.faults.decisions import Draws
from fastecho.faults.mischief import Mischief
from fastecho.faults.plan import parse
from fastecho.settings import Settings

#: Of the twins' own listeners; and the one that counts on the kernel's taking no more for a moment:
#: the slower, the likelier it does. (`test_faulty` bounds what a client can make us hold.)
OTHERS = {
    "test_a_client_that_does_not_read_is_not_read",
    "test_listeners_on_one_selector_know_their_own_streams",
    "test_the_python_method_of_a_subclass_is_called",
}
TIMEOUTS = ("test_idle_", "test_frame_", "test_unfinished_", "test_unread_", "test_linger_")


DRAWS = Draws(parse("duplicate:p=0"), 1)
LOOP: Any = SimpleNamespace(call_at=lambda *_: pytest.fail("nothing needs a timer"))


class Post(posts.Post):
    """A datagram socket that would misbehave, if its plan ever struck."""

    def __init__(self, *others: Any, **more: Any) -> None:
        mischief = Mischief(DRAWS, LOOP, None)
        make = functools.partial(datagrams.Datagrams, mischief, "udp://")
        super().__init__(*others, **more, datagrams=make)  # type: ignore[arg-type]
        self.stack.callback(mischief.close)


class Site(sites.Site):
    """A site whose streams would misbehave, if their plan ever struck."""

    def __init__(
        self,
        twin: Any,
        framing: Framing = sites.LINE,
        *others: Any,
        listener: Any = None,
        **more: Any,
    ) -> None:
        timeouts = listener.keywords if isinstance(listener, functools.partial) else {}
        make = functools.partial(made, framing, timeouts)
        super().__init__(twin, framing, *others, listener=make, **more)  # type: ignore[arg-type]
        self.stack.callback(self.listener.mischief.close)


def made(
    spec: Framing, timeouts: dict[str, float], sock: Any, selector: Any, echo: Any, *others: Any
) -> streams.Listener:
    shared, *rest = others
    pure = backend.load("pure").Shared(shared.receive, shared.send, shared.max_connections)
    mischief = Mischief(DRAWS, LOOP, None)
    cut = framing.parse(spec.spec)
    return streams.Listener(mischief, "tcp://", cut, sock, selector, echo, pure, *rest, **timeouts)


@pytest.fixture(scope="module", autouse=True)
def _misbehaving() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_stream, "Site", Site)
        patch.setattr(test_limits_shown, "Site", Site)
        patch.setattr(test_datagrams, "Post", Post)
        yield


site, post, watched = test_stream.site, test_datagrams.post, test_limits_shown.watched

for _module, _begins in (
    (test_stream, ("test_",)),
    (test_datagrams, ("test_",)),
    (test_limits_shown, TIMEOUTS),
):
    for _name in vars(_module):
        if _name.startswith(_begins) and _name not in OTHERS:
            globals()[f"{_name}_in_{_module.__name__}"] = getattr(_module, _name)


def test_every_byte_and_every_counter_is_as_foretold(
    twin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose plan never strikes, under clients that do all that clients can."""
    monkeypatch.setattr(Settings, "draws", lambda _: DRAWS)
    monkeypatch.setattr(test_stateful, "FEW", 3)
    test_stateful.test_every_byte_and_every_counter_is_as_foretold(twin)
