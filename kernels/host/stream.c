#include "kernels/host/host.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* The stage's stream: one thread that takes work from the queue in order. */

/* How long the stream looks for more work before it sleeps: a step of the pipeline often follows
 * within microseconds, and waking takes some too. */
#define SPIN_NS 20000

/* How long the last stage of a cut head waits, between a step that is sampled and the next, for the
 * job of the head: the next tokens hang on it. The host needs some of that to send the rows to the
 * other stages, and perhaps this very core. */
#define HEAD_WAIT_NS 300000

uint64_t host_clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void ring(struct host_stage *stage, struct host_lane *lane)
{
    for (uint32_t i = 0; i < lane->ring_count; i++)
        stage->slot_token[lane->ring_slots[i]] = lane->sampled[i];
}

static bool has_work(const struct host_queue *queue)
{
    return atomic_load(&queue->put) != atomic_load(&queue->taken);
}

static bool is_empty(const struct host_stage *stage)
{
    return !has_work(&stage->steps) && !has_work(&stage->heads);
}

static void tell(const struct host_stage *stage)
{
    if (stage->base.options.notify)
        stage->base.options.notify(stage->base.options.arg);
}

/* The time is counted before the end is told: who sees the end sees the time. */
static void count_busy(struct host_stage *stage, uint64_t begin)
{
    if (begin)
        atomic_fetch_add(&stage->busy_ns, host_clock_ns() - begin);
}

/* begin: when the stream turned to it; 0: it is a part of a step, which is counted as a whole. */
static void run_job(struct host_stage *stage, uint64_t begin)
{
    struct host_queue *queue = &stage->heads;
    uint64_t at = atomic_load(&queue->taken);
    struct host_job *job = &stage->jobs[queue->entries[at % queue->size].at];
    if (queue->entries[at % queue->size].work == HOST_HEAD)
        host_head_run(stage, job);
    else
        host_merge_run(stage, job);
    count_busy(stage, begin);
    atomic_store(&queue->taken, at + 1);
    atomic_fetch_sub(&job->pending, 1);
}

void host_stream_jobs(struct host_stage *stage)
{
    while (has_work(&stage->heads)) {
        run_job(stage, 0);
        tell(stage);
    }
}

/* Whether a job of the head comes next. */
static bool run_step(struct host_stage *stage, uint64_t begin)
{
    struct host_queue *queue = &stage->steps;
    uint64_t at = atomic_load(&queue->taken);
    struct host_lane *lane = &stage->lanes[queue->entries[at % queue->size].at];
    enum host_work work = queue->entries[at % queue->size].work;
    bool sampled = work == HOST_STEP && stage->base.cut && lane->step.n_samples;
    if (work == HOST_RING)
        ring(stage, lane);
    else if (host_step_run(stage, lane))
        atomic_store(&lane->failed, true);
    count_busy(stage, begin);
    atomic_store(&queue->taken, at + 1);
    atomic_fetch_sub(&lane->pending, 1);
    return sampled;
}

/* Waits for work; false: the stage is being destroyed and the queue is empty. */
static bool wait_for_work(struct host_stage *stage)
{
    uint64_t until = host_clock_ns() + SPIN_NS;
    while (is_empty(stage) && !atomic_load(&stage->quit) && host_clock_ns() < until)
        ;
    if (!is_empty(stage))
        return true;
    pthread_mutex_lock(&stage->mutex);
    atomic_store(&stage->asleep, true);
    while (is_empty(stage) && !atomic_load(&stage->quit))
        pthread_cond_wait(&stage->wake, &stage->mutex);
    atomic_store(&stage->asleep, false);
    pthread_mutex_unlock(&stage->mutex);
    return !is_empty(stage);
}

static void wait_for_head(struct host_stage *stage)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += HEAD_WAIT_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    int status = 0;
    pthread_mutex_lock(&stage->mutex);
    atomic_store(&stage->asleep, true);
    while (!has_work(&stage->heads) && !atomic_load(&stage->quit) && status == 0)
        status = pthread_cond_timedwait(&stage->wake, &stage->mutex, &until);
    atomic_store(&stage->asleep, false);
    pthread_mutex_unlock(&stage->mutex);
}

static void *stream_main(void *arg)
{
    struct host_stage *stage = arg;
    while (wait_for_work(stage)) {
        uint64_t begin = host_clock_ns();
        bool head_follows = false;
        if (has_work(&stage->heads))
            run_job(stage, begin);
        else
            head_follows = run_step(stage, begin);
        tell(stage);
        if (head_follows && has_work(&stage->steps))
            wait_for_head(stage);
    }
    return NULL;
}

static void put(struct host_stage *stage, struct host_queue *queue, uint32_t index,
                enum host_work work)
{
    uint64_t at = atomic_load(&queue->put);
    /* A lane has one step and one ring call under way at most, a job one thing: the door sees to it. */
    assert(at - atomic_load(&queue->taken) < queue->size);
    queue->entries[at % queue->size].work = work;
    queue->entries[at % queue->size].at = index;
    atomic_store(&queue->put, at + 1);
    if (atomic_load(&stage->asleep)) {
        pthread_mutex_lock(&stage->mutex);
        pthread_cond_signal(&stage->wake);
        pthread_mutex_unlock(&stage->mutex);
    }
}

void host_stream_put(struct host_stage *stage, uint32_t lane, enum host_work work)
{
    atomic_fetch_add(&stage->lanes[lane].pending, 1);
    put(stage, &stage->steps, lane, work);
}

void host_stream_put_job(struct host_stage *stage, uint32_t slot, enum host_work work)
{
    atomic_fetch_add(&stage->jobs[slot].pending, 1);
    put(stage, &stage->heads, slot, work);
}

int host_stream_start(struct host_stage *stage, char *err, size_t err_size)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    int status =
        pthread_mutex_init(&stage->mutex, NULL) || pthread_cond_init(&stage->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (status) {
        snprintf(err, err_size, "cannot make the stage's lock");
        return -1;
    }
    stage->mutex_made = true;
    if (pthread_create(&stage->thread, NULL, stream_main, stage)) {
        snprintf(err, err_size, "cannot start the stage's thread: too many processes or threads?");
        return -1;
    }
    stage->thread_made = true;
    return 0;
}

void host_stream_stop(struct host_stage *stage)
{
    if (stage->thread_made) {
        pthread_mutex_lock(&stage->mutex);
        atomic_store(&stage->quit, true);
        pthread_cond_signal(&stage->wake);
        pthread_mutex_unlock(&stage->mutex);
        pthread_join(stage->thread, NULL);
    }
    if (stage->mutex_made) {
        pthread_cond_destroy(&stage->wake);
        pthread_mutex_destroy(&stage->mutex);
    }
}
