#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "worker/world.h"

/* mpirun -np 1 and -np 2 bind each rank to one core when not told otherwise, and a pool of threads
 * then shares it. What mpirun itself may run on is what the user allowed, so that becomes our mask. A
 * policy that was asked for (--bind-to, or its variable) is in our environment and stands. */
void processors_unbind(void)
{
    if (getenv("OMPI_COMM_WORLD_SIZE") == NULL || getenv("OMPI_MCA_hwloc_base_binding_policy"))
        return;
    cpu_set_t ours, parents;
    if (sched_getaffinity(0, sizeof ours, &ours) ||
        sched_getaffinity(getppid(), sizeof parents, &parents))
        return;
    if (CPU_COUNT(&parents) > CPU_COUNT(&ours))
        sched_setaffinity(0, sizeof parents, &parents);
}

/* CPUs worth of time that the control group grants; 0: no limit, or unknown. */
static uint32_t quota_count(void)
{
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (file == NULL)
        return 0;
    unsigned long long quota = 0, period = 0;
    int n = fscanf(file, "%llu %llu", &quota, &period);
    fclose(file);
    if (n != 2 || period == 0 || quota / period > 1u << 20)
        return 0;
    return (uint32_t)((quota + period - 1) / period);
}

uint32_t processors_count(void)
{
    cpu_set_t mask;
    uint32_t count = 1, quota = quota_count();
    if (sched_getaffinity(0, sizeof mask, &mask) == 0)
        count = (uint32_t)CPU_COUNT(&mask);
    else {
        long online = sysconf(_SC_NPROCESSORS_ONLN); /* more CPUs than cpu_set_t holds */
        count = online > 0 ? (uint32_t)online : 1;
    }
    return quota && quota < count ? quota : count;
}
