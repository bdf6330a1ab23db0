/*
 * matmul: matrices of the model in GPU memory, and the products with them. Private to kernels/cuda/.
 *
 * One contract for every product, whatever the number of rows (decode and prefill alike), so that a
 * row's result does not depend on the other rows of its step:
 *   - weights are dequantised to half: exact for MXFP4 (E2M1 times a power of two; the row's largest
 *     is taken out and multiplies the sum, see layout.cuh), rounded once for Q8_0 and others;
 *   - activations are half (they are normed values, attention outputs or SwiGLU outputs, all far
 *     inside half's range);
 *   - y = ((s0 + s1) + s2) + … over at most 8 parts of k, cut by k alone; inside a part
 *     mma.m16n8k16 (f16 × f16 → f32) in ascending k. Hopper's wgmma gives the same bits.
 * A column of the mma's B operand is a token: columns do not influence one another.
 */
#ifndef GPTOSS_KERNELS_CUDA_MATMUL_H
#define GPTOSS_KERNELS_CUDA_MATMUL_H

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#include "gguf/gguf.h"

/* `count` matrices [rows, columns] one behind the other (count > 1: experts), repacked in the order in
 * which a warp's mma fragments want them (layout.cuh). Columns: a multiple of 8, of quantised types of
 * 32. data and all x are 16-byte aligned. */
struct cuda_matrix {
    unsigned char *data; /* device; cuda_matrix_bytes() bytes */
    uint32_t rows, columns, count;
    enum gguf_type type;
};

/* Device bytes of a repacked matrix, exact. */
size_t cuda_matrix_bytes(enum gguf_type type, uint32_t rows, uint32_t columns, uint32_t count);

/* Repacks on the device: raw = the tensor's bytes in the file's layout (device memory), `first` and
 * `n` of the `count` matrices. Interleaved loading (gate and up of an expert become rows 2i and 2i+1 of
 * one matrix of 2·rows): row_stride 2 and row_first 0 or 1; else 1 and 0. Asynchronous on the stream. */
int cuda_matrix_repack(struct cuda_matrix *m, const unsigned char *raw, uint32_t raw_rows,
                       uint32_t row_first, uint32_t row_stride, uint32_t first, uint32_t n,
                       cudaStream_t stream);

/* y[n, rows] (+)= W x[n, columns] + bias[rows]. add: y is added to (the residual). x: half, row
 * stride = columns. Row counts are known on the host. */
int cuda_linear(const struct cuda_matrix *w, const float *bias, const __half *x, float *y,
                uint32_t n, bool add, void *scratch, cudaStream_t stream);

/* residual[n, hidden] += Σ_j weight[n, j] · (down_e · swiglu(gate_e x + b, up_e x + b) + b), j in the
 * order 0 … active−1, e = choice[n, j]. gate_up is [experts] matrices [2·ffn, hidden], rows
 * interleaved; its bias [experts, 2·ffn] likewise. choice and weight are device memory, so nothing
 * here may depend on their values on the host (graphs). */
struct cuda_moe {
    const struct cuda_matrix *gate_up, *down;
    const float *gate_up_bias, *down_bias; /* [experts, 2·ffn], [experts, hidden] */
    uint32_t hidden, ffn, experts, active;
    float alpha, limit;
};
int cuda_moe_run(const struct cuda_moe *moe, const __half *x, const int32_t *choice,
                 const float *weight, float *residual, uint32_t n, void *scratch,
                 cudaStream_t stream);

/* Where cuda_moe_run leaves the experts' results, f32 [n, active, hidden] in scratch, without weights.
 * With residual NULL it ends there, and what follows adds them up (cuda_combine). */
float *cuda_moe_parts(const struct cuda_moe *moe, uint32_t n, void *scratch);

/* Bytes of scratch for products of up to n rows; linear products need none. */
size_t cuda_matmul_scratch_bytes(const struct cuda_moe *moe, uint32_t n);

#endif
