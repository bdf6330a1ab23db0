#include "tests/test.h"

#include "plan/cut.h"
#include "plan/plan.h"

/* ── a model of sizes alone ────────────────────────────────────────────────────────────────── */

enum { LAYERS_MAX = 40 };

struct fake {
    struct gguf_model model;
    struct gguf_layer layers[LAYERS_MAX];
    struct gguf_tensor norm, small, q, kv, out, router, experts, experts_bias, table, output;
    struct plan_rank ranks[LAYERS_MAX + 1];
};

static struct gguf_tensor tensor(uint64_t rows, uint64_t row_bytes)
{
    return (struct gguf_tensor){.row_bytes = row_bytes, .bytes = rows * row_bytes};
}

/* gpt-oss-20b's sizes: MXFP4 experts, Q8_0 elsewhere. */
static void make_20b(struct fake *fake)
{
    memset(fake, 0, sizeof *fake);
    fake->norm = tensor(1, 11520);
    fake->small = tensor(1, 256);
    fake->q = tensor(4096, 3060);
    fake->kv = tensor(512, 3060);
    fake->out = tensor(2880, 4352);
    fake->router = tensor(32, 11520);
    fake->experts = tensor((uint64_t)32 * 2880, 1530);
    fake->experts_bias = tensor(32, 11520);
    fake->table = tensor(201088, 3060);
    fake->output = tensor(201088, 3060);
    fake->model = (struct gguf_model){.n_layers = 24,
                                      .hidden = 2880,
                                      .heads = 64,
                                      .kv_heads = 8,
                                      .head_dim = 64,
                                      .experts = 32,
                                      .active = 4,
                                      .expert_ffn = 2880,
                                      .vocabulary = 201088,
                                      .window = 128,
                                      .context = 131072,
                                      .embedding = &fake->table,
                                      .output_norm = &fake->norm,
                                      .output = &fake->output,
                                      .layers = fake->layers};
    for (uint32_t i = 0; i < LAYERS_MAX; i++) {
        struct gguf_layer *layer = &fake->layers[i];
        layer->attn_norm = layer->ffn_norm = &fake->norm;
        layer->attn_q = (struct gguf_linear){&fake->q, &fake->small};
        layer->attn_k = layer->attn_v = (struct gguf_linear){&fake->kv, &fake->small};
        layer->attn_out = (struct gguf_linear){&fake->out, &fake->small};
        layer->sinks = &fake->small;
        layer->router = (struct gguf_linear){&fake->router, &fake->small};
        layer->gate = layer->up = layer->down =
            (struct gguf_linear){&fake->experts, &fake->experts_bias};
        layer->bytes = fake->norm.bytes * 2 + fake->small.bytes * 6 + fake->q.bytes +
                       2 * fake->kv.bytes + fake->out.bytes + fake->router.bytes +
                       3 * (fake->experts.bytes + fake->experts_bias.bytes);
        layer->sliding = i % 2 == 0;
    }
}

static void give_memory(struct fake *fake, uint32_t n_ranks, double gib)
{
    for (uint32_t r = 0; r < n_ranks; r++)
        fake->ranks[r] = (struct plan_rank){.host = "node",
                                            .device = "H100",
                                            .memory_free_bytes = (uint64_t)(gib * 0x1p30),
                                            .bandwidth = 2e12};
}

static char err[512];

static struct plan *plan_of(const struct fake *fake, struct plan_options options, int want)
{
    struct plan *plan = NULL;
    err[0] = 0;
    int got = plan_create(&plan, &fake->model, &options, err, sizeof err);
    if (got != want)
        fail_msg("plan_create returned %d, want %d: %s", got, want, err);
    assert_true((plan != NULL) == (want >= 0));
    assert_true((err[0] != 0) == (want != 0));
    return plan;
}

/* ── layers ────────────────────────────────────────────────────────────────────────────────── */

static void ranges_cover_the_model_in_order(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    for (uint32_t n = 1; n <= 24; n++) {
        struct plan *plan = plan_of(&fake, (struct plan_options){.n_ranks = n}, 0);
        uint32_t next = 0, head = 0;
        for (uint32_t s = 0; s < n; s++) {
            const struct plan_stage *stage = &plan->stages[s];
            assert_int_equal(stage->layer_first, next);
            assert_true(stage->layer_count >= 1);
            assert_int_equal(stage->full_layers + stage->window_layers, stage->layer_count);
            assert_int_equal(stage->head_first, head);
            assert_int_equal(stage->head_first % 1024, 0);
            /* 197 blocks of 1,024 rows, the last of them short */
            assert_in_range(stage->head_count + 1024, 1024 * (197 / n) + 384,
                            1024 * (197 / n) + 2048);
            head += stage->head_count;
            next += stage->layer_count;
        }
        assert_int_equal(next, 24);
        assert_int_equal(head, 201088);
        assert_int_equal(plan->head_jobs > 0, n > 1);
        plan_destroy(plan);
    }
}

static void the_head_is_shared_and_the_layers_are_even(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    for (uint32_t n = 2; n <= 8; n *= 2) {
        struct plan *plan = plan_of(&fake, (struct plan_options){.n_ranks = n}, 0);
        for (uint32_t s = 0; s < n; s++)
            assert_int_equal(plan->stages[s].layer_count, 24 / n);
        plan_destroy(plan);
    }
    /* In proportion to the bandwidth. */
    give_memory(&fake, 3, 80);
    fake.ranks[2].bandwidth = 2 * fake.ranks[0].bandwidth;
    struct plan *plan = plan_of(
        &fake, (struct plan_options){.n_ranks = 3, .ranks = fake.ranks, .head = PLAN_HEAD_ALL}, 0);
    const uint32_t rows[] = {49 * 1024, 50 * 1024, 201088 - 99 * 1024};
    for (uint32_t s = 0; s < 3; s++) {
        assert_int_equal(plan->stages[s].head_count, rows[s]);
        assert_int_equal(plan->head_counts[s], rows[s]);
    }
    assert_true(plan->stages[2].layer_count >= 12 && plan->stages[2].layer_count <= 14);
    plan_destroy(plan);
}

static void a_small_vocabulary_leaves_some_stages_without_head(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    for (uint32_t vocabulary = 1; vocabulary < 6000; vocabulary += 333) {
        fake.model.vocabulary = vocabulary;
        for (uint32_t n = 1; n <= 9; n++) {
            struct plan *plan = plan_of(&fake, (struct plan_options){.n_ranks = n}, 0);
            uint32_t head = 0;
            for (uint32_t s = 0; s < n; s++) {
                assert_true(plan->stages[s].head_count == 0 || head % 1024 == 0);
                assert_int_equal(plan->stages[s].head_first, head);
                head += plan->stages[s].head_count;
            }
            assert_int_equal(head, vocabulary);
            assert_true(plan->stages[n - 1].head_count > 0);
            assert_int_equal(plan->head_jobs > 0, plan->stages[n - 1].head_count < vocabulary);
            plan_destroy(plan);
        }
    }
}

static void the_head_costs_the_last_stage_layers(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    struct plan *plan =
        plan_of(&fake, (struct plan_options){.n_ranks = 2, .head = PLAN_HEAD_LAST}, 0);
    assert_int_equal(plan->head_jobs, 0);
    /* In steps of 8 rows the head costs as much as some 3 layers. */
    assert_int_equal(plan->stages[0].layer_count, 14);
    assert_int_equal(plan->stages[1].layer_count, 10);
    plan_destroy(plan);
    plan = plan_of(&fake, (struct plan_options){.n_ranks = 4, .head = PLAN_HEAD_LAST}, 0);
    for (int s = 0; s < 3; s++)
        assert_true(plan->stages[s].layer_count > plan->stages[3].layer_count);
    plan_destroy(plan);
}

static void gpus_leave_the_head_to_the_last_one(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    give_memory(&fake, 2, 80);
    for (int cpus = 0; cpus <= 2; cpus++) {
        for (int s = 0; s < 2; s++)
            fake.ranks[s].weights_in_place = s < cpus;
        struct plan_options options = {.n_ranks = 2, .ranks = fake.ranks};
        struct plan *plan = plan_of(&fake, options, 0);
        assert_int_equal(plan->head_jobs > 0, cpus > 0);
        plan_destroy(plan);
        options.head = PLAN_HEAD_ALL;
        plan = plan_of(&fake, options, 0);
        assert_true(plan->head_jobs > 0);
        plan_destroy(plan);
    }
    enum plan_head head;
    for (enum plan_head h = PLAN_HEAD_AUTO; h <= PLAN_HEAD_LAST; h++) {
        assert_int_equal(plan_head_of(plan_head_name(h), &head), 0);
        assert_int_equal(head, h);
    }
    assert_int_equal(plan_head_of("first", &head), -1);
}

static void a_faster_rank_gets_more_layers(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    give_memory(&fake, 2, 80);
    fake.ranks[1].bandwidth = 6e12;
    struct plan *plan = plan_of(&fake, (struct plan_options){.n_ranks = 2, .ranks = fake.ranks}, 0);
    /* Three times as fast; what every step costs anyway takes a little more from the slower one. */
    assert_true(plan->stages[0].layer_count >= 4 && plan->stages[0].layer_count <= 6);
    assert_true(plan->stages[1].token_seconds > 0);
    plan_destroy(plan);
}

static void a_rank_of_more_arithmetic_gets_more_layers(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    give_memory(&fake, 3, 80);
    fake.ranks[0].flops = 4e14;
    fake.ranks[1].flops = fake.ranks[2].flops = 2e13;
    struct plan *plan = plan_of(&fake, (struct plan_options){.n_ranks = 3, .ranks = fake.ranks}, 0);
    assert_true(plan->stages[0].layer_count > plan->stages[1].layer_count + 3);
    assert_true(plan->stages[1].layer_count >= plan->stages[2].layer_count); /* the head */
    plan_destroy(plan);
}

static void more_stages_are_predicted_to_be_faster(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    give_memory(&fake, 8, 80);
    struct plan_prediction last = {0}, p;
    for (uint32_t n = 1; n <= 8; n *= 2) {
        struct plan *plan =
            plan_of(&fake, (struct plan_options){.n_ranks = n, .ranks = fake.ranks}, 0);
        plan_predict(plan, &fake.model, fake.ranks, NULL, &p);
        plan_destroy(plan);
        /* One sequence gains nothing from them. */
        assert_true(p.one > 50 && p.one < 1000);
        if (!(p.many > 1.3 * last.many && p.prompt > 1.3 * last.prompt))
            fail_msg("%u: %g %g after %g %g", n, p.many, p.prompt, last.many, last.prompt);
        last = p;
    }
}

static void memory_moves_layers_to_where_they_fit(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    give_memory(&fake, 2, 80);
    fake.ranks[0].memory_free_bytes = (uint64_t)4 << 30;
    struct plan *plan = plan_of(&fake, (struct plan_options){.n_ranks = 2, .ranks = fake.ranks}, 0);
    assert_true(plan->stages[0].layer_count < 8);
    assert_true(plan->stages[0].total_bytes <= (uint64_t)4 << 30);
    plan_destroy(plan);
}

static void layers_by_hand_are_taken_as_they_are(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    uint32_t layers[] = {10, 1, 13};
    struct plan *plan = plan_of(&fake, (struct plan_options){.n_ranks = 3, .layers = layers}, 0);
    for (int s = 0; s < 3; s++)
        assert_int_equal(plan->stages[s].layer_count, layers[s]);
    assert_int_equal(plan->stages[2].layer_first, 11);
    assert_int_equal(plan->stages[1].window_layers, 1);
    plan_destroy(plan);
}

static void refuses_layers_that_do_not_add_up(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    plan_of(&fake, (struct plan_options){.n_ranks = 2, .layers = (uint32_t[]){12, 11}}, -1);
    assert_non_null(strstr(err, "add up to 23"));
    plan_of(&fake, (struct plan_options){.n_ranks = 2, .layers = (uint32_t[]){24, 0}}, -1);
    assert_non_null(strstr(err, "stage 1 gets 0 layers"));
    plan_of(&fake, (struct plan_options){.n_ranks = 2, .layers = (uint32_t[]){UINT32_MAX, 25}}, -1);
}

static void refuses_more_stages_than_layers(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    plan_of(&fake, (struct plan_options){.n_ranks = 30}, -1);
    assert_string_equal(err, "24 layers cannot be cut into 30 stages: start at most 24 ranks");
    plan_of(&fake, (struct plan_options){.n_ranks = 0}, -1);
}

/* ── the cut itself, against every cut there is ────────────────────────────────────────────── */

struct brute {
    const struct cut *cut;
    double best; /* slowest stage of the best cut */
};

static bool small_enough(const void *arg, uint32_t stage, uint32_t first, uint32_t count)
{
    const uint32_t *most = arg;
    (void)first;
    return count <= most[stage];
}

static void try_all(struct brute *brute, uint32_t stage, uint32_t first, double slowest)
{
    const struct cut *cut = brute->cut;
    if (stage == cut->n_stages) {
        if (first == cut->n_layers && slowest < brute->best)
            brute->best = slowest;
        return;
    }
    double sum = cut->extra_seconds[stage];
    for (uint32_t count = 1; first + count <= cut->n_layers; count++) {
        sum += cut->layer_seconds[stage * cut->n_layers + first + count - 1];
        if (cut->fits(cut->arg, stage, first, count))
            try_all(brute, stage + 1, first + count, fmax(slowest, sum));
    }
}

static void the_cut_is_the_best_of_all_cuts(void **state)
{
    (void)state;
    uint64_t random = 7;
    unsigned impossible = 0;
    for (int round = 0; round < 2000; round++) {
        double layer_seconds[5 * 9], extra_seconds[5];
        uint32_t most[5], counts[5] = {0};
        uint32_t n_layers = 1 + test_random(&random) % 9;
        uint32_t n_stages = 1 + test_random(&random) % (n_layers < 5 ? n_layers : 5);
        for (uint32_t i = 0; i < n_layers * n_stages; i++)
            layer_seconds[i] = 1 + (double)(test_random(&random) % 20);
        for (uint32_t s = 0; s < n_stages; s++) {
            extra_seconds[s] = (double)(test_random(&random) % 30);
            most[s] = 1 + test_random(&random) % 9;
        }
        struct cut cut = {n_layers, n_stages, layer_seconds, extra_seconds, small_enough, most};
        struct brute brute = {&cut, INFINITY};
        try_all(&brute, 0, 0, 0);
        int status = cut_layers(&cut, counts);
        assert_int_equal(status, isinf(brute.best) ? 1 : 0);
        impossible += status;

        uint32_t next = 0;
        double slowest = 0;
        for (uint32_t s = 0; s < n_stages; s++) {
            double sum = extra_seconds[s];
            assert_true(counts[s] >= 1);
            if (status == 0)
                assert_true(counts[s] <= most[s]);
            for (uint32_t i = 0; i < counts[s]; i++)
                sum += layer_seconds[s * n_layers + next++];
            slowest = fmax(slowest, sum);
        }
        assert_int_equal(next, n_layers);
        if (status == 0)
            assert_true(fabs(slowest - brute.best) < 1e-9);
    }
    assert_true(impossible > 20 && impossible < 1500);
}

/* ── memory ────────────────────────────────────────────────────────────────────────────────── */

static void weights_add_up_to_the_file(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    struct plan *plan = plan_of(&fake, (struct plan_options){.n_ranks = 5}, 0);
    uint64_t sum = 0, all = fake.table.bytes + fake.output.bytes + 5 * fake.norm.bytes;
    for (int s = 0; s < 5; s++) {
        const struct plan_stage *stage = &plan->stages[s];
        sum += stage->weights_bytes;
        assert_int_equal(stage->total_bytes,
                         stage->weights_bytes + stage->kv_bytes + stage->activation_bytes);
    }
    for (uint32_t i = 0; i < 24; i++)
        all += fake.layers[i].bytes;
    assert_int_equal(sum, all);
    plan_destroy(plan);
}

static void a_tied_embedding_is_counted_once_on_one_stage(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    struct plan *apart = plan_of(&fake, (struct plan_options){.n_ranks = 1}, 0);
    fake.model.output = &fake.table;
    struct plan *tied = plan_of(&fake, (struct plan_options){.n_ranks = 1}, 0);
    assert_int_equal(apart->stages[0].weights_bytes - tied->stages[0].weights_bytes,
                     fake.output.bytes);
    plan_destroy(apart);
    plan_destroy(tied);
}

static void the_pools_hold_every_sequence(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    struct plan *plan =
        plan_of(&fake, (struct plan_options){.n_ranks = 2, .context = 8001, .sequences = 12}, 0);
    assert_int_equal(plan->full_blocks, 12 * 501);
    /* 128 positions touch 9 blocks at most; the rows of a step 512 / 16 more, and a broken one each. */
    assert_int_equal(plan->window_each, 9);
    assert_in_range(plan->window_blocks, 12 * 9 + 512 / 16, 12 * 10 + 512 / 16);
    for (int s = 0; s < 2; s++) {
        const struct plan_stage *stage = &plan->stages[s];
        uint64_t position = 2 * 4 * 8 * 64;
        assert_int_equal(stage->kv_bytes,
                         position * 16 *
                             ((uint64_t)stage->full_layers * plan->full_blocks +
                              (uint64_t)stage->window_layers * plan->window_blocks));
    }
    plan_destroy(plan);
}

/* A sequence of 8k takes 12 · 512 + 12 · 9 blocks instead of 24 · 512. */
static void at_8k_the_same_memory_holds_twice_the_sequences_nearly(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    for (uint32_t stages = 1; stages <= 4; stages++) {
        give_memory(&fake, stages, 80);
        struct plan_options options = {
            .n_ranks = stages, .ranks = fake.ranks, .sequences = 256, .kv_type = PLAN_KV_F16};
        struct plan *plan = plan_of(&fake, options, 0);
        struct plan_capacity c;
        plan_capacity(plan, 8192, &c);
        assert_int_equal(lround(c.ratio * 100), 197);
        assert_int_equal(c.positions, 256 * 8192);
        assert_int_equal(c.sequences, 256);
        /* What a step needs besides is counted here. */
        assert_true((double)c.sequences / c.all_layers >= 1.95);
        plan_capacity(plan, 100, &c); /* shorter than the window: nothing is gained */
        assert_true(c.ratio == 1);
        plan_destroy(plan);
    }
}

static void a_bound_of_the_cache_is_kept_but_one_sequence_fits(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    struct plan *plan = plan_of(&fake, (struct plan_options){.n_ranks = 1, .kv_tokens = 10001}, 0);
    assert_int_equal(plan->full_blocks, 626);
    plan_destroy(plan);
    plan = plan_of(&fake, (struct plan_options){.n_ranks = 1, .kv_tokens = 1}, 0);
    assert_int_equal(plan->full_blocks, 512);
    plan_destroy(plan);
}

static void kv_of_16_bits_takes_half(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    uint64_t wide = plan_kv_block_bytes(&fake.model, PLAN_KV_F32, 16, 3);
    assert_int_equal(wide, 2 * 4 * 8 * 64 * 16 * 3);
    assert_int_equal(plan_kv_block_bytes(&fake.model, PLAN_KV_F16, 16, 3), wide / 2);
    assert_int_equal(plan_kv_block_bytes(&fake.model, PLAN_KV_BF16, 16, 3), wide / 2);
    fake.model.kv_heads = fake.model.head_dim = UINT32_MAX;
    assert_true(plan_kv_block_bytes(&fake.model, PLAN_KV_F32, 16, 3) == UINT64_MAX);
}

static void the_kv_pool_shrinks_to_what_is_left(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    give_memory(&fake, 1, 14);
    struct plan_options options = {
        .n_ranks = 1, .ranks = fake.ranks, .context = 8192, .sequences = 16};
    struct plan *plan = plan_of(&fake, options, 0);
    assert_true(plan->full_blocks >= 512);
    assert_true(plan->full_blocks < 512 * 16);
    assert_true(plan->stages[0].total_bytes <= plan->stages[0].memory_bytes);
    /* Not one block more would have fitted. */
    assert_true(plan->stages[0].total_bytes +
                    plan_kv_block_bytes(&fake.model, PLAN_KV_F32, 16, 12) >
                plan->stages[0].memory_bytes);
    plan_destroy(plan);
}

static void gpus_get_as_many_sequences_as_have_room(void **state)
{
    (void)state;
    static const struct {
        double gib;
        bool cpu;
        uint32_t sequences;
    } cases[] = {{80, false, 256},  {24, false, 256}, {17, false, 128}, {14, false, 64},
                 {12.5, false, 16}, {80, true, 16},   {0, false, 16}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fake fake;
        make_20b(&fake);
        give_memory(&fake, 1, cases[i].gib);
        fake.ranks[0].weights_in_place = cases[i].cpu;
        struct plan *plan;
        struct plan_options options = {
            .n_ranks = 1, .ranks = fake.ranks, .kv_type = PLAN_KV_F16, .step_tokens = 2048};
        if (plan_create(&plan, &fake.model, &options, err, sizeof err) < 0)
            fail_msg("%s", err);
        if (plan->sequences != cases[i].sequences)
            fail_msg("%g GiB: %u sequences, want %u", cases[i].gib, plan->sequences,
                     cases[i].sequences);
        plan_destroy(plan);
    }
}

static void says_which_context_and_how_many_sequences_would_fit(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    give_memory(&fake, 1, 14);
    struct plan_options options = {
        .n_ranks = 1, .ranks = fake.ranks, .context = 131072, .sequences = 16};
    plan_destroy(plan_of(&fake, options, 1));
    unsigned context = 0;
    const char *at = strstr(err, "a context of ");
    assert_non_null(at);
    assert_int_equal(sscanf(at, "a context of %u would fit", &context), 1);
    options.context = context;
    plan_destroy(plan_of(&fake, options, 0));
    options.context = context + 16;
    plan_destroy(plan_of(&fake, options, 1));

    options.context = 16384;
    options.sequences = 10000;
    plan_destroy(plan_of(&fake, options, 1));
    unsigned sequences = 0;
    at = strstr(err, " sequences");
    assert_non_null(at);
    while (at > err && at[-1] >= '0' && at[-1] <= '9')
        at--;
    assert_int_equal(sscanf(at, "%u sequences", &sequences), 1);
    assert_true(sequences > 0);
    options.sequences = sequences;
    plan_destroy(plan_of(&fake, options, 0));
    options.sequences = sequences + 1;
    plan_destroy(plan_of(&fake, options, 1));
}

static void a_model_that_is_too_large_still_gets_a_plan_to_show(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    give_memory(&fake, 2, 3);
    struct plan *plan = plan_of(&fake, (struct plan_options){.n_ranks = 2, .ranks = fake.ranks}, 1);
    assert_non_null(strstr(err, "start more ranks"));
    assert_int_equal(plan->context, 8192);
    assert_int_equal(plan->sequences, 16);
    assert_int_equal(plan->stages[0].layer_count + plan->stages[1].layer_count, 24);
    char *table = plan_table(plan, fake.ranks);
    assert_non_null(strstr(table, "H100"));
    free(table);
    plan_destroy(plan);
}

static void ranks_on_one_device_share_its_memory(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    give_memory(&fake, 3, 80);
    fake.ranks[0].device_uuid = fake.ranks[2].device_uuid = "GPU-1";
    fake.ranks[1].device_uuid = "GPU-2";
    fake.ranks[2].memory_free_bytes = (uint64_t)40 << 30;
    struct plan *plan = plan_of(&fake, (struct plan_options){.n_ranks = 3, .ranks = fake.ranks}, 0);
    /* A 64th is left to what nobody counts. */
    assert_int_equal(plan->stages[0].memory_bytes, ((uint64_t)20 << 30) / 64 * 63);
    assert_int_equal(plan->stages[1].memory_bytes, ((uint64_t)80 << 30) / 64 * 63);
    assert_int_equal(plan->stages[2].memory_bytes, ((uint64_t)20 << 30) / 64 * 63);
    plan_destroy(plan);
}

/* 152 chunks of keys, of which each leaves 64 dimensions and 2 numbers for 8 times 16 query heads. */
static void a_gpu_has_room_for_the_attention_of_many_rows(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    give_memory(&fake, 1, 80);
    struct plan_options options = {
        .n_ranks = 1, .ranks = fake.ranks, .context = 131072, .sequences = 256};
    struct plan *gpu = plan_of(&fake, options, 0);
    uint64_t attention = (uint64_t)256 * 152 * 8 * 16 * 66 * 4;
    assert_true(gpu->stages[0].activation_bytes > attention);
    /* What else there is is less. */
    assert_true(gpu->stages[0].activation_bytes < 2 * attention);
    plan_destroy(gpu);
}

static void weights_in_place_are_never_refused(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    give_memory(&fake, 1, 4);
    struct plan_options options = {.n_ranks = 1, .ranks = fake.ranks};
    plan_destroy(plan_of(&fake, options, 1));
    fake.ranks[0].weights_in_place = true;
    struct plan *plan = plan_of(&fake, options, 0);
    assert_int_equal(plan->full_blocks, 512); /* one sequence: the rest is left to the weights */
    char *table = plan_table(plan, fake.ranks);
    assert_non_null(strstr(table, "wait for the disk"));
    free(table);
    plan_destroy(plan);
}

/* Experts of Q5_1 (24 bytes for 32 weights) and an embedding of Q4_0 (18), on a processor and a GPU. */
static void weights_on_a_gpu_count_as_it_holds_them(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    uint64_t values = (uint64_t)32 * 2880 * 2880, rows = 201088;
    give_memory(&fake, 1, 200);
    fake.experts = tensor((uint64_t)32 * 2880, 2160);
    fake.experts.type = GGUF_Q5_1;
    fake.table = tensor(rows, 1620);
    fake.table.type = GGUF_Q4_0;
    fake.experts.ne[0] = fake.table.ne[0] = 2880;
    fake.model.vocabulary = (uint32_t)rows;
    for (uint32_t i = 0; i < fake.model.n_layers; i++)
        fake.layers[i].bytes += 3 * (fake.experts.bytes - (uint64_t)32 * 2880 * 1530);
    struct plan_options options = {.n_ranks = 1, .ranks = fake.ranks};
    struct plan *gpu = plan_of(&fake, options, 0);
    fake.ranks[0].weights_in_place = true;
    struct plan *in_place = plan_of(&fake, options, 0);
    assert_int_equal(gpu->stages[0].weights_bytes - in_place->stages[0].weights_bytes,
                     24 * 3 * (values * 2 - values / 32 * 24) + rows * 2880 / 32 * (34 - 18));
    plan_destroy(gpu);
    plan_destroy(in_place);
}

static void unknown_memory_is_never_refused(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    struct plan_options options = {.n_ranks = 2, .context = 131072, .sequences = 1000};
    plan_destroy(plan_of(&fake, options, 0));
}

/* ── bounds and defaults ───────────────────────────────────────────────────────────────────── */

static void zeros_are_defaults(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    struct plan *plan = plan_of(&fake, (struct plan_options){.n_ranks = 3}, 0);
    assert_int_equal(plan->context, 8192);
    assert_int_equal(plan->sequences, 16);
    assert_int_equal(plan->block_tokens, 16);
    assert_int_equal(plan->step_tokens, 512);
    assert_int_equal(plan->step_rows, 16);
    assert_int_equal(plan->step_samples, 64);
    assert_int_equal(plan->steps_in_flight, 6);
    assert_int_equal(plan->lanes, 6);
    assert_int_equal(plan->vocabulary_limit, 201088);
    plan_destroy(plan);
    fake.model.context = 100;
    plan = plan_of(&fake, (struct plan_options){.n_ranks = 1, .step_tokens = 8}, 0);
    assert_int_equal(plan->context, 100);
    assert_int_equal(plan->step_rows, 8);
    assert_int_equal(plan->step_samples, 8);
    assert_int_equal(plan->full_blocks, 7 * 16);
    plan_destroy(plan);
}

static void refuses_sizes_beyond_its_bounds(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    plan_of(&fake, (struct plan_options){.n_ranks = 1, .context = 131073}, -1);
    plan_of(&fake, (struct plan_options){.n_ranks = 1, .sequences = UINT32_MAX}, -1);
    plan_of(&fake, (struct plan_options){.n_ranks = 1, .step_tokens = UINT32_MAX}, -1);
    plan_of(&fake, (struct plan_options){.n_ranks = 1, .vocabulary_limit = 201089}, -1);
    fake.model.context = UINT32_MAX;
    plan_of(&fake, (struct plan_options){.n_ranks = 1, .context = UINT32_MAX, .sequences = 1 << 20},
            -1);
}

static void the_table_has_a_row_a_rank_and_says_the_capacity(void **state)
{
    (void)state;
    struct fake fake;
    make_20b(&fake);
    give_memory(&fake, 2, 80);
    struct plan *plan =
        plan_of(&fake,
                (struct plan_options){
                    .n_ranks = 2, .ranks = fake.ranks, .sequences = 16, .head = PLAN_HEAD_ALL},
                0);
    char *table = plan_table(plan, fake.ranks);
    assert_non_null(table);
    unsigned lines = 0;
    size_t width = 0;
    for (const char *line = table; *line; line = strchr(line, '\n') + 1) {
        size_t length = (size_t)(strchr(line, '\n') - line);
        if (lines == 0)
            width = length;
        else if (lines < 4)
            assert_int_equal(length, width); /* columns line up */
        lines++;
    }
    assert_int_equal(lines, 1 + 2 + 1 + 3);
    assert_non_null(strstr(table, "0-11"));
    assert_non_null(strstr(table, "12-23"));
    assert_non_null(strstr(table, " 101376 ")); /* 99 · 1,024 rows of the head */
    assert_non_null(strstr(table, " 99712 "));
    assert_non_null(strstr(table, "KV for 131072 positions: 16 sequences of 8192.\n"));
    assert_non_null(strstr(table, "Sequences of 8192: 16; "));
    assert_non_null(strstr(table, "hold 8.2 in as many bytes, because one takes 1.97 times"));
    free(table);
    table = plan_table(plan, NULL);
    assert_null(strstr(table, "H100"));
    free(table);
    plan_destroy(plan);
    plan_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges_cover_the_model_in_order),
        cmocka_unit_test(the_head_is_shared_and_the_layers_are_even),
        cmocka_unit_test(a_small_vocabulary_leaves_some_stages_without_head),
        cmocka_unit_test(the_head_costs_the_last_stage_layers),
        cmocka_unit_test(gpus_leave_the_head_to_the_last_one),
        cmocka_unit_test(a_faster_rank_gets_more_layers),
        cmocka_unit_test(a_rank_of_more_arithmetic_gets_more_layers),
        cmocka_unit_test(more_stages_are_predicted_to_be_faster),
        cmocka_unit_test(memory_moves_layers_to_where_they_fit),
        cmocka_unit_test(layers_by_hand_are_taken_as_they_are),
        cmocka_unit_test(refuses_layers_that_do_not_add_up),
        cmocka_unit_test(refuses_more_stages_than_layers),
        cmocka_unit_test(the_cut_is_the_best_of_all_cuts),
        cmocka_unit_test(weights_add_up_to_the_file),
        cmocka_unit_test(a_tied_embedding_is_counted_once_on_one_stage),
        cmocka_unit_test(the_pools_hold_every_sequence),
        cmocka_unit_test(at_8k_the_same_memory_holds_twice_the_sequences_nearly),
        cmocka_unit_test(a_bound_of_the_cache_is_kept_but_one_sequence_fits),
        cmocka_unit_test(kv_of_16_bits_takes_half),
        cmocka_unit_test(the_kv_pool_shrinks_to_what_is_left),
        cmocka_unit_test(gpus_get_as_many_sequences_as_have_room),
        cmocka_unit_test(says_which_context_and_how_many_sequences_would_fit),
        cmocka_unit_test(a_model_that_is_too_large_still_gets_a_plan_to_show),
        cmocka_unit_test(ranks_on_one_device_share_its_memory),
        cmocka_unit_test(a_gpu_has_room_for_the_attention_of_many_rows),
        cmocka_unit_test(weights_in_place_are_never_refused),
        cmocka_unit_test(weights_on_a_gpu_count_as_it_holds_them),
        cmocka_unit_test(unknown_memory_is_never_refused),
        cmocka_unit_test(zeros_are_defaults),
        cmocka_unit_test(refuses_sizes_beyond_its_bounds),
        cmocka_unit_test(the_table_has_a_row_a_rank_and_says_the_capacity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
