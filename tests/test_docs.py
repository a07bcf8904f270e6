"""What README.md and docs/ show is what happens, and what there is to be named is named there.

For who writes them:

- A `python` block runs in a process of its own, its warnings being errors; one that defines tests
  is run by pytest. A `text` block right after it is what it prints. One that begins with a comment
  such as `# client.py` is not run, but is that file for the `console` blocks of its page.
- The `$` lines of a `console` block are run in a directory of the page's, empty at first. The lines
  after each are all that it says, on both outputs; a line of `...` stands for any lines, ` ...` at
  the end of one for any more of it. A daemon (`fastecho` with no other command, `make run`, a
  Python program that says what it is waiting for) goes on until a later block of the page starts
  another: its lines are the first that it says, or, with a line `^C` where it is interrupted, all.
- The port 12345, written or not, is a free one; what else differs from run to run is in `VARYING`.
- What prepares or runs a machine (`NOT_RUN`) is not run.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from socket import SOCK_DGRAM
from typing import Any

import click
import pytest
from click.core import ParameterSource
from processes import PATIENCE, Daemon, environment, run, until

from fastecho import errors, framing, limits, prefix
from fastecho.cli import COMMANDS, commands
from fastecho.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = {"make", "pip", "git", "docker", "sudo", "systemctl", "journalctl", "kubectl"}
#: What some machines lack: then the block is skipped.
OPTIONAL = ("nc", "socat", "curl")
VARYING = {
    r"--fault-seed \d+": "--fault-seed <seed>",
    r"\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}": "<time>",  # {ctime}
    r"(?<=b'\[)[FMSTW](?='\n)": "<S>",  # as much of it as the first two bytes of a reply have
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)": "<time>",  # {iso} {utc}
    r"\b[12]\d{9}(\d{3}){0,3}\b": "<time>",  # {epoch} ... {epoch_ns}
    r"\bpid:? \d+": "<pid>",
    r"(?<=:)\d{4,5}\b|(?<=', )\d{4,5}\b": "<port>",  # 127.0.0.1:50123, ('127.0.0.1', 50123)
    r"\d[\d.,]* ?[kMG]?\w+/s\b": "<rate>",
    r"\d[\d.,/]* ?(ns|us|µs|ms|s)\b": "<duration>",
    r"[+-]<duration>: the server is \w+( of)? us": "<offset>",
    r"(?m)^( *\w[\w. ]*?) +[\d,]+ .* [\d.]+-[\d.]+$": r"\1 <measured>",  # fastecho bench
    r"native\b|pure: native not built": "<backend>",
    r"CPython [\w.+]+; Linux \w+": "<platform>",
    r"(?m)^[ >] [0-9a-f]{4} .*$": "<bytes>",  # of replies with a stamp
    r"[ \t]+": " ",  # columns
}


def blocks(language: str) -> Iterator[tuple[Path, str, str | None]]:
    """(page, content, that of the `text` block right after it) of each fenced block."""
    fence = rf"^```{language}\n(.*?)^```$(?:\s*^```text\n(.*?)^```$)?"
    for page in PAGES:
        for found in re.finditer(fence, page.read_text(), re.DOTALL | re.MULTILINE):
            yield page, found[1], found[2]


# -- python

#: The first line of a block that is a file.
FILE = re.compile(r"# (\w+\.py)\n")


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        pytest.param(code, printed, id=page.name)
        for page, code, printed in blocks("python")
        if not FILE.match(code)
    ],
)
def test_python_does_as_shown(code: str, printed: str | None, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", code]
    if re.search(r"^def test_", code, re.MULTILINE):
        (tmp_path / "test_shown.py").write_text(code)
        command[3:] = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = run(*command)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    assert printed is None or done.stdout.decode() == printed


# -- console


def steps(block: str, port: int) -> Iterator[tuple[str, str, bool]]:
    """(command, what it says, whether it goes on), for this port in the place of 12345."""
    before, *rest = re.split(r"^\$ ", block.replace("12345", str(port)), flags=re.MULTILINE)
    assert not before, f"no command: {before}"
    for each in rest:
        command, shown = re.split(r"(?<!\\)\n", each, maxsplit=1)
        command = re.sub(r"\\\n> ?|\s+#.*", "", command)
        command = re.sub(r"^make run(?: ARGS=(['\"])(.*)\1)?", r"fastecho \2", command)
        command = re.sub(r"\S*/(?=fastecho)|python3? -m (?=fastecho)", "", command)
        own = r"(^|[|;&]\s*)((?:\w+=\S*\s+)*fastecho\b)((?:'[^']*'|\"[^\"]*\"|[^|;&<>'\"])*)"
        command = re.sub(own, lambda found: found[1] + addressed(found[2], found[3], port), command)
        yield command, shown, lasts(command, shown)


def addressed(program: str, arguments: str, port: int) -> str:
    """A command of fastecho's that names the address which it would take by default."""
    name, *rest = ["serve", *shlex.split(arguments)]
    if rest and rest[0] in COMMANDS:
        name, *rest = rest
    command = commands.get_command(click.Context(commands), name)
    assert command is not None
    given = command.make_context(name, rest, resilient_parsing=True)
    places = [one.name for one in given.command.params if one.name in ("address", "listen")]
    missing = any(given.get_parameter_source(one) != ParameterSource.COMMANDLINE for one in places)
    return program + (f"{arguments.rstrip()} 127.0.0.1:{port} " if missing else arguments)


def lasts(command: str, shown: str) -> bool:
    """Whether it is a daemon that does not end by itself."""
    if is_ours(command):
        words = list(shlex.shlex(command, posix=True, punctuation_chars=True))
        ends = {"|", ">", "--help", "--version", "--print-config", *COMMANDS}
        ends -= {"serve", "replay"}
        return ends.isdisjoint(words) and (not shown or "waiting for " in shown)
    return command.startswith("python ") and shown.startswith("waiting for ")


def is_ours(command: str) -> bool:
    return bool(re.match(r"(\w+=\S*\s+)*fastecho\b", command))


@pytest.mark.parametrize(
    ("written", "typed", "goes_on"),
    [
        ("make run", "fastecho 127.0.0.1:7 ", True),
        ("make run ARGS='-v [::]:12345'", "fastecho -v [::]:7", True),
        (".venv/bin/fastecho --prefix '{utc} '", "fastecho --prefix '{utc} ' 127.0.0.1:7 ", True),
        ("A=1 B= fastecho -v  # a", "A=1 B= fastecho -v 127.0.0.1:7 ", True),
        ("python -m fastecho \\\n> unix:a", "fastecho unix:a", True),
        ("fastecho --version | cat", "fastecho --version 127.0.0.1:7 | cat", False),
        ("true && fastecho --help", "true && fastecho --help 127.0.0.1:7 ", False),
        ("printf 'a|b' | nc ::1 12345", "printf 'a|b' | nc ::1 7", False),
        ("pip install fastecho", "pip install fastecho", False),
        ("python server.py", "python server.py", True),
    ],
)
def test_what_is_run(written: str, typed: str, goes_on: bool) -> None:
    shown = "waiting for it\n"
    assert list(steps(f"$ {written}\n{shown}", 7)) == [(typed, shown, goes_on)]


def sessions() -> list[Any]:
    """The blocks of each page, and its files by name."""
    found: dict[Path, list[str]] = defaultdict(list)
    files: dict[Path, dict[str, str]] = defaultdict(dict)
    for page, block, _ in blocks("console"):
        found[page].append(block)
    for page, code, _ in blocks("python"):
        if name := FILE.match(code):
            files[page][name[1]] = code
    return [pytest.param(found[page], files[page], id=page.name) for page in found]


@pytest.fixture(scope="module")
def own_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a `fastecho` and a `python` that are this Python's."""
    directory = tmp_path_factory.mktemp("bin")
    for name, module in {"fastecho": "-m fastecho ", "python": "", "python3": ""}.items():
        program = directory / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module}"$@"\n')
        program.chmod(0o755)
    return directory


@pytest.mark.parametrize(("session", "files"), sessions())
def test_console_says_as_shown(
    session: list[str],
    files: dict[str, str],
    own_programs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{own_programs}:{os.environ['PATH']}")
    port = free_port()
    for name, code in files.items():
        (tmp_path / name).write_text(code.replace("12345", str(port)))
    daemons = Daemons(port)
    try:
        for block in session:
            typed = list(steps(block, port))
            if any(goes_on for _, _, goes_on in typed):
                daemons.stop()
            for command, shown, goes_on in typed:
                if goes_on:
                    daemons.start(command, shown)
                elif NOT_RUN.isdisjoint(command.split()):
                    assert_shown(command, type_in(command), shown, port)
        daemons.stop()
    finally:
        daemons.discard()


class Daemons:
    """Those of one block, which go on until another has some.

    Args:
        port: that stands for 12345.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._running: list[tuple[Daemon, str, str]] = []

    def start(self, command: str, shown: str) -> None:
        """One more, up to where it says that it is ready."""
        self._running.append((begun(command), command, shown))
        daemon, ready = self._running[-1][0], max(1, shown.count("waiting for "))
        until(
            lambda: said(daemon, command).count("waiting for ") >= ready or has_ended(daemon),
            command,
        )

    def stop(self) -> None:
        """Interrupt them, and look at what they said."""
        while self._running:
            daemon, command, shown = self._running[0]
            if command.startswith("fastecho replay "):  # it ends with its client
                daemon.process.wait(PATIENCE)
            assert daemon.stop(signal.SIGINT) == 0 or not is_ours(command), daemon.stderr
            until_then, interrupted, after = shown.partition("^C\n")
            any_more = "" if interrupted else "...\n"
            assert_shown(command, said(daemon, command), until_then + after + any_more, self._port)
            self._running.pop(0)[0].discard()

    def discard(self) -> None:
        """End those that are left, of a test that has failed."""
        for daemon, _, _ in self._running:
            daemon.discard()


def said(daemon: Daemon, command: str) -> str:
    """But for what Python says when it is interrupted."""
    return daemon.stderr + daemon.stdout if is_ours(command) else daemon.stdout


def has_ended(daemon: Daemon) -> bool:
    return daemon.process.poll() is not None


def begun(command: str) -> Daemon:
    words = shlex.split(command)
    if not is_ours(command):
        return Daemon(words[1:], {}, [sys.executable])
    variables = dict(word.split("=", 1) for word in words[: words.index("fastecho")])
    return Daemon(words[len(variables) + 1 :], variables)


def type_in(command: str) -> str:
    """What a shell says to it, if all that it takes is there."""
    for program in OPTIONAL:
        if program in command.split() and not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    done = subprocess.run(
        ["sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
        check=False,
        env=environment(),
    )
    return done.stdout.decode()


def assert_shown(command: str, said: str, shown: str, port: int) -> None:
    """Make sure that it says this, but for what varies."""
    for pattern, name in {rf"\b{port}\b": "<12345>", **VARYING}.items():
        said, shown = re.sub(pattern, name, said), re.sub(pattern, name, shown)
    if said and not said.endswith("\n"):
        said += "\n"  # which a block cannot be without
    lines = shown.splitlines(keepends=True)
    wanted = "".join("(?:.*\n)*" if line == "...\n" else as_pattern(line) for line in lines)
    assert re.fullmatch(wanted, said), f"{command}\nsays\n{said}\nand not\n{shown}"


def as_pattern(line: str) -> str:
    return re.sub(r"\\ \\\.\\\.\\\.\\\n$", ".*\\n", re.escape(line))


def free_port() -> int:
    """A port free for both protocols, of those that no outgoing connection is given (ip(7))."""
    while True:
        port = random.randrange(10_000, 32_768)
        with suppress(OSError), socket.socket() as tcp, socket.socket(type=SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
            return port


# -- links


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert there.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(there), target


# -- names


def in_docs(*names: str) -> bool:
    """Whether README.md or docs/ have one of these names."""
    return any(f"`{name}`" in page.read_text() for page in PAGES for name in names)


def in_sources(pattern: str, under: str = ".") -> set[str]:
    """All names that a pattern finds in a file of the package, or in all of them."""
    place = ROOT / "fastecho" / under
    files = [place] if place.is_file() else place.rglob("*.py")
    found = {name for file in files for name in re.findall(pattern, file.read_text())}
    assert found, pattern
    return found


@pytest.mark.parametrize("page", ["README.md", "docs/framing.md"])
def test_every_framing_is_named(page: str) -> None:
    for spec in framing.SPECS:
        name = spec.partition(":")[0]
        named = re.search(rf"`{name}\b", (ROOT / page).read_text())
        assert named or name in ("u16le", "u24le", "u32le", "u64le"), spec


@pytest.mark.parametrize("page", ["README.md", "docs/prefixes.md"])
def test_every_token_is_named(page: str) -> None:
    for token in prefix.NAMES:
        assert f"`{{{token}}}`" in (ROOT / page).read_text(), token


def test_every_counter_is_named() -> None:
    ended = in_sources(r'_(?:close|expire|count)\("(\w+)"\)', "_pure/stream.py")
    ended -= {"linger_timeout"}  # is after a fault, and the fault is counted
    ended |= {kind.reason for kind in errors.FrameError.__subclasses__()}
    refused = r'(?:_drop\(|return |group = |\[\], )"(\w+)"'
    names = ["connections", "messages", "bytes_in", "bytes_out"]
    names += [f"closed.{reason}" for reason in ended | {"reset"}]
    names += [f"unanswered.{reason}" for reason in in_sources(refused, "_pure/datagrams.py")]
    assert [name for name in names if not in_docs(name)] == []


def test_every_event_is_named() -> None:
    events = in_sources(r'\b(?:say\(\s*[\w.]+|_warn\(\s*stream),\s*"(\w+)"')
    assert [event for event in sorted(events) if not in_docs(event)] == []


def test_every_setting_is_named() -> None:
    settings = [field.name for field in fields(Settings)]
    assert [name for name in settings if not in_docs(name)] == []


def test_every_limit_is_named() -> None:
    names = [name for name in vars(limits) if name.isupper()]
    options = {name: "--" + name.lower().replace("_", "-") for name in names}
    assert [name for name in names if not in_docs(name, options[name])] == []
