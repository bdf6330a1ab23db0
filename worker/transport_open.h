/*
 * transport_open: what the backs share while an edge is opened. Private to worker/.
 */
#ifndef GPTOSS_WORKER_TRANSPORT_OPEN_H
#define GPTOSS_WORKER_TRANSPORT_OPEN_H

#include "worker/transport.h"

/* Calls poll again and again until it says 1 or −1 (with a sentence), at most until the edge's
 * open_deadline_ms; its options' idle is called between. `what`, for sentences: "join". 0 or −1. */
int transport_wait(const struct transport_edge *edge,
                   int (*poll)(void *arg, char *err, size_t err_size), void *arg, const char *what,
                   char *err, size_t err_size);

/* Meets the other end over mpi: fills in the edge's sending, self, peer and peer_host, and tells the
 * other end `bytes` bytes while being told as many. */
int transport_meet(struct transport_edge *edge, const void *ours, void *theirs, size_t bytes,
                   char *err, size_t err_size);

/* A first transfer, which makes the back connect what it connects lazily. `address`: `bytes` bytes that
 * may be sent, or received into. */
int transport_warm(struct transport_edge *edge, void *address, size_t bytes, char *err,
                   size_t err_size);

#endif
