/*
 * dot with vpdpbusd on 8 rows of 4 columns. Included by dot.c alone, which is compiled twice: with the
 * instruction as AVX-VNNI encodes it, and as AVX-512 does. The same code and the same results; the
 * second lets it be tested on processors that have AVX-512 alone.
 */
#include "kernels/cpu/dot_ymm.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define DPBUSD _mm256_dpbusd_epi32
#else
#define DPBUSD _mm256_dpbusd_avx_epi32
#endif

/* Multiplied with unsigned bytes: numbers + 128 where they are signed. */
INLINE __m256i nibbles(enum gguf_type type, __m256i codes)
{
    codes = _mm256_and_si256(codes, _mm256_set1_epi8(15));
    if (type == GGUF_MXFP4)
        return _mm256_shuffle_epi8(
            _mm256_broadcastsi128_si256(_mm_set_epi8(116, 120, 122, 124, 125, 126, 127, -128, -116,
                                                     -120, -122, -124, -125, -126, -127, -128)),
            codes);
    return type == GGUF_Q4_0 ? _mm256_add_epi8(codes, _mm256_set1_epi8(120)) : codes;
}

/* w[k]: columns 4 k … 4 k + 3 of 8 rows. */
INLINE void load_codes(enum gguf_type type, const unsigned char *codes, __m256i w[8])
{
    if (!pack_in_nibbles(type)) {
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++)
            w[k] = _mm256_loadu_si256((const __m256i *)(codes + 64 * k));
        return;
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        __m256i both = _mm256_loadu_si256((const __m256i *)(codes + 64 * k));
        w[k] = nibbles(type, both);
        w[k + 4] = nibbles(type, _mm256_srli_epi16(both, 4));
    }
}

INLINE void dot_half(enum gguf_type type, uint32_t n, uint32_t half, const unsigned char *panel,
                     uint32_t columns, const unsigned char *const *x, float *out)
{
    uint32_t blocks = columns / 32, group = pack_group_bytes(type), minima = pack_scale_bytes(type);
    uint32_t codes = minima + pack_minimum_bytes(type) + 32 * half;
    bool two = type == GGUF_Q6_K;
    __m256 sums[DOT_ROWS];
#pragma GCC unroll 4
    for (uint32_t t = 0; t < n; t++)
        sums[t] = _mm256_setzero_ps();
    for (uint32_t b = 0; b < blocks; b++, panel += group) {
        __m256i w[8];
        load_codes(type, panel + codes, w);
        __m256 scale = load_scales(type, panel, half), least = scale, second = scale;
        if (two)
            second = load_scales(type, panel + 4 * PACK_ROWS, half);
        if (pack_minimum_bytes(type))
            least = load_scales(type, panel + minima, half);
#pragma GCC unroll 4
        for (uint32_t t = 0; t < n; t++) {
            const unsigned char *q = x[t] + DOT_BLOCK * b;
            __m256i a = _mm256_setzero_si256();
            __m256 of_x = float_of(q + DOT_SCALE);
            if (pack_is_signed(type))
                a = four(q + (two ? DOT_FIRST_SUM : DOT_SUM));
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++)
                a = DPBUSD(a, w[k], four(q + 4 * k));
            if (two) {
                sums[t] =
                    _mm256_fmadd_ps(_mm256_cvtepi32_ps(a), _mm256_mul_ps(scale, of_x), sums[t]);
                a = _mm256_sub_epi32(four(q + DOT_SUM), four(q + DOT_FIRST_SUM));
            }
#pragma GCC unroll 4
            for (int k = 4; k < 8; k++)
                a = DPBUSD(a, w[k], four(q + 4 * k));
            sums[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(a), _mm256_mul_ps(second, of_x), sums[t]);
            if (pack_minimum_bytes(type))
                sums[t] = _mm256_fmadd_ps(least, float_of(q + DOT_WEIGHTED), sums[t]);
        }
    }
#pragma GCC unroll 4
    for (uint32_t t = 0; t < n; t++)
        _mm256_storeu_ps(out + t * PACK_ROWS + 8 * half, sums[t]);
}

static uint64_t spin(void)
{
    enum { SUMS = 12, ROUNDS = 20000 };
    __m256i sums[SUMS], a = _mm256_set1_epi8(1);
    int sum = 0, lanes[8];
    for (int i = 0; i < SUMS; i++)
        sums[i] = _mm256_set1_epi32(i);
    for (int r = 0; r < ROUNDS; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++)
            sums[i] = DPBUSD(sums[i], a, a);
        __asm__ volatile("" : "+x"(a)); /* not to be foreseen */
    }
    for (int i = 0; i < SUMS; i++) {
        memcpy(lanes, &sums[i], sizeof lanes);
        sum |= lanes[0];
    }
    return 2 * (uint64_t)SUMS * ROUNDS * 32 + (sum == 0);
}
