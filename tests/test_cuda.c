/*
 * The cuda backend: its operations against the reference over the table of cases, its stages on the
 * bundled model: the same bits however a text is cut and whatever runs beside it, from graphs and
 * launched; and sampling on the device against kernels_sample. Not run where there is no GPU.
 */
#include "cases.h"
#include "kernels/ops.h"
#include "kernels_chain.h"

#include <cuda.h>
#include <time.h>
#include <unistd.h>

#define MODEL   "models/gptoss-tiny-mxfp4.gguf"
#define FORMATS "models/gptoss-tiny-Q4_K_M.gguf"

extern uint32_t cuda_variant; /* kernels/cuda/device.cuh */
static uint32_t chosen_variant;

static struct kernels *reference, *cuda;
static struct gguf_file *file;
static struct gguf_model *model;
static const struct kernels_options on_cuda = {.device = "cuda"};

static int open_all(void **state)
{
    (void)state;
    char err[256];
    if (kernels_create(&reference, &(struct kernels_options){.device = "reference"}, err,
                       sizeof err) ||
        kernels_create(&cuda, &on_cuda, err, sizeof err) ||
        gguf_open(&file, MODEL, err, sizeof err) ||
        gguf_model_create(&model, file, err, sizeof err)) {
        print_error("%s\n", err);
        return -1;
    }
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    kernels_destroy(reference);
    kernels_destroy(cuda);
    gguf_model_destroy(model);
    gguf_close(file);
    return 0;
}

static float *floats(uint64_t n)
{
    return calloc(n + 1, sizeof(float));
}

static float *random_floats(uint64_t *seed, uint64_t n, float scale)
{
    float *x = floats(n);
    for (uint64_t i = 0; i < n; i++)
        x[i] = scale * test_uniform(seed);
    return x;
}

static void *random_weights(uint64_t *seed, enum gguf_type type, uint64_t rows, uint32_t columns)
{
    uint64_t row_bytes = gguf_row_bytes(type, columns);
    unsigned char *w = malloc(rows * row_bytes);
    float *row = floats(columns);
    for (uint64_t r = 0; r < rows; r++) {
        for (uint32_t i = 0; i < columns; i++)
            row[i] = test_uniform(seed) / sqrtf((float)columns);
        assert_int_equal(gguf_from_float(type, row, w + r * row_bytes, columns), 0);
    }
    free(row);
    return w;
}

static void assert_same_bits(const char *what, const float *a, const float *b, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, sizeof *a))
            fail_msg("%s: element %llu is %.9g here and %.9g there", what, (unsigned long long)i,
                     (double)a[i], (double)b[i]);
}

/* ── operations ────────────────────────────────────────────────────────────────────────────── */

#define HALF 0x1p-11 /* a half is off by at most this much of itself */

static void normalises_rows(void **state)
{
    (void)state;
    uint64_t seed = 1;
    for (size_t i = 0; i < CASES(cases_rmsnorm); i++) {
        const struct case_rmsnorm *c = &cases_rmsnorm[i];
        uint64_t n = (uint64_t)c->n * c->columns;
        struct kernels_op_rmsnorm op = {.n = c->n, .columns = c->columns, .eps = 1e-5f};
        float *x = random_floats(&seed, n, 3), *want = floats(n), *got = floats(n);
        float *weight = random_floats(&seed, c->columns, 2);
        op.x = x;
        op.weight = weight;
        op.out = want;
        assert_int_equal(kernels_op_rmsnorm(reference, &op, NULL), 0);
        op.out = got;
        assert_int_equal(kernels_op_rmsnorm(cuda, &op, NULL), 0);
        for (uint64_t j = 0; j < n; j++)
            test_close("rmsnorm", &got[j], &want[j], 1, 1.1 * HALF * fabs((double)want[j]) + 1e-6);
        free(x);
        free(want);
        free(got);
        free(weight);
    }
}

static void multiply(const struct case_linear *cases, size_t n_cases, uint64_t seed)
{
    for (size_t i = 0; i < n_cases; i++) {
        const struct case_linear *c = &cases[i];
        uint64_t n_y = (uint64_t)c->n * c->rows, row_bytes = gguf_row_bytes(c->type, c->columns);
        char what[96];
        if (c->columns % 8)
            continue;
        snprintf(what, sizeof what, "linear %s %ux%u by %u rows", gguf_type_name(c->type), c->rows,
                 c->columns, c->n);
        unsigned char *weight = random_weights(&seed, c->type, c->rows, c->columns);
        float *x = random_floats(&seed, (uint64_t)c->n * c->columns, 1);
        float *bias = random_floats(&seed, c->rows, 1), *begin = random_floats(&seed, n_y, 1);
        float *want = floats(n_y), *got = floats(n_y), *again = floats(n_y);
        float *row = floats(c->columns);
        struct kernels_op_linear op = {.type = c->type,
                                       .weight = weight,
                                       .bias = c->bias ? bias : NULL,
                                       .rows = c->rows,
                                       .columns = c->columns,
                                       .n = c->n < 3 ? c->n : 3,
                                       .x = x,
                                       .y = want,
                                       .add = c->add};
        memcpy(want, begin, n_y * sizeof *want);
        memcpy(got, begin, n_y * sizeof *got);
        assert_int_equal(kernels_op_linear(reference, &op, NULL), 0);
        op.n = c->n;
        op.y = got;
        assert_int_equal(kernels_op_linear(cuda, &op, NULL), 0);
        /* Each factor is rounded to a half by itself: the errors of the products add up as random
         * ones do, six times their deviation is never met. */
        for (uint32_t t = 0; t < (c->n < 3 ? c->n : 3); t++)
            for (uint32_t o = 0; o < c->rows; o++) {
                double squares = 0;
                gguf_to_float(c->type, weight + o * row_bytes, row, c->columns);
                for (uint32_t j = 0; j < c->columns; j++)
                    squares += pow((double)row[j] * (double)x[(uint64_t)t * c->columns + j], 2);
                test_close(what, &got[(uint64_t)t * c->rows + o], &want[(uint64_t)t * c->rows + o],
                           1, 6 * HALF * 0.6 * sqrt(squares) + 1e-5);
            }
        for (uint32_t t = 0; t < c->n; t += c->n / 3 + 1) {
            op.n = 1;
            op.x = x + (uint64_t)t * c->columns;
            op.y = again;
            memcpy(again, begin + (uint64_t)t * c->rows, c->rows * sizeof *again);
            assert_int_equal(kernels_op_linear(cuda, &op, NULL), 0);
            assert_same_bits(what, again, got + (uint64_t)t * c->rows, c->rows);
        }
        void *all[] = {weight, x, bias, begin, want, got, again, row};
        for (size_t j = 0; j < sizeof all / sizeof *all; j++)
            free(all[j]);
    }
}

static void multiplies_matrices(void **state)
{
    (void)state;
    multiply(cases_linear, CASES(cases_linear), 2);
}

/* Of which the device holds some as Q8_0, others as halves: the bounds are the same. */
static void multiplies_matrices_of_every_format(void **state)
{
    (void)state;
    multiply(cases_linear_formats, CASES(cases_linear_formats), 3);
}

/* Beyond the table: where the sizes of chunks change, groups of heads that fill no tile or several. */
static const struct case_attention more_attention[] = {
    {8, 1, 64, 0, KERNELS_KV_F16, 16, 1015, 40, true, false},
    {16, 1, 64, 0, KERNELS_KV_F16, 64, 8185, 12, true, false},
    {24, 1, 64, 0, KERNELS_KV_F16, 16, 100, 9, true, false},
    {5, 1, 64, 130, KERNELS_KV_F16, 32, 1100, 30, true, false},
    {64, 8, 64, 128, KERNELS_KV_F16, 16, 1000, 70, true, false},
    {64, 8, 64, 0, KERNELS_KV_F16, 16, 0, 130, true, false},
    {70, 1, 64, 0, KERNELS_KV_F16, 16, 3, 5, true, false},
};

static void attend(const struct case_attention *c, uint64_t *seed)
{
    uint32_t all = c->first + c->count, q_width = c->heads * c->head_dim;
    uint32_t kv_width = c->kv_heads * c->head_dim;
    uint64_t n_out = (uint64_t)c->count * q_width;
    char what[96];
    float *q = random_floats(seed, n_out, 2);
    float *k = random_floats(seed, (uint64_t)all * kv_width, 2);
    float *v = random_floats(seed, (uint64_t)all * kv_width, 1);
    float *sinks = random_floats(seed, c->heads, 2);
    float *want = floats(n_out), *got = floats(n_out), *again = floats(n_out);
    double omega[64];
    for (uint32_t j = 0; j < c->head_dim / 2; j++)
        omega[j] = pow(10000, -2.0 * j / c->head_dim);
    struct kernels_op_attention op = {.heads = c->heads,
                                      .kv_heads = c->kv_heads,
                                      .head_dim = c->head_dim,
                                      .window = c->window,
                                      .kv_type = c->kv_type,
                                      .block_tokens = c->block_tokens,
                                      .first = c->first,
                                      .count = c->count,
                                      .q = q,
                                      .k = k,
                                      .v = v,
                                      .sinks = sinks,
                                      .omega = c->rotate ? omega : NULL,
                                      .magnitude = 1.25,
                                      .out = want};
    snprintf(what, sizeof what, "attention of %u over %u heads: %u+%u, window %u", c->heads,
             c->kv_heads, c->first, c->count, c->window);
    assert_int_equal(kernels_op_attention(reference, &op, NULL), 0);
    op.out = got;
    assert_int_equal(kernels_op_attention(cuda, &op, NULL), 0);
    /* q, k, v and the weights are halves; scores are up to 40, of 64 products each. */
    test_close(what, got, want, n_out, 6e-3);
    for (uint32_t t = 0; t < c->count; t += 1 + c->count / 8) { /* each query alone, as in decode */
        op.q = q + (uint64_t)t * q_width;
        op.first = c->first + t;
        op.count = 1;
        op.out = again;
        assert_int_equal(kernels_op_attention(cuda, &op, NULL), 0);
        assert_same_bits(what, again, got + (uint64_t)t * q_width, q_width);
    }
    void *all_memory[] = {q, k, v, sinks, want, got, again};
    for (size_t j = 0; j < sizeof all_memory / sizeof *all_memory; j++)
        free(all_memory[j]);
}

static void attends(void **state)
{
    (void)state;
    uint64_t seed = 4;
    for (size_t i = 0; i < CASES(cases_attention); i++)
        if (cases_attention[i].head_dim == 64)
            attend(&cases_attention[i], &seed);
    for (size_t i = 0; i < CASES(more_attention); i++)
        attend(&more_attention[i], &seed);
}

static void mix(const struct case_moe *cases, size_t n_cases, uint64_t seed)
{
    for (size_t i = 0; i < n_cases; i++) {
        const struct case_moe *c = &cases[i];
        uint64_t n_x = (uint64_t)c->n * c->hidden, n_pairs = (uint64_t)c->n * c->active;
        uint64_t inner = (uint64_t)c->experts * c->expert_ffn;
        uint64_t outer = (uint64_t)c->experts * c->hidden;
        char what[96];
        if (c->hidden % 8 || c->expert_ffn % 8 || c->timed)
            continue;
        snprintf(what, sizeof what, "%s experts case %zu, %u rows", gguf_type_name(c->type), i,
                 c->n);
        void *router = random_weights(&seed, c->router_type, c->experts, c->hidden);
        void *gate = random_weights(&seed, c->type, inner, c->hidden);
        void *up = random_weights(&seed, c->type, inner, c->hidden);
        void *down = random_weights(&seed, c->type, outer, c->expert_ffn);
        float *router_bias = random_floats(&seed, c->experts, 1);
        float *gate_bias = random_floats(&seed, inner, 1);
        float *up_bias = random_floats(&seed, inner, 1);
        float *down_bias = random_floats(&seed, outer, 1);
        float *h = random_floats(&seed, n_x, 12), *begin = random_floats(&seed, n_x, 1);
        float *want = floats(n_x), *got = floats(n_x), *again = floats(n_x);
        float *weight = floats(n_pairs), *got_weight = floats(n_pairs);
        uint32_t *chosen = calloc(n_pairs, sizeof *chosen);
        uint32_t *got_chosen = calloc(n_pairs, sizeof *got_chosen);
        struct kernels_op_moe op = {.n = c->n,
                                    .hidden = c->hidden,
                                    .experts = c->experts,
                                    .active = c->active,
                                    .expert_ffn = c->expert_ffn,
                                    .router_type = c->router_type,
                                    .type = c->type,
                                    .router = router,
                                    .router_bias = router_bias,
                                    .gate = gate,
                                    .up = up,
                                    .down = down,
                                    .gate_bias = gate_bias,
                                    .up_bias = up_bias,
                                    .down_bias = down_bias,
                                    .alpha = 1.702f,
                                    .limit = 7,
                                    .h = h,
                                    .x = want,
                                    .chosen = chosen,
                                    .weight = weight};
        memcpy(want, begin, n_x * sizeof *want);
        memcpy(got, begin, n_x * sizeof *got);
        assert_int_equal(kernels_op_moe(reference, &op, NULL), 0);
        op.x = got;
        op.chosen = got_chosen;
        op.weight = got_weight;
        assert_int_equal(kernels_op_moe(cuda, &op, NULL), 0);
        assert_memory_equal(chosen, got_chosen, n_pairs * sizeof *chosen);
        test_close(what, got_weight, weight, n_pairs, 1e-5);
        float most = 0;
        for (uint64_t j = 0; j < n_x; j++)
            most = fmaxf(most, fabsf(want[j]));
        test_close(what, got, want, n_x, 4e-3 * (double)most);
        for (uint32_t t = 0; t < c->n; t += 1 + c->n / 7) {
            op.n = 1;
            op.h = h + (uint64_t)t * c->hidden;
            op.x = again;
            memcpy(again, begin + (uint64_t)t * c->hidden, c->hidden * sizeof *again);
            assert_int_equal(kernels_op_moe(cuda, &op, NULL), 0);
            assert_same_bits(what, again, got + (uint64_t)t * c->hidden, c->hidden);
        }
        void *all[] = {router, gate, up,  down,  router_bias, gate_bias,  up_bias, down_bias, h,
                       begin,  want, got, again, weight,      got_weight, chosen,  got_chosen};
        for (size_t j = 0; j < sizeof all / sizeof *all; j++)
            free(all[j]);
    }
}

static void mixes_experts(void **state)
{
    (void)state;
    mix(cases_moe, CASES(cases_moe), 5);
}

static void mixes_experts_of_every_format(void **state)
{
    (void)state;
    mix(cases_moe_formats, CASES(cases_moe_formats), 6);
}

/* ── stages ────────────────────────────────────────────────────────────────────────────────── */

enum { TEXT = 200 };

static void make_text(uint64_t seed, int32_t *tokens, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(test_random(&seed) % model->vocabulary);
}

static float *run_text(struct chain *c, uint32_t slot, const int32_t *tokens, uint32_t n,
                       uint32_t chunk)
{
    size_t vocabulary = model->vocabulary;
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

static void gives_the_same_bits_however_it_is_cut(void **state)
{
    (void)state;
    int32_t tokens[TEXT];
    make_text(11, tokens, TEXT);
    uint64_t n = (uint64_t)TEXT * model->vocabulary;
    for (int type = KERNELS_KV_F32; type <= KERNELS_KV_BF16; type++) {
        struct kernels_stage_options options = {.keep_logits = true,
                                                .kv_type = (enum kernels_kv_type)type};
        struct chain *c = chain_create(model, &on_cuda, 1, &model->n_layers, options);
        float *want = run_text(c, 0, tokens, TEXT, TEXT);
        const uint32_t chunks[] = {1, 7, 64};
        for (int i = 0; i < 3; i++) {
            float *got = run_text(c, 1, tokens, TEXT, chunks[i]);
            assert_same_bits("chunks", got, want, n);
            free(got);
        }
        chain_destroy(c);
        const uint32_t ends[3][4] = {{10, 24}, {1, 9, 24}, {5, 12, 18, 24}};
        for (uint32_t stages = 2; stages <= 4; stages++) {
            options.block_tokens = 8u << stages;
            c = chain_create(model, &on_cuda, stages, ends[stages - 2], options);
            float *got = run_text(c, 0, tokens, TEXT, 50);
            assert_same_bits("stages", got, want, n);
            free(got);
            chain_destroy(c);
        }
        free(want);
    }
}

/* Eight sequences in the same steps, each elsewhere, some in prefill and some in decode; window blocks
 * go from one to the other. */
static void gives_the_same_bits_alone_and_among_others(void **state)
{
    (void)state;
    enum { SLOTS = 8 };
    size_t vocabulary = model->vocabulary;
    int32_t tokens[SLOTS][TEXT];
    float *want[SLOTS];
    uint32_t at[SLOTS] = {0};
    struct kernels_stage_options options = {.keep_logits = true, .kv_type = KERNELS_KV_F16};
    struct chain *c = chain_create(model, &on_cuda, 1, &model->n_layers, options);
    for (uint32_t s = 0; s < SLOTS; s++) {
        make_text(20 + s, tokens[s], TEXT);
        want[s] = run_text(c, s, tokens[s], TEXT, 33);
    }
    chain_destroy(c);
    options.block_tokens = 8;
    options.window_blocks = SLOTS * ((model->window + 40) / 8 + 2);
    c = chain_create(model, &on_cuda, 1, &model->n_layers, options);
    uint64_t seed = 30;
    for (int step = 0; step < 80; step++) {
        uint32_t slot_of[SLOTS], from[SLOTS], count[SLOTS], n = 0;
        chain_begin(c);
        for (uint32_t i = 0; i < SLOTS; i++) {
            uint32_t s = (i * 5 + (uint32_t)step) % SLOTS;
            uint32_t most = test_random(&seed) % 3 ? 1 : 31;
            if (test_random(&seed) % 4 == 0)
                continue;
            at[s] = at[s] == TEXT ? 0 : at[s];
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
                assert_same_bits("among others", chain_logits(c, first + t),
                                 want[slot_of[i]] + (from[i] + t) * vocabulary, vocabulary);
    }
    chain_destroy(c);
    for (uint32_t s = 0; s < SLOTS; s++)
        free(want[s]);
}

/* Nine sequences of many lengths decode together, which a graph of ten rows does (or, with logits
 * kept, single launches); what is sampled is the same. */
static void gives_the_same_bits_from_graphs(void **state)
{
    (void)state;
    enum { SLOTS = 9, STEPS = 20 };
    struct kernels_sample samples[2][STEPS][SLOTS];
    memset(samples, 0, sizeof samples);
    for (int kept = 0; kept < 2; kept++) {
        struct kernels_stage_options options = {
            .keep_logits = kept, .kv_type = KERNELS_KV_F16, .slots = SLOTS};
        struct chain *c = chain_create(model, &on_cuda, 1, &model->n_layers, options);
        for (uint32_t s = 0; s < SLOTS; s++) {
            int32_t tokens[TEXT];
            make_text(40 + s, tokens, TEXT);
            chain_begin(c);
            chain_row(c, s, 0, tokens, 20 * s + 1, 20 * s);
            chain_run(c);
        }
        for (uint32_t step = 0; step < STEPS; step++) {
            chain_begin(c);
            for (uint32_t s = 0; s < SLOTS; s++) {
                struct kernels_row *row =
                    chain_row(c, s, 20 * s + 1 + step, &(int32_t){KERNELS_TOKEN_SAMPLED}, 1, 0);
                row->temperature = s % 3 ? 1 : 0;
                row->seed = s;
                row->top_logits = 5;
            }
            chain_run(c);
            for (uint32_t s = 0; s < SLOTS; s++) {
                const struct kernels_sample *sample = chain_sample(c, s);
                samples[kept][step][s].token = sample->token;
                samples[kept][step][s].logit = sample->logit;
                samples[kept][step][s].log_sum_exp = sample->log_sum_exp;
                samples[kept][step][s].n_top = sample->n_top;
                memcpy(samples[kept][step][s].top, sample->top, 5 * sizeof *sample->top);
            }
        }
        chain_destroy(c);
    }
    assert_memory_equal(samples[0], samples[1], sizeof samples[0]);
}

/* On the same logits the device draws what kernels_sample draws. */
static void samples_by_the_rule(void **state)
{
    (void)state;
    const float temperatures[] = {0, 0.01f, 0.7f, 1, 3, 50};
    const uint32_t top_ks[] = {0, 1, 2, 40, 1000, 100000};
    const float top_ps[] = {1, 1, 0.95f, 0.5f, 0.01f, 0};
    const float min_ps[] = {0, 0, 0.05f, 0.9f, 1};
    const uint32_t limits[] = {0, 4000};
    unsigned others = 0, all = 0;
    uint64_t seed = 50;
    void *scratch = malloc(kernels_sample_scratch_bytes(model->vocabulary));
    for (int l = 0; l < 2; l++) {
        struct kernels_stage_options options = {
            .keep_logits = true, .kv_type = KERNELS_KV_F16, .vocabulary_limit = limits[l]};
        struct chain *c = chain_create(model, &on_cuda, 1, &model->n_layers, options);
        for (int round = 0; round < 12; round++) {
            int32_t tokens[96];
            struct kernels_row rows[CHAIN_ROWS];
            make_text(seed + (unsigned)round, tokens, 96);
            chain_begin(c);
            for (uint32_t s = 0; s < 8; s++) {
                struct kernels_row *row = chain_row(c, s, 0, tokens + 12 * s, 12, 0);
                row->temperature = temperatures[test_random(&seed) % 6];
                row->top_k = top_ks[test_random(&seed) % 6];
                row->top_p = top_ps[test_random(&seed) % 6];
                row->min_p = min_ps[test_random(&seed) % 5];
                row->seed = test_random(&seed);
                row->top_logits = (uint32_t)(test_random(&seed) % (KERNELS_TOP_MAX + 1));
            }
            memcpy(rows, c->rows, sizeof rows);
            chain_run(c);
            for (uint32_t i = 0; i < 96; i++) {
                const struct kernels_sample *got = chain_sample(c, i);
                const struct kernels_row *row = &rows[i / 12];
                struct kernels_sample want;
                kernels_sample(chain_logits(c, i), model->vocabulary, limits[l], row, i % 12, &want,
                               scratch);
                all++;
                if (got->token != want.token && row->top_p >= 1)
                    fail_msg("sample %u: token %d, by the rule %d (T %g, k %u, min_p %g)", i,
                             got->token, want.token, (double)row->temperature, row->top_k,
                             (double)row->min_p);
                /* Sums of masses are rounded differently: a prefix may be one longer or shorter. */
                others += got->token != want.token;
                if (got->token == want.token)
                    assert_true(got->logit == want.logit);
                test_close("log sum", &got->log_sum_exp, &want.log_sum_exp, 1, 1e-5);
                assert_int_equal(got->n_top, want.n_top);
                for (uint32_t j = 0; j < want.n_top; j++) {
                    assert_int_equal(got->top[j].id, want.top[j].id);
                    assert_true(got->top[j].logit == want.top[j].logit);
                }
            }
        }
        chain_destroy(c);
    }
    free(scratch);
    print_message("%u of %u drawn otherwise\n", others, all);
    assert_in_range(others, 0, all / 200);
}

/* ── the door ──────────────────────────────────────────────────────────────────────────────── */

/* Samples of all kinds, of prompts and of decode steps (which graphs run); what each was. */
static void sample_all(struct chain *c, struct kernels_sample *samples)
{
    enum { SLOTS = 8, PROMPT = 12, STEPS = 6 };
    uint64_t seed = 60;
    for (uint32_t step = 0; step < STEPS; step++) {
        int32_t tokens[SLOTS * PROMPT];
        make_text(seed, tokens, SLOTS * PROMPT);
        chain_begin(c);
        for (uint32_t s = 0; s < SLOTS; s++) {
            struct kernels_row *row =
                step ? chain_row(c, s, PROMPT + step - 1, &(int32_t){KERNELS_TOKEN_SAMPLED}, 1, 0)
                     : chain_row(c, s, 0, tokens + PROMPT * s, PROMPT, 0);
            row->temperature = (float[]){0, 0.5f, 1, 20}[test_random(&seed) % 4];
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
    enum { SAMPLES = 8 * 12 + 5 * 8 };
    static struct kernels_sample want[SAMPLES], got[SAMPLES];
    static const struct {
        uint32_t n, ends[4], parts[4];
    } cuts[] = {{1, {24}, {4096}},
                {2, {12, 24}, {1024, 3072}},
                {3, {8, 9, 24}, {0, 2048, 2048}},
                {4, {1, 9, 20, 24}, {1024, 1024, 1024, 1024}}};
    for (uint32_t limit = 0; limit <= 3000; limit += 1500) {
        struct kernels_stage_options options = {.vocabulary_limit = limit,
                                                .kv_type = KERNELS_KV_F16};
        struct chain *c = chain_create(model, &on_cuda, 1, &model->n_layers, options);
        sample_all(c, want);
        chain_destroy(c);
        for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
            options.head_parts = cuts[i].parts;
            options.keep_logits = i == 3;
            c = chain_create(model, &on_cuda, cuts[i].n, cuts[i].ends, options);
            sample_all(c, got);
            chain_destroy(c);
            for (uint32_t j = 0; j < SAMPLES; j++)
                if (memcmp(&got[j], &want[j], sizeof *got))
                    fail_msg(
                        "cut %zu: sample %u is token %d with logit %.9g and log sum %.9g, of a "
                        "whole head %d, %.9g, %.9g",
                        i, j, got[j].token, (double)got[j].logit, (double)got[j].log_sum_exp,
                        want[j].token, (double)want[j].logit, (double)want[j].log_sum_exp);
        }
    }
}

/* ── streams that wait ─────────────────────────────────────────────────────────────────────── */

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* A word of host memory for which streams wait, as they do for a neighbour. */
struct gate {
    uint32_t *word;
    CUresult (*wait)(CUstream, CUdeviceptr, cuuint32_t, unsigned);
};

static struct gate gate_create(void)
{
    struct gate g = {NULL, NULL};
    void *entry = NULL, *word = NULL;
    enum cudaDriverEntryPointQueryResult found;
    assert_int_equal(cudaHostAlloc(&word, sizeof *g.word, cudaHostAllocMapped), cudaSuccess);
    assert_int_equal(cudaGetDriverEntryPointByVersion("cuStreamWaitValue32", &entry, 12000,
                                                      cudaEnableDefault, &found),
                     cudaSuccess);
    memcpy(&g.wait, &entry, sizeof entry);
    g.word = word;
    *g.word = 0;
    return g;
}

static void gate_close(const struct gate *g, cudaStream_t stream)
{
    assert_int_equal(g->wait(stream, (CUdeviceptr)(uintptr_t)g->word, 1, CU_STREAM_WAIT_VALUE_GEQ),
                     0);
}

static void gate_open(const struct gate *g)
{
    __atomic_store_n(g->word, 1, __ATOMIC_SEQ_CST);
}

/* A job of a cut head, of the chain's step: false if it is not done in five seconds. */
static bool job_is_done(struct chain *c, uint32_t stage)
{
    int done = 0;
    for (uint64_t begin = now_ms(); !done && now_ms() - begin < 5000;)
        done = kernels_stage_head_test(c->stages[stage], 0, c->err, sizeof c->err);
    return done == 1;
}

/* The stages' streams wait, with steps queued behind: jobs of the step before go through all the same.
 * In a pipeline it is their results that end the wait. */
static void makes_jobs_of_the_head_while_the_steps_wait(void **state)
{
    (void)state;
    static const uint32_t ends[] = {12, 24}, parts[] = {2048, 2048};
    struct kernels_stage_options options = {
        .kv_type = KERNELS_KV_F16, .head_parts = parts, .lanes = 4};
    struct chain *c = chain_create(model, &on_cuda, 2, ends, options);
    struct gate g = gate_create();
    struct kernels_row rows[CHAIN_ROWS];
    for (uint32_t round = 0; round < 2; round++) { /* sampled without filters; with them */
        chain_begin(c);
        for (uint32_t s = 0; s < 4; s++) {
            struct kernels_row *row = chain_row(c, s, round, &(int32_t){5}, 1, 0);
            row->temperature = 1;
            row->top_p = round ? 0.9f : 1;
        }
        chain_run(c); /* all kernels have run once, and the step's rows are picked */
        *g.word = 0;
        struct kernels_step step = c->step;
        memcpy(rows, c->rows, sizeof rows);
        step.rows = rows;
        for (uint32_t i = 0; i < 2; i++)
            gate_close(&g, kernels_stage_stream(c->stages[i]));
        for (uint32_t ahead = 1; ahead <= 3; ahead++) {
            chain_begin(c);
            chain_row(c, 4 + ahead, round, &(int32_t){7}, 1, 0);
            for (uint32_t i = 0; i < 2; i++)
                if (kernels_stage_step(c->stages[i], (c->lane + ahead) % 4, &c->step, c->err,
                                       sizeof c->err))
                    fail_msg("%s", c->err);
        }
        bool done = true;
        for (uint32_t i = 0; i < 2; i++) {
            if (kernels_stage_head(c->stages[i], 0, c->lane, &step, 0, 4, c->err, sizeof c->err))
                fail_msg("%s", c->err);
            done &= job_is_done(c, i);
        }
        if (done && kernels_stage_merge(c->stages[1], 0, c->err, sizeof c->err))
            fail_msg("%s", c->err);
        done = done && job_is_done(c, 1);
        for (uint32_t i = 0; i < 2; i++)
            assert_int_equal(cudaStreamQuery(kernels_stage_stream(c->stages[i])),
                             cudaErrorNotReady);
        gate_open(&g);
        if (!done)
            fail_msg("round %u: a job waited for the steps behind which it was queued: %s", round,
                     c->err);
        for (uint32_t ahead = 1; ahead <= 3; ahead++) {
            uint32_t lane = c->lane;
            c->lane = (lane + ahead) % 4;
            for (uint32_t i = 0; i < 2; i++)
                chain_wait(c, i);
            c->lane = lane;
        }
    }
    cudaFreeHost(g.word);
    chain_destroy(c);
}

/* Not a promise of ours, but why copy.cu is there. */
static void tells_whether_copies_hold_each_other_up(void **state)
{
    (void)state;
    cudaStream_t streams[2];
    void *host, *device;
    struct gate g = gate_create();
    assert_int_equal(cudaHostAlloc(&host, 64, cudaHostAllocDefault), cudaSuccess);
    assert_int_equal(cudaMalloc(&device, 512), cudaSuccess);
    for (int i = 0; i < 2; i++)
        assert_int_equal(cudaStreamCreateWithPriority(&streams[i], cudaStreamNonBlocking, -3 * i),
                         cudaSuccess);
    gate_close(&g, streams[0]);
    cudaMemcpyAsync(device, host, 64, cudaMemcpyHostToDevice, streams[0]);
    cudaMemcpyAsync((char *)device + 256, host, 64, cudaMemcpyHostToDevice, streams[1]);
    bool passed = false;
    for (uint64_t begin = now_ms(); !passed && now_ms() - begin < 500;)
        passed = cudaStreamQuery(streams[1]) == cudaSuccess;
    print_message("a copy %s one that was queued before on a stream that waits\n",
                  passed ? "passes" : "is held up by");
    gate_open(&g);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(cudaStreamSynchronize(streams[i]), cudaSuccess);
        cudaStreamDestroy(streams[i]);
    }
    cudaFree(device);
    cudaFreeHost(host);
    cudaFreeHost(g.word);
}

/* ── one sequence, nothing waited for ──────────────────────────────────────────────────────── */

/* Decodes `n` tokens from `at` on with as many steps queued as there are lanes. */
static void decode_ahead(struct chain *c, uint32_t at, uint32_t n, struct kernels_sample *samples)
{
    uint32_t lanes = c->options.lanes, slot = 0;
    for (uint32_t i = 0; i < n + lanes; i++) {
        c->lane = i % lanes;
        if (i >= lanes) {
            chain_wait(c, 0);
            samples[i - lanes] = *chain_sample(c, 0);
        }
        if (i >= n)
            continue;
        chain_begin(c);
        struct kernels_row *row = chain_row(c, 0, at + i, &(int32_t){KERNELS_TOKEN_SAMPLED}, 1, 0);
        row->temperature = 1;
        row->seed = 3;
        if (kernels_stage_step(c->stages[0], c->lane, &c->step, c->err, sizeof c->err) ||
            kernels_stage_ring(c->stages[0], c->lane, &slot, 1, c->err, sizeof c->err))
            fail_msg("%s", c->err);
    }
}

/* Steps of one token have kernels of their own, which start before the ones in front have ended: from
 * graphs, launched one by one, and in each variant that cuda_speed compares. */
static void gives_the_same_bits_for_one_sequence_again_and_again(void **state)
{
    (void)state;
    enum {
        PROMPT = 250,
        STEPS = 300
    }; /* over the window, and from one chunk of keys to the next */
    static struct kernels_sample want[STEPS], got[STEPS];
    static const uint32_t variants[] = {0, 0, 0, 1, 0};
    int32_t tokens[PROMPT];
    make_text(70, tokens, PROMPT);
    for (size_t v = 0; v < sizeof variants / sizeof *variants; v++) {
        struct kernels_stage_options options = {
            .keep_logits = v == 1, .kv_type = KERNELS_KV_F16, .lanes = 4};
        cuda_variant = variants[v];
        struct chain *c = chain_create(model, &on_cuda, 1, &model->n_layers, options);
        chain_begin(c);
        chain_row(c, 0, 0, tokens, PROMPT, PROMPT - 1);
        chain_run(c);
        decode_ahead(c, PROMPT, STEPS, v ? got : want);
        chain_destroy(c);
        for (uint32_t i = 0; v && i < STEPS; i++)
            if (got[i].token != want[i].token ||
                memcmp(&got[i].logit, &want[i].logit, sizeof(float)) ||
                memcmp(&got[i].log_sum_exp, &want[i].log_sum_exp, sizeof(float)))
                fail_msg("run %zu, variant %u: token %u is %d with %.9g, before %d with %.9g", v,
                         variants[v], i, got[i].token, (double)got[i].logit, want[i].token,
                         (double)want[i].logit);
    }
    cuda_variant = chosen_variant;
}

static void says_what_it_is(void **state)
{
    (void)state;
    struct kernels_info info;
    kernels_info(cuda, &info);
    print_message("%s, %s, %.1f GiB free, %.0f GB/s\n", info.device, info.uuid,
                  (double)info.memory_free_bytes / (1 << 30), info.bandwidth / 1e9);
    assert_string_equal(info.backend, "cuda");
    assert_int_equal(strlen(info.uuid), 40);
    assert_true(info.memory_free_bytes > 0 && info.bandwidth > 0);
    struct kernels *k;
    char err[128];
    struct kernels_options options = {.device = "auto", .local_rank = 1000};
    assert_int_equal(kernels_create(&k, &options, err, sizeof err), 0);
    kernels_info(k, &info);
    assert_string_equal(info.backend, "cuda");
    kernels_destroy(k);
}

static struct kernels_stage_options small_stage(void)
{
    return (struct kernels_stage_options){.layer_count = model->n_layers,
                                          .head_count = model->vocabulary,
                                          .kv_type = KERNELS_KV_F16,
                                          .block_tokens = 16,
                                          .full_blocks = 8,
                                          .window_blocks = 8,
                                          .slots = 2,
                                          .context = 64,
                                          .lanes = 1,
                                          .step_rows = 2,
                                          .step_tokens = 32,
                                          .step_samples = 2};
}

static void takes_what_it_said(void **state)
{
    (void)state;
    char err[256];
    struct kernels_stage *stage;
    struct kernels_footprint footprint, two;
    struct kernels_stage_options options = small_stage();
    kernels_stage_footprint(cuda, model, &options, &footprint);
    assert_true(footprint.weights_bytes > model->bytes * 9 / 10 &&
                footprint.weights_bytes < model->bytes * 5 / 4);
    assert_int_equal(footprint.kv_bytes, 24 * 8 * 16 * 2 * 2 * 64 * 2);
    size_t before, after, all;
    cudaMemGetInfo(&before, &all);
    assert_int_equal(kernels_stage_create(&stage, cuda, model, &options, err, sizeof err), 0);
    cudaMemGetInfo(&after, &all);
    uint64_t said = footprint.weights_bytes + footprint.kv_bytes + footprint.activation_bytes;
    print_message("footprint %llu bytes, memory less by %llu\n", (unsigned long long)said,
                  (unsigned long long)(before - after));
    kernels_stage_destroy(stage);
    options.full_blocks = 1u << 31;
    kernels_stage_footprint(cuda, model, &options, &two);
    assert_true(two.kv_bytes > footprint.kv_bytes);
    assert_int_equal(kernels_stage_create(&stage, cuda, model, &options, err, sizeof err), -1);
    assert_null(stage);
    assert_non_null(strstr(err, "GiB free"));
}

/* 16 bits for each weight of the formats that are held as halves, 8.5 for Q4_0 and Q5_0 too. */
static uint64_t held_bytes(const struct gguf_tensor *tensor)
{
    uint64_t values = tensor->bytes / tensor->row_bytes * tensor->ne[0];
    switch (tensor->type) {
    case GGUF_MXFP4: return tensor->bytes;
    case GGUF_Q8_0:
    case GGUF_Q4_0:
    case GGUF_Q5_0: return values / 32 * 34;
    default: return 2 * values;
    }
}

static void counts_weights_as_the_device_holds_them(void **state)
{
    (void)state;
    char err[256];
    struct gguf_file *formats_file;
    struct gguf_model *formats;
    struct kernels_stage *stage;
    struct kernels_footprint footprint;
    assert_int_equal(gguf_open(&formats_file, FORMATS, err, sizeof err), 0);
    assert_int_equal(gguf_model_create(&formats, formats_file, err, sizeof err), 0);
    uint64_t held = held_bytes(formats->embedding) + held_bytes(formats->output);
    for (uint32_t i = 0; i < formats->n_layers; i++) {
        const struct gguf_layer *l = &formats->layers[i];
        held += held_bytes(l->attn_q.weight) + held_bytes(l->attn_k.weight) +
                held_bytes(l->attn_v.weight) + held_bytes(l->attn_out.weight) +
                held_bytes(l->gate.weight) + held_bytes(l->up.weight) + held_bytes(l->down.weight);
    }
    struct kernels_stage_options options = small_stage();
    options.layer_count = formats->n_layers;
    options.head_count = formats->vocabulary;
    kernels_stage_footprint(cuda, formats, &options, &footprint);
    size_t before, after, all;
    cudaMemGetInfo(&before, &all);
    assert_int_equal(kernels_stage_create(&stage, cuda, formats, &options, err, sizeof err), 0);
    cudaMemGetInfo(&after, &all);
    print_message("file %llu bytes, matrices held in %llu, weights %llu, all %llu, memory less by "
                  "%llu\n",
                  (unsigned long long)formats->bytes, (unsigned long long)held,
                  (unsigned long long)footprint.weights_bytes,
                  (unsigned long long)(footprint.weights_bytes + footprint.kv_bytes +
                                       footprint.activation_bytes),
                  (unsigned long long)(before - after));
    /* Biases, norms and the padding of tiles come on top. */
    assert_in_range(footprint.weights_bytes, held, held * 11 / 10 + (1 << 20));
    kernels_stage_destroy(stage);
    gguf_model_destroy(formats);
    gguf_close(formats_file);
}

static void copy_file(const char *from, const char *to)
{
    static char buffer[1 << 16];
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    assert_true(in && out);
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, in)) > 0;)
        assert_int_equal(fwrite(buffer, 1, n, out), n);
    fclose(in);
    assert_int_equal(fclose(out), 0);
}

/* The scale of the last block of a row of experts, which the threads read, and a bias of gate,
 * which they do not. */
static void refuses_to_load_a_scale_that_is_not_finite(void **state)
{
    (void)state;
    char err[256], path[] = "/tmp/gptoss-test-cuda-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    for (int i = 0; i < 2; i++) {
        struct gguf_file *bad_file;
        struct gguf_model *bad;
        struct kernels_stage *stage;
        copy_file(FORMATS, path);
        assert_int_equal(gguf_open(&bad_file, path, err, sizeof err), 0);
        assert_int_equal(gguf_model_create(&bad, bad_file, err, sizeof err), 0);
        const struct gguf_layer *layer = &bad->layers[3];
        const struct gguf_tensor *tensor = i ? layer->gate.bias : layer->up.weight;
        FILE *out = fopen(path, "r+b");
        uint32_t block = gguf_type_block_bytes(tensor->type);
        const unsigned char infinite[2] = {0x80, 0x7f}, half_infinite[2] = {0, 0x7c};
        /* Of a float the upper half. */
        fseek(out, (long)(tensor->offset + tensor->row_bytes - block + (i ? 2 : 0)), SEEK_SET);
        fwrite(i ? infinite : half_infinite, 1, 2, out);
        fclose(out);
        struct kernels_stage_options options = small_stage();
        options.layer_count = bad->n_layers;
        options.head_count = bad->vocabulary;
        assert_int_equal(kernels_stage_create(&stage, cuda, bad, &options, err, sizeof err), -1);
        print_message("%s\n", err);
        assert_non_null(strstr(err, tensor->name));
        assert_non_null(strstr(err, "NaN or infinite in row 0"));
        gguf_model_destroy(bad);
        gguf_close(bad_file);
    }
    unlink(path);
}

static void names_the_row_without_a_sampled_token(void **state)
{
    (void)state;
    char err[256];
    struct kernels_stage *stage;
    struct kernels_stage_options options = small_stage();
    assert_int_equal(kernels_stage_create(&stage, cuda, model, &options, err, sizeof err), 0);
    int32_t tokens[1] = {KERNELS_TOKEN_SAMPLED};
    struct kernels_row row = {.count = 1,
                              .full_given = (uint32_t[]){3},
                              .full_given_count = 1,
                              .window_given = (uint32_t[]){5},
                              .window_given_count = 1,
                              .restart = true,
                              .top_p = 1};
    struct kernels_step step = {
        .n_rows = 1, .n_tokens = 1, .n_samples = 1, .rows = &row, .tokens = tokens};
    int done;
    assert_int_equal(kernels_stage_step(stage, 0, &step, err, sizeof err), 0);
    while (!(done = kernels_stage_test(stage, 0, err, sizeof err)))
        sched_yield();
    assert_int_equal(done, -1);
    assert_non_null(strstr(err, "row 0"));
    tokens[0] = 7;
    assert_int_equal(kernels_stage_step(stage, 0, &step, err, sizeof err), 0);
    while (!(done = kernels_stage_test(stage, 0, err, sizeof err)))
        sched_yield();
    assert_int_equal(done, 1);
    kernels_stage_destroy(stage);
}

static int notified;

static void count_notification(void *arg)
{
    (void)arg;
    __atomic_fetch_add(&notified, 1, __ATOMIC_RELAXED);
}

static void tells_when_a_step_is_done(void **state)
{
    (void)state;
    struct kernels_stage_options options = {.notify = count_notification,
                                            .kv_type = KERNELS_KV_F16};
    struct chain *c = chain_create(model, &on_cuda, 1, &model->n_layers, options);
    for (uint32_t i = 0; i < 5; i++) {
        notified = 0;
        chain_begin(c);
        chain_row(c, 0, i, &(int32_t){5}, 1, 0);
        chain_run(c);
        for (int wait = 0; wait < 2000 && !__atomic_load_n(&notified, __ATOMIC_RELAXED); wait++) {
            const struct timespec pause = {0, 1000000};
            nanosleep(&pause, NULL);
        }
        assert_true(__atomic_load_n(&notified, __ATOMIC_RELAXED) >= 1);
    }
    assert_true(kernels_stage_busy_seconds(c->stages[0]) > 0);
    chain_destroy(c);
}

/* test_cuda [PATTERN]: the tests whose names match. */
int main(int argc, char **argv)
{
    char err[256];
    struct kernels *k;
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8", 0); /* as gptoss-worker does */
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    if (kernels_create(&k, &on_cuda, err, sizeof err)) {
        print_message("%s\n", err);
        return 77;
    }
    kernels_destroy(k);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_what_it_is),
        cmocka_unit_test(normalises_rows),
        cmocka_unit_test(multiplies_matrices),
        cmocka_unit_test(multiplies_matrices_of_every_format),
        cmocka_unit_test(attends),
        cmocka_unit_test(mixes_experts),
        cmocka_unit_test(mixes_experts_of_every_format),
        cmocka_unit_test(takes_what_it_said),
        cmocka_unit_test(counts_weights_as_the_device_holds_them),
        cmocka_unit_test(refuses_to_load_a_scale_that_is_not_finite),
        cmocka_unit_test(names_the_row_without_a_sampled_token),
        cmocka_unit_test(gives_the_same_bits_however_it_is_cut),
        cmocka_unit_test(gives_the_same_bits_alone_and_among_others),
        cmocka_unit_test(gives_the_same_bits_from_graphs),
        cmocka_unit_test(samples_by_the_rule),
        cmocka_unit_test(gives_the_same_bits_from_a_cut_head),
        cmocka_unit_test(gives_the_same_bits_for_one_sequence_again_and_again),
        cmocka_unit_test(makes_jobs_of_the_head_while_the_steps_wait),
        cmocka_unit_test(tells_whether_copies_hold_each_other_up),
        cmocka_unit_test(tells_when_a_step_is_done),
    };
    const char *variant = getenv("GPTOSS_TEST_CUDA_VARIANT"); /* bits, as of cuda_speed */
    cuda_variant = chosen_variant = variant ? (uint32_t)strtoul(variant, NULL, 10) : 0;
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, open_all, close_all);
}
