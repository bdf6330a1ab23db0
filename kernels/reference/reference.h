/*
 * reference: each operation as its formula is written, one loop nest, no SIMD, no threads. The oracle
 * of the other backends. Sums are accumulated in double and rounded once, so that what differs from
 * it is the other's rounding.
 */
#ifndef GPTOSS_KERNELS_REFERENCE_H
#define GPTOSS_KERNELS_REFERENCE_H

#include "kernels/host/table.h"

void reference_rmsnorm(const struct host_context *c, const float *x, uint64_t x_stride,
                       const float *weight, uint32_t n, uint32_t columns, float eps, float *out,
                       uint64_t out_stride);
void reference_linear(const struct host_context *c, const struct host_product *products,
                      uint32_t n_products, const float *x, uint64_t x_stride, uint32_t n);
void reference_store(const struct host_context *c, const struct host_attention *a);
void reference_attend(const struct host_context *c, const struct host_attention *a);
void reference_route(const struct host_context *c, const float *logits, uint32_t n,
                     uint32_t experts, uint32_t active, uint32_t *chosen, float *weight);
void reference_moe(const struct host_context *c, const struct host_moe *moe);

#endif
