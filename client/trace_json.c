/*
 * trace_json: steps on stages as Chrome's trace events, for Perfetto and chrome://tracing. Process 0 is
 * the coordinator, process s + 1 stage s. On one thread slices never overlap: they are cut where clocks,
 * or the moment at which a host notices its device's end, say otherwise.
 */
#include <stdlib.h>
#include <string.h>

#include "client/client.h"

enum { DEVICE = 1, OUTPUTS = 2 }; /* threads of a stage */

struct writer {
    FILE *out;
    const struct trace *t;
    uint64_t zero_us; /* what times count from */
    bool any;
};

/* When a step was on a stage, µs from zero. */
struct moment {
    bool known;
    int64_t received, started, finished, sent, busy, head_finished, head_busy;
};

static struct moment moment(const struct writer *w, size_t step, size_t stage)
{
    const int32_t *at = w->t->at + (step * w->t->n_stages + stage) * TRACE_NUMBERS;
    struct moment m = {.known = !(at[1] < 0 || at[2] < 0 || at[3] < 0 || at[4] < 0)};
    m.received = (int64_t)(w->t->steps[step].issued_us - w->zero_us) + at[0];
    m.started = m.received + at[1];
    m.finished = m.started + at[2];
    m.sent = m.finished + at[3];
    m.busy = at[4] > 0 ? at[4] : 0;
    m.head_finished = m.finished + (at[5] > 0 ? at[5] : 0);
    m.head_busy = at[6] > 0 ? at[6] : 0;
    return m;
}

static void next(struct writer *w)
{
    fputs(w->any ? ",\n" : "\n", w->out);
    w->any = true;
}

static void meta(struct writer *w, size_t pid, int tid, const char *what, const char *name)
{
    struct text t = {0};
    text_json_string(&t, name, strlen(name));
    next(w);
    fprintf(w->out, "{\"ph\":\"M\",\"pid\":%zu,\"tid\":%d,\"name\":\"%s\",\"args\":{\"name\":%s}}",
            pid, tid, what, t.bytes);
    text_free(&t);
}

static void order(struct writer *w, size_t pid)
{
    next(w);
    fprintf(w->out,
            "{\"ph\":\"M\",\"pid\":%zu,\"tid\":0,\"name\":\"process_sort_index\",\"args\":{\"sort_"
            "index\":%zu}}",
            pid, pid);
}

static const char *kind(const struct trace_step *s)
{
    return s->prompt_tokens == 0 ? "decode" : s->decode_rows == 0 ? "prompt" : "decode + prompt";
}

static void arguments(struct writer *w, const struct trace_step *s)
{
    fprintf(w->out,
            "\"args\":{\"step\":%llu,\"rows\":%u,\"decode_rows\":%u,\"prompt_tokens\":%u,"
            "\"samples\":%u,\"kv_read\":%llu}}",
            (unsigned long long)s->step, s->rows, s->decode_rows, s->prompt_tokens, s->samples,
            (unsigned long long)s->kv_read);
}

static void slice(struct writer *w, size_t stage, int tid, const char *name, int64_t from,
                  int64_t to)
{
    next(w);
    fprintf(w->out,
            "{\"ph\":\"X\",\"pid\":%zu,\"tid\":%d,\"name\":\"%s\",\"ts\":%lld,\"dur\":%lld,",
            stage + 1, tid, name, (long long)from, (long long)(to - from));
}

static void flow(struct writer *w, char phase, size_t step, size_t from_stage, size_t stage,
                 int64_t at)
{
    next(w);
    fprintf(w->out,
            "{\"ph\":\"%c\",%s\"pid\":%zu,\"tid\":%d,\"name\":\"hop\",\"cat\":\"hop\",\"id\":%llu,"
            "\"ts\":%lld}",
            phase, phase == 'f' ? "\"bp\":\"e\"," : "", stage + 1, DEVICE,
            (unsigned long long)(w->t->steps[step].step * w->t->n_stages + from_stage),
            (long long)at);
}

/* Work of the device: a step's layers, or the stage's part of the head for it. */
struct work {
    int64_t end, busy, known; /* known: since when the stage could have begun, but for its inputs */
    size_t step;
    bool head;
};

static int by_end(const void *a, const void *b)
{
    const struct work *x = a, *y = b;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return x->step < y->step ? -1 : x->step > y->step;
}

static void write_work(struct writer *w, size_t stage, const struct work *work, int64_t *free_at)
{
    const struct trace_step *s = &w->t->steps[work->step];
    int64_t begin = work->end - work->busy;
    begin = begin > *free_at ? begin : *free_at;
    begin = begin < work->end ? begin : work->end;
    int64_t idle = work->known > *free_at ? work->known : *free_at;
    if (!work->head && begin > idle) {
        slice(w, stage, DEVICE, "wait for inputs", idle, begin);
        fprintf(w->out, "\"args\":{\"step\":%llu}}", (unsigned long long)s->step);
    }
    slice(w, stage, DEVICE, work->head ? "head" : kind(s), begin, work->end);
    arguments(w, s);
    *free_at = work->end;
    /* Arrows begin and end inside of slices, not on their edges; both ends, or none. */
    if (work->head)
        return;
    if (stage + 1 < w->t->n_stages && moment(w, work->step, stage + 1).known)
        flow(w, 's', work->step, stage, stage, work->end > begin ? work->end - 1 : work->end);
    if (stage > 0 && moment(w, work->step, stage - 1).known)
        flow(w, 'f', work->step, stage - 1, stage, begin);
}

static void write_stage(struct writer *w, size_t stage)
{
    struct work *work = base_alloc(2 * w->t->n_steps + 1, sizeof *work);
    size_t n = 0;
    int64_t free_at = INT64_MIN;
    for (size_t i = 0; i < w->t->n_steps; i++) {
        struct moment m = moment(w, i, stage);
        if (!m.known)
            continue;
        work[n++] = (struct work){m.finished, m.busy, m.received, i, false};
        if (m.head_busy)
            work[n++] = (struct work){m.head_finished, m.head_busy, m.received, i, true};
    }
    qsort(work, n, sizeof *work, by_end);
    for (size_t i = 0; i < n; i++)
        write_work(w, stage, &work[i], &free_at);
    free(work);
    free_at = INT64_MIN;
    for (size_t i = 0; i < w->t->n_steps; i++) {
        struct moment m = moment(w, i, stage);
        if (!m.known)
            continue;
        int64_t from = m.finished > free_at ? m.finished : free_at;
        free_at = m.sent > from ? m.sent : from;
        slice(w, stage, OUTPUTS, "send", from, free_at);
        fprintf(w->out, "\"args\":{\"step\":%llu}}", (unsigned long long)w->t->steps[i].step);
    }
}

/* Steps received and not finished: both come in order, so two fingers walk along. */
static void write_queue(struct writer *w, size_t stage)
{
    size_t in = 0, out = 0, n = w->t->n_steps;
    int64_t depth = 0;
    while (out < n) {
        struct moment next_out = moment(w, out, stage);
        if (!next_out.known) {
            out++;
            in = in > out ? in : out;
            continue;
        }
        while (in < n && !moment(w, in, stage).known)
            in++;
        struct moment next_in = in < n ? moment(w, in, stage) : next_out;
        bool comes = in < n && next_in.received <= next_out.finished;
        depth += comes ? 1 : -1;
        next(w);
        fprintf(w->out,
                "{\"ph\":\"C\",\"pid\":%zu,\"tid\":0,\"name\":\"queue\",\"ts\":%lld,\"args\":{"
                "\"steps\":%lld}}",
                stage + 1, (long long)(comes ? next_in.received : next_out.finished),
                (long long)depth);
        if (comes)
            in++;
        else
            out++;
    }
}

static void write_coordinator(struct writer *w)
{
    meta(w, 0, 0, "process_name", "coordinator");
    order(w, 0);
    for (size_t i = 0; i < w->t->n_steps; i++) {
        const struct trace_step *s = &w->t->steps[i];
        int64_t at = (int64_t)(s->issued_us - w->zero_us);
        next(w);
        fprintf(w->out,
                "{\"ph\":\"C\",\"pid\":0,\"tid\":0,\"name\":\"KV blocks\",\"ts\":%lld,\"args\":{"
                "\"full\":%u,\"window\":%u}},\n"
                "{\"ph\":\"C\",\"pid\":0,\"tid\":0,\"name\":\"steps in flight\",\"ts\":%lld,"
                "\"args\":{\"steps\":%u}}",
                (long long)at, s->full_used, s->window_used, (long long)at, s->in_flight);
        if (s->done == 0)
            continue;
        next(w);
        fprintf(w->out,
                "{\"ph\":\"b\",\"pid\":0,\"tid\":0,\"cat\":\"step\",\"id\":%llu,\"name\":\"%s\","
                "\"ts\":%lld,",
                (unsigned long long)s->step, kind(s), (long long)at);
        arguments(w, s);
        next(w);
        fprintf(w->out,
                "{\"ph\":\"e\",\"pid\":0,\"tid\":0,\"cat\":\"step\",\"id\":%llu,\"name\":\"%s\","
                "\"ts\":%lld}",
                (unsigned long long)s->step, kind(s), (long long)at + s->done);
    }
}

void trace_json(FILE *out, const struct trace *t)
{
    struct writer w = {.out = out, .t = t, .zero_us = t->n_steps ? t->steps[0].issued_us : 0};
    fputs("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[", out);
    write_coordinator(&w);
    for (size_t s = 0; s < t->n_stages; s++) {
        struct text name = {0};
        const struct trace_stage *g = &t->stages[s];
        text_print(&name, "stage %zu: layers %u-%u, %s on %s", s, g->layer_first,
                   g->layer_count ? g->layer_first + g->layer_count - 1 : 0, g->device, g->host);
        meta(&w, s + 1, 0, "process_name", name.bytes);
        order(&w, s + 1);
        meta(&w, s + 1, DEVICE, "thread_name", "device");
        meta(&w, s + 1, OUTPUTS, "thread_name", "outputs");
        text_free(&name);
        write_stage(&w, s);
        write_queue(&w, s);
    }
    fprintf(out, "\n],\"otherData\":{\"program\":\"gptoss %s\",\"steps\":%zu,\"stages\":%zu}}\n",
            GPTOSS_VERSION, t->n_steps, t->n_stages);
}
