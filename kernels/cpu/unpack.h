/*
 * unpack: the block formats as floats in registers, 32 columns at a time. Private to cpu/.
 *
 * Written once for all instruction sets, on the compiler's vectors of 16 bytes. Whoever multiplies and
 * whoever unpacks goes through load32(), so a weight is the same float for one row of x and for many.
 */
#ifndef GPTOSS_KERNELS_UNPACK_H
#define GPTOSS_KERNELS_UNPACK_H

#include "gguf/gguf.h"
#include "kernels/cpu/simd.h"

/* Every type that kernels compute with; F32 is the rest of each switch. */
/* clang-format off */
#define UNPACK_TYPES(DO)                                                \
    DO(GGUF_MXFP4) DO(GGUF_Q8_0) DO(GGUF_F16) DO(GGUF_BF16)             \
    DO(GGUF_Q4_0) DO(GGUF_Q4_1) DO(GGUF_Q5_0) DO(GGUF_Q5_1)             \
    DO(GGUF_Q2_K) DO(GGUF_Q3_K) DO(GGUF_Q4_K) DO(GGUF_Q5_K) DO(GGUF_Q6_K)
/* clang-format on */

/* A step along a row: a block, or 32 columns of a type without blocks. */
INLINE uint32_t step_columns(enum gguf_type type)
{
    switch (type) {
    case GGUF_Q2_K:
    case GGUF_Q3_K:
    case GGUF_Q4_K:
    case GGUF_Q5_K:
    case GGUF_Q6_K: return 256;
    default: return 32;
    }
}

INLINE uint32_t step_bytes(enum gguf_type type)
{
    switch (type) {
    case GGUF_MXFP4: return 17;
    case GGUF_Q8_0: return 34;
    case GGUF_F16:
    case GGUF_BF16: return 64;
    case GGUF_Q4_0: return 18;
    case GGUF_Q4_1: return 20;
    case GGUF_Q5_0: return 22;
    case GGUF_Q5_1: return 24;
    case GGUF_Q2_K: return 84;
    case GGUF_Q3_K: return 110;
    case GGUF_Q4_K: return 144;
    case GGUF_Q5_K: return 176;
    case GGUF_Q6_K: return 210;
    default: return 128;
    }
}

/* ── bytes ─────────────────────────────────────────────────────────────────────────────────── */

typedef unsigned char b16 __attribute__((vector_size(16)));

INLINE b16 b_load(const unsigned char *p)
{
    b16 bytes;
    memcpy(&bytes, p, sizeof bytes);
    return bytes;
}

/* As signed numbers. */
INLINE v16 b_floats(b16 bytes)
{
    return v_load_i8(&bytes);
}

/* 16 where a bit of the two bytes is set, 0 elsewhere. */
INLINE b16 b_fifth(const unsigned char *bits)
{
#if defined(CPU_ISA_AVX512)
    uint16_t two;
    memcpy(&two, bits, sizeof two);
    return (b16)_mm_maskz_set1_epi8(two, 16);
#else
    const b16 mask = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const b16 spread = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
#if defined(CPU_ISA_AVX2)
    int16_t two;
    memcpy(&two, bits, sizeof two);
    b16 bytes = (b16)_mm_shuffle_epi8(_mm_set1_epi16(two), (__m128i)spread);
#else
    b16 bytes = __builtin_shuffle((b16){bits[0], bits[1]}, spread);
#endif
    return (b16)((bytes & mask) == mask) & 16;
#endif
}

/* A half of which only two bytes are there. */
INLINE float half_of(const unsigned char *p)
{
    uint16_t half;
    memcpy(&half, p, sizeof half);
#if defined(CPU_ISA_AVX512) || defined(CPU_ISA_AVX2)
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
#else
    return gguf_half_to_float(half);
#endif
}

/* Scale and minimum j of the 8 that 12 bytes hold, 6 bits each. */
INLINE void scale_and_minimum(const unsigned char *s, uint32_t j, float *scale, float *minimum)
{
    unsigned a = j < 4 ? s[j] & 63u : (s[j + 4] & 15u) | (unsigned)s[j - 4] >> 6 << 4;
    unsigned b = j < 4 ? s[j + 4] & 63u : (unsigned)s[j + 4] >> 4 | (unsigned)s[j] >> 6 << 4;
    *scale = (float)a;
    *minimum = (float)b;
}

/* ── blocks of 256: columns 32 · part … 32 · part + 31 ─────────────────────────────────────── */

/* scales[16]; 2 bits[64]; half d; half dmin */
INLINE void v_q2_k(const unsigned char *p, uint32_t part, v16 *low, v16 *high)
{
    const unsigned char *q = p + 16 + 32 * (part / 4);
    unsigned shift = 2 * (part % 4), s0 = p[2 * part], s1 = p[2 * part + 1];
    float d = half_of(p + 80), dmin = half_of(p + 82);
    *low = v_fma(b_floats((b_load(q) >> shift) & 3), v_set(d * (float)(s0 & 15)),
                 v_set(-(dmin * (float)(s0 >> 4))));
    *high = v_fma(b_floats((b_load(q + 16) >> shift) & 3), v_set(d * (float)(s1 & 15)),
                  v_set(-(dmin * (float)(s1 >> 4))));
}

/* third bits[32]; 2 bits[64]; scales[12]; half d */
INLINE void v_q3_k(const unsigned char *p, uint32_t part, v16 *low, v16 *high)
{
    const unsigned char *q = p + 32 + 32 * (part / 4), *s = p + 96;
    unsigned shift = 2 * (part % 4);
    float d = half_of(p + 108), scale[2];
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t k = 2 * part + i;
        unsigned low4 = k < 8 ? s[k] & 15u : (unsigned)s[k - 8] >> 4;
        unsigned high2 = (unsigned)s[8 + k % 4] >> 2 * (k / 4) & 3;
        scale[i] = d * (float)((int)(low4 | high2 << 4) - 32);
    }
    b16 a = ((b_load(q) >> shift) & 3) | ((b_load(p) >> part) & 1) << 2;
    b16 b = ((b_load(q + 16) >> shift) & 3) | ((b_load(p + 16) >> part) & 1) << 2;
    *low = v_mul(b_floats(a - 4), v_set(scale[0]));
    *high = v_mul(b_floats(b - 4), v_set(scale[1]));
}

/* half d; half dmin; scales[12]; then for Q5_K fifth bits[32]; nibbles[128] */
INLINE void v_q45_k(const unsigned char *p, uint32_t part, bool five, v16 *low, v16 *high)
{
    const unsigned char *q = p + (five ? 48 : 16) + 32 * (part / 2);
    float scale, minimum;
    scale_and_minimum(p + 4, part, &scale, &minimum);
    v16 d = v_set(half_of(p) * scale), m = v_set(-(half_of(p + 2) * minimum));
    b16 a = (b_load(q) >> 4 * (part & 1)) & 15, b = (b_load(q + 16) >> 4 * (part & 1)) & 15;
    if (five) {
        a |= ((b_load(p + 16) >> part) & 1) << 4;
        b |= ((b_load(p + 32) >> part) & 1) << 4;
    }
    *low = v_fma(b_floats(a), d, m);
    *high = v_fma(b_floats(b), d, m);
}

/* nibbles[128]; upper 2 bits[64]; i8 scales[16]; half d */
INLINE void v_q6_k(const unsigned char *p, uint32_t part, v16 *low, v16 *high)
{
    uint32_t t = part / 4, r = part % 4;
    const unsigned char *q = p + 64 * t + 32 * (r & 1), *upper = p + 128 + 32 * t;
    float d = half_of(p + 208);
    b16 a = ((b_load(q) >> 4 * (r >> 1)) & 15) | ((b_load(upper) >> 2 * r) & 3) << 4;
    b16 b = ((b_load(q + 16) >> 4 * (r >> 1)) & 15) | ((b_load(upper + 16) >> 2 * r) & 3) << 4;
    *low = v_mul(b_floats(a - 32), v_set(d * (float)(signed char)p[192 + 2 * part]));
    *high = v_mul(b_floats(b - 32), v_set(d * (float)(signed char)p[193 + 2 * part]));
}

/* ── any ───────────────────────────────────────────────────────────────────────────────────── */

/* Columns 32 · part … 32 · part + 31 of a step. */
INLINE void load32(enum gguf_type type, const unsigned char *at, uint32_t part, v16 *a, v16 *b)
{
    b16 q;
    switch (type) {
    case GGUF_MXFP4: v_mxfp4(at, a, b); break;
    case GGUF_Q8_0: {
        v16 scale = v_set(v_half(at));
        *a = v_mul(v_load_i8(at + 2), scale);
        *b = v_mul(v_load_i8(at + 18), scale);
        break;
    }
    case GGUF_F16:
        *a = v_load_f16(at);
        *b = v_load_f16(at + 32);
        break;
    case GGUF_BF16:
        *a = v_load_bf16(at);
        *b = v_load_bf16(at + 32);
        break;
    case GGUF_Q4_0: {
        v16 scale = v_set(v_half(at));
        q = b_load(at + 2);
        *a = v_mul(b_floats((q & 15) - 8), scale);
        *b = v_mul(b_floats((q >> 4) - 8), scale);
        break;
    }
    case GGUF_Q4_1: {
        v16 scale = v_set(v_half(at)), least = v_set(v_half(at + 2));
        q = b_load(at + 4);
        *a = v_fma(b_floats(q & 15), scale, least);
        *b = v_fma(b_floats(q >> 4), scale, least);
        break;
    }
    case GGUF_Q5_0: {
        v16 scale = v_set(v_half(at));
        q = b_load(at + 6);
        *a = v_mul(b_floats(((q & 15) | b_fifth(at + 2)) - 16), scale);
        *b = v_mul(b_floats(((q >> 4) | b_fifth(at + 4)) - 16), scale);
        break;
    }
    case GGUF_Q5_1: {
        v16 scale = v_set(v_half(at)), least = v_set(v_half(at + 2));
        q = b_load(at + 8);
        *a = v_fma(b_floats((q & 15) | b_fifth(at + 4)), scale, least);
        *b = v_fma(b_floats((q >> 4) | b_fifth(at + 6)), scale, least);
        break;
    }
    case GGUF_Q2_K: v_q2_k(at, part, a, b); break;
    case GGUF_Q3_K: v_q3_k(at, part, a, b); break;
    case GGUF_Q4_K: v_q45_k(at, part, false, a, b); break;
    case GGUF_Q5_K: v_q45_k(at, part, true, a, b); break;
    case GGUF_Q6_K: v_q6_k(at, part, a, b); break;
    default:
        *a = v_load((const float *)(const void *)at);
        *b = v_load((const float *)(const void *)at + 16);
        break;
    }
}

#endif
