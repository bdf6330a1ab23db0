/*
 * kernels: the math of the model on one device.
 *
 * Two objects. A `struct kernels` is a device (the CPU with a pool of threads, or a GPU). A
 * `struct kernels_stage` is a range of the model's layers loaded onto it, with its KV cache and its
 * buffers; *its memory layout belongs to the backend*: weights may be repacked, layers fused, and
 * nothing above knows.
 *
 * A stage runs steps. kernels_stage_step() puts one step into the stage's queue and returns; steps
 * run in the order in which they were put there. A step's data lives in a *lane*: input and output
 * activations, sampled tokens and results, one set a lane, allocated once. A lane may be used again
 * when its step is done and its buffers were sent or read.
 *
 *     struct kernels *k;
 *     kernels_create(&k, &(struct kernels_options){.device = "auto"}, err, n);
 *     struct kernels_stage *stage;
 *     kernels_stage_create(&stage, k, model, &options, err, n);       loads the weights
 *     kernels_stage_step(stage, lane, &step, err, n);                 returns at once
 *     while (kernels_stage_test(stage, lane, err, n) == 0) …          or options.notify
 *     kernels_stage_sample(stage, lane, i)->token
 *     kernels_stage_destroy(stage);
 *     kernels_destroy(k);
 *
 * Promises:
 *  - A row's result does not depend on the other rows of its step, on how its positions are cut into
 *    steps, on the number of threads, or on where the layers are cut into stages: the same bits.
 *  - A step allocates nothing.
 *  - Shapes and ids of a step are checked in kernels_stage_step; a step that is refused has changed
 *    nothing.
 */
#ifndef GPTOSS_KERNELS_H
#define GPTOSS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gguf/gguf.h"

/* ── device ────────────────────────────────────────────────────────────────────────────────── */

struct kernels;

struct kernels_options {
    const char *device;  /* NULL or "auto": a GPU if there is one; "cpu"; "cuda"; "reference" */
    uint32_t threads;    /* of the cpu backend; 0: 1 */
    uint32_t local_rank; /* which GPU, counted modulo the GPUs there are */
    const char *isa;     /* of the cpu backend: NULL: the best there is; "avx512",
                      * "avxvnni", "avx2", "plain" */
    bool
        fast; /* products with int8 activations, where the backend has them: results differ from the
                * float ones */
};

struct kernels_info {
    char backend[16]; /* "cpu", "cuda", "reference" */
    char device[96];  /* for people: "AMD EPYC, avx512, 2 threads" */
    char uuid[48]; /* ranks whose devices have one uuid share its memory; cpu: "cpu-" and boot id */
    uint64_t memory_free_bytes;
    uint32_t threads;
    double bandwidth; /* bytes a second of reading, measured; 0: not measured */
    bool fast;        /* products take int8 activations: asked for, and the backend has them */
};

/* 0, or -1 with *out NULL and a sentence. */
int kernels_create(struct kernels **out, const struct kernels_options *options, char *err,
                   size_t err_size);
void kernels_destroy(struct kernels *k); /* NULL is fine; its stages must be gone */
void kernels_info(const struct kernels *k, struct kernels_info *info);

/* ── stage ─────────────────────────────────────────────────────────────────────────────────── */

struct kernels_stage;

enum kernels_kv_type { KERNELS_KV_F32, KERNELS_KV_F16, KERNELS_KV_BF16 };

struct kernels_stage_options {
    uint32_t layer_first, layer_count;
    uint32_t head_first, head_count; /* rows of the output matrix held here; 0 rows: none */
    /* The last stage of a head that is cut by vocabulary: the rows that each stage holds, in order; 0
     * parts: the head is whole. The last part is its own. See below. */
    const uint32_t *head_parts; /* [n_head_parts], read during kernels_stage_create */
    uint32_t n_head_parts;
    uint32_t head_jobs; /* of a cut head, on every stage that holds some of it: jobs at a time */
    uint32_t vocabulary_limit; /* ids from here on are never sampled nor reported; 0: none */
    enum kernels_kv_type kv_type;
    uint32_t block_tokens;  /* positions of a KV block; a power of two */
    uint32_t full_blocks;   /* of the pool of full-attention layers */
    uint32_t window_blocks; /* of the pool of sliding-window layers */
    uint32_t slots;         /* sequences at a time */
    uint32_t context;       /* positions of one sequence */
    uint32_t lanes;
    uint32_t step_rows, step_tokens, step_samples; /* bounds of one step */
    bool in_place;    /* weights are repacked for each product, not copied once */
    bool keep_logits; /* tests: kernels_stage_logits() is valid */
    /* Tests: [layer_count, context, active experts], of the one slot: what the router chooses at each
     * position. The reference and the CPU backend write it, CUDA reads it when the stage is made and
     * chooses the same. NULL: none. */
    int32_t *experts;

    /* Told while weights are loaded; NULL is fine. */
    void (*progress)(void *arg, uint64_t bytes_done, uint64_t bytes_all);
    /* Called from a thread of the backend when a step or a ring call is done; NULL is fine. It must
     * only wake somebody (write to an eventfd). */
    void (*notify)(void *arg);
    void *arg; /* of both */
};

/* What a stage takes, exactly, before it is taken: the plan's numbers and these are the same. */
struct kernels_footprint {
    uint64_t weights_bytes; /* read in place from the mapped file, or copied */
    uint64_t kv_bytes;
    uint64_t activation_bytes; /* lanes, scratch, tables */
};
void kernels_stage_footprint(const struct kernels *k, const struct gguf_model *model,
                             const struct kernels_stage_options *options,
                             struct kernels_footprint *footprint);

/* Loads the layers. `model` and its file must outlive the stage. 0, or -1 with *out NULL. */
int kernels_stage_create(struct kernels_stage **out, struct kernels *k,
                         const struct gguf_model *model,
                         const struct kernels_stage_options *options, char *err, size_t err_size);
void kernels_stage_destroy(struct kernels_stage *stage); /* NULL is fine; waits for what runs */

/* One sequence's part of a step. */
struct kernels_row {
    uint32_t slot;
    uint32_t position;    /* of the first token */
    uint32_t count;       /* tokens, ≥ 1 */
    uint32_t sample_from; /* 0…count: tokens from here on have their logits sampled */
    /* KV blocks newly given, logically after those the slot has; block numbers of each pool. */
    const uint32_t *full_given;
    const uint32_t *window_given;
    uint32_t full_given_count, window_given_count;
    uint32_t full_freed, window_freed; /* entries at the front of the table that have ended */
    bool restart;                      /* the slot's tables are emptied first */
    float temperature;                 /* 0: the best token */
    uint32_t top_k;                    /* 0: off */
    float top_p;                       /* 1: off */
    float min_p;                       /* 0: off */
    uint64_t seed;
    uint32_t top_logits; /* K best logits to report, ≤ KERNELS_TOP_MAX */
};

#define KERNELS_TOP_MAX 32
/* Instead of a token id: the token last sampled for the row's slot (see kernels_stage_ring). */
#define KERNELS_TOKEN_SAMPLED (-1)

struct kernels_step {
    uint32_t n_rows;
    uint32_t n_tokens;              /* sum of the rows' counts */
    uint32_t n_samples;             /* sum of the rows' count − sample_from */
    const struct kernels_row *rows; /* [n_rows] */
    const int32_t *tokens;          /* [n_tokens]; read by the stage of layer 0 alone */
    /* Called when all has been queued that does not read input(lane): queues on the stage's stream what
     * writes it. NULL: the input is there, or its writing has been queued. */
    void (*bring)(void *arg);
    void *bring_arg;
};

/* Queues a step. The stage of layer 0 reads tokens, others input(lane); the stage of the last layer
 * samples if it holds the whole head, ends with picked(lane) if it holds a part of it, and others write
 * output(lane). Everything behind `step` is copied.
 * 0, or -1 and a sentence: the step breaks a bound. */
int kernels_stage_step(struct kernels_stage *stage, uint32_t lane, const struct kernels_step *step,
                       char *err, size_t err_size);

/* Queues: for each i, remember sampled(lane)[i] as the token last sampled for slots[i]. The stage of
 * layer 0 does so with tokens that arrived over the ring, or that it sampled itself. */
int kernels_stage_ring(struct kernels_stage *stage, uint32_t lane, const uint32_t *slots,
                       uint32_t count, char *err, size_t err_size);

/* Whether all that was queued for the lane is done: 1 yes, 0 not yet, -1 failed, with a sentence. */
int kernels_stage_test(struct kernels_stage *stage, uint32_t lane, char *err, size_t err_size);

/* Seconds the device has worked on steps since the stage was made. */
double kernels_stage_busy_seconds(const struct kernels_stage *stage);

/* Device addresses of a lane's buffers, for the transport; fixed for the stage's life. */
float *kernels_stage_input(struct kernels_stage *stage, uint32_t lane);  /* [step_tokens, hidden] */
float *kernels_stage_output(struct kernels_stage *stage, uint32_t lane); /* [step_tokens, hidden] */
int32_t *kernels_stage_sampled(struct kernels_stage *stage, uint32_t lane); /* [step_samples] */
/* The stream that all of it is ordered on (cudaStream_t), or NULL: the host must wait for
 * kernels_stage_test between the writing and the reading of a buffer. */
void *kernels_stage_stream(struct kernels_stage *stage);

/* What was sampled, in host memory, when the lane's step is done; valid until the lane's next step.
 * log_sum_exp runs over the logits before temperature, blocks of 1,024 ids in order. */
struct kernels_sample {
    int32_t token;
    float logit; /* of the token, before temperature */
    float log_sum_exp;
    uint32_t n_top;
    struct {
        int32_t id;
        float logit;
    } top[KERNELS_TOP_MAX]; /* best first; of equal logits the lower id */
};
const struct kernels_sample *kernels_stage_sample(const struct kernels_stage *stage, uint32_t lane,
                                                  uint32_t i);
/* [head_count], of a cut head [rows of the output matrix], with options.keep_logits. */
const float *kernels_stage_logits(const struct kernels_stage *stage, uint32_t lane, uint32_t i);

/* ── a head cut by vocabulary ──────────────────────────────────────────────────────────────────
 *
 * Every stage may hold some rows of the output matrix; the parts begin at multiples of 1,024 rows and
 * are in the order of the stages. Samples of a step then pass the head in *jobs*, of at most
 * kernels_stage_head_rows() samples each:
 *
 *     the last stage's picked(lane) + first · hidden  ──▶  head_input(slot) of the others
 *     kernels_stage_head()    on every stage: its part's reply, to head_reply(slot, …)
 *     the others' head_reply  ──▶  head_reply(slot, part) of the last stage
 *     kernels_stage_merge()   on the last stage: the lane's samples, as an uncut head gives them
 *
 * Jobs do not wait for steps that are queued; kernels_stage_head_test() tells when they are done. A
 * reply is of a few numbers for each 1,024 ids, and of all logits for rows with filters. */
uint32_t kernels_stage_head_rows(const struct kernels_stage *stage);
/* Bytes of the reply of a part of `head_count` rows for samples first…first+count−1 of the step. */
size_t kernels_stage_reply_bytes(const struct kernels_stage *stage, uint32_t head_count,
                                 const struct kernels_step *step, uint32_t first, uint32_t count);
/* All in host memory: little of it travels. Stages but the last have part 0 alone, their own. */
const float *kernels_stage_picked(const struct kernels_stage *stage,
                                  uint32_t lane); /* [step_samples, hidden] */
float *kernels_stage_head_input(struct kernels_stage *stage,
                                uint32_t slot); /* [head_rows, hidden] */
void *kernels_stage_head_reply(struct kernels_stage *stage, uint32_t slot, uint32_t part);
/* Queues: the reply of this stage's part. The last stage reads picked(lane) from row `first`, the
 * others head_input(slot). 0, or -1 and a sentence. */
int kernels_stage_head(struct kernels_stage *stage, uint32_t slot, uint32_t lane,
                       const struct kernels_step *step, uint32_t first, uint32_t count, char *err,
                       size_t err_size);
/* Queues: the samples of the slot's job, from the replies of all parts. */
int kernels_stage_merge(struct kernels_stage *stage, uint32_t slot, char *err, size_t err_size);
/* Whether all that was queued for the slot is done: 1, 0, or -1 and a sentence. */
int kernels_stage_head_test(struct kernels_stage *stage, uint32_t slot, char *err, size_t err_size);

/* ── transfers between GPUs ────────────────────────────────────────────────────────────────── */

/* For transports, in builds with CUDA. Counters and bytes are device memory, this one's or mapped of a
 * neighbour that shares no GPU with this process: the device waits in kernels. */
struct kernels_push {
    void *to;
    const void *from;
    size_t bytes;            /* a multiple of 4, as both addresses */
    const uint32_t *offered; /* here; the copy begins when it has come to `value` (modulo 2³²) */
    uint32_t *counter;       /* there; `value` is stored when the bytes are there */
    uint32_t value;
    uint32_t *ticket; /* here, zero; for this stream's pushes alone */
};
/* Queued on `stream`, a cudaStream_t. 0 or −1: could not be queued. */
int kernels_cuda_push(const struct kernels_push *push, void *stream);
/* The stream goes on when *counter has come to `value`. */
int kernels_cuda_await(const uint32_t *counter, uint32_t value, void *stream);

/* ── sampling ──────────────────────────────────────────────────────────────────────────────── */

/* The stages' one rule of sampling, as every backend implements it (plain C, kernels/sample.c):
 * of logits[n] at ids 0…n−1, ids ≥ limit left out,
 *   temperature 0: the id of the largest logit (the lowest of equals);
 *   else y = logit / temperature; keep the top_k largest y (ties: lower ids first); of those, in
 *   descending order, the shortest prefix whose softmax mass (over the kept) reaches top_p; of those,
 *   y ≥ y_max + ln(min_p); then the id with the largest y + g(seed, position, id), where
 *   g = −ln(−ln u) and u comes from a counter-based hash (Philox 4×32-10) of its arguments.
 * `position` is that of the token whose logits these are. */
void kernels_sample(const float *logits, uint32_t n, uint32_t limit, const struct kernels_row *row,
                    uint32_t position, struct kernels_sample *sample, void *scratch);
size_t kernels_sample_scratch_bytes(uint32_t n);

#endif
