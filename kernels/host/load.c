#include "kernels/host/host.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/cpu/pool.h"

/*
 * Loading: each tensor passes through the threads once, in the order of the file, in pieces that stay
 * in a cache: read from the mapping, looked through for numbers and scales that are not finite, and
 * packed where that is wanted (repack.c). Meanwhile the disk reads on.
 */

/* Of a task: more than a huge page, of which two threads that touch it first would each clear one. */
#define TASK_BYTES ((uint64_t)8 << 20)
/* Looked through and packed in one go. */
#define PIECE_BYTES ((uint64_t)256 << 10)
/* The disk is asked for what is so far ahead. */
#define AHEAD_BYTES ((uint64_t)64 << 20)
#define TELL_BYTES  ((uint64_t)16 << 20)

/* What is done with one tensor. */
struct load_item {
    const struct gguf_tensor *tensor;
    const unsigned char **packed; /* where to tell that it is packed; NULL: it never is */
    unsigned char *to;            /* packed_bytes */
    uint64_t packed_bytes;
};

struct load {
    struct host_stage *stage;
    struct load_item *items; /* [n], in the order of the file */
    size_t n, room;
    uint64_t all, told; /* bytes */
    _Atomic uint64_t done;
    atomic_bool poisoned; /* in the current tensor */
    uint64_t page;
};

/* One tensor while it is read: `matrices` of `rows`, tasks of task_rows. */
struct load_run {
    struct load *load;
    const struct load_item *item;
    const struct load_item *next; /* what the disk turns to then, or NULL */
    struct host_matrix matrix;
    uint64_t rows, task_rows, piece_rows, tasks, matrix_bytes;
    bool pack;
};

/* ── what there is to do ───────────────────────────────────────────────────────────────────── */

static void add(void *arg, const struct gguf_tensor *tensor)
{
    struct load *load = arg;
    assert(load->n < load->room);
    load->items[load->n++] = (struct load_item){.tensor = tensor};
}

static void add_packed(void *arg, const struct gguf_tensor *tensor, uint32_t layer, size_t slot)
{
    struct load *load = arg;
    struct host_stage *stage = load->stage;
    uint64_t bytes = host_packed_bytes(stage, tensor);
    size_t i = 0;
    if (!bytes || !stage->packed_memory)
        return;
    while (i < load->n && load->items[i].tensor != tensor)
        i++;
    if (i == load->n) /* a head that is tied to the embedding */
        add(load, tensor);
    load->items[i].packed = layer == stage->base.options.layer_count ? &stage->packed_head
                                                                     : &stage->packed[layer][slot];
    load->items[i].to = stage->packed_memory + stage->packed_used;
    load->items[i].packed_bytes = bytes;
    stage->packed_used += bytes;
}

static void count(void *arg, const struct gguf_tensor *tensor)
{
    (void)tensor;
    ++*(size_t *)arg;
}

static int by_place(const void *a, const void *b)
{
    uintptr_t x = (uintptr_t)((const struct load_item *)a)->tensor->data;
    uintptr_t y = (uintptr_t)((const struct load_item *)b)->tensor->data;
    return (x > y) - (x < y);
}

/* ── pages of the file ─────────────────────────────────────────────────────────────────────── */

/* Bytes from…from + n − 1 of the tensor are wanted soon, those beyond its end of the next one. */
static void ask_for(const struct load_run *run, uint64_t from, uint64_t n)
{
    const struct gguf_tensor *t = run->item->tensor;
    if (from >= t->bytes) {
        if (!run->next)
            return;
        from -= t->bytes;
        t = run->next->tensor;
    }
    if (from >= t->bytes)
        return;
    if (n > t->bytes - from)
        n = t->bytes - from;
    uintptr_t begin = ((uintptr_t)t->data + from) / run->load->page * run->load->page;
    madvise((void *)begin, (uintptr_t)t->data + from + n - begin, MADV_WILLNEED);
}

/* The file's pages are not needed any more; those that the tensor shares with others stay. */
static void drop_pages(const struct load *load, const struct gguf_tensor *tensor)
{
    uintptr_t begin = ((uintptr_t)tensor->data + load->page - 1) / load->page * load->page;
    uintptr_t end = ((uintptr_t)tensor->data + tensor->bytes) / load->page * load->page;
    if (end > begin)
        madvise((void *)begin, end - begin, MADV_DONTNEED);
}

/* ── a tensor ──────────────────────────────────────────────────────────────────────────────── */

static void tell(struct load *load, uint64_t done)
{
    const struct kernels_stage_options *o = &load->stage->base.options;
    if (!o->progress || done - load->told < TELL_BYTES)
        return;
    load->told = done;
    o->progress(o->arg, done, load->all);
}

/* Rows first…first + n − 1 of matrix e. */
static void load_piece(const struct load_run *run, uint64_t e, uint64_t first, uint64_t n)
{
    struct load *load = run->load;
    const struct gguf_tensor *tensor = run->item->tensor;
    struct gguf_tensor slice = *tensor;
    char unused[256];
    slice.data += (e * run->rows + first) * tensor->row_bytes;
    slice.bytes = n * tensor->row_bytes;
    for (uint64_t at = 0; at < slice.bytes; at += load->page)
        (void)*(const volatile unsigned char *)(slice.data + at);
    if (gguf_check_tensor(NULL, &slice, unused, sizeof unused))
        atomic_store(&load->poisoned, true);
    if (!run->pack)
        return;
    struct host_matrix m = run->matrix;
    uint64_t panel = run->matrix_bytes / ((run->rows + HOST_PACK_ROWS - 1) / HOST_PACK_ROWS);
    m.data += e * run->rows * m.row_bytes;
    load->stage->table->pack(&m, (uint32_t)first, (uint32_t)n,
                             run->item->to + e * run->matrix_bytes +
                                 first / HOST_PACK_ROWS * panel);
}

static void load_task(void *arg, uint32_t task, uint32_t thread)
{
    const struct load_run *run = arg;
    struct load *load = run->load;
    uint64_t row_bytes = run->item->tensor->row_bytes;
    uint64_t e = task / run->tasks, first = task % run->tasks * run->task_rows;
    uint64_t end = run->rows - first < run->task_rows ? run->rows : first + run->task_rows;
    for (uint64_t n; first < end; first += n) {
        n = end - first < run->piece_rows ? end - first : run->piece_rows;
        ask_for(run, (e * run->rows + first) * row_bytes + AHEAD_BYTES, n * row_bytes);
        load_piece(run, e, first, n);
        uint64_t done = atomic_fetch_add(&load->done, n * row_bytes) + n * row_bytes;
        if (thread == 0) /* the caller's own */
            tell(load, done);
    }
}

/* As many whole panels as there are in `bytes`, at least one. */
static uint64_t rows_in(uint64_t bytes, uint64_t row_bytes)
{
    uint64_t panels = bytes / row_bytes / HOST_PACK_ROWS;
    return (panels ? panels : 1) * HOST_PACK_ROWS;
}

static int load_tensor(struct load *load, size_t i, char *err, size_t err_size)
{
    struct host_stage *stage = load->stage;
    const struct load_item *item = &load->items[i];
    const struct gguf_tensor *t = item->tensor;
    uint64_t matrices = t->n_dims > 2 ? t->ne[2] : 1;
    struct load_run run = {.load = load,
                           .item = item,
                           .next = i + 1 < load->n ? item + 1 : NULL,
                           .rows = t->bytes / t->row_bytes};
    if (item->packed && host_memory_free() >= stage->packed_reserve + item->packed_bytes) {
        run.pack = true;
        run.rows /= matrices;
        run.matrix_bytes = item->packed_bytes / matrices;
        run.matrix = (struct host_matrix){.type = t->type,
                                          .rows = (uint32_t)t->ne[1],
                                          .columns = (uint32_t)t->ne[0],
                                          .data = t->data,
                                          .row_bytes = t->row_bytes};
    }
    run.piece_rows = rows_in(PIECE_BYTES, t->row_bytes);
    run.task_rows = rows_in(TASK_BYTES, t->row_bytes);
    run.tasks = (run.rows + run.task_rows - 1) / run.task_rows;
    pool_run(stage->context.pool, (uint32_t)(run.pack ? matrices * run.tasks : run.tasks),
             load_task, &run);
    if (atomic_load(&load->poisoned)) /* to say where */
        return gguf_check_tensor(stage->base.model->file, t, err, err_size);
    if (!run.pack)
        return 0;
    *item->packed = item->to;
    if (t->data != stage->base.model->embedding->data) /* whose rows are still looked up */
        drop_pages(load, t);
    return 0;
}

int host_load(struct host_stage *stage, char *err, size_t err_size)
{
    struct load load = {.stage = stage, .page = (uint64_t)sysconf(_SC_PAGESIZE), .room = 1};
    int status = -1;
    host_layout_weights(stage, count, &load.room);
    load.items = malloc(load.room * sizeof *load.items);
    if (!load.items) {
        snprintf(err, err_size, "no memory for a list of %zu tensors", load.room);
        return -1;
    }
    host_repack_open(stage);
    host_layout_weights(stage, add, &load);
    host_repack_each(stage, add_packed, &load);
    qsort(load.items, load.n, sizeof *load.items, by_place);
    for (size_t i = 0; i < load.n; i++) {
        const struct gguf_tensor *t = load.items[i].tensor;
        load.all += t->bytes;
        if (t->type == GGUF_F32 && (uintptr_t)t->data % sizeof(float)) {
            snprintf(err, err_size, "%s: tensor %s is not aligned to the %zu bytes of a float",
                     gguf_path(stage->base.model->file), t->name, sizeof(float));
            goto fail;
        }
    }
    for (size_t i = 0; i < load.n; i++)
        if (load_tensor(&load, i, err, err_size))
            goto fail;
    if (stage->base.options.progress)
        stage->base.options.progress(stage->base.options.arg, load.all, load.all);
    status = 0;
fail:
    free(load.items);
    return status;
}
