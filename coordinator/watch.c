/*
 * watch: which rank must be given up, and what is said of it: one that is silent, one that does not move
 * while it loads, one that holds up a step for longer than is predicted.
 */
#include "coordinator/core.h"

#include <stdio.h>

const char *watch_name(const struct coordinator *c, const struct rank *rank, char name[128])
{
    int n = snprintf(name, 128, "rank %u", (unsigned)(rank - c->world.ranks));
    if (rank->host[0])
        n += snprintf(name + n, 128 - (size_t)n, " on %s", rank->host);
    if (rank->pid)
        snprintf(name + n, 128 - (size_t)n, " (pid %u)", rank->pid);
    return name;
}

void watch_signs(const struct coordinator *c, const struct rank *rank, uint64_t now, char *text,
                 size_t text_size)
{
    char heard[32], step[32] = "no step";
    if (c->world.state == WORLD_SERVING && c->oldest_step < c->next_step) {
        uint64_t at = rank->computed < c->oldest_step ? c->oldest_step : rank->computed + 1;
        if (at < c->next_step)
            snprintf(step, sizeof step, "step %llu", (unsigned long long)at);
    }
    text_seconds(heard, (double)(now - (rank->heard_us < now ? rank->heard_us : now)) * 1e-6);
    snprintf(text, text_size, "; it was at %s, its last sign of life is %s old",
             c->world.state == WORLD_SERVING   ? step
             : c->world.state == WORLD_LOADING ? "loading"
                                               : "joining",
             heard);
}

#define QUIET_MS 500 /* a thread that runs steps and has not moved for so long is stuck */

/* Who holds up the oldest step: whose thread does not move, or the first stage that has not computed it. */
static const struct rank *holder(const struct coordinator *c)
{
    for (uint32_t i = 0; i < c->world.size; i++)
        if (c->world.ranks[i].quiet_ms > QUIET_MS)
            return &c->world.ranks[i];
    for (uint32_t i = 0; i < c->world.size; i++)
        if (c->world.ranks[i].computed < c->oldest_step)
            return &c->world.ranks[i];
    return &c->world.ranks[c->world.size - 1];
}

static const struct step *oldest(const struct coordinator *c)
{
    if (c->world.state != WORLD_SERVING || c->oldest_step == c->next_step)
        return NULL;
    return &c->steps[(c->oldest_step - 1) % c->world.plan->steps_in_flight];
}

/* When the oldest step is to be taken for hung: those in front of it had a right to their own time. */
static uint64_t step_end(const struct coordinator *c, const struct step *step)
{
    uint64_t since = step->issued_us > c->result_us ? step->issued_us : c->result_us;
    double cost = cost_slowest(c->costs, c->n_costs, &step->work) * c->n_costs * CORE_SECOND;
    uint64_t most = c->options.step_deadline_us;
    return since + CORE_LATE_TIMES * c->late_us +
           patience_limit(&c->patience, patience_work(&step->work),
                          cost > 0 && cost < (double)most ? (uint64_t)cost : 0, most);
}

bool watch_judge(struct coordinator *c, uint64_t now)
{
    char name[128], seconds[32];
    if (c->world.state == WORLD_JOINING && now > c->world.since_us &&
        now - c->world.since_us > CORE_JOINING_US) {
        ranks_lose(c, NULL, now, "not all of the %u ranks have joined after %llu s", c->world.size,
                   (unsigned long long)((now - c->world.since_us) / CORE_SECOND));
        return true;
    }
    for (uint32_t i = 0; i < c->world.size; i++) {
        const struct rank *rank = &c->world.ranks[i];
        bool seen = rank->seen_us && now - rank->seen_us < CORE_SEEN_US;
        uint64_t limit = c->options.silence_us + CORE_LATE_TIMES / 2 * c->late_us;
        if (seen && limit < CORE_STARVED_US)
            limit = CORE_STARVED_US;
        if (rank->here && rank->silent_us > limit) {
            ranks_lose(c, rank, now,
                       "%s has been silent for %s: it hangs, was stopped, or is cut off",
                       watch_name(c, rank, name),
                       text_seconds(seconds, (double)rank->silent_us / CORE_SECOND));
            return true;
        }
        if (c->world.state == WORLD_LOADING && rank->quiet_ms > CORE_LOADING_US / 1000) {
            ranks_lose(c, rank, now, "%s has not moved for %llu s while it loads",
                       watch_name(c, rank, name), (unsigned long long)(rank->quiet_ms / 1000));
            return true;
        }
    }
    const struct step *step = oldest(c);
    if (step && now > step_end(c, step)) {
        const struct rank *rank = holder(c);
        patience_verdict(&c->patience);
        ranks_lose(c, rank, now, "%s has not finished step %llu, which is under way for %s",
                   watch_name(c, rank, name), (unsigned long long)step->number,
                   text_seconds(seconds, (double)(now - step->issued_us) / CORE_SECOND));
        return true;
    }
    return false;
}

uint64_t watch_next(const struct coordinator *c, uint64_t now)
{
    if (c->world.state == WORLD_NONE)
        return now + CORE_SECOND;
    const struct step *step = oldest(c);
    uint64_t next = c->heartbeat_us, end = step ? step_end(c, step) + 1 : next;
    return end < next ? end : next;
}

bool watch_ended(struct coordinator *c, int64_t pid, const char *what, uint64_t now)
{
    char name[128];
    for (uint32_t i = 0; i < c->world.size; i++) {
        const struct rank *rank = &c->world.ranks[i];
        if (!rank->here || rank->pid != pid)
            continue;
        ranks_lose(c, rank, now, "%s %s", watch_name(c, rank, name), what);
        return true;
    }
    return false;
}
