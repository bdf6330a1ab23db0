/*
 * test.h: cmocka in the order in which it must be included, and what our tests share.
 */
#ifndef GPTOSS_TESTS_TEST_H
#define GPTOSS_TESTS_TEST_H

/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
/* clang-format on */

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A small random generator (SplitMix64) with a state of one word: the same numbers everywhere. */
static inline uint64_t test_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Uniform in [−1, 1). */
static inline float test_uniform(uint64_t *state)
{
    return (float)((double)(test_random(state) >> 11) * 0x1p-52 - 1.0);
}

/* Every |got − want| ≤ bound; names the worst index and both values otherwise. */
static inline void test_close(const char *what, const float *got, const float *want, size_t n,
                              double bound)
{
    size_t worst = 0;
    double most = -1;
    for (size_t i = 0; i < n; i++) {
        double off = fabs((double)got[i] - (double)want[i]);
        if (!(off <= most)) {
            most = off;
            worst = i;
        }
    }
    if (!(most <= bound))
        fail_msg("%s: element %zu of %zu is %.9g, want %.9g: off by %.3g, bound %.3g", what, worst,
                 n, (double)got[worst], (double)want[worst], most, bound);
}

#endif
