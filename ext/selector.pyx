"""The selector, compiled: epoll(7) with the contract of `selectors`, and `dispatch`.

Entries are found by descriptor number. Registrations and changes have a serial number, so that
`dispatch` calls no key that was unregistered, replaced or changed since it woke. Data of
exactly a native type is called in C; all else gets its Python `on_event`.

`run` waits without a timeout, and a timer (timerfd_create(2)) wakes it: with one, each epoll_wait
would read the clock twice, here and in the kernel, and set a timer of its own.
"""

from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport Py_TYPE, PyTypeObject
from libc.errno cimport EINTR, errno
from libc.limits cimport INT_MAX
from libc.math cimport ceil, floor
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close as close_fd

import selectors
from collections.abc import Mapping

cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
        EPOLLIN
        EPOLLOUT
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int maxevents, int timeout)

cdef extern from "<sys/timerfd.h>" nogil:
    enum:
        TFD_CLOEXEC
        TFD_NONBLOCK
        TFD_TIMER_ABSTIME
    struct itimerspec:
        timespec it_interval
        timespec it_value
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec* new, itimerspec* old)

cdef extern from "<pthread.h>" nogil:
    ctypedef void (*AtFork)() noexcept
    int pthread_atfork(AtFork prepare, AtFork parent, AtFork child)

cdef enum:
    NO_DESCRIPTOR = INT_MAX    # stands for all numbers that no descriptor can have
    MAX_DIRECT = 8    # types that are called in C, in all modules
    TURN = 256    # keys that one turn calls at most: what is left is ready in the next one

#: Seconds; no monotonic clock gets as far, so no timer is set for later.
cdef double NEVER = 2.0**31
cdef object SelectorKey = selectors.SelectorKey
cdef PyTypeObject* direct_types[MAX_DIRECT]
cdef int directs = 0
#: Of this process since the module was loaded, and of those that it comes from.
cdef int forks = 0


cdef void about_to_fork() noexcept nogil:
    global forks
    forks += 1


if pthread_atfork(&about_to_fork, NULL, NULL):
    raise MemoryError


cdef int call_directly(type kind) except -1:
    """Have `dispatch` call data of exactly this type in C; it must be a `Handler`."""
    global directs
    if directs == MAX_DIRECT:
        raise OverflowError("too many types")
    direct_types[directs] = <PyTypeObject*> kind    # which its module keeps
    directs += 1
    return 0


cdef inline bint is_direct(object data) noexcept:
    cdef PyTypeObject* kind = Py_TYPE(data)
    cdef int i
    for i in range(directs):
        if kind == direct_types[i]:
            return True
    return False


cdef class Handler:
    """A key's data that can be called without leaving C."""

    cdef int handle(self, int mask) except -1:
        """The descriptor is ready for the events in `mask`."""
        return 0

    cdef int exhausted(self) except -1:
        """`handle` ran out of memory, and the MemoryError is being handled: here, raised again."""
        raise

    def on_event(self, int mask):
        """The descriptor is ready for the events in `mask`."""
        try:
            self.handle(mask)
        except MemoryError:
            self.exhausted()


cdef class SelectorCore:
    """The selector, but for its base class."""

    def __cinit__(self):
        cdef epoll_event event
        self.epoll = self.timer = -1
        self.files = {}
        self.datas = []
        self.map = Map(self)
        self.forks = forks
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            PyErr_SetFromErrno(OSError)
        self.timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
        if self.timer < 0:
            PyErr_SetFromErrno(OSError)
        self.reserve(self.timer)
        event.events = EPOLLIN
        event.data.fd = self.timer
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, self.timer, &event) < 0:
            PyErr_SetFromErrno(OSError)

    def __dealloc__(self):
        self.close_descriptors()
        PyMem_Free(self.entries)

    # -- for C

    cdef int add(self, int fd, fileobj, int events, data) except -1:
        """Register a descriptor that is not registered."""
        cdef epoll_event event
        event.events = mask_of(events)
        event.data.fd = fd
        # First, so that only the number of an open descriptor makes the table grow.
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event) < 0:
            PyErr_SetFromErrno(OSError)
        try:
            self.reserve(fd)
            if fileobj is not data:
                self.files[fd] = fileobj
        except MemoryError:
            epoll_ctl(self.epoll, EPOLL_CTL_DEL, fd, &event)
            raise
        self.serial += 1
        self.entries[fd].serial = self.serial
        self.entries[fd].events = events
        self.entries[fd].direct = is_direct(data)
        self.entries[fd].filed = fileobj is not data
        self.datas[fd] = data
        self.count += 1
        return 0

    cdef int change(self, int fd, int events) except -1:
        """Wait for other events on a registered descriptor."""
        cdef epoll_event event
        if events == self.entries[fd].events:
            return 0
        event.events = mask_of(events)
        event.data.fd = fd
        if epoll_ctl(self.epoll, EPOLL_CTL_MOD, fd, &event) < 0:
            PyErr_SetFromErrno(OSError)
        self.entries[fd].events = events
        self.serial += 1
        self.entries[fd].serial = self.serial
        return 0

    cdef int remove(self, int fd) except -1:
        """Unregister a descriptor, which may be closed already, or not be registered any more."""
        cdef epoll_event event
        if not 0 <= fd < self.capacity or not self.entries[fd].serial:
            return 0
        self.forget(fd)
        epoll_ctl(self.epoll, EPOLL_CTL_DEL, fd, &event)
        return 0

    cdef int drop(self, int fd) except -1:
        """Unregister a descriptor that was opened after this selector, and that is now closed.

        Its last descriptor takes a socket out of the epoll(7) too, which is a system call less; a
        process that was forked has another, and with it the socket would stay there for ever.
        """
        if forks != self.forks:
            return self.remove(fd)
        if fd < self.capacity and self.entries[fd].serial:
            self.forget(fd)
        return 0

    cdef int find(self, fileobj) except -1:
        """The descriptor of a file object; of a registered one also after it was closed."""
        cdef int fd
        try:
            return descriptor(fileobj)
        except ValueError:
            for fd in range(self.capacity):
                if self.entries[fd].serial and self.file(fd) is fileobj:
                    return fd
            raise

    cdef int registered(self, fileobj) except -1:
        """The descriptor of a file object that is registered."""
        cdef int fd = self.find(fileobj)
        if fd >= self.capacity or not self.entries[fd].serial:
            raise KeyError(f"{fileobj!r} is not registered")
        return fd

    cdef object key(self, int fd):
        return SelectorKey(self.file(fd), fd, self.entries[fd].events, self.datas[fd])

    cdef object file(self, int fd):
        return self.files[fd] if self.entries[fd].filed else self.datas[fd]

    cdef int reserve(self, int fd) except -1:
        """Make room for an entry."""
        cdef int capacity = self.capacity
        cdef Entry* grown
        if fd < capacity:
            return 0
        capacity = max(fd + 1, capacity + capacity // 4, 64)
        grown = <Entry*> PyMem_Realloc(self.entries, <size_t> capacity * sizeof(Entry))
        if grown == NULL:
            raise MemoryError
        memset(grown + self.capacity, 0, <size_t> (capacity - self.capacity) * sizeof(Entry))
        self.entries = grown
        self.datas.extend([None] * (capacity - len(self.datas)))
        self.capacity = capacity
        return 0

    cdef int forget(self, int fd) except -1:
        self.entries[fd].serial = 0
        self.count -= 1
        if self.entries[fd].filed:
            del self.files[fd]
        self.datas[fd] = None
        return 0

    cdef void close_descriptors(self) noexcept:
        if self.epoll >= 0:
            close_fd(self.epoll)
        if self.timer >= 0:
            close_fd(self.timer)
        self.epoll = self.timer = -1

    cdef int set_timer(self, double when) except -1:
        """Ring when the monotonic clock reads `when`, or at once if it has; not at all: NEVER."""
        cdef double time = max(when, 0), seconds = floor(time)
        cdef itimerspec setting
        memset(&setting, 0, sizeof(setting))
        if when < NEVER:
            setting.it_value.tv_sec = <int64_t> seconds
            # Rounded up; one at least, since with none a timer is off.
            setting.it_value.tv_nsec = <int64_t> min((time - seconds) * 1e9 + 1, 999_999_999)
        if timerfd_settime(self.timer, TFD_TIMER_ABSTIME, &setting, NULL) < 0:
            PyErr_SetFromErrno(OSError)
        return 0

    cdef int check_open(self) except -1:
        if self.epoll < 0:
            raise ValueError("I/O operation on closed epoll object")
        return 0

    # -- the contract of `selectors`

    def register(self, fileobj, events, data=None):
        """Watch a file object; see `selectors.BaseSelector.register`."""
        cdef int fd
        if not events or events & ~(EVENT_READ | EVENT_WRITE):
            raise ValueError(f"Invalid events: {events!r}")
        fd = self.find(fileobj)
        if fd < self.capacity and self.entries[fd].serial:
            raise KeyError(f"{fileobj!r} (FD {fd}) is already registered")
        if fd == NO_DESCRIPTOR:
            raise OverflowError("Python int too large to convert to C int")
        self.check_open()
        self.add(fd, fileobj, events, data)
        return self.key(fd)

    def unregister(self, fileobj):
        """Watch it no more; see `selectors.BaseSelector.unregister`."""
        cdef int fd = self.registered(fileobj)
        key = self.key(fd)
        self.remove(fd)
        return key

    def modify(self, fileobj, events, data=None):
        """Watch for other events, or with other data; see `selectors.BaseSelector.modify`."""
        cdef int fd = self.registered(fileobj)
        cdef bint other_events = events != self.entries[fd].events
        try:
            self.change(fd, events)
        except BaseException:
            self.forget(fd)
            raise
        if other_events or data != self.datas[fd]:
            self.files[fd] = self.file(fd)
            self.entries[fd].filed = True
            self.datas[fd] = data
            self.entries[fd].direct = is_direct(data)
            self.serial += 1
        self.entries[fd].serial = self.serial
        return self.key(fd)

    def select(self, timeout=None):
        """Wait for ready file objects: (key, events) of each; see `selectors`."""
        cdef int size = max(self.count, 1), ready, i, fd, mask
        cdef epoll_event* events = <epoll_event*> PyMem_Malloc(<size_t> size * sizeof(epoll_event))
        if events == NULL:
            raise MemoryError
        try:
            ready = wait(self, milliseconds_of(timeout), events, size)
            found = []
            for i in range(ready):
                fd = events[i].data.fd
                if fd < self.capacity and self.entries[fd].serial:
                    mask = ready_for(events[i].events) & self.entries[fd].events
                    found.append((self.key(fd), mask))
            return found
        finally:
            PyMem_Free(events)

    def get_map(self):
        """File object to `SelectorKey`, live; None once closed."""
        return self.map if self.epoll >= 0 else None

    def close(self):
        """Give the descriptor back and forget all keys."""
        self.close_descriptors()
        for fd in range(self.capacity):
            if self.entries[fd].serial:
                self.forget(fd)

    def fileno(self):
        """The epoll descriptor."""
        self.check_open()
        return self.epoll

    # -- beyond it

    def dispatch(self, timeout=None):
        """Wait up to `timeout` seconds (None: for ever), call what is ready, return how many."""
        return self.turn(milliseconds_of(timeout))

    def run(self, double until):
        """Dispatch, at least once, until the monotonic clock reads `until` or somebody stops it."""
        self.check_open()
        self.stopped = self.rung = False
        self.set_timer(until)
        try:
            while True:
                self.turn(-1)
                if self.stopped or self.rung:
                    return
                PyErr_CheckSignals()
        finally:
            if self.timer >= 0:
                self.set_timer(NEVER)

    def stop(self):
        """Have `run` return after this turn."""
        self.stopped = True

    cdef int turn(self, int milliseconds) except -1:
        """Wait for so long (-1: for ever), call what is ready, return how many."""
        cdef epoll_event events[TURN]
        cdef int ready = wait(self, milliseconds, events, TURN), called = 0, at = 0, fd, mask
        cdef uint64_t newest = self.serial
        cdef Entry entry
        cdef list datas = self.datas
        cdef object data = None
        self.ready = ready
        while at < ready:
            try:    # for all of them: an exception's frame costs as much as half a message
                while at < ready:
                    fd = events[at].data.fd
                    mask = ready_for(events[at].events)
                    at += 1
                    if fd >= self.capacity:
                        continue
                    entry = self.entries[fd]
                    if entry.serial - 1 >= newest:    # unregistered, or registered since
                        self.rung |= fd == self.timer
                        continue
                    data = datas[fd]
                    called += 1
                    if entry.direct:
                        (<Handler> data).handle(mask & entry.events)
                    else:
                        data.on_event(mask & entry.events)
            except MemoryError:
                if not is_direct(data):
                    raise
                (<Handler> data).exhausted()
        return called


class Selector(SelectorCore, selectors.BaseSelector):
    """epoll(7) as a `selectors.BaseSelector`, with `dispatch`."""


class Map(Mapping):
    """A selector's file objects and their keys, live."""

    def __init__(self, core):
        self._core = core

    def __len__(self):
        return (<SelectorCore> self._core).count

    def __getitem__(self, fileobj):
        cdef SelectorCore core = self._core
        return core.key(core.registered(fileobj))

    def __iter__(self):
        cdef SelectorCore core = self._core
        return iter([fd for fd in range(core.capacity) if core.entries[fd].serial])


cdef int wait(SelectorCore core, int milliseconds, epoll_event* events, int size) except -1:
    """epoll_wait for at least so long; after a signal's handler it goes on (PEP 475)."""
    cdef int ready
    cdef double deadline = monotonic() + milliseconds / 1e3 if milliseconds > 0 else 0
    core.check_open()
    while True:
        with nogil:
            ready = epoll_wait(core.epoll, events, size, milliseconds)
        if ready >= 0:
            return ready
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)
        PyErr_CheckSignals()
        core.check_open()
        if milliseconds > 0:
            milliseconds = whole_milliseconds(max(deadline - monotonic(), 0))


cdef int descriptor(fileobj) except -1:
    """The descriptor of a file object or of a number, as `selectors` finds it."""
    if isinstance(fileobj, int):
        number = fileobj
    else:
        try:
            number = int(fileobj.fileno())
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"Invalid file object: {fileobj!r}") from None
    if number < 0:
        raise ValueError(f"Invalid file descriptor: {number}")
    return min(number, NO_DESCRIPTOR)


cdef inline uint32_t mask_of(int events) noexcept:
    """epoll's events for those of `selectors`."""
    return (EPOLLIN if events & EVENT_READ else 0) | (EPOLLOUT if events & EVENT_WRITE else 0)


cdef inline int ready_for(uint32_t found) noexcept:
    """Hang-ups and errors make both ready: the call that follows tells which it is."""
    if found == EPOLLIN:    # as most are
        return EVENT_READ
    return (EVENT_WRITE if found & ~<uint32_t> EPOLLIN else 0) | (
        EVENT_READ if found & ~<uint32_t> EPOLLOUT else 0
    )


cdef int milliseconds_of(timeout) except -2:
    """Of a timeout as `selectors` has it; -1: none."""
    if timeout is None:
        return -1
    return whole_milliseconds(timeout if not timeout <= 0 else 0)


cdef int whole_milliseconds(double seconds) except -1:
    """Rounded up, so that no wait is shorter than asked for."""
    if seconds != seconds:
        raise ValueError("cannot convert float NaN to integer")
    if seconds * 1e3 > INT_MAX:
        raise OverflowError("timeout is too large")
    return <int> ceil(seconds * 1e3)


cdef double monotonic() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec / 1e9
