/*
 * Copy: descriptions, rows and replies between pinned host memory and the device, by a kernel.
 *
 * The copy engine has a queue for each direction, and a copy that waits for its stream holds up those of
 * other streams behind it. A stage's stream may wait for a neighbour who waits for what this stage's
 * head makes on the other stream, so neither of the two uses the engine. Small copies are no slower
 * so: there is no change from one engine to another.
 */
#include "kernels/cuda/device.cuh"

#define THREADS   256
#define AT_ONCE   8  /* pieces of a launch */
#define BLOCKS    64 /* of a piece, at most: enough for what the bus carries */
#define LAUNCH_OF 16 /* bytes of a thread and round */

struct copies {
    struct cuda_piece of[AT_ONCE];
};

/* Past the L1: the host writes this memory again and again. */
template <class T> static __device__ void copy_as(const struct cuda_piece &p)
{
    const uint32_t columns = p.width / (uint32_t)sizeof(T), n = columns * p.rows;
    for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < n; i += gridDim.x * THREADS) {
        const uint32_t row = i / columns, column = i - row * columns;
        const T *const from = (const T *)((const char *)p.from + row * p.from_pitch) + column;
        ((T *)((char *)p.to + row * p.to_pitch))[column] = p.from ? __ldcv(from) : T{};
    }
}

static __global__ __launch_bounds__(THREADS) void copy_kernel(const struct copies c)
{
    const struct cuda_piece &p = c.of[blockIdx.y];
    if (((uint64_t)p.to | (uint64_t)p.from | p.to_pitch | p.from_pitch | p.width) % 16 == 0)
        copy_as<uint4>(p);
    else
        copy_as<uint32_t>(p);
}

int cuda_copy(const struct cuda_piece *pieces, uint32_t n, cudaStream_t stream)
{
    for (uint32_t first = 0; first < n; first += AT_ONCE) {
        struct copies c = {};
        const uint32_t count = n - first < AT_ONCE ? n - first : AT_ONCE;
        uint64_t most = 0;
        for (uint32_t i = 0; i < count; i++) {
            c.of[i] = pieces[first + i];
            const uint64_t bytes = (uint64_t)c.of[i].width * c.of[i].rows;
            most = bytes > most ? bytes : most;
        }
        const uint64_t blocks = (most + THREADS * LAUNCH_OF - 1) / (THREADS * LAUNCH_OF);
        if (most == 0)
            continue;
        copy_kernel<<<dim3(blocks < BLOCKS ? (uint32_t)blocks : BLOCKS, count), THREADS, 0,
                      stream>>>(c);
        if (cudaGetLastError() != cudaSuccess)
            return -1;
    }
    return 0;
}
