/*
 * plan: which layers run where, and what that takes. Pure: numbers in, numbers and text out.
 *
 *     struct plan *plan;
 *     if (plan_create(&plan, model, &options, err, n)) … err says why it cannot be …
 *     plan->stages[s].layer_first …
 *     fputs(plan_table(plan, …), stdout)
 *
 * Layers are cut into consecutive ranges so that the slowest stage is as fast as can be: by what steps
 * in which all sequences decode cost it (cost.h: weights and KV read, arithmetic, rows of the head, at
 * the rates of its rank). The head is cut by vocabulary over all stages, in proportion to their
 * bandwidth. Ranks that share a device share its memory.
 */
#ifndef GPTOSS_PLAN_H
#define GPTOSS_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gguf/gguf.h"
#include "plan/cost.h"

enum plan_kv_type { PLAN_KV_F32, PLAN_KV_F16, PLAN_KV_BF16 };
/* the stages that hold rows of the output matrix */
/* Which stages share the output matrix. AUTO: all, but GPUs leave it to the last one: the rows and replies of
 * a cut head pass the hosts, which takes longer than a GPU reads the matrix. */
enum plan_head { PLAN_HEAD_AUTO, PLAN_HEAD_ALL, PLAN_HEAD_LAST };

const char *plan_head_name(enum plan_head head); /* auto, all, last */
/* 0; −1: there is no such name. */
int plan_head_of(const char *name, enum plan_head *head);

struct plan_rank {
    const char *host;           /* lent while the plan lives; NULL: unknown */
    const char *device;         /* lent */
    const char *device_uuid;    /* ranks with one uuid share memory; NULL: its own */
    uint64_t memory_free_bytes; /* 0: unknown, never refused */
    double bandwidth;           /* bytes a second; 0: unknown, taken as equal */
    double
        flops; /* operations a second in large products; 0: unknown, in proportion to bandwidth */
    bool
        weights_in_place; /* weights stay in the mapped file (cpu): they need no memory of their own */
};

struct plan_options {
    uint32_t n_ranks;
    const struct plan_rank *ranks; /* [n_ranks]; NULL: unknown ranks */
    const uint32_t *layers;        /* [n_ranks], given by hand; NULL: computed */
    enum plan_head head;
    uint32_t context;   /* positions of a sequence; 0: min(the model's, 8192) */
    uint32_t sequences; /* at a time; 0: 16, on GPUs up to 256 a stage */
    enum plan_kv_type kv_type;
    uint32_t kv_tokens;        /* positions of all sequences together, at most; 0: no bound */
    uint32_t step_tokens;      /* 0: 512 */
    uint32_t vocabulary_limit; /* 0: the model's rows */
    bool fast;                 /* CPU ranks hold int8 activations, not float ones */
};

struct plan_stage {
    uint32_t layer_first, layer_count;
    uint32_t full_layers, window_layers;
    uint32_t head_first, head_count;
    uint64_t weights_bytes;
    uint64_t kv_bytes;
    uint64_t activation_bytes;
    uint64_t total_bytes;
    uint64_t memory_bytes; /* its share of the device's free memory; 0: unknown */
    double token_bytes;    /* read for one token at batch 1, without KV */
    double token_seconds;  /* expected; 0: bandwidth unknown */
};

struct plan {
    uint32_t n_stages;
    struct plan_stage *stages; /* [n_stages] */
    uint32_t *head_counts;     /* [n_stages] rows of the output matrix on each, in order */
    uint32_t head_jobs; /* portions of samples that pass a cut head at a time; 0: it is whole */
    uint32_t context, sequences;
    enum plan_kv_type kv_type;
    uint32_t block_tokens;
    uint32_t full_blocks;   /* pool sizes, the same on every stage; may be fewer than */
    uint32_t window_blocks; /* sequences · context needs: then sequences wait for blocks */
    uint32_t window_each;   /* blocks of the window pool that one sequence needs */
    uint32_t step_tokens, step_rows, step_samples;
    uint32_t steps_in_flight;
    uint32_t lanes; /* of each stage: steps_in_flight */
    uint32_t vocabulary_limit;
};

/* 0; -1: cannot be (more stages than layers, layers that do not add up, …); 1: does not fit, *out is
 * the plan all the same, for its table, and err says what would fit. */
int plan_create(struct plan **out, const struct gguf_model *model,
                const struct plan_options *options, char *err, size_t err_size);
void plan_destroy(struct plan *plan); /* NULL is fine */

/* Bytes of the KV cache of one block, all layers of the stage's kind together: the formula that
 * kernels_stage_footprint() uses too (a test holds them equal). */
uint64_t plan_kv_block_bytes(const struct gguf_model *model, enum plan_kv_type kv_type,
                             uint32_t block_tokens, uint32_t layers);

/* What a plan promises by what steps cost on its ranks, which nobody has measured: tokens a second. */
struct plan_prediction {
    double one;    /* of one sequence that decodes */
    double many;   /* of PLAN_MANY sequences for each stage */
    double prompt; /* of prompts, in steps of plan->step_tokens */
};
#define PLAN_MANY 64
/* ranks NULL: `rank` for each of them. */
void plan_predict(const struct plan *plan, const struct gguf_model *model,
                  const struct plan_rank *ranks, const struct plan_rank *rank,
                  struct plan_prediction *prediction);

/* How many sequences of one length the pools hold. */
struct plan_capacity {
    uint64_t positions; /* of the full pool */
    uint64_t sequences; /* of `length` positions, at a time */
    double all_layers;  /* as many bytes would hold so many if every layer kept every position */
    double ratio;       /* bytes of one such sequence there over here */
};
void plan_capacity(const struct plan *plan, uint32_t length, struct plan_capacity *capacity);

/* The table for people, in memory that the caller frees. */
char *plan_table(const struct plan *plan, const struct plan_rank *ranks);

#endif
