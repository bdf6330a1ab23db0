/*
 * gptoss-gguf synth: a gpt-oss file of random weights, of any sizes. What it answers is noise; what
 * it costs is what a trained model of these sizes costs.
 */
#include "tools/synth.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "tools/mix.h"
#include "tools/tools.h"

/* ── sizes ─────────────────────────────────────────────────────────────────────────────────── */

struct sizes {
    int64_t layers, hidden, heads, kv_heads, head_dim, experts, active, expert_ffn, window,
        vocabulary, context;
};

static const struct preset {
    const char *name;
    struct sizes sizes;
} presets[] = {
    {"tiny", {24, 192, 8, 2, 64, 16, 4, 64, 128, 4096, 131072}},
    {"20b", {24, 2880, 64, 8, 64, 32, 4, 2880, 128, 201088, 131072}},
    {"120b", {36, 2880, 64, 8, 64, 128, 4, 2880, 128, 201088, 131072}},
};

struct synth {
    const char *path, *like, *mix_label, *type_experts, *type_matrices; /* of the types NULL: mix */
    struct cli_list type_list;
    struct sizes sizes;
    int64_t seed;
    const struct mix *mix;
    enum gguf_type experts, matrices;
    struct of_name {
        const char *name; /* `size` bytes */
        size_t size;
        enum gguf_type type;
    } * of_names; /* [type_list.n] */
};

static int wrong_use(const char *format, ...) __attribute__((format(printf, 1, 2)));

static int wrong_use(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "gptoss-gguf synth: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\ngptoss-gguf synth --help tells more\n");
    va_end(args);
    return EXIT_USAGE;
}

static int find_type(const char *option, const char *name, enum gguf_type *out)
{
    struct text types = {0};
    if (!mix_type_find(name, out))
        return 0;
    mix_types(&types);
    int status = wrong_use("--%s %s: %s are the types", option, name, types.bytes);
    text_free(&types);
    return status;
}

/* --mix, --type-experts, --type-matrices and all --type NAME=TYPE. */
static int find_types(struct synth *s)
{
    int status = 0;
    s->mix = mix_find(s->mix_label);
    if (!s->mix) {
        struct text labels = {0};
        mix_labels(&labels);
        status = wrong_use("--mix %s: %s are known", s->mix_label, labels.bytes);
        text_free(&labels);
        return status;
    }
    if (s->type_experts && (status = find_type("type-experts", s->type_experts, &s->experts)))
        return status;
    if (s->type_matrices && (status = find_type("type-matrices", s->type_matrices, &s->matrices)))
        return status;
    s->of_names = base_alloc(s->type_list.n + 1, sizeof *s->of_names);
    for (size_t i = 0; i < s->type_list.n; i++) {
        const char *item = s->type_list.items[i], *equals = strchr(item, '=');
        if (!equals || equals == item)
            return wrong_use("--type %s: NAME=TYPE is wanted, such as attn_output=q4_k", item);
        s->of_names[i].name = item;
        s->of_names[i].size = (size_t)(equals - item);
        if ((status = find_type("type", equals + 1, &s->of_names[i].type)))
            return status;
    }
    return 0;
}

/* A matrix's type: of --type with its name ("attn_output", "blk.3.attn_v", "output"), the last that
 * fits; of --type-experts or --type-matrices; of the mix. */
static enum gguf_type type_of(const struct synth *s, const char *name, int64_t ne0)
{
    uint32_t layer;
    const char *role = mix_role(name, &layer);
    for (size_t i = s->type_list.n; i-- > 0;) {
        size_t size = s->of_names[i].size;
        if ((!strncmp(role, s->of_names[i].name, size) && !strcmp(role + size, ".weight")) ||
            (!strncmp(name, s->of_names[i].name, size) && !strcmp(name + size, ".weight")))
            return s->of_names[i].type;
    }
    bool experts = strstr(role, "_exps.") != NULL;
    if (!strcmp(role,
                "ffn_gate_inp.weight")) /* small, and a near tie of it turns with any rounding */
        return GGUF_F32;
    if (experts && s->type_experts)
        return s->experts;
    if (!experts && s->type_matrices)
        return s->matrices;
    return mix_type(s->mix, name, (uint32_t)s->sizes.layers, (uint64_t)ne0);
}

/* Sizes that were not given are those of the model that --like names. */
static int fill_sizes(struct synth *s)
{
    const struct preset *preset = NULL;
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++)
        if (!strcmp(presets[i].name, s->like))
            preset = &presets[i];
    if (!preset)
        return wrong_use("--like %s: tiny, 20b and 120b are known", s->like);
    int64_t from[sizeof s->sizes / sizeof(int64_t)], to[sizeof s->sizes / sizeof(int64_t)];
    memcpy(from, &preset->sizes, sizeof from);
    memcpy(to, &s->sizes, sizeof to);
    for (size_t i = 0; i < sizeof to / sizeof *to; i++)
        if (!to[i])
            to[i] = from[i];
    memcpy(&s->sizes, to, sizeof to);
    return 0;
}

static int check_sizes(const struct synth *s)
{
    const struct sizes *z = &s->sizes;
    if (z->heads % z->kv_heads)
        return wrong_use("%" PRId64 " heads are no multiple of %" PRId64 " kv heads", z->heads,
                         z->kv_heads);
    if (z->head_dim % 2)
        return wrong_use("--head-dim %" PRId64 " must be even", z->head_dim);
    if (z->active > z->experts)
        return wrong_use("%" PRId64 " experts cannot be active of %" PRId64, z->active, z->experts);
    return 0;
}

/* ── tensors ───────────────────────────────────────────────────────────────────────────────── */

struct planned {
    char name[64];
    enum gguf_type type;
    uint32_t n_dims;
    uint64_t ne[3];
    double mean, deviation;
};

struct plan_list {
    struct planned *tensors; /* in the order of the file */
    size_t n;
    uint64_t bytes;
};

enum { VECTOR, MATRIX };

static void plan(const struct synth *s, struct plan_list *list, const char *name, int64_t layer,
                 int kind, double mean, double deviation, int64_t ne0, int64_t ne1, int64_t ne2)
{
    struct planned *t = &list->tensors[list->n++];
    if (layer < 0)
        snprintf(t->name, sizeof t->name, "%s", name);
    else
        snprintf(t->name, sizeof t->name, "blk.%" PRId64 ".%s", layer, name);
    t->type = kind == MATRIX ? type_of(s, t->name, ne0) : GGUF_F32;
    t->n_dims = ne2 ? 3 : ne1 ? 2 : 1;
    t->ne[0] = (uint64_t)ne0;
    t->ne[1] = ne1 ? (uint64_t)ne1 : 1;
    t->ne[2] = ne2 ? (uint64_t)ne2 : 1;
    t->mean = mean;
    t->deviation = deviation;
    if (t->ne[0] % gguf_type_block_values(t->type) == 0)
        list->bytes += gguf_row_bytes(t->type, t->ne[0]) * t->ne[1] * t->ne[2];
}

/* A matrix keeps the variance of what it is applied to: its deviation is 1/sqrt(row). Then logits
 * have a deviation of about 1, and the residual stream grows with the square root of the layers. */
static void plan_tensors(const struct synth *s, struct plan_list *list)
{
    const struct sizes *z = &s->sizes;
    int64_t q = z->heads * z->head_dim, kv = z->kv_heads * z->head_dim;
    double by_hidden = 1 / sqrt((double)z->hidden), by_q = 1 / sqrt((double)q),
           by_ffn = 1 / sqrt((double)z->expert_ffn);
    list->tensors = base_alloc((size_t)z->layers * 19 + 3, sizeof *list->tensors);

    plan(s, list, "token_embd.weight", -1, MATRIX, 0, 1, z->hidden, z->vocabulary, 0);
    plan(s, list, "output.weight", -1, MATRIX, 0, by_hidden, z->hidden, z->vocabulary, 0);
    plan(s, list, "output_norm.weight", -1, VECTOR, 1, 0.1, z->hidden, 0, 0);
    for (int64_t i = 0; i < z->layers; i++) {
        plan(s, list, "attn_norm.weight", i, VECTOR, 1, 0.1, z->hidden, 0, 0);
        plan(s, list, "attn_q.weight", i, MATRIX, 0, by_hidden, z->hidden, q, 0);
        plan(s, list, "attn_q.bias", i, VECTOR, 0, 0.1, q, 0, 0);
        plan(s, list, "attn_k.weight", i, MATRIX, 0, by_hidden, z->hidden, kv, 0);
        plan(s, list, "attn_k.bias", i, VECTOR, 0, 0.1, kv, 0, 0);
        plan(s, list, "attn_v.weight", i, MATRIX, 0, by_hidden, z->hidden, kv, 0);
        plan(s, list, "attn_v.bias", i, VECTOR, 0, 0.1, kv, 0, 0);
        plan(s, list, "attn_output.weight", i, MATRIX, 0, by_q, q, z->hidden, 0);
        plan(s, list, "attn_output.bias", i, VECTOR, 0, 0.1, z->hidden, 0, 0);
        plan(s, list, "attn_sinks.weight", i, VECTOR, 0, 1, z->heads, 0, 0);
        plan(s, list, "post_attention_norm.weight", i, VECTOR, 1, 0.1, z->hidden, 0, 0);
        plan(s, list, "ffn_gate_inp.weight", i, MATRIX, 0, by_hidden, z->hidden, z->experts, 0);
        plan(s, list, "ffn_gate_inp.bias", i, VECTOR, 0, 0.1, z->experts, 0, 0);
        plan(s, list, "ffn_gate_exps.weight", i, MATRIX, 0, by_hidden, z->hidden, z->expert_ffn,
             z->experts);
        plan(s, list, "ffn_gate_exps.bias", i, VECTOR, 0, 0.1, z->expert_ffn, z->experts, 0);
        plan(s, list, "ffn_up_exps.weight", i, MATRIX, 0, by_hidden, z->hidden, z->expert_ffn,
             z->experts);
        plan(s, list, "ffn_up_exps.bias", i, VECTOR, 0, 0.1, z->expert_ffn, z->experts, 0);
        plan(s, list, "ffn_down_exps.weight", i, MATRIX, 0, by_ffn, z->expert_ffn, z->hidden,
             z->experts);
        plan(s, list, "ffn_down_exps.bias", i, VECTOR, 0, 0.1, z->hidden, z->experts, 0);
    }
}

/* Rows are whole blocks. */
static int check_rows(const struct plan_list *list)
{
    for (size_t i = 0; i < list->n; i++) {
        const struct planned *t = &list->tensors[i];
        uint32_t block = gguf_type_block_values(t->type);
        if (t->ne[0] % block)
            return wrong_use("%s has rows of %" PRIu64 " values, no multiple of %" PRIu32
                             ", the block of %s: give another size, or another type",
                             t->name, t->ne[0], block, gguf_type_name(t->type));
    }
    return 0;
}

/* ── keys ──────────────────────────────────────────────────────────────────────────────────── */

static uint32_t file_type_of(enum gguf_type experts)
{
    switch (experts) {
    case GGUF_F32: return 0;
    case GGUF_F16: return 1;
    case GGUF_Q8_0: return 7;
    case GGUF_BF16: return 32;
    default: return 38;
    }
}

static void declare_keys(const struct synth *s, const struct synth_vocabulary *v,
                         struct gguf_writer *w)
{
    static const char chat_template[] =
        "{%- for message in messages -%}<|start|>{{ message.role }}<|message|>{{ message.content }}"
        "<|end|>{%- endfor -%}{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}";
    const struct sizes *z = &s->sizes;
    const struct gguf_string tags[] = {{"text-generation", 15}};
    char name[64];
    snprintf(name, sizeof name, "Random weights, seed %" PRId64, s->seed);
    gguf_writer_string(w, "general.architecture", "gpt-oss");
    gguf_writer_string(w, "general.type", "model");
    gguf_writer_string(w, "general.name", name);
    gguf_writer_string(w, "general.basename", "gpt-oss");
    gguf_writer_string(w, "general.size_label", s->like);
    gguf_writer_string(w, "general.license", "apache-2.0");
    gguf_writer_strings(w, "general.tags", tags, 1);
    gguf_writer_u32(w, "gpt-oss.block_count", (uint32_t)z->layers);
    gguf_writer_u32(w, "gpt-oss.context_length", (uint32_t)z->context);
    gguf_writer_u32(w, "gpt-oss.embedding_length", (uint32_t)z->hidden);
    gguf_writer_u32(w, "gpt-oss.feed_forward_length", (uint32_t)z->expert_ffn);
    gguf_writer_u32(w, "gpt-oss.attention.head_count", (uint32_t)z->heads);
    gguf_writer_u32(w, "gpt-oss.attention.head_count_kv", (uint32_t)z->kv_heads);
    gguf_writer_f32(w, "gpt-oss.rope.freq_base", 150000);
    gguf_writer_f32(w, "gpt-oss.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_writer_u32(w, "gpt-oss.expert_count", (uint32_t)z->experts);
    gguf_writer_u32(w, "gpt-oss.expert_used_count", (uint32_t)z->active);
    gguf_writer_u32(w, "gpt-oss.attention.key_length", (uint32_t)z->head_dim);
    gguf_writer_u32(w, "gpt-oss.attention.value_length", (uint32_t)z->head_dim);
    gguf_writer_u32(w, "gpt-oss.attention.sliding_window", (uint32_t)z->window);
    gguf_writer_u32(w, "gpt-oss.expert_feed_forward_length", (uint32_t)z->expert_ffn);
    gguf_writer_string(w, "gpt-oss.rope.scaling.type", "yarn");
    gguf_writer_f32(w, "gpt-oss.rope.scaling.factor", 32);
    gguf_writer_u32(w, "gpt-oss.rope.scaling.original_context_length", 4096);
    gguf_writer_string(w, "tokenizer.ggml.model", "gpt2");
    gguf_writer_string(w, "tokenizer.ggml.pre", "gpt-4o");
    gguf_writer_strings(w, "tokenizer.ggml.tokens", v->tokens, v->size);
    gguf_writer_i32s(w, "tokenizer.ggml.token_type", v->types, v->size);
    gguf_writer_strings(w, "tokenizer.ggml.merges", v->merges, v->n_merges);
    gguf_writer_u32(w, "tokenizer.ggml.bos_token_id", v->bos);
    gguf_writer_u32(w, "tokenizer.ggml.eos_token_id", v->eos);
    gguf_writer_u32(w, "tokenizer.ggml.padding_token_id", v->padding);
    gguf_writer_string(w, "tokenizer.chat_template", chat_template);
    gguf_writer_u32(w, "general.quantization_version", 2);
    gguf_writer_u32(w, "general.file_type",
                    s->type_experts ? file_type_of(s->experts) : s->mix->file_type);
}

/* ── the file ──────────────────────────────────────────────────────────────────────────────── */

/* Free bytes where `path` is to be; all there can be where nobody can tell. */
static uint64_t free_bytes(const char *path)
{
    struct text folder = {0};
    struct statvfs about;
    const char *slash = strrchr(path, '/');
    if (slash)
        text_add(&folder, path, (size_t)(slash - path + 1));
    else
        text_print(&folder, ".");
    uint64_t left = UINT64_MAX;
    if (!statvfs(folder.bytes, &about))
        left = (uint64_t)about.f_bavail * about.f_frsize;
    text_free(&folder);
    return left;
}

static void progress(const char *path, uint64_t written, uint64_t total, double since)
{
    char done[32], all[32], rate[32];
    double seconds = clock_seconds() - since;
    text_bytes(rate, (uint64_t)((double)written / (seconds > 0 ? seconds : 1)));
    fprintf(stderr, "\r\033[K%s: %s of %s, %s/s", path, text_bytes(done, written),
            text_bytes(all, total), rate);
}

static int write_tensors(const struct synth *s, const struct plan_list *list, struct gguf_writer *w,
                         char *err, size_t err_size)
{
    struct synth_data *data = synth_data_create((uint64_t)s->seed);
    bool terminal = isatty(STDERR_FILENO);
    double start = clock_seconds(), shown = start;
    uint64_t written = 0;
    int status = 0;
    for (size_t i = 0; i < list->n && !status; i++) {
        const struct planned *t = &list->tensors[i];
        uint64_t values = t->ne[0] * t->ne[1] * t->ne[2];
        status = synth_data_write(data, w, t->type, values, t->mean, t->deviation, err, err_size);
        written += gguf_row_bytes(t->type, t->ne[0]) * t->ne[1] * t->ne[2];
        if (terminal && clock_seconds() - shown > 0.2) {
            shown = clock_seconds();
            progress(s->path, written, list->bytes, start);
        }
    }
    if (terminal)
        fprintf(stderr, "\r\033[K");
    synth_data_destroy(data);
    return status;
}

static int write_file(const struct synth *s, const struct plan_list *list, char *err,
                      size_t err_size)
{
    struct gguf_writer *w;
    if (gguf_writer_create(&w, s->path, err, err_size))
        return -1;
    struct synth_vocabulary vocabulary;
    synth_vocabulary_create(&vocabulary, (uint32_t)s->sizes.vocabulary);
    declare_keys(s, &vocabulary, w);
    synth_vocabulary_free(&vocabulary);
    for (size_t i = 0; i < list->n; i++) {
        const struct planned *t = &list->tensors[i];
        gguf_writer_tensor(w, t->name, t->type, t->n_dims, t->ne);
    }
    int status = gguf_writer_begin(w, err, err_size) || write_tensors(s, list, w, err, err_size) ||
                 gguf_writer_finish(w, err, err_size);
    gguf_writer_destroy(w);
    return status ? -1 : 0;
}

/* What was written is what we would run. */
static int check_file(const char *path, char *err, size_t err_size)
{
    struct gguf_file *file;
    struct gguf_model *model;
    if (gguf_open(&file, path, err, err_size))
        return -1;
    int status = gguf_model_create(&model, file, err, err_size);
    gguf_model_destroy(model);
    gguf_close(file);
    return status;
}

static int run(const struct synth *s)
{
    struct plan_list list = {0};
    char err[512], need[32], there[32], seconds[32];
    int status = EXIT_FAILED;
    plan_tensors(s, &list);
    if (check_rows(&list)) {
        free(list.tensors);
        return EXIT_USAGE;
    }
    uint64_t left = free_bytes(s->path);
    double start = clock_seconds();
    if (left < list.bytes) {
        fprintf(stderr, "gptoss-gguf: %s: %s are needed and %s are free: choose another disk\n",
                s->path, text_bytes(need, list.bytes), text_bytes(there, left));
    } else if (write_file(s, &list, err, sizeof err) || check_file(s->path, err, sizeof err)) {
        fprintf(stderr, "gptoss-gguf: %s\n", err);
    } else {
        double took = clock_seconds() - start;
        printf("%s: %s in %s (%s/s)\n", s->path, text_bytes(need, list.bytes),
               text_seconds(seconds, took),
               text_bytes(there, (uint64_t)((double)list.bytes / (took > 0 ? took : 1))));
        status = EXIT_DONE;
    }
    free(list.tensors);
    return status;
}

int tools_synth(int argc, char **argv)
{
    struct synth s = {.like = "tiny", .mix_label = "mxfp4", .seed = 1};
    struct sizes *z = &s.sizes;
#define SIZE(option, field, words, least, most)                                                    \
    {                                                                                              \
        .type = CLI_INT, .name = option, .value = "N", .text = words, .out = &z->field,            \
        .min = least, .max = most                                                                  \
    }
    const struct cli_option options[] = {
        {.type = CLI_STRING,
         .name = "like",
         .value = "NAME",
         .fallback = "tiny",
         .out = &s.like,
         .text = "sizes of a known model: tiny, 20b or 120b; the options below change them"},
        {.type = CLI_INT,
         .name = "seed",
         .value = "N",
         .fallback = "1",
         .out = &s.seed,
         .text = "same seed and sizes, same file",
         .min = 0,
         .max = 9e15},
        {.type = CLI_GROUP, .text = "sizes"},
        SIZE("layers", layers, "layers", 1, 10000),
        SIZE("hidden", hidden, "values of the residual stream", 1, 1 << 20),
        SIZE("heads", heads, "query heads", 1, 4096),
        SIZE("kv-heads", kv_heads, "key and value heads; heads must be a multiple", 1, 4096),
        SIZE("head-dim", head_dim, "values of a head, even", 2, 4096),
        SIZE("experts", experts, "experts of a layer", 1, 65536),
        SIZE("active", active, "experts that each token uses", 1, 65536),
        SIZE("expert-ffn", expert_ffn, "inner values of an expert", 1, 1 << 20),
        SIZE("window", window, "positions that a sliding layer sees", 1, 1 << 30),
        SIZE("vocabulary", vocabulary, "tokens", SYNTH_VOCABULARY_MIN, 1 << 24),
        SIZE("context", context, "positions that the model says it was made for", 1, 1 << 30),
        {.type = CLI_GROUP,
         .text = "types (f32, f16, bf16, q8_0, mxfp4, q4_0, q4_1, q5_0, q5_1, q2_k … q6_k)"},
        {.type = CLI_STRING,
         .name = "mix",
         .value = "LABEL",
         .fallback = "mxfp4",
         .out = &s.mix_label,
         .text = "each tensor as in published files of this label: mxfp4, f16, q8_0, q4_k_m, …"},
        {.type = CLI_STRING,
         .name = "type-experts",
         .value = "TYPE",
         .out = &s.type_experts,
         .text = "of the experts' matrices, whatever the mix"},
        {.type = CLI_STRING,
         .name = "type-matrices",
         .value = "TYPE",
         .out = &s.type_matrices,
         .text = "of attention, embedding and output matrices, whatever the mix"},
        {.type = CLI_LIST,
         .name = "type",
         .value = "NAME=TYPE",
         .out = &s.type_list,
         .text =
             "of one tensor, such as attn_output=q4_k or blk.3.attn_v=f16; several may be given"},
    };
#undef SIZE
    const struct cli cli = {
        .program = "gptoss-gguf synth",
        .summary =
            "Writes a gpt-oss model of random weights: any sizes, valid in every respect, for "
            "tests and measurements.",
        .usage = "gptoss-gguf synth [OPTION…] OUT",
        .examples =
            "  gptoss-gguf synth --like 20b /data/random-20b.gguf      12 GB, as published\n"
            "  gptoss-gguf synth --like 20b --layers 4 small.gguf      4 layers of it\n"
            "  gptoss-gguf synth --mix q4_k_m --like 20b q4.gguf       the types of a Q4_K_M file\n"
            "  gptoss-gguf synth --mix q4_k_m --type-experts mxfp4 --type output=f16 mixed.gguf\n"
            "  gptoss-gguf synth --hidden 320 --layers 5 --heads 10 --kv-heads 2 \\\n"
            "      --experts 12 --active 3 --window 37 odd.gguf\n",
        .notes =
            "The file appears under its name when it is complete (until then: OUT.part). Weights "
            "are scaled so that activations stay finite and logits have a deviation of about 1. "
            "The tokenizer takes any text; its longer tokens are made-up words.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .exit_codes = 1u << EXIT_DONE | 1u << EXIT_FAILED | 1u << EXIT_USAGE,
    };
    char **args;
    int n_args;
    int status = cli_parse(&cli, argc, argv, &args, &n_args);
    if (status)
        return status > 0 ? EXIT_DONE : EXIT_USAGE;
    if (n_args != 1)
        return wrong_use("give one name for the file to write, not %d", n_args);
    s.path = args[0];
    if (!(status = find_types(&s)) && !(status = fill_sizes(&s)) && !(status = check_sizes(&s)))
        status = run(&s);
    free(s.of_names);
    free(s.type_list.items);
    return status;
}
