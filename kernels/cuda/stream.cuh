/*
 * stream: products of few columns (decode). Private to kernels/cuda/.
 *
 * An item of work is `tiles` tiles of 16 rows × up to 8 · `columns` columns. A CTA of 8 warps works on
 * one item; warp w multiplies part w of the columns of the matrix (the parts of the contract), then
 * the parts are added in shared memory in ascending order and stored. A warp is on its own until
 * then: it copies its records and activations through a ring of `stages` × `depth` chunks that only
 * it reads, and the ring runs on into the next item, so memory is never idle while sums are added
 * up. From Hopper on a stage is a bulk copy by one lane for each tile and column, before that
 * cp.async by all lanes. `resident`: all items have the same columns, which are copied once. Weights
 * of the first stages are copied before the kernel in front has ended, where what is multiplied is
 * known by then: in linear products, and in down, which has gate_up in front.
 *
 * Bytes: the matrix once. With 8 tokens the mma is as busy as with one.
 *
 * Measured on an H100 whose copy kernel moves 2850 GB/s, in graphs of these products alone, one token:
 * head (Q8_0, 201088 × 2880) 2930 GB/s; 5120 × 2880 7.3 µs (2150 GB/s), 2880 × 4096 6.2 µs (2010); experts
 * of the 20b model, gate_up to combine, 31 µs (1700), with 8 tokens 115 µs (2470).
 * What counted: bulk copies instead of cp.async by every lane (three dead instructions each); two tiles
 * of rows a warp, so that two chains of mma run (experts of 8 tokens: 1880 → 2430 GB/s); starting before
 * the kernel in front has ended (2 to 3 µs a kernel). What did not: four tiles; deeper rings.
 */
#ifndef GPTOSS_KERNELS_CUDA_STREAM_CUH
#define GPTOSS_KERNELS_CUDA_STREAM_CUH

#include "kernels/cuda/product.cuh"

#define STREAM_WARPS LAYOUT_PARTS

/* Columns that share weights, as a warp sees them. */
struct stream_group {
    uint32_t expert, count;
    uint32_t column; /* this lane's; ~0: none */
};

/* What a warp knows of at most 32 pairs, one a lane: which from this one on share its expert, and
 * which are the first of a group. */
struct stream_pairs {
    uint32_t expert, same, firsts;
};

static __device__ __forceinline__ struct stream_pairs stream_pairs_of(const struct product &p,
                                                                      uint32_t width)
{
    const uint32_t lane = threadIdx.x & 31, n_pairs = p.n * p.active;
    struct stream_pairs s;
    s.expert = lane < n_pairs ? (uint32_t)__ldcg(p.choice + lane) : ~0u;
    s.same = __match_any_sync(0xffffffff, s.expert);
    const uint32_t before = s.same & ((1u << lane) - 1);
    const bool first = lane < n_pairs && (uint32_t)__popc(before) % width == 0;
    s.same &= ~before;
    s.firsts = __ballot_sync(0xffffffff, first);
    return s;
}

/* Position of set bit number `i`. */
static __device__ __forceinline__ uint32_t stream_bit(uint32_t bits, uint32_t i)
{
    for (; i; i--)
        bits &= bits - 1;
    return bits ? (uint32_t)__ffs((int)bits) - 1 : ~0u;
}

/* early: the kernel that wrote the groups has ended, but this one has not yet waited for it: they are
 * read past L1. */
template <enum product_kind kind, int columns>
static __device__ __forceinline__ struct stream_group
stream_group_of(const struct product &p, const struct stream_pairs &s, uint32_t group,
                uint32_t width, bool early)
{
    const uint32_t lane = threadIdx.x & 31;
    struct stream_group r;
    if constexpr (kind == PRODUCT_LINEAR) {
        r.expert = 0;
        r.count = min(p.n - group * columns * 8, columns * 8u);
        r.column = lane < r.count ? group * columns * 8 + lane : ~0u;
    } else if (!p.groups) {
        const uint32_t first = stream_bit(s.firsts, group);
        const uint32_t same = __shfl_sync(0xffffffff, s.same, (int)first);
        r.expert = __shfl_sync(0xffffffff, s.expert, (int)first);
        r.count = min((uint32_t)__popc(same), width);
        r.column = lane < r.count ? stream_bit(same, lane) : ~0u;
    } else {
        const uint4 *const at = (const uint4 *)(p.groups + group); /* struct product_group */
        const uint4 g = early ? __ldcg(at) : *at;
        const uint32_t *const pair = p.pairs + g.y + lane;
        r.expert = g.x;
        r.count = g.z;
        r.column = lane >= g.z ? ~0u : early ? __ldcg(pair) : *pair;
    }
    return r;
}

/* The next item of a CTA: row counts on by the grid, through all rows of a group. */
static __device__ __forceinline__ void stream_next(uint32_t *group, uint32_t *row, uint32_t rows)
{
    *row += gridDim.x;
    while (*row >= rows) {
        *row -= rows;
        ++*group;
    }
}

/* Bytes of a column of x in shared memory: 16 more than the chunks, against bank conflicts. */
static constexpr __host__ __device__ uint32_t stream_x_bytes(uint32_t chunks)
{
    return chunks * LAYOUT_CHUNK * 2 + 16;
}

/* `width`: columns there is room for, at most 8 · columns. */
template <enum layout_format format, enum product_kind kind, int tiles, int columns, int depth,
          int stages, bool resident>
static __global__ void __launch_bounds__(STREAM_WARPS * 32, columns == 1 ? (tiles == 1 ? 3 : 2) : 1)
    stream(const struct product p, const uint32_t width)
{
    constexpr uint32_t record = layout_record_bytes(format);
    constexpr uint32_t x_at = tiles * depth * record;
    static_assert(columns <= 4, "a lane names one column");
    static_assert(tiles * columns <= STREAM_WARPS, "a warp adds up one fragment");
    extern __shared__ __align__(128) unsigned char shared[];

    const uint32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5, t = lane & 3;
    const uint32_t x_bytes = stream_x_bytes(resident ? p.part_chunks : depth);
    const uint32_t stage_bytes = x_at + (resident ? 0 : width * x_bytes);
    constexpr uint32_t sums_bytes = 2 * STREAM_WARPS * tiles * columns * 512;
    constexpr uint32_t barriers_bytes = STREAM_WARPS * (stages + 1) * 8;
    constexpr uint32_t ring_at = (sums_bytes + barriers_bytes + 127) / 128 * 128;
    float4 *const sums = (float4 *)shared; /* [2][parts][tiles][columns][lane] */
    const uint32_t warp_bytes = stages * stage_bytes + (resident ? width * x_bytes : 0);
    const uint32_t ring = ptx_shared(shared) + ring_at + warp * warp_bytes;
    const uint32_t resident_x = ring + stages * stage_bytes;

    const uint32_t rows = (p.tiles + tiles - 1) / tiles;
    const uint32_t part_first = warp * p.part_chunks;
    const uint32_t part_chunks =
        part_first < p.chunks ? min(p.part_chunks, p.chunks - part_first) : 0;
    const uint32_t parts = (p.chunks + p.part_chunks - 1) / p.part_chunks;
    /* Columns of x in the part; what pads the last chunk is zero from the start. */
    const uint32_t part_columns =
        part_chunks ? min(p.columns - part_first * LAYOUT_CHUNK, part_chunks * LAYOUT_CHUNK) : 0;

    /* The kernel behind gate_up is down, and reads what is chosen before it waits (below): then that
     * must be there before it starts. */
    if constexpr (kind != PRODUCT_GATE_UP)
        ptx_launch_next();
#if PTX_HOPPER
    const uint32_t barriers = ptx_shared(shared) + sums_bytes + warp * (stages + 1) * 8;
    if (lane == 0)
        for (uint32_t i = 0; i <= stages; i++)
            ptx_barrier_init(barriers + i * 8);
#endif
    if (p.columns % LAYOUT_CHUNK)
        for (uint32_t i = lane * 16; i < warp_bytes; i += 512)
            ptx_store_zeros16(ring + i);
#if PTX_HOPPER
    ptx_fence_async();
#endif
    __syncwarp();

    struct stream_pairs s = {};
    uint32_t n_groups = (p.n + columns * 8 - 1) / (columns * 8);
    constexpr bool early = kind == PRODUCT_DOWN; /* weights before the kernel before has ended */
    if constexpr (!resident && !early)
        ptx_wait_previous();
    if constexpr (kind == PRODUCT_GATE_UP)
        ptx_launch_next();
    if constexpr (kind != PRODUCT_LINEAR) {
        if (p.groups) {
            n_groups = __ldcg(p.n_groups);
        } else {
            s = stream_pairs_of(p, width);
            n_groups = (uint32_t)__popc(s.firsts);
        }
    }

    /* The ring's head: where the next stage is copied from. */
    uint32_t head_group = 0, head_row = blockIdx.x, head_chunk = 0, head_stage = 0;
    uint32_t head_known = ~0u, head_columns = 0;
    bool waiting = early; /* for the kernel before */
    const unsigned char *head_matrix = NULL, *head_from = NULL;
    const __half *head_x = NULL; /* this lane's column; NULL: none */
    auto head_enter = [&]() {
        head_chunk = 0;
        if (head_group >= n_groups)
            return;
        if (head_group != head_known) {
            const struct stream_group r =
                stream_group_of<kind, columns>(p, s, head_group, width, waiting);
            head_known = head_group;
            head_columns = r.count;
            head_matrix = p.weights + r.expert * p.matrix_bytes;
            head_x = r.column == ~0u ? NULL
                                     : p.x + (size_t)product_x_row<kind>(p, r.column) * p.columns +
                                           part_first * LAYOUT_CHUNK;
        }
        head_from = head_matrix + ((size_t)head_row * tiles * p.chunks + part_first) * record;
    };
    auto head_copy = [&](const bool copy_weights, const bool copy_x) {
        if (head_group < n_groups) {
            const uint32_t to = ring + head_stage * stage_bytes;
            const uint32_t bytes = min((uint32_t)depth, part_chunks - head_chunk) * record;
            const uint32_t x_part =
                min(part_columns - head_chunk * LAYOUT_CHUNK, depth * (uint32_t)LAYOUT_CHUNK) * 2;
#if PTX_HOPPER
            const uint32_t barrier = barriers + head_stage * 8;
            if (lane == 0 && copy_weights) {
                if (copy_x)
                    ptx_barrier_expect(barrier,
                                       tiles * bytes + (resident ? 0 : head_columns * x_part));
                else
                    ptx_barrier_announce(barrier, tiles * bytes);
#pragma unroll
                for (uint32_t i = 0; i < tiles; i++) {
                    /* A last item of fewer tiles: the first again; nothing is stored of it. */
                    const bool is = i == 0 || head_row * tiles + i < p.tiles;
                    const unsigned char *const from =
                        head_from + (is ? (size_t)i * p.chunks : 0) * record + head_chunk * record;
                    if (p.once)
                        ptx_copy_bulk_once(to + i * depth * record, from, bytes, barrier);
                    else
                        ptx_copy_bulk(to + i * depth * record, from, bytes, barrier);
                }
            }
            if (!copy_weights && lane == 0)
                ptx_barrier_expect(barrier, head_columns * x_part);
            if (!resident && copy_x && head_x)
                ptx_copy_bulk(to + x_at + lane * x_bytes, head_x + head_chunk * LAYOUT_CHUNK,
                              x_part, barrier);
#else
            for (uint32_t i = 0; i < tiles && copy_weights; i++) {
                const bool is = i == 0 || head_row * tiles + i < p.tiles;
                const unsigned char *const from =
                    head_from + head_chunk * record + (is ? (size_t)i * p.chunks : 0) * record;
                for (uint32_t at = lane * 16; at < bytes; at += 512)
                    ptx_copy_once(to + i * depth * record + at, from + at);
            }
            if (!resident && copy_x && head_x)
                for (uint32_t at = 0; at < x_part; at += 16)
                    ptx_copy_once(to + x_at + lane * x_bytes + at,
                                  (const unsigned char *)(head_x + head_chunk * LAYOUT_CHUNK) + at);
#endif
            head_chunk += depth;
            if (head_chunk >= part_chunks) {
                stream_next(&head_group, &head_row, rows);
                head_enter();
            }
        }
        head_stage = head_stage + 1 == stages ? 0 : head_stage + 1;
#if !PTX_HOPPER
        if (copy_x)
            ptx_copy_commit();
#endif
    };

    if (part_chunks) {
        if (head_row >= rows) {
            head_row -= gridDim.x;
            stream_next(&head_group, &head_row, rows);
        }
        head_enter();
        if constexpr (resident) {
            /* Weights do not wait for the kernel before; activations do. */
            const __half *const x = head_x;
            for (uint32_t i = 0; i < stages; i++)
                head_copy(true, true);
            ptx_wait_previous();
#if PTX_HOPPER
            const uint32_t barrier = barriers + stages * 8;
            if (lane == 0)
                ptx_barrier_expect(barrier, head_columns * part_columns * 2);
            if (x)
                ptx_copy_bulk(resident_x + lane * x_bytes, x, part_columns * 2, barrier);
            ptx_barrier_wait(barrier, 0);
#else
            if (x)
                for (uint32_t at = 0; at < part_columns * 2; at += 16)
                    ptx_copy_once(resident_x + lane * x_bytes + at, (const unsigned char *)x + at);
            ptx_copy_commit();
            ptx_copy_wait<0>();
            __syncwarp();
#endif
        } else if constexpr (early) {
            const uint32_t group = head_group, row = head_row;
            for (uint32_t i = 0; i < stages; i++)
                head_copy(true, false);
            ptx_wait_previous();
            waiting = false;
            head_group = group;
            head_row = row;
            head_enter();
            for (uint32_t i = 0; i < stages; i++)
                head_copy(false, true);
        } else {
            for (uint32_t i = 0; i < stages; i++)
                head_copy(true, true);
        }
    } else if (resident || early) {
        ptx_wait_previous();
    }

    uint32_t x_lane[columns]; /* where this lane reads rows of x for ldmatrix */
#pragma unroll
    for (uint32_t k = 0; k < columns; k++)
        x_lane[k] = min(k * 8 + (lane & 7), width - 1) * x_bytes + (lane >> 3) * 16;

    uint32_t stage = 0, phase = 0, turn = 0, group = 0, row = blockIdx.x, known = ~0u;
    if (row >= rows) {
        row -= gridDim.x;
        stream_next(&group, &row, rows);
    }
    struct stream_group columns_of = {};
    for (; group < n_groups; stream_next(&group, &row, rows), turn++) {
        if (group != known) {
            known = group;
            columns_of = stream_group_of<kind, columns>(p, s, group, width, false);
        }
        const uint32_t fragment = (warp - turn) % STREAM_WARPS;
        struct product_rows rows_of = {};
        if (fragment < tiles * columns)
            rows_of =
                product_rows_of<format>(p, columns_of.expert, row * tiles + fragment / columns);
        float sum[tiles][columns][4] = {};
        for (uint32_t chunk = 0; chunk < part_chunks; chunk += depth) {
#if PTX_HOPPER
            ptx_barrier_wait(barriers + stage * 8, phase);
#else
            ptx_copy_wait<stages - 1>();
            __syncwarp();
#endif
            const uint32_t from = ring + stage * stage_bytes;
            const uint32_t x_from = resident ? resident_x + chunk * LAYOUT_CHUNK * 2 : from + x_at;
            auto multiply = [&](uint32_t c) {
                struct layout_raw<format> raw[tiles];
#pragma unroll
                for (int i = 0; i < tiles; i++)
                    layout_read<format>(raw[i], from + (i * depth + c) * record);
#pragma unroll
                for (uint32_t b = 0; b < 2; b++) {
                    uint32_t a[tiles][2][4];
#pragma unroll
                    for (int i = 0; i < tiles; i++)
                        layout_fragments<format>(raw[i], b, a[i]);
#pragma unroll
                    for (uint32_t k = 0; k < columns; k++) {
                        const uint4 x = ptx_load_matrices(x_from + x_lane[k] + c * 128 + b * 64);
#pragma unroll
                        for (int i = 0; i < tiles; i++)
                            ptx_mma(sum[i][k], a[i][0], x.x, x.y);
#pragma unroll
                        for (int i = 0; i < tiles; i++)
                            ptx_mma(sum[i][k], a[i][1], x.z, x.w);
                    }
                }
            };
            const uint32_t n = part_chunks - chunk;
            if (n >= depth) {
#pragma unroll
                for (uint32_t c = 0; c < depth; c++)
                    multiply(c);
            } else {
#pragma unroll 1
                for (uint32_t c = 0; c < n; c++)
                    multiply(c);
            }
            __syncwarp();
            head_copy(true, true);
            if (++stage == stages) {
                stage = 0;
                phase ^= 1;
            }
        }

        float4 *const here = sums + (turn & 1) * STREAM_WARPS * tiles * columns * 32 + lane;
#pragma unroll
        for (int i = 0; i < tiles; i++)
#pragma unroll
            for (int k = 0; k < columns; k++)
                here[((warp * tiles + i) * columns + k) * 32] =
                    make_float4(sum[i][k][0], sum[i][k][1], sum[i][k][2], sum[i][k][3]);
        __syncthreads();
        if (fragment < tiles * columns) {
            const uint32_t i = fragment / columns, k = fragment % columns;
            float4 total = here[fragment * 32];
            for (uint32_t w = 1; w < parts; w++) {
                const float4 part = here[(w * tiles * columns + fragment) * 32];
                total.x = __fadd_rn(total.x, part.x);
                total.y = __fadd_rn(total.y, part.y);
                total.z = __fadd_rn(total.z, part.z);
                total.w = __fadd_rn(total.w, part.w);
            }
            uint32_t column[2];
            column[0] = __shfl_sync(0xffffffff, columns_of.column, (int)(k * 8 + t * 2));
            column[1] = __shfl_sync(0xffffffff, columns_of.column, (int)(k * 8 + t * 2 + 1));
            float sum_of[2][2] = {{total.x, total.y}, {total.z, total.w}};
            product_store<format, kind>(p, rows_of, row * tiles + i, column, sum_of);
        }
    }
#if !PTX_HOPPER
    ptx_copy_wait<0>();
#endif
}

#endif
