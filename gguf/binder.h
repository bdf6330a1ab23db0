/*
 * binder: a file on its way to be a model. sizes.c reads the keys, weights.c finds the tensors; the
 * same code stops at the first thing that is wrong (gguf_model_create) or tells all of them
 * (gguf_check_model).
 */
#ifndef GPTOSS_GGUF_BINDER_H
#define GPTOSS_GGUF_BINDER_H

#include "gguf/private.h"

#define SENTENCE_MAX 512

struct binder {
    struct gguf_model *model;
    const struct gguf_file *file;
    char *err;
    size_t err_size;
    gguf_found found; /* NULL: stop at the first */
    void *arg;
    uint64_t findings;
};

/* Says what is wrong; −1. */
int gguf_refuse(struct binder *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Whether a step that returned `status` is the last one. */
static inline bool gguf_stops(const struct binder *b, int status)
{
    return status && !b->found;
}

/* Sizes that are wrong or missing stay 0. */
int gguf_read_sizes(struct binder *b);
/* Needs the sizes; those that are 0 are not compared. */
int gguf_bind_tensors(struct binder *b);

/* 0; 1: the key is not there, *out is left alone; −1: another type, or beyond the bounds. */
int gguf_size_if_there(struct binder *b, const char *name, uint32_t min, uint32_t max,
                       uint32_t *out);

#endif
