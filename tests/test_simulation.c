/*
 * Random schedules of failures around the coordinator (simulation.h), each from a seed.
 *
 * usage: test_simulation [SCHEDULES [FIRST_SEED]]
 */
#include "tests/test.h"

#include "tests/simulation.h"
#include "tests/tiny.h"

#define SCHEDULES 1000

static uint64_t schedules = SCHEDULES, first = 1, seed;

static int name_the_seed(void **state)
{
    (void)state;
    if (seed < first + schedules)
        printf("schedule %llu failed; again: test_simulation 1 %llu\n", (unsigned long long)seed,
               (unsigned long long)seed);
    return 0;
}

static void no_schedule_of_failures_loses_a_request_or_a_token(void **state)
{
    (void)state;
    struct simulation_counts n = {0};
    for (seed = first; seed < first + schedules; seed++)
        simulation_run(model, seed, &n);
    printf("%llu schedules: %llu requests, %llu tokens, %llu faults of ranks, %llu losses, %llu "
           "resumes, %llu cancelled, %llu refused, %llu errors by the rule of three deaths\n",
           (unsigned long long)schedules, (unsigned long long)n.requests,
           (unsigned long long)n.tokens, (unsigned long long)n.kills, (unsigned long long)n.losses,
           (unsigned long long)n.resumes, (unsigned long long)n.cancelled,
           (unsigned long long)n.refused, (unsigned long long)n.errors);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        schedules = strtoull(argv[1], NULL, 10);
    if (argc > 2)
        first = strtoull(argv[2], NULL, 10);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(no_schedule_of_failures_loses_a_request_or_a_token,
                                  name_the_seed),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
