"""`fastecho client`: the command, in a pipe and in a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from misbehaving import (
    Act,
    closing,
    datagram_server,
    resetting,
    saying,
    silent,
    stream_server,
)
from processes import PATIENCE, environment, named, run, until

from fastecho import cli, running

DONE, FAILED, USAGE, UNAVAILABLE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 130, 141

PREFIX = "<0>"
STAMP = r"\[\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\]"
#: Every framing, each with a spec of its own.
SPECS = (
    "line",
    "delimiter:0d0a",
    "any:0a,00",
    "raw",
    "fixed:5",
    "u8",
    "u16le",
    "u32",
    "u64",
    "length:width=3,offset=2,adjust=-4,le",
    "varint",
    "netstring",
)


# -- the command, in a pipe


def client(
    word: str, *flags: str, stdin: bytes = b"", chosen: str = "auto"
) -> subprocess.CompletedProcess[bytes]:
    """`fastecho client`, to its end; it must never show a traceback."""
    command = [sys.executable, "-W", "error", "-m", "fastecho", "client", word, *flags]
    done = run(*command, stdin=stdin, variables={"FASTECHO_BACKEND": chosen})
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert b"Warning" not in done.stderr, done.stderr.decode()
    return done


def one_sentence(stderr: bytes) -> str:
    """The one sentence; it is printable ASCII, whatever the peer said."""
    text = stderr.decode("ascii")
    assert text.startswith("fastecho: "), text
    assert text.endswith("\n"), text
    sentence = text.removesuffix("\n")
    assert sentence.isprintable(), text
    return sentence.removeprefix("fastecho: ")


@pytest.mark.parametrize("flags", [(), ("--udp",)], ids=["tcp", "udp"])
@pytest.mark.parametrize(
    ("stdin", "stdout"),
    [
        (b"a\nb\n", b"<0>a\n<0>b\n"),
        (b"a\nb", b"<0>a\n<0>b\n"),
        (b"a\r\n\r\nb\r\n", b"<0>a\r\n<0>\r\n<0>b\r\n"),
        (
            b"\0\n\xff\xfe\x80\x1b[2J\n\xe2\x80\xae",
            b"<0>\0\n<0>\xff\xfe\x80\x1b[2J\n<0>\xe2\x80\xae\n",
        ),
        (b"", b""),
        (b"\n", b""),
        (b"a\n\nb\n", b"<0>a\n"),
    ],
    ids=["lines", "no end", "cr lf", "any byte", "nothing", "an empty line", "an end within"],
)
def test_prints_one_reply_a_line(
    stdin: bytes, stdout: bytes, flags: tuple[str, ...], chosen: str
) -> None:
    with running(backend=chosen, prefix=PREFIX) as server:
        address = server.udp_address if flags else server.tcp_address
        done = client(named(address), *flags, stdin=stdin, chosen=chosen)
    assert (done.returncode, done.stdout, done.stderr) == (DONE, stdout, b"")


@pytest.mark.parametrize("spec", SPECS)
def test_sends_each_line_in_its_framing(spec: str, chosen: str) -> None:
    with running(backend=chosen, framing=spec) as server:
        word = named(server.tcp_address)
        done = client(word, "--framing", spec, stdin=b"hello\nworld\n", chosen=chosen)
    assert (done.returncode, done.stderr) == (DONE, b"")
    assert re.fullmatch(f"{STAMP}hello\n{STAMP}world\n".encode(), done.stdout)


def test_speaks_to_a_unix_socket(chosen: str, tmp_path: Path) -> None:
    word = f"unix:{tmp_path}/socket"
    with running(backend=chosen, listen=word, prefix=PREFIX):
        done = client(word, stdin=b"x\n", chosen=chosen)
    assert (done.returncode, done.stdout, done.stderr) == (DONE, b"<0>x\n", b"")


def test_a_line_that_its_framing_cannot_carry_is_one_sentence_and_status_1(chosen: str) -> None:
    with running(backend=chosen, framing="fixed:5", prefix=PREFIX) as server:
        word = named(server.tcp_address)
        flags = ("--framing", "fixed:5", "--prefix", PREFIX)
        done = client(word, *flags, stdin=b"hello\nhi\nworld\n", chosen=chosen)
    assert (done.returncode, done.stdout) == (FAILED, b"<0>hello\n<0>world\n")
    assert one_sentence(done.stderr) == "cannot send 'hi': fixed:5 cannot carry 2 bytes"


def test_a_reply_that_does_not_come_is_one_sentence_and_status_1_at_the_end(chosen: str) -> None:
    def second_only(sock: socket.socket) -> None:
        sock.recvfrom(100)
        data, peer = sock.recvfrom(100)
        sock.sendto(b"<0>" + data, peer)

    with datagram_server(second_only) as word:
        done = client(word, "--udp", "--timeout", "0.5", stdin=b"a\nb\n", chosen=chosen)
    assert (done.returncode, done.stdout) == (FAILED, b"<0>b\n")
    assert one_sentence(done.stderr) == "no reply to 'a' within 0.5 s"


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (resetting, "tcp://{}: connection reset by peer (error 104)"),
        (closing, "tcp://{}: the server has closed; no reply to 'a'"),
        (
            saying(b"\x1b]0;owned\x07\x9b\xe2\x80\xae\xff\n"),
            r"the reply to 'a' does not end with it: '\x1b]0;owned\x07\x9b\xe2\x80\xae\xff'",
        ),
    ],
    ids=["reset", "close", "escapes"],
)
def test_a_server_that_fails_midway_is_one_sentence_and_status_1(
    act: Act, sentence: str, chosen: str
) -> None:
    with stream_server(act) as word:
        done = client(word, stdin=b"a\nb\n", chosen=chosen)
    assert (done.returncode, done.stdout) == (FAILED, b"")
    assert one_sentence(done.stderr) == sentence.format(word)


@pytest.mark.parametrize("flags", [(), ("--udp",)], ids=["tcp", "udp"])
def test_nobody_there_is_one_sentence_and_status_3(
    flags: tuple[str, ...], unused: str, chosen: str
) -> None:
    done = client(unused, *flags, stdin=b"a\n", chosen=chosen)
    assert (done.returncode, done.stdout) == (UNAVAILABLE, b"")
    protocol = "udp" if flags else "tcp"
    assert one_sentence(done.stderr) == (
        f"cannot reach {protocol}://{unused}: connection refused (error 111)"
    )


def test_no_way_there_is_one_sentence_and_status_3(chosen: str) -> None:
    """In a network namespace of its own, where not even the loopback is up."""
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    try:
        able = subprocess.run([*alone, "true"], capture_output=True, timeout=PATIENCE, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if able.returncode:
        pytest.skip("no network namespace can be made here")
    command = [*alone, sys.executable, "-m", "fastecho", "client", "127.0.0.1:7"]
    done = run(*command, stdin=b"a\n", variables={"FASTECHO_BACKEND": chosen})
    assert (done.returncode, done.stdout) == (UNAVAILABLE, b"")
    assert one_sentence(done.stderr) == (
        "cannot reach tcp://127.0.0.1:7: network is unreachable (error 101)"
    )


WRONG = [
    (["--framing", "lines"], "unknown framing 'lines' (did you mean line?)"),
    (["--framing", "fixed:5", "--prefix", "{seq}"], "only if all prefixes have one width"),
    (["--prefix", "{time}"], "has no token {time}"),
    (["--max-frame", "0"], "must be a whole number from 1 to 1,073,741,824, not 0"),
    (["--max-frame", "many"], "--max-frame"),
    (["--timeout", "-1"], "timeout must be seconds"),
    (["--timeout", "nan"], "timeout must be seconds"),
    (["--timeout", "inf"], "timeout must be seconds"),
    (["--timeout", "0"], "timeout must be"),
    (["--timeout", "soon"], "--timeout"),
    (["--upd"], "No such option '--upd'"),
    (["127.0.0.1:7", "127.0.0.1:8"], "unexpected extra argument"),
    (["127.0.0.1"], "'127.0.0.1' is no address"),
    (["127.0.0.1:0"], "port 0 is for listening"),
    (["fd://3"], "it is an inherited descriptor"),
    (["unix:/tmp/x?mode=0600"], "leave out ?mode="),
    (["unix:" + "x" * 108], "at most 107 bytes"),
    (["tcp://127.0.0.1:7", "--udp"], "leave out --udp"),
    (["unix:/tmp/x", "--udp"], "leave out --udp"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=[" ".join(w)[:40] for w, _ in WRONG])
def test_wrong_usage_is_one_sentence_and_status_2(
    words: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["fastecho", "client", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    stdout, stderr = capfd.readouterr()
    assert (ended.value.code, stdout) == (USAGE, "")
    assert sentence in one_sentence(stderr.encode())


def test_help_lists_each_flag(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fastecho", "client", "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    stdout, stderr = capfd.readouterr()
    assert (ended.value.code, stderr) == (DONE, "")
    for flag in ("[ADDR]", "--udp", "--framing", "--prefix", "--max-frame", "--timeout"):
        assert flag in stdout
    assert max(map(len, stdout.splitlines())) <= 80


# -- the command's own ends


class Piped:
    """`fastecho client` with pipes for its ends, while it runs."""

    def __init__(self, word: str, chosen: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "fastecho", "client", word],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(FASTECHO_BACKEND=chosen),
        )

    def say(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def hear(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self) -> tuple[int, bytes]:
        """Its status, and what it complained of."""
        assert self.process.stderr is not None
        with self.process.stderr:
            complaints = self.process.stderr.read()
        return self.process.wait(PATIENCE), complaints


@contextmanager
def piped(word: str, chosen: str) -> Iterator[Piped]:
    one = Piped(word, chosen)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()
        for end in (one.process.stdin, one.process.stdout, one.process.stderr):
            with suppress(OSError):
                if end is not None:
                    end.close()


def test_a_reply_is_printed_before_the_next_line_is_read(chosen: str) -> None:
    with (
        running(backend=chosen, prefix=PREFIX) as server,
        piped(named(server.tcp_address), chosen) as one,
    ):
        for line in (b"a\n", b"b\n"):
            one.say(line)
            assert one.hear() == b"<0>" + line
        one.say(b"\n")
        assert one.end() == (DONE, b"")


def test_who_reads_no_more_ends_it_without_a_word(chosen: str) -> None:
    """As `| head -1` does."""
    with (
        running(backend=chosen, prefix=PREFIX) as server,
        piped(named(server.tcp_address), chosen) as one,
    ):
        one.say(b"a\n")
        assert one.hear() == b"<0>a\n"
        assert one.process.stdout is not None
        one.process.stdout.close()
        one.say(b"b\n")
        assert one.end() == (BROKEN_PIPE, b"")


def test_an_interruption_is_status_130_without_a_word(chosen: str) -> None:
    with (
        running(backend=chosen, prefix=PREFIX) as server,
        piped(named(server.tcp_address), chosen) as one,
    ):
        one.say(b"a\n")
        assert one.hear() == b"<0>a\n"
        one.process.send_signal(signal.SIGINT)
        status, complaints = one.end()
        assert (status, complaints.strip()) == (INTERRUPTED, b"")


def test_an_interruption_while_it_waits_for_a_reply_is_the_same(chosen: str) -> None:
    asked = threading.Event()

    def act(sock: socket.socket) -> None:
        sock.recv(100)
        asked.set()
        silent(sock)

    with stream_server(act) as word, piped(word, chosen) as one:
        one.say(b"a\n")
        assert asked.wait(PATIENCE)
        one.process.send_signal(signal.SIGINT)
        status, complaints = one.end()
        assert (status, complaints.strip()) == (INTERRUPTED, b"")


def redirected(
    word: str, redirection: str, chosen: str, stdin: bytes = b"a\n"
) -> subprocess.CompletedProcess[bytes]:
    """The command as a shell starts it."""
    command = f'exec "$0" -W error -m fastecho client "$1" {redirection}'
    return run(
        *("sh", "-c", command, sys.executable, word),
        stdin=stdin,
        variables={"FASTECHO_BACKEND": chosen},
    )


@pytest.mark.parametrize("redirection", ["<&-", ">&-"])
def test_a_closed_end_is_one_sentence_and_status_3(redirection: str, chosen: str) -> None:
    with running(backend=chosen) as server:
        done = redirected(named(server.tcp_address), redirection, chosen)
    assert (done.returncode, done.stdout) == (UNAVAILABLE, b"")
    assert " closed" in one_sentence(done.stderr)


def test_a_full_disk_is_one_sentence_and_status_3(chosen: str) -> None:
    with running(backend=chosen) as server:
        done = redirected(named(server.tcp_address), ">/dev/full", chosen)
    assert (done.returncode, done.stdout) == (UNAVAILABLE, b"")
    assert one_sentence(done.stderr) == "No space left on device"


def test_complaints_that_nobody_hears_change_nothing(unused: str, chosen: str) -> None:
    done = redirected(unused, "2>&-", chosen)
    assert (done.returncode, done.stdout, done.stderr) == (UNAVAILABLE, b"", b"")


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_no_other_command_shows_a_traceback_for_want_of_an_output(redirection: str) -> None:
    command = f'exec "$0" -m fastecho --version {redirection}'
    done = run("sh", "-c", command, sys.executable)
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") <= 1


# -- the command, in a terminal


class Terminal:
    """`fastecho client` in a terminal of 80 columns.

    Args:
        word: its address.
        chosen: its backend.
        state: the directory of its history.
        redirection: of a shell, for what is not to be the terminal.
        flags: of the command.
        variables: of its environment.
    """

    def __init__(
        self,
        word: str,
        chosen: str,
        state: Path,
        redirection: str = "",
        flags: tuple[str, ...] = (),
        **variables: str,
    ) -> None:
        self._screen = bytearray()
        self._master, slave = pty.openpty()
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        os.set_blocking(self._master, False)
        # A session's leader that opens a terminal has it for Ctrl-C (tty_ioctl(4)).
        shell = f'exec "$@" <>"$0" >&0 2>&1 {redirection}'
        command = [sys.executable, "-W", "error", "-m", "fastecho", "client", word, *flags]
        self.process = subprocess.Popen(
            ["sh", "-c", shell, os.ttyname(slave), *command],
            start_new_session=True,
            env=environment(
                FASTECHO_BACKEND=chosen, XDG_STATE_HOME=str(state), TERM="xterm", **variables
            ),
        )
        os.close(slave)

    @property
    def screen(self) -> bytes:
        """All that was written to it."""
        with suppress(OSError):  # none is there, or nobody is at the other end any more
            while more := os.read(self._master, 65_536):
                self._screen += more
        return bytes(self._screen)

    @property
    def text(self) -> str:
        """The same without what moves the cursor or changes modes."""
        plain = re.sub(rb"\x1b[\[?0-9;]*[A-Za-z]", b"", self.screen)
        return plain.replace(b"\r\n", b"\n").decode(errors="backslashreplace")

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait(self, text: str) -> None:
        """Until the last that is shown is this."""
        until(lambda: self.text.endswith(text), f"{text!r} at the end of {self.text!r}")

    def end(self) -> int:
        """Its status, which it must have soon; what is typed no more is shown."""
        until(lambda: [self.screen, self.process.poll() is not None][1], f"its end: {self.text!r}")
        return self.process.wait()

    def discard(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


@contextmanager
def terminal(*arguments: Any, **options: Any) -> Iterator[Terminal]:
    one = Terminal(*arguments, **options)
    try:
        yield one
        assert "Traceback" not in one.text
        assert "ignored" not in one.text
    finally:
        one.discard()


@pytest.fixture(scope="module")
def word(chosen: str) -> Iterator[str]:
    """A server's address; its prefix is `<0>`."""
    with running(backend=chosen, prefix=PREFIX) as server:
        yield named(server.tcp_address)


UP, CTRL_C, CTRL_D = b"\x1b[A", b"\x03", b"\x04"


def test_a_terminal_has_a_prompt_and_ctrl_d_ends_it(word: str, chosen: str, tmp_path: Path) -> None:
    with terminal(word, chosen, tmp_path) as one:
        one.wait("> ")
        one.type(b"hello\r")
        one.wait("> hello\n<0>hello\n> ")
        one.type(CTRL_D)
        assert one.end() == DONE
        assert one.text == "> hello\n<0>hello\n> \n"


def test_an_empty_line_ends_it(word: str, chosen: str, tmp_path: Path) -> None:
    with terminal(word, chosen, tmp_path) as one:
        one.wait("> ")
        one.type(b"\r")
        assert one.end() == DONE
        assert one.text == "> \n"


@pytest.mark.parametrize("half", [b"", b"half a line"])
def test_ctrl_c_at_the_prompt_ends_it(half: bytes, word: str, chosen: str, tmp_path: Path) -> None:
    """The shell's own prompt gets a line of its own; the history is kept."""
    with terminal(word, chosen, tmp_path) as one:
        one.wait("> ")
        one.type(b"said\r")
        one.wait("<0>said\n> ")
        one.type(half)
        one.wait("> " + half.decode())
        one.type(CTRL_C)
        assert one.end() == INTERRUPTED
        assert re.search(rf"> {half.decode()}(\^C)?\n\Z", one.text), repr(one.text)
    assert (tmp_path / "fastecho" / "history").read_bytes() == b"said\n"


def test_ctrl_c_while_it_waits_ends_it(chosen: str, tmp_path: Path) -> None:
    asked = threading.Event()

    def act(sock: socket.socket) -> None:
        sock.recv(100)
        asked.set()
        silent(sock)

    with stream_server(act) as word, terminal(word, chosen, tmp_path) as one:
        one.wait("> ")
        one.type(b"hello\r")
        assert asked.wait(PATIENCE)
        one.type(CTRL_C)
        assert one.end() == INTERRUPTED
        assert re.fullmatch(r"> hello\n(\^C)?\n?", one.text), one.text
    assert (tmp_path / "fastecho" / "history").read_bytes() == b"hello\n"


def test_up_recalls_the_last_line(word: str, chosen: str, tmp_path: Path) -> None:
    with terminal(word, chosen, tmp_path) as one:
        one.wait("> ")
        one.type(b"hello\r")
        one.wait("<0>hello\n> ")
        one.type(UP)
        one.wait("> hello")
        one.type(b" again\r")
        one.wait("<0>hello again\n> ")
        one.type(CTRL_D)
        assert one.end() == DONE


def test_history_lasts_from_one_to_the_next(word: str, chosen: str, tmp_path: Path) -> None:
    """In a directory that is the user's alone."""
    state = tmp_path / "not" / "there"
    with terminal(word, chosen, state) as one:
        one.wait("> ")
        one.type(b"remember\r")
        one.wait("<0>remember\n> ")
        one.type(b"\r")
        assert one.end() == DONE
    history = state / "fastecho" / "history"
    assert history.read_bytes() == b"remember\n"
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    with terminal(word, chosen, state) as one:
        one.wait("> ")
        one.type(UP)
        one.wait("> remember")
        one.type(b"\r")
        one.wait("<0>remember\n> ")
        one.type(CTRL_D)
        assert one.end() == DONE


def test_pipes_have_no_history(word: str, chosen: str, tmp_path: Path) -> None:
    variables = {"FASTECHO_BACKEND": chosen, "XDG_STATE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "fastecho", "client", word]
    done = run(*command, stdin=b"a\n", variables=variables)
    assert (done.returncode, done.stdout) == (DONE, b"<0>a\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["a file", "no permission"])
def test_history_that_cannot_be_kept_is_not_missed(
    place: str, word: str, chosen: str, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.touch()
    if place == "no permission":
        state = Path("/proc/none")
    with terminal(word, chosen, state) as one:
        one.wait("> ")
        one.type(b"a\r")
        one.wait("<0>a\n> ")
        one.type(CTRL_D)
        assert one.end() == DONE
        assert one.text == "> a\n<0>a\n> \n"


def test_who_has_no_home_has_no_history(word: str, chosen: str, tmp_path: Path) -> None:
    """As in many a container: a number that no name belongs to."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    script = (
        "import os, readline, sys, fastecho.cli.client\n"
        "history = sys.modules['fastecho.cli.client']._history\n"
        "os.environ.pop('HOME', None); os.environ.pop('XDG_STATE_HOME', None)\n"
        "os.chdir('/'); os.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
        "with history(): print('talking')"
    )
    # Not measured: whoever it is then could not write that down.
    unmeasured = ("env", "-u", "COVERAGE_PROCESS_CONFIG", "-u", "COVERAGE_PROCESS_START")
    done = run(*unmeasured, sys.executable, "-c", script, variables={"FASTECHO_BACKEND": chosen})
    assert (done.returncode, done.stdout, done.stderr) == (DONE, b"talking\n", b"")


def test_bytes_that_are_no_text_can_be_typed(word: str, chosen: str, tmp_path: Path) -> None:
    """Where the locale is strict about them, as most are."""
    with terminal(word, chosen, tmp_path, PYTHONIOENCODING="utf-8:strict") as one:
        one.wait("> ")
        one.type(b"caf\xff\r")
        until(lambda: b"<0>caf\\xff" in one.screen, f"the reply: {one.screen!r}")
        one.type(CTRL_D)
        assert one.end() == DONE


def test_lines_that_are_pasted_are_lines(word: str, chosen: str, tmp_path: Path) -> None:
    """Even into a terminal that marks what is pasted, for programs that asked it to."""
    with terminal(word, chosen, tmp_path) as one:
        one.wait("> ")
        pasted = b"a\rb\r"
        marked = b"\x1b[?2004h" in one.screen
        one.type(b"\x1b[200~" + pasted + b"\x1b[201~\r" if marked else pasted)
        one.wait("<0>b\n> ")
        assert "<0>a\n" in one.text
        one.type(CTRL_D)
        assert one.end() == DONE


@pytest.mark.parametrize(
    ("prefix", "shown"),
    [
        ("\x1b[31m", r"\x1b[31m"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("\u202egnp", r"\u202egnp"),
        ("\u2066\u200b\ufeff", r"\u2066\u200b\ufeff"),
        ("a\rb\x08\x00\x7f", r"a\rb\x08\x00\x7f"),
        ("a\u2028b\x85\x0c", r"a\u2028b\x85\x0c"),
        ("\U000e0041", r"\U000e0041"),
        ("olé \u65e5\u672c \U0001f600\t.", "olé \u65e5\u672c \U0001f600\t."),
    ],
)
def test_a_terminal_is_shown_nothing_that_it_would_obey(
    prefix: str, shown: str, chosen: str, tmp_path: Path
) -> None:
    with running(backend=chosen, prefix=prefix) as server:
        where = named(server.tcp_address)
        with terminal(where, chosen, tmp_path, redirection="<<'END'\nx\nEND") as one:
            assert one.end() == DONE
            assert one.text.expandtabs() == f"{shown}x\n".expandtabs()


def test_what_is_no_text_is_escaped_in_a_terminal(chosen: str, tmp_path: Path) -> None:
    def act(sock: socket.socket) -> None:
        sock.sendall(b"\xff\xc0\x80\xed\xa0\x80\xe2\x80" + sock.recv(100))
        silent(sock)

    with (
        stream_server(act) as where,
        terminal(where, chosen, tmp_path, redirection="<<'END'\nx\nEND") as one,
    ):
        assert one.end() == DONE
        assert one.text == r"\xff\xc0\x80\xed\xa0\x80\xe2\x80x" + "\n"


def test_a_terminal_that_is_not_utf_8_is_shown_what_it_can_show(
    chosen: str, tmp_path: Path
) -> None:
    with running(backend=chosen, prefix="olé \u65e5 ") as server:
        where = named(server.tcp_address)
        options = {"redirection": "<<'END'\nx\nEND", "PYTHONIOENCODING": "latin-1"}
        with terminal(where, chosen, tmp_path, **options) as one:
            assert one.end() == DONE
            assert one.screen == b"ol\xe9 \\u65e5 x\r\n"


def test_no_prompt_where_only_the_output_is_a_terminal(
    word: str, chosen: str, tmp_path: Path
) -> None:
    with terminal(word, chosen, tmp_path, redirection="<<'END'\na\nb\nEND") as one:
        assert one.end() == DONE
        assert one.text == "<0>a\n<0>b\n"
    assert list(tmp_path.iterdir()) == []


def test_no_prompt_where_only_the_input_is_a_terminal(
    word: str, chosen: str, tmp_path: Path
) -> None:
    """What goes into a file is the replies, byte for byte."""
    replies = tmp_path / "replies"
    state = tmp_path / "state"
    with terminal(word, chosen, state, redirection=f">'{replies}'") as one:
        one.type(b"a\n\x1b\n")
        until(lambda: replies.exists() and replies.read_bytes().count(b"\n") == 2, "two replies")
        one.type(CTRL_D)
        assert one.end() == DONE
        assert "> " not in one.text
    assert replies.read_bytes() == b"<0>a\n<0>\x1b\n"
    assert not state.exists()


def test_a_failure_in_a_terminal_is_one_sentence(chosen: str, tmp_path: Path) -> None:
    with stream_server(resetting) as where, terminal(where, chosen, tmp_path) as one:
        one.wait("> ")
        one.type(b"a\r")
        assert one.end() == FAILED
        sentence = f"tcp://{where}: connection reset by peer (error 104)"
        assert one.text == f"> a\nfastecho: {sentence}\n"


def test_a_lost_reply_in_a_terminal_is_followed_by_the_prompt(chosen: str, tmp_path: Path) -> None:
    def forgetful(sock: socket.socket) -> None:
        sock.recvfrom(100)
        data, peer = sock.recvfrom(100)
        sock.sendto(b"<0>" + data, peer)

    with (
        datagram_server(forgetful) as where,
        terminal(where, chosen, tmp_path, flags=("--udp", "--timeout", "0.5")) as one,
    ):
        one.wait("> ")
        one.type(b"a\r")
        one.wait("> a\nfastecho: no reply to 'a' within 0.5 s\n> ")
        one.type(b"b\r")
        one.wait("> b\n<0>b\n> ")
        one.type(CTRL_D)
        assert one.end() == FAILED


def test_nobody_there_is_said_before_any_prompt(unused: str, chosen: str, tmp_path: Path) -> None:
    with terminal(unused, chosen, tmp_path) as one:
        assert one.end() == UNAVAILABLE
        assert (
            one.text == f"fastecho: cannot reach tcp://{unused}: connection refused (error 111)\n"
        )
