/* Lines with a prefix before each, the plain way: `memchr`, `memcpy`, and the checks that no server
 * can do without. As bench/versus/epoll.c does it.
 */

#include <stddef.h>
#include <string.h>

enum {
    WIDTH = 26,       /* [Sun Nov 22 14:03:54 2026] */
    LONGEST = 65536,  /* bytes of a line, without its end */
};

/* As often as that; the size of the replies. */
size_t plain_lines(
    const char *data, size_t size, char *out, size_t room, const char *prefix, int times)
{
    const char *const stop = data + size, *const full = out + room;
    char *to = out;
    while (times-- > 0) {
        const char *at = data, *newline;
        to = out;
        while (at < stop && (newline = memchr(at, '\n', (size_t)(stop - at))) != NULL) {
            const size_t length = (size_t)(newline + 1 - at);
            if (length - 1 > LONGEST || WIDTH + length > (size_t)(full - to))
                break;
            memcpy(to, prefix, WIDTH);
            memcpy(to + WIDTH, at, length);
            to += WIDTH + length;
            at = newline + 1;
        }
    }
    return (size_t)(to - out);
}
