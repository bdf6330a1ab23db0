/*
 * Stages as a whole, over made-up models of odd sizes: against the reference, and the promises of
 * kernels.h: a row's bits depend on nothing around it, a refused step changes nothing.
 */
#include "kernels_chain.h"

#include <unistd.h>

/* ── made-up models ────────────────────────────────────────────────────────────────────────── */

struct sizes {
    uint32_t layers, hidden, heads, kv_heads, head_dim, experts, active, expert_ffn, vocabulary,
        window;
    enum gguf_type dense, expert;
    bool tied;
};

static void add_tensor(struct gguf_writer *w, int layer, const char *suffix, enum gguf_type type,
                       uint32_t n_dims, uint64_t ne0, uint64_t ne1, uint64_t ne2)
{
    char name[64];
    uint64_t ne[3] = {ne0, ne1, ne2};
    if (layer < 0)
        snprintf(name, sizeof name, "%s", suffix);
    else
        snprintf(name, sizeof name, "blk.%d.%s", layer, suffix);
    gguf_writer_tensor(w, name, type, n_dims, ne);
}

/* Random data with rows of a length near 1, norms near 1. */
static void add_data(struct gguf_writer *w, uint64_t *seed, enum gguf_type type, uint64_t columns,
                     uint64_t rows, float scale, float middle)
{
    char err[128];
    float *row = malloc(columns * sizeof *row);
    uint64_t bytes = gguf_row_bytes(type, columns);
    void *blocks = malloc(bytes);
    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t i = 0; i < columns; i++)
            row[i] = middle + scale * test_uniform(seed);
        assert_int_equal(gguf_from_float(type, row, blocks, columns), 0);
        if (gguf_writer_data(w, blocks, bytes, err, sizeof err))
            fail_msg("%s", err);
    }
    free(row);
    free(blocks);
}

static void write_model(const char *path, const struct sizes *s)
{
    char err[256];
    struct gguf_writer *w;
    uint64_t q = (uint64_t)s->heads * s->head_dim, kv = (uint64_t)s->kv_heads * s->head_dim;
    if (gguf_writer_create(&w, path, err, sizeof err))
        fail_msg("%s", err);
    gguf_writer_string(w, "general.architecture", "gpt-oss");
    const struct {
        const char *key;
        uint32_t value;
    } keys[] = {
        {"gpt-oss.block_count", s->layers},
        {"gpt-oss.context_length", 4096},
        {"gpt-oss.embedding_length", s->hidden},
        {"gpt-oss.feed_forward_length", s->expert_ffn},
        {"gpt-oss.expert_feed_forward_length", s->expert_ffn},
        {"gpt-oss.attention.head_count", s->heads},
        {"gpt-oss.attention.head_count_kv", s->kv_heads},
        {"gpt-oss.attention.key_length", s->head_dim},
        {"gpt-oss.attention.value_length", s->head_dim},
        {"gpt-oss.attention.sliding_window", s->window},
        {"gpt-oss.expert_count", s->experts},
        {"gpt-oss.expert_used_count", s->active},
        {"gpt-oss.rope.scaling.original_context_length", 128},
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        gguf_writer_u32(w, keys[i].key, keys[i].value);
    gguf_writer_f32(w, "gpt-oss.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_writer_f32(w, "gpt-oss.rope.freq_base", 10000);
    gguf_writer_string(w, "gpt-oss.rope.scaling.type", "yarn");
    gguf_writer_f32(w, "gpt-oss.rope.scaling.factor", 8);

    const struct {
        const char *suffix;
        enum gguf_type type;
        uint32_t n_dims;
        uint64_t ne0, ne1, ne2;
        float scale, middle;
    } layer[] = {
        {"attn_norm.weight", GGUF_F32, 1, s->hidden, 1, 1, 0.3f, 1},
        {"attn_q.weight", s->dense, 2, s->hidden, q, 1, 2, 0},
        {"attn_q.bias", GGUF_F32, 1, q, 1, 1, 0.5f, 0},
        {"attn_k.weight", s->dense, 2, s->hidden, kv, 1, 2, 0},
        {"attn_k.bias", GGUF_F32, 1, kv, 1, 1, 0.5f, 0},
        {"attn_v.weight", s->dense, 2, s->hidden, kv, 1, 2, 0},
        {"attn_v.bias", GGUF_F32, 1, kv, 1, 1, 0.5f, 0},
        {"attn_output.weight", s->dense, 2, q, s->hidden, 1, 1, 0},
        {"attn_output.bias", GGUF_F32, 1, s->hidden, 1, 1, 0.5f, 0},
        {"attn_sinks.weight", GGUF_F32, 1, s->heads, 1, 1, 2, 0},
        {"post_attention_norm.weight", GGUF_F32, 1, s->hidden, 1, 1, 0.3f, 1},
        {"ffn_gate_inp.weight", GGUF_F32, 2, s->hidden, s->experts, 1, 2, 0},
        {"ffn_gate_inp.bias", GGUF_F32, 1, s->experts, 1, 1, 0.5f, 0},
        {"ffn_gate_exps.weight", s->expert, 3, s->hidden, s->expert_ffn, s->experts, 2, 0},
        {"ffn_gate_exps.bias", GGUF_F32, 2, s->expert_ffn, s->experts, 1, 0.5f, 0},
        {"ffn_up_exps.weight", s->expert, 3, s->hidden, s->expert_ffn, s->experts, 2, 0},
        {"ffn_up_exps.bias", GGUF_F32, 2, s->expert_ffn, s->experts, 1, 0.5f, 0},
        {"ffn_down_exps.weight", s->expert, 3, s->expert_ffn, s->hidden, s->experts, 1, 0},
        {"ffn_down_exps.bias", GGUF_F32, 2, s->hidden, s->experts, 1, 0.5f, 0},
    };
    add_tensor(w, -1, "token_embd.weight", s->dense, 2, s->hidden, s->vocabulary, 1);
    add_tensor(w, -1, "output_norm.weight", GGUF_F32, 1, s->hidden, 1, 1);
    if (!s->tied)
        add_tensor(w, -1, "output.weight", s->dense, 2, s->hidden, s->vocabulary, 1);
    for (uint32_t l = 0; l < s->layers; l++)
        for (size_t t = 0; t < sizeof layer / sizeof *layer; t++)
            add_tensor(w, (int)l, layer[t].suffix, layer[t].type, layer[t].n_dims, layer[t].ne0,
                       layer[t].ne1, layer[t].ne2);
    if (gguf_writer_begin(w, err, sizeof err))
        fail_msg("%s", err);
    uint64_t seed = 99;
    float length = 1 / sqrtf((float)s->hidden);
    add_data(w, &seed, s->dense, s->hidden, s->vocabulary, 1, 0);
    add_data(w, &seed, GGUF_F32, s->hidden, 1, 0.3f, 1);
    if (!s->tied)
        add_data(w, &seed, s->dense, s->hidden, s->vocabulary, 6 * length, 0);
    for (uint32_t l = 0; l < s->layers; l++)
        for (size_t t = 0; t < sizeof layer / sizeof *layer; t++) {
            bool matrix = layer[t].n_dims > 1 && !strstr(layer[t].suffix, "bias");
            float scale = layer[t].scale * (matrix ? 1 / sqrtf((float)layer[t].ne0) : 1);
            add_data(w, &seed, layer[t].type, layer[t].ne0, layer[t].ne1 * layer[t].ne2, scale,
                     layer[t].middle);
        }
    if (gguf_writer_finish(w, err, sizeof err))
        fail_msg("%s", err);
    gguf_writer_destroy(w);
}

enum { N_MODELS = 4 };
static struct gguf_file *files[N_MODELS];
static struct gguf_model *models[N_MODELS];

static const struct sizes model_sizes[N_MODELS] = {
    /* like the published files, in other sizes */
    {5, 320, 10, 2, 64, 12, 3, 96, 1003, 37, GGUF_Q8_0, GGUF_MXFP4, false},
    /* nothing a multiple of anything; the head is the embedding */
    {3, 75, 3, 3, 22, 5, 2, 41, 209, 5, GGUF_F32, GGUF_F32, true},
    {4, 64, 6, 1, 16, 4, 4, 32, 333, 16, GGUF_BF16, GGUF_F16, false},
    /* a vocabulary of several blocks of 1,024 ids */
    {5, 64, 4, 2, 16, 4, 2, 32, 5021, 16, GGUF_Q8_0, GGUF_MXFP4, true},
};

static int write_models(void **state)
{
    (void)state;
    char err[256], path[64];
    for (int i = 0; i < N_MODELS; i++) {
        snprintf(path, sizeof path, "/tmp/gptoss-test-kernels-%ld-%d.gguf", (long)getpid(), i);
        write_model(path, &model_sizes[i]);
        int status = gguf_open(&files[i], path, err, sizeof err) ||
                     gguf_model_create(&models[i], files[i], err, sizeof err);
        unlink(path);
        if (status) {
            print_error("%s\n", err);
            return -1;
        }
    }
    return 0;
}

static int close_models(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODELS; i++) {
        gguf_model_destroy(models[i]);
        gguf_close(files[i]);
    }
    return 0;
}

/* ── running ───────────────────────────────────────────────────────────────────────────────── */

enum { TEXT = 150 };

static void make_text(const struct gguf_model *model, uint64_t seed, int32_t tokens[TEXT])
{
    for (int i = 0; i < TEXT; i++)
        tokens[i] = (int32_t)(test_random(&seed) % model->vocabulary);
}

/* Logits of every position of a text of slot `slot`, put through the chain `chunk` tokens at a time. */
static float *run_text(struct chain *c, uint32_t slot, const int32_t *tokens, uint32_t n,
                       uint32_t chunk)
{
    size_t vocabulary = c->model->vocabulary;
    float *logits = malloc(n * vocabulary * sizeof *logits);
    for (uint32_t at = 0; at < n; at += chunk) {
        uint32_t count = n - at < chunk ? n - at : chunk;
        chain_begin(c);
        chain_row(c, slot, at, tokens + at, count, 0);
        chain_run(c);
        for (uint32_t i = 0; i < count; i++)
            memcpy(logits + (at + i) * vocabulary, chain_logits(c, i), vocabulary * sizeof *logits);
    }
    return logits;
}

static void assert_same_logits(const char *what, const struct gguf_model *model, const float *a,
                               const float *b, uint32_t n)
{
    for (uint64_t i = 0; i < (uint64_t)n * model->vocabulary; i++)
        if (memcmp(a + i, b + i, sizeof *a))
            fail_msg("%s: logit %llu of position %llu is %.9g here and %.9g there", what,
                     (unsigned long long)i % model->vocabulary,
                     (unsigned long long)i / model->vocabulary, (double)a[i], (double)b[i]);
}

static struct chain *whole(const struct gguf_model *model, const char *device, const char *isa,
                           uint32_t threads, struct kernels_stage_options options)
{
    const struct kernels_options k = {.device = device, .isa = isa, .threads = threads};
    options.keep_logits = true;
    return chain_create(model, &k, 1, &model->n_layers, options);
}

static struct chain *packed_whole(const struct gguf_model *model, uint32_t threads, bool fast,
                                  bool in_place)
{
    const struct kernels_options k = {.device = "cpu", .threads = threads, .fast = fast};
    return chain_create(model, &k, 1, &model->n_layers,
                        (struct kernels_stage_options){.keep_logits = true, .in_place = in_place});
}

static bool have_isa(const char *isa)
{
    char err[128];
    struct kernels *k;
    if (kernels_create(&k, &(struct kernels_options){.device = "cpu", .isa = isa}, err, sizeof err))
        return false;
    kernels_destroy(k);
    return true;
}

/* ── tests ─────────────────────────────────────────────────────────────────────────────────── */

static void agrees_with_the_reference(void **state)
{
    (void)state;
    const char *isas[] = {"avx512", "avx2", "plain"};
    for (int m = 0; m < N_MODELS; m++) {
        int32_t tokens[TEXT];
        uint32_t n = 60;
        make_text(models[m], 10, tokens);
        struct chain *c = whole(models[m], "reference", NULL, 1, (struct kernels_stage_options){0});
        float *want = run_text(c, 0, tokens, n, 25);
        chain_destroy(c);
        for (int i = 0; i < 3; i++) {
            if (!have_isa(isas[i]))
                continue;
            char what[64];
            snprintf(what, sizeof what, "model %d, %s", m, isas[i]);
            c = whole(models[m], "cpu", isas[i], 1, (struct kernels_stage_options){0});
            float *got = run_text(c, 0, tokens, n, 25);
            /* Logits are up to about 10; no router of these texts is nearly tied. */
            test_close(what, got, want, (size_t)n * models[m]->vocabulary, 1e-3);
            free(got);
            chain_destroy(c);
        }
        free(want);
    }
}

static void gives_the_same_bits_however_it_is_cut(void **state)
{
    (void)state;
    for (int m = 0; m < N_MODELS; m++) {
        const struct gguf_model *model = models[m];
        int32_t tokens[TEXT];
        make_text(model, 11, tokens);
        struct chain *c = whole(model, "cpu", NULL, 1, (struct kernels_stage_options){0});
        float *want = run_text(c, 0, tokens, TEXT, TEXT);
        const uint32_t chunks[] = {1, 7, 64};
        for (int i = 0; i < 3; i++) {
            float *got = run_text(c, 1, tokens, TEXT, chunks[i]);
            assert_same_logits("chunks", model, got, want, TEXT);
            free(got);
        }
        chain_destroy(c);

        c = whole(model, "cpu", NULL, 3, (struct kernels_stage_options){0});
        float *got = run_text(c, 0, tokens, TEXT, 50);
        assert_same_logits("threads", model, got, want, TEXT);
        free(got);
        chain_destroy(c);

        for (uint32_t n_stages = 2; n_stages <= 3; n_stages++) {
            uint32_t ends[3] = {1, n_stages == 2 ? model->n_layers : 2, model->n_layers};
            const struct kernels_options k = {.device = "cpu"};
            c = chain_create(model, &k, n_stages, ends,
                             (struct kernels_stage_options){.keep_logits = true});
            got = run_text(c, 0, tokens, TEXT, 50);
            assert_same_logits("stages", model, got, want, TEXT);
            free(got);
            chain_destroy(c);
        }
        free(want);
    }
}

static void gives_the_same_bits_from_repacked_weights(void **state)
{
    (void)state;
    for (int m = 0; m < 2 * N_MODELS; m++) {
        const struct gguf_model *model = models[m / 2];
        bool fast = m % 2;
        int32_t tokens[TEXT];
        make_text(model, 11, tokens);
        struct chain *c = packed_whole(model, 1, fast, true);
        float *want = run_text(c, 0, tokens, TEXT, TEXT);
        chain_destroy(c);
        const uint32_t chunks[] = {1, 7, 64};
        c = packed_whole(model, 3, fast, false);
        for (int i = 0; i < 3; i++) {
            float *got = run_text(c, 1, tokens, TEXT, chunks[i]);
            assert_same_logits("repacked", model, got, want, TEXT);
            free(got);
        }
        chain_destroy(c);
        const uint32_t ends[2] = {1, model->n_layers};
        const struct kernels_options k = {.device = "cpu", .fast = fast};
        c = chain_create(model, &k, 2, ends, (struct kernels_stage_options){.keep_logits = true});
        float *got = run_text(c, 0, tokens, TEXT, 50);
        assert_same_logits("repacked on two stages", model, got, want, TEXT);
        free(got);
        chain_destroy(c);
        free(want);
    }
}

/* Steps of rows that sample with all kinds of filters; what each sample was. */
static void sample_text(struct chain *c, struct kernels_sample *samples, uint32_t n_steps)
{
    enum { ROWS = 7, TOKENS = 7 }; /* more samples than pass the head at a time */
    uint64_t seed = 12;
    for (uint32_t step = 0; step < n_steps; step++) {
        int32_t tokens[TEXT];
        make_text(c->model, seed, tokens);
        chain_begin(c);
        for (uint32_t s = 0; s < ROWS; s++) {
            struct kernels_row *row = chain_row(c, s, 0, tokens + TOKENS * s, TOKENS, s == 3);
            row->temperature = (float[]){0, 0.3f, 1, 20}[test_random(&seed) % 4];
            row->top_k = test_random(&seed) % 3 ? 0 : 1 + (uint32_t)test_random(&seed) % 2000;
            row->top_p = test_random(&seed) % 3 ? 1 : 0.9f;
            row->min_p = test_random(&seed) % 3 ? 0 : 0.1f;
            row->seed = test_random(&seed);
            row->top_logits = (uint32_t)(test_random(&seed) % (KERNELS_TOP_MAX + 1));
        }
        chain_run(c);
        for (uint32_t i = 0; i < c->step.n_samples; i++) {
            const struct kernels_sample *from = chain_sample(c, i);
            struct kernels_sample *to = samples++;
            memset(to, 0, sizeof *to);
            to->token = from->token;
            to->logit = from->logit;
            to->log_sum_exp = from->log_sum_exp;
            to->n_top = from->n_top;
            memcpy(to->top, from->top, from->n_top * sizeof *to->top);
        }
    }
}

static void gives_the_same_bits_from_a_cut_head(void **state)
{
    (void)state;
    enum { STEPS = 8, SAMPLES = 48 * STEPS };
    static struct kernels_sample want[SAMPLES], got[SAMPLES];
    const struct gguf_model *model = models[3];
    static const char *const devices[] = {"cpu", "reference"};
    const uint32_t ends[] = {1, 2, 3, 4, 5};
    static const struct {
        uint32_t n, parts[5];
    } cuts[] = {{1, {5021}},
                {2, {2048, 2973}},
                {2, {4096, 925}},
                {3, {0, 3072, 1949}},
                {3, {0, 0, 5021}},
                {5, {1024, 1024, 1024, 1024, 925}},
                {5, {1024, 0, 2048, 1024, 925}}};
    for (int d = 0; d < 2; d++)
        for (uint32_t limit = 0; limit <= 3000; limit += 1500) {
            const struct kernels_options k = {.device = devices[d], .threads = 2};
            struct kernels_stage_options options = {.vocabulary_limit = limit};
            struct chain *c = chain_create(model, &k, 1, &model->n_layers, options);
            sample_text(c, want, STEPS);
            chain_destroy(c);
            for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
                options.head_parts = cuts[i].parts;
                options.keep_logits = i % 2;
                c = chain_create(model, &k, cuts[i].n, ends + 5 - cuts[i].n, options);
                sample_text(c, got, STEPS);
                chain_destroy(c);
                for (uint32_t j = 0; j < SAMPLES; j++)
                    if (memcmp(&got[j], &want[j], sizeof *got))
                        fail_msg("%s, cut %zu: sample %u is token %d with logit %.9g and log sum "
                                 "%.9g, of a whole head %d, %.9g, %.9g",
                                 devices[d], i, j, got[j].token, (double)got[j].logit,
                                 (double)got[j].log_sum_exp, want[j].token, (double)want[j].logit,
                                 (double)want[j].log_sum_exp);
            }
        }
}

static void refuses_heads_that_cannot_be_cut_so(void **state)
{
    (void)state;
    static const uint32_t parts[][3] = {{2048, 0, 2973}, {2048, 0, 2972}, {1000, 1048, 2973},
                                        {2048, 2973, 0}, {5021, 0, 0},    {0, 2048, 2973}};
    const struct kernels_stage_options sound = {.layer_first = 2,
                                                .layer_count = 3,
                                                .head_first = 2048,
                                                .head_count = 2973,
                                                .head_parts = parts[0],
                                                .n_head_parts = 3,
                                                .head_jobs = 2,
                                                .block_tokens = 16,
                                                .full_blocks = 4,
                                                .window_blocks = 4,
                                                .slots = 1,
                                                .context = 64,
                                                .lanes = 1,
                                                .step_rows = 1,
                                                .step_tokens = 16,
                                                .step_samples = 1};
    enum { N = 10 };
    struct kernels_stage_options tried[N];
    char err[256];
    struct kernels *k;
    assert_int_equal(kernels_create(&k, NULL, err, sizeof err), 0);
    for (int i = 0; i < N; i++)
        tried[i] = sound;
    tried[1].head_parts = parts[5]; /* the first two are sound */
    tried[2].head_parts = parts[1];
    tried[3].head_parts = parts[2];
    tried[4].head_parts = parts[3];
    tried[5].head_parts = parts[4];
    tried[6].n_head_parts = 0;
    tried[7].n_head_parts = 1000;
    tried[8].head_jobs = 0;
    tried[9].head_first = 2000;
    for (int i = 0; i < N; i++) {
        struct kernels_stage *stage;
        err[0] = '\0';
        int status = kernels_stage_create(&stage, k, models[3], &tried[i], err, sizeof err);
        if (i < 2 ? status : !status || strlen(err) < 10)
            fail_msg("options %d: %d, %s", i, status, err);
        kernels_stage_destroy(stage);
    }
    /* Jobs of a stage in the middle. */
    struct kernels_stage_options middle = sound;
    struct kernels_stage *stage;
    middle.layer_count = 1;
    middle.head_first = 1024;
    middle.head_count = 1024;
    middle.n_head_parts = 0;
    assert_int_equal(kernels_stage_create(&stage, k, models[3], &middle, err, sizeof err), 0);
    struct kernels_row row = {.count = 1, .top_p = 1};
    struct kernels_step step = {.n_rows = 1, .n_tokens = 1, .n_samples = 1, .rows = &row};
    assert_int_equal(kernels_stage_head(stage, 2, 0, &step, 0, 1, err, sizeof err), -1);
    assert_int_equal(kernels_stage_head(stage, 0, 1, &step, 0, 1, err, sizeof err), -1);
    assert_int_equal(kernels_stage_head(stage, 0, 0, &step, 1, 1, err, sizeof err), -1);
    assert_int_equal(kernels_stage_head(stage, 0, 0, &step, 0, 2, err, sizeof err), -1);
    assert_int_equal(kernels_stage_head(stage, 0, 0, &step, 0, 0, err, sizeof err), -1);
    row.top_logits = KERNELS_TOP_MAX + 1;
    assert_int_equal(kernels_stage_head(stage, 0, 0, &step, 0, 1, err, sizeof err), -1);
    assert_int_equal(kernels_stage_merge(stage, 0, err, sizeof err), -1);
    kernels_stage_destroy(stage);
    kernels_destroy(k);
}

static void gives_the_same_bits_with_any_kv_blocks(void **state)
{
    (void)state;
    for (int m = 0; m < N_MODELS; m++)
        for (int type = KERNELS_KV_F32; type <= KERNELS_KV_BF16; type++) {
            const struct gguf_model *model = models[m];
            int32_t tokens[TEXT];
            make_text(model, 12, tokens);
            float *want = NULL;
            const uint32_t blocks[] = {16, 1, 8, 128};
            for (int i = 0; i < 4; i++) {
                struct chain *c =
                    whole(model, "cpu", NULL, 1,
                          (struct kernels_stage_options){.kv_type = (enum kernels_kv_type)type,
                                                         .block_tokens = blocks[i]});
                float *got = run_text(c, 2, tokens, TEXT, 40);
                if (i)
                    assert_same_logits("blocks", model, got, want, TEXT);
                else
                    want = got;
                if (i)
                    free(got);
                chain_destroy(c);
            }
            free(want);
        }
}

/* Eight sequences in the same steps, each at another position, some in prefill and some in decode;
 * the window's blocks go from one to the other, and slots are taken again. */
static void gives_the_same_bits_alone_and_among_others(void **state)
{
    (void)state;
    enum { SLOTS = 8 };
    for (int m = 0; m < N_MODELS; m++) {
        const struct gguf_model *model = models[m];
        size_t vocabulary = model->vocabulary;
        int32_t tokens[SLOTS][TEXT];
        float *want[SLOTS];
        uint32_t at[SLOTS] = {0}, rounds[SLOTS] = {0};
        struct chain *c = whole(model, "cpu", NULL, 1, (struct kernels_stage_options){0});
        for (uint32_t s = 0; s < SLOTS; s++) {
            make_text(model, 20 + s, tokens[s]);
            want[s] = run_text(c, s, tokens[s], TEXT, 33);
        }
        chain_destroy(c);

        /* As few window blocks as eight sequences can have, so that they are used in turn. */
        uint32_t block = 8, few = SLOTS * ((model->window + 40) / block + 2);
        c = whole(model, "cpu", NULL, 2,
                  (struct kernels_stage_options){
                      .block_tokens = block, .window_blocks = few, .slots = SLOTS});
        uint64_t seed = 30;
        for (int step = 0; step < 60; step++) {
            uint32_t slot_of[SLOTS], from[SLOTS], count[SLOTS], n = 0;
            chain_begin(c);
            for (uint32_t i = 0; i < SLOTS; i++) {
                uint32_t s = (i * 5 + (uint32_t)step) % SLOTS;
                uint32_t most = test_random(&seed) % 3 ? 1 : 31;
                if (test_random(&seed) % 4 == 0)
                    continue;
                if (at[s] == TEXT) {
                    at[s] = 0;
                    rounds[s]++;
                }
                slot_of[n] = s;
                from[n] = at[s];
                count[n] = TEXT - at[s] < most ? TEXT - at[s] : most;
                chain_row(c, s, at[s], tokens[s] + at[s], count[n], 0);
                at[s] += count[n++];
            }
            if (!n)
                continue;
            chain_run(c);
            for (uint32_t i = 0, first = 0; i < n; first += count[i++])
                for (uint32_t t = 0; t < count[i]; t++)
                    assert_same_logits("among others", model, chain_logits(c, first + t),
                                       want[slot_of[i]] + (from[i] + t) * vocabulary, 1);
        }
        chain_destroy(c);
        for (uint32_t s = 0; s < SLOTS; s++)
            free(want[s]);
    }
}

/* Two slots share the blocks of a common beginning: the second begins behind it. */
static void shares_the_blocks_of_a_prefix(void **state)
{
    (void)state;
    const struct gguf_model *model = models[0];
    int32_t tokens[TEXT];
    make_text(model, 13, tokens);
    struct chain *c = whole(model, "cpu", NULL, 1, (struct kernels_stage_options){0});
    float *want = run_text(c, 0, tokens, TEXT, TEXT);
    /* Slot 1 is given slot 0's first five blocks of 16; in the window's pool those before the window
     * of position 80 have ended in slot 0, and nobody looks at them. */
    uint32_t full[10], window[10], beyond[5] = {120, 121, 122, 123, 124};
    for (uint32_t i = 0; i < 5; i++) {
        full[i] = c->full[0].blocks[i];
        window[i] = c->window[0].blocks[i];
    }
    /* What the window of position 80 still needs was overwritten by nobody: TEXT ended in one step. */
    for (uint32_t i = 0; i < 5; i++)
        full[5 + i] = window[5 + i] = beyond[i];
    struct kernels_row row = {.slot = 1,
                              .position = 80,
                              .count = TEXT - 80,
                              .restart = true,
                              .full_given = full,
                              .window_given = window,
                              .full_given_count = 10,
                              .window_given_count = 10,
                              .window_freed = (80 + 1 - 37) / 16,
                              .top_p = 1};
    struct kernels_step step = {.n_rows = 1,
                                .n_tokens = row.count,
                                .n_samples = row.count,
                                .rows = &row,
                                .tokens = tokens + 80};
    if (kernels_stage_step(c->stages[0], c->lane, &step, c->err, sizeof c->err))
        fail_msg("%s", c->err);
    chain_wait(c, 0);
    assert_same_logits("prefix", model, chain_logits(c, 0), want + (size_t)80 * model->vocabulary,
                       TEXT - 80);
    free(want);
    chain_destroy(c);
}

static void continues_with_the_token_it_sampled(void **state)
{
    (void)state;
    const struct gguf_model *model = models[0];
    int32_t tokens[TEXT], sampled[20];
    make_text(model, 14, tokens);
    uint32_t ends[2] = {2, model->n_layers};
    const struct kernels_options k = {.device = "cpu"};
    for (int by_reference = 0; by_reference < 2; by_reference++) {
        struct chain *c = chain_create(model, &k, 2, ends, (struct kernels_stage_options){0});
        for (uint32_t i = 0; i < 20; i++) {
            uint32_t at = i ? 9 + i : 0, count = i ? 1 : 10;
            int32_t token = i && !by_reference ? sampled[i - 1] : KERNELS_TOKEN_SAMPLED;
            chain_begin(c);
            struct kernels_row *row = chain_row(c, 3, at, i ? &token : tokens, count, count - 1);
            row->temperature = 1.5f;
            row->seed = 77;
            chain_run(c);
            if (by_reference)
                assert_int_equal(chain_sample(c, 0)->token, sampled[i]);
            sampled[i] = chain_sample(c, 0)->token;
        }
        /* A slot that has sampled nothing has nothing to continue with: the step fails, and the stage
         * goes on. */
        chain_begin(c);
        chain_row(c, 4, 0, &(int32_t){KERNELS_TOKEN_SAMPLED}, 1, 1);
        assert_int_equal(kernels_stage_step(c->stages[0], c->lane, &c->step, c->err, sizeof c->err),
                         0);
        int done;
        while (!(done = kernels_stage_test(c->stages[0], c->lane, c->err, sizeof c->err)))
            sched_yield();
        assert_int_equal(done, -1);
        assert_non_null(strstr(c->err, "slot 4"));
        chain_begin(c);
        chain_row(c, 4, 0, tokens, 5, 5);
        chain_run(c);
        chain_destroy(c);
    }
}

static void refuses_a_step_that_breaks_a_bound_and_changes_nothing(void **state)
{
    (void)state;
    const struct gguf_model *model = models[0];
    int32_t tokens[TEXT];
    make_text(model, 15, tokens);
    struct chain *c = whole(model, "cpu", NULL, 1,
                            (struct kernels_stage_options){.context = 200, .step_tokens = 160});
    float *want = run_text(c, 0, tokens, TEXT, TEXT);
    float *first = run_text(c, 1, tokens, 100, 100);
    assert_same_logits("before", model, first, want, 100);

    const struct kernels_stage_options *o = &c->options;
    uint32_t block = 0, bad = o->full_blocks, bad_window = o->window_blocks;
    const struct kernels_row sound = {.slot = 1, .position = 100, .count = 10, .top_p = 1};
    enum { CASES_OF_ROWS = 21 };
    struct kernels_row rows[CASES_OF_ROWS];
    for (int i = 0; i < CASES_OF_ROWS; i++)
        rows[i] = sound;
    rows[0].slot = o->slots;
    rows[1].count = 0;
    rows[2].sample_from = 11;
    rows[3].position = 195;
    rows[4].position = UINT32_MAX;
    rows[5].full_given = &bad, rows[5].full_given_count = 1;
    rows[6].window_given = &bad_window, rows[6].window_given_count = 1;
    rows[7].full_given_count = 1; /* no numbers */
    rows[8].full_freed = 1;       /* position 0 is still needed */
    rows[9].full_freed = 1000;
    rows[10].window_freed = 7;
    rows[11].position = 110; /* beyond the blocks */
    rows[12].restart = true; /* and no blocks */
    rows[13].temperature = -1;
    rows[14].temperature = NAN;
    rows[15].top_p = 1.5f;
    rows[16].min_p = NAN;
    rows[17].top_logits = KERNELS_TOP_MAX + 1;
    rows[18].slot = 5; /* never given blocks */
    rows[19].temperature = INFINITY;
    rows[20].top_p = NAN;
    for (int i = 0; i < CASES_OF_ROWS; i++) {
        /* A sound row before it that is given a block and restarts: all of it must be undone. */
        struct kernels_row both[2] = {{.slot = 2,
                                       .count = 5,
                                       .restart = true,
                                       .full_given = &block,
                                       .window_given = &block,
                                       .full_given_count = 1,
                                       .window_given_count = 1,
                                       .top_p = 1},
                                      rows[i]};
        struct kernels_step step = {.n_rows = 2, .rows = both, .tokens = tokens};
        for (int r = 0; r < 2; r++) {
            step.n_tokens += both[r].count;
            step.n_samples += both[r].count - both[r].sample_from;
        }
        c->err[0] = '\0';
        if (kernels_stage_step(c->stages[0], 0, &step, c->err, sizeof c->err) == 0)
            fail_msg("row %d was taken", i);
        assert_true(strlen(c->err) > 10);
        assert_int_equal(kernels_stage_test(c->stages[0], 0, c->err, sizeof c->err), 1);
    }
    /* The step itself. */
    struct kernels_row row = sound;
    int32_t token = -2, beyond = (int32_t)model->vocabulary;
    const struct kernels_step steps[] = {
        {.n_rows = 1, .n_tokens = 9, .n_samples = 10, .rows = &row, .tokens = tokens},
        {.n_rows = 1, .n_tokens = 10, .n_samples = 9, .rows = &row, .tokens = tokens},
        {.n_rows = 0, .rows = &row, .tokens = tokens},
        {.n_rows = 1, .n_tokens = 10, .n_samples = 10, .tokens = tokens},
        {.n_rows = 1, .n_tokens = 10, .n_samples = 10, .rows = &row},
        {.n_rows = 1, .n_tokens = 161, .n_samples = 10, .rows = &row, .tokens = tokens},
        {.n_rows = 17, .n_tokens = 10, .n_samples = 10, .rows = &row, .tokens = tokens},
    };
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        assert_int_equal(kernels_stage_step(c->stages[0], 0, &steps[i], c->err, sizeof c->err), -1);
    row.count = 1;
    struct kernels_step one = {
        .n_rows = 1, .n_tokens = 1, .n_samples = 1, .rows = &row, .tokens = &token};
    assert_int_equal(kernels_stage_step(c->stages[0], 0, &one, c->err, sizeof c->err), -1);
    one.tokens = &beyond;
    assert_int_equal(kernels_stage_step(c->stages[0], 0, &one, c->err, sizeof c->err), -1);
    one.tokens = tokens;
    assert_int_equal(kernels_stage_step(c->stages[0], 9, &one, c->err, sizeof c->err), -1);
    uint32_t slots[2] = {0, o->slots};
    assert_int_equal(kernels_stage_ring(c->stages[0], 0, slots, 2, c->err, sizeof c->err), -1);
    assert_int_equal(kernels_stage_ring(c->stages[0], 0, slots, 1000, c->err, sizeof c->err), -1);

    /* Slot 1 goes on where it was. */
    chain_begin(c);
    chain_row(c, 1, 100, tokens + 100, 50, 0);
    chain_run(c);
    assert_same_logits("after", model, chain_logits(c, 0), want + (size_t)100 * model->vocabulary,
                       50);
    free(want);
    free(first);
    chain_destroy(c);
}

static void refuses_options_that_cannot_be(void **state)
{
    (void)state;
    char err[256];
    struct kernels *k;
    struct kernels_stage *stage;
    assert_int_equal(
        kernels_create(&k, &(struct kernels_options){.device = "cuda9"}, err, sizeof err), -1);
    assert_int_equal(kernels_create(&k, &(struct kernels_options){.isa = "mmx"}, err, sizeof err),
                     -1);
    assert_int_equal(kernels_create(&k, NULL, err, sizeof err), 0);
    const struct kernels_stage_options sound = {.layer_count = 5,
                                                .head_count = models[0]->vocabulary,
                                                .block_tokens = 16,
                                                .full_blocks = 4,
                                                .window_blocks = 4,
                                                .slots = 1,
                                                .context = 64,
                                                .lanes = 1,
                                                .step_rows = 1,
                                                .step_tokens = 16,
                                                .step_samples = 1};
    enum { N = 13 };
    struct kernels_stage_options wrong[N];
    for (int i = 0; i < N; i++)
        wrong[i] = sound;
    wrong[0].layer_count = 0;
    wrong[1].layer_count = 6;
    wrong[2].layer_first = UINT32_MAX;
    wrong[3].head_count++;
    wrong[4].head_count--;
    wrong[5].block_tokens = 24;
    wrong[6].block_tokens = 0;
    wrong[7].slots = 0;
    wrong[8].context = 0;
    wrong[9].lanes = 0;
    wrong[10].kv_type = (enum kernels_kv_type)7;
    wrong[11].step_samples = 1u << 21;
    wrong[12].full_blocks = UINT32_MAX, wrong[12].context = 1u << 28, wrong[12].slots = 1u << 20,
    wrong[12].block_tokens = 1u << 16, wrong[12].window_blocks = UINT32_MAX,
    wrong[12].step_tokens = 1u << 20;
    for (int i = 0; i < N; i++) {
        stage = (void *)&err;
        err[0] = '\0';
        if (kernels_stage_create(&stage, k, models[0], &wrong[i], err, sizeof err) == 0)
            fail_msg("options %d were taken", i);
        assert_null(stage);
        assert_true(strlen(err) > 10);
    }
    kernels_destroy(k);
}

static uint64_t resident_bytes(void)
{
    unsigned long long all = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_int_equal(fscanf(file, "%llu %llu", &all, &resident), 2);
    fclose(file);
    return all * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void takes_what_the_footprint_says(void **state)
{
    (void)state;
    char err[256];
    struct kernels *k;
    struct kernels_stage *stage;
    const struct gguf_model *model = models[0];
    assert_int_equal(
        kernels_create(&k, &(struct kernels_options){.device = "cpu"}, err, sizeof err), 0);
    const struct kernels_stage_options options = {.layer_count = 5,
                                                  .head_count = model->vocabulary,
                                                  .block_tokens = 16,
                                                  .full_blocks = 5000,
                                                  .window_blocks = 3000,
                                                  .slots = 8,
                                                  .context = 32768,
                                                  .lanes = 4,
                                                  .step_rows = 8,
                                                  .step_tokens = 1024,
                                                  .step_samples = 64,
                                                  .in_place = true};
    struct kernels_footprint footprint;
    kernels_stage_footprint(k, model, &options, &footprint);
    /* Layers 0, 2, 4 slide; a position has 2 · 2 · 64 floats a layer. */
    assert_int_equal(footprint.kv_bytes, (3 * 3000 + 2 * 5000) * 16 * 256 * sizeof(float));
    assert_int_equal(footprint.weights_bytes, model->bytes);
    uint64_t before = resident_bytes();
    assert_int_equal(kernels_stage_create(&stage, k, model, &options, err, sizeof err), 0);
    uint64_t taken = resident_bytes() - before;
    uint64_t said = footprint.kv_bytes + footprint.activation_bytes;
    /* Beside it the thread's stack, which is reserved and not used. */
    if (taken < said || taken - said > 80u << 20)
        fail_msg("%llu bytes of address space were taken, the footprint says %llu",
                 (unsigned long long)taken, (unsigned long long)said);
    kernels_stage_destroy(stage);
    kernels_destroy(k);
}

static void count_call(void *arg)
{
    __atomic_fetch_add((int *)arg, 1, __ATOMIC_SEQ_CST);
}

static void count_progress(void *arg, uint64_t done, uint64_t all)
{
    (void)arg;
    assert_true(done <= all && all > 0);
}

static void tells_when_it_is_done(void **state)
{
    (void)state;
    int calls = 0;
    int32_t tokens[TEXT];
    make_text(models[0], 16, tokens);
    const struct kernels_options k = {.device = "cpu"};
    struct chain *c =
        chain_create(models[0], &k, 1, &models[0]->n_layers,
                     (struct kernels_stage_options){
                         .notify = count_call, .progress = count_progress, .arg = &calls});
    for (int i = 0; i < 5; i++) {
        chain_begin(c);
        chain_row(c, 0, 0, tokens, 20, 19);
        chain_run(c); /* a step and a ring call */
    }
    for (int i = 0; i < 1000 && __atomic_load_n(&calls, __ATOMIC_SEQ_CST) < 10; i++)
        usleep(1000);
    assert_int_equal(__atomic_load_n(&calls, __ATOMIC_SEQ_CST), 10);
    assert_true(kernels_stage_busy_seconds(c->stages[0]) > 0);

    struct kernels_info info;
    kernels_info(c->k, &info);
    assert_string_equal(info.backend, "cpu");
    assert_int_equal(strncmp(info.uuid, "cpu-", 4), 0);
    assert_int_equal(info.threads, 1);
    assert_true(info.memory_free_bytes > 0);
    chain_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_reference),
        cmocka_unit_test(gives_the_same_bits_however_it_is_cut),
        cmocka_unit_test(gives_the_same_bits_from_repacked_weights),
        cmocka_unit_test(gives_the_same_bits_from_a_cut_head),
        cmocka_unit_test(refuses_heads_that_cannot_be_cut_so),
        cmocka_unit_test(gives_the_same_bits_with_any_kv_blocks),
        cmocka_unit_test(gives_the_same_bits_alone_and_among_others),
        cmocka_unit_test(shares_the_blocks_of_a_prefix),
        cmocka_unit_test(continues_with_the_token_it_sampled),
        cmocka_unit_test(refuses_a_step_that_breaks_a_bound_and_changes_nothing),
        cmocka_unit_test(refuses_options_that_cannot_be),
        cmocka_unit_test(takes_what_the_footprint_says),
        cmocka_unit_test(tells_when_it_is_done),
    };
    return cmocka_run_group_tests(tests, write_models, close_models);
}
