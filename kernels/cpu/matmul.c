/*
 * matmul: y[t, o] = x[t] · w[o] + bias[o].
 *
 * Types that pack.h knows are multiplied as integers (dot.h). Of the others, and of all in plain C,
 * weights stay in the blocks of their file and become floats. One row of x (decode) reads each weight
 * once, so what counts is how fast blocks become floats: four rows of the matrix at a time, unpacked in
 * registers and multiplied there (dot4). Many rows of x (prefill) are bound by multiplications:
 * PANEL_ROWS rows of the matrix are unpacked into the cache, and tiles of TILE_ROWS_W rows of it by
 * TILE_ROWS_X rows of x are summed in registers (tile).
 */
#include "kernels/cpu/local.h"
#include "kernels/cpu/unpack.h"

/* The last n < 32 columns, zeros behind them; only types without blocks have such. */
INLINE void load_rest(enum gguf_type type, const unsigned char *at, uint32_t n, v16 *a, v16 *b)
{
    unsigned char rest[32 * 4] = {0};
    uint64_t size = type == GGUF_F32 ? 4 : 2;
    if (type != GGUF_F32 && type != GGUF_F16 && type != GGUF_BF16)
        n = 0;
    memcpy(rest, at, n * size);
    if (type == GGUF_F16) {
        *a = v_load_f16(rest);
        *b = v_load_f16(rest + 32);
    } else if (type == GGUF_BF16) {
        *a = v_load_bf16(rest);
        *b = v_load_bf16(rest + 32);
    } else {
        float floats[32];
        memcpy(floats, rest, sizeof floats);
        *a = v_load(floats);
        *b = v_load(floats + 16);
    }
}

/* ── one row of x ──────────────────────────────────────────────────────────────────────────── */

/* `ahead` is where the next four rows lie: the processor's own prefetching stops at every page, and
 * a row may be shorter than half of one. */
INLINE void dot4(enum gguf_type type, const unsigned char *const w[4], const unsigned char *ahead,
                 const float *x, uint32_t columns, float out[4])
{
    v16 s[4] = {v_zero(), v_zero(), v_zero(), v_zero()}, a, b;
    uint32_t i = 0;
    uint64_t at = 0;
    for (; i + step_columns(type) <= columns; at += step_bytes(type)) {
#pragma GCC unroll 16
        for (uint32_t line = 0; line < 4 * step_bytes(type); line += 64)
            __builtin_prefetch(ahead + 4 * at + line);
        if (step_columns(type) == 32) {
            v16 x0 = v_load(x + i), x1 = v_load(x + i + 16);
#pragma GCC unroll 4
            for (int o = 0; o < 4; o++) {
                load32(type, w[o] + at, 0, &a, &b);
                s[o] = v_fma(a, x0, s[o]);
                s[o] = v_fma(b, x1, s[o]);
            }
        } else { /* a row after the other: what the parts of a block share is read once */
#pragma GCC unroll 4
            for (int o = 0; o < 4; o++)
#pragma GCC unroll 8
                for (uint32_t part = 0; part < step_columns(type) / 32; part++) {
                    load32(type, w[o] + at, part, &a, &b);
                    s[o] = v_fma(a, v_load(x + i + 32 * part), s[o]);
                    s[o] = v_fma(b, v_load(x + i + 32 * part + 16), s[o]);
                }
        }
        i += step_columns(type);
    }
    if (i < columns) {
        v16 x0 = v_load(x + i), x1 = columns - i > 16 ? v_load(x + i + 16) : v_zero();
        for (int o = 0; o < 4; o++) {
            load_rest(type, w[o] + at, columns - i, &a, &b);
            s[o] = v_fma(a, x0, s[o]);
            s[o] = v_fma(b, x1, s[o]);
        }
    }
    v_sum4(s[0], s[1], s[2], s[3], out);
}

INLINE void one_row(enum gguf_type type, const struct panel *p, const float *x, float *out)
{
    const struct host_matrix *m = p->matrix;
    uint64_t last = (uint64_t)p->first + p->count - 1;
    for (uint32_t o = 0; o < p->count; o += 4) {
        const unsigned char *w[4];
        for (uint32_t j = 0; j < 4; j++) { /* beyond the end: the last row again */
            uint64_t row = (uint64_t)p->first + o + j;
            w[j] = m->data + (row < last ? row : last) * m->row_bytes;
        }
        dot4(type, w, w[0] + 4 * m->row_bytes, x, m->columns, out + o);
    }
}

/* ── many rows of x ────────────────────────────────────────────────────────────────────────── */

INLINE void unpack_row(enum gguf_type type, const unsigned char *row, uint32_t columns, float *to)
{
    uint32_t i = 0;
    v16 a, b;
    for (; i + step_columns(type) <= columns; row += step_bytes(type))
#pragma GCC unroll 8
        for (uint32_t part = 0; part < step_columns(type) / 32; part++, i += 32) {
            load32(type, row, part, &a, &b);
            v_store(to + i, a);
            v_store(to + i + 16, b);
        }
    if (i < columns) {
        load_rest(type, row, columns - i, &a, &b);
        v_store(to + i, a);
        if (columns - i > 16)
            v_store(to + i + 16, b);
    }
}

/* Columns of a pass: TILE_ROWS_X rows of x (12 KiB) stay in the first level cache while the panel's
 * rows pass by. The sums wait in memory between passes, so the order is that of one pass. */
#define PASS_COLUMNS 512

/* Adds columns from…to−1 of TILE_ROWS_W unpacked rows of the matrix by `n` rows of x, n a constant, to
 * sums[n, PANEL_ROWS, 16]. */
INLINE void tile(const float *w, uint64_t stride, const float *const *x, uint32_t n, uint32_t from,
                 uint32_t to, float *sums)
{
#pragma GCC unroll 4
    for (uint32_t part = 0; part < 16; part += T_LANES) {
        t_vec s[TILE_ROWS_X][TILE_ROWS_W];
#pragma GCC unroll 8
        for (uint32_t t = 0; t < n; t++)
#pragma GCC unroll 4
            for (uint32_t o = 0; o < TILE_ROWS_W; o++)
                s[t][o] = from ? t_load(sums + (t * PANEL_ROWS + o) * 16 + part) : t_zero();
        for (uint32_t i = from + part; i < to; i += 16) {
            t_vec row[TILE_ROWS_W];
#pragma GCC unroll 4
            for (uint32_t o = 0; o < TILE_ROWS_W; o++)
                row[o] = t_load(w + o * stride + i);
#pragma GCC unroll 8
            for (uint32_t t = 0; t < n; t++) {
                t_vec v = t_load(x[t] + i);
#pragma GCC unroll 4
                for (uint32_t o = 0; o < TILE_ROWS_W; o++)
                    s[t][o] = t_fma(row[o], v, s[t][o]);
            }
        }
#pragma GCC unroll 8
        for (uint32_t t = 0; t < n; t++)
#pragma GCC unroll 4
            for (uint32_t o = 0; o < TILE_ROWS_W; o++)
                t_store(sums + (t * PANEL_ROWS + o) * 16 + part, s[t][o]);
    }
}

static void tile_any(const float *w, uint64_t stride, const float *const *x, uint32_t n,
                     uint32_t from, uint32_t to, float *sums)
{
    switch (n) {
    case 1: tile(w, stride, x, 1, from, to, sums); break;
    case 2: tile(w, stride, x, 2, from, to, sums); break;
    case 3: tile(w, stride, x, 3, from, to, sums); break;
    case 4: tile(w, stride, x, 4, from, to, sums); break;
    case 5: tile(w, stride, x, 5, from, to, sums); break;
    default: tile(w, stride, x, 6, from, to, sums); break;
    }
}

INLINE void unpack(enum gguf_type type, const struct panel *p)
{
    const struct host_matrix *m = p->matrix;
    uint64_t padded = host_padded(m->columns);
    for (uint32_t o = 0; o < p->count; o++)
        unpack_row(type, m->data + (uint64_t)(p->first + o) * m->row_bytes, m->columns,
                   p->floats + o * padded);
}

void panel_open(struct panel *p, const struct host_matrix *m, uint32_t first, uint32_t n,
                float *floats)
{
    uint32_t left = m->rows - first;
    *p = (struct panel){m, first, left < PANEL_ROWS ? left : PANEL_ROWS, n > 1 ? floats : NULL};
    if (!p->floats)
        return;
    switch (m->type) {
#define UNPACK(type)                                                                               \
    case type: unpack(type, p); break;
        UNPACK_TYPES(UNPACK)
#undef UNPACK
    default: unpack(GGUF_F32, p); break;
    }
}

static void multiply_in_blocks(const struct panel *p, const float *x, float *out)
{
    switch (p->matrix->type) {
#define MULTIPLY(type)                                                                             \
    case type: one_row(type, p, x, out); break;
        UNPACK_TYPES(MULTIPLY)
#undef MULTIPLY
    default: one_row(GGUF_F32, p, x, out); break;
    }
}

void panel_multiply(const struct panel *p, const struct rows *x, uint32_t from, uint32_t n,
                    float *out)
{
    if (!p->floats) {
        for (uint32_t t = 0; t < n; t++)
            multiply_in_blocks(p, row_of(x, from + t), out + (uint64_t)t * PANEL_ROWS);
        return;
    }
    uint32_t columns = host_padded(p->matrix->columns);
    for (uint32_t t = 0; t < n; t += TILE_ROWS_X) {
        uint32_t here = n - t < TILE_ROWS_X ? n - t : TILE_ROWS_X;
        const float *rows[TILE_ROWS_X];
        for (uint32_t i = 0; i < here; i++)
            rows[i] = row_of(x, from + t + i);
        /* Rows beyond the panel's end are what the scratch holds: their sums are not used. */
        float sums[TILE_ROWS_X * PANEL_ROWS * 16];
        for (uint32_t i = 0; i < columns; i += PASS_COLUMNS) {
            uint32_t to = columns - i < PASS_COLUMNS ? columns : i + PASS_COLUMNS;
            for (uint32_t o = 0; o < p->count; o += TILE_ROWS_W)
                tile_any(p->floats + (uint64_t)o * columns, columns, rows, here, i, to,
                         sums + (uint64_t)o * 16);
        }
        for (uint32_t i = 0; i < here; i++)
            for (uint32_t o = 0; o < p->count; o += 4) {
                const float *four = sums + (i * PANEL_ROWS + o) * 16;
                v_sum4(v_load(four), v_load(four + 16), v_load(four + 32), v_load(four + 48),
                       out + (uint64_t)(t + i) * PANEL_ROWS + o);
            }
    }
}

/* ── products of integers ──────────────────────────────────────────────────────────────────── */

struct quantising {
    const float *x;
    uint64_t x_stride;
    uint32_t n, columns;
    bool fast;
    unsigned char *to;
};

#define QUANTISE_ROWS 4 /* of a task */

static void quantise_task(void *arg, uint32_t task, uint32_t thread)
{
    (void)thread;
    const struct quantising *q = arg;
    uint32_t begin = task * QUANTISE_ROWS;
    uint32_t end = q->n - begin > QUANTISE_ROWS ? begin + QUANTISE_ROWS : q->n;
    uint64_t stride = quantised_stride(q->columns, !q->fast);
    for (uint32_t t = begin; t < end; t++)
        (q->fast ? dot_of()->quantise : dot_of()->widen)(q->x + t * q->x_stride, q->columns,
                                                         q->to + t * stride);
}

void rows_quantise(const struct host_context *c, const float *x, uint64_t x_stride, uint32_t n,
                   uint32_t columns, unsigned char *to)
{
    struct quantising q = {x, x_stride, n, columns, c->fast, to};
    pool_run(cpu_pool_for(c, 2.0 * n * columns), (n + QUANTISE_ROWS - 1) / QUANTISE_ROWS,
             quantise_task, &q);
}

/* ── the operation ─────────────────────────────────────────────────────────────────────────── */

struct linear {
    const struct host_context *c;
    const struct host_product *products;
    struct rows x;
    uint32_t n, split; /* rows of x of a task */
    uint32_t group;    /* panels of a task */
};

static void put_rows(const struct host_product *p, uint32_t first, uint32_t count, uint32_t t,
                     uint32_t n, const float *out)
{
    const float *bias = p->matrix.bias ? p->matrix.bias + first : NULL;
    for (uint32_t i = 0; i < n; i++) {
        float *y = p->y + (t + i) * p->stride + first;
        for (uint32_t o = 0; o < count; o++) {
            float sum = out[i * PANEL_ROWS + o] + (bias ? bias[o] : 0.0f);
            y[o] = p->add ? y[o] + sum : sum;
        }
    }
}

static void multiply_floats(const struct linear *l, const struct host_product *p, uint32_t index,
                            uint32_t begin, uint32_t end, float *scratch)
{
    float *out = scratch + panel_floats(p->matrix.columns);
    struct panel panel;
    panel_open(&panel, &p->matrix, index * PANEL_ROWS, l->n, scratch);
    for (uint32_t t = begin; t < end; t += CHUNK_ROWS_X) {
        uint32_t n = end - t < CHUNK_ROWS_X ? end - t : CHUNK_ROWS_X;
        panel_multiply(&panel, &l->x, t, n, out);
        put_rows(p, panel.first, panel.count, t, n, out);
    }
}

/* GROUP_PANELS at a time, so that rows of x are read from near. */
static void multiply_bytes(const struct linear *l, const struct host_product *p, uint32_t index,
                           uint32_t count, uint32_t begin, uint32_t end, float *scratch)
{
    const struct host_matrix *m = &p->matrix;
    const struct quantised x = quantised_rows(l->c, l->c->quantised, m->columns, NULL, 1);
    const unsigned char *panels[GROUP_PANELS];
    uint64_t floats = panel_bytes_floats(m->columns);
    float *out = scratch + GROUP_PANELS * floats;
    for (uint32_t last = index + count; index < last; index += GROUP_PANELS) {
        uint32_t here = last - index < GROUP_PANELS ? last - index : GROUP_PANELS;
        for (uint32_t i = 0; i < here; i++)
            panels[i] = packed_panel(m, index + i, (unsigned char *)(scratch + i * floats));
        for (uint32_t t = begin; t < end; t += CHUNK_ROWS_X)
            for (uint32_t i = 0; i < here; i++) {
                uint32_t n = end - t < CHUNK_ROWS_X ? end - t : CHUNK_ROWS_X;
                uint32_t first = (index + i) * PANEL_ROWS, left = m->rows - first;
                dot_of()->multiply(m->type, panels[i], m->columns, &x, t, n, out);
                put_rows(p, first, left < PANEL_ROWS ? left : PANEL_ROWS, t, n, out);
            }
    }
}

static uint32_t tasks_of(const struct linear *l, const struct host_matrix *m)
{
    return (panels_of(m) + l->group - 1) / l->group;
}

static void linear_task(void *arg, uint32_t task, uint32_t thread)
{
    const struct linear *l = arg;
    uint32_t n_splits = (l->n + l->split - 1) / l->split;
    uint32_t index = task / n_splits, begin = task % n_splits * l->split;
    uint32_t end = l->n - begin > l->split ? begin + l->split : l->n;
    const struct host_product *p = l->products;
    while (index >= tasks_of(l, &p->matrix))
        index -= tasks_of(l, &p++->matrix);

    float *scratch = (float *)(void *)(l->c->scratch + thread * l->c->scratch_bytes);
    uint32_t first = index * l->group, left = panels_of(&p->matrix) - first;
    uint32_t count = left < l->group ? left : l->group;
    if (in_integers(l->c, &p->matrix))
        multiply_bytes(l, p, first, count, begin, end, scratch);
    else
        for (uint32_t i = 0; i < count; i++)
            multiply_floats(l, p, first + i, begin, end, scratch);
}

void op_linear(const struct host_context *c, const struct host_product *products,
               uint32_t n_products, const float *x, uint64_t x_stride, uint32_t n)
{
    struct linear l = {.c = c, .products = products, .x = {x, x_stride, NULL, 1}, .n = n};
    uint32_t panels = 0, tasks = 0;
    double work = 0;
    bool quantise = false;
    for (uint32_t i = 0; i < n_products; i++) {
        panels += panels_of(&products[i].matrix);
        work += (double)products[i].matrix.rows * products[i].matrix.columns * n;
        quantise = quantise || in_integers(c, &products[i].matrix);
    }
    if (quantise)
        rows_quantise(c, x, x_stride, n, products[0].matrix.columns, c->quantised);
    /* A matrix of few panels (the router) is cut along x too, so that all threads have work. */
    l.split = n;
    if (panels < 4 * pool_threads(c->pool) && n > 2 * CHUNK_ROWS_X)
        l.split = CHUNK_ROWS_X;
    l.group = group_of(c, panels, n);
    for (uint32_t i = 0; i < n_products; i++)
        tasks += tasks_of(&l, &products[i].matrix);
    pool_run(cpu_pool_for(c, work / work_as(c, quantise)), tasks * ((n + l.split - 1) / l.split),
             linear_task, &l);
}
