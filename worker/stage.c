/*
 * stage: receive → layers → send. The only place where a step is executed.
 *
 * Nothing here waits: worker_stage_progress() looks at every step in flight, from the oldest on, and
 * moves each as far as it goes. What is in order: steps start in order, the device works in order, and
 * messages on one edge arrive in order; so a step that may not go on yet stops those behind it from
 * doing the same thing.
 *
 * Tokens by reference. The last stage sends what a step sampled to stage 0, which stores it on its
 * device (kernels_stage_ring) under the slots' numbers. A step whose row refers to such a token may be
 * queued once the samples of the last earlier step that samples for its slot have been queued for
 * storing: the device's queue keeps the order. With one stage that is right behind the step itself.
 *
 * Stream-ordered edges (nccl, ipc). A step is queued as soon as its header is here: receive, layers,
 * send, on the last stage the ring too, unless the head is cut (its samples pass the hosts); the host then watches for results, deadlines and the lanes' end.
 * The receive of the ring is queued on stage 0 right in front of the first step that refers to it: earlier
 * it would hold up steps that do not. Where none does, it runs beside the stream.
 */
#include "worker/stage.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "base/base.h"

#define SEND_LARGE   4096        /* bytes; MPI may split what is longer into pieces */
#define BESIDE_LARGE (256 << 10) /* bytes: a send that the steps behind it need not wait for */
#define RING_LATE_US 2000        /* after a step: samples that no step has referred to */

/* What those behind may still do in this pass over the lanes. */
struct turn {
    bool start, finish, deliver, store;
    bool moved;
};

static uint32_t lane_index(const struct worker_stage *stage, const struct lane *lane)
{
    return (uint32_t)(lane - stage->lanes);
}

static size_t activation_bytes(const struct worker_stage *stage, const struct lane *lane)
{
    return (size_t)lane->step.view.n_tokens * stage->hidden * sizeof(float);
}

static int receive_input(struct worker_stage *stage, struct lane *lane, char *err, size_t err_size)
{
    return transport_receive(stage->data_in, &lane->input,
                             kernels_stage_input(stage->kernels, lane_index(stage, lane)),
                             activation_bytes(stage, lane), err, err_size);
}

static int send_output(struct worker_stage *stage, struct lane *lane, char *err, size_t err_size)
{
    return transport_send(stage->data_out, &lane->output,
                          kernels_stage_output(stage->kernels, lane_index(stage, lane)),
                          activation_bytes(stage, lane), err, err_size);
}

/* On the last stage: the device sends the samples itself, as soon as it has them. */
static bool ring_follows(const struct worker_stage *stage)
{
    return stage_is_last(stage) && stage_ordered(stage->ring_out) && stage->head.n_jobs == 0;
}

static int send_ring(struct worker_stage *stage, struct lane *lane, char *err, size_t err_size)
{
    /* Nothing that comes behind waits for it to be taken. */
    lane->ring.beside = true;
    /* Of a cut head: made on another stream, and what is queued on the stage's may wait for this send:
     * the input of a step whose tokens these are. */
    lane->ring.ready = !ring_follows(stage);
    return transport_send(stage->ring_out, &lane->ring,
                          kernels_stage_sampled(stage->kernels, lane_index(stage, lane)),
                          lane->step.view.n_samples * sizeof(int32_t), err, err_size);
}

static int receive_ring(struct worker_stage *stage, struct lane *lane, bool beside, char *err,
                        size_t err_size)
{
    lane->ring.beside = beside;
    return transport_receive(stage->ring_in, &lane->ring,
                             kernels_stage_sampled(stage->kernels, lane_index(stage, lane)),
                             lane->step.view.n_samples * sizeof(int32_t), err, err_size);
}

/* ── taking a step ─────────────────────────────────────────────────────────────────────────── */

/* The step has a lane: tell the next stage, make room for the activations. */
static int accept_step(struct worker_stage *stage, struct lane *lane, char *err, size_t err_size)
{
    uint64_t step = lane->step.number;
    lane->state = LANE_WAITING;
    lane->header.step = lane->input.step = lane->output.step = lane->ring.step = step;
    lane->output.beside = activation_bytes(stage, lane) > BESIDE_LARGE;
    lane->ring_due = false;
    lane->head_left = head_due(&stage->head, lane->step.view.n_samples);
    lane->times = (struct times_step){.step = step, .received_us = clock_us()};
    stage->accepted = step;
    if (stage->headers_out && transport_send(stage->headers_out, &lane->header, lane->step.bytes,
                                             lane->step.size, err, err_size))
        return -1;
    if (stage->data_in && !stage_ordered(stage->data_in))
        return receive_input(stage, lane, err, err_size);
    return 0;
}

/* Stage 0: who samples what, and what the step waits for. In the order of the rows: a row may refer to
 * what an earlier step sampled, not to what this one does. */
static int note_references(struct worker_stage *stage, struct lane *lane, char *err,
                           size_t err_size)
{
    const struct kernels_step *view = &lane->step.view;
    uint32_t token = 0, sample = 0;
    lane->refers_to = 0;
    for (uint32_t i = 0; i < view->n_rows; i++) {
        const struct kernels_row *row = &view->rows[i];
        if (view->tokens[token] == KERNELS_TOKEN_SAMPLED) {
            uint64_t by = row->restart ? 0 : stage->sampled_by[row->slot];
            if (by == 0) {
                snprintf(err, err_size,
                         "step %" PRIu64 ", row %u: no token has been sampled for slot %u yet",
                         lane->step.number, i, row->slot);
                return -1;
            }
            lane->refers_to = by > lane->refers_to ? by : lane->refers_to;
        }
        token += row->count;
    }
    /* From here on nothing is refused. */
    for (uint32_t i = 0; i < view->n_rows; i++) {
        const struct kernels_row *row = &view->rows[i];
        if (row->restart)
            stage->sampled_by[row->slot] = 0;
        for (uint32_t t = row->sample_from; t < row->count; t++)
            lane->sampled_slots[sample++] = row->slot;
        if (row->sample_from < row->count)
            stage->sampled_by[row->slot] = lane->step.number;
    }
    return 0;
}

int worker_stage_submit(struct worker_stage *stage, const Gptoss__Step *message, char *err,
                        size_t err_size)
{
    assert(stage_is_first(stage));
    struct lane *lane = stage_lane(stage, stage->accepted + 1);
    if (lane->state != LANE_FREE)
        return 1;
    if (message->step != stage->accepted + 1) {
        snprintf(err, err_size, "step %" PRIu64 " came after step %" PRIu64, message->step,
                 stage->accepted);
        return -1;
    }
    if (step_from_message(&lane->step, message, &stage->bounds, stage->epoch, err, err_size) ||
        note_references(stage, lane, err, err_size))
        return -1;
    return accept_step(stage, lane, err, err_size);
}

/* The next step's header from the stage before. 1: a step was taken. */
static int receive_header(struct worker_stage *stage, char *err, size_t err_size)
{
    if (stage->headers_in == NULL)
        return 0;
    struct lane *lane = stage_lane(stage, stage->accepted + 1);
    if (!stage->header.pending) {
        if (lane->state != LANE_FREE)
            return 0;
        stage->header.step = stage->accepted + 1;
        if (transport_receive(stage->headers_in, &stage->header, lane->step.bytes,
                              step_bytes_max(&stage->bounds), err, err_size))
            return -1;
    }
    int done = transport_test(stage->headers_in, &stage->header, &lane->step.size, err, err_size);
    if (done <= 0)
        return done;
    switch (step_decode(&lane->step, &stage->bounds, stage->epoch, err, err_size)) {
    case STEP_STALE: return 1;
    case STEP_BAD: return -1;
    case STEP_OK: break;
    }
    if (lane->step.number != stage->accepted + 1) {
        snprintf(err, err_size, "step %" PRIu64 " came after step %" PRIu64, lane->step.number,
                 stage->accepted);
        return -1;
    }
    return accept_step(stage, lane, err, err_size) ? -1 : 1;
}

/* ── running it ────────────────────────────────────────────────────────────────────────────── */

/* Stage 0: the step's samples are in the lane's buffer, or will be in the order of the stream. */
static int store_samples(struct worker_stage *stage, struct lane *lane, char *err, size_t err_size)
{
    lane->ring_due = false;
    stage->stored = lane->step.number;
    return kernels_stage_ring(stage->kernels, lane_index(stage, lane), lane->sampled_slots,
                              lane->step.view.n_samples, err, err_size);
}

/* Stage 0: queues the receive and storing of what was sampled by steps up to `last`. 1, or 0: one of
 * these steps is still being computed here, or its samples come beside the stream. */
static int queue_rings(struct worker_stage *stage, uint64_t last, char *err, size_t err_size)
{
    for (uint64_t step = stage->stored + 1; step <= last; step++) {
        struct lane *lane = stage_lane(stage, step);
        if (lane->step.number != step || !lane->ring_due)
            continue;
        if (lane->state != LANE_SENDING || lane->ring.pending)
            return 0;
        if (receive_ring(stage, lane, false, err, err_size) ||
            store_samples(stage, lane, err, err_size))
            return -1;
    }
    return 1;
}

/* Whether what the step reads is there, or will be in the order of the device's stream. */
static int input_ready(struct worker_stage *stage, struct lane *lane, char *err, size_t err_size)
{
    if (stage_is_first(stage)) {
        if (lane->refers_to <= stage->stored)
            return 1;
        return stage_ordered(stage->ring_in) ? queue_rings(stage, lane->refers_to, err, err_size)
                                             : 0;
    }
    if (stage_ordered(stage->data_in) || !lane->input.pending)
        return 1;
    size_t bytes = 0;
    int done = transport_test(stage->data_in, &lane->input, &bytes, err, err_size);
    if (done == 1 && bytes != activation_bytes(stage, lane)) {
        snprintf(err, err_size,
                 "stage %u sent %zu bytes of activations for step %" PRIu64 ", expected are %zu",
                 stage->index - 1, bytes, lane->step.number, activation_bytes(stage, lane));
        return -1;
    }
    return done;
}

/* The receive of a step's activations, in the stream behind what the step needs besides. */
struct bringing {
    struct worker_stage *stage;
    struct lane *lane;
    int status;
    char *err;
    size_t err_size;
};

static void bring(void *arg)
{
    struct bringing *b = arg;
    b->status = receive_input(b->stage, b->lane, b->err, b->err_size);
}

static int start(struct worker_stage *stage, struct lane *lane, char *err, size_t err_size)
{
    uint32_t index = lane_index(stage, lane);
    struct bringing bringing = {stage, lane, 0, err, err_size};
    struct kernels_step step = lane->step.view;
    lane->running_since_us = lane->times.started_us = clock_us();
    if (stage_ordered(stage->data_in)) {
        step.bring = bring;
        step.bring_arg = &bringing;
    }
    if (kernels_stage_step(stage->kernels, index, &step, err, err_size) || bringing.status)
        return -1;
    lane->state = LANE_RUNNING;
    if (stage_ordered(stage->data_out) && send_output(stage, lane, err, err_size))
        return -1;
    if (lane->step.view.n_samples == 0)
        return 0;
    if (ring_follows(stage))
        return send_ring(stage, lane, err, err_size);
    if (!stage_is_first(stage))
        return 0;
    if (stage_is_last(stage))
        return store_samples(stage, lane, err, err_size);
    lane->ring_due = true;
    return stage_ordered(stage->ring_in) ? 0 : receive_ring(stage, lane, false, err, err_size);
}

static int report(struct worker_stage *stage, const struct lane *lane, char *err, size_t err_size)
{
    const struct kernels_step *view = &lane->step.view;
    uint32_t n = 0;
    for (uint32_t i = 0; i < view->n_rows; i++) {
        const struct kernels_row *row = &view->rows[i];
        for (uint32_t t = row->sample_from; t < row->count; t++, n++) {
            const struct kernels_sample *sample =
                kernels_stage_sample(stage->kernels, lane_index(stage, lane), n);
            Gptoss__Sample *out = &stage->samples[n];
            out->row = i;
            out->position = row->position + t;
            out->token = (uint32_t)sample->token;
            out->logit = sample->logit;
            out->log_sum_exp = sample->log_sum_exp;
            out->n_top_ids = out->n_top_logits = sample->n_top;
            for (uint32_t k = 0; k < sample->n_top; k++) {
                out->top_ids[k] = (uint32_t)sample->top[k].id;
                out->top_logits[k] = sample->top[k].logit;
            }
        }
    }
    stage->result.step = lane->step.number;
    stage->result.n_samples = n;
    return stage->options.result(stage->options.arg, &stage->result, err, err_size);
}

/* The last stage has all samples. The ring first, where the device did not send it: the next token waits
 * for it. */
static int deliver(struct worker_stage *stage, struct lane *lane, char *err, size_t err_size)
{
    lane->state = LANE_SENDING;
    stage->computed = lane->step.number;
    if (stage->ring_out && !ring_follows(stage) && lane->step.view.n_samples &&
        send_ring(stage, lane, err, err_size))
        return -1;
    return report(stage, lane, err, err_size);
}

uint32_t stage_worked(struct worker_stage *stage)
{
    uint64_t before = stage->worked_us;
    stage->worked_us = (uint64_t)(kernels_stage_busy_seconds(stage->kernels) * 1e6);
    return (uint32_t)(stage->worked_us - before);
}

/* The device is done with it: pass it on, where the device did not. */
static int pass_on(struct worker_stage *stage, struct lane *lane, char *err, size_t err_size)
{
    struct transport_edge *const edges[] = {stage->data_in, stage->data_out, stage->ring_in,
                                            stage->ring_out};
    struct times_step *times = &lane->times;
    stage->done_us = times->finished_us = clock_us();
    if (!stage_is_last(stage))
        stage->computed = lane->step.number;
    times->busy_us = stage_worked(stage);
    /* Where the device waits for the input, the step began when it was there. */
    if (stage_ordered(stage_is_first(stage) ? stage->ring_in : stage->data_in) &&
        times->busy_us < times->finished_us - times->started_us)
        times->started_us = times->finished_us - times->busy_us;
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++)
        if (stage_ordered(edges[i]))
            transport_reached(edges[i]);
    lane->state = stage_is_last(stage) ? LANE_HEAD : LANE_SENDING;
    if (stage_is_last(stage) || stage_ordered(stage->data_out))
        return 0;
    return send_output(stage, lane, err, err_size);
}

static int device_done(struct worker_stage *stage, struct lane *lane, char *err, size_t err_size)
{
    int done = kernels_stage_test(stage->kernels, lane_index(stage, lane), err, err_size);
    if (done || stage->step_deadline_ms == 0)
        return done;
    const struct transport_edge *edge = stage_is_first(stage) ? stage->ring_in : stage->data_in;
    uint64_t since =
        lane->running_since_us > stage->done_us ? lane->running_since_us : stage->done_us;
    if (stage_ordered(edge) && edge->moved_us > since)
        since = edge->moved_us;
    uint64_t spent = clock_us() - since;
    if (spent < stage->step_deadline_ms * 1000)
        return 0;
    char seconds[32];
    snprintf(err, err_size,
             "stage %u has computed step %" PRIu64 " for %s, longer than a step may "
             "take",
             stage->index, lane->step.number, text_seconds(seconds, (double)spent * 1e-6));
    return -1;
}

/* One of the lane's transfers. 1: it is not under way, or has just ended. */
static int settled(struct transport_edge *edge, struct transport_transfer *transfer,
                   struct turn *turn, char *err, size_t err_size)
{
    if (!transfer->pending)
        return 1;
    int done = transport_test(edge, transfer, NULL, err, err_size);
    turn->moved |= done == 1;
    return done;
}

/* Whether the first step that is queued has all that it needs from neighbours, as far as they have to
 * tell: until then its time does not count. The transfers have deadlines of their own. */
static int supplied(struct worker_stage *stage, struct lane *lane, struct turn *turn, char *err,
                    size_t err_size)
{
    struct transport_edge *edge = stage->data_in;
    struct transport_transfer *transfer = &lane->input;
    if (stage_is_first(stage) && lane->refers_to) {
        struct lane *by = stage_lane(stage, lane->refers_to);
        edge = by->step.number == lane->refers_to ? stage->ring_in : NULL;
        transfer = &by->ring;
    }
    return stage_ordered(edge) ? settled(edge, transfer, turn, err, err_size) : 1;
}

/* After the device: everything that was posted for the step must end. */
static int settle(struct worker_stage *stage, struct lane *lane, struct turn *turn, char *err,
                  size_t err_size)
{
    int header = settled(stage->headers_out, &lane->header, turn, err, err_size);
    int input = header < 0 ? -1 : settled(stage->data_in, &lane->input, turn, err, err_size);
    int output = input < 0 ? -1 : settled(stage->data_out, &lane->output, turn, err, err_size);
    if (output < 0)
        return -1;
    int ring = 1;
    /* Nobody has referred to its samples: they are taken without holding anybody up. */
    if (turn->store && lane->ring_due && !lane->ring.pending && stage_ordered(stage->ring_in)) {
        if (clock_us() - lane->times.finished_us < RING_LATE_US)
            ring = 0;
        else if (receive_ring(stage, lane, true, err, err_size))
            return -1;
    }
    if (ring && (turn->store || !lane->ring_due))
        ring = settled(stage_is_first(stage) ? stage->ring_in : stage->ring_out, &lane->ring, turn,
                       err, err_size);
    if (ring < 0)
        return -1;
    if (ring && lane->ring_due && turn->store && store_samples(stage, lane, err, err_size))
        return -1;
    turn->store &= !lane->ring_due;
    if (!lane->times.sent_us && (stage_is_last(stage) ? ring : output))
        lane->times.sent_us = clock_us();
    if (!header || !input || !output || !ring || lane->ring_due || lane->head_left)
        return 0;
    int done = kernels_stage_test(stage->kernels, lane_index(stage, lane), err, err_size);
    if (done == 1) {
        lane->state = LANE_FREE;
        turn->moved = true;
    }
    return done < 0 ? -1 : 0;
}

static int advance(struct worker_stage *stage, struct lane *lane, struct turn *turn, char *err,
                   size_t err_size)
{
    int ready;
    if (lane->state == LANE_WAITING && turn->start) {
        if ((ready = input_ready(stage, lane, err, err_size)) < 0)
            return -1;
        if (ready) {
            turn->moved = true;
            if (start(stage, lane, err, err_size))
                return -1;
        }
    }
    turn->start &= lane->state != LANE_WAITING;
    if (lane->state == LANE_RUNNING && turn->finish) {
        if ((ready = supplied(stage, lane, turn, err, err_size)) < 0 ||
            (ready && (ready = device_done(stage, lane, err, err_size)) < 0))
            return -1;
        if (ready) {
            turn->moved = true;
            if (pass_on(stage, lane, err, err_size))
                return -1;
        }
    }
    turn->finish &= lane->state != LANE_WAITING && lane->state != LANE_RUNNING;
    if (lane->state == LANE_HEAD && turn->deliver && lane->head_left == 0) {
        turn->moved = true;
        if (deliver(stage, lane, err, err_size))
            return -1;
    }
    turn->deliver &= lane->state == LANE_SENDING || lane->state == LANE_FREE;
    if (lane->state == LANE_SENDING)
        return settle(stage, lane, turn, err, err_size);
    turn->store &= !lane->ring_due && lane->state != LANE_WAITING;
    return 0;
}

int worker_stage_progress(struct worker_stage *stage, char *err, size_t err_size)
{
    struct turn turn = {.start = true, .finish = true, .deliver = true, .store = true};
    int got;
    while ((got = receive_header(stage, err, err_size)) == 1)
        turn.moved = true;
    if (got < 0)
        return -1;
    for (uint64_t step = stage->oldest; step <= stage->accepted; step++) {
        struct lane *lane = stage_lane(stage, step);
        bool running = lane->state == LANE_RUNNING;
        if (advance(stage, lane, &turn, err, err_size))
            return -1;
        /* The next tokens hang on the head, so it is queued before the layers of the steps behind. */
        if (running && lane->state == LANE_HEAD && lane->head_left &&
            head_progress(stage, &turn.moved, err, err_size))
            return -1;
    }
    if (head_progress(stage, &turn.moved, err, err_size))
        return -1;
    while (stage->oldest <= stage->accepted && stage_lane(stage, stage->oldest)->state == LANE_FREE)
        times_note(&stage->times, &stage_lane(stage, stage->oldest++)->times);
    return turn.moved;
}

static void wait_for_edge(const struct worker_stage *stage, const struct transport_edge *edge,
                          struct wait_for *what)
{
    if (edge == NULL)
        return;
    what->belled &= stage->world->can_ring[edge->peer];
    what->transfer |= edge->pending && edge != stage->headers_in;
    if (stage_ordered(edge))
        return;
    /* Large sends of MPI, and copies whose end the host passes on, need it awake. */
    size_t pushed = edge->transport->device_memory ? 0 : SEND_LARGE;
    for (const struct transport_transfer *t = edge->pending; t; t = t->next)
        what->pushing |= t->sending && t->bytes > pushed;
}

void worker_stage_wait(struct worker_stage *stage, int fd, bool moved)
{
    if (moved) {
        wait_moved(&stage->wait);
        return;
    }
    struct transport_edge *const edges[] = {stage->headers_in, stage->headers_out, stage->data_in,
                                            stage->data_out,   stage->ring_in,     stage->ring_out};
    struct wait_for what = {.belled = true};
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++)
        wait_for_edge(stage, edges[i], &what);
    for (uint32_t i = 0; i < stage->head.n_edges; i++) {
        wait_for_edge(stage, stage->head.rows_to[i], &what);
        wait_for_edge(stage, stage->head.reply_to[i], &what);
    }
    for (uint32_t i = 0; i < stage->n_lanes; i++) /* it has no transfer yet: settle() looks */
        what.transfer |= stage->lanes[i].ring_due;
    const int fds[] = {stage->notified, fd, stage->world->bell};
    wait_sleep(&stage->wait, &what, fds, 3);
    uint64_t count;
    (void)!read(stage->notified, &count, sizeof count);
    if (stage->world->bell >= 0 && world_ring_drain(stage->world))
        wait_rung(&stage->wait);
}

const Gptoss__StepTimes *worker_stage_times(struct worker_stage *stage, bool now)
{
    uint64_t now_us = clock_us();
    return now || times_due(&stage->times, now_us) ? times_take(&stage->times, now_us) : NULL;
}

void worker_stage_info(const struct worker_stage *stage, struct worker_stage_info *info)
{
    *info = (struct worker_stage_info){
        .footprint = stage->footprint,
        .load_seconds = stage->load_seconds,
        .steps = stage->oldest - 1,
        .computed = stage->computed,
        .queue = (uint32_t)(stage->accepted + 1 - stage->oldest),
        .busy_seconds = kernels_stage_busy_seconds(stage->kernels),
    };
}
