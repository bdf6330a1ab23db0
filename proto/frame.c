/*
 * frame: messages in and out of ZeroMQ frames, bounded; sockets with the options that make a silent
 * or hostile other side harmless.
 */
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

#include "proto/proto.h"

/* ── unpacking under a budget ──────────────────────────────────────────────────────────────── */

/* The parts of a message lie one behind the other in few pieces of memory; the message itself is at the
 * beginning of the first, which is how proto_free() finds them. */
struct piece {
    _Alignas(16) struct piece *next;
    size_t size, used; /* of what follows */
};

#define HANDSHAKE_MS 10000 /* who has not said who he is by then is cut off */

#define PIECE_MIN 1024
#define PIECE_MAX ((size_t)1 << 20)

/* What is freed while a message is unpacked is not given back to the budget, so that it bounds the
 * work too: a field that is sent again and again is allocated, and freed, each time. */
struct budget {
    size_t left;
    bool exceeded, no_memory;
    struct piece *first, *last;
    size_t size; /* of the next piece */
};

static void *budget_alloc(void *data, size_t size)
{
    struct budget *budget = data;
    size_t cost;
    if (__builtin_add_overflow(size, 16, &cost) || cost > budget->left) {
        budget->exceeded = true;
        return NULL;
    }
    budget->left -= cost;
    size_t room = (size + 15) & ~(size_t)15;
    struct piece *piece = budget->last;
    if (piece == NULL || piece->size - piece->used < room) {
        size_t more = room > budget->size ? room : budget->size;
        piece = malloc(sizeof *piece + more);
        budget->no_memory = piece == NULL;
        if (piece == NULL)
            return NULL;
        *piece = (struct piece){.size = more};
        *(budget->last ? &budget->last->next : &budget->first) = piece;
        budget->last = piece;
        if (budget->size < PIECE_MAX)
            budget->size *= 2;
    }
    void *memory = (unsigned char *)(piece + 1) + piece->used;
    piece->used += room;
    return memory;
}

static void budget_free(void *data, void *memory)
{
    (void)data;
    (void)memory;
}

static void pieces_free(struct piece *piece)
{
    while (piece) {
        struct piece *next = piece->next;
        free(piece);
        piece = next;
    }
}

ProtobufCMessage *proto_unpack(const ProtobufCMessageDescriptor *descriptor, const void *bytes,
                               size_t size, char *err, size_t err_size)
{
    if (size > PROTO_MESSAGE_MAX) {
        snprintf(err, err_size, "a message of %zu bytes is larger than the %zu that are allowed",
                 size, PROTO_MESSAGE_MAX);
        return NULL;
    }
    /* Structs take more than their fields on the wire: this is one piece for most messages. */
    struct budget budget = {.left = PROTO_BUDGET, .size = PIECE_MIN + 4 * size};
    if (budget.size > PIECE_MAX)
        budget.size = PIECE_MAX;
    ProtobufCAllocator allocator = {budget_alloc, budget_free, &budget};
    ProtobufCMessage *message = protobuf_c_message_unpack(descriptor, &allocator, size, bytes);
    if (message != NULL) {
        assert((void *)message == (void *)(budget.first + 1));
        return message;
    }
    pieces_free(budget.first);
    if (budget.exceeded)
        snprintf(err, err_size,
                 "a message of %zu bytes would need more than %zu MiB of memory: it has too many "
                 "parts",
                 size, PROTO_BUDGET >> 20);
    else if (budget.no_memory)
        snprintf(err, err_size, "out of memory while reading a message of %zu bytes", size);
    else
        snprintf(err, err_size,
                 "%zu bytes are not a %s: they are damaged, or of another protocol (see "
                 "gptoss.proto)",
                 size, descriptor->name);
    return NULL;
}

void proto_free(ProtobufCMessage *message)
{
    if (message != NULL)
        pieces_free((struct piece *)(void *)message - 1);
}

void *proto_pack(const ProtobufCMessage *message, size_t *size)
{
    *size = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = malloc(*size > 0 ? *size : 1);
    if (bytes != NULL)
        protobuf_c_message_pack(message, bytes);
    return bytes;
}

void proto_frame_free(struct proto_frame *frame)
{
    free(frame->bytes);
    *frame = (struct proto_frame){0};
}

/* ── sockets ───────────────────────────────────────────────────────────────────────────────── */

static int set_int(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof value);
}

static int set_text(void *socket, int option, const char *text)
{
    return zmq_setsockopt(socket, option, text, strlen(text));
}

static int set_keys(void *socket, const struct proto_keys *keys, const char *role)
{
    int status = set_text(socket, ZMQ_CURVE_SECRETKEY, keys->secret_key);
    status |= set_text(socket, ZMQ_CURVE_PUBLICKEY, keys->public_key);
    if (role == NULL)
        return status | set_text(socket, ZMQ_CURVE_SERVERKEY, keys->server_key);
    status |= set_int(socket, ZMQ_CURVE_SERVER, 1);
    return status | set_text(socket, ZMQ_ZAP_DOMAIN, role);
}

static void *make_socket(void *context, int type, const char *endpoint,
                         const struct proto_bind_options *options)
{
    void *socket = zmq_socket(context, type);
    if (socket == NULL)
        return NULL;
    /* Senders that are wrong by less than 16 times are told so (proto_receive: 2); beyond that
     * ZeroMQ cuts them off. Where strangers may knock, memory for their frames is bounded closely. */
    int64_t frame_max = (options->keys != NULL ? 1 : 16) * (int64_t)PROTO_MESSAGE_MAX + 4096;
    int status = zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &frame_max, sizeof frame_max);
    if (options->keys != NULL)
        status |= set_keys(socket, options->keys, type == ZMQ_ROUTER ? options->role : NULL);
    status |= set_int(socket, ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS);
    status |= set_int(socket, ZMQ_LINGER, PROTO_LINGER_MS);
    status |= set_int(socket, ZMQ_SNDHWM, options->queue > 0 ? options->queue : 10000);
    status |= set_int(socket, ZMQ_RCVHWM, 10000);
    status |= set_int(socket, ZMQ_HEARTBEAT_IVL, 2000);
    status |= set_int(socket, ZMQ_HEARTBEAT_TIMEOUT, 6000);
    status |= set_int(socket, ZMQ_HEARTBEAT_TTL, 6000);
    /* Only where it is asked for: with it, "localhost" may mean ::1 alone. */
    status |= set_int(socket, ZMQ_IPV6, strchr(endpoint, '[') != NULL);
    if (type == ZMQ_ROUTER)
        status |= set_int(socket, ZMQ_ROUTER_MANDATORY, 1);
    else {
        status |= set_int(socket, ZMQ_RECONNECT_IVL, 50);
        status |= set_int(socket, ZMQ_RECONNECT_IVL_MAX, 1000);
    }
    if (status != 0) {
        int saved = errno;
        zmq_close(socket);
        errno = saved;
        return NULL;
    }
    return socket;
}

/* The path of an ipc endpoint that is a file, or NULL. */
static const char *ipc_path(const char *endpoint)
{
    if (strncmp(endpoint, "ipc://", 6) != 0 || endpoint[6] == '@' || endpoint[6] == '*')
        return NULL;
    return endpoint + 6;
}

/* The sentence for a failed bind or connect. */
static void explain(const char *what, const char *endpoint, int error, char *err, size_t err_size)
{
    const char *path = ipc_path(endpoint);
    switch (error) {
    case EADDRINUSE:
        snprintf(err, err_size,
                 "%s is in use: is another one running? stop it, or choose another %s", endpoint,
                 path != NULL ? "path" : "port");
        return;
    case EACCES:
    case EPERM:
        snprintf(err, err_size, "cannot %s %s: no permission; %s", what, endpoint,
                 path != NULL ? "choose a folder that you may write to"
                              : "choose a port from 1024 on");
        return;
    case ENODEV:
    case EADDRNOTAVAIL:
        snprintf(err, err_size,
                 "cannot %s %s: this machine has no such address; use 127.0.0.1 (this machine "
                 "alone), or one that \"ip address\" shows",
                 what, endpoint);
        return;
    case ENOENT:
    case ENOTDIR:
        snprintf(err, err_size,
                 "cannot %s %s: its folder does not exist; create it, or choose "
                 "another path",
                 what, endpoint);
        return;
    case ENAMETOOLONG:
        snprintf(err, err_size, "cannot %s %s: the path is too long; at most 107 bytes", what,
                 endpoint);
        return;
    case EINVAL:
    case EPROTONOSUPPORT:
    case ENOCOMPATPROTO:
        snprintf(err, err_size,
                 "\"%s\" is not an endpoint; write tcp://HOST:PORT, as in tcp://127.0.0.1:5555, "
                 "or ipc://PATH",
                 endpoint);
        return;
    case EMFILE:
        snprintf(err, err_size, "cannot %s %s: too many open files; see ulimit -n", what, endpoint);
        return;
    default: snprintf(err, err_size, "cannot %s %s: %s", what, endpoint, zmq_strerror(error));
    }
}

/* ZeroMQ deletes whatever lies at an ipc path before it binds: so a file that is no socket, and a
 * socket that somebody listens on, have to be found here. 0 or an errno. */
static int check_ipc_path(const char *path)
{
    struct stat status;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return ENAMETOOLONG;
    if (path[0] == '\0')
        return EINVAL;
    if (lstat(path, &status) != 0)
        return errno == ENOENT ? 0 : errno;
    if (!S_ISSOCK(status.st_mode))
        return EEXIST;
    memcpy(address.sun_path, path, strlen(path));
    int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (probe < 0)
        return errno;
    int failed = connect(probe, (struct sockaddr *)&address, sizeof address);
    int error = failed != 0 ? errno : 0;
    close(probe);
    return error == 0 || error == EAGAIN ? EADDRINUSE : error == ECONNREFUSED ? 0 : error;
}

/* ZeroMQ takes a port modulo 65536. */
static bool port_is_too_large(const char *endpoint)
{
    const char *colon = strrchr(endpoint, ':');
    return strncmp(endpoint, "tcp://", 6) == 0 && colon != NULL &&
           strtol(colon + 1, NULL, 10) > 65535;
}

/* ── what becomes of a connection ──────────────────────────────────────────────────────────── */

#define WATCHED                                                                                    \
    (ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED |                                      \
     ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)

static int open_watch(void **watch, void *context, void *socket)
{
    char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "inproc://gptoss-watch-%p", socket);
    if (zmq_socket_monitor(socket, endpoint, WATCHED) != 0 ||
        (*watch = zmq_socket(context, ZMQ_PAIR)) == NULL)
        return -1;
    return zmq_connect(*watch, endpoint);
}

enum proto_link proto_watch_next(void *watch, char *text, size_t text_size)
{
    unsigned char event[16];
    char where[8]; /* the endpoint, which we know */
    for (;;) {
        int size = zmq_recv(watch, event, sizeof event, ZMQ_DONTWAIT);
        if (size < 0 && errno == EINTR)
            continue;
        if (size < 0)
            return PROTO_LINK_SAME;
        while (zmq_recv(watch, where, sizeof where, ZMQ_DONTWAIT) < 0 && errno == EINTR)
            ;
        uint16_t number;
        uint32_t value;
        if (size < 6)
            continue;
        memcpy(&number, event, sizeof number);
        memcpy(&value, event + 2, sizeof value);
        switch (number) {
        case ZMQ_EVENT_HANDSHAKE_SUCCEEDED: return PROTO_LINK_UP;
        case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
            snprintf(text, text_size,
                     "the coordinator does not admit this key: its line has to stand in the "
                     "coordinator's allow list, with the right role (gptoss-coordinator keygen "
                     "makes both)");
            return PROTO_LINK_DENIED;
        case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
            if (value == ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
                snprintf(text, text_size,
                         "one side uses keys and the other does not: give --key FILE for a "
                         "coordinator that runs with --keys, and none for others");
            else
                snprintf(text, text_size,
                         "the keys do not fit (0x%x): is the coordinator's public key in the key "
                         "file, or in --server-key, the one that it has now?",
                         (unsigned)value);
            return PROTO_LINK_DENIED;
        default: return PROTO_LINK_DOWN;
        }
    }
}

int proto_bind(void **socket, void *context, const char *endpoint, char *err, size_t err_size)
{
    return proto_bind_with(socket, context, endpoint, NULL, err, err_size);
}

int proto_bind_with(void **socket, void *context, const char *endpoint,
                    const struct proto_bind_options *options, char *err, size_t err_size)
{
    static const struct proto_bind_options plain;
    const char *path = ipc_path(endpoint);
    int error = path != NULL ? check_ipc_path(path) : port_is_too_large(endpoint) ? EINVAL : 0;
    *socket = NULL;
    if (error == EEXIST) {
        snprintf(err, err_size,
                 "cannot bind %s: there is a file that is no socket; choose another "
                 "path",
                 endpoint);
        return -1;
    }
    void *made =
        error == 0 ? make_socket(context, ZMQ_ROUTER, endpoint, options ? options : &plain) : NULL;
    if (error == 0 && (made == NULL || zmq_bind(made, endpoint) != 0))
        error = errno;
    if (error == 0) {
        *socket = made;
        return 0;
    }
    explain("bind", endpoint, error, err, err_size);
    proto_close(made);
    return -1;
}

int proto_connect(void **socket, void *context, const char *endpoint, char *err, size_t err_size)
{
    return proto_connect_with(socket, NULL, context, endpoint, NULL, err, err_size);
}

int proto_connect_with(void **socket, void **watch, void *context, const char *endpoint,
                       const struct proto_keys *keys, char *err, size_t err_size)
{
    const struct proto_bind_options options = {.keys = keys};
    *socket = NULL;
    if (watch != NULL)
        *watch = NULL;
    int error = port_is_too_large(endpoint) ? EINVAL : 0;
    void *made = error == 0 ? make_socket(context, ZMQ_DEALER, endpoint, &options) : NULL;
    if (error == 0 && made != NULL && watch != NULL && open_watch(watch, context, made) != 0)
        error = errno;
    if (error == 0 && (made == NULL || zmq_connect(made, endpoint) != 0))
        error = errno;
    if (error != 0) {
        explain("connect to", endpoint, error, err, err_size);
        proto_close(made);
        if (watch != NULL) {
            proto_close(*watch);
            *watch = NULL;
        }
        return -1;
    }
    *socket = made;
    return 0;
}

int proto_endpoint(void *socket, char *endpoint, size_t endpoint_size)
{
    return zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, endpoint, &endpoint_size) == 0 ? 0 : -1;
}

static int socket_type(void *socket)
{
    int type = -1;
    size_t size = sizeof type;
    zmq_getsockopt(socket, ZMQ_TYPE, &type, &size);
    return type;
}

void proto_close(void *socket)
{
    char endpoint[256];
    if (socket == NULL)
        return;
    /* ZeroMQ leaves the file of an ipc endpoint. It goes while we still listen: later it could be
     * another program's. */
    if (socket_type(socket) == ZMQ_ROUTER &&
        proto_endpoint(socket, endpoint, sizeof endpoint) == 0) {
        const char *path = ipc_path(endpoint);
        if (path != NULL)
            unlink(path);
    }
    zmq_close(socket);
}

int proto_endpoint_is_local(const char *endpoint)
{
    if (strncmp(endpoint, "ipc://", 6) == 0 || strncmp(endpoint, "inproc://", 9) == 0)
        return 1;
    if (strncmp(endpoint, "tcp://", 6) != 0)
        return 0;
    const char *host = endpoint + 6, *colon = strrchr(host, ':');
    char name[64];
    if (colon == NULL || (size_t)(colon - host) >= sizeof name)
        return 0;
    snprintf(name, sizeof name, "%.*s", (int)(colon - host), host);
    struct in_addr four;
    if (inet_pton(AF_INET, name, &four) == 1)
        return ntohl(four.s_addr) >> 24 == 127;
    return strcmp(name, "localhost") == 0 || strcmp(name, "lo") == 0 || strcmp(name, "[::1]") == 0;
}

/* ── receiving and sending ─────────────────────────────────────────────────────────────────── */

/* One part of a message. 1: there; 0: nothing waits; -1: failed. */
static int receive_part(void *socket, zmq_msg_t *part, char *err, size_t err_size)
{
    for (;;) {
        if (zmq_msg_recv(part, socket, ZMQ_DONTWAIT) >= 0)
            return 1;
        if (errno == EAGAIN)
            return 0;
        if (errno != EINTR) {
            snprintf(err, err_size, "cannot receive: %s", zmq_strerror(errno));
            return -1;
        }
    }
}

/* The parts of a message arrive together: what follows the present one is there to be dropped. */
static size_t drop_the_rest(void *socket, zmq_msg_t *part, char *err, size_t err_size)
{
    size_t dropped = 0;
    while (zmq_msg_more(part) && receive_part(socket, part, err, err_size) == 1)
        dropped++;
    return dropped;
}

static int keep(struct proto_frame *frame, zmq_msg_t *part, char *err, size_t err_size)
{
    size_t size = zmq_msg_size(part);
    if (size > frame->capacity) {
        unsigned char *more = realloc(frame->bytes, size);
        if (more == NULL) {
            snprintf(err, err_size, "out of memory for a message of %zu bytes", size);
            return -1;
        }
        frame->bytes = more;
        frame->capacity = size;
    }
    if (size > 0)
        memcpy(frame->bytes, zmq_msg_data(part), size);
    frame->size = size;
    return 1;
}

int proto_receive(void *socket, struct proto_frame *frame, char *err, size_t err_size)
{
    zmq_msg_t part;
    zmq_msg_init(&part);
    frame->peer_size = 0;
    frame->size = 0;
    int status = receive_part(socket, &part, err, err_size);
    if (status != 1)
        goto done;

    bool empty = false; /* a ROUTER's message of which the sender's id is all there is */
    if (socket_type(socket) == ZMQ_ROUTER) {
        size_t size = zmq_msg_size(&part);
        frame->peer_size = size <= PROTO_PEER_MAX ? size : PROTO_PEER_MAX;
        memcpy(frame->peer, zmq_msg_data(&part), frame->peer_size);
        empty = !zmq_msg_more(&part);
        if (!empty && (status = receive_part(socket, &part, err, err_size)) != 1)
            goto done;
    }
    size_t size = zmq_msg_size(&part);
    if (empty || zmq_msg_more(&part)) {
        size_t frames = empty ? 0 : 1 + drop_the_rest(socket, &part, err, err_size);
        snprintf(err, err_size,
                 "a message of %zu frames; a message is one frame (use a DEALER socket: REQ adds "
                 "an empty one)",
                 frames);
        status = 2;
    } else if (size > PROTO_MESSAGE_MAX) {
        snprintf(err, err_size, "a message of %zu bytes is larger than the %zu that are allowed",
                 size, PROTO_MESSAGE_MAX);
        status = 2;
    } else
        status = keep(frame, &part, err, err_size);
done:
    zmq_msg_close(&part);
    return status;
}

static int send_part(void *socket, const void *bytes, size_t size, int flags)
{
    int sent;
    do
        sent = zmq_send(socket, bytes, size, flags | ZMQ_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -1 : 0;
}

int proto_send_bytes(void *socket, const void *peer, size_t peer_size, const void *bytes,
                     size_t size, char *err, size_t err_size)
{
    if (size > PROTO_MESSAGE_MAX) {
        snprintf(err, err_size, "a message of %zu bytes is larger than the %zu that are allowed",
                 size, PROTO_MESSAGE_MAX);
        return -1;
    }
    if ((peer_size == 0 || send_part(socket, peer, peer_size, ZMQ_SNDMORE) == 0) &&
        send_part(socket, bytes, size, 0) == 0)
        return 0;
    if (errno == EHOSTUNREACH)
        return 1;
    if (errno == EAGAIN)
        return 2;
    snprintf(err, err_size, "cannot send: %s", zmq_strerror(errno));
    return -1;
}

int proto_send(void *socket, const ProtobufCMessage *message, char *err, size_t err_size)
{
    size_t size;
    void *bytes = proto_pack(message, &size);
    if (bytes == NULL) {
        snprintf(err, err_size, "out of memory for a message of %zu bytes", size);
        return -1;
    }
    int status = proto_send_bytes(socket, NULL, 0, bytes, size, err, err_size);
    free(bytes);
    return status;
}
