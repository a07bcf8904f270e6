"""fastecho: the TCP and UDP echo daemon that stamps every message with the time it was received.

The map. Imports point down, or left within a row::

    cli/            the commands; one file each: parse, call one function
    testing/        for the tests of others: cuts, decoders, a socket that delivers by plan; and the
                    search for cuts that a server does not survive (`fuzzer`)
    plot  report    runs of load as a picture; kept, read again, merged
    load  ping  client
                    the other end of the socket: many messages measured; one at a time, and the two
                    clocks; a conversation
    comparison  workloads
                    native against pure, and the work that it is measured by
    server  replay  settings become listeners on a loop, served until stopped, then drained; one
                    logged connection served again
    settings  tcp  udp
                    what a server can be told; what happens on a listener or a socket besides
                    answering
    faults/         wrong on purpose: plans, what they decide, and the sockets that misbehave
    connections  framing  prefix  echo  sockets  delivery  clocks  dial  loop
                    a codec's messages over sockets and asyncio; specs to codecs; templates to
                    parts; the two as a library; LISTEN words to bound sockets; whether what was
                    sent was read; a server's clock beside ours; a client's way to it; the selector
                    loop
    backend         the one choice between the twins
    _pure  _native  the hot path, twice: framing, stamping, selector, stream, datagrams; and
                    generator, the engine of load
    machine  addresses  timestamps  events  limits  errors
                    what a measurement was made on; how an address is written; what of a stamp is
                    constant for a second; log lines; every bound and its reason; the error tree

`_pure` is the specification; `_native` is compiled from `ext/` and behaves the same, byte for byte.

The way of the data is one call per readable socket::

    loop.run -> selector.run -> stream.on_event     recv -> cut and stamp -> send
                             -> datagrams.on_event  receive a batch -> stamp -> send

Public names:

    Echo                bytes in, reply bytes out (`echo`)
    framing.codec       one connection's framing: `feed`, `finish`, `encode`
    framing.messages    the messages of a socket; `framing.connection` sends, too
    framing.async_messages, framing.async_connection
                        the same for asyncio's streams
    Server, running     the server, and one in a thread for tests
    backend             `name`, `load`
    FastechoError       > ConfigError; FrameError > FrameTooLong, FrameCorrupt, FrameTruncated
"""

from . import backend, framing
from .echo import Echo
from .errors import (
    ConfigError,
    FastechoError,
    FrameCorrupt,
    FrameError,
    FrameTooLong,
    FrameTruncated,
)
from .server import Server, running

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "Echo",
    "FastechoError",
    "FrameCorrupt",
    "FrameError",
    "FrameTooLong",
    "FrameTruncated",
    "Server",
    "__version__",
    "backend",
    "framing",
    "running",
]
