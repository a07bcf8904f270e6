"""UDP, compiled: what `fastecho._pure.datagrams` specifies, a batch to a system call."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from posix.time cimport timespec

from fastecho._native.framing cimport Prefix
from fastecho._native.selector cimport EVENT_READ, Handler, SelectorCore, call_directly
from fastecho._native.stamping cimport Stamper
from fastecho._native.stream cimport address_of, read_clock, sockaddr_storage, socklen_t

from socket import SOL_SOCKET as SOCKET_LEVEL

from fastecho import addresses
from fastecho.limits import DATAGRAM_BATCH, MAX_DATAGRAM

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_TRUNC
        SOL_SOCKET
        SO_TIMESTAMPNS
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        void* msg_name
        socklen_t msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        void* msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cmsghdr* CMSG_FIRSTHDR(msghdr* message)
    cmsghdr* CMSG_NXTHDR(msghdr* message, cmsghdr* control)
    unsigned char* CMSG_DATA(cmsghdr* control)
    int recvmmsg(int fd, mmsghdr* messages, unsigned int count, int flags, timespec* timeout)
    int sendmmsg(int fd, mmsghdr* messages, unsigned int count, int flags)

cdef enum:
    BATCH = 64       # limits.DATAGRAM_BATCH: array sizes are known when compiled
    LARGEST = 65535  # limits.MAX_DATAGRAM
    CONTROL = 64     # bytes for one control message with a timespec, and to spare

assert BATCH == DATAGRAM_BATCH and LARGEST == MAX_DATAGRAM

# The arrays of one batch. Memory that no datagram ever reaches is never touched, so not resident.
cdef struct Batch:
    mmsghdr received[BATCH]
    mmsghdr replies[BATCH]
    iovec into[BATCH]
    iovec parts[2 * BATCH]
    sockaddr_storage names[BATCH]
    char control[BATCH][CONTROL]
    char data[BATCH][LARGEST]
    char* prefixes


cdef class Datagrams(Handler):
    """One bound, non-blocking UDP socket on a selector."""

    def __cinit__(
        self, sock, SelectorCore selector not None, Stamper stamper not None, owner,
        bint verbose=False,
    ):
        self.sock = sock
        self.fd = sock.fileno()
        self.selector = selector
        self.stamper = stamper
        self.owner = owner
        self.verbose = verbose
        self.unanswered = {}
        self.batch = new_batch(stamper.longest)
        if stamper.fine:
            sock.setsockopt(SOCKET_LEVEL, SO_TIMESTAMPNS, 1)
        selector.add(self.fd, self, EVENT_READ, self)

    def __dealloc__(self):
        if self.batch != NULL:
            free((<Batch*> self.batch).prefixes)
            free(self.batch)

    def fileno(self):
        """The socket's descriptor; -1 once closed."""
        return self.fd

    def close(self):
        """Answer no more."""
        self.selector.unregister(self)
        self.fd = -1
        self.sock.close()

    cdef int handle(self, int mask) except -1:
        """Answer what waits, up to a batch."""
        cdef int received = self.receive()
        if received:
            self.send(self.stamp(received))
        return 0

    cdef int receive(self) except -1:
        """Receive what waits into the batch; how many datagrams that are."""
        cdef Batch* batch = <Batch*> self.batch
        cdef int received, i
        for i in range(BATCH):
            batch.received[i].msg_hdr.msg_namelen = sizeof(sockaddr_storage)
            batch.received[i].msg_hdr.msg_controllen = CONTROL if self.stamper.fine else 0
        while True:
            received = recvmmsg(self.fd, batch.received, BATCH, 0, NULL)
            if received >= 0:
                return received
            if errno == EAGAIN:
                return 0
            if errno != EINTR:
                self.drop(addresses.reason(errno))
                return 0
            PyErr_CheckSignals()

    cdef int stamp(self, int received) except -1:
        """Lay out a reply to each datagram that came whole; how many these are."""
        cdef Batch* batch = <Batch*> self.batch
        cdef int64_t now_ns = read_clock(self.stamper)
        cdef bytes peer = b""
        cdef Prefix prefix
        cdef iovec* parts
        cdef msghdr* message
        cdef char* text
        cdef int i, replies = 0
        for i in range(received):
            message = &batch.received[i].msg_hdr
            if message.msg_flags & MSG_TRUNC:
                self.drop("truncated")
                continue
            self.messages += 1
            self.bytes_in += batch.received[i].msg_len
            if self.stamper.shows_peer:
                peer = addresses.peer(address_of(&batch.names[i]))
            self.stamper.one(
                &prefix, kernel_time(message, now_ns), self.messages, batch.received[i].msg_len,
                PyBytes_AS_STRING(peer), <size_t> PyBytes_GET_SIZE(peer),
            )
            # The stamper's own memory is for one prefix at a time.
            text = batch.prefixes + <size_t> replies * self.stamper.longest
            memcpy(text, prefix.text, prefix.length)
            parts = &batch.parts[2 * replies]
            parts[0].iov_base = text
            parts[0].iov_len = prefix.length
            parts[1].iov_base = batch.data[i]
            parts[1].iov_len = batch.received[i].msg_len
            batch.replies[replies].msg_hdr.msg_name = message.msg_name
            batch.replies[replies].msg_hdr.msg_namelen = message.msg_namelen
            replies += 1
        return replies

    cdef int send(self, int replies) except -1:
        """Send the replies; one that the kernel refuses is dropped, and the rest still go."""
        cdef Batch* batch = <Batch*> self.batch
        cdef int at = 0, sent, i
        while at < replies:
            sent = sendmmsg(self.fd, &batch.replies[at], <unsigned int> (replies - at), 0)
            if sent < 0:
                if errno == EINTR:
                    PyErr_CheckSignals()
                    continue
                self.drop(addresses.reason(errno))
                at += 1
                continue
            for i in range(at, at + sent):
                self.bytes_out += batch.replies[i].msg_len
                if self.verbose:
                    self.owner.answered(
                        self, address_of(<sockaddr_storage*> batch.replies[i].msg_hdr.msg_name)
                    )
            at += sent
        return 0

    cdef int drop(self, str reason) except -1:
        self.unanswered[reason] = self.unanswered.get(reason, 0) + 1
        return 0


cdef Batch* new_batch(size_t longest_prefix) except NULL:
    """The arrays, pointing into each other."""
    cdef Batch* batch = <Batch*> calloc(1, sizeof(Batch))
    cdef msghdr* message
    cdef int i
    if batch == NULL:
        raise MemoryError
    batch.prefixes = <char*> malloc(BATCH * longest_prefix + 1)
    if batch.prefixes == NULL:
        free(batch)
        raise MemoryError
    for i in range(BATCH):
        batch.into[i].iov_base = batch.data[i]
        batch.into[i].iov_len = LARGEST
        message = &batch.received[i].msg_hdr
        message.msg_name = &batch.names[i]
        message.msg_iov = &batch.into[i]
        message.msg_iovlen = 1
        message.msg_control = batch.control[i]
        message = &batch.replies[i].msg_hdr
        message.msg_iov = &batch.parts[2 * i]
        message.msg_iovlen = 2
    return batch


cdef int64_t kernel_time(msghdr* message, int64_t now_ns) noexcept:
    """When the datagram came: by the kernel's stamp, if there is one."""
    cdef cmsghdr* control = CMSG_FIRSTHDR(message)
    cdef timespec stamp
    while control != NULL:
        if control.cmsg_level == SOL_SOCKET and control.cmsg_type == SO_TIMESTAMPNS:
            memcpy(&stamp, CMSG_DATA(control), sizeof(stamp))
            return <int64_t> stamp.tv_sec * 1_000_000_000 + stamp.tv_nsec
        control = CMSG_NXTHDR(message, control)
    return now_ns


call_directly(Datagrams)
