/*
 * worker: a rank's conversation with the coordinator, around one stage. What is said is drawn in
 * gptoss.proto, "rank → coordinator".
 *
 * Everything but the heartbeats runs in one thread. service() reads and answers the coordinator; it is called from every
 * place that takes time: the main loop, the loading of weights, the opening of edges.
 */
#include "worker/worker.h"

#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "worker/beat.h"
#include "worker/link.h"
#include "worker/transport.h"

#define SILENCE_SECONDS 10.0
#define HELLO_SECONDS   1.0
#define LOADING_SECONDS 0.25 /* between two messages while loading */
#define SAY_SECONDS     5.0  /* between two lines of the log while loading */
#define OTHERS_SECONDS  1.5  /* that ranks > 0 are more patient than rank 0: it speaks for them */
#define NOTE_SECONDS    0.05
#define HEARD_MS        100 /* most that a wait for the coordinator sleeps at a time */

enum phase { PHASE_HELLO, PHASE_WELCOMED, PHASE_JOINED, PHASE_PLANNED, PHASE_READY };

struct worker {
    struct worker_world *world;
    const struct worker_world_info *info;
    struct worker_options options;
    struct proto_keys keys; /* where options.key is given */
    struct link *link;
    struct beat *beat;
    enum phase phase;

    bool ended; /* `code` is the exit code */
    int code;

    char *model_path, *device;
    uint32_t threads;
    bool fast;
    uint64_t epoch;
    Gptoss__SupervisorMessage *plan; /* the message that holds it */
    struct gguf_file *file;
    struct gguf_model *model;
    struct kernels *kernels;
    struct kernels_info
        device_info; /* as it was before anything was loaded: it takes time to find out */
    struct worker_stage *stage;
    double loading_seconds, said_seconds, noted_seconds;

    /* Stage 0: steps that have no lane yet, oldest first. */
    Gptoss__SupervisorMessage **steps; /* [steps_max], a ring */
    uint32_t steps_max, steps_first, steps_count;
};

/* ── ending ────────────────────────────────────────────────────────────────────────────────── */

/* The first reason counts. Always −1. */
static int end(struct worker *w, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int end(struct worker *w, int code, const char *format, ...)
{
    if (w->ended)
        return -1;
    w->ended = true;
    w->code = code;
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (code == EXIT_DONE) {
        log_info("%s", text);
        return -1;
    }
    log_error("%s", text);
    if (w->link == NULL || w->phase == PHASE_HELLO || code == EXIT_COORDINATOR)
        return -1;
    Gptoss__Failed failed = GPTOSS__FAILED__INIT;
    Gptoss__RankMessage message = GPTOSS__RANK_MESSAGE__INIT;
    char err[256];
    failed.rank = w->info->rank;
    failed.text = text;
    failed.exit_code = (uint32_t)code;
    message.body_case = GPTOSS__RANK_MESSAGE__BODY_FAILED;
    message.failed = &failed;
    link_send(w->link, &message, err, sizeof err);
    return -1;
}

static int send(struct worker *w, Gptoss__RankMessage *message)
{
    char err[512];
    if (link_send(w->link, message, err, sizeof err) == 0)
        return 0;
    return end(w, EXIT_COORDINATOR, "coordinator lost: %s", err);
}

/* What all ranks notice alike, rank 0 says: mpirun ends the others before they would. */
static double patience(const struct worker *w)
{
    return w->info->rank ? OTHERS_SECONDS : 0;
}

/* ── what the coordinator says ─────────────────────────────────────────────────────────────── */

static void take_welcome(struct worker *w, const Gptoss__SupervisorMessage *message)
{
    if (w->phase != PHASE_HELLO)
        return; /* one answer for each greeting: the first counts */
    const Gptoss__Welcome *welcome = message->welcome;
    w->epoch = message->epoch;
    w->model_path = strdup(welcome->model);
    w->device = strdup(w->options.device ? w->options.device : welcome->device);
    w->threads = w->options.threads ? w->options.threads : welcome->threads;
    w->fast = welcome->fast;
    if (w->model_path == NULL || w->device == NULL) {
        end(w, EXIT_MEMORY, "no memory");
        return;
    }
    w->phase = PHASE_WELCOMED;
    link_set_epoch(w->link, w->epoch);
}

static void take_step(struct worker *w, Gptoss__SupervisorMessage *message)
{
    if (w->phase != PHASE_READY || w->info->rank != 0) {
        log_warn("dropped a step: only stage 0, when it is ready, takes steps");
        proto_free(&message->base);
    } else if (w->steps_count == w->steps_max) {
        end(w, EXIT_FAILED, "the coordinator sent more than %u steps ahead", w->steps_max);
        proto_free(&message->base);
    } else
        w->steps[(w->steps_first + w->steps_count++) % w->steps_max] = message;
}

/* What the heartbeats tell of us; not at every turn, some devices are slow to say how busy they are. */
static void note(struct worker *w)
{
    struct worker_stage_info info;
    double now = clock_seconds();
    bool whole = w->stage && now - w->noted_seconds > NOTE_SECONDS;
    if (whole) {
        w->noted_seconds = now;
        worker_stage_info(w->stage, &info);
    }
    beat_note(w->beat, whole ? &info : NULL, w->steps_count, w->device_info.memory_free_bytes);
}

/* Takes the message over. */
static void take(struct worker *w, Gptoss__SupervisorMessage *message)
{
    switch (message->body_case) {
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_WELCOME: take_welcome(w, message); break;
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_REFUSED:
        poll(NULL, 0, (int)(patience(w) * 1000));
        end(w, EXIT_FAILED, "the coordinator refused this rank: %s", message->refused->text);
        break;
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_PLAN:
        if (w->phase != PHASE_JOINED) {
            log_warn("dropped a plan: this rank %s one", w->plan ? "has" : "has not asked for");
            break;
        }
        w->plan = message;
        w->phase = PHASE_PLANNED;
        return;
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_STEP: take_step(w, message); return;
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_SHUTDOWN:
        if (message->shutdown->lost) { /* MPI's farewell would wait for the one that is lost */
            log_info("leaving at once: %s", message->shutdown->text);
            w->ended = true;
            w->code = EXIT_FAILED;
            break;
        }
        end(w, EXIT_DONE, "leaving: %s",
            message->shutdown->text[0] ? message->shutdown->text : "the coordinator says so");
        break;
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_HEARTBEAT:
        w->noted_seconds = 0; /* the answer tells how it is now */
        note(w);
        beat_echo(w->beat, message->heartbeat->sent_us, clock_us());
        break;
    default: log_debug("a message of a kind that this version does not know"); break;
    }
    proto_free(&message->base);
}

/* Hears the coordinator out. 0, or -1: the end. */
static int service(struct worker *w)
{
    Gptoss__SupervisorMessage *message;
    char err[512];
    int got = 0;
    while (!w->ended && (got = link_receive(w->link, &message, err, sizeof err)) == 1)
        take(w, message);
    if (w->ended)
        return -1;
    if (got < 0)
        return end(w, EXIT_COORDINATOR, "coordinator lost: %s", err);
    if (link_silence(w->link) > SILENCE_SECONDS + patience(w))
        return end(w, EXIT_COORDINATOR, "coordinator lost: nothing heard from %s for %.0f s",
                   w->options.coordinator, SILENCE_SECONDS);
    note(w);
    return 0;
}

/* Sleeps until there is something to hear, or `seconds` have passed. */
static void listen_for(struct worker *w, double seconds)
{
    int fd = link_fd(w->link);
    int ms = seconds * 1000 < HEARD_MS ? (int)(seconds * 1000) + 1 : HEARD_MS;
    if (fd >= 0 && ms > 0)
        poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, ms);
}

static int wait_for(struct worker *w, enum phase phase)
{
    while (w->phase != phase) {
        if (service(w))
            return -1;
        if (w->phase != phase)
            listen_for(w, 1);
    }
    return 0;
}

/* ── the way to ready ──────────────────────────────────────────────────────────────────────── */

static int greet(struct worker *w)
{
    Gptoss__Hello hello = GPTOSS__HELLO__INIT;
    Gptoss__RankMessage message = GPTOSS__RANK_MESSAGE__INIT;
    hello.world = w->info->id;
    hello.rank = w->info->rank;
    hello.size = w->info->size;
    hello.protocol = PROTO_VERSION;
    hello.pid = (uint32_t)getpid();
    message.body_case = GPTOSS__RANK_MESSAGE__BODY_HELLO;
    message.hello = &hello;

    double begin = clock_seconds(), next = begin;
    log_debug("asking %s for layers", w->options.coordinator);
    for (;;) {
        double now = clock_seconds();
        if (now >= next) {
            if (send(w, &message))
                return -1;
            next = now + HELLO_SECONDS;
        }
        if (service(w))
            return -1;
        if (w->phase == PHASE_WELCOMED)
            return 0;
        char trouble[600] = "";
        link_trouble(w->link, trouble, sizeof trouble);
        if (trouble[0] || now - begin > w->options.connect_timeout + patience(w))
            return end(w, EXIT_COORDINATOR,
                       trouble[0]
                           ? "%s: %s"
                           : "no coordinator at %s: start one with gptoss-coordinator --model FILE",
                       w->options.coordinator, trouble);
        listen_for(w, next - now);
    }
}

static int begin_beating(struct worker *w)
{
    char err[512];
    if (beat_create(&w->beat, link_context(w->link), w->options.coordinator,
                    w->options.key ? &w->keys : NULL, w->info, w->epoch, err, sizeof err))
        return end(w, EXIT_COORDINATOR, "%s", err);
    return 0;
}

static int open_model(struct worker *w)
{
    char err[1024];
    if (gguf_open(&w->file, w->model_path, err, sizeof err) ||
        gguf_model_create(&w->model, w->file, err, sizeof err))
        return end(w, EXIT_MODEL, "%s (host %s)", err, w->info->host);
    return 0;
}

static int open_device(struct worker *w)
{
    char err[1024];
    uint32_t cpus = worker_world_threads(w->world);
    if (w->threads == 0)
        w->threads = cpus;
    else if (w->threads > cpus && strcmp(w->device, "cuda") != 0)
        log_warn("%u threads on %u CPUs: %u ranks share this host, or mpirun has bound this one "
                 "(--bind-to none)",
                 w->threads, cpus, w->info->local_size);
    /* Streams of one process that share a connection stand behind each other, and ours may wait for a
     * neighbour. Eight is CUDA's own number but under MPS. It is read when CUDA starts. */
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8", 0);
    /* To load a kernel at its first launch may wait for all streams, and one of them may be waiting for
     * what that kernel makes. */
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    const struct kernels_options options = {
        .device = w->device[0] ? w->device : NULL,
        .threads = w->threads,
        .local_rank = w->info->local_rank,
        .fast = w->fast,
    };
    if (kernels_create(&w->kernels, &options, err, sizeof err))
        return end(w, EXIT_DEVICE, "%s", err);
    kernels_info(w->kernels, &w->device_info);
    return 0;
}

static int join(struct worker *w)
{
    struct kernels_info info = w->device_info;
    Gptoss__Join join = GPTOSS__JOIN__INIT;
    Gptoss__RankMessage message = GPTOSS__RANK_MESSAGE__INIT;
    join.rank = w->info->rank;
    join.size = w->info->size;
    join.host = (char *)w->info->host;
    join.device = info.device;
    join.device_uuid = info.uuid;
    join.memory_free_bytes = info.memory_free_bytes;
    join.header_digest = gguf_header_digest(w->file);
    join.header_bytes = gguf_header_bytes(w->file);
    join.threads = info.threads;
    join.backend = info.backend;
    join.bandwidth = info.bandwidth;
    join.fast = info.fast;
    /* A rank that is alone needs no transport, and does not load what one would. */
    bool cuda = strcmp(info.backend, "cuda") == 0;
    join.transports = (char *)(cuda && w->info->size == 1 ? "" : transport_names(cuda));
    message.body_case = GPTOSS__RANK_MESSAGE__BODY_JOIN;
    message.join = &join;
    w->phase = PHASE_JOINED;
    return send(w, &message);
}

/* Called while weights are loaded, many times a second. */
static void loading(void *arg, uint64_t bytes_done, uint64_t bytes_all)
{
    struct worker *w = arg;
    double now = clock_seconds();
    if (service(w) || now - w->loading_seconds < LOADING_SECONDS)
        return;
    w->loading_seconds = now;
    Gptoss__Loading loading = GPTOSS__LOADING__INIT;
    Gptoss__RankMessage message = GPTOSS__RANK_MESSAGE__INIT;
    loading.bytes_done = bytes_done;
    loading.bytes_all = bytes_all;
    message.body_case = GPTOSS__RANK_MESSAGE__BODY_LOADING;
    message.loading = &loading;
    send(w, &message);
    if (now - w->said_seconds < SAY_SECONDS)
        return;
    w->said_seconds = now;
    char done[32], all[32];
    log_info("loading: %s of %s", text_bytes(done, bytes_done), text_bytes(all, bytes_all));
}

static int idle(void *arg)
{
    return service(arg);
}

static int result(void *arg, const Gptoss__StepResult *result, char *err, size_t err_size)
{
    struct worker *w = arg;
    Gptoss__RankMessage message = GPTOSS__RANK_MESSAGE__INIT;
    message.body_case = GPTOSS__RANK_MESSAGE__BODY_RESULT;
    message.result = (Gptoss__StepResult *)result;
    return link_send(w->link, &message, err, err_size);
}

static int make_stage(struct worker *w)
{
    const Gptoss__Plan *plan = w->plan->plan;
    const struct worker_stage_options options = {
        .plan = plan,
        .epoch = w->epoch,
        .kernels = w->kernels,
        .model = w->model,
        .result = result,
        .progress = loading,
        .idle = idle,
        .arg = w,
    };
    char err[1024];
    double begin = clock_seconds();
    w->said_seconds = begin;
    if (plan->fast != w->device_info.fast)
        return end(w, EXIT_DEVICE,
                   "the plan is for products with %s activations, and this rank's take %s ones: "
                   "all ranks of a run have one mode",
                   plan->fast ? "int8" : "float", w->device_info.fast ? "int8" : "float");
    int status = worker_stage_create(&w->stage, w->world, &options, err, sizeof err);
    if (status)
        return end(w, status == 1 ? EXIT_MEMORY : EXIT_DEVICE, "%s", err);
    if (w->ended)
        return -1;
    w->steps_max = plan->steps_in_flight;
    w->steps = base_alloc(w->steps_max, sizeof(Gptoss__SupervisorMessage *));
    w->phase = PHASE_READY;

    struct worker_stage_info info;
    worker_stage_info(w->stage, &info);
    Gptoss__Ready ready = GPTOSS__READY__INIT;
    Gptoss__RankMessage message = GPTOSS__RANK_MESSAGE__INIT;
    ready.weights_bytes = info.footprint.weights_bytes;
    ready.kv_bytes = info.footprint.kv_bytes;
    ready.activation_bytes = info.footprint.activation_bytes;
    ready.seconds = clock_seconds() - begin;
    message.body_case = GPTOSS__RANK_MESSAGE__BODY_READY;
    message.ready = &ready;
    if (send(w, &message))
        return -1;
    char weights[32], kv[32], seconds[32];
    log_info("layers %u…%u of %u: %s weights, %s KV, ready in %s", plan->layer_first,
             plan->layer_first + plan->layer_count - 1, w->model->n_layers,
             text_bytes(weights, ready.weights_bytes), text_bytes(kv, ready.kv_bytes),
             text_seconds(seconds, ready.seconds));
    return 0;
}

/* ── the loop ──────────────────────────────────────────────────────────────────────────────── */

/* Stage 0: hands over as many steps as there are lanes. */
static int submit(struct worker *w)
{
    char err[1024];
    while (w->steps_count) {
        Gptoss__SupervisorMessage *message = w->steps[w->steps_first];
        int status = worker_stage_submit(w->stage, message->step, err, sizeof err);
        if (status == 1)
            return 0;
        if (status < 0) {
            Gptoss__StepResult refused = GPTOSS__STEP_RESULT__INIT;
            refused.step = message->step->step;
            refused.error = err;
            result(w, &refused, (char[256]){0}, 256);
            return end(w, EXIT_FAILED, "%s", err);
        }
        w->steps_first = (w->steps_first + 1) % w->steps_max;
        w->steps_count--;
        proto_free(&message->base);
    }
    return 0;
}

/* Lost times are no harm: they are sent once. */
static void tell_times(struct worker *w)
{
    const Gptoss__StepTimes *times = worker_stage_times(w->stage, false);
    if (times == NULL)
        return;
    Gptoss__RankMessage message = GPTOSS__RANK_MESSAGE__INIT;
    char err[256];
    message.body_case = GPTOSS__RANK_MESSAGE__BODY_STEP_TIMES;
    message.step_times = (Gptoss__StepTimes *)(uintptr_t)times;
    link_send(w->link, &message, err, sizeof err);
}

static int serve(struct worker *w)
{
    char err[1024];
    for (;;) {
        if (service(w) || submit(w))
            return -1;
        int moved = worker_stage_progress(w->stage, err, sizeof err);
        if (moved < 0)
            return end(w, EXIT_DEVICE, "%s", err);
        tell_times(w);
        int fd = moved ? -1 : link_fd(w->link);
        worker_stage_wait(w->stage, fd, moved || fd < 0);
    }
}

int worker_run(struct worker *w)
{
    if (greet(w) == 0 && begin_beating(w) == 0 && open_model(w) == 0 && open_device(w) == 0 &&
        join(w) == 0 && wait_for(w, PHASE_PLANNED) == 0 && make_stage(w) == 0)
        serve(w);
    /* To stop is to let go of what waits on the device for a neighbour; what is queued behind then runs
     * on garbage. The coordinator has ended this epoch before it says so; a rank that fails by itself
     * leaves with everything as it stands. */
    if (w->stage && w->code == EXIT_DONE)
        worker_stage_stop(w->stage);
    beat_destroy(w->beat);
    w->beat = NULL;
    link_destroy(w->link); /* what was said last is sent before anybody leaves */
    w->link = NULL;
    return w->code;
}

int worker_create(struct worker **out, struct worker_world *world,
                  const struct worker_options *options, char *err, size_t err_size)
{
    *out = NULL;
    struct worker *w = base_alloc(1, sizeof *w);
    w->world = world;
    w->info = worker_world_info(world);
    w->options = *options;
    if (options->key && (proto_keys_read(&w->keys, options->key, err, err_size) ||
                         proto_keys_server(&w->keys, options->server_key, err, err_size)))
        goto fail;
    if (link_create(&w->link, options->coordinator, options->key ? &w->keys : NULL, err, err_size))
        goto fail;
    *out = w;
    return 0;

fail:
    free(w);
    return -1;
}

void worker_destroy(struct worker *w)
{
    if (w == NULL)
        return;
    beat_destroy(w->beat);
    link_destroy(w->link);
    worker_stage_destroy(w->stage);
    kernels_destroy(w->kernels);
    gguf_model_destroy(w->model);
    gguf_close(w->file);
    for (; w->steps_count; w->steps_count--, w->steps_first = (w->steps_first + 1) % w->steps_max)
        proto_free(&w->steps[w->steps_first]->base);
    if (w->plan)
        proto_free(&w->plan->base);
    free(w->steps);
    free(w->model_path);
    free(w->device);
    free(w);
}
