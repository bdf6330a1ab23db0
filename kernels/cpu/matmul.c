/*
 * matmul: y[t, o] = x[t] · w[o] + bias[o], weights in the blocks of their file.
 *
 * One row of x (decode) reads each weight once, so what counts is how fast blocks become floats:
 * four rows of the matrix at a time, unpacked in registers and multiplied there (dot4). Many rows of
 * x (prefill) are bound by multiplications: PANEL_ROWS rows of the matrix are unpacked into the cache,
 * and tiles of 4 rows of it by TILE_ROWS_X rows of x are summed in registers (tile).
 */
#include "kernels/cpu/local.h"

/* Columns i…i+31 of a row. */
INLINE void load32(enum gguf_type type, const unsigned char *row, uint32_t i, v16 *a, v16 *b)
{
    switch (type) {
    case GGUF_MXFP4: v_mxfp4(row + (uint64_t)(i / 32) * 17, a, b); break;
    case GGUF_Q8_0: {
        const unsigned char *block = row + (uint64_t)(i / 32) * 34;
        v16 scale = v_set(v_half(block));
        *a = v_mul(v_load_i8(block + 2), scale);
        *b = v_mul(v_load_i8(block + 18), scale);
        break;
    }
    case GGUF_F16:
        *a = v_load_f16(row + (uint64_t)i * 2);
        *b = v_load_f16(row + (uint64_t)i * 2 + 32);
        break;
    case GGUF_BF16:
        *a = v_load_bf16(row + (uint64_t)i * 2);
        *b = v_load_bf16(row + (uint64_t)i * 2 + 32);
        break;
    default:
        *a = v_load((const float *)(const void *)row + i);
        *b = v_load((const float *)(const void *)row + i + 16);
        break;
    }
}

/* The last n < 32 columns, zeros behind them; only types without blocks have such. */
INLINE void load_rest(enum gguf_type type, const unsigned char *row, uint32_t i, uint32_t n, v16 *a,
                      v16 *b)
{
    unsigned char rest[32 * 4] = {0};
    uint64_t size = type == GGUF_F32 ? 4 : 2;
    if (type == GGUF_MXFP4 || type == GGUF_Q8_0)
        n = 0;
    memcpy(rest, row + i * size, n * size);
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

INLINE void dot4(enum gguf_type type, const unsigned char *const w[4], const float *x,
                 uint32_t columns, float out[4])
{
    v16 s[4] = {v_zero(), v_zero(), v_zero(), v_zero()}, a, b;
    uint32_t i = 0;
    for (; i + 32 <= columns; i += 32) {
        v16 x0 = v_load(x + i), x1 = v_load(x + i + 16);
#pragma GCC unroll 4
        for (int o = 0; o < 4; o++) {
            load32(type, w[o], i, &a, &b);
            s[o] = v_fma(a, x0, s[o]);
            s[o] = v_fma(b, x1, s[o]);
        }
    }
    if (i < columns) {
        v16 x0 = v_load(x + i), x1 = columns - i > 16 ? v_load(x + i + 16) : v_zero();
        for (int o = 0; o < 4; o++) {
            load_rest(type, w[o], i, columns - i, &a, &b);
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
        dot4(type, w, x, m->columns, out + o);
    }
}

/* ── many rows of x ────────────────────────────────────────────────────────────────────────── */

INLINE void unpack_row(enum gguf_type type, const unsigned char *row, uint32_t columns, float *to)
{
    uint32_t i = 0;
    v16 a, b;
    for (; i + 32 <= columns; i += 32) {
        load32(type, row, i, &a, &b);
        v_store(to + i, a);
        v_store(to + i + 16, b);
    }
    if (i < columns) {
        load_rest(type, row, i, columns - i, &a, &b);
        v_store(to + i, a);
        if (columns - i > 16)
            v_store(to + i + 16, b);
    }
}

/* 4 unpacked rows of the matrix by `n` rows of x, n a constant. */
INLINE void tile(const float *w, uint32_t columns, const float *const *x, uint32_t n, float *out)
{
    v16 sums[TILE_ROWS_X][4];
#pragma GCC unroll 2
    for (uint32_t part = 0; part < 16 / T_LANES; part++) {
        t_vec s[TILE_ROWS_X][4];
#pragma GCC unroll 8
        for (uint32_t t = 0; t < n; t++)
#pragma GCC unroll 4
            for (uint32_t o = 0; o < 4; o++)
                s[t][o] = t_zero();
        for (uint32_t i = part * T_LANES; i < columns; i += 16) {
            t_vec w0 = t_load(w + i), w1 = t_load(w + columns + i);
            t_vec w2 = t_load(w + 2 * (uint64_t)columns + i);
            t_vec w3 = t_load(w + 3 * (uint64_t)columns + i);
#pragma GCC unroll 8
            for (uint32_t t = 0; t < n; t++) {
                t_vec v = t_load(x[t] + i);
                s[t][0] = t_fma(w0, v, s[t][0]);
                s[t][1] = t_fma(w1, v, s[t][1]);
                s[t][2] = t_fma(w2, v, s[t][2]);
                s[t][3] = t_fma(w3, v, s[t][3]);
            }
        }
#pragma GCC unroll 8
        for (uint32_t t = 0; t < n; t++)
#pragma GCC unroll 4
            for (uint32_t o = 0; o < 4; o++)
                t_part(&sums[t][o], part, s[t][o]);
    }
#pragma GCC unroll 8
    for (uint32_t t = 0; t < n; t++)
        v_sum4(sums[t][0], sums[t][1], sums[t][2], sums[t][3], out + 4 * t);
}

static void tile_any(const float *w, uint32_t columns, const float *const *x, uint32_t n,
                     float *out)
{
    switch (n) {
    case 1: tile(w, columns, x, 1, out); break;
#if TILE_ROWS_X >= 3
    case 2: tile(w, columns, x, 2, out); break;
    case 3: tile(w, columns, x, 3, out); break;
#endif
#if TILE_ROWS_X >= 6
    case 4: tile(w, columns, x, 4, out); break;
    case 5: tile(w, columns, x, 5, out); break;
    case 6: tile(w, columns, x, 6, out); break;
#endif
    default: break;
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
    case GGUF_MXFP4: unpack(GGUF_MXFP4, p); break;
    case GGUF_Q8_0: unpack(GGUF_Q8_0, p); break;
    case GGUF_F16: unpack(GGUF_F16, p); break;
    case GGUF_BF16: unpack(GGUF_BF16, p); break;
    default: unpack(GGUF_F32, p); break;
    }
}

static void multiply_in_blocks(const struct panel *p, const float *x, float *out)
{
    switch (p->matrix->type) {
    case GGUF_MXFP4: one_row(GGUF_MXFP4, p, x, out); break;
    case GGUF_Q8_0: one_row(GGUF_Q8_0, p, x, out); break;
    case GGUF_F16: one_row(GGUF_F16, p, x, out); break;
    case GGUF_BF16: one_row(GGUF_BF16, p, x, out); break;
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
        for (uint32_t o = 0; o < p->count; o += 4) {
            /* Rows beyond the panel's end are what the scratch holds: their sums are not used. */
            float sums[TILE_ROWS_X * 4];
            tile_any(p->floats + (uint64_t)o * columns, columns, rows, here, sums);
            for (uint32_t i = 0; i < here; i++)
                memcpy(out + (uint64_t)(t + i) * PANEL_ROWS + o, sums + (uint64_t)i * 4,
                       4 * sizeof *out);
        }
    }
}

/* ── the operation ─────────────────────────────────────────────────────────────────────────── */

struct linear {
    const struct host_context *c;
    const struct host_product *products;
    struct rows x;
    uint32_t n, split; /* rows of x of a task */
};

static void linear_task(void *arg, uint32_t task, uint32_t thread)
{
    const struct linear *l = arg;
    uint32_t n_splits = (l->n + l->split - 1) / l->split;
    uint32_t index = task / n_splits, begin = task % n_splits * l->split;
    uint32_t end = l->n - begin > l->split ? begin + l->split : l->n;
    const struct host_product *p = l->products;
    while (index >= panels_of(&p->matrix))
        index -= panels_of(&p++->matrix);

    float *scratch = (float *)(void *)(l->c->scratch + thread * l->c->scratch_bytes);
    float *out = scratch + panel_floats(p->matrix.columns);
    struct panel panel;
    panel_open(&panel, &p->matrix, index * PANEL_ROWS, l->n, scratch);
    const float *bias = p->matrix.bias ? p->matrix.bias + panel.first : NULL;
    for (uint32_t t = begin; t < end; t += CHUNK_ROWS_X) {
        uint32_t n = end - t < CHUNK_ROWS_X ? end - t : CHUNK_ROWS_X;
        panel_multiply(&panel, &l->x, t, n, out);
        for (uint32_t i = 0; i < n; i++) {
            float *y = p->y + (t + i) * p->stride + panel.first;
            for (uint32_t o = 0; o < panel.count; o++) {
                float sum = out[i * PANEL_ROWS + o] + (bias ? bias[o] : 0.0f);
                y[o] = p->add ? y[o] + sum : sum;
            }
        }
    }
}

void op_linear(const struct host_context *c, const struct host_product *products,
               uint32_t n_products, const float *x, uint64_t x_stride, uint32_t n)
{
    struct linear l = {.c = c, .products = products, .x = {x, x_stride, NULL, 1}, .n = n};
    uint32_t panels = 0;
    double work = 0;
    for (uint32_t i = 0; i < n_products; i++) {
        panels += panels_of(&products[i].matrix);
        work += (double)products[i].matrix.rows * products[i].matrix.columns * n;
    }
    /* A matrix of few panels (the router) is cut along x too, so that all threads have work. */
    l.split = n;
    if (panels < 4 * pool_threads(c->pool) && n > 2 * CHUNK_ROWS_X)
        l.split = CHUNK_ROWS_X;
    pool_run(cpu_pool_for(c, work), panels * ((n + l.split - 1) / l.split), linear_task, &l);
}
