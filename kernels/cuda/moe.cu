/*
 * moe: residual[n, hidden] += Σ_j weight[n, j] · (down_e · swiglu(gate_e x + b, up_e x + b) + b), e =
 * choice[n, j]. Three or four kernels:
 *
 *   sort      pairs (token, j) by expert, in the order of the pairs; groups of `width` pairs of one
 *             expert. One CTA. Left out for up to 32 pairs, which each warp groups by itself, and
 *             where experts.cu does it
 *   gate_up   act[pair, ffn], half; SwiGLU as the sums are stored (gate and up rows meet in a lane)
 *   down      y[pair, hidden], f32, bias added
 *   combine   residual += ((w0 y0 + w1 y1) + w2 y2) + w3 y3; a thread an element
 *
 * A pair's result depends neither on its place nor on its group: columns of an mma do not influence
 * one another. Bytes: the matrices of the experts that were chosen, once.
 */
#include "kernels/cuda/matmul.h"

#include "kernels/cuda/launch.cuh"

#define SORT_THREADS 1024
#define SORT_WARPS   (SORT_THREADS / 32)

/* Where things lie in scratch. */
struct places {
    __half *act;                  /* [n · active, ffn] */
    float *y;                     /* [n · active, hidden] */
    uint32_t *pairs;              /* [n · active] */
    struct product_group *groups; /* [groups] */
    uint32_t *n_groups;
    size_t bytes;
};

static size_t aligned(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

/* Groups of pairs at most: each expert may leave one that is not full. */
static uint32_t groups_at_most(const struct cuda_moe *moe, uint32_t n, uint32_t width)
{
    const uint32_t n_pairs = n * moe->active;
    const uint32_t chosen = n_pairs < moe->experts ? n_pairs : moe->experts;
    return n_pairs / width + chosen;
}

static struct places places_of(const struct cuda_moe *moe, uint32_t n, void *scratch)
{
    struct places s;
    const size_t n_pairs = (size_t)n * moe->active;
    size_t act = 0, y = act + aligned(n_pairs * moe->ffn * sizeof(__half));
    size_t pairs = y + aligned(n_pairs * moe->hidden * sizeof(float));
    size_t groups = pairs + aligned(n_pairs * sizeof(uint32_t));
    size_t count = groups + aligned(groups_at_most(moe, n, LAUNCH_FEW) * sizeof *s.groups);
    unsigned char *const at = (unsigned char *)scratch;
    s.act = (__half *)(at + act);
    s.y = (float *)(at + y);
    s.pairs = (uint32_t *)(at + pairs);
    s.groups = (struct product_group *)(at + groups);
    s.n_groups = (uint32_t *)(at + count);
    s.bytes = count + 256;
    return s;
}

float *cuda_moe_parts(const struct cuda_moe *moe, uint32_t n, void *scratch)
{
    return places_of(moe, n, scratch).y;
}

size_t cuda_matmul_scratch_bytes(const struct cuda_moe *moe, uint32_t n)
{
    return places_of(moe, n, NULL).bytes;
}

/* A counting sort that keeps the order of the pairs; choice[p] is the expert of pair p. */
static __global__ void __launch_bounds__(SORT_THREADS)
    sort(const int32_t *choice, uint32_t n_pairs, uint32_t experts, uint32_t width, uint32_t *pairs,
         struct product_group *groups, uint32_t *n_groups)
{
    extern __shared__ uint32_t counts[];
    uint32_t *const next = counts;              /* [experts]: count, then place of the next */
    uint32_t *const of_warp = counts + experts; /* [SORT_WARPS][experts] */
    const uint32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5;

    ptx_launch_next();
    ptx_wait_previous();
    for (uint32_t i = threadIdx.x; i < experts * (SORT_WARPS + 1); i += SORT_THREADS)
        counts[i] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n_pairs; i += SORT_THREADS)
        atomicAdd(&next[choice[i]], 1u);
    __syncthreads();

    for (uint32_t e0 = 0; e0 < experts; e0 += SORT_THREADS) {
        const uint32_t e = e0 + threadIdx.x;
        if (e < experts) {
            uint32_t first = 0, group = 0;
            for (uint32_t i = 0; i < e; i++) {
                first += next[i];
                group += (next[i] + width - 1) / width;
            }
            const uint32_t count = next[e];
            of_warp[e] = first;
            for (uint32_t i = 0; i < count; i += width)
                groups[group++] = {e, first + i, min(width, count - i), 0};
            if (e == experts - 1)
                *n_groups = group;
        }
    }
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < experts; e += SORT_THREADS) {
        next[e] = of_warp[e];
        of_warp[e] = 0;
    }
    __syncthreads();

    for (uint32_t begin = 0; begin < n_pairs; begin += SORT_THREADS) {
        const uint32_t pair = begin + threadIdx.x;
        const uint32_t e = pair < n_pairs ? (uint32_t)choice[pair] : ~0u;
        const uint32_t same = __match_any_sync(0xffffffff, e);
        const uint32_t before = (uint32_t)__popc(same & ((1u << lane) - 1));
        if (e != ~0u && before == 0)
            of_warp[warp * experts + e] = (uint32_t)__popc(same);
        __syncthreads();
        if (e != ~0u) {
            uint32_t place = next[e] + before;
            for (uint32_t w = 0; w < warp; w++)
                place += of_warp[w * experts + e];
            pairs[place] = pair;
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < experts; i += SORT_THREADS) {
            uint32_t sum = 0;
            for (uint32_t w = 0; w < SORT_WARPS; w++) {
                sum += of_warp[w * experts + i];
                of_warp[w * experts + i] = 0;
            }
            next[i] += sum;
        }
        __syncthreads();
    }
}

static __global__ void combine(const float *y, const float *weight, float *residual,
                               uint32_t active, uint32_t hidden)
{
    const size_t token = blockIdx.y;
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    ptx_launch_next();
    ptx_wait_previous();
    if (i >= hidden)
        return;
    float sum = 0.0f;
    for (uint32_t j = 0; j < active; j++) {
        const float v = __fmul_rn(weight[token * active + j], y[(token * active + j) * hidden + i]);
        sum = j ? __fadd_rn(sum, v) : v;
    }
    residual[token * hidden + i] = __fadd_rn(residual[token * hidden + i], sum);
}

static enum launch_shape shape_for(const struct cuda_moe *moe, uint32_t n)
{
    /* Pairs of an expert if all are chosen alike. experts.cu says what was measured. */
    const uint32_t each = n * moe->active / moe->experts;
    if (n <= 8)
        return LAUNCH_STREAM_8;
    return each <= 3     ? LAUNCH_EXPERTS_8
           : each <= 10  ? LAUNCH_EXPERTS_16
           : each <= 16  ? LAUNCH_EXPERTS_24
           : each <= 768 ? LAUNCH_TILE_64
                         : LAUNCH_TILE_128;
}

static bool experts_fit(const struct cuda_moe *moe, enum launch_shape shape, uint32_t n)
{
    const struct cuda_matrix *const matrices[2] = {moe->gate_up, moe->down};
    for (int i = 0; i < 2; i++)
        if (!cuda_experts_fit(layout_format_of(matrices[i]->type), shape,
                              (matrices[i]->columns + LAYOUT_CHUNK - 1) / LAYOUT_CHUNK,
                              moe->experts, n * moe->active))
            return false;
    return true;
}

template <enum product_kind kind>
static int product_of(const struct cuda_matrix *w, const struct product *p, enum launch_shape shape,
                      uint32_t groups, cudaStream_t to)
{
    if (shape >= LAUNCH_EXPERTS_8) /* groups: experts */
        return cuda_experts_run(layout_format_of(w->type), kind, p, shape, groups, to);
    switch (layout_format_of(w->type)) {
    case LAYOUT_FP4: return launch_product<LAYOUT_FP4, kind>(p, shape, groups, to);
    case LAYOUT_I8: return launch_product<LAYOUT_I8, kind>(p, shape, groups, to);
    case LAYOUT_F16: return launch_product<LAYOUT_F16, kind>(p, shape, groups, to);
    }
    return -1;
}

int cuda_moe_run_shaped(const struct cuda_moe *moe, const __half *x, const int32_t *choice,
                        const float *weight, float *residual, uint32_t n, void *scratch, int chosen,
                        cudaStream_t stream)
{
    if (n == 0)
        return 0;
    enum launch_shape shape = chosen < 0 ? shape_for(moe, n) : (enum launch_shape)chosen;
    if (shape >= LAUNCH_EXPERTS_8 && !experts_fit(moe, shape, n))
        shape = launch_instead(shape);
    const bool by_experts = shape >= LAUNCH_EXPERTS_8;
    const uint32_t most = shape == LAUNCH_STREAM_8 ? LAUNCH_FEW : launch_width(shape);
    const uint32_t width = shape < LAUNCH_TILE_16 && n < most ? n : most;
    const uint32_t n_pairs = n * moe->active;
    const struct places at = places_of(moe, n, scratch);
    const bool sorted = !by_experts && (n_pairs > 32 || shape >= LAUNCH_TILE_16);
    const uint32_t groups = by_experts ? moe->experts : groups_at_most(moe, n, width);
    if (sorted) {
        const uint32_t bytes = moe->experts * (SORT_WARPS + 1) * (uint32_t)sizeof(uint32_t);
        static struct launch_fit kept;
        if (launch_ctas(&kept, (const void *)sort, bytes) == 0)
            return -1;
        if (cuda_launch(sort, dim3(1), SORT_THREADS, bytes, stream, choice, n_pairs, moe->experts,
                        width, at.pairs, at.groups, at.n_groups))
            return -1;
    }

    struct product p = {};
    launch_matrix(&p, moe->gate_up);
    p.x = x;
    p.bias = moe->gate_up_bias;
    p.act = at.act;
    p.n = n;
    p.choice = choice;
    p.groups = sorted ? at.groups : NULL;
    p.n_groups = at.n_groups;
    p.pairs = at.pairs;
    p.active = moe->active;
    p.active_inverse = (uint32_t)(((1ull << 32) + moe->active - 1) / moe->active);
    p.alpha = moe->alpha;
    p.limit = moe->limit;
    if (product_of<PRODUCT_GATE_UP>(moe->gate_up, &p, shape, groups, stream))
        return -1;
    launch_matrix(&p, moe->down);
    p.x = at.act;
    p.bias = moe->down_bias;
    p.y = at.y;
    if (product_of<PRODUCT_DOWN>(moe->down, &p, shape, groups, stream))
        return -1;
    if (residual == NULL)
        return 0;
    return cuda_launch(combine, dim3((moe->hidden + 255) / 256, n), 256, 0, stream,
                       (const float *)at.y, weight, residual, moe->active, moe->hidden);
}

int cuda_moe_run(const struct cuda_moe *moe, const __half *x, const int32_t *choice,
                 const float *weight, float *residual, uint32_t n, void *scratch,
                 cudaStream_t stream)
{
    return cuda_moe_run_shaped(moe, x, choice, weight, residual, n, scratch, -1, stream);
}
