/*
 * head: rows of the output matrix for stages. Private to plan/.
 */
#ifndef GPTOSS_PLAN_HEAD_H
#define GPTOSS_PLAN_HEAD_H

#include <stdint.h>

enum { HEAD_UNIT = 1024 }; /* ids that are summed together (kernels.h) */

/* counts[n_stages], in order, `vocabulary` together; vocabulary ≥ 1, bandwidths > 0. */
void head_cut(uint32_t vocabulary, const double *bandwidth, uint32_t n_stages, uint32_t *counts);
void head_whole(uint32_t vocabulary, uint32_t n_stages, uint32_t *counts); /* on the last stage */

#endif
