/*
 * cuda_matmul: products on the GPU against the contract of kernels/cuda/matmul.h computed in double on
 * the CPU, one column against many bit by bit, and timings. A program of its own:
 *
 *     cuda_matmul [check | small] [time | brief | batches]      no arguments: check time
 *
 * Exit code 1 if a check fails, 77 if there is no GPU. small: for compute-sanitizer.
 *
 * Timings are of graphs of many products over different weights, so that none is found in L2.
 */
extern "C" {
#include "gguf/gguf.h"
}
#include "kernels/cuda/launch.cuh"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures;

#define CUDA(call)                                                                                 \
    do {                                                                                           \
        cudaError_t status_ = (call);                                                              \
        if (status_ != cudaSuccess) {                                                              \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(status_));     \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define MUST(call)                                                                                 \
    do {                                                                                           \
        if ((call) != 0) {                                                                         \
            printf("%s:%d: %s failed: %s\n", __FILE__, __LINE__, #call,                            \
                   cudaGetErrorString(cudaGetLastError()));                                        \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* ── data, made on the device ──────────────────────────────────────────────────────────────── */

static __host__ __device__ uint32_t mix(uint64_t i)
{
    i = (i + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    i = (i ^ i >> 29) * 0x94d049bb133111ebu;
    return (uint32_t)(i >> 32);
}

static __device__ float uniform(uint64_t i) /* −1 … 1 */
{
    return (float)mix(i) / 2147483648.0f - 1.0f;
}

/* A thread a block of 32 values. Exponents of MXFP4 blocks vary by 12, some are far smaller. */
static __global__ void fill_weights(enum gguf_type type, unsigned char *raw, size_t blocks,
                                    uint64_t seed)
{
    const size_t b = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (b >= blocks)
        return;
    for (uint32_t i = 0; i < 32; i++) {
        const uint64_t at = seed * 0x100000001b3u + b * 32 + i;
        const float value = uniform(at) * 0.05f;
        if (type == GGUF_MXFP4) {
            if (i < 16)
                raw[b * 17 + 1 + i] = (unsigned char)mix(at);
            if (i == 0)
                raw[b * 17] = mix(at + 77) % 64 == 0 ? 90 : (unsigned char)(114 + mix(at + 7) % 8);
        } else if (type == GGUF_Q8_0) {
            raw[b * 34 + 2 + i] = (unsigned char)mix(at);
            if (i == 0)
                *(__half *)(raw + b * 34) = __float2half_rn(fabsf(value) * 0.01f);
        } else if (type == GGUF_F16) {
            ((__half *)raw)[b * 32 + i] = __float2half_rn(value);
        } else if (type == GGUF_BF16) {
            ((uint16_t *)raw)[b * 32 + i] = (uint16_t)(__float_as_uint(value) >> 16);
        } else {
            ((float *)raw)[b * 32 + i] = value;
        }
    }
}

static __global__ void fill_floats(float *x, size_t n, uint64_t seed, float scale)
{
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        x[i] = uniform(seed << 32 | i) * scale;
}

static __global__ void fill_halves(__half *x, size_t n, uint64_t seed, float scale)
{
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        x[i] = __float2half_rn(uniform(seed << 32 | i) * scale);
}

static uint32_t ctas(size_t n)
{
    return (uint32_t)((n + 255) / 256);
}

static void *device_bytes(size_t bytes)
{
    void *p;
    CUDA(cudaMalloc(&p, bytes ? bytes : 1));
    return p;
}

static float *random_floats(size_t n, uint64_t seed, float scale)
{
    float *const x = (float *)device_bytes(n * sizeof *x);
    fill_floats<<<ctas(n), 256>>>(x, n, seed, scale);
    return x;
}

static __half *random_halves(size_t n, uint64_t seed, float scale)
{
    __half *const x = (__half *)device_bytes(n * sizeof *x);
    fill_halves<<<ctas(n), 256>>>(x, n, seed, scale);
    return x;
}

static void *host_copy(const void *device, size_t bytes)
{
    void *const p = malloc(bytes ? bytes : 1);
    CUDA(cudaMemcpy(p, device, bytes, cudaMemcpyDeviceToHost));
    return p;
}

static size_t raw_bytes(enum gguf_type type, size_t values)
{
    return type == GGUF_MXFP4  ? values / 32 * 17
           : type == GGUF_Q8_0 ? values / 32 * 34
           : type == GGUF_F32  ? values * 4
                               : values * 2;
}

/* `count` matrices of random weights; raw stays on the device if it is asked for. */
static struct cuda_matrix random_matrix(enum gguf_type type, uint32_t rows, uint32_t columns,
                                        uint32_t count, uint64_t seed, bool interleaved,
                                        unsigned char **raw_out)
{
    struct cuda_matrix m = {NULL, rows, columns, count, type};
    m.data = (unsigned char *)device_bytes(cuda_matrix_bytes(type, rows, columns, count));
    CUDA(cudaMemset(m.data, 0xff, cuda_matrix_bytes(type, rows, columns, count)));
    const size_t values = (size_t)rows * columns * count;
    unsigned char *const raw =
        (unsigned char *)device_bytes(raw_bytes(type, (values + 31) / 32 * 32));
    fill_weights<<<ctas((values + 31) / 32), 256>>>(type, raw, (values + 31) / 32, seed);
    if (interleaved) {
        /* raw: all of gate, then all of up. */
        const size_t half = raw_bytes(type, values / 2);
        const size_t one = half / count;
        for (uint32_t e = 0; e < count; e += 2) { /* two at a time, to try `first` and `n` */
            const uint32_t n = count - e < 2 ? count - e : 2;
            MUST(cuda_matrix_repack(&m, raw + e * one, rows / 2, 0, 2, e, n, 0));
            MUST(cuda_matrix_repack(&m, raw + half + e * one, rows / 2, 1, 2, e, n, 0));
        }
    } else if (count == 1 && rows > 40) { /* in two parts, as q and k are */
        const uint32_t first = rows / 2 + 3;
        MUST(cuda_matrix_repack(&m, raw, first, 0, 1, 0, 1, 0));
        MUST(cuda_matrix_repack(&m, raw + raw_bytes(type, columns) * first, rows - first, first, 1,
                                0, 1, 0));
    } else {
        MUST(cuda_matrix_repack(&m, raw, rows, 0, 1, 0, count, 0));
    }
    CUDA(cudaDeviceSynchronize());
    if (raw_out)
        *raw_out = raw;
    else
        CUDA(cudaFree(raw));
    return m;
}

/* ── the contract on the CPU ───────────────────────────────────────────────────────────────── */

static double half_value(__half h)
{
    uint16_t bits;
    memcpy(&bits, &h, 2);
    return (double)gguf_half_to_float(bits);
}

/* A row of weights as the contract has them. row: scratch [columns]. */
static void weights_of(enum gguf_type type, const unsigned char *raw, uint32_t columns, float *row)
{
    gguf_to_float(type, raw, row, columns);
    for (uint32_t i = 0; i < columns && type != GGUF_MXFP4; i++)
        row[i] = gguf_half_to_float(gguf_float_to_half(row[i]));
}

static double dot(const float *row, const double *x, uint32_t columns, double *magnitude)
{
    double sum = 0, size = 0;
    for (uint32_t i = 0; i < columns; i++) {
        const double v = (double)row[i] * x[i];
        sum += v;
        size += fabs(v);
    }
    *magnitude = size;
    return sum;
}

static void check(bool good, const char *what)
{
    if (!good) {
        failures++;
        printf("FAILED: %s\n", what);
    }
}

static const char *type_name(enum gguf_type type)
{
    return gguf_type_name(type);
}

/* ── linear ────────────────────────────────────────────────────────────────────────────────── */

static void check_linear(enum gguf_type type, uint32_t rows, uint32_t columns)
{
    static const uint32_t ns[] = {1, 2, 3, 8, 9, 16, 17, 33, 64, 65, 130, 300};
    enum { most = 300 };
    char what[200];
    unsigned char *raw;
    struct cuda_matrix m = random_matrix(type, rows, columns, 1, rows * 131 + columns, false, &raw);
    __half *const x = random_halves((size_t)most * columns, 3, 4.0f);
    float *const bias = random_floats(rows, 4, 1.0f);
    const size_t y_bytes = (size_t)most * rows * sizeof(float);
    float *const old = random_floats((size_t)most * rows, 5, 2.0f);
    float *const y = (float *)device_bytes(y_bytes + 256);

    /* Each row alone is what all else is compared with. */
    CUDA(cudaMemcpy(y, old, y_bytes, cudaMemcpyDeviceToDevice));
    for (uint32_t i = 0; i < most; i++)
        MUST(
            cuda_linear(&m, bias, x + (size_t)i * columns, y + (size_t)i * rows, 1, true, NULL, 0));
    CUDA(cudaDeviceSynchronize());
    float *const alone = (float *)host_copy(y, y_bytes);
    float *const before = (float *)host_copy(old, y_bytes);
    float *const host_bias = (float *)host_copy(bias, rows * sizeof(float));
    __half *const host_x = (__half *)host_copy(x, (size_t)most * columns * 2);
    unsigned char *const host_raw =
        (unsigned char *)host_copy(raw, raw_bytes(type, (size_t)rows * columns));
    float *const row = (float *)malloc(columns * sizeof *row);
    double *const row_x = (double *)malloc(columns * sizeof *row_x);
    double worst = 0;
    const uint32_t step = rows > 1000 ? 7 : 1;
    for (uint32_t i = 0; i < 3; i++) {
        for (uint32_t k = 0; k < columns; k++)
            row_x[k] = half_value(host_x[(size_t)i * columns + k]);
        for (uint32_t r = 0; r < rows; r += r + step < rows ? step : 1) {
            weights_of(type, host_raw + raw_bytes(type, columns) * r, columns, row);
            double size, want = dot(row, row_x, columns, &size);
            want += (double)host_bias[r] + (double)before[(size_t)i * rows + r];
            const double error = fabs((double)alone[(size_t)i * rows + r] - want) / (size + 4);
            if (!(error <= worst))
                worst = error;
        }
    }
    snprintf(what, sizeof what, "%s %ux%u: error %.3g of the sum of magnitudes", type_name(type),
             rows, columns, worst);
    check(worst < 2e-6, what);

    uint32_t same = 0, tried = 0;
    for (uint32_t k = 0; k < sizeof ns / sizeof *ns; k++)
        for (int shape = -1; shape < LAUNCH_SHAPES; shape++) {
            const uint32_t n = ns[k];
            if (shape == LAUNCH_STREAM_8 && n > 64)
                continue;
            CUDA(cudaMemset(y, 0xff, y_bytes + 256));
            CUDA(cudaMemcpy(y, old, (size_t)n * rows * 4, cudaMemcpyDeviceToDevice));
            MUST(cuda_linear_shaped(&m, bias, x, y, n, true, shape, 0));
            CUDA(cudaDeviceSynchronize());
            float *const got = (float *)host_copy(y, y_bytes + 256);
            tried++;
            uint32_t behind = 0;
            for (size_t i = (size_t)n * rows; i < y_bytes / 4 + 64; i++)
                behind += memcmp(&got[i], "\xff\xff\xff\xff", 4) != 0;
            uint32_t different = 0;
            for (size_t i = 0; i < (size_t)n * rows; i++)
                different += memcmp(&got[i], &alone[i], 4) != 0;
            if (different || behind) {
                snprintf(what, sizeof what,
                         "%s %ux%u n %u shape %d: %u of %zu differ from a row alone, %u behind",
                         type_name(type), rows, columns, n, shape, different, (size_t)n * rows,
                         behind);
                check(false, what);
            } else {
                same++;
            }
            free(got);
        }
    /* No bias, nothing added: every element is written. */
    CUDA(cudaMemset(y, 0xff, y_bytes));
    MUST(cuda_linear(&m, NULL, x, y, 5, false, NULL, 0));
    CUDA(cudaDeviceSynchronize());
    float *const got = (float *)host_copy(y, (size_t)5 * rows * 4);
    double off = 0;
    for (size_t i = 0; i < (size_t)5 * rows; i++) {
        const double d = fabs((double)got[i] + host_bias[i % rows] + before[i] - alone[i]);
        if (!(d <= off))
            off = d;
    }
    snprintf(what, sizeof what, "%s %ux%u: without bias off by %.3g", type_name(type), rows,
             columns, off);
    check(off < 1e-4, what);
    printf("  %-6s %5u x %-5u error %.2g, %u of %u batches bit-equal\n", type_name(type), rows,
           columns, worst, same, tried);
    free(got);
    free(row);
    free(row_x);
    free(alone);
    free(before);
    free(host_bias);
    free(host_x);
    free(host_raw);
    CUDA(cudaFree(raw));
    CUDA(cudaFree(m.data));
    CUDA(cudaFree(x));
    CUDA(cudaFree(bias));
    CUDA(cudaFree(old));
    CUDA(cudaFree(y));
}

/* ── experts ───────────────────────────────────────────────────────────────────────────────── */

/* `active` different experts for each token; some are chosen far more often than others. */
static void choose(int32_t *choice, uint32_t n, uint32_t experts, uint32_t active, uint64_t seed,
                   bool uneven)
{
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < active; j++) {
            bool again = true;
            for (uint32_t attempt = 0; again; attempt++) {
                const uint32_t r = mix(seed << 40 | i * 1024 + j * 64 + attempt % 64 + attempt * 7);
                int32_t e = (int32_t)(r % experts);
                if (uneven && r >> 30)
                    e = (int32_t)((uint32_t)e % (active + 1));
                again = false;
                for (uint32_t k = 0; k < j; k++)
                    again |= choice[i * active + k] == e;
                choice[i * active + j] = e;
            }
        }
}

static void moe_on_cpu(const struct cuda_moe *moe, const unsigned char *gate_up,
                       const unsigned char *down, const float *gate_up_bias, const float *down_bias,
                       const __half *x, const int32_t *choice, const float *weight, double *y,
                       double *size)
{
    const enum gguf_type tg = moe->gate_up->type, td = moe->down->type;
    const uint32_t hidden = moe->hidden, ffn = moe->ffn;
    double *const in = (double *)malloc(hidden * sizeof *in);
    double *const act = (double *)malloc(ffn * sizeof *act);
    float *const row = (float *)malloc((hidden > ffn ? hidden : ffn) * sizeof *row);
    const size_t half = raw_bytes(tg, (size_t)moe->experts * ffn * hidden);
    for (uint32_t i = 0; i < hidden; i++) {
        in[i] = half_value(x[i]);
        y[i] = 0;
        size[i] = 4;
    }
    for (uint32_t j = 0; j < moe->active; j++) {
        const uint32_t e = (uint32_t)choice[j];
        for (uint32_t f = 0; f < ffn; f++) {
            double unused;
            const unsigned char *const at = gate_up + raw_bytes(tg, hidden) * (e * ffn + f);
            weights_of(tg, at, hidden, row);
            double a = dot(row, in, hidden, &unused) + gate_up_bias[(e * ffn + f) * 2];
            weights_of(tg, at + half, hidden, row);
            double b = dot(row, in, hidden, &unused) + gate_up_bias[(e * ffn + f) * 2 + 1];
            a = fmin(a, moe->limit);
            b = fmax(fmin(b, moe->limit), -moe->limit);
            act[f] = a / (1 + exp(-moe->alpha * a)) * (b + 1);
            act[f] = (double)gguf_half_to_float(gguf_float_to_half((float)act[f]));
        }
        for (uint32_t r = 0; r < hidden; r++) {
            double magnitude;
            weights_of(td, down + raw_bytes(td, ffn) * (e * hidden + r), ffn, row);
            y[r] += weight[j] * (dot(row, act, ffn, &magnitude) + down_bias[e * hidden + r]);
            size[r] += weight[j] * magnitude;
        }
    }
    free(in);
    free(act);
    free(row);
}

static void check_moe(enum gguf_type type, uint32_t hidden, uint32_t ffn, uint32_t experts,
                      uint32_t active, uint32_t on_cpu)
{
    static const uint32_t ns[] = {1, 2, 8, 9, 16, 40, 64, 300};
    enum { most = 300 };
    char what[200];
    unsigned char *raw_gate_up, *raw_down;
    struct cuda_matrix gate_up =
        random_matrix(type, 2 * ffn, hidden, experts, 11, true, &raw_gate_up);
    struct cuda_matrix down = random_matrix(type, hidden, ffn, experts, 12, false, &raw_down);
    struct cuda_moe moe = {&gate_up,
                           &down,
                           random_floats((size_t)experts * 2 * ffn, 13, 0.5f),
                           random_floats((size_t)experts * hidden, 14, 0.5f),
                           hidden,
                           ffn,
                           experts,
                           active,
                           1.702f,
                           7.0f};
    __half *const x = random_halves((size_t)most * hidden, 15, 3.0f);
    float *const weight = random_floats((size_t)most * active, 16, 0.5f);
    float *const old = random_floats((size_t)most * hidden, 17, 2.0f);
    const size_t y_bytes = (size_t)most * hidden * 4;
    float *const y = (float *)device_bytes(y_bytes);
    const size_t scratch_bytes = cuda_matmul_scratch_bytes(&moe, most);
    void *const scratch = device_bytes(scratch_bytes);
    int32_t *const choice = (int32_t *)malloc(most * active * sizeof *choice);
    choose(choice, most, experts, active, experts, true);
    int32_t *const chosen = (int32_t *)device_bytes(most * active * sizeof *choice);
    CUDA(cudaMemcpy(chosen, choice, most * active * sizeof *choice, cudaMemcpyHostToDevice));

    CUDA(cudaMemcpy(y, old, y_bytes, cudaMemcpyDeviceToDevice));
    CUDA(cudaMemset(scratch, 0xff, scratch_bytes));
    for (uint32_t i = 0; i < most; i++)
        MUST(cuda_moe_run(&moe, x + (size_t)i * hidden, chosen + i * active, weight + i * active,
                          y + (size_t)i * hidden, 1, scratch, 0));
    CUDA(cudaDeviceSynchronize());
    float *const alone = (float *)host_copy(y, y_bytes);
    float *const before = (float *)host_copy(old, y_bytes);

    unsigned char *const host_gate_up = (unsigned char *)host_copy(
        raw_gate_up, raw_bytes(type, (size_t)experts * ffn * 2 * hidden));
    unsigned char *const host_down =
        (unsigned char *)host_copy(raw_down, raw_bytes(type, (size_t)experts * ffn * hidden));
    float *const gate_up_bias = (float *)host_copy(moe.gate_up_bias, (size_t)experts * 2 * ffn * 4);
    float *const down_bias = (float *)host_copy(moe.down_bias, (size_t)experts * hidden * 4);
    __half *const host_x = (__half *)host_copy(x, (size_t)most * hidden * 2);
    float *const host_weight = (float *)host_copy(weight, (size_t)most * active * 4);
    double *const want = (double *)malloc(hidden * sizeof *want);
    double *const size = (double *)malloc(hidden * sizeof *size);
    double worst = 0;
    for (uint32_t i = 0; i < on_cpu; i++) {
        moe_on_cpu(&moe, host_gate_up, host_down, gate_up_bias, down_bias,
                   host_x + (size_t)i * hidden, choice + i * active, host_weight + i * active, want,
                   size);
        for (uint32_t r = 0; r < hidden; r++) {
            const size_t at = (size_t)i * hidden + r;
            const double error =
                fabs((double)alone[at] - want[r] - before[at]) / fmax(fabs(size[r]), 4);
            if (!(error <= worst))
                worst = error;
        }
    }
    snprintf(what, sizeof what, "moe %s %u/%u: error %.3g", type_name(type), hidden, ffn, worst);
    check(worst < 5e-5, what);

    uint32_t same = 0, tried = 0;
    for (uint32_t k = 0; k < sizeof ns / sizeof *ns; k++)
        for (int shape = -1; shape < LAUNCH_SHAPES; shape++) {
            const uint32_t n = ns[k];
            CUDA(cudaMemset(scratch, 0xff, scratch_bytes));
            CUDA(cudaMemcpy(y, old, (size_t)n * hidden * 4, cudaMemcpyDeviceToDevice));
            MUST(cuda_moe_run_shaped(&moe, x, chosen, weight, y, n, scratch, shape, 0));
            CUDA(cudaDeviceSynchronize());
            float *const got = (float *)host_copy(y, (size_t)n * hidden * 4);
            uint32_t different = 0;
            for (size_t i = 0; i < (size_t)n * hidden; i++)
                different += memcmp(&got[i], &alone[i], 4) != 0;
            tried++;
            same += different == 0;
            snprintf(what, sizeof what, "moe %s %u/%u n %u shape %d: %u differ from a token alone",
                     type_name(type), hidden, ffn, n, shape, different);
            check(different == 0, what);
            free(got);
        }
    /* Kernels that overlap their neighbours: six runs one behind the other against six alone. */
    for (uint32_t k = 0; k < sizeof ns / sizeof *ns; k++) {
        const uint32_t n = ns[k];
        float *in_order[2];
        for (int wait = 0; wait < 2; wait++) {
            CUDA(cudaMemcpy(y, old, (size_t)n * hidden * 4, cudaMemcpyDeviceToDevice));
            CUDA(cudaMemset(scratch, 0xff, scratch_bytes));
            for (uint32_t i = 0; i < 6; i++) {
                const uint32_t from = most - n < i ? 0 : i;
                MUST(cuda_moe_run(&moe, x + (size_t)from * hidden, chosen + from * active, weight,
                                  y, n, scratch, 0));
                if (wait)
                    CUDA(cudaDeviceSynchronize());
            }
            CUDA(cudaDeviceSynchronize());
            in_order[wait] = (float *)host_copy(y, (size_t)n * hidden * 4);
        }
        snprintf(what, sizeof what, "moe %s %u/%u n %u: runs that overlap", type_name(type), hidden,
                 ffn, n);
        check(memcmp(in_order[0], in_order[1], (size_t)n * hidden * 4) == 0, what);
        free(in_order[0]);
        free(in_order[1]);
    }
    printf("  moe %-6s hidden %4u ffn %4u experts %3u: error %.2g, %u of %u batches bit-equal\n",
           type_name(type), hidden, ffn, experts, worst, same, tried);
    void *const owned[] = {alone,  before,      host_gate_up, host_down, gate_up_bias, down_bias,
                           host_x, host_weight, want,         size,      choice};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        free(owned[i]);
    void *const device[] = {raw_gate_up,
                            raw_down,
                            gate_up.data,
                            down.data,
                            (void *)moe.gate_up_bias,
                            (void *)moe.down_bias,
                            x,
                            weight,
                            old,
                            y,
                            scratch,
                            chosen};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        CUDA(cudaFree(device[i]));
}

/* ── timings ───────────────────────────────────────────────────────────────────────────────── */

static double copy_rate; /* bytes a second, read and written */

static __global__ void copy_kernel(const uint4 *from, uint4 *to, size_t n)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        to[i] = from[i];
}

/* Seconds of one of the `calls` products that were captured. */
static double replay(cudaStream_t stream, uint32_t calls)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t from, to;
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CUDA(cudaEventCreate(&from));
    CUDA(cudaEventCreate(&to));
    float best[7];
    for (int i = -1; i < 7; i++) {
        float ms;
        CUDA(cudaEventRecord(from, stream));
        CUDA(cudaGraphLaunch(exec, stream));
        CUDA(cudaEventRecord(to, stream));
        CUDA(cudaEventSynchronize(to));
        CUDA(cudaEventElapsedTime(&ms, from, to));
        if (i >= 0) {
            int k = i;
            for (; k > 0 && best[k - 1] > ms; k--)
                best[k] = best[k - 1];
            best[k] = ms;
        }
    }
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaEventDestroy(from));
    CUDA(cudaEventDestroy(to));
    return (double)best[3] / 1e3 / calls;
}

static void row_of(const char *name, uint32_t n, int shape, double seconds, double bytes,
                   double flops)
{
    printf("%-22s n %4u shape %2d %9.1f us %6.0f GB/s %5.1f%% of copy %7.1f TFLOP/s\n", name, n,
           shape, seconds * 1e6, bytes / seconds / 1e9, 100 * bytes / seconds / copy_rate,
           flops / seconds / 1e12);
}

static void time_linear(const char *name, enum gguf_type type, uint32_t rows, uint32_t columns,
                        const uint32_t *ns, cudaStream_t stream)
{
    const size_t bytes = cuda_matrix_bytes(type, rows, columns, 1);
    const uint32_t copies = bytes > 200000000 ? 1 : (uint32_t)(300000000 / bytes) + 1;
    const uint32_t calls = copies == 1 ? 4 : copies;
    struct cuda_matrix *const m = (struct cuda_matrix *)malloc(copies * sizeof *m);
    for (uint32_t i = 0; i < copies; i++)
        m[i] = random_matrix(type, rows, columns, 1, i, false, NULL);
    float *const bias = random_floats(rows, 1, 1);
    for (; *ns; ns++) {
        const uint32_t n = *ns;
        __half *const x = random_halves((size_t)n * columns, 2, 2);
        float *const y = random_floats((size_t)n * rows, 3, 1);
        for (int shape = -1; shape < LAUNCH_SHAPES; shape++) {
            const uint32_t width = shape < 0 ? 0 : launch_width((enum launch_shape)shape);
            if (shape >= 0 && (n > width * 4 || n * 4 < width))
                continue;
            CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
            for (uint32_t i = 0; i < calls; i++)
                MUST(cuda_linear_shaped(&m[i % copies], bias, x, y, n, false, shape, stream));
            row_of(name, n, shape, replay(stream, calls), (double)bytes + n * 4.0 * rows,
                   2.0 * n * rows * columns);
        }
        CUDA(cudaFree(x));
        CUDA(cudaFree(y));
    }
    for (uint32_t i = 0; i < copies; i++)
        CUDA(cudaFree(m[i].data));
    CUDA(cudaFree(bias));
    free(m);
}

static void time_moe(enum gguf_type type, uint32_t experts, const uint32_t *ns, cudaStream_t stream)
{
    const uint32_t hidden = 2880, ffn = 2880, active = 4;
    enum { calls = 24, most = 2048 };
    struct cuda_matrix gate_up = random_matrix(type, 2 * ffn, hidden, experts, 11, true, NULL);
    struct cuda_matrix down = random_matrix(type, hidden, ffn, experts, 12, false, NULL);
    struct cuda_moe moe = {&gate_up,
                           &down,
                           random_floats((size_t)experts * 2 * ffn, 13, 0.5f),
                           random_floats((size_t)experts * hidden, 14, 0.5f),
                           hidden,
                           ffn,
                           experts,
                           active,
                           1.702f,
                           7.0f};
    __half *const x = random_halves((size_t)most * hidden, 15, 3.0f);
    float *const weight = random_floats((size_t)most * active, 16, 0.5f);
    float *const y = random_floats((size_t)most * hidden, 17, 0.01f);
    void *const scratch = device_bytes(cuda_matmul_scratch_bytes(&moe, most));
    int32_t *const choice = (int32_t *)malloc(calls * most * active * sizeof *choice);
    int32_t *const chosen = (int32_t *)device_bytes(calls * most * active * sizeof *choice);
    const double expert = (double)cuda_matrix_bytes(type, 2 * ffn, hidden, 1) +
                          (double)cuda_matrix_bytes(type, hidden, ffn, 1);
    for (; *ns; ns++) {
        const uint32_t n = *ns, repeat = n >= 512 ? 3 : calls;
        double touched = 0;
        for (uint32_t i = 0; i < repeat; i++) {
            int32_t *const c = choice + (size_t)i * n * active;
            choose(c, n, experts, active, 100 + i, false);
            for (uint32_t e = 0; e < experts; e++) {
                bool is = false;
                for (uint32_t k = 0; k < n * active; k++)
                    is |= c[k] == (int32_t)e;
                touched += is;
            }
        }
        CUDA(cudaMemcpy(chosen, choice, (size_t)repeat * n * active * sizeof *choice,
                        cudaMemcpyHostToDevice));
        for (int shape = -1; shape < LAUNCH_SHAPES; shape++) {
            const uint32_t width = shape < 0 ? 0 : launch_width((enum launch_shape)shape);
            const uint32_t each = n * active / experts;
            if (shape >= 0 && (each > width * 4 || each * 16 < width))
                continue;
            CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
            for (uint32_t i = 0; i < repeat; i++)
                MUST(cuda_moe_run_shaped(&moe, x, chosen + (size_t)i * n * active, weight, y, n,
                                         scratch, shape, stream));
            char name[64];
            snprintf(name, sizeof name, "moe %s of %u", type_name(type), experts);
            row_of(name, n, shape, replay(stream, repeat), touched / repeat * expert,
                   6.0 * n * active * hidden * ffn);
        }
    }
    void *const device[] = {
        gate_up.data, down.data, (void *)moe.gate_up_bias, (void *)moe.down_bias, x, weight, y,
        scratch,      chosen};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        CUDA(cudaFree(device[i]));
    free(choice);
}

static void time_copy(cudaStream_t stream)
{
    const size_t bytes = (size_t)2 << 30;
    uint4 *const from = (uint4 *)random_floats(bytes / 4, 1, 1);
    uint4 *const to = (uint4 *)device_bytes(bytes);
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < 3; i++)
        copy_kernel<<<132 * 16, 512, 0, stream>>>(from, to, bytes / 16);
    copy_rate = 2.0 * bytes / replay(stream, 3);
    printf("copy, read + written: %.0f GB/s\n", copy_rate / 1e9);
    CUDA(cudaFree(from));
    CUDA(cudaFree(to));
}

int main(int argc, char **argv)
{
    bool checks = argc == 1, times = argc == 1, brief = false, small = false, batches = false;
    for (int i = 1; i < argc; i++) {
        small |= !strcmp(argv[i], "small");
        checks |= !strcmp(argv[i], "check") || small;
        times |= !strcmp(argv[i], "time") || !strcmp(argv[i], "brief");
        brief |= !strcmp(argv[i], "brief");
        batches |= !strcmp(argv[i], "batches");
    }
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        printf("no GPU here\n");
        return 77;
    }
    cudaDeviceProp device;
    CUDA(cudaGetDeviceProperties(&device, 0));
    printf("# %s, %d multiprocessors, compute capability %d.%d\n", device.name,
           device.multiProcessorCount, device.major, device.minor);
    cuda_starts_early = device.major >= 9;
    if (checks) {
        static const enum gguf_type types[] = {GGUF_MXFP4, GGUF_Q8_0, GGUF_F16, GGUF_BF16,
                                               GGUF_F32};
        for (size_t i = 0; i < sizeof types / sizeof *types && !small; i++) {
            check_linear(types[i], 17, 32);
            check_linear(types[i], 48, 64);
            check_linear(types[i], 101, 1056);
            check_linear(types[i], 640, 2880);
            check_linear(types[i], 272, 4096);
        }
        for (size_t i = 0; i < 3 && small; i++)
            check_linear(types[i], 33, 96);
        check_linear(GGUF_F16, 30, 48);
        if (!small)
            check_linear(GGUF_F32, 64, 4112);
        check_moe(GGUF_MXFP4, 96, 64, 8, 4, 20);
        check_moe(GGUF_Q8_0, 64, 96, 5, 2, 20);
        check_moe(GGUF_BF16, 64, 32, 6, 3, 20);
        if (!small)
            check_moe(GGUF_MXFP4, 2880, 2880, 32, 4, 2);
        printf("checks: %d failed\n", failures);
    }
    if (batches) {
        static const uint32_t some[] = {16, 32, 64, 128, 0}, of_linear[] = {8, 16, 24, 64, 0};
        cudaStream_t stream;
        CUDA(cudaStreamCreate(&stream));
        time_copy(stream);
        time_linear("qkv Q8_0 5120x2880", GGUF_Q8_0, 5120, 2880, of_linear, stream);
        time_linear("out Q8_0 2880x4096", GGUF_Q8_0, 2880, 4096, of_linear, stream);
        time_moe(GGUF_MXFP4, 32, some, stream);
        CUDA(cudaStreamDestroy(stream));
    }
    if (times) {
        static const uint32_t few[] = {1, 2, 4, 8, 0}, one[] = {1, 0};
        static const uint32_t all[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 0};
        static const uint32_t head[] = {1, 8, 16, 32, 64, 0};
        cudaStream_t stream;
        CUDA(cudaStreamCreate(&stream));
        time_copy(stream);
        time_linear("head Q8_0 201088x2880", GGUF_Q8_0, 201088, 2880, brief ? one : head, stream);
        time_linear("qkv Q8_0 5120x2880", GGUF_Q8_0, 5120, 2880, brief ? few : all, stream);
        time_linear("out Q8_0 2880x4096", GGUF_Q8_0, 2880, 4096, brief ? few : all, stream);
        if (!brief) {
            time_linear("qkv F16 5120x2880", GGUF_F16, 5120, 2880, few, stream);
            time_linear("MXFP4 5760x2880", GGUF_MXFP4, 5760, 2880, few, stream);
        }
        time_moe(GGUF_MXFP4, 32, all, stream);
        if (!brief)
            time_moe(GGUF_MXFP4, 128, few, stream);
        CUDA(cudaStreamDestroy(stream));
    }
    printf("%s\n", failures ? "FAILED" : "OK");
    return failures != 0;
}
