/*
 * tokenizer_create: what a file's keys mean, on small vocabularies that are made up here, and which
 * keys are refused.
 */
#include "test.h"

#include <unistd.h>

#include "coordinator/tokenizer.h"

static char err[512];

enum { MADE_TOKENS = 262 }; /* 256 bytes, ab, bc, abc, one special, two unused */

/* What a test changes before the file is written. */
struct made {
    const char *model, *pre;
    struct gguf_string tokens[MADE_TOKENS];
    int32_t types[MADE_TOKENS];
    uint32_t n_tokens, n_types, n_merges;
    struct gguf_string merges[8];
    uint32_t end;
    char alphabet[256][2];
};

static void set_string(struct gguf_string *s, const char *value)
{
    *s = (struct gguf_string){value, strlen(value)};
}

static void make(struct made *m)
{
    *m = (struct made){.model = "gpt2", .pre = "gpt-4o", .end = 259};
    unsigned other = 0x100;
    for (unsigned byte = 0; byte < 256; byte++) {
        bool itself = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
        unsigned c = itself ? byte : other++;
        char *b = m->alphabet[byte];
        b[0] = (char)(c < 0x80 ? c : 0xc0 | c >> 6);
        b[1] = (char)(0x80 | (c & 0x3f));
        m->tokens[byte] = (struct gguf_string){b, c < 0x80 ? 1 : 2};
    }
    static const char *const rest[] = {"ab", "bc", "abc", "<|return|>", "[PAD260]", "[PAD260]"};
    static const int32_t types[] = {1, 1, 1, 3, 5, 5};
    for (uint32_t i = 0; i < MADE_TOKENS; i++) {
        if (i >= 256)
            set_string(&m->tokens[i], rest[i - 256]);
        m->types[i] = i >= 256 ? types[i - 256] : 1;
    }
    m->n_tokens = m->n_types = MADE_TOKENS;
    set_string(&m->merges[m->n_merges++], "a b");
    set_string(&m->merges[m->n_merges++], "b c");
    set_string(&m->merges[m->n_merges++], "ab c");
    set_string(&m->merges[m->n_merges++], "a bc");
}

static int create(struct tokenizer **t, const struct made *m)
{
    char path[] = "/tmp/gptoss-test-tokenizer-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    struct gguf_writer *w;
    assert_int_equal(gguf_writer_create(&w, path, err, sizeof err), 0);
    if (m->model != NULL)
        gguf_writer_string(w, "tokenizer.ggml.model", m->model);
    gguf_writer_string(w, "tokenizer.ggml.pre", m->pre);
    if (m->n_tokens > 0)
        gguf_writer_strings(w, "tokenizer.ggml.tokens", m->tokens, m->n_tokens);
    gguf_writer_i32s(w, "tokenizer.ggml.token_type", m->types, m->n_types);
    gguf_writer_strings(w, "tokenizer.ggml.merges", m->merges, m->n_merges);
    gguf_writer_u32(w, "tokenizer.ggml.eos_token_id", m->end);
    if (gguf_writer_begin(w, err, sizeof err) || gguf_writer_finish(w, err, sizeof err))
        fail_msg("%s", err);
    gguf_writer_destroy(w);
    struct gguf_file *file;
    if (gguf_open(&file, path, err, sizeof err) != 0)
        fail_msg("%s", err);
    int status = tokenizer_create(t, file, err, sizeof err);
    gguf_close(file);
    unlink(path);
    return status;
}

static void expect_ids(const struct made *m, const char *text, const char *ids)
{
    struct tokenizer *t;
    struct tokens got = {0};
    struct text shown = {0};
    size_t position = 0;
    if (create(&t, m) != 0)
        fail_msg("%s", err);
    assert_int_equal(tokenizer_encode(t, text, strlen(text), &position, 0, &got), 1);
    for (size_t i = 0; i < got.count; i++)
        text_print(&shown, i == 0 ? "%u" : " %u", got.ids[i]);
    assert_string_equal(shown.bytes, ids);
    text_free(&shown);
    tokens_free(&got);
    tokenizer_destroy(t);
}

static void merges_in_the_order_of_the_list(void **state)
{
    (void)state;
    struct made m;
    make(&m);
    expect_ids(&m, "abcd", "258 100");
    m.n_merges = 2;
    expect_ids(&m, "abcd", "256 99 100");
    expect_ids(&m, "abc", "258"); /* a piece that is a token is not merged */
    set_string(&m.merges[0], "b c");
    set_string(&m.merges[1], "a b");
    expect_ids(&m, "abcd", "97 257 100");
}

static void never_samples_the_unused_ids_at_the_end(void **state)
{
    (void)state;
    struct made m;
    struct tokenizer *t;
    make(&m);
    if (create(&t, &m) != 0)
        fail_msg("%s", err);
    assert_int_equal(tokenizer_size(t), MADE_TOKENS);
    assert_int_equal(tokenizer_limit(t), 260);
    assert_true(tokenizer_is_special(t, 261));
    assert_int_equal(tokenizer_special(t, "[PAD260]"), 260);
    assert_true(tokenizer_is_end(t, 259));
    tokenizer_destroy(t);
}

static void expect_refusal(const struct made *m, const char *words)
{
    struct tokenizer *t;
    int status = create(&t, m);
    if (status != -1 || t != NULL || strstr(err, words) == NULL)
        fail_msg("status %d, \"%s\" does not say \"%s\"", status, err, words);
}

static void refuses_keys_that_are_missing_or_of_another_tokenizer(void **state)
{
    (void)state;
    struct made m;
    make(&m);
    m.model = NULL;
    expect_refusal(&m, "tokenizer.ggml.model is missing");
    m.model = "llama";
    expect_refusal(&m, "tokenizer.ggml.model is \"llama\"");
    make(&m);
    m.pre = "gpt-2\x1b[2J";
    expect_refusal(&m, "tokenizer.ggml.pre is \"gpt-2?[2J\"");
    make(&m);
    m.n_tokens = 0;
    expect_refusal(&m, "tokenizer.ggml.tokens is missing");
}

static void refuses_tokens_that_contradict_each_other(void **state)
{
    (void)state;
    struct made m;
    make(&m);
    m.n_types--;
    expect_refusal(&m, "262 tokens and 261 types");
    make(&m);
    m.types[7] = 6;
    expect_refusal(&m, "token 7 has type 6");
    make(&m);
    set_string(&m.tokens[256], "a b");
    expect_refusal(&m, "token 256 is empty, or has characters");
    set_string(&m.tokens[256], "\u0144");
    expect_refusal(&m, "token 256 is empty, or has characters");
    set_string(&m.tokens[256], "\xc4");
    expect_refusal(&m, "token 256 is empty, or has characters");
    set_string(&m.tokens[256], "");
    expect_refusal(&m, "token 256 is empty");
    set_string(&m.tokens[256], "bc");
    expect_refusal(&m, "token 257 is there twice");
    make(&m);
    m.types[0x80] = 3;
    expect_refusal(&m, "no token is the single byte 0x80");
    make(&m);
    m.end = 262;
    expect_refusal(&m, "eos_token_id is 262");
}

static void refuses_merges_that_name_no_token(void **state)
{
    (void)state;
    static const struct {
        const char *merge, *words;
    } bad[] = {
        {"", "merge 1 is not two tokens"}, {"ab", "merge 1 is not two tokens"},
        {" b", "merge 1 names"},           {"a ", "merge 1 names"},
        {"ac b", "merge 1 names"},         {"a cb", "merge 1 names"},
        {"a c", "merge 1 names"},          {"a b c", "merge 1 is not two tokens"},
        {"<|return|> a", "merge 1 names"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct made m;
        make(&m);
        set_string(&m.merges[1], bad[i].merge);
        expect_refusal(&m, bad[i].words);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merges_in_the_order_of_the_list),
        cmocka_unit_test(never_samples_the_unused_ids_at_the_end),
        cmocka_unit_test(refuses_keys_that_are_missing_or_of_another_tokenizer),
        cmocka_unit_test(refuses_tokens_that_contradict_each_other),
        cmocka_unit_test(refuses_merges_that_name_no_token),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
