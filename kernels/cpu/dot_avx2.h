/* dot with vpmaddubsw on 8 rows of 4 columns, twice. Included by dot.c alone. */

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

/* `n` rows of x, a constant. */
INLINE void dot_tile(enum gguf_type type, uint32_t n, const unsigned char *panel, uint32_t columns,
                     const unsigned char *const *x, float *out)
{
    dot_half(type, n, 0, panel, columns, x, out);
    dot_half(type, n, 1, panel, columns, x, out);
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
