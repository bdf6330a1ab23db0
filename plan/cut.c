#include "plan/cut.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

struct search {
    const struct cut *cut;
    const double *prefix; /* [n_stages, n_layers + 1], sums of layer_seconds */
    double *best;         /* [n_stages + 1, n_layers + 1], of the first s stages over i layers */
    uint32_t *from;       /* the same shape: where stage s − 1 begins */
    bool check_memory;
};

static size_t at(const struct search *search, uint32_t stage, uint32_t layer)
{
    return (size_t)stage * (search->cut->n_layers + 1) + layer;
}

static double stage_cost(const struct search *search, uint32_t stage, uint32_t begin, uint32_t end)
{
    const struct cut *cut = search->cut;
    if (search->check_memory && !cut->fits(cut->arg, stage, begin, end - begin))
        return INFINITY;
    const double *prefix = search->prefix + at(search, stage, 0);
    return prefix[end] - prefix[begin] + cut->extra_seconds[stage];
}

/* One pass. With limit < 0 the value of a cut is its largest cost, otherwise the sum of the squares
 * of its costs, none of which may exceed limit. Returns the value of the best cut. */
static double pass(struct search *search, double limit)
{
    uint32_t n_stages = search->cut->n_stages, n_layers = search->cut->n_layers;
    for (uint32_t i = 0; i <= n_layers; i++)
        search->best[at(search, 0, i)] = i == 0 ? 0 : INFINITY;
    for (uint32_t s = 1; s <= n_stages; s++) {
        for (uint32_t end = 0; end <= n_layers; end++) {
            double best = INFINITY;
            uint32_t from = 0;
            for (uint32_t begin = s - 1; begin < end; begin++) {
                double before = search->best[at(search, s - 1, begin)];
                if (!(before < best))
                    continue;
                double cost = stage_cost(search, s - 1, begin, end);
                double value = limit < 0 ? fmax(before, cost) : before + cost * cost;
                if (limit >= 0 && cost > limit)
                    value = INFINITY;
                if (value < best) {
                    best = value;
                    from = begin;
                }
            }
            search->best[at(search, s, end)] = best;
            search->from[at(search, s, end)] = from;
        }
    }
    return search->best[at(search, n_stages, n_layers)];
}

int cut_layers(const struct cut *cut, uint32_t *counts)
{
    assert(cut->n_stages >= 1 && cut->n_stages <= cut->n_layers);
    int status = -1;
    size_t cells = ((size_t)cut->n_stages + 1) * ((size_t)cut->n_layers + 1);
    double *prefix = calloc(cells, sizeof *prefix);
    double *best = calloc(cells, sizeof *best);
    uint32_t *from = calloc(cells, sizeof *from);
    if (!prefix || !best || !from)
        goto done;

    for (uint32_t s = 0; s < cut->n_stages; s++) {
        double *sums = prefix + (size_t)s * (cut->n_layers + 1);
        for (uint32_t i = 0; i < cut->n_layers; i++)
            sums[i + 1] = sums[i] + cut->layer_seconds[(size_t)s * cut->n_layers + i];
    }
    struct search search = {
        .cut = cut, .prefix = prefix, .best = best, .from = from, .check_memory = true};
    status = 0;
    double slowest = pass(&search, -1);
    if (isinf(slowest)) {
        status = 1;
        search.check_memory = false;
        slowest = pass(&search, -1);
    }
    /* A little more than the slowest: differences of prefix sums round. */
    pass(&search, slowest * (1 + 1e-9));
    uint32_t end = cut->n_layers;
    for (uint32_t s = cut->n_stages; s > 0; s--) {
        uint32_t begin = from[at(&search, s, end)];
        counts[s - 1] = end - begin;
        end = begin;
    }
    assert(end == 0);
done:
    free(from);
    free(best);
    free(prefix);
    return status;
}
