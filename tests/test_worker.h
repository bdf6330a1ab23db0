/*
 * A small coordinator for tests: it starts mpirun gptoss-worker, welcomes, plans, sends steps, and hears
 * what comes back. One at a time, in `it`; for one test program only.
 */
#ifndef GPTOSS_TESTS_TEST_WORKER_H
#define GPTOSS_TESTS_TEST_WORKER_H

#include "tests/test.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "proto/proto.h"

#define MODEL        GPTOSS_SOURCE_DIR "/models/gptoss-tiny-mxfp4.gguf"
#define GOLDEN       GPTOSS_SOURCE_DIR "/models/gptoss-tiny-mxfp4.golden.json"
#define LAYERS       24
#define VOCABULARY   4096
#define BLOCK_TOKENS 16
#define CONTEXT      256
#define SLOTS        4
#define EPOCH        77
#define RANKS_MAX    4
#define IN_FLIGHT    6

extern char **environ;

static struct {
    void *context, *socket;
    char endpoint[128], log[128];
    pid_t pid;
    uint32_t ranks;
    struct proto_frame frame;
    struct {
        unsigned char id[PROTO_PEER_MAX];
        size_t size;
    } peers[RANKS_MAX];
    uint64_t world, steps, digest, deadline_ms;
    bool fast, plan_fast; /* what the ranks are told before they join, and then */
    bool cut;             /* the head, over all ranks */
    uint32_t hellos, joins, readies;
    double beat;
} it;

static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ── processes ─────────────────────────────────────────────────────────────────────────────── */

static inline void start(uint32_t ranks, const char *endpoint, const char *timeout)
{
    char n[16];
    snprintf(n, sizeof n, "%u", ranks);
    const char *const all[] = {"mpirun",
                               "--oversubscribe",
                               "--allow-run-as-root",
                               "-np",
                               n,
                               GPTOSS_BINARY_DIR "/bin/gptoss-worker",
                               "--coordinator",
                               endpoint,
                               "--threads",
                               "1",
                               "--connect-timeout",
                               timeout,
                               NULL};
    char **args = (char **)(ranks == 1 ? all + 5 : all); /* one rank needs no mpirun */
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 2, it.log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 2, 1);
    assert_int_equal(posix_spawnp(&it.pid, args[0], &actions, NULL, args, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    it.ranks = ranks;
}

static inline const char *log_text(void)
{
    static char text[65536];
    FILE *file = fopen(it.log, "r");
    size_t size = file ? fread(text, 1, sizeof text - 1, file) : 0;
    text[size] = 0;
    if (file)
        fclose(file);
    return text;
}

/* Waits for what start() started; its exit code. */
static inline int ended(double seconds)
{
    double end = now() + seconds;
    int status = 0;
    while (waitpid(it.pid, &status, WNOHANG) == 0) {
        if (now() > end)
            fail_msg("the ranks did not end in %.0f s:\n%s", seconds, log_text());
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    it.pid = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static inline void says(const char *text, const char *what)
{
    if (strstr(text, what) == NULL)
        fail_msg("it does not say \"%s\":\n%s", what, text);
}

static inline int set_up(void **state)
{
    (void)state;
    static int number;
    char err[256];
    memset(&it, 0, sizeof it);
    it.deadline_ms = 20000;
    it.cut = false;
    snprintf(it.endpoint, sizeof it.endpoint, "ipc:///tmp/gptoss-test-%d-%d", (int)getpid(),
             number);
    snprintf(it.log, sizeof it.log, "/tmp/gptoss-test-%d-%d.log", (int)getpid(), number++);
    it.context = zmq_ctx_new();
    if (proto_bind(&it.socket, it.context, it.endpoint, err, sizeof err)) {
        print_error("%s\n", err);
        return -1;
    }
    return 0;
}

static inline int tear_down(void **state)
{
    (void)state;
    if (it.pid) {
        kill(it.pid, SIGTERM); /* mpirun then ends its ranks */
        for (int i = 0; i < 300 && waitpid(it.pid, NULL, WNOHANG) == 0; i++)
            nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
        kill(it.pid, SIGKILL);
    }
    proto_close(it.socket);
    zmq_ctx_term(it.context);
    proto_frame_free(&it.frame);
    unlink(it.endpoint + strlen("ipc://"));
    unlink(it.log);
    return 0;
}

/* ── messages ──────────────────────────────────────────────────────────────────────────────── */

#define MESSAGE(name, kind, field)                                                                 \
    Gptoss__SupervisorMessage message = GPTOSS__SUPERVISOR_MESSAGE__INIT;                          \
    message.epoch = EPOCH;                                                                         \
    message.body_case = GPTOSS__SUPERVISOR_MESSAGE__BODY_##kind;                                   \
    message.field = (name)

static inline void tell(uint32_t rank, const Gptoss__SupervisorMessage *message)
{
    size_t size;
    char err[256];
    void *bytes = proto_pack(&message->base, &size);
    proto_send_bytes(it.socket, it.peers[rank].id, it.peers[rank].size, bytes, size, err,
                     sizeof err);
    free(bytes);
}

/* The next message of any rank, answered with heartbeats meanwhile. The caller frees it. */
static inline Gptoss__RankMessage *hear(double seconds)
{
    double end = now() + seconds;
    char err[256];
    for (;;) {
        if (now() - it.beat > 1) {
            it.beat = now();
            Gptoss__SupervisorHeartbeat beat = GPTOSS__SUPERVISOR_HEARTBEAT__INIT;
            beat.sent_us = (uint64_t)(it.beat * 1e6);
            MESSAGE(&beat, HEARTBEAT, heartbeat);
            for (uint32_t r = 0; r < it.hellos; r++)
                tell(r, &message);
        }
        int got = proto_receive(it.socket, &it.frame, err, sizeof err);
        if (got == 1) {
            Gptoss__RankMessage *m = (Gptoss__RankMessage *)proto_unpack(
                &gptoss__rank_message__descriptor, it.frame.bytes, it.frame.size, err, sizeof err);
            if (m == NULL)
                fail_msg("%s", err);
            return m;
        }
        if (now() > end)
            fail_msg("nothing was heard for %.0f s; the ranks' log:\n%s", seconds, log_text());
        zmq_poll(&(zmq_pollitem_t){.socket = it.socket, .events = ZMQ_POLLIN}, 1, 100);
    }
}

/* The next message of this kind; others are passed over. */
static inline Gptoss__RankMessage *hear_of(Gptoss__RankMessage__BodyCase kind)
{
    for (;;) {
        Gptoss__RankMessage *m = hear(20);
        if (m->body_case == kind)
            return m;
        if (m->body_case == GPTOSS__RANK_MESSAGE__BODY_FAILED)
            fail_msg("rank %u failed: %s", m->failed->rank, m->failed->text);
        proto_free(&m->base);
    }
}

static inline void hear_hellos(void)
{
    while (it.hellos < it.ranks) {
        Gptoss__RankMessage *m = hear(20);
        assert_int_equal(m->body_case, GPTOSS__RANK_MESSAGE__BODY_HELLO);
        assert_int_equal(m->hello->size, it.ranks);
        assert_int_equal(m->hello->protocol, PROTO_VERSION);
        assert_true(m->hello->rank < it.ranks);
        assert_true(it.world == 0 || it.world == m->hello->world);
        it.world = m->hello->world;
        uint32_t rank = m->hello->rank;
        it.hellos += it.peers[rank].size == 0;
        memcpy(it.peers[rank].id, it.frame.peer, it.frame.peer_size);
        it.peers[rank].size = it.frame.peer_size;
        proto_free(&m->base);
    }
}

static inline void welcome(const char *model)
{
    Gptoss__Welcome w = GPTOSS__WELCOME__INIT;
    w.model = (char *)model;
    w.device = (char *)"cpu";
    w.fast = it.fast;
    MESSAGE(&w, WELCOME, welcome);
    for (uint32_t r = 0; r < it.ranks; r++)
        tell(r, &message);
}

static inline void plan(uint32_t rank)
{
    Gptoss__Plan p = GPTOSS__PLAN__INIT;
    Gptoss__Edge edges[RANKS_MAX], *list[RANKS_MAX];
    uint32_t first = LAYERS * rank / it.ranks;
    p.stages = it.ranks;
    p.stage = rank;
    p.layer_first = first;
    p.layer_count = LAYERS * (rank + 1) / it.ranks - first;
    p.head_count = rank + 1 == it.ranks ? VOCABULARY : 0;
    uint32_t counts[RANKS_MAX];
    for (uint32_t r = 0, unit = VOCABULARY / 1024; it.cut && r < it.ranks; r++) {
        counts[r] = (unit * (r + 1) / it.ranks - unit * r / it.ranks) * 1024;
        p.head_first += r < rank ? counts[r] : 0;
        p.head_count = r == rank ? counts[r] : p.head_count;
        p.head_counts = counts;
        p.n_head_counts = it.ranks;
        p.head_jobs = 2;
    }
    p.fast = it.plan_fast;
    p.kv_block_tokens = BLOCK_TOKENS;
    p.kv_full_blocks = p.kv_window_blocks = SLOTS * CONTEXT / BLOCK_TOKENS;
    p.sequences = SLOTS;
    p.context = CONTEXT;
    p.step_tokens = 128;
    p.step_rows = SLOTS;
    p.step_samples = SLOTS;
    p.steps_in_flight = IN_FLIGHT;
    p.step_deadline_ms = it.deadline_ms;
    p.edges = list;
    for (uint32_t r = 0; it.ranks > 1 && r < it.ranks; r++) {
        gptoss__edge__init(&edges[r]);
        edges[r].from = r;
        edges[r].to = (r + 1) % it.ranks;
        edges[r].transport = (char *)"mpi";
        list[p.n_edges++] = &edges[r];
    }
    MESSAGE(&p, PLAN, plan);
    tell(rank, &message);
}

/* Until all are ready. */
static inline void bring_up(uint32_t ranks)
{
    start(ranks, it.endpoint, "20");
    hear_hellos();
    welcome(MODEL);
    for (uint32_t i = 0; i < ranks; i++) {
        Gptoss__RankMessage *m = hear_of(GPTOSS__RANK_MESSAGE__BODY_JOIN);
        assert_int_equal(m->epoch, EPOCH);
        assert_string_equal(m->join->backend, "cpu");
        assert_int_equal(m->join->threads, 1);
        says(m->join->transports, "mpi");
        assert_true(m->join->header_bytes > 0 && m->join->host[0] && m->join->device_uuid[0]);
        assert_true(i == 0 || m->join->header_digest == it.digest);
        it.digest = m->join->header_digest;
        proto_free(&m->base);
    }
    for (uint32_t r = 0; r < ranks; r++)
        plan(r);
    for (uint32_t i = 0; i < ranks; i++) {
        Gptoss__RankMessage *m = hear_of(GPTOSS__RANK_MESSAGE__BODY_READY);
        assert_true(m->ready->weights_bytes > 0 && m->ready->kv_bytes > 0);
        proto_free(&m->base);
    }
}

static inline void shut_down(void)
{
    Gptoss__Shutdown s = GPTOSS__SHUTDOWN__INIT;
    s.text = (char *)"the test is over";
    MESSAGE(&s, SHUTDOWN, shutdown);
    for (uint32_t r = 0; r < it.ranks; r++)
        tell(r, &message);
    int code = ended(15);
    if (code)
        fail_msg("exit code %d:\n%s", code, log_text());
}

/* ── sequences ─────────────────────────────────────────────────────────────────────────────── */

struct sequence {
    uint32_t slot;
    uint32_t n_prompt, prompt[256];
    uint32_t n_greedy, greedy[256];
    float logits[256], margins[256]; /* the best one's, and how far ahead of the second it is */
    uint32_t issued;                 /* positions */
    uint32_t received;               /* samples */
};

static inline struct sequence golden(const char *name, uint32_t slot)
{
    static struct sequence s;
    json_t *all = json_load_file(GOLDEN, 0, NULL), *one;
    size_t i;
    memset(&s, 0, sizeof s);
    s.slot = slot;
    assert_non_null(all);
    json_array_foreach(all, i, one)
    {
        if (strcmp(json_string_value(json_object_get(one, "name")), name) != 0)
            continue;
        json_t *prompt = json_object_get(one, "prompt"), *greedy = json_object_get(one, "greedy");
        json_t *top = json_object_get(one, "top5");
        for (; s.n_prompt < json_array_size(prompt); s.n_prompt++)
            s.prompt[s.n_prompt] = (uint32_t)json_integer_value(json_array_get(prompt, s.n_prompt));
        for (; s.n_greedy < json_array_size(greedy); s.n_greedy++) {
            json_t *best = json_array_get(top, s.n_greedy);
            double a = json_number_value(json_array_get(json_array_get(best, 0), 1));
            double b = json_number_value(json_array_get(json_array_get(best, 1), 1));
            s.greedy[s.n_greedy] = (uint32_t)json_integer_value(json_array_get(greedy, s.n_greedy));
            s.logits[s.n_greedy] = (float)a;
            s.margins[s.n_greedy] = (float)(a - b);
        }
    }
    json_decref(all);
    assert_true(s.n_prompt > 0);
    return s;
}

/* A row of the next `count` positions of a sequence: of its prompt, or the token last sampled. */
static inline void fill_row(Gptoss__Row *row, uint32_t *blocks, struct sequence *s, uint32_t count)
{
    gptoss__row__init(row);
    row->slot = s->slot;
    row->position = s->issued;
    row->count = count;
    row->restart = s->issued == 0;
    row->top_p = 1;
    row->top_logits = 5;
    if (s->issued < s->n_prompt) {
        row->n_tokens = count;
        row->tokens = s->prompt + s->issued;
    }
    s->issued += count;
    row->sample_from = s->issued < s->n_prompt ? count : count - 1;
    uint32_t had = (row->position + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    uint32_t has = (s->issued + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    /* Any numbers do, as long as no two sequences share one: those of a slot are SLOTS apart. */
    for (uint32_t b = had; b < has; b++)
        blocks[row->n_full_blocks++] = b * SLOTS + s->slot;
    row->n_window_blocks = row->n_full_blocks;
    row->full_blocks = row->window_blocks = blocks;
}

static inline void send_step(Gptoss__Row *rows, size_t n_rows)
{
    Gptoss__Step step = GPTOSS__STEP__INIT;
    Gptoss__Row *list[SLOTS];
    for (size_t i = 0; i < n_rows; i++)
        list[i] = &rows[i];
    step.step = ++it.steps;
    step.n_rows = n_rows;
    step.rows = list;
    MESSAGE(&step, STEP, step);
    tell(0, &message);
}

static inline void check_sample(struct sequence *s, const Gptoss__Sample *sample)
{
    uint32_t n = s->received++;
    assert_int_equal(sample->position, s->n_prompt - 1 + n);
    if (s->margins[n] > 0.05f)
        assert_int_equal(sample->token, s->greedy[n]);
    test_close("logit", &sample->logit, &s->logits[n], 1, 2e-2);
    assert_int_equal(sample->n_top_ids, 5);
    assert_int_equal(sample->top_ids[0], sample->token);
    assert_true(sample->top_logits[0] == sample->logit);
    assert_true(sample->log_sum_exp >= sample->logit);
}

static inline Gptoss__RankMessage *hear_failure(void)
{
    for (;;) {
        Gptoss__RankMessage *m = hear(20);
        if (m->body_case == GPTOSS__RANK_MESSAGE__BODY_FAILED)
            return m;
        proto_free(&m->base);
    }
}

#endif
