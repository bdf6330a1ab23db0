#include "worker/head.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/base.h"
#include "worker/stage.h"

/* ── which samples ─────────────────────────────────────────────────────────────────────────── */

/* The step whose samples are the next job's, if it has come so far; else NULL. */
static struct lane *next_lane(struct worker_stage *stage)
{
    struct head *head = &stage->head;
    if (head->step < stage->oldest) {
        head->step = stage->oldest;
        head->first = 0;
    }
    for (; head->step <= stage->accepted; head->step++, head->first = 0) {
        struct lane *lane = stage_lane(stage, head->step);
        if (lane->state == LANE_FREE || (stage_is_last(stage) && lane->state == LANE_SENDING))
            continue; /* without samples, and over */
        if (lane->state != (stage_is_last(stage) ? LANE_HEAD : LANE_SENDING))
            return NULL;
        if (head->first < lane->step.view.n_samples)
            return lane;
    }
    return NULL;
}

/* A slot for the next samples; NULL: none is free, or there are none. */
static struct head_job *next_job(struct worker_stage *stage)
{
    struct head *head = &stage->head;
    struct head_job *job = &head->jobs[head->begun % head->n_jobs];
    struct lane *lane = job->state == HEAD_FREE ? next_lane(stage) : NULL;
    if (!lane)
        return NULL;
    uint32_t left = lane->step.view.n_samples - head->first;
    job->step = head->step;
    job->first = head->first;
    job->count = left < head->rows ? left : head->rows;
    head->first += job->count;
    head->begun++;
    return job;
}

static uint32_t slot_of(const struct worker_stage *stage, const struct head_job *job)
{
    return (uint32_t)(job - stage->head.jobs);
}

static size_t rows_bytes(const struct worker_stage *stage, const struct head_job *job)
{
    return (size_t)job->count * stage->hidden * sizeof(float);
}

static size_t reply_bytes(struct worker_stage *stage, const struct head_job *job, uint32_t s)
{
    return kernels_stage_reply_bytes(stage->kernels, stage->head.parts[s],
                                     &stage_lane(stage, job->step)->step.view, job->first,
                                     job->count);
}

/* ── steps of a job ────────────────────────────────────────────────────────────────────────── */

static int make(struct worker_stage *stage, struct head_job *job, char *err, size_t err_size)
{
    struct lane *lane = stage_lane(stage, job->step);
    job->state = HEAD_MAKING;
    job->since_us = clock_us();
    return kernels_stage_head(stage->kernels, slot_of(stage, job), (uint32_t)(lane - stage->lanes),
                              &lane->step.view, job->first, job->count, err, err_size);
}

static void finish(struct worker_stage *stage, struct head_job *job)
{
    job->state = HEAD_FREE;
    stage_lane(stage, job->step)->head_left -= job->count;
}

/* The device has done some of the job. */
static void note_work(struct worker_stage *stage, const struct head_job *job)
{
    struct times_step *times = &stage_lane(stage, job->step)->times;
    times->head_us += stage_worked(stage);
    times->head_finished_us = clock_us();
}

/* Whether the device is done with what was queued for the job. */
static int device_done(struct worker_stage *stage, const struct head_job *job, char *err,
                       size_t err_size)
{
    int done = kernels_stage_head_test(stage->kernels, slot_of(stage, job), err, err_size);
    if (done || stage->step_deadline_ms == 0)
        return done;
    uint64_t spent = clock_us() - job->since_us;
    if (spent < stage->step_deadline_ms * 1000)
        return 0;
    char seconds[32];
    snprintf(err, err_size,
             "stage %u has computed logits of step %" PRIu64 " for %s, longer than a step may take",
             stage->index, job->step, text_seconds(seconds, (double)spent * 1e-6));
    return -1;
}

/* Whether all bytes have come, once the transfer has ended. */
static int received(struct worker_stage *stage, struct transport_edge *edge,
                    struct transport_transfer *transfer, size_t expected, char *err,
                    size_t err_size)
{
    size_t bytes = 0;
    int done = transport_test(edge, transfer, &bytes, err, err_size);
    if (done != 1 || bytes == expected)
        return done;
    snprintf(err, err_size,
             "stage %u sent %zu bytes of %s for step %" PRIu64 ", stage %u expected %zu",
             edge->peer, bytes, transfer->what, transfer->step, stage->index, expected);
    return -1;
}

/* ── a stage with a part ───────────────────────────────────────────────────────────────────── */

static int expect_rows(struct worker_stage *stage, struct head_job *job, char *err, size_t err_size)
{
    job->state = HEAD_WAITING;
    job->rows->step = job->replies->step = job->step;
    job->rows->patient = true; /* the stages behind this one compute first */
    return transport_receive(*stage->head.rows_to, job->rows,
                             kernels_stage_head_input(stage->kernels, slot_of(stage, job)),
                             rows_bytes(stage, job), err, err_size);
}

/* `replies`: those of all jobs in front have been posted. */
static int advance_part(struct worker_stage *stage, struct head_job *job, bool *replies,
                        bool *moved, char *err, size_t err_size)
{
    struct head *head = &stage->head;
    int done;
    if (job->state == HEAD_WAITING) {
        done = received(stage, *head->rows_to, job->rows, rows_bytes(stage, job), err, err_size);
        if (done < 0 || (done && make(stage, job, err, err_size)))
            return -1;
        *moved |= done;
    }
    if (job->state == HEAD_MAKING && *replies) {
        done = device_done(stage, job, err, err_size);
        if (done < 0)
            return -1;
        if (done) {
            *moved = true;
            note_work(stage, job);
            job->state = HEAD_SENDING;
            if (transport_send(*head->reply_to, job->replies,
                               kernels_stage_head_reply(stage->kernels, slot_of(stage, job), 0),
                               reply_bytes(stage, job, stage->index), err, err_size))
                return -1;
        }
    }
    *replies &= job->state != HEAD_WAITING && job->state != HEAD_MAKING;
    if (job->state == HEAD_SENDING) {
        done = transport_test(*head->reply_to, job->replies, NULL, err, err_size);
        if (done < 0)
            return -1;
        if (done) {
            *moved = true;
            finish(stage, job);
        }
    }
    return 0;
}

/* ── the last stage ────────────────────────────────────────────────────────────────────────── */

static int spread(struct worker_stage *stage, struct head_job *job, char *err, size_t err_size)
{
    struct head *head = &stage->head;
    struct lane *lane = stage_lane(stage, job->step);
    const float *rows = kernels_stage_picked(stage->kernels, (uint32_t)(lane - stage->lanes)) +
                        (size_t)job->first * stage->hidden;
    for (uint32_t s = 0; s < stage->index; s++) {
        if (!head->rows_to[s])
            continue;
        job->rows[s].step = job->replies[s].step = job->step;
        if (transport_send(head->rows_to[s], &job->rows[s], rows, rows_bytes(stage, job), err,
                           err_size) ||
            transport_receive(head->reply_to[s], &job->replies[s],
                              kernels_stage_head_reply(stage->kernels, slot_of(stage, job), s),
                              reply_bytes(stage, job, s), err, err_size))
            return -1;
    }
    return make(stage, job, err, err_size);
}

/* 1: all rows were taken, and all replies are here. */
static int gathered(struct worker_stage *stage, struct head_job *job, bool *moved, char *err,
                    size_t err_size)
{
    struct head *head = &stage->head;
    int all = 1, done;
    for (uint32_t s = 0; s < stage->index; s++) {
        if (job->rows[s].pending) {
            done = transport_test(head->rows_to[s], &job->rows[s], NULL, err, err_size);
            if (done < 0)
                return -1;
            *moved |= done;
            all &= done;
        }
        if (job->replies[s].pending) {
            done = received(stage, head->reply_to[s], &job->replies[s], reply_bytes(stage, job, s),
                            err, err_size);
            if (done < 0)
                return -1;
            *moved |= done;
            all &= done;
        }
    }
    return all;
}

static int advance_whole(struct worker_stage *stage, struct head_job *job, bool *moved, char *err,
                         size_t err_size)
{
    int done;
    if (job->state == HEAD_MAKING) {
        if ((done = gathered(stage, job, moved, err, err_size)) == 1)
            done = device_done(stage, job, err, err_size);
        if (done < 0)
            return -1;
        if (done) {
            *moved = true;
            note_work(stage, job);
            job->state = HEAD_MERGING;
            job->since_us = clock_us();
            if (kernels_stage_merge(stage->kernels, slot_of(stage, job), err, err_size))
                return -1;
        }
    }
    if (job->state == HEAD_MERGING) {
        if ((done = device_done(stage, job, err, err_size)) < 0)
            return -1;
        if (done) {
            *moved = true;
            note_work(stage, job);
            finish(stage, job);
        }
    }
    return 0;
}

int head_progress(struct worker_stage *stage, bool *moved, char *err, size_t err_size)
{
    struct head *head = &stage->head;
    bool last = stage_is_last(stage), replies = true;
    struct head_job *job;
    if (head->n_jobs == 0)
        return 0;
    while ((job = next_job(stage))) {
        *moved = true;
        if (last ? spread(stage, job, err, err_size) : expect_rows(stage, job, err, err_size))
            return -1;
    }
    for (uint64_t n = head->ended; n < head->begun; n++) {
        job = &head->jobs[n % head->n_jobs];
        if (last ? advance_whole(stage, job, moved, err, err_size)
                 : advance_part(stage, job, &replies, moved, err, err_size))
            return -1;
    }
    while (head->ended < head->begun && head->jobs[head->ended % head->n_jobs].state == HEAD_FREE)
        head->ended++;
    return 0;
}

/* ── life ──────────────────────────────────────────────────────────────────────────────────── */

int head_open(struct worker_stage *stage, char *err, size_t err_size)
{
    struct head *head = &stage->head;
    uint32_t last = stage->count - 1;
    for (uint32_t s = 0; s < last; s++) {
        if (head->n_jobs == 0 || head->parts[s] == 0 || (stage->index != s && stage->index != last))
            continue;
        uint32_t at = stage->index == last ? s : 0;
        if (stage_open_edge(stage, &head->rows_to[at], &transport_mpi, last, s, TRANSPORT_HEAD, err,
                            err_size) ||
            stage_open_edge(stage, &head->reply_to[at], &transport_mpi, s, last, TRANSPORT_HEAD,
                            err, err_size))
            return -1;
    }
    return 0;
}

void head_close(struct head *head)
{
    for (uint32_t s = 0; s < head->n_edges; s++) {
        transport_close(head->rows_to[s]);
        transport_close(head->reply_to[s]);
        head->rows_to[s] = head->reply_to[s] = NULL;
    }
}

int head_init(struct head *head, uint32_t n_edges, uint32_t n_jobs, uint32_t rows)
{
    head->rows_to = calloc(n_edges, sizeof(struct transport_edge *));
    head->reply_to = calloc(n_edges, sizeof(struct transport_edge *));
    head->jobs = calloc(n_jobs, sizeof *head->jobs);
    if (!head->rows_to || !head->reply_to || !head->jobs)
        return -1;
    head->n_edges = n_edges;
    head->n_jobs = n_jobs;
    head->rows = rows;
    head->step = 1;
    for (uint32_t i = 0; i < n_jobs; i++) {
        struct head_job *job = &head->jobs[i];
        job->rows = calloc(n_edges, sizeof *job->rows);
        job->replies = calloc(n_edges, sizeof *job->replies);
        if (!job->rows || !job->replies)
            return -1;
        for (uint32_t s = 0; s < n_edges; s++) {
            job->rows[s].what = "rows for the head";
            job->replies[s].what = "logits";
        }
    }
    return 0;
}

void head_free(struct head *head)
{
    for (uint32_t i = 0; head->jobs && i < head->n_jobs; i++) {
        free(head->jobs[i].rows);
        free(head->jobs[i].replies);
    }
    free(head->jobs);
    free(head->rows_to);
    free(head->reply_to);
    free(head->parts);
}
