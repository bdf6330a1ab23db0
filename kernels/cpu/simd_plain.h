/* 16 floats in an array, for processors without the others. Included by simd.h alone. */
#include "gguf/gguf.h"

#include <math.h>

typedef struct {
    float x[16];
} v16;

#define EACH(expression)                                                                           \
    v16 r;                                                                                         \
    for (int i = 0; i < 16; i++)                                                                   \
        r.x[i] = (expression);                                                                     \
    return r

INLINE v16 v_zero(void)
{
    EACH(0);
}
INLINE v16 v_set(float x)
{
    EACH(x);
}
INLINE v16 v_load(const float *x)
{
    EACH(x[i]);
}
INLINE void v_store(float *to, v16 a)
{
    memcpy(to, a.x, sizeof a.x);
}
INLINE v16 v_load_part(const float *x, uint32_t n)
{
    EACH((uint32_t)i < n ? x[i] : 0);
}
INLINE void v_store_part(float *to, uint32_t n, v16 a)
{
    memcpy(to, a.x, n * sizeof *to);
}
INLINE v16 v_add(v16 a, v16 b)
{
    EACH(a.x[i] + b.x[i]);
}
INLINE v16 v_sub(v16 a, v16 b)
{
    EACH(a.x[i] - b.x[i]);
}
INLINE v16 v_mul(v16 a, v16 b)
{
    EACH(a.x[i] * b.x[i]);
}
INLINE v16 v_div(v16 a, v16 b)
{
    EACH(a.x[i] / b.x[i]);
}
INLINE v16 v_min(v16 a, v16 b)
{
    EACH(a.x[i] < b.x[i] ? a.x[i] : b.x[i]);
}
INLINE v16 v_max(v16 a, v16 b)
{
    EACH(a.x[i] > b.x[i] ? a.x[i] : b.x[i]);
}
INLINE v16 v_fma(v16 a, v16 b, v16 c)
{
    EACH(a.x[i] * b.x[i] + c.x[i]);
}
INLINE v16 v_round(v16 a)
{
    EACH((a.x[i] + 12582912.0f) - 12582912.0f); /* 1.5 · 2²³ */
}
INLINE v16 v_power(v16 k)
{
    v16 r;
    for (int i = 0; i < 16; i++) {
        uint32_t bits = (uint32_t)((int32_t)k.x[i] + 127) << 23;
        memcpy(&r.x[i], &bits, sizeof bits);
    }
    return r;
}
INLINE v16 v_keep(v16 a, uint32_t from, uint32_t to, v16 b)
{
    EACH((uint32_t)i >= from && (uint32_t)i < to ? a.x[i] : b.x[i]);
}
INLINE float v_sum(v16 a)
{
    float s[8];
    for (int i = 0; i < 8; i++)
        s[i] = a.x[i] + a.x[i + 8];
    for (int i = 0; i < 4; i++)
        s[i] += s[i + 4];
    return (s[0] + s[1]) + (s[2] + s[3]);
}
INLINE void v_sum4(v16 a, v16 b, v16 c, v16 d, float *out)
{
    out[0] = v_sum(a);
    out[1] = v_sum(b);
    out[2] = v_sum(c);
    out[3] = v_sum(d);
}
INLINE float v_most(v16 a)
{
    float most = a.x[0];
    for (int i = 1; i < 16; i++)
        most = a.x[i] > most ? a.x[i] : most;
    return most;
}

INLINE v16 v_load_f16(const void *x)
{
    v16 r;
    gguf_to_float(GGUF_F16, x, r.x, 16);
    return r;
}
INLINE v16 v_load_bf16(const void *x)
{
    v16 r;
    gguf_to_float(GGUF_BF16, x, r.x, 16);
    return r;
}
INLINE void v_store_f16(void *to, v16 a)
{
    uint16_t half[16];
    for (int i = 0; i < 16; i++)
        half[i] = gguf_float_to_half(a.x[i]);
    memcpy(to, half, sizeof half);
}
INLINE v16 v_load_i8(const void *x)
{
    const signed char *bytes = x;
    EACH(bytes[i]);
}
INLINE float v_half(const void *x)
{
    uint16_t half;
    memcpy(&half, x, sizeof half);
    return gguf_half_to_float(half);
}
INLINE void v_mxfp4(const unsigned char *block, v16 *low, v16 *high)
{
    static const float values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    float scale = mxfp4_scale(block[0]);
    for (int i = 0; i < 16; i++) {
        low->x[i] = values[block[1 + i] & 15] * scale;
        high->x[i] = values[block[1 + i] >> 4] * scale;
    }
}

#define T_LANES     16
#define TILE_ROWS_X 1
typedef v16 t_vec;
INLINE t_vec t_zero(void)
{
    return v_zero();
}
INLINE t_vec t_load(const float *x)
{
    return v_load(x);
}
INLINE t_vec t_fma(t_vec a, t_vec b, t_vec c)
{
    return v_fma(a, b, c);
}
INLINE void t_part(v16 *sum, uint32_t i, t_vec t)
{
    (void)i;
    *sum = t;
}
