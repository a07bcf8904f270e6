"""UDP, compiled: what `fastecho._pure.datagrams` specifies, a batch to a system call.

A reply to a datagram that came alone is made where that lies: the prefix is written before it.
What the kernel has joined has no room between its datagrams, so those replies are copied, one right
after the other; then a run of them is one piece of memory.
"""

from cython cimport final
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.errno cimport EAGAIN, EINTR, EINVAL, EIO, EMSGSIZE, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
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
    SO_RXQ_OVFL,
    SO_TIMESTAMPNS,
    SOL_SOCKET,
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
    cmsghdr,
    in6_pktinfo,
    in_pktinfo,
    iovec,
    mmsghdr,
    msghdr,
    ntohs,
    recvmmsg,
    sendmmsg,
    sendmsg,
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
    ETHERNET_MTU,
    IPV4_OVERHEAD,
    IPV6_OVERHEAD,
    MAX_DATAGRAM,
    MAX_SEGMENTED,
    MAX_SEGMENTS,
    PRIVILEGED_PORTS,
)

cdef extern from "masks.h":
    void mask_copy(char* to, const char* source, size_t size) noexcept

cdef enum:
    BATCH = 64       # limits.DATAGRAM_BATCH: array sizes are known when compiled
    LARGEST = 65535  # limits.MAX_DATAGRAM
    CONTROL = 192    # bytes for all control messages that we ask for, with both kinds of pktinfo
    ROOM = 262144    # of copied replies: at least the largest one with its prefix
    BURST = 32       # datagrams at once: then there is a burst
    LINE = 64        # bytes of a cache's line

cdef int PRIVILEGED = PRIVILEGED_PORTS, SEGMENTS = MAX_SEGMENTS
cdef size_t OVERHEAD4 = IPV4_OVERHEAD, OVERHEAD6 = IPV6_OVERHEAD, MTU = ETHERNET_MTU
cdef size_t SEGMENTED = MAX_SEGMENTED
cdef int answering[5]
answering = sorted(ANSWERING_PORTS)

assert BATCH == DATAGRAM_BATCH and LARGEST == MAX_DATAGRAM

# RFC 4291: an IPv4 address written as an IPv6 one (2.5.5.2), and ::1 (2.5.3).
cdef const char* MAPPED = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"
cdef const char* LOOPBACK6 = b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1"

cdef enum:
    # Why a datagram is not answered.
    ANSWERED, NAMELESS, PRIVILEGED_PORT, OWN_PORT, ANSWERING_PORT, BROADCAST, MULTICAST, NO_MEMORY

cdef tuple REASONS = (
    "", "nameless", "privileged_port", "own_port", "answering_port", "broadcast", "multicast",
    "enomem",
)

# Replies that leave as one send: of one size, to one peer; `last` says that no more can join.
cdef struct Run:
    int replies
    bint last
    size_t size         # of each, but perhaps the last
    size_t bytes
    size_t back_size    # of the control message that is not the segments' size

# The arrays of one batch. Memory that no datagram ever reaches is never touched, so not resident.
cdef struct Batch:
    mmsghdr received[BATCH]
    mmsghdr replies[BATCH]
    int received_before    # how many of `received` a call has filled in
    int begun              # how many of these are answered, the last of them perhaps in part
    int64_t now_ns
    Arrival arrival        # that last one
    int sends
    int pieces
    size_t filled          # bytes of `room`
    iovec into[BATCH]
    iovec parts[BATCH]
    Run runs[BATCH]
    sockaddr_storage names[BATCH]
    char control[BATCH][CONTROL]
    char back[BATCH][BACK]
    char room[ROOM]


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
        self.resent = {}
        self.memory = new_memory(stamper.longest)
        self.batch = aligned(self.memory)
        lay_out_batch(<Batch*> self.batch, stamper.longest)
        self.is_ip = sock.family in (AF_INET, AF_INET6)
        self.port = sock.getsockname()[1] if self.is_ip else 0
        self.peer = b""
        self.is_constant = not (stamper.fine or stamper.shows_peer)
        if stamper.fine:
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        if self.is_ip:
            self.segments = can(sock, SOL_UDP, UDP_SEGMENT, 0)
            can(sock, SOL_UDP, UDP_GRO, 1)
            can(sock, SOL_SOCKET, SO_RXQ_OVFL, 1)
        if self.is_ip and not addresses.is_loopback(sock.getsockname()):
            sock.setsockopt(IPPROTO_IP, IP_PKTINFO, 1)
            if sock.family == AF_INET6:
                sock.setsockopt(IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
        selector.add(self.fd, self, EVENT_READ, self)

    def __dealloc__(self):
        PyMem_Free(self.memory)

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
        """Answer what waits, up to a batch. In a burst more has come by then, so it looks again."""
        cdef int left = BATCH, received = BURST
        while left and received >= BURST:
            received = self.receive(left)
            left -= received
            self.answer(received)
        return 0

    cdef int answer(self, int received) except -1:
        """Answer what was received."""
        while received:
            try:
                self.lay_out(received)
                return self.send()
            except MemoryError:    # for the reply to one datagram; it goes on with the next
                self.drop("enomem")
        return 0

    cdef int receive(self, int most) except -1:
        """Receive what waits, so many at most; how many datagrams, or joined ones, that are."""
        cdef Batch* batch = <Batch*> self.batch
        cdef int received, slot
        forget_replies(batch)
        for slot in range(batch.received_before):
            batch.received[slot].msg_hdr.msg_namelen = sizeof(sockaddr_storage)
            batch.received[slot].msg_hdr.msg_controllen = CONTROL
        batch.received_before = batch.begun = 0
        batch.arrival.datagrams = 0
        while True:
            received = recvmmsg(self.fd, batch.received, <unsigned int> most, 0, NULL)
            if received >= 0:
                batch.received_before = received
                return received
            if errno == EAGAIN:
                return 0
            if errno != EINTR:
                self.drop(addresses.reason(errno))
                return 0
            PyErr_CheckSignals()

    cdef int lay_out(self, int received) except -1:
        """Lay out the replies, from the datagram on after the last for which this raised."""
        cdef Batch* batch = <Batch*> self.batch
        cdef Arrival* arrival = &batch.arrival
        cdef Stamper stamper = self.stamper
        cdef Prefix prefix
        cdef char* data
        cdef size_t size
        cdef bint rendered = False
        if not batch.begun:
            batch.now_ns = read_clock(stamper)
        while True:
            if not arrival.datagrams:
                if batch.begun == received:
                    return 0
                batch.begun += 1
                self.begin(arrival, batch.begun - 1)
                rendered = rendered and self.is_constant
                continue
            data = arrival.data
            size = min(arrival.segment, arrival.left)
            arrival.data += size
            arrival.left -= size
            arrival.datagrams -= 1
            self.messages += 1
            self.bytes_in += size
            if arrival.refused != ANSWERED:
                self.drop(REASONS[arrival.refused])
                continue
            if not rendered or stamper.per_message:
                stamper.one(
                    &prefix, arrival.now_ns, self.messages, size,
                    PyBytes_AS_STRING(self.peer), <size_t> PyBytes_GET_SIZE(self.peer),
                )
                rendered = True
            if arrival.overhead and prefix.length > size + arrival.overhead:
                self.drop("amplified")
                continue
            if is_full(batch, arrival, prefix.length + size):
                self.send()
            add(batch, arrival, &prefix, data, size, self.segments)

    @final
    cdef inline int begin(self, Arrival* arrival, int slot) except -1:
        """What came in this slot is next."""
        cdef Batch* batch = <Batch*> self.batch
        cdef msghdr* message = &batch.received[slot].msg_hdr
        arrival.data = <char*> batch.into[slot].iov_base
        arrival.left = arrival.segment = batch.received[slot].msg_len
        arrival.now_ns = batch.now_ns
        arrival.name = message.msg_name
        arrival.name_size = message.msg_namelen
        arrival.group = ANSWERED
        arrival.back_size = arrival.overhead = 0
        if message.msg_controllen:
            self.read_control(message, arrival)
        if message.msg_flags & MSG_TRUNC:
            return self.drop("truncated")
        arrival.datagrams = 1
        arrival.joined = arrival.segment < arrival.left
        if arrival.joined:
            arrival.datagrams = (arrival.left + arrival.segment - 1) // arrival.segment
        arrival.refused = (
            NAMELESS if arrival.name_size <= sizeof(batch.names[slot].ss_family)
            else ANSWERED if not self.is_ip or is_loopback(<const sockaddr_in*> arrival.name)
            else refusal(arrival, self.port)
        )
        if self.stamper.shows_peer and arrival.refused == ANSWERED:
            self.show_peer(arrival)
        return 0

    cdef int show_peer(self, Arrival* arrival) except -1:
        """What the stamper shows of the source."""
        cdef const sockaddr_storage* name = <const sockaddr_storage*> arrival.name
        try:
            self.peer = addresses.peer(address_of(name, arrival.name_size))
        except MemoryError:
            arrival.refused = NO_MEMORY
        return 0

    cdef int read_control(self, msghdr* message, Arrival* arrival) except -1:
        """What the kernel says of what came: how it was joined, when, where to; what was lost."""
        cdef cmsghdr* control = CMSG_FIRSTHDR(message)
        cdef bint is_inet = False
        cdef timespec stamp
        cdef int segment
        cdef uint32_t lost
        while control != NULL:
            if control.cmsg_level == SOL_UDP and control.cmsg_type == UDP_GRO:
                memcpy(&segment, CMSG_DATA(control), sizeof(segment))
                if segment > 0:
                    arrival.segment = <size_t> segment
            elif control.cmsg_level == SOL_SOCKET and control.cmsg_type == SO_TIMESTAMPNS:
                memcpy(&stamp, CMSG_DATA(control), sizeof(stamp))
                arrival.now_ns = <int64_t> stamp.tv_sec * 1_000_000_000 + stamp.tv_nsec
            elif control.cmsg_level == SOL_SOCKET and control.cmsg_type == SO_RXQ_OVFL:
                memcpy(&lost, CMSG_DATA(control), sizeof(lost))
                self.note_loss(lost)
            elif control.cmsg_level == IPPROTO_IP and control.cmsg_type == IP_PKTINFO:
                note_contacted(arrival, control)
                is_inet = True
            elif control.cmsg_level == IPPROTO_IPV6 and control.cmsg_type == IPV6_PKTINFO:
                if not is_inet:    # of a dual-stack socket: both are told, that one is right
                    note_contacted6(arrival, control)
            control = CMSG_NXTHDR(message, control)
        return 0

    cdef int send(self) except -1:
        """Send the replies; one that the kernel refuses is dropped, and the rest still go."""
        cdef Batch* batch = <Batch*> self.batch
        cdef int sends = batch.sends, at = 0, sent, i
        forget_replies(batch)
        while at < sends:
            sent = sendmmsg(self.fd, &batch.replies[at], <unsigned int> (sends - at), 0)
            if sent < 0:
                if errno == EINTR:
                    PyErr_CheckSignals()
                    continue
                if batch.runs[at].replies > 1:
                    self.send_singly(at, errno)
                else:
                    self.drop(addresses.reason(errno))
                at += 1
                continue
            for i in range(at, at + sent):
                self.bytes_out += batch.replies[i].msg_len
                if self.verbose:
                    self.tell(&batch.replies[i].msg_hdr, batch.runs[i].replies)
            at += sent
        return 0

    cdef int send_singly(self, int at, int refused) except -1:
        """A segmented send was refused: the same replies go one by one."""
        cdef Batch* batch = <Batch*> self.batch
        cdef msghdr one = batch.replies[at].msg_hdr
        cdef size_t left
        cdef iovec piece
        cdef ssize_t sent
        cdef size_t i
        count(self.resent, addresses.reason(refused), 1)
        if refused in (EIO, EINVAL, EMSGSIZE):    # it would be so again
            self.segments = False
        one.msg_iov = &piece
        one.msg_iovlen = 1
        one.msg_controllen = batch.runs[at].back_size
        for i in range(batch.replies[at].msg_hdr.msg_iovlen):
            piece.iov_base = batch.replies[at].msg_hdr.msg_iov[i].iov_base
            left = batch.replies[at].msg_hdr.msg_iov[i].iov_len
            while left:
                piece.iov_len = min(left, batch.runs[at].size)
                sent = sendmsg(self.fd, &one, 0)
                if sent < 0 and errno == EINTR:
                    PyErr_CheckSignals()
                    continue
                if sent < 0:
                    self.drop(addresses.reason(errno))
                else:
                    self.bytes_out += <size_t> sent
                    if self.verbose:
                        self.tell(&one, 1)
                piece.iov_base = <char*> piece.iov_base + piece.iov_len
                left -= piece.iov_len
        return 0

    cdef int tell(self, const msghdr* message, int replies) except -1:
        """Tell the owner of each answer."""
        cdef int _
        address = address_of(<sockaddr_storage*> message.msg_name, message.msg_namelen)
        for _ in range(replies):
            self.owner.answered(self, address)
        return 0

    cdef int note_loss(self, uint32_t lost) except -1:
        """So many the kernel has dropped so far, modulo 2**32."""
        if lost != self.lost:
            count(self.unanswered, "overflow", lost - self.lost)
            self.lost = lost
        return 0

    cdef int drop(self, str reason) except -1:
        return count(self.unanswered, reason, 1)


cdef int count(dict counts, str reason, uint32_t more) except -1:
    counts[reason] = counts.get(reason, 0) + more
    return 0


cdef bint can(sock, int level, int option, int value) except -1:
    """Set a socket option that not every kernel has; whether this one does."""
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True


cdef size_t stride(size_t longest_prefix) noexcept:
    """Bytes from one datagram to the next, with room for a prefix before each.

    An odd number of lines: else all would begin in the same few sets of the cache.
    """
    return ((longest_prefix + LARGEST + LINE - 1) // LINE | 1) * LINE


cdef void* new_memory(size_t longest_prefix) except NULL:
    """Memory for a batch and, behind it, for its datagrams."""
    cdef void* memory = PyMem_Calloc(1, sizeof(Batch) + 2 * LINE + BATCH * stride(longest_prefix))
    if memory == NULL:
        raise MemoryError
    return memory


cdef void* aligned(void* memory) noexcept:
    """Where the next line of the cache begins."""
    return <char*> memory + (LINE - <size_t> memory % LINE) % LINE


cdef void lay_out_batch(Batch* batch, size_t longest_prefix) noexcept:
    """Have the arrays point into each other."""
    cdef char* data = <char*> aligned(batch + 1) + longest_prefix
    cdef msghdr* message
    cdef int slot
    for slot in range(BATCH):
        batch.into[slot].iov_base = data + <size_t> slot * stride(longest_prefix)
        batch.into[slot].iov_len = LARGEST
        message = &batch.received[slot].msg_hdr
        message.msg_name = &batch.names[slot]
        message.msg_iov = &batch.into[slot]
        message.msg_iovlen = 1
        message.msg_control = batch.control[slot]
        batch.replies[slot].msg_hdr.msg_control = batch.back[slot]
    batch.received_before = BATCH


cdef void forget_replies(Batch* batch) noexcept:
    """Start to lay out anew."""
    batch.sends = batch.pieces = 0
    batch.filled = 0


cdef inline bint is_full(const Batch* batch, const Arrival* arrival, size_t size) noexcept:
    """Whether there is no room to lay out a reply of this size."""
    return batch.pieces == BATCH or (arrival.joined and size > ROOM - batch.filled)


cdef inline void add(
    Batch* batch, const Arrival* arrival, const Prefix* prefix, char* data, size_t size,
    bint segments,
) noexcept:
    """Make a reply; it joins the last ones, or is a send of its own."""
    cdef size_t total = prefix.length + size
    cdef char* reply = data - prefix.length
    if arrival.joined:
        reply = batch.room + batch.filled
        batch.filled += total
        memcpy(reply + prefix.length, data, size)
    mask_copy(reply, prefix.text, prefix.length)
    if segments and batch.sends and joins(batch, arrival, total):
        join(batch, reply, total)
    else:
        start(batch, arrival, reply, total)


cdef inline bint joins(const Batch* batch, const Arrival* arrival, size_t size) noexcept:
    """Whether a reply of this size can be the next segment of the last send."""
    cdef const Run* run = &batch.runs[batch.sends - 1]
    cdef const msghdr* message = &batch.replies[batch.sends - 1].msg_hdr
    return (
        not run.last
        and 0 < size <= run.size
        and run.replies < SEGMENTS
        and run.bytes + size <= SEGMENTED
        and (
            message.msg_name == arrival.name
            or message.msg_namelen == arrival.name_size
            and are_alike(message.msg_name, arrival.name, arrival.name_size)
            and run.back_size == arrival.back_size
            and memcmp(message.msg_control, arrival.back, arrival.back_size) == 0
        )
    )


cdef inline void join(Batch* batch, char* reply, size_t size) noexcept:
    """Make a reply the last send's next segment."""
    cdef Run* run = &batch.runs[batch.sends - 1]
    cdef msghdr* message = &batch.replies[batch.sends - 1].msg_hdr
    cdef iovec* piece = &batch.parts[batch.pieces - 1]
    cdef uint16_t segment = <uint16_t> run.size
    run.replies += 1
    run.bytes += size
    run.last = size < run.size
    if run.replies == 2:
        message.msg_controllen = run.back_size + put_control(
            <char*> message.msg_control + run.back_size, SOL_UDP, UDP_SEGMENT,
            &segment, sizeof(segment),
        )
    if <char*> piece.iov_base + piece.iov_len == reply:
        piece.iov_len += size
        return
    piece += 1
    piece.iov_base = reply
    piece.iov_len = size
    batch.pieces += 1
    message.msg_iovlen += 1


cdef inline void start(Batch* batch, const Arrival* arrival, char* reply, size_t size) noexcept:
    """Make a reply the first of a send."""
    cdef Run* run = &batch.runs[batch.sends]
    cdef msghdr* message = &batch.replies[batch.sends].msg_hdr
    cdef iovec* piece = &batch.parts[batch.pieces]
    run.replies = 1
    run.size = run.bytes = size
    run.last = arrival.overhead and size + arrival.overhead > MTU
    run.back_size = arrival.back_size
    piece.iov_base = reply
    piece.iov_len = size
    message.msg_iov = piece
    message.msg_iovlen = 1
    message.msg_name = arrival.name
    message.msg_namelen = arrival.name_size
    message.msg_controllen = arrival.back_size
    if arrival.back_size:
        memcpy(message.msg_control, arrival.back, arrival.back_size)
    batch.pieces += 1
    batch.sends += 1


cdef inline bint are_alike(const void* one, const void* other, size_t size) noexcept:
    """Whether these are the same address."""
    cdef uint64_t first, second
    if size != sizeof(sockaddr_in):
        return memcmp(one, other, size) == 0
    # Family, port and address; the rest of it is zeros.
    memcpy(&first, one, sizeof(first))
    memcpy(&second, other, sizeof(second))
    return first == second


cdef inline bint is_loopback(const sockaddr_in* source) noexcept:
    """Whether it is an IPv4 address of this host, which needs no closer look."""
    return source.sin_family == AF_INET and (<const uint8_t*> &source.sin_addr)[0] == 127


cdef int refusal(Arrival* arrival, int own_port) noexcept:
    """Why nothing from this source is answered; notes what a packet's headers take."""
    cdef const sockaddr_in* source = <const sockaddr_in*> arrival.name
    cdef const uint8_t* inet = <const uint8_t*> &source.sin_addr
    cdef const uint8_t* inet6 = <const uint8_t*> &(<const sockaddr_in6*> source).sin6_addr
    cdef bint is_inet = (<const sockaddr_storage*> source).ss_family == AF_INET
    cdef int port = ntohs(source.sin_port)    # both kinds of address have it in the same place
    cdef int i
    if not is_inet and memcmp(inet6, MAPPED, 12) == 0:
        inet = inet6 + 12
        is_inet = True
    if inet[0] == 127 if is_inet else memcmp(inet6, LOOPBACK6, 16) == 0:
        return ANSWERED
    arrival.overhead = OVERHEAD4 if is_inet else OVERHEAD6
    if port < PRIVILEGED:
        return PRIVILEGED_PORT
    if port == own_port:
        return OWN_PORT
    for i in range(5):
        if port == answering[i]:
            return ANSWERING_PORT
    return arrival.group


cdef void note_contacted(Arrival* arrival, cmsghdr* control) noexcept:
    """Have replies leave from the IPv4 address that was contacted."""
    cdef in_pktinfo info
    cdef const uint8_t* target = <const uint8_t*> &info.ipi_addr
    memcpy(&info, CMSG_DATA(control), sizeof(info))
    arrival.group = (
        MULTICAST if target[0] >> 4 == 0xe
        else BROADCAST if memcmp(target, &info.ipi_spec_dst, 4)
        else ANSWERED
    )
    info.ipi_ifindex = 0
    memset(&info.ipi_addr, 0, sizeof(info.ipi_addr))
    arrival.back_size = put_control(arrival.back, IPPROTO_IP, IP_PKTINFO, &info, sizeof(info))


cdef void note_contacted6(Arrival* arrival, cmsghdr* control) noexcept:
    """Have replies leave from the IPv6 address that was contacted."""
    cdef in6_pktinfo info
    cdef const uint8_t* target = <const uint8_t*> &info.ipi6_addr
    memcpy(&info, CMSG_DATA(control), sizeof(info))
    if target[0] == 0xff:
        arrival.group = MULTICAST
        return
    # A link-local address (fe80::/10) needs its interface; else the route decides.
    if target[0] != 0xfe or target[1] & 0xc0 != 0x80:
        info.ipi6_ifindex = 0
    arrival.back_size = put_control(
        arrival.back, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof(info)
    )


cdef size_t put_control(
    char* place, int level, int kind, const void* data, size_t size
) noexcept:
    """Write a control message; the bytes that it takes."""
    cdef cmsghdr* control = <cmsghdr*> place
    control.cmsg_level = level
    control.cmsg_type = kind
    control.cmsg_len = CMSG_LEN(size)
    memcpy(CMSG_DATA(control), data, size)
    return CMSG_SPACE(size)


call_directly(Datagrams)
