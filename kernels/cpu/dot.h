/*
 * dot: products of packed weights (pack.h) with rows of int8. Private to cpu/.
 *
 * A row x is quantised in blocks of 32: q = x / scale to the nearest integer, scale = max |x| / 127.
 * Of a row of weights and a row of x, with s the scale of a block of weights, m its minimum and c its
 * numbers,
 *     sum = 0; for each block: sum = (s · scale) · Σ c q + sum; sum = m · (scale · Σ q) + sum
 * (the second where the type has minima; types with two scales in a block do each half's products in
 * turn). Σ is exact, so instruction sets differ only where they round floats apart: AVX2, AVX-VNNI and
 * AVX-512 give the same bits.
 */
#ifndef GPTOSS_KERNELS_CPU_DOT_H
#define GPTOSS_KERNELS_CPU_DOT_H

#include "kernels/cpu/pack.h"
#include "kernels/cpu/simd.h"

/* Rows of x, quantised; some of them as in struct rows. In a row, for each 32 columns DOT_BLOCK bytes:
 *     int8 q[32]; float scale; int32 −128 · Σ q; the same of columns 0–15; float scale · Σ q */
enum { DOT_SCALE = 32, DOT_SUM = 36, DOT_FIRST_SUM = 40, DOT_WEIGHTED = 44, DOT_BLOCK = 48 };

struct quantised {
    const unsigned char *base;
    uint64_t stride; /* bytes */
    const uint32_t *index;
    uint32_t divide;
};

static inline uint64_t quantised_stride(uint32_t columns)
{
    return ((uint64_t)columns / 32 * DOT_BLOCK + 63) / 64 * 64;
}

static inline const unsigned char *quantised_row(const struct quantised *x, uint32_t i)
{
    return x->base + (x->index ? x->index[i] / x->divide : i) * x->stride;
}

struct cpu_dot {
    void (*quantise)(const float *x /* [columns], padded */, uint32_t columns, unsigned char *row);
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
