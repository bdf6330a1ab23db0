/*
 * The sizes of a gpt-oss model, from its keys; nothing about one size of model is assumed.
 */
#include "gguf/binder.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* Not in the file: the same for every gpt-oss model. */
#define SWIGLU_ALPHA 1.702f
#define SWIGLU_LIMIT 7.0f

/* Sizes beyond these are no model; below them no product of two overflows 32 bits where it matters
 * (heads · head_dim) and every sum of bytes is checked against the file anyway. */
#define HIDDEN_MAX   (1u << 20)
#define HEADS_MAX    (1u << 12)
#define HEAD_DIM_MAX (1u << 12)
#define EXPERTS_MAX  (1u << 16)
#define LAYERS_MAX   (1u << 16)
#define SPAN_MAX     GGUF_SPAN_MAX /* context, window */

/* ── architecture ──────────────────────────────────────────────────────────────────────────── */

static bool text_is(struct gguf_string text, const char *word)
{
    return text.size == strlen(word) && !memcmp(text.bytes, word, (size_t)text.size);
}

static int check_architecture(struct binder *b)
{
    struct gguf_string name;
    char shown[GGUF_SHOWN], err[SENTENCE_MAX];
    int status = gguf_get_string(b->file, "general.architecture", &name, err, sizeof err);
    if (status < 0)
        return gguf_refuse(b, "%s", err);
    if (status > 0)
        return gguf_refuse(b,
                           "%s: has no key general.architecture, so it is no model: gptoss runs "
                           "gpt-oss models",
                           b->file->path);
    if (text_is(name, "gpt-oss"))
        return 0;
    if (text_is(name, "gptoss"))
        return gguf_refuse(b,
                           "%s: is in Ollama's own flavour of gpt-oss (architecture gptoss), with "
                           "other tensors and another order of the experts' rows: take a file "
                           "converted by llama.cpp, such as gpt-oss-20b-mxfp4.gguf",
                           b->file->path);
    return gguf_refuse(b,
                       "%s: is a model of architecture %s; gptoss runs gpt-oss models only "
                       "(architecture gpt-oss): take one, such as gpt-oss-20b-mxfp4.gguf",
                       b->file->path, gguf_shown(shown, name.bytes, name.size));
}

/* ── one key ───────────────────────────────────────────────────────────────────────────────── */

int gguf_size_if_there(struct binder *b, const char *name, uint32_t min, uint32_t max,
                       uint32_t *out)
{
    uint32_t value;
    char err[SENTENCE_MAX];
    int status = gguf_get_u32(b->file, name, &value, err, sizeof err);
    if (status < 0)
        return gguf_refuse(b, "%s", err);
    if (status > 0)
        return 1;
    if (value < min || value > max)
        return gguf_refuse(b, "%s: %s is %" PRIu32 ", not between %" PRIu32 " and %" PRIu32,
                           b->file->path, name, value, min, max);
    *out = value;
    return 0;
}

static int missing(struct binder *b, const char *name)
{
    return gguf_refuse(b, "%s: key %s is missing: the file was not converted completely",
                       b->file->path, name);
}

static int need_size(struct binder *b, const char *name, uint32_t min, uint32_t max, uint32_t *out)
{
    int status = gguf_size_if_there(b, name, min, max, out);
    return status > 0 ? missing(b, name) : status;
}

static int number_if_there(struct binder *b, const char *name, double min, double max, float *out)
{
    float value;
    char err[SENTENCE_MAX];
    int status = gguf_get_f32(b->file, name, &value, err, sizeof err);
    if (status < 0)
        return gguf_refuse(b, "%s", err);
    if (status > 0)
        return 1;
    if (!((double)value >= min && (double)value <= max)) /* NaN too */
        return gguf_refuse(b, "%s: %s is %g, not between %g and %g", b->file->path, name,
                           (double)value, min, max);
    *out = value;
    return 0;
}

static int need_number(struct binder *b, const char *name, double min, double max, float *out)
{
    int status = number_if_there(b, name, min, max, out);
    return status > 0 ? missing(b, name) : status;
}

/* ── groups of keys ────────────────────────────────────────────────────────────────────────── */

static int read_heads(struct binder *b)
{
    struct gguf_model *m = b->model;
    int status = need_size(b, "gpt-oss.attention.head_count", 1, HEADS_MAX, &m->heads);
    if (gguf_stops(b, status))
        return -1;
    uint32_t kv_heads = m->heads;
    status |= gguf_size_if_there(b, "gpt-oss.attention.head_count_kv", 1, HEADS_MAX, &kv_heads) < 0;
    if (status)
        return -1;
    if (m->heads % kv_heads)
        return gguf_refuse(b, "%s: %" PRIu32 " query heads are no multiple of %" PRIu32 " kv heads",
                           b->file->path, m->heads, kv_heads);
    m->kv_heads = kv_heads;
    return 0;
}

static int read_head_dim(struct binder *b)
{
    struct gguf_model *m = b->model;
    const char *path = b->file->path;
    uint32_t head_dim = 0;
    int status = gguf_size_if_there(b, "gpt-oss.attention.key_length", 2, HEAD_DIM_MAX, &head_dim);
    if (status < 0)
        return -1;
    if (status > 0) {
        if (!m->hidden || !m->heads) /* told already */
            return -1;
        head_dim = m->hidden / m->heads;
        if (m->hidden % m->heads || head_dim > HEAD_DIM_MAX)
            return gguf_refuse(b,
                               "%s: key gpt-oss.attention.key_length is missing, and %" PRIu32
                               " values are not shared evenly by %" PRIu32 " heads",
                               path, m->hidden, m->heads);
    }
    if (head_dim % 2 || !head_dim)
        return gguf_refuse(b, "%s: the size of a head is %" PRIu32 ", and must be even", path,
                           head_dim);
    uint32_t values = head_dim, rotated = head_dim;
    if (gguf_size_if_there(b, "gpt-oss.attention.value_length", 2, HEAD_DIM_MAX, &values) < 0 ||
        gguf_size_if_there(b, "gpt-oss.rope.dimension_count", 2, HEAD_DIM_MAX, &rotated) < 0)
        return -1;
    if (values != head_dim)
        return gguf_refuse(b,
                           "%s: keys of %" PRIu32 " values and values of %" PRIu32
                           " in a head; gptoss needs them equal",
                           path, head_dim, values);
    if (rotated != head_dim)
        return gguf_refuse(b,
                           "%s: %" PRIu32 " of %" PRIu32
                           " values of a head are rotated; gptoss needs all of them",
                           path, rotated, head_dim);
    m->head_dim = head_dim;
    return 0;
}

static int read_experts(struct binder *b)
{
    struct gguf_model *m = b->model;
    int status = need_size(b, "gpt-oss.expert_count", 1, EXPERTS_MAX, &m->experts);
    if (gguf_stops(b, status))
        return -1;
    status |= need_size(b, "gpt-oss.expert_used_count", 1, EXPERTS_MAX, &m->active);
    if (gguf_stops(b, status))
        return -1;
    if (!status && m->active > m->experts)
        status = gguf_refuse(b, "%s: %" PRIu32 " experts are active of %" PRIu32, b->file->path,
                             m->active, m->experts);
    if (gguf_stops(b, status))
        return -1;
    int ffn =
        gguf_size_if_there(b, "gpt-oss.expert_feed_forward_length", 1, HIDDEN_MAX, &m->expert_ffn);
    if (ffn > 0)
        ffn = need_size(b, "gpt-oss.feed_forward_length", 1, HIDDEN_MAX, &m->expert_ffn);
    return status || ffn ? -1 : 0;
}

static int read_yarn(struct binder *b)
{
    struct gguf_model *m = b->model;
    float attention;
    const struct {
        const char *name;
        double min, max;
        float *out;
    } numbers[] = {
        {"gpt-oss.rope.scaling.factor", 1, 1e6, &m->yarn_factor},
        {"gpt-oss.rope.scaling.yarn_beta_fast", 1e-3, 1e6, &m->yarn_beta_fast},
        {"gpt-oss.rope.scaling.yarn_beta_slow", 1e-3, 1e6, &m->yarn_beta_slow},
        {"gpt-oss.rope.scaling.attn_factor", 1e-3, 1e3, &attention},
    };
    int status = 0;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        status |=
            number_if_there(b, numbers[i].name, numbers[i].min, numbers[i].max, numbers[i].out) < 0;
        if (gguf_stops(b, status))
            return -1;
    }
    if (m->yarn_beta_fast <= m->yarn_beta_slow)
        return gguf_refuse(
            b, "%s: gpt-oss.rope.scaling.yarn_beta_fast (%g) is not above yarn_beta_slow (%g)",
            b->file->path, (double)m->yarn_beta_fast, (double)m->yarn_beta_slow);
    int context = gguf_size_if_there(b, "gpt-oss.rope.scaling.original_context_length", 1, SPAN_MAX,
                                     &m->yarn_context);
    /* The context that a model was stretched to is the original one times the factor. */
    if (context > 0 && (double)m->context >= (double)m->yarn_factor)
        m->yarn_context = (uint32_t)((double)m->context / (double)m->yarn_factor);
    return status || context < 0 ? -1 : 0;
}

static int read_rope(struct binder *b)
{
    struct gguf_model *m = b->model;
    const char *path = b->file->path;
    char err[SENTENCE_MAX], shown[GGUF_SHOWN];
    int status = need_number(b, "gpt-oss.rope.freq_base", 1.5, 1e30, &m->rope_theta);
    if (gguf_stops(b, status))
        return -1;
    float same = m->rope_theta;
    status |= number_if_there(b, "gpt-oss.rope.freq_base_swa", 1.5, 1e30, &same) < 0;
    if (gguf_stops(b, status))
        return -1;
    if (!status && same != m->rope_theta)
        status = gguf_refuse(b,
                             "%s: sliding layers have a RoPE base of their own (%g, others %g); "
                             "gptoss needs one",
                             path, (double)same, (double)m->rope_theta);
    if (gguf_stops(b, status))
        return -1;

    struct gguf_string type = {.bytes = "yarn", .size = 4};
    m->yarn_factor = 1;
    m->yarn_beta_fast = 32;
    m->yarn_beta_slow = 1;
    m->yarn_context = m->context;
    if (gguf_get_string(b->file, "gpt-oss.rope.scaling.type", &type, err, sizeof err) < 0)
        return gguf_refuse(b, "%s", err);
    if (text_is(type, "none"))
        return status;
    if (!text_is(type, "yarn"))
        return gguf_refuse(b, "%s: gpt-oss.rope.scaling.type is %s; gptoss knows yarn and none",
                           path, gguf_shown(shown, type.bytes, type.size));
    return read_yarn(b) || status ? -1 : 0;
}

/* ── all ───────────────────────────────────────────────────────────────────────────────────── */

static int read_plain(struct binder *b)
{
    struct gguf_model *m = b->model;
    int status = need_size(b, "gpt-oss.block_count", 1, LAYERS_MAX, &m->n_layers);
    if (!gguf_stops(b, status))
        status |= need_size(b, "gpt-oss.context_length", 1, SPAN_MAX, &m->context);
    if (!gguf_stops(b, status))
        status |= need_size(b, "gpt-oss.embedding_length", 1, HIDDEN_MAX, &m->hidden);
    if (!gguf_stops(b, status))
        status |= need_number(b, "gpt-oss.attention.layer_norm_rms_epsilon", 0, 1, &m->norm_eps);
    return status;
}

static int read_window(struct binder *b)
{
    return need_size(b, "gpt-oss.attention.sliding_window", 1, SPAN_MAX, &b->model->window);
}

int gguf_read_sizes(struct binder *b)
{
    static int (*const steps[])(struct binder *) = {read_plain,  read_heads,   read_head_dim,
                                                    read_window, read_experts, read_rope};
    b->model->swiglu_alpha = SWIGLU_ALPHA;
    b->model->swiglu_limit = SWIGLU_LIMIT;
    /* Of a file of another architecture nothing else could be said. */
    if (check_architecture(b))
        return -1;
    int status = 0;
    for (size_t i = 0; i < sizeof steps / sizeof *steps && !gguf_stops(b, status); i++)
        status |= steps[i](b);
    return status ? -1 : 0;
}
