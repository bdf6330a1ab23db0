/*
 * guard: who is admitted. libzmq asks about each key over inproc, by ZAP (RFC 27), before it reads
 * anything of a message; the answer comes from the allow list.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zmq.h>

#include "proto/proto.h"

#define LIST_MAX  65536 /* keys of an allow list */
#define NAME_SIZE 64
#define ROLE_SIZE 16
#define PARTS     7 /* version, request, domain, address, identity, mechanism, key */

struct admitted {
    uint8_t key[32];
    char role[ROLE_SIZE], name[NAME_SIZE];
};

struct proto_guard {
    void *socket;
    char *path;
    struct admitted *list; /* [count] */
    size_t count;
    struct stat read; /* the list when it was read */
};

static int add_line(struct admitted *one, const char *line)
{
    char key[64];
    one->name[0] = '\0';
    int n = sscanf(line, "%15s %63s %63s", one->role, key, one->name);
    bool role = strcmp(one->role, "client") == 0 || strcmp(one->role, "worker") == 0;
    if (n < 2 || !role || strlen(key) != PROTO_KEY_SIZE - 1 ||
        zmq_z85_decode(one->key, key) == NULL)
        return -1;
    return 0;
}

static int read_list(struct proto_guard *guard, char *err, size_t err_size)
{
    struct admitted *list = NULL;
    size_t count = 0, capacity = 0;
    char line[512];
    struct stat status;
    FILE *file = fopen(guard->path, "re");
    if (file == NULL || fstat(fileno(file), &status) != 0 || !S_ISREG(status.st_mode)) {
        snprintf(err, err_size,
                 "the allow list %s cannot be read: %s: gptoss-coordinator keygen makes one",
                 guard->path, file == NULL ? strerror(errno) : "no file");
        goto fail;
    }
    if ((status.st_mode & 022) != 0) {
        snprintf(err, err_size,
                 "the allow list %s can be written by others: who is in it is admitted; chmod 600 "
                 "%s",
                 guard->path, guard->path);
        goto fail;
    }
    guard->read = status;
    for (unsigned number = 1; fgets(line, sizeof line, file); number++) {
        size_t blank = strspn(line, " \t\r\n");
        if (line[blank] == '#' || line[blank] == '\0')
            continue;
        if (count == capacity) {
            capacity = capacity ? 2 * capacity : 16;
            struct admitted *more = realloc(list, capacity * sizeof *list);
            if (more == NULL) {
                snprintf(err, err_size, "out of memory for the allow list %s", guard->path);
                goto fail;
            }
            list = more;
        }
        if (count == LIST_MAX || add_line(&list[count], line) != 0) {
            snprintf(err, err_size,
                     "the allow list %s: line %u is no line `client KEY NAME` or `worker KEY NAME` "
                     "(comments begin with #; at most %d keys)",
                     guard->path, number, LIST_MAX);
            goto fail;
        }
        count++;
    }
    fclose(file);
    free(guard->list);
    guard->list = list;
    guard->count = count;
    return 0;

fail:
    if (file != NULL)
        fclose(file);
    free(list);
    return -1;
}

/* 0; 1: it has not changed; -1: it has, and cannot be read. */
static int read_list_again(struct proto_guard *guard, char *err, size_t err_size)
{
    struct stat now;
    if (stat(guard->path, &now) == 0 && now.st_mtim.tv_sec == guard->read.st_mtim.tv_sec &&
        now.st_mtim.tv_nsec == guard->read.st_mtim.tv_nsec && now.st_size == guard->read.st_size &&
        now.st_ino == guard->read.st_ino)
        return 1;
    return read_list(guard, err, err_size);
}

int proto_guard_create(struct proto_guard **out, void *context, const char *allow_path, char *err,
                       size_t err_size)
{
    struct proto_guard *guard = calloc(1, sizeof *guard);
    *out = NULL;
    if (guard == NULL || (guard->path = strdup(allow_path)) == NULL) {
        snprintf(err, err_size, "out of memory");
        goto fail;
    }
    if (read_list(guard, err, err_size) != 0)
        goto fail;
    guard->socket = zmq_socket(context, ZMQ_REP);
    if (guard->socket == NULL || zmq_bind(guard->socket, "inproc://zeromq.zap.01") != 0) {
        snprintf(err, err_size, "cannot ask for keys: %s", zmq_strerror(errno));
        goto fail;
    }
    *out = guard;
    return 0;

fail:
    proto_guard_destroy(guard);
    return -1;
}

void proto_guard_destroy(struct proto_guard *guard)
{
    if (guard == NULL)
        return;
    proto_close(guard->socket);
    free(guard->path);
    free(guard->list);
    free(guard);
}

void *proto_guard_socket(struct proto_guard *guard)
{
    return guard->socket;
}

struct question {
    size_t parts;
    struct {
        char bytes[256]; /* with an end; what is longer is cut, and fits nothing */
        size_t size;
    } part[PARTS];
};

/* 1: there; 0: none; -1: the socket failed. */
static int receive(void *socket, struct question *q)
{
    zmq_msg_t part;
    *q = (struct question){0};
    for (bool more = true; more;) {
        zmq_msg_init(&part);
        if (zmq_msg_recv(&part, socket, ZMQ_DONTWAIT) < 0) {
            if (errno == EINTR)
                continue;
            return errno == EAGAIN && q->parts == 0 ? 0 : -1;
        }
        if (q->parts < PARTS) {
            size_t size = zmq_msg_size(&part);
            q->part[q->parts].size = size;
            memcpy(q->part[q->parts].bytes, zmq_msg_data(&part), size < 255 ? size : 255);
        }
        q->parts++;
        more = zmq_msg_more(&part) != 0;
        zmq_msg_close(&part);
    }
    return 1;
}

static const struct admitted *find(const struct proto_guard *guard, const char *role,
                                   const void *key)
{
    for (size_t i = 0; i < guard->count; i++)
        if (memcmp(guard->list[i].key, key, 32) == 0 && strcmp(guard->list[i].role, role) == 0)
            return &guard->list[i];
    return NULL;
}

static int answer(void *socket, const struct question *q, const struct admitted *who)
{
    const char *const parts[] = {"1.0",
                                 q->part[1].bytes,
                                 who ? "200" : "400",
                                 who ? "OK" : "this key is not admitted",
                                 who ? who->name : "",
                                 ""};
    for (size_t i = 0; i < 6; i++) {
        size_t size = i == 1 ? q->part[1].size : strlen(parts[i]);
        if (zmq_send(socket, parts[i], size, i < 5 ? ZMQ_SNDMORE : 0) < 0)
            return -1;
    }
    return 0;
}

int proto_guard_answer(struct proto_guard *guard, char *text, size_t text_size)
{
    struct question q;
    int status = receive(guard->socket, &q);
    if (status <= 0) {
        if (status < 0)
            snprintf(text, text_size, "cannot ask for keys: %s", zmq_strerror(errno));
        return status;
    }
    char trouble[256] = "";
    int again = read_list_again(guard, trouble, sizeof trouble);
    bool known = q.parts == PARTS && strcmp(q.part[0].bytes, "1.0") == 0 && q.part[1].size < 255 &&
                 strcmp(q.part[5].bytes, "CURVE") == 0 && q.part[6].size == 32;
    const struct admitted *who = known ? find(guard, q.part[2].bytes, q.part[6].bytes) : NULL;
    if (q.part[1].size > 255)
        q.part[1].size = 255;
    if (answer(guard->socket, &q, who) != 0) {
        snprintf(text, text_size, "cannot answer who asks to be admitted: %s", zmq_strerror(errno));
        return -1;
    }
    if (again < 0) {
        snprintf(text, text_size, "%s; the old list holds", trouble);
        return -1;
    }
    if (who != NULL)
        return 1;
    char key[PROTO_KEY_SIZE] = "";
    if (known)
        zmq_z85_encode(key, (uint8_t *)q.part[6].bytes, 32);
    snprintf(text, text_size, "refused a %s from %s: its key is not in %s%s%s", q.part[2].bytes,
             q.part[3].bytes, guard->path, known ? "; to admit it add the line: " : "", "");
    if (known && strlen(text) + 64 < text_size) {
        size_t at = strlen(text);
        snprintf(text + at, text_size - at, "%s %s", q.part[2].bytes, key);
    }
    return 2;
}
