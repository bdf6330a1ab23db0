#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench/bench.h"

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

extern char **environ;

/* Entry `number` of the GPUs that we see, as the child shall see it alone. */
static void gpu_entry(int number, char *entry, size_t entry_size)
{
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    for (int i = 0; list && i < number; i++) {
        list = strchr(list, ',');
        list = list ? list + 1 : NULL;
    }
    if (list && list[0])
        snprintf(entry, entry_size, "CUDA_VISIBLE_DEVICES=%.*s", (int)strcspn(list, ","), list);
    else
        snprintf(entry, entry_size, "CUDA_VISIBLE_DEVICES=%d", number);
}

/* Our environment without the options of the programs: what they shall do is said in argv alone. The
 * array is the caller's to free, the strings are not. `gpu`: an entry that stands in place of ours. */
static char **child_environment(char *gpu)
{
    static const char *const kept[] = {"GPTOSS_LOG=", "GPTOSS_NO_CUDA=", "GPTOSS_TEST_"};
    size_t n = 0, m = 0;
    while (environ && environ[n])
        n++;
    char **out = base_alloc(n + 2, sizeof *out);
    for (size_t i = 0; i < n; i++) {
        bool keep = strncmp(environ[i], "GPTOSS_", 7) != 0;
        for (size_t k = 0; k < sizeof kept / sizeof *kept; k++)
            keep = keep || strncmp(environ[i], kept[k], strlen(kept[k])) == 0;
        if (gpu[0] && strncmp(environ[i], "CUDA_VISIBLE_DEVICES=", 21) == 0)
            keep = false;
        if (keep)
            out[m++] = environ[i];
    }
    if (gpu[0])
        out[m] = gpu;
    return out;
}

/* In the child: becomes the program, or tells its errno through the pipe. */
static _Noreturn void become(const char *const *argv, char **environment, pid_t parent, int report)
{
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() == parent) {
        int null = open("/dev/null", O_RDONLY);
        if (null >= 0)
            dup2(null, STDIN_FILENO);
        dup2(STDERR_FILENO, STDOUT_FILENO); /* stdout is for results */
        execvpe(argv[0], (char *const *)(uintptr_t)argv, environment);
    }
    int failure = errno;
    ssize_t written = write(report, &failure, sizeof failure);
    (void)written;
    _exit(127);
}

int bench_child_start(struct bench_child *child, const char *const *argv, char *err,
                      size_t err_size)
{
    int report[2], failure = 0;
    snprintf(child->name, sizeof child->name, "%s", last_part(argv[0]));
    if (pipe2(report, O_CLOEXEC)) {
        snprintf(err, err_size, "cannot start %s: %m", child->name);
        return -1;
    }
    char gpu[96] = "";
    if (child->gpu)
        gpu_entry(child->gpu - 1, gpu, sizeof gpu);
    char **environment = child_environment(gpu);
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        become(argv, environment, parent, report[1]);
    free(environment);
    close(report[1]);
    if (pid < 0)
        failure = errno;
    else if (read(report[0], &failure, sizeof failure) != (ssize_t)sizeof failure)
        failure = 0;
    close(report[0]);
    if (failure) {
        if (pid > 0)
            waitpid(pid, NULL, 0);
        errno = failure;
        snprintf(err, err_size, "cannot start %s: %m%s", child->name,
                 strcmp(child->name, "mpirun") ? "" : ": install Open MPI (openmpi-bin)");
        return -1;
    }
    setpgid(pid, pid); /* whoever is first */
    child->pid = pid;
    return 0;
}

bool bench_child_ended(struct bench_child *child, int *code)
{
    int status;
    if (child->pid == 0 || waitpid(child->pid, &status, WNOHANG) != child->pid)
        return false;
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    kill(-child->pid, SIGKILL); /* what it may have left behind */
    child->pid = 0;
    return true;
}

void bench_child_stop(struct bench_child *child, double seconds)
{
    const double ask = clock_seconds() + seconds, end = ask + 10;
    bool asked = false;
    int code;
    while (child->pid && !bench_child_ended(child, &code)) {
        double now = clock_seconds();
        if (now >= ask && !asked) {
            /* The leader alone: mpirun and the coordinator bring down those that they started. */
            kill(child->pid, SIGTERM);
            asked = true;
        }
        if (now >= end)
            kill(-child->pid, SIGKILL);
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
}

void bench_beside(const char *name, char *path, size_t path_size)
{
    char own[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", own, sizeof own - 1);
    own[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(own, '/');
    if (slash) {
        *slash = '\0';
        int size = snprintf(path, path_size, "%s/%s", own, name);
        if (size > 0 && (size_t)size < path_size && access(path, X_OK) == 0)
            return;
    }
    snprintf(path, path_size, "%s", name);
}

int bench_folder_create(char *path, size_t path_size, char *err, size_t err_size)
{
    /* Not TMPDIR: the path of a socket has room for 107 bytes. */
    snprintf(path, path_size, "/tmp/gptoss-bench-XXXXXX");
    if (mkdtemp(path))
        return 0;
    snprintf(err, err_size, "cannot make a folder %s: %m", path);
    path[0] = '\0';
    return -1;
}

void bench_folder_remove(const char *path)
{
    DIR *folder = path[0] ? opendir(path) : NULL;
    if (!folder)
        return;
    for (struct dirent *entry; (entry = readdir(folder));)
        if (entry->d_name[0] != '.')
            unlinkat(dirfd(folder), entry->d_name, 0);
    closedir(folder);
    rmdir(path);
}
