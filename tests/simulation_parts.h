/*
 * simulation_parts: what simulation.c (schedules, connections), simulation_ranks.c and
 * simulation_clients.c share.
 */
#ifndef GPTOSS_TESTS_SIMULATION_PARTS_H
#define GPTOSS_TESTS_SIMULATION_PARTS_H

#include "tests/simulation.h"

#define REQUESTS 16
#define CLIENTS  6
#define RANKS    4
#define WORLDS   512
#define PROMPT   120
#define MS       1000u
#define SECOND   1000000u
#define SLOW     24 /* messages that a slow client's queue holds */

#define check(x)                                                                                   \
    do {                                                                                           \
        if (!(x))                                                                                  \
            fail_msg("%s:%d: at %.3f s: %s", __FILE__, __LINE__, (double)s->f->now * 1e-6, #x);    \
    } while (0)

/* One direction of a connection. What is under way when it breaks may be lost. */
struct wire {
    uint64_t last_us;
    uint32_t generation, queued;
};

enum event_kind {
    TO_COORDINATOR,
    TO_RANK,
    TO_CLIENT,
    RANK_HELLO,
    RANK_BEAT,
    RANK_READY,
    STEP_DONE,
    WORLD_START,
    WORLD_ENDS,
    RANK_SEEN, /* whoever started the rank sees that it does not run */
    OPERATOR,
    FAULT,
    ASK,
    CANCEL,
    VANISH,
    COME_BACK,
};

struct sim_event {
    uint64_t at_us, order;
    enum event_kind kind;
    uint64_t world;
    uint32_t who; /* rank, client or request */
    struct wire *wire;
    uint32_t generation;
    enum coordinator_side side;
    struct core_peer peer;
    uint8_t *bytes;
    size_t size;
};

struct sim_rank {
    bool dead, stopped, stuck;
    bool welcomed;
    uint32_t connection;
    struct wire in, out, beats;
};

struct sim_world {
    uint64_t epoch;
    uint32_t size;
    bool faulted, ended, foreign, told; /* told: to shut down */
    uint64_t started_us;
    struct sim_rank ranks[RANKS];
    struct world_step queue[64]; /* steps at stage 0, oldest first */
    size_t queued;
    bool busy;
    uint64_t computed;
};

struct sim_client {
    uint32_t connection;
    bool connected, slow;
    struct wire in, out;
};

struct sim_request {
    uint32_t client, ids[PROMPT], max_tokens;
    size_t n_ids;
    uint64_t linger_ms, deadline_ms;
    bool asked, cancelled, abandoned, poison;
    uint32_t deaths; /* by the rule, counted from outside */
    bool mourned;
    size_t tokens; /* that the coordinator has for it, the prompt's too */
};

struct simulation {
    struct fake *f;
    uint64_t random, order;
    struct sim_event *events; /* a heap */
    size_t n_events, events_capacity;
    struct sim_world *worlds; /* [WORLDS] by world_id */
    uint64_t world;           /* the current one; 0: none yet */
    struct sim_client clients[CLIENTS];
    struct sim_request requests[REQUESTS];
    uint32_t n_clients, n_requests, faults;
    bool launched;    /* by something that sees how ranks end */
    bool crowded;     /* there are few KV blocks: sequences give way */
    uint64_t calm_us; /* no faults from then on */
    struct {
        uint64_t number;
        uint64_t rows; /* bit r: of request r */
    } in_flight[64];
    size_t n_in_flight;
    struct simulation_counts *counts;
};

uint64_t sim_draw(struct simulation *s, uint64_t n);
bool sim_chance(struct simulation *s, uint32_t percent);
void sim_after(struct simulation *s, uint64_t us, enum event_kind kind, uint64_t world,
               uint32_t who);
struct core_peer sim_peer(char kind, uint64_t world, uint32_t who, uint32_t connection);
void sim_transmit(struct simulation *s, struct wire *wire, struct sim_event e, const void *bytes,
                  size_t size);
void sim_cut(struct wire *wire);
void sim_start_world(struct simulation *s);
void sim_end_world(struct simulation *s, uint64_t world);
void sim_rank_hello(struct simulation *s, uint64_t world, uint32_t rank);
void sim_rank_beat(struct simulation *s, uint64_t world, uint32_t rank);
void sim_step_done(struct simulation *s, uint64_t world);
void sim_rank_hears(struct simulation *s, uint64_t world, uint32_t rank,
                    const Gptoss__SupervisorMessage *m);
void sim_rank_ready(struct simulation *s, uint64_t world, uint32_t rank);
void sim_rank_seen(struct simulation *s, uint64_t world, uint32_t rank);
void sim_world_ends(struct simulation *s, uint64_t world);
void sim_operator_looks(struct simulation *s);
void sim_fault(struct simulation *s);
void sim_ask(struct simulation *s, uint32_t request);
void sim_cancel(struct simulation *s, uint32_t request);
void sim_vanish(struct simulation *s, uint32_t client);
void sim_come_back(struct simulation *s, uint32_t client);
void sim_client_hears(struct simulation *s, const Gptoss__ServerMessage *m);
void sim_pump(struct simulation *s);

#endif
