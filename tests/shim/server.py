"""A server whose system calls a test scripts: `LD_PRELOAD=shim.so python server.py TWIN`.

It takes commands on standard input, a line of JSON each, `[name, arguments...]`, and answers each
with a line on standard output. The commands run on the loop like everything else, so that each
answer is the state between two turns. After `hold` nothing but commands is served until `go`.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import sys
from typing import Any

from fastecho import backend, echo, sockets, tcp
from fastecho.loop import Loop
from fastecho.prefix import parse
from fastecho.udp import Udp

OPERATIONS = (
    "recv",
    "send",
    "accept",
    "wait",
    "watch",
    "modify",
    "unwatch",
    "shutdown",
    "option",
)


class Owner(tcp.Tcp):
    """The real one, whose listeners rest until the next `sweep`."""

    def __init__(self) -> None:
        super().__init__("line")
        self.rests: list[int | None] = []

    def resting(self, listener: Any, error: OSError | None) -> None:
        super().resting(listener, error)
        self.rests.append(error.errno if error else None)


class Server:
    """Any number of listeners on one loop, and the commands."""

    def __init__(self, twin: backend.Twin) -> None:
        self.twin = twin
        self.shim = ctypes.CDLL(None)
        self.shim.shim_bytes.restype = ctypes.c_long
        self.loop = Loop(twin)
        self.owner = Owner()
        self.listeners: list[Any] = []
        self.datagrams: list[Any] = []
        self.signals = 0
        self.held = False
        signal.signal(signal.SIGUSR1, self.count_signal)
        self.loop.selector.register(0, 1, self)

    def count_signal(self, *_: object) -> None:
        self.signals += 1

    def run(self) -> None:
        self.loop.run(lambda: None)
        for each in self.listeners:
            for stream in each.streams:
                stream.close()
        for each in (*self.listeners, *self.datagrams):
            each.close()
        self.loop.close()

    def on_event(self, mask: int) -> None:
        """Do what is asked for; once held, until told to go on."""
        while True:
            line = sys.stdin.buffer.readline()
            if not line:
                self.loop.stop()
                return
            name, *arguments = json.loads(line)
            answer = getattr(self, "do_" + name)(*arguments)
            os.write(1, json.dumps(answer).encode() + b"\n")
            if not self.held:
                return

    def do_hold(self) -> None:
        self.held = True

    def do_go(self) -> None:
        self.held = False

    def do_listen(self, spec: str, template: str, max_frame: int, receive: int, send: int) -> int:
        (bound,) = sockets.bind([sockets.parse("tcp://127.0.0.1:0")])
        pattern = echo.pattern(self.twin, spec, template, max_frame)
        shared = self.twin.Shared(receive, send)
        self.listeners.append(
            self.twin.Listener(bound.sock, self.loop.selector, pattern, shared, self.owner)
        )
        return bound.address[1]

    def do_datagrams(self, template: str) -> int:
        (bound,) = sockets.bind([sockets.parse("udp://127.0.0.1:0")])
        stamper = self.twin.Stamper(parse(template))
        self.datagrams.append(self.twin.Datagrams(bound.sock, self.loop.selector, stamper, Udp()))
        return bound.address[1]

    def do_script(self, operation: str, port: int, steps: list[int]) -> None:
        """Set the script for an operation on a port."""
        array = (ctypes.c_int * len(steps))(*steps)
        self.shim.shim_script(OPERATIONS.index(operation), port, array, len(steps))

    def do_forget(self, operation: str, port: int) -> tuple[int, int]:
        """Remove a script: how many steps it had left, and how many bytes went through."""
        index = OPERATIONS.index(operation)
        state = self.shim.shim_left(index, port), self.shim.shim_bytes(index, port)
        self.shim.shim_forget(index, port)
        return state

    def do_sweep(self) -> None:
        for listener in self.listeners:
            listener.shared.wake()

    def do_reset(self) -> None:
        """Forget what a test that failed has left."""
        self.held = False
        self.do_descriptors(None)
        self.shim.shim_reset()
        self.do_sweep()

    def do_descriptors(self, most: int | None) -> None:
        """Allow no more descriptors than there are and `most`; None: as many as possible."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        soft = hard
        if most is not None:
            with socket.socket() as sock:
                soft = sock.fileno() + most
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def do_rests(self) -> list[int | None]:
        """The errors for which a listener has come to rest so far."""
        return self.owner.rests

    def do_state(self) -> dict[str, int]:
        state: dict[str, int] = {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "streams": sum(len(each.streams) for each in self.listeners),
            "datagrams": sum(each.messages for each in self.datagrams),
            "segments": sum(each.segments for each in self.datagrams),
            "signals": self.signals,
        }
        for name in ("accepted", "open"):
            state[name] = sum(getattr(each, name) for each in self.listeners)
        for name in ("messages", "bytes_in", "bytes_out"):
            parts = (*self.listeners, *self.datagrams)
            state[name] = sum(getattr(each, name) for each in parts)
        for name, parts in (
            ("closed", self.listeners),
            ("unanswered", self.datagrams),
            ("resent", self.datagrams),
        ):
            for each in parts:
                for reason, count in getattr(each, name).items():
                    key = f"{name}.{reason}"
                    state[key] = state.get(key, 0) + count
        return state


if __name__ == "__main__":
    tcp.ACCEPT_PAUSE = 0
    Server(backend.load(sys.argv[1])).run()
