/*
 * seen: what the status tells of single steps, where they are and when they were where, and of the last
 * loss of the ranks. A loss is often over before anybody looks: so it is remembered.
 */
#ifndef GPTOSS_COORDINATOR_SEEN_H
#define GPTOSS_COORDINATOR_SEEN_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/proto.h"

#define SEEN_STEPS_MAX   64
#define SEEN_ENTRIES_MAX 2048 /* steps × stages of one status */

struct coordinator;
struct rank;

struct seen_loss {
    uint64_t epoch;           /* of the ranks that were lost; 0: none were */
    uint64_t at_us, again_us; /* again: others serve; 0: not yet */
    bool blamed;
    uint32_t stage, pid; /* of the one to blame */
    char host[64], text[640];
};

/* The ranks are about to be lost; `rank` is the one to blame, or NULL. */
void seen_lost(struct coordinator *c, const struct rank *rank, const char *text, uint64_t now);
void seen_serving(struct coordinator *c, uint64_t now);

/* flight, last_loss and at most so many recent_steps; seen_free gives their memory back. */
void seen_status(struct coordinator *c, uint32_t recent_steps, uint64_t now,
                 Gptoss__Status *status);
void seen_free(Gptoss__Status *status);

#endif
