/*
 * gptoss-gguf plan: what each rank would need, before anything is loaded.
 */
#include "plan/plan.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/base.h"
#include "tools/tools.h"

struct wanted {
    int64_t stages, context, sequences;
    const char *memory, *kv_type;
    uint64_t memory_bytes; /* 0: not given */
    bool json;
};

/* "24", "24G", "24GiB": binary gigabytes unless a unit is given. −1: none of these. */
static int read_memory(const char *text, uint64_t *out)
{
    static const struct {
        const char *unit;
        double bytes;
    } units[] = {{"", 0x1p30},    {"G", 0x1p30}, {"GiB", 0x1p30}, {"GB", 1e9},     {"M", 0x1p20},
                 {"MiB", 0x1p20}, {"MB", 1e6},   {"T", 0x1p40},   {"TiB", 0x1p40}, {"B", 1}};
    char *end;
    double value = strtod(text, &end);
    while (*end == ' ')
        end++;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (end != text && !strcasecmp(end, units[i].unit) && value > 0 &&
            value * units[i].bytes < 0x1p60) {
            *out = (uint64_t)(value * units[i].bytes);
            return 0;
        }
    return -1;
}

static int make_plan(struct plan **plan, const struct gguf_model *model, const struct wanted *w,
                     uint32_t stages, char *err, size_t err_size)
{
    static const char *const types[] = {"f32", "f16", "bf16"};
    struct plan_rank *ranks = base_alloc(stages, sizeof *ranks);
    for (uint32_t s = 0; s < stages; s++)
        ranks[s].memory_free_bytes = w->memory_bytes;
    struct plan_options options = {.n_ranks = stages,
                                   .ranks = ranks,
                                   .context = (uint32_t)w->context,
                                   .sequences = (uint32_t)w->sequences};
    for (int i = 0; i < 3; i++)
        if (!strcmp(types[i], w->kv_type))
            options.kv_type = (enum plan_kv_type)i;
    int status = plan_create(plan, model, &options, err, err_size);
    free(ranks);
    return status;
}

/* The fewest stages that fit; 0: none do. */
static uint32_t enough_stages(const struct gguf_model *model, const struct wanted *w)
{
    for (uint32_t stages = (uint32_t)w->stages + 1; stages <= model->n_layers; stages++) {
        struct plan *plan = NULL;
        char err[512];
        int status = make_plan(&plan, model, w, stages, err, sizeof err);
        plan_destroy(plan);
        if (!status)
            return stages;
    }
    return 0;
}

/* Both pools, as far as the stage's layers need them. */
static uint64_t full_kv(const struct gguf_model *m, const struct plan *p,
                        const struct plan_stage *s)
{
    return p->full_blocks * plan_kv_block_bytes(m, p->kv_type, p->block_tokens, s->full_layers);
}

static uint64_t window_kv(const struct gguf_model *m, const struct plan *p,
                          const struct plan_stage *s)
{
    return p->window_blocks * plan_kv_block_bytes(m, p->kv_type, p->block_tokens, s->window_layers);
}

static void print_table(const struct gguf_model *m, const struct plan *p)
{
    enum { COLUMNS = 9 };
    struct table *table = table_create(
        COLUMNS, (const char *const[]){"rank", "layers", "full+window", "weights", "KV full",
                                       "KV window", "activations", "total", "headroom"});
    struct plan_stage all = {0};
    for (uint32_t i = 0; i <= p->n_stages; i++) {
        bool last = i == p->n_stages; /* the sums */
        const struct plan_stage *s = last ? &all : &p->stages[i];
        char cells[COLUMNS][64], size[32];
        snprintf(cells[0], sizeof *cells, "%" PRIu32, i);
        if (last)
            strcpy(cells[0], "all");
        snprintf(cells[1], sizeof *cells, "%" PRIu32 "-%" PRIu32, s->layer_first,
                 s->layer_first + s->layer_count - 1);
        snprintf(cells[2], sizeof *cells, "%" PRIu32 "+%" PRIu32, s->full_layers, s->window_layers);
        const uint64_t bytes[] = {s->weights_bytes, full_kv(m, p, s), window_kv(m, p, s),
                                  s->activation_bytes, s->total_bytes};
        for (int k = 0; k < 5; k++)
            snprintf(cells[3 + k], sizeof *cells, "%s", text_bytes(size, bytes[k]));
        strcpy(cells[8], "");
        if (s->memory_bytes) {
            bool less = s->memory_bytes < s->total_bytes;
            snprintf(cells[8], sizeof *cells, "%s%s", less ? "-" : "",
                     text_bytes(size, less ? s->total_bytes - s->memory_bytes
                                           : s->memory_bytes - s->total_bytes));
        }
        const char *row[COLUMNS];
        for (int k = 0; k < COLUMNS; k++)
            row[k] = cells[k];
        table_row(table, row);
        all.layer_count += s->layer_count;
        all.full_layers += s->full_layers;
        all.window_layers += s->window_layers;
        all.weights_bytes += s->weights_bytes;
        all.activation_bytes += s->activation_bytes;
        all.total_bytes += s->total_bytes;
    }
    table_print(table, TABLE_TEXT, stdout);
    table_destroy(table);
    uint64_t positions = (uint64_t)p->full_blocks * p->block_tokens;
    uint64_t blocks = ((uint64_t)p->context + p->block_tokens - 1) / p->block_tokens;
    printf("KV in %s for %" PRIu64 " positions: %" PRIu64 " of %" PRIu32 " sequences of %" PRIu32
           " at a time\n",
           (const char *const[]){"f32", "f16", "bf16"}[p->kv_type], positions,
           p->full_blocks / blocks, p->sequences, p->context);
}

static void print_json(const struct gguf_model *m, const struct plan *p, const char *refused,
                       uint32_t enough)
{
    struct text out = {0};
    text_print(&out,
               "{\"stages\": %" PRIu32 ", \"context\": %" PRIu32 ", \"sequences\": %" PRIu32
               ", \"kv_type\": \"%s\", \"full_blocks\": %" PRIu32 ", \"window_blocks\": %" PRIu32
               ", \"block_tokens\": %" PRIu32 ", \"fits\": %s,\n\"ranks\": [",
               p->n_stages, p->context, p->sequences,
               (const char *const[]){"f32", "f16", "bf16"}[p->kv_type], p->full_blocks,
               p->window_blocks, p->block_tokens, refused ? "false" : "true");
    for (uint32_t i = 0; i < p->n_stages; i++) {
        const struct plan_stage *s = &p->stages[i];
        text_print(&out,
                   "%s\n{\"rank\": %" PRIu32 ", \"layer_first\": %" PRIu32
                   ", \"layer_count\": %" PRIu32 ", \"full_layers\": %" PRIu32
                   ", \"window_layers\": %" PRIu32 ", \"weights_bytes\": %" PRIu64
                   ", \"kv_full_bytes\": %" PRIu64 ", \"kv_window_bytes\": %" PRIu64
                   ", \"activation_bytes\": %" PRIu64 ", \"total_bytes\": %" PRIu64
                   ", \"memory_bytes\": %" PRIu64 "}",
                   i ? "," : "", i, s->layer_first, s->layer_count, s->full_layers,
                   s->window_layers, s->weights_bytes, full_kv(m, p, s), window_kv(m, p, s),
                   s->activation_bytes, s->total_bytes, s->memory_bytes);
    }
    text_print(&out, "],\n\"refused\": ");
    if (refused)
        text_json_string(&out, refused, strlen(refused));
    else
        text_print(&out, "null");
    text_print(&out, ", \"stages_enough\": %" PRIu32 "}\n", enough);
    fwrite(out.bytes, 1, out.size, stdout);
    text_free(&out);
}

static int plan_file(const struct gguf_model *model, const struct wanted *w)
{
    struct plan *plan;
    char err[512];
    int status = make_plan(&plan, model, w, (uint32_t)w->stages, err, sizeof err);
    if (status < 0) {
        fprintf(stderr, "gptoss-gguf plan: %s\n", err);
        return EXIT_USAGE;
    }
    uint32_t enough = status ? enough_stages(model, w) : (uint32_t)w->stages;
    if (w->json)
        print_json(model, plan, status ? err : NULL, enough);
    else
        print_table(model, plan);
    fflush(stdout);
    if (status && enough)
        fprintf(stderr, "gptoss-gguf plan: %s; %" PRIu32 " stages of this memory would fit\n", err,
                enough);
    else if (status)
        fprintf(stderr, "gptoss-gguf plan: %s\n", err);
    plan_destroy(plan);
    return status ? EXIT_MEMORY : EXIT_DONE;
}

int tools_plan(int argc, char **argv)
{
    struct wanted w = {.stages = 1, .kv_type = "f32"};
    const struct cli_option options[] = {
        {.type = CLI_INT,
         .name = "stages",
         .value = "N",
         .fallback = "1",
         .out = &w.stages,
         .text = "ranks that share the layers",
         .min = 1,
         .max = 10000},
        {.type = CLI_STRING,
         .name = "gpu-memory",
         .value = "G",
         .out = &w.memory,
         .text = "free memory of each rank's device: 24, 24GiB, 800MiB, 80GB; without it nothing "
                 "is refused"},
        {.type = CLI_INT,
         .name = "context",
         .letter = 'c',
         .value = "C",
         .fallback = "8192, or what the model was made for",
         .out = &w.context,
         .text = "positions of a sequence",
         .min = 1,
         .max = 1 << 30},
        {.type = CLI_INT,
         .name = "sequences",
         .value = "S",
         .fallback = "16",
         .out = &w.sequences,
         .text = "sequences at a time",
         .min = 1,
         .max = 1 << 20},
        {.type = CLI_STRING,
         .name = "kv-type",
         .value = "TYPE",
         .fallback = "f32",
         .out = &w.kv_type,
         .text = "of the KV cache: f32, f16 or bf16"},
        {.type = CLI_FLAG, .name = "json", .out = &w.json, .text = "one JSON object, in bytes"},
    };
    const struct cli cli = {
        .program = "gptoss-gguf plan",
        .summary =
            "Says what each rank of a pipeline would need for a model, before it is loaded: a "
            "row a rank. The coordinator plans with the same code.",
        .usage = "gptoss-gguf plan [OPTION…] FILE",
        .examples = "  gptoss-gguf plan --stages 4 model.gguf\n"
                    "  gptoss-gguf plan --stages 2 --gpu-memory 16GiB --context 32768 \\\n"
                    "      --sequences 8 --kv-type f16 gpt-oss-20b-mxfp4.gguf\n"
                    "  gptoss-gguf plan --stages 4 --json model.gguf | jq '.ranks[].total_bytes'\n",
        .notes =
            "weights: the tensors of the rank's layers, the embedding on the first, the output on "
            "the last. KV full, KV window: the cache of layers that attend to everything, and of "
            "those that see the last positions only. What does not fit is refused with what "
            "would: a smaller context, fewer sequences, more stages. Beside these numbers every "
            "process has an overhead of its own (MPI, CUDA's context), which is not in them.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .exit_codes = 1u << EXIT_DONE | 1u << EXIT_USAGE | 1u << EXIT_MODEL | 1u << EXIT_MEMORY,
    };
    char **args, err[512];
    int n_args;
    int status = cli_parse(&cli, argc, argv, &args, &n_args);
    if (status)
        return status > 0 ? EXIT_DONE : EXIT_USAGE;
    if (n_args != 1)
        snprintf(err, sizeof err, "give one file, not %d", n_args);
    else if (w.memory && read_memory(w.memory, &w.memory_bytes))
        snprintf(err, sizeof err, "--gpu-memory %s: 24, 24GiB, 800MiB or 80GB are such", w.memory);
    else if (strcmp(w.kv_type, "f32") != 0 && strcmp(w.kv_type, "f16") != 0 &&
             strcmp(w.kv_type, "bf16") != 0)
        snprintf(err, sizeof err, "--kv-type %s: f32, f16 and bf16 are known", w.kv_type);
    else
        err[0] = 0;
    if (err[0]) {
        fprintf(stderr, "gptoss-gguf plan: %s\ngptoss-gguf plan --help tells more\n", err);
        return EXIT_USAGE;
    }
    struct gguf_file *file = NULL;
    struct gguf_model *model = NULL;
    if (gguf_open(&file, args[0], err, sizeof err) ||
        gguf_model_create(&model, file, err, sizeof err)) {
        fprintf(stderr, "gptoss-gguf plan: %s\n", err);
        status = EXIT_MODEL;
    } else {
        status = plan_file(model, &w);
    }
    gguf_model_destroy(model);
    gguf_close(file);
    return status;
}
