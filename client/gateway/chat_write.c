/* chat_write: answers of /v1/chat/completions. */
#include <string.h>

#include "client/gateway/gateway.h"

/* Chunks are many and small, so what they have in common is copied, not printed. */
static void chunk(struct choice *c)
{
    text_add(&c->call->exchange->out, c->head.bytes, c->head.size);
}

/* Ends a chunk; `finish`: NULL, or why there is no more. */
static void chunk_end(struct choice *c, bool text, const char *finish)
{
    struct text *out = &c->call->exchange->out;
    bool logprobs = text && c->call->logprobs && c->n_shown > c->reported;
    if (!logprobs && finish == NULL) {
        text_add(out, c->call->tail.bytes, c->call->tail.size);
        return;
    }
    text_print(out, "},\"logprobs\":");
    if (logprobs) {
        text_print(out, "{\"content\":");
        logprobs_write(out, c, c->reported, c->n_shown);
        text_print(out, ",\"refusal\":null}");
        c->reported = c->n_shown;
    } else
        text_print(out, "null");
    text_print(out,
               finish != NULL ? ",\"finish_reason\":\"%s\"}]%s}\n\n"
                              : ",\"finish_reason\":null%.0s}]%s}\n\n",
               finish != NULL ? finish : "", c->call->include_usage ? ",\"usage\":null" : "");
}

static void chat_open(struct call *call)
{
    text_print(&call->head,
               "data: {\"id\":\"%s\",\"object\":\"chat.completion.chunk\",\"created\":%lld,"
               "\"model\":",
               call->id, (long long)call->created);
    write_string(&call->head, routes_model(call->gateway));
    text_print(&call->head, ",\"system_fingerprint\":\"gptoss-" GPTOSS_VERSION "\",\"choices\":[");
    text_print(&call->tail, "},\"logprobs\":null,\"finish_reason\":null}]%s}\n\n",
               call->include_usage ? ",\"usage\":null" : "");
    for (size_t i = 0; i < call->n_choices; i++) {
        struct text *head = &call->choices[i].head;
        text_add(head, call->head.bytes, call->head.size);
        text_print(head, "{\"index\":%zu,\"delta\":{", i);
        chunk(&call->choices[i]);
        text_print(&call->exchange->out, "\"role\":\"assistant\",\"content\":\"\"");
        chunk_end(&call->choices[i], false, NULL);
    }
}

static void chat_piece(struct choice *c, const struct answer_part *part, bool first,
                       const char *bytes, size_t size)
{
    struct text *out = &c->call->exchange->out;
    if (answer_is_call(part)) {
        if (first) {
            chunk(c);
            text_print(out, "\"tool_calls\":[{\"index\":%zu,\"id\":\"", c->n_calls);
            tool_call_id(out, c, c->n_calls++);
            text_print(out, "\",\"type\":\"function\",\"function\":{\"name\":");
            write_string(out, answer_call_name(part));
            text_print(out, ",\"arguments\":\"\"}}]");
            chunk_end(c, false, NULL);
        }
        if (size == 0)
            return;
        chunk(c);
        text_print(out,
                   "\"tool_calls\":[{\"index\":%zu,\"function\":{\"arguments\":", c->n_calls - 1);
        text_json_string(out, bytes, size);
        text_print(out, "}}]");
        chunk_end(c, false, NULL);
        return;
    }
    bool text = part_is_text(part);
    chunk(c);
    if (text)
        text_add(out, "\"content\":", 10);
    else
        text_add(out, "\"reasoning_content\":", 20);
    text_json_string(out, bytes, size);
    chunk_end(c, text, NULL);
}

static void chat_finish(struct choice *c)
{
    chunk(c);
    chunk_end(c, false, finish_name(c));
}

static void chat_end(struct call *call)
{
    struct text *out = &call->exchange->out;
    if (call->include_usage) {
        text_add(out, call->head.bytes, call->head.size);
        text_print(out, "],\"usage\":");
        write_usage(out, call);
        text_print(out, "}\n\n");
    }
    text_print(out, "data: [DONE]\n\n");
}

void stream_fail(struct call *call, const struct problem *p)
{
    text_print(&call->exchange->out, "data: ");
    problem_json(&call->exchange->out, p);
    text_print(&call->exchange->out, "\n\ndata: [DONE]\n\n");
}

/* ── not streamed ──────────────────────────────────────────────────────────────────────────── */

static void whole_calls(struct text *out, const struct choice *c)
{
    size_t n = 0;
    for (size_t i = 0; i < c->answer.n_parts; i++) {
        const struct answer_part *part = &c->answer.parts[i];
        if (!answer_is_call(part))
            continue;
        text_print(out, n == 0 ? ",\"tool_calls\":[{\"id\":\"" : ",{\"id\":\"");
        tool_call_id(out, c, n++);
        text_print(out, "\",\"type\":\"function\",\"function\":{\"name\":");
        write_string(out, answer_call_name(part));
        text_print(out, ",\"arguments\":");
        text_json_string(out, part->text.bytes, part->text.size);
        text_print(out, "}}");
    }
    if (n > 0)
        text_print(out, "]");
}

static void whole_choice(struct text *out, const struct choice *c)
{
    struct text content = {0}, reasoning = {0};
    text_add(&content, "", 0);
    answer_text(&c->answer, GPTOSS__PIECE__CHANNEL__ANALYSIS, &reasoning);
    for (size_t i = 0; i < c->answer.n_parts; i++)
        if (part_is_text(&c->answer.parts[i]))
            text_add(&content, c->answer.parts[i].text.bytes, c->answer.parts[i].text.size);
    bool calls = c->answer.reason == GPTOSS__FINISHED__REASON__TOOL_CALLS;
    text_print(out, "{\"index\":%u,\"message\":{\"role\":\"assistant\",\"content\":", c->index);
    if (content.size == 0 && calls)
        text_print(out, "null");
    else
        text_json_string(out, content.bytes, content.size);
    text_print(out, ",\"refusal\":null");
    if (reasoning.size > 0) {
        text_print(out, ",\"reasoning_content\":");
        text_json_string(out, reasoning.bytes, reasoning.size);
    }
    whole_calls(out, c);
    text_print(out, "},\"logprobs\":");
    if (c->call->logprobs) {
        text_print(out, "{\"content\":");
        logprobs_write(out, c, 0, c->n_shown);
        text_print(out, ",\"refusal\":null}");
    } else
        text_print(out, "null");
    text_print(out, ",\"finish_reason\":\"%s\"}", finish_name(c));
    text_free(&content);
    text_free(&reasoning);
}

static void chat_whole(struct call *call, struct text *out)
{
    text_print(out, "{\"id\":\"%s\",\"object\":\"chat.completion\",\"created\":%lld,\"model\":",
               call->id, (long long)call->created);
    write_string(out, routes_model(call->gateway));
    text_print(out, ",\"system_fingerprint\":\"gptoss-" GPTOSS_VERSION "\",\"choices\":[");
    for (size_t i = 0; i < call->n_choices; i++) {
        text_print(out, i == 0 ? "" : ",");
        whole_choice(out, &call->choices[i]);
    }
    text_print(out, "],\"usage\":");
    write_usage(out, call);
    text_print(out, "}");
}

const struct api api_chat = {
    .id_prefix = "chatcmpl-",
    .read = chat_read,
    .open = chat_open,
    .piece = chat_piece,
    .finish = chat_finish,
    .end = chat_end,
    .fail = stream_fail,
    .whole = chat_whole,
};
