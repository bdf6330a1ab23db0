/*
 * transport: bytes from one stage to another.
 *
 * An edge is a directed connection of two ranks, (from, to). Any edge opens by itself, each with its
 * own back and epoch; both ends open it, all ranks open theirs in the order that the plan names.
 * What is then posted at one end meets what is posted at the other, in order.
 *
 *     transport_open(&edge, transport_find("mpi"), &options, err, n);
 *     transport_receive(edge, &transfer, address, bytes, err, n);       returns at once
 *     while ((done = transport_test(edge, &transfer, err, n)) == 0) …   -1: failed, or too late
 *     transport_abort(edge);                                            forget what is posted
 *     transport_close(edge);
 *
 * Nothing waits for ever: neither MPI nor NCCL reports a neighbour that died (a receive neither
 * completes nor fails), so a transfer that has been first in line on its edge for longer than the
 * edge's deadline has failed, with a sentence that names the ranks and the step.
 *
 * Addresses are device addresses, as kernels.h gives them. `mpi` moves host memory. A back that moves
 * device memory gets the stage's stream when the edge is opened and says `stream_ordered`: what is
 * posted then runs in the stream, between the kernels that were queued before and after, so the
 * stage queues its kernels without waiting for the transfer, and test() only watches it (an event
 * behind it, and what the back says of the edge). The stream then stands still until the neighbour is
 * there, and only abort() ends that: what was queued behind then runs on garbage, so nobody may look at
 * its results any more.
 *
 *   mpi        host memory; between ranks anywhere
 *   nccl       GPUs of one host or several, no GPU twice; stream-ordered
 *   ipc        GPUs of one host that reach each other, or one GPU under MPS; stream-ordered
 *   ipc-host   ranks that share a GPU, which is then better not made to wait
 *
 * Step headers and handshakes travel over `mpi` always.
 */
#ifndef GPTOSS_WORKER_TRANSPORT_H
#define GPTOSS_WORKER_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct worker_world;

/* What travels on an edge; two edges of the same ranks differ in this. */
enum transport_channel {
    TRANSPORT_DATA,
    TRANSPORT_HEADERS,
    TRANSPORT_HEAD,  /* rows for a cut head, and replies */
    TRANSPORT_THERE, /* what nccl and ipc have to say: along the edge, */
    TRANSPORT_BACK,  /* and against it */
    TRANSPORT_CHANNELS,
};

struct transport_options {
    struct worker_world *world;
    uint32_t from, to; /* ranks, unlike; one of them is ours */
    enum transport_channel channel;
    uint64_t epoch;
    void *stream;            /* kernels_stage_stream() */
    const char *device_uuid; /* of the stream's device, for sentences */
    /* At the receiving end, for ipc: all the buffers that receives will name, and what each holds. */
    void *const *buffers; /* [n_buffers]; read while the edge is opened */
    uint32_t n_buffers;
    size_t buffer_bytes;
    uint64_t open_deadline_ms; /* 0: none */
    uint64_t deadline_ms;      /* of transfers; 0: none */
    /* Called again and again while the other end is waited for; not 0: give up. NULL is fine. */
    int (*idle)(void *arg);
    void *arg;
};

/* One posted send or receive. The memory is the caller's and must stay until it is done, or the edge
 * is aborted. Fill in what stands in front of `pending`; the rest belongs to the transport. */
struct transport_transfer {
    const char *what; /* for sentences: "activations" */
    uint64_t step;    /* for sentences; 0: of no step */
    bool patient;     /* it may wait for ever: a receive of what nobody may have sent yet */
    uint32_t buffer;  /* which of the receiving end's buffers it goes to; both ends name the same */
    /* Where the transport is stream-ordered: runs behind what has been queued, but what is queued later
     * does not wait for it. test() alone says when it is done. */
    bool beside;
    /* Of a send beside: what it reads is there already, so it does not wait for the stream either. */
    bool ready;

    bool pending, sending;
    size_t bytes;
    uint64_t posted_us;
    void *handle;                            /* of the back */
    struct transport_transfer *next, **link; /* among the edge's pending */
};

/* What every back's edge begins with. */
struct transport_edge {
    const struct transport *transport;
    struct transport_options options;
    bool sending;        /* this end is options.from */
    uint32_t self, peer; /* ranks */
    char peer_host[64];
    uint64_t moved_us; /* when the last transfer was done */
    struct transport_transfer *pending;
};

/* A back. */
struct transport {
    const char *name;
    bool stream_ordered;
    bool device_memory; /* addresses are a GPU's, not the host's */
    /* Waits for the other end until options->open_deadline_ms. Allocates the edge. */
    int (*open)(struct transport_edge **out, const struct transport_options *options, char *err,
                size_t err_size);
    /* Return at once; 0 or -1. */
    int (*post_send)(struct transport_edge *edge, struct transport_transfer *transfer,
                     const void *address, size_t bytes, char *err, size_t err_size);
    int (*post_receive)(struct transport_edge *edge, struct transport_transfer *transfer,
                        void *address, size_t bytes, char *err, size_t err_size);
    /* 1: done (*bytes: how many came), 0: not yet, -1: failed. */
    int (*test)(struct transport_edge *edge, struct transport_transfer *transfer, size_t *bytes,
                char *err, size_t err_size);
    void (*abort)(struct transport_edge *edge); /* all of edge->pending */
    void (*close)(struct transport_edge *edge); /* frees it; nothing is pending */
};

extern const struct transport transport_mpi;
#if GPTOSS_HAVE_CUDA
extern const struct transport transport_ipc, transport_ipc_host;
bool transport_ipc_mps(
    void); /* this process shares its GPU through NVIDIA's Multi-Process Service */
#endif
#if GPTOSS_HAVE_NCCL
extern const struct transport transport_nccl;
/* Whether libnccl can be used: it is loaded by the first call. Otherwise false and a sentence. */
bool transport_nccl_usable(char *err, size_t err_size);
#endif

const struct transport *transport_find(const char *name); /* NULL: not built in */
/* Those that move what the device's buffers are in, best first, commas between. */
const char *transport_names(bool device_memory);

int transport_open(struct transport_edge **out, const struct transport *transport,
                   const struct transport_options *options, char *err, size_t err_size);
int transport_send(struct transport_edge *edge, struct transport_transfer *transfer,
                   const void *address, size_t bytes, char *err, size_t err_size);
int transport_receive(struct transport_edge *edge, struct transport_transfer *transfer,
                      void *address, size_t bytes, char *err, size_t err_size);

/* Whether a posted transfer is done: 1, 0, or -1 and a sentence. *bytes (may be NULL) is how many
 * bytes were received; fewer than were asked for is the caller's to judge. */
int transport_test(struct transport_edge *edge, struct transport_transfer *transfer, size_t *bytes,
                   char *err, size_t err_size);

/* The stream has come as far as what is posted: its deadlines count from now on. */
void transport_reached(struct transport_edge *edge);

/* Forgets everything that is posted. Memory that a neighbour may be reading must stay until the
 * process has left its world. */
void transport_abort(struct transport_edge *edge);
void transport_close(struct transport_edge *edge); /* aborts first; NULL is fine */

#endif
