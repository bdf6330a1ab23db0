/*
 * simulate: the real coordinator and planner in virtual time. Private to bench/.
 *
 * sim_costs.c reads what a coordinator has measured (its --costs file); sim_world.c puts ranks around a
 * `struct coordinator` that take as long as those costs say, and clients that ask; simulate.c is the
 * command. Nothing waits and nothing is random but by a seed: the same options give the same result.
 */
#ifndef GPTOSS_BENCH_SIMULATE_H
#define GPTOSS_BENCH_SIMULATE_H

#include "bench/bench.h"
#include "coordinator/coordinator.h"

/* ── costs ─────────────────────────────────────────────────────────────────────────────────── */

struct sim_costs {
    uint32_t n; /* stages that were measured */
    struct cost_stage *stages;
    double (*spread)[COST_SPREAD]; /* [n] how steps of one kind differ, see cost_spread() */
    bool gpu;
    double bandwidth, flops;     /* of a rank; 0: unknown */
    uint64_t memory_bytes;       /* of a rank's share; 0: unknown */
    uint32_t context, sequences; /* of the plan; 0: defaults */
    uint32_t step_tokens;
    enum plan_kv_type kv_type;
    double observed; /* steps behind the fit */
    double error;    /* its mean error on them */
};
/* 0, or -1 and a sentence. */
int sim_costs_read(struct sim_costs *costs, const char *path, char *err, size_t err_size);
void sim_costs_free(struct sim_costs *costs);
/* Stage s of a plan: its own sizes with the factors that were measured, those of the same stage where
 * as many were measured. */
void sim_costs_stage(const struct sim_costs *costs, const struct gguf_model *model,
                     const struct plan *plan, uint32_t s, struct cost_stage *stage);
/* How the steps of stage s of n differ. `costs` NULL, or without any: not at all. */
void sim_costs_spread(const struct sim_costs *costs, uint32_t s, uint32_t n,
                      double spread[COST_SPREAD]);

/* ── a run ─────────────────────────────────────────────────────────────────────────────────── */

struct sim_options {
    const struct gguf_model *model;
    const char *path;
    const struct sim_costs *costs;
    /* [n_stages] in place of costs, for tests; NULL: from costs. */
    const struct cost_stage *stages;
    uint32_t n_stages;
    struct coordinator_options coordinator; /* limits and plan */
    double hop_seconds;                     /* from one stage to the next, of each step */
    double hop_bandwidth;                   /* bytes a second of activations; 0: none are counted */
    double link_seconds;                    /* one way between coordinator and ranks */
    uint32_t requests, prompt, output;      /* tokens */
    double spread;                          /* lengths are drawn from (1 ± spread) times these */
    uint32_t clients; /* that ask again when they were answered; 0: all requests at once, or … */
    double rate;      /* … so many a second, at random times */
    uint64_t seed;
};

struct sim_quantiles {
    double p50, p90, p99;
};

struct sim_result {
    uint32_t finished, failed;
    double seconds; /* from the first request to the last token */
    double output_speed, prompt_speed;
    struct sim_quantiles first_token, token; /* seconds; token: mean of each request */
    double worst_gap;                        /* between two tokens of one request */
    double bubble;                           /* idle share of the stages, over all */
    double steady_bubble;                    /* in the middle half of the time */
    double rows;                             /* of a step, mean */
    uint64_t steps, preemptions;
    char layers[256];
};

/* 0, or -1 and a sentence. */
int sim_run(const struct sim_options *options, struct sim_result *result, char *err,
            size_t err_size);

#endif
