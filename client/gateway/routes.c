/* routes: what stands at which path, and what needs no model: health, models, metrics, the page. */
#include <string.h>
#include <strings.h>
#include <sys/resource.h>

#include "client/gateway/gateway.h"
#include "client/gateway/page.h"

#define METRICS_SECONDS 2.0 /* to wait for the coordinator's */

static const struct {
    const char *path, *method; /* GET: HEAD too */
    bool open;                 /* to those without a key */
} routes[] = {
    [ROUTE_PAGE] = {"/", "GET", true},
    [ROUTE_ICON] = {"/favicon.ico", "GET",
                    true}, /* the page has its own; some browsers ask before */
    [ROUTE_HEALTH] = {"/health", "GET", true},
    [ROUTE_LIVE] = {"/livez", "GET", true},
    [ROUTE_READY] = {"/readyz", "GET", true},
    [ROUTE_METRICS] = {"/metrics", "GET", false},
    [ROUTE_PIPELINE] = {"/pipeline", "GET", false},
    [ROUTE_MODELS] = {"/v1/models", "GET", false},
    [ROUTE_MODEL] = {"/v1/models/", "GET", false}, /* and the model's name */
    [ROUTE_CHAT] = {"/v1/chat/completions", "POST", false},
    [ROUTE_COMPLETIONS] = {"/v1/completions", "POST", false},
    [ROUTE_RESPONSES] = {"/v1/responses", "POST", false},
    [ROUTE_NONE] = {"other", "", false},
};

static bool is_json(const char *type)
{
    static const char json[] = "application/json";
    if (type == NULL || strncasecmp(type, json, sizeof json - 1) != 0)
        return false;
    char after = type[sizeof json - 1];
    return after == '\0' || after == ';' || after == ' ';
}

/* Whether a browser may have been led here by a name that is not ours: a page from elsewhere whose name was
 * made to point at this address could ask all it likes. Keys keep it out; without them, names do. */
static bool is_foreign(const struct exchange *x)
{
    const struct gateway_options *o = x->gateway->options;
    const char *host = http_header(x, "Host");
    if (x->gateway->keys.n > 0 || o->insecure || host == NULL)
        return false;
    size_t size = host[0] == '[' ? strcspn(host, "]") + 1 : strcspn(host, ":");
    bool number = host[0] == '[' || strspn(host, "0123456789.") == size;
    return !number && !(size == 9 && strncasecmp(host, "localhost", 9) == 0) &&
           !(size == strlen(o->host) && strncasecmp(host, o->host, size) == 0);
}

int routes_find(struct exchange *x, const char *url, const char *method, struct problem *p)
{
    size_t model = strlen(routes[ROUTE_MODEL].path);
    int route = 0;
    while (route < ROUTE_NONE && strcmp(routes[route].path, url) != 0)
        route++;
    if (route == ROUTE_MODEL ||
        (route == ROUTE_NONE && strncmp(url, routes[ROUTE_MODEL].path, model) == 0)) {
        route = ROUTE_MODEL;
        snprintf(x->path, sizeof x->path, "%s", url + model);
    }
    x->route = route;
    bool open = route != ROUTE_NONE && routes[route].open;
    if (!open && x->gateway->keys.n > 0 &&
        !api_keys_admit(&x->gateway->keys, http_header(x, "Authorization"))) {
        problem_set(p, 401, "invalid_api_key", "",
                    "this gateway wants a key: send the header Authorization: Bearer KEY");
        return -1;
    }
    if (!open && is_foreign(x)) {
        problem_set(
            p, 403, "unknown_host", "",
            "the header Host names neither an address, localhost nor --host: call this gateway by "
            "one of those, or start it with --api-key-file FILE or --insecure");
        return -1;
    }
    if (route == ROUTE_NONE) {
        problem_set(p, 404, "not_found", "",
                    "there is nothing at this path; there are /v1/chat/completions, "
                    "/v1/completions, /v1/responses, /v1/models, /pipeline, /metrics, /health, "
                    "/livez, /readyz and /");
        return -1;
    }
    bool get = strcmp(routes[route].method, "GET") == 0;
    if (strcmp(method, routes[route].method) != 0 && !(get && strcmp(method, "HEAD") == 0)) {
        problem_set(p, 405, "method_not_allowed", "", "%s takes %s", routes[route].path,
                    routes[route].method);
        return -1;
    }
    if (!get && !is_json(http_header(x, "Content-Type"))) {
        problem_set(p, 415, "unsupported_media_type", "",
                    "the body has to be JSON: send the header Content-Type: application/json");
        return -1;
    }
    return 0;
}

/* ── health ────────────────────────────────────────────────────────────────────────────────── */

static void reply_text(struct exchange *x, int status, const char *type, const char *text)
{
    struct text out = {0};
    text_print(&out, "%s", text);
    http_reply(x, status, type, &out);
}

static void reply_health(struct exchange *x)
{
    struct gateway *g = x->gateway;
    struct problem p = {0};
    double now = clock_seconds();
    if (link_ready(g, now)) {
        reply_text(x, 200, "application/json", "{\"status\":\"ok\"}\n");
        return;
    }
    bool heard = g->status != NULL && now - g->heard < 5;
    problem_set(&p, 503, "not_ready", "",
                heard ? "Loading model: %s" : "no coordinator answers at %s",
                heard ? g->status->status->state : g->options->client.endpoint);
    p.retry_ms = 1000;
    problem_reply(x, &p);
}

/* ── models ────────────────────────────────────────────────────────────────────────────────── */

const char *routes_model(struct gateway *g)
{
    if (g->options->model_name != NULL)
        return g->options->model_name;
    return g->model.size > 0 ? g->model.bytes : "";
}

/* The file's name: /models/gpt-oss-20b-00001-of-00002.gguf → gpt-oss-20b. */
static void name_model(struct gateway *g, const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash != NULL ? slash + 1 : path;
    size_t size = strlen(name);
    if (size > 5 && strcmp(name + size - 5, ".gguf") == 0)
        size -= 5;
    if (size > 15 && name[size - 15] == '-' && memcmp(name + size - 9, "-of-", 4) == 0)
        size -= 15;
    text_clear(&g->model);
    text_add(&g->model, name, size);
}

static void model_json(struct text *out, struct gateway *g)
{
    text_print(out, "{\"id\":");
    write_string(out, routes_model(g));
    text_print(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"gptoss\"",
               (long long)g->started);
    if (g->status != NULL)
        text_print(out, ",\"context_length\":%u,\"max_model_len\":%u", g->status->status->context,
                   g->status->status->context);
    text_print(out, "}");
}

static void reply_models(struct exchange *x)
{
    struct text out = {0};
    bool known = routes_model(x->gateway)[0] != '\0';
    text_print(&out, "{\"object\":\"list\",\"data\":[");
    if (known)
        model_json(&out, x->gateway);
    text_print(&out, "]}\n");
    http_reply(x, 200, "application/json", &out);
}

static void reply_model(struct exchange *x)
{
    struct text out = {0};
    const char *name = routes_model(x->gateway);
    if (name[0] == '\0' || strcmp(x->path, name) != 0) {
        struct problem p = {0};
        problem_set(&p, 404, "model_not_found", "model", "there is no such model; it is \"%s\"",
                    name);
        problem_reply(x, &p);
        return;
    }
    model_json(&out, x->gateway);
    text_print(&out, "\n");
    http_reply(x, 200, "application/json", &out);
}

/* ── metrics ───────────────────────────────────────────────────────────────────────────────── */

static void metric(struct text *out, const char *name, const char *type, const char *help,
                   double value)
{
    text_print(out, "# HELP gptoss_gateway_%s %s\n# TYPE gptoss_gateway_%s %s\n", name, help, name,
               type);
    text_print(out, "gptoss_gateway_%s %.15g\n", name, value);
}

static void own_metrics(struct text *out, const struct gateway *g)
{
    static const char *const classes[] = {"cut", "1xx", "2xx", "3xx", "4xx", "5xx"};
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    metric(out, "connections", "gauge", "HTTP connections.", (double)g->n_connections);
    metric(out, "streams", "gauge", "Streams of events that are open.", (double)g->n_streams);
    metric(out, "stream_bytes_total", "counter", "Bytes of events sent.",
           (double)g->counters.stream_bytes);
    metric(out, "slow_clients_total", "counter", "Clients cut, as they did not read.",
           (double)g->counters.cut_slow);
    metric(out, "gone_clients_total", "counter", "Clients that hung up while they waited.",
           (double)g->counters.gone);
    metric(out, "coordinator_up", "gauge", "1: a coordinator answers.",
           clock_seconds() - g->heard < 5 && g->status != NULL);
    metric(out, "cpu_seconds_total", "counter", "Processor time of the gateway.",
           (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
               (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
    text_print(out, "# HELP gptoss_gateway_requests_total HTTP requests, by route and status.\n"
                    "# TYPE gptoss_gateway_requests_total counter\n");
    for (int r = 0; r < ROUTES; r++)
        for (int c = 0; c < 6; c++)
            if (g->counters.requests[r][c] > 0)
                text_print(out, "gptoss_gateway_requests_total{route=\"%s\",status=\"%s\"} %llu\n",
                           routes[r].path, classes[c],
                           (unsigned long long)g->counters.requests[r][c]);
}

void routes_metrics(struct gateway *g, const Gptoss__Metrics *m)
{
    g->metrics_asked = false;
    for (struct exchange *x = g->exchanges; x != NULL; x = x->next) {
        if (x->route != ROUTE_METRICS || x->state != EXCHANGE_WAITING || x->aborted)
            continue;
        struct text out = {0};
        if (m != NULL)
            text_add(&out, m->text.data, m->text.len);
        own_metrics(&out, g);
        http_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", &out);
    }
}

/* ── the pipeline ──────────────────────────────────────────────────────────────────────────── */

static void make_event(struct gateway *g)
{
    char *json = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&json, &size);
    text_clear(&g->pipeline);
    if (file == NULL)
        return;
    json_status(file, g->status->status);
    fclose(file);
    text_print(&g->pipeline, "data: ");
    text_add(&g->pipeline, json, size); /* ends with a newline, and holds no other */
    text_print(&g->pipeline, "\n");
    free(json);
}

static void watch(struct exchange *x)
{
    http_stream(x);
    x->gateway->n_watchers++;
    if (x->gateway->status != NULL && x->gateway->pipeline.size == 0)
        make_event(x->gateway);
    text_print(&x->out, "retry: 1000\n\n");
    text_add(&x->out, x->gateway->pipeline.bytes, x->gateway->pipeline.size);
    http_flush(x);
}

void routes_status(struct gateway *g)
{
    name_model(g, g->status->status->model);
    text_clear(&g->pipeline);
    if (g->n_watchers == 0)
        return;
    make_event(g);
    for (struct exchange *x = g->exchanges; x != NULL; x = x->next)
        /* One who has not read the last one has no use for the next. */
        if (x->route == ROUTE_PIPELINE && x->state == EXCHANGE_STREAMING && !x->aborted &&
            !x->ended && x->out.size == x->taken) {
            text_add(&x->out, g->pipeline.bytes, g->pipeline.size);
            http_flush(x);
        }
}

/* ── all ───────────────────────────────────────────────────────────────────────────────────── */

void routes_run(struct exchange *x)
{
    struct gateway *g = x->gateway;
    struct text out = {0};
    switch (x->route) {
    case ROUTE_PAGE:
        text_add(&out, page_html, page_html_size);
        http_reply(x, 200, "text/html; charset=utf-8", &out);
        break;
    case ROUTE_ICON: http_reply(x, 204, "image/x-icon", &out); break;
    case ROUTE_HEALTH:
    case ROUTE_READY: reply_health(x); break;
    case ROUTE_LIVE: reply_text(x, 200, "application/json", "{\"status\":\"ok\"}\n"); break;
    case ROUTE_MODELS: reply_models(x); break;
    case ROUTE_MODEL: reply_model(x); break;
    case ROUTE_PIPELINE: watch(x); break;
    case ROUTE_METRICS: link_metrics(g); break; /* routes_metrics answers */
    case ROUTE_CHAT: call_start(x, &api_chat); break;
    case ROUTE_COMPLETIONS: call_start(x, &api_completion); break;
    case ROUTE_RESPONSES: call_start(x, &api_responses); break;
    default: break;
    }
}

void routes_tick(struct gateway *g, double now)
{
    if (g->metrics_asked && now - g->metrics_at > METRICS_SECONDS)
        routes_metrics(g, NULL);
    for (struct exchange *x = g->exchanges; x != NULL; x = x->next)
        if (x->route == ROUTE_PIPELINE && x->state == EXCHANGE_STREAMING && !x->aborted) {
            if (g->draining)
                http_end(x);
            else if (now - x->wrote > 5 && x->out.size == x->taken) {
                text_print(&x->out, ": no coordinator answers\n\n");
                http_flush(x);
            }
        }
}

void routes_count(struct gateway *g, const struct exchange *x)
{
    g->counters.requests[x->route][x->begun && !x->aborted ? x->status / 100 % 6 : 0]++;
    if (x->route == ROUTE_PIPELINE && x->state == EXCHANGE_STREAMING)
        g->n_watchers--;
}
