/* Lines: prefix and line for every line that is whole, not too long, and has room.
 *
 * Many short lines are found 64 bytes at a time, by bit masks, and copied 32 bytes at a time,
 * needed or not: a reply is not over before the next is written over its end. For that there must
 * be room, and bytes to read. Where there is not, and for long lines, there are `memchr` and
 * `memcpy`: scanning and copying long lines in one go was no faster than the C library's two.
 *
 * What is left of the data begins with a line that is not whole, too long or has no room, and is
 * for the codec to judge. Past `written`, the buffer has whatever it has.
 */

#ifndef FASTECHO_LINES_H
#define FASTECHO_LINES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "masks.h"

enum {
    LINES_DELIMITER = 8,  /* longest delimiter: each byte like its last costs a look at all of it */
    LINES_PREFIX = MASK_STEP,        /* longest prefix that is copied in one step */
    LINES_AHEAD = 2 * MASK_BLOCK,    /* bytes to read behind the start of a block: it and a line */
    LINES_LONG = 4 * MASK_BLOCK,     /* from here on the C library is faster */
    /* Room for what can come of a block: as many replies as it has bytes, and one begun. */
    LINES_ROOM = MASK_BLOCK * LINES_PREFIX + 2 * LINES_AHEAD,
};

enum { LINES_MORE, LINES_ALL, LINES_STUCK };

/* What is done to all lines. The prefix can be read up to LINES_PREFIX. */
struct lines_job {
    const char *prefix;
    size_t prefix_size;
    const char *delimiter;
    size_t width;
    size_t limit;
};

/* How far it is. */
struct lines {
    const char *start;  /* of the next line */
    const char *stop;
    char *to;           /* where its reply begins */
    char *full;
    size_t begun;       /* bytes of that line without its end, already in place behind the prefix */
    uint64_t count;
};

#define LINES_INLINE static inline __attribute__((always_inline))

/* Whether the delimiter ends here, as its last byte does. */
LINES_INLINE int lines_end(const struct lines_job *job, const char *end, size_t length)
{
    for (size_t i = 2; i <= job->width; i++)
        if (length < i || end[-(ptrdiff_t)i] != job->delimiter[job->width - i])
            return 0;
    return 1;
}

/* As many lines as end in the blocks before `until`, each at least LINES_AHEAD bytes before what
 * cannot be read; stops early in a long line, at one that is too long, or where room grows short.
 *
 * The next line's beginning is copied before its end is known: `sure` bytes of it, 32 until there
 * is a longer one. A block without an end is copied when it was looked at.
 */
LINES_INLINE void lines_many(
    struct lines *lines, const struct lines_job *job, const char *until, size_t width,
    mask_of *mask, step_of *step)
{
    const char *const prefix = job->prefix;
    const size_t prefix_size = job->prefix_size;
    const char last = job->delimiter[width - 1];
    const char *start = lines->start, *block = start;
    char *to = lines->to, *const full = lines->full - LINES_ROOM;
    size_t sure = MASK_STEP;
    uint64_t count = 0;

    step(to, prefix);
    step(to + prefix_size, start);
    for (; block < until && full - to > block - start; block += MASK_BLOCK) {
        const char *const before = start;
        uint64_t found = mask(block, last);
        const uint64_t any = found;
        for (; found != 0; found &= found - 1) {
            const char *const end = block + __builtin_ctzll(found) + 1;
            const size_t length = (size_t)(end - start);
            if (width > 1 && !lines_end(job, end, length))
                continue;
            if (__builtin_expect(length > sure, 0)) {
                if (length - width > job->limit)
                    goto out;
                step(to + prefix_size + MASK_STEP, start + MASK_STEP);
                sure = 2 * MASK_STEP;
                if (length > sure) {
                    step(to + prefix_size + (block - start), block);
                    step(to + prefix_size + (block - start) + MASK_STEP, block + MASK_STEP);
                }
            }
            to += prefix_size + length;
            start = end;
            count++;
            step(to, prefix);
            step(to + prefix_size, start);
            if (sure > MASK_STEP)
                step(to + prefix_size + MASK_STEP, start + MASK_STEP);
        }
        if (width > 1 ? start == before : any == 0) {
            step(to + prefix_size + MASK_STEP, start + MASK_STEP);
            sure = 2 * MASK_STEP;
            step(to + prefix_size + (block - start), block);
            step(to + prefix_size + (block - start) + MASK_STEP, block + MASK_STEP);
            if (block - start >= LINES_LONG) {
                block += MASK_BLOCK;
                break;
            }
        }
    }
out:
    lines->begun = block > start ? (size_t)(block - start) : 0;
    if (lines->begun > sure && lines->begun <= MASK_BLOCK)
        lines->begun = sure;
    lines->start = start;
    lines->to = to;
    lines->count += count;
}

/* The same for the last few, in a copy with bytes to read behind it, of which none is an end. */
LINES_INLINE void lines_last(
    struct lines *lines, const struct lines_job *job, size_t width, mask_of *mask, step_of *step)
{
    const char *const start = lines->start;
    const size_t size = (size_t)(lines->stop - start);
    char copy[2 * LINES_AHEAD];

    memset(copy, ~job->delimiter[job->width - 1], sizeof(copy));
    memcpy(copy, start, size);
    lines->start = copy;
    lines_many(lines, job, copy + size, width, mask, step);
    lines->start = start + (lines->start - copy);
    if (lines->begun > (size_t)(lines->stop - lines->start))
        lines->begun = (size_t)(lines->stop - lines->start);
}

/* One line and, while they are long or the last few, those behind it. */
LINES_INLINE int lines_few(struct lines *lines, const struct lines_job *job)
{
    const char *const stop = lines->stop;
    const size_t prefix_size = job->prefix_size;
    const char last = job->delimiter[job->width - 1];
    const char *start = lines->start, *end = start + lines->begun;
    char *to = lines->to;
    size_t begun = lines->begun;
    int status = LINES_ALL;

    while (end < stop) {
        const size_t room = (size_t)(lines->full - to);
        size_t length;
        end = memchr(end, last, (size_t)(stop - end));
        if (end == NULL)
            break;
        length = (size_t)(++end - start);
        if (!lines_end(job, end, length))
            continue;
        if (length - job->width > job->limit || prefix_size + length > room) {
            status = LINES_STUCK;
            break;
        }
        if (begun == 0) {
            if (prefix_size <= LINES_PREFIX && room >= LINES_PREFIX)
                memcpy(to, job->prefix, LINES_PREFIX);
            else
                memcpy(to, job->prefix, prefix_size);
        }
        mask_copy(to + prefix_size + begun, start + begun, length - begun);
        to += prefix_size + length;
        start = end;
        begun = 0;
        lines->count++;
        if (length < LINES_LONG && stop - end > MASK_BLOCK) {
            status = LINES_MORE;
            break;
        }
    }
    lines->start = start;
    lines->to = to;
    return status;
}

LINES_INLINE int lines_each(
    struct lines *lines, const struct lines_job *job, size_t width, mask_of *mask, step_of *step)
{
    /* Lines of a block's length and less are not measured one by one. */
    const int small = job->prefix_size > LINES_PREFIX || job->limit < MASK_BLOCK;
    int status;
    do {
        const ptrdiff_t left = lines->stop - lines->start;
        lines->begun = 0;
        if (left > MASK_BLOCK && !small && lines->full - lines->to > LINES_ROOM) {
            if (left >= LINES_AHEAD)
                lines_many(lines, job, lines->stop - LINES_AHEAD + 1, width, mask, step);
            else
                lines_last(lines, job, width, mask, step);
        }
        status = lines_few(lines, job);
    } while (status == LINES_MORE);
    return status;
}

static int lines_base(struct lines *lines, const struct lines_job *job)
{
    if (job->width == 1)
        return lines_each(lines, job, 1, MASK_BASE, step_base);
    return lines_each(lines, job, job->width, MASK_BASE, step_base);
}

#ifdef MASK_AVX2
MASK_AVX2 static int lines_avx2(struct lines *lines, const struct lines_job *job)
{
    if (job->width == 1)
        return lines_each(lines, job, 1, mask_avx2, step_avx2);
    return lines_each(lines, job, job->width, mask_avx2, step_avx2);
}
#endif

/* Up to 16 bytes; apart, so that these calls cost longer lines nothing. */
static __attribute__((noinline)) int lines_tiny(
    char *to, const char *from, size_t size, char wanted)
{
    memcpy(to, from, size);
    return memchr(from, wanted, size) == from + size - 1;
}

/* One line and no more, of 1 to 64 bytes: what most receives bring. Whether it was that; if not,
 * the LINES_PREFIX + MASK_BLOCK bytes at `out` are whatever they are.
 */
LINES_INLINE int lines_lone(
    const char *data, size_t size, char *out, const struct lines_job *job)
{
    if (size == 0 || size > MASK_BLOCK || job->width > 1
            || job->prefix_size > LINES_PREFIX || size - 1 > job->limit
            || data[size - 1] != job->delimiter[0])
        return 0;
    memcpy(out, job->prefix, LINES_PREFIX);
    if (__builtin_expect(size <= MASK_HALF, 0))
        return lines_tiny(out + job->prefix_size, data, size, job->delimiter[0]);
    return mask_copy_lone(out + job->prefix_size, data, size, job->delimiter[0]);
}

/* Their number. `scanned` says whether all of the data was looked at, so that what is left is but a
 * line's start.
 */
static inline uint64_t lines_stamp(
    const char *data, size_t size, size_t *consumed, int *scanned,
    char *out, size_t room, size_t *written, const struct lines_job *job)
{
    struct lines lines;
    int status;

    lines = (struct lines){.start = data, .stop = data + size, .to = out, .full = out + room};
#ifdef MASK_AVX2
    if (size > MASK_BLOCK && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi"))
        status = lines_avx2(&lines, job);
    else
#endif
        status = lines_base(&lines, job);
    *scanned = status == LINES_ALL;
    *consumed = (size_t)(lines.start - data);
    *written = (size_t)(lines.to - out);
    return lines.count;
}

#endif
