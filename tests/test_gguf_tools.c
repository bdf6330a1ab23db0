/*
 * gptoss-gguf: synth writes files that open as what was asked for, show tells what a file is.
 */
#include "test.h"

#include "tools_run.h"

/* ── synth ─────────────────────────────────────────────────────────────────────────────────── */

static void writes_a_model_of_the_sizes_asked_for(void **state)
{
    (void)state;
    int status = SYNTH("--hidden", "320", "--layers", "5", "--heads", "10", "--kv-heads", "2",
                       "--head-dim", "32", "--experts", "12", "--active", "3", "--expert-ffn", "96",
                       "--window", "37", "--vocabulary", "1000", "--context", "8192",
                       "--type-experts", "q8_0", "--type-matrices", "BF16");
    assert_int_equal(status, EXIT_DONE);
    struct model m = open_model();
    const struct gguf_model *model = m.model;
    assert_int_equal(model->hidden, 320);
    assert_int_equal(model->n_layers, 5);
    assert_int_equal(model->heads, 10);
    assert_int_equal(model->kv_heads, 2);
    assert_int_equal(model->head_dim, 32);
    assert_int_equal(model->experts, 12);
    assert_int_equal(model->active, 3);
    assert_int_equal(model->expert_ffn, 96);
    assert_int_equal(model->window, 37);
    assert_int_equal(model->vocabulary, 1000);
    assert_int_equal(model->context, 8192);
    assert_true(model->yarn_factor == 32 && model->yarn_context == 4096);
    assert_int_equal(model->layers[4].up.weight->type, GGUF_Q8_0);
    assert_int_equal(model->layers[4].attn_q.weight->type, GGUF_BF16);
    assert_int_equal(model->output->type, GGUF_BF16);
    close_model(&m);
}

static double deviation(const struct gguf_tensor *t, double *mean)
{
    uint64_t n = t->ne[0] * t->ne[1] * t->ne[2];
    float *x = malloc(n * sizeof *x);
    double sum = 0, squares = 0;
    gguf_to_float(t->type, t->data, x, n);
    for (uint64_t i = 0; i < n; i++) {
        sum += (double)x[i];
        squares += (double)x[i] * (double)x[i];
    }
    free(x);
    *mean = sum / (double)n;
    return sqrt(squares / (double)n - *mean * *mean);
}

static void scales_weights_by_their_rows_and_repeats_none(void **state)
{
    (void)state;
    assert_int_equal(SYNTH("--like", "tiny", "--layers", "2"), EXIT_DONE);
    struct model m = open_model();
    const struct gguf_layer *layers = m.model->layers;
    double mean;
    assert_true(fabs(deviation(layers[0].gate.weight, &mean) * sqrt(192) - 1) < 0.05);
    assert_true(fabs(mean) < 0.01);
    assert_true(fabs(deviation(layers[0].down.weight, &mean) * sqrt(64) - 1) < 0.05);
    assert_true(fabs(deviation(m.model->output, &mean) * sqrt(192) - 1) < 0.05);
    assert_true(fabs(deviation(layers[1].attn_norm, &mean) - 0.1) < 0.05);
    assert_true(fabs(mean - 1) < 0.05);

    const struct gguf_tensor *up = layers[0].up.weight, *other = layers[1].up.weight;
    assert_memory_not_equal(up->data, other->data, up->bytes);
    uint64_t expert = up->row_bytes * up->ne[1];
    for (uint64_t e = 1; e < up->ne[2]; e++)
        assert_memory_not_equal(up->data, up->data + e * expert, expert);
    close_model(&m);
}

static void writes_the_same_file_for_the_same_seed(void **state)
{
    (void)state;
    uint64_t digests[3], data[3];
    for (int i = 0; i < 3; i++) {
        assert_int_equal(SYNTH("--layers", "1", "--seed", i < 2 ? "7" : "8"), EXIT_DONE);
        struct model m = open_model();
        digests[i] = gguf_header_digest(m.file);
        data[i] = map_hash(gguf_tensor_at(m.file, 0)->data, m.model->bytes, 0);
        close_model(&m);
    }
    assert_true(digests[0] == digests[1] && data[0] == data[1]);
    assert_true(digests[0] != digests[2] && data[0] != data[2]);
}

struct tokens {
    struct map *ids; /* hash of the text → id */
    struct gguf_string *texts;
    uint32_t n;
};

static struct tokens read_tokens(const struct gguf_file *file)
{
    const struct gguf_key *key = gguf_key_find(file, "tokenizer.ggml.tokens");
    struct tokens t = {.n = (uint32_t)key->count};
    t.ids = map_create(t.n);
    t.texts = calloc(t.n, sizeof *t.texts);
    uint64_t cursor = 0;
    for (uint32_t i = 0; i < t.n; i++) {
        t.texts[i] = gguf_next_string(key, &cursor);
        map_set(t.ids, map_hash(t.texts[i].bytes, t.texts[i].size, 0), i);
    }
    assert_int_equal(map_count(t.ids), t.n); /* no two alike */
    return t;
}

static void has_every_byte_and_complete_merges(void **state)
{
    (void)state;
    assert_int_equal(SYNTH("--layers", "1", "--vocabulary", "30000"), EXIT_DONE);
    struct model m = open_model();
    struct tokens t = read_tokens(m.file);
    assert_memory_equal(t.texts[0].bytes, "!", 1);
    assert_memory_equal(t.texts[94].bytes, "\u00a1", 2);
    assert_memory_equal(t.texts[105].bytes, "\u00ac", 2);
    assert_memory_equal(t.texts[106].bytes, "\u00ae", 2);
    assert_memory_equal(t.texts[188].bytes, "\u0100", 2);
    assert_memory_equal(t.texts[220].bytes, "\u0120", 2);
    assert_memory_equal(t.texts[221].bytes, "\u0121", 2);
    assert_memory_equal(t.texts[255].bytes, "\u0143", 2);

    const struct gguf_key *merges = gguf_key_find(m.file, "tokenizer.ggml.merges");
    const struct gguf_key *types = gguf_key_find(m.file, "tokenizer.ggml.token_type");
    uint64_t cursor = 0;
    assert_int_equal(merges->count, 30000 - 256 - 21);
    for (uint32_t i = 0; i < merges->count; i++) {
        struct gguf_string pair = gguf_next_string(merges, &cursor);
        const char *space = memchr(pair.bytes, ' ', pair.size);
        size_t left = (size_t)(space - pair.bytes), right = pair.size - left - 1;
        char whole[64];
        memcpy(whole, pair.bytes, left);
        memcpy(whole + left, space + 1, right);
        assert_true(map_get(t.ids, map_hash(pair.bytes, left, 0)) < 256 + i);
        assert_true(map_get(t.ids, map_hash(space + 1, right, 0)) < 256);
        assert_int_equal(map_get(t.ids, map_hash(whole, left + right, 0)), 256 + i);
        assert_int_equal(gguf_integer_at(types, 256 + i), 1);
    }
    map_destroy(t.ids);
    free(t.texts);
    close_model(&m);
}

static void keeps_the_published_ids_of_the_full_vocabulary(void **state)
{
    (void)state;
    assert_int_equal(SYNTH("--layers", "1", "--hidden", "32", "--vocabulary", "201088"), EXIT_DONE);
    struct model m = open_model();
    struct tokens t = read_tokens(m.file);
    const struct {
        uint32_t id;
        int type;
        const char *text;
    } known[] = {{199998, 3, "<|startoftext|>"},     {199999, 3, "<|endoftext|>"},
                 {200000, 3, "<|reserved_200000|>"}, {200002, 3, "<|return|>"},
                 {200003, 3, "<|constrain|>"},       {200005, 3, "<|channel|>"},
                 {200006, 3, "<|start|>"},           {200007, 3, "<|end|>"},
                 {200008, 3, "<|message|>"},         {200012, 3, "<|call|>"},
                 {200018, 3, "<|endofprompt|>"},     {200019, 5, "[PAD200019]"},
                 {201087, 5, "[PAD201087]"}};
    const struct gguf_key *types = gguf_key_find(m.file, "tokenizer.ggml.token_type");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        assert_int_equal(t.texts[known[i].id].size, strlen(known[i].text));
        assert_memory_equal(t.texts[known[i].id].bytes, known[i].text, strlen(known[i].text));
        assert_int_equal(gguf_integer_at(types, known[i].id), known[i].type);
    }
    uint32_t eos;
    assert_int_equal(gguf_get_u32(m.file, "tokenizer.ggml.eos_token_id", &eos, err, sizeof err), 0);
    assert_int_equal(eos, 200002);
    map_destroy(t.ids);
    free(t.texts);
    close_model(&m);
}

static void refuses_sizes_that_cannot_be(void **state)
{
    (void)state;
    assert_int_equal(SYNTH("--heads", "9"), EXIT_USAGE);
    assert_non_null(strstr(said, "9 heads are no multiple of 2 kv heads"));
    assert_int_equal(SYNTH("--active", "17"), EXIT_USAGE);
    assert_int_equal(SYNTH("--head-dim", "63"), EXIT_USAGE);
    assert_int_equal(SYNTH("--hidden", "200"), EXIT_USAGE);
    assert_non_null(strstr(said, "no multiple of 32, the block of Q8_0"));
    assert_int_equal(SYNTH("--expert-ffn", "48"), EXIT_USAGE);
    assert_non_null(strstr(said, "no multiple of 32, the block of MXFP4"));
    assert_int_equal(SYNTH("--like", "7b"), EXIT_USAGE);
    assert_int_equal(SYNTH("--type-experts", "q4_k"), EXIT_USAGE);
    assert_int_equal(SYNTH("another"), EXIT_USAGE);
    assert_int_equal(run(tools_synth, (const char *const[]){"synth", "/no/such/folder/f", NULL}),
                     EXIT_FAILED);
    assert_non_null(strstr(said, "cannot be written: No such file"));
}

/* ── show ──────────────────────────────────────────────────────────────────────────────────── */

static void shows_the_bundled_model(void **state)
{
    (void)state;
    assert_int_equal(SHOW(TINY), EXIT_DONE);
    assert_non_null(strstr(said, "32 keys, 459 tensors"));
    assert_non_null(strstr(said, "gpt-oss.rope.freq_base"));
    assert_non_null(strstr(said, "16 × 64 × 192"));
    assert_non_null(strstr(said, "the last 128"));
    assert_non_null(strstr(said, "gpt-oss: 24 layers, hidden 192, 8 query and 2 kv heads of 64"));
    assert_int_equal(SHOW("--brief", TINY), EXIT_DONE);
    assert_null(strstr(said, "blk.0."));
}

static void shows_it_as_json_too(void **state)
{
    (void)state;
    assert_int_equal(SHOW("--json", TINY), EXIT_DONE);
    json_t *json = parse();
    assert_int_equal(integer(json, "bytes"), 16533696);
    assert_int_equal(json_array_size(json_object_get(json, "tensors")), 459);
    assert_int_equal(json_array_size(json_object_get(json, "keys")), 32);
    assert_int_equal(json_array_size(json_object_get(json, "layers")), 24);
    assert_int_equal(integer(json_object_get(json, "model"), "vocabulary"), 4096);
    assert_true(json_is_null(json_object_get(json, "refused")));
    size_t i;
    json_t *type;
    json_int_t bytes = 0;
    json_array_foreach(json_object_get(json, "types"), i, type) bytes += integer(type, "bytes");
    assert_int_equal(bytes, integer(json_object_get(json, "model"), "bytes"));
    json_decref(json);
}

/* A file that is sound and no model, with texts that would harm a terminal or break JSON. */
static void write_odd_file(void)
{
    struct gguf_writer *w;
    assert_int_equal(gguf_writer_create(&w, path, err, sizeof err), 0);
    const struct gguf_string words[] = {{"\"", 1}, {"\xff\xfe", 2}, {"\0", 1}};
    gguf_writer_string(w, "general.architecture", "llama");
    gguf_writer_string(w, "bad\x1b]0;\"key\\", "\x1b[2Jtext\nwith\tcontrols \xc2\x9b \xe2\x82");
    gguf_writer_f32(w, "inf", INFINITY);
    gguf_writer_f32(w, "nan", NAN);
    gguf_writer_strings(w, "words", words, 3);
    gguf_writer_tensor(w, "name\x1b[1m", GGUF_Q4_K, 2, (uint64_t[]){256, 2});
    assert_int_equal(gguf_writer_begin(w, err, sizeof err), 0);
    unsigned char data[288] = {0};
    assert_int_equal(gguf_writer_data(w, data, sizeof data, err, sizeof err), 0);
    assert_int_equal(gguf_writer_finish(w, err, sizeof err), 0);
    gguf_writer_destroy(w);
}

static void shows_what_gptoss_does_not_run_and_says_so(void **state)
{
    (void)state;
    write_odd_file();
    assert_int_equal(SHOW(path), EXIT_MODEL);
    assert_non_null(strstr(said, "Q4_K"));
    assert_non_null(strstr(said, "is a model of architecture llama; gptoss runs gpt-oss models"));
    for (const char *p = said; *p; p++)
        assert_true((unsigned char)*p >= 0x20 || *p == '\n');
    assert_null(strstr(said, "\xc2\x9b"));

    /* The sentence is on stderr: what is on stdout is the JSON alone. */
    assert_int_equal(SHOW("--json", path), EXIT_MODEL);
    char *sentence = strstr(said, "gptoss-gguf: ");
    assert_non_null(sentence);
    said_size = (size_t)(sentence - said);
    json_t *json = parse();
    assert_true(json_is_null(json_object_get(json, "model")));
    assert_non_null(strstr(json_string_value(json_object_get(json, "refused")), "llama"));
    json_t *inf = json_array_get(json_object_get(json, "keys"), 2);
    assert_true(json_is_null(json_object_get(inf, "value")));
    json_decref(json);

    assert_int_equal(SHOW("/no/such/file"), EXIT_MODEL);
    assert_non_null(strstr(said, "gptoss-gguf: /no/such/file: No such file or directory"));
    assert_int_equal(SHOW(path, path), EXIT_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_a_model_of_the_sizes_asked_for),
        cmocka_unit_test(scales_weights_by_their_rows_and_repeats_none),
        cmocka_unit_test(writes_the_same_file_for_the_same_seed),
        cmocka_unit_test(has_every_byte_and_complete_merges),
        cmocka_unit_test(keeps_the_published_ids_of_the_full_vocabulary),
        cmocka_unit_test(refuses_sizes_that_cannot_be),
        cmocka_unit_test(shows_the_bundled_model),
        cmocka_unit_test(shows_it_as_json_too),
        cmocka_unit_test(shows_what_gptoss_does_not_run_and_says_so),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
