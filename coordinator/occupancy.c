/*
 * occupancy: how full the pipeline was, from when each step was where. The one place where bubbles and
 * hops are computed.
 */
#include <stdbool.h>

#include "coordinator/coordinator.h"

int coordinator_take_times(const Gptoss__StepTimes *m, int64_t offset_us, uint64_t newest,
                           struct coordinator_stage_step *ring, size_t kept, uint64_t *last)
{
    size_t n = m->n_received;
    bool head = m->n_head_busy > 0;
    if (n == 0 || m->n_started != n || m->n_finished != n || m->n_sent != n || m->n_busy != n ||
        (head && m->n_head_busy != n) || m->n_head_finished != m->n_head_busy ||
        m->first_step <= *last || m->first_step > newest || n > newest - m->first_step + 1)
        return -1;
    uint64_t at = m->origin_us + (uint64_t)offset_us;
    for (size_t i = 0; i < n; i++) {
        struct coordinator_stage_step *s = &ring[(m->first_step + i) % kept];
        at += m->received[i];
        s->step = m->first_step + i;
        s->received_us = at;
        s->started_us = s->received_us + m->started[i];
        s->finished_us = s->started_us + m->finished[i];
        s->sent_us = s->finished_us + m->sent[i];
        s->busy_us = m->busy[i];
        s->head_us = head ? m->head_busy[i] : 0;
        s->head_finished_us = s->finished_us + (head ? m->head_finished[i] : 0);
    }
    *last = m->first_step + n - 1;
    return 0;
}

/* Time that the device worked on the step, at the end of which it is done: [finished − busy, finished]. */
static uint64_t begun(const struct coordinator_stage_step *s)
{
    return s->finished_us > s->busy_us ? s->finished_us - s->busy_us : 0;
}

/* How much of begin … end is within from … to. */
static uint64_t overlap(uint64_t begin, uint64_t end, uint64_t from, uint64_t to)
{
    begin = begin > from ? begin : from;
    end = end < to ? end : to;
    return end > begin ? end - begin : 0;
}

static const struct coordinator_stage_step *at(const struct coordinator_stage_step *ring,
                                               size_t kept, uint64_t step)
{
    const struct coordinator_stage_step *s = step ? &ring[step % kept] : NULL;
    return s && s->step == step ? s : NULL;
}

/* From the device's end on one stage until the next stage has the inputs. False: not to be seen. */
static bool hop(const struct coordinator_stage_step *from, const struct coordinator_stage_step *to,
                const struct coordinator_stage_step *to_before, uint64_t *us)
{
    uint64_t arrived = to->started_us;
    if (arrived < from->finished_us) {
        /* It was queued before its inputs were there (edges ordered by the device's stream): they had
         * come when the device began, which says something only if it had been idle. */
        arrived = begun(to);
        if (arrived < from->finished_us || (to_before && to_before->finished_us >= arrived))
            return false;
    }
    *us = arrived - from->finished_us;
    return true;
}

void coordinator_occupancy(struct coordinator_occupancy *out,
                           const struct coordinator_stage_step *const *stages, size_t kept,
                           const uint64_t *last, const uint64_t *until_us, uint32_t n_stages,
                           uint64_t from_us, uint64_t to_us)
{
    double *busy = out->busy, *hops = out->hop_seconds;
    *out = (struct coordinator_occupancy){.busy = busy, .hop_seconds = hops};
    if (n_stages == 0)
        return;
    uint64_t first = 0;
    for (uint32_t s = 0; s < n_stages; s++) {
        busy[s] = hops[s] = 0;
        to_us = until_us && until_us[s] < to_us ? until_us[s] : to_us;
        uint64_t oldest = last[s] >= kept ? last[s] - kept + 1 : 1;
        first = oldest > first ? oldest : first;
    }
    if (first > 1)
        for (uint32_t s = 0; s < n_stages; s++) {
            const struct coordinator_stage_step *oldest = at(stages[s], kept, first);
            if (oldest && oldest->finished_us > from_us)
                from_us = oldest->finished_us;
        }
    if (to_us <= from_us)
        return;
    out->seconds = (double)(to_us - from_us) * 1e-6;
    double busy_all = 0, hop_all = 0;
    for (uint32_t s = 0; s < n_stages; s++) {
        uint64_t worked = 0, n_hops = 0, hop_us = 0;
        for (uint64_t step = last[s]; step && last[s] - step < kept; step--) {
            const struct coordinator_stage_step *this = at(stages[s], kept, step);
            if (!this)
                continue; /* never told */
            if (this->finished_us <= from_us && this->head_finished_us <= from_us)
                break;
            worked += overlap(begun(this), this->finished_us, from_us, to_us) +
                      overlap(this->head_finished_us - this->head_us, this->head_finished_us,
                              from_us, to_us);
            if (this->finished_us <= from_us)
                continue;
            if (this->finished_us > to_us)
                continue;
            out->steps += s == 0;
            const struct coordinator_stage_step *before = s ? at(stages[s - 1], kept, step) : NULL;
            uint64_t us;
            if (before && hop(before, this, at(stages[s], kept, step - 1), &us)) {
                hop_us += us;
                n_hops++;
            }
        }
        busy[s] = (double)worked * 1e-6 / out->seconds;
        busy[s] = busy[s] < 1 ? busy[s] : 1;
        busy_all += busy[s];
        hops[s] = n_hops ? (double)hop_us * 1e-6 / (double)n_hops : 0;
        hop_all += (double)hop_us * 1e-6;
        out->hops += n_hops;
    }
    out->bubble = 1 - busy_all / n_stages;
    out->hop_mean_seconds = out->hops ? hop_all / (double)out->hops : 0;
}
