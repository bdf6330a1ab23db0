/*
 * Backend: the GPU that a rank takes, what it says of itself, and the table that kernels.c calls.
 */
#include "kernels/cuda/device.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CAPABILITY_MIN 80 /* mma.m16n8k16 of halves, cp.async */

bool cuda_starts_early;
extern "C" {
uint32_t cuda_variant;
}

static int create(struct kernels **out, const struct kernels_options *options, char *err,
                  size_t err_size)
{
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count < 1) {
        snprintf(err, err_size, "device cuda: no GPU can be used here (%s); use cpu",
                 error == cudaSuccess ? "the driver lists none" : cudaGetErrorString(error));
        return -1;
    }
    int index = (int)(options->local_rank % (uint32_t)count);
    struct cudaDeviceProp properties;
    error = cudaGetDeviceProperties(&properties, index);
    if (error != cudaSuccess) {
        snprintf(err, err_size, "device cuda: GPU %d does not answer (%s)", index,
                 cudaGetErrorString(error));
        return -1;
    }
    if (properties.major * 10 + properties.minor < CAPABILITY_MIN) {
        snprintf(err, err_size,
                 "device cuda: GPU %d (%s) has compute capability %d.%d, 8.0 is needed; use cpu",
                 index, properties.name, properties.major, properties.minor);
        return -1;
    }
    error = cudaSetDevice(index);
    if (error == cudaSuccess)
        error = cudaFree(NULL); /* makes the context now */
    if (error != cudaSuccess) {
        snprintf(err, err_size, "device cuda: GPU %d (%s) cannot be opened (%s)", index,
                 properties.name, cudaGetErrorString(error));
        return -1;
    }
    struct cuda_device *device = (struct cuda_device *)calloc(1, sizeof *device);
    if (!device) {
        snprintf(err, err_size, "no memory for a device");
        return -1;
    }
    cuda_starts_early = properties.major >= 9;
    device->index = index;
    device->multiprocessors = properties.multiProcessorCount;
    snprintf(device->name, sizeof device->name, "%.80s", properties.name);
    const unsigned char *u = (const unsigned char *)properties.uuid.bytes;
    int used = snprintf(device->uuid, sizeof device->uuid, "GPU-");
    for (int i = 0; i < 16; i++)
        used += snprintf(device->uuid + used, sizeof device->uuid - (size_t)used, "%s%02x",
                         i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", u[i]);
    *out = &device->base;
    return 0;
}

static void destroy(struct kernels *k)
{
    free((struct cuda_device *)k);
}

/* ── bandwidth ─────────────────────────────────────────────────────────────────────────────── */

#define READ_BYTES ((size_t)512 << 20) /* more than any cache */

static __global__ void read_kernel(const uint4 *memory, size_t n, uint32_t *sum)
{
    uint32_t mine = 0;
    size_t threads = (size_t)gridDim.x * blockDim.x;
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i + 3 * threads < n; i += 4 * threads) {
        uint4 a = __ldcs(memory + i), b = __ldcs(memory + i + threads);
        uint4 c = __ldcs(memory + i + 2 * threads), d = __ldcs(memory + i + 3 * threads);
        mine += (a.x ^ a.y ^ a.z ^ a.w) + (b.x ^ b.y ^ b.z ^ b.w) + (c.x ^ c.y ^ c.z ^ c.w) +
                (d.x ^ d.y ^ d.z ^ d.w);
    }
    if (mine == 0x12345678) /* never on this memory, but the compiler cannot know */
        *sum = mine;
}

static double measure_bandwidth(const struct cuda_device *device)
{
    unsigned char *memory = NULL;
    cudaEvent_t begin = NULL, end = NULL;
    double best = 0;
    if (cudaMalloc(&memory, READ_BYTES) != cudaSuccess || cudaEventCreate(&begin) != cudaSuccess ||
        cudaEventCreate(&end) != cudaSuccess)
        goto done;
    cudaMemset(memory, 1, READ_BYTES);
    for (int round = 0; round < 4; round++) {
        float ms = 0;
        cudaEventRecord(begin, 0);
        read_kernel<<<(unsigned)device->multiprocessors * 8, 512>>>(
            (const uint4 *)memory, READ_BYTES / sizeof(uint4), (uint32_t *)memory);
        cudaEventRecord(end, 0);
        if (cudaEventSynchronize(end) != cudaSuccess ||
            cudaEventElapsedTime(&ms, begin, end) != cudaSuccess)
            break;
        if (round && ms > 0 && (double)READ_BYTES / ms * 1e3 > best)
            best = (double)READ_BYTES / ms * 1e3;
    }
done:
    cudaGetLastError(); /* what failed here must not be found by the next launch */
    if (begin)
        cudaEventDestroy(begin);
    if (end)
        cudaEventDestroy(end);
    cudaFree(memory);
    return best;
}

static void info(const struct kernels *k, struct kernels_info *info)
{
    struct cuda_device *device = (struct cuda_device *)k;
    size_t free_bytes = 0, all_bytes = 0;
    cudaSetDevice(device->index);
    if (cudaMemGetInfo(&free_bytes, &all_bytes) != cudaSuccess)
        free_bytes = 0;
    if (device->bandwidth <= 0)
        device->bandwidth = measure_bandwidth(device);
    snprintf(info->backend, sizeof info->backend, "cuda");
    snprintf(info->device, sizeof info->device, "%.80s, GPU %d", device->name, device->index);
    snprintf(info->uuid, sizeof info->uuid, "%s", device->uuid);
    info->memory_free_bytes = free_bytes;
    info->threads = 1;
    info->bandwidth = device->bandwidth;
}

/* ── lanes ─────────────────────────────────────────────────────────────────────────────────── */

static struct cuda_lane *lane_of(const struct kernels_stage *stage, uint32_t lane)
{
    return &((const struct cuda_stage *)stage)->lanes[lane];
}

static float *input(struct kernels_stage *stage, uint32_t lane)
{
    return lane_of(stage, lane)->input;
}

static float *output(struct kernels_stage *stage, uint32_t lane)
{
    return lane_of(stage, lane)->output;
}

static int32_t *sampled(struct kernels_stage *stage, uint32_t lane)
{
    return lane_of(stage, lane)->sampled;
}

static void *stream(struct kernels_stage *stage)
{
    return ((struct cuda_stage *)stage)->stream;
}

static const struct kernels_sample *sample(const struct kernels_stage *stage, uint32_t lane,
                                           uint32_t i)
{
    return &lane_of(stage, lane)->samples[i];
}

static const float *logits(const struct kernels_stage *stage, uint32_t lane, uint32_t i)
{
    return lane_of(stage, lane)->host_logits + (uint64_t)i * stage->model->vocabulary;
}

extern "C" {
const struct kernels_backend kernels_backend_cuda = {
    .name = "cuda",
    .create = create,
    .destroy = destroy,
    .info = info,
    .footprint = cuda_footprint,
    .stage_create = cuda_stage_create,
    .stage_destroy = cuda_stage_destroy,
    .step = cuda_stage_step,
    .ring = cuda_stage_ring,
    .test = cuda_stage_test,
    .busy_seconds = cuda_stage_busy,
    .input = input,
    .output = output,
    .sampled = sampled,
    .stream = stream,
    .sample = sample,
    .head_rows = cuda_head_rows,
    .picked = cuda_picked,
    .head_input = cuda_head_input,
    .head_reply = cuda_head_reply,
    .head = cuda_head,
    .merge = cuda_merge,
    .head_test = cuda_head_test,
    .logits = logits,
    .op_rmsnorm = cuda_op_rmsnorm,
    .op_linear = cuda_op_linear,
    .op_attention = cuda_op_attention,
    .op_moe = cuda_op_moe,
    .op_sample = cuda_op_sample,
    .limits = cuda_limits,
};
}
