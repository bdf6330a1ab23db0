#include "plan/head.h"

#include <string.h>

#include "plan/plan.h"

static const char *const names[] = {
    [PLAN_HEAD_AUTO] = "auto", [PLAN_HEAD_ALL] = "all", [PLAN_HEAD_LAST] = "last"};

const char *plan_head_name(enum plan_head head)
{
    return names[head];
}

int plan_head_of(const char *name, enum plan_head *head)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i], name) == 0) {
            *head = (enum plan_head)i;
            return 0;
        }
    return -1;
}

/* Rows of the output matrix go to the stages in proportion to their bandwidth, in units that keep the
 * order of sums over the vocabulary. The last stage, which samples, has one unit at least. */
void head_cut(uint32_t vocabulary, const double *bandwidth, uint32_t n_stages, uint32_t *counts)
{
    double sum = 0, before = 0;
    uint32_t units = vocabulary / HEAD_UNIT + (vocabulary % HEAD_UNIT != 0), at = 0;
    for (uint32_t s = 0; s < n_stages; s++)
        sum += bandwidth[s];
    for (uint32_t s = 0; s < n_stages; s++) {
        before += bandwidth[s];
        uint32_t end = s + 1 == n_stages ? units : (uint32_t)(before / sum * units + 0.5);
        if (s + 1 < n_stages && end >= units)
            end = units - 1;
        uint64_t first = (uint64_t)at * HEAD_UNIT, last = (uint64_t)end * HEAD_UNIT;
        counts[s] = (uint32_t)((last < vocabulary ? last : vocabulary) - first);
        at = end;
    }
}

void head_whole(uint32_t vocabulary, uint32_t n_stages, uint32_t *counts)
{
    for (uint32_t s = 0; s < n_stages; s++)
        counts[s] = s + 1 == n_stages ? vocabulary : 0;
}
