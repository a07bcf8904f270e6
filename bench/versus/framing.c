/* Framing and stamping alone, no socket and no Python: as everybody would write it in C, a `memchr`
 * and two `memcpy` for each line; and as fastecho's native twin does it.
 *
 * Each writes all lines of `data` with the prefix before each to `out`, so many times over, and
 * returns the size of the replies; there is room for them.
 */

#include <stddef.h>
#include <string.h>

#include "lines.h"

size_t plainly(
    const char *data, size_t size, char *out, size_t room,
    const char *prefix, size_t width, size_t times)
{
    char *to = out;
    (void)room;
    while (times--) {
        const char *at = data, *stop = data + size, *newline;
        for (to = out; (newline = memchr(at, '\n', (size_t)(stop - at))) != NULL; at = newline + 1) {
            memcpy(to, prefix, width);
            memcpy(to + width, at, (size_t)(newline + 1 - at));
            to += width + (size_t)(newline + 1 - at);
        }
    }
    return (size_t)(to - out);
}

size_t as_fastecho(
    const char *data, size_t size, char *out, size_t room,
    const char *prefix, size_t width, size_t times)
{
    char padded[LINES_PREFIX] = {0};
    const struct lines_job job = {padded, width, "\n", 1, 65536};
    size_t consumed, written = 0;
    int scanned;
    memcpy(padded, prefix, width);
    while (times--)
        lines_stamp(data, size, &consumed, &scanned, out, room, &written, &job);
    return written;
}
