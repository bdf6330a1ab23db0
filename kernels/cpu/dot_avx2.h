/* dot with vpmaddubsw on 8 rows of 4 columns, twice. Included by dot.c alone. */

#include "kernels/cpu/dot_ymm.h"

/* Unsigned and small, so that the sums of four products of bytes fit 16 bits: numbers of MXFP4 + 16,
 * of Q4_0 + 8. */
INLINE __m256i nibbles(enum gguf_type type, __m256i codes)
{
    codes = _mm256_and_si256(codes, _mm256_set1_epi8(15));
    if (type != GGUF_MXFP4)
        return codes;
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_set_epi8(
                                   4, 8, 10, 12, 13, 14, 15, 16, 28, 24, 22, 20, 19, 18, 17, 16)),
                               codes);
}

/* Adds the products of columns 4 k … 4 k + 15 of n rows of x, k a multiple of 4, to a[n]. */
INLINE void add_16(enum gguf_type type, uint32_t n, const unsigned char *codes, int k,
                   const unsigned char *const *q, uint32_t at, __m256i *a)
{
    const __m256i ones = _mm256_set1_epi16(1), top = _mm256_set1_epi8(-128);
    __m256i sums[DOT_ROWS];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m256i w;
        if (pack_in_nibbles(type)) {
            w = _mm256_loadu_si256((const __m256i *)(codes + 64 * i));
            w = nibbles(type, k ? _mm256_srli_epi16(w, 4) : w);
        } else {
            w = _mm256_loadu_si256((const __m256i *)(codes + 64 * (k + i)));
        }
        if (!pack_in_nibbles(type) && pack_is_signed(type)) {
            w = _mm256_xor_si256(w, top);
            __m256i size = _mm256_abs_epi8(w);
#pragma GCC unroll 4
            for (uint32_t t = 0; t < n; t++) {
                __m256i x = _mm256_sign_epi8(four(q[t] + at + 4 * (k + i)), w);
                x = _mm256_madd_epi16(_mm256_maddubs_epi16(size, x), ones);
                a[t] = _mm256_add_epi32(a[t], x);
            }
        } else {
#pragma GCC unroll 4
            for (uint32_t t = 0; t < n; t++) {
                __m256i x = _mm256_maddubs_epi16(w, four(q[t] + at + 4 * (k + i)));
                sums[t] = i ? _mm256_add_epi16(sums[t], x) : x;
            }
        }
    }
    if (pack_in_nibbles(type) || !pack_is_signed(type))
#pragma GCC unroll 4
        for (uint32_t t = 0; t < n; t++)
            a[t] = _mm256_add_epi32(a[t], _mm256_madd_epi16(sums[t], ones));
}

INLINE void dot_half(enum gguf_type type, uint32_t n, uint32_t half, const unsigned char *panel,
                     uint32_t columns, const unsigned char *const *x, float *out)
{
    uint32_t blocks = columns / 32, group = pack_group_bytes(type), minima = pack_scale_bytes(type);
    uint32_t codes = minima + pack_minimum_bytes(type) + 32 * half;
    __m256 sums[DOT_ROWS];
#pragma GCC unroll 4
    for (uint32_t t = 0; t < n; t++)
        sums[t] = _mm256_setzero_ps();
    for (uint32_t b = 0; b < blocks; b++, panel += group) {
        __m256 scale = load_scales(type, panel, half), least = scale, second = scale;
        if (pack_minimum_bytes(type))
            least = load_scales(type, panel + minima, half);
        if (type == GGUF_Q6_K)
            second = load_scales(type, panel + 4 * PACK_ROWS, half);
        __m256i a[DOT_ROWS];
#pragma GCC unroll 4
        for (uint32_t t = 0; t < n; t++) {
            const unsigned char *least_of = x[t] + DOT_BLOCK * b + DOT_SUM;
            a[t] = type == GGUF_MXFP4  ? _mm256_srai_epi32(four(least_of), 3)
                   : type == GGUF_Q4_0 ? _mm256_srai_epi32(four(least_of), 4)
                                       : _mm256_setzero_si256();
        }
        add_16(type, n, panel + codes, 0, x, DOT_BLOCK * b, a);
        if (type == GGUF_Q6_K)
#pragma GCC unroll 4
            for (uint32_t t = 0; t < n; t++) {
                __m256 of_x = float_of(x[t] + DOT_BLOCK * b + DOT_SCALE);
                sums[t] =
                    _mm256_fmadd_ps(_mm256_cvtepi32_ps(a[t]), _mm256_mul_ps(scale, of_x), sums[t]);
                a[t] = _mm256_setzero_si256();
            }
        add_16(type, n, panel + codes, 4, x, DOT_BLOCK * b, a);
#pragma GCC unroll 4
        for (uint32_t t = 0; t < n; t++) {
            const unsigned char *rest = x[t] + DOT_BLOCK * b;
            sums[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(a[t]),
                                      _mm256_mul_ps(second, float_of(rest + DOT_SCALE)), sums[t]);
            if (pack_minimum_bytes(type))
                sums[t] = _mm256_fmadd_ps(least, float_of(rest + DOT_WEIGHTED), sums[t]);
        }
    }
#pragma GCC unroll 4
    for (uint32_t t = 0; t < n; t++)
        _mm256_storeu_ps(out + t * PACK_ROWS + 8 * half, sums[t]);
}

static uint64_t spin(void)
{
    enum { SUMS = 8, ROUNDS = 20000 };
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sums[SUMS], a = _mm256_set1_epi8(1);
    int sum = 0, lanes[8];
    for (int i = 0; i < SUMS; i++)
        sums[i] = _mm256_set1_epi32(i);
    for (int r = 0; r < ROUNDS; r++)
#pragma GCC unroll 8
        for (int i = 0; i < SUMS; i++) {
            __asm__ volatile("" : "+x"(a)); /* not to be foreseen */
            __m256i x = _mm256_madd_epi16(_mm256_maddubs_epi16(a, a), ones);
            sums[i] = _mm256_add_epi32(sums[i], x);
        }
    for (int i = 0; i < SUMS; i++) {
        memcpy(lanes, &sums[i], sizeof lanes);
        sum |= lanes[0];
    }
    return 2 * (uint64_t)SUMS * ROUNDS * 32 + (sum == 0);
}
