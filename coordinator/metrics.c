#include "coordinator/metrics.h"

#include <stdlib.h>

#include "coordinator/core.h"
#include "coordinator/exposition.h"
#include "coordinator/recent.h"

#define WINDOW_SECONDS     5.0
#define WINDOW_SECONDS_MAX 15.0

/* vLLM's edges, so that dashboards carry over; finer below. */
static const double first_token_edges[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                           1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
static const double token_edges[] = {.0005, .001, .002, .005, .01, .025, .05, .075, .1, .15, .2, .3,
                                     .4,    .5,   .75,  1,    2.5, 5,    7.5, 10,   20, 40,  80};
static const double request_edges[] = {.01, .05, .1, .3, .5, .8, 1,   1.5, 2,   2.5, 5,    10,
                                       15,  20,  30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
static const double size_edges[] = {1,    2,    5,    10,    20,    50,    100,    200,   500,
                                    1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000};
static const double step_edges[] = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};

enum histogram {
    FIRST_TOKEN,
    BETWEEN_TOKENS,
    OUTPUT_TOKEN,
    REQUEST_TIME,
    QUEUE_TIME,
    PREFILL_TIME,
    DECODE_TIME,
    PROMPT_TOKENS,
    ANSWER_TOKENS,
    STEP_TOKENS,
    N_HISTOGRAMS
};

#define EDGES(e) e, sizeof(e) / sizeof *(e)
static const struct {
    const char *name;
    const double *edges;
    size_t n_edges;
    const char *help;
} histograms[N_HISTOGRAMS] = {
    [FIRST_TOKEN] = {"time_to_first_token_seconds", EDGES(first_token_edges),
                     "From a request's acceptance to its first token."},
    [BETWEEN_TOKENS] = {"inter_token_latency_seconds", EDGES(token_edges),
                        "Between two tokens of a request."},
    [OUTPUT_TOKEN] = {"request_time_per_output_token_seconds", EDGES(token_edges),
                      "Mean time of a finished request's tokens after the first."},
    [REQUEST_TIME] = {"e2e_request_latency_seconds", EDGES(request_edges),
                      "From a request's acceptance to its end."},
    [QUEUE_TIME] = {"request_queue_time_seconds", EDGES(request_edges),
                    "From a request's acceptance to its first step."},
    [PREFILL_TIME] = {"request_prefill_time_seconds", EDGES(request_edges),
                      "From a request's first step to its first token."},
    [DECODE_TIME] = {"request_decode_time_seconds", EDGES(request_edges),
                     "From a request's first token to its end."},
    [PROMPT_TOKENS] = {"request_prompt_tokens", EDGES(size_edges),
                       "Tokens of a finished request's prompt."},
    [ANSWER_TOKENS] = {"request_generation_tokens", EDGES(size_edges),
                       "Tokens sampled for a finished request."},
    [STEP_TOKENS] = {"iteration_tokens_total", EDGES(step_edges), "Tokens of a step."},
};

static const char *const reasons[] = {"stop", "length", "tool_calls", "cancelled", "error"};
static const char *const codes[] = {"ok",       "invalid",       "too_long",
                                    "busy",     "not_found",     "duplicate",
                                    "deadline", "shutting_down", "internal"};
enum { N_REASONS = sizeof reasons / sizeof *reasons, N_CODES = sizeof codes / sizeof *codes };

struct metrics {
    struct exposition_histogram histograms[N_HISTOGRAMS];
    uint64_t finished[N_REASONS], refused[N_CODES];
    uint64_t restarts, replayed;
    struct recent_rate steps, sampled, prompt;
    struct recent_durations first_token, between_tokens;
};

void metrics_create(struct coordinator *c)
{
    c->metrics = base_alloc(1, sizeof *c->metrics);
    c->metrics->first_token.slot_us = 6 * CORE_SECOND;
    c->metrics->between_tokens.slot_us = CORE_SECOND;
}

void metrics_destroy(struct coordinator *c)
{
    free(c->metrics);
    c->metrics = NULL;
}

/* ── what happens ──────────────────────────────────────────────────────────────────────────── */

static void observe(struct coordinator *c, enum histogram h, double value)
{
    exposition_observe(&c->metrics->histograms[h], histograms[h].edges, histograms[h].n_edges,
                       value);
}

static uint64_t passed(uint64_t from, uint64_t to)
{
    return to > from ? to - from : 0;
}

void metrics_refused(struct coordinator *c, Gptoss__Code code)
{
    c->metrics->refused[(unsigned)code < N_CODES ? (unsigned)code : 0]++;
}

void metrics_token(struct coordinator *c, struct request *r, uint64_t now)
{
    struct metrics *m = c->metrics;
    uint64_t us = passed(r->first_token_us ? r->last_token_us : r->accepted_us, now);
    r->last_token_us = now;
    recent_count(&m->sampled, 1, now);
    observe(c, r->first_token_us ? BETWEEN_TOKENS : FIRST_TOKEN, (double)us / CORE_SECOND);
    recent_duration(r->first_token_us ? &m->between_tokens : &m->first_token, us, now);
}

void metrics_finished(struct coordinator *c, const struct request *r,
                      Gptoss__Finished__Reason reason, uint64_t now)
{
    c->metrics->finished[(unsigned)reason < N_REASONS ? (unsigned)reason : N_REASONS - 1]++;
    size_t n = r->tokens.count - r->n_prompt;
    observe(c, REQUEST_TIME, (double)passed(r->accepted_us, now) / CORE_SECOND);
    observe(c, PROMPT_TOKENS, (double)r->n_prompt);
    observe(c, ANSWER_TOKENS, (double)n);
    if (r->first_step_us)
        observe(c, QUEUE_TIME, (double)passed(r->accepted_us, r->first_step_us) / CORE_SECOND);
    if (!r->first_token_us)
        return;
    observe(c, PREFILL_TIME, (double)passed(r->first_step_us, r->first_token_us) / CORE_SECOND);
    observe(c, DECODE_TIME, (double)passed(r->first_token_us, now) / CORE_SECOND);
    if (n > 1)
        observe(c, OUTPUT_TOKEN,
                (double)passed(r->first_token_us, r->last_token_us) / CORE_SECOND /
                    (double)(n - 1));
}

void metrics_step(struct coordinator *c, const struct times_work *work, uint64_t now)
{
    recent_count(&c->metrics->steps, 1, now);
    recent_count(&c->metrics->prompt, work->prompt_tokens, now);
    observe(c, STEP_TOKENS, work->tokens);
}

void metrics_lost(struct coordinator *c, uint32_t replayed)
{
    c->metrics->restarts++;
    c->metrics->replayed += replayed;
}

/* ── status ────────────────────────────────────────────────────────────────────────────────── */

void metrics_status(const struct coordinator *c, double window_seconds, uint64_t now,
                    Gptoss__Status *status, Gptoss__Latency latencies[2])
{
    const struct metrics *m = c->metrics;
    double seconds = window_seconds > 0.5 ? window_seconds : WINDOW_SECONDS;
    if (seconds > WINDOW_SECONDS_MAX)
        seconds = WINDOW_SECONDS_MAX;
    struct coordinator_occupancy o = {
        .busy = base_alloc(c->world.size + 1, sizeof *o.busy),
        .hop_seconds = base_alloc(c->world.size + 1, sizeof *o.hop_seconds),
    };
    times_occupancy(c, seconds, now, &o);
    status->window_seconds = o.seconds;
    status->bubble_share = o.bubble;
    status->hop_seconds = o.hop_mean_seconds;
    for (uint32_t i = 0; c->times && i < c->world.size; i++) {
        status->stages[i]->busy_share = o.busy[i];
        status->stages[i]->hop_seconds = o.hop_seconds[i];
    }
    free(o.busy);
    free(o.hop_seconds);
    status->steps_per_second = recent_rate(&m->steps, seconds, c->started_us, now);
    status->sampled_per_second = recent_rate(&m->sampled, seconds, c->started_us, now);
    status->prompt_per_second = recent_rate(&m->prompt, seconds, c->started_us, now);
    recent_latency(&m->first_token, now, &latencies[0]);
    recent_latency(&m->between_tokens, now, &latencies[1]);
    status->first_token = &latencies[0];
    status->between_tokens = &latencies[1];
    status->preemptions = c->n_preemptions;
    status->restarts = m->restarts;
}

/* ── Prometheus ────────────────────────────────────────────────────────────────────────────── */

static void gauge(struct text *t, const char *name, const char *help, double value)
{
    exposition_head(t, name, "gauge", help);
    exposition_sample(t, name, NULL, value);
}

static void counter(struct text *t, const char *name, const char *help, uint64_t value)
{
    exposition_head(t, name, "counter", help);
    exposition_count(t, name, NULL, value);
}

/* A family of counters with one label. */
static void counters(struct text *t, const char *name, const char *help, const char *label,
                     const char *const *words, const uint64_t *values, size_t n, size_t first)
{
    exposition_head(t, name, "counter", help);
    for (size_t i = first; i < n; i++) {
        struct text labels = {0};
        exposition_label(&labels, label, words[i]);
        exposition_count(t, name, &labels, values[i]);
        text_free(&labels);
    }
}

static double share(uint32_t used, uint32_t all)
{
    return all ? (double)used / all : 0;
}

static void write_pools(const struct coordinator *c, struct text *t,
                        const struct coordinator_counts *counts)
{
    const struct plan *plan = c->world.state == WORLD_SERVING ? c->world.plan : NULL;
    const uint32_t all[2] = {plan ? plan->full_blocks : 0, plan ? plan->window_blocks : 0};
    const uint32_t used[2] = {counts->full_blocks_used, counts->window_blocks_used};
    double full = share(used[0], all[0]), window = share(used[1], all[1]);
    gauge(t, "kv_cache_usage_perc", "The fuller KV pool's blocks in use, 0 to 1.",
          full > window ? full : window);
    const uint32_t cached[2] = {counts->full_blocks_cached, counts->window_blocks_cached};
    static const struct {
        const char *name, *help;
    } families[] = {{"kv_blocks", "KV blocks of a pool."},
                    {"kv_blocks_used", "KV blocks in use."},
                    {"kv_blocks_cached", "KV blocks kept for prompts that begin alike."}};
    for (int what = 0; what < 3; what++) {
        const char *name = families[what].name;
        exposition_head(t, name, "gauge", families[what].help);
        for (int pool = 0; pool < 2; pool++) {
            struct text labels = {0};
            exposition_label(&labels, "pool", pool ? "window" : "full");
            exposition_count(t, name, &labels, (what == 0 ? all : what == 1 ? used : cached)[pool]);
            text_free(&labels);
        }
    }
}

enum stage_value { UP, LAYERS, QUEUE, BUSY, WAITED, STEPS, N_STAGE_VALUES };

static void write_stage(const struct coordinator *c, struct text *t, uint32_t i,
                        enum stage_value what, const char *name)
{
    const struct rank *rank = &c->world.ranks[i];
    struct text labels = {0};
    char number[16];
    snprintf(number, sizeof number, "%u", i);
    exposition_label(&labels, "rank", number);
    switch (what) {
    case UP:
        exposition_label(&labels, "host", rank->host);
        exposition_label(&labels, "device", rank->device);
        exposition_count(t, name, &labels, c->world.state == WORLD_SERVING);
        break;
    case LAYERS:
        exposition_count(t, name, &labels,
                         c->world.plan ? c->world.plan->stages[i].layer_count : 0);
        break;
    case QUEUE: exposition_count(t, name, &labels, rank->queue); break;
    case BUSY: exposition_sample(t, name, &labels, rank->busy_seconds); break;
    case STEPS: exposition_count(t, name, &labels, rank->steps); break;
    case WAITED: {
        double recv, send;
        size_t size = labels.size;
        times_waited(c, i, &recv, &send);
        exposition_label(&labels, "on", "recv");
        exposition_sample(t, name, &labels, recv);
        labels.bytes[labels.size = size] = 0;
        exposition_label(&labels, "on", "send");
        exposition_sample(t, name, &labels, send);
        break;
    }
    case N_STAGE_VALUES: break;
    }
    text_free(&labels);
}

static void write_stages(const struct coordinator *c, struct text *t)
{
    static const struct {
        const char *name, *kind, *help;
    } families[N_STAGE_VALUES] = {
        [UP] = {"rank_up", "gauge", "1: the rank serves."},
        [LAYERS] = {"stage_layers", "gauge", "Layers of the stage."},
        [QUEUE] = {"stage_queue", "gauge", "Steps that are at the stage."},
        [BUSY] = {"stage_busy_seconds_total", "counter", "Time that the stage's device worked."},
        [WAITED] = {"stage_wait_seconds_total", "counter",
                    "Time that steps kept the stage waiting: the device idle for inputs (recv), "
                    "outputs on their way (send)."},
        [STEPS] = {"stage_steps_total", "counter", "Steps that the stage has done."},
    };
    for (int f = 0; f < N_STAGE_VALUES; f++) {
        exposition_head(t, families[f].name, families[f].kind, families[f].help);
        for (uint32_t i = 0; i < c->world.size; i++)
            write_stage(c, t, i, (enum stage_value)f, families[f].name);
    }
}

static void write_all(const struct coordinator *c, struct text *t, uint64_t now)
{
    const struct metrics *m = c->metrics;
    struct coordinator_counts counts;
    coordinator_counts(c, &counts);
    struct text labels = {0};
    exposition_label(&labels, "version", GPTOSS_VERSION);
    exposition_head(t, "build_info", "gauge", "Always 1; the labels say what runs.");
    exposition_count(t, "build_info", &labels, 1);
    text_free(&labels);
    gauge(t, "uptime_seconds", "Since the coordinator's start.",
          (double)passed(c->started_us, now) / CORE_SECOND);
    gauge(t, "num_requests_running", "Requests with rows in steps.", counts.running);
    gauge(t, "num_requests_waiting", "Requests that wait for a slot, blocks or ranks.",
          counts.waiting);
    write_pools(c, t, &counts);
    gauge(t, "steps_in_flight", "Steps in the pipeline.", counts.steps_in_flight);
    counter(t, "steps_total", "Steps issued.", counts.steps);
    counter(t, "num_preemptions_total", "Requests whose KV blocks were taken by older ones.",
            counts.preemptions);
    counter(t, "prefix_cache_queries_total", "Tokens of prompts, looked up in the KV cache.",
            counts.prompt_tokens);
    counter(t, "prefix_cache_hits_total", "Tokens found in the KV cache instead of computed.",
            counts.cached_tokens);
    counter(t, "kv_blocks_evicted_total", "Cached KV blocks whose room was needed.",
            counts.blocks_evicted);
    counter(t, "prompt_tokens_total", "Tokens of accepted prompts.", counts.prompt_tokens);
    counter(t, "generation_tokens_total", "Tokens sampled.", counts.sampled_tokens);
    counters(t, "request_success_total", "Requests that ended, by how.", "finished_reason", reasons,
             m->finished, N_REASONS, 0);
    counters(t, "requests_refused_total", "Messages that were refused, by code.", "code", codes,
             m->refused, N_CODES, 1);
    counter(t, "rank_restarts_total", "Times that the ranks were lost.", m->restarts);
    counter(t, "requests_replayed_total", "Running requests that were started anew with new ranks.",
            m->replayed);
    struct coordinator_occupancy o = {
        .busy = base_alloc(c->world.size + 1, sizeof *o.busy),
        .hop_seconds = base_alloc(c->world.size + 1, sizeof *o.hop_seconds),
    };
    times_occupancy(c, WINDOW_SECONDS, now, &o);
    gauge(t, "bubble_share", "Of the last 5 s: 1 - busy time of all stages / (stages x time).",
          o.seconds > 0 ? o.bubble : 0);
    gauge(t, "hop_seconds", "Of the last 5 s: mean from a stage's end to the next one's inputs.",
          o.hop_mean_seconds);
    free(o.busy);
    free(o.hop_seconds);
    write_stages(c, t);
    for (int h = 0; h < N_HISTOGRAMS; h++)
        exposition_histogram(t, histograms[h].name, histograms[h].help, &m->histograms[h],
                             histograms[h].edges, histograms[h].n_edges);
}

void metrics_answer(struct coordinator *c, const struct core_peer *peer, uint64_t now)
{
    struct text t = {0};
    write_all(c, &t, now);
    Gptoss__Metrics metrics = GPTOSS__METRICS__INIT;
    metrics.text = core_binary(t.bytes, t.size);
    Gptoss__ServerMessage m = GPTOSS__SERVER_MESSAGE__INIT;
    m.body_case = GPTOSS__SERVER_MESSAGE__BODY_METRICS;
    m.metrics = &metrics;
    core_send_client(c, peer, &m);
    text_free(&t);
}
