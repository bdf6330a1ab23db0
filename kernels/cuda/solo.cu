/*
 * solo: launches the kernels of solo.cuh, the products of a step of one token on Hopper.
 *
 * Stages and CTAs are what was fastest on an H100: few bytes of shared memory leave room for the kernels
 * behind, which bring their weights before their turn. With weights that stay in the L2 for as long as
 * others a token took 64 µs more. Items of gate and up that go to whichever CTA is free, and the squares
 * loaded beside the router's sums: 16 µs less. To bring the next layer's QKV into the L2 during the attention cost 62.
 *
 * Bytes: as the products of many rows; what is saved is the time between kernels, three of which
 * (norms, router, sum of the experts) are parts of the four here.
 */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/solo.cuh"

/* One stage of a matrix of so many columns, even of halves, goes into Hopper's 227 KB of shared memory
 * with all else. */
static bool fits(const struct gguf_model *m, uint32_t columns, enum solo_kind kind)
{
    const struct layout l = layout_of(GGUF_F16, LAYOUT_ROWS, columns);
    struct solo p = {};
    p.part_chunks = l.part_chunks;
    p.experts = m->experts;
    p.active = m->active;
    p.stages = 1;
    return solo_shared_of(p, kind, layout_record_bytes(LAYOUT_F16)).bytes <= (227 - 4) * 1024;
}

bool cuda_solo_supports(const struct gguf_model *m)
{
    return launch_has_wgmma() && cuda_starts_early && m->active <= SOLO_ACTIVE &&
           m->hidden <= NORM_MOST && m->experts <= 256 && fits(m, m->hidden, SOLO_GATE_UP) &&
           fits(m, m->heads * m->head_dim, SOLO_OUT) && fits(m, m->expert_ffn, SOLO_DOWN);
}

uint64_t cuda_solo_partial_floats(const struct gguf_model *m)
{
    return (uint64_t)(m->hidden + NORM_UNIT - 1) / NORM_UNIT * (m->experts + 1) + 1;
}

static void matrix(struct solo *p, const struct cuda_matrix *w, const float *bias)
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
    p->bias = bias;
}

/* As many stages as wanted, or as fit; `ctas` of a multiprocessor. */
template <enum layout_format format, enum solo_kind kind, int PARTS>
static int run(struct solo *p, uint32_t stages, uint32_t ctas, bool early, cudaStream_t stream)
{
    static struct launch_fit kept;
    for (p->stages = stages; p->stages; p->stages--) {
        const uint32_t bytes = solo_shared_of(*p, kind, layout_record_bytes(format)).bytes;
        const uint32_t fit =
            launch_ctas(&kept, (const void *)solo_kernel<format, kind, PARTS>, bytes);
        if (fit == 0)
            continue;
        const uint32_t items = p->tiles * (kind == SOLO_GATE_UP ? p->active : 1);
        uint32_t grid = ctas * LAUNCH_PROCESSORS < fit ? ctas * LAUNCH_PROCESSORS : fit;
        grid = items < grid ? items : grid;
        return cuda_launch_when(early, solo_kernel<format, kind, PARTS>, dim3(grid),
                                SOLO_WARPS * 32, bytes, stream, *p);
    }
    cudaGetLastError();
    return -1;
}

template <enum solo_kind kind, int PARTS>
static int run_format(enum gguf_type type, struct solo *p, uint32_t stages, uint32_t ctas,
                      bool early, cudaStream_t stream)
{
    switch (layout_format_of(type)) {
    case LAYOUT_FP4: return run<LAYOUT_FP4, kind, PARTS>(p, stages, ctas, early, stream);
    case LAYOUT_I8: return run<LAYOUT_I8, kind, PARTS>(p, stages, ctas, early, stream);
    case LAYOUT_F16: return run<LAYOUT_F16, kind, PARTS>(p, stages, ctas, early, stream);
    }
    return -1;
}

template <enum solo_kind kind>
static int run_any(enum gguf_type type, struct solo *p, uint32_t stages, uint32_t ctas, bool early,
                   cudaStream_t stream)
{
    if (norm_parts(p->hidden) <= 3)
        return run_format<kind, 3>(type, p, stages, ctas, early, stream);
    return run_format<kind, NORM_PARTS>(type, p, stages, ctas, early, stream);
}

static struct solo begin(const struct cuda_solo *s)
{
    struct solo p = {};
    p.x = s->x;
    p.eps = s->model->norm_eps;
    p.partial = s->partial;
    p.hidden = s->model->hidden;
    p.experts = s->model->experts;
    p.active = s->model->active;
    p.alpha = s->model->swiglu_alpha;
    p.limit = s->model->swiglu_limit;
    p.act = s->act;
    p.choice = s->choice;
    p.choice_weight = s->choice_weight;
    return p;
}

int cuda_solo_qkv(const struct cuda_solo *s, const struct cuda_layer *l, bool early,
                  cudaStream_t stream)
{
    struct solo p = begin(s);
    for (uint32_t i = 0, row = 0; i < l->n_qkv; row += l->qkv[i++].rows) {
        matrix(&p, &l->qkv[i], l->qkv_bias + row);
        p.norm = l->attn_norm;
        p.y = s->qkv[i];
        if (run_any<SOLO_QKV>(l->qkv[i].type, &p, 1, 3, early, stream))
            return -1;
    }
    return 0;
}

int cuda_solo_out(const struct cuda_solo *s, const struct cuda_layer *l, cudaStream_t stream)
{
    struct solo p = begin(s);
    matrix(&p, &l->out, l->out_bias);
    p.in = s->attended;
    p.norm = l->ffn_norm;
    p.router = l->router;
    return run_any<SOLO_OUT>(l->out.type, &p, 1, 2, true, stream);
}

int cuda_solo_experts(const struct cuda_solo *s, const struct cuda_layer *l, cudaStream_t stream)
{
    struct solo p = begin(s);
    p.router_bias = l->router_bias;
    p.step = s->step;
    p.forced = l->forced;
    p.norm = l->ffn_norm;
    matrix(&p, &l->gate_up, l->gate_up_bias);
    if (p.tiles * p.active < 1u << SOLO_PLACE_BITS && !(cuda_variant & CUDA_VARIANT_SERIAL))
        p.dealt = (uint32_t *)(p.partial + cuda_solo_partial_floats(s->model) - 1);
    /* One stage: what is dealt is known a turn ahead. */
    if (run_any<SOLO_GATE_UP>(l->gate_up.type, &p, 1, 3, true, stream))
        return -1;
    matrix(&p, &l->down, l->down_bias);
    p.in = s->act;
    return run_any<SOLO_DOWN>(l->down.type, &p, 2, 2, true, stream);
}
