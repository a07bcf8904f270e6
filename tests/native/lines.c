/* Lines, whichever mask finds them, are those of a loop that looks at one byte after another: of
 * random data in memory of exactly its size, into memory of exactly the room.
 */

#include <stdio.h>
#include <stdlib.h>

#include "lines.h"

typedef int way_of(struct lines *lines, const struct lines_job *job);

static int lines_words(struct lines *lines, const struct lines_job *job)
{
    if (job->width == 1)
        return lines_each(lines, job, 1, mask_words, step_base);
    return lines_each(lines, job, job->width, mask_words, step_base);
}

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

/* A delimiter never begins in the one before it, so that the leftmost ends first. */
static int slowly(struct lines *lines, const struct lines_job *job)
{
    const char *const data = lines->start;
    for (const char *end = data + 1; end <= lines->stop; end++) {
        const size_t length = (size_t)(end - lines->start);
        if (length < job->width || memcmp(end - job->width, job->delimiter, job->width) != 0)
            continue;
        if (length - job->width > job->limit
            || job->prefix_size + length > (size_t)(lines->full - lines->to))
            return LINES_STUCK;
        memcpy(lines->to, job->prefix, job->prefix_size);
        memcpy(lines->to + job->prefix_size, lines->start, length);
        lines->to += job->prefix_size + length;
        lines->start = end;
        lines->count++;
    }
    return LINES_ALL;
}

static size_t any_of(const size_t *choices, size_t count)
{
    return choices[(size_t)rand() % count];
}
#define ANY(...) any_of((size_t[]){__VA_ARGS__}, sizeof((size_t[]){__VA_ARGS__}) / sizeof(size_t))

static char *copy_of(const char *bytes, size_t size)
{
    char *const memory = malloc(size + (size == 0));
    memcpy(memory, bytes, size);
    return memory;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        way_of *way;
    } ways[] = {
        {"words", lines_words},
        {"base", lines_base},
        {"alone", lines_alone},
#ifdef MASK_AVX2
        {"avx2", lines_avx2},
#endif
    };
    static char bytes[20000], prefix[128];
    const int rounds = argc > 1 ? atoi(argv[1]) : 3000;

    for (int round = 0; round < rounds; round++) {
        static const char *const delimiters[] = {"\n", "\n", "\r\n", "ab", "\xff"};
        const char *const delimiter = delimiters[rand() % 5];
        const size_t mean = ANY(1, 2, 8, 32, 33, 70, 200, 1000);
        const size_t size = ANY(0, 0, 1, 31, 63, 64, 65, 127, 128, 129, 500, 2000, 9000)
            + (size_t)rand() % 64;
        const size_t prefix_size = ANY(0, 1, 26, 31, 32, 33, 100);
        const size_t limit = ANY(1, 40, 63, 64, 65, 300, 65536, 65536, 65536);
        size_t most, room;
        for (size_t i = 0; i < size; i++)
            bytes[i] = "\r\nabx"[(size_t)rand() % 5];
        for (size_t i = 0; i < size; i++)
            if ((size_t)rand() % mean != 0 && strchr(delimiter, bytes[i]) != NULL)
                bytes[i] = 'x';
        for (size_t i = 0; i < size; i++)
            if ((size_t)rand() % (mean + strlen(delimiter)) == 0)
                memcpy(bytes + i, delimiter, strlen(delimiter));
        if (size > 0 && rand() % 2)    /* and with it the last line, perhaps the only one */
            bytes[size - 1] = delimiter[strlen(delimiter) - 1];
        most = size * (prefix_size + 1);
        room = ANY(most, most, most + 3000, (size_t)rand() % (most + 1), (size_t)rand() % 3000);
        for (size_t i = 0; i < sizeof(prefix); i++)
            prefix[i] = (char)('A' + i % 26);

        char *const data = copy_of(bytes, size);
        char *const right = malloc(room + 1);
        char *const text = copy_of(prefix, prefix_size < LINES_PREFIX ? LINES_PREFIX : prefix_size);
        const struct lines_job job = {text, prefix_size, delimiter, strlen(delimiter), limit};
        const struct lines begin = {.start = data, .stop = data + size};
        struct lines wanted = begin;
        wanted.to = right;
        wanted.full = right + room;
        const int status = slowly(&wanted, &job);
        for (size_t i = 0; i < sizeof(ways) / sizeof(*ways); i++) {
#ifdef MASK_AVX2
            if (ways[i].way == lines_avx2
                && !(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi")))
                continue;
#endif
            char *const out = malloc(room + (room == 0));
            struct lines lines = begin;
            lines.to = out;
            lines.full = out + room;
            const int said = ways[i].way(&lines, &job);
            const size_t written = (size_t)(lines.to - out);
            if (said != status || lines.start != wanted.start || lines.count != wanted.count
                || written != (size_t)(wanted.to - right) || memcmp(out, right, written) != 0) {
                printf("%s: round %d differs\n", ways[i].name, round);
                return 1;
            }
            free(out);
        }
        free(data);
        free(right);
        free(text);
    }
    return 0;
}
