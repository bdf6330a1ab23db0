/*
 * loop: the coordinator's part towards the ranks, and no more of it. Private to bench/.
 *
 * loop.c starts the ranks, welcomes them, hands out the plan and keeps the heartbeats going; steps.c
 * cuts a test into steps and issues them.
 */
#ifndef GPTOSS_BENCH_LOOP_H
#define GPTOSS_BENCH_LOOP_H

#include "bench/bench.h"
#include "proto/proto.h"

struct loop_rank {
    unsigned char peer[PROTO_PEER_MAX];
    size_t peer_size; /* 0: not here yet */
    bool joined, ready, fast;
    char host[64], device[96], uuid[64], backend[16], transports[64];
    uint64_t memory_free;
    uint32_t threads;
    double bandwidth;
    double busy; /* seconds, as it said last */
    bool answered;
    uint64_t heard_us;
};

struct loop {
    const struct bench_world_options *options;
    struct bench_child child;
    char folder[64];
    void *context, *socket;
    struct proto_frame frame;
    struct loop_rank *ranks; /* [options->stages] */
    struct plan *plan;       /* NULL until all have joined */
    uint64_t beat_us;
    uint64_t asked_us; /* when the ranks were last asked how they are; their answers say it again */
    uint64_t next_step; /* the number that it gets */

    /* Each result, in order; not 0: the run has failed, with a sentence. Lent while steps run. */
    int (*result)(void *arg, const Gptoss__StepResult *result, char *err, size_t err_size);
    void *arg;
};

/* Takes what has arrived, waiting `timeout_ms` at most for the first. 0, or -1: the world is broken. */
int loop_poll(struct loop *loop, int timeout_ms, char *err, size_t err_size);
/* Numbers the step and sends it to stage 0. */
int loop_issue(struct loop *loop, Gptoss__Step *step, char *err, size_t err_size);

/* Asks all ranks how long they have worked since they began, and adds up. < 0: not known. */
int loop_busy(struct loop *loop, double *busy, char *err, size_t err_size);

int steps_run(struct loop *loop, const struct bench_test *test, uint64_t seed,
              struct bench_sample *sample, char *err, size_t err_size);

#endif
