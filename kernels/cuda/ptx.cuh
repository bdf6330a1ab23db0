/*
 * ptx: the single instructions that CUDA C++ has no name for. Private to kernels/cuda/.
 */
#ifndef GPTOSS_KERNELS_CUDA_PTX_CUH
#define GPTOSS_KERNELS_CUDA_PTX_CUH

#include <stdint.h>

/* The device's timer. */
static __device__ __forceinline__ uint64_t ptx_now_ns(void)
{
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

/* 1 in device code for Hopper and later: bulk copies, their barriers, dependent launches. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define PTX_HOPPER 1
#else
#define PTX_HOPPER 0
#endif

/* d += a · b: a [16, 16] f16 row-major, b [16, 8] f16 column-major, d [16, 8] f32. Lane 4g + t holds
 * of a: {row g | g + 8} × k {2t, 2t + 1 | 2t + 8, 2t + 9}; of b: column g, the same k; of d: rows g
 * (d[0], d[1]) and g + 8 (d[2], d[3]), columns 2t and 2t + 1. */
static __device__ __forceinline__ void ptx_mma(float d[4], const uint32_t a[4], uint32_t b0,
                                               uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ uint32_t ptx_shared(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* 16 bytes from device to shared memory, past L1: for what is read once. */
static __device__ __forceinline__ void ptx_copy_once(uint32_t shared, const void *global)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared), "l"(global)
                 : "memory");
}

/* The same through L1, for what other warps of the SM read too; `bytes` 0 writes zeros instead. */
static __device__ __forceinline__ void ptx_copy_shared(uint32_t shared, const void *global,
                                                       uint32_t bytes)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
                 "r"(bytes)
                 : "memory");
}

static __device__ __forceinline__ void ptx_copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until at most `left` of this thread's committed groups are under way. */
template <int left> static __device__ __forceinline__ void ptx_copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

static __device__ __forceinline__ uint4 ptx_load_shared16(uint32_t shared)
{
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(shared)
                 : "memory");
    return v;
}

static __device__ __forceinline__ uint2 ptx_load_shared8(uint32_t shared)
{
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(shared) : "memory");
    return v;
}

static __device__ __forceinline__ uint32_t ptx_load_shared4(uint32_t shared)
{
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(shared) : "memory");
    return v;
}

static __device__ __forceinline__ void ptx_store_zeros16(uint32_t shared)
{
    asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};" ::"r"(shared), "r"(0) : "memory");
}

static __device__ __forceinline__ void ptx_store_shared16(uint32_t shared, const float v[4])
{
    asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(shared), "f"(v[0]), "f"(v[1]),
                 "f"(v[2]), "f"(v[3])
                 : "memory");
}

/* Four 8 × 8 matrices of halves; lane 8m + r names row r of matrix m. Register m of lane 4g + t: row g,
 * columns 2t and 2t + 1: with rows = tokens and matrices 8 columns apart, two mma's B operands. */
static __device__ __forceinline__ uint4 ptx_load_matrices(uint32_t shared)
{
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(shared)
                 : "memory");
    return v;
}

/* Barrier `id` (1 … 15) of `threads` of the CTA: those that wait see what all stored before. */
static __device__ __forceinline__ void ptx_warps_wait(uint32_t id, uint32_t threads)
{
    asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

static __device__ __forceinline__ void ptx_warps_arrive(uint32_t id, uint32_t threads)
{
    asm volatile("barrier.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* Words that kernels exchange while both run: neither held in a register nor in L1. What the writer
 * stored before a __threadfence() in front of its store is there for whoever has seen the word. */
static __device__ __forceinline__ void ptx_store_between(uint32_t *global, uint32_t v)
{
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(global), "r"(v) : "memory");
}

static __device__ __forceinline__ uint32_t ptx_load_between(const uint32_t *global)
{
    uint32_t v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(global) : "memory");
    return v;
}

/* From Hopper on. A barrier in shared memory that completes a phase when one thread has arrived and all bytes that it
 * announced have been copied. */
static __device__ __forceinline__ void ptx_barrier_init(uint32_t barrier)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
}

static __device__ __forceinline__ void ptx_barrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

/* Bytes that are announced before the thread arrives. */
static __device__ __forceinline__ void ptx_barrier_announce(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier),
                 "r"(bytes)
                 : "memory");
}

static __device__ __forceinline__ void ptx_barrier_wait(uint32_t barrier, uint32_t phase)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again%=:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again%=;\n"
                 "}" ::"r"(barrier),
                 "r"(phase)
                 : "memory");
}

/* One thread's order to copy; addresses and bytes are multiples of 16. */
static __device__ __forceinline__ void ptx_copy_bulk(uint32_t shared, const void *global,
                                                     uint32_t bytes, uint32_t barrier)
{
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
        "[%3];" ::"r"(shared),
        "l"(global), "r"(bytes), "r"(barrier)
        : "memory");
}

/* The same, of what is read once: it leaves the L2 first. */
static __device__ __forceinline__ void ptx_copy_bulk_once(uint32_t shared, const void *global,
                                                          uint32_t bytes, uint32_t barrier)
{
#if PTX_HOPPER
    asm volatile("{\n"
                 ".reg .b64 policy;\n"
                 "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
                 "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1], %2, [%3], policy;\n"
                 "}" ::"r"(shared),
                 "l"(global), "r"(bytes), "r"(barrier)
                 : "memory");
#endif
}

/* Ordinary stores of this thread to shared memory come before later bulk copies and wgmma. */
static __device__ __forceinline__ void ptx_fence_async(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* From Hopper on. All threads of the cluster have come here, and see what each other's stored. */
static __device__ __forceinline__ void ptx_cluster_sync(void)
{
#if PTX_HOPPER
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}

/* 16 bytes of CTA `rank` of the cluster, at this CTA's address of the same. */
static __device__ __forceinline__ float4 ptx_load_cluster16(uint32_t shared, uint32_t rank)
{
    float4 v = {0, 0, 0, 0};
#if PTX_HOPPER
    asm volatile("{\n"
                 ".reg .u32 there;\n"
                 "mapa.shared::cluster.u32 there, %4, %5;\n"
                 "ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [there];\n"
                 "}"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(shared), "r"(rank)
                 : "memory");
#endif
    return v;
}

/* Programmatic dependent launch: the next kernel of the stream may start (it still waits, below, for
 * all of this one's results); and the wait for all results of the kernel before. */
static __device__ __forceinline__ void ptx_launch_next(void)
{
#if PTX_HOPPER
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

static __device__ __forceinline__ void ptx_wait_previous(void)
{
#if PTX_HOPPER
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#endif
