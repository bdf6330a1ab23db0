/* The header of a step, as stages pass it on: what goes in comes out, and what is damaged is refused. */
#include "tests/test.h"

#include "worker/step.h"

#define EPOCH 0x1234567890abcdefu

static const struct step_bounds bounds = {
    .rows = 4,
    .tokens = 32,
    .samples = 8,
    .slots = 6,
    .context = 256,
    .blocks = 16,
    .full_blocks = 100,
    .window_blocks = 50,
};

static uint32_t prompt[] = {11, 12, 13, 14, 15};
static uint32_t full[] = {99, 7, 0}, window[] = {49, 3};
static Gptoss__Row rows[2];
static Gptoss__Row *row_list[] = {&rows[0], &rows[1]};
static Gptoss__Step message;
static char err[512];

/* A prompt of five tokens that samples its last two, and a token by reference. */
static int fresh_message(void **state)
{
    (void)state;
    gptoss__step__init(&message);
    message.step = 1841;
    message.n_rows = 2;
    message.rows = row_list;
    gptoss__row__init(&rows[0]);
    rows[0].slot = 5;
    rows[0].position = 251;
    rows[0].count = rows[0].n_tokens = 5;
    rows[0].tokens = prompt;
    rows[0].sample_from = 3;
    rows[0].n_full_blocks = 3;
    rows[0].full_blocks = full;
    rows[0].n_window_blocks = 2;
    rows[0].window_blocks = window;
    rows[0].full_freed = 1;
    rows[0].window_freed = 2;
    rows[0].restart = 1;
    rows[0].temperature = 0.75f;
    rows[0].top_k = 40;
    rows[0].top_p = 0.9f;
    rows[0].min_p = 0.05f;
    rows[0].seed = 0xfedcba9876543210u;
    rows[0].top_logits = 5;
    gptoss__row__init(&rows[1]);
    rows[1].slot = 2;
    rows[1].position = 17;
    rows[1].count = 1;
    rows[1].top_p = 1;
    return 0;
}

static void encode(struct step *step)
{
    assert_int_equal(step_init(step, &bounds, true), 0);
    if (step_from_message(step, &message, &bounds, EPOCH, err, sizeof err) != STEP_OK)
        fail_msg("%s", err);
}

static void copy_wire(struct step *to, const struct step *from)
{
    memcpy(to->bytes, from->bytes, from->size);
    to->size = from->size;
}

static void what_goes_in_comes_out_on_the_next_stage(void **state)
{
    (void)state;
    struct step first, next;
    encode(&first);
    assert_int_equal(step_init(&next, &bounds, false), 0);
    copy_wire(&next, &first);
    assert_int_equal(step_decode(&next, &bounds, EPOCH, err, sizeof err), STEP_OK);
    assert_int_equal(next.number, 1841);
    assert_int_equal(next.view.n_rows, 2);
    assert_int_equal(next.view.n_tokens, 6);
    assert_int_equal(next.view.n_samples, 3);
    assert_null(next.view.tokens);
    const struct kernels_row *r = &next.view.rows[0];
    assert_int_equal(r->slot, 5);
    assert_int_equal(r->position, 251);
    assert_int_equal(r->count, 5);
    assert_int_equal(r->sample_from, 3);
    assert_int_equal(r->full_given_count, 3);
    assert_memory_equal(r->full_given, full, sizeof full);
    assert_int_equal(r->window_given_count, 2);
    assert_memory_equal(r->window_given, window, sizeof window);
    assert_int_equal(r->full_freed, 1);
    assert_int_equal(r->window_freed, 2);
    assert_true(r->restart);
    assert_true(r->temperature == 0.75f && r->top_p == 0.9f && r->min_p == 0.05f);
    assert_int_equal(r->top_k, 40);
    assert_true(r->seed == 0xfedcba9876543210u);
    assert_int_equal(r->top_logits, 5);
    r = &next.view.rows[1];
    assert_int_equal(r->slot, 2);
    assert_false(r->restart);
    assert_int_equal(r->full_given_count, 0);
    step_free(&first);
    step_free(&next);
}

static void a_row_without_tokens_refers_to_the_last_sampled_one(void **state)
{
    (void)state;
    struct step step;
    encode(&step);
    for (int i = 0; i < 5; i++)
        assert_int_equal(step.view.tokens[i], prompt[i]);
    assert_int_equal(step.view.tokens[5], KERNELS_TOKEN_SAMPLED);
    step_free(&step);
}

static void drops_a_step_of_another_epoch(void **state)
{
    (void)state;
    struct step step;
    encode(&step);
    assert_int_equal(step_decode(&step, &bounds, EPOCH + 1, err, sizeof err), STEP_STALE);
    step_free(&step);
}

static void refuses_a_header_that_is_cut_at_any_byte_or_too_long(void **state)
{
    (void)state;
    struct step whole;
    encode(&whole);
    for (size_t size = 0; size <= whole.size + 8; size++) {
        /* Memory of exactly that size: a sanitizer sees what is read behind it. */
        struct step cut = {.size = size, .bytes = malloc(size ? size : 1)};
        cut.rows = calloc(bounds.rows, sizeof *cut.rows);
        memset(cut.bytes, 0, size);
        memcpy(cut.bytes, whole.bytes, size < whole.size ? size : whole.size);
        enum step_status want = size == whole.size ? STEP_OK : STEP_BAD;
        assert_int_equal(step_decode(&cut, &bounds, EPOCH, err, sizeof err), want);
        step_free(&cut);
    }
    step_free(&whole);
}

/* Every 32-bit word of the header, set to wild values: refused, stale, or within the bounds. */
static void holds_the_bounds_whatever_a_word_says(void **state)
{
    (void)state;
    static const uint32_t wild[] = {0, 1, 2, 5, 33, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff};
    struct step whole, step;
    encode(&whole);
    int refused = 0;
    for (size_t at = 0; at + 4 <= whole.size; at += 4)
        for (size_t v = 0; v < sizeof wild / sizeof *wild; v++) {
            assert_int_equal(step_init(&step, &bounds, false), 0);
            step.bytes = realloc(step.bytes, whole.size);
            copy_wire(&step, &whole);
            memcpy(step.bytes + at, &wild[v], 4);
            if (step_decode(&step, &bounds, EPOCH, err, sizeof err) == STEP_OK) {
                uint32_t tokens = 0, samples = 0;
                for (uint32_t i = 0; i < step.view.n_rows; i++) {
                    const struct kernels_row *r = &step.view.rows[i];
                    assert_true(r->slot < bounds.slots);
                    assert_true(r->position + (uint64_t)r->count <= bounds.context);
                    for (uint32_t b = 0; b < r->full_given_count; b++)
                        assert_true(r->full_given[b] < bounds.full_blocks);
                    for (uint32_t b = 0; b < r->window_given_count; b++)
                        assert_true(r->window_given[b] < bounds.window_blocks);
                    tokens += r->count;
                    samples += r->count - r->sample_from;
                }
                assert_int_equal(tokens, step.view.n_tokens);
                assert_int_equal(samples, step.view.n_samples);
                assert_true(samples <= bounds.samples && tokens <= bounds.tokens);
            } else
                refused++;
            step_free(&step);
        }
    assert_true(refused > 100);
    step_free(&whole);
}

static void refuses(const char *what)
{
    struct step step;
    assert_int_equal(step_init(&step, &bounds, true), 0);
    assert_int_equal(step_from_message(&step, &message, &bounds, EPOCH, err, sizeof err), STEP_BAD);
    if (strstr(err, what) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", err, what);
    step_free(&step);
}

static void refuses_a_message_that_breaks_a_bound(void **state)
{
    uint32_t many[40] = {0}, large[] = {1, 2, 3, 0x80000000u, 5}, block = 100;
    rows[0].slot = 6;
    refuses("row 0: no such slot (6)");
    fresh_message(state);
    rows[0].position = 252;
    refuses("beyond the context (256)");
    fresh_message(state);
    rows[0].position = UINT32_MAX - 1;
    refuses("beyond the context");
    fresh_message(state);
    rows[1].count = 0;
    refuses("row 1");
    fresh_message(state);
    rows[1].count = 2;
    refuses("as many tokens as it counts");
    fresh_message(state);
    rows[0].n_tokens = 4;
    refuses("as many tokens as it counts");
    fresh_message(state);
    rows[0].sample_from = 6;
    refuses("row 0");
    fresh_message(state);
    rows[0].tokens = large;
    refuses("no such token");
    fresh_message(state);
    rows[0].position = 0;
    rows[0].tokens = many;
    rows[0].count = rows[0].n_tokens = 32;
    refuses("33 tokens, allowed are 32");
    fresh_message(state);
    rows[0].position = 0;
    rows[0].tokens = many;
    rows[0].count = rows[0].n_tokens = 20;
    rows[0].sample_from = 0;
    refuses("21 samples, allowed are 8");
    fresh_message(state);
    rows[0].full_blocks = many;
    rows[0].n_full_blocks = 17;
    refuses("more blocks than a sequence has");
    fresh_message(state);
    rows[0].n_full_blocks = 1;
    rows[0].full_blocks = &block;
    refuses("no such block of the full pool (100)");
    fresh_message(state);
    rows[0].temperature = NAN;
    refuses("temperature");
    fresh_message(state);
    rows[0].top_logits = KERNELS_TOP_MAX + 1;
    refuses("too many logits");
    fresh_message(state);
    message.n_rows = 0;
    refuses("0 rows");
    message.n_rows = 5;
    refuses("5 rows, allowed are 4");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(what_goes_in_comes_out_on_the_next_stage, fresh_message),
        cmocka_unit_test_setup(a_row_without_tokens_refers_to_the_last_sampled_one, fresh_message),
        cmocka_unit_test_setup(drops_a_step_of_another_epoch, fresh_message),
        cmocka_unit_test_setup(refuses_a_header_that_is_cut_at_any_byte_or_too_long, fresh_message),
        cmocka_unit_test_setup(holds_the_bounds_whatever_a_word_says, fresh_message),
        cmocka_unit_test_setup(refuses_a_message_that_breaks_a_bound, fresh_message),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
