/*
 * wide: products of many columns with Hopper's wgmma. Private to kernels/cuda/.
 *
 * As tile.cuh, but a warp has one tile of 16 rows × all `width` columns of the item, so that no two
 * warps make halves of the same weights, and the tensor cores read activations from shared memory
 * themselves. Two groups of 4 warps; while the wgmma of one chunk run, a warp makes the halves of the
 * next (a chunk's halves live in two sets of registers in turn: ptxas serialises wgmma whose operands
 * are written while others run). On Hopper wgmma.m64nNk16 gives the bits of mma.m16n8k16;
 * tests/cuda_matmul.cu holds it to that: it compares this kernel with the other two.
 *
 * `split`: a cluster of CTAs works on one item, each on one part of the columns (the parts of the
 * contract); then they add up the parts in ascending order, each some columns, out of each other's
 * shared memory. For linear products of few items.
 *
 * Measured on an H100, 2048 tokens: 5120 × 2880 and 2880 × 4096 in Q8_0 390 TFLOP/s (tile.cuh: 265 and
 * 257); experts of the 20b model, sorting and all, 294 (tile.cuh: 200), where 256 tokens an expert fill
 * 64 columns better than 128.
 */
#ifndef GPTOSS_KERNELS_CUDA_WIDE_CUH
#define GPTOSS_KERNELS_CUDA_WIDE_CUH

#include "kernels/cuda/tile.cuh"
#include "kernels/cuda/wgmma.cuh"

/* x first: it must begin at a multiple of 1024. */
static constexpr __host__ __device__ uint32_t wide_stage_bytes(enum layout_format f, uint32_t width)
{
    return (width * 128 + TILE_TILES * (uint32_t)layout_record_bytes(f) + 1023) / 1024 * 1024;
}

/* ctas: that share a multiprocessor. */
template <enum layout_format format, enum product_kind kind, int width, int stages, int ctas,
          bool split>
static __global__ void __launch_bounds__(TILE_WARPS * 32, ctas) wide(const struct product p)
{
#if PTX_WGMMA
    constexpr uint32_t record = layout_record_bytes(format);
    constexpr uint32_t records_at = width * 128;
    constexpr uint32_t stage_bytes = wide_stage_bytes(format, width);
    constexpr int fragments = width / 8;      /* of 8 columns */
    constexpr int copies = (width + 31) / 32; /* rows of x a thread copies from */
    static_assert(TILE_TILES == TILE_WARPS, "a warp copies one tile of weights");
    static_assert(width == 16 || width % 32 == 0, "8 threads copy a column of x each");
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32_t ring = (ptx_shared(shared) + 1023) / 1024 * 1024;

    const uint32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const uint32_t t = lane & 3;
    const uint32_t rows = (p.tiles + TILE_TILES - 1) / TILE_TILES;

    /* The chunks of this CTA. */
    const uint32_t parts = split ? (p.chunks + p.part_chunks - 1) / p.part_chunks : 1;
    const uint32_t part = split ? blockIdx.x % parts : 0, first_chunk = part * p.part_chunks;
    const uint32_t chunks = split ? min(p.part_chunks, p.chunks - first_chunk) : p.chunks;
    const uint32_t first_item = blockIdx.x / parts, items_step = gridDim.x / parts;

    ptx_launch_next();
    if constexpr (!split)
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
                       ((size_t)min(r.row + warp, p.tiles - 1) * p.chunks + first_chunk) * record;
#pragma unroll
        for (int i = 0; i < copies; i++) {
            const uint32_t column = tile_column<kind>(p, r, threadIdx.x / 8 + i * 32);
            is_x[i] = column != ~0u;
            from_x[i] = p.x + first_chunk * LAYOUT_CHUNK + (lane & 7) * 8 +
                        (is_x[i] ? (size_t)product_x_row<kind>(p, column) * p.columns : 0);
        }
    };
    auto copy_weights = [&](uint32_t stage) {
        const uint32_t to = ring + stage * stage_bytes + records_at + warp * record + lane * 16;
#pragma unroll
        for (uint32_t at = 0; at < record / 512 * 512; at += 512)
            ptx_copy_once(to + at, from_weights + at);
        if constexpr (record % 512 != 0)
            if (lane < record % 512 / 16)
                ptx_copy_once(to + record / 512 * 512, from_weights + record / 512 * 512);
        from_weights += record;
    };
    auto copy = [&](uint32_t stage, bool with_weights) {
        if (ahead_item >= n_items)
            return;
        if (with_weights)
            copy_weights(stage);
        const uint32_t x = ring + stage * stage_bytes + to_x;
        const bool inside = (first_chunk + ahead_chunk) * LAYOUT_CHUNK + (lane & 7) * 8 < p.columns;
#pragma unroll
        for (uint32_t i = 0; i < copies; i++) {
            const bool is = is_x[i] && inside;
            if (width >= 32 || threadIdx.x < width * 8)
                ptx_copy_shared(x + i * 32 * 128, is ? from_x[i] : p.x, is ? 16 : 0);
            from_x[i] += LAYOUT_CHUNK;
        }
        if (++ahead_chunk == chunks)
            enter(ahead_item + items_step);
    };

    enter(first_item);
    if constexpr (split) { /* weights before the kernel in front has ended; one item alone */
        for (uint32_t i = 0; i < stages - 2; i++)
            if (i < chunks)
                copy_weights(i);
        ptx_wait_previous();
    }
    for (uint32_t i = 0; i < stages - 2; i++) {
        copy(i, !split);
        ptx_copy_commit();
    }

    uint32_t stage = stages - 1, stage_to = stages - 2; /* of the last chunk; of the next copy */
    auto arrive = [&]() {
        ptx_copy_wait<stages - 3>();
        ptx_fence_async();
        __syncthreads();
        /* Into the stage of the chunk before the last: everybody has waited for its wgmma. */
        copy(stage_to, true);
        ptx_copy_commit();
        stage = stage + 1 == stages ? 0 : stage + 1;
        stage_to = stage_to + 1 == stages ? 0 : stage_to + 1;
    };
    auto halves = [&](uint32_t a[4][4]) {
        struct layout_raw<format> raw;
        layout_read<format>(raw, ring + stage * stage_bytes + records_at + warp * record);
        uint32_t block[2][2][4];
        layout_fragments<format>(raw, 0, block[0]);
        layout_fragments<format>(raw, 1, block[1]);
#pragma unroll
        for (int i = 0; i < 16; i++)
            a[i / 4][i % 4] = block[i / 8][i / 4 % 2][i % 4];
    };

    for (uint32_t item = first_item; item < n_items; item += items_step) {
        float total[fragments][4], sum[fragments][4];
#pragma unroll
        for (int i = 0; i < fragments * 4; i++)
            total[i / 4][i % 4] = sum[i / 4][i % 4] = 0.0f;
        uint32_t left = p.part_chunks, c = 0;
        /* now: halves of this chunk; after: of the next, made while the wgmma run. */
        auto multiply = [&](uint32_t now[4][4], uint32_t after[4][4]) {
            const uint64_t b = ptx_wgmma_matrix(ring + stage * stage_bytes);
            if (c + 1 < chunks)
                arrive();
            ptx_wgmma_fence();
#pragma unroll
            for (int j = 0; j < 4; j++)
                ptx_wgmma(sum, now[j], b + j * 2);
            ptx_wgmma_commit();
            halves(after); /* behind the last chunk: of something, not used */
            ptx_wgmma_wait();
            if (--left == 0 || c + 1 == chunks) {
                left = p.part_chunks;
                /* 0 + s0 is s0: a sum that began as +0 is never −0. */
#pragma unroll
                for (int i = 0; i < fragments * 4; i++) {
                    total[i / 4][i % 4] = __fadd_rn(total[i / 4][i % 4], sum[i / 4][i % 4]);
                    sum[i / 4][i % 4] = 0.0f;
                }
            }
        };
        uint32_t a0[4][4], a1[4][4];
        arrive();
        halves(a0);
        while (true) {
            multiply(a0, a1);
            if (++c == chunks)
                break;
            multiply(a1, a0);
            if (++c == chunks)
                break;
        }

        if constexpr (split) {
            ptx_copy_wait<0>();
            __syncthreads(); /* the ring is free */
            const uint32_t mine = ring + (warp * fragments * 32 + lane) * 16;
#pragma unroll
            for (int k = 0; k < fragments; k++)
                ptx_store_shared16(mine + k * 512, total[k]);
            ptx_cluster_sync();
#pragma unroll
            for (int k = 0; k < fragments; k++) {
                if (k % parts != part)
                    continue;
                for (uint32_t i = 0; i < parts; i++) {
                    const float4 v = ptx_load_cluster16(mine + k * 512, i);
                    const float one[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        total[k][j] = i ? __fadd_rn(total[k][j], one[j]) : one[j];
                }
            }
            ptx_cluster_sync();
        }
        const struct tile_group r = tile_resolve<kind, width>(p, item, rows);
        const struct product_rows rows_of = product_rows_of<format>(p, r.expert, r.row + warp);
#pragma unroll
        for (int k = 0; k < fragments; k++) {
            uint32_t column[2];
            if (split && k % parts != part)
                continue;
            column[0] = tile_column<kind>(p, r, k * 8 + t * 2);
            column[1] = tile_column<kind>(p, r, k * 8 + t * 2 + 1);
            float rows_sum[2][2] = {{total[k][0], total[k][1]}, {total[k][2], total[k][3]}};
            product_store<format, kind>(p, rows_of, r.row + warp, column, rows_sum);
        }
    }
    ptx_copy_wait<0>();
#endif
}

#endif
