/*
 * The cost of a step: what the fit learns from measured steps, and what it does not unlearn.
 */
#include "tests/test.h"

#include "tests/tiny.h"

#include <math.h>

#include "plan/plan.h"

static char err[512];

static struct cost_stage first_stage(uint32_t ranks)
{
    struct plan *plan;
    struct plan_options ask = {.n_ranks = ranks};
    struct cost_stage stage;
    assert_int_equal(plan_create(&plan, model, &ask, err, sizeof err), 0);
    cost_stage_init(&stage, model, plan, 0, NULL);
    plan_destroy(plan);
    return stage;
}

static struct cost_work decode(uint32_t rows, uint32_t position)
{
    struct cost_work work = {0};
    for (uint32_t i = 0; i < rows; i++)
        cost_add(&work, model, position + i % 7, 1, 1);
    return work;
}

static struct cost_work chunk(uint32_t position, uint32_t count)
{
    struct cost_work work = {0};
    cost_add(&work, model, position, count, 0);
    return work;
}

/* A machine that the terms can describe, but whose rates are none of the guessed ones; and each step
 * is off by up to `noise`. */
static double machine(const struct cost_work *work, double noise, uint64_t *random)
{
    double share = 1 - pow(1 - (double)model->active / model->experts, work->tokens);
    double seconds = 400e-6 + 900e-6 * share + 11e-6 * work->tokens + 30e-6 * work->rows +
                     0.02e-6 * work->full_reads + 0.003e-6 * work->full_pairs +
                     25e-6 * work->samples;
    double draw = (double)(test_random(random) % 20001) / 10000 - 1;
    return seconds * (1 + noise * draw);
}

static void assert_near(const struct cost_stage *stage, const struct cost_work *work, double bound,
                        const char *what)
{
    uint64_t random = 1;
    double want = machine(work, 0, &random), have = cost_seconds(stage, work);
    if (fabs(have - want) > bound * want)
        fail_msg("%s: %.1f us, want %.1f us", what, have * 1e6, want * 1e6);
}

static void work_counts_what_attention_reads(void **state)
{
    (void)state;
    uint32_t window = model->window;
    for (uint32_t position = 0; position < 3 * window; position += 17)
        for (uint32_t count = 1; count < 2 * window; count += 13) {
            struct cost_work work = chunk(position, count);
            double full = 0, windowed = 0;
            for (uint32_t p = position; p < position + count; p++) {
                full += p + 1;
                windowed += p + 1 < window ? p + 1 : window;
            }
            assert_true(fabs(work.full_pairs - full) <= 1e-6 * full);
            assert_true(fabs(work.window_pairs - windowed) <= 1e-6 * windowed);
            assert_true(fabs(work.full_reads - position - count) < 1e-9);
            double back = position < window - 1 ? position : window - 1;
            assert_true(fabs(work.window_reads - back - count) < 1e-9);
        }
}

static void the_fit_finds_what_steps_cost(void **state)
{
    (void)state;
    struct cost_stage stage = first_stage(1);
    uint64_t random = 7;
    for (int i = 0; i < 3000; i++) {
        struct cost_work work = decode(1 + (uint32_t)(test_random(&random) % 64),
                                       (uint32_t)(test_random(&random) % 4000));
        if (i % 3 == 0)
            cost_add(&work, model, (uint32_t)(test_random(&random) % 4000),
                     2 + (uint32_t)(test_random(&random) % 500), i % 2);
        cost_observe(&stage, &work, machine(&work, 0.05, &random));
    }
    for (uint32_t rows = 1; rows <= 64; rows *= 4)
        for (uint32_t position = 10; position < 4000; position += 1300) {
            struct cost_work work = decode(rows, position);
            assert_near(&stage, &work, 0.08, "decode");
        }
    for (uint32_t count = 32; count <= 512; count *= 2) {
        struct cost_work work = chunk(1000, count);
        assert_near(&stage, &work, 0.08, "a prompt's chunk");
    }
    if (!(stage.error < 0.06))
        fail_msg("the mean error is %.3f", stage.error);
}

static void decoding_for_long_does_not_unlearn_prompts(void **state)
{
    (void)state;
    struct cost_stage stage = first_stage(1);
    uint64_t random = 7;
    for (uint32_t i = 0; i < 100; i++) {
        struct cost_work work = chunk(i * 30, 64 + 4 * i);
        cost_observe(&stage, &work, machine(&work, 0.02, &random));
        work = decode(1 + i % 16, 100 + i);
        cost_observe(&stage, &work, machine(&work, 0.02, &random));
    }
    for (uint32_t i = 0; i < 20000; i++) {
        struct cost_work work = decode(16, 300 + i % 3000);
        cost_observe(&stage, &work, machine(&work, 0.02, &random));
    }
    struct cost_work work = decode(16, 1800);
    assert_near(&stage, &work, 0.08, "decode");
    work = chunk(1000, 256);
    assert_near(&stage, &work, 0.15, "a prompt's chunk");
}

static void a_step_that_was_held_up_does_not_spoil_the_fit(void **state)
{
    (void)state;
    struct cost_stage stage = first_stage(1);
    uint64_t random = 3;
    for (uint32_t i = 0; i < 500; i++) {
        struct cost_work work = decode(8, 100 + i);
        cost_observe(&stage, &work, i % 100 == 99 ? 10.0 : machine(&work, 0.02, &random));
    }
    struct cost_work work = decode(8, 600);
    assert_near(&stage, &work, 0.1, "decode");
    double before = cost_seconds(&stage, &work);
    cost_observe(&stage, &work, NAN);
    cost_observe(&stage, &work, -1);
    cost_observe(&stage, &work, INFINITY);
    assert_true(cost_seconds(&stage, &work) == before);
}

static void what_was_never_seen_keeps_its_order(void **state)
{
    (void)state;
    struct cost_stage stage = first_stage(2);
    uint64_t random = 3;
    for (uint32_t i = 0; i < 1000; i++) {
        struct cost_work work = decode(4, 100 + i);
        cost_observe(&stage, &work, machine(&work, 0.1, &random));
    }
    double last = 0;
    for (uint32_t count = 1; count < 4096; count *= 2) {
        struct cost_work work = chunk(0, count);
        double seconds = cost_seconds(&stage, &work);
        assert_true(isfinite(seconds) && seconds > last);
        last = seconds;
    }
    for (int i = 0; i < COST_TERMS; i++)
        assert_true(stage.factor[i] > 0 && stage.factor[i] <= 1000);
}

/* A third of the steps takes half as long again. */
static void steps_of_one_kind_differ_as_they_did(void **state)
{
    (void)state;
    struct cost_stage stage = first_stage(1);
    uint64_t random = 3;
    double spread[COST_SPREAD], sum = 0;
    cost_spread(&stage, spread);
    for (int k = 0; k < COST_SPREAD; k++)
        assert_true(spread[k] == 1);
    for (uint32_t i = 0; i < 6000; i++) {
        struct cost_work work = decode(8, 100 + i % 500);
        cost_observe(&stage, &work, machine(&work, 0, &random) * (i % 3 ? 1 : 1.5));
    }
    cost_spread(&stage, spread);
    for (int k = 0; k < COST_SPREAD; k++) {
        assert_true(k == 0 || spread[k] >= spread[k - 1]);
        sum += spread[k];
    }
    assert_true(fabs(sum - COST_SPREAD) < 1e-6);
    /* The mean is 7/6 of the shorter ones. */
    if (fabs(spread[5] - 6 / 7.0) > 0.04 || fabs(spread[15] - 6 / 7.0) > 0.04 ||
        fabs(spread[28] - 9 / 7.0) > 0.06)
        fail_msg("%.3f %.3f %.3f", spread[5], spread[15], spread[28]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(work_counts_what_attention_reads),
        cmocka_unit_test(the_fit_finds_what_steps_cost),
        cmocka_unit_test(decoding_for_long_does_not_unlearn_prompts),
        cmocka_unit_test(a_step_that_was_held_up_does_not_spoil_the_fit),
        cmocka_unit_test(steps_of_one_kind_differ_as_they_did),
        cmocka_unit_test(what_was_never_seen_keeps_its_order),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
