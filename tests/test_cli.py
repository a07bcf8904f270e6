"""The command line: what each word means, and one sentence for whoever got it wrong."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest
from processes import OWN_HOST, PATIENCE, Daemon, environment, named, run, serving

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
        draws = None

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
    (["--faults", "wakl"], "--faults: unknown fault 'wakl': did you mean walk?"),
    (["--faults", "drop", "--drop", "1%"], "drop stands in faults already"),
    (["--fault-seed", "-1"], "--fault-seed must be a whole number from 0 to 9,223,372,036,854,7"),
    (["--slice", "5-1"], "--slice: size of slice must be bytes, from 1 to 1,073,741,824, or a"),
    (["--delay", "2h"], "--delay: time of delay must be a time such as 100ms or 1.5s, up to an"),
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


# -- wrong variables, files and clients

SOME = "127.0.0.1:0"
WRONG_VARIABLES = [
    ("FASTECHO_LISTEN", "localhost", "FASTECHO_LISTEN: 'localhost' is no address: write HOST:PORT"),
    ("FASTECHO_LISTEN", f"{SOME},:0", "FASTECHO_LISTEN: '127.0.0.1:0,:0' is no address: "),
    ("FASTECHO_LISTEN", " ", "FASTECHO_LISTEN names no address"),
    ("FASTECHO_FRAMING", "u7", "FASTECHO_FRAMING: unknown framing 'u7': choose from line "),
    ("FASTECHO_FRAMING", "LINE", "FASTECHO_FRAMING: unknown framing 'LINE'"),
    ("FASTECHO_PREFIX", "{time}", "FASTECHO_PREFIX: prefix '{time}' has no token {time}: choose"),
    ("FASTECHO_MAX_FRAME", "64k", "FASTECHO_MAX_FRAME must be a whole number from 1 to 1,073,7"),
    ("FASTECHO_MAX_FRAME", "1e3", "FASTECHO_MAX_FRAME must be a whole number"),
    ("FASTECHO_BACKLOG", "0", "FASTECHO_BACKLOG must be a whole number from 1 to 2,147,483,647"),
    ("FASTECHO_IDLE_TIMEOUT", "1m", "FASTECHO_IDLE_TIMEOUT must be seconds, from 0 to 1,000,000"),
    ("FASTECHO_IDLE_TIMEOUT", "inf", "FASTECHO_IDLE_TIMEOUT must be seconds"),
    ("FASTECHO_VERBOSE", "2", "FASTECHO_VERBOSE must be true or false, not '2'"),
    ("FASTECHO_LOG_FORMAT", "JSON", "FASTECHO_LOG_FORMAT must be one of text, json, not 'JSON'"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), WRONG_VARIABLES)
def test_a_wrong_variable_is_one_sentence_that_names_it(
    name: str,
    value: str,
    sentence: str,
    command: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(name, value)
    outcome = command()
    assert outcome.status == USAGE
    assert is_one_sentence(outcome), outcome.stderr
    assert outcome.stderr.startswith(f"fastecho: {sentence}")


WRONG_FILES = [
    (b"listen = [", "x.toml is no TOML: "),
    (b'listen = "127.0.0.1:0\n', "x.toml is no TOML: "),
    (b"framing: u32\n", "x.toml is no TOML: "),
    (b"framing = u32\n", "x.toml is no TOML: "),
    (b"backlog = 1\nbacklog = 1\n", "x.toml is no TOML: "),
    (b'prefix = "\xff"\n', "x.toml is no TOML: 'utf-8' codec can't decode byte 0xff"),
    (b"\xff\xfel\0i\0", "x.toml is no TOML: "),
    (b"max-frame = 7\n", "unknown key in x.toml: 'max-frame': did you mean max_frame?"),
    (b"[serve]\nbacklog = 7\n", "unknown key in x.toml: 'serve': "),
    (b'"a\\nb\\u001b" = 7\n', r"unknown key in x.toml: 'a\nb\x1b': choose from listen, "),
    (
        b'backlog = "7"\n',
        "backlog in x.toml must be a whole number from 1 to 2,147,483,647, not '7'",
    ),
    (b"backlog.x = 7\n", "backlog in x.toml must be a whole number"),
    (b"verbose = 1\n", "verbose in x.toml must be true or false, not 1"),
    (b"listen = 7\n", "listen in x.toml must be a list of addresses, not 7"),
    (
        b'listen = ["127.0.0.1:70000"]\n',
        "listen in x.toml: '127.0.0.1:70000' is no address: a port",
    ),
    (b"listen = []\n", "listen in x.toml names no address"),
    (b'framing = "lines"\n', "framing in x.toml: unknown framing 'lines' (did you mean line?)"),
    (b'prefix = "{"\n', "prefix in x.toml: prefix '{' has a lone '{'"),
    (b'framing = "u8"\nmax_frame = 250\n', "u8 announces at most 255 bytes: too few for"),
]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """x.toml of the current directory, not there yet."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "x.toml"


@pytest.mark.parametrize(("content", "sentence"), WRONG_FILES, ids=[s for _, s in WRONG_FILES])
def test_a_wrong_file_is_one_sentence_that_names_the_key_or_the_file(
    content: bytes, sentence: str, file: Path, command: Callable[..., Outcome]
) -> None:
    file.write_bytes(content)
    outcome = command("--config", "x.toml")
    assert outcome.status == USAGE
    assert is_one_sentence(outcome), outcome.stderr
    assert outcome.stderr.startswith(f"fastecho: {sentence}")


CLIENT_WRONG = [
    (["localhost"], "'localhost' is no address: write HOST:PORT"),
    (["[::1]"], "'[::1]' is no address: write HOST:PORT"),
    (["127.0.0.1:70000"], "'127.0.0.1:70000' is no address: a port is a number from 0 to 65535"),
    (["127.0.0.1:0"], "'127.0.0.1:0' is no address to talk to: port 0 is for listening"),
    (["fd://3"], "'fd://3' is no address to talk to: it is an inherited descriptor"),
    (["unix:/a?mode=0660"], "'unix:/a?mode=0660' is no address to talk to: leave out ?mode="),
    (["unix:"], "'unix:' is no address: write unix:PATH"),
    (["--udp", "tcp://127.0.0.1:7"], "'tcp://127.0.0.1:7' is no UDP address: leave out --udp"),
    (["--udp", "unix:/a"], "'unix:/a' is no UDP address"),
    ([":7", ":8"], "Got unexpected extra argument (:8)"),
    (["--bogus"], "No such option '--bogus'"),
    (["--verbose"], "No such option '--verbose'"),
    (["--framing", "lines"], "unknown framing 'lines' (did you mean line?)"),
    (["--framing", "fixed:9", "--max-frame", "8"], "fixed:9 needs a max_frame of 9, not 8"),
    (["--framing", "fixed:9", "--prefix", "{seq}"], "which those of '{seq}' have not"),
    (["--framing", "fixed:9", "--prefix", "{x}"], "prefix '{x}' has no token {x}"),
    (["--max-frame", "many"], "'--max-frame': 'many' is not a valid integer"),
    (["--max-frame", "0"], "max_frame must be a whole number from 1 to 1,073,741,824, not 0"),
    (["--timeout", "soon"], "'--timeout': 'soon' is not a valid float"),
    (["--timeout", "nan"], "timeout must be seconds, from 0 to 1,000,000,000, not nan"),
]


@pytest.mark.parametrize(
    ("words", "sentence"), CLIENT_WRONG, ids=[" ".join(w) for w, _ in CLIENT_WRONG]
)
def test_wrong_usage_of_the_client_is_one_sentence_and_status_2(
    words: list[str], sentence: str, command: Callable[..., Outcome]
) -> None:
    outcome = command("client", *words)
    assert outcome.status == USAGE
    assert is_one_sentence(outcome), outcome.stderr
    assert sentence in outcome.stderr


@pytest.mark.parametrize("words", [["client"], ["--version"]])
def test_a_wrong_backend_in_the_environment_is_wrong_usage_of_all_commands(
    words: list[str],
) -> None:
    outcome = program(*words, variables={"FASTECHO_BACKEND": "0"})
    assert outcome.status == USAGE
    assert is_one_sentence(outcome), outcome.stderr
    assert "FASTECHO_BACKEND must be one of auto, native, pure, not '0'" in outcome.stderr


def program(*words: str | Path, variables: dict[str, str] | None = None) -> Outcome:
    """How the command line ends in a process of its own."""
    done = run(sys.executable, "-m", "fastecho", *words, variables=variables)
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


PROGRAMS: list[tuple[list[str], dict[str, str], int, str]] = [
    (["--framing", "lines"], {}, USAGE, "--framing: unknown framing 'lines'"),
    (["127.0.0.1:70000"], {}, USAGE, "'127.0.0.1:70000' is no address"),
    ([SOME], {"FASTECHO_BACKLOG": "0"}, USAGE, "FASTECHO_BACKLOG must be"),
    ([SOME, "--config", "/dev/null/x"], {}, UNAVAILABLE, "/dev/null/x"),
    ([SOME], {"FASTECHO_CONFIG": "/none/x.toml"}, UNAVAILABLE, "/none/x.toml: no such file"),
    (["tcp://nowhere.invalid:7"], {}, UNAVAILABLE, "tcp://nowhere.invalid:7: 'nowhere.invalid': "),
    (["client", "--udp", "unix:/a"], {}, USAGE, "--udp"),
    (["client", "unix:/none/s"], {}, UNAVAILABLE, "cannot reach unix:/none/s: no such file"),
    (["client", "nowhere.invalid:7"], {}, UNAVAILABLE, "tcp://nowhere.invalid:7: "),
]


@pytest.mark.parametrize(("words", "variables", "status", "sentence"), PROGRAMS)
def test_a_program_ends_with_one_sentence_and_the_right_status(
    words: list[str], variables: dict[str, str], status: int, sentence: str
) -> None:
    outcome = program(*words, variables=variables)
    assert outcome.status == status
    assert is_one_sentence(outcome), outcome.stderr
    assert sentence in outcome.stderr


# -- something that could not be had


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("folder", "is a directory"),
        ("missing", "no such file or directory"),
        ("dangling", "no such file or directory"),
        ("loop", "too many levels of symbolic links"),
        ("below a file", "not a directory"),
    ],
)
@pytest.mark.parametrize("how", ["--config", "FASTECHO_CONFIG"])
def test_a_file_that_cannot_be_read_is_status_3(
    how: str,
    kind: str,
    words: str,
    file: Path,
    command: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "x.toml"
    if kind == "folder":
        file.mkdir()
    elif kind in ("dangling", "loop"):
        file.symlink_to("gone" if kind == "dangling" else "x.toml")
    elif kind == "below a file":
        file.touch()
        name = "x.toml/y"
    if how == "--config":
        outcome = command(how, name)
    else:
        monkeypatch.setenv(how, name)
        outcome = command()
    assert outcome == Outcome(UNAVAILABLE, "", f"fastecho: cannot read {name}: {words}\n")


@pytest.mark.parametrize("kind", ["folder", "dangling"])
def test_what_stands_in_the_place_of_the_default_file_is_not_passed_over(
    kind: str, tmp_path: Path, command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "folder":
        Path("fastecho.toml").mkdir()
    else:
        Path("fastecho.toml").symlink_to("gone")
    outcome = command()
    assert outcome.status == UNAVAILABLE
    assert is_one_sentence(outcome), outcome.stderr
    assert outcome.stderr.startswith("fastecho: cannot read fastecho.toml: ")


def powerless(*words: str | Path) -> Outcome:
    """How the command line ends for whoever has no privilege; root has none left either."""
    dropped: list[str | Path] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("only setpriv takes root's privileges away")
        dropped = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"]
    done = run(*dropped, sys.executable, "-m", "fastecho", *words)
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_output_that_nobody_reads_is_no_traceback() -> None:
    """As `| head -1` leaves it."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "fastecho", "--print-config"],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=PATIENCE,
        check=False,
        env=environment(),
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_file_that_may_not_be_read_is_status_3(file: Path) -> None:
    file.touch(mode=0)
    outcome = powerless("--config", file, SOME)
    assert outcome == Outcome(UNAVAILABLE, "", f"fastecho: cannot read {file}: permission denied\n")


def test_a_file_nested_too_deeply_is_one_sentence(
    file: Path, command: Callable[..., Outcome]
) -> None:
    file.write_text(f"listen = {'[' * 5_000}")
    outcome = command("--config", "x.toml")
    assert outcome.status == USAGE
    assert is_one_sentence(outcome), outcome.stderr
    assert "x.toml is no TOML" in outcome.stderr


def test_what_no_file_can_say_is_not_printed() -> None:
    """A path that is no text; a terminal's encoding decides nothing."""
    for encoding in ("utf-8:strict", "latin-1", "ascii"):
        outcome = program(
            *("--print-config", "unix:/a\udcff"), variables={"PYTHONIOENCODING": encoding}
        )
        assert outcome.status == USAGE
        assert is_one_sentence(outcome), outcome.stderr


def test_a_printed_file_is_utf_8_whatever_the_locale() -> None:
    done = run(
        *(sys.executable, "-m", "fastecho", "--print-config", "--prefix", "é"),
        variables={"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "1"},
    )
    assert (done.returncode, done.stderr) == (DONE, b"")
    assert 'prefix = "é"' in done.stdout.decode()


@pytest.mark.parametrize(
    "word", ["127.0.0.1:7", "tcp://127.0.0.1:7", "udp://127.0.0.1:7", "tcp://[::1]:7"]
)
def test_a_low_port_needs_a_privilege_and_says_which(word: str) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 7:
        pytest.skip("low ports are free for all here")
    outcome = powerless(word)
    assert outcome.status == UNAVAILABLE
    assert is_one_sentence(outcome), outcome.stderr
    assert f"{word.removeprefix('tcp://').removeprefix('udp://')}: permission" in outcome.stderr
    assert "(ports below 1024 need CAP_NET_BIND_SERVICE)" in outcome.stderr


@pytest.mark.parametrize(("flags", "protocol"), [([], "tcp"), (["--udp"], "udp")])
def test_a_client_names_the_host_that_is_unknown(
    flags: list[str],
    protocol: str,
    command: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    monkeypatch.setattr(socket, "getaddrinfo", Mock(side_effect=unknown))
    outcome = command("client", *flags, "no.such:7")
    assert outcome.status == UNAVAILABLE
    assert is_one_sentence(outcome), outcome.stderr
    assert f"cannot reach {protocol}://no.such:7: name or service not known" in outcome.stderr


@pytest.mark.parametrize("taken", [socket.SOCK_DGRAM], indirect=True, ids=["udp"])
def test_a_client_names_the_address_where_nobody_answers(
    taken: int, command: Callable[..., Outcome]
) -> None:
    """Over TCP: the number is a UDP socket's, so that nobody else listens there."""
    outcome = command("client", f"{OWN_HOST}:{taken}")
    assert outcome.status == UNAVAILABLE
    assert is_one_sentence(outcome), outcome.stderr
    assert f"cannot reach tcp://{OWN_HOST}:{taken}: connection refused" in outcome.stderr


def test_a_datagram_client_names_the_address_where_nobody_answers() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind((OWN_HOST, 0))
        word = f"udp://{named(sock.getsockname())}"
        done = run(sys.executable, "-m", "fastecho", "client", word, stdin=b"x\n")
    outcome = Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert outcome.status == UNAVAILABLE
    assert is_one_sentence(outcome), outcome.stderr
    assert f"cannot reach {word}: connection refused" in outcome.stderr


def test_help_is_no_place_for_a_wrong_environment() -> None:
    """Whoever asks for help has something wrong."""
    wrong = {"FASTECHO_CONFIG": "/none", "FASTECHO_BACKEND": "0", "FASTECHO_BACKLOG": "x"}
    for words in (["--help"], ["serve", "--help"], ["client", "--help"]):
        outcome = program(*words, variables=wrong)
        assert (outcome.status, outcome.stderr) == (DONE, "")
        assert outcome.stdout.startswith("Usage: fastecho ")


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
