/*
 * matmul: y[n, rows] (+)= W x[n, columns] + bias[rows]. The contract of matmul.h; kernels in
 * stream.cuh (few columns), wide.cuh and tile.cuh (many; Hopper, others), the same bits from all.
 *
 * Bytes: the matrix once (rows · columns · 4.25, 8.5 or 16 bits), x and y. FLOPs: 2 · n · rows · columns.
 */
#include "kernels/cuda/matmul.h"

#include "kernels/cuda/launch.cuh"

static uint64_t waves(uint64_t items, uint64_t at_once)
{
    return (items + at_once - 1) / at_once;
}

/* By times measured on an H100, in ns: `stream` of 16 columns takes 8500 and 0.3 for each tile and
 * chunk, a wave of `wide` for each chunk 490 (64 columns, one CTA on a multiprocessor), 810 (two) or
 * 690 (128 columns); with a
 * cluster for each item 4000 and 1500; 430 with 32 columns, in one wave. */
static enum launch_shape shape_for(enum layout_format format, const struct product *p, uint32_t n)
{
    if (n <= 8)
        return LAUNCH_STREAM_8;
    if (n <= 64 && launch_has_wgmma()) {
        const enum launch_shape shape = n <= 16   ? LAUNCH_PARTS_16
                                        : n <= 32 ? LAUNCH_PARTS_32
                                                  : LAUNCH_PARTS_64;
        if (cuda_parts_fit(format, p, launch_width(shape)))
            return shape;
    }
    if (n <= 16)
        return LAUNCH_STREAM_16;
    const uint64_t items = (p->tiles + TILE_TILES - 1) / TILE_TILES;
    const uint64_t items64 = items * ((n + 63) / 64), items128 = items * ((n + 127) / 128);
    const uint64_t stream16 = 8500 + (uint64_t)((n + 15) / 16) * p->tiles * p->chunks * 3 / 10;
    const uint64_t wide64 = items64 <= LAUNCH_PROCESSORS
                                ? p->chunks * 490ull
                                : waves(items64, 2 * LAUNCH_PROCESSORS) * p->chunks * 810;
    const uint64_t wide128 = waves(items128, LAUNCH_PROCESSORS) * p->chunks * 690;
    const uint64_t parts = (p->chunks + p->part_chunks - 1) / p->part_chunks;
    const uint64_t split64 =
        4000 + waves(items64 * parts, 2 * LAUNCH_PROCESSORS) * p->part_chunks * 1500;
    const uint64_t wide32 =
        items * ((n + 31) / 32) <= LAUNCH_PROCESSORS ? p->chunks * 430ull : UINT64_MAX;
    if (wide32 <= split64 && wide32 <= stream16 && wide32 <= wide64 && wide32 <= wide128)
        return LAUNCH_TILE_32;
    if (items64 * parts <= 4 * LAUNCH_PROCESSORS && split64 <= stream16 && split64 <= wide64 &&
        split64 <= wide128)
        return LAUNCH_SPLIT_64;
    if (stream16 <= wide64 && stream16 <= wide128)
        return LAUNCH_STREAM_16;
    return wide64 <= wide128 ? LAUNCH_TILE_64 : LAUNCH_TILE_128;
}

static int launch_shaped(enum gguf_type type, const struct product *p, enum launch_shape shape,
                         cudaStream_t stream)
{
    const uint32_t groups = (p->n + launch_width(shape) - 1) / launch_width(shape);
    if (shape >= LAUNCH_PARTS_16)
        return cuda_parts_run(layout_format_of(type), p, shape, stream);
    switch (layout_format_of(type)) {
    case LAYOUT_FP4: return launch_product<LAYOUT_FP4, PRODUCT_LINEAR>(p, shape, groups, stream);
    case LAYOUT_I8: return launch_product<LAYOUT_I8, PRODUCT_LINEAR>(p, shape, groups, stream);
    case LAYOUT_F16: return launch_product<LAYOUT_F16, PRODUCT_LINEAR>(p, shape, groups, stream);
    }
    return -1;
}

int cuda_linear_shaped(const struct cuda_matrix *w, const float *bias, const __half *x, float *y,
                       uint32_t n, bool add, int shape, cudaStream_t stream)
{
    if (n == 0)
        return 0;
    struct product p = {};
    launch_matrix(&p, w);
    p.x = x;
    p.bias = bias;
    p.y = y;
    p.n = n;
    p.add = add;
    p.once = true;
    enum launch_shape chosen =
        shape < 0 ? shape_for(layout_format_of(w->type), &p, n) : (enum launch_shape)shape;
    if (chosen >= LAUNCH_EXPERTS_8 && (chosen < LAUNCH_PARTS_16 || !launch_has_wgmma()))
        chosen = launch_instead(chosen);
    if (launch_shaped(w->type, &p, chosen, stream) == 0)
        return 0;
    /* `stream` wants more shared memory than some devices before Hopper have. */
    if (shape < 0 && chosen < LAUNCH_TILE_16)
        return launch_shaped(w->type, &p, LAUNCH_TILE_64, stream);
    return -1;
}

int cuda_linear(const struct cuda_matrix *w, const float *bias, const __half *x, float *y,
                uint32_t n, bool add, void *scratch, cudaStream_t stream)
{
    (void)scratch;
    return cuda_linear_shaped(w, bias, x, y, n, add, -1, stream);
}
