"""What the misbehaving listeners and sockets of one server share; without a plan there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..delivery import Deliveries

if TYPE_CHECKING:
    from ..loop import Loop
    from .decisions import Draws, Strike
    from .journal import Journal


class Mischief:
    """A fault plan at work.

    Args:
        draws: the plan with its seed.
        loop: for timers.
        journal: the decision log; None: nobody wants one.

    Attributes:
        draws, loop, journal: these.
        deliveries: asks the kernel what was read.
        struck: how often each fault struck, by name.
        held: datagrams that are held back.
    """

    def __init__(self, draws: Draws, loop: Loop, journal: Journal | None) -> None:
        self.draws = draws
        self.loop = loop
        self.journal = journal
        self.deliveries = Deliveries()
        self.struck: Counter[str] = Counter()
        self.held = 0

    def note(self, strikes: Iterable[Strike]) -> None:
        """Count what struck."""
        self.struck.update(strike.fault for strike in strikes)

    @property
    def is_for_streams(self) -> bool:
        """Whether streams are struck, or their conversations logged."""
        return bool(self.journal or self.draws.plan.for_streams)

    @property
    def is_for_datagrams(self) -> bool:
        """Likewise of datagrams."""
        return bool(self.journal or self.draws.plan.for_datagrams)

    def close(self) -> None:
        """Ask and log no more."""
        self.deliveries.close()
        if self.journal is not None:
            self.journal.close()
