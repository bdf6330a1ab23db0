/* Products with 30-bit activations: vpdpbusd once for each of their four bytes. Included by dot.c. */

#define WIDE_ROWS  8
#define WIDE_AHEAD 4096 /* bytes that a panel is fetched ahead where one row of x passes it */

/* The integers nearest to 16 numbers below 2²⁹, in digits; the sums of the upper and the lower ones. */
INLINE void split(v16 x, unsigned char *to, int *upper, int *lower)
{
    const __m512i turn =
        _mm512_broadcast_i32x4(_mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0));
    __m512i q = _mm512_cvtps_epi32(x);
    __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(q, 17), 17);
    __m512i high = _mm512_srai_epi32(_mm512_sub_epi32(q, low), 15);
    *upper = _mm512_reduce_add_epi32(high);
    *lower = _mm512_reduce_add_epi32(low);
    /* A byte is signed, so one that is above 127 takes 256 from the next: the sum does it. */
    const __m512i carry = _mm512_set1_epi32(128), byte = _mm512_set1_epi32(255);
    __m512i high1 = _mm512_srai_epi32(_mm512_add_epi32(high, carry), 8);
    __m512i low1 = _mm512_srai_epi32(_mm512_add_epi32(low, carry), 8);
    __m512i word = _mm512_and_si512(high1, byte);
    word = _mm512_or_si512(word, _mm512_slli_epi32(_mm512_and_si512(high, byte), 8));
    word = _mm512_or_si512(word, _mm512_slli_epi32(_mm512_and_si512(low1, byte), 16));
    word = _mm512_or_si512(word, _mm512_slli_epi32(low, 24));
    _mm512_storeu_si512(to, _mm512_shuffle_epi8(word, turn));
}

/* Adds the sums of half a block (or of all of it) to those of the row. */
INLINE __m512 wide_sum(__m512i high1, __m512i high, __m512i low1, __m512i low, __m512 scale,
                       __m512 sum)
{
    high = _mm512_add_epi32(high, _mm512_slli_epi32(high1, 8));
    low = _mm512_add_epi32(low, _mm512_slli_epi32(low1, 8));
    __m512 both =
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(32768), _mm512_cvtepi32_ps(low));
    return _mm512_fmadd_ps(both, scale, sum);
}

/* Adds the products of w with the four bytes at q. (The compiler would load them into a register of
 * their own, which takes a sixth of the time again.) */
INLINE __m512i add_products(__m512i a, __m512i w, const unsigned char *q)
{
    typedef int32_t word __attribute__((aligned(1), may_alias));
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(a) : "v"(w), "m"(*(const word *)q));
    return a;
}

/* `n` rows of x, a constant. */
INLINE void wide_tile(enum gguf_type type, uint32_t n, const unsigned char *panel, uint32_t columns,
                      const unsigned char *const *x, float *out)
{
    uint32_t blocks = columns / 32, group = pack_group_bytes(type), minima = pack_scale_bytes(type);
    uint32_t codes = minima + pack_minimum_bytes(type);
    bool two = type == GGUF_Q6_K;
    __m512 sums[WIDE_ROWS];
#pragma GCC unroll 8
    for (uint32_t t = 0; t < n; t++)
        sums[t] = _mm512_setzero_ps();
    for (uint32_t b = 0; b < blocks; b++, panel += group) {
        __m512i w[8];
        if (n == 1) /* the processor by itself stops at each page */
#pragma GCC unroll 9
            for (uint32_t line = 0; line < group; line += 64)
                _mm_prefetch((const char *)panel + WIDE_AHEAD + line, _MM_HINT_T0);
        load_codes(type, panel + codes, w);
        __m512 scale = load_scales(type, panel), least = scale, second = scale;
        if (two)
            second = load_scales(type, panel + 4 * PACK_ROWS);
        if (pack_minimum_bytes(type))
            least = load_scales(type, panel + minima);
#pragma GCC unroll 8
        for (uint32_t t = 0; t < n; t++) {
            const unsigned char *q = x[t] + WIDE_BLOCK * b;
            __m512i a[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                            _mm512_setzero_si512()};
            __m512 of_x = float_of(q + WIDE_SCALE);
            if (pack_is_signed(type)) {
                a[1] = four(q + (two ? WIDE_FIRST_UPPER : WIDE_UPPER));
                a[3] = four(q + (two ? WIDE_FIRST_LOWER : WIDE_LOWER));
            }
#pragma GCC unroll 8
            for (int k = 0; k < 8; k++) {
                if (two && k == 4) {
                    sums[t] = wide_sum(a[0], a[1], a[2], a[3], _mm512_mul_ps(scale, of_x), sums[t]);
                    a[0] = a[2] = _mm512_setzero_si512();
                    a[1] = _mm512_sub_epi32(four(q + WIDE_UPPER), four(q + WIDE_FIRST_UPPER));
                    a[3] = _mm512_sub_epi32(four(q + WIDE_LOWER), four(q + WIDE_FIRST_LOWER));
                }
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++)
                    a[i] = add_products(a[i], w[k], q + 16 * k + 4 * i);
            }
            sums[t] = wide_sum(a[0], a[1], a[2], a[3], _mm512_mul_ps(second, of_x), sums[t]);
            if (pack_minimum_bytes(type))
                sums[t] = _mm512_fmadd_ps(least, float_of(q + WIDE_WEIGHTED), sums[t]);
        }
    }
#pragma GCC unroll 8
    for (uint32_t t = 0; t < n; t++)
        _mm512_storeu_ps(out + t * PACK_ROWS, sums[t]);
}
