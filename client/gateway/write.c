/* write: what answers of all kinds share. */
#include <math.h>
#include <string.h>

#include "client/gateway/gateway.h"

void write_string(struct text *out, const char *text)
{
    text_json_string(out, text, strlen(text));
}

void write_usage(struct text *out, const struct call *call)
{
    uint64_t prompt = 0, cached = 0, sampled = 0, reasoning = 0;
    for (size_t i = 0; i < call->n_choices; i++) {
        const struct answer *a = &call->choices[i].answer;
        if (i % call->n == 0) { /* the answers to one prompt share it */
            prompt += a->prompt_tokens;
            cached += a->cached_tokens;
        }
        sampled += a->sampled_tokens;
        reasoning += a->reasoning_tokens;
    }
    text_print(out,
               "{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,\"total_tokens\":%llu,"
               "\"prompt_tokens_details\":{\"cached_tokens\":%llu},"
               "\"completion_tokens_details\":{\"reasoning_tokens\":%llu}}",
               (unsigned long long)prompt, (unsigned long long)sampled,
               (unsigned long long)(prompt + sampled), (unsigned long long)cached,
               (unsigned long long)reasoning);
}

const char *finish_name(const struct choice *choice)
{
    return answer_reason_name(choice->answer.reason);
}

bool part_is_text(const struct answer_part *part)
{
    return !answer_is_call(part) && part->channel != GPTOSS__PIECE__CHANNEL__ANALYSIS;
}

void tool_call_id(struct text *out, const struct choice *choice, size_t index)
{
    text_print(out, "call_%08llx%08llx%02zx", (unsigned long long)choice->call->gateway->run >> 32,
               (unsigned long long)choice->number, index);
}

/* ── log probabilities ─────────────────────────────────────────────────────────────────────── */

double token_logprob(const struct answer *a, size_t token)
{
    return (double)a->tokens[token].logit - (double)a->tokens[token].log_sum_exp;
}

void top_of(const struct answer *a, size_t token, size_t *first, size_t *n)
{
    *first = a->tokens[token].top_first;
    *n = a->tokens[token].n_top;
}

static bool is_special(const struct answer *a, size_t token)
{
    const char *text = a->texts.bytes + a->tokens[token].text_first;
    size_t size = a->tokens[token].text_size;
    return size > 4 && memcmp(text, "<|", 2) == 0 && memcmp(text + size - 2, "|>", 2) == 0;
}

/* A token's text may be a part of a character, which comes with a later token. So tokens without a piece
 * of text belong to the piece that comes next, unless a special token stands between. */
void logprobs_take(struct choice *c, const struct answer_part *part, bool first)
{
    const struct answer *a = &c->answer;
    if (first) {
        c->part_shown = base_grow(c->part_shown, &c->part_shown_capacity, c->n_part_shown + 1,
                                  sizeof *c->part_shown);
        c->part_shown[c->n_part_shown++] = c->n_shown;
    }
    bool raw = part->channel == GPTOSS__PIECE__CHANNEL__RAW;
    for (; c->seen < a->n_tokens; c->seen++)
        if (!raw && is_special(a, c->seen))
            c->pending = c->seen + 1;
    if (part_is_text(part))
        for (; c->pending < a->n_tokens; c->pending++) {
            c->shown = base_grow(c->shown, &c->shown_capacity, c->n_shown + 1, sizeof *c->shown);
            c->shown[c->n_shown++] = c->pending;
        }
    c->pending = a->n_tokens;
}

void write_number(struct text *out, double value)
{
    /* JSON has no infinity; OpenAI says -9999 for what cannot be. */
    text_print(out, "%.7g", isfinite(value) ? value : -9999.0);
}

static void write_token(struct text *out, const struct answer *a, uint32_t first, uint32_t size,
                        double logprob)
{
    const char *text = size > 0 ? a->texts.bytes + first : "";
    text_print(out, "{\"token\":");
    text_json_string(out, text, size);
    text_print(out, ",\"logprob\":");
    write_number(out, logprob);
    text_print(out, ",\"bytes\":[");
    for (uint32_t i = 0; i < size; i++)
        text_print(out, i == 0 ? "%u" : ",%u", (unsigned char)text[i]);
    text_print(out, "]");
}

void logprobs_write(struct text *out, const struct choice *choice, size_t first, size_t end)
{
    const struct answer *a = &choice->answer;
    text_print(out, "[");
    for (size_t i = first; i < end; i++) {
        size_t token = choice->shown[i], top, n;
        const struct answer_token *t = &a->tokens[token];
        text_print(out, i == first ? "" : ",");
        write_token(out, a, t->text_first, t->text_size, token_logprob(a, token));
        top_of(a, token, &top, &n);
        text_print(out, ",\"top_logprobs\":[");
        for (size_t k = 0; k < n && k < choice->call->top_logprobs; k++) {
            const struct answer_top *other = &a->top[top + k];
            text_print(out, k == 0 ? "" : ",");
            write_token(out, a, other->text_first, other->text_size,
                        (double)other->logit - (double)t->log_sum_exp);
            text_print(out, "}");
        }
        text_print(out, "]}");
    }
    text_print(out, "]");
}
