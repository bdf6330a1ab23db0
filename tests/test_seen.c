/* test_seen: what the status tells of single steps and of the last loss. */
#include "tests/test.h"

#include "coordinator/core.h"
#include "tests/tiny.h"
#include "tests/world.h"

#define STAGES 3

/* The caller frees it. Takes the answer before world.c does. */
static Gptoss__ServerMessage *ask(struct fake *f, uint32_t recent_steps)
{
    struct coordinator_event e;
    Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
    Gptoss__StatusRequest request = GPTOSS__STATUS_REQUEST__INIT;
    uint8_t bytes[64];
    char err[256];
    request.recent_steps = recent_steps;
    m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_STATUS;
    m.status = &request;
    size_t size = gptoss__client_message__pack(&m, bytes);
    fake_pump(f);
    coordinator_receive(f->c, COORDINATOR_CLIENTS, "observer", 8, bytes, size, f->now);
    assert_true(coordinator_take(f->c, &e));
    assert_int_equal(e.kind, COORDINATOR_SEND);
    Gptoss__ServerMessage *answer = (Gptoss__ServerMessage *)proto_unpack(
        &gptoss__server_message__descriptor, e.bytes, e.size, err, sizeof err);
    assert_non_null(answer);
    assert_int_equal(answer->body_case, GPTOSS__SERVER_MESSAGE__BODY_STATUS);
    fake_pump(f);
    return answer;
}

/* The stage had the step from 100 µs after its issue on, and worked 40 of the 50 µs before 160. */
static void told(struct fake *f, uint32_t stage, uint64_t step)
{
    uint32_t zero = 0, at[4] = {10, 50, 5, 40};
    Gptoss__StepTimes m = GPTOSS__STEP_TIMES__INIT;
    m.first_step = step;
    m.sent_us = f->now;
    m.origin_us = times_work(f->c, step)->issued_us + 100;
    m.n_received = m.n_started = m.n_finished = m.n_sent = m.n_busy = 1;
    m.received = &zero;
    m.started = &at[0];
    m.finished = &at[1];
    m.sent = &at[2];
    m.busy = &at[3];
    times_receive(f->c, stage, &m, f->now);
}

static struct fake *begin(void)
{
    static uint32_t ids[20];
    struct fake *f = fake_create(model, STAGES, (struct coordinator_options){.context = 4096});
    f->now += 5000000;
    fake_start(f);
    for (uint32_t s = 0; s < STAGES; s++)
        f->c->world.ranks[s].pid = 700 + s;
    for (uint32_t r = 0; r < 12; r++) {
        for (uint32_t i = 0; i < 20; i++)
            ids[i] = 5 + 31 * r + i;
        fake_ask(f, r % 8, r, ids, 20, 3000, r);
    }
    fake_tick(f, 10); /* their text is taken in, and steps go out */
    return f;
}

static void a_step_in_flight_is_on_the_first_stage_that_has_not_done_it(void **state)
{
    (void)state;
    struct fake *f = begin();
    for (int i = 0; i < 20; i++)
        fake_step(f);
    uint64_t oldest = f->c->oldest_step, next = f->c->next_step;
    assert_true(next - oldest >= 3);
    f->c->world.ranks[0].computed = oldest + 1; /* as a heartbeat says */
    told(f, 1, oldest);                         /* as the times say */
    f->now += 2000;
    Gptoss__ServerMessage *answer = ask(f, 0);
    const Gptoss__Status *s = answer->status;
    assert_int_equal(s->n_flight, next - oldest);
    for (size_t i = 0; i < s->n_flight; i++) {
        assert_int_equal(s->flight[i]->step, oldest + i);
        assert_int_equal(s->flight[i]->stage, i == 0 ? 2 : i == 1 ? 1 : 0);
        assert_true(s->flight[i]->rows >= 1 && s->flight[i]->seconds >= 0.002);
    }
    assert_int_equal(s->n_recent_steps, 0); /* nobody asked */
    assert_null(s->last_loss);
    assert_string_equal(s->stages[1]->state, "ready");
    assert_int_equal(s->stages[2]->pid, 702);
    assert_int_equal(s->stages[0]->computed, oldest + 1);
    assert_true(s->stages[0]->silent_seconds >= 0.002);
    proto_free(&answer->base);
    fake_destroy(f);
}

static void recent_steps_are_the_last_that_all_stages_told_of(void **state)
{
    (void)state;
    struct fake *f = begin();
    uint64_t n = 0;
    while (n < 300) {
        assert_true(fake_step(f));
        for (; n + 1 < f->c->oldest_step; n++)
            for (uint32_t s = 0; s < STAGES; s++)
                told(f, s, n + 1);
    }
    for (uint64_t step = n + 1; step < f->c->next_step; step++)
        told(f, 0, step); /* the others have not */
    static const uint32_t wanted[][2] = {{1, 1}, {5, 5}, {1000000, SEEN_STEPS_MAX}};
    for (size_t w = 0; w < 3; w++) {
        Gptoss__ServerMessage *answer = ask(f, wanted[w][0]);
        const Gptoss__Status *s = answer->status;
        assert_int_equal(s->n_recent_steps, wanted[w][1]);
        for (size_t i = 0; i < s->n_recent_steps; i++) {
            const Gptoss__TraceStep *t = s->recent_steps[i];
            assert_int_equal(t->step, n + 1 + i - s->n_recent_steps);
            assert_int_equal(t->n_at, TRACE_STAGE_NUMBERS * STAGES);
            for (size_t k = 0; k < STAGES; k++) {
                const int32_t *at = t->at + TRACE_STAGE_NUMBERS * k;
                assert_true(at[0] == 100 && at[1] == 10 && at[2] == 50 && at[4] == 40);
            }
        }
        proto_free(&answer->base);
    }
    fake_destroy(f);
}

static void a_young_pipeline_has_few_recent_steps(void **state)
{
    (void)state;
    struct fake *f = begin();
    Gptoss__ServerMessage *answer = ask(f, 48); /* no stage has told of any */
    assert_int_equal(answer->status->n_recent_steps, 0);
    proto_free(&answer->base);
    for (uint32_t s = 0; s < STAGES; s++)
        told(f, s, 1);
    answer = ask(f, 48);
    assert_int_equal(answer->status->n_recent_steps, 1);
    proto_free(&answer->base);
    fake_destroy(f);
}

static void a_loss_is_remembered_with_who_and_for_how_long(void **state)
{
    (void)state;
    struct fake *f = begin();
    for (int i = 0; i < 20; i++)
        fake_step(f);
    uint64_t epoch = f->c->world.epoch;
    assert_true(coordinator_rank_ended(f->c, 701, "was killed", f->now));
    fake_forget(f);
    f->now += 300000;
    Gptoss__ServerMessage *answer = ask(f, 48);
    const Gptoss__Status *s = answer->status;
    assert_non_null(s->last_loss);
    assert_int_equal(s->last_loss->epoch, epoch);
    assert_int_equal(s->last_loss->stage_given_case, GPTOSS__LOSS__STAGE_GIVEN_STAGE);
    assert_int_equal(s->last_loss->stage, 1);
    assert_int_equal(s->last_loss->pid, 701);
    assert_non_null(strstr(s->last_loss->text, "(pid 701) was killed"));
    assert_false(s->last_loss->over);
    assert_true(s->last_loss->seconds == 0.3 && s->last_loss->down_seconds == 0.3);
    assert_int_equal(s->n_stages + s->n_flight + s->n_recent_steps, 0);
    proto_free(&answer->base);

    /* Those who come next are lost before they serve: it has been down since the first loss. */
    f->now += 200000;
    seen_lost(f->c, NULL, "the next ones", f->now);
    fake_start(f);
    f->now += 500000;
    answer = ask(f, 0);
    assert_true(answer->status->ready && answer->status->last_loss->over);
    assert_string_equal(answer->status->last_loss->text, "the next ones");
    assert_true(answer->status->last_loss->down_seconds == 0.5);
    assert_true(answer->status->last_loss->seconds == 1.0);
    proto_free(&answer->base);

    /* A loss that nobody is to blame for. */
    fake_kill(f);
    answer = ask(f, 0);
    assert_int_equal(answer->status->last_loss->stage_given_case,
                     GPTOSS__LOSS__STAGE_GIVEN__NOT_SET);
    assert_true(answer->status->last_loss->epoch > epoch && !answer->status->last_loss->over);
    proto_free(&answer->base);
    fake_destroy(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_in_flight_is_on_the_first_stage_that_has_not_done_it),
        cmocka_unit_test(recent_steps_are_the_last_that_all_stages_told_of),
        cmocka_unit_test(a_young_pipeline_has_few_recent_steps),
        cmocka_unit_test(a_loss_is_remembered_with_who_and_for_how_long),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
