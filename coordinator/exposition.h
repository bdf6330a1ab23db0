/*
 * exposition: Prometheus' text format, version 0.0.4. The families are written one after another: a
 * head, then its samples.
 */
#ifndef GPTOSS_COORDINATOR_EXPOSITION_H
#define GPTOSS_COORDINATOR_EXPOSITION_H

#include <stddef.h>
#include <stdint.h>

#include "base/base.h"

#define EXPOSITION_EDGES_MAX 24

/* Durations or numbers, counted by size. */
struct exposition_histogram {
    uint64_t counts[EXPOSITION_EDGES_MAX +
                    1]; /* of those ≤ edges[i] and > edges[i − 1]; last: the rest */
    uint64_t count;
    double sum;
};
void exposition_observe(struct exposition_histogram *h, const double *edges, size_t n_edges,
                        double value);

/* Opens a family: "gptoss_" is put before `name`. kind: counter, gauge, histogram. */
void exposition_head(struct text *out, const char *name, const char *kind, const char *help);
/* One sample; labels are written by exposition_label into a text before, or NULL. */
void exposition_sample(struct text *out, const char *name, const struct text *labels, double value);
void exposition_count(struct text *out, const char *name, const struct text *labels,
                      uint64_t value);
/* Appends name="value", escaped, valid UTF-8 in any case. */
void exposition_label(struct text *labels, const char *name, const char *value);
/* A family of one histogram, with its head. */
void exposition_histogram(struct text *out, const char *name, const char *help,
                          const struct exposition_histogram *h, const double *edges,
                          size_t n_edges);

#endif
