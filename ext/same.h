/* Whether two short runs of bytes are the same: memcmp(3) without the call. */

#ifndef FASTECHO_SAME_H
#define FASTECHO_SAME_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    SAME_STEP = 16,   /* bytes of a vector that every machine has */
    SAME_SHORT = 64,  /* from here on memcmp's wider loads are quicker */
};

typedef uint64_t same_vector __attribute__((vector_size(SAME_STEP)));

static inline same_vector same_load(const char *from)
{
    same_vector some;
    memcpy(&some, from, sizeof(some));
    return some;
}

static inline int same_bytes(const char *a, const char *b, size_t size)
{
    size_t last = size - SAME_STEP;  /* where the last step begins: it may overlap */
    same_vector differs;
    if (size < SAME_STEP || size > SAME_SHORT)
        return memcmp(a, b, size) == 0;
    differs = same_load(a + last) ^ same_load(b + last);
    for (size_t at = 0; at < last; at += SAME_STEP)
        differs |= same_load(a + at) ^ same_load(b + at);
    return (differs[0] | differs[1]) == 0;
}

#endif
