"""Servers from Debian, each in a process and a folder of its own, on a free port."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from processes import OWN_HOST, PATIENCE, named, until

#: Those of a system's administrator, too, whoever runs the tests.
PATHS = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"

#: A page, keep-alive, and nothing written anywhere but in its folder.
NGINX = """
daemon off;
pid {folder}/pid;
error_log stderr;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {host}:{port};
        location / {{ root {folder}; }}
    }}
}}
"""


@contextmanager
def serving(name: str, folder: Path) -> Iterator[str]:
    """The server of that name: its address, once it answers. Skips the test where it is not."""
    program = shutil.which(name, path=PATHS)
    if program is None:
        pytest.skip(f"{name} is not installed")
    with socket.socket() as taken:
        taken.bind((OWN_HOST, 0))
        host, port = taken.getsockname()
    words = {
        "redis-server": ["--bind", host, "--port", str(port), "--save", "", "--dir", str(folder)],
        "memcached": ["-l", host, "-p", str(port), "-U", "0", "-m", "16"],
        "nginx": ["-e", "stderr", "-c", str(folder / "nginx.conf")],
    }[name]
    if name == "memcached" and os.getuid() == 0:
        words += ["-u", "nobody"]
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, host=host, port=port))
    (folder / "page").write_text("".join(f"line {number}\n" for number in range(100)))
    folder.chmod(0o755)  # nginx serves as somebody else, if root starts it
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(
            [program, *words], cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
    try:
        until(lambda: answers(process, (host, port)), f"{name} listens")
        yield named((host, port))
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()


def answers(process: subprocess.Popen[bytes], address: tuple[str, int]) -> bool:
    assert process.poll() is None, "it has ended"
    with suppress(OSError), socket.create_connection(address, PATIENCE):
        return True
    return False
