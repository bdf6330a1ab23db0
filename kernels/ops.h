/*
 * ops: single operations of a device on host data, for tests and for the bench.
 *
 * The second door of kernels/. Nothing here is on the path of a step: each call copies its data to
 * where the backend wants it, runs the operation `repeat` times, and copies the last result back.
 * Of what kernels_stage_step() does, each operation here is the same code with the same bits.
 *
 *     struct kernels_op_linear op = {.type = GGUF_Q8_0, .weight = bytes, .rows = 512, …};
 *     kernels_op_linear(k, &op, &seconds);
 *
 * All return 0, or -1 where the backend has no such operation or no memory. *seconds (may be NULL) is
 * the mean time of one repetition, without the copies.
 */
#ifndef GPTOSS_KERNELS_OPS_H
#define GPTOSS_KERNELS_OPS_H

#include "kernels/kernels.h"

/* out = weight · x / √(mean(x²) + eps) */
struct kernels_op_rmsnorm {
    uint32_t n, columns;
    const float *x;      /* [n, columns] */
    const float *weight; /* [columns] */
    float eps;
    float *out;      /* [n, columns] */
    uint32_t repeat; /* 0: 1 */
};

/* y = x · weightᵀ + bias, with `add`: y = y + (x · weightᵀ + bias) (repeat is then 1) */
struct kernels_op_linear {
    enum gguf_type type;
    const void *weight; /* [rows, columns] in blocks of the type */
    const float *bias;  /* [rows] or NULL */
    uint32_t rows, columns, n;
    const float *x; /* [n, columns] */
    float *y;       /* [n, rows] */
    bool add;
    uint32_t repeat;
    uint32_t copies; /* of the weights, which repetitions read in turn: no cache holds all; 0: 1 */
};

/* Attention of `count` queries at positions first…first+count−1 over keys and values at positions
 * 0…first+count−1, of which those from max(0, p − window + 1) to p are seen by a query at p. The keys
 * are stored in a paged cache of `kv_type` first; rope is applied to q and k where omega is given. */
struct kernels_op_attention {
    uint32_t heads, kv_heads, head_dim;
    uint32_t window; /* 0: all keys */
    enum kernels_kv_type kv_type;
    uint32_t block_tokens;
    uint32_t first, count;
    const float *q;      /* [count, heads, head_dim] */
    const float *k, *v;  /* [first + count, kv_heads, head_dim] */
    const float *sinks;  /* [heads] */
    const double *omega; /* [head_dim / 2], or NULL: no rotation */
    double magnitude;    /* of the rotation */
    float *out;          /* [count, heads, head_dim] */
    uint32_t repeat;
};

/* x = x + Σ over the `active` best experts of each row, as the model's layers have it; the input of
 * router and experts is h. (repeat is 1 where the result is wanted: x is added to.) */
struct kernels_op_moe {
    uint32_t n, hidden, experts, active, expert_ffn;
    enum gguf_type router_type, type;
    const void *router;       /* [experts, hidden] of router_type */
    const float *router_bias; /* [experts] */
    const void *gate, *up,
        *down; /* [experts, expert_ffn, hidden] ×2, [experts, hidden, expert_ffn] */
    const float *gate_bias, *up_bias, *down_bias; /* [experts, rows] */
    float alpha, limit;
    const float *h;   /* [n, hidden] */
    float *x;         /* [n, hidden] */
    uint32_t *chosen; /* [n, active], or NULL: the experts chosen, best first */
    float *weight;    /* [n, active], or NULL: their weights */
    uint32_t repeat;
    uint32_t inputs; /* h holds so many times n rows, of which repetitions take n in turn; 0: 1 */
    bool route_only; /* the experts are chosen and left out */
};

/* logits[n, vocabulary] → tokens[n], by the rule in kernels.h; row i has the seed i. */
struct kernels_op_sample {
    uint32_t n, vocabulary;
    const float *logits;
    float temperature, top_p, min_p;
    uint32_t top_k;
    int32_t *tokens;
    uint32_t repeat;
};

/* What the device can do at best, measured by loops that do nothing else. 0: not known. */
struct kernels_limits {
    double read, copy; /* bytes a second; copy: those read and those written */
    double operations; /* a second, a multiplication and an addition being two */
    const char *unit;  /* of what they are: "f32 FMA", "f16 wgmma"; static memory */
    double read_one;   /* bytes a second that one thread reads; 0: there are no threads */
    double integers;   /* operations a second of int8 dot products; 0: not known */
};

int kernels_op_rmsnorm(struct kernels *k, const struct kernels_op_rmsnorm *op, double *seconds);
int kernels_op_linear(struct kernels *k, const struct kernels_op_linear *op, double *seconds);
int kernels_op_attention(struct kernels *k, const struct kernels_op_attention *op, double *seconds);
int kernels_op_moe(struct kernels *k, const struct kernels_op_moe *op, double *seconds);
int kernels_op_sample(struct kernels *k, const struct kernels_op_sample *op, double *seconds);
int kernels_limits(struct kernels *k, struct kernels_limits *limits); /* takes about a second */

/* ── sampling from a cut vocabulary ────────────────────────────────────────────────────────── */

#define KERNELS_SLICE_BLOCK 1024 /* ids of one partial result; slices begin at multiples of it */
#define KERNELS_SLICES_MAX  128

/* What a block of ids says of a row. Of id, draw_id: UINT32_MAX: none. */
struct kernels_slice_block {
    float most, sum; /* the largest logit; Σ exp(logit − most) */
    uint32_t id;     /* of most; a backend may leave it out but for the slice's largest */
    uint32_t
        draw_id; /* of a row without filters: the id with the largest y + g, that value, and its
                       * logit; a backend may say it of the whole slice in one block */
    double draw;
    float draw_logit;
    uint32_t unused;
};

/* The best logits of a slice, best first. */
struct kernels_slice_top {
    uint32_t n, unused;
    struct {
        int32_t id;
        float logit;
    } of[KERNELS_TOP_MAX];
};

struct kernels_slice {
    const struct kernels_slice_block *blocks; /* [n_blocks] */
    uint32_t n_blocks;
    const struct kernels_slice_top *top;
};

/* kernels_sample() is one slice, merged. `n` is the number of ids of the whole vocabulary that may be
 * sampled. */
bool kernels_row_filters(const struct kernels_row *row, uint32_t n); /* its draw needs all logits */
/* logits[count] of ids first… ; blocks [⌈count / KERNELS_SLICE_BLOCK⌉] */
void kernels_slice(const float *logits, uint32_t first, uint32_t count, uint32_t n,
                   const struct kernels_row *row, uint32_t position,
                   struct kernels_slice_block *blocks, struct kernels_slice_top *top);
/* Of slices in the order of their ids; logits [n] where the row filters; scratch: as
 * kernels_sample(). */
void kernels_merge(const struct kernels_slice *slices, uint32_t n_slices, const float *logits,
                   uint32_t n, const struct kernels_row *row, uint32_t position,
                   struct kernels_sample *sample, void *scratch);

#endif
