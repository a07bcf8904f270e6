"""C interface of the load generator's engine; the contract is `fastecho._pure.generator`'s."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t

from fastecho._native.calls cimport sockaddr_storage, socklen_t
from fastecho._native.selector cimport Handler, SelectorCore

# One kind of message, and of reply: the head, the prefix, then the body of what was sent.
cdef struct Shape:
    const char* frame
    const char* head
    size_t size         # of the frame
    size_t start        # of its body: the payload and what follows it
    size_t head_size
    size_t length       # of the payload
    size_t digits       # of the number at its start
    char* reply         # to a message of this kind, but for its number
    size_t reply_size
    size_t number_at    # in the reply
    uint64_t epoch      # of the prefix in it

cdef class Histogram:
    cdef uint64_t* counts

    cdef void add(self, int64_t value, uint64_t count) noexcept

cdef class Tally:
    cdef public int64_t left
    cdef readonly uint64_t sent
    cdef readonly uint64_t received
    cdef readonly uint64_t bytes_out
    cdef readonly uint64_t bytes_in
    cdef readonly uint64_t lost
    cdef readonly uint64_t late
    cdef readonly uint64_t duplicate
    cdef readonly uint64_t reordered
    cdef readonly uint64_t corrupt
    cdef readonly Histogram latency
    cdef readonly Histogram lateness

cdef class Source:
    cdef readonly list kinds
    cdef readonly list order
    cdef readonly bytes digits
    cdef readonly object judge
    cdef readonly bytes prefix
    cdef readonly list heads
    cdef Shape* shapes
    cdef uint16_t* turns          # the order, as C has it
    cdef size_t mask
    cdef uint16_t pairs[256]      # two digits
    cdef uint8_t values[256]      # of a digit; 255: none
    cdef readonly bint judged     # whether any prefix was right yet
    cdef uint64_t epoch           # of the prefix
    cdef bint uniform             # one kind only
    cdef bint alike               # and with a whole number
    cdef size_t count             # of kinds
    cdef const char* prefix_text
    cdef size_t prefix_size
    cdef size_t largest           # frame
    cdef char* out                # of one send, or one batch of datagrams
    cdef size_t room
    cdef char* received           # of one recv, after what was held
    cdef size_t received_room
    cdef void* batch              # of datagrams, once there are any

    cdef Shape* shape(self, uint64_t n) noexcept
    cdef size_t write(self, char* out, const Shape* shape, uint64_t number) noexcept
    cdef void put_number(self, char* text, uint64_t number) noexcept
    cdef const char* expect(self, Shape* shape, uint64_t number) except NULL
    cdef void number_alike(self, char* out, uint64_t number, int64_t count) noexcept
    cdef inline int64_t right_alike(
        self, const char* data, size_t size, uint64_t number, int64_t most
    ) except -1
    cdef int renew(self, Shape* shape) except -1
    cdef bytes payload_of(self, const Shape* shape, uint64_t number)
    cdef int take_heads(self, list heads) except -1
    cdef int make_room(self, size_t held) except -1

cdef class Schedule:
    cdef readonly list channels
    cdef readonly uint64_t count
    cdef readonly int64_t period
    cdef public int64_t start
    cdef public uint64_t next
    cdef int64_t* offsets
    cdef uint64_t mask
    cdef int shift

    cdef int64_t due_at(self, uint64_t i) noexcept

cdef class Channel(Handler):
    cdef int fd
    cdef object sock
    cdef readonly SelectorCore selector
    cdef readonly Source source
    cdef readonly Tally tally
    cdef readonly object owner
    cdef readonly Schedule schedule
    cdef readonly int64_t pipeline
    cdef readonly uint64_t base
    cdef readonly uint64_t index
    cdef readonly uint64_t sent
    cdef readonly uint64_t answered
    cdef readonly uint64_t lost
    cdef public int64_t timeout
    cdef public int64_t owed
    cdef readonly bint open
    cdef bint writing
    cdef bint touched             # by a tick of the schedule
    cdef int64_t* times

    cdef int set_up(self) except -1
    cdef int send_more(self, int64_t now, bint on_time) except -1
    cdef int64_t in_flight(self) noexcept
    cdef inline int64_t allowed(self) noexcept
    cdef int64_t due_of(self, uint64_t n) noexcept
    cdef int note_lateness(self, uint64_t first, int64_t now) except -1
    cdef int watch(self, bint writing) except -1
    cdef int shut(self) except -1
    cdef int hang_up(self) except -1
    cdef int end(self, str why) except -1
    cdef int failed(self, int number) except -1

cdef class StreamChannel(Channel):
    cdef uint64_t ring            # of times
    cdef char* kept               # bytes not sent yet
    cdef size_t kept_at
    cdef size_t kept_size
    cdef char* held               # bytes of a reply that is not complete
    cdef size_t held_size
    cdef bint renewed             # its connection, for each message
    cdef bint reset               # when it is
    cdef str fault                # of a reply
    cdef sockaddr_storage peer
    cdef socklen_t peer_size

    cdef int reconnect(self) except -1
    cdef inline size_t build(self, int64_t count, int64_t now) noexcept
    cdef inline int push(self, const char* data, size_t size) except -1
    cdef inline int receive(self) except -1
    cdef inline int match(self, const char* data, size_t size, int64_t now, size_t* used) except -1
    cdef int match_one(
        self, uint64_t n, const char* data, size_t size, size_t* used
    ) except -1
    cdef int judge(self, uint64_t n, const char* data, size_t size, size_t* used) except -1
    cdef inline int note_answers(self, int64_t count, int64_t now) noexcept
    cdef void note_sent(self, int64_t count, int64_t now) noexcept
    cdef int hold(self, const char* data, size_t size) except -1

cdef class DatagramChannel(Channel):
    cdef int segments
    cdef uint8_t* states
    cdef int64_t* sent_at
    cdef uint64_t oldest
    cdef int64_t latest

    cdef int lay_out(self, int64_t count) except -1
    cdef int push(self, int messages, int64_t now) except -1
    cdef int note_sent(self, int count, int64_t now) except -1
    cdef int64_t receive_batch(self) except -1
    cdef int take(self, const char* data, size_t size, int64_t now) except -1
    cdef int64_t replied(self, const char* data, size_t size) except -2
    cdef int sends(self, uint64_t n, const char* data, size_t size) except -1
    cdef int lose(self, size_t slot) except -1
