/* Who is refused because there is too much, and what he is told; in a fake world (world.h). */
#include "tests/test.h"

#include "tests/tiny.h"
#include "tests/world.h"

static const uint32_t ids[400] = {1, 2, 3};

/* Asks, and returns retry_ms of the refusal; −1: none. */
static int64_t ask(struct fake *f, uint32_t client, uint32_t request, size_t n, uint32_t tokens)
{
    f->requests[request].retry_ms = 0;
    fake_ask(f, client, request, ids, n, tokens, request);
    fake_tick(f, 0);
    const struct world_request *r = &f->requests[request];
    if (!r->refused)
        return -1;
    assert_int_equal(r->code, GPTOSS__CODE__BUSY);
    return (int64_t)r->retry_ms;
}

static void one_client_has_so_many_requests_and_no_more(void **state)
{
    (void)state;
    struct fake *f =
        fake_create(model, 1, (struct coordinator_options){.context = 512, .max_client = 2});
    fake_start(f);
    assert_int_equal(ask(f, 1, 0, 3, 50), -1);
    assert_int_equal(ask(f, 1, 1, 3, 50), -1);
    assert_true(ask(f, 1, 2, 3, 50) > 0);
    assert_non_null(strstr(f->requests[2].refusal, "this client"));
    assert_int_equal(ask(f, 2, 3, 3, 50), -1); /* another one */
    fake_run(f);
    assert_int_equal(ask(f, 1, 4, 3, 50), -1); /* its own have ended */
    fake_run(f);
    fake_destroy(f);
}

static void prompts_that_wait_are_bounded_in_bytes(void **state)
{
    (void)state;
    struct fake *f = fake_create(
        model, 1,
        (struct coordinator_options){.context = 512, .sequences = 1, .max_queue_bytes = 4000});
    assert_int_equal(ask(f, 1, 0, 400, 5), -1); /* one does, whatever the bound */
    assert_int_equal(ask(f, 1, 1, 400, 5), -1);
    assert_true(ask(f, 1, 2, 400, 5) > 0);
    assert_int_equal(ask(f, 1, 3, 10, 5), -1); /* a smaller one has room */
    fake_start(f);
    fake_run(f);
    assert_int_equal(ask(f, 1, 4, 400, 5), -1);
    fake_run(f);
    fake_destroy(f);
}

static void the_time_to_wait_is_that_between_two_ends(void **state)
{
    (void)state;
    struct fake *f = fake_create(
        model, 1, (struct coordinator_options){.context = 512, .sequences = 1, .max_queue = 1});
    fake_start(f);
    uint32_t next = 0;
    for (int i = 0; i < 40; i++) { /* one every 2 s */
        assert_int_equal(ask(f, 1, next++, 3, 1), -1);
        fake_run(f);
        fake_tick(f, 2000000);
    }
    fake_ask(f, 1, next++, ids, 3, 30, 1);
    fake_tick(f, 10);
    assert_int_equal(ask(f, 1, next++, 3, 30), -1); /* waits */
    int64_t first = ask(f, 2, next++, 3, 30), second = ask(f, 3, next++, 3, 30);
    assert_in_range(first, 1900, 2300);
    assert_in_range(second, 3800, 4600); /* after the one who was told before */
    fake_run(f);
    fake_destroy(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_client_has_so_many_requests_and_no_more),
        cmocka_unit_test(prompts_that_wait_are_bounded_in_bytes),
        cmocka_unit_test(the_time_to_wait_is_that_between_two_ends),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
