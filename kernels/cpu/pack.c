#include "kernels/cpu/pack.h"

#include <string.h>

#define INLINE static inline __attribute__((always_inline))

bool pack_has(enum gguf_type type)
{
    switch (type) {
#define HAS(type) case type:
        PACK_TYPES(HAS)
#undef HAS
        return true;
    default: return false;
    }
}

uint64_t pack_bytes(enum gguf_type type, uint32_t rows, uint32_t columns)
{
    if (!pack_has(type))
        return 0;
    return (uint64_t)(rows / PACK_ROWS + (rows % PACK_ROWS != 0)) * pack_panel_bytes(type, columns);
}

INLINE uint32_t word(const unsigned char *p)
{
    uint32_t w;
    memcpy(&w, p, sizeof w);
    return w;
}

INLINE void put_word(unsigned char *codes, uint32_t k, uint32_t row, uint32_t w)
{
    memcpy(codes + (k * PACK_ROWS + row) * 4, &w, sizeof w);
}

INLINE void put_float(unsigned char *to, uint32_t row, float x)
{
    memcpy(to + 4 * row, &x, sizeof x);
}

INLINE void put_codes(unsigned char *codes, uint32_t row, const unsigned char code[32])
{
    for (uint32_t k = 0; k < 8; k++)
        put_word(codes, k, row, word(code + 4 * k));
}

/* ── blocks of 32 ──────────────────────────────────────────────────────────────────────────── */

/* Adds the fifth bits to nibbles; `base` is added to every number. */
INLINE void five_bits(const unsigned char *bits, const unsigned char *nibbles, unsigned base,
                      unsigned char code[32])
{
    uint32_t fifth = word(bits);
    for (uint32_t j = 0; j < 16; j++) {
        code[j] = (unsigned char)((nibbles[j] & 15u) + (fifth >> j & 1) * 16 + base);
        code[j + 16] = (unsigned char)((nibbles[j] >> 4) + (fifth >> (j + 16) & 1) * 16 + base);
    }
}

INLINE void pack_block(enum gguf_type type, const unsigned char *block, uint32_t row,
                       unsigned char *group)
{
    unsigned char *minima = group + pack_scale_bytes(type);
    unsigned char *codes = minima + pack_minimum_bytes(type), code[32];
    if (type == GGUF_MXFP4) {
        group[row] = block[0];
        for (uint32_t k = 0; k < 4; k++)
            put_word(codes, k, row, word(block + 1 + 4 * k));
        return;
    }
    memcpy(group + 2 * row, block, 2);
    if (pack_minimum_bytes(type))
        memcpy(minima + 2 * row, block + 2, 2);
    switch (type) {
    case GGUF_Q4_0:
    case GGUF_Q4_1:
        for (uint32_t k = 0; k < 4; k++)
            put_word(codes, k, row, word(block + (type == GGUF_Q4_0 ? 2 : 4) + 4 * k));
        break;
    case GGUF_Q5_0:
        five_bits(block + 2, block + 6, 128 - 16, code);
        put_codes(codes, row, code);
        break;
    case GGUF_Q5_1:
        five_bits(block + 4, block + 8, 0, code);
        put_codes(codes, row, code);
        break;
    default: /* Q8_0 */
        for (uint32_t k = 0; k < 8; k++)
            put_word(codes, k, row, word(block + 2 + 4 * k) ^ 0x80808080u);
        break;
    }
}

/* ── blocks of 256 (gguf/kquants.c says how they are made) ─────────────────────────────────── */

INLINE float half_at(const unsigned char *p)
{
    uint16_t half;
    memcpy(&half, p, sizeof half);
    return gguf_half_to_float(half);
}

/* Columns 32 · part … of a block of Q4_K or Q5_K. */
INLINE void pack_q45_k(enum gguf_type type, const unsigned char *block, uint32_t part, uint32_t row,
                       unsigned char *group)
{
    const unsigned char *s = block + 4,
                        *q = block + (type == GGUF_Q5_K ? 48 : 16) + 32 * (part / 2);
    unsigned scale =
        part < 4 ? s[part] & 63u : (s[part + 4] & 15u) | (unsigned)s[part - 4] >> 6 << 4;
    unsigned least =
        part < 4 ? s[part + 4] & 63u : (unsigned)s[part + 4] >> 4 | (unsigned)s[part] >> 6 << 4;
    put_float(group, row, half_at(block) * (float)scale);
    put_float(group + 4 * PACK_ROWS, row, -(half_at(block + 2) * (float)least));
    unsigned char code[32], *codes = group + 8 * PACK_ROWS;
    for (uint32_t j = 0; j < 32; j++)
        code[j] = q[j] >> 4 * (part & 1) & 15;
    if (type == GGUF_Q5_K) {
        for (uint32_t j = 0; j < 32; j++)
            code[j] = (unsigned char)(code[j] | (block[16 + j] >> part & 1) << 4);
        put_codes(codes, row, code);
        return;
    }
    for (uint32_t j = 0; j < 16; j++)
        code[j] = (unsigned char)(code[j] | code[j + 16] << 4);
    for (uint32_t k = 0; k < 4; k++)
        put_word(codes, k, row, word(code + 4 * k));
}

INLINE void pack_q6_k(const unsigned char *block, uint32_t part, uint32_t row, unsigned char *group)
{
    uint32_t t = part / 4, r = part % 4;
    const unsigned char *q = block + 64 * t + 32 * (r & 1), *upper = block + 128 + 32 * t;
    float d = half_at(block + 208);
    put_float(group, row, d * (float)(signed char)block[192 + 2 * part]);
    put_float(group + 4 * PACK_ROWS, row, d * (float)(signed char)block[193 + 2 * part]);
    unsigned char code[32];
    for (uint32_t j = 0; j < 32; j++)
        code[j] = (unsigned char)((q[j] >> 4 * (r >> 1) & 15) + (upper[j] >> 2 * r & 3) * 16 + 96);
    put_codes(group + 8 * PACK_ROWS, row, code);
}

/* ── any ───────────────────────────────────────────────────────────────────────────────────── */

INLINE void pack_typed(enum gguf_type type, const unsigned char *rows, uint64_t row_bytes,
                       uint32_t count, uint32_t columns, unsigned char *to)
{
    bool wide = type == GGUF_Q4_K || type == GGUF_Q5_K || type == GGUF_Q6_K;
    uint32_t groups = columns / 32, bytes = pack_group_bytes(type);
    uint32_t block_bytes = gguf_type_block_bytes(type);
    if (count < PACK_ROWS) /* scales of zero */
        memset(to, 0, (uint64_t)groups * bytes);
    for (uint32_t g = 0; g < groups; g++, to += bytes)
        for (uint32_t r = 0; r < count; r++) {
            const unsigned char *row = rows + r * row_bytes;
            if (!wide)
                pack_block(type, row + (uint64_t)g * block_bytes, r, to);
            else if (type == GGUF_Q6_K)
                pack_q6_k(row + (uint64_t)(g / 8) * block_bytes, g % 8, r, to);
            else
                pack_q45_k(type, row + (uint64_t)(g / 8) * block_bytes, g % 8, r, to);
        }
}

void pack_panel(enum gguf_type type, const unsigned char *rows, uint64_t row_bytes, uint32_t count,
                uint32_t columns, unsigned char *to)
{
    switch (type) {
#define PACK(type)                                                                                 \
    case type: pack_typed(type, rows, row_bytes, count, columns, to); break;
        PACK_TYPES(PACK)
#undef PACK
    default: break;
    }
}
