/* json: an answer, and a status, as one object for programs. */
#include <math.h>
#include <string.h>

#include "client/client.h"

static void key(struct text *t, const char *name)
{
    if (t->size > 0 && t->bytes[t->size - 1] != '{' && t->bytes[t->size - 1] != '[')
        text_print(t, ", ");
    text_print(t, "\"%s\": ", name);
}

static void key_string(struct text *t, const char *name, const char *value)
{
    key(t, name);
    text_json_string(t, value, strlen(value));
}

static void key_count(struct text *t, const char *name, uint64_t value)
{
    key(t, name);
    text_print(t, "%llu", (unsigned long long)value);
}

/* 9 significant digits bring a float back exactly; JSON has no infinity. */
static void number(struct text *t, double value)
{
    if (isfinite(value))
        text_print(t, "%.9g", value);
    else
        text_print(t, "null");
}

static void key_number(struct text *t, const char *name, double value)
{
    key(t, name);
    number(t, value);
}

static void key_channel(struct text *t, const char *name, const struct answer *a,
                        Gptoss__Piece__Channel channel)
{
    struct text text = {0};
    answer_text(a, channel, &text);
    key(t, name);
    text_json_string(t, text.bytes, text.size);
    text_free(&text);
}

static void key_tool_calls(struct text *t, const struct answer *a)
{
    key(t, "tool_calls");
    text_print(t, "[");
    for (size_t i = 0; i < a->n_parts; i++) {
        const struct answer_part *part = &a->parts[i];
        if (!answer_is_call(part))
            continue;
        text_print(t, t->bytes[t->size - 1] == '[' ? "{" : ", {");
        key_string(t, "name", answer_call_name(part));
        key(t, "arguments");
        text_json_string(t, part->text.bytes, part->text.size);
        text_print(t, "}");
    }
    text_print(t, "]");
}

/* For each token its best [id, logit], and the logarithm of its own probability. */
static void key_top(struct text *t, const struct answer *a)
{
    const struct answer_top *top = a->top;
    key(t, "top");
    text_print(t, "[");
    for (size_t i = 0; i < a->n_tokens; i++) {
        text_print(t, i == 0 ? "[" : ", [");
        for (uint32_t k = 0; k < a->tokens[i].n_top; k++, top++) {
            text_print(t, k == 0 ? "[%u, " : ", [%u, ", top->id);
            number(t, (double)top->logit);
            text_print(t, "]");
        }
        text_print(t, "]");
    }
    text_print(t, "]");
    key(t, "logprobs");
    text_print(t, "[");
    for (size_t i = 0; i < a->n_tokens; i++) {
        text_print(t, i == 0 ? "" : ", ");
        number(t, (double)a->tokens[i].logit - (double)a->tokens[i].log_sum_exp);
    }
    text_print(t, "]");
}

static void key_error(struct text *t, const char *code, const char *text, uint64_t retry_ms)
{
    key(t, "error");
    text_print(t, "{");
    key_string(t, "code", code);
    key_string(t, "text", text);
    if (retry_ms > 0)
        key_count(t, "retry_ms", retry_ms);
    text_print(t, "}");
}

void json_answer(FILE *out, const struct options *o, const struct answer *a, const char *failure)
{
    struct text t = {0};
    bool finished = a->state == ANSWER_FINISHED && failure == NULL;
    bool chat = !o->raw && !o->by_ids;
    text_print(&t, "{");
    key(&t, "tokens");
    text_print(&t, "[");
    for (size_t i = 0; i < a->n_tokens; i++)
        text_print(&t, i == 0 ? "%u" : ", %u", a->tokens[i].id);
    text_print(&t, "]");
    /* A request that is resumed may be of either kind: its channels say which. */
    bool raw_parts = a->n_parts > 0 && a->parts[0].channel == GPTOSS__PIECE__CHANNEL__RAW;
    key_channel(&t, "text", a,
                chat && !raw_parts ? GPTOSS__PIECE__CHANNEL__FINAL : GPTOSS__PIECE__CHANNEL__RAW);
    key_channel(&t, "reasoning", a, GPTOSS__PIECE__CHANNEL__ANALYSIS);
    key_channel(&t, "commentary", a, GPTOSS__PIECE__CHANNEL__COMMENTARY);
    key_tool_calls(&t, a);
    if (o->top_logits > 0)
        key_top(&t, a);
    key_string(&t, "finish", finished ? answer_reason_name(a->reason) : "error");

    key(&t, "timing");
    text_print(&t, "{");
    key_number(&t, "queued", a->queued_seconds);
    key_number(&t, "first_token", a->first_token_seconds);
    key_number(&t, "total", a->total_seconds);
    text_print(&t, "}");
    key(&t, "usage");
    text_print(&t, "{");
    key_count(&t, "prompt_tokens", a->prompt_tokens);
    key_count(&t, "cached_tokens", a->cached_tokens);
    key_count(&t, "completion_tokens", a->first_index + a->n_tokens);
    key_count(&t, "reasoning_tokens", a->reasoning_tokens);
    text_print(&t, "}");
    key_count(&t, "seed", a->seed);
    key(&t, "request_id");
    text_json_string(&t, a->id.bytes, a->id.size);
    if (failure != NULL)
        key_error(&t, "coordinator", failure, 0);
    else if (a->state == ANSWER_REFUSED || a->reason == GPTOSS__FINISHED__REASON__ERROR)
        key_error(&t, answer_code_name(a->code), a->error.bytes, a->retry_ms);
    text_print(&t, "}\n");
    fwrite(t.bytes, 1, t.size, out);
    text_free(&t);
}

static void json_stage(struct text *t, const Gptoss__StageStatus *g)
{
    text_print(t, "{");
    key_count(t, "stage", g->stage);
    key_string(t, "host", g->host);
    key_string(t, "device", g->device);
    key_count(t, "layer_first", g->layer_first);
    key_count(t, "layer_count", g->layer_count);
    key_count(t, "weights_bytes", g->weights_bytes);
    key_count(t, "kv_bytes", g->kv_bytes);
    key_count(t, "activation_bytes", g->activation_bytes);
    key_count(t, "memory_free_bytes", g->memory_free_bytes);
    key_number(t, "busy_seconds", g->busy_seconds);
    key_number(t, "up_seconds", g->up_seconds);
    key_count(t, "queue", g->queue);
    key_count(t, "steps", g->steps);
    key_number(t, "loaded", g->loaded);
    key_number(t, "busy_share", g->busy_share);
    key_number(t, "hop_seconds", g->hop_seconds);
    key_string(t, "state", g->state);
    key_number(t, "silent_seconds", g->silent_seconds);
    key_count(t, "pid", g->pid);
    key_count(t, "computed", g->computed);
    text_print(t, "}");
}

static void json_latency(struct text *t, const char *name, const Gptoss__Latency *l)
{
    if (l == NULL)
        return;
    key(t, name);
    text_print(t, "{");
    key_count(t, "count", l->count);
    key_number(t, "mean", l->mean);
    key_number(t, "p50", l->p50);
    key_number(t, "p90", l->p90);
    key_number(t, "p99", l->p99);
    text_print(t, "}");
}

static void json_flight(struct text *t, const Gptoss__Status *s)
{
    key(t, "flight");
    text_print(t, "[");
    for (size_t i = 0; i < s->n_flight; i++) {
        const Gptoss__StepPlace *p = s->flight[i];
        text_print(t, i == 0 ? "{" : ", {");
        key_count(t, "step", p->step);
        key_count(t, "stage", p->stage);
        key_count(t, "rows", p->rows);
        key_count(t, "decode_rows", p->decode_rows);
        key_count(t, "prompt_tokens", p->prompt_tokens);
        key_number(t, "seconds", p->seconds);
        text_print(t, "}");
    }
    text_print(t, "]");
}

/* For each stage four times in µs after the step was issued: it began and ended the step's layers, and
 * its part of the head; or null where it did not tell. */
static void json_recent_step(struct text *t, const Gptoss__TraceStep *s)
{
    text_print(t, "{");
    key_count(t, "step", s->step);
    key_count(t, "issued_us", s->issued_us);
    key_count(t, "done_us", s->done);
    key_count(t, "rows", s->rows);
    key_count(t, "decode_rows", s->decode_rows);
    key_count(t, "prompt_tokens", s->prompt_tokens);
    key(t, "stages");
    text_print(t, "[");
    for (size_t i = 0; i + 7 <= s->n_at; i += 7) {
        const int32_t *at = s->at + i;
        int64_t end = (int64_t)at[0] + at[1] + at[2], head = end + at[5];
        text_print(t, i == 0 ? "" : ", ");
        if (at[4] < 0)
            text_print(t, "null");
        else
            text_print(t, "[%lld, %lld, %lld, %lld]", (long long)(end - at[4]), (long long)end,
                       (long long)(head - at[6]), (long long)head);
    }
    text_print(t, "]}");
}

static void json_loss(struct text *t, const Gptoss__Loss *l)
{
    text_print(t, "{");
    key_count(t, "epoch", l->epoch);
    if (l->stage_given_case == GPTOSS__LOSS__STAGE_GIVEN_STAGE)
        key_count(t, "stage", l->stage);
    key_string(t, "host", l->host);
    key_count(t, "pid", l->pid);
    key_string(t, "text", l->text);
    key_number(t, "seconds", l->seconds);
    key_number(t, "down_seconds", l->down_seconds);
    key(t, "over");
    text_print(t, l->over ? "true}" : "false}");
}

void json_status(FILE *out, const Gptoss__Status *s)
{
    struct text t = {0};
    text_print(&t, "{");
    key_string(&t, "version", s->version);
    key_string(&t, "model", s->model);
    key_string(&t, "state", s->state);
    key(&t, "ready");
    text_print(&t, s->ready ? "true" : "false");
    key_count(&t, "epoch", s->epoch);
    key_number(&t, "uptime_seconds", s->uptime_seconds);
    key(&t, "stages");
    text_print(&t, "[");
    for (size_t i = 0; i < s->n_stages; i++) {
        text_print(&t, i == 0 ? "" : ", ");
        json_stage(&t, s->stages[i]);
    }
    text_print(&t, "]");
    key(&t, "fast");
    text_print(&t, s->fast ? "true" : "false");
    key_count(&t, "steps_in_flight", s->steps_in_flight);
    key_count(&t, "steps", s->steps);
    key_count(&t, "requests_running", s->requests_running);
    key_count(&t, "requests_waiting", s->requests_waiting);
    key_count(&t, "requests_finished", s->requests_finished);
    key_count(&t, "requests_refused", s->requests_refused);
    key_count(&t, "prompt_tokens", s->prompt_tokens);
    key_count(&t, "sampled_tokens", s->sampled_tokens);
    key_count(&t, "kv_block_tokens", s->kv_block_tokens);
    key_count(&t, "kv_full_blocks", s->kv_full_blocks);
    key_count(&t, "kv_full_blocks_used", s->kv_full_blocks_used);
    key_count(&t, "kv_window_blocks", s->kv_window_blocks);
    key_count(&t, "kv_window_blocks_used", s->kv_window_blocks_used);
    key_count(&t, "kv_full_blocks_cached", s->kv_full_blocks_cached);
    key_count(&t, "kv_window_blocks_cached", s->kv_window_blocks_cached);
    key_count(&t, "kv_blocks_evicted", s->kv_blocks_evicted);
    key_count(&t, "prefix_hit_tokens", s->prefix_hit_tokens);
    key_count(&t, "context", s->context);
    key_count(&t, "sequences", s->sequences);
    key_count(&t, "preemptions", s->preemptions);
    key_count(&t, "restarts", s->restarts);
    key_number(&t, "window_seconds", s->window_seconds);
    key_number(&t, "bubble_share", s->bubble_share);
    key_number(&t, "hop_seconds", s->hop_seconds);
    key_number(&t, "steps_per_second", s->steps_per_second);
    key_number(&t, "sampled_per_second", s->sampled_per_second);
    key_number(&t, "prompt_per_second", s->prompt_per_second);
    json_latency(&t, "first_token", s->first_token);
    json_latency(&t, "between_tokens", s->between_tokens);
    json_flight(&t, s);
    if (s->n_recent_steps > 0) {
        key(&t, "recent_steps");
        text_print(&t, "[");
        for (size_t i = 0; i < s->n_recent_steps; i++) {
            text_print(&t, i == 0 ? "" : ", ");
            json_recent_step(&t, s->recent_steps[i]);
        }
        text_print(&t, "]");
    }
    if (s->last_loss != NULL) {
        key(&t, "last_loss");
        json_loss(&t, s->last_loss);
    }
    text_print(&t, "}\n");
    fwrite(t.bytes, 1, t.size, out);
    text_free(&t);
}
