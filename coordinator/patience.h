/*
 * patience: how long a step may take before the rank that holds it is taken for hung.
 *
 * A prediction from what steps of the same world took: the longest recent one of about as much work, or
 * a smaller one scaled up, times PATIENCE_TIMES for each stage, or what the cost model says where that
 * is more; nothing is known of the first steps. A
 * verdict that may have been wrong makes the next one four times as patient, until steps succeed
 * again: a device that is merely slow is not killed for ever.
 */
#ifndef GPTOSS_COORDINATOR_PATIENCE_H
#define GPTOSS_COORDINATOR_PATIENCE_H

#include <stdint.h>

#include "plan/plan.h"

#define PATIENCE_TIMES     2      /* the prediction, in longest recent steps */
#define PATIENCE_MORE_US   850000 /* beyond the prediction */
#define PATIENCE_CLASSES   40     /* of work, by powers of two */
#define PATIENCE_COLD      8 /* first steps of a world: weights may have to come from the disk … */
#define PATIENCE_COLD_US   10000000 /* … which takes so much longer */
#define PATIENCE_FORGIVING 64       /* steps in order that make a verdict forgotten */

struct patience {
    uint64_t longest_us[PATIENCE_CLASSES]; /* slowly forgotten; 0: nothing known */
    uint32_t steps;                        /* of this world so far; stops counting at some point */
    uint32_t verdicts;                     /* in a row */
    uint32_t stages;
};

/* New ranks: what was learned of as many stages still counts. */
void patience_begin(struct patience *p, uint32_t stages);
/* A step of that much work took so long, counted from the end of the one before or from its start. */
void patience_learn(struct patience *p, uint64_t work, uint64_t us);
/* A step was taken for hung. */
void patience_verdict(struct patience *p);
/* How long a step of that much work may take, which the cost model gives so many µs on all stages
 * together; at most `most_us`. */
uint64_t patience_limit(const struct patience *p, uint64_t work, uint64_t cost_us,
                        uint64_t most_us);
/* Of a step: its tokens, and what attention reads for them. */
uint64_t patience_work(const struct cost_work *work);

#endif
