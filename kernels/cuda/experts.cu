/*
 * experts: products of some tens of tokens with their experts, where nearly all experts are chosen and
 * each has a few pairs (decode of batches). From Hopper on.
 *
 * One CTA of 16 warps on each multiprocessor. All tiles of 16 rows of all groups of pairs are dealt to
 * the CTAs in one piece each, so a CTA has one expert, or the end of one and the beginning of the next.
 * The activations of a group stay in shared memory while a CTA works on it: from the L2 they are as
 * many bytes as the weights, if each item of two tiles brings its own. A warp takes every 16th tile and
 * walks all its columns, so no two warps meet but where the activations change. It copies its weights
 * through a ring that only it reads (bulk copies of 3 chunks), which runs on into its next tile and the
 * next group. Pairs are sorted by each CTA for itself, instead of by a kernel in front.
 *
 * Down copies weights before gate_up has ended. At the end of a part of the contract a warp's sum is
 * added to the total, so the bits are those of stream.cuh.
 *
 * Bytes: the matrices of the experts that were chosen, once.
 *
 * Measured on an H100 that copies 2,850 GB/s (gate_up to combine, experts of the 20b model, in graphs;
 * before: the best of stream.cuh, wide.cuh and a kernel that sorts), with 8, 16 or 24 columns:
 *
 *   tokens    before     8    16    24
 *       16       153   155   160   173 µs   (388 MB: 2,470 GB/s)
 *       32       212   168   164   178
 *       64       226   204   168   176      (424 MB: 2,530 GB/s)
 *      128       242   396   243   193
 *
 * Steps of the whole model, depth 512: 16 tokens 4.65 → 4.29 ms, where some experts have more tokens
 * than others and `stream` had to read them twice; 64 tokens 7.41 → 6.48 ms. 8 warps with a ring of
 * twice the length: 176 µs for 64 tokens. A ring of 3 stages instead of 5 is what 24 columns leave.
 */
#include "kernels/cuda/launch.cuh"

#define EXPERTS_WARPS 16
#define EXPERTS_PAIRS 1024 /* at most */
#define EXPERTS_MOST  512  /* experts, at most */

static constexpr __host__ __device__ uint32_t depth_of(enum layout_format f)
{
    return f == LAYOUT_F16 ? 1 : 3;
}

/* Bytes of a column of x in shared memory: 16 more than the chunks, against bank conflicts. */
static constexpr __host__ __device__ uint32_t x_bytes_of(uint32_t chunks)
{
    return chunks * LAYOUT_CHUNK * 2 + 16;
}

/* What lies in shared memory, one behind the other: the rings, x, barriers, the sorting. */
struct places {
    uint32_t x, barriers, groups, counts, starts, pairs, chosen, bytes;
};

static constexpr __host__ __device__ struct places places_of(uint32_t ring_bytes, uint32_t width,
                                                             uint32_t chunks, uint32_t n_barriers,
                                                             uint32_t experts, uint32_t n_pairs)
{
    struct places s = {};
    s.x = ring_bytes;
    s.barriers = s.x + width * x_bytes_of(chunks);
    s.groups = s.barriers + n_barriers * 8;
    s.counts = s.groups + (n_pairs / width + experts) * 8;
    s.starts = s.counts + experts * 4;
    s.pairs = s.starts + experts * 4;
    s.chosen = s.pairs + n_pairs * 2;
    s.bytes = s.chosen + n_pairs * 2;
    return s;
}

/* Pairs by expert, in their order: every CTA must find the same ones in a group. Groups of `width`
 * pairs of one expert, as {expert, first << 16 | count}. Returns how many groups. */
[[maybe_unused]] static __device__ __forceinline__ uint32_t sort(const int32_t *choice,
                                                                 uint32_t n_pairs, uint32_t experts,
                                                                 uint32_t width,
                                                                 unsigned char *shared,
                                                                 const struct places &at)
{
    constexpr uint32_t threads = EXPERTS_WARPS * 32, own = EXPERTS_PAIRS / threads;
    __shared__ uint32_t n_groups;
    uint32_t *const counts = (uint32_t *)(shared + at.counts);
    uint32_t *const starts = (uint32_t *)(shared + at.starts);
    uint2 *const groups = (uint2 *)(shared + at.groups);
    uint16_t *const pairs = (uint16_t *)(shared + at.pairs);
    uint16_t *const chosen = (uint16_t *)(shared + at.chosen);
    const uint32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    uint32_t expert[own];
#pragma unroll
    for (uint32_t i = 0; i < own; i++) {
        const uint32_t pair = threadIdx.x + i * threads;
        expert[i] = pair < n_pairs ? (uint32_t)__ldcg(choice + pair) : 0;
    }
    for (uint32_t e = threadIdx.x; e < experts; e += threads)
        counts[e] = 0;
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < own; i++) {
        const uint32_t pair = threadIdx.x + i * threads;
        if (pair < n_pairs) {
            chosen[pair] = (uint16_t)expert[i];
            atomicAdd(&counts[expert[i]], 1u);
        }
    }
    __syncthreads();
    if (warp == 0) {
        uint32_t first = 0, group = 0;
        for (uint32_t e0 = 0; e0 < experts; e0 += 32) {
            const uint32_t count = e0 + lane < experts ? counts[e0 + lane] : 0;
            const uint32_t mine = (count + width - 1) / width;
            uint32_t pairs_sum = count, groups_sum = mine;
#pragma unroll
            for (uint32_t d = 1; d < 32; d *= 2) {
                const uint32_t a = __shfl_up_sync(0xffffffff, pairs_sum, d);
                const uint32_t b = __shfl_up_sync(0xffffffff, groups_sum, d);
                pairs_sum += lane >= d ? a : 0;
                groups_sum += lane >= d ? b : 0;
            }
            const uint32_t start = first + pairs_sum - count;
            if (e0 + lane < experts)
                starts[e0 + lane] = start;
            for (uint32_t i = 0; i < mine; i++)
                groups[group + groups_sum - mine + i] = make_uint2(
                    e0 + lane, (start + i * width) << 16 | min(width, count - i * width));
            __syncwarp();
            first += __shfl_sync(0xffffffff, pairs_sum, 31);
            group += __shfl_sync(0xffffffff, groups_sum, 31);
        }
        if (lane == 0)
            n_groups = group;
    }
    __syncthreads();
    for (uint32_t e = warp; e < experts; e += EXPERTS_WARPS) { /* a warp an expert */
        if (counts[e] == 0)
            continue;
        uint32_t place = starts[e];
        for (uint32_t begin = 0; begin < n_pairs; begin += 32) {
            const uint32_t pair = begin + lane;
            const bool is = pair < n_pairs && chosen[pair] == e;
            const uint32_t same = __ballot_sync(0xffffffff, is);
            if (is)
                pairs[place + (uint32_t)__popc(same & ((1u << lane) - 1))] = (uint16_t)pair;
            place += (uint32_t)__popc(same);
        }
    }
    __syncthreads();
    return n_groups;
}

template <enum layout_format format, enum product_kind kind, int columns, int stages>
static __global__ void __launch_bounds__(EXPERTS_WARPS * 32, 1)
    experts(const struct product p, const uint32_t n_experts)
{
#if PTX_HOPPER
    constexpr uint32_t record = layout_record_bytes(format);
    constexpr uint32_t depth = depth_of(format), width = columns * 8;
    constexpr uint32_t stage_bytes = depth * record;
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5, t = lane & 3;
    const uint32_t n_pairs = p.n * p.active, rows = p.tiles;
    const struct places at = places_of(EXPERTS_WARPS * stages * stage_bytes, width, p.chunks,
                                       EXPERTS_WARPS * stages + 1, n_experts, n_pairs);
    const uint2 *const groups = (const uint2 *)(shared + at.groups);
    const uint16_t *const pairs = (const uint16_t *)(shared + at.pairs);
    const uint32_t ring = ptx_shared(shared) + warp * stages * stage_bytes;
    const uint32_t x = ptx_shared(shared) + at.x, x_bytes = x_bytes_of(p.chunks);
    const uint32_t barriers = ptx_shared(shared) + at.barriers + warp * stages * 8;
    const uint32_t x_barrier = ptx_shared(shared) + at.barriers + EXPERTS_WARPS * stages * 8;

    if (lane == 0)
        for (uint32_t i = 0; i < stages; i++)
            ptx_barrier_init(barriers + i * 8);
    if (threadIdx.x == 0)
        ptx_barrier_init(x_barrier);
    if (p.columns % LAYOUT_CHUNK) /* what pads the last chunk */
        for (uint32_t i = threadIdx.x * 16; i < width * x_bytes; i += EXPERTS_WARPS * 512)
            ptx_store_zeros16(x + i);
    ptx_fence_async();
    /* The kernel behind gate_up is down, and reads what is chosen before it waits: then that must be
     * there before it starts. */
    if constexpr (kind == PRODUCT_GATE_UP)
        ptx_wait_previous();
    ptx_launch_next();
    const uint32_t n_groups = sort(p.choice, n_pairs, n_experts, width, shared, at);

    /* As many CTAs for each group as there are, if that leaves few without work: then no CTA changes
     * its group. */
    uint32_t used = gridDim.x / n_groups * n_groups;
    if (used * 8 < gridDim.x * 7)
        used = gridDim.x;
    const uint32_t all = n_groups * rows;
    const uint32_t begin = min(all, all * blockIdx.x / used);
    const uint32_t end = min(all, all * (blockIdx.x + 1) / used);

    /* The ring's head: where the next stage is copied from. */
    uint32_t head = begin + warp, head_chunk = 0, head_stage = 0;
    const unsigned char *head_from = NULL;
    auto enter = [&]() {
        head_chunk = 0;
        if (head >= end)
            return;
        const uint32_t group = head / rows;
        head_from = p.weights + groups[group].x * p.matrix_bytes +
                    (size_t)(head - group * rows) * p.chunks * record;
    };
    auto copy = [&]() {
        if (head < end) {
            const uint32_t bytes = min(depth, p.chunks - head_chunk) * record;
            const uint32_t barrier = barriers + head_stage * 8;
            if (lane == 0) {
                ptx_barrier_expect(barrier, bytes);
                ptx_copy_bulk_once(ring + head_stage * stage_bytes, head_from, bytes, barrier);
            }
            head_from += bytes;
            head_chunk += depth;
            if (head_chunk >= p.chunks) {
                head += EXPERTS_WARPS;
                enter();
            }
        }
        head_stage = head_stage + 1 == stages ? 0 : head_stage + 1;
    };
    enter();
#pragma unroll 1
    for (uint32_t i = 0; i < stages; i++)
        copy();
    if constexpr (kind != PRODUCT_GATE_UP)
        ptx_wait_previous();

    uint32_t x_lane[columns]; /* where this lane reads rows of x for ldmatrix */
#pragma unroll
    for (uint32_t k = 0; k < columns; k++)
        x_lane[k] = x + (k * 8 + (lane & 7)) * x_bytes + (lane >> 3) * 16;

    uint32_t stage = 0, phase = 0, x_phase = 0, item = begin + warp;
    bool again = false;
    for (uint32_t group = begin / rows; group * rows < end; group++) {
        const uint32_t last = min(end, (group + 1) * rows);
        const uint32_t expert = groups[group].x;
        const uint32_t first = groups[group].y >> 16, count = groups[group].y & 0xffff;
        if (again)
            __syncthreads(); /* x is no longer read */
        again = true;
        if (threadIdx.x == 0)
            ptx_barrier_expect(x_barrier, count * p.columns * 2);
        if (threadIdx.x < count)
            ptx_copy_bulk(x + threadIdx.x * x_bytes,
                          p.x + (size_t)product_x_row<kind>(p, pairs[first + threadIdx.x]) *
                                    p.columns,
                          p.columns * 2, x_barrier);
        ptx_barrier_wait(x_barrier, x_phase);
        x_phase ^= 1;

        for (; item < last; item += EXPERTS_WARPS) {
            const uint32_t row = item - group * rows;
            const struct product_rows rows_of = product_rows_of<format>(p, expert, row);
            float total[columns][4] = {}, sum[columns][4] = {};
            uint32_t left = p.part_chunks;
            auto fold = [&]() {
                left = p.part_chunks;
                /* 0 + s0 is s0: a sum that began as +0 is never −0. */
#pragma unroll
                for (int i = 0; i < columns * 4; i++) {
                    total[i / 4][i % 4] = __fadd_rn(total[i / 4][i % 4], sum[i / 4][i % 4]);
                    sum[i / 4][i % 4] = 0.0f;
                }
            };
            for (uint32_t chunk = 0; chunk < p.chunks; chunk += depth) {
                ptx_barrier_wait(barriers + stage * 8, phase);
                const uint32_t from = ring + stage * stage_bytes;
                auto multiply = [&](uint32_t c) {
                    struct layout_raw<format> raw;
                    layout_read<format>(raw, from + c * record);
#pragma unroll
                    for (uint32_t b = 0; b < 2; b++) {
                        uint32_t a[2][4];
                        layout_fragments<format>(raw, b, a);
                        uint4 v[columns];
#pragma unroll
                        for (uint32_t k = 0; k < columns; k++)
                            v[k] = ptx_load_matrices(x_lane[k] + (chunk + c) * 128 + b * 64);
#pragma unroll
                        for (uint32_t k = 0; k < columns; k++)
                            ptx_mma(sum[k], a[0], v[k].x, v[k].y);
#pragma unroll
                        for (uint32_t k = 0; k < columns; k++)
                            ptx_mma(sum[k], a[1], v[k].z, v[k].w);
                    }
                };
                const uint32_t n = p.chunks - chunk;
                if (n >= depth && left >= depth) {
#pragma unroll
                    for (uint32_t c = 0; c < depth; c++)
                        multiply(c);
                    left -= depth;
                    if (left == 0)
                        fold();
                } else {
#pragma unroll 1
                    for (uint32_t c = 0; c < min(n, depth); c++) {
                        multiply(c);
                        if (--left == 0)
                            fold();
                    }
                }
                __syncwarp();
                copy();
                if (++stage == stages) {
                    stage = 0;
                    phase ^= 1;
                }
            }
            if (left != p.part_chunks)
                fold();
#pragma unroll
            for (uint32_t k = 0; k < columns; k++) {
                const uint32_t c = k * 8 + t * 2;
                uint32_t column[2];
                column[0] = c < count ? pairs[first + c] : ~0u;
                column[1] = c + 1 < count ? pairs[first + c + 1] : ~0u;
                float rows_sum[2][2] = {{total[k][0], total[k][1]}, {total[k][2], total[k][3]}};
                product_store<format, kind>(p, rows_of, row, column, rows_sum);
            }
        }
    }
#endif
}

template <enum layout_format format> static constexpr int stages_of(int columns)
{
    return format == LAYOUT_F16  ? (columns == 1 ? 5 : 4)
           : format == LAYOUT_I8 ? (columns == 1 ? 3 : 2)
                                 : (columns == 1   ? 6
                                    : columns == 2 ? 5
                                                   : 3);
}

static uint32_t bytes_of(enum layout_format format, uint32_t stages, uint32_t width,
                         uint32_t chunks, uint32_t n_experts, uint32_t n_pairs)
{
    return places_of(EXPERTS_WARPS * stages * depth_of(format) *
                         (uint32_t)layout_record_bytes(format),
                     width, chunks, EXPERTS_WARPS * stages + 1, n_experts, n_pairs)
        .bytes;
}

template <enum layout_format format, enum product_kind kind, int columns, int stages>
static int run(const struct product *p, uint32_t n_experts, cudaStream_t to)
{
    static struct launch_fit kept;
    void (*const kernel)(struct product, uint32_t) = experts<format, kind, columns, stages>;
    const uint32_t bytes =
        bytes_of(format, stages, columns * 8, p->chunks, n_experts, p->n * p->active);
    const uint32_t ctas = launch_ctas(&kept, (const void *)kernel, bytes, EXPERTS_WARPS * 32);
    if (ctas == 0)
        return -1;
    return cuda_launch(kernel, dim3(ctas), EXPERTS_WARPS * 32, bytes, to, *p, n_experts);
}

/* Products with experts; groups of pairs are made by the kernel itself. */
template <enum layout_format format, enum product_kind kind>
static int run_shaped(const struct product *p, enum launch_shape shape, uint32_t n_experts,
                      cudaStream_t to)
{
    switch (shape) {
    case LAUNCH_EXPERTS_8: return run<format, kind, 1, stages_of<format>(1)>(p, n_experts, to);
    case LAUNCH_EXPERTS_16: return run<format, kind, 2, stages_of<format>(2)>(p, n_experts, to);
    case LAUNCH_EXPERTS_24:
        if constexpr (format == LAYOUT_FP4)
            return run<format, kind, 3, stages_of<format>(3)>(p, n_experts, to);
        return -1;
    default: return -1;
    }
}

/* Whether such a shape can be had for columns of so many chunks. */
bool cuda_experts_fit(enum layout_format format, enum launch_shape shape, uint32_t chunks,
                      uint32_t n_experts, uint32_t n_pairs)
{
    if (!launch_has_wgmma() || n_pairs > EXPERTS_PAIRS || n_experts > EXPERTS_MOST)
        return false;
    if (shape < LAUNCH_EXPERTS_8 || shape > LAUNCH_EXPERTS_24 ||
        (shape == LAUNCH_EXPERTS_24 && format != LAYOUT_FP4))
        return false;
    const int columns = (int)launch_width(shape) / 8;
    const int stages = format == LAYOUT_FP4  ? stages_of<LAYOUT_FP4>(columns)
                       : format == LAYOUT_I8 ? stages_of<LAYOUT_I8>(columns)
                                             : stages_of<LAYOUT_F16>(columns);
    return bytes_of(format, (uint32_t)stages, (uint32_t)columns * 8, chunks, n_experts, n_pairs) +
               128 <=
           LAUNCH_SHARED_MOST;
}

template <enum product_kind kind>
static int run_kind(enum layout_format format, const struct product *p, enum launch_shape shape,
                    uint32_t n_experts, cudaStream_t to)
{
    switch (format) {
    case LAYOUT_FP4: return run_shaped<LAYOUT_FP4, kind>(p, shape, n_experts, to);
    case LAYOUT_I8: return run_shaped<LAYOUT_I8, kind>(p, shape, n_experts, to);
    case LAYOUT_F16: return run_shaped<LAYOUT_F16, kind>(p, shape, n_experts, to);
    }
    return -1;
}

int cuda_experts_run(enum layout_format format, enum product_kind kind, const struct product *p,
                     enum launch_shape shape, uint32_t n_experts, cudaStream_t stream)
{
    return kind == PRODUCT_GATE_UP ? run_kind<PRODUCT_GATE_UP>(format, p, shape, n_experts, stream)
                                   : run_kind<PRODUCT_DOWN>(format, p, shape, n_experts, stream);
}
