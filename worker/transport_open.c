#include "worker/transport_open.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/base.h"

#define QUICK_US 10000 /* looks follow each other closely for so long */

int transport_wait(const struct transport_edge *edge,
                   int (*poll)(void *arg, char *err, size_t err_size), void *arg, const char *what,
                   char *err, size_t err_size)
{
    const struct transport_options *o = &edge->options;
    uint64_t begin_us = clock_us();
    for (;;) {
        int done = poll(arg, err, err_size);
        if (done)
            return done < 0 ? -1 : 0;
        uint64_t waited_us = clock_us() - begin_us;
        if (o->open_deadline_ms && waited_us > o->open_deadline_ms * 1000) {
            char seconds[32];
            snprintf(err, err_size,
                     "stage %u waited %s for stage %u (rank %u on host %s) to %s the edge %u → %u",
                     edge->self, text_seconds(seconds, (double)waited_us * 1e-6), edge->peer,
                     edge->peer, edge->peer_host, what, o->from, o->to);
            return -1;
        }
        if (o->idle && o->idle(o->arg)) {
            snprintf(err, err_size, "the edge %u → %u was given up", o->from, o->to);
            return -1;
        }
        nanosleep(&(struct timespec){.tv_nsec = waited_us < QUICK_US ? 20000 : 1000000}, NULL);
    }
}

/* ── meeting ───────────────────────────────────────────────────────────────────────────────── */

struct meeting {
    struct transport_edge *out, *in;
    struct transport_transfer sent, received;
    size_t got;
};

static int met(void *arg, char *err, size_t err_size)
{
    struct meeting *m = arg;
    if (m->sent.pending && transport_test(m->out, &m->sent, NULL, err, err_size) < 0)
        return -1;
    if (m->received.pending && transport_test(m->in, &m->received, &m->got, err, err_size) < 0)
        return -1;
    return !m->sent.pending && !m->received.pending;
}

int transport_meet(struct transport_edge *edge, const void *ours, void *theirs, size_t bytes,
                   char *err, size_t err_size)
{
    struct transport_edge *there = NULL, *back = NULL;
    struct transport_options o = edge->options;
    struct meeting m = {.sent = {.what = "handshake"}, .received = {.what = "handshake"}};
    /* MPI may hold these after we gave up: they are then left behind. */
    unsigned char *both = base_alloc(2, bytes);
    memcpy(both, ours, bytes);
    o.stream = NULL;
    o.deadline_ms = 0;
    o.channel = TRANSPORT_THERE;
    if (transport_open(&there, &transport_mpi, &o, err, err_size))
        goto fail;
    o.channel = TRANSPORT_BACK;
    o.from = edge->options.to;
    o.to = edge->options.from;
    if (transport_open(&back, &transport_mpi, &o, err, err_size))
        goto fail;
    edge->sending = there->sending;
    edge->self = there->self;
    edge->peer = there->peer;
    snprintf(edge->peer_host, sizeof edge->peer_host, "%s", there->peer_host);
    m.out = edge->sending ? there : back;
    m.in = edge->sending ? back : there;
    if (transport_send(m.out, &m.sent, both, bytes, err, err_size) ||
        transport_receive(m.in, &m.received, both + bytes, bytes, err, err_size) ||
        transport_wait(edge, met, &m, "open", err, err_size))
        goto fail;
    if (m.got != bytes) {
        snprintf(err, err_size,
                 "the edge %u → %u: stage %u spoke %zu bytes of handshake, expected are %zu: use "
                 "programs of one build",
                 edge->options.from, edge->options.to, edge->peer, m.got, bytes);
        goto fail;
    }
    memcpy(theirs, both + bytes, bytes);
    free(both);
    transport_close(there);
    transport_close(back);
    return 0;

fail:
    transport_close(there);
    transport_close(back);
    return -1;
}

/* ── warming ───────────────────────────────────────────────────────────────────────────────── */

struct warming {
    struct transport_edge *edge;
    struct transport_transfer transfer;
};

static int warmed(void *arg, char *err, size_t err_size)
{
    struct warming *w = arg;
    return transport_test(w->edge, &w->transfer, NULL, err, err_size);
}

int transport_warm(struct transport_edge *edge, void *address, size_t bytes, char *err,
                   size_t err_size)
{
    struct warming *w = base_alloc(1, sizeof *w);
    w->edge = edge;
    w->transfer = (struct transport_transfer){.what = "first transfer", .patient = true};
    int status = edge->sending
                     ? transport_send(edge, &w->transfer, address, bytes, err, err_size)
                     : transport_receive(edge, &w->transfer, address, bytes, err, err_size);
    if (status == 0)
        status = transport_wait(edge, warmed, w, "warm", err, err_size);
    if (status)
        transport_abort(edge);
    free(w);
    return status;
}
