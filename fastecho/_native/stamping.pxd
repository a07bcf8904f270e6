"""C interface of the stamper and the echo; the contract is that of `fastecho._pure.stamping`."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t

from fastecho._native.framing cimport LONE_MOST, LONE_ROOM, Codec, Prefix

# One step of a rendering: a literal of the plan's text, or a token.
cdef struct Step:
    int kind
    int digits
    size_t start
    size_t length

cdef class Stamper:
    cdef readonly tuple parts
    cdef readonly size_t longest
    cdef readonly bint fine
    cdef readonly bint shows_peer
    cdef readonly bint shows_mono
    cdef public int64_t mono_offset
    cdef bint per_message
    cdef int64_t second
    cdef bint constant    # the prefix is, for a second: all of `text`
    cdef uint64_t stands_from    # that second, in nanoseconds; else a time that no clock shows
    cdef size_t text_length
    cdef char* text
    cdef Step* steps
    cdef int count
    cdef char* scratch

    cdef int replan(self, int64_t second) except -1
    cdef int prefix(
        self, Prefix* prefix, int64_t now_ns, const char* peer, size_t peer_length
    ) except -1
    cdef int one(
        self, Prefix* prefix, int64_t now_ns, uint64_t seq, size_t length,
        const char* peer, size_t peer_length,
    ) except -1
    cdef size_t write(
        self, char* out, int64_t now_ns, uint64_t seq, size_t length,
        const char* peer, size_t peer_length,
    ) noexcept

cdef class Echo:
    cdef readonly Codec codec
    cdef readonly Stamper stamper
    cdef readonly bytes peer

    cpdef Echo fresh(self, bytes peer=*)

cdef enum:
    NS = 1_000_000_000    # nanoseconds of a second

# Whether the text of the present plan is the prefix of what is received now.
cdef inline bint stands(Stamper stamper, int64_t now_ns) noexcept:
    return <uint64_t> now_ns - stamper.stands_from < NS

# Whether it is worth to ask `Codec.lone`, with that text as the prefix.
cdef inline bint may_be_lone(Stamper stamper, size_t size, size_t room, int64_t now_ns) noexcept:
    return size <= LONE_MOST and room >= LONE_ROOM and stands(stamper, now_ns)

# What an echo does; a stream has its parts, but no object to hold them together.
cdef inline int stamp(
    Codec codec, Stamper stamper, bytes peer, const char* data, size_t size, char* out,
    size_t room, int64_t now_ns, size_t* consumed, size_t* written,
) except -1:
    """The hot path: cut `data`, stamp the messages into `out`, as many as fit."""
    cdef Prefix prefix
    if stands(stamper, now_ns):
        prefix.render = NULL
        prefix.text = stamper.text
        prefix.length = stamper.text_length
    else:
        stamper.prefix(&prefix, now_ns, PyBytes_AS_STRING(peer), <size_t> PyBytes_GET_SIZE(peer))
    if codec.held_length == 0 and codec.error is None and not codec.finished:
        return codec.run_whole(data, size, None, out, room, &prefix, consumed, written)
    return codec.run(data, size, None, out, room, &prefix, consumed, written)

cdef int stamp_tail(
    Codec codec, Stamper stamper, bytes peer, char* out, size_t room, int64_t now_ns,
    size_t* written,
) except -1

cdef int64_t checked_time(now_ns) except -1
