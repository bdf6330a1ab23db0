/*
 * form: which rows go into the next step.
 *
 * A step holds, in this order:
 *   1. decode rows: one token of each of several sequences. The decoding sequences are cut into groups
 *      of equal work, so that steps of disjoint sequences, which cost every stage the same, fill the
 *      pipeline: as many groups as stages, or some more where that is quicker. A row may be issued before its token is known ("the
 *      one last sampled for this slot"), one sample ahead, so that no round trip to the coordinator
 *      stands between tokens; but never sooner after its last one than the other sequences' rows take.
 *   2. chunks of prompts, oldest first, as large as the step's time has room for. So a chunk shrinks
 *      with its depth and with the decode rows beside it. Chunks of one prompt follow one another
 *      without waiting.
 *
 * How long a step may take: while sequences decode, their tokens come one round of the pipeline apart.
 * So a step with prompts takes the S-th part of the gap at most, or three times what its decode rows
 * take alone, whichever is more: prompts never starve, and slow the others to a third of their speed
 * at most, or to one token in each gap. While none decodes, a step is as long as gets the prompts through
 * the pipeline soonest. What a step takes is the cost model's word (plan/cost.h); its tokens are
 * bounded by the plan in any case. Nothing of this changes a bit of any result.
 */
#include <math.h>
#include <stdlib.h>

#include "coordinator/sched.h"

#define SLOWER      3  /* times its decode rows' time that a step with prompts may take */
#define CHUNK_MIN   4  /* tokens of a prompt that a step takes, whatever it costs */
#define CHUNK_ROUND 16 /* larger chunks are multiples of this */
#define CHUNKS_MAX  64 /* that prompts are cut into, to fill the pipeline, … */
#define CHUNK_FILL  64 /* … none of them smaller than this */
#define LATE_MAX    0.2
#define LATE_PART   0.3 /* of the model's error: the rest is in both stages, or makes up for itself */
#define GROUPS_GAIN 0.99 /* another number of groups must be better by this */

/* ── decode rows ───────────────────────────────────────────────────────────────────────────── */

/* A sequence may take part in a decode row: its next token is known, or is the one sample under way. */
static bool may_decode(const struct coordinator *c, const struct request *r)
{
    size_t sampled = r->tokens.count - r->n_prompt;
    if (r->issued >= c->context || sampled + r->pending >= r->max_tokens)
        return false;
    return r->issued + 1 == r->tokens.count || (r->issued == r->tokens.count && r->pending == 1);
}

static bool decodes(const struct request *r)
{
    return r->issued + 1 >= r->tokens.count;
}

/* Who waits longest; of those of one step in the order that they had there, so that all take turns. */
static int by_last_step(const void *a, const void *b)
{
    const struct request *x = *(struct request *const *)a, *y = *(struct request *const *)b;
    if (x->last_step != y->last_step)
        return x->last_step < y->last_step ? -1 : 1;
    if (x->last_row != y->last_row)
        return x->last_row < y->last_row ? -1 : 1;
    return x->serial < y->serial ? -1 : x->serial > y->serial;
}

static double row_weight(const struct coordinator *c, const struct request *r)
{
    struct cost_work work = {0};
    cost_add(&work, c->options.model, (uint32_t)r->issued, 1, 1);
    return cost_of_row(&c->costs[0], &work);
}

/* The seconds of a round, in which every decoding sequence gets one token. With as many groups as stages
 * a step cannot begin before that of its group has left the last stage, so a stage that is late (by a
 * part of the model's error, on the mean) makes the others wait. With more groups something is always
 * queued, but weights are read once more. */
static double round_seconds(const struct coordinator *c, const struct cost_work *all,
                            uint32_t groups)
{
    const uint32_t stages = c->world.plan->n_stages;
    const double part = 1.0 / groups;
    const struct cost_work work = {.tokens = all->tokens * part,
                                   .rows = all->rows * part,
                                   .samples = all->samples * part,
                                   .full_reads = all->full_reads * part,
                                   .window_reads = all->window_reads * part,
                                   .full_pairs = all->full_pairs * part,
                                   .window_pairs = all->window_pairs * part};
    double late = 0;
    for (uint32_t s = 0; s < stages && groups == stages; s++)
        late = fmax(late, c->costs[s].error);
    return groups * cost_slowest(c->costs, stages, &work) * (1 + LATE_PART * fmin(late, LATE_MAX));
}

static uint32_t choose_groups(struct coordinator *c, const struct cost_work *all, uint32_t n)
{
    const uint32_t stages = c->world.plan->n_stages;
    uint32_t most = c->world.plan->steps_in_flight < n ? c->world.plan->steps_in_flight : n;
    uint32_t best = c->groups >= stages && c->groups <= most ? c->groups : stages;
    double seconds = round_seconds(c, all, best) * GROUPS_GAIN;
    for (uint32_t groups = stages; groups <= most; groups++) {
        double other = round_seconds(c, all, groups);
        if (other < seconds) {
            seconds = other;
            best = groups;
        }
    }
    return c->groups = best;
}

/* How many sequences decode, and what one step's part of them weighs. */
static uint32_t decoding(struct coordinator *c, double *part)
{
    uint32_t n = 0;
    double sum = 0;
    struct cost_work all = {0};
    bool parts = c->world.plan->n_stages > 1;
    for (uint32_t i = 0; i < c->n_running; i++)
        if (decodes(c->running[i])) {
            n++;
            if (parts) {
                cost_add(&all, c->options.model, (uint32_t)c->running[i]->issued, 1, 1);
                sum += row_weight(c, c->running[i]);
            }
        }
    *part = parts ? sum / choose_groups(c, &all, n) : INFINITY;
    return n;
}

/* Rows whose last one is `distance` steps away at least. A row whose sample is in the pipeline waits at
 * stage 0, and all steps behind it with it. With prompts beside them the rows leave room for some tokens
 * of one, and take turns. */
static void add_decode_rows(struct coordinator *c, struct step *step, double part,
                            uint32_t distance, bool prompts)
{
    const struct plan *plan = c->world.plan;
    struct request **candidates = c->row_buffers->candidates;
    uint32_t n = 0;
    bool ordered = true;
    for (uint32_t i = 0; i < c->n_running; i++) {
        struct request *r = c->running[i];
        if (!may_decode(c, r) || r->last_step == step->number)
            continue;
        if (r->issued == r->tokens.count && r->last_step + distance > step->number)
            continue;
        candidates[n++] = r;
        ordered &= n == 1 || by_last_step(&candidates[n - 2], &candidates[n - 1]) < 0;
    }
    if (!ordered)
        qsort(candidates, n, sizeof *candidates, by_last_step);
    uint32_t room = plan->step_rows < plan->step_samples ? plan->step_rows : plan->step_samples;
    uint32_t spare = !prompts ? 0 : plan->step_tokens / 2 < CHUNK_MIN ? 1 : CHUNK_MIN;
    if (plan->step_tokens > spare && room > plan->step_tokens - spare)
        room = plan->step_tokens - spare;
    double sum = 0;
    for (uint32_t i = 0; i < n && step->n_rows < room; i++) {
        struct request *r = candidates[i];
        if (r->slot == CORE_NONE) /* another row has taken its blocks */
            continue;
        /* The nearest to the part, whether it is a little less or more. */
        double weight = part < INFINITY ? row_weight(c, r) : 0;
        if (step->n_rows > 0 && sum + weight / 2 >= part * (1 + 1e-9))
            return;
        if (sched_add_row(c, step, r, 1))
            sum += weight;
    }
}

/* ── prompts ───────────────────────────────────────────────────────────────────────────────── */

/* The seconds of one step when all there is are prompts: with k chunks of the same cost, the last of
 * them leaves the last of S stages after k + S − 1. */
static double pipeline_target(const struct coordinator *c)
{
    const struct plan *plan = c->world.plan;
    if (plan->n_stages == 1)
        return INFINITY;
    double tokens = 0, depth = 0;
    for (uint32_t i = 0; i < c->n_running; i++) {
        /* All of a prompt, what is under way too: its chunks shall be alike. */
        double count = decodes(c->running[i]) ? 0 : (double)c->running[i]->tokens.count;
        tokens += count;
        depth += count * count / 2;
    }
    depth = tokens > 0 ? depth / tokens : 0;
    double best = INFINITY, target = INFINITY;
    uint32_t least = (uint32_t)(tokens / plan->step_tokens) + 1;
    for (uint32_t k = least; k < least + CHUNKS_MAX && tokens / k >= CHUNK_FILL; k++) {
        struct cost_work work = {0};
        uint32_t count = (uint32_t)ceil(tokens / k);
        cost_add(&work, c->options.model, (uint32_t)depth, count, 0);
        double seconds = cost_slowest(c->costs, plan->n_stages, &work);
        double all = seconds * (k + plan->n_stages - 1);
        if (all < best) {
            best = all;
            target = seconds;
        }
    }
    return target;
}

static double with_chunk(const struct coordinator *c, const struct cost_work *work,
                         const struct request *r, uint32_t count)
{
    struct cost_work more = *work;
    cost_add(&more, c->options.model, (uint32_t)r->issued, count,
             r->issued + count >= r->tokens.count);
    return cost_slowest(c->costs, c->world.plan->n_stages, &more);
}

/* The most tokens of r, at most `most`, with which the step keeps to its seconds. */
static uint32_t chunk(const struct coordinator *c, const struct cost_work *work,
                      const struct request *r, uint32_t most, double target)
{
    if (with_chunk(c, work, r, most) <= target)
        return most;
    uint32_t low = 0, high = most; /* low fits, high does not */
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (with_chunk(c, work, r, middle) <= target)
            low = middle;
        else
            high = middle;
    }
    return low >= 8 * CHUNK_ROUND ? low / CHUNK_ROUND * CHUNK_ROUND : low;
}

static void add_prompt_rows(struct coordinator *c, struct step *step, double target)
{
    const struct plan *plan = c->world.plan;
    uint32_t budget = plan->step_tokens - step->n_rows, samples = step->n_rows;
    bool any = false;
    for (uint32_t i = 0; i < c->n_running && budget && step->n_rows < plan->step_rows; i++) {
        struct request *r = c->running[i];
        if (r->last_step == step->number || decodes(r))
            continue;
        size_t left = r->tokens.count - r->issued;
        uint32_t most = left < budget ? (uint32_t)left : budget;
        uint32_t count = chunk(c, &step->work, r, most, target);
        if (count < CHUNK_MIN && !any)
            count = most < CHUNK_MIN ? most : CHUNK_MIN;
        if (count == left && samples == plan->step_samples)
            count--;
        if (count == 0)
            return; /* the step is full */
        if (!sched_add_row(c, step, r, count))
            continue;
        any = true;
        samples += count == left;
        budget -= count;
        if (count < most)
            return;
    }
}

/* ── the step ──────────────────────────────────────────────────────────────────────────────── */

static double target_seconds(const struct coordinator *c, const struct step *step)
{
    const struct plan *plan = c->world.plan;
    double decode = c->decode_seconds;
    if (step->n_rows)
        decode = cost_slowest(c->costs, plan->n_stages, &step->work);
    return fmax((double)c->gap_us * 1e-6 / plan->n_stages, SLOWER * decode);
}

void form_rows(struct coordinator *c, struct step *step)
{
    double part;
    uint32_t n = decoding(c, &part);
    uint32_t stages = c->world.plan->n_stages;
    add_decode_rows(c, step, part, stages > 1 && n ? c->groups : stages, n < c->n_running);
    if (step->n_rows)
        c->decode_seconds = cost_slowest(c->costs, c->world.plan->n_stages, &step->work);
    if (n < c->n_running) { /* there are prompts */
        /* Prompts alone do not queue up in front of those that decode: one step more than stages. */
        uint64_t in_flight = c->next_step - c->oldest_step;
        if (n && step->n_rows == 0 && in_flight > stages)
            return;
        add_prompt_rows(c, step, n ? target_seconds(c, step) : pipeline_target(c));
    }
    /* Fewer sequences than stages: a round of them is shorter. */
    if (step->n_rows == 0 && n < stages)
        add_decode_rows(c, step, part, n, n < c->n_running);
}
