/* Products with 30-bit activations: vpmaddwd with their upper and with their lower half. Included by
 * dot.c alone. */

#define WIDE_ROWS 4

/* As in dot_wide_avx512.h; columns 0 and 2 lie side by side, as do 1 and 3. */
INLINE void split8(__m256 x, unsigned char *to, __m256i *upper, __m256i *lower)
{
    const __m256i turn = _mm256_broadcastsi128_si256(
        _mm_set_epi8(15, 14, 7, 6, 11, 10, 3, 2, 13, 12, 5, 4, 9, 8, 1, 0));
    __m256i q = _mm256_cvtps_epi32(x);
    __m256i low = _mm256_srai_epi32(_mm256_slli_epi32(q, 17), 17);
    __m256i high = _mm256_srai_epi32(_mm256_sub_epi32(q, low), 15);
    *upper = _mm256_add_epi32(*upper, high);
    *lower = _mm256_add_epi32(*lower, low);
    __m256i word = _mm256_blend_epi16(high, _mm256_slli_epi32(low, 16), 0xaa);
    _mm256_storeu_si256((__m256i *)to, _mm256_shuffle_epi8(word, turn));
}

INLINE int sum8(__m256i s)
{
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

INLINE void split(v16 x, unsigned char *to, int *upper, int *lower)
{
    __m256i high = _mm256_setzero_si256(), low = high;
    split8(x.a, to, &high, &low);
    split8(x.b, to + 32, &high, &low);
    *upper = sum8(high);
    *lower = sum8(low);
}

INLINE __m256 wide_sum(__m256i high, __m256i low, __m256 scale, __m256 sum)
{
    __m256 both =
        _mm256_fmadd_ps(_mm256_cvtepi32_ps(high), _mm256_set1_ps(32768), _mm256_cvtepi32_ps(low));
    return _mm256_fmadd_ps(both, scale, sum);
}

/* −128 · a sum, for numbers that lie 128 above what they stand for; those of nibbles() lie there with
 * AVX-VNNI, and less above with AVX2. */
INLINE __m256i wide_offset(enum gguf_type type, const unsigned char *p)
{
#if defined(CPU_ISA_AVXVNNI)
    return type == GGUF_MXFP4 || type == GGUF_Q4_0 || pack_is_signed(type) ? four(p)
                                                                           : _mm256_setzero_si256();
#else
    return type == GGUF_MXFP4     ? _mm256_srai_epi32(four(p), 3)
           : type == GGUF_Q4_0    ? _mm256_srai_epi32(four(p), 4)
           : pack_is_signed(type) ? four(p)
                                  : _mm256_setzero_si256();
#endif
}

INLINE void wide_half(enum gguf_type type, uint32_t n, uint32_t half, const unsigned char *panel,
                      uint32_t columns, const unsigned char *const *x, float *out)
{
    uint32_t blocks = columns / 32, group = pack_group_bytes(type), minima = pack_scale_bytes(type);
    uint32_t codes = minima + pack_minimum_bytes(type) + 32 * half;
    bool two = type == GGUF_Q6_K;
    __m256 sums[WIDE_ROWS];
#pragma GCC unroll 4
    for (uint32_t t = 0; t < n; t++)
        sums[t] = _mm256_setzero_ps();
    for (uint32_t b = 0; b < blocks; b++, panel += group) {
        __m256 scale = load_scales(type, panel, half), least = scale, second = scale;
        if (pack_minimum_bytes(type))
            least = load_scales(type, panel + minima, half);
        if (two)
            second = load_scales(type, panel + 4 * PACK_ROWS, half);
        __m256i high[WIDE_ROWS], low[WIDE_ROWS];
#pragma GCC unroll 4
        for (uint32_t t = 0; t < n; t++) {
            const unsigned char *q = x[t] + WIDE_BLOCK * b;
            high[t] = wide_offset(type, q + (two ? WIDE_FIRST_UPPER : WIDE_UPPER));
            low[t] = wide_offset(type, q + (two ? WIDE_FIRST_LOWER : WIDE_LOWER));
        }
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) {
            __m256i w;
            if (pack_in_nibbles(type)) {
                w = _mm256_loadu_si256((const __m256i *)(panel + codes + 64 * (k % 4)));
                w = nibbles(type, k < 4 ? w : _mm256_srli_epi16(w, 4));
            } else {
                w = _mm256_loadu_si256((const __m256i *)(panel + codes + 64 * k));
            }
            __m256i even = _mm256_and_si256(w, _mm256_set1_epi16(255));
            __m256i odd = _mm256_srli_epi16(w, 8);
#pragma GCC unroll 4
            for (uint32_t t = 0; t < n; t++) {
                const unsigned char *q = x[t] + WIDE_BLOCK * b;
                if (two && k == 4) {
                    sums[t] = wide_sum(high[t], low[t],
                                       _mm256_mul_ps(scale, float_of(q + WIDE_SCALE)), sums[t]);
                    high[t] = _mm256_sub_epi32(four(q + WIDE_UPPER), four(q + WIDE_FIRST_UPPER));
                    low[t] = _mm256_sub_epi32(four(q + WIDE_LOWER), four(q + WIDE_FIRST_LOWER));
                }
                q += 16 * k;
                high[t] = _mm256_add_epi32(high[t], _mm256_madd_epi16(even, four(q)));
                high[t] = _mm256_add_epi32(high[t], _mm256_madd_epi16(odd, four(q + 4)));
                low[t] = _mm256_add_epi32(low[t], _mm256_madd_epi16(even, four(q + 8)));
                low[t] = _mm256_add_epi32(low[t], _mm256_madd_epi16(odd, four(q + 12)));
            }
        }
#pragma GCC unroll 4
        for (uint32_t t = 0; t < n; t++) {
            const unsigned char *q = x[t] + WIDE_BLOCK * b;
            sums[t] =
                wide_sum(high[t], low[t], _mm256_mul_ps(second, float_of(q + WIDE_SCALE)), sums[t]);
            if (pack_minimum_bytes(type))
                sums[t] = _mm256_fmadd_ps(least, float_of(q + WIDE_WEIGHTED), sums[t]);
        }
    }
#pragma GCC unroll 4
    for (uint32_t t = 0; t < n; t++)
        _mm256_storeu_ps(out + t * PACK_ROWS + 8 * half, sums[t]);
}

/* `n` rows of x, a constant. */
INLINE void wide_tile(enum gguf_type type, uint32_t n, const unsigned char *panel, uint32_t columns,
                      const unsigned char *const *x, float *out)
{
    wide_half(type, n, 0, panel, columns, x, out);
    wide_half(type, n, 1, panel, columns, x, out);
}
