"""Codecs, compiled: what `fastecho._pure.framing` specifies.

Each codec says in `cut` what a frame is and in `reply` what the reply to it is; `Codec.run` drives
both over bytes that are whole in the caller's buffer, and copies only the frame that is not: it is
held in a buffer of its own until the bytes that complete it are there.
"""

# A codec is part of no cycle: untracked, it is 16 bytes smaller, and there is one a connection.
from cython cimport no_gc
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memchr, memcpy, memset

from fastecho.errors import ConfigError, FrameCorrupt, FrameTooLong, FrameTruncated
from fastecho.limits import (
    MAX_DELIMITER,
    MAX_FRAME_CEILING,
    MAX_LENGTH_ADJUST,
    MAX_LENGTH_OFFSET,
    within,
)

cdef extern from "lines.h":
    enum:
        LINES_DELIMITER
    struct lines_job:
        const char* prefix
        size_t prefix_size
        const char* delimiter
        size_t width
        size_t limit
    bint lines_lone(
        const char* data, size_t size, char* out, const lines_job* job
    ) noexcept
    uint64_t lines_stamp(
        const char* data, size_t size, size_t* consumed, bint* scanned,
        char* out, size_t room, size_t* written, const lines_job* job,
    ) noexcept

cdef extern from "lengths.h":
    enum:
        LENGTHS_PREFIX
    struct lengths_job:
        const char* prefix
        size_t prefix_size
        size_t limit
        size_t before
        uint64_t least
        uint64_t most
        uint64_t adjust
        int shift
        bint little
    uint64_t lengths_stamp_fixed(
        const char* data, size_t size, size_t* consumed, char* out, size_t room, size_t* written,
        const lengths_job* job,
    ) noexcept
    uint64_t lengths_stamp_field(
        const char* data, size_t size, size_t* consumed, char* out, size_t room, size_t* written,
        const lengths_job* job,
    ) noexcept
    uint64_t lengths_stamp_varint(
        const char* data, size_t size, size_t* consumed, char* out, size_t room, size_t* written,
        const lengths_job* job,
    ) noexcept
    uint64_t lengths_stamp_netstring(
        const char* data, size_t size, size_t* consumed, char* out, size_t room, size_t* written,
        const lengths_job* job,
    ) noexcept

cdef int64_t CEILING = MAX_FRAME_CEILING
cdef int64_t FURTHEST = MAX_LENGTH_OFFSET
cdef int64_t LARGEST_ADJUST = MAX_LENGTH_ADJUST

cdef enum:
    MAX_VARINT = 10    # bytes of the longest varint: 64 bits, seven to a byte
    SMALLEST_HELD = 64    # first size of a buffer for a held frame: a cache line


@no_gc
cdef class Codec:
    """What all framings share: the held part of an unfinished frame, counts, the fault."""

    def __dealloc__(self):
        PyMem_Free(self.held)

    @property
    def max_frame(self):
        """The longest message, in its own bytes."""
        return self.limit

    @property
    def pending(self):
        """Bytes held of the unfinished frame."""
        return self.held_length

    @property
    def capacity(self):
        """The longest message, prefix included, that a reply can announce; None: any."""
        return None

    cpdef Codec fresh(self):
        """A codec of the same configuration at the start of a stream."""
        raise NotImplementedError

    def feed(self, data):
        """The messages that `data` completes."""
        cdef Py_buffer view
        cdef size_t consumed = 0, written = 0
        cdef list messages = []
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.run(
                <const char*> view.buf, <size_t> view.len, messages, NULL, 0, NULL,
                &consumed, &written,
            )
        finally:
            PyBuffer_Release(&view)
        return messages

    def finish(self):
        """The stream has ended: its tail, if that is a message."""
        if not self.end():
            return []
        tail = PyBytes_FromStringAndSize(self.held, <Py_ssize_t> self.held_length)
        self.release()
        return [tail]

    # -- what a framing defines

    cdef int cut(self, const char* data, size_t size, Frame* frame) noexcept:
        """Look for a frame at the start of `data`: PARTIAL, WHOLE, TOO_LONG or CORRUPT."""
        return PARTIAL

    cdef size_t reply(
        self, char* out, size_t room, const char* frame_start, const Frame* frame,
        const char* text, size_t text_length,
    ) noexcept:
        """Write the reply to one frame: here, prefix and frame. Its size; 0: it does not fit."""
        cdef size_t size = text_length + frame.total
        if size > room:
            return 0
        memcpy(out, text, text_length)
        memcpy(out + text_length, frame_start, frame.total)
        return size

    cdef uint64_t many(
        self, const char* data, size_t size, size_t* consumed, char* out, size_t room,
        size_t* written, const Prefix* prefix,
    ) noexcept:
        """Answer as many frames as can be quickly, with one prefix for all; their number."""
        return 0

    cdef size_t lone(
        self, const char* data, size_t size, char* out, const char* text, size_t text_length
    ) noexcept:
        """Answer what is one short frame and no more, if it can be quickly; the reply's size, or 0.

        Of the prefix `text`, 32 bytes can be read; `out` has room for LONE_ROOM bytes.
        """
        return 0

    cdef str explain(self):
        """What is corrupt, in the pure twin's words."""
        return self.detail.decode()

    cdef int extend(self, const char* data, size_t size, size_t* taken, Frame* frame) except -1:
        """Add to the held frame what it lacks, no byte after its end; as `cut` for the whole."""
        cdef size_t at = 0, part
        cdef int status = self.cut(self.held, self.held_length, frame)
        while status == PARTIAL and at < size:
            part = min(frame.total - self.held_length, size - at)
            self.hold(data + at, part)
            at += part
            status = self.cut(self.held, self.held_length, frame)
        taken[0] = at
        return status

    # -- what they share

    cdef int run(
        self, const char* data, size_t size, list messages, char* out, size_t room, Prefix* prefix,
        size_t* consumed, size_t* written,
    ) except -1:
        """Cut `data`: to `messages`, or if that is None, stamped with `prefix` into `out`."""
        cdef size_t before = self.held_length, at = 0, used = 0
        cdef uint8_t matched = self.matched
        cdef Frame frame
        cdef int status
        if self.finished:
            raise ValueError("feed() after finish()")
        consumed[0] = size
        written[0] = 0
        if size == 0 or self.error is not None:
            return 0
        if before == 0:
            return self.run_whole(data, size, messages, out, room, prefix, consumed, written)
        status = self.extend(data, size, &at, &frame)
        if status == PARTIAL:
            return 0
        if status != WHOLE:
            return self.fail(status)
        if messages is not None:
            messages.append(
                PyBytes_FromStringAndSize(self.held + frame.header, <Py_ssize_t> frame.length)
            )
        else:
            if prefix.render != NULL:
                prefix.render(prefix, self.messages + 1, frame.length)
            used = self.reply(out, room, self.held, &frame, prefix.text, prefix.length)
            if used == 0:
                self.held_length = before
                self.matched = matched
                consumed[0] = 0
                return 0
        self.messages += 1
        self.offset += frame.total
        self.release()
        if at < size:
            self.run_whole(
                data + at, size - at, messages, out + used, room - used, prefix, consumed, written
            )
            consumed[0] += at
        written[0] += used
        return 0

    cdef int run_whole(
        self, const char* data, size_t size, list messages, char* out, size_t room, Prefix* prefix,
        size_t* consumed, size_t* written,
    ) except -1:
        """As `run`, where no part of a frame is held."""
        cdef size_t at = 0, put = 0, used
        cdef uint64_t count = 0
        cdef Frame frame
        cdef int status
        if messages is None and prefix.render == NULL and prefix.length <= LENGTHS_PREFIX:
            count = self.many(data, size, &at, out, room, &put, prefix)
        while True:
            status = self.cut(data + at, size - at, &frame)
            if status != WHOLE:
                break
            if messages is not None:
                messages.append(
                    PyBytes_FromStringAndSize(data + at + frame.header, <Py_ssize_t> frame.length)
                )
            else:
                if prefix.render != NULL:
                    prefix.render(prefix, self.messages + count + 1, frame.length)
                used = self.reply(
                    out + put, room - put, data + at, &frame, prefix.text, prefix.length
                )
                if used == 0:
                    break
                put += used
            count += 1
            at += frame.total
        self.messages += count
        self.offset += at
        written[0] = put
        consumed[0] = at
        if status == WHOLE:    # which did not fit
            return 0
        consumed[0] = size
        if status != PARTIAL:
            return self.fail(status)
        return self.hold(data + at, size - at)

    cdef int end(self) except -1:
        """The stream has ended; whether what is held is a message, to be taken and released."""
        if self.finished:
            raise ValueError("finish() after finish()")
        self.finished = True
        if self.held_length == 0:
            return 0
        self.error = FrameTruncated(
            self.offset, f"the stream ended {self.held_length} bytes into it"
        )
        self.release()
        return 0

    cdef int fail(self, int status) except -1:
        """The frame at `offset` is at fault: hold nothing, ignore the rest."""
        if status == TOO_LONG:
            self.error = FrameTooLong(self.offset, f"longer than max_frame ({self.limit} bytes)")
        else:
            self.error = FrameCorrupt(self.offset, self.explain())
        self.release()
        return 0

    cdef int hold(self, const char* data, size_t size) except -1:
        """Keep `data` after what is held; the buffer grows with the bytes that came."""
        cdef size_t needed = self.held_length + size, capacity = self.held_capacity
        cdef char* grown
        if size == 0:    # a stream at rest owns no buffer
            return 0
        if needed > capacity:
            capacity = max(needed, 2 * capacity, <size_t> SMALLEST_HELD)
            grown = <char*> PyMem_Realloc(self.held, capacity)
            if grown == NULL:
                raise MemoryError
            self.held = grown
            self.held_capacity = capacity
        memcpy(self.held + self.held_length, data, size)
        self.held_length = needed
        return 0

    cdef void release(self) noexcept:
        """Hold nothing any more."""
        PyMem_Free(self.held)
        self.held = NULL
        self.held_length = self.held_capacity = 0
        self.matched = 0

    cdef check_length(self, Py_ssize_t size):
        if <size_t> size > self.limit:
            raise ValueError(f"{size} bytes are longer than max_frame ({self.limit})")


@no_gc
cdef class EndedCodec(Codec):
    """Messages that have their end behind them: the end of the stream completes one too."""

    cdef int end(self) except -1:
        if self.finished or self.held_length == 0:
            return Codec.end(self)
        self.finished = True
        if self.held_length > self.limit:
            return self.fail(TOO_LONG)
        self.messages += 1
        self.offset += self.held_length
        return 1


@no_gc
cdef class Pattern:
    """A delimiter, with what a search for it may fall back on; shared by a listener's streams."""

    def __cinit__(self, bytes delimiter):
        # Knuth, Morris, Pratt (1977): after `i` matching bytes and one that does not match,
        # `fallback[i]` of them are still the start of a match.
        cdef size_t i, matched = 0
        self.delimiter = delimiter
        self.text = PyBytes_AS_STRING(delimiter)
        self.width = <size_t> len(delimiter)
        self.fallback[0] = 0
        for i in range(1, self.width):
            self.fallback[i] = <uint8_t> matched
            while matched and self.text[i] != self.text[matched]:
                matched = self.fallback[matched]
            if self.text[i] == self.text[matched]:
                matched += 1


@no_gc
cdef class DelimiterCodec(EndedCodec):
    """A message is what stands before `delimiter`, leftmost match; `line` is the delimiter LF."""

    def __cinit__(self, delimiter, max_frame):
        self.limit = valid_limit(max_frame)
        if isinstance(delimiter, Pattern):
            self.pattern = delimiter
            return
        if not 1 <= len(delimiter) <= MAX_DELIMITER:
            raise ConfigError(f"a delimiter has 1 to {MAX_DELIMITER} bytes, not {len(delimiter)}")
        self.pattern = Pattern(bytes(delimiter))

    @property
    def delimiter(self):
        """What ends a message."""
        return self.pattern.delimiter

    cpdef Codec fresh(self):
        return DelimiterCodec(self.pattern, self.limit)

    def encode(self, payload):
        """One message as it goes on the wire."""
        cdef bytes message = contiguous(payload)
        self.check_length(len(message))
        cdef bytes wire = message + self.pattern.delimiter
        if wire.find(self.pattern.delimiter) != len(message):
            raise ValueError(f"the payload holds, or completes, the delimiter {self.delimiter!r}")
        return wire

    cdef size_t scan(self, const char* data, size_t size) noexcept:
        """Where the first delimiter ends, `matched` bytes of which stood before; 0: nowhere."""
        cdef const char* text = self.pattern.text
        cdef size_t width = self.pattern.width, matched = self.matched, i = 0
        cdef const char* found
        while i < size:
            if matched == 0:
                found = <const char*> memchr(data + i, text[0], size - i)
                if found == NULL:
                    break
                i = <size_t> (found - data) + 1
                matched = 1
            elif data[i] == text[matched]:
                i += 1
                matched += 1
            else:
                matched = self.pattern.fallback[matched]
                continue
            if matched == width:
                self.matched = 0
                return i
        self.matched = <uint8_t> matched
        return 0

    cdef int cut(self, const char* data, size_t size, Frame* frame) noexcept:
        cdef size_t end
        self.matched = 0
        end = self.scan(data, size)
        if end == 0:
            return TOO_LONG if size - self.matched > self.limit else PARTIAL
        frame.header = 0
        frame.total = end
        frame.length = end - self.pattern.width
        return TOO_LONG if frame.length > self.limit else WHOLE

    cdef size_t lone(
        self, const char* data, size_t size, char* out, const char* text, size_t text_length
    ) noexcept:
        cdef lines_job job
        if self.held_length or self.finished or self.error is not None:
            return 0
        job.prefix = text
        job.prefix_size = text_length
        job.delimiter = self.pattern.text
        job.width = self.pattern.width
        job.limit = self.limit
        if not lines_lone(data, size, out, &job):
            return 0
        self.messages += 1
        self.offset += size
        return text_length + size

    cdef int run_whole(
        self, const char* data, size_t size, list messages, char* out, size_t room, Prefix* prefix,
        size_t* consumed, size_t* written,
    ) except -1:
        """As for any codec, after what `lines_stamp` can do."""
        cdef size_t at = 0, put = 0
        cdef bint scanned = False
        cdef lines_job job
        if messages is None and prefix.render == NULL and self.pattern.width <= LINES_DELIMITER:
            job.prefix = prefix.text
            job.prefix_size = prefix.length
            job.delimiter = self.pattern.text
            job.width = self.pattern.width
            job.limit = self.limit
            self.messages += lines_stamp(data, size, &at, &scanned, out, room, &put, &job)
            self.offset += at
            if scanned and self.pattern.width == 1:    # nothing in the rest to look for
                consumed[0] = size
                written[0] = put
                if size - at > self.limit:
                    return self.fail(TOO_LONG)
                return self.hold(data + at, size - at)
        Codec.run_whole(
            self, data + at, size - at, messages, out + put, room - put, prefix, consumed, written
        )
        consumed[0] += at
        written[0] += put
        return 0

    cdef int extend(self, const char* data, size_t size, size_t* taken, Frame* frame) except -1:
        cdef size_t end = self.scan(data, size)
        cdef uint8_t matched = self.matched
        taken[0] = end if end else size
        if not end:
            if self.held_length + size - matched > self.limit:
                return TOO_LONG
            self.hold(data, size)
            return PARTIAL
        if self.held_length + end - self.pattern.width > self.limit:
            return TOO_LONG
        self.hold(data, end)
        frame.header = 0
        frame.total = self.held_length
        frame.length = frame.total - self.pattern.width
        return WHOLE


@no_gc
cdef class Automaton:
    """What finds any of some delimiters, a byte at a time; shared by a listener's streams.

    Aho and Corasick (1975). A state is the longest start of a delimiter that was just read; 0 is
    none. `after` is the state behind another byte, `depth` the bytes of a state, `width` those of
    the longest delimiter that ends with it.
    """

    def __cinit__(self, delimiters):
        cdef uint8_t fallback[256]    # of a state: that of its longest end that is a state, too
        cdef size_t state
        cdef uint8_t octet, child
        self.delimiters = any_of(delimiters)
        known = {each[:size] for each in self.delimiters for size in range(len(each) + 1)}
        starts = sorted(known, key=len)
        numbers = {start: number for number, start in enumerate(starts)}
        children = [[] for _ in starts]
        for start in starts[1:]:
            before = len(start) - 1
            children[numbers[start[:before]]].append((start[before], numbers[start]))
        self.after = <States*> PyMem_Malloc(sizeof(States) * <size_t> len(starts))
        if self.after == NULL:
            raise MemoryError
        memset(self.after[0], 0, sizeof(States))
        fallback[0] = 0
        for state, start in enumerate(starts):    # the shortest first: fallbacks are done before
            self.depth[state] = <uint8_t> len(start)
            ends = [len(each) for each in self.delimiters if start.endswith(each)]
            self.width[state] = max(ends, default=0)
            if state:
                memcpy(self.after[state], self.after[fallback[state]], sizeof(States))
            for octet, child in children[state]:
                fallback[child] = self.after[state][octet]
                self.after[state][octet] = child

    def __dealloc__(self):
        PyMem_Free(self.after)


@no_gc
cdef class AnyDelimiterCodec(EndedCodec):
    """A message is what stands before any one of these, and its reply ends with that one."""

    def __cinit__(self, delimiters, max_frame):
        self.limit = valid_limit(max_frame)
        if isinstance(delimiters, Automaton):
            self.automaton = delimiters
        else:
            self.automaton = Automaton(delimiters)

    @property
    def delimiters(self):
        """What ends a message, any one of them."""
        return self.automaton.delimiters

    cpdef Codec fresh(self):
        return AnyDelimiterCodec(self.automaton, self.limit)

    def encode(self, payload):
        """One message as it goes on the wire."""
        cdef bytes message = contiguous(payload)
        self.check_length(len(message))
        cdef bytes first = self.automaton.delimiters[0]
        cdef bytes wire = message + first
        cdef uint8_t state = 0
        cdef size_t end = self.scan(PyBytes_AS_STRING(wire), <size_t> len(wire), &state)
        if end != <size_t> len(wire) or self.automaton.width[state] != len(first):
            listed = " ".join(map(repr, self.delimiters))
            raise ValueError(f"the payload holds, or completes, one of {listed}")
        return wire

    cdef size_t scan(self, const char* data, size_t size, uint8_t* state) noexcept:
        """Where the first delimiter ends, from that state on; 0: nowhere. The state there."""
        cdef const uint8_t* octets = <const uint8_t*> data
        cdef const States* after = self.automaton.after
        cdef const uint8_t* width = self.automaton.width
        cdef uint8_t now = state[0]
        cdef size_t i = 0
        while i < size:
            if now == 0:    # most bytes begin nothing: no look waits for the one before
                while i < size and after[0][octets[i]] == 0:
                    i += 1
                if i == size:
                    break
            now = after[now][octets[i]]
            i += 1
            if width[now]:
                state[0] = now
                return i
        state[0] = now
        return 0

    cdef int cut(self, const char* data, size_t size, Frame* frame) noexcept:
        cdef size_t end
        self.matched = 0
        end = self.scan(data, size, &self.matched)
        if end == 0:
            return TOO_LONG if size - self.automaton.depth[self.matched] > self.limit else PARTIAL
        frame.header = 0
        frame.total = end
        frame.length = end - self.automaton.width[self.matched]
        self.matched = 0
        return TOO_LONG if frame.length > self.limit else WHOLE

    cdef int extend(self, const char* data, size_t size, size_t* taken, Frame* frame) except -1:
        cdef size_t end = self.scan(data, size, &self.matched)
        cdef uint8_t state = self.matched
        cdef size_t read = end if end else size
        taken[0] = read
        frame.header = 0
        frame.total = self.held_length + read
        frame.length = frame.total
        frame.length -= self.automaton.width[state] if end else self.automaton.depth[state]
        if frame.length > self.limit:
            return TOO_LONG
        self.hold(data, read)
        return WHOLE if end else PARTIAL


@no_gc
cdef class RawCodec(Codec):
    """A message is whatever one `feed` brings: the tutorial's way, and its bug."""

    def __cinit__(self):
        self.limit = MAX_FRAME_CEILING

    cpdef Codec fresh(self):
        return RawCodec()

    def encode(self, payload):
        """One message as it goes on the wire."""
        cdef bytes wire = contiguous(payload)
        if not wire:
            raise ValueError("raw framing cannot carry an empty message")
        return wire

    cdef int cut(self, const char* data, size_t size, Frame* frame) noexcept:
        frame.header = 0
        frame.length = frame.total = size
        return WHOLE if size else PARTIAL


@no_gc
cdef class FixedCodec(Codec):
    """A message is `size` bytes."""

    def __cinit__(self, size):
        self.limit = checked("the size of a fixed frame", size, 1, CEILING)

    @property
    def size(self):
        """Bytes of every message."""
        return self.limit

    cpdef Codec fresh(self):
        return FixedCodec(self.limit)

    def encode(self, payload):
        """One message as it goes on the wire."""
        cdef bytes wire = contiguous(payload)
        if <size_t> len(wire) != self.limit:
            raise ValueError(f"fixed:{self.limit} cannot carry {len(wire)} bytes")
        return wire

    cdef int cut(self, const char* data, size_t size, Frame* frame) noexcept:
        frame.header = 0
        frame.length = frame.total = self.limit
        return WHOLE if size >= self.limit else PARTIAL

    cdef uint64_t many(
        self, const char* data, size_t size, size_t* consumed, char* out, size_t room,
        size_t* written, const Prefix* prefix,
    ) noexcept:
        cdef lengths_job job = lengths_of(self, prefix)
        return lengths_stamp_fixed(data, size, consumed, out, room, written, &job)


@no_gc
cdef class LengthCodec(Codec):
    """`offset` bytes, a length of `width` bytes, then length + `adjust` bytes of message."""

    def __cinit__(self, width, max_frame, offset=0, adjust=0, little=False):
        self.limit = valid_limit(max_frame)
        self.width = checked("the width of a length field", width, 1, 8)
        self.before = checked("the offset of a length field", offset, 0, FURTHEST)
        self.adjust = checked("adjust", adjust, -LARGEST_ADJUST, LARGEST_ADJUST)
        self.little = bool(little)
        if not max(adjust, 0) <= max_frame <= self.capacity:
            raise ConfigError(
                f"max_frame={max_frame:,} does not fit a length field of {width} bytes with"
                f" adjust={adjust}: {max(adjust, 0):,} to {self.capacity:,} bytes"
            )

    @property
    def capacity(self):
        return (1 << 8 * int(self.width)) - 1 + self.adjust

    cpdef Codec fresh(self):
        return LengthCodec(self.width, self.limit, self.before, self.adjust, self.little)

    def encode(self, payload):
        """One message as it goes on the wire."""
        cdef bytes message = contiguous(payload)
        self.check_length(len(message))
        announced = len(message) - self.adjust
        if announced < 0:
            raise ValueError(f"adjust={self.adjust} cannot announce {len(message)} bytes")
        field = announced.to_bytes(self.width, "little" if self.little else "big")
        return bytes(self.before) + field + message

    cdef int cut(self, const char* data, size_t size, Frame* frame) noexcept:
        cdef const uint8_t* field = <const uint8_t*> data + self.before
        cdef uint64_t announced = 0
        cdef int i
        frame.header = frame.total = self.before + self.width
        if size < frame.header:
            return PARTIAL
        for i in range(self.width):
            announced = announced << 8 | field[self.width - 1 - i if self.little else i]
        if self.adjust < 0 and announced < <uint64_t> -self.adjust:
            self.announced = announced
            return CORRUPT
        if announced > <uint64_t> (<int64_t> self.limit - self.adjust):
            return TOO_LONG
        frame.length = <size_t> (announced + <uint64_t> self.adjust)
        frame.total = frame.header + frame.length
        return WHOLE if size >= frame.total else PARTIAL

    cdef size_t reply(
        self, char* out, size_t room, const char* frame_start, const Frame* frame,
        const char* text, size_t text_length,
    ) noexcept:
        cdef size_t size = text_length + frame.total
        cdef uint64_t announced = frame.length + text_length - <uint64_t> self.adjust
        cdef uint8_t* field = <uint8_t*> out + self.before
        cdef int i
        if size > room:
            return 0
        memcpy(out, frame_start, self.before)
        for i in range(self.width):
            field[i if self.little else self.width - 1 - i] = announced & 0xff
            announced >>= 8
        memcpy(out + frame.header, text, text_length)
        memcpy(out + frame.header + text_length, frame_start + frame.header, frame.length)
        return size

    cdef uint64_t many(
        self, const char* data, size_t size, size_t* consumed, char* out, size_t room,
        size_t* written, const Prefix* prefix,
    ) noexcept:
        cdef lengths_job job = lengths_of(self, prefix)
        job.before = self.before
        job.adjust = <uint64_t> self.adjust
        job.least = <uint64_t> -self.adjust if self.adjust < 0 else 0
        job.most = <uint64_t> (<int64_t> self.limit - self.adjust)
        job.shift = 64 - 8 * self.width
        job.little = self.little
        return lengths_stamp_field(data, size, consumed, out, room, written, &job)

    cdef str explain(self):
        return f"length {self.announced} with adjust={self.adjust} is below 0"


@no_gc
cdef class VarintCodec(Codec):
    """A protobuf base-128 varint, least significant group first, then that many bytes."""

    def __cinit__(self, max_frame):
        self.limit = valid_limit(max_frame)

    cpdef Codec fresh(self):
        return VarintCodec(self.limit)

    def encode(self, payload):
        """One message as it goes on the wire."""
        cdef bytes message = contiguous(payload)
        cdef char header[MAX_VARINT]
        self.check_length(len(message))
        return header[:put_varint(header, <uint64_t> len(message))] + message

    cdef int cut(self, const char* data, size_t size, Frame* frame) noexcept:
        cdef uint64_t length = 0
        cdef uint8_t octet
        cdef size_t i
        for i in range(min(size, <size_t> MAX_VARINT)):
            octet = data[i]
            if i == MAX_VARINT - 1 and octet > 1:
                self.detail = (
                    b"varint past 64 bits" if octet < 0x80 else b"varint of more than 10 bytes"
                )
                return CORRUPT
            length |= <uint64_t> (octet & 0x7f) << 7 * i
            if octet < 0x80:
                if length > self.limit:
                    return TOO_LONG
                frame.header = i + 1
                frame.length = <size_t> length
                frame.total = frame.header + frame.length
                return WHOLE if size >= frame.total else PARTIAL
        frame.total = size + 1
        return PARTIAL

    cdef size_t reply(
        self, char* out, size_t room, const char* frame_start, const Frame* frame,
        const char* text, size_t text_length,
    ) noexcept:
        cdef char header[MAX_VARINT]
        cdef size_t width = put_varint(header, frame.length + text_length)
        return put_reply(out, room, header, width, frame_start, frame, text, text_length, 0)

    cdef uint64_t many(
        self, const char* data, size_t size, size_t* consumed, char* out, size_t room,
        size_t* written, const Prefix* prefix,
    ) noexcept:
        cdef lengths_job job = lengths_of(self, prefix)
        return lengths_stamp_varint(data, size, consumed, out, room, written, &job)


@no_gc
cdef class NetstringCodec(Codec):
    """`LEN:bytes,` with a decimal length without leading zeros (D. J. Bernstein, 1997)."""

    def __cinit__(self, max_frame):
        self.limit = valid_limit(max_frame)

    cpdef Codec fresh(self):
        return NetstringCodec(self.limit)

    def encode(self, payload):
        """One message as it goes on the wire."""
        cdef bytes message = contiguous(payload)
        self.check_length(len(message))
        return b"%d:%b," % (len(message), message)

    cdef int cut(self, const char* data, size_t size, Frame* frame) noexcept:
        cdef size_t length = 0, i
        for i in range(size):
            if data[i] == c":" and i > 0:
                break
            if not c"0" <= data[i] <= c"9":
                self.detail = (
                    b"netstring with a byte in its length that is no digit" if i
                    else b"netstring with no length"
                )
                return CORRUPT
            if i > 0 and length == 0:
                self.detail = b"netstring with a leading zero in its length"
                return CORRUPT
            length = 10 * length + <size_t> (data[i] - c"0")
            if length > self.limit:
                return TOO_LONG
        else:
            frame.total = size + 1
            return PARTIAL
        frame.header = i + 1
        frame.length = length
        frame.total = frame.header + length + 1
        if size < frame.total:
            return PARTIAL
        if data[frame.total - 1] != c",":
            self.detail = b"netstring without ',' at its end"
            return CORRUPT
        return WHOLE

    cdef size_t reply(
        self, char* out, size_t room, const char* frame_start, const Frame* frame,
        const char* text, size_t text_length,
    ) noexcept:
        cdef char header[24]
        cdef size_t width = 24
        cdef uint64_t length = frame.length + text_length
        width -= 1
        header[width] = c":"
        while True:
            width -= 1
            header[width] = <char> (c"0" + length % 10)
            length //= 10
            if length == 0:
                break
        return put_reply(
            out, room, header + width, 24 - width, frame_start, frame, text, text_length, 1
        )

    cdef uint64_t many(
        self, const char* data, size_t size, size_t* consumed, char* out, size_t room,
        size_t* written, const Prefix* prefix,
    ) noexcept:
        cdef lengths_job job = lengths_of(self, prefix)
        return lengths_stamp_netstring(data, size, consumed, out, room, written, &job)


cdef inline lengths_job lengths_of(Codec codec, const Prefix* prefix) noexcept:
    """What is the same for all framings that announce a length, or have one."""
    cdef lengths_job job
    job.prefix = prefix.text
    job.prefix_size = prefix.length
    job.limit = codec.limit
    job.before = 0
    return job


cdef object checked(str name, value, int64_t low, int64_t high):
    """`limits.within`, which is asked only about what is out of the ordinary."""
    cdef int overflow = 0
    cdef int64_t number
    if PyLong_CheckExact(value):
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if not overflow and low <= number <= high:
            return value
    return within(name, value, low, high)


cdef tuple any_of(delimiters):
    """These delimiters, if any one of them can end a message."""
    cdef tuple known = tuple(map(bytes, delimiters))
    if not all(known) or not 1 <= sum(map(len, known)) <= MAX_DELIMITER:
        raise ConfigError(
            f"delimiters have 1 to {MAX_DELIMITER} bytes together, and each at least 1: not"
            f" {' '.join(map(str, map(len, known))) or 'none'}"
        )
    if len(set(known)) < len(known):
        raise ConfigError("a delimiter stands twice")
    for one in known:
        for other in known:
            if other in one[: len(one) - 1]:
                raise ConfigError(
                    f"delimiter {one!r} would never be met: {other!r} in it ends first"
                )
    return known


cdef object valid_limit(max_frame):
    return checked("max_frame", max_frame, 1, CEILING)


cdef inline size_t put_varint(char* out, uint64_t value) noexcept:
    """Write `value` as a varint, in its shortest form; how many bytes it has."""
    cdef size_t width = 0
    while value > 0x7f:
        out[width] = <char> (value & 0x7f | 0x80)
        value >>= 7
        width += 1
    out[width] = <char> value
    return width + 1


cdef inline size_t put_reply(
    char* out, size_t room, const char* header, size_t width, const char* frame_start,
    const Frame* frame, const char* text, size_t text_length, size_t trailer,
) noexcept:
    """Write new header, prefix, message and the frame's trailer; the size, or 0: no room."""
    cdef size_t size = width + text_length + frame.length + trailer
    if size > room:
        return 0
    memcpy(out, header, width)
    memcpy(out + width, text, text_length)
    memcpy(out + width + text_length, frame_start + frame.header, frame.length + trailer)
    return size


cdef bytes contiguous(data):
    """A copy of any contiguous bytes-like object; bytes as they are."""
    cdef Py_buffer view
    if type(data) is bytes:
        return data
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return PyBytes_FromStringAndSize(<const char*> view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
