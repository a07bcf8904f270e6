/* All ways to make a mask say the same: of every byte at every place, of some at every alignment,
 * and of random blocks. Prints the ways that this processor has.
 */

#include <stdio.h>
#include <stdlib.h>

#include "masks.h"

static const char *way;

static void check(mask_of *mask, const char *block, char wanted)
{
    const uint64_t said = mask(block, wanted);
    uint64_t right = 0;
    for (int i = 0; i < MASK_BLOCK; i++)
        right |= (uint64_t)(block[i] == wanted) << i;
    if (said != right) {
        printf("%s: %#llx, not %#llx\n", way, (unsigned long long)said, (unsigned long long)right);
        exit(1);
    }
}

static void check_all(const char *name, mask_of *mask)
{
    way = name;
    for (size_t alignment = 0; alignment < MASK_BLOCK; alignment++) {
        /* Of exactly the size, so that a byte more is one too many for the sanitizer. */
        char *const memory = malloc(alignment + MASK_BLOCK), *const block = memory + alignment;
        for (int wanted = 0; wanted < 256; wanted += alignment ? 51 : 1) {
            /* Its neighbours in value are what arithmetic on words gets wrong, if anything. */
            const char others[] = {
                (char)(wanted ^ 1), (char)(wanted ^ 0x80), (char)(wanted + 1), (char)(wanted - 1)};
            for (size_t other = 0; other < sizeof(others); other++) {
                memset(block, others[other], MASK_BLOCK);
                check(mask, block, (char)wanted);
                for (int place = 0; place < MASK_BLOCK; place++) {
                    block[place] = (char)wanted;
                    check(mask, block, (char)wanted);
                    block[place] = others[other];
                }
            }
            memset(block, wanted, MASK_BLOCK);
            check(mask, block, (char)wanted);
            for (int round = 0; round < 16; round++) {
                for (int i = 0; i < MASK_BLOCK; i++)
                    block[i] = (char)(rand() % 4 ? rand() : wanted);
                check(mask, block, (char)wanted);
            }
        }
        free(memory);
    }
    puts(name);
}

int main(void)
{
    check_all("words", mask_words);
#if defined(__SSE2__)
    check_all("sse2", mask_sse2);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi"))
        check_all("avx2", mask_avx2);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    check_all("neon", mask_neon);
#endif
    return 0;
}
