/*
 * solo: the products of a step of one token, with what lies between them. Private to kernels/cuda/.
 *
 * Four kernels and the attention are a layer; the bits are those of the kernels for many rows
 * (stream.cuh, norm.cuh, router.cu):
 *
 *   SOLO_QKV      y = W h + b, h = half(norm(x))
 *   SOLO_OUT      x += W in + b; of each 16 rows of x, as they are finished, what they add to the
 *                 router's sums and to the sum of squares (the units of norm.cuh) goes to `partial`
 *   SOLO_GATE_UP  the experts from `partial`; act[j] = swiglu(W_e h + b_e), h = half(norm(x))
 *   SOLO_DOWN     x += Σ weight_j · (W_e act[j] + b_e)
 *
 * An item is a tile of 16 rows (of DOWN with all its experts); a CTA of 8 warps takes items in turn,
 * warp w multiplies part w of the columns. Its weights of a tile lie together in memory: one bulk copy
 * brings them to one stage of the warp's ring. Weights are copied before the kernel in front has ended
 * as far as they are known; GATE_UP lets DOWN start when the experts are.
 */
#ifndef GPTOSS_KERNELS_CUDA_SOLO_CUH
#define GPTOSS_KERNELS_CUDA_SOLO_CUH

#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/product.cuh"
#include "kernels/cuda/router.cuh"

#define SOLO_WARPS  LAYOUT_PARTS
#define SOLO_CTAS   3 /* of a multiprocessor, by registers */
#define SOLO_ACTIVE 4 /* experts of a token at most */

enum solo_kind { SOLO_QKV, SOLO_OUT, SOLO_GATE_UP, SOLO_DOWN };

struct solo {
    const unsigned char *weights;
    size_t matrix_bytes, row_scales_at;
    uint32_t rows, tiles, columns, chunks, part_chunks;
    const float *bias; /* [experts, rows] */
    const __half *in;  /* OUT: [columns]; DOWN: [active, columns] */
    float *x;          /* [hidden] */
    const float *norm; /* of x; OUT: that of the router */
    float eps;
    float *y;                          /* QKV: [rows] */
    __half *act;                       /* GATE_UP: [active, rows / 2] */
    const float *router, *router_bias; /* [experts, hidden], [experts] */
    float *partial;                    /* [units, experts], then [units]: squares */
    const struct cuda_step *step;
    const int32_t *forced; /* [context, active]; NULL but in tests */
    uint32_t hidden, experts, active;
    uint32_t stages;      /* of a warp's ring */
    int32_t *choice;      /* [active]: GATE_UP writes them for DOWN, */
    float *choice_weight; /* and their weights */
    float alpha, limit;
    uint32_t *dealt; /* of GATE_UP and DOWN: items beyond each CTA's first; NULL: too many */
};

/* Bytes of shared memory, and what lies where. */
struct solo_shared {
    uint32_t barriers, x, ring, choice, bytes;
};

/* Items whose sums are under way at the same time. */
static constexpr __host__ __device__ uint32_t solo_buffers(enum solo_kind kind)
{
    return kind == SOLO_DOWN ? 2 : SOLO_WARPS;
}

static __host__ __device__ __forceinline__ struct solo_shared
solo_shared_of(const struct solo &p, enum solo_kind kind, uint32_t record)
{
    const uint32_t vectors = kind == SOLO_DOWN ? p.active : 1;
    struct solo_shared s; /* from 0 on: sums, f32 [buffers][vectors][warps][16] */
    s.barriers = solo_buffers(kind) * vectors * SOLO_WARPS * LAYOUT_ROWS * 4;
    s.x = (s.barriers + SOLO_WARPS * (p.stages + 1) * 8 + 127) / 128 * 128;
    s.ring = s.x + SOLO_WARPS * vectors * p.part_chunks * LAYOUT_CHUNK * 2;
    s.choice = s.ring + SOLO_WARPS * p.stages * p.part_chunks * record;
    s.bytes = s.choice + (kind == SOLO_GATE_UP ? (SOLO_WARPS + 1) * p.experts * 4 : 0);
    return s;
}

/* A place in the work: a tile of expert (of the token) j. */
struct solo_place {
    uint32_t tile, j;
};

template <enum solo_kind kind>
static __device__ __forceinline__ void solo_next(const struct solo &p, struct solo_place &at)
{
    if (kind == SOLO_DOWN && ++at.j < p.active)
        return;
    at.tile += gridDim.x;
    if (kind == SOLO_DOWN)
        at.j = 0;
    while (kind == SOLO_GATE_UP && at.tile >= p.tiles && at.j < p.active) {
        at.tile -= p.tiles;
        at.j++;
    }
}

template <enum solo_kind kind>
static __device__ __forceinline__ bool solo_is(const struct solo &p, const struct solo_place &at)
{
    return kind == SOLO_GATE_UP ? at.j < p.active : at.tile < p.tiles;
}

/* Sum `e` of the units of this warp's part, of `from` [units, stride]; all loads at once. */
template <int PARTS>
static __device__ __forceinline__ float solo_part_sum(const float *from, uint32_t stride,
                                                      uint32_t e, uint32_t hidden)
{
    const uint32_t units = norm_part(hidden) / NORM_UNIT,
                   all = (hidden + NORM_UNIT - 1) / NORM_UNIT;
    const uint32_t first = threadIdx.x / 32 * units;
    float one[PARTS][8], sum[8];
#pragma unroll
    for (uint32_t i = 0; i < PARTS * 8; i++)
        one[i / 8][i % 8] = __ldcg(from + (size_t)min(first + i, all - 1) * stride + e);
#pragma unroll
    for (uint32_t i = 0; i < PARTS * 8; i++) {
        const float is = i < units && first + i < all ? one[i / 8][i % 8] : 0.0f;
        sum[i % 8] = i < 8 ? is : __fadd_rn(sum[i % 8], is);
    }
    return __fadd_rn(__fadd_rn(__fadd_rn(sum[0], sum[1]), __fadd_rn(sum[2], sum[3])),
                     __fadd_rn(__fadd_rn(sum[4], sum[5]), __fadd_rn(sum[6], sum[7])));
}

/* The same of one sum, stride 1, by all lanes together: what a lane loads, and the sum of it. */
template <int PARTS>
static __device__ __forceinline__ void solo_load_squares(float (&one)[2], const float *from,
                                                         uint32_t hidden)
{
    const uint32_t units = norm_part(hidden) / NORM_UNIT,
                   all = (hidden + NORM_UNIT - 1) / NORM_UNIT;
    const uint32_t first = threadIdx.x / 32 * units, lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t unit = i * 32 + lane;
        one[i] = i * 32 < PARTS * 8 ? __ldcg(from + min(first + unit, all - 1)) : 0.0f;
        one[i] = unit < units && first + unit < all ? one[i] : 0.0f;
    }
}

template <int PARTS> static __device__ __forceinline__ float solo_sum_squares(const float (&one)[2])
{
    float sum = 0;
#pragma unroll
    for (uint32_t i = 0; i < PARTS; i++) {
        const float is = __shfl_sync(~0u, one[i / 4], (int)(threadIdx.x % 8 + i % 4 * 8));
        sum = i ? __fadd_rn(sum, is) : is;
    }
    for (int at = 1; at < 8; at *= 2)
        sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, at));
    return sum;
}

/* What each warp's part adds to the logits and to the squares, to shared [warps, experts], squares
 * [warps]. */
template <int PARTS>
static __device__ __forceinline__ void solo_sum_parts(const struct solo &p, float *shared,
                                                      float *squares)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t units = (p.hidden + NORM_UNIT - 1) / NORM_UNIT;
    float one[2];
    solo_load_squares<PARTS>(one, p.partial + (size_t)units * p.experts, p.hidden);
    for (uint32_t e = lane; e < p.experts; e += 32)
        shared[warp * p.experts + e] = solo_part_sum<PARTS>(p.partial, p.experts, e, p.hidden);
    const float mine = solo_sum_squares<PARTS>(one);
    if (lane == 0)
        squares[warp] = mine;
}

/* The experts from those, by one warp. shared: [warps + 1, experts]; bias: of expert `lane`. */
static __device__ __forceinline__ void solo_choose(const struct solo &p, float *shared, float scale,
                                                   float bias, float *chosen, int32_t *choice,
                                                   float *weight)
{
    float *const logits = shared + SOLO_WARPS * p.experts;
    for (uint32_t e = threadIdx.x % 32; e < p.experts; e += 32) {
        const float logit =
            __fmaf_rn(norm_sum(shared, p.experts, e), scale, e < 32 ? bias : p.router_bias[e]);
        logits[e] = logit == logit ? logit : -INFINITY;
    }
    __syncwarp();
    router_choose(logits, p.experts, p.active,
                  p.forced ? router_forced(p.step, p.forced, p.active, 0) : NULL, chosen, choice,
                  weight);
}

/* sum += a tile's part · x, chunks in ascending order. The next chunk is read and made halves of while
 * the mma of one run: they depend on one another. */
template <enum layout_format format>
static __device__ __forceinline__ void solo_multiply(float (&sum)[4], uint32_t from,
                                                     uint32_t x_from, uint32_t chunks)
{
    constexpr uint32_t record = layout_record_bytes(format);
    struct layout_raw<format> raw, next;
    uint32_t a[2][2][4];
    layout_read<format>(raw, from);
    uint4 x[2] = {ptx_load_matrices(x_from), ptx_load_matrices(x_from + 64)}, x_next[2];
    layout_fragments<format>(raw, 0, a[0]);
#pragma unroll 2
    for (uint32_t c = 0; c < chunks; c++) {
        const uint32_t ahead = c + 1 < chunks ? c + 1 : c;
        layout_read<format>(next, from + ahead * record);
        x_next[0] = ptx_load_matrices(x_from + ahead * 128);
        x_next[1] = ptx_load_matrices(x_from + ahead * 128 + 64);
        ptx_mma(sum, a[0][0], x[0].x, x[0].y);
        layout_fragments<format>(raw, 1, a[1]);
        ptx_mma(sum, a[0][1], x[0].z, x[0].w);
        ptx_mma(sum, a[1][0], x[1].x, x[1].y);
        layout_fragments<format>(next, 0, a[0]);
        ptx_mma(sum, a[1][1], x[1].z, x[1].w);
        raw = next;
        x[0] = x_next[0];
        x[1] = x_next[1];
    }
}

/* Items of GATE_UP that are dealt: a CTA's first is its own number, each further one it draws while it
 * works on the one before. The warp that ends a turn draws for the next one, and tells the others when it
 * has multiplied; so no warp is two turns ahead, and places are used again when all have read them. A
 * place says for which turn it is. */
#define SOLO_PLACES     16
#define SOLO_PLACE_BITS 20 /* of an item's number; all items, or more: there are no more */

static __device__ __forceinline__ struct solo_place
solo_dealt(const struct solo &p, const volatile uint32_t *places, uint32_t turn)
{
    uint32_t place;
    do
        place = places[turn % SOLO_PLACES];
    while (place >> SOLO_PLACE_BITS != turn);
    __syncwarp();
    const uint32_t item = place & ((1u << SOLO_PLACE_BITS) - 1);
    return {item % p.tiles, item / p.tiles};
}

template <enum layout_format format, enum solo_kind kind, int PARTS>
static __global__ void __launch_bounds__(SOLO_WARPS * 32, SOLO_CTAS)
    solo_kernel(const struct solo p)
{
#if PTX_HOPPER
    constexpr uint32_t record = layout_record_bytes(format);
    constexpr bool chooses = kind == SOLO_GATE_UP || kind == SOLO_DOWN;
    constexpr bool norms = kind == SOLO_QKV || kind == SOLO_GATE_UP;
    constexpr int most = kind == SOLO_DOWN ? SOLO_ACTIVE : 1;
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ float squares[SOLO_WARPS];
    __shared__ float chosen[2 * ROUTER_ACTIVE_MAX];
    __shared__ int32_t choices[SOLO_ACTIVE];
    __shared__ float weights[SOLO_ACTIVE];
    __shared__ __align__(16) float finished[SOLO_WARPS][2 * LAYOUT_ROWS];
    __shared__ volatile uint32_t places[SOLO_PLACES];

    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const uint32_t vectors = kind == SOLO_DOWN ? p.active : 1;
    const struct solo_shared at = solo_shared_of(p, kind, record);
    float *const sums = (float *)shared;
    const uint32_t base = ptx_shared(shared);
    const uint32_t barriers = base + at.barriers + warp * (p.stages + 1) * 8;
    const uint32_t x_bytes = p.part_chunks * LAYOUT_CHUNK * 2;
    const uint32_t my_x = base + at.x + warp * vectors * x_bytes;
    const uint32_t stage_bytes = p.part_chunks * record;
    const uint32_t ring = base + at.ring + warp * p.stages * stage_bytes;
    const uint32_t part_first = warp * p.part_chunks;
    const uint32_t part_chunks =
        part_first < p.chunks ? min(p.part_chunks, p.chunks - part_first) : 0;
    const uint32_t parts = (p.chunks + p.part_chunks - 1) / p.part_chunks;

    if constexpr (kind != SOLO_GATE_UP)
        ptx_launch_next();
    if (lane == 0)
        for (uint32_t i = 0; i <= p.stages; i++)
            ptx_barrier_init(barriers + i * 8);
    if (!norms && p.columns % LAYOUT_CHUNK)
        for (uint32_t i = lane * 16; i < vectors * x_bytes; i += 512)
            ptx_store_zeros16(my_x + i);
    ptx_fence_async();
    __syncwarp();

    /* The ring's head. */
    struct solo_place head = {blockIdx.x, 0};
    while (kind == SOLO_GATE_UP && head.tile >= p.tiles && head.j < p.active) {
        head.tile -= p.tiles;
        head.j++;
    }
    struct solo_place here = head;
    uint32_t head_stage = 0, head_turn = 0;
    const bool deals = kind == SOLO_GATE_UP && p.dealt;
    if (deals && threadIdx.x < SOLO_PLACES)
        places[threadIdx.x] = ~0u;
    auto copy = [&]() {
        if (!part_chunks)
            return;
        if (deals && head_turn)
            head = solo_dealt(p, places, head_turn);
        if (!solo_is<kind>(p, head))
            return;
        if (lane == 0) {
            const uint32_t bytes = part_chunks * record, barrier = barriers + head_stage * 8;
            const uint32_t expert = chooses ? (uint32_t)choices[head.j] : 0;
            const uint32_t to = ring + head_stage * stage_bytes;
            const unsigned char *const from = p.weights + expert * p.matrix_bytes +
                                              ((size_t)head.tile * p.chunks + part_first) * record;
            ptx_barrier_expect(barrier, bytes);
            ptx_copy_bulk_once(to, from, bytes, barrier);
        }
        head_stage = head_stage + 1 == p.stages ? 0 : head_stage + 1;
        head_turn++;
        if (!deals)
            solo_next<kind>(p, head);
    };
    auto fill = [&]() {
        for (uint32_t i = 0; i < p.stages; i++)
            copy();
    };

    /* What belongs to an item, for the warp that ends it. Of the first: before what is in front has
     * ended. */
    const uint32_t r = lane % LAYOUT_ROWS; /* of a tile */
    float row_scale[most], bias[most], router_norm = 0;
    float4 router[kind == SOLO_OUT ? 4 : 1];
    auto constants = [&](const struct solo_place &item) {
        const uint32_t row_at = item.tile * LAYOUT_ROWS + r;
        const bool is_row = row_at < p.rows;
#pragma unroll
        for (int j = 0; j < most; j++) {
            row_scale[j] = 1;
            bias[j] = 0;
            if (!is_row || (kind == SOLO_DOWN && j >= (int)p.active))
                continue;
            const uint32_t expert = chooses ? (uint32_t)choices[kind == SOLO_DOWN ? j : item.j] : 0;
            if constexpr (format == LAYOUT_FP4)
                row_scale[j] = *(const float *)(p.weights + expert * p.matrix_bytes +
                                                p.row_scales_at + row_at * sizeof(float));
            if (p.bias)
                bias[j] = p.bias[(size_t)expert * p.rows + row_at];
        }
        if constexpr (kind == SOLO_OUT) {
            router_norm = is_row ? p.norm[row_at] : 0;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t column = item.tile * LAYOUT_ROWS + i * 4;
                router[i] = lane < p.experts && column < p.hidden
                                ? *(const float4 *)(p.router + (size_t)lane * p.hidden + column)
                                : make_float4(0, 0, 0, 0);
            }
        }
    };

    float4 norm[PARTS], row[PARTS];
    float scale = 1;
    if constexpr (!chooses)
        fill();
    if constexpr (norms)
        norm_load(norm, p.norm, p.hidden);
    if constexpr (!chooses)
        if (warp == 0 && solo_is<kind>(p, here))
            constants(here);
    float router_bias = 0;
    if constexpr (kind == SOLO_GATE_UP)
        router_bias = warp == 0 && lane < p.experts ? p.router_bias[lane] : 0;
    if constexpr (kind != SOLO_DOWN)
        ptx_wait_previous();
    if constexpr (kind == SOLO_GATE_UP)
        if (blockIdx.x)
            ptx_launch_next();
    if constexpr (norms)
        norm_load(row, p.x, p.hidden);
    if constexpr (kind == SOLO_GATE_UP) {
        solo_sum_parts<PARTS>(p, (float *)(shared + at.choice), squares);
    } else if constexpr (kind == SOLO_QKV) {
        float dots[PARTS], sum[PARTS][1];
        norm_dot(dots, row, row);
#pragma unroll
        for (int i = 0; i < PARTS; i++)
            sum[i][0] = dots[i];
        const float mine = norm_warp_sums<PARTS, 1>(sum);
        if (lane == 0)
            squares[warp] = mine;
    }
    if constexpr (norms) {
        __syncthreads();
        scale = norm_scale(norm_sum(squares, 1, 0), p.hidden, p.eps);
    }
    if constexpr (kind == SOLO_GATE_UP) {
        if (warp == 0) {
            solo_choose(p, (float *)(shared + at.choice), scale, router_bias, chosen, choices,
                        weights);
            /* DOWN reads them as soon as it runs, and it runs when all CTAs of this grid have let it:
             * this one does so behind the barrier below, so behind the fence. Both sides pass L1. The
             * next GATE_UP writes them when this layer's DOWN has ended: every kernel in between
             * waits for the one in front of it. */
            if (blockIdx.x == 0) {
                __syncwarp();
                if (lane < p.active) {
                    ptx_store_between((uint32_t *)p.choice + lane, (uint32_t)choices[lane]);
                    ptx_store_between((uint32_t *)p.choice_weight + lane,
                                      __float_as_uint(weights[lane]));
                }
                __threadfence();
            }
        }
        __syncthreads();
        if (blockIdx.x == 0)
            ptx_launch_next();
        fill();
    }
    if constexpr (kind == SOLO_DOWN) {
        if (threadIdx.x < p.active) {
            choices[threadIdx.x] =
                (int32_t)ptx_load_between((const uint32_t *)p.choice + threadIdx.x);
            weights[threadIdx.x] =
                __uint_as_float(ptx_load_between((const uint32_t *)p.choice_weight + threadIdx.x));
        }
        __syncthreads();
        fill();
    }
    if constexpr (chooses)
        if (warp == 0 && solo_is<kind>(p, here))
            constants(here);
    if constexpr (kind == SOLO_DOWN) {
        ptx_wait_previous();
        if (p.dealt && blockIdx.x == 0 && threadIdx.x == 0)
            *p.dealt = 0; /* for the next layer */
    }
    if constexpr (norms) {
        /* A warp's columns of the norm are its part of the product. */
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            const uint32_t in_part = i * 128 + lane * 4;
            row[i] = norm_multiply(row[i], norm[i]);
            const __half2 pair[2] = {
                __floats2half2_rn(__fmul_rn(row[i].x, scale), __fmul_rn(row[i].y, scale)),
                __floats2half2_rn(__fmul_rn(row[i].z, scale), __fmul_rn(row[i].w, scale))};
            if (in_part < p.part_chunks * LAYOUT_CHUNK)
                *(uint2 *)(shared + at.x + warp * x_bytes + in_part * 2) = *(const uint2 *)pair;
        }
        __syncwarp();
    } else if (part_chunks) {
        const uint32_t barrier = barriers + p.stages * 8;
        const uint32_t columns =
            min(p.columns - part_first * LAYOUT_CHUNK, part_chunks * LAYOUT_CHUNK);
        if (lane == 0) {
            ptx_barrier_expect(barrier, vectors * columns * 2);
            for (uint32_t j = 0; j < vectors; j++)
                ptx_copy_bulk(my_x + j * x_bytes,
                              p.in + (size_t)j * p.columns + part_first * LAYOUT_CHUNK, columns * 2,
                              barrier);
        }
        ptx_barrier_wait(barrier, 0);
    }

    uint32_t stage = 0, phase = 0, turn = 0;
    while (solo_is<kind>(p, here)) {
        const uint32_t row_at = here.tile * LAYOUT_ROWS + r;
        const bool ends = warp == turn % SOLO_WARPS, is_row = row_at < p.rows;
        const bool draws = deals && ends && lane == 0;
        const uint32_t drawn = draws ? gridDim.x + atomicAdd(p.dealt, 1u) : 0;
        auto tell = [&]() {
            if (draws)
                places[(turn + 1) % SOLO_PLACES] =
                    (turn + 1) << SOLO_PLACE_BITS | min(drawn, p.tiles * p.active);
        };
        if (ends && turn)
            constants(here);
        float old = 0;
        if ((kind == SOLO_OUT || kind == SOLO_DOWN) && ends && is_row)
            old = __ldcg(p.x + row_at);

        float *const sums_here =
            sums + turn % solo_buffers(kind) * vectors * SOLO_WARPS * LAYOUT_ROWS;
        for (uint32_t j = 0; j < vectors; j++) {
            float sum[4] = {0, 0, 0, 0};
            if (part_chunks) {
                ptx_barrier_wait(barriers + stage * 8, phase);
                const uint32_t from = ring + stage * stage_bytes;
                /* All 8 columns of the mma are the token. */
                const uint32_t x_from = my_x + j * x_bytes + (lane >> 3) * 16;
                solo_multiply<format>(sum, from, x_from, part_chunks);
                tell();
                __syncwarp();
                copy();
                if (++stage == p.stages) {
                    stage = 0;
                    phase ^= 1;
                }
            } else {
                tell();
            }
            if (t == 0)
                *(float2 *)(sums_here + (j * SOLO_WARPS + warp) * LAYOUT_ROWS + g * 2) =
                    make_float2(sum[0], sum[2]);
        }
        /* Whoever ends an item waits for the others' sums; they go on. A warp ends one of 8 items in
         * a row, so none is 8 items ahead of another, and no buffer or barrier is used twice. */
        if (kind == SOLO_DOWN)
            __syncthreads();
        else if (ends)
            ptx_warps_wait(1 + turn % SOLO_WARPS, SOLO_WARPS * 32);
        else
            ptx_warps_arrive(1 + turn % SOLO_WARPS, SOLO_WARPS * 32);
        if (ends) {
            float total[most];
#pragma unroll
            for (int j = 0; j < most; j++) {
                if (kind == SOLO_DOWN && j >= (int)p.active)
                    break;
                const float *const from = sums_here + j * SOLO_WARPS * LAYOUT_ROWS + r;
                float part[SOLO_WARPS];
#pragma unroll
                for (uint32_t w = 0; w < SOLO_WARPS; w++)
                    part[w] = from[w * LAYOUT_ROWS];
                total[j] = part[0];
#pragma unroll
                for (uint32_t w = 1; w < SOLO_WARPS; w++)
                    total[j] = w < parts ? __fadd_rn(total[j], part[w]) : total[j];
                if constexpr (format == LAYOUT_FP4)
                    total[j] = __fmul_rn(total[j], row_scale[j]);
                total[j] = __fadd_rn(total[j], bias[j]);
            }
            const bool writes = lane < LAYOUT_ROWS && is_row;
            if constexpr (kind == SOLO_QKV) {
                if (writes)
                    p.y[row_at] = total[0];
            } else if constexpr (kind == SOLO_GATE_UP) {
                const float up = __shfl_down_sync(~0u, total[0], 1);
                if (writes && r % 2 == 0)
                    p.act[(size_t)here.j * (p.rows / 2) + row_at / 2] =
                        __float2half_rn(product_swiglu(p.alpha, p.limit, total[0], up));
            } else if constexpr (kind == SOLO_DOWN) {
                float v = 0;
#pragma unroll
                for (int j = 0; j < most; j++) {
                    if (j >= (int)p.active)
                        break;
                    const float one = __fmul_rn(weights[j], total[j]);
                    v = j ? __fadd_rn(v, one) : one;
                }
                if (writes)
                    p.x[row_at] = __fadd_rn(old, v);
            } else {
                const float x = is_row ? __fadd_rn(old, total[0]) : 0;
                if (writes)
                    p.x[row_at] = x;
                if (lane < LAYOUT_ROWS) {
                    finished[warp][r] = __fmul_rn(x, router_norm);
                    finished[warp][LAYOUT_ROWS + r] = x;
                }
                __syncwarp();
                const float4 *const normed = (const float4 *)finished[warp], *const plain =
                                                                                 normed + 4;
                const uint32_t units = p.tiles;
                for (uint32_t e = lane; e - lane < p.experts; e += 32) {
                    if (e >= 32)
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            const uint32_t column = here.tile * LAYOUT_ROWS + i * 4;
                            router[i] =
                                e < p.experts && column < p.hidden
                                    ? *(const float4 *)(p.router + (size_t)e * p.hidden + column)
                                    : make_float4(0, 0, 0, 0);
                        }
                    float dot[4], square[4];
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const float4 one[1] = {normed[i]}, all[1] = {plain[i]}, w[1] = {router[i]};
                        norm_dot(*(float(*)[1]) & dot[i], one, w);
                        norm_dot(*(float(*)[1]) & square[i], all, all);
                    }
                    if (e < p.experts)
                        p.partial[(size_t)here.tile * p.experts + e] =
                            __fadd_rn(__fadd_rn(dot[0], dot[1]), __fadd_rn(dot[2], dot[3]));
                    if (e == 0)
                        p.partial[(size_t)units * p.experts + here.tile] = __fadd_rn(
                            __fadd_rn(square[0], square[1]), __fadd_rn(square[2], square[3]));
                }
            }
        }
        turn++;
        /* On to the next item: of DOWN all experts were done. */
        here.j = kind == SOLO_DOWN ? p.active - 1 : here.j;
        if (deals)
            here = solo_dealt(p, places, turn);
        else
            solo_next<kind>(p, here);
    }
#endif
}

#endif
