/*
 * Attention of single tokens (decode): a block of 4 warps for one token, one KV head (up to 16 of its
 * query heads) and 4 chunks of keys (attention.cu says how keys are cut). A warp has a chunk: its tiles
 * of K and V (16 KB each) are copied to shared memory, the first before the kernel waits for the one
 * in front of it. The block of the token that ends last merges the chunks in ascending order.
 *
 * In steps of single tokens of different sequences it also does the work of the store kernel: rotates
 * its queries, and puts the token's key and value into the tile and into the cache.
 *
 * Bytes: 256 a key and KV head (f16), read once; partial results of 264 a chunk and query head.
 */
#include "kernels/cuda/attention.cuh"

#define TILE_HALVES (2 * TILE * DIM) /* keys and values of a tile */
#define MERGED      8                /* chunks that are loaded at a time when they are merged */

#define QUERY_STRIDE (DIM + 8) /* halves; the 8 keep rows in different banks */

/* The last key and value, of the token itself, put into its tile (one warp) and stored. */
static __device__ void add_own(const struct cuda_attention &a, const struct cuda_single &token,
                               uint32_t kv_head, float c, float s, bool store, __half *key,
                               __half *value)
{
    uint32_t lane = threadIdx.x % 32, r = token.position % TILE;
    const float *k = a.k + (uint64_t)token.token * a.kv_stride + kv_head * DIM;
    const float *v = a.v + (uint64_t)token.token * a.kv_stride + kv_head * DIM;
    float2 y = rotated(k, lane, c, s);
    const float own[4] = {y.x, y.y, v[lane], v[lane + 32]};
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t d = lane + i % 2 * 32;
        piece(i < 2 ? key : value, r, d / 8)[d % 8] = half_of_stored(a.kv.type, own[i]);
        if (store)
            store_value(a.kv, kv_element(a.kv, token.slot, token.position, kv_head, i >= 2), d,
                        own[i]);
    }
}

/* OWN: the token's q, k and v are as QKV left them, its key and value in no cache yet; what the cache
 * holds is older than the kernel in front. STAGES: tiles of a warp in shared memory. */
template <bool OWN, int STAGES>
static __global__ __launch_bounds__(WARPS * 32) void single_kernel(struct cuda_attention a,
                                                                   uint32_t n_chunks)
{
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ bool last;
    __shared__ __align__(16) __half queries[ROWS * QUERY_STRIDE];
    ptx_launch_next();
    if (!OWN)
        ptx_wait_previous();
    const struct cuda_step *step = a.step;
    const struct cuda_single token = ((const struct cuda_single *)(step + 1))[blockIdx.z];
    if (blockIdx.z >= step->n_single)
        return;
    uint32_t t = token.token, p = token.position,
             begin = a.window && p + 1 > a.window ? p + 1 - a.window : 0;
    uint32_t first_chunk = chunk_of(begin), count = chunk_of(p) - first_chunk + 1;
    uint32_t groups = (count + WARPS - 1) / WARPS;
    if (blockIdx.x >= groups)
        return;

    uint32_t group = a.heads / a.kv.kv_heads, tiles = (group + ROWS - 1) / ROWS;
    uint32_t kv_head = blockIdx.y / tiles, head = kv_head * group + blockIdx.y % tiles * ROWS;
    uint32_t rows = min(ROWS, (kv_head + 1) * group - head);
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4;
    /* [chunk][ROWS][DIM], then [chunk][ROWS][2]: largest score, sum */
    uint64_t work = (uint64_t)blockIdx.z * gridDim.y + blockIdx.y;
    float *partial = a.partial + work * n_chunks * ROWS * (DIM + 2);
    float *scales = partial + (uint64_t)n_chunks * ROWS * DIM;

    uint32_t mine = blockIdx.x * WARPS + warp, chunk = first_chunk + mine;
    uint32_t low = max(begin, chunk_begin(chunk)), end = min(p + 1, chunk_begin(chunk + 1));
    uint32_t cached = OWN ? min(end, p) : end;
    uint32_t next = low / TILE * TILE, stage = 0;
    __half *const tiles_of_warp = (__half *)shared + warp * STAGES * TILE_HALVES;
#pragma unroll
    for (int i = 0; i < STAGES; i++) {
        __half *key = tiles_of_warp + i * TILE_HALVES;
        if (mine < count && next < end)
            load_tile<32>(a.kv, token.slot, kv_head, next, low, cached, key, key + TILE * DIM);
        ptx_copy_commit();
        next += TILE;
    }

    float c = 1, s = 0; /* of pair `lane` */
    if (OWN) {
        c = a.cosine[(uint64_t)p * (DIM / 2) + lane];
        s = a.sine[(uint64_t)p * (DIM / 2) + lane];
        const float *q = a.q + (uint64_t)t * a.q_stride + head * DIM;
        ptx_wait_previous();
        for (uint32_t i = threadIdx.x; i < rows * (DIM / 2); i += WARPS * 32) {
            uint32_t row = i / (DIM / 2), pair = lane;
            float2 y = rotated(q + row * DIM, pair, c, s);
            queries[row * QUERY_STRIDE + pair] = scaled_query(y.x);
            queries[row * QUERY_STRIDE + pair + DIM / 2] = scaled_query(y.y);
        }
        __syncthreads();
    }
    if (mine < count) {
        const __half *q = OWN ? queries : a.rotated + ((uint64_t)t * a.heads + head) * DIM;
        const uint32_t stride = OWN ? QUERY_STRIDE : DIM;
        uint32_t fragments[DIM / 16][4];
        struct part sum, one;
        clear(sum);
        load_queries(fragments, g < rows ? q + g * stride : NULL,
                     g + 8 < rows ? q + (g + 8) * stride : NULL);
        const uint32_t begins[2] = {begin, begin}, ends[2] = {p, p};
        for (uint32_t first = low / TILE * TILE; first < end; first += TILE) {
            __half *key = tiles_of_warp + stage * TILE_HALVES, *value = key + TILE * DIM;
            ptx_copy_wait<STAGES - 1>();
            __syncwarp();
            if (OWN && p - first < TILE) {
                add_own(a, token, kv_head, c, s, blockIdx.y % tiles == 0, key, value);
                __syncwarp();
            }
            attend(one, fragments, key, value, first, begins, ends);
            __syncwarp();
            if (next < end)
                load_tile<32>(a.kv, token.slot, kv_head, next, low, cached, key, value);
            ptx_copy_commit();
            next += TILE;
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            merge(sum, one);
        }
        float *out = partial + (uint64_t)mine * ROWS * DIM, *scale = scales + mine * ROWS * 2;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t row = g + 8 * r;
            if (row >= rows)
                continue;
#pragma unroll
            for (int i = 0; i < DIM / 8; i++)
                __stcg((float2 *)(out + row * DIM + 8 * i + lane % 4 * 2),
                       make_float2(sum.out[i][2 * r], sum.out[i][2 * r + 1]));
            if (lane % 4 == 0)
                __stcg((float2 *)(scale + row * 2), make_float2(sum.most[r], sum.sum[r]));
        }
    }
    if (groups > 1)
        __threadfence();
    __syncthreads();
    if (groups > 1) {
        if (threadIdx.x == 0) {
            last = atomicAdd(&a.tickets[work], 1) + 1 == groups;
            if (last)
                a.tickets[work] = 0;
        }
        __syncthreads();
        if (!last)
            return;
        __threadfence();
    }
    for (uint32_t i = threadIdx.x; i < rows * (DIM / 4); i += WARPS * 32) {
        uint32_t row = i / (DIM / 4), d = i % (DIM / 4) * 4;
        float most = a.sinks[head + row] * LOG2E, sum = 1;
        float4 out = {0, 0, 0, 0};
        for (uint32_t first = 0; first < count; first += MERGED) {
            float2 scale[MERGED];
            float4 x[MERGED];
#pragma unroll
            for (uint32_t c = 0; c < MERGED; c++) {
                uint64_t at = (uint64_t)min(first + c, count - 1) * ROWS + row;
                scale[c] = __ldcg((const float2 *)(scales + at * 2));
                x[c] = __ldcg((const float4 *)(partial + at * DIM + d));
            }
#pragma unroll
            for (uint32_t c = 0; c < MERGED; c++) {
                if (first + c >= count)
                    break;
                float both, f, f_other;
                factors(most, scale[c].x, both, f, f_other);
                most = both;
                sum = merged(sum, f, scale[c].y, f_other);
                out.x = merged(out.x, f, x[c].x, f_other);
                out.y = merged(out.y, f, x[c].y, f_other);
                out.z = merged(out.z, f, x[c].z, f_other);
                out.w = merged(out.w, f, x[c].w, f_other);
            }
        }
        __half *to = a.out + ((uint64_t)t * a.heads + head + row) * DIM + d;
        ((uint32_t *)to)[0] = pack(__fdiv_rn(out.x, sum), __fdiv_rn(out.y, sum));
        ((uint32_t *)to)[1] = pack(__fdiv_rn(out.z, sum), __fdiv_rn(out.w, sum));
    }
}

int attention_single_run(const struct cuda_attention *a, uint32_t singles, uint32_t groups,
                         cudaStream_t stream)
{
    /* A window lies in the chunks of 64 keys of three tiles, or in fewer larger ones. */
    uint32_t most = a->window ? cuda_attention_groups((a->window + 126) / 64 * 64) : groups;
    groups = most < groups ? most : groups;
    dim3 grid(groups, a->kv.kv_heads * attention_head_tiles(a->heads, a->kv.kv_heads), singles);
    uint32_t chunks = cuda_attention_groups(a->kv.entries << a->kv.block_shift) * WARPS;
    /* Where blocks are few, each has to keep more bytes on their way. */
    bool few = (uint64_t)grid.x * grid.y * grid.z <= 132 && groups > 4;
    void (*kernel)(struct cuda_attention, uint32_t) =
        a->rotated ? (few ? single_kernel<false, 2> : single_kernel<false, 1>)
                   : (few ? single_kernel<true, 2> : single_kernel<true, 1>);
    int shared = WARPS * (few ? 2 : 1) * TILE_HALVES * (int)sizeof(__half);
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared))
        return -1;
    return cuda_launch(kernel, grid, WARPS * 32, (size_t)shared, stream, *a, chunks);
}
