#include "kernels/cpu/pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* How long a thread looks out for the next operation before it sleeps: longer than what one thread
 * does alone between two operations of a layer, and than the gap between two steps that follow each
 * other; waking takes as long. Every SPIN_ROUNDS (about a microsecond) it offers its core to whoever
 * else wants to run there: other ranks of a small machine. */
#define SPIN_NS     50000
#define SPIN_ROUNDS 32

#define LINE 64 /* bytes of a cache line: what different threads write lies on different ones */

struct helper {
    struct pool *pool;
    pthread_t thread;
    uint32_t index;
};

struct pool {
    /* Number of the operation in the upper half, tasks taken in the lower: taking tasks and knowing
     * which operation they are of is one atomic step. */
    _Alignas(LINE) _Atomic uint64_t ticket;
    atomic_uint n; /* tasks of the operation */
    _Atomic(void (*)(void *, uint32_t, uint32_t)) task;
    _Atomic(void *) arg;

    _Alignas(LINE) atomic_uint done; /* tasks finished; a futex of the caller */
    atomic_bool caller_sleeps;

    _Alignas(LINE) atomic_uint round; /* operations begun; a futex of the helpers */
    atomic_uint sleepers;
    atomic_bool quit;
    uint32_t n_helpers;
    struct helper helpers[]; /* [n_helpers] */
};

static void futex_wait(atomic_uint *word, unsigned value)
{
    syscall(SYS_futex, (void *)word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word, unsigned count)
{
    syscall(SYS_futex, (void *)word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Looks at the word until it is (or, `equal` false, is no longer) `value`, or SPIN_NS have passed. What
 * it was at last. */
static unsigned spin(atomic_uint *word, unsigned value, bool equal)
{
    uint64_t end = 0;
    for (;;) {
        for (int i = 0; i < SPIN_ROUNDS; i++) {
            unsigned is = atomic_load_explicit(word, memory_order_acquire);
            if ((is == value) == equal)
                return is;
            relax();
        }
        uint64_t now = now_ns();
        if (!end)
            end = now + SPIN_NS;
        else if (now >= end)
            return atomic_load(word);
        sched_yield();
    }
}

/* Takes and runs tasks of operation `number` until there are none left: at first many at a time, so
 * that threads seldom meet at the ticket, then fewer, so that all end together, on cores of any kind. */
static void work(struct pool *pool, uint32_t number, uint32_t thread)
{
    uint32_t parts = 2 * (pool->n_helpers + 1);
    for (;;) {
        uint64_t ticket = atomic_load(&pool->ticket);
        /* Read before the ticket is taken; if the taking succeeds, they were those of its operation,
         * because the next operation begins only when every task of this one is done. */
        uint32_t n = atomic_load(&pool->n);
        void (*task)(void *, uint32_t, uint32_t) = atomic_load(&pool->task);
        void *arg = atomic_load(&pool->arg);
        uint32_t first = (uint32_t)ticket;
        if ((uint32_t)(ticket >> 32) != number || first >= n)
            return;
        uint32_t count = (n - first + parts - 1) / parts;
        if (!atomic_compare_exchange_weak(&pool->ticket, &ticket, ticket + count))
            continue;
        for (uint32_t i = 0; i < count; i++)
            task(arg, first + i, thread);
        if (atomic_fetch_add(&pool->done, count) + count == n && atomic_load(&pool->caller_sleeps))
            futex_wake(&pool->done, 1);
    }
}

static void *helper_main(void *arg)
{
    struct helper *helper = arg;
    struct pool *pool = helper->pool;
    uint32_t seen = 0;
    while (!atomic_load(&pool->quit)) {
        uint32_t round = spin(&pool->round, seen, false);
        if (round == seen) {
            atomic_fetch_add(&pool->sleepers, 1);
            if (!atomic_load(&pool->quit))
                futex_wait(&pool->round, seen);
            atomic_fetch_sub(&pool->sleepers, 1);
            continue;
        }
        seen = round;
        work(pool, round, helper->index);
    }
    return NULL;
}

void pool_run(struct pool *pool, uint32_t n, void (*task)(void *, uint32_t, uint32_t), void *arg)
{
    if (!pool || n <= 1) {
        for (uint32_t i = 0; i < n; i++)
            task(arg, i, 0);
        return;
    }
    /* Close the last operation before its description changes: a helper that still holds the old
     * ticket fails to take from it. */
    uint32_t number = atomic_load(&pool->round) + 1;
    atomic_store(&pool->ticket, (uint64_t)number << 32 | UINT32_MAX);
    atomic_store_explicit(&pool->n, n, memory_order_release);
    atomic_store_explicit(&pool->done, 0, memory_order_release);
    atomic_store_explicit(&pool->task, task, memory_order_release);
    atomic_store_explicit(&pool->arg, arg, memory_order_release);
    atomic_store_explicit(&pool->ticket, (uint64_t)number << 32, memory_order_release);
    atomic_store(&pool->round, number);
    if (atomic_load(&pool->sleepers))
        futex_wake(&pool->round, pool->n_helpers);

    work(pool, number, 0);
    for (uint32_t done = spin(&pool->done, n, true); done != n; done = atomic_load(&pool->done)) {
        atomic_store(&pool->caller_sleeps, true);
        done = atomic_load(&pool->done);
        if (done != n)
            futex_wait(&pool->done, done);
        atomic_store(&pool->caller_sleeps, false);
    }
}

uint32_t pool_threads(const struct pool *pool)
{
    return pool ? pool->n_helpers + 1 : 1;
}

int pool_create(struct pool **out, uint32_t threads, char *err, size_t err_size)
{
    *out = NULL;
    if (threads <= 1)
        return 0;
    struct pool *pool;
    size_t bytes = sizeof *pool + (threads - 1) * sizeof *pool->helpers;
    pool = aligned_alloc(LINE, (bytes + LINE - 1) / LINE * LINE);
    if (pool)
        memset(pool, 0, bytes);
    if (!pool) {
        snprintf(err, err_size, "no memory for a pool of %u threads", threads);
        return -1;
    }
    for (uint32_t i = 0; i < threads - 1; i++) {
        struct helper *helper = &pool->helpers[i];
        helper->pool = pool;
        helper->index = i + 1;
        if (pthread_create(&helper->thread, NULL, helper_main, helper)) {
            snprintf(err, err_size, "cannot start thread %u of %u: ask for fewer", i + 2, threads);
            pool_destroy(pool);
            return -1;
        }
        pool->n_helpers++;
    }
    *out = pool;
    return 0;
}

void pool_destroy(struct pool *pool)
{
    if (!pool)
        return;
    atomic_store(&pool->quit, true);
    atomic_fetch_add(&pool->round, 1);
    futex_wake(&pool->round, UINT32_MAX / 2);
    for (uint32_t i = 0; i < pool->n_helpers; i++)
        pthread_join(pool->helpers[i].thread, NULL);
    free(pool);
}
