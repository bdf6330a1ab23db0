/*
 * router: the experts of a row from its logits. Private to kernels/cuda/.
 */
#ifndef GPTOSS_KERNELS_CUDA_ROUTER_CUH
#define GPTOSS_KERNELS_CUDA_ROUTER_CUH

#include "kernels/cuda/device.cuh"

#define ROUTER_EXPERTS_MAX 512
#define ROUTER_ACTIVE_MAX  32

/* Of token t of a step, of all positions' [context, active]. */
static __device__ __forceinline__ const int32_t *
router_forced(const struct cuda_step *step, const int32_t *forced, uint32_t active, uint32_t t)
{
    const struct cuda_token *tokens = cuda_part<const struct cuda_token>(step, step->tokens);
    return forced + (uint64_t)tokens[t].position * active;
}

/* Of one row, by one warp: expert e has as its rank the number of those that are better. `chosen` is
 * [2 · ROUTER_ACTIVE_MAX] of shared memory. forced: [active], or NULL: what is chosen instead. */
static __device__ __forceinline__ void router_choose(const float *logits, uint32_t experts,
                                                     uint32_t active, const int32_t *forced,
                                                     float *chosen, int32_t *choice, float *weight)
{
    uint32_t lane = threadIdx.x % 32;
    float most = -INFINITY;
    for (uint32_t e = lane; e < experts; e += 32)
        most = fmaxf(most, logits[e]);
    for (int step = 16; step; step /= 2)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
    if (forced && lane < active) {
        chosen[lane] = expf(__fsub_rn(logits[forced[lane]], most));
        chosen[ROUTER_ACTIVE_MAX + lane] = __uint_as_float((uint32_t)forced[lane]);
    }
    for (uint32_t e = lane; e < experts && !forced; e += 32) {
        float mine = logits[e];
        uint32_t rank = 0;
#pragma unroll 8
        for (uint32_t other = 0; other < experts; other++) {
            float value = logits[other];
            rank += value > mine || (value == mine && other < e);
        }
        if (rank < active) {
            chosen[rank] = expf(__fsub_rn(mine, most));
            chosen[ROUTER_ACTIVE_MAX + rank] = __uint_as_float(e);
        }
    }
    __syncwarp();
    if (lane >= active)
        return;
    float sum = chosen[0];
    for (uint32_t j = 1; j < active; j++)
        sum = __fadd_rn(sum, chosen[j]);
    choice[lane] = (int32_t)__float_as_uint(chosen[ROUTER_ACTIVE_MAX + lane]);
    weight[lane] = __fdiv_rn(chosen[lane], sum);
}

#endif
