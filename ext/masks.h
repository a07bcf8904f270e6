/* Which of 64 bytes are a given one, as a bit mask: the first byte is bit 0 (simdjson's way,
 * arXiv:1902.08318).
 *
 * Four ways to say the same. MASK_BASE is what every processor of the architecture can do: SSE2,
 * NEON, or words; AVX2 is for those that turn out to have it, since nothing is compiled for the
 * machine that compiles it. With each goes a way to copy 32 bytes, needed or not.
 */

#ifndef FASTECHO_MASKS_H
#define FASTECHO_MASKS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif

enum {
    MASK_BLOCK = 64,  /* bytes of a mask */
    MASK_STEP = 32,   /* bytes copied at a time */
    MASK_HALF = 16,   /* bytes of what every processor has, in one register or in some */
};

typedef uint64_t mask_of(const char *block, char wanted);
typedef void step_of(char *to, const char *from);

/* Eight bytes in a word (Warren, Hacker's Delight, 6-1). */
static inline uint64_t mask_words(const char *block, char wanted)
{
    const uint64_t low = UINT64_C(0x7f7f7f7f7f7f7f7f);
    const uint64_t all = (uint8_t)wanted * UINT64_C(0x0101010101010101);
    uint64_t mask = 0;
    for (int i = 0; i < MASK_BLOCK; i += 8) {
        uint64_t word;
        memcpy(&word, block + i, sizeof(word));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        word = __builtin_bswap64(word);
#endif
        word ^= all;                                /* 0 in each byte that is wanted */
        word = ~(((word & low) + low) | word | low);  /* 0x80 in those, 0 in all others */
        mask |= ((word >> 7) * UINT64_C(0x0102040810204080) >> 56) << i;
    }
    return mask;
}

static inline void step_base(char *to, const char *from)
{
    memcpy(to, from, MASK_STEP);
}

#if defined(__SSE2__)

static inline uint64_t mask_sse2(const char *block, char wanted)
{
    const __m128i all = _mm_set1_epi8(wanted);
    uint64_t mask = 0;
    for (int i = 0; i < MASK_BLOCK; i += 16) {
        const __m128i some = _mm_loadu_si128((const __m128i *)(block + i));
        mask |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(some, all)) << i;
    }
    return mask;
}

#define MASK_COPY_LONE mask_copy_lone
#define MASK_BASE mask_sse2
#define MASK_AVX2 __attribute__((target("avx2,bmi")))

MASK_AVX2 static inline uint64_t mask_avx2(const char *block, char wanted)
{
    const __m256i all = _mm256_set1_epi8(wanted);
    const __m256i low = _mm256_loadu_si256((const __m256i *)block);
    const __m256i high = _mm256_loadu_si256((const __m256i *)(block + 32));
    return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(low, all))
        | (uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(high, all)) << 32;
}

/* memcpy would do it in two halves. */
MASK_AVX2 static inline void step_avx2(char *to, const char *from)
{
    _mm256_storeu_si256((__m256i *)to, _mm256_loadu_si256((const __m256i *)from));
}

#elif defined(__ARM_NEON) && defined(__aarch64__)

/* Each lane weighs what its bit does; neighbours are added until a byte tells of eight lanes. */
static inline uint64_t mask_neon(const char *block, char wanted)
{
    const uint8x16_t all = vdupq_n_u8((uint8_t)wanted);
    const uint8x16_t weights = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t some[4], sums;
    for (int i = 0; i < 4; i++)
        some[i] = vandq_u8(vceqq_u8(vld1q_u8((const uint8_t *)block + 16 * i), all), weights);
    sums = vpaddq_u8(vpaddq_u8(some[0], some[1]), vpaddq_u8(some[2], some[3]));
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(sums, sums)), 0);
}

#define MASK_BASE mask_neon

#else
#define MASK_BASE mask_words
#endif

/* Copy so many bytes and no more; most are few. */
static inline void mask_copy(char *to, const char *from, size_t size)
{
    if (size > MASK_BLOCK || size < MASK_HALF) {
        memcpy(to, from, size);
    } else if (size > MASK_STEP) {
        memcpy(to, from, MASK_STEP);
        memcpy(to + size - MASK_STEP, from + size - MASK_STEP, MASK_STEP);
    } else {
        memcpy(to, from, MASK_HALF);
        memcpy(to + size - MASK_HALF, from + size - MASK_HALF, MASK_HALF);
    }
}

typedef char mask_half __attribute__((vector_size(MASK_HALF)));

static inline mask_half mask_half_at(const char *bytes)
{
    mask_half half;
    memcpy(&half, bytes, sizeof(half));
    return half;
}

/* Copy 17 to 64 bytes; whether none but the last, which is `wanted`, is. Lines that come alone have
 * as many: it takes half the instructions of `memchr` and `memcpy`.
 */
static inline int mask_copy_lone(char *to, const char *from, size_t size, char wanted)
{
    const mask_half all = (mask_half){0} + wanted;
    const mask_half first = mask_half_at(from), last = mask_half_at(from + size - 1 - MASK_HALF);
    mask_half found = (mask_half)((first == all) | (last == all));
    uint64_t any[2];

    memcpy(to, &first, MASK_HALF);
    memcpy(to + size - 1 - MASK_HALF, &last, MASK_HALF);
    to[size - 1] = wanted;
    if (size > 2 * MASK_HALF) {
        const char *const middle = from + size - 1 - 2 * MASK_HALF;
        const mask_half second = mask_half_at(from + MASK_HALF), third = mask_half_at(middle);
        memcpy(to + MASK_HALF, &second, MASK_HALF);
        memcpy(to + (middle - from), &third, MASK_HALF);
        found |= (mask_half)((second == all) | (third == all));
    }
    memcpy(any, &found, sizeof(any));
    return (any[0] | any[1]) == 0;
}

#endif
