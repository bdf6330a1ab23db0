/*
 * sim_world: ranks and clients around the coordinator, in virtual time.
 *
 * A step's way is known when it is issued: it starts on a stage when it has come there, the stage has
 * done the step before, and (on stage 0) the tokens that it refers to have come back; it takes what the
 * stage's costs say, and as much more or less, by chance, as steps of one kind were seen to differ:
 * stages whose steps are of uneven length wait for each other.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/simulate.h"

#define PEER_RANK   "rank"
#define PEER_CLIENT "client"
#define SECOND      1e6 /* times here are µs */

struct asked {
    double begun, first, last; /* µs; first 0: no token yet */
    uint32_t prompt, output, got;
    bool over;
};

struct answer { /* of a step, on its way back */
    double at;
    struct text bytes;
};

struct span {
    double from, to;
};

struct sim {
    const struct sim_options *o;
    struct coordinator *c;
    struct plan *plan; /* as the ranks are told it */
    struct cost_stage *stages;
    double (*spread)[COST_SPREAD]; /* [n_stages] */
    uint64_t epoch;
    double now;

    double *free_at;        /* [n_stages] */
    double *token_at;       /* [sequences] when the slot's last sampled token was back on stage 0 */
    struct answer *answers; /* [first_answer … n_answers − 1] in order */
    size_t first_answer, n_answers, answers_capacity;
    struct span *spans; /* of all stages, when they worked */
    size_t n_spans, spans_capacity;
    uint64_t n_steps, n_rows;

    struct asked *requests; /* [o->requests] */
    uint32_t n_asked, n_over, n_failed;
    uint32_t due;        /* to be asked at once */
    double next_arrival; /* of those that come by themselves; INFINITY: none */
    double worst_gap;
    uint64_t random, chance; /* of what is asked; of what steps take */
    struct bench_vocabulary vocabulary;
    char *err;
    size_t err_size;
    bool broken;
};

static double draw(uint64_t *random) /* 0 ≤ … < 1 */
{
    uint64_t z = (*random += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static void broke(struct sim *s, const char *what, const char *text)
{
    if (!s->broken)
        snprintf(s->err, s->err_size, "%s%s", what, text);
    s->broken = true;
}

/* ── ranks ─────────────────────────────────────────────────────────────────────────────────── */

static void rank_send(struct sim *s, uint32_t rank, Gptoss__RankMessage *m)
{
    char peer[32];
    size_t size, peer_size = (size_t)snprintf(peer, sizeof peer, PEER_RANK "%" PRIu32, rank);
    m->epoch = s->epoch;
    void *bytes = proto_pack(&m->base, &size);
    coordinator_receive(s->c, COORDINATOR_RANKS, peer, peer_size, bytes, size, (uint64_t)s->now);
    free(bytes);
}

static void rank_hello(struct sim *s, uint32_t rank)
{
    Gptoss__Hello hello = GPTOSS__HELLO__INIT;
    hello.world = 1;
    hello.rank = rank;
    hello.size = s->o->n_stages;
    hello.protocol = PROTO_VERSION;
    Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
    m.body_case = GPTOSS__RANK_MESSAGE__BODY_HELLO;
    m.hello = &hello;
    rank_send(s, rank, &m);
}

static void rank_join(struct sim *s, uint32_t rank)
{
    const struct sim_costs *costs = s->o->costs;
    char uuid[32];
    snprintf(uuid, sizeof uuid, "simulated %" PRIu32, rank);
    Gptoss__Join join = GPTOSS__JOIN__INIT;
    join.rank = rank;
    join.size = s->o->n_stages;
    join.host = (char *)(uintptr_t) "simulated";
    join.device = (char *)(uintptr_t) "simulated";
    join.device_uuid = uuid;
    join.backend = (char *)(uintptr_t)(costs && costs->gpu ? "cuda" : "cpu");
    join.transports = (char *)(uintptr_t) "mpi";
    join.memory_free_bytes = costs ? costs->memory_bytes : 0;
    join.bandwidth = costs ? costs->bandwidth : 0;
    join.header_digest = gguf_header_digest(s->o->model->file);
    join.header_bytes = gguf_header_bytes(s->o->model->file);
    Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
    m.body_case = GPTOSS__RANK_MESSAGE__BODY_JOIN;
    m.join = &join;
    rank_send(s, rank, &m);
}

static void rank_ready(struct sim *s, const Gptoss__Plan *plan)
{
    struct plan_stage *part = &s->plan->stages[plan->stage];
    part->layer_first = plan->layer_first;
    part->layer_count = plan->layer_count;
    part->head_first = plan->head_first;
    part->head_count = plan->head_count;
    part->full_layers = part->window_layers = 0;
    for (uint32_t i = 0; i < part->layer_count; i++)
        *(s->o->model->layers[part->layer_first + i].sliding ? &part->window_layers
                                                             : &part->full_layers) += 1;
    s->plan->kv_type = plan->kv_type == GPTOSS__PLAN__KV_TYPE__F32 ? PLAN_KV_F32 : PLAN_KV_F16;
    if (s->o->stages)
        s->stages[plan->stage] = s->o->stages[plan->stage];
    else
        sim_costs_stage(s->o->costs, s->o->model, s->plan, plan->stage, &s->stages[plan->stage]);
    if (!s->token_at)
        s->token_at = base_alloc(plan->sequences, sizeof *s->token_at);
    Gptoss__Ready ready = GPTOSS__READY__INIT;
    Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
    m.body_case = GPTOSS__RANK_MESSAGE__BODY_READY;
    m.ready = &ready;
    rank_send(s, plan->stage, &m);
}

static void rank_beat(struct sim *s, uint32_t rank)
{
    Gptoss__RankHeartbeat beat = GPTOSS__RANK_HEARTBEAT__INIT;
    Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
    beat.rank = rank;
    m.body_case = GPTOSS__RANK_MESSAGE__BODY_HEARTBEAT;
    m.heartbeat = &beat;
    rank_send(s, rank, &m);
}

static double hop(const struct sim *s, double tokens)
{
    double bytes = tokens * s->o->model->hidden * 4;
    return (s->o->hop_seconds + (s->o->hop_bandwidth > 0 ? bytes / s->o->hop_bandwidth : 0)) *
           SECOND;
}

/* When each stage works on the step, and when the last is done. */
static double pass(struct sim *s, const struct cost_work *work, double ready)
{
    double at = ready;
    s->spans =
        base_grow(s->spans, &s->spans_capacity, s->n_spans + s->o->n_stages, sizeof *s->spans);
    for (uint32_t i = 0; i < s->o->n_stages; i++) {
        if (i > 0)
            at += hop(s, work->tokens);
        if (at < s->free_at[i])
            at = s->free_at[i];
        double from = at;
        double ratio = s->spread[i][(int)(draw(&s->chance) * COST_SPREAD)];
        at += cost_seconds(&s->stages[i], work) * ratio * SECOND;
        s->free_at[i] = at;
        s->spans[s->n_spans++] = (struct span){from, at};
    }
    /* The rows of a cut head go to every stage, which does its part before anything else (its time is
     * in what the step takes there), and come back. */
    const struct plan_stage *last = &s->plan->stages[s->o->n_stages - 1];
    if (work->samples > 0 && last->head_count < s->o->model->vocabulary)
        at += 2 * hop(s, work->samples);
    return at;
}

static void rank_step(struct sim *s, const Gptoss__Step *step)
{
    struct cost_work work = {0};
    double ready = s->now + s->o->link_seconds * SECOND;
    size_t n = 0;
    for (size_t i = 0; i < step->n_rows; i++) {
        const Gptoss__Row *row = step->rows[i];
        cost_add(&work, s->o->model, row->position, row->count, row->count - row->sample_from);
        n += row->count - row->sample_from;
        if (row->n_tokens == 0 && s->token_at[row->slot] > ready)
            ready = s->token_at[row->slot];
    }
    double done = pass(s, &work, ready);

    Gptoss__StepResult result = GPTOSS__STEP_RESULT__INIT;
    Gptoss__Sample *samples = base_alloc(n, sizeof *samples);
    result.samples = base_alloc(n, sizeof *result.samples);
    result.step = step->step;
    for (size_t i = 0; i < step->n_rows; i++) {
        const Gptoss__Row *row = step->rows[i];
        for (uint32_t k = row->sample_from; k < row->count; k++) {
            Gptoss__Sample *sample = &samples[result.n_samples];
            gptoss__sample__init(sample);
            sample->row = (uint32_t)i;
            sample->position = row->position + k;
            bench_prompt(&s->vocabulary, s->o->seed, row->slot + row->position, &sample->token, 1);
            result.samples[result.n_samples++] = sample;
            s->token_at[row->slot] = done + (s->o->n_stages > 1 ? hop(s, 0) : 0);
        }
    }
    Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
    m.epoch = s->epoch;
    m.body_case = GPTOSS__RANK_MESSAGE__BODY_RESULT;
    m.result = &result;
    s->answers = base_grow(s->answers, &s->answers_capacity, s->n_answers + 1, sizeof *s->answers);
    struct answer *answer = &s->answers[s->n_answers++];
    *answer = (struct answer){.at = done + s->o->link_seconds * SECOND};
    answer->bytes.bytes = proto_pack(&m.base, &answer->bytes.size);
    s->n_steps++;
    s->n_rows += step->n_rows;
    free(result.samples);
    free(samples);
}

static void rank_receive(struct sim *s, uint32_t rank, const Gptoss__SupervisorMessage *m)
{
    switch (m->body_case) {
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_WELCOME:
        s->epoch = m->epoch;
        rank_join(s, rank);
        break;
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_PLAN: rank_ready(s, m->plan); break;
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_STEP: rank_step(s, m->step); break;
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_HEARTBEAT: rank_beat(s, rank); break;
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_REFUSED: broke(s, "", m->refused->text); break;
    default: break;
    }
}

/* ── clients ───────────────────────────────────────────────────────────────────────────────── */

static uint32_t length(struct sim *s, uint32_t mean)
{
    double value = mean * (1 + s->o->spread * (2 * draw(&s->random) - 1));
    return value < 1 ? 1 : (uint32_t)value;
}

static void ask(struct sim *s)
{
    uint32_t number = s->n_asked++;
    struct asked *r = &s->requests[number];
    *r = (struct asked){.begun = s->now};
    r->prompt = length(s, s->o->prompt);
    r->output = length(s, s->o->output);
    uint32_t *ids = base_alloc(r->prompt, sizeof *ids);
    bench_prompt(&s->vocabulary, s->o->seed, number, ids, r->prompt);
    Gptoss__TokenIds prompt = GPTOSS__TOKEN_IDS__INIT;
    prompt.n_ids = r->prompt;
    prompt.ids = ids;
    Gptoss__Generate g = GPTOSS__GENERATE__INIT;
    g.request_id = (ProtobufCBinaryData){.data = (uint8_t *)&number, .len = sizeof number};
    g.prompt_case = GPTOSS__GENERATE__PROMPT_IDS;
    g.ids = &prompt;
    g.max_tokens = r->output;
    g.ignore_eos = true;
    Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
    m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_GENERATE;
    m.generate = &g;
    size_t size;
    void *bytes = proto_pack(&m.base, &size);
    coordinator_receive(s->c, COORDINATOR_CLIENTS, PEER_CLIENT, strlen(PEER_CLIENT), bytes, size,
                        (uint64_t)s->now);
    free(bytes);
    free(ids);
}

/* The next request of those that come by themselves. */
static void next_arrival(struct sim *s)
{
    s->next_arrival = s->n_asked >= s->o->requests
                          ? INFINITY
                          : s->now - log(1 - draw(&s->random)) / s->o->rate * SECOND;
}

static struct asked *find(struct sim *s, ProtobufCBinaryData id)
{
    uint32_t number;
    if (id.len != sizeof number)
        return NULL;
    memcpy(&number, id.data, sizeof number);
    return number < s->n_asked ? &s->requests[number] : NULL;
}

static void over(struct sim *s, struct asked *r, bool well)
{
    if (!r || r->over)
        return;
    r->over = true;
    s->n_over++;
    s->n_failed += !well;
    if (s->o->clients && s->n_asked + s->due < s->o->requests)
        s->due++; /* its client asks again */
}

static void client_receive(struct sim *s, const Gptoss__ServerMessage *m)
{
    if (m->body_case == GPTOSS__SERVER_MESSAGE__BODY_OUTPUT) {
        struct asked *r = find(s, m->output->request_id);
        if (!r)
            return;
        if (r->got == 0)
            r->first = s->now;
        else if (s->now - r->last > s->worst_gap)
            s->worst_gap = s->now - r->last;
        r->last = s->now;
        r->got += (uint32_t)m->output->n_tokens;
    } else if (m->body_case == GPTOSS__SERVER_MESSAGE__BODY_FINISHED) {
        over(s, find(s, m->finished->request_id),
             m->finished->reason != GPTOSS__FINISHED__REASON__ERROR);
    } else if (m->body_case == GPTOSS__SERVER_MESSAGE__BODY_REFUSED) {
        broke(s, "the coordinator refused a request: ", m->refused->text);
    }
}

/* ── time ──────────────────────────────────────────────────────────────────────────────────── */

static void take_events(struct sim *s)
{
    struct coordinator_event e;
    char err[256], peer[64];
    while (!s->broken && coordinator_take(s->c, &e)) {
        if (e.kind == COORDINATOR_LOST || e.kind == COORDINATOR_IMPOSSIBLE)
            broke(s, "", e.bytes);
        if (e.kind != COORDINATOR_SEND)
            continue;
        bool to_rank = e.side == COORDINATOR_RANKS;
        snprintf(peer, sizeof peer, "%.*s", (int)e.peer_size, (const char *)e.peer);
        ProtobufCMessage *m = proto_unpack(to_rank ? &gptoss__supervisor_message__descriptor
                                                   : &gptoss__server_message__descriptor,
                                           e.bytes, e.size, err, sizeof err);
        if (!m)
            broke(s, "", err);
        else if (to_rank)
            rank_receive(s, (uint32_t)strtoul(peer + strlen(PEER_RANK), NULL, 10),
                         (Gptoss__SupervisorMessage *)m);
        else
            client_receive(s, (Gptoss__ServerMessage *)m);
        proto_free(m);
    }
}

static void deliver(struct sim *s, struct answer *answer)
{
    char peer[32];
    size_t peer_size =
        (size_t)snprintf(peer, sizeof peer, PEER_RANK "%" PRIu32, s->o->n_stages - 1);
    coordinator_receive(s->c, COORDINATOR_RANKS, peer, peer_size, answer->bytes.bytes,
                        answer->bytes.size, (uint64_t)s->now);
    text_free(&answer->bytes);
}

/* To the next thing that happens: a result, a request, or the coordinator's own time. */
static void advance(struct sim *s)
{
    double next = (double)coordinator_next(s->c, (uint64_t)s->now) + 1;
    if (s->next_arrival < next)
        next = s->next_arrival;
    if (s->due)
        next = s->now;
    struct answer *answer = s->first_answer < s->n_answers ? &s->answers[s->first_answer] : NULL;
    if (answer && answer->at <= next) {
        next = answer->at;
        s->first_answer++;
    } else {
        answer = NULL;
    }
    if (next > s->now)
        s->now = next;
    if (answer)
        deliver(s, answer);
    for (; s->due; s->due--)
        ask(s);
    if (s->next_arrival <= s->now) {
        ask(s);
        next_arrival(s);
    }
    coordinator_tick(s->c, (uint64_t)s->now);
    take_events(s);
    if (s->first_answer == s->n_answers)
        s->first_answer = s->n_answers = 0;
}

/* ── the result ────────────────────────────────────────────────────────────────────────────── */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static struct sim_quantiles quantiles(double *values, size_t n)
{
    if (n == 0)
        return (struct sim_quantiles){0};
    qsort(values, n, sizeof *values, by_value);
    return (struct sim_quantiles){values[(n - 1) / 2], values[(n - 1) * 9 / 10],
                                  values[(n - 1) * 99 / 100]};
}

/* Idle share of the stages between two times. */
static double bubble(const struct sim *s, double from, double to)
{
    double busy = 0;
    for (size_t i = 0; i < s->n_spans; i++) {
        double begin = fmax(s->spans[i].from, from), end = fmin(s->spans[i].to, to);
        busy += end > begin ? end - begin : 0;
    }
    return to > from ? 1 - busy / ((to - from) * s->o->n_stages) : 0;
}

static void summarise(struct sim *s, struct sim_result *result)
{
    double begin = INFINITY, end = 0, tokens = 0, prompt = 0;
    double *first = base_alloc(s->n_asked, sizeof *first);
    double *mean = base_alloc(s->n_asked, sizeof *mean);
    size_t n_first = 0, n_mean = 0;
    for (uint32_t i = 0; i < s->n_asked; i++) {
        const struct asked *r = &s->requests[i];
        begin = fmin(begin, r->begun);
        end = fmax(end, r->last);
        tokens += r->got;
        prompt += r->prompt;
        if (r->got)
            first[n_first++] = (r->first - r->begun) / SECOND;
        if (r->got > 1)
            mean[n_mean++] = (r->last - r->first) / (r->got - 1) / SECOND;
    }
    struct coordinator_counts counts;
    coordinator_counts(s->c, &counts);
    double seconds = end > begin ? (end - begin) / SECOND : 0;
    *result = (struct sim_result){
        .finished = s->n_over - s->n_failed,
        .failed = s->n_failed,
        .seconds = seconds,
        .output_speed = seconds > 0 ? tokens / seconds : 0,
        .prompt_speed = seconds > 0 ? prompt / seconds : 0,
        .first_token = quantiles(first, n_first),
        .token = quantiles(mean, n_mean),
        .worst_gap = s->worst_gap / SECOND,
        .bubble = bubble(s, begin, end),
        .steady_bubble = bubble(s, begin + (end - begin) / 4, begin + (end - begin) * 3 / 4),
        .rows = s->n_steps ? (double)s->n_rows / (double)s->n_steps : 0,
        .steps = s->n_steps,
        .preemptions = counts.preemptions,
    };
    struct text layers = {0};
    for (uint32_t i = 0; i < s->o->n_stages; i++)
        text_print(&layers, "%s%" PRIu32, i ? "," : "", s->plan->stages[i].layer_count);
    snprintf(result->layers, sizeof result->layers, "%s", layers.bytes);
    text_free(&layers);
    free(mean);
    free(first);
}

static void sim_free(struct sim *s)
{
    for (size_t i = s->first_answer; i < s->n_answers; i++)
        text_free(&s->answers[i].bytes);
    free(s->answers);
    free(s->spans);
    free(s->requests);
    free(s->free_at);
    free(s->token_at);
    free(s->stages);
    free(s->spread);
    if (s->plan)
        free(s->plan->stages);
    free(s->plan);
    coordinator_destroy(s->c);
}

int sim_run(const struct sim_options *o, struct sim_result *result, char *err, size_t err_size)
{
    struct sim s = {.o = o, .now = SECOND, .random = o->seed, .chance = ~o->seed};
    s.err = err;
    s.err_size = err_size;
    struct coordinator_options options = o->coordinator;
    int status = -1;
    options.model = o->model;
    options.model_path = o->path;
    options.max_queue = o->requests + 1;
    bench_vocabulary(o->model, &s.vocabulary);
    if (coordinator_create(&s.c, &options, err, err_size))
        return -1;
    s.free_at = base_alloc(o->n_stages, sizeof *s.free_at);
    s.stages = base_alloc(o->n_stages, sizeof *s.stages);
    s.spread = base_alloc(o->n_stages, sizeof *s.spread);
    for (uint32_t i = 0; i < o->n_stages; i++)
        sim_costs_spread(o->costs, i, o->n_stages, s.spread[i]);
    s.plan = base_alloc(1, sizeof *s.plan);
    s.plan->n_stages = o->n_stages;
    s.plan->stages = base_alloc(o->n_stages, sizeof *s.plan->stages);
    s.requests = base_alloc(o->requests, sizeof *s.requests);
    for (uint32_t i = 0; i < o->n_stages; i++)
        rank_hello(&s, i);
    take_events(&s);
    s.next_arrival = INFINITY;
    if (o->clients)
        s.due = o->clients < o->requests ? o->clients : o->requests;
    else if (o->rate > 0)
        next_arrival(&s);
    else
        s.due = o->requests;
    while (s.n_over < o->requests && !s.broken && !bench_interrupted())
        advance(&s);
    if (!s.broken && s.n_over == o->requests) {
        summarise(&s, result);
        status = 0;
    } else if (!s.broken) {
        snprintf(err, err_size, "interrupted");
    }
    sim_free(&s);
    return status;
}
