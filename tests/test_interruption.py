"""Ctrl-C during a search for cuts: when it is taken, and that nothing is left open then."""

from __future__ import annotations

import gc
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import OWN_HOST, PATIENCE, named
from test_fuzzer import QUICK, TIMEOUT, echoes, recorded, serving

import fastecho
from fastecho import dial
from fastecho.cli.fuzz import _stopping
from fastecho.testing.exchange import Caller, Plan
from fastecho.testing.fuzzer import Fuzzer, Options, Report
from fastecho.testing.interruption import Interruption

#: Whose lines may be interrupted.
OURS = ("fastecho.testing.", "fastecho.dial", "fastecho.delivery")
#: A run of `QUICK` has more lines. In one of four, raising would do harm.
LINES = 1_000


@contextmanager
def handler(act: Callable[[], None]) -> Iterator[None]:
    """What SIGINT does meanwhile."""
    before = signal.signal(signal.SIGINT, lambda *_: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    """As Ctrl-C; from any thread, and what the main thread waits for is interrupted."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


# -- when it is taken


def test_it_is_noted_and_every_wait_after_it_raises() -> None:
    interruption = Interruption()
    with handler(interruption.ask):
        with interruption.waiting():
            pass
        signal.raise_signal(signal.SIGINT)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt), interruption.waiting():
                pytest.fail("it waits")
        signal.raise_signal(signal.SIGINT)


def test_the_command_takes_the_first_and_ends_at_the_second() -> None:
    interruption = Interruption()
    before = signal.getsignal(signal.SIGINT)
    with _stopping(interruption):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), interruption.waiting():
            pytest.fail("the first was not noted")
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_a_shell_ignores_for_a_background_job_is_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _stopping(Interruption()):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# -- where an exchange waits: it may take for ever


@contextmanager
def answering_nothing() -> Iterator[str]:
    def act(sock: socket.socket) -> None:
        sock.recv(1)
        interrupt()
        while sock.recv(100):
            pass

    with serving(act) as address:
        yield address


@contextmanager
def reading_nothing() -> Iterator[str]:
    over = threading.Event()

    def act(_: socket.socket) -> None:
        interrupt()
        over.wait(PATIENCE)

    with serving(act) as address:
        yield address
        over.set()


@contextmanager
def accepting_nobody() -> Iterator[str]:
    """Its queue is full: the kernel takes no notice of one more."""
    with (
        socket.create_server((OWN_HOST, 0), backlog=0) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        watcher = threading.Thread(target=watch, args=[listener.getsockname()[1]])
        watcher.start()
        yield named(listener.getsockname())
        watcher.join()


def watch(port: int) -> None:
    """Interrupt once somebody waits for a connection to that port."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, _, peer, state, *_ = line.split()
            if state == "02" and peer.endswith(f":{port:04X}"):  # TCP_SYN_SENT
                interrupt()
                return


@pytest.mark.parametrize("server", [answering_nothing, reading_nothing, accepting_nobody])
def test_an_exchange_ends_where_it_waits(server: Any) -> None:
    with server() as address:
        interruption = Interruption()
        caller = Caller(dial.parse(address), 2 * PATIENCE, interruption)
        with handler(interruption.ask), pytest.raises(KeyboardInterrupt):
            caller.call(Plan((b"hello\n",), (1,)), lambda _: None, 100)
        caller.close()


# -- at any line


def stopped(address: str, line: int) -> tuple[Report, list[str]]:
    """A search that is interrupted in its nth line; and what it left to the collector."""
    left = line

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_globals["__name__"].startswith(OURS):
            return None
        left -= event == "line"
        if left == 0:
            signal.raise_signal(signal.SIGINT)
        return trace

    interruption = Interruption()
    made = Fuzzer(dial.parse(address), echoes(), QUICK, interruption)
    before = sys.gettrace()
    with handler(interruption.ask), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        sys.settrace(trace)
        try:
            report = made.run()
        finally:
            sys.settrace(before)
        gc.collect()
    return report, [str(each.message) for each in warned]


@pytest.fixture(scope="module")
def right() -> Iterator[str]:
    with fastecho.running() as server:
        yield named(server.tcp_address)


@settings(max_examples=20)
@given(st.integers(1, LINES))
def test_nothing_is_left_open_in_whatever_line_it_comes(right: str, line: int) -> None:
    report, warned = stopped(right, line)
    assert (report.stopped, warned) == (True, [])


def test_what_was_found_at_random_is_not_lost_when_its_search_is_ended() -> None:
    """Whoever takes Ctrl-C while it is shrunk is not told that nothing was found."""
    found = interrupted = False

    def act(sock: socket.socket) -> None:
        nonlocal found, interrupted
        if found and not interrupted:  # a second one would meet the end of this test
            interrupted = True
            interrupt()
        pieces = []
        while data := sock.recv(65_536):
            pieces.append(data)
            if data.endswith(b"!"):
                found = found or len(pieces) == 5
                sock.sendall(b"five" if len(pieces) == 5 else b"well")
                pieces = []

    with serving(act) as address:
        answers = recorded(b"what is this!", count=1)
        interruption = Interruption()
        options = Options(TIMEOUT, pairs=10, examples=300)
        made = Fuzzer(dial.parse(address), answers, options, interruption)
        with handler(interruption.ask):
            report = made.run()
    assert report.stopped
    assert report.finding is not None
    assert len(report.finding.plan.cuts) == 4
