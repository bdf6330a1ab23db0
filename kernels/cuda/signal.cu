/*
 * Signal: small transfers between GPUs that reach each other, as kernels. For transports (kernels.h).
 *
 * A copy engine and the stream's own waits take several µs each, longer than one token's row is on its
 * way over NVLink: 11,520 bytes, 0.05 µs. Here the threads that copy also wait until they may, fence what
 * they stored, and the last block of them stores the counter.
 */
extern "C" {
#include "kernels/kernels.h"
}

#include "kernels/cuda/device.cuh"

#define THREADS    512
#define PER_THREAD 4

static __device__ __forceinline__ void await(const uint32_t *counter, uint32_t value)
{
    uint32_t seen;
    do
        asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    while ((int32_t)(seen - value) < 0);
}

template <class T>
static __global__ __launch_bounds__(THREADS) void push_kernel(const struct kernels_push p)
{
    const uint32_t first = blockIdx.x * THREADS * PER_THREAD + threadIdx.x,
                   n = (uint32_t)(p.bytes / sizeof(T));
    T v[PER_THREAD];
#pragma unroll
    for (uint32_t i = 0; i < PER_THREAD; i++)
        if (first + i * THREADS < n)
            v[i] = ((const T *)p.from)[first + i * THREADS];
    if (threadIdx.x == 0)
        await(p.offered, p.value);
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < PER_THREAD; i++)
        if (first + i * THREADS < n)
            ((T *)p.to)[first + i * THREADS] = v[i];
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x)
        return;
    if (gridDim.x > 1) {
        if (atomicAdd(p.ticket, 1u) + 1 < gridDim.x)
            return;
        *p.ticket = 0;
        __threadfence_system();
    }
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p.counter), "r"(p.value) : "memory");
}

static __global__ void await_kernel(const uint32_t *counter, uint32_t value)
{
    await(counter, value);
}

template <class T> static void launch(const struct kernels_push *p, cudaStream_t stream)
{
    const size_t block = sizeof(T) * THREADS * PER_THREAD;
    push_kernel<T><<<(uint32_t)((p->bytes + block - 1) / block), THREADS, 0, stream>>>(*p);
}

int kernels_cuda_push(const struct kernels_push *p, void *stream)
{
    if (((uintptr_t)p->to | (uintptr_t)p->from | p->bytes) % 16 == 0)
        launch<uint4>(p, (cudaStream_t)stream);
    else
        launch<uint32_t>(p, (cudaStream_t)stream);
    return cudaGetLastError() == cudaSuccess ? 0 : -1;
}

int kernels_cuda_await(const uint32_t *counter, uint32_t value, void *stream)
{
    await_kernel<<<1, 1, 0, (cudaStream_t)stream>>>(counter, value);
    return cudaGetLastError() == cudaSuccess ? 0 : -1;
}
