/* Stands between a server and the kernel, and gives system calls the results that a test chose.

   Preloaded (LD_PRELOAD) into a single-threaded process that sets the scripts through ctypes. A
   script belongs to one operation on one port: the peer's for a connection and for datagrams that
   are sent, one's own for a listener and for datagrams that are received, 0 for waiting and for
   options of UDP. Each of its steps is used up by one call, or by one datagram of a batch (several
   that leave as segments are one):

       0   nothing special
       n   at most n bytes of a stream, or n events; a batch of datagrams ends before this one
      -n   the call fails with errno n

   What has no script, or has used it up, is left alone. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define CALL(name, ...)                                                                            \
    ({                                                                                             \
        static __typeof__(name) *real;                                                             \
        if (!real)                                                                                 \
            real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name);                                    \
        real(__VA_ARGS__);                                                                         \
    })

enum operation {
    RECV,
    SEND,
    ACCEPT,
    WAIT,
    WATCH,
    MODIFY,
    UNWATCH,
    SHUTDOWN,
    OPTION,
    OPERATIONS
};

struct script {
    int *steps;
    int count, used;
    long bytes; /* that went through since it was set */
};

static struct script *scripts[OPERATIONS][65536];
static int live; /* scripts that there are */

/* The port of each descriptor when it was last watched: a peer that is gone has no name any more. */
static int ports[65536];

/* -- for the process to call */

void shim_forget(int operation, int port)
{
    struct script *script = scripts[operation][port];
    scripts[operation][port] = NULL;
    if (script) {
        free(script->steps);
        free(script);
        live--;
    }
}

void shim_reset(void)
{
    for (int operation = 0; operation < OPERATIONS; operation++)
        for (int port = 0; port < 65536 && live; port++)
            shim_forget(operation, port);
}

void shim_script(int operation, int port, const int *steps, int count)
{
    struct script *script = calloc(1, sizeof *script);
    shim_forget(operation, port);
    script->steps = malloc((count + 1) * sizeof *steps);
    memcpy(script->steps, steps, count * sizeof *steps);
    script->count = count;
    scripts[operation][port] = script;
    live++;
}

int shim_left(int operation, int port)
{
    struct script *script = scripts[operation][port];
    return script ? script->count - script->used : 0;
}

long shim_bytes(int operation, int port)
{
    struct script *script = scripts[operation][port];
    return script ? script->bytes : 0;
}

/* -- scripts */

static int next(struct script *script)
{
    return script && script->used < script->count ? script->steps[script->used] : 0;
}

static int use(struct script *script)
{
    int step = next(script);
    if (script && script->used < script->count)
        script->used++;
    return step;
}

static int fail(int step)
{
    errno = -step;
    return -1;
}

static ssize_t count(struct script *script, ssize_t bytes)
{
    if (script && bytes > 0)
        script->bytes += bytes;
    return bytes;
}

static int port_in(const void *address)
{
    const struct sockaddr_in *inet = address; /* in sockaddr_in6 the port has the same place */
    return inet->sin_family == AF_INET || inet->sin_family == AF_INET6 ? ntohs(inet->sin_port) : 0;
}

static int own_port(int fd)
{
    struct sockaddr_storage address = {0};
    socklen_t size = sizeof address;
    return getsockname(fd, (struct sockaddr *)&address, &size) ? 0 : port_in(&address);
}

/* The peer's, of a connection; one's own, of any other socket. */
static int port_of(int fd)
{
    struct sockaddr_storage address = {0};
    socklen_t size = sizeof address;
    int known = !getpeername(fd, (struct sockaddr *)&address, &size);
    return known ? port_in(&address) : own_port(fd);
}

static struct script *script_of(enum operation operation, int fd)
{
    return scripts[operation][ports[fd]];
}

static struct script *script_to(int fd, const struct msghdr *message)
{
    return message->msg_name ? scripts[SEND][port_in(message->msg_name)] : script_of(SEND, fd);
}

static size_t shorter(int step, size_t length)
{
    return step > 0 && (size_t)step < length ? (size_t)step : length;
}

/* The message with at most `step` bytes. A datagram is never cut. */
static struct msghdr cut(int fd, const struct msghdr *message, int step, struct iovec *pieces)
{
    struct msghdr less = *message;
    int type = 0;
    socklen_t size = sizeof type;
    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size);
    if (step <= 0 || type == SOCK_DGRAM)
        return less;
    less.msg_iov = pieces;
    less.msg_iovlen = 0;
    for (size_t i = 0; i < message->msg_iovlen && step > 0; i++) {
        pieces[i] = message->msg_iov[i];
        pieces[i].iov_len = shorter(step, pieces[i].iov_len);
        step -= (int)pieces[i].iov_len;
        less.msg_iovlen = i + 1;
    }
    return less;
}

/* -- streams */

ssize_t recv(int fd, void *buffer, size_t length, int flags)
{
    struct script *script = script_of(RECV, fd);
    int step = use(script);
    if (step < 0)
        return fail(step);
    return count(script, CALL(recv, fd, buffer, shorter(step, length), flags));
}

ssize_t send(int fd, const void *buffer, size_t length, int flags)
{
    struct script *script = script_of(SEND, fd);
    int step = use(script);
    if (step < 0)
        return fail(step);
    return count(script, CALL(send, fd, buffer, shorter(step, length), flags));
}

int shutdown(int fd, int how)
{
    int step = use(script_of(SHUTDOWN, fd));
    return step < 0 ? fail(step) : CALL(shutdown, fd, how);
}

/* -- streams and datagrams; a step of a datagram's script is used once there is a datagram */

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    struct script *script = script_of(RECV, fd);
    struct iovec pieces[message->msg_iovlen + 1];
    int step = next(script);
    if (step < 0)
        return fail(use(script));
    struct msghdr less = cut(fd, message, step, pieces);
    ssize_t received = CALL(recvmsg, fd, &less, flags);
    if (received >= 0)
        use(script);
    less.msg_iov = message->msg_iov;
    less.msg_iovlen = message->msg_iovlen;
    *message = less;
    return count(script, received);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct script *script = script_to(fd, message);
    struct iovec pieces[message->msg_iovlen + 1];
    int step = use(script);
    if (step < 0)
        return fail(step);
    struct msghdr less = cut(fd, message, step, pieces);
    return count(script, CALL(sendmsg, fd, &less, flags));
}

ssize_t sendto(int fd, const void *data, size_t length, int flags, __CONST_SOCKADDR_ARG address,
               socklen_t size)
{
    const struct sockaddr *to = address.__sockaddr__;
    struct script *script = to ? scripts[SEND][port_in(to)] : script_of(SEND, fd);
    int step = use(script);
    if (step < 0)
        return fail(step);
    return count(script, CALL(sendto, fd, data, length, flags, address, size));
}

int recvmmsg(int fd, struct mmsghdr *messages, unsigned size, int flags, struct timespec *timeout)
{
    struct script *script = script_of(RECV, fd);
    unsigned done = 0;
    for (; done < size; done++) {
        int step = next(script);
        if (done && step)
            break;
        if (step < 0)
            return fail(use(script));
        int wait = done ? MSG_DONTWAIT : 0;
        if (CALL(recvmmsg, fd, messages + done, 1, flags | wait, timeout) < 1) {
            if (!done)
                return -1;
            break;
        }
        use(script);
        count(script, messages[done].msg_len);
    }
    return (int)done;
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned size, int flags)
{
    unsigned done = 0;
    for (; done < size; done++) {
        struct script *script = script_to(fd, &messages[done].msg_hdr);
        if (done && next(script))
            break;
        int step = use(script);
        if (step < 0)
            return fail(step);
        if (CALL(sendmmsg, fd, messages + done, 1, flags) < 1) {
            if (!done)
                return -1;
            break;
        }
        count(script, messages[done].msg_len);
    }
    return (int)done;
}

int setsockopt(int fd, int level, int option, const void *value, socklen_t size)
{
    int step = level == IPPROTO_UDP ? use(scripts[OPTION][0]) : 0;
    return step < 0 ? fail(step) : CALL(setsockopt, fd, level, option, value, size);
}

/* -- listeners */

int accept4(int fd, __SOCKADDR_ARG address, socklen_t *size, int flags)
{
    int step = use(scripts[ACCEPT][own_port(fd)]);
    return step < 0 ? fail(step) : CALL(accept4, fd, address, size, flags);
}

int accept(int fd, __SOCKADDR_ARG address, socklen_t *size)
{
    int step = use(scripts[ACCEPT][own_port(fd)]);
    return step < 0 ? fail(step) : CALL(accept, fd, address, size);
}

/* -- the selector */

int epoll_wait(int epoll, struct epoll_event *events, int size, int timeout)
{
    int step = use(scripts[WAIT][0]);
    if (step < 0)
        return fail(step);
    return CALL(epoll_wait, epoll, events, (int)shorter(step, (size_t)size), timeout);
}

int epoll_pwait(int epoll, struct epoll_event *events, int size, int timeout, const sigset_t *mask)
{
    int step = use(scripts[WAIT][0]);
    if (step < 0)
        return fail(step);
    return CALL(epoll_pwait, epoll, events, (int)shorter(step, (size_t)size), timeout, mask);
}

int epoll_ctl(int epoll, int what, int fd, struct epoll_event *event)
{
    enum operation operation = what == EPOLL_CTL_ADD   ? WATCH
                               : what == EPOLL_CTL_MOD ? MODIFY
                                                       : UNWATCH;
    if (operation == WATCH)
        ports[fd] = port_of(fd);
    int step = use(script_of(operation, fd));
    return step < 0 ? fail(step) : CALL(epoll_ctl, epoll, what, fd, event);
}
