/* Frames that say how long they are: what is answered is what a codec that looks at one byte after
 * another would answer, as far as it goes, and what it stops at is unusual; on random frames in
 * memory of exactly their size, into memory of exactly the room.
 */

#include <stdio.h>
#include <stdlib.h>

#include "lengths.h"

enum { FIXED, FIELD, VARINT, NETSTRING, KINDS };

static size_t width;

/* A header, the plain way; its size. */
static size_t put(int kind, const struct lengths_job *job, char *to, uint64_t length)
{
    size_t size = 0;
    switch (kind) {
    case FIELD:
        length -= job->adjust;
        for (size_t i = 0; i < width; i++)
            to[job->before + (job->little ? i : width - 1 - i)] = (char)(length >> 8 * i);
        return job->before + width;
    case VARINT:
        for (; length > 0x7f; length >>= 7)
            to[size++] = (char)(length | 0x80);
        to[size++] = (char)length;
        return size;
    case NETSTRING:
        return (size_t)sprintf(to, "%llu:", (unsigned long long)length);
    default:
        return 0;
    }
}

static uint64_t stamp(
    int kind, const char *data, size_t size, size_t *consumed, char *out, size_t room,
    size_t *written, const struct lengths_job *job)
{
    switch (kind) {
    case FIELD:
        return lengths_stamp_field(data, size, consumed, out, room, written, job);
    case VARINT:
        return lengths_stamp_varint(data, size, consumed, out, room, written, job);
    case NETSTRING:
        return lengths_stamp_netstring(data, size, consumed, out, room, written, job);
    default:
        return lengths_stamp_fixed(data, size, consumed, out, room, written, job);
    }
}

int main(int argc, char **argv)
{
    static char data[40000], right[80000], prefix[LENGTHS_PREFIX];
    static const size_t sizes[] = {0, 1, 9, 10, 31, 32, 63, 64, 65, 99, 100, 127, 128, 129, 300};
    const int rounds = argc > 1 ? atoi(argv[1]) : 10000;

    memset(prefix, 'p', sizeof(prefix));
    for (int round = 0; round < rounds; round++) {
        const int kind = rand() % KINDS;
        size_t size = 0, answers = 0, count = 0, frames = (size_t)rand() % 40, good = frames;
        struct lengths_job job = {
            .prefix = prefix, .prefix_size = (size_t)rand() % (LENGTHS_PREFIX + 1), .limit = 300};
        size_t ends[41] = {0}, said[41] = {0};
        if (kind == FIXED) {
            job.limit = 1 + (size_t)rand() % 100;
        } else if (kind == FIELD) {
            const int adjust = rand() % 11 - 5;
            width = 2 + (size_t)rand() % 7;
            job.before = (size_t)rand() % 12;
            job.adjust = (uint64_t)adjust;
            job.least = adjust < 0 ? (uint64_t)-adjust : 0;
            job.most = job.limit - (uint64_t)adjust;
            job.shift = 64 - 8 * (int)width;
            job.little = rand() % 2;
        }
        if (rand() % 2 && frames)
            good = (size_t)rand() % frames;    /* from here on, one is too long */
        for (size_t i = 0; i < frames; i++) {
            char *const frame = data + size, *const reply = right + answers;
            uint64_t length = sizes[(size_t)rand() % (sizeof(sizes) / sizeof(*sizes))];
            size_t header, reply_header;
            if (kind == FIXED)
                length = job.limit;
            else if (i == good)
                length = job.limit + 1;
            if (kind == FIELD && length < job.adjust && job.adjust < 100)
                length = job.adjust;
            for (size_t k = 0; k < job.before; k++)
                frame[k] = reply[k] = (char)rand();
            header = put(kind, &job, frame, length);
            reply_header = put(kind, &job, reply, length + job.prefix_size);
            memcpy(reply + reply_header, prefix, job.prefix_size);
            for (size_t k = 0; k < length; k++)
                frame[header + k] = (char)rand();
            if (kind == NETSTRING)
                frame[header + length] = ',';
            memcpy(reply + reply_header + job.prefix_size, frame + header,
                length + (kind == NETSTRING));
            size += header + length + (kind == NETSTRING);
            answers += reply_header + job.prefix_size + length + (kind == NETSTRING);
            ends[i + 1] = size;
            said[i + 1] = answers;
        }
        if (size && rand() % 2)
            size -= (size_t)rand() % (size < 50 ? size : 50);
        const size_t room = rand() % 2 ? answers + 4096 : (size_t)rand() % (answers + 1);
        char *const exact = malloc(size + (size == 0)), *const out = malloc(room + (room == 0));
        size_t consumed, written;
        memcpy(exact, data, size);
        count = stamp(kind, exact, size, &consumed, out, room, &written, &job);
        if (count > frames || (kind != FIXED && count > good) || consumed != ends[count]
            || written != said[count] || memcmp(out, right, written) != 0) {
            printf("kind %d, round %d: wrong\n", kind, round);
            return 1;
        }
        /* It may stop at a frame that is there and has room only where a word is not. */
        if (count < frames && (kind == FIXED || count != good)
            && ends[count + 1] + LENGTHS_WORD <= size
            && said[count + 1] + LENGTHS_ROOM + job.before <= room) {
            printf("kind %d, round %d: stops after %zu of %zu\n", kind, round, count, frames);
            return 1;
        }
        free(exact);
        free(out);
    }
    return 0;
}
