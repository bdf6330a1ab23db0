/* 16 floats in one AVX-512 register (F, BW, VL, DQ). Included by simd.h alone. */
#include <immintrin.h>

typedef __m512 v16;

INLINE v16 v_zero(void)
{
    return _mm512_setzero_ps();
}
INLINE v16 v_set(float x)
{
    return _mm512_set1_ps(x);
}
INLINE v16 v_load(const float *x)
{
    return _mm512_loadu_ps(x);
}
INLINE void v_store(float *to, v16 a)
{
    _mm512_storeu_ps(to, a);
}
INLINE v16 v_load_part(const float *x, uint32_t n)
{
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), x);
}
INLINE void v_store_part(float *to, uint32_t n, v16 a)
{
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << n) - 1), a);
}
INLINE v16 v_add(v16 a, v16 b)
{
    return _mm512_add_ps(a, b);
}
INLINE v16 v_sub(v16 a, v16 b)
{
    return _mm512_sub_ps(a, b);
}
INLINE v16 v_mul(v16 a, v16 b)
{
    return _mm512_mul_ps(a, b);
}
INLINE v16 v_div(v16 a, v16 b)
{
    return _mm512_div_ps(a, b);
}
INLINE v16 v_min(v16 a, v16 b)
{
    return _mm512_min_ps(a, b);
}
INLINE v16 v_max(v16 a, v16 b)
{
    return _mm512_max_ps(a, b);
}
INLINE v16 v_fma(v16 a, v16 b, v16 c)
{
    return _mm512_fmadd_ps(a, b, c);
}
INLINE v16 v_round(v16 a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE v16 v_power(v16 k)
{
    __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(k), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
}
INLINE v16 v_keep(v16 a, uint32_t from, uint32_t to, v16 b)
{
    return _mm512_mask_blend_ps((__mmask16)(((1u << to) - 1) & ~((1u << from) - 1)), b, a);
}

/* The sums of four vectors, each in every element of its 128-bit lane. */
INLINE __m512 sum4_lanes(v16 a, v16 b, v16 c, v16 d)
{
    /* lanes i and i + 8, then i and i + 4: two vectors at a time through one addition */
    __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    __m512 s =
        _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    s = _mm512_add_ps(s, _mm512_permute_ps(s, 0xb1));
    return _mm512_add_ps(s, _mm512_permute_ps(s, 0x4e));
}
INLINE void v_sum4(v16 a, v16 b, v16 c, v16 d, float *out)
{
    const __m512i first = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
    __m512 s = sum4_lanes(a, b, c, d);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(first, s)));
}
INLINE float v_sum(v16 a)
{
    return _mm512_cvtss_f32(sum4_lanes(a, a, a, a));
}
INLINE float v_most(v16 a)
{
    return _mm512_reduce_max_ps(a);
}

INLINE v16 v_load_f16(const void *x)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x));
}
INLINE v16 v_load_bf16(const void *x)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
INLINE void v_store_f16(void *to, v16 a)
{
    _mm256_storeu_si256((__m256i *)to,
                        _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE v16 v_load_i8(const void *x)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)x)));
}
INLINE float v_half(const void *x)
{
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)x)));
}
INLINE void v_mxfp4(const unsigned char *block, v16 *low, v16 *high)
{
    const __m512 values = _mm512_set_ps(-12, -8, -6, -4, -3, -2, -1, 0, 12, 8, 6, 4, 3, 2, 1, 0);
    __m512 table = _mm512_mul_ps(values, _mm512_set1_ps(mxfp4_scale(block[0])));
    /* The permutation looks at the lowest 4 bits of each index. */
    __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(block + 1)));
    *low = _mm512_permutexvar_ps(codes, table);
    *high = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), table);
}

#define T_LANES     16
#define TILE_ROWS_X 6 /* 24 sums, 4 + 1 inputs: 29 of 32 registers */
#define TILE_ROWS_W 4
typedef __m512 t_vec;
INLINE t_vec t_zero(void)
{
    return _mm512_setzero_ps();
}
INLINE t_vec t_load(const float *x)
{
    return _mm512_loadu_ps(x);
}
INLINE t_vec t_fma(t_vec a, t_vec b, t_vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}
INLINE void t_store(float *to, t_vec t)
{
    _mm512_storeu_ps(to, t);
}
