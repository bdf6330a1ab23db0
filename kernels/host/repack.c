#include "kernels/host/host.h"

#include <sys/mman.h>

/*
 * Weights in the layout of products of integers: a copy in memory of our own, in huge pages,
 * which then stands for the file's pages. It is made tensor by tensor while they are loaded (load.c), as
 * long as there is room; what stays in the mapping is repacked for each product, with the same
 * results.
 */

/* Kept free for everybody else while weights are copied. */
#define ROOM_BYTES ((uint64_t)512 << 20)

static uint64_t matrices_of(const struct gguf_tensor *tensor)
{
    return tensor->n_dims > 2 ? tensor->ne[2] : 1;
}

uint64_t host_packed_bytes(const struct host_stage *stage, const struct gguf_tensor *tensor)
{
    uint64_t bytes;
    if (!stage->table->packed_bytes || stage->base.options.in_place || tensor->ne[0] > UINT32_MAX ||
        tensor->ne[1] > UINT32_MAX)
        return 0;
    bytes = stage->table->packed_bytes(tensor->type, (uint32_t)tensor->ne[1],
                                       (uint32_t)tensor->ne[0], stage->fast);
    return __builtin_mul_overflow(bytes, matrices_of(tensor), &bytes) ? 0 : bytes;
}

void host_repack_each(const struct host_stage *stage,
                      void (*each)(void *arg, const struct gguf_tensor *tensor, uint32_t layer,
                                   size_t slot),
                      void *arg)
{
    const struct kernels_stage_options *o = &stage->base.options;
    for (uint32_t i = 0; i < o->layer_count; i++) {
        const struct gguf_layer *l = &stage->base.model->layers[o->layer_first + i];
        const struct gguf_tensor *const tensors[HOST_PACKED] = {
            [HOST_Q] = l->attn_q.weight,      [HOST_K] = l->attn_k.weight,
            [HOST_V] = l->attn_v.weight,      [HOST_OUT] = l->attn_out.weight,
            [HOST_ROUTER] = l->router.weight, [HOST_GATE] = l->gate.weight,
            [HOST_UP] = l->up.weight,         [HOST_DOWN] = l->down.weight};
        for (size_t slot = 0; slot < HOST_PACKED; slot++)
            each(arg, tensors[slot], i, slot);
    }
    if (o->head_count)
        each(arg, &stage->head, o->layer_count, 0);
}

void host_repack_open(struct host_stage *stage)
{
    if (!stage->packed_bytes)
        return;
    void *memory = mmap(NULL, stage->packed_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return;
    madvise(memory, stage->packed_bytes, MADV_HUGEPAGE);
    stage->packed_memory = memory;
    stage->packed_reserve = stage->kv_bytes + ROOM_BYTES;
}
