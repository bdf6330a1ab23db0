/*
 * gguf: every allocation fails once, in turn: opening says so, and nothing leaks or crashes.
 */
#include "test.h"

#include "gguf_blob.h"

static long until_failure; /* allocations that succeed; negative: all do */
static long allocations;

static bool fails(void)
{
    allocations++;
    return until_failure >= 0 && until_failure-- == 0;
}

/* Linked in place of the C library's for gguf/ and this file (-Wl,--wrap). */
void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t size);
char *__real_strdup(const char *text);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t size);
char *__wrap_strdup(const char *text);

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}
void *__wrap_calloc(size_t n, size_t size)
{
    return fails() ? NULL : __real_calloc(n, size);
}
void *__wrap_realloc(void *old, size_t size)
{
    return fails() ? NULL : __real_realloc(old, size);
}
char *__wrap_strdup(const char *text)
{
    return fails() ? NULL : __real_strdup(text);
}

static char part_paths[2][96];

static int open_all(const char *which)
{
    struct gguf_file *file;
    struct gguf_model *model = NULL;
    strcpy(err, "no sentence");
    int status = gguf_open(&file, which, err, sizeof err);
    if (!status)
        status = gguf_model_create(&model, file, err, sizeof err);
    assert_true(!status == (model != NULL));
    gguf_model_destroy(model);
    gguf_close(file);
    return status;
}

static void fails_at_each_allocation(const char *which, long least)
{
    until_failure = -1;
    allocations = 0;
    if (open_all(which))
        fail_msg("%s", err);
    long n = allocations;
    assert_true(n >= least);
    for (long i = 0; i < n; i++) {
        until_failure = i;
        int status = open_all(which);
        until_failure = -1;
        if (status != -1 || !strstr(err, "memory"))
            fail_msg("allocation %ld of %ld fails, and it says: %s", i, n, err);
    }
}

static void says_that_memory_is_out(void **state)
{
    (void)state;
    struct blob b = build_model(&(struct change){.fused = true});
    save(&b);
    free(b.bytes);
    fails_at_each_allocation(path, 8);
}

static void says_it_of_parts_too(void **state)
{
    (void)state;
    /* The model is the first part; the second has nothing. */
    struct change change = {
        .key = "split.count", .kind = 'u', .number = 2, .slack = NULL, .fused = false};
    struct blob b = build_model(&change);
    for (int i = 0; i < 2; i++) {
        FILE *out = fopen(part_paths[i], "wb");
        if (i) {
            b = start(3, 0, 2);
            key_u32(&b, "split.count", 2);
            key_u32(&b, "split.no", 1);
        }
        assert_int_equal(fwrite(b.bytes, 1, b.size, out), b.size);
        free(b.bytes);
        fclose(out);
    }
    fails_at_each_allocation(part_paths[0], 16);
    for (int i = 0; i < 2; i++)
        unlink(part_paths[i]);
}

static void says_it_while_writing(void **state)
{
    (void)state;
    for (long i = 0;; i++) {
        struct gguf_writer *w;
        until_failure = i;
        int status = gguf_writer_create(&w, path, err, sizeof err);
        if (!status) {
            gguf_writer_string(w, "general.name", "a name");
            gguf_writer_tensor(w, "t", GGUF_F32, 1, (uint64_t[]){1});
            status = gguf_writer_begin(w, err, sizeof err) ||
                     gguf_writer_data(w, "1234", 4, err, sizeof err) ||
                     gguf_writer_finish(w, err, sizeof err);
        }
        gguf_writer_destroy(w);
        bool all = until_failure >= 0; /* none failed */
        until_failure = -1;
        if (all) {
            assert_int_equal(status, 0);
            assert_true(i >= 5);
            break;
        }
        assert_true(status != 0);
    }
}

static void ignore(void *arg, const char *sentence)
{
    assert_true(!arg && sentence);
}

static void checks_tell_it_as_a_finding(void **state)
{
    (void)state;
    struct blob b = start(3, 0, 2);
    static const char *const names[] = {"tokenizer.ggml.tokens", "tokenizer.ggml.merges"};
    for (int i = 0; i < 2; i++) {
        string(&b, names[i]);
        u32(&b, GGUF_VALUE_ARRAY);
        u32(&b, GGUF_VALUE_STRING);
        u64(&b, 1);
        string(&b, "a b");
    }
    save(&b);
    free(b.bytes);
    struct gguf_file *file;
    assert_int_equal(gguf_open(&file, path, err, sizeof err), 0);
    for (long i = 0; i < 3; i++) {
        until_failure = i;
        assert_true(gguf_check_vocabulary(file, ignore, NULL) > 0);
        assert_true(until_failure < 0);
    }
    until_failure = -1;
    gguf_close(file);
}

static int make_paths(void **state)
{
    until_failure = -1;
    for (int i = 0; i < 2; i++)
        snprintf(part_paths[i], sizeof *part_paths, "/tmp/gptoss-test-memory-%d-%05d-of-00002.gguf",
                 getpid(), i + 1);
    return make_path(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_that_memory_is_out),
        cmocka_unit_test(says_it_of_parts_too),
        cmocka_unit_test(says_it_while_writing),
        cmocka_unit_test(checks_tell_it_as_a_finding),
    };
    until_failure = -1;
    return cmocka_run_group_tests(tests, make_paths, remove_path);
}
