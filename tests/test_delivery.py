"""Whether what was sent was read: asked of the kernel, of sockets that the test reads by hand."""

from __future__ import annotations

import errno
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from processes import PATIENCE, abort, needs_ipv6, until

from fastecho import delivery
from fastecho.delivery import ACKNOWLEDGED, READ, Deliveries


@pytest.fixture
def kernel() -> Iterator[Deliveries]:
    with closing(Deliveries()) as deliveries:
        yield deliveries


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def tcp(stack: ExitStack, bound: str, target: str) -> tuple[socket.socket, socket.socket]:
    """A connection from `target`, which is an address of this machine, to a server bound there."""
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with socket.socket(family) as listener:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((bound, 0))
        listener.listen()
        port = listener.getsockname()[1]
        theirs = stack.enter_context(socket.create_connection((target, port), PATIENCE))
        ours = stack.enter_context(listener.accept()[0])
    return ours, theirs


KINDS = [
    ("127.0.0.1", "127.0.0.1"),
    ("0.0.0.0", "127.0.0.3"),
    pytest.param(("::1", "::1"), marks=needs_ipv6),
    pytest.param(("::", "::1"), marks=needs_ipv6),
    pytest.param(("::", "127.0.0.1"), marks=needs_ipv6),
    ("unix", ""),
]


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, stack: ExitStack, tmp_path: Path) -> Any:
    """Both ends of a stream: who sends, who reads."""
    bound, target = request.param
    if bound != "unix":
        return tcp(stack, bound, target)
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    return stack.enter_context(ours), stack.enter_context(theirs)


def test_what_is_in_the_queue_was_not_read(kernel: Deliveries, pair: Any) -> None:
    ours, theirs = pair
    found = kernel.of(ours)
    assert found.how == READ
    assert found.is_over(0)
    sent = 0
    for message in (b"one", b"x" * 10_000, b"!"):
        sent += ours.send(message)
        assert not found.is_over(sent)
        assert not found.wait(sent, 0.01)
        if len(message) > 1:
            assert theirs.recv(len(message) - 1)
            assert not found.is_over(sent)
        assert theirs.recv(len(message))
        assert found.is_over(sent)
        assert found.wait(sent, 0.0)


def test_it_can_be_asked_of_a_connection_that_has_sent_before(
    kernel: Deliveries, pair: Any
) -> None:
    ours, theirs = pair
    sent = ours.send(b"before")
    found = kernel.of(ours)
    assert (found.how, found.is_over(sent)) == (READ, False)
    theirs.recv(100)
    assert found.is_over(sent)


def test_waiting_ends_when_it_is_read(kernel: Deliveries, pair: Any) -> None:
    ours, theirs = pair
    found = kernel.of(ours)
    ours.send(b"!")
    reader = threading.Timer(0.03, theirs.recv, (1,))
    before = time.monotonic()
    reader.start()
    assert found.wait(1, PATIENCE)
    assert time.monotonic() - before >= 0.03
    reader.join()


def test_each_piece_is_a_recv_of_its_own(kernel: Deliveries, pair: Any) -> None:
    ours, theirs = pair
    found = kernel.of(ours)
    got: list[bytes] = []

    def read() -> None:
        while data := theirs.recv(100):
            got.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        ours.send(b"%d" % number)
        assert found.wait(sum(len(b"%d" % each) for each in range(number + 1)), PATIENCE)
    ours.shutdown(socket.SHUT_WR)
    reader.join()
    assert got == [b"%d" % number for number in range(200)]


def test_nobody_is_waited_for_who_has_gone(kernel: Deliveries, pair: Any) -> None:
    ours, theirs = pair
    found = kernel.of(ours)
    ours.send(b"never read")
    abort(theirs)
    until(lambda: found.is_over(10), "that nobody will read it")


def test_a_reader_that_has_sent_all_still_reads(kernel: Deliveries, pair: Any) -> None:
    ours, theirs = pair
    theirs.shutdown(socket.SHUT_WR)
    assert ours.recv(1) == b""
    found = kernel.of(ours)
    ours.send(b"half-closed")
    assert not found.wait(11, 0.01)
    theirs.recv(100)
    assert found.wait(11, PATIENCE)


def test_without_the_kernel_s_answers_acknowledgements_have_to_do(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another machine, where the socket asked about is not."""
    slept: list[float] = []
    with closing(Deliveries()) as kernel:
        kernel.close()
        ours, theirs = tcp(stack, "127.0.0.1", "127.0.0.1")
        found = kernel.of(ours)
        assert found.how == ACKNOWLEDGED
        ours.send(b"!")
        until(lambda: found.is_over(1), "the acknowledgement")
        monkeypatch.setattr(delivery.time, "sleep", slept.append)
        assert found.wait(1, PATIENCE)
    assert slept == [delivery.PAUSE]
    assert theirs.recv(1) == b"!"


def test_what_the_kernel_does_not_say_is_not_taken_for_read(
    kernel: Deliveries, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = tcp(stack, "127.0.0.1", "127.0.0.1")
    found = kernel.of(ours)
    ours.send(b"!")
    theirs.recv(1)
    assert found.wait(1, PATIENCE)
    with monkeypatch.context() as patched:
        refusal = delivery.HEADER.pack(20, delivery.NLMSG_ERROR, 0, 0, 0)
        refusal += (-errno.ENOMEM).to_bytes(4, sys.byteorder, signed=True)
        for answer in (OSError(errno.ENOBUFS, "no room"), refusal):
            silent = Mock()
            silent.recv.side_effect = [answer]
            patched.setattr(kernel, "_netlink", silent)
            assert not found.is_over(1)
        silent.recv.side_effect = [answer]
        assert kernel.of(ours).how == ACKNOWLEDGED
    assert found.is_over(1)


def test_closing_twice_is_closing_once(kernel: Deliveries) -> None:
    kernel.close()
    kernel.close()
    assert kernel.ask(b"") is None
