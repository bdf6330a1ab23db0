/*
 * transport_stream: what the stream-ordered backs share. Private to worker/.
 *
 * An edge has the stage's stream and, for transfers `beside` it, a stream of its own. Transfers of one
 * edge stay in order whichever of the two they run on. Behind each stands an event, which test() looks at.
 */
#ifndef GPTOSS_WORKER_TRANSPORT_STREAM_H
#define GPTOSS_WORKER_TRANSPORT_STREAM_H

#include <cuda_runtime.h>

#include "worker/transport.h"

struct stream_event {
    cudaEvent_t done;
    size_t bytes;
    struct stream_event *next; /* among the unused */
};

struct stream_edge {
    struct transport_edge edge;
    cudaStream_t side;
    cudaEvent_t order;
    bool beside; /* where the last transfer runs */
    struct stream_event *unused;
};

/* Of an edge whose memory is zeros. 0 or −1. */
int stream_edge_open(struct stream_edge *e, const struct transport *transport,
                     const struct transport_options *options, char *err, size_t err_size);
void stream_edge_free(struct stream_edge *e); /* what it holds, not the edge */

/* The stream that a transfer's operations are queued on, and an event behind them. 0 or −1. */
int stream_edge_enter(struct stream_edge *e, struct transport_transfer *transfer,
                      cudaStream_t *stream, char *err, size_t err_size);
int stream_edge_leave(struct stream_edge *e, struct transport_transfer *transfer,
                      cudaStream_t stream, size_t bytes, char *err, size_t err_size);
/* As struct transport's. */
int stream_edge_test(struct stream_edge *e, struct transport_transfer *transfer, size_t *bytes,
                     char *err, size_t err_size);
void stream_edge_forget(struct stream_edge *e); /* all that is pending */

/* Always −1. */
int stream_edge_failed(const struct transport_edge *edge, const char *what, cudaError_t code,
                       char *err, size_t err_size);

#endif
