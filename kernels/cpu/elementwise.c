#include "kernels/cpu/local.h"

#include <math.h>

/* ── rmsnorm ───────────────────────────────────────────────────────────────────────────────── */

struct rmsnorm {
    const float *x, *weight;
    float *out;
    uint64_t x_stride, out_stride;
    uint32_t n, columns;
    float eps;
};

#define NORM_ROWS 8 /* of a task */

static void rmsnorm_task(void *arg, uint32_t task, uint32_t thread)
{
    (void)thread;
    const struct rmsnorm *r = arg;
    uint32_t whole = r->columns / 16 * 16, rest = r->columns - whole;
    uint32_t end = r->n - task * NORM_ROWS > NORM_ROWS ? (task + 1) * NORM_ROWS : r->n;
    for (uint32_t t = task * NORM_ROWS; t < end; t++) {
        const float *x = r->x + t * r->x_stride;
        float *out = r->out + t * r->out_stride;
        v16 sum = v_zero();
        for (uint32_t i = 0; i < whole; i += 16) {
            v16 v = v_load(x + i);
            sum = v_fma(v, v, sum);
        }
        if (rest) {
            v16 v = v_load_part(x + whole, rest);
            sum = v_fma(v, v, sum);
        }
        v16 scale = v_set(1.0f / sqrtf(v_sum(sum) / (float)r->columns + r->eps));
        for (uint32_t i = 0; i < whole; i += 16)
            v_store(out + i, v_mul(v_load(r->weight + i), v_mul(v_load(x + i), scale)));
        if (rest)
            v_store_part(out + whole, rest,
                         v_mul(v_load_part(r->weight + whole, rest),
                               v_mul(v_load_part(x + whole, rest), scale)));
    }
}

void op_rmsnorm(const struct host_context *c, const float *x, uint64_t x_stride,
                const float *weight, uint32_t n, uint32_t columns, float eps, float *out,
                uint64_t out_stride)
{
    struct rmsnorm r = {x, weight, out, x_stride, out_stride, n, columns, eps};
    pool_run(cpu_pool_for(c, 4.0 * n * columns), (n + NORM_ROWS - 1) / NORM_ROWS, rmsnorm_task, &r);
}

/* ── the choice of experts ─────────────────────────────────────────────────────────────────── */

void op_route(const struct host_context *c, const float *logits, uint32_t n, uint32_t experts,
              uint32_t active, uint32_t *chosen, float *weight)
{
    (void)c;
    for (uint32_t t = 0; t < n; t++) {
        const float *row = logits + (uint64_t)t * experts;
        uint32_t *best = chosen + (uint64_t)t * active;
        float *w = weight + (uint64_t)t * active;
        uint32_t have = 0;
        /* Experts in order: one that is equal to another stays behind it. */
        for (uint32_t e = 0; e < experts; e++) {
            if (have == active && !(row[e] > row[best[have - 1]]))
                continue;
            uint32_t at = have < active ? have++ : active - 1;
            for (; at && row[e] > row[best[at - 1]]; at--)
                best[at] = best[at - 1];
            best[at] = e;
        }
        float sum = 0;
        for (uint32_t i = 0; i < active; i++)
            sum += w[i] = scalar_exp(row[best[i]] - row[best[0]]);
        for (uint32_t i = 0; i < active; i++)
            w[i] /= sum;
    }
}
