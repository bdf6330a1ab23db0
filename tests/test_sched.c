/*
 * Steps of equal cost: what the scheduler puts into steps when it knows what they cost. The ranks of
 * the fake world (world.h) take no time; the costs are given to the coordinator by hand.
 */
#include "tests/test.h"

#include <math.h>

#include "tests/tiny.h"
#include "tests/world.h"

/* Every stage: 1 ms a step, 20 µs a token, 20 ns for each position that a token attends to. */
static void set_costs(struct fake *f)
{
    f->c->costs_told = true; /* by nobody: nothing is learned from results */
    for (uint32_t s = 0; s < f->c->n_costs; s++) {
        struct cost_stage *stage = &f->c->costs[s];
        memset(stage->unit, 0, sizeof stage->unit);
        stage->unit[COST_STEP] = 1e-3;
        stage->unit[COST_TOKENS] = 20e-6;
        stage->unit[COST_PAIRS] = 20e-9;
        stage->full_layers = 1;
        stage->window_layers = 0;
        for (int i = 0; i < COST_TERMS; i++)
            stage->factor[i] = 1;
    }
}

static struct fake *world(uint32_t ranks, struct coordinator_options options)
{
    struct fake *f = fake_create(model, ranks, options);
    f->memory_free = 0;
    fake_start(f);
    set_costs(f);
    return f;
}

static Gptoss__Step *queued(struct fake *f, size_t i)
{
    assert_true(i < f->queued);
    Gptoss__Step *step = gptoss__step__unpack(NULL, f->queue[i].size, f->queue[i].bytes);
    assert_non_null(step);
    return step;
}

static double seconds_of(const struct fake *f, const Gptoss__Step *step)
{
    struct cost_work work = {0};
    for (size_t i = 0; i < step->n_rows; i++)
        cost_add(&work, model, step->rows[i]->position, step->rows[i]->count, 0);
    return cost_slowest(f->c->costs, f->c->n_costs, &work);
}

static void random_ids(uint64_t *random, uint32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        ids[i] = (uint32_t)(test_random(random) % 3000);
}

/* An answer of exactly so many tokens. */
static void ask(struct fake *f, uint32_t request, uint32_t prompt, uint32_t answer)
{
    static uint32_t ids[8192];
    char id[8];
    snprintf(id, sizeof id, "r%04u", request % 10000);
    random_ids(&f->random, ids, prompt);
    Gptoss__TokenIds tokens = GPTOSS__TOKEN_IDS__INIT;
    tokens.n_ids = prompt;
    tokens.ids = ids;
    Gptoss__Generate g = GPTOSS__GENERATE__INIT;
    g.request_id = core_binary(id, 5);
    g.prompt_case = GPTOSS__GENERATE__PROMPT_IDS;
    g.ids = &tokens;
    g.max_tokens = answer;
    g.ignore_eos = true;
    Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
    m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_GENERATE;
    m.generate = &g;
    fake_send(f, request % WORLD_CLIENTS, &m);
}

static const struct coordinator_options options = {
    .context = 8192, .sequences = 16, .step_tokens = 1024, .gap_us = 10000};

static void a_prompt_alone_gets_steps_as_large_as_there_are(void **state)
{
    (void)state;
    struct fake *f = world(1, options);
    ask(f, 0, 4000, 4);
    fake_tick(f, 10);
    Gptoss__Step *step = queued(f, 0);
    assert_int_equal(step->n_rows, 1);
    assert_int_equal(step->rows[0]->count, 1024);
    gptoss__step__free_unpacked(step, NULL);
    fake_destroy(f);
}

/* While another sequence decodes, no step takes longer than options.gap_us, chunks shrink with their
 * depth, and the other gets a token from every step. */
static void a_long_prompt_does_not_stall_the_tokens_of_others(void **state)
{
    (void)state;
    struct fake *f = world(1, options);
    ask(f, 0, 20, 2000);
    fake_tick(f, 10);
    for (int i = 0; i < 5; i++)
        fake_step(f);
    ask(f, 1, 7000, 4);
    fake_tick(f, 10);
    uint32_t done = 0, first = 0, last = 10000;
    while (done < 7000) {
        Gptoss__Step *step = queued(f, 0);
        bool decodes = false, chunk = false;
        for (size_t i = 0; i < step->n_rows; i++) {
            const Gptoss__Row *row = step->rows[i];
            decodes |= row->count == 1;
            if (row->count == 1)
                continue;
            assert_int_equal(row->position, done);
            done += row->count;
            first = first ? first : row->count;
            if (done < 7000) {
                if (row->count > last + 2) /* with a decode row or without */
                    fail_msg("%u tokens at %u after %u", row->count, row->position, last);
                last = row->count < last ? row->count : last;
            }
            chunk = true;
        }
        double seconds = seconds_of(f, step);
        if (seconds > 0.0101)
            fail_msg("a step of %.1f ms while another sequence decodes", seconds * 1e3);
        /* It uses the time that it may take. */
        if (chunk && done < 7000)
            assert_true(seconds > 0.008);
        assert_true(decodes || !chunk || f->queued > 1);
        gptoss__step__free_unpacked(step, NULL);
        fake_step(f);
    }
    assert_true(first > 300);      /* 450 tokens take 10 ms at the beginning, */
    assert_true(last < first / 3); /* 66 at position 6,000 */
    fake_destroy(f);
}

/* Many decode rows take longer than the gap by themselves: a prompt still gets twice as much. */
static void prompts_are_not_starved_by_decode_rows(void **state)
{
    (void)state;
    struct coordinator_options tight = options;
    tight.gap_us = 100;
    struct fake *f = world(1, tight);
    for (uint32_t r = 0; r < 10; r++)
        ask(f, r, 20, 2000);
    fake_tick(f, 10);
    for (int i = 0; i < 10; i++)
        fake_step(f);
    ask(f, 20, 3000, 4);
    fake_tick(f, 10);
    uint32_t steps = 0, done = 0;
    for (; done < 2999 && steps < 1000; steps++) {
        Gptoss__Step *step = queued(f, 0);
        struct cost_work decode = {0};
        for (size_t i = 0; i < step->n_rows; i++)
            if (step->rows[i]->count == 1)
                cost_add(&decode, model, step->rows[i]->position, 1, 0);
            else
                done += step->rows[i]->count;
        double alone = cost_slowest(f->c->costs, f->c->n_costs, &decode);
        assert_true(seconds_of(f, step) <= 3.05 * alone + 4 * 200e-6);
        gptoss__step__free_unpacked(step, NULL);
        fake_step(f);
    }
    if (done < 2999 || steps >= 400)
        fail_msg("%u tokens in %u steps", done, steps);
    fake_destroy(f);
}

/* More sequences decode than a step has tokens: they take turns, and leave some for a prompt. */
static void prompts_are_not_starved_by_small_steps(void **state)
{
    (void)state;
    struct coordinator_options small = options;
    small.step_tokens = 8;
    struct fake *f = world(1, small);
    for (uint32_t r = 0; r < 10; r++)
        ask(f, r, 2, 2000);
    fake_tick(f, 10);
    for (int i = 0; i < 40; i++)
        fake_step(f);
    ask(f, 20, 300, 4);
    fake_tick(f, 10);
    uint32_t steps = 0, done = 0, most = 0, given[16] = {0};
    for (; done < 299 && steps < 400; steps++) {
        Gptoss__Step *step = queued(f, 0);
        for (size_t i = 0; i < step->n_rows; i++)
            if (step->rows[i]->count == 1)
                given[step->rows[i]->slot]++;
            else
                done += step->rows[i]->count;
        gptoss__step__free_unpacked(step, NULL);
        fake_step(f);
    }
    uint32_t least = UINT32_MAX, n = 0;
    for (uint32_t slot = 0; slot < 16; slot++)
        if (given[slot] > 1) {
            n++;
            least = given[slot] < least ? given[slot] : least;
            most = given[slot] > most ? given[slot] : most;
        }

    if (done < 299 || n != 10 || most > least + 2)
        fail_msg("%u tokens of the prompt in %u steps; %u others got %u to %u", done, steps, n,
                 least, most);
    fake_destroy(f);
}

/* With four stages a prompt is cut so that all of them work on it, and its chunks follow one another
 * without waiting for results. */
static void chunks_of_one_prompt_fill_the_pipeline(void **state)
{
    (void)state;
    struct fake *f = world(4, options);
    ask(f, 0, 1000, 4);
    fake_tick(f, 10);
    assert_true(f->queued >= 4);
    uint32_t done = 0;
    for (size_t i = 0; i < f->queued; i++) {
        Gptoss__Step *step = queued(f, i);
        assert_int_equal(step->n_rows, 1);
        assert_int_equal(step->rows[0]->position, done);
        done += step->rows[0]->count;
        gptoss__step__free_unpacked(step, NULL);
    }
    if (done < 800)
        fail_msg("%u tokens in %zu steps", done, f->queued);
    fake_destroy(f);
}

/* Sequences of very different depths: the steps of one round of four stages cost about the same, hold
 * disjoint sequences and all of them. */
static void a_round_of_decode_steps_costs_each_about_the_same(void **state)
{
    (void)state;
    struct fake *f = world(4, options);
    static const uint32_t depths[] = {7000, 6000, 50, 60, 70, 3000, 80, 90, 100, 5000, 2000, 110};
    enum { N = sizeof depths / sizeof *depths };
    for (uint32_t r = 0; r < N; r++)
        ask(f, r, depths[r], 8000 - depths[r]);
    fake_tick(f, 10);
    for (int i = 0; i < 3000; i++)
        fake_step(f);
    for (uint32_t r = 0; r < N; r++)
        if (f->requests[r].tokens.count <= 5)
            fail_msg("request %u has %zu tokens", r, f->requests[r].tokens.count);
    /* From the weights alone: without what every step costs anyway. */
    double least = INFINITY, most = 0;
    bool seen[WORLD_SLOTS] = {false};
    size_t rows = 0;
    assert_true(f->queued >= 4);
    for (size_t i = 0; i < 4; i++) {
        Gptoss__Step *step = queued(f, i);
        double seconds = seconds_of(f, step) - 1e-3;
        least = fmin(least, seconds);
        most = fmax(most, seconds);
        for (size_t k = 0; k < step->n_rows; k++) {
            assert_false(seen[step->rows[k]->slot]);
            seen[step->rows[k]->slot] = true;
            rows++;
        }
        gptoss__step__free_unpacked(step, NULL);
    }
    /* 12 rows weigh 717 µs together, 179 a step; the deepest alone weighs 160. */
    if (rows + 1 < N || most > 1.9 * least)
        fail_msg("%zu rows; steps from %.0f to %.0f us", rows, least * 1e6, most * 1e6);
    fake_destroy(f);
}

/* Two stages, eight sequences. Where a row costs the same in any step, and stages are late now and then,
 * three groups keep something queued; where weights are what costs, two groups read them less often. The
 * steps of a round hold disjoint sequences, and all of them. */
static void there_are_more_groups_than_stages_where_that_is_quicker(void **state)
{
    (void)state;
    static const struct {
        double step, row, error;
        uint32_t groups;
    } cases[] = {{0, 10e-3, 0.05, 3}, {10e-3, 10e-3, 0.05, 2}, {0, 10e-3, 0, 2}};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct fake *f = world(2, options);
        for (uint32_t s = 0; s < f->c->n_costs; s++) {
            f->c->costs[s].unit[COST_STEP] = cases[k].step;
            f->c->costs[s].unit[COST_TOKENS] = cases[k].row;
            f->c->costs[s].unit[COST_PAIRS] = 0;
            f->c->costs[s].error = cases[k].error;
        }
        for (uint32_t r = 0; r < 8; r++)
            ask(f, r, 20, 500);
        fake_tick(f, 10);
        for (int i = 0; i < 100; i++)
            fake_step(f);
        assert_int_equal(f->c->groups, cases[k].groups);
        bool seen[WORLD_SLOTS] = {false};
        size_t rows = 0;
        assert_true(f->queued >= cases[k].groups);
        for (size_t i = 0; i < cases[k].groups; i++) {
            Gptoss__Step *step = queued(f, i);
            for (size_t row = 0; row < step->n_rows; row++, rows++) {
                assert_false(seen[step->rows[row]->slot]);
                seen[step->rows[row]->slot] = true;
            }
            gptoss__step__free_unpacked(step, NULL);
        }
        assert_int_equal(rows, 8);
        fake_destroy(f);
    }
}

/* Every answer is the same as alone, whatever the costs, the gap and the plan are. */
static void costs_change_no_token(void **state)
{
    (void)state;
    enum { REQUESTS = 24 };
    static uint32_t ids[REQUESTS][800];
    uint32_t lengths[REQUESTS], answers[REQUESTS];
    for (uint32_t round = 0; round < 24; round++) {
        uint64_t random = round + 1;
        struct coordinator_options o = {.context = 2048, .max_queue = 100};
        o.sequences = 1 + (uint32_t)(test_random(&random) % 12);
        o.step_tokens = 16 + (uint32_t)(test_random(&random) % 500);
        o.gap_us = 1 + test_random(&random) % 20000;
        struct fake *f = world(1 + round % 5, o);
        for (uint32_t r = 0; r < REQUESTS; r++) {
            lengths[r] = 1 + (uint32_t)(test_random(&random) % 700);
            answers[r] = 1 + (uint32_t)(test_random(&random) % 40);
            random_ids(&random, ids[r], lengths[r]);
            fake_ask(f, r, r, ids[r], lengths[r], answers[r], r);
        }
        struct coordinator_counts counts = {.running = 1};
        while (counts.running + counts.waiting) {
            fake_tick(f, 10);
            fake_step(f);
            for (uint32_t s = 0; s < f->c->n_costs; s++)
                f->c->costs[s].factor[test_random(&random) % COST_TERMS] =
                    0.02 + (double)(test_random(&random) % 5000) / 100;
            coordinator_counts(f->c, &counts);
        }
        for (uint32_t r = 0; r < REQUESTS; r++) {
            struct tokens want = {0};
            fake_answer(f->c, ids[r], lengths[r], answers[r], r, &want);
            const struct world_request *have = &f->requests[r];
            assert_true(have->finished);
            assert_int_equal(have->tokens.count, want.count);
            assert_memory_equal(have->tokens.ids, want.ids, want.count * sizeof *want.ids);
            tokens_free(&want);
        }
        assert_int_equal(counts.preemptions, 0); /* both pools are whole */
        fake_destroy(f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_prompt_alone_gets_steps_as_large_as_there_are),
        cmocka_unit_test(a_long_prompt_does_not_stall_the_tokens_of_others),
        cmocka_unit_test(prompts_are_not_starved_by_decode_rows),
        cmocka_unit_test(prompts_are_not_starved_by_small_steps),
        cmocka_unit_test(chunks_of_one_prompt_fill_the_pipeline),
        cmocka_unit_test(a_round_of_decode_steps_costs_each_about_the_same),
        cmocka_unit_test(there_are_more_groups_than_stages_where_that_is_quicker),
        cmocka_unit_test(costs_change_no_token),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
