"""What people install: the sdist, its wheel, and the daemon that comes of each way to build it.

Nothing is fetched: an environment is clean, but for links to the few packages that it needs.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from processes import Daemon, read_to_end, run, stamped

import fastecho
from fastecho import backend

ROOT = Path(__file__).parents[1]
GIT = shutil.which("git")
NAME = f"fastecho-{fastecho.__version__}"
FELL_BACK = "pure: native not built"
BUILDING = 240  # seconds, on a machine that has much else to do
OURS_NOT = {"PYTHONPATH": ""}  # empty is none: what is installed is tested, not what lies here

pytestmark = [
    pytest.mark.timeout(2 * BUILDING),  # the first test of a kind waits for its build
    pytest.mark.skipif(
        GIT is None or not (ROOT / ".git").exists(), reason="only git knows what belongs to it"
    ),
]


class Installed(NamedTuple):
    """The command, and what it says of its backend."""

    command: Path
    says: str


def succeeded(done: subprocess.CompletedProcess[bytes]) -> str:
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return done.stdout.decode()


def link(package: str, into: Path) -> None:
    """Make a package that is installed here importable from there."""
    distribution = metadata.distribution(package)
    for top in {file.parts[0] for file in distribution.files or ()}:
        if top not in ("..", "__pycache__") and not top.endswith(".pth"):
            (into / top).symlink_to(Path(str(distribution.locate_file(top))))


def clean(path: Path) -> Path:
    """A new virtual environment at this path, with what fastecho needs to build and run."""
    venv.create(path, symlinks=True)
    for package in ("click", "cython", "setuptools"):
        link(package, into=Path(sysconfig.get_path("purelib", "venv", {"base": str(path)})))
    return path


def pip(
    command: str, environment: Path, *arguments: str | Path, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Our pip, at work in that environment. Nothing is kept: a cached wheel is of another build."""
    python = environment / "bin" / "python"
    alone = ("--no-cache-dir", "--no-index", "--no-deps", "--no-build-isolation")
    return run(
        *(sys.executable, "-m", "pip", "--isolated", "--python", python, command, *alone),
        *arguments,
        variables=OURS_NOT | variables,
        patience=BUILDING,
    )


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """What git tracks; whoever owns the clone."""
    names = succeeded(run(GIT or "", "-C", ROOT, "-c", "safe.directory=*", "ls-files", "-z"))
    return {name for name in names.split("\0") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def sdist(tracked: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git tracks, whatever else lies here."""
    source = tmp_path_factory.mktemp("source")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    command = (sys.executable, "-m", "build", "--no-isolation", "--sdist", source)
    succeeded(run(*command, variables=OURS_NOT, patience=BUILDING))
    return source / "dist" / f"{NAME}.tar.gz"


@pytest.fixture(scope="module")
def wheel(twins: Any, sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist; native, where the twins that are tested here could be."""
    path = tmp_path_factory.mktemp("wheel")
    building = clean(path / "venv")
    succeeded(pip("wheel", building, "--wheel-dir", path, sdist, FASTECHO_BUILD_EXT="yes"))
    (built,) = path.glob("*.whl")
    return built


@pytest.fixture(scope="module", params=["native", "pure was asked for", "no compiler"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """fastecho, in an environment of its own."""
    fixture, variables, says = {
        "native": ("wheel", {}, "native"),
        "pure was asked for": ("sdist", {"FASTECHO_BUILD_EXT": "no"}, FELL_BACK),
        "no compiler": ("sdist", {"FASTECHO_BUILD_EXT": "auto", "CC": "false"}, FELL_BACK),
    }[request.param]
    environment = clean(tmp_path_factory.mktemp("installed") / "venv")
    succeeded(pip("install", environment, request.getfixturevalue(fixture), **variables))
    return Installed(environment / "bin" / "fastecho", says)


@pytest.fixture
def daemon(installed: Installed) -> Iterator[Daemon]:
    """The command as it was installed, serving."""
    variables = OURS_NOT | {"PYTHONWARNINGS": "error"}
    daemon = Daemon(["127.0.0.1:0"], variables, [installed.command])
    try:
        daemon.wait_ready(2)
        yield daemon
        assert daemon.stop() == 0, daemon.stderr
    finally:
        daemon.discard()


# -- what is in them


def test_the_sdist_holds_what_git_tracks(sdist: Path, tracked: set[str]) -> None:
    """But for what only a clone can use. So all that builds, tests and measures is there."""
    with tarfile.open(sdist) as archive:
        names = {member.name for member in archive if member.isfile()}
    made = {name for name in names if name.startswith(f"{NAME}/fastecho.egg-info/")}
    made |= {f"{NAME}/PKG-INFO", f"{NAME}/setup.cfg"}
    assert names - made == {f"{NAME}/{name}" for name in tracked - {".ci/run", ".gitignore"}}


def test_the_wheel_holds_package_manual_and_metadata_alone(wheel: Path, tracked: set[str]) -> None:
    package = {name for name in tracked if name.startswith("fastecho/")}
    assert {Path(name).suffix for name in package} == {".py", ".pxd", ".typed"}
    package.add("pytest_fastecho.py")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    compiled = {f"fastecho/_native/{name}{suffix}" for name in (*backend.MODULES, backend.ENGINE)}
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    rest = {f"{NAME}.dist-info/{name}" for name in about}
    rest.add(f"{NAME}.data/data/share/man/man1/fastecho.1")
    assert names == package | compiled | rest


# -- what comes of them


def test_the_version_names_the_backend(installed: Installed) -> None:
    said = succeeded(run(installed.command, "--version", variables=OURS_NOT))
    assert said.startswith(f"fastecho {fastecho.__version__} ({installed.says}; ")


def test_the_ready_lines_name_the_backend(installed: Installed, daemon: Daemon) -> None:
    port = daemon.tcp[1]
    assert daemon.ready == [
        f"waiting for connection ... tcp://127.0.0.1:{port} (line, {installed.says})",
        f"waiting for message ... udp://127.0.0.1:{port} ({installed.says})",
    ]


def test_a_message_comes_back_over_tcp(daemon: Daemon) -> None:
    since = time.time()
    with daemon.connect() as sock:
        sock.sendall(b"hello\n")
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock) in stamped(b"hello\n", since)


def test_a_message_comes_back_over_udp(daemon: Daemon) -> None:
    since = time.time()
    with daemon.datagram_socket() as sock:
        sock.send(b"hello")
        assert sock.recv(100) in stamped(b"hello", since)


# -- what does not come of them


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"FASTECHO_BUILD_EXT": "yes", "CC": "false"},
            "FASTECHO_BUILD_EXT=yes, but the native twin could not be built",
        ),
        (
            {"FASTECHO_BUILD_EXT": "maybe"},
            "FASTECHO_BUILD_EXT must be auto, yes, no or checked, not 'maybe'",
        ),
    ],
)
def test_what_cannot_be_built_as_demanded_is_not_installed(
    variables: dict[str, str], words: str, sdist: Path, tmp_path: Path
) -> None:
    environment = clean(tmp_path / "venv")
    done = pip("install", environment, sdist, **variables)
    assert done.returncode == 1
    assert words in (done.stdout + done.stderr).decode()
    assert not (environment / "bin" / "fastecho").exists()
