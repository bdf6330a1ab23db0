/*
 * moe: the experts that each row chose, weighted and added to the row.
 *
 * The (row, choice) pairs are sorted by expert, so that an expert's weights are unpacked once for all
 * of its rows. Three operations: gate and up with the activation between them, down, and for each row
 * the sum over its experts in the order of its choice.
 */
#include "kernels/cpu/local.h"

struct moe {
    const struct host_context *c;
    const struct host_moe *m;
};

uint64_t CPU_NAME(moe_scratch)(uint32_t columns)
{
    return 2 * panel_floats(columns) + 2 * (uint64_t)CHUNK_ROWS_X * PANEL_ROWS;
}

static struct host_matrix expert(const struct host_matrix *m, uint32_t e)
{
    struct host_matrix one = *m;
    one.data += (uint64_t)e * m->rows * m->row_bytes;
    one.bias += (uint64_t)e * m->rows;
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

/* Task: some columns of u for all pairs of one expert. */
static void unit_task(void *arg, uint32_t task, uint32_t thread)
{
    const struct moe *moe = arg;
    const struct host_moe *m = moe->m;
    uint32_t panels = panels_of(&m->gate), e = task / panels;
    uint32_t n_pairs = m->begin[e + 1] - m->begin[e], first = task % panels * PANEL_ROWS;
    const uint32_t *pairs = m->pairs + m->begin[e];
    if (!n_pairs)
        return;
    float *scratch = (float *)(void *)(moe->c->scratch + thread * moe->c->scratch_bytes);
    float *a = scratch + 2 * panel_floats(m->gate.columns);
    float *b = a + (uint64_t)CHUNK_ROWS_X * PANEL_ROWS;
    struct host_matrix gate = expert(&m->gate, e), up = expert(&m->up, e);
    struct panel gate_panel, up_panel;
    panel_open(&gate_panel, &gate, first, n_pairs, scratch);
    panel_open(&up_panel, &up, first, n_pairs, scratch + panel_floats(m->gate.columns));
    uint32_t count = gate_panel.count;
    v16 gate_bias = v_load_part(gate.bias + first, count);
    v16 up_bias = v_load_part(up.bias + first, count);
    const struct rows x = {m->h, m->h_stride, pairs, m->active};
    uint64_t stride = host_padded(m->gate.rows);
    for (uint32_t done = 0; done < n_pairs; done += CHUNK_ROWS_X) {
        uint32_t n = n_pairs - done < CHUNK_ROWS_X ? n_pairs - done : CHUNK_ROWS_X;
        panel_multiply(&gate_panel, &x, done, n, a);
        panel_multiply(&up_panel, &x, done, n, b);
        for (uint32_t i = 0; i < n; i++) {
            v16 u = swiglu(v_add(v_load(a + i * PANEL_ROWS), gate_bias),
                           v_add(v_load(b + i * PANEL_ROWS), up_bias), m->alpha, m->limit);
            v_store_part(m->unit + pairs[done + i] * stride + first, count, u);
        }
    }
}

static void down_task(void *arg, uint32_t task, uint32_t thread)
{
    const struct moe *moe = arg;
    const struct host_moe *m = moe->m;
    uint32_t panels = panels_of(&m->down), e = task / panels;
    uint32_t n_pairs = m->begin[e + 1] - m->begin[e], first = task % panels * PANEL_ROWS;
    const uint32_t *pairs = m->pairs + m->begin[e];
    if (!n_pairs)
        return;
    float *scratch = (float *)(void *)(moe->c->scratch + thread * moe->c->scratch_bytes);
    float *out = scratch + panel_floats(m->down.columns);
    struct host_matrix down = expert(&m->down, e);
    struct panel panel;
    panel_open(&panel, &down, first, n_pairs, scratch);
    v16 bias = v_load_part(down.bias + first, panel.count);
    const struct rows x = {m->unit, host_padded(m->gate.rows), pairs, 1};
    for (uint32_t done = 0; done < n_pairs; done += CHUNK_ROWS_X) {
        uint32_t n = n_pairs - done < CHUNK_ROWS_X ? n_pairs - done : CHUNK_ROWS_X;
        panel_multiply(&panel, &x, done, n, out);
        for (uint32_t i = 0; i < n; i++)
            v_store_part(m->part + (uint64_t)pairs[done + i] * m->down.rows + first, panel.count,
                         v_add(v_load(out + i * PANEL_ROWS), bias));
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
    struct moe moe = {c, m};
    double work = (double)m->n * m->active * m->gate.rows * m->gate.columns;
    host_moe_sort(m);
    pool_run(cpu_pool_for(c, 2 * work), m->experts * panels_of(&m->gate), unit_task, &moe);
    pool_run(cpu_pool_for(c, work), m->experts * panels_of(&m->down), down_task, &moe);
    pool_run(cpu_pool_for(c, 4.0 * m->n * m->active * m->down.rows),
             (m->n + ADD_ROWS - 1) / ADD_ROWS, add_task, &moe);
}
