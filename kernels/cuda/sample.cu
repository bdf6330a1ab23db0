/*
 * Sample: from logits to a token, by the rule of kernels.h; kernels/sample.c is its plain C.
 *
 *   blocks: a block for 1,024 ids of a row: the largest logit, Σ exp(logit − largest), and for rows
 *           that are sampled without filters the id with the largest y + g. One pass over the
 *           vocabulary: 804 KB a row at 201,088 ids.
 *   rows:   a block a row: the 197 partial results in order, the best K, and where a row has filters
 *           their cut, found by a radix select over (key, id) pairs whose weights are counts (top_k)
 *           or masses as integers (top_p), so that no order of additions matters; nothing is sorted.
 *
 * Of a head that is cut, a slice is the blocks of its ids and, by `tops`, the best K among them; from
 * the slices of all parts `rows` then makes what it makes of a whole vocabulary, with the same bits.
 *
 * Of two ids with equal values the lower one wins everywhere. Noise is compared in double, where
 * floats or the noise's leading bits do not already say that the id cannot win.
 */
#include "kernels/cuda/device.cuh"

#define BLOCK_THREADS 256 /* 4 ids each */
#define ROW_THREADS   1024
#define BUCKETS       2048
#define MASS_ONE      0x1p40f /* a mass of 1 as an integer; 2²⁰ ids of it fit */

static_assert(CUDA_IDS_BLOCK == KERNELS_SLICE_BLOCK, "the partial results are those of slices");

/* ── noise ─────────────────────────────────────────────────────────────────────────────────── */

static __device__ void philox(uint64_t seed, uint32_t position, uint32_t group, uint32_t word[4])
{
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    uint32_t c0 = group, c1 = position, c2 = 0, c3 = 0;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint32_t n0 = __umulhi(0xCD9E8D57u, c2) ^ c1 ^ key0;
        uint32_t n2 = __umulhi(0xD2511F53u, c0) ^ c3 ^ key1;
        c1 = 0xCD9E8D57u * c2;
        c3 = 0xD2511F53u * c0;
        c0 = n0;
        c2 = n2;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    word[0] = c0;
    word[1] = c1;
    word[2] = c2;
    word[3] = c3;
}

static __device__ double gumbel(uint32_t word)
{
    return -log(-log(((double)word + 0.5) * 0x1p-32));
}

/* g to about 2e-5. Near u = 1 it is 1 − u that has the digits. */
static __device__ float gumbel_near(uint32_t word)
{
    float v = ((float)~word + 0.5f) * 0x1p-32f; /* 1 − u */
    float t = v < 0x1p-8f ? v * (1 + v * (0.5f + v * 0.33333334f))
                          : -logf(((float)word + 0.5f) * 0x1p-32f);
    return -logf(t);
}

/* What g cannot exceed: word begins with z ones, g < (z + 1) · ln 2. */
static __device__ double gumbel_bound(uint32_t word)
{
    return (__clz(~word) + 1) * 0.6931471805599454;
}

static __device__ uint32_t word_of(uint64_t seed, uint32_t position, uint32_t id)
{
    uint32_t word[4];
    philox(seed, position, id / 4, word);
    return id % 4 == 0 ? word[0] : id % 4 == 1 ? word[1] : id % 4 == 2 ? word[2] : word[3];
}

/* ── reductions ────────────────────────────────────────────────────────────────────────────── */

template <class T> static __device__ __forceinline__ void best_of_warp(T &value, uint32_t &id)
{
#pragma unroll
    for (int step = 16; step; step /= 2) {
        T other = __shfl_xor_sync(~0u, value, step);
        uint32_t other_id = __shfl_xor_sync(~0u, id, step);
        if (other > value || (other == value && other_id < id)) {
            value = other;
            id = other_id;
        }
    }
}

/* The best of all threads' (value, id): the larger value, of equals the lower id; to all threads. */
template <class T, int THREADS> static __device__ void best_of(T &value, uint32_t &id)
{
    __shared__ T values[THREADS / 32];
    __shared__ uint32_t ids[THREADS / 32];
    best_of_warp(value, id);
    __syncthreads(); /* values of a call before may still be read */
    if (threadIdx.x % 32 == 0) {
        values[threadIdx.x / 32] = value;
        ids[threadIdx.x / 32] = id;
    }
    __syncthreads();
    value = values[threadIdx.x % (THREADS / 32)];
    id = ids[threadIdx.x % (THREADS / 32)];
    best_of_warp(value, id);
}

template <class T, int THREADS> static __device__ T sum_of(T value)
{
    __shared__ T values[THREADS / 32];
#pragma unroll
    for (int step = 16; step; step /= 2)
        value += __shfl_xor_sync(~0u, value, step);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        values[threadIdx.x / 32] = value;
    __syncthreads();
    value = values[threadIdx.x % (THREADS / 32)];
#pragma unroll
    for (int step = THREADS / 64; step; step /= 2)
        value += __shfl_xor_sync(~0u, value, step);
    return value;
}

/* ── a block of ids ────────────────────────────────────────────────────────────────────────── */

static __device__ bool has_cut(const struct cuda_row &row, uint32_t n)
{
    return row.top_p < 1 || (row.top_k && row.top_k < n);
}

static __global__ __launch_bounds__(BLOCK_THREADS) void blocks_kernel(struct cuda_sampling s,
                                                                      uint32_t first)
{
    ptx_launch_next();
    ptx_wait_previous();
    const struct cuda_step *step = s.step;
    uint32_t at = first + blockIdx.y;
    if (at >= step->n_samples)
        return;
    const struct cuda_pick pick = cuda_part<const struct cuda_pick>(step, step->picks)[at];
    const struct cuda_row &row = cuda_part<const struct cuda_row>(step, step->rows)[pick.row];
    uint32_t n = min(s.ids, s.first_id + s.count);
    uint32_t at_id = blockIdx.x * CUDA_IDS_BLOCK + 4 * threadIdx.x, id = s.first_id + at_id;
    const float *logits = s.logits + (uint64_t)blockIdx.y * s.count + at_id;

    float x[4], most = -INFINITY;
    uint32_t best = UINT32_MAX;
    if (s.count % 4 == 0 && id + 4 <= n) {
        float4 four = *(const float4 *)logits;
        x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
    } else {
        for (uint32_t i = 0; i < 4; i++)
            x[i] = id + i < n ? logits[i] : -INFINITY;
    }
    for (uint32_t i = 0; i < 4; i++)
        if (id + i < n && (x[i] > most || (x[i] == most && best == UINT32_MAX))) {
            most = x[i];
            best = id + i;
        }
    best_of<float, BLOCK_THREADS>(most, best);
    float sum = 0;
    for (uint32_t i = 0; i < 4; i++)
        if (id + i < n)
            sum += expf(x[i] - most);
    sum = sum_of<float, BLOCK_THREADS>(sum);

    __shared__ float draw_logit;
    double draw = -INFINITY;
    uint32_t draw_id = UINT32_MAX;
    float temperature = row.temperature;
    if (temperature > 0 && best != UINT32_MAX && !has_cut(row, s.ids) && !(row.min_p > 0)) {
        const struct cuda_token *tokens = cuda_part<const struct cuda_token>(step, step->tokens);
        uint32_t position = tokens[pick.token].position, word[4], near = UINT32_MAX;
        float y[4], value[4], mark = -INFINITY;
        philox(row.seed, position, id / 4, word);
        for (uint32_t i = 0; i < 4; i++) {
            y[i] = __fdiv_rn(x[i], temperature);
            value[i] = id + i < n ? y[i] + gumbel_near(word[i]) : -INFINITY;
            mark = fmaxf(mark, value[i]);
        }
        best_of<float, BLOCK_THREADS>(mark, near);
        /* What is farther below than floats are wrong by cannot be the best. */
        mark -= 1e-3f + 1e-6f * fabsf(mark);
        for (uint32_t i = 0; i < 4; i++) {
            if (id + i >= n || !(value[i] >= mark))
                continue;
            double exact = (double)y[i] + gumbel(word[i]);
            if (exact > draw) {
                draw = exact;
                draw_id = id + i;
            }
        }
        best_of<double, BLOCK_THREADS>(draw, draw_id);
        if (draw_id - id < 4)
            draw_logit = x[draw_id - id];
        __syncthreads();
    }
    if (threadIdx.x == 0)
        s.blocks[(uint64_t)blockIdx.y * gridDim.x + blockIdx.x] = (struct kernels_slice_block){
            most, sum, best, draw_id, draw, draw_id == UINT32_MAX ? 0 : draw_logit, 0};
}

/* ── filters ───────────────────────────────────────────────────────────────────────────────── */

/* Larger y, smaller key; −0 and +0 are one, NaN comes last. */
static __device__ uint32_t key_of(float y)
{
    if (!(y == y))
        return UINT32_MAX;
    uint32_t bits = __float_as_uint(y + 0.0f);
    return bits & 0x80000000u ? bits : 0x7fffffffu - bits;
}

static __device__ uint64_t mass_of(float y, float y_most)
{
    return (uint64_t)(__expf(fmaxf(y - y_most, -87.0f)) * MASS_ONE);
}

struct row_state {
    const float *logits;
    uint32_t n;
    float temperature, y_most;
    uint64_t last; /* the pairs (key, id) up to here are kept */
};

/* The smallest pair P ≤ s.last with Σ weight of the pairs up to P ≥ target, or s.last if there is
 * none. `key_end`: pairs of larger keys are known to be beyond P. Eleven bits of the pair at a time. */
template <bool MASS>
static __device__ uint64_t select(const struct row_state &s, uint64_t target, uint32_t key_end)
{
    __shared__ unsigned long long buckets[BUCKETS];
    __shared__ uint64_t shared_prefix, shared_target;
    __shared__ bool found;
    const int shifts[] = {53, 42, 32, 21, 10, 0}, bits[] = {11, 11, 10, 11, 11, 10};
    uint64_t prefix = 0;
    for (int pass = 0; pass < 6; pass++) {
        int shift = shifts[pass];
        uint32_t count = 1u << bits[pass];
        for (uint32_t b = threadIdx.x; b < BUCKETS; b += ROW_THREADS)
            buckets[b] = 0;
        __syncthreads();
        for (uint32_t id = threadIdx.x; id < s.n; id += ROW_THREADS) {
            float y = __fdiv_rn(s.logits[id], s.temperature);
            uint32_t key = key_of(y);
            uint64_t pair = (uint64_t)key << 32 | id;
            if (key > key_end || pair > s.last || (pass && pair >> (shift + bits[pass]) != prefix))
                continue;
            atomicAdd(&buckets[pair >> shift & (count - 1)], MASS ? mass_of(y, s.y_most) : 1);
        }
        __syncthreads();
        if (threadIdx.x <
            32) { /* each lane sums a 32nd of the buckets; the lane of the target looks */
            uint32_t lane = threadIdx.x, each = count / 32;
            uint64_t mine = 0;
            for (uint32_t b = 0; b < each; b++)
                mine += buckets[lane * each + b];
            uint64_t before = mine;
            for (int step = 1; step < 32; step *= 2) {
                uint64_t other = __shfl_up_sync(~0u, before, step);
                before += lane >= (uint32_t)step ? other : 0;
            }
            before -= mine;
            if (lane == 0)
                found = false;
            __syncwarp();
            if (before < target && before + mine >= target) {
                uint32_t b = 0;
                while (before + buckets[lane * each + b] < target)
                    before += buckets[lane * each + b++];
                shared_prefix = prefix << bits[pass] | (lane * each + b);
                shared_target = target - before;
                found = true;
            }
        }
        __syncthreads();
        if (!found)
            return s.last;
        prefix = shared_prefix;
        target = shared_target;
        __syncthreads();
    }
    return prefix;
}

/* The y that at least k ids reach, from the blocks' largest: key_end of a select by counts. */
static __device__ uint32_t key_of_rank(const struct row_state &s,
                                       const struct kernels_slice_block *blocks, uint32_t n_blocks,
                                       uint32_t k)
{
    __shared__ uint32_t key_end;
    if (threadIdx.x == 0)
        key_end = UINT32_MAX;
    __syncthreads();
    if (k <= n_blocks)
        for (uint32_t i = threadIdx.x; i < n_blocks; i += ROW_THREADS) {
            uint32_t rank = 0;
            for (uint32_t j = 0; j < n_blocks; j++)
                rank +=
                    blocks[j].most > blocks[i].most || (blocks[j].most == blocks[i].most && j < i);
            if (rank == k - 1)
                key_end = key_of(__fdiv_rn(blocks[i].most, s.temperature));
        }
    __syncthreads();
    return key_end;
}

static __device__ void cut(struct row_state &s, const struct cuda_row &row,
                           const struct kernels_slice_block *blocks, uint32_t n_blocks)
{
    s.last = UINT64_MAX;
    if (row.top_k && row.top_k < s.n)
        s.last = select<false>(s, row.top_k, key_of_rank(s, blocks, n_blocks, row.top_k));
    if (!(row.top_p < 1))
        return;
    /* The mass of all that is kept, and of what is near the best: that alone may do. */
    uint64_t mass = 0, near = 0;
    for (uint32_t id = threadIdx.x; id < s.n; id += ROW_THREADS) {
        float y = __fdiv_rn(s.logits[id], s.temperature);
        uint64_t pair = (uint64_t)key_of(y) << 32 | id, one = mass_of(y, s.y_most);
        if (pair > s.last)
            continue;
        mass += one;
        near += y >= s.y_most - 8 ? one : 0;
    }
    mass = sum_of<uint64_t, ROW_THREADS>(mass);
    near = sum_of<uint64_t, ROW_THREADS>(near);
    uint64_t target = (uint64_t)ceil((double)row.top_p * (double)mass);
    target = target ? target : 1;
    s.last = select<true>(s, target, near >= target ? key_of(s.y_most - 8) : UINT32_MAX);
}

static __device__ uint32_t draw(const struct row_state &s, const struct cuda_row &row,
                                uint32_t position, uint32_t best)
{
    float floor = row.min_p > 0 ? s.y_most + logf(row.min_p) : -INFINITY;
    double mark = (double)s.y_most + gumbel(word_of(row.seed, position, best));
    double most = -INFINITY;
    uint32_t drawn = UINT32_MAX;
    for (uint32_t id = threadIdx.x; id < s.n; id += ROW_THREADS) {
        float y = __fdiv_rn(s.logits[id], s.temperature);
        uint64_t pair = (uint64_t)key_of(y) << 32 | id;
        if (pair > s.last || !(y >= floor) || !((double)y + 23 >= mark))
            continue;
        uint32_t word = word_of(row.seed, position, id);
        if (!((double)y + gumbel_bound(word) >= mark))
            continue;
        double value = (double)y + gumbel(word);
        if (value > most) {
            most = value;
            drawn = id;
        }
    }
    best_of<double, ROW_THREADS>(most, drawn);
    return drawn == UINT32_MAX ? best : drawn;
}

/* ── a row ─────────────────────────────────────────────────────────────────────────────────── */

/* The best K of logits[n] at ids first…, one after another: each round takes the best of what comes
 * behind the one before. Returns how many there are. */
template <class Entry>
static __device__ uint32_t find_top(const float *logits, uint32_t first, uint32_t n,
                                    const struct kernels_slice_block *blocks, uint32_t n_blocks,
                                    uint32_t wanted, Entry *to)
{
    float last = INFINITY;
    uint32_t last_id = 0, have = 0;
    bool any = false;
    for (; have < wanted; have++) {
        float value = -INFINITY;
        uint32_t id = UINT32_MAX;
        for (uint32_t b = threadIdx.x / 32; b < n_blocks; b += ROW_THREADS / 32) {
            if (blocks[b].id == UINT32_MAX)
                continue;
            /* A block whose best is still to come needs no look inside. */
            if (!any || blocks[b].most < last ||
                (blocks[b].most == last && blocks[b].id > last_id)) {
                if (blocks[b].most > value || id == UINT32_MAX ||
                    (blocks[b].most == value && blocks[b].id < id)) {
                    value = blocks[b].most;
                    id = blocks[b].id;
                }
                continue;
            }
            uint32_t end = min(n, (b + 1) * CUDA_IDS_BLOCK);
            for (uint32_t i = b * CUDA_IDS_BLOCK + threadIdx.x % 32; i < end; i += 32) {
                float x = logits[i];
                if (!(x < last || (x == last && first + i > last_id)))
                    continue;
                if (x > value || id == UINT32_MAX || (x == value && first + i < id)) {
                    value = x;
                    id = first + i;
                }
            }
        }
        best_of<float, ROW_THREADS>(value, id);
        if (id == UINT32_MAX)
            break;
        if (threadIdx.x == 0) {
            to[have].id = (int32_t)id;
            to[have].logit = value;
        }
        last = value;
        last_id = id;
        any = true;
    }
    return have;
}

static __global__ __launch_bounds__(ROW_THREADS) void tops_kernel(struct cuda_sampling s,
                                                                  uint32_t n_blocks)
{
    ptx_launch_next();
    ptx_wait_previous();
    const struct cuda_step *step = s.step;
    uint32_t at = blockIdx.x, end = min(s.ids, s.first_id + s.count);
    const struct cuda_row &row = cuda_part<const struct cuda_row>(
        step, step->rows)[cuda_part<const struct cuda_pick>(step, step->picks)[at].row];
    uint32_t n = end <= s.first_id ? 0
                                   : find_top(s.logits + (uint64_t)at * s.count, s.first_id,
                                              end - s.first_id, s.blocks + (uint64_t)at * n_blocks,
                                              n_blocks, row.top_logits, s.tops[at].of);
    if (threadIdx.x == 0)
        s.tops[at].n = n;
}

/* Lists of slices in the order of their ids into one; a single thread's work. */
static __device__ uint32_t merge_tops(const struct kernels_slice_top *tops, uint32_t n_tops,
                                      uint32_t wanted, struct kernels_sample *sample)
{
    unsigned char taken[KERNELS_SLICES_MAX];
    uint32_t have = 0;
    for (uint32_t p = 0; wanted && p < n_tops; p++)
        taken[p] = 0;
    for (; have < wanted; have++) {
        uint32_t from = n_tops;
        for (uint32_t p = 0; p < n_tops; p++)
            if (taken[p] < tops[p].n &&
                (from == n_tops || tops[p].of[taken[p]].logit > tops[from].of[taken[from]].logit))
                from = p;
        if (from == n_tops)
            break;
        sample->top[have].id = tops[from].of[taken[from]].id;
        sample->top[have].logit = tops[from].of[taken[from]].logit;
        taken[from]++;
    }
    return have;
}

/* MERGE: the blocks are those of slices, logits are there for rows with filters alone. */
template <bool MERGE>
static __global__ __launch_bounds__(ROW_THREADS) void rows_kernel(struct cuda_sampling s,
                                                                  uint32_t first, uint32_t n_blocks)
{
    ptx_launch_next();
    ptx_wait_previous();
    const struct cuda_step *step = s.step;
    uint32_t at = first + blockIdx.x;
    if (at >= step->n_samples)
        return;
    const struct cuda_pick pick = cuda_part<const struct cuda_pick>(step, step->picks)[at];
    const struct cuda_row &row = cuda_part<const struct cuda_row>(step, step->rows)[pick.row];
    const struct cuda_token &token =
        cuda_part<const struct cuda_token>(step, step->tokens)[pick.token];
    const struct kernels_slice_block *blocks = s.blocks + (uint64_t)blockIdx.x * n_blocks;
    uint32_t n = s.ids;
    const float *logits = s.logits + (uint64_t)(MERGE ? token.slot : blockIdx.x) * s.count;
    struct kernels_sample *sample = step->samples + at;

    float most = -INFINITY;
    uint32_t best = UINT32_MAX;
    double drawn = -INFINITY;
    uint32_t drawn_id = UINT32_MAX;
    for (uint32_t b = threadIdx.x; b < n_blocks; b += ROW_THREADS) {
        const struct kernels_slice_block r = blocks[b];
        if (r.most > most || (r.most == most && r.id < best)) {
            most = r.most;
            best = r.id;
        }
        if (r.draw > drawn) {
            drawn = r.draw;
            drawn_id = r.draw_id;
        }
    }
    best_of<float, ROW_THREADS>(most, best);
    double sum = 0;
    for (uint32_t b = threadIdx.x; b < n_blocks; b += ROW_THREADS)
        if (blocks[b].id != UINT32_MAX)
            sum += (double)blocks[b].sum * exp((double)blocks[b].most - (double)most);
    sum = sum_of<double, ROW_THREADS>(sum);
    float logit = best == UINT32_MAX ? NAN : most;
    if (best == UINT32_MAX) /* nothing but NaN */
        best = 0;

    uint32_t id = best;
    float y_most = __fdiv_rn(most, row.temperature);
    if (row.temperature > 0 && isfinite(most) && isfinite(y_most)) {
        bool cuts = has_cut(row, n);
        if (!cuts && !(row.min_p > 0)) {
            best_of<double, ROW_THREADS>(drawn, drawn_id);
            id = drawn_id == UINT32_MAX ? best : drawn_id;
            logit = drawn_id == UINT32_MAX ? logit : blocks[id / CUDA_IDS_BLOCK].draw_logit;
        } else {
            struct row_state state = {logits, n, row.temperature, y_most, UINT64_MAX};
            if (cuts)
                cut(state, row, blocks, n_blocks);
            id = draw(state, row, token.position, best);
            logit = logits[id];
        }
    }
    uint32_t n_top = 0;
    if constexpr (!MERGE)
        n_top = find_top(logits, 0, n, blocks, n_blocks, row.top_logits, sample->top);
    if (threadIdx.x == 0) {
        if constexpr (MERGE)
            n_top = merge_tops(s.tops + (uint64_t)blockIdx.x * s.n_tops, s.n_tops, row.top_logits,
                               sample);
        sample->n_top = n_top;
        sample->token = (int32_t)id;
        sample->logit = logit;
        sample->log_sum_exp = (float)((double)most + log(sum));
        step->sampled[at] = (int32_t)id;
    }
}

int cuda_sample_run(const struct cuda_sampling *s, uint32_t first, uint32_t n, cudaStream_t stream)
{
    uint32_t n_blocks = kernels_slice_blocks(s->count);
    if (cuda_launch(blocks_kernel, dim3(n_blocks, n), BLOCK_THREADS, 0, stream, *s, first))
        return -1;
    return cuda_launch(rows_kernel<false>, n, ROW_THREADS, 0, stream, *s, first, n_blocks);
}

int cuda_sample_slice(const struct cuda_sampling *s, uint32_t n, cudaStream_t stream)
{
    uint32_t n_blocks = kernels_slice_blocks(s->count);
    if (cuda_launch(blocks_kernel, dim3(n_blocks, n), BLOCK_THREADS, 0, stream, *s, 0))
        return -1;
    return cuda_launch(tops_kernel, n, ROW_THREADS, 0, stream, *s, n_blocks);
}

int cuda_sample_merge(const struct cuda_sampling *s, uint32_t n, cudaStream_t stream)
{
    return cuda_launch_when(false, rows_kernel<true>, n, ROW_THREADS, 0, stream, *s, 0,
                            kernels_slice_blocks(s->count));
}
