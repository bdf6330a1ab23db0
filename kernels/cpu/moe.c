/*
 * moe: the experts that each row chose, weighted and added to the row.
 *
 * The (row, choice) pairs are sorted by expert, so that an expert's weights are unpacked once for all
 * of its rows. Three operations: gate and up with the activation between them, down, and for each row
 * the sum over its experts in the order of its choice.
 */
#include "kernels/cpu/local.h"

/* Panels of gate, then of up, that a task reads in one piece; two of each as floats fill the scratch,
 * or all of them packed. */
#define UNIT_PANELS 3

struct moe {
    const struct host_context *c;
    const struct host_moe *m;
    uint32_t n_used; /* experts */
};

uint64_t CPU_NAME(moe_scratch)(uint32_t columns)
{
    return 2 * panel_floats(columns) + 2 * UNIT_PANELS * (uint64_t)CHUNK_ROWS_X * PANEL_ROWS;
}

static struct host_matrix expert(const struct host_matrix *m, uint32_t e)
{
    struct host_matrix one = *m;
    one.data += (uint64_t)e * m->rows * m->row_bytes;
    one.bias += (uint64_t)e * m->rows;
    if (one.packed)
        one.packed += e * pack_bytes(m->type, m->rows, m->columns);
    return one;
}

/* u = a' · sigmoid(alpha · a') · (b' + 1), a' = min(a, limit), b' = b clamped to ±limit */
INLINE v16 swiglu(v16 a, v16 b, float alpha, float limit)
{
    v16 one = v_set(1), most = v_set(limit);
    a = v_min(a, most);
    b = v_max(v_min(b, most), v_set(-limit));
    v16 e = v_exp(v_mul(a, v_set(-alpha)));
    return v_mul(v_div(a, v_add(one, e)), v_add(b, one));
}

/* A task: some panels of a matrix, for all pairs of one expert. */
struct part {
    uint32_t e, n_pairs, first, count;
    const uint32_t *pairs;
};

static struct part part_of(const struct moe *moe, const struct host_matrix *matrix, uint32_t task)
{
    const struct host_moe *m = moe->m;
    uint32_t group = group_of(moe->c, moe->n_used * panels_of(matrix), moe->m->n);
    uint32_t parts = (panels_of(matrix) + group - 1) / group, e = m->used[task / parts];
    uint32_t first = task % parts * group, left = panels_of(matrix) - first;
    return (struct part){e, m->begin[e + 1] - m->begin[e], first, left < group ? left : group,
                         m->pairs + m->begin[e]};
}

static uint32_t parts_of(const struct moe *moe, const struct host_matrix *matrix)
{
    uint32_t group = group_of(moe->c, moe->n_used * panels_of(matrix), moe->m->n);
    return moe->n_used * ((panels_of(matrix) + group - 1) / group);
}

static void put_units(const struct host_moe *m, const float *a, const float *b,
                      const float *gate_bias, const float *up_bias, uint32_t first, uint32_t count,
                      const uint32_t *pairs, uint32_t n)
{
    v16 of_gate = v_load_part(gate_bias, count), of_up = v_load_part(up_bias, count);
    uint64_t stride = host_padded(m->gate.rows);
    for (uint32_t i = 0; i < n; i++) {
        v16 u = swiglu(v_add(v_load(a + i * PANEL_ROWS), of_gate),
                       v_add(v_load(b + i * PANEL_ROWS), of_up), m->alpha, m->limit);
        v_store_part(m->unit + pairs[i] * stride + first, count, u);
    }
}

static uint32_t rows_in(const struct host_matrix *m, uint32_t first)
{
    return m->rows - first < PANEL_ROWS ? m->rows - first : PANEL_ROWS;
}

/* Some panels of one matrix by some rows; to out[count][CHUNK_ROWS_X, PANEL_ROWS]. */
struct unit_side {
    const struct moe *moe;
    struct host_matrix matrix;
    bool integers;
    struct rows x;
    struct quantised q;
    struct panel panels[UNIT_PANELS];
    const unsigned char *bytes[UNIT_PANELS];
    float *scratch;
};

static void side_open(struct unit_side *s, uint32_t first, uint32_t count, uint32_t n_pairs)
{
    for (uint32_t i = 0; i < count; i++)
        if (s->integers)
            s->bytes[i] = packed_panel(
                &s->matrix, first + i,
                (unsigned char *)(s->scratch + i * panel_bytes_floats(s->matrix.columns)));
        else
            panel_open(&s->panels[i], &s->matrix, (first + i) * PANEL_ROWS, n_pairs, s->scratch);
}

static void side_multiply(struct unit_side *s, uint32_t count, uint32_t from, uint32_t n,
                          float *out)
{
    for (uint32_t i = 0; i < count; i++, out += CHUNK_ROWS_X * PANEL_ROWS)
        if (s->integers)
            dot_of()->multiply(s->matrix.type, s->bytes[i], s->matrix.columns, &s->q, from, n, out);
        else
            panel_multiply(&s->panels[i], &s->x, from, n, out);
}

static void unit_task(void *arg, uint32_t task, uint32_t thread)
{
    const struct moe *moe = arg;
    const struct host_moe *m = moe->m;
    struct part p = part_of(moe, &m->gate, task);
    float *scratch = (float *)(void *)(moe->c->scratch + thread * moe->c->scratch_bytes);
    float *a = scratch + 2 * panel_floats(m->gate.columns);
    float *b = a + UNIT_PANELS * (uint64_t)CHUNK_ROWS_X * PANEL_ROWS;
    const struct rows x = {m->h, m->h_stride, p.pairs, m->active};
    const struct quantised q =
        quantised_rows(moe->c, moe->c->quantised, m->gate.columns, p.pairs, m->active);
    struct unit_side gate = {
        moe, expert(&m->gate, p.e), in_integers(moe->c, &m->gate), x, q, {{0}}, {0}, scratch};
    struct unit_side up = {moe,
                           expert(&m->up, p.e),
                           in_integers(moe->c, &m->up),
                           x,
                           q,
                           {{0}},
                           {0},
                           scratch + panel_floats(m->gate.columns)};
    /* Unpacked to floats there is room for one panel of each. */
    uint32_t most = gate.integers && up.integers ? UNIT_PANELS : 1;
    for (uint32_t i = p.first; i < p.first + p.count; i += most) {
        uint32_t left = p.first + p.count - i, count = left < most ? left : most;
        side_open(&gate, i, count, p.n_pairs);
        side_open(&up, i, count, p.n_pairs);
        for (uint32_t done = 0; done < p.n_pairs; done += CHUNK_ROWS_X) {
            uint32_t n = p.n_pairs - done < CHUNK_ROWS_X ? p.n_pairs - done : CHUNK_ROWS_X;
            side_multiply(&gate, count, done, n, a);
            side_multiply(&up, count, done, n, b);
            for (uint32_t j = 0; j < count; j++) {
                uint32_t first = (i + j) * PANEL_ROWS, at = j * CHUNK_ROWS_X * PANEL_ROWS;
                put_units(m, a + at, b + at, gate.matrix.bias + first, up.matrix.bias + first,
                          first, rows_in(&gate.matrix, first), p.pairs + done, n);
            }
        }
    }
}

static void down_task(void *arg, uint32_t task, uint32_t thread)
{
    const struct moe *moe = arg;
    const struct host_moe *m = moe->m;
    struct part p = part_of(moe, &m->down, task);
    float *scratch = (float *)(void *)(moe->c->scratch + thread * moe->c->scratch_bytes);
    float *out = scratch + panel_floats(m->down.columns);
    struct host_matrix down = expert(&m->down, p.e);
    bool integers = in_integers(moe->c, &down);
    const struct rows x = {m->unit, host_padded(m->gate.rows), p.pairs, 1};
    const struct quantised q =
        quantised_rows(moe->c, moe->c->quantised_units, down.columns, p.pairs, 1);
    for (uint32_t i = p.first; i < p.first + p.count; i++) {
        uint32_t first = i * PANEL_ROWS, count = rows_in(&down, first);
        v16 bias = v_load_part(down.bias + first, count);
        struct panel panel;
        const unsigned char *bytes = NULL;
        if (integers)
            bytes = packed_panel(&down, i, (unsigned char *)scratch);
        else
            panel_open(&panel, &down, first, p.n_pairs, scratch);
        for (uint32_t done = 0; done < p.n_pairs; done += CHUNK_ROWS_X) {
            uint32_t n = p.n_pairs - done < CHUNK_ROWS_X ? p.n_pairs - done : CHUNK_ROWS_X;
            if (integers)
                dot_of()->multiply(down.type, bytes, down.columns, &q, done, n, out);
            else
                panel_multiply(&panel, &x, done, n, out);
            for (uint32_t j = 0; j < n; j++)
                v_store_part(m->part + (uint64_t)p.pairs[done + j] * m->down.rows + first, count,
                             v_add(v_load(out + j * PANEL_ROWS), bias));
        }
    }
}

#define ADD_ROWS 8 /* of a task */

static void add_task(void *arg, uint32_t task, uint32_t thread)
{
    (void)thread;
    const struct host_moe *m = ((const struct moe *)arg)->m;
    uint32_t columns = m->down.rows;
    uint32_t end = m->n - task * ADD_ROWS > ADD_ROWS ? (task + 1) * ADD_ROWS : m->n;
    for (uint32_t t = task * ADD_ROWS; t < end; t++) {
        float *x = m->x + (uint64_t)t * columns;
        const float *part = m->part + (uint64_t)t * m->active * columns;
        const float *weight = m->weight + (uint64_t)t * m->active;
        for (uint32_t i = 0; i < columns; i += 16) {
            uint32_t here = columns - i < 16 ? columns - i : 16;
            v16 sum = v_mul(v_set(weight[0]), v_load_part(part + i, here));
            for (uint32_t a = 1; a < m->active; a++)
                sum = v_fma(v_set(weight[a]), v_load_part(part + (uint64_t)a * columns + i, here),
                            sum);
            v_store_part(x + i, here, v_add(v_load_part(x + i, here), sum));
        }
    }
}

void op_moe(const struct host_context *c, const struct host_moe *m)
{
    struct moe moe = {c, m, host_moe_sort(m)};
    bool integers = in_integers(c, &m->gate) || in_integers(c, &m->up);
    double work = (double)m->n * m->active * m->gate.rows * m->gate.columns / work_as(c, integers);
    if (integers)
        rows_quantise(c, m->h, m->h_stride, m->n, m->gate.columns, c->quantised);
    pool_run(cpu_pool_for(c, 2 * work), parts_of(&moe, &m->gate), unit_task, &moe);
    if (in_integers(c, &m->down))
        rows_quantise(c, m->unit, host_padded(m->gate.rows), m->n * m->active, m->down.columns,
                      c->quantised_units);
    pool_run(cpu_pool_for(c, work), parts_of(&moe, &m->down), down_task, &moe);
    pool_run(cpu_pool_for(c, 4.0 * m->n * m->active * m->down.rows),
             (m->n + ADD_ROWS - 1) / ADD_ROWS, add_task, &moe);
}
