/*
 * The other block formats of published files: Q4_0 … Q5_1 (32 values) and Q2_K … Q6_K (256 values).
 * Each is written as the formula of its element i.
 */
#include "gguf/private.h"

#include <assert.h>

static float half_at(const unsigned char *p)
{
    return gguf_half_to_float((uint16_t)(p[0] | p[1] << 8));
}

/* ── 32 values ─────────────────────────────────────────────────────────────────────────────── */

/* Element i of 16 bytes: the low nibbles are 0…15, the high ones 16…31. */
static int nibble(const unsigned char *q, int i)
{
    return i < 16 ? q[i] & 15 : q[i - 16] >> 4;
}

static int bit(const unsigned char *bits, int i)
{
    return bits[i / 8] >> (i % 8) & 1;
}

void gguf_legacy_to_float(enum gguf_type type, const unsigned char *src, float *dst,
                          uint64_t blocks)
{
    uint32_t bytes = gguf_type_block_bytes(type);
    for (; blocks; blocks--, src += bytes, dst += 32) {
        const unsigned char *p = src;
        float d = half_at(p);
        for (int i = 0; i < 32; i++)
            switch (type) {
            case GGUF_Q4_0: /* half d; q[16] */ dst[i] = d * (float)(nibble(p + 2, i) - 8); break;
            case GGUF_Q4_1: /* half d; half m; q[16] */
                dst[i] = d * (float)nibble(p + 4, i) + half_at(p + 2);
                break;
            case GGUF_Q5_0: /* half d; u32 high; q[16] */
                dst[i] = d * (float)((nibble(p + 6, i) | bit(p + 2, i) << 4) - 16);
                break;
            case GGUF_Q5_1: /* half d; half m; u32 high; q[16] */
                dst[i] = d * (float)(nibble(p + 8, i) | bit(p + 4, i) << 4) + half_at(p + 2);
                break;
            default: assert(!"a format of 32 values");
            }
    }
}

/* ── 256 values ────────────────────────────────────────────────────────────────────────────── */

/* The 2-bit field of element i in 64 bytes: 4 elements that are 32 apart share a byte. */
static int crumb(const unsigned char *q, int i)
{
    return q[32 * (i / 128) + i % 32] >> 2 * (i % 128 / 32) & 3;
}

/* u8 scales[16]; q[64]; half d; half dmin */
static float q2_k(const unsigned char *p, int i)
{
    int scale = p[i / 16];
    float d = half_at(p + 80), dmin = half_at(p + 82);
    return d * (float)(scale & 15) * (float)crumb(p + 16, i) - dmin * (float)(scale >> 4);
}

/* high[32]; q[64]; scales[12]; half d */
static float q3_k(const unsigned char *p, int i)
{
    const unsigned char *scales = p + 96;
    int k = i / 16;
    int scale =
        (k < 8 ? scales[k] & 15 : scales[k - 8] >> 4) | (scales[8 + k % 4] >> 2 * (k / 4) & 3) << 4;
    int q = crumb(p + 32, i) | (p[i % 32] >> (i / 32) & 1) << 2;
    return half_at(p + 108) * (float)(scale - 32) * (float)(q - 4);
}

/* Scale and minimum j of the 8 that 12 bytes hold, 6 bits each. */
static void scale_and_min(const unsigned char *s, int j, int *scale, int *min)
{
    *scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    *min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
}

static float scaled(const unsigned char *p, int i, int q)
{
    int scale, min;
    scale_and_min(p + 4, i / 32, &scale, &min);
    return half_at(p) * (float)scale * (float)q - half_at(p + 2) * (float)min;
}

static int nibble_of_64(const unsigned char *q, int i)
{
    return q[32 * (i / 64) + i % 32] >> 4 * (i / 32 & 1) & 15;
}

/* half d; half dmin; scales[12]; q[128] */
static float q4_k(const unsigned char *p, int i)
{
    return scaled(p, i, nibble_of_64(p + 16, i));
}

/* half d; half dmin; scales[12]; high[32]; q[128] */
static float q5_k(const unsigned char *p, int i)
{
    return scaled(p, i, nibble_of_64(p + 48, i) | (p[16 + i % 32] >> (i / 32) & 1) << 4);
}

/* low[128]; high[64]; i8 scales[16]; half d */
static float q6_k(const unsigned char *p, int i)
{
    int t = i / 128, r = i % 128 / 32, l = i % 32;
    int q = (p[64 * t + 32 * (r & 1) + l] >> 4 * (r >> 1) & 15) | (p[128 + 32 * t + l] >> 2 * r & 3)
                                                                      << 4;
    return half_at(p + 208) * (float)(int8_t)p[192 + i / 16] * (float)(q - 32);
}

void gguf_kquant_to_float(enum gguf_type type, const unsigned char *src, float *dst,
                          uint64_t blocks)
{
    uint32_t bytes = gguf_type_block_bytes(type);
    for (; blocks; blocks--, src += bytes, dst += 256)
        for (int i = 0; i < 256; i++)
            switch (type) {
            case GGUF_Q2_K: dst[i] = q2_k(src, i); break;
            case GGUF_Q3_K: dst[i] = q3_k(src, i); break;
            case GGUF_Q4_K: dst[i] = q4_k(src, i); break;
            case GGUF_Q5_K: dst[i] = q5_k(src, i); break;
            case GGUF_Q6_K: dst[i] = q6_k(src, i); break;
            default: assert(!"a format of 256 values");
            }
}
