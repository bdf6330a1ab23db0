/*
 * index: names → positions. Open addressing, never more than half full; the hash is seeded afresh
 * for each file, so that no file can be made whose names collide.
 */
#ifndef GPTOSS_GGUF_INDEX_H
#define GPTOSS_GGUF_INDEX_H

#include "gguf/private.h"

/* The name at a position. */
typedef struct gguf_string (*gguf_name_at)(const struct gguf_file *file, uint64_t position);

/* Room for `names`; −1: out of memory. The slots are freed by whoever holds the index. */
int gguf_index_create(struct gguf_index *index, uint64_t names);
/* 1 + the position of the name, or 0. */
uint64_t gguf_index_find(const struct gguf_index *index, gguf_name_at name_at,
                         const struct gguf_file *file, const char *bytes, uint64_t size);
/* Adds the name at `position`: 0, or 1 + the position that has this name already. */
uint64_t gguf_index_add(struct gguf_index *index, gguf_name_at name_at,
                        const struct gguf_file *file, uint64_t position);

#endif
