/*
 * head: the samples of steps through a head that is cut by vocabulary over the stages.
 *
 *   last stage                                      a stage that holds a part of the head
 *   the step's layers are done
 *   rows of up to head_rows samples   ──rows──▶     receives them once it has done the step's layers
 *   its own part's reply                            its part's reply, before any layers that wait
 *   waits for all replies             ◀──reply──    sends it
 *   merges them: the samples
 *
 * That is a job. Jobs are begun in the order of the samples, on every stage the same ones, and a few
 * are under way at a time: each has a slot with its buffers. A step without samples has none. Rows and
 * replies travel in host memory, over mpi.
 */
#ifndef GPTOSS_WORKER_HEAD_H
#define GPTOSS_WORKER_HEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/transport.h"

struct worker_stage;

/*   HEAD_FREE ──▶ HEAD_WAITING ──the rows have come──▶ HEAD_MAKING ──▶ HEAD_SENDING ──▶ HEAD_FREE
 *   the last stage:             HEAD_MAKING ──all replies are here──▶ HEAD_MERGING ──▶ HEAD_FREE */
enum head_state { HEAD_FREE, HEAD_WAITING, HEAD_MAKING, HEAD_SENDING, HEAD_MERGING };

struct head_job {
    enum head_state state;
    uint64_t step;
    uint32_t first, count; /* samples of the step */
    uint64_t since_us;     /* when the device got it */
    /* [n_edges]: the last stage's to and from each other stage, the others' from and to the last */
    struct transport_transfer *rows, *replies;
};

struct head {
    uint32_t n_jobs; /* 0: no part of a cut head is here */
    struct head_job *jobs;
    uint32_t rows;   /* samples of a job, at most */
    uint32_t *parts; /* [stages] rows of the output matrix on each; NULL: the head is whole */
    uint32_t n_edges;
    struct transport_edge **rows_to, **reply_to; /* [n_edges]; NULL where there is none */
    uint64_t begun, ended;                       /* jobs so far; job n has slot n % n_jobs */
    uint64_t step;                               /* of which samples … */
    uint32_t first;                              /* … from here on are in no job yet */
};

/* Whether the step of so many samples waits for jobs on this stage. */
static inline uint32_t head_due(const struct head *head, uint32_t n_samples)
{
    return head->n_jobs ? n_samples : 0;
}

/* On a stage with a part of a cut head. -1: no memory. */
int head_init(struct head *head, uint32_t n_edges, uint32_t n_jobs, uint32_t rows);
/* After the stage's other edges. 0, or -1 with a sentence. */
int head_open(struct worker_stage *stage, char *err, size_t err_size);
/* Does what can be done without waiting; *moved is set when something moved. */
int head_progress(struct worker_stage *stage, bool *moved, char *err, size_t err_size);
void head_close(struct head *head); /* the edges */
void head_free(struct head *head);  /* of a zeroed or initialised head */

#endif
