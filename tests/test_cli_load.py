"""`fastecho load` and `fastecho report` as people see them: words, files, exit statuses."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path

import click
import pytest

pytest.importorskip("hdrh")
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from processes import FASTECHO, OWN_HOST, PATIENCE, Daemon, environment, named, run, serving, until

from fastecho.cli import COMMANDS, commands
from fastecho.load import LONGEST, Plan

DONE, FAILED, USAGE, UNAVAILABLE = 0, 1, 2, 3
BACKEND = "pure"  # of the server: a test of the client needs no other
PROGRESS = re.compile(
    r"\d+ s: [\d,.]+/s, p50 [\d.]+ \w+, p99 [\d.]+ \w+, max [\d.]+ \w+, errors \d"
)
WORDS = ["closed loop", "p99.99", "latency", "messages", "200 right", "errors", "none", "generator"]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with serving(backend=BACKEND) as started:
        yield started


def load(*words: str) -> subprocess.CompletedProcess[str]:
    done = run(*FASTECHO, "load", *words)
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence that it says."""
    assert done.stdout == ""
    assert done.stderr.startswith("fastecho: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("fastecho: ").removesuffix("\n")


@contextmanager
def answering(answer: Callable[[bytes], bytes | None]) -> Iterator[str]:
    """A server on streams that makes its replies so; None: it closes."""
    stopped = threading.Event()

    def serve(sock: socket.socket) -> None:
        with sock, suppress(OSError):
            while not stopped.is_set() and (data := sock.recv(65_536)):
                reply = answer(data)
                if reply is None:
                    return
                sock.sendall(reply)

    def accept() -> None:
        with suppress(OSError):
            while True:
                sock, _ = listener.accept()
                sock.settimeout(PATIENCE)
                threads.append(threading.Thread(target=serve, args=(sock,)))
                threads[-1].start()

    with socket.create_server((OWN_HOST, 0)) as listener:
        threads = [threading.Thread(target=accept)]
        threads[0].start()
        yield named(listener.getsockname())
        stopped.set()
        listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(PATIENCE)


# -- results


def test_a_table_says_how_it_was(daemon: Daemon) -> None:
    done = load(
        "--messages", "200", "--pipeline", "4", "--pid", str(daemon.process.pid), named(daemon.tcp)
    )
    assert done.returncode == DONE, done.stderr
    for word in WORDS:
        assert word in done.stdout
    assert re.search(r"^server +[\d.]+ \w+ of processor a message", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout


def test_an_open_loop_says_so_and_how_late_it_was(daemon: Daemon) -> None:
    done = load("--messages", "50", "--rate", "500", "--arrivals", "poisson", named(daemon.tcp))
    assert done.returncode == DONE, done.stderr
    assert "open loop at 500/s, poisson" in done.stdout
    assert re.search(r"^lateness( +[\d.]+ \w+){7}$", done.stdout, re.MULTILINE)


def test_datagrams(daemon: Daemon) -> None:
    done = load("--udp", "--messages", "200", "--size", "1-900", named(daemon.udp))
    assert done.returncode == DONE, done.stderr
    assert "200 right" in done.stdout


def test_a_line_a_second_where_no_terminal_is(daemon: Daemon) -> None:
    done = load("--duration", "2.2", "--warmup", "0.1", "--rate", "100", named(daemon.tcp))
    assert done.returncode == DONE, done.stderr
    first, *lines = done.stderr.splitlines()
    assert first == "warming up for 0.1 s"
    assert len(lines) == 3
    assert all(PROGRESS.fullmatch(line) for line in lines), lines


def test_json_in_place_of_the_table(daemon: Daemon) -> None:
    done = load("--messages", "200", "--json", "-", "--seed", "7", named(daemon.tcp))
    data = json.loads(done.stdout)
    assert data["counts"]["received"] == 200
    assert data["options"]["seed"] == 7
    assert data["right"]


def test_files(daemon: Daemon, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / name for name in ("a.json", "a.hlog", "a.png")]
    options = zip(("--json", "--hdr", "--plot"), map(str, files), strict=True)
    words = [word for option in options for word in option]
    done = load("--messages", "300", *words, named(daemon.tcp))
    assert done.returncode == DONE, done.stderr
    assert_saved(*files)


def assert_saved(saved: Path, log: Path, plot: Path) -> None:
    """All three say the same."""
    data = json.loads(saved.read_text())
    latency = HdrHistogram.decode(data["histograms"]["latency"])
    assert latency.get_total_count() == data["counts"]["received"]
    reader = HistogramLogReader(str(log), HdrHistogram(1, LONGEST, 3))
    whole = HdrHistogram(1, LONGEST, 3)
    while part := reader.get_next_interval_histogram():
        whole.add(part)
    reader.close()
    assert whole.equals(latency)
    assert plot.read_bytes().startswith(b"\x89PNG")


# -- what goes wrong


def test_a_wrong_reply_is_shown() -> None:
    with answering(lambda data: b"\x1b[2J" + data) as address:
        done = load("--prefix", "", "--messages", "9", address)
    assert done.returncode == FAILED
    assert "the first wrong reply: it is longer than any right one" in done.stdout
    assert re.search(r"^  0000  1b 5b 32 4a ", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout
    assert "fastecho: not every reply was right: wrong 1" in done.stderr


def test_a_server_that_closes_is_no_success(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    left = [20]

    def answer(data: bytes) -> bytes | None:
        left[0] -= 1
        return data if left[0] > 0 else None

    with answering(answer) as address:
        done = load("--prefix", "", "--duration", "5", "--json", str(file), address)
    assert done.returncode == FAILED
    assert "closed (" in done.stdout
    assert json.loads(file.read_text())["counts"]["received"] == 19


def test_a_server_that_says_nothing_is_no_success() -> None:
    with answering(lambda _: b"") as address:
        done = load("--timeout", "0.3", "--duration", "5", address)
    assert done.returncode == FAILED
    assert "missing 1" in done.stderr


def test_a_lost_datagram_is_no_success() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind((OWN_HOST, 0))
        address = named(silent.getsockname())
        done = load("--udp", "--timeout", "0.2", "--duration", "0.4", address)
    assert done.returncode == FAILED
    assert "lost" in done.stderr


def test_a_generator_that_measures_itself_says_so(daemon: Daemon, tmp_path: Path) -> None:
    """What nobody can send in time is late."""
    words = ["--rate", "3e5", "--duration", "0.5", "--pipeline", "256", named(daemon.tcp)]
    file = tmp_path / "a.json"
    done = load("--backend", "pure", "--json", str(file), "--strict", *words)
    data = json.loads(file.read_text())
    assert data["generator_bound"] == (data["generator_bound_reason"] is not None)
    if data["generator_bound"]:
        assert re.search(r"^generator-bound: \w", done.stdout, re.MULTILINE)
        assert "fastecho: generator-bound: " in done.stderr
    assert done.returncode == (FAILED if data["generator_bound"] else DONE)


WRONG = [
    (["--connections", "0"], "connections must be a whole number from 1"),
    (["--connections", "x"], "'x' is not a valid integer"),
    (["--size", "tiny"], "'tiny' is no size: write bytes (64), a range"),
    (["--size", "1", "--framing", "u32"], "no message takes 1 bytes"),
    (["--framing", "lines"], "did you mean line?"),
    (["--prefix", "{time}"], "has no token {time}"),
    (["--rate", "0"], "rate must be from 0.001"),
    (["--arrivals", "never"], "'never' is not one of"),
    (["--duration", "-1"], "duration must be seconds"),
    (["--pid", "0"], "--pid"),
    (["--framing", "raw", "--pipeline", "2"], "it needs a pipeline of 1"),
    (["--plot", "a.pdf"], "a plot is a .png or .svg file"),
    (["--udp", "unix:a"], "'unix:a' is no UDP address"),
    (["fd://3"], "'fd://3' is no address to talk to"),
]


@pytest.mark.parametrize(("words", "said"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_wrong_usage_is_one_sentence_and_status_2(words: list[str], said: str) -> None:
    done = load(*words)
    assert said in sentence(done)
    assert done.returncode == USAGE


def test_nobody_to_talk_to_is_status_3(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    done = load(f"{OWN_HOST}:1", "--json", str(file))
    assert sentence(done).startswith(f"cannot reach tcp://{OWN_HOST}:1: connection refused")
    assert done.returncode == UNAVAILABLE
    assert not file.exists()


@pytest.mark.parametrize("option", ["--json", "--hdr", "--plot"])
def test_a_file_that_cannot_be_written_is_found_out_before(
    option: str, daemon: Daemon, tmp_path: Path
) -> None:
    file = tmp_path / "none" / "a.png"
    words = [option, str(file), "--duration", "60", named(daemon.tcp)]
    if option != "--json":
        words += ["--json", str(tmp_path / "b")]
    done = load(*words)
    assert sentence(done).startswith(f"cannot write {file}: no such file or directory")
    assert done.returncode == UNAVAILABLE
    assert not list(tmp_path.iterdir())


def test_a_directory_cannot_be_written(daemon: Daemon, tmp_path: Path) -> None:
    done = load("--json", str(tmp_path), "--duration", "60", named(daemon.tcp))
    assert sentence(done).startswith(f"cannot write {tmp_path}: is a directory")


def test_a_result_is_kept_until_there_is_a_new_one(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")
    assert load("--json", str(file), f"{OWN_HOST}:1").returncode == UNAVAILABLE
    assert file.read_text() == "old"


def test_a_full_disk_is_one_sentence(daemon: Daemon) -> None:
    done = load("--messages", "10", "--json", "/dev/full", named(daemon.tcp))
    assert done.returncode == UNAVAILABLE
    assert "10 right" in done.stdout
    assert done.stderr.splitlines()[-1].startswith(
        "fastecho: cannot write /dev/full: no space left"
    )


MISSING = """
import sys
for name in {names}:
    sys.modules[name] = None
sys.argv[1:] = {words}
from fastecho.cli import main
main()
"""


@pytest.mark.parametrize(
    ("names", "words", "said"),
    [
        (["hdrh"], ["load"], "fastecho load needs more packages: pip install 'fastecho[measure]'"),
        (["hdrh"], ["report", "a"], "fastecho report needs more packages: pip install 'fastecho["),
        (["matplotlib"], ["load", "--plot", "a.png"], "packages: pip install 'fastecho[plot]'"),
    ],
)
def test_missing_packages_are_named(names: list[str], words: list[str], said: str) -> None:
    done = run(sys.executable, "-c", MISSING.format(names=names, words=words))
    assert said in done.stderr.decode()
    assert (done.returncode, done.stderr.count(b"\n")) == (UNAVAILABLE, 1)


def test_help_needs_nothing_more() -> None:
    done = run(sys.executable, "-c", MISSING.format(names=["hdrh", "rich"], words=["--help"]))
    assert done.returncode == DONE, done.stderr
    assert b"load" in done.stdout


def test_the_daemon_imports_none_of_it() -> None:
    code = (
        "import sys, fastecho.cli.serve\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('hdrh', 'rich', 'matplotlib')"
        " or m in ('fastecho.load', 'fastecho.report', 'fastecho.client')])"
    )
    assert run(sys.executable, "-c", code).stdout == b"[]\n"


def test_defaults_are_those_of_a_plan() -> None:
    command = commands.get_command(click.Context(commands), "load")
    assert command is not None
    given = command.make_context("load", []).params
    plan = {each.name: getattr(Plan(), each.name) for each in fields(Plan)}
    assert {name: given[name] for name in plan} == plan | {"duration": None}
    assert "load" in COMMANDS


# -- interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_there_is(
    number: signal.Signals, daemon: Daemon, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / name for name in ("a.json", "a.hlog", "a.png")]
    words = [f"--{kind}={file}" for kind, file in zip(("json", "hdr", "plot"), files, strict=True)]
    process = Daemon(["load", *words, "--duration", "600", named(daemon.tcp)], {})
    try:
        until(lambda: " s: " in process.stderr, "progress")
        process.kill(number)
        assert process.stop() == DONE, process.stderr
        assert ", ended early" in process.stdout
        assert "errors     none" in process.stdout
    finally:
        process.discard()
    assert json.loads(files[0].read_text())["stopped"]
    assert_saved(*files)


# -- on a terminal


class Terminal:
    """A command on a terminal of so many columns."""

    def __init__(self, columns: int, *words: str) -> None:
        self.seen = b""
        self._own, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        self.process = subprocess.Popen(
            [*FASTECHO, *words],
            stdin=other,
            stdout=other,
            stderr=other,
            env=environment(TERM="xterm-256color", COLUMNS=str(columns)),
            start_new_session=True,
        )
        os.close(other)

    def read(self, wanted: Callable[[str], object]) -> str:
        """What it has shown, once that is as wanted, or at its end."""
        deadline = time.monotonic() + PATIENCE
        while not wanted(self.text):
            assert time.monotonic() < deadline, self.text
            if select.select([self._own], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self._own, 65_536)
                except OSError:  # nobody has the other end open
                    break
        return self.text

    @property
    def text(self) -> str:
        """Without colours and movements."""
        return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", self.seen.decode(errors="replace"))

    def close(self) -> int:
        self.read(lambda _: False)
        os.close(self._own)
        return self.process.wait(PATIENCE)


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_is_shown_the_same_words(columns: int, daemon: Daemon) -> None:
    pytest.importorskip("rich")
    terminal = Terminal(columns, "load", "--messages", "200", named(daemon.tcp))
    text = terminal.read(lambda _: False)
    assert terminal.close() == DONE
    for word in WORDS:
        assert word in text
    assert b"\x1b[1m" in terminal.seen  # bold
    assert max(len(line.rstrip()) for line in re.split(r"[\r\n]+", text)) <= columns


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_how_far_it_is(columns: int, daemon: Daemon) -> None:
    pytest.importorskip("rich")
    words = ["--duration", "600", "--warmup", "0.5", "--rate", "200", named(daemon.tcp)]
    terminal = Terminal(columns, "load", *words)
    assert "warming up" in terminal.read(lambda text: "warming up" in text)
    shown = terminal.read(lambda text: re.search(r"/s +p50 .*p99 .*max .*errors 0", text))
    assert "measuring" in shown
    assert re.search(r"59\d s left", shown)
    terminal.process.send_signal(signal.SIGINT)
    rest = terminal.read(lambda text: "of processor" in text)
    assert "ended early" in rest
    assert terminal.close() == DONE
    assert terminal.seen.endswith(b"\n")
    assert terminal.seen.rfind(b"\x1b[?25h") > terminal.seen.rfind(b"\x1b[?25l")  # the cursor


# -- report


@pytest.fixture(scope="module")
def saved(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two runs, one after the other."""
    directory = tmp_path_factory.mktemp("saved")
    files = [str(directory / name) for name in ("first.json", "second.json")]
    for file, messages in zip(files, ("100", "300"), strict=True):
        done = load("--messages", messages, "--json", file, named(daemon.tcp))
        assert done.returncode == DONE, done.stderr
    return files


def report(*words: str) -> subprocess.CompletedProcess[str]:
    done = run(*FASTECHO, "report", *words)
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def test_runs_side_by_side(saved: list[str]) -> None:
    done = report(*saved)
    assert (done.returncode, done.stderr) == (DONE, "")
    assert re.search(r"^ +first +second$", done.stdout, re.MULTILINE)
    assert re.search(r"^latency p99 +[\d.]+ \w+ +[\d.]+ \w+ +[\d.]+x$", done.stdout, re.MULTILINE)
    assert re.search(r"^framing +line$", done.stdout, re.MULTILINE)


def test_one_run_is_shown_as_it_was(saved: list[str]) -> None:
    assert "100 right" in report(saved[0]).stdout


def test_merged_runs(saved: list[str], tmp_path: Path) -> None:
    done = report("--merge", *saved)
    assert done.returncode == DONE
    assert "400 sent, 400 right" in done.stdout
    assert "2 runs one after the other" in done.stdout


def test_a_plot_of_several(saved: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "a.svg"
    assert report("--plot", str(file), *saved).returncode == DONE
    assert file.read_bytes().startswith(b"<?xml")


def test_wrong_files_are_one_sentence(saved: list[str], tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    done = report(*saved, str(other))
    assert done.returncode == USAGE
    assert (
        sentence(done)
        == f"{other} is no result of fastecho load: 'schema' is missing, or no whole number"
    )
    done = report(str(tmp_path / "none"))
    assert (done.returncode, "cannot read" in sentence(done)) == (UNAVAILABLE, True)
    assert report().returncode == USAGE
    assert "are the same run" in sentence(report("--merge", saved[0], saved[0]))


@pytest.mark.parametrize("columns", [80, 120])
def test_a_report_fits_the_terminal(columns: int, saved: list[str]) -> None:
    terminal = Terminal(columns, "report", *saved * 3)
    text = terminal.read(lambda _: False)
    assert terminal.close() == DONE
    assert max(len(line.rstrip()) for line in re.split(r"[\r\n]+", text)) <= columns
    assert text.count("first") == 3
