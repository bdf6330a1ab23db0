/*
 * simulate: what a pipeline of any number of stages would do under a load. Predictions, and labelled so.
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/simulate.h"

struct choice {
    const char *model, *costs, *stages, *kv_type, *format;
    int64_t requests, prompt, output, clients, context, sequences, step_tokens, seed;
    double spread, rate, hop_us, hop_bandwidth, link_us, token_gap, memory;
    bool hop_given, bandwidth_given, link_given;
};

static int wrong(const char *text, const char *value)
{
    fprintf(stderr, "gptoss-bench simulate: %s%s\ntry: gptoss-bench simulate --help\n", text,
            value);
    return -1;
}

static int parse_options(struct choice *o, int argc, char **argv)
{
    const struct cli_option options[] = {
        {.type = CLI_GROUP, .text = "What is simulated"},
        {CLI_STRING, "model", 'm', "FILE", "the model: its sizes and its tokenizer are used", NULL,
         "GPTOSS_MODEL", &o->model, 0, 0, NULL},
        {CLI_STRING, "costs", 0, "FILE",
         "what steps cost, as gptoss-coordinator --costs has written it", "guessed", "GPTOSS_COSTS",
         &o->costs, 0, 0, NULL},
        {CLI_STRING, "stages", 0, "LIST", "stages, such as 1,2,4 or 1-64*2", "1,2,4,8",
         "GPTOSS_STAGES", &o->stages, 0, 0, NULL},
        {CLI_FLOAT, "hop", 0, "US", "from one stage to the next, for each step", "20, on CPUs 60",
         NULL, &o->hop_us, 0, 1e6, &o->hop_given},
        {CLI_FLOAT, "hop-bandwidth", 0, "GB", "10⁹ bytes a second of activations between stages",
         "100, on CPUs 4", NULL, &o->hop_bandwidth, 0, 1e6, &o->bandwidth_given},
        {CLI_FLOAT, "link", 0, "US", "one way between coordinator and a rank", "60", NULL,
         &o->link_us, 0, 1e6, &o->link_given},
        {.type = CLI_GROUP, .text = "The load"},
        {CLI_INT, "requests", 'r', "N", "requests in all", "1000", NULL, &o->requests, 1, 1000000,
         NULL},
        {CLI_INT, "prompt", 'p', "T", "tokens of each prompt", "1000", NULL, &o->prompt, 1, 1 << 20,
         NULL},
        {CLI_INT, "output", 'n', "T", "tokens of each answer", "1000", NULL, &o->output, 1, 1 << 20,
         NULL},
        {CLI_FLOAT, "spread", 0, "S", "lengths are drawn from 1 − S to 1 + S times these", "0",
         NULL, &o->spread, 0, 1, NULL},
        {CLI_INT, "clients", 0, "N", "clients that ask again when they were answered",
         "all requests at once", NULL, &o->clients, 1, 1000000, NULL},
        {CLI_FLOAT, "rate", 0, "R", "requests a second, at random times", "all at once", NULL,
         &o->rate, 0, 1e6, NULL},
        {CLI_INT, "seed", 0, "N", "of lengths, times and prompts", "0", "GPTOSS_SEED", &o->seed, 0,
         0, NULL},
        {.type = CLI_GROUP, .text = "The coordinator's options"},
        {CLI_INT, "context", 'c', "T", "positions of one sequence", "as in the costs",
         "GPTOSS_CONTEXT", &o->context, 1, UINT32_MAX, NULL},
        {CLI_INT, "sequences", 's', "S", "sequences at a time", "the coordinator's default",
         "GPTOSS_SEQUENCES", &o->sequences, 1, 4096, NULL},
        {CLI_INT, "step-tokens", 0, "N", "tokens of one step", "as in the costs",
         "GPTOSS_STEP_TOKENS", &o->step_tokens, 1, 8192, NULL},
        {CLI_STRING, "kv-type", 0, "TYPE", "f32, f16 or bf16", "as in the costs", "GPTOSS_KV_TYPE",
         &o->kv_type, 0, 0, NULL},
        {CLI_FLOAT, "token-gap", 0, "MS", "see gptoss-coordinator --help", "50, on CPUs 200",
         "GPTOSS_TOKEN_GAP", &o->token_gap, 0.1, 1e6, NULL},
        {CLI_FLOAT, "memory", 0, "GIB", "free memory of each rank", "as in the costs", NULL,
         &o->memory, 0, 1e6, NULL},
        {.type = CLI_GROUP, .text = "Output"},
        {CLI_STRING, "format", 'o', "FORMAT", "text, csv or json", "text", NULL, &o->format, 0, 0,
         NULL},
    };
    const struct cli cli = {
        .program = "gptoss-bench simulate",
        .summary =
            "Runs the real coordinator and planner in virtual time, with ranks that take as long "
            "as was measured: what more stages, or another load, would give. No rank is started.",
        .usage = "gptoss-bench simulate --model FILE [--costs FILE] [options]",
        .examples =
            "  gptoss-coordinator -m model.gguf --launch 1 --costs costs.json   (serve a while)\n"
            "  gptoss-bench simulate -m model.gguf --costs costs.json --stages 1,2,4,8\n"
            "      what the same device would do in pipelines of 1, 2, 4 and 8\n"
            "  gptoss-bench simulate -m model.gguf --costs costs.json --rate 5 -p 2000 -n 300\n"
            "      five requests a second\n",
        .notes =
            "Every figure is a prediction. TTFT: time to the first token; TPOT: time for each\n"
            "later token, mean of a request; gap: the longest between two tokens of one request;\n"
            "bubble: share of the time in which stages are idle, over all and in the middle half.\n"
            "Without --costs the terms are guessed from the model's sizes: good for comparing\n"
            "schedules, not for figures.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .exit_codes = 1u << EXIT_DONE | 1u << EXIT_FAILED | 1u << EXIT_USAGE | 1u << EXIT_MODEL,
    };
    char **args;
    int n_args;
    int status = cli_parse(&cli, argc, argv, &args, &n_args);
    if (status)
        return status;
    if (n_args)
        return wrong("what is meant by ", args[0]);
    if (!o->model)
        return wrong("which model? give --model FILE", "");
    if (strcmp(o->format, "text") && strcmp(o->format, "csv") && strcmp(o->format, "json"))
        return wrong("--format is text, csv or json, not ", o->format);
    if (o->kv_type && strcmp(o->kv_type, "f32") && strcmp(o->kv_type, "f16") &&
        strcmp(o->kv_type, "bf16"))
        return wrong("--kv-type is f32, f16 or bf16, not ", o->kv_type);
    if (o->clients && o->rate > 0)
        return wrong("--clients and --rate are two kinds of load: give one", "");
    return 0;
}

/* ── printing ──────────────────────────────────────────────────────────────────────────────── */

enum { COLUMNS = 16 };
static const char *const headings[COLUMNS] = {
    "stages",   "layers",   "seconds",  "out t/s", "prompt t/s", "TTFT p50", "p90",  "p99",
    "TPOT p50", "TPOT p90", "TPOT p99", "gap",     "bubble",     "steady",   "rows", "steps"};

static void print_row(struct table *table, uint32_t stages, const struct sim_result *r)
{
    char cells[COLUMNS][64];
    const char *row[COLUMNS];
    const double values[] = {r->seconds,         r->output_speed,    r->prompt_speed,
                             r->first_token.p50, r->first_token.p90, r->first_token.p99,
                             r->token.p50,       r->token.p90,       r->token.p99,
                             r->worst_gap};
    snprintf(cells[0], sizeof *cells, "%" PRIu32, stages);
    snprintf(cells[1], sizeof *cells, "%.63s", r->layers);
    for (int i = 0; i < 10; i++) {
        bool time = i >= 3;
        snprintf(cells[2 + i], sizeof *cells,
                 time     ? "%.1f ms"
                 : i == 0 ? "%.2f"
                          : "%.1f",
                 time ? values[i] * 1e3 : values[i]);
    }
    snprintf(cells[12], sizeof *cells, "%.1f %%", r->bubble * 100);
    snprintf(cells[13], sizeof *cells, "%.1f %%", r->steady_bubble * 100);
    snprintf(cells[14], sizeof *cells, "%.1f", r->rows);
    snprintf(cells[15], sizeof *cells, "%" PRIu64, r->steps);
    for (int i = 0; i < COLUMNS; i++)
        row[i] = cells[i];
    table_row(table, row);
}

static void print_csv(uint32_t stages, const struct sim_options *o, const struct sim_result *r,
                      bool first)
{
    if (first)
        printf("kind,stages,layers,requests,prompt,output,seconds,output_tokens_per_second,"
               "prompt_tokens_per_second,ttft_p50,ttft_p90,ttft_p99,tpot_p50,tpot_p90,tpot_p99,"
               "gap_max,bubble,steady_bubble,rows,steps,preemptions\n");
    printf("predicted,%" PRIu32 ",\"%s\",%" PRIu32 ",%" PRIu32 ",%" PRIu32
           ",%.6f,%.3f,%.3f,%.6f,%.6f,%.6f,%.6f,%.6f,%.6f,%.6f,%.5f,%.5f,%.2f,%" PRIu64 ",%" PRIu64
           "\n",
           stages, r->layers, r->finished, o->prompt, o->output, r->seconds, r->output_speed,
           r->prompt_speed, r->first_token.p50, r->first_token.p90, r->first_token.p99,
           r->token.p50, r->token.p90, r->token.p99, r->worst_gap, r->bubble, r->steady_bubble,
           r->rows, r->steps, r->preemptions);
}

static void print_json(uint32_t stages, const struct sim_options *o, const struct sim_result *r,
                       bool first)
{
    printf("%s\n  {\"kind\": \"predicted\", \"stages\": %" PRIu32
           ", \"layers\": \"%s\", \"requests\": %" PRIu32 ", \"prompt\": %" PRIu32
           ", \"output\": %" PRIu32 ", \"seconds\": %.6f, \"output_tokens_per_second\": %.3f, "
           "\"prompt_tokens_per_second\": %.3f,\n   \"ttft\": [%.6f, %.6f, %.6f], \"tpot\": "
           "[%.6f, %.6f, %.6f], \"gap_max\": %.6f, \"bubble\": %.5f, \"steady_bubble\": %.5f, "
           "\"rows\": %.2f, \"steps\": %" PRIu64 ", \"preemptions\": %" PRIu64 "}",
           first ? "[" : ",", stages, r->layers, r->finished, o->prompt, o->output, r->seconds,
           r->output_speed, r->prompt_speed, r->first_token.p50, r->first_token.p90,
           r->first_token.p99, r->token.p50, r->token.p90, r->token.p99, r->worst_gap, r->bubble,
           r->steady_bubble, r->rows, r->steps, r->preemptions);
}

/* ── running ───────────────────────────────────────────────────────────────────────────────── */

static void fill_options(const struct choice *o, const struct sim_costs *costs,
                         struct sim_options *s)
{
    bool cpu = !costs->gpu;
    s->hop_seconds = (o->hop_given ? o->hop_us : cpu ? 60 : 20) * 1e-6;
    s->hop_bandwidth = (o->bandwidth_given ? o->hop_bandwidth : cpu ? 4 : 100) * 1e9;
    s->link_seconds = (o->link_given ? o->link_us : 60) * 1e-6;
    s->requests = (uint32_t)o->requests;
    s->prompt = (uint32_t)o->prompt;
    s->output = (uint32_t)o->output;
    s->spread = o->spread;
    s->clients = (uint32_t)o->clients;
    s->rate = o->rate;
    s->seed = (uint64_t)o->seed;
    struct coordinator_options *c = &s->coordinator;
    c->context = o->context ? (uint32_t)o->context : costs->context;
    c->sequences = (uint32_t)o->sequences;
    c->step_tokens = o->step_tokens ? (uint32_t)o->step_tokens : costs->step_tokens;
    c->gap_us = (uint64_t)(o->token_gap * 1e3);
    c->kv_type = costs->kv_type;
    c->kv_type_given = o->costs != NULL;
    static const char *const types[] = {"f32", "f16", "bf16"};
    for (int i = 0; i < 3 && o->kv_type; i++)
        if (strcmp(o->kv_type, types[i]) == 0) {
            c->kv_type = (enum plan_kv_type)i;
            c->kv_type_given = true;
        }
}

static int run_all(const struct choice *o, const struct bench_list *stages, struct sim_options *s,
                   char *err, size_t err_size)
{
    struct table *table = table_create(COLUMNS, headings);
    bool text = strcmp(o->format, "text") == 0, json = strcmp(o->format, "json") == 0;
    int code = EXIT_DONE;
    bool first = true;
    for (size_t i = 0; i < stages->n && code == EXIT_DONE; i++) {
        struct sim_result result;
        s->n_stages = stages->values[i];
        if (s->n_stages > s->model->n_layers) {
            fprintf(stderr, "# %" PRIu32 " layers cannot be cut into %" PRIu32 " stages\n",
                    s->model->n_layers, s->n_stages);
            continue;
        }
        double begin = clock_seconds();
        if (sim_run(s, &result, err, err_size)) {
            code = EXIT_FAILED;
            break;
        }
        fprintf(stderr, "# %" PRIu32 " stages: %.1f virtual seconds in %.1f\n", s->n_stages,
                result.seconds, clock_seconds() - begin);
        if (text)
            print_row(table, s->n_stages, &result);
        else if (json)
            print_json(s->n_stages, s, &result, first);
        else
            print_csv(s->n_stages, s, &result, first);
        first = false;
    }
    if (text && !first) {
        printf("predicted, not measured; costs: %s\n", o->costs ? o->costs : "guessed");
        table_print(table, TABLE_TEXT, stdout);
    }
    if (json)
        printf("%s\n]\n", first ? "[" : "");
    table_destroy(table);
    return code;
}

int bench_simulate(int argc, char **argv)
{
    struct choice o = {
        .stages = "1,2,4,8", .format = "text", .requests = 1000, .prompt = 1000, .output = 1000};
    char err[1024] = "", path[PATH_MAX];
    int status = parse_options(&o, argc, argv);
    if (status)
        return status > 0 ? EXIT_DONE : EXIT_USAGE;
    struct bench_list stages = {0};
    struct sim_costs costs = {0};
    struct gguf_file *file = NULL;
    struct gguf_model *model = NULL;
    int code = EXIT_USAGE;
    if (bench_list_parse("--stages", o.stages, 1, 4096, &stages, err, sizeof err))
        goto done;
    code = EXIT_FAILED;
    if (o.costs && sim_costs_read(&costs, o.costs, err, sizeof err))
        goto done;
    if (o.memory > 0)
        costs.memory_bytes = (uint64_t)(o.memory * 0x1p30);
    code = EXIT_MODEL;
    if (!realpath(o.model, path)) {
        snprintf(err, sizeof err, "%s: %s", o.model, strerror(errno));
        goto done;
    }
    if (gguf_open(&file, path, err, sizeof err) || gguf_model_create(&model, file, err, sizeof err))
        goto done;
    struct sim_options options = {.model = model, .path = path, .costs = &costs};
    fill_options(&o, &costs, &options);
    code = run_all(&o, &stages, &options, err, sizeof err);
done:
    if (code != EXIT_DONE && err[0])
        fprintf(stderr, "gptoss-bench simulate: %s\n", err);
    gguf_model_destroy(model);
    gguf_close(file);
    sim_costs_free(&costs);
    free(stages.values);
    return code;
}
