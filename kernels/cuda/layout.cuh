/*
 * layout: how a repacked matrix lies in device memory, and how a lane makes halves of it. Private to
 * kernels/cuda/.
 *
 * A matrix is cut into tiles of 16 rows, a tile into chunks of 64 columns (padded with zeros); a chunk
 * of a tile is one record, values and then scales, and records lie in the order in which a warp reads
 * them. Columns are in natural order, 16 to an mma. Rows are not: a lane 4g + t of mma.m16n8k16 holds
 * rows g and g + 8 of its operand, and these are rows 2g and 2g + 1 of the tile. So gate and up of a
 * SwiGLU row meet in one lane, and results are stored two rows at a time.
 *
 *   record of (tile, chunk), one behind the other:
 *     values [load][lane] 16 bytes; 1 load FP4, 2 I8, 4 F16; of each block of 32 columns a lane has
 *            columns {0, 1, 8, 9, 16, 17, 24, 25} + 2t of rows 2g and 2g + 1
 *     scales [g][block of 32][row 2g, 2g + 1]   FP4: 1 byte, I8: a half, F16: none
 *   row_scales [row] f32, FP4 alone
 *
 * FP4 (MXFP4): E2M1 codes with a power of two for 32 of them. The magnitude bits at 11…9 and the sign
 * at 15 of a half are the code's value times 2^−14, subnormals included; a multiplication with a
 * half 2^(14 + s) makes it whole. s is the block's exponent less the largest one of its row, so it fits
 * whatever the file holds; the row's largest goes into row_scales and multiplies the finished sum.
 * Exact for s ≥ −23; a smaller block is rounded to multiples of 2^−24 of the row's largest scale. The
 * byte stored is the upper one of the half 2^(14 + s).
 * Bits of a word (8 columns of a row), the same in its lower half (even columns) and upper half (odd
 * ones): pair 0 at 15 and 11…9, ready; pair 1 three lower; pair 2 magnitudes at 5…3, sign at 14; pair 3
 * magnitudes at 2…0, sign at 13.
 *
 * I8 (Q8_0): the byte plus 128, so that 0x6400 | byte is the half 1024 + 128 + q; times the block's
 * scale, rounded once.
 */
#ifndef GPTOSS_KERNELS_CUDA_LAYOUT_CUH
#define GPTOSS_KERNELS_CUDA_LAYOUT_CUH

#include <cuda_fp16.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda/matmul.h"
#include "kernels/cuda/ptx.cuh"

enum layout_format { LAYOUT_FP4, LAYOUT_I8, LAYOUT_F16 };

#define LAYOUT_ROWS  16 /* of a tile */
#define LAYOUT_CHUNK 64 /* columns */
#define LAYOUT_PARTS 8  /* of the columns, at most: the parts of the contract */

/* 16-byte loads of a lane for a record; bytes of its scales; all its bytes. */
static constexpr __host__ __device__ int layout_loads(enum layout_format f)
{
    return f == LAYOUT_FP4 ? 1 : f == LAYOUT_I8 ? 2 : 4;
}

static constexpr __host__ __device__ int layout_scale_bytes(enum layout_format f)
{
    return f == LAYOUT_FP4 ? 32 : f == LAYOUT_I8 ? 64 : 0;
}

static constexpr __host__ __device__ int layout_record_bytes(enum layout_format f)
{
    return layout_loads(f) * 512 + layout_scale_bytes(f);
}

struct layout {
    enum layout_format format;
    uint32_t tiles, chunks;
    uint32_t part_chunks; /* part p: chunks p · part_chunks … */
    size_t row_scales_at; /* in a matrix */
    size_t matrix_bytes;
};

static inline enum layout_format layout_format_of(enum gguf_type type)
{
    return type == GGUF_MXFP4 ? LAYOUT_FP4 : type == GGUF_Q8_0 ? LAYOUT_I8 : LAYOUT_F16;
}

static inline struct layout layout_of(enum gguf_type type, uint32_t rows, uint32_t columns)
{
    struct layout l;
    l.format = layout_format_of(type);
    l.tiles = (rows + LAYOUT_ROWS - 1) / LAYOUT_ROWS;
    l.chunks = (columns + LAYOUT_CHUNK - 1) / LAYOUT_CHUNK;
    l.part_chunks = (l.chunks + LAYOUT_PARTS - 1) / LAYOUT_PARTS;
    size_t chunks = (size_t)l.tiles * l.chunks;
    l.row_scales_at = chunks * (size_t)layout_record_bytes(l.format);
    size_t row_scales = l.format == LAYOUT_FP4 ? (size_t)l.tiles * LAYOUT_ROWS * sizeof(float) : 0;
    l.matrix_bytes = (l.row_scales_at + row_scales + 255) / 256 * 256;
    return l;
}

/* A lane's weights of a record, as they lie in memory. */
template <enum layout_format format> struct layout_raw {
    uint4 values[layout_loads(format)];
    uint2 scales;
};

/* From a record in shared memory. */
template <enum layout_format format>
static __device__ __forceinline__ void layout_read(struct layout_raw<format> &raw, uint32_t record)
{
    const uint32_t lane = threadIdx.x & 31, g = lane >> 2;
#pragma unroll
    for (uint32_t j = 0; j < layout_loads(format); j++)
        raw.values[j] = ptx_load_shared16(record + j * 512 + lane * 16);
    if constexpr (format == LAYOUT_FP4)
        raw.scales.x = ptx_load_shared4(record + 512 + g * 4);
    if constexpr (format == LAYOUT_I8)
        raw.scales = ptx_load_shared8(record + 1024 + g * 8);
}

static __device__ __forceinline__ uint32_t layout_multiply(uint32_t a, uint32_t b)
{
    uint32_t r;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}

static __device__ __forceinline__ uint32_t layout_subtract(uint32_t a, uint32_t b)
{
    uint32_t r;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}

/* The A operands of the block's two mma; block 0 or 1 of the chunk. */
template <enum layout_format format>
static __device__ __forceinline__ void layout_fragments(const struct layout_raw<format> &raw,
                                                        const int block, uint32_t a[2][4])
{
#pragma unroll
    for (int row = 0; row < 2; row++) {
        if constexpr (format == LAYOUT_FP4) {
            const uint4 v = raw.values[0];
            const uint32_t w = block ? (row ? v.w : v.z) : (row ? v.y : v.x);
            const uint32_t byte = block * 2 + row;
            const uint32_t scale = __byte_perm(raw.scales.x, 0, byte << 12 | byte << 4 | 0x0404);
            a[0][row] = layout_multiply(w & 0x8e008e00, scale);
            a[0][row + 2] = layout_multiply(w << 3 & 0x8e008e00, scale);
            a[1][row] = layout_multiply((w << 6 & 0x0e000e00) | (w << 1 & 0x80008000), scale);
            a[1][row + 2] = layout_multiply((w << 9 & 0x0e000e00) | (w << 2 & 0x80008000), scale);
        } else if constexpr (format == LAYOUT_I8) {
            const uint4 v = raw.values[block];
            const uint32_t pair = block ? raw.scales.y : raw.scales.x;
            const uint32_t scale = __byte_perm(pair, 0, row ? 0x3232 : 0x1010);
#pragma unroll
            for (int m = 0; m < 2; m++) {
                const uint32_t w = row ? (m ? v.w : v.z) : (m ? v.y : v.x);
                a[m][row] = layout_multiply(
                    layout_subtract(__byte_perm(w, 0x64646464, 0x4140), 0x64806480), scale);
                a[m][row + 2] = layout_multiply(
                    layout_subtract(__byte_perm(w, 0x64646464, 0x4342), 0x64806480), scale);
            }
        } else {
            const uint4 v = raw.values[block * 2 + row];
            a[0][row] = v.x;
            a[0][row + 2] = v.y;
            a[1][row] = v.z;
            a[1][row + 2] = v.w;
        }
    }
}

#endif
