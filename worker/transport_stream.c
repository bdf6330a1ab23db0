#include "worker/transport_stream.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/base.h"

int stream_edge_failed(const struct transport_edge *edge, const char *what, cudaError_t code,
                       char *err, size_t err_size)
{
    snprintf(err, err_size, "edge %u → %u: CUDA could not %s: %s", edge->options.from,
             edge->options.to, what, cudaGetErrorString(code));
    return -1;
}

int stream_edge_open(struct stream_edge *e, const struct transport *transport,
                     const struct transport_options *options, char *err, size_t err_size)
{
    e->edge.transport = transport;
    e->edge.options = *options;
    cudaError_t code = cudaStreamCreateWithFlags(&e->side, cudaStreamNonBlocking);
    if (code == cudaSuccess)
        code = cudaEventCreateWithFlags(&e->order, cudaEventDisableTiming);
    if (code == cudaSuccess)
        return 0;
    return stream_edge_failed(&e->edge, "make a stream", code, err, err_size);
}

void stream_edge_free(struct stream_edge *e)
{
    while (e->unused) {
        struct stream_event *t = e->unused;
        e->unused = t->next;
        cudaEventDestroy(t->done);
        free(t);
    }
    if (e->order)
        cudaEventDestroy(e->order);
    if (e->side)
        cudaStreamDestroy(e->side);
}

static void give_back(struct stream_edge *e, struct transport_transfer *transfer)
{
    struct stream_event *t = transfer->handle;
    t->next = e->unused;
    e->unused = t;
    transfer->handle = NULL;
}

int stream_edge_enter(struct stream_edge *e, struct transport_transfer *transfer,
                      cudaStream_t *stream, char *err, size_t err_size)
{
    cudaStream_t main = e->edge.options.stream;
    cudaError_t code = cudaSuccess;
    *stream = transfer->beside ? e->side : main;
    transfer->handle = NULL;
    /* Beside: behind what the stage has queued, unless that may not be waited for. Back on its stream:
     * behind what runs beside it. */
    if (transfer->beside ? !transfer->ready : e->beside) {
        code = cudaEventRecord(e->order, transfer->beside ? main : e->side);
        if (code == cudaSuccess)
            code = cudaStreamWaitEvent(*stream, e->order, 0);
    }
    if (code != cudaSuccess)
        return stream_edge_failed(&e->edge, "order a transfer", code, err, err_size);
    e->beside = transfer->beside;
    struct stream_event *t = e->unused;
    if (t) {
        e->unused = t->next;
    } else {
        t = base_alloc(1, sizeof *t);
        if ((code = cudaEventCreateWithFlags(&t->done, cudaEventDisableTiming)) != cudaSuccess) {
            free(t);
            return stream_edge_failed(&e->edge, "make an event", code, err, err_size);
        }
    }
    transfer->handle = t;
    return 0;
}

int stream_edge_leave(struct stream_edge *e, struct transport_transfer *transfer,
                      cudaStream_t stream, size_t bytes, char *err, size_t err_size)
{
    struct stream_event *t = transfer->handle;
    t->bytes = bytes;
    cudaError_t code = cudaEventRecord(t->done, stream);
    if (code != cudaSuccess)
        return stream_edge_failed(&e->edge, "watch a transfer", code, err, err_size);
    return 0;
}

int stream_edge_test(struct stream_edge *e, struct transport_transfer *transfer, size_t *bytes,
                     char *err, size_t err_size)
{
    struct stream_event *t = transfer->handle;
    cudaError_t code = cudaEventQuery(t->done);
    if (code == cudaErrorNotReady)
        return 0;
    if (code != cudaSuccess)
        return stream_edge_failed(&e->edge, transfer->sending ? "send" : "receive", code, err,
                                  err_size);
    *bytes = t->bytes;
    give_back(e, transfer);
    return 1;
}

void stream_edge_forget(struct stream_edge *e)
{
    for (struct transport_transfer *t = e->edge.pending; t; t = t->next)
        if (t->handle)
            give_back(e, t);
}
