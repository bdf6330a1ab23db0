/* call: a question to the model, from its body to the last byte of its answer. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/gateway/gateway.h"

#define SILENT_SECONDS                                                                             \
    5.0 /* without a word on a connection that is there, at least; status comes each second */
#define PING_SECONDS 5.0 /* of silence on a stream, then a comment is sent */

static void call_open(struct call *call)
{
    if (call->opened)
        return;
    call->opened = true;
    http_stream(call->exchange);
    call->api->open(call);
    http_flush(call->exchange);
}

/* ── the end ───────────────────────────────────────────────────────────────────────────────── */

/* The question is needed no more. */
static void choice_asked(struct choice *c)
{
    c->call->gateway->asked_bytes -= c->asked.size;
    text_free(&c->asked);
}

static void choice_free(struct choice *c)
{
    answer_free(&c->answer);
    if (c->call != NULL)
        choice_asked(c);
    text_free(&c->head);
    free(c->shown);
    free(c->part_shown);
}

void call_destroy(struct call *call)
{
    for (size_t i = 0; i < call->n_choices; i++) {
        link_forget(call->gateway, &call->choices[i], !call->choices[i].done);
        choice_free(&call->choices[i]);
    }
    for (size_t i = 0; i < call->n_prompts; i++) {
        text_free(&call->prompts[i].text);
        free(call->prompts[i].ids);
    }
    free(call->choices);
    free(call->prompts);
    conversation_free(&call->conversation);
    options_free(&call->request);
    text_free(&call->head);
    text_free(&call->tail);
    json_decref(call->names);
    json_decref(call->root);
    json_memory_return();
    if (call->exchange != NULL)
        call->exchange->call = NULL;
    free(call);
}

void call_fail(struct call *call, const struct problem *p)
{
    struct exchange *x = call->exchange;
    for (size_t i = 0; i < call->n_choices; i++)
        if (!call->choices[i].done) {
            link_forget(call->gateway, &call->choices[i],
                        call->choices[i].answer.state < ANSWER_REFUSED);
            call->choices[i].done = true;
        }
    if (x->ended || x->state == EXCHANGE_REPLY)
        return;
    if (call->opened) {
        call->api->fail(call, p);
        http_end(x);
    } else
        problem_reply(x, p);
}

static void call_end(struct call *call)
{
    struct exchange *x = call->exchange;
    if (call->stream) {
        call->api->end(call);
        http_end(x);
        return;
    }
    struct text out = {0};
    call->api->whole(call, &out);
    text_print(&out, "\n");
    http_reply(x, 200, "application/json", &out);
}

static void choice_end(struct choice *c)
{
    struct call *call = c->call;
    link_forget(call->gateway, c, false);
    c->done = true;
    if (call->stream)
        call->api->finish(c);
    if (++call->n_done == call->n_choices)
        call_end(call);
}

/* ── what comes ────────────────────────────────────────────────────────────────────────────── */

static void take_piece(void *arg, const struct answer_part *part, bool first, const char *bytes,
                       size_t size)
{
    struct choice *c = arg;
    if (c->call->logprobs)
        logprobs_take(c, part, first);
    if (c->call->stream)
        c->call->api->piece(c, part, first, bytes, size);
}

void call_message(struct choice *c, const Gptoss__ServerMessage *message)
{
    struct call *call = c->call;
    struct problem problem = {0};
    char err[256];
    if (call->exchange->aborted)
        return;
    if (call->stream && message->body_case != GPTOSS__SERVER_MESSAGE__BODY_REFUSED)
        call_open(call);
    if (answer_take(&c->answer, message, take_piece, c, err, sizeof err) < 0) {
        problem_set(&problem, 502, "coordinator_error", "",
                    "what the coordinator sends is no answer: %s", err);
        call_fail(call, &problem);
        return;
    }
    if (c->answer.n_tokens > 0)
        choice_asked(c);
    if (c->answer.state == ANSWER_REFUSED ||
        (c->answer.state == ANSWER_FINISHED &&
         c->answer.reason == GPTOSS__FINISHED__REASON__ERROR)) {
        problem_of_code(&problem, c->answer.code, c->answer.error.bytes, c->answer.retry_ms);
        call_fail(call, &problem);
        return;
    }
    if (c->answer.state == ANSWER_FINISHED &&
        c->answer.reason == GPTOSS__FINISHED__REASON__CANCELLED) {
        problem_set(&problem, 500, "cancelled", "", "the coordinator cancelled the request");
        call_fail(call, &problem);
        return;
    }
    if (c->answer.state == ANSWER_FINISHED)
        choice_end(c);
    if (call->stream)
        http_flush(call->exchange);
}

void call_tick(struct call *call, double now)
{
    struct gateway *g = call->gateway;
    struct exchange *x = call->exchange;
    struct problem problem = {0};
    if (call->n_done == call->n_choices || x->ended || x->state == EXCHANGE_REPLY)
        return;
    for (size_t i = 0; i < call->n_choices; i++) {
        const struct choice *c = &call->choices[i];
        bool known = c->answer.state != ANSWER_WAITING;
        double down = g->session.down_since, reconnect = g->options->client.reconnect_seconds;
        double last = known && down > 0 ? down : g->heard > c->asked_at ? g->heard : c->asked_at;
        double allowed = !known                       ? g->options->client.timeout_seconds
                         : down > 0                   ? reconnect
                         : reconnect > SILENT_SECONDS ? reconnect
                                                      : SILENT_SECONDS;
        if (c->done || (now - last < allowed && (known || g->session.trouble[0] == '\0')))
            continue;
        problem_set(&problem, 503, "no_coordinator", "", "%s: %s", g->options->client.endpoint,
                    g->session.trouble[0] != '\0' ? g->session.trouble
                    : known                       ? "the coordinator is lost"
                                                  : "no coordinator answers");
        problem.retry_ms = 2000;
        call_fail(call, &problem);
        return;
    }
    if (call->stream && !call->opened && now - x->began > PING_SECONDS - 1)
        call_open(call);
    if (call->opened && now - x->wrote > PING_SECONDS - 1 && x->out.size == x->taken) {
        x->wrote = now;
        text_print(&x->out, ": wait\n\n");
        http_flush(x);
    }
}

/* ── the beginning ─────────────────────────────────────────────────────────────────────────── */

struct prompt_of_call *call_prompt(struct call *call)
{
    call->prompts = base_grow(call->prompts, &call->prompts_capacity, call->n_prompts + 1,
                              sizeof *call->prompts);
    struct prompt_of_call *prompt = &call->prompts[call->n_prompts++];
    *prompt = (struct prompt_of_call){0};
    return prompt;
}

/* Packs the question of each choice. */
static int make_choices(struct call *call, struct problem *p)
{
    size_t prompts = call->chat ? 1 : call->n_prompts, all = 0;
    struct options o = call->request;
    call->n_choices = prompts * call->n;
    call->choices = base_alloc(call->n_choices, sizeof *call->choices);
    for (size_t i = 0; i < call->n_choices; i++) {
        struct choice *c = &call->choices[i];
        c->call = call;
        c->index = (uint32_t)i;
        link_name(call->gateway, c);
        if (!call->chat) {
            const struct prompt_of_call *prompt = &call->prompts[i / call->n];
            o.prompt = prompt->text;
            o.by_ids = prompt->ids != NULL;
            o.ids = prompt->ids;
            o.n_ids = prompt->n_ids;
        }
        o.seed = call->request.seed + i % call->n;
        conversation_pack(&o, call->chat ? &call->conversation : NULL, &c->answer.id, &c->asked);
        call->gateway->asked_bytes += c->asked.size;
        if (c->asked.size > PROTO_MESSAGE_MAX) {
            problem_set(p, 413, "request_too_large", "",
                        "the prompt is %zu bytes for the coordinator, at most %zu are taken",
                        c->asked.size, PROTO_MESSAGE_MAX);
            return -1;
        }
        if ((all += c->asked.size) > ASKED_BYTES_MAX) {
            problem_set(p, 413, "request_too_large", "n",
                        "the prompts of all %zu answers are more than %zu bytes: ask for fewer at "
                        "a time",
                        call->n_choices, ASKED_BYTES_MAX);
            return -1;
        }
    }
    return 0;
}

void call_start(struct exchange *x, const struct api *api)
{
    struct problem problem = {0};
    struct call *call = base_alloc(1, sizeof *call);
    call->gateway = x->gateway;
    call->exchange = x;
    call->api = api;
    call->n = 1;
    call->created = time(NULL);
    x->call = call;
    if (x->gateway->draining) {
        problem_set(&problem, 503, "shutting_down", "", "the gateway is shutting down");
        problem.retry_ms = 5000;
    } else if (json_memory_used() + x->gateway->asked_bytes > HELD_BYTES_MAX) {
        problem_set(&problem, 503, "overloaded", "",
                    "the questions of others take all of the gateway's memory");
        problem.retry_ms = 2000;
    } else if ((call->root = json_body(&x->body, &problem)) != NULL &&
               api->read(call, &problem) == 0)
        make_choices(call, &problem);
    text_free(&x->body);
    if (problem.status != 0) {
        for (size_t i = 0; i < call->n_choices; i++)
            call->choices[i].done = true; /* nothing was asked */
        call_destroy(call);
        problem_reply(x, &problem);
        return;
    }
    snprintf(call->id, sizeof call->id, "%s%016llx%08llx", api->id_prefix,
             (unsigned long long)x->gateway->run,
             (unsigned long long)call->choices[0].number & 0xffffffffu);
    for (size_t i = 0; i < call->n_choices; i++)
        link_ask(x->gateway, &call->choices[i]);
}
