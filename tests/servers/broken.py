"""Small servers, each with one of the bugs that people really write: `broken.py NAME`.

Each serves one client at a time, puts `> ` before every message, and says on standard output on
which port of 127.0.0.1 it listens. Not one of them fails a client whose messages come whole.
"""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import suppress

PREFIX = b"> "


def one_recv(sock: socket.socket) -> None:
    """A message is what one `recv` returned."""
    while data := sock.recv(65_536):
        sock.sendall(PREFIX + data)


def length_in_one_recv(sock: socket.socket) -> None:
    """The length is whole as soon as there is any of it."""
    while header := sock.recv(4):
        (size,) = struct.unpack(">I", header.ljust(4, b"\0"))
        message = b""
        while len(message) < size and (data := sock.recv(size - len(message))):
            message += data
        sock.sendall(struct.pack(">I", len(PREFIX) + len(message)) + PREFIX + message)


def second_dropped(sock: socket.socket) -> None:
    """What follows a message in the same `recv` is forgotten."""
    buffer = b""
    while data := sock.recv(65_536):
        buffer += data
        if b"\n" in buffer:
            sock.sendall(PREFIX + buffer[: buffer.index(b"\n") + 1])
            buffer = b""


def cr_and_lf(sock: socket.socket) -> None:
    """Line ends are made the same in each `recv`."""
    buffer = b""
    while data := sock.recv(65_536):
        buffer += data.replace(b"\r\n", b"\n")
        *lines, buffer = buffer.split(b"\n")
        sock.sendall(b"".join(PREFIX + line + b"\n" for line in lines))


def utf8_per_recv(sock: socket.socket) -> None:
    """Each `recv` is decoded, wherever it ends."""
    buffer = ""
    while data := sock.recv(65_536):
        buffer += data.decode(errors="replace")
        *lines, buffer = buffer.split("\n")
        sock.sendall(b"".join(PREFIX + line.encode() + b"\n" for line in lines))


def short_buffer(sock: socket.socket) -> None:
    """A message fits into the buffer."""
    buffer = b""
    while data := sock.recv(1024 - len(buffer)):
        buffer += data
        *lines, buffer = buffer.split(b"\n")
        if len(buffer) == 1024:
            lines, buffer = [*lines, buffer], b""
        sock.sendall(b"".join(PREFIX + line + b"\n" for line in lines))


def delimiter_begun(sock: socket.socket) -> None:
    """The delimiter is looked for in what is new."""
    buffer = b""
    while data := sock.recv(65_536):
        buffer += data
        if b"\r\n" in data:
            *messages, buffer = buffer.split(b"\r\n")
            sock.sendall(b"".join(PREFIX + message + b"\r\n" for message in messages))


def dies_of_a_reset(sock: socket.socket) -> None:
    """A client that resets is an error that nobody expects."""
    buffer = b""
    while True:
        try:
            data = sock.recv(65_536)
        except ConnectionResetError:
            sys.exit("a client has reset the connection")
        if not data:
            return
        buffer += data
        *lines, buffer = buffer.split(b"\n")
        sock.sendall(b"".join(PREFIX + line + b"\n" for line in lines))


LEFT = bytearray()


def one_buffer_for_all(sock: socket.socket) -> None:
    """What one client did not finish is the beginning of the next one's message."""
    while data := sock.recv(65_536):
        LEFT.extend(data)
        *lines, rest = LEFT.split(b"\n")
        LEFT[:] = rest
        sock.sendall(b"".join(PREFIX + line + b"\n" for line in lines))


def right(sock: socket.socket) -> None:
    """None of them."""
    buffer = b""
    while data := sock.recv(65_536):
        buffer += data
        *lines, buffer = buffer.split(b"\n")
        sock.sendall(b"".join(PREFIX + line + b"\n" for line in lines))


def right_without_cr(sock: socket.socket) -> None:
    """None of them; and a CR at a line's end is not part of it."""
    buffer = b""
    while data := sock.recv(65_536):
        buffer += data
        *lines, buffer = buffer.split(b"\n")
        sock.sendall(b"".join(PREFIX + line.removesuffix(b"\r") + b"\n" for line in lines))


def main() -> None:
    serve = globals()[sys.argv[1]]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            sock, _ = listener.accept()
            with sock, suppress(OSError):
                serve(sock)


if __name__ == "__main__":
    main()
