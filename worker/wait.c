#include "worker/wait.h"

#include <assert.h>
#include <poll.h>
#include <time.h>

#include "base/base.h"

#define SLEEP_MIN_US      20
#define SLEEP_TRANSFER_US 200  /* most, while a transfer is under way */
#define SLEEP_IDLE_US     1000 /* most, otherwise */
#define FDS_MAX           4

void wait_moved(struct wait *wait)
{
    wait->quiet_since_us = clock_us();
}

void wait_sleep(struct wait *wait, enum wait_expect expect, const int *fds, size_t n_fds)
{
    assert(n_fds <= FDS_MAX);
    struct pollfd polled[FDS_MAX];
    nfds_t n = 0;
    for (size_t i = 0; i < n_fds; i++)
        if (fds[i] >= 0)
            polled[n++] = (struct pollfd){.fd = fds[i], .events = POLLIN};

    uint64_t most = expect == WAIT_TRANSFER ? SLEEP_TRANSFER_US : SLEEP_IDLE_US;
    uint64_t sleep = (clock_us() - wait->quiet_since_us) / 2;
    sleep = sleep < SLEEP_MIN_US ? SLEEP_MIN_US : sleep > most ? most : sleep;
    ppoll(polled, n, &(struct timespec){.tv_nsec = (long)sleep * 1000}, NULL);
}
