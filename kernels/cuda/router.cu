/*
 * Router: h = norm(x); logits = W h + b in f32; the `active` largest, best first (ties: the lowest
 * expert); weight = softmax over them.
 *
 *   W [experts, hidden] f32: 368 KB at the size of gpt-oss-20b.
 *
 * A block has ROWS rows in its registers (norm.cuh) and goes over some of the experts, whose weights
 * it loads once for all its rows; the first before it waits for the kernel in front. With few rows a
 * block has one expert, and the last block of the rows chooses; with many it has them all. The norm
 * multiplies the finished sums. The order of every sum is that of norm.cuh, whatever ROWS is.
 */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/router.cuh"

/* Of each row with w, or with itself where w is NULL. */
template <int PARTS, int ROWS>
static __device__ __forceinline__ float warp_sums(const float4 (&x)[ROWS][PARTS],
                                                  const float4 (*w)[PARTS])
{
    float sum[PARTS][ROWS];
#pragma unroll
    for (int j = 0; j < ROWS; j++) {
        float dots[PARTS];
        norm_dot(dots, x[j], w ? *w : x[j]);
#pragma unroll
        for (int i = 0; i < PARTS; i++)
            sum[i][j] = dots[i];
    }
    return norm_warp_sums<PARTS, ROWS>(sum);
}

/* blockIdx.x: which `each` experts; blockIdx.y: which ROWS rows. Rows beyond the step's tokens repeat
 * row 0: they then want no experts of their own. */
template <int PARTS, int ROWS>
static __global__ __launch_bounds__(NORM_THREADS) void router_kernel(struct cuda_router r,
                                                                     uint32_t n, uint32_t each)
{
    extern __shared__ float shared[]; /* [each, NORM_WARPS, ROWS] sums, or [ROWS, experts] logits */
    __shared__ float squares[NORM_WARPS * ROWS], chosen[ROWS][2 * ROUTER_ACTIVE_MAX];
    __shared__ bool last;
    uint32_t e_first = blockIdx.x * each, e_end = min(r.experts, e_first + each);
    uint32_t first = blockIdx.y * ROWS, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float4 norm[PARTS], w[PARTS], next[PARTS], x[ROWS][PARTS];
    ptx_launch_next();
    norm_load(w, r.weight + (uint64_t)e_first * r.hidden, r.hidden);
    if (r.norm)
        norm_load(norm, r.norm, r.hidden);
    ptx_wait_previous();

    uint32_t tokens = r.step ? r.step->n_tokens : n;
    float scale[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        uint32_t row = first + i;
        norm_load(x[i], r.x + (uint64_t)(row < n && row < tokens ? row : 0) * r.hidden, r.hidden);
        scale[i] = 1;
    }
    if (r.norm) {
        const float mine = warp_sums<PARTS, ROWS>(x, NULL);
        if (lane < ROWS)
            squares[warp * ROWS + norm_mine<ROWS>()] = mine;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            scale[i] = norm_scale(norm_sum(squares, ROWS, i), r.hidden, r.eps);
#pragma unroll
            for (int j = 0; j < PARTS; j++)
                x[i][j] = norm_multiply(x[i][j], norm[j]);
        }
    }
    if (blockIdx.x == 0)
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            if (first + i < n)
                norm_store(x[i], scale[i], r.h + (uint64_t)(first + i) * r.hidden, r.hidden);

    for (uint32_t e = e_first; e < e_end; e++) {
        if (e + 1 < e_end)
            norm_load(next, r.weight + (uint64_t)(e + 1) * r.hidden, r.hidden);
        const float mine = warp_sums<PARTS, ROWS>(x, &w);
#pragma unroll
        for (int i = 0; i < PARTS; i++)
            w[i] = next[i];
        if (lane < ROWS)
            shared[((e - e_first) * NORM_WARPS + warp) * ROWS + norm_mine<ROWS>()] = mine;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < (e_end - e_first) * ROWS; i += NORM_THREADS) {
        uint32_t e = i / ROWS, row = i % ROWS;
        float row_scale = scale[0];
#pragma unroll
        for (int j = 1; j < ROWS; j++)
            row_scale = row == (uint32_t)j ? scale[j] : row_scale;
        float logit = __fmaf_rn(norm_sum(shared + e * NORM_WARPS * ROWS, ROWS, row), row_scale,
                                r.bias[e_first + e]);
        if (first + row < n)
            __stcg(&r.logits[(uint64_t)(first + row) * r.experts + e_first + e],
                   logit == logit ? logit : -INFINITY);
    }
    __threadfence();
    __syncthreads();
    if (gridDim.x > 1) {
        if (threadIdx.x == 0) {
            last = atomicAdd(&r.tickets[blockIdx.y], 1) + 1 == gridDim.x;
            if (last)
                r.tickets[blockIdx.y] = 0;
        }
        __syncthreads();
        if (!last)
            return;
        __threadfence();
    }
    for (uint32_t i = threadIdx.x; i < ROWS * r.experts; i += NORM_THREADS)
        if (first + i / r.experts < n)
            shared[i] = __ldcg(&r.logits[(uint64_t)first * r.experts + i]);
    __syncthreads();
    if (warp < ROWS && first + warp < n)
        router_choose(shared + warp * r.experts, r.experts, r.active,
                      r.forced && first + warp < tokens
                          ? router_forced(r.step, r.forced, r.active, first + warp)
                          : NULL,
                      chosen[warp], r.choice + (uint64_t)(first + warp) * r.active,
                      r.choice_weight + (uint64_t)(first + warp) * r.active);
}

const char *cuda_router_refuses(uint32_t hidden, uint32_t experts, uint32_t active)
{
    if (hidden % 4)
        return "a hidden size that is no multiple of 4";
    if (hidden > NORM_MOST)
        return "a hidden size above 5120";
    if (experts > ROUTER_EXPERTS_MAX)
        return "more than 512 experts";
    if (!active || active > experts || active > ROUTER_ACTIVE_MAX)
        return "no experts to choose, or more than 32";
    return NULL;
}

template <int PARTS, int ROWS>
static int run(const struct cuda_router *r, uint32_t n, cudaStream_t stream)
{
    /* Blocks for about two to a multiprocessor: what a block loads it should use often. */
    uint32_t groups = (n + ROWS - 1) / ROWS, each = 1;
    while (each < 32 && each < r->experts && groups * r->experts / each > 264)
        each *= 2;
    size_t sums = (size_t)each * NORM_WARPS * ROWS, logits = (size_t)ROWS * r->experts;
    return cuda_launch(router_kernel<PARTS, ROWS>, dim3((r->experts + each - 1) / each, groups),
                       NORM_THREADS, (sums > logits ? sums : logits) * sizeof(float), stream, *r, n,
                       each);
}

template <int PARTS>
static int run_rows(const struct cuda_router *r, uint32_t n, cudaStream_t stream)
{
    if (n <= 4)
        return run<PARTS, 1>(r, n, stream);
    if constexpr (PARTS <= 3) /* more would not fit into registers */
        if (n > 32)
            return run<PARTS, 8>(r, n, stream);
    return run<PARTS, 4>(r, n, stream);
}

int cuda_router_run(const struct cuda_router *r, uint32_t n, cudaStream_t stream)
{
    switch (norm_parts(r->hidden)) {
    case 0:
    case 1: return run_rows<1>(r, n, stream);
    case 2: return run_rows<2>(r, n, stream);
    case 3: return run_rows<3>(r, n, stream);
    case 4: return run_rows<4>(r, n, stream);
    case 5: return run_rows<5>(r, n, stream);
    default: return -1;
    }
}
