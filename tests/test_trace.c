/*
 * A trace, as the coordinator sends it: every step once, on every stage, in bounded parts.
 */
#include "tests/test.h"

#include "tests/tiny.h"
#include "tests/world.h"

#define STAGES   3
#define WATCHERS 6

/* What clients "w0", "w1", … were sent. */
static struct {
    uint64_t steps[8192];
    size_t n_steps, parts;
    uint32_t stages, missing;
    bool last, refused;
    char why[256];
} watchers[WATCHERS];

static void take_part(uint32_t who, const Gptoss__TracePart *p)
{
    assert_false(watchers[who].last);
    watchers[who].parts++;
    if (p->n_stages) {
        assert_int_equal(watchers[who].stages, 0);
        watchers[who].stages = (uint32_t)p->n_stages;
        assert_string_equal(p->stages[0]->host, "here");
        assert_true(p->stages[1]->layer_first == p->stages[0]->layer_count);
    }
    for (size_t i = 0; i < p->n_steps; i++) {
        const Gptoss__TraceStep *s = p->steps[i];
        assert_int_equal(s->n_at, 7 * STAGES);
        assert_true(s->rows > 0 && s->in_flight > 0 && s->kv_full_blocks_used > 0);
        for (size_t k = 0; k < STAGES; k++) {
            watchers[who].missing += s->at[7 * k + 1] < 0;
            if (s->at[7 * k + 1] >= 0) {
                assert_int_equal(s->at[7 * k], 100 * ((int)k + 1) - 150);
                assert_int_equal(s->at[7 * k + 4], 40);
            }
        }
        watchers[who].steps[watchers[who].n_steps++] = s->step;
    }
    watchers[who].last = p->last;
    snprintf(watchers[who].why, sizeof watchers[who].why, "%s", p->text);
}

/* As fake_pump, but what goes to watchers is taken here. */
/* Of the world's events, those for the watchers. */
static bool take(const struct coordinator_event *e)
{
    const char *peer = (const char *)e->peer;
    char err[256];
    if (e->side != COORDINATOR_CLIENTS || e->peer_size != 2 || peer[0] != 'w')
        return false;
    assert_true(e->size <= PROTO_MESSAGE_MAX);
    Gptoss__ServerMessage *m = (Gptoss__ServerMessage *)proto_unpack(
        &gptoss__server_message__descriptor, e->bytes, e->size, err, sizeof err);
    assert_non_null(m);
    uint32_t who = (uint32_t)(peer[1] - '0');
    assert_true(who < WATCHERS);
    if (m->body_case == GPTOSS__SERVER_MESSAGE__BODY_TRACE)
        take_part(who, m->trace);
    else
        watchers[who].refused = m->body_case == GPTOSS__SERVER_MESSAGE__BODY_REFUSED;
    proto_free(&m->base);
    return true;
}

static void watch(struct fake *f, uint32_t who, double seconds, bool past)
{
    Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
    Gptoss__TraceRequest request = GPTOSS__TRACE_REQUEST__INIT;
    uint8_t bytes[64];
    char peer[3] = {'w', (char)('0' + who), 0};
    request.seconds = seconds;
    request.past = past;
    m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_TRACE;
    m.trace = &request;
    size_t size = gptoss__client_message__pack(&m, bytes);
    coordinator_receive(f->c, COORDINATOR_CLIENTS, peer, 2, bytes, size, f->now);
    fake_pump(f);
}

/* Stage k had the step from 100 (k + 1) − 150 µs after its issue on. */
static void told(struct fake *f, uint32_t stage, uint64_t step)
{
    uint32_t zero = 0, at[4] = {10, 50, 5, 40};
    Gptoss__StepTimes m = GPTOSS__STEP_TIMES__INIT;
    m.first_step = step;
    m.sent_us = f->now;
    m.origin_us = times_work(f->c, step)->issued_us + 100 * (stage + 1) - 150;
    m.n_received = m.n_started = m.n_finished = m.n_sent = m.n_busy = 1;
    m.received = &zero;
    m.started = &at[0];
    m.finished = &at[1];
    m.sent = &at[2];
    m.busy = &at[3];
    times_receive(f->c, stage, &m, f->now);
}

static uint64_t run_told; /* steps up to here were told of */

/* `us` of a busy pipeline; the ranks tell of each step soon after, but stage 1 never of `lost`. */
static void run(struct fake *f, uint64_t us, uint64_t lost)
{
    for (uint64_t end = f->now + us; f->now < end;) {
        f->now += 1000;
        coordinator_tick(f->c, f->now);
        fake_pump(f);
        fake_step(f);
        fake_pump(f);
        for (; run_told + 1 < f->c->oldest_step; run_told++)
            for (uint32_t s = 0; s < STAGES; s++)
                if (s != 1 || run_told + 1 != lost)
                    told(f, s, run_told + 1);
    }
}

static struct fake *begin(void)
{
    static uint32_t ids[20];
    struct fake *f = fake_create(model, STAGES, (struct coordinator_options){.context = 4096});
    memset(watchers, 0, sizeof watchers);
    f->stranger = take;
    run_told = 0;
    f->now += 5000000;
    fake_start(f);
    for (uint32_t r = 0; r < 64; r++) {
        for (uint32_t i = 0; i < 20; i++)
            ids[i] = 5 + 31 * r + i;
        fake_ask(f, r % 8, r, ids, 20, 4000, r);
    }
    return f;
}

static void assert_steps(uint32_t who, uint64_t first, uint64_t last)
{
    assert_true(watchers[who].last);
    assert_int_equal(watchers[who].stages, STAGES);
    assert_int_equal(watchers[who].n_steps, last - first + 1);
    for (uint64_t i = 0; first + i <= last; i++)
        assert_int_equal(watchers[who].steps[i], first + i);
}

static void every_step_is_told_once_in_order(void **state)
{
    (void)state;
    struct fake *f = begin();
    run(f, 50000, 0);
    uint64_t first = f->c->next_step;
    watch(f, 0, 0.5, false);
    run(f, 500000, 0);
    uint64_t last = f->c->next_step - 1;
    run(f, 300000, 0);
    assert_true(last > first + 100);
    assert_in_range(watchers[0].n_steps, last - first, last - first + 3); /* the tick of the end */
    assert_steps(0, watchers[0].steps[0], watchers[0].steps[watchers[0].n_steps - 1]);
    assert_in_range(watchers[0].steps[0], first, first + 1);
    assert_true(watchers[0].parts >= 4);
    assert_int_equal(watchers[0].missing, 0);
    assert_string_equal(watchers[0].why, "");
    assert_null(f->c->traces);
    fake_destroy(f);
}

static void the_past_is_what_is_still_remembered(void **state)
{
    (void)state;
    struct fake *f = begin();
    run(f, 300000, 7);
    uint64_t last = f->c->next_step - 1;
    assert_true(last > 50);
    watch(f, 1, 0, true);
    run(f, 100000, 0);
    assert_true(watchers[1].last);
    assert_in_range(watchers[1].n_steps, last, last + 1);
    assert_int_equal(watchers[1].steps[0], 1);
    assert_int_equal(watchers[1].missing, 1); /* step 7 on stage 1 */
    fake_destroy(f);
}

static void at_most_four_trace_and_the_gone_make_room(void **state)
{
    (void)state;
    struct fake *f = begin();
    for (uint32_t i = 0; i < 5; i++)
        watch(f, i, 10, false);
    assert_false(watchers[3].refused);
    assert_true(watchers[4].refused);
    coordinator_gone(f->c, COORDINATOR_CLIENTS, "w2", 2, f->now);
    watch(f, 5, 10, false);
    assert_false(watchers[5].refused);
    watch(f, 5, 10, false); /* again: the same connection has one */
    assert_false(watchers[5].refused);
    watch(f, 2, -1, false);
    assert_true(watchers[2].refused);
    watchers[2].refused = false;
    watch(f, 2, NAN, false);
    assert_true(watchers[2].refused);
    watchers[2].refused = false;
    watch(f, 2, 1e9, false);
    assert_true(watchers[2].refused);
    fake_destroy(f);
}

static void a_trace_ends_with_the_ranks(void **state)
{
    (void)state;
    struct fake *f = begin();
    run(f, 10000, 0);
    watch(f, 0, 10, false);
    run(f, 300000, 0);
    fake_kill(f);
    f->now += 1000;
    coordinator_tick(f->c, f->now);
    fake_pump(f);
    assert_true(watchers[0].last && watchers[0].n_steps > 10);
    assert_string_equal(watchers[0].why, "the ranks were lost");
    /* Without ranks there is nothing to wait for but their coming. */
    watch(f, 1, 0.1, false);
    f->now += 200000;
    coordinator_tick(f->c, f->now);
    fake_pump(f);
    assert_true(watchers[1].last);
    assert_string_equal(watchers[1].why, "no ranks serve");
    fake_destroy(f);
}

static void ranks_that_tell_nothing_do_not_hold_the_end(void **state)
{
    (void)state;
    struct fake *f = begin();
    run(f, 10000, 0);
    watch(f, 0, 0.1, false);
    for (int i = 0; i < 1300; i++) {
        f->now += 1000;
        coordinator_tick(f->c, f->now);
        fake_pump(f);
        fake_step(f);
    }
    assert_true(watchers[0].last && watchers[0].n_steps > 10);
    assert_true(watchers[0].missing > 0);
    assert_string_equal(watchers[0].why, "some ranks did not tell of the last steps in time");
    fake_destroy(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_step_is_told_once_in_order),
        cmocka_unit_test(the_past_is_what_is_still_remembered),
        cmocka_unit_test(at_most_four_trace_and_the_gone_make_room),
        cmocka_unit_test(a_trace_ends_with_the_ranks),
        cmocka_unit_test(ranks_that_tell_nothing_do_not_hold_the_end),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
