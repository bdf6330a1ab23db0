/*
 * gptoss-gguf quantize: a model file in other types.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "gguf/gguf.h"
#include "tools/mix.h"
#include "tools/tools.h"

#define CHUNK_VALUES ((uint64_t)1 << 20)

struct job {
    const struct gguf_file *file;
    const struct gguf_model *model;
    const struct mix *mix;
    bool requantize;
    enum gguf_type *types; /* [tensors] */
};

static bool belongs_to_the_split(const struct gguf_key *key)
{
    return (key->name.size >= 6 && !memcmp(key->name.bytes, "split.", 6)) ||
           (key->name.size == 17 && !memcmp(key->name.bytes, "general.alignment", 17)) ||
           (key->name.size == 17 && !memcmp(key->name.bytes, "general.file_type", 17));
}

/* Experts that are MXFP4 already were trained so: any other type makes them larger or worse. */
static enum gguf_type type_for(const struct job *job, const struct gguf_tensor *t)
{
    uint32_t layer;
    bool experts = strstr(mix_role(t->name, &layer), "_exps.") != NULL;
    if (t->n_dims < 2 || (experts && t->type == GGUF_MXFP4 && !job->requantize))
        return t->type;
    enum gguf_type type = mix_type(job->mix, t->name, job->model->n_layers, t->ne[0]);
    return type == GGUF_F32 || t->ne[0] % gguf_type_block_values(type) ? t->type : type;
}

static void declare(struct job *job, struct gguf_writer *w)
{
    for (uint64_t i = 0; i < gguf_n_keys(job->file); i++)
        if (!belongs_to_the_split(gguf_key_at(job->file, i)))
            gguf_writer_key(w, gguf_key_at(job->file, i));
    gguf_writer_u32(w, "general.file_type", job->mix->file_type);
    for (uint64_t i = 0; i < gguf_n_tensors(job->file); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(job->file, i);
        job->types[i] = type_for(job, t);
        gguf_writer_tensor(w, t->name, job->types[i], t->n_dims, t->ne);
    }
}

static int convert(const struct gguf_tensor *t, enum gguf_type type, struct gguf_writer *w,
                   char *err, size_t err_size)
{
    if (type == t->type)
        return gguf_writer_data(w, t->data, (size_t)t->bytes, err, err_size);
    uint64_t rows = t->ne[1] * t->ne[2] * t->ne[3];
    uint64_t chunk = t->ne[0] < CHUNK_VALUES ? CHUNK_VALUES / t->ne[0] : 1;
    uint64_t to_bytes = gguf_row_bytes(type, t->ne[0]);
    float *values = malloc(chunk * t->ne[0] * sizeof *values);
    unsigned char *blocks = malloc(chunk * to_bytes);
    int status = values && blocks ? 0 : -1;
    if (status)
        snprintf(err, err_size, "no memory for rows of %" PRIu64 " values", t->ne[0]);
    for (uint64_t row = 0; row < rows && !status; row += chunk) {
        uint64_t n = rows - row < chunk ? rows - row : chunk;
        gguf_to_float(t->type, t->data + row * t->row_bytes, values, n * t->ne[0]);
        if (gguf_from_float(type, values, blocks, n * t->ne[0])) {
            snprintf(err, err_size,
                     "tensor %s has a number in rows %" PRIu64 "-%" PRIu64
                     " that is NaN or infinite: gptoss-gguf check tells where",
                     t->name, row, row + n - 1);
            status = -1;
        } else {
            status = gguf_writer_data(w, blocks, (size_t)(n * to_bytes), err, err_size);
        }
    }
    free(values);
    free(blocks);
    return status;
}

static int write_file(struct job *job, const char *path, char *err, size_t err_size)
{
    struct gguf_writer *w;
    bool terminal = isatty(STDERR_FILENO);
    uint64_t done = 0;
    if (gguf_writer_create(&w, path, err, err_size))
        return -1;
    declare(job, w);
    int status = gguf_writer_begin(w, err, err_size);
    for (uint64_t i = 0; i < gguf_n_tensors(job->file) && !status; i++) {
        const struct gguf_tensor *t = gguf_tensor_at(job->file, i);
        done += t->bytes;
        if (terminal)
            fprintf(stderr, "\r\033[K%3.0f %%  %s",
                    100.0 * (double)done / (double)job->model->bytes, t->name);
        status = convert(t, job->types[i], w, err, err_size);
    }
    if (terminal)
        fprintf(stderr, "\r\033[K");
    if (!status)
        status = gguf_writer_finish(w, err, err_size);
    gguf_writer_destroy(w);
    return status;
}

static int run(const char *from, const char *to, const struct mix *mix, bool requantize)
{
    struct job job = {.mix = mix, .requantize = requantize};
    struct gguf_file *file = NULL;
    struct gguf_model *model = NULL;
    char err[512], before[32], after[32], seconds[32];
    double start = clock_seconds();
    int status = EXIT_MODEL;
    if (gguf_open(&file, from, err, sizeof err) ||
        gguf_model_create(&model, file, err, sizeof err)) {
        fprintf(stderr, "gptoss-gguf: %s\n", err);
        goto done;
    }
    job.file = file;
    job.model = model;
    job.types = base_alloc(gguf_n_tensors(file), sizeof *job.types);
    status = EXIT_FAILED;
    if (write_file(&job, to, err, sizeof err)) {
        fprintf(stderr, "gptoss-gguf: %s\n", err);
        goto done;
    }
    uint64_t bytes = gguf_file_bytes(file);
    gguf_model_destroy(model);
    gguf_close(file);
    model = NULL;
    if (gguf_open(&file, to, err, sizeof err) || gguf_model_create(&model, file, err, sizeof err)) {
        fprintf(stderr, "gptoss-gguf: %s\n", err);
        goto done;
    }
    printf("%s: %s, from %s, in %s\n", to, text_bytes(after, gguf_file_bytes(file)),
           text_bytes(before, bytes), text_seconds(seconds, clock_seconds() - start));
    status = EXIT_DONE;
done:
    free(job.types);
    gguf_model_destroy(model);
    gguf_close(file);
    return status;
}

int tools_quantize(int argc, char **argv)
{
    const char *label = NULL;
    bool requantize = false;
    const struct cli_option options[] = {
        {.type = CLI_STRING,
         .name = "to",
         .value = "LABEL",
         .out = &label,
         .text = "mxfp4, q8_0, q4_k_m, or any label that synth --mix knows"},
        {.type = CLI_FLAG,
         .name = "requantize",
         .out = &requantize,
         .text = "experts that are MXFP4 too: larger or worse, never better"},
    };
    const struct cli cli = {
        .program = "gptoss-gguf quantize",
        .summary =
            "Writes a gpt-oss model in other types; each tensor gets the type that llama.cpp "
            "gives it in files of the label.",
        .usage = "gptoss-gguf quantize --to LABEL [OPTION…] IN OUT",
        .examples = "  gptoss-gguf quantize --to q8_0 gpt-oss-20b-f16.gguf gpt-oss-20b-q8_0.gguf\n"
                    "  gptoss-gguf quantize --to q4_k_m --requantize in.gguf out.gguf\n"
                    "  gptoss-gguf diff in.gguf out.gguf       what it cost, tensor by tensor\n",
        .notes =
            "mxfp4: experts MXFP4, matrices Q8_0, the mix of the published files. q8_0: matrices "
            "Q8_0. q4_k_m: Q4_K, Q5_0 and Q8_0 by the rules of that label. Norms, biases, sinks "
            "and the router keep their type. A model in parts becomes one file. Start from the "
            "best file there is: what one quantisation lost, the next does not bring back.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .exit_codes = 1u << EXIT_DONE | 1u << EXIT_FAILED | 1u << EXIT_USAGE | 1u << EXIT_MODEL,
    };
    char **args;
    int n_args;
    int status = cli_parse(&cli, argc, argv, &args, &n_args);
    if (status)
        return status > 0 ? EXIT_DONE : EXIT_USAGE;
    const struct mix *mix = label ? mix_find(label) : NULL;
    if (!mix || n_args != 2) {
        struct text labels = {0};
        mix_labels(&labels);
        if (n_args != 2)
            fprintf(stderr, "gptoss-gguf quantize: give two files, not %d\n", n_args);
        else
            fprintf(stderr, "gptoss-gguf quantize: --to %s: %s are known\n",
                    label ? label : "LABEL", labels.bytes);
        fprintf(stderr, "gptoss-gguf quantize --help tells more\n");
        text_free(&labels);
        return EXIT_USAGE;
    }
    return run(args[0], args[1], mix, requantize);
}
