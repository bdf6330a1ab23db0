/*
 * gguf: the gpt-oss model is read from its keys alone, and what contradicts itself, is missing or is
 * of another architecture or type is refused with a sentence.
 */
#include "test.h"

#include "gguf_blob.h"

static void refuses_model(struct change change, const char *words)
{
    struct blob b = build_model(&change);
    save(&b);
    free(b.bytes);
    if (try_open(true) != -1)
        fail_msg("accepted, though it should say: %s", words);
    if (!strstr(err, words) || strncmp(err, path, strlen(path)) != 0)
        fail_msg("says \"%s\", not \"%s\"", err, words);
}

static struct gguf_model *accepts_model(struct change change, struct gguf_file **file)
{
    struct gguf_model *model;
    struct blob b = build_model(&change);
    save(&b);
    free(b.bytes);
    if (gguf_open(file, path, err, sizeof err) || gguf_model_create(&model, *file, err, sizeof err))
        fail_msg("%s", err);
    return model;
}

static void close_model(struct gguf_model *model, struct gguf_file *file)
{
    gguf_model_destroy(model);
    gguf_close(file);
}

/* ── models ────────────────────────────────────────────────────────────────────────────────── */

static void reads_a_model_of_any_sizes(void **state)
{
    (void)state;
    struct gguf_file *file;
    struct gguf_model *model = accepts_model((struct change){0}, &file);
    assert_int_equal(model->hidden, HIDDEN);
    assert_int_equal(model->head_dim, HEAD_DIM);
    assert_int_equal(model->expert_ffn, FFN); /* from feed_forward_length */
    assert_int_equal(model->vocabulary, VOCABULARY);
    assert_int_equal(model->window, 37);
    assert_true(model->yarn_factor == 1);
    close_model(model, file);

    model = accepts_model((struct change){.tensor = "output.weight"}, &file);
    assert_ptr_equal(model->output, model->embedding);
    close_model(model, file);
    model = accepts_model((struct change){.key = "gpt-oss.attention.key_length"}, &file);
    assert_int_equal(model->head_dim, HIDDEN / HEADS);
    close_model(model, file);
    model = accepts_model(
        (struct change){.key = "gpt-oss.rope.scaling.factor", .kind = 'f', .number = 8}, &file);
    assert_true(model->yarn_factor == 8 && model->yarn_context == 1024 / 8);
    close_model(model, file);
    const struct change attention = {
        .key = "gpt-oss.rope.scaling.attn_factor", .kind = 'f', .number = 0.5};
    model = accepts_model(attention, &file);
    double omega[HEAD_DIM / 2];
    assert_true(gguf_model_rope(model, omega) == 1); /* no YaRN, so nothing to weaken */
    model->yarn_factor = 32;
    assert_true(fabs(gguf_model_rope(model, omega) - 0.5 * (1 + 0.1 * log(32))) < 1e-12);
    close_model(model, file);
    const struct change none = {.key = "gpt-oss.rope.scaling.type", .kind = 's', .text = "none"};
    model = accepts_model(none, &file);
    assert_true(model->yarn_factor == 1);
    close_model(model, file);
    model = accepts_model(
        (struct change){.key = "gpt-oss.expert_count", .kind = 'i', .number = EXPERTS}, &file);
    close_model(model, file);
}

static void slides_as_the_pattern_says(void **state)
{
    (void)state;
    static const char pattern[] = "gpt-oss.attention.sliding_window_pattern";
    const struct {
        char kind;
        double number;
        bool sliding[2];
    } cases[] = {{0, 0, {true, false}},  {'u', 2, {true, false}}, {'u', 1, {false, false}},
                 {'u', 0, {true, true}}, {'u', 3, {true, true}},  {'b', 2, {false, true}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gguf_file *file;
        struct change change = {.key = pattern, .kind = cases[i].kind, .number = cases[i].number};
        struct gguf_model *model = accepts_model(change, &file);
        assert_int_equal(model->layers[0].sliding, cases[i].sliding[0]);
        assert_int_equal(model->layers[1].sliding, cases[i].sliding[1]);
        close_model(model, file);
    }
    refuses_model((struct change){.key = pattern, .kind = 'b', .number = 3},
                  "an array of 3 values of type bool, not of 2");
}

static void refuses_other_architectures_by_name(void **state)
{
    (void)state;
    const char *key_name = "general.architecture";
    refuses_model((struct change){.key = key_name, .kind = 's', .text = "llama"},
                  "is a model of architecture llama; gptoss runs gpt-oss models only");
    refuses_model((struct change){.key = key_name, .kind = 's', .text = "gptoss"},
                  "Ollama's own flavour of gpt-oss");
    refuses_model((struct change){.key = key_name, .kind = 'u', .number = 3},
                  "key general.architecture is of type u32, not a string");
    refuses_model((struct change){.key = key_name}, "has no key general.architecture");
    refuses_model((struct change){.key = "split.count", .kind = 'u', .number = 3},
                  "is part 1 of 3 of a split model");
}

static void refuses_sizes_that_contradict(void **state)
{
    (void)state;
    const struct {
        const char *key;
        char kind;
        double number;
        const char *words;
    } cases[] = {
        {"gpt-oss.block_count", 'u', 0, "gpt-oss.block_count is 0, not between 1 and"},
        {"gpt-oss.block_count", 'u', 3, "says that it has 3 layers, and has 41 tensors"},
        {"gpt-oss.block_count", 'u', 4000000000.0,
         "gpt-oss.block_count is 4000000000, not between"},
        {"gpt-oss.block_count", 'u', 1,
         "says that it has 1 layers, and has tensor blk.1.attn_norm"},
        {"gpt-oss.block_count", 'i', -2, "gpt-oss.block_count is -2, not between 0 and"},
        {"gpt-oss.block_count", 'f', 2, "key gpt-oss.block_count is of type f32, not an integer"},
        {"gpt-oss.embedding_length", 'u', 32,
         "token_embd.weight has the shape 64x40x1x1, and its keys say 32x40x1"},
        {"gpt-oss.embedding_length", 0, 0, "key gpt-oss.embedding_length is missing"},
        {"gpt-oss.attention.head_count", 'u', 3, "3 query heads are no multiple of 2 kv heads"},
        {"gpt-oss.attention.head_count_kv", 'u', 0, "head_count_kv is 0, not between"},
        {"gpt-oss.attention.head_count_kv", 'u', 8, "4 query heads are no multiple of 8 kv heads"},
        {"gpt-oss.attention.head_count_kv", 0, 0, "blk.0.attn_k.weight has the shape 64x32"},
        {"gpt-oss.attention.key_length", 'u', 15, "the size of a head is 15, and must be even"},
        {"gpt-oss.attention.key_length", 'u', 32, "blk.0.attn_q.weight has the shape 64x64"},
        {"gpt-oss.attention.value_length", 'u', 8, "keys of 16 values and values of 8"},
        {"gpt-oss.rope.dimension_count", 'u', 8, "8 of 16 values of a head are rotated"},
        {"gpt-oss.attention.sliding_window", 'u', 0, "sliding_window is 0, not between"},
        {"gpt-oss.attention.sliding_window", 0, 0, "sliding_window is missing"},
        {"gpt-oss.expert_used_count", 'u', 5, "5 experts are active of 4"},
        {"gpt-oss.expert_used_count", 'u', 0, "expert_used_count is 0"},
        {"gpt-oss.expert_count", 'u', 8, "blk.0.ffn_gate_inp.weight has the shape 64x4"},
        {"gpt-oss.expert_feed_forward_length", 'u', 64,
         "ffn_gate_exps.weight has the shape 64x32x4x1, and its keys say 64x64x4"},
        {"gpt-oss.feed_forward_length", 0, 0, "feed_forward_length is missing"},
        {"gpt-oss.context_length", 0, 0, "context_length is missing"},
        {"gpt-oss.attention.layer_norm_rms_epsilon", 'f', -1, "layer_norm_rms_epsilon is -1, not"},
        {"gpt-oss.attention.layer_norm_rms_epsilon", 'f', NAN,
         "layer_norm_rms_epsilon is nan, not"},
        {"gpt-oss.rope.freq_base", 'f', INFINITY, "rope.freq_base is inf, not between"},
        {"gpt-oss.rope.freq_base", 's', 0,
         "key gpt-oss.rope.freq_base is of type string, not a number"},
        {"gpt-oss.rope.freq_base_swa", 'f', 10000, "sliding layers have a RoPE base of their own"},
        {"gpt-oss.rope.scaling.type", 's', 0, "rope.scaling.type is linear; gptoss knows yarn"},
        {"gpt-oss.rope.scaling.factor", 'f', 0, "rope.scaling.factor is 0, not between 1"},
        {"gpt-oss.rope.scaling.yarn_beta_slow", 'f', 64,
         "yarn_beta_fast (32) is not above yarn_beta_slow (64)"},
        {"gpt-oss.rope.scaling.type", 'u', 1, "rope.scaling.type is of type u32, not a string"},
        {"gpt-oss.rope.scaling.factor", 's', 0, "rope.scaling.factor is of type string, not a num"},
        {"gpt-oss.attention.head_count", 'u', 0, "head_count is 0, not between"},
        {"gpt-oss.vocab_size", 'u', 41,
         "token_embd.weight has 40 rows, and gpt-oss.vocab_size says 41"},
        {"tokenizer.ggml.tokens", 'b', 41,
         "token_embd.weight has 40 rows, and tokenizer.ggml.tokens says 41"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuses_model((struct change){.key = cases[i].key,
                                      .kind = cases[i].kind,
                                      .number = cases[i].number,
                                      .text = "linear"},
                      cases[i].words);
}

static void refuses_tensors_missing_or_of_another_shape_or_type(void **state)
{
    (void)state;
    static const char *const needed[] = {
        "token_embd.weight",       "output_norm.weight",       "blk.0.attn_norm.weight",
        "blk.1.attn_q.bias",       "blk.1.attn_sinks.weight",  "blk.0.post_attention_norm.weight",
        "blk.1.ffn_gate_inp.bias", "blk.0.ffn_up_exps.weight", "blk.1.ffn_down_exps.bias"};
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        char words[80];
        snprintf(words, sizeof words, "tensor %s is missing", needed[i]);
        /* One in place of the missing one, so that their number does not tell. */
        refuses_model((struct change){.tensor = needed[i], .extra_tensor = "other"}, words);
    }
#define OTHER(name, ...) ((struct change){.tensor = (name), .other = true, __VA_ARGS__})
    refuses_model(OTHER("blk.1.attn_output.weight", .type = GGUF_Q8_0, .ne = {32}),
                  "blk.1.attn_output.weight has the shape 32x64x1x1, and its keys say 64x64x1");
    refuses_model(OTHER("blk.0.ffn_down_exps.weight", .type = GGUF_MXFP4, .ne = {0, 0, 5}),
                  "blk.0.ffn_down_exps.weight has the shape 32x64x5x1");
    refuses_model(OTHER("blk.0.ffn_down_exps.bias", .type = GGUF_F32, .ne = {32}),
                  "blk.0.ffn_down_exps.bias has the shape 32x4x1x1");
    refuses_model(OTHER("output.weight", .type = GGUF_Q8_0, .ne = {0, 41}),
                  "output.weight has the shape 64x41x1x1");
    refuses_model(OTHER("blk.0.ffn_up_exps.weight", .type = 20),
                  "blk.0.ffn_up_exps.weight has type IQ4_NL, which gptoss does not compute with: "
                  "take a file of the same model with Q4_0 or MXFP4 instead");
    refuses_model(OTHER("blk.0.attn_q.weight", .type = 40), "has type NVFP4, which");
    refuses_model(OTHER("blk.0.attn_q.weight", .type = 23, .ne = {256}), "64");
    refuses_model(OTHER("blk.0.attn_norm.weight", .type = GGUF_F16),
                  "blk.0.attn_norm.weight has type F16; norms, biases and sinks must be F32");
    refuses_model((struct change){.tensor = "blk.1.attn_qkv.bias", .fused = true},
                  "tensor blk.1.attn_qkv.bias is missing");
    refuses_model((struct change){.tensor = "blk.0.attn_qkv.weight", .fused = true},
                  "tensor blk.0.attn_qkv.weight is missing");
    refuses_model((struct change){.extra_tensor = "blk.1.attn_sinks.bias",
                                  .fused = true,
                                  .key = "gpt-oss.attention.key_length",
                                  .kind = 'u',
                                  .number = 8},
                  "blk.0.attn_qkv.weight has the shape 64x128x1x1, and its keys say 64x64x1");
    refuses_model((struct change){.extra_tensor = "blk.0.attn_k.bias", .fused = true},
                  "blk.0.attn_k.bias has the shape 1x1x1x1, and its keys say 32x1x1");
#undef OTHER
}

static void reads_query_key_and_value_in_one_as_rows_of_it(void **state)
{
    (void)state;
    struct gguf_file *file;
    struct gguf_model *model = accepts_model((struct change){.fused = true}, &file);
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < 2; i++) {
        const struct gguf_layer *layer = &model->layers[i];
        char name[64];
        snprintf(name, sizeof name, "blk.%u.attn_qkv.weight", i);
        const struct gguf_tensor *all = gguf_tensor_find(file, name);
        const struct gguf_tensor *q = layer->attn_q.weight, *k = layer->attn_k.weight,
                                 *v = layer->attn_v.weight;
        assert_int_equal(q->ne[1], HEADS * HEAD_DIM);
        assert_int_equal(k->ne[1], KV_HEADS * HEAD_DIM);
        assert_int_equal(v->ne[1], KV_HEADS * HEAD_DIM);
        assert_ptr_equal(q->data, all->data);
        assert_ptr_equal(k->data, q->data + q->bytes);
        assert_ptr_equal(v->data, k->data + k->bytes);
        assert_ptr_equal(v->data + v->bytes, all->data + all->bytes);
        assert_int_equal(q->bytes, q->ne[1] * q->row_bytes);
        assert_int_equal(v->offset, all->offset + (q->ne[1] + k->ne[1]) * all->row_bytes);
        const struct gguf_tensor *bias = layer->attn_v.bias;
        assert_int_equal(bias->ne[0], KV_HEADS * HEAD_DIM);
        assert_int_equal(bias->bytes, 4 * KV_HEADS * HEAD_DIM);
        assert_ptr_equal(bias->data, layer->attn_q.bias->data + 4 * (HEADS + KV_HEADS) * HEAD_DIM);
        bytes += layer->bytes;
    }
    assert_int_equal(model->bytes, bytes + model->embedding->bytes + model->output->bytes +
                                       model->output_norm->bytes);
    close_model(model, file);
}

static void refuses_the_key_length_left_out_where_heads_do_not_share_evenly(void **state)
{
    (void)state;
    struct change change = {.key = "gpt-oss.attention.head_count", .kind = 'u', .number = 6};
    struct blob b = build_model(&change);
    /* The key by another name. */
    unsigned char *name = memmem(b.bytes, b.size, "attention.key_length", 20);
    assert_non_null(name);
    name[0] = 'A';
    save(&b);
    free(b.bytes);
    assert_int_equal(try_open(true), -1);
    assert_non_null(strstr(err, "key_length is missing, and 64 values are not shared evenly by 6"));
}

static void refuses_floats_at_odd_addresses(void **state)
{
    (void)state;
    int accepted = 0;
    for (size_t slack = 0; slack < 4; slack++) {
        struct change change = {
            .key = "general.alignment", .kind = 'u', .number = 1, .slack = "four" + slack};
        struct blob b = build_model(&change);
        save(&b);
        free(b.bytes);
        if (!try_open(true))
            accepted++;
        else if (!strstr(err, "begins at the odd address"))
            fail_msg("%s", err);
    }
    assert_int_equal(accepted, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_a_model_of_any_sizes),
        cmocka_unit_test(slides_as_the_pattern_says),
        cmocka_unit_test(refuses_other_architectures_by_name),
        cmocka_unit_test(refuses_sizes_that_contradict),
        cmocka_unit_test(refuses_tensors_missing_or_of_another_shape_or_type),
        cmocka_unit_test(refuses_the_key_length_left_out_where_heads_do_not_share_evenly),
        cmocka_unit_test(reads_query_key_and_value_in_one_as_rows_of_it),
        cmocka_unit_test(refuses_floats_at_odd_addresses),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
