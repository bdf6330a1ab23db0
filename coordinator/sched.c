/*
 * sched: which rows go into the next step.
 *
 * A step holds, in this order:
 *   1. decode rows: one token of each of several sequences. With S stages a step takes at most the
 *      S-th part of the sequences that decode, so that S steps of disjoint sequences fill the
 *      pipeline. A row may be issued before its token is known ("the one last sampled for this
 *      slot"), one sample ahead, so that no round trip to the coordinator stands between tokens; a row
 *      whose sample is still in the pipeline is left to a later step while there is other work.
 *   2. chunks of prompts, oldest first, up to the step's token budget. Chunks of one prompt follow one
 *      another without waiting.
 *
 * Blocks are given when a row is issued and may be given back at once when a sequence ends: stages run
 * steps in order, so whoever gets the block next writes it after its last reader.
 */
#include "coordinator/core.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/kv.h"

/* Where a step is put together; sized by the plan. */
struct row_buffers {
    Gptoss__Row *rows;           /* [step_rows] */
    Gptoss__Row **pointers;      /* [step_rows] */
    struct request **candidates; /* [sequences] */
};

void sched_create(struct coordinator *c)
{
    const struct plan *plan = c->world.plan;
    kv_create(c);
    c->steps = base_alloc(plan->steps_in_flight, sizeof *c->steps);
    for (uint32_t i = 0; i < plan->steps_in_flight; i++)
        c->steps[i].rows = base_alloc(plan->step_rows, sizeof *c->steps[i].rows);
    struct row_buffers *b = c->row_buffers = base_alloc(1, sizeof *b);
    b->rows = base_alloc(plan->step_rows, sizeof *b->rows);
    b->pointers = base_alloc(plan->step_rows, sizeof *b->pointers);
    b->candidates = base_alloc(plan->sequences, sizeof *b->candidates);
    c->next_step = c->oldest_step = 1;
}

void sched_destroy(struct coordinator *c)
{
    kv_destroy(c);
    for (uint32_t i = 0; c->steps && i < c->world.plan->steps_in_flight; i++)
        free(c->steps[i].rows);
    free(c->steps);
    c->steps = NULL;
    if (c->row_buffers) {
        free(c->row_buffers->rows);
        free(c->row_buffers->pointers);
        free(c->row_buffers->candidates);
        free(c->row_buffers);
    }
    c->row_buffers = NULL;
    c->next_step = c->oldest_step = 1;
}

void sched_release(struct coordinator *c, struct request *r)
{
    kv_release(c, r);
}

/* ── rows ──────────────────────────────────────────────────────────────────────────────────── */

/* Adds a row of `count` tokens of r to the step. False: there were no blocks for it. */
static bool add_row(struct coordinator *c, struct step *step, struct request *r, uint32_t count)
{
    Gptoss__Row *row = &c->row_buffers->rows[step->n_rows];
    gptoss__row__init(row);
    if (!kv_give(c, r, count, step->number, row))
        return false;
    bool known = r->issued < r->tokens.count;
    bool samples = r->issued + count >= r->tokens.count;
    row->slot = r->slot;
    row->position = (uint32_t)r->issued;
    row->count = count;
    if (known) {
        row->n_tokens = count;
        row->tokens = r->tokens.ids + r->issued;
    }
    row->sample_from = samples ? count - 1 : count;
    row->temperature = r->temperature;
    row->top_k = r->top_k;
    row->top_p = r->top_p;
    row->min_p = r->min_p;
    row->seed = r->seed;
    row->top_logits = r->top_logits;
    step->rows[step->n_rows++] = (struct step_row){
        .serial = r->serial,
        .generation = r->generation,
        .position = (uint32_t)r->issued,
        .count = count,
        .sample_from = row->sample_from,
    };
    r->issued += count;
    kv_issued(c, r);
    r->pending += samples;
    r->last_step = step->number;
    return true;
}

/* A sequence may take part in a decode row: its next token is known, or is the one sample under way. */
static bool may_decode(const struct coordinator *c, const struct request *r)
{
    size_t sampled = r->tokens.count - r->n_prompt;
    if (r->issued >= c->context || sampled + r->pending >= r->max_tokens)
        return false;
    return r->issued + 1 == r->tokens.count || (r->issued == r->tokens.count && r->pending == 1);
}

static int by_last_step(const void *a, const void *b)
{
    const struct request *x = *(struct request *const *)a, *y = *(struct request *const *)b;
    if (x->last_step != y->last_step)
        return x->last_step < y->last_step ? -1 : 1;
    return x->serial < y->serial ? -1 : x->serial > y->serial;
}

static void add_decode_rows(struct coordinator *c, struct step *step, bool waiting_ones)
{
    const struct plan *plan = c->world.plan;
    struct request **candidates = c->row_buffers->candidates;
    uint32_t n = 0, decoding = 0;
    for (size_t i = 0; i < c->n_requests; i++) {
        struct request *r = c->requests[i];
        if (r->state != REQUEST_RUNNING)
            continue;
        decoding += r->issued + 1 >= r->tokens.count;
        if (!may_decode(c, r) || r->last_step == step->number)
            continue;
        /* Its sample is in the pipeline: a step with this row would wait for it at stage 0. */
        bool early = r->issued == r->tokens.count && r->last_step + plan->n_stages > step->number;
        if (early == waiting_ones)
            candidates[n++] = r;
    }
    qsort(candidates, n, sizeof *candidates, by_last_step);
    uint32_t most = (decoding + plan->n_stages - 1) / plan->n_stages;
    uint32_t room = plan->step_rows < plan->step_samples ? plan->step_rows : plan->step_samples;
    if (room > plan->step_tokens)
        room = plan->step_tokens;
    if (most > room)
        most = room;
    for (uint32_t i = 0; i < n && step->n_rows < most; i++)
        if (candidates[i]->state == REQUEST_RUNNING) /* another row may have taken its blocks */
            add_row(c, step, candidates[i], 1);
}

static void add_prompt_rows(struct coordinator *c, struct step *step)
{
    const struct plan *plan = c->world.plan;
    uint32_t budget = plan->step_tokens - step->n_rows, samples = step->n_rows;
    for (size_t i = 0; i < c->n_requests && budget && step->n_rows < plan->step_rows; i++) {
        struct request *r = c->requests[i];
        if (r->state != REQUEST_RUNNING || r->last_step == step->number ||
            r->issued + 1 >= r->tokens.count)
            continue;
        size_t left = r->tokens.count - r->issued;
        uint32_t count = left < budget ? (uint32_t)left : budget;
        if (count == left && samples == plan->step_samples)
            continue;
        if (!add_row(c, step, r, count))
            continue;
        samples += count == left;
        budget -= count;
    }
}

static bool form_step(struct coordinator *c, uint64_t now)
{
    struct step *step = &c->steps[(c->next_step - 1) % c->world.plan->steps_in_flight];
    step->number = c->next_step;
    step->n_rows = 0;
    step->issued_us = now;
    add_decode_rows(c, step, false);
    add_prompt_rows(c, step);
    if (step->n_rows == 0)
        add_decode_rows(c, step, true);
    if (step->n_rows == 0)
        return false;

    Gptoss__Step m = GPTOSS__STEP__INIT;
    m.step = step->number;
    m.n_rows = step->n_rows;
    m.rows = c->row_buffers->pointers;
    for (uint32_t i = 0; i < step->n_rows; i++)
        m.rows[i] = &c->row_buffers->rows[i];
    Gptoss__SupervisorMessage message = GPTOSS__SUPERVISOR_MESSAGE__INIT;
    message.body_case = GPTOSS__SUPERVISOR_MESSAGE__BODY_STEP;
    message.step = &m;
    core_send_rank(c, &c->world.ranks[0].peer, &message);
    times_issued(c, step, now);
    c->next_step++;
    c->n_steps++;
    return true;
}

void sched_run(struct coordinator *c, uint64_t now)
{
    if (c->world.state != WORLD_SERVING)
        return;
    while (c->next_step - c->oldest_step < c->world.plan->steps_in_flight) {
        kv_admit(c, now);
        if (!form_step(c, now))
            return;
    }
}

/* ── results ───────────────────────────────────────────────────────────────────────────────── */

/* Whether the result answers the oldest step with exactly the samples that it asked for. */
static bool matches(const struct step *step, const Gptoss__StepResult *result)
{
    size_t n = 0;
    for (uint32_t i = 0; i < step->n_rows; i++)
        for (uint32_t k = step->rows[i].sample_from; k < step->rows[i].count; k++, n++) {
            if (n >= result->n_samples)
                return false;
            const Gptoss__Sample *s = result->samples[n];
            if (s->row != i || s->position != step->rows[i].position + k ||
                s->n_top_ids != s->n_top_logits || s->n_top_ids > CORE_TOP_LOGITS_MAX)
                return false;
        }
    return n == result->n_samples;
}

void sched_result(struct coordinator *c, const Gptoss__StepResult *result, uint64_t now)
{
    if (c->oldest_step == c->next_step || result->step != c->oldest_step) {
        ranks_lose(c, now, "the last rank answered step %llu, but step %llu is the next",
                   (unsigned long long)result->step, (unsigned long long)c->oldest_step);
        return;
    }
    struct step *step = &c->steps[(c->oldest_step - 1) % c->world.plan->steps_in_flight];
    if (!matches(step, result)) {
        ranks_lose(c, now,
                   "the last rank answered step %llu with other samples than were asked for",
                   (unsigned long long)result->step);
        return;
    }
    for (size_t i = 0; i < result->n_samples; i++)
        if (result->samples[i]->token >= tokenizer_limit(c->tokenizer)) {
            ranks_lose(c, now, "the last rank sampled token %u, which the model does not have",
                       result->samples[i]->token);
            return;
        }
    c->oldest_step++;
    times_done(c, result->step, now);
    size_t n = 0;
    for (uint32_t i = 0; i < step->n_rows; i++) {
        const struct step_row *row = &step->rows[i];
        struct request *r = requests_find_serial(c, row->serial);
        bool alive = r && r->state == REQUEST_RUNNING && r->generation == row->generation;
        if (alive && r->computed < row->position + row->count)
            r->computed = row->position + row->count;
        for (uint32_t k = row->sample_from; k < row->count; k++, n++) {
            /* A row issued past the end of its sequence was wasted; its samples are dropped. */
            if (!alive || r->state != REQUEST_RUNNING)
                continue;
            r->pending--;
            requests_token(c, r, result->samples[n], now);
        }
    }
}
