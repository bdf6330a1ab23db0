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

void costs_create(struct coordinator *c)
{
    uint32_t n = c->world.size;
    struct cost_stage *costs = base_alloc(n, sizeof *costs);
    bool same = c->n_costs == n;
    for (uint32_t s = 0; s < n; s++) {
        struct plan_rank rank = rank_of(&c->world.ranks[s]);
        cost_stage_init(&costs[s], c->options.model, c->world.plan, s, &rank);
        same = same && memcmp(costs[s].unit, c->costs[s].unit, sizeof costs[s].unit) == 0;
    }
    c->result_us = 0;
    c->decode_seconds = 0;
    if (same) { /* ranks that came back */
        free(costs);
        return;
    }
    free(c->costs);
    c->costs = costs;
    c->n_costs = n;
}

/* Results that follow one another while the pipeline is full are as far apart as the slowest stage
 * takes; the others are taken to keep their ratio to it. */
void costs_result(struct coordinator *c, const struct step *step, uint64_t now)
{
    uint32_t n = c->n_costs;
    uint64_t last = c->result_us;
    c->result_us = now;
    uint64_t since = step->issued_us > last ? step->issued_us : last;
    bool full = n == 1 || (step->issued_us <= last && c->next_step - step->number >= n);
    if (!full || now <= since)
        return;
    double seconds = (double)(now - since) * 1e-6;
    double slowest = cost_slowest(c->costs, n, &step->work);
    for (uint32_t s = 0; s < n; s++)
        cost_observe(&c->costs[s], &step->work,
                     seconds * cost_seconds(&c->costs[s], &step->work) / slowest);
}
