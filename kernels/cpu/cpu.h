/*
 * cpu: the operations of host/table.h with SIMD and threads. Private to cpu/.
 *
 * The order of every sum is fixed by constants: a dot product of floats is one vector of 16 partial sums
 * along the columns, each column fused into the lane of its index modulo 16, the lanes added at the end
 * in one order; one of integers (dot.h) adds exact sums of 32 columns, one after the other. The code for
 * one row and for many differs in what it keeps in registers, not in that.
 */
#ifndef GPTOSS_KERNELS_CPU_H
#define GPTOSS_KERNELS_CPU_H

#include "kernels/cpu/pool.h"
#include "kernels/host/table.h"

/* Less work than this (multiplications) is not worth waking a thread for. */
#define CPU_ALONE 50000u

#define CPU_DECLARE(isa) extern const struct host_table cpu_table_##isa;
CPU_DECLARE(plain)
CPU_DECLARE(avx2)
CPU_DECLARE(avxvnni)
CPU_DECLARE(avx512)

/* backend.c. AVX-VNNI itself, not AVX-512's form of it. */
bool cpu_has_avxvnni(void);

static inline struct pool *cpu_pool_for(const struct host_context *c, double multiplications)
{
    return multiplications < CPU_ALONE ? NULL : c->pool;
}

#endif
