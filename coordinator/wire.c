#include "coordinator/wire.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define NUMBER_MAX 12 /* bytes of a tag and a number */

enum wire_type { VARINT = 0, BYTES = 2, FIXED32 = 5 };

/* Bytes are put before `at`. */
struct wire {
    uint8_t *at, *first;
};

static inline void put_varint(struct wire *w, uint64_t value)
{
    if (value < 0x80) { /* most are */
        *--w->at = (uint8_t)value;
        return;
    }
    unsigned bits = 64 - (unsigned)__builtin_clzll(value | 1), n = (bits + 6) / 7;
    w->at -= n;
    uint8_t *p = w->at;
    for (; --n; value >>= 7)
        *p++ = (uint8_t)(value | 0x80);
    *p = (uint8_t)value;
}

static void put_tag(struct wire *w, uint32_t field, enum wire_type type)
{
    put_varint(w, (uint64_t)field << 3 | type);
}

static void put_number(struct wire *w, uint32_t field, uint64_t value)
{
    if (value == 0)
        return;
    put_varint(w, value);
    put_tag(w, field, VARINT);
}

static void put_float(struct wire *w, uint32_t field, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value == 0) /* as protobuf-c does: of −0 too */
        return;
    w->at -= 4;
    for (int i = 0; i < 4; i++)
        w->at[i] = (uint8_t)(bits >> 8 * i);
    put_tag(w, field, FIXED32);
}

static void put_bytes(struct wire *w, uint32_t field, const void *bytes, size_t size)
{
    if (size == 0)
        return;
    w->at -= size;
    memcpy(w->at, bytes, size);
    put_varint(w, size);
    put_tag(w, field, BYTES);
}

static void put_text(struct wire *w, uint32_t field, const char *text)
{
    if (text)
        put_bytes(w, field, text, strlen(text));
}

/* What was written since `end` is a part. */
static void put_part(struct wire *w, uint32_t field, const uint8_t *end)
{
    put_varint(w, (uint64_t)(end - w->at));
    put_tag(w, field, BYTES);
}

static void put_numbers(struct wire *w, uint32_t field, const uint32_t *values, size_t n)
{
    const uint8_t *end = w->at;
    for (size_t i = n; i-- > 0;)
        put_varint(w, values[i]);
    if (n)
        put_part(w, field, end);
}

/* ── a token to its client ─────────────────────────────────────────────────────────────────── */

static size_t output_bytes(const Gptoss__Output *m)
{
    size_t bytes = 4 * NUMBER_MAX + m->request_id.len;
    for (size_t i = 0; i < m->n_tokens; i++) {
        const Gptoss__Token *t = m->tokens[i];
        bytes += 10 * NUMBER_MAX + t->n_top * 6 * NUMBER_MAX + t->text.len;
        for (size_t k = 0; k < t->n_top; k++)
            bytes += t->top[k]->text.len;
        for (size_t k = 0; k < t->n_pieces; k++)
            bytes += 6 * NUMBER_MAX + t->pieces[k]->text.len +
                     (t->pieces[k]->recipient ? strlen(t->pieces[k]->recipient) : 0);
    }
    return bytes;
}

static void put_token(struct wire *w, const Gptoss__Token *m)
{
    put_bytes(w, 110, m->text.data, m->text.len);
    for (size_t i = m->n_top; i-- > 0;) {
        const uint8_t *end = w->at;
        put_bytes(w, 110, m->top[i]->text.data, m->top[i]->text.len);
        put_float(w, 2, m->top[i]->logit);
        put_number(w, 1, m->top[i]->id);
        put_part(w, 6, end);
    }
    put_float(w, 5, m->log_sum_exp);
    put_float(w, 4, m->logit);
    for (size_t i = m->n_pieces; i-- > 0;) {
        const Gptoss__Piece *piece = m->pieces[i];
        const uint8_t *end = w->at;
        put_number(w, 4, piece->message);
        put_bytes(w, 3, piece->text.data, piece->text.len);
        put_text(w, 2, piece->recipient);
        put_number(w, 1, (uint64_t)piece->channel);
        put_part(w, 3, end);
    }
    put_number(w, 2, m->id);
    put_number(w, 1, m->index);
}

static void put_output(struct wire *w, const Gptoss__Output *m)
{
    const uint8_t *end = w->at;
    for (size_t i = m->n_tokens; i-- > 0;) {
        const uint8_t *token_end = w->at;
        put_token(w, m->tokens[i]);
        put_part(w, 2, token_end);
    }
    put_bytes(w, 1, m->request_id.data, m->request_id.len);
    put_part(w, 4, end);
}

/* ── a step to stage 0 ─────────────────────────────────────────────────────────────────────── */

static size_t step_bytes(const Gptoss__Step *m)
{
    size_t bytes = 4 * NUMBER_MAX;
    for (size_t i = 0; i < m->n_rows; i++)
        bytes += 20 * NUMBER_MAX + 5 * (m->rows[i]->n_tokens + m->rows[i]->n_full_blocks +
                                        m->rows[i]->n_window_blocks);
    return bytes;
}

static void put_row(struct wire *w, const Gptoss__Row *m)
{
    put_number(w, 16, m->top_logits);
    put_number(w, 15, m->seed);
    put_float(w, 14, m->min_p);
    put_float(w, 13, m->top_p);
    put_number(w, 12, m->top_k);
    put_float(w, 11, m->temperature);
    put_number(w, 10, m->restart != 0);
    put_number(w, 9, m->window_freed);
    put_number(w, 8, m->full_freed);
    put_numbers(w, 7, m->window_blocks, m->n_window_blocks);
    put_numbers(w, 6, m->full_blocks, m->n_full_blocks);
    put_number(w, 5, m->sample_from);
    put_numbers(w, 4, m->tokens, m->n_tokens);
    put_number(w, 3, m->count);
    put_number(w, 2, m->position);
    put_number(w, 1, m->slot);
}

static void put_step(struct wire *w, const Gptoss__SupervisorMessage *m)
{
    const uint8_t *end = w->at;
    for (size_t i = m->step->n_rows; i-- > 0;) {
        const uint8_t *row_end = w->at;
        put_row(w, m->step->rows[i]);
        put_part(w, 2, row_end);
    }
    put_number(w, 1, m->step->step);
    put_part(w, 5, end);
    put_number(w, 1, m->epoch);
}

/* ── packing ───────────────────────────────────────────────────────────────────────────────── */

bool wire_pack(const ProtobufCMessage *message, struct text *out)
{
    const Gptoss__ServerMessage *server = (const Gptoss__ServerMessage *)message;
    const Gptoss__SupervisorMessage *supervisor = (const Gptoss__SupervisorMessage *)message;
    bool is_output = message->descriptor == &gptoss__server_message__descriptor &&
                     server->body_case == GPTOSS__SERVER_MESSAGE__BODY_OUTPUT;
    bool is_step = message->descriptor == &gptoss__supervisor_message__descriptor &&
                   supervisor->body_case == GPTOSS__SUPERVISOR_MESSAGE__BODY_STEP;
    if (!is_output && !is_step)
        return false;
    size_t most = is_output ? output_bytes(server->output) : step_bytes(supervisor->step);
    out->bytes = base_grow(out->bytes, &out->capacity, most + 1, 1);
    uint8_t *first = (uint8_t *)out->bytes;
    struct wire w = {first + most, first};
    if (is_output)
        put_output(&w, server->output);
    else
        put_step(&w, supervisor);
    assert(w.at >= w.first);
    out->size = (size_t)(first + most - w.at);
    memmove(first, w.at, out->size);
    out->bytes[out->size] = 0;
    return true;
}

/* ── the result of a step ──────────────────────────────────────────────────────────────────── */

struct reader {
    const uint8_t *at, *end;
};

static inline bool get_varint(struct reader *r, uint64_t *value)
{
    if (r->at < r->end && *r->at < 0x80) { /* most are */
        *value = *r->at++;
        return true;
    }
    uint64_t sum = 0;
    for (unsigned shift = 0; r->at < r->end && shift < 64; shift += 7) {
        uint8_t byte = *r->at++;
        sum |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *value = sum;
            return true;
        }
    }
    return false;
}

/* A field and what follows it: a number, or (BYTES) a part, which is taken out of the reader. */
static bool get_field(struct reader *r, uint64_t *tag, uint64_t *value, struct reader *part)
{
    if (!get_varint(r, tag))
        return false;
    switch (*tag & 7) {
    case VARINT: return get_varint(r, value);
    case FIXED32:
        if (r->end - r->at < 4)
            return false;
        *value = 0;
        for (int i = 0; i < 4; i++)
            *value |= (uint64_t)*r->at++ << 8 * i;
        return true;
    case BYTES:
        if (!get_varint(r, value) || *value > (uint64_t)(r->end - r->at))
            return false;
        *part = (struct reader){r->at, r->at + *value};
        r->at += *value;
        return true;
    default: return false;
    }
}

static float float_of(uint64_t value)
{
    uint32_t bits = (uint32_t)value;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

static bool get_sample(struct reader r, Gptoss__Sample *sample)
{
    gptoss__sample__init(sample);
    while (r.at < r.end) {
        uint64_t tag, value;
        struct reader part;
        if (!get_field(&r, &tag, &value, &part))
            return false;
        switch (tag) {
        case 1 << 3 | VARINT: sample->row = (uint32_t)value; break;
        case 2 << 3 | VARINT: sample->position = (uint32_t)value; break;
        case 3 << 3 | VARINT: sample->token = (uint32_t)value; break;
        case 4 << 3 | FIXED32: sample->logit = float_of(value); break;
        case 5 << 3 | FIXED32: sample->log_sum_exp = float_of(value); break;
        default: return false;
        }
    }
    return true;
}

static bool get_result(struct reader r, struct wire_result *out)
{
    gptoss__step_result__init(&out->result);
    while (r.at < r.end) {
        uint64_t tag, value;
        struct reader part;
        if (!get_field(&r, &tag, &value, &part))
            return false;
        switch (tag) {
        case 1 << 3 | VARINT: out->result.step = value; break;
        case 2 << 3 | BYTES: {
            size_t n = out->result.n_samples++;
            if (n >= PROTO_BUDGET / (2 * sizeof *out->samples))
                return false; /* proto_unpack refuses it */
            out->samples = base_grow(out->samples, &out->capacity, n + 1, sizeof *out->samples);
            if (!get_sample(part, &out->samples[n]))
                return false;
            break;
        }
        default: return false;
        }
    }
    return true;
}

const Gptoss__RankMessage *wire_unpack_result(const void *bytes, size_t size,
                                              struct wire_result *out)
{
    struct reader r = {bytes, (const uint8_t *)bytes + size};
    bool is_result = false;
    gptoss__rank_message__init(&out->message);
    if (size > PROTO_MESSAGE_MAX)
        return NULL;
    while (r.at < r.end) {
        uint64_t tag, value;
        struct reader part;
        if (!get_field(&r, &tag, &value, &part))
            return NULL;
        if (tag == (1 << 3 | VARINT))
            out->message.epoch = value;
        else if (tag == (6 << 3 | BYTES) && !is_result && get_result(part, out))
            is_result = true;
        else
            return NULL;
    }
    if (!is_result)
        return NULL;
    size_t n = out->result.n_samples;
    out->pointers = base_grow(out->pointers, &out->n_pointers, n, sizeof(Gptoss__Sample *));
    for (size_t i = 0; i < n; i++)
        out->pointers[i] = &out->samples[i];
    out->result.samples = out->pointers;
    out->message.body_case = GPTOSS__RANK_MESSAGE__BODY_RESULT;
    out->message.result = &out->result;
    return &out->message;
}

void wire_result_free(struct wire_result *out)
{
    free(out->samples);
    free(out->pointers);
    *out = (struct wire_result){0};
}
