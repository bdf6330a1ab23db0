/*
 * transport_ipc_host: device memory between ranks that share one GPU, by CUDA IPC, where the hosts say
 * what has come. A process whose stream waits for another takes turns with that on the GPU (milliseconds
 * for a token, measured), so here nothing is queued before it can run.
 *
 *   receiver                                   sender
 *   post_receive: credit{memory handle,  ───▶  post_send: waits for the credit, opens the memory
 *                 offset, room}                (once for each allocation), copies device to device
 *   test: the note has come              ◀───  note{bytes}, when the copy is done
 *
 * Credits and notes are small messages over transport_mpi, so nothing waits for ever: a transfer that
 * gets no credit, or no note, is late like any other. The sender never writes what was not offered.
 * The copy runs on a stream of the edge's own.
 */
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "worker/transport.h"
#include "worker/world.h"

#define MAPPINGS_MAX 256 /* allocations of the neighbour that are opened: its lanes' buffers */

struct credit {
    cudaIpcMemHandle_t handle;
    uint64_t base;   /* the allocation, as the receiver knows it: tells handles apart */
    uint64_t offset; /* of the buffer in it */
    uint64_t room;
};

/* What a posted transfer needs besides the transfer itself. */
struct ipc_transfer {
    struct transport_transfer credit, note;
    struct credit offer;
    uint64_t bytes; /* the note */
    const void *source;
    cudaEvent_t copied;
    enum { IPC_CREDIT, IPC_COPY, IPC_NOTE } state;
    struct ipc_transfer *next; /* among the free ones */
};

struct ipc_edge {
    struct transport_edge edge;
    struct transport_edge *credits, *notes; /* over mpi: credits run against the edge */
    cudaStream_t stream;
    struct {
        uint64_t base;
        void *address;
    } mappings[MAPPINGS_MAX];
    uint32_t n_mappings;
    struct ipc_transfer *unused;
};

static int failed(const struct transport_edge *edge, const char *what, cudaError_t code, char *err,
                  size_t err_size)
{
    snprintf(err, err_size, "edge %u → %u: CUDA could not %s: %s", edge->options.from,
             edge->options.to, what, cudaGetErrorString(code));
    return -1;
}

static void ipc_close(struct transport_edge *edge)
{
    struct ipc_edge *e = (struct ipc_edge *)edge;
    for (uint32_t i = 0; i < e->n_mappings; i++)
        cudaIpcCloseMemHandle(e->mappings[i].address);
    if (e->stream)
        cudaStreamDestroy(e->stream);
    while (e->unused) {
        struct ipc_transfer *t = e->unused;
        e->unused = t->next;
        if (t->copied)
            cudaEventDestroy(t->copied);
        free(t);
    }
    transport_close(e->credits);
    transport_close(e->notes);
    free(e);
}

static int ipc_open(struct transport_edge **out, const struct transport_options *options, char *err,
                    size_t err_size)
{
    *out = NULL;
    struct ipc_edge *e = base_alloc(1, sizeof *e);
    struct transport_edge *edge = &e->edge;
    edge->transport = &transport_ipc_host;
    edge->options = *options;
    struct transport_options o = *options;
    o.stream = NULL;
    o.channel = TRANSPORT_THERE;
    if (transport_open(&e->notes, &transport_mpi, &o, err, err_size))
        goto fail;
    o.channel = TRANSPORT_BACK;
    o.from = options->to;
    o.to = options->from;
    if (transport_open(&e->credits, &transport_mpi, &o, err, err_size))
        goto fail;
    edge->sending = e->notes->sending;
    edge->self = e->notes->self;
    edge->peer = e->notes->peer;
    snprintf(edge->peer_host, sizeof edge->peer_host, "%s", e->notes->peer_host);
    cudaError_t code = cudaStreamCreateWithFlags(&e->stream, cudaStreamNonBlocking);
    if (code != cudaSuccess) {
        failed(edge, "make a stream", code, err, err_size);
        goto fail;
    }
    *out = edge;
    return 0;
fail:
    ipc_close(edge);
    return -1;
}

static struct ipc_transfer *take(struct ipc_edge *e)
{
    struct ipc_transfer *t = e->unused;
    if (t)
        e->unused = t->next;
    else
        t = base_alloc(1, sizeof *t);
    t->credit = (struct transport_transfer){.what = "offer of a buffer"};
    t->note = (struct transport_transfer){.what = "note that data came"};
    return t;
}

static void give_back(struct ipc_edge *e, struct transport_transfer *transfer)
{
    struct ipc_transfer *t = transfer->handle;
    t->next = e->unused;
    e->unused = t;
    transfer->handle = NULL;
}

/* Where an allocation begins that holds `address`. The runtime API has no call for it. */
static int find_base(const void *address, uint64_t *base)
{
    typedef int (*range_of)(unsigned long long *, size_t *, unsigned long long);
    static range_of get;
    if (!get) {
        void *entry = NULL;
        enum cudaDriverEntryPointQueryResult found;
        if (cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &entry, 12000,
                                             cudaEnableDefault, &found) != cudaSuccess ||
            found != cudaDriverEntryPointSuccess)
            return -1;
        memcpy(&get, &entry, sizeof get);
    }
    unsigned long long start = 0;
    size_t size = 0;
    if (get(&start, &size, (unsigned long long)(uintptr_t)address))
        return -1;
    *base = start;
    return 0;
}

static int ipc_post_receive(struct transport_edge *edge, struct transport_transfer *transfer,
                            void *address, size_t bytes, char *err, size_t err_size)
{
    struct ipc_edge *e = (struct ipc_edge *)edge;
    struct ipc_transfer *t = take(e);
    transfer->handle = t;
    t->note.step = t->credit.step = transfer->step;
    t->note.patient = true; /* the transfer itself is watched */
    if (find_base(address, &t->offer.base)) {
        snprintf(err, err_size, "edge %u → %u: the buffer to receive into is no device memory",
                 edge->options.from, edge->options.to);
        goto fail;
    }
    t->offer.offset = (uint64_t)(uintptr_t)address - t->offer.base;
    t->offer.room = bytes;
    cudaError_t code = cudaIpcGetMemHandle(&t->offer.handle, (void *)(uintptr_t)t->offer.base);
    if (code != cudaSuccess) {
        failed(edge, "share a buffer", code, err, err_size);
        goto fail;
    }
    if (transport_receive(e->notes, &t->note, &t->bytes, sizeof t->bytes, err, err_size) ||
        transport_send(e->credits, &t->credit, &t->offer, sizeof t->offer, err, err_size))
        return -1; /* the edge is lost: what MPI may hold stays */
    return 0;
fail:
    give_back(e, transfer);
    return -1;
}

static int ipc_post_send(struct transport_edge *edge, struct transport_transfer *transfer,
                         const void *address, size_t bytes, char *err, size_t err_size)
{
    struct ipc_edge *e = (struct ipc_edge *)edge;
    struct ipc_transfer *t = take(e);
    transfer->handle = t;
    t->note.step = t->credit.step = transfer->step;
    t->credit.patient = true;
    t->source = address;
    t->bytes = bytes;
    t->state = IPC_CREDIT;
    if (!t->copied) {
        cudaError_t code = cudaEventCreateWithFlags(&t->copied, cudaEventDisableTiming);
        if (code != cudaSuccess) {
            give_back(e, transfer);
            return failed(edge, "make an event", code, err, err_size);
        }
    }
    return transport_receive(e->credits, &t->credit, &t->offer, sizeof t->offer, err, err_size);
}

static void *map(struct ipc_edge *e, const struct credit *offer, char *err, size_t err_size)
{
    for (uint32_t i = 0; i < e->n_mappings; i++)
        if (e->mappings[i].base == offer->base)
            return e->mappings[i].address;
    void *address = NULL;
    if (e->n_mappings == MAPPINGS_MAX) {
        snprintf(err, err_size, "edge %u → %u: the neighbour offers more than %d allocations",
                 e->edge.options.from, e->edge.options.to, MAPPINGS_MAX);
        return NULL;
    }
    cudaError_t code =
        cudaIpcOpenMemHandle(&address, offer->handle, cudaIpcMemLazyEnablePeerAccess);
    if (code != cudaSuccess) {
        failed(&e->edge, "open the neighbour's buffer", code, err, err_size);
        return NULL;
    }
    e->mappings[e->n_mappings].base = offer->base;
    e->mappings[e->n_mappings++].address = address;
    return address;
}

static int test_send(struct ipc_edge *e, struct ipc_transfer *t, char *err, size_t err_size)
{
    struct transport_edge *edge = &e->edge;
    int done;
    size_t bytes = 0;
    switch (t->state) {
    case IPC_CREDIT:
        if ((done = transport_test(e->credits, &t->credit, &bytes, err, err_size)) <= 0)
            return done;
        if (bytes != sizeof t->offer || t->offer.room < t->bytes) {
            snprintf(err, err_size, "edge %u → %u: stage %u offers %llu bytes for %llu",
                     edge->options.from, edge->options.to, edge->peer,
                     (unsigned long long)t->offer.room, (unsigned long long)t->bytes);
            return -1;
        }
        char *to = map(e, &t->offer, err, err_size);
        if (!to)
            return -1;
        cudaError_t code = cudaMemcpyAsync(to + t->offer.offset, t->source, t->bytes,
                                           cudaMemcpyDeviceToDevice, e->stream);
        if (code == cudaSuccess)
            code = cudaEventRecord(t->copied, e->stream);
        if (code != cudaSuccess)
            return failed(edge, "copy to the neighbour", code, err, err_size);
        t->state = IPC_COPY;
        /* fall through */
    case IPC_COPY:
        code = cudaEventQuery(t->copied);
        if (code == cudaErrorNotReady)
            return 0;
        if (code != cudaSuccess)
            return failed(edge, "copy to the neighbour", code, err, err_size);
        if (transport_send(e->notes, &t->note, &t->bytes, sizeof t->bytes, err, err_size))
            return -1;
        t->state = IPC_NOTE;
        /* fall through */
    case IPC_NOTE: return transport_test(e->notes, &t->note, NULL, err, err_size);
    }
    return 0;
}

static int ipc_test(struct transport_edge *edge, struct transport_transfer *transfer, size_t *bytes,
                    char *err, size_t err_size)
{
    struct ipc_edge *e = (struct ipc_edge *)edge;
    struct ipc_transfer *t = transfer->handle;
    int done;
    if (transfer->sending) {
        done = test_send(e, t, err, err_size);
    } else {
        done = 1;
        if (t->note.pending)
            done = transport_test(e->notes, &t->note, NULL, err, err_size);
        if (done == 1 && t->credit.pending)
            done = transport_test(e->credits, &t->credit, NULL, err, err_size);
        *bytes = t->bytes;
    }
    if (done == 1)
        give_back(e, transfer);
    return done;
}

static void ipc_abort(struct transport_edge *edge)
{
    struct ipc_edge *e = (struct ipc_edge *)edge;
    transport_abort(e->credits);
    transport_abort(e->notes);
    cudaStreamSynchronize(e->stream);
    for (struct transport_transfer *t = edge->pending; t; t = t->next)
        if (t->handle)
            give_back(e, t);
}

const struct transport transport_ipc_host = {
    .name = "ipc-host",
    .stream_ordered = false,
    .device_memory = true,
    .open = ipc_open,
    .post_send = ipc_post_send,
    .post_receive = ipc_post_receive,
    .test = ipc_test,
    .abort = ipc_abort,
    .close = ipc_close,
};
