/*
 * gptoss-gguf check: every rule, and a line for each thing that breaks one.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/base.h"
#include "gguf/gguf.h"
#include "tools/mix.h"
#include "tools/tools.h"

struct check {
    uint64_t findings;
};

static void finding(void *arg, const char *sentence)
{
    struct check *check = arg;
    check->findings++;
    printf("wrong  %s\n", sentence);
}

static void ok(uint64_t findings, const char *what)
{
    if (!findings)
        printf("ok     %s\n", what);
}

/* Every tensor of the file, whether the model uses it or not. */
static uint64_t check_data(struct check *check, const struct gguf_file *file)
{
    uint64_t wrong = 0, bytes = 0;
    double start = clock_seconds();
    char err[512], size[32], rate[32], line[160];
    for (uint64_t i = 0; i < gguf_n_tensors(file); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(file, i);
        bytes += t->bytes;
        if (gguf_check_tensor(file, t, err, sizeof err)) {
            finding(check, err);
            wrong++;
        }
    }
    double took = clock_seconds() - start;
    snprintf(line, sizeof line, "data: no number and no scale is NaN or infinite (%s at %s/s)",
             text_bytes(size, bytes),
             text_bytes(rate, (uint64_t)((double)bytes / (took > 0 ? took : 1))));
    ok(wrong, line);
    return wrong;
}

static bool within(const struct gguf_tensor *used, const struct gguf_tensor *t)
{
    return used && used->data >= t->data && used->data < t->data + t->bytes;
}

/* Rows of a fused tensor are used too, so places are compared. */
static bool is_used(const struct gguf_model *m, const struct gguf_tensor *t)
{
    if (within(m->embedding, t) || within(m->output_norm, t) || within(m->output, t))
        return true;
    for (uint32_t i = 0; i < m->n_layers; i++) {
        const struct gguf_layer *l = &m->layers[i];
        const struct gguf_linear *const linears[] = {&l->attn_q,   &l->attn_k, &l->attn_v,
                                                     &l->attn_out, &l->router, &l->gate,
                                                     &l->up,       &l->down};
        if (within(l->attn_norm, t) || within(l->ffn_norm, t) || within(l->sinks, t))
            return true;
        for (size_t k = 0; k < sizeof linears / sizeof *linears; k++)
            if (within(linears[k]->weight, t) || within(linears[k]->bias, t))
                return true;
    }
    return false;
}

/* What is no error, and worth knowing. */
static void print_notes(const struct gguf_file *file, const struct gguf_model *m)
{
    char size[32];
    for (uint64_t i = 0; i < gguf_n_tensors(file); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(file, i);
        if (is_used(m, t))
            continue;
        printf("note   tensor ");
        for (const char *c = t->name; *c; c++) /* a name may hold anything */
            putchar((unsigned char)*c < 0x20 || (unsigned char)*c >= 0x7f ? '?' : *c);
        printf(" is not used (%s)\n", text_bytes(size, t->bytes));
    }
    if (m->output == m->embedding)
        printf("note   output.weight is missing: the embedding takes its place\n");
    if (!gguf_key_find(file, "gpt-oss.rope.scaling.original_context_length") && m->yarn_factor > 1)
        printf("note   gpt-oss.rope.scaling.original_context_length is missing: %" PRIu32
               " is taken, the context over the factor\n",
               m->yarn_context);
    if (!gguf_key_find(file, "tokenizer.chat_template"))
        printf("note   tokenizer.chat_template is missing: gptoss has the format built in\n");
}

static int check_file(const char *path, bool data)
{
    struct check check = {0};
    struct gguf_file *file;
    struct gguf_model *model;
    char err[512], line[160];
    if (gguf_open(&file, path, err, sizeof err)) {
        finding(&check, err);
        printf("%s: refused: nothing else can be looked at\n", path);
        return EXIT_MODEL;
    }
    snprintf(line, sizeof line,
             "container: GGUF version %" PRIu32 ", %" PRIu32 " file%s, %" PRIu64 " keys, %" PRIu64
             " tensors",
             gguf_version(file), gguf_n_parts(file), gguf_n_parts(file) > 1 ? "s" : "",
             gguf_n_keys(file), gguf_n_tensors(file));
    ok(0, line);
    uint64_t wrong = gguf_check_model(file, finding, &check);
    ok(wrong, "model: keys, and every tensor's presence, shape and type");
    ok(gguf_check_vocabulary(file, finding, &check), "vocabulary: tokens, types, ids, merges");
    if (data)
        check_data(&check, file);
    if (!wrong && !gguf_model_create(&model, file, err, sizeof err)) {
        print_notes(file, model);
        gguf_model_destroy(model);
    }
    if (check.findings)
        printf("%s: %" PRIu64 " thing%s wrong\n", path, check.findings,
               check.findings > 1 ? "s are" : " is");
    else
        printf("%s: sound%s\n", path, data ? "" : ", its data were not looked at");
    gguf_close(file);
    return check.findings ? EXIT_MODEL : EXIT_DONE;
}

int tools_check(int argc, char **argv)
{
    bool no_data = false;
    const struct cli_option options[] = {
        {.type = CLI_FLAG,
         .name = "no-data",
         .text = "leave out the tensors' data: header, model and vocabulary alone",
         .out = &no_data},
    };
    const struct cli cli = {
        .program = "gptoss-gguf check",
        .summary =
            "Checks a model file against every rule that gptoss has for it, and prints a line "
            "for each thing that is wrong.",
        .usage = "gptoss-gguf check [OPTION…] FILE…",
        .examples = "  gptoss-gguf check models/gptoss-tiny-mxfp4.gguf\n"
                    "  gptoss-gguf check --no-data /data/gpt-oss-120b-00001-of-00003.gguf\n",
        .notes =
            "Four groups of rules: the container (counts, lengths, offsets, alignment, parts of a "
            "split model), the model (docs/weight-mapping.md), the vocabulary (lengths of its "
            "arrays, ids in range, merges that name tokens) and the data (no NaN, nothing "
            "infinite, block scales too). Lines begin with ok, wrong or note.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .exit_codes = 1u << EXIT_DONE | 1u << EXIT_USAGE | 1u << EXIT_MODEL,
    };
    char **args;
    int n_args;
    int status = cli_parse(&cli, argc, argv, &args, &n_args);
    if (status)
        return status > 0 ? EXIT_DONE : EXIT_USAGE;
    if (n_args < 1) {
        fprintf(stderr, "gptoss-gguf check: give a file\ngptoss-gguf check --help tells more\n");
        return EXIT_USAGE;
    }
    for (int i = 0; i < n_args; i++)
        status |= check_file(args[i], !no_data);
    return status;
}
