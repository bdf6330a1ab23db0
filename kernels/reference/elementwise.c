#include "kernels/reference/reference.h"

#include <math.h>

void reference_rmsnorm(const struct host_context *c, const float *x, uint64_t x_stride,
                       const float *weight, uint32_t n, uint32_t columns, float eps, float *out,
                       uint64_t out_stride)
{
    (void)c;
    for (uint32_t t = 0; t < n; t++) {
        const float *row = x + t * x_stride;
        double sum = 0;
        for (uint32_t i = 0; i < columns; i++)
            sum += (double)row[i] * (double)row[i];
        double scale = 1 / sqrt(sum / columns + (double)eps);
        for (uint32_t i = 0; i < columns; i++)
            out[t * out_stride + i] = (float)((double)weight[i] * ((double)row[i] * scale));
    }
}

void reference_route(const struct host_context *c, const float *logits, uint32_t n,
                     uint32_t experts, uint32_t active, uint32_t *chosen, float *weight)
{
    (void)c;
    for (uint32_t t = 0; t < n; t++) {
        const float *row = logits + (uint64_t)t * experts;
        uint32_t *best = chosen + (uint64_t)t * active;
        float *w = weight + (uint64_t)t * active;
        for (uint32_t i = 0; i < active; i++) {
            uint32_t pick = experts;
            for (uint32_t e = 0; e < experts; e++) {
                bool taken = false;
                for (uint32_t j = 0; j < i; j++)
                    taken = taken || best[j] == e;
                if (!taken && (pick == experts || row[e] > row[pick]))
                    pick = e;
            }
            best[i] = pick;
        }
        double sum = 0;
        for (uint32_t i = 0; i < active; i++)
            sum += exp((double)row[best[i]] - (double)row[best[0]]);
        for (uint32_t i = 0; i < active; i++)
            w[i] = (float)(exp((double)row[best[i]] - (double)row[best[0]]) / sum);
    }
}
