#include "coordinator/kv.h"

#include <assert.h>
#include <stdlib.h>

void kv_create(struct coordinator *c)
{
    const struct plan *plan = c->world.plan;
    blocks_create(&c->full, plan->full_blocks);
    blocks_create(&c->window, plan->window_blocks);
    c->slots = base_alloc(plan->sequences, sizeof *c->slots);
}

void kv_destroy(struct coordinator *c)
{
    blocks_destroy(&c->full);
    blocks_destroy(&c->window);
    free(c->slots);
    c->slots = NULL;
}

void kv_release(struct coordinator *c, struct request *r)
{
    if (r->slot == CORE_NONE)
        return;
    blocks_release(&c->full, &r->full);
    blocks_release(&c->window, &r->window);
    c->slots[r->slot] = false;
    r->slot = CORE_NONE;
    r->generation++;
    r->issued = r->computed = 0;
    r->pending = 0;
    r->last_step = 0;
    r->window_told = 0;
}

static size_t blocks_for(const struct coordinator *c, size_t positions)
{
    uint32_t block = c->world.plan->block_tokens;
    return (positions + block - 1) / block;
}

void kv_admit(struct coordinator *c, uint64_t now)
{
    uint32_t slot = 0;
    size_t promised = 0, running = 0;
    for (size_t i = 0; i < c->n_requests; i++) {
        const struct request *r = c->requests[i];
        if (r->state != REQUEST_RUNNING)
            continue;
        size_t need = blocks_for(c, r->tokens.count + 1);
        promised += need > r->full.count ? need - r->full.count : 0;
        running++;
    }
    for (size_t i = 0; i < c->n_requests; i++) {
        struct request *r = c->requests[i];
        if (r->state != REQUEST_WAITING)
            continue;
        while (slot < c->world.plan->sequences && c->slots[slot])
            slot++;
        size_t need = blocks_for(c, r->tokens.count + 1);
        if (slot == c->world.plan->sequences || (running && promised + need > c->full.n_free))
            return;
        c->slots[slot] = true;
        r->slot = slot;
        r->state = REQUEST_RUNNING;
        r->issued = r->computed = 0;
        r->pending = 0;
        r->restart = true;
        if (!r->first_step_us)
            r->first_step_us = now;
        promised += need;
        running++;
    }
}

/* Room in both pools for `count` more positions of r. The youngest sequence gives way: its tokens are
 * kept, its KV is computed again later. */
static bool take_blocks(struct coordinator *c, struct request *r, uint32_t count, uint64_t number)
{
    const struct gguf_model *model = c->options.model;
    uint32_t block = c->world.plan->block_tokens;
    size_t entries = blocks_for(c, r->issued + count);
    /* The first row position sees back to issued − (window − 1). */
    size_t passed = r->issued + 1 > model->window ? (r->issued + 1 - model->window) / block : 0;
    blocks_free_front(&c->window, &r->window, passed < r->window.count ? passed : r->window.count);
    for (;;) {
        if (entries - (entries < r->full.count ? entries : r->full.count) <= c->full.n_free &&
            blocks_extend(&c->window, &r->window, entries)) {
            bool extended = blocks_extend(&c->full, &r->full, entries);
            assert(extended);
            (void)extended;
            return true;
        }
        struct request *youngest = NULL;
        for (size_t i = c->n_requests; i-- > 0 && !youngest;)
            if (c->requests[i]->state == REQUEST_RUNNING && c->requests[i]->last_step != number)
                youngest = c->requests[i];
        if (!youngest || youngest->serial < r->serial)
            return false; /* the younger ones are in this step: the next one will take from them */
        sched_release(c, youngest);
        youngest->state = REQUEST_WAITING;
        c->n_preemptions++;
        core_log(c, LOG_DEBUG, "request %llu waits: its KV blocks went to an older one",
                 (unsigned long long)youngest->serial);
        if (youngest == r)
            return false;
    }
}

bool kv_give(struct coordinator *c, struct request *r, uint32_t count, uint64_t number,
             Gptoss__Row *row)
{
    /* What the slot's tables hold before this row: given blocks begin there. */
    size_t full_before = r->full.count, window_before = r->window.count;
    if (!take_blocks(c, r, count, number))
        return false;
    row->n_full_blocks = r->full.count - full_before;
    row->full_blocks = r->full.entries + full_before;
    row->n_window_blocks = r->window.count - window_before;
    row->window_blocks = r->window.entries + window_before;
    row->window_freed = (uint32_t)(r->window.freed - r->window_told);
    r->window_told = r->window.freed;
    row->restart = r->restart;
    r->restart = false;
    return true;
}

void kv_issued(struct coordinator *c, struct request *r)
{
    (void)c;
    (void)r;
}
