"""The selector: the standard library's contract to the letter, and `dispatch` beyond it."""

from __future__ import annotations

import errno
import os
import resource
import selectors
import signal
import socket
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import load
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from processes import run

from fastecho._pure.selector import Portable

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
#: What is no file object, or not one that is open.
ODD = (999_999, -1, 2**31, 2**64, "x", None, 1.5, object(), SimpleNamespace(fileno=3))


class Handler:
    """Notes its calls; does what it is told when called."""

    def __init__(self, action: Callable[[Handler], object] = lambda handler: None) -> None:
        self.action = action
        self.masks: list[int] = []

    def on_event(self, mask: int) -> None:
        self.masks.append(mask)
        self.action(self)


@pytest.fixture(scope="module", params=["pure", "portable", "native"])
def twin(request: pytest.FixtureRequest) -> Any:
    """Each of the twins, and what the pure one is where there is no epoll."""
    if request.param == "portable":
        return SimpleNamespace(Selector=Portable)
    return load(request.param)


@pytest.fixture
def selector(twin) -> Iterator[Any]:
    with twin.Selector() as selector:
        yield selector


@pytest.fixture
def pairs() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Makes pairs of connected sockets."""
    with ExitStack() as stack:

        def pair() -> tuple[socket.socket, socket.socket]:
            ours, theirs = socket.socketpair()
            return stack.enter_context(ours), stack.enter_context(theirs)

        yield pair


@pytest.fixture
def ready(selector, pairs) -> Callable[..., list[SimpleNamespace]]:
    """Registers so many handlers, each on a socket with a byte to read."""

    def ready(count: int, action: Callable[[Handler], object] = lambda handler: None):
        made = []
        for _ in range(count):
            sock, peer = pairs()
            peer.send(b"!")
            handler = Handler(action)
            selector.register(sock, READ, handler)
            made.append(SimpleNamespace(sock=sock, peer=peer, handler=handler))
        return made

    return ready


@contextmanager
def ticking(handler: Callable[..., object], interval: float) -> Iterator[None]:
    """SIGALRM every `interval` seconds."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, interval, interval)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(call: Callable[[], object]) -> object:
    """What a call gives, or what it raises."""
    try:
        return call()
    except Exception as error:
        if isinstance(error, OSError):
            return type(error), error.errno
        if isinstance(error, KeyError | ValueError):
            return (type(error), *error.args)
        return (type(error),)


# -- against the standard library


def test_is_a_selector_of_the_standard_library(selector):
    assert isinstance(selector, selectors.BaseSelector)


def test_passes_the_battery_of_the_standard_library(twin):
    """All but `test_timeout`, whose upper bounds judge the machine."""
    standard = pytest.importorskip("test.test_selectors", reason="no package `test` here")
    names = [name for name in dir(standard.BaseSelectorTestCase) if name.startswith("test_")]
    bases = (standard.BaseSelectorTestCase, unittest.TestCase)
    case = type("Battery", bases, {"SELECTOR": twin.Selector})
    result = unittest.TestResult()
    unittest.TestSuite(case(name) for name in names if name != "test_timeout").run(result)
    assert result.testsRun > 10
    assert result.failures + result.errors == []


class Agreement(RuleBasedStateMachine):
    """The twin's selector and the standard library's watch the same descriptors."""

    make: Callable[[], Any]

    def __init__(self) -> None:
        super().__init__()
        self.both = (self.make(), selectors.EpollSelector())
        self.sockets = [sock for _ in range(2) for sock in socket.socketpair()]
        self.reader, self.writer = os.pipe()
        self.numbers = [*(sock.fileno() for sock in self.sockets), self.reader, self.writer]
        self.copies: list[int] = []
        self.open = True

    def teardown(self) -> None:
        for selector in self.both:
            selector.close()
        for sock in self.sockets:
            sock.close()
        for descriptor in (self.reader, self.writer, *self.copies):
            os.close(descriptor)

    def agree(self, call: Callable[[Any], object]) -> object:
        ours, theirs = (outcome(lambda each=each: call(each)) for each in self.both)
        if self.open:
            assert ours == theirs
        else:  # each says in its own words that it is closed
            assert failure(ours) == failure(theirs)
        return ours

    def fileobj(self, index: int) -> object:
        return [*self.sockets, *self.numbers, *ODD][index]

    fileobjs = st.integers(0, 4 + 6 + len(ODD) - 1)
    events = st.sampled_from([READ, WRITE, READ | WRITE])
    data = st.sampled_from([None, "a", "b"])

    @rule(
        index=fileobjs, events=st.one_of(events, st.sampled_from([0, 4, -1, "r", None])), data=data
    )
    def register(self, index, events, data):
        self.agree(lambda selector: selector.register(self.fileobj(index), events, data))

    @rule(index=st.integers(0, 3), events=events, data=data)
    def register_a_socket(self, index, events, data):
        self.agree(lambda selector: selector.register(self.fileobj(index), events, data))

    @rule(index=fileobjs)
    def unregister(self, index):
        self.agree(lambda selector: selector.unregister(self.fileobj(index)))

    @rule(index=fileobjs, events=events, data=data)
    def modify(self, index, events, data):
        self.agree(lambda selector: selector.modify(self.fileobj(index), events, data))

    @rule(index=fileobjs)
    def look_up(self, index):
        self.agree(lambda selector: selector.get_key(self.fileobj(index)))
        self.agree(lambda selector: selector.get_map()[self.fileobj(index)])
        self.agree(lambda selector: self.fileobj(index) in selector.get_map())
        self.agree(lambda selector: selector.get_map().get(self.fileobj(index)))

    @invariant()
    def same_map(self):
        self.agree(lambda selector: dict(selector.get_map()))
        self.agree(lambda selector: sorted(selector.get_map()))
        self.agree(lambda selector: len(selector.get_map()))

    @invariant()
    def same_readiness(self):
        def ready(selector):
            return sorted((key.fd, mask, key) for key, mask in selector.select(0))

        self.agree(ready)

    @rule(index=st.integers(0, 3))
    def send(self, index):
        if self.sockets[index].fileno() >= 0:
            self.sockets[index].settimeout(0)
            outcome(lambda: self.sockets[index].send(b"!"))

    @rule(index=st.integers(0, 3))
    def receive(self, index):
        if self.sockets[index].fileno() >= 0:
            self.sockets[index].settimeout(0)
            outcome(lambda: self.sockets[index].recv(100))

    @rule(index=st.integers(0, 3), keep=st.booleans())
    def close_a_socket(self, index, keep):
        """If something else holds it open, epoll goes on reporting it under its old number."""
        if self.sockets[index].fileno() >= 0:
            if keep:
                self.copies.append(os.dup(self.sockets[index].fileno()))
            self.sockets[index].close()

    @rule(index=st.integers(0, 3))
    def use_a_number_again(self, index):
        if self.sockets[index].fileno() < 0:
            self.sockets[index] = socket.socket()
            self.numbers[index] = self.sockets[index].fileno()

    @precondition(lambda self: self.open)
    @rule(sure=st.integers(0, 9))
    def close(self, sure):
        if sure == 9:
            self.open = False
            for selector in self.both:
                assert selector.close() is None


def failure(result: object) -> object:
    is_error = isinstance(result, tuple) and result and isinstance(result[0], type)
    return result[0] if is_error else result


def test_agrees_with_the_standard_library_whatever_is_done(twin):
    made = type("Agreement", (Agreement,), {"make": staticmethod(twin.Selector)})
    run_state_machine_as_test(made, settings=settings(stateful_step_count=30))


@pytest.mark.parametrize("timeout", ["1", float("nan"), float("inf"), 1e300, 2**40, object(), b""])
def test_odd_timeouts_are_refused_as_the_standard_library_refuses_them(selector, ready, timeout):
    ready(1)
    with selectors.EpollSelector() as standard:
        expected = failure(outcome(lambda: standard.select(timeout)))
    assert issubclass(expected, Exception)
    assert failure(outcome(lambda: selector.select(timeout))) == expected
    assert failure(outcome(lambda: selector.dispatch(timeout))) == expected


def test_map_is_live_and_read_only(selector, pairs):
    keys = selector.get_map()
    assert isinstance(keys, Mapping)
    sock, _ = pairs()
    with pytest.raises(KeyError) as unknown:
        keys[sock]
    assert unknown.value.args == (f"{sock!r} is not registered",)
    key = selector.register(sock, READ, "data")
    assert (len(keys), list(keys), list(keys.values())) == (1, [sock.fileno()], [key])
    assert keys[sock] == keys[sock.fileno()] == key == (sock, sock.fileno(), READ, "data")
    with pytest.raises(TypeError):
        keys[sock] = key


def test_map_is_none_once_closed(selector):
    selector.close()
    assert selector.get_map() is None


def test_keys_are_the_standard_library_s(selector, pairs):
    sock, _ = pairs()
    key = selector.register(sock, READ)
    assert type(key) is selectors.SelectorKey
    assert type(selector.get_key(sock)) is selectors.SelectorKey
    assert selector.unregister(sock) == key


def test_a_closed_file_can_still_be_unregistered_by_itself(selector, pairs):
    sock, _ = pairs()
    key = selector.register(sock, READ, "data")
    sock.close()
    assert selector.get_key(sock) == key
    assert selector.unregister(sock) == key
    assert len(selector.get_map()) == 0


def test_a_file_that_epoll_refuses_leaves_nothing_behind(selector):
    with tempfile.TemporaryFile() as file:
        with pytest.raises(PermissionError):
            selector.register(file, READ)
        with pytest.raises(KeyError):
            selector.get_key(file)


def test_modify_of_a_descriptor_closed_meanwhile_removes_it(selector, pairs):
    sock, _ = pairs()
    number = sock.fileno()
    selector.register(number, READ)
    sock.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        selector.modify(number, WRITE)
    assert number not in selector.get_map()


@pytest.mark.parametrize("how", ["select", "dispatch"])
def test_what_epoll_still_reports_of_an_unregistered_descriptor_is_ignored(selector, pairs, how):
    sock, peer = pairs()
    number = sock.fileno()
    selector.register(number, READ, Handler())
    with socket.fromfd(number, sock.family, sock.type) as copy:
        sock.close()  # the copy keeps epoll's entry alive, under a number that names nothing
        selector.unregister(number)
        peer.send(b"!")
        assert getattr(selector, how)(0) == ([] if how == "select" else 0)
        assert copy.recv(1) == b"!"


def test_closing_gives_the_descriptor_back(twin):
    selector = twin.Selector()
    number = selector.fileno()
    assert os.fstat(number)
    selector.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(number)
    selector.close()


def test_closing_twice_leaves_the_next_owner_of_the_number_alone(twin):
    with tempfile.TemporaryFile() as file:
        selector = twin.Selector()
        number = selector.fileno()
        selector.close()
        os.dup2(file.fileno(), number)
        selector.close()
        del selector
        os.close(number)  # raises if somebody else has


def test_its_descriptor_is_not_inherited(selector):
    assert not os.get_inheritable(selector.fileno())


@pytest.mark.parametrize("call", ["select", "dispatch"])
def test_using_it_closed_is_an_error(selector, call):
    selector.close()
    with pytest.raises(ValueError, match="closed"):
        getattr(selector, call)(0)


def test_everything_that_is_ready_is_selected_at_once(selector, ready):
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = ready(min(1500, (soft - 100) // 2))
    chosen = selector.select(0)
    assert {key.fileobj for key, _ in chosen} == {each.sock for each in many}
    assert {mask for _, mask in chosen} == {READ}


def test_both_directions_and_hang_ups_are_reported_as_what_was_asked_for(selector, pairs):
    sock, peer = pairs()
    peer.send(b"!")
    selector.register(sock, READ | WRITE)
    assert [mask for _, mask in selector.select(0)] == [READ | WRITE]
    selector.modify(sock, WRITE)
    peer.close()
    assert [mask for _, mask in selector.select(0)] == [WRITE]
    selector.modify(sock, READ)
    assert [mask for _, mask in selector.select(0)] == [READ]


@pytest.mark.parametrize("events", [READ, WRITE])
def test_a_hang_up_is_dispatched_as_what_was_asked_for(selector, pairs, events):
    sock, peer = pairs()
    handler = Handler()
    selector.register(sock, events, handler)
    peer.close()
    assert selector.dispatch(0) == 1
    assert handler.masks == [events]


# -- waiting


@pytest.mark.parametrize("call", ["select", "dispatch"])
@pytest.mark.parametrize("timeout", [0, -1, -0.5, 0.0, 1e-9, False])
def test_a_wait_with_nothing_ready_ends(selector, call, timeout):
    assert not getattr(selector, call)(timeout)


@pytest.mark.parametrize("call", ["select", "dispatch"])
def test_a_wait_is_never_shorter_than_asked_for(selector, call):
    for timeout in (0.0002, 0.0011, 0.02):
        before = time.monotonic()
        assert not getattr(selector, call)(timeout)
        assert time.monotonic() - before >= timeout


@pytest.mark.parametrize("call", ["select", "dispatch"])
@pytest.mark.parametrize("timeout", [None, 30])
def test_signal_handlers_run_and_the_wait_goes_on(selector, pairs, call, timeout):
    sock, peer = pairs()
    selector.register(sock, READ, Handler())
    ticks: list[int] = []

    def tick(*_: object) -> None:
        ticks.append(1)
        if len(ticks) == 3:
            peer.send(b"!")

    with ticking(tick, 0.005):
        assert getattr(selector, call)(timeout)
    assert len(ticks) >= 3


@pytest.mark.parametrize("call", ["select", "dispatch"])
def test_interrupted_waits_do_not_begin_anew(selector, call):
    ticks: list[int] = []

    def tick(*_: object) -> None:
        ticks.append(1)
        if len(ticks) == 500:
            signal.setitimer(signal.ITIMER_REAL, 0)

    before = time.monotonic()
    with ticking(tick, 0.01):
        assert not getattr(selector, call)(0.05)
    assert time.monotonic() - before >= 0.05
    assert 1 <= len(ticks) < 500


@pytest.mark.parametrize("call", ["select", "dispatch"])
def test_what_a_signal_handler_raises_ends_the_wait(selector, call):
    def tick(*_: object) -> None:
        raise LookupError

    with pytest.raises(LookupError), ticking(tick, 0.01):
        getattr(selector, call)(None)


@pytest.mark.parametrize("call", ["select", "dispatch"])
def test_other_threads_run_while_it_waits(selector, pairs, call):
    sock, peer = pairs()
    selector.register(sock, READ, Handler())
    thread = threading.Thread(target=peer.send, args=(b"!",))
    thread.start()
    assert getattr(selector, call)(30)
    thread.join()


# -- dispatch


def test_dispatch_calls_what_is_ready_and_says_how_many(selector, ready, pairs):
    some = ready(3)
    idle = Handler()
    selector.register(pairs()[0], READ, idle)
    assert selector.dispatch(0) == 3
    assert [each.handler.masks for each in some] == [[READ]] * 3
    assert idle.masks == []


def test_dispatch_tells_what_each_is_ready_for(selector, pairs):
    sock, peer = pairs()
    peer.send(b"!")
    handler = Handler()
    selector.register(sock, READ | WRITE, handler)
    selector.dispatch()
    selector.modify(sock, WRITE, handler)
    selector.dispatch(None)
    assert handler.masks == [READ | WRITE, WRITE]


def test_dispatch_calls_all_of_very_many(selector, ready):
    many = ready(700, lambda handler: None)
    for _ in range(100):
        assert selector.dispatch(0) > 0
        if all(each.handler.masks for each in many):
            return
    pytest.fail("somebody starves")


@pytest.mark.parametrize("how", ["unregister", "close", "replace", "modify"])
def test_who_is_removed_within_the_turn_is_not_called(selector, ready, how):
    """Each stops the other: whoever comes first, one call is made."""
    later = Handler()

    def stop_the_other(handler):
        other = two[1] if handler is two[0].handler else two[0]
        if how == "modify":
            selector.modify(other.sock, WRITE, other.handler)
            return
        selector.unregister(other.sock)
        if how == "close":
            other.sock.close()
        if how == "replace":
            selector.register(other.sock, READ, later)

    two = ready(2, stop_the_other)
    assert selector.dispatch(0) == 1
    assert sorted(each.handler.masks for each in two) == [[], [READ]]
    assert later.masks == []


def test_who_was_replaced_within_the_turn_is_called_in_the_next(selector, ready):
    def replace_the_other(handler):
        selector.unregister(handler.sock)
        for each in two:
            if not each.handler.masks:
                selector.modify(each.sock, READ, later)

    later = Handler()
    two = ready(2, replace_the_other)
    for each in two:
        each.handler.sock = each.sock
    assert selector.dispatch(0) == 1
    assert selector.dispatch(0) == 1
    assert later.masks == [READ]


def test_a_number_used_again_within_the_turn_is_not_taken_for_its_predecessor(
    selector, ready, pairs
):
    newcomer = Handler()
    fresh, peer = pairs()
    peer.send(b"!")
    numbers = []

    def replace_the_other(handler):
        handler.action = lambda handler: None
        other = two[1] if handler is two[0].handler else two[0]
        numbers.append(other.sock.fileno())
        selector.unregister(other.sock)
        other.sock.close()
        selector.register(os.dup2(fresh.fileno(), numbers[0]), READ, newcomer)

    two = ready(2, replace_the_other)
    try:
        assert selector.dispatch(0) == 1
        assert newcomer.masks == []
        assert selector.dispatch(0) == 2
        assert newcomer.masks == [READ]
    finally:
        os.close(numbers[0])


def test_the_same_object_registered_again_within_the_turn_waits_for_the_next(selector, ready):
    def renew_the_other(handler):
        for each in two:
            each.handler.action = lambda handler: None
            if each.handler is not handler:
                selector.unregister(each.sock)
                selector.register(each.sock, READ, each.handler)

    two = ready(2, renew_the_other)
    assert selector.dispatch(0) == 1
    assert selector.dispatch(0) == 2
    assert sorted(len(each.handler.masks) for each in two) == [1, 2]


def test_a_handler_may_unregister_itself(selector, ready):
    def stop(handler):
        selector.unregister(handler.sock)

    (one,) = ready(1, stop)
    one.handler.sock = one.sock
    assert (selector.dispatch(0), selector.dispatch(0)) == (1, 0)
    assert len(one.handler.masks) == 1


def test_a_handler_that_only_the_selector_knows_lives_through_its_call(selector, pairs):
    sock, peer = pairs()
    peer.send(b"!")
    survived = []

    def stop(handler):
        selector.unregister(sock)
        survived.append(handler.masks)

    selector.register(sock, READ, Handler(stop))
    assert selector.dispatch(0) == 1
    assert survived == [[READ]]


def test_a_modification_by_itself_counts_from_the_next_turn(selector, pairs):
    sock, peer = pairs()
    peer.send(b"!")
    handler = Handler(lambda handler: selector.modify(sock, WRITE, handler))
    selector.register(sock, READ, handler)
    selector.dispatch(0)
    selector.dispatch(0)
    assert handler.masks == [READ, WRITE]


def test_new_events_bring_new_data_even_if_it_is_equal(selector, pairs):
    class Alike(Handler):
        def __eq__(self, other):
            return True

        __hash__ = None

    sock, peer = pairs()
    peer.send(b"!")
    before, after = Alike(), Alike()
    selector.register(sock, READ, before)
    assert selector.modify(sock, READ | WRITE, after).data is after
    assert selector.dispatch(0) == 1
    assert (before.masks, after.masks) == ([], [READ | WRITE])


def test_an_exception_propagates_and_the_rest_is_reported_next(selector, ready):
    class Boom(Exception):
        pass

    def explode(handler):
        for each in three:
            if each.handler is handler:
                each.sock.recv(1)
        raise Boom

    three = ready(3, explode)
    for called in (1, 2, 3):
        with pytest.raises(Boom):
            selector.dispatch(0)
        assert sum(len(each.handler.masks) for each in three) == called
    assert selector.dispatch(0) == 0
    assert [each.handler.masks for each in three] == [[READ]] * 3


def test_data_that_cannot_be_called_is_an_error_when_it_is_ready(selector, pairs):
    sock, peer = pairs()
    selector.register(sock, READ, "no handler")
    assert selector.dispatch(0) == 0
    peer.send(b"!")
    with pytest.raises(AttributeError):
        selector.dispatch(0)


def test_closing_the_selector_ends_the_turn(twin, pairs):
    selector = twin.Selector()
    handlers = [Handler(lambda _: selector.close()) for _ in range(3)]
    for handler in handlers:
        sock, peer = pairs()
        peer.send(b"!")
        selector.register(sock, READ, handler)
    assert selector.dispatch(0) == 1
    assert sum(len(handler.masks) for handler in handlers) == 1


def test_a_nested_turn_calls_the_others_and_keeps_its_promises(selector, ready):
    """The first to be called runs a turn of its own in which the others unregister themselves."""
    counts = []

    def nest(handler):
        for each in three:
            if each.handler is handler:
                selector.unregister(each.sock)
        if len(counts) == 0:
            counts.append(None)
            counts.append(selector.dispatch(0))

    three = ready(3, nest)
    assert selector.dispatch(0) == 1
    assert counts == [None, 2]
    assert [each.handler.masks for each in three] == [[READ]] * 3


def test_a_newcomer_of_a_turn_may_be_called_by_one_within_it(selector, ready):
    """And not by the outer one, which was told of the number before it was the newcomer's."""
    newcomer = Handler()

    def replace_the_other(handler):
        mine, other = two if handler is two[0].handler else reversed(two)
        selector.unregister(mine.sock)
        selector.unregister(other.sock)
        selector.register(other.sock, READ, newcomer)
        assert selector.dispatch(0) == 1

    two = ready(2, replace_the_other)
    assert selector.dispatch(0) == 1
    assert newcomer.masks == [READ]
    assert selector.dispatch(0) == 1
    assert newcomer.masks == [READ, READ]


def test_a_modification_that_fails_leaves_nobody_to_call(selector, ready):
    def break_the_other(handler):
        handler.action = lambda handler: None
        (other,) = (each for each in two if each.handler is not handler)
        number = other.sock.fileno()
        other.sock.close()
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            selector.modify(number, WRITE)

    two = ready(2, break_the_other)
    assert selector.dispatch(0) == 1
    assert selector.dispatch(0) == 1
    assert sorted(each.handler.masks for each in two) == [[], [READ, READ]]


def test_turns_nest_deeply_without_calling_anyone_who_has_gone(selector, ready):
    def nest(handler):
        for each in many:
            if each.handler is handler:
                selector.unregister(each.sock)
        selector.dispatch(0)

    many = ready(40, nest)
    assert selector.dispatch(0) == 1
    assert [each.handler.masks for each in many] == [[READ]] * 40
    assert len(selector.get_map()) == 0


def test_a_new_descriptor_in_the_turn_is_looked_at_in_the_next(selector, ready, pairs):
    newcomer = Handler()

    def invite(handler):
        if not newcomer.masks and len(selector.get_map()) == 1:
            fresh, peer = pairs()
            peer.send(b"!")
            selector.register(fresh, READ, newcomer)

    ready(1, invite)
    assert selector.dispatch(0) == 1
    assert newcomer.masks == []
    assert selector.dispatch(0) == 2
    assert newcomer.masks == [READ]


# -- run


def soon() -> float:
    """When a run that nobody stops would end."""
    return time.monotonic() + 60


def test_run_dispatches_until_it_is_stopped(selector, ready):
    (some,) = ready(1, lambda handler: selector.stop() if len(handler.masks) == 3 else None)
    selector.run(soon())
    assert some.handler.masks == [READ] * 3


def test_run_takes_one_turn_though_its_time_is_over(selector, ready):
    (some,) = ready(1)
    selector.run(0.0)
    assert some.handler.masks == [READ]


def test_run_ends_in_time_and_not_before(selector):
    until = time.monotonic() + 0.01
    selector.run(until)
    assert time.monotonic() >= until


def test_what_ended_run_is_seen_by_nobody_else(selector, pairs):
    sock, peer = pairs()
    selector.register(sock, READ, Handler())
    selector.run(time.monotonic() + 0.001)
    assert (selector.select(0.002), selector.dispatch(0.002)) == ([], 0)
    selector.run(0.0)
    assert (selector.select(0.002), selector.dispatch(0)) == ([], 0)
    peer.send(b"!")
    assert [events for _, events in selector.select(30)] == [READ]


def test_what_is_raised_ends_run_and_it_can_be_taken_up_again(selector, ready):
    def act(handler):
        if len(handler.masks) == 1:
            raise LookupError
        selector.stop()

    (some,) = ready(1, act)
    with pytest.raises(LookupError):
        selector.run(soon())
    selector.run(soon())
    assert some.handler.masks == [READ] * 2


def test_signal_handlers_run_between_the_turns_of_a_run(selector, pairs):
    until = soon()
    before = signal.signal(signal.SIGHUP, lambda *_: selector.stop())
    try:
        # Always ready, so that a signal never interrupts a wait, and no line of Python is run.
        sock, peer = pairs()
        peer.send(b"!")
        assert signal.SIGHUP == READ
        selector.register(sock, READ, SimpleNamespace(on_event=signal.raise_signal))
        selector.run(until)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert time.monotonic() < until


#: Calls what modules in C call, as often as there are types that it takes, and once more.
MANY_TYPES = """
import ctypes, sys
from fastecho._native import selector
pointer = ctypes.pythonapi.PyCapsule_GetPointer
pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
address = pointer(selector.__pyx_capi__["call_directly"], b"int (PyTypeObject *)")
call_directly = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object)(address)
for _ in range(8):
    call_directly(selector.Handler)
for _ in range(2):
    try:
        call_directly(selector.Handler)
    except OverflowError as error:
        print(error)
"""


def test_a_ninth_type_to_be_called_in_c_is_refused():
    load("native")
    done = run(sys.executable, "-c", MANY_TYPES)
    assert (done.stdout, done.stderr) == (b"too many types\n" * 2, b"")
