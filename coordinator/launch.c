#include "coordinator/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "coordinator/coordinator.h"

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
        errno = failure;
        snprintf(err, err_size,
                 "cannot start mpirun: %m: install Open MPI (apt install openmpi-bin)");
        return -1;
    }
    setpgid(pid, pid);
    l->pid = pid;
    return 0;
}

bool launch_ended(struct launch *l, int *code)
{
    int status;
    if (l->pid == 0 || waitpid(l->pid, &status, WNOHANG) != l->pid)
        return false;
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    kill(-l->pid, SIGKILL); /* what mpirun may have left behind */
    l->pid = 0;
    return true;
}

void launch_stop(struct launch *l, double seconds)
{
    int code;
    for (int i = 0; l->pid && !launch_ended(l, &code); i++) {
        if (i == (int)(seconds * 100))
            kill(-l->pid, SIGTERM);
        if (i == (int)(seconds * 100) + 300)
            kill(-l->pid, SIGKILL);
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
}
