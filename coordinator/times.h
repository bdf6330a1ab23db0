/*
 * times: when each of the last steps was where, by the coordinator's clock. The ranks tell it in batches
 * (StepTimes); here it is put beside what the step was, kept in rings of fixed size, and handed to the
 * scheduler's costs.
 *
 * Clocks. A rank's clock is brought to the coordinator's by an offset, estimated from heartbeats: the
 * coordinator's carries its time t0, the rank's answer echoes t0 and adds when it came (t1) and when the
 * answer left (t2), which arrives at t3. Then offset = ((t0 − t1) + (t3 − t2)) / 2, wrong by at most half
 * of the way's duration (t3 − t0) − (t2 − t1). Of the last echoes the one with the least error counts,
 * age included (clocks drift); ranks of one host share the best. An offset that may be 0 within its error
 * is 0: ranks on the coordinator's host read the same clock.
 */
#ifndef GPTOSS_COORDINATOR_TIMES_H
#define GPTOSS_COORDINATOR_TIMES_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/coordinator.h"

#define TIMES_STEPS     4096u      /* kept for each stage; fewer where there are very many stages */
#define TIMES_KEPT_MAX  (1u << 18) /* steps × stages */
#define TIMES_ECHOES    8          /* of each rank */
#define TIMES_DRIFT_PPM 50         /* that two clocks may drift apart */

/* What a step was. */
struct times_work {
    uint64_t step;              /* 0: none */
    uint64_t issued_us;         /* sent to stage 0 */
    uint64_t done_us;           /* its result was taken; 0: not yet */
    uint32_t rows, decode_rows; /* a decode row has one token, and samples it */
    uint32_t tokens, prompt_tokens, samples;
    uint64_t kv_read;  /* positions whose KV full attention reads: Σ rows (position + count) */
    uint64_t kv_pairs; /* Σ tokens (position + 1) */
    /* When it was issued: steps in flight, this one included, and blocks in use. */
    uint32_t in_flight, full_used, window_used;
};

struct times_echo {
    uint64_t at_us; /* 0: none */
    int64_t offset_us;
    uint64_t error_us;
};

/* One rank's clock. Zero-initialise. */
struct times_clock {
    struct times_echo echoes[TIMES_ECHOES];
    uint32_t next;
    bool guessed; /* from a message without an echo: its way is in the offset */
    int64_t guess_us;
};

void times_clock_echo(struct times_clock *clock, uint64_t t0, uint64_t t1, uint64_t t2,
                      uint64_t t3);
/* A rank said `sent_us` in a message that came at `now`. */
void times_clock_guess(struct times_clock *clock, uint64_t sent_us, uint64_t now);
/* What must be added to the rank's times; *error_us (may be NULL): UINT64_MAX if nothing is known. */
int64_t times_clock_offset(const struct times_clock *clock, uint64_t now, uint64_t *error_us);

struct coordinator;
struct core_peer;
struct step;
struct times;

/* For c->world.plan, while SERVING. */
void times_create(struct coordinator *c);
void times_destroy(struct coordinator *c);

/* A step was sent to stage 0; its result was taken. */
void times_issued(struct coordinator *c, const struct step *step, uint64_t now);
void times_done(struct coordinator *c, uint64_t number, uint64_t now);
/* Rank `stage` tells; wrong ones are dropped. */
void times_receive(struct coordinator *c, uint32_t stage, const Gptoss__StepTimes *m, uint64_t now);

/* The work of a step, and when a stage had it, by the coordinator's clock. NULL: not known, or no longer. */
const struct times_work *times_work(const struct coordinator *c, uint64_t step);
const struct coordinator_stage_step *times_stage_step(const struct coordinator *c, uint32_t stage,
                                                      uint64_t step);
/* The last step that a stage told of; 0: none. */
uint64_t times_last(const struct coordinator *c, uint32_t stage);
uint32_t times_kept(const struct coordinator *c); /* steps of each stage */

/* Seconds, since the world began, that a stage's device was idle although it knew of a step, for its
 * inputs; and that outputs were on their way. */
void times_waited(const struct coordinator *c, uint32_t stage, double *recv, double *send);

/* How full the pipeline was from `now − seconds` on, or for as long as the rings reach. The arrays at
 * *out are the caller's, [world.size]. */
void times_occupancy(const struct coordinator *c, double seconds, uint64_t now,
                     struct coordinator_occupancy *out);

#endif
