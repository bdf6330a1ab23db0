/*
 * Attention: RoPE, the KV cache, softmax(q·k/√D with a sink)·v, D = 64.
 *
 *   score_j = q · k_j / √D for the keys j that the query at p sees: max(0, p − window + 1) … p
 *   out     = Σ exp(score_j) v_j / (exp(sink) + Σ exp(score_j))
 *
 * The order of the sums depends on positions alone. Keys are cut at multiples of 64 into tiles and
 * these are grouped into chunks: of 4 tiles up to position 8,192, of 16 beyond (chunk_begin). A tile's partial result (largest score, sum of exponentials, Σ exp·v) is made by
 * mma.m16n8k16 of halves; tiles are merged into their chunk in ascending order, chunks into the
 * result in ascending order, which begins with the sink. A tile or chunk that a query does not see
 * changes no bit of it. So one query has the same bits as a row of one token (single kernel) and
 * within a chunk of a prompt (tiles kernel).
 *
 * An mma's 16 rows are the query heads of one KV head, of several tokens where there are several.
 *
 *   store:  a block a token: q and k rotated, q scaled by log₂e/√D and stored as half, k and v stored
 *           in the cache
 *   single: attention_single.cu
 *   tiles:  a block of 4 warps: 64 query rows (8 tokens of 8 heads), one KV head, all their keys;
 *           the next tile of K and V is copied while one is worked on. 4·D FLOPs a query row and key.
 */
#include "kernels/cuda/attention.cuh"

bool cuda_attention_supports(uint32_t head_dim)
{
    return head_dim == DIM;
}

uint32_t cuda_attention_groups(uint32_t positions)
{
    return positions ? chunk_of(positions - 1) + 1 : 1;
}

/* Of one single: [kv_heads · head_tiles, chunks, ROWS, DIM + 2]. */
uint64_t cuda_attention_partial_floats(uint32_t heads, uint32_t kv_heads, uint32_t head_dim,
                                       uint32_t context)
{
    return (uint64_t)kv_heads * attention_head_tiles(heads, kv_heads) *
           cuda_attention_groups(context) * ROWS * (head_dim + 2);
}

uint32_t cuda_attention_tile_tokens(uint32_t heads, uint32_t kv_heads)
{
    uint32_t group = heads / kv_heads, tokens = WARPS * ROWS / group;
    return tokens ? tokens : 1;
}

/* ── store ─────────────────────────────────────────────────────────────────────────────────── */

static __global__ void store_kernel(struct cuda_attention a)
{
    ptx_launch_next();
    ptx_wait_previous();
    const struct cuda_step *step = a.step;
    uint32_t t = blockIdx.x;
    if (t >= step->n_tokens)
        return;
    const struct cuda_token token = cuda_part<const struct cuda_token>(step, step->tokens)[t];
    const float *q = a.q + (uint64_t)t * a.q_stride, *k = a.k + (uint64_t)t * a.kv_stride,
                *v = a.v + (uint64_t)t * a.kv_stride;
    const float *cosine = a.cosine ? a.cosine + (uint64_t)token.position * (DIM / 2) : NULL;
    const float *sine = a.cosine ? a.sine + (uint64_t)token.position * (DIM / 2) : NULL;
    __half *to = a.rotated + (uint64_t)t * a.heads * DIM;
    uint32_t pairs = (a.heads + a.kv.kv_heads) * (DIM / 2);
    for (uint32_t i = threadIdx.x; i < pairs; i += blockDim.x) {
        uint32_t head = i / (DIM / 2), pair = i % (DIM / 2);
        bool is_key = head >= a.heads;
        float2 y = rotated(is_key ? k + (head - a.heads) * DIM : q + head * DIM, pair,
                           cosine ? cosine[pair] : 1, sine ? sine[pair] : 0);
        if (is_key) {
            uint64_t at = kv_element(a.kv, token.slot, token.position, head - a.heads, false);
            store_value(a.kv, at, pair, y.x);
            store_value(a.kv, at, pair + DIM / 2, y.y);
        } else {
            to[head * DIM + pair] = scaled_query(y.x);
            to[head * DIM + pair + DIM / 2] = scaled_query(y.y);
        }
    }
    for (uint32_t i = threadIdx.x; i < a.kv.kv_heads * DIM; i += blockDim.x)
        store_value(a.kv, kv_element(a.kv, token.slot, token.position, i / DIM, true), i % DIM,
                    v[i]);
}

int cuda_attention_store(const struct cuda_attention *a, uint32_t n, cudaStream_t stream)
{
    return cuda_launch(store_kernel, n, 256, 0, stream, *a);
}

/* ── chunks of prompts ─────────────────────────────────────────────────────────────────────── */

#define TILES_SHARED (2 * 2 * TILE * DIM * (int)sizeof(__half))

static __global__ __launch_bounds__(WARPS * 32) void tiles_kernel(struct cuda_attention a)
{
    extern __shared__ __align__(128) unsigned char shared[];
    ptx_launch_next();
    ptx_wait_previous();
    const struct cuda_step *step = a.step;
    uint32_t group = a.heads / a.kv.kv_heads, kv_head = blockIdx.y;
    /* Later tiles have more keys: they begin first. */
    const struct cuda_tile tile =
        cuda_part<const struct cuda_tile>(step, step->tiles)[gridDim.x - 1 - blockIdx.x];
    const struct cuda_token *tokens = cuda_part<const struct cuda_token>(step, step->tokens);
    uint32_t slot = tokens[tile.token].slot, p_first = tokens[tile.token].position;
    uint32_t p_last = p_first + tile.count - 1, window = a.window;
    uint32_t low = window && p_first + 1 > window ? p_first + 1 - window : 0;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    /* Blocks of group > 64 go over their rows in several rounds. */
    for (uint32_t round = 0; round < tile.count * group; round += WARPS * ROWS) {
        const __half *q[2];
        uint32_t head[2], begin[2], end[2];
        uint64_t out_at[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t row = round + warp * ROWS + lane / 4 + 8 * r;
            bool there = row < tile.count * group;
            uint32_t p = p_first + (there ? row / group : 0);
            head[r] = kv_head * group + (there ? row % group : 0);
            out_at[r] = ((uint64_t)(tile.token + p - p_first) * a.heads + head[r]) * DIM;
            q[r] = there ? a.rotated + out_at[r] : NULL;
            begin[r] = window && p + 1 > window ? p + 1 - window : 0;
            end[r] = p;
        }
        uint32_t fragments[DIM / 16][4];
        load_queries(fragments, q[0], q[1]);
        struct part sum, chunk_sum, one;
        clear(sum);
        clear(chunk_sum);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            sum.most[r] = a.sinks[head[r]] * LOG2E;
            sum.sum[r] = 1;
        }

        __half *buffer = (__half *)shared;
        uint32_t first = low / TILE * TILE, chunk = chunk_of(first);
        load_tile<WARPS * 32>(a.kv, slot, kv_head, first, low, p_last + 1, buffer,
                              buffer + TILE * DIM);
        ptx_copy_commit();
        for (uint32_t i = 0; first <= p_last; first += TILE, i ^= 1) {
            __half *here = buffer + i * 2 * TILE * DIM, *next = buffer + (i ^ 1) * 2 * TILE * DIM;
            ptx_copy_wait<0>();
            __syncthreads();
            if (first + TILE <= p_last)
                load_tile<WARPS * 32>(a.kv, slot, kv_head, first + TILE, low, p_last + 1, next,
                                      next + TILE * DIM);
            ptx_copy_commit();
            attend(one, fragments, here, here + TILE * DIM, first, begin, end);
            if (chunk_of(first) != chunk) {
                merge(sum, chunk_sum);
                clear(chunk_sum);
                chunk = chunk_of(first);
            }
            merge(chunk_sum, one);
        }
        merge(sum, chunk_sum);
        __syncthreads();
#pragma unroll
        for (int r = 0; r < 2; r++)
            if (q[r])
#pragma unroll
                for (int i = 0; i < DIM / 8; i++)
                    *(uint32_t *)(a.out + out_at[r] + 8 * i + lane % 4 * 2) =
                        pack(__fdiv_rn(sum.out[i][2 * r], sum.sum[r]),
                             __fdiv_rn(sum.out[i][2 * r + 1], sum.sum[r]));
    }
}

int cuda_attention_run(const struct cuda_attention *a, uint32_t singles, uint32_t groups,
                       uint32_t tiles, cudaStream_t stream)
{
    if (singles && attention_single_run(a, singles, groups, stream))
        return -1;
    if (tiles) {
        dim3 grid(tiles, a->kv.kv_heads);
        if (cuda_launch(tiles_kernel, grid, WARPS * 32, TILES_SHARED, stream, *a))
            return -1;
    }
    return 0;
}
