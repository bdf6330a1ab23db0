/*
 * journal: a file of records that survives the coordinator. Records are written, and brought to disk, by
 * a thread, many at a time, so that no token waits for a disk. The file begins with what it is of; each
 * record has its size and a checksum, so that a last one that was cut is known. What is over is left out
 * when the file is opened, and when it has grown.
 */
#ifndef GPTOSS_COORDINATOR_JOURNAL_H
#define GPTOSS_COORDINATOR_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct journal;

/* Called for each record of a file; -1 and a sentence: it is left out, with all that belongs to it. */
typedef int (*journal_record)(void *arg, const void *bytes, size_t size, char *err,
                              size_t err_size);

struct journal_report {
    uint64_t records;   /* that were there */
    uint64_t left_out;  /* because the callback would not have them */
    uint64_t cut_bytes; /* at the end, that were no whole record */
    char why[256];      /* the callback's last sentence */
};

/* Opens or makes the file at `path`, and locks it. `of` tells the model: a file of another is refused,
 * as is one that is no journal. */
int journal_open(struct journal **out, const char *path, uint64_t of, journal_record record,
                 void *arg, struct journal_report *report, char *err, size_t err_size);
/* Writes what is left. NULL is fine. */
void journal_close(struct journal *j);

/* Adds a record; soon: it is brought to disk without delay. */
void journal_append(struct journal *j, const void *bytes, size_t size, bool soon);
/* Readable when more records are on disk, or when writing failed. */
int journal_fd(const struct journal *j);
/* How many of the records added are on disk; -1 and a sentence: it cannot be written any more. */
int journal_kept(struct journal *j, uint64_t *records, char *err, size_t err_size);

/* When a journal is written anew in between; 0: 64 MiB. For tests. */
void journal_set_bound(struct journal *j, uint64_t bytes);

#endif
