/*
 * gguf: the bundled model opens with the sizes that it has; block formats, half floats and RoPE give
 * known numbers; what the writer writes is read back.
 */
#include "test.h"

#include "gguf/gguf.h"

#include <unistd.h>

#define TINY GPTOSS_SOURCE_DIR "/models/gptoss-tiny-mxfp4.gguf"

static char err[512];

struct model {
    struct gguf_file *file;
    struct gguf_model *model;
};

static struct model open_model(const char *path)
{
    struct model m = {0};
    if (gguf_open(&m.file, path, err, sizeof err) ||
        gguf_model_create(&m.model, m.file, err, sizeof err))
        fail_msg("%s", err);
    return m;
}

static void close_model(struct model *m)
{
    gguf_model_destroy(m->model);
    gguf_close(m->file);
}

static const char *scratch(char path[64])
{
    strcpy(path, "/tmp/gptoss-test-gguf-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    return path;
}

/* ── the bundled model ─────────────────────────────────────────────────────────────────────── */

static void opens_the_bundled_model_with_its_sizes(void **state)
{
    (void)state;
    struct model m = open_model(TINY);
    const struct gguf_model *model = m.model;
    assert_int_equal(gguf_version(m.file), 3);
    assert_int_equal(gguf_alignment(m.file), 32);
    assert_int_equal(gguf_file_bytes(m.file), 16533696);
    assert_int_equal(gguf_header_bytes(m.file), 156864);
    assert_int_equal(gguf_n_keys(m.file), 32);
    assert_int_equal(gguf_n_tensors(m.file), 459);

    assert_int_equal(model->n_layers, 24);
    assert_int_equal(model->hidden, 192);
    assert_int_equal(model->heads, 8);
    assert_int_equal(model->kv_heads, 2);
    assert_int_equal(model->head_dim, 64);
    assert_int_equal(model->experts, 16);
    assert_int_equal(model->active, 4);
    assert_int_equal(model->expert_ffn, 64);
    assert_int_equal(model->vocabulary, 4096);
    assert_int_equal(model->window, 128);
    assert_int_equal(model->context, 131072);
    assert_true(model->norm_eps == 1e-5f && model->rope_theta == 150000.0f);
    assert_true(model->yarn_factor == 32.0f && model->yarn_context == 4096);
    assert_true(model->yarn_beta_fast == 32.0f && model->yarn_beta_slow == 1.0f);
    assert_true(model->swiglu_alpha == 1.702f && model->swiglu_limit == 7.0f);
    assert_int_equal(model->bytes, 16533696 - 156864);
    close_model(&m);
}

static void finds_the_tensors_of_every_layer(void **state)
{
    (void)state;
    struct model m = open_model(TINY);
    uint64_t bytes =
        m.model->embedding->bytes + m.model->output_norm->bytes + m.model->output->bytes;
    for (uint32_t i = 0; i < m.model->n_layers; i++) {
        const struct gguf_layer *layer = &m.model->layers[i];
        const struct {
            const struct gguf_tensor *tensor;
            const char *name;
        } roles[] = {
            {layer->attn_norm, "attn_norm.weight"},
            {layer->attn_q.weight, "attn_q.weight"},
            {layer->attn_q.bias, "attn_q.bias"},
            {layer->attn_k.weight, "attn_k.weight"},
            {layer->attn_k.bias, "attn_k.bias"},
            {layer->attn_v.weight, "attn_v.weight"},
            {layer->attn_v.bias, "attn_v.bias"},
            {layer->attn_out.weight, "attn_output.weight"},
            {layer->attn_out.bias, "attn_output.bias"},
            {layer->sinks, "attn_sinks.weight"},
            {layer->ffn_norm, "post_attention_norm.weight"},
            {layer->router.weight, "ffn_gate_inp.weight"},
            {layer->router.bias, "ffn_gate_inp.bias"},
            {layer->gate.weight, "ffn_gate_exps.weight"},
            {layer->gate.bias, "ffn_gate_exps.bias"},
            {layer->up.weight, "ffn_up_exps.weight"},
            {layer->up.bias, "ffn_up_exps.bias"},
            {layer->down.weight, "ffn_down_exps.weight"},
            {layer->down.bias, "ffn_down_exps.bias"},
        };
        for (size_t k = 0; k < sizeof roles / sizeof *roles; k++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%u.%s", i, roles[k].name);
            assert_string_equal(roles[k].tensor->name, name);
        }
        assert_int_equal(layer->down.weight->type, GGUF_MXFP4);
        assert_int_equal(layer->down.weight->row_bytes, 34);
        assert_int_equal(layer->attn_q.weight->type, GGUF_Q8_0);
        assert_int_equal(layer->attn_q.weight->ne[1], 512);
        assert_int_equal(layer->sliding, i % 2 == 0);
        bytes += layer->bytes;
    }
    assert_int_equal(bytes, m.model->bytes);
    assert_string_equal(m.model->output->name, "output.weight");
    close_model(&m);
}

static void reads_keys_of_every_kind(void **state)
{
    (void)state;
    struct model m = open_model(TINY);
    struct gguf_string text;
    float number;
    uint32_t size = 7;
    assert_int_equal(gguf_get_string(m.file, "tokenizer.ggml.pre", &text, err, sizeof err), 0);
    assert_int_equal(text.size, 6);
    assert_memory_equal(text.bytes, "gpt-4o", 6);
    assert_int_equal(gguf_get_f32(m.file, "gpt-oss.rope.freq_base", &number, err, sizeof err), 0);
    assert_true(number == 150000.0f);
    assert_int_equal(gguf_get_u32(m.file, "no.such.key", &size, err, sizeof err), 1);
    assert_int_equal(size, 7);
    assert_int_equal(gguf_get_u32(m.file, "tokenizer.ggml.pre", &size, err, sizeof err), -1);
    assert_non_null(strstr(err, "tokenizer.ggml.pre is of type string, not an integer"));

    const struct gguf_key *tokens = gguf_key_find(m.file, "tokenizer.ggml.tokens");
    const struct gguf_key *types = gguf_key_find(m.file, "tokenizer.ggml.token_type");
    assert_non_null(tokens);
    assert_non_null(types);
    assert_int_equal(tokens->count, 4096);
    uint64_t cursor = 0;
    for (uint64_t i = 0; i < tokens->count; i++) {
        text = gguf_next_string(tokens, &cursor);
        if (i == 4086)
            assert_memory_equal(text.bytes, "<|startoftext|>", 15);
    }
    assert_int_equal(cursor, tokens->size);
    assert_int_equal(gguf_integer_at(types, 4085), 1);
    assert_int_equal(gguf_integer_at(types, 4086), 3);
    close_model(&m);
}

/* A key of each type holds 200 or −100, an array of it too. */
static void converts_integers_and_floats_of_every_width(void **state)
{
    (void)state;
    char path[64];
    struct gguf_writer *w;
    struct gguf_file *file;
    const struct {
        const char *name;
        enum gguf_value_type type;
        uint64_t bits;
        int64_t value;
    } keys[] = {{"u8", GGUF_VALUE_U8, 200, 200},
                {"i8", GGUF_VALUE_I8, 156, -100},
                {"u16", GGUF_VALUE_U16, 200, 200},
                {"i16", GGUF_VALUE_I16, 65436, -100},
                {"i64", GGUF_VALUE_I64, (uint64_t)-100, -100},
                {"u64", GGUF_VALUE_U64, UINT64_MAX, INT64_MAX},
                {"bool", GGUF_VALUE_BOOL, 1, 1},
                {"odd", GGUF_VALUE_U32, 16777217, 16777217},
                {"even", GGUF_VALUE_U64, 16777216, 16777216}};
    const double numbers[] = {0.5, 1e300};
    assert_int_equal(gguf_writer_create(&w, scratch(path), err, sizeof err), 0);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        static const uint8_t bytes[13] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
        const struct gguf_key key = {.name = {keys[i].name, strlen(keys[i].name)},
                                     .type = keys[i].type,
                                     .element = keys[i].type,
                                     .count = 1,
                                     .data = (const unsigned char *)&keys[i].bits,
                                     .size = bytes[keys[i].type]};
        gguf_writer_key(w, &key);
    }
    for (int i = 0; i < 2; i++) {
        const struct gguf_key key = {.name = {i ? "large" : "half", i ? 5 : 4},
                                     .type = GGUF_VALUE_F64,
                                     .element = GGUF_VALUE_F64,
                                     .count = 1,
                                     .data = (const unsigned char *)&numbers[i],
                                     .size = 8};
        gguf_writer_key(w, &key);
    }
    gguf_writer_string(w, "text", "once");
    assert_int_equal(gguf_writer_begin(w, err, sizeof err), 0);
    assert_int_equal(gguf_writer_finish(w, err, sizeof err), 0);
    gguf_writer_destroy(w);
    assert_int_equal(gguf_open(&file, path, err, sizeof err), 0);
    float number;
    uint32_t size;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        assert_int_equal(gguf_integer_at(gguf_key_find(file, keys[i].name), 0), keys[i].value);
        int fits =
            keys[i].value >= 0 && keys[i].value < UINT32_MAX && keys[i].type != GGUF_VALUE_BOOL;
        assert_int_equal(gguf_get_u32(file, keys[i].name, &size, err, sizeof err), fits ? 0 : -1);
    }
    assert_int_equal(gguf_get_f32(file, "half", &number, err, sizeof err), 0);
    assert_true(number == 0.5f);
    assert_int_equal(gguf_get_f32(file, "even", &number, err, sizeof err), 0);
    assert_true(number == 16777216.0f);
    assert_int_equal(gguf_get_f32(file, "large", &number, err, sizeof err), -1);
    assert_int_equal(gguf_get_f32(file, "odd", &number, err, sizeof err), -1);
    assert_non_null(strstr(err, "key odd is 16777217, which no 32-bit float holds"));
    uint64_t cursor = 0; /* a scalar string is walked like an array of one */
    const struct gguf_key *text = gguf_key_find(file, "text");
    assert_int_equal(gguf_next_string(text, &cursor).size, 4);
    assert_int_equal(gguf_next_string(text, &cursor).size, 0);
    cursor = 0;
    assert_int_equal(gguf_next_string(gguf_key_find(file, "half"), &cursor).size, 0);
    gguf_close(file);
    unlink(path);
}

/* ── numbers ───────────────────────────────────────────────────────────────────────────────── */

static void converts_every_half_and_back(void **state)
{
    (void)state;
    for (uint32_t half = 0; half < 65536; half++) {
        uint32_t exponent = half >> 10 & 31, mantissa = half & 1023;
        float value = gguf_half_to_float((uint16_t)half);
        if (exponent == 31 && mantissa) {
            assert_true(isnan(value));
            assert_true(isnan(gguf_half_to_float(gguf_float_to_half(value))));
            continue;
        }
        double want = exponent == 31 ? (double)INFINITY
                      : exponent     ? ldexp(1024 + mantissa, (int)exponent - 25)
                                     : ldexp(mantissa, -24);
        assert_true((double)value == (half & 0x8000 ? -want : want));
        assert_int_equal(gguf_float_to_half(value), half);
    }
}

static void rounds_to_the_nearest_half_and_ties_to_even(void **state)
{
    (void)state;
    for (uint32_t half = 0; half < 0x7bff; half++) {
        float low = gguf_half_to_float((uint16_t)half),
              high = gguf_half_to_float((uint16_t)(half + 1));
        float middle = (low + high) / 2;
        assert_int_equal(gguf_float_to_half(middle), half + (half & 1));
        assert_int_equal(gguf_float_to_half(nextafterf(middle, 0)), half);
        assert_int_equal(gguf_float_to_half(nextafterf(middle, INFINITY)), half + 1);
        assert_int_equal(gguf_float_to_half(-middle), 0x8000 + half + (half & 1));
    }
    assert_int_equal(gguf_float_to_half(65519.996f), 0x7bff);
    assert_int_equal(gguf_float_to_half(65520.0f), 0x7c00);
}

static void dequantises_blocks_worked_out_by_hand(void **state)
{
    (void)state;
    float x[32];
    unsigned char q8_0[34] = {0x00, 0x38, 1, 0xff, 127, 0x80}; /* d = 0.5; 1, −1, 127, −128, 0 … */
    gguf_to_float(GGUF_Q8_0, q8_0, x, 32);
    assert_true(x[0] == 0.5f && x[1] == -0.5f && x[2] == 63.5f && x[3] == -64.0f && x[4] == 0.0f);

    unsigned char mxfp4[17] = {128, 0x21, 0x7f, [16] = 0xe3}; /* 2^(128 − 127) = 2 */
    gguf_to_float(GGUF_MXFP4, mxfp4, x, 32);
    assert_true(x[0] == 1.0f);   /* code 1 is 0.5 */
    assert_true(x[16] == 2.0f);  /* code 2 is 1 */
    assert_true(x[1] == -12.0f); /* code 15 is −6 */
    assert_true(x[17] == 12.0f);
    assert_true(x[15] == 3.0f && x[31] == -8.0f && x[2] == 0.0f);

    const unsigned char bf16[4] = {0x80, 0x3f, 0x40, 0xc0};
    gguf_to_float(GGUF_BF16, bf16, x, 2);
    assert_true(x[0] == 1.0f && x[1] == -3.0f);
    const unsigned char f16[4] = {0x00, 0x3c, 0x00, 0xc2};
    gguf_to_float(GGUF_F16, f16, x, 2);
    assert_true(x[0] == 1.0f && x[1] == -3.0f);
}

static void quantises_ties_as_the_formats_say(void **state)
{
    (void)state;
    /* Q8_0 with d = 1: halves go away from zero. */
    const float x[32] = {127, 0.5f, 1.5f, -0.5f, -2.5f, 0.49f};
    unsigned char block[34];
    assert_int_equal(gguf_from_float(GGUF_Q8_0, x, block, 32), 0);
    const signed char want[6] = {127, 1, 2, -1, -3, 0};
    assert_memory_equal(block + 2, want, 6);
    /* BF16 has 8 bits: ties go to the even one. */
    const float y[4] = {1 + 0x1p-8f, 1 + 0x3p-8f, 1 + 0x1p-8f + 0x1p-20f, -1 - 0x1p-8f};
    uint16_t bf16[4];
    assert_int_equal(gguf_from_float(GGUF_BF16, y, bf16, 4), 0);
    assert_int_equal(bf16[0], 0x3f80);
    assert_int_equal(bf16[1], 0x3f82);
    assert_int_equal(bf16[2], 0x3f81);
    assert_int_equal(bf16[3], 0xbf80);
    /* MXFP4 at scale 1: 2.5 lies between 2 and 3, 5 between 4 and 6. */
    const float z[32] = {6, 2.5f, 5, -5, 2.6f, 0.25f};
    assert_int_equal(gguf_from_float(GGUF_MXFP4, z, block, 32), 0);
    const unsigned char codes[7] = {127, 7, 4, 6, 14, 5, 0};
    assert_memory_equal(block, codes, 7);
}

/* The vectors were made by another program: tests/data/gguf_blocks.py. */
static void agrees_with_the_gguf_package_on_random_blocks(void **state)
{
    (void)state;
    FILE *in = fopen(GPTOSS_SOURCE_DIR "/tests/data/gguf_blocks.bin", "rb");
    assert_non_null(in);
    uint32_t head[4];
    int records[2] = {0};
    while (fread(head, sizeof head, 1, in) == 1) {
        enum gguf_type type = (enum gguf_type)head[1];
        uint32_t values = head[2], bytes = head[3];
        unsigned char *blocks = malloc(bytes), *got_blocks = malloc(bytes);
        float *floats = malloc(values * sizeof *floats), *got = malloc(values * sizeof *got);
        assert_int_equal(fread(blocks, 1, bytes, in), bytes);
        assert_int_equal(fread(floats, sizeof *floats, values, in), values);
        assert_int_equal(gguf_row_bytes(type, values), bytes);
        if (head[0] == 0) {
            gguf_to_float(type, blocks, got, values);
            for (uint32_t i = 0; i < values; i++)
                if (got[i] != floats[i])
                    fail_msg("%s: element %u is %g, want %g", gguf_type_name(type), i,
                             (double)got[i], (double)floats[i]);
        } else {
            assert_int_equal(gguf_from_float(type, floats, got_blocks, values), 0);
            for (uint32_t i = 0; i < bytes; i++)
                if (got_blocks[i] != blocks[i])
                    fail_msg("%s: byte %u is %u, want %u", gguf_type_name(type), i, got_blocks[i],
                             blocks[i]);
        }
        records[head[0]]++;
        free(blocks);
        free(got_blocks);
        free(floats);
        free(got);
    }
    fclose(in);
    assert_int_equal(records[0], 11);
    assert_int_equal(records[1], 8);
}

static void refuses_to_quantise_what_no_block_holds(void **state)
{
    (void)state;
    float x[32] = {[5] = NAN};
    unsigned char block[256];
    assert_int_equal(gguf_from_float(GGUF_Q8_0, x, block, 32), -1);
    x[5] = INFINITY;
    assert_int_equal(gguf_from_float(GGUF_MXFP4, x, block, 32), -1);
    x[5] = 1e-42f;
    assert_int_equal(gguf_from_float(GGUF_Q8_0, x, block, 32), 0);
    assert_int_equal(gguf_from_float(GGUF_MXFP4, x, block, 32), 0);
    assert_int_equal(gguf_from_float(GGUF_Q8_0, x, block, 31), -1);
    assert_int_equal(gguf_from_float(GGUF_Q4_K, x, block, 32), -1);
    assert_int_equal(gguf_from_float(20, x, block, 32), -1);
}

/* The error of a format, as a share of the deviation: what its codes allow, with some room. */
static void quantises_every_format_to_within_its_steps(void **state)
{
    (void)state;
    static const struct {
        enum gguf_type type;
        double bound;
    } formats[] = {{GGUF_F32, 0},      {GGUF_F16, 3e-4},   {GGUF_BF16, 2.5e-3}, {GGUF_Q8_0, 6e-3},
                   {GGUF_Q6_K, 0.025}, {GGUF_Q5_1, 0.045}, {GGUF_Q5_K, 0.045},  {GGUF_Q5_0, 0.05},
                   {GGUF_Q4_1, 0.09},  {GGUF_Q4_K, 0.09},  {GGUF_Q4_0, 0.10},   {GGUF_MXFP4, 0.14},
                   {GGUF_Q3_K, 0.20},  {GGUF_Q2_K, 0.37}};
    uint64_t random = 3;
    enum { N = 4096 };
    static float x[N], y[N];
    static unsigned char blocks[4 * N];
    for (int i = 0; i < N; i++) { /* nearly normal */
        x[i] = 0;
        for (int k = 0; k < 6; k++)
            x[i] += test_uniform(&random) * 0.7071f;
    }
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        double off = 0, all = 0;
        assert_int_equal(gguf_from_float(formats[f].type, x, blocks, N), 0);
        gguf_to_float(formats[f].type, blocks, y, N);
        for (int i = 0; i < N; i++) {
            off += pow((double)x[i] - (double)y[i], 2);
            all += pow((double)x[i], 2);
        }
        double share = sqrt(off / all);
        if (share > formats[f].bound || share < formats[f].bound / 3)
            fail_msg("%s: error %.4f of the deviation, bound %.4f", gguf_type_name(formats[f].type),
                     share, formats[f].bound);
        /* Zeros, and numbers too small for the scale, stay finite. */
        float small[256] = {0}, back[256];
        for (int i = 0; i < 256; i += 3)
            small[i] = i % 2 ? 1e-41f : -1e-41f;
        assert_int_equal(gguf_from_float(formats[f].type, small, blocks, 256), 0);
        gguf_to_float(formats[f].type, blocks, back, 256);
        for (int i = 0; i < 256; i++)
            assert_true(fabsf(back[i]) < 1e-30f);
    }
}

static void knows_the_types_by_name_and_size(void **state)
{
    (void)state;
    assert_string_equal(gguf_type_name(GGUF_MXFP4), "MXFP4");
    assert_string_equal(gguf_type_name(20), "IQ4_NL");
    assert_string_equal(gguf_type_name(77), "type 77");
    assert_int_equal(gguf_type_block_bytes(77), 0);
    assert_int_equal(gguf_type_block_bytes(UINT32_MAX), 0);
    assert_int_equal(gguf_row_bytes(GGUF_Q6_K, 4096), 3360);
    for (uint32_t type = 0; type < 50; type++) {
        static const uint32_t known[] = {0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 30, 39};
        bool supported = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            supported |= known[i] == type;
        assert_int_equal(gguf_type_supported(type), supported);
    }
}

static void turns_positions_by_openais_unrounded_angles(void **state)
{
    (void)state;
    static const double want[20] = {1.00000000e+00, 6.89044306e-01, 4.74782055e-01, 3.27145872e-01,
                                    2.25418000e-01, 1.55322989e-01, 1.07024421e-01, 7.37445682e-02,
                                    5.08132748e-02, 3.17056962e-02, 1.93350011e-02, 1.15920493e-02,
                                    6.79495949e-03, 3.86035932e-03, 2.09379238e-03, 1.05260210e-03,
                                    4.56483919e-04, 1.29318701e-04, 3.83088124e-05, 2.63964690e-05};
    struct gguf_model model = {.head_dim = 64,
                               .rope_theta = 150000,
                               .yarn_factor = 32,
                               .yarn_context = 4096,
                               .yarn_beta_fast = 32,
                               .yarn_beta_slow = 1};
    double omega[32];
    double factor = gguf_model_rope(&model, omega);
    assert_true(fabs(factor - 1.3465735902799727) < 1e-15);
    for (int i = 0; i < 20; i++)
        if (fabs(omega[i] / want[i] - 1) > 5e-9)
            fail_msg("pair %d turns by %.9g, want %.9g", i, omega[i], want[i]);
    for (int i = 20; i < 32; i++)
        assert_true(fabs(omega[i] * 32 / pow(150000, -2.0 * i / 64) - 1) < 1e-12);

    model.yarn_factor = 1;
    assert_true(gguf_model_rope(&model, omega) == 1);
    assert_true(fabs(omega[31] - pow(150000, -62.0 / 64)) < 1e-15);
}

/* ── writing ───────────────────────────────────────────────────────────────────────────────── */

static void writes_what_is_read_back(void **state)
{
    (void)state;
    char path[64];
    struct gguf_writer *w;
    assert_int_equal(gguf_writer_create(&w, scratch(path), err, sizeof err), 0);
    const struct gguf_string words[3] = {{"one", 3}, {"", 0}, {"t\0ree", 5}};
    const int32_t numbers[2] = {-5, 1 << 30};
    gguf_writer_u32(w, "a.number", 4000000000u);
    gguf_writer_f32(w, "a.float", 0.1f);
    gguf_writer_string(w, "a.string", "text");
    gguf_writer_strings(w, "some.words", words, 3);
    gguf_writer_i32s(w, "some.numbers", numbers, 2);
    gguf_writer_tensor(w, "odd", GGUF_F32, 1, (uint64_t[]){3});
    gguf_writer_tensor(w, "blocks", GGUF_MXFP4, 3, (uint64_t[]){64, 3, 2});
    assert_int_equal(gguf_writer_begin(w, err, sizeof err), 0);
    unsigned char data[12 + 204];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (unsigned char)(i * 7);
    assert_int_equal(gguf_writer_data(w, data, 5, err, sizeof err), 0);
    assert_int_equal(gguf_writer_finish(w, err, sizeof err), -1);
    assert_non_null(strstr(err, "the data of tensor odd are not complete"));
    assert_int_equal(gguf_writer_data(w, data + 5, sizeof data - 5, err, sizeof err), 0);
    assert_int_equal(gguf_writer_data(w, data, 1, err, sizeof err), -1);
    assert_int_equal(gguf_writer_finish(w, err, sizeof err), 0);
    gguf_writer_destroy(w);

    struct gguf_file *file;
    if (gguf_open(&file, path, err, sizeof err))
        fail_msg("%s", err);
    uint32_t number;
    float real;
    struct gguf_string text;
    assert_int_equal(gguf_get_u32(file, "a.number", &number, err, sizeof err), 0);
    assert_true(number == 4000000000u);
    assert_int_equal(gguf_get_f32(file, "a.float", &real, err, sizeof err), 0);
    assert_true(real == 0.1f);
    assert_int_equal(gguf_get_string(file, "a.string", &text, err, sizeof err), 0);
    assert_memory_equal(text.bytes, "text", 4);
    const struct gguf_key *key = gguf_key_find(file, "some.words");
    uint64_t cursor = 0;
    for (int i = 0; i < 3; i++) {
        text = gguf_next_string(key, &cursor);
        assert_int_equal(text.size, words[i].size);
        assert_memory_equal(text.bytes, words[i].bytes, words[i].size);
    }
    assert_int_equal(gguf_next_string(key, &cursor).size, 0);
    key = gguf_key_find(file, "some.numbers");
    assert_int_equal(gguf_integer_at(key, 0), -5);
    assert_int_equal(gguf_integer_at(key, 1), 1 << 30);
    const struct gguf_tensor *t = gguf_tensor_find(file, "blocks");
    assert_int_equal(t->bytes, 204);
    assert_int_equal(t->ne[2], 2);
    assert_int_equal(t->offset % 32, 0);
    assert_memory_equal(t->data, data + 12, 204);
    assert_memory_equal(gguf_tensor_find(file, "odd")->data, data, 12);
    assert_null(gguf_tensor_find(file, "even"));
    assert_int_equal(gguf_tensor_at(file, 1) == t, 1);
    assert_null(gguf_tensor_at(file, 2));
    gguf_close(file);
    unlink(path);
}

static void leaves_no_half_written_file(void **state)
{
    (void)state;
    char path[64], part[80];
    struct gguf_writer *w;
    assert_int_equal(gguf_writer_create(&w, scratch(path), err, sizeof err), 0);
    unlink(path);
    gguf_writer_tensor(w, "t", GGUF_F32, 1, (uint64_t[]){3});
    assert_int_equal(gguf_writer_begin(w, err, sizeof err), 0);
    gguf_writer_destroy(w);
    snprintf(part, sizeof part, "%s.part", path);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(access(part, F_OK), -1);

    assert_int_equal(gguf_writer_create(&w, path, err, sizeof err), 0);
    gguf_writer_tensor(w, "rows", GGUF_Q8_0, 1, (uint64_t[]){33});
    assert_int_equal(gguf_writer_begin(w, err, sizeof err), -1);
    assert_non_null(strstr(err, "shape does not go with its type: rows"));
    gguf_writer_destroy(w);
    assert_int_equal(access(part, F_OK), -1);

    assert_int_equal(gguf_writer_create(&w, path, err, sizeof err), 0);
    gguf_writer_tensor(w, "", GGUF_F32, 1, (uint64_t[]){1});
    assert_int_equal(gguf_writer_data(w, "", 1, err, sizeof err), -1);
    assert_non_null(strstr(err, "data before the header"));
    assert_int_equal(gguf_writer_begin(w, err, sizeof err), -1);
    assert_non_null(strstr(err, "a tensor's name has not 1 to 63 bytes"));
    gguf_writer_destroy(w);
    for (int i = 0; i < 3; i++) { /* what comes too late is told at the end */
        const struct gguf_key key = {.name = {"k", 1}, .type = GGUF_VALUE_U8, .count = 1};
        assert_int_equal(gguf_writer_create(&w, path, err, sizeof err), 0);
        assert_int_equal(gguf_writer_begin(w, err, sizeof err), 0);
        if (i == 0)
            gguf_writer_u32(w, "k", 1);
        else if (i == 1)
            gguf_writer_key(w, &key);
        else
            gguf_writer_tensor(w, "t", GGUF_F32, 1, (uint64_t[]){1});
        assert_int_equal(gguf_writer_finish(w, err, sizeof err), -1);
        assert_non_null(strstr(err, "was declared after the header was written"));
        gguf_writer_destroy(w);
    }
    gguf_writer_destroy(NULL);

    assert_int_equal(gguf_writer_create(&w, "/no/such/folder/f", err, sizeof err), -1);
    assert_null(w);
    assert_non_null(strstr(err, "cannot be written: No such file"));
}

static void digests_tell_headers_apart(void **state)
{
    (void)state;
    char path[64];
    scratch(path);
    uint64_t digests[3];
    char first[512] = "", second[512] = "";
    for (size_t i = 0; i < sizeof first - 1; i++) {
        first[i] = i < 256 ? 'a' : 'b';
        second[i] = i < 128 ? 'b' : i < 384 ? 'a' : 'b';
    }
    for (uint32_t i = 0; i < 3; i++) {
        struct gguf_writer *w;
        struct gguf_file *file;
        assert_int_equal(gguf_writer_create(&w, path, err, sizeof err), 0);
        /* The third differs in the order of its bytes alone. */
        gguf_writer_string(w, "text", i < 2 ? first : second);
        assert_int_equal(gguf_writer_begin(w, err, sizeof err), 0);
        assert_int_equal(gguf_writer_finish(w, err, sizeof err), 0);
        gguf_writer_destroy(w);
        assert_int_equal(gguf_open(&file, path, err, sizeof err), 0);
        digests[i] = gguf_header_digest(file);
        gguf_close(file);
    }
    assert_true(digests[0] == digests[1]);
    assert_true(digests[0] != digests[2]);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opens_the_bundled_model_with_its_sizes),
        cmocka_unit_test(finds_the_tensors_of_every_layer),
        cmocka_unit_test(reads_keys_of_every_kind),
        cmocka_unit_test(converts_integers_and_floats_of_every_width),
        cmocka_unit_test(converts_every_half_and_back),
        cmocka_unit_test(rounds_to_the_nearest_half_and_ties_to_even),
        cmocka_unit_test(dequantises_blocks_worked_out_by_hand),
        cmocka_unit_test(quantises_ties_as_the_formats_say),
        cmocka_unit_test(agrees_with_the_gguf_package_on_random_blocks),
        cmocka_unit_test(refuses_to_quantise_what_no_block_holds),
        cmocka_unit_test(quantises_every_format_to_within_its_steps),
        cmocka_unit_test(knows_the_types_by_name_and_size),
        cmocka_unit_test(turns_positions_by_openais_unrounded_angles),
        cmocka_unit_test(writes_what_is_read_back),
        cmocka_unit_test(leaves_no_half_written_file),
        cmocka_unit_test(digests_tell_headers_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
