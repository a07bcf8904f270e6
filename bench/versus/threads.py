"""A thread for each client, from the standard library: PYTHON threads.py HOST PORT."""

from __future__ import annotations

import sys
from contextlib import suppress
from socketserver import DatagramRequestHandler, StreamRequestHandler, ThreadingTCPServer, UDPServer
from threading import Thread

from lines import BACKLOG, converse, prefix


class Handler(StreamRequestHandler):
    """One client, in its thread."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        converse(self.request)


class DatagramHandler(DatagramRequestHandler):
    """One datagram."""

    def handle(self) -> None:
        self.wfile.write(prefix() + self.packet)

    def finish(self) -> None:
        with suppress(OSError):  # its fate is its own
            super().finish()


class Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = BACKLOG


class DatagramServer(UDPServer):
    max_packet_size = 65_535


if __name__ == "__main__":
    listen = (sys.argv[1], int(sys.argv[2]))
    with DatagramServer(listen, DatagramHandler) as udp, Server(listen, Handler) as tcp:
        Thread(target=udp.serve_forever, daemon=True).start()
        print("ready", flush=True)
        tcp.serve_forever()
