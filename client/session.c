/*
 * session: one connection to a coordinator. It waits in zmq_poll for at most a fifth of a second at a
 * time, so that a signal that comes just before it is seen soon after.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/random.h>
#include <zmq.h>

#include "client/client.h"

#define POLL_MS        200
#define CANCEL_SECONDS 3.0 /* to wait for the end of a request that was cancelled */

static volatile sig_atomic_t interrupts;

static void on_interrupt(int signal)
{
    (void)signal;
    interrupts++;
}

int session_open(struct session *s, const struct options *o, char *err, size_t err_size)
{
    *s = (struct session){0};
    s->context = zmq_ctx_new();
    if (s->context == NULL) {
        snprintf(err, err_size, "cannot start ZeroMQ: %s", zmq_strerror(errno));
        return -1;
    }
    struct proto_keys keys;
    if ((o->key == NULL || (proto_keys_read(&keys, o->key, err, err_size) == 0 &&
                            proto_keys_server(&keys, o->server_key, err, err_size) == 0)) &&
        proto_connect_with(&s->socket, &s->watch, s->context, o->endpoint,
                           o->key != NULL ? &keys : NULL, err, err_size) == 0)
        return 0;
    session_close(s);
    return -1;
}

void session_close(struct session *s)
{
    proto_close(s->socket);
    proto_close(s->watch);
    if (s->context != NULL)
        zmq_ctx_term(s->context); /* waits PROTO_LINGER_MS at most */
    proto_frame_free(&s->frame);
    text_free(&s->asked);
    *s = (struct session){0};
}

void session_new_id(struct text *id)
{
    uint64_t random;
    if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random)
        random = clock_us();
    text_clear(id);
    text_print(id, "client-%016llx", (unsigned long long)random);
}

static void send_cancel(struct session *s, const struct answer *a)
{
    char err[256];
    Gptoss__ClientMessage message = GPTOSS__CLIENT_MESSAGE__INIT;
    Gptoss__Cancel cancel = GPTOSS__CANCEL__INIT;
    cancel.request_id = (ProtobufCBinaryData){a->id.size, (uint8_t *)a->id.bytes};
    message.body_case = GPTOSS__CLIENT_MESSAGE__BODY_CANCEL;
    message.cancel = &cancel;
    proto_send(s->socket, &message.base, err, sizeof err);
}

int session_next(struct session *s, Gptoss__ServerMessage **message, char *err, size_t err_size)
{
    int status = proto_receive(s->socket, &s->frame, err, err_size);
    if (status == 0)
        return 0;
    *message =
        status != 1
            ? NULL
            : (Gptoss__ServerMessage *)proto_unpack(&gptoss__server_message__descriptor,
                                                    s->frame.bytes, s->frame.size, err, err_size);
    return *message != NULL ? 1 : -1;
}

/* Hears what became of the connection. True: there is a new one after another. */
static bool watch_link(struct session *s)
{
    bool up = false;
    enum proto_link link;
    char text[sizeof s->trouble];
    while ((link = proto_watch_next(s->watch, text, sizeof text)) != PROTO_LINK_SAME)
        if (link == PROTO_LINK_UP) {
            up = s->ups++ > 0;
            s->down_since = 0;
            s->trouble[0] = '\0';
        } else if (link == PROTO_LINK_DOWN) {
            if (s->down_since == 0)
                s->down_since = clock_seconds();
        } else if (link == PROTO_LINK_DENIED)
            snprintf(s->trouble, sizeof s->trouble, "%s", text);
    return up;
}

/* To a coordinator that may be a new one, or have forgotten us: from the first token that we lack. */
static void send_resume(struct session *s, const struct answer *a)
{
    char err[256];
    Gptoss__ClientMessage message = GPTOSS__CLIENT_MESSAGE__INIT;
    Gptoss__Resume resume = GPTOSS__RESUME__INIT;
    resume.request_id = (ProtobufCBinaryData){a->id.size, (uint8_t *)a->id.bytes};
    resume.from_index = a->first_index + (uint32_t)a->n_tokens;
    message.body_case = GPTOSS__CLIENT_MESSAGE__BODY_RESUME;
    message.resume = &resume;
    proto_send(s->socket, &message.base, err, sizeof err);
    s->resuming = true;
}

/* A refusal that is an answer to a Resume of ours. True: it was dealt with. */
static bool take_refusal(struct session *s, const struct answer *a,
                         const Gptoss__ServerMessage *message)
{
    char err[256];
    if (message->body_case != GPTOSS__SERVER_MESSAGE__BODY_REFUSED || !s->resuming ||
        message->refused->request_id.len != a->id.size ||
        memcmp(message->refused->request_id.data, a->id.bytes, a->id.size) != 0)
        return false;
    s->resuming = false;
    if (message->refused->code == GPTOSS__CODE__DUPLICATE) {
        send_resume(s, a); /* it had come after all */
        return true;
    }
    if (message->refused->code != GPTOSS__CODE__NOT_FOUND || a->n_tokens > 0 ||
        s->asked.size == 0 || a->first_index > 0)
        return false;
    /* Nothing was lost but the question. */
    s->resuming = true;
    return proto_send_bytes(s->socket, NULL, 0, s->asked.bytes, s->asked.size, err, sizeof err) ==
           0;
}

static enum session_end fell_silent(struct session *s, const struct options *o, bool heard,
                                    char *err, size_t err_size)
{
    char time[32];
    watch_link(s);
    if (s->trouble[0] != '\0') {
        snprintf(err, err_size, "%s: %s", o->endpoint, s->trouble);
        return SESSION_ABSENT;
    }
    bool down = s->down_since > 0;
    text_seconds(time, !heard ? o->timeout_seconds
                       : down ? o->reconnect_seconds
                              : o->silence_seconds);
    if (heard) {
        snprintf(err, err_size,
                 down ? "the connection to %s broke, and could not be made again within %s: the "
                        "coordinator is lost; when it is there, --resume ID goes on"
                      : "the coordinator at %s has been silent for %s: it is lost; if it is "
                        "running, ask again",
                 o->endpoint, time);
        return SESSION_LOST;
    }
    bool usual = strcmp(o->endpoint, CLIENT_ENDPOINT) == 0;
    snprintf(err, err_size,
             "no coordinator answers at %s (waited %s)\n"
             "start one:        gptoss-coordinator --launch 1 --model FILE.gguf%s%s\n"
             "or say where:     --connect ENDPOINT, or GPTOSS_CONNECT",
             o->endpoint, time, usual ? "" : " --bind ", usual ? "" : o->endpoint);
    return SESSION_ABSENT;
}

/* Takes what is there. 1: the answer is complete; 0: not yet; -1: broken. *heard: something came. */
static int take_messages(struct session *s, struct answer *a, struct view *v, bool *heard,
                         char *err, size_t err_size)
{
    Gptoss__ServerMessage *message = NULL;
    int status = 0;
    /* Bounded, so that a flood of them does not keep Ctrl-C waiting. */
    for (int i = 0; i < 256 && (status = session_next(s, &message, err, err_size)) == 1; i++) {
        if (take_refusal(s, a, message)) {
            *heard = true;
            proto_free(&message->base);
            continue;
        }
        int taken = answer_take(a, message, view_piece, v, err, err_size);
        if (taken == 1) {
            *heard = true;
            s->resuming = false;
            if (message->body_case == GPTOSS__SERVER_MESSAGE__BODY_PROGRESS)
                view_progress(v, message->progress);
        }
        proto_free(&message->base);
        if (taken < 0)
            return -1;
        if (a->state == ANSWER_REFUSED || a->state == ANSWER_FINISHED)
            return 1;
    }
    return status < 0 ? -1 : 0;
}

static enum session_end wait_for_answer(struct session *s, const struct options *o,
                                        struct answer *a, struct view *v, char *err,
                                        size_t err_size)
{
    double last = clock_seconds(), cancelled = 0;
    bool heard_any = false, resume = false, told = false;
    int seen = 0;
    for (;;) {
        bool heard = false;
        told &= s->down_since > 0;
        if (s->unsent) {
            int sent =
                proto_send_bytes(s->socket, NULL, 0, s->asked.bytes, s->asked.size, err, err_size);
            if (sent < 0)
                return SESSION_BROKEN;
            s->unsent = sent > 0;
        }
        int status = take_messages(s, a, v, &heard, err, err_size);
        fflush(v->out);
        double now = clock_seconds();
        if (status == 1)
            return seen > 0 ? SESSION_INTERRUPTED : SESSION_DONE;
        if (status < 0)
            return SESSION_BROKEN;
        if (heard) {
            heard_any = true;
            last = now;
        }
        if (interrupts > seen) {
            if (seen++ > 0)
                return SESSION_INTERRUPTED;
            send_cancel(s, a);
            cancelled = now;
        }
        if (seen > 0 && now - cancelled > CANCEL_SECONDS)
            return SESSION_INTERRUPTED;
        if (resume) { /* what the old connection had brought is taken: the rest is asked for */
            send_resume(s, a);
            resume = false;
            last = now;
        }
        if (watch_link(s)) {
            if (told)
                view_status(v, NULL);
            resume = true;
            continue;
        }
        bool down = s->down_since > 0;
        if (down && heard_any && !told && a->n_tokens == 0) {
            view_status(v, "the connection broke; trying again");
            told = true;
        }
        double since = down && heard_any ? s->down_since : last;
        if (s->trouble[0] != '\0' || now - since > (!heard_any ? o->timeout_seconds
                                                    : down     ? o->reconnect_seconds
                                                               : o->silence_seconds))
            return fell_silent(s, o, heard_any, err, err_size);
        zmq_pollitem_t item = {.socket = s->socket, .events = ZMQ_POLLIN};
        zmq_poll(&item, 1, POLL_MS);
    }
}

enum session_end session_wait(struct session *s, const struct options *o, struct answer *a,
                              struct view *v, char *err, size_t err_size)
{
    struct sigaction handler = {.sa_handler = on_interrupt}, before;
    interrupts = 0;
    sigaction(SIGINT, &handler, &before);
    snprintf(err, err_size, "interrupted");
    enum session_end end = wait_for_answer(s, o, a, v, err, err_size);
    view_end(v);
    sigaction(SIGINT, &before, NULL);
    if (end == SESSION_BROKEN) {
        char why[256];
        snprintf(why, sizeof why, "%s", err);
        snprintf(err, err_size, "what %s sends is not an answer: %s", o->endpoint, why);
    }
    return end;
}

enum session_end session_ask(struct session *s, const struct options *o,
                             const Gptoss__ClientMessage *message,
                             Gptoss__ServerMessage__BodyCase body, Gptoss__ServerMessage **answer,
                             char *err, size_t err_size)
{
    *answer = NULL;
    double start = clock_seconds();
    int unsent = 1;
    while (clock_seconds() - start < o->timeout_seconds && s->trouble[0] == '\0') {
        Gptoss__ServerMessage *got = NULL;
        if (unsent != 0 && (unsent = proto_send(s->socket, &message->base, err, err_size)) < 0)
            return SESSION_BROKEN;
        int status = session_next(s, &got, err, err_size);
        if (status < 0)
            return SESSION_BROKEN;
        if (status == 1 && got->body_case == body) {
            *answer = got;
            return SESSION_DONE;
        }
        if (status == 1) {
            bool refused = got->body_case == GPTOSS__SERVER_MESSAGE__BODY_REFUSED;
            if (refused)
                snprintf(err, err_size, "refused: %s", got->refused->text);
            proto_free(&got->base);
            if (refused)
                return SESSION_BROKEN;
            continue;
        }
        watch_link(s);
        zmq_pollitem_t item = {.socket = s->socket, .events = ZMQ_POLLIN};
        zmq_poll(&item, 1, POLL_MS);
    }
    return fell_silent(s, o, false, err, err_size);
}

enum session_end session_status(struct session *s, const struct options *o,
                                Gptoss__ServerMessage **status, char *err, size_t err_size)
{
    Gptoss__ClientMessage message = GPTOSS__CLIENT_MESSAGE__INIT;
    Gptoss__StatusRequest request = GPTOSS__STATUS_REQUEST__INIT;
    request.window_seconds = o->window_seconds;
    message.body_case = GPTOSS__CLIENT_MESSAGE__BODY_STATUS;
    message.status = &request;
    return session_ask(s, o, &message, GPTOSS__SERVER_MESSAGE__BODY_STATUS, status, err, err_size);
}
