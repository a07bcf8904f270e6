"""The same protocol on libuv: PYTHON uvloop_protocol.py HOST PORT."""

from __future__ import annotations

import sys

import uvloop
from asyncio_protocol import serve

if __name__ == "__main__":
    uvloop.run(serve(*sys.argv[1:3]))
