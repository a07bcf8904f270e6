"""C interface of listeners and streams; the contract is that of `fastecho._pure.stream`."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from fastecho._native.calls cimport sockaddr_storage
from fastecho._native.framing cimport Codec
from fastecho._native.selector cimport Handler, SelectorCore
from fastecho._native.stamping cimport Echo, Stamper

# What a stream keeps while the kernel takes no more: first the replies, then the input not yet cut.
cdef struct Kept:
    size_t sent         # of the replies
    size_t replies      # bytes of them
    size_t input        # bytes of it
    int64_t now_ns      # when it came
    char data[1]        # and on

cdef class Shared:
    cdef char* receive_buffer
    cdef char* send_buffer
    cdef readonly size_t receive
    cdef readonly size_t send
    cdef readonly Py_ssize_t max_connections
    cdef readonly Py_ssize_t open
    cdef readonly list resting

cdef class Listener(Handler):
    cdef int fd
    cdef readonly object sock
    cdef readonly SelectorCore selector
    cdef readonly Echo echo
    cdef readonly Shared shared
    cdef readonly object owner
    cdef readonly bint verbose
    cdef readonly bint show_cuts
    cdef readonly double idle_timeout
    cdef readonly double frame_timeout
    cdef readonly double linger_timeout
    cdef readonly uint64_t accepted
    cdef readonly uint64_t messages
    cdef readonly uint64_t bytes_in
    cdef readonly uint64_t bytes_out
    cdef readonly Py_ssize_t open
    # How connections came to an end; most do in one of two ways, counted apart from the others.
    cdef uint64_t ended
    cdef uint64_t reset
    cdef dict otherwise
    cdef bint is_resting
    cdef double swept

    cdef bint adopt(self, int fd, const sockaddr_storage* address) except -1
    cdef int cannot_accept(self, int number) except -1

# One for each connection: 128 bytes, and a codec.
cdef class Stream(Handler):
    cdef readonly Listener listener
    cdef Codec codec
    cdef bytes shown_peer    # for the stamper, if it shows it
    cdef Kept* kept
    # What the last sweep saw, and for how long.
    cdef uint64_t seen_in
    cdef double still
    cdef double unfinished    # when lingering: the deadline
    cdef uint32_t seen_unsent
    cdef uint32_t frame
    cdef int fd
    cdef char peer[28]    # a sockaddr_in6; of a UNIX peer no more than the family
    cdef uint8_t state
    cdef uint8_t ended
    cdef uint8_t counted
    cdef uint8_t has_frame
    cdef uint8_t told_unfinished
    cdef uint8_t told_unread

    cdef inline bint receive(self) except -1
    cdef int answer(self, const char* data, size_t size, int64_t now_ns) except -1
    cdef int at_end(self, int64_t now_ns) except -1
    cdef int note_fault(self) except -1
    cdef inline bint send(
        self, const char* replies, size_t size, const char* rest, size_t rest_size, int64_t now_ns
    ) except -1
    cdef int resume(self) except -1
    cdef inline int settle(self) except -1
    cdef int linger(self) except -1
    cdef int discard(self) except -1
    cdef int watch(self, int state, int events) except -1
    cdef int not_done(self, int number) except -1
    cdef inline int note(self, str reason) except -1
    cdef int shut(self, str reason) except -1
    cdef int sweep_at(self, double now, double elapsed) except -1
    cdef int sweep_frame(self) except -1
    cdef int expire(self, str reason) except -1
    cdef size_t unsent_bytes(self) noexcept
    cdef int keep(
        self, const char* replies, size_t size, const char* rest, size_t rest_size, int64_t now_ns
    ) except -1

cdef int64_t read_clock(Stamper stamper) noexcept
cdef object address_of(const sockaddr_storage* address, size_t length)
