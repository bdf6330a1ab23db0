#include "plan/stage.h"

#include "plan/head.h"

/*
 * What is counted where:
 *   weights      the tensors of the stage's layers; the embedding on the first stage; the rows of the
 *                output matrix that the stage holds, with its norm; where they are not in place (a GPU),
 *                some formats take more there than in the file, see held_bytes()
 *   KV           both pools, for the stage's layers of each kind
 *   activations  lanes, tables and the scratch of one step, see activation_bytes() and gpu.c
 */

/* For activation_bytes(). */
enum {
    SAMPLE_RESULT_BYTES = 288, /* of one sampled token: ids and logits of the top list, sums */
    ROW_BYTES = 128,           /* of one row of a step, or one slot */
    PADDING = 16,              /* floats that a row may be padded by */
    THREADS = 8,               /* of a rank; the plan does not know how many */
    PANEL_ROWS = 32,           /* rows of a matrix that a thread unpacks at a time */
    THREAD_BYTES = 64 << 10,
    HEAD_ROWS = 32,        /* rows that go through the head at a time */
    HEAD_BLOCK_BYTES = 32, /* what a part of a cut head says of a row: of each 1,024 ids, */
    HEAD_TOP_BYTES = 264,  /* the best ones, and all logits */
    HEAD_JOB_BYTES = 8192,
};

uint64_t stage_add(uint64_t a, uint64_t b)
{
    uint64_t sum;
    return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

uint64_t stage_multiply(uint64_t a, uint64_t b)
{
    uint64_t product;
    return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}

uint64_t stage_blocks(uint64_t positions)
{
    return (positions + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
}

uint64_t plan_kv_block_bytes(const struct gguf_model *model, enum plan_kv_type kv_type,
                             uint32_t block_tokens, uint32_t layers)
{
    uint64_t element = kv_type == PLAN_KV_F32 ? 4 : 2;
    uint64_t position =
        stage_multiply(stage_multiply(model->kv_heads, model->head_dim), 2 * element);
    return stage_multiply(stage_multiply(position, block_tokens), layers);
}

static double linear_bytes(const struct gguf_linear *linear)
{
    return (double)linear->weight->bytes + (linear->bias ? (double)linear->bias->bytes : 0);
}

double stage_layer_expert_bytes(const struct gguf_layer *layer)
{
    return linear_bytes(&layer->gate) + linear_bytes(&layer->up) + linear_bytes(&layer->down);
}

double stage_layer_token_bytes(const struct gguf_model *model, const struct gguf_layer *layer)
{
    double experts = stage_layer_expert_bytes(layer);
    return (double)layer->attn_norm->bytes + linear_bytes(&layer->attn_q) +
           linear_bytes(&layer->attn_k) + linear_bytes(&layer->attn_v) +
           linear_bytes(&layer->attn_out) + (double)layer->sinks->bytes +
           (double)layer->ffn_norm->bytes + linear_bytes(&layer->router) +
           experts * model->active / model->experts;
}

/* What a stage reads for a token besides its layers. */
static double extra_token_bytes(const struct gguf_model *model, bool first,
                                const struct plan_stage *stage)
{
    double bytes = first ? (double)model->embedding->row_bytes : 0;
    if (stage->head_count > 0)
        bytes += (double)model->output_norm->bytes +
                 (double)model->output->row_bytes * stage->head_count;
    return bytes;
}

/* Bytes of `rows` rows in a GPU's memory (kernels/cuda/convert.cu): Q4_0 and Q5_0 as Q8_0, those with
 * two scales in a block with `wide` bytes a weight, all others as in the file. */
static uint64_t held_bytes(const struct gguf_tensor *tensor, uint64_t rows, uint64_t wide)
{
    uint64_t values = stage_multiply(rows, tensor->ne[0]);
    switch ((uint32_t)tensor->type) {
    case GGUF_Q4_0:
    case GGUF_Q5_0: return stage_multiply(values / 32, 34);
    case GGUF_Q4_1:
    case GGUF_Q5_1:
    case GGUF_Q2_K:
    case GGUF_Q3_K:
    case GGUF_Q4_K:
    case GGUF_Q5_K:
    case GGUF_Q6_K: return stage_multiply(values, wide);
    default: return stage_multiply(rows, tensor->row_bytes);
    }
}

/* Bytes of `rows` rows in a CPU's memory (kernels/cpu/pack.h): for 16 rows and 32 columns the codes in
 * 4 or 8 bits, scales and minima; 0: the type stays as it is. */
static uint64_t packed_bytes(const struct gguf_tensor *tensor, uint64_t rows)
{
    uint64_t group;
    switch ((uint32_t)tensor->type) {
    case GGUF_MXFP4: group = 16 + 256; break;
    case GGUF_Q8_0: group = 32 + 512; break;
    case GGUF_Q4_0: group = 32 + 256; break;
    case GGUF_Q4_1: group = 64 + 256; break;
    case GGUF_Q5_0: group = 32 + 512; break;
    case GGUF_Q5_1: group = 64 + 512; break;
    case GGUF_Q4_K: group = 128 + 256; break;
    case GGUF_Q5_K:
    case GGUF_Q6_K: group = 128 + 512; break;
    default: return 0;
    }
    return stage_multiply(rows / 16 + (rows % 16 != 0), stage_multiply(tensor->ne[0] / 32, group));
}

/* How many more (or, modulo 2⁶⁴, fewer) than in the file the repacked matrices of a layer take. */
static uint64_t layer_packed_extra(const struct gguf_layer *layer)
{
    const struct gguf_tensor *const matrices[] = {
        layer->attn_q.weight, layer->attn_k.weight, layer->attn_v.weight, layer->attn_out.weight,
        layer->router.weight, layer->gate.weight,   layer->up.weight,     layer->down.weight};
    uint64_t extra = 0;
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
        const struct gguf_tensor *matrix = matrices[i];
        uint64_t held = stage_multiply(packed_bytes(matrix, matrix->ne[1]),
                                       matrix->n_dims > 2 ? matrix->ne[2] : 1);
        extra += held > 0 ? held - matrix->bytes : 0;
    }
    return extra;
}

/* How many more than in the file the matrices of a layer take on a GPU. */
static uint64_t layer_extra_bytes(const struct gguf_layer *layer)
{
    const struct gguf_tensor *const matrices[] = {
        layer->attn_q.weight, layer->attn_k.weight, layer->attn_v.weight, layer->attn_out.weight,
        layer->gate.weight,   layer->up.weight,     layer->down.weight};
    uint64_t extra = 0;
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
        const struct gguf_tensor *matrix = matrices[i];
        uint64_t rows = matrix->bytes / matrix->row_bytes, held = held_bytes(matrix, rows, 2);
        extra = stage_add(extra, held - matrix->bytes); /* never fewer */
        if (matrix->type == GGUF_MXFP4)                 /* and each row's largest scale */
            extra = stage_add(extra, stage_multiply(rows, 4));
    }
    return extra;
}

static uint64_t weights_bytes(const struct gguf_model *model, bool first, bool in_place,
                              const struct plan_stage *stage)
{
    uint64_t bytes = 0;
    if (first)
        bytes =
            in_place ? model->embedding->bytes : held_bytes(model->embedding, model->vocabulary, 4);
    for (uint32_t i = 0; i < stage->layer_count; i++) {
        const struct gguf_layer *layer = &model->layers[stage->layer_first + i];
        bytes = stage_add(bytes, layer->bytes);
        if (!in_place)
            bytes = stage_add(bytes, layer_extra_bytes(layer));
        else
            bytes += layer_packed_extra(layer);
    }
    if (stage->head_count > 0) {
        bytes = stage_add(bytes, model->output_norm->bytes);
        uint64_t packed = packed_bytes(model->output, stage->head_count);
        if (!in_place)
            bytes = stage_add(bytes, held_bytes(model->output, stage->head_count, 2));
        else if (packed > 0) /* beside an embedding that it is tied to */
            bytes = stage_add(bytes, packed);
        else if (!first || model->output != model->embedding)
            bytes = stage_add(bytes, stage_multiply(model->output->row_bytes, stage->head_count));
    }
    return bytes;
}

/* What a part of the head of `count` rows gives back for `rows` samples. */
static uint64_t reply_bytes(uint64_t rows, uint64_t count)
{
    uint64_t blocks = count / HEAD_UNIT + (count % HEAD_UNIT != 0);
    return stage_multiply(rows, blocks * HEAD_BLOCK_BYTES + HEAD_TOP_BYTES + 4 * count);
}

/* Scratch of the head for one step or, where it is cut, for its jobs. *thread: for each thread. */
static uint64_t head_bytes(const struct gguf_model *model, const struct plan *plan, uint32_t s,
                           const struct plan_stage *stage, bool last, uint64_t *thread)
{
    uint64_t rows = plan->step_samples < HEAD_ROWS ? plan->step_samples : HEAD_ROWS;
    uint64_t width = 2 * (uint64_t)model->hidden + PADDING, vocabulary = model->vocabulary;
    uint64_t scratch = stage_multiply(rows, 4 * (stage->head_count + width));
    uint64_t job = stage_add(HEAD_JOB_BYTES, stage_multiply(rows, 4 * (uint64_t)model->hidden));
    *thread = last ? stage_multiply(vocabulary, 4 * 4 + 1) + THREAD_BYTES : 0;
    if (plan->head_jobs == 0)
        return scratch;
    if (last)
        *thread = stage_add(*thread, 4 * vocabulary);
    for (uint32_t part = 0; part < plan->n_stages; part++)
        if (last || part == s)
            job = stage_add(job, reply_bytes(rows, plan->head_counts[part]));
    return stage_add(scratch, stage_multiply(plan->head_jobs, job));
}

/* What a CPU rank takes besides weights and KV, a little more than the backends do (a test compares).
 *   lanes    each: input and output rows [step_tokens, hidden] as far as the stage has them, samples
 *            and their results, with a cut head their rows [step_samples, hidden], rows of the step and
 *            the blocks that they are given
 *   tables   of slots, and the angles of every position
 *   scratch  of one step, for each token: rows [hidden] before and after the norm, q, what attention
 *            gives, k, v, router, and for each active expert its unit row [expert_ffn] and part
 *            [hidden]; for each thread panels of a matrix; where the head is, logits of some rows,
 *            on the last stage for each thread the sorting of one, and jobs of a cut head */
static uint64_t activation_bytes(const struct gguf_model *model, const struct plan *plan,
                                 uint32_t s, bool wide, const struct plan_stage *stage)
{
    bool first = s == 0, last = s + 1 == plan->n_stages;
    uint64_t hidden = model->hidden, q = (uint64_t)model->heads * model->head_dim;
    uint64_t kv = (uint64_t)model->kv_heads * model->head_dim;
    uint64_t entries = stage_blocks(plan->context);

    uint64_t lane = stage_multiply(plan->step_tokens, first ? 4 : 4 * hidden);
    if (!last)
        lane = stage_add(lane, stage_multiply(plan->step_tokens, 4 * hidden));
    else if (plan->head_jobs > 0)
        lane = stage_add(lane, stage_multiply(plan->step_samples, 4 * hidden));
    lane = stage_add(lane, stage_multiply(plan->step_samples, 8 + SAMPLE_RESULT_BYTES));
    lane = stage_add(lane, stage_multiply(plan->step_rows,
                                          stage_add(ROW_BYTES, stage_multiply(entries, 2 * 4))));

    uint64_t tables = stage_add(
        stage_multiply(plan->sequences, stage_add(ROW_BYTES, stage_multiply(entries, 2 * 4))),
        stage_multiply(plan->context, 4 * (uint64_t)model->head_dim));

    uint64_t token = 2 * (hidden + PADDING) + 2 * (q + PADDING) + 2 * kv + model->experts;
    token =
        stage_add(token, stage_multiply(model->active, model->expert_ffn + PADDING + hidden + 4));
    uint64_t widest = hidden > q ? hidden : q;
    if (model->expert_ffn > widest)
        widest = model->expert_ffn;
    /* As integers, for 32 columns 48 bytes (int8 activations), or 152 (wide). */
    token = stage_add(token, (widest + model->active * (uint64_t)model->expert_ffn) / 32 *
                                     (wide ? 38 : 12) +
                                 (1 + model->active) * PADDING);
    uint64_t thread = stage_add(stage_multiply(widest, 4 * PANEL_ROWS), THREAD_BYTES);
    uint64_t scratch = stage_multiply(plan->step_tokens, stage_multiply(token, 4));
    if (stage->head_count > 0) {
        uint64_t of_thread;
        scratch = stage_add(scratch, head_bytes(model, plan, s, stage, last, &of_thread));
        thread = stage_add(thread, of_thread);
    }
    scratch = stage_add(scratch, stage_multiply(thread, THREADS));
    return stage_add(stage_multiply(plan->lanes, lane), stage_add(tables, scratch));
}

uint64_t stage_kv_bytes(const struct draft *draft, const struct plan_stage *stage,
                        uint64_t full_blocks)
{
    const struct plan *plan = draft->plan;
    uint64_t full =
        plan_kv_block_bytes(draft->model, plan->kv_type, BLOCK_TOKENS, stage->full_layers);
    uint64_t window =
        plan_kv_block_bytes(draft->model, plan->kv_type, BLOCK_TOKENS, stage->window_layers);
    return stage_add(stage_multiply(full, full_blocks),
                     stage_multiply(window, plan->window_blocks));
}

void stage_fill(const struct draft *draft, uint32_t s, struct plan_stage *stage)
{
    const struct gguf_model *model = draft->model;
    const struct plan *plan = draft->plan;
    stage->full_layers = stage->window_layers = 0;
    stage->token_bytes = 0;
    stage->head_first = 0;
    for (uint32_t i = 0; i < s; i++)
        stage->head_first += plan->head_counts[i];
    stage->head_count = plan->head_counts[s];
    for (uint32_t i = 0; i < stage->layer_count; i++) {
        const struct gguf_layer *layer = &model->layers[stage->layer_first + i];
        *(layer->sliding ? &stage->window_layers : &stage->full_layers) += 1;
        stage->token_bytes += stage_layer_token_bytes(model, layer);
    }
    stage->token_bytes += extra_token_bytes(model, s == 0, stage);
    const struct plan_rank *ranks = draft->options->ranks;
    bool in_place = !ranks || ranks[s].weights_in_place;
    stage->weights_bytes = weights_bytes(model, s == 0, in_place, stage);
    stage->activation_bytes = in_place
                                  ? activation_bytes(model, plan, s, !draft->options->fast, stage)
                                  : gpu_activation_bytes(model, plan, s, stage);
    stage->memory_bytes = draft->share[s];
}
