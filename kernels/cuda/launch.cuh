/*
 * launch: which kernel with which tiles for how many columns, and its launch. Private to kernels/cuda/.
 */
#ifndef GPTOSS_KERNELS_CUDA_LAUNCH_CUH
#define GPTOSS_KERNELS_CUDA_LAUNCH_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/wide.cuh"

/* Multiprocessors of the device that choices are made for (an H100), so that they depend on shapes. */
#define LAUNCH_PROCESSORS 132
/* Columns of an item of experts in LAUNCH_STREAM_8: more are rare there, and x takes room. */
#define LAUNCH_FEW 4

/* Of `wide` on a multiprocessor, by registers, with 16 and 32 columns. */
#define WIDE_CTAS 3

enum launch_shape {
    LAUNCH_STREAM_8,
    LAUNCH_STREAM_16,
    LAUNCH_TILE_16, /* without wgmma: STREAM_16 */
    LAUNCH_TILE_32,
    LAUNCH_TILE_64,
    LAUNCH_TILE_128,
    LAUNCH_SPLIT_64,    /* linear: as TILE_64, a cluster for each item; others: TILE_64 */
    LAUNCH_TILE_64_MMA, /* as the two before, with mma even where the device has wgmma */
    LAUNCH_TILE_128_MMA,
    LAUNCH_EXPERTS_8, /* experts on Hopper; others, or where it does not fit: STREAM_8 … */
    LAUNCH_EXPERTS_16,
    LAUNCH_EXPERTS_24,
    LAUNCH_PARTS_16, /* linear, on Hopper; others, or where it does not fit: TILE_16 … */
    LAUNCH_PARTS_32,
    LAUNCH_PARTS_64,
    LAUNCH_SHAPES,
};

/* Shared memory of a CTA on Hopper. */
#define LAUNCH_SHARED_MOST 232448

/* cuda_linear and cuda_moe_run with a shape of the caller's choice (tests, timings); −1: by n. */
int cuda_linear_shaped(const struct cuda_matrix *w, const float *bias, const __half *x, float *y,
                       uint32_t n, bool add, int shape, cudaStream_t stream);
int cuda_moe_run_shaped(const struct cuda_moe *moe, const __half *x, const int32_t *choice,
                        const float *weight, float *residual, uint32_t n, void *scratch, int shape,
                        cudaStream_t stream);

/* experts.cu: products with experts in shapes LAUNCH_EXPERTS_…: whether such a shape can be had (for
 * columns of so many chunks), and its launch; groups of pairs are made by the kernel itself. */
bool cuda_experts_fit(enum layout_format format, enum launch_shape shape, uint32_t chunks,
                      uint32_t n_experts, uint32_t n_pairs);
int cuda_experts_run(enum layout_format format, enum product_kind kind, const struct product *p,
                     enum launch_shape shape, uint32_t n_experts, cudaStream_t stream);

/* parts.cu: linear products in shapes LAUNCH_PARTS_…; whether an H100 has all of the matrix at once. */
bool cuda_parts_fit(enum layout_format format, const struct product *p, uint32_t width);
int cuda_parts_run(enum layout_format format, const struct product *p, enum launch_shape shape,
                   cudaStream_t stream);

/* Columns of an item. */
static inline uint32_t launch_width(enum launch_shape shape)
{
    switch (shape) {
    case LAUNCH_STREAM_8:
    case LAUNCH_EXPERTS_8: return 8;
    case LAUNCH_STREAM_16:
    case LAUNCH_EXPERTS_16:
    case LAUNCH_PARTS_16:
    case LAUNCH_TILE_16: return 16;
    case LAUNCH_EXPERTS_24: return 24;
    case LAUNCH_PARTS_32:
    case LAUNCH_TILE_32: return 32;
    case LAUNCH_PARTS_64:
    case LAUNCH_TILE_64:
    case LAUNCH_SPLIT_64:
    case LAUNCH_TILE_64_MMA: return 64;
    default: return 128;
    }
}

/* CTAs of the kernel that fit on the device at once; allows it all the shared memory there is. 0: it
 * does not fit. `kept` belongs to the kernel and keeps the last answer. */
struct launch_fit {
    int device;
    uint32_t bytes, ctas;
};

static inline uint32_t launch_ctas(struct launch_fit *kept, const void *kernel, uint32_t bytes,
                                   int threads = 256)
{
    int device = 0, processors = 0, each = 0, most = 0;
    cudaFuncAttributes attributes;
    if (cudaGetDevice(&device) != cudaSuccess)
        return 0;
    if (kept->ctas && kept->device == device && kept->bytes == bytes)
        return kept->ctas;
    if (cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) !=
            cudaSuccess ||
        cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess ||
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             most - (int)attributes.sharedSizeBytes) != cudaSuccess ||
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) !=
            cudaSuccess ||
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, bytes) != cudaSuccess)
        return 0;
    kept->device = device;
    kept->bytes = bytes;
    kept->ctas = (uint32_t)(processors * each);
    return kept->ctas;
}

/* A CTA of 256 threads for each item, at most as many as fit. */
template <typename... Arguments>
static int launch(struct launch_fit *kept, void (*kernel)(Arguments...), uint32_t items,
                  uint32_t bytes, cudaStream_t stream, Arguments... arguments)
{
    const uint32_t fit = launch_ctas(kept, (const void *)kernel, bytes);
    if (fit == 0)
        return -1;
    return cuda_launch(kernel, dim3(items < fit ? items : fit), 256, bytes, stream, arguments...);
}

template <enum layout_format format, enum product_kind kind, int tiles, int columns, int depth,
          int stages, bool resident>
static int launch_stream(const struct product *p, uint32_t groups, cudaStream_t to)
{
    static struct launch_fit kept;
    const uint32_t most = columns == 1 && kind != PRODUCT_LINEAR ? LAUNCH_FEW : columns * 8;
    const uint32_t width = p->n < most ? p->n : most;
    const uint32_t sums =
        (2 * STREAM_WARPS * tiles * columns * 512 + STREAM_WARPS * (stages + 1) * 8 + 127) / 128 *
        128;
    const uint32_t weights = stages * tiles * depth * layout_record_bytes(format);
    const uint32_t x =
        width * (resident ? stream_x_bytes(p->part_chunks) : stages * stream_x_bytes(depth));
    return launch(&kept, stream<format, kind, tiles, columns, depth, stages, resident>,
                  (p->tiles + tiles - 1) / tiles * groups, sums + STREAM_WARPS * (weights + x), to,
                  *p, width);
}

template <enum layout_format format, enum product_kind kind, int width, int stages>
static int launch_tile(const struct product *p, uint32_t groups, cudaStream_t to)
{
    static struct launch_fit kept;
    return launch(&kept, tile<format, kind, width, stages>,
                  (p->tiles + TILE_TILES - 1) / TILE_TILES * groups,
                  stages * tile_stage_bytes(format, width), to, *p);
}

template <enum layout_format format, enum product_kind kind, int width, int stages, int ctas>
static int launch_wide(const struct product *p, uint32_t groups, cudaStream_t to)
{
    static struct launch_fit kept;
    return launch(&kept, wide<format, kind, width, stages, ctas, false>,
                  (p->tiles + TILE_TILES - 1) / TILE_TILES * groups,
                  stages * wide_stage_bytes(format, width) + 1024, to, *p);
}

/* A cluster of as many CTAs as there are parts for each item. */
template <enum layout_format format, int width, int stages>
static int launch_split(const struct product *p, uint32_t groups, cudaStream_t to)
{
    static struct launch_fit kept;
    const uint32_t bytes = stages * wide_stage_bytes(format, width) + 1024;
    const uint32_t parts = (p->chunks + p->part_chunks - 1) / p->part_chunks;
    void (*const kernel)(struct product) = wide<format, PRODUCT_LINEAR, width, stages, 2, true>;
    if (launch_ctas(&kept, (const void *)kernel, bytes) == 0)
        return -1;
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = parts;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((p->tiles + TILE_TILES - 1) / TILE_TILES * groups * parts);
    config.blockDim = dim3(TILE_WARPS * 32);
    config.dynamicSmemBytes = bytes;
    config.stream = to;
    config.attrs = attributes;
    config.numAttrs = cuda_may_start_early() ? 2 : 1;
    return cudaLaunchKernelEx(&config, kernel, *p) == cudaSuccess ? 0 : -1;
}

/* wide.cuh is compiled for Hopper alone. */
static inline bool launch_has_wgmma(void)
{
    static int kept = -1, kept_major;
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess)
        return false;
    if (kept != device) {
        if (cudaDeviceGetAttribute(&kept_major, cudaDevAttrComputeCapabilityMajor, device) !=
            cudaSuccess)
            return false;
        kept = device;
    }
    return kept_major == 9;
}

/* What takes the place of a shape that the kind, the device or the sizes do not allow. */
static inline enum launch_shape launch_instead(enum launch_shape shape)
{
    switch (shape) {
    case LAUNCH_EXPERTS_8: return LAUNCH_STREAM_8;
    case LAUNCH_EXPERTS_16:
    case LAUNCH_PARTS_16: return LAUNCH_TILE_16;
    case LAUNCH_EXPERTS_24:
    case LAUNCH_PARTS_32: return LAUNCH_TILE_32;
    case LAUNCH_PARTS_64: return LAUNCH_TILE_64;
    default: return shape;
    }
}

/* groups: of columns, at most. */
template <enum layout_format format, enum product_kind kind>
static int launch_product(const struct product *p, enum launch_shape shape, uint32_t groups,
                          cudaStream_t to)
{
    constexpr bool linear = kind == PRODUCT_LINEAR;
    constexpr int few_tiles = format == LAYOUT_F16 ? 1 : 2;
    constexpr int depth = format == LAYOUT_F16 ? 2 : 3, stages = format == LAYOUT_F16 ? 3 : 2;
    constexpr int tall = format == LAYOUT_F16 ? 4 : 5;
    switch (shape) {
    case LAUNCH_STREAM_8:
        if constexpr (linear)
            if (groups == 1 && p->part_chunks <= 12)
                return launch_stream<format, kind, few_tiles, 1, depth, stages, true>(p, groups,
                                                                                      to);
        return launch_stream<format, kind, few_tiles, 1, depth, stages, false>(p, groups, to);
    case LAUNCH_STREAM_16:
        return launch_stream < format, kind, 2, 2, format == LAYOUT_F16 ? 1 : 2,
               format == LAYOUT_I8 ? 2 : 3, false > (p, groups, to);
    case LAUNCH_TILE_16:
        if (launch_has_wgmma())
            return launch_wide<format, kind, 16, tall, WIDE_CTAS>(p, groups, to);
        return launch_stream < format, kind, 2, 2, format == LAYOUT_F16 ? 1 : 2,
               format == LAYOUT_I8 ? 2 : 3, false > (p, groups, to);
    case LAUNCH_TILE_32:
        if (launch_has_wgmma())
            return launch_wide<format, kind, 32, tall, WIDE_CTAS>(p, groups, to);
        return launch_tile<format, kind, 32, tall>(p, groups, to);
    case LAUNCH_SPLIT_64:
        if constexpr (linear)
            if (launch_has_wgmma())
                return launch_split<format, 64, tall>(p, groups, to);
        [[fallthrough]];
    case LAUNCH_TILE_64:
        if (launch_has_wgmma()) {
            if constexpr (linear)
                if ((p->tiles + TILE_TILES - 1) / TILE_TILES * groups <= LAUNCH_PROCESSORS)
                    return launch_wide<format, kind, 64, tall, 1>(p, groups, to);
            return launch_wide<format, kind, 64, tall, 2>(p, groups, to);
        }
        return launch_tile<format, kind, 64, tall>(p, groups, to);
    case LAUNCH_TILE_128:
        if (launch_has_wgmma())
            return launch_wide<format, kind, 128, tall, 1>(p, groups, to);
        return launch_tile<format, kind, 128, tall>(p, groups, to);
    case LAUNCH_TILE_64_MMA: return launch_tile<format, kind, 64, tall>(p, groups, to);
    case LAUNCH_TILE_128_MMA: return launch_tile<format, kind, 128, tall>(p, groups, to);
    default: return -1;
    }
    return -1;
}

static inline void launch_matrix(struct product *p, const struct cuda_matrix *w)
{
    const struct layout l = layout_of(w->type, w->rows, w->columns);
    p->weights = w->data;
    p->matrix_bytes = l.matrix_bytes;
    p->row_scales_at = l.row_scales_at;
    p->rows = w->rows;
    p->tiles = l.tiles;
    p->columns = w->columns;
    p->chunks = l.chunks;
    p->part_chunks = l.part_chunks;
}

#endif
