/*
 * Limits: what the device can do at best, for the bench to hold kernels against: reading, copying, and
 * products of halves with sums in f32, whose rate is that of bf16 too. On Hopper they are wgmma with
 * one operand in registers and one in shared memory, elsewhere mma.sync.
 */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/wgmma.cuh"

#define COPY_BYTES     ((size_t)1 << 30)
#define PRODUCT_ROUNDS 2000
#define ROUNDS         5

static __global__ void copy_kernel(const uint4 *from, uint4 *to, size_t n)
{
    size_t threads = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += threads)
        to[i] = from[i];
}

/* Halves between −1 and 1: products of zeros would take less power, and so run at a higher clock. */
static __device__ uint32_t two_halves(uint32_t i)
{
    i = (i + 1) * 0x9e3779b9u;
    i ^= i >> 15;
    i *= 0x85ebca6bu;
    return (i & 0x83ff83ffu) | 0x38003800u;
}

/* A warp group: one of wgmma's [64, 128] sums. */
static __global__ __launch_bounds__(128) void wgmma_kernel(float *out)
{
    __shared__ __align__(1024) uint32_t b[128 * 32];
    for (uint32_t i = threadIdx.x; i < 128 * 32; i += 128)
        b[i] = two_halves(i + blockIdx.x * 77);
    __syncthreads();
    float d[16][4] = {};
    uint32_t a[4][4];
    for (uint32_t k = 0; k < 4; k++)
        for (uint32_t i = 0; i < 4; i++)
            a[k][i] = two_halves(threadIdx.x * 16 + k * 4 + i);
    const uint64_t matrix = ptx_wgmma_matrix(ptx_shared(b));
#if PTX_WGMMA
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    for (uint32_t r = 0; r < PRODUCT_ROUNDS; r++) {
        ptx_wgmma_fence();
#pragma unroll
        for (uint32_t k = 0; k < 4; k++)
            ptx_wgmma(d, a[k], matrix + 2 * k);
        ptx_wgmma_commit();
        ptx_wgmma_wait();
    }
    float sum = 0;
    for (uint32_t i = 0; i < 16; i++)
        for (uint32_t j = 0; j < 4; j++)
            sum += d[i][j];
    if (sum == 12345.0f) /* the sums are wanted */
        *out = sum;
}

/* Eight warps, eight [16, 8] sums each. */
static __global__ __launch_bounds__(256) void mma_kernel(float *out)
{
    float d[8][4] = {};
    uint32_t a[4], b[2];
    for (uint32_t i = 0; i < 4; i++)
        a[i] = two_halves(threadIdx.x * 4 + i);
    for (uint32_t i = 0; i < 2; i++)
        b[i] = two_halves(threadIdx.x * 2 + i + 999);
    for (uint32_t r = 0; r < PRODUCT_ROUNDS; r++)
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            ptx_mma(d[i], a, b[0], b[1]);
    float sum = 0;
    for (uint32_t i = 0; i < 8; i++)
        for (uint32_t j = 0; j < 4; j++)
            sum += d[i][j];
    if (sum == 12345.0f)
        *out = sum;
}

/* Seconds of the fastest of a few launches; 0: none worked. */
template <class Launch> static double fastest(Launch launch)
{
    cudaEvent_t begin = NULL, end = NULL;
    double best = 0;
    if (cudaEventCreate(&begin) != cudaSuccess || cudaEventCreate(&end) != cudaSuccess)
        goto done;
    for (int round = 0; round < ROUNDS; round++) {
        float ms = 0;
        cudaEventRecord(begin, 0);
        launch();
        cudaEventRecord(end, 0);
        if (cudaEventSynchronize(end) != cudaSuccess ||
            cudaEventElapsedTime(&ms, begin, end) != cudaSuccess || ms <= 0)
            break;
        if (round && (best == 0 || ms * 1e-3 < best)) /* the first loads the code */
            best = ms * 1e-3;
    }
done:
    if (begin)
        cudaEventDestroy(begin);
    if (end)
        cudaEventDestroy(end);
    return best;
}

int cuda_limits(struct kernels *k, struct kernels_limits *limits)
{
    const struct cuda_device *device = (const struct cuda_device *)k;
    const unsigned processors = (unsigned)device->multiprocessors;
    struct kernels_info info;
    unsigned char *memory = NULL;
    double seconds, operations;
    kernels_info(k, &info);
    limits->read = info.bandwidth;
    cudaGetLastError();
    if (cudaMalloc(&memory, COPY_BYTES) != cudaSuccess) {
        cudaGetLastError();
        return -1;
    }
    cudaMemset(memory, 1, COPY_BYTES);
    seconds = fastest([&] {
        copy_kernel<<<processors * 16, 512>>>((const uint4 *)memory,
                                              (uint4 *)(memory + COPY_BYTES / 2),
                                              COPY_BYTES / 2 / sizeof(uint4));
    });
    limits->copy = seconds > 0 ? (double)COPY_BYTES / seconds : 0;
    if (cuda_starts_early) { /* Hopper */
        limits->unit = "f16 wgmma";
        operations = processors * 4.0 * PRODUCT_ROUNDS * 4 * (2.0 * 64 * 128 * 16);
        seconds = fastest([&] { wgmma_kernel<<<processors * 4, 128>>>((float *)memory); });
    } else {
        limits->unit = "f16 mma";
        operations = processors * 2.0 * PRODUCT_ROUNDS * 8 * 8 * (2.0 * 16 * 8 * 16);
        seconds = fastest([&] { mma_kernel<<<processors * 2, 256>>>((float *)memory); });
    }
    limits->operations = seconds > 0 ? operations / seconds : 0;
    cudaFree(memory);
    return cudaGetLastError() == cudaSuccess ? 0 : -1;
}
