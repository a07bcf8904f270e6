"""What starting costs, and what a library must leave alone: everything that is not its own.

Modules are counted in processes that see neither our environment nor `site`, so that what is
installed beside fastecho does not count.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from processes import PATIENCE, STAMP, environment, read_to_end

import fastecho
from fastecho import Server, running

#: What nobody needs to echo; each is 0.2 to 7 MiB, or milliseconds, for a daemon that idles.
UNWANTED = {
    *("argparse", "asyncio", "difflib", "json", "multiprocessing", "readline", "shutil", "ssl"),
    *("subprocess", "tempfile", "tomllib", "unittest"),
}
#: `import fastecho` brings 82 modules with Python 3.11, 17 of them our own (dataclasses brings
#: inspect and its ten; logging, socket and pathlib most of the rest), 91 with 3.13. A few more for
#: later ones: each costs every program that imports us a tenth of a millisecond or more.
IMPORT_BUDGET = 96
#: A daemon that has served both protocols has 128 more than a bare interpreter, click's 12 with
#: what they bring among them. With later versions of Python and click it may be 18 more.
DAEMON_BUDGET = 146


def isolated(program: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python that knows fastecho and click, and nothing else of this environment."""
    places = [str(Path(module.__file__ or "").parents[1]) for module in (fastecho, click)]
    return subprocess.Popen(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path += {places}\n{program}",
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def printed_by(program: str) -> str:
    """What it prints, if all goes well."""
    process = isolated(program)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stderr) == (0, "")
    return stdout


# -- modules


@pytest.fixture(scope="module")
def bare() -> set[str]:
    """What any such Python has loaded."""
    return set(printed_by("print(*sys.modules)").split())


@pytest.fixture(scope="module")
def imported(bare: set[str]) -> set[str]:
    """What `import fastecho` adds."""
    return set(printed_by("import fastecho; print(*sys.modules)").split()) - bare


def test_an_import_loads_nothing_that_it_does_not_need(imported: set[str]) -> None:
    assert imported & UNWANTED == set()
    assert "click" not in imported
    assert "fastecho.cli" not in imported


def test_an_import_loads_neither_twin(imported: set[str]) -> None:
    """The choice is made at first use."""
    assert not [
        name for name in imported if name.startswith(("fastecho._pure", "fastecho._native"))
    ]


def test_an_import_stays_within_its_budget(imported: set[str]) -> None:
    assert len(imported) <= IMPORT_BUDGET, sorted(imported)


ENDING = """
import atexit, gc
expression = sys.argv.pop(1)
atexit.register(lambda: print(*eval(expression)))
from fastecho.cli import main
main()
"""


def served_modules(*flags: str) -> set[str]:
    """All that a daemon has loaded in the end, once it has served both protocols."""
    return set(in_the_end("sys.modules", *flags))


def in_the_end(expression: str, *flags: str) -> list[str]:
    """The words that this comes to in a daemon that has served both protocols."""
    process = isolated(ENDING, expression, "127.0.0.1:0", *flags)
    try:
        assert process.stderr is not None
        ready = [process.stderr.readline() for _ in range(2)]
        exchange_both(*(int(re.findall(r":(\d+) ", line)[0]) for line in ready))
        process.terminate()
        stdout, stderr = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, stderr.count("\n")) == (0, 1)
    return stdout.split()


def exchange_both(tcp: int, udp: int) -> None:
    with socket.create_connection(("127.0.0.1", tcp), PATIENCE) as sock:
        sock.sendall(b"hello\n")
        sock.shutdown(socket.SHUT_WR)
        assert STAMP.match(read_to_end(sock))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(("127.0.0.1", udp))
        sock.send(b"hello")
        assert STAMP.match(sock.recv(100))


def test_a_daemon_without_a_file_loads_little(
    twin: Any, bare: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = served_modules("--backend", twin.name) - bare
    assert loaded & UNWANTED == set()
    assert len(loaded) <= DAEMON_BUDGET, sorted(loaded)
    other = {"native": "_pure", "pure": "_native"}[twin.name]
    assert not [name for name in loaded if name.startswith(f"fastecho.{other}.")]
    assert "fastecho.cli.client" not in loaded


def test_a_daemon_s_collector_leaves_alone_what_was_there_at_the_start() -> None:
    frozen, all_others = map(int, in_the_end("[gc.get_freeze_count(), len(gc.get_objects())]"))
    assert frozen > 10 * all_others


@pytest.mark.parametrize(
    ("flags", "module"),
    [(["--config", "/dev/null"], "tomllib"), (["--log-format", "json"], "json")],
)
def test_a_daemon_loads_what_it_was_asked_for(flags: list[str], module: str) -> None:
    """So that the absence of these shows something."""
    assert module in served_modules(*flags)


# -- what is not ours


def state() -> dict[str, Any]:
    """Of this process: what a library may not touch."""
    root, own = logging.getLogger(), logging.getLogger("fastecho")
    return {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "wake-up": wakeup_descriptor(),
        "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE),
        "root": (root.level, list(root.handlers)),
        "own": (own.level, list(own.handlers), own.propagate, own.disabled),
        "gc": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), gc.callbacks[:]),
        "environment": dict(os.environ),
        "excepthooks": (sys.excepthook, threading.excepthook, sys.unraisablehook),
        "switching": sys.getswitchinterval(),
        "folder": os.getcwd(),
    }


def wakeup_descriptor() -> int:
    if threading.current_thread() is not threading.main_thread():
        return -1
    found = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(found)
    return found


TOUCHED = """
import gc, logging, os, resource, signal, threading, warnings, locale

def state():
    loggers = [logging.getLogger(), logging.getLogger("fastecho")]
    return [
        {number: signal.getsignal(number) for number in signal.valid_signals()},
        resource.getrlimit(resource.RLIMIT_NOFILE),
        [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers],
        (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        sorted(os.listdir("/proc/self/fd")),
        os.listdir("/proc/self/task"),
        threading.active_count(),
        dict(os.environ),
        (warnings.filters[:], locale.setlocale(locale.LC_ALL), sys.path[:], sys.excepthook),
    ]

before = state()
import fastecho
after = state()
print("same" if before == after else [pair for pair in zip(before, after) if pair[0] != pair[1]])
"""


def test_an_import_touches_nothing() -> None:
    """No handler, no descriptor, no thread, no signal."""
    assert printed_by(TOUCHED) == "same\n"


def test_a_server_touches_nothing_that_is_the_command_s(twin: Any) -> None:
    before = state()
    with Server("127.0.0.1:0", backend=twin.name):
        assert state() == before
    with running(backend=twin.name, verbose=True, log_format="json") as server:
        assert exchange(server) == b"x\n"
        assert state() == before
    assert state() == before


def test_a_server_that_runs_in_the_main_thread_touches_nothing_either(twin: Any) -> None:
    """Nor while it runs, when it could."""
    before, seen = state(), []
    server = Server("127.0.0.1:0", prefix="", backend=twin.name)
    with calling_on(signal.SIGUSR1, lambda: (seen.append(state()), server.stop())):
        expected = state()
        run_until_signalled(server, signal.SIGUSR1)
    assert seen == [expected]
    assert state() == before


# -- threads and signals


def exchange(server: Server) -> bytes:
    """The reply, without its prefix, to a line."""
    with socket.create_connection(server.tcp_address, PATIENCE) as sock:
        sock.sendall(b"x\n")
        sock.shutdown(socket.SHUT_WR)
        return read_to_end(sock)[-2:]


@contextmanager
def calling_on(number: int, call: Callable[[], object]) -> Iterator[None]:
    before = signal.signal(number, lambda *_: call())
    try:
        yield
    finally:
        signal.signal(number, before)


def run_until_signalled(server: Server, number: int) -> None:
    """Run it here, and raise the signal once it has answered."""

    def raise_signal() -> None:
        exchange(server)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=raise_signal)
    thread.start()
    server.run()
    thread.join()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGALRM])
def test_a_signal_handler_can_stop_it(number: int, twin: Any) -> None:
    server = Server("127.0.0.1:0", backend=twin.name)
    with calling_on(number, server.stop):
        run_until_signalled(server, number)
    assert server.counters["messages"] == 1
    with pytest.raises(ConnectionRefusedError):
        exchange(server)


def test_a_signal_handler_can_look_at_it_while_it_runs(twin: Any) -> None:
    """And it goes on."""
    seen = []
    server = Server("127.0.0.1:0", backend=twin.name)
    with ExitStack() as stack:
        stack.enter_context(calling_on(signal.SIGUSR1, lambda: seen.append(server.counters)))
        stack.enter_context(calling_on(signal.SIGUSR2, server.stop))

        def look_and_stop() -> None:
            exchange(server)
            os.kill(os.getpid(), signal.SIGUSR1)
            exchange(server)
            os.kill(os.getpid(), signal.SIGUSR2)

        thread = threading.Thread(target=look_and_stop)
        thread.start()
        server.run()
        thread.join()
    assert len(seen) == 1
    assert 1 <= seen[0]["messages"] <= server.counters["messages"] == 2


def in_thread(call: Callable[[], Any]) -> Any:
    """What it gives, in a thread that ends with it."""
    given: list[Any] = []
    thread = threading.Thread(target=lambda: given.append(call()))
    thread.start()
    thread.join(PATIENCE)
    assert len(given) == 1
    return given[0]


def test_each_step_of_its_life_can_be_another_thread_s(twin: Any) -> None:
    server = in_thread(lambda: Server("127.0.0.1:0", backend=twin.name))
    runner = threading.Thread(target=server.run)
    runner.start()
    assert in_thread(lambda: exchange(server)) == b"x\n"
    assert in_thread(lambda: server.counters["messages"]) == 1
    in_thread(server.stop)
    runner.join(PATIENCE)
    assert not runner.is_alive()
    in_thread(server.close)
    assert in_thread(lambda: server.counters["messages"]) == 1


def test_running_works_in_any_thread(twin: Any) -> None:
    def serve() -> bytes:
        with running(backend=twin.name) as server:
            return exchange(server)

    assert in_thread(serve) == b"x\n"


def test_two_run_in_one_process_and_end_one_by_one(twin: Any) -> None:
    with running(prefix="", backend=twin.name) as first:
        with running(prefix="", backend=twin.name) as second:
            assert first.tcp_address != second.tcp_address
            assert [exchange(second), exchange(first)] == [b"x\n", b"x\n"]
        with pytest.raises(ConnectionRefusedError):
            exchange(second)
        assert exchange(first) == b"x\n"
    assert (first.counters["messages"], second.counters["messages"]) == (2, 1)


def test_both_twins_run_in_one_process(twins: Any) -> None:
    pure, native = twins
    with running(prefix="", backend=pure.name) as one, running(backend=native.name) as other:
        assert (one.backend, other.backend) == ("pure", "native")
        assert exchange(one) == exchange(other) == b"x\n"


def test_many_start_and_end_in_threads_at_once(twin: Any) -> None:
    """And leave nothing."""
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    replies: list[bytes] = []

    def serve() -> None:
        for _ in range(5):
            with running(prefix="", backend=twin.name) as server:
                replies.append(exchange(server))

    threads = [threading.Thread(target=serve) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert replies == [b"x\n"] * 40
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before
