/*
 * parts: linear products of some tens of tokens, where all weights of a CTA fit into its shared
 * memory (decode of batches). From Hopper on.
 *
 * A cluster of as many CTAs as there are parts of the contract has `each` tiles of 16 rows and up to
 * `width` columns; each CTA one part of them. It copies all its weights at once, before the kernel in
 * front has ended, then its part of x; warps of 4 tiles (wgmma) multiply. Sums go to shared memory,
 * and the CTAs add up the parts in ascending order, each some of the fragments, out of each other's
 * shared memory: the bits of stream.cuh.
 *
 * Bytes: the matrix once, x once for each cluster.
 *
 * Measured on an H100, Q8_0, in graphs of these products alone (before: stream.cuh or wide.cuh, with
 * clusters or without); µs:
 *
 *   tokens          16            24            64
 *   5120 × 2880     12.9 → 10.7   16.8 → 11.9   22.8 → 14.3
 *   2880 × 4096      8.8 →  8.5   13.5 →  9.2   14.5 → 10.8
 *
 * In steps, where weights arrive while attention or the sum of the experts still runs, it is more: 16
 * tokens 4.51 → 4.29 ms, 64 tokens 7.17 → 6.48 ms for the 20b model's 24 layers. With 8 tokens
 * stream.cuh is quicker (8.7 and 7.1 µs; 10.7 and 8.4 here).
 */
#include "kernels/cuda/launch.cuh"

#define PARTS_SET  4 /* tiles of a wgmma */
#define PARTS_SETS 5 /* at a time, at most */

/* Of a CTA's tile: its weights, later its sums. */
static constexpr __host__ __device__ uint32_t parts_tile_bytes(enum layout_format f,
                                                               uint32_t part_chunks, uint32_t width)
{
    const uint32_t weights = part_chunks * (uint32_t)layout_record_bytes(f), sums = width * 64;
    return weights > sums ? weights : sums;
}

static constexpr __host__ __device__ uint32_t parts_bytes(enum layout_format f,
                                                          uint32_t part_chunks, uint32_t width,
                                                          uint32_t each)
{
    return 1024 + part_chunks * width * 128 + each * parts_tile_bytes(f, part_chunks, width) +
           (each + PARTS_SET - 1) / PARTS_SET * 16;
}

template <enum layout_format format, int width>
static __global__ void __launch_bounds__(PARTS_SETS *PARTS_SET * 32, 1)
    parts(const struct product p, const uint32_t each)
{
#if PTX_WGMMA
    constexpr uint32_t record = layout_record_bytes(format);
    constexpr int fragments = width / 8;
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5, t = lane & 3;
    const uint32_t tile_bytes = parts_tile_bytes(format, p.part_chunks, width);
    const uint32_t x = (ptx_shared(shared) + 1023) / 1024 * 1024; /* [chunk][column] 128 bytes */
    const uint32_t tiles = x + p.part_chunks * width * 128;
    const uint32_t barriers = tiles + each * tile_bytes; /* [set][half of the chunks] */

    const uint32_t n_parts = (p.chunks + p.part_chunks - 1) / p.part_chunks;
    const uint32_t part = blockIdx.x % n_parts, first_chunk = part * p.part_chunks;
    const uint32_t chunks = min(p.part_chunks, p.chunks - first_chunk), half = (chunks + 1) / 2;
    const uint32_t first = blockIdx.x / n_parts * each, mine = min(each, p.tiles - first);
    const uint32_t sets = (mine + PARTS_SET - 1) / PARTS_SET;
    const uint32_t first_column = blockIdx.y * width,
                   count = min((uint32_t)width, p.n - first_column);

    ptx_launch_next();
    if (threadIdx.x < sets) { /* a thread a set */
        const uint32_t begin = threadIdx.x * PARTS_SET, end = min(begin + PARTS_SET, mine);
        const uint32_t barrier = barriers + threadIdx.x * 16;
        ptx_barrier_init(barrier);
        ptx_barrier_init(barrier + 8);
        ptx_fence_async();
        ptx_barrier_expect(barrier, (end - begin) * half * record);
        ptx_barrier_expect(barrier + 8, (end - begin) * (chunks - half) * record);
        for (uint32_t i = begin; i < end; i++)
            ptx_copy_bulk_once(tiles + i * tile_bytes,
                               p.weights + ((size_t)(first + i) * p.chunks + first_chunk) * record,
                               half * record, barrier);
        for (uint32_t i = begin; i < end && half < chunks; i++)
            ptx_copy_bulk_once(tiles + i * tile_bytes + half * record,
                               p.weights +
                                   ((size_t)(first + i) * p.chunks + first_chunk + half) * record,
                               (chunks - half) * record, barrier + 8);
    }
    ptx_wait_previous();
    /* 8 threads a column of a chunk, its 16-byte pieces exchanged against bank conflicts. */
    for (uint32_t i = threadIdx.x; i < chunks * width * 8; i += blockDim.x) {
        const uint32_t c = i / (width * 8), column = i / 8 % width, k = i % 8;
        const uint32_t at = (first_chunk + c) * LAYOUT_CHUNK + k * 8;
        const bool is = column < count && at < p.columns;
        ptx_copy_shared(x + (i / 8 * 8 + ((k ^ column) & 7)) * 16,
                        is ? p.x + (size_t)(first_column + column) * p.columns + at : p.x,
                        is ? 16 : 0);
    }
    ptx_copy_commit();
    ptx_copy_wait<0>();
    ptx_fence_async();
    __syncthreads();

    for (uint32_t set = warp / PARTS_SET; set < sets; set += blockDim.x / (PARTS_SET * 32)) {
        /* Behind the last tile: products of something; nothing is stored of them. */
        const uint32_t tile = set * PARTS_SET + warp % PARTS_SET;
        const uint32_t from = tile < mine ? tiles + tile * tile_bytes : x;
        float sum[fragments][4];
#pragma unroll
        for (int i = 0; i < fragments * 4; i++)
            sum[i / 4][i % 4] = 0.0f;
        uint32_t c = 0;
        auto halves = [&](uint32_t chunk, uint32_t a[4][4]) {
            struct layout_raw<format> raw;
            layout_read<format>(raw, from + chunk * record);
            uint32_t block[2][2][4];
            layout_fragments<format>(raw, 0, block[0]);
            layout_fragments<format>(raw, 1, block[1]);
#pragma unroll
            for (int i = 0; i < 16; i++)
                a[i / 4][i % 4] = block[i / 8][i / 4 % 2][i % 4];
        };
        /* now: halves of this chunk; after: of the next, made while the wgmma run. */
        auto multiply = [&](uint32_t now[4][4], uint32_t after[4][4]) {
            const uint64_t b = ptx_wgmma_matrix(x + c * width * 128);
            if (c + 1 == half && half < chunks)
                ptx_barrier_wait(barriers + set * 16 + 8, 0);
            ptx_wgmma_fence();
#pragma unroll
            for (int j = 0; j < 4; j++)
                ptx_wgmma(sum, now[j], b + j * 2);
            ptx_wgmma_commit();
            halves(min(c + 1, chunks - 1), after);
            ptx_wgmma_wait();
        };
        uint32_t a0[4][4], a1[4][4];
        ptx_barrier_wait(barriers + set * 16, 0);
        halves(0, a0);
        while (true) {
            multiply(a0, a1);
            if (++c == chunks)
                break;
            multiply(a1, a0);
            if (++c == chunks)
                break;
        }
        __syncwarp();
        if (tile < mine) /* in place of the weights, which only this warp read */
#pragma unroll
            for (int k = 0; k < fragments; k++)
                ptx_store_shared16(from + (k * 32 + lane) * 16, sum[k]);
    }
    ptx_cluster_sync();
    for (uint32_t i = warp * n_parts + part; i < mine * fragments; i += blockDim.x / 32 * n_parts) {
        const uint32_t tile = i / fragments, k = i % fragments;
        const uint32_t at = tiles + tile * tile_bytes + (k * 32 + lane) * 16;
        const struct product_rows rows_of = product_rows_of<format>(p, 0, first + tile);
        float4 v[LAYOUT_PARTS];
#pragma unroll
        for (uint32_t j = 0; j < LAYOUT_PARTS; j++)
            if (j < n_parts)
                v[j] = ptx_load_cluster16(at, j);
        float4 total = v[0];
#pragma unroll
        for (uint32_t j = 1; j < LAYOUT_PARTS; j++)
            if (j < n_parts) {
                total.x = __fadd_rn(total.x, v[j].x);
                total.y = __fadd_rn(total.y, v[j].y);
                total.z = __fadd_rn(total.z, v[j].z);
                total.w = __fadd_rn(total.w, v[j].w);
            }
        uint32_t column[2];
        column[0] = k * 8 + t * 2 < count ? first_column + k * 8 + t * 2 : ~0u;
        column[1] = k * 8 + t * 2 + 1 < count ? first_column + k * 8 + t * 2 + 1 : ~0u;
        float rows_sum[2][2] = {{total.x, total.y}, {total.z, total.w}};
        product_store<format, PRODUCT_LINEAR>(p, rows_of, first + tile, column, rows_sum);
    }
    ptx_cluster_sync(); /* the others have read what lies here */
#endif
}

/* Clusters of `parts` that the device runs at once, a CTA with all the shared memory there is. */
struct launch_clusters {
    int device;
    uint32_t parts, clusters;
};

template <enum layout_format format, int width>
static int run(const struct product *p, cudaStream_t to)
{
    const uint32_t groups = (p->n + width - 1) / width;
    static struct launch_fit fit;
    static struct launch_clusters kept;
    void (*const kernel)(struct product, uint32_t) = parts<format, width>;
    const uint32_t n_parts = (p->chunks + p->part_chunks - 1) / p->part_chunks;
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = n_parts;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.stream = to;
    config.attrs = attributes;
    if (launch_ctas(&fit, (const void *)kernel, LAUNCH_SHARED_MOST, PARTS_SETS * 128) == 0)
        return -1;
    if (kept.clusters == 0 || kept.device != fit.device || kept.parts != n_parts) {
        int clusters = 0;
        config.gridDim = dim3(n_parts);
        config.blockDim = dim3(PARTS_SETS * 128);
        config.dynamicSmemBytes = LAUNCH_SHARED_MOST;
        config.numAttrs = 1;
        if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess ||
            clusters < 1)
            return -1;
        kept.device = fit.device;
        kept.parts = n_parts;
        kept.clusters = (uint32_t)clusters;
    }
    uint32_t each = (p->tiles + kept.clusters - 1) / kept.clusters;
    while (each > 1 && parts_bytes(format, p->part_chunks, width, each) > LAUNCH_SHARED_MOST)
        each--;
    const uint32_t sets = (each + PARTS_SET - 1) / PARTS_SET;
    const uint32_t rounds = (sets + PARTS_SETS - 1) / PARTS_SETS;
    config.gridDim = dim3((p->tiles + each - 1) / each * n_parts, groups);
    config.blockDim = dim3((sets + rounds - 1) / rounds * PARTS_SET * 32);
    config.dynamicSmemBytes = parts_bytes(format, p->part_chunks, width, each);
    config.numAttrs = cuda_may_start_early() ? 2 : 1;
    return cudaLaunchKernelEx(&config, kernel, *p, each) == cudaSuccess ? 0 : -1;
}

/* Whether a CTA has room for its weights, if an H100 has all of the matrix at once. */
bool cuda_parts_fit(enum layout_format format, const struct product *p, uint32_t width)
{
    const uint32_t n_parts = (p->chunks + p->part_chunks - 1) / p->part_chunks;
    const uint32_t clusters = LAUNCH_PROCESSORS / n_parts;
    const uint64_t each = (p->tiles + clusters - 1) / clusters;
    return each < 64 &&
           parts_bytes(format, p->part_chunks, width, (uint32_t)each) <= LAUNCH_SHARED_MOST;
}

template <enum layout_format format>
static int run_shaped(const struct product *p, enum launch_shape shape, cudaStream_t to)
{
    switch (shape) {
    case LAUNCH_PARTS_16: return run<format, 16>(p, to);
    case LAUNCH_PARTS_32: return run<format, 32>(p, to);
    case LAUNCH_PARTS_64: return run<format, 64>(p, to);
    default: return -1;
    }
}

int cuda_parts_run(enum layout_format format, const struct product *p, enum launch_shape shape,
                   cudaStream_t stream)
{
    switch (format) {
    case LAYOUT_FP4: return run_shaped<LAYOUT_FP4>(p, shape, stream);
    case LAYOUT_I8: return run_shaped<LAYOUT_I8>(p, shape, stream);
    case LAYOUT_F16: return run_shaped<LAYOUT_F16>(p, shape, stream);
    }
    return -1;
}
