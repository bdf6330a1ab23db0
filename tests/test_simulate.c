/*
 * The simulator: the same options give the same result, and what it says of simple machines is what
 * arithmetic says.
 */
#include "tests/test.h"

#include <math.h>
#include <unistd.h>

#include "bench/simulate.h"
#include "tests/tiny.h"

bool bench_interrupted(void)
{
    return false;
}

static char err[512];

/* Stages that are all alike: `step` seconds a step and `token` seconds a token. */
static struct sim_options machine(uint32_t n_stages, double step, double token)
{
    static struct cost_stage stages[64];
    for (uint32_t s = 0; s < n_stages; s++) {
        stages[s] = (struct cost_stage){.not_chosen = -1};
        stages[s].unit[COST_STEP] = step;
        stages[s].unit[COST_TOKENS] = token;
        for (int i = 0; i < COST_TERMS; i++)
            stages[s].factor[i] = 1;
        for (int i = 0; i < COST_CURVE; i++)
            stages[s].curve[0][i] = stages[s].curve[1][i] = 1;
    }
    return (struct sim_options){.model = model,
                                .path = "/models/simulated.gguf",
                                .stages = stages,
                                .n_stages = n_stages,
                                .coordinator = {.context = 1024, .sequences = 64},
                                .requests = 128,
                                .prompt = 100,
                                .output = 200};
}

static struct sim_result run(const struct sim_options *o)
{
    struct sim_result result;
    if (sim_run(o, &result, err, sizeof err))
        fail_msg("%s", err);
    assert_int_equal(result.finished, o->requests);
    assert_int_equal(result.failed, 0);
    return result;
}

static void the_same_options_give_the_same_result(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        struct sim_options o = machine(3, 1e-3, 10e-6);
        o.spread = 0.5;
        o.hop_seconds = 50e-6;
        o.link_seconds = 60e-6;
        o.clients = kind == 1 ? 20 : 0;
        o.rate = kind == 2 ? 30 : 0;
        struct sim_result a = run(&o), b = run(&o);
        assert_memory_equal(&a, &b, sizeof a);
        o.seed = 1;
        struct sim_result c = run(&o);
        assert_true(c.seconds != a.seconds);
    }
}

/* One stage, one request: the prompt in steps of step_tokens, then a token a step. */
static void one_request_takes_what_its_steps_take(void **state)
{
    (void)state;
    struct sim_options o = machine(1, 1e-3, 10e-6);
    o.requests = 1;
    struct sim_result r = run(&o);
    double first = 1e-3 + 100 * 10e-6, token = 1e-3 + 10e-6;
    assert_true(fabs(r.first_token.p50 - first) < 1e-5);
    assert_true(fabs(r.token.p50 - token) < 1e-5);
    assert_true(fabs(r.seconds - first - 199 * token) < 1e-3);
    assert_int_equal(r.steps, 200);
    assert_true(r.bubble < 0.01);
}

static void equal_stages_without_hops_are_busy(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 16; n *= 2) {
        struct sim_options o = machine(n, 2e-3, 10e-6);
        struct sim_result r = run(&o);
        if (r.steady_bubble > 0.05)
            fail_msg("%u stages: %.1f %% idle", n, 100 * r.steady_bubble);
    }
}

/* Each sequence's rows are a round of the pipeline apart, whatever happens around them. */
static void as_many_sequences_as_stages_keep_them_busy(void **state)
{
    (void)state;
    for (uint32_t n = 2; n <= 16; n *= 2) {
        struct sim_options o = machine(n, 1e-3, 0);
        o.clients = n;
        o.requests = 4 * n;
        o.prompt = 20;
        o.output = 400;
        o.link_seconds = 60e-6;
        struct sim_result r = run(&o);
        if (r.steady_bubble > 0.05 || r.token.p90 > 1.1 * r.token.p50)
            fail_msg("%u stages: %.1f %% idle, %.2f ms a token, 9 of 10 below %.2f ms", n,
                     100 * r.steady_bubble, 1e3 * r.token.p50, 1e3 * r.token.p90);
    }
}

/* A single sequence passes the stages one after the other: it gains nothing from them, and hops add. */
static void one_sequence_gains_nothing_from_stages(void **state)
{
    (void)state;
    struct sim_options o = machine(4, 1e-3, 0);
    o.requests = 1;
    o.hop_seconds = 100e-6;
    struct sim_result r = run(&o);
    /* Three hops, two for the rows and the replies of the head, one for the token. */
    assert_true(fabs(r.token.p50 - (4 * 1e-3 + 6 * 100e-6)) < 1e-5);
    assert_true(fabs(r.steady_bubble - (1 - 1 / 4.6)) < 0.01);
}

static void prompts_do_not_stall_tokens_for_longer_than_the_gap(void **state)
{
    (void)state;
    struct sim_options o = machine(1, 1e-3, 50e-6);
    o.coordinator.context = 4096;
    o.coordinator.sequences = 16;
    o.coordinator.step_tokens = 2048;
    o.coordinator.gap_us = 20000;
    o.requests = 60;
    o.prompt = 2000;
    o.output = 100;
    o.spread = 0.5;
    o.clients = 8;
    struct sim_result r = run(&o);
    /* Two steps may be under way when the rate is learned; then each keeps to the gap. */
    if (r.worst_gap > 0.045)
        fail_msg("a token came %.1f ms after the one before", 1e3 * r.worst_gap);
    o.coordinator.gap_us = 100000;
    struct sim_result loose = run(&o);
    assert_true(loose.worst_gap > r.worst_gap);
}

/* Two stages whose steps take 0.8 or 1.2 of the mean by chance: with a group of rows each, the one that is
 * done first waits, and a round takes 0.8 in one of four cases, 1.2 in the others. */
static void stages_with_uneven_steps_wait_for_each_other(void **state)
{
    (void)state;
    double spread[2][COST_SPREAD];
    for (int i = 0; i < COST_SPREAD; i++)
        spread[0][i] = spread[1][i] = i % 2 ? 0.8 : 1.2;
    struct sim_costs costs = {.n = 2, .spread = spread};
    struct sim_options o = machine(2, 1e-3, 0);
    o.clients = 2;
    o.requests = 8;
    o.prompt = 20;
    o.output = 900;
    o.coordinator.step_tokens = 64;
    double even = run(&o).token.p50;
    o.costs = &costs;
    double uneven = run(&o).token.p50;
    if (fabs(uneven / even - 1.1) > 0.01)
        fail_msg("%.3f ms a token for %.3f ms: %.3f", uneven * 1e3, even * 1e3, uneven / even);
}

static void costs_are_read_as_they_were_written(void **state)
{
    (void)state;
    char path[] = "/tmp/test_simulate_XXXXXX";
    int fd = mkstemp(path);
    FILE *out = fdopen(fd, "w");
    fputs("{\"gpu\": true, \"bandwidth\": 3e12, \"context\": 512, \"kv_type\": 1, \"stages\": [\n"
          "{\"steps\": 10, \"bias\": 1.5, \"seconds\": {\"step\": 1e-3, \"head\": 0},\n"
          " \"factors\": {\"step\": 2, \"tokens\": 3}, \"curve\": [1.5], \"prompt_curve\": [],\n"
          " \"spread\": [3]}]}",
          out);
    fclose(out);
    struct sim_costs costs;
    assert_int_equal(sim_costs_read(&costs, path, err, sizeof err), 0);
    assert_int_equal(costs.n, 1);
    assert_true(costs.gpu && costs.context == 512 && costs.kv_type == PLAN_KV_F16);
    assert_true(costs.stages[0].factor[COST_STEP] == 3);
    assert_true(costs.stages[0].curve[0][0] == 1.5 && costs.stages[0].curve[0][1] == 1);
    assert_true(fabs(costs.spread[0][0] - 3 * costs.spread[0][1]) < 1e-9);
    sim_costs_free(&costs);
    static const char *const bad[] = {"", "[]", "{\"stages\": []}", "{\"stages\": [3]}", "{"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        out = fopen(path, "w");
        fputs(bad[i], out);
        fclose(out);
        assert_int_equal(sim_costs_read(&costs, path, err, sizeof err), -1);
        assert_non_null(strstr(err, path));
    }
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_options_give_the_same_result),
        cmocka_unit_test(one_request_takes_what_its_steps_take),
        cmocka_unit_test(equal_stages_without_hops_are_busy),
        cmocka_unit_test(as_many_sequences_as_stages_keep_them_busy),
        cmocka_unit_test(one_sequence_gains_nothing_from_stages),
        cmocka_unit_test(prompts_do_not_stall_tokens_for_longer_than_the_gap),
        cmocka_unit_test(stages_with_uneven_steps_wait_for_each_other),
        cmocka_unit_test(costs_are_read_as_they_were_written),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
