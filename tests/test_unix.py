"""UNIX sockets, inherited descriptors, and what LISTEN words share: all of them, or none."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import (
    OWN_HOST,
    PATIENCE,
    environment,
    named,
    needs_ipv6,
    read_exactly,
    read_to_end,
    serving,
    until,
)

from fastecho import ConfigError, FastechoError, Server, running

LONGEST = 107  # bytes of a path (unix(7))


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name: a socket's path has little room."""
    with tempfile.TemporaryDirectory(prefix="fe", dir="/tmp") as name:
        yield Path(name)


@contextmanager
def stream_to(path: Path | str | bytes) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(os.fspath(path))
        yield sock


@contextmanager
def datagram_to(path: Path | str, own: Path | str | bytes = b"") -> Iterator[socket.socket]:
    """From a path of its own, an abstract name, or nowhere."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        if own:
            sock.bind(os.fspath(own))
        sock.connect(os.fspath(path))
        yield sock


def exchange(path: Path | str, message: bytes) -> bytes:
    with stream_to(path) as sock:
        sock.sendall(message)
        sock.shutdown(socket.SHUT_WR)
        return read_to_end(sock)


def served(listen: str | list[str], twin: Any, **settings: Any) -> Any:
    return running(listen=listen, backend=twin.name, **{"prefix": "<>", **settings})


def start(*words: str, descriptors: tuple[int, ...] = (), **how: Any) -> tuple[int, str]:
    """How a daemon that cannot start ends: its status, and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "fastecho", *words],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        pass_fds=descriptors,
        env=environment(),
        **how,
    )
    assert done.stdout == b""
    return done.returncode, done.stderr.decode()


def sentence(outcome: tuple[int, str], status: int) -> str:
    """What was said, if that is one sentence and the status is this one."""
    number, said = outcome
    assert number == status, said
    assert said.startswith("fastecho: ")
    assert said.count("\n") == 1
    return said.removeprefix("fastecho: ").rstrip("\n")


# -- streams


def test_lines_are_answered(folder: Path, twin: Any) -> None:
    path = folder / "s"
    with served(f"unix:{path}", twin) as server:
        assert server.addresses == [f"unix:{path}"]
        assert exchange(path, b"a\nb\ntail") == b"<>a\n<>b\n<>tail"
        assert server.counters["messages"] == 3


def test_a_long_conversation_that_is_read_late(folder: Path, twin: Any) -> None:
    stream = b"".join(b"%d\n" % number for number in range(200_000))
    with served(f"unix:{folder / 's'}", twin, prefix=""), stream_to(folder / "s") as sock:
        sock.setblocking(False)
        sent = 0
        replies = b""
        while len(replies) < len(stream):
            try:
                while sent < len(stream):
                    sent += sock.send(stream[sent : sent + 65_536])
            except BlockingIOError:
                pass
            sock.settimeout(PATIENCE)
            replies += sock.recv(1 << 20)
            sock.setblocking(False)
        assert replies == stream


@pytest.mark.parametrize(
    ("kind", "own", "shown"),
    [
        ("unix", b"", b"unix:"),  # (a datagram from nowhere has no reply)
        *(
            (kind, own, shown)
            for kind in ("unix", "unixgram")
            for own, shown in (
                (b"\0abstract\x1b\xff", rb"unix:\x00abstract\x1b\ufffd"),
                ("peer", b"unix:%b/peer"),
                ("p\x1b[31m\n", rb"unix:%b/p\x1b[31m\n"),
            )
        ),
    ],
)
def test_a_peer_is_shown_escaped(
    kind: str, own: str | bytes, shown: bytes, folder: Path, twin: Any
) -> None:
    """By its path, its abstract name, or nothing."""
    if isinstance(own, str):
        own = os.fsencode(folder / own)
        shown = shown % os.fsencode(folder)
    if own.startswith(b"\0"):
        own += b"%d" % os.getpid()
        shown += b"%d" % os.getpid()
    socket_kind = socket.SOCK_STREAM if kind == "unix" else socket.SOCK_DGRAM
    with (
        served(f"{kind}:{folder / 's'}", twin, prefix="{peer} "),
        socket.socket(socket.AF_UNIX, socket_kind) as sock,
    ):
        sock.settimeout(PATIENCE)
        if own:
            sock.bind(own)
        sock.connect(os.fspath(folder / "s"))
        sock.sendall(b"x\n")
        assert read_exactly(sock, len(shown) + 3) == shown + b" x\n"


@pytest.mark.parametrize("kind", ["unix", "unixgram"])
def test_a_peer_s_path_reaches_no_terminal_as_it_is(kind: str, folder: Path, twin: Any) -> None:
    path = folder / "s"
    with serving(
        "-v", backend=twin.name, listen=("tcp://127.0.0.1:0", f"{kind}:{path}"), lines=1
    ) as daemon:
        daemon.wait_line(f"{kind}:{path}")
        socket_kind = socket.SOCK_STREAM if kind == "unix" else socket.SOCK_DGRAM
        with socket.socket(socket.AF_UNIX, socket_kind) as sock:
            sock.settimeout(PATIENCE)
            sock.bind(os.fspath(folder / "p\x1b[31m\n"))
            sock.connect(os.fspath(path))
            sock.sendall(b"x\n")
            assert sock.recv(100).endswith(b"x\n")
        daemon.wait_line("closed (eof)" if kind == "unix" else "received from")
        line = "connected from" if kind == "unix" else "received from and returned to"
        assert r"p\x1b[31m\n" in daemon.wait_line(line)
        assert "\x1b" not in daemon.stderr


# -- datagrams


def test_each_datagram_is_answered(folder: Path, twin: Any) -> None:
    with (
        served(f"unixgram:{folder / 's'}", twin) as server,
        datagram_to(folder / "s", folder / "c") as sock,
    ):
        for message in (b"a", b"", b"\0" * 60_000):
            sock.send(message)
            assert sock.recv(65_535) == b"<>" + message
        assert server.counters["messages"] == 3


def test_a_datagram_from_an_abstract_name_is_answered(folder: Path, twin: Any) -> None:
    with (
        served(f"unixgram:{folder / 's'}", twin),
        datagram_to(folder / "s", b"\0fastecho-%d" % os.getpid()) as sock,
    ):
        sock.send(b"x")
        assert sock.recv(100) == b"<>x"


def test_nameless_and_cut_datagrams_and_such_as_nobody_waits_for_are_counted(
    folder: Path, twin: Any
) -> None:
    """And the next is answered."""
    with served(f"unixgram:{folder / 's'}", twin) as server:
        with datagram_to(folder / "s") as nameless:
            nameless.send(b"whose?")
        with datagram_to(folder / "s", folder / "big") as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
            sock.send(bytes(65_536))
        with datagram_to(folder / "s", folder / "gone") as sock:
            os.unlink(folder / "gone")
            sock.send(b"x")
        with datagram_to(folder / "s", folder / "c") as sock:
            sock.send(b"x")
            assert sock.recv(100) == b"<>x"
        counters = server.counters
    assert {name: n for name, n in counters.items() if name.startswith("unanswered")} == {
        "unanswered.nameless": 1,
        "unanswered.truncated": 1,
        "unanswered.enoent": 1,
    }
    assert (counters["messages"], counters["bytes_in"]) == (3, 8)


def test_no_source_is_refused(folder: Path, twin: Any) -> None:
    """What a UNIX datagram says of its sender is true."""
    with (
        served(f"unixgram:{folder / 's'}", twin, prefix="p" * 500),
        datagram_to(folder / "s", folder / "c") as sock,
    ):
        sock.send(b"")
        assert sock.recv(600) == b"p" * 500


# -- paths


@pytest.mark.parametrize("kind", ["unix", "unixgram"])
@pytest.mark.parametrize("mode", ["0660", "600", "0777", "000"])
def test_the_mode_is_the_path_s(kind: str, mode: str, folder: Path, twin: Any) -> None:
    with served(f"{kind}:{folder / 's'}?mode={mode}", twin):
        assert stat.S_IMODE(os.stat(folder / "s").st_mode) == int(mode, 8)


@pytest.mark.parametrize("query", ["?", "?mode=", "?mode=8", "?mode=999", "?mode=0660&x", "?x=1"])
def test_any_other_query_is_a_sentence(query: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"write unix:PATH, or unix:PATH\?mode=0660$"):
        Server(f"unix:{folder / 's'}{query}")
    assert not os.listdir(folder)


@pytest.mark.parametrize("kind", ["unix", "unixgram"])
def test_the_longest_path_is_served_and_a_longer_one_is_a_sentence(
    kind: str, folder: Path, twin: Any
) -> None:
    path = str(folder / "x").ljust(LONGEST, "x")
    with served(f"{kind}:{path}", twin) as server:
        assert server.addresses == [f"{kind}:{path}"]
        assert os.listdir(folder) == [Path(path).name]
        if kind == "unix":
            assert exchange(path, b"a\n") == b"<>a\n"
    with pytest.raises(ConfigError, match="a socket's path has at most 107 bytes"):
        Server(f"{kind}:{path}x")
    with pytest.raises(ConfigError, match="a socket's path has at most 107 bytes"):
        Server(f"{kind}:{path[:-1]}é")
    assert not os.listdir(folder)


@pytest.mark.parametrize("kind", ["unix", "unixgram"])
def test_a_path_is_removed_at_the_end(kind: str, folder: Path, twin: Any) -> None:
    with served(f"{kind}:{folder / 's'}", twin):
        assert os.listdir(folder) == ["s"]
    assert os.listdir(folder) == []


def test_a_daemon_removes_its_paths(folder: Path, twin: Any) -> None:
    words = ("tcp://127.0.0.1:0", f"unix:{folder / 's'}", f"unixgram:{folder / 'd'}")
    with serving(backend=twin.name, listen=words, lines=1) as daemon:
        daemon.wait_line(f"waiting for connection ... {words[1]} (line, {twin.name})")
        daemon.wait_line(f"waiting for message ... {words[2]} ({twin.name})")
        assert daemon.stop() == 0
    assert os.listdir(folder) == []


@pytest.mark.parametrize("kind", ["unix", "unixgram"])
def test_a_path_that_another_server_has_taken_over_is_left_to_it(
    kind: str, folder: Path, twin: Any
) -> None:
    path = folder / "s"
    with ExitStack() as stack:
        with served(f"{kind}:{path}", twin):
            os.unlink(path)
            stack.enter_context(served(f"{kind}:{path}", twin, prefix="2"))
        assert os.listdir(folder) == ["s"]
        if kind == "unix":
            assert exchange(path, b"a\n") == b"2a\n"
    assert os.listdir(folder) == []


@pytest.mark.parametrize("kind", ["unix", "unixgram"])
@pytest.mark.parametrize("old", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_stale_socket_is_replaced(kind: str, old: int, folder: Path, twin: Any) -> None:
    """Whatever it was."""
    path = folder / "s"
    with socket.socket(socket.AF_UNIX, old) as sock:
        sock.bind(os.fspath(path))
    with served(f"{kind}:{path}", twin):
        if kind == "unix":
            assert exchange(path, b"a\n") == b"<>a\n"
        else:
            with datagram_to(path, folder / "c") as client:
                client.send(b"a")
                assert client.recv(100) == b"<>a"
    assert not path.exists()


@pytest.mark.parametrize("kind", ["unix", "unixgram"])
@pytest.mark.parametrize("living", ["unix", "unixgram"])
def test_a_socket_that_somebody_answers_is_left_alone(
    kind: str, living: str, folder: Path, twin: Any
) -> None:
    path = folder / "s"
    with served(f"{living}:{path}", twin):
        before = os.stat(path).st_ino
        with pytest.raises(FastechoError, match=f"cannot listen on {kind}:.*in use"):
            Server(f"{kind}:{path}", backend=twin.name)
        assert os.stat(path).st_ino == before
        if living == "unix":
            assert exchange(path, b"a\n") == b"<>a\n"


def test_a_socket_whose_backlog_is_full_is_left_alone(folder: Path) -> None:
    path = os.fspath(folder / "s")
    with ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX))
        busy.bind(path)
        busy.listen(0)
        stack.enter_context(stream_to(path))
        with pytest.raises(FastechoError, match="cannot listen on unix:"):
            Server(f"unix:{path}")
        assert os.path.exists(path)


@pytest.mark.parametrize("kind", ["unix", "unixgram"])
@pytest.mark.parametrize("what", ["file", "empty", "folder", "fifo", "link", "dangling"])
def test_what_is_no_socket_is_an_error_and_left_alone(kind: str, what: str, folder: Path) -> None:
    path = folder / "s"
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what in ("link", "dangling"):
        path.symlink_to(folder / "elsewhere")
        if what == "link":
            (folder / "elsewhere").write_text("precious")
    else:
        path.write_text("precious" if what == "file" else "")
    before = os.lstat(path)
    said = sentence(start(f"{kind}:{path}"), 3)
    assert said.startswith(f"cannot listen on {kind}:{path}: ")
    after = os.lstat(path)
    assert (before.st_ino, before.st_mode, before.st_size) == (
        after.st_ino,
        after.st_mode,
        after.st_size,
    )


def test_a_folder_that_is_not_there_is_a_sentence(folder: Path) -> None:
    path = folder / "none" / "s"
    said = sentence(start(f"unix:{path}"), 3)
    assert said == f"cannot listen on unix:{path}: no such file or directory"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_of_another_s_is_not_explained_with_ports(folder: Path) -> None:
    os.chmod(folder, 0o755)
    program = (
        "import os, sys, fastecho\n"
        "fastecho.backend.load()\n"
        "os.setgid(65534); os.setuid(65534)\n"
        f"try: fastecho.Server('unix:{folder}/s')\n"
        "except fastecho.FastechoError as error: sys.exit(str(error))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        env=environment(),
    )
    said = done.stderr.decode()
    assert said.startswith(f"cannot listen on unix:{folder}/s: permission denied")
    assert "1024" not in said


# -- inherited descriptors


@contextmanager
def inherited(family: int, kind: int, address: Any, listening: bool = True) -> Iterator[int]:
    """The number under which a child finds such a socket."""
    with socket.socket(family, kind) as sock:
        if address is not None:
            sock.bind(address)
        if listening and kind == socket.SOCK_STREAM:
            sock.listen()
        yield sock.fileno()


@pytest.mark.parametrize(
    ("family", "kind", "form"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, "tcp://{}"),
        (socket.AF_INET, socket.SOCK_DGRAM, "udp://{}"),
        pytest.param(socket.AF_INET6, socket.SOCK_STREAM, "tcp://[{}", marks=needs_ipv6),
        (socket.AF_UNIX, socket.SOCK_STREAM, "unix:{}"),
        (socket.AF_UNIX, socket.SOCK_DGRAM, "unixgram:{}"),
    ],
)
def test_an_inherited_socket_is_served_as_what_it_is(
    family: int, kind: int, form: str, folder: Path, twin: Any
) -> None:
    path = os.fspath(folder / "s")
    address = {socket.AF_UNIX: path, socket.AF_INET: ("127.0.0.1", 0)}.get(family, ("::1", 0))
    with socket.socket(family, kind) as sock, socket.socket(family, kind) as client:
        sock.bind(address)
        if kind == socket.SOCK_STREAM:
            sock.listen()
        where = sock.getsockname()
        with served(f"fd://{os.dup(sock.fileno())}", twin) as server:
            shown = path if family == socket.AF_UNIX else named(where[:2])
            assert server.addresses == [form.format(shown.replace("::1:", "::1]:"))]
            client.settimeout(PATIENCE)
            if family == socket.AF_UNIX:
                client.bind(os.fspath(folder / "c"))
            client.connect(where)
            client.sendall(b"x\n")
            assert client.recv(100) == b"<>x\n"
    # The path is whose it was: whoever bound it.
    if family == socket.AF_UNIX:
        assert os.path.exists(path)


def test_a_daemon_serves_what_it_inherits(twin: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        where = sock.getsockname()
        process = subprocess.Popen(
            [sys.executable, "-m", "fastecho", "--backend", twin.name, f"fd://{sock.fileno()}"],
            pass_fds=[sock.fileno()],
            stderr=subprocess.PIPE,
            env=environment(),
        )
    try:
        assert process.stderr is not None
        ready = process.stderr.readline()
        assert ready == b"waiting for connection ... tcp://%b (line, %b)\n" % (
            named(where).encode(),
            twin.name.encode(),
        )
        with socket.create_connection(where, PATIENCE) as client:
            client.sendall(b"x\n")
            assert read_exactly(client, 28).endswith(b"]x\n")
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(
    ("family", "kind", "address", "listening", "words"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0), False, "is not listening"),
        (socket.AF_UNIX, socket.SOCK_STREAM, None, False, "is not listening"),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET, None, False, "no TCP, UDP or UNIX socket"),
        (socket.AF_INET, socket.SOCK_DGRAM, None, False, "is not bound"),
        (socket.AF_UNIX, socket.SOCK_DGRAM, None, False, "is not bound"),
    ],
)
def test_a_socket_that_cannot_be_served_is_a_sentence(
    family: int, kind: int, address: Any, listening: bool, words: str
) -> None:
    with inherited(family, kind, address, listening) as number:
        said = sentence(start(f"fd://{number}", descriptors=(number,)), 3)
    assert said == f"cannot listen on fd://{number}: {said.partition(': ')[2]}"
    assert words in said


def test_what_is_no_socket_is_a_sentence(folder: Path) -> None:
    with open(folder / "file", "w") as file:
        said = sentence(start(f"fd://{file.fileno()}", descriptors=(file.fileno(),)), 3)
    assert said.startswith(f"cannot listen on fd://{file_number(said)}: ")
    assert "socket" in said
    assert "no such descriptor" in sentence(start("fd://1000"), 3)


def file_number(said: str) -> str:
    return said.partition("fd://")[2].partition(":")[0]


def test_one_descriptor_twice_is_a_sentence() -> None:
    with inherited(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)) as number:
        status, said = start(f"fd://{number}", f"fd://{number}", descriptors=(number,))
    assert status in (2, 3)
    assert said.startswith("fastecho: cannot listen on ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("kind", ["unix", "unixgram"])
def test_one_path_twice_is_an_error(kind: str, folder: Path, twin: Any) -> None:
    """The second is no stale socket."""
    word = f"{kind}:{folder / 's'}"
    with pytest.raises(FastechoError, match="cannot listen on"):
        Server([word, word], backend=twin.name)
    assert os.listdir(folder) == []


# -- every address, and one port


@needs_ipv6
@pytest.mark.parametrize("word", ["[::]:0", ":0"])
def test_every_address_takes_both_families(word: str, twin: Any) -> None:
    with served(word, twin) as server:
        port = server.tcp_address[1]
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family) as sock:
                sock.settimeout(PATIENCE)
                sock.connect((host, port))
                sock.sendall(b"x\n")
                assert read_exactly(sock, 4) == b"<>x\n"
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.settimeout(PATIENCE)
                sock.connect((host, port))
                sock.send(b"x")
                assert sock.recv(100) == b"<>x"


@pytest.mark.parametrize("last", ["fd://1000", "unix:/none/at/all", "tcp://203.0.113.1:0"])
def test_all_or_none(last: str, folder: Path, twin: Any) -> None:
    with socket.create_server((OWN_HOST, 0)) as probe:
        port = probe.getsockname()[1]
    words = [f"unix:{folder / 's'}", f"unixgram:{folder / 'd'}", f"{OWN_HOST}:{port}", last]
    with pytest.raises(FastechoError, match="cannot listen on"):
        Server(words, backend=twin.name)
    assert os.listdir(folder) == []
    with served(words[:-1], twin):
        assert exchange(folder / "s", b"x\n") == b"<>x\n"


def test_two_daemons_never_share_a_udp_port(twin: Any) -> None:
    with serving(backend=twin.name, listen=("udp://127.0.0.1:0",)) as daemon:
        word = f"udp://{named(daemon.udp)}"
        said = sentence(start("--backend", twin.name, word), 3)
        assert said.startswith(f"cannot listen on {word}: address already in use")
        with daemon.datagram_socket() as sock:
            sock.send(b"x")
            assert sock.recv(100).endswith(b"]x")


def test_a_client_that_goes_ends_its_connection_alone(folder: Path, twin: Any) -> None:
    path = folder / "s"
    with served(f"unix:{path}", twin, prefix="") as server, stream_to(path) as bystander:
        with stream_to(path) as sock:
            sock.sendall(b"y\n" * 100_000)
            sock.recv(1)
        until(
            lambda: sum(n for name, n in server.counters.items() if name.startswith("closed.")),
            "an end",
        )
        bystander.sendall(b"x\n")
        assert read_exactly(bystander, 2) == b"x\n"
