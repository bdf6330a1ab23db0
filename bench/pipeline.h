/*
 * pipeline: what `gptoss-bench pipeline` was asked for. Private to bench/.
 *
 * pipeline_options.c reads the options, chooses defaults for the device and makes the list of tests;
 * pipeline.c opens worlds and runs the tests in them.
 */
#ifndef GPTOSS_BENCH_PIPELINE_H
#define GPTOSS_BENCH_PIPELINE_H

#include <limits.h>

#include "bench/bench.h"

struct pipeline_choice {
    const char *model, *prompts, *gens, *depths, *pair;
    const char *stages, *threads, *sequences, *scaling, *through, *head, *device, *transport,
        *kv_type, *output;
    int64_t repetitions, step_tokens;
    bool no_warmup, replicas, fast;
};

struct pipeline {
    struct pipeline_choice choice;
    struct bench_list prompts, gens, depths, stages, threads, sequences;
    uint32_t pair_prompt, pair_gen; /* 0, 0: none */
    const struct bench_driver *drivers[2];
    size_t n_drivers;
    bool strong, weak;
    enum plan_kv_type kv_type;
    enum plan_head head;
    enum bench_format format;
    size_t repetitions;
    uint32_t step_tokens;

    struct bench_test *tests; /* [n_tests], in the order in which each world runs them */
    size_t n_tests;

    struct gguf_file *file;
    struct gguf_model *model;
    char path[PATH_MAX];
    struct bench_report *report;
    struct bench_verify *verify;
    double *one_stage; /* [threads.n, n_drivers, n_tests]: tokens a second; 0: not measured */
};

/* 0: go on; 1: --help was printed; -1: wrong use, told on stderr. */
int pipeline_parse(struct pipeline *p, int argc, char **argv);
/* What was not given, for this model and device; then the tests. -1: wrong use, told on stderr. */
int pipeline_tests(struct pipeline *p);
/* Positions and sequences that hold every test; -1 where the model has not so many positions. */
int pipeline_size(const struct pipeline *p, uint32_t stages, struct bench_world_options *options);
/* Whether a rank of this device would take a GPU, before any is asked. */
bool pipeline_on_gpu(const char *device);
void pipeline_free(struct pipeline *p);

#endif
