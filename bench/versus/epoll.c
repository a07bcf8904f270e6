/* The yardstick: lines come back with the time in front; C and epoll, one thread.
 *
 *     epoll HOST PORT [--best]     TCP and UDP
 *
 * As everybody would write it: memchr and memcpy for each line, accept4 until there is no more,
 * recvmmsg and sendmmsg. With --best, at its best: newlines found 64 bytes at a time (x86-64; else
 * as before), one accept4 for an event, and the kernel cuts and joins datagrams.
 *
 * All connections share one buffer to receive into and one to make replies in. One at rest owns
 * neither: the start of a line, or what the kernel did not take, is kept while there is such.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum {
    LONGEST = 65536,  /* bytes of a line, without its end */
    PIECE = 262144,   /* of either buffer */
    WIDTH = 26,       /* [Sun Nov 22 14:03:54 2026] */
    LINGER = 2,       /* seconds for the peer to close, after a line that was too long */
    EVENTS = 256,
    ACCEPTS = 64,
    BACKLOG = 4096,
    BATCH = 64,       /* datagrams to a call */
    DATAGRAM = 65535,
    SEGMENTS = 64,    /* that we put into one send (UDP_MAX_SEGMENTS of older kernels) */
    SEGMENTED = 65487, /* bytes in one such send: IPv6's largest, which is the lesser */
    REPLIES = BATCH * 128,
    SPARE = 128,      /* behind all bytes that are read or written 64, or 32, at a time */
    FEW = 64,         /* bytes of a line that are copied so */
};

static char received[PIECE + SPARE], replies[PIECE + SPARE];
static int epoll;
static bool best;

static void die(const char *what)
{
    perror(what);
    exit(3);
}

static time_t clock_seconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec;
}

/* Rendered once a second. */
static const char *prefix_at(time_t second)
{
    static time_t rendered = -1;
    static char prefix[SPARE];
    if (second != rendered) {
        char text[WIDTH];
        ctime_r(&second, text);
        snprintf(prefix, WIDTH + 1, "[%.24s]", text);
        rendered = second;
    }
    return prefix;
}

/* ---- TCP ---- */

/* What the kernel did not take, and behind it the input not yet cut, with its time. */
struct rest {
    time_t second;
    size_t start, unsent, uncut;
    char bytes[];
};

struct connection {
    TAILQ_ENTRY(connection) link;  /* of those that linger */
    time_t deadline;
    struct rest *rest;
    char *line;                    /* the start of one */
    uint32_t held, room;           /* bytes of it, and for it */
    uint32_t events;
    int fd;
    bool ended, too_long, lingers;
};

static TAILQ_HEAD(, connection) lingering = TAILQ_HEAD_INITIALIZER(lingering);

static void end(struct connection *c)
{
    if (c->lingers)
        TAILQ_REMOVE(&lingering, c, link);
    close(c->fd);
    free(c->rest);
    free(c->line);
    free(c);
}

static void watch(struct connection *c, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (c->events != events)
        epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
    c->events = events;
}

/* Keep the start of a line; whether there was memory. */
static bool hold(struct connection *c, const char *bytes, size_t size)
{
    if (c->held + size > c->room) {
        size_t room = c->held + size < 2 * c->room ? 2 * c->room : c->held + size;
        char *line = realloc(c->line, room);
        if (line == NULL)
            return false;
        c->line = line;
        c->room = (uint32_t)room;
    }
    memcpy(c->line + c->held, bytes, size);
    c->held += (uint32_t)size;
    return true;
}

static char *put_held(struct connection *c, char *to)
{
    to = mempcpy(to, c->line, c->held);
    free(c->line);
    c->line = NULL;
    c->held = c->room = 0;
    return to;
}

#ifdef __SSE2__
/* A bit for each newline in 64 bytes. */
static uint64_t newlines(const char *at)
{
    const __m128i newline = _mm_set1_epi8('\n');
    uint64_t bits = 0;
    for (int i = 0; i < 4; i++) {
        __m128i part = _mm_loadu_si128((const __m128i *)at + i);
        bits |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(part, newline)) << 16 * i;
    }
    return bits;
}

static inline void copy_32(char *to, const char *from)
{
    __m128i low = _mm_loadu_si128((const __m128i *)from);
    __m128i high = _mm_loadu_si128((const __m128i *)from + 1);
    _mm_storeu_si128((__m128i *)to, low);
    _mm_storeu_si128((__m128i *)to + 1, high);
}

/* Whole short lines, as long as they come and fit; moves `data` past them, returns the end of the
 * replies. Reads up to 63 bytes past `stop`, and writes as many past the replies: SPARE. */
static char *stamp_short(const char **data, const char *stop, const char *prefix, char *to)
{
    const char *at = *data, *const full = replies + PIECE - WIDTH - FEW;
    for (const char *block = at; block < stop; block += 64) {
        uint64_t bits = newlines(block);
        if (stop - block < 64)
            bits &= ((uint64_t)1 << (stop - block)) - 1;
        for (; bits; bits &= bits - 1) {
            const char *next = block + __builtin_ctzll(bits) + 1;
            if (next - at > FEW || to > full)
                goto out;
            copy_32(to, prefix);
            to += WIDTH;
            copy_32(to, at);
            if (next - at > 32)
                copy_32(to + 32, at + 32);
            to += next - at;
            at = next;
        }
        if (block + 64 - at > FEW)
            break;
    }
out:
    *data = at;
    return to;
}
#endif

/* Write replies, as many as fit; returns their size, and moves `data` past what was used. */
static size_t stamp(struct connection *c, const char **data, const char *stop, const char *prefix)
{
    const char *at = *data, *newline = NULL;
    char *to = replies, *const full = replies + PIECE - WIDTH - 1;
#ifdef __SSE2__
    if (best && !c->held)
        to = stamp_short(&at, stop, prefix, to);
#endif
    while (at < stop && (newline = memchr(at, '\n', (size_t)(stop - at))) != NULL) {
        size_t size = (size_t)(newline - at);
        if (c->held + size > LONGEST || to + c->held + size > full)
            break;
        to = mempcpy(to, prefix, WIDTH);
        if (c->held)
            to = put_held(c, to);
        to = mempcpy(to, at, size + 1);
        at = newline + 1;
    }
    if (at < stop) {
        size_t size = (size_t)((newline ? newline : stop) - at);
        c->too_long = c->held + size > LONGEST || (!newline && !hold(c, at, size));
        if (c->too_long || !newline)
            at = stop;
    }
    *data = at;
    return (size_t)(to - replies);
}

/* Send; what the kernel does not take is kept, and the uncut input with it. Whether all went. */
static bool deliver(
    struct connection *c, size_t size, const char *uncut, size_t left, time_t second)
{
    ssize_t sent = size ? send(c->fd, replies, size, MSG_NOSIGNAL) : 0;
    if (sent == (ssize_t)size)
        return true;
    if (sent < 0 && errno != EAGAIN) {
        end(c);
        return false;
    }
    size_t unsent = size - (size_t)(sent < 0 ? 0 : sent);
    struct rest *rest = malloc(sizeof(*rest) + unsent + left + SPARE);
    if (rest == NULL) {
        end(c);
        return false;
    }
    *rest = (struct rest){.second = second, .unsent = unsent, .uncut = left};
    memcpy(mempcpy(rest->bytes, replies + size - unsent, unsent), uncut, left);
    c->rest = rest;
    watch(c, EPOLLOUT);
    return false;
}

/* All that came is answered, and the kernel has the replies. */
static void settle(struct connection *c)
{
    if (c->ended) {
        end(c);
    } else if (c->too_long) {
        /* Closing with unread input resets the connection, and that may overtake replies. */
        shutdown(c->fd, SHUT_WR);
        watch(c, EPOLLIN);
        c->lingers = true;
        c->deadline = clock_seconds(CLOCK_MONOTONIC) + LINGER;
        TAILQ_INSERT_TAIL(&lingering, c, link);
    } else {
        watch(c, EPOLLIN);
    }
}

static void answer(struct connection *c, const char *data, size_t size, time_t second)
{
    const char *stop = data + size, *prefix = prefix_at(second);
    while (data < stop) {
        size_t made = stamp(c, &data, stop, prefix);
        if (!deliver(c, made, data, (size_t)(stop - data), second))
            return;
    }
    settle(c);
}

static bool is_over(const struct connection *c)
{
    return c != NULL && c->deadline <= clock_seconds(CLOCK_MONOTONIC);
}

static void read_on(struct connection *c)
{
    ssize_t size = recv(c->fd, received, PIECE, 0);
    if (size < 0 && errno == EAGAIN)
        return;
    if (size < 0 || (size == 0 && c->lingers)) {
        end(c);
    } else if (size > 0 && !c->lingers) {
        answer(c, received, (size_t)size, clock_seconds(CLOCK_REALTIME));
    } else if (size == 0) {
        time_t second = clock_seconds(CLOCK_REALTIME);
        size_t tail = c->held;
        c->ended = true;
        if (tail)
            put_held(c, mempcpy(replies, prefix_at(second), WIDTH));
        if (deliver(c, tail ? WIDTH + tail : 0, NULL, 0, second))
            settle(c);
    }
}

static void write_on(struct connection *c)
{
    struct rest *rest = c->rest;
    ssize_t sent = send(c->fd, rest->bytes + rest->start, rest->unsent, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN)
            end(c);
        return;
    }
    rest->start += (size_t)sent;
    rest->unsent -= (size_t)sent;
    if (rest->unsent)
        return;
    c->rest = NULL;
    answer(c, rest->bytes + rest->start, rest->uncut, rest->second);
    free(rest);
}

static void welcome(int listener)
{
    for (int i = 0; i < (best ? 1 : ACCEPTS); i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        struct connection *c = calloc(1, sizeof(*c));
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (c == NULL || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
            free(c);
            close(fd);
            return;
        }
        c->fd = fd;
        c->events = EPOLLIN;
    }
}

/* ---- UDP ---- */

static struct {
    struct mmsghdr from[BATCH], to[REPLIES];
    struct iovec into[BATCH], parts[2 * REPLIES];  /* of a reply: prefix and datagram */
    struct sockaddr_storage names[BATCH];
    char gro[BATCH][CMSG_SPACE(sizeof(int))];
    char gso[REPLIES][CMSG_SPACE(sizeof(uint16_t))];
    char data[BATCH][DATAGRAM];
} udp;

static void prepare(int i)
{
    udp.into[i] = (struct iovec){udp.data[i], DATAGRAM};
    udp.from[i].msg_hdr = (struct msghdr){
        .msg_name = &udp.names[i], .msg_namelen = sizeof(udp.names[i]),
        .msg_iov = &udp.into[i], .msg_iovlen = 1,
        .msg_control = best ? udp.gro[i] : NULL,
        .msg_controllen = best ? sizeof(udp.gro[i]) : 0,
    };
}

/* How long each datagram is of those that came as one; the last may be shorter. */
static size_t segment_size(struct mmsghdr *message)
{
    struct cmsghdr *control = CMSG_FIRSTHDR(&message->msg_hdr);
    int size = 0;
    if (control && control->cmsg_level == SOL_UDP && control->cmsg_type == UDP_GRO)
        memcpy(&size, CMSG_DATA(control), sizeof(size));
    return size ? (size_t)size : message->msg_len;
}

/* Whether a reply of this size can be the next segment of a send to the same peer. */
static bool joins(const struct msghdr *send, const struct msghdr *source, size_t size, size_t total)
{
    const struct iovec *first = send->msg_iov, *last = first + send->msg_iovlen - 1;
    return send->msg_iovlen < 2 * SEGMENTS && total + size <= SEGMENTED
        && size <= WIDTH + first[1].iov_len && last->iov_len == first[1].iov_len
        && send->msg_namelen == source->msg_namelen
        && memcmp(send->msg_name, source->msg_name, source->msg_namelen) == 0;
}

static void mark_segmented(struct msghdr *send, char *control)
{
    uint16_t size = (uint16_t)(WIDTH + send->msg_iov[1].iov_len);
    struct cmsghdr *header = (struct cmsghdr *)control;
    header->cmsg_level = SOL_UDP;
    header->cmsg_type = UDP_SEGMENT;
    header->cmsg_len = CMSG_LEN(sizeof(size));
    memcpy(CMSG_DATA(header), &size, sizeof(size));
    send->msg_control = control;
    send->msg_controllen = CMSG_SPACE(sizeof(size));
}

/* Lay out the replies to what came; the number of sends. */
static int lay_out(int count, char *prefix)
{
    struct iovec *part = udp.parts;
    size_t total = 0;
    int sends = 0;
    for (int i = 0; i < count; i++) {
        struct msghdr *source = &udp.from[i].msg_hdr;
        size_t left = udp.from[i].msg_len;
        size_t segment = best ? segment_size(&udp.from[i]) : left;
        char *at = udp.data[i];
        do {
            size_t size = left < segment ? left : segment;
            struct msghdr *send = sends ? &udp.to[sends - 1].msg_hdr : NULL;
            if (part == udp.parts + 2 * REPLIES)
                return sends;
            if (send && best && joins(send, source, WIDTH + size, total)) {
                send->msg_iovlen += 2;
                mark_segmented(send, udp.gso[sends - 1]);
            } else {
                udp.to[sends++].msg_hdr = (struct msghdr){
                    .msg_name = source->msg_name, .msg_namelen = source->msg_namelen,
                    .msg_iov = part, .msg_iovlen = 2,
                };
                total = 0;
            }
            *part++ = (struct iovec){prefix, WIDTH};
            *part++ = (struct iovec){at, size};
            total += WIDTH + size;
            at += size;
            left -= size;
        } while (left);
    }
    return sends;
}

/* A segmented send was refused: the same, one by one. What is refused then is dropped. */
static void send_singly(int fd, const struct msghdr *refused)
{
    for (size_t i = 0; i < refused->msg_iovlen; i += 2) {
        struct msghdr one = *refused;
        one.msg_iov += i;
        one.msg_iovlen = 2;
        one.msg_controllen = 0;
        sendmsg(fd, &one, 0);
    }
}

static void answer_datagrams(int fd)
{
    static char prefix[WIDTH];
    int count = recvmmsg(fd, udp.from, BATCH, 0, NULL);
    if (count <= 0)
        return;
    memcpy(prefix, prefix_at(clock_seconds(CLOCK_REALTIME)), WIDTH);
    int sends = lay_out(count, prefix);
    for (int at = 0; at < sends;) {
        int sent = sendmmsg(fd, udp.to + at, (unsigned)(sends - at), 0);
        if (sent < 0 && udp.to[at].msg_hdr.msg_iovlen > 2)
            send_singly(fd, &udp.to[at].msg_hdr);
        at += sent < 0 ? 1 : sent;
    }
    for (int i = 0; i < count; i++)
        prepare(i);
}

/* ---- both ---- */

static int open_socket(const char *host, const char *port, int kind)
{
    const int on = 1, unsent = PIECE;
    struct addrinfo hints = {.ai_socktype = kind, .ai_flags = AI_PASSIVE | AI_NUMERICHOST}, *found;
    if (getaddrinfo(host, port, &hints, &found) != 0)
        die("HOST PORT");
    int fd = socket(found->ai_family, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    if (kind == SOCK_STREAM) { /* which accepted ones inherit */
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof(unsent));
    } else if (best && setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof(on)) < 0) {
        die("UDP_GRO");
    }
    if (bind(fd, found->ai_addr, found->ai_addrlen) < 0)
        die("bind");
    if (kind == SOCK_STREAM && listen(fd, BACKLOG) < 0)
        die("listen");
    freeaddrinfo(found);
    return fd;
}

static void dispatch(struct epoll_event *event, int *tcp, int *datagrams)
{
    if (event->data.ptr == tcp)
        welcome(*tcp);
    else if (event->data.ptr == datagrams)
        answer_datagrams(*datagrams);
    else if (((struct connection *)event->data.ptr)->rest)
        write_on(event->data.ptr);
    else
        read_on(event->data.ptr);
}

int main(int count, char **words)
{
    static struct epoll_event events[EVENTS];
    if (count < 3) {
        fprintf(stderr, "usage: %s HOST PORT [--best]\n", words[0]);
        return 2;
    }
    best = count > 3 && strcmp(words[3], "--best") == 0;
    for (int i = 0; i < BATCH; i++)
        prepare(i);
    int tcp = open_socket(words[1], words[2], SOCK_STREAM);
    int datagrams = open_socket(words[1], words[2], SOCK_DGRAM);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < 2; i++) {
        int *fd = i ? &datagrams : &tcp;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = fd};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, *fd, &event) < 0)
            die("epoll_ctl");
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(epoll, events, EVENTS, TAILQ_EMPTY(&lingering) ? -1 : 1000);
        for (int i = 0; i < ready; i++)
            dispatch(&events[i], &tcp, &datagrams);
        while (is_over(TAILQ_FIRST(&lingering)))
            end(TAILQ_FIRST(&lingering));
    }
}
