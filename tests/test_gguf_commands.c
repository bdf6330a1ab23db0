/*
 * gptoss-gguf: check tells what is wrong, plan what would be needed, diff what differs, and quantize
 * and synth --mix write the types that files of a label have.
 */
#include "test.h"

#include "tools_run.h"

#include "tools/mix.h"

#define Q4_K_M GPTOSS_SOURCE_DIR "/models/gptoss-tiny-Q4_K_M.gguf"

static char second[80]; /* a second path */

#define CHECK(...)    run(tools_check, (const char *const[]){"check", __VA_ARGS__, NULL})
#define PLAN(...)     run(tools_plan, (const char *const[]){"plan", __VA_ARGS__, NULL})
#define DIFF(...)     run(tools_diff, (const char *const[]){"diff", __VA_ARGS__, NULL})
#define QUANTIZE(...) run(tools_quantize, (const char *const[]){"quantize", __VA_ARGS__, NULL})

static void says(const char *words)
{
    if (!strstr(said, words))
        fail_msg("says \"%s\", not \"%s\"", said, words);
}

/* ── check ─────────────────────────────────────────────────────────────────────────────────── */

static void write_at(const char *to, uint64_t offset, const void *bytes, size_t size)
{
    FILE *out = fopen(to, "r+b");
    assert_non_null(out);
    fseek(out, (long)offset, SEEK_SET);
    assert_int_equal(fwrite(bytes, 1, size, out), size);
    fclose(out);
}

static void finds_the_bundled_models_sound(void **state)
{
    (void)state;
    assert_int_equal(CHECK(TINY, Q4_K_M), EXIT_DONE);
    says("ok     container: GGUF version 3, 1 file, 32 keys, 459 tensors");
    says("ok     model");
    says("ok     vocabulary");
    says("ok     data");
    says("gptoss-tiny-Q4_K_M.gguf: sound");
    assert_null(strstr(said, "wrong"));
}

static void tells_a_line_for_each_thing_that_is_wrong(void **state)
{
    (void)state;
    assert_int_equal(SYNTH("--layers", "2"), EXIT_DONE);
    struct model m = open_model();
    uint64_t up = m.model->layers[1].up.weight->offset, norm = m.model->layers[0].attn_norm->offset;
    const unsigned char *header = m.model->embedding->data - m.model->embedding->offset;
    const char *pattern = "gpt-oss.expert_used_count";
    const unsigned char *count = memmem(header, up, pattern, strlen(pattern));
    assert_non_null(count);
    uint64_t at = (uint64_t)(count - header) + strlen(pattern) + 4;
    close_model(&m);
    write_at(path, up + 17 * 100, "\377", 1);
    write_at(path, norm + 4 * 7, "\0\0\200\177", 4);
    write_at(path, at, "\21", 1); /* 17 of 16 experts */
    assert_int_equal(CHECK(path), EXIT_MODEL);
    says("wrong  ");
    says("17 experts are active of 16");
    says("blk.1.ffn_up_exps.weight has a scale that is NaN or infinite in row 16, block 4");
    says("blk.0.attn_norm.weight has a number that is NaN or infinite in row 0, column 7");
    says(": 3 things are wrong");
    assert_int_equal(CHECK("--no-data", path), EXIT_MODEL);
    says(": 1 thing is wrong");
    write_at(path, 0, "X", 1);
    assert_int_equal(CHECK(path), EXIT_MODEL);
    says("refused: nothing else can be looked at");
    assert_int_equal(run(tools_check, (const char *const[]){"check", NULL}), EXIT_USAGE);
}

static void notes_what_is_unusual_and_no_error(void **state)
{
    (void)state;
    assert_int_equal(CHECK(TINY), EXIT_DONE);
    says("note   tokenizer.chat_template is missing");
    assert_null(strstr(said, "is not used"));
    /* The same with one tensor more. */
    struct gguf_file *file;
    struct gguf_writer *w;
    assert_int_equal(gguf_open(&file, TINY, err, sizeof err), 0);
    assert_int_equal(gguf_writer_create(&w, path, err, sizeof err), 0);
    for (uint64_t i = 0; i < gguf_n_keys(file); i++)
        gguf_writer_key(w, gguf_key_at(file, i));
    for (uint64_t i = 0; i < gguf_n_tensors(file); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(file, i);
        gguf_writer_tensor(w, t->name, t->type, t->n_dims, t->ne);
    }
    gguf_writer_tensor(w, "blk.0.other\x1b.weight", GGUF_F32, 1, (uint64_t[]){1});
    assert_int_equal(gguf_writer_begin(w, err, sizeof err), 0);
    for (uint64_t i = 0; i < gguf_n_tensors(file); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(file, i);
        assert_int_equal(gguf_writer_data(w, t->data, t->bytes, err, sizeof err), 0);
    }
    assert_int_equal(gguf_writer_data(w, "\0\0\0", 4, err, sizeof err), 0);
    assert_int_equal(gguf_writer_finish(w, err, sizeof err), 0);
    gguf_writer_destroy(w);
    gguf_close(file);
    assert_int_equal(CHECK(path), EXIT_DONE);
    says("note   tensor blk.0.other?.weight is not used (4 B)");
}

/* ── plan ──────────────────────────────────────────────────────────────────────────────────── */

static void plans_a_row_for_each_rank(void **state)
{
    (void)state;
    assert_int_equal(PLAN("--stages", "4", "--context", "1024", "--sequences", "2", TINY),
                     EXIT_DONE);
    says("rank");
    says("KV window");
    says("12+12");
    assert_int_equal(PLAN("--stages", "3", "--gpu-memory", "1", "--kv-type", "f16", "--json", TINY),
                     EXIT_DONE);
    json_t *json = parse();
    const json_t *ranks = json_object_get(json, "ranks");
    assert_int_equal(json_array_size(ranks), 3);
    json_int_t layers = 0, weights = 0;
    for (size_t i = 0; i < 3; i++) {
        const json_t *r = json_array_get(ranks, i);
        layers += integer(r, "layer_count");
        weights += integer(r, "weights_bytes");
        assert_int_equal(integer(r, "memory_bytes"), (1 << 30) / 64 * 63); /* some is spared */
        assert_int_equal(integer(r, "weights_bytes") + integer(r, "kv_full_bytes") +
                             integer(r, "kv_window_bytes") + integer(r, "activation_bytes"),
                         integer(r, "total_bytes"));
    }
    assert_int_equal(layers, 24);
    /* GPUs leave the head to the last rank; each has a scale of each row of gate, up and down of 16
     * experts. */
    assert_int_equal(weights, 16533696 - 156864 + 24 * 16 * (64 + 64 + 192) * 4);
    assert_true(json_is_true(json_object_get(json, "fits")));
    json_decref(json);
}

static void refuses_what_does_not_fit_and_says_what_would(void **state)
{
    (void)state;
    assert_int_equal(PLAN("--gpu-memory", "100MiB", "--context", "65536", TINY), EXIT_MEMORY);
    says("does not fit");
    says("a context of ");
    assert_int_equal(PLAN("--gpu-memory", "60MiB", "--sequences", "1", "--context", "4096", TINY),
                     EXIT_MEMORY);
    says("stages of this memory would fit");
    assert_int_equal(PLAN("--gpu-memory", "30", "--stages", "25", TINY), EXIT_USAGE);
    says("24 layers cannot be cut into 25 stages");
    assert_int_equal(PLAN("--gpu-memory", "much", TINY), EXIT_USAGE);
    assert_int_equal(PLAN("--kv-type", "q8_0", TINY), EXIT_USAGE);
    assert_int_equal(PLAN("/no/such/file"), EXIT_MODEL);
}

/* ── types ─────────────────────────────────────────────────────────────────────────────────── */

static void knows_the_types_of_a_file_that_llama_cpp_wrote(void **state)
{
    (void)state;
    struct gguf_file *file;
    assert_int_equal(gguf_open(&file, Q4_K_M, err, sizeof err), 0);
    const struct mix *mix = mix_find("Q4_K_M");
    for (uint64_t i = 0; i < gguf_n_tensors(file); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(file, i);
        enum gguf_type type = mix_type(mix, t->name, 24, t->ne[0]);
        if (type != t->type)
            fail_msg("%s: %s, want %s", t->name, gguf_type_name(type), gguf_type_name(t->type));
    }
    gguf_close(file);
}

static void knows_the_types_of_every_published_label(void **state)
{
    (void)state;
    /* token_embd, output, attn_q, attn_v of layers 1 and 6, attn_output, up, down of layers 1 and 6;
     * of 24 layers with rows of 2880 and 4096. */
    static const struct {
        const char *label, *types[9];
    } labels[] = {
        {"MXFP4_MOE", {"Q8_0", "Q8_0", "Q8_0", "Q8_0", "Q8_0", "Q8_0", "MXFP4", "MXFP4", "MXFP4"}},
        {"bf16", {"BF16", "BF16", "BF16", "BF16", "BF16", "BF16", "BF16", "BF16", "BF16"}},
        {"q8_0", {"Q8_0", "Q8_0", "Q8_0", "Q8_0", "Q8_0", "Q8_0", "Q8_0", "Q8_0", "Q8_0"}},
        {"q6_k", {"Q8_0", "Q8_0", "Q8_0", "Q8_0", "Q8_0", "Q6_K", "Q8_0", "Q8_0", "Q8_0"}},
        {"q5_k_m", {"Q5_1", "Q8_0", "Q5_1", "Q8_0", "Q5_1", "Q5_K", "Q5_1", "Q8_0", "Q5_1"}},
        {"q5_k_s", {"Q5_1", "Q8_0", "Q5_1", "Q5_1", "Q5_1", "Q5_K", "Q5_1", "Q5_1", "Q5_1"}},
        {"q4_k_m", {"Q5_0", "Q8_0", "Q5_0", "Q8_0", "Q5_0", "Q4_K", "Q5_0", "Q8_0", "Q5_0"}},
        {"q4_k_s", {"Q5_0", "Q8_0", "Q5_0", "Q5_1", "Q5_0", "Q4_K", "Q5_0", "Q5_1", "Q5_0"}},
        {"q3_k_l", {"Q4_0", "Q8_0", "Q4_0", "Q5_1", "Q5_1", "Q5_K", "Q4_0", "Q5_1", "Q5_1"}},
        {"q3_k_m", {"Q4_0", "Q8_0", "Q4_0", "Q5_1", "Q5_0", "Q4_K", "Q4_0", "Q5_0", "Q5_0"}},
        {"q3_k_s", {"Q4_0", "Q8_0", "Q4_0", "Q4_0", "Q4_0", "Q3_K", "Q4_0", "Q4_0", "Q4_0"}},
        {"q2_k", {"Q4_0", "Q8_0", "Q4_0", "Q5_0", "Q5_0", "Q3_K", "Q4_0", "Q4_0", "Q4_0"}},
        {"q2_k_s", {"Q4_0", "Q8_0", "Q4_0", "Q5_0", "Q5_0", "Q2_K", "Q4_0", "Q5_0", "Q4_0"}},
        {"q4_1", {"Q4_1", "Q8_0", "Q4_1", "Q4_1", "Q4_1", "Q4_1", "Q4_1", "Q4_1", "Q4_1"}},
    };
    static const char *const names[9] = {"token_embd.weight",         "output.weight",
                                         "blk.3.attn_q.weight",       "blk.1.attn_v.weight",
                                         "blk.6.attn_v.weight",       "blk.3.attn_output.weight",
                                         "blk.1.ffn_up_exps.weight",  "blk.1.ffn_down_exps.weight",
                                         "blk.6.ffn_down_exps.weight"};
    for (size_t i = 0; i < sizeof labels / sizeof *labels; i++)
        for (size_t k = 0; k < 9; k++) {
            const char *got = gguf_type_name(
                mix_type(mix_find(labels[i].label), names[k], 24, k == 5 ? 4096 : 2880));
            if (strcmp(got, labels[i].types[k]) != 0)
                fail_msg("%s %s: %s, want %s", labels[i].label, names[k], got, labels[i].types[k]);
        }
    const struct mix *mix = mix_find("q4_k_m");
    assert_int_equal(mix_type(mix, "blk.0.ffn_gate_inp.weight", 24, 2880), GGUF_F32);
    assert_int_equal(mix_type(mix, "blk.0.attn_norm.weight", 24, 2880), GGUF_F32);
    assert_int_equal(mix_type(mix, "blk.0.attn_sinks.weight", 24, 64), GGUF_F32);
    assert_int_equal(mix_type(mix, "output_norm.weight", 24, 2880), GGUF_F32);
    assert_null(mix_find("iq4_xs"));
}

static void writes_any_mix_of_types(void **state)
{
    (void)state;
    assert_int_equal(SYNTH("--layers", "3", "--hidden", "256", "--expert-ffn", "256", "--mix",
                           "q4_k_m", "--type-experts", "mxfp4", "--type", "output=f16", "--type",
                           "attn_k=q3_k", "--type", "blk.1.attn_k=q2_k"),
                     EXIT_DONE);
    struct model m = open_model();
    const struct gguf_layer *layer = &m.model->layers[1];
    assert_int_equal(layer->up.weight->type, GGUF_MXFP4);
    assert_int_equal(layer->attn_q.weight->type, GGUF_Q4_K); /* rows of 256 */
    assert_int_equal(m.model->layers[0].attn_k.weight->type, GGUF_Q3_K);
    assert_int_equal(layer->attn_k.weight->type, GGUF_Q2_K);
    assert_int_equal(m.model->output->type, GGUF_F16);
    assert_int_equal(layer->router.weight->type, GGUF_F32);
    close_model(&m);
    assert_int_equal(CHECK(path), EXIT_DONE);
    assert_int_equal(SYNTH("--type", "attn_k"), EXIT_USAGE);
    says("NAME=TYPE is wanted");
    assert_int_equal(SYNTH("--mix", "iq2_m"), EXIT_USAGE);
    says("q4_k_m");
    assert_int_equal(SYNTH("--type-matrices", "iq4_nl"), EXIT_USAGE);
    says("q6_k");
}

static void quantizes_to_the_types_of_the_label(void **state)
{
    (void)state;
    static const struct {
        const char *label;
        enum gguf_type v0, v1, out, up, output;
    } cases[] = {{"q4_k_m", GGUF_Q8_0, GGUF_Q5_0, GGUF_Q4_K, GGUF_Q5_0, GGUF_Q8_0},
                 {"q8_0", GGUF_Q8_0, GGUF_Q8_0, GGUF_Q8_0, GGUF_Q8_0, GGUF_Q8_0},
                 {"mxfp4", GGUF_Q8_0, GGUF_Q8_0, GGUF_Q8_0, GGUF_MXFP4, GGUF_Q8_0}};
    assert_int_equal(SYNTH("--layers", "9", "--mix", "bf16"), EXIT_DONE);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(QUANTIZE("--to", cases[i].label, path, second), EXIT_DONE);
        struct gguf_file *file;
        struct gguf_model *model;
        uint32_t type;
        assert_int_equal(gguf_open(&file, second, err, sizeof err), 0);
        assert_int_equal(gguf_model_create(&model, file, err, sizeof err), 0);
        assert_int_equal(model->layers[0].attn_v.weight->type, cases[i].v0);
        assert_int_equal(model->layers[1].attn_v.weight->type, cases[i].v1);
        assert_int_equal(model->layers[1].attn_out.weight->type, cases[i].out);
        assert_int_equal(model->layers[1].up.weight->type, cases[i].up);
        assert_int_equal(model->layers[1].router.weight->type, GGUF_F32);
        assert_int_equal(model->output->type, cases[i].output);
        assert_int_equal(gguf_get_u32(file, "general.file_type", &type, err, sizeof err), 0);
        assert_int_equal(type, mix_find(cases[i].label)->file_type);
        gguf_model_destroy(model);
        gguf_close(file);
        assert_int_equal(CHECK(second), EXIT_DONE);
        /* What it cost: keys are the same but for the label, norms not touched. */
        assert_int_equal(DIFF(path, second), EXIT_FAILED);
        says("key general.file_type: 32 (u32) -> ");
        says("1 keys and ");
        assert_null(strstr(said, "norm"));
    }
    says("tensor blk.0.ffn_up_exps.weight: BF16 16 × 64 × 192 -> MXFP4 16 × 64 × 192: off by 0.1");
}

static void keeps_experts_that_are_mxfp4_unless_told(void **state)
{
    (void)state;
    assert_int_equal(SYNTH("--layers", "1"), EXIT_DONE);
    struct model m;
    assert_int_equal(QUANTIZE("--to", "q4_k_m", path, second), EXIT_DONE);
    assert_int_equal(rename(second, path), 0);
    m = open_model();
    assert_int_equal(m.model->layers[0].up.weight->type, GGUF_MXFP4);
    assert_int_equal(m.model->layers[0].attn_q.weight->type, GGUF_Q5_0);
    close_model(&m);
    assert_int_equal(QUANTIZE("--to", "q8_0", "--requantize", path, second), EXIT_DONE);
    assert_int_equal(rename(second, path), 0);
    m = open_model();
    assert_int_equal(m.model->layers[0].up.weight->type, GGUF_Q8_0);
    close_model(&m);
}

static void refuses_to_quantize_what_it_cannot(void **state)
{
    (void)state;
    assert_int_equal(QUANTIZE("--to", "q4_k_m", path), EXIT_USAGE);
    assert_int_equal(QUANTIZE(path, second), EXIT_USAGE);
    says("q4_k_m");
    assert_int_equal(QUANTIZE("--to", "iq1_s", path, second), EXIT_USAGE);
    assert_int_equal(QUANTIZE("--to", "q8_0", "/no/such/file", second), EXIT_MODEL);
    assert_int_equal(QUANTIZE("--to", "q8_0", TINY, "/no/such/folder/f"), EXIT_FAILED);
    assert_int_equal(SYNTH("--layers", "1", "--mix", "f32"), EXIT_DONE);
    struct model m = open_model();
    uint64_t at = m.model->layers[0].attn_q.weight->offset;
    close_model(&m);
    write_at(path, at + 400, "\0\0\300\177", 4);
    assert_int_equal(QUANTIZE("--to", "q8_0", path, second), EXIT_FAILED);
    says("tensor blk.0.attn_q.weight has a number in rows 0-511 that is NaN or infinite");
}

/* ── diff ──────────────────────────────────────────────────────────────────────────────────── */

static void tells_what_two_files_do_not_share(void **state)
{
    (void)state;
    assert_int_equal(DIFF(TINY, TINY), EXIT_DONE);
    says("0 keys and 0 tensors differ, 32 and 459 are the same");
    assert_int_equal(DIFF(TINY, Q4_K_M), EXIT_FAILED);
    says("tensor blk.0.attn_output.weight: Q8_0 192 × 512 -> Q4_K 192 × 512: off by 0.0");
    assert_int_equal(SYNTH("--layers", "2"), EXIT_DONE);
    assert_int_equal(DIFF("--no-data", path, TINY), EXIT_FAILED);
    says("key gpt-oss.block_count: 2 (u32) -> 24 (u32)");
    says("tensor blk.2.attn_q.weight: only in the second");
    says("key tokenizer.chat_template: \"");
    assert_int_equal(DIFF(path), EXIT_USAGE);
    assert_int_equal(DIFF(path, "/no/such/file"), EXIT_MODEL);
}

static int make_paths(void **state)
{
    if (make_path(state))
        return -1;
    snprintf(second, sizeof second, "%s.2", path);
    return 0;
}

static int remove_paths(void **state)
{
    unlink(second);
    return remove_path(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_the_bundled_models_sound),
        cmocka_unit_test(tells_a_line_for_each_thing_that_is_wrong),
        cmocka_unit_test(notes_what_is_unusual_and_no_error),
        cmocka_unit_test(plans_a_row_for_each_rank),
        cmocka_unit_test(refuses_what_does_not_fit_and_says_what_would),
        cmocka_unit_test(knows_the_types_of_a_file_that_llama_cpp_wrote),
        cmocka_unit_test(knows_the_types_of_every_published_label),
        cmocka_unit_test(writes_any_mix_of_types),
        cmocka_unit_test(quantizes_to_the_types_of_the_label),
        cmocka_unit_test(keeps_experts_that_are_mxfp4_unless_told),
        cmocka_unit_test(refuses_to_quantize_what_it_cannot),
        cmocka_unit_test(tells_what_two_files_do_not_share),
    };
    return cmocka_run_group_tests(tests, make_paths, remove_paths);
}
