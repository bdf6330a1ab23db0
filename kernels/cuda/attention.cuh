/*
 * attention.cuh: what the kernels of attention.cu and attention_single.cu share: how keys are cut, how
 * a key lies in the cache, one tile of 64 keys by one warp, and the merging of partial results.
 */
#ifndef GPTOSS_KERNELS_CUDA_ATTENTION_CUH
#define GPTOSS_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/device.cuh"

#define DIM   64
#define TILE  64 /* keys */
#define ROWS  16 /* query rows of a warp */
#define WARPS 4
#define LOG2E 1.4426950408889634f

/* ── cutting ───────────────────────────────────────────────────────────────────────────────── */

static __host__ __device__ inline uint32_t chunk_of(uint32_t position)
{
    return position < 8192 ? position / 256 : 32 + (position - 8192) / 1024;
}

static __device__ inline uint32_t chunk_begin(uint32_t chunk)
{
    return chunk < 32 ? chunk * 256 : 8192 + (chunk - 32) * 1024;
}

/* Groups of ROWS query heads of one KV head. */
static inline uint32_t attention_head_tiles(uint32_t heads, uint32_t kv_heads)
{
    return (heads / kv_heads + ROWS - 1) / ROWS;
}

/* ── the cache ─────────────────────────────────────────────────────────────────────────────── */

static __device__ inline uint64_t kv_element(const struct cuda_kv &kv, uint32_t slot,
                                             uint32_t position, uint32_t head, bool is_value)
{
    uint32_t block = kv.table[(uint64_t)slot * kv.entries + (position >> kv.block_shift)];
    uint32_t in_block = position & ((1u << kv.block_shift) - 1);
    uint64_t row = ((uint64_t)(is_value ? kv.kv_heads + head : head) << kv.block_shift) + in_block;
    return block * kv.block_bytes + row * DIM * (kv.type == KERNELS_KV_F32 ? 4 : 2);
}

static __device__ inline void store_value(const struct cuda_kv &kv, uint64_t at, uint32_t i,
                                          float value)
{
    unsigned char *to = kv.base + at;
    if (kv.type == KERNELS_KV_F16)
        ((__half *)to)[i] = __float2half_rn(value);
    else if (kv.type == KERNELS_KV_BF16)
        ((__nv_bfloat16 *)to)[i] = __float2bfloat16_rn(value);
    else
        ((float *)to)[i] = value;
}

static __device__ __forceinline__ __half clamped_half(float value)
{
    return __float2half_rn(fminf(fmaxf(value, -65504.0f), 65504.0f));
}

/* What is attended to after it was stored. */
static __device__ inline __half half_of_stored(enum kernels_kv_type type, float value)
{
    if (type == KERNELS_KV_F16)
        return __float2half_rn(value);
    if (type == KERNELS_KV_BF16)
        value = __bfloat162float(__float2bfloat16_rn(value));
    return clamped_half(value);
}

/* Pair `pair` of a head, elements pair and pair + DIM/2, turned by the angle with this cosine and sine. */
static __device__ inline float2 rotated(const float *head, uint32_t pair, float c, float s)
{
    float x0 = head[pair], x1 = head[pair + DIM / 2];
    return make_float2(__fmaf_rn(x0, c, -__fmul_rn(x1, s)), __fmaf_rn(x1, c, __fmul_rn(x0, s)));
}

static __device__ inline __half scaled_query(float x)
{
    return __float2half_rn(__fmul_rn(x, LOG2E / 8));
}

/* ── one tile by one warp ──────────────────────────────────────────────────────────────────── */

/* Rows g and g + 8 of the 16 (g = lane / 4); columns 8·i + 2·(lane % 4) and the next. */
struct part {
    float most[2], sum[2];
    float out[DIM / 8][4];
};

static __device__ __forceinline__ void clear(struct part &p)
{
    p.most[0] = p.most[1] = -INFINITY;
    p.sum[0] = p.sum[1] = 0;
#pragma unroll
    for (int i = 0; i < DIM / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            p.out[i][j] = 0;
}

static __device__ __forceinline__ float power2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* How two partial results are merged: what each is multiplied with. */
static __device__ __forceinline__ void factors(float most, float other, float &merged, float &f,
                                               float &f_other)
{
    merged = fmaxf(most, other);
    float base = merged == -INFINITY ? 0 : merged;
    f = power2(__fsub_rn(most, base));
    f_other = power2(__fsub_rn(other, base));
}

static __device__ __forceinline__ float merged(float x, float f, float other, float f_other)
{
    return __fmaf_rn(x, f, __fmul_rn(other, f_other));
}

/* a = a and then b */
static __device__ __forceinline__ void merge(struct part &a, const struct part &b)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float most, f, f_other;
        factors(a.most[r], b.most[r], most, f, f_other);
        a.most[r] = most;
        a.sum[r] = merged(a.sum[r], f, b.sum[r], f_other);
#pragma unroll
        for (int i = 0; i < DIM / 8; i++)
#pragma unroll
            for (int j = 0; j < 2; j++)
                a.out[i][2 * r + j] = merged(a.out[i][2 * r + j], f, b.out[i][2 * r + j], f_other);
    }
}

static __device__ __forceinline__ uint32_t pack(float low, float high)
{
    __half2 h = __floats2half2_rn(low, high);
    return *(uint32_t *)&h;
}

/* 16-byte piece c of row r of a tile [TILE, DIM] of halves in shared memory: the pieces of a row are
 * exchanged so that eight rows of one column lie in different banks. */
static __device__ __forceinline__ __half *piece(__half *tile, uint32_t r, uint32_t c)
{
    return tile + r * DIM + ((c ^ (r & 7)) * 8);
}

/* The query rows' fragments: row r is at rows[r] (g and g + 8 of this lane). */
static __device__ __forceinline__ void load_queries(uint32_t (&q)[DIM / 16][4], const __half *row0,
                                                    const __half *row1)
{
    uint32_t c = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < DIM / 16; i++) {
        q[i][0] = row0 ? *(const uint32_t *)(row0 + 16 * i + c) : 0;
        q[i][1] = row1 ? *(const uint32_t *)(row1 + 16 * i + c) : 0;
        q[i][2] = row0 ? *(const uint32_t *)(row0 + 16 * i + c + 8) : 0;
        q[i][3] = row1 ? *(const uint32_t *)(row1 + 16 * i + c + 8) : 0;
    }
}

/* The partial result of the keys first…first+63; row r sees those from begin[r] to end[r]. */
static __device__ __forceinline__ void attend(struct part &p, const uint32_t (&q)[DIM / 16][4],
                                              __half *key, __half *value, uint32_t first,
                                              const uint32_t (&begin)[2], const uint32_t (&end)[2])
{
    uint32_t lane = threadIdx.x % 32;
    float score[TILE / 8][4];
#pragma unroll
    for (int n = 0; n < TILE / 8; n++) {
        score[n][0] = score[n][1] = score[n][2] = score[n][3] = 0;
#pragma unroll
        for (int i = 0; i < DIM / 32; i++) { /* two steps of 16 dimensions at a time */
            uint32_t b[4];
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                         : "r"(ptx_shared(piece(key, 8 * n + lane % 8, 4 * i + lane / 8))));
            ptx_mma(score[n], q[2 * i], b[0], b[1]);
            ptx_mma(score[n], q[2 * i + 1], b[2], b[3]);
        }
    }
    p.most[0] = p.most[1] = -INFINITY;
#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint32_t at = first + 8 * n + lane % 4 * 2 + j % 2;
            if (at < begin[j / 2] || at > end[j / 2])
                score[n][j] = -INFINITY;
            p.most[j / 2] = fmaxf(p.most[j / 2], score[n][j]);
        }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        p.most[r] = fmaxf(p.most[r], __shfl_xor_sync(~0u, p.most[r], 1));
        p.most[r] = fmaxf(p.most[r], __shfl_xor_sync(~0u, p.most[r], 2));
        p.sum[r] = 0;
    }
#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float most = p.most[j / 2];
            score[n][j] = power2(__fsub_rn(score[n][j], most == -INFINITY ? 0 : most));
            p.sum[j / 2] = __fadd_rn(p.sum[j / 2], score[n][j]);
        }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        p.sum[r] = __fadd_rn(p.sum[r], __shfl_xor_sync(~0u, p.sum[r], 1));
        p.sum[r] = __fadd_rn(p.sum[r], __shfl_xor_sync(~0u, p.sum[r], 2));
    }
#pragma unroll
    for (int i = 0; i < DIM / 8; i++)
        p.out[i][0] = p.out[i][1] = p.out[i][2] = p.out[i][3] = 0;
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) {
        uint32_t a[4] = {pack(score[2 * k][0], score[2 * k][1]),
                         pack(score[2 * k][2], score[2 * k][3]),
                         pack(score[2 * k + 1][0], score[2 * k + 1][1]),
                         pack(score[2 * k + 1][2], score[2 * k + 1][3])};
#pragma unroll
        for (int i = 0; i < DIM / 16; i++) {
            uint32_t b[4], row = 16 * k + (lane / 8 & 1) * 8 + lane % 8;
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                         : "r"(ptx_shared(piece(value, row, 2 * i + lane / 16))));
            ptx_mma(p.out[2 * i], a, b[0], b[1]);
            ptx_mma(p.out[2 * i + 1], a, b[2], b[3]);
        }
    }
}

/* ── keys and values to shared memory ──────────────────────────────────────────────────────── */

static __device__ __forceinline__ void copy16(__half *to, const void *from, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(ptx_shared(to)), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}

static __device__ __forceinline__ uint4 eight_halves(const unsigned char *from,
                                                     enum kernels_kv_type type)
{
    __half h[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
        h[i] = clamped_half(type == KERNELS_KV_F32
                                ? ((const float *)from)[i]
                                : __bfloat162float(((const __nv_bfloat16 *)from)[i]));
    return *(uint4 *)h;
}

/* Keys and values at positions first…first+63 by THREADS threads; zeros outside of low…end−1. Halves
 * are copied asynchronously (the caller commits and waits), other types at once. */
template <int THREADS>
static __device__ __forceinline__ void load_tile(const struct cuda_kv &kv, uint32_t slot,
                                                 uint32_t head, uint32_t first, uint32_t low,
                                                 uint32_t end, __half *key, __half *value)
{
    uint32_t thread = threadIdx.x % THREADS, bytes = kv.type == KERNELS_KV_F32 ? 4 : 2;
    uint64_t to_value = ((uint64_t)kv.kv_heads << kv.block_shift) * DIM * bytes;
    /* Where a block holds the whole tile its place is looked up once. */
    bool whole = kv.block_shift >= 6;
    const unsigned char *tile = kv.base + (whole ? kv_element(kv, slot, first, head, false) : 0);
#pragma unroll
    for (int i = 0; i < TILE * (DIM / 8) / THREADS; i++) {
        uint32_t index = i * THREADS + thread, r = index / (DIM / 8), c = index % (DIM / 8);
        uint32_t position = first + r;
        bool there = position >= low && position < end;
        const unsigned char *from = tile + r * DIM * bytes;
        if (!whole)
            from = kv.base + (there ? kv_element(kv, slot, position, head, false) : 0);
        from += c * 8 * bytes;
        if (kv.type == KERNELS_KV_F16) {
            copy16(piece(key, r, c), from, there);
            copy16(piece(value, r, c), from + to_value, there);
        } else {
            uint4 zero = {0, 0, 0, 0};
            *(uint4 *)piece(key, r, c) = there ? eight_halves(from, kv.type) : zero;
            *(uint4 *)piece(value, r, c) = there ? eight_halves(from + to_value, kv.type) : zero;
        }
    }
}

/* attention_single.cu: singles of the step, launched for `groups` groups of chunks. */
int attention_single_run(const struct cuda_attention *a, uint32_t singles, uint32_t groups,
                         cudaStream_t stream);

#endif
