/* What AVX2 and AVX-VNNI share: half a panel, 8 rows, is a register. Included by their headers alone. */

#define DOT_ROWS 4

INLINE int round_bytes(v16 x, unsigned char *to)
{
    __m256i a = _mm256_cvtps_epi32(x.a), b = _mm256_cvtps_epi32(x.b);
    __m128i words_a = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    __m128i words_b = _mm_packs_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
    _mm_storeu_si128((__m128i *)to, _mm_packs_epi16(words_a, words_b));
    __m256i s = _mm256_add_epi32(a, b);
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

/* Of rows 8 · half … */
INLINE __m256 load_scales(enum gguf_type type, const unsigned char *p, uint32_t half)
{
    if (type == GGUF_MXFP4) { /* as mxfp4_scales */
        __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8 * half)));
        __m256i one = _mm256_set1_epi32(1);
        __m256i bits = _mm256_slli_epi32(_mm256_sub_epi32(e, one), 23);
        __m256i tiny = _mm256_slli_epi32(_mm256_add_epi32(e, one), 21);
        return _mm256_castsi256_ps(_mm256_blendv_epi8(tiny, bits, _mm256_cmpgt_epi32(e, one)));
    }
    if (pack_scale_bytes(type) == 2 * PACK_ROWS)
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 16 * half)));
    return _mm256_loadu_ps((const float *)(const void *)(p + 32 * half));
}

INLINE __m256i four(const unsigned char *q)
{
    int32_t columns;
    memcpy(&columns, q, sizeof columns);
    return _mm256_set1_epi32(columns);
}

INLINE __m256 float_of(const unsigned char *p)
{
    float x;
    memcpy(&x, p, sizeof x);
    return _mm256_set1_ps(x);
}

INLINE void dot_half(enum gguf_type type, uint32_t n, uint32_t half, const unsigned char *panel,
                     uint32_t columns, const unsigned char *const *x, float *out);

/* `n` rows of x, a constant. */
INLINE void dot_tile(enum gguf_type type, uint32_t n, const unsigned char *panel, uint32_t columns,
                     const unsigned char *const *x, float *out)
{
    dot_half(type, n, 0, panel, columns, x, out);
    dot_half(type, n, 1, panel, columns, x, out);
}
