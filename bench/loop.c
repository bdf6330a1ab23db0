#include "bench/loop.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "coordinator/coordinator.h"

#define EPOCH          1
#define SECOND         ((uint64_t)1000000)
#define BEAT_US        SECOND
#define SILENCE_US     (30 * SECOND)
#define DEADLINE_MS    300000 /* of a transfer between stages */
#define POLL_MS        100
#define ANSWER_SECONDS 5.0 /* for ranks to say how they are */

/* ── messages out ──────────────────────────────────────────────────────────────────────────── */

static int send_to(struct loop *loop, uint32_t rank, Gptoss__SupervisorMessage *message, char *err,
                   size_t err_size)
{
    const struct loop_rank *to = &loop->ranks[rank];
    message->epoch = EPOCH;
    size_t size;
    void *bytes = proto_pack(&message->base, &size);
    if (!bytes) {
        snprintf(err, err_size, "out of memory for a message");
        return -1;
    }
    int status =
        proto_send_bytes(loop->socket, to->peer, to->peer_size, bytes, size, err, err_size);
    free(bytes);
    if (status > 0)
        snprintf(err, err_size, "rank %" PRIu32 " %s", rank,
                 status == 1 ? "is gone" : "does not read its messages");
    return status ? -1 : 0;
}

static int welcome(struct loop *loop, uint32_t rank, char *err, size_t err_size)
{
    Gptoss__Welcome body = GPTOSS__WELCOME__INIT;
    Gptoss__SupervisorMessage message = GPTOSS__SUPERVISOR_MESSAGE__INIT;
    body.model = (char *)(uintptr_t)loop->options->path;
    body.device = (char *)(uintptr_t)loop->options->device;
    body.threads = loop->options->threads;
    body.fast = loop->options->fast;
    message.body_case = GPTOSS__SUPERVISOR_MESSAGE__BODY_WELCOME;
    message.welcome = &body;
    return send_to(loop, rank, &message, err, err_size);
}

static struct coordinator_end end_of(const struct loop_rank *rank)
{
    return (struct coordinator_end){rank->host, rank->uuid, rank->transports};
}

static uint32_t fill_edges(const struct loop *loop, Gptoss__Edge *edges, Gptoss__Edge **pointers)
{
    uint32_t n = loop->options->stages > 1 ? loop->options->stages : 0;
    for (uint32_t e = 0; e < n; e++) {
        gptoss__edge__init(&edges[e]);
        edges[e].from = coordinator_edge(n, e);
        edges[e].to = (edges[e].from + 1) % n;
        const struct coordinator_end from = end_of(&loop->ranks[edges[e].from]),
                                     to = end_of(&loop->ranks[edges[e].to]);
        const char *transport = coordinator_transport(&from, &to, loop->options->transport);
        /* A rank refuses a transport that it does not know, by name. */
        edges[e].transport = (char *)(uintptr_t)(transport ? transport : "none");
        pointers[e] = &edges[e];
    }
    return n;
}

static int send_plan(struct loop *loop, uint32_t rank, char *err, size_t err_size)
{
    const struct plan *plan = loop->plan;
    Gptoss__Plan body = GPTOSS__PLAN__INIT;
    Gptoss__SupervisorMessage message = GPTOSS__SUPERVISOR_MESSAGE__INIT;
    Gptoss__Edge *edges = base_alloc(plan->n_stages, sizeof *edges);
    Gptoss__Edge **pointers = base_alloc(plan->n_stages, sizeof *pointers);
    coordinator_plan_message(plan, rank, DEADLINE_MS, &body);
    body.n_edges = fill_edges(loop, edges, pointers);
    body.edges = pointers;
    body.fast = loop->options->fast;
    message.body_case = GPTOSS__SUPERVISOR_MESSAGE__BODY_PLAN;
    message.plan = &body;
    int status = send_to(loop, rank, &message, err, err_size);
    free(pointers);
    free(edges);
    return status;
}

int loop_issue(struct loop *loop, Gptoss__Step *step, char *err, size_t err_size)
{
    Gptoss__SupervisorMessage message = GPTOSS__SUPERVISOR_MESSAGE__INIT;
    step->step = loop->next_step++;
    message.body_case = GPTOSS__SUPERVISOR_MESSAGE__BODY_STEP;
    message.step = step;
    return send_to(loop, 0, &message, err, err_size);
}

static int beat(struct loop *loop, char *err, size_t err_size)
{
    uint64_t now = clock_us();
    if (now < loop->beat_us)
        return 0;
    loop->beat_us = now + BEAT_US;
    Gptoss__SupervisorHeartbeat body = GPTOSS__SUPERVISOR_HEARTBEAT__INIT;
    Gptoss__SupervisorMessage message = GPTOSS__SUPERVISOR_MESSAGE__INIT;
    body.seconds = (double)now * 1e-6;
    body.sent_us = loop->asked_us; /* a question that is not answered yet stands */
    message.body_case = GPTOSS__SUPERVISOR_MESSAGE__BODY_HEARTBEAT;
    message.heartbeat = &body;
    for (uint32_t r = 0; r < loop->options->stages; r++) {
        if (loop->ranks[r].peer_size == 0)
            continue;
        if (now > loop->ranks[r].heard_us + SILENCE_US) {
            snprintf(err, err_size, "rank %" PRIu32 " has said nothing for %d s", r,
                     (int)(SILENCE_US / SECOND));
            return -1;
        }
        if (send_to(loop, r, &message, err, err_size))
            return -1;
    }
    return 0;
}

/* ── messages in ───────────────────────────────────────────────────────────────────────────── */

static int take_hello(struct loop *loop, const Gptoss__Hello *hello, char *err, size_t err_size)
{
    if (hello->protocol != PROTO_VERSION || hello->size != loop->options->stages ||
        hello->rank >= loop->options->stages) {
        snprintf(err, err_size,
                 "rank %" PRIu32 " of %" PRIu32 " speaks protocol %" PRIu32 ", expected %" PRIu32
                 " ranks of protocol %d: is gptoss-worker of the same build?",
                 hello->rank, hello->size, hello->protocol, loop->options->stages, PROTO_VERSION);
        return -1;
    }
    struct loop_rank *rank = &loop->ranks[hello->rank];
    memcpy(rank->peer, loop->frame.peer, loop->frame.peer_size);
    rank->peer_size = loop->frame.peer_size;
    rank->heard_us = clock_us();
    return welcome(loop, hello->rank, err, err_size);
}

static void take_join(struct loop_rank *rank, const Gptoss__Join *join)
{
    rank->joined = true;
    snprintf(rank->host, sizeof rank->host, "%s", join->host);
    snprintf(rank->device, sizeof rank->device, "%s", join->device);
    snprintf(rank->uuid, sizeof rank->uuid, "%s", join->device_uuid);
    snprintf(rank->backend, sizeof rank->backend, "%s", join->backend);
    snprintf(rank->transports, sizeof rank->transports, "%s", join->transports);
    rank->memory_free = join->memory_free_bytes;
    rank->threads = join->threads;
    rank->bandwidth = join->bandwidth;
    rank->fast = join->fast;
}

static struct loop_rank *sender(struct loop *loop, uint32_t *number)
{
    for (uint32_t r = 0; r < loop->options->stages; r++)
        if (loop->ranks[r].peer_size && loop->ranks[r].peer_size == loop->frame.peer_size &&
            memcmp(loop->ranks[r].peer, loop->frame.peer, loop->frame.peer_size) == 0) {
            *number = r;
            return &loop->ranks[r];
        }
    return NULL;
}

static int take(struct loop *loop, const Gptoss__RankMessage *message, char *err, size_t err_size)
{
    if (message->body_case == GPTOSS__RANK_MESSAGE__BODY_HELLO)
        return take_hello(loop, message->hello, err, err_size);
    uint32_t number = 0;
    struct loop_rank *rank = sender(loop, &number);
    if (message->body_case == GPTOSS__RANK_MESSAGE__BODY_HEARTBEAT &&
        message->heartbeat->rank < loop->options->stages) { /* from a socket of its own */
        number = message->heartbeat->rank;
        rank = &loop->ranks[number];
    }
    if (!rank || message->epoch != EPOCH)
        return 0;
    rank->heard_us = clock_us();
    switch (message->body_case) {
    case GPTOSS__RANK_MESSAGE__BODY_JOIN: take_join(rank, message->join); return 0;
    case GPTOSS__RANK_MESSAGE__BODY_READY: rank->ready = true; return 0;
    case GPTOSS__RANK_MESSAGE__BODY_HEARTBEAT:
        if (loop->asked_us && message->heartbeat->echo_us == loop->asked_us) {
            rank->answered = true;
            rank->busy = message->heartbeat->busy_seconds;
        }
        return 0;
    case GPTOSS__RANK_MESSAGE__BODY_FAILED:
        snprintf(err, err_size, "rank %" PRIu32 ": %s", number, message->failed->text);
        return -1;
    case GPTOSS__RANK_MESSAGE__BODY_RESULT:
        if (message->result->error[0]) {
            snprintf(err, err_size, "rank %" PRIu32 " could not run step %" PRIu64 ": %s", number,
                     message->result->step, message->result->error);
            return -1;
        }
        return loop->result ? loop->result(loop->arg, message->result, err, err_size) : 0;
    default: return 0;
    }
}

int loop_poll(struct loop *loop, int timeout_ms, char *err, size_t err_size)
{
    if (beat(loop, err, err_size))
        return -1;
    zmq_pollitem_t item = {.socket = loop->socket, .events = ZMQ_POLLIN};
    int ready = zmq_poll(&item, 1, timeout_ms < POLL_MS ? timeout_ms : POLL_MS);
    if (bench_interrupted()) {
        snprintf(err, err_size, "interrupted");
        return -1;
    }
    for (int got; (got = proto_receive(loop->socket, &loop->frame, err, err_size));) {
        if (got < 0)
            return -1;
        char why[256];
        ProtobufCMessage *message =
            got == 1 ? proto_unpack(&gptoss__rank_message__descriptor, loop->frame.bytes,
                                    loop->frame.size, why, sizeof why)
                     : NULL;
        int status = message ? take(loop, (Gptoss__RankMessage *)message, err, err_size) : 0;
        proto_free(message);
        if (status)
            return -1;
    }
    int code;
    if (ready <= 0 && bench_child_ended(&loop->child, &code)) {
        snprintf(err, err_size, "mpirun ended with exit code %d: see what the ranks said", code);
        return -1;
    }
    return 0;
}

int loop_busy(struct loop *loop, double *busy, char *err, size_t err_size)
{
    Gptoss__SupervisorHeartbeat body = GPTOSS__SUPERVISOR_HEARTBEAT__INIT;
    Gptoss__SupervisorMessage message = GPTOSS__SUPERVISOR_MESSAGE__INIT;
    body.seconds = clock_seconds();
    body.sent_us = loop->asked_us = clock_us();
    message.body_case = GPTOSS__SUPERVISOR_MESSAGE__BODY_HEARTBEAT;
    message.heartbeat = &body;
    for (uint32_t r = 0; r < loop->options->stages; r++) {
        loop->ranks[r].answered = false;
        if (send_to(loop, r, &message, err, err_size))
            return -1;
    }
    *busy = 0;
    double end = clock_seconds() + ANSWER_SECONDS;
    for (uint32_t r = 0; r < loop->options->stages; r++) {
        while (!loop->ranks[r].answered && clock_seconds() < end)
            if (loop_poll(loop, POLL_MS, err, err_size))
                return -1;
        if (!loop->ranks[r].answered)
            *busy = -1;
        else if (*busy >= 0)
            *busy += loop->ranks[r].busy;
    }
    return 0;
}

/* ── opening and closing ───────────────────────────────────────────────────────────────────── */

static int start_ranks(struct loop *loop, const char *endpoint, char *err, size_t err_size)
{
    char worker[4096], number[16];
    bench_beside("gptoss-worker", worker, sizeof worker);
    snprintf(number, sizeof number, "%" PRIu32, loop->options->stages);
    const char *const argv[] = {COORDINATOR_MPIRUN, "-np",    number, worker,
                                "--coordinator",    endpoint, NULL};
    loop->child.gpu = loop->options->gpu < 0 ? 0 : loop->options->gpu + 1;
    return bench_child_start(&loop->child, argv, err, err_size);
}

static uint64_t blocks_of(const struct plan *plan)
{
    return ((uint64_t)plan->context + plan->block_tokens - 1) / plan->block_tokens;
}

static int make_plan(struct loop *loop, char *err, size_t err_size)
{
    const struct bench_world_options *o = loop->options;
    struct plan_rank *ranks = base_alloc(o->stages, sizeof *ranks);
    bool all_cpu = true, all_known = true;
    for (uint32_t r = 0; r < o->stages; r++) {
        const struct loop_rank *from = &loop->ranks[r];
        ranks[r] = (struct plan_rank){.host = from->host,
                                      .device = from->device,
                                      .device_uuid = from->uuid[0] ? from->uuid : NULL,
                                      .memory_free_bytes = from->memory_free,
                                      .bandwidth = from->bandwidth,
                                      .weights_in_place = strcmp(from->backend, "cuda") != 0};
        if (from->fast != o->fast) {
            snprintf(err, err_size,
                     "rank %" PRIu32
                     " has no products with int8 activations (%s): leave out --fast",
                     r, from->device);
            free(ranks);
            return -1;
        }
        all_cpu = all_cpu && ranks[r].weights_in_place;
        all_known = all_known && from->bandwidth > 0;
    }
    /* As the coordinator does: CPU ranks of one host share its memory bus, what each measured says
     * nothing about their ratio. */
    for (uint32_t r = 0; r < o->stages && (all_cpu || !all_known); r++)
        ranks[r].bandwidth = 0;
    struct plan_options options = {.n_ranks = o->stages,
                                   .ranks = ranks,
                                   .context = o->context,
                                   .sequences = o->sequences,
                                   .head = o->head,
                                   .kv_type = o->kv_type,
                                   .step_tokens = o->step_tokens,
                                   .vocabulary_limit = o->vocabulary.limit,
                                   .fast = o->fast};
    int status = plan_create(&loop->plan, o->model, &options, err, err_size);
    if (status > 0) {
        char *table = plan_table(loop->plan, ranks);
        fputs(table ? table : "", stderr);
        free(table);
    }
    if (status == 0 && loop->plan->full_blocks < blocks_of(loop->plan) * o->sequences) {
        snprintf(err, err_size,
                 "%" PRIu32 " sequences of %" PRIu32
                 " positions do not fit the memory: measure fewer, or less deep",
                 o->sequences, o->context);
        status = 1;
    }
    free(ranks);
    return status;
}

static void fill_info(const struct loop *loop, struct bench_world_info *info)
{
    const struct loop_rank *first = &loop->ranks[0];
    struct text layers = {0};
    const char *backend = strcmp(first->backend, "cpu") == 0    ? "CPU"
                          : strcmp(first->backend, "cuda") == 0 ? "CUDA"
                                                                : first->backend;
    snprintf(info->backend, sizeof info->backend, "%s", backend);
    snprintf(info->device, sizeof info->device, "%s", first->device);
    info->threads = first->threads;
    info->bandwidth = 0;
    for (uint32_t r = 0; r < loop->options->stages; r++)
        info->bandwidth += loop->ranks[r].bandwidth;
    for (uint32_t s = 0; s < loop->plan->n_stages; s++)
        text_print(&layers, "%s%" PRIu32, s ? "," : "", loop->plan->stages[s].layer_count);
    snprintf(info->layers, sizeof info->layers, "%s", layers.bytes);
    text_free(&layers);
}

static int wait_for_all(struct loop *loop, bool ready, char *err, size_t err_size)
{
    for (uint32_t r = 0; r < loop->options->stages;) {
        if (ready ? loop->ranks[r].ready : loop->ranks[r].joined)
            r++;
        else if (loop_poll(loop, POLL_MS, err, err_size))
            return -1;
    }
    return 0;
}

static void close_loop(void *world)
{
    struct loop *loop = world;
    if (!loop)
        return;
    char err[256];
    Gptoss__Shutdown body = GPTOSS__SHUTDOWN__INIT;
    Gptoss__SupervisorMessage message = GPTOSS__SUPERVISOR_MESSAGE__INIT;
    body.text = (char *)(uintptr_t) "the measurement is over";
    message.body_case = GPTOSS__SUPERVISOR_MESSAGE__BODY_SHUTDOWN;
    message.shutdown = &body;
    for (uint32_t r = 0; loop->socket && r < loop->options->stages; r++)
        if (loop->ranks[r].peer_size)
            send_to(loop, r, &message, err, sizeof err);
    /* Ranks that leave, or that have failed, end mpirun in good order; signalled while it ends, it may crash. */
    bench_child_stop(&loop->child, bench_interrupted() ? 0.5 : 5);
    proto_frame_free(&loop->frame);
    proto_close(loop->socket);
    if (loop->context)
        zmq_ctx_term(loop->context);
    bench_folder_remove(loop->folder);
    plan_destroy(loop->plan);
    free(loop->ranks);
    free(loop);
}

static int open_loop(void **world, const struct bench_world_options *options,
                     struct bench_world_info *info, char *err, size_t err_size)
{
    int code = EXIT_FAILED;
    char endpoint[128];
    struct loop *loop = base_alloc(1, sizeof *loop);
    *world = NULL;
    loop->options = options;
    loop->next_step = 1;
    loop->ranks = base_alloc(options->stages, sizeof *loop->ranks);
    loop->context = zmq_ctx_new();
    if (!loop->context) {
        snprintf(err, err_size, "ZeroMQ does not start: %s", zmq_strerror(errno));
        goto fail;
    }
    if (bench_folder_create(loop->folder, sizeof loop->folder, err, err_size))
        goto fail;
    snprintf(endpoint, sizeof endpoint, "ipc://%s/workers", loop->folder);
    if (proto_bind(&loop->socket, loop->context, endpoint, err, err_size) ||
        start_ranks(loop, endpoint, err, err_size) || wait_for_all(loop, false, err, err_size))
        goto fail;
    int status = make_plan(loop, err, err_size);
    if (status) {
        code = status > 0 ? EXIT_MEMORY : EXIT_FAILED;
        goto fail;
    }
    for (uint32_t r = 0; r < options->stages; r++)
        if (send_plan(loop, r, err, err_size))
            goto fail;
    if (wait_for_all(loop, true, err, err_size))
        goto fail;
    fill_info(loop, info);
    *world = loop;
    return EXIT_DONE;
fail:
    close_loop(loop);
    return code;
}

static int run_loop(void *world, const struct bench_test *test, uint64_t seed,
                    struct bench_sample *sample, char *err, size_t err_size)
{
    return steps_run(world, test, seed, sample, err, err_size);
}

static void idle_loop(void *world)
{
    char err[512]; /* what is wrong comes up again in the next run */
    loop_poll(world, 0, err, sizeof err);
}

const struct bench_driver bench_loop = {"loop", open_loop, NULL, run_loop, idle_loop, close_loop};
