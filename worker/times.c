#include "worker/times.h"

void times_note(struct times *times, const struct times_step *step)
{
    if (times->count == TIMES_KEPT) {
        times->first++;
        times->count--;
    }
    times->kept[(times->first + times->count++) % TIMES_KEPT] = *step;
}

bool times_due(const struct times *times, uint64_t now_us)
{
    return times->count > TIMES_KEPT / 2 ||
           (times->count && now_us - times->told_us >= TIMES_INTERVAL_US);
}

static uint32_t since(uint64_t from, uint64_t to)
{
    uint64_t passed = to > from ? to - from : 0;
    return passed < UINT32_MAX ? (uint32_t)passed : UINT32_MAX;
}

const Gptoss__StepTimes *times_take(struct times *times, uint64_t now_us)
{
    if (times->count == 0)
        return NULL;
    Gptoss__StepTimes *m = &times->message;
    const struct times_step *s = &times->kept[times->first % TIMES_KEPT];
    uint64_t before = s->received_us;
    bool head = false;
    gptoss__step_times__init(m);
    m->first_step = s->step;
    m->origin_us = before;
    m->sent_us = now_us;
    m->received = times->received;
    m->started = times->started;
    m->finished = times->finished;
    m->sent = times->sent;
    m->busy = times->busy;
    m->head_finished = times->head_finished;
    m->head_busy = times->head_busy;
    size_t n = 0;
    /* A message tells of steps without a gap. */
    for (; times->count && s->step == m->first_step + n; n++) {
        times->received[n] = since(before, s->received_us);
        times->started[n] = since(s->received_us, s->started_us);
        times->finished[n] = since(s->started_us, s->finished_us);
        times->sent[n] = since(s->finished_us, s->sent_us);
        times->busy[n] = s->busy_us;
        times->head_finished[n] = since(s->finished_us, s->head_finished_us);
        times->head_busy[n] = s->head_us;
        head |= s->head_us > 0;
        before = s->received_us;
        times->first++;
        times->count--;
        s = &times->kept[times->first % TIMES_KEPT];
    }
    m->n_received = m->n_started = m->n_finished = m->n_sent = m->n_busy = n;
    m->n_head_finished = m->n_head_busy = head ? n : 0;
    times->told_us = now_us;
    return m;
}
