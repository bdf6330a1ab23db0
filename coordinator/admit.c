/*
 * admit: from Generate to Accepted, or Refused. What would overload the coordinator is refused, with the
 * time after which it may be tried again.
 */
#include <stdlib.h>
#include <string.h>

#include "coordinator/metrics.h"
#include "coordinator/records.h"
#include "coordinator/requests.h"

#define RETRY_MIN_MS 100
#define RETRY_MAX_MS 60000

/* ── overload ──────────────────────────────────────────────────────────────────────────────── */

void admit_finished(struct coordinator *c, uint64_t now)
{
    if (c->restoring)
        return;
    uint64_t gap = now > c->finished_us ? now - c->finished_us : 0;
    if (c->finished_us)
        c->finish_gap_us = c->finish_gap_us ? (7 * c->finish_gap_us + gap) / 8 : gap;
    c->finished_us = now;
    c->refused_since = 0;
}

/* A place is free when the next request ends; those that were told to come before are let in first. */
static uint64_t retry_after(struct coordinator *c, uint64_t now)
{
    uint64_t gap = c->finish_gap_us ? c->finish_gap_us : CORE_SECOND;
    uint64_t since = c->finished_us && now > c->finished_us ? now - c->finished_us : 0;
    if (since > gap)
        gap = since; /* it has become slower */
    double ms = (double)gap / 1000 * ++c->refused_since;
    return ms < RETRY_MIN_MS ? RETRY_MIN_MS : ms > RETRY_MAX_MS ? RETRY_MAX_MS : (uint64_t)ms;
}

static size_t bytes_of(const struct request *r)
{
    return r->prompt.text.size + r->tokens.count * sizeof(uint32_t) + r->asked.size;
}

static size_t bytes_asked(const Gptoss__Generate *m)
{
    if (m->prompt_case == GPTOSS__GENERATE__PROMPT_IDS)
        return m->ids->n_ids * sizeof(uint32_t);
    if (m->prompt_case == GPTOSS__GENERATE__PROMPT_TEXT)
        return m->text.len;
    return gptoss__generate__get_packed_size(m);
}

static bool is_overload(const struct coordinator *c, const struct core_peer *peer,
                        const Gptoss__Generate *m, char *err, size_t err_size)
{
    const struct coordinator_options *o = &c->options;
    uint32_t queued = 0, of_client = 0;
    size_t bytes = bytes_asked(m);
    for (size_t i = 0; i < c->n_requests; i++) {
        const struct request *r = c->requests[i];
        if (r->state == REQUEST_DONE)
            continue;
        of_client += core_peer_equal(&r->client, peer);
        if (r->state != REQUEST_RUNNING) {
            queued++;
            bytes += bytes_of(r);
        }
    }
    if (queued >= o->max_queue)
        snprintf(err, err_size, "%u requests wait already, which is the limit: try again later",
                 o->max_queue);
    else if (queued && bytes > o->max_queue_bytes)
        snprintf(err, err_size,
                 "the prompts that wait, with this one, are more than %zu MiB: try again later",
                 o->max_queue_bytes >> 20);
    else if (o->max_client && of_client >= o->max_client)
        snprintf(err, err_size,
                 "this client has %u requests already, which is the limit: wait until one ends",
                 of_client);
    else
        return false;
    return true;
}

/* ── from Generate to Accepted ─────────────────────────────────────────────────────────────── */

static void too_long(const struct coordinator *c, size_t tokens, char *err, size_t err_size)
{
    snprintf(err, err_size,
             "the prompt has %zu tokens or more and the context holds %u, the answer included: "
             "shorten it, "
             "or start the coordinator with a larger --context",
             tokens, c->context);
}

void requests_add(struct coordinator *c, struct request *r, uint64_t now)
{
    r->serial = ++c->last_serial;
    r->accepted_us = r->last_sent_us = now;
    r->slot = CORE_NONE;
    r->wait_node = BLOCKS_NONE;
    c->requests =
        base_grow(c->requests, &c->requests_capacity, c->n_requests + 1, sizeof(struct request *));
    c->requests[c->n_requests++] = r;
    c->n_encoding++;
    c->requests_due_us = 0;
}

void admit_generate(struct coordinator *c, const struct core_peer *peer, const Gptoss__Generate *m,
                    uint64_t now)
{
    const ProtobufCBinaryData id = m->request_id;
    struct request *old = id.len && id.len <= CORE_ID_MAX ? requests_find(c, id) : NULL;
    struct request *r = NULL;
    char err[512];
    Gptoss__Code code = GPTOSS__CODE__INVALID;
    uint64_t retry_ms = 0;

    if (c->draining) {
        code = GPTOSS__CODE__SHUTTING_DOWN;
        snprintf(err, sizeof err, "the coordinator is shutting down and takes no new requests");
    } else if (old) {
        code = GPTOSS__CODE__DUPLICATE;
        snprintf(err, sizeof err, "a request of this id is alive: choose another id, or Resume it");
    } else if (is_overload(c, peer, m, err, sizeof err)) {
        code = GPTOSS__CODE__BUSY;
        retry_ms = retry_after(c, now);
    } else if (m->prompt_case == GPTOSS__GENERATE__PROMPT_IDS && m->ids->n_ids >= c->context) {
        code = GPTOSS__CODE__TOO_LONG; /* before millions of ids are copied */
        too_long(c, m->ids->n_ids, err, sizeof err);
    } else {
        r = intake_request(c, m, now, err, sizeof err);
        if (r && !records_take(c, r, m)) {
            snprintf(err, sizeof err, "the request is too large for the journal");
            requests_destroy(r);
            r = NULL;
        }
    }
    if (!r) {
        requests_refuse(c, peer, id.data, id.len <= CORE_ID_MAX ? id.len : 0, code, retry_ms, err);
        return;
    }
    r->client = *peer;
    requests_add(c, r, now);
}

/* It is certain that it will be answered. */
static void accept(struct coordinator *c, struct request *r, uint64_t now)
{
    c->n_prompt += r->n_prompt;
    requests_set_state(c, r, REQUEST_WAITING);
    Gptoss__Accepted accepted = GPTOSS__ACCEPTED__INIT;
    accepted.request_id = core_binary(r->id, r->id_size);
    accepted.queued_before = requests_before(c, r);
    accepted.seed = r->seed;
    Gptoss__ServerMessage m;
    gptoss__server_message__init(&m);
    m.body_case = GPTOSS__SERVER_MESSAGE__BODY_ACCEPTED;
    m.accepted = &accepted;
    core_send_client(c, &r->client, &m);
    r->last_sent_us = now;
}

static void accept_encoded(struct coordinator *c, struct request *r, uint64_t now)
{
    char text[256];
    r->n_prompt = r->tokens.count;
    prompt_free(&r->prompt);
    Gptoss__Code code = GPTOSS__CODE__INVALID;
    if (r->n_prompt == 0) {
        snprintf(text, sizeof text, "the prompt is empty: give it at least one token");
    } else if (r->n_prompt >= c->context) {
        code = GPTOSS__CODE__TOO_LONG;
        too_long(c, r->n_prompt, text, sizeof text);
    } else {
        uint32_t room = c->context - (uint32_t)r->n_prompt;
        if (!r->max_tokens || r->max_tokens > room)
            r->max_tokens = room;
        r->keeping = records_accept(c, r);
        c->n_keeping += r->keeping;
        if (!r->keeping)
            accept(c, r, now);
        return;
    }
    requests_refuse(c, &r->client, r->id, r->id_size, code, 0, text);
    records_end(c, r); /* it came out of a journal, and the context was larger then */
    requests_set_state(c, r, REQUEST_DONE);
    r->linger_until_us = 0;
}

void requests_kept(struct coordinator *c, struct request *r, uint64_t now)
{
    accept(c, r, now);
}

void requests_encode_now(struct coordinator *c, struct request *r, uint64_t now)
{
    while (!prompt_encode(&r->prompt, c->tokenizer, CORE_ENCODE_BUDGET, &r->tokens) &&
           r->tokens.count < c->context)
        ;
    accept_encoded(c, r, now);
}

/* Tokenises a bounded amount, oldest request first. */
void admit_encode(struct coordinator *c, uint64_t now)
{
    size_t budget = c->n_encoding > c->n_keeping ? CORE_ENCODE_BUDGET : 0;
    if (!budget)
        return;
    for (size_t i = 0; i < c->n_requests; i++) {
        struct request *r = c->requests[i];
        if (r->state != REQUEST_ENCODING || r->keeping)
            continue;
        if (!budget)
            return;
        size_t size = r->prompt.text.size;
        if (!prompt_encode(&r->prompt, c->tokenizer, budget, &r->tokens) &&
            r->tokens.count < c->context)
            return; /* the budget is spent */
        budget -= size < budget ? size : budget;
        accept_encoded(c, r, now);
    }
}
