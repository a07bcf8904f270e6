"""The pytest plugin: pytest runs with it, in a process of its own, and says what happened."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from processes import run


def pytest_runs(directory: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Tests run by pytest with this plugin alone; warnings and unknown marks are errors."""
    (directory / "test_it.py").write_text(code)
    strict = ("-W", "error", "--strict-markers", "-p", "no:cacheprovider", "-p", "pytest_fastecho")
    command = (sys.executable, "-m", "pytest", "-q", *strict, *arguments, directory)
    return run(*command, variables={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})


def assert_passed(done: subprocess.CompletedProcess[bytes], count: int) -> None:
    assert f"{count} passed" in done.stdout.decode(), done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")


SERVERS = """
import asyncio
import socket
import threading

import pytest

pytestmark = pytest.mark.fastecho(prefix="> ")


def ask(server, request):
    with socket.create_connection(server.tcp_address, 10) as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(100), b""))


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_marks_of_the_module(fastecho_server):
    assert ask(fastecho_server, b"hello\\n") == b"> hello\\n"


@pytest.mark.fastecho(framing="u16", backend="pure")
def test_marks_add_up(fastecho_server):
    assert fastecho_server.backend == "pure"
    assert ask(fastecho_server, b"\\0\\1a") == b"\\0\\3> a"


@pytest.mark.fastecho(prefix="")
class TestOfAClass:
    def test_the_closer_mark_wins(self, fastecho_server):
        assert ask(fastecho_server, b"a\\n") == b"a\\n"

    @pytest.mark.fastecho(prefix="- ")
    def test_the_closest_mark_wins(self, fastecho_server):
        assert ask(fastecho_server, b"a\\n") == b"- a\\n"


def test_several(fastecho_servers, fastecho_server):
    plain, numbered = fastecho_servers(prefix=""), fastecho_servers(prefix="{seq} ")
    assert ask(plain, b"a\\n") == b"a\\n"
    assert ask(numbered, b"a\\nb\\n") == b"1 a\\n2 b\\n"
    assert len({server.tcp_address for server in (plain, numbered, fastecho_server)}) == 3


def test_asyncio(fastecho_server):
    async def talk():
        reader, writer = await asyncio.open_connection(*fastecho_server.tcp_address)
        writer.write(b"hello\\n")
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return line

    assert asyncio.run(talk()) == b"> hello\\n"


def test_udp(fastecho_server):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.sendto(b"a", fastecho_server.udp_address)
        assert sock.recv(100) == b"> a"
    assert fastecho_server.counters["messages"] == 1
"""


def test_servers(tmp_path: Path) -> None:
    assert_passed(pytest_runs(tmp_path, SERVERS), 7)


def test_fastecho_is_imported_by_the_fixtures_alone(tmp_path: Path) -> None:
    code = """if True:
        import sys

        def test_without():
            assert "fastecho" not in sys.modules

        def test_with(fastecho_server):
            assert "fastecho" in sys.modules
    """
    assert_passed(pytest_runs(tmp_path, code), 2)


def test_what_makes_no_sense_is_said(tmp_path: Path) -> None:
    code = """if True:
        import pytest

        @pytest.mark.fastecho("u32")
        def test_by_position(fastecho_server):
            pass

        @pytest.mark.fastecho(frming="u32")
        def test_misspelt(fastecho_server):
            pass
    """
    done = pytest_runs(tmp_path, code, "--tb=line")
    said = done.stdout.decode()
    assert done.returncode == 1
    assert "2 errors" in said
    assert "the fastecho mark takes settings by name, not ('u32',)" in said
    assert "unknown setting 'frming': did you mean framing?" in said


def test_the_mark_and_the_fixtures_are_listed(tmp_path: Path) -> None:
    marks = pytest_runs(tmp_path, "", "--markers").stdout.decode()
    assert "@pytest.mark.fastecho(**settings): settings of the server" in marks
    fixtures = pytest_runs(tmp_path, "", "--fixtures").stdout.decode()
    for name in ("fastecho_server", "fastecho_servers", "faulty_echo"):
        assert re.search(rf"^{name} -- \S*pytest_fastecho\.py", fixtures, re.MULTILINE)


FAULTS = '''
import socket

import pytest


def pieces(server):
    """What successive `recv`s of a reply give: 4 bytes and a line end."""
    with socket.create_connection(server.tcp_address, 10) as sock:
        came = []
        for _ in range(4):
            sock.sendall(b"abcd\\n")
            came.append([])
            while sum(map(len, came[-1])) < 5:
                came[-1].append(sock.recv(100))
        return came


def test_by_default_replies_are_cut_at_every_point(faulty_echo):
    assert pieces(faulty_echo(prefix="")) == [
        [b"a", b"bcd\\n"], [b"ab", b"cd\\n"], [b"abc", b"d\\n"], [b"abcd", b"\\n"]
    ]


def test_a_plan(faulty_echo):
    assert pieces(faulty_echo("slice:size=2", prefix=""))[0] == [b"ab", b"cd", b"\\n"]


@pytest.mark.fastecho(faults="walk", prefix="")
def test_the_mark_takes_a_plan(fastecho_server):
    assert pieces(fastecho_server)[1] == [b"ab", b"cd\\n"]
'''


def test_faults(tmp_path: Path) -> None:
    assert_passed(pytest_runs(tmp_path, FAULTS), 3)


def test_it_is_an_entry_point_of_its_own_name() -> None:
    """So that `-p pytest_fastecho`, where it is installed, is the same plugin and not a second."""
    points = [
        point
        for point in metadata.distribution("fastecho").entry_points
        if point.group == "pytest11"
    ]
    assert [(point.name, point.value) for point in points] == [
        ("pytest_fastecho", "pytest_fastecho")
    ]
