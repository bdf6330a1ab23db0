/* 16 floats in four of the compiler's own vectors, for processors without the others (SSE2 at least
 * on x86-64, NEON on ARM). Included by simd.h alone. */
#include "gguf/gguf.h"

#include <math.h>

typedef float vec4 __attribute__((vector_size(16)));
typedef int32_t int4 __attribute__((vector_size(16)));

typedef struct {
    vec4 q[4];
} v16;

#define EACH(expression)                                                                           \
    v16 r;                                                                                         \
    _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) r.q[i] = (expression);                     \
    return r

INLINE vec4 load4(const float *x)
{
    vec4 v;
    memcpy(&v, x, sizeof v);
    return v;
}
INLINE vec4 choose4(int4 mask, vec4 a, vec4 b)
{
    return (vec4)(((int4)a & mask) | ((int4)b & ~mask));
}

INLINE v16 v_zero(void)
{
    EACH((vec4){0});
}
INLINE v16 v_set(float x)
{
    EACH(((vec4){x, x, x, x}));
}
INLINE v16 v_load(const float *x)
{
    EACH(load4(x + 4 * i));
}
INLINE void v_store(float *to, v16 a)
{
    memcpy(to, &a, sizeof a);
}
INLINE v16 v_load_part(const float *x, uint32_t n)
{
    float lanes[16] = {0};
    memcpy(lanes, x, n * sizeof *x);
    return v_load(lanes);
}
INLINE void v_store_part(float *to, uint32_t n, v16 a)
{
    memcpy(to, &a, n * sizeof *to);
}
INLINE v16 v_add(v16 a, v16 b)
{
    EACH(a.q[i] + b.q[i]);
}
INLINE v16 v_sub(v16 a, v16 b)
{
    EACH(a.q[i] - b.q[i]);
}
INLINE v16 v_mul(v16 a, v16 b)
{
    EACH(a.q[i] * b.q[i]);
}
INLINE v16 v_div(v16 a, v16 b)
{
    EACH(a.q[i] / b.q[i]);
}
INLINE v16 v_min(v16 a, v16 b)
{
    EACH(choose4(a.q[i] < b.q[i], a.q[i], b.q[i]));
}
INLINE v16 v_max(v16 a, v16 b)
{
    EACH(choose4(a.q[i] > b.q[i], a.q[i], b.q[i]));
}
INLINE v16 v_fma(v16 a, v16 b, v16 c)
{
    EACH(a.q[i] * b.q[i] + c.q[i]);
}
INLINE v16 v_round(v16 a)
{
    EACH((a.q[i] + 12582912.0f) - 12582912.0f); /* 1.5 · 2²³ */
}
INLINE v16 v_power(v16 k)
{
    EACH((vec4)((__builtin_convertvector(k.q[i], int4) + 127) << 23));
}
INLINE v16 v_keep(v16 a, uint32_t from, uint32_t to, v16 b)
{
    int first = (int)from, end = (int)to;
    const int4 lane = {0, 1, 2, 3};
    EACH(choose4((lane + 4 * i >= first) & (lane + 4 * i < end), a.q[i], b.q[i]));
}
INLINE float v_sum(v16 a)
{
    vec4 s = (a.q[0] + a.q[2]) + (a.q[1] + a.q[3]);
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
    float lanes[16];
    v_store(lanes, a);
    float most = lanes[0];
    for (int i = 1; i < 16; i++)
        most = lanes[i] > most ? lanes[i] : most;
    return most;
}

INLINE v16 v_load_f16(const void *x)
{
    float lanes[16];
    gguf_to_float(GGUF_F16, x, lanes, 16);
    return v_load(lanes);
}
INLINE v16 v_load_bf16(const void *x)
{
    float lanes[16];
    gguf_to_float(GGUF_BF16, x, lanes, 16);
    return v_load(lanes);
}
INLINE void v_store_f16(void *to, v16 a)
{
    float lanes[16];
    uint16_t half[16];
    v_store(lanes, a);
    for (int i = 0; i < 16; i++)
        half[i] = gguf_float_to_half(lanes[i]);
    memcpy(to, half, sizeof half);
}
INLINE v16 v_load_i8(const void *x)
{
    const signed char *b = x;
    EACH(((vec4){b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]}));
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
    float a[16], b[16];
    v16 scale = v_set(mxfp4_scale(block[0]));
    for (int i = 0; i < 16; i++) {
        a[i] = values[block[1 + i] & 15];
        b[i] = values[block[1 + i] >> 4];
    }
    *low = v_mul(v_load(a), scale);
    *high = v_mul(v_load(b), scale);
}

#define T_LANES     4
#define TILE_ROWS_X 6 /* 12 sums, 2 + 1 inputs: 15 of 16 registers */
#define TILE_ROWS_W 2
typedef vec4 t_vec;
INLINE t_vec t_zero(void)
{
    return (vec4){0};
}
INLINE t_vec t_load(const float *x)
{
    return load4(x);
}
INLINE t_vec t_fma(t_vec a, t_vec b, t_vec c)
{
    return a * b + c;
}
INLINE void t_store(float *to, t_vec t)
{
    memcpy(to, &t, sizeof t);
}
