/*
 * client: asks a coordinator and shows the answer.
 *
 *   options       what the command line asks for
 *   conversation  the messages so far → Generate
 *   session       one connection: sends, waits, cancels; it reconnects, and resumes the answer
 *   answer        what has come of an answer (pure)
 *   view          the answer as it streams, for people
 *   json          the answer as one object, for programs
 *   chat, status  what main.c does beside one question
 *   commands      the command line of gptoss-client top, metrics and trace
 *   top           the pipeline live, and a frame of it (top_frame, pure)
 *   trace         steps as they were, into a file that trace viewers open (trace_json, pure)
 *
 * Whatever a coordinator sends is bounded (proto_unpack, ANSWER_BYTES_MAX) and, on a terminal, cleaned
 * of control characters.
 */
#ifndef GPTOSS_CLIENT_CLIENT_H
#define GPTOSS_CLIENT_CLIENT_H

#include "base/base.h"
#include "proto/proto.h"

#define CLIENT_ENDPOINT  "tcp://127.0.0.1:5555"
#define ANSWER_BYTES_MAX ((size_t)256 << 20)

/* ── options ───────────────────────────────────────────────────────────────────────────────── */

enum client_task {
    TASK_ASK,
    TASK_CHAT,
    TASK_RESUME,
    TASK_STATUS,
    TASK_TOP,
    TASK_METRICS,
    TASK_TRACE
};

struct options {
    enum client_task task;
    const char *endpoint;
    const char *key, *server_key; /* a file; a key or a file; NULL: none */
    double timeout_seconds;       /* until the coordinator's first word */
    double silence_seconds;       /* between its words */
    double reconnect_seconds;     /* until a connection that broke is there again */

    /* the prompt */
    struct text prompt;
    uint32_t *ids; /* [n_ids], of --prompt-ids */
    size_t n_ids;
    bool raw, by_ids; /* neither: chat */
    const char *system, *prefix, *date, *request_id, *resume;
    uint32_t resume_from;
    Gptoss__Chat__Reasoning reasoning;
    struct text tools;
    const char *tool_choice; /* required, or a tool's name; NULL: the model chooses */

    /* sampling and limits; not given: the coordinator's defaults */
    bool temperature_given, top_p_given, seed_given, ignore_eos;
    double temperature, top_p, min_p, deadline_seconds, linger_seconds;
    int64_t top_k, max_tokens, top_logits;
    uint64_t seed;
    struct cli_list stop;

    /* what is shown */
    bool json, quiet, reasoning_text;

    /* top, trace */
    double interval_seconds, window_seconds, trace_seconds;
    bool once, ascii, past;
    const char *output;
};

/* Reads argv, the environment, and the files and the standard input that they name. `terminal`:
 * whether the standard input is one. As cli_parse: 0 go on, 1 help was printed, -1 wrong use was told. */
int options_read(struct options *o, int argc, char **argv, bool terminal);
void options_free(struct options *o);
/* Whether the first word, but for --connect and --timeout, names a command of its own; then it is read by
 * commands_read, as above. */
bool commands_known(int argc, char **argv);
int commands_read(struct options *o, int argc, char **argv);

/* ── answer ────────────────────────────────────────────────────────────────────────────────── */

/* Text of one message of the answer. */
struct answer_part {
    uint32_t message;
    Gptoss__Piece__Channel channel;
    char *recipient; /* "" or functions.NAME */
    struct text text;
};

struct answer_token {
    uint32_t id, n_top;
    float logit, log_sum_exp;
    size_t top_first;               /* of answer.top */
    uint32_t text_first, text_size; /* of answer.texts */
};

struct answer_top {
    uint32_t id;
    float logit;
    uint32_t text_first, text_size;
};

enum answer_state { ANSWER_WAITING, ANSWER_ACCEPTED, ANSWER_REFUSED, ANSWER_FINISHED };

/* Invariant: tokens are those of indices first_index, first_index + 1, … without a gap. */
struct answer {
    enum answer_state state;
    struct text id;       /* of the request */
    uint32_t first_index; /* not 0 after Resume */
    struct answer_token *tokens;
    size_t n_tokens, tokens_capacity;
    struct answer_top *top; /* of all tokens, one after another: Σ n_top */
    size_t n_top, top_capacity;
    struct text texts; /* bytes of tokens, where logits were asked for */
    struct answer_part *parts;
    size_t n_parts, parts_capacity;
    size_t bytes; /* held, for ANSWER_BYTES_MAX */

    uint64_t seed;
    uint32_t queued_before;
    Gptoss__Finished__Reason reason; /* ANSWER_FINISHED */
    uint32_t prompt_tokens, cached_tokens, sampled_tokens, reasoning_tokens;
    double queued_seconds, first_token_seconds, total_seconds;

    Gptoss__Code code; /* of a refusal, or of a finish with ERROR */
    struct text error; /* its sentence */
    uint64_t retry_ms;
};

/* Called for each stretch of text that came: `part` holds it already, at its end. `first`: the part
 * begins with it. */
typedef void (*answer_sink)(void *arg, const struct answer_part *part, bool first,
                            const char *bytes, size_t size);

void answer_start(struct answer *a, const struct text *id, uint32_t first_index);
void answer_free(struct answer *a);
/* Takes a message of the coordinator. 1: it was about this answer; 0: it was about another one;
 * -1, and a sentence: it breaks the protocol, the answer cannot be trusted. */
int answer_take(struct answer *a, const Gptoss__ServerMessage *message, answer_sink sink, void *arg,
                char *err, size_t err_size);
/* Appends the text of all parts of a channel that are no tool calls. */
void answer_text(const struct answer *a, Gptoss__Piece__Channel channel, struct text *out);
bool answer_is_call(const struct answer_part *part);
const char *answer_call_name(const struct answer_part *part); /* without "functions." */
const char *answer_reason_name(Gptoss__Finished__Reason reason);
const char *answer_code_name(Gptoss__Code code);

/* ── conversation ──────────────────────────────────────────────────────────────────────────── */

struct message {
    Gptoss__Message__Role role;
    struct text content;
    char *channel, *recipient, *name; /* "" or what the schema says */
};

struct conversation {
    struct message *messages;
    size_t n, capacity;
};

void conversation_add(struct conversation *c, Gptoss__Message__Role role, const char *name,
                      const void *bytes, size_t size);
/* What the model said, as the next turn has to show it. */
void conversation_add_answer(struct conversation *c, const struct answer *a, const char *prefix);
/* What the model said in an earlier turn: on a channel; `recipient`: "", or the tool that it called. */
void conversation_add_said(struct conversation *c, const char *channel, const char *recipient,
                           const void *bytes, size_t size);
void conversation_cut(struct conversation *c, size_t n); /* keeps the first n */
void conversation_free(struct conversation *c);
/* The bytes of Generate: the conversation, or the options' plain text or ids where it is NULL. */
void conversation_pack(const struct options *o, const struct conversation *c, const struct text *id,
                       struct text *out);
/* Sends Generate: the conversation, or the options' plain text or ids where it is NULL. */
struct session;
int conversation_send(struct session *s, const struct options *o, const struct conversation *c,
                      const struct text *id, char *err, size_t err_size);

/* ── view ──────────────────────────────────────────────────────────────────────────────────── */

enum view_kind { VIEW_NOTHING, VIEW_TEXT, VIEW_REASONING, VIEW_CALL };

struct view {
    FILE *out;  /* the answer */
    FILE *talk; /* everything else */
    bool out_terminal, talk_terminal, colour;
    bool silent;             /* nothing on `out`: another form of the answer is printed there */
    bool quiet;              /* no progress, no statistics */
    bool reasoning;          /* is shown: on `out` if that is a terminal, else on `talk` */
    const struct text *echo; /* to show before the first text, or NULL */

    enum view_kind kind; /* of the part that is being written */
    FILE *to;            /* where it goes; NULL: it is not shown */
    bool line_start, any, status_shown;
};

void view_init(struct view *v, const struct options *o, FILE *out, FILE *talk);
void view_progress(struct view *v, const Gptoss__Progress *p);
void view_status(struct view *v, const char *text); /* one line that is replaced; NULL: none */
/* An answer_sink: what streams in. */
void view_piece(void *view, const struct answer_part *part, bool first, const char *bytes,
                size_t size);
void view_end(struct view *v); /* of the answer; the next one may begin */
void view_statistics(struct view *v, const struct answer *a);
/* Appends text from outside, without what would steer a terminal. */
void view_clean(struct text *out, const char *bytes, size_t size);

/* ── json ──────────────────────────────────────────────────────────────────────────────────── */

/* One object and a newline. `failure`: why there is no whole answer although the coordinator did not
 * say so (it is absent, lost); or NULL. */
void json_answer(FILE *out, const struct options *o, const struct answer *a, const char *failure);
void json_status(FILE *out, const Gptoss__Status *s);

/* ── session ───────────────────────────────────────────────────────────────────────────────── */

enum session_end {
    SESSION_DONE,        /* the answer is finished or refused */
    SESSION_INTERRUPTED, /* by Ctrl-C; the request was cancelled */
    SESSION_ABSENT,      /* no coordinator answers */
    SESSION_LOST,        /* it fell silent in the middle */
    SESSION_BROKEN,      /* what it sends makes no sense, or the socket failed */
};

struct session {
    void *context, *socket, *watch;
    struct proto_frame frame;
    char trouble[512]; /* why there is no connection, where it tells */
    struct text asked; /* the last Generate, to ask it again where it was lost */
    unsigned ups;      /* connections so far */
    double down_since; /* 0: there is one, or never was */
    bool resuming;     /* a Resume is not yet answered */
    bool unsent;       /* `asked` has not been taken by the socket yet */
};

int session_open(struct session *s, const struct options *o, char *err, size_t err_size);
void session_close(struct session *s);
/* Waits for the answer to what was sent, showing it in *v. Ctrl-C cancels the request and waits for
 * its end; a second one does not wait. `err` is set unless SESSION_DONE. */
enum session_end session_wait(struct session *s, const struct options *o, struct answer *a,
                              struct view *v, char *err, size_t err_size);
/* Sends a message and waits for the one answer of the kind `body`; the caller frees it with
 * proto_free. A refusal is SESSION_BROKEN, with its words. */
enum session_end session_ask(struct session *s, const struct options *o,
                             const Gptoss__ClientMessage *message,
                             Gptoss__ServerMessage__BodyCase body, Gptoss__ServerMessage **answer,
                             char *err, size_t err_size);
enum session_end session_status(struct session *s, const struct options *o,
                                Gptoss__ServerMessage **status, char *err, size_t err_size);
/* The next message that is there. 1: *message is the caller's; 0: there is none; -1: nonsense, or the
 * socket failed. */
int session_next(struct session *s, Gptoss__ServerMessage **message, char *err, size_t err_size);
/* A request id that nobody else uses. */
void session_new_id(struct text *id);

/* ── chat, status ──────────────────────────────────────────────────────────────────────────── */

/* Turns from `in` until its end; returns an exit code. */
int chat_run(struct session *s, const struct options *o, struct view *v, FILE *in);
void status_print(FILE *out, const char *endpoint, const Gptoss__Status *s);

/* ── top ───────────────────────────────────────────────────────────────────────────────────── */

#define TOP_HISTORY 240

/* What the last frames showed, oldest first. */
struct top_history {
    double tokens[TOP_HISTORY], busy[TOP_HISTORY]; /* sampled a second; share of all stages */
    size_t n;
};

struct top_screen {
    size_t columns, rows; /* rows 0: as many as there are */
    bool colour, ascii;
    const char *notice; /* a line in front of all, or NULL */
};

void top_remember(struct top_history *h, const Gptoss__Status *s);
/* One frame, lines of at most `columns` characters; no line steers the terminal but by colour. */
void top_frame(struct text *out, const char *endpoint, const Gptoss__Status *s,
               const struct top_history *h, const struct top_screen *screen);
/* Until q, Ctrl-C, a signal, or one frame with o->once; returns an exit code. */
int top_run(struct session *s, const struct options *o, char *err, size_t err_size);

/* ── trace ─────────────────────────────────────────────────────────────────────────────────── */

#define TRACE_ENTRIES_MAX ((size_t)1 << 23) /* steps × stages held */
#define TRACE_NUMBERS     7

struct trace_stage {
    char *host, *device;
    uint32_t layer_first, layer_count;
};

struct trace_step {
    uint64_t step, issued_us, kv_read;
    uint32_t done, rows, decode_rows, prompt_tokens, samples, in_flight, full_used, window_used;
};

/* What parts brought, in the order of steps. */
struct trace {
    struct trace_stage *stages; /* [n_stages] */
    size_t n_stages;
    struct trace_step *steps; /* [n_steps] */
    int32_t *at;              /* [n_steps, n_stages, TRACE_NUMBERS] as in TraceStep */
    size_t n_steps, steps_capacity, at_capacity;
    bool over, full; /* full: later steps were left out */
    struct text why; /* it ended early; or empty */
};

/* Takes a part. 0; -1 and a sentence: it contradicts itself or those before. */
int trace_take(struct trace *t, const Gptoss__TracePart *part, char *err, size_t err_size);
void trace_free(struct trace *t);
/* Chrome's trace event format: one JSON object. */
void trace_json(FILE *out, const struct trace *t);
int trace_run(struct session *s, const struct options *o, char *err, size_t err_size);

#endif
