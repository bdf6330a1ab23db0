/*
 * simulation: a schedule of failures around a `struct coordinator`, in virtual time and from one seed.
 *
 * Ranks, clients and whoever starts ranks exchange messages with the coordinator over connections that
 * keep their order, each with delays of its own, and that break. Ranks die, are stopped, hang in a step;
 * at any moment, also before they have said Hello and while they load. Clients cancel, set deadlines,
 * vanish, come back and resume, send twice, read slowly. Some requests kill the ranks whenever they run.
 *
 * What must hold in every schedule: no token is lost, repeated or different from the answer alone; every
 * accepted request ends, and once; an error is answered only to whoever was in the ranks' steps at three
 * losses in a row that nobody else is known to have caused; nothing is held in the end.
 */
#ifndef GPTOSS_TESTS_SIMULATION_H
#define GPTOSS_TESTS_SIMULATION_H

#include "tests/world.h"

struct simulation_counts { /* of all schedules so far */
    uint64_t requests, tokens, kills, losses, errors, resumes, cancelled, refused;
};

/* Fails the test (cmocka) where something does not hold. */
void simulation_run(const struct gguf_model *model, uint64_t seed,
                    struct simulation_counts *counts);

#endif
