/*
 * transport_nccl: device memory between GPUs of one host or several. Stream-ordered.
 *
 * Each edge is a communicator of two ranks, so that one neighbour's death touches one edge, and
 * non-blocking, so that it can be aborted: every call may answer "in progress" and is then looked after
 * until it is settled. The first transfer on a communicator connects the two (about 0.7 s): it is made
 * while the edge is opened. A transfer takes one block of the GPU: our kernels want the others.
 *
 * libnccl.so.2 is opened by name when a rank that has neighbours asks for it: the same program starts on
 * hosts without it, and a single rank never loads its 200 MB.
 */
#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/base.h"
#include "worker/transport_open.h"
#include "worker/transport_stream.h"
#include "worker/world.h"

#define VERSION_MIN     21800 /* maxCTAs and non-blocking communicators */
#define WARM_BYTES      256
#define FINALISE_US     2000000
#define ABORT_SECONDS   5
#define POST_DEADLINE_S 5 /* for a call that answered "in progress", where transfers have none */

static struct {
    void *library;
    ncclResult_t (*GetVersion)(int *);
    ncclResult_t (*GetUniqueId)(ncclUniqueId *);
    ncclResult_t (*CommInitRankConfig)(ncclComm_t *, int, ncclUniqueId, int, ncclConfig_t *);
    ncclResult_t (*CommFinalize)(ncclComm_t);
    ncclResult_t (*CommDestroy)(ncclComm_t);
    ncclResult_t (*CommAbort)(ncclComm_t);
    ncclResult_t (*CommGetAsyncError)(ncclComm_t, ncclResult_t *);
    ncclResult_t (*Send)(const void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
    ncclResult_t (*Recv)(void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
    const char *(*GetErrorString)(ncclResult_t);
    const char *(*GetLastError)(ncclComm_t);
} nccl;

/* What the ends tell each other. The sender's id counts. */
struct hello {
    ncclUniqueId id;
    char uuid[48];
    char alone; /* NCCL_HOSTID tells NCCL that this rank has a host of its own */
};

struct nccl_edge {
    struct stream_edge s;
    ncclComm_t comm;
    void *scratch; /* device [WARM_BYTES] */
    pthread_t aborter;
    bool aborted;
};

/* ── the library ───────────────────────────────────────────────────────────────────────────── */

static int load(char *err, size_t err_size)
{
    static const struct {
        const char *name;
        void *to;
    } calls[] = {
        {"ncclGetVersion", &nccl.GetVersion},
        {"ncclGetUniqueId", &nccl.GetUniqueId},
        {"ncclCommInitRankConfig", &nccl.CommInitRankConfig},
        {"ncclCommFinalize", &nccl.CommFinalize},
        {"ncclCommDestroy", &nccl.CommDestroy},
        {"ncclCommAbort", &nccl.CommAbort},
        {"ncclCommGetAsyncError", &nccl.CommGetAsyncError},
        {"ncclSend", &nccl.Send},
        {"ncclRecv", &nccl.Recv},
        {"ncclGetErrorString", &nccl.GetErrorString},
        {"ncclGetLastError", &nccl.GetLastError},
    };
    /* Two ranks send and receive: what NCCL sets up for larger groups, and a port of its own for its
     * diagnosis, are left out unless somebody asks for them. */
    setenv("NCCL_NVLS_ENABLE", "0", 0);
    setenv("NCCL_RAS_ENABLE", "0", 0);
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        snprintf(err, err_size, "%s (apt install libnccl2, or name its folder in LD_LIBRARY_PATH)",
                 dlerror());
        return -1;
    }
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        void *entry = dlsym(library, calls[i].name);
        memcpy(calls[i].to, &entry, sizeof entry);
        if (entry == NULL) {
            snprintf(err, err_size, "libnccl.so.2 has no %s: a newer one is needed", calls[i].name);
            dlclose(library);
            return -1;
        }
    }
    int version = 0;
    nccl.GetVersion(&version);
    if (version < VERSION_MIN) {
        snprintf(err, err_size, "libnccl.so.2 is version %d.%d: 2.18 or later is needed",
                 version / 10000, version / 100 % 100);
        dlclose(library);
        return -1;
    }
    nccl.library = library;
    log_debug("NCCL %d.%d.%d", version / 10000, version / 100 % 100, version % 100);
    return 0;
}

bool transport_nccl_usable(char *err, size_t err_size)
{
    return nccl.library || load(err, err_size) == 0;
}

static int failed(const struct nccl_edge *e, const char *what, ncclResult_t code, char *err,
                  size_t err_size)
{
    const struct transport_edge *edge = &e->s.edge;
    const char *more = e->comm ? nccl.GetLastError(e->comm) : nccl.GetLastError(NULL);
    snprintf(err, err_size,
             "edge %u → %u: NCCL could not %s (to stage %u, rank %u on host %s): %s%s%s",
             edge->options.from, edge->options.to, what, edge->peer, edge->peer, edge->peer_host,
             nccl.GetErrorString(code), more && *more ? ": " : "", more ? more : "");
    for (char *p = err; *p; p++)
        if (*p == '\n')
            *p = ' ';
    return -1;
}

/* Whether the last call is settled: 1, 0 or −1. */
static int settled(void *arg, char *err, size_t err_size)
{
    struct nccl_edge *e = arg;
    ncclResult_t state = ncclSuccess, code = nccl.CommGetAsyncError(e->comm, &state);
    if (code != ncclSuccess)
        return failed(e, "say how it is", code, err, err_size);
    if (state == ncclInProgress)
        return 0;
    return state == ncclSuccess ? 1 : failed(e, "go on", state, err, err_size);
}

/* ── opening and closing ───────────────────────────────────────────────────────────────────── */

static void *abort_main(void *arg)
{
    struct nccl_edge *e = arg;
    nccl.CommAbort(e->comm);
    return NULL;
}

/* In a thread: it waits until the communicator's kernels have left the stream, where they may stand
 * behind those of another edge that is aborted too. */
static void begin_abort(struct nccl_edge *e)
{
    if (e->aborted || e->comm == NULL)
        return;
    e->aborted = true;
    if (pthread_create(&e->aborter, NULL, abort_main, e) == 0)
        return;
    nccl.CommAbort(e->comm);
    e->comm = NULL;
}

/* Leaves in good order, with the other end, should that be there. */
static bool finalised(struct nccl_edge *e)
{
    char err[256];
    int done = 0;
    uint64_t begin = clock_us();
    ncclResult_t code = nccl.CommFinalize(e->comm);
    if (code != ncclSuccess && code != ncclInProgress)
        return false;
    while ((done = settled(e, err, sizeof err)) == 0 && clock_us() - begin < FINALISE_US)
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    return done == 1 && nccl.CommDestroy(e->comm) == ncclSuccess;
}

static void nccl_close(struct transport_edge *edge)
{
    struct nccl_edge *e = (struct nccl_edge *)edge;
    if (e->comm && !e->aborted && !finalised(e))
        begin_abort(e);
    if (e->comm && e->aborted) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += ABORT_SECONDS;
        if (pthread_timedjoin_np(e->aborter, NULL, &until)) {
            log_warn("NCCL did not abort the edge %u → %u: it is left behind", edge->options.from,
                     edge->options.to);
            return;
        }
    }
    if (e->scratch)
        cudaFree(e->scratch);
    stream_edge_free(&e->s);
    free(e);
}

static int refuse_one_gpu(const struct nccl_edge *e, const struct hello *ours,
                          const struct hello *theirs, char *err, size_t err_size)
{
    const struct transport_edge *edge = &e->s.edge;
    if (strcmp(ours->uuid, theirs->uuid) != 0 || (ours->alone && theirs->alone))
        return 0;
    snprintf(
        err, err_size,
        "edge %u → %u: stages %u and %u share GPU %s, which NCCL refuses: use --transport auto "
        "or ipc, or give each rank a GPU",
        edge->options.from, edge->options.to, edge->self, edge->peer, ours->uuid);
    return -1;
}

static int nccl_open(struct transport_edge **out, const struct transport_options *options,
                     char *err, size_t err_size)
{
    *out = NULL;
    char name[64];
    struct hello ours = {.alone = getenv("NCCL_HOSTID") != NULL}, theirs;
    struct nccl_edge *e = base_alloc(1, sizeof *e);
    struct transport_edge *edge = &e->s.edge;
    ncclResult_t code;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    if (!transport_nccl_usable(err, err_size)) {
        free(e);
        return -1;
    }
    if (stream_edge_open(&e->s, &transport_nccl, options, err, err_size))
        goto fail;
    snprintf(ours.uuid, sizeof ours.uuid, "%s", options->device_uuid ? options->device_uuid : "");
    if (options->world->info.rank == options->from &&
        (code = nccl.GetUniqueId(&ours.id)) != ncclSuccess) {
        failed(e, "make an id", code, err, err_size);
        goto fail;
    }
    if (transport_meet(edge, &ours, &theirs, sizeof ours, err, err_size))
        goto fail;
    theirs.uuid[sizeof theirs.uuid - 1] = 0;
    if (refuse_one_gpu(e, &ours, &theirs, err, err_size))
        goto fail;

    snprintf(name, sizeof name, "gptoss %u to %u", options->from, options->to);
    config.blocking = 0;
    config.minCTAs = config.maxCTAs = 1;
    config.commName = name;
    code = nccl.CommInitRankConfig(&e->comm, 2, edge->sending ? ours.id : theirs.id,
                                   edge->sending ? 0 : 1, &config);
    if (code != ncclSuccess && code != ncclInProgress) {
        failed(e, "join two ranks", code, err, err_size);
        goto fail;
    }
    if (transport_wait(edge, settled, e, "join", err, err_size))
        goto fail;
    cudaError_t status = cudaMalloc(&e->scratch, WARM_BYTES);
    if (status != cudaSuccess) {
        stream_edge_failed(edge, "make a buffer", status, err, err_size);
        goto fail;
    }
    if (transport_warm(edge, e->scratch, WARM_BYTES, err, err_size))
        goto fail;
    *out = edge;
    return 0;

fail:
    begin_abort(e); /* the other end may never come to leave in good order */
    nccl_close(edge);
    return -1;
}

/* ── transfers ─────────────────────────────────────────────────────────────────────────────── */

/* What a call put into the stream is there when it is settled, which it is at once on an edge that is
 * warm. */
static int finish_call(struct nccl_edge *e, const char *what, ncclResult_t code, char *err,
                       size_t err_size)
{
    uint64_t deadline_ms = e->s.edge.options.deadline_ms;
    uint64_t begin = clock_us(),
             most = deadline_ms ? deadline_ms * 1000 : POST_DEADLINE_S * 1000000;
    int done = 0;
    if (code == ncclSuccess)
        return 0;
    if (code != ncclInProgress)
        return failed(e, what, code, err, err_size);
    while ((done = settled(e, err, err_size)) == 0) {
        if (clock_us() - begin > most)
            return failed(e, what, ncclInProgress, err, err_size);
        sched_yield();
    }
    return done < 0 ? -1 : 0;
}

static int post(struct nccl_edge *e, struct transport_transfer *transfer, void *to,
                const void *from, size_t bytes, char *err, size_t err_size)
{
    cudaStream_t stream;
    if (e->aborted) {
        snprintf(err, err_size, "the edge %u → %u was aborted", e->s.edge.options.from,
                 e->s.edge.options.to);
        return -1;
    }
    if (stream_edge_enter(&e->s, transfer, &stream, err, err_size))
        return -1;
    int other = e->s.edge.sending ? 1 : 0; /* rank of the communicator */
    ncclResult_t code = from ? nccl.Send(from, bytes, ncclUint8, other, e->comm, stream)
                             : nccl.Recv(to, bytes, ncclUint8, other, e->comm, stream);
    if (finish_call(e, from ? "send" : "receive", code, err, err_size))
        return -1;
    return stream_edge_leave(&e->s, transfer, stream, bytes, err, err_size);
}

static int nccl_post_send(struct transport_edge *edge, struct transport_transfer *transfer,
                          const void *address, size_t bytes, char *err, size_t err_size)
{
    return post((struct nccl_edge *)edge, transfer, NULL, address, bytes, err, err_size);
}

static int nccl_post_receive(struct transport_edge *edge, struct transport_transfer *transfer,
                             void *address, size_t bytes, char *err, size_t err_size)
{
    return post((struct nccl_edge *)edge, transfer, address, NULL, bytes, err, err_size);
}

static int nccl_test(struct transport_edge *edge, struct transport_transfer *transfer,
                     size_t *bytes, char *err, size_t err_size)
{
    struct nccl_edge *e = (struct nccl_edge *)edge;
    int done = stream_edge_test(&e->s, transfer, bytes, err, err_size);
    if (done)
        return done;
    return settled(e, err, err_size) < 0 ? -1 : 0;
}

static void nccl_abort(struct transport_edge *edge)
{
    struct nccl_edge *e = (struct nccl_edge *)edge;
    if (edge->pending)
        begin_abort(e);
    stream_edge_forget(&e->s);
}

const struct transport transport_nccl = {
    .name = "nccl",
    .stream_ordered = true,
    .device_memory = true,
    .open = nccl_open,
    .post_send = nccl_post_send,
    .post_receive = nccl_post_receive,
    .test = nccl_test,
    .abort = nccl_abort,
    .close = nccl_close,
};
