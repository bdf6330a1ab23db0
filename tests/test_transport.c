/* Edges over MPI. mpirun starts this with two or three ranks, and every rank runs every case. */
#include "tests/test.h"

#include <time.h>

#include "base/base.h"
#include "worker/transport.h"
#include "worker/transport_open.h"
#include "worker/world.h"

static struct worker_world *world;
static uint32_t self, ranks;
static uint64_t epoch; /* each case has its own */
static char err[512];

static int next_epoch(void **state)
{
    (void)state;
    epoch++;
    MPI_Barrier(world->comm);
    return 0;
}

static void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

static struct transport_edge *open_edge(uint32_t from, uint32_t to, enum transport_channel channel,
                                        uint64_t deadline_ms)
{
    const struct transport_options options = {
        .world = world,
        .from = from,
        .to = to,
        .channel = channel,
        .epoch = epoch,
        .open_deadline_ms = 20000,
        .deadline_ms = deadline_ms,
    };
    struct transport_edge *edge;
    if (transport_open(&edge, transport_find("mpi"), &options, err, sizeof err))
        fail_msg("%s", err);
    return edge;
}

static void finish(struct transport_edge *edge, struct transport_transfer *transfer, size_t *bytes)
{
    int done;
    while ((done = transport_test(edge, transfer, bytes, err, sizeof err)) == 0)
        sleep_ms(0);
    if (done < 0)
        fail_msg("%s", err);
}

static void send_all(struct transport_edge *edge, const void *address, size_t bytes)
{
    struct transport_transfer t = {.what = "bytes"};
    assert_int_equal(transport_send(edge, &t, address, bytes, err, sizeof err), 0);
    finish(edge, &t, NULL);
}

static size_t receive_all(struct transport_edge *edge, void *address, size_t bytes)
{
    struct transport_transfer t = {.what = "bytes"};
    size_t got = 0;
    assert_int_equal(transport_receive(edge, &t, address, bytes, err, sizeof err), 0);
    finish(edge, &t, &got);
    return got;
}

static void any_edge_opens_by_itself(void **state)
{
    (void)state;
    for (uint32_t from = 0; from < ranks; from++)
        for (uint32_t to = 0; to < ranks; to++) {
            if (from == to || (self != from && self != to))
                continue;
            struct transport_edge *edge = open_edge(from, to, TRANSPORT_DATA, 20000);
            uint32_t value = from * 10 + to;
            if (self == from)
                send_all(edge, &value, sizeof value);
            else {
                value = 0;
                assert_int_equal(receive_all(edge, &value, sizeof value), sizeof value);
                assert_int_equal(value, from * 10 + to);
            }
            assert_string_equal(edge->peer_host, world->info.host);
            transport_close(edge);
        }
}

/* A circle of edges, opened in one order by all: each rank takes part in two. */
static void a_ring_of_edges_opens_without_waiting_in_a_circle(void **state)
{
    (void)state;
    struct transport_edge *out = NULL, *in = NULL;
    for (uint32_t from = 0; from < ranks; from++) {
        uint32_t to = (from + 1) % ranks;
        if (self == from)
            out = open_edge(from, to, TRANSPORT_DATA, 20000);
        else if (self == to)
            in = open_edge(from, to, TRANSPORT_DATA, 20000);
    }
    uint32_t token = self;
    for (uint32_t i = 0; i < ranks; i++) {
        send_all(out, &token, sizeof token);
        receive_all(in, &token, sizeof token);
    }
    assert_int_equal(token, self);
    transport_close(out);
    transport_close(in);
}

/* Sizes on both sides of what MPI sends at once, several under way, none at all among them. */
static void transfers_arrive_whole_and_in_order(void **state)
{
    (void)state;
    enum { COUNT = 12, LARGEST = 3000000 };
    static const size_t sizes[COUNT] = {4, 0, 4096, 1, 70000, LARGEST, 8, 9, 5000, 1000, 65536, 12};
    static unsigned char buffers[COUNT][LARGEST];
    if (self > 1)
        return;
    struct transport_edge *edge = open_edge(1, 0, TRANSPORT_DATA, 20000);
    struct transport_transfer transfers[COUNT] = {0};
    for (int i = 0; i < COUNT; i++) {
        transfers[i].what = "bytes";
        if (self == 1) {
            for (size_t b = 0; b < sizes[i]; b++)
                buffers[i][b] = (unsigned char)(b * 7 + (size_t)i);
            assert_int_equal(
                transport_send(edge, &transfers[i], buffers[i], sizes[i], err, sizeof err), 0);
        } else
            assert_int_equal(
                transport_receive(edge, &transfers[i], buffers[i], LARGEST, err, sizeof err), 0);
    }
    for (int i = 0; i < COUNT; i++) {
        size_t got = 0;
        finish(edge, &transfers[i], &got);
        if (self == 1)
            continue;
        assert_int_equal(got, sizes[i]);
        for (size_t b = 0; b < got; b++)
            if (buffers[i][b] != (unsigned char)(b * 7 + (size_t)i))
                fail_msg("transfer %d, byte %zu is wrong", i, b);
    }
    assert_null(edge->pending);
    transport_close(edge);
}

static void channels_of_the_same_ranks_do_not_mix(void **state)
{
    (void)state;
    if (self > 1)
        return;
    struct transport_edge *data = open_edge(0, 1, TRANSPORT_DATA, 20000);
    struct transport_edge *headers = open_edge(0, 1, TRANSPORT_HEADERS, 20000);
    int one = 1, two = 2;
    if (self == 0) {
        send_all(data, &one, sizeof one);
        send_all(headers, &two, sizeof two);
    } else {
        int got = 0;
        receive_all(headers, &got, sizeof got);
        assert_int_equal(got, 2);
        receive_all(data, &got, sizeof got);
        assert_int_equal(got, 1);
    }
    transport_close(data);
    transport_close(headers);
}

static void another_epoch_is_not_heard(void **state)
{
    (void)state;
    if (self > 1)
        return;
    struct transport_edge *old = open_edge(0, 1, TRANSPORT_DATA, 20000);
    epoch++;
    struct transport_edge *edge = open_edge(0, 1, TRANSPORT_DATA, 20000);
    int stale = 1, fresh = 2;
    if (self == 0) {
        send_all(old, &stale, sizeof stale);
        send_all(edge, &fresh, sizeof fresh);
    } else {
        int got = 0;
        receive_all(edge, &got, sizeof got);
        assert_int_equal(got, 2);
    }
    transport_close(old);
    transport_close(edge);
}

static void says(const char *what)
{
    if (strstr(err, what) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", err, what);
}

static void a_receive_that_is_late_names_stage_step_and_rank(void **state)
{
    (void)state;
    if (self > 1)
        return;
    struct transport_edge *edge = open_edge(1, 0, TRANSPORT_DATA, 150);
    if (self == 0) {
        char byte, want[200];
        struct transport_transfer t = {.what = "activations", .step = 1841};
        uint64_t begin = clock_us();
        int done;
        assert_int_equal(transport_receive(edge, &t, &byte, 1, err, sizeof err), 0);
        while ((done = transport_test(edge, &t, NULL, err, sizeof err)) == 0)
            sleep_ms(1);
        assert_int_equal(done, -1);
        assert_in_range(clock_us() - begin, 150000, 5000000);
        says("stage 0 waited ");
        snprintf(want, sizeof want,
                 "for the activations of step 1841 from stage 1 (rank 1 on host %s)",
                 world->info.host);
        says(want);
        assert_non_null(edge->pending);
        transport_abort(edge);
        assert_null(edge->pending);
    }
    transport_close(edge);
}

static void a_send_that_nobody_takes_is_late_too(void **state)
{
    (void)state;
    if (self > 1)
        return;
    static unsigned char large[8 << 20]; /* too large to be sent at once */
    struct transport_edge *edge = open_edge(0, 1, TRANSPORT_DATA, 150);
    if (self == 0) {
        struct transport_transfer t = {.what = "activations", .step = 7};
        int done;
        assert_int_equal(transport_send(edge, &t, large, sizeof large, err, sizeof err), 0);
        while ((done = transport_test(edge, &t, NULL, err, sizeof err)) == 0)
            sleep_ms(1);
        assert_int_equal(done, -1);
        says("for stage 1 (rank 1 on host ");
        says("to take the activations of step 7");
        transport_abort(edge);
    }
    transport_close(edge);
}

/* Two receives with 1.5 s each, of which the second comes 1.8 s after both were posted. */
static void a_transfer_has_its_time_from_when_it_is_first_in_line(void **state)
{
    (void)state;
    if (self > 1)
        return;
    struct transport_edge *edge = open_edge(1, 0, TRANSPORT_DATA, 1500);
    char bytes[2] = {0};
    if (self == 1) {
        for (int i = 0; i < 2; i++) {
            sleep_ms(900);
            send_all(edge, &bytes[i], 1);
        }
    } else {
        struct transport_transfer t[2] = {{.what = "bytes"}, {.what = "bytes"}};
        for (int i = 0; i < 2; i++)
            assert_int_equal(transport_receive(edge, &t[i], &bytes[i], 1, err, sizeof err), 0);
        finish(edge, &t[0], NULL);
        finish(edge, &t[1], NULL);
    }
    transport_close(edge);
}

static void a_patient_receive_waits_beyond_the_deadline(void **state)
{
    (void)state;
    if (self > 1)
        return;
    struct transport_edge *edge = open_edge(1, 0, TRANSPORT_HEADERS, 50);
    char byte = 0;
    if (self == 1) {
        sleep_ms(200);
        send_all(edge, &byte, 1);
    } else {
        struct transport_transfer t = {.what = "header", .patient = true};
        assert_int_equal(transport_receive(edge, &t, &byte, 1, err, sizeof err), 0);
        finish(edge, &t, NULL);
    }
    transport_close(edge);
}

static int calls;

static int third_call_gives_up(void *arg)
{
    (void)arg;
    return ++calls == 3;
}

static void an_edge_whose_other_end_does_not_come_fails_in_time(void **state)
{
    (void)state;
    if (self)
        return;
    struct transport_options options = {
        .world = world,
        .from = 0,
        .to = 1,
        .epoch = epoch,
        .open_deadline_ms = 100,
    };
    struct transport_edge *edge;
    assert_int_equal(transport_open(&edge, transport_find("mpi"), &options, err, sizeof err), -1);
    says("for stage 1 (rank 1) to open the edge 0 → 1");
    assert_null(edge);
    options.epoch = epoch + 100;
    options.open_deadline_ms = 20000;
    options.idle = third_call_gives_up;
    assert_int_equal(transport_open(&edge, transport_find("mpi"), &options, err, sizeof err), -1);
    says("was given up");
    options.to = ranks;
    assert_int_equal(transport_open(&edge, transport_find("mpi"), &options, err, sizeof err), -1);
    says("leaves the world");
}

/* As the transports of GPUs do before they have an edge. */
static void both_ends_meet_and_tell_each_other_who_they_are(void **state)
{
    (void)state;
    if (self > 1)
        return;
    struct transport_edge edge = {
        .options = {.world = world, .from = 1, .to = 0, .epoch = epoch, .open_deadline_ms = 20000}};
    char ours[20000] = {0}, theirs[20000] = {0};
    snprintf(ours, sizeof ours, "rank %u", self);
    ours[sizeof ours - 1] = (char)(10 + self);
    if (transport_meet(&edge, ours, theirs, sizeof ours, err, sizeof err))
        fail_msg("%s", err);
    assert_string_equal(theirs, self ? "rank 0" : "rank 1");
    assert_int_equal(theirs[sizeof theirs - 1], 11 - self);
    assert_int_equal(edge.sending, self == 1);
    assert_int_equal(edge.self, self);
    assert_int_equal(edge.peer, 1 - self);
    assert_string_equal(edge.peer_host, world->info.host);
}

static void a_handshake_of_another_size_is_refused(void **state)
{
    (void)state;
    if (self > 1)
        return;
    struct transport_edge edge = {
        .options = {.world = world, .from = 0, .to = 1, .epoch = epoch, .open_deadline_ms = 20000}};
    char ours[64] = {0}, theirs[64];
    int status = transport_meet(&edge, ours, theirs, self ? 64 : 32, err, sizeof err);
    assert_int_equal(status, -1);
    if (self)
        says("use programs of one build");
}

static int comes(void *arg, char *text, size_t text_size)
{
    (void)text;
    (void)text_size;
    return --*(int *)arg == 0;
}

static int breaks(void *arg, char *text, size_t text_size)
{
    (void)arg;
    snprintf(text, text_size, "it broke");
    return -1;
}

static void waiting_while_an_edge_is_opened_ends_in_time_and_says_for_whom(void **state)
{
    (void)state;
    struct transport_edge edge = {.self = 3, .peer = 4, .peer_host = "elsewhere"};
    int looks = 50;
    calls = 0;
    edge.options = (struct transport_options){.from = 3, .to = 4, .open_deadline_ms = 5000};
    assert_int_equal(transport_wait(&edge, comes, &looks, "join", err, sizeof err), 0);
    assert_int_equal(looks, 0);
    assert_int_equal(transport_wait(&edge, breaks, NULL, "join", err, sizeof err), -1);
    assert_string_equal(err, "it broke");
    edge.options.open_deadline_ms = 60;
    looks = INT32_MAX;
    uint64_t begin = clock_us();
    assert_int_equal(transport_wait(&edge, comes, &looks, "join", err, sizeof err), -1);
    assert_in_range(clock_us() - begin, 60000, 5000000);
    says("stage 3 waited ");
    says("for stage 4 (rank 4 on host elsewhere) to join the edge 3 → 4");
    edge.options.open_deadline_ms = 0;
    edge.options.idle = third_call_gives_up;
    assert_int_equal(transport_wait(&edge, comes, &looks, "join", err, sizeof err), -1);
    says("the edge 3 → 4 was given up");
}

static void deadlines_count_from_where_the_stream_has_come_to(void **state)
{
    (void)state;
    if (self > 1)
        return;
    struct transport_edge *edge = open_edge(1, 0, TRANSPORT_DATA, 200);
    if (self == 0) {
        char byte;
        struct transport_transfer t = {.what = "activations"};
        assert_int_equal(transport_receive(edge, &t, &byte, 1, err, sizeof err), 0);
        sleep_ms(250);
        transport_reached(edge);
        assert_int_equal(transport_test(edge, &t, NULL, err, sizeof err), 0);
        sleep_ms(250);
        assert_int_equal(transport_test(edge, &t, NULL, err, sizeof err), -1);
        transport_abort(edge);
    }
    transport_close(edge);
}

static void a_transport_that_is_not_built_in_is_not_found(void **state)
{
    (void)state;
    assert_null(transport_find("pigeon"));
    assert_string_equal(transport_names(false), "mpi");
#if GPTOSS_HAVE_CUDA
    assert_non_null(strstr(transport_names(true), "ipc"));
    assert_true(transport_find("ipc")->stream_ordered);
    assert_false(transport_find("ipc-host")->stream_ordered);
#else
    assert_string_equal(transport_names(true), "");
    assert_null(transport_find("ipc"));
#endif
#if !GPTOSS_HAVE_NCCL
    assert_null(transport_find("nccl"));
#endif
    assert_ptr_equal(transport_find("mpi"), &transport_mpi);
}

#define CASE(name) cmocka_unit_test_setup(name, next_epoch)

int main(void)
{
    if (worker_world_create(&world, err, sizeof err)) {
        fprintf(stderr, "%s\n", err);
        return 1;
    }
    self = world->info.rank;
    ranks = world->info.size;
    if (ranks < 2)
        return 77;
    const struct CMUnitTest tests[] = {
        CASE(any_edge_opens_by_itself),
        CASE(a_ring_of_edges_opens_without_waiting_in_a_circle),
        CASE(transfers_arrive_whole_and_in_order),
        CASE(channels_of_the_same_ranks_do_not_mix),
        CASE(another_epoch_is_not_heard),
        CASE(a_receive_that_is_late_names_stage_step_and_rank),
        CASE(a_send_that_nobody_takes_is_late_too),
        CASE(a_transfer_has_its_time_from_when_it_is_first_in_line),
        CASE(a_patient_receive_waits_beyond_the_deadline),
        CASE(an_edge_whose_other_end_does_not_come_fails_in_time),
        CASE(both_ends_meet_and_tell_each_other_who_they_are),
        CASE(a_handshake_of_another_size_is_refused),
        CASE(waiting_while_an_edge_is_opened_ends_in_time_and_says_for_whom),
        CASE(deadlines_count_from_where_the_stream_has_come_to),
        CASE(a_transport_that_is_not_built_in_is_not_found),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed)
        worker_world_abort(world, 1);
    worker_world_leave(world, 0);
    worker_world_destroy(world);
    return 0;
}
