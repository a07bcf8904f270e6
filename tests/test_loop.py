"""The loop: it dispatches, sweeps, and stops for whoever asks, from wherever."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from fastecho import loop as module
from fastecho.loop import Loop


@pytest.fixture
def loop(twin) -> Iterator[Loop]:
    loop = Loop(twin)
    yield loop
    loop.close()


@pytest.fixture
def byte(loop) -> Iterator[socket.socket]:
    """A socket with a byte to read."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"!")
        yield ours


def idle() -> None:
    """Nothing is due."""


def test_it_runs_until_it_is_stopped_and_calls_what_is_ready(loop, byte):
    masks = []

    def on_event(mask):
        masks.append(mask)
        if len(masks) == 3:
            loop.stop()

    loop.selector.register(byte, 1, SimpleNamespace(on_event=on_event))
    loop.run(idle)
    assert masks == [1, 1, 1]


def test_stopped_before_it_runs_it_does_nothing(loop, byte):
    loop.selector.register(byte, 1, "no handler")
    loop.stop()
    loop.run(idle)


def test_a_thread_can_stop_it(loop):
    thread = threading.Timer(0.01, loop.stop)
    thread.start()
    loop.run(idle)
    thread.join()


def test_a_signal_handler_can_stop_it(loop):
    before = signal.signal(signal.SIGALRM, lambda *_: loop.stop())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        loop.run(idle)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_signal_that_interrupts_a_stop_can_stop_it_too(loop, monkeypatch):
    """The handler runs while the thread is in the middle of its own call."""
    write = os.write

    def interrupted(descriptor, data):
        monkeypatch.undo()
        signal.raise_signal(signal.SIGALRM)
        return write(descriptor, data)

    before = signal.signal(signal.SIGALRM, lambda *_: loop.stop())
    try:
        monkeypatch.setattr(os, "write", interrupted)
        loop.stop()
    finally:
        signal.signal(signal.SIGALRM, before)
    loop.run(idle)


def test_stopping_never_blocks(loop):
    """More often than its pipe has room for."""
    for _ in range(70_000):
        loop.stop()
    loop.run(idle)


def test_it_sweeps_between_turns_when_that_is_due(loop, byte, monkeypatch):
    monkeypatch.setattr(module, "SWEEP_INTERVAL", 0)
    done = []

    def sweep():
        done.append("sweep")
        if len(done) >= 4:
            loop.stop()

    handler = SimpleNamespace(on_event=lambda mask: done.append("event"))
    loop.selector.register(byte, 1, handler)
    loop.run(sweep)
    assert done == ["event", "sweep"] * 2


def test_it_sweeps_though_nothing_happens(loop, monkeypatch):
    monkeypatch.setattr(module, "SWEEP_INTERVAL", 0.01)
    before = time.monotonic()
    sweeps = []

    def sweep():
        sweeps.append(time.monotonic() - before)
        if len(sweeps) == 3:
            loop.stop()

    loop.run(sweep)
    assert all(sweep >= 0.01 * number for number, sweep in enumerate(sweeps, 1))


def test_what_a_handler_raises_ends_it(loop, byte):
    def on_event(mask):
        byte.recv(1)
        raise LookupError

    loop.selector.register(byte, 1, SimpleNamespace(on_event=on_event))
    with pytest.raises(LookupError):
        loop.run(idle)
    loop.stop()
    loop.run(idle)


def test_closing_gives_its_descriptors_back(twin):
    before = os.listdir("/proc/self/fd")
    loop = Loop(twin)
    assert len(os.listdir("/proc/self/fd")) > len(before)
    loop.close()
    assert os.listdir("/proc/self/fd") == before
    loop.close()


def test_stopping_a_closed_loop_touches_nobody_else_s_descriptor(twin):
    loop = Loop(twin)
    loop.close()
    pipes = [os.pipe() for _ in range(3)]  # they take the numbers that it had
    loop.stop()
    for reader, writer in pipes:
        os.set_blocking(reader, False)
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
        os.close(reader)
        os.close(writer)


def test_its_descriptors_are_not_inherited(loop):
    for key in loop.selector.get_map().values():
        assert not os.get_inheritable(key.fd)


# -- timers


def test_timers_are_called_in_order_none_early(loop):
    called = []
    start = time.monotonic()
    for number in (3, 1, 2, 1):
        when = start + number / 100

        def ring(number=number, when=when):
            called.append(number)
            assert time.monotonic() >= when
            if len(called) == 4:
                loop.stop()

        loop.call_at(when, ring)
    loop.run(idle)
    assert called == [1, 1, 2, 3]


def test_a_timer_cuts_the_wait_short_that_it_is_set_in(loop, byte):
    """The loop waits for the sweep, or for a timer of next year."""
    loop.call_at(time.monotonic() + 1e9, idle)

    def on_event(mask):
        byte.recv(1)
        loop.call_at(time.monotonic(), loop.stop)

    loop.selector.register(byte, 1, SimpleNamespace(on_event=on_event))
    start = time.monotonic()
    loop.run(idle)
    assert time.monotonic() - start < module.SWEEP_INTERVAL


def test_a_timer_that_sets_itself_again_starves_nobody(loop, byte):
    called = []

    def again():
        called.append("timer")
        loop.call_at(0.0, again)

    def on_event(mask):
        byte.recv(1)
        called.append("event")
        loop.stop()

    loop.call_at(0.0, again)
    loop.selector.register(byte, 1, SimpleNamespace(on_event=on_event))
    loop.run(idle)
    assert "event" in called


def test_a_turn_calls_timers_too_and_waits_no_longer_than_they_do(loop):
    called = []
    loop.call_at(time.monotonic() + 0.01, lambda: called.append(1))
    while not called:
        loop.turn(1e6)
    loop.call_at(0.0, lambda: called.append(2))
    loop.turn(1e6)
    assert called == [1, 2]


def test_a_timer_that_is_taken_back_is_not_called(loop):
    called = []
    timers = [loop.call_at(0.0, lambda number=number: called.append(number)) for number in range(5)]
    for number in (0, 3, 3):
        loop.take_back(timers[number])
    loop.turn(0)
    loop.take_back(timers[1])  # too late: nothing
    loop.turn(0)
    assert called == [1, 2, 4]


def test_timers_that_are_taken_back_keep_nothing_and_do_not_pile_up(loop):
    class Kept:
        def ring(self):
            pass

    kept = Kept()
    seen = weakref.ref(kept)
    loop.call_at(1e9, idle)
    for _ in range(1_000):
        loop.take_back(loop.call_at(1e9, kept.ring))
        assert len(loop._timers) <= 2
    del kept
    assert seen() is None


def test_short_of_memory_a_timer_ends_nobody_else(loop):
    def ring():
        raise MemoryError

    loop.call_at(0.0, ring)
    loop.call_at(0.0, loop.stop)
    loop.run(idle)


def test_what_a_timer_raises_ends_it(loop):
    def ring():
        raise LookupError

    loop.call_at(0.0, ring)
    with pytest.raises(LookupError):
        loop.run(idle)
    loop.stop()
    loop.run(idle)
