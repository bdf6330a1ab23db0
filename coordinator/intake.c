/*
 * intake: what a Generate asks for, checked field by field. The sentences name the field.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/requests.h"

static int check_sampling(struct coordinator *c, struct request *r, const Gptoss__Sampling *s,
                          char *err, size_t err_size)
{
    /* SplitMix64: seeds for requests that name none. */
    uint64_t z = (c->seed_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    r->seed = z ^ (z >> 31);
    r->temperature = 1;
    r->top_p = 1;
    if (!s)
        return 0;
    if (s->temperature_given_case == GPTOSS__SAMPLING__TEMPERATURE_GIVEN_TEMPERATURE)
        r->temperature = s->temperature;
    if (s->top_p_given_case == GPTOSS__SAMPLING__TOP_P_GIVEN_TOP_P)
        r->top_p = s->top_p;
    if (s->seed_given_case == GPTOSS__SAMPLING__SEED_GIVEN_SEED)
        r->seed = s->seed;
    r->min_p = s->min_p;
    r->top_k = s->top_k;
    if (!(r->temperature >= 0 && r->temperature <= 100))
        snprintf(err, err_size, "temperature must be from 0 to 100, not %g",
                 (double)r->temperature);
    else if (!(r->top_p > 0 && r->top_p <= 1))
        snprintf(err, err_size, "top_p must be above 0 and at most 1, not %g", (double)r->top_p);
    else if (!(r->min_p >= 0 && r->min_p <= 1))
        snprintf(err, err_size, "min_p must be from 0 to 1, not %g", (double)r->min_p);
    else
        return 0;
    return -1;
}

static int take_stops(struct request *r, const Gptoss__Generate *m, char *err, size_t err_size)
{
    if (m->n_stop > CORE_STOPS_MAX) {
        snprintf(err, err_size, "stop has %zu texts, at most %d are possible", m->n_stop,
                 CORE_STOPS_MAX);
        return -1;
    }
    for (size_t i = 0; i < m->n_stop; i++) {
        if (m->stop[i].len == 0 || m->stop[i].len > CORE_STOP_BYTES_MAX) {
            snprintf(err, err_size, "stop text %zu has %zu bytes: from 1 to %d are possible", i,
                     m->stop[i].len, CORE_STOP_BYTES_MAX);
            return -1;
        }
        struct text clean = {0};
        tokenizer_clean(m->stop[i].data, m->stop[i].len, &clean);
        r->stops[r->n_stops++] = (struct gguf_string){clean.bytes, clean.size};
    }
    return 0;
}

static int take_ids(const struct coordinator *c, struct request *r, const Gptoss__TokenIds *ids,
                    char *err, size_t err_size)
{
    for (size_t i = 0; i < ids->n_ids; i++) {
        if (ids->ids[i] >= c->options.model->vocabulary) {
            snprintf(err, err_size, "token %zu of the prompt is %u, but ids go from 0 to %u", i,
                     ids->ids[i], c->options.model->vocabulary - 1);
            return -1;
        }
        tokens_add(&r->tokens, ids->ids[i]);
    }
    return 0;
}

static int take_prompt(const struct coordinator *c, struct request *r, const Gptoss__Generate *m,
                       char *err, size_t err_size)
{
    r->start = HARMONY_START_RAW;
    switch (m->prompt_case) {
    case GPTOSS__GENERATE__PROMPT_TEXT:
        prompt_from_text(&r->prompt, m->text.data, m->text.len);
        return 0;
    case GPTOSS__GENERATE__PROMPT_IDS: return take_ids(c, r, m->ids, err, err_size);
    case GPTOSS__GENERATE__PROMPT_CHAT:
        return harmony_render(&r->prompt, c->tokenizer, m->chat, &r->start, err, err_size);
    default: snprintf(err, err_size, "there is no prompt: give text, ids or chat"); return -1;
    }
}

struct request *intake_request(struct coordinator *c, const Gptoss__Generate *m, uint64_t now,
                               char *err, size_t err_size)
{
    if (m->request_id.len == 0 || m->request_id.len > CORE_ID_MAX) {
        snprintf(err, err_size, "request_id has %zu bytes: from 1 to %d are possible",
                 m->request_id.len, CORE_ID_MAX);
        return NULL;
    }
    struct request *r = base_alloc(1, sizeof *r);
    r->id_size = m->request_id.len;
    memcpy(r->id, m->request_id.data, r->id_size);
    r->state = REQUEST_ENCODING;
    r->max_tokens = m->max_tokens;
    r->ignore_eos = m->ignore_eos;
    r->top_logits = m->top_logits;
    r->deadline_us = UINT64_MAX;
    if (m->deadline_ms && m->deadline_ms < (UINT64_MAX - now) / 1000)
        r->deadline_us = now + m->deadline_ms * 1000;
    r->linger_us = m->linger_ms * 1000;
    if (m->top_logits > CORE_TOP_LOGITS_MAX)
        snprintf(err, err_size, "top_logits is %u, at most %d are possible", m->top_logits,
                 CORE_TOP_LOGITS_MAX);
    else if (m->linger_ms > CORE_LINGER_MAX_MS)
        snprintf(err, err_size, "linger_ms is more than %d", CORE_LINGER_MAX_MS);
    else if (check_sampling(c, r, m->sampling, err, err_size) == 0 &&
             take_stops(r, m, err, err_size) == 0 && take_prompt(c, r, m, err, err_size) == 0) {
        r->parser = harmony_parser_create(c->tokenizer, r->start);
        if (m->prompt_case == GPTOSS__GENERATE__PROMPT_CHAT && m->chat->tool_choice[0] != '\0')
            harmony_parser_choose(r->parser, m->chat->tool_choice);
        return r;
    }
    requests_destroy(r);
    return NULL;
}
