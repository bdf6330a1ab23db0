/*
 * weights: the map of a gpt-oss file, one row a tensor. docs/weight-mapping.md is the same table for
 * people; tests/test_gguf_weights.c holds the two together. The order of the rows is the order in
 * which tensors are looked up, checked and loaded.
 */
#ifndef GPTOSS_GGUF_WEIGHTS_H
#define GPTOSS_GGUF_WEIGHTS_H

#include "gguf/private.h"

/* What a dimension is. */
enum gguf_extent {
    EXTENT_ONE,
    EXTENT_HIDDEN,
    EXTENT_Q,   /* heads · head_dim */
    EXTENT_KV,  /* kv_heads · head_dim */
    EXTENT_QKV, /* all three, one below the other */
    EXTENT_HEADS,
    EXTENT_EXPERTS,
    EXTENT_FFN, /* expert_ffn */
    EXTENT_VOCABULARY,
    N_EXTENTS,
};

enum gguf_absence {
    ABSENT_REFUSED,
    ABSENT_TIED,  /* output.weight: the embedding takes its place */
    ABSENT_FUSED, /* attn_q, attn_k, attn_v where attn_qkv is there */
    ABSENT_SPLIT, /* attn_qkv where the three are there */
};

struct gguf_weight {
    const char *name; /* "blk.N.…": one in each layer */
    const char *role;
    enum gguf_extent ne[3]; /* innermost first */
    bool matrix;            /* any type that kernels compute with; otherwise F32 alone */
    enum gguf_absence absence;
    size_t at; /* of its pointer in struct gguf_layer or struct gguf_model; NOWHERE: of no one */
};

#define NOWHERE SIZE_MAX

extern const struct gguf_weight gguf_weights[];
extern const size_t gguf_n_weights;

const char *gguf_extent_name(enum gguf_extent extent);
const char *gguf_absence_text(enum gguf_absence absence);
/* 0: not known, because a key is wrong. */
uint64_t gguf_extent_of(const struct gguf_model *model, enum gguf_extent extent);
/* Whether the row is of each layer; its name in layer i. */
bool gguf_weight_of_layer(const struct gguf_weight *weight);
void gguf_weight_name(const struct gguf_weight *weight, uint32_t layer, char name[64]);

#endif
