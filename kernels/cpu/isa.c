/* isa: the table of one instruction set. */
#include "kernels/cpu/local.h"

static uint64_t scratch_bytes(uint32_t columns, uint32_t group, uint32_t head_dim)
{
    uint64_t attention = CPU_NAME(attention_scratch)(group, head_dim);
    uint64_t moe = CPU_NAME(moe_scratch)(columns); /* a plain matrix needs less */
    return ((attention > moe ? attention : moe) * sizeof(float) + 63) / 64 * 64;
}

static void run(const struct host_context *c, uint32_t n,
                void (*task)(void *arg, uint32_t i, uint32_t thread), void *arg)
{
    pool_run(c->pool, n, task, arg);
}

#define TEXT2(x) #x
#define TEXT(x)  TEXT2(x)

const struct host_table CPU_NAME(table) = {
    .name = TEXT(CPU_ISA),
    .scratch_bytes = scratch_bytes,
    .rmsnorm = op_rmsnorm,
    .linear = op_linear,
    .store = op_store,
    .attend = op_attend,
    .route = op_route,
    .moe = op_moe,
    .run = run,
};
