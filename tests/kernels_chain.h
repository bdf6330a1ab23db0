/*
 * kernels_chain: the stages of a model one behind another in one process, for the tests of kernels/.
 *
 * Takes the coordinator's part (block tables) and the transport's (output to input, the ring) in the
 * simplest way: every step runs to its end. Any failure fails the test.
 */
#ifndef GPTOSS_TESTS_KERNELS_CHAIN_H
#define GPTOSS_TESTS_KERNELS_CHAIN_H

#include "test.h"

#include <sched.h>
#if GPTOSS_HAVE_CUDA
#include <cuda_runtime_api.h>
#endif

#include "gguf/gguf.h"
#include "kernels/kernels.h"

#define CHAIN_STAGES 5
#define CHAIN_ROWS   16

/* Blocks of one pool that a slot has: logical first…count−1. */
struct chain_table {
    uint32_t first, count;
    uint32_t *blocks; /* [entries] */
};

struct chain_pool {
    uint32_t *free; /* a stack of block numbers */
    uint32_t n_free;
};

struct chain {
    const struct gguf_model *model;
    struct kernels *k;
    uint32_t n_stages;
    struct kernels_stage *stages[CHAIN_STAGES];
    struct kernels_stage_options options;
    uint32_t parts[CHAIN_STAGES]; /* rows of the head on each stage */
    uint32_t lane;                /* changes with every step */
    uint32_t entries;
    struct chain_table *full, *window; /* [slots] */
    struct chain_pool full_pool, window_pool;
    /* The step under construction. */
    struct kernels_row rows[CHAIN_ROWS];
    uint32_t *given; /* [CHAIN_ROWS, 2, entries] */
    int32_t *tokens; /* [step_tokens] */
    struct kernels_step step;
    char err[256];
};

static inline void chain_pool_fill(struct chain_pool *pool, uint32_t blocks)
{
    pool->free = calloc(blocks, sizeof *pool->free);
    for (uint32_t i = 0; i < blocks; i++) /* not in order */
        pool->free[i] = (uint32_t)((uint64_t)i * 7919 % blocks);
    pool->n_free = blocks;
    bool distinct = blocks % 7919 != 0;
    assert_true(distinct);
}

/* `ends` are the layers at which stages end, the last being the model's number of layers. Of
 * `options` what is 0 gets a value. The head is cut where options.head_parts [n_stages] is given. */
static inline struct chain *chain_create(const struct gguf_model *model,
                                         const struct kernels_options *device, uint32_t n_stages,
                                         const uint32_t *ends, struct kernels_stage_options options)
{
    struct chain *c = calloc(1, sizeof *c);
    c->model = model;
    c->n_stages = n_stages;
    options.vocabulary_limit = options.vocabulary_limit ? options.vocabulary_limit : 0;
    options.block_tokens = options.block_tokens ? options.block_tokens : 16;
    options.slots = options.slots ? options.slots : 8;
    options.context = options.context ? options.context : 1024;
    options.lanes = options.lanes ? options.lanes : 2;
    options.step_rows = CHAIN_ROWS;
    options.step_tokens = options.step_tokens ? options.step_tokens : 256;
    options.step_samples = options.step_samples ? options.step_samples : 256;
    c->entries = (options.context + options.block_tokens - 1) / options.block_tokens;
    uint32_t blocks = options.slots * c->entries + 1;
    blocks += blocks % 7919 == 0;
    options.full_blocks = options.full_blocks ? options.full_blocks : blocks;
    options.window_blocks = options.window_blocks ? options.window_blocks : blocks;
    c->options = options;
    if (kernels_create(&c->k, device, c->err, sizeof c->err))
        fail_msg("%s", c->err);
    for (uint32_t i = 0; i < n_stages; i++) {
        options.layer_first = i ? ends[i - 1] : 0;
        options.layer_count = ends[i] - options.layer_first;
        options.head_count = i + 1 == n_stages ? model->vocabulary : 0;
        if (options.head_parts) {
            options.n_head_parts = n_stages;
            options.head_jobs = 2;
            options.head_first = i ? options.head_first + options.head_parts[i - 1] : 0;
            options.head_count = options.head_parts[i];
        }
        c->parts[i] = options.head_count;
        if (kernels_stage_create(&c->stages[i], c->k, model, &options, c->err, sizeof c->err))
            fail_msg("stage %u: %s", i, c->err);
    }
    c->full = calloc(options.slots, sizeof *c->full);
    c->window = calloc(options.slots, sizeof *c->window);
    for (uint32_t s = 0; s < options.slots; s++) {
        c->full[s].blocks = calloc(c->entries, sizeof(uint32_t));
        c->window[s].blocks = calloc(c->entries, sizeof(uint32_t));
    }
    chain_pool_fill(&c->full_pool, options.full_blocks);
    chain_pool_fill(&c->window_pool, options.window_blocks);
    c->given = calloc((size_t)CHAIN_ROWS * 2 * c->entries, sizeof *c->given);
    c->tokens = calloc(options.step_tokens, sizeof *c->tokens);
    return c;
}

static inline void chain_destroy(struct chain *c)
{
    for (uint32_t i = 0; i < c->n_stages; i++)
        kernels_stage_destroy(c->stages[i]);
    kernels_destroy(c->k);
    for (uint32_t s = 0; s < c->options.slots; s++) {
        free(c->full[s].blocks);
        free(c->window[s].blocks);
    }
    free(c->full);
    free(c->window);
    free(c->full_pool.free);
    free(c->window_pool.free);
    free(c->given);
    free(c->tokens);
    free(c);
}

/* Blocks that the slot needs up to position `end`; those before `keep` are given back. */
static inline void chain_extend(const struct chain *c, struct chain_table *table,
                                struct chain_pool *pool, uint32_t keep, uint32_t end,
                                uint32_t *given, uint32_t *n_given, uint32_t *n_freed)
{
    *n_given = *n_freed = 0;
    while ((uint64_t)table->count * c->options.block_tokens < end) {
        assert_true(pool->n_free > 0);
        uint32_t block = pool->free[--pool->n_free];
        table->blocks[table->count++] = block;
        given[(*n_given)++] = block;
    }
    while ((table->first + 1) * c->options.block_tokens <= keep) {
        pool->free[pool->n_free++] = table->blocks[table->first++];
        (*n_freed)++;
    }
}

static inline void chain_begin(struct chain *c)
{
    c->step = (struct kernels_step){.rows = c->rows, .tokens = c->tokens};
}

/* Adds a row to the step: `count` tokens at `position` (position 0 begins the slot anew). What the row
 * is to sample with can be set in the row that is returned. */
static inline struct kernels_row *chain_row(struct chain *c, uint32_t slot, uint32_t position,
                                            const int32_t *tokens, uint32_t count,
                                            uint32_t sample_from)
{
    uint32_t i = c->step.n_rows++, window = c->model->window;
    assert_true(i < CHAIN_ROWS && slot < c->options.slots);
    struct kernels_row *row = &c->rows[i];
    *row = (struct kernels_row){.slot = slot,
                                .position = position,
                                .count = count,
                                .sample_from = sample_from,
                                .restart = position == 0,
                                .top_p = 1};
    struct chain_table *full = &c->full[slot], *sliding = &c->window[slot];
    for (; row->restart && full->count > full->first; full->first++)
        c->full_pool.free[c->full_pool.n_free++] = full->blocks[full->first];
    for (; row->restart && sliding->count > sliding->first; sliding->first++)
        c->window_pool.free[c->window_pool.n_free++] = sliding->blocks[sliding->first];
    if (row->restart)
        full->first = full->count = sliding->first = sliding->count = 0;
    uint32_t *given = c->given + (size_t)i * 2 * c->entries;
    chain_extend(c, full, &c->full_pool, 0, position + count, given, &row->full_given_count,
                 &row->full_freed);
    chain_extend(c, sliding, &c->window_pool, position + 1 > window ? position + 1 - window : 0,
                 position + count, given + c->entries, &row->window_given_count,
                 &row->window_freed);
    row->full_given = given;
    row->window_given = given + c->entries;
    memcpy(c->tokens + c->step.n_tokens, tokens, count * sizeof *tokens);
    c->step.n_tokens += count;
    c->step.n_samples += count - sample_from;
    return row;
}

static inline void chain_wait(struct chain *c, uint32_t stage)
{
    int done;
    while (!(done = kernels_stage_test(c->stages[stage], c->lane, c->err, sizeof c->err)))
        sched_yield();
    if (done < 0)
        fail_msg("stage %u: %s", stage, c->err);
}

/* Between buffers of lanes: device memory where the stage has a stream. */
static inline void chain_copy(const struct chain *c, void *to, const void *from, size_t bytes)
{
#if GPTOSS_HAVE_CUDA
    if (kernels_stage_stream(c->stages[0])) {
        assert_int_equal(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), cudaSuccess);
        return;
    }
#endif
    (void)c;
    memcpy(to, from, bytes);
}

static inline void chain_wait_job(struct chain *c, uint32_t stage, uint32_t slot)
{
    int done;
    while (!(done = kernels_stage_head_test(c->stages[stage], slot, c->err, sizeof c->err)))
        sched_yield();
    if (done < 0)
        fail_msg("stage %u: %s", stage, c->err);
}

/* The samples of the step through a head that is cut. */
static inline void chain_head(struct chain *c)
{
    uint32_t last = c->n_stages - 1, slot = 0;
    uint32_t rows = kernels_stage_head_rows(c->stages[last]);
    for (uint32_t first = 0; first < c->step.n_samples; first += rows, slot = !slot) {
        uint32_t n = c->step.n_samples - first < rows ? c->step.n_samples - first : rows;
        for (uint32_t i = 0; i <= last; i++) {
            if (!c->parts[i])
                continue;
            if (i < last)
                memcpy(kernels_stage_head_input(c->stages[i], slot),
                       kernels_stage_picked(c->stages[last], c->lane) +
                           (size_t)first * c->model->hidden,
                       (size_t)n * c->model->hidden * sizeof(float));
            if (kernels_stage_head(c->stages[i], slot, c->lane, &c->step, first, n, c->err,
                                   sizeof c->err))
                fail_msg("stage %u: %s", i, c->err);
            chain_wait_job(c, i, slot);
            if (i < last)
                memcpy(kernels_stage_head_reply(c->stages[last], slot, i),
                       kernels_stage_head_reply(c->stages[i], slot, 0),
                       kernels_stage_reply_bytes(c->stages[i], c->parts[i], &c->step, first, n));
        }
        if (kernels_stage_merge(c->stages[last], slot, c->err, sizeof c->err))
            fail_msg("merge: %s", c->err);
        chain_wait_job(c, last, slot);
    }
}

/* Runs the step through all stages and brings what was sampled back to stage 0. */
static inline void chain_run(struct chain *c)
{
    c->lane = (c->lane + 1) % c->options.lanes;
    struct kernels_stage *last = c->stages[c->n_stages - 1];
    for (uint32_t i = 0; i < c->n_stages; i++) {
        if (kernels_stage_step(c->stages[i], c->lane, &c->step, c->err, sizeof c->err))
            fail_msg("stage %u: %s", i, c->err);
        chain_wait(c, i);
        if (i + 1 < c->n_stages)
            chain_copy(c, kernels_stage_input(c->stages[i + 1], c->lane),
                       kernels_stage_output(c->stages[i], c->lane),
                       (size_t)c->step.n_tokens * c->model->hidden * sizeof(float));
    }
    if (c->options.head_parts)
        chain_head(c);
    uint32_t slots[CHAIN_ROWS], n = 0;
    int32_t sampled[CHAIN_ROWS];
    for (uint32_t r = 0, s = 0; r < c->step.n_rows; r++) {
        s += c->rows[r].count - c->rows[r].sample_from;
        if (c->rows[r].sample_from < c->rows[r].count) {
            chain_copy(c, &sampled[n], kernels_stage_sampled(last, c->lane) + (s - 1),
                       sizeof *sampled);
            slots[n++] = c->rows[r].slot;
        }
    }
    chain_copy(c, kernels_stage_sampled(c->stages[0], c->lane), sampled, n * sizeof *sampled);
    if (kernels_stage_ring(c->stages[0], c->lane, slots, n, c->err, sizeof c->err))
        fail_msg("ring: %s", c->err);
    chain_wait(c, 0);
}

static inline const struct kernels_sample *chain_sample(const struct chain *c, uint32_t i)
{
    return kernels_stage_sample(c->stages[c->n_stages - 1], c->lane, i);
}

static inline const float *chain_logits(const struct chain *c, uint32_t i)
{
    return kernels_stage_logits(c->stages[c->n_stages - 1], c->lane, i);
}

#endif
