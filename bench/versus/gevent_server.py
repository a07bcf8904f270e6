"""A greenlet for each client: PYTHON gevent_server.py HOST PORT."""

from __future__ import annotations

import sys
from contextlib import suppress

import gevent
import gevent.socket as sockets
from gevent.server import StreamServer
from lines import BACKLOG, converse, prefix


class Echo(StreamServer):
    """TCP: `handle` runs in a greenlet."""

    def handle(self, sock: sockets.socket, address: tuple[str, int]) -> None:
        sock.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
        converse(sock)


def echo_datagrams(sock: sockets.socket) -> None:
    """UDP: one greenlet for all, since a reply waits for nobody."""
    while True:
        data, address = sock.recvfrom(65_535)
        with suppress(OSError):  # its fate is its own
            sock.sendto(prefix() + data, address)


if __name__ == "__main__":
    listen = (sys.argv[1], int(sys.argv[2]))
    udp = sockets.socket(type=sockets.SOCK_DGRAM)
    udp.bind(listen)
    gevent.spawn(echo_datagrams, udp)
    tcp = Echo(listen, backlog=BACKLOG)
    tcp.start()
    print("ready", flush=True)
    tcp.serve_forever()
