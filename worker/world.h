/*
 * world: the ranks of one mpirun. Private to worker/; worker.h is the door.
 */
#ifndef GPTOSS_WORKER_WORLD_H
#define GPTOSS_WORKER_WORLD_H

#include <mpi.h>
#include <stdbool.h>
#include <stdint.h>

#include "worker/worker.h"

struct worker_world {
    struct worker_world_info info;
    MPI_Comm comm; /* ours alone; errors are returned */
    int tag_max;
    /* Doorbells: a rank sleeps in ppoll, and MPI has nothing to poll on. Whoever posted a message to a
     * rank of the same host sends one byte to its datagram socket. A lost byte costs a little time. */
    int bell;       /* ours; -1: none */
    bool *can_ring; /* [size] */
};

void world_ring(struct worker_world *world, uint32_t rank);
bool world_ring_drain(struct worker_world *world); /* whether it rang */

/* processors.c: undoes the binding that mpirun chose without being asked. */
void processors_unbind(void);
/* CPUs that the affinity mask and the control group leave to this process, ≥ 1. */
uint32_t processors_count(void);

#endif
