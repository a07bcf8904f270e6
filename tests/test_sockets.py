"""LISTEN words and the sockets they name: all of them, or none."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack, suppress
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import OWN_HOST, PATIENCE, named, needs_ipv6

from fastecho import sockets
from fastecho.errors import ConfigError, FastechoError
from fastecho.sockets import Bound, Listen

BOTH = ("tcp", "udp")


def bind(stack: ExitStack, *words: str) -> list[Bound]:
    """What these words name, closed by the stack."""
    bound = sockets.bind(sockets.parse(word) for word in words)
    for one in bound:
        stack.callback(one.sock.close)
    return bound


def resolve_as(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Make every name stand for these addresses."""

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (each, port, 0, 0))
            if ":" in each
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in hosts
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def is_free(kind: int, address: tuple[str, int]) -> bool:
    """Whether nobody has the address, a connection's TIME-WAIT apart."""
    with socket.socket(socket.AF_INET, kind) as sock, suppress(OSError):
        sock.bind(address)
        return True
    return False


# -- words


@pytest.mark.parametrize(
    ("word", "protocols", "host", "port"),
    [
        ("127.0.0.1:12345", BOTH, "127.0.0.1", 12345),
        ("localhost:0", BOTH, "localhost", 0),
        (":7", BOTH, "", 7),
        ("[::]:65535", BOTH, "::", 65535),
        ("[::1]:007", BOTH, "::1", 7),
        ("[fe80::1%eth0]:7", BOTH, "fe80::1%eth0", 7),
        ("tcp://:7", ("tcp",), "", 7),
        ("udp://[::1]:7", ("udp",), "::1", 7),
        ("tcp://host.example:7", ("tcp",), "host.example", 7),
    ],
)
def test_a_word_names_protocols_host_and_port(
    word: str, protocols: tuple[str, ...], host: str, port: int
) -> None:
    assert sockets.parse(word) == Listen(word, protocols, host, port)


@given(st.one_of(st.text(), st.text(alphabet="[]:/tcpudp019.%", max_size=20)))
def test_any_text_is_a_word_or_a_sentence(text: str) -> None:
    found = understood(text)
    if isinstance(found, str):
        assert found.startswith(f"{text!r} is no address: ")
    else:
        assert 0 <= found.port <= 65_535
        assert set(found.protocols) <= {"tcp", "udp"}


def understood(text: str) -> Listen | str:
    try:
        return sockets.parse(text)
    except ConfigError as error:
        return str(error)


# -- sockets


def test_tcp_listens_and_udp_is_bound_on_the_same_number() -> None:
    with ExitStack() as stack:
        tcp, udp = bind(stack, "127.0.0.1:0")
        port = tcp.address[1]
        assert port > 0
        assert [each.name for each in (tcp, udp)] == [
            f"tcp://127.0.0.1:{port}",
            f"udp://127.0.0.1:{port}",
        ]
        assert [each.sock.gettimeout() for each in (tcp, udp)] == [0, 0]
        socket.create_connection(tcp.address, PATIENCE).close()


def test_accepted_connections_do_not_hold_back_replies() -> None:
    with ExitStack() as stack:
        (tcp,) = bind(stack, "tcp://127.0.0.1:0")
        with socket.create_connection(tcp.address, PATIENCE):
            tcp.sock.settimeout(PATIENCE)
            accepted, _ = tcp.sock.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("word", ["tcp://127.0.0.1:{}", "udp://127.0.0.1:{}"])
def test_nobody_else_can_have_the_address(word: str) -> None:
    with ExitStack() as stack:
        (first,) = bind(stack, word.format(0))
        name = word.format(first.address[1])
        with pytest.raises(FastechoError, match="address already in use") as caught:
            bind(stack, name)
        assert str(caught.value).startswith(f"cannot listen on {name}: ")


def test_a_name_listens_on_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one number; an address that a resolver gives twice is one."""
    resolve_as(monkeypatch, "127.0.0.1", "127.0.0.2", "127.0.0.1")
    with ExitStack() as stack:
        bound = bind(stack, "name:0")
        port = bound[0].address[1]
        assert [each.name for each in bound] == [
            f"{protocol}://127.0.0.{host}:{port}" for host in (1, 2) for protocol in BOTH
        ]


def test_localhost_listens_on_all_its_addresses() -> None:
    found = socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)
    with ExitStack() as stack:
        bound = bind(stack, "tcp://localhost:0")
        hosts = {each.address[0] for each in bound}
        assert hosts == {sockaddr[0] for *_, sockaddr in found}
        for each in bound:
            socket.create_connection(each.address[:2], PATIENCE).close()


@needs_ipv6
def test_ipv4_comes_first_and_ipv6_has_the_same_number(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_as(monkeypatch, "::1", "127.0.0.1")
    with ExitStack() as stack:
        bound = bind(stack, "tcp://name:0")
        port = bound[0].address[1]
        assert [each.name for each in bound] == [f"tcp://127.0.0.1:{port}", f"tcp://[::1]:{port}"]


@needs_ipv6
@pytest.mark.parametrize("word", ["tcp://:0", "tcp://[::]:0"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_every_address_is_every_address_of_both_families(word: str, host: str) -> None:
    with ExitStack() as stack:
        bound = bind(stack, word)
        socket.create_connection((host, bound[0].address[1]), PATIENCE).close()


def test_every_ipv4_address_is_no_ipv6_address() -> None:
    with ExitStack() as stack:
        (bound,) = bind(stack, "tcp://0.0.0.0:0")
        assert bound.sock.family == socket.AF_INET
        socket.create_connection(("127.0.0.1", bound.address[1]), PATIENCE).close()


# -- all or none


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_no_listener_is_kept_where_one_cannot_be_had(kind: int) -> None:
    """Not of the same word, and not of another."""
    with ExitStack() as stack:
        taken = stack.enter_context(socket.socket(socket.AF_INET, kind))
        taken.bind((OWN_HOST, 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        (one,) = bind(stack, f"udp://{OWN_HOST}:0")
        free = one.address
        one.sock.close()
        with pytest.raises(FastechoError, match="address already in use"):
            bind(stack, f"udp://{named(free)}", named(taken.getsockname()))
        other = socket.SOCK_DGRAM if kind == socket.SOCK_STREAM else socket.SOCK_STREAM
        assert is_free(other, taken.getsockname())
        assert is_free(socket.SOCK_DGRAM, free)


class Unlucky(socket.socket):
    """Finds the number taken for UDP, so many times."""

    times = 0

    def bind(self, address: Any) -> None:
        if self.type == socket.SOCK_DGRAM and Unlucky.times:
            Unlucky.times -= 1
            raise OSError(errno.EADDRINUSE, "taken")
        super().bind(address)


def test_a_number_that_is_not_free_for_both_protocols_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "socket", Unlucky)
    monkeypatch.setattr(Unlucky, "times", 3)
    with ExitStack() as stack:
        tcp, udp = bind(stack, "127.0.0.1:0")
        assert Unlucky.times == 0
        assert tcp.address == udp.address


def test_gives_up_where_no_number_is_free_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", Unlucky)
    monkeypatch.setattr(Unlucky, "times", 10**6)
    with ExitStack() as stack, pytest.raises(FastechoError) as caught:
        bind(stack, "127.0.0.1:0")
    assert str(caught.value) == (
        "cannot listen on 127.0.0.1:0: no port is free for all its addresses"
    )


# -- what to do


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "permission denied (ports below 1024 need CAP_NET_BIND_SERVICE)"),
        (errno.EAFNOSUPPORT, "address family not supported by protocol (this machine does not"),
        (errno.ENOBUFS, "no buffer space available"),
    ],
)
def test_says_why_a_socket_cannot_be_had(
    number: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: socket.socket, address: Any) -> None:
        raise OSError(number, "whatever")

    monkeypatch.setattr(Unlucky, "bind", refuse)
    monkeypatch.setattr(socket, "socket", Unlucky)
    with ExitStack() as stack, pytest.raises(FastechoError) as caught:
        bind(stack, "tcp://127.0.0.1:7")
    assert str(caught.value).startswith(f"cannot listen on tcp://127.0.0.1:7: {words}")


def test_says_which_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    monkeypatch.setattr(socket, "getaddrinfo", Mock(side_effect=unknown))
    with ExitStack() as stack, pytest.raises(FastechoError) as caught:
        bind(stack, "udp://host.invalid:7")
    assert str(caught.value) == (
        "cannot listen on udp://host.invalid:7: 'host.invalid': Name or service not known"
    )
