"""The framings against other people's: what they write we read, and what we write they read.

Twisted's receivers, protobuf's own delimited messages, and `asyncio.StreamReader.readuntil`.
"""

from __future__ import annotations

import asyncio
import io
import struct
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from reference import Framing

from fastecho import framing

LIMIT = 300
#: Around the limit, and where a length gets another digit or another byte.
SIZES = (0, 1, 2, 9, 10, 11, 99, 100, 127, 128, 255, 256, LIMIT - 1, LIMIT)


class Heard(NamedTuple):
    """What a decoder made of a stream."""

    messages: list[bytes]
    at_fault: bool


def ours(codec: Any, recvs: list[bytes]) -> Heard:
    messages = [message for data in recvs for message in codec.feed(data)]
    return Heard(messages, codec.error is not None)


payloads = st.one_of(
    st.binary(max_size=20), st.sampled_from(SIZES).map(lambda size: b"=" * size), st.just(b"\r")
)


@st.composite
def conversations(draw: st.DrawFn, without: bytes = b"") -> tuple[list[bytes], list[int]]:
    """Messages that do not hold certain bytes, and where the stream of them is cut."""
    clean = payloads.map(lambda message: message.translate(None, without))
    messages = draw(st.lists(clean, max_size=6))
    return messages, draw(st.lists(st.integers(0, sum(map(len, messages)) + 12), max_size=8))


# -- Twisted


@pytest.fixture(scope="module")
def receivers() -> Any:
    """`twisted.protocols.basic`."""
    return pytest.importorskip("twisted.protocols.basic", reason="twisted is not installed")


TWISTED = [
    ("Int8StringReceiver", None, Framing("length", 255, width=1)),
    ("Int16StringReceiver", None, Framing("length", LIMIT, width=2)),
    ("Int32StringReceiver", None, Framing("length", LIMIT, width=4)),
    ("NetstringReceiver", None, Framing("netstring", LIMIT)),
    ("LineReceiver", b"\r\n", Framing("delimiter", LIMIT, b"\r\n")),
    ("LineReceiver", b"\n", Framing("delimiter", LIMIT, b"\n")),
    ("LineOnlyReceiver", b"\r\n", Framing("delimiter", LIMIT, b"\r\n")),
    ("LineOnlyReceiver", b"aab", Framing("delimiter", LIMIT, b"aab")),
]
each_receiver = pytest.mark.parametrize(
    ("name", "delimiter", "wanted"), TWISTED, ids=[f"{row[0]}-{row[2].spec}" for row in TWISTED]
)
#: Without the one that counts the start of a delimiter as part of the line (Twisted 26.10): with a
#: MAX_LENGTH of 3, it refuses `xyz\r` and `\n`, and takes `xyz\r\n`.
LIMITED = [row for row in TWISTED if row[0] != "LineOnlyReceiver"]
each_limited_receiver = pytest.mark.parametrize(
    ("name", "delimiter", "wanted"), LIMITED, ids=[f"{row[0]}-{row[2].spec}" for row in LIMITED]
)


def receiver(receivers: Any, name: str, delimiter: bytes | None, limit: int) -> tuple[Any, Any]:
    """One that writes down what it gets, and its transport."""
    from twisted.internet.testing import StringTransport

    made = getattr(receivers, name)()
    made.MAX_LENGTH = limit
    made.heard = []
    made.stringReceived = made.lineReceived = made.heard.append
    if delimiter is not None:
        made.delimiter = delimiter
    transport = StringTransport()
    made.makeConnection(transport)
    return made, transport


def theirs(receivers: Any, row: tuple[str, bytes | None, int], recvs: list[bytes]) -> Heard:
    made, transport = receiver(receivers, *row)
    for data in recvs:
        if not transport.disconnecting:
            made.dataReceived(data)
    return Heard(made.heard, transport.disconnecting)


@each_receiver
@given(data=st.data())
def test_twisted_and_we_write_and_read_the_same(
    receivers: Any, twin: Any, name: str, delimiter: bytes | None, wanted: Framing, data: Any
) -> None:
    messages, at = data.draw(conversations(wanted.delimiter))
    messages = [message[: wanted.max_frame] for message in messages]
    made, transport = receiver(receivers, name, delimiter, wanted.max_frame)
    for message in messages:
        (made.sendString if delimiter is None else made.sendLine)(message)
    codec = wanted.codec(twin)
    stream = b"".join(map(codec.encode, messages))
    assert transport.value() == stream
    recvs = strategies.pieces(stream, sorted(min(place, len(stream)) for place in at))
    assert ours(codec, recvs) == (messages, False)
    room = wanted.max_frame + (len(wanted.delimiter) if name == "LineOnlyReceiver" else 0)
    assert theirs(receivers, (name, delimiter, room), recvs) == (messages, False)


@each_limited_receiver
@given(data=st.data())
def test_of_a_damaged_stream_twisted_and_we_hear_the_same(
    receivers: Any, twin: Any, name: str, delimiter: bytes | None, wanted: Framing, data: Any
) -> None:
    """They may find the fault later, when more has come."""
    limit = data.draw(st.integers(1, 12))
    wanted = Framing(wanted.kind, limit, wanted.delimiter, wanted.width)
    stream = data.draw(strategies.streams(wanted))
    recvs = data.draw(strategies.cuts(stream))
    we, they = ours(wanted.codec(twin), recvs), theirs(receivers, (name, delimiter, limit), recvs)
    assert we.messages == they.messages
    assert we.at_fault or not they.at_fault


# -- what docs/framing.md says of other protocols


def tpkt(body: bytes) -> bytes:
    """RFC 1006, 6: version, reserved, a length that counts these four bytes too."""
    return struct.pack(">BBH", 3, 0, 4 + len(body)) + body


def giop(body: bytes) -> bytes:
    """CORBA's: magic, version, flags (big-endian), type, length."""
    return b"GIOP" + struct.pack(">BBBBI", 1, 1, 0, 0, len(body)) + body


def fastcgi(body: bytes) -> bytes:
    """FastCGI's: version, type, request, length; no padding and a reserved byte are in the rest."""
    return struct.pack(">BBHH", 1, 5, 7, len(body) - 2) + body


PROTOCOLS = [
    (tpkt, "length:width=2,offset=2,adjust=-4"),
    (giop, "length:width=4,offset=8"),
    (fastcgi, "length:width=2,offset=4,adjust=2"),
]


@pytest.mark.parametrize(("written", "spec"), PROTOCOLS, ids=[spec for _, spec in PROTOCOLS])
def test_headers_of_other_protocols_have_a_spec(twin: Any, written: Any, spec: str) -> None:
    bodies = [b"\0\0", b"\0\0content", b"\0\0" + bytes(1000)]
    stream = b"".join(map(written, bodies))
    recvs = strategies.pieces(stream, range(1, len(stream)))
    assert ours(framing.codec(spec, backend=twin.name), recvs) == (bodies, False)


# -- protobuf


@given(conversation=conversations())
def test_protobuf_and_we_write_and_read_the_same(
    twin: Any, conversation: tuple[list[bytes], list[int]]
) -> None:
    proto = pytest.importorskip("google.protobuf.proto", reason="protobuf is not installed")
    from google.protobuf.wrappers_pb2 import BytesValue

    messages, at = conversation
    values = [BytesValue(value=message) for message in messages]
    file = io.BytesIO()
    for value in values:
        proto.serialize_length_prefixed(value, file)
    stream = file.getvalue()
    codec = twin.VarintCodec(2 * LIMIT)
    assert b"".join(codec.encode(value.SerializeToString()) for value in values) == stream
    recvs = strategies.pieces(stream, sorted(min(place, len(stream)) for place in at))
    heard = ours(codec, recvs)
    assert [BytesValue.FromString(message).value for message in heard.messages] == messages
    file.seek(0)
    read = iter(lambda: proto.parse_length_prefixed(BytesValue, file), None)
    assert list(read) == values


@given(size=st.one_of(st.sampled_from([2**bits + more for bits in range(31) for more in (-1, 0)])))
def test_varints_are_those_of_protobuf(twins: tuple[Any, Any], size: int) -> None:
    encoder = pytest.importorskip(
        "google.protobuf.internal.encoder", reason="protobuf is not installed"
    )
    field = encoder._VarintBytes(size)
    for twin in twins:
        codec = twin.VarintCodec(2**30)
        if size <= 70_000:
            assert codec.encode(bytes(size)) == field + bytes(size)
        assert codec.feed(field) == ([] if size else [b""])
        assert codec.pending == (len(field) if size else 0)
        assert codec.error is None


# -- asyncio


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One loop for all: each has descriptors of its own."""
    with asyncio.Runner() as runner:
        yield runner


async def read_until(recvs: list[bytes], separator: Any) -> tuple[list[bytes], bytes]:
    """What `readuntil` gives, each with its separator, and what is left at the end."""
    reader = asyncio.StreamReader()
    found = []
    for data in recvs:
        reader.feed_data(data)
    reader.feed_eof()
    while True:
        try:
            found.append(await reader.readuntil(separator))
        except asyncio.IncompleteReadError as end:
            return found, end.partial


@given(data=st.data())
def test_readuntil_and_we_cut_the_same(twin: Any, runner: asyncio.Runner, data: Any) -> None:
    wanted = data.draw(strategies.framings(["delimiter"]))
    codec = twin.DelimiterCodec(wanted.delimiter, 2**20)
    recvs = data.draw(strategies.cuts(data.draw(strategies.streams(wanted))))
    found, rest = runner.run(read_until(recvs, wanted.delimiter))
    assert ours(codec, recvs).messages == [each.removesuffix(wanted.delimiter) for each in found]
    assert codec.finish() == ([rest] if rest else [])


@pytest.mark.skipif(sys.version_info < (3, 13), reason="one separator before Python 3.13")
@given(data=st.data())
def test_readuntil_any_of_several_and_we_cut_the_same(
    twin: Any, runner: asyncio.Runner, data: Any
) -> None:
    wanted = data.draw(strategies.framings(["any"]))
    codec = twin.AnyDelimiterCodec(wanted.ends, 2**20)
    recvs = data.draw(strategies.cuts(data.draw(strategies.streams(wanted))))
    found, rest = runner.run(read_until(recvs, wanted.ends))
    messages = ours(codec, recvs).messages
    assert len(messages) == len(found)
    for each, message in zip(found, messages, strict=True):
        assert each in [message + end for end in wanted.ends]
    assert codec.finish() == ([rest] if rest else [])
