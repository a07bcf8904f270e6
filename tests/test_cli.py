"""The command line: what each word means, and one sentence for whoever got it wrong."""

from __future__ import annotations

import importlib
import platform
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest
from processes import OWN_HOST, Daemon, named, run, serving

import fastecho
from fastecho import cli
from fastecho.settings import Settings

DONE, USAGE, UNAVAILABLE = 0, 2, 3

#: The module; in `cli` its name is the command's.
serve = importlib.import_module("fastecho.cli.serve")


class Outcome(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run the command line here."""

    def call(*words: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["fastecho", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Outcome(int(ended.value.code or 0), *capfd.readouterr())

    return call


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What the servers that would have been started were told."""
    made: list[Settings] = []

    class Recorder:
        addresses = ()
        counters = dict.fromkeys(("connections", "messages", "bytes_in", "bytes_out"), 0)

        def __init__(self, **options: Any) -> None:
            self.settings = Settings.of(**options)
            made.append(self.settings)

        def run(self) -> None:
            pass

    monkeypatch.setattr(serve, "Server", Recorder)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    return made


@pytest.fixture
def taken(request: pytest.FixtureRequest) -> Iterator[int]:
    """A number that another socket of this kind has on `OWN_HOST`."""
    with socket.socket(socket.AF_INET, request.param) as sock:
        sock.bind((OWN_HOST, 0))
        if request.param == socket.SOCK_STREAM:
            sock.listen()
        yield sock.getsockname()[1]


def is_one_sentence(outcome: Outcome) -> bool:
    """Whether it is what a user should see of an error: nothing but a line that says fastecho."""
    return (
        outcome.stdout == ""
        and outcome.stderr.startswith("fastecho: ")
        and outcome.stderr.endswith("\n")
        and outcome.stderr.count("\n") == 1
        and "Traceback" not in outcome.stderr
    )


# -- words


def test_serves_the_default_address_unless_told(
    command: Callable[..., Outcome], called: list[Settings]
) -> None:
    assert command().status == DONE
    assert called == [Settings()]
    assert called[0].listen == ("127.0.0.1:12345",)


@pytest.mark.parametrize(
    "words",
    [
        ["serve", ":7", "udp://[::1]:8"],
        [":7", "udp://[::1]:8"],
        ["--", ":7", "udp://[::1]:8"],
    ],
)
def test_a_first_word_that_is_no_command_belongs_to_serve(
    words: list[str], command: Callable[..., Outcome], called: list[Settings]
) -> None:
    assert command(*words).status == DONE
    assert called[0].listen == (":7", "udp://[::1]:8")


@pytest.mark.parametrize("first", [[], ["serve"]])
def test_flags_become_settings(
    first: list[str], command: Callable[..., Outcome], called: list[Settings]
) -> None:
    flags = ["--framing", "u32", "--prefix", "{seq}", "--max-frame", "99", "--backend", "pure"]
    assert command(*first, *flags, "-v", ":7").status == DONE
    assert called == [Settings((":7",), "u32", "{seq}", 99, "pure", verbose=True)]


def test_flags_may_stand_after_the_addresses(
    command: Callable[..., Outcome], called: list[Settings]
) -> None:
    assert command(":7", "--framing=raw", "--verbose").status == DONE
    assert called == [Settings((":7",), "raw", verbose=True)]


@pytest.mark.parametrize("words", [["--version"], ["--version", "serve"]])
def test_version_names_the_backend(words: list[str], command: Callable[..., Outcome]) -> None:
    assert command(*words) == Outcome(
        DONE,
        f"fastecho {fastecho.__version__} ({fastecho.backend.describe()};"
        f" {platform.python_implementation()} {platform.python_version()};"
        f" {platform.system()} {platform.machine()})\n",
        "",
    )


def test_help_lists_the_commands(command: Callable[..., Outcome]) -> None:
    outcome = command("--help")
    assert (outcome.status, outcome.stderr) == (DONE, "")
    assert "serve" in outcome.stdout


def test_help_of_serve_lists_each_flag(command: Callable[..., Outcome]) -> None:
    outcome = command("serve", "--help")
    assert (outcome.status, outcome.stderr) == (DONE, "")
    for flag in ("LISTEN", "--framing", "--prefix", "--max-frame", "--backend", "-v, --verbose"):
        assert flag in outcome.stdout


def test_runs_as_a_module() -> None:
    done = run(sys.executable, "-m", "fastecho", "--version")
    assert (done.returncode, done.stderr) == (DONE, b"")
    assert done.stdout.startswith(b"fastecho ")


def test_runs_as_a_program() -> None:
    program = Path(sys.executable).with_name("fastecho")
    if not program.exists():
        pytest.skip("fastecho is not installed in this environment")
    done = run(program, "--version")
    assert (done.returncode, done.stderr) == (DONE, b"")
    assert done.stdout.startswith(b"fastecho ")


# -- wrong usage or configuration

WRONG = [
    (["--bogus"], "No such option '--bogus'"),
    (["--verbos"], "--verbose"),
    (["serve", "--version"], "No such option '--version'"),
    (["--framing"], "'--framing' requires an argument"),
    (["--framing", "lines"], "unknown framing 'lines' (did you mean line?): choose from line "),
    (["--framing", "netstrings"], "(did you mean netstring?)"),
    (["--framing", ""], "unknown framing ''"),
    (["--framing", "u33"], "(did you mean u32?)"),
    (["--framing", "delimiter"], "lacks its value: delimiter:HEX"),
    (["--framing", "delimiter:xy"], "'xy' in framing 'delimiter:xy' is not hexadecimal"),
    (["--framing", "fixed:0"], "from 1 to 1,073,741,824, not 0"),
    (["--framing", "fixed:x"], "not 'x'"),
    (["--framing", "length:width=9"], "width"),
    (["--framing", "length:wide=2"], "'wide=2'"),
    (["--framing", "u8", "--max-frame", "250"], "u8 announces at most 255 bytes"),
    (["--framing", "fixed:9", "--max-frame", "8"], "fixed:9 needs a max_frame of 9, not 8"),
    (["--prefix", "{time}"], "has no token {time}: choose from {ctime} {iso} "),
    (["--prefix", "{seq:04}"], "{seq:04}"),
    (["--prefix", "{"], "has a lone '{': write '{{' for a literal one"),
    (["--prefix", "a\nb"], r"can render the delimiter b'\n'"),
    (["--prefix", "x" * 65_536], "65,536"),
    (["--max-frame", "0"], "--max-frame must be a whole number from 1 to 1,073,741,824, not 0"),
    (["--max-frame", "-1"], "not -1"),
    (["--max-frame", str(2**30 + 1)], "not 1073741825"),
    (
        ["--max-frame", "many"],
        "--max-frame must be a whole number from 1 to 1,073,741,824, not 'many'",
    ),
    (["--backend", "fast"], "'fast' is not one of 'auto', 'native', 'pure'"),
    (["serve", "serve"], "'serve' is no address: write HOST:PORT"),
    (["localhost"], "'localhost' is no address: write HOST:PORT"),
    ([""], "'' is no address: write HOST:PORT"),
    (["7"], "'7' is no address: write HOST:PORT"),
    (["127.0.0.1:"], "a port is a number from 0 to 65535"),
    ([":70000"], "a port is a number from 0 to 65535"),
    ([":-1"], "a port is a number from 0 to 65535"),
    ([":http"], "a port is a number from 0 to 65535"),
    ([":\u0667"], "a port is a number from 0 to 65535"),
    (["::1:7"], "(an IPv6 HOST in brackets)"),
    (["[::1:7"], "(an IPv6 HOST in brackets)"),
    (["[127.0.0.1]:7"], "(an IPv6 HOST in brackets)"),
    (["http://127.0.0.1:7"], "no such scheme; write HOST:PORT, tcp://HOST:PORT, udp://"),
    (["tcp://"], "'tcp://'"),
    (["tcp://127.0.0.1:7/"], "'tcp://127.0.0.1:7/'"),
    (["127.0.0.1:0", "nowhere"], "'nowhere' is no address"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=[" ".join(w)[:40] for w, _ in WRONG])
def test_wrong_usage_is_one_sentence_and_status_2(
    words: list[str], sentence: str, command: Callable[..., Outcome]
) -> None:
    outcome = command(*words)
    assert outcome.status == USAGE
    assert is_one_sentence(outcome), outcome.stderr
    assert sentence in outcome.stderr


def test_an_unknown_backend_in_the_environment_is_wrong_usage() -> None:
    done = run(sys.executable, "-m", "fastecho", ":0", variables={"FASTECHO_BACKEND": "0"})
    outcome = Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert outcome.status == USAGE
    assert is_one_sentence(outcome), outcome.stderr
    assert "FASTECHO_BACKEND must be one of auto, native, pure, not '0'" in outcome.stderr


def test_the_flag_beats_the_environment(twin: Any) -> None:
    """Even what is wrong there."""
    daemon = Daemon(["--backend", twin.name, "127.0.0.1:0"], {"FASTECHO_BACKEND": "0"})
    try:
        daemon.wait_ready(2)
        assert daemon.ready[1].endswith(f" ({twin.name})")
        assert daemon.stop() == DONE
    finally:
        daemon.discard()


def test_the_environment_chooses_where_no_flag_does(twin: Any) -> None:
    daemon = Daemon(["127.0.0.1:0"], {"FASTECHO_BACKEND": twin.name})
    try:
        daemon.wait_ready(2)
        assert daemon.ready[1].endswith(f" ({twin.name})")
        assert daemon.stop() == DONE
    finally:
        daemon.discard()


# -- something that could not be had


def test_an_unknown_host_is_status_3(
    command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    monkeypatch.setattr(socket, "getaddrinfo", Mock(side_effect=unknown))
    outcome = command("tcp://no.such:7")
    assert outcome.status == UNAVAILABLE
    assert is_one_sentence(outcome), outcome.stderr
    assert outcome.stderr == (
        "fastecho: cannot listen on tcp://no.such:7: 'no.such': Name or service not known\n"
    )


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "\udcff"])
def test_what_cannot_be_a_host_is_status_3(host: str, command: Callable[..., Outcome]) -> None:
    outcome = command(f"{host}:7")
    assert outcome.status == UNAVAILABLE
    assert is_one_sentence(outcome), outcome.stderr


def test_an_address_of_another_machine_is_status_3(command: Callable[..., Outcome]) -> None:
    outcome = command("192.0.2.1:0")
    assert outcome.status == UNAVAILABLE
    assert is_one_sentence(outcome), outcome.stderr
    assert "cannot listen on tcp://192.0.2.1:0: cannot assign requested address (" in outcome.stderr


@pytest.mark.parametrize(
    ("taken", "protocol"),
    [(socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")],
    indirect=["taken"],
    ids=["tcp", "udp"],
)
@pytest.mark.parametrize("scheme", ["", "{}://"], ids=["both", "one"])
def test_a_port_in_use_is_status_3(
    scheme: str, taken: int, protocol: str, command: Callable[..., Outcome]
) -> None:
    outcome = command(f"{scheme.format(protocol)}{OWN_HOST}:{taken}")
    assert outcome.status == UNAVAILABLE
    assert is_one_sentence(outcome), outcome.stderr
    start = f"fastecho: cannot listen on {protocol}://{OWN_HOST}:{taken}: address already in use ("
    assert outcome.stderr.startswith(start)


def test_a_second_daemon_on_the_same_port_says_so(twin: Any) -> None:
    with serving(backend=twin.name) as daemon:
        done = run(sys.executable, "-m", "fastecho", "--backend", twin.name, named(daemon.tcp))
        outcome = Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert outcome.status == UNAVAILABLE
    assert is_one_sentence(outcome), outcome.stderr
    assert "address already in use" in outcome.stderr


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(13, "whatever"), "fastecho: Permission denied\n"),
        (OSError("no number"), "fastecho: no number\n"),
    ],
)
def test_what_the_system_refuses_is_status_3(
    error: OSError,
    sentence: str,
    command: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serve, "Server", Mock(side_effect=error))
    assert command() == Outcome(UNAVAILABLE, "", sentence)


def test_an_interruption_before_anything_listens_says_nothing(
    command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "Server", Mock(side_effect=KeyboardInterrupt))
    outcome = command()
    assert (outcome.status, outcome.stdout) == (130, "")
    assert "Traceback" not in outcome.stderr


# -- where native is missing, or broken

STAND_IN = """
import sys
import fastecho._native
fastecho._native.__path__ = [sys.argv.pop(1)]
from fastecho.cli import main
main()
"""


def with_native_from(directory: Path, *words: str) -> Outcome:
    """The command line where this directory has the compiled modules."""
    done = run(sys.executable, "-c", STAND_IN, directory, *words)
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_native_where_it_was_not_built_is_wrong_usage(tmp_path: Path) -> None:
    outcome = with_native_from(tmp_path, "--backend", "native", "127.0.0.1:0")
    assert outcome.status == USAGE
    assert is_one_sentence(outcome), outcome.stderr
    assert "the native backend was not built here" in outcome.stderr
    assert "choose pure" in outcome.stderr


def test_says_that_it_fell_back(tmp_path: Path) -> None:
    outcome = with_native_from(tmp_path, "--version")
    assert outcome.status == DONE
    assert "(pure: native not built;" in outcome.stdout


def test_does_not_fall_back_from_half_a_build(tmp_path: Path) -> None:
    (tmp_path / "framing.py").touch()
    outcome = with_native_from(tmp_path, "127.0.0.1:0")
    assert outcome.status == UNAVAILABLE
    assert is_one_sentence(outcome), outcome.stderr
    assert "the native backend is broken" in outcome.stderr
    assert "FASTECHO_BACKEND=pure" in outcome.stderr
