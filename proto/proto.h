/*
 * proto: what crosses a process boundary.
 *
 * The schema is proto/gptoss.proto; protoc-c makes C structs of it (Gptoss__Generate, …), which this
 * door includes. Here is what the generated code lacks: bounds. A message from outside is measured
 * before it is unpacked, and unpacked under a memory budget, so that no sender can make a receiver
 * allocate more than PROTO_BUDGET (1 MiB of empty sub-messages would become 52 MiB otherwise).
 *
 *     void *context = zmq_ctx_new();
 *     void *socket;
 *     proto_connect(&socket, context, "tcp://127.0.0.1:5555", err, sizeof err);
 *     proto_send(socket, &message.base, err, sizeof err);
 *     struct proto_frame frame = {0};
 *     while (proto_receive(socket, &frame, err, sizeof err) == 1) { … proto_unpack(…) … }
 *     proto_frame_free(&frame);
 *
 * Nothing here prints, reads the environment or knows the meaning of a message.
 */
#ifndef GPTOSS_PROTO_H
#define GPTOSS_PROTO_H

#include <stddef.h>
#include <stdint.h>

#include "gptoss.pb-c.h"

#define PROTO_MESSAGE_MAX ((size_t)4 << 20)  /* bytes of one message on the wire */
#define PROTO_BUDGET      ((size_t)32 << 20) /* bytes that unpacking one message may allocate */
#define PROTO_PEER_MAX    255                /* bytes of a ZeroMQ routing id */
#define PROTO_LINGER_MS   200                /* a closed socket still tries to send for this long */
#define PROTO_VERSION     1                  /* Hello.protocol */

/* Unpacks `size` bytes at `bytes` as a message of the type that `descriptor` describes
 * (&gptoss__client_message__descriptor, …). NULL, and a sentence in `err`, if the message is larger
 * than PROTO_MESSAGE_MAX, does not parse, or would need more than PROTO_BUDGET bytes.
 * The caller frees it with proto_free, which is for messages from here alone. */
ProtobufCMessage *proto_unpack(const ProtobufCMessageDescriptor *descriptor, const void *bytes,
                               size_t size, char *err, size_t err_size);
void proto_free(ProtobufCMessage *message); /* NULL is fine */

/* The bytes of `message`, in memory that the caller frees with free(); NULL if there is none. */
void *proto_pack(const ProtobufCMessage *message, size_t *size);

/* One received message. peer is the sender's routing id on a ROUTER socket, empty elsewhere. The
 * memory is reused by the next proto_receive into the same frame. Zero-initialise it. */
struct proto_frame {
    unsigned char peer[PROTO_PEER_MAX];
    size_t peer_size;
    unsigned char *bytes;
    size_t size;
    size_t capacity;
};
void proto_frame_free(struct proto_frame *frame);

/* Sockets. Endpoints are ZeroMQ's: tcp://HOST:PORT, ipc://PATH. Frames are bounded, peers that went
 * silent are dropped by ZeroMQ's own heartbeats, sockets linger PROTO_LINGER_MS at close. An ipc path
 * that another program listens on, or that is no socket, is not taken over. proto_bind makes a ROUTER that reports peers that are gone
 * (ZMQ_ROUTER_MANDATORY); proto_connect a DEALER. 0, or -1 and a sentence that says what to do
 * (port in use, no permission, malformed endpoint). */
int proto_bind(void **socket, void *context, const char *endpoint, char *err, size_t err_size);
int proto_connect(void **socket, void *context, const char *endpoint, char *err, size_t err_size);
void proto_close(void *socket); /* NULL is fine */

/* The same with keys (below) and other bounds. NULL options, zeros: as above. */
struct proto_bind_options {
    const struct proto_keys *keys; /* the other side has to show a key that the guard admits */
    const char *role;              /* told to the guard: "client", "worker" */
    int queue; /* messages that may wait for one peer; it is told as not reading beyond; 0: 10000 */
};
int proto_bind_with(void **socket, void *context, const char *endpoint,
                    const struct proto_bind_options *options, char *err, size_t err_size);
/* *watch, where it is asked for: what becomes of the connection, for proto_watch_next. It is closed
 * with proto_close, after the socket. */
int proto_connect_with(void **socket, void **watch, void *context, const char *endpoint,
                       const struct proto_keys *keys, char *err, size_t err_size);

enum proto_link {
    PROTO_LINK_SAME,   /* nothing new */
    PROTO_LINK_UP,     /* connected, and admitted */
    PROTO_LINK_DOWN,   /* not connected any more; it is tried again without end */
    PROTO_LINK_DENIED, /* the other side does not admit us, or is not whom we look for; `text` says */
};
enum proto_link proto_watch_next(void *watch, char *text, size_t text_size);

/* Where a bound socket really is: tcp://127.0.0.1:0 becomes the port that was chosen. */
int proto_endpoint(void *socket, char *endpoint, size_t endpoint_size);

/* Whether a program may bind `endpoint` without being told that the port will be open to others:
 * ipc, and tcp on a loopback address. */
int proto_endpoint_is_local(const char *endpoint);

/* ── who is who: CURVE ─────────────────────────────────────────────────────────────────────────
 *
 * Everybody has a pair of keys. A coordinator knows the public keys of those that it admits (the allow
 * list), the others know the coordinator's. Before both have shown theirs nothing of a message is read,
 * and what is sent is encrypted. Keys are text, Z85.
 */
#define PROTO_KEY_SIZE 41 /* 40 characters and the end */

struct proto_keys {
    char public_key[PROTO_KEY_SIZE], secret_key[PROTO_KEY_SIZE];
    char server_key[PROTO_KEY_SIZE]; /* the coordinator's public key; "": this is the coordinator */
};

int proto_keys_create(struct proto_keys *keys, char *err, size_t err_size);
/* A file of lines `public KEY`, `secret KEY`, `server KEY`, with `#` before comments. A new one is
 * readable by its owner alone, and one that others may read is refused. */
int proto_keys_write(const struct proto_keys *keys, const char *path, const char *comment,
                     char *err, size_t err_size);
int proto_keys_read(struct proto_keys *keys, const char *path, char *err, size_t err_size);
/* A public key: written out, or of a file that has a line `public KEY`. */
int proto_key_read(char key[PROTO_KEY_SIZE], const char *key_or_path, char *err, size_t err_size);

/* Sets the server_key of keys that will be shown to a coordinator: NULL: the one that they were read
 * with, which has to be there. */
int proto_keys_server(struct proto_keys *keys, const char *key_or_path, char *err, size_t err_size);

/* Admits those whose key stands in the allow list, a file of lines `ROLE KEY NAME`; it is read again
 * when it has changed. The guard has to be there before the sockets of its context are bound, and
 * until they are closed. */
struct proto_guard;
int proto_guard_create(struct proto_guard **guard, void *context, const char *allow_path, char *err,
                       size_t err_size);
void proto_guard_destroy(struct proto_guard *guard); /* NULL is fine */
void *proto_guard_socket(struct proto_guard *guard); /* to poll */
/* Answers one that asks to be admitted. 1: admitted; 2: refused, `text` says who and why; 0: nobody
 * asks; -1: failed, or the list cannot be read (the old one holds). */
int proto_guard_answer(struct proto_guard *guard, char *text, size_t text_size);

/* Receives without waiting. 1: `frame` holds a message; 0: there is none; 2: there was one, but not
 * of one frame, or larger than PROTO_MESSAGE_MAX (peer is set, so that it can be refused, and `err`
 * says which); -1: the socket failed. */
int proto_receive(void *socket, struct proto_frame *frame, char *err, size_t err_size);

/* Sends without waiting, on a DEALER, and on a ROUTER to a peer. 0: sent; 1: the peer is gone (ROUTER);
 * 2: the peer does not read, its queue is full; -1: the socket failed. */
int proto_send(void *socket, const ProtobufCMessage *message, char *err, size_t err_size);
int proto_send_bytes(void *socket, const void *peer, size_t peer_size, const void *bytes,
                     size_t size, char *err, size_t err_size);

#endif
