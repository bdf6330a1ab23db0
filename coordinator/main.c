/*
 * gptoss-coordinator: options, the plan that is only looked at, exit codes. The rest is the loop.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"
#include "coordinator/coordinator.h"
#include "coordinator/keygen.h"
#include "coordinator/loop.h"

#define LAYERS_MAX 4096

struct options {
    enum plan_head plan_head; /* what `head` names */
    const char *model, *bind, *workers_bind, *layers, *head, *kv_type, *device, *transport, *worker,
        *costs, *keys, *allow, *journal;
    int64_t max_queue_mib, max_client, client_queue, launch, context, sequences, threads, max_queue,
        step_tokens, kv_tokens;
    double drain, token_gap, step_deadline, silence, bandwidth;
    bool plan_only, insecure, no_prefix_cache, fast;
};

static int usage(const char *text, const char *value)
{
    fprintf(stderr, "gptoss-coordinator: %s%s\ntry: gptoss-coordinator --help\n", text, value);
    return EXIT_USAGE;
}

static int parse_layers(const char *text, uint32_t *layers, uint32_t *n)
{
    *n = 0;
    for (const char *p = text; *p;) {
        char *end;
        errno = 0;
        unsigned long value = strtoul(p, &end, 10);
        if (end == p || errno || value == 0 || value > LAYERS_MAX || *n == LAYERS_MAX ||
            *p == '-' || *p == '+' || (*end && *end != ','))
            return -1;
        layers[(*n)++] = (uint32_t)value;
        p = *end ? end + 1 : end;
        if (*end == ',' && !*p)
            return -1;
    }
    return *n ? 0 : -1;
}

static int parse_kv_type(const char *text, enum plan_kv_type *type)
{
    static const char *const names[] = {"f32", "f16", "bf16"};
    static const enum plan_kv_type types[] = {PLAN_KV_F32, PLAN_KV_F16, PLAN_KV_BF16};
    for (size_t i = 0; i < 3; i++)
        if (strcmp(text, names[i]) == 0) {
            *type = types[i];
            return 0;
        }
    return -1;
}

/* gptoss-worker beside this program. */
static const char *worker_beside(void)
{
    static char path[PATH_MAX + 32];
    ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - 1);
    path[n > 0 ? n : 0] = 0;
    char *slash = strrchr(path, '/');
    if (!slash)
        return "gptoss-worker";
    strcpy(slash + 1, "gptoss-worker");
    return access(path, X_OK) == 0 ? path : "gptoss-worker";
}

static void add_prediction(struct table *table, const struct plan *plan,
                           const struct gguf_model *model, const struct plan_rank *rank)
{
    struct plan_prediction p;
    char cells[4][32];
    plan_predict(plan, model, NULL, rank, &p);
    snprintf(cells[0], sizeof *cells, "%u", plan->n_stages);
    const double values[] = {p.one, p.many, p.prompt};
    for (int i = 0; i < 3; i++)
        snprintf(cells[1 + i], sizeof *cells, values[i] < 100 ? "%.1f" : "%.0f", values[i]);
    table_row(table, (const char *const[]){cells[0], cells[1], cells[2], cells[3]});
}

/* The plans for 1, 2, 4 and 8 ranks of unknown devices, or for as many as were asked for, and how fast
 * they would be. */
static int show_plans(const struct gguf_model *model, const struct coordinator_options *options,
                      uint32_t ranks, double bandwidth)
{
    uint32_t counts[4] = {1, 2, 4, 8}, n = 4;
    if (ranks) {
        counts[0] = ranks;
        n = 1;
    }
    int code = EXIT_DONE;
    bool gpu = options->device && strcmp(options->device, "cuda") == 0;
    struct plan_rank rank = {.bandwidth = bandwidth, .weights_in_place = !gpu};
    struct plan_rank same[8];
    for (int i = 0; i < 8; i++)
        same[i] = rank;
    struct table *predicted =
        table_create(4, (const char *const[]){"stages", "one sequence", "64 a stage", "prompts"});
    for (uint32_t i = 0; i < n; i++) {
        if (!ranks && counts[i] > model->n_layers)
            break;
        struct plan_options ask = {
            .n_ranks = counts[i],
            .ranks = gpu && counts[i] <= 8 ? same : NULL,
            .layers = options->n_layers_given ? options->layers : NULL,
            .head = options->head,
            .context = options->context,
            .sequences = options->sequences,
            .kv_type = options->kv_type_given ? options->kv_type
                       : gpu                  ? PLAN_KV_F16
                                              : PLAN_KV_F32,
            .kv_tokens = options->kv_tokens,
            .step_tokens = options->step_tokens,
            .fast = options->fast,
        };
        struct plan *plan;
        char err[512];
        if (plan_create(&plan, model, &ask, err, sizeof err) < 0) {
            log_error("%s", err);
            code = EXIT_FAILED;
            continue;
        }
        char *table = plan_table(plan, ask.ranks);
        printf("%s%s", i ? "\n" : "", table);
        free(table);
        add_prediction(predicted, plan, model, &rank);
        plan_destroy(plan);
    }
    if (options->fast)
        printf("\nProducts take int8 activations (--fast).\n");
    printf("\nPredicted tokens/s, for ranks that read %g GB/s (--bandwidth; --device cuda: GPUs); "
           "gptoss-bench simulate predicts from measured costs:\n",
           bandwidth / 1e9);
    table_print(predicted, TABLE_TEXT, stdout);
    table_destroy(predicted);
    return code;
}

static int restore(void *arg, const void *bytes, size_t size, char *err, size_t err_size)
{
    return coordinator_restore(arg, bytes, size, clock_us(), err, err_size);
}

/* What an earlier run accepted and did not finish goes on. */
static int open_journal(struct journal **journal, struct coordinator *c, const char *path,
                        uint64_t of, char *err, size_t err_size)
{
    struct journal_report report;
    struct coordinator_counts counts;
    if (journal_open(journal, path, of, restore, c, &report, err, err_size))
        return -1;
    coordinator_counts(c, &counts);
    if (report.cut_bytes)
        log_warn("%s: %llu bytes at its end were no whole record, as after a crash; they are kept "
                 "in %s.damaged",
                 path, (unsigned long long)report.cut_bytes, path);
    if (report.left_out)
        log_warn("%s: %llu records were left out: %s", path, (unsigned long long)report.left_out,
                 report.why);
    if (report.records)
        log_info("%s: %u requests go on, %u finished ones wait for their clients", path,
                 counts.waiting, counts.lingering);
    return 0;
}

static int run(const struct options *o, const char *path, const uint32_t *layers, uint32_t n_layers)
{
    char err[1024] = "";
    int code = EXIT_MODEL;
    struct gguf_file *file = NULL;
    struct gguf_model *model = NULL;
    struct coordinator *c = NULL;
    struct journal *journal = NULL;
    struct timespec wall;
    uint64_t seed = 0;
    struct coordinator_options options = {
        .model_path = path,
        .device = o->device,
        .transport = o->transport,
        .threads = (uint32_t)o->threads,
        .context = (uint32_t)o->context,
        .sequences = (uint32_t)o->sequences,
        .kv_tokens = (uint32_t)o->kv_tokens,
        .step_tokens = (uint32_t)o->step_tokens,
        .gap_us = (uint64_t)(o->token_gap * 1e3),
        .layers = layers,
        .head = o->plan_head,
        .n_layers_given = n_layers,
        .fast = o->fast,
        .no_prefix_cache = o->no_prefix_cache,
        .max_queue = (uint32_t)o->max_queue,
        .max_queue_bytes = (size_t)o->max_queue_mib << 20,
        .max_client = (uint32_t)o->max_client,
        .step_deadline_us = (uint64_t)(o->step_deadline * 1e6),
        .silence_us = (uint64_t)(o->silence * 1e6),
    };
    options.kv_type_given = o->kv_type != NULL;
    if (o->kv_type)
        parse_kv_type(o->kv_type, &options.kv_type);
    if (gguf_open(&file, path, err, sizeof err) || gguf_model_create(&model, file, err, sizeof err))
        goto done;
    options.model = model;
    if (o->plan_only) {
        bool gpu = strcmp(o->device, "cuda") == 0;
        double gigabytes = o->bandwidth > 0 ? o->bandwidth : gpu ? 3000 : 20;
        code =
            show_plans(model, &options, n_layers ? n_layers : (uint32_t)o->launch, gigabytes * 1e9);
        goto done;
    }
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed)
        seed = clock_us();
    options.seed = seed;
    /* Epochs of a coordinator that is started again must be new to ranks that still know the last. */
    options.epoch = (uint64_t)time(NULL) << 16;
    options.journal = o->journal != NULL;
    clock_gettime(CLOCK_REALTIME, &wall);
    options.wall_us = (uint64_t)wall.tv_sec * 1000000 + (uint64_t)wall.tv_nsec / 1000 - clock_us();
    if (coordinator_create(&c, &options, err, sizeof err))
        goto done;
    if (o->journal &&
        open_journal(&journal, c, o->journal, gguf_header_digest(file), err, sizeof err)) {
        code = EXIT_FAILED;
        goto done;
    }
    char size[32];
    log_info("gptoss %s: %s, %u layers, %s", GPTOSS_VERSION, path, model->n_layers,
             text_bytes(size, model->bytes));
    struct loop_options loop = {
        .clients_endpoint = o->bind,
        .workers_endpoint = o->workers_bind,
        .insecure = o->insecure,
        .journal = journal,
        .keys = o->keys,
        .allow = o->allow,
        .client_queue = (int)o->client_queue,
        .launch = (uint32_t)o->launch,
        .worker = o->worker ? o->worker : worker_beside(),
        .drain_seconds = o->drain,
        .costs = o->costs,
    };
    code = loop_run(c, &loop, err, sizeof err);
done:
    if (code != EXIT_DONE && err[0])
        log_error("%s", err);
    journal_close(journal);
    coordinator_destroy(c);
    gguf_model_destroy(model);
    gguf_close(file);
    return code;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "keygen") == 0)
        return keygen_run(argc - 1, argv + 1);
    struct options o = {
        .bind = "tcp://127.0.0.1:5555",
        .workers_bind = "tcp://127.0.0.1:5556",
        .device = "auto",
        .head = "auto",
        .max_queue = 512,
        .drain = 30,
        .step_deadline = 300,
        .silence = 0.8,
    };
    const struct cli_option options[] = {
        {.type = CLI_GROUP, .text = "Model"},
        {CLI_STRING, "model", 'm', "FILE", "the model, a gpt-oss GGUF file", NULL, "GPTOSS_MODEL",
         &o.model, 0, 0, NULL},
        {CLI_INT, "context", 'c', "T", "positions of one sequence, answer included",
         "the model's, at most 8192", "GPTOSS_CONTEXT", &o.context, 1, UINT32_MAX, NULL},
        {CLI_INT, "sequences", 's', "S", "sequences that are computed at a time",
         "16, on GPUs up to 256 a stage", "GPTOSS_SEQUENCES", &o.sequences, 1, 4096, NULL},
        {CLI_STRING, "kv-type", 0, "TYPE", "type of the KV cache: f32, f16 or bf16",
         "f32 on CPUs, f16 on GPUs", "GPTOSS_KV_TYPE", &o.kv_type, 0, 0, NULL},
        {CLI_INT, "kv-tokens", 0, "T",
         "positions that the KV cache holds, of all sequences together; what is short of them "
         "waits",
         "as many as the sequences can use and fit", "GPTOSS_KV_TOKENS", &o.kv_tokens, 1,
         UINT32_MAX, NULL},
        {CLI_FLAG, "fast", 0, NULL,
         "CPU ranks round the activations in front of a product to int8: prompts are read faster, "
         "logits differ a little",
         "float activations", "GPTOSS_FAST", &o.fast, 0, 0, NULL},
        {CLI_FLAG, "no-prefix-cache", 0, NULL,
         "share no KV between prompts that begin alike: how soon an answer comes then tells a "
         "client nothing about the prompts of others",
         NULL, "GPTOSS_NO_PREFIX_CACHE", &o.no_prefix_cache, 0, 0, NULL},
        {.type = CLI_GROUP, .text = "Ranks"},
        {CLI_INT, "launch", 0, "N", "start mpirun -np N gptoss-worker, and again if it dies",
         "wait for ranks", "GPTOSS_LAUNCH", &o.launch, 1, 4096, NULL},
        {CLI_STRING, "layers", 0, "A,B,…", "layers of each rank, by hand", "computed",
         "GPTOSS_LAYERS", &o.layers, 0, 0, NULL},
        {CLI_STRING, "head", 0, "RANKS",
         "which ranks share the output matrix: all, or the last alone; auto: on GPUs the last",
         "auto", "GPTOSS_HEAD", &o.head, 0, 0, NULL},
        {CLI_FLAG, "plan-only", 0, NULL, "print which layers would run where and how fast, and end",
         NULL, NULL, &o.plan_only, 0, 0, NULL},
        {CLI_FLOAT, "bandwidth", 0, "GB",
         "for --plan-only: 10⁹ bytes that a rank reads in a second, for what is predicted",
         "20, with --device cuda 3000", NULL, &o.bandwidth, 0.01, 1e6, NULL},
        {CLI_STRING, "device", 'd', "DEVICE", "told to the ranks: auto, cpu, cuda or reference",
         "auto", "GPTOSS_DEVICE", &o.device, 0, 0, NULL},
        {CLI_STRING, "transport", 0, "NAME",
         "between ranks: nccl, ipc (GPUs of one host), ipc-host (one GPU) or mpi (CPUs)",
         "auto: the best of each pair", "GPTOSS_TRANSPORT", &o.transport, 0, 0, NULL},
        {CLI_INT, "threads", 't', "T", "told to the ranks: threads of a CPU rank",
         "the host's cores, shared", "GPTOSS_THREADS", &o.threads, 1, 1024, NULL},
        {CLI_STRING, "worker", 0, "PATH", "gptoss-worker, for --launch", "beside this program",
         "GPTOSS_WORKER", &o.worker, 0, 0, NULL},
        {CLI_STRING, "costs", 0, "FILE",
         "keep what steps were measured to cost in a file, for gptoss-bench simulate", NULL,
         "GPTOSS_COSTS", &o.costs, 0, 0, NULL},
        {.type = CLI_GROUP, .text = "Endpoints"},
        {CLI_STRING, "bind", 'b', "ENDPOINT", "for clients: tcp://HOST:PORT or ipc://PATH",
         "tcp://127.0.0.1:5555", "GPTOSS_BIND", &o.bind, 0, 0, NULL},
        {CLI_STRING, "workers-bind", 0, "ENDPOINT", "for ranks", "tcp://127.0.0.1:5556",
         "GPTOSS_WORKERS_BIND", &o.workers_bind, 0, 0, NULL},
        {CLI_STRING, "keys", 0, "FOLDER",
         "keys that keygen made: clients and ranks have to show one, and everything is encrypted",
         NULL, "GPTOSS_KEYS", &o.keys, 0, 0, NULL},
        {CLI_STRING, "allow", 0, "FILE", "whom to admit: a line ROLE KEY NAME for each",
         "FOLDER/allow", "GPTOSS_ALLOW", &o.allow, 0, 0, NULL},
        {CLI_FLAG, "insecure", 0, NULL,
         "without keys, allow endpoints that other hosts can reach: everybody there can use and "
         "stop this server",
         NULL, "GPTOSS_INSECURE", &o.insecure, 0, 0, NULL},
        {.type = CLI_GROUP, .text = "Limits"},
        {CLI_INT, "max-queue", 0, "N", "requests that may wait", "512", "GPTOSS_MAX_QUEUE",
         &o.max_queue, 1, 100000, NULL},
        {CLI_INT, "max-queue-mib", 0, "MIB", "memory of the prompts that wait", "256",
         "GPTOSS_MAX_QUEUE_MIB", &o.max_queue_mib, 1, 1048576, NULL},
        {CLI_INT, "max-client", 0, "N", "requests of one connection at a time", "any number",
         "GPTOSS_MAX_CLIENT", &o.max_client, 1, 100000, NULL},
        {CLI_STRING, "journal", 0, "FILE",
         "keep accepted requests in a file: a coordinator that is started again goes on with them",
         NULL, "GPTOSS_JOURNAL", &o.journal, 0, 0, NULL},
        {CLI_INT, "client-queue", 0, "N",
         "messages that may wait for a client that does not read; then it is taken for gone",
         "10000", "GPTOSS_CLIENT_QUEUE", &o.client_queue, 1, 1000000, NULL},
        {CLI_INT, "step-tokens", 0, "N", "tokens of one step", "2048, or 128 on CPUs",
         "GPTOSS_STEP_TOKENS", &o.step_tokens, 1, 8192, NULL},
        {CLI_FLOAT, "token-gap", 0, "MS",
         "prompts delay the tokens of others to one in this time, or to a third of their speed",
         "50, on CPUs 200", "GPTOSS_TOKEN_GAP", &o.token_gap, 0.1, 1e6, NULL},
        {CLI_FLOAT, "step-deadline", 0, "SECONDS",
         "a step that takes longer has failed, whatever is predicted", "300",
         "GPTOSS_STEP_DEADLINE", &o.step_deadline, 0.1, 1e6, NULL},
        {CLI_FLOAT, "silence", 0, "SECONDS", "a rank that says nothing for so long is lost", "0.8",
         "GPTOSS_SILENCE", &o.silence, 0.3, 1e6, NULL},
        {CLI_FLOAT, "drain-timeout", 0, "SECONDS",
         "after Ctrl-C, running requests have so long; a second Ctrl-C ends at once", "30",
         "GPTOSS_DRAIN_TIMEOUT", &o.drain, 0, 1e6, NULL},
    };
    const struct cli cli = {
        .program = "gptoss-coordinator",
        .summary =
            "serves a gpt-oss model through a pipeline of ranks: accepts prompts over ZeroMQ, "
            "schedules them, and streams back the tokens that the ranks sample",
        .usage = "gptoss-coordinator --model FILE [options]\n"
                 "gptoss-coordinator keygen FOLDER [NAME]...    keys for clients on other hosts",
        .examples = "  gptoss-coordinator -m models/gptoss-tiny-mxfp4.gguf --launch 4\n"
                    "      serve the bundled model with four ranks that it starts itself\n"
                    "  gptoss-coordinator -m model.gguf          (and elsewhere: mpirun -np 4 "
                    "gptoss-worker)\n"
                    "      serve with the ranks that you start\n"
                    "  gptoss-coordinator -m model.gguf --plan-only\n"
                    "      show what 1, 2, 4 and 8 ranks would hold, and how fast they would be\n",
        .notes = "Clients are answered on --bind: see gptoss-client --help, or write one from\n"
                 "proto/gptoss.proto. GPTOSS_LOG=debug says more, GPTOSS_LOG=warn less.",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .exit_codes = 1u << EXIT_DONE | 1u << EXIT_FAILED | 1u << EXIT_USAGE | 1u << EXIT_MODEL |
                      1u << EXIT_MEMORY,
    };
    char **args;
    int n_args;
    int status = cli_parse(&cli, argc, argv, &args, &n_args);
    if (status)
        return status > 0 ? EXIT_DONE : EXIT_USAGE;
    log_open("coordinator");
    if (n_args)
        return usage("what is meant by ", args[0]);
    if (!o.model)
        return usage("which model? give --model FILE", "");
    if (o.keys && o.insecure)
        return usage("--keys and --insecure exclude each other: leave one out", "");
    if (o.allow && !o.keys)
        return usage("--allow means nothing without --keys FOLDER", "");
    uint32_t layers[LAYERS_MAX], n_layers = 0;
    if (o.layers && parse_layers(o.layers, layers, &n_layers))
        return usage("--layers is a list such as 7,7,6,4, not ", o.layers);
    enum plan_kv_type type;
    if (o.kv_type && parse_kv_type(o.kv_type, &type))
        return usage("--kv-type is f32, f16 or bf16, not ", o.kv_type);
    if (strcmp(o.device, "auto") && strcmp(o.device, "cpu") && strcmp(o.device, "cuda") &&
        strcmp(o.device, "reference"))
        return usage("--device is auto, cpu, cuda or reference, not ", o.device);
    if (o.fast && (strcmp(o.device, "cuda") == 0 || strcmp(o.device, "reference") == 0))
        return usage("--fast is for CPU ranks: leave it out with --device ", o.device);
    if (plan_head_of(o.head, &o.plan_head))
        return usage("--head is auto, all or last, not ", o.head);
    if (o.transport && !coordinator_transport_known(o.transport))
        return usage("--transport is auto, nccl, ipc, ipc-host or mpi, not ", o.transport);
    if (n_layers && o.launch && o.launch != n_layers)
        return usage("--layers and --launch name different numbers of ranks", "");
    char path[PATH_MAX];
    if (!realpath(o.model, path)) {
        log_error("%s: %s: check the path, or make a model with gptoss-gguf synth", o.model,
                  errno == ENOENT ? "there is no such file" : "cannot be opened");
        return EXIT_MODEL;
    }
    return run(&o, path, layers, n_layers);
}
