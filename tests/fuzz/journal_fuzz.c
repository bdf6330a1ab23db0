/*
 * Fuzzes a journal's file: as it is, or, with an odd first byte, in frames whose checksums are right. What
 * comes out of it goes to a coordinator, as after a restart; what is then in the file can be read again.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "coordinator/coordinator.h"
#include "coordinator/journal.h"

static struct gguf_file *file;
static struct gguf_model *model;
static char path[64];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    char err[512];
    (void)argc;
    (void)argv;
    const char *name = getenv("GPTOSS_TEST_MODEL");
    if (!name || gguf_open(&file, name, err, sizeof err) ||
        gguf_model_create(&model, file, err, sizeof err)) {
        fprintf(stderr, "GPTOSS_TEST_MODEL names no model\n");
        exit(1);
    }
    snprintf(path, sizeof path, "/dev/shm/gptoss-journal-fuzz-%d", (int)getpid());
    return 0;
}

static int restore(void *arg, const void *bytes, size_t size, char *err, size_t err_size)
{
    return coordinator_restore(arg, bytes, size, 1000000, err, err_size);
}

static int any(void *arg, const void *bytes, size_t size, char *err, size_t err_size)
{
    (void)bytes;
    (void)err;
    (void)err_size;
    *(size_t *)arg += size;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char err[512];
    struct journal *j;
    struct journal_report report;
    size_t total = 0;
    if (size < 1)
        return 0;
    unlink(path);
    if (data[0] & 1) {
        if (journal_open(&j, path, 7, any, &total, &report, err, sizeof err))
            abort();
        for (size_t at = 1; at < size;) {
            size_t n = data[at++];
            n = n < size - at ? n : size - at;
            if (n >= 9)
                journal_append(j, data + at, n, false);
            at += n;
        }
        journal_close(j);
    } else {
        FILE *out = fopen(path, "wb");
        if (!out || fwrite(data + 1, 1, size - 1, out) != size - 1)
            abort();
        fclose(out);
    }
    struct coordinator *c;
    struct coordinator_event e;
    struct coordinator_options options = {
        .model = model, .model_path = "/model", .context = 256, .sequences = 4, .journal = true};
    if (coordinator_create(&c, &options, err, sizeof err))
        abort();
    if (journal_open(&j, path, 7, restore, c, &report, err, sizeof err) == 0) {
        coordinator_tick(c, 1000001);
        while (coordinator_take(c, &e))
            if (e.kind == COORDINATOR_KEEP)
                journal_append(j, e.bytes, e.size, e.code);
        coordinator_tick(c, 200000000); /* everybody's time is over */
        while (coordinator_take(c, &e))
            if (e.kind == COORDINATOR_KEEP)
                journal_append(j, e.bytes, e.size, e.code);
        journal_close(j);
        if (journal_open(&j, path, 7, any, &total, &report, err, sizeof err) || report.cut_bytes)
            abort();
        journal_close(j);
    }
    coordinator_destroy(c);
    return 0;
}
