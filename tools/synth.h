/*
 * synth: a gpt-oss file of random weights. synth.c has the options and the order of things,
 * synth_vocabulary.c the tokens, synth_data.c the numbers.
 */
#ifndef GPTOSS_TOOLS_SYNTH_H
#define GPTOSS_TOOLS_SYNTH_H

#include "base/base.h"
#include "gguf/gguf.h"

/* ── tokens ────────────────────────────────────────────────────────────────────────────────── */

#define SYNTH_VOCABULARY_MIN 300 /* single bytes, special tokens, a few merges */

struct synth_vocabulary {
    uint32_t size;
    struct text pool;
    struct gguf_string *tokens; /* [size], in the pool */
    int32_t *types;             /* [size] */
    struct gguf_string *merges; /* [n_merges], in the pool */
    uint32_t n_merges;
    uint32_t bos, eos, padding;
};

void synth_vocabulary_create(struct synth_vocabulary *v, uint32_t size);
void synth_vocabulary_free(struct synth_vocabulary *v);

/* ── numbers ───────────────────────────────────────────────────────────────────────────────── */

struct synth_data;
struct synth_data *synth_data_create(uint64_t seed);
void synth_data_destroy(struct synth_data *data);
/* Writes a tensor of `values` normal numbers of this mean and deviation. */
int synth_data_write(struct synth_data *data, struct gguf_writer *w, enum gguf_type type,
                     uint64_t values, double mean, double deviation, char *err, size_t err_size);

#endif
