/*
 * norm: rows in the registers of a block of NORM_THREADS threads. Warp w has the columns of part w of
 * the contract of products (matmul.h), norm_part() of them from w · norm_part() on; lane l of it has
 * columns 4·l … 4·l + 3 of every 128. A sum goes over four columns in ascending order, over the four
 * lanes that have a unit of NORM_UNIT columns in a tree, over every eighth unit of the warp in
 * ascending order, over the eight in a tree, over the warps in ascending order: wherever a row is
 * summed, and beside whatever other rows, its sum has the same bits; and whoever has the sums of the
 * units (solo.cuh) gets them too.
 */
#ifndef GPTOSS_KERNELS_CUDA_NORM_CUH
#define GPTOSS_KERNELS_CUDA_NORM_CUH

#include <cuda_fp16.h>
#include <stdint.h>

#define NORM_THREADS 256
#define NORM_WARPS   (NORM_THREADS / 32)
#define NORM_PARTS   5 /* of 128 columns of a warp, at most */
#define NORM_UNIT    16
#define NORM_MOST    (NORM_WARPS * NORM_PARTS * 128) /* columns of a row */

/* Columns of a warp. */
static __host__ __device__ __forceinline__ uint32_t norm_part(uint32_t columns)
{
    return (columns + 64 * NORM_WARPS - 1) / (64 * NORM_WARPS) * 64;
}

/* PARTS for rows of so many columns. */
static inline uint32_t norm_parts(uint32_t columns)
{
    return (norm_part(columns) + 127) / 128;
}

/* Column i of this thread's, a multiple of 4; ~0: it has none. */
static __device__ __forceinline__ uint32_t norm_column(uint32_t i, uint32_t columns)
{
    const uint32_t part = norm_part(columns), in_part = i * 128 + threadIdx.x % 32 * 4;
    const uint32_t column = threadIdx.x / 32 * part + in_part;
    return in_part < part && column < columns ? column : ~0u;
}

/* A row of a multiple of 4 columns; zeros behind them. */
template <int PARTS>
static __device__ __forceinline__ void norm_load(float4 (&row)[PARTS], const float *from,
                                                 uint32_t columns)
{
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const uint32_t c = norm_column(i, columns);
        row[i] = c != ~0u ? *(const float4 *)(from + c) : make_float4(0, 0, 0, 0);
    }
}

/* Of each four columns. */
template <int PARTS>
static __device__ __forceinline__ void norm_dot(float (&sum)[PARTS], const float4 (&a)[PARTS],
                                                const float4 (&b)[PARTS])
{
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        sum[i] = __fmaf_rn(a[i].x, b[i].x, 0.0f);
        sum[i] = __fmaf_rn(a[i].y, b[i].y, sum[i]);
        sum[i] = __fmaf_rn(a[i].z, b[i].z, sum[i]);
        sum[i] = __fmaf_rn(a[i].w, b[i].w, sum[i]);
    }
}

/* N values, one a row: a lane keeps half of them, its partner at AT the other half. */
template <int N, int AT> static __device__ __forceinline__ void norm_fold(float *v)
{
    if constexpr (N > 1) {
        const bool upper = threadIdx.x & AT;
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            const float keep = upper ? v[i + N / 2] : v[i], give = upper ? v[i] : v[i + N / 2];
            v[i] = __fadd_rn(keep, __shfl_xor_sync(~0u, give, AT));
        }
    } else {
        v[0] = __fadd_rn(v[0], __shfl_xor_sync(~0u, v[0], AT));
    }
}

/* Sums over the warp of ROWS rows (1, 2, 4 or 8), v[part][row]: this lane gets that of row
 * norm_mine<ROWS>(), and lanes 0 … ROWS − 1 have all. */
template <int PARTS, int ROWS>
static __device__ __forceinline__ float norm_warp_sums(float (&v)[PARTS][ROWS])
{
    constexpr int at2 = ROWS > 1 ? ROWS / 2 : 1, at4 = ROWS > 2 ? ROWS / 4 : 1;
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        norm_fold<ROWS, 1>(v[i]);
        norm_fold<at2, 2>(v[i]);
    }
#pragma unroll
    for (int i = 1; i < PARTS; i++)
#pragma unroll
        for (int j = 0; j < at4; j++)
            v[0][j] = __fadd_rn(v[0][j], v[i][j]);
    norm_fold<at4, 4>(v[0]);
    norm_fold<1, 8>(v[0]);
    norm_fold<1, 16>(v[0]);
    return v[0][0];
}

template <int ROWS> static __device__ __forceinline__ uint32_t norm_mine(void)
{
    const uint32_t lane = threadIdx.x;
    if constexpr (ROWS == 8)
        return (lane & 1) * 4 + (lane & 2) + (lane >> 2 & 1);
    if constexpr (ROWS == 4)
        return (lane & 1) * 2 + (lane >> 1 & 1);
    return ROWS == 2 ? lane & 1 : 0;
}

/* Sum i of what the warps have at part[warp · stride + i]. */
static __device__ __forceinline__ float norm_sum(const float *part, uint32_t stride, uint32_t i)
{
    float sum = part[i];
#pragma unroll
    for (int warp = 1; warp < NORM_WARPS; warp++)
        sum = __fadd_rn(sum, part[warp * stride + i]);
    return sum;
}

/* 1 / √(sum / columns + eps) */
static __device__ __forceinline__ float norm_scale(float sum, uint32_t columns, float eps)
{
    return __frsqrt_rn(__fadd_rn(__fdiv_rn(sum, (float)columns), eps));
}

static __device__ __forceinline__ float4 norm_multiply(float4 a, float4 b)
{
    return make_float4(__fmul_rn(a.x, b.x), __fmul_rn(a.y, b.y), __fmul_rn(a.z, b.z),
                       __fmul_rn(a.w, b.w));
}

static __device__ __forceinline__ float4 norm_add(float4 a, float4 b)
{
    return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z),
                       __fadd_rn(a.w, b.w));
}

/* to = half(row · scale) */
template <int PARTS>
static __device__ __forceinline__ void norm_store(const float4 (&row)[PARTS], float scale,
                                                  __half *to, uint32_t columns)
{
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const uint32_t c = norm_column(i, columns);
        if (c == ~0u)
            continue;
        __half2 pair[2] = {
            __floats2half2_rn(__fmul_rn(row[i].x, scale), __fmul_rn(row[i].y, scale)),
            __floats2half2_rn(__fmul_rn(row[i].z, scale), __fmul_rn(row[i].w, scale))};
        *(uint2 *)(to + c) = *(const uint2 *)pair;
    }
}

#endif
