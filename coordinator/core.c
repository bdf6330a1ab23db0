/*
 * core: the coordinator's door: messages in, events out. What they mean is in requests.c (clients),
 * ranks.c (the world of ranks) and sched.c (steps).
 */
#include "coordinator/core.h"

#include <assert.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

int coordinator_create(struct coordinator **out, const struct coordinator_options *options,
                       char *err, size_t err_size)
{
    *out = NULL;
    struct coordinator *c = base_alloc(1, sizeof *c);
    c->options = *options;
    metrics_create(c);
    if (!c->options.max_queue)
        c->options.max_queue = 512;
    if (!c->options.max_queue_bytes)
        c->options.max_queue_bytes = (size_t)256 << 20;
    if (!c->options.step_deadline_us)
        c->options.step_deadline_us = 300 * (uint64_t)CORE_SECOND;
    if (!c->options.silence_us)
        c->options.silence_us = 8 * (uint64_t)CORE_SECOND / 10;
    c->model_path = strdup(options->model_path);
    c->epoch = options->epoch;
    c->seed_state = options->seed;
    if (tokenizer_create(&c->tokenizer, options->model->file, err, err_size))
        goto fail;
    if (tokenizer_size(c->tokenizer) > options->model->vocabulary) {
        snprintf(err, err_size,
                 "%s: the tokenizer has %u tokens, but the embedding has only %u rows: the file "
                 "contradicts itself, fetch or convert it again",
                 options->model_path, tokenizer_size(c->tokenizer), options->model->vocabulary);
        goto fail;
    }
    /* Every plan has the same context; it is asked for with one rank of unknown memory. */
    struct plan *plan = NULL;
    struct plan_options ask = {.n_ranks = 1,
                               .context = options->context,
                               .sequences = options->sequences,
                               .kv_type = options->kv_type};
    if (plan_create(&plan, options->model, &ask, err, err_size) < 0)
        goto fail;
    c->context = plan->context;
    plan_destroy(plan);
    *out = c;
    return 0;
fail:
    coordinator_destroy(c);
    return -1;
}

void coordinator_destroy(struct coordinator *c)
{
    if (!c)
        return;
    sched_destroy(c);
    times_destroy(c);
    metrics_destroy(c);
    trace_destroy(c);
    for (size_t i = 0; i < c->n_requests; i++)
        requests_destroy(c->requests[i]);
    free(c->requests);
    plan_destroy(c->world.plan);
    free(c->world.ranks);
    costs_destroy(c);
    wire_result_free(&c->result);
    requests_free_answer(c);
    for (size_t i = 0; i < c->events_capacity; i++)
        text_free(&c->events[i].bytes);
    free(c->events);
    tokenizer_destroy(c->tokenizer);
    free(c->model_path);
    free(c);
}

/* ── events ────────────────────────────────────────────────────────────────────────────────── */

/* The queue is a ring; a slot keeps the memory of its bytes for the next event in it. One slot more than
 * is used stays free: what was taken last is still read. */
static struct event *event_add(struct coordinator *c, enum coordinator_event_kind kind)
{
    if (c->events_count + 1 >= c->events_capacity) {
        size_t capacity = c->events_capacity ? 2 * c->events_capacity : 64;
        struct event *events = base_alloc(capacity, sizeof *events);
        for (size_t i = 0; i < c->events_capacity; i++)
            events[i] = c->events[(c->events_first + i) % c->events_capacity];
        free(c->events);
        c->events = events;
        c->taken = NULL;
        c->events_capacity = capacity;
        c->events_first = 0;
    }
    struct event *event = &c->events[(c->events_first + c->events_count++) % c->events_capacity];
    event->kind = kind;
    event->side = COORDINATOR_CLIENTS;
    event->peer.size = 0;
    event->level = event->code = 0;
    text_clear(&event->bytes);
    return event;
}

bool coordinator_take(struct coordinator *c, struct coordinator_event *event)
{
    if (c->taken) { /* large ones are not kept */
        if (c->taken->capacity > CORE_EVENT_BYTES)
            text_free(c->taken);
        c->taken = NULL;
    }
    if (c->events_count == 0)
        return false;
    struct event *first = &c->events[c->events_first];
    c->taken = &first->bytes;
    *event = (struct coordinator_event){
        .kind = first->kind,
        .side = first->side,
        .peer = first->peer.bytes,
        .peer_size = first->peer.size,
        .bytes = first->bytes.bytes ? first->bytes.bytes : "",
        .size = first->bytes.size,
        .level = first->level,
        .code = first->code,
    };
    c->events_first = (c->events_first + 1) % c->events_capacity;
    c->events_count--;
    return true;
}

static void peer_copy(struct core_peer *to, const struct core_peer *from)
{
    memcpy(to->bytes, from->bytes, from->size);
    to->size = from->size;
}

struct text *core_keep(struct coordinator *c, bool soon)
{
    struct event *event = event_add(c, COORDINATOR_KEEP);
    event->code = soon;
    return &event->bytes;
}

void core_event(struct coordinator *c, enum coordinator_event_kind kind, int code, const char *text)
{
    struct event *event = event_add(c, kind);
    event->code = code;
    text_add(&event->bytes, text, strlen(text));
}

void core_log(struct coordinator *c, enum log_level level, const char *format, ...)
{
    struct event *event = event_add(c, COORDINATOR_LOG);
    event->level = level;
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    text_add(&event->bytes, line, strlen(line));
}

ProtobufCBinaryData core_binary(const void *bytes, size_t size)
{
    return (ProtobufCBinaryData){.data = (uint8_t *)(uintptr_t)bytes, .len = size};
}

bool core_peer_equal(const struct core_peer *a, const struct core_peer *b)
{
    return a->size == b->size && memcmp(a->bytes, b->bytes, a->size) == 0;
}

void core_send_bytes(struct coordinator *c, const struct core_peer *peer, const struct text *bytes)
{
    if (peer->size == 0)
        return;
    struct event *event = event_add(c, COORDINATOR_SEND);
    event->side = COORDINATOR_CLIENTS;
    peer_copy(&event->peer, peer);
    text_add(&event->bytes, bytes->bytes, bytes->size);
}

void core_pack(const ProtobufCMessage *message, struct text *out)
{
    if (wire_pack(message, out))
        return;
    size_t size = protobuf_c_message_get_packed_size(message);
    out->bytes = base_grow(out->bytes, &out->capacity, size + 1, 1);
    out->size = protobuf_c_message_pack(message, (uint8_t *)out->bytes);
    out->bytes[out->size] = 0;
}

static void send_packed(struct coordinator *c, enum coordinator_side side,
                        const struct core_peer *peer, const ProtobufCMessage *message)
{
    struct event *event = event_add(c, COORDINATOR_SEND);
    event->side = side;
    peer_copy(&event->peer, peer);
    core_pack(message, &event->bytes);
}

void core_send_client(struct coordinator *c, const struct core_peer *peer,
                      const Gptoss__ServerMessage *message)
{
    if (peer->size)
        send_packed(c, COORDINATOR_CLIENTS, peer, &message->base);
}

void core_send_rank(struct coordinator *c, const struct core_peer *peer,
                    Gptoss__SupervisorMessage *message)
{
    if (!peer->size)
        return;
    message->epoch = c->world.epoch;
    send_packed(c, COORDINATOR_RANKS, peer, &message->base);
}

/* ── messages and time ─────────────────────────────────────────────────────────────────────── */

void coordinator_receive(struct coordinator *c, enum coordinator_side side, const void *peer_bytes,
                         size_t peer_size, const void *bytes, size_t size, uint64_t now_us)
{
    struct core_peer peer = {.size = peer_size};
    assert(peer_size <= sizeof peer.bytes);
    memcpy(peer.bytes, peer_bytes, peer_size);
    char err[256] = "a message is exactly one frame: connect a DEALER socket and send one message "
                    "of proto/gptoss.proto at a time";
    if (side == COORDINATOR_CLIENTS) {
        Gptoss__ClientMessage *message =
            bytes ? (Gptoss__ClientMessage *)proto_unpack(&gptoss__client_message__descriptor,
                                                          bytes, size, err, sizeof err)
                  : NULL;
        if (message)
            requests_receive(c, &peer, message, now_us);
        else
            requests_refuse(c, &peer, NULL, 0, GPTOSS__CODE__INVALID, 0, err);
        proto_free((ProtobufCMessage *)message);
    } else {
        const Gptoss__RankMessage *result =
            bytes ? wire_unpack_result(bytes, size, &c->result) : NULL;
        if (result) {
            ranks_receive(c, &peer, result, now_us);
            return;
        }
        Gptoss__RankMessage *message =
            bytes ? (Gptoss__RankMessage *)proto_unpack(&gptoss__rank_message__descriptor, bytes,
                                                        size, err, sizeof err)
                  : NULL;
        if (message)
            ranks_receive(c, &peer, message, now_us);
        else
            core_log(c, LOG_WARN, "a message on the workers' endpoint was dropped: %s", err);
        proto_free((ProtobufCMessage *)message);
    }
}

void coordinator_gone(struct coordinator *c, enum coordinator_side side, const void *peer_bytes,
                      size_t peer_size, uint64_t now_us)
{
    struct core_peer peer = {.size = peer_size};
    assert(peer_size <= sizeof peer.bytes);
    memcpy(peer.bytes, peer_bytes, peer_size);
    if (side == COORDINATOR_CLIENTS) {
        trace_gone(c, &peer);
        requests_gone(c, &peer, now_us);
    } else {
        ranks_gone(c, &peer, now_us);
    }
}

void coordinator_tick(struct coordinator *c, uint64_t now_us)
{
    if (!c->started_us)
        c->started_us = now_us;
    ranks_tick(c, now_us);
    /* Steps first: tokenising a long prompt must not keep the ranks waiting. */
    sched_run(c, now_us);
    requests_tick(c, now_us);
    sched_run(c, now_us);
    trace_tick(c, now_us);
}

uint64_t coordinator_next(const struct coordinator *c, uint64_t now_us)
{
    if (requests_count(c, REQUEST_ENCODING) > c->n_keeping)
        return now_us;
    uint64_t next = requests_next(c, now_us);
    uint64_t ranks = watch_next(c, now_us);
    if (ranks < next)
        next = ranks;
    if (trace_next(c, now_us) < next)
        next = trace_next(c, now_us);
    return next < now_us ? now_us : next;
}

void coordinator_drain(struct coordinator *c, uint64_t now_us)
{
    (void)now_us;
    if (!c->draining)
        core_log(c, LOG_INFO, "draining: no new requests, %u are finished first",
                 requests_count(c, REQUEST_ENCODING) + requests_count(c, REQUEST_WAITING) +
                     requests_count(c, REQUEST_RUNNING));
    c->draining = true;
}

void coordinator_stop(struct coordinator *c, const char *reason, uint64_t now_us)
{
    c->draining = c->stopped = true;
    for (size_t i = 0; i < c->n_requests; i++)
        if (c->requests[i]->state != REQUEST_DONE && !c->requests[i]->kept)
            requests_finish(c, c->requests[i], GPTOSS__FINISHED__REASON__ERROR,
                            GPTOSS__CODE__SHUTTING_DOWN, reason, now_us);
    ranks_shutdown(c, reason);
}

bool coordinator_rank_ended(struct coordinator *c, int64_t pid, const char *what, uint64_t now_us)
{
    return watch_ended(c, pid, what, now_us);
}

void coordinator_rank_runs(struct coordinator *c, int64_t pid, uint64_t now_us)
{
    for (uint32_t i = 0; i < c->world.size; i++)
        if (c->world.ranks[i].here && c->world.ranks[i].pid == pid)
            c->world.ranks[i].seen_us = now_us;
}

void coordinator_verdict(struct coordinator *c, bool foreign)
{
    requests_verdict(c, foreign);
}

void coordinator_world_ended(struct coordinator *c, const char *reason, uint64_t now_us)
{
    if (c->world.state != WORLD_NONE)
        ranks_lose(c, NULL, now_us, "%s", reason);
}

bool coordinator_has_ranks(const struct coordinator *c)
{
    uint32_t here = 0;
    for (uint32_t i = 0; i < c->world.size; i++)
        here += c->world.ranks[i].here;
    return here > 0 && here == c->world.size;
}

void coordinator_counts(const struct coordinator *c, struct coordinator_counts *counts)
{
    *counts = (struct coordinator_counts){
        .running = requests_count(c, REQUEST_RUNNING),
        .waiting = requests_count(c, REQUEST_WAITING) + requests_count(c, REQUEST_ENCODING),
        .lingering = requests_count(c, REQUEST_DONE),
        .steps_in_flight = (uint32_t)(c->next_step - c->oldest_step),
        .full_blocks_used = blocks_used(&c->full),
        .window_blocks_used = blocks_used(&c->window),
        .full_blocks_cached = c->full.n_cached,
        .window_blocks_cached = c->window.n_cached,
        .cached_tokens = c->n_cached,
        .blocks_evicted = c->full.n_evicted + c->window.n_evicted,
        .finished = c->n_finished,
        .refused = c->n_refused,
        .sampled_tokens = c->n_sampled,
        .prompt_tokens = c->n_prompt,
        .steps = c->n_steps,
        .preemptions = c->n_preemptions,
    };
}
