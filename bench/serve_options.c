#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/serve.h"

static int wrong(const char *text)
{
    fprintf(stderr, "gptoss-bench serve: %s\ngptoss-bench serve --help lists the options\n", text);
    return -1;
}

static int find_name(const char *name, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0)
            return (int)i;
    return -1;
}

static int check(struct serve_options *o)
{
    static const char *const devices[] = {"auto", "cpu", "cuda", "reference"};
    char err[512];
    int format = bench_format_find(o->output);
    if (format < 0)
        return wrong("--output is md, csv, json or jsonl");
    o->format = (enum bench_format)format;
    if (find_name(o->device, devices, 4) < 0)
        return wrong("--device is auto, cpu, cuda or reference");
    if (o->kv_type && bench_kv_type_find(o->kv_type) < 0)
        return wrong("--kv-type is f32, f16 or bf16");
    if (bench_list_parse("--clients", o->clients_text, 1, 65536, &o->clients, err, sizeof err) ||
        serve_lengths_parse("--n-prompt", o->prompt_text, 1 << 20, &o->prompt, err, sizeof err) ||
        serve_lengths_parse("--n-gen", o->gen_text, 1 << 20, &o->gen, err, sizeof err))
        return wrong(err);
    if (o->launch && !o->model)
        return wrong("--launch needs --model FILE");
    if (o->key && o->launch)
        return wrong(
            "--key is for a coordinator that runs; one that --launch starts asks for none");
    if (o->n_extra && !o->launch)
        return wrong("words after -- are for the coordinator that --launch starts");
    return 0;
}

int serve_parse(struct serve_options *o, int argc, char **argv)
{
    *o = (struct serve_options){.connect = "tcp://127.0.0.1:5555",
                                .device = "auto",
                                .output = "md",
                                .clients_text = "8",
                                .prompt_text = "512",
                                .gen_text = "128",
                                .requests = 64,
                                .seed = 1,
                                .warmup = 1};
    const struct cli_option options[] = {
        {.type = CLI_GROUP, .text = "Load"},
        {CLI_STRING, "clients", 'c', "LIST",
         "clients that each have one request under way at any time; several: one run for each", "8",
         "GPTOSS_BENCH_CLIENTS", &o->clients_text, 0, 0, NULL},
        {CLI_FLOAT, "rate", 0, "R",
         "instead of clients: so many requests a second arrive by chance (Poisson)", NULL,
         "GPTOSS_BENCH_RATE", &o->rate, 0.001, 1e6, NULL},
        {CLI_INT, "requests", 'N', "N", "requests of a run", "64", "GPTOSS_BENCH_REQUESTS",
         &o->requests, 1, 10000000, NULL},
        {CLI_STRING, "n-prompt", 'p', "LENGTH", "tokens of a prompt", "512", "GPTOSS_BENCH_PROMPT",
         &o->prompt_text, 0, 0, NULL},
        {CLI_STRING, "n-gen", 'n', "LENGTH", "tokens of an answer", "128", "GPTOSS_BENCH_GEN",
         &o->gen_text, 0, 0, NULL},
        {CLI_INT, "shared-prefix", 0, "N", "first tokens that all prompts have in common", "0",
         "GPTOSS_BENCH_SHARED_PREFIX", &o->shared, 0, 1 << 20, NULL},
        {CLI_FLOAT, "temperature", 0, "T", "of the sampling", "0", NULL, &o->temperature, 0, 100,
         NULL},
        {CLI_INT, "seed", 0, "N", "of prompts, lengths and arrivals", "1", NULL, &o->seed, 0, 1e15,
         NULL},
        {CLI_INT, "warmup", 0, "N", "requests before those that count", "1", NULL, &o->warmup, 0,
         100000, NULL},
        {.type = CLI_GROUP, .text = "What is loaded"},
        {CLI_STRING, "connect", 0, "ENDPOINT", "a coordinator that runs", "tcp://127.0.0.1:5555",
         "GPTOSS_CONNECT", &o->connect, 0, 0, NULL},
        {CLI_STRING, "key", 0, "FILE", "the keys to show to a coordinator that runs with --keys",
         NULL, "GPTOSS_KEY", &o->key, 0, 0, NULL},
        {CLI_STRING, "server-key", 0, "KEY|FILE", "the coordinator's public key",
         "that of the key file", "GPTOSS_SERVER_KEY", &o->server_key, 0, 0, NULL},
        {CLI_INT, "launch", 0, "N", "start a coordinator and N ranks instead", NULL,
         "GPTOSS_LAUNCH", &o->launch, 1, 4096, NULL},
        {CLI_STRING, "model", 'm', "FILE", "the model, for --launch, and to draw prompts from",
         "what the coordinator serves", "GPTOSS_MODEL", &o->model, 0, 0, NULL},
        {CLI_INT, "vocabulary", 0, "N", "draw prompts from ids below N, without the model's file",
         NULL, NULL, &o->vocabulary, 1, INT32_MAX, NULL},
        {.type = CLI_GROUP, .text = "Told to the coordinator that --launch starts"},
        {CLI_STRING, "device", 0, "DEVICE", "auto, cpu, cuda or reference (-dev)", "auto",
         "GPTOSS_DEVICE", &o->device, 0, 0, NULL},
        {CLI_INT, "threads", 't', "T", "threads of a CPU rank", "the host's cores, shared", NULL,
         &o->threads, 1, 1024, NULL},
        {CLI_INT, "context", 0, "T", "positions of one sequence", "as the longest request needs",
         NULL, &o->context, 1, UINT32_MAX, NULL},
        {CLI_INT, "sequences", 0, "S", "sequences that are computed at a time",
         "the clients, by rate 64", NULL, &o->sequences, 1, 4096, NULL},
        {CLI_STRING, "kv-type", 0, "TYPE", "f32, f16 or bf16", "f32 on CPUs, f16 on GPUs", NULL,
         &o->kv_type, 0, 0, NULL},
        {CLI_FLAG, "fast", 0, NULL, "CPU ranks round the activations in front of a product to int8",
         "float activations", "GPTOSS_FAST", &o->fast, 0, 0, NULL},
        {CLI_INT, "step-tokens", 0, "N", "tokens of one step", "the coordinator's", NULL,
         &o->step_tokens, 1, 8192, NULL},
        {.type = CLI_GROUP, .text = "What is printed"},
        {CLI_STRING, "output", 'o', "FORMAT", "md, csv, json or jsonl, on stdout", "md",
         "GPTOSS_BENCH_OUTPUT", &o->output, 0, 0, NULL},
    };
    const struct cli cli = {
        .program = "gptoss-bench serve",
        .summary = "Loads a coordinator with requests and measures what its clients see: time to "
                   "first token, time between tokens, time of a whole answer, at percentiles, and "
                   "tokens per second.",
        .usage = "gptoss-bench serve [options] [-- OPTIONS OF gptoss-coordinator]",
        .examples = "  gptoss-bench serve -c 8 -N 100\n"
                    "      eight clients ask a coordinator that runs here, one request each at a "
                    "time\n"
                    "  gptoss-bench serve --rate 20 -N 2000 -p 100-2000 -n ~300\n"
                    "      twenty requests a second, prompts and answers of many lengths\n"
                    "  gptoss-bench serve -m model.gguf --launch 2 -c 1,4,16,64 -N 256 -o json\n"
                    "      a coordinator with two ranks of its own, a run for each number of "
                    "clients\n"
                    "  gptoss-bench serve -c 1 -N 20 -p 2000 -n 1\n"
                    "      time to first token of 2,000 tokens on an idle server\n",
        .notes =
            "A LENGTH is a number, a range 100-2000 (even), ~500 (exponential with this mean), "
            "or several\nof these with commas, of which each request takes one. Prompts are "
            "random token ids, all\ndifferent but for the shared prefix. Answers go on past "
            "end-of-turn tokens.\ndocs/measuring.md derives every column.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .exit_codes = 1u << EXIT_DONE | 1u << EXIT_FAILED | 1u << EXIT_USAGE | 1u << EXIT_MODEL |
                      1u << EXIT_MEMORY | 1u << EXIT_COORDINATOR,
    };
    bench_device_word(argc, argv);
    int status = cli_parse(&cli, argc, argv, &o->extra, &o->n_extra);
    if (status)
        return status;
    /* Words that follow no "--" are a mistake. */
    bool passed = false;
    for (int i = 1; i < argc; i++)
        passed |= strcmp(argv[i], "--") == 0;
    if (o->n_extra && !passed) {
        fprintf(stderr, "%s: what is meant by %s?\n%s --help lists the options\n", cli.program,
                o->extra[0], cli.program);
        return -1;
    }
    return check(o);
}
