/*
 * simd: 16 floats at a time, the same operations for each instruction set. Private to cpu/.
 *
 * The files of cpu/ that include this one are compiled once for each instruction set, with
 * CPU_ISA=avx512, avxvnni, avx2 or plain and the compiler's flags for it. A `v16` is one register, two,
 * or an array. All add the lanes of a vector in one order (v_sum), and AVX2 and AVX-512 round
 * everywhere alike, so those two give the same bits; plain has no fused multiply-add.
 *
 * The names, for each set:
 *   v_zero v_set v_load v_store            unaligned
 *   v_load_part v_store_part               the first n lanes; the others are zero, or untouched
 *   v_add v_sub v_mul v_div v_min v_max    v_min(a, b) is b where either is NaN, as in C's a < b ? a : b
 *   v_fma(a, b, c)                         a · b + c
 *   v_round                                to the nearest integer
 *   v_power(k)                             2ᵏ of integers −126…127
 *   v_keep(a, from, to, b)                 a in lanes from…to−1, b elsewhere
 *   v_sum v_most                           over the lanes
 *   v_sum4(a, b, c, d, out)                v_sum of four
 *   v_load_f16 v_load_bf16 v_store_f16 v_store_bf16
 *   v_load_i8                              16 signed bytes
 *   v_half                                 one half-precision number; 8 bytes must be there
 *   v_mxfp4(block, low, high)              32 values of a block of 17 bytes
 * and for the tile of a matrix product: a register t_vec of T_LANES floats, t_zero t_load t_store
 * t_fma; TILE_ROWS_X and TILE_ROWS_W are the rows of x and of the matrix in a tile, chosen so that its
 * sums fit the registers.
 */
#ifndef GPTOSS_KERNELS_SIMD_H
#define GPTOSS_KERNELS_SIMD_H

#include <stdint.h>
#include <string.h>

#define CPU_NAME2(name, isa) cpu_##name##_##isa
#define CPU_NAME1(name, isa) CPU_NAME2(name, isa)
#define CPU_NAME(name)       CPU_NAME1(name, CPU_ISA)
#define INLINE               static inline __attribute__((always_inline, unused))

/* Bits of 2 to the power of e − 128, the scale of a block of MXFP4 for values counted in halves. */
#define SCALE(e)   ((e) >= 2 ? (uint32_t)((e)-1) << 23 : 0x00200000u << ((e)&1))
#define SCALE4(e)  SCALE(e), SCALE((e) + 1), SCALE((e) + 2), SCALE((e) + 3)
#define SCALE16(e) SCALE4(e), SCALE4((e) + 4), SCALE4((e) + 8), SCALE4((e) + 12)
#define SCALE64(e) SCALE16(e), SCALE16((e) + 16), SCALE16((e) + 32), SCALE16((e) + 48)
static const uint32_t mxfp4_scales[256]
    __attribute__((aligned(64), unused)) = {SCALE64(0), SCALE64(64), SCALE64(128), SCALE64(192)};

INLINE float mxfp4_scale(unsigned char e)
{
    float scale;
    memcpy(&scale, &mxfp4_scales[e], sizeof scale);
    return scale;
}

/* bf16 is the upper half of a float; to the nearest, ties to even, NaN stays NaN. */
INLINE uint16_t bf16_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 64);
    return (uint16_t)((bits + (0x7fff + (bits >> 16 & 1))) >> 16);
}

#if defined(CPU_ISA_AVX512)
#include "kernels/cpu/simd_avx512.h"
#elif defined(CPU_ISA_AVX2)
#include "kernels/cpu/simd_avx2.h"
#else
#include "kernels/cpu/simd_plain.h"
#endif

/* eˣ to about 2 ulp, exactly 1 at 0. x = k · ln 2 + r, |r| ≤ ln 2 / 2; Cephes' polynomial in r. */
INLINE v16 v_exp(v16 x)
{
    x = v_max(v_min(v_set(88.0f), x), v_set(-87.0f));
    v16 k = v_round(v_mul(x, v_set(1.44269504f)));
    v16 r = v_fma(k, v_set(-0.693359375f), x);
    r = v_fma(k, v_set(2.12194440e-4f), r);
    v16 p = v_set(1.9875691500e-4f);
    p = v_fma(p, r, v_set(1.3981999507e-3f));
    p = v_fma(p, r, v_set(8.3334519073e-3f));
    p = v_fma(p, r, v_set(4.1665795894e-2f));
    p = v_fma(p, r, v_set(1.6666665459e-1f));
    p = v_fma(p, r, v_set(5.0000001201e-1f));
    p = v_add(v_fma(p, v_mul(r, r), r), v_set(1.0f));
    return v_mul(p, v_power(k));
}

INLINE float scalar_exp(float x)
{
    float lanes[16];
    v_store(lanes, v_exp(v_set(x)));
    return lanes[0];
}

#endif
