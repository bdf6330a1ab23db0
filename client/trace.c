/* trace: asks for every step of some seconds, keeps what comes, and writes it down. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "client/client.h"

#define STAGES_MAX   4096
#define LATE_SECONDS 3.0 /* after the end, for the last part */

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

/* ── parts ─────────────────────────────────────────────────────────────────────────────────── */

static int take_stages(struct trace *t, const Gptoss__TracePart *part, char *err, size_t err_size)
{
    if (t->n_stages || part->n_stages > STAGES_MAX) {
        snprintf(err, err_size, "the stages came twice, or are more than %d", STAGES_MAX);
        return -1;
    }
    t->stages = base_alloc(part->n_stages, sizeof *t->stages);
    t->n_stages = part->n_stages;
    for (size_t i = 0; i < t->n_stages; i++) {
        const Gptoss__TraceStage *s = part->stages[i];
        t->stages[i] = (struct trace_stage){
            .host = strdup(s->host),
            .device = strdup(s->device),
            .layer_first = s->layer_first,
            .layer_count = s->layer_count,
        };
    }
    return 0;
}

int trace_take(struct trace *t, const Gptoss__TracePart *part, char *err, size_t err_size)
{
    if (part->n_stages && take_stages(t, part, err, err_size))
        return -1;
    for (size_t i = 0; i < part->n_steps; i++) {
        const Gptoss__TraceStep *s = part->steps[i];
        const struct trace_step *before = t->n_steps ? &t->steps[t->n_steps - 1] : NULL;
        if (s->n_at != TRACE_NUMBERS * t->n_stages || (before && s->step <= before->step) ||
            s->issued_us > INT64_MAX || (before && s->issued_us < t->steps[0].issued_us)) {
            snprintf(err, err_size, "step %llu of the trace contradicts what came before",
                     (unsigned long long)s->step);
            return -1;
        }
        if ((t->n_steps + 1) * t->n_stages > TRACE_ENTRIES_MAX) {
            t->full = true;
            break;
        }
        t->steps = base_grow(t->steps, &t->steps_capacity, t->n_steps + 1, sizeof *t->steps);
        t->at = base_grow(t->at, &t->at_capacity, (t->n_steps + 1) * s->n_at, sizeof *t->at);
        if (s->n_at)
            memcpy(t->at + t->n_steps * s->n_at, s->at, s->n_at * sizeof *t->at);
        t->steps[t->n_steps++] = (struct trace_step){
            .step = s->step,
            .issued_us = s->issued_us,
            .kv_read = s->kv_read,
            .done = s->done,
            .rows = s->rows,
            .decode_rows = s->decode_rows,
            .prompt_tokens = s->prompt_tokens,
            .samples = s->samples,
            .in_flight = s->in_flight,
            .full_used = s->kv_full_blocks_used,
            .window_used = s->kv_window_blocks_used,
        };
    }
    t->over |= part->last;
    if (part->last)
        view_clean(&t->why, part->text, strlen(part->text));
    return 0;
}

void trace_free(struct trace *t)
{
    for (size_t i = 0; i < t->n_stages; i++) {
        free(t->stages[i].host);
        free(t->stages[i].device);
    }
    free(t->stages);
    free(t->steps);
    free(t->at);
    text_free(&t->why);
    *t = (struct trace){0};
}

/* ── the conversation ──────────────────────────────────────────────────────────────────────── */

static enum session_end gather(struct session *s, const struct options *o, struct trace *t,
                               char *err, size_t err_size)
{
    Gptoss__ClientMessage message = GPTOSS__CLIENT_MESSAGE__INIT;
    Gptoss__TraceRequest request = GPTOSS__TRACE_REQUEST__INIT;
    request.seconds = o->trace_seconds;
    request.past = o->past;
    message.body_case = GPTOSS__CLIENT_MESSAGE__BODY_TRACE;
    message.trace = &request;
    int unsent = 1;
    double end = clock_seconds() + o->trace_seconds + LATE_SECONDS + o->timeout_seconds;
    while (!t->over && !interrupted) {
        Gptoss__ServerMessage *m = NULL;
        if (unsent != 0 && (unsent = proto_send(s->socket, &message.base, err, err_size)) < 0)
            return SESSION_BROKEN;
        int got = session_next(s, &m, err, err_size);
        if (got < 0)
            return SESSION_BROKEN;
        if (got == 1) {
            int taken = 0;
            if (m->body_case == GPTOSS__SERVER_MESSAGE__BODY_TRACE)
                taken = trace_take(t, m->trace, err, err_size);
            else if (m->body_case == GPTOSS__SERVER_MESSAGE__BODY_REFUSED) {
                snprintf(err, err_size, "refused: %s", m->refused->text);
                taken = -1;
            }
            proto_free(&m->base);
            if (taken)
                return SESSION_BROKEN;
            continue;
        }
        if (clock_seconds() > end) {
            snprintf(err, err_size, "the coordinator at %s did not end the trace: it is lost",
                     o->endpoint);
            return SESSION_LOST;
        }
        zmq_pollitem_t item = {.socket = s->socket, .events = ZMQ_POLLIN};
        zmq_poll(&item, 1, 200);
    }
    return SESSION_DONE;
}

static int save(const struct options *o, const struct trace *t, char *err, size_t err_size)
{
    bool to_stdout = strcmp(o->output, "-") == 0;
    FILE *out = to_stdout ? stdout : fopen(o->output, "w");
    if (out == NULL) {
        snprintf(err, err_size, "cannot write %s: %s; say where to with -o FILE", o->output,
                 strerror(errno));
        return -1;
    }
    trace_json(out, t);
    bool failed = fflush(out) != 0 || ferror(out);
    if ((!to_stdout && fclose(out) != 0) || failed) {
        snprintf(err, err_size, "cannot write %s: %s", to_stdout ? "stdout" : o->output,
                 strerror(errno));
        return -1;
    }
    return 0;
}

int trace_run(struct session *s, const struct options *o, char *err, size_t err_size)
{
    struct trace t = {0};
    Gptoss__ServerMessage *status = NULL;
    int code = EXIT_COORDINATOR;
    /* Whether anybody is there is known at once, not after the trace's seconds. */
    enum session_end end = session_status(s, o, &status, err, err_size);
    if (end != SESSION_DONE)
        return code;
    proto_free(&status->base);
    struct sigaction handler = {.sa_handler = on_interrupt}, before;
    interrupted = 0;
    sigaction(SIGINT, &handler, &before);
    end = gather(s, o, &t, err, err_size);
    sigaction(SIGINT, &before, NULL);
    /* What came before it was lost is worth having. */
    if (end == SESSION_DONE || t.n_steps > 0) {
        char why[256];
        code = end == SESSION_DONE ? EXIT_DONE : EXIT_COORDINATOR;
        if (save(o, &t, why, sizeof why)) {
            snprintf(err, err_size, "%s", why);
            code = EXIT_FAILED;
        } else {
            fprintf(stderr,
                    "%s: %zu steps on %zu stages%s%s%s; open it at https://ui.perfetto.dev\n",
                    strcmp(o->output, "-") == 0 ? "stdout" : o->output, t.n_steps, t.n_stages,
                    t.why.size ? ", " : "", t.why.size ? t.why.bytes : "",
                    t.full ? ", all that there is room for" : "");
        }
    }
    trace_free(&t);
    return code;
}
