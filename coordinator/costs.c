/*
 * costs: what steps take on each stage, learned while they run.
 */
#include <stdlib.h>
#include <string.h>

#include "coordinator/sched.h"

/* The rank as the plan knows it; CPUs say what they measured even where the plan takes them as equal. */
static struct plan_rank rank_of(const struct rank *r)
{
    return (struct plan_rank){.bandwidth = r->bandwidth,
                              .weights_in_place = strcmp(r->backend, "cuda") != 0};
}

#define PAST       4096 /* steps */
#define GAP_US     50000
#define CPU_GAP_US 200000
#define ALIKE      1.25

struct cost_past {
    struct {
        uint64_t number; /* 0: none */
        struct cost_work work;
    } steps[PAST];      /* step n at n % PAST */
    uint64_t result_us; /* when the last result came */
    struct cost_last {
        uint64_t number, finished_us;
    } * last; /* [n_costs] that the stage told of */
};

/* The same stage on a rank that came back: it measured its bandwidth anew. */
static bool alike(const struct cost_stage *a, const struct cost_stage *b)
{
    bool is = a->full_layers == b->full_layers && a->window_layers == b->window_layers;
    for (int i = 0; i < COST_TERMS; i++)
        is = is && a->unit[i] <= ALIKE * b->unit[i] && b->unit[i] <= ALIKE * a->unit[i];
    return is;
}

void costs_create(struct coordinator *c)
{
    uint32_t n = c->world.size;
    struct cost_stage *costs = base_alloc(n, sizeof *costs);
    bool same = c->n_costs == n, all_cpu = true;
    for (uint32_t s = 0; s < n; s++) {
        struct plan_rank rank = rank_of(&c->world.ranks[s]);
        cost_stage_init(&costs[s], c->options.model, c->world.plan, s, &rank);
        all_cpu = all_cpu && rank.weights_in_place;
        same = same && alike(&costs[s], &c->costs[s]);
    }
    if (same) { /* ranks that came back */
        free(costs);
        costs = c->costs;
        c->costs = NULL;
    }
    costs_destroy(c);
    c->costs = costs;
    c->n_costs = n;
    c->cost_past = base_alloc(1, sizeof *c->cost_past);
    c->cost_past->last = base_alloc(n, sizeof *c->cost_past->last);
    c->costs_told = false;
    c->gap_us = c->options.gap_us ? c->options.gap_us : all_cpu ? CPU_GAP_US : GAP_US;
    c->decode_seconds = 0;
}

void costs_destroy(struct coordinator *c)
{
    free(c->costs);
    if (c->cost_past)
        free(c->cost_past->last);
    free(c->cost_past);
    c->costs = NULL;
    c->cost_past = NULL;
    c->n_costs = 0;
}

void costs_issued(struct coordinator *c, const struct step *step)
{
    c->cost_past->steps[step->number % PAST].number = step->number;
    c->cost_past->steps[step->number % PAST].work = step->work;
}

/* Until the stages tell: results that follow one another while the pipeline is full are as far apart as
 * the slowest stage takes; the others are taken to keep their ratio to it. */
void costs_result(struct coordinator *c, const struct step *step, uint64_t now)
{
    uint32_t n = c->n_costs;
    uint64_t last = c->cost_past->result_us;
    c->cost_past->result_us = now;
    uint64_t since = step->issued_us > last ? step->issued_us : last;
    bool full = n == 1 || (step->issued_us <= last && c->next_step - step->number >= n);
    if (c->costs_told || !full || now <= since)
        return;
    double seconds = (double)(now - since) * 1e-6;
    double slowest = cost_slowest(c->costs, n, &step->work);
    for (uint32_t s = 0; s < n; s++)
        cost_observe(&c->costs[s], &step->work,
                     seconds * cost_seconds(&c->costs[s], &step->work) / slowest);
}

/* A step that waited behind another began when that one was finished: what lies between two steps that
 * follow one another at once is part of what a step costs. */
void costs_told(struct coordinator *c, uint32_t stage, const struct coordinator_stage_step *step)
{
    struct cost_past *past = c->cost_past;
    if (!past || stage >= c->n_costs)
        return;
    c->costs_told = true;
    struct cost_last *last = &past->last[stage];
    uint64_t from = step->started_us;
    if (last->number + 1 == step->step && last->finished_us > from)
        from = last->finished_us;
    bool known = past->steps[step->step % PAST].number == step->step;
    if (known && step->finished_us > from)
        cost_observe(&c->costs[stage], &past->steps[step->step % PAST].work,
                     (double)(step->finished_us - from) * 1e-6);
    *last = (struct cost_last){step->step, step->finished_us};
}

/* ── for the simulator ─────────────────────────────────────────────────────────────────────── */

static void print_terms(struct text *t, const char *name, const double *values)
{
    text_print(t, ", \"%s\": {", name);
    for (int i = 0; i < COST_TERMS; i++)
        text_print(t, "%s\"%s\": %.6g", i ? ", " : "", cost_term_name((enum cost_term)i),
                   values[i]);
    text_print(t, "}");
}

static void print_list(struct text *t, const char *name, const double *values, int n)
{
    text_print(t, ", \"%s\": [", name);
    for (int i = 0; i < n; i++)
        text_print(t, "%s%.5g", i ? ", " : "", values[i]);
    text_print(t, "]");
}

char *coordinator_costs(const struct coordinator *c)
{
    struct text t = {0};
    const struct plan *plan = c->world.plan;
    if (c->world.state != WORLD_SERVING)
        return NULL;
    double bandwidth = 0;
    bool gpu = true;
    for (uint32_t s = 0; s < c->n_costs; s++) {
        struct plan_rank rank = rank_of(&c->world.ranks[s]);
        bandwidth += rank.bandwidth / c->n_costs;
        gpu = gpu && !rank.weights_in_place;
    }
    text_print(&t, "{\"model\": ");
    text_json_string(&t, c->model_path, strlen(c->model_path));
    text_print(&t,
               ", \"gpu\": %s, \"bandwidth\": %.6g, \"flops\": 0, \"memory_bytes\": %llu,\n"
               " \"context\": %u, \"sequences\": %u, \"step_tokens\": %u, \"kv_type\": %d,\n"
               " \"stages\": [",
               gpu ? "true" : "false", bandwidth, (unsigned long long)plan->stages[0].memory_bytes,
               plan->context, plan->sequences, plan->step_tokens, (int)plan->kv_type);
    for (uint32_t s = 0; s < c->n_costs; s++) {
        const struct cost_stage *stage = &c->costs[s];
        text_print(&t,
                   "%s\n  {\"stage\": %u, \"layers\": %u, \"head\": %u, \"steps\": %.0f, "
                   "\"error\": %.4f, \"bias\": %.4f",
                   s ? "," : "", s, plan->stages[s].layer_count, plan->stages[s].head_count,
                   stage->observed, stage->error, cost_bias(stage));
        print_terms(&t, "seconds", stage->unit);
        print_terms(&t, "factors", stage->factor);
        print_list(&t, "curve", stage->curve[0], COST_CURVE);
        print_list(&t, "prompt_curve", stage->curve[1], COST_CURVE);
        double spread[COST_SPREAD];
        cost_spread(stage, spread);
        print_list(&t, "spread", spread, COST_SPREAD);
        text_print(&t, "}");
    }
    text_print(&t, "\n ]}\n");
    return t.bytes;
}
