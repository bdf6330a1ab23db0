/*
 * tools_run: commands of gptoss-gguf run in the test's process, and what they say.
 */
#ifndef GPTOSS_TESTS_TOOLS_RUN_H
#define GPTOSS_TESTS_TOOLS_RUN_H

#include "test.h"

#include "base/base.h"
#include "gguf/gguf.h"
#include "tools/tools.h"

#include <fcntl.h>
#include <jansson.h>
#include <unistd.h>

#define TINY GPTOSS_SOURCE_DIR "/models/gptoss-tiny-mxfp4.gguf"

static char path[] = "/tmp/gptoss-test-tools-XXXXXX";
static char err[512];
static char *said; /* what the last command printed on stdout and stderr */
static size_t said_size;

/* Runs a command with stdout and stderr in a file, and keeps what it said. */
static inline int run(int (*command)(int, char **), const char *const *words)
{
    char *argv[32], copies[32][128];
    int argc = 0;
    for (; words[argc]; argc++) {
        snprintf(copies[argc], sizeof copies[argc], "%s", words[argc]);
        argv[argc] = copies[argc];
    }
    argv[argc] = NULL;

    FILE *file = tmpfile();
    assert_non_null(file);
    fflush(stdout);
    fflush(stderr);
    int out = dup(1), errors = dup(2);
    dup2(fileno(file), 1);
    dup2(fileno(file), 2);
    int status = command(argc, argv);
    fflush(stdout);
    fflush(stderr);
    dup2(out, 1);
    dup2(errors, 2);
    close(out);
    close(errors);

    free(said);
    said_size = (size_t)lseek(fileno(file), 0, SEEK_END);
    said = calloc(said_size + 1, 1);
    assert_int_equal(pread(fileno(file), said, said_size, 0), said_size);
    fclose(file);
    return status;
}

#define SYNTH(...) run(tools_synth, (const char *const[]){"synth", __VA_ARGS__, path, NULL})
#define SHOW(...)  run(tools_show, (const char *const[]){"show", __VA_ARGS__, NULL})

struct model {
    struct gguf_file *file;
    struct gguf_model *model;
};

static inline struct model open_model(void)
{
    struct model m = {0};
    if (gguf_open(&m.file, path, err, sizeof err) ||
        gguf_model_create(&m.model, m.file, err, sizeof err))
        fail_msg("%s", err);
    return m;
}

static inline void close_model(struct model *m)
{
    gguf_model_destroy(m->model);
    gguf_close(m->file);
}

static inline json_t *parse(void)
{
    json_error_t error;
    json_t *json = json_loadb(said, said_size, JSON_ALLOW_NUL, &error);
    if (!json)
        fail_msg("line %d: %s", error.line, error.text);
    return json;
}

static inline json_int_t integer(const json_t *object, const char *name)
{
    return json_integer_value(json_object_get(object, name));
}

static inline int make_path(void **state)
{
    (void)state;
    int fd = mkstemp(path);
    return fd < 0 || close(fd);
}

static inline int remove_path(void **state)
{
    (void)state;
    free(said);
    return unlink(path);
}

#endif
