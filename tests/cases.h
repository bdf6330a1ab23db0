/*
 * cases: the shapes with which the operations of kernels/ops.h are tested, and timed by the bench.
 *
 * A test runs every case on every backend against the reference. The shapes named `timed` are those of
 * gpt-oss-20b; the others are the edges: one row, one more than a tile, odd sizes, a window that begins
 * inside a block, an expert without rows.
 */
#ifndef GPTOSS_TESTS_CASES_H
#define GPTOSS_TESTS_CASES_H

#include "gguf/gguf.h"
#include "kernels/kernels.h"

struct case_rmsnorm {
    uint32_t n, columns;
    bool timed;
};

static const struct case_rmsnorm cases_rmsnorm[] = {
    {1, 1, false},   {3, 15, false},  {9, 17, false},
    {2, 192, false}, {1, 2880, true}, {512, 2880, true},
};

struct case_linear {
    enum gguf_type type;
    uint32_t rows, columns, n;
    bool bias, add, timed;
};

static const struct case_linear cases_linear[] = {
    {GGUF_F32, 1, 1, 1, false, false, false},
    {GGUF_F32, 5, 7, 3, true, false, false},
    {GGUF_F32, 17, 33, 6, true, true, false},
    {GGUF_F32, 12, 320, 7, true, false, false},
    {GGUF_F32, 33, 545, 13, true, true, false}, /* one vector and one column beyond a pass */
    {GGUF_F16, 3, 31, 1, true, false, false},
    {GGUF_F16, 18, 47, 5, false, true, false},
    {GGUF_BF16, 2, 19, 2, true, false, false},
    {GGUF_BF16, 19, 96, 49, true, false, false}, /* one row beyond a chunk */
    {GGUF_Q8_0, 1, 32, 1, true, false, false},
    {GGUF_Q8_0, 15, 64, 2, true, true, false},
    {GGUF_Q8_0, 65, 544, 97, true, false, false},
    {GGUF_MXFP4, 4, 32, 1, true, false, false},
    {GGUF_MXFP4, 17, 96, 1, true, true, false},
    {GGUF_MXFP4, 31, 320, 8, false, false, false},
    {GGUF_Q8_0, 4096, 2880, 1, true, false, true},
    {GGUF_Q8_0, 4096, 2880, 128, true, false, true},
    {GGUF_MXFP4, 2880, 2880, 1, true, false, true},
    {GGUF_MXFP4, 2880, 2880, 128, true, false, true},
};

/* The formats of other published files: one block, several, more rows than a tile and than a chunk. */
static const struct case_linear cases_linear_formats[] = {
    {GGUF_Q4_0, 1, 32, 1, true, false, false},     {GGUF_Q4_0, 18, 352, 5, true, true, false},
    {GGUF_Q4_1, 1, 32, 1, true, false, false},     {GGUF_Q4_1, 17, 544, 50, true, false, false},
    {GGUF_Q5_0, 1, 32, 1, true, false, false},     {GGUF_Q5_0, 35, 192, 7, false, true, false},
    {GGUF_Q5_1, 1, 32, 1, true, false, false},     {GGUF_Q5_1, 19, 96, 13, true, false, false},
    {GGUF_Q2_K, 1, 256, 1, true, false, false},    {GGUF_Q2_K, 18, 768, 5, true, true, false},
    {GGUF_Q3_K, 1, 256, 1, true, false, false},    {GGUF_Q3_K, 17, 512, 50, true, false, false},
    {GGUF_Q4_K, 1, 256, 1, true, false, false},    {GGUF_Q4_K, 35, 768, 7, false, true, false},
    {GGUF_Q5_K, 1, 256, 1, true, false, false},    {GGUF_Q5_K, 19, 512, 13, true, false, false},
    {GGUF_Q6_K, 1, 256, 1, true, false, false},    {GGUF_Q6_K, 33, 768, 9, true, true, false},
    {GGUF_Q4_0, 2880, 2880, 1, true, false, true}, {GGUF_Q5_0, 4096, 2880, 1, true, false, true},
    {GGUF_Q5_1, 4096, 2880, 1, true, false, true}, {GGUF_Q4_K, 2880, 4096, 1, true, false, true},
    {GGUF_Q6_K, 2880, 4096, 1, true, false, true},
};

struct case_attention {
    uint32_t heads, kv_heads, head_dim, window; /* window 0: all keys */
    enum kernels_kv_type kv_type;
    uint32_t block_tokens, first, count;
    bool rotate, timed;
};

static const struct case_attention cases_attention[] = {
    {1, 1, 2, 0, KERNELS_KV_F32, 1, 0, 1, false, false},
    {2, 1, 6, 3, KERNELS_KV_F32, 2, 0, 9, true, false},
    {3, 1, 16, 0, KERNELS_KV_F32, 16, 15, 3, true, false},
    {10, 2, 32, 37, KERNELS_KV_F32, 16, 30, 41, true, false}, /* the window begins inside a block */
    {10, 2, 20, 37, KERNELS_KV_F32, 8, 62, 5, true, false},
    {8, 2, 64, 128, KERNELS_KV_F32, 32, 120, 20, true, false},
    {8, 2, 64, 0, KERNELS_KV_F32, 64, 200, 9, true, false},
    {7, 7, 64, 1, KERNELS_KV_F32, 16, 3, 4, true, false}, /* a query sees itself alone */
    {8, 2, 64, 128, KERNELS_KV_F16, 32, 120, 20, false, false},
    {8, 2, 64, 0, KERNELS_KV_BF16, 16, 70, 9, false, false},
    {5, 1, 34, 11, KERNELS_KV_F16, 4, 13, 17, false, false},
    {5, 1, 34, 0, KERNELS_KV_BF16, 128, 100, 3, false, false},
    {64, 8, 64, 0, KERNELS_KV_F32, 64, 4095, 1, true, true},
    {64, 8, 64, 128, KERNELS_KV_F32, 64, 4095, 1, true, true},
    {64, 8, 64, 0, KERNELS_KV_F16, 64, 4095, 1, false, true},
};

struct case_moe {
    enum gguf_type router_type, type;
    uint32_t hidden, experts, active, expert_ffn, n;
    bool timed;
};

static const struct case_moe cases_moe[] = {
    {GGUF_F32, GGUF_F32, 7, 1, 1, 3, 1, false},
    {GGUF_F32, GGUF_F32, 33, 5, 5, 17, 4, false}, /* every expert for every row */
    {GGUF_F32, GGUF_MXFP4, 320, 12, 3, 96, 1, false},
    {GGUF_F32, GGUF_MXFP4, 320, 12, 3, 96, 2, false}, /* most experts have no row */
    {GGUF_F32, GGUF_MXFP4, 320, 12, 3, 96, 50, false},
    {GGUF_F16, GGUF_Q8_0, 64, 16, 4, 32, 9, false},
    {GGUF_F32, GGUF_BF16, 40, 3, 2, 24, 60, false}, /* more rows of an expert than a chunk */
    {GGUF_F32, GGUF_MXFP4, 2880, 32, 4, 2880, 1, true},
    {GGUF_F32, GGUF_MXFP4, 2880, 32, 4, 2880, 64, true},
};

static const struct case_moe cases_moe_formats[] = {
    {GGUF_F32, GGUF_Q4_0, 64, 8, 2, 32, 9, false},
    {GGUF_F32, GGUF_Q4_1, 64, 8, 2, 32, 9, false},
    {GGUF_F32, GGUF_Q5_0, 64, 8, 2, 32, 1, false},
    {GGUF_F32, GGUF_Q5_1, 64, 8, 2, 32, 30, false},
    {GGUF_F32, GGUF_Q2_K, 256, 4, 2, 256, 3, false},
    {GGUF_F32, GGUF_Q3_K, 256, 4, 2, 256, 3, false},
    {GGUF_F32, GGUF_Q4_K, 256, 4, 2, 256, 3, false},
    {GGUF_F32, GGUF_Q5_K, 256, 4, 2, 256, 3, false},
    {GGUF_F32, GGUF_Q6_K, 256, 4, 2, 256, 9, false},
};

#define CASES(table) (sizeof(table) / sizeof *(table))

#endif
