/*
 * dot: products of packed weights (pack.h) with rows of integers. Private to cpu/.
 *
 * With int8 activations a row x is quantised in blocks of 32: q = x / scale to the nearest integer,
 * scale = max |x| / 127. Of a row of weights and a row of x, with s the scale of a block of weights, m its minimum and c its
 * numbers,
 *     sum = 0; for each block: sum = (s · scale) · Σ c q + sum; sum = m · (scale · Σ q) + sum
 * (the second where the type has minima; types with two scales in a block do each half's products in
 * turn).
 *
 * With float activations a block takes the power of two with which its largest value lies from 2²⁸ to
 * 2²⁹: a value within 2⁻⁵ of the largest keeps all of its 24 bits, and none is off by more than 2⁻²⁹
 * of the largest. The integers q = 2¹⁵ · upper + lower, lower from −2¹⁴ to 2¹⁴ − 1, are multiplied in
 * two halves of 16 bits, or in four bytes, and
 *     sum = (s · scale) · (2¹⁵ · Σ c upper + Σ c lower) + sum
 * where a sum of float products would round 32 times. A number that is not finite makes all results of
 * its row NaN.
 *
 * Σ is exact, so instruction sets differ only where they round floats apart: AVX2, AVX-VNNI and
 * AVX-512 give the same bits.
 */
#ifndef GPTOSS_KERNELS_CPU_DOT_H
#define GPTOSS_KERNELS_CPU_DOT_H

#include "kernels/cpu/pack.h"
#include "kernels/cpu/simd.h"

/* Rows of x, quantised; some of them as in struct rows. In a row, for each 32 columns DOT_BLOCK bytes:
 *     int8 q[32]; float scale; int32 −128 · Σ q; the same of columns 0–15; float scale · Σ q */
enum { DOT_SCALE = 32, DOT_SUM = 36, DOT_FIRST_SUM = 40, DOT_WEIGHTED = 44, DOT_BLOCK = 48 };

/* With float activations, for each 32 columns WIDE_BLOCK bytes:
 *     digits [8][16 bytes]: of 4 columns the four bytes from the highest, or (AVX2) the upper halves of
 *         columns 0, 2, 1, 3 and the lower ones
 *     float scale; int32 −128 · Σ upper, −128 · Σ lower; the same of columns 0–15; float scale · Σ q */
enum {
    WIDE_SCALE = 128,
    WIDE_UPPER = 132,
    WIDE_LOWER = 136,
    WIDE_FIRST_UPPER = 140,
    WIDE_FIRST_LOWER = 144,
    WIDE_WEIGHTED = 148,
    WIDE_BLOCK = 152
};

/* Are there products with float activations as integers? In plain C floats are quicker. */
#if defined(CPU_ISA_AVX512) || defined(CPU_ISA_AVX2)
#define DOT_WIDE 1
#else
#define DOT_WIDE 0
#endif

struct quantised {
    const unsigned char *base;
    uint64_t stride; /* bytes */
    bool wide;       /* float activations */
    const uint32_t *index;
    uint32_t divide;
};

static inline uint64_t quantised_stride(uint32_t columns, bool wide)
{
    return ((uint64_t)columns / 32 * (wide ? WIDE_BLOCK : DOT_BLOCK) + 63) / 64 * 64;
}

static inline const unsigned char *quantised_row(const struct quantised *x, uint32_t i)
{
    return x->base + (x->index ? x->index[i] / x->divide : i) * x->stride;
}

struct cpu_dot {
    void (*quantise)(const float *x /* [columns], padded */, uint32_t columns, unsigned char *row);
    void (*widen)(const float *x /* [columns], padded */, uint32_t columns, unsigned char *row);
    /* out[i, o] = x_{from + i} · w_o for i < n, without bias; w is a panel. */
    void (*multiply)(enum gguf_type type, const unsigned char *panel, uint32_t columns,
                     const struct quantised *x, uint32_t from, uint32_t n,
                     float *out /* [n, PACK_ROWS] */);
    /* As fast as can be: how many multiplications and additions were done. */
    uint64_t (*spin)(void);
};

extern const struct cpu_dot cpu_dot_plain, cpu_dot_avx2, cpu_dot_avx512;
extern const struct cpu_dot cpu_dot_avxvnni, cpu_dot_avxvnni_evex; /* encoded so */

#endif
