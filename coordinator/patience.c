#include "coordinator/patience.h"

#define POSITIONS                                                                                  \
    1024 /* positions that attention reads in the time of one token's other work, or less */

void patience_begin(struct patience *p, uint32_t stages)
{
    uint32_t verdicts = p->verdicts;
    if (p->stages != stages)
        *p = (struct patience){.stages = stages, .verdicts = verdicts};
    p->steps = 0;
}

uint64_t patience_work(const struct cost_work *work)
{
    return (uint64_t)(work->tokens + work->full_pairs / POSITIONS);
}

static uint32_t class_of(uint64_t work)
{
    uint32_t class = 0;
    for (; work > 1 && class + 1 < PATIENCE_CLASSES; work >>= 1)
        class ++;
    return class;
}

void patience_learn(struct patience *p, uint64_t work, uint64_t us)
{
    uint64_t *longest = &p->longest_us[class_of(work)];
    *longest -= *longest / 64;
    if (us > *longest)
        *longest = us;
    if (*longest == 0)
        *longest = 1;
    if (p->steps < PATIENCE_FORGIVING && ++p->steps == PATIENCE_FORGIVING)
        p->verdicts = 0;
}

void patience_verdict(struct patience *p)
{
    if (p->verdicts < 16)
        p->verdicts++;
}

/* The longest recent step of that class, or 0 where nothing can be said. */
static uint64_t predict(const struct patience *p, uint32_t class)
{
    for (uint32_t below = 0; below <= class; below++)
        if (p->longest_us[class - below])
            return p->longest_us[class - below] << (below < 20 ? below : 20);
    for (uint32_t above = class + 1; above < PATIENCE_CLASSES; above++)
        if (p->longest_us[above])
            return p->longest_us[above]; /* a smaller one takes no longer */
    return 0;
}

uint64_t patience_limit(const struct patience *p, uint64_t work, uint64_t cost_us, uint64_t most_us)
{
    uint64_t longest = predict(p, class_of(work));
    if (longest == 0)
        return most_us;
    uint64_t predicted = PATIENCE_TIMES * p->stages * longest;
    if (predicted < PATIENCE_TIMES * cost_us)
        predicted = PATIENCE_TIMES * cost_us;
    uint64_t limit = predicted + PATIENCE_MORE_US;
    if (p->steps < PATIENCE_COLD)
        limit += PATIENCE_COLD_US;
    for (uint32_t i = 0; i < p->verdicts && limit < most_us; i++)
        limit *= 4;
    return limit < most_us ? limit : most_us;
}
