#include "coordinator/kv.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Blocks that the window before position n · block_tokens touches, but for n near 0. */
static uint32_t blocks_of_window(const struct coordinator *c)
{
    uint32_t block = c->world.plan->block_tokens;
    return (c->options.model->window - 1 + block - 1) / block;
}

void kv_create(struct coordinator *c)
{
    const struct plan *plan = c->world.plan;
    blocks_create(&c->full, plan->full_blocks);
    blocks_create(&c->window, plan->window_blocks);
    c->slots = base_alloc(plan->sequences, sizeof *c->slots);
    c->by_slot = base_alloc(plan->sequences, sizeof(struct request *));
    c->running = base_alloc(plan->sequences, sizeof(struct request *));
    c->n_running = 0;
    if (!c->options.no_prefix_cache)
        c->prefix = prefix_create(&c->full, &c->window, plan->block_tokens, blocks_of_window(c),
                                  c->seed_state ^ c->world.epoch);
    c->kv_step = c->kv_refused = 0;
    for (size_t i = 0; i < c->n_requests; i++)
        c->requests[i]->wait_node = BLOCKS_NONE;
}

void kv_destroy(struct coordinator *c)
{
    blocks_destroy(&c->full);
    blocks_destroy(&c->window);
    prefix_destroy(c->prefix);
    c->prefix = NULL;
    free(c->slots);
    free(c->by_slot);
    free(c->running);
    c->slots = NULL;
    c->by_slot = c->running = NULL;
    c->n_running = 0;
}

/* ── slots ─────────────────────────────────────────────────────────────────────────────────── */

/* Where the request is, or belongs, among those that run. */
static uint32_t running_index(const struct coordinator *c, const struct request *r)
{
    uint32_t low = 0, high = c->n_running;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (c->running[middle]->serial < r->serial)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void take_slot(struct coordinator *c, struct request *r, uint32_t slot)
{
    uint32_t at = running_index(c, r);
    memmove(&c->running[at + 1], &c->running[at], (c->n_running - at) * sizeof *c->running);
    c->running[at] = r;
    c->n_running++;
    c->slots[slot] = true;
    c->by_slot[slot] = r;
    r->slot = slot;
}

static void give_slot(struct coordinator *c, struct request *r)
{
    uint32_t at = running_index(c, r);
    assert(c->running[at] == r);
    c->n_running--;
    memmove(&c->running[at], &c->running[at + 1], (c->n_running - at) * sizeof *c->running);
    c->slots[r->slot] = false;
    c->by_slot[r->slot] = NULL;
    r->slot = CORE_NONE;
}

/* Whole blocks whose tokens are known and were given to steps: nothing is written there any more. */
static size_t whole_blocks(const struct coordinator *c, const struct request *r)
{
    return (r->issued < r->tokens.count ? r->issued : r->tokens.count) /
           c->world.plan->block_tokens;
}

void kv_issued(struct coordinator *c, struct request *r)
{
    if (c->prefix)
        prefix_name(c->prefix, &r->path, r->tokens.ids, whole_blocks(c, r), r->serial, &r->full,
                    &r->window);
}

void kv_release(struct coordinator *c, struct request *r)
{
    if (r->slot == CORE_NONE)
        return;
    if (c->prefix) {
        kv_issued(c, r);
        prefix_keep(c->prefix, &r->path, r->path.named);
        prefix_end(c->prefix, &r->path, r->serial);
    }
    blocks_release(&c->full, &r->full);
    blocks_release(&c->window, &r->window);
    give_slot(c, r);
    r->generation++;
    r->issued = r->computed = 0;
    r->pending = 0;
    r->last_step = 0;
    r->window_told = 0;
}

/* ── admission ─────────────────────────────────────────────────────────────────────────────── */

static size_t blocks_for(const struct coordinator *c, size_t positions)
{
    uint32_t block = c->world.plan->block_tokens;
    return (positions + block - 1) / block;
}

static void begin(struct coordinator *c, struct request *r, uint32_t slot, size_t hit, uint64_t now)
{
    uint32_t block = c->world.plan->block_tokens;
    if (c->prefix) {
        prefix_begin(c->prefix, &r->path, r->tokens.ids, hit, r->tokens.count / block, r->serial,
                     &r->full, &r->window);
        /* Somebody may ask the same again, or go on after the prompt. */
        prefix_keep(c->prefix, &r->path, (r->n_prompt - 1) / block);
        prefix_keep(c->prefix, &r->path, r->n_prompt / block);
        c->n_cached += hit * block;
    }
    take_slot(c, r, slot);
    r->state = REQUEST_RUNNING;
    r->issued = r->computed = hit * block;
    r->pending = 0;
    r->restart = true;
    if (!r->first_step_us) {
        r->first_step_us = now;
        r->cached = (uint32_t)r->issued;
    }
}

/* A request that was there when the ranks were lost, so often in a row that one more loss ends it, is
 * tried with none beside it but such as have gained tokens since: it shall not die for another. */
static bool on_trial(const struct request *r)
{
    return r->deaths + 1 == CORE_DEATHS_MAX;
}

void kv_admit(struct coordinator *c, uint64_t now)
{
    uint32_t slot = 0;
    size_t promised = 0, running = c->n_running, waiting = requests_count(c, REQUEST_WAITING);
    bool trial = false;
    if (waiting == 0 || running == c->world.plan->sequences)
        return;
    for (size_t i = 0; i < c->n_requests && c->on_trial; i++) {
        const struct request *r = c->requests[i];
        if (r->state == REQUEST_RUNNING && on_trial(r))
            return;
        trial |= r->state == REQUEST_WAITING && on_trial(r);
    }
    c->on_trial = trial;
    for (uint32_t i = 0; i < c->n_running; i++) {
        const struct request *r = c->running[i];
        size_t need = blocks_for(c, r->tokens.count + 1);
        promised += need > r->full.count ? need - r->full.count : 0;
    }
    for (size_t i = 0; i < c->n_requests && waiting; i++) {
        struct request *r = c->requests[i];
        if (r->state != REQUEST_WAITING)
            continue;
        waiting--;
        if (trial && !on_trial(r))
            continue;
        while (slot < c->world.plan->sequences && c->slots[slot])
            slot++;
        if (slot == c->world.plan->sequences)
            return;
        if (c->prefix && prefix_pending(c->prefix, r->wait_node, r->wait_serial))
            continue;
        /* An older one that found no room is not looked up again before there is more. */
        size_t room = blocks_room(&c->full);
        room -= promised < room ? promised : room;
        if (running && r->serial == c->kv_refused && room <= c->kv_refused_room)
            return;
        /* At least the last token is computed: its logits are wanted. */
        struct prefix_hit hit = {.wait_node = BLOCKS_NONE};
        if (c->prefix)
            hit = prefix_find(c->prefix, r->tokens.ids,
                              (r->tokens.count - 1) / c->world.plan->block_tokens);
        r->wait_node = hit.wait_node;
        r->wait_serial = hit.wait_serial;
        if (r->wait_node != BLOCKS_NONE)
            continue;
        size_t need = blocks_for(c, r->tokens.count + 1) - hit.blocks;
        if (running && need + hit.unused > room) {
            c->kv_refused = r->serial;
            c->kv_refused_room = room;
            return;
        }
        begin(c, r, slot, hit.blocks, now);
        if (trial)
            return;
        promised += need;
        running++;
    }
}

/* ── the blocks of a row ───────────────────────────────────────────────────────────────────── */

/* Gives back what the windows have passed. A row's window blocks are read in its step, so they are given
 * back when the next step begins, and whoever gets them writes them later. */
static void begin_step(struct coordinator *c, uint64_t number)
{
    uint32_t window = c->options.model->window;
    for (uint32_t i = 0; i < c->n_running; i++) {
        struct request *r = c->running[i];
        if (r->last_step != c->kv_step)
            continue;
        /* Its next row sees back to issued − (window − 1). */
        size_t passed =
            r->issued + 1 > window ? (r->issued + 1 - window) / c->world.plan->block_tokens : 0;
        if (passed > r->window.freed)
            blocks_free_front(&c->window, &r->window, passed);
    }
    c->kv_step = number;
    c->kv_given = 0;
}

static size_t more(const struct block_table *t, size_t entries)
{
    return entries > t->count ? entries - t->count : 0;
}

/* The youngest request that has no row in this step gives way: its tokens are kept, its KV is computed
 * again later, as far as its blocks are not cached then. False: there is none younger than r. */
static bool preempt(struct coordinator *c, const struct request *r, uint64_t number)
{
    struct request *youngest = NULL;
    for (uint32_t i = c->n_running; i-- > 0 && !youngest;)
        if (c->running[i]->last_step != number)
            youngest = c->running[i];
    if (!youngest || youngest->serial < r->serial)
        return false; /* the younger ones are in this step: the next one will take from them */
    sched_release(c, youngest);
    youngest->state = REQUEST_WAITING;
    c->n_preemptions++;
    core_log(c, LOG_DEBUG, "request %llu waits: its KV blocks went to an older one",
             (unsigned long long)youngest->serial);
    return youngest != r;
}

bool kv_give(struct coordinator *c, struct request *r, uint32_t count, uint64_t number,
             Gptoss__Row *row)
{
    if (number != c->kv_step)
        begin_step(c, number);
    size_t entries = blocks_for(c, r->issued + count);
    /* What the slot's tables hold before this row: given blocks begin there. */
    size_t full_before = r->restart ? 0 : r->full.count;
    size_t window_before = r->restart ? 0 : r->window.count;
    size_t given = 2 * entries - full_before - window_before;
    if (c->kv_given && c->kv_given + given > KV_GIVEN_MAX)
        return false;
    while (more(&r->full, entries) > blocks_room(&c->full) ||
           more(&r->window, entries) > blocks_room(&c->window))
        if (!preempt(c, r, number))
            return false;
    bool extended = blocks_extend(&c->full, &r->full, entries) &&
                    blocks_extend(&c->window, &r->window, entries);
    assert(extended);
    (void)extended;
    c->kv_given += given;
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
