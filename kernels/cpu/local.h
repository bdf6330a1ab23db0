/* local: what the files of one instruction set share among themselves. Included by them alone. */
#ifndef GPTOSS_KERNELS_CPU_LOCAL_H
#define GPTOSS_KERNELS_CPU_LOCAL_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/dot.h"
#include "kernels/cpu/simd.h"

/* Rows of a matrix that a task multiplies: unpacked to floats they stay in the second level cache
 * while many rows of x pass by. */
#define PANEL_ROWS 16
/* Rows of x that are multiplied before the results are looked at. */
#define CHUNK_ROWS_X 48
/* Queries of a sequence that one task of attention takes, and keys at a time. */
#define TILE_QUERIES 8
#define CHUNK_KEYS   64

/* Rows of activations, some of them: row i begins at base + (index ? index[i] / divide : i) · stride. */
struct rows {
    const float *base;
    uint64_t stride;
    const uint32_t *index;
    uint32_t divide;
};

static inline const float *row_of(const struct rows *rows, uint32_t i)
{
    return rows->base + (rows->index ? rows->index[i] / rows->divide : i) * rows->stride;
}

/* Some rows of a matrix, about to be multiplied with rows of x. For one row of x the weights stay in
 * their blocks; for more they are made floats once. */
struct panel {
    const struct host_matrix *matrix;
    uint32_t first, count; /* rows, ≤ PANEL_ROWS */
    float *floats;         /* [PANEL_ROWS, padded(columns)], or NULL: in blocks */
};

/* matmul.c. `floats` is scratch of panel_floats(columns) floats. */
#define panel_open     CPU_NAME(panel_open)
#define panel_multiply CPU_NAME(panel_multiply)
void panel_open(struct panel *panel, const struct host_matrix *matrix, uint32_t first, uint32_t n,
                float *floats);
/* out[i, o] = x_{from + i} · w_{first + o} for i < n ≤ CHUNK_ROWS_X, without bias. */
void panel_multiply(const struct panel *panel, const struct rows *x, uint32_t from, uint32_t n,
                    float *out /* [n, PANEL_ROWS] */);

static inline uint64_t panel_floats(uint32_t columns)
{
    return (uint64_t)PANEL_ROWS * host_padded(columns);
}

/* Products with int8 activations: PANEL_ROWS is PACK_ROWS. AVX-512 came before its VNNI. */
static inline const struct cpu_dot *dot_of(void)
{
#if defined(CPU_ISA_AVX512)
    return __builtin_cpu_supports("avx512vnni") ? &cpu_dot_avx512 : &cpu_dot_avx2;
#elif defined(CPU_ISA_AVXVNNI)
    return cpu_has_avxvnni() ? &cpu_dot_avxvnni : &cpu_dot_avxvnni_evex;
#elif defined(CPU_ISA_AVX2)
    return &cpu_dot_avx2;
#else
    return &cpu_dot_plain;
#endif
}

/* Panels of a task, so few that each thread has some tasks; where weights are read for one row of x,
 * so many that most of the time it is one stream of memory. */
#define GROUP_PANELS  4
#define STREAM_PANELS 24
static inline uint32_t group_of(const struct host_context *c, uint32_t panels, uint32_t n)
{
    uint32_t group = panels / (8 * pool_threads(c->pool)),
             most = n > 1 ? GROUP_PANELS : STREAM_PANELS;
    return group < 1 ? 1 : group < most ? group : most;
}

/* Floats that hold a panel of any type packed (Q6_K has 20 bytes for each column). */
static inline uint64_t panel_bytes_floats(uint32_t columns)
{
    return ((uint64_t)columns * 20 + 63) / 64 * 16;
}

/* A product of integers is worth waking a thread for when it has so many times the work of one with
 * floats that is: it takes a third of the time (with int8 activations; half of it with float ones), and
 * a thread that slept comes late. */
static inline double work_as(const struct host_context *c, bool in_integers)
{
    return !in_integers ? 1 : c->fast ? 16 : 8;
}

static inline bool in_integers(const struct host_context *c, const struct host_matrix *m)
{
    return c->quantised && (c->fast || DOT_WIDE) && pack_has(m->type);
}

static inline struct quantised quantised_rows(const struct host_context *c,
                                              const unsigned char *base, uint32_t columns,
                                              const uint32_t *index, uint32_t divide)
{
    return (struct quantised){base, quantised_stride(columns, !c->fast), !c->fast, index, divide};
}

/* matmul.c. Makes n rows of x integers. */
#define rows_quantise CPU_NAME(rows_quantise)
void rows_quantise(const struct host_context *c, const float *x, uint64_t x_stride, uint32_t n,
                   uint32_t columns, unsigned char *to);

/* Panel `index` of a matrix; `scratch` of pack_panel_bytes() is used where it is not packed. */
static inline const unsigned char *packed_panel(const struct host_matrix *m, uint32_t index,
                                                unsigned char *scratch)
{
    uint32_t first = index * PANEL_ROWS, left = m->rows - first;
    if (m->packed)
        return m->packed + index * pack_panel_bytes(m->type, m->columns);
    pack_panel(m->type, m->data + (uint64_t)first * m->row_bytes, m->row_bytes,
               left < PANEL_ROWS ? left : PANEL_ROWS, m->columns, scratch);
    return scratch;
}

static inline uint32_t panels_of(const struct host_matrix *m)
{
    return (m->rows + PANEL_ROWS - 1) / PANEL_ROWS;
}

#define op_linear  CPU_NAME(linear)
#define op_rmsnorm CPU_NAME(rmsnorm)
#define op_route   CPU_NAME(route)
#define op_store   CPU_NAME(store)
#define op_attend  CPU_NAME(attend)
#define op_moe     CPU_NAME(moe)
void op_linear(const struct host_context *c, const struct host_product *products,
               uint32_t n_products, const float *x, uint64_t x_stride, uint32_t n);
void op_rmsnorm(const struct host_context *c, const float *x, uint64_t x_stride,
                const float *weight, uint32_t n, uint32_t columns, float eps, float *out,
                uint64_t out_stride);
void op_route(const struct host_context *c, const float *logits, uint32_t n, uint32_t experts,
              uint32_t active, uint32_t *chosen, float *weight);
void op_store(const struct host_context *c, const struct host_attention *a);
void op_attend(const struct host_context *c, const struct host_attention *a);
void op_moe(const struct host_context *c, const struct host_moe *moe);

/* Scratch of one thread. */
uint64_t CPU_NAME(attention_scratch)(uint32_t group, uint32_t head_dim);
uint64_t CPU_NAME(moe_scratch)(uint32_t columns);

#endif
