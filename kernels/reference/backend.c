#include "kernels/host/host.h"
#include "kernels/reference/reference.h"

#include <stdio.h>
#include <stdlib.h>

static uint64_t no_scratch(uint32_t columns, uint32_t group, uint32_t head_dim)
{
    (void)columns;
    (void)group;
    (void)head_dim;
    return 0;
}

static void run(const struct host_context *c, uint32_t n,
                void (*task)(void *arg, uint32_t i, uint32_t thread), void *arg)
{
    (void)c;
    for (uint32_t i = 0; i < n; i++)
        task(arg, i, 0);
}

static const struct host_table table = {
    .name = "plain C",
    .scratch_bytes = no_scratch,
    .rmsnorm = reference_rmsnorm,
    .linear = reference_linear,
    .store = reference_store,
    .attend = reference_attend,
    .route = reference_route,
    .moe = reference_moe,
    .run = run,
};

static int create(struct kernels **out, const struct kernels_options *options, char *err,
                  size_t err_size)
{
    (void)options;
    struct host_device *device = calloc(1, sizeof *device);
    if (!device) {
        snprintf(err, err_size, "no memory for a device");
        return -1;
    }
    device->table = &table;
    device->threads = 1;
    snprintf(device->isa, sizeof device->isa, "%s", table.name);
    *out = &device->base;
    return 0;
}

const struct kernels_backend kernels_backend_reference = HOST_BACKEND("reference", create);
