"""C interface of the codecs; the contract is that of `fastecho._pure.framing`."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    # What `Codec.cut` finds at the start of some bytes.
    PARTIAL = 0
    WHOLE = 1
    TOO_LONG = 2
    CORRUPT = 3

cdef extern from "masks.h":
    enum:
        MASK_BLOCK
        MASK_STEP

cdef enum:
    LONE_MOST = MASK_BLOCK    # bytes that `Codec.lone` looks at
    LONE_ROOM = MASK_BLOCK + MASK_STEP    # and where their reply needs to have room

cdef struct Frame:
    size_t header   # bytes before the message
    size_t length   # of the message
    size_t total    # of the frame; if it is PARTIAL: the bytes without which no look is worth it

# What goes before a message: `text`, which `render` makes anew for each unless it is NULL. Of the
# text, 32 bytes can be read, however few it has: they are copied in one step, needed or not.
cdef struct Prefix:
    const char* text
    size_t length
    void (*render)(Prefix* prefix, uint64_t seq, size_t length) noexcept
    void* stamper
    int64_t now_ns
    const char* peer
    size_t peer_length

cdef class Codec:
    cdef readonly uint64_t messages
    cdef readonly uint64_t offset
    cdef readonly object error
    cdef char* held
    cdef size_t held_length
    cdef size_t held_capacity
    cdef const char* detail
    cdef uint32_t limit
    cdef uint8_t finished
    cdef uint8_t matched

    cpdef Codec fresh(self)
    cdef int cut(self, const char* data, size_t size, Frame* frame) noexcept
    cdef size_t reply(
        self, char* out, size_t room, const char* frame_start, const Frame* frame,
        const char* text, size_t text_length,
    ) noexcept
    cdef uint64_t many(
        self, const char* data, size_t size, size_t* consumed, char* out, size_t room,
        size_t* written, const Prefix* prefix,
    ) noexcept
    cdef size_t lone(
        self, const char* data, size_t size, char* out, const char* text, size_t text_length
    ) noexcept
    cdef str explain(self)
    cdef int extend(self, const char* data, size_t size, size_t* taken, Frame* frame) except -1
    cdef int run(
        self, const char* data, size_t size, list messages, char* out, size_t room, Prefix* prefix,
        size_t* consumed, size_t* written,
    ) except -1
    cdef int run_whole(
        self, const char* data, size_t size, list messages, char* out, size_t room, Prefix* prefix,
        size_t* consumed, size_t* written,
    ) except -1
    cdef int end(self) except -1
    cdef int fail(self, int status) except -1
    cdef int hold(self, const char* data, size_t size) except -1
    cdef void release(self) noexcept
    cdef check_length(self, Py_ssize_t size)

cdef class Pattern:
    cdef readonly bytes delimiter
    cdef const char* text
    cdef size_t width
    cdef uint8_t fallback[255]

cdef class EndedCodec(Codec):
    pass

cdef class DelimiterCodec(EndedCodec):
    cdef Pattern pattern
    cdef size_t scan(self, const char* data, size_t size) noexcept

ctypedef uint8_t States[256]    # a state for each byte

cdef class Automaton:
    cdef readonly tuple delimiters
    cdef States* after
    cdef uint8_t depth[256]
    cdef uint8_t width[256]

cdef class AnyDelimiterCodec(EndedCodec):
    cdef Automaton automaton
    cdef size_t scan(self, const char* data, size_t size, uint8_t* state) noexcept

cdef class RawCodec(Codec):
    pass

cdef class FixedCodec(Codec):
    pass

cdef class LengthCodec(Codec):
    cdef readonly size_t before
    cdef readonly int64_t adjust
    cdef readonly uint8_t width
    cdef readonly bint little
    cdef uint64_t announced

cdef class VarintCodec(Codec):
    pass

cdef class NetstringCodec(Codec):
    pass
