/* 16 floats in two AVX registers (AVX2, FMA, F16C). Included by simd.h alone. */
#include <immintrin.h>

typedef struct {
    __m256 a, b; /* lanes 0–7, 8–15 */
} v16;

#define BOTH(ea, eb)                                                                               \
    (v16)                                                                                          \
    {                                                                                              \
        (ea), (eb)                                                                                 \
    }

INLINE v16 v_zero(void)
{
    return BOTH(_mm256_setzero_ps(), _mm256_setzero_ps());
}
INLINE v16 v_set(float x)
{
    return BOTH(_mm256_set1_ps(x), _mm256_set1_ps(x));
}
INLINE v16 v_load(const float *x)
{
    return BOTH(_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8));
}
INLINE void v_store(float *to, v16 x)
{
    _mm256_storeu_ps(to, x.a);
    _mm256_storeu_ps(to + 8, x.b);
}
INLINE v16 v_load_part(const float *x, uint32_t n)
{
    float lanes[16] = {0};
    memcpy(lanes, x, n * sizeof *x);
    return v_load(lanes);
}
INLINE void v_store_part(float *to, uint32_t n, v16 x)
{
    float lanes[16];
    v_store(lanes, x);
    memcpy(to, lanes, n * sizeof *to);
}
INLINE v16 v_add(v16 x, v16 y)
{
    return BOTH(_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b));
}
INLINE v16 v_sub(v16 x, v16 y)
{
    return BOTH(_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b));
}
INLINE v16 v_mul(v16 x, v16 y)
{
    return BOTH(_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b));
}
INLINE v16 v_div(v16 x, v16 y)
{
    return BOTH(_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b));
}
INLINE v16 v_min(v16 x, v16 y)
{
    return BOTH(_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b));
}
INLINE v16 v_max(v16 x, v16 y)
{
    return BOTH(_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b));
}
INLINE v16 v_fma(v16 x, v16 y, v16 z)
{
    return BOTH(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b));
}
INLINE __m256 round8(__m256 x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE v16 v_round(v16 x)
{
    return BOTH(round8(x.a), round8(x.b));
}
INLINE __m256 power8(__m256 k)
{
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}
INLINE v16 v_power(v16 k)
{
    return BOTH(power8(k.a), power8(k.b));
}
INLINE v16 v_keep(v16 x, uint32_t from, uint32_t to, v16 y)
{
    const __m256i low = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    const __m256i high = _mm256_set_epi32(15, 14, 13, 12, 11, 10, 9, 8);
    __m256i before = _mm256_set1_epi32((int)from - 1), end = _mm256_set1_epi32((int)to);
    __m256i a = _mm256_and_si256(_mm256_cmpgt_epi32(low, before), _mm256_cmpgt_epi32(end, low));
    __m256i b = _mm256_and_si256(_mm256_cmpgt_epi32(high, before), _mm256_cmpgt_epi32(end, high));
    return BOTH(_mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(a)),
                _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(b)));
}

/* Lanes i and i + 8, then i and i + 4. */
INLINE __m128 fold4(v16 x)
{
    __m256 s = _mm256_add_ps(x.a, x.b);
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}
INLINE void v_sum4(v16 a, v16 b, v16 c, v16 d, float *out)
{
    __m128 ab = _mm_hadd_ps(fold4(a), fold4(b)), cd = _mm_hadd_ps(fold4(c), fold4(d));
    _mm_storeu_ps(out, _mm_hadd_ps(ab, cd));
}
INLINE float v_sum(v16 x)
{
    __m128 s = fold4(x);
    s = _mm_hadd_ps(s, s);
    return _mm_cvtss_f32(_mm_hadd_ps(s, s));
}
INLINE float v_most(v16 x)
{
    __m256 m = _mm256_max_ps(x.a, x.b);
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

INLINE v16 v_load_f16(const void *x)
{
    const __m128i *halves = x;
    return BOTH(_mm256_cvtph_ps(_mm_loadu_si128(halves)),
                _mm256_cvtph_ps(_mm_loadu_si128(halves + 1)));
}
INLINE __m256 bf16_8(const __m128i *x)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(x));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE v16 v_load_bf16(const void *x)
{
    const __m128i *halves = x;
    return BOTH(bf16_8(halves), bf16_8(halves + 1));
}
INLINE void v_store_f16(void *to, v16 x)
{
    __m128i *halves = to;
    _mm_storeu_si128(halves, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128(halves + 1,
                     _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE v16 bytes16(__m128i x)
{
    return BOTH(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))));
}
INLINE v16 v_load_i8(const void *x)
{
    return bytes16(_mm_loadu_si128((const __m128i *)x));
}
INLINE float v_half(const void *x)
{
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)x)));
}
INLINE void v_mxfp4(const unsigned char *block, v16 *low, v16 *high)
{
    const __m128i values = _mm_set_epi8(-12, -8, -6, -4, -3, -2, -1, 0, 12, 8, 6, 4, 3, 2, 1, 0);
    const __m128i nibble = _mm_set1_epi8(15);
    v16 scale = v_set(mxfp4_scale(block[0]));
    __m128i codes = _mm_loadu_si128((const __m128i *)(block + 1));
    __m128i codes_high = _mm_and_si128(_mm_srli_epi16(codes, 4), nibble);
    *low = v_mul(bytes16(_mm_shuffle_epi8(values, _mm_and_si128(codes, nibble))), scale);
    *high = v_mul(bytes16(_mm_shuffle_epi8(values, codes_high)), scale);
}

#define T_LANES     8
#define TILE_ROWS_X 6 /* 12 sums, 2 + 1 inputs: 15 of 16 registers */
#define TILE_ROWS_W 2
typedef __m256 t_vec;
INLINE t_vec t_zero(void)
{
    return _mm256_setzero_ps();
}
INLINE t_vec t_load(const float *x)
{
    return _mm256_loadu_ps(x);
}
INLINE t_vec t_fma(t_vec a, t_vec b, t_vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}
INLINE void t_store(float *to, t_vec t)
{
    _mm256_storeu_ps(to, t);
}
