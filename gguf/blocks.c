/*
 * Block formats: what each type of tensor data is called, how large its blocks are, and what they
 * mean as floats.
 */
#include "gguf/private.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* ── the types ─────────────────────────────────────────────────────────────────────────────── */

/* Every id that the format has given out. block_values 0: retired or of unknown size. */
static const struct type {
    const char *name;
    uint16_t block_values, block_bytes;
    bool supported;
    const char *instead; /* of a type that is not */
} types[] = {
    [GGUF_F32] = {"F32", 1, 4, true},
    [GGUF_F16] = {"F16", 1, 2, true},
    [GGUF_Q4_0] = {"Q4_0", 32, 18, true},
    [GGUF_Q4_1] = {"Q4_1", 32, 20, true},
    [4] = {"Q4_2 (retired)", 0, 0, false},
    [5] = {"Q4_3 (retired)", 0, 0, false},
    [GGUF_Q5_0] = {"Q5_0", 32, 22, true},
    [GGUF_Q5_1] = {"Q5_1", 32, 24, true},
    [GGUF_Q8_0] = {"Q8_0", 32, 34, true},
    [9] = {"Q8_1", 32, 36, false, "Q8_0"},
    [GGUF_Q2_K] = {"Q2_K", 256, 84, true},
    [GGUF_Q3_K] = {"Q3_K", 256, 110, true},
    [GGUF_Q4_K] = {"Q4_K", 256, 144, true},
    [GGUF_Q5_K] = {"Q5_K", 256, 176, true},
    [GGUF_Q6_K] = {"Q6_K", 256, 210, true},
    [15] = {"Q8_K", 256, 292, false, "Q8_0"},
    [16] = {"IQ2_XXS", 256, 66, false, "Q2_K"},
    [17] = {"IQ2_XS", 256, 74, false, "Q2_K"},
    [18] = {"IQ3_XXS", 256, 98, false, "Q3_K"},
    [19] = {"IQ1_S", 256, 50, false, "Q2_K"},
    [20] = {"IQ4_NL", 32, 18, false, "Q4_0 or MXFP4"},
    [21] = {"IQ3_S", 256, 110, false, "Q3_K"},
    [22] = {"IQ2_S", 256, 82, false, "Q2_K"},
    [23] = {"IQ4_XS", 256, 136, false, "Q4_K"},
    [24] = {"I8", 1, 1, false, "Q8_0"},
    [25] = {"I16", 1, 2, false, "F32"},
    [26] = {"I32", 1, 4, false, "F32"},
    [27] = {"I64", 1, 8, false, "F32"},
    [28] = {"F64", 1, 8, false, "F32"},
    [29] = {"IQ1_M", 256, 56, false, "Q2_K"},
    [GGUF_BF16] = {"BF16", 1, 2, true},
    [31] = {"Q4_0_4_4 (retired)", 0, 0, false},
    [32] = {"Q4_0_4_8 (retired)", 0, 0, false},
    [33] = {"Q4_0_8_8 (retired)", 0, 0, false},
    [34] = {"TQ1_0", 256, 54, false, "Q2_K"},
    [35] = {"TQ2_0", 256, 66, false, "Q2_K"},
    [36] = {"IQ4_NL_4_4 (retired)", 0, 0, false},
    [37] = {"IQ4_NL_4_8 (retired)", 0, 0, false},
    [38] = {"IQ4_NL_8_8 (retired)", 0, 0, false},
    [GGUF_MXFP4] = {"MXFP4", 32, 17, true},
    [40] = {"NVFP4", 64, 36, false, "MXFP4"},
    [41] = {"Q1_0", 128, 18, false, "Q2_K"},
    [42] = {"Q2_0", 0, 0, false, "Q2_K"},
};

#define N_TYPES (sizeof types / sizeof *types)

/* Names of ids beyond the table, in static memory as the door promises. */
#define X4(a)  "type " #a "0", "type " #a "1", "type " #a "2", "type " #a "3", "type " #a "4"
#define X10(a) X4(a), "type " #a "5", "type " #a "6", "type " #a "7", "type " #a "8", "type " #a "9"
static const char *const numbers[] = {X10(4), X10(5), X10(6), X10(7), X10(8), X10(9)};

const char *gguf_type_name(uint32_t type)
{
    if (type < N_TYPES)
        return types[type].name;
    if (type < 100)
        return numbers[type - 40];
    return "a type of a number above 99";
}

bool gguf_type_supported(uint32_t type)
{
    return type < N_TYPES && types[type].supported;
}

const char *gguf_type_instead(uint32_t type)
{
    const char *instead = type < N_TYPES ? types[type].instead : NULL;
    return instead ? instead : "MXFP4 or Q8_0";
}

uint32_t gguf_type_block_values(uint32_t type)
{
    return type < N_TYPES ? types[type].block_values : 0;
}

uint32_t gguf_type_block_bytes(uint32_t type)
{
    return type < N_TYPES ? types[type].block_bytes : 0;
}

uint64_t gguf_row_bytes(uint32_t type, uint64_t values)
{
    uint32_t block = gguf_type_block_values(type);
    assert(block && values % block == 0);
    return values / block * gguf_type_block_bytes(type);
}

/* ── 16-bit floats ─────────────────────────────────────────────────────────────────────────── */

static float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

float gguf_half_to_float(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t exponent = half >> 10 & 31, mantissa = half & 0x3ff;
    if (exponent == 31) /* infinity, NaN */
        return float_of(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0) { /* zero, subnormal: mantissa · 2^−24, exact */
        float value = (float)mantissa * 0x1p-24f;
        return sign ? -value : value;
    }
    return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}

/* To nearest, ties to even; NaN stays NaN. */
uint16_t gguf_float_to_half(float value)
{
    uint32_t bits = bits_of(value);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (bits >> 13 & 0x3ff));
    if (bits >= 0x477ff000) /* 65520 and above round to infinity */
        return sign | 0x7c00;
    if (bits < 0x38800000) /* below 2^−14: adding 0.5 rounds to units of 2^−24 */
        return (uint16_t)(sign | (bits_of(float_of(bits) + 0.5f) - bits_of(0.5f)));
    bits += 0xfff + (bits >> 13 & 1);
    return (uint16_t)(sign | (bits - 0x38000000) >> 13);
}

static uint16_t float_to_bf16(float value)
{
    uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 64);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* ── blocks → floats ───────────────────────────────────────────────────────────────────────── */

/* FP4 (E2M1) codes doubled, so that they are integers; the scale is halved in return. */
static const float fp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* 2^(e − 128). */
static float mxfp4_scale(uint8_t e)
{
    return float_of(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

static uint16_t load16(const unsigned char *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

void gguf_to_float(enum gguf_type type, const void *src, float *dst, uint64_t values)
{
    const unsigned char *p = src;
    uint32_t block = gguf_type_block_values(type);
    assert(block && values % block == 0);
    uint64_t blocks = values / block;
    switch (type) {
    case GGUF_F32: memcpy(dst, src, values * sizeof *dst); break;
    case GGUF_F16:
        for (uint64_t i = 0; i < values; i++)
            dst[i] = gguf_half_to_float(load16(p + 2 * i));
        break;
    case GGUF_BF16:
        for (uint64_t i = 0; i < values; i++)
            dst[i] = float_of((uint32_t)load16(p + 2 * i) << 16);
        break;
    case GGUF_Q8_0: /* half d; i8 q[32] */
        for (; blocks; blocks--, p += 34, dst += 32) {
            float d = gguf_half_to_float(load16(p));
            for (int i = 0; i < 32; i++)
                dst[i] = d * (float)(int8_t)p[2 + i];
        }
        break;
    case GGUF_MXFP4: /* u8 e; 16 bytes, element i in the low nibble of byte i, i + 16 in the high */
        for (; blocks; blocks--, p += 17, dst += 32) {
            float d = mxfp4_scale(p[0]);
            for (int i = 0; i < 16; i++) {
                dst[i] = d * fp4[p[1 + i] & 15];
                dst[i + 16] = d * fp4[p[1 + i] >> 4];
            }
        }
        break;
    case GGUF_Q4_0:
    case GGUF_Q4_1:
    case GGUF_Q5_0:
    case GGUF_Q5_1: gguf_legacy_to_float(type, p, dst, blocks); break;
    case GGUF_Q2_K:
    case GGUF_Q3_K:
    case GGUF_Q4_K:
    case GGUF_Q5_K:
    case GGUF_Q6_K: gguf_kquant_to_float(type, p, dst, blocks); break;
    }
}

/* ── floats → blocks ───────────────────────────────────────────────────────────────────────── */

static float largest(const float *x, int n)
{
    float most = 0;
    for (int i = 0; i < n; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    return most;
}

static void q8_0_from_float(const float *x, unsigned char *p)
{
    float d = largest(x, 32) / 127;
    float inverse =
        d >= 0x1p-126f ? 1 / d : 0; /* a smaller d is zero as a half, its inverse infinite */
    uint16_t half = gguf_float_to_half(d);
    memcpy(p, &half, 2);
    for (int i = 0; i < 32; i++) {
        float q = roundf(x[i] * inverse);
        p[2 + i] = (unsigned char)(int8_t)(q > 127 ? 127 : q < -127 ? -127 : q);
    }
}

/* The nearest code, the first of the table where two are as near. */
static unsigned fp4_nearest(float x, float d)
{
    unsigned best = 0;
    float best_off = fabsf(x);
    for (unsigned i = 1; i < 16; i++) {
        float off = fabsf(fp4[i] * d - x);
        if (off < best_off) {
            best_off = off;
            best = i;
        }
    }
    return best;
}

static void mxfp4_from_float(const float *x, unsigned char *p)
{
    float most = largest(x, 32);
    int exponent; /* most = m · 2^exponent, 0.5 ≤ m < 1, so floor(log2 most) = exponent − 1 */
    frexpf(most, &exponent);
    int e = most > 0 ? exponent - 1 - 2 + 127 : 0;
    p[0] = (unsigned char)(e < 0 ? 0 : e);
    float d = mxfp4_scale(p[0]);
    for (int i = 0; i < 16; i++)
        p[1 + i] = (unsigned char)(fp4_nearest(x[i], d) | fp4_nearest(x[i + 16], d) << 4);
}

int gguf_from_float(enum gguf_type type, const float *src, void *dst, uint64_t values)
{
    unsigned char *p = dst;
    uint32_t block = gguf_type_block_values(type);
    if (!block || values % block != 0)
        return -1;
    if (block > 1)
        for (uint64_t i = 0; i < values; i++)
            if (!isfinite(src[i]))
                return -1;
    switch (type) {
    case GGUF_F32: memcpy(dst, src, values * sizeof *src); return 0;
    case GGUF_F16:
    case GGUF_BF16:
        for (uint64_t i = 0; i < values; i++) {
            uint16_t bits = type == GGUF_F16 ? gguf_float_to_half(src[i]) : float_to_bf16(src[i]);
            memcpy(p + 2 * i, &bits, 2);
        }
        return 0;
    case GGUF_Q8_0:
        for (uint64_t i = 0; i < values; i += 32, p += 34)
            q8_0_from_float(src + i, p);
        return 0;
    case GGUF_MXFP4:
        for (uint64_t i = 0; i < values; i += 32, p += 17)
            mxfp4_from_float(src + i, p);
        return 0;
    case GGUF_Q4_0:
    case GGUF_Q4_1:
    case GGUF_Q5_0:
    case GGUF_Q5_1:
    case GGUF_Q2_K:
    case GGUF_Q3_K:
    case GGUF_Q4_K:
    case GGUF_Q5_K:
    case GGUF_Q6_K: gguf_blocks_from_float(type, src, p, values / block); return 0;
    default: return -1;
    }
}
