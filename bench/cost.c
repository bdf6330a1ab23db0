/*
 * cost: the bytes that a test has to read, and what follows from a result. Pure.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"

static double bytes_of(const struct gguf_linear *linear)
{
    return (double)linear->weight->bytes + (linear->bias ? (double)linear->bias->bytes : 0);
}

double bench_experts(const struct gguf_model *model, uint32_t rows)
{
    double spared = 1 - (double)model->active / model->experts;
    return model->experts * (1 - pow(spared, rows));
}

double bench_step_bytes(const struct gguf_model *model, enum plan_kv_type kv_type, uint32_t rows,
                        double depth)
{
    double bytes = (double)rows * (double)model->embedding->row_bytes +
                   (double)model->output_norm->bytes + (double)model->output->bytes;
    double share = bench_experts(model, rows) / model->experts;
    double position =
        2.0 * model->kv_heads * model->head_dim * (kv_type == PLAN_KV_F32 ? 4 : 2); /* K and V */
    for (uint32_t i = 0; i < model->n_layers; i++) {
        const struct gguf_layer *l = &model->layers[i];
        double seen = l->sliding && depth > model->window ? model->window : depth;
        bytes += (double)l->attn_norm->bytes + bytes_of(&l->attn_q) + bytes_of(&l->attn_k) +
                 bytes_of(&l->attn_v) + bytes_of(&l->attn_out) + (double)l->sinks->bytes +
                 (double)l->ffn_norm->bytes + bytes_of(&l->router) +
                 share * (bytes_of(&l->gate) + bytes_of(&l->up) + bytes_of(&l->down)) +
                 rows * seen * position;
    }
    return bytes;
}

static uint32_t groups(const struct bench_test *test, uint32_t stages)
{
    return test->sequences < stages ? test->sequences : stages;
}

uint32_t bench_step_rows(const struct bench_test *test, uint32_t stages)
{
    uint32_t n = groups(test, stages);
    return (test->sequences + n - 1) / n;
}

double bench_test_bytes(const struct gguf_model *model, enum plan_kv_type kv_type,
                        const struct bench_test *test, uint32_t stages)
{
    if (test->n_prompt)
        return 0;
    uint32_t n = groups(test, stages);
    double depth = test->n_depth + test->n_gen / 2.0, bytes = 0;
    for (uint32_t g = 0; g < n; g++) /* groups of one row more come first */
        bytes += bench_step_bytes(model, kv_type, test->sequences / n + (g < test->sequences % n),
                                  depth);
    return bytes * test->n_gen;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t n)
{
    qsort(values, n, sizeof *values, ascending);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

void bench_derive(const struct bench_result *result, struct bench_derived *derived)
{
    const struct bench_world_options *o = result->options;
    const struct bench_test *test = &result->test;
    double seconds = 0, busy = 0, speed, deviation;
    bench_statistics(result->speed, result->n, &speed, &deviation);
    *derived = (struct bench_derived){-1, -1, -1, -1, -1, -1};
    for (size_t i = 0; i < result->n; i++) {
        seconds += result->seconds[i];
        busy = busy < 0 || result->busy[i] < 0 ? -1 : busy + result->busy[i];
    }
    if (busy >= 0 && seconds > 0) {
        derived->bubble = 1 - busy / (seconds * o->stages);
        if (derived->bubble < 0) /* clocks of several processes */
            derived->bubble = 0;
        /* One sequence is in one place at a time: what is not work is on the way. */
        if (test->sequences == 1 && test->n_prompt == 0 && !result->replicas)
            derived->hop_us = fmax(seconds - busy, 0) * 1e6 /
                              ((double)test->n_gen * (double)result->n * o->stages);
    }
    double bytes = bench_test_bytes(o->model, o->kv_type, test, o->stages);
    if (bytes > 0) {
        derived->experts = bench_experts(o->model, bench_step_rows(test, o->stages));
        if (result->info->bandwidth > 0 && seconds > 0)
            derived->bound = bytes * (double)result->n / (seconds * result->info->bandwidth);
    }
    if (result->one_stage > 0)
        derived->speedup = speed / result->one_stage;
    if (result->replica_speed && result->n) {
        double *ratios = base_alloc(result->n, sizeof *ratios);
        for (size_t i = 0; i < result->n; i++)
            ratios[i] = result->speed[i] / result->replica_speed[i];
        derived->replicas = median(ratios, result->n);
        free(ratios);
    }
}
