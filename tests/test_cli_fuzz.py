"""`fastecho fuzz`: the command, its report, its exit status."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from processes import OWN_HOST, PATIENCE, environment, named, needs_ipv6, read_exactly, run
from test_fuzzer import (
    Broken,
    closing,
    counting,
    flooding,
    resetting,
    serving,
    silent,
    tutorial_server,
)
from test_terminal import ESCAPE, terminal

from fastecho import running
from fastecho.cli.fuzz import _bar, _bytes
from fastecho.testing import plans

DONE, FAILED, USAGE, UNAVAILABLE, INTERRUPTED = 0, 1, 2, 3, 130
COMMAND = (sys.executable, "-W", "error", "-m", "fastecho", "fuzz")
QUICK = ("--pairs", "20", "--examples", "5", "--timeout", "0.5")


def fuzz(*words: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """To its end; it must never show a traceback."""
    done = run(*COMMAND, *words, stdin=stdin)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def lines(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """What it prints, which fits into a terminal."""
    shown = done.stdout.decode("utf-8").splitlines()
    assert all(len(line) <= 80 for line in shown if not line.startswith("to see it")), shown
    return shown


def one_sentence(done: subprocess.CompletedProcess[bytes]) -> str:
    text = done.stderr.decode("ascii")
    assert done.stdout == b""
    assert text.startswith("fastecho: ")
    assert text.removesuffix("\n").isprintable()
    return text.removesuffix("\n")


# -- what it finds


def test_the_tutorials_server_fails_at_one_cut(tmp_path: Path) -> None:
    program = tmp_path / "cut.py"
    with tutorial_server() as address:
        done = fuzz(address, "--repro", program, *QUICK)
        again = run(sys.executable, "-W", "error", program)
    assert (done.returncode, done.stderr) == (FAILED, b"")
    shown = lines(done)
    assert shown[:6] == [
        f"tcp://{address} (line) fails: cut after byte 1 of 17",
        "The reply does not end with its message.",
        "",
        "sent    'h'",
        r"        'ello w\xc3\xb6rld \xe2\x82\xac\n'",
        "",
    ]
    (marked,) = [line for line in shown if line.startswith(">")]
    assert "36 5d 68 65 6c 6c 6f 20  6]hello   36 5d 68 5b" in marked
    assert "  single cuts  1 of 22" in shown
    assert "It failed 3 of 3 times." in shown
    assert shown[-1].startswith("to see it again: python ")
    assert again.returncode == FAILED
    with running(framing="line") as server:
        right = run(sys.executable, "-W", "error", program, *map(str, server.tcp_address))
    assert right.returncode == DONE
    assert right.stdout.endswith(b"right\n")


def test_nothing_found_says_what_was_tried(tmp_path: Path) -> None:
    program = tmp_path / "cut.py"
    with running() as server:
        address = named(server.tcp_address)
        done = fuzz(address, "--repro", program, *QUICK)
    assert (done.returncode, done.stderr) == (DONE, b"")
    first, *rest = lines(done)
    assert first == f"tcp://{address} (line): no cut changes the answer"
    assert re.fullmatch(r"\d+ plans were tried in [\d.]+ s\.", rest[0])
    assert "  pairs of cuts      20 of 135" in rest
    assert "  random plans        5 all     by Hypothesis, seed 1" in rest
    assert not program.exists()


def test_it_leaves_nothing_in_the_folder(tmp_path: Path) -> None:
    with running() as server:
        done = subprocess.run(
            [*COMMAND, named(server.tcp_address), *QUICK],
            cwd=tmp_path,
            capture_output=True,
            check=True,
            timeout=PATIENCE,
            env=environment(PYTHONPATH=str(Path(__file__).parents[1])),
        )
    assert done.stderr == b""
    assert list(tmp_path.iterdir()) == []


def test_json_has_it_all(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    with Broken("cr_and_lf") as address:
        done = fuzz(address, "--json", file, *QUICK)
        printed = fuzz(address, "--json", "-", *QUICK)
    assert done.returncode == printed.returncode == FAILED
    assert b"fails: cut after byte 6 of 7" in done.stdout
    for result in (json.loads(file.read_text()), json.loads(printed.stdout)):
        found = result["finding"]
        assert (result["command"], result["schema"], result["delivery"]) == ("fuzz", 1, "read")
        assert result["target"] == f"tcp://{address}"
        assert result["options"]["pairs"] == 20
        assert found["smallest"]["cuts"] == [6]
        assert [bytes.fromhex(each) for each in found["smallest"]["pieces"]] == [b"hello\r", b"\n"]
        assert bytes.fromhex(found["expected"]) == b"> hello\n"
        assert bytes.fromhex(found["received"]) == b"> hello\r\n"
        assert (found["failed"], found["tries"]) == (3, 3)


def test_json_without_a_finding() -> None:
    with running() as server:
        done = fuzz(named(server.tcp_address), "--json", "-", *QUICK)
    result = json.loads(done.stdout)
    assert result["finding"] is None
    assert [each["name"] for each in result["kinds"] if each["tried"] == each["total"]] == [
        each["name"] for each in result["kinds"]
    ]


@pytest.mark.parametrize(
    ("name", "sentences"),
    [
        ("short_buffer", ["1,025 bytes sent whole", "--max-frame 1023", "and 985 bytes more"]),
        ("dies_of_a_reset", ["reset after byte 1 of 17", "answers nobody", "not be tried again"]),
        ("one_buffer_for_all", ["The reply begins with '> h', others with '> '."]),
        ("second_dropped", ["2 requests in one segment", "found among requests together"]),
    ],
)
def test_the_report_tells_what_happened(name: str, sentences: list[str]) -> None:
    with Broken(name) as address:
        done = fuzz(address, *QUICK)
    assert done.returncode == FAILED
    text = " ".join(lines(done))
    for sentence in sentences:
        assert sentence in text, done.stdout.decode()


def test_a_request_is_read_from_a_file_from_a_pipe_and_from_the_command_line(
    tmp_path: Path,
) -> None:
    file = tmp_path / "request"
    file.write_bytes(b"hello\r\n\0\xff\n")
    with running(prefix="") as server:
        address = named(server.tcp_address)
        for words in (["--message", file], ["--message", "-"], ["--text", r"hello\r\n\0\xff\n"]):
            done = fuzz(
                address,
                *words,
                "--json",
                "-",
                "--timeout",
                "0.1",
                "--pairs",
                "0",
                "--examples",
                "0",
                stdin=file.read_bytes(),
            )
            result = json.loads(done.stdout)
            assert (done.returncode, result["finding"]) == (DONE, None)
            assert result["kinds"][0]["of"] == len(file.read_bytes()) - 1


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (r"a\r\n\t\0\\\x41z", b"a\r\n\t\0\\Az"),
        (r"\xff\xFE", b"\xff\xfe"),
        ("€", "€".encode()),
        ("\udcff", b"\xff"),
        (r"\\n", rb"\n"),
        (r"\x0d0", b"\r0"),
    ],
)
def test_escapes_stand_for_bytes(text: str, data: bytes) -> None:
    assert _bytes(text) == data


def test_on_a_terminal_the_report_is_what_stays(tmp_path: Path) -> None:
    with (
        running() as server,
        terminal("fuzz", named(server.tcp_address), *QUICK, folder=tmp_path, TERM="xterm") as shown,
    ):
        head = shown.wait("no cut changes the answer")
        assert f"{ESCAPE}[32m" in head
        assert shown.end() == DONE
    # A line that was rewritten ends as nothing.
    assert "of 1" not in shown.screen.rpartition(f"\r{ESCAPE}[2K")[2].partition("\n")[0]


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (100, f"pairs of cuts      {'#' * 7}{'-' * 23} 32 of 128"),
        (40, f"pairs of cuts      {'#' * 2}{'-' * 8} 32 of 128"),
        (25, "pairs of cuts       32 o"),
    ],
)
def test_the_bar_fits_into_one_line_of_the_terminal(columns: int, line: str) -> None:
    kind = plans.Kind("pairs of cuts", "", 128, 128, tried=32)
    assert _bar(kind, "32 of 128", columns) == line
    assert len(line) < columns


def test_ctrl_c_ends_it_with_what_there_is() -> None:
    with running() as server:
        command = [*COMMAND, named(server.tcp_address), "--examples", "1000000"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        ) as process:
            while server.counters["connections"] < 50:
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            said, complained = process.communicate(timeout=PATIENCE)
    assert process.returncode == INTERRUPTED
    assert b"ended early" in said
    # Where the machine is busy it takes so long that it tells how far it is.
    assert re.fullmatch(rb"([a-z ]+: [\d,]+ of [\d,]+\n)*", complained)


#: Has Ctrl-C come where an import executes a string; then it is the module that it stands for.
INTERRUPTED_IMPORT = """
import os, signal, sys
exec("os.kill(os.getpid(), signal.SIGINT)")
sys.path.remove(os.path.dirname(__file__))
del sys.modules["hypothesis"]
import hypothesis
"""


def test_ctrl_c_while_hypothesis_is_imported(tmp_path: Path) -> None:
    """CPython would end itself by the signal, whoever caught it."""
    (tmp_path / "hypothesis.py").write_text(INTERRUPTED_IMPORT)
    path = f"{tmp_path}:{Path(__file__).parents[1]}"
    with running() as server:
        done = subprocess.run(
            [*COMMAND, named(server.tcp_address), "--pairs", "0", "--examples", "1000000"],
            capture_output=True,
            timeout=PATIENCE,
            env=environment(PYTHONPATH=path),
        )
    assert (done.returncode, done.stderr) == (INTERRUPTED, b"")
    assert b"ended early" in done.stdout


def test_a_search_that_tried_nothing_is_no_success() -> None:
    with running() as server:
        done = run(*COMMAND, named(server.tcp_address), "--duration", "0.000001")
    assert (done.returncode, b"no cut changes" in done.stdout) == (FAILED, False)
    assert b"the time was over before anything was cut" in done.stderr


def test_ctrl_c_before_anything_was_cut() -> None:
    asked = threading.Event()

    def act(sock: socket.socket) -> None:
        while sock.recv(100):
            sock.sendall(b"well")  # and it stays: so it could say more
            asked.set()

    with serving(act) as address:
        command = [*COMMAND, address, "--text", "x", "--timeout", str(PATIENCE)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        ) as process:
            assert asked.wait(PATIENCE)
            process.send_signal(signal.SIGINT)
            said, complained = process.communicate(timeout=PATIENCE)
    assert (process.returncode, complained) == (INTERRUPTED, b"")
    assert said.endswith(b": it was ended before anything was cut\n")


# -- who does not answer, or not always the same


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (closing, "no answer"),
        (resetting, "no answer"),
        (silent, "nothing came within 0.2 s"),
        (flooding, "is no echo server"),
    ],
    ids=["closing", "resetting", "silent", "flooding"],
)
def test_a_server_that_does_not_answer_is_one_sentence(act: Any, sentence: str) -> None:
    with serving(act) as address:
        done = fuzz(address, "--timeout", "0.2")
    assert done.returncode == FAILED
    assert sentence in one_sentence(done)


def test_two_answers_to_the_same_request_are_wrong_usage() -> None:
    with serving(counting()) as address:
        done = fuzz(address, "--text", "request!", "--timeout", "0.2")
    assert done.returncode == USAGE
    assert r"--mask 'Count:[^\r\n]*'" in one_sentence(done)


def test_nobody_there(unused: str) -> None:
    done = fuzz(unused)
    assert done.returncode == UNAVAILABLE
    assert "cannot reach" in one_sentence(done)


# -- wrong usage


WRONG: list[tuple[list[str], int, str]] = [
    (["--udp", "127.0.0.1:7"], USAGE, "fuzz is for streams"),
    (["udp://127.0.0.1:7"], USAGE, "udp://127.0.0.1:7 takes datagrams, which nothing cuts"),
    (["unixgram:x"], USAGE, "fuzz is for streams"),
    (["nowhere"], USAGE, "'nowhere' is no address"),
    (["--framing", "raw"], USAGE, "raw has no messages"),
    (["--framing", "lines"], USAGE, "did you mean line?"),
    (["--framing", "u8", "--text", "x"], USAGE, "leave out --message and --text"),
    (["--message", "x", "--text", "x"], USAGE, "leave out one"),
    (["--text", ""], USAGE, "the request is empty"),
    (["--text", r"a\q"], USAGE, r"\q in --text stands for nothing"),
    (["--text", "a\\"], USAGE, "in --text stands for nothing"),
    (["--text", r"\x4"], USAGE, "in --text stands for nothing"),
    (["--mask", "("], USAGE, "is no regular expression"),
    (["--timeout", "0"], USAGE, "timeout must be more than 0 seconds"),
    (["--timeout", "nan"], USAGE, "timeout must be seconds"),
    (["--duration", "-1"], USAGE, "duration must be seconds"),
    (["--pairs", "-1"], USAGE, "pairs must be a whole number"),
    (["--examples", "x"], USAGE, "'x' is not a valid integer"),
    (["--requests", "0"], USAGE, "0 is not in the range"),
    (["--message", "/dev/zero"], USAGE, "are too much"),
    (["--message", "/nonexistent"], UNAVAILABLE, "cannot read /nonexistent: no such file"),
    (["--message", "/"], UNAVAILABLE, "cannot read /: is a directory"),
    (["--repro", "/nonexistent/x.py"], UNAVAILABLE, "cannot write /nonexistent/x.py"),
    (["--json", "/"], UNAVAILABLE, "cannot write /"),
]


@pytest.mark.parametrize(
    ("words", "status", "sentence"), WRONG, ids=[" ".join(w) for w, *_ in WRONG]
)
def test_wrong_usage_is_one_sentence(words: list[str], status: int, sentence: str) -> None:
    done = fuzz(*words)
    assert done.returncode == status
    assert sentence in one_sentence(done)


def test_it_needs_no_other_package(tmp_path: Path) -> None:
    """Neither rich, nor HdrHistogram, nor Hypothesis."""
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('rich', 'hdrh', 'hypothesis', 'matplotlib')))\n"
        "from fastecho.cli import main\n"
        "sys.argv[0] = 'fastecho'\n"
        "main()\n"
    )
    with running() as server:
        address = named(server.tcp_address)
        done = run(sys.executable, "-W", "error", "-c", program, "fuzz", address, *QUICK)
    assert done.returncode == DONE, done.stderr
    assert "pip install 'fastecho[testing]'" in " ".join(done.stdout.decode().split())


def test_a_reproducer_says_so_if_nobody_is_there(tmp_path: Path) -> None:
    program = tmp_path / "cut it.py"
    with Broken("one_recv") as address:
        done = fuzz(address, "--repro", program, *QUICK)
    assert done.returncode == FAILED
    assert lines(done)[-1] == f"to see it again: python '{program}'"
    done = run(sys.executable, "-W", "error", program)
    assert done.returncode == UNAVAILABLE
    assert done.stdout.startswith(b"nobody is there: ")


@pytest.mark.parametrize("listen", ["unix:{}/s", pytest.param("[::1]:0", marks=needs_ipv6)])
def test_a_reproducer_finds_the_server_anywhere(listen: str, tmp_path: Path) -> None:
    program = tmp_path / "cut.py"
    word = listen.format(tmp_path)
    with running(listen=(word,), framing="raw") as server:
        port = "" if word.startswith("unix") else server.tcp_address[1]
        address = word.replace(":0", f":{port}")
        assert fuzz(address, "--repro", program, *QUICK).returncode == FAILED
        done = run(sys.executable, "-W", "error", program)
    assert (done.returncode, done.stderr) == (FAILED, b"")


def test_a_reproducer_sends_what_was_found(tmp_path: Path) -> None:
    program = tmp_path / "cut.py"
    with Broken("one_recv") as address:
        fuzz(address, "--repro", program, *QUICK)
    with socket.create_server((OWN_HOST, 0)) as listener:
        host, port = listener.getsockname()
        with subprocess.Popen(
            [sys.executable, program, host, str(port)], stdout=subprocess.PIPE
        ) as process:
            with listener.accept()[0] as sock:
                sock.settimeout(PATIENCE)
                assert sock.recv(100) == b"h"
                assert read_exactly(sock, 16) == "ello wörld €\n".encode()
            process.communicate(timeout=PATIENCE)
    assert process.returncode == FAILED
