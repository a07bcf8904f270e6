"""Servers that do what a test says: one connection, or one datagram socket, in a thread."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from processes import PATIENCE, abort, named

Act = Callable[[socket.socket], None]


@contextmanager
def acting(sock: socket.socket, act: Act) -> Iterator[None]:
    """Does this with a socket, in a thread; that a client hangs up meanwhile is no failure."""
    failures: list[BaseException] = []

    def do() -> None:
        try:
            with suppress(OSError):
                act(sock)
        except BaseException as failure:
            failures.append(failure)

    sock.settimeout(PATIENCE)
    thread = threading.Thread(target=do)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # wakes the thread, where it waits for something
        thread.join(PATIENCE)
        sock.close()
        assert not thread.is_alive()
    assert not failures, failures


@contextmanager
def stream_server(act: Act) -> Iterator[str]:
    """A TCP server that does this with its one connection; its address."""

    def accept(listener: socket.socket) -> None:
        with listener.accept()[0] as sock:
            sock.settimeout(PATIENCE)
            act(sock)

    listener = socket.create_server(("127.0.0.1", 0))
    with acting(listener, accept):
        yield named(listener.getsockname())


@contextmanager
def datagram_server(act: Act) -> Iterator[str]:
    """A UDP socket, with which this is done; its address."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    ended = threading.Event()

    def once(sock: socket.socket) -> None:
        act(sock)
        ended.wait(PATIENCE)  # a closed socket would refuse what comes next

    with acting(sock, once):
        try:
            yield named(sock.getsockname())
        finally:
            ended.set()


def saying(reply: bytes) -> Act:
    """To whatever comes first, says this; then waits for the end."""

    def act(sock: socket.socket) -> None:
        sock.recv(65_536)
        sock.sendall(reply)
        while sock.recv(65_536):
            pass

    return act


def silent(sock: socket.socket) -> None:
    """Reads all, says nothing."""
    while sock.recv(65_536):
        pass


def resetting(sock: socket.socket) -> None:
    sock.recv(100)
    abort(sock)


def closing(sock: socket.socket) -> None:
    sock.recv(100)
    sock.close()


def flooding(piece: bytes) -> Act:
    def act(sock: socket.socket) -> None:
        sock.recv(100)
        while True:
            sock.sendall(piece)

    return act
