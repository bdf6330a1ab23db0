/*
 * core: the coordinator's insides, shared by the files of `struct coordinator`
 * (docs/architecture.md).
 */
#ifndef GPTOSS_COORDINATOR_CORE_H
#define GPTOSS_COORDINATOR_CORE_H

#include "base/base.h"
#include "coordinator/blocks.h"
#include "coordinator/coordinator.h"
#include "coordinator/harmony.h"
#include "coordinator/metrics.h"
#include "coordinator/patience.h"
#include "coordinator/prefix.h"
#include "coordinator/seen.h"
#include "coordinator/times.h"
#include "coordinator/tokenizer.h"
#include "coordinator/trace.h"
#include "coordinator/wire.h"
#include "proto/proto.h"

#define CORE_NONE            UINT32_MAX
#define CORE_ID_MAX          64 /* bytes of a request id */
#define CORE_STOPS_MAX       16
#define CORE_STOP_BYTES_MAX  256
#define CORE_TOP_LOGITS_MAX  32
#define CORE_LINGER_MAX_MS   600000
#define CORE_LINGERING_MAX   256                 /* finished requests kept for Resume */
#define CORE_LINGERING_BYTES ((size_t)256 << 20) /* of their answers */
#define CORE_RESUME_TOKENS   64                  /* tokens of one Output that answers a Resume */
#define CORE_DEATHS_MAX      3 /* losses of the ranks in a row for one request without a token gained */
#define CORE_ENCODE_BUDGET   65536   /* bytes of text tokenised in one tick */
#define CORE_EVENT_BYTES     4096    /* of an event's memory that are kept for the next one */
#define CORE_SECOND          1000000 /* µs */
#define CORE_PROGRESS_US     CORE_SECOND
#define CORE_HEARTBEAT_US    (CORE_SECOND / 10)
#define CORE_GAP_US          (CORE_SECOND / 8) /* most of a rank's silence that one tick may add */
#define CORE_LATE_TIMES      8 /* a busy host: so many times our own delay is granted to ranks … */
#define CORE_LATE_US         (CORE_SECOND / 4) /* … and no more of it than this */
#define CORE_SEEN_US                                                                               \
    (CORE_SECOND / 2) /* a rank that was seen running so lately may say nothing … */
#define CORE_STARVED_US (10 * (uint64_t)CORE_SECOND)  /* … for so long: the host is busy */
#define CORE_JOINING_US (120 * (uint64_t)CORE_SECOND) /* ranks that do not come, or … */
#define CORE_LOADING_US (120 * (uint64_t)CORE_SECOND) /* … that load and do not move */
#define CORE_ASK_US     5000                          /* between two questions how the ranks are */

struct core_peer {
    unsigned char bytes[PROTO_PEER_MAX];
    size_t size; /* 0: nobody */
};

/* The life of a request:
 *
 *   ENCODING ──▶ WAITING ──▶ RUNNING ──▶ DONE
 *                   ▲───────────┘  its blocks were taken, or the ranks were lost
 *
 * From every state a cancel, a deadline or an error leads to DONE. A request that is DONE is removed
 * at once, or when its linger time is over. */
enum request_state { REQUEST_ENCODING, REQUEST_WAITING, REQUEST_RUNNING, REQUEST_DONE };

struct request {
    uint64_t serial; /* order of arrival; 0 is no request */
    unsigned char id[CORE_ID_MAX];
    size_t id_size;
    struct core_peer client;
    enum request_state state;

    /* What was asked. */
    struct prompt prompt; /* until it is encoded */
    enum harmony_start start;
    float temperature, top_p, min_p;
    uint32_t top_k, top_logits, max_tokens;
    uint64_t seed;
    bool ignore_eos;
    uint32_t n_stops;
    struct gguf_string stops[CORE_STOPS_MAX]; /* owned */
    uint64_t deadline_us;                     /* absolute; UINT64_MAX: none */
    uint64_t linger_us;
    uint64_t linger_until_us;

    /* What there is: prompt, then sampled tokens. */
    struct tokens tokens;
    size_t n_prompt;
    struct harmony_parser *parser;
    struct text held; /* text that may be the beginning of a stop text */
    Gptoss__Piece__Channel held_channel;
    uint32_t held_message;
    bool stopped; /* a stop text was met */

    /* Where it is in the pipeline. The token at index i is the input at position i; the logits of
     * position p give the token at index p + 1. */
    uint32_t slot;       /* CORE_NONE unless RUNNING */
    uint64_t generation; /* rises when its rows in flight become void */
    size_t issued;       /* positions given to steps */
    size_t computed;     /* positions whose steps are done */
    uint32_t pending;    /* samples that are under way */
    bool restart;        /* the next row is the first in this slot */
    uint64_t last_step;  /* the last step that holds a row of it, */
    uint32_t last_row;   /* and which one */
    struct block_table full, window;
    size_t window_told;      /* front entries of `window` whose end the stages know */
    struct prefix_path path; /* of its blocks, while RUNNING */
    uint32_t wait_node;      /* WAITING: somebody computes its prefix, as far as this node; */
    uint64_t wait_serial;    /* BLOCKS_NONE: nobody */
    uint32_t cached;         /* tokens that were in the cache when it was first admitted */

    /* Times, µs. */
    uint64_t accepted_us, first_step_us, first_token_us, last_token_us, last_sent_us;

    /* For Resume: packed ServerMessages, one a token, and the last. Only where it lingers. */
    struct text *outputs;
    size_t n_outputs, outputs_capacity;
    size_t outputs_bytes;
    struct text finished;

    /* Where there is a journal. */
    struct text asked; /* packed, until it is accepted */
    bool kept;         /* the journal knows it */
    bool keeping;      /* ENCODING is over, but it is not yet on disk: */
    uint64_t record;   /* when so many records are */

    /* A request that brings the ranks down is not replayed for ever. */
    uint32_t deaths; /* in a row, with rows in flight; a token gained makes it 0 */
    bool mourned;    /* at the last one */
};

/* A row of a step in flight. */
struct step_row {
    uint64_t serial, generation;
    uint32_t slot;
    uint32_t position, count, sample_from;
};

struct step {
    uint64_t number; /* 0: free */
    uint64_t issued_us;
    uint32_t n_rows;
    struct step_row *rows; /* [plan.step_rows] */
    struct cost_work work; /* of all its rows */
};

struct rank {
    bool here, joined, ready;
    struct core_peer peer;
    uint32_t pid;
    uint64_t heard_us;  /* its last sign of life */
    uint64_t silent_us; /* since then, without the time in which we did not listen */
    uint64_t seen_us;   /* when whoever started it last saw it running; 0: nobody looks */
    uint64_t quiet_ms;  /* since the thread that runs steps was seen moving, as it says itself */
    uint64_t computed;  /* the last step that it is done with, as far as we heard */
    char host[64], device[128], device_uuid[64], backend[32], transports[64];
    uint64_t memory_free;
    double bandwidth;
    double loaded;
    uint64_t weights_bytes, kv_bytes, activation_bytes;
    double busy_seconds, up_seconds;
    uint32_t queue;
    uint64_t steps;
    struct times_clock clock;
    int exit_code; /* with which it leaves, as it said; 0: it did not */
};

enum world_state { WORLD_NONE, WORLD_JOINING, WORLD_LOADING, WORLD_SERVING };

struct world {
    enum world_state state;
    uint64_t id;
    uint64_t epoch;
    uint64_t since_us;
    uint32_t size;
    struct rank *ranks; /* [size] */
    struct plan *plan;  /* from LOADING on */
    uint64_t asked_us;  /* when the ranks may be asked how they are */
};

struct event {
    enum coordinator_event_kind kind;
    enum coordinator_side side;
    struct core_peer peer;
    struct text bytes;
    int level, code;
};

struct coordinator {
    struct coordinator_options options;
    struct tokenizer *tokenizer;
    char *model_path;
    uint32_t context; /* of any plan */

    struct request **requests; /* [n_requests], by age; owned */
    size_t n_requests, requests_capacity;
    uint32_t n_encoding, n_done; /* of them in these states */
    uint32_t n_keeping;          /* of those ENCODING */
    uint64_t n_records;          /* handed out */
    uint64_t finished_us,
        finish_gap_us;        /* the last request that ended; the usual time between two */
    uint32_t refused_since;   /* requests refused as too many, since then */
    bool restoring;           /* what happens is in the journal already */
    uint64_t requests_due_us; /* when a deadline, a progress or a removal is due; 0: look */
    uint64_t last_serial;
    uint64_t seed_state;

    struct world world;
    uint64_t epoch;
    uint64_t heartbeat_us; /* when the next ones are due */
    uint64_t ticked_us;    /* when ranks_tick last looked */
    uint64_t late_us;      /* by how much that was lately too late at most: the host is busy */

    /* While SERVING. */
    struct blocks full, window;
    struct prefix *prefix; /* NULL: switched off */
    uint64_t kv_step;      /* the step whose rows were given blocks last */
    size_t kv_given;       /* so many */
    uint64_t kv_refused;   /* the request that kv_refused_room blocks were too few for */
    size_t kv_refused_room;
    bool *slots;              /* [plan.sequences] taken */
    struct request **by_slot; /* [plan.sequences] who has it, or NULL */
    struct request **running; /* [n_running] by age: those that have a slot */
    uint32_t n_running;
    struct step *steps; /* [plan.steps_in_flight]; step n at (n − 1) % steps_in_flight */
    uint64_t next_step, oldest_step; /* numbers; in flight: oldest … next − 1 */
    uint64_t result_us;              /* when the last result came */
    struct patience patience;
    bool on_trial;                   /* kv.c: a request may be, see there */
    struct row_buffers *row_buffers; /* sched.c: where a step is put together */
    struct wire_result result;       /* core.c: the last one that came */
    struct answer *answer;           /* requests.c: the text of one token */
    struct times *times;             /* times.c */
    struct seen_loss loss;           /* seen.c: the last one; outlives the world */

    struct metrics *metrics; /* metrics.c; always there */
    struct traces *traces;   /* trace.c; NULL: nobody traces */

    struct cost_stage *costs; /* [n_costs] of each stage; outlives the world */
    uint32_t n_costs;
    bool costs_told;             /* the stages tell what their steps took */
    uint32_t groups;             /* that decoding sequences were last cut into */
    struct cost_past *cost_past; /* costs.c: the steps that stages may still tell of */
    uint64_t gap_us;             /* options.gap_us, or the default for these ranks */
    double decode_seconds;       /* what the last step's decode rows take */

    struct event *events; /* [events_capacity] a ring */
    size_t events_first, events_count, events_capacity;
    struct text *taken; /* bytes of the event that coordinator_take handed out last, or NULL */

    bool draining, stopped;
    uint64_t started_us;
    uint64_t n_steps, n_finished, n_refused, n_sampled, n_prompt, n_cached, n_preemptions;
};

/* core.c */
void core_send_client(struct coordinator *c, const struct core_peer *peer,
                      const Gptoss__ServerMessage *message);
/* The bytes of a message, into the text, whose memory is used again. */
void core_pack(const ProtobufCMessage *message, struct text *out);
void core_send_bytes(struct coordinator *c, const struct core_peer *peer, const struct text *bytes);
void core_send_rank(struct coordinator *c, const struct core_peer *peer,
                    Gptoss__SupervisorMessage *message);
/* The text of a new COORDINATOR_KEEP, empty. */
struct text *core_keep(struct coordinator *c, bool soon);
void core_event(struct coordinator *c, enum coordinator_event_kind kind, int code,
                const char *text);
void core_log(struct coordinator *c, enum log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
bool core_peer_equal(const struct core_peer *a, const struct core_peer *b);
ProtobufCBinaryData core_binary(const void *bytes, size_t size);

/* requests.c */
void requests_receive(struct coordinator *c, const struct core_peer *peer,
                      const Gptoss__ClientMessage *message, uint64_t now);
void requests_gone(struct coordinator *c, const struct core_peer *peer, uint64_t now);
/* Deadlines, lingering, progress, tokenising. */
void requests_tick(struct coordinator *c, uint64_t now);
uint64_t requests_next(const struct coordinator *c, uint64_t now);
struct request *requests_find_serial(const struct coordinator *c, uint64_t serial);
/* A token was sampled for a running request. */
void requests_token(struct coordinator *c, struct request *r, const Gptoss__Sample *sample,
                    uint64_t now);
void requests_finish(struct coordinator *c, struct request *r, Gptoss__Finished__Reason reason,
                     Gptoss__Code code, const char *text, uint64_t now);
void requests_refuse(struct coordinator *c, const struct core_peer *peer, const void *id,
                     size_t id_size, Gptoss__Code code, uint64_t retry_ms, const char *text);
/* The ranks are lost: the deaths of requests whose rows were in their steps are counted … */
void requests_mourn(struct coordinator *c);
/* … unless somebody else turns out to be the cause. */
void requests_verdict(struct coordinator *c, bool foreign);
/* Other ranks serve. A request with CORE_DEATHS_MAX deaths in a row, no token gained in between, is
 * answered with an error. */
void requests_judge(struct coordinator *c, uint64_t now);
/* The ranks are gone: whoever waits is told at the next tick. */
void requests_pause(struct coordinator *c);
uint32_t requests_count(const struct coordinator *c, enum request_state state);
void requests_destroy(struct request *r);
struct request *requests_find(const struct coordinator *c, ProtobufCBinaryData id);
/* A new request, of state ENCODING. */
void requests_add(struct coordinator *c, struct request *r, uint64_t now);
void requests_encode_now(struct coordinator *c, struct request *r, uint64_t now); /* all of it */
void requests_kept(struct coordinator *c, struct request *r, uint64_t now);       /* on disk */
void requests_free_answer(struct coordinator *c);

/* sched.c */
void sched_create(struct coordinator *c); /* for c->world.plan */
void sched_destroy(struct coordinator *c);
/* Forms and sends steps while there is work and room in the pipeline. */
void sched_run(struct coordinator *c, uint64_t now);
void sched_result(struct coordinator *c, const Gptoss__StepResult *result, uint64_t now);
/* Takes slot and blocks from a running request; it becomes WAITING (or what the caller makes of it). */
void sched_release(struct coordinator *c, struct request *r);

/* costs.c */
void costs_destroy(struct coordinator *c);

/* ranks.c */
void ranks_receive(struct coordinator *c, const struct core_peer *peer,
                   const Gptoss__RankMessage *message, uint64_t now);
void ranks_gone(struct coordinator *c, const struct core_peer *peer, uint64_t now);
void ranks_tick(struct coordinator *c, uint64_t now);
void ranks_ask(struct coordinator *c, uint64_t now); /* how they are */
void ranks_shutdown(struct coordinator *c, const char *reason);
/* The world cannot go on: the ranks that are left are told to leave, every running request waits for
 * the next world. `rank` is the one to blame, or NULL. */
void ranks_lose(struct coordinator *c, const struct rank *rank, uint64_t now, const char *format,
                ...) __attribute__((format(printf, 4, 5)));
void ranks_status(const struct coordinator *c, uint64_t now, Gptoss__Status *status);

/* watch.c */
/* "rank 2 on spruce (pid 711)": as much of it as is known. */
const char *watch_name(const struct coordinator *c, const struct rank *rank, char name[128]);
/* The step that a rank to blame was at, and when it was last heard of. */
void watch_signs(const struct coordinator *c, const struct rank *rank, uint64_t now, char *text,
                 size_t text_size);
/* A rank that must be given up, if there is one. True: the ranks were lost. */
bool watch_judge(struct coordinator *c, uint64_t now);
/* A process of a rank has ended, or does not run. False: it is none of the world's. */
bool watch_ended(struct coordinator *c, int64_t pid, const char *what, uint64_t now);
/* When to judge again, or to send heartbeats. */
uint64_t watch_next(const struct coordinator *c, uint64_t now);

#endif
