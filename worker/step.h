/*
 * step: the unit of work as it travels from stage to stage.
 *
 * On the wire, little-endian, in host memory: a head, n_rows rows, n_blocks block numbers (of row 0:
 * those given of the full pool, then of the window pool; then row 1; …). Tokens do not travel: stage 0
 * alone reads them. Stages pass the bytes on as they came.
 *
 * `struct step` is one lane's copy: the bytes, and what they say as kernels.h wants it. Its memory is
 * sized once, by the bounds of the plan; nothing is allocated for a step.
 *
 * Invariant after step_decode() or step_from_message() returned STEP_OK: every count agrees with the
 * others and with the bounds, and view.rows[i].*_given point into the bytes.
 */
#ifndef GPTOSS_WORKER_STEP_H
#define GPTOSS_WORKER_STEP_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "proto/proto.h"

#define STEP_VERSION 1

/* What the plan allows. */
struct step_bounds {
    uint32_t rows, tokens, samples; /* of a step */
    uint32_t slots, context;
    uint32_t blocks;                     /* of the table of one slot, each pool */
    uint32_t full_blocks, window_blocks; /* of the pools */
};

struct step {
    uint64_t number;
    size_t size;              /* bytes of the wire form */
    unsigned char *bytes;     /* [step_bytes_max(bounds)], aligned for uint64_t */
    struct kernels_row *rows; /* [bounds.rows] */
    int32_t *tokens;          /* [bounds.tokens]; NULL where tokens are not read */
    struct kernels_step view;
};

enum step_status { STEP_OK = 0, STEP_STALE = 1, STEP_BAD = -1 };

size_t step_bytes_max(const struct step_bounds *bounds);
/* 0, or -1 where there is no memory. */
int step_init(struct step *step, const struct step_bounds *bounds, int with_tokens);
void step_free(struct step *step); /* of a zeroed or initialised step */

/* Reads step->bytes[step->size]. STEP_STALE: of another epoch, drop it. STEP_BAD: with a sentence. */
enum step_status step_decode(struct step *step, const struct step_bounds *bounds, uint64_t epoch,
                             char *err, size_t err_size);
/* The same from the coordinator's message; fills bytes, size and tokens too. */
enum step_status step_from_message(struct step *step, const Gptoss__Step *message,
                                   const struct step_bounds *bounds, uint64_t epoch, char *err,
                                   size_t err_size);

#endif
