/* Which transport joins which ranks, and in which order edges are opened. */
#include "tests/test.h"

#include "coordinator/coordinator.h"

static const struct coordinator_end gpu_a = {"one", "GPU-a", "nccl,ipc,ipc-host"},
                                    gpu_b = {"one", "GPU-b", "nccl,ipc,ipc-host"},
                                    far = {"two", "GPU-c", "nccl,ipc,ipc-host"},
                                    bare = {"one", "GPU-d", "ipc,ipc-host"},
                                    mps = {"one", "GPU-a", "nccl,ipc"},
                                    cpu = {"one", "cpu-1", "mpi"},
                                    cpu_far = {"two", "cpu-2", "mpi"};

static void gets(const struct coordinator_end *from, const struct coordinator_end *to,
                 const char *wanted, const char *want)
{
    const char *got = coordinator_transport(from, to, wanted);
    if (want ? !got || strcmp(got, want) != 0 : got != NULL)
        fail_msg("%s (%s) to %s (%s), %s wanted: %s, not %s", from->host, from->device_uuid,
                 to->host, to->device_uuid, wanted ? wanted : "nothing", got ? got : "none",
                 want ? want : "none");
}

static void unlike_gpus_get_nccl_on_one_host_and_on_two(void **state)
{
    (void)state;
    gets(&gpu_a, &gpu_b, NULL, "nccl");
    gets(&gpu_a, &far, "auto", "nccl");
    gets(&far, &gpu_a, NULL, "nccl");
}

static void where_one_has_no_nccl_they_get_ipc_within_a_host_and_nothing_between(void **state)
{
    (void)state;
    struct coordinator_end elsewhere = bare;
    elsewhere.host = "two";
    gets(&gpu_a, &bare, NULL, "ipc");
    gets(&bare, &gpu_a, NULL, "ipc");
    gets(&gpu_a, &elsewhere, NULL, NULL);
}

static void ranks_that_share_a_gpu_never_get_nccl(void **state)
{
    (void)state;
    gets(&gpu_a, &gpu_a, NULL, "ipc-host");
    gets(&mps, &mps, NULL, "ipc");
    gets(&mps, &gpu_a, NULL, "ipc");
}

/* Two hosts that were cloned may well have devices of one name. */
static void one_uuid_on_two_hosts_is_two_devices(void **state)
{
    (void)state;
    struct coordinator_end clone = gpu_a;
    clone.host = "two";
    gets(&gpu_a, &clone, NULL, "nccl");
}

static void a_device_without_uuid_is_taken_for_a_device_of_its_own(void **state)
{
    (void)state;
    struct coordinator_end unknown = gpu_a;
    unknown.device_uuid = "";
    gets(&unknown, &unknown, NULL, "nccl");
}

static void cpus_get_mpi_and_nothing_joins_a_cpu_and_a_gpu(void **state)
{
    (void)state;
    gets(&cpu, &cpu, NULL, "mpi");
    gets(&cpu, &cpu_far, NULL, "mpi");
    gets(&cpu, &gpu_a, NULL, NULL);
    gets(&gpu_a, &cpu, "mpi", NULL);
}

static void what_was_asked_for_is_taken_where_it_is_possible(void **state)
{
    (void)state;
    gets(&gpu_a, &gpu_b, "ipc", "ipc");
    gets(&gpu_a, &gpu_b, "ipc-host", "ipc-host");
    gets(&gpu_a, &gpu_a, "nccl", "nccl"); /* the ranks refuse it, in words */
    gets(&gpu_a, &far, "ipc", NULL);
    gets(&gpu_a, &far, "ipc-host", NULL);
    gets(&gpu_a, &bare, "nccl", NULL);
    gets(&cpu, &cpu, "nccl", NULL);
}

static void a_name_is_known_whole_and_alone(void **state)
{
    (void)state;
    static const char *const known[] = {"auto", "nccl", "ipc", "ipc-host", "mpi"};
    static const char *const unknown[] = {"", "nccl,ipc", "ip", "ipc-", "NCCL", "tcp"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        assert_true(coordinator_transport_known(known[i]));
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        assert_false(coordinator_transport_known(unknown[i]));
    const struct coordinator_end like = {"one", "GPU-e", "nccl2,xipc"};
    gets(&like, &gpu_a, NULL, NULL);
}

/* Every rank opens its edges in the list's order, and both ends of an edge must have come to it: the
 * rounds it takes are few, whatever the number of ranks. */
static void every_edge_is_opened_once_and_none_waits_for_many(void **state)
{
    (void)state;
    enum { MOST = 33 };
    for (uint32_t n = 2; n <= MOST; n++) {
        uint32_t seen[MOST] = {0}, round_of[MOST] = {0}, rounds = 0;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t from = coordinator_edge(n, i), to = (from + 1) % n;
            assert_in_range(from, 0, n - 1);
            seen[from]++;
            uint32_t round = (round_of[from] > round_of[to] ? round_of[from] : round_of[to]) + 1;
            round_of[from] = round_of[to] = round;
            rounds = round > rounds ? round : rounds;
        }
        for (uint32_t e = 0; e < n; e++)
            assert_int_equal(seen[e], 1);
        assert_in_range(rounds, 2, n % 2 ? 3 : 2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unlike_gpus_get_nccl_on_one_host_and_on_two),
        cmocka_unit_test(where_one_has_no_nccl_they_get_ipc_within_a_host_and_nothing_between),
        cmocka_unit_test(ranks_that_share_a_gpu_never_get_nccl),
        cmocka_unit_test(one_uuid_on_two_hosts_is_two_devices),
        cmocka_unit_test(a_device_without_uuid_is_taken_for_a_device_of_its_own),
        cmocka_unit_test(cpus_get_mpi_and_nothing_joins_a_cpu_and_a_gpu),
        cmocka_unit_test(what_was_asked_for_is_taken_where_it_is_possible),
        cmocka_unit_test(a_name_is_known_whole_and_alone),
        cmocka_unit_test(every_edge_is_opened_once_and_none_waits_for_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
