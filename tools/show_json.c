/*
 * One JSON object for a file. Numbers beyond 2^53 keep all their digits.
 */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "tools/show.h"

#define ELEMENTS_SHOWN 8

static void string(struct text *out, const char *text)
{
    text_json_string(out, text, strlen(text));
}

static void number(struct text *out, double value, int digits)
{
    if (isfinite(value))
        text_print(out, "%.*g", digits, value);
    else
        text_print(out, "null"); /* JSON has no word for it */
}

/* Element i of a key that holds no strings. */
static void element(struct text *out, const struct gguf_key *key, uint64_t i)
{
    if (key->element == GGUF_VALUE_F32) {
        float value;
        memcpy(&value, key->data + 4 * i, 4);
        number(out, (double)value, 9);
    } else if (key->element == GGUF_VALUE_F64) {
        double value;
        memcpy(&value, key->data + 8 * i, 8);
        number(out, value, 17);
    } else if (key->element == GGUF_VALUE_U64) {
        uint64_t value;
        memcpy(&value, key->data + 8 * i, 8);
        text_print(out, "%" PRIu64, value);
    } else if (key->element == GGUF_VALUE_BOOL) {
        text_print(out, gguf_integer_at(key, i) ? "true" : "false");
    } else {
        text_print(out, "%" PRId64, gguf_integer_at(key, i));
    }
}

static void key(struct text *out, const struct gguf_key *k, bool whole)
{
    bool array = k->type == GGUF_VALUE_ARRAY;
    uint64_t shown = array && !whole && k->count > ELEMENTS_SHOWN ? ELEMENTS_SHOWN : k->count;
    uint64_t cursor = 0;
    text_print(out, "{\"name\": ");
    text_json_string(out, k->name.bytes, (size_t)k->name.size);
    text_print(out, ", \"type\": \"%s\"", gguf_value_type_name(k->type));
    if (array)
        text_print(out, ", \"element\": \"%s\", \"count\": %" PRIu64 ", \"complete\": %s",
                   gguf_value_type_name(k->element), k->count,
                   shown == k->count ? "true" : "false");
    text_print(out, ", \"value\": %s", array ? "[" : "");
    for (uint64_t i = 0; i < shown; i++) {
        if (i)
            text_print(out, ", ");
        if (k->element == GGUF_VALUE_STRING) {
            struct gguf_string text = gguf_next_string(k, &cursor);
            text_json_string(out, text.bytes, (size_t)text.size);
        } else {
            element(out, k, i);
        }
    }
    text_print(out, "%s}", array ? "]" : "");
}

static void tensor(struct text *out, const struct gguf_tensor *t)
{
    text_print(out, "{\"name\": ");
    string(out, t->name);
    text_print(out, ", \"type\": \"%s\", \"ne\": [", gguf_type_name(t->type));
    for (uint32_t d = 0; d < t->n_dims; d++)
        text_print(out, "%s%" PRIu64, d ? ", " : "", t->ne[d]);
    text_print(out, "], \"bytes\": %" PRIu64 ", \"part\": %" PRIu32 ", \"offset\": %" PRIu64 "}",
               t->bytes, t->part, t->offset);
}

static void model(struct text *out, const struct gguf_model *m)
{
    text_print(out,
               "{\"layers\": %" PRIu32 ", \"hidden\": %" PRIu32 ", \"heads\": %" PRIu32
               ", \"kv_heads\": %" PRIu32 ", \"head_dim\": %" PRIu32 ", \"experts\": %" PRIu32
               ", \"active\": %" PRIu32 ", \"expert_ffn\": %" PRIu32 ", \"vocabulary\": %" PRIu32
               ", \"window\": %" PRIu32 ", \"context\": %" PRIu32 ", \"yarn_context\": %" PRIu32,
               m->n_layers, m->hidden, m->heads, m->kv_heads, m->head_dim, m->experts, m->active,
               m->expert_ffn, m->vocabulary, m->window, m->context, m->yarn_context);
    const struct {
        const char *name;
        float value;
    } floats[] = {{"norm_eps", m->norm_eps},
                  {"rope_theta", m->rope_theta},
                  {"yarn_factor", m->yarn_factor},
                  {"yarn_beta_fast", m->yarn_beta_fast},
                  {"yarn_beta_slow", m->yarn_beta_slow}};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) {
        text_print(out, ", \"%s\": ", floats[i].name);
        number(out, (double)floats[i].value, 9);
    }
    text_print(out, ", \"tied\": %s, \"bytes\": %" PRIu64 "}",
               m->output == m->embedding ? "true" : "false", m->bytes);
}

static void shares(struct text *out, const char *name, const struct share *list, size_t n)
{
    text_print(out, ",\n\"%s\": [", name);
    for (size_t i = 0; i < n; i++) {
        text_print(out, "%s\n{\"name\": ", i ? "," : "");
        string(out, list[i].name);
        text_print(out, ", \"tensors\": %" PRIu64 ", \"bytes\": %" PRIu64 "}", list[i].tensors,
                   list[i].bytes);
    }
    text_print(out, "]");
}

void show_json(struct text *out, const struct show *show)
{
    const struct gguf_file *file = show->file;
    text_print(out, "{\"path\": ");
    string(out, gguf_path(file));
    text_print(out,
               ", \"parts\": %" PRIu32 ", \"version\": %" PRIu32 ", \"alignment\": %" PRIu64
               ", \"bytes\": %" PRIu64 ", \"header_bytes\": %" PRIu64
               ", \"header_digest\": \"%016" PRIx64 "\"",
               gguf_n_parts(file), gguf_version(file), gguf_alignment(file), gguf_file_bytes(file),
               gguf_header_bytes(file), gguf_header_digest(file));
    text_print(out, ",\n\"keys\": [");
    for (uint64_t i = 0; i < gguf_n_keys(file); i++) {
        text_print(out, i ? ",\n" : "\n");
        key(out, gguf_key_at(file, i), show->whole);
    }
    text_print(out, "],\n\"tensors\": [");
    for (uint64_t i = 0; i < gguf_n_tensors(file); i++) {
        text_print(out, i ? ",\n" : "\n");
        tensor(out, gguf_tensor_at(file, i));
    }
    text_print(out, "]");
    shares(out, "kinds", show->kinds, show->n_kinds);
    shares(out, "types", show->types, show->n_types);

    const struct gguf_model *m = show->model;
    text_print(out, ",\n\"model\": ");
    if (m)
        model(out, m);
    else
        text_print(out, "null");
    text_print(out, ",\n\"layers\": [");
    for (uint32_t i = 0; m && i < m->n_layers; i++)
        text_print(out, "%s\n{\"sliding\": %s, \"bytes\": %" PRIu64 "}", i ? "," : "",
                   m->layers[i].sliding ? "true" : "false", m->layers[i].bytes);
    text_print(out, "],\n\"refused\": ");
    if (show->refused)
        string(out, show->refused);
    else
        text_print(out, "null");
    text_print(out, "}\n");
}
