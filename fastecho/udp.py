"""What happens on a datagram socket besides answering: a log line each, if asked for."""

from __future__ import annotations

from logging import INFO
from typing import TYPE_CHECKING

from . import addresses
from .events import say

if TYPE_CHECKING:
    from ._pure.datagrams import Datagrams
    from .addresses import Address


class Udp:
    """The owner of datagram sockets (`_pure.datagrams.Owner`)."""

    def answered(self, datagrams: Datagrams, address: Address) -> None:
        sentence = f"... received from and returned to: {address!r}"
        say(INFO, "answered", sentence, peer=addresses.text(address))
