/*
 * records: what a journal keeps of a request, and how requests come back from it. A record is
 *
 *   u8 kind, u64 serial, then
 *   ACCEPT   u64 seed, u64 deadline (µs, wall clock; UINT64_MAX: none), the Generate
 *   TOKENS   u32 index of the first, a StepResult: its samples are the tokens
 *   END      nothing: the request is over, and nobody may ask for it any more
 *
 * little-endian. Text, channels and the end of an answer are functions of the tokens. Tokens that a
 * journal lacks are computed again, and are the same: so only ACCEPT has to be on disk in time.
 */
#include "coordinator/records.h"

#include <assert.h>
#include <string.h>

#include "coordinator/requests.h"

static void put(struct text *t, uint64_t value, size_t size)
{
    uint8_t bytes[8];
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(value >> 8 * i);
    text_add(t, bytes, size);
}

static uint64_t get(const uint8_t **at, size_t size)
{
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++)
        value |= (uint64_t) * (*at)++ << 8 * i;
    return value;
}

static struct text *begin(struct coordinator *c, struct request *r, enum record_kind kind)
{
    struct text *t = core_keep(c, kind == RECORD_ACCEPT);
    put(t, kind, 1);
    put(t, r->serial, 8);
    return t;
}

bool records_take(struct coordinator *c, struct request *r, const Gptoss__Generate *m)
{
    if (!c->options.journal)
        return true;
    size_t size = gptoss__generate__get_packed_size(m);
    if (size > PROTO_MESSAGE_MAX)
        return false;
    core_pack(&m->base, &r->asked);
    if (r->linger_us < RECORDS_LINGER_US)
        r->linger_us = RECORDS_LINGER_US;
    return true;
}

bool records_accept(struct coordinator *c, struct request *r)
{
    if (!c->options.journal || r->kept)
        return false;
    struct text *t = begin(c, r, RECORD_ACCEPT);
    put(t, r->seed, 8);
    put(t, r->deadline_us == UINT64_MAX ? UINT64_MAX : r->deadline_us + c->options.wall_us, 8);
    text_add(t, r->asked.bytes, r->asked.size);
    text_free(&r->asked);
    r->kept = true;
    r->record = ++c->n_records;
    return true;
}

void records_token(struct coordinator *c, struct request *r, const Gptoss__Sample *sample)
{
    if (!r->kept || c->restoring)
        return;
    struct text *t = begin(c, r, RECORD_TOKENS);
    put(t, r->tokens.count - r->n_prompt - 1, 4);
    Gptoss__Sample one = *sample, *samples[1] = {&one};
    Gptoss__StepResult result = GPTOSS__STEP_RESULT__INIT;
    result.n_samples = 1;
    result.samples = samples;
    uint8_t bytes[2048]; /* CORE_TOP_LOGITS_MAX ids and logits, and a few numbers */
    assert(gptoss__step_result__get_packed_size(&result) <= sizeof bytes);
    text_add(t, bytes, gptoss__step_result__pack(&result, bytes));
    c->n_records++;
}

void records_end(struct coordinator *c, struct request *r)
{
    if (!r->kept)
        return;
    begin(c, r, RECORD_END);
    r->kept = false;
    c->n_records++;
}

/* ── coming back ───────────────────────────────────────────────────────────────────────────── */

static int restore_accept(struct coordinator *c, uint64_t serial, const uint8_t *at,
                          const uint8_t *end, uint64_t now, char *err, size_t err_size)
{
    if (end - at < 16 || serial <= c->last_serial || serial > UINT64_MAX / 2) {
        snprintf(err, err_size, "it is cut, or out of order");
        return -1;
    }
    uint64_t seed = get(&at, 8), deadline = get(&at, 8);
    Gptoss__Generate *m = (Gptoss__Generate *)proto_unpack(&gptoss__generate__descriptor, at,
                                                           (size_t)(end - at), err, err_size);
    if (!m)
        return -1;
    struct request *r = NULL;
    if (m->prompt_case == GPTOSS__GENERATE__PROMPT_IDS && m->ids->n_ids >= c->context)
        snprintf(err, err_size, "its prompt does not fit the context any more");
    else if (requests_find(c, m->request_id))
        snprintf(err, err_size, "its id is there already");
    else
        r = intake_request(c, m, now, err, err_size);
    proto_free(&m->base);
    if (!r)
        return -1;
    r->seed = seed;
    if (deadline == UINT64_MAX)
        r->deadline_us = UINT64_MAX;
    else
        r->deadline_us = deadline > c->options.wall_us ? deadline - c->options.wall_us : 0;
    if (r->linger_us < RECORDS_RETURN_US)
        r->linger_us = RECORDS_RETURN_US;
    r->linger_until_us = now + r->linger_us;
    r->kept = true;
    c->last_serial = serial - 1;
    requests_add(c, r, now);
    return 0;
}

static int restore_tokens(struct coordinator *c, uint64_t serial, const uint8_t *at,
                          const uint8_t *end, uint64_t now, char *err, size_t err_size)
{
    struct request *r = requests_find_serial(c, serial);
    if (!r || end - at < 4) {
        snprintf(err, err_size, "it belongs to no request");
        return -1;
    }
    uint32_t index = (uint32_t)get(&at, 4);
    if (r->state == REQUEST_ENCODING)
        requests_encode_now(c, r, now);
    Gptoss__StepResult *m = (Gptoss__StepResult *)proto_unpack(&gptoss__step_result__descriptor, at,
                                                               (size_t)(end - at), err, err_size);
    if (!m)
        return -1;
    int status = 0;
    for (size_t i = 0; i < m->n_samples && r->state == REQUEST_WAITING && status == 0; i++) {
        const Gptoss__Sample *s = m->samples[i];
        if (index + i == r->tokens.count - r->n_prompt && s->token < c->options.model->vocabulary &&
            s->n_top_ids == s->n_top_logits && s->n_top_ids <= r->top_logits) {
            requests_token(c, r, s, now);
        } else {
            snprintf(err, err_size, "token %zu of a request does not fit to those before it",
                     index + i);
            status = -1; /* what is missing is computed */
        }
    }
    proto_free(&m->base);
    return status;
}

int coordinator_restore(struct coordinator *c, const void *bytes, size_t size, uint64_t now_us,
                        char *err, size_t err_size)
{
    const uint8_t *at = bytes, *end = at + size;
    if (size < 9) {
        snprintf(err, err_size, "it is cut");
        return -1;
    }
    enum record_kind kind = (enum record_kind)get(&at, 1);
    uint64_t serial = get(&at, 8);
    int status = -1;
    c->restoring = true;
    switch (kind) {
    case RECORD_ACCEPT: status = restore_accept(c, serial, at, end, now_us, err, err_size); break;
    case RECORD_TOKENS: status = restore_tokens(c, serial, at, end, now_us, err, err_size); break;
    case RECORD_END: {
        struct request *r = requests_find_serial(c, serial);
        status = 0;
        if (r && r->state != REQUEST_DONE)
            requests_finish(c, r, GPTOSS__FINISHED__REASON__CANCELLED, GPTOSS__CODE__OK, NULL,
                            now_us);
        if (r) {
            r->kept = false;
            r->linger_until_us = 0;
        }
        break;
    }
    default: snprintf(err, err_size, "it is of a kind that this version does not know");
    }
    c->restoring = false;
    return status;
}

void coordinator_kept(struct coordinator *c, uint64_t records, uint64_t now_us)
{
    for (size_t i = 0; c->n_keeping && i < c->n_requests; i++) {
        struct request *r = c->requests[i];
        if (r->keeping && r->record <= records)
            requests_kept(c, r, now_us);
    }
}
