/*
 * transport_mpi: host memory over MPI, one communicator for all edges.
 *
 * Sender and receiver of an edge are told apart by MPI itself; the tag says the rest: epoch, channel,
 * and whether it is a transfer or one of the two greetings that open the edge (there and back, with the
 * host's name; each carries the whole epoch, of which the tag has only the lower part).
 */
#include <assert.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/base.h"
#include "worker/transport.h"
#include "worker/world.h"

enum tag_kind { TAG_TRANSFER, TAG_GREETING, TAG_ANSWER, TAG_KINDS };

struct greeting {
    uint64_t epoch;
    uint32_t from, to, channel;
    char host[64];
};

struct mpi_edge {
    struct transport_edge edge;
    MPI_Comm comm;
    int tag;
};

static int tag_of(const struct transport_options *o, enum tag_kind kind)
{
    uint64_t epochs = (uint64_t)o->world->tag_max / (TAG_KINDS * TRANSPORT_CHANNELS);
    uint64_t place = (o->epoch % epochs) * TRANSPORT_CHANNELS + o->channel;
    return (int)(place * TAG_KINDS + kind);
}

static int failed(int rc, const struct transport_options *o, const char *what, char *err,
                  size_t err_size)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int size = 0;
    MPI_Error_string(rc, text, &size);
    snprintf(err, err_size, "edge %u → %u: MPI could not %s: %s", o->from, o->to, what, text);
    return -1;
}

/* ── opening ───────────────────────────────────────────────────────────────────────────────── */

static void forget(MPI_Request *request)
{
    if (*request == MPI_REQUEST_NULL)
        return;
    MPI_Cancel(request);
    MPI_Request_free(request);
}

/* Sends ours and receives theirs; the side that opens sends first. */
static int greet(struct transport_edge *edge, struct greeting *ours, struct greeting *theirs,
                 char *err, size_t err_size)
{
    const struct transport_options *o = &edge->options;
    MPI_Comm comm = o->world->comm;
    int peer = (int)edge->peer, rc;
    int tag_out = tag_of(o, edge->sending ? TAG_GREETING : TAG_ANSWER);
    int tag_in = tag_of(o, edge->sending ? TAG_ANSWER : TAG_GREETING);
    MPI_Request requests[2] = {MPI_REQUEST_NULL, MPI_REQUEST_NULL};
    uint64_t begin_us = clock_us();

    if ((rc = MPI_Irecv(theirs, sizeof *theirs, MPI_BYTE, peer, tag_in, comm, &requests[0])) ||
        (rc = MPI_Isend(ours, sizeof *ours, MPI_BYTE, peer, tag_out, comm, &requests[1]))) {
        failed(rc, o, "greet", err, err_size);
        goto fail;
    }
    world_ring(o->world, edge->peer);
    for (;;) {
        int done = 0;
        if ((rc = MPI_Testall(2, requests, &done, MPI_STATUSES_IGNORE))) {
            failed(rc, o, "greet", err, err_size);
            goto fail;
        }
        if (done && theirs->epoch == o->epoch)
            return 0;
        if (done) { /* of an epoch long ago: wait for another */
            rc = MPI_Irecv(theirs, sizeof *theirs, MPI_BYTE, peer, tag_in, comm, &requests[0]);
            if (rc) {
                failed(rc, o, "greet", err, err_size);
                goto fail;
            }
            continue;
        }
        uint64_t waited_us = clock_us() - begin_us;
        if (o->open_deadline_ms && waited_us > o->open_deadline_ms * 1000) {
            char seconds[32];
            snprintf(err, err_size,
                     "stage %u waited %s for stage %u (rank %u) to open the edge %u → %u",
                     edge->self, text_seconds(seconds, (double)waited_us * 1e-6), edge->peer,
                     edge->peer, o->from, o->to);
            goto fail;
        }
        if (o->idle && o->idle(o->arg)) {
            snprintf(err, err_size, "the edge %u → %u was given up", o->from, o->to);
            goto fail;
        }
        nanosleep(&(struct timespec){.tv_nsec = waited_us < 10000 ? 100000 : 2000000}, NULL);
    }

fail:
    forget(&requests[0]);
    forget(&requests[1]);
    return -1;
}

static int mpi_open(struct transport_edge **out, const struct transport_options *options, char *err,
                    size_t err_size)
{
    *out = NULL;
    const struct worker_world_info *info = &options->world->info;
    struct mpi_edge *e = base_alloc(1, sizeof *e);
    struct transport_edge *edge = &e->edge;
    edge->transport = &transport_mpi;
    edge->options = *options;
    edge->sending = options->from == info->rank;
    edge->self = info->rank;
    edge->peer = edge->sending ? options->to : options->from;
    e->comm = options->world->comm;
    e->tag = tag_of(options, TAG_TRANSFER);

    /* MPI may still hold their memory after we gave up, so greetings are then left behind. */
    struct greeting *both = base_alloc(2, sizeof *both);
    both[0] = (struct greeting){options->epoch, options->from, options->to, options->channel, ""};
    snprintf(both[0].host, sizeof both[0].host, "%s", info->host);
    if (edge->peer >= info->size) {
        snprintf(err, err_size, "the edge %u → %u leaves the world of %u ranks", options->from,
                 options->to, info->size);
        goto fail;
    }
    if (greet(edge, &both[0], &both[1], err, err_size)) {
        both = NULL;
        goto fail;
    }
    snprintf(edge->peer_host, sizeof edge->peer_host, "%.*s", (int)sizeof both[1].host - 1,
             both[1].host);
    free(both);
    *out = edge;
    return 0;

fail:
    free(both);
    free(e);
    return -1;
}

/* ── transfers ─────────────────────────────────────────────────────────────────────────────── */

/* A transfer's handle is the request: a pointer in Open MPI, an int in MPICH. */
static_assert(sizeof(MPI_Request) <= sizeof(void *), "MPI_Request fits transport_transfer.handle");

static void keep(struct transport_transfer *transfer, MPI_Request request)
{
    memcpy(&transfer->handle, &request, sizeof request);
}

static MPI_Request kept(const struct transport_transfer *transfer)
{
    MPI_Request request;
    memcpy(&request, &transfer->handle, sizeof request);
    return request;
}

static int too_large(const struct transport_edge *edge, size_t bytes, char *err, size_t err_size)
{
    if (bytes <= INT32_MAX)
        return 0;
    snprintf(err, err_size,
             "edge %u → %u: a transfer of %zu bytes is more than MPI counts: give "
             "smaller steps",
             edge->options.from, edge->options.to, bytes);
    return -1;
}

static int mpi_post_send(struct transport_edge *edge, struct transport_transfer *transfer,
                         const void *address, size_t bytes, char *err, size_t err_size)
{
    struct mpi_edge *e = (struct mpi_edge *)edge;
    MPI_Request request;
    if (too_large(edge, bytes, err, err_size))
        return -1;
    int rc = MPI_Isend(address, (int)bytes, MPI_BYTE, (int)edge->peer, e->tag, e->comm, &request);
    if (rc)
        return failed(rc, &edge->options, "send", err, err_size);
    keep(transfer, request);
    world_ring(edge->options.world, edge->peer);
    return 0;
}

static int mpi_post_receive(struct transport_edge *edge, struct transport_transfer *transfer,
                            void *address, size_t bytes, char *err, size_t err_size)
{
    struct mpi_edge *e = (struct mpi_edge *)edge;
    MPI_Request request;
    if (too_large(edge, bytes, err, err_size))
        return -1;
    int rc = MPI_Irecv(address, (int)bytes, MPI_BYTE, (int)edge->peer, e->tag, e->comm, &request);
    if (rc)
        return failed(rc, &edge->options, "receive", err, err_size);
    keep(transfer, request);
    return 0;
}

static int mpi_test(struct transport_edge *edge, struct transport_transfer *transfer, size_t *bytes,
                    char *err, size_t err_size)
{
    MPI_Request request = kept(transfer);
    MPI_Status status;
    int done = 0, count = 0;
    int rc = MPI_Test(&request, &done, &status);
    keep(transfer, request);
    if (rc)
        return failed(rc, &edge->options, transfer->sending ? "send" : "receive", err, err_size);
    if (done && !transfer->sending) {
        MPI_Get_count(&status, MPI_BYTE, &count);
        *bytes = count > 0 ? (size_t)count : 0;
    }
    return done;
}

static void mpi_abort(struct transport_edge *edge)
{
    for (struct transport_transfer *t = edge->pending; t; t = t->next) {
        MPI_Request request = kept(t);
        if (!t->sending && request != MPI_REQUEST_NULL)
            MPI_Cancel(&request);
        if (request != MPI_REQUEST_NULL)
            MPI_Request_free(&request);
    }
}

static void mpi_close(struct transport_edge *edge)
{
    free(edge);
}

const struct transport transport_mpi = {
    .name = "mpi",
    .stream_ordered = false,
    .device_memory = false,
    .open = mpi_open,
    .post_send = mpi_post_send,
    .post_receive = mpi_post_receive,
    .test = mpi_test,
    .abort = mpi_abort,
    .close = mpi_close,
};
