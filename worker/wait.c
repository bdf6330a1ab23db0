#include "worker/wait.h"

#include <assert.h>
#include <poll.h>
#include <time.h>

#include "base/base.h"

#define FDS_MAX 4

/* The longest sleeps, and the shortest. */
#define POLL_MIN_US      20
#define POLL_TRANSFER_US 200
#define POLL_IDLE_US     1000
#define BELL_TRANSFER_US 2000
#define BELL_LATE_US     10000 /* each look costs a computing thread its place */
#define BELL_IDLE_US     50000

void wait_moved(struct wait *wait)
{
    wait->moved_us = clock_us();
}

void wait_rung(struct wait *wait)
{
    wait->rung_us = clock_us();
}

static uint64_t between(uint64_t value, uint64_t min, uint64_t max)
{
    return value < min ? min : value > max ? max : value;
}

static uint64_t sleep_us(const struct wait *wait, const struct wait_for *what)
{
    uint64_t now = clock_us();
    if (!what->belled || what->pushing)
        return between((now - wait->moved_us) / 2, POLL_MIN_US,
                       what->transfer ? POLL_TRANSFER_US : POLL_IDLE_US);
    /* The bell may be faster than what it announces. */
    if (wait->rung_us > wait->moved_us)
        return between((now - wait->rung_us) * 2, POLL_MIN_US, BELL_LATE_US);
    return what->transfer ? between((now - wait->moved_us) / 4, BELL_TRANSFER_US, BELL_LATE_US)
                          : BELL_IDLE_US;
}

void wait_sleep(const struct wait *wait, const struct wait_for *what, const int *fds, size_t n_fds)
{
    assert(n_fds <= FDS_MAX);
    struct pollfd polled[FDS_MAX];
    nfds_t n = 0;
    for (size_t i = 0; i < n_fds; i++)
        if (fds[i] >= 0)
            polled[n++] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    ppoll(polled, n, &(struct timespec){.tv_nsec = (long)sleep_us(wait, what) * 1000}, NULL);
}
