/*
 * The coordinator as a pure function, in a fake world (world.h): joining, schedule, replay, answers.
 */
#include "tests/test.h"

#include "tests/tiny.h"
#include "tests/world.h"

static void random_ids(struct fake *f, uint32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ids[i] = (uint32_t)(test_random(&f->random) % 3000);
}

/* Request `i` of a client has finished with exactly the tokens of its answer alone. */
static void assert_answer(struct fake *f, uint32_t request, const uint32_t *ids, size_t n,
                          uint32_t max_tokens, uint64_t seed)
{
    struct tokens want = {0};
    fake_answer(f->c, ids, n, max_tokens, seed, &want);
    const struct world_request *r = &f->requests[request];
    if (!r->finished || r->finishes != 1)
        fail_msg("request %u finished %u times (%s)", request, r->finishes, r->refusal);
    assert_int_equal(r->tokens.count, want.count);
    for (size_t i = 0; i < want.count; i++)
        if (r->tokens.ids[i] != want.ids[i])
            fail_msg("request %u: token %zu of %zu is %u, want %u", request, i, want.count,
                     r->tokens.ids[i], want.ids[i]);
    tokens_free(&want);
}

static void assert_nothing_is_held(struct fake *f)
{
    struct coordinator_counts counts;
    fake_tick(f, 10);
    coordinator_counts(f->c, &counts);
    assert_int_equal(counts.running + counts.waiting, 0);
    assert_int_equal(counts.full_blocks_used, 0);
    assert_int_equal(counts.window_blocks_used, 0);
    assert_int_equal(f->c->n_requests, counts.lingering);
}

static void a_request_is_answered_by_any_number_of_ranks(void **state)
{
    (void)state;
    for (uint32_t ranks = 1; ranks <= 4; ranks++) {
        struct fake *f = fake_create(model, ranks, (struct coordinator_options){.context = 1024});
        fake_start(f);
        assert_int_equal(f->n_serving, 1);
        uint32_t ids[300];
        random_ids(f, ids, 300);
        fake_ask(f, 0, 1, ids, 300, 200, 7);
        fake_run(f);
        assert_true(f->requests[1].accepted);
        assert_answer(f, 1, ids, 300, 200, 7);
        assert_true(f->max_queued >= 2); /* steps were issued ahead of their tokens */
        assert_nothing_is_held(f);
        fake_destroy(f);
    }
}

static void requests_wait_for_ranks_to_come(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 2, (struct coordinator_options){.context = 512});
    uint32_t ids[5] = {1, 2, 3, 4, 5};
    fake_ask(f, 0, 1, ids, 5, 20, 1);
    fake_tick(f, 10);
    fake_tick(f, 1500000);
    assert_true(f->requests[1].accepted);
    assert_true(f->requests[1].progress >= 1); /* and are told that they wait */
    assert_false(f->requests[1].finished);
    fake_start(f);
    fake_run(f);
    assert_answer(f, 1, ids, 5, 20, 1);
    fake_destroy(f);
}

/* Hundreds of requests with random lengths, cancels, vanished clients and lost worlds, in a KV cache
 * that is far too small for them: each answer is the same as alone. */
static void every_answer_is_the_same_as_alone(void **state)
{
    (void)state;
    enum { REQUESTS = 300 };
    static uint32_t ids[REQUESTS][400];
    static size_t lengths[REQUESTS];
    static uint32_t limits[REQUESTS];
    static bool spoiled[REQUESTS];
    for (uint32_t ranks = 1; ranks <= 4; ranks++) {
        memset(spoiled, 0, sizeof spoiled);
        struct fake *f =
            fake_create(model, ranks,
                        (struct coordinator_options){
                            .context = 512, .sequences = 8, .step_tokens = 64, .max_queue = 1000});
        f->memory_free = 0; /* the plan gives every sequence its whole context */
        f->random = ranks;
        fake_start(f);
        uint32_t asked = 0;
        while (asked < REQUESTS) {
            uint64_t draw = test_random(&f->random);
            if (draw % 3 == 0) {
                uint32_t r = asked++;
                lengths[r] = 1 + test_random(&f->random) % (r % 10 == 0 ? 400 : 60);
                limits[r] = 1 + (uint32_t)(test_random(&f->random) % 90);
                random_ids(f, ids[r], lengths[r]);
                fake_ask(f, r % WORLD_CLIENTS, r, ids[r], lengths[r], limits[r], r);
            }
            if (draw % 40 == 1 && asked) {
                uint32_t r = (uint32_t)(test_random(&f->random) % asked);
                spoiled[r] = true;
                fake_cancel(f, r % WORLD_CLIENTS, r);
            }
            if (draw % 500 == 2) {
                fake_kill(f);
                fake_tick(f, 1000);
                fake_start(f);
            }
            fake_step(f);
        }
        fake_run(f);
        for (uint32_t r = 0; r < REQUESTS; r++)
            if (!spoiled[r])
                assert_answer(f, r, ids[r], lengths[r], limits[r], r);
        assert_true(f->multi_rows > 10); /* rows of several requests share steps */
        assert_nothing_is_held(f);
        fake_destroy(f);
    }
}

static void the_youngest_gives_way_when_blocks_run_out(void **state)
{
    (void)state;
    struct fake *f = fake_create(
        model, 2, (struct coordinator_options){.context = 512, .sequences = 8, .step_tokens = 64});
    fake_start(f);
    /* The same world, with a pool that holds little more than one whole sequence. */
    fake_pools(f, 512 / 16 + 8, f->plan->kv_window_blocks);
    static uint32_t ids[8][200];
    for (uint32_t r = 0; r < 8; r++) {
        random_ids(f, ids[r], 150);
        fake_ask(f, r, r, ids[r], 150, 100, r);
    }
    fake_run(f);
    for (uint32_t r = 0; r < 8; r++)
        assert_answer(f, r, ids[r], 150, 100, r);
    struct coordinator_counts counts;
    coordinator_counts(f->c, &counts);
    assert_true(counts.preemptions > 0);
    assert_nothing_is_held(f);
    fake_destroy(f);
}

static void a_vanished_client_frees_its_sequence(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 1, (struct coordinator_options){.context = 512});
    fake_start(f);
    uint32_t ids[40];
    random_ids(f, ids, 40);
    fake_ask(f, 3, 1, ids, 40, 400, 5);
    fake_tick(f, 10);
    for (int i = 0; i < 3; i++)
        fake_step(f);
    struct coordinator_counts counts;
    coordinator_counts(f->c, &counts);
    assert_int_equal(counts.running, 1);
    f->client_gone[3] = true;
    for (int i = 0; i < 3; i++)
        fake_step(f);
    assert_nothing_is_held(f);
    fake_destroy(f);
}

static void a_client_that_vanished_while_it_waits_is_noticed(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 1, (struct coordinator_options){.context = 512});
    uint32_t ids[3] = {1, 2, 3};
    fake_ask(f, 3, 1, ids, 3, 10, 5); /* no ranks are there */
    fake_tick(f, 10);
    f->client_gone[3] = true;
    fake_tick(f, 1100000);
    fake_tick(f, 10);
    assert_int_equal(f->c->n_requests, 0);
    fake_destroy(f);
}

static void steps_in_flight_fill_the_pipeline_with_disjoint_sequences(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 4, (struct coordinator_options){.context = 512});
    fake_start(f);
    uint32_t ids[8] = {0};
    for (uint32_t r = 0; r < 8; r++) {
        random_ids(f, ids, 4);
        fake_ask(f, r, r, ids, 4, 300, 1000 + r);
    }
    fake_tick(f, 10);
    for (int i = 0; i < 12; i++)
        fake_step(f);
    /* Four consecutive steps hold eight sequences, two each. */
    bool seen[WORLD_SLOTS] = {false};
    assert_true(f->queued >= 4);
    for (size_t i = 0; i < 4; i++) {
        Gptoss__Step *step = gptoss__step__unpack(NULL, f->queue[i].size, f->queue[i].bytes);
        assert_int_equal(step->n_rows, 2);
        for (size_t k = 0; k < step->n_rows; k++) {
            assert_false(seen[step->rows[k]->slot]);
            seen[step->rows[k]->slot] = true;
        }
        gptoss__step__free_unpacked(step, NULL);
    }
    fake_destroy(f);
}

static void refusals_have_a_code_and_say_what_to_do(void **state)
{
    (void)state;
    struct fake *f = fake_create(
        model, 1, (struct coordinator_options){.context = 64, .sequences = 1, .max_queue = 2});
    uint32_t ids[100] = {0};
    fake_ask(f, 0, 1, ids, 64, 10, 0);
    fake_tick(f, 10);
    assert_int_equal(f->requests[1].code, GPTOSS__CODE__TOO_LONG);
    assert_non_null(strstr(f->requests[1].refusal, "--context"));
    fake_ask(f, 0, 2, ids, 0, 10, 0);
    fake_tick(f, 10);
    assert_int_equal(f->requests[2].code, GPTOSS__CODE__INVALID);
    assert_non_null(strstr(f->requests[2].refusal, "empty"));
    ids[0] = model->vocabulary;
    fake_ask(f, 0, 3, ids, 1, 10, 0);
    assert_int_equal(f->requests[3].code, GPTOSS__CODE__INVALID);
    ids[0] = 1;
    fake_ask(f, 0, 4, ids, 1, 10, 0);
    fake_ask(f, 0, 4, ids, 1, 10, 0);
    assert_int_equal(f->requests[4].code, GPTOSS__CODE__DUPLICATE);
    fake_ask(f, 0, 5, ids, 1, 10, 0);
    fake_ask(f, 0, 6, ids, 1, 10, 0);
    assert_int_equal(f->requests[6].code, GPTOSS__CODE__BUSY);
    fake_cancel(f, 0, 9);
    assert_int_equal(f->requests[9].code, GPTOSS__CODE__NOT_FOUND);
    coordinator_drain(f->c, f->now);
    fake_ask(f, 0, 7, ids, 1, 10, 0);
    assert_int_equal(f->requests[7].code, GPTOSS__CODE__SHUTTING_DOWN);
    fake_destroy(f);
}

static void random_bytes_change_nothing(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 2, (struct coordinator_options){.context = 512});
    fake_start(f);
    uint32_t ids[20];
    random_ids(f, ids, 20);
    fake_ask(f, 0, 1, ids, 20, 50, 3);
    for (int i = 0; i < 20000; i++) {
        unsigned char bytes[64];
        size_t n = test_random(&f->random) % sizeof bytes;
        for (size_t k = 0; k < n; k++)
            bytes[k] = (unsigned char)(test_random(&f->random) >> 20);
        /* Mostly well-formed beginnings: a body of one of the first fields. */
        if (n > 2 && i % 2) {
            bytes[0] = (unsigned char)((1 + bytes[0] % 8) << 3 | 2);
            bytes[1] = (unsigned char)(n - 2);
        }
        coordinator_receive(f->c, i % 3 ? COORDINATOR_CLIENTS : COORDINATOR_RANKS, "c0.63", 5,
                            i % 100 ? bytes : NULL, n, f->now);
        if (i % 1000 == 0)
            fake_step(f);
        fake_pump(f);
    }
    fake_run(f);
    assert_answer(f, 1, ids, 20, 50, 3);
    fake_destroy(f);
}

static void a_second_world_is_refused(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 2, (struct coordinator_options){.context = 512});
    fake_start(f);
    struct fake *other = base_alloc(1, sizeof *other);
    Gptoss__Hello hello = GPTOSS__HELLO__INIT;
    hello.world = 999;
    hello.size = 2;
    hello.protocol = PROTO_VERSION;
    Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
    m.body_case = GPTOSS__RANK_MESSAGE__BODY_HELLO;
    m.hello = &hello;
    uint8_t bytes[128];
    size_t size = gptoss__rank_message__pack(&m, bytes);
    coordinator_receive(f->c, COORDINATOR_RANKS, "r1.40", 5, bytes, size, f->now);
    fake_pump(f); /* the answer goes to rank 40 of this world, which only counts it */
    assert_int_equal(f->n_rank_refused, 1);
    assert_non_null(strstr(f->rank_refusal, "already has 2 ranks"));
    free(other);
    fake_destroy(f);
}

/* A run is of one mode: what a token is must not depend on which rank computed it. */
static void a_run_is_fast_on_all_ranks_or_on_none(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 2, (struct coordinator_options){.fast = true});
    f->fast_ranks = 2;
    fake_start(f);
    assert_int_equal(f->n_rank_refused, 0);
    assert_true(f->plan->fast);
    fake_destroy(f);

    f = fake_create(model, 2, (struct coordinator_options){.fast = true});
    f->fast_ranks = 1;
    fake_start(f);
    assert_int_equal(f->n_rank_refused, 2);
    assert_non_null(strstr(f->rank_refusal, "rank 1 on here has no products with int8"));
    assert_non_null(strstr(f->rank_refusal, "without --fast"));
    assert_non_null(strstr(f->impossible, "without --fast"));
    fake_destroy(f);

    f = fake_create(model, 2, (struct coordinator_options){0});
    f->fast_ranks = 2;
    fake_start(f);
    assert_int_equal(f->n_rank_refused, 2);
    assert_non_null(strstr(f->rank_refusal, "nobody asked for"));
    fake_destroy(f);

    f = fake_create(model, 2, (struct coordinator_options){0});
    fake_start(f);
    assert_int_equal(f->n_rank_refused, 0);
    assert_false(f->plan->fast);
    fake_destroy(f);
}

static void more_ranks_than_layers_are_refused(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 30, (struct coordinator_options){.context = 512});
    fake_start(f);
    assert_int_equal(f->n_rank_refused, 30);
    assert_non_null(strstr(f->rank_refusal, "at most 24"));
    assert_non_null(strstr(f->impossible, "at most 24"));
    fake_destroy(f);
}

static void a_silent_rank_and_an_endless_step_end_the_world(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 2, (struct coordinator_options){.context = 512});
    fake_start(f);
    f->alive = false;       /* messages are not answered */
    fake_tick(f, 20000000); /* in which the coordinator itself was not there: that is no silence */
    assert_int_equal(f->lost[0], 0);
    for (int i = 0; i < 20; i++)
        fake_tick(f, 100000);
    assert_non_null(strstr(f->lost, "rank 0"));
    assert_non_null(strstr(f->lost, "silent"));
    f->lost[0] = 0;
    fake_start(f);
    f->alive = false;
    for (int i = 0; i < 50; i++) { /* somebody sees that they run: the host is busy */
        f->c->world.ranks[0].pid = 1;
        f->c->world.ranks[1].pid = 2;
        coordinator_rank_runs(f->c, 1, f->now);
        coordinator_rank_runs(f->c, 2, f->now);
        fake_tick(f, 100000);
    }
    assert_int_equal(f->lost[0], 0);
    for (int i = 0; i < 60; i++) /* and then sees nothing */
        fake_tick(f, 100000);
    assert_non_null(strstr(f->lost, "silent"));
    f->lost[0] = 0;
    fake_start(f);
    uint32_t ids[3] = {1, 2, 3};
    fake_ask(f, 0, 1, ids, 3, 10, 5);
    for (int i = 0; i < 310 && !f->lost[0]; i++)
        fake_tick(f, 1000000); /* heartbeats go on, the step does not end */
    assert_non_null(strstr(f->lost, "step 1,"));
    fake_start(f);
    fake_run(f);
    assert_answer(f, 1, ids, 3, 10, 5);
    fake_destroy(f);
}

static void a_stuck_step_is_noticed_within_a_second_of_what_is_predicted(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 2, (struct coordinator_options){.context = 512});
    fake_start(f);
    uint32_t ids[3] = {1, 2, 3};
    uint64_t seed = 0;
    for (size_t long_enough = 0; long_enough < 120; seed++) { /* an answer without an early end */
        struct tokens answer = {0};
        fake_answer(f->c, ids, 3, 400, seed + 1, &answer);
        long_enough = answer.count;
        tokens_free(&answer);
    }
    fake_ask(f, 0, 1, ids, 3, 400, seed);
    for (int i = 0; i < 40; i++) { /* steps of 20 ms */
        for (int k = 0; k < 10; k++)
            fake_tick(f, 2000);
        assert_true(fake_step(f));
    }
    uint64_t begin = f->now;
    while (!f->lost[0] && f->now < begin + 10000000)
        fake_tick(f, 2000);
    assert_non_null(strstr(f->lost, "rank 0 on here"));
    assert_non_null(strstr(f->lost, "has not finished step 41"));
    assert_in_range(f->now - begin, 500000, 1000000);
    fake_start(f); /* the next verdict is slower: this one may have been wrong */
    f->lost[0] = 0;
    for (int i = 0; i < 40; i++) {
        for (int k = 0; k < 10; k++)
            fake_tick(f, 2000);
        assert_true(fake_step(f));
    }
    begin = f->now;
    while (!f->lost[0] && f->now < begin + 10000000)
        fake_tick(f, 2000);
    assert_in_range(f->now - begin, 2000000, 4000000);
    fake_start(f);
    fake_run(f);
    assert_answer(f, 1, ids, 3, 400, seed);
    fake_destroy(f);
}

/* One request kills the ranks whenever it runs; those that ran beside it are answered. */
static void nobody_dies_for_another(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 2, (struct coordinator_options){.context = 512});
    uint32_t ids[4] = {1, 2, 3, 4};
    const uint32_t killer = 3;
    int worlds = 0;
    fake_start(f);
    for (uint32_t r = 0; r < 8; r++)
        fake_ask(f, r, r, ids, r == killer ? 4 : 3, 30, r);
    for (int i = 0; i < 1000; i++) {
        fake_tick(f, 10);
        bool kills = false;
        for (size_t k = 0; k < f->queued; k++) {
            Gptoss__Step *step = gptoss__step__unpack(NULL, f->queue[k].size, f->queue[k].bytes);
            for (size_t n = 0; n < step->n_rows; n++)
                kills |= step->rows[n]->seed == killer;
            gptoss__step__free_unpacked(step, NULL);
        }
        if (kills) {
            worlds++;
            fake_kill(f);
            fake_start(f);
        } else if (!fake_step(f))
            break;
    }
    assert_int_equal(worlds, CORE_DEATHS_MAX);
    for (uint32_t r = 0; r < 8; r++)
        if (r != killer)
            assert_answer(f, r, ids, 3, 30, r);
    assert_int_equal(f->requests[killer].reason, GPTOSS__FINISHED__REASON__ERROR);
    assert_nothing_is_held(f);
    fake_destroy(f);
}

static void a_request_that_brings_the_ranks_down_is_not_replayed_for_ever(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 2, (struct coordinator_options){.context = 512});
    uint32_t ids[3] = {1, 2, 3};
    fake_start(f);
    fake_ask(f, 0, 1, ids, 3, 10, 5);
    fake_tick(f, 10);
    assert_true(fake_step(f)); /* it gains a token, then the ranks die at every step of it */
    for (int i = 0; i < 3; i++) {
        assert_false(f->requests[1].finished);
        fake_kill(f);
        fake_tick(f, 10);
        fake_start(f);
        fake_tick(f, 10);
    }
    assert_true(f->requests[1].finished);
    assert_int_equal(f->requests[1].reason, GPTOSS__FINISHED__REASON__ERROR);
    assert_int_equal(f->requests[1].code, GPTOSS__CODE__INTERNAL);
    fake_ask(f, 0, 2, ids, 3, 10, 5); /* others are served */
    fake_run(f);
    assert_answer(f, 2, ids, 3, 10, 5);
    fake_destroy(f);
}

static void a_request_is_not_to_blame_for_what_somebody_did(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 2, (struct coordinator_options){.context = 512});
    uint32_t ids[3] = {1, 2, 3};
    fake_start(f);
    fake_ask(f, 0, 1, ids, 3, 10, 5);
    fake_tick(f, 10);
    for (int i = 0; i < 9; i++) {
        fake_kill(f);
        coordinator_verdict(f->c, i % 3 != 0); /* two of three are pardoned */
        fake_start(f);
        fake_tick(f, 10);
        assert_int_equal(f->requests[1].finished, i >= 6);
    }
    assert_int_equal(f->requests[1].code, GPTOSS__CODE__INTERNAL);
    fake_destroy(f);
}

static void an_id_is_one_request_at_a_time(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 1, (struct coordinator_options){.context = 512});
    uint32_t ids[3] = {1, 2, 3};
    fake_ask(f, 0, 1, ids, 3, 10, 5);
    fake_cancel(f, 0, 1);
    assert_true(f->requests[1].finished);
    f->requests[1].finished = false;
    fake_ask(f, 0, 1, ids, 3, 10, 5); /* the cancelled one is over */
    fake_ask(f, 0, 1, ids, 3, 10, 5);
    assert_int_equal(f->requests[1].code, GPTOSS__CODE__DUPLICATE);
    struct coordinator_counts counts;
    coordinator_counts(f->c, &counts);
    assert_int_equal(counts.waiting, 1);
    fake_destroy(f);
}

static void a_deadline_ends_a_request(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 1, (struct coordinator_options){.context = 512});
    Gptoss__Generate g = GPTOSS__GENERATE__INIT;
    g.request_id = core_binary("r0001", 5);
    g.prompt_case = GPTOSS__GENERATE__PROMPT_TEXT;
    g.text = core_binary("In the", 6);
    g.deadline_ms = 1500;
    Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
    m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_GENERATE;
    m.generate = &g;
    fake_send(f, 0, &m);
    fake_tick(f, 1000000);
    assert_false(f->requests[1].finished);
    fake_tick(f, 600000);
    assert_true(f->requests[1].finished);
    assert_int_equal(f->requests[1].code, GPTOSS__CODE__DEADLINE);
    fake_destroy(f);
}

static void a_lingering_request_is_resumed_from_an_index(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 1, (struct coordinator_options){.context = 512});
    fake_start(f);
    uint32_t ids[4] = {11, 12, 13, 14};
    Gptoss__TokenIds prompt = GPTOSS__TOKEN_IDS__INIT;
    prompt.n_ids = 4;
    prompt.ids = ids;
    Gptoss__Sampling sampling = GPTOSS__SAMPLING__INIT;
    sampling.seed_given_case = GPTOSS__SAMPLING__SEED_GIVEN_SEED;
    sampling.seed = 77;
    Gptoss__Generate g = GPTOSS__GENERATE__INIT;
    g.request_id = core_binary("r0001", 5);
    g.prompt_case = GPTOSS__GENERATE__PROMPT_IDS;
    g.ids = &prompt;
    g.sampling = &sampling;
    g.max_tokens = 60;
    g.linger_ms = 10000;
    Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
    m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_GENERATE;
    m.generate = &g;
    fake_send(f, 5, &m);
    fake_tick(f, 10);
    for (int i = 0; i < 4; i++)
        fake_step(f);
    size_t seen = f->requests[1].tokens.count;
    assert_true(seen > 0);
    f->client_gone[5] = true;
    fake_run(f); /* it goes on without a client */
    assert_int_equal(f->requests[1].tokens.count, seen);
    Gptoss__Resume resume = GPTOSS__RESUME__INIT;
    resume.request_id = g.request_id;
    resume.from_index = (uint32_t)seen;
    m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_RESUME;
    m.resume = &resume;
    fake_send(f, 6, &m);
    assert_answer(f, 1, ids, 4, 60, 77);
    fake_tick(f, 10000001);
    fake_tick(f, 1);
    assert_int_equal(f->c->n_requests, 0); /* it lingered long enough */
    fake_destroy(f);
}

static void stop_texts_end_an_answer_before_them(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 1, (struct coordinator_options){.context = 512});
    fake_start(f);
    uint32_t ids[2] = {50, 51};
    struct tokens answer = {0};
    fake_answer(f->c, ids, 2, 40, 9, &answer);
    struct text whole = {0};
    for (size_t i = 0; i < answer.count; i++) {
        size_t size;
        const char *bytes = tokenizer_bytes(f->c->tokenizer, answer.ids[i], &size);
        text_add(&whole, bytes, size);
    }
    assert_true(answer.count > 10 && whole.size > 20);
    /* A stop text that spans several tokens; the answer is all text before its first occurrence. */
    char stop[7] = {0};
    memcpy(stop, whole.bytes + 12, 6);
    struct text clean = {0}, want = {0};
    tokenizer_clean(stop, 6, &clean);
    tokenizer_clean(whole.bytes, whole.size, &want);
    const char *at = strstr(want.bytes, clean.bytes);
    assert_non_null(at);

    Gptoss__TokenIds prompt = GPTOSS__TOKEN_IDS__INIT;
    prompt.n_ids = 2;
    prompt.ids = ids;
    Gptoss__Sampling sampling = GPTOSS__SAMPLING__INIT;
    sampling.seed_given_case = GPTOSS__SAMPLING__SEED_GIVEN_SEED;
    sampling.seed = 9;
    ProtobufCBinaryData stops[1] = {core_binary(clean.bytes, clean.size)};
    Gptoss__Generate g = GPTOSS__GENERATE__INIT;
    g.request_id = core_binary("r0001", 5);
    g.prompt_case = GPTOSS__GENERATE__PROMPT_IDS;
    g.ids = &prompt;
    g.sampling = &sampling;
    g.max_tokens = 40;
    g.n_stop = 1;
    g.stop = stops;
    Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
    m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_GENERATE;
    m.generate = &g;
    fake_send(f, 0, &m);
    fake_run(f);
    const struct world_request *r = &f->requests[1];
    assert_true(r->finished);
    assert_int_equal(r->reason, GPTOSS__FINISHED__REASON__STOP);
    assert_int_equal(r->text.size, at - want.bytes);
    assert_memory_equal(r->text.bytes, want.bytes, r->text.size);
    text_free(&clean);
    text_free(&want);
    text_free(&whole);
    tokens_free(&answer);
    fake_destroy(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_is_answered_by_any_number_of_ranks),
        cmocka_unit_test(requests_wait_for_ranks_to_come),
        cmocka_unit_test(every_answer_is_the_same_as_alone),
        cmocka_unit_test(the_youngest_gives_way_when_blocks_run_out),
        cmocka_unit_test(a_vanished_client_frees_its_sequence),
        cmocka_unit_test(a_client_that_vanished_while_it_waits_is_noticed),
        cmocka_unit_test(steps_in_flight_fill_the_pipeline_with_disjoint_sequences),
        cmocka_unit_test(refusals_have_a_code_and_say_what_to_do),
        cmocka_unit_test(random_bytes_change_nothing),
        cmocka_unit_test(a_second_world_is_refused),
        cmocka_unit_test(more_ranks_than_layers_are_refused),
        cmocka_unit_test(a_run_is_fast_on_all_ranks_or_on_none),
        cmocka_unit_test(a_silent_rank_and_an_endless_step_end_the_world),
        cmocka_unit_test(a_stuck_step_is_noticed_within_a_second_of_what_is_predicted),
        cmocka_unit_test(nobody_dies_for_another),
        cmocka_unit_test(a_request_that_brings_the_ranks_down_is_not_replayed_for_ever),
        cmocka_unit_test(a_request_is_not_to_blame_for_what_somebody_did),
        cmocka_unit_test(an_id_is_one_request_at_a_time),
        cmocka_unit_test(a_deadline_ends_a_request),
        cmocka_unit_test(a_lingering_request_is_resumed_from_an_index),
        cmocka_unit_test(stop_texts_end_an_answer_before_them),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
