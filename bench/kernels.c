/*
 * kernels: each operation of a layer by itself, beside what the device can do at best.
 *
 * Through the second door of kernels/ (ops.h), on random data, with the sizes of gpt-oss-20b or of a
 * file. Weights are read in turn from so many copies that no cache holds them; the experts' inputs
 * change from repetition to repetition, so that other experts are chosen.
 */
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/fields.h"
#include "kernels/kernels.h"
#include "kernels/ops.h"

#define COPIES_BYTES 300e6 /* of weights that repetitions read in turn: more than caches hold */
#define CASE_SECONDS 0.1   /* of a case, if it were as fast as the device */
enum { COPIES_MAX = 64, INPUTS_MAX = 32, REPEAT_MAX = 200, SAMPLES_MAX = 64 };

struct choice {
    const char *model, *device, *rows, *depths, *only, *output, *kv_type;
    int64_t threads;
    bool fast;
};

struct sizes {
    uint32_t hidden, heads, kv_heads, head_dim, experts, active, expert_ffn, vocabulary, window;
    enum gguf_type matrix, output, expert, router;
};

struct bench_kernels {
    struct choice choice;
    struct sizes sizes;
    struct bench_list rows, depths;
    enum bench_format format;
    enum kernels_kv_type kv_type;
    struct kernels *k;
    struct kernels_info info;
    struct kernels_limits limits;
    struct table *table;
    size_t n; /* results so far */
    uint64_t random;
};

/* One timed operation. */
struct result {
    const char *kernel, *type;
    char shape[64];
    uint32_t rows, depth;
    double seconds, bytes, operations; /* of one repetition */
};

static int wrong(const char *text)
{
    fprintf(stderr, "gptoss-bench kernels: %s\ngptoss-bench kernels --help lists the options\n",
            text);
    return -1;
}

/* ── data ──────────────────────────────────────────────────────────────────────────────────── */

static float *random_floats(struct bench_kernels *b, uint64_t n, float scale)
{
    float *x = malloc(n * sizeof *x);
    for (uint64_t i = 0; x && i < n; i++)
        x[i] = ((float)(bench_random(&b->random) >> 40) * 0x1p-23f - 1) * scale;
    return x;
}

/* [rows, columns] of a type: some rows are made, and repeated. */
static unsigned char *random_matrix(struct bench_kernels *b, enum gguf_type type, uint64_t rows,
                                    uint32_t columns)
{
    uint64_t row_bytes = gguf_row_bytes(type, columns), made = rows < 16 ? rows : 16;
    unsigned char *data = malloc(rows * row_bytes);
    float *floats = random_floats(b, made * columns, 0.05f);
    if (!data || !floats || gguf_from_float(type, floats, data, made * columns)) {
        free(data);
        data = NULL;
    }
    for (uint64_t r = made; data && r < rows; r += made)
        memcpy(data + r * row_bytes, data, (rows - r < made ? rows - r : made) * row_bytes);
    free(floats);
    return data;
}

static bool fits(enum gguf_type type, uint32_t columns)
{
    return columns % gguf_type_block_values(type) == 0;
}

/* ── results ───────────────────────────────────────────────────────────────────────────────── */

enum { KERNEL, TYPE, SHAPE, ROWS, TIME, BYTES_RATE, BYTES_SHARE, RATE, RATE_SHARE, COLUMNS };
static const char *const headings[COLUMNS] = {"kernel", "type",    "shape",   "rows",   "µs",
                                              "GB/s",   "of read", "GFLOP/s", "of rate"};

static double share(double value, double limit)
{
    return limit > 0 ? value / limit : -1;
}

/* What bounds it where arithmetic does: products of the fast mode are of integers. */
static double rate_of(const struct bench_kernels *b, const struct result *r)
{
    static const char *const floats[] = {"rmsnorm", "attention", "prefill", "sampling"};
    bool product = true;
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
        product = product && strncmp(r->kernel, floats[i], strlen(floats[i])) != 0;
    return product && b->info.fast && b->limits.integers > 0 ? b->limits.integers
                                                             : b->limits.operations;
}

static void add(struct bench_kernels *b, const struct result *r)
{
    double bytes = r->bytes / r->seconds, operations = r->operations / r->seconds;
    if (b->format == BENCH_MD) {
        char cells[COLUMNS][64];
        const char *pointers[COLUMNS];
        for (int i = 0; i < COLUMNS; i++) {
            cells[i][0] = '\0';
            pointers[i] = cells[i];
        }
        snprintf(cells[KERNEL], 64, "%s", r->kernel);
        snprintf(cells[TYPE], 64, "%s", r->type);
        snprintf(cells[SHAPE], 64, "%s", r->shape);
        snprintf(cells[ROWS], 64, "%" PRIu32, r->rows);
        snprintf(cells[TIME], 64, "%.1f", r->seconds * 1e6);
        snprintf(cells[BYTES_RATE], 64, "%.1f", bytes * 1e-9);
        if (b->limits.read > 0)
            snprintf(cells[BYTES_SHARE], 64, "%.1f %%", 100 * bytes / b->limits.read);
        snprintf(cells[RATE], 64, "%.1f", operations * 1e-9);
        if (rate_of(b, r) > 0)
            snprintf(cells[RATE_SHARE], 64, "%.1f %%", 100 * operations / rate_of(b, r));
        table_row(b->table, pointers);
        if (isatty(STDERR_FILENO))
            fprintf(stderr, "# %s %s, %" PRIu32 " rows: %.1f µs\n", r->kernel, r->type, r->rows,
                    r->seconds * 1e6);
    } else {
        struct fields f = {.n = 0};
        fields_text(&f, "backend", b->info.backend);
        fields_text(&f, "device", b->info.device);
        fields_integer(&f, "n_threads", b->info.threads);
        fields_known(&f, "limit_read", b->limits.read > 0 ? b->limits.read : -1);
        fields_known(&f, "limit_copy", b->limits.copy > 0 ? b->limits.copy : -1);
        fields_known(&f, "limit_operations", b->limits.operations > 0 ? b->limits.operations : -1);
        fields_text(&f, "limit_unit", b->limits.unit);
        fields_known(&f, "limit_read_one", b->limits.read_one > 0 ? b->limits.read_one : -1);
        fields_known(&f, "limit_integers", b->limits.integers > 0 ? b->limits.integers : -1);
        fields_text(&f, "activations", b->info.fast ? "int8" : "f32");
        fields_text(&f, "kernel", r->kernel);
        fields_text(&f, "type", r->type);
        fields_text(&f, "shape", r->shape);
        fields_integer(&f, "rows", r->rows);
        fields_integer(&f, "depth", r->depth);
        fields_real(&f, "avg_us", r->seconds * 1e6);
        fields_real(&f, "bytes", r->bytes);
        fields_real(&f, "operations", r->operations);
        fields_real(&f, "bytes_per_second", bytes);
        fields_real(&f, "operations_per_second", operations);
        fields_known(&f, "read_share", share(bytes, b->limits.read));
        fields_known(&f, "operations_share", share(operations, rate_of(b, r)));
        fields_print(&f, b->format, b->n);
    }
    b->n++;
}

/* Repetitions that would take CASE_SECONDS at the device's limits. */
static uint32_t repetitions(const struct bench_kernels *b, double bytes, double operations)
{
    double seconds = 2e-6;
    if (b->limits.read > 0)
        seconds = fmax(seconds, bytes / b->limits.read);
    if (b->limits.operations > 0)
        seconds = fmax(seconds, operations / b->limits.operations);
    double n = CASE_SECONDS / seconds;
    return n < 2 ? 2 : n > REPEAT_MAX ? REPEAT_MAX : (uint32_t)n;
}

static bool wanted(const struct bench_kernels *b, const char *kernel)
{
    const char *at = b->choice.only;
    size_t size = strlen(kernel);
    if (!at)
        return true;
    for (; (at = strstr(at, kernel)); at += size)
        if ((at == b->choice.only || at[-1] == ',') && (at[size] == ',' || at[size] == '\0'))
            return true;
    return false;
}

static void skip(const char *kernel, const char *type)
{
    fprintf(stderr, "# %s %s is left out: this device has no such operation, or no memory\n",
            kernel, type);
}

/* ── the operations ────────────────────────────────────────────────────────────────────────── */

static void time_rmsnorm(struct bench_kernels *b, uint32_t n)
{
    uint32_t columns = b->sizes.hidden;
    struct result r = {"rmsnorm", "F32", "", n, 0, 0, n * 8.0 * columns, n * 4.0 * columns};
    float *x = random_floats(b, (uint64_t)n * columns, 1), *weight = random_floats(b, columns, 1);
    float *out = calloc((uint64_t)n * columns, sizeof *out);
    struct kernels_op_rmsnorm op = {n, columns, x, weight, 1e-5f, out, 0};
    op.repeat = repetitions(b, r.bytes, r.operations);
    snprintf(r.shape, sizeof r.shape, "%" PRIu32, columns);
    if (x && weight && out && kernels_op_rmsnorm(b->k, &op, &r.seconds) == 0)
        add(b, &r);
    else
        skip(r.kernel, r.type);
    free(x);
    free(weight);
    free(out);
}

/* The same matrix with each number of rows. */
static void time_linear(struct bench_kernels *b, const char *kernel, enum gguf_type type,
                        uint32_t rows, uint32_t columns, const uint32_t *ns, size_t n_ns)
{
    if (!wanted(b, kernel) || !fits(type, columns))
        return;
    double weight_bytes = (double)gguf_row_bytes(type, columns) * rows;
    double copies = ceil(COPIES_BYTES / weight_bytes);
    unsigned char *weight = random_matrix(b, type, rows, columns);
    float *bias = random_floats(b, rows, 1);
    for (size_t i = 0; i < n_ns; i++) {
        uint32_t n = ns[i];
        struct result r = {kernel, gguf_type_name(type), "", n, 0, 0, 0, 0};
        r.bytes = weight_bytes + 4.0 * n * ((double)rows + columns);
        r.operations = 2.0 * n * rows * columns;
        snprintf(r.shape, sizeof r.shape, "%" PRIu32 " × %" PRIu32, rows, columns);
        float *x = random_floats(b, (uint64_t)n * columns, 1);
        float *y = calloc((uint64_t)n * rows, sizeof *y);
        struct kernels_op_linear op = {.type = type,
                                       .weight = weight,
                                       .bias = bias,
                                       .rows = rows,
                                       .columns = columns,
                                       .n = n,
                                       .x = x,
                                       .y = y,
                                       .repeat = repetitions(b, r.bytes, r.operations),
                                       .copies =
                                           copies < COPIES_MAX ? (uint32_t)copies : COPIES_MAX};
        if (weight && bias && x && y && kernels_op_linear(b->k, &op, &r.seconds) == 0)
            add(b, &r);
        else
            skip(kernel, r.type);
        free(x);
        free(y);
    }
    free(weight);
    free(bias);
}

static void time_attention(struct bench_kernels *b, const char *kernel, uint32_t depth,
                           uint32_t count, uint32_t window)
{
    static const char *const types[] = {"F32 KV", "F16 KV", "BF16 KV"};
    const struct sizes *s = &b->sizes;
    uint64_t all = (uint64_t)depth + count, q_width = (uint64_t)s->heads * s->head_dim;
    uint64_t kv_width = (uint64_t)s->kv_heads * s->head_dim;
    struct result r = {kernel, types[b->kv_type], "", count, depth, 0, 0, 0};
    double element = b->kv_type == KERNELS_KV_F32 ? 4 : 2, seen = 0;
    for (uint64_t p = depth; p < all; p++)
        seen += window && p + 1 > window ? window : (double)(p + 1);
    double keys = window && all > window + count ? window + count : (double)all;
    r.bytes = keys * 2 * (double)kv_width * element + 8.0 * count * (double)q_width;
    r.operations = 4.0 * seen * (double)q_width;
    snprintf(r.shape, sizeof r.shape, "%" PRIu32 " heads at depth %" PRIu32, s->heads, depth);
    float *q = random_floats(b, count * q_width, 1), *k = random_floats(b, all * kv_width, 1);
    float *v = random_floats(b, all * kv_width, 1), *sinks = random_floats(b, s->heads, 1);
    float *out = calloc(count * q_width, sizeof *out);
    struct kernels_op_attention op = {.heads = s->heads,
                                      .kv_heads = s->kv_heads,
                                      .head_dim = s->head_dim,
                                      .window = window,
                                      .kv_type = b->kv_type,
                                      .block_tokens = 16,
                                      .first = depth,
                                      .count = count,
                                      .q = q,
                                      .k = k,
                                      .v = v,
                                      .sinks = sinks,
                                      .out = out,
                                      .repeat = repetitions(b, r.bytes, r.operations)};
    if (q && k && v && sinks && out && kernels_op_attention(b->k, &op, &r.seconds) == 0)
        add(b, &r);
    else
        skip(kernel, r.type);
    free(q);
    free(k);
    free(v);
    free(sinks);
    free(out);
}

static double distinct(const uint32_t *chosen, uint64_t n, uint32_t experts)
{
    unsigned char *seen = base_alloc(experts, 1);
    double count = 0;
    for (uint64_t i = 0; i < n; i++)
        if (chosen[i] < experts && !seen[chosen[i]]) {
            seen[chosen[i]] = 1;
            count++;
        }
    free(seen);
    return count;
}

static void time_moe(struct bench_kernels *b, const uint32_t *ns, size_t n_ns)
{
    const struct sizes *s = &b->sizes;
    bool router = wanted(b, "router"), experts = wanted(b, "experts");
    if ((!router && !experts) || !fits(s->expert, s->hidden) || !fits(s->expert, s->expert_ffn))
        return;
    uint64_t inner = (uint64_t)s->experts * s->expert_ffn, outer = (uint64_t)s->experts * s->hidden;
    double expert_bytes = 2.0 * (double)gguf_row_bytes(s->expert, s->hidden) * s->expert_ffn +
                          (double)gguf_row_bytes(s->expert, s->expert_ffn) * s->hidden;
    double router_bytes = (double)gguf_row_bytes(s->router, s->hidden) * s->experts;
    unsigned char *gate = random_matrix(b, s->expert, inner, s->hidden);
    unsigned char *up = random_matrix(b, s->expert, inner, s->hidden);
    unsigned char *down = random_matrix(b, s->expert, outer, s->expert_ffn);
    /* Rows of a router must differ: no random_matrix. */
    float *router_floats = random_floats(b, outer, 0.05f),
          *zeros = calloc(inner + outer, sizeof(float));
    unsigned char *router_weight = malloc(gguf_row_bytes(s->router, s->hidden) * s->experts);
    bool made = gate && up && down && router_floats && zeros && router_weight &&
                gguf_from_float(s->router, router_floats, router_weight, outer) == 0;
    for (size_t i = 0; i < n_ns; i++)
        for (int both = 0; both < 2; both++) {
            uint32_t n = ns[i];
            if (both ? !experts : !router)
                continue;
            struct result r = {both ? "experts" : "router",
                               gguf_type_name(both ? s->expert : s->router),
                               "",
                               n,
                               0,
                               0,
                               0,
                               0};
            uint64_t pairs = (uint64_t)n * s->active, row = s->hidden;
            double guess = fmin(s->experts, (double)pairs);
            r.operations = 2.0 * n * s->experts * s->hidden;
            if (both)
                r.operations += 6.0 * (double)pairs * s->hidden * s->expert_ffn;
            float *h = random_floats(b, n * row * INPUTS_MAX, 1);
            float *x = calloc(n * row, sizeof *x), *weight = calloc(pairs, sizeof *weight);
            uint32_t *chosen = calloc(pairs, sizeof *chosen);
            struct kernels_op_moe op = {
                .n = n,
                .hidden = s->hidden,
                .experts = s->experts,
                .active = s->active,
                .expert_ffn = s->expert_ffn,
                .router_type = s->router,
                .type = s->expert,
                .router = router_weight,
                .router_bias = zeros,
                .gate = gate,
                .up = up,
                .down = down,
                .gate_bias = zeros,
                .up_bias = zeros,
                .down_bias = zeros,
                .alpha = 1.702f,
                .limit = 7,
                .h = h,
                .x = x,
                .chosen = chosen,
                .weight = weight,
                .repeat = repetitions(b, router_bytes + both * guess * expert_bytes, r.operations),
                .inputs = INPUTS_MAX,
                .route_only = !both};
            if (made && h && x && weight && chosen && kernels_op_moe(b->k, &op, &r.seconds) == 0) {
                double read = distinct(chosen, pairs, s->experts);
                r.bytes = router_bytes + 8.0 * n * s->hidden + both * read * expert_bytes;
                snprintf(r.shape, sizeof r.shape, "%.0f of %" PRIu32 " experts", read, s->experts);
                add(b, &r);
            } else
                skip(r.kernel, r.type);
            free(h);
            free(x);
            free(weight);
            free(chosen);
        }
    free(gate);
    free(up);
    free(down);
    free(router_floats);
    free(zeros);
    free(router_weight);
}

static void time_sampling(struct bench_kernels *b, uint32_t n, float temperature, float top_p)
{
    uint32_t vocabulary = b->sizes.vocabulary;
    struct result r = {"sampling", "F32", "", n, 0, 0, 4.0 * n * vocabulary, 2.0 * n * vocabulary};
    float *logits = random_floats(b, (uint64_t)n * vocabulary, 8);
    int32_t *tokens = calloc(n, sizeof *tokens);
    struct kernels_op_sample op = {.n = n,
                                   .vocabulary = vocabulary,
                                   .logits = logits,
                                   .temperature = temperature,
                                   .top_p = top_p,
                                   .tokens = tokens,
                                   .repeat = repetitions(b, 4 * r.bytes, r.operations)};
    snprintf(r.shape, sizeof r.shape, "%" PRIu32 " ids, %s", vocabulary,
             temperature <= 0 ? "greedy"
             : top_p < 1      ? "top_p"
                              : "drawn");
    if (logits && tokens && kernels_op_sample(b->k, &op, &r.seconds) == 0)
        add(b, &r);
    else
        skip(r.kernel, r.type);
    free(logits);
    free(tokens);
}

/* ── all of them ───────────────────────────────────────────────────────────────────────────── */

static void time_all(struct bench_kernels *b)
{
    static const enum gguf_type formats[] = {GGUF_F32,  GGUF_F16,  GGUF_BF16, GGUF_Q8_0, GGUF_MXFP4,
                                             GGUF_Q4_0, GGUF_Q4_1, GGUF_Q5_0, GGUF_Q5_1, GGUF_Q2_K,
                                             GGUF_Q3_K, GGUF_Q4_K, GGUF_Q5_K, GGUF_Q6_K};
    const struct sizes *s = &b->sizes;
    const uint32_t *rows = b->rows.values;
    uint32_t q_width = s->heads * s->head_dim, few[SAMPLES_MAX];
    size_t n_rows = b->rows.n, n_few = 0;
    for (size_t i = 0; i < n_rows && n_few < SAMPLES_MAX; i++)
        if (rows[i] <= SAMPLES_MAX)
            few[n_few++] = rows[i]; /* what is sampled in one step is few rows */
    for (size_t i = 0; i < n_rows && wanted(b, "rmsnorm"); i++)
        time_rmsnorm(b, rows[i]);
    time_linear(b, "qkv", s->matrix, q_width + 2 * s->kv_heads * s->head_dim, s->hidden, rows,
                n_rows);
    for (size_t i = 0; i < b->depths.n && wanted(b, "attention"); i++) {
        uint32_t depth = b->depths.values[i];
        time_attention(b, "attention", depth, 1, 0);
        time_attention(b, "attention, window", depth, 1, s->window);
    }
    for (size_t i = 0; i < b->depths.n && wanted(b, "prefill"); i++) {
        time_attention(b, "prefill", b->depths.values[i], 128, 0);
        time_attention(b, "prefill, window", b->depths.values[i], 128, s->window);
    }
    time_linear(b, "out", s->matrix, s->hidden, q_width, rows, n_rows);
    time_moe(b, rows, n_rows);
    time_linear(b, "head", s->output, s->vocabulary, s->hidden, few, n_few);
    for (size_t i = 0; i < n_few && wanted(b, "sampling"); i++) {
        time_sampling(b, few[i], 0, 1);
        time_sampling(b, few[i], 1, 1);
        time_sampling(b, few[i], 1, 0.9f);
    }
    /* K-quants have blocks of 256. */
    const uint32_t two[] = {1, 64},
                   columns = s->hidden % 256 ? (s->hidden + 255) / 256 * 256 : s->hidden;
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        time_linear(b, "formats", formats[i], s->hidden, columns, two, 2);
}

static const struct sizes sizes_20b = {2880,   64,  8,         64,        32,         4,       2880,
                                       201088, 128, GGUF_Q8_0, GGUF_Q8_0, GGUF_MXFP4, GGUF_F32};

static int read_sizes(struct sizes *sizes, const char *path, char *err, size_t err_size)
{
    struct gguf_file *file;
    struct gguf_model *m;
    if (gguf_open(&file, path, err, err_size))
        return -1;
    if (gguf_model_create(&m, file, err, err_size)) {
        gguf_close(file);
        return -1;
    }
    const struct gguf_layer *l = &m->layers[0];
    *sizes = (struct sizes){m->hidden,
                            m->heads,
                            m->kv_heads,
                            m->head_dim,
                            m->experts,
                            m->active,
                            m->expert_ffn,
                            m->vocabulary,
                            m->window,
                            l->attn_q.weight->type,
                            m->output->type,
                            l->gate.weight->type,
                            l->router.weight->type};
    gguf_model_destroy(m);
    gguf_close(file);
    return 0;
}

static int parse(struct bench_kernels *b, int argc, char **argv)
{
    struct choice *c = &b->choice;
    *c = (struct choice){
        .device = "auto", .rows = "1,4,16,64,512", .depths = "512,8192", .output = "md"};
    const struct cli_option options[] = {
        {CLI_STRING, "model", 'm', "FILE", "take sizes and types from this file",
         "those of gpt-oss-20b", "GPTOSS_MODEL", &c->model, 0, 0, NULL},
        {CLI_STRING, "device", 0, "DEVICE", "auto, cpu, cuda or reference (-dev)", "auto",
         "GPTOSS_DEVICE", &c->device, 0, 0, NULL},
        {CLI_INT, "threads", 't', "T", "threads of the CPU", "those there are", NULL, &c->threads,
         1, 1024, NULL},
        {CLI_STRING, "rows", 0, "LIST", "rows (tokens of a step)", "1,4,16,64,512", NULL, &c->rows,
         0, 0, NULL},
        {CLI_STRING, "n-depth", 'd', "LIST", "positions before the queries of attention",
         "512,8192", "GPTOSS_BENCH_DEPTH", &c->depths, 0, 0, NULL},
        {CLI_STRING, "kv-type", 0, "TYPE", "f32, f16 or bf16", "f32 on CPUs, f16 on GPUs",
         "GPTOSS_KV_TYPE", &c->kv_type, 0, 0, NULL},
        {CLI_FLAG, "fast", 0, NULL, "products with int8 activations (CPU)", "float activations",
         "GPTOSS_FAST", &c->fast, 0, 0, NULL},
        {CLI_STRING, "only", 0, "LIST",
         "of rmsnorm, qkv, attention, prefill, out, router, experts, head, sampling, formats",
         "all", NULL, &c->only, 0, 0, NULL},
        {CLI_STRING, "output", 'o', "FORMAT", "md, csv, json or jsonl, on stdout", "md",
         "GPTOSS_BENCH_OUTPUT", &c->output, 0, 0, NULL},
    };
    const struct cli cli = {
        .program = "gptoss-bench kernels",
        .summary = "Times each operation of a layer by itself on this device: bytes and operations "
                   "per second, beside what the device reads, copies and multiplies at best.",
        .usage = "gptoss-bench kernels [options]",
        .examples = "  gptoss-bench kernels\n"
                    "      all operations with the sizes of gpt-oss-20b\n"
                    "  gptoss-bench kernels -m model.gguf --only experts,head --rows 1,2,4,8\n"
                    "      the experts and the head of a file\n",
        .notes = "Weights are random; nothing is read from the file but sizes and types.\n"
                 "docs/measuring.md derives every column.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .exit_codes = 1u << EXIT_DONE | 1u << EXIT_FAILED | 1u << EXIT_USAGE | 1u << EXIT_MODEL |
                      1u << EXIT_DEVICE,
    };
    char **args, err[512];
    int n_args;
    bench_device_word(argc, argv);
    int status = cli_parse(&cli, argc, argv, &args, &n_args);
    if (status)
        return status;
    if (n_args)
        return wrong("there is a word that is no option");
    int format = bench_format_find(c->output);
    int kv_type = c->kv_type ? bench_kv_type_find(c->kv_type) : KERNELS_KV_F32;
    if (format < 0)
        return wrong("--output is md, csv, json or jsonl");
    if (kv_type < 0)
        return wrong("--kv-type is f32, f16 or bf16");
    if (bench_list_parse("--rows", c->rows, 1, 8192, &b->rows, err, sizeof err) ||
        bench_list_parse("--n-depth", c->depths, 0, 1 << 20, &b->depths, err, sizeof err))
        return wrong(err);
    b->format = (enum bench_format)format;
    b->kv_type = (enum kernels_kv_type)kv_type;
    return 0;
}

static int run(struct bench_kernels *b, char *err, size_t err_size)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    struct kernels_options options = {.device = b->choice.device,
                                      .fast = b->choice.fast,
                                      .threads = (uint32_t)(b->choice.threads ? b->choice.threads
                                                            : cpus > 0        ? cpus
                                                                              : 1)};
    b->sizes = sizes_20b;
    if (b->choice.model && read_sizes(&b->sizes, b->choice.model, err, err_size))
        return EXIT_MODEL;
    if (kernels_create(&b->k, &options, err, err_size))
        return EXIT_DEVICE;
    kernels_info(b->k, &b->info);
    if (b->choice.fast && !b->info.fast) {
        snprintf(err, err_size, "%s has no products with int8 activations: leave out --fast",
                 b->info.device);
        return EXIT_DEVICE;
    }
    if (kernels_limits(b->k, &b->limits))
        fprintf(stderr, "# the device's limits could not be measured\n");
    if (!b->choice.kv_type && strcmp(b->info.backend, "cuda") == 0)
        b->kv_type = KERNELS_KV_F16;
    if (b->format == BENCH_MD) {
        printf("%s: reads %.1f GB/s", b->info.device, b->limits.read * 1e-9);
        if (b->limits.read_one > 0 && b->info.threads > 1)
            printf(" (one thread %.1f)", b->limits.read_one * 1e-9);
        printf(", copies %.1f GB/s (read + written), %.1f GFLOP/s (%s)", b->limits.copy * 1e-9,
               b->limits.operations * 1e-9, b->limits.unit);
        if (b->limits.integers > 0)
            printf(", %.1f GOP/s (int8 dot products)", b->limits.integers * 1e-9);
        printf("\n\n");
        fflush(stdout);
        b->table = table_create(COLUMNS, headings);
    }
    time_all(b);
    if (b->table)
        table_print(b->table, TABLE_MARKDOWN, stdout);
    fields_finish(b->format, b->n);
    if (b->n == 0)
        snprintf(err, err_size, "nothing could be measured: --only names none of the operations");
    return b->n ? EXIT_DONE : EXIT_FAILED;
}

int bench_kernels(int argc, char **argv)
{
    struct bench_kernels b = {.random = 1};
    char err[1024] = "";
    int status = parse(&b, argc, argv), code = status > 0 ? EXIT_DONE : EXIT_USAGE;
    if (status == 0)
        code = run(&b, err, sizeof err);
    if (err[0])
        fprintf(stderr, "gptoss-bench kernels: %s\n", err);
    table_destroy(b.table);
    kernels_destroy(b.k);
    free(b.rows.values);
    free(b.depths.values);
    return code;
}
