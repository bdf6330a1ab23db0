/*
 * table: the operations from which the host driver builds a step. Private to kernels/.
 *
 * Two tables fill it: reference/ (plain C in the order of the formulas) and cpu/ (SIMD, threads).
 *
 * Rows of activations that are inputs of a matrix have a stride that is a multiple of 16 floats, and
 * zeros from their end to the stride (host_padded): a kernel may read whole vectors.
 *
 * The order of sums is part of the interface: an output depends on its own inputs alone, never on how
 * many rows, threads or matrices a call has.
 */
#ifndef GPTOSS_KERNELS_TABLE_H
#define GPTOSS_KERNELS_TABLE_H

#include "kernels/kernels.h"

#define HOST_LANES 16 /* floats of the vector that padding is made for */

static inline uint32_t host_padded(uint32_t n)
{
    return (n + HOST_LANES - 1) / HOST_LANES * HOST_LANES;
}

#define HOST_PACK_ROWS 16 /* of a panel of packed weights */

struct pool; /* cpu/pool.h */

/* What an operation works with beside its arguments. */
struct host_context {
    struct pool *pool;      /* NULL: one thread */
    unsigned char *scratch; /* [threads, scratch_bytes], 64-byte aligned; contents are nobody's */
    uint64_t scratch_bytes; /* a multiple of 64 */
    bool fast;              /* int8 activations */
    /* Where products are of integers, activations as integers; else NULL. */
    unsigned char *quantised;       /* [rows of x, table->quantised_bytes(columns)] */
    unsigned char *quantised_units; /* [pairs of a host_moe, table->quantised_bytes(expert_ffn)] */
};

struct host_matrix {
    enum gguf_type type;
    uint32_t rows, columns;
    const unsigned char *data;   /* [rows, columns] in blocks */
    const unsigned char *packed; /* the same as table->pack made it, or NULL */
    uint64_t row_bytes;
    const float *bias; /* [rows] or NULL */
};

/* One of the matrices that are multiplied with the same input. */
struct host_product {
    struct host_matrix matrix;
    float *y; /* [n, stride] */
    uint64_t stride;
    bool add; /* y += instead of y = */
};

/* The cache of one layer. Block b begins at base + b · block_bytes and holds
 *     K [kv_heads, head_dim, block_tokens]   keys side by side: scores are made 16 keys at a time
 *     V [kv_heads, block_tokens, head_dim]
 * in elements of `type`. */
struct host_kv {
    unsigned char *base;
    uint64_t block_bytes;
    enum kernels_kv_type type;
    uint32_t block_tokens, kv_heads, head_dim;
};

/* One row of a step. */
struct host_sequence {
    const uint32_t *blocks; /* block of position p: blocks[p / block_tokens] */
    uint32_t position, count;
    uint32_t first; /* index of its first token among the step's tokens */
};

struct host_rotation {
    const float *cosine, *sine; /* [positions, head_dim / 2], the magnitude multiplied in */
};

struct host_attention {
    struct host_kv kv;
    const struct host_sequence *sequences;
    uint32_t n_sequences, n_tokens;
    struct host_rotation rotation; /* cosine NULL: none */
    uint32_t heads;
    uint32_t window;    /* 0: all positions up to the query's */
    const float *sinks; /* [heads] */
    float *q;           /* [n_tokens, heads · head_dim]; rotated in place */
    float *k, *v;       /* [n_tokens, kv_heads · head_dim]; k is rotated in place */
    float *out;         /* [n_tokens, out_stride], heads · head_dim of them written */
    uint64_t out_stride;
    struct host_tile *tiles; /* [n_tokens]: scratch for cutting the queries */
};

struct host_tile {
    uint32_t sequence, first, count; /* of the sequence's tokens */
};

struct host_moe {
    uint32_t n, experts, active;
    struct host_matrix gate, up, down; /* of expert 0; expert e: data + e · rows · row_bytes, or
                                        * packed + e · table->packed_bytes() */
    float alpha, limit;
    const float *h; /* [n, h_stride] */
    uint64_t h_stride;
    const uint32_t *chosen; /* [n, active] */
    const float *weight;    /* [n, active] */
    float *x;               /* [n, down.rows]: added to */
    /* Scratch, pair p = row · active + choice: */
    float *unit;     /* [n · active, padded(gate.rows)], zeros in the padding */
    float *part;     /* [n · active, down.rows] */
    uint32_t *pairs; /* [n · active]: pairs in the order of their experts */
    uint32_t *begin; /* [experts + 1]: where each expert's pairs begin */
    uint32_t *used;  /* [experts]: those that have pairs, in order */
};

struct host_table {
    const char *name;
    /* Scratch for one thread, for matrices of up to `columns` and heads of `head_dim`. */
    uint64_t (*scratch_bytes)(uint32_t columns, uint32_t group, uint32_t head_dim);

    /* out[n, out_stride] = weight · x / √(mean(x²) + eps) */
    void (*rmsnorm)(const struct host_context *c, const float *x, uint64_t x_stride,
                    const float *weight, uint32_t n, uint32_t columns, float eps, float *out,
                    uint64_t out_stride);
    /* Each product: y = x · matrixᵀ + bias; x is [n, x_stride]. */
    void (*linear)(const struct host_context *c, const struct host_product *products,
                   uint32_t n_products, const float *x, uint64_t x_stride, uint32_t n);
    /* Rotates q and k, and stores k and v in the cache. */
    void (*store)(const struct host_context *c, const struct host_attention *a);
    /* out = softmax(q · Kᵀ / √head_dim, sink) · V */
    void (*attend)(const struct host_context *c, const struct host_attention *a);
    /* Of each row of logits[n, experts] the `active` largest (ties: the lowest), largest first, and
     * the softmax over them. */
    void (*route)(const struct host_context *c, const float *logits, uint32_t n, uint32_t experts,
                  uint32_t active, uint32_t *chosen, float *weight);
    void (*moe)(const struct host_context *c, const struct host_moe *moe);
    /* For products of integers; NULL: there are none. Bytes of a packed matrix, 0 where the type has no
     * such products, with int8 activations or float ones; the packing of rows `first` … (a multiple of
     * 16), `count` of them. */
    uint64_t (*packed_bytes)(enum gguf_type type, uint32_t rows, uint32_t columns, bool fast);
    void (*pack)(const struct host_matrix *m, uint32_t first, uint32_t count, unsigned char *to);
    uint64_t (*quantised_bytes)(uint32_t columns, bool fast);
    /* Floats multiplied and added as fast as can be, on one thread; how many. NULL: not known. */
    uint64_t (*multiply)(void);
    /* The same of int8 dot products; how many multiplications and additions. */
    uint64_t (*multiply_int8)(void);
    /* Runs task(arg, i, thread) for i < n, on the threads there are. */
    void (*run)(const struct host_context *c, uint32_t n,
                void (*task)(void *arg, uint32_t i, uint32_t thread), void *arg);
};

/* moe.c: sorts the pairs by expert: fills pairs, begin and used; how many are used. */
uint32_t host_moe_sort(const struct host_moe *moe);

static inline uint64_t host_kv_element_bytes(enum kernels_kv_type type)
{
    return type == KERNELS_KV_F32 ? 4 : 2;
}

#endif
