/*
 * pack: weights in the layout of products of integers. Private to kernels/.
 *
 * A panel is PACK_ROWS rows of a matrix; for each 32 columns it holds a group:
 *     scales of the rows (as in the file; those of K-quants as floats), then minima where there are
 *     codes [4 or 8][PACK_ROWS][4 bytes]   4 bits: byte j of a row has columns j and j + 16;
 *                                          8 bits: column j
 * so that one register has the same four columns of every row: sums of rows never meet, and a panel
 * is read from its begin to its end. Types with less than 8 bits but more than 4 take 8.
 */
#ifndef GPTOSS_KERNELS_PACK_H
#define GPTOSS_KERNELS_PACK_H

#include "gguf/gguf.h"

#define PACK_ROWS 16

/* Every type that there are products of integers for. */
/* clang-format off */
#define PACK_TYPES(DO)                                                  \
    DO(GGUF_MXFP4) DO(GGUF_Q8_0) DO(GGUF_Q4_0) DO(GGUF_Q4_1)            \
    DO(GGUF_Q5_0) DO(GGUF_Q5_1) DO(GGUF_Q4_K) DO(GGUF_Q5_K) DO(GGUF_Q6_K)
/* clang-format on */

/* Bytes of the scales of a group (with two: of columns 0–15, then 16–31), and of its minima. */
static inline uint32_t pack_scale_bytes(enum gguf_type type)
{
    switch (type) {
    case GGUF_MXFP4: return PACK_ROWS;
    case GGUF_Q4_K:
    case GGUF_Q5_K: return 4 * PACK_ROWS;
    case GGUF_Q6_K: return 2 * 4 * PACK_ROWS;
    default: return 2 * PACK_ROWS;
    }
}

static inline uint32_t pack_minimum_bytes(enum gguf_type type)
{
    switch (type) {
    case GGUF_Q4_1:
    case GGUF_Q5_1: return 2 * PACK_ROWS;
    case GGUF_Q4_K:
    case GGUF_Q5_K: return 4 * PACK_ROWS;
    default: return 0;
    }
}

static inline bool pack_in_nibbles(enum gguf_type type)
{
    return type == GGUF_MXFP4 || type == GGUF_Q4_0 || type == GGUF_Q4_1 || type == GGUF_Q4_K;
}

/* 8-bit codes of these are the number + 128; of the others with a minimum, the number itself. */
static inline bool pack_is_signed(enum gguf_type type)
{
    return pack_minimum_bytes(type) == 0;
}

static inline uint32_t pack_group_bytes(enum gguf_type type)
{
    return pack_scale_bytes(type) + pack_minimum_bytes(type) +
           PACK_ROWS * (pack_in_nibbles(type) ? 16 : 32);
}

static inline uint64_t pack_panel_bytes(enum gguf_type type, uint32_t columns)
{
    return (uint64_t)(columns / 32) * pack_group_bytes(type);
}

bool pack_has(enum gguf_type type);
/* Of a matrix; its last panel is filled up with rows of zeros. 0: no such type. */
uint64_t pack_bytes(enum gguf_type type, uint32_t rows, uint32_t columns);
/* One panel: `count` rows of the file's blocks, row_bytes apart. */
void pack_panel(enum gguf_type type, const unsigned char *rows, uint64_t row_bytes, uint32_t count,
                uint32_t columns, unsigned char *to);

#endif
