"""TCP, compiled: what `fastecho._pure.stream` specifies.

System calls are made here, with the GIL held: none of them blocks. A stream at rest owns no buffer;
what it must keep while the kernel takes no more is one block, replies first, then input.
"""

from cython cimport final, no_gc
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport EAGAIN, ECONNRESET, EINTR, ENOBUFS, ENOMEM, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec
from posix.unistd cimport close as close_fd

from fastecho._native.calls cimport (
    AF_INET6,
    AF_UNIX,
    MSG_NOSIGNAL,
    SHUT_WR,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    accept4,
    c_send,
    getpeername,
    inet_ntop,
    ntohl,
    ntohs,
    recv,
    shutdown,
    sockaddr,
    sockaddr_in,
    sockaddr_in6,
    sockaddr_storage,
    socklen_t,
)
from fastecho._native.framing cimport Codec
from fastecho._native.selector cimport (
    EVENT_READ,
    EVENT_WRITE,
    Handler,
    SelectorCore,
    call_directly,
)
from fastecho._native.stamping cimport Echo, Stamper, may_be_lone, stamp, stamp_tail

from os import fsdecode, strerror

from fastecho import addresses
from fastecho.limits import (
    ACCEPT_BUDGET,
    ACCEPT_CROWD,
    FRAME_TIMEOUT,
    IDLE_TIMEOUT,
    LINGER_TIMEOUT,
    UNFINISHED_AFTER,
    UNREAD_AFTER,
)

cdef enum:
    READING, WRITING, LINGERING, CLOSED

cdef enum:
    HOST = 46    # bytes for an IPv6 address and a NUL (INET6_ADDRSTRLEN)

cdef int BUDGET = ACCEPT_BUDGET
cdef int CROWD = ACCEPT_CROWD
cdef double UNFINISHED = UNFINISHED_AFTER
cdef double UNREAD = UNREAD_AFTER
cdef frozenset passing = addresses.PASSING


@final
cdef class Shared:
    """What all streams of a loop share."""

    def __cinit__(self, size_t receive, size_t send, Py_ssize_t max_connections=2**31 - 1):
        self.receive = receive
        self.send = send
        self.max_connections = max_connections
        self.resting = []
        self.receive_buffer = <char*> PyMem_Malloc(receive)
        self.send_buffer = <char*> PyMem_Malloc(send)
        if self.receive_buffer == NULL or self.send_buffer == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.receive_buffer)
        PyMem_Free(self.send_buffer)

    def wake(self):
        """Have the listeners that rest try again."""
        cdef list resting = self.resting
        self.resting = []
        for listener in resting:
            (<Listener> listener).wake()


cdef class Listener(Handler):
    """A listening socket on a selector; its streams share what it holds."""

    def __cinit__(
        self, sock, SelectorCore selector not None, Echo echo not None, Shared shared not None,
        owner, bint verbose=False, bint show_cuts=False, double idle_timeout=IDLE_TIMEOUT,
        double frame_timeout=FRAME_TIMEOUT, double linger_timeout=LINGER_TIMEOUT,
    ):
        self.sock = sock
        self.fd = sock.fileno()
        self.selector = selector
        self.echo = echo
        self.shared = shared
        self.owner = owner
        self.verbose = verbose
        self.show_cuts = show_cuts
        self.idle_timeout = idle_timeout
        self.frame_timeout = frame_timeout
        self.linger_timeout = linger_timeout
        self.swept = monotonic()
        self.otherwise = {}
        selector.add(self.fd, self, EVENT_READ, self)

    def fileno(self):
        """The listening descriptor; -1 once closed."""
        return self.fd

    @property
    def closed(self):
        """Connections that have ended, by reason."""
        cdef dict closed = dict(self.otherwise)
        if self.ended:
            closed["eof"] = self.ended
        if self.reset:
            closed["reset"] = self.reset
        return closed

    @property
    def streams(self):
        """The connections that there are."""
        return [
            data for data in self.selector.datas
            if isinstance(data, Stream) and (<Stream> data).listener is self
        ]

    cdef int handle(self, int mask) except -1:
        """Accept one connection or, while many descriptors are ready, what waits, to a budget."""
        cdef sockaddr_storage address
        cdef socklen_t length
        cdef int fd, left = BUDGET
        while left:
            if self.shared.open >= self.shared.max_connections:
                return self.cannot_accept(0)
            length = sizeof(address)
            fd = accept4(self.fd, <sockaddr*> &address, &length, SOCK_NONBLOCK | SOCK_CLOEXEC)
            if fd >= 0:
                left -= 1
                if not self.adopt(fd, &address):
                    return 0
            elif errno == EINTR:
                PyErr_CheckSignals()
            elif errno == EAGAIN:
                return 0
            elif errno in passing:
                left -= 1
            else:
                return self.cannot_accept(errno)
        return 0

    cdef bint adopt(self, int fd, const sockaddr_storage* address) except -1:
        """Serve a connection; if that cannot be, it is closed. Whether to look for another."""
        cdef Stream stream
        try:
            stream = Stream.__new__(Stream)
        except MemoryError:
            close_fd(fd)
            self.cannot_accept(ENOMEM)
            return False
        stream.fd = fd
        stream.listener = self
        memcpy(stream.peer, address, sizeof(stream.peer))
        try:
            stream.codec = self.echo.codec.fresh()
            if self.echo.stamper.shows_peer:
                stream.shown_peer = addresses.peer(stream.address)
            self.selector.add(fd, stream, EVENT_READ, stream)
        except OSError as error:
            self.cannot_accept(error.errno)
            return False
        except MemoryError:
            self.cannot_accept(ENOMEM)
            return False
        self.accepted += 1
        self.open += 1
        self.shared.open += 1
        if self.verbose:
            self.owner.connected(stream)
        return self.selector.ready >= CROWD

    cdef int cannot_accept(self, int number) except -1:
        self.rest()
        self.shared.resting.append(self)
        self.owner.resting(self, OSError(number, strerror(number)) if number else None)
        return 0

    def sweep(self):
        """End the streams whose time is over, and tell the owner of those that are stuck."""
        cdef double now = monotonic(), elapsed = now - self.swept
        cdef int fd
        self.swept = now
        for fd in range(self.selector.capacity):
            data = self.selector.datas[fd]
            if isinstance(data, Stream) and (<Stream> data).listener is self:
                (<Stream> data).sweep_at(now, elapsed)

    def rest(self):
        """Accept nothing until `wake`: the next wait in the backlog."""
        if not self.is_resting:
            self.is_resting = True
            self.selector.remove(self.fd)

    def wake(self):
        """Accept again; nothing once closed. If that cannot be, go on resting."""
        if self.is_resting and self.fd >= 0:
            try:
                self.selector.add(self.fd, self, EVENT_READ, self)
            except OSError:
                self.shared.resting.append(self)
            else:
                self.is_resting = False

    def close(self):
        """Stop listening; the streams go on."""
        self.rest()
        self.fd = -1
        self.sock.close()


# Open connections are what the collector would look through, one by one, and find nothing: a stream
# is dropped when it is closed, which its server does. Untracked, it is 16 bytes smaller.
@no_gc
@final
cdef class Stream(Handler):
    """One connection: reads, answers, keeps what could not be sent. Made by its listener."""

    def __cinit__(self):
        self.fd = -1
        self.shown_peer = b""

    def __init__(self, *arguments, **others):
        raise TypeError("a stream is made by its listener")

    def __dealloc__(self):
        if self.fd >= 0:
            close_fd(self.fd)
        PyMem_Free(self.kept)

    def fileno(self):
        """The connection's descriptor; -1 once closed."""
        return self.fd

    @property
    def address(self):
        """Of the peer, as `socket` gives it."""
        cdef sockaddr_storage address
        cdef socklen_t length = sizeof(address)
        memcpy(&address, self.peer, sizeof(self.peer))    # which is not aligned
        if address.ss_family != AF_UNIX:
            return address_of(&address, sizeof(self.peer))
        if getpeername(self.fd, <sockaddr*> &address, &length) < 0:
            return ""
        return address_of(&address, length)

    @property
    def closed(self):
        """Whether the descriptor is."""
        return self.state == CLOSED

    @property
    def messages(self):
        """Messages so far."""
        return self.codec.messages

    @property
    def pending(self):
        """Bytes held of the unfinished message."""
        return self.codec.held_length

    @property
    def unsent(self):
        """Bytes of replies that the kernel did not take yet."""
        return self.unsent_bytes()

    def drain(self):
        """Answer what one `recv` brings; close if that is nothing."""
        try:
            if self.state == READING and not self.receive() and self.state == READING:
                self.shut("stopped")
        except MemoryError:
            self.shut("enomem")
        return self.state in (READING, CLOSED)

    def close(self):
        """End the connection, whatever is left to send."""
        self.shut("stopped")

    def sweep(self, double now, double elapsed):
        """Look for timeouts."""
        self.sweep_at(now, elapsed)

    cdef int sweep_at(self, double now, double elapsed) except -1:
        cdef Listener listener = self.listener
        cdef Codec codec = self.codec
        cdef uint64_t came = codec.offset + codec.held_length
        cdef uint32_t unsent = <uint32_t> self.unsent_bytes()
        if self.state == LINGERING:
            return self.shut("linger_timeout") if now >= self.unfinished else 0
        # Counted from 1, so that the first sweep sees a change.
        if came + 1 == self.seen_in and unsent == self.seen_unsent:
            self.still += elapsed
        else:
            self.still = 0
        self.seen_in = came + 1
        self.seen_unsent = unsent
        if listener.idle_timeout and self.still >= listener.idle_timeout:
            return self.expire("idle_timeout")
        if unsent:
            if self.still >= UNREAD and not self.told_unread:
                self.told_unread = True
                listener.owner.unread(self)
        elif not codec.held_length:
            self.has_frame = False
        elif not self.has_frame or self.frame != <uint32_t> codec.messages:
            self.has_frame = True
            self.frame = <uint32_t> codec.messages
            self.unfinished = 0
        else:
            self.unfinished += elapsed
            return self.sweep_frame()
        return 0

    cdef int sweep_frame(self) except -1:
        cdef Listener listener = self.listener
        if listener.frame_timeout and self.unfinished >= listener.frame_timeout:
            return self.expire("frame_timeout")
        if self.unfinished >= UNFINISHED and not self.told_unfinished:
            self.told_unfinished = True
            listener.owner.unfinished(self)
        return 0

    cdef int expire(self, str reason) except -1:
        self.listener.owner.expired(self, reason)
        return self.shut(reason)

    cdef int handle(self, int mask) except -1:
        """The descriptor is ready: go on with what it was waited for."""
        if self.state == READING:
            return self.receive()
        if self.state == WRITING:
            self.resume()
        elif self.state == LINGERING:
            self.discard()
        return 0

    cdef int exhausted(self) except -1:
        """There was no memory for it."""
        return self.shut("enomem")

    cdef inline bint receive(self) except -1:
        """One `recv` and its replies; whether the next may bring anything."""
        cdef char* buffer = self.listener.shared.receive_buffer
        cdef char* replies = self.listener.shared.send_buffer
        cdef Stamper stamper = self.listener.echo.stamper
        cdef ssize_t count
        cdef int64_t now_ns
        cdef size_t written = 0
        cdef int number
        while True:
            count = recv(self.fd, buffer, self.listener.shared.receive, 0)
            if count >= 0:
                break
            number = errno
            if number != EINTR:
                self.not_done(number)
                return number != EAGAIN
            PyErr_CheckSignals()
        now_ns = read_clock(stamper)
        if count == 0:
            self.at_end(now_ns)
            return True
        self.listener.bytes_in += <uint64_t> count
        if self.listener.show_cuts:
            self.listener.owner.received(self, buffer[:count])
        # Most receives bring one short message and no more.
        if may_be_lone(stamper, <size_t> count, self.listener.shared.send, now_ns):
            written = self.codec.lone(
                buffer, <size_t> count, replies, stamper.text, stamper.text_length
            )
        if written:
            self.listener.messages += 1
            self.send(replies, written, NULL, 0, now_ns)
        else:
            self.answer(buffer, <size_t> count, now_ns)
        return True

    cdef int answer(self, const char* data, size_t size, int64_t now_ns) except -1:
        """Cut, stamp and send piece by piece; keep what is left when the kernel takes no more."""
        cdef Listener listener = self.listener
        cdef char* replies = listener.shared.send_buffer
        cdef size_t consumed, written
        cdef uint64_t before
        while size:
            before = self.codec.messages
            stamp(
                self.codec, listener.echo.stamper, self.shown_peer, data, size, replies,
                listener.shared.send, now_ns, &consumed, &written,
            )
            data += consumed
            size -= consumed
            listener.messages += self.codec.messages - before
            if not self.send(replies, written, data, size, now_ns):
                return self.note_fault()
        return self.settle()

    cdef int at_end(self, int64_t now_ns) except -1:
        """The peer has sent all: the tail's reply, then the end."""
        cdef Shared shared = self.listener.shared
        cdef uint64_t before = self.codec.messages
        cdef size_t written
        self.ended = True
        stamp_tail(
            self.codec, self.listener.echo.stamper, self.shown_peer, shared.send_buffer,
            shared.send, now_ns, &written,
        )
        self.listener.messages += self.codec.messages - before
        if self.send(shared.send_buffer, written, NULL, 0, now_ns):
            return self.settle()
        return self.note_fault()

    cdef int note_fault(self) except -1:
        error = self.codec.error
        if error is not None and not self.counted:
            self.note(error.reason)
            self.listener.owner.faulted(self, error)
        return 0

    cdef inline bint send(
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
        cdef Kept* kept = <Kept*> PyMem_Malloc(sizeof(Kept) + size + rest_size)
        if kept == NULL:
            raise MemoryError
        kept.sent = 0
        kept.replies = size
        kept.input = rest_size
        kept.now_ns = now_ns
        memcpy(kept.data, replies, size)
        if rest_size:
            memcpy(kept.data + size, rest, rest_size)
        PyMem_Free(self.kept)
        self.kept = kept
        return 0

    cdef size_t unsent_bytes(self) noexcept:
        return self.kept.replies - self.kept.sent if self.kept != NULL else 0

    cdef int resume(self) except -1:
        """The kernel takes more."""
        cdef Kept* kept = self.kept
        cdef ssize_t sent
        while True:
            sent = c_send(self.fd, kept.data + kept.sent, kept.replies - kept.sent, MSG_NOSIGNAL)
            if sent >= 0:
                break
            if errno != EINTR:
                return self.not_done(errno)
            PyErr_CheckSignals()
        self.listener.bytes_out += <uint64_t> sent
        kept.sent += <size_t> sent
        if kept.sent < kept.replies:
            return 0
        # The input is cut from where it is; what is left of it goes to a block of its own.
        self.kept = NULL
        try:
            self.answer(kept.data + kept.replies, kept.input, kept.now_ns)
        finally:
            PyMem_Free(kept)
        return 0

    cdef inline int settle(self) except -1:
        """Everything that came is answered and sent."""
        if self.codec.error is None and self.state == READING and not self.ended:
            return 0
        self.note_fault()
        if self.ended:
            return self.shut("eof")
        if self.codec.error is not None:
            return self.linger()
        return self.watch(READING, EVENT_READ)

    cdef int linger(self) except -1:
        if shutdown(self.fd, SHUT_WR) < 0:
            return self.shut(addresses.reason(errno))
        self.unfinished = monotonic() + self.listener.linger_timeout
        return self.watch(LINGERING, EVENT_READ)

    cdef int discard(self) except -1:
        cdef Shared shared = self.listener.shared
        cdef ssize_t count
        while True:
            count = recv(self.fd, shared.receive_buffer, shared.receive, 0)
            if count == 0:
                return self.shut("eof")
            if count > 0:
                return 0
            if errno != EINTR:
                return self.not_done(errno)
            PyErr_CheckSignals()

    cdef int watch(self, int state, int events) except -1:
        """Wait for something else; if that cannot be, the connection is over."""
        if (state == WRITING) != (self.state == WRITING):
            try:
                self.listener.selector.change(self.fd, events)
            except OSError as error:
                return self.shut(addresses.reason(error.errno))
        self.state = state
        return 0

    cdef int not_done(self, int number) except -1:
        """A call did not succeed: the next turn tries again, or the connection is over."""
        if number == ECONNRESET:
            return self.shut("reset")
        if number not in (EAGAIN, ENOBUFS, ENOMEM):
            return self.shut(addresses.reason(number))
        return 0

    cdef inline int note(self, str reason) except -1:
        cdef Listener listener = self.listener
        self.counted = True
        if reason == "eof":
            listener.ended += 1
        elif reason == "reset":
            listener.reset += 1
        else:
            listener.otherwise[reason] = listener.otherwise.get(reason, 0) + 1
        return 0

    cdef int shut(self, str reason) except -1:
        cdef int fd = self.fd
        if self.state == CLOSED:
            return 0
        if self.counted:    # only a fault was, before this
            reason = self.codec.error.reason
        else:
            self.note(reason)
        self.state = CLOSED
        self.listener.selector.drop(fd)
        PyMem_Free(self.kept)
        self.kept = NULL
        self.listener.open -= 1
        self.listener.shared.open -= 1
        try:
            if self.listener.verbose:
                self.listener.owner.closed(self, reason)
        finally:
            self.fd = -1
            close_fd(fd)
        if self.listener.shared.resting:
            self.listener.shared.wake()
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


cdef double monotonic() noexcept:
    cdef timespec clock
    clock_gettime(CLOCK_MONOTONIC, &clock)
    return clock.tv_sec + clock.tv_nsec / 1e9


cdef object address_of(const sockaddr_storage* address, size_t length):
    """An address as `socket` gives it: of IPv4, of IPv6, or a UNIX path."""
    cdef char host[HOST]
    cdef const sockaddr_in* inet = <const sockaddr_in*> address
    cdef const sockaddr_in6* inet6 = <const sockaddr_in6*> address
    cdef bint is_inet6 = address.ss_family == AF_INET6
    cdef size_t path_start = sizeof(address.ss_family)
    cdef bytes path
    cdef const void* number
    if address.ss_family == AF_UNIX:
        path = (<const char*> address)[path_start:max(length, path_start)]
        if path[:1] == b"\0":    # an abstract name; unix(7)
            return path
        return fsdecode(path.partition(b"\0")[0])
    number = <const void*> &inet6.sin6_addr if is_inet6 else <const void*> &inet.sin_addr
    if inet_ntop(address.ss_family, number, host, HOST) == NULL:
        raise ValueError(f"not an IP address: family {address.ss_family}")
    if is_inet6:
        return (
            host.decode(), ntohs(inet6.sin6_port), ntohl(inet6.sin6_flowinfo), inet6.sin6_scope_id
        )
    return host.decode(), ntohs(inet.sin_port)


call_directly(Listener)
call_directly(Stream)
