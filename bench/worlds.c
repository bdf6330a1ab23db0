/*
 * worlds: one pipeline, or as many replicas of one rank, behind the same calls.
 *
 * Replicas are what a user would run instead of a pipeline: each holds the whole model and has its
 * share of the sequences. They are opened one after the other and run at the same time, a thread each;
 * a test takes as long as the slowest of them. While other worlds run, a thread keeps this one's ranks
 * in touch.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/bench.h"

struct replica {
    struct bench_world *owner;
    struct bench_world_options options;
    void *world;

    /* The run under way. */
    struct bench_test test; /* no sequences: it sits this one out */
    uint64_t seed;
    struct bench_sample sample;
    int status;
    char err[512];
    pthread_t thread;
};

struct bench_world {
    const struct bench_driver *driver;
    uint32_t n;               /* of parts: 1, or the number of replicas */
    struct replica *replicas; /* [n] */
    uint32_t n_open;          /* of them; under in_use */
    atomic_uint running;      /* replicas that have not ended the run under way */

    pthread_t keeper;
    bool kept;              /* there is a keeper */
    pthread_mutex_t in_use; /* whoever holds it may call the driver */
    pthread_cond_t ending;
    bool ends;
};

#define KEEP_SECONDS 1 /* between two calls of the driver's idle() */

static void *keep(void *arg)
{
    struct bench_world *world = arg;
    pthread_mutex_lock(&world->in_use);
    while (!world->ends) {
        struct timespec until;
        for (uint32_t i = 0; i < world->n_open; i++)
            world->driver->idle(world->replicas[i].world);
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += KEEP_SECONDS;
        pthread_cond_timedwait(&world->ending, &world->in_use, &until);
    }
    pthread_mutex_unlock(&world->in_use);
    return NULL;
}

static uint32_t cpus_here(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? 1 : (uint32_t)CPU_COUNT(&set);
}

static uint32_t gpus_here(void)
{
    uint32_t n = 0;
    char path[32];
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    for (; list && *list; list++)
        n += *list == ',';
    if (list && n)
        return n + 1;
    for (n = 0; n < 64; n++) {
        snprintf(path, sizeof path, "/dev/nvidia%u", n);
        FILE *file = fopen(path, "r");
        if (!file)
            break;
        fclose(file);
    }
    return n ? n : 1;
}

/* What replica i of n gets of what the pipeline's ranks have. */
static void share(struct bench_world_options *options, uint32_t i, uint32_t n)
{
    options->stages = 1;
    options->sequences = (options->sequences + n - 1) / n;
    if (options->threads == 0)
        options->threads = cpus_here() / n ? cpus_here() / n : 1;
    if (strcmp(options->device, "cpu") && strcmp(options->device, "reference"))
        options->gpu = (int)(i % gpus_here());
}

int bench_world_open(struct bench_world **out, const struct bench_driver *driver,
                     const struct bench_world_options *options, bool replicas,
                     struct bench_world_info *info, char *err, size_t err_size)
{
    struct bench_world *world = base_alloc(1, sizeof *world);
    double bandwidth = 0;
    *out = NULL;
    world->driver = driver;
    world->n = replicas ? options->stages : 1;
    world->replicas = base_alloc(world->n, sizeof *world->replicas);
    pthread_mutex_init(&world->in_use, NULL);
    pthread_cond_init(&world->ending, NULL);
    world->kept = driver->idle && pthread_create(&world->keeper, NULL, keep, world) == 0;
    for (uint32_t i = 0; i < world->n; i++) {
        struct replica *replica = &world->replicas[i];
        replica->owner = world;
        replica->options = *options;
        if (replicas)
            share(&replica->options, i, world->n);
        int code = driver->open(&replica->world, &replica->options, info, err, err_size);
        if (code) {
            bench_world_close(world);
            return code;
        }
        bandwidth += info->bandwidth;
        pthread_mutex_lock(&world->in_use);
        world->n_open = i + 1;
        pthread_mutex_unlock(&world->in_use);
    }
    info->bandwidth = bandwidth;
    *out = world;
    return EXIT_DONE;
}

void bench_world_close(struct bench_world *world)
{
    if (!world)
        return;
    if (world->kept) {
        pthread_mutex_lock(&world->in_use);
        world->ends = true;
        pthread_cond_signal(&world->ending);
        pthread_mutex_unlock(&world->in_use);
        pthread_join(world->keeper, NULL);
    }
    for (uint32_t i = 0; i < world->n; i++)
        world->driver->close(world->replicas[i].world);
    free(world->replicas);
    free(world);
}

/* The run, and then the ranks' company until the others have ended theirs. */
static void *run_replica(void *arg)
{
    struct replica *replica = arg;
    struct bench_world *world = replica->owner;
    if (replica->test.sequences)
        replica->status = world->driver->run(replica->world, &replica->test, replica->seed,
                                             &replica->sample, replica->err, sizeof replica->err);
    atomic_fetch_sub(&world->running, 1);
    while (world->driver->idle && atomic_load(&world->running)) {
        world->driver->idle(replica->world);
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    }
    return NULL;
}

static int run_replicas(struct bench_world *world, const struct bench_test *test, uint64_t seed,
                        struct bench_sample *sample, char *err, size_t err_size)
{
    uint32_t first = 0, samples = bench_test_samples(test), started = 0;
    int status = 0;
    atomic_store(&world->running, world->n);
    for (uint32_t i = 0; i < world->n; i++) {
        struct replica *replica = &world->replicas[i];
        uint32_t count = test->sequences / world->n + (i < test->sequences % world->n);
        replica->test = *test;
        replica->test.sequences = count;
        replica->test.sequence_first = test->sequence_first + first;
        replica->seed = seed;
        replica->sample = (struct bench_sample){.ids = sample->ids + (size_t)first * samples};
        replica->status = 0;
        first += count;
        if (pthread_create(&replica->thread, NULL, run_replica, replica)) {
            snprintf(err, err_size, "cannot start a thread for replica %u", i);
            status = -1;
            atomic_fetch_sub(&world->running, world->n - i);
            break;
        }
        started++;
    }
    sample->seconds = sample->tokens = sample->busy = 0;
    for (uint32_t i = 0; i < started; i++) {
        const struct replica *replica = &world->replicas[i];
        pthread_join(replica->thread, NULL);
        if (replica->status && status == 0) {
            snprintf(err, err_size, "replica %u: %s", i, replica->err);
            status = replica->status;
        }
        if (replica->sample.seconds > sample->seconds)
            sample->seconds = replica->sample.seconds;
        sample->tokens += replica->sample.tokens;
        sample->busy =
            sample->busy < 0 || replica->sample.busy < 0 ? -1 : sample->busy + replica->sample.busy;
    }
    return status;
}

int bench_world_run(struct bench_world *world, const struct bench_test *test, uint64_t seed,
                    struct bench_sample *sample, char *err, size_t err_size)
{
    pthread_mutex_lock(&world->in_use);
    int status = world->n == 1 ? world->driver->run(world->replicas[0].world, test, seed, sample,
                                                    err, err_size)
                               : run_replicas(world, test, seed, sample, err, err_size);
    pthread_mutex_unlock(&world->in_use);
    return status;
}
