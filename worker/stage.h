/*
 * stage: what stage.c (running) and stage_open.c (making) share. worker.h is the door.
 */
#ifndef GPTOSS_WORKER_STAGE_H
#define GPTOSS_WORKER_STAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "worker/head.h"
#include "worker/step.h"
#include "worker/times.h"
#include "worker/transport.h"
#include "worker/wait.h"
#include "worker/worker.h"
#include "worker/world.h"

/* The life of a step on a stage. Steps are started, and found done, in their order.
 *
 *   LANE_FREE ──header or message──▶ LANE_WAITING ──activations, or the ring's tokens, are here──▶
 *   LANE_RUNNING ──the device is done──▶ LANE_SENDING ──everything was taken──▶ LANE_FREE
 *
 * Stage 0 leaves LANE_SENDING only when the tokens sampled by the step have come back over the ring
 * and were stored by the device: they arrive in the lane's buffer. Where the head is cut (head.h), the
 * last stage has LANE_HEAD between running and sending, until all samples are there, and the others
 * stay in LANE_SENDING until their part of the head is done.
 *
 * Over stream-ordered edges the device waits instead of the host: LANE_WAITING is left at once, with
 * receive, step and send queued together; only the order of the states is kept. */
enum lane_state { LANE_FREE, LANE_WAITING, LANE_RUNNING, LANE_HEAD, LANE_SENDING };

struct lane {
    enum lane_state state;
    struct step step;
    uint64_t refers_to; /* stage 0: the step whose samples must be stored before this starts */
    uint64_t running_since_us;
    struct times_step times;
    bool ring_due;      /* stage 0: the storing of its samples has not yet been queued */
    uint32_t head_left; /* samples that have not yet passed a cut head */
    struct transport_transfer header, input, output, ring;
    uint32_t *sampled_slots; /* [samples] stage 0: whose token each sample is */
};

struct worker_stage {
    struct worker_world *world;
    struct worker_stage_options options; /* without the plan */
    uint32_t index, count;               /* which stage of how many */
    uint32_t hidden;
    char device_uuid[48];
    uint64_t epoch;
    uint64_t step_deadline_ms;
    struct step_bounds bounds;
    struct kernels_stage *kernels;
    struct kernels_footprint footprint;
    double load_seconds;

    /* NULL where there is no such neighbour. */
    struct transport_edge *headers_in, *headers_out, *data_in, *data_out, *ring_in, *ring_out;

    struct head head;

    uint32_t n_lanes;
    struct lane *lanes;               /* [n_lanes]; step n has lane (n − 1) % n_lanes */
    struct transport_transfer header; /* the receive of the next step's header */
    uint64_t accepted;                /* last step that has got a lane */
    uint64_t oldest;                  /* first step that still has one; accepted + 1: none has */
    uint64_t done_us;                 /* when the device last was done with a step … */
    uint64_t computed;                /* … and which one that was */
    struct times times;               /* of the steps that have left */
    uint64_t worked_us;               /* stage_worked */

    /* stage 0 */
    uint64_t *sampled_by; /* [slots] the last step that samples for a slot; 0: none */
    uint64_t stored;      /* the storing of all samples up to here was queued, or there were none */

    /* last stage: the result, made anew for each step */
    Gptoss__StepResult result;
    Gptoss__Sample *samples;      /* [samples] */
    Gptoss__Sample **sample_list; /* [samples] */
    uint32_t *top_ids;            /* [samples, KERNELS_TOP_MAX] */
    float *top_logits;            /* [samples, KERNELS_TOP_MAX] */

    int notified; /* eventfd, written by the device's threads */
    struct wait wait;
};

static inline bool stage_is_first(const struct worker_stage *stage)
{
    return stage->index == 0;
}

/* Whether what travels on the edge does so in the order of the device's stream; NULL: there is none. */
static inline bool stage_ordered(const struct transport_edge *edge)
{
    return edge && edge->transport->stream_ordered;
}

static inline bool stage_is_last(const struct worker_stage *stage)
{
    return stage->index + 1 == stage->count;
}

static inline struct lane *stage_lane(struct worker_stage *stage, uint64_t step)
{
    return &stage->lanes[(step - 1) % stage->n_lanes];
}

/* stage.c: what the device has worked, in µs, since this was asked before. */
uint32_t stage_worked(struct worker_stage *stage);

/* stage_open.c: *edge must be NULL. */
int stage_open_edge(struct worker_stage *stage, struct transport_edge **edge,
                    const struct transport *transport, uint32_t from, uint32_t to,
                    enum transport_channel channel, char *err, size_t err_size);

#endif
