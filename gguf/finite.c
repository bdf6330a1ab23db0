/*
 * Data that would poison a model: NaN and infinite numbers, in tensors of floats and in the scales of
 * blocks. One pass over the data; of the blocks only the scales are looked at.
 */
#include "gguf/private.h"

#include <inttypes.h>
#include <string.h>

/* Where the half-precision scales of a block are. */
static const struct {
    uint8_t n, at[2];
} scales[] = {
    [GGUF_Q4_0] = {1, {0}},    [GGUF_Q4_1] = {2, {0, 2}}, [GGUF_Q5_0] = {1, {0}},
    [GGUF_Q5_1] = {2, {0, 2}}, [GGUF_Q8_0] = {1, {0}},    [GGUF_Q2_K] = {2, {80, 82}},
    [GGUF_Q3_K] = {1, {108}},  [GGUF_Q4_K] = {2, {0, 2}}, [GGUF_Q5_K] = {2, {0, 2}},
    [GGUF_Q6_K] = {1, {208}},
};

#define NONE UINT64_MAX

/* Numbers whose exponent is all ones overflow into the highest bit when one is added to it. */

static uint64_t first_bad_float(const unsigned char *p, uint64_t n)
{
    const uint64_t exponent = 0x7f8000007f800000u, one = 0x0080000000800000u,
                   top = 0x8000000080000000u;
    uint64_t bad = 0, i = 0;
    for (; i + 64 <= n && !bad; i += 64)
        for (int k = 0; k < 32; k++) {
            uint64_t two;
            memcpy(&two, p + 4 * i + 8 * k, 8);
            bad |= ((two & exponent) + one) & top;
        }
    for (i = bad ? i - 64 : i; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, p + 4 * i, 4);
        if ((bits & 0x7f800000) == 0x7f800000)
            return i;
    }
    return NONE;
}

/* `exponent`: the bits of it, 0x7c00 or 0x7f80. */
static uint64_t first_bad_half(const unsigned char *p, uint64_t n, uint16_t exponent)
{
    const uint64_t lanes = 0x0001000100010001u;
    uint64_t mask = exponent * lanes, one = (uint64_t)(exponent & -exponent) * lanes,
             top = 0x8000 * lanes;
    uint64_t bad = 0, i = 0;
    for (; i + 128 <= n && !bad; i += 128)
        for (int k = 0; k < 32; k++) {
            uint64_t four;
            memcpy(&four, p + 2 * i + 8 * k, 8);
            bad |= ((four & mask) + one) & top;
        }
    for (i = bad ? i - 128 : i; i < n; i++) {
        uint16_t bits;
        memcpy(&bits, p + 2 * i, 2);
        if ((bits & exponent) == exponent)
            return i;
    }
    return NONE;
}

static inline bool half_bad(const unsigned char *p)
{
    return (p[1] & 0x7c) == 0x7c;
}

static inline uint64_t first_bad_scale(const unsigned char *p, uint64_t blocks, uint32_t bytes,
                                       int first, int second)
{
    for (uint64_t i = 0; i < blocks; i++, p += bytes)
        if (half_bad(p + first) | half_bad(p + second))
            return i;
    return NONE;
}

static uint64_t first_bad_mxfp4(const unsigned char *p, uint64_t blocks)
{
    uint64_t i = 0;
    for (; i + 16 <= blocks; i += 16) { /* 255 is NaN, and 255 + 1 carries */
        unsigned carry = 0;
        for (int k = 0; k < 16; k++)
            carry |= p[17 * (i + (uint64_t)k)] + 1u;
        if (carry & 256)
            break;
    }
    for (; i < blocks; i++)
        if (p[17 * i] == 255)
            return i;
    return NONE;
}

int gguf_check_tensor(const struct gguf_file *file, const struct gguf_tensor *t, char *err,
                      size_t err_size)
{
    uint64_t block_values = gguf_type_block_values(t->type);
    uint64_t blocks = t->bytes / gguf_type_block_bytes(t->type), bad;
    switch ((uint32_t)t->type) {
    case GGUF_F32: bad = first_bad_float(t->data, blocks); break;
    case GGUF_F16: bad = first_bad_half(t->data, blocks, 0x7c00); break;
    case GGUF_BF16: bad = first_bad_half(t->data, blocks, 0x7f80); break;
    case GGUF_MXFP4: bad = first_bad_mxfp4(t->data, blocks); break;
    default: {
        size_t type = (size_t)t->type;
        if (type >= sizeof scales / sizeof *scales || !scales[type].n)
            return 0; /* no type that is computed with */
        int first = scales[type].at[0], second = scales[type].n > 1 ? scales[type].at[1] : first;
        bad = first_bad_scale(t->data, blocks, gguf_type_block_bytes(t->type), first, second);
    }
    }
    if (bad == NONE)
        return 0;
    uint64_t row_blocks = t->ne[0] / block_values;
    return gguf_fail(err, err_size,
                     "%s: tensor %s has a %s that is NaN or infinite in row %" PRIu64
                     ", %s %" PRIu64 ": the file is damaged, fetch it again",
                     file ? gguf_part_path(file, t->part) : "the model", t->name,
                     block_values > 1 ? "scale" : "number", bad / row_blocks,
                     block_values > 1 ? "block" : "column", bad % row_blocks);
}
