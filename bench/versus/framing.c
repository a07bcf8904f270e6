/* Framing and stamping alone, as everybody would write it in C: memchr and memcpy for each line. */

#include <stddef.h>
#include <string.h>

/* Write all lines with the prefix before each, so many times over; the size of the replies. */
size_t stamp(
    const char *data, size_t size, char *out, const char *prefix, size_t width, size_t times)
{
    char *to = out;
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
