/* Compiled once for each instruction set; that of AVX-512 needs VNNI too. */
#include "kernels/cpu/dot.h"

#if defined(CPU_ISA_AVX512)
#include "kernels/cpu/dot_avx512.h"
#include "kernels/cpu/dot_wide_avx512.h"
#elif defined(CPU_ISA_AVXVNNI)
#include "kernels/cpu/dot_avxvnni.h"
#include "kernels/cpu/dot_wide_avx2.h"
#elif defined(CPU_ISA_AVX2)
#include "kernels/cpu/dot_avx2.h"
#include "kernels/cpu/dot_wide_avx2.h"
#else
#include "kernels/cpu/dot_plain.h"
#endif

/* ── rows of x ─────────────────────────────────────────────────────────────────────────────── */

static void quantise(const float *x, uint32_t columns, unsigned char *row)
{
    uint32_t n = columns / 32;
    for (uint32_t b = 0; b < n; b++, x += 32, row += DOT_BLOCK) {
        v16 low = v_load(x), high = v_load(x + 16);
        v16 most2 = v_max(v_max(low, v_sub(v_zero(), low)), v_max(high, v_sub(v_zero(), high)));
        float most = v_most(most2), inverse = 0;
        if (most > 1e-35f) /* the inverse of less might overflow */
            inverse = 127.0f / most;
        else
            most = 0;
        float scale = most / 127.0f;
        int first, all;
        first = round_bytes(v_mul(low, v_set(inverse)), row);
        all = first + round_bytes(v_mul(high, v_set(inverse)), row + 16);
        float weighted = scale * (float)all;
        all *= -128;
        first *= -128;
        memcpy(row + DOT_SCALE, &scale, 4);
        memcpy(row + DOT_SUM, &all, 4);
        memcpy(row + DOT_FIRST_SUM, &first, 4);
        memcpy(row + DOT_WEIGHTED, &weighted, 4);
    }
}

#if DOT_WIDE
/* 2 to the power of e − 127, 0 < e < 255. */
INLINE float power_of(uint32_t e)
{
    float power;
    e <<= 23;
    memcpy(&power, &e, sizeof power);
    return power;
}

/* The sum that upper and lower ones stand for. */
INLINE float joined(int upper, int lower)
{
    return (float)upper * 32768.0f + (float)lower;
}

static void widen(const float *x, uint32_t columns, unsigned char *row)
{
    uint32_t n = columns / 32;
    for (uint32_t b = 0; b < n; b++, x += 32, row += WIDE_BLOCK) {
        v16 low = v_load(x), high = v_load(x + 16), zero = v_zero();
        float most = v_most(v_max(v_max(low, v_sub(zero, low)), v_max(high, v_sub(zero, high))));
        uint32_t e;
        memcpy(&e, &most, sizeof e);
        e = e >> 23 & 255;
        e = e < 30 ? 30 : e > 254 ? 254 : e;
        v16 inverse = v_set(power_of(282 - e));
        /* What is not finite makes the scale, and so every product, no number. */
        float scale = power_of(e - 28) + v_sum(v_fma(low, zero, v_mul(high, zero)));
        int upper, lower, sums[4];
        split(v_mul(low, inverse), row, &upper, &lower);
        sums[2] = -128 * upper;
        sums[3] = -128 * lower;
        split(v_mul(high, inverse), row + 64, &upper, &lower);
        sums[0] = sums[2] - 128 * upper;
        sums[1] = sums[3] - 128 * lower;
        float weighted = joined(sums[0] / -128, sums[1] / -128) * scale;
        memcpy(row + WIDE_SCALE, &scale, 4);
        memcpy(row + WIDE_UPPER, sums, sizeof sums);
        memcpy(row + WIDE_WEIGHTED, &weighted, 4);
    }
}
#else /* nobody asks for them */
#define WIDE_ROWS DOT_ROWS
#define wide_tile dot_tile
#endif

/* ── products ──────────────────────────────────────────────────────────────────────────────── */

#define TILE(n)                                                                                    \
    case n:                                                                                        \
        if (wide)                                                                                  \
            wide_tile(type, n, panel, columns, rows, to);                                          \
        else                                                                                       \
            dot_tile(type, n, panel, columns, rows, to);                                           \
        break;

INLINE void multiply_typed(enum gguf_type type, bool wide, const unsigned char *panel,
                           uint32_t columns, const struct quantised *x, uint32_t from, uint32_t n,
                           float *out)
{
    const unsigned char *rows[DOT_ROWS];
    for (uint32_t done = 0; done < n;) {
        uint32_t left = n - done, here = wide ? WIDE_ROWS : DOT_ROWS;
        while (here > left)
            here /= 2;
        for (uint32_t i = 0; i < here; i++)
            rows[i] = quantised_row(x, from + done + i);
        float *to = out + (uint64_t)done * PACK_ROWS;
        switch (here) {
            TILE(1)
            TILE(2)
            TILE(4)
#if DOT_ROWS > 4
            TILE(8)
        case 16: dot_tile(type, 16, panel, columns, rows, to); break;
#endif
        default: break;
        }
        done += here;
    }
}

/* A function each, so that the compiler has small ones. */
#define MULTIPLY(type)                                                                             \
    static __attribute__((noinline)) void multiply_##type(                                         \
        const unsigned char *panel, uint32_t columns, const struct quantised *x, uint32_t from,    \
        uint32_t n, float *out)                                                                    \
    {                                                                                              \
        multiply_typed(type, false, panel, columns, x, from, n, out);                              \
    }                                                                                              \
    static __attribute__((noinline)) void wide_##type(const unsigned char *panel,                  \
                                                      uint32_t columns, const struct quantised *x, \
                                                      uint32_t from, uint32_t n, float *out)       \
    {                                                                                              \
        multiply_typed(type, true, panel, columns, x, from, n, out);                               \
    }
PACK_TYPES(MULTIPLY)
#undef MULTIPLY

static void multiply(enum gguf_type type, const unsigned char *panel, uint32_t columns,
                     const struct quantised *x, uint32_t from, uint32_t n, float *out)
{
    switch (type) {
#define CASE(type)                                                                                 \
    case type: (x->wide ? wide_##type : multiply_##type)(panel, columns, x, from, n, out); break;
        PACK_TYPES(CASE)
#undef CASE
    default: break;
    }
}

const struct cpu_dot CPU_NAME(dot) = {
    .quantise = quantise,
#if DOT_WIDE
    .widen = widen,
#endif
    .multiply = multiply,
    .spin = spin,
};
