/*
 * sched: slots and KV blocks for requests, steps out, results in. Which rows a step holds is in form.c.
 *
 * Blocks are given when a row is issued and may be given back at once when a sequence ends: stages run
 * steps in order, so whoever gets the block next writes it after its last reader.
 */
#include "coordinator/sched.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/kv.h"

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
    costs_create(c);
    patience_begin(&c->patience, plan->n_stages);
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

bool sched_add_row(struct coordinator *c, struct step *step, struct request *r, uint32_t count)
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
        .slot = r->slot,
        .position = (uint32_t)r->issued,
        .count = count,
        .sample_from = row->sample_from,
    };
    cost_add(&step->work, c->options.model, (uint32_t)r->issued, count, count - row->sample_from);
    r->issued += count;
    kv_issued(c, r);
    r->pending += samples;
    r->last_step = step->number;
    r->last_row = step->n_rows - 1;
    return true;
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
    times_issued(c, step, now);
    costs_issued(c, step);
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
        ranks_lose(c, &c->world.ranks[c->world.size - 1], now,
                   "the last rank answered step %llu, but step %llu is the next",
                   (unsigned long long)result->step, (unsigned long long)c->oldest_step);
        return;
    }
    struct step *step = &c->steps[(c->oldest_step - 1) % c->world.plan->steps_in_flight];
    if (!matches(step, result)) {
        ranks_lose(c, &c->world.ranks[c->world.size - 1], now,
                   "the last rank answered step %llu with other samples than were asked for",
                   (unsigned long long)result->step);
        return;
    }
    for (size_t i = 0; i < result->n_samples; i++)
        if (result->samples[i]->token >= tokenizer_limit(c->tokenizer)) {
            ranks_lose(c, &c->world.ranks[c->world.size - 1], now,
                       "the last rank sampled token %u, which the model does not have",
                       result->samples[i]->token);
            return;
        }
    uint64_t since = step->issued_us > c->result_us ? step->issued_us : c->result_us;
    patience_learn(&c->patience, patience_work(&step->work), now > since ? now - since : 0);
    c->result_us = now;
    c->oldest_step++;
    times_done(c, result->step, now);
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
