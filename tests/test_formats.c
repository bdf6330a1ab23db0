/*
 * Small models with every matrix in one format, on each backend that is here, against the logits that
 * an independent program computes in float64 (tests/data/formats.py). The bounds have the room that
 * float32 needs, on a GPU halves; a wrong weight would miss them by far.
 */
#include "kernels_chain.h"

#include "base/base.h"
#include "tools/tools.h"

#include <fcntl.h>
#include <jansson.h>
#include <unistd.h>

#define GOLDEN          "tests/data/formats.json"
#define BOUND           5e-4
#define BOUND_OF_HALVES 1e-2 /* a GPU's activations, and there weights, have 11 bits */

static char path[] = "/tmp/gptoss-test-formats-XXXXXX";

static void make_model(const json_t *golden, const char *format)
{
    char *argv[48] = {strdup("synth")};
    int argc = 1;
    size_t i;
    json_t *word;
    json_array_foreach(json_object_get(golden, "sizes"), i, word)
    {
        argv[argc] = strdup(json_string_value(word));
        assert_true(++argc < 40);
    }
    const char *const rest[] = {"--type-experts", format, "--type-matrices", format, path};
    for (i = 0; i < sizeof rest / sizeof *rest; i++)
        argv[argc++] = strdup(rest[i]);
    int copy_n = argc;
    char *copy[48];
    memcpy(copy, argv, sizeof copy); /* options are read in place */
    fflush(stdout);
    int out = dup(1), nowhere = open("/dev/null", O_WRONLY);
    dup2(nowhere, 1);
    int status = tools_synth(argc, argv);
    fflush(stdout);
    dup2(out, 1);
    close(out);
    close(nowhere);
    assert_int_equal(status, EXIT_DONE);
    for (int k = 0; k < copy_n; k++)
        free(copy[k]);
}

/* The largest difference over the steps; the model's own continuation is followed. */
static double worst_of(const struct gguf_model *model, const struct kernels_options *options,
                       const json_t *golden, const json_t *steps)
{
    const json_t *prompt = json_object_get(golden, "ids");
    uint32_t n = (uint32_t)json_array_size(prompt);
    int32_t ids[64];
    double worst = 0;
    for (uint32_t i = 0; i < n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(prompt, i));
    struct chain *c = chain_create(model, options, 1, &model->n_layers,
                                   (struct kernels_stage_options){.slots = 1, .keep_logits = true});
    chain_begin(c);
    chain_row(c, 0, 0, ids, n, n - 1);
    chain_run(c);
    for (size_t step = 0; step < json_array_size(steps); step++) {
        const float *logits = chain_logits(c, 0);
        const json_t *best = json_array_get(steps, step);
        for (size_t i = 0; i < json_array_size(best); i++) {
            const json_t *pair = json_array_get(best, i);
            json_int_t id = json_integer_value(json_array_get(pair, 0));
            double off = fabs((double)logits[id] - json_number_value(json_array_get(pair, 1)));
            worst = off > worst ? off : worst;
        }
        int32_t token = (int32_t)json_integer_value(json_array_get(json_array_get(best, 0), 0));
        chain_begin(c);
        chain_row(c, 0, n + (uint32_t)step, &token, 1, 0);
        chain_run(c);
    }
    chain_destroy(c);
    return worst;
}

static void gives_the_logits_of_an_independent_program_in_every_format(void **state)
{
    (void)state;
    static const struct kernels_options backends[] = {{.device = "reference"},
                                                      {.device = "cpu", .isa = "plain"},
                                                      {.device = "cpu", .isa = "avx2"},
                                                      {.device = "cpu", .isa = "avx512"},
                                                      {.device = "cuda"}};
    json_error_t error;
    json_t *golden = json_load_file(GOLDEN, 0, &error), *steps;
    if (!golden)
        fail_msg("%s: %s", GOLDEN, error.text);
    const char *format;
    int formats = 0;
    json_object_foreach(json_object_get(golden, "formats"), format, steps)
    {
        char err[512];
        struct gguf_file *file;
        struct gguf_model *model;
        make_model(golden, format);
        if (gguf_open(&file, path, err, sizeof err) ||
            gguf_model_create(&model, file, err, sizeof err))
            fail_msg("%s", err);
        assert_string_equal(gguf_type_name(model->layers[1].down.weight->type), format);
        assert_string_equal(gguf_type_name(model->embedding->type), format);
        print_message("%-5s", format);
        for (size_t b = 0; b < sizeof backends / sizeof *backends; b++) {
            struct kernels *k;
            if (kernels_create(&k, &backends[b], err, sizeof err))
                continue; /* not an instruction set of this processor */
            kernels_destroy(k);
            double worst = worst_of(model, &backends[b], golden, steps);
            const char *name = backends[b].isa ? backends[b].isa : backends[b].device;
            print_message("  %s %.1e", name, worst);
            if (!(worst <= (strcmp(name, "cuda") ? BOUND : BOUND_OF_HALVES)))
                fail_msg("%s on %s: a logit is off by %g", format, name, worst);
        }
        print_message("\n");
        gguf_model_destroy(model);
        gguf_close(file);
        formats++;
    }
    assert_int_equal(formats, 14);
    json_decref(golden);
}

/* Row 5, last block of a matrix of layer 1. */
static void refuses_to_load_a_scale_that_is_not_finite(void **state)
{
    (void)state;
    char err[512], words[160];
    json_error_t error;
    json_t *golden = json_load_file(GOLDEN, 0, &error);
    const char *const formats[] = {"Q5_0", "MXFP4", "Q4_K", "BF16"};
    struct kernels *k;
    assert_non_null(golden);
    assert_int_equal(
        kernels_create(&k, &(struct kernels_options){.device = "cpu"}, err, sizeof err), 0);
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        struct gguf_file *file;
        struct gguf_model *model;
        make_model(golden, formats[i]);
        assert_int_equal(gguf_open(&file, path, err, sizeof err), 0);
        assert_int_equal(gguf_model_create(&model, file, err, sizeof err), 0);
        const struct gguf_tensor *up = model->layers[1].up.weight;
        uint32_t block = gguf_type_block_bytes(up->type);
        const unsigned char bad[2] = {i == 1 ? 255 : 0, i == 3 ? 0x7f : 0x7c};
        const unsigned char bf16[2] = {0x80, 0x7f};
        FILE *out = fopen(path, "r+b");
        fseek(out, (long)(up->offset + 5 * up->row_bytes + (up->row_bytes - block)), SEEK_SET);
        fwrite(i == 3 ? bf16 : bad, 1, i == 1 ? 1 : 2, out);
        fclose(out);
        snprintf(words, sizeof words,
                 "tensor %s has a %s that is NaN or infinite in row 5, %s %u:", up->name,
                 i == 3 ? "number" : "scale", i == 3 ? "column" : "block",
                 (unsigned)(up->row_bytes / block - 1));
        struct kernels_stage *stage;
        struct kernels_stage_options options = {.layer_count = 2,
                                                .head_count = model->vocabulary,
                                                .slots = 1,
                                                .context = 64,
                                                .block_tokens = 16,
                                                .full_blocks = 4,
                                                .window_blocks = 4,
                                                .lanes = 1,
                                                .step_rows = 1,
                                                .step_tokens = 16,
                                                .step_samples = 1};
        assert_int_equal(kernels_stage_create(&stage, k, model, &options, err, sizeof err), -1);
        if (!strstr(err, words))
            fail_msg("says \"%s\", not \"%s\"", err, words);
        options.layer_count = 1; /* a rank that does not have the layer loads */
        options.head_count = 0;
        if (kernels_stage_create(&stage, k, model, &options, err, sizeof err))
            fail_msg("%s", err);
        kernels_stage_destroy(stage);
        gguf_model_destroy(model);
        gguf_close(file);
    }
    kernels_destroy(k);
    json_decref(golden);
}

static int make_path(void **state)
{
    (void)state;
    int fd = mkstemp(path);
    return fd < 0 || close(fd);
}

static int remove_path(void **state)
{
    (void)state;
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_the_logits_of_an_independent_program_in_every_format),
        cmocka_unit_test(refuses_to_load_a_scale_that_is_not_finite),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
