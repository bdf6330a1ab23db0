/*
 * launch: `mpirun -np N gptoss-worker` as a child of the coordinator.
 */
#ifndef GPTOSS_COORDINATOR_LAUNCH_H
#define GPTOSS_COORDINATOR_LAUNCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct launch {
    pid_t pid; /* of mpirun, which leads a process group of its own; 0: none runs */
};

/* Starts it: as root, in a container, and with more ranks than cores too. The child dies with us. */
int launch_start(struct launch *l, const char *worker, uint32_t ranks, const char *endpoint,
                 char *err, size_t err_size);
/* Whether it has ended; *code is then its exit code, or 128 + the signal's number. */
bool launch_ended(struct launch *l, int *code);
/* Gives it `seconds` to end by itself, then ends the whole group. */
void launch_stop(struct launch *l, double seconds);

#endif
