/*
 * requests: the life of a request, from Accepted to Finished. What is asked is read in intake.c, and
 * accepted or refused in admit.c; text that leaves is in answer.c.
 */
#include "coordinator/requests.h"
#include "coordinator/records.h"

#include <stdlib.h>
#include <string.h>

static void server_init(Gptoss__ServerMessage *m, Gptoss__ServerMessage__BodyCase body)
{
    gptoss__server_message__init(m);
    m->body_case = body;
}

void requests_refuse(struct coordinator *c, const struct core_peer *peer, const void *id,
                     size_t id_size, Gptoss__Code code, uint64_t retry_ms, const char *text)
{
    Gptoss__Refused refused = GPTOSS__REFUSED__INIT;
    refused.request_id = core_binary(id, id_size);
    refused.code = code;
    refused.text = (char *)(uintptr_t)text;
    refused.retry_ms = retry_ms;
    Gptoss__ServerMessage m;
    server_init(&m, GPTOSS__SERVER_MESSAGE__BODY_REFUSED);
    m.refused = &refused;
    core_send_client(c, peer, &m);
    c->n_refused++;
    metrics_refused(c, code);
}

void requests_destroy(struct request *r)
{
    if (!r)
        return;
    prompt_free(&r->prompt);
    for (uint32_t i = 0; i < r->n_stops; i++)
        free((void *)(uintptr_t)r->stops[i].bytes);
    tokens_free(&r->tokens);
    harmony_parser_destroy(r->parser);
    text_free(&r->held);
    block_table_destroy(&r->full);
    block_table_destroy(&r->window);
    prefix_path_destroy(&r->path);
    for (size_t i = 0; i < r->n_outputs; i++)
        text_free(&r->outputs[i]);
    free(r->outputs);
    text_free(&r->finished);
    text_free(&r->asked);
    free(r);
}

void requests_free_answer(struct coordinator *c)
{
    if (c->answer)
        answer_free(c->answer);
    free(c->answer);
}

/* ── finding ───────────────────────────────────────────────────────────────────────────────── */

struct request *requests_find_serial(const struct coordinator *c, uint64_t serial)
{
    size_t low = 0, high = c->n_requests;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (c->requests[middle]->serial < serial)
            low = middle + 1;
        else
            high = middle;
    }
    return low < c->n_requests && c->requests[low]->serial == serial ? c->requests[low] : NULL;
}

struct request *requests_find(const struct coordinator *c, ProtobufCBinaryData id)
{
    for (size_t i = 0; i < c->n_requests; i++) {
        struct request *r = c->requests[i];
        if (r->state == REQUEST_DONE && !r->linger_until_us)
            continue; /* over: the next tick removes it, its id is free again */
        if (r->id_size == id.len && memcmp(r->id, id.data, id.len) == 0)
            return r;
    }
    return NULL;
}

uint32_t requests_count(const struct coordinator *c, enum request_state state)
{
    switch (state) {
    case REQUEST_ENCODING: return c->n_encoding;
    case REQUEST_RUNNING: return c->n_running; /* it has a slot, and is DONE without one */
    case REQUEST_DONE: return c->n_done;
    default: return (uint32_t)c->n_requests - c->n_encoding - c->n_running - c->n_done;
    }
}

void requests_set_state(struct coordinator *c, struct request *r, enum request_state state)
{
    c->n_encoding -= r->state == REQUEST_ENCODING;
    c->n_keeping -= r->keeping;
    r->keeping = false;
    c->n_done += state == REQUEST_DONE;
    r->state = state;
    c->requests_due_us = 0;
}

/* Requests that are older and not yet running. */
uint32_t requests_before(const struct coordinator *c, const struct request *r)
{
    uint32_t n = 0;
    for (size_t i = 0; i < c->n_requests && c->requests[i] != r; i++)
        n += c->requests[i]->state == REQUEST_WAITING || c->requests[i]->state == REQUEST_ENCODING;
    return n;
}

/* ── the end ───────────────────────────────────────────────────────────────────────────────── */

/* Lingering requests are kept for Resume, but not without bound: the oldest go first. */
static void bound_lingering(struct coordinator *c)
{
    uint32_t done = 0;
    size_t bytes = 0;
    for (size_t i = 0; i < c->n_requests; i++)
        if (c->requests[i]->state == REQUEST_DONE && c->requests[i]->linger_until_us) {
            done++;
            bytes += c->requests[i]->outputs_bytes;
        }
    for (size_t i = 0;
         i < c->n_requests && (done > CORE_LINGERING_MAX || bytes > CORE_LINGERING_BYTES); i++)
        if (c->requests[i]->state == REQUEST_DONE && c->requests[i]->linger_until_us) {
            c->requests[i]->linger_until_us = 0;
            done--;
            bytes -= c->requests[i]->outputs_bytes;
        }
}

static double seconds(uint64_t from, uint64_t to)
{
    return to > from ? (double)(to - from) / CORE_SECOND : 0;
}

void requests_finish(struct coordinator *c, struct request *r, Gptoss__Finished__Reason reason,
                     Gptoss__Code code, const char *text, uint64_t now)
{
    struct answer answer = {0};
    answer_end(r, &answer);
    if (r->state == REQUEST_ENCODING)
        r->n_prompt = r->tokens.count; /* what there is, is prompt */

    Gptoss__Finished finished = GPTOSS__FINISHED__INIT;
    finished.request_id = core_binary(r->id, r->id_size);
    finished.reason = reason;
    finished.n_pieces = answer.n_pieces;
    finished.pieces = answer_pieces(&answer);
    finished.tokens = (uint32_t)(r->tokens.count - r->n_prompt);
    finished.prompt_tokens = (uint32_t)r->n_prompt;
    finished.cached_tokens = r->cached;
    finished.reasoning_tokens = r->parser ? harmony_parser_reasoning_tokens(r->parser) : 0;
    finished.queued_seconds = seconds(r->accepted_us, r->first_step_us ? r->first_step_us : now);
    finished.first_token_seconds =
        r->first_token_us ? seconds(r->accepted_us, r->first_token_us) : 0;
    finished.total_seconds = seconds(r->accepted_us, now);
    finished.code = code;
    finished.text = (char *)(uintptr_t)(text ? text : "");
    Gptoss__ServerMessage m;
    server_init(&m, GPTOSS__SERVER_MESSAGE__BODY_FINISHED);
    m.finished = &finished;
    core_send_client(c, &r->client, &m);
    if (r->linger_us)
        core_pack(&m.base, &r->finished);
    answer_free(&answer);

    sched_release(c, r);
    requests_set_state(c, r, REQUEST_DONE);
    if (reason == GPTOSS__FINISHED__REASON__CANCELLED || reason == GPTOSS__FINISHED__REASON__ERROR)
        records_end(c, r); /* what the tokens do not tell */
    r->linger_until_us = r->linger_us ? now + r->linger_us : 0;
    prompt_free(&r->prompt);
    c->n_finished += !c->restoring;
    admit_finished(c, now);
    if (!c->restoring)
        metrics_finished(c, r, reason, now);
    bound_lingering(c);
}

void requests_mourn(struct coordinator *c)
{
    for (size_t i = 0; i < c->n_requests; i++) {
        struct request *r = c->requests[i];
        r->mourned = r->state == REQUEST_RUNNING && r->last_step >= c->oldest_step;
        r->deaths += r->mourned;
        c->on_trial |= r->mourned;
    }
}

void requests_verdict(struct coordinator *c, bool foreign)
{
    for (size_t i = 0; i < c->n_requests; i++) {
        struct request *r = c->requests[i];
        r->deaths -= foreign && r->mourned;
        r->mourned = false;
    }
}

void requests_judge(struct coordinator *c, uint64_t now)
{
    for (size_t i = 0; i < c->n_requests; i++) {
        struct request *r = c->requests[i];
        r->mourned = false;
        if (r->state != REQUEST_DONE && r->deaths >= CORE_DEATHS_MAX)
            requests_finish(c, r, GPTOSS__FINISHED__REASON__ERROR, GPTOSS__CODE__INTERNAL,
                            "the ranks were lost three times in a row while they computed this "
                            "request: it is not tried again; see the coordinator's log",
                            now);
    }
}

void requests_pause(struct coordinator *c)
{
    for (size_t i = 0; i < c->n_requests; i++)
        c->requests[i]->last_sent_us = 0;
    c->requests_due_us = 0;
}

/* ── tokens ────────────────────────────────────────────────────────────────────────────────── */

/* Of a token, as a client that has no tokenizer wants to show it. */
static ProtobufCBinaryData token_text(const struct coordinator *c, uint32_t id)
{
    size_t size = 0;
    const char *bytes = tokenizer_bytes(c->tokenizer, id, &size);
    return core_binary(bytes, bytes ? size : 0);
}

static void send_token(struct coordinator *c, struct request *r, const Gptoss__Sample *sample,
                       struct answer *answer, uint64_t now)
{
    Gptoss__Token token = GPTOSS__TOKEN__INIT;
    Gptoss__Logit top[CORE_TOP_LOGITS_MAX], *top_pointers[CORE_TOP_LOGITS_MAX];
    token.index = (uint32_t)(r->tokens.count - r->n_prompt - 1);
    token.id = sample->token;
    token.n_pieces = answer->n_pieces;
    token.pieces = answer_pieces(answer);
    if (r->top_logits) {
        token.text = token_text(c, sample->token);
        token.logit = sample->logit;
        token.log_sum_exp = sample->log_sum_exp;
        token.n_top = sample->n_top_ids;
        token.top = top_pointers;
        for (size_t i = 0; i < sample->n_top_ids; i++) {
            gptoss__logit__init(&top[i]);
            top[i].id = sample->top_ids[i];
            top[i].logit = sample->top_logits[i];
            top[i].text = token_text(c, sample->top_ids[i]);
            top_pointers[i] = &top[i];
        }
    }
    Gptoss__Token *tokens[1] = {&token};
    Gptoss__Output output = GPTOSS__OUTPUT__INIT;
    output.request_id = core_binary(r->id, r->id_size);
    output.n_tokens = 1;
    output.tokens = tokens;
    Gptoss__ServerMessage m;
    server_init(&m, GPTOSS__SERVER_MESSAGE__BODY_OUTPUT);
    m.output = &output;
    core_send_client(c, &r->client, &m);
    r->last_sent_us = now;
    if (r->linger_us) {
        r->outputs =
            base_grow(r->outputs, &r->outputs_capacity, r->n_outputs + 1, sizeof *r->outputs);
        struct text *kept = &r->outputs[r->n_outputs++];
        *kept = (struct text){0};
        core_pack(&m.base, kept);
        char *less = realloc(kept->bytes, kept->size + 1); /* packing takes room for the worst */
        if (less)
            *kept = (struct text){less, kept->size, kept->size + 1};
        r->outputs_bytes += kept->size;
    }
}

void requests_token(struct coordinator *c, struct request *r, const Gptoss__Sample *sample,
                    uint64_t now)
{
    tokens_add(&r->tokens, sample->token);
    r->deaths = 0;
    r->mourned = false;
    records_token(c, r, sample);
    c->n_sampled += !c->restoring;
    if (!c->restoring)
        metrics_token(c, r, now);
    if (!r->first_token_us)
        r->first_token_us = now;
    bool end = !r->ignore_eos && tokenizer_is_end(c->tokenizer, sample->token);
    if (!c->answer)
        c->answer = base_alloc(1, sizeof *c->answer);
    struct answer *answer = c->answer;
    answer_clear(answer);
    /* The end-of-turn token that ends a raw completion is not part of its text. */
    if (!(end && r->start == HARMONY_START_RAW))
        answer_token(r, sample->token, answer);
    send_token(c, r, sample, answer, now);

    size_t sampled = r->tokens.count - r->n_prompt;
    if (r->stopped)
        requests_finish(c, r, GPTOSS__FINISHED__REASON__STOP, GPTOSS__CODE__OK, NULL, now);
    else if (end)
        requests_finish(c, r,
                        harmony_parser_called(r->parser) ? GPTOSS__FINISHED__REASON__TOOL_CALLS
                                                         : GPTOSS__FINISHED__REASON__STOP,
                        GPTOSS__CODE__OK, NULL, now);
    else if (sampled >= r->max_tokens)
        requests_finish(c, r, GPTOSS__FINISHED__REASON__LENGTH, GPTOSS__CODE__OK, NULL, now);
}

/* ── messages ──────────────────────────────────────────────────────────────────────────────── */

/* Up to CORE_RESUME_TOKENS tokens from `first` on, in one message: a client that resumes a long answer
 * gets few. */
static void send_again(struct coordinator *c, const struct request *r, size_t first)
{
    Gptoss__ServerMessage *kept[CORE_RESUME_TOKENS];
    Gptoss__Token *tokens[CORE_RESUME_TOKENS];
    Gptoss__Output output = GPTOSS__OUTPUT__INIT;
    output.request_id = core_binary(r->id, r->id_size);
    output.tokens = tokens;
    for (size_t i = first; i < r->n_outputs && output.n_tokens < CORE_RESUME_TOKENS; i++) {
        Gptoss__ServerMessage *one = gptoss__server_message__unpack(
            NULL, r->outputs[i].size, (const uint8_t *)r->outputs[i].bytes);
        kept[output.n_tokens] = one;
        tokens[output.n_tokens++] = one->output->tokens[0];
    }
    Gptoss__ServerMessage m;
    server_init(&m, GPTOSS__SERVER_MESSAGE__BODY_OUTPUT);
    m.output = &output;
    core_send_client(c, &r->client, &m);
    for (size_t i = 0; i < output.n_tokens; i++)
        gptoss__server_message__free_unpacked(kept[i], NULL);
}

static void resume(struct coordinator *c, const struct core_peer *peer, const Gptoss__Resume *m,
                   uint64_t now)
{
    struct request *r = requests_find(c, m->request_id);
    if (!r || !r->linger_us) {
        requests_refuse(c, peer, m->request_id.data, m->request_id.len, GPTOSS__CODE__NOT_FOUND, 0,
                        "no request of this id lingers here: it is over, or was sent without "
                        "linger_ms");
        return;
    }
    r->client = *peer;
    c->requests_due_us = 0;
    r->last_sent_us = now;
    r->linger_until_us = r->state == REQUEST_DONE ? now + r->linger_us : 0;
    for (size_t i = m->from_index; i < r->n_outputs; i += CORE_RESUME_TOKENS)
        send_again(c, r, i);
    if (r->state == REQUEST_DONE)
        core_send_bytes(c, peer, &r->finished);
}

static void cancel(struct coordinator *c, const struct core_peer *peer, const Gptoss__Cancel *m,
                   uint64_t now)
{
    struct request *r = requests_find(c, m->request_id);
    if (!r || r->state == REQUEST_DONE) {
        requests_refuse(c, peer, m->request_id.data, m->request_id.len, GPTOSS__CODE__NOT_FOUND, 0,
                        "no request of this id is alive");
        return;
    }
    requests_finish(c, r, GPTOSS__FINISHED__REASON__CANCELLED, GPTOSS__CODE__OK, NULL, now);
}

static void status(struct coordinator *c, const struct core_peer *peer,
                   const Gptoss__StatusRequest *request, uint64_t now)
{
    Gptoss__Latency latencies[2];
    struct coordinator_counts counts;
    coordinator_counts(c, &counts);
    Gptoss__Status s = GPTOSS__STATUS__INIT;
    s.version = (char *)(uintptr_t)GPTOSS_VERSION;
    s.model = c->model_path;
    s.uptime_seconds = seconds(c->started_us, now);
    s.steps_in_flight = counts.steps_in_flight;
    s.fast = c->options.fast;
    s.steps = counts.steps;
    s.requests_running = counts.running;
    s.requests_waiting = counts.waiting;
    s.requests_finished = counts.finished;
    s.requests_refused = counts.refused;
    s.prompt_tokens = counts.prompt_tokens;
    s.sampled_tokens = counts.sampled_tokens;
    s.kv_full_blocks_used = counts.full_blocks_used;
    s.kv_window_blocks_used = counts.window_blocks_used;
    s.kv_full_blocks_cached = counts.full_blocks_cached;
    s.kv_window_blocks_cached = counts.window_blocks_cached;
    s.prefix_hit_tokens = counts.cached_tokens;
    s.kv_blocks_evicted = counts.blocks_evicted;
    s.context = c->context;
    ranks_status(c, now, &s);
    metrics_status(c, request->window_seconds, now, &s, latencies);
    seen_status(c, request->recent_steps, now, &s);
    Gptoss__ServerMessage m;
    server_init(&m, GPTOSS__SERVER_MESSAGE__BODY_STATUS);
    m.status = &s;
    core_send_client(c, peer, &m);
    for (size_t i = 0; i < s.n_stages; i++)
        free(s.stages[i]);
    free(s.stages);
    seen_free(&s);
    ranks_ask(c, now);
}

void requests_receive(struct coordinator *c, const struct core_peer *peer,
                      const Gptoss__ClientMessage *message, uint64_t now)
{
    switch (message->body_case) {
    case GPTOSS__CLIENT_MESSAGE__BODY_GENERATE:
        admit_generate(c, peer, message->generate, now);
        break;
    case GPTOSS__CLIENT_MESSAGE__BODY_RESUME: resume(c, peer, message->resume, now); break;
    case GPTOSS__CLIENT_MESSAGE__BODY_CANCEL: cancel(c, peer, message->cancel, now); break;
    case GPTOSS__CLIENT_MESSAGE__BODY_STATUS: status(c, peer, message->status, now); break;
    case GPTOSS__CLIENT_MESSAGE__BODY_METRICS: metrics_answer(c, peer, now); break;
    case GPTOSS__CLIENT_MESSAGE__BODY_TRACE: trace_receive(c, peer, message->trace, now); break;
    default:
        requests_refuse(c, peer, NULL, 0, GPTOSS__CODE__INVALID, 0,
                        "ClientMessage has no body that this coordinator knows");
    }
}

void requests_gone(struct coordinator *c, const struct core_peer *peer, uint64_t now)
{
    for (size_t i = 0; i < c->n_requests; i++) {
        struct request *r = c->requests[i];
        if (!core_peer_equal(&r->client, peer))
            continue;
        r->client.size = 0;
        c->requests_due_us = 0;
        if (r->state == REQUEST_DONE)
            continue;
        if (r->linger_us) {
            r->linger_until_us = now + r->linger_us;
        } else {
            core_log(c, LOG_DEBUG, "request %llu ends: its client is gone",
                     (unsigned long long)r->serial);
            requests_finish(c, r, GPTOSS__FINISHED__REASON__CANCELLED, GPTOSS__CODE__OK, NULL, now);
        }
    }
}

/* ── time ──────────────────────────────────────────────────────────────────────────────────── */

static void send_progress(struct coordinator *c, struct request *r, uint64_t now)
{
    Gptoss__Progress progress = GPTOSS__PROGRESS__INIT;
    progress.request_id = core_binary(r->id, r->id_size);
    progress.queued_before = r->state == REQUEST_RUNNING ? 0 : requests_before(c, r);
    progress.prompt_tokens = (uint32_t)r->n_prompt;
    progress.prompt_tokens_done = (uint32_t)(r->computed < r->n_prompt ? r->computed : r->n_prompt);
    progress.ready = c->world.state == WORLD_SERVING;
    Gptoss__ServerMessage m;
    server_init(&m, GPTOSS__SERVER_MESSAGE__BODY_PROGRESS);
    m.progress = &progress;
    core_send_client(c, &r->client, &m);
    r->last_sent_us = now;
}

/* When something has to be done about it. */
static uint64_t due(const struct request *r)
{
    if (r->state == REQUEST_DONE)
        return r->linger_until_us;
    uint64_t at = r->client.size ? r->last_sent_us + CORE_PROGRESS_US : r->linger_until_us;
    return r->deadline_us < at ? r->deadline_us : at;
}

void requests_tick(struct coordinator *c, uint64_t now)
{
    admit_encode(c, now);
    if (now < c->requests_due_us)
        return;
    c->requests_due_us = UINT64_MAX;
    for (size_t i = 0; i < c->n_requests; i++) {
        struct request *r = c->requests[i];
        if (r->state == REQUEST_DONE)
            continue;
        if (now >= r->deadline_us)
            requests_finish(c, r, GPTOSS__FINISHED__REASON__ERROR, GPTOSS__CODE__DEADLINE,
                            "the request's deadline passed", now);
        else if (!r->client.size && now >= r->linger_until_us)
            requests_finish(c, r, GPTOSS__FINISHED__REASON__CANCELLED, GPTOSS__CODE__OK, NULL, now);
        else if (r->client.size && now >= r->last_sent_us + CORE_PROGRESS_US)
            send_progress(c, r, now);
    }
    /* Only now is anything removed: what is above looks at all requests. */
    size_t kept = 0;
    uint64_t next = UINT64_MAX;
    for (size_t i = 0; i < c->n_requests; i++) {
        struct request *r = c->requests[i];
        if (r->state == REQUEST_DONE && now >= r->linger_until_us) {
            records_end(c, r);
            c->n_done--;
            requests_destroy(r);
        } else {
            c->requests[kept++] = r;
            next = due(r) < next ? due(r) : next;
        }
    }
    c->n_requests = kept;
    if (next < c->requests_due_us) /* it is 0 where one of them ended in between */
        c->requests_due_us = next;
}

uint64_t requests_next(const struct coordinator *c, uint64_t now)
{
    uint64_t next = now + CORE_SECOND;
    return c->requests_due_us < next ? c->requests_due_us : next;
}
