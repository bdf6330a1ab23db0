/*
 * The map of a gpt-oss file: which tensors there are, and the binding of a file's tensors to it.
 */
#include "gguf/weights.h"

#include "gguf/binder.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ── the map ───────────────────────────────────────────────────────────────────────────────── */

#define IN_MODEL(field) offsetof(struct gguf_model, field)
#define IN_LAYER(field) offsetof(struct gguf_layer, field)
/* clang-format off */
#define VECTOR(n)       {EXTENT_##n, EXTENT_ONE, EXTENT_ONE}, false
#define VECTORS(o, n)   {EXTENT_##n, EXTENT_##o, EXTENT_ONE}, false
#define MATRIX(o, i)    {EXTENT_##i, EXTENT_##o, EXTENT_ONE}, true
#define MATRICES(e, o, i) {EXTENT_##i, EXTENT_##o, EXTENT_##e}, true

const struct gguf_weight gguf_weights[] = {
    {"token_embd.weight", "embedding", MATRIX(VOCABULARY, HIDDEN), ABSENT_REFUSED, IN_MODEL(embedding)},
    {"blk.N.attn_norm.weight", "norm before attention", VECTOR(HIDDEN), ABSENT_REFUSED, IN_LAYER(attn_norm)},
    {"blk.N.attn_qkv.weight", "queries, keys and values in one", MATRIX(QKV, HIDDEN), ABSENT_SPLIT, NOWHERE},
    {"blk.N.attn_qkv.bias", "their biases in one", VECTOR(QKV), ABSENT_SPLIT, NOWHERE},
    {"blk.N.attn_q.weight", "queries", MATRIX(Q, HIDDEN), ABSENT_FUSED, IN_LAYER(attn_q.weight)},
    {"blk.N.attn_q.bias", "bias of the queries", VECTOR(Q), ABSENT_FUSED, IN_LAYER(attn_q.bias)},
    {"blk.N.attn_k.weight", "keys", MATRIX(KV, HIDDEN), ABSENT_FUSED, IN_LAYER(attn_k.weight)},
    {"blk.N.attn_k.bias", "bias of the keys", VECTOR(KV), ABSENT_FUSED, IN_LAYER(attn_k.bias)},
    {"blk.N.attn_v.weight", "values", MATRIX(KV, HIDDEN), ABSENT_FUSED, IN_LAYER(attn_v.weight)},
    {"blk.N.attn_v.bias", "bias of the values", VECTOR(KV), ABSENT_FUSED, IN_LAYER(attn_v.bias)},
    {"blk.N.attn_output.weight", "output of attention", MATRIX(HIDDEN, Q), ABSENT_REFUSED, IN_LAYER(attn_out.weight)},
    {"blk.N.attn_output.bias", "its bias", VECTOR(HIDDEN), ABSENT_REFUSED, IN_LAYER(attn_out.bias)},
    {"blk.N.attn_sinks.weight", "sink of each head", VECTOR(HEADS), ABSENT_REFUSED, IN_LAYER(sinks)},
    {"blk.N.post_attention_norm.weight", "norm before the experts", VECTOR(HIDDEN), ABSENT_REFUSED, IN_LAYER(ffn_norm)},
    {"blk.N.ffn_gate_inp.weight", "router", MATRIX(EXPERTS, HIDDEN), ABSENT_REFUSED, IN_LAYER(router.weight)},
    {"blk.N.ffn_gate_inp.bias", "bias of the router", VECTOR(EXPERTS), ABSENT_REFUSED, IN_LAYER(router.bias)},
    {"blk.N.ffn_gate_exps.weight", "gate of each expert", MATRICES(EXPERTS, FFN, HIDDEN), ABSENT_REFUSED, IN_LAYER(gate.weight)},
    {"blk.N.ffn_gate_exps.bias", "biases of the gates", VECTORS(EXPERTS, FFN), ABSENT_REFUSED, IN_LAYER(gate.bias)},
    {"blk.N.ffn_up_exps.weight", "up of each expert", MATRICES(EXPERTS, FFN, HIDDEN), ABSENT_REFUSED, IN_LAYER(up.weight)},
    {"blk.N.ffn_up_exps.bias", "biases of the ups", VECTORS(EXPERTS, FFN), ABSENT_REFUSED, IN_LAYER(up.bias)},
    {"blk.N.ffn_down_exps.weight", "down of each expert", MATRICES(EXPERTS, HIDDEN, FFN), ABSENT_REFUSED, IN_LAYER(down.weight)},
    {"blk.N.ffn_down_exps.bias", "biases of the downs", VECTORS(EXPERTS, HIDDEN), ABSENT_REFUSED, IN_LAYER(down.bias)},
    {"output_norm.weight", "norm before the output", VECTOR(HIDDEN), ABSENT_REFUSED, IN_MODEL(output_norm)},
    {"output.weight", "output", MATRIX(VOCABULARY, HIDDEN), ABSENT_TIED, IN_MODEL(output)},
};
/* clang-format on */

const size_t gguf_n_weights = sizeof gguf_weights / sizeof *gguf_weights;

/* Of a layer at least, where queries, keys and values are in one. */
#define TENSORS_PER_LAYER 15
#define VIEWS_PER_LAYER   6

const char *gguf_extent_name(enum gguf_extent extent)
{
    static const char *const names[N_EXTENTS] = {
        [EXTENT_ONE] = "1",
        [EXTENT_HIDDEN] = "hidden",
        [EXTENT_Q] = "heads·head_dim",
        [EXTENT_KV] = "kv_heads·head_dim",
        [EXTENT_QKV] = "(heads+2·kv_heads)·head_dim",
        [EXTENT_HEADS] = "heads",
        [EXTENT_EXPERTS] = "experts",
        [EXTENT_FFN] = "expert_ffn",
        [EXTENT_VOCABULARY] = "vocabulary",
    };
    return names[extent];
}

const char *gguf_absence_text(enum gguf_absence absence)
{
    switch (absence) {
    case ABSENT_TIED: return "yes: the embedding takes its place";
    case ABSENT_FUSED: return "where attn_qkv is there";
    case ABSENT_SPLIT: return "where attn_q, attn_k and attn_v are there";
    default: return "no";
    }
}

uint64_t gguf_extent_of(const struct gguf_model *m, enum gguf_extent extent)
{
    switch (extent) {
    case EXTENT_HIDDEN: return m->hidden;
    case EXTENT_Q: return (uint64_t)m->heads * m->head_dim;
    case EXTENT_KV: return (uint64_t)m->kv_heads * m->head_dim;
    case EXTENT_QKV:
        return m->kv_heads ? ((uint64_t)m->heads + 2 * (uint64_t)m->kv_heads) * m->head_dim : 0;
    case EXTENT_HEADS: return m->heads;
    case EXTENT_EXPERTS: return m->experts;
    case EXTENT_FFN: return m->expert_ffn;
    case EXTENT_VOCABULARY: return m->vocabulary;
    default: return 1;
    }
}

bool gguf_weight_of_layer(const struct gguf_weight *weight)
{
    return !strncmp(weight->name, "blk.N.", 6);
}

void gguf_weight_name(const struct gguf_weight *weight, uint32_t layer, char name[64])
{
    if (gguf_weight_of_layer(weight))
        snprintf(name, 64, "blk.%" PRIu32 ".%s", layer, weight->name + 6);
    else
        snprintf(name, 64, "%s", weight->name);
}

/* ── one tensor ────────────────────────────────────────────────────────────────────────────── */

static int check_type(struct binder *b, const struct gguf_weight *weight,
                      const struct gguf_tensor *t)
{
    const char *path = b->file->path;
    if (!weight->matrix && t->type != GGUF_F32)
        return gguf_refuse(b, "%s: tensor %s has type %s; norms, biases and sinks must be F32",
                           path, t->name, gguf_type_name(t->type));
    if (!gguf_type_supported(t->type))
        return gguf_refuse(b,
                           "%s: tensor %s has type %s, which gptoss does not compute with: take a "
                           "file of the same model with %s instead, or any of MXFP4, Q8_0, "
                           "Q4_K_M, F16, BF16",
                           path, t->name, gguf_type_name(t->type), gguf_type_instead(t->type));
    /* Wider loads than bytes are made at these addresses; general.alignment may be 1. */
    uint64_t natural = t->type == GGUF_F32 ? 4 : t->type == GGUF_MXFP4 ? 1 : 2;
    if (t->offset % natural)
        return gguf_refuse(b,
                           "%s: tensor %s of type %s begins at the odd address %" PRIu64
                           ": convert the file with an alignment of 32",
                           path, t->name, gguf_type_name(t->type), t->offset);
    return 0;
}

/* Extents that are not known agree with everything. */
static int check_shape(struct binder *b, const struct gguf_weight *weight,
                       const struct gguf_tensor *t)
{
    uint64_t want[3];
    bool same = t->ne[3] == 1;
    for (int d = 0; d < 3; d++) {
        want[d] = gguf_extent_of(b->model, weight->ne[d]);
        same &= !want[d] || want[d] == t->ne[d];
    }
    if (same)
        return 0;
    return gguf_refuse(b,
                       "%s: tensor %s has the shape %" PRIu64 "x%" PRIu64 "x%" PRIu64 "x%" PRIu64
                       ", and its keys say %" PRIu64 "x%" PRIu64 "x%" PRIu64
                       ": the file contradicts itself, fetch it again",
                       b->file->path, t->name, t->ne[0], t->ne[1], t->ne[2], t->ne[3], want[0],
                       want[1], want[2]);
}

/* Finds a tensor of the map, checks it and adds its bytes to *bytes. 0; 1: it is not there. */
static int find(struct binder *b, const struct gguf_weight *weight, uint32_t layer,
                const struct gguf_tensor **out, uint64_t *bytes)
{
    char name[64];
    gguf_weight_name(weight, layer, name);
    const struct gguf_tensor *t = gguf_tensor_find(b->file, name);
    if (!t)
        return 1;
    int status = check_shape(b, weight, t);
    if (!gguf_stops(b, status))
        status |= check_type(b, weight, t);
    if (status)
        return -1;
    *out = t;
    *bytes += t->bytes;
    return 0;
}

static int missing(struct binder *b, const struct gguf_weight *weight, uint32_t layer)
{
    char name[64];
    gguf_weight_name(weight, layer, name);
    return gguf_refuse(b, "%s: tensor %s is missing: the file was not converted completely",
                       b->file->path, name);
}

/* ── a layer ───────────────────────────────────────────────────────────────────────────────── */

/* Rows `first` … `first` + `rows` − 1 of a matrix, or values of a vector. */
static const struct gguf_tensor *view(struct gguf_tensor *view, const struct gguf_tensor *of,
                                      uint64_t first, uint64_t rows)
{
    *view = *of;
    uint64_t unit = of->row_bytes;
    if (of->ne[1] > 1) {
        view->ne[1] = rows;
    } else {
        unit = gguf_row_bytes(of->type, 1);
        view->ne[0] = rows;
        view->row_bytes = rows * unit;
    }
    view->offset += first * unit;
    view->data += first * unit;
    view->bytes = rows * unit;
    return view;
}

/* Queries, keys and values as views of the fused tensors. */
static int split_fused(struct binder *b, uint32_t i, const struct gguf_tensor *weight,
                       const struct gguf_tensor *bias)
{
    struct gguf_model *m = b->model;
    struct gguf_layer *layer = &m->layers[i];
    uint64_t q = gguf_extent_of(m, EXTENT_Q), kv = gguf_extent_of(m, EXTENT_KV);
    if (!m->views)
        m->views = calloc((uint64_t)m->n_layers * VIEWS_PER_LAYER, sizeof *m->views);
    if (!m->views)
        return gguf_refuse(b, "%s: out of memory for %" PRIu32 " layers", b->file->path,
                           m->n_layers);
    struct gguf_tensor *views = m->views + (uint64_t)i * VIEWS_PER_LAYER;
    layer->attn_q.weight = view(views, weight, 0, q);
    layer->attn_k.weight = view(views + 1, weight, q, kv);
    layer->attn_v.weight = view(views + 2, weight, q + kv, kv);
    layer->attn_q.bias = view(views + 3, bias, 0, q);
    layer->attn_k.bias = view(views + 4, bias, q, kv);
    layer->attn_v.bias = view(views + 5, bias, q + kv, kv);
    return 0;
}

static bool has_fused(const struct binder *b, uint32_t i)
{
    char weight[64], bias[64];
    snprintf(weight, sizeof weight, "blk.%" PRIu32 ".attn_qkv.weight", i);
    snprintf(bias, sizeof bias, "blk.%" PRIu32 ".attn_qkv.bias", i);
    return gguf_tensor_find(b->file, weight) || gguf_tensor_find(b->file, bias);
}

static int bind_layer(struct binder *b, uint32_t i)
{
    struct gguf_layer *layer = &b->model->layers[i];
    const struct gguf_tensor *fused[2] = {NULL, NULL};
    bool is_fused = has_fused(b, i);
    int status = 0, n_fused = 0;
    for (size_t k = 0; k < gguf_n_weights && !gguf_stops(b, status); k++) {
        const struct gguf_weight *weight = &gguf_weights[k];
        const struct gguf_tensor *t = NULL;
        if (!gguf_weight_of_layer(weight))
            continue;
        int found = find(b, weight, i, &t, &layer->bytes);
        if (weight->absence == ABSENT_SPLIT) {
            if (found > 0)
                found = is_fused ? missing(b, weight, i) : 0;
            fused[n_fused++] = t;
        } else if (found > 0) {
            found = weight->absence == ABSENT_FUSED && is_fused ? 0 : missing(b, weight, i);
        } else if (found == 0 && weight->absence == ABSENT_FUSED && is_fused) {
            found = gguf_refuse(b,
                                "%s: tensor %s is there, and in blk.%" PRIu32 ".attn_qkv.weight "
                                "again: the file contradicts itself, fetch it again",
                                b->file->path, t->name, i);
        }
        status |= found < 0;
        if (t && weight->at != NOWHERE)
            memcpy((char *)layer + weight->at, &t, sizeof t);
    }
    if (status)
        return -1;
    return fused[0] && fused[1] ? split_fused(b, i, fused[0], fused[1]) : 0;
}

/* Layers slide, the last of each period attends to everything: sliding iff i mod period < period − 1.
 * The period is 2, or a key's; or the key says it of each layer. */
static int set_sliding(struct binder *b)
{
    static const char name[] = "gpt-oss.attention.sliding_window_pattern";
    struct gguf_model *m = b->model;
    const struct gguf_key *key = gguf_key_find(b->file, name);
    uint32_t period = 2;
    if (key && key->type == GGUF_VALUE_ARRAY) {
        if (key->count != m->n_layers || key->element == GGUF_VALUE_STRING ||
            key->element == GGUF_VALUE_F32 || key->element == GGUF_VALUE_F64)
            return gguf_refuse(b,
                               "%s: %s is an array of %" PRIu64
                               " values of type %s, not of %" PRIu32 " truth values",
                               b->file->path, name, key->count, gguf_value_type_name(key->element),
                               m->n_layers);
        for (uint32_t i = 0; i < m->n_layers; i++)
            m->layers[i].sliding = gguf_integer_at(key, i) != 0;
        return 0;
    }
    if (gguf_size_if_there(b, name, 0, UINT32_MAX, &period) < 0)
        return -1;
    for (uint32_t i = 0; i < m->n_layers; i++)
        m->layers[i].sliding = period == 0 || i % period < period - 1;
    return 0;
}

static int bind_layers(struct binder *b)
{
    struct gguf_model *m = b->model;
    int status = 0;
    if (!m->n_layers) /* told already */
        return -1;
    if (m->n_layers > b->file->n_tensors / TENSORS_PER_LAYER)
        return gguf_refuse(b,
                           "%s: says that it has %" PRIu32 " layers, and has %" PRIu64
                           " tensors, not %d for each: the file was not converted completely",
                           b->file->path, m->n_layers, b->file->n_tensors, TENSORS_PER_LAYER);
    char beyond[64];
    snprintf(beyond, sizeof beyond, "blk.%" PRIu32 ".attn_norm.weight", m->n_layers);
    if (gguf_tensor_find(b->file, beyond))
        status = gguf_refuse(b,
                             "%s: says that it has %" PRIu32 " layers, and has tensor %s"
                             ": the file contradicts itself, fetch it again",
                             b->file->path, m->n_layers, beyond);
    if (gguf_stops(b, status))
        return -1;
    m->layers = calloc(m->n_layers, sizeof *m->layers);
    if (!m->layers)
        return gguf_refuse(b, "%s: out of memory for %" PRIu32 " layers", b->file->path,
                           m->n_layers);
    for (uint32_t i = 0; i < m->n_layers && !gguf_stops(b, status); i++) {
        status |= bind_layer(b, i);
        m->bytes += m->layers[i].bytes;
    }
    if (!gguf_stops(b, status))
        status |= set_sliding(b);
    return status;
}

/* ── beside the layers ─────────────────────────────────────────────────────────────────────── */

/* The rows of the embedding are the vocabulary; whatever else tells its size must agree. */
static int read_vocabulary(struct binder *b)
{
    static const char *const arrays[] = {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type",
                                         "tokenizer.ggml.scores"};
    struct gguf_model *m = b->model;
    const struct gguf_tensor *embedding = gguf_tensor_find(b->file, "token_embd.weight");
    if (!embedding) /* will be told */
        return 0;
    if (embedding->ne[1] > GGUF_SPAN_MAX)
        return gguf_refuse(b, "%s: the vocabulary of %" PRIu64 " tokens is too large",
                           b->file->path, embedding->ne[1]);
    m->vocabulary = (uint32_t)embedding->ne[1];
    uint32_t said = m->vocabulary;
    int status = gguf_size_if_there(b, "gpt-oss.vocab_size", 1, GGUF_SPAN_MAX, &said) < 0;
    for (size_t i = 0; i <= sizeof arrays / sizeof *arrays && !gguf_stops(b, status); i++) {
        const struct gguf_key *key = i ? gguf_key_find(b->file, arrays[i - 1]) : NULL;
        uint64_t count = i ? key ? key->count : m->vocabulary : said;
        if (count != m->vocabulary)
            status |= gguf_refuse(b,
                                  "%s: token_embd.weight has %" PRIu32 " rows, and %s says %" PRIu64
                                  ": the file contradicts itself, fetch it again",
                                  b->file->path, m->vocabulary,
                                  i ? arrays[i - 1] : "gpt-oss.vocab_size", count);
    }
    return status;
}

/* The rows of the map that are of no layer. */
static int bind_rest(struct binder *b)
{
    struct gguf_model *m = b->model;
    int status = 0;
    for (size_t k = 0; k < gguf_n_weights && !gguf_stops(b, status); k++) {
        const struct gguf_weight *weight = &gguf_weights[k];
        const struct gguf_tensor *t = NULL;
        if (gguf_weight_of_layer(weight))
            continue;
        int found = find(b, weight, 0, &t, &m->bytes);
        if (found > 0 && weight->absence == ABSENT_TIED) {
            t = m->embedding;
            found = 0;
        }
        status |= found > 0 ? missing(b, weight, 0) : found;
        memcpy((char *)m + weight->at, &t, sizeof t);
    }
    return status;
}

int gguf_bind_tensors(struct binder *b)
{
    static int (*const steps[])(struct binder *) = {read_vocabulary, bind_rest, bind_layers};
    int status = 0;
    for (size_t i = 0; i < sizeof steps / sizeof *steps && !gguf_stops(b, status); i++)
        status |= steps[i](b);
    return status ? -1 : 0;
}
