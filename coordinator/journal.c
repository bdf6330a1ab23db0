#include "coordinator/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"
#include "coordinator/records.h"

/* The file: a header, then records, each of a size, a checksum of what follows, and the bytes that
 * records.c wrote: they begin with a kind and a serial. Little-endian, as the hosts that run this. */
struct header {
    char magic[8];
    uint32_t version, zero;
    uint64_t of;
    uint64_t checksum; /* of what is before it */
};
struct frame {
    uint32_t size, checksum;
};

#define MAGIC      "gptossj"
#define VERSION    1
#define RECORD_MIN 9
#define RECORD_MAX (PROTO_MESSAGE_MAX + 64)
#define BOUND      ((uint64_t)64 << 20) /* beyond this, what is over is left out */
#define BATCH_MS   50                   /* records that nobody waits for are written so late */
#define BATCH_MAX  ((size_t)1 << 20)    /* or when they are so many bytes */

struct journal {
    char *path;
    int fd, lock_fd, event_fd;
    uint64_t of, bound;

    /* Of the thread; before and after it, of everybody. */
    uint64_t size, live_bytes;
    struct map *live; /* serial → bytes of its records, at most UINT32_MAX − 1 */

    pthread_t thread;
    bool started;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    /* Under the mutex. */
    struct text pending;
    uint64_t appended, kept;
    bool soon, stop, failed;
    char why[256];
};

/* ── bytes ─────────────────────────────────────────────────────────────────────────────────── */

/* CRC-32C. */
static uint32_t checksum(const void *bytes, size_t size)
{
    static uint32_t table[256];
    if (!table[1])
        for (uint32_t i = 256; i-- > 1;) { /* entry 1 last: it says that the table is there */
            uint32_t value = i;
            for (int bit = 0; bit < 8; bit++)
                value = value >> 1 ^ (value & 1 ? 0x82f63b78u : 0);
            table[i] = value;
        }
    const uint8_t *p = bytes;
    uint32_t sum = ~0u;
    for (size_t i = 0; i < size; i++)
        sum = table[(sum ^ p[i]) & 0xff] ^ sum >> 8;
    return ~sum;
}

static void header_make(struct header *h, uint64_t of)
{
    *h = (struct header){.magic = MAGIC, .version = VERSION, .of = of};
    h->checksum = checksum(h, offsetof(struct header, checksum));
}

static int write_all(int fd, const void *bytes, size_t size)
{
    const char *p = bytes;
    while (size > 0) {
        ssize_t n = write(fd, p, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        p += n;
        size -= (size_t)n;
    }
    return 0;
}

static uint64_t serial_of(const char *record)
{
    uint64_t serial;
    memcpy(&serial, record + 1, sizeof serial);
    return serial;
}

static void count_live(struct journal *j, const char *record, size_t size)
{
    uint64_t serial = serial_of(record);
    uint32_t bytes = map_get(j->live, serial);
    if (record[0] == RECORD_ACCEPT && bytes == MAP_NONE)
        bytes = 0;
    if (bytes == MAP_NONE)
        return;
    if (record[0] == RECORD_END) {
        map_remove(j->live, serial);
        j->live_bytes -= bytes;
        return;
    }
    uint64_t all = (uint64_t)bytes + sizeof(struct frame) + size;
    map_set(j->live, serial, all < MAP_NONE ? (uint32_t)all : MAP_NONE - 1);
    j->live_bytes += map_get(j->live, serial) - bytes;
}

/* ── reading ───────────────────────────────────────────────────────────────────────────────── */

/* The next whole record. 1; 0: the end, or what is no record. */
static int next_record(FILE *file, struct text *record)
{
    struct frame frame;
    text_clear(record);
    if (fread(&frame, sizeof frame, 1, file) != 1 || frame.size < RECORD_MIN ||
        frame.size > RECORD_MAX)
        return 0;
    record->bytes = base_grow(record->bytes, &record->capacity, frame.size + 1, 1);
    if (fread(record->bytes, 1, frame.size, file) != frame.size ||
        checksum(record->bytes, frame.size) != frame.checksum)
        return 0;
    record->size = frame.size;
    return 1;
}

/* Writes what is live in the open file anew, and takes the new file instead. */
static int rewrite(struct journal *j, journal_record record, void *arg,
                   struct journal_report *report, char *err, size_t err_size)
{
    char path[PATH_MAX];
    struct text one = {0};
    struct header header;
    int copy = dup(j->fd), status = -1;
    FILE *old = copy >= 0 ? fdopen(copy, "rb") : NULL, *new = NULL;
    snprintf(path, sizeof path, "%s.new", j->path);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int second = fd >= 0 ? dup(fd) : -1;
    if (second >= 0)
        new = fdopen(second, "wb");
    if (!old || !new || fseeko(old, sizeof header, SEEK_SET)) {
        snprintf(err, err_size, "%s: cannot be written: %m", path);
        goto done;
    }
    header_make(&header, j->of);
    bool failed = fwrite(&header, sizeof header, 1, new) != 1;
    uint64_t size = sizeof header;
    while (!failed && next_record(old, &one)) {
        char why[256];
        uint64_t serial = serial_of(one.bytes);
        if (map_get(j->live, serial) == MAP_NONE)
            continue;
        if (record && record(arg, one.bytes, one.size, why, sizeof why)) {
            report->left_out++;
            snprintf(report->why, sizeof report->why, "%s", why);
            if (one.bytes[0] == RECORD_ACCEPT) { /* tokens can be computed again */
                j->live_bytes -= map_get(j->live, serial);
                map_remove(j->live, serial);
            }
            continue;
        }
        struct frame frame = {(uint32_t)one.size, checksum(one.bytes, one.size)};
        failed = fwrite(&frame, sizeof frame, 1, new) != 1 ||
                 fwrite(one.bytes, 1, one.size, new) != one.size;
        size += sizeof frame + one.size;
    }
    failed |= fflush(new) != 0;
    if (failed || fsync(fd) || rename(path, j->path)) {
        snprintf(err, err_size, "%s: cannot be written: %m", path);
        goto done;
    }
    close(j->fd);
    j->fd = fd;
    fd = -1;
    j->size = size;
    lseek(j->fd, 0, SEEK_END);
    char *slash = strrchr(path, '/');
    if (slash)
        slash[1] = 0;
    int folder = open(slash ? path : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder >= 0) {
        fsync(folder);
        close(folder);
    }
    status = 0;
done:
    if (old)
        fclose(old);
    else if (copy >= 0)
        close(copy);
    if (new)
        fclose(new);
    else if (second >= 0)
        close(second);
    if (fd >= 0)
        close(fd);
    text_free(&one);
    return status;
}

/* What is live, and where the whole records end. */
static int look_through(struct journal *j, struct journal_report *report, char *err,
                        size_t err_size)
{
    struct header want, got;
    struct text one = {0};
    int copy = dup(j->fd), status = -1;
    FILE *file = copy >= 0 ? fdopen(copy, "rb") : NULL;
    if (!file) {
        if (copy >= 0)
            close(copy);
        snprintf(err, err_size, "%s: cannot be read: %m", j->path);
        return -1;
    }
    off_t size = lseek(j->fd, 0, SEEK_END);
    rewind(file);
    header_make(&want, j->of);
    size_t n = fread(&got, 1, sizeof got, file);
    if (size == 0 || (n < sizeof got && memcmp(&got, &want, n < 16 ? n : 16) == 0)) {
        status = 0; /* new, or its beginning was cut */
        goto done;
    }
    if (n < sizeof got || memcmp(got.magic, want.magic, sizeof got.magic) ||
        got.checksum != checksum(&got, offsetof(struct header, checksum))) {
        snprintf(err, err_size,
                 "%s is no journal of gptoss, and is left alone: choose another file", j->path);
        goto done;
    }
    if (got.version != VERSION) {
        snprintf(err, err_size,
                 "%s is a journal of version %u, and this program knows %d: finish it with the "
                 "program that wrote it, or choose another file",
                 j->path, got.version, VERSION);
        goto done;
    }
    if (got.of != want.of) {
        snprintf(err, err_size,
                 "%s is the journal of another model: its answers cannot go on with this one; give "
                 "that model, or choose another file",
                 j->path);
        goto done;
    }
    off_t whole = sizeof got;
    while (next_record(file, &one)) {
        count_live(j, one.bytes, one.size);
        whole += (off_t)(sizeof(struct frame) + one.size);
        report->records++;
    }
    report->cut_bytes = (uint64_t)(size - whole);
    status = 0;
done:
    fclose(file);
    text_free(&one);
    return status;
}

/* ── writing ───────────────────────────────────────────────────────────────────────────────── */

static void fail(struct journal *j, const char *why)
{
    pthread_mutex_lock(&j->mutex);
    j->failed = true;
    snprintf(j->why, sizeof j->why, "%s", why);
    pthread_mutex_unlock(&j->mutex);
    eventfd_write(j->event_fd, 1);
}

static void wait_for_records(struct journal *j)
{
    while (!j->pending.size && !j->stop)
        pthread_cond_wait(&j->wake, &j->mutex);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += BATCH_MS * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    while (!j->soon && !j->stop && j->pending.size < BATCH_MAX)
        if (pthread_cond_timedwait(&j->wake, &j->mutex, &until))
            break;
}

/* A batch: its records are in `batch`, frames and all. */
static int write_batch(struct journal *j, const struct text *batch, bool soon, char *err,
                       size_t err_size)
{
    if (write_all(j->fd, batch->bytes, batch->size) || (soon && fdatasync(j->fd))) {
        snprintf(err, err_size,
                 "the journal %s cannot be written: %s; what was accepted before is in it: make "
                 "room, and start again",
                 j->path, strerror(errno));
        return -1;
    }
    j->size += batch->size;
    for (size_t at = 0; at < batch->size;) {
        struct frame frame;
        memcpy(&frame, batch->bytes + at, sizeof frame);
        count_live(j, batch->bytes + at + sizeof frame, frame.size);
        at += sizeof frame + frame.size;
    }
    return 0;
}

static void *write_records(void *arg)
{
    struct journal *j = arg;
    struct text batch = {0};
    char err[256];
    for (;;) {
        pthread_mutex_lock(&j->mutex);
        wait_for_records(j);
        struct text full = j->pending;
        bool soon = j->soon, stop = j->stop;
        uint64_t until = j->appended;
        j->pending = batch;
        text_clear(&j->pending);
        j->soon = false;
        pthread_mutex_unlock(&j->mutex);
        batch = full;
        if (batch.size && write_batch(j, &batch, soon || stop, err, sizeof err)) {
            fail(j, err);
            break;
        }
        if (soon) {
            pthread_mutex_lock(&j->mutex);
            j->kept = until;
            pthread_mutex_unlock(&j->mutex);
            eventfd_write(j->event_fd, 1);
        }
        if (stop)
            break;
        if (j->size > j->bound && j->size > 4 * j->live_bytes &&
            rewrite(j, NULL, NULL, NULL, err, sizeof err)) {
            fail(j, err);
            break;
        }
    }
    text_free(&batch);
    return NULL;
}

void journal_append(struct journal *j, const void *bytes, size_t size, bool soon)
{
    struct frame frame = {(uint32_t)size, checksum(bytes, size)};
    pthread_mutex_lock(&j->mutex);
    if (!j->failed) {
        bool first = !j->pending.size;
        text_add(&j->pending, &frame, sizeof frame);
        text_add(&j->pending, bytes, size);
        j->soon |= soon;
        if (first || soon || j->pending.size > BATCH_MAX)
            pthread_cond_signal(&j->wake);
    }
    j->appended++;
    pthread_mutex_unlock(&j->mutex);
}

int journal_fd(const struct journal *j)
{
    return j->event_fd;
}

int journal_kept(struct journal *j, uint64_t *records, char *err, size_t err_size)
{
    eventfd_t value;
    eventfd_read(j->event_fd, &value);
    pthread_mutex_lock(&j->mutex);
    *records = j->kept;
    bool failed = j->failed;
    if (failed)
        snprintf(err, err_size, "%s", j->why);
    pthread_mutex_unlock(&j->mutex);
    return failed ? -1 : 0;
}

void journal_set_bound(struct journal *j, uint64_t bytes)
{
    j->bound = bytes ? bytes : BOUND;
}

/* ── opening and closing ───────────────────────────────────────────────────────────────────── */

/* The lock is a file of its own: the journal's is replaced. */
static int lock(struct journal *j, char *err, size_t err_size)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s.lock", j->path);
    j->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (j->lock_fd < 0) {
        snprintf(err, err_size, "%s: cannot be written: %m: choose a folder that you may write to",
                 path);
        return -1;
    }
    if (flock(j->lock_fd, LOCK_EX | LOCK_NB) == 0)
        return 0;
    snprintf(err, err_size, "%s is used by another coordinator: give each its own journal",
             j->path);
    return -1;
}

int journal_open(struct journal **out, const char *path, uint64_t of, journal_record record,
                 void *arg, struct journal_report *report, char *err, size_t err_size)
{
    struct journal *j = base_alloc(1, sizeof *j);
    *out = NULL;
    *report = (struct journal_report){0};
    j->fd = j->lock_fd = j->event_fd = -1;
    j->path = strdup(path);
    j->of = of;
    j->bound = BOUND;
    j->live = map_create(64);
    pthread_mutex_init(&j->mutex, NULL);
    pthread_cond_init(&j->wake, NULL);
    struct stat status;
    if (lock(j, err, err_size))
        goto failed;
    j->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    j->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (j->fd < 0 || j->event_fd < 0 || fstat(j->fd, &status) || !S_ISREG(status.st_mode)) {
        snprintf(err, err_size, "%s: cannot be a journal: %s", path,
                 j->fd < 0 ? strerror(errno) : "it is no plain file");
        goto failed;
    }
    if (look_through(j, report, err, err_size))
        goto failed;
    if (report->cut_bytes) { /* most likely half a record; but it is not ours to throw away */
        char damaged[PATH_MAX];
        snprintf(damaged, sizeof damaged, "%s.damaged", path);
        unlink(damaged);
        if (link(path, damaged))
            log_warn("%s: %m", damaged);
    }
    if (rewrite(j, record, arg, report, err, err_size))
        goto failed;
    if (pthread_create(&j->thread, NULL, write_records, j)) {
        snprintf(err, err_size, "cannot start a thread for the journal");
        goto failed;
    }
    j->started = true;
    *out = j;
    return 0;
failed:
    journal_close(j);
    return -1;
}

void journal_close(struct journal *j)
{
    if (!j)
        return;
    if (j->started) {
        pthread_mutex_lock(&j->mutex);
        j->stop = true;
        pthread_cond_signal(&j->wake);
        pthread_mutex_unlock(&j->mutex);
        pthread_join(j->thread, NULL);
    }
    const int fds[] = {j->fd, j->event_fd, j->lock_fd};
    for (size_t i = 0; i < 3; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    pthread_mutex_destroy(&j->mutex);
    pthread_cond_destroy(&j->wake);
    map_destroy(j->live);
    text_free(&j->pending);
    free(j->path);
    free(j);
}
