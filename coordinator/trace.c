#include "coordinator/trace.h"

#include <stdlib.h>

#include "coordinator/core.h"

#define GRACE_US   CORE_SECOND /* for what the ranks tell after the end */
#define TICK_PARTS 2           /* of one client in one tick: steps must not wait for them */

struct trace {
    struct core_peer peer;   /* size 0: free */
    bool past, begun;        /* begun: in the world `epoch` */
    uint64_t epoch, next;    /* step */
    uint64_t until_us, last; /* last: the last step to send, known from until_us on; 0: not yet */
    uint64_t told_us;
};

struct traces {
    struct trace of[TRACE_CLIENTS];
    uint32_t count;
};

void trace_destroy(struct coordinator *c)
{
    free(c->traces);
    c->traces = NULL;
}

static void end(struct coordinator *c, struct trace *t)
{
    t->peer.size = 0;
    if (--c->traces->count == 0)
        trace_destroy(c);
}

void trace_gone(struct coordinator *c, const struct core_peer *peer)
{
    for (int i = 0; c->traces && i < TRACE_CLIENTS; i++)
        if (peer->size && core_peer_equal(&c->traces->of[i].peer, peer))
            end(c, &c->traces->of[i]);
}

void trace_receive(struct coordinator *c, const struct core_peer *peer,
                   const Gptoss__TraceRequest *m, uint64_t now)
{
    trace_gone(c, peer); /* one for a connection: the new one counts */
    if (!(m->seconds >= 0 && m->seconds <= TRACE_SECONDS_MAX)) {
        requests_refuse(c, peer, NULL, 0, GPTOSS__CODE__INVALID, 0,
                        "a trace takes 0 to 600 seconds");
        return;
    }
    if (!c->traces)
        c->traces = base_alloc(1, sizeof *c->traces);
    if (c->traces->count == TRACE_CLIENTS) {
        requests_refuse(c, peer, NULL, 0, GPTOSS__CODE__BUSY, 1000,
                        "4 clients trace already, which is the limit: try again later");
        return;
    }
    struct trace *t = c->traces->of;
    while (t->peer.size)
        t++;
    *t = (struct trace){
        .peer = *peer,
        .past = m->past,
        .until_us = now + (uint64_t)(m->seconds * CORE_SECOND),
        .told_us = now,
    };
    c->traces->count++;
}

/* ── parts ─────────────────────────────────────────────────────────────────────────────────── */

static uint32_t after(uint64_t from, uint64_t to)
{
    uint64_t us = to > from ? to - from : 0;
    return us < INT32_MAX ? (uint32_t)us : INT32_MAX;
}

void trace_fill(const struct coordinator *c, const struct times_work *w, int32_t *at,
                Gptoss__TraceStep *out)
{
    gptoss__trace_step__init(out);
    out->step = w->step;
    out->issued_us = w->issued_us;
    out->done = w->done_us ? after(w->issued_us, w->done_us) : 0;
    out->rows = w->rows;
    out->decode_rows = w->decode_rows;
    out->prompt_tokens = w->prompt_tokens;
    out->samples = w->samples;
    out->kv_read = w->kv_read;
    out->in_flight = w->in_flight;
    out->kv_full_blocks_used = w->full_used;
    out->kv_window_blocks_used = w->window_used;
    out->at = at;
    out->n_at = (size_t)TRACE_STAGE_NUMBERS * c->world.size;
    for (uint32_t i = 0; i < c->world.size; i++, at += TRACE_STAGE_NUMBERS) {
        const struct coordinator_stage_step *s = times_stage_step(c, i, w->step);
        if (!s) {
            for (int k = 0; k < TRACE_STAGE_NUMBERS; k++)
                at[k] = -1;
            continue;
        }
        at[0] = s->received_us < w->issued_us ? -(int32_t)after(s->received_us, w->issued_us)
                                              : (int32_t)after(w->issued_us, s->received_us);
        at[1] = (int32_t)after(s->received_us, s->started_us);
        at[2] = (int32_t)after(s->started_us, s->finished_us);
        at[3] = (int32_t)after(s->finished_us, s->sent_us);
        at[4] = (int32_t)(s->busy_us < INT32_MAX ? s->busy_us : INT32_MAX);
        at[5] = (int32_t)after(s->finished_us, s->head_finished_us);
        at[6] = (int32_t)(s->head_us < INT32_MAX ? s->head_us : INT32_MAX);
    }
}

static void send(struct coordinator *c, struct trace *t, Gptoss__TracePart *part)
{
    Gptoss__ServerMessage m = GPTOSS__SERVER_MESSAGE__INIT;
    part->epoch = t->epoch;
    m.body_case = GPTOSS__SERVER_MESSAGE__BODY_TRACE;
    m.trace = part;
    core_send_client(c, &t->peer, &m);
}

static void send_last(struct coordinator *c, struct trace *t, const char *why)
{
    Gptoss__TracePart part = GPTOSS__TRACE_PART__INIT;
    part.last = true;
    part.text = (char *)(uintptr_t)why;
    send(c, t, &part);
    end(c, t);
}

static void send_stages(struct coordinator *c, struct trace *t)
{
    uint32_t n = c->world.size;
    Gptoss__TracePart part = GPTOSS__TRACE_PART__INIT;
    Gptoss__TraceStage *stages = base_alloc(n, sizeof *stages);
    part.stages = base_alloc(n, sizeof *part.stages);
    part.n_stages = n;
    for (uint32_t i = 0; i < n; i++) {
        gptoss__trace_stage__init(&stages[i]);
        stages[i].host = c->world.ranks[i].host;
        stages[i].device = c->world.ranks[i].device;
        stages[i].layer_first = c->world.plan->stages[i].layer_first;
        stages[i].layer_count = c->world.plan->stages[i].layer_count;
        part.stages[i] = &stages[i];
    }
    send(c, t, &part);
    free(part.stages);
    free(stages);
}

/* Steps t->next … at most `to`, as many as a part holds. */
static void send_steps(struct coordinator *c, struct trace *t, uint64_t to, uint64_t now)
{
    uint64_t most = TRACE_PART_ENTRIES / c->world.size;
    uint64_t n = to + 1 - t->next;
    n = n > most ? (most ? most : 1) : n;
    Gptoss__TracePart part = GPTOSS__TRACE_PART__INIT;
    Gptoss__TraceStep *steps = base_alloc(n, sizeof *steps);
    int32_t *at = base_alloc(n * TRACE_STAGE_NUMBERS * c->world.size, sizeof *at);
    part.steps = base_alloc(n, sizeof *part.steps);
    for (uint64_t i = 0; i < n; i++) {
        const struct times_work *w = times_work(c, t->next + i);
        if (!w)
            continue; /* forgotten since: the client asked for more than the rings hold */
        trace_fill(c, w, at + TRACE_STAGE_NUMBERS * c->world.size * part.n_steps,
                   &steps[part.n_steps]);
        part.steps[part.n_steps] = &steps[part.n_steps];
        part.n_steps++;
    }
    t->next += n;
    t->told_us = now;
    if (part.n_steps)
        send(c, t, &part);
    free(part.steps);
    free(at);
    free(steps);
}

/* ── time ──────────────────────────────────────────────────────────────────────────────────── */

static void tick(struct coordinator *c, struct trace *t, uint64_t now)
{
    bool over = now >= t->until_us;
    if (c->world.state != WORLD_SERVING || (t->begun && t->epoch != c->world.epoch)) {
        if (t->begun || over)
            send_last(c, t, t->begun ? "the ranks were lost" : "no ranks serve");
        return;
    }
    if (!t->begun) {
        uint32_t kept = times_kept(c);
        t->begun = true;
        t->epoch = c->world.epoch;
        t->next = !t->past ? c->next_step : c->next_step > kept ? c->next_step - kept : 1;
        send_stages(c, t);
    }
    if (over && !t->last)
        t->last = c->next_step - 1;
    uint64_t told = over ? t->last : UINT64_MAX;
    for (uint32_t i = 0; i < c->world.size; i++)
        told = times_last(c, i) < told ? times_last(c, i) : told;
    bool late = over && now >= t->until_us + GRACE_US;
    if (late)
        told = t->last;
    for (int i = 0; i < TICK_PARTS && told >= t->next &&
                    (over || now - t->told_us >= TRACE_PART_US ||
                     (told + 1 - t->next) * c->world.size >= TRACE_PART_ENTRIES);
         i++)
        send_steps(c, t, told, now);
    if (over && t->next > t->last)
        send_last(c, t, late ? "some ranks did not tell of the last steps in time" : "");
}

void trace_tick(struct coordinator *c, uint64_t now)
{
    for (int i = 0; c->traces && i < TRACE_CLIENTS; i++)
        if (c->traces->of[i].peer.size)
            tick(c, &c->traces->of[i], now);
}

uint64_t trace_next(const struct coordinator *c, uint64_t now)
{
    return c->traces ? now + TRACE_PART_US / 4 : UINT64_MAX;
}
