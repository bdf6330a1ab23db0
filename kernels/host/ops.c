#include "kernels/host/host.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/pool.h"

/* The second door: single operations on plain arrays, through the same tables as the steps. */

static void *zeroed(uint64_t n, uint64_t size)
{
    uint64_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes))
        return NULL;
    bytes = (bytes + 127) / 64 * 64;
    void *memory = aligned_alloc(64, bytes);
    if (memory)
        memset(memory, 0, bytes);
    return memory;
}

static int open_context(const struct kernels *k, uint32_t columns, uint32_t group,
                        uint32_t head_dim, struct host_context *context)
{
    const struct host_device *device = (const struct host_device *)k;
    char err[128];
    *context = (struct host_context){0};
    context->scratch_bytes = device->table->scratch_bytes(columns, group, head_dim);
    context->scratch = zeroed(device->threads, context->scratch_bytes);
    if (!context->scratch)
        return -1;
    return pool_create(&context->pool, device->threads, err, sizeof err);
}

/* For products of integers: of `rows` rows of x, and of `pairs` units of experts. */
static int open_quantised(const struct kernels *k, uint64_t rows, uint32_t columns, uint64_t pairs,
                          uint32_t units, struct host_context *context)
{
    const struct host_device *device = (const struct host_device *)k;
    context->fast = device->fast;
    if (!device->table->quantised_bytes)
        return 0;
    context->quantised = zeroed(rows, device->table->quantised_bytes(columns, device->fast));
    context->quantised_units = zeroed(pairs, device->table->quantised_bytes(units, device->fast));
    return context->quantised && context->quantised_units ? 0 : -1;
}

static void close_context(struct host_context *context)
{
    pool_destroy(context->pool);
    free(context->scratch);
    free(context->quantised);
    free(context->quantised_units);
}

static const struct host_table *table_of(const struct kernels *k)
{
    return ((const struct host_device *)k)->table;
}

/* Rows of `columns` floats with the stride that kernels want. */
static float *padded_copy(const float *x, uint64_t n, uint32_t columns)
{
    uint32_t stride = host_padded(columns);
    float *copy = zeroed(n * stride, sizeof *copy);
    for (uint64_t i = 0; copy && i < n; i++)
        memcpy(copy + i * stride, x + i * columns, columns * sizeof *x);
    return copy;
}

static void report(double *seconds, uint64_t begin, uint32_t repeat)
{
    if (seconds)
        *seconds = (double)(host_clock_ns() - begin) * 1e-9 / repeat;
}

int host_op_rmsnorm(struct kernels *k, const struct kernels_op_rmsnorm *op, double *seconds)
{
    struct host_context context;
    uint32_t repeat = op->repeat ? op->repeat : 1, stride = host_padded(op->columns);
    float *out = zeroed((uint64_t)op->n * stride, sizeof *out);
    int status = open_context(k, op->columns, 1, 16, &context);
    if (!out)
        status = -1;
    if (!status) {
        uint64_t begin = host_clock_ns();
        for (uint32_t r = 0; r < repeat; r++)
            table_of(k)->rmsnorm(&context, op->x, op->columns, op->weight, op->n, op->columns,
                                 op->eps, out, stride);
        report(seconds, begin, repeat);
        for (uint64_t i = 0; i < op->n; i++)
            memcpy(op->out + i * op->columns, out + i * stride, op->columns * sizeof *out);
    }
    close_context(&context);
    free(out);
    return status;
}

static struct host_matrix matrix_of(enum gguf_type type, const void *data, const float *bias,
                                    uint32_t rows, uint32_t columns)
{
    return (struct host_matrix){.type = type,
                                .rows = rows,
                                .columns = columns,
                                .data = data,
                                .row_bytes = gguf_row_bytes(type, columns),
                                .bias = bias};
}

/* As a stage holds them: `n` matrices that follow each other, packed. NULL: the type is not, or there is
 * no memory. */
static unsigned char *packed_copy(const struct kernels *k, const struct host_matrix *m, uint64_t n)
{
    const struct host_table *table = table_of(k);
    bool fast = ((const struct host_device *)k)->fast;
    uint64_t bytes =
        table->packed_bytes ? table->packed_bytes(m->type, m->rows, m->columns, fast) : 0;
    unsigned char *packed = bytes ? zeroed(n, bytes) : NULL;
    struct host_matrix one = *m;
    for (uint64_t i = 0; packed && i < n; i++, one.data += m->rows * m->row_bytes)
        table->pack(&one, 0, one.rows, packed + i * bytes);
    return packed;
}

int host_op_linear(struct kernels *k, const struct kernels_op_linear *op, double *seconds)
{
    struct host_context context;
    uint32_t repeat = op->repeat && !op->add ? op->repeat : 1, copies = op->copies ? op->copies : 1;
    float *x = padded_copy(op->x, op->n, op->columns);
    uint64_t bytes = gguf_row_bytes(op->type, op->columns) * op->rows;
    unsigned char *more = copies > 1 ? zeroed(copies, bytes) : NULL, *packed = NULL;
    int status = open_context(k, op->columns, 1, 16, &context);
    if (!status)
        status = open_quantised(k, op->n, op->columns, 0, 0, &context);
    if (!x || (copies > 1 && !more))
        status = -1;
    for (uint32_t c = 0; !status && more && c < copies; c++)
        memcpy(more + c * bytes, op->weight, bytes);
    if (!status) {
        struct host_product product = {
            .matrix = matrix_of(op->type, op->weight, op->bias, op->rows, op->columns),
            .y = op->y,
            .stride = op->rows,
            .add = op->add,
        };
        if (repeat > 1 && more) {
            product.matrix.data = more;
            packed = packed_copy(k, &product.matrix, copies);
        } else if (repeat > 1) {
            packed = packed_copy(k, &product.matrix, 1);
        }
        product.matrix.packed = packed;
        uint64_t packed_bytes =
            packed ? table_of(k)->packed_bytes(op->type, op->rows, op->columns, context.fast) : 0;
        if (repeat > 1) /* threads are woken, pages are there */
            table_of(k)->linear(&context, &product, 1, x, host_padded(op->columns), op->n);
        uint64_t begin = host_clock_ns();
        for (uint32_t r = 0; r < repeat; r++) {
            if (more)
                product.matrix.data = more + r % copies * bytes;
            if (packed)
                product.matrix.packed = packed + r % copies * packed_bytes;
            table_of(k)->linear(&context, &product, 1, x, host_padded(op->columns), op->n);
        }
        report(seconds, begin, repeat);
    }
    close_context(&context);
    free(more);
    free(packed);
    free(x);
    return status;
}

/* The keys before the queries are stored as another row of the step, which does not attend. */
int host_op_attention(struct kernels *k, const struct kernels_op_attention *op, double *seconds)
{
    struct host_context context;
    uint32_t repeat = op->repeat ? op->repeat : 1, all = op->first + op->count;
    uint32_t q_width = op->heads * op->head_dim, kv_width = op->kv_heads * op->head_dim;
    uint32_t n_blocks = (all + op->block_tokens - 1) / op->block_tokens, half = op->head_dim / 2;
    uint64_t block_bytes =
        2 * (uint64_t)kv_width * op->block_tokens * host_kv_element_bytes(op->kv_type);
    float *q = zeroed((uint64_t)all * q_width, sizeof *q);
    float *key = zeroed((uint64_t)all * kv_width, sizeof *key);
    float *value = zeroed((uint64_t)all * kv_width, sizeof *value);
    float *out = zeroed((uint64_t)all * host_padded(q_width), sizeof *out);
    float *cosine = zeroed((uint64_t)all * half + 1, sizeof *cosine);
    float *sine = zeroed((uint64_t)all * half + 1, sizeof *sine);
    uint32_t *blocks = zeroed(n_blocks, sizeof *blocks);
    struct host_tile *tiles = zeroed(all, sizeof *tiles);
    unsigned char *cache = zeroed(n_blocks, block_bytes);
    int status = open_context(k, op->head_dim, op->heads / op->kv_heads, op->head_dim, &context);
    if (!q || !key || !value || !out || !cosine || !sine || !blocks || !tiles || !cache)
        status = -1;
    if (status)
        goto done;

    memcpy(q + (uint64_t)op->first * q_width, op->q, (uint64_t)op->count * q_width * sizeof *q);
    memcpy(key, op->k, (uint64_t)all * kv_width * sizeof *key);
    memcpy(value, op->v, (uint64_t)all * kv_width * sizeof *value);
    for (uint32_t p = 0; op->omega && p < all; p++)
        for (uint32_t i = 0; i < half; i++) {
            cosine[(uint64_t)p * half + i] = (float)(op->magnitude * cos(p * op->omega[i]));
            sine[(uint64_t)p * half + i] = (float)(op->magnitude * sin(p * op->omega[i]));
        }
    for (uint32_t b = 0; b < n_blocks; b++) /* not in order */
        blocks[b] = n_blocks - 1 - b;
    const struct host_sequence rows[] = {
        {.blocks = blocks, .position = 0, .count = op->first, .first = 0},
        {.blocks = blocks, .position = op->first, .count = op->count, .first = op->first},
    };
    struct host_attention attention = {
        .kv = {cache, block_bytes, op->kv_type, op->block_tokens, op->kv_heads, op->head_dim},
        .sequences = op->first ? rows : rows + 1,
        .n_sequences = op->first ? 2 : 1,
        .n_tokens = all,
        .rotation = {op->omega ? cosine : NULL, op->omega ? sine : NULL},
        .heads = op->heads,
        .window = op->window,
        .sinks = op->sinks,
        .q = q,
        .k = key,
        .v = value,
        .out = out,
        .out_stride = host_padded(q_width),
        .tiles = tiles,
    };
    table_of(k)->store(&context, &attention);
    attention.sequences = rows + 1;
    attention.n_sequences = 1;
    uint64_t begin = host_clock_ns();
    for (uint32_t r = 0; r < repeat; r++)
        table_of(k)->attend(&context, &attention);
    report(seconds, begin, repeat);
    for (uint32_t i = 0; i < op->count; i++)
        memcpy(op->out + (uint64_t)i * q_width,
               out + (uint64_t)(op->first + i) * attention.out_stride, q_width * sizeof *out);
done:
    close_context(&context);
    free(q);
    free(key);
    free(value);
    free(out);
    free(cosine);
    free(sine);
    free(blocks);
    free(tiles);
    free(cache);
    return status;
}

int host_op_moe(struct kernels *k, const struct kernels_op_moe *op, double *seconds)
{
    struct host_context context;
    uint32_t repeat = op->repeat ? op->repeat : 1;
    uint32_t inputs = op->inputs ? op->inputs : 1;
    uint64_t pairs = (uint64_t)op->n * op->active, stride = host_padded(op->hidden);
    float *h = padded_copy(op->h, (uint64_t)op->n * inputs, op->hidden);
    float *logits = zeroed((uint64_t)op->n * op->experts, sizeof *logits);
    uint32_t *chosen = zeroed(pairs, sizeof *chosen);
    float *weight = zeroed(pairs, sizeof *weight);
    float *unit = zeroed(pairs * host_padded(op->expert_ffn), sizeof *unit);
    float *part = zeroed(pairs * op->hidden, sizeof *part);
    uint32_t *order = zeroed(pairs, sizeof *order);
    uint32_t *begins = zeroed(2 * (uint64_t)op->experts + 1, sizeof *begins);
    unsigned char *packed[3] = {NULL, NULL, NULL};
    uint32_t columns = op->hidden > op->expert_ffn ? op->hidden : op->expert_ffn;
    int status = open_context(k, columns, 1, 16, &context);
    if (!status)
        status = open_quantised(k, op->n, columns, pairs, op->expert_ffn, &context);
    if (!h || !logits || !chosen || !weight || !unit || !part || !order || !begins)
        status = -1;
    if (status)
        goto done;

    const struct host_product router = {
        .matrix = matrix_of(op->router_type, op->router, op->router_bias, op->experts, op->hidden),
        .y = logits,
        .stride = op->experts,
    };
    struct host_moe moe = {
        .n = op->n,
        .experts = op->experts,
        .active = op->active,
        .gate = matrix_of(op->type, op->gate, op->gate_bias, op->expert_ffn, op->hidden),
        .up = matrix_of(op->type, op->up, op->up_bias, op->expert_ffn, op->hidden),
        .down = matrix_of(op->type, op->down, op->down_bias, op->hidden, op->expert_ffn),
        .alpha = op->alpha,
        .limit = op->limit,
        .h = h,
        .h_stride = stride,
        .chosen = chosen,
        .weight = weight,
        .x = op->x,
        .unit = unit,
        .part = part,
        .pairs = order,
        .begin = begins,
        .used = begins + op->experts + 1,
    };
    for (uint32_t i = 0; repeat > 1 && i < 3; i++) {
        struct host_matrix *m = (struct host_matrix *[]){&moe.gate, &moe.up, &moe.down}[i];
        packed[i] = packed_copy(k, m, op->experts);
        m->packed = packed[i];
    }
    uint64_t begin = host_clock_ns();
    for (uint32_t r = 0; r < repeat; r++) {
        moe.h = h + r % inputs * op->n * stride;
        table_of(k)->linear(&context, &router, 1, moe.h, stride, op->n);
        table_of(k)->route(&context, logits, op->n, op->experts, op->active, chosen, weight);
        if (!op->route_only)
            table_of(k)->moe(&context, &moe);
    }
    report(seconds, begin, repeat);
    if (op->chosen)
        memcpy(op->chosen, chosen, pairs * sizeof *chosen);
    if (op->weight)
        memcpy(op->weight, weight, pairs * sizeof *weight);
done:
    close_context(&context);
    free(h);
    free(logits);
    free(chosen);
    free(weight);
    free(unit);
    free(part);
    free(order);
    free(begins);
    for (int i = 0; i < 3; i++)
        free(packed[i]);
    return status;
}

/* ── sampling ──────────────────────────────────────────────────────────────────────────────── */

struct sampling {
    const struct kernels_op_sample *op;
    unsigned char *scratch; /* [threads, scratch_bytes] */
    uint64_t scratch_bytes;
};

static void sample_task(void *arg, uint32_t i, uint32_t thread)
{
    const struct sampling *s = arg;
    const struct kernels_op_sample *op = s->op;
    const struct kernels_row row = {.temperature = op->temperature,
                                    .top_k = op->top_k,
                                    .top_p = op->top_p,
                                    .min_p = op->min_p,
                                    .seed = i};
    struct kernels_sample sample;
    kernels_sample(op->logits + (uint64_t)i * op->vocabulary, op->vocabulary, op->vocabulary, &row,
                   0, &sample, s->scratch + thread * s->scratch_bytes);
    op->tokens[i] = sample.token;
}

int host_op_sample(struct kernels *k, const struct kernels_op_sample *op, double *seconds)
{
    struct host_context context;
    uint32_t repeat = op->repeat ? op->repeat : 1;
    struct sampling s = {.op = op, .scratch_bytes = kernels_sample_scratch_bytes(op->vocabulary)};
    s.scratch_bytes = (s.scratch_bytes + 63) / 64 * 64;
    s.scratch = zeroed(((const struct host_device *)k)->threads, s.scratch_bytes);
    int status = open_context(k, 16, 1, 16, &context);
    if (!s.scratch)
        status = -1;
    if (!status) {
        uint64_t begin = host_clock_ns();
        for (uint32_t r = 0; r < repeat; r++)
            table_of(k)->run(&context, op->n, sample_task, &s);
        report(seconds, begin, repeat);
    }
    close_context(&context);
    free(s.scratch);
    return status;
}

/* ── limits ────────────────────────────────────────────────────────────────────────────────── */

#define COPY_BYTES   ((uint64_t)1 << 20) /* of a task */
#define COPY_TASKS   128u
#define LIMIT_ROUNDS 5

struct copying {
    unsigned char *from, *to;
    const struct host_table *table;
    _Atomic uint64_t operations;
};

static void copy_task(void *arg, uint32_t i, uint32_t thread)
{
    (void)thread;
    const struct copying *c = arg;
    memcpy(c->to + i * COPY_BYTES, c->from + i * COPY_BYTES, COPY_BYTES);
}

static void multiply_task(void *arg, uint32_t i, uint32_t thread)
{
    (void)i;
    (void)thread;
    struct copying *c = arg;
    atomic_fetch_add(&c->operations, 2 * c->table->multiply());
}

static void multiply_int8_task(void *arg, uint32_t i, uint32_t thread)
{
    (void)i;
    (void)thread;
    struct copying *c = arg;
    atomic_fetch_add(&c->operations, c->table->multiply_int8());
}

/* The best of a few rounds: a second each for `amount` of something. */
static double best_rate(const struct host_context *context, const struct host_table *table,
                        uint32_t n, void (*task)(void *arg, uint32_t i, uint32_t thread),
                        struct copying *c, double amount)
{
    double best = 0;
    for (int round = 0; round < LIMIT_ROUNDS; round++) {
        uint64_t begin = host_clock_ns(), before = atomic_load(&c->operations);
        table->run(context, n, task, c);
        uint64_t ns = host_clock_ns() - begin;
        double done = amount > 0 ? amount : (double)(atomic_load(&c->operations) - before);
        if (round && ns && done / (double)ns * 1e9 > best)
            best = done / (double)ns * 1e9;
    }
    return best;
}

int host_limits(struct kernels *k, struct kernels_limits *limits)
{
    struct host_context context;
    const struct host_device *device = (const struct host_device *)k;
    struct copying c = {.table = device->table};
    int status = open_context(k, 16, 1, 16, &context);
    c.from = zeroed(COPY_TASKS, COPY_BYTES);
    c.to = zeroed(COPY_TASKS, COPY_BYTES);
    if (!c.from || !c.to)
        status = -1;
    if (!status) {
        limits->read_one = limits->read = host_bandwidth(1);
        if (device->threads > 1)
            limits->read = host_bandwidth(device->threads);
        limits->copy = best_rate(&context, device->table, COPY_TASKS, copy_task, &c,
                                 2.0 * COPY_TASKS * (double)COPY_BYTES);
        limits->unit = "f32 FMA";
        if (device->table->multiply)
            limits->operations =
                best_rate(&context, device->table, 4 * device->threads, multiply_task, &c, 0);
        if (device->table->multiply_int8)
            limits->integers =
                best_rate(&context, device->table, 4 * device->threads, multiply_int8_task, &c, 0);
    }
    close_context(&context);
    free(c.from);
    free(c.to);
    return status;
}
