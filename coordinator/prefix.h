/*
 * prefix: which KV blocks hold the beginning of a sequence that was computed before, or is being
 * computed now.
 *
 * A tree. A node stands for one full block of tokens after those of its parent: it is found by a hash
 * of (parent, tokens) and then compared token by token, so by induction a node is exactly one prefix,
 * whatever the hash does. A node has the block of the full pool and the block of the window pool that
 * hold its positions, or has lost either. A hit at n blocks needs the full blocks of all n, and the
 * window blocks of those that the window before position n · block_tokens touches.
 *
 * A running request holds the path of its nodes; those of its prompt that it has still to compute are
 * promised: another request with the same beginning waits for them instead of computing them again.
 * Named blocks are not written any more: only full blocks of which every token is known get a name, and
 * a request that shares them goes on behind them.
 *
 * Window blocks are dropped all along a sequence, so most of them are soon evicted. Those before a
 * boundary at which a later sequence may well go on are kept longer: where two sequences part, the end
 * of a prompt, the end of a sequence, every PREFIX_STRIDE blocks.
 */
#ifndef GPTOSS_COORDINATOR_PREFIX_H
#define GPTOSS_COORDINATOR_PREFIX_H

#include "coordinator/blocks.h"

#define PREFIX_STRIDE 64

struct prefix;

/* The nodes of a sequence's blocks, from its beginning on. */
struct prefix_path {
    uint32_t *nodes;
    size_t count, capacity;
    size_t named; /* of these, blocks were given to the first `named` */
    bool ended;   /* the tree took no more nodes of it */
};

struct prefix_hit {
    size_t blocks;      /* that can be shared */
    size_t unused;      /* of their full blocks, those that are in no table */
    uint32_t wait_node; /* BLOCKS_NONE, or: somebody computes more of them, wait for this one */
    uint64_t wait_serial;
};

/* Pools are lent; window_blocks is the number of blocks that the window before a boundary touches. */
struct prefix *prefix_create(struct blocks *full, struct blocks *window, uint32_t block_tokens,
                             uint32_t window_blocks, uint64_t seed);
void prefix_destroy(struct prefix *p); /* NULL is fine */

/* The longest beginning of tokens[limit · block_tokens] that is there. */
struct prefix_hit prefix_find(struct prefix *p, const uint32_t *tokens, size_t limit);
/* The node is still promised. */
bool prefix_pending(const struct prefix *p, uint32_t node, uint64_t serial);

/* Shares the first `hit` blocks into two empty tables and puts all `n_blocks` on the empty path; those
 * beyond the hit are promised by `promiser`, which is not 0. */
void prefix_begin(struct prefix *p, struct prefix_path *path, const uint32_t *tokens, size_t hit,
                  size_t n_blocks, uint64_t promiser, struct block_table *full,
                  struct block_table *window);
/* Names the blocks of the tables up to `n_blocks`: they were given to rows of steps. */
void prefix_name(struct prefix *p, struct prefix_path *path, const uint32_t *tokens,
                 size_t n_blocks, uint64_t promiser, const struct block_table *full,
                 const struct block_table *window);
/* A sequence may go on behind `n_blocks` of the path. */
void prefix_keep(struct prefix *p, const struct prefix_path *path, size_t n_blocks);
/* The path is empty again; promises that were not kept are void. */
void prefix_end(struct prefix *p, struct prefix_path *path, uint64_t promiser);
void prefix_path_destroy(struct prefix_path *path);

uint32_t prefix_nodes(const struct prefix *p); /* for tests */

#endif
