/*
 * responses_write: answers of /v1/responses. Each part of the answer is an item of the output: a chain of
 * thought, a call, a message. An item's number is that of its part.
 */
#include <string.h>

#include "client/gateway/gateway.h"

enum item_kind { ITEM_REASONING, ITEM_CALL, ITEM_MESSAGE };

static enum item_kind kind_of(const struct answer_part *part)
{
    if (answer_is_call(part))
        return ITEM_CALL;
    return part_is_text(part) ? ITEM_MESSAGE : ITEM_REASONING;
}

static void item_id(struct text *out, const struct choice *c, enum item_kind kind, size_t index)
{
    static const char *const prefixes[] = {"rs", "fc", "msg"};
    text_print(out, "%s_%08llx%08llx%02zx", prefixes[kind],
               (unsigned long long)c->call->gateway->run >> 32, (unsigned long long)c->number,
               index);
}

/* Tokens of the part `index` that are its text. */
static void part_logprobs(struct text *out, const struct choice *c, size_t index)
{
    bool last = index + 1 >= c->n_part_shown;
    if (index < c->n_part_shown)
        logprobs_write(out, c, c->part_shown[index], last ? c->n_shown : c->part_shown[index + 1]);
    else
        text_print(out, "[]");
}

/* The content of a message or of a chain of thought. */
static void content_part(struct text *out, const struct choice *c, size_t index, bool empty)
{
    const struct answer_part *part = &c->answer.parts[index];
    bool message = kind_of(part) == ITEM_MESSAGE;
    text_print(out, "{\"type\":\"%s\",\"text\":", message ? "output_text" : "reasoning_text");
    text_json_string(out, part->text.bytes, empty ? 0 : part->text.size);
    if (message) {
        text_print(out, ",\"annotations\":[],\"logprobs\":");
        if (empty)
            text_print(out, "[]");
        else
            part_logprobs(out, c, index);
    }
    text_print(out, "}");
}

/* One item; `status`: in_progress (then it is empty yet), completed, incomplete. */
static void item(struct text *out, const struct choice *c, size_t index, const char *status)
{
    const struct answer_part *part = &c->answer.parts[index];
    enum item_kind kind = kind_of(part);
    bool empty = strcmp(status, "in_progress") == 0;
    text_print(out, "{\"id\":\"");
    item_id(out, c, kind, index);
    text_print(out, "\",\"status\":\"%s\",", status);
    switch (kind) {
    case ITEM_CALL:
        text_print(out, "\"type\":\"function_call\",\"call_id\":\"");
        tool_call_id(out, c, index);
        text_print(out, "\",\"name\":");
        write_string(out, answer_call_name(part));
        text_print(out, ",\"arguments\":");
        text_json_string(out, part->text.bytes, empty ? 0 : part->text.size);
        text_print(out, "}");
        return;
    case ITEM_REASONING:
        text_print(out, "\"type\":\"reasoning\",\"summary\":[],\"content\":[");
        break;
    case ITEM_MESSAGE:
        text_print(out, "\"type\":\"message\",\"role\":\"assistant\",\"content\":[");
        break;
    }
    if (!empty)
        content_part(out, c, index, false);
    text_print(out, "]}");
}

/* ── the response itself ───────────────────────────────────────────────────────────────────── */

static int to_text(const char *bytes, size_t size, void *text)
{
    text_add(text, bytes, size);
    return 0;
}

/* What was asked, as it was asked, or its default. */
static void echo(struct text *out, const struct call *call, const char *name, const char *fallback)
{
    const json_t *value = json_object_get(call->root, name);
    text_print(out, ",\"%s\":", name);
    if (value == NULL || json_is_null(value))
        text_print(out, "%s", fallback);
    else
        json_dump_callback(value, to_text, out, JSON_COMPACT | JSON_ENCODE_ANY);
}

static void usage(struct text *out, const struct answer *a)
{
    text_print(out,
               "{\"input_tokens\":%u,\"input_tokens_details\":{\"cached_tokens\":%u},"
               "\"output_tokens\":%u,\"output_tokens_details\":{\"reasoning_tokens\":%u},"
               "\"total_tokens\":%llu}",
               a->prompt_tokens, a->cached_tokens, a->sampled_tokens, a->reasoning_tokens,
               (unsigned long long)a->prompt_tokens + a->sampled_tokens);
}

static const char *end_status(const struct choice *c)
{
    return c->answer.reason == GPTOSS__FINISHED__REASON__LENGTH ? "incomplete" : "completed";
}

/* The status of an item when the answer is complete: the last one of an answer that was cut is too. */
static const char *item_status(const struct choice *c, size_t index)
{
    return index + 1 == c->answer.n_parts ? end_status(c) : "completed";
}

static void response(struct text *out, const struct call *call, const char *status,
                     const struct problem *p)
{
    static const char *const efforts[] = {[GPTOSS__CHAT__REASONING__MEDIUM] = "medium",
                                          [GPTOSS__CHAT__REASONING__LOW] = "low",
                                          [GPTOSS__CHAT__REASONING__HIGH] = "high"};
    const struct choice *c = &call->choices[0];
    bool over = strcmp(status, "in_progress") != 0, cut = strcmp(status, "incomplete") == 0;
    text_print(out, "{\"id\":\"%s\",\"object\":\"response\",\"created_at\":%lld,\"status\":\"%s\"",
               call->id, (long long)call->created, status);
    text_print(out, ",\"error\":");
    if (p != NULL) {
        text_print(out, "{\"code\":\"%s\",\"message\":",
                   p->status == 429 ? "rate_limit_exceeded" : "server_error");
        write_string(out, p->message);
        text_print(out, "}");
    } else
        text_print(out, "null");
    text_print(out, ",\"incomplete_details\":%s",
               cut ? "{\"reason\":\"max_output_tokens\"}" : "null");
    text_print(out, ",\"model\":");
    write_string(out, routes_model(call->gateway));
    text_print(out, ",\"output\":[");
    for (size_t i = 0; over && i < c->answer.n_parts; i++) {
        text_print(out, i == 0 ? "" : ",");
        item(out, c, i, p != NULL ? "incomplete" : item_status(c, i));
    }
    text_print(out, "],\"usage\":");
    if (over && p == NULL)
        usage(out, &c->answer);
    else
        text_print(out, "null");
    text_print(out, ",\"reasoning\":{\"effort\":\"%s\",\"summary\":null}",
               efforts[call->request.reasoning]);
    echo(out, call, "instructions", "null");
    echo(out, call, "max_output_tokens", "null");
    echo(out, call, "metadata", "{}");
    echo(out, call, "parallel_tool_calls", "true");
    echo(out, call, "temperature", "1.0");
    echo(out, call, "top_p", "1.0");
    echo(out, call, "top_logprobs", "0");
    echo(out, call, "tools", "[]");
    echo(out, call, "tool_choice", "\"auto\"");
    echo(out, call, "user", "null");
    text_print(out, ",\"text\":{\"format\":{\"type\":\"text\"}},\"truncation\":\"disabled\","
                    "\"service_tier\":\"default\",\"store\":false,\"background\":false,"
                    "\"previous_response_id\":null}");
}

/* ── streamed ──────────────────────────────────────────────────────────────────────────────── */

static struct text *event(struct call *call, const char *type)
{
    struct text *out = &call->exchange->out;
    text_print(out, "event: %s\ndata: {\"type\":\"%s\",\"sequence_number\":%zu", type, type,
               call->sequence++);
    return out;
}

static void event_end(struct text *out)
{
    text_print(out, "}\n\n");
}

static void response_event(struct call *call, const char *type, const char *status,
                           const struct problem *p)
{
    struct text *out = event(call, type);
    text_print(out, ",\"response\":");
    response(out, call, status, p);
    event_end(out);
}

/* An event of an item, up to its own fields. */
static struct text *item_event(struct choice *c, const char *type, size_t index)
{
    struct text *out = event(c->call, type);
    enum item_kind kind = kind_of(&c->answer.parts[index]);
    text_print(out, ",\"item_id\":\"");
    item_id(out, c, kind, index);
    text_print(out,
               kind == ITEM_CALL ? "\",\"output_index\":%zu"
                                 : "\",\"output_index\":%zu,\"content_index\":0",
               index);
    return out;
}

static void item_begin(struct choice *c, size_t index)
{
    struct text *out = event(c->call, "response.output_item.added");
    text_print(out, ",\"output_index\":%zu,\"item\":", index);
    item(out, c, index, "in_progress");
    event_end(out);
    c->item_open = true;
    if (kind_of(&c->answer.parts[index]) == ITEM_CALL)
        return;
    out = item_event(c, "response.content_part.added", index);
    text_print(out, ",\"part\":");
    content_part(out, c, index, true);
    event_end(out);
}

static void item_end(struct choice *c, size_t index, const char *status)
{
    const struct answer_part *part = &c->answer.parts[index];
    enum item_kind kind = kind_of(part);
    struct text *out;
    if (!c->item_open)
        return;
    c->item_open = false;
    if (kind == ITEM_CALL) {
        out = item_event(c, "response.function_call_arguments.done", index);
        text_print(out, ",\"name\":");
        write_string(out, answer_call_name(part));
        text_print(out, ",\"arguments\":");
        text_json_string(out, part->text.bytes, part->text.size);
        event_end(out);
    } else {
        bool message = kind == ITEM_MESSAGE;
        out = item_event(c, message ? "response.output_text.done" : "response.reasoning_text.done",
                         index);
        text_print(out, ",\"text\":");
        text_json_string(out, part->text.bytes, part->text.size);
        if (message) {
            text_print(out, ",\"logprobs\":");
            part_logprobs(out, c, index);
        }
        event_end(out);
        out = item_event(c, "response.content_part.done", index);
        text_print(out, ",\"part\":");
        content_part(out, c, index, false);
        event_end(out);
    }
    out = event(c->call, "response.output_item.done");
    text_print(out, ",\"output_index\":%zu,\"item\":", index);
    item(out, c, index, status);
    event_end(out);
}

static void responses_open(struct call *call)
{
    response_event(call, "response.created", "in_progress", NULL);
    response_event(call, "response.in_progress", "in_progress", NULL);
}

static void responses_piece(struct choice *c, const struct answer_part *part, bool first,
                            const char *bytes, size_t size)
{
    static const char *const deltas[] = {"response.reasoning_text.delta",
                                         "response.function_call_arguments.delta",
                                         "response.output_text.delta"};
    size_t index = c->answer.n_parts - 1;
    enum item_kind kind = kind_of(part);
    if (first) {
        if (index > 0)
            item_end(c, index - 1, "completed");
        item_begin(c, index);
    }
    if (size == 0)
        return;
    struct text *out = item_event(c, deltas[kind], index);
    text_print(out, ",\"delta\":");
    text_json_string(out, bytes, size);
    if (kind == ITEM_MESSAGE) {
        text_print(out, ",\"logprobs\":");
        logprobs_write(out, c, c->reported, c->n_shown);
        c->reported = c->n_shown;
    }
    event_end(out);
}

static void responses_finish(struct choice *c)
{
    if (c->answer.n_parts > 0)
        item_end(c, c->answer.n_parts - 1, item_status(c, c->answer.n_parts - 1));
}

static void responses_end(struct call *call)
{
    const char *status = end_status(&call->choices[0]);
    response_event(call,
                   strcmp(status, "completed") == 0 ? "response.completed" : "response.incomplete",
                   status, NULL);
}

static void responses_fail(struct call *call, const struct problem *p)
{
    response_event(call, "response.failed", "failed", p);
}

static void responses_whole(struct call *call, struct text *out)
{
    response(out, call, end_status(&call->choices[0]), NULL);
}

const struct api api_responses = {
    .id_prefix = "resp_",
    .read = responses_read,
    .open = responses_open,
    .piece = responses_piece,
    .finish = responses_finish,
    .end = responses_end,
    .fail = responses_fail,
    .whole = responses_whole,
};
