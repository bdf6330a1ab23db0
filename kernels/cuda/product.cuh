/*
 * product: what the product kernels (stream.cuh, tile.cuh, wide.cuh) share: their argument, and what
 * becomes of a finished sum. Private to kernels/cuda/.
 *
 * Rows are rows of the weights, columns are columns of the mma's B operand: tokens, or (token,
 * expert) pairs; pair p is choice p % active of token p / active.
 */
#ifndef GPTOSS_KERNELS_CUDA_PRODUCT_CUH
#define GPTOSS_KERNELS_CUDA_PRODUCT_CUH

#include <cuda_fp16.h>
#include <stdint.h>

#include "kernels/cuda/layout.cuh"
#include "kernels/cuda/ptx.cuh"

enum product_kind {
    PRODUCT_LINEAR,  /* y[column] (+)= W x[column] + bias */
    PRODUCT_GATE_UP, /* act[pair] = swiglu(W_e x[token] + bias_e), rows interleaved */
    PRODUCT_DOWN,    /* y[pair] = W_e x[pair] + bias_e */
};

/* Columns that share weights: pairs[first … first + count) of one expert. */
struct product_group {
    uint32_t expert, first, count, unused;
};

struct product {
    const unsigned char *weights;
    size_t matrix_bytes, row_scales_at;
    uint32_t rows, tiles, columns, chunks, part_chunks;

    const __half *x;   /* [.., columns] */
    const float *bias; /* [experts, rows], or NULL */
    float *y;          /* [.., rows] */
    __half *act;       /* GATE_UP: [pairs, rows / 2] */
    uint32_t n;        /* rows of x: tokens */
    bool add;
    bool once; /* weights leave the L2 first */

    /* of experts */
    const int32_t *choice;              /* [n, active] */
    const struct product_group *groups; /* NULL: at most 32 pairs, each warp groups them itself */
    const uint32_t *n_groups, *pairs;   /* device memory */
    uint32_t active;
    uint32_t active_inverse; /* ⌈2³² / active⌉ */
    float alpha, limit;
};

template <enum product_kind kind>
static __device__ __forceinline__ uint32_t product_x_row(const struct product &p, uint32_t column)
{
    if constexpr (kind == PRODUCT_GATE_UP)
        return p.active > 1 ? __umulhi(column, p.active_inverse) : column;
    return column;
}

static __device__ __forceinline__ float product_swiglu(float alpha, float limit, float gate,
                                                       float up)
{
    const float a = fminf(gate, limit);
    const float b = fminf(fmaxf(up, -limit), limit);
    const float sigmoid = __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(__fmul_rn(-alpha, a))));
    return __fmul_rn(__fmul_rn(a, sigmoid), __fadd_rn(b, 1.0f));
}

/* What belongs to a lane's rows 2g and 2g + 1 of a tile. */
struct product_rows {
    float scale[2], bias[2];
};

template <enum layout_format format>
static __device__ __forceinline__ struct product_rows
product_rows_of(const struct product &p, uint32_t expert, uint32_t tile)
{
    struct product_rows r = {{1.0f, 1.0f}, {0.0f, 0.0f}};
    const uint32_t row = tile * LAYOUT_ROWS + (threadIdx.x & 31) / 4 * 2;
    if (row >= p.rows)
        return r;
    if constexpr (format == LAYOUT_FP4) {
        const float2 scale = *(const float2 *)(p.weights + expert * p.matrix_bytes +
                                               p.row_scales_at + row * sizeof(float));
        r.scale[0] = scale.x;
        r.scale[1] = scale.y;
    }
    if (p.bias) {
        const float *const bias = p.bias + (size_t)expert * p.rows + row;
        r.bias[0] = bias[0];
        r.bias[1] = row + 1 < p.rows ? bias[1] : 0.0f;
    }
    return r;
}

/* A lane's finished sums: rows 2g, 2g + 1 of the tile × two columns (the pairs or tokens column[],
 * ~0: none); sum[row][column]. Operations are spelt out so that all kernels round alike. */
template <enum layout_format format, enum product_kind kind>
static __device__ __forceinline__ void product_store(const struct product &p,
                                                     const struct product_rows &rows, uint32_t tile,
                                                     const uint32_t column[2], float sum[2][2])
{
    const uint32_t row = tile * LAYOUT_ROWS + (threadIdx.x & 31) / 4 * 2;
    if (row >= p.rows)
        return;
    const bool two = row + 1 < p.rows;
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            if constexpr (format == LAYOUT_FP4)
                sum[r][c] = __fmul_rn(sum[r][c], rows.scale[r]);
            sum[r][c] = __fadd_rn(sum[r][c], rows.bias[r]);
        }
#pragma unroll
    for (int c = 0; c < 2; c++) {
        if (column[c] == ~0u)
            continue;
        if constexpr (kind == PRODUCT_GATE_UP) {
            p.act[(size_t)column[c] * (p.rows / 2) + row / 2] =
                __float2half_rn(product_swiglu(p.alpha, p.limit, sum[0][c], sum[1][c]));
        } else {
            float *const y = p.y + (size_t)column[c] * p.rows + row;
            if (p.rows % 2 == 0) {
                float2 v = make_float2(sum[0][c], sum[1][c]);
                if (p.add) {
                    const float2 old = *(const float2 *)y;
                    v = make_float2(__fadd_rn(old.x, v.x), __fadd_rn(old.y, v.y));
                }
                *(float2 *)y = v;
            } else {
                y[0] = p.add ? __fadd_rn(y[0], sum[0][c]) : sum[0][c];
                if (two)
                    y[1] = p.add ? __fadd_rn(y[1], sum[1][c]) : sum[1][c];
            }
        }
    }
}

#endif
