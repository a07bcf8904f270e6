"""UDP, compiled: what `fastecho._pure.datagrams` specifies, a batch to a system call."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcmp, memcpy, memset
from posix.time cimport timespec

from fastecho._native.calls cimport (
    AF_INET,
    AF_INET6,
    CMSG_DATA,
    CMSG_FIRSTHDR,
    CMSG_LEN,
    CMSG_NXTHDR,
    CMSG_SPACE,
    IP_PKTINFO,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_PKTINFO,
    IPV6_RECVPKTINFO,
    MSG_TRUNC,
    SO_TIMESTAMPNS,
    SOL_SOCKET,
    cmsghdr,
    in6_pktinfo,
    in_pktinfo,
    iovec,
    mmsghdr,
    msghdr,
    ntohs,
    recvmmsg,
    sendmmsg,
    sockaddr_in,
    sockaddr_in6,
    sockaddr_storage,
)
from fastecho._native.framing cimport Prefix
from fastecho._native.selector cimport EVENT_READ, Handler, SelectorCore, call_directly
from fastecho._native.stamping cimport Stamper
from fastecho._native.stream cimport address_of, read_clock

import socket

from fastecho import addresses
from fastecho.limits import (
    ANSWERING_PORTS,
    DATAGRAM_BATCH,
    IPV4_OVERHEAD,
    IPV6_OVERHEAD,
    MAX_DATAGRAM,
    PRIVILEGED_PORTS,
)

cdef enum:
    BATCH = 64       # limits.DATAGRAM_BATCH: array sizes are known when compiled
    LARGEST = 65535  # limits.MAX_DATAGRAM
    CONTROL = 128    # bytes for control messages with a timespec and both kinds of pktinfo

cdef int PRIVILEGED = PRIVILEGED_PORTS
cdef size_t OVERHEAD4 = IPV4_OVERHEAD, OVERHEAD6 = IPV6_OVERHEAD
cdef frozenset answering_ports = ANSWERING_PORTS

assert BATCH == DATAGRAM_BATCH and LARGEST == MAX_DATAGRAM

# RFC 4291: an IPv4 address written as an IPv6 one (2.5.5.2), and ::1 (2.5.3).
cdef const char* MAPPED = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"
cdef const char* LOOPBACK6 = b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1"

# The arrays of one batch. Memory that no datagram ever reaches is never touched, so not resident.
cdef struct Batch:
    mmsghdr received[BATCH]
    mmsghdr replies[BATCH]
    iovec into[BATCH]
    iovec parts[2 * BATCH]
    sockaddr_storage names[BATCH]
    char control[BATCH][CONTROL]
    char back[BATCH][CONTROL]
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
        self.is_ip = sock.family in (AF_INET, AF_INET6)
        self.port = sock.getsockname()[1] if self.is_ip else 0
        if stamper.fine:
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        if self.is_ip and not addresses.is_loopback(sock.getsockname()):
            sock.setsockopt(IPPROTO_IP, IP_PKTINFO, 1)
            if sock.family == AF_INET6:
                sock.setsockopt(IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
        selector.add(self.fd, self, EVENT_READ, self)

    def __dealloc__(self):
        if self.batch != NULL:
            PyMem_Free((<Batch*> self.batch).prefixes)
            PyMem_Free(self.batch)

    def fileno(self):
        """The socket's descriptor; -1 once closed."""
        return self.fd

    def close(self):
        """Answer no more."""
        if self.fd >= 0:
            self.selector.remove(self.fd)
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
            batch.received[i].msg_hdr.msg_controllen = CONTROL
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
        cdef int i, replies = 0
        for i in range(received):
            if batch.received[i].msg_hdr.msg_flags & MSG_TRUNC:
                self.drop("truncated")
                continue
            self.messages += 1
            self.bytes_in += batch.received[i].msg_len
            if batch.received[i].msg_hdr.msg_namelen <= sizeof(batch.names[i].ss_family):
                self.drop("nameless")
                continue
            try:
                replies += self.lay_out(i, replies, now_ns)
            except MemoryError:
                self.drop("enomem")
        return replies

    cdef bint lay_out(self, int i, int replies, int64_t now_ns) except -1:
        """Make the reply to datagram `i` the next after so many replies; whether there is one."""
        cdef Batch* batch = <Batch*> self.batch
        cdef size_t size = batch.received[i].msg_len
        cdef msghdr* message = &batch.received[i].msg_hdr
        cdef msghdr* answer = &batch.replies[replies].msg_hdr
        cdef iovec* parts = &batch.parts[2 * replies]
        # The stamper's own memory is for one prefix at a time.
        cdef char* text = batch.prefixes + <size_t> replies * self.stamper.longest
        cdef bytes peer = b""
        cdef str reason = None
        cdef const char* group
        cdef Prefix prefix
        if self.stamper.shows_peer:
            peer = addresses.peer(address_of(&batch.names[i], message.msg_namelen))
        self.stamper.one(
            &prefix, kernel_time(message, now_ns), self.messages, size,
            PyBytes_AS_STRING(peer), <size_t> PyBytes_GET_SIZE(peer),
        )
        answer.msg_control = batch.back[replies]
        group = contacted(message, answer)
        if self.is_ip:
            reason = refusal(&batch.names[i], group, self.port, size, prefix.length)
        if reason is not None:
            self.drop(reason)
            return False
        memcpy(text, prefix.text, prefix.length)
        parts[0].iov_base = text
        parts[0].iov_len = prefix.length
        parts[1].iov_base = batch.data[i]
        parts[1].iov_len = size
        answer.msg_name = message.msg_name
        answer.msg_namelen = message.msg_namelen
        return True

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
                        self,
                        address_of(
                            <sockaddr_storage*> batch.replies[i].msg_hdr.msg_name,
                            batch.replies[i].msg_hdr.msg_namelen,
                        ),
                    )
            at += sent
        return 0

    cdef int drop(self, str reason) except -1:
        self.unanswered[reason] = self.unanswered.get(reason, 0) + 1
        return 0


cdef Batch* new_batch(size_t longest_prefix) except NULL:
    """The arrays, pointing into each other."""
    cdef Batch* batch = <Batch*> PyMem_Calloc(1, sizeof(Batch))
    cdef msghdr* message
    cdef int i
    if batch == NULL:
        raise MemoryError
    batch.prefixes = <char*> PyMem_Malloc(BATCH * longest_prefix + 1)
    if batch.prefixes == NULL:
        PyMem_Free(batch)
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


cdef str refusal(
    const sockaddr_storage* source, const char* group, int own_port, size_t size, size_t prefix
):
    """Why a datagram from this source is not answered; None: it is."""
    cdef const uint8_t* inet = <const uint8_t*> &(<const sockaddr_in*> source).sin_addr
    cdef const uint8_t* inet6 = <const uint8_t*> &(<const sockaddr_in6*> source).sin6_addr
    cdef bint is_inet = source.ss_family == AF_INET
    # Both kinds of address have the port in the same place.
    cdef int port = ntohs((<const sockaddr_in*> source).sin_port)
    if not is_inet and memcmp(inet6, MAPPED, 12) == 0:
        inet = inet6 + 12
        is_inet = True
    if inet[0] == 127 if is_inet else memcmp(inet6, LOOPBACK6, 16) == 0:
        return None
    if port < PRIVILEGED:
        return "privileged_port"
    if port == own_port:
        return "own_port"
    if port in answering_ports:
        return "answering_port"
    if group != NULL:
        return group.decode()
    if prefix > size + (OVERHEAD4 if is_inet else OVERHEAD6):
        return "amplified"
    return None


cdef const char* contacted(msghdr* message, msghdr* answer) noexcept:
    """Have the answer leave from the address that was contacted; its kind, if it is a group's."""
    cdef cmsghdr* control = CMSG_FIRSTHDR(message)
    cdef const char* group = NULL
    cdef in_pktinfo info
    cdef in6_pktinfo info6
    cdef const uint8_t* target
    answer.msg_controllen = 0
    while control != NULL:
        if control.cmsg_level == IPPROTO_IP and control.cmsg_type == IP_PKTINFO:
            memcpy(&info, CMSG_DATA(control), sizeof(info))
            target = <const uint8_t*> &info.ipi_addr
            if target[0] >> 4 == 0xe:
                group = b"multicast"
            elif memcmp(target, &info.ipi_spec_dst, 4):
                group = b"broadcast"
            info.ipi_ifindex = 0
            memset(&info.ipi_addr, 0, sizeof(info.ipi_addr))
            put_control(answer, IPPROTO_IP, IP_PKTINFO, &info, sizeof(info))
            return group
        if control.cmsg_level == IPPROTO_IPV6 and control.cmsg_type == IPV6_PKTINFO:
            memcpy(&info6, CMSG_DATA(control), sizeof(info6))
            target = <const uint8_t*> &info6.ipi6_addr
            if target[0] == 0xff:
                group = b"multicast"
            else:
                # A link-local address (fe80::/10) needs its interface; else the route decides.
                if target[0] != 0xfe or target[1] & 0xc0 != 0x80:
                    info6.ipi6_ifindex = 0
                put_control(answer, IPPROTO_IPV6, IPV6_PKTINFO, &info6, sizeof(info6))
        control = CMSG_NXTHDR(message, control)
    return group


cdef void put_control(
    msghdr* message, int level, int kind, const void* data, size_t size
) noexcept:
    """Make this the message's one control message."""
    cdef cmsghdr* control = <cmsghdr*> message.msg_control
    control.cmsg_level = level
    control.cmsg_type = kind
    control.cmsg_len = CMSG_LEN(size)
    memcpy(CMSG_DATA(control), data, size)
    message.msg_controllen = CMSG_SPACE(size)


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
