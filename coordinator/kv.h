/*
 * kv: which requests have a slot and which KV blocks: admission, the blocks of each row, and who gives
 * way when they run out. sched.c decides what is computed; this, whether there is room for it.
 */
#ifndef GPTOSS_COORDINATOR_KV_H
#define GPTOSS_COORDINATOR_KV_H

#include "coordinator/core.h"

/* Blocks that the rows of one step are given, unless it has one row: sequences that begin far behind a
 * shared prefix are given all of it, and a step is one message of bounded size. */
#define KV_GIVEN_MAX 16384

void kv_create(struct coordinator *c); /* for c->world.plan */
void kv_destroy(struct coordinator *c);

/* Waiting requests get a slot and become RUNNING, in the order of their age, while there is room. To be
 * called before each step is formed. */
void kv_admit(struct coordinator *c, uint64_t now);

/* Room in both pools for `count` more positions of r, for a row of step `number`, and all that the row
 * says about blocks; its slot, position and count are the caller's. Where blocks run out the youngest
 * request that has no row in this step gives way and waits. False: r does not get into this step. */
bool kv_give(struct coordinator *c, struct request *r, uint32_t count, uint64_t number,
             Gptoss__Row *row);
/* The row was put into a step, and r->issued was raised by its count. */
void kv_issued(struct coordinator *c, struct request *r);

/* Takes slot and blocks from a running request; its state is the caller's to change. */
void kv_release(struct coordinator *c, struct request *r);

#endif
