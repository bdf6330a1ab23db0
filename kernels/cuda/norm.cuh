/*
 * norm: rows in the registers of a block of NORM_THREADS threads. Thread t has columns 4·t … 4·t + 3
 * of every 1,024. Sums go over a thread's columns in ascending order, over the lanes of a warp in a
 * tree, over the warps in ascending order: wherever a row is summed, and beside whatever other rows,
 * its sum has the same bits.
 */
#ifndef GPTOSS_KERNELS_CUDA_NORM_CUH
#define GPTOSS_KERNELS_CUDA_NORM_CUH

#include <cuda_fp16.h>
#include <stdint.h>

#define NORM_THREADS 256
#define NORM_WARPS   (NORM_THREADS / 32)
#define NORM_COLUMNS (4 * NORM_THREADS) /* of one part of a row */
#define NORM_PARTS   5                  /* at most */

/* A row of up to PARTS · NORM_COLUMNS columns, a multiple of 4; zeros behind them. */
template <int PARTS>
static __device__ __forceinline__ void norm_load(float4 (&row)[PARTS], const float *from,
                                                 uint32_t columns)
{
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        uint32_t c = i * NORM_COLUMNS + 4 * threadIdx.x;
        row[i] = c < columns ? *(const float4 *)(from + c) : make_float4(0, 0, 0, 0);
    }
}

template <int PARTS>
static __device__ __forceinline__ float norm_dot(const float4 (&a)[PARTS], const float4 (&b)[PARTS])
{
    float sum = 0;
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        sum = __fmaf_rn(a[i].x, b[i].x, sum);
        sum = __fmaf_rn(a[i].y, b[i].y, sum);
        sum = __fmaf_rn(a[i].z, b[i].z, sum);
        sum = __fmaf_rn(a[i].w, b[i].w, sum);
    }
    return sum;
}

template <int N, int AT> static __device__ __forceinline__ void norm_fold(float *v)
{
    if constexpr (N > 1) { /* a lane keeps half of the values, its partner the other half */
        bool upper = threadIdx.x & AT;
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            float keep = upper ? v[i + N / 2] : v[i], give = upper ? v[i] : v[i + N / 2];
            v[i] = __fadd_rn(keep, __shfl_xor_sync(~0u, give, AT));
        }
        norm_fold<N / 2, AT / 2>(v);
    } else if constexpr (AT > 0) {
        v[0] = __fadd_rn(v[0], __shfl_xor_sync(~0u, v[0], AT));
        norm_fold<1, AT / 2>(v);
    }
}

/* Sums of N values (1, 2, 4 or 8) over the lanes of a warp: this lane ends with that of value
 * norm_mine<N>(), in v[0]. */
template <int N> static __device__ __forceinline__ void norm_warp_sums(float (&v)[N])
{
    norm_fold<N, 16>(v);
}

template <int N> static __device__ __forceinline__ uint32_t norm_mine(void)
{
    return threadIdx.x % 32 / (32 / N);
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
        uint32_t c = i * NORM_COLUMNS + 4 * threadIdx.x;
        if (c >= columns)
            continue;
        __half2 pair[2] = {
            __floats2half2_rn(__fmul_rn(row[i].x, scale), __fmul_rn(row[i].y, scale)),
            __floats2half2_rn(__fmul_rn(row[i].z, scale), __fmul_rn(row[i].w, scale))};
        *(uint2 *)(to + c) = *(const uint2 *)pair;
    }
}

#endif
