/*
 * The operations of each instruction set against the reference, over the table of cases; and that a
 * row's bits do not depend on the rows beside it, the threads, or (AVX2, AVX-512) the instruction set.
 */
#include "cases.h"
#include "kernels/ops.h"
#include "test.h"

#define EPSILON 0x1p-24 /* a float is off by this much of itself when it was rounded */

static struct kernels *reference;
/* Each instruction set that is here, with one thread and with three. */
static struct {
    const char *isa;
    struct kernels *one, *three;
    struct kernels *fast_one, *fast_three; /* products with int8 activations */
} backends[4];
static size_t n_backends;

static int open_backends(void **state)
{
    (void)state;
    char err[128];
    const char *isas[] = {"avx512", "avxvnni", "avx2", "plain"};
    if (kernels_create(&reference, &(struct kernels_options){.device = "reference"}, err,
                       sizeof err))
        return -1;
    for (size_t i = 0; i < CASES(isas); i++) {
        struct kernels_options options = {.device = "cpu", .isa = isas[i]};
        if (kernels_create(&backends[n_backends].one, &options, err, sizeof err)) {
            print_message("not tested here: %s\n", err);
            continue;
        }
        options.threads = 3;
        if (kernels_create(&backends[n_backends].three, &options, err, sizeof err))
            return -1;
        options.fast = true;
        if (kernels_create(&backends[n_backends].fast_three, &options, err, sizeof err))
            return -1;
        options.threads = 1;
        if (kernels_create(&backends[n_backends].fast_one, &options, err, sizeof err))
            return -1;
        backends[n_backends++].isa = isas[i];
    }
    return 0;
}

static int close_backends(void **state)
{
    (void)state;
    kernels_destroy(reference);
    for (size_t i = 0; i < n_backends; i++) {
        kernels_destroy(backends[i].one);
        kernels_destroy(backends[i].three);
        kernels_destroy(backends[i].fast_one);
        kernels_destroy(backends[i].fast_three);
    }
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

/* ── rmsnorm ───────────────────────────────────────────────────────────────────────────────── */

static void normalises_rows(void **state)
{
    (void)state;
    uint64_t seed = 1;
    for (size_t i = 0; i < CASES(cases_rmsnorm); i++) {
        const struct case_rmsnorm *c = &cases_rmsnorm[i];
        uint64_t n = (uint64_t)c->n * c->columns;
        char what[64];
        struct kernels_op_rmsnorm op = {.n = c->n, .columns = c->columns, .eps = 1e-5f};
        float *x = random_floats(&seed, n, 3), *want = floats(n), *got = floats(n);
        float *weight = random_floats(&seed, c->columns, 2);
        op.x = x;
        op.weight = weight;
        op.out = want;
        assert_int_equal(kernels_op_rmsnorm(reference, &op, NULL), 0);
        for (size_t b = 0; b < n_backends; b++) {
            snprintf(what, sizeof what, "rmsnorm %s %ux%u", backends[b].isa, c->n, c->columns);
            op.out = got;
            assert_int_equal(kernels_op_rmsnorm(backends[b].one, &op, NULL), 0);
            /* A relative error of the sum is halved by the root; |out| ≤ √columns · |weight|. */
            test_close(what, got, want, n,
                       (c->columns / 32.0 + 8) * EPSILON * 2 * sqrt((double)c->columns));
            float *again = floats(n);
            op.out = again;
            assert_int_equal(kernels_op_rmsnorm(backends[b].three, &op, NULL), 0);
            assert_same_bits(what, got, again, n);
            free(again);
        }
        free(x);
        free(want);
        free(got);
        free(weight);
    }
}

/* ── linear ────────────────────────────────────────────────────────────────────────────────── */

static void multiplies_matrices_of_every_type(void **state)
{
    (void)state;
    uint64_t seed = 2;
    for (size_t i = 0; i < CASES(cases_linear) + CASES(cases_linear_formats); i++) {
        const struct case_linear *c = i < CASES(cases_linear)
                                          ? &cases_linear[i]
                                          : &cases_linear_formats[i - CASES(cases_linear)];
        if (c->timed && c->n > 1) /* slow in the reference, and nothing that the others miss */
            continue;
        uint64_t n_y = (uint64_t)c->n * c->rows, row_bytes = gguf_row_bytes(c->type, c->columns);
        char what[96];
        unsigned char *weight = random_weights(&seed, c->type, c->rows, c->columns);
        float *x = random_floats(&seed, (uint64_t)c->n * c->columns, 1);
        float *bias = random_floats(&seed, c->rows, 1), *begin = random_floats(&seed, n_y, 1);
        float *want = floats(n_y), *got = floats(n_y), *row = floats(c->columns);
        struct kernels_op_linear op = {.type = c->type,
                                       .weight = weight,
                                       .bias = c->bias ? bias : NULL,
                                       .rows = c->rows,
                                       .columns = c->columns,
                                       .n = c->n,
                                       .x = x,
                                       .y = want,
                                       .add = c->add};
        memcpy(want, begin, n_y * sizeof *want);
        assert_int_equal(kernels_op_linear(reference, &op, NULL), 0);
        for (size_t b = 0; b < n_backends; b++) {
            snprintf(what, sizeof what, "linear %s %s %ux%u by %u rows", backends[b].isa,
                     gguf_type_name(c->type), c->rows, c->columns, c->n);
            op.x = x;
            op.y = got;
            op.n = c->n;
            memcpy(got, begin, n_y * sizeof *got);
            assert_int_equal(kernels_op_linear(backends[b].one, &op, NULL), 0);
            /* Each of the 16 lanes rounds columns/16 times, the end a few times more. (Checked for
             * the first rows of x: the bound needs the sum of the magnitudes.) */
            for (uint32_t t = 0; t < (c->n < 3 ? c->n : 3); t++)
                for (uint32_t o = 0; o < c->rows; o++) {
                    double size = 2;
                    gguf_to_float(c->type, weight + o * row_bytes, row, c->columns);
                    for (uint32_t j = 0; j < c->columns; j++)
                        size += fabs((double)row[j] * (double)x[(uint64_t)t * c->columns + j]);
                    test_close(what, &got[(uint64_t)t * c->rows + o],
                               &want[(uint64_t)t * c->rows + o], 1,
                               (c->columns / 16.0 + 8) * EPSILON * size);
                }
            test_close(what, got, want, n_y, 1e-5 * sqrt((double)c->columns));

            float *again = floats(n_y);
            op.y = again;
            memcpy(again, begin, n_y * sizeof *again);
            assert_int_equal(kernels_op_linear(backends[b].three, &op, NULL), 0);
            assert_same_bits(what, got, again, n_y);
            /* Alone, and the first few alone. */
            for (uint32_t t = 0; t < c->n; t += c->n / 5 + 1) {
                uint32_t some = t == 0 && c->n > 3 ? 3 : 1;
                op.n = some;
                op.x = x + (uint64_t)t * c->columns;
                memcpy(again, begin + (uint64_t)t * c->rows, some * c->rows * sizeof *again);
                assert_int_equal(kernels_op_linear(backends[b].one, &op, NULL), 0);
                assert_same_bits(what, again, got + (uint64_t)t * c->rows, some * c->rows);
            }
            free(again);
        }
        free(weight);
        free(x);
        free(bias);
        free(begin);
        free(want);
        free(got);
        free(row);
    }
}

/* Small integers: every product and sum is exact, so one wrong weight cannot hide in a bound. */
static void multiplies_small_integers_exactly(void **state)
{
    (void)state;
    uint64_t seed = 3;
    const enum gguf_type types[] = {GGUF_F32, GGUF_F16, GGUF_BF16, GGUF_Q8_0, GGUF_MXFP4};
    for (size_t type = 0; type < 5; type++) {
        uint32_t rows = 37, columns = 608, n = 11;
        uint64_t row_bytes = gguf_row_bytes(types[type], columns);
        unsigned char *weight = malloc(rows * row_bytes);
        float *row = floats(columns), *x = floats(n * columns);
        float *want = floats(n * rows), *got = floats(n * rows);
        for (uint32_t o = 0; o < rows; o++) {
            const float values[] = {0, 1, -2, 3, -4, 6, 6, -6};
            for (uint32_t i = 0; i < columns; i++)
                row[i] = values[test_random(&seed) % 8];
            gguf_from_float(types[type], row, weight + o * row_bytes, columns);
        }
        if (types[type] == GGUF_Q8_0) /* scales that are powers of two, any bytes */
            for (uint64_t at = 0; at < rows * row_bytes; at++) {
                weight[at] = at % 34 == 0 ? 0 : (unsigned char)(test_random(&seed) % 256);
                if (at % 34 == 1)
                    weight[at] = (unsigned char)(0x38 + test_random(&seed) % 3 * 4);
            }
        for (uint32_t i = 0; i < n * columns; i++)
            x[i] = (float)(int)(test_random(&seed) % 17) - 8;
        struct kernels_op_linear op = {.type = types[type],
                                       .weight = weight,
                                       .rows = rows,
                                       .columns = columns,
                                       .x = x,
                                       .n = n,
                                       .y = want};
        assert_int_equal(kernels_op_linear(reference, &op, NULL), 0);
        for (size_t b = 0; b < n_backends; b++) {
            op.y = got;
            op.n = n;
            assert_int_equal(kernels_op_linear(backends[b].one, &op, NULL), 0);
            assert_same_bits(gguf_type_name(types[type]), got, want, n * rows);
            op.n = 1;
            assert_int_equal(kernels_op_linear(backends[b].one, &op, NULL), 0);
            assert_same_bits(gguf_type_name(types[type]), got, want, rows);
        }
        free(weight);
        free(row);
        free(x);
        free(want);
        free(got);
    }
}

/* ── float activations, as integers of 30 bits ─────────────────────────────────────────────── */

/* Values of one block far apart: of each what lies 2⁻²⁸ below the largest may be lost, no more. */
static void keeps_small_values_beside_large_ones(void **state)
{
    (void)state;
    enum { ROWS = 19, COLUMNS = 512, N = 10 };
    static const enum gguf_type types[] = {GGUF_MXFP4, GGUF_Q8_0, GGUF_Q5_1, GGUF_Q4_K, GGUF_Q6_K};
    uint64_t seed = 41;
    for (size_t i = 0; i < CASES(types); i++) {
        uint64_t row_bytes = gguf_row_bytes(types[i], COLUMNS);
        unsigned char *weight = random_weights(&seed, types[i], ROWS, COLUMNS);
        float *x = random_floats(&seed, N * COLUMNS, 1), got[N * ROWS], row[COLUMNS];
        for (uint32_t j = 0; j < N * COLUMNS; j++) /* from 2⁻¹⁸ to 2⁹, and whole blocks of 2⁻⁹⁰ */
            x[j] = ldexpf(x[j], (int)(test_random(&seed) % 28) - 18 - (j / 32 % 5 == 4 ? 90 : 0));
        struct kernels_op_linear op = {.type = types[i],
                                       .weight = weight,
                                       .rows = ROWS,
                                       .columns = COLUMNS,
                                       .n = N,
                                       .x = x,
                                       .y = got};
        for (size_t b = 0; b < n_backends; b++) {
            char what[64];
            snprintf(what, sizeof what, "%s %s", backends[b].isa, gguf_type_name(types[i]));
            assert_int_equal(kernels_op_linear(backends[b].one, &op, NULL), 0);
            for (uint32_t at = 0; at < N * ROWS; at++) {
                const float *of_x = x + at / ROWS * COLUMNS;
                double want = 0, size = 0, lost = 0;
                gguf_to_float(types[i], weight + at % ROWS * row_bytes, row, COLUMNS);
                for (uint32_t j = 0; j < COLUMNS; j += 32) {
                    double most = 0, weights = 0;
                    for (uint32_t k = j; k < j + 32; k++) {
                        want += (double)row[k] * (double)of_x[k];
                        size += fabs((double)row[k] * (double)of_x[k]);
                        most = fmax(most, fabs((double)of_x[k]));
                        weights += fabs((double)row[k]);
                    }
                    lost += most * weights;
                }
                double minima = lost * 0.01; /* K-quants multiply what they subtract apart */
                double bound = (COLUMNS / 32.0 + 8) * EPSILON * (size + minima) + lost * 0x1p-28;
                double got_double = (double)got[at];
                if (fabs(got_double - want) > bound)
                    fail_msg("%s: element %u is %.9g, not %.9g (bound %g)", what, at, got_double,
                             want, bound);
            }
        }
        free(weight);
        free(x);
    }
}

static void passes_on_what_is_no_number(void **state)
{
    (void)state;
    enum { ROWS = 17, COLUMNS = 256, N = 3 };
    uint64_t seed = 42;
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < 3 * 2; i++) {
        enum gguf_type type = i < 3 ? GGUF_MXFP4 : GGUF_Q4_K;
        void *weight = random_weights(&seed, type, ROWS, COLUMNS);
        float *x = random_floats(&seed, N * COLUMNS, 1), got[N * ROWS];
        x[COLUMNS + 77] = bad[i % 3];
        struct kernels_op_linear op = {.type = type,
                                       .weight = weight,
                                       .rows = ROWS,
                                       .columns = COLUMNS,
                                       .n = N,
                                       .x = x,
                                       .y = got};
        for (size_t b = 0; b < n_backends; b++) {
            assert_int_equal(kernels_op_linear(backends[b].one, &op, NULL), 0);
            for (uint32_t at = 0; at < N * ROWS; at++)
                assert_int_equal(isfinite(got[at]) != 0, at / ROWS != 1);
        }
        free(weight);
        free(x);
    }
}

/* ── int8 activations ──────────────────────────────────────────────────────────────────────── */

/* What the rule makes of a row: blocks of 32, the largest is 127. */
static void round_row(const float *x, uint32_t columns, float *rounded)
{
    for (uint32_t b = 0; b < columns; b += 32) {
        float most = 0;
        for (uint32_t i = b; i < b + 32; i++)
            most = fmaxf(most, fabsf(x[i]));
        float scale = most / 127.0f, inverse = most > 0 ? 127.0f / most : 0;
        for (uint32_t i = b; i < b + 32; i++)
            rounded[i] = scale * rintf(x[i] * inverse);
    }
}

static bool is_integer_type(enum gguf_type type)
{
    return type != GGUF_F32 && type != GGUF_F16 && type != GGUF_BF16 && type != GGUF_Q2_K &&
           type != GGUF_Q3_K;
}

static void multiplies_with_int8_activations(void **state)
{
    (void)state;
    static const struct {
        uint32_t rows, columns, n;
        bool add;
    } shapes[] = {{1, 256, 1, false},  {16, 256, 7, true},    {33, 768, 2, false},
                  {47, 512, 48, true}, {130, 256, 49, false}, {18, 1024, 200, false}};
    static const enum gguf_type types[] = {GGUF_MXFP4, GGUF_Q8_0, GGUF_Q4_0, GGUF_Q4_1, GGUF_Q5_0,
                                           GGUF_Q5_1,  GGUF_Q4_K, GGUF_Q5_K, GGUF_Q6_K, GGUF_Q2_K,
                                           GGUF_Q3_K,  GGUF_BF16, GGUF_F32};
    uint64_t seed = 31;
    for (size_t i = 0; i < CASES(types) * CASES(shapes); i++) {
        enum gguf_type type = types[i / CASES(shapes)];
        uint32_t rows = shapes[i % CASES(shapes)].rows, n = shapes[i % CASES(shapes)].n;
        uint32_t columns = shapes[i % CASES(shapes)].columns;
        uint64_t n_x = (uint64_t)n * columns, n_y = (uint64_t)n * rows;
        char what[96];
        void *weight = random_weights(&seed, type, rows, columns);
        float *x = random_floats(&seed, n_x, 3), *rounded = floats(n_x);
        for (uint32_t j = 0; j < 32; j++) /* a block of zeros, and one that is tiny */
            x[j] = n > 1 ? 0 : x[j] * 1e-36f;
        for (uint32_t t = 0; t < n && is_integer_type(type); t++)
            round_row(x + (uint64_t)t * columns, columns, rounded + (uint64_t)t * columns);
        float *bias = random_floats(&seed, rows, 1), *begin = random_floats(&seed, n_y, 1);
        float *want = floats(n_y), *got = floats(n_y), *again = floats(n_y), *first = floats(n_y);
        struct kernels_op_linear op = {.type = type,
                                       .weight = weight,
                                       .bias = bias,
                                       .rows = rows,
                                       .columns = columns,
                                       .n = n,
                                       .x = is_integer_type(type) ? rounded : x,
                                       .y = want,
                                       .add = shapes[i % CASES(shapes)].add};
        memcpy(want, begin, n_y * sizeof *want);
        assert_int_equal(kernels_op_linear(reference, &op, NULL), 0);
        for (size_t b = 0; b < n_backends; b++) {
            snprintf(what, sizeof what, "int8 linear %s %s %ux%u by %u rows", backends[b].isa,
                     gguf_type_name(type), rows, columns, n);
            op.x = x;
            op.n = n;
            op.y = got;
            memcpy(got, begin, n_y * sizeof *got);
            assert_int_equal(kernels_op_linear(backends[b].fast_one, &op, NULL), 0);
            test_close(what, got, want, n_y, 4e-6 * sqrt((double)columns));
            op.y = again;
            memcpy(again, begin, n_y * sizeof *again);
            assert_int_equal(kernels_op_linear(backends[b].fast_three, &op, NULL), 0);
            assert_same_bits(what, got, again, n_y);
            for (uint32_t t = 0; t < n; t += n / 5 + 1) {
                uint32_t some = t == 0 && n > 3 ? 3 : 1;
                op.n = some;
                op.x = x + (uint64_t)t * columns;
                memcpy(again, begin + (uint64_t)t * rows, some * rows * sizeof *again);
                assert_int_equal(kernels_op_linear(backends[b].fast_one, &op, NULL), 0);
                assert_same_bits(what, again, got + (uint64_t)t * rows, some * rows);
            }
            if (b == 0)
                memcpy(first, got, n_y * sizeof *got);
            else if (strcmp(backends[b].isa, "plain"))
                assert_same_bits(what, got, first, n_y);
        }
        void *all[] = {weight, x, rounded, bias, begin, want, got, again, first};
        for (size_t j = 0; j < CASES(all); j++)
            free(all[j]);
    }
}

/* ── attention ─────────────────────────────────────────────────────────────────────────────── */

static void attends(void **state)
{
    (void)state;
    uint64_t seed = 4;
    for (size_t i = 0; i < CASES(cases_attention); i++) {
        const struct case_attention *c = &cases_attention[i];
        uint32_t all = c->first + c->count, q_width = c->heads * c->head_dim;
        uint32_t kv_width = c->kv_heads * c->head_dim;
        uint64_t n_out = (uint64_t)c->count * q_width;
        char what[96];
        float *q = random_floats(&seed, n_out, 2);
        float *k = random_floats(&seed, (uint64_t)all * kv_width, 2);
        float *v = random_floats(&seed, (uint64_t)all * kv_width, 1);
        float *sinks = random_floats(&seed, c->heads, 2);
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
        assert_int_equal(kernels_op_attention(reference, &op, NULL), 0);
        for (size_t b = 0; b < n_backends; b++) {
            snprintf(what, sizeof what, "attention %s case %zu: %u+%u, window %u", backends[b].isa,
                     i, c->first, c->count, c->window);
            op.q = q;
            op.first = c->first;
            op.count = c->count;
            op.out = got;
            assert_int_equal(kernels_op_attention(backends[b].one, &op, NULL), 0);
            /* A score is off by about (head_dim + 4) · ε · |q||k|/√head_dim, and a weight by twice as
             * much of itself; the weights sum to at most 1 and |v| ≤ 1. */
            double size = 4.0 * 1.6 * c->head_dim / sqrt((double)c->head_dim);
            test_close(what, got, want, n_out, (2 * (c->head_dim + 4) * size + 64) * EPSILON);

            op.out = again;
            assert_int_equal(kernels_op_attention(backends[b].three, &op, NULL), 0);
            assert_same_bits(what, got, again, n_out);
            /* Each query alone, as decode would have it. */
            for (uint32_t t = 0; t < c->count; t++) {
                op.q = q + (uint64_t)t * q_width;
                op.first = c->first + t;
                op.count = 1;
                assert_int_equal(kernels_op_attention(backends[b].one, &op, NULL), 0);
                assert_same_bits(what, again, got + (uint64_t)t * q_width, q_width);
            }
        }
        free(q);
        free(k);
        free(v);
        free(sinks);
        free(want);
        free(got);
        free(again);
    }
}

/* Of the reference text: scores 1 and 2 with a sink of 0.5 weigh 0.2312238976 and 0.6285317192. */
static void gives_the_sink_its_share(void **state)
{
    (void)state;
    float q[2] = {sqrtf(2), 0}, k[4] = {1, 0, 2, 0}, v[4] = {1, 0, 0, 1}, sink = 0.5f, out[2];
    struct kernels_op_attention op = {.heads = 1,
                                      .kv_heads = 1,
                                      .head_dim = 2,
                                      .block_tokens = 1,
                                      .first = 1,
                                      .count = 1,
                                      .q = q,
                                      .k = k,
                                      .v = v,
                                      .sinks = &sink,
                                      .out = out};
    const float want[2] = {0.2312238976f, 0.6285317192f};
    assert_int_equal(kernels_op_attention(reference, &op, NULL), 0);
    test_close("reference", out, want, 2, 1e-6);
    for (size_t b = 0; b < n_backends; b++) {
        assert_int_equal(kernels_op_attention(backends[b].one, &op, NULL), 0);
        test_close(backends[b].isa, out, want, 2, 1e-6);
    }
}

/* ── experts ───────────────────────────────────────────────────────────────────────────────── */

static void mixes_experts(void **state)
{
    (void)state;
    uint64_t seed = 5;
    for (size_t i = 0; i < CASES(cases_moe) + CASES(cases_moe_formats); i++) {
        const struct case_moe *c =
            i < CASES(cases_moe) ? &cases_moe[i] : &cases_moe_formats[i - CASES(cases_moe)];
        uint64_t n_x = (uint64_t)c->n * c->hidden, n_pairs = (uint64_t)c->n * c->active;
        uint64_t inner = (uint64_t)c->experts * c->expert_ffn;
        uint64_t outer = (uint64_t)c->experts * c->hidden;
        char what[96];
        if (c->timed) /* their weights take long to make */
            continue;
        void *router = random_weights(&seed, c->router_type, c->experts, c->hidden);
        void *gate = random_weights(&seed, c->type, inner, c->hidden);
        void *up = random_weights(&seed, c->type, inner, c->hidden);
        void *down = random_weights(&seed, c->type, outer, c->expert_ffn);
        float *router_bias = random_floats(&seed, c->experts, 1);
        float *gate_bias = random_floats(&seed, inner, 1),
              *up_bias = random_floats(&seed, inner, 1);
        float *down_bias = random_floats(&seed, outer, 1);
        /* Large enough that the limit is met. */
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
        assert_int_equal(kernels_op_moe(reference, &op, NULL), 0);
        float most = 0;
        for (uint64_t j = 0; j < n_x; j++)
            most = fmaxf(most, fabsf(want[j]));
        for (size_t b = 0; b < n_backends; b++) {
            snprintf(what, sizeof what, "experts %s case %zu, %u rows", backends[b].isa, i, c->n);
            op.n = c->n;
            op.h = h;
            op.x = got;
            op.chosen = got_chosen;
            op.weight = got_weight;
            memcpy(got, begin, n_x * sizeof *got);
            assert_int_equal(kernels_op_moe(backends[b].one, &op, NULL), 0);
            assert_memory_equal(chosen, got_chosen, n_pairs * sizeof *chosen);
            test_close(what, got_weight, weight, n_pairs, 1e-5);
            /* Two sums of at most 2880 products one behind the other, each off by (K/16 + 8) · ε of its
             * magnitudes, between them an activation with a slope of up to 8. */
            test_close(what, got, want, n_x, 2e-5 * (double)most);

            op.x = again;
            memcpy(again, begin, n_x * sizeof *again);
            assert_int_equal(kernels_op_moe(backends[b].three, &op, NULL), 0);
            assert_same_bits(what, got, again, n_x);
            for (uint32_t t = 0; t < c->n; t += 1 + c->n / 7) {
                op.n = 1;
                op.h = h + (uint64_t)t * c->hidden;
                memcpy(again, begin + (uint64_t)t * c->hidden, c->hidden * sizeof *again);
                assert_int_equal(kernels_op_moe(backends[b].one, &op, NULL), 0);
                assert_same_bits(what, again, got + (uint64_t)t * c->hidden, c->hidden);
            }
        }
        void *all[] = {router, gate, up,  down,  router_bias, gate_bias,  up_bias, down_bias, h,
                       begin,  want, got, again, weight,      got_weight, chosen,  got_chosen};
        for (size_t j = 0; j < sizeof all / sizeof *all; j++)
            free(all[j]);
    }
}

/* Equal router logits: the lowest experts, in order. The test vectors of the activation: with weights
 * of zero a and b are the biases, and down sums the units. */
static void breaks_ties_towards_the_lowest_expert(void **state)
{
    (void)state;
    enum { EXPERTS = 6, ACTIVE = 3 };
    float zeros[EXPERTS * 4] = {0}, ones[EXPERTS] = {1, 1, 1, 1, 1, 1}, h[1] = {1}, weight[ACTIVE];
    float router_bias[EXPERTS] = {1, 3, 2, 3, 1, 3}; /* 1, 3, 5 tie at the top */
    const struct {
        float a, b, u;
    } vectors[] = {{1, 0, 0.8457957659f}, {8, 9, 55.9996250264f},     {-10, -9, 2.434776777e-06f},
                   {0.5f, -1, 0},         {-0.5f, 2, -0.4488346902f}, {100, -100, -41.9997187698f}};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        for (size_t b = 0; b <= n_backends; b++) {
            float gate_bias[EXPERTS], up_bias[EXPERTS], x = 0;
            uint32_t chosen[ACTIVE];
            for (size_t e = 0; e < EXPERTS; e++) {
                gate_bias[e] = vectors[i].a;
                up_bias[e] = vectors[i].b;
            }
            struct kernels_op_moe op = {.n = 1,
                                        .hidden = 1,
                                        .experts = EXPERTS,
                                        .active = ACTIVE,
                                        .expert_ffn = 1,
                                        .router = zeros,
                                        .router_bias = router_bias,
                                        .gate = zeros,
                                        .up = zeros,
                                        .down = ones,
                                        .gate_bias = gate_bias,
                                        .up_bias = up_bias,
                                        .down_bias = zeros,
                                        .alpha = 1.702f,
                                        .limit = 7,
                                        .h = h,
                                        .x = &x,
                                        .chosen = chosen,
                                        .weight = weight};
            assert_int_equal(kernels_op_moe(b ? backends[b - 1].one : reference, &op, NULL), 0);
            assert_memory_equal(chosen, ((uint32_t[]){1, 3, 5}), sizeof chosen);
            test_close("activation", &x, &vectors[i].u, 1,
                       1e-6 + 1e-6 * fabs((double)vectors[i].u));
        }
}

/* ── between instruction sets ──────────────────────────────────────────────────────────────── */

static void gives_the_same_bits_with_avx2_and_avx512(void **state)
{
    (void)state;
    if (n_backends < 3)
        skip();
    uint64_t seed = 6;
    enum { ROWS = 70, COLUMNS = 768, N = 9 };
    static const enum gguf_type types[] = {GGUF_MXFP4, GGUF_Q8_0, GGUF_Q4_0, GGUF_Q4_1, GGUF_Q5_0,
                                           GGUF_Q5_1,  GGUF_Q4_K, GGUF_Q5_K, GGUF_Q6_K, GGUF_BF16};
    for (size_t type = 0; type < CASES(types); type++) {
        enum gguf_type t = types[type];
        void *weight = random_weights(&seed, t, ROWS, COLUMNS);
        float *x = random_floats(&seed, N * COLUMNS, 1);
        float a[N * ROWS], b[N * ROWS];
        struct kernels_op_linear op = {
            .type = t, .weight = weight, .rows = ROWS, .columns = COLUMNS, .n = N, .x = x, .y = a};
        assert_int_equal(kernels_op_linear(backends[0].one, &op, NULL), 0);
        op.y = b;
        assert_int_equal(kernels_op_linear(backends[1].one, &op, NULL), 0);
        assert_same_bits("linear", a, b, N * ROWS);
        free(weight);
        free(x);
    }
    enum { KEYS = 150, DIM = 32 };
    float *q = random_floats(&seed, DIM * 4, 1), *k = random_floats(&seed, KEYS * DIM, 1);
    float *v = random_floats(&seed, KEYS * DIM, 1), sinks[4] = {0, 1, -1, 3}, a[DIM * 4],
          b[DIM * 4];
    struct kernels_op_attention op = {.heads = 4,
                                      .kv_heads = 1,
                                      .head_dim = DIM,
                                      .window = 100,
                                      .kv_type = KERNELS_KV_F16,
                                      .block_tokens = 16,
                                      .first = KEYS - 1,
                                      .count = 1,
                                      .q = q,
                                      .k = k,
                                      .v = v,
                                      .sinks = sinks,
                                      .out = a};
    assert_int_equal(kernels_op_attention(backends[0].one, &op, NULL), 0);
    op.out = b;
    assert_int_equal(kernels_op_attention(backends[1].one, &op, NULL), 0);
    assert_same_bits("attention", a, b, DIM * 4);
    free(q);
    free(k);
    free(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(normalises_rows),
        cmocka_unit_test(multiplies_matrices_of_every_type),
        cmocka_unit_test(multiplies_small_integers_exactly),
        cmocka_unit_test(keeps_small_values_beside_large_ones),
        cmocka_unit_test(passes_on_what_is_no_number),
        cmocka_unit_test(multiplies_with_int8_activations),
        cmocka_unit_test(attends),
        cmocka_unit_test(gives_the_sink_its_share),
        cmocka_unit_test(mixes_experts),
        cmocka_unit_test(breaks_ties_towards_the_lowest_expert),
        cmocka_unit_test(gives_the_same_bits_with_avx2_and_avx512),
    };
    return cmocka_run_group_tests(tests, open_backends, close_backends);
}
