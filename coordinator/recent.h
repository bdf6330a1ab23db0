/*
 * recent: counts and durations of the last seconds, in slots of time that are used again.
 */
#ifndef GPTOSS_COORDINATOR_RECENT_H
#define GPTOSS_COORDINATOR_RECENT_H

#include <stdint.h>

#include "proto/proto.h"

#define RECENT_RATE_SLOTS   64
#define RECENT_RATE_SLOT_US 250000u
#define RECENT_SLOTS        10
#define RECENT_BUCKETS      512 /* of µs: 16 for each doubling, so within 3.2 % */

struct recent_rate {                  /* zero-initialise */
    uint64_t slot[RECENT_RATE_SLOTS]; /* which one it is: time ÷ RECENT_RATE_SLOT_US */
    uint64_t count[RECENT_RATE_SLOTS];
};
void recent_count(struct recent_rate *r, uint64_t count, uint64_t now);
/* A second, over the last `seconds`, or since `since_us` if that is shorter ago. */
double recent_rate(const struct recent_rate *r, double seconds, uint64_t since_us, uint64_t now);

struct recent_durations { /* zero-initialise but for slot_us */
    uint64_t slot_us;     /* what is seen is RECENT_SLOTS − 1 of these and the current one */
    uint64_t slot[RECENT_SLOTS];
    uint32_t counts[RECENT_SLOTS][RECENT_BUCKETS];
    uint64_t sums_us[RECENT_SLOTS];
};
void recent_duration(struct recent_durations *d, uint64_t us, uint64_t now);
void recent_latency(const struct recent_durations *d, uint64_t now, Gptoss__Latency *out);

#endif
