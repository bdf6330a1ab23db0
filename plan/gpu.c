#include "plan/stage.h"

#include "plan/head.h"

/* Sizes of kernels/cuda; a test on a GPU compares. */
enum {
    HEAD_ROWS = 64,      /* rows that go through the head at a time */
    ATTENTION_ROWS = 16, /* query heads of a block */
    CHUNK_KEYS = 256,    /* keys of a chunk, up to so many positions; */
    NEAR = 8192,         /* beyond them chunks are longer */
    FAR_CHUNK_KEYS = 1024,
    NORM_UNIT = 16,        /* columns whose router sums lie together */
    STEP_ROW_BYTES = 64,   /* of a step's description: a row, */
    STEP_TOKEN_BYTES = 64, /* a token, */
    ENTRY_BYTES = 8,       /* a block that a sequence is given, of one pool */
    BLOCK_BYTES = 32,      /* what a part of a head says of a row: of each block of ids, */
    TOP_BYTES = 264,       /* the best ones */
    FIXED_BYTES = 1 << 20, /* what does not depend on sizes, and the gaps between arrays */
};

static uint64_t attention_bytes(const struct gguf_model *model, const struct plan *plan)
{
    uint64_t positions = stage_blocks(plan->context) * BLOCK_TOKENS;
    uint64_t chunks =
        positions <= NEAR
            ? (positions + CHUNK_KEYS - 1) / CHUNK_KEYS
            : NEAR / CHUNK_KEYS + (positions - NEAR + FAR_CHUNK_KEYS - 1) / FAR_CHUNK_KEYS;
    uint64_t heads = model->kv_heads ? model->heads / model->kv_heads : 0;
    uint64_t blocks = (uint64_t)model->kv_heads * ((heads + ATTENTION_ROWS - 1) / ATTENTION_ROWS) *
                      ATTENTION_ROWS;
    return stage_multiply(plan->step_rows,
                          stage_multiply(blocks * chunks, ((uint64_t)model->head_dim + 2) * 4));
}

static uint64_t blocks_bytes(uint64_t ids)
{
    return (ids + HEAD_UNIT - 1) / HEAD_UNIT * BLOCK_BYTES;
}

static uint64_t head_bytes(const struct gguf_model *model, const struct plan *plan, bool last,
                           uint64_t ids)
{
    uint64_t hidden = model->hidden, vocabulary = model->vocabulary;
    uint64_t bytes = stage_multiply(HEAD_ROWS, 2 * hidden + 4 * ids + blocks_bytes(ids));
    if (plan->head_jobs == 0)
        return bytes;
    uint64_t row = 4 * hidden + TOP_BYTES;
    if (last) /* the merging of all parts */
        row += blocks_bytes(vocabulary) + (uint64_t)plan->n_stages * TOP_BYTES + 4 * vocabulary;
    uint64_t rows = plan->step_samples < HEAD_ROWS ? plan->step_samples : HEAD_ROWS;
    return stage_add(bytes, stage_multiply(rows, row));
}

uint64_t gpu_activation_bytes(const struct gguf_model *model, const struct plan *plan, uint32_t s,
                              const struct plan_stage *stage)
{
    bool first = s == 0, last = s + 1 == plan->n_stages;
    uint64_t hidden = model->hidden, q = (uint64_t)model->heads * model->head_dim;
    uint64_t kv = (uint64_t)model->kv_heads * model->head_dim, active = model->active;
    uint64_t entries = stage_blocks(plan->context);
    uint64_t pools = (stage->full_layers > 0) + (stage->window_layers > 0);

    uint64_t lane = stage_multiply(plan->step_tokens, 4 * hidden * (!first + !last));
    lane = stage_add(lane, 4 * (uint64_t)plan->step_samples);

    uint64_t rows = plan->step_rows < plan->sequences ? plan->step_rows : plan->sequences;
    uint64_t step = stage_multiply(plan->step_rows, STEP_ROW_BYTES);
    step = stage_add(step, stage_multiply(plan->step_tokens, STEP_TOKEN_BYTES));
    step = stage_add(step, stage_multiply(rows, stage_multiply(entries, 2 * ENTRY_BYTES)));

    uint64_t tables =
        stage_multiply(plan->sequences, stage_add(4, stage_multiply(entries, 4 * pools)));
    tables = stage_add(tables, stage_multiply(plan->context, 4 * (uint64_t)model->head_dim));

    uint64_t token = (4 + 2) * hidden + 4 * (q + 2 * kv) + 2 * (q + q) +
                     4 * (uint64_t)model->experts + 8 * active + 4;
    uint64_t tokens = stage_multiply(plan->step_tokens, token);
    /* Products of pairs of a token and an expert: also those of a small step have HEAD_ROWS. */
    uint64_t most = plan->step_tokens > HEAD_ROWS ? plan->step_tokens : HEAD_ROWS;
    uint64_t pair = 2 * (uint64_t)model->expert_ffn + 4 * hidden + 4;
    uint64_t pairs = stage_multiply(most, active * (pair + 16));
    uint64_t router = (hidden / NORM_UNIT + 1) * 4 * ((uint64_t)model->experts + 1);

    uint64_t bytes = stage_add(stage_multiply(plan->lanes, lane), stage_add(step, tables));
    bytes = stage_add(bytes, stage_add(tokens, stage_add(pairs, router)));
    bytes = stage_add(bytes, attention_bytes(model, plan));
    bytes = stage_add(bytes, stage_multiply(plan->step_rows, 4 * (uint64_t)model->heads));
    if (stage->head_count > 0)
        bytes = stage_add(bytes, head_bytes(model, plan, last, stage->head_count));
    return stage_add(bytes, FIXED_BYTES);
}
