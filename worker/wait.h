/*
 * wait: how a rank that has nothing to do sleeps.
 *
 * MPI has no descriptor to sleep on, so a rank polls, and how often is a bargain: often costs the cores
 * that other ranks compute on, seldom costs latency on every hop. Each sleep is as long as half of what
 * was waited already, so that a wait is never lengthened by more than half, from 20 µs up to a bound
 * that depends on what is expected. Descriptors cut a sleep short: the device's, the coordinator's
 * socket, the doorbell of the ranks of this host.
 */
#ifndef GPTOSS_WORKER_WAIT_H
#define GPTOSS_WORKER_WAIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct wait {
    uint64_t quiet_since_us; /* when something last moved */
};

enum wait_expect { WAIT_NOTHING, WAIT_TRANSFER };

void wait_moved(struct wait *wait);
/* Descriptors that are -1 are left out. */
void wait_sleep(struct wait *wait, enum wait_expect expect, const int *fds, size_t n_fds);

#endif
