/*
 * Tensors counted by what they are for, and by the type of their data.
 */
#include <string.h>

#include "tools/show.h"

static bool begins(const char *name, const char *with)
{
    return strncmp(name, with, strlen(with)) == 0;
}

static bool ends(const char *name, const char *with)
{
    size_t size = strlen(name), n = strlen(with);
    return size >= n && !strcmp(name + size - n, with);
}

/* By name alone, so that files of other architectures can be shown too. */
static const char *kind_of(const char *name)
{
    if (begins(name, "token_embd."))
        return "embedding";
    if (begins(name, "output."))
        return "output";
    if (ends(name, "_exps.weight"))
        return "experts";
    if (ends(name, "_exps.bias"))
        return "expert biases";
    if (strstr(name, ".ffn_gate_inp."))
        return "router";
    if (strstr(name, "norm."))
        return "norms";
    if (strstr(name, ".attn_sinks."))
        return "sinks";
    if (strstr(name, ".attn_"))
        return ends(name, ".bias") ? "attention biases" : "attention";
    return "other";
}

static void count(struct share *shares, size_t *n, const char *name, uint64_t bytes)
{
    size_t i = 0;
    while (i < *n && strcmp(shares[i].name, name) != 0)
        i++;
    if (i == *n) {
        if (*n == SHARES_MAX)
            return;
        shares[(*n)++] = (struct share){.name = name};
    }
    shares[i].tensors++;
    shares[i].bytes += bytes;
}

static void sort(struct share *shares, size_t n)
{
    for (size_t i = 1; i < n; i++)
        for (size_t k = i; k > 0 && shares[k].bytes > shares[k - 1].bytes; k--) {
            struct share swap = shares[k];
            shares[k] = shares[k - 1];
            shares[k - 1] = swap;
        }
}

void show_count(struct show *show)
{
    for (uint64_t i = 0; i < gguf_n_tensors(show->file); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(show->file, i);
        count(show->kinds, &show->n_kinds, kind_of(t->name), t->bytes);
        count(show->types, &show->n_types, gguf_type_name(t->type), t->bytes);
    }
    sort(show->kinds, show->n_kinds);
    sort(show->types, show->n_types);
}

void show_layer_types(struct text *out, const struct gguf_layer *layer, bool experts)
{
    const struct gguf_tensor *attention[] = {layer->attn_q.weight, layer->attn_k.weight,
                                             layer->attn_v.weight, layer->attn_out.weight};
    const struct gguf_tensor *expert[] = {layer->gate.weight, layer->up.weight, layer->down.weight};
    const struct gguf_tensor **tensors = experts ? expert : attention;
    size_t n = experts ? 3 : 4;
    for (size_t i = 0; i < n; i++) {
        bool before = false;
        for (size_t k = 0; k < i; k++)
            before |= tensors[k]->type == tensors[i]->type;
        if (!before)
            text_print(out, "%s%s", out->size ? ", " : "", gguf_type_name(tensors[i]->type));
    }
}
