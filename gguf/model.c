/*
 * The gpt-oss architecture: sizes from the keys, tensors by role and layer; every shape and type is
 * checked, and nothing about one size of model is assumed.
 */
#include "gguf/private.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Not in the file: the same for every gpt-oss model. */
#define SWIGLU_ALPHA 1.702f
#define SWIGLU_LIMIT 7.0f

#define TENSORS_PER_LAYER 19

/* Sizes beyond these are no model; below them no product of two overflows 32 bits where it matters
 * (heads · head_dim) and every sum of bytes is checked against the file anyway. */
#define HIDDEN_MAX   (1u << 20)
#define HEADS_MAX    (1u << 12)
#define HEAD_DIM_MAX (1u << 12)
#define EXPERTS_MAX  (1u << 16)
#define LAYERS_MAX   (1u << 16)
#define SPAN_MAX     (1u << 30) /* context, window, vocabulary */

struct binder {
    struct gguf_model *model;
    const struct gguf_file *file;
    char *err;
    size_t err_size;
};

#define refuse(b, ...) gguf_fail((b)->err, (b)->err_size, __VA_ARGS__)

/* ── architecture ──────────────────────────────────────────────────────────────────────────── */

static bool text_is(struct gguf_string text, const char *word)
{
    return text.size == strlen(word) && !memcmp(text.bytes, word, (size_t)text.size);
}

static int check_architecture(struct binder *b)
{
    struct gguf_string name;
    char shown[GGUF_SHOWN];
    int status = gguf_get_string(b->file, "general.architecture", &name, b->err, b->err_size);
    if (status < 0)
        return -1;
    if (status > 0)
        return refuse(b,
                      "%s: has no key general.architecture, so it is no model: gptoss runs gpt-oss "
                      "models",
                      b->file->path);
    if (text_is(name, "gpt-oss"))
        return 0;
    if (text_is(name, "gptoss"))
        return refuse(b,
                      "%s: is in Ollama's own flavour of gpt-oss (architecture gptoss), with other "
                      "tensors and another order of the experts' rows: take a file converted by "
                      "llama.cpp, such as gpt-oss-20b-mxfp4.gguf",
                      b->file->path);
    return refuse(b, "%s: is a model of architecture %s; gptoss runs gpt-oss models", b->file->path,
                  gguf_shown(shown, name.bytes, name.size));
}

/* Files that are one part of several have split.count; the tensors of the others are missing here. */
static int check_split(struct binder *b)
{
    uint32_t count = 1, no = 0;
    if (gguf_get_u32(b->file, "split.count", &count, b->err, b->err_size) < 0 ||
        gguf_get_u32(b->file, "split.no", &no, b->err, b->err_size) < 0)
        return -1;
    if (count > 1)
        return refuse(b,
                      "%s: is part %" PRIu64 " of %" PRIu32
                      " of a split model: join the parts with "
                      "llama-gguf-split --merge",
                      b->file->path, (uint64_t)no + 1, count);
    return 0;
}

/* ── sizes ─────────────────────────────────────────────────────────────────────────────────── */

/* 0; 1: not there, *out is left alone; −1. */
static int size_if_there(struct binder *b, const char *name, uint32_t min, uint32_t max,
                         uint32_t *out)
{
    uint32_t value;
    int status = gguf_get_u32(b->file, name, &value, b->err, b->err_size);
    if (status)
        return status;
    if (value < min || value > max)
        return refuse(b, "%s: %s is %" PRIu32 ", not between %" PRIu32 " and %" PRIu32,
                      b->file->path, name, value, min, max);
    *out = value;
    return 0;
}

static int need_size(struct binder *b, const char *name, uint32_t min, uint32_t max, uint32_t *out)
{
    int status = size_if_there(b, name, min, max, out);
    if (status > 0)
        return refuse(b, "%s: key %s is missing: the file was not converted completely",
                      b->file->path, name);
    return status;
}

static int number_if_there(struct binder *b, const char *name, double min, double max, float *out)
{
    float value;
    int status = gguf_get_f32(b->file, name, &value, b->err, b->err_size);
    if (status)
        return status;
    if (!((double)value >= min && (double)value <= max)) /* NaN too */
        return refuse(b, "%s: %s is %g, not between %g and %g", b->file->path, name, (double)value,
                      min, max);
    *out = value;
    return 0;
}

static int need_number(struct binder *b, const char *name, double min, double max, float *out)
{
    int status = number_if_there(b, name, min, max, out);
    if (status > 0)
        return refuse(b, "%s: key %s is missing: the file was not converted completely",
                      b->file->path, name);
    return status;
}

static int read_attention(struct binder *b)
{
    struct gguf_model *m = b->model;
    const char *path = b->file->path;
    if (need_size(b, "gpt-oss.attention.head_count", 1, HEADS_MAX, &m->heads))
        return -1;
    m->kv_heads = m->heads;
    if (size_if_there(b, "gpt-oss.attention.head_count_kv", 1, HEADS_MAX, &m->kv_heads) < 0)
        return -1;
    if (m->heads % m->kv_heads)
        return refuse(b, "%s: %" PRIu32 " query heads are no multiple of %" PRIu32 " kv heads",
                      path, m->heads, m->kv_heads);

    int status = size_if_there(b, "gpt-oss.attention.key_length", 2, HEAD_DIM_MAX, &m->head_dim);
    if (status < 0)
        return -1;
    if (status > 0) {
        m->head_dim = m->hidden / m->heads;
        if (m->hidden % m->heads || m->head_dim > HEAD_DIM_MAX)
            return refuse(b,
                          "%s: key gpt-oss.attention.key_length is missing, and %" PRIu32
                          " values are not shared evenly by %" PRIu32 " heads",
                          path, m->hidden, m->heads);
    }
    if (m->head_dim % 2 || !m->head_dim)
        return refuse(b, "%s: the size of a head is %" PRIu32 ", and must be even", path,
                      m->head_dim);
    uint32_t same = m->head_dim;
    if (size_if_there(b, "gpt-oss.attention.value_length", 2, HEAD_DIM_MAX, &same) < 0)
        return -1;
    if (same != m->head_dim)
        return refuse(b,
                      "%s: keys of %" PRIu32 " values and values of %" PRIu32
                      " in a head; gptoss needs them equal",
                      path, m->head_dim, same);
    if (size_if_there(b, "gpt-oss.rope.dimension_count", 2, HEAD_DIM_MAX, &same) < 0)
        return -1;
    if (same != m->head_dim)
        return refuse(b,
                      "%s: %" PRIu32 " of %" PRIu32
                      " values of a head are rotated; gptoss needs all of them",
                      path, same, m->head_dim);
    return need_size(b, "gpt-oss.attention.sliding_window", 1, SPAN_MAX, &m->window);
}

static int read_experts(struct binder *b)
{
    struct gguf_model *m = b->model;
    if (need_size(b, "gpt-oss.expert_count", 1, EXPERTS_MAX, &m->experts) ||
        need_size(b, "gpt-oss.expert_used_count", 1, EXPERTS_MAX, &m->active))
        return -1;
    if (m->active > m->experts)
        return refuse(b, "%s: %" PRIu32 " experts are active of %" PRIu32, b->file->path, m->active,
                      m->experts);
    int status =
        size_if_there(b, "gpt-oss.expert_feed_forward_length", 1, HIDDEN_MAX, &m->expert_ffn);
    if (status > 0)
        status = need_size(b, "gpt-oss.feed_forward_length", 1, HIDDEN_MAX, &m->expert_ffn);
    return status;
}

static int read_rope(struct binder *b)
{
    struct gguf_model *m = b->model;
    const char *path = b->file->path;
    if (need_number(b, "gpt-oss.rope.freq_base", 1.5, 1e30, &m->rope_theta))
        return -1;
    float same = m->rope_theta;
    if (number_if_there(b, "gpt-oss.rope.freq_base_swa", 1.5, 1e30, &same) < 0)
        return -1;
    if (same != m->rope_theta)
        return refuse(
            b,
            "%s: sliding layers have a RoPE base of their own (%g, others %g); gptoss needs "
            "one",
            path, (double)same, (double)m->rope_theta);

    struct gguf_string type = {.bytes = "yarn", .size = 4};
    if (gguf_get_string(b->file, "gpt-oss.rope.scaling.type", &type, b->err, b->err_size) < 0)
        return -1;
    m->yarn_factor = 1;
    m->yarn_beta_fast = 32;
    m->yarn_beta_slow = 1;
    m->yarn_context = m->context;
    if (text_is(type, "none"))
        return 0;
    char shown[GGUF_SHOWN];
    if (!text_is(type, "yarn"))
        return refuse(b, "%s: gpt-oss.rope.scaling.type is %s; gptoss knows yarn and none", path,
                      gguf_shown(shown, type.bytes, type.size));
    float attention;
    if (number_if_there(b, "gpt-oss.rope.scaling.factor", 1, 1e6, &m->yarn_factor) < 0 ||
        number_if_there(b, "gpt-oss.rope.scaling.yarn_beta_fast", 1e-3, 1e6, &m->yarn_beta_fast) <
            0 ||
        number_if_there(b, "gpt-oss.rope.scaling.yarn_beta_slow", 1e-3, 1e6, &m->yarn_beta_slow) <
            0 ||
        number_if_there(b, "gpt-oss.rope.scaling.attn_factor", 1e-3, 1e3, &attention) < 0)
        return -1;
    if (m->yarn_beta_fast <= m->yarn_beta_slow)
        return refuse(
            b, "%s: gpt-oss.rope.scaling.yarn_beta_fast (%g) is not above yarn_beta_slow (%g)",
            path, (double)m->yarn_beta_fast, (double)m->yarn_beta_slow);
    int status = size_if_there(b, "gpt-oss.rope.scaling.original_context_length", 1, SPAN_MAX,
                               &m->yarn_context);
    /* The context that a model was stretched to is the original one times the factor. */
    if (status > 0 && m->context >= m->yarn_factor)
        m->yarn_context = (uint32_t)((double)m->context / (double)m->yarn_factor);
    return status < 0 ? -1 : 0;
}

static int read_sizes(struct binder *b)
{
    struct gguf_model *m = b->model;
    if (need_size(b, "gpt-oss.block_count", 1, LAYERS_MAX, &m->n_layers) ||
        need_size(b, "gpt-oss.context_length", 1, SPAN_MAX, &m->context) ||
        need_size(b, "gpt-oss.embedding_length", 1, HIDDEN_MAX, &m->hidden) ||
        need_number(b, "gpt-oss.attention.layer_norm_rms_epsilon", 0, 1, &m->norm_eps) ||
        read_attention(b) || read_experts(b) || read_rope(b))
        return -1;
    m->swiglu_alpha = SWIGLU_ALPHA;
    m->swiglu_limit = SWIGLU_LIMIT;
    return 0;
}

/* ── tensors ───────────────────────────────────────────────────────────────────────────────── */

/* What the data of a tensor is used as. */
enum use {
    USE_VECTOR, /* F32 only */
    USE_MATRIX, /* any type that kernels compute with */
};

static int check_type(struct binder *b, const struct gguf_tensor *t, enum use use)
{
    const char *path = b->file->path;
    if (use == USE_VECTOR && t->type != GGUF_F32)
        return refuse(b, "%s: tensor %s has type %s; norms, biases and sinks must be F32", path,
                      t->name, gguf_type_name(t->type));
    if (!gguf_type_supported(t->type))
        return refuse(b,
                      "%s: tensor %s has type %s, which gptoss does not compute with: take a file "
                      "whose tensors are F32, F16, BF16, Q8_0 or MXFP4, such as "
                      "gpt-oss-20b-mxfp4.gguf",
                      path, t->name, gguf_type_name(t->type));
    /* Wider loads than bytes are made at these addresses; general.alignment may be 1. */
    uint64_t natural = t->type == GGUF_F32 ? 4 : t->type == GGUF_MXFP4 ? 1 : 2;
    if (t->offset % natural)
        return refuse(b,
                      "%s: tensor %s of type %s begins at the odd address %" PRIu64
                      ": convert the file with an alignment of 32",
                      path, t->name, gguf_type_name(t->type), t->offset);
    return 0;
}

/* Finds a tensor of shape [ne2, ne1, ne0] and adds its bytes to *bytes. */
static int bind(struct binder *b, const char *name, enum use use, uint64_t ne0, uint64_t ne1,
                uint64_t ne2, const struct gguf_tensor **out, uint64_t *bytes)
{
    const char *path = b->file->path;
    const struct gguf_tensor *t = gguf_tensor_find(b->file, name);
    if (!t)
        return refuse(b, "%s: tensor %s is missing: the file was not converted completely", path,
                      name);
    if (t->ne[0] != ne0 || t->ne[1] != ne1 || t->ne[2] != ne2 || t->ne[3] != 1)
        return refuse(b,
                      "%s: tensor %s has the shape %" PRIu64 "x%" PRIu64 "x%" PRIu64 "x%" PRIu64
                      ", and its keys say %" PRIu64 "x%" PRIu64 "x%" PRIu64
                      ": the file contradicts itself, fetch it again",
                      path, name, t->ne[0], t->ne[1], t->ne[2], t->ne[3], ne0, ne1, ne2);
    if (check_type(b, t, use))
        return -1;
    *out = t;
    *bytes += t->bytes;
    return 0;
}

/* One row of the table below: a tensor of a layer. */
struct role {
    const char *suffix; /* after "blk.N." */
    enum use use;
    size_t at; /* of its pointer in struct gguf_layer */
    uint64_t ne0, ne1, ne2;
};

static int bind_layer(struct binder *b, uint32_t i)
{
    const struct gguf_model *m = b->model;
    struct gguf_layer *layer = &b->model->layers[i];
    uint64_t hidden = m->hidden, q = (uint64_t)m->heads * m->head_dim,
             kv = (uint64_t)m->kv_heads * m->head_dim, experts = m->experts, ffn = m->expert_ffn;
#define VECTOR(name, field, ...)                                                                   \
    {                                                                                              \
        name, USE_VECTOR, offsetof(struct gguf_layer, field), __VA_ARGS__                          \
    }
#define MATRIX(name, field, ...)                                                                   \
    {                                                                                              \
        name, USE_MATRIX, offsetof(struct gguf_layer, field), __VA_ARGS__                          \
    }
    const struct role roles[TENSORS_PER_LAYER] = {
        VECTOR("attn_norm.weight", attn_norm, hidden, 1, 1),
        MATRIX("attn_q.weight", attn_q.weight, hidden, q, 1),
        VECTOR("attn_q.bias", attn_q.bias, q, 1, 1),
        MATRIX("attn_k.weight", attn_k.weight, hidden, kv, 1),
        VECTOR("attn_k.bias", attn_k.bias, kv, 1, 1),
        MATRIX("attn_v.weight", attn_v.weight, hidden, kv, 1),
        VECTOR("attn_v.bias", attn_v.bias, kv, 1, 1),
        MATRIX("attn_output.weight", attn_out.weight, q, hidden, 1),
        VECTOR("attn_output.bias", attn_out.bias, hidden, 1, 1),
        VECTOR("attn_sinks.weight", sinks, m->heads, 1, 1),
        VECTOR("post_attention_norm.weight", ffn_norm, hidden, 1, 1),
        MATRIX("ffn_gate_inp.weight", router.weight, hidden, experts, 1),
        VECTOR("ffn_gate_inp.bias", router.bias, experts, 1, 1),
        MATRIX("ffn_gate_exps.weight", gate.weight, hidden, ffn, experts),
        VECTOR("ffn_gate_exps.bias", gate.bias, ffn, experts, 1),
        MATRIX("ffn_up_exps.weight", up.weight, hidden, ffn, experts),
        VECTOR("ffn_up_exps.bias", up.bias, ffn, experts, 1),
        MATRIX("ffn_down_exps.weight", down.weight, ffn, hidden, experts),
        VECTOR("ffn_down_exps.bias", down.bias, hidden, experts, 1),
    };
#undef VECTOR
#undef MATRIX
    for (size_t k = 0; k < TENSORS_PER_LAYER; k++) {
        const struct role *role = &roles[k];
        const struct gguf_tensor *tensor;
        char name[64];
        snprintf(name, sizeof name, "blk.%" PRIu32 ".%s", i, role->suffix);
        if (bind(b, name, role->use, role->ne0, role->ne1, role->ne2, &tensor, &layer->bytes))
            return -1;
        memcpy((char *)layer + role->at, &tensor, sizeof tensor);
    }
    return 0;
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
            return refuse(b,
                          "%s: %s is an array of %" PRIu64 " values of type %s, not of %" PRIu32
                          " truth values",
                          b->file->path, name, key->count, gguf_value_type_name(key->element),
                          m->n_layers);
        for (uint32_t i = 0; i < m->n_layers; i++)
            m->layers[i].sliding = gguf_integer_at(key, i) != 0;
        return 0;
    }
    if (gguf_get_u32(b->file, name, &period, b->err, b->err_size) < 0)
        return -1;
    for (uint32_t i = 0; i < m->n_layers; i++)
        m->layers[i].sliding = period == 0 || i % period < period - 1;
    return 0;
}

static int bind_layers(struct binder *b)
{
    struct gguf_model *m = b->model;
    if (m->n_layers > b->file->n_tensors / TENSORS_PER_LAYER)
        return refuse(b,
                      "%s: says that it has %" PRIu32 " layers, and has %" PRIu64
                      " tensors, not %d for each: the file was not converted completely",
                      b->file->path, m->n_layers, b->file->n_tensors, TENSORS_PER_LAYER);
    char beyond[64];
    snprintf(beyond, sizeof beyond, "blk.%" PRIu32 ".attn_norm.weight", m->n_layers);
    if (gguf_tensor_find(b->file, beyond))
        return refuse(b,
                      "%s: says that it has %" PRIu32 " layers, and has tensor %s"
                      ": the file contradicts itself, fetch it again",
                      b->file->path, m->n_layers, beyond);
    m->layers = calloc(m->n_layers, sizeof *m->layers);
    if (!m->layers)
        return refuse(b, "%s: out of memory for %" PRIu32 " layers", b->file->path, m->n_layers);
    if (gguf_tensor_find(b->file, "blk.0.attn_qkv.weight"))
        return refuse(b,
                      "%s: tensor blk.0.attn_qkv.weight holds query, key and value in one; gptoss "
                      "reads them apart: take a file converted by llama.cpp",
                      b->file->path);
    for (uint32_t i = 0; i < m->n_layers; i++) {
        if (bind_layer(b, i))
            return -1;
        m->bytes += m->layers[i].bytes;
    }
    return set_sliding(b);
}

/* The rows of the embedding are the vocabulary; whatever else tells its size must agree. */
static int bind_vocabulary(struct binder *b)
{
    struct gguf_model *m = b->model;
    const char *path = b->file->path;
    const struct gguf_tensor *embedding = gguf_tensor_find(b->file, "token_embd.weight");
    if (!embedding)
        return refuse(b,
                      "%s: tensor token_embd.weight is missing: the file was not converted "
                      "completely",
                      path);
    if (embedding->ne[1] > SPAN_MAX)
        return refuse(b, "%s: the vocabulary of %" PRIu64 " tokens is too large", path,
                      embedding->ne[1]);
    m->vocabulary = (uint32_t)embedding->ne[1];
    uint32_t said = m->vocabulary;
    const struct gguf_key *tokens = gguf_key_find(b->file, "tokenizer.ggml.tokens");
    if (size_if_there(b, "gpt-oss.vocab_size", 1, SPAN_MAX, &said) < 0)
        return -1;
    if (said != m->vocabulary || (tokens && tokens->count != m->vocabulary))
        return refuse(b,
                      "%s: token_embd.weight has %" PRIu32 " rows, and %s says %" PRIu64
                      ": the file contradicts itself, fetch it again",
                      path, m->vocabulary,
                      said != m->vocabulary ? "gpt-oss.vocab_size" : "tokenizer.ggml.tokens",
                      said != m->vocabulary ? said : tokens->count);

    if (bind(b, "token_embd.weight", USE_MATRIX, m->hidden, m->vocabulary, 1, &m->embedding,
             &m->bytes) ||
        bind(b, "output_norm.weight", USE_VECTOR, m->hidden, 1, 1, &m->output_norm, &m->bytes))
        return -1;
    if (gguf_tensor_find(b->file, "output.weight"))
        return bind(b, "output.weight", USE_MATRIX, m->hidden, m->vocabulary, 1, &m->output,
                    &m->bytes);
    m->output = m->embedding;
    return 0;
}

int gguf_model_create(struct gguf_model **out, const struct gguf_file *file, char *err,
                      size_t err_size)
{
    struct binder binder = {.file = file, .err = err, .err_size = err_size};
    struct binder *b = &binder;
    *out = NULL;
    b->model = calloc(1, sizeof *b->model);
    if (!b->model)
        return refuse(b, "%s: out of memory", file->path);
    b->model->file = file;
    if (check_architecture(b) || check_split(b) || read_sizes(b) || bind_vocabulary(b) ||
        bind_layers(b)) {
        gguf_model_destroy(b->model);
        return -1;
    }
    *out = b->model;
    return 0;
}

void gguf_model_destroy(struct gguf_model *model)
{
    if (!model)
        return;
    free(model->layers);
    free(model);
}
