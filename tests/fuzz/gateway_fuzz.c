/*
 * Fuzzes what reaches the gateway from HTTP clients: bodies of calls. The input's first byte chooses the route
 * and how the answer goes, the rest is the body. A body that is taken is asked of a coordinator that is played
 * here: it answers with text that is a part of the body.
 *
 * Held: nothing crashes or leaks, what is refused is refused in OpenAI's form, what is asked can be unpacked,
 * answers and events are JSON.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/gateway/gateway.h"

static struct choice *asked[CHOICES_MAX];
static size_t n_asked;

/* ── what stands around calls ──────────────────────────────────────────────────────────────── */

void http_reply(struct exchange *x, int status, const char *type, struct text *body)
{
    text_free(&x->out);
    x->out = *body;
    *body = (struct text){0};
    x->status = status;
    x->type = type;
    x->state = EXCHANGE_REPLY;
}

void http_stream(struct exchange *x)
{
    x->status = 200;
    x->state = EXCHANGE_STREAMING;
}

void http_flush(struct exchange *x)
{
    (void)x;
}

void http_end(struct exchange *x)
{
    x->ended = true;
}

const char *routes_model(struct gateway *g)
{
    (void)g;
    return "model";
}

void link_name(struct gateway *g, struct choice *c)
{
    struct text id = {0};
    c->number = ++g->last_number;
    text_print(&id, "gw-%llx", (unsigned long long)c->number);
    answer_start(&c->answer, &id, 0);
    text_free(&id);
}

void link_ask(struct gateway *g, struct choice *c)
{
    (void)g;
    asked[n_asked++] = c;
}

void link_forget(struct gateway *g, struct choice *c, bool cancel)
{
    (void)g;
    (void)c;
    (void)cancel;
}

/* ── the coordinator ───────────────────────────────────────────────────────────────────────── */

static void output(struct choice *c, const uint8_t *from, size_t size, uint32_t index)
{
    static const struct {
        Gptoss__Piece__Channel channel;
        const char *recipient;
        uint32_t message;
    } kinds[] = {{GPTOSS__PIECE__CHANNEL__ANALYSIS, "", 0},
                 {GPTOSS__PIECE__CHANNEL__COMMENTARY, "", 1},
                 {GPTOSS__PIECE__CHANNEL__COMMENTARY, "functions.f", 2},
                 {GPTOSS__PIECE__CHANNEL__COMMENTARY, "g", 3},
                 {GPTOSS__PIECE__CHANNEL__FINAL, "", 4}};
    Gptoss__ServerMessage m = GPTOSS__SERVER_MESSAGE__INIT;
    Gptoss__Output o = GPTOSS__OUTPUT__INIT;
    Gptoss__Token t = GPTOSS__TOKEN__INIT, *tokens[] = {&t};
    Gptoss__Piece p = GPTOSS__PIECE__INIT, *pieces[] = {&p};
    Gptoss__Logit l = GPTOSS__LOGIT__INIT, *top[] = {&l};
    uint8_t bytes[8];
    for (size_t i = 0; i < size; i++)
        bytes[i] = from[i] ? from[i] : ' '; /* jansson reads no name with a NUL in it */
    size_t kind = size > 0 ? bytes[0] % 5 : 0;
    if (size > 2 && bytes[1] & 1)
        t.logit = bytes[2] & 1 ? INFINITY : NAN;
    m.body_case = GPTOSS__SERVER_MESSAGE__BODY_OUTPUT;
    m.output = &o;
    o.request_id = (ProtobufCBinaryData){c->answer.id.size, (uint8_t *)c->answer.id.bytes};
    o.n_tokens = 1;
    o.tokens = tokens;
    t.index = index;
    t.n_pieces = size > 0 && bytes[0] & 32 ? 0 : 1;
    t.pieces = pieces;
    t.n_top = c->call->request.top_logits > 0;
    t.top = top;
    t.text = l.text = p.text = (ProtobufCBinaryData){size, bytes};
    p.channel = c->call->chat ? kinds[kind].channel : GPTOSS__PIECE__CHANNEL__RAW;
    p.recipient = (char *)(uintptr_t)(c->call->chat ? kinds[kind].recipient : "");
    p.message = c->call->chat ? kinds[kind].message : 0;
    call_message(c, &m);
}

static void finish(struct choice *c, uint32_t tokens, Gptoss__Finished__Reason reason)
{
    Gptoss__ServerMessage m = GPTOSS__SERVER_MESSAGE__INIT;
    Gptoss__Finished f = GPTOSS__FINISHED__INIT;
    m.body_case = GPTOSS__SERVER_MESSAGE__BODY_FINISHED;
    m.finished = &f;
    f.request_id = (ProtobufCBinaryData){c->answer.id.size, (uint8_t *)c->answer.id.bytes};
    f.reason = reason;
    f.tokens = tokens;
    call_message(c, &m);
}

static void answer(struct choice *c, const uint8_t *bytes, size_t size, uint8_t how)
{
    char err[256];
    ProtobufCMessage *m = proto_unpack(&gptoss__client_message__descriptor, c->asked.bytes,
                                       c->asked.size, err, sizeof err);
    if (!m)
        abort();
    proto_free(m);
    uint32_t tokens = 0;
    for (size_t at = 0; at < size && tokens < 40; at += 7)
        output(c, bytes + at, size - at < 7 ? size - at : 7, tokens++);
    finish(c, tokens, (Gptoss__Finished__Reason)(how >> 4 & 7) % 5);
}

/* ── what came of it ───────────────────────────────────────────────────────────────────────── */

static void check_json(const char *bytes, size_t size)
{
    json_t *value = json_loadb(bytes, size, JSON_ALLOW_NUL, NULL);
    if (!value) {
        fprintf(stderr, "this is no JSON: %.*s\n", (int)size, bytes);
        abort();
    }
    json_decref(value);
}

static void check(const struct exchange *x)
{
    if (x->state == EXCHANGE_REPLY) {
        check_json(x->out.bytes, x->out.size);
        return;
    }
    if (x->state != EXCHANGE_STREAMING || !x->ended)
        abort();
    for (const char *at = x->out.bytes, *end = at + x->out.size; at < end;) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        if (!newline)
            abort();
        if (newline - at > 6 && memcmp(at, "data: {", 7) == 0)
            check_json(at + 6, (size_t)(newline - at - 6));
        at = newline + 1;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct api *const apis[] = {&api_chat, &api_completion, &api_responses};
    static const struct gateway_options options;
    static bool ready;
    struct gateway g = {.options = &options};
    struct exchange x = {.gateway = &g, .fd = -1, .state = EXCHANGE_WAITING};
    if (!ready)
        json_memory_init();
    ready = true;
    if (size < 1)
        return 0;
    n_asked = 0;
    text_add(&x.body, data + 1, size - 1);
    call_start(&x, apis[data[0] % 3]);
    if (x.state == EXCHANGE_WAITING && n_asked == 0)
        abort();
    for (size_t i = 0; i < n_asked; i++)
        answer(asked[i], data + 1, size - 1, data[0]);
    check(&x);
    if (x.call)
        call_destroy(x.call);
    text_free(&x.body);
    text_free(&x.out);
    return 0;
}
