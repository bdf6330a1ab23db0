/*
 * mix: which type each tensor of a file of some label has ("Q4_K_M"), as llama.cpp's quantiser chooses.
 */
#ifndef GPTOSS_TOOLS_MIX_H
#define GPTOSS_TOOLS_MIX_H

#include "base/base.h"
#include "gguf/gguf.h"

struct mix {
    const char *label;
    uint32_t file_type; /* general.file_type */
    enum gguf_type base;
    bool plain; /* every matrix is of the base type */
};

/* By its label in any case, "mxfp4" for MXFP4_MOE; NULL: none. */
const struct mix *mix_find(const char *label);
/* "mxfp4, f16, …" for a sentence. */
void mix_labels(struct text *out);

/* The type of a tensor by its name, in a model of so many layers; rows of `ne0` values. Where a K-quant
 * cannot hold such rows, the type that llama.cpp takes instead. Vectors, router and biases: F32. */
enum gguf_type mix_type(const struct mix *mix, const char *name, uint32_t n_layers, uint64_t ne0);

/* The type of a K-quant's stead if rows of ne0 values are no whole blocks; the type itself otherwise. */
enum gguf_type mix_fallback(enum gguf_type type, uint64_t ne0);

/* A type that can be written, by its name in any case. −1: none. */
int mix_type_find(const char *name, enum gguf_type *out);
void mix_types(struct text *out);

/* "blk.12.ffn_up_exps.weight" → 12 and "ffn_up_exps.weight"; without a layer 0 and the name. */
const char *mix_role(const char *name, uint32_t *layer);

#endif
