#include "coordinator/launch.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"
#include "coordinator/coordinator.h"

#define LOOK_US   100000  /* between two looks at the ranks' states */
#define KILLED_US 2000000 /* what SIGKILL does not end in that time, it does not end */
#define FOLDER    "gptoss-mpi-"

struct launch_child {
    pid_t pid;
    int fd;           /* its pidfd, in `events`; −1: it has ended */
    uint32_t stopped; /* looks in a row at which it was */
    bool rank;        /* it has become one: mpirun may have helpers, such as ssh */
};

/* ── processes ─────────────────────────────────────────────────────────────────────────────── */

/* The children of a process, all threads' taken together: up to `most` of them. */
static size_t children_of(pid_t pid, pid_t *children, size_t most)
{
    char path[320];
    size_t n = 0;
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *tasks = opendir(path);
    for (struct dirent *entry; tasks && (entry = readdir(tasks));) {
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/proc/%d/task/%s/children", (int)pid, entry->d_name);
        FILE *file = fopen(path, "re");
        int child;
        while (file && n < most && fscanf(file, "%d", &child) == 1)
            children[n++] = (pid_t)child;
        if (file)
            fclose(file);
    }
    if (tasks)
        closedir(tasks);
    return n;
}

static bool is_stopped(pid_t pid)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    const char *name_end = strrchr(text, ')'); /* the name may hold anything */
    return name_end && strncmp(name_end, ") T", 3) == 0;
}

/* Whether it was started as a rank: mpirun numbers them, in their environment. */
static bool is_rank(pid_t pid)
{
    static const char variable[] = "OMPI_COMM_WORLD_RANK=";
    static char environment[65536];
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/environ", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, environment, sizeof environment - 1);
    if (fd >= 0)
        close(fd);
    environment[n > 0 ? n : 0] = 0;
    for (const char *at = environment; at < environment + n; at += strlen(at) + 1)
        if (strncmp(at, variable, sizeof variable - 1) == 0)
            return true;
    return false;
}

/* How often the kernel has killed for want of memory, on this host. */
static uint64_t oom_kills(void)
{
    char line[128];
    unsigned long long n = 0;
    FILE *file = fopen("/proc/vmstat", "re");
    while (file && fgets(line, sizeof line, file) && sscanf(line, "oom_kill %llu", &n) != 1)
        ;
    if (file)
        fclose(file);
    return n;
}

/* ── folders ───────────────────────────────────────────────────────────────────────────────── */

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *ftw)
{
    (void)status;
    (void)type;
    (void)ftw;
    remove(path);
    return 0;
}

static void remove_folder(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

static const char *temporary(void)
{
    const char *place = getenv("TMPDIR");
    /* Sockets lie there, and their paths are short. */
    return place && place[0] == '/' && strlen(place) < 24 ? place : "/tmp";
}

static void make_folder(char folder[64], const char *place)
{
    snprintf(folder, 64, "%s/" FOLDER "%d-XXXXXX", place, (int)getpid());
    if (!mkdtemp(folder))
        folder[0] = 0;
}

/* Folders of coordinators that are no more, and are ours to remove. */
static void clear_place(const char *place)
{
    DIR *folder = opendir(place);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        int pid;
        struct stat status;
        if (sscanf(entry->d_name, FOLDER "%d-", &pid) != 1 || pid <= 0 ||
            (kill(pid, 0) == 0 || errno != ESRCH) ||
            fstatat(dirfd(folder), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) ||
            !S_ISDIR(status.st_mode) || status.st_uid != geteuid())
            continue;
        char path[320];
        snprintf(path, sizeof path, "%s/%s", place, entry->d_name);
        remove_folder(path);
    }
    if (folder)
        closedir(folder);
}

/* ── starting ──────────────────────────────────────────────────────────────────────────────── */

void launch_open(struct launch *l)
{
    *l = (struct launch){.events = epoll_create1(EPOLL_CLOEXEC)};
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    clear_place(temporary());
    clear_place("/dev/shm");
}

/* In the child: what is asked of mpirun by variables, so that the user's own word counts more. */
static void set_variables(const struct launch *l)
{
    if (l->folders[0][0])
        setenv("OMPI_MCA_orte_tmpdir_base", l->folders[0], 0);
    if (l->folders[1][0])
        setenv("OMPI_MCA_btl_vader_backing_directory", l->folders[1], 0);
    setenv("OMPI_MCA_pml", "ob1", 0); /* looking for other networks takes 0.2 s of every start */
    /* When a rank has died, the others are killed at once, not after 2 s. */
    setenv("OMPI_MCA_odls_base_sigkill_timeout", "0", 0);
}

int launch_start(struct launch *l, const char *worker, uint32_t ranks, const char *endpoint,
                 char *err, size_t err_size)
{
    char number[16];
    snprintf(number, sizeof number, "%u", ranks);
    const char *const argv[] = {COORDINATOR_MPIRUN, "-np",    number, worker,
                                "--coordinator",    endpoint, NULL};
    int report[2]; /* the child's errno, if it cannot become mpirun */
    if (pipe2(report, O_CLOEXEC)) {
        snprintf(err, err_size, "cannot start mpirun: %m");
        return -1;
    }
    make_folder(l->folders[0], temporary());
    make_folder(l->folders[1], "/dev/shm");
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != parent)
            _exit(127);
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        int null = open("/dev/null", O_RDONLY);
        if (null >= 0)
            dup2(null, STDIN_FILENO);
        dup2(STDERR_FILENO, STDOUT_FILENO); /* stdout is the coordinator's alone */
        set_variables(l);
        execvp(argv[0], (char *const *)(uintptr_t)argv);
        int failure = errno;
        ssize_t written = write(report[1], &failure, sizeof failure);
        (void)written;
        _exit(127);
    }
    close(report[1]);
    int failure = 0;
    if (pid < 0)
        failure = errno;
    else if (read(report[0], &failure, sizeof failure) != sizeof failure)
        failure = 0;
    close(report[0]);
    if (failure) {
        if (pid > 0)
            waitpid(pid, NULL, 0);
        for (int i = 0; i < 2; i++)
            if (l->folders[i][0])
                remove_folder(l->folders[i]);
        errno = failure;
        snprintf(err, err_size,
                 "cannot start mpirun: %m: install Open MPI (apt install openmpi-bin)");
        return -1;
    }
    setpgid(pid, pid);
    l->pid = pid;
    l->code = 0;
    l->stopped = l->killed = false;
    l->oom_kills = oom_kills();
    l->state = LAUNCH_RUNS;
    return 0;
}

/* ── watching ──────────────────────────────────────────────────────────────────────────────── */

static void forget_child(struct launch_child *child)
{
    if (child->fd >= 0)
        close(child->fd); /* leaves the epoll too */
    child->fd = -1;
}

/* Takes note of ranks that mpirun has started since. */
static void look_for_children(struct launch *l)
{
    enum { MOST = 4096 };
    static pid_t found[MOST];
    size_t n = children_of(l->pid, found, MOST);
    for (size_t i = 0; i < n; i++) {
        struct launch_child *known = NULL;
        for (size_t k = 0; k < l->n_children && !known; k++)
            known = l->children[k].pid == found[i] ? &l->children[k] : NULL;
        if (known) {
            known->rank = known->rank || is_rank(known->pid);
            continue;
        }
        struct launch_child child = {.pid = found[i],
                                     .fd = (int)syscall(SYS_pidfd_open, found[i], 0)};
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)l->n_children};
        if (child.fd >= 0 && epoll_ctl(l->events, EPOLL_CTL_ADD, child.fd, &event))
            forget_child(&child);
        l->children =
            base_grow(l->children, &l->children_capacity, l->n_children + 1, sizeof *l->children);
        child.rank = is_rank(child.pid);
        l->children[l->n_children++] = child;
    }
}

/* A rank that has ended; 0: none. */
static pid_t died(struct launch *l)
{
    struct epoll_event event;
    while (epoll_wait(l->events, &event, 1, 0) == 1 && event.data.u32 < l->n_children) {
        struct launch_child *child = &l->children[event.data.u32];
        forget_child(child);
        if (child->rank)
            return child->pid;
    }
    return 0;
}

/* One that was stopped, and still was at the second look; 0: none. */
static pid_t stopped(struct launch *l)
{
    for (size_t i = 0; i < l->n_children; i++) {
        struct launch_child *child = &l->children[i];
        if (child->fd < 0 || !child->rank)
            continue;
        child->stopped = is_stopped(child->pid) ? child->stopped + 1 : 0;
        if (child->stopped == 2)
            return child->pid;
    }
    return 0;
}

void launch_running(const struct launch *l, void (*see)(void *arg, pid_t pid), void *arg)
{
    for (size_t i = 0; i < l->n_children; i++)
        if (l->children[i].fd >= 0 && l->children[i].rank && !l->children[i].stopped)
            see(arg, l->children[i].pid);
}

/* Reaps mpirun, and what we adopted. */
static void reap(struct launch *l)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG | WUNTRACED)) > 0) {
        if (pid != l->pid)
            continue;
        l->stopped = WIFSTOPPED(status);
        if (l->stopped)
            continue;
        l->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        l->pid = 0;
    }
}

/* ── ending ────────────────────────────────────────────────────────────────────────────────── */

static void kill_all(struct launch *l, uint64_t now)
{
    l->state = LAUNCH_KILLED;
    l->until_us = now + KILLED_US;
    if (l->pid) {
        l->killed = true;
        look_for_children(l);
        kill(-l->pid, SIGKILL);
    }
    for (size_t i = 0; i < l->n_children; i++)
        if (l->children[i].fd >= 0)
            syscall(SYS_pidfd_send_signal, l->children[i].fd, SIGKILL, NULL, 0);
}

/* Ends what we have adopted; the number of processes that are still there. */
static size_t kill_orphans(const struct launch *l)
{
    pid_t ours[256];
    size_t n = children_of(getpid(), ours, 256);
    for (size_t i = 0; i < n; i++)
        if (ours[i] != l->pid)
            kill(ours[i], SIGKILL);
    return n;
}

static void clear(struct launch *l)
{
    for (size_t i = 0; i < l->n_children; i++)
        forget_child(&l->children[i]);
    l->n_children = 0;
    for (int i = 0; i < 2; i++) {
        if (l->folders[i][0])
            remove_folder(l->folders[i]);
        l->folders[i][0] = 0;
    }
    l->state = LAUNCH_NONE;
    l->pid = 0;
}

void launch_end(struct launch *l, uint64_t grace_us, uint64_t now)
{
    if (l->state != LAUNCH_RUNS && l->state != LAUNCH_LEAVES)
        return;
    if (grace_us == 0) {
        kill_all(l, now);
        return;
    }
    if (l->state == LAUNCH_RUNS || now + grace_us < l->until_us)
        l->until_us = now + grace_us;
    l->state = LAUNCH_LEAVES;
}

static enum launch_news watch(struct launch *l, uint64_t now, struct launch_report *report)
{
    if ((report->pid = died(l)))
        return LAUNCH_DIED;
    if (l->stopped) {
        l->stopped = false;
        report->pid = l->pid;
        return LAUNCH_STOPPED;
    }
    if (now < l->looked_us + LOOK_US)
        return LAUNCH_NOTHING;
    l->looked_us = now;
    look_for_children(l);
    return (report->pid = stopped(l)) ? LAUNCH_STOPPED : LAUNCH_NOTHING;
}

enum launch_news launch_tick(struct launch *l, uint64_t now, struct launch_report *report)
{
    if (l->state == LAUNCH_NONE)
        return LAUNCH_NOTHING;
    reap(l);
    if (l->state == LAUNCH_RUNS && l->pid)
        return watch(l, now, report);
    if (l->state == LAUNCH_LEAVES && l->pid && now < l->until_us)
        return LAUNCH_NOTHING;
    if (l->state != LAUNCH_KILLED)
        kill_all(l, now);
    if (kill_orphans(l) && now < l->until_us)
        return LAUNCH_NOTHING;
    if (now >= l->until_us)
        log_warn("processes of mpirun do not end, killed as they were: going on without them");
    clear(l);
    report->code = l->code;
    report->foreign = !l->killed && l->code == 128 + SIGKILL && oom_kills() == l->oom_kills;
    return LAUNCH_ENDED;
}

uint64_t launch_next(const struct launch *l, uint64_t now)
{
    switch (l->state) {
    case LAUNCH_RUNS: return l->looked_us + LOOK_US;
    case LAUNCH_LEAVES: return l->until_us;
    case LAUNCH_KILLED: return now + 5000; /* SIGCHLD wakes us, mostly */
    case LAUNCH_NONE: break;
    }
    return UINT64_MAX;
}

void launch_close(struct launch *l, uint64_t grace_us)
{
    struct launch_report report;
    launch_end(l, grace_us, clock_us());
    while (l->state != LAUNCH_NONE && launch_tick(l, clock_us(), &report) != LAUNCH_ENDED)
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    free(l->children);
    l->children = NULL;
    if (l->events >= 0)
        close(l->events);
    l->events = -1;
}
