#include "kernels/host/host.h"

#include <stdio.h>
#include <string.h>

/* One step on the stream: the model's layers over all tokens of the step, then the head over the rows
 * that are sampled. */

struct host_matrix host_head_matrix(const struct host_stage *stage)
{
    return (struct host_matrix){
        .type = stage->head.type,
        .rows = (uint32_t)stage->head.ne[1],
        .columns = (uint32_t)stage->head.ne[0],
        .data = stage->head.data,
        .row_bytes = stage->head.row_bytes,
        .packed = stage->packed_head,
    };
}

static struct host_matrix matrix_of(const struct gguf_linear *linear, const unsigned char *packed)
{
    return (struct host_matrix){
        .type = linear->weight->type,
        .rows = (uint32_t)linear->weight->ne[1],
        .columns = (uint32_t)linear->weight->ne[0],
        .data = linear->weight->data,
        .row_bytes = linear->weight->row_bytes,
        .packed = packed,
        .bias = linear->bias ? (const float *)linear->bias->data : NULL,
    };
}

/* Tensors of type F32 are read in place: host_stage_create has checked their alignment. */
static const float *floats(const struct gguf_tensor *tensor)
{
    return (const float *)tensor->data;
}

/* Entries that have ended are not taken out: nothing looks at them any more. */
static void extend(uint32_t *count, uint32_t *entries, bool restart, const uint32_t *given,
                   uint32_t n_given)
{
    if (restart)
        *count = 0;
    if (n_given)
        memcpy(entries + *count, given, n_given * sizeof *given);
    *count += n_given;
}

static void update_tables(struct host_stage *stage, const struct kernels_step *step)
{
    uint64_t entries = stage->base.table_entries;
    for (uint32_t i = 0; i < step->n_rows; i++) {
        const struct kernels_row *row = &step->rows[i];
        if (stage->base.has_full)
            extend(&stage->full_count[row->slot], stage->full_table + row->slot * entries,
                   row->restart, row->full_given, row->full_given_count);
        if (stage->base.has_window)
            extend(&stage->window_count[row->slot], stage->window_table + row->slot * entries,
                   row->restart, row->window_given, row->window_given_count);
    }
}

static int embed(struct host_stage *stage, struct host_lane *lane, float *x)
{
    const struct gguf_model *m = stage->base.model;
    const struct kernels_step *step = &lane->step;
    uint32_t t = 0;
    for (uint32_t i = 0; i < step->n_rows; i++)
        for (uint32_t end = t + step->rows[i].count; t < end; t++) {
            int32_t token = step->tokens[t];
            if (token == KERNELS_TOKEN_SAMPLED)
                token = stage->slot_token[step->rows[i].slot];
            if (token < 0 || (uint32_t)token >= m->vocabulary) {
                snprintf(lane->error, sizeof lane->error,
                         "row %u continues slot %u with its last sampled token, which is %d: the "
                         "ring brought none",
                         i, step->rows[i].slot, token);
                return -1;
            }
            gguf_to_float(m->embedding->type,
                          m->embedding->data + (uint64_t)token * m->embedding->row_bytes,
                          x + (uint64_t)t * m->hidden, m->hidden);
        }
    return 0;
}

static void run_attention(struct host_stage *stage, const struct kernels_step *step, uint32_t layer,
                          float *x)
{
    const struct gguf_model *m = stage->base.model;
    const struct gguf_layer *l = &m->layers[stage->base.options.layer_first + layer];
    const unsigned char *const *packed = stage->packed[layer];
    const struct host_context *c = &stage->context;
    uint32_t n = step->n_tokens, h_stride = host_padded(m->hidden);
    uint32_t q_width = m->heads * m->head_dim, kv_width = m->kv_heads * m->head_dim;

    stage->table->rmsnorm(c, x, m->hidden, floats(l->attn_norm), n, m->hidden, m->norm_eps,
                          stage->h, h_stride);
    const struct host_product inputs[] = {
        {.matrix = matrix_of(&l->attn_q, packed[HOST_Q]), .y = stage->q, .stride = q_width},
        {.matrix = matrix_of(&l->attn_k, packed[HOST_K]), .y = stage->k, .stride = kv_width},
        {.matrix = matrix_of(&l->attn_v, packed[HOST_V]), .y = stage->v, .stride = kv_width},
    };
    stage->table->linear(c, inputs, 3, stage->h, h_stride, n);

    uint64_t entries = stage->base.table_entries;
    uint32_t first = 0;
    for (uint32_t i = 0; i < step->n_rows; i++) {
        const struct kernels_row *row = &step->rows[i];
        stage->sequences[i] = (struct host_sequence){
            .blocks = (l->sliding ? stage->window_table : stage->full_table) + row->slot * entries,
            .position = row->position,
            .count = row->count,
            .first = first,
        };
        first += row->count;
    }
    const struct host_attention attention = {
        .kv = stage->kv[layer],
        .sequences = stage->sequences,
        .n_sequences = step->n_rows,
        .n_tokens = n,
        .rotation = {.cosine = stage->cosine, .sine = stage->sine},
        .heads = m->heads,
        .window = l->sliding ? m->window : 0,
        .sinks = floats(l->sinks),
        .q = stage->q,
        .k = stage->k,
        .v = stage->v,
        .out = stage->attended,
        .out_stride = host_padded(q_width),
        .tiles = stage->tiles,
    };
    stage->table->store(c, &attention);
    stage->table->attend(c, &attention);
    const struct host_product output = {.matrix = matrix_of(&l->attn_out, packed[HOST_OUT]),
                                        .y = x,
                                        .stride = m->hidden,
                                        .add = true};
    stage->table->linear(c, &output, 1, stage->attended, host_padded(q_width), n);
}

/* For tests: options.experts. */
static void tell_experts(const struct host_stage *stage, const struct kernels_step *step,
                         uint32_t layer)
{
    const struct kernels_stage_options *o = &stage->base.options;
    uint32_t active = stage->base.model->active, t = 0;
    for (uint32_t i = 0; i < step->n_rows; i++)
        for (uint32_t j = 0; j < step->rows[i].count; j++, t++)
            memcpy(o->experts +
                       ((uint64_t)layer * o->context + step->rows[i].position + j) * active,
                   stage->chosen + (uint64_t)t * active, active * sizeof *o->experts);
}

static void run_experts(struct host_stage *stage, const struct kernels_step *step, uint32_t layer,
                        float *x)
{
    uint32_t n = step->n_tokens;
    const struct gguf_model *m = stage->base.model;
    const struct gguf_layer *l = &m->layers[stage->base.options.layer_first + layer];
    const unsigned char *const *packed = stage->packed[layer];
    const struct host_context *c = &stage->context;
    uint32_t h_stride = host_padded(m->hidden);

    stage->table->rmsnorm(c, x, m->hidden, floats(l->ffn_norm), n, m->hidden, m->norm_eps, stage->h,
                          h_stride);
    const struct host_product router = {.matrix = matrix_of(&l->router, packed[HOST_ROUTER]),
                                        .y = stage->router,
                                        .stride = m->experts};
    stage->table->linear(c, &router, 1, stage->h, h_stride, n);
    stage->table->route(c, stage->router, n, m->experts, m->active, stage->chosen,
                        stage->chosen_weight);
    if (stage->base.options.experts)
        tell_experts(stage, step, layer);
    const struct host_moe moe = {
        .n = n,
        .experts = m->experts,
        .active = m->active,
        .gate = matrix_of(&l->gate, packed[HOST_GATE]),
        .up = matrix_of(&l->up, packed[HOST_UP]),
        .down = matrix_of(&l->down, packed[HOST_DOWN]),
        .alpha = m->swiglu_alpha,
        .limit = m->swiglu_limit,
        .h = stage->h,
        .h_stride = h_stride,
        .chosen = stage->chosen,
        .weight = stage->chosen_weight,
        .x = x,
        .unit = stage->unit,
        .part = stage->part,
        .pairs = stage->pairs,
        .begin = stage->begin,
        .used = stage->begin + m->experts + 1,
    };
    stage->table->moe(c, &moe);
}

/* Sampling of some rows whose logits are there; one task a row. */
struct sampling {
    struct host_stage *stage;
    const float *logits; /* [n, head_count] */
    struct kernels_sample *samples;
    int32_t *sampled;
    const struct kernels_row *row[HOST_HEAD_ROWS];
    uint32_t position[HOST_HEAD_ROWS];
};

static void sample_row(void *arg, uint32_t i, uint32_t thread)
{
    struct sampling *s = arg;
    const struct kernels_stage_options *o = &s->stage->base.options;
    kernels_sample(s->logits + (uint64_t)i * o->head_count, o->head_count, o->vocabulary_limit,
                   s->row[i], s->position[i], &s->samples[i],
                   s->stage->sample_scratch + thread * s->stage->sample_scratch_bytes);
    s->sampled[i] = s->samples[i].token;
}

static void run_head(struct host_stage *stage, struct host_lane *lane, const float *x)
{
    const struct gguf_model *m = stage->base.model;
    const struct kernels_stage_options *o = &stage->base.options;
    const struct host_context *c = &stage->context;
    const struct kernels_step *step = &lane->step;
    const struct host_matrix head = host_head_matrix(stage);
    uint32_t h_stride = host_padded(m->hidden);
    uint32_t row = 0, token = 0, t = 0; /* token: of the row; t: of the step */
    for (uint32_t done = 0; done < step->n_samples;) {
        struct sampling s = {.stage = stage};
        uint32_t n = 0;
        while (n < HOST_HEAD_ROWS && done + n < step->n_samples) {
            const struct kernels_row *r = &step->rows[row];
            if (token == r->count) {
                row++;
                token = 0;
                continue;
            }
            if (token >= r->sample_from) {
                memcpy(stage->sample_x + (uint64_t)n * m->hidden, x + (uint64_t)t * m->hidden,
                       m->hidden * sizeof *x);
                s.row[n] = r;
                s.position[n] = r->position + token;
                n++;
            }
            token++;
            t++;
        }
        float *logits =
            o->keep_logits ? lane->logits + (uint64_t)done * o->head_count : stage->logits;
        stage->table->rmsnorm(c, stage->sample_x, m->hidden, floats(m->output_norm), n, m->hidden,
                              m->norm_eps, stage->sample_h, h_stride);
        const struct host_product product = {.matrix = head, .y = logits, .stride = o->head_count};
        stage->table->linear(c, &product, 1, stage->sample_h, h_stride, n);
        s.logits = logits;
        s.samples = lane->samples + done;
        s.sampled = lane->sampled + done;
        stage->table->run(c, n, sample_row, &s);
        done += n;
    }
}

/* Where the head is cut the step ends with the rows that pass it. */
static void pick_rows(const struct host_stage *stage, struct host_lane *lane, const float *x)
{
    const struct kernels_step *step = &lane->step;
    uint64_t hidden = stage->base.model->hidden, t = 0;
    float *to = lane->picked;
    for (uint32_t i = 0; i < step->n_rows; t += step->rows[i++].count) {
        uint64_t from = step->rows[i].sample_from, n = step->rows[i].count - from;
        memcpy(to, x + (t + from) * hidden, n * hidden * sizeof *x);
        to += n * hidden;
    }
}

int host_step_run(struct host_stage *stage, struct host_lane *lane)
{
    const struct gguf_model *m = stage->base.model;
    const struct kernels_step *step = &lane->step;
    float *x = stage->base.samples ? stage->x : lane->output;
    update_tables(stage, step);
    if (stage->base.embeds) {
        if (embed(stage, lane, x))
            return -1;
    } else {
        memcpy(x, lane->input, (uint64_t)step->n_tokens * m->hidden * sizeof *x);
    }
    for (uint32_t layer = 0; layer < stage->base.options.layer_count; layer++) {
        run_attention(stage, step, layer, x);
        run_experts(stage, step, layer, x);
        host_stream_jobs(stage);
    }
    if (stage->base.cut)
        pick_rows(stage, lane, x);
    else if (stage->base.samples)
        run_head(stage, lane, x);
    return 0;
}
