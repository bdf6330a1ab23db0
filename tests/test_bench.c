#include "tests/test.h"

#include <unistd.h>

#include "bench/fields.h"
#include "bench/serve.h"

bool bench_interrupted(void)
{
    return false;
}

static char err[512];

#define assert_float_near(a, b)                                                                    \
    assert_true(fabs((double)(a) - (double)(b)) < 1e-9 * (1 + fabs((double)(b))))

static void expect_list(const char *text, const char *want)
{
    struct bench_list list;
    char got[256] = "";
    if (bench_list_parse("-p", text, 0, 100000, &list, err, sizeof err))
        fail_msg("\"%s\" was refused: %s", text, err);
    for (size_t i = 0; i < list.n; i++)
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%u", i ? " " : "", list.values[i]);
    assert_string_equal(got, want);
    free(list.values);
}

static void reads_lists_and_ranges_as_llama_bench_does(void **state)
{
    (void)state;
    expect_list("512", "512");
    expect_list("1,2,4", "1 2 4");
    expect_list("1-4", "1 2 3 4");
    expect_list("0-64+16", "0 16 32 48 64");
    expect_list("0-60+16", "0 16 32 48");
    expect_list("128-1024*2", "128 256 512 1024");
    expect_list("100-1000*3", "100 300 900");
    expect_list("7,1-2,8-32*2", "7 1 2 8 16 32");
    expect_list("5-5", "5");
}

static void refuses_lists_that_are_none(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "a",
                                      "1,",
                                      ",1",
                                      "1,,2",
                                      "-1",
                                      "1-",
                                      "4-1",
                                      "1-4+0",
                                      "1-4*1",
                                      "0-4*2",
                                      "1-4*",
                                      "1 2",
                                      "1-4+",
                                      "0x10",
                                      "1.5",
                                      "100001",
                                      "0-100000",
                                      "99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct bench_list list;
        err[0] = '\0';
        if (bench_list_parse("-p", bad[i], 0, 100000, &list, err, sizeof err) == 0)
            fail_msg("\"%s\" was taken", bad[i]);
        assert_null(list.values);
        assert_true(strncmp(err, "-p: ", 4) == 0);
    }
    uint32_t p, n;
    assert_int_equal(bench_pair_parse("-pg", "512,128", &p, &n, err, sizeof err), 0);
    assert_int_equal(p, 512);
    assert_int_equal(n, 128);
    assert_int_equal(bench_pair_parse("-pg", "512", &p, &n, err, sizeof err), -1);
    assert_int_equal(bench_pair_parse("-pg", "512,0", &p, &n, err, sizeof err), -1);
    assert_int_equal(bench_pair_parse("-pg", "1,2,3", &p, &n, err, sizeof err), -1);
}

static void names_tests_as_llama_bench_does(void **state)
{
    (void)state;
    char name[64];
    bench_test_name(&(struct bench_test){512, 0, 0, 1, 0}, name, sizeof name);
    assert_string_equal(name, "pp512");
    bench_test_name(&(struct bench_test){0, 128, 4096, 1, 0}, name, sizeof name);
    assert_string_equal(name, "tg128 @ d4096");
    bench_test_name(&(struct bench_test){512, 128, 0, 1, 0}, name, sizeof name);
    assert_string_equal(name, "pp512+tg128");
    assert_int_equal(bench_test_samples(&(struct bench_test){512, 0, 9, 1, 0}), 1);
    assert_int_equal(bench_test_samples(&(struct bench_test){0, 128, 9, 1, 0}), 128);
    assert_int_equal(bench_test_samples(&(struct bench_test){512, 128, 9, 1, 0}), 129);
}

static void the_deviation_is_that_of_a_sample(void **state)
{
    (void)state;
    double mean, deviation;
    bench_statistics((double[]){2, 4, 4, 4, 5, 5, 7, 9}, 8, &mean, &deviation);
    assert_true(fabs(mean - 5) < 1e-12);
    assert_true(fabs(deviation - sqrt(32.0 / 7)) < 1e-12);
    bench_statistics((double[]){3}, 1, &mean, &deviation);
    assert_true(mean == 3 && deviation == 0);
}

static void a_prompt_is_the_same_for_the_same_seed_and_sequence(void **state)
{
    (void)state;
    struct bench_vocabulary vocabulary = {.limit = 1000};
    uint32_t a[200], b[200], c[200];
    bench_prompt(&vocabulary, 5, 3, a, 200);
    bench_prompt(&vocabulary, 5, 3, b, 100); /* a shorter one is the beginning of a longer one */
    assert_memory_equal(a, b, 100 * sizeof *a);
    for (int i = 0; i < 200; i++)
        assert_true(a[i] < 1000);
    bench_prompt(&vocabulary, 5, 4, c, 200);
    assert_memory_not_equal(a, c, sizeof a);
    bench_prompt(&vocabulary, 6, 3, c, 200);
    assert_memory_not_equal(a, c, sizeof a);
}

static void a_prompt_holds_no_special_token(void **state)
{
    (void)state;
    struct gguf_file *file;
    struct gguf_model *model;
    struct bench_vocabulary vocabulary;
    uint32_t ids[5000];
    assert_int_equal(gguf_open(&file, "models/gptoss-tiny-mxfp4.gguf", err, sizeof err), 0);
    assert_int_equal(gguf_model_create(&model, file, err, sizeof err), 0);
    bench_vocabulary(model, &vocabulary);
    assert_int_equal(vocabulary.limit, 4096); /* the last ten are special, none is unused */
    assert_non_null(vocabulary.types);
    bench_prompt(&vocabulary, 1, 0, ids, 5000);
    for (int i = 0; i < 5000; i++)
        assert_true(ids[i] < 4086);
    char type[64];
    bench_model_type(model, type, sizeof type);
    assert_true(strncmp(type, "gpt-oss ", 8) == 0);
    assert_non_null(strstr(type, " MXFP4 MoE"));
    gguf_model_destroy(model);
    gguf_close(file);
}

static void finds_the_token_that_differs(void **state)
{
    (void)state;
    struct bench_test test = {.n_gen = 3, .sequences = 2};
    uint32_t ids[6] = {1, 2, 3, 4, 5, 6};
    struct bench_verify *verify = bench_verify_create(2, 2);
    bench_verify_add(verify, 0, 0, &test, ids, "1 stage, loop");
    assert_true(bench_verify_finish(verify));
    bench_verify_add(verify, 0, 0, &test, ids, "2 stages, loop");
    assert_true(bench_verify_finish(verify));
    ids[5] = 7;
    bench_verify_add(verify, 1, 0, &test, ids, "1 stage, loop"); /* another test: the first of it */
    bench_verify_add(verify, 0, 1, &test, ids, "1 stage, loop"); /* another repetition: the same */
    assert_true(bench_verify_finish(verify));
    bench_verify_add(verify, 0, 0, &test, ids, "4 stages, loop");
    assert_false(bench_verify_finish(verify));
    bench_verify_destroy(verify);
}

static void a_child_that_cannot_start_is_told_by_name(void **state)
{
    (void)state;
    struct bench_child child = {0};
    assert_int_equal(
        bench_child_start(&child, (const char *const[]){"/nowhere/gptoss", NULL}, err, sizeof err),
        -1);
    assert_non_null(strstr(err, "cannot start gptoss"));
    assert_int_equal(child.pid, 0);
}

static void a_child_is_stopped_and_its_code_is_known(void **state)
{
    (void)state;
    struct bench_child child = {0};
    int code = -1;
    setenv("GPTOSS_DEVICE", "cuda", 1);
    const char *const argv[] = {"sh", "-c", "test -z \"$GPTOSS_DEVICE\" && exit 7", NULL};
    assert_int_equal(bench_child_start(&child, argv, err, sizeof err), 0);
    while (!bench_child_ended(&child, &code))
        usleep(1000);
    assert_int_equal(code, 7);
    assert_int_equal(
        bench_child_start(&child, (const char *const[]){"sleep", "100", NULL}, err, sizeof err), 0);
    double begin = clock_seconds();
    bench_child_stop(&child, 0);
    assert_int_equal(child.pid, 0);
    assert_true(clock_seconds() - begin < 5);
}

static void folders_for_sockets_come_and_go(void **state)
{
    (void)state;
    char path[64], file[96];
    assert_int_equal(bench_folder_create(path, sizeof path, err, sizeof err), 0);
    snprintf(file, sizeof file, "%s/socket", path);
    FILE *out = fopen(file, "w");
    assert_non_null(out);
    fclose(out);
    bench_folder_remove(path);
    assert_int_equal(access(path, F_OK), -1);
    bench_folder_remove("");
}

/* ── cost ──────────────────────────────────────────────────────────────────────────────────── */

static struct gguf_tensor tensors[4] = {
    {.bytes = 1000, .row_bytes = 10}, /* embedding, output: 100 rows */
    {.bytes = 7},                     /* norms, sinks */
    {.bytes = 100},                   /* matrices of the attention, router */
    {.bytes = 3200},                  /* experts' */
};
static struct gguf_layer layers[2];
static struct gguf_model small = {.n_layers = 2,
                                  .kv_heads = 2,
                                  .head_dim = 8,
                                  .experts = 32,
                                  .active = 4,
                                  .window = 100,
                                  .layers = layers};

static void make_small_model(void)
{
    for (int i = 0; i < 2; i++) {
        const struct gguf_linear matrix = {.weight = &tensors[2]}, expert = {.weight = &tensors[3]};
        layers[i] = (struct gguf_layer){.attn_norm = &tensors[1],
                                        .attn_q = matrix,
                                        .attn_k = matrix,
                                        .attn_v = matrix,
                                        .attn_out = matrix,
                                        .sinks = &tensors[1],
                                        .ffn_norm = &tensors[1],
                                        .router = matrix,
                                        .gate = expert,
                                        .up = expert,
                                        .down = expert,
                                        .sliding = i == 1};
    }
    small.embedding = small.output = &tensors[0];
    small.output_norm = &tensors[1];
}

static void a_step_reads_weights_once_and_the_kv_of_each_row(void **state)
{
    (void)state;
    make_small_model();
    assert_float_near(bench_experts(&small, 1), 4);
    assert_float_near(bench_experts(&small, 2), 32 * (1 - pow(28.0 / 32, 2)));
    /* a layer: 3 · 7 + 5 · 100 + 3 · 3200 · 4/32; K and V of a position: 2 · 2 · 8 halves */
    double layer = 21 + 500 + 1200, kv = 64;
    assert_float_near(bench_step_bytes(&small, PLAN_KV_F16, 1, 0), 10 + 7 + 1000 + 2 * layer);
    assert_float_near(bench_step_bytes(&small, PLAN_KV_F16, 1, 500),
                      10 + 7 + 1000 + 2 * layer + kv * (500 + 100));
    /* 8 sequences in 2 stages: two groups of 4 rows, each read 10 times */
    struct bench_test test = {.n_gen = 10, .sequences = 8};
    assert_int_equal(bench_step_rows(&test, 2), 4);
    assert_float_near(bench_test_bytes(&small, PLAN_KV_F32, &test, 2),
                      20 * bench_step_bytes(&small, PLAN_KV_F32, 4, 5));
    test.n_prompt = 1;
    assert_float_near(bench_test_bytes(&small, PLAN_KV_F32, &test, 2), 0);
}

static void shares_follow_from_times(void **state)
{
    (void)state;
    make_small_model();
    const struct bench_world_options options = {.model = &small, .stages = 2};
    const struct bench_world_info info = {.bandwidth = 1e6};
    const double seconds[] = {2, 2, 4}, speed[] = {20, 20, 10}, busy[] = {3, 3.5, 7.5};
    const double others[] = {10, 25, 8};
    struct bench_result result = {.options = &options,
                                  .info = &info,
                                  .test = {.n_gen = 40, .sequences = 1},
                                  .n = 3,
                                  .seconds = seconds,
                                  .speed = speed,
                                  .busy = busy,
                                  .one_stage = 10,
                                  .replica_speed = others};
    struct bench_derived d;
    bench_derive(&result, &d);
    assert_float_near(d.bubble, 1 - 14.0 / 16);
    assert_float_near(d.speedup, 50.0 / 3 / 10);
    assert_float_near(d.replicas, 1.25); /* the median of 2, 0.8 and 1.25 */
    assert_float_near(d.bound, 3 * bench_test_bytes(&small, PLAN_KV_F32, &result.test, 2) / 8e6);
    assert_float_near(d.hop_us, 0); /* more work than time: it overlapped */
    result.n = 2;
    bench_derive(&result, &d);
    assert_float_near(d.replicas, 1.4); /* of 2 and 0.8 */
    result.n = 3;
    const double less[] = {1.5, 1.5, 3};
    result.busy = less;
    bench_derive(&result, &d);
    assert_float_near(d.hop_us, 2e6 / (40 * 3 * 2));
    const double unknown[] = {1, -1, 1};
    result.busy = unknown;
    result.replica_speed = NULL;
    bench_derive(&result, &d);
    assert_true(d.bubble < 0 && d.hop_us < 0 && d.replicas < 0);
}

/* ── serve ─────────────────────────────────────────────────────────────────────────────────── */

static void percentiles_are_near_the_exact_ones(void **state)
{
    (void)state;
    static struct serve_times times;
    assert_float_near(serve_times_percentile(&times, 50), 0);
    for (int i = 1000; i > 0; i--)
        serve_times_add(&times, i * 1e-3);
    static const double percents[] = {50, 90, 95, 99};
    for (int i = 0; i < 4; i++) {
        double got = serve_times_percentile(&times, percents[i]);
        assert_true(fabs(got - percents[i] * 1e-2) < 0.003 * got);
    }
    assert_float_near(serve_times_percentile(&times, 100), 1);
    assert_float_near(serve_times_percentile(&times, 0), 1e-3);
    assert_float_near(serve_times_mean(&times), 0.5005);
    static struct serve_times wide;
    serve_times_add(&wide, 0);
    serve_times_add(&wide, 1e6);
    serve_times_add(&wide, 5);
    assert_true(fabs(serve_times_percentile(&wide, 50) - 5) < 0.02);
    assert_float_near(serve_times_percentile(&wide, 99), 1e6);
}

static void a_log_becomes_figures(void **state)
{
    (void)state;
    static struct serve_log log;
    serve_log_create(&log, 3, 2);
    serve_log_sent(&log, 0, 10, 3, 100);
    serve_log_sent(&log, 1, 20, 2, 100.5); /* now two are under way */
    serve_log_tokens(&log, 0, 1, 101);
    serve_log_tokens(&log, 1, 2, 102); /* two tokens in one message */
    serve_log_end(&log, 1, SERVE_FINISHED, 102);
    serve_log_tokens(&log, 0, 2, 103);
    serve_log_end(&log, 0, SERVE_FINISHED, 103);
    serve_log_sent(&log, 2, 5, 1, 104); /* the last: the load is full no longer */
    serve_log_end(&log, 2, SERVE_REFUSED, 105);
    assert_int_equal(log.finished, 2);
    assert_int_equal(log.refused, 1);
    assert_int_equal(log.active, 0);
    assert_int_equal(log.tokens, 5);
    assert_int_equal(log.prompt_tokens, 30);
    assert_float_near(log.full_since, 100.5);
    assert_float_near(log.full_until, 104);
    assert_int_equal(log.full_tokens, 5);
    assert_float_near(log.begin, 100);
    assert_float_near(log.end, 105);
    assert_int_equal(log.first.n, 2);
    assert_float_near(serve_times_mean(&log.first), 1.25);
    assert_int_equal(log.gap.n, 3); /* 0, 2, 0 */
    assert_float_near(log.gap.sum, 2);
    assert_float_near(serve_times_mean(&log.whole), 2.25);
    assert_float_near(log.token.sum, 1); /* (103 − 101) / 2, and 0 */
    serve_log_free(&log);
}

static void lengths_are_numbers_ranges_and_chance(void **state)
{
    (void)state;
    struct serve_lengths lengths;
    uint64_t random = 1;
    assert_int_equal(serve_lengths_parse("-p", "1000", 1 << 20, &lengths, err, sizeof err), 0);
    assert_int_equal(serve_lengths_draw(&lengths, &random), 1000);
    assert_int_equal(serve_lengths_parse("-p", "8,100-200,~50", 300, &lengths, err, sizeof err), 0);
    assert_int_equal(lengths.n, 3);
    assert_int_equal(lengths.max, 300); /* 8 · 50, cut off */
    uint32_t eights = 0;
    for (int i = 0; i < 3000; i++) {
        uint32_t length = serve_lengths_draw(&lengths, &random);
        assert_true(length >= 1 && length <= 300);
        eights += length == 8;
    }
    assert_true(eights > 900 && eights < 1200);
    double sum = 0;
    assert_int_equal(serve_lengths_parse("-p", "~200", 1 << 20, &lengths, err, sizeof err), 0);
    for (int i = 0; i < 20000; i++)
        sum += serve_lengths_draw(&lengths, &random);
    assert_true(fabs(sum / 20000 - 200) < 6);
    static const char *const bad[] = {"",     "0",    "a",  "5-",   "9-3", "~",
                                      "~3-5", "1,,2", "1,", "2000", "-4"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (serve_lengths_parse("-p", bad[i], 1000, &lengths, err, sizeof err) == 0)
            fail_msg("\"%s\" was taken", bad[i]);
}

/* Options as a command line has them; the strings are copied, as two-letter options are replaced. */
static int parse_serve(struct serve_options *options, const char *line)
{
    static char words[20][64];
    char *argv[21], copy[512];
    int argc = 0;
    snprintf(copy, sizeof copy, "serve %s", line);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) {
        snprintf(words[argc], sizeof words[argc], "%s", word);
        argv[argc] = words[argc];
        argc++;
    }
    argv[argc] = NULL;
    return serve_parse(options, argc, argv);
}

static void serve_reads_its_options(void **state)
{
    (void)state;
    struct serve_options o;
    assert_int_equal(parse_serve(&o, "-c 1,4-6 -N 10 -p 8-9 -n ~5 -m x --launch 2 -o csv -- -a b"),
                     0);
    assert_int_equal(o.clients.n, 4);
    assert_int_equal(o.requests, 10);
    assert_int_equal(o.prompt.max, 9);
    assert_int_equal(o.gen.max, 40);
    assert_int_equal(o.launch, 2);
    assert_int_equal(o.format, BENCH_CSV);
    assert_int_equal(o.n_extra, 2);
    assert_string_equal(o.extra[0], "-a");
    free(o.clients.values);
    static const char *const bad[] = {"-c 0",          "-p x",        "--launch 1",
                                      "-o xml",        "word",        "-- --max-queue 1",
                                      "--kv-type f64", "--device gpu"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (parse_serve(&o, bad[i]) != -1)
            fail_msg("\"%s\" was taken", bad[i]);
        free(o.clients.values);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_lists_and_ranges_as_llama_bench_does),
        cmocka_unit_test(refuses_lists_that_are_none),
        cmocka_unit_test(names_tests_as_llama_bench_does),
        cmocka_unit_test(the_deviation_is_that_of_a_sample),
        cmocka_unit_test(a_prompt_is_the_same_for_the_same_seed_and_sequence),
        cmocka_unit_test(a_prompt_holds_no_special_token),
        cmocka_unit_test(finds_the_token_that_differs),
        cmocka_unit_test(a_child_that_cannot_start_is_told_by_name),
        cmocka_unit_test(a_child_is_stopped_and_its_code_is_known),
        cmocka_unit_test(folders_for_sockets_come_and_go),
        cmocka_unit_test(a_step_reads_weights_once_and_the_kv_of_each_row),
        cmocka_unit_test(shares_follow_from_times),
        cmocka_unit_test(percentiles_are_near_the_exact_ones),
        cmocka_unit_test(a_log_becomes_figures),
        cmocka_unit_test(lengths_are_numbers_ranges_and_chance),
        cmocka_unit_test(serve_reads_its_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
