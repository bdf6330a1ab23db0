#include "kernels/reference/reference.h"

#include <math.h>

static struct host_matrix expert(const struct host_matrix *m, uint32_t e)
{
    struct host_matrix one = *m;
    one.data += (uint64_t)e * m->rows * m->row_bytes;
    one.bias += (uint64_t)e * m->rows;
    return one;
}

/* u = a' · sigmoid(alpha · a') · (b' + 1), a' = min(a, limit), b' = b clamped to ±limit */
static float swiglu(float a, float b, float alpha, float limit)
{
    double gate = fmin((double)a, (double)limit);
    double up = fmax(fmin((double)b, (double)limit), -(double)limit);
    return (float)(gate / (1 + exp(-(double)alpha * gate)) * (up + 1));
}

void reference_moe(const struct host_context *c, const struct host_moe *moe)
{
    uint64_t unit_stride = host_padded(moe->gate.rows);
    for (uint32_t t = 0; t < moe->n; t++) {
        const float *h = moe->h + t * moe->h_stride;
        for (uint32_t i = 0; i < moe->active; i++) {
            uint64_t pair = (uint64_t)t * moe->active + i;
            uint32_t e = moe->chosen[pair];
            float *unit = moe->unit + pair * unit_stride, *part = moe->part + pair * moe->down.rows;
            struct host_matrix gate = expert(&moe->gate, e), up = expert(&moe->up, e);
            for (uint32_t o = 0; o < moe->gate.rows; o++) {
                float a, b;
                struct host_matrix gate_row = gate, up_row = up;
                gate_row.rows = up_row.rows = 1;
                gate_row.data += o * gate.row_bytes;
                up_row.data += o * up.row_bytes;
                gate_row.bias += o;
                up_row.bias += o;
                const struct host_product products[] = {{.matrix = gate_row, .y = &a, .stride = 1},
                                                        {.matrix = up_row, .y = &b, .stride = 1}};
                reference_linear(c, products, 2, h, 0, 1);
                unit[o] = swiglu(a, b, moe->alpha, moe->limit);
            }
            const struct host_product down = {
                .matrix = expert(&moe->down, e), .y = part, .stride = moe->down.rows};
            reference_linear(c, &down, 1, unit, 0, 1);
        }
        for (uint32_t o = 0; o < moe->down.rows; o++) {
            double sum = 0;
            for (uint32_t i = 0; i < moe->active; i++) {
                uint64_t pair = (uint64_t)t * moe->active + i;
                sum += (double)moe->weight[pair] * (double)moe->part[pair * moe->down.rows + o];
            }
            float *x = &moe->x[(uint64_t)t * moe->down.rows + o];
            *x = (float)((double)*x + sum);
        }
    }
}
