#include "coordinator/prefix.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

#define BUCKET_MAX                                                                                 \
    64 /* nodes of one bucket: a client that finds collisions is not cached further */

struct node {
    uint64_t serial;   /* unlike that of every other node there ever was; 0: free */
    uint64_t promiser; /* 0: nobody */
    uint32_t parent;   /* BLOCKS_NONE: the empty prefix */
    uint32_t next;     /* in its bucket, or of the free ones */
    uint32_t bucket;
    uint32_t full, window; /* blocks, or BLOCKS_NONE */
    uint32_t holders;      /* paths and children */
    bool keep;
};

struct prefix {
    struct blocks *full, *window;
    uint32_t block_tokens, window_blocks;
    uint64_t seed, last_serial;
    struct node *nodes;
    uint32_t *tokens; /* [nodes][block_tokens] */
    size_t nodes_capacity, tokens_capacity;
    uint32_t n_nodes, n_live, first_free;
    uint32_t *buckets; /* [mask + 1] */
    uint32_t mask;
};

/* ── nodes ─────────────────────────────────────────────────────────────────────────────────── */

static uint32_t bucket_of(const struct prefix *p, uint32_t parent, const uint32_t *tokens)
{
    uint64_t seed = parent == BLOCKS_NONE ? p->seed : p->seed ^ p->nodes[parent].serial;
    return (uint32_t)map_hash(tokens, p->block_tokens * sizeof *tokens, seed) & p->mask;
}

static uint32_t child_of(const struct prefix *p, uint32_t parent, const uint32_t *tokens)
{
    uint32_t n = p->buckets[bucket_of(p, parent, tokens)];
    while (n != BLOCKS_NONE &&
           (p->nodes[n].parent != parent || memcmp(p->tokens + (size_t)n * p->block_tokens, tokens,
                                                   p->block_tokens * sizeof *tokens) != 0))
        n = p->nodes[n].next;
    return n;
}

/* BLOCKS_NONE: its bucket is full. */
static uint32_t add_child(struct prefix *p, uint32_t parent, const uint32_t *tokens)
{
    uint32_t bucket = bucket_of(p, parent, tokens), in_bucket = 0;
    for (uint32_t n = p->buckets[bucket]; n != BLOCKS_NONE; n = p->nodes[n].next)
        if (++in_bucket == BUCKET_MAX)
            return BLOCKS_NONE;
    uint32_t n = p->first_free;
    if (n != BLOCKS_NONE) {
        p->first_free = p->nodes[n].next;
    } else {
        n = p->n_nodes++;
        p->nodes = base_grow(p->nodes, &p->nodes_capacity, p->n_nodes, sizeof *p->nodes);
        p->tokens = base_grow(p->tokens, &p->tokens_capacity, (size_t)p->n_nodes * p->block_tokens,
                              sizeof *p->tokens);
    }
    p->nodes[n] = (struct node){
        .serial = ++p->last_serial,
        .parent = parent,
        .next = p->buckets[bucket],
        .bucket = bucket,
        .full = BLOCKS_NONE,
        .window = BLOCKS_NONE,
    };
    p->buckets[bucket] = n;
    memcpy(p->tokens + (size_t)n * p->block_tokens, tokens, p->block_tokens * sizeof *tokens);
    if (parent != BLOCKS_NONE)
        p->nodes[parent].holders++;
    p->n_live++;
    return n;
}

/* Frees the node, and then its parent, … as far as nothing needs them. */
static void tidy(struct prefix *p, uint32_t n)
{
    while (n != BLOCKS_NONE && p->nodes[n].holders == 0 && p->nodes[n].full == BLOCKS_NONE &&
           p->nodes[n].window == BLOCKS_NONE) {
        struct node *node = &p->nodes[n];
        assert(node->promiser == 0);
        uint32_t *link = &p->buckets[node->bucket];
        while (*link != n)
            link = &p->nodes[*link].next;
        *link = node->next;
        uint32_t parent = node->parent;
        node->serial = 0;
        node->next = p->first_free;
        p->first_free = n;
        p->n_live--;
        if (parent != BLOCKS_NONE)
            p->nodes[parent].holders--;
        n = parent;
    }
}

static void full_evicted(void *arg, uint32_t n)
{
    struct prefix *p = arg;
    p->nodes[n].full = BLOCKS_NONE;
    /* Nothing is found behind this node now: its block of the other pool need not be cached. */
    uint32_t window = p->nodes[n].window;
    if (window != BLOCKS_NONE && p->window->blocks[window].refs == 0) {
        blocks_unname(p->window, window);
        p->nodes[n].window = BLOCKS_NONE;
    }
    tidy(p, n);
}

static void window_evicted(void *arg, uint32_t n)
{
    struct prefix *p = arg;
    p->nodes[n].window = BLOCKS_NONE;
    tidy(p, n);
}

static void keep_node(struct prefix *p, uint32_t n)
{
    struct node *node = &p->nodes[n];
    node->keep = true;
    if (node->window != BLOCKS_NONE)
        blocks_keep(p->window, node->window);
}

struct prefix *prefix_create(struct blocks *full, struct blocks *window, uint32_t block_tokens,
                             uint32_t window_blocks, uint64_t seed)
{
    struct prefix *p = base_alloc(1, sizeof *p);
    p->full = full;
    p->window = window;
    p->block_tokens = block_tokens;
    p->window_blocks = window_blocks;
    p->seed = seed;
    p->first_free = BLOCKS_NONE;
    /* Not many more nodes than blocks are alive. */
    uint64_t buckets = 64;
    while (buckets < 2 * ((uint64_t)full->count + window->count) && buckets < (uint64_t)1 << 31)
        buckets *= 2;
    p->mask = (uint32_t)(buckets - 1);
    p->buckets = base_alloc(buckets, sizeof *p->buckets);
    memset(p->buckets, 0xff, buckets * sizeof *p->buckets);
    full->evicted = full_evicted;
    window->evicted = window_evicted;
    full->arg = window->arg = p;
    return p;
}

void prefix_destroy(struct prefix *p)
{
    if (!p)
        return;
    free(p->nodes);
    free(p->tokens);
    free(p->buckets);
    free(p);
}

uint32_t prefix_nodes(const struct prefix *p)
{
    return p->n_live;
}

/* ── finding ───────────────────────────────────────────────────────────────────────────────── */

struct prefix_hit prefix_find(struct prefix *p, const uint32_t *tokens, size_t limit)
{
    struct prefix_hit hit = {.wait_node = BLOCKS_NONE};
    bool whole = true; /* the full blocks so far are there */
    size_t depth = 0, run = 0, unused = 0, promised = 0;
    uint32_t n = BLOCKS_NONE, last = BLOCKS_NONE;
    for (size_t i = 0; i < limit; i++) {
        n = child_of(p, n, tokens + i * p->block_tokens);
        if (n == BLOCKS_NONE)
            break;
        const struct node *node = &p->nodes[n];
        whole = whole && node->full != BLOCKS_NONE;
        if (!whole && !node->promiser)
            break;
        depth = i + 1;
        last = n;
        if (node->promiser) {
            promised = depth;
            hit.wait_node = n;
            hit.wait_serial = node->serial;
        }
        if (!whole)
            continue;
        unused += p->full->blocks[node->full].refs == 0;
        run = node->window != BLOCKS_NONE ? run + 1 : 0;
        if (run >= (depth < p->window_blocks ? depth : p->window_blocks)) {
            hit.blocks = depth;
            hit.unused = unused;
        }
    }
    if (promised <= hit.blocks)
        hit.wait_node = BLOCKS_NONE;
    /* Here two sequences part, so others may do so. */
    for (size_t i = 0; i < p->window_blocks && last != BLOCKS_NONE; i++) {
        keep_node(p, last);
        last = p->nodes[last].parent;
    }
    return hit;
}

bool prefix_pending(const struct prefix *p, uint32_t node, uint64_t serial)
{
    return node < p->n_nodes && p->nodes[node].serial == serial && p->nodes[node].promiser != 0;
}

/* ── paths ─────────────────────────────────────────────────────────────────────────────────── */

/* The next node of the path, found or made. */
static bool step_down(struct prefix *p, struct prefix_path *path, const uint32_t *tokens)
{
    if (path->ended)
        return false;
    uint32_t parent = path->count ? path->nodes[path->count - 1] : BLOCKS_NONE;
    tokens += path->count * p->block_tokens;
    uint32_t n = child_of(p, parent, tokens);
    if (n == BLOCKS_NONE)
        n = add_child(p, parent, tokens);
    if (n == BLOCKS_NONE) {
        path->ended = true;
        return false;
    }
    p->nodes[n].holders++;
    path->nodes = base_grow(path->nodes, &path->capacity, path->count + 1, sizeof *path->nodes);
    path->nodes[path->count++] = n;
    return true;
}

void prefix_begin(struct prefix *p, struct prefix_path *path, const uint32_t *tokens, size_t hit,
                  size_t n_blocks, uint64_t promiser, struct block_table *full,
                  struct block_table *window)
{
    assert(path->count == 0 && hit <= n_blocks && promiser);
    size_t first = hit > p->window_blocks ? hit - p->window_blocks : 0;
    blocks_skip(window, first);
    while (path->count < n_blocks && step_down(p, path, tokens)) {
        size_t i = path->count - 1;
        struct node *node = &p->nodes[path->nodes[i]];
        if (i >= hit) {
            if (!node->promiser)
                node->promiser = promiser;
            continue;
        }
        blocks_share(p->full, full, node->full);
        if (i >= first)
            blocks_share(p->window, window, node->window);
    }
    assert(full->count == hit && window->count == hit);
    path->named = hit;
}

void prefix_name(struct prefix *p, struct prefix_path *path, const uint32_t *tokens,
                 size_t n_blocks, uint64_t promiser, const struct block_table *full,
                 const struct block_table *window)
{
    for (; path->named < n_blocks; path->named++) {
        size_t i = path->named;
        if (i == path->count && !step_down(p, path, tokens))
            return;
        uint32_t n = path->nodes[i];
        struct node *node = &p->nodes[n];
        if (node->promiser == promiser)
            node->promiser = 0;
        if (i % PREFIX_STRIDE + p->window_blocks >= PREFIX_STRIDE)
            node->keep = true;
        /* Where others were first, this sequence's block is a copy without a name. */
        if (node->full == BLOCKS_NONE) {
            node->full = full->entries[i];
            blocks_name(p->full, node->full, n, true);
        }
        if (node->window == BLOCKS_NONE && i >= window->freed) {
            node->window = window->entries[i];
            blocks_name(p->window, node->window, n, node->keep);
        }
    }
}

void prefix_keep(struct prefix *p, const struct prefix_path *path, size_t n_blocks)
{
    if (n_blocks > path->count)
        n_blocks = path->count;
    for (size_t i = n_blocks > p->window_blocks ? n_blocks - p->window_blocks : 0; i < n_blocks;
         i++)
        keep_node(p, path->nodes[i]);
}

void prefix_end(struct prefix *p, struct prefix_path *path, uint64_t promiser)
{
    while (path->count) {
        uint32_t n = path->nodes[--path->count];
        struct node *node = &p->nodes[n];
        if (node->promiser == promiser)
            node->promiser = 0;
        node->holders--;
        tidy(p, n);
    }
    path->named = 0;
    path->ended = false;
}

void prefix_path_destroy(struct prefix_path *path)
{
    free(path->nodes);
    *path = (struct prefix_path){0};
}
