/*
 * backend.h: what a backend fills. Private to kernels/.
 *
 * The door (kernels.c) checks every argument, every shape and every step, and keeps of each slot's
 * block tables how far they reach; a backend gets only what is valid. A device and a stage are
 * structs of the backend that begin with `struct kernels` and `struct kernels_stage`.
 *
 * The cpu and reference backends are two tables of operations (host/table.h) under one driver
 * (host/). A GPU backend fills this table by itself: it may repack weights when a stage is created,
 * fuse layers, and order everything on a stream.
 */
#ifndef GPTOSS_KERNELS_BACKEND_H
#define GPTOSS_KERNELS_BACKEND_H

#include "kernels/kernels.h"
#include "kernels/ops.h"

/* A token whose logits are sampled. */
struct kernels_pick {
    const struct kernels_row *row; /* its lists of blocks are not to be read */
    uint32_t position;
    bool whole; /* its logits are all part of the reply */
};

struct kernels_backend {
    const char *name;
    int (*create)(struct kernels **out, const struct kernels_options *options, char *err,
                  size_t err_size);
    void (*destroy)(struct kernels *k);
    void (*info)(const struct kernels *k, struct kernels_info *info);

    /* Exactly what stage_create takes; -1 if the numbers overflow. */
    int (*footprint)(const struct kernels *k, const struct gguf_model *model,
                     const struct kernels_stage_options *options,
                     struct kernels_footprint *footprint);
    int (*stage_create)(struct kernels_stage **out, struct kernels *k,
                        const struct gguf_model *model, const struct kernels_stage_options *options,
                        char *err, size_t err_size);
    void (*stage_destroy)(struct kernels_stage *stage); /* waits for what runs */

    /* Both queue and return; the lane is idle (step) or has no ring call under way (ring). Where there
     * is a stream, step calls step->bring. */
    void (*step)(struct kernels_stage *stage, uint32_t lane, const struct kernels_step *step);
    void (*ring)(struct kernels_stage *stage, uint32_t lane, const uint32_t *slots, uint32_t count);
    int (*test)(struct kernels_stage *stage, uint32_t lane, char *err, size_t err_size);
    double (*busy_seconds)(const struct kernels_stage *stage);

    float *(*input)(struct kernels_stage *stage, uint32_t lane);
    float *(*output)(struct kernels_stage *stage, uint32_t lane);
    int32_t *(*sampled)(struct kernels_stage *stage, uint32_t lane);
    void *(*stream)(struct kernels_stage *stage);
    const struct kernels_sample *(*sample)(const struct kernels_stage *stage, uint32_t lane,
                                           uint32_t i);
    /* Jobs of a cut head; the slot is idle. */
    uint32_t (*head_rows)(const struct kernels_stage *stage);
    const float *(*picked)(const struct kernels_stage *stage, uint32_t lane);
    float *(*head_input)(struct kernels_stage *stage, uint32_t slot);
    void *(*head_reply)(struct kernels_stage *stage, uint32_t slot, uint32_t part);
    void (*head)(struct kernels_stage *stage, uint32_t slot, uint32_t lane,
                 const struct kernels_pick *picks, uint32_t first, uint32_t count);
    void (*merge)(struct kernels_stage *stage, uint32_t slot);
    int (*head_test)(struct kernels_stage *stage, uint32_t slot, char *err, size_t err_size);
    const float *(*logits)(const struct kernels_stage *stage, uint32_t lane, uint32_t i);

    /* The operations of kernels/ops.h. */
    int (*op_rmsnorm)(struct kernels *k, const struct kernels_op_rmsnorm *op, double *seconds);
    int (*op_linear)(struct kernels *k, const struct kernels_op_linear *op, double *seconds);
    int (*op_attention)(struct kernels *k, const struct kernels_op_attention *op, double *seconds);
    int (*op_moe)(struct kernels *k, const struct kernels_op_moe *op, double *seconds);
    int (*op_sample)(struct kernels *k, const struct kernels_op_sample *op, double *seconds);
    int (*limits)(struct kernels *k, struct kernels_limits *limits);
};

extern const struct kernels_backend kernels_backend_cpu;
extern const struct kernels_backend kernels_backend_reference;
extern const struct kernels_backend kernels_backend_cuda; /* where GPTOSS_HAVE_CUDA */

struct kernels {
    const struct kernels_backend *backend;
};

/* How far a slot's block table reaches: entries first…count−1 hold blocks, those before have ended. */
struct kernels_span {
    uint32_t first, count;
};

#define KERNELS_HEAD_ROWS_MAX 64 /* of a job, in any backend */

struct kernels_stage {
    struct kernels *k;
    const struct gguf_model *model;
    struct kernels_stage_options options;
    uint32_t table_entries;    /* of a slot in each pool: ⌈context / block_tokens⌉ */
    bool embeds;               /* holds layer 0: reads tokens */
    bool samples;              /* holds the last layer and the head, or a part of it */
    bool cut;                  /* samples, from a head that is cut: a step ends with picked rows */
    bool has_full, has_window; /* layers of each kind here; tables of the other are not looked at */

    /* The door's own, for checking; the backend does not touch them. */
    struct kernels_span *full, *window;           /* [slots] */
    struct kernels_span *undo_full, *undo_window; /* [step_rows] */
    uint64_t *seen;       /* [slots]: the last step that had a row of the slot */
    uint64_t steps;       /* checked so far */
    unsigned char *rung;  /* [lanes]: a ring call was queued since the lane was last seen idle */
    uint32_t *head_parts; /* [options.n_head_parts], our own copy */
    unsigned char *head_made; /* [head_jobs]: a job is in the slot, not merged */
};

/* What a backend makes of options when it prepares a stage; the copy of the parts is the door's. */
static inline bool kernels_is_last(const struct gguf_model *model,
                                   const struct kernels_stage_options *o)
{
    return o->layer_first + o->layer_count == model->n_layers;
}

/* Ids that may be sampled. */
static inline uint32_t kernels_ids(const struct gguf_model *model,
                                   const struct kernels_stage_options *o)
{
    return o->vocabulary_limit && o->vocabulary_limit < model->vocabulary ? o->vocabulary_limit
                                                                          : model->vocabulary;
}

static inline uint32_t kernels_slice_blocks(uint32_t head_count)
{
    return head_count / KERNELS_SLICE_BLOCK + (head_count % KERNELS_SLICE_BLOCK != 0);
}

/* A reply: of each row its blocks, of each row its list, of each whole row its logits. */
static inline uint64_t kernels_reply_tops(uint32_t head_count, uint32_t n)
{
    return (uint64_t)n * kernels_slice_blocks(head_count) * sizeof(struct kernels_slice_block);
}

static inline uint64_t kernels_reply_logits(uint32_t head_count, uint32_t n)
{
    return kernels_reply_tops(head_count, n) + (uint64_t)n * sizeof(struct kernels_slice_top);
}

static inline uint64_t kernels_reply_bytes(uint32_t head_count, uint32_t n, uint32_t n_whole)
{
    return kernels_reply_logits(head_count, n) + (uint64_t)n_whole * head_count * sizeof(float);
}

/* check.c */
int kernels_check_options(const struct gguf_model *model,
                          const struct kernels_stage_options *options, char *err, size_t err_size);
/* Checks a step and, if it is sound, moves the slots' spans; else nothing has changed. */
int kernels_check_step(struct kernels_stage *stage, const struct kernels_step *step, char *err,
                       size_t err_size);
/* Samples first…first+count−1 of a step whose counts are sound; fewer if it has not as many. */
uint32_t kernels_pick(const struct kernels_stage *stage, const struct kernels_step *step,
                      uint32_t first, uint32_t count, struct kernels_pick *picks);
int kernels_check_job(const struct kernels_stage *stage, const struct kernels_step *step,
                      uint32_t first, uint32_t count, char *err, size_t err_size);
/* What the door allocates for a stage beside the backend. */
uint64_t kernels_check_bytes(const struct kernels_stage_options *options);

#endif
