/*
 * ranks: the life of a world of ranks: joining, planning, loading, serving, loss.
 *
 *   NONE ──Hello──▶ JOINING ──all joined: plan──▶ LOADING ──all ready──▶ SERVING
 *     ▲────────────────┴──── a rank is silent, fails or leaves ─────────────┘
 *
 * Each world gets an epoch of its own; what carries another epoch is dropped.
 */
#include "coordinator/core.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define RANKS_MAX 4096

static void supervisor_init(Gptoss__SupervisorMessage *m, Gptoss__SupervisorMessage__BodyCase body)
{
    gptoss__supervisor_message__init(m);
    m->body_case = body;
}

static void refuse(struct coordinator *c, const struct core_peer *peer, const char *text)
{
    Gptoss__RankRefused refused = GPTOSS__RANK_REFUSED__INIT;
    refused.text = (char *)(uintptr_t)text;
    Gptoss__SupervisorMessage m;
    supervisor_init(&m, GPTOSS__SUPERVISOR_MESSAGE__BODY_REFUSED);
    m.refused = &refused;
    core_send_rank(c, peer, &m);
}

static void world_clear(struct coordinator *c)
{
    sched_destroy(c);
    times_destroy(c);
    plan_destroy(c->world.plan);
    free(c->world.ranks);
    c->world = (struct world){.epoch = c->epoch};
}

/* Running requests go back to waiting: their tokens are kept, their KV is computed again. */
static void requeue_running(struct coordinator *c)
{
    for (size_t i = 0; i < c->n_requests; i++)
        if (c->requests[i]->state == REQUEST_RUNNING) {
            sched_release(c, c->requests[i]);
            c->requests[i]->state = REQUEST_WAITING;
        }
}

static void shut_down(struct coordinator *c, const char *reason, bool lost)
{
    Gptoss__Shutdown shutdown = GPTOSS__SHUTDOWN__INIT;
    shutdown.lost = lost;
    shutdown.text = (char *)(uintptr_t)reason;
    for (uint32_t i = 0; i < c->world.size; i++)
        if (c->world.ranks[i].here) {
            Gptoss__SupervisorMessage m;
            supervisor_init(&m, GPTOSS__SUPERVISOR_MESSAGE__BODY_SHUTDOWN);
            m.shutdown = &shutdown;
            core_send_rank(c, &c->world.ranks[i].peer, &m);
        }
    requeue_running(c);
    world_clear(c);
}

void ranks_shutdown(struct coordinator *c, const char *reason)
{
    if (c->world.state != WORLD_NONE)
        shut_down(c, reason, false);
}

void ranks_lose(struct coordinator *c, const struct rank *rank, uint64_t now, const char *format,
                ...)
{
    char text[640], signs[128] = "";
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (c->world.state == WORLD_NONE)
        return;
    int code = rank && rank->exit_code ? rank->exit_code : EXIT_FAILED;
    uint32_t running = requests_count(c, REQUEST_RUNNING);
    if (rank)
        watch_signs(c, rank, now, signs, sizeof signs);
    core_log(c, LOG_ERROR, "the ranks are lost: %s%s%s", text, signs,
             running ? "; running requests wait for the next ones" : "");
    if (c->world.state == WORLD_SERVING)
        requests_mourn(c);
    metrics_lost(c, requests_count(c, REQUEST_RUNNING));
    seen_lost(c, rank, text, now);
    shut_down(c, text, true);
    requests_pause(c);
    core_event(c, COORDINATOR_LOST, code, text);
}

/* This world can never serve this model: every rank is told why and leaves. */
static void reject_world(struct coordinator *c, int code, const char *text)
{
    core_log(c, LOG_ERROR, "%s", text);
    for (uint32_t i = 0; i < c->world.size; i++)
        if (c->world.ranks[i].here)
            refuse(c, &c->world.ranks[i].peer, text);
    requeue_running(c);
    world_clear(c);
    core_event(c, COORDINATOR_IMPOSSIBLE, code, text);
}

static struct rank *find(const struct coordinator *c, const struct core_peer *peer)
{
    for (uint32_t i = 0; i < c->world.size; i++)
        if (c->world.ranks[i].here && core_peer_equal(&c->world.ranks[i].peer, peer))
            return &c->world.ranks[i];
    return NULL;
}

static void copy(char *to, size_t to_size, const char *from)
{
    snprintf(to, to_size, "%s", from);
    for (char *p = to; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 127)
            *p = '?';
}

/* ── joining ───────────────────────────────────────────────────────────────────────────────── */

static void hello(struct coordinator *c, const struct core_peer *peer, const Gptoss__Hello *m,
                  uint64_t now)
{
    char text[512];
    if (c->stopped) {
        refuse(c, peer, "the coordinator is shutting down");
        return;
    }
    if (m->protocol != PROTO_VERSION) {
        snprintf(text, sizeof text,
                 "this rank speaks protocol %u and the coordinator %u: use programs of one build",
                 m->protocol, PROTO_VERSION);
        refuse(c, peer, text);
        return;
    }
    if (m->size == 0 || m->size > RANKS_MAX || m->rank >= m->size) {
        refuse(c, peer, "Hello names a rank or a number of ranks that cannot be");
        return;
    }
    if (c->world.state != WORLD_NONE && c->world.id != m->world) {
        snprintf(text, sizeof text,
                 "this coordinator already has %u rank%s of another mpirun: one coordinator serves "
                 "one world; stop that mpirun first, or start a second coordinator on other "
                 "endpoints",
                 c->world.size, c->world.size == 1 ? "" : "s");
        core_log(c, LOG_WARN, "rank %u of a second world of %u was refused", m->rank, m->size);
        refuse(c, peer, text);
        return;
    }
    if (c->world.state == WORLD_NONE) {
        const struct gguf_model *model = c->options.model;
        if (m->size > model->n_layers) {
            snprintf(text, sizeof text,
                     "%u layers cannot be cut into %u stages: start at most %u ranks",
                     model->n_layers, m->size, model->n_layers);
            refuse(c, peer, text);
            if (m->rank == 0) {
                core_log(c, LOG_ERROR, "a world of %u ranks was refused: %s", m->size, text);
                core_event(c, COORDINATOR_IMPOSSIBLE, EXIT_FAILED, text);
            }
            return;
        }
        if (c->options.n_layers_given && c->options.n_layers_given != m->size) {
            snprintf(text, sizeof text,
                     "--layers names %u stages, but %u ranks came: start mpirun -np %u",
                     c->options.n_layers_given, m->size, c->options.n_layers_given);
            refuse(c, peer, text);
            if (m->rank == 0) {
                core_log(c, LOG_ERROR, "a world of %u ranks was refused: %s", m->size, text);
                core_event(c, COORDINATOR_IMPOSSIBLE, EXIT_FAILED, text);
            }
            return;
        }
        c->world = (struct world){.state = WORLD_JOINING,
                                  .id = m->world,
                                  .epoch = ++c->epoch,
                                  .since_us = now,
                                  .size = m->size,
                                  .ranks = base_alloc(m->size, sizeof(struct rank))};
        c->heartbeat_us = now + CORE_HEARTBEAT_US;
        c->ticked_us = now;
        core_log(c, LOG_INFO, "a world of %u rank%s is joining (epoch %llu)", m->size,
                 m->size == 1 ? "" : "s", (unsigned long long)c->world.epoch);
    }
    if (m->size != c->world.size) {
        refuse(c, peer, "the ranks of one world disagree about their number");
        return;
    }
    struct rank *rank = &c->world.ranks[m->rank];
    if (rank->here && !core_peer_equal(&rank->peer, peer)) {
        snprintf(text, sizeof text, "rank %u of this world is here already", m->rank);
        refuse(c, peer, text);
        return;
    }
    rank->here = true;
    rank->peer = *peer;
    rank->pid = m->pid;
    rank->heard_us = now;
    rank->silent_us = 0;

    Gptoss__Welcome welcome = GPTOSS__WELCOME__INIT;
    welcome.model = c->model_path;
    welcome.device = (char *)(uintptr_t)(c->options.device ? c->options.device : "auto");
    welcome.threads = c->options.threads;
    welcome.fast = c->options.fast;
    Gptoss__SupervisorMessage reply;
    supervisor_init(&reply, GPTOSS__SUPERVISOR_MESSAGE__BODY_WELCOME);
    reply.welcome = &welcome;
    core_send_rank(c, peer, &reply);
}

static const char *transport_of(const struct coordinator *c, uint32_t from, uint32_t to)
{
    struct coordinator_end ends[2];
    for (int i = 0; i < 2; i++) {
        const struct rank *rank = &c->world.ranks[i ? to : from];
        ends[i] = (struct coordinator_end){rank->host, rank->device_uuid, rank->transports};
    }
    return coordinator_transport(&ends[0], &ends[1], c->options.transport);
}

void coordinator_plan_message(const struct plan *plan, uint32_t stage, uint64_t step_deadline_ms,
                              Gptoss__Plan *m)
{
    const struct plan_stage *part = &plan->stages[stage];
    m->stages = plan->n_stages;
    m->stage = stage;
    m->layer_first = part->layer_first;
    m->layer_count = part->layer_count;
    m->head_first = part->head_first;
    m->head_count = part->head_count;
    m->n_head_counts = plan->head_jobs > 0 ? plan->n_stages : 0;
    m->head_counts = plan->head_counts;
    m->head_jobs = plan->head_jobs;
    m->vocabulary_limit = plan->vocabulary_limit;
    m->kv_type = plan->kv_type == PLAN_KV_F16    ? GPTOSS__PLAN__KV_TYPE__F16
                 : plan->kv_type == PLAN_KV_BF16 ? GPTOSS__PLAN__KV_TYPE__BF16
                                                 : GPTOSS__PLAN__KV_TYPE__F32;
    m->kv_block_tokens = plan->block_tokens;
    m->kv_full_blocks = plan->full_blocks;
    m->kv_window_blocks = plan->window_blocks;
    m->sequences = plan->sequences;
    m->context = plan->context;
    m->step_tokens = plan->step_tokens;
    m->step_rows = plan->step_rows;
    m->step_samples = plan->step_samples;
    m->steps_in_flight = plan->steps_in_flight;
    m->step_deadline_ms = step_deadline_ms;
}

static void send_plan(struct coordinator *c, uint32_t s)
{
    const struct plan *plan = c->world.plan;
    uint32_t n_edges = plan->n_stages > 1 ? plan->n_stages : 0;
    Gptoss__Edge *edges = base_alloc(n_edges + 1, sizeof *edges);
    Gptoss__Edge **pointers = base_alloc(n_edges + 1, sizeof *pointers);
    for (uint32_t e = 0; e < n_edges; e++) {
        gptoss__edge__init(&edges[e]);
        edges[e].from = coordinator_edge(n_edges, e);
        edges[e].to = (edges[e].from + 1) % n_edges;
        edges[e].transport = (char *)(uintptr_t)transport_of(c, edges[e].from, edges[e].to);
        pointers[e] = &edges[e];
    }
    Gptoss__Plan m = GPTOSS__PLAN__INIT;
    coordinator_plan_message(plan, s, c->options.step_deadline_us / 1000, &m);
    m.n_edges = n_edges;
    m.edges = pointers;
    m.fast = c->options.fast;
    Gptoss__SupervisorMessage message;
    supervisor_init(&message, GPTOSS__SUPERVISOR_MESSAGE__BODY_PLAN);
    message.plan = &m;
    core_send_rank(c, &c->world.ranks[s].peer, &message);
    free(pointers);
    free(edges);
}

static void fill_plan_ranks(const struct coordinator *c, struct plan_rank *ranks)
{
    for (uint32_t i = 0; i < c->world.size; i++) {
        const struct rank *r = &c->world.ranks[i];
        ranks[i] = (struct plan_rank){
            .host = r->host,
            .device = r->device,
            .device_uuid = r->device_uuid[0] ? r->device_uuid : NULL,
            .memory_free_bytes = r->memory_free,
            .bandwidth = r->bandwidth,
            .weights_in_place = strcmp(r->backend, "cuda") != 0,
        };
    }
}

static void refuse_edge(const struct coordinator *c, uint32_t from, uint32_t to, char *err,
                        size_t err_size)
{
    const struct rank *a = &c->world.ranks[from], *b = &c->world.ranks[to];
    const char *wanted = c->options.transport;
    char what[64] = "no transport",
         advice[160] = "give all ranks one kind of device, with --device";
    bool gpus = strcmp(a->backend, "cuda") == 0 && strcmp(b->backend, "cuda") == 0;
    if (wanted && strcmp(wanted, "auto") != 0) {
        snprintf(what, sizeof what, "--transport %s, but it does not", wanted);
        snprintf(advice, sizeof advice, "leave --transport out, and the best one is taken");
    } else if (gpus)
        snprintf(advice, sizeof advice,
                 "GPUs of different hosts need NCCL on each: install libnccl2 and build "
                 "gptoss-worker with nccl.h");
    snprintf(err, err_size, "%s join%s rank %u (%s on %s: %s) and rank %u (%s on %s: %s): %s", what,
             wanted && strcmp(wanted, "auto") != 0 ? "" : "s", from, a->backend, a->host,
             a->transports[0] ? a->transports : "none", to, b->backend, b->host,
             b->transports[0] ? b->transports : "none", advice);
}

static void make_plan(struct coordinator *c, uint64_t now)
{
    struct plan_rank *ranks = base_alloc(c->world.size, sizeof *ranks);
    fill_plan_ranks(c, ranks);
    bool all_cpu = true;
    bool all_known = true;
    for (uint32_t i = 0; i < c->world.size; i++) {
        all_cpu = all_cpu && ranks[i].weights_in_place;
        all_known = all_known && ranks[i].bandwidth > 0;
    }
    /* CPU ranks of one host share its memory bus: what each measured by itself, while others loaded,
     * says nothing about their ratio. */
    if (all_cpu || !all_known)
        for (uint32_t i = 0; i < c->world.size; i++)
            ranks[i].bandwidth = 0;
    struct plan_options options = {
        .n_ranks = c->world.size,
        .ranks = ranks,
        .layers = c->options.n_layers_given ? c->options.layers : NULL,
        .head = c->options.head,
        .context = c->options.context,
        .sequences = c->options.sequences,
        .kv_type = c->options.kv_type_given ? c->options.kv_type
                   : all_cpu                ? PLAN_KV_F32
                                            : PLAN_KV_F16,
        .kv_tokens = c->options.kv_tokens,
        .step_tokens = c->options.step_tokens ? c->options.step_tokens
                       : all_cpu              ? 128
                                              : 2048,
        .vocabulary_limit = tokenizer_limit(c->tokenizer),
        .fast = c->options.fast,
    };
    char err[768] = "";
    int status = plan_create(&c->world.plan, c->options.model, &options, err, sizeof err);
    if (status) {
        if (status > 0) {
            char *table = plan_table(c->world.plan, ranks);
            core_log(c, LOG_ERROR, "the model does not fit:\n%s", table);
            free(table);
        }
        free(ranks);
        reject_world(c, status > 0 ? EXIT_MEMORY : EXIT_FAILED, err);
        return;
    }
    free(ranks);
    for (uint32_t s = 0; s < c->world.size && c->world.size > 1; s++) {
        uint32_t next = (s + 1) % c->world.size;
        if (transport_of(c, s, next))
            continue;
        refuse_edge(c, s, next, err, sizeof err);
        reject_world(c, EXIT_FAILED, err);
        return;
    }
    c->world.state = WORLD_LOADING;
    c->world.since_us = now;
    core_log(c, LOG_INFO, "the world is complete; %u rank%s load%s", c->world.size,
             c->world.size == 1 ? "" : "s", c->world.size == 1 ? "s its layers" : " their layers");
    for (uint32_t s = 0; s < c->world.size; s++)
        send_plan(c, s);
}

static void join(struct coordinator *c, struct rank *rank, const Gptoss__Join *m, uint64_t now)
{
    char text[768];
    uint32_t number = (uint32_t)(rank - c->world.ranks);
    if (c->world.state != WORLD_JOINING || rank->joined)
        return;
    if (m->rank != number || m->size != c->world.size) {
        refuse(c, &rank->peer, "Join names another rank than Hello");
        return;
    }
    const struct gguf_file *file = c->options.model->file;
    copy(rank->host, sizeof rank->host, m->host);
    if (m->header_digest != gguf_header_digest(file) ||
        m->header_bytes != gguf_header_bytes(file)) {
        snprintf(text, sizeof text,
                 "rank %u on %s has another model file at %s than the coordinator (their headers "
                 "differ): put the same file on every host",
                 number, rank->host, c->model_path);
        reject_world(c, EXIT_MODEL, text);
        return;
    }
    if (m->fast != c->options.fast) {
        snprintf(text, sizeof text,
                 c->options.fast
                     ? "rank %u on %s has no products with int8 activations (%s): start "
                       "the coordinator without --fast, or let all ranks be CPUs"
                     : "rank %u on %s multiplies with int8 activations, which nobody "
                       "asked for (%s): is gptoss-worker of the same build?",
                 number, rank->host, m->device);
        reject_world(c, EXIT_DEVICE, text);
        return;
    }
    copy(rank->device, sizeof rank->device, m->device);
    copy(rank->device_uuid, sizeof rank->device_uuid, m->device_uuid);
    copy(rank->backend, sizeof rank->backend, m->backend);
    copy(rank->transports, sizeof rank->transports, m->transports);
    rank->memory_free = m->memory_free_bytes;
    rank->bandwidth = m->bandwidth > 0 && m->bandwidth < 1e16 ? m->bandwidth : 0;
    rank->joined = true;
    core_log(c, LOG_INFO, "rank %u on %s: %s", number, rank->host, rank->device);
    for (uint32_t i = 0; i < c->world.size; i++)
        if (!c->world.ranks[i].joined)
            return;
    make_plan(c, now);
}

static void ready(struct coordinator *c, struct rank *rank, const Gptoss__Ready *m, uint64_t now)
{
    if (c->world.state != WORLD_LOADING || rank->ready)
        return;
    rank->ready = true;
    rank->loaded = 1;
    rank->weights_bytes = m->weights_bytes;
    rank->kv_bytes = m->kv_bytes;
    rank->activation_bytes = m->activation_bytes;
    for (uint32_t i = 0; i < c->world.size; i++)
        if (!c->world.ranks[i].ready)
            return;
    c->world.state = WORLD_SERVING;
    sched_create(c);
    times_create(c);
    requests_judge(c, now);
    seen_serving(c, now);
    struct plan_rank *ranks = base_alloc(c->world.size, sizeof *ranks);
    fill_plan_ranks(c, ranks);
    char *table = plan_table(c->world.plan, ranks);
    core_event(c, COORDINATOR_SERVING, 0, table);
    free(table);
    free(ranks);
    c->world.since_us = now;
}

static void loading(struct rank *rank, const Gptoss__Loading *m)
{
    if (m->bytes_all > 0 && m->bytes_done <= m->bytes_all)
        rank->loaded = (double)m->bytes_done / (double)m->bytes_all;
}

static void heartbeat(struct rank *rank, const Gptoss__RankHeartbeat *m, uint64_t now)
{
    times_clock_echo(&rank->clock, m->echo_us, m->echo_received_us, m->echo_sent_us, now);
    rank->steps = m->steps;
    rank->busy_seconds = m->busy_seconds;
    rank->up_seconds = m->up_seconds;
    rank->queue = m->queue;
    rank->computed = m->computed;
    rank->quiet_ms = m->quiet_ms;
    if (m->memory_free_bytes)
        rank->memory_free = m->memory_free_bytes;
}

void ranks_receive(struct coordinator *c, const struct core_peer *peer,
                   const Gptoss__RankMessage *message, uint64_t now)
{
    if (message->body_case == GPTOSS__RANK_MESSAGE__BODY_HELLO) {
        hello(c, peer, message->hello, now);
        return;
    }
    struct rank *rank = find(c, peer);
    const Gptoss__RankHeartbeat *beat =
        message->body_case == GPTOSS__RANK_MESSAGE__BODY_HEARTBEAT ? message->heartbeat : NULL;
    if (!rank && beat && c->world.state != WORLD_NONE && beat->world == c->world.id &&
        beat->rank < c->world.size && c->world.ranks[beat->rank].here)
        rank = &c->world.ranks[beat->rank]; /* heartbeats have a socket of their own */
    if (!rank || message->epoch != c->world.epoch)
        return; /* of a world that is no more */
    uint32_t number = (uint32_t)(rank - c->world.ranks);
    rank->heard_us = now;
    rank->silent_us = 0;
    switch (message->body_case) {
    case GPTOSS__RANK_MESSAGE__BODY_JOIN: join(c, rank, message->join, now); break;
    case GPTOSS__RANK_MESSAGE__BODY_LOADING: loading(rank, message->loading); break;
    case GPTOSS__RANK_MESSAGE__BODY_READY: ready(c, rank, message->ready, now); break;
    case GPTOSS__RANK_MESSAGE__BODY_HEARTBEAT: heartbeat(rank, message->heartbeat, now); break;
    case GPTOSS__RANK_MESSAGE__BODY_STEP_TIMES:
        times_receive(c, number, message->step_times, now);
        break;
    case GPTOSS__RANK_MESSAGE__BODY_RESULT:
        if (c->world.state != WORLD_SERVING || number + 1 != c->world.size)
            break;
        if (message->result->error[0]) {
            char text[400];
            copy(text, sizeof text, message->result->error);
            ranks_lose(c, rank, now, "rank %u on %s could not run step %llu: %s", number,
                       rank->host, (unsigned long long)message->result->step, text);
        } else {
            sched_result(c, message->result, now);
        }
        break;
    case GPTOSS__RANK_MESSAGE__BODY_FAILED: {
        char text[400], name[128];
        copy(text, sizeof text, message->failed->text);
        rank->exit_code = (int)(message->failed->exit_code < 128 ? message->failed->exit_code : 0);
        ranks_lose(c, rank, now, "%s: %s", watch_name(c, rank, name), text);
        break;
    }
    default: break;
    }
}

void ranks_gone(struct coordinator *c, const struct core_peer *peer, uint64_t now)
{
    char name[128];
    struct rank *rank = find(c, peer);
    if (rank)
        ranks_lose(c, rank, now, "%s closed its connection", watch_name(c, rank, name));
}

/* ── time ──────────────────────────────────────────────────────────────────────────────────── */

/* The ranks answer at once with theirs. */
static void send_heartbeats(struct coordinator *c, uint64_t now)
{
    Gptoss__SupervisorHeartbeat beat = GPTOSS__SUPERVISOR_HEARTBEAT__INIT;
    beat.seconds = (double)now / CORE_SECOND;
    beat.sent_us = now;
    for (uint32_t i = 0; i < c->world.size; i++)
        if (c->world.ranks[i].here) {
            Gptoss__SupervisorMessage m;
            supervisor_init(&m, GPTOSS__SUPERVISOR_MESSAGE__BODY_HEARTBEAT);
            m.heartbeat = &beat;
            core_send_rank(c, &c->world.ranks[i].peer, &m);
        }
}

void ranks_tick(struct coordinator *c, uint64_t now)
{
    if (c->world.state == WORLD_NONE)
        return;
    /* Time in which we did not listen says nothing about the ranks. */
    uint64_t gap = now > c->ticked_us ? now - c->ticked_us : 0;
    c->ticked_us = now;
    for (uint32_t i = 0; i < c->world.size; i++)
        c->world.ranks[i].silent_us += gap < CORE_GAP_US ? gap : CORE_GAP_US;
    if (watch_judge(c, now))
        return;
    if (now < c->heartbeat_us)
        return;
    uint64_t late = now - c->heartbeat_us < CORE_LATE_US ? now - c->heartbeat_us : CORE_LATE_US;
    c->late_us -= c->late_us / 8;
    if (late > c->late_us)
        c->late_us = late;
    c->heartbeat_us = now + CORE_HEARTBEAT_US;
    send_heartbeats(c, now);
}

void ranks_ask(struct coordinator *c, uint64_t now)
{
    if (now < c->world.asked_us)
        return;
    c->world.asked_us = now + CORE_ASK_US;
    send_heartbeats(c, now);
}

/* status->stages: memory of the message is the caller's to free, with the array. */
void ranks_status(const struct coordinator *c, uint64_t now, Gptoss__Status *status)
{
    status->n_stages = c->world.size;
    status->stages = base_alloc(c->world.size + 1, sizeof *status->stages);
    for (uint32_t i = 0; i < c->world.size; i++) {
        struct rank *rank = &c->world.ranks[i];
        Gptoss__StageStatus *s = status->stages[i] = base_alloc(1, sizeof *s);
        gptoss__stage_status__init(s);
        s->stage = i;
        s->host = rank->host;
        s->device = rank->device;
        if (c->world.plan) {
            s->layer_first = c->world.plan->stages[i].layer_first;
            s->layer_count = c->world.plan->stages[i].layer_count;
        }
        s->weights_bytes = rank->weights_bytes;
        s->kv_bytes = rank->kv_bytes;
        s->activation_bytes = rank->activation_bytes;
        s->memory_free_bytes = rank->memory_free;
        s->busy_seconds = rank->busy_seconds;
        s->up_seconds = rank->up_seconds;
        s->queue = rank->queue;
        s->steps = rank->steps;
        s->loaded = rank->loaded;
        s->bandwidth = rank->bandwidth;
        s->pid = rank->pid;
        s->computed = rank->computed > times_last(c, i) ? rank->computed : times_last(c, i);
        if (rank->here)
            s->silent_seconds = (double)(now - rank->heard_us) / CORE_SECOND;
        const char *state = !rank->here                       ? "awaited"
                            : c->world.state == WORLD_JOINING ? "joining"
                            : rank->ready                     ? "ready"
                                                              : "loading";
        s->state = (char *)(uintptr_t)state;
    }
    static const char *const states[] = {"waiting for ranks", "ranks are joining", "loading",
                                         "serving"};
    status->state = (char *)(uintptr_t)(c->draining ? "draining" : states[c->world.state]);
    status->ready = c->world.state == WORLD_SERVING;
    status->epoch = c->world.epoch;
    if (c->world.plan && c->world.state == WORLD_SERVING) {
        status->kv_block_tokens = c->world.plan->block_tokens;
        status->kv_full_blocks = c->world.plan->full_blocks;
        status->kv_window_blocks = c->world.plan->window_blocks;
        status->sequences = c->world.plan->sequences;
    }
}
