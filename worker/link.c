#include "worker/link.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <zmq.h>

#include "base/base.h"

struct link {
    void *context, *socket, *watch;
    struct proto_frame frame;
    uint64_t epoch;
    /* Silence is counted in pieces of at most a second, so that a process that was stopped, or busy
     * loading, does not take its own absence for the coordinator's. */
    uint64_t silence_us, looked_us;
};

int link_create(struct link **out, const char *endpoint, const struct proto_keys *keys, char *err,
                size_t err_size)
{
    *out = NULL;
    struct link *link = base_alloc(1, sizeof *link);
    if ((link->context = zmq_ctx_new()) == NULL) {
        snprintf(err, err_size, "ZeroMQ could not start: %s", zmq_strerror(zmq_errno()));
        goto fail;
    }
    if (proto_connect_with(&link->socket, &link->watch, link->context, endpoint, keys, err,
                           err_size))
        goto fail;
    link->looked_us = clock_us();
    *out = link;
    return 0;

fail:
    link_destroy(link);
    return -1;
}

void link_destroy(struct link *link)
{
    if (link == NULL)
        return;
    proto_close(link->socket);
    proto_close(link->watch);
    if (link->context)
        zmq_ctx_term(link->context);
    proto_frame_free(&link->frame);
    free(link);
}

void link_set_epoch(struct link *link, uint64_t epoch)
{
    link->epoch = epoch;
    link->silence_us = 0;
    link->looked_us = clock_us();
}

int link_send(struct link *link, Gptoss__RankMessage *message, char *err, size_t err_size)
{
    message->epoch = link->epoch;
    switch (proto_send(link->socket, &message->base, err, err_size)) {
    case 0: return 0;
    case 2: snprintf(err, err_size, "the coordinator does not read its messages"); return -1;
    default: return -1;
    }
}

static bool is_ours(const struct link *link, const Gptoss__SupervisorMessage *message)
{
    return link->epoch == 0 || message->epoch == link->epoch ||
           message->body_case == GPTOSS__SUPERVISOR_MESSAGE__BODY_REFUSED;
}

int link_receive(struct link *link, Gptoss__SupervisorMessage **out, char *err, size_t err_size)
{
    *out = NULL;
    for (;;) {
        int got = proto_receive(link->socket, &link->frame, err, err_size);
        if (got <= 0)
            return got;
        char why[256] = "";
        Gptoss__SupervisorMessage *message = NULL;
        if (got == 1)
            message = (Gptoss__SupervisorMessage *)proto_unpack(
                &gptoss__supervisor_message__descriptor, link->frame.bytes, link->frame.size, why,
                sizeof why);
        if (message == NULL) {
            log_warn("dropped a message that is not the coordinator's: %s",
                     got == 1 ? why : "it has several frames, or is too large");
            continue;
        }
        if (!is_ours(link, message)) {
            log_debug("dropped a message of epoch %" PRIu64 " (ours is %" PRIu64 ")",
                      message->epoch, link->epoch);
            proto_free(&message->base);
            continue;
        }
        link->silence_us = 0;
        *out = message;
        return 1;
    }
}

void *link_context(struct link *link)
{
    return link->context;
}

double link_silence(struct link *link)
{
    uint64_t now = clock_us(), passed = now - link->looked_us;
    link->looked_us = now;
    if (link->epoch)
        link->silence_us += passed < 1000000 ? passed : 1000000;
    return (double)link->silence_us * 1e-6;
}

void link_trouble(struct link *link, char *err, size_t err_size)
{
    char text[512] = "";
    enum proto_link is;
    while ((is = proto_watch_next(link->watch, text, sizeof text)) != PROTO_LINK_SAME)
        if (is == PROTO_LINK_UP)
            text[0] = 0;
    snprintf(err, err_size, "%s", text);
}

int link_fd(struct link *link)
{
    /* The descriptor tells of changes: what came in before, it tells no more. */
    int events = 0, fd = -1;
    size_t size = sizeof events;
    if (zmq_getsockopt(link->socket, ZMQ_EVENTS, &events, &size) || (events & ZMQ_POLLIN))
        return -1;
    size = sizeof fd;
    return zmq_getsockopt(link->socket, ZMQ_FD, &fd, &size) ? -1 : fd;
}
