/*
 * Convert: the types of files → those that the device holds. Done on the host while weights are loaded.
 *
 *   MXFP4, Q8_0, F16, BF16, F32   held as they are
 *   Q4_0, Q5_0                    as Q8_0: the same scale d and d · q with q in −16 … 15; exact
 *   Q4_1, Q5_1 and K-quants       as F32: exact; repack.cu then rounds the matrices' weights to halves,
 *                                 once, which is 16 bits a weight in device memory
 */
#include "kernels/cuda/device.cuh"

#include <string.h>

enum gguf_type cuda_held_type(enum gguf_type type)
{
    switch (type) {
    case GGUF_F32:
    case GGUF_F16:
    case GGUF_BF16:
    case GGUF_Q8_0:
    case GGUF_MXFP4: return type;
    case GGUF_Q4_0:
    case GGUF_Q5_0: return GGUF_Q8_0;
    default: return GGUF_F32;
    }
}

enum gguf_type cuda_held_type_of_both(enum gguf_type a, enum gguf_type b)
{
    a = cuda_held_type(a);
    b = cuda_held_type(b);
    return a == b ? a : GGUF_F32;
}

/* half d; 16 bytes, element i in the low nibble of byte i, i + 16 in the high; value d · (q − 8). */
static void q8_0_from_q4_0(const unsigned char *from, unsigned char *to, uint64_t blocks)
{
    for (; blocks; blocks--, from += 18, to += 34) {
        memcpy(to, from, 2);
        for (int i = 0; i < 16; i++) {
            to[2 + i] = (unsigned char)((from[2 + i] & 15) - 8);
            to[18 + i] = (unsigned char)((from[2 + i] >> 4) - 8);
        }
    }
}

/* half d; 32 bits, the fifth of each element; 16 bytes as in Q4_0; value d · (q − 16). */
static void q8_0_from_q5_0(const unsigned char *from, unsigned char *to, uint64_t blocks)
{
    for (; blocks; blocks--, from += 22, to += 34) {
        uint32_t fifth;
        memcpy(to, from, 2);
        memcpy(&fifth, from + 2, 4);
        for (int i = 0; i < 16; i++) {
            uint32_t low = (from[6 + i] & 15) | (fifth >> i & 1) << 4;
            uint32_t high = from[6 + i] >> 4 | (fifth >> (i + 16) & 1) << 4;
            to[2 + i] = (unsigned char)(low - 16);
            to[18 + i] = (unsigned char)(high - 16);
        }
    }
}

void cuda_convert(enum gguf_type type, const unsigned char *from, enum gguf_type held,
                  unsigned char *to, uint64_t values)
{
    if (type == held)
        memcpy(to, from, gguf_row_bytes(type, values));
    else if (type == GGUF_Q4_0 && held == GGUF_Q8_0)
        q8_0_from_q4_0(from, to, values / 32);
    else if (type == GGUF_Q5_0 && held == GGUF_Q8_0)
        q8_0_from_q5_0(from, to, values / 32);
    else
        gguf_to_float(type, from, (float *)to, values);
}
