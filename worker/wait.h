/*
 * wait: how a rank that has nothing to do sleeps.
 *
 * MPI has no descriptor to sleep on. Between ranks of one host a doorbell stands in for it: who posts a
 * send also writes a byte to the receiver's socket. Where there is none, a rank polls, and how often is a
 * bargain: often costs the cores that other ranks compute on (40 µs of a core each time, measured on a
 * virtual machine), seldom costs latency on every hop. Each sleep is then half as long as what was
 * waited already, so that a wait is never lengthened by more than half.
 */
#ifndef GPTOSS_WORKER_WAIT_H
#define GPTOSS_WORKER_WAIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct wait {
    uint64_t moved_us; /* when something last moved */
    uint64_t rung_us;  /* when the doorbell last rang */
};

/* What a sleep is for. */
struct wait_for {
    bool belled;   /* all that may come is announced by the bell */
    bool transfer; /* a transfer is under way */
    bool pushing;  /* a large send is: MPI may need both sides awake to move it piece by piece */
};

void wait_moved(struct wait *wait);
void wait_rung(struct wait *wait);
/* Sleeps a while, at most until a descriptor is readable; those that are −1 are left out. */
void wait_sleep(const struct wait *wait, const struct wait_for *what, const int *fds, size_t n_fds);

#endif
