#include "coordinator/times.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/sched.h"

struct times {
    uint32_t n_stages, n_kept;
    struct times_work *work;               /* [n_kept] step n at n % n_kept */
    struct coordinator_stage_step **steps; /* [n_stages][n_kept] likewise */
    uint64_t *last;                        /* [n_stages] the last step told of */
    uint64_t *recv_us, *send_us;           /* [n_stages] times_waited */
    uint64_t last_issued;
};

/* ── clocks ────────────────────────────────────────────────────────────────────────────────── */

void times_clock_echo(struct times_clock *clock, uint64_t t0, uint64_t t1, uint64_t t2, uint64_t t3)
{
    if (t0 == 0 || t3 < t0 || t2 < t1 || t2 - t1 > t3 - t0 || t1 > INT64_MAX || t2 > INT64_MAX)
        return;
    clock->echoes[clock->next++ % TIMES_ECHOES] = (struct times_echo){
        .at_us = t3,
        .offset_us = ((int64_t)t0 - (int64_t)t1) / 2 + ((int64_t)t3 - (int64_t)t2) / 2,
        .error_us = ((t3 - t0) - (t2 - t1)) / 2 + 1,
    };
}

void times_clock_guess(struct times_clock *clock, uint64_t sent_us, uint64_t now)
{
    if (clock->guessed || sent_us > INT64_MAX)
        return;
    clock->guessed = true;
    clock->guess_us = (int64_t)now - (int64_t)sent_us;
}

int64_t times_clock_offset(const struct times_clock *clock, uint64_t now, uint64_t *error_us)
{
    const struct times_echo *best = NULL;
    uint64_t least = UINT64_MAX;
    for (uint32_t i = 0; i < TIMES_ECHOES; i++) {
        const struct times_echo *e = &clock->echoes[i];
        if (!e->at_us)
            continue;
        uint64_t age = now > e->at_us ? now - e->at_us : 0;
        uint64_t error = e->error_us + age * TIMES_DRIFT_PPM / 1000000;
        if (error < least) {
            least = error;
            best = e;
        }
    }
    int64_t offset = best ? best->offset_us : clock->guessed ? clock->guess_us : 0;
    /* A guess is late by the message's way: within a second of 0 it is the same clock. */
    uint64_t slack = best ? best->error_us : CORE_SECOND;
    if (error_us)
        *error_us = best || !clock->guessed ? least : UINT64_MAX - 1;
    return (uint64_t)llabs(offset) <= slack ? 0 : offset;
}

/* Ranks of one host share a clock. */
static int64_t offset_of(const struct coordinator *c, uint32_t stage, uint64_t now)
{
    uint64_t least;
    int64_t offset = times_clock_offset(&c->world.ranks[stage].clock, now, &least);
    for (uint32_t i = 0; i < c->world.size; i++) {
        uint64_t error;
        if (i == stage || strcmp(c->world.ranks[i].host, c->world.ranks[stage].host) != 0)
            continue;
        int64_t other = times_clock_offset(&c->world.ranks[i].clock, now, &error);
        if (error < least) {
            least = error;
            offset = other;
        }
    }
    return offset;
}

/* ── life ──────────────────────────────────────────────────────────────────────────────────── */

void times_create(struct coordinator *c)
{
    struct times *t = c->times = base_alloc(1, sizeof *t);
    t->n_stages = c->world.size;
    t->n_kept = TIMES_STEPS;
    while (t->n_kept > 64 && (uint64_t)t->n_kept * t->n_stages > TIMES_KEPT_MAX)
        t->n_kept /= 2;
    t->work = base_alloc(t->n_kept, sizeof *t->work);
    t->steps = base_alloc(t->n_stages, sizeof *t->steps);
    t->last = base_alloc(t->n_stages, sizeof *t->last);
    t->recv_us = base_alloc(t->n_stages, sizeof *t->recv_us);
    t->send_us = base_alloc(t->n_stages, sizeof *t->send_us);
    for (uint32_t s = 0; s < t->n_stages; s++)
        t->steps[s] = base_alloc(t->n_kept, sizeof *t->steps[s]);
}

void times_destroy(struct coordinator *c)
{
    struct times *t = c->times;
    if (!t)
        return;
    for (uint32_t s = 0; s < t->n_stages; s++)
        free(t->steps[s]);
    free(t->steps);
    free(t->work);
    free(t->last);
    free(t->recv_us);
    free(t->send_us);
    free(t);
    c->times = NULL;
}

/* ── what happens ──────────────────────────────────────────────────────────────────────────── */

void times_issued(struct coordinator *c, const struct step *step, uint64_t now)
{
    struct times *t = c->times;
    if (!t)
        return;
    struct times_work *w = &t->work[step->number % t->n_kept];
    *w = (struct times_work){.step = step->number, .issued_us = now, .rows = step->n_rows};
    for (uint32_t i = 0; i < step->n_rows; i++) {
        const struct step_row *row = &step->rows[i];
        bool decode = row->count == 1 && row->sample_from == 0;
        uint64_t p = row->position, n = row->count;
        w->decode_rows += decode;
        w->prompt_tokens += decode ? 0 : row->count;
        w->tokens += row->count;
        w->samples += row->count - row->sample_from;
        w->kv_read += p + n;
        w->kv_pairs += n * p + n * (n + 1) / 2;
    }
    w->in_flight = (uint32_t)(step->number + 1 - c->oldest_step);
    w->full_used = blocks_used(&c->full);
    w->window_used = blocks_used(&c->window);
    t->last_issued = step->number;
}

void times_done(struct coordinator *c, uint64_t number, uint64_t now)
{
    if (!c->times || !times_work(c, number))
        return;
    struct times_work *work = &c->times->work[number % c->times->n_kept];
    work->done_us = now;
    metrics_step(c, work, now);
}

/* The device was idle for its inputs, the outputs were on their way. */
static void add_waits(struct coordinator *c, uint32_t stage, const struct coordinator_stage_step *s)
{
    const struct coordinator_stage_step *before = times_stage_step(c, stage, s->step - 1);
    uint64_t free_us =
        before && before->finished_us > s->received_us ? before->finished_us : s->received_us;
    uint64_t begun_us = s->finished_us > s->busy_us ? s->finished_us - s->busy_us : 0;
    c->times->recv_us[stage] += begun_us > free_us ? begun_us - free_us : 0;
    c->times->send_us[stage] += s->sent_us - s->finished_us;
}

void times_receive(struct coordinator *c, uint32_t stage, const Gptoss__StepTimes *m, uint64_t now)
{
    struct times *t = c->times;
    if (!t || stage >= t->n_stages)
        return;
    times_clock_guess(&c->world.ranks[stage].clock, m->sent_us, now);
    if (coordinator_take_times(m, offset_of(c, stage, now), t->last_issued, t->steps[stage],
                               t->n_kept, &t->last[stage])) {
        core_log(c, LOG_DEBUG, "rank %u told times of steps that it cannot have done", stage);
        return;
    }
    for (uint64_t step = m->first_step; step <= t->last[stage]; step++) {
        const struct coordinator_stage_step *s = times_stage_step(c, stage, step);
        if (!s)
            continue; /* one message told of more than the ring holds */
        add_waits(c, stage, s);
        costs_told(c, stage, s);
    }
}

/* ── looking things up ─────────────────────────────────────────────────────────────────────── */

const struct times_work *times_work(const struct coordinator *c, uint64_t step)
{
    const struct times *t = c->times;
    const struct times_work *w = t && step ? &t->work[step % t->n_kept] : NULL;
    return w && w->step == step ? w : NULL;
}

const struct coordinator_stage_step *times_stage_step(const struct coordinator *c, uint32_t stage,
                                                      uint64_t step)
{
    const struct times *t = c->times;
    if (!t || stage >= t->n_stages || !step)
        return NULL;
    const struct coordinator_stage_step *s = &t->steps[stage][step % t->n_kept];
    return s->step == step ? s : NULL;
}

uint64_t times_last(const struct coordinator *c, uint32_t stage)
{
    return c->times && stage < c->times->n_stages ? c->times->last[stage] : 0;
}

void times_waited(const struct coordinator *c, uint32_t stage, double *recv, double *send)
{
    const struct times *t = c->times;
    bool known = t && stage < t->n_stages;
    *recv = known ? (double)t->recv_us[stage] / CORE_SECOND : 0;
    *send = known ? (double)t->send_us[stage] / CORE_SECOND : 0;
}

uint32_t times_kept(const struct coordinator *c)
{
    return c->times ? c->times->n_kept : 0;
}

void times_occupancy(const struct coordinator *c, double seconds, uint64_t now,
                     struct coordinator_occupancy *out)
{
    const struct times *t = c->times;
    if (!t) {
        coordinator_occupancy(out, NULL, 0, NULL, NULL, 0, 0, now);
        return;
    }
    uint64_t span = (uint64_t)(seconds * CORE_SECOND);
    uint64_t *until = base_alloc(t->n_stages, sizeof *until);
    for (uint32_t s = 0; s < t->n_stages; s++) {
        /* A stage with a step that it has not told of was idle from its last one until that was issued. */
        const struct coordinator_stage_step *newest = times_stage_step(c, s, t->last[s]);
        const struct times_work *next = times_work(c, t->last[s] + 1);
        until[s] = now;
        if (t->last[s] < t->last_issued)
            until[s] = next ? next->issued_us : 0;
        if (newest && newest->finished_us > until[s])
            until[s] = newest->finished_us;
    }
    coordinator_occupancy(out, (const struct coordinator_stage_step *const *)t->steps, t->n_kept,
                          t->last, until, t->n_stages, now > span ? now - span : 0, now);
    free(until);
}
