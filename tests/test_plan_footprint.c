/*
 * What a plan says a stage takes, against what the backends say.
 */
#include "tests/test.h"

#include "kernels/kernels.h"
#include "plan/plan.h"

static char err[512];

static void compare(const struct gguf_model *model, const struct kernels *k,
                    const struct plan *plan, const char *device, uint64_t slack)
{
    bool gpu = strcmp(device, "cuda") == 0;
    for (uint32_t s = 0; s < plan->n_stages; s++) {
        const struct plan_stage *stage = &plan->stages[s];
        struct kernels_stage_options options = {.layer_first = stage->layer_first,
                                                .layer_count = stage->layer_count,
                                                .head_first = stage->head_first,
                                                .head_count = stage->head_count,
                                                .head_parts = plan->head_counts,
                                                .n_head_parts =
                                                    plan->head_jobs ? plan->n_stages : 0,
                                                .head_jobs = plan->head_jobs,
                                                .vocabulary_limit = plan->vocabulary_limit,
                                                .kv_type = (enum kernels_kv_type)plan->kv_type,
                                                .block_tokens = plan->block_tokens,
                                                .full_blocks = plan->full_blocks,
                                                .window_blocks = plan->window_blocks,
                                                .slots = plan->sequences,
                                                .context = plan->context,
                                                .lanes = plan->lanes,
                                                .step_rows = plan->step_rows,
                                                .step_tokens = plan->step_tokens,
                                                .step_samples = plan->step_samples};
        struct kernels_footprint footprint;
        kernels_stage_footprint(k, model, &options, &footprint);
        /* On a GPU matrices are padded to tiles and rows of it to chunks; tiny ones by much. The
         * reference, which nobody plans for, leaves them in the file. */
        if (strcmp(device, "cpu") == 0)
            assert_int_equal(stage->weights_bytes, footprint.weights_bytes);
        assert_int_equal(stage->kv_bytes, footprint.kv_bytes);
        uint64_t planned = stage->activation_bytes, taken = footprint.activation_bytes;
        if (planned < taken || planned > taken + taken / (gpu ? 32 : 4) + slack)
            fail_msg("stage %u of %u: activations are planned as %llu bytes, and take %llu", s,
                     plan->n_stages, (unsigned long long)planned, (unsigned long long)taken);
    }
}

static void compare_all(const struct gguf_model *model)
{
    static const char *const devices[] = {"reference", "cpu", "cpu", "cuda"};
    static const struct plan_options sizes[] = {
        {.context = 0},
        {.context = 131072, .sequences = 4, .step_tokens = 128, .kv_type = PLAN_KV_F16},
        {.context = 100, .sequences = 1, .step_tokens = 16, .kv_type = PLAN_KV_BF16},
        {.context = 32768, .sequences = 256, .step_tokens = 2048, .kv_type = PLAN_KV_F16},
    };
    for (size_t d = 0; d < sizeof devices / sizeof *devices; d++) {
        struct kernels *k;
        bool fast = d == 2;
        struct kernels_options options = {.device = devices[d], .threads = 8, .fast = fast};
        /* The plan allows for the scratch of threads, which the others do without. */
        bool cpu = strcmp(devices[d], "cpu") == 0, gpu = strcmp(devices[d], "cuda") == 0;
        uint64_t slack = cpu ? 1 << 20 : gpu ? 2 << 20 : 8 << 20;
        struct plan_rank ranks[4] = {{.weights_in_place = false}};
        if (kernels_create(&k, &options, err, sizeof err)) {
            assert_true(gpu);
            continue;
        }
        for (uint32_t n = 1; n <= 4; n++)
            for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
                struct plan_options ask = sizes[i];
                struct plan *plan;
                ask.n_ranks = n;
                ask.ranks = gpu ? ranks : NULL;
                /* Only CPUs hold float activations as integers, which take more. */
                ask.fast = fast || strcmp(devices[d], "reference") == 0;
                if (plan_create(&plan, model, &ask, err, sizeof err))
                    fail_msg("%s", err);
                compare(model, k, plan, devices[d], slack);
                plan_destroy(plan);
            }
        kernels_destroy(k);
    }
}

static void plans_take_what_backends_take(void **state)
{
    (void)state;
    struct gguf_file *file;
    struct gguf_model *model;
    assert_int_equal(gguf_open(&file, "models/gptoss-tiny-mxfp4.gguf", err, sizeof err), 0);
    assert_int_equal(gguf_model_create(&model, file, err, sizeof err), 0);
    compare_all(model);
    /* gpt-oss-20b's sizes, as far as activations and KV depend on them. */
    model->hidden = model->expert_ffn = 2880;
    model->heads = 64;
    model->kv_heads = 8;
    model->experts = 32;
    compare_all(model);
    gguf_model_destroy(model);
    gguf_close(file);
    /* K-quants, whose repacked form takes more. */
    assert_int_equal(gguf_open(&file, "models/gptoss-tiny-Q4_K_M.gguf", err, sizeof err), 0);
    assert_int_equal(gguf_model_create(&model, file, err, sizeof err), 0);
    compare_all(model);
    gguf_model_destroy(model);
    gguf_close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_take_what_backends_take),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
