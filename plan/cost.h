/*
 * cost: how long a step takes on a stage. Part of the door of plan/ (plan.h includes it).
 *
 * A step's seconds on a stage are a sum of few terms: weights read, arithmetic, KV read, samples. Each
 * term is what the step asks for, at the rates of the stage's rank (bandwidth, arithmetic), times a
 * factor. Factors are 1 until measured steps say otherwise: cost_observe() fits them by least squares
 * of the relative error, old steps forgotten, every factor within bounds. What few terms cannot say (a
 * kernel that works in tiles) is in a curve over the number of tokens: measured over predicted.
 *
 *     struct cost_work work = {0};
 *     cost_add(&work, model, position, count, samples);     each row of the step
 *     double seconds = cost_seconds(&stage, &work);
 *     cost_observe(&stage, &work, measured);
 */
#ifndef GPTOSS_PLAN_COST_H
#define GPTOSS_PLAN_COST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gguf/gguf.h"

struct plan;
struct plan_rank;

/* What a step asks of every stage. */
struct cost_work {
    double tokens, rows, samples;
    double full_reads, window_reads; /* positions whose KV is read, once for each row */
    double full_pairs, window_pairs; /* (token, position) pairs that attention computes */
    bool prompt;                     /* a row has several tokens */
};

enum cost_term {
    COST_STEP,    /* once a step: launches, matrices of attention */
    COST_EXPERTS, /* the experts that any of its tokens chooses */
    COST_TOKENS,  /* arithmetic */
    COST_ROWS,
    COST_READS,
    COST_PAIRS,
    COST_HEAD, /* once a step that samples */
    COST_SAMPLES,
    COST_TERMS
};

enum { COST_CURVE = 15 }; /* 1, 2, 4, … 16384 tokens */
enum { COST_RATIOS = 256, COST_SPREAD = 32 };

struct cost_stage {
    double unit[COST_TERMS]; /* seconds of one unit of the term, by the rank's rates */
    double full_layers, window_layers;
    double not_chosen; /* log of the share of experts that a token does not choose */
    double factor[COST_TERMS];
    double curve[2][COST_CURVE]; /* of steps of single tokens, and with prompts */
    /* Of the steps observed, of single tokens and with prompts: decoding for long does not make it
     * forget what a prompt costs. */
    double products[2][COST_TERMS][COST_TERMS], targets[2][COST_TERMS];
    double weight[2][COST_CURVE];
    double observed; /* steps, old ones forgotten */
    double error;    /* mean |measured − predicted| / predicted of late */
    /* Seconds of the steps, by the clock and by the fit: steps that something held up weigh little in
     * the fit, but a run takes their time too. */
    double measured, predicted;
    double ratios
        [COST_RATIOS]; /* how often measured / predicted was so much, in even steps of its log */
};

/* A row: tokens at position … position + count − 1 of a sequence, of which `samples` are sampled. */
void cost_add(struct cost_work *work, const struct gguf_model *model, uint32_t position,
              uint32_t count, uint32_t samples);

/* Stage s of the plan on a rank; NULL: one of which nothing is known. */
void cost_stage_init(struct cost_stage *stage, const struct gguf_model *model,
                     const struct plan *plan, uint32_t s, const struct plan_rank *rank);
double cost_seconds(const struct cost_stage *stage, const struct cost_work *work);
/* Of the slowest of n stages. */
double cost_slowest(const struct cost_stage *stages, uint32_t n, const struct cost_work *work);
/* What one row adds to a step that is there anyway: for comparing rows. */
double cost_of_row(const struct cost_stage *stage, const struct cost_work *row);
void cost_observe(struct cost_stage *stage, const struct cost_work *work, double seconds);

/* What steps took on the whole, over what cost_seconds() says of them; 1 where none were seen. */
double cost_bias(const struct cost_stage *stage);

/* How steps of one kind differ: measured over predicted, the means of COST_SPREAD parts of equal weight
 * in rising order, 1 on the mean. All 1 where too few were seen. */
void cost_spread(const struct cost_stage *stage, double spread[COST_SPREAD]);

const char *cost_term_name(enum cost_term term);

#endif
