/*
 * loop: one thread around zmq_poll. Nothing in it blocks but the poll.
 */
#include "coordinator/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <zmq.h>

#include "base/base.h"
#include "coordinator/keygen.h"
#include "coordinator/launch.h"
#include "proto/proto.h"

#define LOOP_BATCH    256   /* messages taken from a socket before time passes */
#define LOOP_RETRIES  3     /* launches in a row that never came to serve */
#define DESCRIPTORS   65536 /* not more: mpirun closes all that it may have, one by one */
#define LOOP_RETRY_US 1000000
#define LOOP_COSTS_US 10000000

struct loop {
    struct coordinator *c;
    const struct loop_options *options;
    void *context, *clients, *ranks;
    struct proto_keys keys;    /* of the coordinator, where there are keys */
    struct proto_guard *guard; /* NULL: everybody is admitted */
    uint64_t refused_us;       /* when it was last told that somebody was not */
    struct proto_frame frame;
    struct launch launch;
    char workers_endpoint[256];            /* as launched ranks connect to it */
    unsigned char dropped[PROTO_PEER_MAX]; /* the last one that did not read: told once */
    size_t dropped_size;
    uint32_t failures;  /* launches in a row that never came to serve */
    uint64_t launch_at; /* when to launch again; 0: not asked for */
    int code;           /* exit code, once ending */
    bool ending;
    char *err;
    size_t err_size;
};

/* Signals are counted here; the pipe wakes the poll. */
static volatile sig_atomic_t signals;
static int signal_pipe[2] = {-1, -1};

static void on_signal(int number)
{
    int saved = errno;
    if (number != SIGCHLD)
        signals++;
    ssize_t written = write(signal_pipe[1], "", 1);
    (void)written;
    errno = saved;
}

/* Every client is a descriptor, and libzmq ends the process when an ipc listener finds none left. */
static void raise_descriptors(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur >= DESCRIPTORS)
        return;
    limit.rlim_cur = limit.rlim_max < DESCRIPTORS ? limit.rlim_max : DESCRIPTORS;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static void watch_signals(void)
{
    if (pipe2(signal_pipe, O_CLOEXEC | O_NONBLOCK))
        return;
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGCHLD, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static void end(struct loop *l, int code, const char *why)
{
    if (l->ending)
        return;
    l->ending = true;
    l->code = code;
    if (code != EXIT_DONE)
        snprintf(l->err, l->err_size, "%s", why);
}

/* ── launching ─────────────────────────────────────────────────────────────────────────────── */

static void launch(struct loop *l)
{
    char err[512];
    l->launch_at = 0;
    log_info("starting mpirun -np %u %s", l->options->launch, l->options->worker);
    if (launch_start(&l->launch, l->options->worker, l->options->launch, l->workers_endpoint, err,
                     sizeof err))
        end(l, EXIT_FAILED, err);
}

/* The launched ranks are no more; once more, unless they never come to serve. */
static void launch_again(struct loop *l, uint64_t now, int code)
{
    char text[256];
    launch_stop(&l->launch, 2);
    if (l->ending)
        return;
    bool hopeless = code == EXIT_USAGE || code == EXIT_MODEL || code == EXIT_MEMORY || code == 127;
    if (hopeless || ++l->failures >= LOOP_RETRIES) {
        snprintf(
            text, sizeof text,
            "the ranks ended %u time%s before they could serve (mpirun's exit code is %d): see "
            "what they said above",
            l->failures ? l->failures : 1, l->failures > 1 ? "s" : "", code);
        end(l, hopeless && code != 127 ? code : EXIT_FAILED, text);
        return;
    }
    l->launch_at = now + LOOP_RETRY_US;
}

/* ── messages ──────────────────────────────────────────────────────────────────────────────── */

static void flush(struct loop *l);

static void receive(struct loop *l, enum coordinator_side side)
{
    void *socket = side == COORDINATOR_CLIENTS ? l->clients : l->ranks;
    char err[256];
    for (int i = 0; i < LOOP_BATCH; i++) {
        int status = proto_receive(socket, &l->frame, err, sizeof err);
        if (status == 0)
            return;
        if (status < 0) {
            log_error("%s", err);
            return;
        }
        coordinator_receive(l->c, side, l->frame.peer, l->frame.peer_size,
                            status == 2 ? NULL : l->frame.bytes, status == 2 ? 0 : l->frame.size,
                            clock_us());
        flush(l); /* one Resume may answer with a whole context of tokens */
    }
}

/* A table is logged line by line: a record is one line. */
static void log_lines(enum log_level level, const char *text)
{
    for (const char *line = text; *line;) {
        size_t size = strcspn(line, "\n");
        log_write(level, "%.*s", (int)size, line);
        line += size + (line[size] == '\n');
    }
}

static void handle(struct loop *l, const struct coordinator_event *event)
{
    char err[256];
    switch (event->kind) {
    case COORDINATOR_SEND: {
        enum coordinator_side side = event->side;
        struct {
            unsigned char bytes[PROTO_PEER_MAX];
            size_t size;
        } peer = {.size = event->peer_size};
        memcpy(peer.bytes, event->peer, event->peer_size);
        int status =
            proto_send_bytes(side == COORDINATOR_CLIENTS ? l->clients : l->ranks, event->peer,
                             event->peer_size, event->bytes, event->size, err, sizeof err);
        if (status < 0)
            log_error("%s", err);
        if (status == 2 &&
            (peer.size != l->dropped_size || memcmp(peer.bytes, l->dropped, peer.size)))
            log_warn("a %s does not read its messages and is dropped",
                     side == COORDINATOR_CLIENTS ? "client" : "rank");
        if (status == 2) {
            memcpy(l->dropped, peer.bytes, peer.size);
            l->dropped_size = peer.size;
        }
        if (status)
            coordinator_gone(l->c, side, peer.bytes, peer.size, clock_us());
        break;
    }
    case COORDINATOR_LOG:
        log_lines((enum log_level)event->level, (const char *)event->bytes);
        break;
    case COORDINATOR_KEEP:
        journal_append(l->options->journal, event->bytes, event->size, event->code);
        break;
    case COORDINATOR_SERVING:
        l->failures = 0;
        log_info("the ranks are ready:");
        log_lines(LOG_INFO, (const char *)event->bytes);
        log_info("serving on %s; try: gptoss-client%s%s \"Hello\"", l->options->clients_endpoint,
                 strcmp(l->options->clients_endpoint, "tcp://127.0.0.1:5555") ? " --connect " : "",
                 strcmp(l->options->clients_endpoint, "tcp://127.0.0.1:5555")
                     ? l->options->clients_endpoint
                     : "");
        break;
    case COORDINATOR_LOST:
        if (l->options->launch)
            launch_again(l, clock_us(), EXIT_FAILED);
        else
            log_info("waiting for ranks: mpirun -np N gptoss-worker");
        break;
    case COORDINATOR_IMPOSSIBLE:
        if (l->options->launch)
            end(l, event->code, (const char *)event->bytes);
        break;
    }
}

static void flush(struct loop *l)
{
    struct coordinator_event event;
    while (coordinator_take(l->c, &event))
        handle(l, &event);
}

/* ── the loop ──────────────────────────────────────────────────────────────────────────────── */

/* The coordinator's keys and its allow list. */
static int open_keys(struct loop *l)
{
    char path[PATH_MAX];
    const struct loop_options *o = l->options;
    if (!o->keys) {
        unsetenv(
            "GPTOSS_KEY"); /* of launched ranks: it would be meant for a coordinator with keys */
        return EXIT_DONE;
    }
    snprintf(path, sizeof path, "%s/" KEYGEN_COORDINATOR, o->keys);
    if (proto_keys_read(&l->keys, path, l->err, l->err_size))
        return EXIT_USAGE;
    snprintf(path, sizeof path, "%s/" KEYGEN_WORKER, o->keys);
    if (o->launch && access(path, R_OK)) {
        snprintf(l->err, l->err_size,
                 "%s: %m: the ranks of --launch show this key: "
                 "gptoss-coordinator keygen %s worker",
                 path, o->keys);
        return EXIT_USAGE;
    }
    setenv("GPTOSS_KEY", path, 1);
    unsetenv("GPTOSS_SERVER_KEY");
    if (o->allow)
        snprintf(path, sizeof path, "%s", o->allow);
    else
        snprintf(path, sizeof path, "%s/" KEYGEN_ALLOW, o->keys);
    if (proto_guard_create(&l->guard, l->context, path, l->err, l->err_size))
        return EXIT_USAGE;
    return EXIT_DONE;
}

/* Who asks to be admitted is answered; that somebody was not is told once a second. */
static void watch_door(struct loop *l, uint64_t now)
{
    char text[1024];
    int status = 0;
    for (int i = 0; i < LOOP_BATCH && l->guard; i++) {
        if ((status = proto_guard_answer(l->guard, text, sizeof text)) == 0)
            return;
        if (status != 1 && (!l->refused_us || now >= l->refused_us + LOOP_RETRY_US)) {
            l->refused_us = now;
            log_warn("%s", text);
        }
    }
}

/* What is on disk by now is accepted. */
static void hear_journal(struct loop *l)
{
    uint64_t records;
    char text[400];
    if (journal_kept(l->options->journal, &records, text, sizeof text)) {
        end(l, EXIT_FAILED, text);
        return;
    }
    coordinator_kept(l->c, records, clock_us());
    flush(l);
}

static int bind_endpoint(void **socket, struct loop *l, const char *option, const char *role,
                         const char *endpoint)
{
    char err[400];
    struct proto_bind_options options = {.role = role};
    if (!l->guard && !l->options->insecure && !proto_endpoint_is_local(endpoint)) {
        snprintf(
            l->err, l->err_size,
            "%s %s can be reached from other hosts, and whoever reaches it can use or stop this "
            "server: make keys (gptoss-coordinator keygen keys) and give --keys keys; or bind a "
            "loopback address or ipc://; or say --insecure on a network where you trust everybody",
            option, endpoint);
        return EXIT_USAGE;
    }
    if (l->guard)
        options.keys = &l->keys;
    if (role[0] == 'c')
        options.queue = l->options->client_queue;
    if (proto_bind_with(socket, l->context, endpoint, &options, err, sizeof err)) {
        snprintf(l->err, l->err_size, "%s: %s", option, err);
        return EXIT_FAILED;
    }
    return EXIT_DONE;
}

/* Launched ranks are on this host: a wildcard address is 127.0.0.1 to them. */
static void reachable(struct loop *l)
{
    char endpoint[200];
    proto_endpoint(l->ranks, endpoint, sizeof endpoint);
    const char *colon = strrchr(endpoint, ':');
    if (strncmp(endpoint, "tcp://0.0.0.0:", 14) == 0 || strncmp(endpoint, "tcp://[::]:", 11) == 0)
        snprintf(l->workers_endpoint, sizeof l->workers_endpoint, "tcp://127.0.0.1%s", colon);
    else
        snprintf(l->workers_endpoint, sizeof l->workers_endpoint, "%s", endpoint);
}

/* Into a new file that then takes the other's place. */
static void write_costs(const struct coordinator *c, const char *path)
{
    char *text = path ? coordinator_costs(c) : NULL;
    if (!text)
        return;
    char new_path[PATH_MAX];
    snprintf(new_path, sizeof new_path, "%s.new", path);
    FILE *file = fopen(new_path, "w");
    bool failed = !file || fputs(text, file) < 0;
    if (file)
        failed |= fclose(file) != 0;
    if (failed || rename(new_path, path))
        log_warn("--costs %s: %s", path, strerror(errno));
    free(text);
}

static bool idle(const struct coordinator *c)
{
    struct coordinator_counts counts;
    coordinator_counts(c, &counts);
    return counts.running + counts.waiting == 0;
}

int loop_run(struct coordinator *c, const struct loop_options *options, char *err, size_t err_size)
{
    struct loop l = {.c = c, .options = options, .err = err, .err_size = err_size};
    uint64_t drain_until = 0, costs_at = 0;
    int signals_seen = 0;
    watch_signals();
    raise_descriptors();
    l.context = zmq_ctx_new();
    l.code = open_keys(&l);
    if (l.code == EXIT_DONE)
        l.code = bind_endpoint(&l.clients, &l, "--bind", "client", options->clients_endpoint);
    if (l.code == EXIT_DONE)
        l.code = bind_endpoint(&l.ranks, &l, "--workers-bind", "worker", options->workers_endpoint);
    if (l.code != EXIT_DONE)
        goto done;
    reachable(&l);
    if (options->launch)
        launch(&l);
    else
        log_info("waiting for ranks: mpirun -np N gptoss-worker%s%s",
                 strcmp(l.workers_endpoint, "tcp://127.0.0.1:5556") ? " --coordinator " : "",
                 strcmp(l.workers_endpoint, "tcp://127.0.0.1:5556") ? l.workers_endpoint : "");
    while (!l.ending) {
        uint64_t now = clock_us(), next = coordinator_next(c, now);
        if (l.launch_at && l.launch_at < next)
            next = l.launch_at;
        long wait = next > now ? (long)((next - now + 999) / 1000) : 0;
        zmq_pollitem_t items[5] = {{.socket = l.ranks, .events = ZMQ_POLLIN},
                                   {.socket = l.clients, .events = ZMQ_POLLIN},
                                   {.fd = signal_pipe[0], .events = ZMQ_POLLIN}};
        int n_items = 3;
        if (l.guard)
            items[n_items++] =
                (zmq_pollitem_t){.socket = proto_guard_socket(l.guard), .events = ZMQ_POLLIN};
        if (options->journal)
            items[n_items++] =
                (zmq_pollitem_t){.fd = journal_fd(options->journal), .events = ZMQ_POLLIN};
        zmq_poll(items, n_items, wait);
        char drop[64];
        while (read(signal_pipe[0], drop, sizeof drop) > 0)
            ;
        watch_door(&l, clock_us());
        if (options->journal)
            hear_journal(&l);
        receive(&l, COORDINATOR_RANKS);
        receive(&l, COORDINATOR_CLIENTS);
        now = clock_us();
        coordinator_tick(c, now);
        flush(&l);

        if (options->costs && now >= costs_at) {
            write_costs(c, options->costs);
            costs_at = now + LOOP_COSTS_US;
        }
        int code;
        if (launch_ended(&l.launch, &code) && !l.ending) {
            char text[64];
            snprintf(text, sizeof text, "mpirun ended with exit code %d", code);
            log_warn("%s", text);
            /* With a world the loss of it starts the next one, without one this does. */
            coordinator_world_ended(c, text, now);
            flush(&l);
            if (!l.launch_at && !l.ending)
                launch_again(&l, now, code);
        }
        if (l.launch_at && now >= l.launch_at)
            launch(&l);
        int arrived = signals - signals_seen;
        if (arrived > 0) {
            signals_seen += arrived;
            if (arrived > 1 || drain_until || options->drain_seconds <= 0) {
                log_info("stopping at once");
                end(&l, EXIT_DONE, "");
            } else {
                drain_until = now + (uint64_t)(options->drain_seconds * 1e6);
                coordinator_drain(c, now);
                flush(&l);
            }
        }
        if (drain_until && !l.ending && !idle(c) && now >= drain_until)
            log_warn("--drain-timeout is over: %s",
                     options->journal ? "what is not finished stays in the journal"
                                      : "what is not finished is ended");
        if (drain_until && (idle(c) || now >= drain_until))
            end(&l, EXIT_DONE, "");
    }
    /* Ranks that have not said Hello are told nothing: they are not waited for. */
    bool joined = coordinator_has_ranks(c);
    write_costs(c, options->costs);
    coordinator_stop(c, "the coordinator is shutting down", clock_us());
    flush(&l);
    launch_stop(&l.launch, joined ? 5 : 0);
done:
    proto_close(l.clients);
    proto_close(l.ranks);
    proto_guard_destroy(l.guard);
    zmq_ctx_term(l.context);
    proto_frame_free(&l.frame);
    return l.code;
}
