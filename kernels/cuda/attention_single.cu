/*
 * Attention of single tokens (decode): a block of 4 warps for one token, one KV head (up to 16 of its
 * query heads) and a chunk of keys (attention.cu says how keys are cut), or for all of a window that
 * lies in 4 tiles. A warp has a tile of 64 keys: K and V (16 KB) are copied to shared memory, the first
 * before the kernel waits for the one in front of it. The block merges its tiles in ascending order,
 * the block of the token that ends last merges the chunks.
 *
 * In steps of single tokens of different sequences it also does the work of the store kernel: rotates
 * its queries, and puts the token's key and value into the tile and into the cache.
 *
 * Bytes: 256 a key and KV head (f16), read once; partial results of 264 a chunk and query head.
 */
#include "kernels/cuda/attention.cuh"

#define TILE_HALVES (2 * TILE * DIM) /* keys and values of a tile */
#define MERGED      12               /* chunks that are loaded at a time when they are merged */
#define MERGERS     (ROWS * DIM / 4 / (WARPS * 32)) /* groups of four dimensions of a thread, then */

#define QUERY_STRIDE (DIM + 8) /* halves; the 8 keep rows in different banks */
#define OUT_STRIDE   (DIM + 8) /* floats, likewise */

/* The last key and value, of the token itself, put into its tile (one warp) and stored. */
static __device__ void add_own(const struct cuda_attention &a, const struct cuda_single &token,
                               uint32_t kv_head, const float (&own)[4], bool store, __half *key,
                               __half *value)
{
    uint32_t lane = threadIdx.x % 32, r = token.position % TILE;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t d = lane + i % 2 * 32;
        piece(i < 2 ? key : value, r, d / 8)[d % 8] = half_of_stored(a.kv.type, own[i]);
        if (store)
            store_value(a.kv, kv_element(a.kv, token.slot, token.position, kv_head, i >= 2), d,
                        own[i]);
    }
}

/* Of one query row: four of its dimensions while partial results are merged. */
struct running {
    float most, sum;
    float4 out;
};

static __device__ __forceinline__ void add(struct running &r, float most, float sum, float4 out)
{
    float both, f, f_other;
    factors(r.most, most, both, f, f_other);
    r.most = both;
    r.sum = merged(r.sum, f, sum, f_other);
    r.out.x = merged(r.out.x, f, out.x, f_other);
    r.out.y = merged(r.out.y, f, out.y, f_other);
    r.out.z = merged(r.out.z, f, out.z, f_other);
    r.out.w = merged(r.out.w, f, out.w, f_other);
}

/* OWN: the token's q, k and v are as QKV left them, its key and value in no cache yet; what the cache
 * holds is older than the kernel in front. whole: at most WARPS tiles are seen, one block has them. */
template <bool OWN>
static __global__ __launch_bounds__(WARPS * 32) void single_kernel(struct cuda_attention a,
                                                                   uint32_t n_chunks, bool whole)
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
    uint32_t first_chunk = chunk_of(begin), count = whole ? 1 : chunk_of(p) - first_chunk + 1;
    if (blockIdx.x >= count)
        return;

    uint32_t group = a.heads / a.kv.kv_heads, tiles = (group + ROWS - 1) / ROWS;
    uint32_t kv_head = blockIdx.y / tiles, head = kv_head * group + blockIdx.y % tiles * ROWS;
    uint32_t rows = min(ROWS, (kv_head + 1) * group - head);
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4;
    /* [chunk][ROWS][DIM], then [chunk][ROWS][2]: largest score, sum */
    uint64_t work = (uint64_t)blockIdx.z * gridDim.y + blockIdx.y;
    float *partial = a.partial + work * n_chunks * ROWS * (DIM + 2);
    float *scales = partial + (uint64_t)n_chunks * ROWS * DIM;

    uint32_t low = begin, end = p + 1;
    if (!whole) {
        low = max(low, chunk_begin(first_chunk + blockIdx.x));
        end = min(end, chunk_begin(first_chunk + blockIdx.x + 1));
    }
    uint32_t cached = OWN ? min(end, p) : end;
    uint32_t mine = low / TILE * TILE + warp * TILE; /* where this warp's tile begins */
    __half *const key = (__half *)shared + warp * TILE_HALVES, *const value = key + TILE * DIM;
    if (mine < end)
        load_tile<32>(a.kv, token.slot, kv_head, mine, low, cached, key, value);
    ptx_copy_commit();

    struct running total[MERGERS], chunk[MERGERS];
#pragma unroll
    for (uint32_t i = 0; i < MERGERS; i++) {
        uint32_t row = (threadIdx.x + i * WARPS * 32) / (DIM / 4);
        total[i] = {row < rows ? a.sinks[head + row] * LOG2E : 0, 1, {0, 0, 0, 0}};
        chunk[i] = {-INFINITY, 0, {0, 0, 0, 0}};
    }
    float own[4]; /* elements `lane` and 32 further of the token's key, and of its value */
    if (OWN) {
        const float c = a.cosine[(uint64_t)p * (DIM / 2) + lane]; /* of pair `lane` */
        const float s = a.sine[(uint64_t)p * (DIM / 2) + lane];
        const float *q = a.q + (uint64_t)t * a.q_stride + head * DIM;
        const float *k = a.k + (uint64_t)t * a.kv_stride + kv_head * DIM;
        const float *v = a.v + (uint64_t)t * a.kv_stride + kv_head * DIM;
        ptx_wait_previous();
        float2 y = rotated(k, lane, c, s);
        own[0] = y.x;
        own[1] = y.y;
        own[2] = v[lane];
        own[3] = v[lane + 32];
        for (uint32_t i = threadIdx.x; i < rows * (DIM / 2); i += WARPS * 32) {
            uint32_t row = i / (DIM / 2), pair = lane;
            float2 y = rotated(q + row * DIM, pair, c, s);
            queries[row * QUERY_STRIDE + pair] = scaled_query(y.x);
            queries[row * QUERY_STRIDE + pair + DIM / 2] = scaled_query(y.y);
        }
        __syncthreads();
    }
    const __half *q = OWN ? queries : a.rotated + ((uint64_t)t * a.heads + head) * DIM;
    const uint32_t stride = OWN ? QUERY_STRIDE : DIM;
    uint32_t fragments[DIM / 16][4];
    load_queries(fragments, g < rows ? q + g * stride : NULL,
                 g + 8 < rows ? q + (g + 8) * stride : NULL);
    const uint32_t begins[2] = {begin, begin}, ends[2] = {p, p};

    uint32_t of_chunk = first_chunk;
    for (uint32_t first = low / TILE * TILE; first < end; first += WARPS * TILE) {
        ptx_copy_wait<0>();
        __syncwarp();
        if (mine < end) {
            struct part one;
            if (OWN && p - mine < TILE) {
                add_own(a, token, kv_head, own, blockIdx.y % tiles == 0, key, value);
                __syncwarp();
            }
            attend(one, fragments, key, value, mine, begins, ends);
            __syncwarp();
            float *const out = (float *)key, *const scale = out + ROWS * OUT_STRIDE;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                uint32_t row = g + 8 * r;
#pragma unroll
                for (int i = 0; i < DIM / 8; i++)
                    *(float2 *)(out + row * OUT_STRIDE + 8 * i + lane % 4 * 2) =
                        make_float2(one.out[i][2 * r], one.out[i][2 * r + 1]);
                if (lane % 4 == 0)
                    *(float2 *)(scale + row * 2) = make_float2(one.most[r], one.sum[r]);
            }
        }
        __syncthreads();
        for (uint32_t w = 0; w < WARPS && first + w * TILE < end; w++) {
            const float *const out = (const float *)((const __half *)shared + w * TILE_HALVES);
            if (whole && chunk_of(first + w * TILE) != of_chunk) {
                of_chunk = chunk_of(first + w * TILE);
#pragma unroll
                for (uint32_t i = 0; i < MERGERS; i++) {
                    add(total[i], chunk[i].most, chunk[i].sum, chunk[i].out);
                    chunk[i] = {-INFINITY, 0, {0, 0, 0, 0}};
                }
            }
#pragma unroll
            for (uint32_t i = 0; i < MERGERS; i++) {
                uint32_t at = threadIdx.x + i * WARPS * 32, row = at / (DIM / 4);
                if (row >= rows)
                    break;
                const float2 scale = *(const float2 *)(out + ROWS * OUT_STRIDE + row * 2);
                add(chunk[i], scale.x, scale.y,
                    *(const float4 *)(out + row * OUT_STRIDE + at % (DIM / 4) * 4));
            }
        }
        mine += WARPS * TILE;
        if (first + WARPS * TILE < end) {
            __syncthreads();
            if (mine < end)
                load_tile<32>(a.kv, token.slot, kv_head, mine, low, cached, key, value);
            ptx_copy_commit();
        }
    }
    if (count > 1) {
#pragma unroll
        for (uint32_t i = 0; i < MERGERS; i++) {
            uint32_t at = threadIdx.x + i * WARPS * 32, row = at / (DIM / 4);
            if (row >= rows)
                break;
            uint64_t to = (uint64_t)blockIdx.x * ROWS + row;
            __stcg((float4 *)(partial + to * DIM + at % (DIM / 4) * 4), chunk[i].out);
            if (at % (DIM / 4) == 0)
                __stcg((float2 *)(scales + to * 2), make_float2(chunk[i].most, chunk[i].sum));
        }
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            last = atomicAdd(&a.tickets[work], 1) + 1 == count;
            if (last)
                a.tickets[work] = 0;
        }
        __syncthreads();
        if (!last)
            return;
        __threadfence();
    }
#pragma unroll
    for (uint32_t i = 0; i < MERGERS; i++) {
        uint32_t at = threadIdx.x + i * WARPS * 32, row = at / (DIM / 4), d = at % (DIM / 4) * 4;
        if (row >= rows)
            break;
        if (count == 1)
            add(total[i], chunk[i].most, chunk[i].sum, chunk[i].out);
        for (uint32_t first = 0; count > 1 && first < count; first += MERGED) {
            float2 scale[MERGED];
            float4 x[MERGED];
#pragma unroll
            for (uint32_t c = 0; c < MERGED; c++) {
                uint64_t from = (uint64_t)min(first + c, count - 1) * ROWS + row;
                scale[c] = __ldcg((const float2 *)(scales + from * 2));
                x[c] = __ldcg((const float4 *)(partial + from * DIM + d));
            }
#pragma unroll
            for (uint32_t c = 0; c < MERGED; c++) {
                if (first + c >= count)
                    break;
                add(total[i], scale[c].x, scale[c].y, x[c]);
            }
        }
        __half *to = a.out + ((uint64_t)t * a.heads + head + row) * DIM + d;
        const float4 out = total[i].out;
        const float sum = total[i].sum;
        ((uint32_t *)to)[0] = pack(__fdiv_rn(out.x, sum), __fdiv_rn(out.y, sum));
        ((uint32_t *)to)[1] = pack(__fdiv_rn(out.z, sum), __fdiv_rn(out.w, sum));
    }
}

int attention_single_run(const struct cuda_attention *a, uint32_t singles, uint32_t groups,
                         cudaStream_t stream)
{
    /* Of W keys that begin anywhere: in how many tiles and chunks they lie. */
    bool whole = a->window && (a->window + TILE - 2) / TILE + 1 <= WARPS;
    uint32_t most = whole ? 1 : a->window ? (a->window + 254) / 256 + 1 : groups;
    groups = most < groups ? most : groups;
    dim3 grid(groups, a->kv.kv_heads * attention_head_tiles(a->heads, a->kv.kv_heads), singles);
    uint32_t chunks = cuda_attention_groups(a->kv.entries << a->kv.block_shift);
    void (*kernel)(struct cuda_attention, uint32_t, bool) =
        a->rotated ? single_kernel<false> : single_kernel<true>;
    int shared = WARPS * TILE_HALVES * (int)sizeof(__half);
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared))
        return -1;
    return cuda_launch(kernel, grid, WARPS * 32, (size_t)shared, stream, *a, chunks, whole);
}
