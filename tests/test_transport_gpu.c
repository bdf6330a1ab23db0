/* Edges between GPUs: `mpirun -np 2 test_transport_gpu ipc|nccl`. Every rank runs every case. With one
 * GPU for both ranks NCCL is told that they are on two hosts: it then goes through sockets. */
#include "tests/test.h"

#include <cuda_runtime.h>
#include <time.h>

#include "base/base.h"
#include "worker/transport.h"
#include "worker/world.h"

enum { BUFFERS = 4, ROOM = 32 << 20, ROW = 2880 * 4 };

static struct worker_world *world;
static const struct transport *transport;
static uint32_t self;
static uint64_t epoch; /* each case has its own */
static char err[512], uuid[48];
static cudaStream_t stream;
static unsigned char *memory; /* device [BUFFERS, ROOM] */
static unsigned char *host;   /* pinned [ROOM] */
static bool one_gpu;

static void cuda(cudaError_t code)
{
    if (code != cudaSuccess)
        fail_msg("CUDA: %s", cudaGetErrorString(code));
}

static int next_epoch(void **state)
{
    (void)state;
    epoch++;
    cuda(cudaStreamSynchronize(stream));
    MPI_Barrier(world->comm);
    return 0;
}

static void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

static int open_edge(struct transport_edge **edge, uint32_t from, uint64_t deadline_ms)
{
    void *buffers[BUFFERS];
    for (int i = 0; i < BUFFERS; i++)
        buffers[i] = memory + (size_t)i * ROOM;
    const struct transport_options options = {
        .world = world,
        .from = from,
        .to = 1 - from,
        .epoch = epoch,
        .stream = stream,
        .device_uuid = uuid,
        .buffers = buffers,
        .n_buffers = BUFFERS,
        .buffer_bytes = ROOM,
        .open_deadline_ms = 30000,
        .deadline_ms = deadline_ms,
    };
    return transport_open(edge, transport, &options, err, sizeof err);
}

static struct transport_edge *must_open(uint32_t from, uint64_t deadline_ms)
{
    struct transport_edge *edge;
    if (open_edge(&edge, from, deadline_ms))
        fail_msg("%s", err);
    return edge;
}

static void post(struct transport_edge *edge, struct transport_transfer *t, uint32_t buffer,
                 size_t bytes, bool beside)
{
    *t = (struct transport_transfer){
        .what = "activations", .step = 7, .buffer = buffer, .beside = beside};
    void *address = memory + (size_t)buffer * ROOM;
    if (edge->sending ? transport_send(edge, t, address, bytes, err, sizeof err)
                      : transport_receive(edge, t, address, bytes, err, sizeof err))
        fail_msg("%s", err);
}

static void finish(struct transport_edge *edge, struct transport_transfer *t)
{
    int done;
    size_t bytes = 0;
    while ((done = transport_test(edge, t, &bytes, err, sizeof err)) == 0)
        sleep_ms(0);
    if (done < 0)
        fail_msg("%s", err);
}

static void says(const char *what)
{
    if (strstr(err, what) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", err, what);
}

/* Round after round over the same buffers, everything queued without a look at the device: a transfer
 * brings what was written before it in the stream, and not what is written after it. */
static void transfers_keep_their_place_in_the_stream(void **state)
{
    (void)state;
    enum { ROUNDS = 24 };
    static const size_t sizes[BUFFERS] = {ROW, 4, 700000, 20 << 20};
    struct transport_edge *edge = must_open(0, 20000);
    struct transport_transfer transfers[BUFFERS];
    unsigned char *seen = host; /* [ROUNDS, BUFFERS, first and last byte] */
    for (int round = 0; round < ROUNDS; round++) {
        for (uint32_t b = 0; b < BUFFERS; b++) {
            unsigned char *buffer = memory + (size_t)b * ROOM,
                          *to = seen + (round * BUFFERS + b) * 2;
            if (round)
                finish(edge, &transfers[b]);
            if (edge->sending)
                cuda(cudaMemsetAsync(buffer, 1 + round * BUFFERS + (int)b, sizes[b], stream));
            /* Large ones beside the stream, at the sender: they stay in order with the others. */
            post(edge, &transfers[b], b, sizes[b], edge->sending && sizes[b] > 100000);
            if (edge->sending)
                continue;
            cuda(cudaMemcpyAsync(to, buffer, 1, cudaMemcpyDeviceToHost, stream));
            cuda(cudaMemcpyAsync(to + 1, buffer + sizes[b] - 1, 1, cudaMemcpyDeviceToHost, stream));
            cuda(cudaMemsetAsync(buffer, 0, sizes[b], stream));
        }
    }
    for (uint32_t b = 0; b < BUFFERS; b++)
        finish(edge, &transfers[b]);
    cuda(cudaStreamSynchronize(stream));
    for (int i = 0; i < ROUNDS * BUFFERS && !edge->sending; i++)
        if (seen[2 * i] != (unsigned char)(1 + i) || seen[2 * i + 1] != (unsigned char)(1 + i))
            fail_msg("transfer %d brought %d … %d", i, seen[2 * i], seen[2 * i + 1]);
    assert_null(edge->pending);
    transport_close(edge);
}

static void what_is_queued_behind_a_transfer_beside_the_stream_does_not_wait(void **state)
{
    (void)state;
    struct transport_edge *edge = must_open(1, 20000);
    struct transport_transfer t;
    if (self == 0) {
        post(edge, &t, 0, ROW, true);
        uint64_t begin = clock_us();
        cuda(cudaStreamSynchronize(stream));
        assert_in_range(clock_us() - begin, 0, 400000);
    } else {
        sleep_ms(800);
        post(edge, &t, 0, ROW, false);
    }
    finish(edge, &t);
    transport_close(edge);
}

/* Rank 1 never sends. */
static void a_late_receive_is_named_and_abort_lets_the_stream_go(void **state)
{
    (void)state;
    struct transport_edge *edge = must_open(1, 300);
    if (self == 0) {
        struct transport_transfer t;
        int done;
        uint64_t begin = clock_us();
        post(edge, &t, 0, ROW, false);
        cuda(cudaMemsetAsync(memory + ROOM, 0, 16, stream));
        while ((done = transport_test(edge, &t, NULL, err, sizeof err)) == 0)
            sleep_ms(1);
        assert_int_equal(done, -1);
        assert_in_range(clock_us() - begin, 300000, 3000000);
        says("stage 0 waited ");
        says("for the activations of step 7 from stage 1 (rank 1 on host ");
        assert_int_equal(cudaStreamQuery(stream), cudaErrorNotReady);
        begin = clock_us();
        transport_abort(edge);
        assert_null(edge->pending);
        cuda(cudaStreamSynchronize(stream));
        assert_in_range(clock_us() - begin, 0, 3000000);
    }
    MPI_Barrier(world->comm); /* NCCL tells when the other end leaves */
    transport_close(edge);
}

static void a_send_that_nobody_takes_is_late_too(void **state)
{
    (void)state;
    struct transport_edge *edge = must_open(0, 300);
    if (self == 0) {
        struct transport_transfer t;
        int done;
        post(edge, &t, 0, ROOM, false); /* more than NCCL would keep for the other end */
        while ((done = transport_test(edge, &t, NULL, err, sizeof err)) == 0)
            sleep_ms(1);
        assert_int_equal(done, -1);
        says("to take the activations of step 7");
        transport_abort(edge);
        cuda(cudaStreamSynchronize(stream));
    }
    MPI_Barrier(world->comm);
    transport_close(edge);
}

/* As a stage's edges can be: two that are stuck, one behind the other in one stream. */
static void two_edges_that_are_stuck_behind_each_other_are_aborted(void **state)
{
    (void)state;
    struct transport_edge *in = must_open(1, 300), *out = must_open(0, 300);
    if (self == 0) {
        struct transport_transfer received, sent;
        post(in, &received, 0, ROW, false);
        post(out, &sent, 1, ROW, false);
        sleep_ms(50);
        uint64_t begin = clock_us();
        transport_abort(out);
        transport_abort(in);
        cuda(cudaStreamSynchronize(stream));
        assert_in_range(clock_us() - begin, 0, 3000000);
    }
    MPI_Barrier(world->comm);
    transport_close(in);
    transport_close(out);
}

/* As the last stage does with a cut head: its stream waits for the input of a step, which rank 0 sends
 * when it has the samples of the step before; these are sent beside the stream, without waiting for it. */
static void a_send_that_is_ready_passes_a_stream_that_waits(void **state)
{
    (void)state;
    enum { ROUNDS = 8 };
    struct transport_edge *data = must_open(0, 5000), *ring = must_open(1, 5000);
    for (int round = 0; round < ROUNDS; round++) {
        struct transport_transfer input, samples;
        if (self == 0) {
            post(ring, &samples, 2, 256, false);
            cuda(cudaMemcpyAsync(host, memory + 2 * (size_t)ROOM, 256, cudaMemcpyDeviceToHost,
                                 stream));
            post(data, &input, 0, ROW, false);
        } else {
            unsigned char *from = memory + 2 * (size_t)ROOM;
            cuda(cudaMemsetAsync(from, round + 1, 256, stream));
            cuda(cudaStreamSynchronize(stream));
            post(data, &input, 0, ROW, false);
            cuda(cudaMemsetAsync(memory + ROOM, round, ROW, stream)); /* layers */
            samples = (struct transport_transfer){
                .what = "samples", .step = 7, .buffer = 2, .beside = true, .ready = true};
            if (transport_send(ring, &samples, from, 256, err, sizeof err))
                fail_msg("%s", err);
        }
        finish(ring, &samples);
        finish(data, &input);
        cuda(cudaStreamSynchronize(stream));
        if (self == 0 && (host[0] != round + 1 || host[255] != round + 1))
            fail_msg("round %d brought %d", round, host[0]);
    }
    transport_close(data);
    transport_close(ring);
}

static int third_call_gives_up(void *arg)
{
    return ++*(int *)arg == 3;
}

static void an_edge_whose_other_end_does_not_come_fails_in_time(void **state)
{
    (void)state;
    if (self)
        return;
    int calls = 0;
    void *buffer = memory;
    struct transport_options options = {
        .world = world,
        .from = 1,
        .to = 0,
        .epoch = epoch,
        .stream = stream,
        .device_uuid = uuid,
        .buffers = &buffer,
        .n_buffers = 1,
        .buffer_bytes = ROOM,
        .open_deadline_ms = 200,
    };
    struct transport_edge *edge;
    assert_int_equal(transport_open(&edge, transport, &options, err, sizeof err), -1);
    assert_null(edge);
    says("stage 0 waited");
    options.epoch += 100;
    options.open_deadline_ms = 0;
    options.idle = third_call_gives_up;
    options.arg = &calls;
    assert_int_equal(transport_open(&edge, transport, &options, err, sizeof err), -1);
    says("was given up");
}

/* There and back, everything queued at once: half a round is a hop without any kernel. */
static void hops_are_quick(void **state)
{
    (void)state;
    enum { ROUNDS = 200, BATCH = 50 };
    struct transport_edge *edges[2] = {must_open(0, 20000), must_open(1, 20000)};
    struct transport_edge *out = edges[self], *in = edges[1 - self];
    struct transport_transfer sent[BATCH], received[BATCH];
    double best = 1e9;
    for (int round = 0; round < ROUNDS; round += BATCH) {
        cuda(cudaStreamSynchronize(stream));
        MPI_Barrier(world->comm);
        double begin = clock_seconds();
        for (int i = 0; i < BATCH; i++) {
            if (self == 0)
                post(out, &sent[i], 1, ROW, false);
            post(in, &received[i], 0, ROW, false);
            if (self == 1)
                post(out, &sent[i], 1, ROW, false);
        }
        cuda(cudaStreamSynchronize(stream));
        double hop = (clock_seconds() - begin) / BATCH / 2;
        best = hop < best ? hop : best;
        for (int i = 0; i < BATCH; i++) {
            finish(out, &sent[i]);
            finish(in, &received[i]);
        }
    }
    if (self == 0)
        printf("transport %s, %s: %.1f us a hop of %d bytes\n", transport->name,
               one_gpu ? "two ranks on one GPU" : "two GPUs", best * 1e6, ROW);
    MPI_Barrier(world->comm);
    transport_close(edges[0]);
    transport_close(edges[1]);
}

#define CASE(name) cmocka_unit_test_setup(name, next_epoch)

int main(int argc, char **argv)
{
    int gpus = 0;
    struct cudaDeviceProp properties;
    if (worker_world_create(&world, err, sizeof err)) {
        fprintf(stderr, "%s\n", err);
        return 1;
    }
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8", 0); /* as gptoss-worker does */
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    self = world->info.rank;
    transport = transport_find(argc > 1 ? argv[1] : "ipc");
    if (world->info.size != 2 || !transport || cudaGetDeviceCount(&gpus) != cudaSuccess || !gpus) {
        if (self == 0)
            printf("skipped: two ranks, a GPU and a transport for it are needed\n");
        worker_world_leave(world, 77);
        return 77;
    }
    one_gpu = gpus == 1;
    if (one_gpu)
        setenv("NCCL_HOSTID", self ? "one" : "zero", 1);
#if GPTOSS_HAVE_NCCL
    if (transport == &transport_nccl && !transport_nccl_usable(err, sizeof err)) {
        if (self == 0)
            printf("skipped: %s\n", err);
        worker_world_leave(world, 77);
        return 77;
    }
#endif
    void *pinned, *device;
    if (cudaSetDevice((int)self % gpus) || cudaGetDeviceProperties(&properties, (int)self % gpus) ||
        cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) ||
        cudaMalloc(&device, (size_t)BUFFERS * ROOM) ||
        cudaHostAlloc(&pinned, ROOM, cudaHostAllocDefault)) {
        fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(cudaGetLastError()));
        worker_world_abort(world, 1);
    }
    memory = device;
    host = pinned;
    for (int i = 0; i < 16; i++)
        snprintf(uuid + 2 * i, 3, "%02x", (unsigned char)properties.uuid.bytes[i]);
    /* As between unlike GPUs, which move small transfers by kernels. */
    if (argc > 2 && strcmp(argv[2], "unlike") == 0)
        uuid[0] = self ? 'x' : 'y';
    const struct CMUnitTest tests[] = {
        CASE(transfers_keep_their_place_in_the_stream),
        CASE(what_is_queued_behind_a_transfer_beside_the_stream_does_not_wait),
        CASE(a_send_that_is_ready_passes_a_stream_that_waits),
        CASE(a_late_receive_is_named_and_abort_lets_the_stream_go),
        CASE(a_send_that_nobody_takes_is_late_too),
        CASE(two_edges_that_are_stuck_behind_each_other_are_aborted),
        CASE(hops_are_quick),
        CASE(an_edge_whose_other_end_does_not_come_fails_in_time),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed)
        worker_world_abort(world, 1);
    worker_world_leave(world, 0);
    worker_world_destroy(world);
    return 0;
}
