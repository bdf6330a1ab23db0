/*
 * gguf: the weight map in code and in docs/weight-mapping.md are one; a check tells everything that is
 * wrong with a file, and finds what is NaN or infinite.
 */
#include "test.h"

#include "gguf/weights.h"
#include "gguf_blob.h"

#define DOCUMENT GPTOSS_SOURCE_DIR "/docs/weight-mapping.md"

/* ── the document ──────────────────────────────────────────────────────────────────────────── */

static char *read_document(void)
{
    FILE *in = fopen(DOCUMENT, "rb");
    assert_non_null(in);
    char *text = calloc(1 << 16, 1);
    assert_true(fread(text, 1, (1 << 16) - 1, in) > 0);
    fclose(in);
    return text;
}

static void row_of(const struct gguf_weight *w, char row[512])
{
    char shape[160] = "";
    for (int d = 2; d >= 0; d--)
        if (w->ne[d] != EXTENT_ONE || d == 0)
            snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%s%s",
                     shape[0] ? ", " : "", gguf_extent_name(w->ne[d]));
    snprintf(row, 512, "| `%s` | %s | [%s] | %s | %s |", w->name, w->role, shape,
             w->matrix ? "any" : "F32", gguf_absence_text(w->absence));
}

static void the_document_has_every_row_of_the_map_in_its_order(void **state)
{
    (void)state;
    char *text = read_document(), *at = text;
    size_t rows = 0;
    for (size_t i = 0; i < gguf_n_weights; i++) {
        char row[512];
        row_of(&gguf_weights[i], row);
        char *found = strstr(at, row);
        if (!found)
            fail_msg("docs/weight-mapping.md lacks this row, or has it elsewhere:\n%s", row);
        at = found + 1;
    }
    for (at = text; (at = strstr(at, "\n| `")); at++)
        rows++;
    assert_int_equal(rows, gguf_n_weights); /* and no others */
    free(text);
}

static void the_document_names_every_type_as_the_code_does(void **state)
{
    (void)state;
    char *text = read_document();
    for (uint32_t type = 0; type < 43; type++) {
        char name[64];
        snprintf(name, sizeof name, "%s%s%s", gguf_type_supported(type) ? "`" : "| ",
                 gguf_type_name(type), gguf_type_supported(type) ? "`" : " |");
        if (gguf_type_block_values(type) && !strstr(text, name))
            fail_msg("docs/weight-mapping.md does not have %s", name);
        char row[128];
        snprintf(row, sizeof row, "%s | %s |", gguf_type_name(type), gguf_type_instead(type));
        if (gguf_type_block_values(type) && !gguf_type_supported(type) && !strstr(text, row))
            fail_msg("docs/weight-mapping.md lacks: %s", row);
    }
    free(text);
}

/* ── checking a model ──────────────────────────────────────────────────────────────────────── */

static char findings[16][512];
static size_t n_findings;

static void collect(void *arg, const char *sentence)
{
    assert_null(arg);
    assert_true(n_findings < 16);
    snprintf(findings[n_findings++], sizeof *findings, "%s", sentence);
}

static bool told(const char *words)
{
    for (size_t i = 0; i < n_findings; i++)
        if (strstr(findings[i], words))
            return true;
    return false;
}

static struct gguf_file *open_blob(struct blob b)
{
    struct gguf_file *file;
    save(&b);
    free(b.bytes);
    n_findings = 0;
    if (gguf_open(&file, path, err, sizeof err))
        fail_msg("%s", err);
    return file;
}

static void tells_nothing_of_a_sound_model(void **state)
{
    (void)state;
    struct gguf_file *file = open_blob(build_model(&(struct change){0}));
    assert_int_equal(gguf_check_model(file, collect, NULL), 0);
    gguf_close(file);
    file = open_blob(build_model(&(struct change){.fused = true}));
    assert_int_equal(gguf_check_model(file, collect, NULL), 0);
    gguf_close(file);
}

static void tells_every_tensor_that_is_wrong(void **state)
{
    (void)state;
    struct change change = {.key = "gpt-oss.expert_count", .kind = 'u', .number = 8};
    struct gguf_file *file = open_blob(build_model(&change));
    /* In each layer: router, its bias, three matrices and three biases. */
    assert_int_equal(gguf_check_model(file, collect, NULL), 16);
    assert_true(told("blk.0.ffn_gate_inp.weight has the shape 64x4"));
    assert_true(told("blk.1.ffn_down_exps.bias has the shape 64x4"));
    gguf_close(file);
    change =
        (struct change){.key = "gpt-oss.attention.head_count", .tensor = "blk.1.attn_sinks.weight"};
    file = open_blob(build_model(&change));
    assert_int_equal(gguf_check_model(file, collect, NULL), 2);
    assert_true(told("key gpt-oss.attention.head_count is missing"));
    assert_true(told("tensor blk.1.attn_sinks.weight is missing"));
    gguf_close(file);
}

static void tells_only_the_name_of_another_architecture(void **state)
{
    (void)state;
    struct blob b = start(3, 0, 1);
    string(&b, "general.architecture");
    u32(&b, GGUF_VALUE_STRING);
    string(&b, "gemma3");
    struct gguf_file *file = open_blob(b);
    assert_int_equal(gguf_check_model(file, collect, NULL), 1);
    assert_true(told("architecture gemma3; gptoss runs gpt-oss models only"));
    gguf_close(file);
}

/* ── the vocabulary ────────────────────────────────────────────────────────────────────────── */

static void array_of(struct blob *b, const char *name, const char *const *texts, uint64_t n)
{
    string(b, name);
    u32(b, GGUF_VALUE_ARRAY);
    u32(b, GGUF_VALUE_STRING);
    u64(b, n);
    for (uint64_t i = 0; i < n; i++)
        string(b, texts[i]);
}

static struct gguf_file *vocabulary(uint64_t n_tokens, uint64_t n_types, uint32_t eos,
                                    const char *merge)
{
    static const char *const tokens[] = {"a", "b", "c", "ab", "abc", "a"};
    const char *merges[] = {"a b", merge};
    struct blob b = start(3, 0, 4);
    array_of(&b, "tokenizer.ggml.tokens", tokens, n_tokens);
    array_of(&b, "tokenizer.ggml.merges", merges, 2);
    string(&b, "tokenizer.ggml.token_type");
    u32(&b, GGUF_VALUE_ARRAY);
    u32(&b, GGUF_VALUE_I32);
    u64(&b, n_types);
    zeros(&b, 4 * n_types);
    key_u32(&b, "tokenizer.ggml.eos_token_id", eos);
    return open_blob(b);
}

static void finds_token_arrays_whose_lengths_disagree(void **state)
{
    (void)state;
    struct gguf_file *file = vocabulary(5, 5, 4, "ab c");
    assert_int_equal(gguf_check_vocabulary(file, collect, NULL), 0);
    gguf_close(file);
    file = vocabulary(5, 4, 4, "ab c");
    assert_int_equal(gguf_check_vocabulary(file, collect, NULL), 1);
    assert_true(told("there are 5 tokens, and 4 elements of tokenizer.ggml.token_type"));
    gguf_close(file);
}

static void finds_merges_that_name_no_token(void **state)
{
    (void)state;
    static const char *const merges[] = {"ab x", "x c", "b c", "abc", " ", "", "ab ", " c"};
    for (size_t i = 0; i < sizeof merges / sizeof *merges; i++) {
        struct gguf_file *file = vocabulary(5, 5, 4, merges[i]);
        assert_int_equal(gguf_check_vocabulary(file, collect, NULL), 1);
        assert_true(told("is not two tokens that make a third"));
        gguf_close(file);
    }
}

static void finds_tokens_doubled_ids_out_of_range_and_arrays_of_another_type(void **state)
{
    (void)state;
    struct gguf_file *file = vocabulary(6, 6, 6, "ab c");
    assert_int_equal(gguf_check_vocabulary(file, collect, NULL), 2);
    assert_true(told("tokens 0 and 5 are the same text, a"));
    assert_true(told("tokenizer.ggml.eos_token_id is 6, not between 0 and 5"));
    gguf_close(file);
    struct blob b = start(3, 0, 1);
    key_u32(&b, "tokenizer.ggml.tokens", 5);
    file = open_blob(b);
    assert_int_equal(gguf_check_vocabulary(file, collect, NULL), 1);
    assert_true(told("key tokenizer.ggml.tokens is no array of strings"));
    gguf_close(file);
    file = open_blob(start(3, 0, 0));
    assert_int_equal(gguf_check_vocabulary(file, collect, NULL), 1);
    assert_true(told("key tokenizer.ggml.tokens is missing"));
    gguf_close(file);
}

static void refuses_models_whose_token_arrays_disagree_with_the_embedding(void **state)
{
    (void)state;
    struct change change = {.key = "tokenizer.ggml.token_type", .kind = 'b', .number = 39};
    struct blob b = build_model(&change);
    save(&b);
    free(b.bytes);
    assert_int_equal(try_open(true), -1);
    assert_non_null(strstr(err, "has 40 rows, and tokenizer.ggml.token_type says 39"));
}

/* ── data ──────────────────────────────────────────────────────────────────────────────────── */

/* A tensor of 3 rows; bytes[at] = value breaks block `block` of row `row`. */
static void finds(enum gguf_type type, uint64_t ne0, uint64_t row, uint64_t block)
{
    static const struct {
        enum gguf_type type;
        int at; /* of the scale's upper byte */
    } uppers[] = {{GGUF_F32, 3},    {GGUF_F16, 1},    {GGUF_BF16, 1}, {GGUF_Q4_0, 1},
                  {GGUF_Q4_1, 3},   {GGUF_Q5_0, 1},   {GGUF_Q5_1, 3}, {GGUF_Q8_0, 1},
                  {GGUF_Q2_K, 83},  {GGUF_Q3_K, 109}, {GGUF_Q4_K, 3}, {GGUF_Q5_K, 3},
                  {GGUF_Q6_K, 209}, {GGUF_MXFP4, 0}};
    int at = 0;
    for (size_t i = 0; i < sizeof uppers / sizeof *uppers; i++)
        if (uppers[i].type == type)
            at = uppers[i].at;
    uint64_t row_bytes = gguf_row_bytes(type, ne0), block_bytes = gguf_type_block_bytes(type);
    unsigned char *data = calloc(3, row_bytes);
    /* What is no scale may be anything. */
    for (uint64_t i = 0; gguf_type_block_values(type) > 1 && i < 3 * row_bytes; i++)
        data[i] = 0xff;
    for (uint64_t b = 0; gguf_type_block_values(type) > 1 && b < 3 * row_bytes / block_bytes; b++) {
        unsigned char *p = data + b * block_bytes;
        for (size_t i = 0; i < sizeof uppers / sizeof *uppers; i++)
            if (uppers[i].type == type)
                p[at] = type == GGUF_MXFP4 ? 254 : 0x7b;
        if (type == GGUF_Q4_1 || type == GGUF_Q5_1 || type == GGUF_Q4_K || type == GGUF_Q5_K)
            p[1] = 0xfb;
        if (type == GGUF_Q2_K)
            p[81] = 0xfb;
    }
    const char name[] = "t";
    struct gguf_tensor t = {.type = type,
                            .n_dims = 2,
                            .ne = {ne0, 3, 1, 1},
                            .row_bytes = row_bytes,
                            .bytes = 3 * row_bytes};
    strcpy(t.name, name);
    t.data = data;
    struct gguf_file *file = open_blob(start(3, 0, 0));
    if (gguf_check_tensor(file, &t, err, sizeof err))
        fail_msg("%s", err);
    unsigned char *p = data + row * row_bytes + block * block_bytes;
    p[at] = type == GGUF_MXFP4 ? 255 : 0x7f;
    if (type == GGUF_F32 || type == GGUF_BF16)
        p[at - 1] = 0x80;
    assert_int_equal(gguf_check_tensor(file, &t, err, sizeof err), -1);
    char words[80];
    bool blocks = gguf_type_block_values(type) > 1;
    snprintf(words, sizeof words, "tensor t has a %s that is NaN or infinite in row %u, %s %u:",
             blocks ? "scale" : "number", (unsigned)row, blocks ? "block" : "column",
             (unsigned)block);
    if (!strstr(err, words))
        fail_msg("%s: says \"%s\", not \"%s\"", gguf_type_name(type), err, words);
    gguf_close(file);
    free(data);
}

static void finds_scales_that_are_nan_or_infinite(void **state)
{
    (void)state;
    for (uint32_t type = 0; type < 43; type++) {
        static const enum gguf_type known[] = {
            GGUF_F32,  GGUF_F16,  GGUF_BF16, GGUF_Q4_0, GGUF_Q4_1, GGUF_Q5_0, GGUF_Q5_1,
            GGUF_Q8_0, GGUF_Q2_K, GGUF_Q3_K, GGUF_Q4_K, GGUF_Q5_K, GGUF_Q6_K, GGUF_MXFP4};
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            if (known[i] == type) {
                uint64_t block = gguf_type_block_values(type);
                uint64_t ne0 = block == 1 ? 300 : 20 * block, blocks = ne0 / block;
                finds(type, ne0, 0, 0);
                finds(type, ne0, 1, blocks / 2 + 1);
                finds(type, ne0, 2, blocks - 1);
            }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_document_has_every_row_of_the_map_in_its_order),
        cmocka_unit_test(the_document_names_every_type_as_the_code_does),
        cmocka_unit_test(tells_nothing_of_a_sound_model),
        cmocka_unit_test(tells_every_tensor_that_is_wrong),
        cmocka_unit_test(tells_only_the_name_of_another_architecture),
        cmocka_unit_test(finds_token_arrays_whose_lengths_disagree),
        cmocka_unit_test(finds_merges_that_name_no_token),
        cmocka_unit_test(finds_tokens_doubled_ids_out_of_range_and_arrays_of_another_type),
        cmocka_unit_test(refuses_models_whose_token_arrays_disagree_with_the_embedding),
        cmocka_unit_test(finds_scales_that_are_nan_or_infinite),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
