"""The search for cuts that a server does not survive: what it finds, and what it must not find."""

from __future__ import annotations

import ast
import contextlib
import errno
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from processes import OWN_HOST, PATIENCE, abort, named, run
from servers import real

import fastecho
from fastecho import delivery, dial
from fastecho.errors import ConfigError, FastechoError
from fastecho.testing import exchange, fuzzer, plans, reproducer
from fastecho.testing.answers import Answers, Echoes, Recorded
from fastecho.testing.exchange import HALF_CLOSED, OPEN, RESET, Caller, Outcome, Plan
from fastecho.testing.fuzzer import Fuzzer, NoAnswer, Options, Report, Unstable
from fastecho.testing.masks import Masks, difference, form, of_form, suggest

SERVERS = Path(__file__).with_name("servers")
TUTORIAL = Path(__file__).with_name("tutorial")
#: Every framing that has messages.
SPECS = (
    "line",
    "delimiter:0d0a",
    "delimiter:00ff00",
    "any:0d0a,0a",
    "fixed:1",
    "fixed:5",
    "u8",
    "u16le",
    "u32",
    "u64",
    "length:width=3,offset=2,adjust=-4,le",
    "length:width=1,adjust=200",
    "varint",
    "netstring",
)
#: Long enough that a busy machine is no bug, and short enough to be waited for.
TIMEOUT = 0.5
#: Enough to find what is tested here.
QUICK = Options(timeout=TIMEOUT, pairs=60, examples=15)
PREFIX = "[{ctime}] {seq} "


def echoes(spec: str = "line", longest: int = 3000, count: int = 3, *masks: bytes) -> Echoes:
    return Echoes(spec, longest, count, Masks(masks))


def recorded(request: bytes, *masks: bytes, count: int = 3) -> Recorded:
    return Recorded(request, count, Masks(masks))


def search(address: str, answers: Answers, options: Options = QUICK) -> Report:
    return Fuzzer(dial.parse(address), answers, options).run()


def tried(report: Report) -> dict[str, int]:
    return {each.name: each.tried for each in report.kinds}


# -- what may differ


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (b"[Sun Nov  1 07:00:00 2026]", b"[Mon Dec 12 12:34:56 2027]", True),
        (b"9: ", b"10: ", True),
        (b"> ", b"> h", False),
        (b"[Sun]", b"[sunny]", False),
        (b"", b" ", False),
    ],
)
def test_a_form_is_what_digits_and_names_are_not(first: bytes, second: bytes, same: bool) -> None:
    assert (form(first) == form(second)) is same
    assert bool(re.fullmatch(of_form(first), second)) is same


@given(st.binary(max_size=40))
@example(b'"\\ "')
def test_a_form_as_an_expression_has_what_it_was_made_of(prefix: bytes) -> None:
    assert re.fullmatch(of_form(prefix), prefix)


@given(st.binary(max_size=20), st.binary(max_size=20), st.binary(max_size=20))
def test_two_answers_differ_where_they_do(shared: bytes, first: bytes, second: bytes) -> None:
    first, second = shared + first, shared + second
    at = difference(first, second)
    assert first[:at] == second[:at]
    assert first[at : at + 1] != second[at : at + 1] or at == len(first) == len(second)


@given(st.lists(st.sampled_from([b"a", b"12", b"\r\n", b"id=x7;", b"."]), max_size=12))
def test_a_mask_hides_the_same_in_all_three_ways(pieces: list[bytes]) -> None:
    masks = Masks([rb"\d+", rb"id=\w+"])
    data = b"".join(pieces)
    other = re.sub(rb"\d+", b"3", data)
    assert masks.hide(data) == masks.hide(other)
    assert len(masks.blur(data)) == len(data)
    assert re.fullmatch(masks.pattern(data), other)


@pytest.mark.parametrize(
    ("mask", "data", "other"),
    [
        (rb"(?i)date: .*", b"a\nDate: x\nb", b"a\nDATE: yy\nb"),
        (rb"(?m)^\d+", b"1\n2\n", b"3\n44\n"),
        (rb"(?sx) < .* >  # all of it", b"1<\n>2", b"1<>2"),
        (rb"(?P<digit>\d)+", b"[1 2]", b"[3 44]"),
        (rb"(\d)\1", b"a11b22", b"a33b44"),
        (rb"(?<=n=)\d+", b"n=1n=2", b"n=3n=44"),
        (rb"\d+", b"7 " * 3000, b"88 " * 3000),
    ],
    ids=["case", "lines", "verbose", "named", "reference", "context", "many"],
)
def test_any_mask_may_stand_in_an_expression(mask: bytes, data: bytes, other: bytes) -> None:
    """As in a reproducer."""
    masks = Masks([mask])
    assert masks.hide(data) == masks.hide(other)
    pattern = masks.pattern(data)
    assert re.fullmatch(pattern, data)
    assert re.fullmatch(pattern, other)
    assert not re.fullmatch(pattern, b"!" + data)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (b"a\r\nDate: x\r\nb", b"a\r\nDate: yy\r\nb", (rb"Date:[^\r\n]*",)),
        (b":1\r\n", b":22\r\n", (rb":\d+",)),
        (b"[07:00:01] hello", b"[07:00:12] hello", (rb"\d+:\d+:\d+",)),
        (b"id abcde.\n", b"id xyz.\n", (rb"(?<=id )[\w:.+-]+",)),
        (b"\n\0\1\n", b"\n\0\2\n", (rb"\x00[^\r\n]*",)),
        (b"a1\nc0ffee ok\n", b"a1\nbad ok\n", (rb"(?m:^)[\w:.+-]+",)),
        (b"abc", b"xyz", ()),
        (b"abc", b"", ()),
        (b"A: 1\r\nB: 1\r\n", b"A: 2\r\nB: 2\r\n", (rb"A:[^\r\n]*", rb"B:[^\r\n]*")),
        (b"\1", b"\2\n\3\n\4", ()),
        (b"x", b"x", ()),
    ],
)
def test_a_mask_is_suggested_that_helps(
    first: bytes, second: bytes, expected: tuple[bytes, ...]
) -> None:
    assert suggest(first, second, Masks()) == expected
    if expected:
        assert Masks(expected).hide(first) == Masks(expected).hide(second)


@given(st.binary(max_size=30), st.binary(max_size=30))
def test_masks_that_are_suggested_make_answers_the_same(first: bytes, second: bytes) -> None:
    found = suggest(first, second, Masks([rb"\d+"]))
    masks = Masks([rb"\d+", *found])
    assert not found or masks.hide(first) == masks.hide(second)


# -- what is right


@pytest.mark.parametrize("template", ["", "> ", PREFIX, "[{iso}] "])
@pytest.mark.parametrize("spec", SPECS)
def test_what_an_echo_says_is_right(spec: str, template: str) -> None:
    if spec.startswith("fixed") and "{seq}" in template:
        template = "[{ctime}] "
    answers = echoes(spec)
    first = Plan(answers.requests[:1])
    assert answers.learn(said(spec, template, first, 0)) == ""
    for requests in [(each,) for each in answers.requests] + [answers.batch]:
        plan = Plan(requests)
        outcome = said(spec, template, plan, 86_400 * 10**9)
        assert answers.judge(plan, outcome) == ""
        assert answers.patience(plan, outcome.received) == 0.0
        assert re.fullmatch(answers.pattern(plan), outcome.received)
        assert re.fullmatch(answers.pattern(plan), answers.expected(plan))
        for end in range(len(outcome.received)):
            assert answers.patience(plan, outcome.received[:end]) is None
        for wrong in (b"", outcome.received[:-1], outcome.received + b"x", b"x" + outcome.received):
            assert answers.judge(plan, Outcome(wrong, exchange.CLOSED)), wrong


def said(spec: str, template: str, plan: Plan, now: int) -> Outcome:
    received = fastecho.Echo(spec, template).feed(plan.data, now)
    return Outcome(received, exchange.ANSWERED)


def test_a_reply_has_its_message_and_no_other() -> None:
    answers = echoes()
    plan = Plan(answers.batch)
    lines = plan.data.splitlines(keepends=True)
    assert answers.judge(plan, Outcome(b"".join(lines[::-1]), exchange.ANSWERED))
    assert answers.judge(plan, Outcome(b"".join(lines * 2), exchange.ANSWERED))


@pytest.mark.parametrize("mask", [rb"^\w+", rb"\w+: $", rb"\w+"])
def test_an_expression_of_replies_has_prefixes_that_a_mask_hides(mask: bytes) -> None:
    """Also by where they begin or end."""
    answers = echoes("line", 100, 2, mask)
    first, batch = Plan(answers.requests[:1]), Plan(answers.batch)
    assert answers.learn(Outcome(b"anna: " + first.data, exchange.ANSWERED)) == ""
    for plan in (first, batch):
        lines = plan.data.splitlines(keepends=True)
        received = b"".join(b"bert%d: %b" % each for each in enumerate(lines))
        assert answers.judge(plan, Outcome(received, exchange.ANSWERED)) == ""
        assert re.fullmatch(answers.pattern(plan), received)
        assert not re.fullmatch(answers.pattern(plan), received + b"x")


def test_a_server_may_keep_the_cr_of_a_line_to_itself() -> None:
    answers = echoes()
    assert answers.learn(Outcome(answers.requests[0], exchange.ANSWERED)) == ""
    plan = Plan(answers.requests[1:])
    answers.learn_end_of_line(plan, Outcome(b"hello\n", exchange.ANSWERED))
    assert answers.judge(plan, Outcome(b"hello\n", exchange.ANSWERED)) == ""
    assert answers.judge(plan, Outcome(b"hello\r\n", exchange.ANSWERED))


@pytest.mark.parametrize("spec", ["delimiter:68", "delimiter:656c6c", "delimiter:20", "fixed:3"])
def test_there_is_always_something_to_say(spec: str) -> None:
    answers = echoes(spec, longest=5, count=12)
    codec = fastecho.framing.codec(spec)
    assert all(len(codec.feed(each)) == 1 for each in (*answers.requests, *answers.batch))


def test_raw_has_no_messages() -> None:
    with pytest.raises(ConfigError, match="raw has no messages"):
        echoes("raw")


def test_messages_that_are_too_much() -> None:
    with pytest.raises(ConfigError, match="3 requests of 400,000 bytes are too much"):
        echoes("fixed:400000")
    with pytest.raises(ConfigError, match="3 requests of 400,000 bytes are too much"):
        echoes("length:width=3,adjust=400000", 500_000)


def test_an_answer_is_as_it_was_but_for_what_is_masked() -> None:
    answers = recorded(b"request", rb"\d+")
    plan = Plan(answers.requests, (3,))
    answers.learn(plan.whole, b"at 12:00 x")
    for received, patience, wrong in [
        (b"", None, "there is no answer"),
        (b"at 1", None, "shorter"),
        (b"at 1:0000 x", 0.0, ""),
        (b"at 1:0000 y", exchange.GRACE, "another"),
        (b"at 1:0000 xx", exchange.GRACE, "longer"),
        (b"at 1:00000000", None, "shorter"),
    ]:
        assert answers.patience(plan, received) == patience
        judged = answers.judge(plan, Outcome(received, exchange.ANSWERED))
        assert wrong in judged
        assert bool(wrong) is bool(judged)


@pytest.mark.parametrize("request_", [b"", b"x" * 2**20])
def test_a_request_that_makes_no_sense(request_: bytes) -> None:
    with pytest.raises(ConfigError):
        recorded(request_)


# -- the plans


def test_pairs_are_all_different_and_all_there() -> None:
    pairs = [plans._pair(number) for number in range(45)]
    assert sorted(pairs) == sorted(combinations(range(1, 11), 2))


@pytest.mark.parametrize("pairs", [0, 10, 1000])
def test_as_many_plans_as_are_told_and_none_twice(pairs: int) -> None:
    answers = echoes()
    for kind, made in plans.kinds(answers, pairs, 1):
        found = list(made())
        assert len(found) == len(set(found)) == kind.total <= kind.of
        assert found == list(made())
        for plan in found:
            assert all(plan.pieces)
            sent = plan.data[: plan.cuts[-1]] if plan.ending == RESET else plan.data
            assert b"".join(plan.pieces) == sent


# -- one exchange


class Recorder:
    """A server that keeps what each `recv` of each connection returned, and answers nothing."""

    def __init__(self) -> None:
        self.connections: list[list[bytes | str]] = []

    def __call__(self, sock: socket.socket) -> None:
        received: list[bytes | str] = []
        self.connections.append(received)
        try:
            while data := sock.recv(65_536):
                received.append(data)
            received.append("closed")
        except ConnectionResetError:
            received.append("reset")


@contextmanager
def serving(act: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server in a thread, one client at a time; its address."""
    stopped = threading.Event()

    def serve() -> None:
        while True:
            sock, _ = listener.accept()
            with sock:
                if stopped.is_set():
                    return
                sock.settimeout(PATIENCE)
                with suppress(OSError):
                    act(sock)

    with socket.create_server((OWN_HOST, 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield named(listener.getsockname())
        finally:
            stopped.set()
            with socket.create_connection(listener.getsockname()[:2]):
                pass
            thread.join(PATIENCE)
            assert not thread.is_alive()


cuts = st.sets(st.integers(1, 11), max_size=11).map(lambda each: tuple(sorted(each)))


def test_each_piece_is_read_alone() -> None:
    recorder = Recorder()
    with serving(recorder) as address:
        caller = Caller(dial.parse(address), PATIENCE)

        @given(cuts, st.sampled_from([OPEN, HALF_CLOSED]))
        def check(places: tuple[int, ...], ending: str) -> None:
            plan = Plan((b"abcdef", b"ghijkl"), places, ending)
            outcome = caller.call(plan, lambda received: 0.0, 100, awaits_close=True)
            assert outcome == Outcome(b"", exchange.ANSWERED, closed=True)
            assert recorder.connections[-1] == [*plan.pieces, "closed"]

        check()
        caller.close()
        assert caller.how == delivery.READ


def test_a_reset_comes_after_what_was_read() -> None:
    recorder = Recorder()
    with serving(recorder) as address:
        caller = Caller(dial.parse(address), PATIENCE)
        for at in range(2, 6):
            caller.call(Plan((b"abcdef",), (1, at), RESET), lambda _: 0.0, 100, awaits_close=True)
        caller.close()
    assert recorder.connections == [
        each
        for at in range(2, 6)
        for each in ([b"a", b"abcdef"[1:at], "reset"], [b"abcdef", "closed"])
    ]


def test_more_than_is_kept_is_a_flood() -> None:
    def act(sock: socket.socket) -> None:
        while True:
            sock.sendall(bytes(10_000))

    with serving(act) as address:
        caller = Caller(dial.parse(address), PATIENCE)
        outcome = caller.call(Plan((b"x",)), lambda _: None, 1000)
        caller.close()
    assert (outcome.end, len(outcome.received)) == (exchange.FLOODED, 1000)


def test_a_request_larger_than_all_buffers_goes_through_a_server_that_waits() -> None:
    """It reads no more while its answer is not read."""

    def act(sock: socket.socket) -> None:
        while data := sock.recv(65_536):
            sock.sendall(data * 8)

    data = bytes(2**20)
    with serving(act) as address:
        caller = Caller(dial.parse(address), PATIENCE)
        plan = Plan((data,), (1, 600_000))
        outcome = caller.call(
            plan, lambda received: 0.0 if len(received) >= 8 * len(data) else None, 2**24
        )
        caller.close()
    assert len(outcome.received) == 8 * len(data)


# -- bugs that people really write


class Broken:
    """`servers/broken.py`, serving."""

    def __init__(self, name: str) -> None:
        command = [sys.executable, SERVERS / "broken.py", name]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        self.address = f"127.0.0.1:{int(self.process.stdout.readline())}"

    def __enter__(self) -> str:
        return self.address

    def __exit__(self, *failure: object) -> None:
        self.process.kill()
        with self.process:
            pass


#: Server, framing, where it is found, the smallest plan's cuts and ending.
BUGS: list[tuple[str, str, str, tuple[int, ...], str]] = [
    ("one_recv", "line", plans.SINGLE, (1,), OPEN),
    ("length_in_one_recv", "u32", plans.SINGLE, (1,), OPEN),
    ("cr_and_lf", "line", plans.SINGLE, (6,), OPEN),
    ("utf8_per_recv", "line", plans.SINGLE, (8,), OPEN),
    ("delimiter_begun", "delimiter:0d0a", plans.SINGLE, (17,), OPEN),
    ("short_buffer", "line", plans.LENGTHS, (), OPEN),
    ("second_dropped", "line", plans.TOGETHER, (), OPEN),
    ("dies_of_a_reset", "line", plans.RESETS, (1,), RESET),
    ("one_buffer_for_all", "line", plans.RESETS, (1,), RESET),
]


@pytest.mark.parametrize(
    ("name", "spec", "kind", "places", "ending"), BUGS, ids=[b[0] for b in BUGS]
)
def test_the_bug_is_found_and_shrunk_and_reproduced(
    name: str, spec: str, kind: str, places: tuple[int, ...], ending: str, tmp_path: Path
) -> None:
    answers = echoes(spec)
    with Broken(name) as address:
        report = search(address, answers)
        found = report.finding
        assert found is not None
        assert (found.kind, found.plan.cuts, found.plan.ending) == (kind, places, ending)
        assert len(found.plan.requests) == (2 if kind == plans.TOGETHER else 1)
        assert len(found.plan.data) == 1025 or kind != plans.LENGTHS
        assert (found.tries, found.flaky) == (1 if found.fatal else fuzzer.TRIES, False)
        assert found.fatal is (name == "dies_of_a_reset")
        program = tmp_path / "repro.py"
        host, port = address.split(":")
        program.write_text(
            reproducer.program(
                found.plan,
                answers.pattern(found.plan.whole),
                name,
                address,
                (host, int(port)),
                TIMEOUT,
                "repro.py",
            )
        )
    assert run(sys.executable, "-W", "error", program).returncode == 3
    with Broken(name) as again:
        done = run(sys.executable, "-W", "error", program, *again.split(":"))
        assert done.returncode == 1, done
    with ExitStack() as stack:
        if name == "cr_and_lf":
            words = stack.enter_context(Broken("right_without_cr")).split(":")
        else:
            server = stack.enter_context(fastecho.running(framing=spec, prefix="> "))
            words = [str(each) for each in server.tcp_address]
        done = run(sys.executable, "-W", "error", program, *words)
        assert done.returncode == 0, done


def test_a_reproducer_that_half_closes(tmp_path: Path) -> None:
    answers = echoes()
    plan = Plan(answers.requests[:1], (3, 9), HALF_CLOSED)
    program = tmp_path / "repro.py"
    file = 'a """\\b.py'
    answers.learn(said("line", "> ", plan.whole, 0))
    with Broken("one_recv") as address, fastecho.running(prefix="> ") as server:
        program.write_text(
            reproducer.program(
                plan, answers.pattern(plan.whole), "why", "who", server.tcp_address, TIMEOUT, file
            )
        )
        command = [sys.executable, "-W", "error", program]
        right, wrong = run(*command), run(*command, *address.split(":"))
    assert (right.returncode, right.stderr) == (0, b"")
    assert (wrong.returncode, wrong.stderr) == (1, b"")


@pytest.mark.parametrize("name", ["é" * 40, "😀", "it's \"\\x"])
def test_a_reproducer_of_any_path(name: str, tmp_path: Path) -> None:
    """Also where its docstring would be broken in the middle of an escape."""
    program = Path("repro.py")
    with contextlib.chdir(tmp_path), fastecho.running(listen=(f"unix:{name}",), prefix="> "):
        for length in range(20):
            title = "x" * length + name * 5
            program.write_text(
                reproducer.program(
                    Plan((b"hello\n",), (3,)), rb"> hello\n", title, name, name, TIMEOUT, "repro.py"
                )
            )
            ast.parse(program.read_text())
        done = run(sys.executable, "-W", "error", program)
    assert (done.returncode, done.stderr) == (0, b"")


@given(st.binary(max_size=200))
@example(b"'\\\"" * 30)
def test_a_literal_is_what_it_was_made_of(data: bytes) -> None:
    text = reproducer.literal(data, 4)
    assert ast.literal_eval(f"(\n{text}\n)") == data
    assert all(line.startswith("    ") for line in text.splitlines())


@pytest.mark.parametrize("name", ["right", "right_without_cr"])
def test_nothing_is_found_in_the_server_without_a_bug(name: str) -> None:
    with Broken(name) as address:
        assert search(address, echoes()).finding is None


def test_the_bug_is_found_over_a_unix_socket(tmp_path: Path) -> None:
    path = f"unix:{tmp_path}/s"
    with fastecho.running(listen=(path,), framing="raw"):
        found = search(path, echoes()).finding
    assert found is not None
    assert found.plan.cuts == (1,)


def test_a_bug_that_needs_more_cuts_is_found_at_random() -> None:
    """In just five pieces; it is shrunk to no fewer."""

    def act(sock: socket.socket) -> None:
        pieces = []
        while data := sock.recv(65_536):
            pieces.append(data)
            if data.endswith(b"!"):
                sock.sendall(b"five" if len(pieces) == 5 else b"well")
                pieces = []

    with serving(act) as address:
        answers = recorded(b"what is this!", count=1)
        found = search(address, answers, Options(TIMEOUT, pairs=10, examples=300)).finding
    assert found is not None
    assert (found.kind, len(found.plan.cuts), found.flaky) == (plans.RANDOM, 4, False)


def test_a_server_that_dies_of_a_random_plan_is_not_shrunk_any_more() -> None:
    """Whatever is tried after that fails, and says nothing."""
    dead = False

    def act(sock: socket.socket) -> None:
        nonlocal dead
        pieces = []
        while (data := sock.recv(65_536)) and not dead:
            pieces.append(data)
            if data.endswith(b"!"):
                dead = len(pieces) == 4
                sock.sendall(b"" if dead else b"well")

    with serving(act) as address:
        answers = recorded(b"what is this!", count=1)
        found = search(address, answers, Options(TIMEOUT, pairs=10, examples=300)).finding
    assert found is not None
    assert found.fatal
    assert len(found.plan.cuts) == 3
    assert found.plan == found.first


def test_what_a_plan_leaves_behind_is_not_taken_for_another_failure() -> None:
    """A second cut breaks the next client, too, which says nothing of a plan with one."""
    spoilt = False

    def act(sock: socket.socket) -> None:
        nonlocal spoilt
        pieces = []
        while data := sock.recv(65_536):
            pieces.append(data)
            if data.endswith(b"!"):
                wrong, spoilt = spoilt or len(pieces) == 3, len(pieces) == 3
                sock.sendall(b"wrong" if wrong else b"right")

    with serving(act) as address:
        found = search(address, recorded(b"what is this!", count=1)).finding
    assert found is not None
    assert (found.kind, found.plan.cuts, found.flaky) == (plans.PAIRS, found.first.cuts, False)
    assert found.after == "the client after that was not answered either: the answer is another"


def test_an_answer_that_differs_once_is_flaky() -> None:
    cut: list[bytes] = []

    def act(sock: socket.socket) -> None:
        data = sock.recv(65_536)
        whole = data == b"request"
        if not whole:
            cut.append(data)
            while len(data) < len(b"request") and (more := sock.recv(65_536)):
                data += more
        sock.sendall(b"right" if whole or len(cut) != 3 else b"wrong")
        while sock.recv(65_536):
            pass

    with serving(act) as address:
        found = search(address, recorded(b"request")).finding
    assert found is not None
    assert found.flaky
    assert (found.failed, found.tries) == (1, fuzzer.TRIES)


# -- servers without a bug


@pytest.mark.parametrize("spec", SPECS)
def test_nothing_is_found_in_fastecho(spec: str, chosen: str) -> None:
    template = "[{ctime}]" if spec.startswith("fixed") else PREFIX
    with fastecho.running(framing=spec, prefix=template, backend=chosen) as server:
        report = search(named(server.tcp_address), echoes(spec))
    assert report.finding is None, report.finding
    assert report.how == delivery.READ
    assert all(each.tried == each.total and not each.note for each in report.kinds)


def test_nothing_is_found_in_an_echo_of_bytes() -> None:
    with fastecho.running(framing="raw", prefix="") as server:
        assert search(named(server.tcp_address), echoes()).finding is None


def test_nothing_is_found_in_a_server_that_speaks_first() -> None:
    """As one of SMTP does, which also closes at the end of what it was told."""

    def act(sock: socket.socket) -> None:
        sock.sendall(b"220 hello\r\n")
        buffer = b""
        while data := sock.recv(65_536):
            buffer += data
            *lines, buffer = buffer.split(b"\r\n")
            for line in lines:
                sock.sendall(b"221 bye\r\n" if line == b"QUIT" else b"250 ok\r\n")
                if line == b"QUIT":
                    return

    with serving(act) as address:
        request = b"HELO a\r\nMAIL FROM:<a@b>\r\nQUIT\r\n"
        report = search(address, recorded(request))
    assert report.finding is None, report.finding
    notes = {each.name: each.note for each in report.kinds if each.note}
    assert notes == {plans.TOGETHER: "the server closes the connection after one"}


REDIS = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$7\r\na\r\nb\r\n\0\r\nGET k\r\n"
MEMCACHED = b"set k 0 0 7\r\na\r\nb\r\n\0\r\nget k\r\nversion\r\n"
GET = b"GET /page HTTP/1.1\r\nHost: h\r\n\r\n"
POST = (
    b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n0\r\n\r\nHEAD /page HTTP/1.1\r\nHost: h\r\n\r\n"
)


@pytest.mark.parametrize(
    ("name", "request_", "masks"),
    [
        ("redis-server", REDIS, ()),
        ("memcached", MEMCACHED, ()),
        ("nginx", GET, (rb"Date:[^\r\n]*",)),
        ("nginx", POST, (rb"Date:[^\r\n]*",)),
    ],
    ids=["redis", "memcached", "nginx-get", "nginx-post"],
)
def test_nothing_is_found_in_a_real_server(
    name: str, request_: bytes, masks: tuple[bytes, ...], tmp_path: Path
) -> None:
    with real.serving(name, tmp_path) as address:
        report = search(address, recorded(request_, *masks))
    assert report.finding is None, report.finding
    assert all(each.tried == each.total and not each.note for each in report.kinds)


@contextmanager
def tutorial_server() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind((OWN_HOST, 0))
        host, port = taken.getsockname()
    command = [sys.executable, TUTORIAL / "tcp_server.py", host, str(port)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "waiting for connection ...\n"
            yield named((host, port))
        finally:
            process.kill()


def test_the_tutorials_server_fails_at_the_first_cut() -> None:
    with tutorial_server() as address:
        report = search(address, echoes())
    found = report.finding
    assert found is not None
    assert found.plan == Plan(echoes().requests[:1], (1,))
    assert tried(report) == {plans.SINGLE: 1}
    assert found.wrong == "the reply does not end with its message"


def test_the_tutorials_server_dies_of_half_a_character() -> None:
    with tutorial_server() as address:
        request = "€".encode()
        found = search(address, recorded(request, rb"\[.*?\]")).finding
    assert found is not None
    assert found.fatal
    assert "nobody" in found.after


# -- servers that do not answer, or not always the same


def closing(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_RDWR)


def resetting(sock: socket.socket) -> None:
    sock.recv(1)
    abort(sock)


def silent(sock: socket.socket) -> None:
    while sock.recv(65_536):
        pass


def flooding(sock: socket.socket) -> None:
    while True:
        sock.sendall(bytes(65_536))


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (closing, ": no answer"),
        (resetting, ": no answer"),
        (silent, ": no answer"),
        (flooding, "too long to compare: more than 4,194,304 bytes came|is no echo server"),
    ],
    ids=["closing", "resetting", "silent", "flooding"],
)
@pytest.mark.parametrize("answers", [echoes(), recorded(b"request")], ids=["echo", "recorded"])
def test_a_server_that_does_not_answer_is_named(
    act: Callable[[socket.socket], None], sentence: str, answers: Answers
) -> None:
    with serving(act) as address, pytest.raises(NoAnswer, match=sentence) as raised:
        search(address, answers, Options(timeout=0.2))
    assert address in str(raised.value)
    assert str(raised.value).isprintable()


def test_a_server_that_answers_once() -> None:
    """As `nc -l` does."""

    def serve() -> None:
        with listener, listener.accept()[0] as sock:
            sock.sendall(sock.recv(100))
            sock.recv(100)

    listener = socket.create_server((OWN_HOST, 0))
    address = named(listener.getsockname())
    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(NoAnswer, match="one answer, and then no other"):
        search(address, echoes(), Options(timeout=0.5))
    thread.join(PATIENCE)


def test_a_server_that_is_not_there(unused: str) -> None:
    with pytest.raises(FastechoError, match="cannot reach"):
        search(unused, echoes())


def test_a_server_that_never_reads_what_was_cut() -> None:
    """It greets everybody, and reads nothing."""

    kept = []

    def act(sock: socket.socket) -> None:
        kept.append(sock.dup())
        sock.sendall(b"welcome")

    with serving(act) as address:
        found = search(address, recorded(b"request"), Options(timeout=0.1)).finding
    for each in kept:
        each.close()
    assert found is not None
    assert "did not read piece 1 of 2 within 0.1 s" in found.wrong


def counting() -> Callable[[socket.socket], None]:
    count = iter(range(10**9))

    def act(sock: socket.socket) -> None:
        data = b""
        while not data.endswith(b"!") and (more := sock.recv(65_536)):
            data += more
        sock.sendall(b"Count: %d\r\nhello\r\n" % next(count))
        while sock.recv(65_536):
            pass

    return act


def test_two_answers_to_the_same_request_need_a_mask_that_is_named() -> None:
    with serving(counting()) as address:
        with pytest.raises(Unstable, match="differ at byte 7") as raised:
            search(address, recorded(b"request!"), Options(timeout=0.1))
        assert r"--mask 'Count:[^\r\n]*'" in str(raised.value)
        report = search(address, recorded(b"request!", rb"Count:[^\r\n]*", count=1))
    assert report.finding is None


def test_an_answer_that_changes_later_is_no_bug() -> None:
    """As a clock's does."""
    count = iter(range(10**9))

    def act(sock: socket.socket) -> None:
        data = b""
        while not data.endswith(b"!") and (more := sock.recv(65_536)):
            data += more
        sock.sendall(b"minute %d" % (next(count) // 10))
        while sock.recv(65_536):
            pass

    with serving(act) as address, pytest.raises(Unstable, match="would hide it: --mask"):
        search(address, recorded(b"request!", count=1), Options(timeout=0.1))


def test_a_prefix_of_many_forms_needs_a_mask() -> None:
    names = iter(["anna", "bert-", "carl", "dora-"] * 10_000)

    def act(sock: socket.socket) -> None:
        buffer = b""
        while data := sock.recv(65_536):
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                sock.sendall(b"%s: %b\n" % (next(names).encode(), line))

    with serving(act) as address:
        with pytest.raises(Unstable):
            search(address, echoes())
        report = search(address, echoes("line", 100, 3, rb"[a-z-]+: "))
    assert report.finding is None, report.finding


# -- how far


def test_what_is_left_untried_is_told() -> None:
    def act(sock: socket.socket) -> None:
        buffer = b""
        while data := sock.recv(65_536):
            threading.Event().wait(0.01)
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            sock.sendall(b"".join(line + b"\n" for line in lines))

    with serving(act) as address:
        report = search(address, echoes(), Options(timeout=TIMEOUT, duration=0.5))
    assert report.finding is None
    assert any(each.note == "the time was up" for each in report.kinds)
    assert len(report.kinds) == 8


def test_a_search_that_needs_more_ports_than_there_are_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dialled(*_: object) -> Iterator[socket.socket]:
        raise FastechoError("no") from OSError(errno.EADDRNOTAVAIL, "no")
        yield

    def progress(kind: Any) -> None:
        if kind.tried == 5:
            monkeypatch.setattr(dial.Target, "dial", dialled)

    with fastecho.running() as server:
        report = Fuzzer(dial.parse(named(server.tcp_address)), echoes(), QUICK).run(progress)
    assert report.finding is None
    assert {each.note for each in report.kinds} == {"no port is left for a connection"}
    assert report.tried == 5


def test_without_hypothesis_all_but_the_random_plans_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with fastecho.running() as server:
        report = search(named(server.tcp_address), echoes("line", 100))
    *others, last = report.kinds
    assert (last.name, last.tried) == (plans.RANDOM, 0)
    assert "pip install 'fastecho[testing]'" in last.note
    assert all(each.tried == each.total for each in others)


def test_ended_early_it_reports_what_there_is() -> None:
    def progress(kind: Any) -> None:
        if kind.name == plans.BYTES:
            raise KeyboardInterrupt

    with fastecho.running() as server:
        made = Fuzzer(dial.parse(named(server.tcp_address)), echoes(), QUICK)
        report = made.run(progress)
    assert report.stopped
    assert tried(report)[plans.SINGLE] > 0


def test_the_same_seed_tries_the_same() -> None:
    def plans_of(seed: int) -> list[Plan]:
        return [plan for _, made in plans.kinds(echoes(), 20, seed) for plan in islice(made(), 100)]

    assert plans_of(1) == plans_of(1) != plans_of(2)
