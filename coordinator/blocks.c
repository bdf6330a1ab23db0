#include "coordinator/blocks.h"

#include <assert.h>
#include <stdlib.h>

#include "base/base.h"

void blocks_create(struct blocks *b, uint32_t count)
{
    b->free = base_alloc(count ? count : 1, sizeof *b->free);
    b->count = b->n_free = count;
    /* Low numbers are handed out first, so that a quiet server touches little memory. */
    for (uint32_t i = 0; i < count; i++)
        b->free[i] = count - 1 - i;
}

void blocks_destroy(struct blocks *b)
{
    free(b->free);
    *b = (struct blocks){0};
}

bool blocks_extend(struct blocks *b, struct block_table *t, size_t entries)
{
    if (entries <= t->count)
        return true;
    size_t need = entries - t->count;
    if (need > b->n_free)
        return false;
    t->entries = base_grow(t->entries, &t->capacity, entries, sizeof *t->entries);
    for (size_t i = 0; i < need; i++)
        t->entries[t->count++] = b->free[--b->n_free];
    return true;
}

void blocks_free_front(struct blocks *b, struct block_table *t, size_t until)
{
    assert(until <= t->count);
    for (; t->freed < until; t->freed++) {
        assert(b->n_free < b->count);
        b->free[b->n_free++] = t->entries[t->freed];
    }
}

void blocks_release(struct blocks *b, struct block_table *t)
{
    blocks_free_front(b, t, t->count);
    t->count = t->freed = 0;
}

void block_table_destroy(struct block_table *t)
{
    free(t->entries);
    *t = (struct block_table){0};
}
