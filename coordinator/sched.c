/*
 * sched: slots and KV blocks for requests, steps out, results in. Which rows a step holds is in form.c.
 *
 * Blocks are given when a row is issued and may be given back at once when a sequence ends: stages run
 * steps in order, so whoever gets the block next writes it after its last reader.
 */
#include "coordinator/sched.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void sched_create(struct coordinator *c)
{
    const struct plan *plan = c->world.plan;
    blocks_create(&c->full, plan->full_blocks);
    blocks_create(&c->window, plan->window_blocks);
    c->slots = base_alloc(plan->sequences, sizeof *c->slots);
    c->by_slot = base_alloc(plan->sequences, sizeof(struct request *));
    c->running = base_alloc(plan->sequences, sizeof(struct request *));
    c->n_running = 0;
    c->steps = base_alloc(plan->steps_in_flight, sizeof *c->steps);
    for (uint32_t i = 0; i < plan->steps_in_flight; i++)
        c->steps[i].rows = base_alloc(plan->step_rows, sizeof *c->steps[i].rows);
    struct row_buffers *b = c->row_buffers = base_alloc(1, sizeof *b);
    b->rows = base_alloc(plan->step_rows, sizeof *b->rows);
    b->pointers = base_alloc(plan->step_rows, sizeof *b->pointers);
    b->requests = base_alloc(plan->step_rows, sizeof *b->requests);
    b->candidates = base_alloc(plan->sequences, sizeof *b->candidates);
    c->next_step = c->oldest_step = 1;
    costs_create(c);
}

void sched_destroy(struct coordinator *c)
{
    blocks_destroy(&c->full);
    blocks_destroy(&c->window);
    free(c->slots);
    free(c->by_slot);
    free(c->running);
    c->slots = NULL;
    c->by_slot = c->running = NULL;
    c->n_running = 0;
    for (uint32_t i = 0; c->steps && i < c->world.plan->steps_in_flight; i++)
        free(c->steps[i].rows);
    free(c->steps);
    c->steps = NULL;
    if (c->row_buffers) {
        free(c->row_buffers->rows);
        free(c->row_buffers->pointers);
        free(c->row_buffers->requests);
        free(c->row_buffers->candidates);
        free(c->row_buffers);
    }
    c->row_buffers = NULL;
    c->next_step = c->oldest_step = 1;
}

/* Where the request is, or belongs, among those that run. */
static uint32_t running_index(const struct coordinator *c, const struct request *r)
{
    uint32_t low = 0, high = c->n_running;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (c->running[middle]->serial < r->serial)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void take_slot(struct coordinator *c, struct request *r, uint32_t slot)
{
    uint32_t at = running_index(c, r);
    memmove(&c->running[at + 1], &c->running[at], (c->n_running - at) * sizeof *c->running);
    c->running[at] = r;
    c->n_running++;
    c->slots[slot] = true;
    c->by_slot[slot] = r;
    r->slot = slot;
}

static void give_slot(struct coordinator *c, struct request *r)
{
    uint32_t at = running_index(c, r);
    assert(c->running[at] == r);
    c->n_running--;
    memmove(&c->running[at], &c->running[at + 1], (c->n_running - at) * sizeof *c->running);
    c->slots[r->slot] = false;
    c->by_slot[r->slot] = NULL;
    r->slot = CORE_NONE;
}

void sched_release(struct coordinator *c, struct request *r)
{
    if (r->slot == CORE_NONE)
        return;
    blocks_release(&c->full, &r->full);
    blocks_release(&c->window, &r->window);
    give_slot(c, r);
    r->generation++;
    r->issued = r->computed = 0;
    r->pending = 0;
    r->last_step = 0;
    r->window_told = 0;
}

/* ── admission ─────────────────────────────────────────────────────────────────────────────── */

static size_t blocks_for(const struct coordinator *c, size_t positions)
{
    uint32_t block = c->world.plan->block_tokens;
    return (positions + block - 1) / block;
}

/* Waiting requests get a slot in the order of their age, while their tokens so far have room. */
static void admit(struct coordinator *c, uint64_t now)
{
    if (requests_count(c, REQUEST_WAITING) == 0 || c->n_running == c->world.plan->sequences)
        return;
    uint32_t slot = 0;
    size_t promised = 0, running = 0;
    for (size_t i = 0; i < c->n_requests; i++) {
        const struct request *r = c->requests[i];
        if (r->state != REQUEST_RUNNING)
            continue;
        size_t need = blocks_for(c, r->tokens.count + 1);
        promised += need > r->full.count ? need - r->full.count : 0;
        running++;
    }
    for (size_t i = 0; i < c->n_requests; i++) {
        struct request *r = c->requests[i];
        if (r->state != REQUEST_WAITING)
            continue;
        while (slot < c->world.plan->sequences && c->slots[slot])
            slot++;
        size_t need = blocks_for(c, r->tokens.count + 1);
        if (slot == c->world.plan->sequences || (running && promised + need > c->full.n_free))
            return;
        take_slot(c, r, slot);
        r->state = REQUEST_RUNNING;
        r->issued = r->computed = 0;
        r->pending = 0;
        r->restart = true;
        if (!r->first_step_us)
            r->first_step_us = now;
        promised += need;
        running++;
    }
}

/* ── rows ──────────────────────────────────────────────────────────────────────────────────── */

/* Room in both pools for `count` more positions of r. The youngest sequence gives way: its tokens are
 * kept, its KV is computed again later. False: r does not get into this step. */
static bool take_blocks(struct coordinator *c, struct request *r, uint32_t count, uint64_t number)
{
    const struct gguf_model *model = c->options.model;
    uint32_t block = c->world.plan->block_tokens;
    size_t entries = blocks_for(c, r->issued + count);
    /* The first row position sees back to issued − (window − 1). */
    size_t passed = r->issued + 1 > model->window ? (r->issued + 1 - model->window) / block : 0;
    blocks_free_front(&c->window, &r->window, passed < r->window.count ? passed : r->window.count);
    for (;;) {
        if (entries - (entries < r->full.count ? entries : r->full.count) <= c->full.n_free &&
            blocks_extend(&c->window, &r->window, entries)) {
            bool extended = blocks_extend(&c->full, &r->full, entries);
            assert(extended);
            (void)extended;
            return true;
        }
        struct request *youngest = NULL;
        for (size_t i = c->n_requests; i-- > 0 && !youngest;)
            if (c->requests[i]->state == REQUEST_RUNNING && c->requests[i]->last_step != number)
                youngest = c->requests[i];
        if (!youngest || youngest->serial < r->serial)
            return false; /* the younger ones are in this step: the next one will take from them */
        sched_release(c, youngest);
        youngest->state = REQUEST_WAITING;
        c->n_preemptions++;
        core_log(c, LOG_DEBUG, "request %llu waits: its KV blocks went to an older one",
                 (unsigned long long)youngest->serial);
        if (youngest == r)
            return false;
    }
}

bool sched_add_row(struct coordinator *c, struct step *step, struct request *r, uint32_t count)
{
    /* What the slot's tables hold before this row: given blocks begin there. */
    size_t full_before = r->full.count, window_before = r->window.count;
    if (!take_blocks(c, r, count, step->number))
        return false;
    bool known = r->issued < r->tokens.count;
    bool samples = r->issued + count >= r->tokens.count;
    Gptoss__Row *row = &c->row_buffers->rows[step->n_rows];
    gptoss__row__init(row);
    row->slot = r->slot;
    row->position = (uint32_t)r->issued;
    row->count = count;
    if (known) {
        row->n_tokens = count;
        row->tokens = r->tokens.ids + r->issued;
    }
    row->sample_from = samples ? count - 1 : count;
    row->n_full_blocks = r->full.count - full_before;
    row->full_blocks = r->full.entries + full_before;
    row->n_window_blocks = r->window.count - window_before;
    row->window_blocks = r->window.entries + window_before;
    row->window_freed = (uint32_t)(r->window.freed - r->window_told);
    r->window_told = r->window.freed;
    row->restart = r->restart;
    row->temperature = r->temperature;
    row->top_k = r->top_k;
    row->top_p = r->top_p;
    row->min_p = r->min_p;
    row->seed = r->seed;
    row->top_logits = r->top_logits;
    step->rows[step->n_rows++] = (struct step_row){
        .serial = r->serial,
        .generation = r->generation,
        .slot = r->slot,
        .position = (uint32_t)r->issued,
        .count = count,
        .sample_from = row->sample_from,
    };
    c->row_buffers->requests[step->n_rows - 1] = r;
    cost_add(&step->work, c->options.model, (uint32_t)r->issued, count, count - row->sample_from);
    r->restart = false;
    r->issued += count;
    r->pending += samples;
    r->last_step = step->number;
    return true;
}

/* Blocks of the window pool that only this step still reads: whoever gets them writes them in a later
 * one. */
static void free_passed_windows(struct coordinator *c, const struct step *step)
{
    uint32_t window = c->options.model->window, block = c->world.plan->block_tokens;
    for (uint32_t i = 0; i < step->n_rows; i++) {
        struct request *r = c->row_buffers->requests[i];
        size_t passed = r->issued + 1 > window ? (r->issued + 1 - window) / block : 0;
        if (passed > r->window.freed && step->rows[i].count > 1)
            blocks_free_front(&c->window, &r->window, passed);
    }
}

static bool form_step(struct coordinator *c, uint64_t now)
{
    struct step *step = &c->steps[(c->next_step - 1) % c->world.plan->steps_in_flight];
    step->number = c->next_step;
    step->n_rows = 0;
    step->issued_us = now;
    step->work = (struct cost_work){0};
    form_rows(c, step);
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
    free_passed_windows(c, step);
    c->next_step++;
    c->n_steps++;
    return true;
}

void sched_run(struct coordinator *c, uint64_t now)
{
    if (c->world.state != WORLD_SERVING)
        return;
    admit(c, now);
    while (c->next_step - c->oldest_step < c->world.plan->steps_in_flight && form_step(c, now))
        ;
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
    costs_result(c, step, now);
    size_t n = 0;
    for (uint32_t i = 0; i < step->n_rows; i++) {
        const struct step_row *row = &step->rows[i];
        struct request *r = c->by_slot[row->slot];
        bool alive = r && r->serial == row->serial && r->generation == row->generation;
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
