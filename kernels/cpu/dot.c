/* Compiled once for each instruction set; that of AVX-512 needs VNNI too. */
#include "kernels/cpu/dot.h"

#if defined(CPU_ISA_AVX512)
#include "kernels/cpu/dot_avx512.h"
#elif defined(CPU_ISA_AVXVNNI)
#include "kernels/cpu/dot_avxvnni.h"
#elif defined(CPU_ISA_AVX2)
#include "kernels/cpu/dot_avx2.h"
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

/* ── products ──────────────────────────────────────────────────────────────────────────────── */

INLINE void multiply_typed(enum gguf_type type, const unsigned char *panel, uint32_t columns,
                           const struct quantised *x, uint32_t from, uint32_t n, float *out)
{
    const unsigned char *rows[DOT_ROWS];
    for (uint32_t done = 0; done < n;) {
        uint32_t left = n - done, here = DOT_ROWS;
        while (here > left)
            here /= 2;
        for (uint32_t i = 0; i < here; i++)
            rows[i] = quantised_row(x, from + done + i);
        float *to = out + (uint64_t)done * PACK_ROWS;
        switch (here) {
        case 1: dot_tile(type, 1, panel, columns, rows, to); break;
        case 2: dot_tile(type, 2, panel, columns, rows, to); break;
        case 4: dot_tile(type, 4, panel, columns, rows, to); break;
#if DOT_ROWS > 4
        case 8: dot_tile(type, 8, panel, columns, rows, to); break;
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
        multiply_typed(type, panel, columns, x, from, n, out);                                     \
    }
PACK_TYPES(MULTIPLY)
#undef MULTIPLY

static void multiply(enum gguf_type type, const unsigned char *panel, uint32_t columns,
                     const struct quantised *x, uint32_t from, uint32_t n, float *out)
{
    switch (type) {
#define CASE(type)                                                                                 \
    case type: multiply_##type(panel, columns, x, from, n, out); break;
        PACK_TYPES(CASE)
#undef CASE
    default: break;
    }
}

const struct cpu_dot CPU_NAME(dot) = {.quantise = quantise, .multiply = multiply, .spin = spin};
