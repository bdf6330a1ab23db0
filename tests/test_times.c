/*
 * Where steps were: clocks, what ranks tell, and how full the pipeline was.
 */
#include "tests/test.h"

#include <time.h>

#include "tests/tiny.h"
#include "tests/world.h"

/* ── clocks ────────────────────────────────────────────────────────────────────────────────── */

/* A rank whose clock is `behind` µs behind; the ways take `there` and `back`, the answer `pause`. */
static void echo(struct times_clock *clock, uint64_t t0, int64_t behind, uint64_t there,
                 uint64_t pause, uint64_t back)
{
    uint64_t t1 = (uint64_t)((int64_t)(t0 + there) - behind);
    times_clock_echo(clock, t0, t1, t1 + pause, t0 + there + pause + back);
}

static void a_clock_is_known_within_half_of_the_way(void **state)
{
    (void)state;
    static const int64_t behind[] = {3600000000, -3600000000, 1000000, -20000};
    for (size_t i = 0; i < 4; i++) {
        struct times_clock clock = {0};
        uint64_t error, t0 = 7200000000u;
        assert_int_equal(times_clock_offset(&clock, t0, &error), 0);
        assert_true(error == UINT64_MAX);
        echo(&clock, t0, behind[i], 100, 50, 300);
        int64_t got = times_clock_offset(&clock, t0 + 450, &error);
        assert_in_range(error, 200, 202);
        assert_true(llabs(got - behind[i]) <= 200);
        /* A worse one does not count, a better one does. */
        echo(&clock, t0 + 1000000, behind[i], 100, 10, 9000);
        assert_true(llabs(times_clock_offset(&clock, t0 + 1010000, NULL) - behind[i]) <= 200);
        echo(&clock, t0 + 2000000, behind[i], 12, 10, 10);
        assert_true(llabs(times_clock_offset(&clock, t0 + 2000100, NULL) - behind[i]) <= 12);
    }
}

static void ranks_that_may_read_our_clock_have_no_offset(void **state)
{
    (void)state;
    struct times_clock clock = {0};
    echo(&clock, 5000000, 0, 900, 40, 20);
    assert_int_equal(times_clock_offset(&clock, 5001000, NULL), 0);
}

static void an_old_echo_gives_way_because_clocks_drift(void **state)
{
    (void)state;
    struct times_clock clock = {0};
    echo(&clock, 10000000, 1000000, 10, 10, 10);
    echo(&clock, 110000000, 1004000, 300, 10, 300); /* 100 s later, 4 ms further */
    assert_true(llabs(times_clock_offset(&clock, 110001000, NULL) - 1004000) <= 300);
}

static void echoes_that_cannot_be_are_not_believed(void **state)
{
    (void)state;
    struct times_clock clock = {0};
    uint64_t error;
    times_clock_echo(&clock, 0, 5, 6, 7);        /* the rank has heard nothing yet */
    times_clock_echo(&clock, 100, 9, 8, 200);    /* left before it came */
    times_clock_echo(&clock, 300, 5, 6, 200);    /* from the future */
    times_clock_echo(&clock, 100, 5, 5000, 200); /* took longer than it took */
    times_clock_echo(&clock, 1, UINT64_MAX, UINT64_MAX, 20);
    times_clock_offset(&clock, 200, &error);
    assert_true(error == UINT64_MAX);
}

static void before_any_echo_a_message_gives_a_guess(void **state)
{
    (void)state;
    struct times_clock clock = {0};
    times_clock_guess(&clock, 5000000, 905000000);
    assert_int_equal(times_clock_offset(&clock, 905000000, NULL), 900000000);
    echo(&clock, 906000000, 899999000, 10, 10, 10);
    assert_int_equal(times_clock_offset(&clock, 906000100, NULL), 899999000);
    clock = (struct times_clock){0};
    times_clock_guess(&clock, 5000000, 5300000);
    assert_int_equal(times_clock_offset(&clock, 5300000, NULL), 0);
}

/* ── what ranks tell ───────────────────────────────────────────────────────────────────────── */

/* Times of `n` steps from `first` on: one a millisecond, from `origin`. */
static void receive(struct fake *f, uint32_t stage, uint64_t first, size_t n, uint64_t origin)
{
    static uint32_t gaps[64], tens[64];
    assert_true(n <= 64);
    for (size_t i = 0; i < 64; i++) {
        gaps[i] = i ? 1000 : 0;
        tens[i] = 10;
    }
    Gptoss__StepTimes m = GPTOSS__STEP_TIMES__INIT;
    m.first_step = first;
    m.origin_us = origin;
    m.sent_us = f->now;
    m.n_received = m.n_started = m.n_finished = m.n_sent = m.n_busy = n;
    m.received = gaps;
    m.started = m.finished = m.sent = m.busy = tens;
    times_receive(f->c, stage, &m, f->now);
}

static struct fake *world_with_steps(uint32_t ranks, uint64_t *steps)
{
    static uint32_t ids[40];
    struct fake *f = fake_create(model, ranks, (struct coordinator_options){.context = 1024});
    for (uint32_t i = 0; i < 40; i++)
        ids[i] = i + 5;
    fake_start(f);
    fake_ask(f, 0, 1, ids, 40, 20, 7);
    for (int i = 0; i < 8; i++) {
        fake_tick(f, 10);
        fake_step(f);
    }
    *steps = f->c->next_step - 1;
    return f;
}

static void each_step_is_kept_with_its_work_and_handed_on(void **state)
{
    (void)state;
    uint64_t steps;
    struct fake *f = world_with_steps(3, &steps);
    assert_true(steps >= 8);
    receive(f, 0, 1, 3, f->now - 50000);
    receive(f, 1, 1, 1, f->now - 49000);
    receive(f, 1, 3, 2, f->now - 48000); /* step 2 got lost */
    for (uint64_t step = 1; step <= 4; step++)
        assert_int_equal(times_stage_step(f->c, 1, step) != NULL, step != 2);
    const struct times_work *work = times_work(f->c, 1);
    assert_non_null(work);
    assert_int_equal(work->rows, 1);
    assert_int_equal(work->decode_rows, 0);
    assert_int_equal(work->prompt_tokens, 40);
    assert_int_equal(work->samples, 1);
    assert_int_equal(work->kv_read, 40);
    assert_int_equal(work->kv_pairs, 820);
    assert_true(work->done_us >= work->issued_us && work->issued_us > 0);
    work = times_work(f->c, 2);
    assert_int_equal(work->decode_rows, 1);
    assert_int_equal(work->prompt_tokens, 0);
    assert_int_equal(work->kv_read, 41);
    assert_null(times_work(f->c, steps + 1));
    assert_null(times_work(f->c, 0));
    const struct coordinator_stage_step *s = times_stage_step(f->c, 0, 3);
    assert_non_null(s);
    assert_int_equal(s->received_us, f->now - 48000);
    assert_int_equal(s->started_us, f->now - 47990);
    assert_int_equal(s->finished_us, f->now - 47980);
    assert_int_equal(s->sent_us, f->now - 47970);
    assert_null(times_stage_step(f->c, 1, 2));
    assert_null(times_stage_step(f->c, 2, 1));
    assert_null(times_stage_step(f->c, 3, 1));
    assert_int_equal(times_last(f->c, 1), 4);
    fake_destroy(f);
}

/* Ranks 1 and 2 are on a host whose clock is an hour behind; rank 2 alone knows it well. */
static void times_of_another_host_are_brought_to_our_clock(void **state)
{
    (void)state;
    const int64_t hour = 3600000000;
    uint64_t steps;
    struct fake *f = world_with_steps(3, &steps);
    f->now += 2 * (uint64_t)hour;
    for (uint32_t i = 1; i < 3; i++) {
        strcpy(f->c->world.ranks[i].host, "there");
        echo(&f->c->world.ranks[i].clock, f->now, hour, i == 1 ? 40000 : 20, 10, 20);
    }
    f->now += 50000;
    for (uint32_t i = 0; i < 3; i++)
        receive(f, i, 1, 1, f->now - (i ? (uint64_t)hour : 0));
    assert_int_equal(times_stage_step(f->c, 0, 1)->received_us, f->now);
    assert_int_equal(times_stage_step(f->c, 1, 1)->received_us, f->now);
    assert_int_equal(times_stage_step(f->c, 2, 1)->received_us, f->now);
    fake_destroy(f);
}

static void times_of_steps_that_were_not_are_dropped(void **state)
{
    (void)state;
    uint64_t steps;
    struct fake *f = world_with_steps(2, &steps);
    receive(f, 0, 2, 2, f->now);
    assert_int_equal(times_last(f->c, 0), 3);
    const struct coordinator_stage_step third = *times_stage_step(f->c, 0, 3);
    f->now += 1000;
    receive(f, 0, 3, 1, f->now);          /* again */
    receive(f, 0, 0, 1, f->now);          /* no step */
    receive(f, 0, steps, 2, f->now);      /* beyond what was issued */
    receive(f, 0, UINT64_MAX, 2, f->now); /* wraps */
    receive(f, 0, 4, 0, f->now);          /* nothing */
    receive(f, 2, 1, 1, f->now);          /* no such stage */
    Gptoss__StepTimes m = GPTOSS__STEP_TIMES__INIT;
    uint32_t one[2] = {1, 1};
    m.first_step = 4;
    m.n_received = m.n_started = m.n_finished = m.n_sent = 2;
    m.n_busy = 1; /* arrays of unlike lengths */
    m.received = m.started = m.finished = m.sent = m.busy = one;
    times_receive(f->c, 0, &m, f->now);
    assert_int_equal(times_last(f->c, 0), 3);
    assert_memory_equal(times_stage_step(f->c, 0, 3), &third, sizeof third);
    assert_null(times_stage_step(f->c, 0, steps));
    /* The next world begins at step 1 again. */
    fake_kill(f);
    assert_null(f->c->times);
    receive(f, 0, 1, 1, f->now);
    fake_start(f);
    fake_tick(f, 10);
    receive(f, 0, 1, 1, f->now);
    assert_int_equal(times_last(f->c, 0), 1);
    fake_destroy(f);
}

/* ── occupancy ─────────────────────────────────────────────────────────────────────────────── */

#define KEPT 16

static struct coordinator_stage_step rings[3][KEPT];
static const struct coordinator_stage_step *const stages[3] = {rings[0], rings[1], rings[2]};
static uint64_t last[3];
static double busy[3], hops[3];

static void put(uint32_t stage, uint64_t step, uint64_t started, uint64_t finished, uint32_t worked)
{
    rings[stage][step % KEPT] = (struct coordinator_stage_step){
        .step = step,
        .received_us = started,
        .started_us = started,
        .finished_us = finished,
        .sent_us = finished,
        .head_finished_us = finished,
        .busy_us = worked,
    };
    last[stage] = step;
}

static int clear(void **state)
{
    (void)state;
    memset(rings, 0, sizeof rings);
    memset(last, 0, sizeof last);
    return 0;
}

static struct coordinator_occupancy occupancy(uint32_t n, const uint64_t *until, uint64_t from,
                                              uint64_t to)
{
    struct coordinator_occupancy o = {.busy = busy, .hop_seconds = hops};
    coordinator_occupancy(&o, stages, KEPT, last, until, n, from, to);
    return o;
}

static void bubbles_and_hops_of_a_pipeline_by_hand(void **state)
{
    (void)state;
    /* Two stages; stage 0 works 600 of each 1000 µs, stage 1 400; the hop takes 50. */
    for (uint64_t n = 1; n <= 10; n++) {
        put(0, n, 1000 * n, 1000 * n + 600, 600);
        put(1, n, 1000 * n + 650, 1000 * n + 1050, 400);
    }
    struct coordinator_occupancy o = occupancy(2, NULL, 2000, 10000);
    assert_true(fabs(o.seconds - 0.008) < 1e-9);
    assert_true(fabs(busy[0] - 0.6) < 1e-9);
    assert_true(fabs(busy[1] - 0.4) < 1e-3); /* 50 µs of step 1 are within, of step 9 not */
    assert_true(fabs(o.bubble - 0.5) < 1e-3);
    assert_int_equal(o.steps, 8);
    assert_int_equal(o.hops, 8);
    assert_true(fabs(o.hop_mean_seconds - 50e-6) < 1e-12);
    assert_true(fabs(hops[1] - 50e-6) < 1e-12);
    assert_true(hops[0] == 0);
}

static void a_full_pipeline_has_no_bubble_and_time_in_a_queue_is_no_work(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= 8; n++)
        for (uint32_t s = 0; s < 3; s++) /* given to the device two steps ahead */
            put(s, n, 1000 * (n + s) - 2000 + 2000, 1000 * (n + s) + 1000, 1000);
    struct coordinator_occupancy o = occupancy(3, NULL, 4000, 9000);
    assert_true(fabs(o.bubble) < 1e-9);
    for (uint32_t s = 0; s < 3; s++)
        assert_true(fabs(busy[s] - 1) < 1e-9);
}

static void a_part_of_the_head_is_work_too(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= 10; n++) {
        put(0, n, 1000 * n, 1000 * n + 600, 600);
        rings[0][n].head_us = 100;
        rings[0][n].head_finished_us =
            1000 * n + 1400; /* while the next step has its turn: over it */
    }
    struct coordinator_occupancy o = occupancy(1, NULL, 4000, 8000);
    assert_true(fabs(busy[0] - 0.7) < 1e-9);
    o = occupancy(1, NULL, 8350, 8399); /* within step 7's, after which step 8 was begun */
    assert_true(o.seconds > 0 && fabs(busy[0] - 1) < 1e-9);
}

static void an_idle_pipeline_is_all_bubble(void **state)
{
    (void)state;
    put(0, 1, 1000, 1500, 500);
    put(1, 1, 1600, 2000, 400);
    struct coordinator_occupancy o = occupancy(2, NULL, 10000, 20000);
    assert_true(o.seconds > 0 && o.bubble == 1 && o.hops == 0 && o.steps == 0);
    o = occupancy(0, NULL, 10000, 20000);
    assert_true(o.seconds == 0);
}

static void the_window_is_what_all_stages_have_told_of(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= 40; n++)
        put(0, n, 1000 * n, 1000 * n + 1000, 1000);
    for (uint64_t n = 1; n <= 30; n++)
        put(1, n, 1000 * n + 1000, 1000 * n + 1500, 500);
    /* Stage 0's ring begins with step 25, stage 1 has told until 31.5 ms. */
    const uint64_t until[2] = {41000, 31500};
    struct coordinator_occupancy o = occupancy(2, until, 0, 50000);
    assert_true(fabs(o.seconds - (0.0315 - 0.0265)) < 1e-9);
    assert_true(fabs(busy[0] - 1) < 1e-9);
    assert_true(fabs(busy[1] - 0.5) < 1e-9);
    const uint64_t nothing[2] = {0, 0};
    o = occupancy(2, nothing, 0, 50000);
    assert_true(o.seconds == 0);
}

/* An edge in the order of the device's stream: the step is queued before its inputs are there. */
static void a_hop_shows_only_where_the_device_had_waited_for_it(void **state)
{
    (void)state;
    put(0, 1, 1000, 2000, 1000);
    put(0, 2, 2000, 3000, 1000);
    put(1, 1, 1100, 2840, 800);  /* began at 2040: idle before, 40 µs after the inputs were made */
    put(1, 2, 1200, 4000, 1160); /* began right behind the first */
    struct coordinator_occupancy o = occupancy(2, NULL, 0, 5000);
    assert_int_equal(o.hops, 1);
    assert_true(fabs(o.hop_mean_seconds - 40e-6) < 1e-12);
}

static void the_status_of_a_world_comes_from_what_the_ranks_tell(void **state)
{
    (void)state;
    uint64_t steps;
    struct fake *f = world_with_steps(2, &steps);
    struct coordinator_occupancy o = {.busy = busy, .hop_seconds = hops};
    times_occupancy(f->c, 1, f->now, &o);
    assert_true(o.steps == 0);
    f->now += 2000000;
    for (uint64_t n = 1; n <= steps; n++) {
        receive(f, 0, n, 1, f->now - 20000 + 1000 * n);
        receive(f, 1, n, 1, f->now - 20000 + 1000 * n + 30);
    }
    times_occupancy(f->c, 1, f->now, &o);
    assert_int_equal(o.steps, steps);
    assert_int_equal(o.hops, steps);
    assert_true(fabs(o.hop_mean_seconds - 20e-6) < 1e-9);
    assert_true(fabs(o.seconds - 1) < 1e-9);
    assert_true(fabs(busy[0] - 10e-6 * (double)steps) < 1e-9);
    fake_destroy(f);
}

/* All stages' times of all steps come through the coordinator's one thread. */
static void taking_a_steps_times_takes_a_fraction_of_a_microsecond(void **state)
{
    (void)state;
    enum { STEPS = 64, ROUNDS = 2000 };
    uint64_t steps, taken = 0;
    struct fake *f = world_with_steps(1, &steps);
    struct timespec begin, end;
    uint32_t n[STEPS];
    double best = 1e9;
    for (uint32_t i = 0; i < STEPS; i++)
        n[i] = 1000 + 13 * i;
    Gptoss__StepTimes m = GPTOSS__STEP_TIMES__INIT;
    m.origin_us = f->now;
    m.sent_us = f->now;
    m.n_received = m.n_started = m.n_finished = m.n_sent = m.n_busy = STEPS;
    m.received = m.started = m.finished = m.sent = m.busy = n;
    struct step step = {.n_rows = 0};
    for (int round = 0; round < 5; round++) {
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
        for (int k = 0; k < ROUNDS; k++, taken += STEPS) {
            uint8_t bytes[4096];
            char err[256];
            m.first_step = steps + taken + 1;
            step.number = steps + taken + STEPS; /* the newest that was issued */
            times_issued(f->c, &step, f->now);
            size_t size = gptoss__step_times__pack(&m, bytes);
            Gptoss__StepTimes *got = (Gptoss__StepTimes *)proto_unpack(
                &gptoss__step_times__descriptor, bytes, size, err, sizeof err);
            assert_non_null(got);
            times_receive(f->c, 0, got, f->now);
            proto_free(&got->base);
        }
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
        double ns =
            ((double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec)) /
            (ROUNDS * STEPS);
        best = ns < best ? ns : best;
    }
    assert_int_equal(times_last(f->c, 0), steps + taken);
    print_message("taking the times of a step on a stage takes %.0f ns\n", best);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true(best < 1000);
#endif
    fake_destroy(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_clock_is_known_within_half_of_the_way),
        cmocka_unit_test(ranks_that_may_read_our_clock_have_no_offset),
        cmocka_unit_test(an_old_echo_gives_way_because_clocks_drift),
        cmocka_unit_test(echoes_that_cannot_be_are_not_believed),
        cmocka_unit_test(before_any_echo_a_message_gives_a_guess),
        cmocka_unit_test(each_step_is_kept_with_its_work_and_handed_on),
        cmocka_unit_test(times_of_another_host_are_brought_to_our_clock),
        cmocka_unit_test(times_of_steps_that_were_not_are_dropped),
        cmocka_unit_test_setup(bubbles_and_hops_of_a_pipeline_by_hand, clear),
        cmocka_unit_test_setup(a_full_pipeline_has_no_bubble_and_time_in_a_queue_is_no_work, clear),
        cmocka_unit_test_setup(a_part_of_the_head_is_work_too, clear),
        cmocka_unit_test_setup(an_idle_pipeline_is_all_bubble, clear),
        cmocka_unit_test_setup(the_window_is_what_all_stages_have_told_of, clear),
        cmocka_unit_test_setup(a_hop_shows_only_where_the_device_had_waited_for_it, clear),
        cmocka_unit_test(the_status_of_a_world_comes_from_what_the_ranks_tell),
        cmocka_unit_test(taking_a_steps_times_takes_a_fraction_of_a_microsecond),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
