/*
 * pipeline: the options of `gptoss-bench pipeline`, and the order in which worlds and tests are run.
 */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bench/bench.h"
#include "coordinator/coordinator.h"

enum { CONTEXT_MAX = 1 << 24, STAGES_MAX = 1024, SEQUENCES_MAX = 4096 };

struct choice {
    const char *model, *prompts, *gens, *depths, *pair;
    const char *stages, *threads, *sequences, *through, *device, *transport, *kv_type, *output;
    int64_t repetitions, step_tokens;
    bool no_warmup;
};

struct pipeline {
    struct choice choice;
    struct bench_list prompts, gens, depths, stages, threads, sequences;
    uint32_t pair_prompt, pair_gen; /* 0, 0: none */
    const struct bench_driver *drivers[2];
    size_t n_drivers;
    enum plan_kv_type kv_type;
    enum bench_format format;

    struct bench_test *tests; /* [n_tests], in the order in which each world runs them */
    size_t n_tests;
    uint32_t samples_max; /* most ids of one test, all sequences */

    struct gguf_file *file;
    struct gguf_model *model;
    char path[PATH_MAX];
    struct bench_report *report;
    struct bench_verify *verify;
};

/* ── options ───────────────────────────────────────────────────────────────────────────────── */

static int parse_options(struct choice *c, int argc, char **argv)
{
    const struct cli_option options[] = {
        {.type = CLI_GROUP, .text = "What is measured"},
        {CLI_STRING, "model", 'm', "FILE", "the model, a gpt-oss GGUF file", NULL, "GPTOSS_MODEL",
         &c->model, 0, 0, NULL},
        {CLI_STRING, "n-prompt", 'p', "LIST", "lengths of prompts (pp512); 0: none", "512",
         "GPTOSS_BENCH_PROMPT", &c->prompts, 0, 0, NULL},
        {CLI_STRING, "n-gen", 'n', "LIST", "numbers of tokens to generate (tg128); 0: none", "128",
         "GPTOSS_BENCH_GEN", &c->gens, 0, 0, NULL},
        {CLI_STRING, "prompt-gen", 0, "P,N",
         "also a prompt of P and N tokens after it, timed together (-pg)", NULL, NULL, &c->pair, 0,
         0, NULL},
        {CLI_STRING, "n-depth", 'd', "LIST", "tokens in the KV cache before the test begins", "0",
         "GPTOSS_BENCH_DEPTH", &c->depths, 0, 0, NULL},
        {CLI_STRING, "sequences", 's', "LIST", "sequences at a time", "1", "GPTOSS_BENCH_SEQUENCES",
         &c->sequences, 0, 0, NULL},
        {CLI_INT, "repetitions", 'r', "R", "times that each test is repeated", "5",
         "GPTOSS_BENCH_REPETITIONS", &c->repetitions, 1, 10000, NULL},
        {CLI_FLAG, "no-warmup", 0, NULL, "do not run each test once before it is timed", NULL,
         "GPTOSS_BENCH_NO_WARMUP", &c->no_warmup, 0, 0, NULL},
        {.type = CLI_GROUP, .text = "What runs it"},
        {CLI_STRING, "stages", 0, "LIST", "numbers of ranks that the layers are cut over", "1",
         "GPTOSS_BENCH_STAGES", &c->stages, 0, 0, NULL},
        {CLI_STRING, "through", 0, "LIST",
         "loop: the ranks driven by this program; coordinator: as a client of gptoss-coordinator",
         "loop", "GPTOSS_BENCH_THROUGH", &c->through, 0, 0, NULL},
        {CLI_STRING, "device", 0, "DEVICE", "auto, cpu, cuda or reference (-dev)", "auto",
         "GPTOSS_DEVICE", &c->device, 0, 0, NULL},
        {CLI_STRING, "transport", 0, "NAME", "between ranks: auto, nccl, ipc, ipc-host or mpi",
         "auto", "GPTOSS_TRANSPORT", &c->transport, 0, 0, NULL},
        {CLI_STRING, "threads", 't', "LIST",
         "threads of each rank; 0: the host's CPUs divided among its ranks", "0", NULL, &c->threads,
         0, 0, NULL},
        {CLI_STRING, "kv-type", 0, "TYPE", "type of the KV cache: f32, f16 or bf16", "f32",
         "GPTOSS_KV_TYPE", &c->kv_type, 0, 0, NULL},
        {CLI_INT, "ubatch-size", 'u', "N", "tokens of one prefill step (-ub)", "128",
         "GPTOSS_BENCH_UBATCH", &c->step_tokens, 1, 8192, NULL},
        {.type = CLI_GROUP, .text = "What is printed"},
        {CLI_STRING, "output", 'o', "FORMAT", "md, csv, json or jsonl, on stdout", "md",
         "GPTOSS_BENCH_OUTPUT", &c->output, 0, 0, NULL},
    };
    const struct cli cli = {
        .program = "gptoss-bench pipeline",
        .summary = "Measures tokens per second of prompts (pp) and of generation (tg), for any "
                   "number of stages. Starts the ranks itself, and checks that they sample the "
                   "same tokens whatever the number of stages.",
        .usage = "gptoss-bench pipeline --model FILE [options]",
        .examples = "  gptoss-bench pipeline -m model.gguf\n"
                    "      pp512 and tg128 with one rank\n"
                    "  gptoss-bench pipeline -m model.gguf --stages 1,2,4 -s 1,8\n"
                    "      how they scale with stages, for 1 and for 8 sequences at a time\n"
                    "  gptoss-bench pipeline -m model.gguf -p 0 -n 64 -d 0,1024-4096*2\n"
                    "      generation at depths 0, 1024, 2048, 4096\n"
                    "  gptoss-bench pipeline -m model.gguf --through loop,coordinator -o json\n"
                    "      what the coordinator costs, for programs\n",
        .notes = "A LIST is numbers and ranges separated by commas: 1,2,4 or 1-4, 0-64+16, "
                 "128-1024*2.\nEvery column is derived in docs/measuring.md. The ranks say no more "
                 "than warnings unless\nGPTOSS_LOG is set. Exit code 1 also means that tokens "
                 "differed between stages.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .exit_codes = 1u << EXIT_DONE | 1u << EXIT_FAILED | 1u << EXIT_USAGE | 1u << EXIT_MODEL |
                      1u << EXIT_MEMORY,
    };
    /* llama-bench has options of two letters and one dash. */
    static const char *const two[][2] = {
        {"-pg", "--prompt-gen"}, {"-ub", "--ubatch-size"}, {"-dev", "--device"}};
    for (int i = 1; i < argc; i++)
        for (size_t t = 0; t < sizeof two / sizeof *two; t++)
            if (strcmp(argv[i], two[t][0]) == 0)
                argv[i] = (char *)(uintptr_t)two[t][1];
    char **args;
    int n_args;
    int status = cli_parse(&cli, argc, argv, &args, &n_args);
    if (status == 0 && n_args) {
        fprintf(stderr, "%s: what is meant by %s?\n%s --help lists the options\n", cli.program,
                args[0], cli.program);
        return -1;
    }
    return status;
}

static int wrong(const char *text)
{
    fprintf(stderr, "gptoss-bench pipeline: %s\ngptoss-bench pipeline --help lists the options\n",
            text);
    return -1;
}

static int find_name(const char *name, size_t size, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strlen(names[i]) == size && memcmp(names[i], name, size) == 0)
            return (int)i;
    return -1;
}

static int parse_drivers(struct pipeline *p)
{
    static const char *const names[] = {"loop", "coordinator"};
    static const struct bench_driver *const drivers[] = {&bench_loop, &bench_served};
    for (const char *at = p->choice.through;;) {
        size_t size = strcspn(at, ",");
        int found = find_name(at, size, names, 2);
        if (found < 0 || p->n_drivers == 2)
            return wrong("--through is loop, coordinator, or loop,coordinator");
        p->drivers[p->n_drivers++] = drivers[found];
        if (at[size] == '\0')
            return 0;
        at += size + 1;
    }
}

static int parse_choice(struct pipeline *p)
{
    static const char *const formats[] = {"md", "csv", "json", "jsonl"};
    static const char *const kv_types[] = {"f32", "f16", "bf16"};
    static const char *const devices[] = {"auto", "cpu", "cuda", "reference"};
    const struct choice *c = &p->choice;
    const struct {
        const char *option, *text;
        uint32_t min, max;
        struct bench_list *list;
    } lists[] = {
        {"--n-prompt", c->prompts, 0, CONTEXT_MAX, &p->prompts},
        {"--n-gen", c->gens, 0, CONTEXT_MAX, &p->gens},
        {"--n-depth", c->depths, 0, CONTEXT_MAX, &p->depths},
        {"--stages", c->stages, 1, STAGES_MAX, &p->stages},
        {"--threads", c->threads, 0, 1024, &p->threads},
        {"--sequences", c->sequences, 1, SEQUENCES_MAX, &p->sequences},
    };
    char err[512];
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        if (bench_list_parse(lists[i].option, lists[i].text, lists[i].min, lists[i].max,
                             lists[i].list, err, sizeof err))
            return wrong(err);
    if (c->pair &&
        bench_pair_parse("--prompt-gen", c->pair, &p->pair_prompt, &p->pair_gen, err, sizeof err))
        return wrong(err);
    int format = find_name(c->output, strlen(c->output), formats, 4);
    int kv_type = find_name(c->kv_type, strlen(c->kv_type), kv_types, 3);
    if (format < 0)
        return wrong("--output is md, csv, json or jsonl");
    if (kv_type < 0)
        return wrong("--kv-type is f32, f16 or bf16");
    if (find_name(c->device, strlen(c->device), devices, 4) < 0)
        return wrong("--device is auto, cpu, cuda or reference");
    if (!coordinator_transport_known(c->transport))
        return wrong("--transport is auto, nccl, ipc, ipc-host or mpi");
    if (!c->model)
        return wrong("which model? give --model FILE");
    p->format = (enum bench_format)format;
    p->kv_type = (enum plan_kv_type)kv_type;
    return parse_drivers(p);
}

/* ── tests ─────────────────────────────────────────────────────────────────────────────────── */

static void add_test(struct pipeline *p, size_t *capacity, uint32_t n_prompt, uint32_t n_gen,
                     uint32_t n_depth, uint32_t sequences)
{
    if (n_prompt == 0 && n_gen == 0)
        return;
    p->tests = base_grow(p->tests, capacity, p->n_tests + 1, sizeof *p->tests);
    p->tests[p->n_tests++] = (struct bench_test){n_prompt, n_gen, n_depth, sequences};
}

/* As llama-bench orders them: at each depth the prompts, the generations, the pairs. */
static void make_tests(struct pipeline *p)
{
    size_t capacity = 0;
    for (size_t d = 0; d < p->depths.n; d++)
        for (size_t s = 0; s < p->sequences.n; s++) {
            uint32_t depth = p->depths.values[d], sequences = p->sequences.values[s];
            for (size_t i = 0; i < p->prompts.n; i++)
                add_test(p, &capacity, p->prompts.values[i], 0, depth, sequences);
            for (size_t i = 0; i < p->gens.n; i++)
                add_test(p, &capacity, 0, p->gens.values[i], depth, sequences);
            add_test(p, &capacity, p->pair_prompt, p->pair_gen, depth, sequences);
        }
}

/* Positions and sequences that hold every test; -1 where the model has not so many positions. */
static int size_worlds(const struct pipeline *p, struct bench_world_options *options)
{
    uint64_t context = 0;
    for (size_t i = 0; i < p->n_tests; i++) {
        const struct bench_test *test = &p->tests[i];
        /* One for a first token that no prompt gives, one for the last that is sampled. */
        uint64_t positions = (uint64_t)test->n_depth + test->n_prompt + test->n_gen + 2;
        if (positions > context)
            context = positions;
        if (test->sequences > options->sequences)
            options->sequences = test->sequences;
    }
    if (context > p->model->context) {
        fprintf(stderr,
                "gptoss-bench pipeline: depth, prompt and generation add up to %" PRIu64
                " positions, and the model was made for %" PRIu32 "\n",
                context, p->model->context);
        return -1;
    }
    options->context = (uint32_t)context;
    return 0;
}

/* ── running ───────────────────────────────────────────────────────────────────────────────── */

static void iso_time(char *text, size_t text_size)
{
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(text, text_size, "%Y-%m-%dT%H:%M:%SZ", &utc);
}

/* The warm-up and the repetitions of one test in one world. Every repetition has prompts of its own, so
 * that a coordinator that remembers prompts gains nothing; in every world they are the same. */
static int run_test(struct pipeline *p, const struct bench_driver *driver, void *world,
                    const struct bench_world_options *options, const struct bench_world_info *info,
                    size_t index, const char *label)
{
    const struct bench_test *test = &p->tests[index];
    size_t repetitions = (size_t)p->choice.repetitions;
    uint32_t *ids = base_alloc((size_t)bench_test_samples(test) * test->sequences, sizeof *ids);
    double *seconds = base_alloc(repetitions, sizeof *seconds);
    double *speed = base_alloc(repetitions, sizeof *speed);
    struct bench_result result = {.options = options,
                                  .info = info,
                                  .through = driver->name,
                                  .test = *test,
                                  .n = repetitions,
                                  .seconds = seconds,
                                  .speed = speed};
    char err[1024] = "", name[64];
    int status = 0;
    iso_time(result.time, sizeof result.time);
    bench_test_name(test, name, sizeof name);
    for (size_t r = p->choice.no_warmup ? 1 : 0; r <= repetitions && status == 0; r++) {
        struct bench_sample sample = {.ids = ids};
        uint64_t seed = ((uint64_t)index << 32) + r;
        status = driver->run(world, test, seed, &sample, err, sizeof err);
        if (status || r == 0)
            continue;
        seconds[r - 1] = sample.seconds;
        speed[r - 1] = sample.tokens / sample.seconds;
        bench_verify_add(p->verify, index, r - 1, test, ids, label);
    }
    if (status == 0) {
        double mean, deviation;
        bench_statistics(speed, repetitions, &mean, &deviation);
        fprintf(stderr, "# %s: %s, %" PRIu32 " sequence%s: %.2f ± %.2f t/s\n", label, name,
                test->sequences, test->sequences == 1 ? "" : "s", mean, deviation);
        bench_report_add(p->report, &result);
    } else
        fprintf(stderr, "gptoss-bench: %s: %s: %s\n", label, name, err);
    free(speed);
    free(seconds);
    free(ids);
    return status ? EXIT_FAILED : EXIT_DONE;
}

static int run_world(struct pipeline *p, const struct bench_driver *driver,
                     const struct bench_world_options *options)
{
    char label[64], err[1024] = "";
    struct bench_world_info info = {0};
    void *world = NULL;
    snprintf(label, sizeof label, "%" PRIu32 " stage%s, %s", options->stages,
             options->stages == 1 ? "" : "s", driver->name);
    fprintf(stderr, "# %s: starting\n", label);
    int code = driver->open(&world, options, &info, err, sizeof err);
    if (code) {
        fprintf(stderr, "gptoss-bench: %s: %s\n", label, err);
        return code;
    }
    fprintf(stderr, "# %s: layers %s on %s\n", label, info.layers, info.device);
    for (size_t i = 0; i < p->n_tests && code == EXIT_DONE; i++) {
        const char *why = driver->cannot ? driver->cannot(&p->tests[i]) : NULL;
        char name[64];
        bench_test_name(&p->tests[i], name, sizeof name);
        if (why)
            fprintf(stderr, "# %s: %s is left out: %s\n", label, name, why);
        else
            code = run_test(p, driver, world, options, &info, i, label);
    }
    driver->close(world);
    return code;
}

static int run_all(struct pipeline *p)
{
    struct bench_world_options options = {.model = p->model,
                                          .path = p->path,
                                          .device = p->choice.device,
                                          .transport = p->choice.transport,
                                          .kv_type = p->kv_type,
                                          .step_tokens = (uint32_t)p->choice.step_tokens};
    bench_vocabulary(p->model, &options.vocabulary);
    if (size_worlds(p, &options))
        return EXIT_USAGE;
    for (size_t s = 0; s < p->stages.n; s++)
        if (p->stages.values[s] > p->model->n_layers) {
            fprintf(stderr,
                    "gptoss-bench pipeline: %" PRIu32 " layers cannot be cut into %" PRIu32
                    " stages\n",
                    p->model->n_layers, p->stages.values[s]);
            return EXIT_USAGE;
        }
    p->report = bench_report_create(p->format, p->model);
    p->verify = bench_verify_create(p->n_tests, (size_t)p->choice.repetitions);
    int code = EXIT_DONE;
    for (size_t s = 0; s < p->stages.n; s++)
        for (size_t t = 0; t < p->threads.n; t++)
            for (size_t d = 0; d < p->n_drivers && code == EXIT_DONE; d++) {
                options.stages = p->stages.values[s];
                options.threads = p->threads.values[t];
                code = run_world(p, p->drivers[d], &options);
            }
    bench_report_finish(p->report);
    if (code == EXIT_DONE && !bench_verify_finish(p->verify))
        code = EXIT_FAILED;
    bench_verify_destroy(p->verify);
    return code;
}

int bench_pipeline(int argc, char **argv)
{
    struct pipeline p = {.choice = {.prompts = "512",
                                    .gens = "128",
                                    .depths = "0",
                                    .stages = "1",
                                    .threads = "0",
                                    .sequences = "1",
                                    .through = "loop",
                                    .device = "auto",
                                    .transport = "auto",
                                    .kv_type = "f32",
                                    .output = "md",
                                    .repetitions = 5,
                                    .step_tokens = 128}};
    char err[1024] = "";
    int code = EXIT_USAGE;
    int status = parse_options(&p.choice, argc, argv);
    if (status)
        return status > 0 ? EXIT_DONE : EXIT_USAGE;
    if (parse_choice(&p))
        goto done;
    make_tests(&p);
    if (p.n_tests == 0) {
        wrong("there is nothing to measure: -p and -n are 0");
        goto done;
    }
    code = EXIT_MODEL;
    if (!realpath(p.choice.model, p.path))
        snprintf(err, sizeof err, "%s: %m", p.choice.model);
    else if (gguf_open(&p.file, p.path, err, sizeof err) == 0 &&
             gguf_model_create(&p.model, p.file, err, sizeof err) == 0)
        code = run_all(&p);
    if (err[0])
        fprintf(stderr, "gptoss-bench: %s\n", err);
done:
    gguf_model_destroy(p.model);
    gguf_close(p.file);
    free(p.tests);
    free(p.prompts.values);
    free(p.gens.values);
    free(p.depths.values);
    free(p.stages.values);
    free(p.threads.values);
    free(p.sequences.values);
    return code;
}
