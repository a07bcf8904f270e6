"""A plan that never strikes changes nothing: what holds of the twins' streams holds of faulty ones.

The same tests, over listeners of `fastecho.faulty`. Left out is what only the twins' have.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import sites
import test_limits_shown
import test_stream
from reference import Framing

from fastecho import backend, faulty, framing
from fastecho.decisions import Draws
from fastecho.faults import parse
from fastecho.mischief import Mischief

#: Of the twins' own listeners, native streams' memory, and of what the docs say.
OTHERS = {
    "test_listeners_on_one_selector_know_their_own_streams",
    "test_the_python_method_of_a_subclass_is_called",
}
TIMEOUTS = ("test_idle_", "test_frame_", "test_unfinished_", "test_unread_", "test_linger_")


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
) -> faulty.Listener:
    shared, *rest = others
    pure = backend.load("pure").Shared(shared.receive, shared.send, shared.max_connections)
    loop: Any = SimpleNamespace(call_at=lambda *_: pytest.fail("nothing needs a timer"))
    mischief = Mischief(Draws(parse("duplicate:p=0"), 1), loop, None)
    cut = framing.parse(spec.spec)
    return faulty.Listener(mischief, "tcp://", cut, sock, selector, echo, pure, *rest, **timeouts)


@pytest.fixture(scope="module", autouse=True)
def _faulty_sites() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_stream, "Site", Site)
        patch.setattr(test_limits_shown, "Site", Site)
        yield


site, watched = test_stream.site, test_limits_shown.watched

for _module, _begins in ((test_stream, ("test_",)), (test_limits_shown, TIMEOUTS)):
    for _name in vars(_module):
        if _name.startswith(_begins) and _name not in OTHERS:
            globals()[_name] = getattr(_module, _name)
