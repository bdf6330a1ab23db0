/*
 * served: tests through a real coordinator, as a client sees them. What it is slower by than `loop` is
 * what the coordinator, its scheduling and its protocol cost.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zmq.h>

#include "bench/bench.h"
#include "proto/proto.h"

#define POLL_MS        100
#define STATUS_MS      50
#define ANSWER_MS      6 /* until ranks that were asked how they are have answered */
#define ANSWER_SECONDS 5.0
#define DEADLINE_US    ((uint64_t)600 * 1000000) /* without any token */

struct request {
    uint32_t n_tokens; /* received so far */
};

struct served {
    const struct bench_world_options *options;
    struct bench_child child;
    char folder[64];
    void *context, *socket;
    struct proto_frame frame;
    uint64_t n_runs; /* part of each request's id */
    bool ready;
    struct bench_world_info *info; /* filled once, while opening */

    /* The run under way; NULL between runs. */
    struct request *requests;
    const struct bench_test *test;
    uint32_t *ids; /* [sequences, n_samples] */
    uint32_t n_samples;
    uint32_t n_begun, n_finished; /* sequences with a first token, with all */
    uint64_t n_counted;           /* tokens that came once all had begun */
    double all_begun_seconds, last_seconds;
    uint64_t heard_us;

    /* What the ranks said: the first answer to a question is of before it, the next may be newer. */
    bool asked, newer;
    double *up; /* [stages], of the first answer */
    double busy;
};

/* ── messages ──────────────────────────────────────────────────────────────────────────────── */

static int send_message(struct served *served, Gptoss__ClientMessage *message, char *err,
                        size_t err_size)
{
    int status = proto_send(served->socket, &message->base, err, err_size);
    if (status > 0)
        snprintf(err, err_size, "the coordinator does not read its messages");
    return status ? -1 : 0;
}

/* What the ranks have worked, and when they said so: the sums over all. */
static void take_busy(struct served *served, const Gptoss__Status *status)
{
    bool newer = true;
    served->busy = 0;
    for (size_t s = 0; s < status->n_stages && s < served->options->stages; s++) {
        newer = newer && status->stages[s]->up_seconds != served->up[s];
        served->busy += status->stages[s]->busy_seconds;
        if (!served->asked)
            served->up[s] = status->stages[s]->up_seconds;
    }
    served->newer = served->asked && newer;
    served->asked = true;
}

static void take_status(struct served *served, const Gptoss__Status *status)
{
    struct bench_world_info *info = served->info;
    take_busy(served, status);
    served->ready = status->ready;
    if (!status->ready || !info || status->n_stages == 0)
        return;
    struct text layers = {0};
    for (size_t s = 0; s < status->n_stages; s++)
        text_print(&layers, "%s%" PRIu32, s ? "," : "", status->stages[s]->layer_count);
    snprintf(info->layers, sizeof info->layers, "%s", layers.bytes);
    text_free(&layers);
    snprintf(info->device, sizeof info->device, "%s", status->stages[0]->device);
    /* "…, 2 threads": what a CPU says of itself. */
    const char *threads = strstr(info->device, " threads");
    if (!threads)
        threads = strstr(info->device, " thread");
    while (threads && threads > info->device && threads[-1] >= '0' && threads[-1] <= '9')
        threads--;
    info->bandwidth = 0;
    for (size_t s = 0; s < status->n_stages; s++)
        info->bandwidth += status->stages[s]->bandwidth;
    info->threads = threads ? (uint32_t)strtoul(threads, NULL, 10) : 0;
    snprintf(info->backend, sizeof info->backend, "%s",
             strcmp(served->options->device, "reference") == 0 ? "reference"
             : threads                                         ? "CPU"
                                                               : "CUDA");
}

/* The request of a message, or NULL: of an earlier run. */
static struct request *find(struct served *served, const ProtobufCBinaryData *id)
{
    uint64_t words[2];
    if (!served->requests || id->len != sizeof words)
        return NULL;
    memcpy(words, id->data, sizeof words);
    if (words[0] != served->n_runs || words[1] >= served->test->sequences)
        return NULL;
    return &served->requests[words[1]];
}

static int take_output(struct served *served, const Gptoss__Output *output, char *err,
                       size_t err_size)
{
    struct request *request = find(served, &output->request_id);
    uint32_t compared = bench_test_samples(served->test);
    double now = clock_seconds();
    for (size_t i = 0; request && i < output->n_tokens; i++) {
        const Gptoss__Token *token = output->tokens[i];
        if (token->index != request->n_tokens || token->index >= served->n_samples) {
            snprintf(err, err_size,
                     "token %" PRIu32 " came, expected token %" PRIu32 " of %" PRIu32, token->index,
                     request->n_tokens, served->n_samples);
            return -1;
        }
        served->last_seconds = now;
        if (served->n_begun == served->test->sequences)
            served->n_counted++;
        if (request->n_tokens++ == 0 && ++served->n_begun == served->test->sequences)
            served->all_begun_seconds = now;
        size_t at = (size_t)(request - served->requests) * compared + token->index;
        if (token->index < compared)
            served->ids[at] = token->id;
    }
    return 0;
}

static int take_finished(struct served *served, const Gptoss__Finished *finished, char *err,
                         size_t err_size)
{
    struct request *request = find(served, &finished->request_id);
    if (!request)
        return 0;
    if (finished->reason != GPTOSS__FINISHED__REASON__LENGTH ||
        request->n_tokens != served->n_samples) {
        snprintf(err, err_size,
                 "a request ended after %" PRIu32 " of %" PRIu32 " tokens (reason %d): %s",
                 request->n_tokens, served->n_samples, (int)finished->reason, finished->text);
        return -1;
    }
    served->n_finished++;
    return 0;
}

static int take(struct served *served, const Gptoss__ServerMessage *message, char *err,
                size_t err_size)
{
    served->heard_us = clock_us();
    switch (message->body_case) {
    case GPTOSS__SERVER_MESSAGE__BODY_STATUS: take_status(served, message->status); return 0;
    case GPTOSS__SERVER_MESSAGE__BODY_OUTPUT:
        return take_output(served, message->output, err, err_size);
    case GPTOSS__SERVER_MESSAGE__BODY_FINISHED:
        return take_finished(served, message->finished, err, err_size);
    case GPTOSS__SERVER_MESSAGE__BODY_REFUSED:
        snprintf(err, err_size, "the coordinator refused a request: %s", message->refused->text);
        return -1;
    default: return 0;
    }
}

static int poll_messages(struct served *served, int timeout_ms, char *err, size_t err_size)
{
    zmq_pollitem_t item = {.socket = served->socket, .events = ZMQ_POLLIN};
    int ready = zmq_poll(&item, 1, timeout_ms), code;
    if (bench_interrupted()) {
        snprintf(err, err_size, "interrupted");
        return -1;
    }
    if (ready <= 0 && bench_child_ended(&served->child, &code)) {
        snprintf(err, err_size, "gptoss-coordinator ended with exit code %d: see what it said",
                 code);
        return code > 0 && code < 128 ? code : -1;
    }
    for (int got; (got = proto_receive(served->socket, &served->frame, err, err_size));) {
        if (got < 0)
            return -1;
        ProtobufCMessage *message =
            got == 1 ? proto_unpack(&gptoss__server_message__descriptor, served->frame.bytes,
                                    served->frame.size, err, err_size)
                     : NULL;
        int status = message ? take(served, (Gptoss__ServerMessage *)message, err, err_size) : -1;
        proto_free(message);
        if (status)
            return -1;
    }
    return 0;
}

/* ── opening and closing ───────────────────────────────────────────────────────────────────── */

static int start_coordinator(struct served *served, const char *clients, const char *workers,
                             char *err, size_t err_size)
{
    const struct bench_world_options *o = served->options;
    char program[4096], numbers[5][16];
    const uint32_t values[5] = {o->stages, o->context, o->sequences, o->step_tokens, o->threads};
    for (int i = 0; i < 5; i++)
        snprintf(numbers[i], sizeof numbers[i], "%" PRIu32, values[i]);
    bench_beside("gptoss-coordinator", program, sizeof program);
    const char *kv_type = o->kv_type == PLAN_KV_F16    ? "f16"
                          : o->kv_type == PLAN_KV_BF16 ? "bf16"
                                                       : "f32";
    const char *const argv[] = {program,
                                "--model",
                                o->path,
                                "--bind",
                                clients,
                                "--workers-bind",
                                workers,
                                "--launch",
                                numbers[0],
                                "--context",
                                numbers[1],
                                "--sequences",
                                numbers[2],
                                "--step-tokens",
                                numbers[3],
                                "--device",
                                o->device,
                                "--head",
                                plan_head_name(o->head),
                                "--kv-type",
                                kv_type,
                                "--transport",
                                o->transport,
                                "--max-queue",
                                "100000",
                                "--no-prefix-cache",
                                o->fast ? "--fast" : "--no-prefix-cache",
                                o->threads ? "--threads" : NULL,
                                numbers[4],
                                NULL};
    served->child.gpu = o->gpu < 0 ? 0 : o->gpu + 1;
    return bench_child_start(&served->child, argv, err, err_size);
}

static void close_served(void *world)
{
    struct served *served = world;
    if (!served)
        return;
    bench_child_stop(&served->child, 0);
    proto_frame_free(&served->frame);
    proto_close(served->socket);
    if (served->context)
        zmq_ctx_term(served->context);
    bench_folder_remove(served->folder);
    free(served->up);
    free(served);
}

static int ask_status(struct served *served, char *err, size_t err_size)
{
    Gptoss__StatusRequest body = GPTOSS__STATUS_REQUEST__INIT;
    Gptoss__ClientMessage message = GPTOSS__CLIENT_MESSAGE__INIT;
    message.body_case = GPTOSS__CLIENT_MESSAGE__BODY_STATUS;
    message.status = &body;
    return send_message(served, &message, err, err_size);
}

/* Seconds that the ranks have worked, while they are idle; < 0: not known. */
static int idle_busy(struct served *served, double *busy, char *err, size_t err_size)
{
    served->asked = served->newer = false;
    double end = clock_seconds() + ANSWER_SECONDS;
    while (!served->newer && clock_seconds() < end) {
        if (ask_status(served, err, err_size) || poll_messages(served, POLL_MS, err, err_size))
            return -1;
        if (served->asked && !served->newer)
            nanosleep(&(struct timespec){.tv_nsec = ANSWER_MS * 1000000}, NULL);
    }
    *busy = served->newer ? served->busy : -1;
    return 0;
}

/* Asks until all ranks are ready. 0, -1, or the coordinator's exit code. */
static int wait_until_ready(struct served *served, char *err, size_t err_size)
{
    double next = 0;
    while (!served->ready) {
        if (clock_seconds() >= next) {
            if (ask_status(served, err, err_size))
                return -1;
            next = clock_seconds() + STATUS_MS * 1e-3;
        }
        int status = poll_messages(served, STATUS_MS, err, err_size);
        if (status)
            return status;
    }
    return 0;
}

static int open_served(void **world, const struct bench_world_options *options,
                       struct bench_world_info *info, char *err, size_t err_size)
{
    int status = -1;
    char clients[128], workers[128];
    struct served *served = base_alloc(1, sizeof *served);
    *world = NULL;
    served->options = options;
    served->info = info;
    served->up = base_alloc(options->stages, sizeof *served->up);
    served->context = zmq_ctx_new();
    if (!served->context) {
        snprintf(err, err_size, "ZeroMQ does not start: %s", zmq_strerror(errno));
        goto fail;
    }
    if (bench_folder_create(served->folder, sizeof served->folder, err, err_size))
        goto fail;
    snprintf(clients, sizeof clients, "ipc://%s/clients", served->folder);
    snprintf(workers, sizeof workers, "ipc://%s/workers", served->folder);
    if (start_coordinator(served, clients, workers, err, err_size) ||
        proto_connect(&served->socket, served->context, clients, err, err_size))
        goto fail;
    status = wait_until_ready(served, err, err_size);
    if (status)
        goto fail;
    served->info = NULL;
    *world = served;
    return EXIT_DONE;
fail:
    close_served(served);
    return status > 0 ? status : EXIT_FAILED;
}

/* ── a test ────────────────────────────────────────────────────────────────────────────────── */

static const char *cannot_serve(const struct bench_test *test)
{
    return test->n_prompt && test->n_depth
               ? "a client cannot tell the depth's time from the prompt's"
               : NULL;
}

static int send_request(struct served *served, uint32_t number, uint32_t *ids, uint32_t n,
                        char *err, size_t err_size)
{
    uint64_t id[2] = {served->n_runs, number};
    Gptoss__TokenIds tokens = GPTOSS__TOKEN_IDS__INIT;
    Gptoss__Sampling sampling = GPTOSS__SAMPLING__INIT;
    Gptoss__Generate body = GPTOSS__GENERATE__INIT;
    Gptoss__ClientMessage message = GPTOSS__CLIENT_MESSAGE__INIT;
    tokens.n_ids = n;
    tokens.ids = ids;
    sampling.temperature_given_case = GPTOSS__SAMPLING__TEMPERATURE_GIVEN_TEMPERATURE;
    sampling.temperature = 0;
    body.request_id = (ProtobufCBinaryData){sizeof id, (uint8_t *)id};
    body.prompt_case = GPTOSS__GENERATE__PROMPT_IDS;
    body.ids = &tokens;
    body.sampling = &sampling;
    body.max_tokens = served->n_samples;
    body.ignore_eos = true;
    message.body_case = GPTOSS__CLIENT_MESSAGE__BODY_GENERATE;
    message.generate = &body;
    return send_message(served, &message, err, err_size);
}

/* Without depth the clock runs from the first request to the last token. With depth, from when every
 * sequence has its first token, which its depth is computed for, to the last token; the tokens that
 * come in this time are counted. */
static int measure(const struct served *served, double begin, struct bench_sample *sample,
                   char *err, size_t err_size)
{
    const struct bench_test *test = served->test;
    if (test->n_depth == 0) {
        sample->tokens = (double)test->sequences * (test->n_prompt + test->n_gen);
        sample->seconds = served->last_seconds - begin;
        return 0;
    }
    if (served->n_counted == 0) {
        snprintf(err, err_size,
                 "the first sequences ended before the last had its depth: generate more (-n)");
        return -1;
    }
    sample->tokens = (double)served->n_counted;
    sample->seconds = served->last_seconds - served->all_begun_seconds;
    return 0;
}

static int run_served(void *world, const struct bench_test *test, uint64_t seed,
                      struct bench_sample *sample, char *err, size_t err_size)
{
    struct served *served = world;
    int status = -1;
    uint32_t first = test->n_prompt ? test->n_prompt : 1, given = test->n_depth + first;
    uint32_t *prompt = base_alloc(given, sizeof *prompt);
    served->n_runs++;
    served->test = test;
    served->ids = sample->ids;
    served->n_samples = bench_test_samples(test) + (test->n_depth > 0);
    served->n_finished = served->n_begun = 0;
    served->n_counted = 0;
    served->requests = base_alloc(test->sequences, sizeof *served->requests);
    double busy, busy_before;
    if (idle_busy(served, &busy_before, err, err_size))
        goto done;
    served->heard_us = clock_us();
    double begin = clock_seconds();
    for (uint32_t s = 0; s < test->sequences; s++) {
        bench_prompt(&served->options->vocabulary, seed, test->sequence_first + s, prompt, given);
        if (send_request(served, s, prompt, given, err, err_size))
            goto done;
    }
    while (served->n_finished < test->sequences) {
        if (poll_messages(served, POLL_MS, err, err_size))
            goto done;
        if (clock_us() > served->heard_us + DEADLINE_US) {
            snprintf(err, err_size, "the coordinator has said nothing for %d s",
                     (int)(DEADLINE_US / 1000000));
            goto done;
        }
    }
    if (idle_busy(served, &busy, err, err_size))
        goto done;
    /* Of a depth, what was computed for it cannot be told from what came after. */
    sample->busy = busy_before < 0 || busy < 0 || test->n_depth ? -1 : busy - busy_before;
    status = measure(served, begin, sample, err, err_size);
done:
    free(served->requests);
    served->requests = NULL;
    free(prompt);
    return status;
}

const struct bench_driver bench_served = {"coordinator", open_served, cannot_serve,
                                          run_served,    NULL,        close_served};
