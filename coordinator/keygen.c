#include "coordinator/keygen.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"
#include "proto/proto.h"

#define NAME_CHARACTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

static const char examples[] =
    "  gptoss-coordinator keygen keys\n"
    "      a coordinator's key, one for its ranks, one for a client, and the allow list\n"
    "  gptoss-coordinator keygen keys alice worker-gpu2\n"
    "      more of them: a client's, and, because of its name, a rank's\n";

static int fail(const char *text)
{
    fprintf(stderr, "gptoss-coordinator keygen: %s\n", text);
    return EXIT_FAILED;
}

static int path_of(char path[PATH_MAX], const char *folder, const char *name, const char *suffix)
{
    return snprintf(path, PATH_MAX, "%s/%s%s", folder, name, suffix) < PATH_MAX ? 0 : -1;
}

/* Appends to a file that only its owner can write. */
static int append(const char *path, const char *text, char *err, size_t err_size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    size_t size = strlen(text);
    bool failed = fd < 0 || write(fd, text, size) != (ssize_t)size || fsync(fd) != 0;
    if (failed)
        snprintf(err, err_size, "%s: %m", path);
    if (fd >= 0)
        close(fd);
    return failed ? -1 : 0;
}

/* The coordinator's pair, made if it is not there. */
static int coordinator_key(const char *folder, struct proto_keys *keys, char *err, size_t err_size)
{
    char path[PATH_MAX], text[256];
    path_of(path, folder, KEYGEN_COORDINATOR, "");
    if (access(path, F_OK) == 0)
        return proto_keys_read(keys, path, err, err_size);
    if (proto_keys_create(keys, err, err_size) ||
        proto_keys_write(keys, path, "gptoss: the coordinator's keys", err, err_size))
        return -1;
    printf("%-28s the coordinator's keys: they stay with it\n", path);
    path_of(path, folder, KEYGEN_PUBLIC, "");
    unlink(path);
    snprintf(text, sizeof text, "# gptoss: the coordinator's public key; no secret\npublic %s\n",
             keys->public_key);
    if (append(path, text, err, err_size))
        return -1;
    printf("%-28s its public key, for --server-key; the files below hold it too\n", path);
    path_of(path, folder, KEYGEN_ALLOW, "");
    return access(path, F_OK) == 0
               ? 0
               : append(path,
                        "# Whom the coordinator admits: ROLE KEY NAME, where ROLE is client or "
                        "worker.\n# Read again when it changes. Without its line nobody comes in "
                        "any more; a connection that is\n# open stays until it ends.\n",
                        err, err_size);
}

static int make(const char *folder, const char *name, const struct proto_keys *coordinator,
                char *err, size_t err_size)
{
    char path[PATH_MAX], text[256];
    struct proto_keys keys;
    const char *role = strncmp(name, "worker", 6) == 0 ? "worker" : "client";
    if (name[0] == '.' || name[0] == '\0' || strlen(name) > 48 ||
        strspn(name, NAME_CHARACTERS) != strlen(name) || strcmp(name, "coordinator") == 0) {
        snprintf(err, err_size,
                 "\"%.60s\" is no name for a key: 1 to 48 letters, digits, '.', '_' and '-'", name);
        return -1;
    }
    if (path_of(path, folder, name, ".key")) {
        snprintf(err, err_size, "the path is too long");
        return -1;
    }
    if (proto_keys_create(&keys, err, err_size))
        return -1;
    memcpy(keys.server_key, coordinator->public_key, sizeof keys.server_key);
    snprintf(text, sizeof text, "gptoss: keys of %s, a %s", name, role);
    if (proto_keys_write(&keys, path, text, err, err_size))
        return -1;
    printf("%-28s %s\n", path, role[0] == 'w' ? "for ranks" : "for a client");
    snprintf(text, sizeof text, "%s %s %s\n", role, keys.public_key, name);
    path_of(path, folder, KEYGEN_ALLOW, "");
    return append(path, text, err, err_size);
}

int keygen_run(int argc, char **argv)
{
    const struct cli cli = {
        .program = "gptoss-coordinator keygen",
        .summary = "makes CURVE keys, with which a coordinator admits clients and ranks on other "
                   "hosts",
        .usage = "gptoss-coordinator keygen FOLDER [NAME]...",
        .examples = examples,
        .notes = "No file is overwritten. A file of keys is secret, and only its owner may read "
                 "it. Run the coordinator with --keys FOLDER, clients and ranks with --key FILE.",
        .exit_codes = 1u << EXIT_DONE | 1u << EXIT_FAILED | 1u << EXIT_USAGE,
    };
    char **args;
    int n;
    int status = cli_parse(&cli, argc, argv, &args, &n);
    if (status)
        return status > 0 ? EXIT_DONE : EXIT_USAGE;
    if (n == 0) {
        fprintf(stderr, "gptoss-coordinator keygen: where to? give a FOLDER, such as keys\n");
        return EXIT_USAGE;
    }
    const char *folder = args[0];
    char err[PATH_MAX + 512], path[PATH_MAX];
    struct proto_keys coordinator;
    if (path_of(path, folder, KEYGEN_COORDINATOR, ""))
        return fail("the path is too long");
    if (mkdir(folder, 0700) && errno != EEXIST) {
        snprintf(err, sizeof err, "cannot make the folder %s: %m", folder);
        return fail(err);
    }
    if (coordinator_key(folder, &coordinator, err, sizeof err))
        return fail(err);
    static const char *const usual[] = {"worker", "client"};
    const char *const *names = n > 1 ? (const char *const *)args + 1 : usual;
    for (int i = 0; i < (n > 1 ? n - 1 : 2); i++)
        if (make(folder, names[i], &coordinator, err, sizeof err))
            return fail(err);
    path_of(path, folder, KEYGEN_ALLOW, "");
    printf("%-28s whom the coordinator admits: a line for each key\n"
           "\n"
           "Next, with this host's name for HOST:\n"
           "  gptoss-coordinator --model FILE --keys %s --bind tcp://0.0.0.0:5555\n"
           "Bring a client its .key file over a safe way (scp keeps it private); there:\n"
           "  gptoss-client --key client.key --connect tcp://HOST:5555 \"Hello\"\n"
           "Ranks on other hosts need --workers-bind tcp://0.0.0.0:5556 here, and there:\n"
           "  mpirun -np 4 gptoss-worker --key worker.key --coordinator tcp://HOST:5556\n"
           "One more client, and one less:\n"
           "  gptoss-coordinator keygen %s NAME        and delete its line from %s\n",
           path, folder, folder, path);
    return EXIT_DONE;
}
