"""Every bound, its default, and the reason for it. Sizes are bytes, times are seconds."""

from __future__ import annotations

from .errors import ConfigError

#: Longest message, where none is asked for: asyncio's own `StreamReader` limit.
MAX_FRAME = 65_536
#: The most that `max_frame` can be set to: a reply and its prefix stay far below 2**31, so that
#: every size fits every system call and C type on the way.
MAX_FRAME_CEILING = 2**30
#: Longest delimiter: real ones have one to four bytes, a MIME boundary (RFC 2046, 5.1.1) 70.
MAX_DELIMITER = 255
#: Most bytes before a length field, and the furthest that `adjust` can move it: far more than
#: any header has, and small enough that no sum of them overflows.
MAX_LENGTH_OFFSET = 65_536
MAX_LENGTH_ADJUST = 2**30
#: Longest rendered prefix: no datagram could carry a longer one.
MAX_PREFIX = 65_535
#: Longest `{peer}`: `unix:` and a 108-byte path (sun_path, unix(7)) fit; an IPv6 address with
#: its scope and port has at most 63.
MAX_PEER = 128
#: The latest time a message can bear, in nanoseconds: what a signed 64-bit counter holds (2262).
MAX_TIME_NS = 2**63 - 1

#: What one `recv` takes at most: enough to empty a default socket buffer, and small enough to
#: stay in the second-level cache.
RECEIVE_BUFFER = 262_144
#: One piece of replies, unless a single reply is larger. Bounds what a client that does not read
#: can make the server hold.
SEND_BUFFER = 262_144
#: Datagrams that one system call takes: past 64 the cost of the call is no longer seen.
DATAGRAM_BATCH = 64
#: Source ports that answer by nature: chargen and the like are below 1,024; SSDP, WS-Discovery,
#: mDNS, CoAP, memcached. One forged packet between two that answer bounces for ever (CVE-1999-0103,
#: CVE-2024-2169).
ANSWERING_PORTS = frozenset({1900, 3702, 5353, 5683, 11211})
#: Ports that only a system's own services have.
PRIVILEGED_PORTS = 1024
#: Bytes of IP and UDP header: what a datagram costs on the wire besides its payload.
IPV4_OVERHEAD, IPV6_OVERHEAD = 28, 48
#: The largest datagram there is (the UDP length field, RFC 768).
MAX_DATAGRAM = 65_535
#: Replies that leave as one segmented send: as many as every kernel takes (UDP_MAX_SEGMENTS; newer
#: ones take 128), and bytes of them: less than 64 KiB with the headers of Ethernet, IPv6 and UDP,
#: since more than that is cut before it reaches a device (`gso_max_size`, ip-link(8)).
MAX_SEGMENTS = 64
MAX_SEGMENTED = 65_535 - 14 - IPV6_OVERHEAD
#: The kernel refuses segments past the path MTU, and does not say beforehand what that is: to peers
#: on other machines, only replies that fit into an Ethernet frame (RFC 894) are sent as segments.
ETHERNET_MTU = 1500
#: Connections accepted for one readiness event: a crowd of newcomers must not starve the others.
ACCEPT_BUDGET = 64
#: Descriptors ready in one turn from which on an event of the native twin accepts more than one: to
#: find that nobody is left (the kernel makes a socket before it looks) costs more than a turn, and
#: the next one says so for nothing; but newcomers must not wait for a long one each. A turn of the
#: pure twin costs more, so it always looks.
ACCEPT_CROWD = 16
#: Connections that wait to be accepted; the kernel lowers it to net.core.somaxconn (4,096).
BACKLOG = 4_096

#: Connections at once, where none is asked for: as many as there can be descriptors, less these,
#: which are for listeners, logs and whatever else the process opens.
RESERVED_DESCRIPTORS = 64
#: What the kernel holds unsent of a TCP stream (TCP_NOTSENT_LOWAT, tcp(7)): without it, megabytes
#: for a client that does not read.
SEND_BUFFER_LIMIT = 262_144

#: Without a byte moved either way: by default for ever, since silence is no fault of a client's;
#: peers that vanished are found by TCP keepalive.
IDLE_TIMEOUT = 0.0
#: From a frame's first byte to its last: a minute is what HTTP servers give a request's header.
FRAME_TIMEOUT = 60.0
#: A message unfinished for so long is every newcomer's first trap, and named.
UNFINISHED_AFTER = 1.0
#: A client that has not read for so long is named.
UNREAD_AFTER = 5.0
#: After a fault: how long the rest of the peer's input is read and discarded, so that no reset
#: overtakes the replies sent before it.
LINGER_TIMEOUT = 2.0
#: After a stop: how long replies that the kernel has not taken yet are waited for.
DRAIN_TIMEOUT = 5.0
#: What a client waits for a connection or a reply: longer than any round trip on Earth that
#: is worth waiting for, with a few retransmissions (RFC 6298) in it.
REPLY_TIMEOUT = 5.0
#: How often the same trouble is told at most.
REPEAT_AFTER = 60.0

#: A fault's times, in seconds: longer than any client waits.
MAX_FAULT_TIME = 3600
#: Pieces that one reply is cut into; what is left goes with the last: a byte each of the longest
#: default message behind the longest prefix, and each costs the system call of its own.
MAX_PIECES = 131_072
#: Replies that `coalesce` holds back, each of them as long as a message can be.
MAX_COALESCED = 256
#: Bits of one reply that `corrupt` flips: a bit of each byte of the longest default message.
MAX_FLIPPED = 65_536
#: Bytes a second that `bandwidth` can be told: faster than any link.
MAX_RATE = 10**12
#: Peers that a UDP socket with a fault plan tells apart, each a connection with a number: as many
#: as a test has, and sources can be forged without end. The one not heard of for longest is
#: forgotten, and is a new one when it comes back.
FAULT_PEERS = 4_096
#: Datagrams, and bytes of them, that a socket with a fault plan holds back: a second of a busy
#: link. What is more is dropped and counted, since memory is not the plan's to use up.
FAULT_HELD, FAULT_HELD_BYTES = 65_536, 64 * 2**20
#: Replies that one stream with a fault plan has planned before it reads on, and that it decides
#: about before others have their turn: each costs a kilobyte besides its bytes, which can be none,
#: and some ten microseconds.
FAULT_REPLIES = 8_192
#: What a fault plan's draws are made from: what a signed 64-bit number holds.
MAX_SEED = 2**63 - 1


def seconds(name: str, value: object) -> float:
    """`value`, if it is a duration that a timer can have.

    Raises:
        ConfigError: naming the setting, its range and what came instead.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1e9:
        return value
    raise ConfigError(f"{name} must be seconds, from 0 to 1,000,000,000, not {value!r}")


def within(name: str, value: object, low: int, high: int) -> int:
    """`value`, if it is a whole number from `low` to `high`.

    Raises:
        ConfigError: naming the setting, its range and what came instead.
    """
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    raise ConfigError(f"{name} must be a whole number from {low:,} to {high:,}, not {value!r}")
