/*
 * repack: a tensor's bytes as they lie in the file → the layout of layout.cuh. Done once, when
 * weights are loaded.
 *
 * A thread makes 8 weights of a row; each is written once, so no two threads
 * write the same bytes. Columns beyond the matrix and, with its last row, rows beyond it are written
 * as zeros. Reads are by bytes: blocks of the file are 17 and 34 bytes long. Bytes: the tensor once
 * (MXFP4 twice: the largest exponent of each row first).
 */
#include "kernels/cuda/matmul.h"

#include "kernels/cuda/layout.cuh"

struct repack {
    const unsigned char *raw;
    unsigned char *data; /* of the first matrix */
    struct layout layout;
    uint32_t raw_rows, rows_more; /* rows of zeros behind the last */
    uint32_t row_first, row_stride;
    uint32_t columns, blocks; /* blocks of 32, padded to a chunk */
    enum gguf_type type;
    size_t raw_row_bytes;
};

static __device__ uint32_t target_row(const struct repack &r, uint32_t raw_row)
{
    if (raw_row < r.raw_rows)
        return r.row_first + raw_row * r.row_stride;
    return r.row_first + (r.raw_rows - 1) * r.row_stride + 1 + (raw_row - r.raw_rows);
}

/* Which column of a block of 32 is number i of the 8 that lane t of four holds. */
static __device__ uint32_t block_column(uint32_t t, uint32_t i)
{
    return (i >> 1) * 8 + t * 2 + (i & 1);
}

/* A warp a row: the largest exponent of a block that is not all zeros. */
static __global__ void largest_exponent(const struct repack r)
{
    const uint32_t lane = threadIdx.x & 31;
    const uint32_t raw_row = (blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    if (raw_row >= r.raw_rows + r.rows_more)
        return;
    unsigned char *const data = r.data + blockIdx.y * r.layout.matrix_bytes;
    uint32_t largest = 0;
    if (raw_row < r.raw_rows) {
        const unsigned char *const row =
            r.raw + ((size_t)blockIdx.y * r.raw_rows + raw_row) * r.raw_row_bytes;
        for (uint32_t b = lane; b < r.columns / 32; b += 32) {
            const unsigned char *const block = row + b * 17;
            uint32_t any = 0;
            for (int i = 1; i < 17; i++)
                any |= block[i];
            if (any & 0x77)
                largest = max(largest, (uint32_t)block[0]);
        }
    }
    largest = __reduce_max_sync(0xffffffff, largest);
    if (lane == 0) {
        float *const scales = (float *)(data + r.layout.row_scales_at);
        const uint32_t e = min(largest, 254u);
        scales[target_row(r, raw_row)] = __uint_as_float(e ? e << 23 : 0x00400000);
    }
}

static __device__ void repack_fp4(const struct repack &r, const unsigned char *row, uint32_t b,
                                  uint32_t t, float row_scale, uint32_t *value,
                                  unsigned char *scale)
{
    uint32_t word = 0, multiplier = 0;
    if (row && b < r.columns / 32) {
        const unsigned char *const block = row + (size_t)b * 17;
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t column = block_column(t, i), byte = block[1 + column % 16];
            const uint32_t code = column < 16 ? byte & 15 : byte >> 4;
            const uint32_t sign = code >> 3, magnitude = code & 7, half = (i & 1) * 16;
            const uint32_t pair = i >> 1;
            const uint32_t sign_at = pair == 0 ? 15 : pair == 1 ? 12 : pair == 2 ? 14 : 13;
            const uint32_t magnitude_at = pair == 0 ? 9 : pair == 1 ? 6 : pair == 2 ? 3 : 0;
            word |= (sign << sign_at | magnitude << magnitude_at) << half;
        }
        const uint32_t bits = __float_as_uint(row_scale);
        const int largest = bits >> 23 ? (int)(bits >> 23) : 0;
        const int s = min(14 + (int)block[0] - largest, 15);
        multiplier = s >= -14 ? (uint32_t)(s + 15) << 2 : s == -15 ? 2 : s == -16 ? 1 : 0;
    }
    *value = word;
    if (t == 0)
        *scale = (unsigned char)multiplier;
}

static __device__ void repack_i8(const struct repack &r, const unsigned char *row, uint32_t b,
                                 uint32_t t, uint2 *value, uint16_t *scale)
{
    uint32_t words[2] = {0x80808080, 0x80808080}, d = 0;
    if (row && b < r.columns / 32) {
        const unsigned char *const block = row + (size_t)b * 34;
        d = block[0] | (uint32_t)block[1] << 8;
        for (uint32_t i = 0; i < 8; i++)
            words[i >> 2] ^= (uint32_t)block[2 + block_column(t, i)] << (i & 3) * 8;
    }
    *value = make_uint2(words[0], words[1]);
    if (t == 0)
        *scale = (uint16_t)d;
}

static __device__ void repack_f16(const struct repack &r, const unsigned char *row, uint32_t b,
                                  uint32_t t, uint4 *value)
{
    uint32_t words[4] = {0, 0, 0, 0};
    for (uint32_t i = 0; i < 8; i++) {
        const uint32_t c = b * 32 + block_column(t, i);
        uint32_t half = 0;
        if (row && c < r.columns) {
            if (r.type == GGUF_F32) {
                half = __half_as_ushort(__float2half_rn(((const float *)row)[c]));
            } else {
                half = ((const uint16_t *)row)[c];
                if (r.type == GGUF_BF16)
                    half = __half_as_ushort(__float2half_rn(__uint_as_float(half << 16)));
            }
        }
        words[i >> 1] |= half << (i & 1) * 16;
    }
    *value = make_uint4(words[0], words[1], words[2], words[3]);
}

static __global__ void repack(const struct repack r)
{
    const uint32_t raw_row = blockIdx.x;
    unsigned char *const data = r.data + blockIdx.y * r.layout.matrix_bytes;
    const unsigned char *row = NULL;
    if (raw_row < r.raw_rows)
        row = r.raw + ((size_t)blockIdx.y * r.raw_rows + raw_row) * r.raw_row_bytes;
    const uint32_t target = target_row(r, raw_row);
    const uint32_t tile = target / 16, g = target % 16 / 2, odd = target & 1;
    const uint32_t record_bytes = (uint32_t)layout_record_bytes(r.layout.format);
    for (uint32_t i = threadIdx.x; i < r.blocks * 4; i += blockDim.x) {
        const uint32_t b = i >> 2, t = i & 3, lane = g * 4 + t, half = b & 1;
        const uint32_t scale = g * 4 + half * 2 + odd;
        unsigned char *const record =
            data + ((size_t)tile * r.layout.chunks + (b >> 1)) * record_bytes;
        if (r.layout.format == LAYOUT_FP4) {
            const float row_scale = ((const float *)(data + r.layout.row_scales_at))[target];
            repack_fp4(r, row, b, t, row_scale, (uint32_t *)record + lane * 4 + half * 2 + odd,
                       record + 512 + scale);
        } else if (r.layout.format == LAYOUT_I8) {
            repack_i8(r, row, b, t, (uint2 *)(record + half * 512) + lane * 2 + odd,
                      (uint16_t *)(record + 1024) + scale);
        } else {
            repack_f16(r, row, b, t, (uint4 *)(record + (half * 2 + odd) * 512) + lane);
        }
    }
}

size_t cuda_matrix_bytes(enum gguf_type type, uint32_t rows, uint32_t columns, uint32_t count)
{
    return layout_of(type, rows, columns).matrix_bytes * count;
}

int cuda_matrix_repack(struct cuda_matrix *m, const unsigned char *raw, uint32_t raw_rows,
                       uint32_t row_first, uint32_t row_stride, uint32_t first, uint32_t n,
                       cudaStream_t stream)
{
    if (raw_rows == 0 || n == 0)
        return 0;
    struct repack r = {};
    r.layout = layout_of(m->type, m->rows, m->columns);
    r.raw = raw;
    r.data = m->data + first * r.layout.matrix_bytes;
    r.raw_rows = raw_rows;
    r.row_first = row_first;
    r.row_stride = row_stride;
    r.columns = m->columns;
    r.blocks = r.layout.chunks * 2;
    r.type = m->type;
    switch (m->type) {
    case GGUF_MXFP4: r.raw_row_bytes = (size_t)m->columns / 32 * 17; break;
    case GGUF_Q8_0: r.raw_row_bytes = (size_t)m->columns / 32 * 34; break;
    case GGUF_F16:
    case GGUF_BF16: r.raw_row_bytes = (size_t)m->columns * 2; break;
    case GGUF_F32: r.raw_row_bytes = (size_t)m->columns * 4; break;
    default: return -1;
    }
    if (row_first + (raw_rows - 1) * row_stride + 1 == m->rows)
        r.rows_more = r.layout.tiles * LAYOUT_ROWS - m->rows;
    const uint32_t rows = raw_rows + r.rows_more;
    if (r.layout.format == LAYOUT_FP4)
        largest_exponent<<<dim3((rows + 7) / 8, n), 256, 0, stream>>>(r);
    repack<<<dim3(rows, n), 256, 0, stream>>>(r);
    return cudaGetLastError() == cudaSuccess ? 0 : -1;
}
