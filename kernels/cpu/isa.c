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

/* Enough sums side by side that none waits for itself. */
static uint64_t multiply(void)
{
    enum { SUMS = 16, ROUNDS = 20000 };
    v16 sums[SUMS], a = v_set(0.999f), b = v_set(0.001f);
    float out[16], sum = 0;
    for (int i = 0; i < SUMS; i++)
        sums[i] = v_set((float)i);
    for (int r = 0; r < ROUNDS; r++)
        for (int i = 0; i < SUMS; i++)
            sums[i] = v_fma(sums[i], a, b);
    for (int i = 0; i < SUMS; i++) {
        v_store(out, sums[i]);
        sum += out[0];
    }
    return (uint64_t)SUMS * ROUNDS * 16 + (sum < 0); /* never: the sums are wanted */
}

static void pack(const struct host_matrix *m, uint32_t first, uint32_t count, unsigned char *to)
{
    for (uint32_t done = 0; done < count; done += PACK_ROWS) {
        uint32_t left = count - done;
        pack_panel(m->type, m->data + (uint64_t)(first + done) * m->row_bytes, m->row_bytes,
                   left < PACK_ROWS ? left : PACK_ROWS, m->columns, to);
        to += pack_panel_bytes(m->type, m->columns);
    }
}

static uint64_t packed_bytes(enum gguf_type type, uint32_t rows, uint32_t columns, bool fast)
{
    return fast || DOT_WIDE ? pack_bytes(type, rows, columns) : 0;
}

static uint64_t quantised_bytes(uint32_t columns, bool fast)
{
    return fast || DOT_WIDE ? quantised_stride(columns, !fast) : 0;
}

static uint64_t multiply_int8(void)
{
    return dot_of()->spin();
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
    .multiply = multiply,
    .multiply_int8 = multiply_int8,
    .run = run,
    .packed_bytes = packed_bytes,
    .pack = pack,
    .quantised_bytes = quantised_bytes,
};
