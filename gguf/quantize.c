/*
 * Floats to blocks of the formats of kquants.c. Those of 32 values round as llama.cpp's quantiser does;
 * those of 256 take the range of each part without searching for a better one: good for tests,
 * measurements and a quick conversion, a little coarser than llama.cpp's.
 */
#include "gguf/private.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static float put_half(unsigned char *p, float value)
{
    uint16_t half = gguf_float_to_half(value);
    memcpy(p, &half, 2);
    return gguf_half_to_float(half);
}

static int clamp(float q, int low, int high)
{
    return q < (float)low ? low : q > (float)high ? high : (int)q;
}

static float inverse(float d)
{
    return d != 0 && isfinite(1 / d) ? 1 / d : 0;
}

/* ── 32 values ─────────────────────────────────────────────────────────────────────────────── */

/* q[i] of 4 or 5 bits: low nibbles 0…15, high ones 16…31; the fifth bits in `high`, if any. */
static void put_nibbles(const uint8_t q[32], unsigned char *nibbles, unsigned char *high)
{
    for (int i = 0; i < 16; i++)
        nibbles[i] = (unsigned char)((q[i] & 15) | (q[i + 16] & 15) << 4);
    for (int i = 0; high && i < 32; i++)
        high[i / 8] = (unsigned char)((i % 8 ? high[i / 8] : 0) | (q[i] >> 4) << i % 8);
}

/* Symmetric: the value that is largest, with its sign, is the lowest code. */
static void symmetric(const float *x, unsigned char *p, int half, unsigned char *nibbles,
                      unsigned char *high)
{
    float most = 0;
    uint8_t q[32];
    for (int i = 0; i < 32; i++)
        if (fabsf(x[i]) > fabsf(most))
            most = x[i];
    float d = most / (float)-half;
    double by = (double)inverse(d);
    put_half(p, d);
    for (int i = 0; i < 32; i++)
        q[i] = (uint8_t)clamp((float)trunc((double)x[i] * by + half + 0.5), 0, 2 * half - 1);
    put_nibbles(q, nibbles, high);
}

/* From the smallest value in steps. */
static void ranged(const float *x, unsigned char *p, int steps, unsigned char *nibbles,
                   unsigned char *high)
{
    float least = x[0], most = x[0];
    uint8_t q[32];
    for (int i = 1; i < 32; i++) {
        least = x[i] < least ? x[i] : least;
        most = x[i] > most ? x[i] : most;
    }
    float d = (most - least) / (float)steps, by = inverse(d);
    put_half(p, d);
    put_half(p + 2, least);
    for (int i = 0; i < 32; i++)
        q[i] = (uint8_t)clamp(truncf((x[i] - least) * by + 0.5f), 0, steps);
    put_nibbles(q, nibbles, high);
}

/* ── 256 values ────────────────────────────────────────────────────────────────────────────── */

/* Parts of `size` values each as scale · code − minimum, code 0…steps; scales and minimums are whole
 * multiples, up to `multiples`, of two halves. */
struct parts {
    int size, steps, multiples;
    uint8_t scale[16], minimum[16], q[256];
};

static void ranged_parts(struct parts *parts, const float *x, unsigned char *d_at,
                         unsigned char *dmin_at)
{
    float scale[16], minimum[16], most_scale = 0, most_minimum = 0;
    int n = 256 / parts->size;
    for (int j = 0; j < n; j++) {
        float least = 0, most = 0;
        for (int i = j * parts->size; i < (j + 1) * parts->size; i++) {
            least = x[i] < least ? x[i] : least;
            most = x[i] > most ? x[i] : most;
        }
        scale[j] = (most - least) / (float)parts->steps;
        minimum[j] = -least;
        most_scale = scale[j] > most_scale ? scale[j] : most_scale;
        most_minimum = minimum[j] > most_minimum ? minimum[j] : most_minimum;
    }
    float d = put_half(d_at, most_scale / (float)parts->multiples);
    float dmin = put_half(dmin_at, most_minimum / (float)parts->multiples);
    for (int j = 0; j < n; j++) {
        parts->scale[j] = (uint8_t)clamp(roundf(scale[j] * inverse(d)), 0, parts->multiples);
        parts->minimum[j] = (uint8_t)clamp(roundf(minimum[j] * inverse(dmin)), 0, parts->multiples);
        float by = inverse(d * (float)parts->scale[j]), shift = dmin * (float)parts->minimum[j];
        for (int i = j * parts->size; i < (j + 1) * parts->size; i++)
            parts->q[i] = (uint8_t)clamp(roundf((x[i] + shift) * by), 0, parts->steps);
    }
}

/* Parts of 16 values as scale · (code − half), scales whole multiples of one half-precision number. */
static void symmetric_parts(struct parts *parts, int half, const float *x, unsigned char *d_at)
{
    float scale[16], most = 0;
    for (int j = 0; j < 16; j++) {
        scale[j] = 0;
        for (int i = 16 * j; i < 16 * (j + 1); i++)
            scale[j] = fabsf(x[i]) > scale[j] ? fabsf(x[i]) : scale[j];
        scale[j] /= (float)half;
        most = scale[j] > most ? scale[j] : most;
    }
    float d = put_half(d_at, most / (float)parts->multiples);
    for (int j = 0; j < 16; j++) {
        parts->scale[j] = (uint8_t)clamp(roundf(scale[j] * inverse(d)), 0, parts->multiples);
        float by = inverse(d * (float)parts->scale[j]);
        for (int i = 16 * j; i < 16 * (j + 1); i++)
            parts->q[i] = (uint8_t)(half + clamp(roundf(x[i] * by), -half, half - 1));
    }
}

/* The lowest two bits: 4 elements that are 32 apart share a byte. */
static void put_crumbs(const uint8_t q[256], unsigned char *to)
{
    memset(to, 0, 64);
    for (int i = 0; i < 256; i++)
        to[32 * (i / 128) + i % 32] |= (unsigned char)((q[i] & 3) << 2 * (i % 128 / 32));
}

/* The lowest four bits: two elements that are 32 apart share a byte. */
static void put_nibbles_of_64(const uint8_t q[256], unsigned char *to)
{
    memset(to, 0, 128);
    for (int i = 0; i < 256; i++)
        to[32 * (i / 64) + i % 32] |= (unsigned char)((q[i] & 15) << 4 * (i / 32 & 1));
}

/* Eight scales and eight minimums of 6 bits in 12 bytes. */
static void put_scales_and_minimums(const struct parts *parts, unsigned char s[12])
{
    for (int j = 0; j < 4; j++) {
        unsigned scale = parts->scale[j + 4], minimum = parts->minimum[j + 4];
        s[j] = (unsigned char)(parts->scale[j] | scale >> 4 << 6);
        s[j + 4] = (unsigned char)(parts->minimum[j] | minimum >> 4 << 6);
        s[j + 8] = (unsigned char)((scale & 15) | (minimum & 15) << 4);
    }
}

static void q2_k(const float *x, unsigned char *p)
{
    struct parts parts = {.size = 16, .steps = 3, .multiples = 15};
    ranged_parts(&parts, x, p + 80, p + 82);
    for (int j = 0; j < 16; j++)
        p[j] = (unsigned char)(parts.scale[j] | parts.minimum[j] << 4);
    put_crumbs(parts.q, p + 16);
}

static void q3_k(const float *x, unsigned char *p)
{
    struct parts parts = {.size = 16, .multiples = 31};
    symmetric_parts(&parts, 4, x, p + 108);
    memset(p, 0, 32);
    memset(p + 96, 0, 12);
    for (int i = 0; i < 256; i++)
        p[i % 32] |= (unsigned char)((parts.q[i] >> 2) << i / 32);
    put_crumbs(parts.q, p + 32);
    for (int j = 0; j < 16; j++) {
        unsigned s = parts.scale[j] + 32u;
        p[96 + j % 8] |= (unsigned char)((s & 15) << 4 * (j / 8));
        p[104 + j % 4] |= (unsigned char)(s >> 4 << 2 * (j / 4));
    }
}

static void q4_k(const float *x, unsigned char *p)
{
    struct parts parts = {.size = 32, .steps = 15, .multiples = 63};
    ranged_parts(&parts, x, p, p + 2);
    put_scales_and_minimums(&parts, p + 4);
    put_nibbles_of_64(parts.q, p + 16);
}

static void q5_k(const float *x, unsigned char *p)
{
    struct parts parts = {.size = 32, .steps = 31, .multiples = 63};
    ranged_parts(&parts, x, p, p + 2);
    put_scales_and_minimums(&parts, p + 4);
    memset(p + 16, 0, 32);
    for (int i = 0; i < 256; i++)
        p[16 + i % 32] |= (unsigned char)((parts.q[i] >> 4) << i / 32);
    put_nibbles_of_64(parts.q, p + 48);
}

static void q6_k(const float *x, unsigned char *p)
{
    struct parts parts = {.size = 16, .multiples = 127};
    symmetric_parts(&parts, 32, x, p + 208);
    memset(p, 0, 192);
    for (int i = 0; i < 256; i++) {
        int t = i / 128, r = i % 128 / 32, l = i % 32;
        p[64 * t + 32 * (r & 1) + l] |= (unsigned char)((parts.q[i] & 15) << 4 * (r >> 1));
        p[128 + 32 * t + l] |= (unsigned char)((parts.q[i] >> 4) << 2 * r);
    }
    memcpy(p + 192, parts.scale, 16);
}

/* ── all ───────────────────────────────────────────────────────────────────────────────────── */

void gguf_blocks_from_float(enum gguf_type type, const float *x, unsigned char *p, uint64_t blocks)
{
    uint32_t bytes = gguf_type_block_bytes(type), values = gguf_type_block_values(type);
    for (; blocks; blocks--, p += bytes, x += values)
        switch (type) {
        case GGUF_Q4_0: symmetric(x, p, 8, p + 2, NULL); break;
        case GGUF_Q4_1: ranged(x, p, 15, p + 4, NULL); break;
        case GGUF_Q5_0: symmetric(x, p, 16, p + 6, p + 2); break;
        case GGUF_Q5_1: ranged(x, p, 31, p + 8, p + 4); break;
        case GGUF_Q2_K: q2_k(x, p); break;
        case GGUF_Q3_K: q3_k(x, p); break;
        case GGUF_Q4_K: q4_k(x, p); break;
        case GGUF_Q5_K: q5_k(x, p); break;
        case GGUF_Q6_K: q6_k(x, p); break;
        default: assert(!"a format of kquants.c");
        }
}
