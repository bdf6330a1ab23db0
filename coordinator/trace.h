/*
 * trace: clients that are told of every step, on every stage, for a while. Parts are bounded, and sent
 * as the ranks tell (times.h); a step is sent when all stages have told of it or of a later one.
 */
#ifndef GPTOSS_COORDINATOR_TRACE_H
#define GPTOSS_COORDINATOR_TRACE_H

#include <stdint.h>

#include "proto/proto.h"

#define TRACE_CLIENTS       4 /* at a time */
#define TRACE_SECONDS_MAX   600
#define TRACE_PART_ENTRIES  16384 /* steps × stages of one part */
#define TRACE_PART_US       200000u
#define TRACE_STAGE_NUMBERS 7 /* of TraceStep.at, for each stage */

struct coordinator;
struct core_peer;
struct times_work;

void trace_receive(struct coordinator *c, const struct core_peer *peer,
                   const Gptoss__TraceRequest *m, uint64_t now);
void trace_gone(struct coordinator *c, const struct core_peer *peer);
void trace_tick(struct coordinator *c, uint64_t now);
/* When trace_tick is due; UINT64_MAX: never. */
uint64_t trace_next(const struct coordinator *c, uint64_t now);
void trace_destroy(struct coordinator *c);
/* A step as clients are told of it; `at` is [world.size · TRACE_STAGE_NUMBERS], the caller's. */
void trace_fill(const struct coordinator *c, const struct times_work *w, int32_t *at,
                Gptoss__TraceStep *out);

#endif
