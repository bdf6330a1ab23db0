#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"

struct kept {
    uint32_t *ids; /* NULL: not run yet */
    char world[64];
};

struct bench_verify {
    size_t n_tests, repetitions;
    struct kept *kept; /* [n_tests, repetitions] */
    size_t n_compared, n_different;
};

struct bench_verify *bench_verify_create(size_t n_tests, size_t repetitions)
{
    struct bench_verify *verify = base_alloc(1, sizeof *verify);
    verify->n_tests = n_tests;
    verify->repetitions = repetitions;
    verify->kept = base_alloc(n_tests * repetitions, sizeof *verify->kept);
    return verify;
}

void bench_verify_destroy(struct bench_verify *verify)
{
    if (!verify)
        return;
    for (size_t i = 0; i < verify->n_tests * verify->repetitions; i++)
        free(verify->kept[i].ids);
    free(verify->kept);
    free(verify);
}

void bench_verify_add(struct bench_verify *verify, size_t test_index, size_t repetition,
                      const struct bench_test *test, const uint32_t *ids, const char *world)
{
    struct kept *kept = &verify->kept[test_index * verify->repetitions + repetition];
    size_t samples = bench_test_samples(test), n = samples * test->sequences;
    if (!kept->ids) {
        kept->ids = base_alloc(n + 1, sizeof *ids);
        memcpy(kept->ids, ids, n * sizeof *ids);
        snprintf(kept->world, sizeof kept->world, "%s", world);
        return;
    }
    verify->n_compared++;
    for (size_t i = 0; i < n; i++) {
        if (ids[i] == kept->ids[i])
            continue;
        char name[64];
        bench_test_name(test, name, sizeof name);
        fprintf(stderr,
                "# %s, repetition %zu, sequence %zu, token %zu: %" PRIu32 " with %s, %" PRIu32
                " with %s\n",
                name, repetition, i / samples, i % samples, ids[i], world, kept->ids[i],
                kept->world);
        verify->n_different++;
        return;
    }
}

bool bench_verify_finish(const struct bench_verify *verify)
{
    if (verify->n_different)
        fprintf(stderr, "# tokens equal for all stages: FAILED (%zu of %zu runs differ)\n",
                verify->n_different, verify->n_compared);
    else if (verify->n_compared)
        fprintf(stderr, "# tokens equal for all stages: OK\n");
    else
        fprintf(stderr, "# tokens equal for all stages: not compared, there is one world only\n");
    return verify->n_different == 0;
}
