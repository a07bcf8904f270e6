"""C interface of listeners and streams; the contract is that of `fastecho._pure.stream`."""

from libc.stdint cimport int64_t, uint64_t

from fastecho._native.selector cimport Handler, SelectorCore
from fastecho._native.stamping cimport Echo, Stamper

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    struct sockaddr_storage:
        unsigned short ss_family

# What a stream keeps while the kernel takes no more: first the replies, then the input not yet cut.
cdef struct Kept:
    size_t sent         # of the replies
    size_t replies      # bytes of them
    size_t input        # bytes of it
    int64_t now_ns      # when it came
    char* data

cdef class Buffers:
    cdef char* receive_buffer
    cdef char* send_buffer
    cdef readonly size_t receive
    cdef readonly size_t send

cdef class Listener(Handler):
    cdef int fd
    cdef readonly object sock
    cdef readonly SelectorCore selector
    cdef readonly Echo echo
    cdef readonly Buffers buffers
    cdef readonly object owner
    cdef readonly bint verbose
    cdef readonly uint64_t accepted
    cdef readonly uint64_t messages
    cdef readonly uint64_t bytes_in
    cdef readonly uint64_t bytes_out
    cdef readonly Py_ssize_t open
    cdef readonly dict closed
    cdef bint is_resting

    cdef int adopt(self, int fd, const sockaddr_storage* address) except -1
    cdef int cannot_accept(self, int number) except -1

cdef class Stream(Handler):
    cdef readonly Listener listener
    cdef Echo echo
    cdef int fd
    cdef int state
    cdef bint ended
    cdef str reason
    cdef Kept kept
    cdef char peer[28]    # a sockaddr_in6, the largest there is here

    cdef bint receive(self) except -1
    cdef int answer(self, const char* data, size_t size, int64_t now_ns) except -1
    cdef int at_end(self, int64_t now_ns) except -1
    cdef int note_fault(self) except -1
    cdef bint send(
        self, const char* replies, size_t size, const char* rest, size_t rest_size, int64_t now_ns
    ) except -1
    cdef int resume(self) except -1
    cdef int settle(self) except -1
    cdef int linger(self) except -1
    cdef int discard(self) except -1
    cdef int watch(self, int state, int events) except -1
    cdef int not_done(self, int number) except -1
    cdef int note(self, str reason) except -1
    cdef int shut(self, str reason) except -1
    cdef int keep(
        self, const char* replies, size_t size, const char* rest, size_t rest_size, int64_t now_ns
    ) except -1

cdef int64_t read_clock(Stamper stamper) noexcept
cdef object address_of(const sockaddr_storage* address)
