"""TCP, compiled: what `fastecho._pure.stream` specifies.

System calls are made here, with the GIL held: none of them blocks. A stream at rest owns no buffer;
what it must keep while the kernel takes no more is one block, replies first, then input.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, ENOBUFS, ENOMEM, errno
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec
from posix.unistd cimport close as close_fd

from fastecho._native.selector cimport (
    EVENT_READ,
    EVENT_WRITE,
    Handler,
    SelectorCore,
    call_directly,
)
from fastecho._native.stamping cimport Echo, Stamper

from os import strerror

from fastecho import addresses
from fastecho.limits import ACCEPT_BUDGET

cdef extern from "<sys/socket.h>" nogil:
    enum:
        AF_INET
        AF_INET6
        MSG_NOSIGNAL
        SHUT_WR
        SOCK_CLOEXEC
        SOCK_NONBLOCK
    int accept4(int fd, sockaddr* address, socklen_t* length, int flags)
    ssize_t recv(int fd, void* buffer, size_t size, int flags)
    ssize_t c_send "send"(int fd, const void* buffer, size_t size, int flags)
    int shutdown(int fd, int how)

cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        pass
    struct in6_addr:
        pass
    struct sockaddr_in:
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        uint32_t sin6_scope_id
    uint16_t ntohs(uint16_t value)
    uint32_t ntohl(uint32_t value)

cdef extern from "<netdb.h>" nogil:
    enum:
        NI_NUMERICHOST
    int getnameinfo(
        const sockaddr* address, socklen_t length, char* host, socklen_t host_size,
        char* service, socklen_t service_size, int flags,
    )

cdef enum:
    READING, WRITING, LINGERING, CLOSED

cdef enum:
    HOST = 64    # bytes for an IPv6 address, its scope and a NUL: 45 + 1 + 16 at most

cdef int BUDGET = ACCEPT_BUDGET
cdef frozenset passing = addresses.PASSING


cdef class Buffers:
    """The receive and the send buffer of a loop."""

    def __cinit__(self, size_t receive, size_t send):
        self.receive = receive
        self.send = send
        self.receive_buffer = <char*> malloc(receive)
        self.send_buffer = <char*> malloc(send)
        if self.receive_buffer == NULL or self.send_buffer == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.receive_buffer)
        free(self.send_buffer)


cdef class Listener(Handler):
    """A listening socket on a selector; its streams share what it holds."""

    def __cinit__(
        self, sock, SelectorCore selector not None, Echo echo not None, Buffers buffers not None,
        owner, bint verbose=False,
    ):
        self.sock = sock
        self.fd = sock.fileno()
        self.selector = selector
        self.echo = echo
        self.buffers = buffers
        self.owner = owner
        self.verbose = verbose
        self.closed = {}
        self.is_resting = True
        self.wake()

    def fileno(self):
        """The listening descriptor; -1 once closed."""
        return self.fd

    @property
    def streams(self):
        """The connections that there are."""
        return [
            data for data in self.selector.datas
            if isinstance(data, Stream) and (<Stream> data).listener is self
        ]

    cdef int handle(self, int mask) except -1:
        """Accept what waits, within a budget."""
        cdef sockaddr_storage address
        cdef socklen_t length
        cdef int fd, left = BUDGET
        while left:
            length = sizeof(address)
            fd = accept4(self.fd, <sockaddr*> &address, &length, SOCK_NONBLOCK | SOCK_CLOEXEC)
            if fd >= 0:
                left -= 1
                self.adopt(fd, &address)
            elif errno == EINTR:
                PyErr_CheckSignals()
            elif errno == EAGAIN:
                return 0
            elif errno in passing:
                left -= 1
            else:
                return self.cannot_accept(errno)
        return 0

    cdef int adopt(self, int fd, const sockaddr_storage* address) except -1:
        cdef Stream stream = Stream.__new__(Stream)
        stream.fd = fd
        stream.listener = self
        memcpy(stream.peer, address, sizeof(stream.peer))
        try:
            stream.echo = self.echo.fresh(
                addresses.peer(address_of(address)) if self.echo.stamper.shows_peer else b""
            )
            self.selector.add(fd, stream, EVENT_READ, stream)
        except OSError as error:
            return self.cannot_accept(error.errno)
        except MemoryError:
            return self.cannot_accept(ENOMEM)
        self.accepted += 1
        self.open += 1
        if self.verbose:
            self.owner.connected(stream)
        return 0

    cdef int cannot_accept(self, int number) except -1:
        self.rest()
        self.owner.resting(self, OSError(number, strerror(number)))
        return 0

    def rest(self):
        """Accept nothing until `wake`: the next wait in the backlog."""
        if not self.is_resting:
            self.is_resting = True
            self.selector.unregister(self)

    def wake(self):
        """Accept again; nothing once closed."""
        if self.is_resting and self.fd >= 0:
            self.selector.add(self.fd, self, EVENT_READ, self)
            self.is_resting = False

    def close(self):
        """Stop listening; the streams go on."""
        self.rest()
        self.fd = -1
        self.sock.close()


cdef class Stream(Handler):
    """One connection: reads, answers, keeps what could not be sent. Made by its listener."""

    def __cinit__(self):
        self.fd = -1
        self.reason = ""

    def __dealloc__(self):
        if self.fd >= 0:
            close_fd(self.fd)
        free(self.kept.data)

    def fileno(self):
        """The connection's descriptor; -1 once closed."""
        return self.fd

    @property
    def address(self):
        """Of the peer, as `socket` gives it."""
        return address_of(<const sockaddr_storage*> self.peer)

    @property
    def closed(self):
        """Whether the descriptor is."""
        return self.state == CLOSED

    @property
    def messages(self):
        """Messages so far."""
        return self.echo.codec.messages

    @property
    def pending(self):
        """Bytes held of the unfinished message."""
        return self.echo.codec.held_length

    @property
    def unsent(self):
        """Bytes of replies that the kernel did not take yet."""
        return self.kept.replies - self.kept.sent

    def drain(self):
        """Answer what one `recv` brings; close if that is nothing."""
        if self.state == READING and not self.receive() and self.state == READING:
            self.shut("stopped")
        return self.state in (READING, CLOSED)

    def close(self):
        """End the connection, whatever is left to send."""
        self.shut("stopped")

    cdef int handle(self, int mask) except -1:
        """The descriptor is ready: go on with what it was waited for."""
        try:
            if self.state == READING:
                self.receive()
            elif self.state == WRITING:
                self.resume()
            elif self.state == LINGERING:
                self.discard()
        except MemoryError:
            self.shut("enomem")
        return 0

    cdef bint receive(self) except -1:
        """One `recv` and its replies; whether anything came."""
        cdef Listener listener = self.listener
        cdef Buffers buffers = listener.buffers
        cdef ssize_t count
        cdef int64_t now_ns
        while True:
            count = recv(self.fd, buffers.receive_buffer, buffers.receive, 0)
            if count >= 0:
                break
            if errno != EINTR:
                self.not_done(errno)
                return False
            PyErr_CheckSignals()
        now_ns = read_clock(listener.echo.stamper)
        if count:
            listener.bytes_in += <uint64_t> count
            self.answer(buffers.receive_buffer, <size_t> count, now_ns)
        else:
            self.at_end(now_ns)
        return True

    cdef int answer(self, const char* data, size_t size, int64_t now_ns) except -1:
        """Cut, stamp and send piece by piece; keep what is left when the kernel takes no more."""
        cdef Buffers buffers = self.listener.buffers
        cdef size_t consumed, written
        cdef uint64_t before
        while size:
            before = self.echo.codec.messages
            self.echo.stamp(
                data, size, buffers.send_buffer, buffers.send, now_ns, &consumed, &written
            )
            data += consumed
            size -= consumed
            self.listener.messages += self.echo.codec.messages - before
            if not self.send(buffers.send_buffer, written, data, size, now_ns):
                return self.note_fault()
        self.note_fault()
        return self.settle()

    cdef int at_end(self, int64_t now_ns) except -1:
        """The peer has sent all: the tail's reply, then the end."""
        cdef Buffers buffers = self.listener.buffers
        cdef uint64_t before = self.echo.codec.messages
        cdef size_t written
        self.ended = True
        self.echo.end_into(buffers.send_buffer, buffers.send, now_ns, &written)
        self.listener.messages += self.echo.codec.messages - before
        if self.send(buffers.send_buffer, written, NULL, 0, now_ns):
            self.note_fault()
            return self.settle()
        return self.note_fault()

    cdef int note_fault(self) except -1:
        error = self.echo.codec.error
        if error is not None and not self.reason:
            self.note(error.reason)
            self.listener.owner.faulted(self, error)
        return 0

    cdef bint send(
        self, const char* replies, size_t size, const char* rest, size_t rest_size, int64_t now_ns
    ) except -1:
        """Send; keep what the kernel did not take, and wait for it. Whether it took all."""
        cdef ssize_t sent = 0
        if size:
            while True:
                sent = c_send(self.fd, replies, size, MSG_NOSIGNAL)
                if sent >= 0:
                    break
                if errno != EINTR:
                    self.not_done(errno)
                    if self.state == CLOSED:
                        return False
                    sent = 0
                    break
                PyErr_CheckSignals()
            self.listener.bytes_out += <uint64_t> sent
        if <size_t> sent == size:
            return True
        self.keep(replies + sent, size - <size_t> sent, rest, rest_size, now_ns)
        self.watch(WRITING, EVENT_WRITE)
        return False

    cdef int keep(
        self, const char* replies, size_t size, const char* rest, size_t rest_size, int64_t now_ns
    ) except -1:
        """Keep replies, and input not yet cut, in one block; both may lie in the present one."""
        cdef char* block = <char*> malloc(size + rest_size)
        if block == NULL:
            raise MemoryError
        memcpy(block, replies, size)
        if rest_size:
            memcpy(block + size, rest, rest_size)
        free(self.kept.data)
        self.kept.data = block
        self.kept.sent = 0
        self.kept.replies = size
        self.kept.input = rest_size
        self.kept.now_ns = now_ns
        return 0

    cdef int resume(self) except -1:
        """The kernel takes more."""
        cdef Kept kept = self.kept
        cdef ssize_t sent
        while True:
            sent = c_send(self.fd, kept.data + kept.sent, kept.replies - kept.sent, MSG_NOSIGNAL)
            if sent >= 0:
                break
            if errno != EINTR:
                return self.not_done(errno)
            PyErr_CheckSignals()
        self.listener.bytes_out += <uint64_t> sent
        self.kept.sent += <size_t> sent
        if self.kept.sent < self.kept.replies:
            return 0
        # The block's input is cut from where it is; what is left of it goes to a new block.
        self.kept.data = NULL
        self.kept.sent = self.kept.replies = self.kept.input = 0
        try:
            self.answer(kept.data + kept.replies, kept.input, kept.now_ns)
        finally:
            free(kept.data)
        return 0

    cdef int settle(self) except -1:
        """Everything that came is answered and sent."""
        if self.ended:
            return self.shut("eof")
        if self.echo.codec.error is not None:
            return self.linger()
        return self.watch(READING, EVENT_READ)

    cdef int linger(self) except -1:
        if shutdown(self.fd, SHUT_WR) < 0:
            return self.shut(addresses.reason(errno))
        return self.watch(LINGERING, EVENT_READ)

    cdef int discard(self) except -1:
        cdef Buffers buffers = self.listener.buffers
        cdef ssize_t count
        while True:
            count = recv(self.fd, buffers.receive_buffer, buffers.receive, 0)
            if count == 0:
                return self.shut("eof")
            if count > 0:
                return 0
            if errno != EINTR:
                return self.not_done(errno)
            PyErr_CheckSignals()

    cdef int watch(self, int state, int events) except -1:
        if (state == WRITING) != (self.state == WRITING):
            self.listener.selector.change(self.fd, events)
        self.state = state
        return 0

    cdef int not_done(self, int number) except -1:
        """A call did not succeed: the next turn tries again, or the connection is over."""
        if number not in (EAGAIN, ENOBUFS, ENOMEM):
            self.shut(addresses.reason(number))
        return 0

    cdef int note(self, str reason) except -1:
        self.reason = reason
        self.listener.closed[reason] = self.listener.closed.get(reason, 0) + 1
        return 0

    cdef int shut(self, str reason) except -1:
        cdef int fd = self.fd
        if self.state == CLOSED:
            return 0
        if not self.reason:
            self.note(reason)
        self.state = CLOSED
        self.listener.selector.remove(fd)
        self.fd = -1
        close_fd(fd)
        free(self.kept.data)
        self.kept.data = NULL
        self.kept.sent = self.kept.replies = self.kept.input = 0
        self.listener.open -= 1
        if self.listener.verbose:
            self.listener.owner.closed(self, self.reason)
        return 0


cdef int64_t read_clock(Stamper stamper) noexcept:
    """The time of what was just received; keeps the stamper's monotonic clock up to date."""
    cdef timespec clock
    cdef int64_t now_ns
    clock_gettime(CLOCK_REALTIME, &clock)
    now_ns = <int64_t> clock.tv_sec * 1_000_000_000 + clock.tv_nsec
    if stamper.shows_mono:
        clock_gettime(CLOCK_MONOTONIC, &clock)
        stamper.mono_offset = <int64_t> clock.tv_sec * 1_000_000_000 + clock.tv_nsec - now_ns
    return now_ns


cdef object address_of(const sockaddr_storage* address):
    """An IPv4 or IPv6 address as `socket` gives it."""
    cdef char host[HOST]
    cdef const sockaddr_in* inet = <const sockaddr_in*> address
    cdef const sockaddr_in6* inet6 = <const sockaddr_in6*> address
    cdef bint is_inet6 = address.ss_family == AF_INET6
    cdef socklen_t length = sizeof(sockaddr_in6) if is_inet6 else sizeof(sockaddr_in)
    if getnameinfo(<const sockaddr*> address, length, host, HOST, NULL, 0, NI_NUMERICHOST):
        raise ValueError(f"not an IP address: family {address.ss_family}")
    if is_inet6:
        return (
            host.decode(), ntohs(inet6.sin6_port), ntohl(inet6.sin6_flowinfo), inet6.sin6_scope_id
        )
    return host.decode(), ntohs(inet.sin_port)


call_directly(Listener)
call_directly(Stream)
