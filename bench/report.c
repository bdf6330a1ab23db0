/*
 * report: results as llama-bench writes them. Fields of the machine formats keep its names; ours come
 * after those they are like.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/fields.h"

struct row {
    char cells[18][128]; /* [COLUMNS] */
};

struct bench_report {
    enum bench_format format;
    const struct gguf_model *model;
    char cpu[128], type[96];
    size_t n; /* results so far */
    /* Markdown is printed at the end, when it is known which columns differ. */
    struct row *rows;
    size_t capacity;
};

void bench_statistics(const double *values, size_t n, double *mean, double *deviation)
{
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++)
        sum += values[i];
    *mean = n ? sum / (double)n : 0;
    for (size_t i = 0; i < n; i++)
        squares += (values[i] - *mean) * (values[i] - *mean);
    *deviation = n > 1 ? sqrt(squares / (double)(n - 1)) : 0;
}

struct bench_report *bench_report_create(enum bench_format format, const struct gguf_model *model)
{
    struct bench_report *report = base_alloc(1, sizeof *report);
    report->format = format;
    report->model = model;
    bench_cpu_info(report->cpu, sizeof report->cpu);
    bench_model_type(model, report->type, sizeof report->type);
    return report;
}

/* ── fields of CSV and JSON ────────────────────────────────────────────────────────────────── */

static const char *kv_type_name(enum plan_kv_type type)
{
    return type == PLAN_KV_F16 ? "f16" : type == PLAN_KV_BF16 ? "bf16" : "f32";
}

static void fill_fields(const struct bench_report *report, const struct bench_result *result,
                        struct fields *f)
{
    const struct bench_world_options *o = result->options;
    const struct bench_world_info *info = result->info;
    double seconds, seconds_deviation, speed, speed_deviation;
    bench_statistics(result->seconds, result->n, &seconds, &seconds_deviation);
    bench_statistics(result->speed, result->n, &speed, &speed_deviation);
    f->n = 0;
    fields_text(f, "build_commit", GPTOSS_COMMIT);
    fields_integer(f, "build_number", GPTOSS_COMMIT_NUMBER);
    fields_text(f, "cpu_info", report->cpu);
    fields_text(f, "gpu_info", strcmp(info->backend, "CUDA") ? "" : info->device);
    fields_text(f, "backends", info->backend);
    fields_text(f, "model_filename", o->path);
    fields_text(f, "model_type", report->type);
    fields_integer(f, "model_size", report->model->bytes);
    fields_integer(f, "model_n_params", bench_model_parameters(report->model));
    fields_integer(f, "n_batch", o->step_tokens);
    fields_integer(f, "n_ubatch", o->step_tokens);
    fields_integer(f, "n_threads", info->threads);
    fields_text(f, "type_k", kv_type_name(o->kv_type));
    fields_text(f, "type_v", kv_type_name(o->kv_type));
    fields_text(f, "activations", o->fast ? "int8" : "f32");
    fields_integer(f, "stages", o->stages);
    fields_text(f, "layers", info->layers);
    fields_text(f, "device", info->device);
    fields_text(f, "through", result->through);
    fields_integer(f, "sequences", result->test.sequences);
    fields_integer(f, "n_prompt", result->test.n_prompt);
    fields_integer(f, "n_gen", result->test.n_gen);
    fields_integer(f, "n_depth", result->test.n_depth);
    fields_text(f, "test_time", result->time);
    fields_integer(f, "avg_ns", (uint64_t)(seconds * 1e9));
    fields_integer(f, "stddev_ns", (uint64_t)(seconds_deviation * 1e9));
    fields_real(f, "avg_ts", speed);
    fields_real(f, "stddev_ts", speed_deviation);
    struct bench_derived derived;
    bench_derive(result, &derived);
    fields_text(f, "layout", result->replicas ? "replicas" : "pipeline");
    fields_text(f, "scaling", result->weak ? "weak" : "strong");
    fields_known(f, "bubble", derived.bubble);
    fields_known(f, "hop_us", derived.hop_us);
    fields_known(f, "bandwidth", info->bandwidth > 0 ? info->bandwidth : -1);
    fields_known(f, "bandwidth_share", derived.bound);
    fields_known(f, "experts_read", derived.experts);
    fields_known(f, "speedup", derived.speedup);
    fields_known(f, "over_replicas", derived.replicas);
    fields_array(f, "samples_ns", result->seconds, result->n, 1e9, 0);
    fields_array(f, "samples_ts", result->speed, result->n, 1, 6);
}

/* ── the table for people ──────────────────────────────────────────────────────────────────── */

enum {
    MODEL,
    SIZE,
    PARAMS,
    BACKEND,
    ACTIVATIONS,
    THREADS,
    STAGES,
    LAYOUT,
    SCALING,
    SEQS,
    THROUGH,
    TEST,
    SPEED,
    BUBBLE,
    HOP,
    BOUND,
    EXPERTS,
    REPLICAS,
    COLUMNS
};

static const char *const headings[COLUMNS] = {
    "model",  "size",   "params",  "backend",      "activations", "threads",
    "stages", "layout", "scaling", "seqs",         "through",     "test",
    "t/s",    "bubble", "hop",     "of bandwidth", "experts",     "over replicas"};

static void keep_row(struct bench_report *report, const struct bench_result *result)
{
    double speed, deviation;
    char size[32];
    uint64_t parameters = bench_model_parameters(report->model);
    bench_statistics(result->speed, result->n, &speed, &deviation);
    report->rows = base_grow(report->rows, &report->capacity, report->n + 1, sizeof *report->rows);
    struct row *row = &report->rows[report->n];
    memset(row, 0, sizeof *row);
    enum { CELL = sizeof row->cells[0] };
    snprintf(row->cells[MODEL], CELL, "%s", report->type);
    snprintf(row->cells[SIZE], CELL, "%s", text_bytes(size, report->model->bytes));
    snprintf(row->cells[PARAMS], CELL, parameters >= 1000000000 ? "%.2f B" : "%.2f M",
             (double)parameters / (parameters >= 1000000000 ? 1e9 : 1e6));
    snprintf(row->cells[BACKEND], CELL, "%s", result->info->backend);
    if (result->options->fast)
        snprintf(row->cells[ACTIVATIONS], CELL, "int8");
    if (result->info->threads)
        snprintf(row->cells[THREADS], CELL, "%" PRIu32, result->info->threads);
    snprintf(row->cells[STAGES], CELL, "%" PRIu32, result->options->stages);
    snprintf(row->cells[SEQS], CELL, "%" PRIu32, result->test.sequences);
    snprintf(row->cells[THROUGH], CELL, "%s", result->through);
    bench_test_name(&result->test, row->cells[TEST], CELL);
    snprintf(row->cells[SPEED], CELL, "%.2f ± %.2f", speed, deviation);
    struct bench_derived derived;
    bench_derive(result, &derived);
    snprintf(row->cells[LAYOUT], CELL, "%s", result->replicas ? "replicas" : "pipeline");
    snprintf(row->cells[SCALING], CELL, "%s", result->weak ? "weak" : "strong");
    if (derived.bubble >= 0)
        snprintf(row->cells[BUBBLE], CELL, "%.1f %%", 100 * derived.bubble);
    if (derived.hop_us >= 0)
        snprintf(row->cells[HOP], CELL, "%.1f µs", derived.hop_us);
    if (derived.bound >= 0)
        snprintf(row->cells[BOUND], CELL, "%.0f %%", 100 * derived.bound);
    if (derived.experts >= 0)
        snprintf(row->cells[EXPERTS], CELL, "%.1f", derived.experts);
    if (derived.replicas >= 0)
        snprintf(row->cells[REPLICAS], CELL, "%.3f", derived.replicas);
}

/* As llama-bench does, columns that tell nothing are left out: those of how it was run where all rows
 * have the same, those of what was found where no row has any. */
static bool is_shown(const struct bench_report *report, int column)
{
    bool differs = false, any = false;
    for (size_t i = 0; i < report->n; i++) {
        differs |= strcmp(report->rows[i].cells[column], report->rows[0].cells[column]) != 0;
        any |= report->rows[i].cells[column][0] != '\0';
    }
    switch (column) {
    case THREADS:
    case LAYOUT:
    case SCALING:
    case THROUGH: return differs;
    default: return any;
    }
}

static void print_rows(const struct bench_report *report)
{
    const char *shown[COLUMNS];
    int columns[COLUMNS];
    size_t n = 0;
    for (int c = 0; c < COLUMNS; c++)
        if (is_shown(report, c)) {
            columns[n] = c;
            shown[n++] = headings[c];
        }
    struct table *table = table_create(n, shown);
    for (size_t i = 0; i < report->n; i++) {
        for (size_t c = 0; c < n; c++)
            shown[c] = report->rows[i].cells[columns[c]];
        table_row(table, shown);
    }
    table_print(table, TABLE_MARKDOWN, stdout);
    table_destroy(table);
    printf("\nbuild: %s (%d)\n", GPTOSS_COMMIT, GPTOSS_COMMIT_NUMBER);
}

/* ── both ──────────────────────────────────────────────────────────────────────────────────── */

void bench_report_add(struct bench_report *report, const struct bench_result *result)
{
    struct fields fields;
    if (report->format == BENCH_MD)
        keep_row(report, result);
    else {
        fill_fields(report, result, &fields);
        fields_print(&fields, report->format, report->n);
    }
    report->n++;
}

void bench_report_finish(struct bench_report *report)
{
    if (report->format == BENCH_MD && report->n)
        print_rows(report);
    fields_finish(report->format, report->n);
    free(report->rows);
    free(report);
}
