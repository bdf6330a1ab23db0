/*
 * tile: products of many columns (prefill). Private to kernels/cuda/.
 *
 * An item of work is 8 tiles of 16 rows × `width` columns (tokens, or pairs of one expert); a CTA of
 * 8 warps takes items in turn: 4 warps along the rows × 2 along the columns, each 32 rows ×
 * width / 2 columns. Weights go as they are stored, and activations, through a ring of `stages` chunks
 * in shared memory (cp.async), shared by the CTA; a lane makes halves of its weights in registers.
 * The ring runs on into the next item. Each warp walks all chunks; at the end of a part of the
 * contract its sum is added to the total, so the bits are those of stream.cuh.
 *
 * FLOPs: 2 · rows · columns of the matrix · tokens. Shared memory is read 5 KB for 64 mma of a warp.
 */
#ifndef GPTOSS_KERNELS_CUDA_TILE_CUH
#define GPTOSS_KERNELS_CUDA_TILE_CUH

#include "kernels/cuda/product.cuh"

#define TILE_WARPS 8
#define TILE_TILES 8 /* tiles of 16 rows of an item */

static constexpr __host__ __device__ uint32_t tile_stage_bytes(enum layout_format f, uint32_t width)
{
    return TILE_TILES * (uint32_t)layout_record_bytes(f) + width * 128;
}

struct tile_group {
    uint32_t expert, first, count, row; /* row: first tile of the item */
};

template <enum product_kind kind, int width>
static __device__ __forceinline__ struct tile_group tile_resolve(const struct product &p,
                                                                 uint32_t item, uint32_t rows)
{
    struct tile_group r;
    const uint32_t group = item / rows;
    r.row = (item - group * rows) * TILE_TILES;
    if constexpr (kind == PRODUCT_LINEAR) {
        r.expert = 0;
        r.first = group * width;
        r.count = min(p.n - r.first, (uint32_t)width);
    } else {
        const struct product_group g = p.groups[group];
        r.expert = g.expert;
        r.first = g.first;
        r.count = g.count;
    }
    return r;
}

template <enum product_kind kind>
static __device__ __forceinline__ uint32_t tile_column(const struct product &p,
                                                       const struct tile_group &r, uint32_t i)
{
    if (i >= r.count)
        return ~0u;
    return kind == PRODUCT_LINEAR ? r.first + i : p.pairs[r.first + i];
}

template <enum layout_format format, enum product_kind kind, int width, int stages>
static __global__ void __launch_bounds__(TILE_WARPS * 32, 1) tile(const struct product p)
{
    constexpr uint32_t record = layout_record_bytes(format);
    constexpr uint32_t x_at = TILE_TILES * record;
    constexpr uint32_t stage_bytes = tile_stage_bytes(format, width);
    constexpr int fragments = width / 16; /* of 8 columns, of a warp */
    constexpr int copies = width / 32;    /* rows of x a thread copies from */
    static_assert(TILE_TILES == TILE_WARPS, "a warp copies one tile of weights");
    static_assert(width % 32 == 0, "32 threads copy a column of x each");
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32_t ring = ptx_shared(shared);

    const uint32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const uint32_t t = lane & 3;
    const uint32_t my_tile = warp / 2 * 2, my_column = warp % 2 * (width / 2);
    const uint32_t rows = (p.tiles + TILE_TILES - 1) / TILE_TILES;

    ptx_launch_next();
    ptx_wait_previous();
    const uint32_t n_items =
        (kind == PRODUCT_LINEAR ? (p.n + width - 1) / width : *p.n_groups) * rows;

    uint32_t ahead_item, ahead_chunk;
    const unsigned char *from_weights = NULL;
    const __half *from_x[copies];
    bool is_x[copies];
    /* Columns of x lie 128 bytes apart, their 16-byte pieces exchanged against bank conflicts. */
    const uint32_t to_x = threadIdx.x / 8 * 128 + ((lane ^ threadIdx.x >> 3) & 7) * 16;
    auto enter = [&](uint32_t item) {
        ahead_item = item;
        ahead_chunk = 0;
        if (item >= n_items)
            return;
        const struct tile_group r = tile_resolve<kind, width>(p, item, rows);
        /* Tiles beyond the matrix: the last one again; nothing is stored of them. */
        from_weights = p.weights + r.expert * p.matrix_bytes + lane * 16 +
                       (size_t)min(r.row + warp, p.tiles - 1) * p.chunks * record;
#pragma unroll
        for (int i = 0; i < copies; i++) {
            const uint32_t column = tile_column<kind>(p, r, threadIdx.x / 8 + i * 32);
            is_x[i] = column != ~0u;
            from_x[i] = p.x + (lane & 7) * 8 +
                        (is_x[i] ? (size_t)product_x_row<kind>(p, column) * p.columns : 0);
        }
    };
    auto copy = [&](uint32_t stage) {
        if (ahead_item >= n_items)
            return;
        const uint32_t to = ring + stage * stage_bytes + warp * record + lane * 16;
#pragma unroll
        for (uint32_t at = 0; at < record / 512 * 512; at += 512)
            ptx_copy_once(to + at, from_weights + at);
        if constexpr (record % 512 != 0)
            if (lane < record % 512 / 16)
                ptx_copy_once(to + record / 512 * 512, from_weights + record / 512 * 512);
        from_weights += record;
        const uint32_t x = ring + stage * stage_bytes + x_at + to_x;
        const bool inside = ahead_chunk * LAYOUT_CHUNK + (lane & 7) * 8 < p.columns;
#pragma unroll
        for (uint32_t i = 0; i < copies; i++) {
            const bool is = is_x[i] && inside;
            ptx_copy_shared(x + i * 32 * 128, is ? from_x[i] : p.x, is ? 16 : 0);
            from_x[i] += LAYOUT_CHUNK;
        }
        if (++ahead_chunk == p.chunks)
            enter(ahead_item + gridDim.x);
    };

    enter(blockIdx.x);
    for (uint32_t i = 0; i < stages - 1; i++) {
        copy(i);
        ptx_copy_commit();
    }

    const uint32_t x_lane = x_at + (my_column + (lane & 7)) * 128;
    uint32_t stage = 0;
    for (uint32_t item = blockIdx.x; item < n_items; item += gridDim.x) {
        float total[2][fragments][4], sum[2][fragments][4] = {};
        uint32_t left = p.part_chunks;
        bool first = true;
        for (uint32_t c = 0; c < p.chunks; c++) {
            ptx_copy_wait<stages - 2>();
            __syncthreads();
            copy(stage ? stage - 1 : stages - 1);
            ptx_copy_commit();

            const uint32_t from = ring + stage * stage_bytes;
            struct layout_raw<format> raw[2];
#pragma unroll
            for (uint32_t i = 0; i < 2; i++)
                layout_read<format>(raw[i], from + (my_tile + i) * record);
#pragma unroll
            for (uint32_t b = 0; b < 2; b++) {
                uint32_t a[2][2][4];
#pragma unroll
                for (int i = 0; i < 2; i++)
                    layout_fragments<format>(raw[i], b, a[i]);
#pragma unroll
                for (uint32_t k = 0; k < fragments; k++) {
                    const uint4 x = ptx_load_matrices(from + x_lane + k * 8 * 128 +
                                                      (((lane >> 3) + b * 4) ^ (lane & 7)) * 16);
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        ptx_mma(sum[i][k], a[i][0], x.x, x.y);
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        ptx_mma(sum[i][k], a[i][1], x.z, x.w);
                }
            }
            stage = stage + 1 == stages ? 0 : stage + 1;

            if (--left == 0 || c + 1 == p.chunks) {
                left = p.part_chunks;
#pragma unroll
                for (int i = 0; i < 2; i++)
#pragma unroll
                    for (int k = 0; k < fragments; k++)
#pragma unroll
                        for (int v = 0; v < 4; v++) {
                            total[i][k][v] =
                                first ? sum[i][k][v] : __fadd_rn(total[i][k][v], sum[i][k][v]);
                            sum[i][k][v] = 0.0f;
                        }
                first = false;
            }
        }

        const struct tile_group r = tile_resolve<kind, width>(p, item, rows);
        const struct product_rows rows_of[2] = {
            product_rows_of<format>(p, r.expert, r.row + my_tile),
            product_rows_of<format>(p, r.expert, r.row + my_tile + 1)};
#pragma unroll
        for (int k = 0; k < fragments; k++) {
            uint32_t column[2];
            column[0] = tile_column<kind>(p, r, my_column + k * 8 + t * 2);
            column[1] = tile_column<kind>(p, r, my_column + k * 8 + t * 2 + 1);
#pragma unroll
            for (uint32_t i = 0; i < 2; i++) {
                float rows_sum[2][2] = {{total[i][k][0], total[i][k][1]},
                                        {total[i][k][2], total[i][k][3]}};
                product_store<format, kind>(p, rows_of[i], r.row + my_tile + i, column, rows_sum);
            }
        }
    }
    ptx_copy_wait<0>();
}

#endif
