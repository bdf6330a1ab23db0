/*
 * loop: the coordinator's sockets, clock and child, around the pure `struct coordinator`.
 */
#ifndef GPTOSS_COORDINATOR_LOOP_H
#define GPTOSS_COORDINATOR_LOOP_H

#include "coordinator/coordinator.h"
#include "coordinator/journal.h"

struct loop_options {
    const char *clients_endpoint, *workers_endpoint;
    bool insecure;           /* endpoints that others can reach may be bound */
    const char *keys;        /* a folder that keygen made: who connects shows a key; NULL: nobody */
    const char *allow;       /* the allow list; NULL: the folder's */
    struct journal *journal; /* NULL: accepted requests end with this process */
    int client_queue;        /* messages that may wait for one client; 0: the door's default */
    uint32_t launch;         /* ranks to start with mpirun; 0: wait for those that come */
    const char *worker;      /* path of gptoss-worker, for launch */
    double drain_seconds;    /* after SIGINT or SIGTERM, running requests have so long */
    const char *costs;       /* a file for what steps cost, written now and then; NULL: none */
};

/* Serves until a signal ends it. Returns an exit code; `err` says why when it is not EXIT_DONE. */
int loop_run(struct coordinator *c, const struct loop_options *options, char *err, size_t err_size);

#endif
