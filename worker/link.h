/*
 * link: a rank's socket to the coordinator. Messages of another epoch, and such that do not parse, are
 * dropped here.
 */
#ifndef GPTOSS_WORKER_LINK_H
#define GPTOSS_WORKER_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/proto.h"

struct link;

/* keys NULL: the coordinator asks for none. */
int link_create(struct link **out, const char *endpoint, const struct proto_keys *keys, char *err,
                size_t err_size);
/* Waits a little for what was sent to be on its way. NULL is fine. */
void link_destroy(struct link *link);

/* 0 before the coordinator's welcome: then every epoch is heard, and silence is not counted. */
void link_set_epoch(struct link *link, uint64_t epoch);

/* Fills in the epoch. */
int link_send(struct link *link, Gptoss__RankMessage *message, char *err, size_t err_size);
/* 1: *out is the caller's to free with proto_free; 0: nothing there; -1: the socket failed. */
int link_receive(struct link *link, Gptoss__SupervisorMessage **out, char *err, size_t err_size);

/* ZeroMQ's context, for another socket to the same coordinator, closed before the link is. */
void *link_context(struct link *link);
/* Seconds that the coordinator has been silent for; call it after everything was received. */
double link_silence(struct link *link);

/* Why the coordinator does not answer, where the connection tells; else "". */
void link_trouble(struct link *link, char *err, size_t err_size);

/* To sleep on; -1: do not sleep, there is something to receive. */
int link_fd(struct link *link);

#endif
