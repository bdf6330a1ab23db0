/*
 * keys: pairs of CURVE keys and the files that hold them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include "proto/proto.h"

#define FILE_MAX 4096 /* bytes of a file of keys */

int proto_keys_create(struct proto_keys *keys, char *err, size_t err_size)
{
    *keys = (struct proto_keys){0};
    if (zmq_curve_keypair(keys->public_key, keys->secret_key) == 0)
        return 0;
    snprintf(err, err_size, "cannot make keys: %s: libzmq has to be built with CURVE",
             zmq_strerror(errno));
    return -1;
}

/* 40 characters of Z85 that are 32 bytes. */
static bool is_key(const char *text)
{
    uint8_t bytes[32];
    return strlen(text) == PROTO_KEY_SIZE - 1 && zmq_z85_decode(bytes, text) != NULL;
}

int proto_keys_write(const struct proto_keys *keys, const char *path, const char *comment,
                     char *err, size_t err_size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        snprintf(err, err_size,
                 errno == EEXIST ? "%s is there already: it is not overwritten" : "%s: %m", path);
        return -1;
    }
    char text[1024];
    int size = snprintf(text, sizeof text,
                        "# %s\n# Whoever has this file can be its owner: keep it.\n"
                        "public %s\nsecret %s\n",
                        comment, keys->public_key, keys->secret_key);
    if (keys->server_key[0])
        size += snprintf(text + size, sizeof text - (size_t)size, "server %s\n", keys->server_key);
    bool failed = write(fd, text, (size_t)size) != size || fsync(fd) != 0;
    failed |= close(fd) != 0;
    if (!failed)
        return 0;
    snprintf(err, err_size, "%s: cannot be written: %m", path);
    unlink(path);
    return -1;
}

/* Reads the lines of a file into the keys that they name. */
static int read_lines(FILE *file, const char *path, struct proto_keys *keys, char *err,
                      size_t err_size)
{
    static const char *const names[] = {"public", "secret", "server"};
    char *const fields[] = {keys->public_key, keys->secret_key, keys->server_key};
    char line[256], name[16], key[64];
    size_t read = 0;
    for (unsigned number = 1; fgets(line, sizeof line, file); number++) {
        read += strlen(line);
        size_t blank = strspn(line, " \t\r\n");
        if (line[blank] == '#' || line[blank] == '\0')
            continue;
        size_t i = 3;
        if (sscanf(line, "%15s %63s", name, key) == 2 && is_key(key) && read <= FILE_MAX)
            for (i = 0; i < 3 && strcmp(name, names[i]) != 0; i++)
                ;
        if (i == 3 || fields[i][0] != '\0') {
            snprintf(
                err, err_size,
                "%s: line %u is no line `public KEY`, `secret KEY` or `server KEY`, each once: "
                "make a new file with gptoss-coordinator keygen",
                path, number);
            return -1;
        }
        memcpy(fields[i], key, PROTO_KEY_SIZE);
    }
    return 0;
}

static int read_file(struct proto_keys *keys, const char *path, bool secret, char *err,
                     size_t err_size)
{
    *keys = (struct proto_keys){0};
    FILE *file = fopen(path, "re");
    struct stat status;
    if (file == NULL || fstat(fileno(file), &status) != 0) {
        snprintf(err, err_size, "%s: cannot be read: %m: gptoss-coordinator keygen makes keys",
                 path);
        if (file != NULL)
            fclose(file);
        return -1;
    }
    int result = -1;
    if (!S_ISREG(status.st_mode))
        snprintf(err, err_size, "%s is no file of keys", path);
    else if (secret && (status.st_mode & 077) != 0)
        snprintf(err, err_size, "%s can be read by others, and it holds a secret: chmod 600 %s",
                 path, path);
    else
        result = read_lines(file, path, keys, err, err_size);
    fclose(file);
    return result;
}

int proto_keys_read(struct proto_keys *keys, const char *path, char *err, size_t err_size)
{
    char public_key[PROTO_KEY_SIZE];
    if (read_file(keys, path, true, err, err_size) != 0)
        return -1;
    if (keys->secret_key[0] == '\0')
        snprintf(err, err_size, "%s has no line `secret KEY`: it is no secret key", path);
    else if (zmq_curve_public(public_key, keys->secret_key) != 0 ||
             strcmp(public_key, keys->public_key) != 0)
        snprintf(err, err_size, "%s: its public and its secret key do not belong together", path);
    else
        return 0;
    return -1;
}

int proto_key_read(char key[PROTO_KEY_SIZE], const char *key_or_path, char *err, size_t err_size)
{
    struct proto_keys keys;
    if (is_key(key_or_path)) {
        memcpy(key, key_or_path, PROTO_KEY_SIZE);
        return 0;
    }
    if (read_file(&keys, key_or_path, false, err, err_size) != 0)
        return -1;
    if (keys.public_key[0] == '\0') {
        snprintf(err, err_size, "%s has no line `public KEY`", key_or_path);
        return -1;
    }
    memcpy(key, keys.public_key, PROTO_KEY_SIZE);
    return 0;
}

int proto_keys_server(struct proto_keys *keys, const char *key_or_path, char *err, size_t err_size)
{
    if (key_or_path != NULL)
        return proto_key_read(keys->server_key, key_or_path, err, err_size);
    if (keys->server_key[0] != '\0')
        return 0;
    snprintf(err, err_size,
             "the coordinator's public key is not known: give --server-key, or a key file that has "
             "a line `server KEY`");
    return -1;
}
