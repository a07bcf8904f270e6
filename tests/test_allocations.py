"""The nth allocation fails: the right bytes or a clean close, nothing leaked, others unaffected."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from reference import Framing
from sites import Site

from fastecho.udp import Udp

testcapi = pytest.importorskip("_testcapi", reason="CPython's own test modules are not here")

PARTS = (b"<", "seq", b"/", "len", b"/", "utc", b">")
MESSAGES = [b"m" * size for size in (0, 3, 30, 2, 1)]
#: More than one turn allocates in either twin, so that the last of them fail nowhere.
ENOUGH = 400


def without(number: int, call: Callable[..., Any], *arguments: Any) -> Any:
    """What the call gives in which this allocation fails; None: it gives up."""
    tracer = sys.gettrace()
    sys.settrace(None)  # whoever measures coverage is not under test
    after = number + 1
    try:
        testcapi.set_nomemory(number, after)
        return call(*arguments)
    except MemoryError:
        return None
    finally:
        testcapi.remove_mem_hooks()
        sys.settrace(tracer)


@pytest.fixture(autouse=True)
def interpreter_survives(twin: Any) -> None:
    if twin.name == "pure" and sys.version_info >= (3, 12):
        pytest.skip("CPython itself crashes here, in Python code, when its memory runs out")


def are_replies(data: bytes, messages: list[bytes]) -> bool:
    """Whether these are the first replies to the messages, whole and in order."""
    lines = data.split(b"\n")
    return lines.pop() == b"" and all(
        line.startswith(b"<%d/%d/" % (number, len(message))) and line.endswith(b">" + message)
        for number, (line, message) in enumerate(zip(lines, messages[: len(lines)], strict=True), 1)
    )


def read_what_came(client: socket.socket, site: Site) -> bytes:
    """Everything up to the end; a close with unread input is a reset."""
    data = b""
    while True:
        site.selector.dispatch(0)
        try:
            piece = client.recv(65_536)
        except BlockingIOError:
            continue
        except ConnectionResetError:
            return data
        if not piece:
            return data
        data += piece


def talk(number: int, twin: Any, first: int) -> dict[str, int]:
    """A client, `first` bytes of which come a turn before the rest; how its stream ended."""
    descriptors = len(os.listdir("/proc/self/fd"))
    site = Site(twin, parts=PARTS, framing=Framing("delimiter", 1_000, b"\n"))
    with site.stack:
        other, _ = site.accepted()
        client, stream = site.accepted()
        wire = b"".join(message + b"\n" for message in MESSAGES)
        if first:
            client.send(wire[:first])
            site.until(lambda: stream.pending)
        client.send(wire[first:])
        without(number, site.selector.dispatch, 0)
        with suppress(OSError):  # reset already
            client.shutdown(socket.SHUT_WR)
        got = read_what_came(client, site)
        site.until(lambda: stream.closed)
        assert are_replies(got, MESSAGES), number
        assert site.listener.closed in ({"eof": 1}, {"enomem": 1}), number
        if "eof" in site.listener.closed:
            assert got.count(b"\n") == len(MESSAGES), number
        other.send(b"still here\n")
        assert site.read(other, 6).startswith(b"<1/10/"), number
        reasons = dict(site.listener.closed)
    assert len(os.listdir("/proc/self/fd")) == descriptors, number
    return reasons


@pytest.mark.parametrize("first", [0, 7], ids=["whole", "in parts"])
def test_a_stream_answers_or_ends(twin: Any, first: int) -> None:
    talk(0, twin, first)  # what is made once is made now
    ended = [talk(number, twin, first) for number in range(ENOUGH)]
    assert ended[-1] == {"eof": 1}
    # Once the second is planned, a native stream allocates only what it must keep.
    assert {"enomem": 1} in ended or (twin.name == "native" and first)


def test_a_datagram_is_answered_or_counted(twin: Any) -> None:
    """Whatever fails, the others of its batch are answered."""
    sent = [b"%d" % number for number in range(5)]
    with (
        twin.Selector() as selector,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        client.connect(sock.getsockname())
        client.setblocking(False)
        datagrams = twin.Datagrams(sock, selector, twin.Stamper(PARTS), Udp())
        short = 0
        for number in range(ENOUGH):
            before = sum(datagrams.unanswered.values())
            for message in sent:
                client.send(message)
            without(number, selector.dispatch, 0)
            client.send(b"last")
            got = []
            while b"last" not in got:
                selector.dispatch(0)
                with suppress(BlockingIOError):
                    got.append(client.recv(200).partition(b">")[2])
            lost = sum(datagrams.unanswered.values()) - before
            short += lost
            assert [message for message in [*sent, b"last"] if message in got] == got, number
            # In Python, what is sent may find no memory for how much that was.
            assert len(got) + lost in ((6, 7) if twin.name == "pure" else (6,)), number
        assert set(datagrams.unanswered) <= {"enomem"}
        assert short or twin.name == "native"
        assert lost == 0
        datagrams.close()


def test_a_newcomer_is_served_or_closed_and_the_others_are_served(twin: Any) -> None:
    if twin.name == "pure":
        pytest.skip("Python's own accept() may lose a descriptor that it has no memory for")
    for number in range(60):
        descriptors = len(os.listdir("/proc/self/fd"))
        site = Site(twin, parts=PARTS, framing=Framing("delimiter", 1_000, b"\n"))
        with site.stack:
            first, second = site.connect(), site.connect()
            without(number, site.selector.dispatch, 0)
            site.listener.shared.wake()
            heads = []
            for client in (first, second):
                with suppress(ConnectionError):
                    client.send(b"served\n")
                    heads.append(site.read(client, 5))
            assert heads.count(b"<1/6/") >= 1, number
            assert set(heads) <= {b"<1/6/", b""}, number
        assert len(os.listdir("/proc/self/fd")) == descriptors, number


def test_a_stream_that_is_drained_ends_alone_when_memory_runs_out(twin: Any) -> None:
    for number in range(60):
        site = Site(twin, parts=PARTS, framing=Framing("delimiter", 1_000, b"\n"))
        with site.stack:
            client, stream = site.accepted()
            client.send(b"one\ntwo\n")
            assert without(number, stream.drain), number
            assert stream.closed or are_replies(client.recv(100), [b"one", b"two"])


def test_an_echo_is_right_or_raises(twin: Any) -> None:
    """What was fed to an `Echo` that ran out of memory is the caller's to judge, never garbage."""
    for number in range(40):
        echo = twin.Echo(twin.DelimiterCodec(b"\n", 100), twin.Stamper(PARTS))
        said = without(number, echo.feed, b"one\ntwo\nthr", 0)
        if said is not None:
            assert are_replies(said, [b"one", b"two"])
            assert echo.pending == 3
