#include "kernels/host/table.h"

#include <string.h>

/* A counting sort: each expert's pairs in the order of the rows. */
uint32_t host_moe_sort(const struct host_moe *moe)
{
    uint32_t n_pairs = moe->n * moe->active;
    memset(moe->begin, 0, (moe->experts + 1) * sizeof *moe->begin);
    for (uint32_t p = 0; p < n_pairs; p++)
        moe->begin[moe->chosen[p] + 1]++;
    for (uint32_t e = 0; e < moe->experts; e++)
        moe->begin[e + 1] += moe->begin[e];
    /* begin[e] serves as the place of e's next pair, and ends as the begin of e + 1. */
    for (uint32_t p = 0; p < n_pairs; p++)
        moe->pairs[moe->begin[moe->chosen[p]]++] = p;
    memmove(moe->begin + 1, moe->begin, moe->experts * sizeof *moe->begin);
    moe->begin[0] = 0;
    uint32_t n_used = 0;
    for (uint32_t e = 0; e < moe->experts; e++)
        if (moe->begin[e + 1] > moe->begin[e])
            moe->used[n_used++] = e;
    return n_used;
}
