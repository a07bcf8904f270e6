/* Lines, 64 bytes at a time: a bit mask says where they end (simdjson's way, arXiv:1902.08318).
 *
 * Only what is quick is done here. What is left of the data begins with a line that is not whole,
 * too long or has no room, and is for the codec to judge.
 */

#ifndef FASTECHO_LINES_H
#define FASTECHO_LINES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum {
    LINES_BLOCK = 64,
    LINES_STEP = 32,      /* bytes that are copied at a time, needed or not */
    LINES_SHORT = 128,    /* longer ones are for memcpy */
    LINES_DELIMITER = 8,  /* longest delimiter: each byte like its last costs a look at all of it */
};

/* Which bytes of a block are this one: the first is bit 0. */
static inline uint64_t lines_mask(const char *block, char wanted)
{
    uint64_t mask = 0;
#ifdef __SSE2__
    const __m128i all = _mm_set1_epi8(wanted);
    for (int i = 0; i < LINES_BLOCK; i += 16) {
        const __m128i some = _mm_loadu_si128((const __m128i *)(block + i));
        mask |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(some, all)) << i;
    }
#else
    for (int i = 0; i < LINES_BLOCK; i++)
        mask |= (uint64_t)(block[i] == wanted) << i;
#endif
    return mask;
}

/* Write prefix and line for every line that is whole, not too long, and has room; their number.
 * `scanned` says whether all of the data was looked at, so that what is left is but a line's start.
 */
static uint64_t lines_stamp(
    const char *data, size_t size, size_t *consumed, int *scanned,
    char *out, size_t room, size_t *written,
    const char *prefix, size_t prefix_size, const char *delimiter, size_t width, size_t limit)
{
    const char last = delimiter[width - 1];
    char head[LINES_STEP] = {0};
    size_t start = 0, put = 0, block = 0;
    uint64_t count = 0;

    if (prefix_size <= sizeof(head))
        memcpy(head, prefix, prefix_size);
    while (block < size) {
        uint64_t mask;
        if (size - block >= LINES_BLOCK) {
            mask = lines_mask(data + block, last);
        } else {
            char rest[LINES_BLOCK] = {0};
            memcpy(rest, data + block, size - block);
            mask = lines_mask(rest, last) & (((uint64_t)1 << (size - block)) - 1);
        }
        block += LINES_BLOCK;
        if (mask == 0 && block < size) {
            const char *found = memchr(data + block, last, size - block);
            if (found == NULL)
                break;
            block = (size_t)(found - data);
        }
        for (; mask != 0; mask &= mask - 1) {
            const size_t end = block - LINES_BLOCK + (size_t)__builtin_ctzll(mask) + 1;
            const size_t length = end - start, wide = (length + LINES_STEP - 1) & -LINES_STEP;
            char *to = out + put;
            if (width > 1 && (length < width || memcmp(data + end - width, delimiter, width) != 0))
                continue;
            if (length - width > limit || length + prefix_size > room - put)
                goto done;
            if (length <= LINES_SHORT && prefix_size <= sizeof(head)
                    && wide <= size - start && wide + prefix_size <= room - put) {
                memcpy(to, head, LINES_STEP);
                for (size_t i = 0; i < length; i += LINES_STEP)
                    memcpy(to + prefix_size + i, data + start + i, LINES_STEP);
            } else {
                memcpy(to, prefix, prefix_size);
                memcpy(to + prefix_size, data + start, length);
            }
            put += prefix_size + length;
            start = end;
            count++;
        }
    }
    *scanned = 1;
done:
    *consumed = start;
    *written = put;
    return count;
}

#endif
