/* Fuzz target: `lines_stamp` does what its comment says, inside the bounds that it was given.
 *
 * An input is six bytes of settings, then the data. What comes out is compared with the same
 * said plainly, one byte at a time; data, room, prefix and delimiter are allocations of exactly
 * their sizes, so that ASan sees one byte too many of each.
 */

#include <stdio.h>
#include <stdlib.h>

#include "lines.h"

enum { SETTINGS = 6 };

/* Those that overlap themselves are hard. All bytes of each are likely in the same data. */
static const char *const DELIMITERS[] = {
    "\n", "\n", "\n", "\r\n", "aa", "aba", "aab", "abcabcab",
};
/* Around the sizes at which the header changes its ways. */
static const size_t LIMITS[] = {1, 2, 31, 32, 33, 63, 64, 65, 126, 127, 128, 129, 4096, 1 << 30};
static const size_t PREFIXES[] = {0, 1, 8, 26, 31, 32, 33, 100};

typedef struct {
    size_t consumed, written;
    uint64_t count;
    int scanned;
} Result;

typedef struct {
    const char *data, *prefix, *delimiter;
    size_t size, room, prefix_size, width, limit;
} Call;

/* Where the first delimiter after `start` ends; 0: nowhere. */
static size_t end_of_line(const Call *call, size_t start)
{
    for (size_t end = start + call->width; end <= call->size; end++)
        if (memcmp(call->data + end - call->width, call->delimiter, call->width) == 0)
            return end;
    return 0;
}

static Result plainly(const Call *call, char *out)
{
    Result result = {0};
    size_t end;
    while ((end = end_of_line(call, result.consumed)) != 0) {
        const size_t length = end - result.consumed;
        if (length - call->width > call->limit)
            return result;
        if (length + call->prefix_size > call->room - result.written)
            return result;
        memcpy(out + result.written, call->prefix, call->prefix_size);
        memcpy(out + result.written + call->prefix_size, call->data + result.consumed, length);
        result.written += call->prefix_size + length;
        result.consumed = end;
        result.count++;
    }
    result.scanned = 1;
    return result;
}

static void demand(int holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "lines_stamp differs: %s\n", what);
    abort();
}

typedef int way(struct lines *lines, const struct lines_job *job);

/* What every processor can do. */
static int lines_words(struct lines *lines, const struct lines_job *job)
{
    return lines_each(lines, job, job->width, mask_words, step_base);
}

/* One line alone, before all else. */
static int lines_alone(struct lines *lines, const struct lines_job *job)
{
    const size_t size = (size_t)(lines->stop - lines->start);
    if (lines->full - lines->to < LINES_PREFIX + MASK_BLOCK
        || !lines_lone(lines->start, size, lines->to, job))
        return lines_base(lines, job);
    lines->start = lines->stop;
    lines->to += job->prefix_size + size;
    lines->count = 1;
    return LINES_ALL;
}

static Result quickly(const Call *call, char *out, way *cut)
{
    const struct lines_job job = {
        call->prefix, call->prefix_size, call->delimiter, call->width, call->limit};
    struct lines lines = {
        .start = call->data, .stop = call->data + call->size, .to = out, .full = out + call->room};
    const int status = cut(&lines, &job);
    return (Result){(size_t)(lines.start - call->data), (size_t)(lines.to - out), lines.count,
                    status == LINES_ALL};
}

static void compare(const Call *call, way *cut)
{
    char *out = malloc(call->room), *expected = malloc(call->room);
    const Result wanted = plainly(call, expected);
    const Result seen = quickly(call, out, cut);
    demand(seen.count == wanted.count, "lines");
    demand(seen.consumed == wanted.consumed, "bytes consumed");
    demand(seen.written == wanted.written, "bytes written");
    demand(seen.scanned == wanted.scanned, "whether all was looked at");
    demand(memcmp(out, expected, wanted.written) == 0, "the replies");
    free(out);
    free(expected);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    Call call;
    const char *word;
    char *delimiter, *prefix, *data;
    size_t shift;
    if (size < SETTINGS)
        return -1;
    word = DELIMITERS[input[0] % 8];
    call.width = strlen(word);
    delimiter = malloc(call.width);
    call.delimiter = memcpy(delimiter, word, call.width);
    call.limit = LIMITS[input[1] % (sizeof(LIMITS) / sizeof(*LIMITS))];
    call.prefix_size = PREFIXES[input[2] % 8];
    prefix = malloc(call.prefix_size < LINES_PREFIX ? LINES_PREFIX : call.prefix_size);
    call.prefix = memset(prefix, '>', call.prefix_size);
    call.room = input[3] | (size_t)input[4] << 8;
    shift = input[5] % 64;    /* of the data from where malloc puts it */
    call.size = size - SETTINGS;
    data = malloc(shift + call.size);
    call.data = memcpy(data + shift, input + SETTINGS, call.size);
    compare(&call, lines_words);
    compare(&call, lines_base);
    compare(&call, lines_alone);
#ifdef MASK_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi"))
        compare(&call, lines_avx2);
#endif
    free(delimiter);
    free(prefix);
    free(data);
    return 0;
}
