#include "bench/pipeline.h"
#include "coordinator/coordinator.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CONTEXT_MAX = 1 << 24, STAGES_MAX = 1024, SEQUENCES_MAX = 4096 };

/* A model of more bytes than this is generated from less on CPUs, so that the defaults end in minutes. */
#define LARGE_BYTES ((uint64_t)4 << 30)

/* ── options ───────────────────────────────────────────────────────────────────────────────── */

static int parse_options(struct pipeline_choice *c, int argc, char **argv)
{
    const struct cli_option options[] = {
        {.type = CLI_GROUP, .text = "What is measured"},
        {CLI_STRING, "model", 'm', "FILE", "the model, a gpt-oss GGUF file", NULL, "GPTOSS_MODEL",
         &c->model, 0, 0, NULL},
        {CLI_STRING, "n-prompt", 'p', "LIST", "lengths of prompts (pp512); 0: none",
         "128 to 8192 on GPUs, 128,512 on CPUs", "GPTOSS_BENCH_PROMPT", &c->prompts, 0, 0, NULL},
        {CLI_STRING, "n-gen", 'n', "LIST", "numbers of tokens to generate (tg128); 0: none",
         "128; 32 on CPUs with more than 4 GiB", "GPTOSS_BENCH_GEN", &c->gens, 0, 0, NULL},
        {CLI_STRING, "prompt-gen", 0, "P,N",
         "also a prompt of P and N tokens after it, timed together (-pg)", NULL, NULL, &c->pair, 0,
         0, NULL},
        {CLI_STRING, "n-depth", 'd', "LIST", "tokens in the KV cache before the test begins", "0",
         "GPTOSS_BENCH_DEPTH", &c->depths, 0, 0, NULL},
        {CLI_STRING, "sequences", 's', "LIST", "sequences at a time (batch size)",
         "1; more where -p, -n, -pg are not given", "GPTOSS_BENCH_SEQUENCES", &c->sequences, 0, 0,
         NULL},
        {CLI_INT, "repetitions", 'r', "R", "times that each test is repeated", "5, on CPUs 3",
         "GPTOSS_BENCH_REPETITIONS", &c->repetitions, 1, 10000, NULL},
        {CLI_FLAG, "no-warmup", 0, NULL, "do not run each test once before it is timed", NULL,
         "GPTOSS_BENCH_NO_WARMUP", &c->no_warmup, 0, 0, NULL},
        {CLI_STRING, "scaling", 0, "LIST",
         "strong: as many sequences for any number of stages; weak: as many for each stage",
         "strong", "GPTOSS_BENCH_SCALING", &c->scaling, 0, 0, NULL},
        {.type = CLI_GROUP, .text = "What runs it"},
        {CLI_STRING, "stages", 0, "LIST", "numbers of ranks that the layers are cut over", "1",
         "GPTOSS_BENCH_STAGES", &c->stages, 0, 0, NULL},
        {CLI_FLAG, "replicas", 0, NULL,
         "also as many pipelines of one rank as there are stages, at the same time", NULL,
         "GPTOSS_BENCH_REPLICAS", &c->replicas, 0, 0, NULL},
        {CLI_STRING, "head", 0, "RANKS",
         "which ranks share the output matrix: all, or the last alone; auto: on GPUs the last",
         "auto", "GPTOSS_HEAD", &c->head, 0, 0, NULL},
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
        {CLI_STRING, "kv-type", 0, "TYPE", "type of the KV cache: f32, f16 or bf16",
         "f32 on CPUs, f16 on GPUs", "GPTOSS_KV_TYPE", &c->kv_type, 0, 0, NULL},
        {CLI_FLAG, "fast", 0, NULL, "CPU ranks round the activations in front of a product to int8",
         "float activations", "GPTOSS_FAST", &c->fast, 0, 0, NULL},
        {CLI_INT, "ubatch-size", 'u', "N", "tokens of one prefill step (-ub)",
         "512, or 128 on CPUs", "GPTOSS_BENCH_UBATCH", &c->step_tokens, 1, 8192, NULL},
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
                    "      prompts and generation with one rank\n"
                    "  gptoss-bench pipeline -m model.gguf --stages 1,2,4 -s 1,8\n"
                    "      how they scale with stages, for 1 and for 8 sequences at a time\n"
                    "  gptoss-bench pipeline -m model.gguf --stages 1,2 -t 1 -p 0 -s 8 --replicas\n"
                    "      two stages of one thread beside two replicas with four sequences each\n"
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
    static const char *const scalings[] = {"strong", "weak", "strong,weak", "weak,strong"};
    static const char *const devices[] = {"auto", "cpu", "cuda", "reference"};
    const struct pipeline_choice *c = &p->choice;
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
        if (lists[i].text && bench_list_parse(lists[i].option, lists[i].text, lists[i].min,
                                              lists[i].max, lists[i].list, err, sizeof err))
            return wrong(err);
    if (c->pair &&
        bench_pair_parse("--prompt-gen", c->pair, &p->pair_prompt, &p->pair_gen, err, sizeof err))
        return wrong(err);
    int format = bench_format_find(c->output);
    int kv_type = c->kv_type ? bench_kv_type_find(c->kv_type) : 0;
    int scaling = find_name(c->scaling, strlen(c->scaling), scalings, 4);
    if (format < 0)
        return wrong("--output is md, csv, json or jsonl");
    if (kv_type < 0)
        return wrong("--kv-type is f32, f16 or bf16");
    if (scaling < 0)
        return wrong("--scaling is strong, weak, or strong,weak");
    if (find_name(c->device, strlen(c->device), devices, 4) < 0)
        return wrong("--device is auto, cpu, cuda or reference");
    if (c->fast && (strcmp(c->device, "cuda") == 0 || strcmp(c->device, "reference") == 0))
        return wrong("--fast is for CPU ranks: leave it out with --device cuda or reference");
    if (!coordinator_transport_known(c->transport))
        return wrong("--transport is auto, nccl, ipc, ipc-host or mpi");
    if (plan_head_of(c->head, &p->head))
        return wrong("--head is auto, all or last");
    if (!c->model)
        return wrong("which model? give --model FILE");
    p->format = (enum bench_format)format;
    p->kv_type = (enum plan_kv_type)kv_type;
    p->strong = scaling != 1;
    p->weak = scaling != 0;
    return parse_drivers(p);
}

/* ── tests ─────────────────────────────────────────────────────────────────────────────────── */

static void add_test(struct pipeline *p, size_t *capacity, uint32_t n_prompt, uint32_t n_gen,
                     uint32_t n_depth, uint32_t sequences)
{
    if (n_prompt == 0 && n_gen == 0)
        return;
    p->tests = base_grow(p->tests, capacity, p->n_tests + 1, sizeof *p->tests);
    p->tests[p->n_tests++] = (struct bench_test){n_prompt, n_gen, n_depth, sequences, 0};
}

static void set_list(struct bench_list *list, const uint32_t *values, size_t n, uint32_t max)
{
    list->values = base_alloc(n, sizeof *list->values);
    for (size_t i = 0; i < n; i++)
        if (values[i] <= max)
            list->values[list->n++] = values[i];
}

bool pipeline_on_gpu(const char *device)
{
    return strcmp(device, "cuda") == 0 ||
           (GPTOSS_HAVE_CUDA && strcmp(device, "auto") == 0 && access("/dev/nvidiactl", F_OK) == 0);
}

static void choose_defaults(struct pipeline *p)
{
    static const uint32_t prompts[] = {128, 512, 2048, 8192}, sequences[] = {1, 4, 16, 64};
    bool gpu = pipeline_on_gpu(p->choice.device);
    /* Who names a test, as for llama-bench, gets that test and no batches of it. */
    bool given = p->choice.prompts || p->choice.gens || p->choice.pair;
    uint32_t gen = gpu || p->model->bytes < LARGE_BYTES ? 128 : 32;
    if (!p->choice.prompts)
        set_list(&p->prompts, prompts, gpu ? 4 : 2, p->model->context - 2);
    if (!p->choice.gens)
        set_list(&p->gens, &gen, 1, UINT32_MAX);
    if (!p->choice.sequences)
        set_list(&p->sequences, sequences, given ? 1 : gpu ? 4 : 2, UINT32_MAX);
    if (!p->choice.kv_type && gpu)
        p->kv_type = PLAN_KV_F16;
    p->repetitions = (size_t)(p->choice.repetitions ? p->choice.repetitions : gpu ? 5 : 3);
    p->step_tokens = (uint32_t)(p->choice.step_tokens ? p->choice.step_tokens : gpu ? 512 : 128);
}

/* As llama-bench orders them: at each depth the prompts, the generations, the pairs. Prompts of many
 * sequences are measured where the sequences were asked for. */
int pipeline_tests(struct pipeline *p)
{
    size_t capacity = 0;
    choose_defaults(p);
    for (size_t d = 0; d < p->depths.n; d++)
        for (size_t s = 0; s < p->sequences.n; s++) {
            uint32_t depth = p->depths.values[d], sequences = p->sequences.values[s];
            for (size_t i = 0; i < p->prompts.n; i++)
                if (p->choice.sequences || sequences == 1)
                    add_test(p, &capacity, p->prompts.values[i], 0, depth, sequences);
            for (size_t i = 0; i < p->gens.n; i++)
                add_test(p, &capacity, 0, p->gens.values[i], depth, sequences);
            add_test(p, &capacity, p->pair_prompt, p->pair_gen, depth, sequences);
        }
    if (p->n_tests == 0)
        return wrong("there is nothing to measure: -p and -n are 0");
    for (size_t s = 0; s < p->stages.n; s++) {
        struct bench_world_options options = {0};
        if (p->stages.values[s] > p->model->n_layers) {
            fprintf(stderr,
                    "gptoss-bench pipeline: %" PRIu32 " layers cannot be cut into %" PRIu32
                    " stages\n",
                    p->model->n_layers, p->stages.values[s]);
            return -1;
        }
        if (pipeline_size(p, p->stages.values[s], &options))
            return -1;
    }
    return 0;
}

int pipeline_size(const struct pipeline *p, uint32_t stages, struct bench_world_options *options)
{
    uint64_t context = 0, sequences = 1;
    for (size_t i = 0; i < p->n_tests; i++) {
        const struct bench_test *test = &p->tests[i];
        /* One for a first token that no prompt gives, one for the last that is sampled. */
        uint64_t positions = (uint64_t)test->n_depth + test->n_prompt + test->n_gen + 2;
        uint64_t most = (uint64_t)test->sequences * (p->weak ? stages : 1);
        context = positions > context ? positions : context;
        sequences = most > sequences ? most : sequences;
    }
    if (context > p->model->context) {
        fprintf(stderr,
                "gptoss-bench pipeline: depth, prompt and generation add up to %" PRIu64
                " positions, and the model was made for %" PRIu32 "\n",
                context, p->model->context);
        return -1;
    }
    if (sequences > SEQUENCES_MAX) {
        fprintf(stderr, "gptoss-bench pipeline: %" PRIu64 " sequences are more than %d\n",
                sequences, SEQUENCES_MAX);
        return -1;
    }
    options->context = (uint32_t)context;
    options->sequences = (uint32_t)sequences;
    return 0;
}

int pipeline_parse(struct pipeline *p, int argc, char **argv)
{
    p->choice = (struct pipeline_choice){.depths = "0",
                                         .stages = "1",
                                         .threads = "0",
                                         .scaling = "strong",
                                         .head = "auto",
                                         .through = "loop",
                                         .device = "auto",
                                         .transport = "auto",
                                         .output = "md"};
    int status = parse_options(&p->choice, argc, argv);
    return status ? status : parse_choice(p);
}

void pipeline_free(struct pipeline *p)
{
    struct bench_list *const lists[] = {&p->prompts, &p->gens,    &p->depths,
                                        &p->stages,  &p->threads, &p->sequences};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        free(lists[i]->values);
    free(p->tests);
}
