"""C interface of the selector; the contract is that of `fastecho._pure.selector`."""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    EVENT_READ = 1
    EVENT_WRITE = 2

# A key's data that can be called without leaving C.
cdef class Handler:
    cdef int handle(self, int mask) except -1
    cdef int exhausted(self) except -1

# What is known of a descriptor, in a word; `serial` is 0 while it is not registered.
cdef extern from *:
    """
    typedef struct { uint64_t events : 2, direct : 1, filed : 1, serial : 60; } fastecho_entry;
    """
    ctypedef struct Entry "fastecho_entry":
        uint64_t serial
        int events
        bint direct    # its data is called in C
        bint filed     # its file object is in `files`

cdef class SelectorCore:
    cdef int epoll
    cdef int timer    # of `run`
    cdef bint rung    # whether it has
    cdef Entry* entries
    cdef int capacity
    cdef int count
    cdef int ready    # how many the last turn has found
    cdef uint64_t serial
    cdef int forks    # of this process, when it was made
    cdef dict files    # by descriptor, where that is not the data too
    cdef list datas
    cdef object map
    cdef bint stopped

    cdef int turn(self, int milliseconds) except -1
    cdef int add(self, int fd, fileobj, int events, data) except -1
    cdef int change(self, int fd, int events) except -1
    cdef int remove(self, int fd) except -1
    cdef int drop(self, int fd) except -1
    cdef void close_descriptors(self) noexcept
    cdef int set_timer(self, double when) except -1
    cdef int check_open(self) except -1
    cdef int find(self, fileobj) except -1
    cdef int registered(self, fileobj) except -1
    cdef object key(self, int fd)
    cdef object file(self, int fd)
    cdef int reserve(self, int fd) except -1
    cdef int forget(self, int fd) except -1

cdef int call_directly(type kind) except -1
