"""What a person sees: the command in a pseudo-terminal of 80 columns, and a shell's completion."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shlex
import socket
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import (
    PATIENCE,
    abort,
    environment,
    needs_ipv6,
    read_to_end,
    run,
    serving,
    until,
)

import fastecho
from fastecho import cli
from fastecho.faults.plan import FAULTS
from fastecho.settings import SETTINGS

ROWS, COLUMNS = 24, 80
CTRL_C = b"\x03"
ESCAPE = "\x1b"
COMMANDS: list[list[str]] = [[], *([name] for name in cli.COMMANDS)]
#: So that it is found from any folder.
SOURCES = str(Path(fastecho.__file__).parents[1])


class Terminal:
    """A `python -m fastecho` in a pseudo-terminal.

    Attributes:
        process: it.
        screen: what it has written so far, with a terminal's line ends made plain.
    """

    def __init__(self, words: list[str], folder: Path, variables: dict[str, str]) -> None:
        self.folder = folder
        self.screen = ""
        self._raw = b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.variables = environment(**{"PYTHONPATH": SOURCES, **variables})
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
            if name not in variables:
                self.variables.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "fastecho", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env=self.variables,
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(slave)

    def read(self) -> bool:
        """Take what there is; whether there can be more."""
        while select.select([self._master], [], [], 0)[0]:
            try:
                self._raw += os.read(self._master, 65_536)
            except OSError:  # the other end is closed (pty(7))
                return False
            self.screen = self._raw.decode().replace("\r\n", "\n")
        return True

    def wait(self, text: str) -> str:
        """The first whole line with `text` in it."""

        def look() -> str:
            self.read()
            lines = self.screen.split("\n")[:-1]
            return next((line for line in lines if text in line), "")

        return until(look, f"{text!r} on the terminal")

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self) -> int:
        """Wait for its end and its last words; its exit status."""
        until(lambda: not self.read(), "the terminal's end")
        return self.process.wait(PATIENCE)

    def shell(self, line: str, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
        """Have a shell run this line where it runs, but in no terminal."""
        return subprocess.run(
            ["/bin/sh", "-c", line],
            input=stdin,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
            cwd=self.folder,
            env=self.variables,
        )

    def discard(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


def take_terminal() -> None:
    """Make standard input the terminal whose Ctrl-C is for this process."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name: a socket's path has little room."""
    with tempfile.TemporaryDirectory(prefix="fe", dir="/tmp") as name:
        yield Path(name)


@contextmanager
def terminal(*words: str, folder: Path, **variables: str) -> Iterator[Terminal]:
    """With a command in it that is ended by Ctrl-C."""
    shown = Terminal(list(words), folder, variables)
    try:
        yield shown
        shown.type(CTRL_C)
        assert shown.end() == 0, shown.screen
        assert "Traceback" not in shown.screen
    finally:
        shown.discard()


def offer(shown: Terminal) -> str:
    """The command that it tells to try."""
    return shown.wait("try: ").removeprefix("try: ")


# -- try


STAMP = rb"\[\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\]"
TRIED = [
    # words, what is typed, a pattern of the reply
    (["127.0.0.1:0"], b"hello\n", STAMP + rb"hello\n"),
    (["tcp://127.0.0.1:0"], b"hello\n", STAMP + rb"hello\n"),
    (["udp://127.0.0.1:0"], b"hello\n", STAMP + rb"hello\n"),
    (["0.0.0.0:0"], b"hello\n", STAMP + rb"hello\n"),
    (["udp://0.0.0.0:0"], b"hello\n", STAMP + rb"hello\n"),
    ([":0"], b"hello\n", STAMP + rb"hello\n"),
    (["localhost:0"], b"hello\n", STAMP + rb"hello\n"),
    (["unix:s"], b"hello\n", STAMP + rb"hello\n"),
    (["unixgram:./s"], b"hello\n", STAMP + rb"hello\n"),
    (['unix:it\'s a "path" $HOME;*'], b"hello\n", STAMP + rb"hello\n"),
    (["unix:s?mode=0600"], b"hello\n", STAMP + rb"hello\n"),
    (["--framing", "raw"], b"hello\n", STAMP + rb"hello\n"),
    (["--framing", "fixed:4"], b"four\n", STAMP + rb"four\n"),
    (["--framing", "fixed:4", "--prefix", "{iso}|"], b"four\n", rb"\d{4}-[^|]+\|four\n"),
    (["--framing", "delimiter:0d0a"], b"a b\n", STAMP + rb"a b\n"),
    (["--framing", "u8"], b"hello\n", STAMP + rb"hello\n"),
    (["--framing", "u32le"], b"hello\n", STAMP + rb"hello\n"),
    (["--framing", "length:width=3,offset=2,adjust=-1,le"], b"hello\n", STAMP + rb"hello\n"),
    (["--framing", "varint"], b"hello\n", STAMP + rb"hello\n"),
    (["--framing", "netstring"], b"hello\n", STAMP + rb"hello\n"),
    (["--prefix", ""], b"hello\n", rb"hello\n"),
    (["--prefix", 'it\'s "{seq}" $HOME `id` \\ '], b"x\n", rb"it's \"1\" \$HOME `id` \\ x\n"),
    (["--prefix", "-v{seq}"], b"x\n", rb"-v1x\n"),
    (["--prefix", "é{{}} "], b"x\n", "é{} x\n".encode()),
    (["udp://127.0.0.1:0", "unix:s", "--framing", "u16"], b"x\n", STAMP + rb"x\n"),
]


@pytest.mark.parametrize(("words", "typed", "reply"), TRIED, ids=[" ".join(w) for w, *_ in TRIED])
def test_what_it_tells_to_try_gets_a_reply(
    words: list[str], typed: bytes, reply: bytes, folder: Path
) -> None:
    """By a shell in the same folder."""
    listens = any(word.startswith(("unix", "udp", "tcp")) or word.endswith(":0") for word in words)
    with terminal(*words, *([] if listens else ["127.0.0.1:0"]), folder=folder) as shown:
        done = shown.shell(offer(shown), typed)
    assert (done.returncode, done.stderr) == (0, b"")
    assert re.fullmatch(reply, done.stdout), done.stdout


@needs_ipv6
@pytest.mark.parametrize("word", ["[::]:0", "[::1]:0", "udp://[::]:0", "tcp://[::1]:0"])
def test_what_it_tells_to_try_gets_a_reply_over_ipv6(word: str, folder: Path) -> None:
    with terminal(word, folder=folder) as shown:
        done = shown.shell(offer(shown), b"hello\n")
    assert (done.returncode, done.stderr) == (0, b"")
    assert re.fullmatch(STAMP + rb"hello\n", done.stdout)


def test_tells_where_it_waits_and_then_one_thing_to_try(folder: Path) -> None:
    """Ready lines first; nothing else, and nothing of it coloured."""
    with terminal("127.0.0.1:0", "unix:s", folder=folder) as shown:
        shown.wait("try: ")
        first, second, third, last, rest = shown.screen.split("\n")
    assert first.startswith("waiting for connection ... tcp://127.0.0.1:")
    assert second.startswith("waiting for message ... udp://127.0.0.1:")
    assert third.startswith("waiting for connection ... unix:s (")
    assert last.startswith("try: ")
    assert rest == ""
    assert ESCAPE not in first + second + third + last


def test_what_it_tells_to_try_is_short(folder: Path) -> None:
    """Only what differs from the client's own defaults."""
    command = ["--framing", "u32", "127.0.0.1:0"]
    with terminal(*command, folder=folder) as shown:
        words = shlex.split(offer(shown))
    assert words[:3] == [sys.executable, "-m", "fastecho"]
    assert words[3:6] == ["client", "--framing", "u32"]
    assert re.fullmatch(r"127\.0\.0\.1:\d+", words[6])


def test_nothing_to_try_where_no_terminal_shows_it(twin: Any) -> None:
    with serving("-v", backend=twin.name) as daemon:
        with daemon.connect() as sock:
            abort(sock)
        daemon.wait_line("closed (reset)")
        assert daemon.stop() == 0
        assert "try: " not in daemon.stderr
        assert ESCAPE not in daemon.stderr


# -- colours


def break_framing(shown: Terminal) -> None:
    """So that it warns."""
    port = int(re.findall(r":(\d+) \(", shown.wait("waiting for connection"))[0])
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.sendall(b"too long\n")
        read_to_end(sock)


YELLOW = f"{ESCAPE}[33m"
RESET = f"{ESCAPE}[0m"
FAULT = ("127.0.0.1:0", "--max-frame", "3")


def test_a_warning_is_yellow_on_a_terminal(folder: Path) -> None:
    with terminal(*FAULT, folder=folder) as shown:
        break_framing(shown)
        line = shown.wait("frame at offset 0")
    assert line.startswith(YELLOW)
    assert line.endswith(RESET)
    assert line.count(ESCAPE) == 2


def test_the_unfinished_message_is_named_in_yellow(folder: Path) -> None:
    """Every newcomer's first trap."""
    with terminal("127.0.0.1:0", folder=folder) as shown:
        port = int(re.findall(r":(\d+) \(", shown.wait("waiting for connection"))[0])
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            sock.sendall(b"hi")
            line = shown.wait("no newline yet")
    assert line.startswith(YELLOW)
    assert "2 bytes and no newline yet (for clients that send none: --framing raw)" in line


def test_what_is_no_warning_has_no_colour(folder: Path) -> None:
    with terminal(*FAULT, "-v", folder=folder) as shown:
        break_framing(shown)
        assert ESCAPE not in shown.wait("connected from")
        assert ESCAPE not in shown.wait("closed (too_long)")


def test_a_misspelt_variable_is_named_in_yellow(folder: Path) -> None:
    with terminal("127.0.0.1:0", folder=folder, FASTECHO_MAXFRAME="7") as shown:
        line = shown.wait("FASTECHO_MAXFRAME")
        shown.wait("try: ")
    said = "FASTECHO_MAXFRAME is no setting: did you mean FASTECHO_MAX_FRAME?"
    assert line == f"{YELLOW}{said}{RESET}"


@pytest.mark.parametrize(
    ("flags", "variables"),
    [
        ([], {"NO_COLOR": "1"}),
        ([], {"NO_COLOR": "anything"}),
        (["--log-format", "json"], {}),
    ],
)
def test_no_colour_where_it_is_not_wanted(
    flags: list[str], variables: dict[str, str], folder: Path
) -> None:
    with terminal(*FAULT, "-v", *flags, folder=folder, **variables) as shown:
        break_framing(shown)
        shown.wait("frame at offset 0")
        shown.wait("closed (too_long)")
    assert ESCAPE not in shown.screen


def test_an_empty_no_color_says_nothing(folder: Path) -> None:
    """As https://no-color.org has it."""
    with terminal(*FAULT, folder=folder, NO_COLOR="") as shown:
        break_framing(shown)
        assert shown.wait("frame at offset 0").startswith(YELLOW)


# -- Ctrl-C


@pytest.mark.parametrize("flags", [[], ["-v"], ["--log-format", "json"]])
def test_ctrl_c_ends_with_the_summary(flags: list[str], folder: Path) -> None:
    with terminal("127.0.0.1:0", *flags, folder=folder) as shown:
        done = shown.shell(offer(shown), b"hello\n")
    assert done.returncode == 0
    *_, last, rest = shown.screen.split("\n")
    assert rest.removeprefix(RESET) == ""
    assert "served 1 connection, 1 message, 6 bytes in, 32 bytes out; closed: eof 1" in last


# -- help


@pytest.mark.parametrize("words", COMMANDS)
def test_help_fits_a_terminal(words: list[str], folder: Path) -> None:
    shown = Terminal([*words, "--help"], folder, {})
    try:
        assert shown.end() == 0
    finally:
        shown.discard()
    lines = shown.screen.splitlines()
    assert lines[0].startswith("Usage: fastecho ")
    assert [line for line in lines if len(line) > COLUMNS] == []
    assert ESCAPE not in shown.screen
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("words", COMMANDS)
def test_help_is_as_wide_in_a_pipe(words: list[str]) -> None:
    done = run(sys.executable, "-m", "fastecho", *words, "--help", variables={"COLUMNS": "200"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert max(map(len, done.stdout.decode().splitlines())) <= COLUMNS


# -- completion


def completed(line: str, begun: str = "", **variables: str) -> list[str]:
    """What bash is offered for `begun`, after these words."""
    words = [*line.split(), begun]
    asked = {
        "_FASTECHO_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
        **variables,
    }
    done = run(sys.executable, "-m", "fastecho", variables=asked)
    assert (done.returncode, done.stderr) == (0, b"")
    offered = done.stdout.decode().split()
    assert all(each.count(",") >= 1 for each in offered), offered
    return [each.partition(",")[2] for each in offered]


FLAGS = {f"--{name.replace('_', '-')}" for name in SETTINGS if name != "listen"}


def test_commands_are_offered_first() -> None:
    assert completed("fastecho") == list(cli.COMMANDS)
    assert completed("fastecho", "s") == ["serve"]


@pytest.mark.parametrize(
    "line", ["fastecho", "fastecho serve", "fastecho :7", "fastecho --verbose"]
)
def test_options_of_serve_are_offered_with_and_without_its_name(line: str) -> None:
    offered = set(completed(line, "--"))
    given = {"--verbose"} if "--verbose" in line else set()
    assert offered >= (FLAGS - given) | {"--config", "--print-config", "--no-show-cuts", "--help"}
    assert "--udp" not in offered
    assert ("--version" in offered) == (line == "fastecho")


def test_options_of_the_client_are_its_own() -> None:
    due = {"--udp", "--framing", "--prefix", "--max-frame", "--timeout", "-h", "--help"}
    assert set(completed("fastecho client", "-")) == due


@pytest.mark.parametrize("line", ["fastecho", "fastecho serve", "fastecho :7"])
def test_values_are_offered(line: str) -> None:
    assert completed(f"{line} --log-format") == ["text", "json"]
    assert completed(f"{line} --backend", "n") == ["native"]


@pytest.mark.parametrize("line", ["fastecho", "fastecho serve", "fastecho client"])
def test_framings_are_offered(line: str) -> None:
    assert completed(f"{line} --framing") == list(fastecho.framing.SPECS)
    assert completed(f"{line} --framing", "u16") == ["u16", "u16le"]
    assert completed(f"{line} --framing", "zzz") == []


def test_faults_are_offered() -> None:
    assert completed("fastecho --faults") == list(FAULTS)
    assert completed("fastecho --faults", "s") == ["swap", "stall", "slice", "slow-read"]
    assert completed("fastecho --faults", "walk;dr") == ["walk;drop", "walk;dribble"]


@pytest.mark.parametrize("option", ["--config", "--fault-log"])
def test_a_file_is_completed_by_the_shell(option: str) -> None:
    done = run(
        *(sys.executable, "-m", "fastecho"),
        variables={
            "_FASTECHO_COMPLETE": "bash_complete",
            "COMP_WORDS": f"fastecho {option} ",
            "COMP_CWORD": "2",
        },
    )
    assert done.stdout == b"file,\n"


def test_completion_prints_no_version() -> None:
    assert completed("fastecho --version", "s") == ["serve"]


def test_completion_minds_no_wrong_settings() -> None:
    wrong = {"FASTECHO_BACKEND": "0", "FASTECHO_CONFIG": "/none", "FASTECHO_BACKLOG": "x"}
    assert completed("fastecho", "--fr", **wrong) == ["--framing", "--frame-timeout"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell: str) -> None:
    asked = {"_FASTECHO_COMPLETE": f"{shell}_source"}
    done = run(sys.executable, "-m", "fastecho", variables=asked)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"_FASTECHO_COMPLETE" in done.stdout
    assert b"fastecho" in done.stdout


def test_bash_understands_it() -> None:
    done = run(*(sys.executable, "-m", "fastecho"), variables={"_FASTECHO_COMPLETE": "bash_source"})
    try:
        checked = run("bash", "-n", stdin=done.stdout)
    except FileNotFoundError:
        pytest.skip("no bash here")
    assert (checked.returncode, checked.stderr) == (0, b"")
    assert b"complete " in done.stdout
