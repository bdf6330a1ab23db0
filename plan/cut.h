/*
 * cut: consecutive ranges of layers for stages, the slowest stage as fast as can be.
 *
 * Private to plan/. Two passes of dynamic programming over (stages, layers): the first finds the
 * smallest cost that the slowest stage can have; the second, among the cuts that reach it, the one
 * with the smallest sum of squares, so that the other stages are even too.
 */
#ifndef GPTOSS_PLAN_CUT_H
#define GPTOSS_PLAN_CUT_H

#include <stdbool.h>
#include <stdint.h>

struct cut {
    uint32_t n_layers, n_stages;
    const double *layer_seconds; /* [n_stages, n_layers], of each layer on each stage */
    const double *extra_seconds; /* [n_stages], besides the layers: the step itself, head */
    /* Whether the stage has the memory for layers first … first + count − 1. */
    bool (*fits)(const void *arg, uint32_t stage, uint32_t first, uint32_t count);
    const void *arg;
};

/* counts[n_stages], each at least 1. 0; 1: no cut fits, counts are those of the cut that would be
 * best with memory enough; -1: out of memory. Needs 1 ≤ n_stages ≤ n_layers. */
int cut_layers(const struct cut *cut, uint32_t *counts);

#endif
