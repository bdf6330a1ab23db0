/* When steps were where, from the lanes of a stage to the message that tells of it. */
#include "tests/test.h"

#include <time.h>

#include "worker/times.h"

static struct times *times;

static int set_up(void **state)
{
    (void)state;
    times = calloc(1, sizeof *times);
    return times ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    free(times);
    return 0;
}

/* Step n is received at 1000 n, and so on; the device works n µs on it. */
static void note(uint64_t n)
{
    times_note(times, &(struct times_step){
                          .step = n,
                          .received_us = 1000 * n,
                          .started_us = 1000 * n + 10,
                          .finished_us = 1000 * n + 500,
                          .sent_us = 1000 * n + 507,
                          .busy_us = (uint32_t)n,
                      });
}

static void check_message(const Gptoss__StepTimes *m, uint64_t first, size_t n)
{
    assert_non_null(m);
    assert_int_equal(m->first_step, first);
    assert_int_equal(m->origin_us, 1000 * first);
    assert_int_equal(m->n_received, n);
    assert_int_equal(m->n_started, n);
    assert_int_equal(m->n_finished, n);
    assert_int_equal(m->n_sent, n);
    assert_int_equal(m->n_busy, n);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(m->received[i], i ? 1000 : 0);
        assert_int_equal(m->started[i], 10);
        assert_int_equal(m->finished[i], 490);
        assert_int_equal(m->sent[i], 7);
        assert_int_equal(m->busy[i], first + i);
    }
}

static void each_step_is_told_once(void **state)
{
    (void)state;
    assert_null(times_take(times, 5));
    for (uint64_t n = 1; n <= 3; n++)
        note(n);
    check_message(times_take(times, 5), 1, 3);
    assert_int_equal(times->message.sent_us, 5);
    assert_null(times_take(times, 6));
    note(4);
    check_message(times_take(times, 7), 4, 1);
    assert_int_equal(times->message.n_head_busy, 0);
}

static void a_cut_head_is_told_where_there_is_one(void **state)
{
    (void)state;
    note(1);
    times_note(times, &(struct times_step){.step = 2,
                                           .received_us = 2000,
                                           .finished_us = 2500,
                                           .head_us = 30,
                                           .head_finished_us = 2600});
    const Gptoss__StepTimes *m = times_take(times, 5);
    assert_int_equal(m->n_head_busy, 2);
    assert_int_equal(m->n_head_finished, 2);
    assert_int_equal(m->head_busy[0], 0);
    assert_int_equal(m->head_busy[1], 30);
    assert_int_equal(m->head_finished[1], 100);
}

static void a_message_is_due_after_50_ms_or_when_there_is_much_to_tell(void **state)
{
    (void)state;
    uint64_t now = 1000000;
    assert_false(times_due(times, now));
    note(1);
    assert_true(times_due(times, now));
    times_take(times, now);
    assert_false(times_due(times, now + TIMES_INTERVAL_US));
    note(2);
    assert_false(times_due(times, now + TIMES_INTERVAL_US - 1));
    assert_true(times_due(times, now + TIMES_INTERVAL_US));
    for (uint64_t n = 3; n <= 1 + TIMES_KEPT / 2; n++)
        note(n);
    assert_false(times_due(times, now + 1));
    note(2 + TIMES_KEPT / 2);
    assert_true(times_due(times, now + 1));
}

static void what_nobody_asks_for_is_forgotten_oldest_first(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= 3 * TIMES_KEPT + 7; n++)
        note(n);
    check_message(times_take(times, 1), 2 * TIMES_KEPT + 8, TIMES_KEPT);
    assert_null(times_take(times, 1));
}

static void a_gap_begins_a_new_message(void **state)
{
    (void)state;
    note(1);
    note(2);
    note(9);
    const Gptoss__StepTimes *m = times_take(times, 1);
    assert_int_equal(m->first_step, 1);
    assert_int_equal(m->n_received, 2);
    m = times_take(times, 1);
    assert_int_equal(m->first_step, 9);
    assert_int_equal(m->n_received, 1);
}

static void clocks_that_stand_still_or_jump_do_not_wrap(void **state)
{
    (void)state;
    times_note(times, &(struct times_step){.step = 1, .received_us = 900, .started_us = 800});
    times_note(times, &(struct times_step){
                          .step = 2, .received_us = 900 + ((uint64_t)1 << 40), .started_us = 0});
    const Gptoss__StepTimes *m = times_take(times, 1);
    assert_int_equal(m->started[0], 0);
    assert_int_equal(m->received[1], UINT32_MAX);
    assert_int_equal(m->started[1], 0);
}

/* A step of the tiny model takes 100 µs and more: 1 % of it is 1 µs. Four clock readings, the note, and
 * its share of a message. */
static void recording_a_step_takes_less_than_a_microsecond(void **state)
{
    (void)state;
    enum { STEPS = 200000 };
    struct timespec begin, end, t;
    double best = 1e9;
    uint8_t bytes[16384];
    for (int round = 0; round < 5; round++) {
        size_t told = 0;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
        for (uint64_t n = 1; n <= STEPS; n++) {
            struct times_step s = {.step = n};
            uint64_t *const at[] = {&s.received_us, &s.started_us, &s.finished_us, &s.sent_us};
            for (size_t i = 0; i < 4; i++) {
                clock_gettime(CLOCK_MONOTONIC, &t);
                *at[i] = (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
            }
            s.busy_us = 100;
            s.head_us = 20;
            s.head_finished_us = s.finished_us + 30;
            times_note(times, &s);
            if (!times_due(times, s.sent_us))
                continue;
            const Gptoss__StepTimes *m = times_take(times, s.sent_us);
            assert_true(gptoss__step_times__get_packed_size(m) <= sizeof bytes);
            gptoss__step_times__pack(m, bytes);
            told += m->n_received;
        }
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
        times_take(times, 0);
        assert_true(told > STEPS / 2);
        double ns =
            ((double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec)) /
            STEPS;
        best = ns < best ? ns : best;
    }
    print_message("recording and telling a step takes %.0f ns\n", best);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true(best < 1000);
#endif
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(each_step_is_told_once),
        CASE(a_cut_head_is_told_where_there_is_one),
        CASE(a_message_is_due_after_50_ms_or_when_there_is_much_to_tell),
        CASE(what_nobody_asks_for_is_forgotten_oldest_first),
        CASE(a_gap_begins_a_new_message),
        CASE(clocks_that_stand_still_or_jump_do_not_wrap),
        CASE(recording_a_step_takes_less_than_a_microsecond),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
