#include "kernels/host/host.h"

#include <sys/mman.h>
#include <unistd.h>

#include "kernels/cpu/pool.h"

/*
 * Weights in the layout of products of integers: a copy in memory of our own, in huge pages,
 * which then stands for the file's pages. It is made tensor by tensor, as long as there is room; what
 * stays in the mapping is repacked for each product, with the same results.
 */

/* Kept free for everybody else while weights are copied. */
#define ROOM_BYTES ((uint64_t)512 << 20)
/* Packed bytes of a task. */
#define TASK_BYTES ((uint64_t)256 << 10)

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

struct packing {
    struct host_stage *stage;
    struct host_matrix matrix;
    unsigned char *to;
    uint64_t matrix_bytes; /* of it, packed */
    uint32_t panels, group;
};

static void pack_task(void *arg, uint32_t task, uint32_t thread)
{
    (void)thread;
    const struct packing *p = arg;
    uint32_t tasks = (p->panels + p->group - 1) / p->group, e = task / tasks;
    struct host_matrix m = p->matrix;
    m.data += (uint64_t)e * m.rows * m.row_bytes;
    uint32_t first = task % tasks * p->group * HOST_PACK_ROWS, left = m.rows - first;
    uint32_t count = left < p->group * HOST_PACK_ROWS ? left : p->group * HOST_PACK_ROWS;
    uint64_t panel = p->matrix_bytes / p->panels;
    p->stage->table->pack(&m, first, count,
                          p->to + e * p->matrix_bytes + first / HOST_PACK_ROWS * panel);
}

/* The file's pages are not needed any more; those that the tensor shares with others stay. */
static void drop_pages(const struct gguf_tensor *tensor)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)tensor->data + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)tensor->data + tensor->bytes) / page * page;
    if (end > begin)
        madvise((void *)begin, end - begin, MADV_DONTNEED);
}

static void pack_tensor(void *arg, const struct gguf_tensor *tensor, uint32_t layer, size_t slot)
{
    struct host_stage *stage = arg;
    uint64_t bytes = host_packed_bytes(stage, tensor);
    unsigned char *to = stage->packed_memory + stage->packed_used;
    stage->packed_used += bytes;
    if (!bytes || host_memory_free() < stage->packed_reserve + bytes)
        return;
    struct packing p = {
        .stage = stage,
        .matrix = {.type = tensor->type,
                   .rows = (uint32_t)tensor->ne[1],
                   .columns = (uint32_t)tensor->ne[0],
                   .data = tensor->data,
                   .row_bytes = tensor->row_bytes},
        .to = to,
        .matrix_bytes = bytes / matrices_of(tensor),
        .panels = (uint32_t)((tensor->ne[1] + HOST_PACK_ROWS - 1) / HOST_PACK_ROWS),
    };
    uint64_t panel = p.matrix_bytes / p.panels;
    p.group = (uint32_t)(TASK_BYTES / panel) + 1;
    pool_run(stage->context.pool,
             (uint32_t)matrices_of(tensor) * ((p.panels + p.group - 1) / p.group), pack_task, &p);
    if (layer == stage->base.options.layer_count)
        stage->packed_head = to;
    else
        stage->packed[layer][slot] = to;
    /* All has been read, but the rank still moves. */
    const struct kernels_stage_options *o = &stage->base.options;
    if (o->progress)
        o->progress(o->arg, stage->weights_bytes, stage->weights_bytes);
    if (tensor->data != stage->base.model->embedding->data) /* whose rows are still looked up */
        drop_pages(tensor);
}

void host_repack(struct host_stage *stage)
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
    host_repack_each(stage, pack_tensor, stage);
}
