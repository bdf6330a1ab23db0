/* dot in plain C, for any processor. Included by dot.c alone. */
#include <math.h>

#define DOT_ROWS 4

INLINE int round_bytes(v16 x, unsigned char *to)
{
    float lanes[16];
    int sum = 0;
    v_store(lanes, x);
    for (int i = 0; i < 16; i++) {
        int q = (int)lrintf(lanes[i] > -127 ? lanes[i] < 127 ? lanes[i] : 127 : -127);
        to[i] = (unsigned char)q;
        sum += q;
    }
    return sum;
}

/* The numbers of row r, signed. */
INLINE void load_codes(enum gguf_type type, const unsigned char *codes, uint32_t r, int16_t w[32])
{
    static const signed char values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    int base = pack_is_signed(type) ? 128 : 0;
    for (uint32_t j = 0; j < 32; j++) {
        if (!pack_in_nibbles(type)) {
            w[j] = (int16_t)(codes[64 * (j / 4) + 4 * r + j % 4] - base);
            continue;
        }
        uint32_t i = j % 16;
        int code = codes[64 * (i / 4) + 4 * r + i % 4] >> (j < 16 ? 0 : 4) & 15;
        w[j] = (int16_t)(type == GGUF_MXFP4 ? values[code] : type == GGUF_Q4_0 ? code - 8 : code);
    }
}

INLINE float load_scale(enum gguf_type type, const unsigned char *p, uint32_t r)
{
    if (type == GGUF_MXFP4)
        return mxfp4_scale(p[r]);
    if (pack_scale_bytes(type) == 2 * PACK_ROWS) {
        uint16_t half;
        memcpy(&half, p + 2 * r, sizeof half);
        return gguf_half_to_float(half);
    }
    float scale;
    memcpy(&scale, p + 4 * r, sizeof scale);
    return scale;
}

INLINE float float_of(const unsigned char *p)
{
    float x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE int dot_16(const int16_t *w, const unsigned char *q)
{
    int sum = 0;
    for (int j = 0; j < 16; j++)
        sum += w[j] * (int16_t)(signed char)q[j];
    return sum;
}

INLINE void dot_tile(enum gguf_type type, uint32_t n, const unsigned char *panel, uint32_t columns,
                     const unsigned char *const *x, float *out)
{
    uint32_t blocks = columns / 32, group = pack_group_bytes(type), minima = pack_scale_bytes(type);
    uint32_t codes = minima + pack_minimum_bytes(type);
    for (uint32_t i = 0; i < n * PACK_ROWS; i++)
        out[i] = 0;
    for (uint32_t b = 0; b < blocks; b++, panel += group)
        for (uint32_t r = 0; r < PACK_ROWS; r++) {
            int16_t w[32];
            load_codes(type, panel + codes, r, w);
            float scale = load_scale(type, panel, r), second = scale;
            if (type == GGUF_Q6_K)
                second = load_scale(type, panel + 4 * PACK_ROWS, r);
            for (uint32_t t = 0; t < n; t++) {
                const unsigned char *q = x[t] + DOT_BLOCK * b;
                float of_x = float_of(q + DOT_SCALE), sum = out[t * PACK_ROWS + r];
                int a = dot_16(w, q), c = dot_16(w + 16, q + 16);
                if (type == GGUF_Q6_K)
                    sum += (float)a * (scale * of_x);
                else
                    c += a;
                sum += (float)c * (second * of_x);
                if (pack_minimum_bytes(type))
                    sum += load_scale(type, panel + minima, r) * float_of(q + DOT_WEIGHTED);
                out[t * PACK_ROWS + r] = sum;
            }
        }
}

static uint64_t spin(void)
{
    enum { ROUNDS = 20000 };
    int16_t w[16];
    unsigned char q[16];
    int sum = 0;
    for (int i = 0; i < 16; i++) {
        w[i] = (int16_t)i;
        q[i] = 1;
    }
    for (int r = 0; r < ROUNDS; r++) {
        __asm__ volatile("" ::"r"(w), "r"(q) : "memory"); /* not to be foreseen */
        sum += dot_16(w, q);
    }
    return 2 * (uint64_t)ROUNDS * 16 + (sum == 0);
}
