#include "coordinator/seen.h"

#include <stdio.h>
#include <stdlib.h>

#include "coordinator/core.h"

void seen_lost(struct coordinator *c, const struct rank *rank, const char *text, uint64_t now)
{
    /* Ranks that are lost on their way back: it is still down since the first loss. */
    bool down = c->loss.epoch && !c->loss.again_us;
    c->loss = (struct seen_loss){
        .epoch = c->world.epoch,
        .at_us = down ? c->loss.at_us : now,
        .blamed = rank != NULL,
        .stage = rank ? (uint32_t)(rank - c->world.ranks) : 0,
        .pid = rank ? rank->pid : 0,
    };
    snprintf(c->loss.host, sizeof c->loss.host, "%s", rank ? rank->host : "");
    snprintf(c->loss.text, sizeof c->loss.text, "%s", text);
}

void seen_serving(struct coordinator *c, uint64_t now)
{
    if (c->loss.epoch && !c->loss.again_us)
        c->loss.again_us = now;
}

static void fill_loss(struct coordinator *c, uint64_t now, Gptoss__Status *status)
{
    struct seen_loss *from = &c->loss;
    if (!from->epoch)
        return;
    Gptoss__Loss *loss = status->last_loss = base_alloc(1, sizeof *loss);
    gptoss__loss__init(loss);
    loss->epoch = from->epoch;
    if (from->blamed) {
        loss->stage_given_case = GPTOSS__LOSS__STAGE_GIVEN_STAGE;
        loss->stage = from->stage;
    }
    loss->host = from->host;
    loss->pid = from->pid;
    loss->text = from->text;
    loss->seconds = (double)(now - from->at_us) / CORE_SECOND;
    loss->over = from->again_us != 0;
    loss->down_seconds = (double)((loss->over ? from->again_us : now) - from->at_us) / CORE_SECOND;
}

/* The first stage that is not known to have computed the step. */
static uint32_t place(const Gptoss__Status *status, uint64_t step)
{
    uint32_t stage = 0;
    for (uint32_t i = 0; i < status->n_stages; i++)
        if (status->stages[i]->computed >= step)
            stage = i + 1; /* what a later stage has done, those in front of it have too */
    return stage < status->n_stages ? stage : (uint32_t)status->n_stages - 1;
}

static void fill_flight(const struct coordinator *c, uint64_t now, Gptoss__Status *status)
{
    size_t n = (size_t)(c->next_step - c->oldest_step);
    status->flight = base_alloc(n + 1, sizeof *status->flight);
    for (uint64_t step = c->oldest_step; step < c->next_step; step++) {
        const struct times_work *w = times_work(c, step);
        if (!w)
            continue;
        Gptoss__StepPlace *p = base_alloc(1, sizeof *p);
        gptoss__step_place__init(p);
        p->step = step;
        p->stage = place(status, step);
        p->rows = w->rows;
        p->decode_rows = w->decode_rows;
        p->prompt_tokens = w->prompt_tokens;
        p->seconds = (double)(now - w->issued_us) / CORE_SECOND;
        status->flight[status->n_flight++] = p;
    }
}

static void fill_recent(const struct coordinator *c, uint32_t wanted, Gptoss__Status *status)
{
    uint32_t size = c->world.size, most = SEEN_ENTRIES_MAX / size;
    uint64_t last = c->next_step - 1;
    for (uint32_t i = 0; i < size; i++)
        last = times_last(c, i) < last ? times_last(c, i) : last;
    wanted = wanted < SEEN_STEPS_MAX ? wanted : SEEN_STEPS_MAX;
    wanted = wanted < most ? wanted : most;
    wanted = wanted < last ? wanted : (uint32_t)last;
    status->recent_steps = base_alloc(wanted + 1, sizeof *status->recent_steps);
    for (uint64_t step = last + 1 - wanted; step <= last && wanted; step++) {
        const struct times_work *w = times_work(c, step);
        if (!w)
            continue;
        Gptoss__TraceStep *s = base_alloc(1, sizeof *s);
        trace_fill(c, w, base_alloc((size_t)TRACE_STAGE_NUMBERS * size, sizeof *s->at), s);
        status->recent_steps[status->n_recent_steps++] = s;
    }
}

void seen_status(struct coordinator *c, uint32_t recent_steps, uint64_t now, Gptoss__Status *status)
{
    fill_loss(c, now, status);
    if (c->world.state != WORLD_SERVING)
        return;
    fill_flight(c, now, status);
    if (recent_steps)
        fill_recent(c, recent_steps, status);
}

void seen_free(Gptoss__Status *status)
{
    for (size_t i = 0; i < status->n_flight; i++)
        free(status->flight[i]);
    for (size_t i = 0; i < status->n_recent_steps; i++) {
        free(status->recent_steps[i]->at);
        free(status->recent_steps[i]);
    }
    free(status->flight);
    free(status->recent_steps);
    free(status->last_loss);
}
