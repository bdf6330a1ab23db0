/*
 * The bundled models against their golden files: for each case the greedy continuation and the five best
 * logits of each step, as independent programs compute them in float32 and float64.
 *
 *     test_golden [DEVICE[:ISA]]…    default: cpu and fast with AVX-512 and AVX2, or plain if there is
 *                                    neither; fast: cpu with int8 activations
 */
#include "kernels_chain.h"

#include <jansson.h>

#define MODELS "models/gptoss-tiny-"

/* MXFP4 and Q8_0; Q4_K, Q5_0 and Q8_0. */
static const char *const models[] = {"mxfp4", "Q4_K_M"};
static const char *tested;

static char device[32], isa[32];
static bool fast;

/* What a device is held to: the same token where the golden margin is larger; a share of the logits
 * that are close, and none that is farther off than `worst`. A GPU's 16-bit activations turn a near
 * tie of a router now and then. */
struct bounds {
    enum kernels_kv_type kv_type;
    double margin, close, share, worst;
};
static const struct bounds of_float = {KERNELS_KV_F32, 0.05, 2e-2, 1, 2e-2};
static const struct bounds of_half = {KERNELS_KV_F16, 0.25, 0.1, 0.9, 10};
/* int8 activations move logits by about 0.1, and by more where a near tie of a router turns. */
static const struct bounds of_fast = {KERNELS_KV_F32, 0.5, 0.25, 0.85, 4};
static const struct bounds *bounds = &of_float;

struct score {
    double worst;
    unsigned long compared, close;
    char where[80];
};

/* A GPU's logits where its routers choose what the reference's choose. */
static const struct bounds of_forced = {KERNELS_KV_F16, 0.25, 0.1, 0.9, 0.15};

/* Compares one step's reported logits with the golden ones, on the ids that both lists have. */
static void compare_top(const struct kernels_sample *sample, const json_t *golden, const char *name,
                        size_t step, struct score *score)
{
    size_t i;
    json_t *pair;
    json_array_foreach(golden, i, pair)
    {
        json_int_t id = json_integer_value(json_array_get(pair, 0));
        double want = json_number_value(json_array_get(pair, 1));
        for (uint32_t j = 0; j < sample->n_top; j++) {
            if (sample->top[j].id != id)
                continue;
            double off = fabs((double)sample->top[j].logit - want);
            score->compared++;
            score->close += off <= bounds->close;
            if (off > score->worst) {
                score->worst = off;
                snprintf(score->where, sizeof score->where, "%.40s step %zu", name, step);
            }
        }
    }
}

static void run_case(struct chain *c, const json_t *item, struct score *score)
{
    const char *name = json_string_value(json_object_get(item, "name"));
    const json_t *prompt = json_object_get(item, "prompt"),
                 *greedy = json_object_get(item, "greedy");
    const json_t *top5 = json_object_get(item, "top5");
    uint32_t n = (uint32_t)json_array_size(prompt);
    int32_t *ids = calloc(n, sizeof *ids);
    for (uint32_t i = 0; i < n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(prompt, i));

    for (uint32_t done = 0; done < n;) {
        uint32_t count = n - done < 100 ? n - done : 100;
        chain_begin(c);
        struct kernels_row *row =
            chain_row(c, 0, done, ids + done, count, done + count == n ? count - 1 : count);
        row->top_logits = 5;
        chain_run(c);
        done += count;
    }
    for (size_t step = 0; step < json_array_size(greedy); step++) {
        const struct kernels_sample *sample = chain_sample(c, 0);
        const json_t *best = json_array_get(top5, step);
        compare_top(sample, best, name, step, score);
        json_int_t want = json_integer_value(json_array_get(greedy, step));
        double margin = json_number_value(json_array_get(json_array_get(best, 0), 1)) -
                        json_number_value(json_array_get(json_array_get(best, 1), 1));
        if (sample->token != want) {
            if (margin > bounds->margin)
                fail_msg("%s step %zu: token %d, golden %lld with a margin of %.3f", name, step,
                         sample->token, (long long)want, margin);
            break;
        }
        chain_begin(c);
        struct kernels_row *row =
            chain_row(c, 0, n + (uint32_t)step, &(int32_t){KERNELS_TOKEN_SAMPLED}, 1, 0);
        row->top_logits = 5;
        chain_run(c);
    }
    free(ids);
}

static void agrees_with_the_golden_file(void **state)
{
    (void)state;
    char err[256];
    struct gguf_file *file;
    struct gguf_model *model;
    char path[256], golden_path[256];
    snprintf(path, sizeof path, MODELS "%s.gguf", tested);
    snprintf(golden_path, sizeof golden_path, MODELS "%s.golden.json", tested);
    if (gguf_open(&file, path, err, sizeof err) || gguf_model_create(&model, file, err, sizeof err))
        fail_msg("%s", err);
    json_error_t error;
    json_t *golden = json_load_file(golden_path, 0, &error);
    if (!golden)
        fail_msg("%s: %s", golden_path, error.text);

    const struct kernels_options options = {
        .device = device, .isa = isa[0] ? isa : NULL, .fast = fast};
    struct chain *c =
        chain_create(model, &options, 1, &model->n_layers,
                     (struct kernels_stage_options){.slots = 1, .kv_type = bounds->kv_type});
    struct score score = {0};
    size_t i;
    json_t *item;
    json_array_foreach(golden, i, item) run_case(c, item, &score);
    print_message(
        "%s on %s%s%s%s: %zu cases, %lu logits, largest difference %.2e (%s), %.2f %% within %g\n",
        tested, device, isa[0] ? " " : "", isa, fast ? ", int8 activations" : "", i, score.compared,
        score.worst, score.where, 100.0 * (double)score.close / (double)score.compared,
        bounds->close);
    assert_true(score.worst <= bounds->worst);
    assert_true((double)score.close >= bounds->share * (double)score.compared);
    chain_destroy(c);
    json_decref(golden);
    gguf_model_destroy(model);
    gguf_close(file);
}

/* The reference runs a case and writes down the experts, the device is made to choose the same: what
 * is left of the difference is rounding. */
static void agrees_where_it_chooses_the_references_experts(void **state)
{
    (void)state;
    enum { CONTEXT = 1024 };
    char err[256], path[256], golden_path[256];
    struct gguf_file *file;
    struct gguf_model *model;
    snprintf(path, sizeof path, MODELS "%s.gguf", tested);
    snprintf(golden_path, sizeof golden_path, MODELS "%s.golden.json", tested);
    if (gguf_open(&file, path, err, sizeof err) || gguf_model_create(&model, file, err, sizeof err))
        fail_msg("%s", err);
    json_t *golden = json_load_file(golden_path, 0, NULL), *item;
    assert_non_null(golden);
    struct kernels_stage_options stage = {
        .slots = 1, .kv_type = KERNELS_KV_F32, .context = CONTEXT};
    stage.experts = calloc((size_t)model->n_layers * CONTEXT * model->active, sizeof(int32_t));
    const struct kernels_options reference = {.device = "cpu"}, forced = {.device = device};
    struct score score = {0}, unused = {0};
    size_t i;
    json_array_foreach(golden, i, item)
    {
        bounds = &of_float;
        struct chain *c = chain_create(model, &reference, 1, &model->n_layers, stage);
        run_case(c, item, &unused);
        chain_destroy(c);
        bounds = &of_forced;
        stage.kv_type = bounds->kv_type;
        c = chain_create(model, &forced, 1, &model->n_layers, stage);
        run_case(c, item, &score);
        chain_destroy(c);
        stage.kv_type = of_float.kv_type;
    }
    print_message("%s on %s with the reference's experts: %zu cases, %lu logits, largest "
                  "difference %.3f (%s), %.2f %% within %g\n",
                  tested, device, i, score.compared, score.worst, score.where,
                  100.0 * (double)score.close / (double)score.compared, bounds->close);
    assert_true(score.compared > 0 && score.worst <= bounds->worst);
    assert_true((double)score.close >= bounds->share * (double)score.compared);
    free(stage.experts);
    json_decref(golden);
    gguf_model_destroy(model);
    gguf_close(file);
}

static bool is_here(const char *text)
{
    char err[128];
    struct kernels *k;
    snprintf(device, sizeof device, "%.*s", (int)strcspn(text, ":"), text);
    snprintf(isa, sizeof isa, "%s", strchr(text, ':') ? strchr(text, ':') + 1 : "");
    fast = !strcmp(device, "fast");
    if (fast)
        snprintf(device, sizeof device, "cpu");
    const struct kernels_options options = {.device = device, .isa = isa[0] ? isa : NULL};
    if (kernels_create(&k, &options, err, sizeof err)) {
        print_message("not tested here: %s\n", err);
        return false;
    }
    kernels_destroy(k);
    return true;
}

static int run(const char *text)
{
    bool cuda = !strcmp(device, "cuda");
    const struct CMUnitTest tests[] = {cmocka_unit_test(agrees_with_the_golden_file)};
    const struct CMUnitTest forced[] = {
        cmocka_unit_test(agrees_where_it_chooses_the_references_experts)};
    int failed = 0;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        tested = models[i];
        bounds = cuda ? &of_half : fast ? &of_fast : &of_float;
        failed |= cmocka_run_group_tests_name(text, tests, NULL, NULL);
        if (cuda)
            failed |= cmocka_run_group_tests_name("forced", forced, NULL, NULL);
    }
    return failed;
}

int main(int argc, char **argv)
{
    int failed = 0, ran = 0;
    for (int i = 1; i < argc; i++) {
        bool here = is_here(argv[i]);
        if (!here && !strcmp(argv[i], "cuda"))
            return 77;
        failed |= !here || run(argv[i]);
    }
    if (argc > 1)
        return failed;
    if (is_here("cpu:avx512"))
        failed |= run("cpu:avx512"), ran++;
    if (is_here("cpu:avx2"))
        failed |= run("cpu:avx2"), ran++;
    if (!ran && is_here("cpu:plain"))
        failed |= run("cpu:plain");
    if (is_here("fast"))
        failed |= run("fast");
    return failed;
}
