/*
 * perplexity: how well the model foretells a text, so that what a faster mode costs has a number.
 *
 * As llama.cpp's llama-perplexity does it: the text's tokens are cut into windows that know nothing of
 * each other; of each, the second half is foretold. One stage with all layers, in this process.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/fields.h"
#include "coordinator/tokenizer.h"
#include "kernels/kernels.h"

enum { STEP_TOKENS = 128, BLOCK_TOKENS = 16, TEXT_MAX = 1 << 26 };

struct choice {
    const char *model, *file, *device, *kv_type, *output;
    int64_t context, chunks, threads;
    bool fast;
};

struct perplexity {
    struct choice choice;
    enum kernels_kv_type kv_type;
    enum bench_format format;
    struct gguf_file *file;
    struct gguf_model *model;
    struct kernels *k;
    struct kernels_info info;
    struct kernels_stage *stage;
    struct tokens tokens;
    int64_t begin;    /* a token that stands in place of each window's first, or −1 */
    uint32_t *blocks; /* 0, 1, 2, …: of the one slot */

    uint64_t windows, n; /* tokens foretold */
    double sum, squares; /* of −ln p */
};

static int wrong(const char *text)
{
    fprintf(stderr,
            "gptoss-bench perplexity: %s\ngptoss-bench perplexity --help lists the options\n",
            text);
    return -1;
}

static int parse(struct perplexity *p, int argc, char **argv)
{
    struct choice *c = &p->choice;
    *c = (struct choice){.device = "auto", .output = "md", .context = 512};
    const struct cli_option options[] = {
        {CLI_STRING, "model", 'm', "FILE", "the model, a gpt-oss GGUF file", NULL, "GPTOSS_MODEL",
         &c->model, 0, 0, NULL},
        {CLI_STRING, "file", 'f', "TEXT", "the text that is foretold, UTF-8", NULL, NULL, &c->file,
         0, 0, NULL},
        {CLI_INT, "context", 'c', "N", "tokens of a window, of which the second half is foretold",
         "512", NULL, &c->context, 8, 1 << 20, NULL},
        {CLI_INT, "chunks", 0, "N", "so many windows at most", "all", NULL, &c->chunks, 1, 1 << 30,
         NULL},
        {CLI_FLAG, "fast", 0, NULL, "products with int8 activations (CPU)", "float activations",
         "GPTOSS_FAST", &c->fast, 0, 0, NULL},
        {CLI_STRING, "device", 0, "DEVICE", "auto, cpu, cuda or reference (-dev)", "auto",
         "GPTOSS_DEVICE", &c->device, 0, 0, NULL},
        {CLI_INT, "threads", 't', "T", "threads of the CPU", "those there are", NULL, &c->threads,
         1, 1024, NULL},
        {CLI_STRING, "kv-type", 0, "TYPE", "f32, f16 or bf16", "f32 on CPUs, f16 on GPUs",
         "GPTOSS_KV_TYPE", &c->kv_type, 0, 0, NULL},
        {CLI_STRING, "output", 'o', "FORMAT", "md, csv, json or jsonl, on stdout", "md",
         "GPTOSS_BENCH_OUTPUT", &c->output, 0, 0, NULL},
    };
    const struct cli cli = {
        .program = "gptoss-bench perplexity",
        .summary =
            "Says how well a model foretells a text: e to the mean of −ln p over its tokens, "
            "each with at least half a window before it. Lower is better; two modes of one "
            "model are as good as each other if they differ by less than a little.",
        .usage = "gptoss-bench perplexity --model FILE --file TEXT [options]",
        .examples =
            "  gptoss-bench perplexity -m model.gguf -f tests/data/ruth-jonah-esther.txt\n"
            "  gptoss-bench perplexity -m model.gguf -f tests/data/ruth-jonah-esther.txt --fast\n"
            "      the same with int8 activations: what --fast costs\n",
        .notes = "Windows and the error are those of llama.cpp's llama-perplexity.\n"
                 "docs/measuring.md derives every column.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .exit_codes = 1u << EXIT_DONE | 1u << EXIT_FAILED | 1u << EXIT_USAGE | 1u << EXIT_MODEL |
                      1u << EXIT_DEVICE,
    };
    char **args;
    int n_args;
    bench_device_word(argc, argv);
    int status = cli_parse(&cli, argc, argv, &args, &n_args);
    if (status)
        return status;
    int format = bench_format_find(c->output);
    int kv_type = c->kv_type ? bench_kv_type_find(c->kv_type) : KERNELS_KV_F32;
    if (n_args)
        return wrong("there is a word that is no option");
    if (!c->model)
        return wrong("which model? give --model FILE");
    if (!c->file)
        return wrong("which text? give --file TEXT");
    if (format < 0)
        return wrong("--output is md, csv, json or jsonl");
    if (kv_type < 0)
        return wrong("--kv-type is f32, f16 or bf16");
    p->format = (enum bench_format)format;
    p->kv_type = (enum kernels_kv_type)kv_type;
    return 0;
}

/* ── the text ──────────────────────────────────────────────────────────────────────────────── */

static int read_text(const char *path, struct text *text, char *err, size_t err_size)
{
    char bytes[65536];
    size_t n;
    FILE *file = fopen(path, "rb");
    if (!file) {
        snprintf(err, err_size, "%s: %s", path, strerror(errno));
        return -1;
    }
    while ((n = fread(bytes, 1, sizeof bytes, file)) && text->size <= TEXT_MAX)
        text_add(text, bytes, n);
    bool failed = ferror(file) || text->size > TEXT_MAX;
    fclose(file);
    if (failed)
        snprintf(err, err_size, "%s: %s", path,
                 text->size > TEXT_MAX ? "more than 64 MiB: cut it" : "cannot be read");
    return failed ? -1 : 0;
}

static int read_tokens(struct perplexity *p, char *err, size_t err_size)
{
    struct tokenizer *tokenizer = NULL;
    struct text text = {0}, clean = {0};
    size_t at = 0;
    int status = -1;
    if (tokenizer_create(&tokenizer, p->file, err, err_size) ||
        read_text(p->choice.file, &text, err, err_size))
        goto done;
    tokenizer_clean(text.bytes, text.size, &clean);
    tokenizer_encode(tokenizer, clean.bytes, clean.size, &at, 0, &p->tokens);
    p->begin = -1;
    const struct gguf_key *add = gguf_key_find(p->file, "tokenizer.ggml.add_bos_token");
    uint32_t begin = UINT32_MAX;
    if (add && add->type == GGUF_VALUE_BOOL && add->data[0] &&
        gguf_get_u32(p->file, "tokenizer.ggml.bos_token_id", &begin, err, err_size) == 0 &&
        begin < p->model->vocabulary)
        p->begin = begin;
    status = 0;
    for (size_t i = 0; i < p->tokens.count && status == 0; i++)
        if (p->tokens.ids[i] >= p->model->vocabulary) {
            snprintf(err, err_size, "the text has token %u, the model ends at %u", p->tokens.ids[i],
                     p->model->vocabulary);
            status = -1;
        }
    if (status == 0 && p->tokens.count < (size_t)p->choice.context) {
        snprintf(err, err_size,
                 "%s has %zu tokens, less than a window of %" PRId64
                 ": give more text, or a smaller "
                 "--context",
                 p->choice.file, p->tokens.count, p->choice.context);
        status = -1;
    }
done:
    text_free(&text);
    text_free(&clean);
    tokenizer_destroy(tokenizer);
    return status;
}

/* ── windows ───────────────────────────────────────────────────────────────────────────────── */

static int open_stage(struct perplexity *p, char *err, size_t err_size)
{
    uint32_t context = (uint32_t)p->choice.context;
    uint32_t n_blocks = (context + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    const struct kernels_stage_options options = {
        .layer_count = p->model->n_layers,
        .head_count = p->model->vocabulary,
        .kv_type = p->kv_type,
        .block_tokens = BLOCK_TOKENS,
        .full_blocks = n_blocks,
        .window_blocks = n_blocks,
        .slots = 1,
        .context = context,
        .lanes = 1,
        .step_rows = 1,
        .step_tokens = STEP_TOKENS,
        .step_samples = STEP_TOKENS,
        .keep_logits = true,
    };
    p->blocks = base_alloc(n_blocks, sizeof *p->blocks);
    for (uint32_t i = 0; i < n_blocks; i++)
        p->blocks[i] = i;
    return kernels_stage_create(&p->stage, p->k, p->model, &options, err, err_size);
}

static void count(struct perplexity *p, uint32_t sample, uint32_t token)
{
    double loss = (double)kernels_stage_sample(p->stage, 0, sample)->log_sum_exp -
                  (double)kernels_stage_logits(p->stage, 0, sample)[token];
    p->n++;
    p->sum += loss;
    p->squares += loss * loss;
}

static int run_window(struct perplexity *p, const uint32_t *ids, char *err, size_t err_size)
{
    uint32_t context = (uint32_t)p->choice.context, half = context / 2, given = 0;
    /* The last token is foretold and foretells nothing. */
    for (uint32_t at = 0; at + 1 < context;) {
        uint32_t n = context - 1 - at < STEP_TOKENS ? context - 1 - at : STEP_TOKENS;
        uint32_t from = at >= half ? 0 : half - at < n ? half - at : n;
        uint32_t blocks = (at + n + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
        int32_t tokens[STEP_TOKENS];
        for (uint32_t i = 0; i < n; i++)
            tokens[i] = (int32_t)ids[at + i];
        if (at == 0 && p->begin >= 0)
            tokens[0] = (int32_t)p->begin;
        const struct kernels_row row = {.position = at,
                                        .count = n,
                                        .sample_from = from,
                                        .full_given = p->blocks + given,
                                        .window_given = p->blocks + given,
                                        .full_given_count = blocks - given,
                                        .window_given_count = blocks - given,
                                        .restart = at == 0,
                                        .top_p = 1};
        const struct kernels_step step = {
            .n_rows = 1, .n_tokens = n, .n_samples = n - from, .rows = &row, .tokens = tokens};
        int done;
        if (kernels_stage_step(p->stage, 0, &step, err, err_size))
            return -1;
        while ((done = kernels_stage_test(p->stage, 0, err, err_size)) == 0)
            usleep(200);
        if (done < 0)
            return -1;
        for (uint32_t i = 0; i < n - from; i++)
            count(p, i, ids[at + from + i + 1]);
        given = blocks;
        at += n;
    }
    return 0;
}

/* ── the result ────────────────────────────────────────────────────────────────────────────── */

static void report(const struct perplexity *p, double seconds)
{
    double mean = p->sum / (double)p->n, value = exp(mean);
    double variance = p->squares / (double)p->n - mean * mean;
    double error = p->n > 1 && variance > 0 ? value * sqrt(variance / (double)(p->n - 1)) : 0;
    char type[96];
    struct fields f = {0};
    bench_model_type(p->model, type, sizeof type);
    if (p->format == BENCH_MD) {
        printf("%s on %s: perplexity %.4f ± %.4f, of %" PRIu64 " tokens in %" PRIu64
               " windows of %" PRId64 " (%s activations, %.1f s)\n",
               type, p->info.device, value, error, p->n, p->windows, p->choice.context,
               p->info.fast ? "int8" : "float", seconds);
        return;
    }
    fields_text(&f, "model_filename", p->choice.model);
    fields_text(&f, "model_type", type);
    fields_text(&f, "device", p->info.device);
    fields_text(&f, "activations", p->info.fast ? "int8" : "f32");
    fields_integer(&f, "n_ctx", (uint64_t)p->choice.context);
    fields_integer(&f, "n_windows", p->windows);
    fields_integer(&f, "n_tokens", p->n);
    fields_real(&f, "perplexity", value);
    fields_real(&f, "error", error);
    fields_real(&f, "seconds", seconds);
    fields_print(&f, p->format, 0);
    fields_finish(p->format, 1);
}

static int run(struct perplexity *p, char *err, size_t err_size)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    const struct kernels_options options = {.device = p->choice.device,
                                            .fast = p->choice.fast,
                                            .threads =
                                                (uint32_t)(p->choice.threads ? p->choice.threads
                                                           : cpus > 0        ? cpus
                                                                             : 1)};
    double begin = clock_seconds();
    if (gguf_open(&p->file, p->choice.model, err, err_size) ||
        gguf_model_create(&p->model, p->file, err, err_size) || read_tokens(p, err, err_size))
        return EXIT_MODEL;
    if (kernels_create(&p->k, &options, err, err_size))
        return EXIT_DEVICE;
    kernels_info(p->k, &p->info);
    if (p->choice.fast && !p->info.fast) {
        snprintf(err, err_size, "%s has no products with int8 activations: leave out --fast",
                 p->info.device);
        return EXIT_DEVICE;
    }
    if (!p->choice.kv_type && strcmp(p->info.backend, "cuda") == 0)
        p->kv_type = KERNELS_KV_F16;
    if (open_stage(p, err, err_size))
        return EXIT_DEVICE;
    uint64_t windows = p->tokens.count / (uint64_t)p->choice.context;
    if (p->choice.chunks && (uint64_t)p->choice.chunks < windows)
        windows = (uint64_t)p->choice.chunks;
    for (; p->windows < windows && !bench_interrupted(); p->windows++)
        if (run_window(p, p->tokens.ids + p->windows * (uint64_t)p->choice.context, err, err_size))
            return EXIT_FAILED;
    if (p->windows)
        report(p, clock_seconds() - begin);
    return EXIT_DONE;
}

int bench_perplexity(int argc, char **argv)
{
    struct perplexity p = {0};
    char err[1024] = "";
    int status = parse(&p, argc, argv), code = status > 0 ? EXIT_DONE : EXIT_USAGE;
    if (status == 0)
        code = run(&p, err, sizeof err);
    if (err[0])
        fprintf(stderr, "gptoss-bench perplexity: %s\n", err);
    kernels_stage_destroy(p.stage);
    kernels_destroy(p.k);
    tokens_free(&p.tokens);
    free(p.blocks);
    gguf_model_destroy(p.model);
    gguf_close(p.file);
    return code;
}
