/*
 * transport_ipc: device memory between ranks of one host whose GPUs reach one another, by CUDA IPC.
 * Stream-ordered.
 *
 * When the edge is opened the receiver shares its buffers, and each end a counter in its device memory
 * that the other writes. Transfer i:
 *
 *   receiver                                       sender's stream
 *   at once: the sender's `mine` = i        ───▶   waits for mine ≥ i: the buffer is free
 *                                                  copies device to device
 *   in its stream: waits for mine ≥ i       ◀───   the receiver's `mine` = i
 *
 * Between unlike GPUs a small transfer is one kernel on each side (kernels_cuda_push and _await). Else the
 * waits are the device's own (cuStreamWaitValue32), which take no multiprocessor: ranks that share a GPU
 * must not keep each other from it. There transport ipc-host is quicker, unless MPS runs. A neighbour that
 * died would hold the stream for ever: abort() writes the counter itself. The sender never writes what
 * was not offered.
 */
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "kernels/kernels.h"
#include "worker/transport_open.h"
#include "worker/transport_stream.h"

#define BUFFERS_MAX   256       /* the receiver's lanes */
#define COUNTER_BYTES (2 << 20) /* smaller allocations share their pages with others */
#define PUSH_MOST     (2 << 20) /* bytes that a kernel copies; a copy engine is quicker with more */
#define TICKETS_AT    64        /* words: of the stage's stream, then of the one beside it */

/* What the ends tell each other. Of the buffers the receiver tells. */
struct hello {
    cudaIpcMemHandle_t counter;
    uint64_t room; /* of each buffer */
    uint32_t n_buffers;
    char gpu[64];
    struct {
        cudaIpcMemHandle_t handle;
        uint64_t base, offset; /* the allocation, as the receiver knows it, and the buffer in it */
    } buffers[BUFFERS_MAX];
};

struct ipc_edge {
    struct stream_edge s;
    cudaStream_t now; /* never waits for anything */
    uint32_t *mine;   /* device memory: the counter that the other end writes */
    uint32_t *other;  /* the other end's, mapped */
    uint32_t posted;  /* the last transfer */
    bool lost;        /* aborted: the counters say nothing any more */
    bool by_kernel;   /* the ends are unlike GPUs */
    uint64_t room;
    uint32_t n_buffers, n_mappings;
    char *buffers[BUFFERS_MAX]; /* sender: the receiver's, mapped; receiver: its own */
    struct {
        uint64_t base;
        char *address;
    } mappings[BUFFERS_MAX];
};

/* ── the driver's calls that the runtime has not ───────────────────────────────────────────── */

static struct {
    CUresult (*range)(CUdeviceptr *base, size_t *bytes, CUdeviceptr address);
    CUresult (*wait)(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned flags);
    CUresult (*write)(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned flags);
} driver;

static int find_driver(char *err, size_t err_size)
{
    static const struct {
        const char *name;
        void *to;
    } calls[] = {{"cuMemGetAddressRange", &driver.range},
                 {"cuStreamWaitValue32", &driver.wait},
                 {"cuStreamWriteValue32", &driver.write}};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        void *entry = NULL;
        enum cudaDriverEntryPointQueryResult found;
        if (cudaGetDriverEntryPointByVersion(calls[i].name, &entry, 12000, cudaEnableDefault,
                                             &found) != cudaSuccess ||
            found != cudaDriverEntryPointSuccess) {
            snprintf(err, err_size,
                     "transport ipc needs %s, which this NVIDIA driver has not: use a newer one",
                     calls[i].name);
            return -1;
        }
        memcpy(calls[i].to, &entry, sizeof entry);
    }
    return 0;
}

static int queue_failed(const struct ipc_edge *e, const char *what, CUresult code, char *err,
                        size_t err_size)
{
    snprintf(err, err_size, "edge %u → %u: CUDA could not queue %s (error %d)",
             e->s.edge.options.from, e->s.edge.options.to, what, (int)code);
    return -1;
}

/* The stream goes on when our counter has come to `value`. */
static int queue_wait(struct ipc_edge *e, cudaStream_t stream, uint32_t value, char *err,
                      size_t err_size)
{
    CUresult code =
        driver.wait(stream, (CUdeviceptr)(uintptr_t)e->mine, value, CU_STREAM_WAIT_VALUE_GEQ);
    return code ? queue_failed(e, "a wait", code, err, err_size) : 0;
}

static int await_by_kernel(struct ipc_edge *e, cudaStream_t stream, uint32_t value, char *err,
                           size_t err_size)
{
    return kernels_cuda_await(e->mine, value, stream)
               ? queue_failed(e, "a wait", CUDA_ERROR_LAUNCH_FAILED, err, err_size)
               : 0;
}

static int queue_write(struct ipc_edge *e, cudaStream_t stream, uint32_t *counter, uint32_t value,
                       char *err, size_t err_size)
{
    CUresult code =
        driver.write(stream, (CUdeviceptr)(uintptr_t)counter, value, CU_STREAM_WRITE_VALUE_DEFAULT);
    return code ? queue_failed(e, "a write", code, err, err_size) : 0;
}

bool transport_ipc_mps(void)
{
    int device = 0, enabled = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&enabled, cudaDevAttrMpsEnabled, device) == cudaSuccess &&
           enabled;
}

/* ── opening ───────────────────────────────────────────────────────────────────────────────── */

static void ipc_close(struct transport_edge *edge)
{
    struct ipc_edge *e = (struct ipc_edge *)edge;
    for (uint32_t i = 0; i < e->n_mappings; i++)
        cudaIpcCloseMemHandle(e->mappings[i].address);
    if (e->other)
        cudaIpcCloseMemHandle(e->other);
    /* The counter stays as long as the process: the other end may still write it. */
    if (e->now)
        cudaStreamDestroy(e->now);
    stream_edge_free(&e->s);
    free(e);
}

static int share(struct ipc_edge *e, struct hello *hello, char *err, size_t err_size)
{
    const struct transport_options *o = &e->s.edge.options;
    cudaError_t code = cudaIpcGetMemHandle(&hello->counter, e->mine);
    if (code != cudaSuccess)
        return stream_edge_failed(&e->s.edge, "share memory", code, err, err_size);
    if (o->n_buffers > BUFFERS_MAX) {
        snprintf(err, err_size,
                 "edge %u → %u: %u buffers, transport ipc takes at most %d: lower "
                 "the steps in flight",
                 o->from, o->to, o->n_buffers, BUFFERS_MAX);
        return -1;
    }
    hello->room = o->buffer_bytes;
    hello->n_buffers = o->n_buffers;
    for (uint32_t i = 0; i < o->n_buffers; i++) {
        CUdeviceptr base = 0;
        size_t bytes = 0;
        if (driver.range(&base, &bytes, (CUdeviceptr)(uintptr_t)o->buffers[i])) {
            snprintf(err, err_size, "edge %u → %u: the buffer to receive into is no device memory",
                     o->from, o->to);
            return -1;
        }
        hello->buffers[i].base = base;
        hello->buffers[i].offset = (uintptr_t)o->buffers[i] - base;
        code = cudaIpcGetMemHandle(&hello->buffers[i].handle, (void *)(uintptr_t)base);
        if (code != cudaSuccess)
            return stream_edge_failed(&e->s.edge, "share a buffer", code, err, err_size);
        e->buffers[i] = o->buffers[i];
    }
    return 0;
}

static int map_handle(struct ipc_edge *e, cudaIpcMemHandle_t handle, void **address, char *err,
                      size_t err_size)
{
    cudaError_t code = cudaIpcOpenMemHandle(address, handle, cudaIpcMemLazyEnablePeerAccess);
    if (code == cudaSuccess)
        return 0;
    cudaGetLastError();
    *address = NULL;
    snprintf(err, err_size,
             "edge %u → %u: CUDA could not open the memory of stage %u: %s; if the two GPUs cannot "
             "reach each other, use --transport nccl",
             e->s.edge.options.from, e->s.edge.options.to, e->s.edge.peer,
             cudaGetErrorString(code));
    return -1;
}

/* The receiver's buffers, each allocation mapped once. */
static int map_buffers(struct ipc_edge *e, const struct hello *hello, char *err, size_t err_size)
{
    if (hello->n_buffers > BUFFERS_MAX) {
        snprintf(err, err_size, "edge %u → %u: stage %u offers %u buffers", e->s.edge.options.from,
                 e->s.edge.options.to, e->s.edge.peer, hello->n_buffers);
        return -1;
    }
    for (uint32_t i = 0; i < hello->n_buffers; i++) {
        uint32_t m = 0;
        while (m < e->n_mappings && e->mappings[m].base != hello->buffers[i].base)
            m++;
        if (m == e->n_mappings) {
            void *address;
            if (map_handle(e, hello->buffers[i].handle, &address, err, err_size))
                return -1;
            e->mappings[m].base = hello->buffers[i].base;
            e->mappings[m].address = address;
            e->n_mappings++;
        }
        e->buffers[i] = e->mappings[m].address + hello->buffers[i].offset;
    }
    return 0;
}

static int ipc_open(struct transport_edge **out, const struct transport_options *options, char *err,
                    size_t err_size)
{
    *out = NULL;
    struct ipc_edge *e = base_alloc(1, sizeof *e);
    struct hello *both = base_alloc(2, sizeof *both), *ours = &both[0], *theirs = &both[1];
    struct transport_edge *edge = &e->s.edge;
    if (find_driver(err, err_size) ||
        stream_edge_open(&e->s, &transport_ipc, options, err, err_size))
        goto fail;
    void *counter = NULL;
    int least = 0, most = 0; /* a priority of its own keeps it from standing behind other streams */
    cudaError_t code = cudaDeviceGetStreamPriorityRange(&least, &most);
    if (code == cudaSuccess)
        code = cudaStreamCreateWithPriority(&e->now, cudaStreamNonBlocking, most);
    if (code == cudaSuccess)
        code = cudaMalloc(&counter, COUNTER_BYTES);
    e->mine = counter;
    if (code == cudaSuccess)
        code = cudaMemsetAsync(counter, 0, COUNTER_BYTES, e->now);
    if (code == cudaSuccess)
        code = cudaStreamSynchronize(e->now);
    if (code != cudaSuccess) {
        stream_edge_failed(edge, "make a counter", code, err, err_size);
        goto fail;
    }
    snprintf(ours->gpu, sizeof ours->gpu, "%s", options->device_uuid ? options->device_uuid : "");
    if (share(e, ours, err, err_size) ||
        transport_meet(edge, ours, theirs, sizeof *ours, err, err_size))
        goto fail;
    theirs->gpu[sizeof theirs->gpu - 1] = 0;
    e->by_kernel = *ours->gpu && *theirs->gpu && strcmp(ours->gpu, theirs->gpu) != 0;
    void *other;
    if (map_handle(e, theirs->counter, &other, err, err_size))
        goto fail;
    e->other = other;
    if (edge->sending && map_buffers(e, theirs, err, err_size))
        goto fail;
    e->room = (edge->sending ? theirs : ours)->room;
    e->n_buffers = (edge->sending ? theirs : ours)->n_buffers;
    edge->options.buffers = NULL;
    if (e->n_buffers == 0) {
        snprintf(err, err_size, "edge %u → %u: there is no buffer to receive into", options->from,
                 options->to);
        goto fail;
    }
    if (transport_warm(edge, e->buffers[0], 0, err, err_size))
        goto fail;
    free(both);
    *out = edge;
    return 0;
fail:
    free(both);
    ipc_close(edge);
    return -1;
}

/* ── transfers ─────────────────────────────────────────────────────────────────────────────── */

static int refuse(const struct ipc_edge *e, const struct transport_transfer *transfer, size_t bytes,
                  char *err, size_t err_size)
{
    const struct transport_options *o = &e->s.edge.options;
    if (e->lost)
        snprintf(err, err_size, "the edge %u → %u was aborted", o->from, o->to);
    else if (transfer->buffer >= e->n_buffers || bytes > e->room)
        snprintf(err, err_size,
                 "edge %u → %u: %zu bytes for buffer %u: there are %u, of %llu bytes each", o->from,
                 o->to, bytes, transfer->buffer, e->n_buffers, (unsigned long long)e->room);
    else
        return 0;
    return -1;
}

static int ipc_post_receive(struct transport_edge *edge, struct transport_transfer *transfer,
                            void *address, size_t bytes, char *err, size_t err_size)
{
    struct ipc_edge *e = (struct ipc_edge *)edge;
    cudaStream_t stream;
    if (refuse(e, transfer, bytes, err, err_size))
        return -1;
    if (address != e->buffers[transfer->buffer]) {
        snprintf(err, err_size, "edge %u → %u: buffer %u is not where the receive wants its bytes",
                 edge->options.from, edge->options.to, transfer->buffer);
        return -1;
    }
    uint32_t i = e->posted + 1;
    if (stream_edge_enter(&e->s, transfer, &stream, err, err_size) ||
        queue_write(e, e->now, e->other, i, err, err_size) ||
        (e->by_kernel ? await_by_kernel(e, stream, i, err, err_size)
                      : queue_wait(e, stream, i, err, err_size)) ||
        stream_edge_leave(&e->s, transfer, stream, bytes, err, err_size))
        return -1;
    e->posted = i;
    return 0;
}

static int ipc_post_send(struct transport_edge *edge, struct transport_transfer *transfer,
                         const void *address, size_t bytes, char *err, size_t err_size)
{
    struct ipc_edge *e = (struct ipc_edge *)edge;
    cudaStream_t stream;
    if (refuse(e, transfer, bytes, err, err_size))
        return -1;
    uint32_t i = e->posted + 1;
    char *to = e->buffers[transfer->buffer];
    if (stream_edge_enter(&e->s, transfer, &stream, err, err_size))
        return -1;
    if (e->by_kernel && bytes && bytes <= PUSH_MOST &&
        ((uintptr_t)to | (uintptr_t)address | bytes) % 4 == 0) {
        struct kernels_push push = {.to = to,
                                    .from = address,
                                    .bytes = bytes,
                                    .offered = e->mine,
                                    .counter = e->other,
                                    .value = i,
                                    .ticket = e->mine + TICKETS_AT + transfer->beside};
        if (kernels_cuda_push(&push, stream))
            return queue_failed(e, "a copy", CUDA_ERROR_LAUNCH_FAILED, err, err_size);
        if (stream_edge_leave(&e->s, transfer, stream, bytes, err, err_size))
            return -1;
        e->posted = i;
        return 0;
    }
    if (queue_wait(e, stream, i, err, err_size))
        return -1;
    cudaError_t code =
        bytes ? cudaMemcpyAsync(to, address, bytes, cudaMemcpyDeviceToDevice, stream) : cudaSuccess;
    if (code != cudaSuccess)
        return stream_edge_failed(edge, "copy to the neighbour", code, err, err_size);
    if (queue_write(e, stream, e->other, i, err, err_size) ||
        stream_edge_leave(&e->s, transfer, stream, bytes, err, err_size))
        return -1;
    e->posted = i;
    return 0;
}

static int ipc_test(struct transport_edge *edge, struct transport_transfer *transfer, size_t *bytes,
                    char *err, size_t err_size)
{
    return stream_edge_test((struct stream_edge *)edge, transfer, bytes, err, err_size);
}

/* Lets go of whatever waits in our streams for the other end. */
static void ipc_abort(struct transport_edge *edge)
{
    struct ipc_edge *e = (struct ipc_edge *)edge;
    char err[200];
    if (edge->pending && !e->lost) {
        e->lost = true;
        queue_write(e, e->now, e->mine, e->posted, err, sizeof err);
    }
    stream_edge_forget(&e->s);
}

const struct transport transport_ipc = {
    .name = "ipc",
    .stream_ordered = true,
    .device_memory = true,
    .open = ipc_open,
    .post_send = ipc_post_send,
    .post_receive = ipc_post_receive,
    .test = ipc_test,
    .abort = ipc_abort,
    .close = ipc_close,
};
