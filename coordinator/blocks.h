/*
 * blocks: numbers of KV blocks, of one pool, and the tables of the sequences that hold them.
 *
 * A pool hands out block numbers 0 … count − 1. A table is a sequence's list of blocks in the order of
 * its positions: entry i holds positions i · block_tokens …; entries before `freed` were given back
 * (a sliding window has passed them).
 * Invariant: a number is either free in the pool or in exactly one table at an index ≥ its freed.
 */
#ifndef GPTOSS_COORDINATOR_BLOCKS_H
#define GPTOSS_COORDINATOR_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct blocks {
    uint32_t *free; /* [count], a stack; the first n_free are free */
    uint32_t count, n_free;
};

struct block_table {
    uint32_t *entries;
    size_t count, capacity;
    size_t freed;
};

void blocks_create(struct blocks *b, uint32_t count);
void blocks_destroy(struct blocks *b);
static inline uint32_t blocks_used(const struct blocks *b)
{
    return b->count - b->n_free;
}

/* Appends entries until the table has `entries`. False, and nothing changed, if the pool has too few. */
bool blocks_extend(struct blocks *b, struct block_table *t, size_t entries);
/* Gives the entries before index `until` back. */
void blocks_free_front(struct blocks *b, struct block_table *t, size_t until);
/* Gives everything back; the table is empty and keeps its memory. */
void blocks_release(struct blocks *b, struct block_table *t);
void block_table_destroy(struct block_table *t);

#endif
