/*
 * http: libmicrohttpd, driven from the gateway's loop through its epoll descriptor.
 *
 * An exchange that waits, and a stream that has nothing to send, is suspended: MHD does not look at its
 * connection then, so http_sweep does (is the client still there?). A connection is cut by shutting its
 * socket down, which MHD notices as if the client had done it.
 */
#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/gateway/gateway.h"

#define SLOW_SECONDS 5      /* in which a client takes nothing of what waits for it */
#define IDLE_SECONDS 60     /* without a byte in either direction, while we wait for one */
#define BODY_RATE    100000 /* bytes of a body for which a second more is granted */
#define HEADER_BYTES 32768  /* of all headers together */
#define STREAM_BLOCK 16384
#define DROPPED_MAX                                                                                \
    ((size_t)64 << 20) /* bytes read of a body that is refused, so that the refusal is read */
#define BACKLOG 1024

/* One connection. */
struct peer {
    struct gateway *gateway;
    struct peer *previous, *next;
    int fd;
    bool busy;    /* with a request whose headers came */
    double since; /* it is not */
};

/* ── connections ───────────────────────────────────────────────────────────────────────────── */

static void on_connection(void *arg, struct MHD_Connection *connection, void **socket_context,
                          enum MHD_ConnectionNotificationCode code)
{
    struct gateway *g = arg;
    struct peer *p = *socket_context;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        p = base_alloc(1, sizeof *p);
        p->gateway = g;
        p->fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        p->since = clock_seconds();
        p->next = g->peers;
        if (p->next != NULL)
            p->next->previous = p;
        g->peers = p;
        g->n_connections++;
        *socket_context = p;
    } else if (p != NULL) {
        if (p->next != NULL)
            p->next->previous = p->previous;
        if (p->previous != NULL)
            p->previous->next = p->next;
        else
            g->peers = p->next;
        g->n_connections--;
        free(p);
        *socket_context = NULL;
    }
}

static struct peer *peer_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info != NULL ? info->socket_context : NULL;
}

/* ── replies ───────────────────────────────────────────────────────────────────────────────── */

static void wake(struct exchange *x)
{
    if (!x->suspended)
        return;
    x->suspended = false;
    MHD_resume_connection(x->connection);
}

void http_reply(struct exchange *x, int status, const char *type, struct text *body)
{
    text_free(&x->out);
    x->out = *body;
    *body = (struct text){0};
    x->status = status;
    x->type = type;
    x->state = EXCHANGE_REPLY;
    wake(x);
}

void http_stream(struct exchange *x)
{
    x->status = 200;
    x->type = "text/event-stream";
    x->state = EXCHANGE_STREAMING;
    x->wrote = clock_seconds();
    x->gateway->n_streams++;
    wake(x);
}

void http_flush(struct exchange *x)
{
    /* What waits may be the burst of a moment: a client is slow when it has taken nothing for a while. */
    size_t waits = x->out.size - x->taken;
    bool slow = waits > STREAM_BYTES_MAX && clock_seconds() - x->wrote > SLOW_SECONDS;
    if ((slow || waits > STREAM_BYTES_ALL) && !x->aborted) {
        x->gateway->counters.cut_slow++;
        http_abort(x);
        return;
    }
    if (x->out.size > x->taken || x->ended)
        wake(x);
}

void http_end(struct exchange *x)
{
    x->ended = true;
    http_flush(x);
}

void http_abort(struct exchange *x)
{
    if (x->aborted)
        return;
    x->aborted = true;
    if (x->fd >= 0)
        shutdown(x->fd, SHUT_RDWR);
    wake(x);
}

const char *http_header(const struct exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

/* MHD takes what there is of a stream. */
static ssize_t read_stream(void *arg, uint64_t position, char *buffer, size_t most)
{
    struct exchange *x = arg;
    (void)position;
    size_t size = x->out.size - x->taken;
    if (x->aborted)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    if (size == 0 && x->ended)
        return MHD_CONTENT_READER_END_OF_STREAM;
    if (size == 0) {
        x->suspended = true;
        MHD_suspend_connection(x->connection);
        return 0;
    }
    if (size > most)
        size = most;
    memcpy(buffer, x->out.bytes + x->taken, size);
    x->taken += size;
    x->wrote = clock_seconds();
    x->gateway->counters.stream_bytes += size;
    if (x->taken == x->out.size) {
        if (x->out.capacity > 4 * STREAM_BLOCK)
            text_free(&x->out);
        text_clear(&x->out);
        x->taken = 0;
    }
    return (ssize_t)size;
}

static void add_header(struct MHD_Response *response, const char *name, const char *value)
{
    MHD_add_response_header(response, name, value);
}

static enum MHD_Result begin(struct exchange *x)
{
    struct MHD_Response *response;
    if (x->state == EXCHANGE_STREAMING)
        response =
            MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, read_stream, x, NULL);
    else {
        response =
            MHD_create_response_from_buffer(x->out.size, x->out.bytes, MHD_RESPMEM_MUST_FREE);
        if (response != NULL)
            x->out = (struct text){0};
    }
    if (response == NULL)
        return MHD_NO;
    x->begun = true;
    add_header(response, "Content-Type", x->type);
    add_header(response, "X-Content-Type-Options", "nosniff");
    add_header(response, "Cache-Control", x->state == EXCHANGE_STREAMING ? "no-cache" : "no-store");
    if (x->state == EXCHANGE_STREAMING)
        add_header(response, "X-Accel-Buffering", "no");
    if (x->route == ROUTE_PAGE && x->status == 200) {
        add_header(response, "Content-Security-Policy",
                   "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
                   "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
                   "frame-ancestors 'none'");
        add_header(response, "Referrer-Policy", "no-referrer");
    }
    if (x->challenge != NULL)
        add_header(response, "WWW-Authenticate", x->challenge);
    if (x->retry_ms > 0) {
        char value[32];
        snprintf(value, sizeof value, "%llu", (unsigned long long)(x->retry_ms + 999) / 1000);
        add_header(response, "Retry-After", value);
        snprintf(value, sizeof value, "%llu", (unsigned long long)x->retry_ms);
        add_header(response, "Retry-After-Ms", value);
    }
    enum MHD_Result queued = MHD_queue_response(x->connection, (unsigned)x->status, response);
    MHD_destroy_response(response);
    return queued;
}

/* ── requests ──────────────────────────────────────────────────────────────────────────────── */

static struct exchange *exchange_create(struct gateway *g, struct MHD_Connection *connection)
{
    struct exchange *x = base_alloc(1, sizeof *x);
    struct peer *p = peer_of(connection);
    x->gateway = g;
    x->connection = connection;
    x->fd = p != NULL ? p->fd : -1;
    x->began = clock_seconds();
    if (p != NULL)
        p->busy = true;
    x->next = g->exchanges;
    if (x->next != NULL)
        x->next->previous = x;
    g->exchanges = x;
    g->n_exchanges++;
    return x;
}

static void on_completed(void *arg, struct MHD_Connection *connection, void **request,
                         enum MHD_RequestTerminationCode code)
{
    struct gateway *g = arg;
    struct exchange *x = *request;
    (void)code;
    if (x == NULL)
        return;
    *request = NULL;
    struct peer *p = peer_of(connection);
    if (p != NULL) {
        p->busy = false;
        p->since = clock_seconds();
    }
    if (x->call != NULL)
        call_destroy(x->call);
    routes_count(g, x);
    if (x->state == EXCHANGE_STREAMING)
        g->n_streams--;
    if (x->next != NULL)
        x->next->previous = x->previous;
    if (x->previous != NULL)
        x->previous->next = x->next;
    else
        g->exchanges = x->next;
    g->n_exchanges--;
    text_free(&x->body);
    text_free(&x->out);
    free(x);
}

/* The headers are there: is the request one to read on? */
static enum MHD_Result take_headers(struct exchange *x, const char *url, const char *method)
{
    struct problem problem = {0};
    const char *length = http_header(x, "Content-Length");
    if (routes_find(x, url, method, &problem) != 0) {
        problem_reply(x, &problem);
    } else if (length != NULL && strtoull(length, NULL, 10) > BODY_BYTES_MAX) {
        problem_set(&problem, 413, "request_too_large", "",
                    "the body is %s bytes, at most %zu are taken",
                    strlen(length) < 24 ? length : "too many", BODY_BYTES_MAX);
        problem_reply(x, &problem);
    }
    /* One who asks before sending the body is told at once; others have it read and dropped. */
    if (x->state == EXCHANGE_REPLY &&
        (http_header(x, "Expect") != NULL ||
         (length != NULL && strtoull(length, NULL, 10) > DROPPED_MAX)))
        return begin(x);
    return MHD_YES;
}

static enum MHD_Result take_body(struct exchange *x, const char *bytes, size_t size)
{
    if (x->state != EXCHANGE_READING) {
        x->body_dropped += size;
        return x->body_dropped > DROPPED_MAX ? MHD_NO : MHD_YES;
    }
    if (x->body.size + size > BODY_BYTES_MAX) {
        struct problem problem = {0};
        problem_set(&problem, 413, "request_too_large", "", "the body is larger than %zu bytes",
                    BODY_BYTES_MAX);
        text_free(&x->body);
        problem_reply(x, &problem);
        return MHD_YES;
    }
    text_add(&x->body, bytes, size);
    return MHD_YES;
}

static enum MHD_Result on_request(void *arg, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *bytes,
                                  size_t *size, void **request)
{
    struct exchange *x = *request;
    (void)version;
    if (((struct gateway *)arg)->closing)
        return MHD_NO;
    if (x == NULL) {
        *request = x = exchange_create(arg, connection);
        return take_headers(x, url, method);
    }
    if (*size > 0) {
        enum MHD_Result result = take_body(x, bytes, *size);
        *size = 0;
        return result;
    }
    if (x->aborted || x->begun)
        return MHD_NO;
    if (x->state == EXCHANGE_READING) {
        x->state = EXCHANGE_WAITING;
        routes_run(x);
    }
    if (x->state == EXCHANGE_WAITING) {
        x->suspended = x->waited = true;
        MHD_suspend_connection(connection);
        return MHD_YES;
    }
    return begin(x);
}

/* ── opening ───────────────────────────────────────────────────────────────────────────────── */

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24 == 127;
    return address->sa_family == AF_INET6 &&
           IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)address)->sin6_addr);
}

static int bind_to(struct gateway *g, const struct addrinfo *address, char *err, size_t err_size)
{
    const struct gateway_options *o = g->options;
    if (!is_loopback(address->ai_addr) && g->keys.n == 0 && !o->insecure) {
        snprintf(
            err, err_size,
            "%s can be reached from other hosts, and there is no key: give --api-key-file FILE, or "
            "--insecure if everybody there may ask",
            o->host);
        return -1;
    }
    int yes = 1;
    g->listening = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (g->listening >= 0) {
        setsockopt(g->listening, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        if (bind(g->listening, address->ai_addr, address->ai_addrlen) == 0 &&
            listen(g->listening, BACKLOG) == 0)
            return 0;
    }
    int why = errno;
    snprintf(err, err_size, "cannot listen at %s port %d: %s%s", o->host, (int)o->port,
             strerror(why),
             why == EADDRINUSE ? "; another program does: choose another --port" : "");
    if (g->listening >= 0)
        close(g->listening);
    g->listening = -1;
    return -1;
}

static int listen_at(struct gateway *g, struct text *url, char *err, size_t err_size)
{
    const struct gateway_options *o = g->options;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
    char port[16], host[128];
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    snprintf(port, sizeof port, "%d", (int)o->port);
    int status = getaddrinfo(o->host, port, &hints, &found);
    if (status != 0) {
        snprintf(err, err_size, "--host %s is no address here: %s", o->host, gai_strerror(status));
        return -1;
    }
    status = bind_to(g, found, err, err_size);
    freeaddrinfo(found);
    if (status != 0)
        return -1;
    getsockname(g->listening, (struct sockaddr *)&bound, &size);
    getnameinfo((struct sockaddr *)&bound, size, host, sizeof host, port, sizeof port,
                NI_NUMERICHOST | NI_NUMERICSERV);
    text_print(url, bound.ss_family == AF_INET6 ? "http://[%s]:%s" : "http://%s:%s", host, port);
    return 0;
}

/* MHD's own words, about connections that others broke. */
__attribute__((format(printf, 2, 0))) static void on_log(void *arg, const char *format,
                                                         va_list args)
{
    char line[512];
    (void)arg;
    if (!log_enabled(LOG_DEBUG))
        return;
    vsnprintf(line, sizeof line, format, args);
    line[strcspn(line, "\n")] = '\0';
    log_debug("http: %s", line);
}

int http_open(struct gateway *g, struct text *url, char *err, size_t err_size)
{
    if (listen_at(g, url, err, err_size) != 0)
        return -1;
    g->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, on_request, g,
        MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL, MHD_OPTION_LISTEN_SOCKET, g->listening,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)g->options->connections,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_SECONDS, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)HEADER_BYTES, MHD_OPTION_NOTIFY_COMPLETED, on_completed, g,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, g, MHD_OPTION_END);
    if (g->daemon != NULL)
        return 0;
    close(g->listening);
    snprintf(err, err_size, "cannot start the HTTP server: %m");
    return -1;
}

void http_stop_listening(struct gateway *g)
{
    int fd = MHD_quiesce_daemon(g->daemon);
    if (fd >= 0)
        close(fd);
}

void http_close(struct gateway *g)
{
    if (g->daemon == NULL)
        return;
    g->closing = true;
    for (struct exchange *x = g->exchanges; x != NULL; x = x->next)
        http_abort(x); /* no connection may be suspended when the daemon ends */
    MHD_run(g->daemon);
    MHD_stop_daemon(g->daemon);
    g->daemon = NULL;
}

/* ── the loop's part ───────────────────────────────────────────────────────────────────────── */

int http_fd(const struct gateway *g)
{
    return MHD_get_daemon_info(g->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
}

long http_timeout(const struct gateway *g, long most)
{
    MHD_UNSIGNED_LONG_LONG ms;
    if (MHD_get_timeout(g->daemon, &ms) == MHD_YES && ms < (MHD_UNSIGNED_LONG_LONG)most)
        return (long)ms;
    return most;
}

void http_run(struct gateway *g)
{
    MHD_run(g->daemon);
}

/* Of the suspended exchanges: those whose client has hung up. */
static void find_gone(struct gateway *g)
{
    size_t n = 0;
    struct pollfd *fds = base_alloc(g->n_exchanges + 1, sizeof *fds);
    for (struct exchange *x = g->exchanges; x != NULL; x = x->next)
        fds[n++] = (struct pollfd){.fd = x->suspended ? x->fd : -1, .events = POLLRDHUP};
    if (poll(fds, n, 0) > 0) {
        n = 0;
        for (struct exchange *x = g->exchanges; x != NULL; x = x->next)
            if (fds[n++].revents & (POLLRDHUP | POLLHUP | POLLERR)) {
                g->counters.gone++;
                http_abort(x);
            }
    }
    free(fds);
}

void http_sweep(struct gateway *g, double now)
{
    if (g->n_exchanges > 0)
        find_gone(g);
    for (struct exchange *x = g->exchanges; x != NULL; x = x->next) {
        double allowed =
            g->options->request_seconds + (double)(x->body.size + x->body_dropped) / BODY_RATE;
        if (!x->begun && !x->waited && x->fd >= 0 && now - x->began > allowed)
            shutdown(x->fd, SHUT_RDWR);
        else if (x->call != NULL && !x->aborted)
            call_tick(x->call, now);
    }
    for (struct peer *p = g->peers; p != NULL; p = p->next)
        if (!p->busy && now - p->since > g->options->request_seconds && p->fd >= 0)
            shutdown(p->fd, SHUT_RDWR);
}
