/*
 * link: one connection to the coordinator for all calls. Each choice is a request with an id of its own,
 * gw-RUN-NUMBER; RUN is of this process, so that a gateway that is started again never meets the requests
 * of the one before.
 *
 * A connection that is made anew is another client to the coordinator: every request is resumed from the
 * first token that did not come. One that the coordinator does not know, of which nothing came, was lost on
 * its way and is asked again, under the same id: so it is computed once.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "client/gateway/gateway.h"

#define MESSAGES_MAX   1024 /* of a turn, so that HTTP is served in between */
#define STATUS_SECONDS 1.0
#define WATCH_SECONDS  0.45 /* between two status messages while somebody watches the pipeline */
#define NONSENSE_MAX   1000
#define RECENT_STEPS   48 /* that those who watch are shown */

int link_open(struct gateway *g, char *err, size_t err_size)
{
    if (getrandom(&g->run, sizeof g->run, 0) != (ssize_t)sizeof g->run)
        g->run = clock_us();
    g->numbers = map_create(1024);
    return session_open(&g->session, &g->options->client, err, err_size);
}

void link_close(struct gateway *g)
{
    session_close(&g->session);
    map_destroy(g->numbers);
    if (g->status != NULL)
        proto_free(&g->status->base);
    free(g->slots);
    free(g->free_slots);
    text_free(&g->model);
    text_free(&g->pipeline);
    g->numbers = NULL;
    g->status = NULL;
}

bool link_ready(const struct gateway *g, double now)
{
    return g->status != NULL && now - g->heard < 5 && g->status->status->ready;
}

/* ── sending ───────────────────────────────────────────────────────────────────────────────── */

/* Whether it went; if not, it is to be tried again. */
static bool send_message(struct gateway *g, const ProtobufCMessage *message)
{
    char err[256];
    if (!g->up)
        return false;
    g->sent = true;
    return proto_send(g->session.socket, message, err, sizeof err) == 0;
}

static ProtobufCBinaryData id_of(const struct choice *c)
{
    return (ProtobufCBinaryData){c->answer.id.size, (uint8_t *)c->answer.id.bytes};
}

static void send_asked(struct gateway *g, struct choice *c)
{
    char err[256];
    g->sent |= g->up;
    c->unsent = !g->up || proto_send_bytes(g->session.socket, NULL, 0, c->asked.bytes,
                                           c->asked.size, err, sizeof err) != 0;
    g->retry |= c->unsent;
}

static void send_resume(struct gateway *g, struct choice *c)
{
    Gptoss__ClientMessage message = GPTOSS__CLIENT_MESSAGE__INIT;
    Gptoss__Resume resume = GPTOSS__RESUME__INIT;
    resume.request_id = id_of(c);
    resume.from_index = (uint32_t)c->answer.n_tokens;
    message.body_case = GPTOSS__CLIENT_MESSAGE__BODY_RESUME;
    message.resume = &resume;
    c->resume = !send_message(g, &message.base);
    c->resuming |= !c->resume;
    g->retry |= c->resume;
}

static void send_cancel(struct gateway *g, const struct choice *c)
{
    Gptoss__ClientMessage message = GPTOSS__CLIENT_MESSAGE__INIT;
    Gptoss__Cancel cancel = GPTOSS__CANCEL__INIT;
    cancel.request_id = id_of(c);
    message.body_case = GPTOSS__CLIENT_MESSAGE__BODY_CANCEL;
    message.cancel = &cancel;
    send_message(
        g, &message.base); /* if it is lost, the request ends when its time to linger is over */
}

void link_status(struct gateway *g)
{
    Gptoss__ClientMessage message = GPTOSS__CLIENT_MESSAGE__INIT;
    Gptoss__StatusRequest request = GPTOSS__STATUS_REQUEST__INIT;
    message.body_case = GPTOSS__CLIENT_MESSAGE__BODY_STATUS;
    message.status = &request;
    request.recent_steps = g->n_watchers > 0 ? RECENT_STEPS : 0;
    g->asked_status = clock_seconds();
    send_message(g, &message.base);
}

void link_metrics(struct gateway *g)
{
    Gptoss__ClientMessage message = GPTOSS__CLIENT_MESSAGE__INIT;
    Gptoss__MetricsRequest request = GPTOSS__METRICS_REQUEST__INIT;
    if (g->metrics_asked)
        return; /* one answer is for all who wait */
    message.body_case = GPTOSS__CLIENT_MESSAGE__BODY_METRICS;
    message.metrics = &request;
    g->metrics_asked = true;
    g->metrics_at = clock_seconds();
    send_message(g, &message.base);
}

/* ── choices ───────────────────────────────────────────────────────────────────────────────── */

void link_name(struct gateway *g, struct choice *c)
{
    uint32_t slot;
    c->number = ++g->last_number;
    if (g->n_free > 0)
        slot = g->free_slots[--g->n_free];
    else {
        g->slots = base_grow(g->slots, &g->slots_capacity, g->n_slots + 1, sizeof(struct choice *));
        slot = (uint32_t)g->n_slots++;
    }
    g->slots[slot] = c;
    map_set(g->numbers, c->number, slot);
    struct text id = {0};
    text_print(&id, "gw-%016" PRIx64 "-%" PRIx64, g->run, c->number);
    answer_start(&c->answer, &id, 0);
    text_free(&id);
}

void link_ask(struct gateway *g, struct choice *c)
{
    c->asked_at = clock_seconds();
    send_asked(g, c);
}

void link_forget(struct gateway *g, struct choice *c, bool cancel)
{
    uint32_t slot = c->number != 0 ? map_get(g->numbers, c->number) : MAP_NONE;
    if (slot == MAP_NONE)
        return;
    if (cancel && !c->unsent)
        send_cancel(g, c);
    map_remove(g->numbers, c->number);
    g->slots[slot] = NULL;
    g->free_slots =
        base_grow(g->free_slots, &g->free_capacity, g->n_free + 1, sizeof *g->free_slots);
    g->free_slots[g->n_free++] = slot;
}

static struct choice *choice_of(const struct gateway *g, ProtobufCBinaryData id)
{
    char text[65], *end;
    if (id.len < 21 || id.len > 64)
        return NULL;
    memcpy(text, id.data, id.len);
    text[id.len] = '\0';
    uint32_t slot = map_get(g->numbers, strtoull(text + 20, &end, 16));
    if (*end != '\0' || slot == MAP_NONE)
        return NULL;
    struct choice *c = g->slots[slot];
    return c->answer.id.size == id.len && memcmp(c->answer.id.bytes, id.data, id.len) == 0 ? c
                                                                                           : NULL;
}

/* ── receiving ─────────────────────────────────────────────────────────────────────────────── */

/* A refusal that answers a Resume of ours. True: it was dealt with. */
static bool take_refusal(struct gateway *g, struct choice *c, const Gptoss__Refused *refused)
{
    if (!c->resuming)
        return false;
    c->resuming = false;
    if (refused->code == GPTOSS__CODE__DUPLICATE) {
        send_resume(g, c); /* it had come after all */
        return true;
    }
    if (refused->code != GPTOSS__CODE__NOT_FOUND || c->answer.n_tokens > 0 || c->asked.size == 0)
        return false;
    c->resuming = true; /* nothing was lost but the question */
    send_asked(g, c);
    return true;
}

static void take_status(struct gateway *g, Gptoss__ServerMessage **message)
{
    if (g->status != NULL)
        proto_free(&g->status->base);
    g->status = *message;
    *message = NULL;
    routes_status(g);
}

static void take(struct gateway *g, Gptoss__ServerMessage **message)
{
    const Gptoss__ServerMessage *m = *message;
    struct choice *c = NULL;
    switch (m->body_case) {
    case GPTOSS__SERVER_MESSAGE__BODY_STATUS: take_status(g, message); return;
    case GPTOSS__SERVER_MESSAGE__BODY_METRICS: routes_metrics(g, m->metrics); return;
    case GPTOSS__SERVER_MESSAGE__BODY_ACCEPTED: c = choice_of(g, m->accepted->request_id); break;
    case GPTOSS__SERVER_MESSAGE__BODY_REFUSED: c = choice_of(g, m->refused->request_id); break;
    case GPTOSS__SERVER_MESSAGE__BODY_PROGRESS: c = choice_of(g, m->progress->request_id); break;
    case GPTOSS__SERVER_MESSAGE__BODY_OUTPUT: c = choice_of(g, m->output->request_id); break;
    case GPTOSS__SERVER_MESSAGE__BODY_FINISHED: c = choice_of(g, m->finished->request_id); break;
    default: return;
    }
    if (c == NULL || c->done)
        return;
    if (m->body_case == GPTOSS__SERVER_MESSAGE__BODY_REFUSED && take_refusal(g, c, m->refused))
        return;
    c->resuming = false;
    call_message(c, m);
}

/* Hears what became of the connection. True: there is a new one after another. */
static bool watch_link(struct gateway *g)
{
    struct session *s = &g->session;
    bool up = false;
    enum proto_link link;
    char text[sizeof s->trouble];
    while ((link = proto_watch_next(s->watch, text, sizeof text)) != PROTO_LINK_SAME)
        if (link == PROTO_LINK_UP) {
            log_info("connected to %s", g->options->client.endpoint);
            up = s->ups++ > 0;
            s->down_since = 0;
            s->trouble[0] = '\0';
            g->up = true;
            link_status(g);
        } else if (link == PROTO_LINK_DOWN) {
            g->up = false;
            if (s->down_since == 0) {
                s->down_since = clock_seconds();
                log_warn("the connection to %s broke; trying again", g->options->client.endpoint);
            }
        } else if (link == PROTO_LINK_DENIED) {
            g->up = false;
            if (strcmp(s->trouble, text) != 0)
                log_error("%s: %s", g->options->client.endpoint, text);
            snprintf(s->trouble, sizeof s->trouble, "%s", text);
        }
    return up;
}

static void send_again(struct gateway *g)
{
    g->retry = false;
    for (size_t i = 0; i < g->n_slots; i++) {
        struct choice *c = g->slots[i];
        if (c != NULL && c->unsent)
            send_asked(g, c);
        else if (c != NULL && c->resume)
            send_resume(g, c);
    }
}

int link_run(struct gateway *g, double now, char *err, size_t err_size)
{
    for (int i = 0; g->link_news && i < MESSAGES_MAX; i++) {
        Gptoss__ServerMessage *message = NULL;
        int status = session_next(&g->session, &message, err, err_size);
        if (status == 0) {
            g->more = false;
            break;
        }
        g->more = true;
        if (status < 0) {
            log_warn("what %s sends makes no sense: %s", g->options->client.endpoint, err);
            if (++g->nonsense > NONSENSE_MAX)
                return -1;
            continue;
        }
        g->nonsense = 0;
        g->heard = now;
        take(g, &message);
        if (message != NULL)
            proto_free(&message->base);
    }
    if (g->watch_news && watch_link(g))
        for (size_t i = 0; i < g->n_slots; i++)
            if (g->slots[i] != NULL && !g->slots[i]->unsent)
                g->slots[i]->resume = g->retry = true;
    if (g->retry)
        send_again(g);
    if (now - g->asked_status > (g->n_watchers > 0 ? WATCH_SECONDS : STATUS_SECONDS))
        link_status(g);
    return 0;
}
