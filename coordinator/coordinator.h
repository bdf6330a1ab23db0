/*
 * coordinator: everything that is about people and text, as a pure function of (message, time).
 *
 * A `struct coordinator` holds the requests, the world of ranks, the schedule and the KV block tables.
 * It is told what arrived and what time it is, and hands out what is to be sent; sockets, clocks,
 * files and child processes stand outside (loop.c, main.c), so tests, simulators and fuzzers drive it
 * without them, in virtual time.
 *
 *     coordinator_receive(c, COORDINATOR_CLIENTS, peer, peer_size, bytes, size, now_us);
 *     coordinator_tick(c, now_us);
 *     while (coordinator_take(c, &event))
 *         … send it, log it …
 *     … wait for messages, at most until coordinator_next(c, now_us) …
 *
 * The state of a request is its prompt, the tokens sampled, its seed and its options; everything else
 * (KV, text, channels, stop strings) is a function of these. So a sequence may lose its KV at any time,
 * to another sequence or with a rank, and goes on later with the same tokens.
 */
#ifndef GPTOSS_COORDINATOR_COORDINATOR_H
#define GPTOSS_COORDINATOR_COORDINATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gguf/gguf.h"
#include "plan/plan.h"
#include "proto/proto.h"

struct coordinator;

struct coordinator_options {
    const struct gguf_model *model; /* lent */
    const char *model_path;         /* absolute, as the ranks will open it; lent */
    const char *device;             /* told to the ranks; NULL: auto; lent */
    const char *transport;          /* of all edges; NULL or "auto": the best there is; lent */
    uint32_t threads;               /* told to the ranks; 0: they choose */
    uint32_t context;               /* positions of a sequence; 0: the plan's default */
    uint32_t sequences;             /* at a time; 0: the plan's default */
    uint32_t kv_tokens;             /* KV positions of all sequences; 0: as many as fit */
    uint32_t step_tokens;           /* of a step; 0: 2048, or 128 where all ranks are CPUs */
    /* Prompts delay the tokens of others to one in this time, or to a third of their speed; 0: 50 ms,
     * or 200 where all ranks are CPUs */
    uint64_t gap_us;
    enum plan_kv_type kv_type;
    bool kv_type_given; /* else f16 on GPUs, f32 on CPUs */
    const uint32_t
        *layers; /* [n_layers_given] layers of each rank, by hand; NULL: computed; lent */
    enum plan_head head;
    uint32_t n_layers_given;
    bool fast;              /* the ranks' products take int8 activations; one without is refused */
    bool no_prefix_cache;   /* no sequence shares KV blocks with another */
    uint32_t max_queue;     /* requests that wait; 0: 512 */
    size_t max_queue_bytes; /* of their prompts; 0: 256 MiB */
    uint32_t max_client;    /* requests of one connection; 0: any number */
    uint64_t step_deadline_us; /* 0: 300 s */
    uint64_t silence_us;       /* a rank that says nothing for so long is lost; 0: 0.8 s */
    uint64_t seed;             /* of the seeds chosen for requests that name none */
    uint64_t epoch;            /* the last epoch that was used; the first world gets one more */
    bool journal;              /* hand out COORDINATOR_KEEP, and wait for coordinator_kept */
    uint64_t wall_us;          /* the wall clock minus the clock that is told */
};

/* 0, or -1 with *out NULL: the vocabulary is unusable, the options contradict the model. */
int coordinator_create(struct coordinator **out, const struct coordinator_options *options,
                       char *err, size_t err_size);
void coordinator_destroy(struct coordinator *c); /* NULL is fine */

enum coordinator_side { COORDINATOR_CLIENTS, COORDINATOR_RANKS };

/* A frame arrived. bytes NULL: it was no single frame. Anything at all may be in it. */
void coordinator_receive(struct coordinator *c, enum coordinator_side side, const void *peer,
                         size_t peer_size, const void *bytes, size_t size, uint64_t now_us);
/* A message could not be delivered: its receiver is gone, or does not read. */
void coordinator_gone(struct coordinator *c, enum coordinator_side side, const void *peer,
                      size_t peer_size, uint64_t now_us);
/* Time passed: deadlines, heartbeats, tokenising, forming steps. Call it after each batch of
 * messages and no later than coordinator_next says. */
void coordinator_tick(struct coordinator *c, uint64_t now_us);
uint64_t coordinator_next(const struct coordinator *c, uint64_t now_us);

enum coordinator_event_kind {
    COORDINATOR_SEND,    /* bytes to peer on side */
    COORDINATOR_LOG,     /* text at level (enum log_level) */
    COORDINATOR_SERVING, /* the world of ranks is ready; text is the table of the plan */
    COORDINATOR_LOST,    /* the world of ranks is gone; text says why; code is that of a rank that
                               failed by itself, or EXIT_FAILED */
    COORDINATOR_KEEP,    /* a record for the journal; code 1: it has to be on disk soon */
    COORDINATOR_IMPOSSIBLE, /* no world of this size can run the model here; code is an exit code */
};

struct coordinator_event {
    enum coordinator_event_kind kind;
    enum coordinator_side side;
    const void *peer;
    size_t peer_size;
    const void *bytes; /* or the text, terminated */
    size_t size;
    int level, code;
};
/* The next event in order; what it points to is valid until the next call with `c`. */
bool coordinator_take(struct coordinator *c, struct coordinator_event *event);

/* The first so many COORDINATOR_KEEPs are on disk: what waited for that is accepted. */
void coordinator_kept(struct coordinator *c, uint64_t records, uint64_t now_us);
/* A record of an earlier run, in the order in which they were handed out, before anything else happens.
 * Its request waits again, and lingers for its client. -1 and a sentence: it is not one, or does not fit
 * to the others; it changes nothing. */
int coordinator_restore(struct coordinator *c, const void *bytes, size_t size, uint64_t now_us,
                        char *err, size_t err_size);

/* Drain: refuse new requests, finish those that are there. Stop: end those too, unless
 * a journal keeps them, and tell the ranks to leave. */
void coordinator_drain(struct coordinator *c, uint64_t now_us);
void coordinator_stop(struct coordinator *c, const char *reason, uint64_t now_us);
/* Whoever started the ranks saw that one of them, by its process id, has ended or does not run. False:
 * none of the world has that id. */
bool coordinator_rank_ended(struct coordinator *c, int64_t pid, const char *what, uint64_t now_us);
/* … that it does run: a rank that says nothing is then taken for starved, for a while. */
void coordinator_rank_runs(struct coordinator *c, int64_t pid, uint64_t now_us);
/* What is known of the last loss of the ranks, before the next ones serve: that it was somebody's doing,
 * and no request is to blame, or not. */
void coordinator_verdict(struct coordinator *c, bool foreign);
/* The ranks' process ended: what it held is lost. */
void coordinator_world_ended(struct coordinator *c, const char *reason, uint64_t now_us);

/* How ranks are started on this host, as words before "-np": as root, in a container, with more ranks
 * than cores too. The worker places its threads itself, mpirun would bind a rank to a single core;
 * copies through the kernel need a capability that containers lack. */
#define COORDINATOR_MPIRUN                                                                         \
    "mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--mca",              \
        "btl_vader_single_copy_mechanism", "none"

/* What a plan tells the rank of a stage, but for the edges. */
void coordinator_plan_message(const struct plan *plan, uint32_t stage, uint64_t step_deadline_ms,
                              Gptoss__Plan *m);

/* The transport of an edge, of what its two ranks said in Join: between GPUs nccl, else ipc; on one GPU,
 * which NCCL refuses, ipc-host, or ipc under MPS; between CPUs mpi. All ipc within one host only.
 * `wanted`: that one or none; NULL or "auto": the best that both ends have. NULL: nothing joins them.
 * Static memory. */
struct coordinator_end {
    const char *host, *device_uuid, *transports;
};
const char *coordinator_transport(const struct coordinator_end *from,
                                  const struct coordinator_end *to, const char *wanted);
bool coordinator_transport_known(const char *wanted); /* of --transport */

/* The i-th edge of n ranks in the order in which all open theirs: from rank `result` to the next; the
 * last one's next is rank 0, the ring. Even ranks first, so that no edge waits for many before it. */
uint32_t coordinator_edge(uint32_t n, uint32_t i);

bool coordinator_has_ranks(const struct coordinator *c); /* all of a world have said Hello */

/* What steps cost on each stage, as far as it was measured: JSON for gptoss-bench simulate, in memory that
 * the caller frees. NULL: no ranks serve. */
char *coordinator_costs(const struct coordinator *c);

struct coordinator_counts {
    uint32_t running, waiting; /* requests */
    uint32_t lingering;        /* finished or without a client, kept for Resume */
    uint32_t steps_in_flight;
    uint32_t full_blocks_used, window_blocks_used;     /* in the tables of sequences */
    uint32_t full_blocks_cached, window_blocks_cached; /* kept for sequences to come */
    uint64_t cached_tokens;                            /* taken from the cache, not computed */
    uint64_t blocks_evicted;                           /* cached ones whose room was needed */
    uint64_t finished, refused;
    uint64_t sampled_tokens, prompt_tokens;
    uint64_t steps;
    uint64_t preemptions;
};
void coordinator_counts(const struct coordinator *c, struct coordinator_counts *counts);

/* ── how full the pipeline is ──────────────────────────────────────────────────────────────── */

/* When a step was where on a stage; all stages by one clock, µs. */
struct coordinator_stage_step {
    uint64_t step;        /* 0: none */
    uint64_t received_us; /* the stage knew of it */
    uint64_t started_us;  /* its inputs were there, it was given to the device */
    uint64_t finished_us; /* the device was done */
    uint64_t sent_us;     /* its outputs had left */
    uint32_t busy_us;     /* the device worked on it; time in the device's queue is not in it */
    /* Where the head is cut, the stage's part of it: done later, when the last stage has asked. */
    uint32_t head_us;
    uint64_t head_finished_us;
};

/* Puts what a rank tells into a ring of `kept` entries, step n at n % kept, where *last is the last one in
 * it; offset_us is added to the rank's times. 0; -1: it tells of steps up to *last or after `newest`, or
 * contradicts itself, and nothing was taken. */
int coordinator_take_times(const Gptoss__StepTimes *m, int64_t offset_us, uint64_t newest,
                           struct coordinator_stage_step *ring, size_t kept, uint64_t *last);

struct coordinator_occupancy {
    double seconds;          /* of the window; 0: nothing is known, nor is the rest */
    uint64_t steps;          /* that stage 0 finished in it */
    double bubble;           /* 1 − busy time of all stages ÷ (stages × seconds) */
    double hop_mean_seconds; /* from the device's end on a stage to the inputs being at the next */
    uint64_t hops;           /* that this is the mean of */
    double *busy;        /* [n_stages] share of the window that the stage's device worked; lent */
    double *hop_seconds; /* [n_stages] mean of the hops to this stage, 0: none; lent */
};

/* Of the window from_us … to_us. stages[s] is a ring of `kept` entries, step n at n % kept; last[s] is
 * the last step in it; what stage s did after until_us[s] is not known (until_us NULL: everything is). The
 * window ends where the first of them does, and begins where all rings reach. out->busy and
 * out->hop_seconds are set by the caller. */
void coordinator_occupancy(struct coordinator_occupancy *out,
                           const struct coordinator_stage_step *const *stages, size_t kept,
                           const uint64_t *last, const uint64_t *until_us, uint32_t n_stages,
                           uint64_t from_us, uint64_t to_us);

#endif
