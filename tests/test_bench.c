#include "tests/test.h"

#include <unistd.h>

#include "bench/bench.h"

bool bench_interrupted(void)
{
    return false;
}

static char err[512];

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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
