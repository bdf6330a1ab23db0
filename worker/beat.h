/*
 * beat: tells the coordinator that this process is alive, from a thread and a socket of its own: a long
 * step, a large allocation or a slow disk does not silence it, a stopped or dead process does.
 *
 * What it tells of the stage was noted by the thread that runs steps, and so is how long ago that was.
 */
#ifndef GPTOSS_WORKER_BEAT_H
#define GPTOSS_WORKER_BEAT_H

#include <stdint.h>

#include "worker/worker.h"

struct beat;

/* Beats from now on. `context` is ZeroMQ's, lent. 0, or -1. */
int beat_create(struct beat **out, void *context, const char *endpoint,
                const struct proto_keys *keys, const struct worker_world_info *world,
                uint64_t epoch, char *err, size_t err_size);
void beat_destroy(struct beat *beat); /* NULL is fine */

/* The coordinator's heartbeat: its clock, and ours when it came. It is told back at once. */
void beat_echo(struct beat *beat, uint64_t sent_us, uint64_t received_us);
/* From the thread that runs steps, as often as it likes: it moves, and the stage stands so. `info` may
 * be NULL. */
void beat_note(struct beat *beat, const struct worker_stage_info *info, uint32_t queued,
               uint64_t memory_free_bytes);

#endif
