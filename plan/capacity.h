/*
 * capacity: the sizes of the KV pools, and how many sequences they hold. Private to plan/.
 */
#ifndef GPTOSS_PLAN_CAPACITY_H
#define GPTOSS_PLAN_CAPACITY_H

#include <stdio.h>

#include "plan/plan.h"

/* Fills plan->window_each and window_blocks; context, sequences and step_tokens are set. */
void capacity_window(struct plan *plan, uint32_t window);
/* The sentences below the table. */
void capacity_print(FILE *out, const struct plan *plan);

#endif
