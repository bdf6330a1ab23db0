/*
 * Names → positions, for the keys and the tensors of a file.
 */
#include "gguf/index.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

int gguf_index_create(struct gguf_index *index, uint64_t names)
{
    uint64_t slots = 8;
    while (slots < 2 * names)
        slots *= 2;
    index->slots = calloc(slots, sizeof *index->slots);
    index->mask = slots - 1;
    if (getrandom(&index->seed, sizeof index->seed, GRND_NONBLOCK) != sizeof index->seed)
        index->seed = (uint64_t)(uintptr_t)index->slots ^ (uint64_t)clock();
    return index->slots ? 0 : -1;
}

static bool same(struct gguf_string a, const char *bytes, uint64_t size)
{
    return a.size == size && !memcmp(a.bytes, bytes, size);
}

uint64_t gguf_index_find(const struct gguf_index *index, gguf_name_at name_at,
                         const struct gguf_file *file, const char *bytes, uint64_t size)
{
    if (!index->slots)
        return 0;
    uint64_t hash = gguf_hash(bytes, size, index->seed);
    for (uint64_t i = hash & index->mask; index->slots[i].at; i = (i + 1) & index->mask)
        if (index->slots[i].hash == hash &&
            same(name_at(file, index->slots[i].at - 1), bytes, size))
            return index->slots[i].at;
    return 0;
}

uint64_t gguf_index_add(struct gguf_index *index, gguf_name_at name_at,
                        const struct gguf_file *file, uint64_t position)
{
    struct gguf_string name = name_at(file, position);
    uint64_t hash = gguf_hash(name.bytes, name.size, index->seed);
    uint64_t i = hash & index->mask;
    for (; index->slots[i].at; i = (i + 1) & index->mask)
        if (index->slots[i].hash == hash &&
            same(name_at(file, index->slots[i].at - 1), name.bytes, name.size))
            return index->slots[i].at;
    index->slots[i] = (struct gguf_slot){.hash = hash, .at = position + 1};
    return 0;
}
