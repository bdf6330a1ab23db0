#include "kernels/cpu/cpu.h"
#include "kernels/host/host.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* The instruction sets that were compiled in, best first. */
static const struct host_table *const tables[] = {
#if defined(__x86_64__)
    &cpu_table_avx512,
    &cpu_table_avxvnni,
    &cpu_table_avx2,
#endif
    &cpu_table_plain,
};

#if defined(__x86_64__)
/* Asked once: a virtual machine answers slowly. Not every compiler's __builtin_cpu_supports knows it. */
bool cpu_has_avxvnni(void)
{
    static atomic_int known; /* 0: not yet; 1: no; 2: yes */
    int has = atomic_load_explicit(&known, memory_order_relaxed);
    if (!has) {
        unsigned a, b, c, d;
        has = __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1 ? 2 : 1;
        atomic_store_explicit(&known, has, memory_order_relaxed);
    }
    return has == 2;
}
#endif

static bool is_supported(const struct host_table *table)
{
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("f16c");
    if (table == &cpu_table_avx512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (table == &cpu_table_avxvnni)
        return avx2 && (cpu_has_avxvnni() || (__builtin_cpu_supports("avx512vnni") &&
                                              __builtin_cpu_supports("avx512vl")));
    if (table == &cpu_table_avx2)
        return avx2;
#endif
    return table == &cpu_table_plain;
}

static int create(struct kernels **out, const struct kernels_options *options, char *err,
                  size_t err_size)
{
    const struct host_table *table = NULL;
    bool known = !options->isa;
    for (size_t i = 0; i < sizeof tables / sizeof *tables && !table; i++) {
        if (options->isa && strcmp(options->isa, tables[i]->name))
            continue;
        known = true;
        if (is_supported(tables[i]))
            table = tables[i];
    }
    if (!table) {
        snprintf(err, err_size,
                 known ? "instruction set %s: this processor does not have it"
                       : "instruction set %s is unknown: avx512, avxvnni, avx2 or plain",
                 options->isa);
        return -1;
    }
    struct host_device *device = calloc(1, sizeof *device);
    if (!device) {
        snprintf(err, err_size, "no memory for a device");
        return -1;
    }
    device->table = table;
    device->threads = options->threads ? options->threads : 1;
    device->fast = options->fast;
    snprintf(device->isa, sizeof device->isa, "%s", table->name);
    *out = &device->base;
    return 0;
}

const struct kernels_backend kernels_backend_cpu = HOST_BACKEND("cpu", create);
