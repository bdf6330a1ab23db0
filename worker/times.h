/*
 * times: when each step was where on this stage. Recording is a few stores a step; the steps are told
 * in batches, so that the coordinator reads some messages a second and not one a step.
 *
 * The host's clock gives received, started, finished and sent; `finished` is when this thread notices
 * that the device is done. How long the device worked is its own count (kernels_stage_busy_seconds:
 * the stream's thread on a CPU, the device's timer on a GPU), so time in the device's queue is not in it.
 */
#ifndef GPTOSS_WORKER_TIMES_H
#define GPTOSS_WORKER_TIMES_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/proto.h"

#define TIMES_KEPT        1024u /* steps that are done and not told; the oldest is forgotten first */
#define TIMES_INTERVAL_US 50000u /* between two messages, unless half of the ring is full */

struct times_step {
    uint64_t step;
    uint64_t received_us, started_us, finished_us, sent_us; /* clock_us */
    uint64_t head_finished_us; /* its part of a cut head (head.h); 0: none */
    uint32_t busy_us, head_us; /* the device worked on the layers, on the part of the head */
};

/* Zero-initialise. Steps are noted in order. */
struct times {
    struct times_step kept[TIMES_KEPT];
    uint64_t first, count; /* kept[first % TIMES_KEPT] is the oldest that was not told */
    uint64_t told_us;      /* when the last message was made */
    Gptoss__StepTimes message;
    uint32_t received[TIMES_KEPT], started[TIMES_KEPT], finished[TIMES_KEPT], sent[TIMES_KEPT],
        busy[TIMES_KEPT], head_finished[TIMES_KEPT], head_busy[TIMES_KEPT];
};

void times_note(struct times *times, const struct times_step *step);
/* Whether it is time for a message. */
bool times_due(const struct times *times, uint64_t now_us);
/* A message of the steps that were not told, which are now; NULL: there are none. It belongs to `times`
 * and is valid until the next call. */
const Gptoss__StepTimes *times_take(struct times *times, uint64_t now_us);

#endif
