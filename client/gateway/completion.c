/* completion: /v1/completions, plain text without a chat around it. */
#include <stdlib.h>
#include <string.h>

#include "client/gateway/gateway.h"

#define MAX_TOKENS 16 /* OpenAI's default */
#define IDS_MAX    ((size_t)1 << 20)

/* ── reading ───────────────────────────────────────────────────────────────────────────────── */

static int read_ids(struct call *call, const json_t *list, struct problem *p)
{
    size_t n = json_array_size(list);
    if (n == 0 || n > IDS_MAX) {
        problem_set(p, 400, "invalid_value", "prompt", "a list of tokens has from 1 to %zu ids",
                    IDS_MAX);
        return -1;
    }
    struct prompt_of_call *prompt = call_prompt(call);
    prompt->ids = base_alloc(n, sizeof *prompt->ids);
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(list, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > UINT32_MAX)
            return wrong_type(p, "prompt", "a list of tokens, each a whole number", id);
        prompt->ids[prompt->n_ids++] = (uint32_t)json_integer_value(id);
    }
    return 0;
}

static int read_one(struct call *call, const json_t *prompt, struct problem *p)
{
    if (json_is_string(prompt)) {
        text_add(&call_prompt(call)->text, json_string_value(prompt), json_string_length(prompt));
        return 0;
    }
    if (json_is_array(prompt))
        return read_ids(call, prompt, p);
    return wrong_type(p, "prompt", "a string, a list of tokens, or a list of those", prompt);
}

static int read_prompt(struct call *call, struct problem *p)
{
    const json_t *prompt = json_object_get(call->root, "prompt"),
                 *first = json_array_get(prompt, 0);
    if (!json_is_array(prompt) || json_is_integer(first))
        return read_one(call, prompt, p);
    size_t n = json_array_size(prompt);
    if (n * call->n > CHOICES_MAX || n == 0) {
        problem_set(p, 400, "invalid_value", "prompt",
                    "there are %zu prompts; with n each, 1 to %d answers are possible", n,
                    CHOICES_MAX);
        return -1;
    }
    for (size_t i = 0; i < n; i++)
        if (read_one(call, json_array_get(prompt, i), p) != 0)
            return -1;
    return 0;
}

static int completion_read(struct call *call, struct problem *p)
{
    static const struct field fields[] = {
        {"prompt", FIELD_READ, NULL},
        {"model", FIELD_READ, NULL},
        {"stream", FIELD_READ, NULL},
        {"stream_options", FIELD_READ, NULL},
        {"temperature", FIELD_READ, NULL},
        {"top_p", FIELD_READ, NULL},
        {"top_k", FIELD_READ, NULL},
        {"min_p", FIELD_READ, NULL},
        {"seed", FIELD_READ, NULL},
        {"stop", FIELD_READ, NULL},
        {"n", FIELD_READ, NULL},
        {"max_tokens", FIELD_READ, NULL},
        {"logprobs", FIELD_READ, NULL},
        {"ignore_eos", FIELD_READ, NULL},
        {"user", FIELD_FREE, NULL},
        {"echo", FIELD_ONLY, "false"},
        {"suffix", FIELD_ONLY, "\"\""},
        {"best_of", FIELD_ONLY, "1"},
        {"logit_bias", FIELD_ONLY, "{}"},
        {"frequency_penalty", FIELD_ONLY, "0"},
        {"presence_penalty", FIELD_ONLY, "0"},
    };
    int64_t n = 1, top = 0;
    call->request.raw = true;
    call->request.max_tokens = MAX_TOKENS;
    if (fields_check(call->root, "", fields, sizeof fields / sizeof *fields, p) != 0 ||
        parameters_read(call, p) != 0 || stream_options_read(call, p) != 0 ||
        field_int(call->root, "n", 1, CHOICES_MAX, &n, p) < 0 ||
        field_int(call->root, "max_tokens", 1, UINT32_MAX, &call->request.max_tokens, p) < 0)
        return -1;
    int given = field_int(call->root, "logprobs", 0, 20, &top, p);
    if (given < 0)
        return -1;
    call->logprobs = given > 0;
    call->top_logprobs = (uint32_t)top;
    call->request.top_logits = given > 0 ? (top > 0 ? top : 1) : 0;
    call->n = (uint32_t)n;
    return read_prompt(call, p);
}

/* ── writing ───────────────────────────────────────────────────────────────────────────────── */

static void write_token_text(struct text *out, const struct answer *a, uint32_t first,
                             uint32_t size)
{
    text_json_string(out, size > 0 ? a->texts.bytes + first : "", size);
}

static void write_top(struct text *out, const struct choice *c, size_t token)
{
    const struct answer *a = &c->answer;
    size_t first, n;
    top_of(a, token, &first, &n);
    text_print(out, "{");
    for (size_t k = 0; k < n && k < c->call->top_logprobs; k++) {
        text_print(out, k == 0 ? "" : ",");
        write_token_text(out, a, a->top[first + k].text_first, a->top[first + k].text_size);
        text_print(out, ":");
        write_number(out, (double)a->top[first + k].logit - (double)a->tokens[token].log_sum_exp);
    }
    text_print(out, "}");
}

/* Four lists: the old form. */
static void write_logprobs(struct text *out, struct choice *c, size_t first, size_t end)
{
    const struct answer *a = &c->answer;
    text_print(out, "{\"tokens\":[");
    for (size_t i = first; i < end; i++) {
        const struct answer_token *t = &a->tokens[c->shown[i]];
        text_print(out, i == first ? "" : ",");
        write_token_text(out, a, t->text_first, t->text_size);
    }
    text_print(out, "],\"token_logprobs\":[");
    for (size_t i = first; i < end; i++) {
        text_print(out, i == first ? "" : ",");
        write_number(out, token_logprob(a, c->shown[i]));
    }
    text_print(out, "],\"top_logprobs\":");
    if (c->call->top_logprobs > 0) {
        text_print(out, "[");
        for (size_t i = first; i < end; i++) {
            text_print(out, i == first ? "" : ",");
            write_top(out, c, c->shown[i]);
        }
        text_print(out, "]");
    } else
        text_print(out, "null");
    text_print(out, ",\"text_offset\":[");
    for (size_t i = first; i < end; i++) {
        text_print(out, i == first ? "%zu" : ",%zu", c->text_offset);
        c->text_offset += a->tokens[c->shown[i]].text_size;
    }
    text_print(out, "]}");
}

static void write_choice(struct text *out, struct choice *c, const char *bytes, size_t size,
                         const char *finish)
{
    text_print(out, "{\"index\":%u,\"text\":", c->index);
    text_json_string(out, bytes, size);
    text_print(out, ",\"logprobs\":");
    if (c->call->logprobs && (c->n_shown > c->reported || !c->call->stream)) {
        write_logprobs(out, c, c->reported, c->n_shown);
        c->reported = c->n_shown;
    } else
        text_print(out, "null");
    text_print(out, finish != NULL ? ",\"finish_reason\":\"%s\"}" : ",\"finish_reason\":null%.0s}",
               finish != NULL ? finish : "");
}

static void write_head(struct text *out, const struct call *call)
{
    text_print(out, "{\"id\":\"%s\",\"object\":\"text_completion\",\"created\":%lld,\"model\":",
               call->id, (long long)call->created);
    write_string(out, routes_model(call->gateway));
    text_print(out, ",\"system_fingerprint\":\"gptoss-" GPTOSS_VERSION "\",\"choices\":[");
}

static void completion_open(struct call *call)
{
    text_print(&call->head, "data: ");
    write_head(&call->head, call);
    text_print(&call->tail, ",\"logprobs\":null,\"finish_reason\":null}]%s}\n\n",
               call->include_usage ? ",\"usage\":null" : "");
    for (size_t i = 0; i < call->n_choices; i++) {
        struct text *head = &call->choices[i].head;
        text_add(head, call->head.bytes, call->head.size);
        text_print(head, "{\"index\":%zu,\"text\":", i);
    }
}

static void chunk(struct choice *c, const char *bytes, size_t size, const char *finish)
{
    struct text *out = &c->call->exchange->out;
    if (finish == NULL && !c->call->logprobs) {
        text_add(out, c->head.bytes, c->head.size);
        text_json_string(out, bytes, size);
        text_add(out, c->call->tail.bytes, c->call->tail.size);
        return;
    }
    text_add(out, c->call->head.bytes, c->call->head.size);
    write_choice(out, c, bytes, size, finish);
    text_print(out, "]%s}\n\n", c->call->include_usage ? ",\"usage\":null" : "");
}

static void completion_piece(struct choice *c, const struct answer_part *part, bool first,
                             const char *bytes, size_t size)
{
    (void)part;
    (void)first;
    chunk(c, bytes, size, NULL);
}

static void completion_finish(struct choice *c)
{
    chunk(c, "", 0, finish_name(c));
}

static void completion_end(struct call *call)
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

static void completion_whole(struct call *call, struct text *out)
{
    write_head(out, call);
    for (size_t i = 0; i < call->n_choices; i++) {
        struct choice *c = &call->choices[i];
        struct text text = {0};
        text_add(&text, "", 0);
        answer_text(&c->answer, GPTOSS__PIECE__CHANNEL__RAW, &text);
        text_print(out, i == 0 ? "" : ",");
        write_choice(out, c, text.bytes, text.size, finish_name(c));
        text_free(&text);
    }
    text_print(out, "],\"usage\":");
    write_usage(out, call);
    text_print(out, "}");
}

const struct api api_completion = {
    .id_prefix = "cmpl-",
    .read = completion_read,
    .open = completion_open,
    .piece = completion_piece,
    .finish = completion_finish,
    .end = completion_end,
    .fail = stream_fail,
    .whole = completion_whole,
};
