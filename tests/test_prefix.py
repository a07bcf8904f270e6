"""Prefix templates: from braces to parts, and what they may not render."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from reference import LONGEST

from fastecho import prefix
from fastecho._pure.stamping import Stamper
from fastecho.errors import ConfigError

TOKENS = sorted(LONGEST)


def joined(parts: tuple[bytes | str, ...]) -> list[bytes | str]:
    """The parts with literals that stand together made one, and empty ones left out."""
    result: list[bytes | str] = []
    for part in parts:
        if isinstance(part, bytes) and result and isinstance(result[-1], bytes):
            result[-1] += part
        elif part:
            result.append(part)
    return result


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
pieces = st.one_of(
    st.sampled_from(TOKENS).map(lambda name: ("{" + name + "}", name)),
    st.one_of(texts, st.sampled_from(["{", "}", "{{", "{ctime}", "%s", "\\n"])).map(
        lambda text: (text.replace("{", "{{").replace("}", "}}"), text.encode())
    ),
)


@given(st.lists(pieces))
def test_braces_hold_names_and_all_else_is_literal(
    written: list[tuple[str, bytes | str]],
) -> None:
    template = "".join(text for text, _ in written)
    assert joined(prefix.parse(template)) == joined(tuple(part for _, part in written))


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("", []),
        ("[{ctime}]", [b"[", "ctime", b"]"]),
        ("{{{seq}}}", [b"{", "seq", b"}"]),
        ("{{seq}}", [b"{seq}"]),
        ("{seq}{len}", ["seq", "len"]),
        ("é€ {utc}", ["é€ ".encode(), "utc"]),
        ("{{}}", [b"{}"]),
        ("%s $x \\x00", [b"%s $x \\x00"]),
    ],
)
def test_a_template_is_its_parts(template: str, parts: list[bytes | str]) -> None:
    assert joined(prefix.parse(template)) == parts


def test_host_and_process_are_literals() -> None:
    name = socket.gethostname().encode()
    assert joined(prefix.parse("{host}/{pid}")) == [name + b"/%d" % os.getpid()]


@pytest.mark.parametrize(
    "template",
    [
        *("{}", "{0}", "{nope}", "{CTIME}", "{ ctime}", "{ctime }", "{ctime:>5}", "{ctime!r}"),
        *("{peer.host}", "{peer[0]}", "{ctime}{iso8601}", "{fraction_us}", "{\n}", "{ctime,iso}"),
    ],
)
def test_an_unknown_name_lists_the_right_ones(template: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prefix.parse(template)
    for name in [*TOKENS, "host", "pid"]:
        assert "{" + name + "}" in str(caught.value)


LONE = ["{", "}", "a}b", "{ctime", "ctime}", "{{}", "{ctime}}", "{{{"]


@pytest.mark.parametrize("template", LONE)
def test_a_lone_brace_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match=r"brace|lone"):
        prefix.parse(template)


def test_what_is_no_unicode_is_refused() -> None:
    with pytest.raises(ConfigError):
        prefix.parse("\ud800")


# -- as others render it


@given(
    template=st.lists(
        st.sampled_from(
            [*(f"{{{name}}}" for name in prefix.NAMES), "a", "[", "]", "(.*", "é", "{{"]
        )
    ).map("".join),
    now=st.integers(0, 2**63 - 1),
    seq=st.integers(0, 2**64 - 1),
    peer=st.sampled_from([b"", b"127.0.0.1:7", b"[::1]:50123", b"unix:/a b"]),
)
def test_every_rendering_has_the_form(template: str, now: int, seq: int, peer: bytes) -> None:
    made = Stamper(prefix.parse(template)).render(now, seq, 2**30, peer)
    assert prefix.form(template).fullmatch(made)
    assert len(made) <= prefix.longest(template)
    assert prefix.width(template) in (None, len(made))


@pytest.mark.parametrize(
    ("template", "other", "width"),
    [
        ("{pid}/", b"4194304/", None),
        ("{host}>", b"somewhere-else.example>", None),
        ("[{ctime}]", b"[Sun Nov  1 00:00:00 1970]", 26),
        ("", b"", 0),
        ("é", "é".encode(), 2),
    ],
)
def test_another_server_renders_it_too(template: str, other: bytes, width: int | None) -> None:
    assert prefix.form(template).fullmatch(other)
    assert prefix.width(template) == width


@pytest.mark.parametrize(
    ("template", "other"),
    [
        ("[{ctime}]", b"[Sun Nov 22 11:36:4x 2026]"),
        ("[{ctime}]", b"[Sun Nov 22 11:36:40 2026"),
        ("{utc}", b"2026-11-22T11:36:40.12345678Z"),
        ("{seq}", b""),
        ("{seq}", b"-1"),
        ("a.c", b"abc"),
        ("{peer}", b"\n"),
        ("", b"x"),
    ],
)
def test_what_no_server_renders(template: str, other: bytes) -> None:
    assert not prefix.form(template).fullmatch(other)


# -- against the delimiter


@pytest.mark.parametrize(
    ("template", "delimiter"),
    [
        ("a\nb", b"\n"),
        ("\n", b"\n"),
        ("x\r\ny", b"\r\n"),
        ("x\r", b"\r\n"),
        ("[{ctime}]", b"]"),
        ("[{ctime}]", b"] "),
        ("{ctime}", b" "),
        ("{ctime}", b"Jan"),
        ("{ctime}", b"1"),
        ("{ctime}", b"20"),
        ("{iso}", b"-0"),
        ("{iso}", b"+"),
        ("{utc}", b"Z"),
        ("{utc}", b"Z~"),
        ("{seq}", b"7"),
        ("a{seq}b", b"a1"),
        ("a{seq}b", b"99b"),
        ("{seq}{len}", b"12345"),
        ("{peer}", b":"),
        ("<{peer}>", b"<>"),
        ("<{peer}>", b"<unix:x>"),
        ("aba", b"ab"),
        ("xab", b"aba"),
    ],
)
def test_a_template_that_can_render_the_delimiter_is_refused(
    template: str, delimiter: bytes
) -> None:
    with pytest.raises(ConfigError, match=r"delimiter"):
        prefix.check_delimiter(template, delimiter)


@pytest.mark.parametrize(
    ("template", "delimiter"),
    [
        ("", b"\n"),
        ("[{ctime}]", b"\n"),
        ("[{ctime}]", b"[]"),
        ("\n", b"\r\n"),
        ("{ctime}", b"\0"),
        ("{ctime} ", b"2026\n"),
        ("{utc}|", b"ZZ"),
        ("{seq} ", b"a"),
        ("a{seq}b", b"ab"),
        ("<{seq}>", b"<>"),
        ("{peer} {utc} {iso} {mono_ns} ", b"\n"),
        ("{peer} ", b"\r\n"),
        ("aab ", b"aba"),
    ],
)
def test_a_template_that_cannot_is_taken(template: str, delimiter: bytes) -> None:
    prefix.check_delimiter(template, delimiter)


@given(
    literals=st.lists(st.sampled_from("ab"), max_size=6).map("".join),
    delimiter=st.lists(st.sampled_from(b"ab"), min_size=1, max_size=4).map(bytes),
    message=st.lists(st.sampled_from(b"ab"), max_size=6).map(bytes),
)
@example(literals="ab", delimiter=b"aba", message=b"")
def test_no_reply_ends_early(literals: str, delimiter: bytes, message: bytes) -> None:
    try:
        prefix.check_delimiter(literals, delimiter)
    except ConfigError:
        ends = [literals.endswith(delimiter[:size].decode()) for size in range(1, len(delimiter))]
        assert delimiter.decode() in literals or any(ends)
    else:
        if (message + delimiter).find(delimiter) == len(message):
            said = literals.encode() + message
            assert (said + delimiter).find(delimiter) == len(said)
