#include "kernels/host/host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cpu/pool.h"

/* What the machine says of itself. */

void host_device_text(char *text, size_t size)
{
    snprintf(text, size, "CPU");
    FILE *file = fopen("/proc/cpuinfo", "r");
    if (!file)
        return;
    char line[256];
    while (fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !colon)
            continue;
        colon += strspn(colon, ": \t");
        colon[strcspn(colon, "\n")] = '\0';
        snprintf(text, size, "%s", colon);
        break;
    }
    fclose(file);
}

/* One number from a file; UINT64_MAX where there is none ("max" in cgroup's files). */
static uint64_t number_in(const char *path)
{
    uint64_t value = UINT64_MAX;
    FILE *file = fopen(path, "r");
    if (!file)
        return value;
    unsigned long long number;
    if (fscanf(file, "%llu", &number) == 1)
        value = number;
    fclose(file);
    return value;
}

/* Pages of files, which are counted as used and go when others want memory. */
static uint64_t file_pages(const char *stat_path)
{
    uint64_t bytes = 0;
    char line[128];
    unsigned long long number;
    FILE *file = fopen(stat_path, "r");
    if (!file)
        return 0;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "inactive_file %llu", &number) == 1 ||
            sscanf(line, "active_file %llu", &number) == 1)
            bytes += number;
    fclose(file);
    return bytes;
}

static uint64_t limit_left(const char *limit_path, const char *used_path, const char *stat_path)
{
    uint64_t limit = number_in(limit_path), used = number_in(used_path);
    if (limit == UINT64_MAX || used == UINT64_MAX)
        return UINT64_MAX;
    uint64_t files = file_pages(stat_path);
    used -= files < used ? files : used;
    return limit > used ? limit - used : 0;
}

uint64_t host_memory_free(void)
{
    uint64_t available = 0;
    FILE *file = fopen("/proc/meminfo", "r");
    if (file) {
        char line[128];
        unsigned long long kilobytes;
        while (fgets(line, sizeof line, file))
            if (sscanf(line, "MemAvailable: %llu kB", &kilobytes) == 1)
                available = (uint64_t)kilobytes * 1024;
        fclose(file);
    }
    /* A container's limit, of both versions of cgroup. */
    uint64_t left[] = {
        limit_left("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current",
                   "/sys/fs/cgroup/memory.stat"),
        limit_left("/sys/fs/cgroup/memory/memory.limit_in_bytes",
                   "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                   "/sys/fs/cgroup/memory/memory.stat"),
    };
    for (size_t i = 0; i < sizeof left / sizeof *left; i++)
        if (left[i] < available)
            available = left[i];
    return available;
}

/* Reading is measured over more memory than caches hold, in pieces that threads take in turn. */
#define READ_BYTES  ((size_t)96 << 20)
#define READ_PIECES 96u

struct reading {
    const unsigned char *memory;
    _Atomic uint64_t sum;
};

static void read_piece(void *arg, uint32_t i, uint32_t thread)
{
    (void)thread;
    struct reading *reading = arg;
    const uint64_t *words = (const uint64_t *)(reading->memory + i * (READ_BYTES / READ_PIECES));
    uint64_t sum[8] = {0};
    for (size_t w = 0; w < READ_BYTES / READ_PIECES / sizeof *words; w += 8)
        for (int j = 0; j < 8; j++)
            sum[j] += words[w + (size_t)j];
    for (int j = 1; j < 8; j++)
        sum[0] += sum[j];
    atomic_fetch_add(&reading->sum, sum[0]);
}

static void fill_piece(void *arg, uint32_t i, uint32_t thread)
{
    (void)thread;
    struct reading *reading = arg;
    memset((unsigned char *)reading->memory + i * (READ_BYTES / READ_PIECES), 1,
           READ_BYTES / READ_PIECES);
}

double host_bandwidth(uint32_t threads)
{
    char err[128];
    double best = 0;
    struct pool *pool = NULL;
    struct reading reading = {0};
    void *memory =
        mmap(NULL, READ_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 0;
    if (pool_create(&pool, threads, err, sizeof err))
        goto done;
    madvise(memory, READ_BYTES, MADV_HUGEPAGE);
    reading.memory = memory;
    pool_run(pool, READ_PIECES, fill_piece, &reading);
    for (int round = 0; round < 2; round++) {
        uint64_t begin = host_clock_ns();
        pool_run(pool, READ_PIECES, read_piece, &reading);
        uint64_t ns = host_clock_ns() - begin;
        if (ns && (double)READ_BYTES / (double)ns * 1e9 > best)
            best = (double)READ_BYTES / (double)ns * 1e9;
    }
done:
    pool_destroy(pool);
    munmap(memory, READ_BYTES);
    return best;
}
