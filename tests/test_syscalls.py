"""Whatever the kernel answers to a system call, the same bytes go out, once, and nothing leaks.

The server under test is a process of its own, in which `shim/shim.c` gives the results that a
script asks for; the clients are here, and speak to the kernel alone.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
import reference
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Framing
from sites import LINE, PATIENCE, patiently

from fastecho import running
from fastecho.limits import ACCEPT_BUDGET, DATAGRAM_BATCH

SHIM = Path(__file__).parent / "shim"

FRAMINGS = (LINE, Framing("length", 40, width=1), Framing("netstring", 40))
#: What each framing's replies begin with: one that is made for each message, one that is not.
TEMPLATES = {"[{seq} {len}]": (b"[", "seq", b" ", "len", b"]"), "[]": (b"[]",)}
#: Small, so that a few lines need several `recv`s, and their replies several `send`s.
RECEIVE, SEND = 64, 128

#: The kernel will do it later, or was interrupted.
PASSING = [-errno.EAGAIN, -errno.EINTR, -errno.ENOBUFS, -errno.ENOMEM]
FATAL = [-errno.ECONNRESET, -errno.EPIPE, -errno.ETIMEDOUT, -errno.EHOSTUNREACH]
#: Of a connection once it is watched.
SCRIPTED = ("recv", "send", "modify", "unwatch", "shutdown")
#: Of epoll_ctl(2) for a descriptor that is watched: short of memory, and one that cannot be.
UNCHANGED = [-errno.ENOMEM, -errno.ENOENT]
#: The errors with which these calls end a connection that still has something to do.
ENDING = {"recv": FATAL, "send": FATAL, "modify": UNCHANGED}

#: Of accept(2): that connection failed, the next may not have; none can be accepted for now.
PASSED_OVER = [
    errno.EAGAIN,
    errno.EINTR,
    errno.ECONNABORTED,
    errno.EPERM,
    errno.EPROTO,
    errno.ENOPROTOOPT,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENONET,
    errno.EOPNOTSUPP,
]
EXHAUSTED = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]

#: Of a datagram: the socket's own trouble, or what the network said of an earlier one.
NOT_RECEIVED = [*PASSING, -errno.ECONNREFUSED, -errno.EHOSTUNREACH, -errno.ENETDOWN]
NOT_SENT = [
    *PASSING,
    -errno.EACCES,
    -errno.ECONNREFUSED,
    -errno.EHOSTUNREACH,
    -errno.EINVAL,
    -errno.EMSGSIZE,
    -errno.ENETDOWN,
    -errno.ENETUNREACH,
    -errno.EPERM,
]

HELLO = b"still there?\n"


class Server:
    """The process, and its answers."""

    def __init__(self, twin: str, shim: Path) -> None:
        preload = ":".join(filter(None, (os.environ.get("LD_PRELOAD"), str(shim))))
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.one_at_a_time = twin == "native"
        self.process = subprocess.Popen(
            [sys.executable, SHIM / "server.py", twin],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            bufsize=0,
            env={**os.environ, "LD_PRELOAD": preload},
        )
        self.ports = {
            (framing, template): self.ask(
                "listen", framing.spec, template, framing.max_frame, RECEIVE, SEND
            )
            for framing in FRAMINGS
            for template in TEMPLATES
        }
        self.line_port = self.ports[LINE, "[]"]
        # A kernel without the offloads: then each reply is a send.
        self.ask("script", "option", 0, [-errno.ENOPROTOOPT] * 2)
        self.udp_port = self.ask("datagrams", "[{seq} {len}]")
        self.bystander = connect(self.line_port)

    def ask(self, name: str, *arguments: object) -> Any:
        """Have a command done; its answer."""
        answer = b""
        try:
            self.process.stdin.write(json.dumps([name, *arguments]).encode() + b"\n")
            while not answer.endswith(b"\n"):
                readable, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
                piece = os.read(self.process.stdout.fileno(), 65536) if readable else b""
                if not piece:
                    self.give_up("ended" if readable else "hangs")
                answer += piece
        except BrokenPipeError:
            self.give_up("ended")
        return json.loads(answer)

    def give_up(self, why: str) -> NoReturn:
        self.close()
        self.errors.seek(0)
        pytest.fail(f"the server {why}: {self.errors.read().decode()[-2000:]}")

    def reset(self) -> None:
        """Forget what a test that failed has left."""
        self.ask("reset")
        self.bystander.close()
        self.bystander = connect(self.line_port)
        self.serves_others()

    def serves_others(self) -> None:
        """A connection that is not scripted gets its answer."""
        with suppress(ConnectionError):
            self.bystander.sendall(HELLO)
        answer = read(self.bystander, 2 + len(HELLO))
        if not answer:
            self.give_up("left a bystander")
        assert answer == b"[]" + HELLO

    def settled(self) -> Counter[str]:
        """The state once all connections but the bystander's have ended."""
        for _ in patiently():
            state = self.ask("state")
            if state["open"] == 1:
                return Counter(state)
        pytest.fail(f"connections are left: {state}")

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    def close(self) -> int:
        self.bystander.close()
        self.process.stdin.close()
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.process.stdout.close()
        return status


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    built = tmp_path_factory.mktemp("shim") / "shim.so"
    command = [compiler, "-Wall", "-O1", "-shared", "-fPIC", "-o", built, SHIM / "shim.c", "-ldl"]
    subprocess.run(command, check=True)
    return built


@pytest.fixture(scope="module")
def servers(twin, shim) -> Iterator[list[Server]]:
    """The one that runs; the next if it had to be given up."""
    servers: list[Server] = []
    yield servers
    for server in servers:
        if server.running:
            assert server.close() == 0
        server.errors.close()


@pytest.fixture(scope="module")
def server(twin, shim, servers):
    """Gives the running server."""

    def server() -> Server:
        if not servers or not servers[-1].running:
            servers.append(Server(twin.name, shim))
        else:
            servers[-1].reset()
        return servers[-1]

    return server


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def read(client: socket.socket, size: int) -> bytes:
    """So many bytes, or what comes before the end."""
    data = b""
    try:
        while len(data) < size and (piece := client.recv(size - len(data))):
            data += piece
    except (ConnectionResetError, BrokenPipeError):
        pass
    return data


# -- TCP


@dataclass
class Talk:
    """One client: what it sends, and what the kernel answers to its server.

    Attributes:
        waits: whether the client reads all that is due before it ends its stream.
        scripts: of the `SCRIPTED` calls; if a step is fatal, it is the last.
    """

    framing: Framing
    template: str
    stream: bytes
    waits: bool = False
    scripts: dict[str, list[int]] = field(default_factory=dict)

    def fatal(self, name: str) -> str | None:
        """The reason for which the script ends the connection, if it does."""
        step = [0, *self.scripts.get(name, [])][-1]
        if step not in ENDING.get(name, []):
            return None
        lost = step in (-errno.ECONNRESET, -errno.EPIPE)
        return "reset" if lost else errno.errorcode[-step].lower()

    def replies(self, ended: bool) -> bytes:
        parts = TEMPLATES[self.template]
        return b"".join(
            reference.reply(
                self.framing, frame, reference.render(parts, 0, seq, len(frame.message))
            )
            for seq, frame in enumerate(self.verdict(ended).frames, 1)
        )

    def verdict(self, ended: bool) -> reference.Verdict:
        return reference.judge(self.framing, self.stream, ended)

    def start(self, server: Server) -> socket.socket:
        client = socket.socket()
        client.settimeout(PATIENCE)
        client.bind(("127.0.0.1", 0))
        for operation in SCRIPTED:
            steps = self.scripts.get(operation, [])
            server.ask("script", operation, client.getsockname()[1], steps)
        client.connect(("127.0.0.1", server.ports[self.framing, self.template]))
        client.sendall(self.stream)
        if not self.waits:
            client.shutdown(socket.SHUT_WR)
        return client

    def listen(self, client: socket.socket) -> bytes:
        """What the client gets in the end."""
        if not self.waits:
            return read(client, 1 << 20)
        received = read(client, len(self.replies(ended=False)))
        try:
            client.shutdown(socket.SHUT_WR)
        except OSError as error:
            assert error.errno == errno.ENOTCONN  # noqa: PT017
        return received + read(client, 1 << 20)


def harmless(longest: int) -> st.SearchStrategy[list[int]]:
    """Short counts, and errors that pass."""
    step = st.one_of(st.just(0), st.integers(1, longest), st.sampled_from(PASSING))
    return st.lists(step, max_size=12)


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    framing = draw(st.sampled_from(FRAMINGS))
    scripts = {"recv": draw(harmless(RECEIVE + 1)), "send": draw(harmless(SEND + 1))}
    end = draw(st.sampled_from([None, None, "recv", "send", "shutdown"]))
    if end is not None:
        fatal = -errno.ENOTCONN if end == "shutdown" else draw(st.sampled_from(FATAL))
        scripts.setdefault(end, []).append(fatal)
    return Talk(
        framing,
        draw(st.sampled_from(sorted(TEMPLATES))),
        draw(strategies.streams(framing)),
        draw(st.booleans()),
        scripts,
    )


def check(server: Server, talks: list[Talk], waiting: list[int]) -> Counter[str]:
    """Hold the talks all at once, and judge what came of them.

    Returns:
        what has changed since, and how many steps of each call's scripts are `unused`.
    """
    before = server.settled()
    server.ask("hold")
    with ExitStack() as clients:
        started = [clients.enter_context(talk.start(server)) for talk in talks]
        ports = [client.getsockname()[1] for client in started]
        server.ask("script", "wait", 0, waiting)
        server.ask("go")
        server.serves_others()
        received = [talk.listen(client) for talk, client in zip(talks, started, strict=True)]
    since = server.settled()
    since.subtract(before)
    since["unused.wait"], _ = server.ask("forget", "wait", 0)

    clean = True
    passed = Counter(send=len(b"[]" + HELLO), recv=len(HELLO))
    allowed = []
    for talk, port, got in zip(talks, ports, received, strict=True):
        reasons = {talk.verdict(ended=True).reason or "eof"}
        due = talk.replies(ended=True)
        for name in SCRIPTED:
            left, size = server.ask("forget", name, port)
            passed[name] += size
            since["unused." + name] += left
            if left == 0 and (fatal := talk.fatal(name)):
                reasons.add(fatal)
                clean = False
                due = due[: len(got)]
        assert got == due
        allowed.append(reasons)

    assert since["accepted"] == len(talks)
    assert since["descriptors"] == since["streams"] == since["open"] == 0
    assert closed(since) in [Counter(reasons) for reasons in itertools.product(*allowed)]
    assert since["bytes_out"] == passed["send"]
    if clean:
        assert since["messages"] == 1 + sum(len(talk.verdict(ended=True).frames) for talk in talks)
    if all(talk.verdict(ended=True).reason is None for talk in talks):
        assert since["bytes_in"] == passed["recv"]
    return since


def closed(state: Counter[str]) -> Counter[str]:
    """How many connections have ended, by reason."""
    return Counter({key[7:]: n for key, n in state.items() if key.startswith("closed.") and n})


@settings(max_examples=2 * settings.default.max_examples)
@given(
    talks=st.lists(talks(), min_size=1, max_size=3),
    waiting=st.lists(st.sampled_from([0, 1, 2, -errno.EINTR]), max_size=8),
)
def test_every_reply_goes_out_once_whatever_the_kernel_answers(server, talks, waiting):
    check(server(), talks, waiting)


@pytest.mark.parametrize("number", FATAL)
@pytest.mark.parametrize("call", ["recv", "send"])
def test_an_error_ends_its_connection_alone_and_is_counted(server, call, number):
    """The second call fails: two lines are answered, and two bytes of that may be unsent."""
    lines = (b"x" * 30 + b"\n") * 8
    talk = Talk(LINE, "[]", lines, scripts={call: [64, number]})
    other = Talk(LINE, "[]", lines)
    since = check(server(), [talk, other], [])
    assert closed(since) == Counter(["eof", talk.fatal(call)])
    first = {"recv": 2 * 33, "send": 64}[call]
    assert since["bytes_out"] == first + len(other.replies(ended=True)) + len(b"[]" + HELLO)


@pytest.mark.parametrize(
    ("framing", "stream"), [(LINE, b"ok\n" + b"x" * 50), (FRAMINGS[1], b"\2ok\5cut")]
)
def test_a_peer_lost_before_its_fault_was_seen_is_counted_as_lost(server, framing, stream):
    since = check(server(), [Talk(framing, "[]", stream, scripts={"send": [-errno.EPIPE]})], [])
    assert closed(since) == Counter(["reset"])


@pytest.mark.parametrize("calls_before", range(8))
@pytest.mark.parametrize("number", [*PASSING, *FATAL])
@pytest.mark.parametrize("call", ["recv", "send"])
def test_each_error_in_the_place_of_each_call(server, call, number, calls_before):
    """The calls before it take 40 bytes, so that the error comes within lines and between them."""
    lines = (b"x" * 30 + b"\n") * 8
    talk = Talk(LINE, "[]", lines, scripts={call: [40] * calls_before + [number]})
    check(server(), [talk, Talk(LINE, "[]", lines)], [])


#: The kernel takes three bytes of each piece of replies, and the rest once that was waited for.
IN_TWO = [3, 0] * 4
#: What a stream does then; its input, how often it comes to wait for something else, and its end.
WAITING_TO_WRITE = {
    "reads on": ((b"x" * 30 + b"\n") * 8, 8, "eof"),
    "lingers": (b"x" * 20 + b"\n" + b"y" * 50, 2, "too_long"),
    "ends": (b"the tail", 1, "eof"),
}


@pytest.mark.parametrize(
    ("then", "calls_before"),
    [(then, place) for then, (_, n, _) in WAITING_TO_WRITE.items() for place in range(n)],
)
@pytest.mark.parametrize("number", UNCHANGED)
def test_a_stream_that_cannot_wait_for_anything_else_ends_alone(server, number, then, calls_before):
    """What was sent until then is right; a fault that was counted before stays the reason."""
    stream, _, reason = WAITING_TO_WRITE[then]
    scripts = {"send": IN_TWO, "modify": [0] * calls_before + [number]}
    talk = Talk(LINE, "[]", stream, scripts=scripts)
    since = check(server(), [talk, Talk(LINE, "[]", b"ok\n")], [])
    assert since["unused.modify"] == 0
    if (then, calls_before) != ("lingers", 1):
        reason = talk.fatal("modify")
    assert closed(since) == Counter(["eof", reason])


@pytest.mark.parametrize("then", WAITING_TO_WRITE)
@pytest.mark.parametrize("number", [*UNCHANGED, -errno.EBADF])
def test_a_stream_that_cannot_be_unwatched_is_closed_all_the_same(server, twin, number, then):
    """The kernel forgets a descriptor that is closed; the number is watched again at once.

    Native leaves it to the kernel anyway, as long as no process was forked.
    """
    server = server()
    stream, _, reason = WAITING_TO_WRITE[then]
    for _ in range(3):
        talk = Talk(LINE, "[]", stream, scripts={"send": IN_TWO, "unwatch": [number]})
        since = check(server, [talk], [])
        assert since["unused.unwatch"] == (1 if twin.name == "native" else 0)
        assert closed(since) == Counter([reason])


@pytest.mark.parametrize("lines_before", range(4))
@pytest.mark.parametrize("sends", [[], IN_TWO], ids=["sent at once", "sent in two"])
@pytest.mark.parametrize(
    "number", [errno.ENOTCONN, errno.EINVAL, errno.ENOBUFS, errno.ECONNRESET, errno.EPIPE]
)
def test_a_stream_at_fault_that_cannot_be_shut_down_is_closed(server, number, sends, lines_before):
    """At once, and what was sent before still arrives; the fault stays the reason."""
    stream = (b"x" * 20 + b"\n") * lines_before + b"y" * 50
    talk = Talk(LINE, "[]", stream, scripts={"send": sends, "shutdown": [-number]})
    since = check(server(), [talk, Talk(LINE, "[]", b"ok\n")], [])
    assert since["unused.shutdown"] == 0
    assert closed(since) == Counter(["too_long", "eof"])


@pytest.mark.parametrize("calls_before", range(12))
@pytest.mark.parametrize("step", [1, 2, -errno.EINTR])
def test_each_wait_may_be_interrupted_and_may_find_few(server, step, calls_before):
    lines = (b"x" * 30 + b"\n") * 8
    scripts = [{"send": [40] * 8}, {"recv": [40] * 8}, {}]
    talks = [Talk(LINE, "[{seq} {len}]", lines, scripts=each) for each in scripts]
    since = check(server(), talks, [0] * calls_before + [step])
    assert since["unused.wait"] == 0


@pytest.mark.parametrize("number", PASSING)
@pytest.mark.parametrize("call", ["recv", "send"])
def test_what_passes_is_tried_again(server, call, number):
    talk = Talk(LINE, "[]", b"one\ntwo\n", scripts={call: [number] * 20})
    check(server(), [talk], [])


@pytest.mark.parametrize("call", ["recv", "send"])
def test_a_byte_at_a_time_is_enough(server, call):
    stream = b"".join(b"%d\n" % i for i in range(100))
    check(server(), [Talk(LINE, "[{seq} {len}]", stream, True, {call: [1] * 5000})], [])


def test_a_fault_lingers_through_errors_that_pass(server):
    talk = Talk(LINE, "[]", b"ok\n" + b"x" * 200, scripts={"recv": [70, *PASSING, 1, *PASSING]})
    check(server(), [talk], [])


# -- listeners


def accepting(
    server: Server, steps: list[int], clients: int = 2, watches: list[int] | None = None
) -> list[int]:
    """Connect while `accept`, and epoll_ctl for the listener, give these results; the rests taken.

    Those accepted before a rest are served while it lasts, and all in the end.
    """
    before = server.settled()
    rests = len(server.ask("rests"))
    server.ask("hold")
    server.ask("script", "accept", server.line_port, steps)
    server.ask("script", "watch", server.line_port, watches or [])
    made = [connect(server.line_port) for _ in range(clients)]
    server.ask("go")
    for _ in patiently():  # others are served all the while
        server.serves_others()
        taken = server.ask("rests")[rests:]
        if taken or server.ask("state")["accepted"] - before["accepted"] == clients:
            break
    for client in made[: server.ask("state")["accepted"] - before["accepted"]]:
        answers(client, b"me first\n")
    for _ in patiently():
        if server.ask("state")["accepted"] - before["accepted"] == clients:
            break
        server.ask("sweep")
    # With nobody else at work, native takes one for an event, and does not look for another.
    beyond = server.one_at_a_time and len(steps) > clients and not any(steps[:clients])
    assert server.ask("forget", "accept", server.line_port)[0] == beyond
    assert server.ask("forget", "watch", server.line_port)[0] == 0
    for client in made:
        with client:
            answers(client, b"me too\n")
    since = server.settled()
    since.subtract(before)
    assert since["descriptors"] == since["streams"] == 0
    assert closed(since) == Counter(eof=clients)
    return taken


def answers(client: socket.socket, line: bytes) -> None:
    client.sendall(line)
    assert read(client, 2 + len(line)) == b"[]" + line


@pytest.mark.parametrize("number", PASSED_OVER)
def test_a_connection_that_failed_before_it_was_accepted_is_passed_over(server, number):
    assert accepting(server(), [-number, 0, -number, -number]) == []


@pytest.mark.parametrize(
    ("clients", "calls_before"),
    [
        *[(4, calls_before) for calls_before in range(5)],
        *[(ACCEPT_BUDGET + 2, ACCEPT_BUDGET + more) for more in (-1, 0, 1)],
    ],
)
@pytest.mark.parametrize("number", [*PASSED_OVER, *EXHAUSTED])
def test_each_error_in_the_place_of_each_accept(server, number, clients, calls_before):
    """After the last client too, if it looks; and about the budget's end."""
    server = server()
    looks = calls_before < clients or not server.one_at_a_time
    taken = accepting(server, [0] * calls_before + [-number], clients)
    assert taken == ([number] if number in EXHAUSTED and looks else [])


def test_a_listener_rests_again_if_it_still_cannot(server):
    assert accepting(server(), [0, -errno.EMFILE, -errno.ENFILE]) == [errno.EMFILE]
    assert server().ask("rests")[-2:] == [errno.EMFILE, errno.ENFILE]


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
def test_a_listener_that_cannot_be_watched_again_rests_on(server, number, times):
    taken = accepting(server(), [0, -errno.EMFILE], watches=[-number] * times)
    assert taken == [errno.EMFILE]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
def test_a_connection_that_cannot_be_watched_is_closed_and_the_next_wait(server, number, place):
    server = server()
    before = server.settled()
    rests = len(server.ask("rests"))
    server.ask("hold")
    with ExitStack() as clients:
        crowd = [clients.enter_context(connect(server.line_port)) for _ in range(4)]
        refused = crowd.pop(place)
        port = refused.getsockname()[1]
        server.ask("script", "watch", port, [-number])
        for client in crowd:
            client.sendall(b"my turn?\n")
        server.ask("go")
        assert read(refused, 1) == b""
        server.serves_others()
        assert server.ask("rests")[rests:] == [number]
        assert server.ask("state")["accepted"] - before["accepted"] == place
        for served, client in enumerate(crowd):
            if served == place:
                server.ask("sweep")
            assert read(client, 11) == b"[]my turn?\n"
        server.ask("forget", "watch", port)
    since = server.settled()
    since.subtract(before)
    assert since["accepted"] == 3
    assert since["descriptors"] == since["streams"] == 0
    assert closed(since) == Counter(eof=3)


def test_out_of_descriptors_the_rest_is_served_and_newcomers_later(server):
    server = server()
    before = server.settled()
    server.ask("descriptors", 1)
    with connect(server.line_port) as first, connect(server.line_port) as second:
        first.sendall(b"one\n")
        assert read(first, 6) == b"[]one\n"
        second.sendall(b"two\n")
        server.serves_others()
        assert server.ask("rests")[-1] == errno.EMFILE
        server.ask("descriptors", None)
        server.ask("sweep")
        assert read(second, 6) == b"[]two\n"
    assert server.settled()["descriptors"] == before["descriptors"]


def test_a_server_that_rested_accepts_again_by_itself(twin):
    with running(prefix="", backend=twin.name) as server, socket.socket() as newcomer:
        newcomer.settimeout(PATIENCE)
        with socket.create_connection(server.tcp_address, PATIENCE) as old:
            old.sendall(b"in time\n")
            assert read(old, 8) == b"in time\n"
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (newcomer.fileno(), hard))
            try:
                newcomer.connect(server.tcp_address)
                newcomer.sendall(b"too late\n")
                for _ in range(10):
                    old.sendall(b"still there?\n")
                    assert read(old, 13) == b"still there?\n"
                assert server.counters["connections"] == 1
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert read(newcomer, 9) == b"too late\n"


# -- datagrams


def exchange(
    server: Server, lengths: list[int], received: list[int], sent: list[int]
) -> Counter[str]:
    """Send a burst of datagrams while the kernel gives these results; the unanswered, by reason."""
    messages = [bytes([65 + number % 26]) * length for number, length in enumerate(lengths)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.bind(("127.0.0.1", 0))
        port = client.getsockname()[1]
        before = server.settled()
        server.ask("hold")
        server.ask("script", "recv", server.udp_port, received)
        server.ask("script", "send", port, sent)
        for message in messages:
            client.sendto(message, ("127.0.0.1", server.udp_port))
        server.ask("go")
        server.serves_others()
        for _ in patiently():
            since = server.settled()
            if since["datagrams"] - before["datagrams"] == len(messages):
                break
        since.subtract(before)
        left, _ = server.ask("forget", "recv", server.udp_port)
        unanswered = Counter(
            errno.errorcode[-step].lower()
            for step in received[: len(received) - left]
            if step < 0 and step not in (-errno.EAGAIN, -errno.EINTR)
        )
        steps = iter(sent)
        for seq, message in enumerate(messages, before["datagrams"] + 1):
            step = next((step for step in steps if step != -errno.EINTR), 0)
            if step < 0:
                unanswered[errno.errorcode[-step].lower()] += 1
            else:
                assert client.recv(65536) == b"[%d %d]" % (seq, len(message)) + message
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
        assert server.ask("forget", "send", port)[0] == len(list(steps))
    assert {key[11:]: n for key, n in since.items() if n and key.startswith("un")} == unanswered
    return unanswered


@given(
    lengths=st.lists(st.integers(0, 100), min_size=1, max_size=100),
    received=st.lists(st.sampled_from([0, 1, *PASSING]), max_size=40),
    sent=st.lists(
        st.sampled_from([0, 0, 0, 1, *PASSING, -errno.EPERM, -errno.EMSGSIZE, -errno.ENETUNREACH]),
        max_size=110,
    ),
)
def test_each_datagram_has_a_fate_of_its_own(server, lengths, received, sent):
    exchange(server(), lengths, received, sent)


@pytest.mark.parametrize(
    "calls_before", [*range(6), *range(DATAGRAM_BATCH - 2, DATAGRAM_BATCH + 2)]
)
@pytest.mark.parametrize(
    ("call", "step"),
    [
        *[("recv", step) for step in [1, *NOT_RECEIVED]],
        *[("send", step) for step in [1, *NOT_SENT]],
    ],
)
def test_each_error_in_the_place_of_each_datagram(server, call, step, calls_before):
    """Within a batch, and about its end: a reply that is refused is lost, a datagram never is."""
    steps = [0] * calls_before + [step]
    lengths = [number % 5 for number in range(DATAGRAM_BATCH + 2)]
    unanswered = exchange(
        server(), lengths, steps if call == "recv" else [], steps if call == "send" else []
    )
    passes = {"recv": (1, -errno.EAGAIN, -errno.EINTR), "send": (1, -errno.EINTR)}[call]
    assert unanswered == (Counter() if step in passes else {errno.errorcode[-step].lower(): 1})


# -- segmented sends


def burst(
    server: Server, lengths: list[int], sent: list[int]
) -> tuple[list[bytes], list[bytes], Counter[str]]:
    """A burst to a socket of its own while sends get these results; what came of what was due.

    Returns:
        the replies, those that all would be, and what has changed.
    """
    messages = [b"%02d" % number + b"x" * length for number, length in enumerate(lengths)]
    port = server.ask("datagrams", "[]")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        client.connect(("127.0.0.1", port))
        own = client.getsockname()[1]
        before = server.settled()
        server.ask("hold")
        server.ask("script", "send", own, sent)
        for message in messages:
            client.send(message)
        server.ask("go")
        for _ in patiently():
            since = server.settled()
            if since["datagrams"] - before["datagrams"] == len(messages):
                break
        since.subtract(before)
        server.ask("forget", "send", own)
        client.setblocking(False)
        received = []
        with suppress(BlockingIOError):
            while True:
                received.append(client.recv(65536))
    return received, [b"[]" + message for message in messages], since


def group(state: Counter[str], name: str) -> Counter[str]:
    """The counters of a group, by reason."""
    return Counter(
        {
            key[len(name) + 1 :]: n
            for key, n in state.items()
            if n and key[: len(name) + 1] == name + "."
        }
    )


NO_SEGMENTS = [errno.EIO, errno.EINVAL, errno.EMSGSIZE]


@pytest.mark.parametrize("number", [*NO_SEGMENTS, errno.EAGAIN, errno.ENOBUFS, errno.EPERM])
def test_replies_of_a_segmented_send_that_is_refused_go_one_by_one(server, number):
    received, due, since = burst(server(), [5, 5, 5, 3], [-number])
    assert received == due
    assert group(since, "resent") == Counter([errno.errorcode[number].lower()])
    assert group(since, "unanswered") == Counter()
    assert since["segments"] == (-1 if number in NO_SEGMENTS else 0)
    assert since["bytes_out"] == sum(map(len, due))


def test_what_is_interrupted_is_sent_again(server):
    received, due, since = burst(server(), [5, 5, 5], [-errno.EINTR, -errno.EIO, -errno.EINTR])
    assert received == due
    assert group(since, "resent") == Counter(["eio"])


@pytest.mark.parametrize("place", range(3))
def test_each_reply_of_a_refused_send_has_a_fate_of_its_own(server, place):
    steps = [-errno.EIO, *[0] * place, -errno.ENETUNREACH]
    received, due, since = burst(server(), [5, 5, 4], steps)
    assert received == due[:place] + due[place + 1 :]
    assert group(since, "unanswered") == Counter(["enetunreach"])


@given(
    lengths=st.lists(st.sampled_from([0, 1, 9, 9, 9, 9]), min_size=1, max_size=90),
    sent=st.lists(
        st.sampled_from([0, 0, 0, *PASSING, -errno.EIO, -errno.EPERM, -errno.EMSGSIZE]),
        max_size=40,
    ),
)
def test_no_reply_is_sent_twice_or_lost_uncounted(server, lengths, sent):
    received, due, since = burst(server(), lengths, sent)
    rest = iter(due)
    assert all(reply in rest for reply in received)  # in order
    assert len(received) + sum(group(since, "unanswered").values()) == len(due)
    assert since["bytes_out"] == sum(map(len, received))


# -- signals


def test_signals_disturb_nothing(server):
    """Their handlers run in Python between the calls that they interrupt."""
    server = server()
    before = server.ask("state")["signals"]
    lines = [b"%d" % i * 3 + b"\n" for i in range(300)]
    with connect(server.line_port) as client:
        for line in lines:
            client.sendall(line)
            os.kill(server.process.pid, signal.SIGUSR1)
            assert read(client, len(line) + 2) == b"[]" + line
    assert server.ask("state")["signals"] > before
