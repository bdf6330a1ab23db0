#include "kernels/host/host.h"

/* One function says where everything lies. Without memory it measures (the footprint); with memory it
 * also sets the pointers: so what was planned and what is taken cannot differ. */

struct arena {
    unsigned char *base; /* NULL: measure */
    uint64_t used;
    bool overflow;
};

static void *take(struct arena *arena, uint64_t rows, uint64_t columns, uint64_t size)
{
    uint64_t n, bytes, end;
    if (__builtin_mul_overflow(rows, columns, &n) || __builtin_mul_overflow(n, size, &bytes) ||
        bytes > UINT64_MAX / 4) {
        arena->overflow = true;
        return NULL;
    }
    uint64_t begin = (arena->used + 63) / 64 * 64;
    if (__builtin_add_overflow(begin, bytes, &end) || end > UINT64_MAX / 4) {
        arena->overflow = true;
        return NULL;
    }
    arena->used = end;
    return arena->base ? arena->base + begin : NULL;
}

#define TAKE(arena, type, rows, columns) ((type *)take(arena, rows, columns, sizeof(type)))

static void lay_out_lane(struct arena *a, struct host_stage *stage, struct host_lane *lane)
{
    const struct kernels_stage_options *o = &stage->base.options;
    uint32_t hidden = stage->base.model->hidden;
    if (!stage->base.embeds)
        lane->input = TAKE(a, float, o->step_tokens, hidden);
    else
        lane->tokens = TAKE(a, int32_t, o->step_tokens, 1);
    lane->sampled = TAKE(a, int32_t, o->step_samples, 1);
    if (!stage->base.samples) {
        lane->output = TAKE(a, float, o->step_tokens, hidden);
    } else {
        lane->samples = TAKE(a, struct kernels_sample, o->step_samples, 1);
        if (stage->base.cut)
            lane->picked = TAKE(a, float, o->step_samples, hidden);
        if (o->keep_logits)
            lane->logits = TAKE(a, float, o->step_samples, stage->base.model->vocabulary);
    }
    lane->rows = TAKE(a, struct kernels_row, o->step_rows, 1);
    if (stage->base.has_full)
        lane->full_given = TAKE(a, uint32_t, stage->given_capacity, 1);
    if (stage->base.has_window)
        lane->window_given = TAKE(a, uint32_t, stage->given_capacity, 1);
    lane->ring_slots = TAKE(a, uint32_t, o->step_samples, 1);
}

static void lay_out_head(struct arena *a, struct host_stage *stage)
{
    const struct kernels_stage_options *o = &stage->base.options;
    const struct gguf_model *m = stage->base.model;
    bool whole = stage->base.samples && !stage->base.cut;
    uint32_t rows = o->step_samples < HOST_HEAD_ROWS ? o->step_samples : HOST_HEAD_ROWS;
    stage->sample_h = TAKE(a, float, rows, host_padded(m->hidden));
    if (whole)
        stage->sample_x = TAKE(a, float, rows, m->hidden);
    if (!whole || !o->keep_logits)
        stage->logits = TAKE(a, float, rows, o->head_count);
    if (stage->base.samples) {
        stage->sample_scratch_bytes = (kernels_sample_scratch_bytes(m->vocabulary) + 63) / 64 * 64;
        stage->sample_scratch = TAKE(a, unsigned char, stage->threads, stage->sample_scratch_bytes);
    }
    if (whole)
        return;
    if (stage->base.cut)
        stage->whole_row = TAKE(a, float, stage->threads, m->vocabulary);
    stage->jobs = TAKE(a, struct host_job, o->head_jobs, 1);
    for (uint32_t i = 0; i < o->head_jobs; i++) {
        struct host_job measured, *job = stage->jobs ? &stage->jobs[i] : &measured;
        if (!stage->base.cut)
            job->input = TAKE(a, float, rows, m->hidden);
        for (uint32_t p = 0; p < (stage->base.cut ? o->n_head_parts : 1); p++)
            job->replies[p] =
                TAKE(a, unsigned char, 1,
                     kernels_reply_bytes(stage->base.cut ? o->head_parts[p] : o->head_count, rows,
                                         rows));
    }
    stage->heads.size = 2 * o->head_jobs;
    stage->heads.entries = take(a, stage->heads.size, 1, sizeof *stage->heads.entries);
}

static void lay_out_activations(struct arena *a, struct host_stage *stage)
{
    const struct kernels_stage_options *o = &stage->base.options;
    const struct gguf_model *m = stage->base.model;
    uint64_t q_width = (uint64_t)m->heads * m->head_dim;
    uint64_t kv_width = (uint64_t)m->kv_heads * m->head_dim;
    uint64_t tokens = o->step_tokens, pairs = tokens * m->active;

    if (stage->base.samples)
        stage->x = TAKE(a, float, tokens, m->hidden);
    stage->h = TAKE(a, float, tokens, host_padded(m->hidden));
    stage->q = TAKE(a, float, tokens, q_width);
    stage->k = TAKE(a, float, tokens, kv_width);
    stage->v = TAKE(a, float, tokens, kv_width);
    stage->attended = TAKE(a, float, tokens, host_padded((uint32_t)q_width));
    stage->router = TAKE(a, float, tokens, m->experts);
    stage->chosen = TAKE(a, uint32_t, tokens, m->active);
    stage->chosen_weight = TAKE(a, float, tokens, m->active);
    stage->unit = TAKE(a, float, pairs, host_padded(m->expert_ffn));
    stage->part = TAKE(a, float, pairs, m->hidden);
    stage->pairs = TAKE(a, uint32_t, pairs, 1);
    stage->packed = take(a, o->layer_count, HOST_PACKED, sizeof *stage->packed[0]);
    stage->begin = TAKE(a, uint32_t, 2 * (uint64_t)m->experts + 1, 1);
    stage->sequences = TAKE(a, struct host_sequence, o->step_rows, 1);
    stage->tiles = TAKE(a, struct host_tile, tokens, 1);
    if (o->head_count)
        lay_out_head(a, stage);
    uint32_t columns = m->hidden > m->expert_ffn ? m->hidden : m->expert_ffn;
    if (q_width > columns)
        columns = (uint32_t)q_width;
    stage->context.scratch_bytes =
        stage->table->scratch_bytes(columns, m->heads / m->kv_heads, m->head_dim);
    stage->context.scratch = TAKE(a, unsigned char, stage->threads, stage->context.scratch_bytes);
    stage->context.fast = stage->fast;
    if (!stage->table->quantised_bytes)
        return;
    uint64_t rows = tokens > HOST_HEAD_ROWS ? tokens : HOST_HEAD_ROWS;
    stage->context.quantised =
        TAKE(a, unsigned char, rows, stage->table->quantised_bytes(columns, stage->fast));
    stage->context.quantised_units =
        TAKE(a, unsigned char, pairs, stage->table->quantised_bytes(m->expert_ffn, stage->fast));
}

static void lay_out_tables(struct arena *a, struct host_stage *stage)
{
    const struct kernels_stage_options *o = &stage->base.options;
    const struct gguf_model *m = stage->base.model;
    if (stage->base.has_full)
        stage->full_table = TAKE(a, uint32_t, o->slots, stage->base.table_entries);
    if (stage->base.has_window)
        stage->window_table = TAKE(a, uint32_t, o->slots, stage->base.table_entries);
    stage->full_count = TAKE(a, uint32_t, o->slots, 1);
    stage->window_count = TAKE(a, uint32_t, o->slots, 1);
    stage->slot_token = TAKE(a, int32_t, o->slots, 1);
    stage->cosine = TAKE(a, float, o->context, m->head_dim / 2);
    stage->sine = TAKE(a, float, o->context, m->head_dim / 2);
    stage->steps.size = 2 * o->lanes;
    stage->steps.entries = take(a, stage->steps.size, 1, sizeof *stage->steps.entries);
}

static void add_bytes(void *arg, const struct gguf_tensor *tensor)
{
    ((struct host_stage *)arg)->weights_bytes += tensor->bytes;
}

static void add_packed(void *arg, const struct gguf_tensor *tensor, uint32_t layer, size_t slot)
{
    struct host_stage *stage = arg;
    uint64_t bytes = host_packed_bytes(stage, tensor);
    bool tied = layer == stage->base.options.layer_count && stage->base.embeds &&
                stage->base.model->output == stage->base.model->embedding;
    (void)slot;
    if (bytes)
        stage->weights_bytes += bytes - (tied ? 0 : tensor->bytes); /* tied: beside the embedding */
    stage->packed_bytes += bytes;
}

int host_layout(struct host_stage *stage)
{
    const struct kernels_stage_options *o = &stage->base.options;
    const struct gguf_model *m = stage->base.model;
    struct arena arena = {.base = stage->memory};

    stage->lanes = TAKE(&arena, struct host_lane, o->lanes, 1);
    for (uint32_t i = 0; i < o->lanes; i++) {
        struct host_lane measured;
        lay_out_lane(&arena, stage, stage->lanes ? &stage->lanes[i] : &measured);
    }
    lay_out_activations(&arena, stage);
    lay_out_tables(&arena, stage);
    stage->activation_bytes = arena.used;

    struct arena pools = {.base = stage->kv_memory};
    uint64_t block_bytes = 2 * (uint64_t)m->kv_heads * m->head_dim;
    if (__builtin_mul_overflow(block_bytes, o->block_tokens * host_kv_element_bytes(o->kv_type),
                               &block_bytes))
        return -1;
    stage->weights_bytes = stage->packed_bytes = 0;
    host_layout_weights(stage, add_bytes, stage);
    host_repack_each(stage, add_packed, stage);
    stage->kv = TAKE(&arena, struct host_kv, o->layer_count, 1);
    stage->activation_bytes = arena.used;
    stage->kv_bytes = 0;
    for (uint32_t i = 0; i < o->layer_count; i++) {
        bool sliding = m->layers[o->layer_first + i].sliding;
        uint64_t bytes;
        if (__builtin_mul_overflow(block_bytes, sliding ? o->window_blocks : o->full_blocks,
                                   &bytes) ||
            bytes > UINT64_MAX / 4 - stage->kv_bytes)
            return -1;
        if (stage->kv)
            stage->kv[i] = (struct host_kv){
                .base = pools.base ? pools.base + stage->kv_bytes : NULL,
                .block_bytes = block_bytes,
                .type = o->kv_type,
                .block_tokens = o->block_tokens,
                .kv_heads = m->kv_heads,
                .head_dim = m->head_dim,
            };
        stage->kv_bytes += bytes;
    }
    return arena.overflow || pools.overflow ? -1 : 0;
}

void host_layout_weights(const struct host_stage *stage,
                         void (*each)(void *arg, const struct gguf_tensor *tensor), void *arg)
{
    const struct gguf_model *m = stage->base.model;
    const struct kernels_stage_options *o = &stage->base.options;
    for (uint32_t i = 0; i < o->layer_count; i++) {
        const struct gguf_layer *l = &m->layers[o->layer_first + i];
        const struct gguf_tensor *const tensors[] = {
            l->attn_norm,       l->attn_q.weight, l->attn_q.bias, l->attn_k.weight,
            l->attn_k.bias,     l->attn_v.weight, l->attn_v.bias, l->sinks,
            l->attn_out.weight, l->attn_out.bias, l->ffn_norm,    l->router.weight,
            l->router.bias,     l->gate.weight,   l->gate.bias,   l->up.weight,
            l->up.bias,         l->down.weight,   l->down.bias,
        };
        for (size_t t = 0; t < sizeof tensors / sizeof *tensors; t++)
            each(arg, tensors[t]);
    }
    if (stage->base.embeds)
        each(arg, m->embedding);
    if (o->head_count) {
        each(arg, m->output_norm);
        if (!stage->base.embeds || m->output != m->embedding)
            each(arg, &stage->head);
    }
}

void host_stage_prepare(struct host_stage *stage, const struct host_device *device,
                        const struct gguf_model *model, const struct kernels_stage_options *options)
{
    *stage = (struct host_stage){
        .base =
            {
                .model = model,
                .options = *options,
                .table_entries =
                    (options->context + options->block_tokens - 1) / options->block_tokens,
                .embeds = options->layer_first == 0,
                .samples = kernels_is_last(model, options) && options->head_count,
            },
        .table = device->table,
        .threads = device->threads,
        .fast = device->fast,
        .head = *model->output,
    };
    stage->base.cut = stage->base.samples && options->n_head_parts;
    stage->head.data += options->head_first * stage->head.row_bytes;
    stage->head.bytes = options->head_count * stage->head.row_bytes;
    stage->head.ne[1] = options->head_count;
    for (uint32_t i = 0; i < options->layer_count; i++) {
        if (model->layers[options->layer_first + i].sliding)
            stage->base.has_window = true;
        else
            stage->base.has_full = true;
    }
    uint32_t rows = options->step_rows < options->slots ? options->step_rows : options->slots;
    stage->given_capacity = (uint64_t)rows * stage->base.table_entries;
}
