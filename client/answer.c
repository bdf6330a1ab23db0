/* answer: what has come of an answer. Pure. */
#include <stdlib.h>
#include <string.h>

#include "client/client.h"

void answer_start(struct answer *a, const struct text *id, uint32_t first_index)
{
    answer_free(a);
    text_add(&a->id, id->bytes, id->size);
    a->first_index = first_index;
}

void answer_free(struct answer *a)
{
    for (size_t i = 0; i < a->n_parts; i++) {
        free(a->parts[i].recipient);
        text_free(&a->parts[i].text);
    }
    free(a->parts);
    free(a->tokens);
    free(a->top);
    text_free(&a->id);
    text_free(&a->error);
    text_free(&a->texts);
    *a = (struct answer){0};
}

bool answer_is_call(const struct answer_part *part)
{
    return part->recipient[0] != '\0';
}

const char *answer_call_name(const struct answer_part *part)
{
    return strncmp(part->recipient, "functions.", 10) == 0 ? part->recipient + 10 : part->recipient;
}

void answer_text(const struct answer *a, Gptoss__Piece__Channel channel, struct text *out)
{
    for (size_t i = 0; i < a->n_parts; i++)
        if (a->parts[i].channel == channel && !answer_is_call(&a->parts[i]))
            text_add(out, a->parts[i].text.bytes, a->parts[i].text.size);
}

const char *answer_reason_name(Gptoss__Finished__Reason reason)
{
    switch (reason) {
    case GPTOSS__FINISHED__REASON__STOP: return "stop";
    case GPTOSS__FINISHED__REASON__LENGTH: return "length";
    case GPTOSS__FINISHED__REASON__TOOL_CALLS: return "tool_calls";
    case GPTOSS__FINISHED__REASON__CANCELLED: return "cancelled";
    default: return "error";
    }
}

const char *answer_code_name(Gptoss__Code code)
{
    switch (code) {
    case GPTOSS__CODE__INVALID: return "invalid";
    case GPTOSS__CODE__TOO_LONG: return "too_long";
    case GPTOSS__CODE__BUSY: return "busy";
    case GPTOSS__CODE__NOT_FOUND: return "not_found";
    case GPTOSS__CODE__DUPLICATE: return "duplicate";
    case GPTOSS__CODE__DEADLINE: return "deadline";
    case GPTOSS__CODE__SHUTTING_DOWN: return "shutting_down";
    case GPTOSS__CODE__INTERNAL: return "internal";
    default: return "unknown";
    }
}

/* Counts `bytes` more; 0, or -1 if the answer grew beyond all reason. */
static int hold(struct answer *a, size_t bytes, char *err, size_t err_size)
{
    a->bytes += bytes;
    if (a->bytes <= ANSWER_BYTES_MAX)
        return 0;
    snprintf(err, err_size, "the answer is larger than %zu MiB", ANSWER_BYTES_MAX >> 20);
    return -1;
}

static int take_pieces(struct answer *a, size_t n, Gptoss__Piece *const *pieces, answer_sink sink,
                       void *arg, char *err, size_t err_size)
{
    for (size_t i = 0; i < n; i++) {
        const Gptoss__Piece *piece = pieces[i];
        struct answer_part *part = a->n_parts > 0 ? &a->parts[a->n_parts - 1] : NULL;
        bool first = part == NULL || part->message != piece->message ||
                     part->channel != piece->channel ||
                     strcmp(part->recipient, piece->recipient) != 0;
        if (first) {
            size_t size = strlen(piece->recipient) + 1;
            if (hold(a, sizeof *part + size, err, err_size) != 0)
                return -1;
            a->parts = base_grow(a->parts, &a->parts_capacity, a->n_parts + 1, sizeof *a->parts);
            part = &a->parts[a->n_parts++];
            *part = (struct answer_part){.message = piece->message, .channel = piece->channel};
            part->recipient = memcpy(base_alloc(size, 1), piece->recipient, size);
            text_add(&part->text, "", 0);
        }
        if (hold(a, piece->text.len, err, err_size) != 0)
            return -1;
        text_add(&part->text, piece->text.data, piece->text.len);
        if (sink != NULL)
            sink(arg, part, first, (const char *)piece->text.data, piece->text.len);
    }
    return 0;
}

/* Of a token's bytes, which come where logits were asked for. */
static uint32_t keep_text(struct answer *a, ProtobufCBinaryData text)
{
    size_t first = a->texts.size;
    text_add(&a->texts, text.data, text.len);
    return (uint32_t)first;
}

static void take_token(struct answer *a, const Gptoss__Token *token)
{
    a->tokens = base_grow(a->tokens, &a->tokens_capacity, a->n_tokens + 1, sizeof *a->tokens);
    a->tokens[a->n_tokens++] = (struct answer_token){.id = token->id,
                                                     .n_top = (uint32_t)token->n_top,
                                                     .logit = token->logit,
                                                     .log_sum_exp = token->log_sum_exp,
                                                     .top_first = a->n_top,
                                                     .text_first = keep_text(a, token->text),
                                                     .text_size = (uint32_t)token->text.len};
    a->top = base_grow(a->top, &a->top_capacity, a->n_top + token->n_top, sizeof *a->top);
    for (size_t k = 0; k < token->n_top; k++)
        a->top[a->n_top++] = (struct answer_top){.id = token->top[k]->id,
                                                 .logit = token->top[k]->logit,
                                                 .text_first = keep_text(a, token->top[k]->text),
                                                 .text_size = (uint32_t)token->top[k]->text.len};
}

static size_t texts_size(const Gptoss__Token *token)
{
    size_t size = token->text.len;
    for (size_t k = 0; k < token->n_top; k++)
        size += token->top[k]->text.len;
    return size;
}

static int take_output(struct answer *a, const Gptoss__Output *output, answer_sink sink, void *arg,
                       char *err, size_t err_size)
{
    for (size_t i = 0; i < output->n_tokens; i++) {
        const Gptoss__Token *token = output->tokens[i];
        uint64_t next = (uint64_t)a->first_index + a->n_tokens;
        if (token->index < next)
            continue; /* came before */
        if (token->index > next) {
            snprintf(err, err_size, "token %u came where token %llu was due", token->index,
                     (unsigned long long)next);
            return -1;
        }
        if (hold(a, sizeof *a->tokens + token->n_top * sizeof *a->top + texts_size(token), err,
                 err_size) != 0)
            return -1;
        take_token(a, token);
        if (take_pieces(a, token->n_pieces, token->pieces, sink, arg, err, err_size) != 0)
            return -1;
    }
    return 0;
}

static int take_finished(struct answer *a, const Gptoss__Finished *f, answer_sink sink, void *arg,
                         char *err, size_t err_size)
{
    if (take_pieces(a, f->n_pieces, f->pieces, sink, arg, err, err_size) != 0)
        return -1;
    a->state = ANSWER_FINISHED;
    a->reason = f->reason;
    a->sampled_tokens = f->tokens;
    a->prompt_tokens = f->prompt_tokens;
    a->cached_tokens = f->cached_tokens;
    a->reasoning_tokens = f->reasoning_tokens;
    a->queued_seconds = f->queued_seconds;
    a->first_token_seconds = f->first_token_seconds;
    a->total_seconds = f->total_seconds;
    a->code = f->code;
    text_print(&a->error, "%s", f->text);
    uint64_t have = (uint64_t)a->first_index + a->n_tokens;
    if (f->tokens == have)
        return 0;
    snprintf(err, err_size, "%u tokens were sampled, but %llu came", f->tokens,
             (unsigned long long)have);
    return -1;
}

int answer_take(struct answer *a, const Gptoss__ServerMessage *m, answer_sink sink, void *arg,
                char *err, size_t err_size)
{
    ProtobufCBinaryData id = {0};
    switch (m->body_case) {
    case GPTOSS__SERVER_MESSAGE__BODY_ACCEPTED: id = m->accepted->request_id; break;
    case GPTOSS__SERVER_MESSAGE__BODY_REFUSED: id = m->refused->request_id; break;
    case GPTOSS__SERVER_MESSAGE__BODY_PROGRESS: id = m->progress->request_id; break;
    case GPTOSS__SERVER_MESSAGE__BODY_OUTPUT: id = m->output->request_id; break;
    case GPTOSS__SERVER_MESSAGE__BODY_FINISHED: id = m->finished->request_id; break;
    default: return 0;
    }
    /* A refusal without an id is of a message that could not be read: of ours. */
    bool nameless = m->body_case == GPTOSS__SERVER_MESSAGE__BODY_REFUSED && id.len == 0;
    if (!nameless && (id.len != a->id.size || memcmp(id.data, a->id.bytes, id.len) != 0))
        return 0;
    if (a->state == ANSWER_REFUSED || a->state == ANSWER_FINISHED)
        return 0;

    switch (m->body_case) {
    case GPTOSS__SERVER_MESSAGE__BODY_ACCEPTED:
        a->state = ANSWER_ACCEPTED;
        a->seed = m->accepted->seed;
        a->queued_before = m->accepted->queued_before;
        return 1;
    case GPTOSS__SERVER_MESSAGE__BODY_REFUSED:
        a->state = ANSWER_REFUSED;
        a->code = m->refused->code;
        a->retry_ms = m->refused->retry_ms;
        text_print(&a->error, "%s", m->refused->text);
        return 1;
    case GPTOSS__SERVER_MESSAGE__BODY_OUTPUT:
        return take_output(a, m->output, sink, arg, err, err_size) == 0 ? 1 : -1;
    case GPTOSS__SERVER_MESSAGE__BODY_FINISHED:
        return take_finished(a, m->finished, sink, arg, err, err_size) == 0 ? 1 : -1;
    default: return 1;
    }
}
