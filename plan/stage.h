/*
 * stage: what one stage of a plan takes. Private to plan/.
 */
#ifndef GPTOSS_PLAN_STAGE_H
#define GPTOSS_PLAN_STAGE_H

#include "plan/plan.h"

enum { BLOCK_TOKENS = 16 };

/* One plan in the making: the same for all tries but for context and sequences. */
struct draft {
    const struct gguf_model *model;
    const struct plan_options *options;
    struct plan *plan;
    const uint64_t *share; /* [n_stages], bytes; 0: unknown */
};

/* Sums and products that stay at UINT64_MAX instead of wrapping: what is absurd does not fit. */
uint64_t stage_add(uint64_t a, uint64_t b);
uint64_t stage_multiply(uint64_t a, uint64_t b);
uint64_t stage_blocks(uint64_t positions);

/* Bytes that a layer reads for one token: of the experts only those that are active. */
double stage_layer_token_bytes(const struct gguf_model *model, const struct gguf_layer *layer);
double stage_layer_expert_bytes(const struct gguf_layer *layer); /* of all experts */
/* Everything of stage s but KV and totals, from its range of layers; plan->context, sequences and the
 * bounds of a step are set. */
void stage_fill(const struct draft *draft, uint32_t s, struct plan_stage *stage);
/* gpu.c: what stage s takes on a GPU besides weights and KV, a little more than kernels/cuda lays out in
 * the device's memory (tests/test_plan_footprint.c compares, on a GPU). */
uint64_t gpu_activation_bytes(const struct gguf_model *model, const struct plan *plan, uint32_t s,
                              const struct plan_stage *stage);
/* Of both pools, with so many blocks in the full one. */
uint64_t stage_kv_bytes(const struct draft *draft, const struct plan_stage *stage,
                        uint64_t full_blocks);

#endif
