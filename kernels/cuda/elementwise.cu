/*
 * Elementwise: what a step begins and ends with, and norms.
 *
 *   begin    x[t] = row of the embedding, or of the lane's input      n blocks, a row each
 *            new entries of the block tables                          shared by all threads
 *   rmsnorm  h = half(weight · x / √(mean(x²) + eps))                 a block of 256 threads a row
 *   combine  x += Σ weight_j · y_j of the experts, and the norm behind it    likewise
 *   finish   output = x, or of a cut head the rows that are sampled; the host learns that the step is done
 *
 * All of it moves few bytes (23 KB a token and norm): what counts is that there are few launches.
 */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/norm.cuh"

/* Element i of a row of the embedding: the definition of gguf/blocks.c, of the types that are held. */
static __device__ float row_value(enum gguf_type type, const unsigned char *row, uint32_t i)
{
    switch (type) {
    case GGUF_F32: return ((const float *)row)[i];
    case GGUF_F16: return __half2float(((const __half *)row)[i]);
    case GGUF_BF16: return __bfloat162float(((const __nv_bfloat16 *)row)[i]);
    case GGUF_Q8_0: {
        const unsigned char *block = row + (uint64_t)(i / 32) * 34;
        float d = __half2float(*(const __half *)block);
        return d * (float)(int8_t)block[2 + i % 32];
    }
    case GGUF_MXFP4: {
        const unsigned char *block = row + (uint64_t)(i / 32) * 17;
        uint32_t e = block[0], byte = block[1 + i % 16];
        uint32_t code = i % 32 < 16 ? byte & 15 : byte >> 4, magnitude = code & 7;
        float d = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
        /* E2M1 doubled: 0 1 2 3 4 6 8 12 */
        float q = magnitude < 4 ? (float)magnitude
                                : (float)((2 + (magnitude & 1)) << (magnitude / 2 - 1));
        return d * (code & 8 ? -q : q);
    }
    default: return 0;
    }
}

static __global__ void begin_kernel(struct cuda_begin b)
{
    const struct cuda_step *step = b.step;
    uint32_t threads = gridDim.x * blockDim.x, at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at == 0)
        b.clock->begun = ptx_now_ns();
    const struct cuda_entry *full = cuda_part<const struct cuda_entry>(step, step->full);
    const struct cuda_entry *window = cuda_part<const struct cuda_entry>(step, step->window);
    for (uint32_t i = at; i < step->n_full; i += threads)
        b.full_table[full[i].at] = full[i].block;
    for (uint32_t i = at; i < step->n_window; i += threads)
        b.window_table[window[i].at] = window[i].block;

    uint32_t t = blockIdx.x;
    if (t >= step->n_tokens)
        return;
    float *x = b.x + (uint64_t)t * b.hidden;
    if (!b.embedding) {
        const float *input = step->input + (uint64_t)t * b.hidden;
        for (uint32_t i = threadIdx.x; i < b.hidden; i += blockDim.x)
            x[i] = input[i];
        return;
    }
    const struct cuda_token token = cuda_part<const struct cuda_token>(step, step->tokens)[t];
    int32_t id = token.id == KERNELS_TOKEN_SAMPLED ? b.slot_token[token.slot] : token.id;
    if (id < 0 || (uint32_t)id >= b.vocabulary) {
        if (threadIdx.x == 0) {
            step->report->failed_token = id;
            step->report->failed_row = token.row + 1;
        }
        id = 0;
    }
    const unsigned char *row = b.embedding + (uint64_t)id * b.row_bytes;
    for (uint32_t i = threadIdx.x; i < b.hidden; i += blockDim.x)
        x[i] = row_value(b.type, row, i);
}

int cuda_begin(const struct cuda_begin *b, uint32_t n, cudaStream_t stream)
{
    begin_kernel<<<n, 256, 0, stream>>>(*b); /* behind a copy: nothing to start before */
    return cudaGetLastError() == cudaSuccess ? 0 : -1;
}

static __global__ void finish_kernel(const struct cuda_step *step, const float *x, uint32_t hidden,
                                     uint32_t *ticket, struct cuda_clock *clock,
                                     struct cuda_progress *progress)
{
    ptx_launch_next();
    ptx_wait_previous();
    uint64_t n = step->output ? (uint64_t)step->n_tokens * hidden : 0;
    for (uint64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        step->output[i] = x[i];
    if (step->picked) {
        const struct cuda_pick *picks = cuda_part<const struct cuda_pick>(step, step->picks);
        for (uint32_t i = blockIdx.x; i < step->n_samples; i += gridDim.x)
            for (uint32_t c = threadIdx.x; c < hidden; c += blockDim.x)
                step->picked[(uint64_t)i * hidden + c] = x[(uint64_t)picks[i].token * hidden + c];
        __threadfence_system();
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x)
        return;
    if (gridDim.x > 1) {
        if (atomicAdd(ticket, 1) + 1 < gridDim.x)
            return;
        *ticket = 0;
    }
    clock->busy_ns += ptx_now_ns() - clock->begun;
    progress->busy_ns = clock->busy_ns;
    __threadfence_system();
    progress->serial = step->serial;
}

int cuda_finish(const struct cuda_step *step, const float *x, uint32_t hidden, uint32_t n,
                uint32_t *ticket, struct cuda_clock *clock, struct cuda_progress *progress,
                cudaStream_t stream)
{
    uint32_t blocks = n < 1 ? 1 : n > 256 ? 256 : n;
    return cuda_launch(finish_kernel, blocks, 256, 0, stream, step, x, hidden, ticket, clock,
                       progress);
}

/* Slots as an argument where they are few: reading them from host memory takes as long as all else. */
#define RING_FEW 64
struct ring_slots {
    uint32_t few[RING_FEW];
    const uint32_t *all; /* host memory */
};

static __global__ void ring_kernel(int32_t *slot_token, const int32_t *sampled,
                                   const struct ring_slots slots, uint32_t count, uint64_t serial,
                                   struct cuda_progress *progress)
{
    ptx_launch_next();
    ptx_wait_previous();
    if (count <= RING_FEW) {
        for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
            bool last = true; /* of two tokens for one slot the later one stays */
            for (uint32_t j = i + 1; j < count; j++)
                last = last && slots.few[j] != slots.few[i];
            if (last)
                slot_token[slots.few[i]] = sampled[i];
        }
    } else if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < count; i++)
            slot_token[slots.all[i]] = sampled[i];
    }
    __syncthreads();
    /* Nothing for the host was written here, and the step has told of what it wrote. */
    if (threadIdx.x == 0)
        progress->serial = serial;
}

int cuda_ring(int32_t *slot_token, const int32_t *sampled, const uint32_t *slots, uint32_t count,
              uint64_t serial, struct cuda_progress *progress, cudaStream_t stream)
{
    struct ring_slots argument = {};
    argument.all = slots;
    for (uint32_t i = 0; i < count && count <= RING_FEW; i++)
        argument.few[i] = slots[i];
    return cuda_launch(ring_kernel, 1, 64, 0, stream, slot_token, sampled, argument, count, serial,
                       progress);
}

/* ── norms ─────────────────────────────────────────────────────────────────────────────────── */

/* Row of x that block i norms; ~0: none. */
static __device__ uint64_t row_of(const struct cuda_step *step, uint32_t first, uint32_t i)
{
    if (!step)
        return i;
    if (first + i >= step->n_samples)
        return ~0ull;
    return cuda_part<const struct cuda_pick>(step, step->picks)[first + i].token;
}

/* part: [NORM_WARPS] of shared memory; ends with a barrier. */
template <int PARTS>
static __device__ __forceinline__ void sum_squares(const float4 (&row)[PARTS], float *part)
{
    float dots[PARTS], sum[PARTS][1];
    norm_dot(dots, row, row);
#pragma unroll
    for (int i = 0; i < PARTS; i++)
        sum[i][0] = dots[i];
    const float mine = norm_warp_sums<PARTS, 1>(sum);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = mine;
    __syncthreads();
}

template <int PARTS>
static __global__ __launch_bounds__(NORM_THREADS) void rmsnorm_kernel(
    const struct cuda_step *step, uint32_t first, const float *x, const float *weight,
    uint32_t columns, float eps, __half *out)
{
    __shared__ float part[NORM_WARPS];
    float4 w[PARTS], row[PARTS];
    ptx_launch_next();
    norm_load(w, weight, columns);
    ptx_wait_previous();
    uint64_t from = row_of(step, first, blockIdx.x);
    if (from == ~0ull)
        return;
    norm_load(row, x + from * columns, columns);
    sum_squares(row, part);
    float scale = norm_scale(norm_sum(part, 1, 0), columns, eps);
#pragma unroll
    for (int i = 0; i < PARTS; i++)
        row[i] = norm_multiply(row[i], w[i]);
    norm_store(row, scale, out + (uint64_t)blockIdx.x * columns, columns);
}

/* x[t] += ((w₀·y₀ + w₁·y₁) + …) over the `active` parts y [n, active, columns] of each row, and what
 * norm follows: out = half(norm(x)). A block a row. */
template <int PARTS>
static __global__ __launch_bounds__(NORM_THREADS) void combine_kernel(
    const float *y, const float *choice_weight, uint32_t active, float *x, const float *weight,
    uint32_t columns, float eps, __half *out)
{
    __shared__ float part[NORM_WARPS];
    float4 w[PARTS], row[PARTS], total[PARTS];
    uint64_t t = blockIdx.x;
    ptx_launch_next();
    if (weight)
        norm_load(w, weight, columns);
    ptx_wait_previous();
    norm_load(row, x + t * columns, columns);
    for (uint32_t j = 0; j < active; j++) {
        float4 one[PARTS];
        float f = choice_weight[t * active + j];
        norm_load(one, y + (t * active + j) * columns, columns);
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            float4 scaled = norm_multiply(one[i], make_float4(f, f, f, f));
            total[i] = j ? norm_add(total[i], scaled) : scaled;
        }
    }
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const uint32_t c = norm_column(i, columns);
        row[i] = norm_add(row[i], total[i]);
        if (c != ~0u)
            *(float4 *)(x + t * columns + c) = row[i];
    }
    if (!weight)
        return;
    sum_squares(row, part);
    float scale = norm_scale(norm_sum(part, 1, 0), columns, eps);
#pragma unroll
    for (int i = 0; i < PARTS; i++)
        row[i] = norm_multiply(row[i], w[i]);
    norm_store(row, scale, out + t * columns, columns);
}

/* Rows of any length. */
static __global__ __launch_bounds__(NORM_THREADS) void rmsnorm_any_kernel(
    const struct cuda_step *step, uint32_t first, const float *x, const float *weight,
    uint32_t columns, float eps, __half *out)
{
    __shared__ float part[NORM_WARPS];
    ptx_launch_next();
    ptx_wait_previous();
    uint64_t from = row_of(step, first, blockIdx.x);
    if (from == ~0ull)
        return;
    x += from * columns;
    float sum[1][1] = {{0}};
    for (uint32_t i = threadIdx.x; i < columns; i += NORM_THREADS)
        sum[0][0] = __fmaf_rn(x[i], x[i], sum[0][0]);
    const float mine = norm_warp_sums<1, 1>(sum);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = mine;
    __syncthreads();
    float scale = norm_scale(norm_sum(part, 1, 0), columns, eps);
    for (uint32_t i = threadIdx.x; i < columns; i += NORM_THREADS)
        out[(uint64_t)blockIdx.x * columns + i] = __float2half_rn(x[i] * weight[i] * scale);
}

static int rmsnorm(const struct cuda_step *step, uint32_t first, const float *x,
                   const float *weight, uint32_t n, uint32_t columns, float eps, __half *out,
                   bool early, cudaStream_t stream)
{
    void (*kernel)(const struct cuda_step *, uint32_t, const float *, const float *, uint32_t,
                   float, __half *) = rmsnorm_any_kernel;
    if (columns % 4 == 0)
        switch (norm_parts(columns)) {
        case 1: kernel = rmsnorm_kernel<1>; break;
        case 2: kernel = rmsnorm_kernel<2>; break;
        case 3: kernel = rmsnorm_kernel<3>; break;
        case 4: kernel = rmsnorm_kernel<4>; break;
        case 5: kernel = rmsnorm_kernel<5>; break;
        default: break;
        }
    return cuda_launch_when(early, kernel, n, NORM_THREADS, 0, stream, step, first, x, weight,
                            columns, eps, out);
}

int cuda_combine(const float *y, const float *choice_weight, uint32_t active, float *x,
                 const float *weight, uint32_t n, uint32_t columns, float eps, __half *out,
                 cudaStream_t stream)
{
    void (*kernel)(const float *, const float *, uint32_t, float *, const float *, uint32_t, float,
                   __half *) = NULL;
    switch (norm_parts(columns)) {
    case 1: kernel = combine_kernel<1>; break;
    case 2: kernel = combine_kernel<2>; break;
    case 3: kernel = combine_kernel<3>; break;
    case 4: kernel = combine_kernel<4>; break;
    case 5: kernel = combine_kernel<5>; break;
    default: return -1;
    }
    return cuda_launch(kernel, n, NORM_THREADS, 0, stream, y, choice_weight, active, x, weight,
                       columns, eps, out);
}

int cuda_rmsnorm(const float *x, const float *weight, uint32_t n, uint32_t columns, float eps,
                 __half *out, bool early, cudaStream_t stream)
{
    return rmsnorm(NULL, 0, x, weight, n, columns, eps, out, early, stream);
}

int cuda_rmsnorm_picked(const struct cuda_step *step, uint32_t first, const float *x,
                        const float *weight, uint32_t n, uint32_t columns, float eps, __half *out,
                        cudaStream_t stream)
{
    return rmsnorm(step, first, x, weight, n, columns, eps, out, true, stream);
}

static __global__ void to_half_kernel(const float *x, __half *out, uint64_t n)
{
    uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        out[i] = __float2half_rn(x[i]);
}

int cuda_to_half(const float *x, __half *out, uint64_t n, cudaStream_t stream)
{
    to_half_kernel<<<(unsigned)((n + 255) / 256), 256, 0, stream>>>(x, out, n);
    return cudaGetLastError() == cudaSuccess ? 0 : -1;
}
