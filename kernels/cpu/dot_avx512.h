/* dot with vpdpbusd on 16 rows of 4 columns. Included by dot.c alone. */

#define DOT_ROWS 16 /* sums of a tile; with 8 registers of weights they fill the 32 there are */

#define PREFETCH 384 /* bytes ahead in a row of x */

/* Rounds 16 numbers of at most 127 to the nearest (ties to even); their sum. */
INLINE int round_bytes(v16 x, unsigned char *to)
{
    __m512i q = _mm512_cvtps_epi32(x);
    _mm_storeu_si128((__m128i *)to, _mm512_cvtsepi32_epi8(q));
    return _mm512_reduce_add_epi32(q);
}

/* Multiplied with unsigned bytes: numbers + 128 where they are signed. */
INLINE __m512i nibbles(enum gguf_type type, __m512i codes)
{
    codes = _mm512_and_si512(codes, _mm512_set1_epi8(15));
    if (type == GGUF_MXFP4)
        return _mm512_shuffle_epi8(
            _mm512_broadcast_i32x4(_mm_set_epi8(116, 120, 122, 124, 125, 126, 127, -128, -116, -120,
                                                -122, -124, -125, -126, -127, -128)),
            codes);
    return type == GGUF_Q4_0 ? _mm512_add_epi8(codes, _mm512_set1_epi8(120)) : codes;
}

/* w[k]: columns 4 k … 4 k + 3 of the 16 rows. */
INLINE void load_codes(enum gguf_type type, const unsigned char *codes, __m512i w[8])
{
    if (!pack_in_nibbles(type)) {
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++)
            w[k] = _mm512_loadu_si512(codes + 64 * k);
        return;
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        __m512i both = _mm512_loadu_si512(codes + 64 * k);
        w[k] = nibbles(type, both);
        w[k + 4] = nibbles(type, _mm512_srli_epi16(both, 4));
    }
}

INLINE __m512 load_scales(enum gguf_type type, const unsigned char *p)
{
    if (type == GGUF_MXFP4) { /* as mxfp4_scales */
        __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
        __m512i one = _mm512_set1_epi32(1);
        __m512i bits = _mm512_slli_epi32(_mm512_sub_epi32(e, one), 23);
        __mmask16 tiny = _mm512_cmple_epi32_mask(e, one);
        return _mm512_castsi512_ps(
            _mm512_mask_slli_epi32(bits, tiny, _mm512_add_epi32(e, one), 21));
    }
    return pack_scale_bytes(type) == 2 * PACK_ROWS ? v_load_f16(p)
                                                   : v_load((const float *)(const void *)p);
}

INLINE __m512i four(const unsigned char *q)
{
    int32_t columns;
    memcpy(&columns, q, sizeof columns);
    return _mm512_set1_epi32(columns);
}

INLINE __m512 float_of(const unsigned char *p)
{
    float x;
    memcpy(&x, p, sizeof x);
    return _mm512_set1_ps(x);
}

/* `n` rows of x, a constant. */
INLINE void dot_tile(enum gguf_type type, uint32_t n, const unsigned char *panel, uint32_t columns,
                     const unsigned char *const *x, float *out)
{
    uint32_t blocks = columns / 32, group = pack_group_bytes(type), minima = pack_scale_bytes(type);
    uint32_t codes = minima + pack_minimum_bytes(type);
    bool two = type == GGUF_Q6_K;
    __m512 sums[DOT_ROWS];
#pragma GCC unroll 16
    for (uint32_t t = 0; t < n; t++)
        sums[t] = _mm512_setzero_ps();
    for (uint32_t b = 0; b < blocks; b++, panel += group) {
        __m512i w[8];
        load_codes(type, panel + codes, w);
        __m512 scale = load_scales(type, panel), least = scale, second = scale;
        if (two)
            second = load_scales(type, panel + 4 * PACK_ROWS);
        if (pack_minimum_bytes(type))
            least = load_scales(type, panel + minima);
#pragma GCC unroll 16
        for (uint32_t t = 0; t < n; t++) {
            const unsigned char *q = x[t] + DOT_BLOCK * b;
            __m512i a = _mm512_setzero_si512(), c = a;
            if (n > 4) /* more rows than the processor follows by itself */
                _mm_prefetch((const char *)q + PREFETCH, _MM_HINT_T0);
            __m512 of_x = float_of(q + DOT_SCALE);
            if (pack_is_signed(type))
                a = four(q + (two ? DOT_FIRST_SUM : DOT_SUM));
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++)
                a = _mm512_dpbusd_epi32(a, w[k], four(q + 4 * k));
            if (two) {
                c = _mm512_sub_epi32(four(q + DOT_SUM), four(q + DOT_FIRST_SUM));
                sums[t] =
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(a), _mm512_mul_ps(scale, of_x), sums[t]);
                a = c;
            }
#pragma GCC unroll 4
            for (int k = 4; k < 8; k++)
                a = _mm512_dpbusd_epi32(a, w[k], four(q + 4 * k));
            sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(a), _mm512_mul_ps(second, of_x), sums[t]);
            if (pack_minimum_bytes(type))
                sums[t] = _mm512_fmadd_ps(least, float_of(q + DOT_WEIGHTED), sums[t]);
        }
    }
#pragma GCC unroll 16
    for (uint32_t t = 0; t < n; t++)
        _mm512_storeu_ps(out + t * PACK_ROWS, sums[t]);
}

static uint64_t spin(void)
{
    enum { SUMS = 16, ROUNDS = 20000 };
    __m512i sums[SUMS], a = _mm512_set1_epi8(1);
    for (int i = 0; i < SUMS; i++)
        sums[i] = _mm512_set1_epi32(i);
    for (int r = 0; r < ROUNDS; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < SUMS; i++)
            sums[i] = _mm512_dpbusd_epi32(sums[i], a, a);
        __asm__ volatile("" ::"v"(a)); /* not to be foreseen */
    }
    int sum = 0;
    for (int i = 0; i < SUMS; i++)
        sum |= _mm512_reduce_add_epi32(sums[i]);
    return 2 * (uint64_t)SUMS * ROUNDS * 64 + (sum == 0);
}
