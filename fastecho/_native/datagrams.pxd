"""C interface of a UDP socket; the contract is that of `fastecho._pure.datagrams`."""

from libc.stdint cimport int64_t, uint64_t

from fastecho._native.selector cimport Handler, SelectorCore
from fastecho._native.stamping cimport Stamper


cdef class Datagrams(Handler):
    cdef int fd
    cdef readonly object sock
    cdef readonly SelectorCore selector
    cdef readonly Stamper stamper
    cdef readonly object owner
    cdef readonly bint verbose
    cdef readonly uint64_t messages
    cdef readonly uint64_t bytes_in
    cdef readonly uint64_t bytes_out
    cdef readonly dict unanswered
    cdef void* batch
    cdef bint is_ip
    cdef int port

    cdef int receive(self) except -1
    cdef int stamp(self, int received) except -1
    cdef bint lay_out(self, int i, int replies, int64_t now_ns) except -1
    cdef int send(self, int replies) except -1
    cdef int drop(self, str reason) except -1
