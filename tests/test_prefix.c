/*
 * KV blocks that sequences share: what is computed, what is kept, and that every answer is the same as
 * alone. In a fake world (world.h), whose ranks read every position through the block tables.
 */
#include "tests/test.h"

#include "tests/tiny.h"
#include "tests/world.h"

enum { BLOCK = 16 };

static void random_ids(struct fake *f, uint32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ids[i] = (uint32_t)(test_random(&f->random) % 3000);
}

static void assert_answer(struct fake *f, uint32_t request, const uint32_t *ids, size_t n,
                          uint32_t max_tokens, uint64_t seed)
{
    struct tokens want = {0};
    fake_answer(f->c, ids, n, max_tokens, seed, &want);
    const struct world_request *r = &f->requests[request];
    if (!r->finished || r->finishes != 1)
        fail_msg("request %u finished %u times (%s)", request, r->finishes, r->refusal);
    assert_int_equal(r->tokens.count, want.count);
    assert_memory_equal(r->tokens.ids, want.ids, want.count * sizeof *want.ids);
    tokens_free(&want);
}

/* Every block is free, or cached under the name of a node and in no table. */
static void assert_pool_is_whole(const struct blocks *b)
{
    bool *seen = base_alloc(b->count, sizeof *seen);
    for (uint32_t i = 0; i < b->n_free; i++) {
        const struct block *block = &b->blocks[b->free[i]];
        assert_false(seen[b->free[i]]);
        assert_int_equal(block->refs, 0);
        assert_int_equal(block->owner, BLOCKS_NONE);
        seen[b->free[i]] = true;
    }
    uint32_t cached = 0;
    for (int keep = 0; keep < 2; keep++)
        for (uint32_t n = b->cached[keep].oldest; n != BLOCKS_NONE; n = b->blocks[n].newer) {
            assert_false(seen[n]);
            assert_int_equal(b->blocks[n].refs, 0);
            assert_int_equal(b->blocks[n].keep, keep);
            assert_int_not_equal(b->blocks[n].owner, BLOCKS_NONE);
            seen[n] = true;
            cached++;
        }
    assert_int_equal(cached, b->n_cached);
    assert_int_equal(b->n_free + b->n_cached, b->count);
    free(seen);
}

static void assert_nothing_is_held(struct fake *f)
{
    struct coordinator_counts counts;
    fake_tick(f, 10);
    coordinator_counts(f->c, &counts);
    assert_int_equal(counts.running + counts.waiting, 0);
    assert_int_equal(counts.full_blocks_used, 0);
    assert_int_equal(counts.window_blocks_used, 0);
    assert_pool_is_whole(&f->c->full);
    assert_pool_is_whole(&f->c->window);
    if (f->c->prefix && f->c->full.n_cached == 0 && f->c->window.n_cached == 0)
        assert_int_equal(prefix_nodes(f->c->prefix), 0);
}

/* N clients with one system prompt of SHARED tokens and 1 … 40 of their own. */
enum { CLIENTS = 64, SHARED = 2048, OWN = 40 };
static uint32_t prompts[CLIENTS][SHARED + OWN];
static size_t lengths[CLIENTS];

static size_t make_prompts(struct fake *f)
{
    size_t own = 0;
    random_ids(f, prompts[0], SHARED);
    for (uint32_t r = 0; r < CLIENTS; r++) {
        memcpy(prompts[r], prompts[0], SHARED * sizeof **prompts);
        lengths[r] = SHARED + 1 + test_random(&f->random) % OWN;
        random_ids(f, prompts[r] + SHARED, lengths[r] - SHARED);
        prompts[r][SHARED] = r; /* no two go on alike */
        own += lengths[r] - SHARED;
    }
    return own;
}

static void sixty_four_clients_compute_a_shared_prompt_once(void **state)
{
    (void)state;
    static const uint32_t sequences[] = {1, 5, 16, 64};
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t ranks = 1; ranks <= 4; ranks += 3)
            for (int off = 0; off < 2; off++) {
                struct fake *f = fake_create(model, ranks,
                                             (struct coordinator_options){
                                                 .context = 4096,
                                                 .sequences = sequences[i],
                                                 .step_tokens = 128 << i,
                                                 .no_prefix_cache = off,
                                             });
                fake_start(f);
                size_t own = make_prompts(f);
                for (uint32_t r = 0; r < CLIENTS; r++)
                    fake_ask(f, r, r, prompts[r], lengths[r], 1, r);
                fake_run(f);
                /* Of one answer token each, nothing but prompts is computed. */
                assert_int_equal(f->tokens, off ? CLIENTS * SHARED + own : SHARED + own);
                for (uint32_t r = 0; r < CLIENTS; r++) {
                    assert_answer(f, r, prompts[r], lengths[r], 1, r);
                    assert_int_equal(f->requests[r].cached, r && !off ? SHARED : 0);
                }
                struct coordinator_counts counts;
                coordinator_counts(f->c, &counts);
                assert_int_equal(counts.cached_tokens, off ? 0 : (CLIENTS - 1) * SHARED);
                if (off)
                    assert_int_equal(counts.full_blocks_cached + counts.window_blocks_cached, 0);
                assert_nothing_is_held(f);
                fake_destroy(f);
            }
}

/* The same with answers, and with clients that come while the first one's prompt is under way. */
static void clients_join_while_the_shared_part_is_computed(void **state)
{
    (void)state;
    struct fake *f = fake_create(
        model, 3,
        (struct coordinator_options){.context = 4096, .sequences = 32, .step_tokens = 64});
    fake_start(f);
    size_t own = make_prompts(f);
    for (uint32_t r = 0; r < CLIENTS; r++) {
        fake_ask(f, r, r, prompts[r], lengths[r], 30, r);
        if (r % 3 == 0)
            fake_step(f);
    }
    fake_run(f);
    uint64_t answers = 0;
    for (uint32_t r = 0; r < CLIENTS; r++) {
        assert_answer(f, r, prompts[r], lengths[r], 30, r);
        answers += f->requests[r].tokens.count;
    }
    assert_in_range(f->tokens, SHARED + own, SHARED + own + answers);
    assert_nothing_is_held(f);
    fake_destroy(f);
}

/* The one whose prompt the others wait for is cancelled: the next one computes it. */
static void a_cancelled_leader_is_followed_by_another(void **state)
{
    (void)state;
    struct fake *f =
        fake_create(model, 2, (struct coordinator_options){.context = 4096, .step_tokens = 64});
    fake_start(f);
    make_prompts(f);
    for (uint32_t r = 0; r < 8; r++)
        fake_ask(f, r, r, prompts[r], lengths[r], 10, r);
    for (uint32_t r = 0; r < 4; r++) {
        for (int i = 0; i < 5; i++)
            fake_step(f);
        fake_cancel(f, r, r);
    }
    fake_run(f);
    for (uint32_t r = 4; r < 8; r++)
        assert_answer(f, r, prompts[r], lengths[r], 10, r);
    /* What the cancelled ones had computed was not lost. */
    assert_in_range(f->tokens, SHARED, SHARED + 8 * (OWN + 10) + 4 * 64 * 5);
    assert_nothing_is_held(f);
    fake_destroy(f);
}

static uint64_t ask_alone(struct fake *f, uint32_t request, const uint32_t *ids, size_t n,
                          uint32_t max_tokens)
{
    uint64_t before = f->tokens;
    fake_ask(f, 0, request, ids, n, max_tokens, request);
    fake_run(f);
    assert_answer(f, request, ids, n, max_tokens, request);
    return f->tokens - before;
}

static void a_prompt_that_is_cached_whole_computes_its_last_block_again(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 1, (struct coordinator_options){.context = 1024});
    fake_start(f);
    uint32_t ids[480];
    random_ids(f, ids, 480);
    assert_int_equal(ask_alone(f, 1, ids, 480, 1), 480);
    assert_int_equal(ask_alone(f, 2, ids, 480, 1), BLOCK);
    assert_int_equal(f->requests[2].cached, 480 - BLOCK);
    assert_int_equal(ask_alone(f, 3, ids, 479, 1), 15);
    assert_int_equal(ask_alone(f, 4, ids, 481 - BLOCK, 1), 1);
    assert_int_equal(ask_alone(f, 5, ids, BLOCK, 1), BLOCK);
    assert_int_equal(ask_alone(f, 6, ids, BLOCK + 1, 1), 1);
    assert_nothing_is_held(f);
    fake_destroy(f);
}

/* A conversation: each prompt is the one before, its answer, and some more. */
static void a_conversation_goes_on_where_it_ended(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 2, (struct coordinator_options){.context = 4096});
    fake_start(f);
    static uint32_t ids[4096];
    size_t n = 0;
    for (uint32_t turn = 0; turn < 20; turn++) {
        size_t before = n;
        random_ids(f, ids + n, 100);
        n += 100;
        uint64_t computed = ask_alone(f, turn, ids, n, 60);
        const struct world_request *r = &f->requests[turn];
        /* Nothing of what was said before but a broken block; and samples may be issued ahead. */
        if (turn)
            assert_true(r->cached + BLOCK >= before - 1);
        assert_in_range(computed, n - r->cached, n - r->cached + r->tokens.count + 8);
        memcpy(ids + n, r->tokens.ids, r->tokens.count * sizeof *ids);
        n += r->tokens.count;
    }
    assert_nothing_is_held(f);
    fake_destroy(f);
}

/* A window pool that keeps little: the boundaries that matter survive, the others go first. */
static void boundaries_are_kept_longer_than_what_windows_pass(void **state)
{
    (void)state;
    struct fake *f = fake_create(
        model, 1, (struct coordinator_options){.context = 4096, .sequences = 4, .step_tokens = 64});
    fake_start(f);
    uint32_t boundary = (model->window - 1 + BLOCK - 1) / BLOCK;
    uint32_t held = boundary + 64 / BLOCK + 2; /* by one sequence in a step of 64 */
    fake_pools(f, 1024, held + 3 * boundary);
    static uint32_t ids[2000], other[2000];
    random_ids(f, ids, 800);
    random_ids(f, other, 2000);
    ask_alone(f, 1, ids, 800, 20);
    /* A long prompt passes; the end of the first one is still there. */
    ask_alone(f, 2, other, 700, 1);
    random_ids(f, ids + 800, 50);
    assert_int_equal(ask_alone(f, 3, ids, 850, 1), 50);
    /* Where two prompts part nothing is kept before it is known, and then it is. */
    random_ids(f, other, 700);
    ask_alone(f, 4, other, 700, 1);
    for (uint32_t r = 5; r < 8; r++) {
        memcpy(other, ids, 400 * sizeof *ids);
        random_ids(f, other + 400, 200);
        uint64_t computed = ask_alone(f, r, other, 600, 1);
        if (r > 5)
            assert_int_equal(computed, 200);
    }
    assert_nothing_is_held(f);
    fake_destroy(f);
}

static void a_preempted_sequence_finds_its_blocks_again(void **state)
{
    (void)state;
    uint64_t tokens[2];
    for (int off = 0; off < 2; off++) {
        struct fake *f = fake_create(
            model, 2,
            (struct coordinator_options){
                .context = 512, .sequences = 8, .step_tokens = 64, .no_prefix_cache = off});
        fake_start(f);
        fake_pools(f, 512 / BLOCK + 8, f->plan->kv_window_blocks);
        static uint32_t ids[8][150];
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
        tokens[off] = f->tokens;
        assert_nothing_is_held(f);
        fake_destroy(f);
    }
    assert_true(tokens[0] < tokens[1]);
}

static void a_lost_world_takes_the_cache_with_it(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 2, (struct coordinator_options){.context = 1024});
    fake_start(f);
    uint32_t ids[300];
    random_ids(f, ids, 300);
    ask_alone(f, 1, ids, 300, 5);
    fake_kill(f);
    fake_tick(f, 10);
    fake_start(f);
    assert_int_equal(ask_alone(f, 2, ids, 300, 1), 300);
    assert_int_equal(f->requests[2].cached, 0);
    /* Those that wait for another's prefix when the ranks die are served by the next ones. */
    random_ids(f, ids, 300);
    for (uint32_t r = 3; r < 8; r++)
        fake_ask(f, 0, r, ids, 300, 5, r);
    fake_tick(f, 10);
    fake_kill(f);
    fake_tick(f, 10);
    fake_start(f);
    fake_run(f);
    for (uint32_t r = 3; r < 8; r++)
        assert_answer(f, r, ids, 300, 5, r);
    assert_nothing_is_held(f);
    fake_destroy(f);
}

/* Each of them is given the whole prefix: too much for one step, and the world checks that. */
static void many_that_begin_behind_a_long_prefix_share_no_step(void **state)
{
    (void)state;
    enum { LONG = 6400, MANY = 48 };
    static uint32_t ids[MANY][LONG + 1];
    struct fake *f =
        fake_create(model, 2, (struct coordinator_options){.context = 8192, .sequences = 64});
    fake_start(f);
    random_ids(f, ids[0], LONG);
    for (uint32_t r = 0; r < MANY; r++) {
        memcpy(ids[r], ids[0], LONG * sizeof **ids);
        ids[r][LONG] = r;
        fake_ask(f, r, r, ids[r], LONG + 1, 3, r);
    }
    fake_run(f);
    for (uint32_t r = 0; r < MANY; r++) {
        assert_answer(f, r, ids[r], LONG + 1, 3, r);
        assert_int_equal(f->requests[r].cached, r ? LONG : 0);
    }
    assert_nothing_is_held(f);
    fake_destroy(f);
}

/* Ten thousand requests whose prompts grow out of one another, with cancels, vanished clients and lost
 * worlds, in pools that are far too small. */
static void ten_thousand_requests_leak_nothing(void **state)
{
    (void)state;
    enum { REQUESTS = 10000, LENGTH = 320 };
    static uint32_t ids[REQUESTS][LENGTH];
    static size_t n_ids[REQUESTS];
    static uint32_t limits[REQUESTS];
    static bool spoiled[REQUESTS];
    struct fake *f =
        fake_create(model, 3,
                    (struct coordinator_options){
                        .context = 512, .sequences = 12, .step_tokens = 96, .max_queue = 100});
    fake_start(f);
    fake_pools(f, 512 / BLOCK + 30, 110);
    uint64_t evicted = 0, preemptions = 0, hits = 0;
    for (uint32_t asked = 0; asked < REQUESTS;) {
        uint64_t draw = test_random(&f->random);
        struct coordinator_counts counts;
        coordinator_counts(f->c, &counts);
        if (draw % 4 < 3 && counts.waiting < 90) {
            uint32_t r = asked++;
            /* The beginning of one of the last prompts, and more. */
            uint32_t of = r - (r < 40 ? r : 1 + (uint32_t)(test_random(&f->random) % 40));
            size_t begin = r % 7 ? test_random(&f->random) % (n_ids[of] + 1) : 0;
            size_t more = 1 + test_random(&f->random) % (r % 20 ? 40 : 200);
            if (begin + more > LENGTH)
                begin = 0;
            memcpy(ids[r], ids[of], begin * sizeof **ids);
            random_ids(f, ids[r] + begin, more);
            n_ids[r] = begin + more;
            limits[r] = 1 + (uint32_t)(test_random(&f->random) % (r % 10 ? 12 : 150));
            fake_ask(f, r % WORLD_CLIENTS, r, ids[r], n_ids[r], limits[r], r);
        }
        if (draw % 29 == 1 && asked) {
            uint32_t r =
                asked - 1 - (uint32_t)(test_random(&f->random) % (asked < 50 ? asked : 50));
            spoiled[r] = true;
            fake_cancel(f, r % WORLD_CLIENTS, r);
        }
        if (draw % 1000 == 2) {
            evicted += counts.blocks_evicted;
            fake_kill(f);
            fake_tick(f, 1000);
            fake_start(f);
            /* Now one pool is what is short, now the other. */
            fake_pools(f, 512 / BLOCK + (uint32_t)(draw >> 32) % 600, 45 + (draw >> 40) % 80);
        }
        if (!fake_step(f))
            fake_tick(f, 10);
    }
    fake_run(f);
    for (uint32_t r = 0; r < REQUESTS; r++)
        if (!spoiled[r])
            assert_answer(f, r, ids[r], n_ids[r], limits[r], r);
    struct coordinator_counts counts;
    coordinator_counts(f->c, &counts);
    preemptions = counts.preemptions;
    hits = counts.cached_tokens;
    evicted += counts.blocks_evicted;
    assert_int_equal(counts.finished, REQUESTS);
    assert_true(evicted > REQUESTS && preemptions > 100 && hits > REQUESTS);
    assert_nothing_is_held(f);
    fake_destroy(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sixty_four_clients_compute_a_shared_prompt_once),
        cmocka_unit_test(clients_join_while_the_shared_part_is_computed),
        cmocka_unit_test(a_cancelled_leader_is_followed_by_another),
        cmocka_unit_test(a_prompt_that_is_cached_whole_computes_its_last_block_again),
        cmocka_unit_test(a_conversation_goes_on_where_it_ended),
        cmocka_unit_test(boundaries_are_kept_longer_than_what_windows_pass),
        cmocka_unit_test(a_preempted_sequence_finds_its_blocks_again),
        cmocka_unit_test(a_lost_world_takes_the_cache_with_it),
        cmocka_unit_test(many_that_begin_behind_a_long_prefix_share_no_step),
        cmocka_unit_test(ten_thousand_requests_leak_nothing),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
