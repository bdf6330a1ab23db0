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

#define LOOP_BATCH    256      /* messages taken from a socket before time passes, … */
#define LOOP_TAKE_US  20000    /* … and no longer: ranks and steps wait meanwhile */
#define LOOP_RETRIES  5        /* launches in a row that never came to serve, before any did */
#define LOOP_GRACE_US 300000   /* for ranks that leave by themselves: they may have words to say */
#define LOOP_DEATH_US 150000   /* for mpirun, to tell how a rank has died */
#define LOOP_JOIN_US  30000000 /* launched ranks that have not said Hello by then hang … */
#define LOOP_RETRY_US 5000000  /* between launches that fail for reasons that do not pass */
#define DESCRIPTORS   65536    /* not more: mpirun closes all that it may have, one by one */
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
    bool served;  /* launched ranks once came to serve: then accepted requests wait for others */
    bool foreign; /* somebody stopped one of them */
    uint32_t failures;    /* launches in a row that never came to serve */
    uint64_t launch_at;   /* when to launch again; 0: not asked for */
    uint64_t launched_us; /* when they were; 0: they have joined */
    int lost_code;        /* with which launched ranks said that they leave; 0: they did not */
    uint64_t lost_us;     /* when the ranks that last served were lost; 0: they serve */
    int code;             /* exit code, once ending */
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
    l->lost_code = 0;
    l->foreign = false;
    l->launched_us = clock_us();
    log_info("starting mpirun -np %u %s", l->options->launch, l->options->worker);
    if (launch_start(&l->launch, l->options->worker, l->options->launch, l->workers_endpoint, err,
                     sizeof err) == 0)
        return;
    if (!l->served)
        end(l, EXIT_FAILED, err);
    log_error("%s", err);
    l->launch_at = l->launched_us + LOOP_RETRY_US;
}

static bool is_hopeless(int code)
{
    return code == EXIT_USAGE || code == EXIT_MODEL || code == EXIT_MEMORY || code == 127;
}

/* The launched ranks are no more: again, and at once if they had served. Accepted requests wait for as
 * long as it takes; only ranks that never served at all are given up. */
static void launch_again(struct loop *l, uint64_t now, int code)
{
    char text[256];
    if (l->ending)
        return;
    code = l->lost_code ? l->lost_code : code;
    l->failures++;
    if (!l->served && (is_hopeless(code) || l->failures >= LOOP_RETRIES)) {
        snprintf(text, sizeof text,
                 "the ranks ended %u time%s before they could serve (exit code %d): see what they "
                 "said above",
                 l->failures, l->failures > 1 ? "s" : "", code);
        end(l, is_hopeless(code) && code != 127 ? code : EXIT_FAILED, text);
        return;
    }
    /* At once, mostly; a crash while loading is not to keep the host busy for ever. */
    uint64_t wait = l->failures <= 3    ? 0
                    : l->failures <= 10 ? LOOP_RETRY_US / 25
                    : l->failures <= 30 ? LOOP_RETRY_US / 5
                                        : LOOP_RETRY_US;
    if (is_hopeless(code))
        wait = LOOP_RETRY_US;
    l->launch_at = now + wait;
}

/* A rank has died or was stopped. Where the world does not know it, it was not yet there. */
static void rank_ended(struct loop *l, const struct launch_report *report, bool stopped,
                       uint64_t now)
{
    char text[128];
    const char *what = stopped ? "was stopped by a signal" : "died";
    bool mpirun = report->pid == l->launch.pid;
    l->foreign = stopped;
    if (stopped)
        launch_end(&l->launch, 0, now);
    if (!mpirun && coordinator_rank_ended(l->c, report->pid, what, now))
        return; /* COORDINATOR_LOST is under way */
    snprintf(text, sizeof text, "%s (pid %d) %s", mpirun ? "mpirun" : "a rank that starts",
             (int)report->pid, what);
    log_warn("%s", text);
    /* One that failed by itself has mpirun end the others, and tell its exit code. */
    launch_end(&l->launch, LOOP_GRACE_US, now);
    coordinator_world_ended(l->c, text, now);
}

static void see(void *arg, pid_t pid)
{
    struct loop *l = arg;
    coordinator_rank_runs(l->c, pid, l->launch.looked_us);
}

static void flush(struct loop *l);

static void watch_launch(struct loop *l, uint64_t now)
{
    char text[64];
    struct launch_report report;
    uint64_t looked = l->launch.looked_us;
    for (enum launch_news news; (news = launch_tick(&l->launch, now, &report)) != LAUNCH_NOTHING;) {
        if (news == LAUNCH_DIED || news == LAUNCH_STOPPED) {
            rank_ended(l, &report, news == LAUNCH_STOPPED, now);
            continue;
        }
        snprintf(text, sizeof text, "mpirun ended with exit code %d", report.code);
        log_debug("%s", text);
        coordinator_world_ended(l->c, text, now);
        coordinator_verdict(l->c, report.foreign || l->foreign);
        launch_again(l, now, report.code);
    }
    if (l->launch.looked_us != looked)
        launch_running(&l->launch, see, l);
    if (l->launched_us && coordinator_has_ranks(l->c))
        l->launched_us = 0;
    if (l->launched_us && l->launch.state == LAUNCH_RUNS && now > l->launched_us + LOOP_JOIN_US) {
        log_error("the launched ranks have not come in %d s: they are started anew",
                  LOOP_JOIN_US / 1000000);
        l->launched_us = now;
        coordinator_world_ended(l->c, "the launched ranks did not come", now);
        launch_end(&l->launch, 0, now);
    }
    flush(l); /* a LOST that still waits is of the ranks before: it would end the new ones */
    if (l->launch_at && now >= l->launch_at && l->launch.state == LAUNCH_NONE && !l->ending)
        launch(l);
}

static void say_how_to_start(const struct loop *l)
{
    bool other = strcmp(l->workers_endpoint, "tcp://127.0.0.1:5556") != 0;
    log_info("waiting for ranks: mpirun -np N gptoss-worker%s%s", other ? " --coordinator " : "",
             other ? l->workers_endpoint : "");
}

/* ── messages ──────────────────────────────────────────────────────────────────────────────── */

static void receive(struct loop *l, enum coordinator_side side)
{
    void *socket = side == COORDINATOR_CLIENTS ? l->clients : l->ranks;
    char err[256];
    uint64_t until = clock_us() + LOOP_TAKE_US;
    for (int i = 0; i < LOOP_BATCH && (i == 0 || clock_us() < until); i++) {
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
        l->served = true;
        if (l->lost_us)
            log_info("the ranks serve again, %.2f s after the last ones were lost",
                     (double)(clock_us() - l->lost_us) * 1e-6);
        l->lost_us = 0;
        log_info("the ranks are ready:");
        log_lines(LOG_INFO, (const char *)event->bytes);
        log_info("serving on %s; try: gptoss-client%s%s \"Hello\"", l->options->clients_endpoint,
                 strcmp(l->options->clients_endpoint, "tcp://127.0.0.1:5555") ? " --connect " : "",
                 strcmp(l->options->clients_endpoint, "tcp://127.0.0.1:5555")
                     ? l->options->clients_endpoint
                     : "");
        break;
    case COORDINATOR_LOST:
        if (!l->lost_us && l->served)
            l->lost_us = clock_us();
        if (event->code != EXIT_FAILED)
            l->lost_code = event->code;
        if (l->options->launch)
            launch_end(&l->launch, event->code != EXIT_FAILED ? LOOP_GRACE_US : LOOP_DEATH_US,
                       clock_us());
        else
            say_how_to_start(l);
        break;
    case COORDINATOR_IMPOSSIBLE:
        if (!l->options->launch)
            break;
        if (!l->served)
            end(l, event->code, (const char *)event->bytes);
        l->lost_code = event->code;
        launch_end(&l->launch, LOOP_GRACE_US, clock_us());
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
    if (options->launch) {
        launch_open(&l.launch);
        launch(&l);
    } else {
        say_how_to_start(&l);
    }
    while (!l.ending) {
        uint64_t now = clock_us(), next = coordinator_next(c, now);
        uint64_t look = launch_next(&l.launch, now);
        if (look < next)
            next = look;
        if (l.launch_at && l.launch.state == LAUNCH_NONE && l.launch_at < next)
            next = l.launch_at;
        long wait = next > now ? (long)((next - now + 999) / 1000) : 0;
        zmq_pollitem_t items[6] = {{.socket = l.ranks, .events = ZMQ_POLLIN},
                                   {.socket = l.clients, .events = ZMQ_POLLIN},
                                   {.fd = signal_pipe[0], .events = ZMQ_POLLIN}};
        int n_items = 3;
        if (l.launch.state == LAUNCH_RUNS && l.launch.events >= 0)
            items[n_items++] = (zmq_pollitem_t){.fd = l.launch.events, .events = ZMQ_POLLIN};
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
        receive(&l, COORDINATOR_CLIENTS);
        receive(&l, COORDINATOR_RANKS); /* last: they are judged by what they have said */
        now = clock_us();
        if (options->launch)
            watch_launch(&l, now);
        coordinator_tick(c, now);
        flush(&l);

        if (options->costs && now >= costs_at) {
            write_costs(c, options->costs);
            costs_at = now + LOOP_COSTS_US;
        }
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
    if (options->launch)
        launch_close(&l.launch, joined ? 5000000 : 0);
done:
    proto_close(l.clients);
    proto_close(l.ranks);
    proto_guard_destroy(l.guard);
    zmq_ctx_term(l.context);
    proto_frame_free(&l.frame);
    return l.code;
}
