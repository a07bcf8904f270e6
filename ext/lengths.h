/* Frames that say how long they are: header, prefix and message for every frame that is whole, not
 * too long, and has room.
 *
 * A message's length is known before it is looked at, so what is left to lose is a branch that goes
 * now this way, now that: headers are read and written whole words at a time, whatever is in them,
 * and messages of up to 64 bytes are copied as if all had 64.
 *
 * What is unusual is left to the codec, as is what follows it: frames that are not whole, too long,
 * corrupt or have no room, and headers that one word cannot hold.
 */

#ifndef FASTECHO_LENGTHS_H
#define FASTECHO_LENGTHS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    LENGTHS_WORD = 8,
    LENGTHS_PREFIX = 32,  /* longest prefix; it can be read up to that */
    LENGTHS_SHORT = 64,   /* longer messages are for memcpy */
    /* Room beside a message: a header and a colon, the prefix, and what is copied in vain. */
    LENGTHS_ROOM = 2 * LENGTHS_WORD + LENGTHS_PREFIX + LENGTHS_SHORT,
};

/* What is done to all frames. Only a length field has the last five: `least` to `most` is what it
 * may announce, `shift` are the bits that its word has more than it.
 */
struct lengths_job {
    const char *prefix;
    size_t prefix_size;
    size_t limit;
    size_t before;
    uint64_t least, most, adjust;
    int shift, little;
};

#define LENGTHS_INLINE static inline __attribute__((always_inline))

LENGTHS_INLINE uint64_t lengths_load(const char *from)
{
    uint64_t word;
    memcpy(&word, from, sizeof(word));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

LENGTHS_INLINE void lengths_store(char *to, uint64_t word)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    memcpy(to, &word, sizeof(word));
}

/* A framing has two functions. One reads a header, `before` and a word of which can be read: its
 * size, 0 if it is for the codec. The other writes that of the reply, where there is room for
 * `before` and two words: its size.
 */
typedef size_t lengths_get(const struct lengths_job *job, const char *from, uint64_t *length);
typedef size_t lengths_put(
    const struct lengths_job *job, char *to, const char *from, uint64_t length);

/* ---- nothing: all are of one length */

LENGTHS_INLINE size_t lengths_put_none(
    const struct lengths_job *job, char *to, const char *from, uint64_t length)
{
    (void)job, (void)to, (void)from, (void)length;
    return 0;
}

/* ---- a field of 1 to 8 bytes */

LENGTHS_INLINE size_t lengths_get_field(
    const struct lengths_job *job, const char *from, uint64_t *length)
{
    uint64_t word = lengths_load(from + job->before);
    word = job->little ? word << job->shift : __builtin_bswap64(word);
    word >>= job->shift;
    *length = word + job->adjust;
    if (word - job->least > job->most - job->least)
        return 0;
    return job->before + LENGTHS_WORD - (size_t)job->shift / 8;
}

LENGTHS_INLINE size_t lengths_put_field(
    const struct lengths_job *job, char *to, const char *from, uint64_t length)
{
    uint64_t word = length - job->adjust;
    if (!job->little)
        word = __builtin_bswap64(word << job->shift);
    if (job->before <= LENGTHS_WORD)
        memcpy(to, from, LENGTHS_WORD);
    else
        memcpy(to, from, job->before);
    lengths_store(to + job->before, word);
    return job->before + LENGTHS_WORD - (size_t)job->shift / 8;
}

/* ---- a varint: groups of seven bits are put together, or apart, in pairs */

LENGTHS_INLINE size_t lengths_get_varint(
    const struct lengths_job *job, const char *from, uint64_t *length)
{
    uint64_t word = lengths_load(from);
    const uint64_t stops = ~word & UINT64_C(0x8080808080808080);
    word &= (stops ^ (stops - 1)) & UINT64_C(0x7f7f7f7f7f7f7f7f);
    word = (word & UINT64_C(0x007f007f007f007f)) | (word & UINT64_C(0x7f007f007f007f00)) >> 1;
    word = (word & UINT64_C(0x00003fff00003fff)) | (word & UINT64_C(0x3fff00003fff0000)) >> 2;
    word = (word & UINT64_C(0x000000000fffffff)) | (word & UINT64_C(0x0fffffff00000000)) >> 4;
    *length = word;
    if (stops == 0 || word > job->limit)
        return 0;
    return (size_t)__builtin_ctzll(stops) / 8 + 1;
}

LENGTHS_INLINE size_t lengths_put_varint(
    const struct lengths_job *job, char *to, const char *from, uint64_t length)
{
    uint64_t word = length;
    size_t more;
    (void)job, (void)from;
    word = (word & UINT64_C(0x000000000fffffff)) | (word & UINT64_C(0x00fffffff0000000)) << 4;
    word = (word & UINT64_C(0x00003fff00003fff)) | (word & UINT64_C(0x0fffc0000fffc000)) << 2;
    word = (word & UINT64_C(0x007f007f007f007f)) | (word & UINT64_C(0x3f803f803f803f80)) << 1;
    more = (size_t)(63 - __builtin_clzll(word | 1)) / 8;
    lengths_store(to, word | (UINT64_C(0x8080808080808080) & ((UINT64_C(1) << 8 * more) - 1)));
    return more + 1;
}

/* ---- a netstring: digits are put together, or apart, in pairs */

LENGTHS_INLINE size_t lengths_get_decimal(
    const struct lengths_job *job, const char *from, uint64_t *length)
{
    const uint64_t word = lengths_load(from);
    const uint64_t colons = word ^ UINT64_C(0x3a3a3a3a3a3a3a3a);
    const uint64_t stops =
        (colons - UINT64_C(0x0101010101010101)) & ~colons & UINT64_C(0x8080808080808080);
    uint64_t digits;
    size_t width;
    if (stops == 0 || stops & 0x80)    /* more than seven digits, or none */
        return 0;
    width = (size_t)__builtin_ctzll(stops) / 8;
    digits = (word ^ UINT64_C(0x3030303030303030)) << (64 - 8 * width);
    if (((digits + UINT64_C(0x7676767676767676)) | digits) & UINT64_C(0x8080808080808080))
        return 0;
    if (width > 1 && (word & 0xff) == '0')
        return 0;
    digits = digits * (10 * 0x100 + 1) >> 8;
    digits = (digits & UINT64_C(0x00ff00ff00ff00ff)) * (100 * 0x10000 + 1) >> 16;
    digits = (digits & UINT64_C(0x0000ffff0000ffff)) * (10000 * UINT64_C(0x100000000) + 1) >> 32;
    *length = digits;
    return digits <= job->limit ? width + 1 : 0;
}

/* Of up to eight digits, since one that is read has up to seven. */
LENGTHS_INLINE size_t lengths_put_decimal(
    const struct lengths_job *job, char *to, const char *from, uint64_t length)
{
    uint64_t word, tens;
    size_t zeros;
    (void)job, (void)from;
    word = length / 10000 | (length % 10000) << 32;
    tens = (word * 10486 >> 20) & UINT64_C(0x0000007f0000007f);    /* hundreds, in fact */
    word = tens | (word - tens * 100) << 16;
    tens = (word * 103 >> 10) & UINT64_C(0x000f000f000f000f);
    word = tens | (word - tens * 10) << 8;
    zeros = (size_t)__builtin_ctzll(word | UINT64_C(1) << 56) / 8;
    lengths_store(to, (word | UINT64_C(0x3030303030303030)) >> 8 * zeros);
    to[8 - zeros] = ':';
    return 9 - zeros;
}

/* ---- what they share */

/* The number of frames. Those of one length have no `get`; `end` is a netstring's comma, or 0. */
LENGTHS_INLINE uint64_t lengths_each(
    const char *data, size_t size, size_t *consumed, char *out, size_t room, size_t *written,
    const struct lengths_job *job, lengths_get *get, lengths_put *put, char end)
{
    const size_t ahead = get == NULL ? 0 : job->before + LENGTHS_WORD;
    const size_t beside = job->before + LENGTHS_ROOM, trailer = end != 0;
    size_t at = 0, used = 0;
    uint64_t count = 0;

    while (size - at >= ahead) {
        uint64_t length = job->limit;
        const size_t header = get == NULL ? 0 : get(job, data + at, &length);
        const char *const message = data + at + header;
        char *to = out + used;
        size_t left;
        if (get != NULL && header == 0)
            break;
        left = size - at - header;
        if (left < length + trailer || room - used < beside + length)
            break;
        if (end != 0 && message[length] != end)
            break;
        to += put(job, to, data + at, job->prefix_size + length);
        memcpy(to, job->prefix, LENGTHS_PREFIX);
        to += job->prefix_size;
        length += trailer;
        if (length <= LENGTHS_SHORT && left >= LENGTHS_SHORT)
            memcpy(to, message, LENGTHS_SHORT);
        else
            memcpy(to, message, length);
        used = (size_t)(to - out) + length;
        at += header + length;
        count++;
    }
    *consumed = at;
    *written = used;
    return count;
}

#define LENGTHS_STAMP(name, get, put, end)                                                         \
    static inline uint64_t name(                                                                   \
        const char *data, size_t size, size_t *consumed, char *out, size_t room, size_t *written,  \
        const struct lengths_job *job)                                                             \
    {                                                                                              \
        return lengths_each(data, size, consumed, out, room, written, job, get, put, end);         \
    }

LENGTHS_STAMP(lengths_stamp_fixed, NULL, lengths_put_none, 0)
LENGTHS_STAMP(lengths_stamp_field, lengths_get_field, lengths_put_field, 0)
LENGTHS_STAMP(lengths_stamp_varint, lengths_get_varint, lengths_put_varint, 0)
LENGTHS_STAMP(lengths_stamp_netstring, lengths_get_decimal, lengths_put_decimal, ',')

#endif
