/*
 * worker: one rank, one stage of the pipeline.
 *
 * Three objects. A `worker_world` is the MPI side of the process. A `worker_stage` is a range of layers
 * with its edges to the neighbours: the only place where a step is executed. A `worker` asks a
 * coordinator for its layers, makes the stage, and feeds it steps until it is told to leave.
 * gptoss-worker is the third; a program that drives the ranks without a coordinator makes the second:
 *
 *     worker_world_create(&world, err, n);                     every rank, once
 *     worker_stage_create(&stage, world, &options, err, n);    loads, opens the edges
 *     for (;;) {
 *         if (rank 0, there is work) worker_stage_submit(stage, &step, err, n);
 *         int moved = worker_stage_progress(stage, err, n);    options.result is called from here
 *         worker_stage_wait(stage, -1, moved);
 *     }
 *     worker_stage_stop(stage);                                in this order:
 *     worker_world_leave(world);                               neighbours may read the stage's memory
 *     worker_stage_destroy(stage);                             until they have left too
 *     worker_world_destroy(world);
 */
#ifndef GPTOSS_WORKER_WORKER_H
#define GPTOSS_WORKER_WORKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gguf/gguf.h"
#include "kernels/kernels.h"
#include "proto/proto.h"

/* ── world ─────────────────────────────────────────────────────────────────────────────────── */

struct worker_world;

struct worker_world_info {
    uint32_t rank, size;
    uint32_t local_rank, local_size; /* among the ranks of this host */
    uint64_t id;                     /* random, the same for all ranks */
    char host[64];
};

/* Starts MPI; without mpirun a world of one. Before any thread is made: it also takes back the binding
 * to one core that mpirun chooses for one or two ranks, unless it was asked for. 0, or -1. */
int worker_world_create(struct worker_world **out, char *err, size_t err_size);
const struct worker_world_info *worker_world_info(const struct worker_world *world);

/* Leaves MPI with all other ranks; every rank calls it. Should a rank have died, the process ends with
 * exit code `code` after some seconds instead of waiting for it. */
void worker_world_leave(struct worker_world *world, int code);
/* Ends the process at once with exit code `code`; mpirun then ends all ranks, with that code too. */
_Noreturn void worker_world_abort(struct worker_world *world, int code);
void worker_world_destroy(struct worker_world *world); /* NULL is fine */

/* CPUs for this rank: its affinity mask, or the control group's quota, divided among the host's ranks. */
uint32_t worker_world_threads(const struct worker_world *world);

/* ── stage ─────────────────────────────────────────────────────────────────────────────────── */

struct worker_stage;

struct worker_stage_options {
    const Gptoss__Plan *plan; /* this rank's; read during the call */
    uint64_t epoch;
    struct kernels *kernels;        /* must outlive the stage, as must … */
    const struct gguf_model *model; /* … this */

    /* On the last stage, in order of steps. The message belongs to the stage and is valid during the
     * call. Not 0: the stage stops, with the sentence. */
    int (*result)(void *arg, const Gptoss__StepResult *result, char *err, size_t err_size);
    /* While weights are loaded; NULL is fine. */
    void (*progress)(void *arg, uint64_t bytes_done, uint64_t bytes_all);
    /* Again and again while neighbours are waited for; not 0: give up. NULL is fine. */
    int (*idle)(void *arg);
    void *arg; /* of the three */
};

struct worker_stage_info {
    struct kernels_footprint footprint;
    double load_seconds;
    uint64_t steps;      /* done here */
    uint64_t computed;   /* the last step that the device is done with */
    uint32_t queue;      /* here, not done */
    double busy_seconds; /* of the device */
};

/* 0; -1: failed; 1: does not fit the memory. */
int worker_stage_create(struct worker_stage **out, struct worker_world *world,
                        const struct worker_stage_options *options, char *err, size_t err_size);
/* Forgets what is in flight. */
void worker_stage_stop(struct worker_stage *stage);
void worker_stage_destroy(struct worker_stage *stage); /* NULL is fine */
void worker_stage_info(const struct worker_stage *stage, struct worker_stage_info *info);

/* When the steps that are done were where (StepTimes in gptoss.proto), since the last call; NULL: nothing
 * to tell, or it is too early (unless `now`). The message is the stage's, valid until the next call. A
 * stage that is not asked keeps the last ones. */
const Gptoss__StepTimes *worker_stage_times(struct worker_stage *stage, bool now);

/* Stage 0: takes the next step; the message is copied. 0: taken; 1: no lane is free, try again after
 * progress; -1: the step cannot be run, and the stage is as it was. */
int worker_stage_submit(struct worker_stage *stage, const Gptoss__Step *step, char *err,
                        size_t err_size);
/* Does what can be done without waiting. 1: something moved; 0: nothing; -1: the pipeline is broken. */
int worker_stage_progress(struct worker_stage *stage, char *err, size_t err_size);
/* Sleeps until something may have moved: the device, a neighbour, or `fd` (-1: none) being readable; 50
 * milliseconds at most. Returns at once when the last progress moved something. */
void worker_stage_wait(struct worker_stage *stage, int fd, bool moved);

/* ── worker ────────────────────────────────────────────────────────────────────────────────── */

struct worker;

struct worker_options {
    const char *coordinator; /* endpoint */
    const char *device;      /* NULL: the coordinator's choice */
    uint32_t threads;        /* 0: the coordinator's choice */
    const char *key;         /* file of keys to show; NULL: none */
    const char *server_key;  /* the coordinator's public key or its file; NULL: that of `key` */
    double connect_timeout;  /* seconds */
};

int worker_create(struct worker **out, struct worker_world *world,
                  const struct worker_options *options, char *err, size_t err_size);
/* From the first greeting to the coordinator's last word. Logs. Returns an exit code; only after
 * EXIT_DONE may worker_world_leave be called. */
int worker_run(struct worker *worker);
void worker_destroy(struct worker *worker); /* NULL is fine; after worker_world_leave */

#endif
