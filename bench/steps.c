/*
 * steps: a test as steps of the pipeline.
 *
 * Prompts go in chunks of step_tokens that follow one another without waiting; a chunk may hold the end
 * of one sequence's prompt and the beginning of the next one's. Generating, the sequences are dealt into
 * as many groups as there are stages; a step holds one token of each sequence of a group, named by
 * reference ("the one last sampled for this slot"), and groups take turns. So every stage has a step to
 * work on as soon as there are as many sequences as stages, and no step waits for us: of each group
 * several are under way.
 */
#include "bench/loop.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POLL_MS     100
#define DEADLINE_US ((uint64_t)600 * 1000000) /* without any result */

/* Block numbers that are free, first in first out. */
struct pool {
    uint32_t *numbers; /* [size], a ring */
    uint32_t size, first, count;
};

struct table {
    uint32_t *numbers;           /* [blocks of the context]; given so far, in order */
    uint32_t count, freed, told; /* freed and said so */
};

struct sequence {
    const uint32_t *tokens; /* given, of this phase */
    uint32_t n_tokens, issued;
    uint32_t n_follow; /* steps by reference that are still to be issued */
    uint32_t position;
    bool restart;
    struct table full, window;
    uint32_t n_samples;
};

/* What a step in flight will bring. */
struct issued {
    uint32_t n_rows, group;
    uint32_t *sequences; /* [step_rows] */
    uint32_t *samples;   /* [step_rows] */
};

struct run {
    struct loop *loop;
    const struct plan *plan;
    const struct bench_test *test;
    uint32_t window;
    struct sequence *sequences; /* [test->sequences] */
    struct pool full, window_pool;
    struct issued *issued; /* [steps_in_flight], by step number */
    uint32_t in_flight;
    uint32_t n_groups, next_group;
    uint32_t *group_in_flight; /* [n_groups] */
    bool sampling;             /* of prompts, the last token's row is sampled */
    uint32_t *ids;             /* [sequences, samples] */
    uint64_t heard_us;
    Gptoss__Row *rows; /* [step_rows] */
    Gptoss__Row **pointers;
};

/* ── blocks ────────────────────────────────────────────────────────────────────────────────── */

static void pool_give(struct pool *pool, uint32_t number)
{
    pool->numbers[(pool->first + pool->count++) % pool->size] = number;
}

static void pool_create(struct pool *pool, uint32_t size)
{
    pool->numbers = base_alloc(size, sizeof *pool->numbers);
    pool->size = size;
    for (uint32_t i = 0; i < size; i++)
        pool_give(pool, i);
}

/* Blocks for positions below `end`; those given are the table's last *n. -1: the pool is empty. */
static int extend(struct table *table, struct pool *pool, uint32_t end, uint32_t block, size_t *n)
{
    uint32_t before = table->count;
    while ((uint64_t)table->count * block < end) {
        if (pool->count == 0)
            return -1;
        table->numbers[table->count++] = pool->numbers[pool->first];
        pool->first = (pool->first + 1) % pool->size;
        pool->count--;
    }
    *n = table->count - before;
    return 0;
}

/* Gives back what the windows have passed: before a step is put together, because the rows of the last
 * one still read it. */
static void release(struct run *run)
{
    uint32_t block = run->plan->block_tokens;
    for (uint32_t s = 0; s < run->test->sequences; s++) {
        uint32_t end = run->sequences[s].position + 1;
        uint32_t seen = end > run->window ? end - run->window : 0;
        struct table *table = &run->sequences[s].window;
        while (table->freed < table->count && (uint64_t)(table->freed + 1) * block <= seen)
            pool_give(&run->window_pool, table->numbers[table->freed++]);
    }
}

/* ── rows and steps ────────────────────────────────────────────────────────────────────────── */

/* Row i of the step: `count` given tokens of the sequence, or one by reference. */
static int fill_row(struct run *run, uint32_t i, uint32_t s, uint32_t count, bool by_reference,
                    bool sample, char *err, size_t err_size)
{
    struct sequence *sequence = &run->sequences[s];
    uint32_t block = run->plan->block_tokens, end = sequence->position + count;
    Gptoss__Row *row = &run->rows[i];
    gptoss__row__init(row);
    row->slot = s;
    row->position = sequence->position;
    row->count = count;
    if (!by_reference) {
        row->n_tokens = count;
        row->tokens = (uint32_t *)(uintptr_t)sequence->tokens + sequence->issued;
        sequence->issued += count;
    } else {
        sequence->n_follow--;
    }
    row->sample_from = sample ? count - 1 : count;
    row->restart = sequence->restart;
    row->top_p = 1;
    row->window_freed = sequence->window.freed - sequence->window.told;
    sequence->window.told = sequence->window.freed;
    if (extend(&sequence->full, &run->full, end, block, &row->n_full_blocks) ||
        extend(&sequence->window, &run->window_pool, end, block, &row->n_window_blocks)) {
        snprintf(err, err_size, "no KV block is left for sequence %" PRIu32, s);
        return -1;
    }
    row->full_blocks = sequence->full.numbers + sequence->full.count - row->n_full_blocks;
    row->window_blocks = sequence->window.numbers + sequence->window.count - row->n_window_blocks;
    sequence->position = end;
    sequence->restart = false;
    struct issued *issued = &run->issued[run->loop->next_step % run->plan->steps_in_flight];
    issued->sequences[i] = s;
    issued->samples[i] = sample;
    return 0;
}

static int send_step(struct run *run, uint32_t n_rows, uint32_t group, char *err, size_t err_size)
{
    struct issued *issued = &run->issued[run->loop->next_step % run->plan->steps_in_flight];
    Gptoss__Step step = GPTOSS__STEP__INIT;
    issued->n_rows = n_rows;
    issued->group = group;
    step.n_rows = n_rows;
    step.rows = run->pointers;
    run->group_in_flight[group]++;
    run->in_flight++;
    return loop_issue(run->loop, &step, err, err_size);
}

/* The next chunk of prompts. 1: issued; 0: there is none left; -1: failed. */
static int issue_prompt(struct run *run, char *err, size_t err_size)
{
    uint32_t budget = run->plan->step_tokens, n_rows = 0, n_samples = 0;
    for (uint32_t s = 0; s < run->test->sequences && budget && n_rows < run->plan->step_rows; s++) {
        const struct sequence *sequence = &run->sequences[s];
        uint32_t left = sequence->n_tokens - sequence->issued;
        uint32_t count = left < budget ? left : budget;
        bool sample = run->sampling && count == left;
        if (left == 0 || (sample && n_samples == run->plan->step_samples))
            continue;
        if (fill_row(run, n_rows, s, count, false, sample, err, err_size))
            return -1;
        n_samples += sample;
        budget -= count;
        n_rows++;
    }
    if (n_rows == 0)
        return 0;
    return send_step(run, n_rows, 0, err, err_size) ? -1 : 1;
}

/* One token of each sequence of the next group that may have another step under way. */
static int issue_token(struct run *run, char *err, size_t err_size)
{
    uint32_t ahead = run->plan->steps_in_flight / run->n_groups;
    for (uint32_t tries = 0; tries < run->n_groups; tries++) {
        uint32_t group = run->next_group, n_rows = 0;
        run->next_group = (run->next_group + 1) % run->n_groups;
        if (run->group_in_flight[group] >= (ahead ? ahead : 1))
            continue;
        for (uint32_t s = group; s < run->test->sequences; s += run->n_groups) {
            const struct sequence *sequence = &run->sequences[s];
            bool given = sequence->issued < sequence->n_tokens;
            if (!given && sequence->n_follow == 0)
                continue;
            if (fill_row(run, n_rows, s, 1, !given, true, err, err_size))
                return -1;
            n_rows++;
        }
        if (n_rows)
            return send_step(run, n_rows, group, err, err_size) ? -1 : 1;
    }
    return 0;
}

static int take_result(void *arg, const Gptoss__StepResult *result, char *err, size_t err_size)
{
    struct run *run = arg;
    uint64_t oldest = run->loop->next_step - run->in_flight;
    if (run->in_flight == 0 || result->step != oldest) {
        snprintf(err, err_size, "the result of step %" PRIu64 " came, expected step %" PRIu64,
                 result->step, oldest);
        return -1;
    }
    const struct issued *issued = &run->issued[oldest % run->plan->steps_in_flight];
    uint32_t per_sequence = bench_test_samples(run->test);
    size_t n = 0;
    for (uint32_t i = 0; i < issued->n_rows; i++) {
        if (!issued->samples[i])
            continue;
        struct sequence *sequence = &run->sequences[issued->sequences[i]];
        if (n >= result->n_samples || result->samples[n]->row != i ||
            sequence->n_samples >= per_sequence)
            break;
        run->ids[(size_t)issued->sequences[i] * per_sequence + sequence->n_samples++] =
            result->samples[n++]->token;
    }
    uint32_t wanted = 0;
    for (uint32_t i = 0; i < issued->n_rows; i++)
        wanted += issued->samples[i];
    if (n != wanted || n != result->n_samples) {
        snprintf(err, err_size, "step %" PRIu64 " brought %zu samples, expected %" PRIu32,
                 result->step, result->n_samples, wanted);
        return -1;
    }
    run->group_in_flight[issued->group]--;
    run->in_flight--;
    run->heard_us = clock_us();
    return 0;
}

/* Issues everything that the sequences have, and waits for its results. */
static int run_phase(struct run *run, bool as_prompt, char *err, size_t err_size)
{
    run->heard_us = clock_us();
    for (;;) {
        int issued = 1;
        while (issued == 1 && run->in_flight < run->plan->steps_in_flight) {
            release(run);
            issued = as_prompt ? issue_prompt(run, err, err_size) : 0;
            if (issued == 0)
                issued = issue_token(run, err, err_size);
        }
        if (issued < 0)
            return -1;
        if (run->in_flight == 0)
            return 0;
        if (loop_poll(run->loop, POLL_MS, err, err_size))
            return -1;
        if (clock_us() > run->heard_us + DEADLINE_US) {
            snprintf(err, err_size, "no step has finished for %d s", (int)(DEADLINE_US / 1000000));
            return -1;
        }
    }
}

/* ── a test ────────────────────────────────────────────────────────────────────────────────── */

static void create(struct run *run, struct loop *loop, const struct bench_test *test,
                   struct bench_sample *sample)
{
    const struct plan *plan = loop->plan;
    uint32_t entries = (plan->context + plan->block_tokens - 1) / plan->block_tokens;
    uint32_t rows = plan->step_rows < plan->step_samples ? plan->step_rows : plan->step_samples;
    *run = (struct run){.loop = loop,
                        .plan = plan,
                        .test = test,
                        .window = loop->options->model->window,
                        .ids = sample->ids};
    run->sequences = base_alloc(test->sequences, sizeof *run->sequences);
    for (uint32_t s = 0; s < test->sequences; s++) {
        run->sequences[s].restart = true;
        run->sequences[s].full.numbers = base_alloc(entries, sizeof(uint32_t));
        run->sequences[s].window.numbers = base_alloc(entries, sizeof(uint32_t));
    }
    pool_create(&run->full, plan->full_blocks);
    pool_create(&run->window_pool, plan->window_blocks);
    run->issued = base_alloc(plan->steps_in_flight, sizeof *run->issued);
    for (uint32_t i = 0; i < plan->steps_in_flight; i++) {
        run->issued[i].sequences = base_alloc(plan->step_rows, sizeof(uint32_t));
        run->issued[i].samples = base_alloc(plan->step_rows, sizeof(uint32_t));
    }
    run->n_groups = test->sequences < plan->n_stages ? test->sequences : plan->n_stages;
    if (run->n_groups < (test->sequences + rows - 1) / rows)
        run->n_groups = (test->sequences + rows - 1) / rows;
    run->group_in_flight = base_alloc(run->n_groups, sizeof *run->group_in_flight);
    run->rows = base_alloc(plan->step_rows, sizeof *run->rows);
    run->pointers = base_alloc(plan->step_rows, sizeof(Gptoss__Row *));
    for (uint32_t i = 0; i < plan->step_rows; i++)
        run->pointers[i] = &run->rows[i];
}

static void destroy(struct run *run)
{
    free(run->pointers);
    free(run->rows);
    free(run->group_in_flight);
    for (uint32_t i = 0; i < run->plan->steps_in_flight; i++) {
        free(run->issued[i].sequences);
        free(run->issued[i].samples);
    }
    free(run->issued);
    free(run->window_pool.numbers);
    free(run->full.numbers);
    for (uint32_t s = 0; s < run->test->sequences; s++) {
        free(run->sequences[s].full.numbers);
        free(run->sequences[s].window.numbers);
    }
    free(run->sequences);
}

int steps_run(struct loop *loop, const struct bench_test *test, uint64_t seed,
              struct bench_sample *sample, char *err, size_t err_size)
{
    struct run run;
    int status = -1;
    /* With no prompt, the first position's token is given; the others are what was sampled. */
    uint32_t first = test->n_prompt ? test->n_prompt : 1, given = test->n_depth + first;
    uint32_t *prompts = base_alloc((size_t)test->sequences * given, sizeof *prompts);
    create(&run, loop, test, sample);
    for (uint32_t s = 0; s < test->sequences; s++) {
        uint32_t *prompt = prompts + (size_t)s * given;
        bench_prompt(&loop->options->vocabulary, seed, test->sequence_first + s, prompt, given);
        run.sequences[s].tokens = prompt;
        run.sequences[s].n_tokens = test->n_depth;
    }
    loop->result = take_result;
    loop->arg = &run;
    if (run_phase(&run, true, err, err_size))
        goto done;

    for (uint32_t s = 0; s < test->sequences; s++) {
        run.sequences[s].n_tokens = given;
        run.sequences[s].n_follow = test->n_prompt ? test->n_gen : test->n_gen - 1;
    }
    run.sampling = true;
    double busy, busy_before;
    if (loop_busy(loop, &busy_before, err, err_size))
        goto done;
    double begin = clock_seconds();
    if (run_phase(&run, test->n_prompt > 0, err, err_size))
        goto done;
    sample->seconds = clock_seconds() - begin;
    if (loop_busy(loop, &busy, err, err_size))
        goto done;
    sample->busy = busy_before < 0 || busy < 0 ? -1 : busy - busy_before;
    sample->tokens = (double)test->sequences * (test->n_prompt + test->n_gen);
    status = 0;
done:
    loop->result = NULL;
    destroy(&run);
    free(prompts);
    return status;
}
