/*
 * The steps that the bench issues, against ranks that are made of checks: loop_issue and loop_poll are
 * defined here, so no process is started.
 */
#include "tests/test.h"

#include "bench/loop.h"

enum { SLOTS = 64, BLOCKS_MAX = 4096, QUEUE_MAX = 64 };

/* The ranks' view of a slot. */
struct slot {
    uint32_t position; /* the next one */
    uint32_t full[BLOCKS_MAX], window[BLOCKS_MAX];
    uint32_t n_full, n_window, window_first, window_passed;
    uint32_t n_tokens, n_samples;
    uint32_t tokens[BLOCKS_MAX]; /* given */
    bool has_sample;
};

static struct {
    struct plan plan;
    struct gguf_model model;
    struct bench_world_options options;
    struct loop loop;
    struct slot slots[SLOTS];
    /* Owner of each block: slot + 1, 0: free. */
    uint8_t full_owner[BLOCKS_MAX], window_owner[BLOCKS_MAX];
    Gptoss__StepResult *queue[QUEUE_MAX]; /* results that wait, oldest first */
    uint32_t n_queue, queue_most;
    uint32_t n_steps, rows_most, tokens_most;
    int spoil; /* what the ranks do wrong */
} world;

static void free_result(Gptoss__StepResult *result)
{
    for (size_t i = 0; i < result->n_samples; i++)
        free(result->samples[i]);
    free(result->samples);
    free(result);
}

static uint32_t sample_of(uint32_t slot, uint32_t position)
{
    return (slot * 7919 + position * 31) % 1000;
}

static void give(uint8_t *owner, uint32_t *table, uint32_t *n, uint32_t slot,
                 const uint32_t *blocks, size_t n_blocks, uint32_t pool)
{
    for (size_t i = 0; i < n_blocks; i++) {
        assert_true(blocks[i] < pool);
        assert_int_equal(owner[blocks[i]], 0); /* nobody else has it */
        owner[blocks[i]] = (uint8_t)(slot + 1);
        table[(*n)++] = blocks[i];
    }
}

/* Between steps, what the windows have passed may be given to others. */
static void pass_windows(void)
{
    for (uint32_t s = 0; s < SLOTS; s++) {
        struct slot *slot = &world.slots[s];
        uint32_t end = slot->position + 1;
        uint32_t seen = end > world.model.window ? end - world.model.window : 0;
        for (; (slot->window_passed + 1) * world.plan.block_tokens <= seen; slot->window_passed++)
            world.window_owner[slot->window[slot->window_passed]] = 0;
    }
}

static void take_row(const Gptoss__Row *row)
{
    assert_true(row->slot < world.plan.sequences);
    struct slot *slot = &world.slots[row->slot];
    if (row->restart) {
        assert_int_equal(row->position, 0);
        memset(slot, 0, sizeof *slot);
    }
    slot->window_first += row->window_freed;
    give(world.full_owner, slot->full, &slot->n_full, row->slot, row->full_blocks,
         row->n_full_blocks, world.plan.full_blocks);
    give(world.window_owner, slot->window, &slot->n_window, row->slot, row->window_blocks,
         row->n_window_blocks, world.plan.window_blocks);

    uint32_t block = world.plan.block_tokens, end = row->position + row->count;
    assert_int_equal(row->position, slot->position);
    assert_true(row->count >= 1 && end <= world.plan.context);
    assert_true(slot->n_full * block >= end && slot->n_window * block >= end);
    /* The first row position sees `window` positions, itself included. */
    uint32_t seen =
        row->position + 1 > world.model.window ? row->position + 1 - world.model.window : 0;
    assert_true(slot->window_first * block <= seen);
    if (row->n_tokens == 0) {
        assert_int_equal(row->count, 1);
        assert_true(slot->has_sample);
    } else {
        assert_int_equal(row->n_tokens, row->count);
        memcpy(slot->tokens + slot->n_tokens, row->tokens, row->count * sizeof *row->tokens);
        slot->n_tokens += row->count;
    }
    slot->position = end;
    slot->has_sample = row->sample_from < row->count;
}

int loop_issue(struct loop *loop, Gptoss__Step *step, char *message, size_t message_size)
{
    (void)message;
    (void)message_size;
    uint32_t n_tokens = 0, n_samples = 0;
    bool seen[SLOTS] = {false};
    pass_windows();
    step->step = loop->next_step++;
    assert_true(step->n_rows >= 1 && step->n_rows <= world.plan.step_rows);
    assert_true(world.n_queue < world.plan.steps_in_flight);
    Gptoss__StepResult *result = malloc(sizeof *result);
    gptoss__step_result__init(result);
    result->step = step->step;
    result->samples = calloc(world.plan.step_samples + 1, sizeof *result->samples);
    for (uint32_t i = 0; i < step->n_rows; i++) {
        const Gptoss__Row *row = step->rows[i];
        assert_false(seen[row->slot]);
        seen[row->slot] = true;
        take_row(row);
        n_tokens += row->count;
        for (uint32_t p = row->sample_from; p < row->count; p++) {
            Gptoss__Sample *sample = malloc(sizeof *sample);
            gptoss__sample__init(sample);
            sample->row = i;
            sample->position = row->position + p;
            sample->token = sample_of(row->slot, sample->position);
            assert_true(n_samples < world.plan.step_samples);
            result->samples[n_samples++] = sample;
        }
    }
    result->n_samples = n_samples;
    assert_true(n_tokens <= world.plan.step_tokens);
    world.queue[world.n_queue++] = result;
    if (world.n_queue > world.queue_most)
        world.queue_most = world.n_queue;
    world.rows_most = step->n_rows > world.rows_most ? (uint32_t)step->n_rows : world.rows_most;
    world.tokens_most = n_tokens > world.tokens_most ? n_tokens : world.tokens_most;
    world.n_steps++;
    return 0;
}

int loop_busy(struct loop *loop, double *busy, char *message, size_t message_size)
{
    (void)loop;
    (void)message;
    (void)message_size;
    *busy = world.n_steps * 0.001;
    return 0;
}

int loop_poll(struct loop *loop, int timeout_ms, char *message, size_t message_size)
{
    (void)timeout_ms;
    assert_true(world.n_queue > 0);
    Gptoss__StepResult *result = world.queue[0];
    memmove(world.queue, world.queue + 1, --world.n_queue * sizeof *world.queue);
    if (world.spoil == 1)
        result->step++;
    if (world.spoil == 2 && result->n_samples)
        result->n_samples--;
    int status = loop->result(loop->arg, result, message, message_size);
    if (world.spoil == 2)
        result->n_samples++;
    free_result(result);
    return status;
}

static void make_world(uint32_t stages, uint32_t sequences, uint32_t context, uint32_t step_tokens)
{
    memset(&world, 0, sizeof world);
    uint32_t blocks = (context + 15) / 16, rows = sequences < step_tokens ? sequences : step_tokens;
    uint32_t touched = 128 + step_tokens - 1 < context ? 128 + step_tokens - 1 : context;
    world.plan = (struct plan){.n_stages = stages,
                               .context = context,
                               .sequences = sequences,
                               .block_tokens = 16,
                               .full_blocks = blocks * sequences,
                               .window_blocks = (touched / 16 + 2) * sequences,
                               .step_tokens = step_tokens,
                               .step_rows = rows,
                               .step_samples = rows,
                               .steps_in_flight = 2 * stages};
    assert_true(world.plan.full_blocks <= BLOCKS_MAX);
    world.model.window = 128;
    world.options.model = &world.model;
    world.options.vocabulary.limit = 1000;
    world.loop.options = &world.options;
    world.loop.plan = &world.plan;
    world.loop.next_step = 1;
}

static char err[512];

/* Runs a test twice in the same world and looks at what was computed and sampled. */
static void run_and_check(struct bench_test test)
{
    uint32_t samples = bench_test_samples(&test), first = test.n_prompt ? test.n_prompt : 1;
    uint32_t *ids = calloc((size_t)samples * test.sequences, sizeof *ids);
    uint32_t *prompt = calloc(test.n_depth + first, sizeof *prompt);
    for (uint64_t seed = 1; seed <= 2; seed++) {
        struct bench_sample sample = {.ids = ids};
        /* Nothing of the run before is read again: every sequence begins with a restart. */
        memset(world.full_owner, 0, sizeof world.full_owner);
        memset(world.window_owner, 0, sizeof world.window_owner);
        if (steps_run(&world.loop, &test, seed, &sample, err, sizeof err))
            fail_msg("%s", err);
        assert_int_equal(world.n_queue, 0);
        assert_true(sample.seconds >= 0);
        assert_true(sample.tokens == (double)test.sequences * (test.n_prompt + test.n_gen));
        for (uint32_t s = 0; s < test.sequences; s++) {
            const struct slot *slot = &world.slots[s];
            bench_prompt(&world.options.vocabulary, seed, s, prompt, test.n_depth + first);
            assert_int_equal(slot->n_tokens, test.n_depth + first);
            assert_memory_equal(slot->tokens, prompt, slot->n_tokens * sizeof *prompt);
            assert_int_equal(slot->position, test.n_depth + test.n_prompt + test.n_gen);
            for (uint32_t i = 0; i < samples; i++)
                assert_int_equal(ids[s * samples + i], sample_of(s, test.n_depth + first - 1 + i));
        }
    }
    free(prompt);
    free(ids);
}

static void every_test_becomes_steps_that_ranks_can_run(void **state)
{
    (void)state;
    static const struct bench_test tests[] = {
        {16, 0, 0, 1, 0},    {512, 0, 0, 1, 0},   {0, 8, 0, 1, 0},   {0, 128, 300, 1, 0},
        {100, 50, 77, 1, 0}, {33, 0, 0, 5, 0},    {0, 40, 0, 7, 0},  {0, 40, 100, 7, 0},
        {129, 9, 1, 3, 0},   {1, 1, 0, 4, 0},     {0, 1, 0, 1, 0},   {1, 0, 0, 1, 0},
        {0, 1, 600, 2, 0},   {257, 3, 255, 4, 0}, {0, 500, 0, 2, 0},
    };
    for (uint32_t stages = 1; stages <= 4; stages++)
        for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
            make_world(stages, tests[i].sequences, 1000, 64);
            run_and_check(tests[i]);
        }
}

static void steps_of_few_tokens_carry_many_sequences(void **state)
{
    (void)state;
    make_world(2, 20, 100, 8);
    run_and_check((struct bench_test){30, 20, 10, 20, 0});
    assert_true(world.rows_most <= 8 && world.tokens_most <= 8);
}

static void the_pipeline_is_kept_full(void **state)
{
    (void)state;
    make_world(4, 1, 1000, 64);
    run_and_check((struct bench_test){512, 0, 0, 1, 0});
    assert_int_equal(world.queue_most, 8);
    assert_int_equal(world.n_steps, 2 * 512 / 64);
    make_world(4, 8, 1000, 64);
    run_and_check((struct bench_test){0, 32, 0, 8, 0});
    assert_int_equal(world.queue_most, 8);
    assert_int_equal(world.rows_most, 2); /* four groups of two sequences */
    make_world(4, 1, 1000, 64);
    run_and_check((struct bench_test){0, 32, 0, 1, 0});
    assert_int_equal(world.queue_most, 8); /* one sequence runs ahead by reference */
}

static void results_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    for (int spoil = 1; spoil <= 2; spoil++) {
        uint32_t ids[64];
        struct bench_sample sample = {.ids = ids};
        make_world(2, 2, 1000, 64);
        world.spoil = spoil;
        err[0] = '\0';
        struct bench_test test = {.n_gen = 4, .sequences = 2};
        assert_int_equal(steps_run(&world.loop, &test, 1, &sample, err, sizeof err), -1);
        assert_true(err[0] != '\0');
        while (world.n_queue)
            free_result(world.queue[--world.n_queue]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_test_becomes_steps_that_ranks_can_run),
        cmocka_unit_test(steps_of_few_tokens_carry_many_sequences),
        cmocka_unit_test(the_pipeline_is_kept_full),
        cmocka_unit_test(results_that_do_not_fit_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
