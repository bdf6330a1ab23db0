/*
 * sched: what sched.c, form.c and costs.c share.
 */
#ifndef GPTOSS_COORDINATOR_SCHED_H
#define GPTOSS_COORDINATOR_SCHED_H

#include "coordinator/core.h"

/* Where a step is put together; sized by the plan. */
struct row_buffers {
    Gptoss__Row *rows;           /* [step_rows] */
    Gptoss__Row **pointers;      /* [step_rows] */
    struct request **candidates; /* [sequences] */
};

/* sched.c: a row of `count` tokens of r in the step, with the blocks that it needs. False: there were
 * none for it. */
bool sched_add_row(struct coordinator *c, struct step *step, struct request *r, uint32_t count);

/* form.c: fills the step; none of its rows: there is nothing to do. */
void form_rows(struct coordinator *c, struct step *step);

/* costs.c: what steps take on each stage. */
void costs_create(
    struct coordinator *c); /* for c->world.plan; the last world's, if it is the same */
void costs_issued(struct coordinator *c, const struct step *step);
void costs_result(struct coordinator *c, const struct step *step, uint64_t now);
/* A stage told when it had a step; in the order of its steps. */
void costs_told(struct coordinator *c, uint32_t stage, const struct coordinator_stage_step *step);

#endif
