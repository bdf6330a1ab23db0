#include "plan/plan.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/capacity.h"
#include "plan/cut.h"
#include "plan/head.h"
#include "plan/size.h"
#include "plan/stage.h"

/*
 * Memory: a rank's share is the free memory of its device over the number of ranks on it. Weights in
 * place (cpu) are pages of the mapped file. Every layer is on one stage, so the file is counted once
 * for a device; its pages can be dropped and read again, so they never make a plan fail. They do
 * count when the KV pool is sized: the cache does not push weights out of memory as long as one
 * sequence fits beside them.
 */

enum {
    DEFAULT_CONTEXT = 8192,
    DEFAULT_SEQUENCES = 16,
    GPU_SEQUENCES = 256, /* for each stage */
    GPU_SEQUENCES_MAX = 2048,
    SEQUENCE_ROOM = 1024, /* positions that each of many sequences has room for */
    DEFAULT_STEP_TOKENS = 512,
    STEP_SAMPLES_MIN = 64,
    REFERENCE_DEPTH = 1024, /* positions before the rows that layers are cut for */
    HEAD_JOBS = 4,          /* a step's in the making, the next one's on their way */
    GPU_SPARE = 64,         /* of a GPU's free memory this part is left */
    SEQUENCES_MAX = 1 << 20,
    STEP_TOKENS_MAX = 1 << 20,
};

static bool in_place(const struct draft *draft, uint32_t s)
{
    return draft->options->ranks && draft->options->ranks[s].weights_in_place;
}

/* What must fit, with the smallest pool that is any use: one sequence of `context`. */
static uint64_t needed_bytes(const struct draft *draft, uint32_t s, const struct plan_stage *stage)
{
    uint64_t bytes = stage_add(stage->activation_bytes,
                               stage_kv_bytes(draft, stage, stage_blocks(draft->plan->context)));
    return in_place(draft, s) ? bytes : stage_add(bytes, stage->weights_bytes);
}

static bool range_fits(const void *arg, uint32_t s, uint32_t first, uint32_t count)
{
    const struct draft *draft = arg;
    if (draft->share[s] == 0)
        return true;
    struct plan_stage stage = {.layer_first = first, .layer_count = count};
    stage_fill(draft, s, &stage);
    return needed_bytes(draft, s, &stage) <= draft->share[s];
}

/* ── one try ───────────────────────────────────────────────────────────────────────────────── */

/* Bandwidths as the cut wants them: where one is unknown, the mean of the others. */
static void fill_bandwidth(const struct plan_options *options, double *bandwidth)
{
    double sum = 0;
    uint32_t known = 0;
    for (uint32_t s = 0; s < options->n_ranks; s++) {
        bandwidth[s] = options->ranks ? options->ranks[s].bandwidth : 0;
        if (bandwidth[s] > 0) {
            sum += bandwidth[s];
            known++;
        }
    }
    for (uint32_t s = 0; s < options->n_ranks; s++)
        if (!(bandwidth[s] > 0))
            bandwidth[s] = known > 0 ? sum / known : 1;
}

static bool is_whole(const struct plan_options *options)
{
    if (options->head != PLAN_HEAD_AUTO)
        return options->head == PLAN_HEAD_LAST;
    for (uint32_t s = 0; options->ranks && s < options->n_ranks; s++)
        if (options->ranks[s].weights_in_place)
            return false;
    return options->ranks != NULL;
}

/* Rows of the head for each stage. 0; -1: out of memory. */
static int share_head(const struct draft *draft)
{
    struct plan *plan = draft->plan;
    uint32_t vocabulary = draft->model->vocabulary, n_stages = plan->n_stages;
    double *bandwidth = calloc(n_stages, sizeof *bandwidth);
    if (!bandwidth)
        return -1;
    fill_bandwidth(draft->options, bandwidth);
    if (is_whole(draft->options))
        head_whole(vocabulary, n_stages, plan->head_counts);
    else
        head_cut(vocabulary, bandwidth, n_stages, plan->head_counts);
    plan->head_jobs = plan->head_counts[n_stages - 1] == vocabulary ? 0 : HEAD_JOBS;
    free(bandwidth);
    return 0;
}

/* A rank as the costs want it: with the mean bandwidth where its own is unknown. */
static struct plan_rank rank_of(const struct draft *draft, uint32_t s, double bandwidth)
{
    struct plan_rank rank = {.weights_in_place = true};
    if (draft->options->ranks)
        rank = draft->options->ranks[s];
    rank.bandwidth = bandwidth > 1 ? bandwidth : 0;
    return rank;
}

/* What a step of `rows` decode rows takes on a stage of these layers and rows of the head. */
static double reference_seconds(const struct draft *draft, uint32_t first, uint32_t count,
                                uint32_t head_count, uint32_t rows, const struct plan_rank *rank)
{
    struct plan_stage part = {.layer_first = first, .layer_count = count, .head_count = head_count};
    struct plan plan = *draft->plan;
    struct cost_stage costs;
    struct cost_work work = {0};
    for (uint32_t i = 0; i < count; i++)
        *(draft->model->layers[first + i].sliding ? &part.window_layers : &part.full_layers) += 1;
    plan.stages = &part;
    cost_stage_init(&costs, draft->model, &plan, 0, rank);
    for (uint32_t i = 0; i < rows; i++)
        cost_add(&work, draft->model, REFERENCE_DEPTH, 1, 1);
    return cost_seconds(&costs, &work);
}

/* Layers of each stage, computed: for steps in which all sequences decode, those of a stage in turn.
 * 0; 1: no cut fits; -1: out of memory. */
static int compute_layers(const struct draft *draft, uint32_t *counts)
{
    const struct gguf_model *model = draft->model;
    uint32_t n_stages = draft->plan->n_stages, n_layers = model->n_layers;
    uint32_t rows = (draft->plan->sequences + n_stages - 1) / n_stages;
    int status = -1;
    double *layers = calloc((size_t)n_stages * n_layers, sizeof *layers);
    double *extra = calloc(n_stages, sizeof *extra);
    double *bandwidth = calloc(n_stages, sizeof *bandwidth);
    if (!layers || !extra || !bandwidth)
        goto done;
    fill_bandwidth(draft->options, bandwidth);
    for (uint32_t s = 0; s < n_stages; s++) {
        struct plan_rank rank = rank_of(draft, s, bandwidth[s]);
        struct plan_stage stage = {0};
        stage_fill(draft, s, &stage);
        extra[s] = reference_seconds(draft, 0, 0, stage.head_count, rows, &rank);
        double step = reference_seconds(draft, 0, 0, 0, rows, &rank);
        for (uint32_t i = 0; i < n_layers; i++)
            layers[(size_t)s * n_layers + i] =
                reference_seconds(draft, i, 1, 0, rows, &rank) - step;
    }
    struct cut cut = {.n_layers = n_layers,
                      .n_stages = n_stages,
                      .layer_seconds = layers,
                      .extra_seconds = extra,
                      .fits = range_fits,
                      .arg = draft};
    status = cut_layers(&cut, counts);
done:
    free(bandwidth);
    free(extra);
    free(layers);
    return status;
}

/* Blocks of the full pool: enough for every sequence, or what fits, but one sequence at least. */
static uint32_t size_full_pool(const struct draft *draft)
{
    const struct plan *plan = draft->plan;
    uint64_t least = stage_blocks(plan->context);
    uint64_t blocks = least * plan->sequences;
    for (uint32_t s = 0; s < plan->n_stages; s++) {
        const struct plan_stage *stage = &plan->stages[s];
        uint64_t block =
            plan_kv_block_bytes(draft->model, plan->kv_type, BLOCK_TOKENS, stage->full_layers);
        if (stage->memory_bytes == 0 || block == 0)
            continue;
        uint64_t taken = stage_add(stage_add(stage->weights_bytes, stage->activation_bytes),
                                   stage_kv_bytes(draft, stage, 0));
        uint64_t room = stage->memory_bytes > taken ? stage->memory_bytes - taken : 0;
        if (room / block < blocks)
            blocks = room / block;
    }
    if (draft->options->kv_tokens && blocks > stage_blocks(draft->options->kv_tokens))
        blocks = stage_blocks(draft->options->kv_tokens);
    if (blocks < least)
        blocks = least;
    return (uint32_t)blocks;
}

/* Fills the plan for plan->context and plan->sequences. 0; 1: does not fit; -1: out of memory. */
static int try_plan(const struct draft *draft)
{
    struct plan *plan = draft->plan;
    const struct gguf_model *model = draft->model;
    int status = -1;
    uint32_t *counts = calloc(plan->n_stages, sizeof *counts);
    if (!counts)
        goto done;

    /* A row has a token at least, so a step has no more rows or samples than tokens. */
    plan->step_rows = plan->sequences < plan->step_tokens ? plan->sequences : plan->step_tokens;
    plan->step_samples = plan->step_rows > STEP_SAMPLES_MIN ? plan->step_rows : STEP_SAMPLES_MIN;
    if (plan->step_samples > plan->step_tokens)
        plan->step_samples = plan->step_tokens;
    capacity_window(plan, model->window);

    if (draft->options->layers)
        memcpy(counts, draft->options->layers, plan->n_stages * sizeof *counts);
    else if (compute_layers(draft, counts) < 0)
        goto done;
    status = 0;
    uint32_t first = 0;
    for (uint32_t s = 0; s < plan->n_stages; s++) {
        struct plan_stage *stage = &plan->stages[s];
        stage->layer_first = first;
        stage->layer_count = counts[s];
        first += counts[s];
        stage_fill(draft, s, stage);
        if (draft->share[s] > 0 && needed_bytes(draft, s, stage) > draft->share[s])
            status = 1;
        double bandwidth = draft->options->ranks ? draft->options->ranks[s].bandwidth : 0;
        stage->token_seconds = bandwidth > 0 ? stage->token_bytes / bandwidth : 0;
    }
    plan->full_blocks = size_full_pool(draft);
    for (uint32_t s = 0; s < plan->n_stages; s++) {
        struct plan_stage *stage = &plan->stages[s];
        stage->kv_bytes = stage_kv_bytes(draft, stage, plan->full_blocks);
        stage->total_bytes =
            stage_add(stage_add(stage->weights_bytes, stage->kv_bytes), stage->activation_bytes);
    }
done:
    free(counts);
    return status;
}

/* ── what would fit ────────────────────────────────────────────────────────────────────────── */

/* The largest number in 1…most for which the plan fits, with *number set to it; 0: none. The number
 * is plan->context in blocks, or plan->sequences. */
static uint32_t largest_that_fits(const struct draft *draft, uint32_t *number, uint32_t unit,
                                  uint32_t most)
{
    uint32_t kept = *number, low = 0, high = most;
    while (low < high) {
        uint32_t middle = low + (high - low + 1) / 2;
        *number = middle * unit;
        if (try_plan(draft) == 0)
            low = middle;
        else
            high = middle - 1;
    }
    *number = kept;
    return low * unit;
}

static void say_what_would_fit(const struct draft *draft, char *err, size_t err_size)
{
    struct plan *plan = draft->plan;
    uint32_t worst = 0;
    uint64_t deficit = 0;
    for (uint32_t s = 0; s < plan->n_stages; s++) {
        uint64_t needed = needed_bytes(draft, s, &plan->stages[s]);
        if (draft->share[s] > 0 && needed > draft->share[s] && needed - draft->share[s] > deficit) {
            deficit = needed - draft->share[s];
            worst = s;
        }
    }
    uint64_t needed = needed_bytes(draft, worst, &plan->stages[worst]);
    uint64_t weights = in_place(draft, worst) ? 0 : plan->stages[worst].weights_bytes;
    uint32_t context =
        largest_that_fits(draft, &plan->context, BLOCK_TOKENS, plan->context / BLOCK_TOKENS);
    uint32_t sequences = largest_that_fits(draft, &plan->sequences, 1, plan->sequences - 1);

    char advice[160];
    if (context > 0 && sequences > 0)
        snprintf(advice, sizeof advice,
                 "a context of %" PRIu32 " would fit, or %" PRIu32 " sequences", context,
                 sequences);
    else if (context > 0)
        snprintf(advice, sizeof advice, "a context of %" PRIu32 " would fit", context);
    else if (sequences > 0)
        snprintf(advice, sizeof advice, "%" PRIu32 " sequences would fit", sequences);
    else
        snprintf(advice, sizeof advice,
                 "no smaller context fits: start more ranks, or let fewer share a device");
    char need[SIZE_TEXT], have[SIZE_TEXT], of_weights[SIZE_TEXT];
    snprintf(err, err_size,
             "stage %" PRIu32 " of %" PRIu32
             " does not fit: it needs %s (weights %s, the rest KV for one sequence of %" PRIu32
             " and activations), and there is %s: %s",
             worst, plan->n_stages, size_text(need, needed), size_text(of_weights, weights),
             plan->context, size_text(have, draft->share[worst]), advice);
}

/* ── create ────────────────────────────────────────────────────────────────────────────────── */

static int check_layers(const struct gguf_model *model, const struct plan_options *options,
                        char *err, size_t err_size)
{
    uint64_t sum = 0;
    for (uint32_t s = 0; options->layers && s < options->n_ranks; s++) {
        if (options->layers[s] == 0) {
            snprintf(err, err_size,
                     "layers by hand: stage %" PRIu32 " gets 0 layers, and needs one at least", s);
            return -1;
        }
        sum += options->layers[s];
    }
    if (options->layers && sum != model->n_layers) {
        snprintf(err, err_size,
                 "layers by hand: they add up to %" PRIu64 ", and the model has %" PRIu32, sum,
                 model->n_layers);
        return -1;
    }
    return 0;
}

static int check_options(const struct gguf_model *model, const struct plan_options *options,
                         const struct plan *plan, char *err, size_t err_size)
{
    if (options->n_ranks == 0) {
        snprintf(err, err_size, "a plan for no ranks: start at least one");
        return -1;
    }
    if (options->n_ranks > model->n_layers) {
        snprintf(err, err_size,
                 "%" PRIu32 " layers cannot be cut into %" PRIu32 " stages: start at most %" PRIu32
                 " ranks",
                 model->n_layers, options->n_ranks, model->n_layers);
        return -1;
    }
    if (model->context > 0 && plan->context > model->context) {
        snprintf(err, err_size,
                 "a context of %" PRIu32 " is asked for, and the model was made for %" PRIu32
                 ": ask for that at most",
                 plan->context, model->context);
        return -1;
    }
    if (plan->sequences > SEQUENCES_MAX || plan->step_tokens > STEP_TOKENS_MAX) {
        snprintf(err, err_size,
                 "%" PRIu32 " sequences and steps of %" PRIu32
                 " tokens are asked for: at most %d and %d",
                 plan->sequences, plan->step_tokens, SEQUENCES_MAX, STEP_TOKENS_MAX);
        return -1;
    }
    /* Block numbers are 32 bits wide, in both pools. */
    uint64_t blocks = stage_blocks(plan->context);
    if (blocks + 2 > UINT32_MAX / plan->sequences) {
        snprintf(err, err_size,
                 "%" PRIu32 " sequences of %" PRIu32
                 " positions are more KV blocks than can be numbered: ask for fewer",
                 plan->sequences, plan->context);
        return -1;
    }
    if (options->vocabulary_limit > model->vocabulary) {
        snprintf(err, err_size,
                 "a vocabulary of %" PRIu32 " tokens, and the model has %" PRIu32 " rows",
                 options->vocabulary_limit, model->vocabulary);
        return -1;
    }
    return check_layers(model, options, err, err_size);
}

/* Free memory of each rank's device over the ranks on it. Ranks measure at different moments: the
 * least of what they saw counts. */
static void fill_share(const struct plan_options *options, uint64_t *share)
{
    for (uint32_t s = 0; options->ranks && s < options->n_ranks; s++) {
        const struct plan_rank *rank = &options->ranks[s];
        uint64_t least = rank->memory_free_bytes;
        uint32_t n_ranks = 1;
        for (uint32_t t = 0; rank->device_uuid && t < options->n_ranks; t++) {
            const struct plan_rank *other = &options->ranks[t];
            if (t == s || !other->device_uuid || strcmp(other->device_uuid, rank->device_uuid))
                continue;
            n_ranks++;
            if (other->memory_free_bytes < least)
                least = other->memory_free_bytes;
        }
        share[s] = least / n_ranks;
        /* Graphs and the libraries of transports take device memory that nobody counts. */
        if (!rank->weights_in_place)
            share[s] -= share[s] / GPU_SPARE;
    }
}

/* How many sequences at a time where nobody said: GPUs decode many for little more than a few, so as
 * many as leave each of them room for an answer. -1: out of memory. */
static int choose_sequences(const struct draft *draft)
{
    struct plan *plan = draft->plan;
    plan->sequences = DEFAULT_SEQUENCES;
    for (uint32_t s = 0; s < plan->n_stages; s++)
        if (in_place(draft, s) || draft->share[s] == 0)
            return 0;
    uint32_t most = GPU_SEQUENCES * plan->n_stages;
    for (uint32_t n = most < GPU_SEQUENCES_MAX ? most : GPU_SEQUENCES_MAX; n > DEFAULT_SEQUENCES;
         n /= 2) {
        plan->sequences = n;
        int status = try_plan(draft);
        if (status < 0)
            return -1;
        uint64_t room = plan->context < SEQUENCE_ROOM ? plan->context : SEQUENCE_ROOM;
        if (status == 0 && plan->full_blocks >= n * stage_blocks(room))
            return 0;
    }
    plan->sequences = DEFAULT_SEQUENCES;
    return 0;
}

static uint32_t or_default(uint32_t given, uint32_t fallback)
{
    return given > 0 ? given : fallback;
}

int plan_create(struct plan **out, const struct gguf_model *model,
                const struct plan_options *options, char *err, size_t err_size)
{
    *out = NULL;
    int status = -1;
    uint64_t *share = NULL;
    struct plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        goto no_memory;
    uint32_t context = DEFAULT_CONTEXT;
    if (model->context > 0 && model->context < context)
        context = model->context;
    plan->n_stages = options->n_ranks;
    plan->context = or_default(options->context, context);
    plan->sequences = or_default(options->sequences, DEFAULT_SEQUENCES);
    plan->kv_type = options->kv_type;
    plan->block_tokens = BLOCK_TOKENS;
    plan->step_tokens = or_default(options->step_tokens, DEFAULT_STEP_TOKENS);
    plan->vocabulary_limit = or_default(options->vocabulary_limit, model->vocabulary);
    if (check_options(model, options, plan, err, err_size))
        goto fail;
    /* Two for each stage: one that runs and one that waits behind it. */
    plan->steps_in_flight = 2 * plan->n_stages;
    plan->lanes = plan->steps_in_flight;

    plan->stages = calloc(plan->n_stages, sizeof *plan->stages);
    plan->head_counts = calloc(plan->n_stages, sizeof *plan->head_counts);
    share = calloc(plan->n_stages, sizeof *share);
    if (!plan->stages || !plan->head_counts || !share)
        goto no_memory;
    fill_share(options, share);
    struct draft draft = {.model = model, .options = options, .plan = plan, .share = share};
    if (share_head(&draft) || (options->sequences == 0 && choose_sequences(&draft)))
        goto no_memory;
    status = try_plan(&draft);
    if (status == 1) {
        say_what_would_fit(&draft, err, err_size);
        /* The search has filled the plan for other sizes. */
        if (try_plan(&draft) < 0)
            status = -1;
    }
    if (status < 0)
        goto no_memory;
    free(share);
    *out = plan;
    return status;

no_memory:
    snprintf(err, err_size, "out of memory while planning");
fail:
    free(share);
    plan_destroy(plan);
    return -1;
}

void plan_destroy(struct plan *plan)
{
    if (!plan)
        return;
    free(plan->stages);
    free(plan->head_counts);
    free(plan);
}
