#include "plan/cost.h"

#include <math.h>

#include "plan/plan.h"
#include "plan/stage.h"

/* Rates where a rank has not said its own. GPUs of one generation do about so many operations for a
 * byte that they read, and CPUs so many. */
#define GPU_BANDWIDTH      2e12
#define CPU_BANDWIDTH      2e10
#define GPU_FLOPS_PER_BYTE 100.0
#define CPU_FLOPS_PER_BYTE 2.5
#define GPU_STEP_SECONDS   100e-6 /* once a step: host, first launch */
#define CPU_STEP_SECONDS   30e-6
#define GPU_LAYER_SECONDS  20e-6 /* of a layer, besides what it reads: kernels begin and end */
#define CPU_LAYER_SECONDS  5e-6
#define GPU_ROW_BYTES      6e6 /* of a row in one layer, and of drawing one sample: as reading so much */
#define CPU_ROW_BYTES      4e4
#define DRAW_ROWS          2 /* rows' times that drawing a sample takes */
#define PART_ROWS          1

#define FACTOR_MIN  1e-3
#define FACTOR_MAX  1e3
#define PRIOR       0.02  /* steps that factors of 1 count as */
#define MEMORY      0.998 /* of the steps before of a kind, with each new one */
#define SWEEPS      4
#define LONG_MEMORY 0.9995
#define HELD_UP     8.0 /* times its seconds that a step counts at most */
#define CURVE_MIN   0.5
#define CURVE_MAX   2.0
#define CURVE_SEEN  4.0 /* steps from which on a point of the curve counts for half */
#define RATIO_MIN   0.25
#define RATIO_MAX   8.0
#define SPREAD_SEEN 200.0 /* steps: before, the fit itself is off */

static double least(double a, double b)
{
    return a < b ? a : b;
}

void cost_add(struct cost_work *work, const struct gguf_model *model, uint32_t position,
              uint32_t count, uint32_t samples)
{
    double first = position, n = count, window = model->window ? model->window : 1;
    double seen = least(first, window - 1); /* of the window, by the first token, before itself */
    work->tokens += n;
    work->rows += 1;
    work->samples += samples;
    work->full_reads += first + n;
    work->window_reads += seen + n;
    if (count == 1) {
        work->full_pairs += first + 1;
        work->window_pairs += seen + 1;
        return;
    }
    work->prompt = true;
    work->full_pairs += n * (first + (n + 1) / 2);
    /* Tokens before position window − 1 see all there is. */
    double early = least(window - 1 - seen, n);
    work->window_pairs += early * (first + (early + 1) / 2) + (n - early) * window;
}

/* Operations of a layer for one token, without attention over positions. */
static double layer_flops(const struct gguf_model *m)
{
    double hidden = m->hidden, q = (double)m->heads * m->head_dim;
    double kv = (double)m->kv_heads * m->head_dim;
    return 2 * hidden * (2 * q + 2 * kv + m->experts + (double)m->active * 3 * m->expert_ffn);
}

void cost_stage_init(struct cost_stage *stage, const struct gguf_model *model,
                     const struct plan *plan, uint32_t s, const struct plan_rank *rank)
{
    const struct plan_stage *part = &plan->stages[s];
    bool gpu = rank && !rank->weights_in_place;
    double bandwidth = rank && rank->bandwidth > 0 ? rank->bandwidth
                       : gpu                       ? GPU_BANDWIDTH
                                                   : CPU_BANDWIDTH;
    double flops = rank && rank->flops > 0
                       ? rank->flops
                       : bandwidth * (gpu ? GPU_FLOPS_PER_BYTE : CPU_FLOPS_PER_BYTE);
    double element = plan->kv_type == PLAN_KV_F32 ? 4 : 2;
    double dense = 0, experts = 0, token_flops = 0;
    for (uint32_t i = 0; i < part->layer_count; i++) {
        const struct gguf_layer *layer = &model->layers[part->layer_first + i];
        double active = (double)model->active / model->experts;
        experts += stage_layer_expert_bytes(layer);
        dense += stage_layer_token_bytes(model, layer) - stage_layer_expert_bytes(layer) * active;
        token_flops += layer_flops(model);
    }
    double row = (gpu ? GPU_ROW_BYTES : CPU_ROW_BYTES) / bandwidth;
    double head_rows = part->head_count;
    *stage = (struct cost_stage){
        .full_layers = part->full_layers,
        .window_layers = part->window_layers,
        .not_chosen = log1p(-fmin((double)model->active / model->experts, 1 - 1e-9)),
    };
    stage->unit[COST_STEP] = (gpu ? GPU_STEP_SECONDS : CPU_STEP_SECONDS) +
                             (gpu ? GPU_LAYER_SECONDS : CPU_LAYER_SECONDS) * part->layer_count +
                             dense / bandwidth;
    stage->unit[COST_EXPERTS] = experts / bandwidth;
    stage->unit[COST_TOKENS] = token_flops / flops;
    stage->unit[COST_ROWS] = row * part->layer_count;
    stage->unit[COST_READS] = 2.0 * model->kv_heads * model->head_dim * element / bandwidth;
    stage->unit[COST_PAIRS] = 4.0 * model->heads * model->head_dim / flops;
    stage->unit[COST_HEAD] = head_rows * (double)model->output->row_bytes / bandwidth;
    /* Samples are drawn on the last stage; the others sum up and sort their part of the head. */
    double draw = row * (s + 1 == plan->n_stages ? DRAW_ROWS : PART_ROWS);
    stage->unit[COST_SAMPLES] = head_rows > 0 ? 2.0 * head_rows * model->hidden / flops + draw : 0;
    for (int i = 0; i < COST_TERMS; i++)
        stage->factor[i] = 1;
    for (int i = 0; i < COST_CURVE; i++)
        stage->curve[0][i] = stage->curve[1][i] = 1;
}

/* How much of each term a step asks for, in seconds at the rank's rates. */
static void terms(const struct cost_stage *stage, const struct cost_work *work,
                  double x[COST_TERMS])
{
    const double *unit = stage->unit;
    x[COST_STEP] = unit[COST_STEP];
    x[COST_EXPERTS] = unit[COST_EXPERTS] * -expm1(work->tokens * stage->not_chosen);
    x[COST_TOKENS] = unit[COST_TOKENS] * work->tokens;
    x[COST_ROWS] = unit[COST_ROWS] * work->rows;
    x[COST_READS] = unit[COST_READS] * (work->full_reads * stage->full_layers +
                                        work->window_reads * stage->window_layers);
    x[COST_PAIRS] = unit[COST_PAIRS] * (work->full_pairs * stage->full_layers +
                                        work->window_pairs * stage->window_layers);
    x[COST_HEAD] = work->samples > 0 ? unit[COST_HEAD] : 0;
    x[COST_SAMPLES] = unit[COST_SAMPLES] * work->samples;
}

static double sum_of(const struct cost_stage *stage, const double x[COST_TERMS])
{
    double sum = 0;
    for (int i = 0; i < COST_TERMS; i++)
        sum += stage->factor[i] * x[i];
    return sum;
}

/* Where a step lies on the curve: between points *at and *at + 1, *part of the way. */
static void place(const struct cost_work *work, int *at, double *part)
{
    double x = log2(fmax(work->tokens, 1));
    if (x > COST_CURVE - 1)
        x = COST_CURVE - 1;
    *at = x >= COST_CURVE - 1 ? COST_CURVE - 2 : (int)x;
    *part = x - *at;
}

static double curve(const struct cost_stage *stage, const struct cost_work *work)
{
    int at;
    double part;
    place(work, &at, &part);
    const double *points = stage->curve[work->prompt];
    return points[at] * (1 - part) + points[at + 1] * part;
}

double cost_seconds(const struct cost_stage *stage, const struct cost_work *work)
{
    double x[COST_TERMS];
    terms(stage, work, x);
    return sum_of(stage, x) * curve(stage, work);
}

double cost_slowest(const struct cost_stage *stages, uint32_t n, const struct cost_work *work)
{
    double slowest = 0;
    for (uint32_t s = 0; s < n; s++)
        slowest = fmax(slowest, cost_seconds(&stages[s], work));
    return slowest;
}

double cost_of_row(const struct cost_stage *stage, const struct cost_work *row)
{
    const double *unit = stage->unit, *factor = stage->factor;
    return factor[COST_TOKENS] * unit[COST_TOKENS] * row->tokens +
           factor[COST_ROWS] * unit[COST_ROWS] * row->rows +
           factor[COST_READS] * unit[COST_READS] *
               (row->full_reads * stage->full_layers + row->window_reads * stage->window_layers) +
           factor[COST_PAIRS] * unit[COST_PAIRS] *
               (row->full_pairs * stage->full_layers + row->window_pairs * stage->window_layers) +
           factor[COST_SAMPLES] * unit[COST_SAMPLES] * row->samples;
}

/* Solves a · x = b in place, for a symmetric positive definite a of n rows. */
static void solve_spd(int n, double a[COST_TERMS][COST_TERMS], double b[COST_TERMS])
{
    for (int i = 0; i < n; i++) { /* a = l · lᵀ, l in the lower half */
        for (int k = 0; k <= i; k++) {
            double sum = a[i][k];
            for (int j = 0; j < k; j++)
                sum -= a[i][j] * a[k][j];
            a[i][k] = i == k ? sqrt(fmax(sum, 1e-12)) : sum / a[k][k];
        }
        for (int k = 0; k < i; k++)
            b[i] -= a[i][k] * b[k];
        b[i] /= a[i][i];
    }
    for (int i = n; i-- > 0;) {
        for (int k = i + 1; k < n; k++)
            b[i] -= a[k][i] * b[k];
        b[i] /= a[i][i];
    }
}

static double product(const struct cost_stage *stage, int i, int k)
{
    return stage->products[0][i][k] + stage->products[1][i][k] + (i == k ? PRIOR : 0);
}

static double target(const struct cost_stage *stage, int i)
{
    return stage->targets[0][i] + stage->targets[1][i] + PRIOR;
}

static double within(double factor)
{
    return fmin(fmax(factor, FACTOR_MIN), FACTOR_MAX);
}

/* The best factors, but for those in `bound`, which stay as they are. Returns the one that leaves its
 * bounds by most, and binds it; -1: none does. */
static int solve_free(struct cost_stage *stage, bool bound[COST_TERMS])
{
    double a[COST_TERMS][COST_TERMS], b[COST_TERMS], worst = 0;
    int n = 0, free_ones[COST_TERMS], leaves = -1;
    for (int i = 0; i < COST_TERMS; i++)
        if (!bound[i])
            free_ones[n++] = i;
    for (int i = 0; i < n; i++) {
        int row = free_ones[i];
        b[i] = target(stage, row);
        for (int k = 0; k < COST_TERMS; k++)
            if (bound[k])
                b[i] -= stage->factor[k] * product(stage, row, k);
        for (int k = 0; k < n; k++)
            a[i][k] = product(stage, row, free_ones[k]);
    }
    solve_spd(n, a, b);
    for (int i = 0; i < n; i++) {
        double off = fabs(b[i] - within(b[i]));
        stage->factor[free_ones[i]] = within(b[i]);
        if (off > worst) {
            worst = off;
            leaves = free_ones[i];
        }
    }
    if (leaves >= 0)
        bound[leaves] = true;
    return leaves;
}

/* The factors that are best for all that was observed, near 1 where that says nothing. */
static void solve(struct cost_stage *stage)
{
    bool bound[COST_TERMS] = {false};
    for (int i = 0; i < COST_TERMS && solve_free(stage, bound) >= 0; i++)
        ;
    /* One that was bound too early comes off its bound here. */
    for (int sweep = 0; sweep < SWEEPS; sweep++)
        for (int i = 0; i < COST_TERMS; i++) {
            double rest = target(stage, i);
            for (int k = 0; k < COST_TERMS; k++)
                rest -= k == i ? 0 : product(stage, i, k) * stage->factor[k];
            stage->factor[i] = within(rest / product(stage, i, i));
        }
}

/* One step more for the points of the curve beside it: each is the mean of measured over predicted,
 * drawn to 1 while few steps were seen. */
static void bend(struct cost_stage *stage, const struct cost_work *work, double ratio)
{
    int at;
    double part;
    place(work, &at, &part);
    for (int k = 0; k < 2; k++) {
        double share = k ? part : 1 - part;
        double *weight = &stage->weight[work->prompt][at + k];
        double *point = &stage->curve[work->prompt][at + k];
        if (!(share > 0))
            continue;
        *weight = *weight * (1 - (1 - MEMORY) * share) + share;
        *point += share / (*weight + CURVE_SEEN) * (ratio - *point);
        *point = fmin(fmax(*point, CURVE_MIN), CURVE_MAX);
    }
}

/* Place among the ratios, and the ratio in the middle of a place. */
static int ratio_place(double ratio)
{
    double at = log(ratio / RATIO_MIN) / log(RATIO_MAX / RATIO_MIN) * COST_RATIOS;
    return at < 0 ? 0 : at >= COST_RATIOS ? COST_RATIOS - 1 : (int)at;
}

static double ratio_at(int place)
{
    return RATIO_MIN * pow(RATIO_MAX / RATIO_MIN, (place + 0.5) / COST_RATIOS);
}

void cost_observe(struct cost_stage *stage, const struct cost_work *work, double seconds)
{
    if (!(seconds > 0) || !isfinite(seconds) || work->rows < 1)
        return;
    double x[COST_TERMS];
    terms(stage, work, x);
    double predicted = sum_of(stage, x) * curve(stage, work);
    /* A step that was held up by something else, or a clock that jumped, counts for one step at most. */
    double scale = 1 / fmax(predicted, seconds);
    double(*products)[COST_TERMS] = stage->products[work->prompt];
    double *targets = stage->targets[work->prompt];
    for (int i = 0; i < COST_TERMS; i++) {
        for (int k = 0; k < COST_TERMS; k++)
            products[i][k] = products[i][k] * MEMORY + x[i] * x[k] * scale * scale;
        targets[i] = targets[i] * MEMORY + x[i] * seconds * scale * scale;
    }
    solve(stage);
    double ratio = seconds / sum_of(stage, x);
    bend(stage, work, fmin(fmax(ratio, CURVE_MIN), CURVE_MAX));
    stage->measured = stage->measured * LONG_MEMORY + fmin(seconds, HELD_UP * predicted);
    stage->predicted = stage->predicted * LONG_MEMORY + cost_seconds(stage, work);
    stage->observed = stage->observed * MEMORY + 1;
    if (stage->observed > SPREAD_SEEN) {
        for (int i = 0; i < COST_RATIOS; i++)
            stage->ratios[i] *= LONG_MEMORY;
        stage->ratios[ratio_place(seconds / predicted)] += 1;
    }
    double weight = fmax(1 / stage->observed, 0.02);
    stage->error += weight * (fabs(seconds - predicted) / predicted - stage->error);
}

double cost_bias(const struct cost_stage *stage)
{
    double bias = stage->predicted > 0 ? stage->measured / stage->predicted : 1;
    return fmin(fmax(bias, CURVE_MIN), CURVE_MAX);
}

void cost_spread(const struct cost_stage *stage, double spread[COST_SPREAD])
{
    double all = 0, mean = 0;
    for (int i = 0; i < COST_RATIOS; i++) {
        all += stage->ratios[i];
        mean += stage->ratios[i] * ratio_at(i);
    }
    for (int k = 0; k < COST_SPREAD; k++)
        spread[k] = 1;
    if (!(all > SPREAD_SEEN))
        return;
    mean /= all;
    double part = all / COST_SPREAD, left = stage->ratios[0];
    for (int k = 0, i = 0; k < COST_SPREAD; k++) {
        double sum = 0, need = part;
        while (left < need && i + 1 < COST_RATIOS) {
            sum += left * ratio_at(i);
            need -= left;
            left = stage->ratios[++i];
        }
        sum += need * ratio_at(i);
        left -= need;
        spread[k] = sum / part / mean;
    }
}

const char *cost_term_name(enum cost_term term)
{
    static const char *const names[COST_TERMS] = {"step",  "experts", "tokens", "rows",
                                                  "reads", "pairs",   "head",   "samples"};
    return names[term];
}
