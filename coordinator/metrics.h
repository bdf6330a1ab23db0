/*
 * metrics: what the coordinator counts for others to see: rates and latencies of the last seconds for
 * the status, counters and histograms since its start for Prometheus. Counting is a few additions a token.
 */
#ifndef GPTOSS_COORDINATOR_METRICS_H
#define GPTOSS_COORDINATOR_METRICS_H

#include <stdint.h>

#include "proto/proto.h"

struct coordinator;
struct core_peer;
struct metrics;
struct request;
struct times_work;

void metrics_create(struct coordinator *c);
void metrics_destroy(struct coordinator *c);

/* What happens. metrics_token before the request's own times are changed. */
void metrics_refused(struct coordinator *c, Gptoss__Code code);
void metrics_token(struct coordinator *c, struct request *r, uint64_t now);
void metrics_finished(struct coordinator *c, const struct request *r,
                      Gptoss__Finished__Reason reason, uint64_t now);
void metrics_step(struct coordinator *c, const struct times_work *work, uint64_t now); /* done */
void metrics_lost(struct coordinator *c, uint32_t replayed); /* the ranks, with running requests */

/* Fills in the fields of the last seconds. *latencies is where the two messages live; the stages are
 * there already. */
void metrics_status(const struct coordinator *c, double window_seconds, uint64_t now,
                    Gptoss__Status *status, Gptoss__Latency latencies[2]);
/* Answers MetricsRequest. */
void metrics_answer(struct coordinator *c, const struct core_peer *peer, uint64_t now);

#endif
