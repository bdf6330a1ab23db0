/*
 * serve: many requests over one connection, in one thread that sleeps in zmq_poll.
 *
 * With clients (a closed loop) a request is sent when the one before it of the same client has ended;
 * with a rate, when its time has come, whatever is under way. Times count from when a request was due.
 */
#include "bench/serve.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#define POLL_MS         200
#define ANSWER_MS       6 /* until ranks that were asked how they are have answered */
#define ANSWER_SECONDS  5.0
#define CONNECT_SECONDS 5.0   /* for a running coordinator to answer */
#define SILENCE_SECONDS 600.0 /* without any message while requests are under way */
#define SAY_SECONDS     5.0   /* between two lines of progress */
#define PAUSE_SECONDS   0.1   /* of a client that was refused, at least */

struct serve {
    const struct serve_options *options;
    struct bench_child child;
    char folder[64];
    void *context, *socket;
    struct proto_frame frame;
    int timer;
    struct gguf_file *file;
    struct gguf_model *model;
    struct bench_vocabulary vocabulary;
    uint32_t *ids; /* [longest prompt]; the shared prefix stays in front */

    /* The coordinator's last Status. */
    Gptoss__ServerMessage *status;
    uint64_t n_status;
    double hops; /* sum of the hop times that it told while requests were under way */
    uint32_t n_hops;
    double heard;

    /* The run under way. */
    uint64_t nonce, run; /* the run's number from 1; both are part of each request's id */
    struct serve_log *log;
    uint64_t random;
    uint32_t idle;  /* clients with nothing under way */
    double *paused; /* [clients]: until when those that were refused wait */
    uint32_t n_paused;
    double due;        /* of the next request, by rate */
    char refusal[200]; /* the last one's words */
};

/* ── messages ──────────────────────────────────────────────────────────────────────────────── */

/* The request's number, or −1: of an earlier run. */
static int64_t number_of(const struct serve *s, const ProtobufCBinaryData *id)
{
    uint64_t words[2];
    if (!s->log || id->len != sizeof words)
        return -1;
    memcpy(words, id->data, sizeof words);
    if (words[0] != s->nonce + s->run || words[1] >= s->log->sent ||
        s->log->requests[words[1]].done)
        return -1;
    return (int64_t)words[1];
}

static void take_refused(struct serve *s, const Gptoss__Refused *refused, double now)
{
    int64_t i = number_of(s, &refused->request_id);
    if (i < 0)
        return;
    double pause = (double)refused->retry_ms * 1e-3;
    snprintf(s->refusal, sizeof s->refusal, "%s", refused->text);
    serve_log_end(s->log, (uint32_t)i, SERVE_REFUSED, now);
    if (s->paused)
        s->paused[s->n_paused++] = now + (pause > PAUSE_SECONDS ? pause : PAUSE_SECONDS);
}

static void take_finished(struct serve *s, const Gptoss__Finished *finished, double now)
{
    int64_t i = number_of(s, &finished->request_id);
    if (i < 0)
        return;
    bool whole = finished->reason == GPTOSS__FINISHED__REASON__LENGTH &&
                 s->log->requests[i].tokens == s->log->requests[i].wanted;
    if (!whole)
        snprintf(s->refusal, sizeof s->refusal, "ended after %" PRIu32 " of %" PRIu32 " tokens: %s",
                 s->log->requests[i].tokens, s->log->requests[i].wanted, finished->text);
    serve_log_end(s->log, (uint32_t)i, whole ? SERVE_FINISHED : SERVE_FAILED, now);
    s->idle++;
}

/* Takes the message over. */
static void take(struct serve *s, Gptoss__ServerMessage *message)
{
    double now = clock_seconds();
    s->heard = now;
    switch (message->body_case) {
    case GPTOSS__SERVER_MESSAGE__BODY_STATUS:
        if (s->status)
            proto_free(&s->status->base);
        s->status = message;
        s->n_status++;
        if (message->status->hop_seconds > 0) {
            s->hops += message->status->hop_seconds;
            s->n_hops++;
        }
        return;
    case GPTOSS__SERVER_MESSAGE__BODY_OUTPUT: {
        int64_t i = number_of(s, &message->output->request_id);
        if (i >= 0)
            serve_log_tokens(s->log, (uint32_t)i, (uint32_t)message->output->n_tokens, now);
        break;
    }
    case GPTOSS__SERVER_MESSAGE__BODY_REFUSED: take_refused(s, message->refused, now); break;
    case GPTOSS__SERVER_MESSAGE__BODY_FINISHED: take_finished(s, message->finished, now); break;
    default: break;
    }
    proto_free(&message->base);
}

/* Waits for messages, or the timer, and takes what there is. 0; an exit code: it is over. */
static int poll_messages(struct serve *s, int timeout_ms, char *err, size_t err_size)
{
    zmq_pollitem_t items[] = {{.socket = s->socket, .events = ZMQ_POLLIN},
                              {.fd = s->timer, .events = ZMQ_POLLIN}};
    int code;
    zmq_poll(items, 2, timeout_ms);
    uint64_t count;
    (void)!read(s->timer, &count, sizeof count);
    if (bench_interrupted()) {
        snprintf(err, err_size, "interrupted");
        return EXIT_FAILED;
    }
    if (bench_child_ended(&s->child, &code)) {
        snprintf(err, err_size, "gptoss-coordinator ended with exit code %d: see what it said",
                 code);
        return code > 0 && code < 128 ? code : EXIT_FAILED;
    }
    for (int got; (got = proto_receive(s->socket, &s->frame, err, err_size));) {
        ProtobufCMessage *message = got == 1
                                        ? proto_unpack(&gptoss__server_message__descriptor,
                                                       s->frame.bytes, s->frame.size, err, err_size)
                                        : NULL;
        if (!message)
            return EXIT_COORDINATOR;
        take(s, (Gptoss__ServerMessage *)message);
    }
    return 0;
}

/* 0: sent; 1: the queue is full; −1: the socket failed. */
static int send_message(struct serve *s, Gptoss__ClientMessage *message, char *err, size_t err_size)
{
    int status = proto_send(s->socket, &message->base, err, err_size);
    return status == 0 ? 0 : status > 0 ? 1 : -1;
}

static int ask_status(struct serve *s, char *err, size_t err_size)
{
    Gptoss__StatusRequest body = GPTOSS__STATUS_REQUEST__INIT;
    Gptoss__ClientMessage message = GPTOSS__CLIENT_MESSAGE__INIT;
    message.body_case = GPTOSS__CLIENT_MESSAGE__BODY_STATUS;
    message.status = &body;
    return send_message(s, &message, err, err_size) < 0 ? EXIT_COORDINATOR : 0;
}

/* ── opening and closing ───────────────────────────────────────────────────────────────────── */

static int start_coordinator(struct serve *s, const char *path, char *clients, size_t clients_size,
                             char *err, size_t err_size)
{
    const struct serve_options *o = s->options;
    char program[PATH_MAX], workers[128], numbers[5][16];
    uint32_t most = 1;
    for (size_t i = 0; i < o->clients.n; i++)
        most = o->clients.values[i] > most ? o->clients.values[i] : most;
    int64_t sequences = o->sequences ? o->sequences : o->rate > 0 ? 64 : most < 4096 ? most : 4096;
    int64_t context = o->context ? o->context : o->shared + (int64_t)o->prompt.max + o->gen.max + 2;
    const int64_t values[] = {o->launch, context, sequences, o->threads, o->step_tokens};
    for (int i = 0; i < 5; i++)
        snprintf(numbers[i], sizeof numbers[i], "%" PRId64, values[i]);
    if (bench_folder_create(s->folder, sizeof s->folder, err, err_size))
        return -1;
    snprintf(clients, clients_size, "ipc://%s/clients", s->folder);
    snprintf(workers, sizeof workers, "ipc://%s/workers", s->folder);
    bench_beside("gptoss-coordinator", program, sizeof program);
    const char *fixed[] = {program,          "--model",     path,       "--bind",   clients,
                           "--workers-bind", workers,       "--launch", numbers[0], "--context",
                           numbers[1],       "--sequences", numbers[2], "--device", o->device,
                           "--max-queue",    "100000"};
    const char **argv =
        base_alloc(sizeof fixed / sizeof *fixed + 8 + (size_t)o->n_extra, sizeof *argv);
    size_t n = sizeof fixed / sizeof *fixed;
    memcpy(argv, fixed, sizeof fixed);
    const char *const more[][2] = {{"--threads", o->threads ? numbers[3] : NULL},
                                   {"--step-tokens", o->step_tokens ? numbers[4] : NULL},
                                   {"--kv-type", o->kv_type}};
    for (size_t i = 0; i < 3; i++)
        if (more[i][1]) {
            argv[n++] = more[i][0];
            argv[n++] = more[i][1];
        }
    if (o->fast)
        argv[n++] = "--fast";
    for (int i = 0; i < o->n_extra; i++)
        argv[n++] = o->extra[i];
    fprintf(stderr, "# starting a coordinator with %s rank%s\n", numbers[0],
            o->launch == 1 ? "" : "s");
    int status = bench_child_start(&s->child, argv, err, err_size);
    free(argv);
    return status;
}

/* Asks until the ranks serve. 0, or an exit code. */
static int wait_until_ready(struct serve *s, char *err, size_t err_size)
{
    double begin = clock_seconds(), next = 0;
    int code;
    while (!s->status || !s->status->status->ready) {
        double now = clock_seconds();
        if (now >= next) {
            if ((code = ask_status(s, err, err_size)))
                return code;
            next = now + 0.1;
        }
        if ((code = poll_messages(s, 50, err, err_size)))
            return code;
        if (!s->child.pid && !s->status && clock_seconds() > begin + CONNECT_SECONDS) {
            snprintf(err, err_size,
                     "no coordinator answers at %s: start one, name it with --connect, or let "
                     "--launch N start one",
                     s->options->connect);
            return EXIT_COORDINATOR;
        }
    }
    return 0;
}

/* Where prompts are drawn from: the file that was named, or that the coordinator serves. */
static int open_vocabulary(struct serve *s, const char *path, char *err, size_t err_size)
{
    if (s->options->vocabulary) {
        s->vocabulary.limit = (uint32_t)s->options->vocabulary;
        return 0;
    }
    if (!path)
        path = s->status->status->model;
    if (gguf_open(&s->file, path, err, err_size) ||
        gguf_model_create(&s->model, s->file, err, err_size)) {
        size_t used = strlen(err);
        snprintf(err + used, err_size - used, " (or give --vocabulary N)");
        return EXIT_MODEL;
    }
    bench_vocabulary(s->model, &s->vocabulary);
    return 0;
}

static void close_serve(struct serve *s)
{
    bench_child_stop(&s->child, 0);
    if (s->status)
        proto_free(&s->status->base);
    proto_frame_free(&s->frame);
    proto_close(s->socket);
    if (s->context)
        zmq_ctx_term(s->context);
    if (s->timer >= 0)
        close(s->timer);
    bench_folder_remove(s->folder);
    gguf_model_destroy(s->model);
    gguf_close(s->file);
    free(s->ids);
}

static int open_serve(struct serve *s, char *err, size_t err_size)
{
    const struct serve_options *o = s->options;
    char path[PATH_MAX], clients[128];
    int code;
    snprintf(clients, sizeof clients, "%s", o->connect);
    if (o->model && !realpath(o->model, path)) {
        snprintf(err, err_size, "%s: %m", o->model);
        return EXIT_MODEL;
    }
    s->context = zmq_ctx_new();
    s->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (!s->context || s->timer < 0) {
        snprintf(err, err_size, "cannot open a ZeroMQ context or a timer: %m");
        return EXIT_FAILED;
    }
    if (o->launch && start_coordinator(s, path, clients, sizeof clients, err, err_size))
        return EXIT_FAILED;
    struct proto_keys keys;
    if (o->key && (proto_keys_read(&keys, o->key, err, err_size) ||
                   proto_keys_server(&keys, o->server_key, err, err_size)))
        return EXIT_FAILED;
    if (proto_connect_with(&s->socket, NULL, s->context, clients, o->key ? &keys : NULL, err,
                           err_size))
        return EXIT_COORDINATOR;
    if ((code = wait_until_ready(s, err, err_size)) ||
        (code = open_vocabulary(s, o->model ? path : NULL, err, err_size)))
        return code;
    uint32_t longest = (uint32_t)o->shared + o->prompt.max;
    s->ids = base_alloc(longest, sizeof *s->ids);
    bench_prompt(&s->vocabulary, (uint64_t)o->seed, UINT32_MAX, s->ids, (uint32_t)o->shared);
    return 0;
}

/* ── a run ─────────────────────────────────────────────────────────────────────────────────── */

/* The next request. 0: sent; 1: not now; −1: failed. */
static int send_request(struct serve *s, double due, char *err, size_t err_size)
{
    const struct serve_options *o = s->options;
    uint32_t i = s->log->sent, shared = (uint32_t)o->shared;
    uint64_t random = s->random, id[2] = {s->nonce + s->run, i};
    Gptoss__TokenIds tokens = GPTOSS__TOKEN_IDS__INIT;
    Gptoss__Sampling sampling = GPTOSS__SAMPLING__INIT;
    Gptoss__Generate body = GPTOSS__GENERATE__INIT;
    Gptoss__ClientMessage message = GPTOSS__CLIENT_MESSAGE__INIT;
    uint32_t own = serve_lengths_draw(&o->prompt, &random);
    bench_prompt(&s->vocabulary, ((uint64_t)o->seed << 20) + s->run, i, s->ids + shared, own);
    tokens.n_ids = shared + own;
    tokens.ids = s->ids;
    sampling.temperature_given_case = GPTOSS__SAMPLING__TEMPERATURE_GIVEN_TEMPERATURE;
    sampling.temperature = (float)o->temperature;
    sampling.seed_given_case = GPTOSS__SAMPLING__SEED_GIVEN_SEED;
    sampling.seed = (uint64_t)o->seed + i;
    body.request_id = (ProtobufCBinaryData){sizeof id, (uint8_t *)id};
    body.prompt_case = GPTOSS__GENERATE__PROMPT_IDS;
    body.ids = &tokens;
    body.sampling = &sampling;
    body.max_tokens = serve_lengths_draw(&o->gen, &random);
    body.ignore_eos = true;
    message.body_case = GPTOSS__CLIENT_MESSAGE__BODY_GENERATE;
    message.generate = &body;
    int status = send_message(s, &message, err, err_size);
    if (status == 0) {
        s->random = random;
        serve_log_sent(s->log, i, shared + own, body.max_tokens, due);
    }
    return status;
}

static void wake_at(struct serve *s, double seconds)
{
    double left = seconds - clock_seconds();
    if (left < 1e-6)
        left = 1e-6;
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)left}};
    when.it_value.tv_nsec = (long)((left - (double)when.it_value.tv_sec) * 1e9);
    timerfd_settime(s->timer, 0, &when, NULL);
}

/* Sends what is due, and sets the timer for what is due next. 0, or −1. */
static int issue(struct serve *s, char *err, size_t err_size)
{
    struct serve_log *log = s->log;
    double now = clock_seconds();
    int status = 0;
    for (uint32_t i = 0; i < s->n_paused;) {
        if (s->paused[i] <= now) {
            s->paused[i] = s->paused[--s->n_paused];
            s->idle++;
        } else
            i++;
    }
    bool by_rate = s->paused == NULL;
    while (log->sent < log->n && (by_rate ? s->due <= now : s->idle > 0)) {
        double due = by_rate ? s->due : clock_seconds();
        if ((status = send_request(s, due, err, err_size)))
            break;
        if (by_rate)
            s->due += bench_random_exponential(&s->random) / s->options->rate;
        else
            s->idle--;
    }
    if (status < 0)
        return -1;
    if (status == 1)
        wake_at(s, now + 1e-3);
    else if (by_rate && log->sent < log->n)
        wake_at(s, s->due);
    return 0;
}

static void say(const struct serve_log *log)
{
    double seconds = clock_seconds() - log->begin;
    fprintf(stderr, "# %" PRIu32 " of %" PRIu32 " requests, %" PRIu32 " under way, %.0f tokens/s\n",
            log->sent - log->active, log->n, log->active,
            seconds > 0 ? (double)log->tokens / seconds : 0);
}

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

/* All requests of `log`. 0, or an exit code. */
static int run_requests(struct serve *s, struct serve_log *log, uint32_t clients, char *err,
                        size_t err_size)
{
    double said = clock_seconds();
    int code = 0;
    s->run++;
    s->log = log;
    s->random = (uint64_t)s->options->seed * 0x9e3779b97f4a7c15u + s->run;
    s->idle = clients;
    s->n_paused = 0;
    s->paused = clients ? base_alloc(clients, sizeof *s->paused) : NULL;
    s->due = s->heard = said;
    while (log->sent < log->n || log->active) {
        if (issue(s, err, err_size)) {
            code = EXIT_COORDINATOR;
            break;
        }
        if ((code = poll_messages(s, s->n_paused ? 10 : POLL_MS, err, err_size)))
            break;
        double now = clock_seconds();
        if (log->active && now > s->heard + SILENCE_SECONDS) {
            snprintf(err, err_size, "the coordinator has said nothing for %.0f s", SILENCE_SECONDS);
            code = EXIT_COORDINATOR;
            break;
        }
        if (now > said + SAY_SECONDS) {
            said = now;
            say(log);
            if ((code = ask_status(s, err, err_size)))
                break;
        }
    }
    s->log = NULL;
    free(s->paused);
    s->paused = NULL;
    return code;
}

struct counters {
    bool known;
    uint64_t steps;
    uint32_t stages;
    double busy[64];
};

/* What the ranks have done so far, while they are idle: the first answer is of before the question. */
static int count(struct serve *s, struct counters *counters, char *err, size_t err_size)
{
    double up[64] = {0}, end = clock_seconds() + ANSWER_SECONDS;
    *counters = (struct counters){0};
    for (uint64_t asked = 0; !counters->known && clock_seconds() < end; asked++) {
        uint64_t before = s->n_status;
        int code = ask_status(s, err, err_size);
        while (!code && s->n_status == before && clock_seconds() < end)
            code = poll_messages(s, POLL_MS, err, err_size);
        if (code)
            return code;
        const Gptoss__Status *status = s->status->status;
        bool newer = asked > 0;
        counters->steps = status->steps;
        counters->stages = status->n_stages < 64 ? (uint32_t)status->n_stages : 64;
        for (uint32_t i = 0; i < counters->stages; i++) {
            newer = newer && status->stages[i]->up_seconds != up[i];
            counters->busy[i] = status->stages[i]->busy_seconds;
            if (asked == 0)
                up[i] = status->stages[i]->up_seconds;
        }
        counters->known = newer;
        if (!newer)
            nanosleep(&(struct timespec){.tv_nsec = ANSWER_MS * 1000000}, NULL);
    }
    return 0;
}

static void fill_result(const struct serve *s, struct serve_result *result,
                        const struct counters *before, const struct counters *after, double cpu)
{
    const struct serve_log *log = result->log;
    double seconds = log->end - log->begin, sum = 0;
    const Gptoss__Status *status = s->status->status;
    snprintf(result->model, sizeof result->model, "%s", status->model);
    snprintf(result->device, sizeof result->device, "%s",
             status->n_stages ? status->stages[0]->device : "");
    result->stages = (uint32_t)status->n_stages;
    result->cpu = seconds > 0 ? cpu / seconds : 0;
    result->steps = result->bubble = result->hop_us = -1;
    if (s->n_hops)
        result->hop_us = s->hops / s->n_hops * 1e6;
    if (after->steps >= before->steps)
        result->steps = (double)(after->steps - before->steps);
    if (!before->known || !after->known || before->stages != after->stages || seconds <= 0)
        return;
    for (uint32_t i = 0; i < after->stages; i++) {
        result->busy[i] = (after->busy[i] - before->busy[i]) / seconds;
        sum += result->busy[i];
    }
    if (after->stages && after->stages == result->stages)
        result->bubble = sum < after->stages ? 1 - sum / after->stages : 0;
}

static int run_once(struct serve *s, struct serve_report *report, uint32_t clients)
{
    const struct serve_options *o = s->options;
    struct serve_log warm, log;
    struct serve_result result = {.options = o, .clients = clients, .log = &log};
    struct counters before, after;
    char err[1024] = "";
    time_t now = time(NULL);
    struct tm utc;
    int code = 0;
    if (o->warmup) {
        serve_log_create(&warm, (uint32_t)o->warmup, 0);
        code = run_requests(s, &warm, clients ? clients : 1, err, sizeof err);
        serve_log_free(&warm);
    }
    serve_log_create(&log, (uint32_t)o->requests, clients);
    if (!code)
        code = count(s, &before, err, sizeof err);
    if (!code) {
        gmtime_r(&now, &utc);
        strftime(result.time, sizeof result.time, "%Y-%m-%dT%H:%M:%SZ", &utc);
        double cpu = cpu_seconds();
        s->hops = s->n_hops = 0;
        code = run_requests(s, &log, clients, err, sizeof err);
        cpu = cpu_seconds() - cpu;
        if (!code)
            code = count(s, &after, err, sizeof err);
        else
            after = (struct counters){0};
        if (log.tokens || log.refused || log.failed) {
            fill_result(s, &result, &before, &after, cpu);
            serve_report_add(report, &result);
        }
    }
    if (code)
        fprintf(stderr, "gptoss-bench serve: %s\n", err);
    else if (log.refused || log.failed) {
        fprintf(stderr,
                "gptoss-bench serve: %" PRIu32 " refused, %" PRIu32 " failed; the last: %s\n",
                log.refused, log.failed, s->refusal);
        code = log.finished ? EXIT_DONE : EXIT_FAILED;
    }
    serve_log_free(&log);
    return code;
}

int bench_serve(int argc, char **argv)
{
    struct serve_options options;
    struct serve s = {.options = &options, .timer = -1};
    char err[1024] = "";
    int status = serve_parse(&options, argc, argv), code;
    if (status) {
        free(options.clients.values);
        return status > 0 ? EXIT_DONE : EXIT_USAGE;
    }
    /* Ids of requests must be unlike those of any other client. */
    s.nonce = (uint64_t)time(NULL) << 32 ^ (uint64_t)getpid() << 12;
    code = open_serve(&s, err, sizeof err);
    if (code)
        fprintf(stderr, "gptoss-bench serve: %s\n", err);
    else {
        struct serve_report *report = serve_report_create(options.format);
        size_t n = options.rate > 0 ? 1 : options.clients.n;
        for (size_t i = 0; i < n && code == EXIT_DONE; i++)
            code = run_once(&s, report, options.rate > 0 ? 0 : options.clients.values[i]);
        serve_report_finish(report);
    }
    close_serve(&s);
    free(options.clients.values);
    return code;
}
