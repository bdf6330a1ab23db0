#include "worker/world.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/base.h"

#define LEAVE_SECONDS 5 /* for MPI_Finalize, which hangs when a neighbour has died */

static int mpi_failed(int rc, const char *call, char *err, size_t err_size)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int size = 0;
    MPI_Error_string(rc, text, &size);
    snprintf(err, err_size, "%s failed: %s", call, text);
    return -1;
}

/* ── doorbells ─────────────────────────────────────────────────────────────────────────────── */

/* An abstract address: no file, gone with the process. */
static socklen_t bell_address(struct sockaddr_un *address, uint64_t world, uint32_t rank)
{
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    int size = snprintf(address->sun_path + 1, sizeof address->sun_path - 1, "gptoss-%016llx-%u",
                        (unsigned long long)world, rank);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)size);
}

static void bell_open(struct worker_world *world)
{
    struct sockaddr_un address;
    socklen_t size = bell_address(&address, world->info.id, world->info.rank);
    world->bell = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (world->bell >= 0 && bind(world->bell, (struct sockaddr *)&address, size)) {
        close(world->bell);
        world->bell = -1; /* polling will do */
    }
}

void world_ring(struct worker_world *world, uint32_t rank)
{
    if (!world->can_ring[rank])
        return;
    struct sockaddr_un address;
    socklen_t size = bell_address(&address, world->info.id, rank);
    /* A full queue means that it is ringing already. */
    (void)sendto(world->bell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&address,
                 size);
}

bool world_ring_drain(struct worker_world *world)
{
    char byte;
    bool rang = false;
    for (int i = 0; i < 64 && recv(world->bell, &byte, 1, MSG_DONTWAIT) >= 0; i++)
        rang = true;
    return rang;
}

/* ── life ──────────────────────────────────────────────────────────────────────────────────── */

/* What the ranks of a host tell one another: who they are, and where their doorbells can be heard. */
struct local {
    uint32_t rank;
    uint32_t has_bell;
    uint64_t network; /* the namespace that abstract addresses belong to; 0: unknown */
};

static int find_local(struct worker_world *world, char *err, size_t err_size)
{
    MPI_Comm comm = MPI_COMM_NULL;
    struct local *all = base_alloc(world->info.size, sizeof *all);
    struct local ours = {.rank = world->info.rank, .has_bell = world->bell >= 0};
    struct stat status;
    int rank = 0, size = 1;
    if (stat("/proc/self/ns/net", &status) == 0)
        ours.network = status.st_ino;
    int rc = MPI_Comm_split_type(world->comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &comm);
    if (rc == MPI_SUCCESS) {
        MPI_Comm_rank(comm, &rank);
        MPI_Comm_size(comm, &size);
        rc = MPI_Allgather(&ours, sizeof ours, MPI_BYTE, all, sizeof ours, MPI_BYTE, comm);
        MPI_Comm_free(&comm);
    }
    if (rc == MPI_SUCCESS) {
        world->info.local_rank = (uint32_t)rank;
        world->info.local_size = (uint32_t)size;
        for (int i = 0; i < size; i++)
            world->can_ring[all[i].rank] =
                ours.has_bell && all[i].has_bell && all[i].network == ours.network;
    }
    free(all);
    return rc == MPI_SUCCESS ? 0 : mpi_failed(rc, "MPI_Comm_split_type", err, err_size);
}

int worker_world_create(struct worker_world **out, char *err, size_t err_size)
{
    *out = NULL;
    processors_unbind();
    int provided, rank, size, rc, found = 0;
    /* What is no longer is sent at once. A longer message wants an answer of the receiver first, which no
     * bell announces: 2 ms for the activations of a few rows. */
    setenv("OMPI_MCA_btl_vader_eager_limit", "131072", 0);
    setenv("OMPI_MCA_btl_vader_max_send_size", "131072", 0);
    if ((rc = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided)) != MPI_SUCCESS)
        return mpi_failed(rc, "MPI_Init_thread", err, err_size);
    if (provided < MPI_THREAD_FUNNELED) {
        snprintf(err, err_size,
                 "this MPI library does not allow threads beside the one that calls "
                 "it: build it with thread support");
        return -1;
    }
    struct worker_world *world = base_alloc(1, sizeof *world);
    world->bell = -1;
    if ((rc = MPI_Comm_dup(MPI_COMM_WORLD, &world->comm)) != MPI_SUCCESS) {
        mpi_failed(rc, "MPI_Comm_dup", err, err_size);
        goto fail;
    }
    MPI_Comm_set_errhandler(world->comm, MPI_ERRORS_RETURN);
    MPI_Comm_rank(world->comm, &rank);
    MPI_Comm_size(world->comm, &size);
    world->info.rank = (uint32_t)rank;
    world->info.size = (uint32_t)size;
    int *tag_max = NULL;
    MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &tag_max, &found);
    world->tag_max = found ? *tag_max : 32767;
    if (gethostname(world->info.host, sizeof world->info.host) || !world->info.host[0])
        snprintf(world->info.host, sizeof world->info.host, "unknown");
    world->info.host[sizeof world->info.host - 1] = 0;

    if (rank == 0 && getrandom(&world->info.id, sizeof world->info.id, 0) < 0)
        world->info.id = clock_us() ^ (uint64_t)getpid() << 40;
    rc = MPI_Bcast(&world->info.id, sizeof world->info.id, MPI_BYTE, 0, world->comm);
    if (rc != MPI_SUCCESS) {
        mpi_failed(rc, "MPI_Bcast", err, err_size);
        goto fail;
    }
    world->can_ring = base_alloc(world->info.size, sizeof *world->can_ring);
    bell_open(world);
    if (find_local(world, err, err_size))
        goto fail;
    *out = world;
    return 0;

fail:
    worker_world_destroy(world);
    return -1;
}

const struct worker_world_info *worker_world_info(const struct worker_world *world)
{
    return &world->info;
}

uint32_t worker_world_threads(const struct worker_world *world)
{
    uint32_t threads = processors_count() / world->info.local_size;
    return threads ? threads : 1;
}

static volatile sig_atomic_t leave_code;

static void leave_now(int signal)
{
    (void)signal;
    _exit(leave_code);
}

void worker_world_leave(struct worker_world *world, int code)
{
    leave_code = code;
    struct sigaction action = {.sa_handler = leave_now};
    sigaction(SIGALRM, &action, NULL);
    alarm(LEAVE_SECONDS);
    MPI_Comm_free(&world->comm);
    MPI_Finalize();
    alarm(0);
}

/* mpirun ends the others when it sees a rank leave without MPI_Finalize. MPI_Abort would ask it to, too,
 * but its words to the user trip Open MPI 4.1's mpirun now and then ("ORTE_ERROR_LOG: Data unpack would
 * read past end of buffer"), which then may hang. */
void worker_world_abort(struct worker_world *world, int code)
{
    (void)world;
    _exit(code);
}

void worker_world_destroy(struct worker_world *world)
{
    if (world == NULL)
        return;
    if (world->bell >= 0)
        close(world->bell);
    free(world->can_ring);
    free(world);
}
