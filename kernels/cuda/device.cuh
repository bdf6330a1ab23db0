/*
 * device: the CUDA backend's objects, the description of a step in device memory, and the launchers of
 * its kernels. Private to kernels/cuda/.
 *
 * A stage has one stream; everything of its steps is ordered on it and nothing waits on the host. A
 * step's description is packed by the host into its lane's pinned memory, copied to one place in
 * device memory (steps follow each other on the stream), and read there by the kernels: so a graph of
 * kernels serves every lane and every step with as many rows.
 *
 * Launchers return 0, or -1 after a launch that failed; none of them synchronises.
 */
#ifndef GPTOSS_KERNELS_CUDA_DEVICE_CUH
#define GPTOSS_KERNELS_CUDA_DEVICE_CUH

extern "C" {
#include "kernels/backend.h"
}

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <pthread.h>

#include "kernels/cuda/matmul.h"
#include "kernels/cuda/ptx.cuh"

#define CUDA_HEAD_ROWS 64   /* rows that pass through the head at a time */
#define CUDA_IDS_BLOCK 1024 /* ids of one partial result of the sampling */

/* ── a step in device memory ───────────────────────────────────────────────────────────────── */

struct cuda_row {
    uint64_t seed;
    uint32_t top_k, top_logits;
    float temperature, top_p, min_p;
    uint32_t slot;
};

struct cuda_token {
    int32_t id; /* or KERNELS_TOKEN_SAMPLED */
    uint32_t slot, position;
    uint32_t row;
};

/* A token whose logits are sampled. */
struct cuda_pick {
    uint32_t token, row; /* of the step */
};

/* Block `block` becomes entry `at` of a pool's tables [slots, table_entries]. */
struct cuda_entry {
    uint32_t at, block;
};

/* The token of a row of one. */
struct cuda_single {
    uint32_t token, slot, position;
};

/* Consecutive tokens of one row that are attended to together. */
struct cuda_tile {
    uint32_t token, count;
};

/* What the device tells the host of a lane's step; host memory that the device writes to. */
struct cuda_report {
    uint32_t failed_row; /* plus one: a row whose sampled token was never brought */
    int32_t failed_token;
};

struct alignas(16) cuda_step {
    uint32_t n_rows, n_tokens, n_samples;
    uint32_t n_full, n_window;  /* table entries */
    uint32_t n_tiles, n_single; /* of the attention */
    uint32_t bytes;             /* of all of it, arrays included */
    /* Where the arrays begin, in bytes from here; singles begin behind this struct. */
    uint32_t rows, tokens, picks, full, window, tiles;
    uint64_t serial;
    float *input, *output; /* of the lane */
    float *picked;         /* host memory: the rows that are sampled, of a cut head; or NULL */
    int32_t *sampled;
    struct kernels_sample *samples; /* host memory */
    struct cuda_report *report;     /* host memory */
};

template <class T>
__host__ __device__ static inline T *cuda_part(const struct cuda_step *step, uint32_t at)
{
    return (T *)((char *)step + at);
}

/* ── objects ───────────────────────────────────────────────────────────────────────────────── */

struct cuda_device {
    struct kernels base;
    int index;
    int multiprocessors;
    char name[96], uuid[48];
    double bandwidth; /* 0: not measured yet */
};

/* A layer's weights in device memory. q, k and v are one matrix where they are of one type. */
struct cuda_layer {
    struct cuda_matrix qkv[3]; /* [0] alone when fused */
    uint32_t n_qkv;
    struct cuda_matrix out, gate_up, down;
    float *qkv_bias, *out_bias, *gate_up_bias, *down_bias;
    float *attn_norm, *ffn_norm, *sinks;
    float *router, *router_bias; /* [experts, hidden] F32 */
    unsigned char *kv;           /* the layer's pool */
    int32_t *forced;             /* [context, active]: options.experts; NULL but in tests */
    bool sliding;
};

/* The cache of one layer: block b at base + b · block_bytes holds K [kv_heads, block_tokens,
 * head_dim], then V likewise. */
struct cuda_kv {
    unsigned char *base;
    const uint32_t *table; /* [slots, entries] */
    uint64_t block_bytes;
    uint32_t entries, block_shift; /* block_tokens = 1 << block_shift */
    uint32_t kv_heads;
    enum kernels_kv_type type;
};

struct cuda_lane {
    float *input, *output;          /* device */
    int32_t *sampled;               /* device */
    float *picked;                  /* pinned [step_samples, hidden], of a cut head */
    float *logits;                  /* device [step_samples, head_count], with keep_logits */
    struct kernels_sample *samples; /* pinned */
    float *host_logits;             /* pinned [step_samples, vocabulary], with keep_logits */
    struct cuda_report *report;     /* pinned */
    struct cuda_step *step;         /* pinned, step_bytes */
    uint32_t *ring_slots;           /* pinned [step_samples] */
    uint64_t serial;                /* of what was queued last for it */
};

/* A job of a cut head. */
struct cuda_job {
    struct cuda_lane *lane;
    uint32_t first, n; /* samples of the lane's step */
    uint32_t n_whole;
    bool whole[CUDA_HEAD_ROWS];
    const float *x;                             /* pinned: the lane's picked rows, or */
    float *input;                               /* pinned [CUDA_HEAD_ROWS, hidden] */
    struct cuda_step *step;                     /* pinned */
    unsigned char *replies[KERNELS_SLICES_MAX]; /* pinned; not the last stage: [0], its own */
    uint64_t serial;                            /* of what was queued last for it */
};

struct cuda_graph {
    uint32_t rows, groups; /* as many rows, attention over as many groups of chunks */
    cudaGraphExec_t exec;
};

/* What the device counts; device memory. */
struct cuda_clock {
    uint64_t begun; /* of the step under way, ns of the device's timer */
    uint64_t busy_ns;
};

/* What the host watches; pinned, written by the device when work is done. */
struct cuda_progress {
    volatile uint64_t serial;
    volatile uint64_t busy_ns;
};

struct cuda_stage {
    struct kernels_stage base;
    const struct cuda_device *device;
    cudaStream_t stream;
    uint64_t weights_bytes, kv_bytes, activation_bytes, pinned_bytes;
    unsigned char *weights_memory, *kv_memory, *memory; /* device */
    unsigned char *pinned;

    struct cuda_layer *layers; /* [layer_count] */
    unsigned char *embedding;  /* rows of embedding_type; NULL but on the stage of layer 0 */
    enum gguf_type embedding_type;
    struct cuda_matrix head;
    float *output_norm;

    struct cuda_lane *lanes;
    struct cuda_step *step; /* device; the one under way */
    uint64_t step_bytes;
    uint32_t *full_table, *window_table;          /* device [slots, table_entries] */
    struct kernels_span *full_span, *window_span; /* host [slots], as of what was queued */
    int32_t *slot_token;                          /* device [slots] */
    float *cosine, *sine;                         /* device [context, head_dim / 2] */
    float *x;             /* [step_tokens, hidden]; it and what follows: of the step under way */
    __half *h;            /* [step_tokens, hidden] */
    float *qkv;           /* [step_tokens, heads + 2·kv_heads, head_dim] */
    __half *q;            /* [step_tokens, heads, head_dim] rotated and scaled */
    __half *attended;     /* [step_tokens, heads · head_dim] */
    float *partial;       /* of decode attention */
    float *router_logits; /* [step_tokens, experts] */
    int32_t *choice;      /* [step_tokens, active] */
    float *choice_weight; /* [step_tokens, active] */
    uint32_t *attention_tickets, *router_tickets, *finish_ticket; /* zeros between kernels */
    __half *head_h;                                               /* [CUDA_HEAD_ROWS, hidden] */
    float *logits; /* [CUDA_HEAD_ROWS, head_count]; a whole head: without keep_logits */
    struct kernels_slice_block *sample_blocks; /* [CUDA_HEAD_ROWS, blocks], of a whole head */
    void *matmul_scratch;
    float *router_partial; /* of steps of one token (solo.cuh); NULL: those run as others do */
    struct cuda_clock *clock;
    struct cuda_progress *progress; /* pinned */
    uint64_t given_capacity;        /* table entries of one pool in one step */

    /* Of a cut head; device memory is of the job under way. */
    cudaStream_t head_stream;
    struct cuda_job *jobs;                                 /* [head_jobs] */
    struct cuda_step *job_step;                            /* device */
    float *job_x;                                          /* [CUDA_HEAD_ROWS, hidden] */
    struct kernels_slice_block *job_blocks, *merge_blocks; /* [CUDA_HEAD_ROWS, blocks] */
    struct kernels_slice_top *job_tops, *merge_tops;       /* [CUDA_HEAD_ROWS, 1 or parts] */
    float *merge_logits; /* [CUDA_HEAD_ROWS, vocabulary]: rows with filters, one behind another */
    struct cuda_clock *head_clock;
    struct cuda_progress *head_progress; /* pinned */
    uint64_t head_serial;

    struct cuda_graph *graphs;
    uint32_t n_graphs;
    uint64_t serial;       /* queued last */
    uint64_t *slot_serial; /* host [slots]: of the last step with a row of the slot */
    uint32_t looks;        /* of tests that found nothing done */
    char error[200];       /* set once; the stage is then dead */
    bool failed;

    pthread_t watcher; /* calls options.notify */
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    bool watching, quit;
    volatile uint64_t queued; /* what the watcher knows of, in both streams */
};

/* ── launchers ─────────────────────────────────────────────────────────────────────────────── */

/* elementwise.cu: `n` is the rows launched, at least the step's tokens. */
struct cuda_begin {
    const struct cuda_step *step;
    uint32_t *full_table, *window_table;
    int32_t *slot_token;
    const unsigned char *embedding; /* NULL: the lane's input is copied */
    enum gguf_type type;
    uint64_t row_bytes;
    uint32_t hidden, vocabulary;
    float *x;
    struct cuda_clock *clock;
};
int cuda_begin(const struct cuda_begin *b, uint32_t n, cudaStream_t stream);
int cuda_finish(const struct cuda_step *step, const float *x, uint32_t hidden, uint32_t n,
                uint32_t *ticket, struct cuda_clock *clock, struct cuda_progress *progress,
                cudaStream_t stream);
int cuda_ring(int32_t *slot_token, const int32_t *sampled, const uint32_t *slots, uint32_t count,
              uint64_t serial, struct cuda_progress *progress, cudaStream_t stream);
int cuda_rmsnorm(const float *x, const float *weight, uint32_t n, uint32_t columns, float eps,
                 __half *out, bool early, cudaStream_t stream);
/* x += Σ of what the experts made of each row; where there is a weight out is its norm. */
int cuda_combine(const float *y, const float *choice_weight, uint32_t active, float *x,
                 const float *weight, uint32_t n, uint32_t columns, float eps, __half *out,
                 cudaStream_t stream);
/* The picked rows first…first+n−1 of x. */
int cuda_rmsnorm_picked(const struct cuda_step *step, uint32_t first, const float *x,
                        const float *weight, uint32_t n, uint32_t columns, float eps, __half *out,
                        cudaStream_t stream);
int cuda_to_half(const float *x, __half *out, uint64_t n, cudaStream_t stream);

/* copy.cu: between pinned host memory and the device, without the copy engine: not held up by copies
 * that other streams have queued. Bytes and addresses are multiples of 4. */
struct cuda_piece {
    void *to;
    const void *from; /* NULL: zeros */
    uint32_t width, rows;
    uint64_t to_pitch, from_pitch; /* from row to row */
};
int cuda_copy(const struct cuda_piece *pieces, uint32_t n, cudaStream_t stream);

/* attention.cu */
struct cuda_attention {
    const struct cuda_step *step;
    struct cuda_kv kv;
    const float *q, *k, *v; /* of token 0; a token's are q_stride, kv_stride further */
    uint32_t q_stride, kv_stride;
    const float *cosine, *sine; /* [positions, head_dim / 2]; NULL: no rotation */
    const float *sinks;
    uint32_t heads, head_dim, window;
    __half *rotated; /* [n, heads, head_dim], of cuda_attention_store; NULL: there are singles of
                       * different slots alone, nothing was stored (and cosine is given) */
    __half *out;     /* [n, heads · head_dim] */
    float *partial;
    uint32_t *tickets; /* [n_single, kv_heads · ⌈group / 16⌉] */
};
bool cuda_attention_supports(uint32_t head_dim);
uint32_t cuda_attention_groups(uint32_t positions); /* groups of chunks of keys that these make */
uint64_t cuda_attention_partial_floats(uint32_t heads, uint32_t kv_heads, uint32_t head_dim,
                                       uint32_t context);
/* n: tokens launched; singles and tiles: as many of those lists; groups: for the longest single. */
int cuda_attention_store(const struct cuda_attention *a, uint32_t n, cudaStream_t stream);
int cuda_attention_run(const struct cuda_attention *a, uint32_t singles, uint32_t groups,
                       uint32_t tiles, cudaStream_t stream);
uint32_t cuda_attention_tile_tokens(uint32_t heads, uint32_t kv_heads);

/* router.cu: h = half(norm(x)); choice and weight of each row. step NULL: all n rows are real. */
struct cuda_router {
    const struct cuda_step *step;
    const float *x, *norm; /* norm NULL: x is normed already */
    float eps;
    const float *weight, *bias; /* [experts, hidden], [experts] */
    uint32_t hidden, experts, active;
    __half *h;
    float *logits; /* scratch [n, experts] */
    int32_t *choice;
    float *choice_weight;
    uint32_t *tickets;     /* [n] */
    const int32_t *forced; /* [context, active] by position, with step; NULL: none */
};
const char *cuda_router_refuses(uint32_t hidden, uint32_t experts, uint32_t active); /* or NULL */
int cuda_router_run(const struct cuda_router *r, uint32_t n, cudaStream_t stream);

/* solo.cu: the products of a step of one token, with the norms, the router and the sum of the experts
 * between them. x: the residual, in place. early: as of cuda_launch_when. */
struct cuda_solo {
    const struct cuda_step *step;
    const struct gguf_model *model;
    float *x;
    float *qkv[3]; /* of each of the layer's matrices */
    const __half *attended;
    __half *act; /* scratch [active, expert_ffn] */
    float *partial;
    int32_t *choice; /* [active] */
    float *choice_weight;
};
bool cuda_solo_supports(const struct gguf_model *model);
uint64_t cuda_solo_partial_floats(const struct gguf_model *model);
int cuda_solo_qkv(const struct cuda_solo *s, const struct cuda_layer *layer, bool early,
                  cudaStream_t stream);
int cuda_solo_out(const struct cuda_solo *s, const struct cuda_layer *layer, cudaStream_t stream);
int cuda_solo_experts(const struct cuda_solo *s, const struct cuda_layer *layer,
                      cudaStream_t stream);

/* sample.cu: samples picks first…first+n−1, whose logits are [n, count]. */
struct cuda_sampling {
    const struct cuda_step *step;
    const float *logits;
    uint32_t first_id, count; /* whose logits are there */
    uint32_t ids;             /* of the vocabulary: those that may be sampled */
    struct kernels_slice_block
        *blocks; /* scratch [n, ⌈count / CUDA_IDS_BLOCK⌉], or a slice's result */
    struct kernels_slice_top *tops; /* a slice's result [n], or those to merge [n, n_tops] */
    uint32_t n_tops;
};
int cuda_sample_run(const struct cuda_sampling *s, uint32_t first, uint32_t n, cudaStream_t stream);
/* Of picks 0…n−1 blocks and lists; and samples from those of all slices, where logits are [rows with
 * filters, count]: token i's `slot` says which row. */
int cuda_sample_slice(const struct cuda_sampling *s, uint32_t n, cudaStream_t stream);
int cuda_sample_merge(const struct cuda_sampling *s, uint32_t n, cudaStream_t stream);

/* convert.cu: the type in which the device holds the matrices of a file's type, those of two types in
 * one matrix; and the way there: `values` of whole blocks, to memory that is aligned for floats. */
enum gguf_type cuda_held_type(enum gguf_type type);
enum gguf_type cuda_held_type_of_both(enum gguf_type a, enum gguf_type b);
void cuda_convert(enum gguf_type type, const unsigned char *from, enum gguf_type held,
                  unsigned char *to, uint64_t values);

/* load.cu: where each weight lies (without stage->weights_memory: sizes alone); their loading. */
int cuda_load_layout(struct cuda_stage *stage, char *err, size_t err_size);
int cuda_load(struct cuda_stage *stage, char *err, size_t err_size);

/* step.cu */
uint64_t cuda_step_bytes(const struct cuda_stage *stage); /* of the largest description */
int cuda_step_capture(struct cuda_stage *stage, char *err, size_t err_size);
void cuda_stage_queued(struct cuda_stage *stage); /* tells the watcher */

/* head.cu */
uint64_t cuda_job_bytes(void); /* of the largest description */
uint32_t cuda_head_rows(const struct kernels_stage *stage);
const float *cuda_picked(const struct kernels_stage *stage, uint32_t lane);
float *cuda_head_input(struct kernels_stage *stage, uint32_t slot);
void *cuda_head_reply(struct kernels_stage *stage, uint32_t slot, uint32_t part);
void cuda_head(struct kernels_stage *stage, uint32_t slot, uint32_t lane,
               const struct kernels_pick *picks, uint32_t first, uint32_t count);
void cuda_merge(struct kernels_stage *stage, uint32_t slot);
int cuda_head_test(struct kernels_stage *stage, uint32_t slot, char *err, size_t err_size);

/* stage.cu, step.cu, ops.cu: entries of struct kernels_backend */
int cuda_footprint(const struct kernels *k, const struct gguf_model *model,
                   const struct kernels_stage_options *options,
                   struct kernels_footprint *footprint);
int cuda_stage_create(struct kernels_stage **out, struct kernels *k, const struct gguf_model *model,
                      const struct kernels_stage_options *options, char *err, size_t err_size);
void cuda_stage_destroy(struct kernels_stage *stage);
void cuda_stage_step(struct kernels_stage *stage, uint32_t lane, const struct kernels_step *step);
void cuda_stage_ring(struct kernels_stage *stage, uint32_t lane, const uint32_t *slots,
                     uint32_t count);
int cuda_stage_test(struct kernels_stage *stage, uint32_t lane, char *err, size_t err_size);
double cuda_stage_busy(const struct kernels_stage *stage);
int cuda_op_rmsnorm(struct kernels *k, const struct kernels_op_rmsnorm *op, double *seconds);
int cuda_op_linear(struct kernels *k, const struct kernels_op_linear *op, double *seconds);
int cuda_op_attention(struct kernels *k, const struct kernels_op_attention *op, double *seconds);
int cuda_op_moe(struct kernels *k, const struct kernels_op_moe *op, double *seconds);
int cuda_op_sample(struct kernels *k, const struct kernels_op_sample *op, double *seconds);
int cuda_limits(struct kernels *k, struct kernels_limits *limits);

/* backend.cu: the devices of this process let a kernel start before the one in front has ended
 * (compute capability 9.0). */
extern bool cuda_starts_early;

/* What tests compare (tests/cuda_speed.c: `variant:BITS`); 0 otherwise. The bits of results are the
 * same. Chosen when a stage is made: its graphs keep what was chosen. */
#define CUDA_VARIANT_SERIAL                                                                        \
    1 /* kernels one by one: no graphs, none starts early, items are not dealt. For compute-sanitizer's \
       * racecheck, which reports races between different kernels of a graph, and words that are polled */
extern "C" {
extern uint32_t cuda_variant;
}

static inline bool cuda_may_start_early(void)
{
    return cuda_starts_early && !(cuda_variant & CUDA_VARIANT_SERIAL);
}

/* A kernel that may start before the one in front of it has ended: it waits by itself, with
 * ptx_wait_previous, before it reads or writes anything that others write or read. */
template <class... Parameters, class... Arguments>
static inline int cuda_launch_when(bool early, void (*kernel)(Parameters...), dim3 grid,
                                   uint32_t threads, size_t shared_bytes, cudaStream_t stream,
                                   Arguments... arguments)
{
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = early && cuda_may_start_early();
    return cudaLaunchKernelEx(&config, kernel, (Parameters)arguments...) == cudaSuccess ? 0 : -1;
}

template <class... Parameters, class... Arguments>
static inline int cuda_launch(void (*kernel)(Parameters...), dim3 grid, uint32_t threads,
                              size_t shared_bytes, cudaStream_t stream, Arguments... arguments)
{
    return cuda_launch_when(true, kernel, grid, threads, shared_bytes, stream, arguments...);
}

#endif
