/*
 * launch: `mpirun -np N gptoss-worker` as a child of the coordinator; nothing here waits.
 *
 *   NONE ──start──▶ RUNS ──end──▶ LEAVES ──it has ended, or its grace is over──▶ KILLED ──▶ NONE
 *                     └──────────────── mpirun has ended ───────────────────────────┘
 *
 * mpirun gives each rank a process group of its own, and does not survive SIGKILL itself: so the
 * coordinator adopts orphans (PR_SET_CHILD_SUBREAPER) and ends what mpirun leaves behind, together with
 * its files and shared memory, which lie in folders of their own.
 */
#ifndef GPTOSS_COORDINATOR_LAUNCH_H
#define GPTOSS_COORDINATOR_LAUNCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum launch_state { LAUNCH_NONE, LAUNCH_RUNS, LAUNCH_LEAVES, LAUNCH_KILLED };

struct launch {
    enum launch_state state;
    pid_t pid;    /* of mpirun, which leads a process group of its own; 0: it has been reaped */
    int code;     /* its exit code, or 128 + the signal's number, once it has been */
    bool killed;  /* by us */
    bool stopped; /* mpirun was, by a signal */
    uint64_t oom_kills;            /* of this host, when it was started */
    uint64_t until_us;             /* when the grace is over, or the wait for the killed */
    uint64_t looked_us;            /* when the ranks' states were last looked at */
    int events;                    /* epoll of the ranks' pidfds, to be polled; −1: none */
    struct launch_child *children; /* [n_children]; owned */
    size_t n_children, children_capacity;
    char folders[2][64]; /* mpirun's session, and shared memory; "": none */
};

enum launch_news {
    LAUNCH_NOTHING,
    LAUNCH_DIED,    /* a rank, `pid` */
    LAUNCH_STOPPED, /* a rank, or mpirun itself: it does not run any more */
    LAUNCH_ENDED,   /* all of them have; `code` */
};
struct launch_report {
    pid_t pid;
    int code;
    bool
        foreign; /* somebody's SIGKILL ended it, neither ours nor the kernel's for want of memory */
};

/* The ranks that ran when they were last looked at: calls `see` for each. */
void launch_running(const struct launch *l, void (*see)(void *arg, pid_t pid), void *arg);
/* For a zeroed `l`; also clears away what coordinators that were killed have left on this host. */
void launch_open(struct launch *l);
/* Starts it: as root, in a container, and with more ranks than cores too. The child dies with us. */
int launch_start(struct launch *l, const char *worker, uint32_t ranks, const char *endpoint,
                 char *err, size_t err_size);
/* It has `grace_us` to end by itself, then all of it is killed. */
void launch_end(struct launch *l, uint64_t grace_us, uint64_t now);
/* The next piece of news. Call it until there is nothing, after each wait. */
enum launch_news launch_tick(struct launch *l, uint64_t now, struct launch_report *report);
/* When to look again. */
uint64_t launch_next(const struct launch *l, uint64_t now);
/* Ends it and waits for that; frees what it owns. */
void launch_close(struct launch *l, uint64_t grace_us);

#endif
