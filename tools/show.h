/*
 * show: what a model file is. show.c prints for people, show_json.c for programs, show_model.c counts.
 */
#ifndef GPTOSS_TOOLS_SHOW_H
#define GPTOSS_TOOLS_SHOW_H

#include "base/base.h"
#include "gguf/gguf.h"

/* Tensors of one kind or one type, together. */
struct share {
    const char *name;
    uint64_t tensors, bytes;
};

#define SHARES_MAX 64

struct show {
    const struct gguf_file *file;
    const struct gguf_model *model; /* NULL: gptoss does not run it, and `refused` says why */
    const char *refused;
    bool whole; /* long arrays and strings in full */
    struct share kinds[SHARES_MAX], types[SHARES_MAX];
    size_t n_kinds, n_types;
};

/* Fills kinds and types; those without a tensor are left out. */
void show_count(struct show *show);
/* "MXFP4", or "Q8_0, BF16, F32": the types of a layer's attention matrices, or of its experts. */
void show_layer_types(struct text *out, const struct gguf_layer *layer, bool experts);

void show_json(struct text *out, const struct show *show);

#endif
