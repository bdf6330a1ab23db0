/*
 * pool: threads that share the tasks of one operation at a time. Private to kernels/.
 *
 * pool_run() returns when all its tasks are done. Threads take some tasks at a time, at last one by
 * one; a helper that is late takes none and delays nobody. Between operations helpers look out for the
 * next one for some microseconds, offering their core to others meanwhile, and then sleep: there may be
 * more ranks than cores. They run where their process may (mpirun --bind-to, taskset).
 */
#ifndef GPTOSS_KERNELS_POOL_H
#define GPTOSS_KERNELS_POOL_H

#include <stddef.h>
#include <stdint.h>

struct pool;

/* `threads` counts the caller of pool_run. With 1, *out is NULL, which all functions take. */
int pool_create(struct pool **out, uint32_t threads, char *err, size_t err_size);
void pool_destroy(struct pool *pool);
uint32_t pool_threads(const struct pool *pool);
/* task(arg, i, thread) for every i < n; thread < pool_threads() is the one that runs it. */
void pool_run(struct pool *pool, uint32_t n, void (*task)(void *arg, uint32_t i, uint32_t thread),
              void *arg);

#endif
