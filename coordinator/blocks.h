/*
 * blocks: numbers of KV blocks, of one pool, and the tables of the sequences that hold them.
 *
 * A pool hands out block numbers 0 … count − 1. A table is a sequence's list of blocks in the order of
 * its positions: entry i holds positions i · block_tokens …; entries before `freed` were given back or
 * never held (a sliding window has passed them).
 *
 * A block may be in several tables: it counts them. A block whose contents have a name (an owner, a
 * number that prefix.c chooses) does not become free when its last table gives it back: it is cached,
 * until its room is needed. Of the cached blocks those that are not marked `keep` go first, then those
 * that were given back the longest ago.
 * Invariant: a number is either free, or cached with no references and an owner, or in exactly `refs`
 * tables at an index ≥ their freed.
 */
#ifndef GPTOSS_COORDINATOR_BLOCKS_H
#define GPTOSS_COORDINATOR_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BLOCKS_NONE UINT32_MAX

struct block {
    uint32_t refs;
    uint32_t owner;        /* BLOCKS_NONE: its contents have no name */
    uint32_t newer, older; /* while cached */
    bool keep;
};

struct blocks {
    struct block *blocks; /* [count] */
    uint32_t *free;       /* [count], a stack; the first n_free are free */
    uint32_t count, n_free, n_cached;
    struct {
        uint32_t oldest, newest;
    } cached[2]; /* [keep] */
    uint64_t n_evicted;
    /* A cached block is given to somebody else: its owner has it no longer. */
    void (*evicted)(void *arg, uint32_t owner);
    void *arg;
};

struct block_table {
    uint32_t *entries;
    size_t count, capacity;
    size_t freed;
};

void blocks_create(struct blocks *b, uint32_t count);
void blocks_destroy(struct blocks *b);
/* In tables. */
static inline uint32_t blocks_used(const struct blocks *b)
{
    return b->count - b->n_free - b->n_cached;
}
/* What blocks_extend can give. */
static inline uint32_t blocks_room(const struct blocks *b)
{
    return b->n_free + b->n_cached;
}

/* Appends entries until the table has `entries`. False, and nothing changed, if the pool has too few. */
bool blocks_extend(struct blocks *b, struct block_table *t, size_t entries);
/* Appends a block that has an owner. */
void blocks_share(struct blocks *b, struct block_table *t, uint32_t number);
/* Makes an empty table begin with entries that hold nothing, as if they had been given back. */
void blocks_skip(struct block_table *t, size_t entries);
/* Gives the entries before index `until` back. */
void blocks_free_front(struct blocks *b, struct block_table *t, size_t until);
/* Gives everything back, the last entries first; the table is empty and keeps its memory. */
void blocks_release(struct blocks *b, struct block_table *t);
void block_table_destroy(struct block_table *t);

/* Names the contents of a block that is in a table. */
void blocks_name(struct blocks *b, uint32_t number, uint32_t owner, bool keep);
/* Takes a block's name away: a cached one becomes free. */
void blocks_unname(struct blocks *b, uint32_t number);
/* Marks a named block to be cached longer than others. */
void blocks_keep(struct blocks *b, uint32_t number);

#endif
