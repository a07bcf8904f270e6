"""What happens on a UDP socket besides answering: a log line per datagram, if asked for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._pure.datagrams import Datagrams
    from .addresses import Address

log = logging.getLogger(__name__)


class Udp:
    """The owner of UDP sockets (`_pure.datagrams.Owner`)."""

    def answered(self, datagrams: Datagrams, address: Address) -> None:
        log.info("... received from and returned to: %s", address)
