/*
 * host: the driver under the cpu and reference backends. Private to kernels/.
 *
 * A stage has one thread, its stream: it takes steps and ring calls from a queue in order. What the
 * stream reads of a step lies in the step's lane, copied there by the caller. All memory is one map
 * for the KV pools and one for everything else (layout.c), so that the footprint is exact.
 */
#ifndef GPTOSS_KERNELS_HOST_H
#define GPTOSS_KERNELS_HOST_H

#include <pthread.h>
#include <stdatomic.h>

#include "kernels/backend.h"
#include "kernels/host/table.h"

struct host_device {
    struct kernels base;
    const struct host_table *table;
    uint32_t threads;
    bool fast; /* products take int8 activations */
    char isa[16];
};

/* Matrices of a layer that may be packed (repack.c). */
enum { HOST_Q, HOST_K, HOST_V, HOST_OUT, HOST_ROUTER, HOST_GATE, HOST_UP, HOST_DOWN, HOST_PACKED };

enum host_work { HOST_STEP, HOST_RING, HOST_HEAD, HOST_MERGE };

#define HOST_HEAD_ROWS 32 /* rows that pass through the head at a time */

struct host_lane {
    float *input;                   /* [step_tokens, hidden]; NULL on the stage of layer 0 */
    float *output;                  /* [step_tokens, hidden]; NULL on a stage that samples */
    float *picked;                  /* [step_samples, hidden]; NULL but on one with a cut head */
    int32_t *sampled;               /* [step_samples] */
    struct kernels_sample *samples; /* [step_samples]; NULL where nothing is sampled */
    float *logits;                  /* [step_samples, vocabulary], with keep_logits */

    struct kernels_step step;
    struct kernels_row *rows;            /* [step_rows] */
    int32_t *tokens;                     /* [step_tokens]; NULL but on the stage of layer 0 */
    uint32_t *full_given, *window_given; /* [given_capacity] */
    uint32_t *ring_slots;                /* [step_samples] */
    uint32_t ring_count;

    atomic_uint pending; /* steps and ring calls queued and not done */
    atomic_bool failed;  /* then error says why */
    char error[160];
};

/* A job of a cut head. */
struct host_job {
    float *input; /* [HOST_HEAD_ROWS, hidden]; NULL on the last stage, which reads its lane */
    unsigned char *replies[KERNELS_SLICES_MAX]; /* of each part; not the last stage: [0], its own */
    const float *x;
    struct host_lane *lane;
    uint32_t first, n; /* samples of the lane's step */
    struct kernels_row rows[HOST_HEAD_ROWS];
    uint32_t position[HOST_HEAD_ROWS];
    bool whole[HOST_HEAD_ROWS];
    atomic_uint pending;
};

/* Work in order: a ring of lanes or jobs and what is to be done with them. */
struct host_queue {
    struct {
        enum host_work work;
        uint32_t at; /* lane or job */
    } * entries;     /* [size] */
    uint32_t size;
    _Atomic uint64_t put, taken; /* counts since the start */
};

struct host_stage {
    struct kernels_stage base;
    const struct host_table *table;
    uint32_t threads;
    bool fast;
    uint64_t kv_bytes, activation_bytes;
    uint64_t weights_bytes;            /* packed ones as they are packed */
    uint64_t packed_bytes;             /* of those that may be packed */
    unsigned char *kv_memory, *memory; /* the two maps */

    struct host_lane *lanes;             /* [lanes] */
    uint64_t given_capacity;             /* block numbers of one pool in one step */
    struct host_kv *kv;                  /* [layer_count] */
    uint32_t *full_table, *window_table; /* [slots, table_entries] */
    uint32_t *full_count, *window_count; /* [slots]: entries, as of the stream */
    int32_t *slot_token;                 /* [slots]: last sampled, or −1 */
    float *cosine, *sine;                /* [context, head_dim / 2] */

    /* Activations of the step under way. */
    float *x;             /* [step_tokens, hidden]; only on a stage that samples */
    float *h;             /* [step_tokens, padded(hidden)] */
    float *q, *k, *v;     /* [step_tokens, width] */
    float *attended;      /* [step_tokens, padded(heads · head_dim)] */
    float *router;        /* [step_tokens, experts] */
    uint32_t *chosen;     /* [step_tokens, active] */
    float *chosen_weight; /* [step_tokens, active] */
    float *unit, *part;   /* of struct host_moe */
    uint32_t *pairs, *begin;
    struct host_sequence *sequences; /* [step_rows] */
    struct host_tile *tiles;         /* [step_tokens] */
    float *sample_x;                 /* [HOST_HEAD_ROWS, hidden]; of a whole head */
    float *sample_h;                 /* [HOST_HEAD_ROWS, padded(hidden)] */
    float *logits;                   /* [HOST_HEAD_ROWS, head_count]; a whole head: without
                                      * keep_logits */
    float *whole_row;                /* [threads, vocabulary]; of the last part of a cut head */
    unsigned char *sample_scratch;   /* [threads, sample_scratch_bytes] */
    uint64_t sample_scratch_bytes;
    struct host_context context;

    unsigned char *packed_memory; /* [packed_bytes], or NULL */
    uint64_t packed_used, packed_reserve;
    const unsigned char *(*packed)[HOST_PACKED]; /* [layer_count], NULL where the file is read */
    const unsigned char *packed_head;

    struct gguf_tensor head; /* the rows of the output matrix that are held */
    struct host_job *jobs;   /* [head_jobs] */

    struct host_queue steps; /* and ring calls */
    struct host_queue heads; /* jobs: these go first */
    atomic_bool asleep, quit;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    pthread_t thread;
    bool mutex_made, thread_made;
    _Atomic uint64_t busy_ns;
};

/* layout.c */
int host_layout(
    struct host_stage *stage); /* sizes and, if the maps are there, pointers; -1: overflow */
void host_layout_weights(const struct host_stage *stage,
                         void (*each)(void *arg, const struct gguf_tensor *tensor), void *arg);
void host_stage_prepare(struct host_stage *stage, const struct host_device *device,
                        const struct gguf_model *model,
                        const struct kernels_stage_options *options);

/* repack.c */
uint64_t host_packed_bytes(const struct host_stage *stage, const struct gguf_tensor *tensor);
/* Each matrix that may be packed; the head's layer is layer_count. */
void host_repack_each(const struct host_stage *stage,
                      void (*each)(void *arg, const struct gguf_tensor *tensor, uint32_t layer,
                                   size_t slot),
                      void *arg);
/* Reserves addresses for them: packed_memory, or NULL. */
void host_repack_open(struct host_stage *stage);

/* load.c. Reads all weights once, in parallel, and packs them as far as there is memory. -1: a number
 * or a scale is not finite, or a tensor of floats not aligned. */
int host_load(struct host_stage *stage, char *err, size_t err_size);

/* stream.c */
int host_stream_start(struct host_stage *stage, char *err, size_t err_size);
void host_stream_stop(struct host_stage *stage);
void host_stream_put(struct host_stage *stage, uint32_t lane, enum host_work work);
void host_stream_put_job(struct host_stage *stage, uint32_t slot, enum host_work work);
/* On the stream, within a step: jobs that have come go first. */
void host_stream_jobs(struct host_stage *stage);
uint64_t host_clock_ns(void);

/* step.c */
int host_step_run(struct host_stage *stage, struct host_lane *lane);
struct host_matrix host_head_matrix(const struct host_stage *stage);

/* head.c */
void host_head_run(struct host_stage *stage, struct host_job *job);
void host_merge_run(struct host_stage *stage, struct host_job *job);
uint32_t host_head_rows(const struct kernels_stage *stage);
const float *host_picked(const struct kernels_stage *stage, uint32_t lane);
float *host_head_input(struct kernels_stage *stage, uint32_t slot);
void *host_head_reply(struct kernels_stage *stage, uint32_t slot, uint32_t part);
void host_head(struct kernels_stage *stage, uint32_t slot, uint32_t lane,
               const struct kernels_pick *picks, uint32_t first, uint32_t count);
void host_merge(struct kernels_stage *stage, uint32_t slot);
int host_head_test(struct kernels_stage *stage, uint32_t slot, char *err, size_t err_size);

/* stage.c: the entries of struct kernels_backend that both backends share */
void host_destroy(struct kernels *k);
void host_info(const struct kernels *k, struct kernels_info *info);
int host_footprint(const struct kernels *k, const struct gguf_model *model,
                   const struct kernels_stage_options *options,
                   struct kernels_footprint *footprint);
int host_stage_create(struct kernels_stage **out, struct kernels *k, const struct gguf_model *model,
                      const struct kernels_stage_options *options, char *err, size_t err_size);
void host_stage_destroy(struct kernels_stage *stage);
void host_step(struct kernels_stage *stage, uint32_t lane, const struct kernels_step *step);
void host_ring(struct kernels_stage *stage, uint32_t lane, const uint32_t *slots, uint32_t count);
int host_test(struct kernels_stage *stage, uint32_t lane, char *err, size_t err_size);
double host_busy_seconds(const struct kernels_stage *stage);
float *host_input(struct kernels_stage *stage, uint32_t lane);
float *host_output(struct kernels_stage *stage, uint32_t lane);
int32_t *host_sampled(struct kernels_stage *stage, uint32_t lane);
void *host_stream(struct kernels_stage *stage);
const struct kernels_sample *host_sample(const struct kernels_stage *stage, uint32_t lane,
                                         uint32_t i);
const float *host_logits(const struct kernels_stage *stage, uint32_t lane, uint32_t i);

/* device.c */
void host_device_text(char *text, size_t size);
uint64_t host_memory_free(void);
double host_bandwidth(uint32_t threads);

/* ops.c */
int host_op_rmsnorm(struct kernels *k, const struct kernels_op_rmsnorm *op, double *seconds);
int host_op_linear(struct kernels *k, const struct kernels_op_linear *op, double *seconds);
int host_op_attention(struct kernels *k, const struct kernels_op_attention *op, double *seconds);
int host_op_moe(struct kernels *k, const struct kernels_op_moe *op, double *seconds);
int host_op_sample(struct kernels *k, const struct kernels_op_sample *op, double *seconds);
int host_limits(struct kernels *k, struct kernels_limits *limits);

/* Fills a table that differs between the two in `create` and the name alone. */
#define HOST_BACKEND(backend_name, create_device)                                                  \
    {                                                                                              \
        .name = (backend_name), .create = (create_device), .destroy = host_destroy,                \
        .info = host_info, .footprint = host_footprint, .stage_create = host_stage_create,         \
        .stage_destroy = host_stage_destroy, .step = host_step, .ring = host_ring,                 \
        .test = host_test, .busy_seconds = host_busy_seconds, .input = host_input,                 \
        .output = host_output, .sampled = host_sampled, .stream = host_stream,                     \
        .sample = host_sample, .logits = host_logits, .head_rows = host_head_rows,                 \
        .head_input = host_head_input, .head_reply = host_head_reply, .head = host_head,           \
        .merge = host_merge, .head_test = host_head_test, .picked = host_picked,                   \
        .op_rmsnorm = host_op_rmsnorm, .op_linear = host_op_linear,                                \
        .op_attention = host_op_attention, .op_moe = host_op_moe, .op_sample = host_op_sample,     \
        .limits = host_limits,                                                                     \
    }

#endif
