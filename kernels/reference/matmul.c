#include "kernels/reference/reference.h"

/* y[t, o] = Σ_i x[t, i] · w[o, i] + bias[o], the weights made floats a block at a time. */
static void product(const struct host_product *p, const float *x, uint64_t x_stride, uint32_t n)
{
    const struct host_matrix *m = &p->matrix;
    uint32_t block = gguf_type_block_values(m->type), bytes = gguf_type_block_bytes(m->type);
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t o = 0; o < m->rows; o++) {
            const unsigned char *row = m->data + o * m->row_bytes;
            double sum = 0;
            for (uint32_t i = 0; i < m->columns; i += block) {
                float w[256]; /* the largest block */
                gguf_to_float(m->type, row + (uint64_t)(i / block) * bytes, w, block);
                for (uint32_t j = 0; j < block; j++)
                    sum += (double)x[t * x_stride + i + j] * (double)w[j];
            }
            if (m->bias)
                sum += (double)m->bias[o];
            float *y = &p->y[t * p->stride + o];
            *y = p->add ? (float)((double)*y + sum) : (float)sum;
        }
}

void reference_linear(const struct host_context *c, const struct host_product *products,
                      uint32_t n_products, const float *x, uint64_t x_stride, uint32_t n)
{
    (void)c;
    for (uint32_t i = 0; i < n_products; i++)
        product(&products[i], x, x_stride, n);
}
