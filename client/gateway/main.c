/* gptoss-gateway: the loop, signals, exit codes. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <zmq.h>

#include "client/gateway/gateway.h"

#define TICK_MS       200
#define SWEEP_SECONDS 1.0
#define SPARE_FILES   64 /* descriptors that are no HTTP connections */

static volatile sig_atomic_t signals;

static void on_signal(int signal)
{
    (void)signal;
    signals++;
}

static void catch_signals(void)
{
    struct sigaction stop = {.sa_handler = on_signal}, ignore = {.sa_handler = SIG_IGN};
    sigaction(SIGINT, &stop, NULL);
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
}

/* A descriptor for each connection; -1: the system does not allow so many. */
static void raise_limit(struct gateway_options *o)
{
    struct rlimit limit;
    rlim_t wanted = (rlim_t)o->connections + SPARE_FILES;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted)
        return;
    limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < wanted && limit.rlim_cur > 2 * SPARE_FILES) {
        o->connections = (int64_t)limit.rlim_cur - SPARE_FILES;
        log_warn("the system allows %lld connections only (ulimit -n)", (long long)o->connections);
    }
}

/* A ZeroMQ socket's descriptor: readable once when something came, perhaps for nothing. */
static int zmq_fd(void *socket)
{
    int fd = -1;
    size_t size = sizeof fd;
    zmq_getsockopt(socket, ZMQ_FD, &fd, &size);
    return fd;
}

/* Waits. A plain poll of the descriptors takes a third of the system calls of zmq_poll; but sending may
 * take the news from the descriptor that something came, so after that, messages are looked for first. */
static void wait(struct gateway *g, struct pollfd *fds, double now, double *looked)
{
    bool look = g->more || g->sent;
    g->sent = false;
    int n = poll(fds, 3, look ? 0 : (int)http_timeout(g, TICK_MS));
    g->link_news = look || n <= 0 || fds[0].revents != 0;
    g->watch_news = n <= 0 || fds[1].revents != 0 || now - *looked > SWEEP_SECONDS;
    if (g->watch_news)
        *looked = now;
}

/* Until a signal, and then until what was asked is answered. */
static int loop(struct gateway *g, char *err, size_t err_size)
{
    double swept = 0, ticked = 0, looked = 0, draining_since = 0;
    int seen = 0;
    struct pollfd fds[] = {{.fd = zmq_fd(g->session.socket), .events = POLLIN},
                           {.fd = zmq_fd(g->session.watch), .events = POLLIN},
                           {.fd = http_fd(g), .events = POLLIN}};
    g->link_news = g->watch_news = true;
    for (;;) {
        double now = clock_seconds();
        if (link_run(g, now, err, err_size) != 0)
            return EXIT_COORDINATOR;
        http_run(g);
        if (now - ticked >= TICK_MS / 1e3) {
            ticked = now;
            routes_tick(g, now);
        }
        if (now - swept >= SWEEP_SECONDS) {
            swept = now;
            http_sweep(g, now);
        }
        if (signals > seen) {
            seen = signals;
            if (g->draining)
                return EXIT_DONE;
            log_info("stopping: %zu requests go on, for %g s at most; once more stops at once",
                     g->n_exchanges, g->options->drain_seconds);
            g->draining = true;
            draining_since = now;
            http_stop_listening(g);
        }
        if (g->draining &&
            (g->n_exchanges == 0 || now - draining_since > g->options->drain_seconds))
            return EXIT_DONE;
        wait(g, fds, now, &looked);
    }
}

static int run(struct gateway_options *o)
{
    struct gateway g = {.options = o, .listening = -1, .started = time(NULL)};
    struct text url = {0};
    char err[512] = "";
    int code = EXIT_USAGE;
    if (o->api_key_file != NULL && api_keys_read(&g.keys, o->api_key_file, err, sizeof err) != 0)
        goto end;
    raise_limit(o);
    if (link_open(&g, err, sizeof err) != 0 || http_open(&g, &url, err, sizeof err) != 0)
        goto end;
    log_info("listening at %s, for the coordinator at %s%s", url.bytes, o->client.endpoint,
             g.keys.n > 0 ? "; clients have to show a key" : "");
    code = loop(&g, err, sizeof err);
end:
    if (code != EXIT_DONE)
        fprintf(stderr, "gptoss-gateway: %s\n", err);
    http_close(&g);
    link_close(&g);
    api_keys_free(&g.keys);
    text_free(&url);
    return code;
}

int main(int argc, char **argv)
{
    struct gateway_options o = {0};
    int parsed = gateway_options_read(&o, argc, argv);
    if (parsed != 0)
        return parsed > 0 ? EXIT_DONE : EXIT_USAGE;
    log_open("gateway");
    json_memory_init();
    catch_signals();
    return run(&o);
}
