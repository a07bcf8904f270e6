"""The load generator's engine, compiled: what `fastecho._pure.generator` specifies.

A message is written straight into the send buffer and its reply compared in place, with the last
right prefix. Where all messages are of one kind, only their numbers are written anew. Python is
asked about what is not as expected.
"""

from cython cimport final
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.errno cimport EAGAIN, EINPROGRESS, EINTR, ENOBUFS, ENOMEM, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close as close_fd

from fastecho._native.calls cimport (
    AF_UNIX,
    CMSG_DATA,
    CMSG_FIRSTHDR,
    CMSG_LEN,
    CMSG_NXTHDR,
    CMSG_SPACE,
    IPPROTO_TCP,
    MSG_NOSIGNAL,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    SOL_UDP,
    SO_LINGER,
    TCP_NODELAY,
    UDP_GRO,
    UDP_SEGMENT,
    c_send,
    c_socket,
    cmsghdr,
    connect,
    getpeername,
    iovec,
    mmsghdr,
    msghdr,
    recv,
    recvmmsg,
    sendmmsg,
    setsockopt,
    sockaddr,
)
from fastecho._native.selector cimport (
    EVENT_READ,
    EVENT_WRITE,
    Handler,
    SelectorCore,
    call_directly,
)

from fastecho import addresses
from fastecho.limits import DATAGRAM_BATCH, MAX_DATAGRAM, RECEIVE_BUFFER, SEND_BUFFER

from fastecho._pure.generator import Kind, WrongReply

cdef extern from * nogil:
    int __builtin_clzll(unsigned long long value)

cdef extern from "same.h" nogil:
    bint same_bytes(const char* a, const char* b, size_t size)

cdef enum:
    DIGITS = 8          # as NUMBER in the pure twin
    NO_DIGIT = 255
    REMEMBERED = 65536  # as WINDOW there
    MOST_DUE = 65536    # as CATCH_UP there
    HALF_BITS = 10      # as HALF there
    SLOTS = (64 - HALF_BITS) << HALF_BITS
    BATCH = 64          # limits.DATAGRAM_BATCH: array sizes are known when compiled
    LARGEST = 65535     # limits.MAX_DATAGRAM
    CONTROL = 64        # bytes for one control message with an int

cdef enum:
    FLYING = 1
    ANSWERED = 2
    LOST = 3

cdef enum:
    RIGHT, PARTIAL, WRONG    # what bytes are to a message: its reply, the start of that, neither

cdef size_t RECEIVE = RECEIVE_BUFFER
cdef size_t SEND = SEND_BUFFER

assert BATCH == DATAGRAM_BATCH and LARGEST == MAX_DATAGRAM

# The arrays of one batch, out and in. Memory that no datagram reaches is never resident.
cdef struct Batch:
    mmsghdr out[BATCH]
    mmsghdr into[BATCH]
    iovec parts[BATCH]
    iovec places[BATCH]
    int counts[BATCH]            # datagrams of each message out
    char out_control[BATCH][CONTROL]
    char in_control[BATCH][CONTROL]
    char data[BATCH][LARGEST]


@final
cdef class Histogram:
    """Counts of durations."""

    def __cinit__(self):
        self.counts = <uint64_t*> PyMem_Calloc(SLOTS, sizeof(uint64_t))
        if self.counts == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.counts)

    def record(self, int64_t value):
        """Count a duration in nanoseconds; below 0 is 0."""
        self.add(value, 1)

    cdef void add(self, int64_t value, uint64_t count) noexcept:
        cdef uint64_t duration = <uint64_t> max(value, 0)
        cdef int shift = 64 - HALF_BITS - 1 - __builtin_clzll(duration | 1)
        shift = max(shift, 0)
        self.counts[(<uint64_t> shift << HALF_BITS) + (duration >> shift)] += count

    def take(self):
        """(lowest duration of a slot, count) where there are any, ascending; forget them."""
        cdef uint64_t slot
        cdef int shift
        cdef list found = []
        for slot in range(<uint64_t> SLOTS):
            if self.counts[slot]:
                shift = max(<int> (slot >> HALF_BITS) - 1, 0)
                found.append(
                    ((slot - (<uint64_t> shift << HALF_BITS)) << shift, self.counts[slot])
                )
        memset(self.counts, 0, SLOTS * sizeof(uint64_t))
        return found


@final
cdef class Tally:
    """What all channels of a run have done together."""

    def __cinit__(self, int64_t left):
        self.left = left
        self.latency = Histogram()
        self.lateness = Histogram()


@final
cdef class Source:
    """What is sent, and what must come back; shared by all channels."""

    def __cinit__(self, kinds, order, bytes digits not None, judge):
        cdef int i
        cdef size_t k
        cdef Shape* shape
        cdef bytes frame
        cdef const char* symbols = PyBytes_AS_STRING(digits)
        self.kinds = [Kind(*each) for each in kinds]
        self.order = list(order)
        self.digits = digits
        self.judge = judge
        self.prefix = b""
        self.prefix_text = PyBytes_AS_STRING(self.prefix)
        if len(digits) != 16 or len(self.order) & (len(self.order) - 1) or not self.order:
            raise ValueError("16 digits are needed, and an order of 2**n kinds")
        self.shapes = <Shape*> PyMem_Calloc(len(self.kinds), sizeof(Shape))
        self.count = <size_t> len(self.kinds)
        self.turns = <uint16_t*> PyMem_Malloc(len(self.order) * sizeof(uint16_t))
        if self.shapes == NULL or self.turns == NULL:
            raise MemoryError
        for k in range(<size_t> len(self.kinds)):
            frame, start, length = self.kinds[k]
            if not 0 <= start <= start + length <= len(frame):
                raise ValueError("a payload that is not in its frame")
            shape = &self.shapes[k]
            shape.frame = PyBytes_AS_STRING(frame)
            shape.size = <size_t> PyBytes_GET_SIZE(frame)
            shape.start = start
            shape.length = length
            shape.digits = min(shape.length, <size_t> DIGITS)
            self.largest = max(self.largest, shape.size)
        for i in range(len(self.order)):
            if not 0 <= self.order[i] < len(self.kinds):
                raise ValueError("an order of kinds that are none")
            self.turns[i] = self.order[i]
        self.mask = len(self.order) - 1
        memset(self.values, NO_DIGIT, sizeof(self.values))
        for i in range(16):
            self.values[<uint8_t> symbols[i]] = <uint8_t> i
        for i in range(256):
            (<char*> &self.pairs[i])[0] = symbols[i >> 4]
            (<char*> &self.pairs[i])[1] = symbols[i & 15]
        self.take_heads(judge.heads(0))
        self.room = max(SEND, self.largest)
        self.out = <char*> PyMem_Malloc(self.room)
        if self.out == NULL:
            raise MemoryError
        self.epoch = 1
        self.uniform = len(self.kinds) == 1 and self.largest > 0
        self.alike = self.uniform and self.shapes[0].digits == DIGITS
        if self.uniform:    # then only the numbers are written for each
            for k in range(self.room // self.largest):
                memcpy(self.out + k * self.largest, self.shapes[0].frame, self.largest)
        self.make_room(0)

    def __dealloc__(self):
        cdef size_t k
        if self.shapes != NULL:
            for k in range(self.count):
                PyMem_Free(self.shapes[k].reply)
        PyMem_Free(self.shapes)
        PyMem_Free(self.turns)
        PyMem_Free(self.out)
        PyMem_Free(self.received)
        PyMem_Free(self.batch)

    def adopt(self, bytes prefix not None):
        """This prefix was right."""
        if len(prefix) != len(self.prefix):
            self.take_heads(self.judge.heads(len(prefix)))
        self.judged = True
        self.epoch += 1
        self.prefix = prefix
        self.prefix_text = PyBytes_AS_STRING(prefix)
        self.prefix_size = <size_t> PyBytes_GET_SIZE(prefix)

    cdef int take_heads(self, list heads) except -1:
        cdef size_t k
        cdef bytes head
        cdef list own = list(heads)    # nobody changes it while C points into it
        if len(own) != len(self.kinds):
            raise ValueError("a head for each kind of message is needed")
        for head in own:
            if head is None:
                raise TypeError("a head must be bytes")
        for k in range(<size_t> len(own)):
            head = own[k]
            self.shapes[k].head = PyBytes_AS_STRING(head)
            self.shapes[k].head_size = <size_t> PyBytes_GET_SIZE(head)
        self.heads = own
        return 0

    cdef int make_room(self, size_t held) except -1:
        """Have a receive buffer that takes so many bytes and a `recv`."""
        cdef char* grown
        if held + RECEIVE > self.received_room:
            grown = <char*> PyMem_Realloc(self.received, held + RECEIVE)
            if grown == NULL:
                raise MemoryError
            self.received = grown
            self.received_room = held + RECEIVE
        return 0

    cdef inline Shape* shape(self, uint64_t n) noexcept:
        return &self.shapes[self.turns[n & self.mask]]

    cdef inline void put_number(self, char* text, uint64_t number) noexcept:
        """Its last `DIGITS` digits."""
        cdef int i
        for i in range(DIGITS // 2):
            memcpy(text + 2 * i, &self.pairs[number >> (8 * (DIGITS // 2 - 1 - i)) & 255], 2)

    cdef inline size_t write(self, char* out, const Shape* shape, uint64_t number) noexcept:
        """Write a message as it goes on the wire, to where the buffer of all is; its size."""
        cdef char text[DIGITS]
        if not self.uniform:
            memcpy(out, shape.frame, shape.size)
        self.put_number(text, number)
        if shape.digits == DIGITS:
            memcpy(out + shape.start, text, DIGITS)
        else:
            memcpy(out + shape.start, text + DIGITS - shape.digits, shape.digits)
        return shape.size

    cdef inline const char* expect(self, Shape* shape, uint64_t number) except NULL:
        """The reply to this message, with the last right prefix."""
        cdef char text[DIGITS]
        if shape.epoch != self.epoch:
            self.renew(shape)
        self.put_number(text, number)
        if shape.digits == DIGITS:
            memcpy(shape.reply + shape.number_at, text, DIGITS)
        else:
            memcpy(shape.reply + shape.number_at, text + DIGITS - shape.digits, shape.digits)
        return shape.reply

    cdef inline void number_alike(self, char* out, uint64_t number, int64_t count) noexcept:
        """Number so many messages, all of the one kind that there is, where they already lie."""
        cdef char* at = out + self.shapes[0].start
        cdef uint64_t last = number + <uint64_t> count
        cdef char text[DIGITS]
        self.put_number(text, number)
        while number != last:
            if number & 255 == 0:    # else it is as before, but for the last two digits
                self.put_number(text, number)
            memcpy(at, text, DIGITS)
            memcpy(at + DIGITS - 2, &self.pairs[number & 255], 2)
            at += self.largest
            number += 1

    cdef inline int64_t right_alike(
        self, const char* data, size_t size, uint64_t number, int64_t most
    ) except -1:
        """How many right replies, all of the one kind that there is, these bytes begin with."""
        cdef Shape* shape = &self.shapes[0]
        cdef int64_t right = 0
        cdef size_t rest
        cdef char text[DIGITS]
        if not self.alike or not self.judged or size < shape.reply_size:
            return 0
        if shape.epoch != self.epoch:
            self.renew(shape)
        rest = shape.number_at + DIGITS
        self.put_number(text, number)
        while right < most and size >= shape.reply_size:
            if number & 255 == 0:
                self.put_number(text, number)
            if not (
                same_bytes(data, shape.reply, shape.number_at)
                and memcmp(data + shape.number_at, text, DIGITS - 2) == 0
                and memcmp(data + rest - 2, &self.pairs[number & 255], 2) == 0
                and same_bytes(data + rest, shape.reply + rest, shape.reply_size - rest)
            ):
                break
            data += shape.reply_size
            size -= shape.reply_size
            number += 1
            right += 1
        return right

    cdef int renew(self, Shape* shape) except -1:
        """Lay out the reply to this kind of message anew: the prefix is another one."""
        cdef size_t body = shape.size - shape.start
        cdef size_t size = shape.head_size + self.prefix_size + body
        cdef char* reply = <char*> PyMem_Realloc(shape.reply, max(size, <size_t> 1))
        if reply == NULL:
            raise MemoryError
        memcpy(reply, shape.head, shape.head_size)
        memcpy(reply + shape.head_size, self.prefix_text, self.prefix_size)
        memcpy(reply + shape.head_size + self.prefix_size, shape.frame + shape.start, body)
        shape.reply = reply
        shape.reply_size = size
        shape.number_at = shape.head_size + self.prefix_size
        shape.epoch = self.epoch
        return 0

    cdef bytes payload_of(self, const Shape* shape, uint64_t number):
        cdef char text[DIGITS]
        self.put_number(text, number)
        return (
            text[DIGITS - shape.digits:DIGITS]
            + shape.frame[shape.start + shape.digits:shape.start + shape.length]
        )


@final
cdef class Schedule:
    """When messages are due."""

    def __cinit__(self, offsets, int64_t period, uint64_t channels):
        cdef Py_ssize_t size = len(offsets), i
        if size & (size - 1) or size == 0 or channels == 0:
            raise ValueError("2**n offsets and a channel are needed")
        self.offsets = <int64_t*> PyMem_Malloc(<size_t> size * sizeof(int64_t))
        if self.offsets == NULL:
            raise MemoryError
        for i in range(size):
            self.offsets[i] = offsets[i]
        self.mask = <uint64_t> size - 1
        self.shift = size.bit_length() - 1
        self.period = period
        self.count = channels
        self.channels = []

    def __dealloc__(self):
        PyMem_Free(self.offsets)

    def due(self, uint64_t i):
        """When message i of all is due."""
        return self.due_at(i)

    cdef inline int64_t due_at(self, uint64_t i) noexcept:
        return self.start + <int64_t> (i >> self.shift) * self.period + self.offsets[i & self.mask]

    def tick(self, int64_t now):
        """Have the channels send what is due; when the next message is."""
        cdef list touched = []
        cdef Channel channel
        cdef int64_t due = self.due_at(self.next)
        cdef uint64_t last = self.next + MOST_DUE
        if <uint64_t> len(self.channels) < self.count:
            raise IndexError("a schedule without its channels")
        while due <= now and self.next < last:
            channel = <Channel?> self.channels[self.next % self.count]
            channel.owed += 1
            if not channel.touched:
                channel.touched = True
                touched.append(channel)
            self.next += 1
            due = self.due_at(self.next)
        for each in touched:
            (<Channel> each).touched = False
            (<Channel> each).send_more(now, True)
        return due


cdef class Channel(Handler):
    """What streams and datagrams share."""

    def __cinit__(
        self, sock, SelectorCore selector not None, Source source not None,
        Tally tally not None, owner, int64_t pipeline, uint64_t base, Schedule schedule=None,
        uint64_t index=0,
    ):
        self.fd = sock.fileno()
        self.sock = sock
        self.selector = selector
        self.source = source
        self.tally = tally
        self.owner = owner
        self.pipeline = pipeline
        self.base = base
        self.schedule = schedule
        self.index = index
        self.timeout = 1_000_000_000

    def __init__(self, *arguments, **others):
        if self.open:
            raise TypeError("a channel is made once")
        self.set_up()    # not earlier: a base's __cinit__ does not see what its subclasses override
        self.selector.add(self.fd, self, EVENT_READ, self)
        self.open = True

    def __dealloc__(self):
        PyMem_Free(self.times)

    cdef int set_up(self) except -1:
        """Make what is one kind of channel's own."""
        return 0

    def fileno(self):
        """The descriptor; -1 once closed."""
        return self.fd if self.open else -1

    @property
    def flying(self):
        """Messages that wait for their replies."""
        return self.in_flight()

    def offload(self, int segments):
        """Have the kernel cut so many datagrams from one buffer, and join those that it receives.

        They must be of one size (UDP_SEGMENT, UDP_GRO; udp(7)).

        Raises:
            OSError: it cannot.
        """

    def renew(self, bint reset=False):
        """Have each message of a stream go over a connection of its own, to the same address.

        Its latency counts from before it connects.

        Args:
            reset: whether we hang up with RST instead of FIN (SO_LINGER, socket(7)).
        """

    def expire(self, int64_t now):
        """Give up on datagrams that have been in flight for longer than the timeout."""

    def fill(self, int64_t now, bint on_time=False):
        """Send what there is room for."""
        self.send_more(now, on_time)

    def close(self):
        """Send and receive no more."""
        self.shut()

    cdef int send_more(self, int64_t now, bint on_time) except -1:
        return 0

    cdef inline int64_t in_flight(self) noexcept:
        return <int64_t> (self.sent - self.answered - self.lost)

    cdef inline int64_t allowed(self) noexcept:
        """How many messages may be sent now."""
        cdef int64_t count = min(self.pipeline - self.in_flight(), self.tally.left)
        return count if self.schedule is None else min(count, self.owed)

    cdef inline int64_t due_of(self, uint64_t n) noexcept:
        return self.schedule.due_at(n * self.schedule.count + self.index)

    cdef int note_lateness(self, uint64_t first, int64_t now) except -1:
        cdef uint64_t n
        for n in range(first, self.sent):
            self.tally.lateness.add(now - self.due_of(n), 1)
        return 0

    cdef int watch(self, bint writing) except -1:
        if writing != self.writing:
            self.writing = writing
            self.selector.change(self.fd, EVENT_READ | (EVENT_WRITE if writing else 0))
        return 0

    cdef int shut(self) except -1:
        if self.open:
            self.open = False
            self.selector.remove(self.fd)
            self.hang_up()
        return 0

    cdef int hang_up(self) except -1:
        if self.sock is not None:
            self.sock.close()
        return 0

    cdef int end(self, str why) except -1:
        self.shut()
        self.owner.ended(self, why)
        return 0

    cdef int failed(self, int number) except -1:
        if number not in (EAGAIN, ENOBUFS, ENOMEM):
            self.end(addresses.reason(number))
        return 0


@final
cdef class StreamChannel(Channel):
    """One connection, over TCP or a UNIX stream."""

    cdef int set_up(self) except -1:
        cdef size_t size = 1
        while size < <size_t> self.pipeline:    # a power of two: a place in it is no division
            size *= 2
        self.ring = size - 1
        self.times = <int64_t*> PyMem_Calloc(size, sizeof(int64_t))
        if self.times == NULL:
            raise MemoryError
        return 0

    def __dealloc__(self):
        PyMem_Free(self.kept)
        PyMem_Free(self.held)
        if self.sock is None and self.open:
            close_fd(self.fd)

    def renew(self, bint reset=False):
        self.reset = reset
        self.peer_size = sizeof(self.peer)
        if getpeername(self.fd, <sockaddr*> &self.peer, &self.peer_size) < 0:
            PyErr_SetFromErrno(OSError)
        self.renewed = True

    cdef int handle(self, int mask) except -1:
        """The descriptor is ready."""
        cdef size_t at = self.kept_at
        if mask & EVENT_WRITE and self.kept_size:
            self.push(self.kept + at, self.kept_size)
        if mask & EVENT_READ and self.open:
            self.receive()
        elif self.open:
            self.send_more(monotonic_ns(), False)
        return 0

    cdef int send_more(self, int64_t now, bint on_time) except -1:
        cdef uint64_t first = self.sent
        cdef int64_t count
        while self.open and not self.kept_size:
            count = self.allowed()
            if count <= 0:
                break
            self.push(self.source.out, self.build(count, now))
        if on_time:
            self.note_lateness(first, now)
        return 0

    cdef inline size_t build(self, int64_t count, int64_t now) noexcept:
        """Write the next messages, as many as a send buffer takes, and at least one."""
        cdef Source source = self.source
        cdef Shape* shape
        cdef size_t size = 0
        cdef int64_t built = 0
        if source.alike:
            if <size_t> count * source.largest > SEND:
                count = max(<int64_t> (SEND // source.largest), 1)
            source.number_alike(source.out, self.base + self.sent, count)
            built = count
            size = <size_t> count * source.largest
        while built < count:
            shape = source.shape(self.sent + <uint64_t> built)
            if built and size + shape.size > SEND:
                break
            size += source.write(
                source.out + size, shape, self.base + self.sent + <uint64_t> built
            )
            built += 1
        self.note_sent(built, now)
        return size

    cdef inline void note_sent(self, int64_t count, int64_t now) noexcept:
        cdef uint64_t last = self.sent + <uint64_t> count, n
        if self.schedule is None:
            for n in range(self.sent, last):
                self.times[n & self.ring] = now
        else:
            self.owed -= count
        self.sent = last
        self.tally.sent += <uint64_t> count
        self.tally.left -= count

    cdef inline int push(self, const char* data, size_t size) except -1:
        """Send; keep what the kernel does not take, and wait for it."""
        cdef ssize_t sent
        cdef char* kept
        while True:
            sent = c_send(self.fd, data, size, MSG_NOSIGNAL)
            if sent >= 0:
                break
            if errno != EINTR:
                self.failed(errno)
                if not self.open:
                    return 0
                sent = 0
                break
            PyErr_CheckSignals()
        self.tally.bytes_out += <uint64_t> sent
        if <size_t> sent == size:
            if self.kept != NULL:
                PyMem_Free(self.kept)
                self.kept = NULL
                self.kept_size = self.kept_at = 0
        elif self.kept != NULL:
            self.kept_at += <size_t> sent
            self.kept_size -= <size_t> sent
        else:
            kept = <char*> PyMem_Malloc(size - <size_t> sent)
            if kept == NULL:
                raise MemoryError
            memcpy(kept, data + sent, size - <size_t> sent)
            self.kept = kept
            self.kept_at = 0
            self.kept_size = size - <size_t> sent
        return self.watch(self.kept_size != 0)

    cdef inline int receive(self) except -1:
        cdef Source source = self.source
        cdef ssize_t count
        cdef size_t size, used = 0
        cdef int64_t now
        source.make_room(self.held_size)
        if self.held_size:
            memcpy(source.received, self.held, self.held_size)
        while True:
            count = recv(self.fd, source.received + self.held_size, RECEIVE, 0)
            if count >= 0:
                break
            if errno != EINTR:
                return self.failed(errno)
            PyErr_CheckSignals()
        if count == 0:
            return self.end("eof")
        now = monotonic_ns()
        self.tally.bytes_in += <uint64_t> count
        size = self.held_size + <size_t> count
        self.match(source.received, size, now, &used)
        if not self.open:
            return 0
        if used < size or self.held_size:
            self.hold(source.received + used, size - used)
        if self.renewed and self.in_flight() == 0 and self.allowed() > 0:
            self.reconnect()
        return self.send_more(now, False)

    cdef int hang_up(self) except -1:
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        else:
            close_fd(self.fd)
        return 0

    cdef int reconnect(self) except -1:
        """Hang up, and connect anew; what is sent before that is done waits for it."""
        cdef int one = 1
        cdef int[2] abort = [1, 0]    # a struct linger
        self.selector.remove(self.fd)
        if self.reset:
            setsockopt(self.fd, SOL_SOCKET, SO_LINGER, abort, sizeof(abort))
        self.hang_up()
        self.writing = False
        self.open = False
        self.fd = c_socket(self.peer.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
        if self.fd < 0:
            self.owner.ended(self, addresses.reason(errno))
            return 0
        self.open = True    # its descriptor is ours to close
        if self.peer.ss_family != AF_UNIX:
            setsockopt(self.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
        if (
            connect(self.fd, <sockaddr*> &self.peer, self.peer_size) < 0
            and errno not in (EINPROGRESS, EINTR)
        ):
            return self.end(addresses.reason(errno))
        self.selector.add(self.fd, self, EVENT_READ, self)
        return 0

    cdef inline int match(
        self, const char* data, size_t size, int64_t now, size_t* used
    ) except -1:
        """Verify the replies in these bytes; `used` is what they take."""
        cdef Source source = self.source
        cdef int64_t right = 0, some
        cdef int status = RIGHT
        while used[0] < size and status == RIGHT:
            some = source.right_alike(
                data + used[0], size - used[0], self.base + self.answered + <uint64_t> right,
                self.in_flight() - right,
            )
            if some:
                right += some
                used[0] += <size_t> some * source.shapes[0].reply_size
            elif self.in_flight() == right:
                self.fault = "more came than was asked for"
                status = WRONG
            else:
                status = self.match_one(self.answered + <uint64_t> right, data, size, used)
                if status == RIGHT:
                    right += 1
        self.note_answers(right, now)
        if status == WRONG:
            self.shut()
            self.owner.wrong(self, self.fault, data[used[0]:size])
        return 0

    cdef int match_one(
        self, uint64_t n, const char* data, size_t size, size_t* used
    ) except -1:
        """Verify the reply to message n."""
        cdef Shape* shape = self.source.shape(n)
        cdef const char* reply = self.source.expect(shape, self.base + n)
        cdef size_t left = size - used[0], total = shape.reply_size
        if not self.source.judged or memcmp(data + used[0], reply, min(left, total)) != 0:
            return self.judge(n, data + used[0], left, used)
        if left < total:
            return PARTIAL
        used[0] += total
        return RIGHT

    cdef int judge(self, uint64_t n, const char* data, size_t size, size_t* used) except -1:
        """Verify a reply whose prefix is not the last right one."""
        cdef Source source = self.source
        cdef Shape* shape = source.shape(n)
        cdef size_t longest = min(size, shape.reply_size + LARGEST)    # no prefix is longer
        try:
            prefix = source.judge.prefix(
                data[:longest], source.payload_of(shape, self.base + n)
            )
            if prefix is None:
                if longest < shape.reply_size + LARGEST:
                    return PARTIAL
                raise WrongReply("it does not end where it should")
            source.adopt(prefix)
            source.expect(shape, self.base + n)
            if size < shape.reply_size or memcmp(data, shape.reply, shape.reply_size) != 0:
                raise WrongReply("its header is not that of its length")
        except WrongReply as wrong:
            self.fault = str(wrong)
            return WRONG
        used[0] += shape.reply_size
        return RIGHT

    cdef inline int note_answers(self, int64_t count, int64_t now) noexcept:
        """Count so many right replies, in one go those to what was sent, or due, at one time."""
        cdef Histogram latency = self.tally.latency
        cdef uint64_t last = self.answered + <uint64_t> count, n, same = 0
        cdef int64_t since = 0, before = 0
        for n in range(self.answered, last):
            since = self.times[n & self.ring] if self.schedule is None else self.due_of(n)
            if since != before and same:
                latency.add(now - before, same)
                same = 0
            before = since
            same += 1
        if same:
            latency.add(now - since, same)
        self.answered = last
        self.tally.received += <uint64_t> count
        return 0

    cdef int hold(self, const char* data, size_t size) except -1:
        """Keep what is not complete until more comes."""
        cdef char* held = NULL
        if size:
            held = <char*> PyMem_Malloc(size)
            if held == NULL:
                raise MemoryError
            memcpy(held, data, size)
        PyMem_Free(self.held)
        self.held = held
        self.held_size = size
        return 0


@final
cdef class DatagramChannel(Channel):
    """One connected UDP or UNIX datagram socket."""

    cdef int set_up(self) except -1:
        self.segments = 1
        self.latest = -1
        self.times = <int64_t*> PyMem_Calloc(REMEMBERED, sizeof(int64_t))
        self.sent_at = <int64_t*> PyMem_Calloc(REMEMBERED, sizeof(int64_t))
        self.states = <uint8_t*> PyMem_Calloc(REMEMBERED, 1)
        if self.times == NULL or self.sent_at == NULL or self.states == NULL:
            raise MemoryError
        if self.source.batch == NULL:
            self.source.batch = new_batch()
        return 0

    def __dealloc__(self):
        PyMem_Free(self.states)
        PyMem_Free(self.sent_at)

    def offload(self, int segments):
        self.sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        self.segments = segments

    def expire(self, int64_t now):
        cdef size_t slot
        while self.oldest < self.sent:
            slot = self.oldest % REMEMBERED
            if self.states[slot] == FLYING:
                if now - self.sent_at[slot] <= self.timeout:
                    return
                self.lose(slot)
            self.oldest += 1

    cdef int handle(self, int mask) except -1:
        """The descriptor is ready."""
        cdef int64_t now
        if mask & EVENT_WRITE:
            self.watch(False)
        if mask & EVENT_READ:
            now = self.receive_batch()
        else:
            now = monotonic_ns()
        if self.open:
            self.send_more(now, False)
        return 0

    cdef int64_t receive_batch(self) except -1:
        """Take what waits, up to a batch; when it came."""
        cdef Batch* batch = <Batch*> self.source.batch
        cdef int received, i
        cdef int64_t now
        cdef size_t at, size, segment
        for i in range(BATCH):
            batch.into[i].msg_hdr.msg_controllen = CONTROL
        while True:
            received = recvmmsg(self.fd, batch.into, BATCH, 0, NULL)
            if received >= 0:
                break
            if errno != EINTR:
                self.failed(errno)
                received = 0
                break
            PyErr_CheckSignals()
        now = monotonic_ns()
        for i in range(received):
            size = batch.into[i].msg_len
            self.tally.bytes_in += size
            segment = joined(&batch.into[i].msg_hdr, size)
            at = 0
            while True:
                self.take(batch.data[i] + at, min(segment, size - at), now)
                at += segment
                if at >= size:
                    break
        return now

    cdef int send_more(self, int64_t now, bint on_time) except -1:
        cdef uint64_t first = self.sent
        cdef int64_t count
        cdef int messages
        while self.open:
            count = self.allowed()
            if count <= 0:
                break
            messages = self.lay_out(count)
            if not self.push(messages, now):
                break
        if on_time:
            self.note_lateness(first, now)
        return 0

    cdef int lay_out(self, int64_t count) except -1:
        """Write the next messages, a batch at most, with `segments` of a size in one buffer."""
        cdef Source source = self.source
        cdef Batch* batch = <Batch*> source.batch
        cdef Shape* shape
        cdef uint64_t n = self.sent
        cdef size_t size = 0, alike = 0, length = 0
        cdef int messages = 0
        while count > 0 and size + source.largest <= source.room:
            shape = source.shape(n)
            if (
                messages == 0 or shape.size != alike or alike == 0
                or batch.counts[messages - 1] >= self.segments or length + alike > 65_000
            ):
                if messages == BATCH:
                    break
                batch.parts[messages].iov_base = source.out + size
                batch.counts[messages] = 0
                messages += 1
                alike = shape.size
                length = 0
            source.write(source.out + size, shape, self.base + n)
            batch.counts[messages - 1] += 1
            length += shape.size
            size += shape.size
            batch.parts[messages - 1].iov_len = length
            n += 1
            count -= 1
        return messages

    cdef int push(self, int messages, int64_t now) except -1:
        """Send what was laid out; whether the kernel took all."""
        cdef Batch* batch = <Batch*> self.source.batch
        cdef int i, sent, at = 0
        for i in range(messages):
            batch.out[i].msg_hdr.msg_controllen = 0
            if batch.counts[i] > 1:
                put_segment(&batch.out[i].msg_hdr, <uint16_t> (
                    batch.parts[i].iov_len // <size_t> batch.counts[i]
                ))
        while at < messages:
            sent = sendmmsg(self.fd, &batch.out[at], <unsigned int> (messages - at), MSG_NOSIGNAL)
            if sent < 0:
                if errno == EINTR:
                    PyErr_CheckSignals()
                    continue
                self.failed(errno)
                if self.open:
                    self.watch(True)
                return 0
            for i in range(at, at + sent):
                self.tally.bytes_out += batch.parts[i].iov_len
                self.note_sent(batch.counts[i], now)
            at += sent
        return 1

    cdef int note_sent(self, int count, int64_t now) except -1:
        cdef size_t slot
        for _ in range(count):
            slot = self.sent % REMEMBERED
            if self.sent - self.oldest == REMEMBERED:
                if self.states[slot] == FLYING:
                    self.lose(slot)
                self.oldest += 1
            self.states[slot] = FLYING
            self.times[slot] = now if self.schedule is None else self.due_of(self.sent)
            self.sent_at[slot] = now
            self.sent += 1
        self.tally.sent += <uint64_t> count
        self.tally.left -= count
        if self.schedule is not None:
            self.owed -= count
        return 0

    cdef int lose(self, size_t slot) except -1:
        self.states[slot] = LOST
        self.lost += 1
        self.tally.lost += 1
        return 0

    cdef int take(self, const char* data, size_t size, int64_t now) except -1:
        """Find what a datagram replies to, and count it."""
        cdef int64_t n = self.replied(data, size)
        cdef size_t slot
        if n < 0:
            for prefix in self.source.judge.of_datagram(data[:size]):
                self.source.adopt(prefix)
                n = self.replied(data, size)
                if n >= 0:
                    break
        if n < 0:
            self.tally.corrupt += 1
            self.owner.wrong(self, "it replies to nothing that was sent", data[:size])
            return 0
        slot = <size_t> n % REMEMBERED
        if self.sent - <uint64_t> n > REMEMBERED:
            self.tally.late += 1
        elif self.states[slot] == LOST:
            self.tally.late += 1
            self.states[slot] = ANSWERED
        elif self.states[slot] == ANSWERED:
            self.tally.duplicate += 1
        else:
            self.states[slot] = ANSWERED
            self.answered += 1
            self.tally.received += 1
            self.tally.latency.add(now - self.times[slot], 1)
            if n < self.latest:
                self.tally.reordered += 1
            self.latest = max(self.latest, n)
        return 0

    cdef int64_t replied(self, const char* data, size_t size) except -2:
        """Which message this is the reply to, if its prefix is the last right one; -1: none."""
        cdef Source source = self.source
        cdef const char* body = data + source.prefix_size
        cdef size_t length, i, digits
        cdef uint64_t number = 0, last = self.sent - 1, n, step, first, each
        cdef uint8_t value
        if (
            not source.judged or size < source.prefix_size
            or memcmp(data, source.prefix_text, source.prefix_size)
        ):
            return -1
        length = size - source.prefix_size
        digits = min(length, <size_t> DIGITS)
        for i in range(digits):
            value = source.values[<uint8_t> body[i]]
            if value == NO_DIGIT:
                return -1
            number = number << 4 | value
        step = <uint64_t> 1 << (4 * digits)
        n = (self.base + last - number) & (step - 1)
        if self.sent == 0 or n > last:
            return -1
        n = last - n
        # A short number comes again soon: the oldest message that waits for this reply has it.
        first = n if n <= self.oldest else n - (n - self.oldest) // step * step
        each = first
        while each <= n:
            if self.states[each % REMEMBERED] == FLYING and self.sends(each, data, size):
                return <int64_t> each
            each += step
        each = n
        while True:
            if self.sends(each, data, size):
                return <int64_t> each
            if each == first:
                return -1
            each -= step

    cdef int sends(self, uint64_t n, const char* data, size_t size) except -1:
        """Whether this is the reply to message n."""
        cdef Shape* shape = self.source.shape(n)
        cdef const char* reply = self.source.expect(shape, self.base + n)
        return shape.reply_size == size and memcmp(data, reply, size) == 0


cdef Batch* new_batch() except NULL:
    """The arrays, pointing into each other."""
    cdef Batch* batch = <Batch*> PyMem_Calloc(1, sizeof(Batch))
    cdef int i
    if batch == NULL:
        raise MemoryError
    for i in range(BATCH):
        batch.places[i].iov_base = batch.data[i]
        batch.places[i].iov_len = LARGEST
        batch.into[i].msg_hdr.msg_iov = &batch.places[i]
        batch.into[i].msg_hdr.msg_iovlen = 1
        batch.into[i].msg_hdr.msg_control = batch.in_control[i]
        batch.out[i].msg_hdr.msg_iov = &batch.parts[i]
        batch.out[i].msg_hdr.msg_iovlen = 1
        batch.out[i].msg_hdr.msg_control = batch.out_control[i]
    return batch


cdef void put_segment(msghdr* message, uint16_t size) noexcept:
    """Have the kernel cut the message into datagrams of this size."""
    cdef cmsghdr* control = <cmsghdr*> message.msg_control
    control.cmsg_level = SOL_UDP
    control.cmsg_type = UDP_SEGMENT
    control.cmsg_len = CMSG_LEN(sizeof(size))
    memcpy(CMSG_DATA(control), &size, sizeof(size))
    message.msg_controllen = CMSG_SPACE(sizeof(size))


cdef size_t joined(msghdr* message, size_t size) noexcept:
    """Of what size the datagrams are that the kernel has joined to these bytes."""
    cdef cmsghdr* control = CMSG_FIRSTHDR(message)
    cdef int segment = 0
    while control != NULL:
        if control.cmsg_level == SOL_UDP and control.cmsg_type == UDP_GRO:
            memcpy(&segment, CMSG_DATA(control), sizeof(segment))
        control = CMSG_NXTHDR(message, control)
    return <size_t> segment if segment > 0 else max(size, <size_t> 1)


cdef int64_t monotonic_ns() noexcept:
    cdef timespec clock
    clock_gettime(CLOCK_MONOTONIC, &clock)
    return <int64_t> clock.tv_sec * 1_000_000_000 + clock.tv_nsec


call_directly(StreamChannel)
call_directly(DatagramChannel)
