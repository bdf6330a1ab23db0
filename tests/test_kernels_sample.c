/*
 * Sampling: the rule of kernels.h written out plainly (sort everything, add everything) against
 * kernels_sample, and the distribution that it draws from.
 */
#include "kernels/ops.h"
#include "test.h"

#include <float.h>

/* ── the rule, plainly ─────────────────────────────────────────────────────────────────────── */

static void philox(uint32_t key[2], const uint32_t in[4], uint32_t c[4])
{
    uint32_t k[2] = {key[0], key[1]};
    memcpy(c, in, 4 * sizeof *c);
    for (int round = 0; round < 10; round++) {
        uint64_t a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
        uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k[0], (uint32_t)b,
                            (uint32_t)(a >> 32) ^ c[3] ^ k[1], (uint32_t)a};
        memcpy(c, next, sizeof next);
        k[0] += 0x9E3779B9u;
        k[1] += 0xBB67AE85u;
    }
}

static double noise(uint64_t seed, uint32_t position, uint32_t id)
{
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t in[4] = {id / 4, position, 0, 0}, out[4];
    philox(key, in, out);
    return -log(-log((out[id % 4] + 0.5) / 4294967296.0));
}

struct entry {
    float y;
    uint32_t id;
};

static int by_rank(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->y != y->y)
        return x->y < y->y ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

static uint32_t plain_rule(const float *logits, uint32_t n, const struct kernels_row *row,
                           uint32_t position)
{
    struct entry *e = malloc(n * sizeof *e);
    bool greedy = !(row->temperature > 0);
    for (uint32_t i = 0; i < n; i++)
        e[i] = (struct entry){greedy ? logits[i] : logits[i] / row->temperature, i};
    qsort(e, n, sizeof *e, by_rank);
    uint32_t best = e[0].id, kept = row->top_k && row->top_k < n ? row->top_k : n;
    float y_most = e[0].y;
    if (!greedy) {
        double mass = 0, sum = 0;
        for (uint32_t i = 0; i < kept; i++)
            mass += exp((double)e[i].y - (double)y_most);
        for (uint32_t i = 0; i < kept && row->top_p < 1; i++) {
            sum += exp((double)e[i].y - (double)y_most);
            if (sum >= (double)row->top_p * mass)
                kept = i + 1;
        }
        double most = -INFINITY;
        for (uint32_t i = 0; i < kept; i++) {
            if (row->min_p > 0 && e[i].y < y_most + logf(row->min_p))
                continue;
            double value = (double)e[i].y + noise(row->seed, position, e[i].id);
            if (value > most || (value == most && e[i].id < best)) {
                most = value;
                best = e[i].id;
            }
        }
    }
    free(e);
    return best;
}

static struct kernels_sample sample(const float *logits, uint32_t n, uint32_t limit,
                                    const struct kernels_row *row, uint32_t position)
{
    struct kernels_sample s;
    void *scratch = malloc(kernels_sample_scratch_bytes(n));
    kernels_sample(logits, n, limit, row, position, &s, scratch);
    free(scratch);
    return s;
}

/* Logits as a model has them: most far down, some near the top, some equal. */
static float *some_logits(uint64_t *seed, uint32_t n, float spread)
{
    float *x = malloc(n * sizeof *x);
    for (uint32_t i = 0; i < n; i++)
        x[i] = roundf(64 * spread * (test_uniform(seed) + test_uniform(seed))) / 64;
    return x;
}

/* ── tests ─────────────────────────────────────────────────────────────────────────────────── */

/* The vectors that come with the definition of Philox 4×32-10 (Random123's known answers). */
static void the_tests_own_philox_is_philox(void **state)
{
    (void)state;
    uint32_t out[4], key[2] = {0, 0}, in[4] = {0, 0, 0, 0};
    philox(key, in, out);
    assert_memory_equal(out, ((uint32_t[]){0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}), 16);
    uint32_t key2[2] = {0xa4093822, 0x299f31d0};
    uint32_t in2[4] = {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344};
    philox(key2, in2, out);
    assert_memory_equal(out, ((uint32_t[]){0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}), 16);
}

static void draws_what_the_plain_rule_draws(void **state)
{
    (void)state;
    uint64_t seed = 7;
    const uint32_t sizes[] = {1, 2, 5, 63, 64, 65, 1000, 1024, 1025, 4096, 5000};
    const float temperatures[] = {0, 0.01f, 0.7f, 1, 3, 50};
    const uint32_t top_ks[] = {0, 1, 2, 40, 1000, 100000};
    const float top_ps[] = {1, 0.95f, 0.5f, 0.01f, 0};
    const float min_ps[] = {0, 0.05f, 0.9f, 1};
    unsigned others = 0;
    for (uint32_t i = 0; i < 4000; i++) {
        uint32_t n = sizes[test_random(&seed) % 11];
        float *x = some_logits(&seed, n, i % 3 ? 8 : 0.5f);
        struct kernels_row row = {.temperature = temperatures[test_random(&seed) % 6],
                                  .top_k = top_ks[test_random(&seed) % 6],
                                  .top_p = top_ps[test_random(&seed) % 5],
                                  .min_p = min_ps[test_random(&seed) % 4],
                                  .seed = test_random(&seed)};
        uint32_t position = (uint32_t)test_random(&seed);
        uint32_t want = plain_rule(x, n, &row, position);
        struct kernels_sample s = sample(x, n, 0, &row, position);
        if ((uint32_t)s.token != want) {
            /* The mass of a prefix is compared with top_p · mass; both sums are rounded here and
             * there, so now and then the prefix is one longer or shorter. */
            if (row.top_p >= 1)
                fail_msg("case %u: token %d, plainly %u (n %u, T %g, k %u, min_p %g)", i, s.token,
                         want, n, (double)row.temperature, row.top_k, (double)row.min_p);
            others++;
        }
        assert_true(s.logit == x[s.token]);
        free(x);
    }
    assert_in_range(others, 0, 4);
}

static void takes_the_lowest_of_equal_best(void **state)
{
    (void)state;
    enum { N = 3000 };
    float x[N];
    for (uint32_t i = 0; i < N; i++)
        x[i] = -1;
    x[2999] = x[1500] = x[1025] = 4;
    const struct kernels_row row = {.top_p = 1, .top_logits = 5};
    struct kernels_sample s = sample(x, N, 0, &row, 0);
    assert_int_equal(s.token, 1025);
    assert_int_equal(s.n_top, 5);
    const int32_t ids[] = {1025, 1500, 2999, 0, 1};
    for (int i = 0; i < 5; i++)
        assert_int_equal(s.top[i].id, ids[i]);
}

static void never_takes_an_id_beyond_the_limit(void **state)
{
    (void)state;
    float x[100];
    for (int i = 0; i < 100; i++)
        x[i] = (float)i / 10; /* the best are beyond */
    for (uint32_t i = 0; i < 300; i++) {
        const struct kernels_row row = {.temperature = (float)(i % 3),
                                        .top_p = i % 2 ? 1 : 0.9f,
                                        .top_k = i % 5 * 7,
                                        .seed = i,
                                        .top_logits = KERNELS_TOP_MAX};
        struct kernels_sample s = sample(x, 100, 40, &row, i);
        assert_in_range(s.token, 0, 39);
        assert_int_equal(s.n_top, 32);
        assert_int_equal(s.top[0].id, 39);
        double sum = 0;
        for (int j = 0; j < 40; j++)
            sum += exp((double)x[j]);
        assert_true(fabs((double)s.log_sum_exp - log(sum)) < 1e-6);
    }
}

static void sums_exponentials_over_a_large_vocabulary(void **state)
{
    (void)state;
    uint64_t seed = 8;
    const uint32_t n = 201088;
    float *x = some_logits(&seed, n, 10);
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)x[i] - 20);
    const struct kernels_row row = {.top_p = 1};
    struct kernels_sample s = sample(x, n, 0, &row, 0);
    assert_true(fabs((double)s.log_sum_exp - (20 + log(sum))) < 4e-6); /* 2 ulp of 20 */
    free(x);
}

/* Cut anywhere between blocks, with all kinds of filters: the same bits. */
static void gives_the_same_bits_however_the_vocabulary_is_cut(void **state)
{
    (void)state;
    uint64_t seed = 9;
    const float temperatures[] = {0, 0.01f, 0.7f, 1, 50};
    for (uint32_t i = 0; i < 1500; i++) {
        uint32_t n_blocks = 1 + (uint32_t)(test_random(&seed) % 9);
        uint32_t vocabulary =
            n_blocks * KERNELS_SLICE_BLOCK - (uint32_t)(test_random(&seed) % 1024);
        uint32_t limit = test_random(&seed) % 3 ? 0 : 1 + (uint32_t)test_random(&seed) % vocabulary;
        uint32_t ids = limit ? limit : vocabulary;
        float *x = some_logits(&seed, vocabulary, i % 3 ? 8 : 0.5f);
        for (uint32_t j = 0; j < 3000 && i % 10 == 0; j++)
            x[test_random(&seed) % vocabulary] = (float[]){NAN, INFINITY, -INFINITY}[i / 10 % 3];
        for (uint32_t j = 0; j < vocabulary && i % 100 == 1; j++)
            x[j] = i % 200 == 1 ? NAN : -INFINITY;
        struct kernels_row row = {.temperature = temperatures[test_random(&seed) % 5],
                                  .top_k = test_random(&seed) % 2 ? 0 : i % 50,
                                  .top_p = test_random(&seed) % 2 ? 1 : 0.9f,
                                  .min_p = test_random(&seed) % 2 ? 0 : 0.05f,
                                  .seed = test_random(&seed),
                                  .top_logits = i % (KERNELS_TOP_MAX + 1)};
        struct kernels_sample want = sample(x, vocabulary, limit, &row, i), got;

        struct kernels_slice slices[10];
        struct kernels_slice_block blocks[10];
        struct kernels_slice_top tops[10];
        uint32_t n = 0;
        for (uint32_t b = 0; b < n_blocks; n++) {
            uint32_t some = 1 + (uint32_t)test_random(&seed) % (n_blocks - b);
            uint32_t first = b * KERNELS_SLICE_BLOCK, count = some * KERNELS_SLICE_BLOCK;
            count = count < vocabulary - first ? count : vocabulary - first;
            kernels_slice(x + first, first, count, ids, &row, i, &blocks[b], &tops[n]);
            slices[n] = (struct kernels_slice){&blocks[b], some, &tops[n]};
            b += some;
        }
        void *scratch = malloc(kernels_sample_scratch_bytes(vocabulary));
        /* Without all logits where the row does not filter. */
        kernels_merge(slices, n, kernels_row_filters(&row, ids) ? x : NULL, ids, &row, i, &got,
                      scratch);
        free(scratch);
        free(x);
        assert_int_equal(got.token, want.token);
        assert_memory_equal(&got.logit, &want.logit, sizeof got.logit);
        assert_memory_equal(&got.log_sum_exp, &want.log_sum_exp, sizeof got.log_sum_exp);
        assert_int_equal(got.n_top, want.n_top);
        assert_memory_equal(got.top, want.top, got.n_top * sizeof *got.top);
    }
}

/* Pearson's statistic of 40,000 draws against the softmax: below 24.3 in 999 of 1000 seeds (7 degrees
 * of freedom); this seed is fixed. */
static void draws_from_the_softmax(void **state)
{
    (void)state;
    const float x[8] = {0, 1, -1, 2, 0.5f, 1.5f, -0.5f, 0};
    const struct {
        float temperature, top_p, min_p;
        uint32_t top_k, allowed; /* bits of the ids that may come */
    } cases[] = {{1, 1, 0, 0, 0xff},    {2, 1, 0, 0, 0xff},    {1, 1, 0, 3, 0x2a},
                 {1, 0.6f, 0, 0, 0x28}, {1, 1, 0.3f, 0, 0x2a}, {0.5f, 1, 0, 8, 0xff}};
    enum { DRAWS = 40000 };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t seen[8] = {0};
        double p[8], sum = 0, chi = 0;
        for (int j = 0; j < 8; j++)
            sum += p[j] =
                cases[i].allowed >> j & 1 ? exp((double)x[j] / (double)cases[i].temperature) : 0;
        for (uint32_t d = 0; d < DRAWS; d++) {
            const struct kernels_row row = {.temperature = cases[i].temperature,
                                            .top_p = cases[i].top_p,
                                            .min_p = cases[i].min_p,
                                            .top_k = cases[i].top_k,
                                            .seed = 42 + d % 2};
            seen[sample(x, 8, 0, &row, d / 2).token]++;
        }
        for (int j = 0; j < 8; j++) {
            double expected = DRAWS * p[j] / sum;
            if (expected > 0)
                chi += (seen[j] - expected) * (seen[j] - expected) / expected;
            else
                assert_int_equal(seen[j], 0);
        }
        if (chi > 24.3)
            fail_msg("case %zu: chi² is %.1f", i, chi);
    }
}

static void bears_logits_that_are_no_numbers(void **state)
{
    (void)state;
    float x[40];
    for (int kind = 0; kind < 4; kind++)
        for (int t = 0; t < 3; t++) {
            for (int i = 0; i < 40; i++)
                x[i] = kind == 0   ? NAN
                       : kind == 1 ? -INFINITY
                       : kind == 2 ? (i == 7 ? INFINITY : 0)
                                   : (i == 9 ? 1 : NAN);
            const struct kernels_row row = {.temperature = (float)t * 1e-30f,
                                            .top_p = 0.9f,
                                            .top_k = 5,
                                            .seed = 1,
                                            .top_logits = 3};
            struct kernels_sample s = sample(x, 40, 0, &row, 0);
            assert_in_range(s.token, 0, 39);
            if (kind >= 2)
                assert_int_equal(s.token, kind == 2 ? 7 : 9);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_tests_own_philox_is_philox),
        cmocka_unit_test(draws_what_the_plain_rule_draws),
        cmocka_unit_test(takes_the_lowest_of_equal_best),
        cmocka_unit_test(never_takes_an_id_beyond_the_limit),
        cmocka_unit_test(sums_exponentials_over_a_large_vocabulary),
        cmocka_unit_test(gives_the_same_bits_however_the_vocabulary_is_cut),
        cmocka_unit_test(draws_from_the_softmax),
        cmocka_unit_test(bears_logits_that_are_no_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
