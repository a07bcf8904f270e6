"""Stamps, compiled: what `fastecho._pure.stamping` specifies.

What is constant for a second is planned in Python once a second (`fastecho.timestamps.plan`);
digits of a receive or a message are written here.
"""

from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from fastecho._native.framing cimport MASK_STEP, Codec, Prefix

from operator import index

from fastecho.errors import ConfigError
from fastecho.limits import MAX_PEER, MAX_PREFIX, MAX_TIME_NS
from fastecho.timestamps import FRACTIONS, TOKENS, plan

cdef enum:
    PADDING = MASK_STEP    # behind a prefix, which is copied in steps

cdef uint64_t NEVER = 2**63    # after every time that there is

cdef enum:
    # Kinds of steps.
    LITERAL, FRACTION, EPOCH_MS, EPOCH_US, EPOCH_NS, MONO_NS, SEQ, LENGTH, PEER

cdef dict KINDS = {
    "epoch_ms": EPOCH_MS,
    "epoch_us": EPOCH_US,
    "epoch_ns": EPOCH_NS,
    "mono_ns": MONO_NS,
    "seq": SEQ,
    "len": LENGTH,
    "peer": PEER,
}
cdef frozenset FINE = frozenset({"iso", "utc", "epoch_ms", "epoch_us", "epoch_ns", "mono_ns"})
cdef frozenset PER_MESSAGE = frozenset({"seq", "len"})


cdef class Stamper:
    """Renders a template."""

    def __cinit__(self, parts):
        self.second = -1
        self.stands_from = NEVER
        self.parts = tuple(parts)
        names = {part for part in self.parts if isinstance(part, str)}
        if unknown := names - TOKENS.keys():
            raise ConfigError(f"unknown token {min(unknown)!r}: choose from {', '.join(TOKENS)}")
        longest = sum(TOKENS[part] if isinstance(part, str) else len(part) for part in self.parts)
        if longest > MAX_PREFIX:
            raise ConfigError(
                f"the prefix can have {longest:,} bytes: at most {MAX_PREFIX:,} are possible"
            )
        self.longest = longest
        self.fine = not names.isdisjoint(FINE)
        self.shows_peer = "peer" in names
        self.shows_mono = "mono_ns" in names
        self.per_message = not names.isdisjoint(PER_MESSAGE)
        self.scratch = <char*> PyMem_Calloc(self.longest + PADDING, 1)
        if self.scratch == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.scratch)
        PyMem_Free(self.text)
        PyMem_Free(self.steps)

    def render(self, now_ns, seq=0, length=0, bytes peer=b""):
        """The prefix of one message."""
        cdef Prefix prefix
        if len(peer) > MAX_PEER:
            raise ConfigError(f"a peer has at most {MAX_PEER} bytes, not {len(peer)}")
        self.one(
            &prefix, checked_time(now_ns), seq, length,
            PyBytes_AS_STRING(peer), <size_t> PyBytes_GET_SIZE(peer),
        )
        return PyBytes_FromStringAndSize(prefix.text, <Py_ssize_t> prefix.length)

    cdef int replan(self, int64_t second) except -1:
        """Make the steps of this second; the old ones stand until the new ones do."""
        cdef list planned = plan(self.parts, second)
        cdef bytes literals = b"".join([part for part in planned if isinstance(part, bytes)])
        cdef size_t size = <size_t> PyBytes_GET_SIZE(literals), at = 0
        cdef char* text = <char*> PyMem_Calloc(size + PADDING, 1)
        cdef Step* steps = <Step*> PyMem_Malloc(max(len(planned), 1) * sizeof(Step))
        cdef Step* step = steps
        if text == NULL or steps == NULL:
            PyMem_Free(text)
            PyMem_Free(steps)
            raise MemoryError
        memcpy(text, PyBytes_AS_STRING(literals), size)
        for part in planned:
            step.digits = 0
            step.start = at
            step.length = 0
            if isinstance(part, bytes):
                step.kind = LITERAL
                step.length = <size_t> PyBytes_GET_SIZE(part)
                at += step.length
            elif part in FRACTIONS:
                step.kind = FRACTION
                step.digits = FRACTIONS[part]
            else:
                step.kind = KINDS[part]
            step += 1
        PyMem_Free(self.steps)
        PyMem_Free(self.text)
        self.steps = steps
        self.text = text
        self.count = <int> len(planned)
        self.second = second
        self.text_length = size
        self.constant = not self.per_message and all(isinstance(part, bytes) for part in planned)
        self.stands_from = <uint64_t> second * NS if self.constant else NEVER
        return 0

    cdef int prefix(
        self, Prefix* prefix, int64_t now_ns, const char* peer, size_t peer_length
    ) except -1:
        """What goes before the messages of one receive, for `Codec.run`."""
        if not self.per_message:
            return self.one(prefix, now_ns, 0, 0, peer, peer_length)
        if now_ns // NS != self.second:
            self.replan(now_ns // NS)
        prefix.render = render
        prefix.stamper = <void*> self
        prefix.now_ns = now_ns
        prefix.peer = peer
        prefix.peer_length = peer_length
        prefix.text = self.scratch
        prefix.length = 0
        return 0

    cdef int one(
        self, Prefix* prefix, int64_t now_ns, uint64_t seq, size_t length,
        const char* peer, size_t peer_length,
    ) except -1:
        """The prefix of one message, or of all of a receive where they are the same."""
        if now_ns // NS != self.second:
            self.replan(now_ns // NS)
        prefix.render = NULL
        if self.constant:
            prefix.text = self.text
            prefix.length = self.text_length
        else:
            prefix.text = self.scratch
            prefix.length = self.write(self.scratch, now_ns, seq, length, peer, peer_length)
        return 0

    cdef size_t write(
        self, char* out, int64_t now_ns, uint64_t seq, size_t length,
        const char* peer, size_t peer_length,
    ) noexcept:
        """Take the steps of the present plan; at most `longest` bytes."""
        cdef char* put = out
        cdef const Step* step = self.steps
        cdef int _
        for _ in range(self.count):
            if step.kind == LITERAL:
                memcpy(put, self.text + step.start, step.length)
                put += step.length
            elif step.kind == FRACTION:
                put += fraction(put, now_ns % NS, step.digits)
            elif step.kind == EPOCH_MS:
                put += number(put, <uint64_t> now_ns // 1_000_000)
            elif step.kind == EPOCH_US:
                put += number(put, <uint64_t> now_ns // 1_000)
            elif step.kind == EPOCH_NS:
                put += number(put, <uint64_t> now_ns)
            elif step.kind == MONO_NS:
                put += number(put, monotonic(now_ns, self.mono_offset))
            elif step.kind == SEQ:
                put += number(put, seq)
            elif step.kind == LENGTH:
                put += number(put, length)
            else:
                memcpy(put, peer, peer_length)
                put += peer_length
            step += 1
        return <size_t> (put - out)


cdef void render(Prefix* prefix, uint64_t seq, size_t length) noexcept:
    """Make the prefix of one message, in the second that was planned."""
    cdef Stamper stamper = <Stamper> prefix.stamper
    prefix.length = stamper.write(
        stamper.scratch, prefix.now_ns, seq, length, prefix.peer, prefix.peer_length
    )


cdef inline size_t number(char* out, uint64_t value) noexcept:
    """Write `value` in decimal; how many digits it has."""
    cdef char digits[20]
    cdef size_t at = 20
    while True:
        at -= 1
        digits[at] = <char> (c"0" + value % 10)
        value //= 10
        if value == 0:
            break
    memcpy(out, digits + at, 20 - at)
    return 20 - at


cdef inline size_t fraction(char* out, int64_t nanoseconds, int digits) noexcept:
    """Write the first digits of the fraction of a second."""
    cdef char text[9]
    cdef int at
    for at in range(8, -1, -1):
        text[at] = <char> (c"0" + nanoseconds % 10)
        nanoseconds //= 10
    memcpy(out, text, <size_t> digits)
    return <size_t> digits


cdef inline uint64_t monotonic(int64_t now_ns, int64_t offset) noexcept:
    """Their sum, from 0 to 2**63 - 1."""
    cdef uint64_t total
    if offset < 0:
        return <uint64_t> (now_ns + offset) if now_ns + offset > 0 else 0
    total = <uint64_t> now_ns + <uint64_t> offset
    return min(total, <uint64_t> 0x7fff_ffff_ffff_ffff)


cdef int64_t checked_time(now_ns) except -1:
    """A time that a clock can show."""
    cdef int overflow = 0
    cdef int64_t time = -1
    if PyLong_CheckExact(now_ns):    # as good as always: no Python then
        time = PyLong_AsLongLongAndOverflow(now_ns, &overflow)
    if time >= 0:
        return time
    now_ns = index(now_ns)
    if not 0 <= now_ns <= MAX_TIME_NS:
        raise ValueError(f"now_ns must be from 0 to {MAX_TIME_NS}, not {now_ns}")
    return now_ns


cdef int stamp_tail(
    Codec codec, Stamper stamper, bytes peer, char* out, size_t room, int64_t now_ns,
    size_t* written,
) except -1:
    """The stream has ended: write the tail's reply; at most prefix, limit and delimiter."""
    cdef Prefix prefix
    written[0] = 0
    if not codec.end():
        return 0
    stamper.one(
        &prefix, now_ns, codec.messages, codec.held_length,
        PyBytes_AS_STRING(peer), <size_t> PyBytes_GET_SIZE(peer),
    )
    if prefix.length + codec.held_length > room:
        raise BufferError("the buffer cannot hold the reply to the tail")
    memcpy(out, prefix.text, prefix.length)
    memcpy(out + prefix.length, codec.held, codec.held_length)
    written[0] = prefix.length + codec.held_length
    codec.release()
    return 0


cdef class Echo:
    """Codec and stamper: bytes in, reply bytes out."""

    def __cinit__(self, Codec codec not None, Stamper stamper not None, bytes peer not None=b""):
        capacity = codec.capacity
        longest = codec.limit + stamper.longest
        if capacity is not None and longest > capacity:
            raise ConfigError(
                f"a reply can have {longest:,} bytes: the length field announces at most"
                f" {capacity:,}"
            )
        if len(peer) > MAX_PEER:
            raise ConfigError(f"a peer has at most {MAX_PEER} bytes, not {len(peer)}")
        self.codec = codec
        self.stamper = stamper
        self.peer = peer

    cpdef Echo fresh(self, bytes peer=b""):
        """An echo of the same configuration at the start of another peer's stream."""
        return Echo(self.codec.fresh(), self.stamper, peer)

    @property
    def messages(self):
        """Messages so far."""
        return self.codec.messages

    @property
    def offset(self):
        """Stream bytes cut so far."""
        return self.codec.offset

    @property
    def pending(self):
        """Bytes held of the unfinished frame."""
        return self.codec.held_length

    @property
    def error(self):
        """The fault that ended the stream; further input is ignored."""
        return self.codec.error

    def feed_into(self, data, out, now_ns):
        """Write the replies to `out`, as many as fit: (bytes consumed, bytes written)."""
        cdef Py_buffer source, target
        cdef Stamper stamper = self.stamper
        cdef int64_t now
        cdef size_t size, room, consumed = 0, written = 0
        PyObject_GetBuffer(out, &target, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
            try:
                now = checked_time(now_ns)
                size = <size_t> source.len
                room = <size_t> target.len
                if may_be_lone(stamper, size, room, now):
                    written = self.codec.lone(
                        <const char*> source.buf, size, <char*> target.buf, stamper.text,
                        stamper.text_length,
                    )
                    consumed = size
                if not written:
                    stamp(
                        self.codec, stamper, self.peer, <const char*> source.buf, size,
                        <char*> target.buf, room, now, &consumed, &written,
                    )
            finally:
                PyBuffer_Release(&source)
        finally:
            PyBuffer_Release(&target)
        return consumed, written

    def feed(self, data, now_ns):
        """The replies to all messages that `data` completes."""
        cdef Py_buffer source
        cdef int64_t now
        cdef size_t at = 0, put = 0, room, consumed = 0, written = 0
        cdef char* out = NULL
        cdef char* grown
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
        try:
            now = checked_time(now_ns)
            # Enough for one message; many small ones make it grow.
            room = self.codec.held_length + <size_t> source.len + self.stamper.longest + 64
            while True:
                grown = <char*> PyMem_Realloc(out, room)
                if grown == NULL:
                    raise MemoryError
                out = grown
                stamp(
                    self.codec, self.stamper, self.peer,
                    <const char*> source.buf + at, <size_t> source.len - at, out + put, room - put,
                    now, &consumed, &written,
                )
                at += consumed
                put += written
                if at == <size_t> source.len:
                    return PyBytes_FromStringAndSize(out, <Py_ssize_t> put)
                room *= 2
        finally:
            PyMem_Free(out)
            PyBuffer_Release(&source)

    def finish(self, now_ns):
        """The stream has ended: the reply to its tail, if that is a message."""
        cdef int64_t now = checked_time(now_ns)
        cdef size_t room = self.codec.held_length + self.stamper.longest, written = 0
        cdef char* out = <char*> PyMem_Malloc(room + 1)
        if out == NULL:
            raise MemoryError
        try:
            stamp_tail(self.codec, self.stamper, self.peer, out, room, now, &written)
            return PyBytes_FromStringAndSize(out, <Py_ssize_t> written)
        finally:
            PyMem_Free(out)
