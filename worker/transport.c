#include "worker/transport.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/base.h"

static const struct transport *const transports[] = {
#if GPTOSS_HAVE_NCCL
    &transport_nccl,
#endif
#if GPTOSS_HAVE_CUDA
    &transport_ipc,
    &transport_ipc_host,
#endif
    &transport_mpi,
};

const struct transport *transport_find(const char *name)
{
    for (size_t i = 0; i < sizeof transports / sizeof *transports; i++)
        if (strcmp(transports[i]->name, name) == 0)
            return transports[i];
    return NULL;
}

const char *transport_names(bool device_memory)
{
    static char names[64];
    if (!device_memory)
        return "mpi";
    names[0] = 0;
#if GPTOSS_HAVE_NCCL
    char err[512];
    if (transport_nccl_usable(err, sizeof err))
        strcat(names, "nccl,");
    else
        log_info("without transport nccl: %s", err);
#endif
#if GPTOSS_HAVE_CUDA
    /* Under MPS ranks that share a GPU need not take turns. */
    strcat(names, transport_ipc_mps() ? "ipc" : "ipc,ipc-host");
#endif
    return names;
}

int transport_open(struct transport_edge **out, const struct transport *transport,
                   const struct transport_options *options, char *err, size_t err_size)
{
    assert(options->from != options->to);
    return transport->open(out, options, err, err_size);
}

static void begin(struct transport_edge *edge, struct transport_transfer *transfer, bool sending,
                  size_t bytes)
{
    assert(!transfer->pending && edge->sending == sending);
    transfer->sending = sending;
    transfer->bytes = bytes;
    transfer->pending = true;
    transfer->posted_us = clock_us();
    transfer->next = edge->pending;
    transfer->link = &edge->pending;
    if (transfer->next)
        transfer->next->link = &transfer->next;
    edge->pending = transfer;
}

static void end(struct transport_transfer *transfer)
{
    transfer->pending = false;
    *transfer->link = transfer->next;
    if (transfer->next)
        transfer->next->link = transfer->link;
}

int transport_send(struct transport_edge *edge, struct transport_transfer *transfer,
                   const void *address, size_t bytes, char *err, size_t err_size)
{
    begin(edge, transfer, true, bytes);
    if (edge->transport->post_send(edge, transfer, address, bytes, err, err_size) == 0)
        return 0;
    end(transfer);
    return -1;
}

int transport_receive(struct transport_edge *edge, struct transport_transfer *transfer,
                      void *address, size_t bytes, char *err, size_t err_size)
{
    begin(edge, transfer, false, bytes);
    if (edge->transport->post_receive(edge, transfer, address, bytes, err, err_size) == 0)
        return 0;
    end(transfer);
    return -1;
}

static void say_late(const struct transport_edge *edge, const struct transport_transfer *transfer,
                     uint64_t waited_us, char *err, size_t err_size)
{
    char seconds[32], step[40] = "";
    text_seconds(seconds, (double)waited_us * 1e-6);
    if (transfer->step)
        snprintf(step, sizeof step, " of step %llu", (unsigned long long)transfer->step);
    if (transfer->sending)
        snprintf(
            err, err_size, "stage %u waited %s for stage %u (rank %u on host %s) to take the %s%s",
            edge->self, seconds, edge->peer, edge->peer, edge->peer_host, transfer->what, step);
    else
        snprintf(err, err_size,
                 "stage %u waited %s for the %s%s from stage %u (rank %u on host %s)", edge->self,
                 seconds, transfer->what, step, edge->peer, edge->peer, edge->peer_host);
}

int transport_test(struct transport_edge *edge, struct transport_transfer *transfer, size_t *bytes,
                   char *err, size_t err_size)
{
    assert(transfer->pending);
    size_t got = 0;
    int done = edge->transport->test(edge, transfer, &got, err, err_size);
    if (done < 0)
        return -1;
    uint64_t now = clock_us();
    if (done) {
        end(transfer);
        edge->moved_us = now;
        if (bytes)
            *bytes = got;
        return 1;
    }
    /* It is late when nothing has moved on the edge for that long since it was posted: those in
     * front of it have a right to their own time. */
    uint64_t since = edge->moved_us > transfer->posted_us ? edge->moved_us : transfer->posted_us;
    if (transfer->patient || edge->options.deadline_ms == 0 ||
        now - since < edge->options.deadline_ms * 1000)
        return 0;
    say_late(edge, transfer, now - since, err, err_size);
    return -1;
}

void transport_reached(struct transport_edge *edge)
{
    edge->moved_us = clock_us();
}

void transport_abort(struct transport_edge *edge)
{
    edge->transport->abort(edge);
    while (edge->pending)
        end(edge->pending);
}

void transport_close(struct transport_edge *edge)
{
    if (edge == NULL)
        return;
    transport_abort(edge);
    edge->transport->close(edge);
}
