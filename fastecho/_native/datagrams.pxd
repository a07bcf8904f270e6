"""C interface of a UDP socket; the contract is that of `fastecho._pure.datagrams`."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastecho._native.calls cimport msghdr, socklen_t
from fastecho._native.selector cimport Handler, SelectorCore
from fastecho._native.stamping cimport Stamper

cdef enum:
    BACK = 64    # bytes for control messages with the larger kind of pktinfo and a segment's size

# What was received at once: a datagram, or several of one size that the kernel has joined.
cdef struct Arrival:
    char* data              # of those not yet answered
    size_t left             # bytes of them
    size_t datagrams        # how many they are
    size_t segment          # bytes of each, but perhaps the last
    bint joined
    int64_t now_ns          # when it came
    void* name              # of the source
    socklen_t name_size
    size_t overhead         # of a packet's headers; 0: the source cannot be forged
    int group               # BROADCAST or MULTICAST, if it was sent to one
    int refused             # why they are not answered
    char back[BACK]         # control message: replies leave from the address that was contacted
    size_t back_size


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
    cdef readonly dict resent
    cdef readonly bint segments
    cdef void* memory
    cdef void* batch
    cdef bint is_ip
    cdef int port
    cdef uint32_t lost
    cdef bytes peer
    cdef bint is_constant    # the prefixes of a batch are all the same

    cdef int answer(self, int received) except -1
    cdef int receive(self, int most) except -1
    cdef int lay_out(self, int received) except -1
    cdef inline int begin(self, Arrival* arrival, int slot) except -1
    cdef int show_peer(self, Arrival* arrival) except -1
    cdef int read_control(self, msghdr* message, Arrival* arrival) except -1
    cdef int send(self) except -1
    cdef int send_singly(self, int at, int refused) except -1
    cdef int tell(self, const msghdr* message, int replies) except -1
    cdef int note_loss(self, uint32_t lost) except -1
    cdef int drop(self, str reason) except -1
