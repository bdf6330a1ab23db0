/*
 * world: a world of ranks and clients around a `struct coordinator`, without sockets, clocks or
 * processes. The ranks do not compute the model: they keep each position's token in the KV block where
 * the coordinator put it, and "sample" a hash of the tokens that the block tables lead to. So a token
 * is right only if blocks, slots, references and replay are right.
 */
#ifndef GPTOSS_TESTS_WORLD_H
#define GPTOSS_TESTS_WORLD_H

#include "coordinator/core.h"

#define WORLD_CLIENTS  64
#define WORLD_REQUESTS 10000
#define WORLD_SLOTS    64

struct world_request { /* what a client has seen of a request */
    struct tokens tokens;
    struct text text;      /* of all pieces */
    struct text reasoning; /* of the analysis channel */
    bool accepted, refused, finished;
    bool resumed; /* it asked for tokens that may come twice */
    uint32_t finishes, progress;
    uint32_t cached; /* tokens of its prompt that were not computed for it */
    Gptoss__Finished__Reason reason;
    Gptoss__Code code;
    char refusal[512];
    uint64_t retry_ms;
};

struct world_slot {
    uint32_t full[4096], window[4096];
    size_t n_full, n_window, freed;
    uint32_t last; /* sampled for it */
    bool live;
};

struct world_step {
    uint8_t *bytes;
    size_t size;
};

struct fake {
    struct coordinator *c;
    const struct gguf_model *model;
    uint64_t now, random;
    uint32_t ranks;
    uint64_t world_id, epoch;
    uint64_t memory_free;
    bool alive; /* the ranks */
    /* Told what is sent before it is taken for one of the world's own: whether it was somebody else's. */
    bool (*stranger)(const struct coordinator_event *sent);
    uint32_t fast_ranks; /* as many, from rank 0 on, join with int8 activations */
    Gptoss__Plan *plan;
    struct world_slot slots[WORLD_SLOTS];
    uint32_t *full_pool, *window_pool; /* [blocks][block_tokens]: the token at that position */
    bool *full_shared, *window_shared; /* [blocks]: given to a sequence that begins behind it */
    struct world_step queue[64];
    size_t queued;
    uint64_t max_queued, steps, rows, multi_rows, tokens;
    bool client_gone[WORLD_CLIENTS];
    struct world_request requests[WORLD_REQUESTS]; /* request id = its index as "r%04u" */
    char lost[512], impossible[1024];
    struct text *records; /* [n_records] of a journal */
    size_t n_records, records_capacity;
    bool disk_is_slow; /* what is to be kept is not kept until fake_sync */
    uint32_t n_serving;
    uint32_t n_rank_refused;
    char rank_refusal[512];
};

struct fake *fake_create(const struct gguf_model *model, uint32_t ranks,
                         struct coordinator_options options);
void fake_destroy(struct fake *f);
/* Pools of so many blocks instead of those of the plan: nothing may run. */
void fake_pools(struct fake *f, uint32_t full, uint32_t window);
/* Ranks come (a new world), join, load and are ready. */
void fake_start(struct fake *f);
void fake_kill(struct fake *f); /* the ranks vanish; what they held is gone */
void fake_pump(struct fake *f); /* events → clients and ranks */
bool fake_step(struct fake *f); /* the ranks run their oldest step; false: there is none */
void fake_run(struct fake *f);  /* until nothing is left to do */
void fake_sync(struct fake *f); /* the journal reaches the disk */
void fake_tick(struct fake *f, uint64_t us);

void fake_send(struct fake *f, uint32_t client, const Gptoss__ClientMessage *message);
/* A request with random options of token ids; returns its index. */
void fake_ask(struct fake *f, uint32_t client, uint32_t request, const uint32_t *ids, size_t n,
              uint32_t max_tokens, uint64_t seed);
void fake_cancel(struct fake *f, uint32_t client, uint32_t request);

/* The parts of these, for a world that delivers messages by itself (simulation.c). */
void fake_forget(struct fake *f);                         /* the ranks and what they held */
void fake_plan(struct fake *f, const Gptoss__Plan *plan); /* the ranks get their memory */
/* The ranks run a step; the result's samples are static memory. */
void fake_compute(struct fake *f, const Gptoss__Step *step, Gptoss__StepResult *result);
void fake_hear(struct fake *f, const Gptoss__ServerMessage *m); /* a client receives */

/* What the fake model says next; the answer alone is a loop around it. */
uint32_t fake_next(const uint32_t *tokens, size_t n, uint64_t seed);
void fake_answer(const struct coordinator *c, const uint32_t *ids, size_t n, uint32_t max_tokens,
                 uint64_t seed, struct tokens *answer);

#endif
