#include "worker/beat.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "base/base.h"
#include "proto/proto.h"

#define BEAT_US 150000u

struct beat {
    void *socket; /* the thread's */
    uint64_t epoch, world, begin_us;
    uint32_t rank;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    /* Under the mutex: */
    bool ended, asked;
    uint64_t echo_us, echo_received_us;

    _Atomic uint64_t moved_us, steps, computed, busy_us, memory_free_bytes;
    _Atomic uint32_t queue;
};

static void say(struct beat *beat)
{
    uint64_t now = clock_us(), moved = atomic_load(&beat->moved_us);
    Gptoss__RankHeartbeat m = GPTOSS__RANK_HEARTBEAT__INIT;
    m.rank = beat->rank;
    m.world = beat->world;
    m.up_seconds = (double)(now - beat->begin_us) * 1e-6;
    m.busy_seconds = (double)atomic_load(&beat->busy_us) * 1e-6;
    m.steps = atomic_load(&beat->steps);
    m.computed = atomic_load(&beat->computed);
    m.queue = atomic_load(&beat->queue);
    m.memory_free_bytes = atomic_load(&beat->memory_free_bytes);
    m.quiet_ms = now > moved ? (now - moved) / 1000 : 0;
    pthread_mutex_lock(&beat->mutex);
    m.echo_us = beat->echo_us;
    m.echo_received_us = beat->echo_received_us;
    pthread_mutex_unlock(&beat->mutex);
    m.echo_sent_us = clock_us();
    Gptoss__RankMessage message = GPTOSS__RANK_MESSAGE__INIT;
    message.epoch = beat->epoch;
    message.body_case = GPTOSS__RANK_MESSAGE__BODY_HEARTBEAT;
    message.heartbeat = &m;
    char err[256];
    proto_send(beat->socket, &message.base, err, sizeof err); /* whoever does not hear it, acts */
}

static void *run(void *arg)
{
    struct beat *beat = arg;
    struct timespec at;
    /* It takes no time to speak of, and shall have that on a busy host too. This thread's alone; where it
     * may not be, it is not. */
    (void)setpriority(PRIO_PROCESS, 0, -10);
    clock_gettime(CLOCK_MONOTONIC, &at);
    pthread_mutex_lock(&beat->mutex);
    while (!beat->ended) {
        beat->asked = false;
        pthread_mutex_unlock(&beat->mutex);
        say(beat);
        clock_gettime(CLOCK_MONOTONIC, &at);
        at.tv_nsec += BEAT_US * 1000L;
        at.tv_sec += at.tv_nsec / 1000000000;
        at.tv_nsec %= 1000000000;
        pthread_mutex_lock(&beat->mutex);
        while (!beat->ended && !beat->asked &&
               pthread_cond_timedwait(&beat->wake, &beat->mutex, &at) != ETIMEDOUT)
            ;
    }
    pthread_mutex_unlock(&beat->mutex);
    return NULL;
}

int beat_create(struct beat **out, void *context, const char *endpoint,
                const struct proto_keys *keys, const struct worker_world_info *world,
                uint64_t epoch, char *err, size_t err_size)
{
    *out = NULL;
    struct beat *beat = base_alloc(1, sizeof *beat);
    beat->world = world->id;
    beat->rank = world->rank;
    beat->epoch = epoch;
    beat->begin_us = clock_us();
    atomic_store(&beat->moved_us, beat->begin_us);
    if (proto_connect_with(&beat->socket, NULL, context, endpoint, keys, err, err_size)) {
        free(beat);
        return -1;
    }
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&beat->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&beat->mutex, NULL);
    sigset_t all, before; /* signals are the other threads' */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&beat->thread, NULL, run, beat);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        snprintf(err, err_size, "cannot start a thread: %s", strerror(error));
        proto_close(beat->socket);
        free(beat);
        return -1;
    }
    *out = beat;
    return 0;
}

void beat_destroy(struct beat *beat)
{
    if (beat == NULL)
        return;
    pthread_mutex_lock(&beat->mutex);
    beat->ended = true;
    pthread_cond_signal(&beat->wake);
    pthread_mutex_unlock(&beat->mutex);
    pthread_join(beat->thread, NULL);
    proto_close(beat->socket);
    pthread_cond_destroy(&beat->wake);
    pthread_mutex_destroy(&beat->mutex);
    free(beat);
}

void beat_echo(struct beat *beat, uint64_t sent_us, uint64_t received_us)
{
    if (beat == NULL)
        return;
    pthread_mutex_lock(&beat->mutex);
    beat->echo_us = sent_us;
    beat->echo_received_us = received_us;
    beat->asked = true;
    pthread_cond_signal(&beat->wake);
    pthread_mutex_unlock(&beat->mutex);
}

void beat_note(struct beat *beat, const struct worker_stage_info *info, uint32_t queued,
               uint64_t memory_free_bytes)
{
    if (beat == NULL)
        return;
    atomic_store_explicit(&beat->moved_us, clock_us(), memory_order_relaxed);
    atomic_store_explicit(&beat->memory_free_bytes, memory_free_bytes, memory_order_relaxed);
    if (info == NULL)
        return;
    atomic_store_explicit(&beat->steps, info->steps, memory_order_relaxed);
    atomic_store_explicit(&beat->computed, info->computed, memory_order_relaxed);
    atomic_store_explicit(&beat->busy_us, (uint64_t)(info->busy_seconds * 1e6),
                          memory_order_relaxed);
    atomic_store_explicit(&beat->queue, info->queue + queued, memory_order_relaxed);
}
