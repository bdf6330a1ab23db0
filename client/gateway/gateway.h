/*
 * gateway: OpenAI's HTTP interface in front of a coordinator. One thread, one connection to the
 * coordinator, any number of HTTP connections.
 *
 *   options    what the command line asks for
 *   http       libmicrohttpd: connections, their limits, bodies, replies, streams
 *   routes     what stands at which path; health, models, metrics, the page and its events
 *   keys       who may ask
 *   link       the connection to the coordinator: questions, answers, resuming
 *   call       a question to the model, from its body to the last byte of its answer
 *   read       fields of a JSON body, and what is wrong with them; parameters that all calls share
 *   chat, completion, responses    one file for reading each kind of body, one for writing its answers
 *
 *   HTTP ──▶ http ──▶ routes ──▶ call ──read──▶ link ──▶ coordinator
 *   HTTP ◀── http ◀────────────── call ◀──write── link ◀── coordinator
 *
 * Nothing here waits: a connection whose answer is not there yet is suspended, and resumed when there is
 * something to say. What a client does not read is held up to STREAM_BYTES_MAX, then the client is cut.
 */
#ifndef GPTOSS_CLIENT_GATEWAY_H
#define GPTOSS_CLIENT_GATEWAY_H

#include <jansson.h>

#include "client/client.h"

#define BODY_BYTES_MAX                                                                             \
    ((size_t)4 << 20) /* of a request: what a message to the coordinator may be */
#define JSON_BYTES_MAX   ((size_t)64 << 20) /* that reading a body may allocate */
#define STREAM_BYTES_MAX ((size_t)1 << 20)  /* that wait for a client that reads nothing, … */
#define STREAM_BYTES_ALL                                                                           \
    ((size_t)64 << 20) /* … and for any client: the end of an answer in one piece */
#define ASKED_BYTES_MAX ((size_t)16 << 20) /* of all questions of a call to the coordinator */
#define HELD_BYTES_MAX                                                                             \
    ((size_t)512 << 20) /* of all calls: their bodies, read, and their questions */
#define CHOICES_MAX 128 /* answers of one call: n × prompts */

struct MHD_Daemon;
struct MHD_Connection;
struct gateway;
struct exchange;
struct call;
struct choice;

/* ── options ───────────────────────────────────────────────────────────────────────────────── */

struct gateway_options {
    struct options client; /* endpoint, keys, timeouts */
    const char *host, *api_key_file, *model_name;
    int64_t port, connections;
    double drain_seconds, request_seconds;
    bool insecure;
};

int gateway_options_read(struct gateway_options *o, int argc, char **argv);

/* ── http ──────────────────────────────────────────────────────────────────────────────────── */

enum exchange_state {
    EXCHANGE_READING,   /* the body comes */
    EXCHANGE_WAITING,   /* for somebody to call http_reply or http_stream */
    EXCHANGE_REPLY,     /* whole: http_reply was called */
    EXCHANGE_STREAMING, /* http_stream was called */
};

/* One HTTP request and its answer. It lives until MHD says that it is over. */
struct exchange {
    struct gateway *gateway;
    struct MHD_Connection *connection;
    struct exchange *previous, *next; /* of the gateway's list */
    int fd;
    enum exchange_state state;
    int route;           /* enum route */
    char path[128];      /* after the route's own */
    bool begun;          /* the response was given to MHD */
    bool waited;         /* it was suspended before: all of the body is there */
    bool suspended;      /* MHD leaves the connection alone until it is resumed */
    bool aborted;        /* the client is gone, or is to be cut */
    bool ended;          /* of a stream: nothing will be added to `out` */
    double began, wrote; /* clock_seconds: the request came; a stream was last written to */
    struct text body;
    size_t body_dropped; /* bytes that came and were not kept, as the request is refused already */
    struct text out;     /* of a reply all, of a stream what MHD has not taken */
    size_t taken;        /* bytes of `out` that MHD has */
    int status;
    const char *type; /* of the content */
    uint64_t retry_ms;
    const char *challenge;
    struct call *call; /* NULL: none */
};

/* Opens the listening socket and starts MHD. `url` becomes where the gateway is found. */
int http_open(struct gateway *g, struct text *url, char *err, size_t err_size);
void http_close(struct gateway *g);
/* For zmq_poll, and the time until MHD wants to run, at most `most` ms. */
int http_fd(const struct gateway *g);
long http_timeout(const struct gateway *g, long most);
void http_run(struct gateway *g);
/* About once a second: slow requests, clients that are gone, streams that have been silent. */
void http_sweep(struct gateway *g, double now);
void http_stop_listening(struct gateway *g);

/* The whole answer; takes the memory of *body. */
void http_reply(struct exchange *x, int status, const char *type, struct text *body);
/* Begins a stream of server-sent events: the caller appends to x->out, then calls http_flush. */
void http_stream(struct exchange *x);
void http_flush(struct exchange *x);
void http_end(struct exchange *x);   /* of a stream, after its last byte */
void http_abort(struct exchange *x); /* the connection is closed without an end */
const char *http_header(const struct exchange *x, const char *name); /* NULL: not given */

/* ── keys ──────────────────────────────────────────────────────────────────────────────────── */

struct api_keys {
    char **keys;
    size_t n, capacity;
};
int api_keys_read(struct api_keys *k, const char *path, char *err, size_t err_size);
void api_keys_free(struct api_keys *k);
/* Whether the header Authorization holds one of the keys; the time it takes tells nothing of them. */
bool api_keys_admit(const struct api_keys *k, const char *authorization);

/* ── problems: errors in OpenAI's form ─────────────────────────────────────────────────────── */

struct problem {
    int status; /* HTTP; 0: there is none */
    const char *type, *code;
    char param[128]; /* "": none */
    char message[512];
    uint64_t retry_ms;
};

void problem_set(struct problem *p, int status, const char *code, const char *param,
                 const char *format, ...) __attribute__((format(printf, 5, 6)));
/* What the coordinator says. */
void problem_of_code(struct problem *p, Gptoss__Code code, const char *text, uint64_t retry_ms);
void problem_json(struct text *out, const struct problem *p); /* {"error": {…}} */
void problem_reply(struct exchange *x, const struct problem *p);

/* ── routes ────────────────────────────────────────────────────────────────────────────────── */

enum route {
    ROUTE_PAGE,
    ROUTE_ICON,
    ROUTE_HEALTH,
    ROUTE_LIVE,
    ROUTE_READY,
    ROUTE_METRICS,
    ROUTE_PIPELINE,
    ROUTE_MODELS,
    ROUTE_MODEL,
    ROUTE_CHAT,
    ROUTE_COMPLETIONS,
    ROUTE_RESPONSES,
    ROUTE_NONE,
    ROUTES
};

/* Before the body: 0, or -1 and why the request is refused. */
int routes_find(struct exchange *x, const char *url, const char *method, struct problem *p);
/* With the body: answers, or leaves the exchange WAITING. */
void routes_run(struct exchange *x);
void routes_metrics(struct gateway *g, const Gptoss__Metrics *m); /* NULL: they did not come */
void routes_status(struct gateway *g);                            /* a new status is there */
void routes_tick(struct gateway *g, double now);
void routes_count(struct gateway *g, const struct exchange *x); /* it is over */
const char *routes_model(struct gateway *g); /* its name; "" where it is not known yet */

/* ── calls ─────────────────────────────────────────────────────────────────────────────────── */

/* What a kind of call does. Writers append to call->exchange->out. */
struct api {
    const char *id_prefix;
    /* The body → the call's parameters. 0; -1 and a problem. */
    int (*read)(struct call *call, struct problem *p);
    void (*open)(struct call *call); /* of a stream: before all choices */
    /* Of a stream: text that came. */
    void (*piece)(struct choice *choice, const struct answer_part *part, bool first,
                  const char *bytes, size_t size);
    void (*finish)(struct choice *choice); /* of a stream: the choice is complete */
    void (*end)(struct call *call);        /* of a stream: all are */
    void (*fail)(struct call *call, const struct problem *p); /* of a stream that is open */
    void (*whole)(struct call *call, struct text *out);       /* not streamed */
};
extern const struct api api_chat, api_completion, api_responses;

/* One answer of a call. */
struct choice {
    struct call *call;
    uint32_t index;
    struct answer answer;
    uint64_t number;   /* of the request id; 0: never asked */
    struct text asked; /* Generate, until a token came */
    bool unsent;       /* `asked` has not been taken by the socket */
    bool resume;       /* Resume is to be sent */
    bool resuming;     /* Resume was sent, and not answered */
    bool done;
    double asked_at;
    /* Tokens whose text is the answer, for log probabilities: see logprobs_take. */
    size_t seen, pending, reported;
    size_t *shown; /* [n_shown] indices of answer.tokens */
    size_t n_shown, shown_capacity;
    size_t *part_shown; /* [n_part_shown] for each part, n_shown when it began */
    size_t n_part_shown, part_shown_capacity;
    /* What a writer remembers. */
    struct text head; /* how each of its chunks begins */
    size_t n_calls;
    size_t text_offset;
    bool item_open;
};

struct call {
    struct gateway *gateway;
    struct exchange *exchange;
    const struct api *api;
    json_t *root;           /* the body; strings of `request` point into it */
    json_t *names;          /* of the functions called before, by the id of the call; or NULL */
    struct options request; /* sampling, limits, reasoning, tools */
    struct conversation conversation;
    bool chat; /* `conversation` is the prompt; otherwise `prompts` */
    struct prompt_of_call {
        struct text text;
        uint32_t *ids; /* or these, [n_ids] */
        size_t n_ids;
    } * prompts;
    size_t n_prompts, prompts_capacity;
    uint32_t n; /* answers for each prompt */
    bool stream, include_usage, logprobs;
    uint32_t top_logprobs;
    char id[48];
    int64_t created;
    struct text head, tail; /* how every chunk begins, and how those without news end: by `open` */
    struct choice *choices;
    size_t n_choices, n_done;
    bool opened;
    size_t sequence; /* of responses: the next event's number */
};

void call_start(struct exchange *x, const struct api *api);
void call_destroy(struct call *call); /* what still runs is cancelled */
void call_message(struct choice *choice, const Gptoss__ServerMessage *message);
void call_fail(struct call *call, const struct problem *p);
void call_tick(struct call *call, double now);
/* One more prompt of a completion. */
struct prompt_of_call *call_prompt(struct call *call);

/* ── link ──────────────────────────────────────────────────────────────────────────────────── */

int link_open(struct gateway *g, char *err, size_t err_size);
void link_close(struct gateway *g);
/* Takes what came, sends what could not be sent before. -1: the socket failed. */
int link_run(struct gateway *g, double now, char *err, size_t err_size);
void link_name(struct gateway *g, struct choice *choice); /* gives it a request id */
void link_ask(struct gateway *g, struct choice *choice);  /* sends choice->asked, now or later */
void link_forget(struct gateway *g, struct choice *choice, bool cancel);
void link_status(struct gateway *g);
void link_metrics(struct gateway *g);
bool link_ready(const struct gateway *g, double now); /* the ranks serve */

/* ── reading JSON ──────────────────────────────────────────────────────────────────────────── */

/* What a field that is not read may be without changing anything: JSON; NULL: anything at all. */
struct field {
    const char *name;
    enum { FIELD_READ, FIELD_FREE, FIELD_ONLY } kind;
    const char
        *only; /* FIELD_ONLY: the values that are the same as none, JSON texts between tabs */
};

void json_memory_init(void); /* once: bounds what jansson allocates */
/* Gives the system back what a large body took, where the allocator would keep it. */
void json_memory_return(void);
size_t json_memory_used(void);
json_t *json_body(const struct text *body, struct problem *p);
/* 0; -1 and a problem that names the first field of `object` that is unknown or not supported. `path`
 * stands in front of names: "" or "reasoning". */
int fields_check(const json_t *object, const char *path, const struct field *fields, size_t n,
                 struct problem *p);
/* Each: 1 given; 0 not given, or null; -1 and a problem. */
int field_bool(const json_t *object, const char *name, bool *out, struct problem *p);
int field_int(const json_t *object, const char *name, int64_t min, int64_t max, int64_t *out,
              struct problem *p);
int field_number(const json_t *object, const char *name, double min, double max, double *out,
                 struct problem *p);
/* Without bytes 0 in it. */
int field_string(const json_t *object, const char *name, const char **out, struct problem *p);
int wrong_type(struct problem *p, const char *param, const char *wanted, const json_t *got);
/* Sampling, stop, stream: what is named alike everywhere. */
int parameters_read(struct call *call, struct problem *p);
int parameters_effort(struct call *call, const char *param, const char *effort, struct problem *p);
/* Tools in chat's form → request.tools; `flat`: in that of responses. */
int tools_read(struct call *call, bool flat, struct problem *p);
/* Text of a string, or of a list of parts of the types `types` (between tabs). */
int content_read(const json_t *content, const char *param, const char *types, struct text *out,
                 struct problem *p);

/* Of the calls in a conversation so far: the function of each id; NULL: there is no such call. */
void called_note(struct call *call, const char *id, const json_t *name);
const char *called_name(const struct call *call, const char *id);

int stream_options_read(struct call *call, struct problem *p);
int chat_read(struct call *call, struct problem *p);
int responses_read(struct call *call, struct problem *p);

/* ── writing ───────────────────────────────────────────────────────────────────────────────── */

void stream_fail(struct call *call, const struct problem *p); /* api.fail of chat and completion */
void write_string(struct text *out, const char *text);        /* JSON */
void write_usage(struct text *out, const struct call *call);
const char *finish_name(const struct choice *choice);
bool part_is_text(const struct answer_part *part); /* of the answer, preambles included */
/* Takes note of tokens that came since. */
void logprobs_take(struct choice *choice, const struct answer_part *part, bool first);
/* Entries of shown tokens from `first` to `end`, in chat's form, between brackets. */
void logprobs_write(struct text *out, const struct choice *choice, size_t first, size_t end);
void write_number(struct text *out, double value); /* JSON, whatever it is */
double token_logprob(const struct answer *a, size_t token);
void top_of(const struct answer *a, size_t token, size_t *first, size_t *n);
void tool_call_id(struct text *out, const struct choice *choice, size_t index);

/* ── the gateway ───────────────────────────────────────────────────────────────────────────── */

struct counters {
    uint64_t requests[ROUTES][6]; /* by route and hundreds of the status; 0: cut */
    uint64_t stream_bytes, cut_slow, gone;
};

struct gateway {
    const struct gateway_options *options;
    struct api_keys keys;
    struct session session;
    struct MHD_Daemon *daemon;
    int listening;
    struct exchange *exchanges;
    size_t n_exchanges, n_streams, n_watchers, n_connections;
    struct peer *peers;

    struct map *numbers;   /* of requests → index of `slots` */
    struct choice **slots; /* NULL: free */
    size_t n_slots, slots_capacity;
    uint32_t *free_slots;
    size_t n_free, free_capacity;
    uint64_t run, last_number; /* request ids: gw-RUN-NUMBER */
    size_t asked_bytes; /* of all choices' questions, which are kept until they are answered */
    bool up;            /* there is a connection: what is sent without one would pile up */
    bool closing;       /* no request is taken any more */
    bool retry;         /* some choices are unsent, or to be resumed */
    bool more;          /* messages of the coordinator that were not taken yet, perhaps */
    bool sent;          /* since the loop last looked for messages */
    bool link_news, watch_news; /* something came, perhaps: messages; about the connection */
    unsigned nonsense;

    double heard, asked_status, status_at; /* clock_seconds */
    int64_t started;                       /* seconds of the epoch */
    Gptoss__ServerMessage *status;         /* the last one */
    struct text model, pipeline;           /* the model's name; the status as an event */
    bool metrics_asked;
    double metrics_at;
    struct counters counters;
    bool draining;
};

#endif
