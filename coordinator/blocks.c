#include "coordinator/blocks.h"

#include <assert.h>
#include <stdlib.h>

#include "base/base.h"

void blocks_create(struct blocks *b, uint32_t count)
{
    *b = (struct blocks){.count = count, .n_free = count};
    b->blocks = base_alloc(count ? count : 1, sizeof *b->blocks);
    b->free = base_alloc(count ? count : 1, sizeof *b->free);
    /* Low numbers are handed out first, so that a quiet server touches little memory. */
    for (uint32_t i = 0; i < count; i++) {
        b->free[i] = count - 1 - i;
        b->blocks[i].owner = BLOCKS_NONE;
    }
    for (int keep = 0; keep < 2; keep++)
        b->cached[keep].oldest = b->cached[keep].newest = BLOCKS_NONE;
}

void blocks_destroy(struct blocks *b)
{
    free(b->blocks);
    free(b->free);
    *b = (struct blocks){0};
}

/* ── the cached ones ───────────────────────────────────────────────────────────────────────── */

static void cache(struct blocks *b, uint32_t number)
{
    struct block *block = &b->blocks[number];
    uint32_t *newest = &b->cached[block->keep].newest;
    block->newer = BLOCKS_NONE;
    block->older = *newest;
    if (*newest != BLOCKS_NONE)
        b->blocks[*newest].newer = number;
    else
        b->cached[block->keep].oldest = number;
    *newest = number;
    b->n_cached++;
}

static void uncache(struct blocks *b, uint32_t number)
{
    const struct block *block = &b->blocks[number];
    if (block->newer != BLOCKS_NONE)
        b->blocks[block->newer].older = block->older;
    else
        b->cached[block->keep].newest = block->older;
    if (block->older != BLOCKS_NONE)
        b->blocks[block->older].newer = block->newer;
    else
        b->cached[block->keep].oldest = block->newer;
    b->n_cached--;
}

static uint32_t take(struct blocks *b)
{
    uint32_t number;
    if (b->n_free) {
        number = b->free[--b->n_free];
    } else {
        number = b->cached[0].oldest != BLOCKS_NONE ? b->cached[0].oldest : b->cached[1].oldest;
        assert(number != BLOCKS_NONE);
        uncache(b, number);
        uint32_t owner = b->blocks[number].owner;
        b->blocks[number].owner = BLOCKS_NONE;
        b->n_evicted++;
        b->evicted(b->arg, owner);
    }
    b->blocks[number].refs = 1;
    b->blocks[number].keep = false;
    return number;
}

static void give_back(struct blocks *b, uint32_t number)
{
    struct block *block = &b->blocks[number];
    assert(block->refs > 0);
    if (--block->refs)
        return;
    if (block->owner != BLOCKS_NONE)
        cache(b, number);
    else
        b->free[b->n_free++] = number;
}

void blocks_name(struct blocks *b, uint32_t number, uint32_t owner, bool keep)
{
    struct block *block = &b->blocks[number];
    assert(block->refs > 0 && block->owner == BLOCKS_NONE);
    block->owner = owner;
    block->keep = keep;
}

void blocks_unname(struct blocks *b, uint32_t number)
{
    struct block *block = &b->blocks[number];
    assert(block->owner != BLOCKS_NONE);
    block->owner = BLOCKS_NONE;
    if (block->refs)
        return;
    uncache(b, number);
    b->free[b->n_free++] = number;
}

void blocks_keep(struct blocks *b, uint32_t number)
{
    struct block *block = &b->blocks[number];
    assert(block->owner != BLOCKS_NONE);
    if (block->keep)
        return;
    if (!block->refs)
        uncache(b, number);
    block->keep = true;
    if (!block->refs)
        cache(b, number);
}

/* ── tables ────────────────────────────────────────────────────────────────────────────────── */

bool blocks_extend(struct blocks *b, struct block_table *t, size_t entries)
{
    if (entries <= t->count)
        return true;
    size_t need = entries - t->count;
    if (need > blocks_room(b))
        return false;
    t->entries = base_grow(t->entries, &t->capacity, entries, sizeof *t->entries);
    for (size_t i = 0; i < need; i++)
        t->entries[t->count++] = take(b);
    return true;
}

void blocks_share(struct blocks *b, struct block_table *t, uint32_t number)
{
    struct block *block = &b->blocks[number];
    assert(block->owner != BLOCKS_NONE);
    if (!block->refs)
        uncache(b, number);
    block->refs++;
    t->entries = base_grow(t->entries, &t->capacity, t->count + 1, sizeof *t->entries);
    t->entries[t->count++] = number;
}

void blocks_skip(struct block_table *t, size_t entries)
{
    assert(t->count == 0);
    t->entries = base_grow(t->entries, &t->capacity, entries, sizeof *t->entries);
    for (; t->count < entries; t->count++)
        t->entries[t->count] = 0;
    t->freed = entries;
}

void blocks_free_front(struct blocks *b, struct block_table *t, size_t until)
{
    assert(until <= t->count);
    for (; t->freed < until; t->freed++)
        give_back(b, t->entries[t->freed]);
}

void blocks_release(struct blocks *b, struct block_table *t)
{
    /* A prefix is of no use without its beginning, so the beginning is evicted last. */
    while (t->count > t->freed)
        give_back(b, t->entries[--t->count]);
    t->count = t->freed = 0;
}

void block_table_destroy(struct block_table *t)
{
    free(t->entries);
    *t = (struct block_table){0};
}
